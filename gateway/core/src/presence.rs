//! Who is here, who was here, and who wants to know.
//!
//! ```text
//!   watcher's home W                              target's home T
//!   PRESENCE_SUB -> subscriptions of the          Watch  -> interest: target -> watching users
//!     connection (`watching`)             ----->  state now, by what the target allows
//!   PRESENCE reply                        <-----  Watched
//!   PRESENCE, one a second at most        <-----  PresenceChanges: for whom, a batch per shard
//! ```
//! A subscription takes 8 bytes on either side. A user is online if any connection is in the
//! foreground, else away if any is, else offline, published after a grace so that a resume does not
//! flap. Changes of a target are told no faster than one in `TARGET_INTERVAL_US`, the latest wins,
//! and each connection gets at most one frame in `FRAME_INTERVAL_US`.
//!
//! Who is here or left lately is in memory (`seen`). Of others the store knows; it is asked late and
//! little, because in a storm of reconnects whoever is asked for comes back by itself.
//!
//! # Invariants
//! - A target that somebody watches is in `targets`, at its home; nobody else is.
//! - A connection's subscriptions end with it. Their number is bounded, for it and for the shard.
//! - Nobody is told what the target does not allow, nor before it is known what that is.

use crate::{
    conn::{ConnId, Phase},
    error::Refusal,
    home::ShardId,
    mesh::ShardMessage,
    metrics::Counter,
    ops::Tokens,
    people::Waiter,
    pool::GiveBack,
    rates::Bucket,
    seen::Seen,
    shard::{Shard, Turn, share},
    store::StoreError,
};
use portico_wire::{
    BodyError, CloseCode, Frame, Op,
    ids::UserId,
    limits::PRESENCE_SUBS_MAX,
    message::{
        ClientState, Close,
        people::{PresenceItem, PresenceState, PresenceSub},
    },
};
use rustc_hash::FxHashMap;
use std::mem;

/// What is due is looked at this often while there is anything.
const FLUSH_US: u64 = 250_000;
/// One frame of changes per connection in this time.
const FRAME_INTERVAL_US: u64 = 1_000_000;
/// Changes of one target are told one in this time.
const TARGET_INTERVAL_US: u64 = 5_000_000;
/// Users who may watch one target. Further ones see it offline.
const WATCHERS_MAX: usize = 16_384;
/// Changes in one message to another shard.
const BATCH_MAX: usize = 1_024;

/// What a subscription can take: a place in the connection's list, and in the list of watchers of the
/// target, which has up to twice the room that it needs. Twice as much interest as subscriptions may
/// meet in one shard.
pub(crate) const SUBSCRIPTION_BYTES: usize = size_of::<UserId>() * (1 + 2 * 2);

/// From the watcher's home to the target's.
#[derive(Debug, PartialEq, Eq)]
pub struct Watch {
    pub from: ShardId,
    /// Comes back in `Watched`; `None`: the states are told as changes.
    pub token: Option<u64>,
    pub watcher: UserId,
    /// The first subscription of a connection: it has come back, perhaps with everybody else. Whom it
    /// asks for is given the time to come back as well before the store is asked.
    pub fresh: bool,
    pub add: Vec<UserId>,
    pub remove: Vec<UserId>,
}

/// A target that somebody watches.
#[derive(Debug)]
struct Target {
    watchers: Vec<UserId>,
    /// What was told last, and when.
    told: (PresenceState, u32),
    told_us: u64,
    /// It is in the list of those that have changed.
    changed: bool,
    /// The store is being asked, or will be.
    sought: bool,
}

/// The subscriptions of a connection.
#[derive(Debug, Default)]
struct Watching {
    /// Ascending.
    targets: Vec<UserId>,
    /// Changes that were not told yet, one of each target.
    pending: Vec<PresenceItem>,
    told_us: u64,
    /// It is in the list of those that have something pending.
    due: bool,
    /// There was a PRESENCE_SUB that was taken.
    begun: bool,
    bucket: Bucket,
}

/// A PRESENCE_SUB whose answer is put together.
#[derive(Debug)]
pub(crate) struct SubRequest {
    pub(crate) conn: ConnId,
    corr: u32,
    fresh: bool,
    add: Vec<UserId>,
    /// Shards that have not answered.
    left: usize,
    items: Vec<PresenceItem>,
}

