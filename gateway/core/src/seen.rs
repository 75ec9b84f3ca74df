//! When users were last seen: in memory for those who left lately, written behind, and asked of the
//! store for others whom somebody watches.
//!
//! Who leaves goes through three queues: `grace`, in which it counts as what it was; `unwritten`,
//! until it has stayed away long enough to be worth a write; and `kept`, from which the oldest is
//! forgotten when there are too many. Who comes back is in the table no more, and its place in the
//! queues means nothing.
//!
//! # Invariants
//! - The queues and the table are bounded by this shard's part of `Limits::presence_left_max` each. Where they are full,
//!   grace ends early, and what was not written in time is not written.
//! - A bounded number of reads and of writes is under way, and none is begun while the store has
//!   enough to do.

use crate::{
    input::Now,
    limits::ShardConfig,
    metrics::Counter,
    people::user_key,
    pool::GiveBack,
    shard::{Shard, Turn, share},
    store::{Expect, Record, RecordCmd, StoreCmd, StoreError, Table},
    stored::Purpose,
};
use bytes::Bytes;
use portico_wire::{ids::UserId, message::people::PresenceState};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// When users were last seen: the minute since 1970, 4 bytes, big-endian, under the user's 8.
const LAST_SEEN: Table = Table(35);
/// Who stays away for so long beyond the grace is written.
const WRITE_AFTER_US: u64 = 40_000_000;
/// Of those whom a watcher asks for who has just come back, the store is asked after so long.
const FRESH_SEEK_US: u64 = 90_000_000;
/// Reads and writes of a shard that may be under way.
const READS_MAX: usize = 16;
const WRITES_MAX: usize = 32;
/// When the store had enough to do, or has failed, it is tried again after so long.
const RETRY_US: u64 = 1_000_000;
/// Targets that may wait to be asked for; of further ones nothing is shown before they come.
pub(crate) const SEEKS_MAX: usize = 16_384;
const MINUTE_S: u32 = 60;

/// A user who is not seen any more.
#[derive(Clone, Copy, Debug)]
struct Left {
    /// Until then it counts as what it was. Also tells this departure from others.
    until_us: u64,
    /// 0: not known, or never.
    last_seen_s: u32,
    was: PresenceState,
}

/// A user who left, in the table and in a queue.
pub(crate) const LEFT_BYTES: usize =
    2 * (size_of::<(UserId, Left)>() + 1) + 2 * size_of::<(u64, UserId)>();

#[derive(Debug)]
pub(crate) struct Seen {
    left: FxHashMap<UserId, Left>,
    left_max: usize,
    /// By `until_us`.
    grace: VecDeque<(u64, UserId)>,
    unwritten: VecDeque<(u64, UserId)>,
    kept: VecDeque<(u64, UserId)>,
    /// Whom to ask the store for, and from when on.
    seeks: VecDeque<UserId>,
    fresh_seeks: VecDeque<(u64, UserId)>,
    reads: usize,
    writes: usize,
    /// Not before this time.
    retry_us: u64,
    now_us: u64,
}

impl Seen {
    pub(crate) fn new(config: &ShardConfig) -> Self {
        Self {
            left: FxHashMap::default(),
            left_max: share(config.limits.presence_left_max, config.shards),
            grace: VecDeque::new(),
            unwritten: VecDeque::new(),
            kept: VecDeque::new(),
            seeks: VecDeque::new(),
            fresh_seeks: VecDeque::new(),
            reads: 0,
            writes: 0,
            retry_us: 0,
            now_us: 0,
        }
    }

    /// How a user is seen who is not here, or in the background.
    pub(crate) fn of(&self, user: UserId, now_us: u64) -> (PresenceState, u32) {
        match self.left.get(&user) {
            Some(left) if now_us < left.until_us => (left.was, 0),
            Some(left) => (PresenceState::Offline, left.last_seen_s),
            None => (PresenceState::Offline, 0),
        }
    }

    pub(crate) fn knows(&self, user: UserId) -> bool {
        self.left.contains_key(&user)
    }

    /// The user is here.
    pub(crate) fn came(&mut self, user: UserId) {
        if !self.left.is_empty() {
            self.left.remove(&user);
        }
    }

    fn left(&mut self, user: UserId, was: PresenceState, grace_ms: u32, now: Now) {
        let until_us = now.mono_us + u64::from(grace_ms) * 1_000;
        let left = Left {
            until_us,
            last_seen_s: now.wall_s() / MINUTE_S * MINUTE_S,
            was,
        };
        if self.left_max == 0 {
            return;
        }
        self.left.insert(user, left);
        // The queues stay in order: without a grace it goes straight to the second.
        let queue = match grace_ms {
            0 => &mut self.unwritten,
            _ => &mut self.grace,
        };
        queue.push_back((until_us, user));
        self.now_us = now.mono_us;
    }

