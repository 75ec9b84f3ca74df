//! REVOKE: delete for everyone. The stored body goes, then the withdrawal itself takes the path of a
//! message: an entry of the conversation that reaches all of its devices.
//!
//! ```text
//!   REVOKE -> checks -> read the target -> Redact -> as a SEND -> SENT
//! ```
//! Each step may be repeated: a target without its body is still the target, redacting twice is
//! redacting once, and an entry that exists already is found under its msg_id. So the entry is always
//! sought first, whether or not the frame is marked RETRY: the steps before it take time, and the
//! same withdrawal may have come over another connection meanwhile.

use crate::{
    conn::ConnId,
    error::Refusal,
    lookup::Subject,
    mesh::ShardMessage,
    metrics::Counter,
    outgoing::{Ask, Draft, check_msg_id},
    shard::{Shard, Turn},
    store::{Entry, StoreCmd, StoreError},
    stored::Purpose,
};
use bytes::Bytes;
use portico_wire::{
    Frame, Op,
    frame::{ConvKind, Flags},
    ids::{ConvId, ConvSeq, GroupId, UserId},
    message::history::Revoke,
};

/// A withdrawal whose target is being looked at.
#[derive(Debug)]
pub(crate) struct Withdrawal {
    target: Revoke,
    draft: Draft,
    siblings: bool,
    /// In a group: the sender may take back what others said.
    admin: bool,
}

impl Withdrawal {
    pub(crate) const fn target_seq(&self) -> ConvSeq {
        self.target.seq
    }

    pub(crate) const fn set_admin(&mut self, admin: bool) {
        self.admin = admin;
    }
}

impl Shard {
    pub(crate) fn on_withdraw(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let Some(route) = frame.route() else {
            return;
        };
        let Ok(target) = Revoke::decode(frame.body()) else {
            return self.on_malformed(id, frame, cx);
        };
        let Some(conn) = self.conn(id) else {
            return;
        };
        let (sender, device, siblings) = (conn.user, conn.device, conn.notes.siblings);
        let group = route.conv_kind == ConvKind::GROUP;
        let checked = match route.conv_kind {
            ConvKind::DIRECT if UserId(route.conv).is_valid() => Ok(()),
            ConvKind::GROUP => Ok(()),
            ConvKind::STATUS => Err(Refusal::UnsupportedConversation),
            _ => Err(Refusal::NoSuchUser),
        };
        let checked = checked
            .and_then(|()| check_msg_id(route.msg_id, cx.now.wall_us / 1_000))
            .and_then(|()| self.check_lookup(id))
            .and_then(|()| {
                if self.is_full() {
                    return Err(Refusal::Overloaded);
                }
                Ok(())
            });
        if let Err(why) = checked {
            return self.refuse(id, frame.is_request(), frame.corr(), frame.op(), why, cx);
        }
        let draft = Draft {
            sender,
            device,
            conv: match group {
                true => ConvId::Group(GroupId(route.conv)),
                false => ConvId::direct(sender, UserId(route.conv)),
            },
            epoch: 0,
            msg_id: route.msg_id,
            op: Op::Revoke as u8,
            kind: route.kind,
            flags: frame.flags().0 & Flags::SILENT.0,
            ttl_s: 0,
            body: Bytes::copy_from_slice(self.encoder.revoke(&target)),
        };
        let withdrawal = Box::new(Withdrawal {
            target,
            draft,
            siblings,
            admin: false,
        });
        let token = self.open_lookup(id, frame, Subject::Withdrawal(withdrawal));
        if group {
            let group = GroupId(route.conv);
            let ask = ShardMessage::GroupAccess {
                group,
                user: sender,
                origin: self.config.shard,
                token,
            };
            return self.post(self.group_home(group), ask, cx);
        }
        self.read_target(token, cx);
    }

    /// Looks at what stands at the place of the target.
    pub(crate) fn read_target(&mut self, token: u64, cx: &mut Turn<'_>) {
        let lookup = self.lookups.open.get(token);
        let Some(Subject::Withdrawal(withdrawal)) = lookup.map(|lookup| &lookup.subject) else {
            return;
        };
        let (conv, target) = (withdrawal.draft.conv, withdrawal.target);
        let cmd = StoreCmd::History {
            conv,
            after: ConvSeq(target.seq.0.saturating_sub(1)),
            before: ConvSeq(target.seq.0.saturating_add(1)),
            forward: false,
            limit: 1,
            bytes_max: 0,
        };
        self.submit(Purpose::Target { lookup: token }, cmd, cx);
    }

    /// The store has shown what stands at the place of the target.
    pub(crate) fn on_target(
        &mut self,
        token: u64,
        result: Result<Vec<Entry>, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let entries = match result {
            Ok(entries) => entries,
            Err(error) => return self.fail_lookup(token, Refusal::Store(error), cx),
        };
        let lookup = self.lookups.open.get(token);
        let Some(Subject::Withdrawal(withdrawal)) = lookup.map(|lookup| &lookup.subject) else {
            return;
        };
        let (target, sender) = (withdrawal.target, withdrawal.draft.sender);
        let admin = withdrawal.admin;
        let is_target = |entry: &&Entry| {
            entry.conv_seq == target.seq
                && entry.op == Op::Deliver as u8
                && (entry.sender, entry.device, entry.msg_id)
                    == (target.user, target.device, target.msg_id)
        };
        let Some(entry) = entries.iter().find(is_target) else {
            return self.fail_lookup(token, Refusal::NoSuchMessage, cx);
        };
        if entry.sender != sender && !admin {
            return self.fail_lookup(token, Refusal::NotAuthor, cx);
        }
        let cmd = StoreCmd::Redact {
            conv: entry.conv,
            conv_seq: entry.conv_seq,
        };
        self.submit(Purpose::Redact { lookup: token }, cmd, cx);
    }

    /// The body is gone: now everybody is told.
    pub(crate) fn on_redacted(
        &mut self,
        token: u64,
        result: Result<(), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        if let Err(error) = result {
            return self.fail_lookup(token, Refusal::Store(error), cx);
        }
        self.counters.bump(Counter::Withdrawn);
        if self.is_abandoned(token) {
            // Whoever asked does so again, and finds the body gone.
            self.end_lookup(token, cx);
            return;
        }
        let Some(lookup) = self.lookups.open.remove(token) else {
            return;
        };
        let Subject::Withdrawal(withdrawal) = lookup.subject else {
            return;
        };
        // It goes on counting as the same request.
        let Withdrawal {
            draft, siblings, ..
        } = *withdrawal;
        let name = (draft.sender, draft.device, draft.msg_id);
        if let Some(open) = self.open_attempt(&name) {
            self.release_request(lookup.conn, cx);
            return self.adopt_attempt(lookup.conn, lookup.corr, open, cx);
        }
        let ask = Ask {
            conn: lookup.conn,
            corr: lookup.corr,
            op: lookup.op,
            retry: true,
            siblings,
        };
        self.begin_attempt(ask, draft, cx);
    }
}
