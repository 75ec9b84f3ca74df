//! The sockets of a shard: a table entry per connection, how each waits for bytes, how it ends.
//!
//! A *greeting* connection waits in a RECV, so that nothing of it is in flight once its HELLO has
//! come and it may move to another shard. An *open* one waits in a multishot POLL, which costs
//! the kernel a third of that and holds no buffer; each wake is followed by one RECV that does not
//! wait. (A connection that fills buffer after buffer would do better on a multishot RECV.)
//!
//! # Invariants
//! - An entry counts its requests in flight. The descriptor is closed when none is left, and the
//!   entry is used again when that close has completed: a completion always finds the connection
//!   it belongs to.
//! - POLL reports edges, and one edge may stand for bytes *and* the end of the stream. So a RECV
//!   follows the last one if that filled its buffer, found none, left bytes behind, or if POLL ever
//!   saw a hang-up.
//! - At most one RECV per connection is in flight, and the connection has at most one place in the
//!   lists of those that want one. The lists are served in turn.
//! - A leaving connection has two seconds to take its last bytes and to close first: closing while
//!   its bytes are unread would send a reset, and a reset may overtake the bytes that say why.

use super::{
    Driver,
    counters::Tally,
    ring::{Errno, Events, Key, Lent, Op, ReadMode, Slot},
};
use portico_core::{ConnId, Input, feed};
use std::{
    collections::{HashMap, VecDeque},
    mem,
};

/// From the decision to close until the socket is closed at the latest.
const LEAVE_MAX_US: u64 = 2_000_000;

/// How far a connection has come, as far as its socket is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The entry is not in use.
    Free,
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
    /// Stands in the list of those with something to send.
    pub(super) dirty: bool,
    /// Stands in a list of those that want a RECV. Outlives the use of the entry, as the place
    /// in the list does.
    listed: bool,
    /// Bytes may be there.
    readable: bool,
    /// POLL saw the end of the stream or an error.
    hung_up: bool,
    /// The peer sends no more: its stream has ended, or failed.
    ended: bool,
}

const _: () = assert!(
    size_of::<Socket>() <= 48,
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
            dirty: false,
            listed: false,
            readable: false,
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
    pub(super) dirty: Vec<u32>,
    /// RECVs in flight that do not wait: each will take a buffer.
    pub(super) receiving: usize,
    /// What the leaving ones still have to send.
    pub(super) farewells: HashMap<u32, Vec<u8>>,
    /// When leaving ends; in order.
    leaving: VecDeque<(u64, Key)>,
}

impl Sockets {
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
            listed: socket.listed,
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

    /// Gives the connection a place among those that want a RECV, unless it has one.
    pub(super) fn want_read(&mut self, index: u32) {
        let socket = self.get_mut(index);
        if mem::replace(&mut socket.listed, true) {
            return;
        }
        if socket.state == State::Open && socket.polling {
            self.ready.push_back(index);
        } else {
            self.urgent.push_back(index);
        }
    }

    pub(super) fn mark_dirty(&mut self, index: u32) {
        if !mem::replace(&mut self.get_mut(index).dirty, true) {
            self.dirty.push(index);
        }
    }

    /// When the first leaving connection has to be gone.
    pub(super) fn next_deadline_us(&self) -> Option<u64> {
        self.leaving.front().map(|(at, _)| *at)
    }
}

impl Driver {
    // ---- reading

    pub(super) fn on_polled(&mut self, key: Key, result: Result<Events, Errno>, last: bool) {
        let Some(index) = self.sockets.of_key(key) else {
            return self.tallies.bump(Tally::RingStale);
        };
        let socket = self.sockets.get_mut(index);
        if last {
            socket.polling = false;
            socket.in_flight -= 1;
        }
        // A failed POLL says nothing more; the RECV will.
        socket.hung_up |= result.map_or(true, Events::hung_up);
        socket.readable = true;
        match socket.state {
            State::Open | State::Leaving => self.sockets.want_read(index),
            State::Closing => self.finish_close(index),
            State::Greeting | State::Moving | State::Free => {}
        }
    }

