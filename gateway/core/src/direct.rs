//! The path of a direct message: accept at the sender's home, store and show at the recipient's
//! home, then SENT.
//!
//! ```text
//!   sender's home S                      recipient's home R (often the same shard)
//!   SEND -> checks -> gate -> Direct --> numbers -> one atomic Append -> store
//!   SENT <- own copies <- DirectDone <-- durable -> shown in order to R's connections
//! ```
//! The conversation's order comes from one shard, the home of the smaller user, which is S or R.
//! The reference is submitted by R alone, so the order of R's inbox has one author too.
//!
//! A frame marked RETRY may repeat an accepted one. S first looks among its messages in flight,
//! then asks the store, and holds back later messages of that device to that recipient meanwhile:
//! arrival order is kept (rules O10 to O13).

use crate::{
    conn::{ConnId, Source},
    error::Refusal,
    home::{ShardId, conv_home},
    mesh::ShardMessage,
    metrics::Counter,
    ops::Tokens,
    pool::GiveBack,
    shard::{Purpose, Shard, Turn},
    store::{Entry, InboxRef, StoreCmd, StoreError},
};
use bytes::Bytes;
use hashbrown::HashTable;
use portico_wire::{
    Frame, Op, RouteHeader,
    encode::{put_routed, put_sent},
    frame::{ConvKind, Flags, msg_kind},
    ids::{ConvId, ConvSeq, DeviceId, MsgId, Seq, UserId},
    limits::{ENVELOPE_BYTES_MAX, MSG_ID_AGE_MAX_MS, MSG_ID_AHEAD_MAX_MS, MSG_ID_BEHIND_MAX_MS},
    message::ClientState,
};
use rustc_hash::FxBuildHasher;
use std::{collections::VecDeque, hash::BuildHasher, mem};

/// What a sender wants to say; owned, on its way through the shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    pub sender: UserId,
    pub device: DeviceId,
    pub to: UserId,
    pub msg_id: MsgId,
    pub kind: u8,
    pub flags: u8,
    pub ttl_s: u32,
    pub body: Bytes,
}

impl Draft {
    fn conv(&self) -> ConvId {
        ConvId::direct(self.sender, self.to)
    }

    fn entry(self, conv_seq: ConvSeq) -> Entry {
        Entry {
            conv: self.conv(),
            conv_seq,
            sender: self.sender,
            device: self.device,
            msg_id: self.msg_id,
            op: Op::Deliver as u8,
            kind: self.kind,
            flags: self.flags,
            ttl_s: self.ttl_s,
            body: self.body,
        }
    }
}

/// Where in the conversation a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The recipient's home is the conversation's home and gives the number.
    Next,
    /// The sender's home is, and gave it.
    At(ConvSeq),
    /// The entry is in the store already: only the reference is written again.
    Existing(ConvSeq),
}

/// From the sender's home to the recipient's.
#[derive(Debug, PartialEq, Eq)]
pub struct DirectSend {
    pub origin: ShardId,
    /// Comes back in `DirectDone`.
    pub token: u64,
    pub place: Place,
    pub draft: Draft,
}

/// What names a message for ever.
pub(crate) type AttemptKey = (UserId, DeviceId, MsgId);

/// A message of a user of this shard whose fate is open. What it says travels with it; here it is
/// kept only where somebody will ask for it again.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Who gets the answer; `None` once it was given up or the sender is gone.
    pub(crate) conn: Option<ConnId>,
    corr: u32,
    pub(crate) name: AttemptKey,
    to: UserId,
    pub(crate) body_bytes: u32,
    /// While it waits in a gate, and for the sender's other devices.
    draft: Option<Box<Draft>>,
    retry: bool,
    /// Waits in a gate for the search that goes on: it is one of those that are looked for.
    sought: bool,
    /// The sender has other devices.
    siblings: bool,
    /// The first attempt was found.
    duplicate: bool,
    /// Where it stands in the conversation, once durable.
    conv_seq: ConvSeq,
}

impl Outgoing {
    const fn gate(&self) -> Gate {
        (self.name.0, self.name.1, self.to)
    }
}

/// Repeated messages that one search looks for.
const SEARCH_MESSAGES_MAX: usize = 64;

/// Messages of a device to a recipient, as far as their order is concerned.
pub(crate) type Gate = (UserId, DeviceId, UserId);

