//! Accepting, straight into the table of direct descriptors.
//!
//! An accept that finds the table full closes the client it accepted. So a shard stops before. A
//! multishot ACCEPT takes the whole backlog in one go if it can, so it runs only while the table has
//! room for that; after that a few single ACCEPTs run, each with a slot in reserve; at the end, with
//! some slots kept for connections that other shards hand over, none does, and clients wait in the
//! backlog.
//!
//! A multishot ACCEPT does not say where connections come from. Where that matters, because sources have
//! limits and not every one that can get here is exempt, single ones run all the time.
//!
//! A direct descriptor cannot be given to setsockopt: what accepted sockets need is set on the
//! listener and inherited.
//!
//! A shard has a door for plain connections and may have one for TLS. They share the table: each
//! keeps room for what the other may take at once, and the last few slots are divided.

use super::{
    Driver,
    counters::Tally,
    ring::{AcceptMode, Door, Errno, Slot},
    socket::State,
};
use portico_core::{Input, Rates};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::AsFd,
    time::Duration,
};

/// Connections of each shard that may wait to be accepted; net.core.somaxconn bounds it.
pub const BACKLOG: u32 = 4_096;
/// Single ACCEPTs that run at a time.
const SINGLES_MAX: u32 = 16;
/// The same where only single ones tell where a connection comes from.
const NAMED_MAX: u32 = 64;
/// Bounds what a stopped reader holds in the kernel: bytes received and not read.
const RECEIVE_BUFFER_BYTES: usize = 32 << 10;
/// And bytes sent that the network has not taken.
const NOT_SENT_BYTES_MAX: u32 = 64 << 10;
/// Slots kept for adoptions: one in this many, within bounds.
const RESERVE_ONE_IN: u32 = 256;
const RESERVE_MAX: u32 = 512;

/// A listener for one shard. Those of all shards share a port; the kernel spreads the connections.
///
/// `user_timeout_ms`: how long bytes may be unconfirmed before the kernel ends a connection; 0: as
/// long as it tries by itself.
///
/// # Errors
/// What the system says to any of it.
pub(crate) fn listen(address: SocketAddr, user_timeout_ms: u32) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    socket.set_tcp_notsent_lowat(NOT_SENT_BYTES_MAX)?;
    if user_timeout_ms > 0 {
        let timeout = Duration::from_millis(u64::from(user_timeout_ms));
        socket.set_tcp_user_timeout(Some(timeout))?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG as i32)?;
    Ok(socket.into())
}

/// Slots of a shard that are kept for connections which other shards hand over.
pub(super) fn reserve(slots: u32, shards: usize) -> u32 {
    if shards > 1 {
        (slots / RESERVE_ONE_IN).clamp(1, RESERVE_MAX)
    } else {
        0
    }
}

/// The doors of a shard, and the ACCEPTs that run at them.
#[derive(Debug)]
pub(super) struct Acceptor {
    entries: Vec<Entry>,
    paused: bool,
    slots: u32,
    reserve: u32,
}

#[derive(Debug)]
struct Entry {
    door: Door,
    /// `None` after the drain began.
    listener: Option<TcpListener>,
    multishot: Multishot,
    /// Single ACCEPTs that run.
    singles: u32,
    /// The last one failed: not again before the next tick.
    failed: bool,
    /// Those who came in last have to be served first.
    held: bool,
    /// Sources have to be known.
    named: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Multishot {
    Off,
    Running,
    Cancelled,
}

/// What should run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Multishot,
    /// Single ones, so many in all.
    Singles(u32),
}

impl Acceptor {
    pub(super) fn new(
        (plain, tls): (TcpListener, Option<TcpListener>),
        slots: u32,
        shards: usize,
        rates: &Rates,
        proxied: bool,
    ) -> Self {
        // From nowhere else than this machine can anybody reach a listener on loopback.
        let is_exempt = |listener: &TcpListener| {
            let address = listener.local_addr();
            address.is_ok_and(|at| at.ip().is_loopback() && rates.is_exempt(at.ip()))
        };
        let entry = |(door, listener)| Entry {
            door,
            named: proxied || !is_exempt(&listener),
            listener: Some(listener),
            multishot: Multishot::Off,
            singles: 0,
            failed: false,
            held: false,
        };
        let doors = [(Door::Plain, plain)].into_iter();
        let doors = doors.chain(tls.map(|listener| (Door::Tls, listener)));
        Self {
            entries: doors.map(entry).collect(),
            paused: false,
            slots,
            reserve: reserve(slots, shards),
        }
    }

