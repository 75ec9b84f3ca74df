//! A group as its home knows it, and what an event makes of it.
//!
//! An event is applied in the same way when an edit is accepted and when one is found after a crash:
//! the entry in the conversation says all that the record must become.

use super::roll::Roll;
use portico_wire::{
    ids::{ConvSeq, GroupId, UserId},
    message::group::{Group as Shown, GroupAction, GroupEvent, GroupRules, Member, Role},
};
use std::sync::Arc;

/// Users who left and may still read what was said while they were in. Beyond it the oldest goes.
pub(crate) const FORMER_MAX: usize = 1_024;

/// A member's role in the upper byte, and in the others the place in the conversation from which it may
/// read. Microseconds since 1970 need 51 bits for the next centuries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing(pub(crate) u64);

impl Standing {
    const SINCE: u64 = (1 << 56) - 1;

    const fn new(role: Role, since: ConvSeq) -> Self {
        Self((role.0 as u64) << 56 | (since.0 & Self::SINCE))
    }

    pub(crate) const fn role(self) -> Role {
        Role((self.0 >> 56) as u8)
    }

    pub(crate) const fn since(self) -> ConvSeq {
        ConvSeq(self.0 & Self::SINCE)
    }
}

/// Who was in a group, and may read from the one place to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Former {
    pub(crate) user: UserId,
    pub(crate) from: ConvSeq,
    pub(crate) to: ConvSeq,
}

/// See the head of this file. 16 bytes a member, beside texts and those who left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// The place in the conversation of the event that made it what it is; 0: it does not exist.
    pub(crate) epoch: u64,
    pub(crate) created_s: u32,
    pub(crate) created_by: UserId,
    pub(crate) rules: GroupRules,
    pub(crate) max_members: u16,
    pub(crate) group_type: u8,
    pub(crate) deleted: bool,
    pub(crate) roll: Arc<Roll>,
    /// In the order of the roll.
    pub(crate) standings: Box<[Standing]>,
    pub(crate) title: Box<str>,
    pub(crate) sealed_info: Box<[u8]>,
    /// Empty: nobody joins by a code.
    pub(crate) invite: Box<str>,
    /// The oldest first.
    pub(crate) former: Vec<Former>,
}

