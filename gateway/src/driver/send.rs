//! Sending: one SEND per connection, of everything that has gathered since the last one.
//!
//! Coalescing is the largest lever on CPU per message, so nothing is sent when it is written: the
//! connections with bytes are listed, and served at the end of the turn.
//!
//! # Invariants
//! - One SEND per connection is in flight at most: two could overtake each other.
//! - The kernel's progress is reported to the core in steps of [`SEND_BYTES_MAX`] at most, so that a
//!   slow reader can be told from one that does not read.
//! - Of a TLS connection a SEND holds one record at most; see [`super::tls`].
//! - A SEND that is cancelled to have its buffer back says how much of it the kernel has: what was
//!   begun is sent to its end.

use super::{
    Driver,
    counters::Tally,
    ring::{Errno, Key, Op},
    socket::State,
};
use portico_core::Input;
use std::mem;

/// A SEND completes when the kernel has all of it: a larger one would hide progress.
const SEND_BYTES_MAX: usize = 32 << 10;

impl Driver {
    /// Sends what has gathered.
    pub(super) fn flush_sends(&mut self) {
        let mut dirty = mem::take(&mut self.sockets.dirty);
        for index in dirty.drain(..) {
            let conn = self.sockets.conn(index);
            let socket = self.sockets.get_mut(index);
            socket.dirty = false;
            if socket.sending {
                // Its completion lists it again.
                continue;
            }
            let buffer = match socket.state {
                State::Handshaking => self.seal_output(index, conn),
                State::Greeting | State::Open if self.tls.is_some(index) => {
                    self.seal_output(index, conn)
                }
                State::Greeting | State::Open => self.core.take_output(conn),
                State::Leaving if self.tls.is_some(index) => self.seal_farewell(index),
                State::Leaving => self.sockets.farewells.remove(&index).unwrap_or_default(),
                State::Moving | State::Closing | State::Free => continue,
            };
            if buffer.is_empty() {
                self.on_nothing_to_send(index);
            } else {
                self.send(index, buffer, 0);
            }
        }
        self.sockets.dirty = dirty;
    }

    pub(super) fn on_sent(&mut self, key: Key, result: Result<usize, Errno>, buffer: Vec<u8>) {
        let Some(index) = self.sockets.of_key(key) else {
            return self.tallies.bump(Tally::RingStale);
        };
        let conn = self.sockets.conn(index);
        let socket = self.sockets.get_mut(index);
        socket.in_flight -= 1;
        socket.sending = false;
        let recalled = mem::take(&mut socket.recalled) && socket.state != State::Closing;
        let bytes = match result {
            Ok(bytes) => bytes,
            // Nothing was taken; the same bytes go again.
            Err(Errno::AGAIN | Errno::INTR) if socket.state != State::Closing => 0,
            Err(Errno::CANCELED) if recalled => 0,
            Err(error) => {
                if error != Errno::CANCELED {
                    self.tallies.bump(Tally::SendFailed);
                }
                self.core.recycle(buffer);
                self.mute(index);
                self.fail(index);
                return match self.sockets.get(index).state {
                    State::Moving => self.try_move(index),
                    _ => self.finish_close(index),
                };
            }
        };
        socket.sent += bytes as u32;
        let sent = socket.sent as usize;
        let state = socket.state;
        if recalled && state == State::Open && sent < buffer.len() {
            self.core.take_back(conn, buffer, sent);
            return self.sockets.mark_dirty(index);
        }
        // Of a TLS connection, what that is in plaintext.
        let bytes = self
            .note_sealed_sent(index, sent, buffer.len())
            .unwrap_or(bytes);
        if matches!(state, State::Greeting | State::Open) {
            let input = Input::Written { conn, bytes };
            self.core.handle(self.now, input, &mut self.fx);
        }
        match state {
            State::Handshaking | State::Greeting | State::Open | State::Moving | State::Leaving
                if sent < buffer.len() =>
            {
                self.send(index, buffer, sent);
            }
            State::Handshaking | State::Greeting | State::Open | State::Leaving => {
                self.keep_buffer(index, buffer);
                self.sockets.mark_dirty(index);
            }
            State::Moving => {
                self.keep_buffer(index, buffer);
                self.try_move(index);
            }
            State::Closing | State::Free => {
                self.core.recycle(buffer);
                self.finish_close(index);
            }
        }
    }

    /// For the next who sends.
    fn keep_buffer(&mut self, index: u32, buffer: Vec<u8>) {
        if self.tls.is_some(index) {
            self.tls.take_spare(buffer);
        } else {
            self.core.recycle(buffer);
        }
    }

    /// The core wants back what a stalled reader has not taken. One cancel, as rare as readers stall;
    /// the completion says how much the kernel has.
    pub(super) fn recall(&mut self, index: u32) {
        if self.tls.is_some(index) {
            return self.recall_unsealed(index);
        }
        let key = self.sockets.key(index);
        let socket = self.sockets.get_mut(index);
        if socket.sending && socket.state == State::Open && !socket.recalled {
            socket.recalled = true;
            self.ring.cancel(Op::Send, key);
        }
    }

    fn send(&mut self, index: u32, buffer: Vec<u8>, from: usize) {
        let key = self.sockets.key(index);
        let socket = self.sockets.get_mut(index);
        socket.sending = true;
        socket.in_flight += 1;
        // A queue is bounded far below 4 GiB.
        socket.sent = from as u32;
        self.tallies.bump(Tally::Sends);
        self.ring
            .send(key, socket.slot, buffer, from, SEND_BYTES_MAX);
    }

    fn on_nothing_to_send(&mut self, index: u32) {
        if self.sockets.get(index).state == State::Leaving {
            self.on_farewell_sent(index);
        }
    }
}
