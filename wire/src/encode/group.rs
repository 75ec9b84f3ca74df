//! Writers of the operations on groups.

use super::{Encoder, put_body, put_routed, reply_flags};
use crate::{
    frame::{Flags, RouteHeader},
    generated::fb,
    message::group::{Group, GroupCreate, GroupEdit, GroupEvent, GroupGet, Member},
    op::Op,
};
use flatbuffers::{FlatBufferBuilder, Vector, WIPOffset};

impl Encoder {
    /// GROUP_CREATE: of `route` msg_id counts.
    pub fn group_create(
        &mut self,
        out: &mut Vec<u8>,
        flags: Flags,
        corr: u32,
        route: &RouteHeader,
        create: &GroupCreate<'_>,
    ) {
        let body = self.body(|b| {
            let members: Vec<u64> = create.members.iter().map(|user| user.0).collect();
            let members = Some(b.create_vector(&members));
            let some = !create.title.is_empty();
            let title = some.then(|| b.create_string(create.title));
            let some = !create.sealed_info.is_empty();
            let sealed_info = some.then(|| b.create_vector(create.sealed_info));
            fb::GroupCreate::create(
                b,
                &fb::GroupCreateArgs {
                    members,
                    title,
                    sealed_info,
                    rules: fb::GroupRules::from_bits_retain(create.rules.0),
                    max_members: create.max_members,
                    group_type: create.group_type,
                },
            )
        });
        put_routed(out, Op::GroupCreate as u8, flags, corr, 0, route, body);
    }

    /// GROUP_EDIT: of `route` the group as conv, the epoch relied on as seq, and msg_id count.
    pub fn group_edit(
        &mut self,
        out: &mut Vec<u8>,
        flags: Flags,
        corr: u32,
        route: &RouteHeader,
        edit: &GroupEdit<'_>,
    ) {
        let body = self.body(|b| {
            let some = !edit.members.is_empty();
            let members = some.then(|| members(b, &edit.members));
            let title = edit.title.map(|title| b.create_string(title));
            let sealed_info = edit.sealed_info.map(|info| b.create_vector(info));
            let invite = edit.invite.map(|code| b.create_string(code));
            fb::GroupEdit::create(
                b,
                &fb::GroupEditArgs {
                    action: fb::GroupAction(edit.action.0),
                    members,
                    title,
                    sealed_info,
                    rules: fb::GroupRules::from_bits_retain(edit.rules.0),
                    invite,
                },
            )
        });
        put_routed(out, Op::GroupEdit as u8, flags, corr, 0, route, body);
    }

    pub fn group_get(&mut self, out: &mut Vec<u8>, corr: u32, get: &GroupGet) {
        let body = self.body(|b| {
            fb::GroupGet::create(
                b,
                &fb::GroupGetArgs {
                    group: get.group.0,
                    known_epoch: get.known_epoch,
                },
            )
        });
        put_body(out, Op::GroupGet as u8, Flags::NONE, corr, 0, body);
    }

    /// GROUP; `more`: of a listing, not its last.
    pub fn group(&mut self, out: &mut Vec<u8>, corr: u32, more: bool, group: &Group<'_>) {
        let body = self.group_body(group);
        let more = if more { Flags::MORE } else { Flags::NONE };
        let flags = reply_flags(corr) | more;
        put_body(out, Op::Group as u8, flags, corr, 0, body);
    }

    /// The body of a GROUP alone.
    pub fn group_body(&mut self, group: &Group<'_>) -> &[u8] {
        self.body(|b| {
            let members = group.members.as_deref().map(|list| members(b, list));
            let some = !group.title.is_empty();
            let title = some.then(|| b.create_string(group.title));
            let some = !group.sealed_info.is_empty();
            let sealed_info = some.then(|| b.create_vector(group.sealed_info));
            let invite = group.invite.map(|code| b.create_string(code));
            fb::Group::create(
                b,
                &fb::GroupArgs {
                    group: group.group.0,
                    epoch: group.epoch,
                    members,
                    title,
                    sealed_info,
                    rules: fb::GroupRules::from_bits_retain(group.rules.0),
                    created_s: group.created_s,
                    created_by: group.created_by.0,
                    max_members: group.max_members,
                    group_type: group.group_type,
                    invite,
                },
            )
        })
    }

    /// The body of a GROUP_EVENT, as it is stored.
    pub fn group_event(&mut self, event: &GroupEvent<'_>) -> &[u8] {
        self.body(|b| {
            let some = !event.members.is_empty();
            let members = some.then(|| members(b, &event.members));
            let title = event.title.map(|title| b.create_string(title));
            let sealed_info = event.sealed_info.map(|info| b.create_vector(info));
            fb::GroupEvent::create(
                b,
                &fb::GroupEventArgs {
                    epoch: event.epoch,
                    action: fb::GroupAction(event.action.0),
                    members,
                    title,
                    sealed_info,
                    rules: fb::GroupRules::from_bits_retain(event.rules.0),
                    max_members: event.max_members,
                    group_type: event.group_type,
                    has_invite: event.has_invite,
                },
            )
        })
    }
}

fn members<'b>(
    b: &mut FlatBufferBuilder<'b>,
    list: &[Member],
) -> WIPOffset<Vector<'b, fb::Member>> {
    let list: Vec<_> = list
        .iter()
        .map(|member| fb::Member::new(member.user.0, member.joined_s, member.role.0, 0, 0))
        .collect();
    b.create_vector(&list)
}
