//! Messages of this shard's users whose fate is open, whatever conversation they are for.
//!
//! A frame marked RETRY may repeat an accepted one. The sender's home first looks among its messages
//! in flight, then asks the store, and holds back later messages of that device to that conversation
//! meanwhile: arrival order is kept (rules O10 to O13).

use crate::{
    conn::ConnId,
    direct::Place,
    error::Refusal,
    groups::GroupError,
    home::conv_home,
    mesh::ShardMessage,
    metrics::Counter,
    ops::Tokens,
    pool::GiveBack,
    shard::{Shard, Turn},
    store::{Entry, StoreCmd, StoreError},
    stored::Purpose,
};
use bytes::Bytes;
use hashbrown::HashTable;
use portico_wire::{
    Frame, Op, RouteHeader,
    encode::put_sent,
    frame::{ConvKind, Flags, msg_kind},
    ids::{ConvId, ConvSeq, DeviceId, GroupId, MsgId, UserId},
    limits::{ENVELOPE_BYTES_MAX, MSG_ID_AGE_MAX_MS, MSG_ID_AHEAD_MAX_MS, MSG_ID_BEHIND_MAX_MS},
};
use rustc_hash::FxBuildHasher;
use std::{collections::VecDeque, hash::BuildHasher, mem};

/// What a sender wants to say; owned, on its way through the shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The operation under which it is shown: DELIVER, or SIGNAL of an ephemeral one.
    pub op: u8,
    pub sender: UserId,
    pub device: DeviceId,
    /// A direct conversation or a group.
    pub conv: ConvId,
    /// Of the group, that the sender relied on; 0 = any.
    pub epoch: u64,
    pub msg_id: MsgId,
    pub kind: u8,
    pub flags: u8,
    pub ttl_s: u32,
    pub body: Bytes,
}

impl Draft {
    /// Who gets it, if it is direct.
    pub(crate) fn to(&self) -> UserId {
        self.conv.peer_of(self.sender).unwrap_or_default()
    }

    pub(crate) fn entry(self, conv_seq: ConvSeq) -> Entry {
        Entry {
            conv: self.conv,
            conv_seq,
            sender: self.sender,
            device: self.device,
            msg_id: self.msg_id,
            op: self.op,
            kind: self.kind,
            flags: self.flags,
            ttl_s: self.ttl_s,
            body: self.body,
        }
    }
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
    /// The operation that was asked for: SEND or REVOKE.
    op: u8,
    pub(crate) name: AttemptKey,
    pub(crate) conv: ConvId,
    pub(crate) body_bytes: u32,
    /// While it waits in a gate, and for the sender's other devices.
    pub(crate) draft: Option<Box<Draft>>,
    retry: bool,
    /// Waits in a gate for the search that goes on: it is one of those that are looked for.
    sought: bool,
    /// The sender has other devices.
    pub(crate) siblings: bool,
    /// The first attempt was found.
    pub(crate) duplicate: bool,
    /// Where it stands in the conversation, once durable.
    pub(crate) conv_seq: ConvSeq,
}

impl Outgoing {
    const fn gate(&self) -> Gate {
        (self.name.0, self.name.1, self.conv)
    }
}

/// Who wants a message to go on its way, and how it was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) conn: ConnId,
    pub(crate) corr: u32,
    pub(crate) op: u8,
    pub(crate) retry: bool,
    pub(crate) siblings: bool,
}

/// Repeated messages that one search looks for.
const SEARCH_MESSAGES_MAX: usize = 64;

