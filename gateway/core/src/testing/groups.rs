//! What tests do with groups, in a few words each.

use super::{Outgoing, World};
use portico_wire::{
    Flags, RouteHeader,
    frame::ConvKind,
    ids::{GroupId, Seq, UserId},
    message::{
        ReceiptsGet,
        group::{Group, GroupAction, GroupCreate, GroupEdit, GroupGet, Member, Role},
    },
};

impl World {
    /// Makes a group with these members beside the client's user, and runs. What the client got is taken.
    ///
    /// # Panics
    /// If it is not made.
    pub fn make_group(&mut self, client: usize, members: &[u64]) -> u64 {
        let create = GroupCreate {
            members: members.iter().copied().map(UserId).collect(),
            title: "group",
            max_members: 1_024,
            ..GroupCreate::default()
        };
        let corr = self.create_group(client, &create);
        let got = self.run_and_take(client);
        let reply = got.iter().find(|got| got.corr() == corr);
        let reply = reply.expect("an answer");
        Group::decode(reply.body()).expect("a group").group.0
    }

    /// GROUP_CREATE under a fresh msg_id. Does not run.
    pub fn create_group(&mut self, client: usize, create: &GroupCreate<'_>) -> u32 {
        let corr = self.corr(client);
        let route = RouteHeader {
            msg_id: self.msg_id(),
            ..RouteHeader::default()
        };
        self.create_group_as(client, Flags::NONE, corr, &route, create);
        corr
    }

    pub fn create_group_as(
        &mut self,
        client: usize,
        flags: Flags,
        corr: u32,
        route: &RouteHeader,
        create: &GroupCreate<'_>,
    ) {
        let mut bytes = Vec::new();
        self.encoder
            .group_create(&mut bytes, flags, corr, route, create);
        self.write(client, &bytes);
    }

    /// An edit that relies on `epoch`. Does not run.
    pub fn edit_group(
        &mut self,
        client: usize,
        group: u64,
        epoch: u64,
        edit: &GroupEdit<'_>,
    ) -> u32 {
        let corr = self.corr(client);
        let route = RouteHeader {
            seq: Seq(epoch),
            msg_id: self.msg_id(),
            conv: group,
            conv_kind: ConvKind::GROUP,
            ..RouteHeader::default()
        };
        self.edit_group_as(client, Flags::NONE, corr, &route, edit);
        corr
    }

    pub fn edit_group_as(
        &mut self,
        client: usize,
        flags: Flags,
        corr: u32,
        route: &RouteHeader,
        edit: &GroupEdit<'_>,
    ) {
        let mut bytes = Vec::new();
        self.encoder
            .group_edit(&mut bytes, flags, corr, route, edit);
        self.write(client, &bytes);
    }

    /// An edit about members, with any epoch. Does not run.
    pub fn edit_members(
        &mut self,
        client: usize,
        group: u64,
        action: GroupAction,
        members: &[(u64, Role)],
    ) -> u32 {
        let member = |&(user, role): &(u64, Role)| Member {
            user: UserId(user),
            joined_s: 0,
            role,
        };
        let edit = GroupEdit {
            action,
            members: members.iter().map(member).collect(),
            ..GroupEdit::default()
        };
        self.edit_group(client, group, 0, &edit)
    }

    /// GROUP_GET; group 0 lists all. Does not run.
    pub fn get_group(&mut self, client: usize, group: u64, known_epoch: u64) -> u32 {
        let corr = self.corr(client);
        let get = GroupGet {
            group: GroupId(group),
            known_epoch,
        };
        let mut bytes = Vec::new();
        self.encoder.group_get(&mut bytes, corr, &get);
        self.write(client, &bytes);
        corr
    }

    /// Says something to a group. Does not run.
    pub fn tell(&mut self, client: usize, group: u64, body: &str) -> Outgoing {
        let message = Outgoing {
            conv_kind: ConvKind::GROUP,
            ..self.message(client, group, body)
        };
        self.post(client, &message);
        message
    }

    /// Asks how far the members of a group have come. Does not run.
    pub fn ask_group_receipts(&mut self, client: usize, group: u64, members: bool) -> u32 {
        let corr = self.corr(client);
        let get = ReceiptsGet {
            convs: vec![(ConvKind::GROUP, group)],
            members,
        };
        let mut bytes = Vec::new();
        self.encoder.receipts_get(&mut bytes, corr, &get);
        self.write(client, &bytes);
        corr
    }
}
