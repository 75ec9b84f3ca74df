//! How a connection ends.
//!
//! # Invariants
//! - A leaving connection has two seconds to take its last bytes and to close first: closing while
//!   its bytes are unread would send a reset, and a reset may overtake the bytes that say why.
//! - What is parked is cancelled once, and its last completion awaited before the close.

use super::{State, bulk::Why};
use crate::driver::{
    Driver,
    counters::Tally,
    ring::{Key, Op, ReadMode},
};
use portico_core::Input;
use std::mem;

/// From the decision to close until the socket is closed at the latest.
const LEAVE_MAX_US: u64 = 2_000_000;

impl Driver {
    /// The peer will send no more.
    pub(in crate::driver) fn on_stream_end(&mut self, index: u32) {
        if self.is_owed(index) {
            // What it said before is handled first; the RECV after that says the end once more.
            self.sockets.get_mut(index).readable = true;
            return;
        }
        if self.sockets.get(index).state != State::Leaving {
            self.mute(index);
        }
        let speaking = self.sockets.farewells.contains_key(&index) || self.tls.has_last_word(index);
        let socket = self.sockets.get_mut(index);
        socket.ended = true;
        match socket.state {
            // It may still read: the last bytes go out first.
            State::Leaving if socket.sending || speaking => {}
            State::Leaving => self.begin_close(index),
            _ => self.fail(index),
        }
    }

    /// Whole frames of an open connection wait until the core takes input again.
    pub(in crate::driver) fn is_owed(&self, index: u32) -> bool {
        let socket = self.sockets.get(index);
        let waits = socket.state == State::Open && !socket.unread.is_empty();
        waits && !self.core.wants_input(self.sockets.conn(index))
    }

    /// The connection is of no use any more, to either side.
    pub(in crate::driver) fn fail(&mut self, index: u32) {
        let conn = self.sockets.conn(index);
        let socket = self.sockets.get_mut(index);
        socket.ended = true;
        match socket.state {
            State::Greeting | State::Open => {
                // Answered with `Effect::Close`.
                let input = Input::Ended { conn };
                self.core.handle(self.now, input, &mut self.fx);
            }
            State::Handshaking => self.on_handshake_gone(index),
            State::Leaving => self.begin_close(index),
            // The end shows at the other shard, which has the socket by then.
            State::Moving | State::Closing | State::Free => {}
        }
    }

    /// The core has forgotten the connection; `last` is to reach the peer if it reads.
    pub(in crate::driver) fn leave(&mut self, index: u32, last: Vec<u8>) {
        let until_us = self.now.mono_us + LEAVE_MAX_US;
        let key = self.sockets.key(index);
        let has_last_word = self.tls.has_last_word(index);
        let socket = self.sockets.get_mut(index);
        // Nothing is to be said, or nobody is there to hear it.
        let silent = last.is_empty() && !has_last_word && (socket.ended || !socket.sending);
        match socket.state {
            State::Handshaking | State::Greeting | State::Open if silent => {
                return self.begin_close(index);
            }
            State::Handshaking | State::Greeting | State::Open => {}
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
        self.sockets.want_read_now(index);
    }

    /// The last bytes are with the kernel. The peer should close now; the deadline sees to the rest.
    pub(in crate::driver) fn on_farewell_sent(&mut self, index: u32) {
        if self.sockets.get(index).ended {
            self.begin_close(index);
        }
    }

    /// Closes leaving connections whose time is over.
    pub(in crate::driver) fn end_leaving(&mut self) {
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
    pub(in crate::driver) fn begin_close(&mut self, index: u32) {
        let key = self.sockets.key(index);
        let farewell = self.sockets.farewells.remove(&index).unwrap_or_default();
        drop(self.tls.remove(index));
        let socket = self.sockets.get_mut(index);
        if socket.state == State::Leaving && (socket.sending || !farewell.is_empty()) {
            self.tallies.bump(Tally::FarewellLost);
        }
        socket.state = State::Closing;
        let mut unread = mem::take(&mut socket.unread);
        let in_bulk = socket.receiving == Some(ReadMode::Multishot);
        let parked = [
            (socket.polling, Op::Poll),
            (socket.receiving.is_some() && !in_bulk, Op::Recv),
            (socket.sending, Op::Send),
        ];
        for (_, op) in parked.into_iter().filter(|(in_flight, _)| *in_flight) {
            self.ring.cancel(op, key);
        }
        if in_bulk {
            self.end_spell(key, Why::Closed);
        }
        self.unread.release(&mut unread);
        self.finish_close(index);
    }

    /// The descriptor is closed after the last request has completed.
    pub(in crate::driver) fn finish_close(&mut self, index: u32) {
        let key = self.sockets.key(index);
        let socket = self.sockets.get_mut(index);
        if socket.state == State::Closing && socket.in_flight == 0 {
            socket.in_flight = 1;
            self.ring.close(key, socket.slot);
        }
    }

    /// And the entry is free after the descriptor is. A close that fails has freed it, too.
    pub(in crate::driver) fn on_closed(&mut self, key: Key) {
        let Some(index) = self.sockets.of_key(key) else {
            return self.tallies.bump(Tally::RingStale);
        };
        // If it ended before the core knew it.
        self.core.forget_source(self.sockets.conn(index));
        self.proxies.forget(index);
        self.sockets.vacate(index);
    }
}
