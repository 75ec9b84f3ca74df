//! What is said to a group and not kept: shown to members who are there and keep up.

use super::{GroupMessage, judge, roll::Roll};
use crate::{
    conn::Source,
    mesh::ShardMessage,
    metrics::Counter,
    outgoing::Draft,
    shard::{Shard, Turn},
};
use portico_wire::{
    Op, RouteHeader,
    encode::put_routed,
    frame::{ConvKind, Flags},
    ids::{ConvId, GroupId},
    message::ClientState,
};
use std::sync::Arc;

/// An ephemeral message and who may see it, shared by all shards that it goes to.
#[derive(Debug, PartialEq, Eq)]
pub struct Passing {
    draft: Draft,
    roll: Arc<Roll>,
}

impl Shard {
    /// At the group's home. Who may not send is not told: nothing was promised.
    pub(crate) fn spread_ephemeral(&mut self, id: GroupId, draft: Draft, cx: &mut Turn<'_>) {
        let Some(group) = self.groups.get(id) else {
            return;
        };
        if judge::send(group, draft.sender, draft.epoch).is_err() {
            return self.counters.bump(Counter::EphemeralDropped);
        }
        let passing = Arc::new(Passing {
            draft,
            roll: group.roll.clone(),
        });
        for shard in passing.roll.shards() {
            let message = GroupMessage::Passing(passing.clone());
            self.post(shard, ShardMessage::Group(message), cx);
        }
    }

    /// At the home of members. Typing is for those who look at it; nothing is for those who are behind.
    pub(crate) fn show_passing(&mut self, passing: &Passing, cx: &mut Turn<'_>) {
        let draft = &passing.draft;
        let ConvId::Group(group) = draft.conv else {
            return;
        };
        let route = RouteHeader {
            msg_id: draft.msg_id,
            conv: group.0,
            user: draft.sender,
            dev: draft.device,
            conv_kind: ConvKind::GROUP,
            kind: draft.kind,
            ttl_s: draft.ttl_s,
            ..RouteHeader::default()
        };
        let signal = draft.op == Op::Signal as u8;
        for user in passing.roll.of(self.config.shard) {
            if signal && *user == draft.sender {
                continue;
            }
            for index in self.chain_list(*user).iter() {
                let conn = &self.conns[index as usize];
                let sender = conn.user == draft.sender && conn.device == draft.device;
                let hidden = conn.state == ClientState::Background
                    || (signal && conn.state != ClientState::Foreground);
                if sender || hidden {
                    continue;
                }
                if conn.source != Source::Live || !self.has_room(conn) {
                    self.counters.bump(Counter::EphemeralDropped);
                    continue;
                }
                let id = self.id_of(index);
                let (op, body) = (draft.op, &draft.body);
                self.write(id, cx, |out, _| {
                    put_routed(out, op, Flags::EPHEMERAL, 0, 0, &route, body);
                });
                self.counters.bump(Counter::EphemeralDelivered);
            }
        }
    }
}
