//! Bulk senders: connections that fill receive buffer after receive buffer.
//!
//! A RECV that follows a wake brings one buffer per turn. A connection that has filled
//! [`STREAK_MIN`] in succession therefore begins a *spell*: its next RECV is a multishot one, which
//! brings whatever comes without a further request. The spell ends
//! - when no buffer was filled for a second (*quiet*) or the shard wants to read less (*paused*):
//!   one cancel, which the four buffers at the beginning have paid for;
//! - when the kernel finds no buffer, or no room for a completion (*cut*);
//! - with the connection (*closed*).
//!
//! However it ends, the connection waits in its POLL again. That has stayed armed: it reports each
//! wake beside the RECV, which costs less than could be measured, while taking it away would cost a
//! cancel at the beginning and a gap at the end.
//!
//! # Invariants
//! - There are no more spells than receive buffers.
//! - A connection has a place in the list from the multishot RECV's request until its last
//!   completion.
//! - Whatever ended a spell, one RECV that does not wait follows: the POLL's edge may have passed.
//! - What comes after a cancel is bounded: a cancel is submitted before the kernel fills further
//!   buffers, so it is what lies in the completion queue, at most all buffers of the ring. That is
//!   the bound of one turn as well, and the reason why one connection cannot starve the others: the
//!   kernel serves them in turn, and one brings no more than its socket holds.
//! - A cancel can miss a RECV that the kernel is about to start again. One that had no effect is
//!   repeated at the next look.

use super::State;
use crate::driver::{
    Driver,
    counters::Tally,
    ring::{Errno, Key, Op, Ring},
};
use std::{collections::VecDeque, mem};

/// Full buffers in succession that make a connection a bulk sender.
const STREAK_MIN: u8 = 4;
/// Without a full buffer for so long a spell ends.
const QUIET_US: u64 = 1_000_000;
/// How often some of the spells are looked at, and how many. A cancel that works has worked long
/// before the next look.
const LOOK_EVERY_US: u64 = 50_000;
const LOOKS_MAX: usize = 32;

/// Why a spell ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Quiet,
    Paused,
    Cut,
    Closed,
}

impl Why {
    const fn tally(self) -> Tally {
        match self {
            Self::Quiet => Tally::BulkQuiet,
            Self::Paused => Tally::BulkPaused,
            Self::Cut => Tally::BulkCut,
            Self::Closed => Tally::BulkClosed,
        }
    }
}

/// A connection with a multishot RECV.
#[derive(Debug)]
struct Spell {
    key: Key,
    /// When it was last seen to be busy, or was cancelled.
    since_us: u64,
    /// Why it was cancelled, once it was.
    cancelled: Option<Why>,
}

impl Spell {
    /// Unless it was already.
    fn cancel(&mut self, why: Why, now_us: u64, ring: &mut Ring) {
        if self.cancelled.is_none() {
            self.cancelled = Some(why);
            self.since_us = now_us;
            ring.cancel(Op::Recv, self.key);
        }
    }
}

/// The connections that send in bulk; the next to be looked at comes first.
#[derive(Debug, Default)]
pub(super) struct Spells {
    list: VecDeque<Spell>,
    look_at_us: u64,
}

impl Spells {
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn next_look_us(&self) -> Option<u64> {
        (!self.list.is_empty()).then_some(self.look_at_us)
    }

    fn begin(&mut self, key: Key, now_us: u64) {
        if self.list.is_empty() {
            self.look_at_us = now_us + LOOK_EVERY_US;
        }
        self.list.push_back(Spell {
            key,
            since_us: now_us,
            cancelled: None,
        });
    }

    fn remove(&mut self, key: Key) -> Option<Spell> {
        let place = self.list.iter().position(|spell| spell.key == key)?;
        self.list.swap_remove_back(place)
    }
}

impl Driver {
    /// Is the next RECV of this connection the beginning of a spell?
    pub(super) fn begin_spell(&mut self, key: Key) -> bool {
        let socket = self.sockets.get(key.index);
        let begins = socket.state == State::Open
            && socket.streak >= STREAK_MIN
            && self.sockets.spells.len() < self.ring.buffer_count();
        if begins {
            self.sockets.spells.begin(key, self.now.mono_us);
            self.tallies.bump(Tally::BulkBegun);
        }
        begins
    }

    /// The last completion of a multishot RECV has come.
    pub(super) fn on_spell_end(&mut self, key: Key, result: Result<usize, Errno>) {
        let Some(spell) = self.sockets.spells.remove(key) else {
            return;
        };
        let why = spell.cancelled.unwrap_or(match result {
            Ok(0) => Why::Closed,
            Ok(_) | Err(Errno::NOBUFS) => Why::Cut,
            Err(_) => Why::Closed,
        });
        self.tallies.bump(why.tally());
        let socket = self.sockets.get_mut(key.index);
        socket.streak = 0;
        socket.readable = true;
    }

    /// A buffer of a spell has come, and further ones may.
    pub(super) fn on_bulk(&mut self, key: Key) {
        let conn = self.sockets.conn(key.index);
        if !self.core.wants_input(conn) {
            self.end_spell(key, Why::Paused);
        }
    }

    /// With one cancel: if there is a spell, and it has not been cancelled.
    pub(super) fn end_spell(&mut self, key: Key, why: Why) {
        let now_us = self.now.mono_us;
        let mut spells = self.sockets.spells.list.iter_mut();
        if let Some(spell) = spells.find(|spell| spell.key == key) {
            spell.cancel(why, now_us, &mut self.ring);
        }
    }

    /// Reading has to stop.
    pub(super) fn pause_spells(&mut self) {
        let now_us = self.now.mono_us;
        for spell in &mut self.sockets.spells.list {
            spell.cancel(Why::Paused, now_us, &mut self.ring);
        }
    }

    /// Ends the spells of those that have become quiet; looks at some of them at a time.
    pub(super) fn look_at_spells(&mut self) {
        let now_us = self.now.mono_us;
        if self.sockets.spells.look_at_us > now_us {
            return;
        }
        self.sockets.spells.look_at_us = now_us + LOOK_EVERY_US;
        for _ in 0..self.sockets.spells.len().min(LOOKS_MAX) {
            let Some(mut spell) = self.sockets.spells.list.pop_front() else {
                break;
            };
            let socket = self.sockets.get_mut(spell.key.index);
            let busy = mem::take(&mut socket.streak) > 0;
            let patience_us = match spell.cancelled {
                None => QUIET_US,
                Some(_) => LOOK_EVERY_US,
            };
            if busy && spell.cancelled.is_none() {
                spell.since_us = now_us;
            } else if now_us - spell.since_us >= patience_us {
                spell.since_us = now_us;
                spell.cancelled.get_or_insert(Why::Quiet);
                self.ring.cancel(Op::Recv, spell.key);
            }
            self.sockets.spells.list.push_back(spell);
        }
    }
}
