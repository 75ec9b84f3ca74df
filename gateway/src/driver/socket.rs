//! The sockets of a shard: a table entry per connection, how each waits for bytes ([`read`]), what
//! changes while it sends in bulk ([`bulk`]), and how it ends ([`end`]).
//!
//! # Invariants
//! - An entry counts its requests in flight. The descriptor is closed when none is left, and the
//!   entry is used again when that close has completed: a completion always finds the connection
//!   it belongs to.

mod bulk;
mod end;
mod read;

use super::{
    LISTED_MAX,
    ring::{Key, ReadMode, Slot},
};
use bulk::Spells;
use portico_core::ConnId;
use std::{
    collections::{HashMap, VecDeque},
    mem,
};

/// How far a connection has come, as far as its socket is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The entry is not in use.
    Free,
    /// Its TLS session is not open: the core does not know it.
    Handshaking,
    /// Not logged in.
    Greeting,
    /// At home here.
    Open,
    /// On its way to another shard.
    Moving,
    /// The core has forgotten it. Sends its last bytes, reads and discards until the peer closes.
    Leaving,
    /// Waits for its requests to end, then for the close of the descriptor.
    Closing,
}

/// An entry of the table.
#[derive(Debug)]
pub(super) struct Socket {
    /// Received and not handled: part of a frame, or frames that must wait. No heap at rest.
    pub(super) unread: Vec<u8>,
    pub(super) slot: Slot,
    pub(super) generation: u32,
    /// Bytes of the buffer in flight that the kernel has taken.
    pub(super) sent: u32,
    pub(super) state: State,
    /// Requests whose last completion has not come.
    pub(super) in_flight: u8,
    pub(super) polling: bool,
    pub(super) receiving: Option<ReadMode>,
    pub(super) sending: bool,
    /// The SEND in flight was cancelled, because its buffer is wanted back.
    pub(super) recalled: bool,
    /// Stands in the list of those with something to send.
    pub(super) dirty: bool,
    /// Has a place in a list of those that want a RECV.
    listed: bool,
    /// Bytes may be there.
    readable: bool,
    /// Full buffers in succession. In bulk: not 0 if one came since the last look.
    streak: u8,
    /// POLL saw the end of the stream or an error.
    hung_up: bool,
    /// The peer sends no more: its stream has ended, or failed.
    ended: bool,
}

pub(super) const SLOT_BYTES: usize = size_of::<Socket>();

const _: () = assert!(
    SLOT_BYTES <= 48,
    "the entry of an idle connection is part of the memory budget"
);

impl Socket {
    const fn free() -> Self {
        Self {
            unread: Vec::new(),
            slot: Slot(0),
            generation: 0,
            sent: 0,
            state: State::Free,
            in_flight: 0,
            polling: false,
            receiving: None,
            sending: false,
            recalled: false,
            dirty: false,
            listed: false,
            readable: false,
            streak: 0,
            hung_up: false,
            ended: false,
        }
    }
}

/// The table, and the lists over it.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    entries: Vec<Socket>,
    free: Vec<u32>,
    in_use: usize,
    /// Those that read whatever the load is: greeting, leaving, and newly opened ones.
    pub(super) urgent: VecDeque<u32>,
    /// Open ones with bytes to read.
    pub(super) ready: VecDeque<u32>,
    /// Open ones whose peer has gone, or says no more. A few at a time: when a hundred thousand go at
    /// once, those who are still there must not wait behind them.
    pub(super) hung_up: VecDeque<u32>,
    pub(super) dirty: Vec<u32>,
    /// RECVs in flight that do not wait: each will take a buffer.
    receiving: usize,
    /// Those that send in bulk.
    spells: Spells,
    /// What the leaving ones still have to send.
    pub(super) farewells: HashMap<u32, Vec<u8>>,
    /// When leaving ends; in order.
    leaving: VecDeque<(u64, Key)>,
}

impl Sockets {
    /// Room for the whole table at once: it never moves, and what is not used is not resident.
    pub(super) fn with_capacity(slots: usize) -> Self {
        Self {
            entries: Vec::with_capacity(slots),
            ..Self::default()
        }
    }

    /// Gives back what a burst has left in the lists.
    pub(super) fn trim(&mut self) {
        for list in [&mut self.urgent, &mut self.ready, &mut self.hung_up] {
            list.shrink_to(LISTED_MAX);
        }
        self.dirty.shrink_to(LISTED_MAX);
        self.leaving.shrink_to(LISTED_MAX);
        self.farewells.shrink_to(LISTED_MAX);
    }