/// A session that has ended in this turn.
#[derive(Debug)]
struct Gone {
    user: UserId,
    targets: Vec<UserId>,
    was: PresenceState,
}

/// What a shard knows of presence.
#[derive(Debug)]
pub(crate) struct Presence {
    targets: FxHashMap<UserId, Target>,
    /// By the connection's index.
    watching: FxHashMap<u32, Box<Watching>>,
    /// Of the shard's connections, and of interest in its users; and what each may be.
    subscriptions: usize,
    interests: usize,
    subscriptions_max: usize,
    pub(crate) requests: Tokens<SubRequest>,
    changed: Vec<UserId>,
    due: Vec<ConnId>,
    gone: Vec<Gone>,
    /// The session that ends now said good-bye.
    good_bye: bool,
    flush_us: Option<u64>,
    /// Changes for watchers, by the place of their shard, on their way.
    batches: Vec<Vec<(UserId, PresenceItem)>>,
    pub(crate) seen: Seen,
}

impl Presence {
    pub(crate) fn new(config: &crate::ShardConfig) -> Self {
        Self {
            targets: FxHashMap::default(),
            watching: FxHashMap::default(),
            subscriptions: 0,
            interests: 0,
            subscriptions_max: share(config.limits.presence_subs_max, config.shards)
                .max(PRESENCE_SUBS_MAX),
            requests: Tokens::default(),
            changed: Vec::new(),
            due: Vec::new(),
            gone: Vec::new(),
            good_bye: false,
            flush_us: None,
            batches: (0..config.shards).map(|_| Vec::new()).collect(),
            seen: Seen::new(config),
        }
    }

    fn arm(&mut self, now_us: u64) {
        self.flush_us.get_or_insert(now_us + FLUSH_US);
    }

    pub(crate) fn next_us(&self) -> Option<u64> {
        [self.flush_us, self.seen.next_us()]
            .into_iter()
            .flatten()
            .min()
    }

    pub(crate) const fn subscriptions(&self) -> usize {
        self.subscriptions
    }

    pub(crate) const fn interests(&self) -> usize {
        self.interests
    }

    /// Somebody watches the user.
    pub(crate) fn is_watched(&self, user: UserId) -> bool {
        !self.targets.is_empty() && self.targets.contains_key(&user)
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.gone.is_empty()
    }

    #[cfg(feature = "testing")]
    pub(crate) fn check(&self) {
        let interests: usize = self.targets.values().map(|it| it.watchers.len()).sum();
        assert_eq!(self.interests, interests);
        assert!(self.targets.values().all(|it| !it.watchers.is_empty()));
        let subscriptions: usize = self.watching.values().map(|it| it.targets.len()).sum();
        assert_eq!(self.subscriptions, subscriptions);
        for watching in self.watching.values() {
            assert!(watching.targets.is_sorted() && watching.targets.len() <= PRESENCE_SUBS_MAX);
            assert!(watching.pending.len() <= watching.targets.len());
        }
        self.seen.check();
    }
}

impl GiveBack for Presence {
    fn give_back(&mut self) {
        self.targets.give_back();
        self.watching.give_back();
        self.changed.give_back();
        self.due.give_back();
        self.requests.give_back();
        self.seen.give_back();
    }
}

const fn state_of(state: ClientState) -> PresenceState {
    match state {
        ClientState::Foreground => PresenceState::Online,
        ClientState::Away => PresenceState::Away,
        ClientState::Background => PresenceState::Offline,
    }
}

// ---- the user who is watched

impl Shard {
    /// What the user's connections say, without grace.
    fn raw_presence(&self, user: UserId) -> PresenceState {
        let mut state = PresenceState::Offline;
        for index in self.chain(user) {
            let conn = &self.conns[index as usize];
            if conn.phase != Phase::Open {
                continue;
            }
            match state_of(conn.state) {
                PresenceState::Online => return PresenceState::Online,
                PresenceState::Away => state = PresenceState::Away,
                PresenceState::Offline => {}
            }
        }
        state
    }

