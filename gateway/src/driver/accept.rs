//! Accepting, straight into the table of direct descriptors.
//!
//! An accept that finds the table full closes the client it accepted. So a shard stops before. A
//! multishot ACCEPT takes the whole backlog in one go if it can, so it runs only while the table has
//! room for that; after that a few single ACCEPTs run, each with a slot in reserve; at the end, with
//! some slots kept for connections that other shards hand over, none does, and clients wait in the
//! backlog.
//!
//! A direct descriptor cannot be given to setsockopt: what accepted sockets need is set on the
//! listener and inherited.

use super::{
    Driver,
    counters::Tally,
    ring::{AcceptMode, Errno, Op, Slot},
    socket::State,
};
use portico_core::Input;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
    time::Duration,
};

/// Connections of each shard that may wait to be accepted; net.core.somaxconn bounds it.
pub const BACKLOG: u32 = 4_096;
/// Single ACCEPTs that run at a time.
const SINGLES_MAX: u32 = 16;
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

/// The listener of a shard, and the ACCEPT that runs on it.
#[derive(Debug)]
pub(super) struct Acceptor {
    /// `None` after the drain began.
    listener: Option<TcpListener>,
    multishot: Multishot,
    /// Single ACCEPTs that run.
    singles: u32,
    /// The last one failed: not again before the next tick.
    failed: bool,
    paused: bool,
    slots: u32,
    reserve: u32,
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
    pub(super) fn new(listener: TcpListener, slots: u32, shards: usize) -> Self {
        Self {
            listener: Some(listener),
            multishot: Multishot::Off,
            singles: 0,
            failed: false,
            paused: false,
            slots,
            reserve: reserve(slots, shards),
        }
    }

    /// Waits for the next tick to try again?
    pub(super) const fn is_failed(&self) -> bool {
        self.failed && self.listener.is_some()
    }

    pub(super) const fn on_tick(&mut self) {
        self.failed = false;
    }

    /// Size of the table.
    pub(super) const fn slots(&self) -> usize {
        self.slots as usize
    }

    /// With so many slots in use. The multishot one is begun with two backlogs of room and ended
    /// with one, so that it does not come and go.
    fn plan(&self, in_use: usize) -> Plan {
        let in_use = u32::try_from(in_use).unwrap_or(u32::MAX);
        let room = self
            .slots
            .saturating_sub(in_use.saturating_add(self.reserve));
        let needed = match self.multishot {
            Multishot::Running => BACKLOG + SINGLES_MAX,
            Multishot::Off | Multishot::Cancelled => 2 * BACKLOG,
        };
        if room >= needed {
            Plan::Multishot
        } else {
            Plan::Singles(room.min(SINGLES_MAX))
        }
    }
}

impl Driver {
    /// Keeps the right kind of ACCEPT running.
    pub(super) fn keep_accepting(&mut self) {
        let acceptor = &mut self.acceptor;
        let Some(listener) = &acceptor.listener else {
            return;
        };
        if acceptor.failed {
            return;
        }
        let plan = acceptor.plan(self.sockets.in_use());
        match (plan, acceptor.multishot) {
            (Plan::Multishot, Multishot::Off) => {
                acceptor.multishot = Multishot::Running;
                self.ring.accept(listener.as_fd(), AcceptMode::Multishot);
            }
            (Plan::Singles(_), Multishot::Running) => {
                acceptor.multishot = Multishot::Cancelled;
                self.ring.cancel(Op::Accept, AcceptMode::Multishot.key());
            }
            (Plan::Singles(count), Multishot::Off) => {
                let paused = count == 0;
                if paused && !acceptor.paused {
                    self.tallies.bump(Tally::AcceptPaused);
                }
                acceptor.paused = paused;
                while acceptor.singles < count {
                    acceptor.singles += 1;
                    self.ring.accept(listener.as_fd(), AcceptMode::Once);
                }
            }
            // As it should be, or on the way there.
            (Plan::Multishot, Multishot::Running) | (_, Multishot::Cancelled) => {}
        }
    }

    pub(super) fn on_accepted(
        &mut self,
        mode: AcceptMode,
        result: Result<Slot, Errno>,
        last: bool,
    ) {
        match mode {
            AcceptMode::Multishot if last => self.acceptor.multishot = Multishot::Off,
            AcceptMode::Multishot => {}
            AcceptMode::Once => self.acceptor.singles -= 1,
        }
        match result {
            Ok(slot) => {
                self.tallies.bump(Tally::Accepted);
                let index = self.sockets.occupy(slot, State::Greeting);
                let conn = self.sockets.conn(index);
                self.core
                    .handle(self.now, Input::Opened { conn }, &mut self.fx);
                self.sockets.want_read(index);
            }
            Err(Errno::CANCELED) => {}
            Err(_) => {
                self.tallies.bump(Tally::AcceptFailed);
                self.acceptor.failed = true;
            }
        }
    }

    /// For good: the listener closes, and what waits in its backlog is refused.
    pub(super) fn stop_accepting(&mut self) {
        self.acceptor.listener = None;
        for mode in [AcceptMode::Multishot, AcceptMode::Once] {
            self.ring.cancel_each(Op::Accept, mode.key());
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
        let acceptor = |slots, shards| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            Acceptor::new(listener, slots, shards)
        };
        let mut large = acceptor(20_000, 2);
        assert_eq!(large.reserve, 78);
        assert_eq!(large.plan(0), Plan::Multishot);
        assert_eq!(large.plan(11_731), Plan::Singles(SINGLES_MAX));
        large.multishot = Multishot::Running;
        assert_eq!(
            large.plan(11_731),
            Plan::Multishot,
            "it goes on for a while"
        );
        assert_eq!(large.plan(15_810), Plan::Multishot);
        assert_eq!(large.plan(15_811), Plan::Singles(SINGLES_MAX));
        large.multishot = Multishot::Off;
        assert_eq!(large.plan(19_919), Plan::Singles(3));
        assert_eq!(
            large.plan(19_922),
            Plan::Singles(0),
            "the rest is for adoptions"
        );
        assert_eq!(large.plan(20_050), Plan::Singles(0));
        let alone = acceptor(16, 1);
        assert_eq!(alone.plan(0), Plan::Singles(16));
        assert_eq!(alone.plan(15), Plan::Singles(1));
        assert_eq!(alone.plan(16), Plan::Singles(0));
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