    /// The store will be asked when this user was last seen, if there is room.
    pub(crate) fn seek(&mut self, user: UserId, fresh: bool, now_us: u64) -> bool {
        if self.seeks.len() + self.fresh_seeks.len() >= SEEKS_MAX {
            return false;
        }
        self.now_us = now_us;
        if fresh {
            self.fresh_seeks.push_back((now_us + FRESH_SEEK_US, user));
        } else {
            self.seeks.push_back(user);
        }
        true
    }

    /// When to look again.
    pub(crate) fn next_us(&self) -> Option<u64> {
        if self.is_crowded() {
            return Some(self.now_us);
        }
        let grace = self.grace.front().map(|(until_us, _)| *until_us);
        let write = self.unwritten.front();
        let write = write.filter(|_| self.writes < WRITES_MAX);
        let write = write.map(|(until_us, _)| (until_us + WRITE_AFTER_US).max(self.retry_us));
        let room = self.reads < READS_MAX;
        let seek = (room && !self.seeks.is_empty()).then(|| self.retry_us.max(self.now_us));
        let fresh = self.fresh_seeks.front().filter(|_| room);
        let fresh = fresh.map(|(at_us, _)| (*at_us).max(self.retry_us));
        [grace, write, seek, fresh].into_iter().flatten().min()
    }

    /// Is this departure still the last that is known of the user?
    fn holds(&self, user: UserId, until_us: u64) -> bool {
        let left = self.left.get(&user);
        left.is_some_and(|left| left.until_us == until_us)
    }

    /// The next whose grace is over, or has to be.
    fn end_grace(&mut self, now_us: u64) -> Option<UserId> {
        loop {
            let &(until_us, user) = self.grace.front()?;
            let crowded = self.grace.len() > self.left_max;
            if until_us > now_us && !crowded {
                return None;
            }
            self.grace.pop_front();
            if !self.holds(user, until_us) {
                continue;
            }
            let early_us = until_us.min(now_us);
            if let Some(left) = self.left.get_mut(&user) {
                left.until_us = early_us;
            }
            self.unwritten.push_back((early_us, user));
            return Some(user);
        }
    }

    /// More wait in a queue than may.
    fn is_crowded(&self) -> bool {
        self.grace.len() > self.left_max || self.unwritten.len() > self.left_max
    }

    /// The next that is to be written, if the store takes `more`; or one that has to make room, and
    /// `false`.
    fn next_write(&mut self, more: bool, now_us: u64) -> Option<(u64, UserId, bool)> {
        let more = more && self.writes < WRITES_MAX;
        loop {
            let &(until_us, user) = self.unwritten.front()?;
            let crowded = self.unwritten.len() > self.left_max;
            let due = until_us + WRITE_AFTER_US <= now_us;
            if !(crowded || due && more) {
                return None;
            }
            self.unwritten.pop_front();
            if self.holds(user, until_us) {
                return Some((until_us, user, more));
            }
        }
    }

    /// It is written, or will not be.
    fn keep(&mut self, until_us: u64, user: UserId) {
        self.kept.push_back((until_us, user));
        while self.kept.len() > self.left_max
            && let Some((until_us, user)) = self.kept.pop_front()
        {
            if self.holds(user, until_us) {
                self.left.remove(&user);
            }
        }
    }

    fn next_seek(&mut self, now_us: u64) -> Option<UserId> {
        if let Some(user) = self.seeks.pop_front() {
            return Some(user);
        }
        let &(at_us, user) = self.fresh_seeks.front()?;
        if at_us > now_us {
            return None;
        }
        self.fresh_seeks.pop_front();
        Some(user)
    }

    pub(crate) fn len(&self) -> usize {
        self.left.len()
    }

    #[cfg(feature = "testing")]
    pub(crate) fn check(&self) {
        for queue in [&self.grace, &self.unwritten, &self.kept] {
            assert!(queue.len() <= self.left_max + 1);
        }
        assert!(self.reads <= READS_MAX && self.writes <= WRITES_MAX);
        let queues = [&self.grace, &self.unwritten, &self.kept];
        let places: usize = queues.iter().map(|queue| queue.len()).sum();
        assert!(
            self.left.len() <= places + self.writes,
            "nobody is kept for ever"
        );
    }
}

impl GiveBack for Seen {
    fn give_back(&mut self) {
        self.left.give_back();
        self.grace.give_back();
        self.unwritten.give_back();
        self.kept.give_back();
        self.seeks.give_back();
        self.fresh_seeks.give_back();
    }
}

