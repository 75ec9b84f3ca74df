//! What users allow others: privacy and blocks, asked for at the home of whoever is protected.
//!
//! Almost nobody changes the defaults. So a shard knows by name those of its users who did, nine
//! bytes each; everybody else costs no read, ever. Of those few the record is read when somebody
//! asks, and kept in a cache that is bounded in bytes. What needs an answer meanwhile waits in
//! order; no message overtakes another because of it.
//!
//! # Invariants
//! - Whoever is not among `restricted` has no record: the defaults hold.
//! - What is in the cache is what the store has. A record that is written, or perhaps written, is
//!   taken out of it and read again.
//! - What cannot be read protects: the question fails, and what depends on it does not happen.
//!
//! # Does not
//! Change anything: that is `contacts`. Say how a user is seen: that is `presence`.

use crate::{
    contacts::{Edit, Page, book_of},
    direct::DirectSend,
    home::ShardId,
    mesh::ShardMessage,
    metrics::Counter,
    outgoing::Draft,
    pool::GiveBack,
    receipt::Receipt,
    shard::{Shard, Turn, share},
    signal::Signal,
    store::{Record, RecordCmd, StoreCmd, StoreError, Table},
    stored::Purpose,
};
use bytes::{BufMut, Bytes, BytesMut};
use portico_wire::{
    ids::{ConvId, UserId},
    message::people::{Privacy, Who},
};
use rustc_hash::{FxHashMap, FxHashSet};
use std::{collections::VecDeque, mem};

/// What users allow others. The key is the user, 8 bytes, big-endian; [`Restrictions::encode`] says
/// what the value is. Who has the defaults has no record.
pub const RESTRICTIONS: Table = Table(32);
/// Version of a record's value.
const FORMAT: u8 = 1;
const HEAD_BYTES: usize = 3;
/// Of `Limits::people_reads_max`, each shard has this much at least.
const READS_MIN: usize = 4;

/// The key under which a user has a record.
pub(crate) fn user_key(user: UserId) -> Bytes {
    Bytes::copy_from_slice(&user.0.to_be_bytes())
}

/// Whose record of [`RESTRICTIONS`] has this key. For whoever tells a shard at its start.
#[must_use]
pub fn restricted_user(key: &[u8]) -> Option<UserId> {
    let key = <[u8; 8]>::try_from(key).ok()?;
    Some(UserId(u64::from_be_bytes(key)))
}

/// What one user allows others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Restrictions {
    pub(crate) privacy: Privacy,
    /// Ascending.
    pub(crate) blocked: Vec<UserId>,
    /// Ascending; only where a setting names contacts.
    contacts: Vec<UserId>,
    /// Of the record; 0: there is none.
    pub(crate) version: u64,
}

impl Restrictions {
    pub(crate) fn is_default(&self) -> bool {
        self.privacy == Privacy::default() && self.blocked.is_empty()
    }

    /// The format, settings of two bits each and one of one, then those who are blocked, 8 bytes
    /// each, ascending. All big-endian.
    pub(crate) fn encode(&self) -> Bytes {
        let Privacy {
            last_seen,
            online,
            hide_read,
            profile,
            group_add,
            findable,
        } = self.privacy;
        let whos = [last_seen, online, profile, group_add, findable];
        let bits = whos.iter().fold(u16::from(hide_read), |bits, who| {
            bits << 2 | u16::from(who.0 & 3)
        });
        let mut value = BytesMut::with_capacity(HEAD_BYTES + 8 * self.blocked.len());
        value.put_u8(FORMAT);
        value.put_u16(bits);
        for user in &self.blocked {
            value.put_u64(user.0);
        }
        value.freeze()
    }

    pub(crate) fn decode(record: &Record) -> Option<Self> {
        let (head, rest) = record.value.split_first_chunk::<HEAD_BYTES>()?;
        let [FORMAT, high, low] = *head else {
            return None;
        };
        let bits = u16::from_be_bytes([high, low]);
        let who = |place: u16| Who((bits >> (2 * place)) as u8 & 3);
        let (blocked, []) = rest.as_chunks::<8>() else {
            return None;
        };
        Some(Self {
            privacy: Privacy {
                last_seen: who(4),
                online: who(3),
                hide_read: bits >> 10 & 1 == 1,
                profile: who(2),
                group_add: who(1),
                findable: who(0),
            },
            blocked: blocked
                .iter()
                .map(|user| UserId(u64::from_be_bytes(*user)))
                .collect(),
            contacts: Vec::new(),
            version: record.version,
        })
    }

    /// Does any setting depend on who is a contact?
    fn names_contacts(&self) -> bool {
        let Privacy {
            last_seen,
            online,
            profile,
            group_add,
            ..
        } = self.privacy;
        [last_seen, online, profile, group_add].contains(&Who::CONTACTS)
    }