    /// Waits for the next tick to try again?
    pub(super) fn is_failed(&self) -> bool {
        let waits = |entry: &Entry| entry.failed && entry.listener.is_some();
        self.entries.iter().any(waits)
    }

    pub(super) fn on_tick(&mut self) {
        for entry in &mut self.entries {
            entry.failed = false;
        }
    }

    /// Size of the table.
    pub(super) const fn slots(&self) -> usize {
        self.slots as usize
    }

    fn entry(&mut self, door: Door) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.door == door)
    }

    /// For a door, with so many slots in use. A multishot one is begun with two backlogs of room for
    /// each door and ended with one, so that it does not come and go.
    fn plan(&self, at: usize, in_use: usize) -> Plan {
        if self.entries[at].held {
            return Plan::Singles(0);
        }
        let in_use = u32::try_from(in_use).unwrap_or(u32::MAX);
        let room = self
            .slots
            .saturating_sub(in_use.saturating_add(self.reserve));
        let doors = self.entries.len() as u32;
        let needed = match self.entries[at].multishot {
            Multishot::Running => BACKLOG + SINGLES_MAX,
            Multishot::Off | Multishot::Cancelled => 2 * BACKLOG,
        };
        let named = self.entries[at].named;
        if room >= needed * doors && !named {
            return Plan::Multishot;
        }
        let most = if named { NAMED_MAX } else { SINGLES_MAX };
        let others = self.entries.iter().enumerate();
        let others = others.filter(|(other, _)| *other != at);
        let taken: u32 = others.map(|(_, entry)| entry.singles).sum();
        // The first door has the odd one.
        let share = (room + doors - 1 - at as u32) / doors;
        Plan::Singles(share.min(room.saturating_sub(taken)).min(most))
    }
}

impl Driver {
    /// Keeps the right kind of ACCEPT running at each door.
    pub(super) fn keep_accepting(&mut self) {
        let in_use = self.sockets.in_use();
        let mut paused = false;
        for at in 0..self.acceptor.entries.len() {
            let entry = &mut self.acceptor.entries[at];
            let door = entry.door;
            if door == Door::Tls && self.tls.holds_door(entry.held) != entry.held {
                entry.held = !entry.held;
                self.tallies.add(Tally::TlsHeld, u64::from(entry.held));
            }
            let held = entry.held;
            let plan = self.acceptor.plan(at, in_use);
            paused |= plan == Plan::Singles(0) && !held;
            let entry = &mut self.acceptor.entries[at];
            let Some(listener) = entry.listener.as_ref().filter(|_| !entry.failed) else {
                continue;
            };
            match (plan, entry.multishot) {
                (Plan::Multishot, Multishot::Off) => {
                    entry.multishot = Multishot::Running;
                    let mode = AcceptMode::Multishot;
                    self.ring.accept(listener.as_fd(), mode, door);
                }
                (Plan::Singles(_), Multishot::Running) => {
                    entry.multishot = Multishot::Cancelled;
                    self.ring.cancel_accepts(AcceptMode::Multishot, door);
                }
                (Plan::Singles(count), Multishot::Off) => {
                    while entry.singles < count {
                        entry.singles += 1;
                        self.ring.accept(listener.as_fd(), AcceptMode::Once, door);
                    }
                }
                // As it should be, or on the way there.
                (Plan::Multishot, Multishot::Running) | (_, Multishot::Cancelled) => {}
            }
        }
        if paused && !self.acceptor.paused {
            self.tallies.bump(Tally::AcceptPaused);
        }
        self.acceptor.paused = paused;
    }

    pub(super) fn on_accepted(
        &mut self,
        (mode, door): (AcceptMode, Door),
        result: Result<Slot, Errno>,
        from: Option<IpAddr>,
        last: bool,
    ) {
        let Some(entry) = self.acceptor.entry(door) else {
            return self.tallies.bump(Tally::RingStale);
        };
        match mode {
            AcceptMode::Multishot if last => entry.multishot = Multishot::Off,
            AcceptMode::Multishot => {}
            AcceptMode::Once => entry.singles -= 1,
        }
        match result {
            Ok(slot) => {
                self.tallies.bump(Tally::Accepted);
                match door {
                    Door::Plain => self.greet(slot, from),
                    Door::Tls => self.begin_handshake(slot, from),
                }
            }
            Err(Errno::CANCELED) => {}
            Err(_) => {
                entry.failed = true;
                self.tallies.bump(Tally::AcceptFailed);
            }
        }
    }

    /// May a connection from here be served? One of a balancer has yet to say where it comes from.
    pub(super) fn admits(&mut self, index: u32, from: Option<IpAddr>) -> bool {
        let conn = self.sockets.conn(index);
        let admitted = from.is_none_or(|from| {
            self.proxies.expect(index, from) || self.core.admit_source(self.now, conn, from)
        });
        self.tallies.add(Tally::AcceptRefused, u64::from(!admitted));
        admitted
    }