/// The newest attempt under each name. Tokens only: the names stand in the attempts.
#[derive(Debug, Default)]
pub(crate) struct Attempts(HashTable<u64>);

impl Attempts {
    #[cfg(feature = "testing")]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, name: &AttemptKey, open: &Tokens<Outgoing>) -> Option<u64> {
        self.0.find(hash(name), is(name, open)).copied()
    }

    /// Call once the attempt is in `open`.
    fn insert(&mut self, name: &AttemptKey, token: u64, open: &Tokens<Outgoing>) {
        if let Some(older) = self.0.find_mut(hash(name), is(name, open)) {
            *older = token;
            return;
        }
        let of = |token: &u64| open.get(*token).map_or(0, |attempt| hash(&attempt.name));
        self.0.insert_unique(hash(name), token, of);
    }

    /// Unless a second message under the same name has taken its place.
    fn remove(&mut self, name: &AttemptKey, token: u64) {
        if let Ok(entry) = self.0.find_entry(hash(name), |other| *other == token) {
            entry.remove();
        }
    }
}

impl GiveBack for Attempts {
    fn give_back(&mut self) {
        // A table of tokens is small; it goes when nothing is open.
        if self.0.is_empty() && self.0.capacity() > ATTEMPTS_KEPT {
            self.0 = HashTable::new();
        }
    }
}

/// Room for so many attempts is kept.
const ATTEMPTS_KEPT: usize = 256;

fn hash(name: &AttemptKey) -> u64 {
    FxBuildHasher.hash_one((name.0.0, name.2.hi(), name.2.lo()))
}

fn is(name: &AttemptKey, open: &Tokens<Outgoing>) -> impl Fn(&u64) -> bool {
    move |token| {
        open.get(*token)
            .is_some_and(|attempt| attempt.name == *name)
    }
}

/// Beyond the store's own deadline, before the sender is told that the outcome is unknown.
const SEND_GRACE_US: u64 = 2_000_000;

impl Shard {
    pub(crate) fn on_send(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let Some(route) = frame.route() else {
            return;
        };
        let Some(conn) = self.conn(id) else {
            return;
        };
        let (sender, device, siblings) = (conn.user, conn.device, conn.notes.siblings);
        let busy = u32::from(conn.requests) >= self.config.limits.requests_max;
        let (request, corr) = (frame.is_request(), frame.corr());
        let ephemeral = frame.flags().contains(Flags::EPHEMERAL);
        let retry = frame.flags().contains(Flags::RETRY);
        let wall_ms = cx.now.wall_us / 1_000;
        let name = (sender, device, route.msg_id);
        let known = if retry && !ephemeral {
            self.attempts.get(&name, &self.outgoing)
        } else {
            None
        };
        let checked = check(&route, frame.body(), ephemeral, wall_ms).and_then(|()| {
            if busy {
                Err(Refusal::TooManyRequests)
            } else if known.is_none() && self.is_full() {
                Err(Refusal::Overloaded)
            } else {
                let denial = self.denial(sender, UserId(route.conv));
                denial.map_or(Ok(()), |denial| Err(Refusal::Denied(denial)))
            }
        });
        match checked {
            Ok(()) => {}
            Err(Refusal::Malformed) => return self.on_malformed(id, frame, cx),
            Err(why) => {
                if !request {
                    self.counters.bump(Counter::UnanswerableSends);
                }
                return self.refuse(id, request, corr, frame.op(), why, cx);
            }
        }
        let corr = if request { corr } else { 0 };
        if let Some(token) = known {
            return self.adopt_attempt(id, corr, token, cx);
        }
        let to = UserId(route.conv);
        let draft = Draft {
            sender,
            device,
            to,
            msg_id: route.msg_id,
            kind: route.kind,
            flags: frame.flags().0 & Flags::SILENT.0,
            ttl_s: route.ttl_s,
            body: if ephemeral {
                self.passing.keep(frame.body())
            } else {
                self.bodies.keep(frame.body())
            },
        };
        if ephemeral {
            let home = self.home(to);
            self.post(home, ShardMessage::Ephemeral(Box::new(draft)), cx);
            return self.done(id, corr, cx);
        }
        self.count_send(id, request);
        let body_bytes = draft.body.len() as u32;
        self.outgoing_bytes += body_bytes as usize;
        let token = self.outgoing.insert(Outgoing {
            conn: Some(id),
            corr,
            name,
            to,
            body_bytes,
            draft: None,
            sought: false,
            retry,
            siblings,
            duplicate: false,
            conv_seq: ConvSeq(0),
        });
        self.attempts.insert(&name, token, &self.outgoing);
        self.set_send_deadline(token, cx);
        if retry || !self.gates.is_empty() {
            self.enter_gate(token, draft, cx);
        } else {
            self.dispatch(token, draft, cx);
        }
    }