    pub(crate) fn blocks(&self, other: UserId) -> bool {
        self.blocked.binary_search(&other).is_ok()
    }

    /// Is `other` among those whom a setting allows, blocks aside?
    pub(crate) fn allows(&self, who: Who, other: UserId) -> bool {
        match who {
            Who::EVERYONE => true,
            Who::CONTACTS => self.contacts.binary_search(&other).is_ok(),
            _ => false,
        }
    }

    /// About the memory that it takes in the cache.
    fn weight(&self) -> usize {
        CACHED_BYTES + 8 * (self.blocked.capacity() + self.contacts.capacity())
    }
}

/// One in the cache, its lists aside.
const CACHED_BYTES: usize = 2 * size_of::<(UserId, Restrictions)>();

/// What has to wait until the restrictions of a user are known.
#[derive(Debug)]
pub(crate) enum Waiter {
    /// A message to the user.
    Direct(Box<DirectSend>),
    Ephemeral(Box<Draft>),
    Signal(Signal),
    /// The edit of the user's own that is at the head of its queue.
    Edit,
    /// A page of the user's contacts, or of those whom the user blocks.
    Page(Page),
    /// How the user is seen, by one watcher or by all.
    Show {
        to: Option<UserId>,
    },
    /// The user is seen otherwise than before.
    Publish,
    /// A subscription by the user.
    Subscribe {
        token: u64,
    },
    /// What the user has read, for the other side.
    TellRead(Receipt),
    /// What the other side has read, for the user.
    ShowRead(Receipt),
    /// The user asks for watermarks.
    Receipts {
        query: u64,
    },
    /// Somebody asks for the watermarks of a conversation with the user, who may hide its own.
    HidesRead {
        from: ShardId,
        query: u64,
        conv: ConvId,
    },
}

/// Whom somebody waits for, and what waits.
type Waiting = FxHashMap<UserId, VecDeque<Waiter>>;

/// What a shard knows of what its users allow.
#[derive(Debug)]
pub(crate) struct People {
    /// Who has a record, or may have one.
    restricted: FxHashSet<UserId>,
    /// Those that were asked for since the last change of generations, and those before. When the
    /// young take half of the room, the old ones go and the young ones are the old.
    young: FxHashMap<UserId, Restrictions>,
    old: FxHashMap<UserId, Restrictions>,
    young_bytes: usize,
    old_bytes: usize,
    cache_bytes_max: usize,
    waiting: Waiting,
    /// Of those who are being read, whose record was written meanwhile: they are read again.
    stale: FxHashSet<UserId>,
    /// What waits in all, reads under way, and users whose turn to be read has not come.
    waiters: usize,
    reads: usize,
    reads_max: usize,
    line: VecDeque<UserId>,
    /// Changes under way, by user: the first of each is being made.
    pub(crate) edits: FxHashMap<UserId, VecDeque<Edit>>,
    pub(crate) edits_open: usize,
}

impl People {
    pub(crate) fn new(config: &crate::ShardConfig) -> Self {
        let limits = &config.limits;
        Self {
            restricted: config.restricted.iter().copied().collect(),
            young: FxHashMap::default(),
            old: FxHashMap::default(),
            young_bytes: 0,
            old_bytes: 0,
            cache_bytes_max: share(limits.people_cache_bytes, config.shards),
            waiting: Waiting::default(),
            stale: FxHashSet::default(),
            waiters: 0,
            reads: 0,
            reads_max: share(limits.people_reads_max, config.shards).max(READS_MIN),
            line: VecDeque::new(),
            edits: FxHashMap::default(),
            edits_open: 0,
        }
    }

    /// Has this user changed any of the defaults, as far as is known?
    pub(crate) fn is_restricted(&self, user: UserId) -> bool {
        !self.restricted.is_empty() && self.restricted.contains(&user)
    }

    /// Is it known what the user allows?
    pub(crate) fn is_known(&self, user: UserId) -> bool {
        !self.is_restricted(user) || self.find(user).is_some()
    }

    /// What the user allows, if that is known and not the default.
    pub(crate) fn find(&self, user: UserId) -> Option<&Restrictions> {
        self.young.get(&user).or_else(|| self.old.get(&user))
    }

    /// Somebody asks for it: it stays longer.
    fn touch(&mut self, user: UserId) {
        if let Some(found) = self.old.remove(&user) {
            self.old_bytes -= found.weight();
            self.keep(user, found);
        }
    }

    fn keep(&mut self, user: UserId, restrictions: Restrictions) {
        let weight = restrictions.weight();
        if self.young_bytes > 0 && self.young_bytes + weight > self.cache_bytes_max / 2 {
            self.old = mem::take(&mut self.young);
            self.old_bytes = mem::take(&mut self.young_bytes);
        }
        self.young_bytes += weight;
        if let Some(before) = self.young.insert(user, restrictions) {
            self.young_bytes -= before.weight();
        }
    }