    /// Is the user seen now by its own connections' word?
    pub(crate) fn is_seen(&self, user: UserId) -> bool {
        self.raw_presence(user) != PresenceState::Offline
    }

    /// How the user is seen by whom it hides nothing from: the state, and the second of last seen.
    fn presence_of(&self, user: UserId, now_us: u64) -> (PresenceState, u32) {
        match self.raw_presence(user) {
            PresenceState::Offline => self.presence.seen.of(user, now_us),
            state => (state, 0),
        }
    }

    /// The same for one watcher. Call once it is known what the user allows.
    fn presence_for(
        &self,
        user: UserId,
        watcher: UserId,
        (state, last_seen_s): (PresenceState, u32),
    ) -> PresenceItem {
        let hidden = PresenceItem {
            user,
            ..PresenceItem::default()
        };
        let Some(restrictions) = self.people.find(user) else {
            return PresenceItem {
                last_seen_s,
                state,
                ..hidden
            };
        };
        let privacy = restrictions.privacy;
        if restrictions.blocks(watcher) {
            return hidden;
        }
        match state {
            PresenceState::Offline if restrictions.allows(privacy.last_seen, watcher) => {
                PresenceItem {
                    last_seen_s,
                    ..hidden
                }
            }
            PresenceState::Online | PresenceState::Away
                if restrictions.allows(privacy.online, watcher) =>
            {
                PresenceItem { state, ..hidden }
            }
            _ => hidden,
        }
    }

    /// A connection of the user is open, or its client says that it does something else now than it
    /// `was` doing.
    pub(crate) fn presence_changed(&mut self, user: UserId, was: PresenceState, cx: &mut Turn<'_>) {
        match self.raw_presence(user) {
            PresenceState::Offline if was == PresenceState::Offline => return,
            PresenceState::Offline => {
                let grace_ms = self.config.limits.presence_grace_ms;
                self.note_left(user, was, grace_ms, cx);
            }
            _ => self.presence.seen.came(user),
        }
        self.mark_changed(user, cx.now.mono_us);
    }

    pub(crate) fn on_client_state(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let Some(conn) = self.conn_mut(id) else {
            return;
        };
        let before = mem::replace(
            &mut conn.state,
            ClientState::from_u8(frame.aux().min(255) as u8),
        );
        let (user, after) = (conn.user, conn.state);
        if before == after {
            return;
        }
        self.presence_changed(user, state_of(before), cx);
        // What was not told in the background.
        if before == ClientState::Background {
            self.make_due(id, cx.now.mono_us);
        }
    }

    /// A client says good-bye: it is offline at once.
    pub(crate) fn note_good_bye(&mut self, frame: Frame<'_>) {
        let code = Close::decode(frame.body()).map(|close| close.code);
        self.presence.good_bye = code == Ok(CloseCode::NORMAL);
    }

    /// A session ends; what follows from it is done when the turn ends ([`Self::settle_presence`]).
    pub(crate) fn presence_gone(&mut self, index: u32) {
        let conn = &self.conns[index as usize];
        self.signals.remove(&index);
        let watching = self.presence.watching.remove(&index);
        let targets = watching.map(|it| it.targets).unwrap_or_default();
        self.presence.subscriptions -= targets.len();
        let was = match conn.phase {
            Phase::Open => state_of(conn.state),
            _ => PresenceState::Offline,
        };
        if was != PresenceState::Offline || !targets.is_empty() {
            self.presence.gone.push(Gone {
                user: conn.user,
                targets,
                was,
            });
        }
    }

    pub(crate) fn settle_presence(&mut self, cx: &mut Turn<'_>) {
        let good_bye = mem::take(&mut self.presence.good_bye);
        let mut gone = mem::take(&mut self.presence.gone);
        for Gone { user, targets, was } in gone.drain(..) {
            let left =
                was != PresenceState::Offline && self.raw_presence(user) == PresenceState::Offline;
            if left {
                let grace_ms = match good_bye {
                    true => 0,
                    false => self.config.limits.presence_grace_ms,
                };
                self.note_left(user, was, grace_ms, cx);
            }
            if was != PresenceState::Offline {
                self.mark_changed(user, cx.now.mono_us);
            }
            self.unwatch(user, targets, cx);
        }
        // The list keeps its room.
        if self.presence.gone.is_empty() {
            self.presence.gone = gone;
        }
    }

