//! Accepting, straight into the table of direct descriptors.
//!
//! An accept that finds the table full closes the client it accepted. So a shard stops before: far
//! from the end one multishot ACCEPT runs; nearer than a burst could be, connections are taken one
//! by one; at the end, with some slots kept for connections that other shards hand over, none is,
//! and clients wait in the listener's backlog.
//!
//! A direct descriptor cannot be given to setsockopt: what accepted sockets need is set on the
//! listener and inherited.

use super::{
    Driver,
    counters::Tally,
    ring::{AcceptMode, Errno, Key, Op, Slot},
    socket::State,
};
use portico_core::Input;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
};

const BACKLOG: u32 = 4_096;
/// Bounds what a stopped reader holds in the kernel: bytes received and not read.
const RECEIVE_BUFFER_BYTES: usize = 32 << 10;
/// And bytes sent that the network has not taken.
const NOT_SENT_BYTES_MAX: u32 = 64 << 10;
/// Slots kept for adoptions: one in this many, within bounds.
const RESERVE_ONE_IN: u32 = 32;
const RESERVE_MAX: u32 = 512;

/// A listener for one shard. Those of all shards share a port; the kernel spreads the connections.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
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
    socket.bind(&address.into())?;
    socket.listen(BACKLOG as i32)?;
    Ok(socket.into())
}

/// The listener of a shard, and the ACCEPT that runs on it.
#[derive(Debug)]
pub(super) struct Acceptor {
    /// `None` after the drain began.
    listener: Option<TcpListener>,
    armed: Option<AcceptMode>,
    /// The armed one is being cancelled.
    cancelled: bool,
    /// It failed: not again before the next tick.
    failed: bool,
    paused: bool,
    slots: u32,
    reserve: u32,
}

impl Acceptor {
    pub(super) fn new(listener: TcpListener, slots: u32, shards: usize) -> Self {
        let reserve = if shards > 1 {
            (slots / RESERVE_ONE_IN).clamp(1, RESERVE_MAX)
        } else {
            0
        };
        Self {
            listener: Some(listener),
            armed: None,
            cancelled: false,
            failed: false,
            paused: false,
            slots,
            reserve,
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

    /// What should run with so many slots in use, and whether the multishot one must end.
    fn plan(&self, in_use: usize) -> (Option<AcceptMode>, bool) {
        let in_use = u32::try_from(in_use).unwrap_or(u32::MAX);
        let room = self.slots.saturating_sub(in_use + self.reserve);
        let burst = BACKLOG.min(self.slots / 4);
        let mode = match room {
            0 => None,
            _ if room >= 2 * burst => Some(AcceptMode::Multishot),
            _ => Some(AcceptMode::Once),
        };
        (mode, room < burst)
    }
}

impl Driver {
    /// Keeps the right kind of ACCEPT running.
    pub(super) fn keep_accepting(&mut self) {
        let (mode, crowded) = self.acceptor.plan(self.sockets.in_use());
        let acceptor = &mut self.acceptor;
        let Some(listener) = &acceptor.listener else {
            return;
        };
        match acceptor.armed {
            Some(AcceptMode::Multishot) if crowded && !acceptor.cancelled => {
                acceptor.cancelled = true;
                self.ring.cancel(Op::Accept, Key::NONE);
            }
            Some(_) => {}
            None if acceptor.failed => {}
            None => {
                let paused = mode.is_none();
                if paused && !acceptor.paused {
                    self.tallies.bump(Tally::AcceptPaused);
                }
                acceptor.paused = paused;
                if let Some(mode) = mode {
                    acceptor.armed = Some(mode);
                    self.ring.accept(listener.as_fd(), mode);
                }
            }
        }
    }

    pub(super) fn on_accepted(&mut self, result: Result<Slot, Errno>, last: bool) {
        if last {
            self.acceptor.armed = None;
            self.acceptor.cancelled = false;
        }
        match result {
            Ok(slot) => {
                self.tallies.bump(Tally::Accepted);
                let index = self.sockets.occupy(slot, State::Greeting);
                let conn = self.sockets.conn(index);
                self.core.handle(self.now, Input::Opened { conn }, &mut self.fx);
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
        if self.acceptor.armed.is_some() && !self.acceptor.cancelled {
            self.acceptor.cancelled = true;
            self.ring.cancel(Op::Accept, Key::NONE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepting_slows_down_and_stops_before_the_table_is_full() {
        let acceptor = |slots, shards| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            Acceptor::new(listener, slots, shards)
        };
        let multishot = Some(AcceptMode::Multishot);
        let once = Some(AcceptMode::Once);
        let large = acceptor(20_000, 2);
        assert_eq!(large.reserve, 512);
        assert_eq!(large.plan(0), (multishot, false));
        assert_eq!(large.plan(11_296), (multishot, false));
        assert_eq!(large.plan(11_297), (once, false), "two bursts of room no longer");
        assert_eq!(large.plan(15_393), (once, true), "a burst might fill it");
        assert_eq!(large.plan(19_487), (once, true));
        assert_eq!(large.plan(19_488), (None, true), "the reserve is for adoptions");
        assert_eq!(large.plan(20_050), (None, true));
        let alone = acceptor(16, 1);
        assert_eq!(alone.plan(8), (multishot, false));
        assert_eq!(alone.plan(15), (once, true));
        assert_eq!(alone.plan(16), (None, true));
    }

    #[test]
    fn two_listeners_share_a_port() {
        let first = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.local_addr().unwrap();
        let second = listen(address).unwrap();
        assert_eq!(second.local_addr().unwrap(), address);
    }
}