    /// A repeated message whose first attempt is still on its way: the new connection gets the
    /// answer of the old one.
    fn adopt_attempt(&mut self, id: ConnId, corr: u32, token: u64, cx: &mut Turn<'_>) {
        let Some(attempt) = self.outgoing.get_mut(token) else {
            return;
        };
        let (old, old_corr) = (attempt.conn.replace(id), attempt.corr);
        attempt.corr = corr;
        self.count_send(id, corr != 0);
        let Some(old) = old else {
            // It was given up once; this question has a deadline of its own.
            return self.set_send_deadline(token, cx);
        };
        self.release_request(old, cx);
        // The same connection asked twice: the first question will get no answer of its own.
        if old == id && old_corr != 0 && old_corr != corr {
            let op = Op::Send as u8;
            self.refuse(old, true, old_corr, op, Refusal::TimedOut, cx);
        }
    }

    /// One more of this connection's messages is open.
    fn count_send(&mut self, id: ConnId, request: bool) {
        let requests_max = self.config.limits.requests_max;
        if let Some(conn) = self.conn_mut(id) {
            conn.requests += 1;
            conn.notes.paused |= !request && u32::from(conn.requests) >= requests_max;
        }
    }

    /// One deadline per attempt that somebody waits for, in the order in which they come.
    fn set_send_deadline(&mut self, token: u64, cx: &Turn<'_>) {
        let patience_us = u64::from(self.config.limits.store_timeout_ms) * 1_000 + SEND_GRACE_US;
        self.send_deadlines
            .push_back((cx.now.mono_us + patience_us, token));
        // Behind an attempt that takes long, those of the finished ones pile up.
        if self.send_deadlines.len() > 2 * self.config.limits.store_requests_max {
            let outgoing = &mut self.outgoing;
            self.send_deadlines
                .retain(|(_, token)| outgoing.get(*token).is_some());
        }
    }

    /// The fate of an attempt is known.
    fn end_attempt(&mut self, token: u64) -> Option<Outgoing> {
        let attempt = self.outgoing.get(token)?;
        self.outgoing_bytes -= attempt.body_bytes as usize;
        self.attempts.remove(&attempt.name, token);
        self.outgoing.remove(token)
    }

    fn enter_gate(&mut self, token: u64, draft: Draft, cx: &mut Turn<'_>) {
        let max = self.config.limits.gate_messages_max;
        let Some(attempt) = self.outgoing.get_mut(token) else {
            return;
        };
        let (key, retry) = (attempt.gate(), attempt.retry);
        match self.gates.get_mut(&key) {
            Some(waiting) if waiting.len() < max => {
                attempt.draft = Some(Box::new(draft));
                waiting.push_back(token);
            }
            Some(_) => self.fail_send(token, Refusal::Overloaded, cx),
            None if retry => {
                attempt.draft = Some(Box::new(draft));
                self.gates.insert(key, VecDeque::new());
                self.search(token, cx);
            }
            None => self.dispatch(token, draft, cx),
        }
    }

    /// Looks for a repeated message, and at once for those that wait behind it: after a reconnect a
    /// client repeats all that had no answer, and a search takes as long as the conversation is.
    fn search(&mut self, token: u64, cx: &mut Turn<'_>) {
        let Some(first) = self.outgoing.get(token) else {
            return;
        };
        let (key, to) = (first.gate(), first.to);
        let (sender, device, msg_id) = first.name;
        let mut msg_ids = vec![msg_id];
        for waiting in self.gates.get(&key).into_iter().flatten() {
            let repeated = self.outgoing.get_mut(*waiting).filter(|one| one.retry);
            if let Some(one) = repeated {
                one.sought = true;
                msg_ids.push(one.name.2);
            }
            if msg_ids.len() == SEARCH_MESSAGES_MAX {
                break;
            }
        }
        let dated_ms = msg_ids.iter().map(|id| id.unix_ms().unwrap_or(0)).min();
        let since_ms = dated_ms.map_or(0, |ms| ms.saturating_sub(MSG_ID_BEHIND_MAX_MS));
        let cmd = StoreCmd::Find {
            conv: ConvId::direct(sender, to),
            since: ConvSeq(since_ms * 1_000),
            sender,
            device,
            msg_ids,
        };
        self.submit(Purpose::Find { token }, cmd, cx);
    }