    /// Those who watch the user are told when it is time, if it is seen otherwise then.
    pub(crate) fn mark_changed(&mut self, user: UserId, now_us: u64) {
        if self.presence.targets.is_empty() {
            return;
        }
        if let Some(target) = self.presence.targets.get_mut(&user)
            && !mem::replace(&mut target.changed, true)
        {
            self.presence.changed.push(user);
            self.presence.arm(now_us);
        }
    }

    /// Tells the watchers of a target what has changed for them.
    pub(crate) fn publish(&mut self, user: UserId, cx: &mut Turn<'_>) {
        let now_us = cx.now.mono_us;
        let after = self.presence_of(user, now_us);
        let Some(target) = self.presence.targets.get_mut(&user) else {
            return;
        };
        let before = mem::replace(&mut target.told, after);
        if before == after {
            return;
        }
        target.told_us = now_us;
        let watchers = mem::take(&mut target.watchers);
        for watcher in &watchers {
            let item = self.presence_for(user, *watcher, after);
            if item != self.presence_for(user, *watcher, before) {
                self.tell(*watcher, item, cx);
            }
        }
        if let Some(target) = self.presence.targets.get_mut(&user) {
            target.watchers = watchers;
        }
    }

    /// What a user allows is known, or has changed: one watcher, or all of them, are told how the user
    /// is seen.
    pub(crate) fn show_presence(&mut self, user: UserId, to: Option<UserId>, cx: &mut Turn<'_>) {
        if to.is_some() {
            self.publish(user, cx);
        }
        let now = self.presence_of(user, cx.now.mono_us);
        let Some(target) = self.presence.targets.get_mut(&user) else {
            return;
        };
        let watchers = match to {
            Some(watcher) => vec![watcher],
            None => target.watchers.clone(),
        };
        if to.is_none() {
            target.told = now;
        }
        for watcher in watchers {
            let item = self.presence_for(user, watcher, now);
            self.tell(watcher, item, cx);
        }
        self.send_batches(cx);
    }

    /// Puts a change for a watcher into the batch of its shard.
    fn tell(&mut self, watcher: UserId, item: PresenceItem, cx: &mut Turn<'_>) {
        let home = self.home(watcher);
        let Some(batch) = self.presence.batches.get_mut(usize::from(home.0)) else {
            return;
        };
        batch.push((watcher, item));
        if batch.len() >= BATCH_MAX {
            let items = mem::take(batch);
            self.post(home, ShardMessage::PresenceChanges(items), cx);
        }
    }

    pub(crate) fn send_batches(&mut self, cx: &mut Turn<'_>) {
        for shard in 0..self.presence.batches.len() {
            let items = mem::take(&mut self.presence.batches[shard]);
            if !items.is_empty() {
                self.post(
                    ShardId(shard as u16),
                    ShardMessage::PresenceChanges(items),
                    cx,
                );
            }
        }
    }

    /// At the target's home: somebody wants to know, or not any more.
    pub(crate) fn on_watch(&mut self, watch: Watch, cx: &mut Turn<'_>) {
        let Watch {
            from,
            token,
            watcher,
            fresh,
            add,
            remove,
        } = watch;
        for user in remove {
            self.drop_interest(user, watcher);
        }
        let mut items = Vec::with_capacity(add.len());
        for user in add {
            let kept = self.add_interest(user, watcher, fresh, cx);
            let mut item = PresenceItem {
                user,
                ..PresenceItem::default()
            };
            if !kept {
                self.counters.bump(Counter::PresenceWatchesRefused);
            } else if self.people.is_known(user) {
                // The others first: whoever is told now must be told of the next change.
                self.publish(user, cx);
                let now = self.presence_of(user, cx.now.mono_us);
                item = self.presence_for(user, watcher, now);
            } else {
                self.want(user, Waiter::Show { to: Some(watcher) }, cx);
            }
            items.push(item);
        }
        self.send_batches(cx);
        match token {
            Some(token) => self.post(from, ShardMessage::Watched { token, items }, cx),
            None if !items.is_empty() => {
                let items = items.into_iter().map(|item| (watcher, item)).collect();
                self.post(from, ShardMessage::PresenceChanges(items), cx);
            }
            None => {}
        }
    }