    /// Entries in use.
    pub(super) const fn in_use(&self) -> usize {
        self.in_use
    }

    pub(super) fn get(&self, index: u32) -> &Socket {
        &self.entries[index as usize]
    }

    pub(super) fn get_mut(&mut self, index: u32) -> &mut Socket {
        &mut self.entries[index as usize]
    }

    pub(super) fn key(&self, index: u32) -> Key {
        Key::new(index, self.get(index).generation)
    }

    pub(super) fn conn(&self, index: u32) -> ConnId {
        ConnId {
            index,
            generation: self.get(index).generation,
        }
    }

    /// The entry that a completion belongs to. Always there, by the first invariant.
    pub(super) fn of_key(&self, key: Key) -> Option<u32> {
        let socket = self.entries.get(key.index as usize)?;
        let same = socket.generation == key.generation && socket.state != State::Free;
        same.then_some(key.index)
    }

    /// The entry of a connection that the core names.
    pub(super) fn of_conn(&self, conn: ConnId) -> Option<u32> {
        self.of_key(Key::new(conn.index, conn.generation))
    }

    pub(super) fn occupy(&mut self, slot: Slot, state: State) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Socket::free());
            (self.entries.len() - 1) as u32
        });
        let socket = self.get_mut(index);
        *socket = Socket {
            slot,
            state,
            generation: Key::next_generation(socket.generation),
            ..Socket::free()
        };
        self.in_use += 1;
        index
    }

    fn vacate(&mut self, index: u32) {
        self.get_mut(index).state = State::Free;
        self.free.push(index);
        self.in_use -= 1;
    }

    /// Gives the connection a place among the urgent ones, even if it has one in another list. A place
    /// that is left behind, there or by an earlier use of the entry, finds nothing to do.
    pub(super) fn want_read_now(&mut self, index: u32) {
        self.get_mut(index).listed = false;
        self.want_read(index);
    }

    /// Gives the connection a place among those that want a RECV, unless it has one.
    pub(super) fn want_read(&mut self, index: u32) {
        let socket = self.get_mut(index);
        if mem::replace(&mut socket.listed, true) {
            return;
        }
        let list = match socket.state {
            State::Open if socket.polling && socket.hung_up => &mut self.hung_up,
            State::Open if socket.polling => &mut self.ready,
            _ => &mut self.urgent,
        };
        list.push_back(index);
    }

    /// Open ones that want a RECV.
    pub(super) fn waiting_reads(&self) -> usize {
        self.ready.len() + self.hung_up.len()
    }

    pub(super) fn mark_dirty(&mut self, index: u32) {
        if !mem::replace(&mut self.get_mut(index).dirty, true) {
            self.dirty.push(index);
        }
    }

    /// Connections that send in bulk.
    pub(super) fn in_bulk(&self) -> usize {
        self.spells.len()
    }

    /// When the first leaving connection has to be gone, or those in bulk are to be looked at.
    pub(super) fn next_deadline_us(&self) -> Option<u64> {
        let leaving = self.leaving.front().map(|(at, _)| *at);
        let looks = self.spells.next_look_us();
        [leaving, looks].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fault: an entry that was used again kept the place of its last use, behind thousands of
    /// connections whose peers had gone, and its new connection was not read until that came up.
    #[test]
    fn a_new_connection_does_not_wait_in_the_place_of_an_old_one() {
        let mut sockets = Sockets::with_capacity(4);
        let index = sockets.occupy(Slot(7), State::Open);
        let socket = sockets.get_mut(index);
        (socket.polling, socket.hung_up) = (true, true);
        sockets.want_read(index);
        sockets.want_read(index);
        assert_eq!((sockets.hung_up.len(), sockets.urgent.len()), (1, 0));
        sockets.vacate(index);
        assert_eq!(sockets.occupy(Slot(9), State::Greeting), index);
        sockets.want_read(index);
        assert_eq!(sockets.urgent, [index]);
    }

    #[test]
    fn who_leaves_is_read_at_once_wherever_it_stood() {
        let mut sockets = Sockets::with_capacity(4);
        let index = sockets.occupy(Slot(7), State::Open);
        sockets.get_mut(index).polling = true;
        sockets.want_read(index);
        assert_eq!((sockets.ready.len(), sockets.urgent.len()), (1, 0));
        sockets.get_mut(index).state = State::Leaving;
        sockets.want_read_now(index);
        assert_eq!(sockets.urgent, [index]);
    }
}