    pub(crate) fn on_found(
        &mut self,
        token: u64,
        result: Result<&[(MsgId, ConvSeq)], StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let Some(attempt) = self.outgoing.get(token) else {
            return;
        };
        let key = attempt.gate();
        self.settle_repeat(token, &result, cx);
        self.open_gate(key, &result, cx);
    }

    /// A repeated message was looked for.
    fn settle_repeat(
        &mut self,
        token: u64,
        result: &Result<&[(MsgId, ConvSeq)], StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let Some(attempt) = self.outgoing.get_mut(token) else {
            return;
        };
        match result {
            Ok(places) => match places.iter().find(|(id, _)| *id == attempt.name.2) {
                Some((_, conv_seq)) => {
                    attempt.duplicate = true;
                    if let Some(draft) = attempt.draft.take() {
                        self.send_home(token, Place::Existing(*conv_seq), *draft, cx);
                    }
                }
                None => self.dispatch_waiting(token, cx),
            },
            Err(error) => self.fail_send(token, Refusal::Store(*error), cx),
        }
    }

    /// Lets the messages behind a finished search go, up to the next that needs one.
    ///
    /// Nobody searches for a sender who has gone: what waits here was never handed on, and its
    /// sender says it again. What came behind it is let go of too, or it would overtake.
    fn open_gate(
        &mut self,
        key: Gate,
        result: &Result<&[(MsgId, ConvSeq)], StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let mut abandoned = false;
        while let Some(token) = self.gates.get_mut(&key).and_then(VecDeque::pop_front) {
            let Some(attempt) = self.outgoing.get_mut(token) else {
                continue;
            };
            let sought = mem::take(&mut attempt.sought);
            let (retry, asker) = (attempt.retry, attempt.conn);
            let gone = !asker.is_some_and(|id| self.is_open(id));
            if gone && (retry || abandoned) {
                abandoned = true;
                self.end_attempt(token);
            } else if sought {
                self.settle_repeat(token, result, cx);
            } else if retry {
                return self.search(token, cx);
            } else {
                self.dispatch_waiting(token, cx);
            }
        }
        self.gates.remove(&key);
    }

    fn dispatch_waiting(&mut self, token: u64, cx: &mut Turn<'_>) {
        let attempt = self.outgoing.get_mut(token);
        if let Some(draft) = attempt.and_then(|attempt| attempt.draft.take()) {
            self.dispatch(token, *draft, cx);
        }
    }

    /// A message that is new: its place in the conversation is given by the conversation's home.
    fn dispatch(&mut self, token: u64, draft: Draft, cx: &mut Turn<'_>) {
        let here = conv_home(draft.conv(), self.config.shards) == self.config.shard;
        let place = if here {
            Place::At(ConvSeq(self.seq.next(cx.now.wall_us)))
        } else {
            Place::Next
        };
        self.send_home(token, place, draft, cx);
    }

    fn send_home(&mut self, token: u64, place: Place, draft: Draft, cx: &mut Turn<'_>) {
        let Some(attempt) = self.outgoing.get_mut(token) else {
            return;
        };
        if attempt.siblings {
            attempt.draft = Some(Box::new(draft.clone()));
        }
        let home = self.home(draft.to);
        let send = DirectSend {
            origin: self.config.shard,
            token,
            place,
            draft,
        };
        if home == self.config.shard {
            self.on_direct(send, cx);
        } else {
            self.post(home, ShardMessage::Direct(Box::new(send)), cx);
        }
    }