    fn add_interest(&mut self, user: UserId, watcher: UserId, fresh: bool, cx: &Turn<'_>) -> bool {
        let now_us = cx.now.mono_us;
        // An even part of all, and as much again: users are not watched evenly.
        let full = self.presence.interests >= 2 * self.presence.subscriptions_max;
        if !self.presence.targets.contains_key(&user) {
            if full {
                return false;
            }
            let target = Target {
                watchers: Vec::new(),
                told: self.presence_of(user, now_us),
                told_us: 0,
                changed: false,
                sought: false,
            };
            self.presence.targets.insert(user, target);
        }
        let known =
            self.raw_presence(user) != PresenceState::Offline || self.presence.seen.knows(user);
        let Some(target) = self.presence.targets.get_mut(&user) else {
            return false;
        };
        if !target.watchers.contains(&watcher) {
            if full || target.watchers.len() >= WATCHERS_MAX {
                return false;
            }
            target.watchers.push(watcher);
            self.presence.interests += 1;
        }
        if !known && !target.sought {
            target.sought = self.presence.seen.seek(user, fresh, now_us);
            if !target.sought {
                self.counters.bump(Counter::PresenceSeeksDropped);
            }
        }
        true
    }

    fn drop_interest(&mut self, user: UserId, watcher: UserId) {
        let Some(target) = self.presence.targets.get_mut(&user) else {
            return;
        };
        let at = target.watchers.iter().position(|other| *other == watcher);
        if let Some(at) = at {
            target.watchers.swap_remove(at);
            self.presence.interests -= 1;
            if target.watchers.is_empty() {
                self.presence.targets.remove(&user);
            } else if target.watchers.capacity() > 4 * target.watchers.len() + 8 {
                target.watchers.shrink_to(2 * target.watchers.len());
            }
        }
    }

    /// The store has said when a target was last seen, or could not.
    pub(crate) fn end_seek(&mut self, user: UserId, cx: &mut Turn<'_>) {
        if let Some(target) = self.presence.targets.get_mut(&user) {
            target.sought = false;
        }
        self.mark_changed(user, cx.now.mono_us);
    }
}

// ---- the user who watches

impl Shard {
    pub(crate) fn on_presence_sub(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let sub = match PresenceSub::decode(frame.body()) {
            Ok(sub) => Ok(sub),
            Err(BodyError::TooLong) => Err(Refusal::TooManySubscriptions),
            Err(_) => return self.on_malformed(id, frame, cx),
        };
        let checked = sub.and_then(|sub| self.check_sub(id, sub, cx));
        match checked {
            Ok(sub) => self.subscribe(id, frame, sub, cx),
            Err(why) => {
                self.refuse(id, frame.is_request(), frame.corr(), frame.op(), why, cx);
            }
        }
    }

    /// Nothing has changed yet when this fails.
    fn check_sub(
        &mut self,
        id: ConnId,
        mut sub: PresenceSub,
        cx: &Turn<'_>,
    ) -> Result<PresenceSub, Refusal> {
        let Some(conn) = self.conn(id) else {
            return Err(Refusal::Overloaded);
        };
        if !sub.add.iter().all(|user| user.is_valid()) {
            return Err(Refusal::NoSuchUser);
        }
        if u32::from(conn.requests) >= self.config.limits.requests_max {
            return Err(Refusal::TooManyRequests);
        }
        let limited = conn.notes.limited;
        sub.add.sort_unstable();
        sub.add.dedup();
        sub.remove.sort_unstable();
        sub.remove.dedup();
        let empty = &[][..];
        let watching = self.presence.watching.get(&id.index);
        let has = watching.map_or(empty, |it| it.targets.as_slice());
        let within = |user: &&UserId| has.binary_search(user).is_ok();
        let removed = sub.remove.iter().filter(within).count();
        // What is removed and added again is new.
        let stays = |user: &&UserId| within(user) && sub.remove.binary_search(user).is_err();
        let added = sub.add.len() - sub.add.iter().filter(stays).count();
        if has.len() - removed + added > PRESENCE_SUBS_MAX {
            return Err(Refusal::TooManySubscriptions);
        }
        if self.presence.subscriptions + added > self.presence.subscriptions_max + removed {
            return Err(Refusal::Overloaded);
        }
        if limited && !sub.add.is_empty() {
            let watching = self.presence.watching.entry(id.index).or_default();
            let count = sub.add.len() as u32;
            let taken =
                self.limiter
                    .take_subscriptions(&mut watching.bucket, count, cx.now.mono_us);
            if let Err(wait_us) = taken {
                self.counters.bump(Counter::LimitedSubscriptions);
                return Err(Refusal::TooFast {
                    retry_after_ms: wait_us.div_ceil(1_000).max(1),
                });
            }
        }
        Ok(sub)
    }