impl Shard {
    /// The user is not seen any more by its connections' word, and counts as what it `was` for the
    /// grace.
    pub(crate) fn note_left(
        &mut self,
        user: UserId,
        was: PresenceState,
        grace_ms: u32,
        cx: &mut Turn<'_>,
    ) {
        self.presence.seen.left(user, was, grace_ms, cx.now);
        if self.presence.seen.is_crowded() {
            self.tend_seen(cx);
        }
    }

    /// Ends graces, writes what is due and asks for whom somebody watches.
    pub(crate) fn tend_seen(&mut self, cx: &mut Turn<'_>) {
        let now_us = cx.now.mono_us;
        if self
            .presence
            .seen
            .next_us()
            .is_none_or(|at_us| at_us > now_us)
        {
            return;
        }
        self.presence.seen.now_us = now_us;
        while let Some(user) = self.presence.seen.end_grace(now_us) {
            self.mark_changed(user, now_us);
        }
        if self.is_congested() || self.is_reading_enough() {
            self.presence.seen.retry_us = now_us + RETRY_US;
        }
        let more = now_us >= self.presence.seen.retry_us;
        while let Some((until_us, user, room)) = self.presence.seen.next_write(more, now_us) {
            self.write_last_seen(user, until_us, room, cx);
        }
        while more
            && self.presence.seen.reads < READS_MAX
            && let Some(user) = self.presence.seen.next_seek(now_us)
        {
            self.seek_last_seen(user, cx);
        }
    }

    fn write_last_seen(&mut self, user: UserId, until_us: u64, room: bool, cx: &mut Turn<'_>) {
        let seen = &mut self.presence.seen;
        let Some(left) = seen.left.get(&user).filter(|_| room) else {
            self.counters.bump(Counter::LastSeenLost);
            return self.presence.seen.keep(until_us, user);
        };
        let minute = left.last_seen_s / MINUTE_S;
        seen.writes += 1;
        let cmd = RecordCmd::Put {
            table: LAST_SEEN,
            key: user_key(user),
            value: Bytes::copy_from_slice(&minute.to_be_bytes()),
            expect: Expect::Any,
            version: self.seq.next(cx.now.wall_us),
        };
        self.counters.bump(Counter::LastSeenWrites);
        let purpose = Purpose::LastSeenWrite { user, until_us };
        self.submit(purpose, StoreCmd::Record(cmd), cx);
    }

    pub(crate) fn on_last_seen_written(
        &mut self,
        user: UserId,
        until_us: u64,
        result: Result<(), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let seen = &mut self.presence.seen;
        seen.writes -= 1;
        if result.is_err() {
            // The one before stays; nothing depends on it.
            seen.retry_us = cx.now.mono_us + RETRY_US;
            self.counters.bump(Counter::LastSeenLost);
        }
        self.presence.seen.keep(until_us, user);
        self.tend_seen(cx);
    }

    fn seek_last_seen(&mut self, user: UserId, cx: &mut Turn<'_>) {
        // It has come, or gone from where it is wanted.
        if !self.presence.is_watched(user) || self.presence.seen.knows(user) {
            return self.end_seek(user, cx);
        }
        if self.is_here(user) && self.is_seen(user) {
            return self.end_seek(user, cx);
        }
        self.presence.seen.reads += 1;
        self.counters.bump(Counter::LastSeenReads);
        let cmd = StoreCmd::Record(RecordCmd::Get {
            table: LAST_SEEN,
            key: user_key(user),
        });
        self.submit(Purpose::LastSeen { user }, cmd, cx);
    }

    pub(crate) fn on_last_seen(
        &mut self,
        user: UserId,
        result: Result<Option<Record>, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let now_us = cx.now.mono_us;
        let seen = &mut self.presence.seen;
        seen.reads -= 1;
        match result {
            Ok(record) => {
                let minute = record
                    .and_then(|record| <[u8; 4]>::try_from(&record.value[..]).ok())
                    .map_or(0, u32::from_be_bytes);
                // What it has done meanwhile is newer.
                if !seen.knows(user) && seen.left_max > 0 {
                    let left = Left {
                        until_us: now_us,
                        last_seen_s: minute.saturating_mul(MINUTE_S),
                        was: PresenceState::Offline,
                    };
                    seen.left.insert(user, left);
                    seen.keep(now_us, user);
                }
            }
            Err(_) => seen.retry_us = now_us + RETRY_US,
        }
        if self.is_here(user) && self.is_seen(user) {
            self.presence.seen.came(user);
        }
        self.end_seek(user, cx);
        self.tend_seen(cx);
    }
}