    /// At the recipient's home: numbers, and one atomic write.
    pub(crate) fn on_direct(&mut self, send: DirectSend, cx: &mut Turn<'_>) {
        let DirectSend {
            origin,
            token,
            place,
            draft,
        } = send;
        if self.is_store_full() {
            let result = Err(StoreError::Overloaded { retry_after_ms: 0 });
            return self.answer_direct(origin, token, result, cx);
        }
        let (conv_seq, exists) = match place {
            Place::Next => (ConvSeq(self.seq.next(cx.now.wall_us)), false),
            Place::At(conv_seq) => (conv_seq, false),
            Place::Existing(conv_seq) => (conv_seq, true),
        };
        // The clock may have been set back between the two shards' numbers: a reader's inbox is never
        // behind what stands in it, or a READ of it would point into the future.
        self.seq.observe(conv_seq.0);
        let to = draft.to;
        let reference = InboxRef {
            user: to,
            seq: Seq(self.seq.next(cx.now.wall_us)),
            conv: draft.conv(),
            conv_seq,
        };
        // An entry that exists may differ from what was said again: connections read it.
        let seen = self.is_here(to) && !exists;
        let entry = draft.entry(conv_seq);
        let shown = seen.then(|| entry.clone());
        let place = self.lane.push(to, reference.seq, shown);
        let cmd = if exists {
            StoreCmd::AddRefs {
                refs: vec![reference],
            }
        } else {
            StoreCmd::Append {
                entry,
                to: reference,
            }
        };
        let purpose = Purpose::Append {
            place,
            origin,
            token,
            conv_seq,
        };
        self.submit(purpose, cmd, cx);
    }

    pub(crate) fn on_appended(
        &mut self,
        place: u64,
        origin: ShardId,
        token: u64,
        result: Result<ConvSeq, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        self.lane.settle(place, result.map(|_| ()));
        self.show_visible(cx);
        self.answer_direct(origin, token, result, cx);
    }

    fn answer_direct(
        &mut self,
        origin: ShardId,
        token: u64,
        result: Result<ConvSeq, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        if origin == self.config.shard {
            self.on_direct_done(token, result, cx);
        } else {
            self.post(origin, ShardMessage::DirectDone { token, result }, cx);
        }
    }

    /// Back at the sender's home.
    pub(crate) fn on_direct_done(
        &mut self,
        token: u64,
        result: Result<ConvSeq, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let conv_seq = match result {
            Ok(conv_seq) => conv_seq,
            Err(error) => return self.fail_send(token, Refusal::Store(error), cx),
        };
        let Some(attempt) = self.outgoing.get_mut(token) else {
            return;
        };
        attempt.conv_seq = conv_seq;
        let ((sender, device, _), to) = (attempt.name, attempt.to);
        let (siblings, duplicate) = (attempt.siblings, attempt.duplicate);
        let draft = attempt.draft.take();
        // Another device may have come since the message was taken.
        if to == sender || !(siblings || self.has_siblings(sender, device)) {
            return self.finish_send(token, cx);
        }
        // The sender's other devices learn of it from the sender's own inbox; SENT waits for that.
        let reference = InboxRef {
            user: sender,
            seq: Seq(self.seq.next(cx.now.wall_us)),
            conv: ConvId::direct(sender, to),
            conv_seq,
        };
        // A device that has come since reads it from the store.
        let shown = draft.filter(|_| !duplicate);
        let shown = shown.map(|draft| draft.entry(conv_seq));
        let place = self.lane.push(sender, reference.seq, shown);
        let cmd = StoreCmd::AddRefs {
            refs: vec![reference],
        };
        self.submit(Purpose::OwnCopy { place, token }, cmd, cx);
    }

    pub(crate) fn on_own_copy(
        &mut self,
        place: u64,
        token: u64,
        result: Result<(), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        self.lane.settle(place, result);
        self.show_visible(cx);
        match result {
            Ok(()) => self.finish_send(token, cx),
            // The message itself is durable: "overloaded" would tell the sender that it is not,
            // and a repeat without RETRY would be accepted again.
            Err(StoreError::Overloaded { .. }) => {
                self.fail_send(token, Refusal::Store(StoreError::Unavailable), cx);
            }
            Err(error) => self.fail_send(token, Refusal::Store(error), cx),
        }
    }

    fn has_siblings(&self, user: UserId, device: DeviceId) -> bool {
        self.chain(user).any(|index| {
            let conn = &self.conns[index as usize];
            conn.device != device || conn.notes.siblings
        })
    }

