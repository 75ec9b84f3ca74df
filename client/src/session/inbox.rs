//! The receiving side: the cursor, what the owner has yet to store, which messages are known, and
//! when to acknowledge.
//!
//! # Invariants
//! - The cursor never passes an entry that the owner has not stored.
//! - An id is remembered as known only when its message is stored: what was shown but not stored
//!   is shown again after a reconnect.
//! - Without entries in line and remembered ids there is no backlog: an idle session has a few
//!   numbers here.

use super::event::ProtocolFault;
use portico_wire::ids::{DeviceId, MsgId, Seq, UserId};
use std::{collections::VecDeque, num::NonZeroU64};

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
    /// The owner has not stored it; otherwise it only keeps its place in line.
    open: bool,
    /// Remembered when it is stored.
    key: Option<Key>,
}

/// What to do with a sequenced entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    Fresh,
    Known,
}

/// The owner's bounds, from its settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Entries without acknowledgement.
    pub(crate) receive_max: u32,
    /// Ids that are remembered.
    pub(crate) dedupe_max: usize,
    /// Acknowledge at half of `receive_max` and not before.
    pub(crate) lazy: bool,
}

#[derive(Debug)]
pub(crate) struct Inbox {
    cursor: Seq,
    /// The cursor that the server knows.
    told: Seq,
    /// Up to where the device has everything that the server ever made, once the entries in line
    /// below it are stored.
    synced: Seq,
    /// The last sequence of this connection.
    last: Seq,
    ack_at_us: Option<NonZeroU64>,
    backlog: Option<Box<Backlog>>,
    stored_since_ack: u32,
}

#[derive(Debug, Default)]
struct Backlog {
    waiting: VecDeque<Waiting>,
    recent: VecDeque<Key>,
}

impl Inbox {
    pub(crate) fn new(cursor: Seq, recent: Vec<Key>, bounds: Bounds) -> Self {
        let mut inbox = Self {
            cursor,
            told: cursor,
            synced: Seq(0),
            last: Seq(0),
            ack_at_us: None,
            backlog: None,
            stored_since_ack: 0,
        };
        for key in recent {
            inbox.remember(bounds, key);
        }
        inbox
    }

    pub(crate) const fn cursor(&self) -> Seq {
        self.cursor
    }