    fn subscribe(&mut self, id: ConnId, frame: Frame<'_>, sub: PresenceSub, cx: &mut Turn<'_>) {
        let corr = if frame.is_request() { frame.corr() } else { 0 };
        let Some(conn) = self.conn_mut(id) else {
            return;
        };
        conn.requests += 1;
        let user = conn.user;
        let watching = self.presence.watching.entry(id.index).or_default();
        let fresh = !mem::replace(&mut watching.begun, true);
        let before = watching.targets.len();
        let is_removed = |user: &UserId| sub.remove.binary_search(user).is_ok();
        let removed: Vec<UserId> = watching
            .targets
            .iter()
            .copied()
            .filter(is_removed)
            .collect();
        watching.targets.retain(|user| !is_removed(user));
        watching.pending.retain(|item| !is_removed(&item.user));
        watching.targets.extend_from_slice(&sub.add);
        watching.targets.sort_unstable();
        watching.targets.dedup();
        watching.targets.shrink_to_fit();
        self.presence.subscriptions += watching.targets.len();
        self.presence.subscriptions -= before;
        self.unwatch(user, removed, cx);
        let token = self.presence.requests.insert(SubRequest {
            conn: id,
            corr,
            fresh,
            add: sub.add,
            left: 0,
            items: Vec::new(),
        });
        // Whom the watcher has blocked it does not see.
        self.want(user, Waiter::Subscribe { token }, cx);
    }

    /// It is known whom the watcher has blocked.
    pub(crate) fn on_subscriber_ready(
        &mut self,
        watcher: UserId,
        token: u64,
        result: Result<(), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let Some(request) = self.presence.requests.get_mut(token) else {
            return;
        };
        if let Err(error) = result {
            return self.fail_sub(watcher, token, error, cx);
        }
        let (fresh, add) = (request.fresh, mem::take(&mut request.add));
        let mut asked: Vec<(ShardId, UserId)> = Vec::with_capacity(add.len());
        let mut items = Vec::new();
        for user in add {
            // It may have been removed again meanwhile.
            if self.is_blocked(watcher, user) || !self.watches(watcher, user) {
                items.push(PresenceItem {
                    user,
                    ..PresenceItem::default()
                });
            } else {
                asked.push((self.home(user), user));
            }
        }
        asked.sort_unstable();
        let groups = asked.chunk_by(|a, b| a.0 == b.0);
        if let Some(request) = self.presence.requests.get_mut(token) {
            request.items = items;
            request.left = groups.clone().count();
            if request.left == 0 {
                return self.finish_sub(token, cx);
            }
        }
        for group in groups {
            let Some((home, _)) = group.first() else {
                continue;
            };
            let watch = Watch {
                from: self.config.shard,
                token: Some(token),
                watcher,
                fresh,
                add: group.iter().map(|(_, user)| *user).collect(),
                remove: Vec::new(),
            };
            self.post(*home, ShardMessage::Watch(Box::new(watch)), cx);
        }
    }