/// Messages of a device to a conversation, as far as their order is concerned.
pub(crate) type Gate = (UserId, DeviceId, ConvId);

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
            self.open_attempt(&name)
        } else {
            None
        };
        let checked = check(&route, frame.body(), ephemeral, wall_ms).and_then(|()| {
            if busy {
                Err(Refusal::TooManyRequests)
            } else if known.is_none() && self.is_full() {
                Err(Refusal::Overloaded)
            } else {
                let direct = route.conv_kind == ConvKind::DIRECT;
                let denial = direct.then(|| self.denial(sender, UserId(route.conv)));
                let denial = denial.flatten();
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
        let conv = if route.conv_kind == ConvKind::GROUP {
            ConvId::Group(GroupId(route.conv))
        } else {
            ConvId::direct(sender, UserId(route.conv))
        };
        let draft = Draft {
            op: Op::Deliver as u8,
            sender,
            device,
            conv,
            epoch: route.seq.0,
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
            self.relay(draft, cx);
            return self.done(id, corr, cx);
        }
        self.count_send(id, request);
        let ask = Ask {
            conn: id,
            corr,
            op: frame.op(),
            retry,
            siblings,
        };
        self.begin_attempt(ask, draft, cx);
    }

    /// A message that may go on its way. It counts as a request of its connection already.
    pub(crate) fn begin_attempt(&mut self, ask: Ask, draft: Draft, cx: &mut Turn<'_>) {
        let Ask {
            conn,
            corr,
            op,
            retry,
            siblings,
        } = ask;
        let name = (draft.sender, draft.device, draft.msg_id);
        let body_bytes = draft.body.len() as u32;
        self.outgoing_bytes += body_bytes as usize;
        let token = self.outgoing.insert(Outgoing {
            conn: Some(conn),
            corr,
            op,
            name,
            conv: draft.conv,
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

    /// Hands an ephemeral message to whoever shows it.
    pub(crate) fn relay(&mut self, draft: Draft, cx: &mut Turn<'_>) {
        let draft = Box::new(draft);
        match draft.conv {
            ConvId::Group(_) => {
                let home = conv_home(draft.conv, self.config.shards);
                self.post(home, ShardMessage::GroupEphemeral(draft), cx);
            }
            ConvId::Direct(..) | ConvId::Status(_) => {
                let home = self.home(draft.to());
                self.post(home, ShardMessage::Ephemeral(draft), cx);
            }
        }
    }

    /// The attempt under this name whose fate is open, if there is one.
    pub(crate) fn open_attempt(&self, name: &AttemptKey) -> Option<u64> {
        self.attempts.get(name, &self.outgoing)
    }

    /// A repeated message whose first attempt is still on its way: the new connection gets the
    /// answer of the old one.
    pub(crate) fn adopt_attempt(&mut self, id: ConnId, corr: u32, token: u64, cx: &mut Turn<'_>) {
        let Some(attempt) = self.outgoing.get_mut(token) else {
            return;
        };
        let (old, old_corr) = (attempt.conn.replace(id), attempt.corr);
        let op = attempt.op;
        attempt.corr = corr;
        self.count_send(id, corr != 0);
        let Some(old) = old else {
            // It was given up once; this question has a deadline of its own.
            return self.set_send_deadline(token, cx);
        };
        self.release_request(old, cx);
        // The same connection asked twice: the first question will get no answer of its own.
        if old == id && old_corr != 0 && old_corr != corr {
            self.refuse(old, true, old_corr, op, Refusal::TimedOut, cx);
        }
    }

    /// One more of this connection's messages is open.
    pub(crate) fn count_send(&mut self, id: ConnId, request: bool) {
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
        let (key, conv) = (first.gate(), first.conv);
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
            conv,
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
                    attempt.conv_seq = *conv_seq;
                    let draft = attempt.draft.take();
                    if matches!(attempt.conv, ConvId::Group(_)) {
                        // Its marker sees to it that it reaches everybody.
                        self.finish_send(token, cx);
                    } else if let Some(draft) = draft {
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
    pub(crate) fn dispatch(&mut self, token: u64, draft: Draft, cx: &mut Turn<'_>) {
        if matches!(draft.conv, ConvId::Group(_)) {
            return self.send_to_group(token, draft, cx);
        }
        let here = conv_home(draft.conv, self.config.shards) == self.config.shard;
        let place = if here {
            Place::At(ConvSeq(self.seq.next(cx.now.wall_us)))
        } else {
            Place::Next
        };
        self.send_home(token, place, draft, cx);
    }

    pub(crate) fn finish_send(&mut self, token: u64, cx: &mut Turn<'_>) {
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

    pub(crate) fn fail_send(&mut self, token: u64, why: Refusal, cx: &mut Turn<'_>) {
        let Some(attempt) = self.end_attempt(token) else {
            return;
        };
        let Some(id) = attempt.conn else {
            return;
        };
        self.release_request(id, cx);
        let (corr, op) = (attempt.corr, attempt.op);
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
            let (conn, corr, op) = (attempt.conn.take(), attempt.corr, attempt.op);
            if let Some(id) = conn {
                self.release_request(id, cx);
                self.refuse(id, corr != 0, corr, op, Refusal::TimedOut, cx);
            }
        }
    }
}

/// What can be judged from the frame and the clock alone.
fn check(route: &RouteHeader, body: &[u8], ephemeral: bool, wall_ms: u64) -> Result<(), Refusal> {
    match route.conv_kind {
        ConvKind::STATUS => return Err(Refusal::UnsupportedConversation),
        ConvKind::GROUP if route.conv == 0 => return Err(Refusal::Group(GroupError::NotFound)),
        ConvKind::GROUP => {}
        ConvKind::DIRECT if UserId(route.conv).is_valid() => {}
        _ => return Err(Refusal::NoSuchUser),
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
    check_msg_id(route.msg_id, wall_ms)
}

/// Is an id dated so that a repetition of it can be found?
pub(crate) fn check_msg_id(msg_id: MsgId, wall_ms: u64) -> Result<(), Refusal> {
    let dated_ms = msg_id.unix_ms().ok_or(Refusal::BadMsgId)?;
    if dated_ms > wall_ms + MSG_ID_AHEAD_MAX_MS {
        return Err(Refusal::ClockAhead);
    }
    if dated_ms + MSG_ID_AGE_MAX_MS < wall_ms {
        return Err(Refusal::MsgIdTooOld);
    }
    Ok(())
}