    /// Something waits until it is known what the user allows; what comes now waits behind it.
    pub(crate) fn is_awaited(&self, user: UserId) -> bool {
        !self.waiting.is_empty() && self.waiting.contains_key(&user)
    }

    /// The user's record was written, or may have been: it has one now, or has none.
    pub(crate) fn outdate(&mut self, user: UserId, restricted: bool) {
        self.forget(user, restricted);
        if self.is_awaited(user) {
            self.stale.insert(user);
        }
    }

    /// What is known of the user goes.
    fn forget(&mut self, user: UserId, restricted: bool) {
        if let Some(found) = self.young.remove(&user) {
            self.young_bytes -= found.weight();
        }
        if let Some(found) = self.old.remove(&user) {
            self.old_bytes -= found.weight();
        }
        if restricted {
            self.restricted.insert(user);
        } else {
            self.restricted.remove(&user);
        }
    }

    pub(crate) fn restricted(&self) -> usize {
        self.restricted.len()
    }

    pub(crate) const fn cached_bytes(&self) -> usize {
        self.young_bytes + self.old_bytes
    }

    pub(crate) const fn waiters(&self) -> usize {
        self.waiters
    }

    /// Pages that wait for what their user allows.
    #[cfg(feature = "testing")]
    pub(crate) fn pages(&self) -> impl Iterator<Item = &Page> {
        self.waiting.values().flatten().filter_map(|it| match it {
            Waiter::Page(page) => Some(page),
            _ => None,
        })
    }

    #[cfg(feature = "testing")]
    pub(crate) fn check(&self) {
        let sum =
            |all: &FxHashMap<UserId, Restrictions>| all.values().map(Restrictions::weight).sum();
        assert_eq!(self.young_bytes, sum(&self.young));
        assert_eq!(self.old_bytes, sum(&self.old));
        let waiters: usize = self.waiting.values().map(VecDeque::len).sum();
        assert_eq!(self.waiters, waiters);
        assert_eq!(self.waiting.len(), self.reads + self.line.len());
        assert!(
            self.stale
                .iter()
                .all(|user| self.waiting.contains_key(user))
        );
        let edits: usize = self.edits.values().map(VecDeque::len).sum();
        assert_eq!(self.edits_open, edits);
        let cached = self.young.keys().chain(self.old.keys());
        assert!(
            cached
                .into_iter()
                .all(|user| self.restricted.contains(user))
        );
    }
}

impl GiveBack for People {
    fn give_back(&mut self) {
        self.line.give_back();
        self.waiting.give_back();
        self.edits.give_back();
    }
}

impl Shard {
    /// Goes on with `waiter` once it is known what the user allows: now, or after a read.
    pub(crate) fn want(&mut self, user: UserId, waiter: Waiter, cx: &mut Turn<'_>) {
        if self.people.is_known(user) && !self.people.is_awaited(user) {
            self.people.touch(user);
            return self.go_on(user, waiter, Ok(()), cx);
        }
        // An edit waits in a queue of its own.
        let full = self.people.waiters >= self.config.limits.people_waiting_max;
        if full && !matches!(waiter, Waiter::Edit) {
            self.counters.bump(Counter::PeopleWaitingFull);
            let error = StoreError::Overloaded { retry_after_ms: 0 };
            return self.go_on(user, waiter, Err(error), cx);
        }
        self.people.waiters += 1;
        let line = self.people.waiting.entry(user).or_default();
        line.push_back(waiter);
        if line.len() > 1 {
            return;
        }
        if self.people.reads < self.people.reads_max {
            self.read_restrictions(user, cx);
        } else {
            self.people.line.push_back(user);
        }
    }

    fn read_restrictions(&mut self, user: UserId, cx: &mut Turn<'_>) {
        self.people.reads += 1;
        self.counters.bump(Counter::PeopleReads);
        let cmd = StoreCmd::Record(RecordCmd::Get {
            table: RESTRICTIONS,
            key: user_key(user),
        });
        self.submit(Purpose::Restrictions { user }, cmd, cx);
    }

    /// The store said what a user allows.
    pub(crate) fn on_restrictions(
        &mut self,
        user: UserId,
        result: Result<Option<Record>, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let read = match result {
            Ok(None) => Ok(None),
            Ok(Some(record)) => match Restrictions::decode(&record) {
                Some(restrictions) => Ok(Some(restrictions)),
                None => Err(StoreError::Invalid),
            },
            Err(error) => Err(error),
        };
        match read {
            Ok(Some(restrictions)) if restrictions.names_contacts() => {
                // The read goes on.
                let purpose = Purpose::RestrictionsBook {
                    user,
                    restrictions: Box::new(restrictions),
                };
                self.submit(purpose, crate::contacts::get_book(user), cx);
            }
            Ok(Some(restrictions)) => self.end_read(user, Ok(Some(restrictions)), cx),
            Ok(None) => self.end_read(user, Ok(None), cx),
            Err(error) => self.end_read(user, Err(error), cx),
        }
    }

