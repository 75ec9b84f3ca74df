//! The receiving side: the cursor, what the owner has yet to store, which messages are known, and
//! when to acknowledge.
//!
//! # Invariants
//! - The cursor never passes an entry that the owner has not stored.
//! - An id is remembered as known only when its message is stored: what was shown but not stored
//!   is shown again after a reconnect.

use super::event::ProtocolFault;
use portico_wire::ids::{DeviceId, MsgId, Seq, UserId};
use std::collections::VecDeque;

/// An acknowledgement goes out at the latest after so many stored entries, or this long after the
/// first of them.
const ACK_FRAMES_MAX: u32 = 32;
const ACK_DELAY_US: u64 = 250_000;
/// Sequences are microseconds since 1970; this is the year 2255.
const SEQ_END: u64 = 1 << 53;

/// What makes a message unique. A bare msg_id would let a hostile sender copy another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) msg_id: MsgId,
    pub(crate) user: UserId,
    pub(crate) device: DeviceId,
}

/// An entry that arrived and is not behind the cursor yet.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    seq: Seq,
    /// `None`: the owner has nothing to store, it only keeps its place in line.
    key: Option<Key>,
}

/// What to do with a sequenced entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    Fresh,
    Known,
}

#[derive(Debug)]
pub(crate) struct Inbox {
    cursor: Seq,
    /// The cursor that the server knows.
    told: Seq,
    /// Up to where the device has everything that the server ever made, once the entries in
    /// `waiting` below it are stored.
    synced: Seq,
    /// The last sequence of this connection.
    last: Seq,
    ack_at_us: Option<u64>,
    waiting: VecDeque<Waiting>,
    recent: VecDeque<Key>,
    stored_since_ack: u32,
    receive_max: u32,
    dedupe_max: u32,
}

impl Inbox {
    pub(crate) fn new(cursor: Seq, recent: Vec<Key>, receive_max: u32, dedupe_max: usize) -> Self {
        let dedupe_max = u32::try_from(dedupe_max).unwrap_or(u32::MAX);
        let mut inbox = Self {
            cursor,
            told: cursor,
            synced: Seq(0),
            last: Seq(0),
            ack_at_us: None,
            waiting: VecDeque::new(),
            recent: VecDeque::new(),
            stored_since_ack: 0,
            receive_max,
            dedupe_max,
        };
        for key in recent {
            inbox.remember(key);
        }
        inbox
    }

    pub(crate) const fn cursor(&self) -> Seq {
        self.cursor
    }

    pub(crate) const fn receive_max(&self) -> u32 {
        self.receive_max
    }

    pub(crate) fn recent(&self) -> impl Iterator<Item = Key> + '_ {
        self.recent.iter().copied()
    }

    pub(crate) const fn ack_at_us(&self) -> Option<u64> {
        self.ack_at_us
    }

    /// HELLO carries the cursor: the server sends everything after it again.
    pub(crate) fn connected(&mut self) {
        self.waiting = VecDeque::new();
        self.last = Seq(0);
        self.synced = Seq(0);
        self.told = self.cursor;
        self.stored_since_ack = 0;
        self.ack_at_us = None;
    }

    /// Judges a sequenced entry. The caller then lets the owner see it, and hands it to
    /// [`Self::put`].
    pub(crate) fn arrive(&mut self, seq: Seq, key: Option<Key>) -> Result<Arrival, ProtocolFault> {
        if seq.0 >= SEQ_END {
            return Err(ProtocolFault::Sequence);
        }
        if seq <= self.last {
            return Err(ProtocolFault::Disorder);
        }
        if self.waiting.len() >= self.receive_max as usize {
            return Err(ProtocolFault::Window);
        }
        self.last = seq;
        let known = seq <= self.cursor
            || key.is_some_and(|key| {
                self.recent.iter().rev().any(|known| *known == key)
                    || self.waiting.iter().any(|entry| entry.key == Some(key))
            });
        Ok(if known {
            Arrival::Known
        } else {
            Arrival::Fresh
        })
    }

    /// Puts an entry in line. With `stored` it needs nothing more from the owner.
    pub(crate) fn put(&mut self, now_us: u64, seq: Seq, key: Option<Key>, stored: bool) {
        if stored && self.waiting.is_empty() {
            if let Some(key) = key {
                self.remember(key);
            }
            self.advance(now_us, seq);
        } else {
            let key = if stored { None } else { key };
            self.waiting.push_back(Waiting { seq, key });
        }
    }

    /// The device has everything up to `up_to`, skipped entries included.
    pub(crate) fn synced(&mut self, now_us: u64, up_to: Seq) -> Result<(), ProtocolFault> {
        if up_to.0 >= SEQ_END {
            return Err(ProtocolFault::Sequence);
        }
        self.last = self.last.max(up_to);
        self.synced = self.synced.max(up_to);
        self.pass_synced(now_us);
        Ok(())
    }

    /// The owner has stored everything up to `up_to`; what was never shown is not passed.
    pub(crate) fn store(&mut self, now_us: u64, up_to: Seq) {
        while let Some(entry) = self.waiting.front().copied() {
            match entry.key {
                Some(_) if entry.seq > up_to => break,
                Some(key) => self.remember(key),
                None => {}
            }
            self.waiting.pop_front();
            self.advance(now_us, entry.seq);
        }
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new();
        }
        self.pass_synced(now_us);
    }

    /// The acknowledgement to send, if it is time for one.
    pub(crate) fn take_ack(&mut self, now_us: u64) -> Option<Seq> {
        let frames_max = ACK_FRAMES_MAX.min(self.receive_max / 2).max(1);
        let due = self.ack_at_us.is_some_and(|at_us| at_us <= now_us);
        if self.cursor <= self.told || !(due || self.stored_since_ack >= frames_max) {
            return None;
        }
        Some(self.told())
    }

    /// The acknowledgement of all that is stored, due or not.
    pub(crate) fn take_last_ack(&mut self) -> Option<Seq> {
        (self.cursor > self.told).then(|| self.told())
    }

    fn pass_synced(&mut self, now_us: u64) {
        let first = self.waiting.front();
        if first.is_none_or(|first| first.seq > self.synced) {
            self.advance(now_us, self.synced);
        }
    }

    fn told(&mut self) -> Seq {
        self.told = self.cursor;
        self.stored_since_ack = 0;
        self.ack_at_us = None;
        self.cursor
    }

    fn advance(&mut self, now_us: u64, seq: Seq) {
        if seq > self.cursor {
            self.cursor = seq;
            self.stored_since_ack = self.stored_since_ack.saturating_add(1);
            self.ack_at_us
                .get_or_insert(now_us.saturating_add(ACK_DELAY_US));
        }
    }

    fn remember(&mut self, key: Key) {
        if self.dedupe_max == 0 {
            return;
        }
        while self.recent.len() >= self.dedupe_max as usize {
            self.recent.pop_front();
        }
        self.recent.push_back(key);
    }
}
