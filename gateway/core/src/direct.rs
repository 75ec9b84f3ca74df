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
    conn::ConnId,
    error::Refusal,
    home::{ShardId, conv_home},
    mesh::ShardMessage,
    metrics::Counter,
    shard::{Purpose, Shard, Turn},
    store::{Entry, InboxRef, StoreCmd, StoreError},
};
use bytes::Bytes;
use portico_wire::{
    Frame, Op, RouteHeader,
    encode::{put_routed, put_sent},
    frame::{ConvKind, Flags, msg_kind},
    ids::{ConvId, ConvSeq, DeviceId, MsgId, Seq, UserId},
    limits::{ENVELOPE_BYTES_MAX, MSG_ID_AGE_MAX_MS, MSG_ID_AHEAD_MAX_MS, MSG_ID_BEHIND_MAX_MS},
    message::ClientState,
};
use std::collections::VecDeque;

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

/// A message of a user of this shard whose fate is open.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Who gets the answer; `None` once it was given up or the sender is gone.
    conn: Option<ConnId>,
    corr: u32,
    draft: Draft,
    retry: bool,
    /// The sender has other devices.
    siblings: bool,
    /// The first attempt was found.
    duplicate: bool,
    /// Where it stands in the conversation, once durable.
    conv_seq: ConvSeq,
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
        let checked = check(&route, frame.body(), ephemeral, wall_ms).and_then(|()| {
            if busy {
                Err(Refusal::TooManyRequests)
            } else if self.is_full() {
                Err(Refusal::Overloaded)
            } else {
                Ok(())
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
        let to = UserId(route.conv);
        let body = Bytes::copy_from_slice(frame.body());
        if ephemeral {
            let home = self.home(to);
            let message = ShardMessage::Ephemeral {
                to,
                from: sender,
                device,
                kind: route.kind,
                body,
            };
            self.post(home, message, cx);
            return if request {
                self.done(id, corr, cx)
            };
        }
        if retry && self.adopt_attempt(id, corr, sender, device, route.msg_id, cx) {
            return;
        }
        if let Some(conn) = self.conn_mut(id) {
            conn.requests += 1;
        }
        let token = self.outgoing.insert(Outgoing {
            conn: Some(id),
            corr: if request { corr } else { 0 },
            draft: Draft {
                sender,
                device,
                to,
                msg_id: route.msg_id,
                kind: route.kind,
                flags: frame.flags().0 & Flags::SILENT.0,
                ttl_s: route.ttl_s,
                body,
            },
            retry,
            siblings,
            duplicate: false,
            conv_seq: ConvSeq(0),
        });
        let patience_us = u64::from(self.config.limits.store_timeout_ms) * 1_000 + SEND_GRACE_US;
        let deadline_us = cx.now.mono_us + patience_us;
        self.send_deadlines.push_back((deadline_us, token));
        self.enter_gate(token, (sender, device, to), retry, cx);
    }

    /// A repeated message whose first attempt is still on its way: the new connection gets the
    /// answer of the old one. Looked for only on RETRY, hence a walk and no index.
    fn adopt_attempt(
        &mut self,
        id: ConnId,
        corr: u32,
        sender: UserId,
        device: DeviceId,
        msg_id: MsgId,
        cx: &mut Turn<'_>,
    ) -> bool {
        let attempt = self.outgoing.values_mut().find(|attempt| {
            let draft = &attempt.draft;
            (draft.sender, draft.device, draft.msg_id) == (sender, device, msg_id)
        });
        let Some(attempt) = attempt else {
            return false;
        };
        let before = (attempt.conn.replace(id), attempt.corr);
        attempt.corr = corr;
        if let Some(conn) = self.conn_mut(id) {
            conn.requests += 1;
        }
        if let (Some(old), old_corr) = before {
            // The same connection asked twice: the first question will get no answer of its own.
            self.release_request(old);
            if old == id && old_corr != 0 && old_corr != corr {
                let op = Op::Send as u8;
                self.refuse(old, true, old_corr, op, Refusal::TimedOut, cx);
            }
        }
        true
    }

    fn enter_gate(
        &mut self,
        token: u64,
        key: (UserId, DeviceId, UserId),
        retry: bool,
        cx: &mut Turn<'_>,
    ) {
        let max = self.config.limits.gate_messages_max;
        match self.gates.get_mut(&key) {
            Some(waiting) if waiting.len() < max => waiting.push_back(token),
            Some(_) => self.fail_send(token, Refusal::Overloaded, cx),
            None if retry => {
                self.gates.insert(key, VecDeque::new());
                self.find_attempt(token, cx);
            }
            None => self.dispatch(token, cx),
        }
    }

    fn find_attempt(&mut self, token: u64, cx: &mut Turn<'_>) {
        let Some(attempt) = self.outgoing.get_mut(token) else {
            return;
        };
        let draft = &attempt.draft;
        let dated_ms = draft.msg_id.unix_ms().unwrap_or(0);
        let since_ms = dated_ms.saturating_sub(MSG_ID_BEHIND_MAX_MS);
        let cmd = StoreCmd::Find {
            conv: draft.conv(),
            since: ConvSeq(since_ms * 1_000),
            sender: draft.sender,
            device: draft.device,
            msg_id: draft.msg_id,
        };
        self.submit(Purpose::Find { token }, cmd, cx);
    }

    pub(crate) fn on_found(
        &mut self,
        token: u64,
        result: Result<Option<ConvSeq>, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let Some(attempt) = self.outgoing.get_mut(token) else {
            return;
        };
        let draft = &attempt.draft;
        let key = (draft.sender, draft.device, draft.to);
        match result {
            Ok(Some(conv_seq)) => {
                attempt.duplicate = true;
                self.send_home(token, Place::Existing(conv_seq), cx);
            }
            Ok(None) => self.dispatch(token, cx),
            Err(error) => self.fail_send(token, Refusal::Store(error), cx),
        }
        self.open_gate(key, cx);
    }

    /// Lets the messages behind a finished search go, up to the next that needs one.
    fn open_gate(&mut self, key: (UserId, DeviceId, UserId), cx: &mut Turn<'_>) {
        while let Some(token) = self.gates.get_mut(&key).and_then(VecDeque::pop_front) {
            match self.outgoing.get_mut(token) {
                Some(attempt) if attempt.retry => return self.find_attempt(token, cx),
                Some(_) => self.dispatch(token, cx),
                None => {}
            }
        }
        self.gates.remove(&key);
    }

    /// A message that is new: its place in the conversation is given by the conversation's home.
    fn dispatch(&mut self, token: u64, cx: &mut Turn<'_>) {
        let Some(attempt) = self.outgoing.get_mut(token) else {
            return;
        };
        let here = conv_home(attempt.draft.conv(), self.config.shards) == self.config.shard;
        let place = if here {
            Place::At(ConvSeq(self.seq.next(cx.now.wall_us)))
        } else {
            Place::Next
        };
        self.send_home(token, place, cx);
    }

    fn send_home(&mut self, token: u64, place: Place, cx: &mut Turn<'_>) {
        let Some(attempt) = self.outgoing.get_mut(token) else {
            return;
        };
        let draft = attempt.draft.clone();
        let home = self.home(draft.to);
        let send = DirectSend {
            origin: self.config.shard,
            token,
            place,
            draft,
        };
        self.post(home, ShardMessage::Direct(Box::new(send)), cx);
    }

    /// At the recipient's home: numbers, and one atomic write.
    pub(crate) fn on_direct(&mut self, send: DirectSend, cx: &mut Turn<'_>) {
        let DirectSend {
            origin,
            token,
            place,
            draft,
        } = send;
        if self.is_full() {
            let result = Err(StoreError::Overloaded { retry_after_ms: 0 });
            return self.post(origin, ShardMessage::DirectDone { token, result }, cx);
        }
        let (conv_seq, exists) = match place {
            Place::Next => (ConvSeq(self.seq.next(cx.now.wall_us)), false),
            Place::At(conv_seq) => (conv_seq, false),
            Place::Existing(conv_seq) => (conv_seq, true),
        };
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
        self.lane.settle(place, result.is_ok());
        self.show_visible(cx);
        self.post(origin, ShardMessage::DirectDone { token, result }, cx);
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
        let draft = &attempt.draft;
        if !attempt.siblings || draft.to == draft.sender {
            return self.finish_send(token, cx);
        }
        // The sender's other devices learn of it from the sender's own inbox; SENT waits for that.
        let (sender, duplicate) = (draft.sender, attempt.duplicate);
        let reference = InboxRef {
            user: sender,
            seq: Seq(self.seq.next(cx.now.wall_us)),
            conv: draft.conv(),
            conv_seq,
        };
        let shown = (!duplicate).then(|| attempt.draft.clone().entry(conv_seq));
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
        self.lane.settle(place, result.is_ok());
        self.show_visible(cx);
        match result {
            Ok(()) => self.finish_send(token, cx),
            Err(error) => self.fail_send(token, Refusal::Store(error), cx),
        }
    }

    fn finish_send(&mut self, token: u64, cx: &mut Turn<'_>) {
        let Some(attempt) = self.outgoing.remove(token) else {
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
        self.release_request(id);
        if attempt.corr != 0 {
            let (corr, conv_seq, again) = (attempt.corr, attempt.conv_seq, attempt.duplicate);
            self.write(id, cx, |out, _| put_sent(out, corr, conv_seq, again));
        }
    }

    fn fail_send(&mut self, token: u64, why: Refusal, cx: &mut Turn<'_>) {
        let Some(attempt) = self.outgoing.remove(token) else {
            return;
        };
        let Some(id) = attempt.conn else {
            return;
        };
        self.release_request(id);
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
                self.release_request(id);
                let op = Op::Send as u8;
                self.refuse(id, corr != 0, corr, op, Refusal::TimedOut, cx);
            }
        }
    }

    /// Shows an ephemeral message to whoever is there and has room.
    pub(crate) fn on_ephemeral(
        &mut self,
        to: UserId,
        from: UserId,
        device: DeviceId,
        kind: u8,
        body: &Bytes,
        cx: &mut Turn<'_>,
    ) {
        let soft = self.config.limits.outbox_bytes_soft;
        let route = RouteHeader {
            conv: if to == from { to.0 } else { from.0 },
            user: from,
            dev: device,
            conv_kind: ConvKind::DIRECT,
            kind,
            ..RouteHeader::default()
        };
        for index in self.chain_list(to).iter() {
            let conn = &self.conns[index as usize];
            let sender = conn.user == from && conn.device == device;
            let hidden = conn.state == ClientState::Background;
            if sender || hidden {
                continue;
            }
            if conn.pending_bytes() >= soft {
                self.counters.bump(Counter::EphemeralDropped);
                continue;
            }
            let id = self.id_of(index);
            let op = Op::Deliver as u8;
            self.write(id, cx, |out, _| {
                put_routed(out, op, Flags::EPHEMERAL, 0, 0, &route, body);
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