    /// The store said who the contacts of a user are whose settings name them.
    pub(crate) fn on_restrictions_book(
        &mut self,
        user: UserId,
        mut restrictions: Restrictions,
        result: Result<Option<Record>, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let result = result.and_then(|record| {
            let book = book_of(record.as_ref()).ok_or(StoreError::Invalid)?;
            restrictions.contacts = book.users().collect();
            Ok(Some(restrictions))
        });
        self.end_read(user, result, cx);
    }

    fn end_read(
        &mut self,
        user: UserId,
        result: Result<Option<Restrictions>, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        self.people.reads -= 1;
        if self.people.stale.remove(&user) {
            return self.read_restrictions(user, cx);
        }
        let result = match result {
            Ok(Some(restrictions)) => {
                self.people.forget(user, true);
                self.people.keep(user, restrictions);
                Ok(())
            }
            Ok(None) => {
                self.people.forget(user, false);
                Ok(())
            }
            Err(error) => Err(error),
        };
        let waiting = self.people.waiting.remove(&user).unwrap_or_default();
        self.people.waiters -= waiting.len();
        for waiter in waiting {
            self.go_on(user, waiter, result, cx);
        }
        if self.people.reads < self.people.reads_max
            && let Some(next) = self.people.line.pop_front()
        {
            self.read_restrictions(next, cx);
        }
    }

    /// What the user allows is known, or cannot be read.
    fn go_on(
        &mut self,
        user: UserId,
        waiter: Waiter,
        result: Result<(), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        match waiter {
            Waiter::Direct(send) => self.judge_direct(user, *send, result, cx),
            Waiter::Ephemeral(draft) => {
                if result.is_err() {
                    self.counters.bump(Counter::EphemeralDropped);
                } else if self.is_blocked(user, draft.sender) {
                    self.counters.bump(Counter::BlockedEphemeral);
                } else {
                    self.show_ephemeral(&draft, cx);
                }
            }
            Waiter::Signal(signal) => {
                if result.is_err() {
                    self.counters.bump(Counter::SignalsDropped);
                } else if self.is_blocked(user, signal.sender) {
                    self.counters.bump(Counter::BlockedSignals);
                } else {
                    self.show_signal(user, &signal, cx);
                }
            }
            Waiter::Edit => self.on_edit_ready(user, result, cx),
            Waiter::Page(page) => self.on_page_ready(user, page, result, cx),
            Waiter::Show { to } => {
                if result.is_ok() {
                    self.show_presence(user, to, cx);
                }
            }
            Waiter::Publish => {
                if result.is_ok() {
                    self.publish(user, cx);
                    self.send_batches(cx);
                }
            }
            Waiter::Subscribe { token } => self.on_subscriber_ready(user, token, result, cx),
            Waiter::TellRead(receipt) => {
                if result.is_ok() && !self.hides_read(user) {
                    self.tell_peer(&receipt, cx);
                }
            }
            Waiter::ShowRead(receipt) => {
                if result.is_ok() && !self.hides_read(user) {
                    self.show_receipt(user, &receipt, cx);
                }
            }
            Waiter::Receipts { query } => self.on_asker_ready(user, query, result, cx),
            Waiter::HidesRead { from, query, conv } => {
                let hides = result.map(|()| self.hides_read(user));
                let message = ShardMessage::HidesRead { query, conv, hides };
                self.post(from, message, cx);
            }
        }
    }

    /// A message has come to its recipient's home.
    fn judge_direct(
        &mut self,
        user: UserId,
        send: DirectSend,
        result: Result<(), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let (origin, token) = (send.origin, send.token);
        match result {
            Err(error) => self.answer_direct(origin, token, Err(error), cx),
            Ok(()) if self.is_blocked(user, send.draft.sender) => {
                self.counters.bump(Counter::BlockedMessages);
                self.post(origin, ShardMessage::DirectBlocked { token }, cx);
            }
            Ok(()) => self.store_direct(send, cx),
        }
    }

    /// Has `user` blocked `other`? Call once what the user allows is known.
    pub(crate) fn is_blocked(&self, user: UserId, other: UserId) -> bool {
        self.people.find(user).is_some_and(|it| it.blocks(other))
    }

    /// Does the user keep to itself what was read? Call once that is known.
    pub(crate) fn hides_read(&self, user: UserId) -> bool {
        let found = self.people.find(user);
        found.is_some_and(|restrictions| restrictions.privacy.hide_read)
    }
}

#[cfg(test)]
mod tests;