    pub(super) fn on_received(
        &mut self,
        key: Key,
        result: Result<usize, Errno>,
        lent: Option<Lent>,
        more: bool,
    ) {
        let Some(index) = self.sockets.of_key(key) else {
            lent.into_iter().for_each(|lent| self.ring.give_back(lent));
            return self.tallies.bump(Tally::RingStale);
        };
        let socket = self.sockets.get_mut(index);
        socket.in_flight -= 1;
        let state = socket.state;
        if socket.receiving.take() == Some(ReadMode::AtOnce) {
            self.sockets.receiving -= 1;
        }
        if let Some(lent) = lent {
            self.tallies.bump(Tally::Receives);
            if matches!(state, State::Greeting | State::Open | State::Moving) {
                self.take_bytes(index, &lent);
            }
            let full = lent.len() == self.ring.buffer_bytes();
            self.ring.give_back(lent);
            let socket = self.sockets.get_mut(index);
            socket.readable |= full || more || socket.hung_up;
        }
        match result {
            Ok(0) => self.on_stream_end(index),
            // What follows is read when the edge rule says so, or, without a POLL, in any case.
            Ok(_) => self.read_on(index),
            Err(Errno::NOBUFS) => {
                self.tallies.bump(Tally::NoBuffers);
                self.sockets.get_mut(index).readable = true;
                self.read_on(index);
            }
            Err(Errno::INTR) => {
                self.sockets.get_mut(index).readable = true;
                self.read_on(index);
            }
            // POLL may have seen more since.
            Err(Errno::AGAIN) => self.read_on(index),
            Err(Errno::CANCELED) => {}
            Err(_) => self.fail(index),
        }
        match self.sockets.get(index).state {
            State::Moving => self.try_move(index),
            State::Closing => self.finish_close(index),
            State::Greeting | State::Open | State::Leaving | State::Free => {}
        }
    }

    fn read_on(&mut self, index: u32) {
        let socket = self.sockets.get(index);
        let wanted = match socket.state {
            State::Greeting => true,
            State::Open | State::Leaving => socket.readable || !socket.polling,
            State::Moving | State::Closing | State::Free => false,
        };
        if wanted {
            self.sockets.want_read(index);
        }
    }

    /// Arms what the listed connections wait in: in turn, and no more RECVs than there are buffers,
    /// else most would find none and the same few would win each time.
    pub(super) fn arm_reads(&mut self) {
        for _ in 0..self.sockets.urgent.len() {
            let Some(index) = self.sockets.urgent.pop_front() else {
                break;
            };
            self.arm_read(index);
        }
        if self.is_congested() {
            if !self.sockets.ready.is_empty() {
                self.tallies.bump(Tally::Congested);
            }
            return;
        }
        let buffers = self.ring.buffer_count();
        for _ in 0..self.sockets.ready.len() {
            if self.sockets.receiving >= buffers {
                break;
            }
            let Some(index) = self.sockets.ready.pop_front() else {
                break;
            };
            self.arm_read(index);
        }
    }

    fn arm_read(&mut self, index: u32) {
        let (key, conn) = (self.sockets.key(index), self.sockets.conn(index));
        let socket = self.sockets.get_mut(index);
        socket.listed = false;
        match socket.state {
            State::Open | State::Greeting | State::Leaving => {}
            State::Moving | State::Closing | State::Free => return,
        }
        if socket.state == State::Open && !socket.polling {
            socket.polling = true;
            socket.in_flight += 1;
            self.ring.poll(key, socket.slot);
        }
        // `Effect::Resume` comes back here.
        let waits = socket.state != State::Leaving && !self.core.wants_input(conn);
        if socket.receiving.is_some() || waits || (socket.polling && !socket.readable) {
            return;
        }
        let mode = if socket.polling {
            self.sockets.receiving += 1;
            ReadMode::AtOnce
        } else {
            ReadMode::Waiting
        };
        let socket = self.sockets.get_mut(index);
        socket.readable = false;
        socket.receiving = Some(mode);
        socket.in_flight += 1;
        self.ring.recv(key, socket.slot, mode);
    }

    /// Hands received bytes to the core and keeps what it does not take.
    fn take_bytes(&mut self, index: u32, lent: &Lent) {
        let conn = self.sockets.conn(index);
        let bytes = self.ring.bytes(lent);
        let mut unread = mem::take(&mut self.sockets.get_mut(index).unread);
        let kept = if unread.is_empty() {
            let used = feed(&mut self.core, self.now, conn, bytes, &mut self.fx);
            let rest = &bytes[used..];
            rest.is_empty() || self.unread.append(&mut unread, rest)
        } else {
            let fits = self.unread.append(&mut unread, bytes);
            if fits {
                let used = feed(&mut self.core, self.now, conn, &unread, &mut self.fx);
                self.unread.consume(&mut unread, used);
            }
            fits
        };
        self.sockets.get_mut(index).unread = unread;
        if !kept {
            self.tallies.bump(Tally::UnreadShed);
            self.fail(index);
        }
    }

    /// The core takes input of this connection again.
    pub(super) fn resume(&mut self, index: u32) {
        let conn = self.sockets.conn(index);
        let mut unread = mem::take(&mut self.sockets.get_mut(index).unread);
        if !unread.is_empty() {
            let used = feed(&mut self.core, self.now, conn, &unread, &mut self.fx);
            self.unread.consume(&mut unread, used);
        }
        self.sockets.get_mut(index).unread = unread;
        self.read_on(index);
    }