impl Group {
    /// What a conversation is before its first event.
    pub(crate) fn none(shards: u16) -> Self {
        Self {
            epoch: 0,
            created_s: 0,
            created_by: UserId(0),
            rules: GroupRules::NONE,
            max_members: 0,
            group_type: 0,
            deleted: false,
            roll: Roll::new([], shards),
            standings: Box::default(),
            title: Box::default(),
            sealed_info: Box::default(),
            invite: Box::default(),
            former: Vec::new(),
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.epoch != 0 && !self.deleted
    }

    pub(crate) fn standing(&self, user: UserId) -> Option<Standing> {
        let at = self.roll.place(user)?;
        self.standings.get(at).copied()
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = (UserId, Standing)> + '_ {
        let users = self.roll.users().iter().copied();
        users.zip(self.standings.iter().copied())
    }

    pub(crate) fn set_members(&mut self, members: &[(UserId, Role, ConvSeq)], shards: u16) {
        let roll = Roll::new(members.iter().map(|(user, ..)| *user), shards);
        let mut standings = vec![Standing(0); roll.users().len()];
        for (user, role, since) in members {
            if let Some(at) = roll.place(*user) {
                standings[at] = Standing::new(*role, *since);
            }
        }
        self.roll = roll;
        self.standings = standings.into();
    }

    pub(crate) fn is_admin(&self, user: UserId) -> bool {
        self.standing(user)
            .is_some_and(|standing| standing.role() >= Role::ADMIN)
    }

    /// What this user may read: from joining on, up to removal.
    pub(crate) fn readable(&self, user: UserId) -> Option<(ConvSeq, ConvSeq)> {
        if let Some(standing) = self.standing(user) {
            return Some((standing.since(), ConvSeq(u64::MAX)));
        }
        let left = self.former.iter().rev().find(|left| left.user == user)?;
        Some((left.from, left.to))
    }

    /// Who gets the entry at this place: those who were members then.
    pub(crate) fn roll_at(&self, at: ConvSeq, shards: u16) -> Arc<Roll> {
        let members = self
            .members()
            .filter(|(_, standing)| standing.since() <= at);
        let members = members.map(|(user, _)| user);
        let former = self.former.iter();
        let former = former.filter(|left| left.from <= at && at <= left.to);
        Roll::new(members.chain(former.map(|left| left.user)), shards)
    }

    /// The group after an event at this place. `invite` is the code that SET_INVITE gives out.
    pub(crate) fn after(
        &self,
        actor: UserId,
        at: ConvSeq,
        event: &GroupEvent<'_>,
        invite: &str,
        shards: u16,
    ) -> Self {
        let mut next = self.clone();
        next.epoch = at.0;
        let mut members: Vec<(UserId, Role, ConvSeq)> = self
            .members()
            .map(|(user, standing)| (user, standing.role(), standing.since()))
            .collect();
        match event.action {
            GroupAction::CREATE => {
                next.created_s = (at.0 / 1_000_000) as u32;
                next.created_by = actor;
                next.rules = event.rules;
                next.max_members = event.max_members;
                next.group_type = event.group_type;
                members = event.members.iter().map(|m| (m.user, m.role, at)).collect();
            }
            GroupAction::ADD | GroupAction::JOIN => {
                members.extend(event.members.iter().map(|m| (m.user, m.role, at)));
                next.former
                    .retain(|left| !event.members.iter().any(|m| m.user == left.user));
            }
            GroupAction::REMOVE | GroupAction::LEAVE => {
                let goes = |user| event.members.iter().any(|m| m.user == user);
                next.part_with(&members, at, goes);
                members.retain(|(user, ..)| !goes(*user));
            }
            GroupAction::SET_ROLE => {
                for (user, role, _) in &mut members {
                    if let Some(named) = event.members.iter().find(|m| m.user == *user) {
                        *role = named.role;
                    }
                }
            }
            GroupAction::SET_RULES => next.rules = event.rules,
            GroupAction::SET_INVITE => next.invite = invite.into(),
            GroupAction::DELETE => {
                next.part_with(&members, at, |_| true);
                members.clear();
                next.deleted = true;
                next.title = Box::default();
                next.sealed_info = Box::default();
                next.invite = Box::default();
            }
            // SET_INFO, and what a later version may have written.
            _ => {}
        }
        if let Some(title) = event.title {
            next.title = title.into();
        }
        if let Some(info) = event.sealed_info {
            next.sealed_info = info.into();
        }
        next.set_members(&members, shards);
        next
    }

    fn part_with(
        &mut self,
        members: &[(UserId, Role, ConvSeq)],
        at: ConvSeq,
        goes: impl Fn(UserId) -> bool,
    ) {
        for (user, _, from) in members.iter().filter(|(user, ..)| goes(*user)) {
            self.former.push(Former {
                user: *user,
                from: *from,
                to: at,
            });
        }
        let over = self.former.len().saturating_sub(FORMER_MAX);
        self.former.drain(..over);
    }

    /// The group as this user sees it: its members unless it knows them, the invite code if it may.
    pub(crate) fn shown_to(&self, id: GroupId, user: UserId, members: bool) -> Shown<'_> {
        let Some(standing) = self.standing(user) else {
            // Who is no longer a member learns that the edit was made, and no more.
            return Shown {
                group: id,
                epoch: self.epoch,
                ..Shown::default()
            };
        };
        let admin = standing.role() >= Role::ADMIN && !self.invite.is_empty();
        Shown {
            group: id,
            epoch: self.epoch,
            members: members.then(|| self.members().map(shown_member).collect()),
            title: &self.title,
            sealed_info: &self.sealed_info,
            rules: self.rules,
            created_s: self.created_s,
            created_by: self.created_by,
            max_members: self.max_members,
            group_type: self.group_type,
            invite: admin.then_some(&self.invite),
        }
    }

    /// About the memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.roll.bytes()
            + size_of_val(&*self.standings)
            + self.title.len()
            + self.sealed_info.len()
            + self.invite.len()
            + self.former.capacity() * size_of::<Former>()
    }
}

fn shown_member((user, standing): (UserId, Standing)) -> Member {
    Member {
        user,
        joined_s: (standing.since().0 / 1_000_000) as u32,
        role: standing.role(),
    }
}