    /// It is not known whom the watcher has blocked: what was to be added is not.
    fn fail_sub(&mut self, watcher: UserId, token: u64, error: StoreError, cx: &mut Turn<'_>) {
        let Some(request) = self.presence.requests.remove(token) else {
            return;
        };
        let mut dropped = Vec::new();
        let open = self.conn(request.conn).is_some();
        if let Some(watching) = self
            .presence
            .watching
            .get_mut(&request.conn.index)
            .filter(|_| open)
        {
            let before = watching.targets.len();
            let add = &request.add;
            dropped = add.clone();
            watching
                .targets
                .retain(|user| add.binary_search(user).is_err());
            self.presence.subscriptions -= before - watching.targets.len();
            watching
                .pending
                .retain(|item| add.binary_search(&item.user).is_err());
        }
        self.unwatch(watcher, dropped, cx);
        self.release_request(request.conn, cx);
        let (corr, op) = (request.corr, Op::PresenceSub as u8);
        self.refuse(request.conn, corr != 0, corr, op, Refusal::Store(error), cx);
    }

    pub(crate) fn on_watched(&mut self, token: u64, items: Vec<PresenceItem>, cx: &mut Turn<'_>) {
        let Some(request) = self.presence.requests.get_mut(token) else {
            return;
        };
        // What was to be told of these is older.
        let open = self.conns.get(request.conn.index as usize);
        let open = open.is_some_and(|conn| conn.generation == request.conn.generation);
        if let Some(watching) = self.presence.watching.get_mut(&request.conn.index)
            && open
            && !watching.pending.is_empty()
        {
            let told = |item: &PresenceItem| items.iter().any(|new| new.user == item.user);
            watching.pending.retain(|item| !told(item));
        }
        request.left -= 1;
        if request.items.is_empty() {
            request.items = items;
        } else {
            request.items.extend(items);
        }
        if request.left == 0 {
            self.finish_sub(token, cx);
        }
    }

    fn finish_sub(&mut self, token: u64, cx: &mut Turn<'_>) {
        let Some(request) = self.presence.requests.remove(token) else {
            return;
        };
        let (id, corr) = (request.conn, request.corr);
        self.release_request(id, cx);
        self.counters
            .add(Counter::PresenceSubscribed, request.items.len() as u64);
        if corr != 0 {
            return self.write(id, cx, |out, encoder| {
                encoder.presence(out, corr, &request.items);
            });
        }
        if self.conn(id).is_some() {
            for item in request.items {
                self.put_pending(id, item, cx.now.mono_us);
            }
        }
    }

    /// Does any connection of the watcher have this subscription?
    fn watches(&self, watcher: UserId, user: UserId) -> bool {
        self.chain(watcher).any(|index| {
            let watching = self.presence.watching.get(&index);
            watching.is_some_and(|it| it.targets.binary_search(&user).is_ok())
        })
    }

    /// Tells the homes of those whom the watcher watches with no connection any more.
    fn unwatch(&mut self, watcher: UserId, mut targets: Vec<UserId>, cx: &mut Turn<'_>) {
        targets.retain(|user| !self.watches(watcher, *user));
        self.post_watch(watcher, Vec::new(), targets, cx);
    }

    /// Without an answer: what the targets are seen as comes as changes.
    fn post_watch(
        &mut self,
        watcher: UserId,
        add: Vec<UserId>,
        remove: Vec<UserId>,
        cx: &mut Turn<'_>,
    ) {
        let mut all: Vec<(ShardId, bool, UserId)> = Vec::with_capacity(add.len() + remove.len());
        all.extend(add.into_iter().map(|user| (self.home(user), true, user)));
        all.extend(
            remove
                .into_iter()
                .map(|user| (self.home(user), false, user)),
        );
        all.sort_unstable();
        for group in all.chunk_by(|a, b| a.0 == b.0) {
            let Some((home, _, _)) = group.first() else {
                continue;
            };
            let of = |added: bool| {
                let group = group.iter().filter(|(_, add, _)| *add == added);
                group.map(|(_, _, user)| *user).collect()
            };
            let watch = Watch {
                from: self.config.shard,
                token: None,
                watcher,
                fresh: false,
                add: of(true),
                remove: of(false),
            };
            self.post(*home, ShardMessage::Watch(Box::new(watch)), cx);
        }
    }