    fn finish_send(&mut self, token: u64, cx: &mut Turn<'_>) {
        let Some(attempt) = self.end_attempt(token) else {
            return;
        };
        self.counters.bump(if attempt.duplicate {
            Counter::Duplicates
        } else {
            Counter::Accepted
        });
        let Some(id) = attempt.conn else {
            return;
        };
        self.release_request(id, cx);
        if attempt.corr != 0 {
            let (corr, conv_seq, again) = (attempt.corr, attempt.conv_seq, attempt.duplicate);
            self.write(id, cx, |out, _| put_sent(out, corr, conv_seq, again));
        }
    }

    fn fail_send(&mut self, token: u64, why: Refusal, cx: &mut Turn<'_>) {
        let Some(attempt) = self.end_attempt(token) else {
            return;
        };
        let Some(id) = attempt.conn else {
            return;
        };
        self.release_request(id, cx);
        let (corr, op) = (attempt.corr, Op::Send as u8);
        self.refuse(id, corr != 0, corr, op, why, cx);
    }

    /// Tells senders whose message has no fate in time. The attempt itself stays: a repetition
    /// must find it for as long as it may still come true.
    pub(crate) fn expire_sends(&mut self, cx: &mut Turn<'_>) {
        while let Some(&(at, token)) = self.send_deadlines.front() {
            let open = self.outgoing.get_mut(token);
            if open.is_some() && at > cx.now.mono_us {
                return;
            }
            self.send_deadlines.pop_front();
            let Some(attempt) = self.outgoing.get_mut(token) else {
                continue;
            };
            let (conn, corr) = (attempt.conn.take(), attempt.corr);
            if let Some(id) = conn {
                self.release_request(id, cx);
                let op = Op::Send as u8;
                self.refuse(id, corr != 0, corr, op, Refusal::TimedOut, cx);
            }
        }
    }

    /// Shows an ephemeral message to whoever is there and has room. Not to who is behind: a flood
    /// of these would take the room that each page of messages needs.
    pub(crate) fn on_ephemeral(&mut self, draft: &Draft, cx: &mut Turn<'_>) {
        let route = RouteHeader {
            msg_id: draft.msg_id,
            conv: draft.sender.0,
            user: draft.sender,
            dev: draft.device,
            conv_kind: ConvKind::DIRECT,
            kind: draft.kind,
            ttl_s: draft.ttl_s,
            ..RouteHeader::default()
        };
        for index in self.chain_list(draft.to).iter() {
            let conn = &self.conns[index as usize];
            let sender = conn.user == draft.sender && conn.device == draft.device;
            let hidden = conn.state == ClientState::Background;
            if sender || hidden {
                continue;
            }
            if conn.source != Source::Live || !self.has_room(conn) {
                self.counters.bump(Counter::EphemeralDropped);
                continue;
            }
            let id = self.id_of(index);
            let op = Op::Deliver as u8;
            self.write(id, cx, |out, _| {
                put_routed(out, op, Flags::EPHEMERAL, 0, 0, &route, &draft.body);
            });
            self.counters.bump(Counter::EphemeralDelivered);
        }
    }
}

/// What can be judged from the frame and the clock alone.
fn check(route: &RouteHeader, body: &[u8], ephemeral: bool, wall_ms: u64) -> Result<(), Refusal> {
    if route.conv_kind == ConvKind::GROUP || route.conv_kind == ConvKind::STATUS {
        return Err(Refusal::UnsupportedConversation);
    }
    if route.conv_kind != ConvKind::DIRECT || !UserId(route.conv).is_valid() {
        return Err(Refusal::NoSuchUser);
    }
    if body.is_empty() {
        return Err(Refusal::Malformed);
    }
    if body.len() > ENVELOPE_BYTES_MAX {
        return Err(Refusal::TooLarge);
    }
    if route.kind > msg_kind::DEVICE_SYNC {
        return Err(Refusal::BadKind);
    }
    if ephemeral {
        return Ok(());
    }
    let dated_ms = route.msg_id.unix_ms().ok_or(Refusal::BadMsgId)?;
    if dated_ms > wall_ms + MSG_ID_AHEAD_MAX_MS {
        return Err(Refusal::ClockAhead);
    }
    if dated_ms + MSG_ID_AGE_MAX_MS < wall_ms {
        return Err(Refusal::MsgIdTooOld);
    }
    Ok(())
}