    // ---- ending

    /// The peer will send no more.
    fn on_stream_end(&mut self, index: u32) {
        let speaking = self.sockets.farewells.contains_key(&index);
        let socket = self.sockets.get_mut(index);
        socket.ended = true;
        match socket.state {
            // It may still read: the last bytes go out first.
            State::Leaving if socket.sending || speaking => {}
            State::Leaving => self.begin_close(index),
            _ => self.fail(index),
        }
    }

    /// The connection is of no use any more, to either side.
    pub(super) fn fail(&mut self, index: u32) {
        let conn = self.sockets.conn(index);
        let socket = self.sockets.get_mut(index);
        socket.ended = true;
        match socket.state {
            State::Greeting | State::Open => {
                // Answered with `Effect::Close`.
                let input = Input::Ended { conn };
                self.core.handle(self.now, input, &mut self.fx);
            }
            State::Leaving => self.begin_close(index),
            // The end shows at the other shard, which has the socket by then.
            State::Moving | State::Closing | State::Free => {}
        }
    }

    /// The core has forgotten the connection; `last` is to reach the peer if it reads.
    pub(super) fn leave(&mut self, index: u32, last: Vec<u8>) {
        let until_us = self.now.mono_us + LEAVE_MAX_US;
        let key = self.sockets.key(index);
        let socket = self.sockets.get_mut(index);
        // Nothing is to be said, or nobody is there to hear it.
        let silent = last.is_empty() && (socket.ended || !socket.sending);
        match socket.state {
            State::Greeting | State::Open if silent => return self.begin_close(index),
            State::Greeting | State::Open => {}
            // `on_handed_over` finds the farewell.
            State::Moving if self.moves.is_sent(index) => {
                self.sockets.farewells.insert(index, last);
                return;
            }
            State::Moving => self.moves.cancel(index),
            State::Leaving | State::Closing | State::Free => return,
        }
        let mut unread = mem::take(&mut self.sockets.get_mut(index).unread);
        self.unread.release(&mut unread);
        self.sockets.get_mut(index).readable = true;
        self.sockets.get_mut(index).state = State::Leaving;
        self.sockets.farewells.insert(index, last);
        self.sockets.leaving.push_back((until_us, key));
        self.sockets.mark_dirty(index);
        self.sockets.want_read(index);
    }

    /// The last bytes are with the kernel. The peer should close now; the deadline sees to the rest.
    pub(super) fn on_farewell_sent(&mut self, index: u32) {
        if self.sockets.get(index).ended {
            self.begin_close(index);
        }
    }

    /// Closes leaving connections whose time is over.
    pub(super) fn end_leaving(&mut self) {
        let now_us = self.now.mono_us;
        while let Some((at_us, key)) = self.sockets.leaving.front().copied() {
            if at_us > now_us {
                break;
            }
            self.sockets.leaving.pop_front();
            let Some(index) = self.sockets.of_key(key) else {
                continue;
            };
            if self.sockets.get(index).state == State::Leaving {
                self.begin_close(index);
            }
        }
    }

    /// Ends what is in flight, then closes the descriptor.
    pub(super) fn begin_close(&mut self, index: u32) {
        let key = self.sockets.key(index);
        let farewell = self.sockets.farewells.remove(&index).unwrap_or_default();
        let socket = self.sockets.get_mut(index);
        if socket.state == State::Leaving && (socket.sending || !farewell.is_empty()) {
            self.tallies.bump(Tally::FarewellLost);
        }
        socket.state = State::Closing;
        let mut unread = mem::take(&mut socket.unread);
        let parked = [
            (socket.polling, Op::Poll),
            (socket.receiving.is_some(), Op::Recv),
            (socket.sending, Op::Send),
        ];
        for (_, op) in parked.into_iter().filter(|(in_flight, _)| *in_flight) {
            self.ring.cancel(op, key);
        }
        self.unread.release(&mut unread);
        self.finish_close(index);
    }

    /// The descriptor is closed after the last request has completed.
    pub(super) fn finish_close(&mut self, index: u32) {
        let key = self.sockets.key(index);
        let socket = self.sockets.get_mut(index);
        if socket.state == State::Closing && socket.in_flight == 0 {
            socket.in_flight = 1;
            self.ring.close(key, socket.slot);
        }
    }

    /// And the entry is free after the descriptor is. A close that fails has freed it, too.
    pub(super) fn on_closed(&mut self, key: Key) {
        let Some(index) = self.sockets.of_key(key) else {
            return self.tallies.bump(Tally::RingStale);
        };
        self.sockets.vacate(index);
    }
}
