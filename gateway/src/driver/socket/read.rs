//! How connections wait for bytes.
//!
//! A *greeting* connection waits in a RECV, so that nothing of it is in flight once its HELLO has
//! come and it may move to another shard. An *open* one waits in a multishot POLL, which costs
//! the kernel a third of that and holds no buffer; each wake is followed by one RECV that does not
//! wait. One that fills buffer after buffer gets a multishot RECV for a while: see [`super::bulk`].
//!
//! # Invariants
//! - POLL reports edges, and one edge may stand for bytes *and* the end of the stream. So a RECV
//!   follows the last one if that filled its buffer, found none, left bytes behind, or if POLL ever
//!   saw a hang-up.
//! - At most one RECV per connection is in flight. The lists of those that want one are served in turn;
//!   a place that has become stale finds nothing to do.

use super::State;
use crate::driver::{
    Driver,
    counters::Tally,
    ring::{Errno, Events, Key, Lent, ReadMode},
};
use portico_core::feed;
use std::mem;

/// RECVs per turn for connections that POLL saw the end of.
const HUNG_UP_PER_TURN: usize = 4;

impl Driver {
    pub(in crate::driver) fn on_polled(
        &mut self,
        key: Key,
        result: Result<Events, Errno>,
        last: bool,
    ) {
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
            // Its bytes come by themselves; what was noted here counts when the spell ends.
            State::Open if socket.receiving == Some(ReadMode::Multishot) => {}
            State::Open | State::Leaving => self.sockets.want_read(index),
            State::Closing => self.finish_close(index),
            State::Handshaking | State::Greeting | State::Moving | State::Free => {}
        }
    }

    pub(in crate::driver) fn on_received(
        &mut self,
        key: Key,
        result: Result<usize, Errno>,
        lent: Option<Lent>,
        more: bool,
        last: bool,
    ) {
        let Some(index) = self.sockets.of_key(key) else {
            lent.into_iter().for_each(|lent| self.ring.give_back(lent));
            return self.tallies.bump(Tally::RingStale);
        };
        let mode = self.sockets.get(index).receiving;
        if last {
            let socket = self.sockets.get_mut(index);
            socket.in_flight -= 1;
            socket.receiving = None;
            match mode {
                Some(ReadMode::AtOnce) => self.sockets.receiving -= 1,
                Some(ReadMode::Multishot) => self.on_spell_end(key, result),
                Some(ReadMode::Waiting) | None => {}
            }
        }
        if let Some(lent) = lent {
            self.take_buffer(index, lent, mode, more);
        }
        if !last {
            return self.on_bulk(key);
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
            Err(Errno::AGAIN) => {
                self.sockets.get_mut(index).streak = 0;
                self.read_on(index);
            }
            Err(Errno::CANCELED) => self.read_on(index),
            Err(_) => {
                self.mute(index);
                self.fail(index);
            }
        }
        match self.sockets.get(index).state {
            State::Moving => self.try_move(index),
            State::Closing => self.finish_close(index),
            State::Handshaking | State::Greeting | State::Open | State::Leaving | State::Free => {}
        }
    }

    /// Takes the bytes of a buffer and gives it back.
    fn take_buffer(&mut self, index: u32, mut lent: Lent, mode: Option<ReadMode>, more: bool) {
        self.tallies.bump(Tally::Receives);
        let socket = self.sockets.get(index);
        let wanted = matches!(
            socket.state,
            State::Handshaking | State::Greeting | State::Open | State::Moving if !socket.ended
        );
        let full = lent.len() == self.ring.buffer_bytes();
        let wanted =
            wanted && (!self.proxies.is_waiting(index) || self.take_header(index, &mut lent));
        if wanted && self.tls.is_some(index) {
            self.take_records(index, &lent);
        } else if wanted {
            self.take_bytes(index, &lent);
        }
        self.ring.give_back(lent);
        let socket = self.sockets.get_mut(index);
        socket.readable |= full || more || socket.hung_up;
        socket.streak = match mode {
            _ if full => socket.streak.saturating_add(1),
            Some(ReadMode::Multishot) => socket.streak,
            Some(ReadMode::AtOnce | ReadMode::Waiting) | None => 0,
        };
    }

    pub(in crate::driver) fn read_on(&mut self, index: u32) {
        let socket = self.sockets.get(index);
        let wanted = match socket.state {
            State::Handshaking | State::Greeting => true,
            State::Open | State::Leaving => socket.readable || !socket.polling,
            State::Moving | State::Closing | State::Free => false,
        };
        if wanted {
            self.sockets.want_read(index);
        }
    }

    /// Arms what the listed connections wait in: in turn, and no more RECVs than there are buffers,
    /// else most would find none and the same few would win each time.
    pub(in crate::driver) fn arm_reads(&mut self) {
        self.look_at_spells();
        for _ in 0..self.sockets.urgent.len() {
            let Some(index) = self.sockets.urgent.pop_front() else {
                break;
            };
            self.arm_read(index);
        }
        // Also when nothing else is read: hardly any of them has bytes left, and their slots are wanted.
        for _ in 0..HUNG_UP_PER_TURN.min(self.sockets.hung_up.len()) {
            let Some(index) = self.sockets.hung_up.pop_front() else {
                break;
            };
            self.arm_read(index);
        }
        if self.is_congested() {
            self.pause_spells();
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
            State::Open | State::Greeting | State::Handshaking | State::Leaving => {}
            State::Moving | State::Closing | State::Free => return,
        }
        if socket.state == State::Open && !socket.polling {
            socket.polling = true;
            socket.in_flight += 1;
            self.ring.poll(key, socket.slot);
        }
        // `Effect::Resume` comes back here.
        let waits = match socket.state {
            State::Leaving => false,
            State::Handshaking => self.tls.is_waiting(index),
            _ => !self.core.wants_input(conn),
        };
        if socket.receiving.is_some() || waits || (socket.polling && !socket.readable) {
            return;
        }
        let mode = if !socket.polling {
            ReadMode::Waiting
        } else if self.begin_spell(key) {
            ReadMode::Multishot
        } else {
            self.sockets.receiving += 1;
            ReadMode::AtOnce
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
    pub(in crate::driver) fn resume(&mut self, index: u32) {
        let conn = self.sockets.conn(index);
        let mut unread = mem::take(&mut self.sockets.get_mut(index).unread);
        if self.tls.is_some(index) {
            self.feed_unread(index, &mut unread);
        } else if !unread.is_empty() {
            let used = feed(&mut self.core, self.now, conn, &unread, &mut self.fx);
            self.unread.consume(&mut unread, used);
        }
        self.sockets.get_mut(index).unread = unread;
        self.read_on(index);
        self.on_records_resumed(index);
    }
}