    pub(crate) fn recent(&self) -> impl Iterator<Item = Key> + '_ {
        let recent = self.backlog.as_ref().map(|backlog| &backlog.recent);
        recent.into_iter().flatten().copied()
    }

    pub(crate) fn ack_at_us(&self) -> Option<u64> {
        self.ack_at_us.map(NonZeroU64::get)
    }

    /// HELLO carries the cursor: the server sends everything after it again.
    pub(crate) fn connected(&mut self) {
        if let Some(backlog) = &mut self.backlog {
            backlog.waiting = VecDeque::new();
        }
        self.shrink();
        self.last = Seq(0);
        self.synced = Seq(0);
        self.told = self.cursor;
        self.stored_since_ack = 0;
        self.ack_at_us = None;
    }

    /// Judges a sequenced entry. The caller then lets the owner see it, and hands it to
    /// [`Self::put`].
    pub(crate) fn arrive(
        &mut self,
        bounds: Bounds,
        seq: Seq,
        key: Option<Key>,
    ) -> Result<Arrival, ProtocolFault> {
        if seq.0 >= SEQ_END {
            return Err(ProtocolFault::Sequence);
        }
        if seq <= self.last {
            return Err(ProtocolFault::Disorder);
        }
        let backlog = self.backlog.as_deref();
        let waiting = backlog.map_or(0, |backlog| backlog.waiting.len());
        if waiting >= bounds.receive_max as usize {
            return Err(ProtocolFault::Window);
        }
        self.last = seq;
        let known = seq <= self.cursor
            || key
                .zip(backlog)
                .is_some_and(|(key, backlog)| backlog.knows(key));
        Ok(if known {
            Arrival::Known
        } else {
            Arrival::Fresh
        })
    }

    /// Puts an entry in line. With `stored` it needs nothing more from the owner.
    pub(crate) fn put(
        &mut self,
        bounds: Bounds,
        now_us: u64,
        seq: Seq,
        key: Option<Key>,
        stored: bool,
    ) {
        if stored && self.first_in_line().is_none() {
            if let Some(key) = key {
                self.remember(bounds, key);
            }
            self.advance(bounds, now_us, seq);
        } else {
            self.wait(seq, !stored, if stored { None } else { key });
        }
    }

    /// The same for an entry that is no message, and is known by its place alone.
    pub(crate) fn put_entry(&mut self, bounds: Bounds, now_us: u64, seq: Seq, stored: bool) {
        if stored {
            self.put(bounds, now_us, seq, None, true);
        } else {
            self.wait(seq, true, None);
        }
    }

    fn wait(&mut self, seq: Seq, open: bool, key: Option<Key>) {
        let backlog = self.backlog.get_or_insert_default();
        backlog.waiting.push_back(Waiting { seq, open, key });
    }

    /// The device has everything up to `up_to`, skipped entries included.
    pub(crate) fn synced(
        &mut self,
        bounds: Bounds,
        now_us: u64,
        up_to: Seq,
    ) -> Result<(), ProtocolFault> {
        if up_to.0 >= SEQ_END {
            return Err(ProtocolFault::Sequence);
        }
        self.last = self.last.max(up_to);
        self.synced = self.synced.max(up_to);
        self.pass_synced(bounds, now_us);
        Ok(())
    }

    /// The owner has stored everything up to `up_to`; what was never shown is not passed.
    pub(crate) fn store(&mut self, bounds: Bounds, now_us: u64, up_to: Seq) {
        while let Some(entry) = self.first_in_line() {
            if entry.open && entry.seq > up_to {
                break;
            }
            if let Some(key) = entry.key {
                self.remember(bounds, key);
            }
            if let Some(backlog) = &mut self.backlog {
                backlog.waiting.pop_front();
            }
            self.advance(bounds, now_us, entry.seq);
        }
        self.shrink();
        self.pass_synced(bounds, now_us);
    }

    /// The acknowledgement to send, if it is time for one.
    pub(crate) fn take_ack(&mut self, bounds: Bounds, now_us: u64) -> Option<Seq> {
        let half = (bounds.receive_max / 2).max(1);
        let frames_max = if bounds.lazy {
            half
        } else {
            half.min(ACK_FRAMES_MAX)
        };
        let due = self.ack_at_us().is_some_and(|at_us| at_us <= now_us);
        if self.cursor <= self.told || !(due || self.stored_since_ack >= frames_max) {
            return None;
        }
        Some(self.told())
    }

    /// The acknowledgement of all that is stored, due or not.
    pub(crate) fn take_last_ack(&mut self) -> Option<Seq> {
        (self.cursor > self.told).then(|| self.told())
    }

    fn pass_synced(&mut self, bounds: Bounds, now_us: u64) {
        let first = self.first_in_line();
        if first.is_none_or(|first| first.seq > self.synced) {
            self.advance(bounds, now_us, self.synced);
        }
    }

    fn first_in_line(&self) -> Option<Waiting> {
        self.backlog.as_ref()?.waiting.front().copied()
    }

    fn told(&mut self) -> Seq {
        self.told = self.cursor;
        self.stored_since_ack = 0;
        self.ack_at_us = None;
        self.cursor
    }

    fn advance(&mut self, bounds: Bounds, now_us: u64, seq: Seq) {
        if seq > self.cursor {
            self.cursor = seq;
            self.stored_since_ack = self.stored_since_ack.saturating_add(1);
            if bounds.lazy {
                return;
            }
            let at_us = NonZeroU64::new(now_us.saturating_add(ACK_DELAY_US));
            self.ack_at_us = self.ack_at_us.or(at_us);
        }
    }

    fn remember(&mut self, bounds: Bounds, key: Key) {
        if bounds.dedupe_max == 0 {
            return;
        }
        let recent = &mut self.backlog.get_or_insert_default().recent;
        while recent.len() >= bounds.dedupe_max {
            recent.pop_front();
        }
        recent.push_back(key);
    }

    /// Gives memory back that nothing is in.
    fn shrink(&mut self) {
        let Some(backlog) = &mut self.backlog else {
            return;
        };
        if backlog.waiting.is_empty() {
            backlog.waiting = VecDeque::new();
            if backlog.recent.is_empty() {
                self.backlog = None;
            }
        }
    }
}

impl Backlog {
    fn knows(&self, key: Key) -> bool {
        self.recent.iter().rev().any(|known| *known == key)
            || self.waiting.iter().any(|entry| entry.key == Some(key))
    }
}