    fn greet(&mut self, slot: Slot, from: Option<IpAddr>) {
        let index = self.sockets.occupy(slot, State::Greeting);
        if !self.admits(index, from) {
            return self.begin_close(index);
        }
        let conn = self.sockets.conn(index);
        self.core
            .handle(self.now, Input::Opened { conn }, &mut self.fx);
        self.sockets.want_read(index);
    }

    /// For good: the listeners close, and what waits in their backlogs is refused.
    pub(super) fn stop_accepting(&mut self) {
        for entry in &mut self.acceptor.entries {
            entry.listener = None;
            for mode in [AcceptMode::Multishot, AcceptMode::Once] {
                self.ring.cancel_accepts(mode, entry.door);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::SockRef;
    use std::net::TcpStream;

    #[test]
    fn accepting_slows_down_and_stops_before_the_table_is_full() {
        let mut large = acceptor(20_000, 2, false);
        assert_eq!(large.reserve, 78);
        assert_eq!(large.plan(0, 0), Plan::Multishot);
        assert_eq!(large.plan(0, 11_731), Plan::Singles(SINGLES_MAX));
        large.entries[0].multishot = Multishot::Running;
        assert_eq!(
            large.plan(0, 11_731),
            Plan::Multishot,
            "it goes on for a while"
        );
        assert_eq!(large.plan(0, 15_810), Plan::Multishot);
        assert_eq!(large.plan(0, 15_811), Plan::Singles(SINGLES_MAX));
        large.entries[0].multishot = Multishot::Off;
        assert_eq!(large.plan(0, 19_919), Plan::Singles(3));
        assert_eq!(
            large.plan(0, 19_922),
            Plan::Singles(0),
            "the rest is for adoptions"
        );
        assert_eq!(large.plan(0, 20_050), Plan::Singles(0));
        let alone = acceptor(16, 1, false);
        assert_eq!(alone.plan(0, 0), Plan::Singles(16));
        assert_eq!(alone.plan(0, 15), Plan::Singles(1));
        assert_eq!(alone.plan(0, 16), Plan::Singles(0));
    }

    #[test]
    fn two_doors_never_accept_more_than_the_table_holds() {
        let mut both = acceptor(20_000, 1, true);
        assert_eq!(both.plan(0, 3_616), Plan::Multishot);
        assert_eq!(both.plan(1, 3_617), Plan::Singles(SINGLES_MAX));
        both.slots = 9;
        assert_eq!(both.plan(0, 0), Plan::Singles(5));
        assert_eq!(both.plan(1, 0), Plan::Singles(4));
        both.entries[0].singles = 5;
        assert_eq!(both.plan(1, 2), Plan::Singles(2), "five of seven are taken");
        assert_eq!(both.plan(1, 4), Plan::Singles(0));
        both.entries[0].singles = 0;
        assert_eq!(
            (both.plan(0, 8), both.plan(1, 8)),
            (Plan::Singles(1), Plan::Singles(0))
        );
    }

    fn acceptor(slots: u32, shards: usize, tls: bool) -> Acceptor {
        let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners = (listener(), tls.then(listener));
        Acceptor::new(listeners, slots, shards, &Rates::default(), false)
    }

    #[test]
    fn where_sources_count_each_connection_is_accepted_by_itself() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let rates = Rates {
            exempt: Vec::new(),
            ..Rates::default()
        };
        let named = Acceptor::new((listener, None), 20_000, 1, &rates, false);
        assert_eq!(named.plan(0, 0), Plan::Singles(NAMED_MAX));
        assert_eq!(named.plan(0, 19_990), Plan::Singles(10));
    }

    #[test]
    fn two_listeners_share_a_port() {
        let first = listen("127.0.0.1:0".parse().unwrap(), 0).unwrap();
        let address = first.local_addr().unwrap();
        let second = listen(address, 0).unwrap();
        assert_eq!(second.local_addr().unwrap(), address);
    }

    /// What accepted sockets need cannot be set on a direct descriptor.
    #[test]
    fn accepted_sockets_inherit_what_is_set_on_the_listener() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), 7_000).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        let timeout = accepted.tcp_user_timeout().unwrap();
        assert_eq!(timeout, Some(Duration::from_millis(7_000)));
        assert!(accepted.tcp_nodelay().unwrap());
        assert_eq!(accepted.tcp_notsent_lowat().unwrap(), NOT_SENT_BYTES_MAX);
    }
}
