//! The path of a direct message: accepted at the sender's home (`outgoing`), stored and shown at the
//! recipient's home, then SENT.
//!
//! ```text
//!   sender's home S                      recipient's home R (often the same shard)
//!   SEND -> checks -> gate -> Direct --> numbers -> one atomic Append -> store
//!   SENT <- own copies <- DirectDone <-- durable -> shown in order to R's connections
//! ```
//! The conversation's order comes from one shard, the home of the smaller user, which is S or R.
//! The reference is submitted by R alone, so the order of R's inbox has one author too.

use crate::{
    conn::Source,
    error::Refusal,
    home::ShardId,
    mesh::ShardMessage,
    metrics::Counter,
    outgoing::Draft,
    people::Waiter,
    shard::{Shard, Turn},
    store::{InboxRef, StoreCmd, StoreError},
    stored::Purpose,
};
use portico_wire::{
    Op, RouteHeader,
    encode::put_routed,
    frame::{ConvKind, Flags},
    ids::{ConvId, ConvSeq, DeviceId, Seq, UserId},
    message::ClientState,
};

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
impl Shard {
    pub(crate) fn send_home(&mut self, token: u64, place: Place, draft: Draft, cx: &mut Turn<'_>) {
        let Some(attempt) = self.outgoing.get_mut(token) else {
            return;
        };
        if attempt.siblings {
            attempt.draft = Some(Box::new(draft.clone()));
        }
        let home = self.home(draft.to());
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

    /// At the recipient's home, which may have blocked the sender. What was accepted once is not asked
    /// about again, nor a note to oneself.
    pub(crate) fn on_direct(&mut self, send: DirectSend, cx: &mut Turn<'_>) {
        let to = send.draft.to();
        let accepted = matches!(send.place, Place::Existing(_)) || to == send.draft.sender;
        let free = !self.people.is_restricted(to) && !self.people.is_awaited(to);
        if accepted || free {
            return self.store_direct(send, cx);
        }
        self.want(to, Waiter::Direct(Box::new(send)), cx);
    }

    /// Back at the sender's home: the recipient has blocked the sender.
    pub(crate) fn on_direct_blocked(&mut self, token: u64, cx: &mut Turn<'_>) {
        self.fail_send(token, Refusal::Blocked, cx);
    }

    /// Numbers, and one atomic write.
    pub(crate) fn store_direct(&mut self, send: DirectSend, cx: &mut Turn<'_>) {
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
        let to = draft.to();
        let reference = InboxRef {
            user: to,
            seq: Seq(self.seq.next(cx.now.wall_us)),
            conv: draft.conv,
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

    pub(crate) fn answer_direct(
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
        let ((sender, device, _), conv) = (attempt.name, attempt.conv);
        let (siblings, duplicate) = (attempt.siblings, attempt.duplicate);
        let draft = attempt.draft.take();
        // Another device may have come since the message was taken.
        if conv == ConvId::direct(sender, sender)
            || !(siblings || self.has_siblings(sender, device))
        {
            return self.finish_send(token, cx);
        }
        // The sender's other devices learn of it from the sender's own inbox; SENT waits for that.
        let reference = InboxRef {
            user: sender,
            seq: Seq(self.seq.next(cx.now.wall_us)),
            conv,
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

    /// At the recipient's home: to be shown unless the recipient has blocked the sender.
    pub(crate) fn on_ephemeral(&mut self, draft: Box<Draft>, cx: &mut Turn<'_>) {
        let to = draft.to();
        if self.people.is_restricted(to) && to != draft.sender {
            return self.want(to, Waiter::Ephemeral(draft), cx);
        }
        self.show_ephemeral(&draft, cx);
    }

    /// Shows an ephemeral message to whoever is there and has room. Not to who is behind: a flood
    /// of these would take the room that each page of messages needs.
    pub(crate) fn show_ephemeral(&mut self, draft: &Draft, cx: &mut Turn<'_>) {
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
        for index in self.chain_list(draft.to()).iter() {
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