    /// Somebody is blocked, or not any more: whom one has blocked one does not see.
    pub(crate) fn apply_blocks(
        &mut self,
        owner: UserId,
        blocked: &[UserId],
        unblocked: &[UserId],
        cx: &mut Turn<'_>,
    ) {
        let watched = |shard: &Self, users: &[UserId]| -> Vec<UserId> {
            let users = users.iter().filter(|user| shard.watches(owner, **user));
            users.copied().collect()
        };
        let (remove, add) = (watched(self, blocked), watched(self, unblocked));
        for user in &remove {
            let item = PresenceItem {
                user: *user,
                ..PresenceItem::default()
            };
            self.show_change(owner, item, cx.now.mono_us);
        }
        self.post_watch(owner, add, remove, cx);
    }

    /// At the watchers' home: how somebody is seen has changed for them.
    pub(crate) fn on_seen(&mut self, items: Vec<(UserId, PresenceItem)>, cx: &mut Turn<'_>) {
        for (watcher, item) in items {
            self.show_change(watcher, item, cx.now.mono_us);
        }
    }

    fn show_change(&mut self, watcher: UserId, item: PresenceItem, now_us: u64) {
        for index in self.chain_list(watcher).iter() {
            self.put_pending(self.id_of(index), item, now_us);
        }
    }

    /// The latest wins.
    fn put_pending(&mut self, id: ConnId, item: PresenceItem, now_us: u64) {
        let Some(watching) = self.presence.watching.get_mut(&id.index) else {
            return;
        };
        if watching.targets.binary_search(&item.user).is_err() {
            return;
        }
        let pending = &mut watching.pending;
        match pending.iter_mut().find(|other| other.user == item.user) {
            Some(older) => *older = item,
            None => pending.push(item),
        }
        self.make_due(id, now_us);
    }

    fn make_due(&mut self, id: ConnId, now_us: u64) {
        if let Some(watching) = self.presence.watching.get_mut(&id.index)
            && !watching.pending.is_empty()
            && !mem::replace(&mut watching.due, true)
        {
            self.presence.due.push(id);
            self.presence.arm(now_us);
        }
    }

    /// Tells what is due, to shards and to clients.
    pub(crate) fn flush_presence(&mut self, cx: &mut Turn<'_>) {
        let now_us = cx.now.mono_us;
        self.tend_seen(cx);
        if self.presence.flush_us.is_none_or(|due_us| due_us > now_us) {
            return;
        }
        self.presence.flush_us = None;
        let changed = mem::take(&mut self.presence.changed);
        for user in changed {
            let Some(target) = self.presence.targets.get_mut(&user) else {
                continue;
            };
            if target.told_us != 0 && now_us < target.told_us + TARGET_INTERVAL_US {
                self.presence.changed.push(user);
                continue;
            }
            target.changed = false;
            if self.people.is_known(user) {
                self.publish(user, cx);
            } else {
                self.want(user, Waiter::Publish, cx);
            }
        }
        self.send_batches(cx);
        for id in mem::take(&mut self.presence.due) {
            self.tell_client(id, cx);
        }
        if !self.presence.changed.is_empty() || !self.presence.due.is_empty() {
            self.presence.arm(now_us);
        }
    }

    fn tell_client(&mut self, id: ConnId, cx: &mut Turn<'_>) {
        let now_us = cx.now.mono_us;
        let Some(conn) = self.conn(id) else {
            return;
        };
        let (hidden, roomy) = (conn.state == ClientState::Background, self.has_room(conn));
        let Some(watching) = self.presence.watching.get_mut(&id.index) else {
            return;
        };
        // In the background nothing is told; it is made up for when the client comes back.
        watching.due = !hidden;
        if hidden {
            return;
        }
        let early = watching.told_us != 0 && now_us < watching.told_us + FRAME_INTERVAL_US;
        if early || !roomy {
            if !early {
                watching.told_us = now_us;
                self.counters.bump(Counter::PresencePutOff);
            }
            return self.presence.due.push(id);
        }
        watching.due = false;
        watching.told_us = now_us;
        let pending = mem::take(&mut watching.pending);
        self.counters.bump(Counter::PresenceFrames);
        self.counters
            .add(Counter::PresenceTold, pending.len() as u64);
        self.write(id, cx, |out, encoder| encoder.presence(out, 0, &pending));
    }
}
