//! The account of one-to-many: a counter per group, and what each member has of it.
//!
//! A message counts once per member, so that sent, accepted and delivered compare. Late and repeated
//! copies are told apart as in [`super::counted`]. Places in conversations and receipts are not
//! checked here: systems differ in whether a group has one conversation or as many as members.

use super::{
    Counts, Judgement,
    window::{Step, Window},
};
use crate::{fleet::MessageName, payload::Payload, plan::Groups};

/// Messages of a group whose times are kept for their answers; those of older ones are not timed.
const RECENT: usize = 16;

#[derive(Clone, Copy, Debug, Default)]
struct Group {
    /// Of the next message.
    next_counter: u32,
    /// When the last messages were due, by counter.
    recent: [u64; RECENT],
}

#[derive(Debug)]
pub(super) struct GroupCounts {
    layout: Groups,
    groups: Vec<Group>,
    /// By connection; those of senders stay empty.
    members: Vec<Window>,
}

impl GroupCounts {
    pub(super) fn new(layout: Groups, users: u32) -> Self {
        Self {
            layout,
            groups: vec![Group::default(); layout.count as usize],
            members: vec![Window::default(); users as usize],
        }
    }

    pub(super) const fn members(&self) -> u32 {
        self.layout.members
    }

    pub(super) fn next_counter(&self, group: u32) -> Option<u32> {
        let next = self.groups[group as usize].next_counter;
        Some(next).filter(|counter| *counter < u32::MAX)
    }

    /// Returns how many deliveries it should have.
    pub(super) fn sent(&mut self, payload: &Payload) -> u64 {
        let group = &mut self.groups[payload.flow as usize];
        group.next_counter = payload.counter + 1;
        group.recent[payload.counter as usize % RECENT] = payload.intended_us;
        u64::from(self.layout.members)
    }

    /// Returns when the message was due, if that is still known.
    pub(super) fn accepted(
        &self,
        name: MessageName,
        copies: u64,
        duplicate: bool,
        counts: &mut Counts,
    ) -> Option<u64> {
        let group = self.groups.get(name.flow as usize)?;
        let behind = group.next_counter.checked_sub(name.counter + 1)?;
        counts.accepted += copies;
        counts.accepted_before += if duplicate { copies } else { 0 };
        let is_recent = (behind as usize) < RECENT;
        is_recent.then(|| group.recent[name.counter as usize % RECENT])
    }

    pub(super) fn arrived(
        &mut self,
        payload: &Payload,
        member: u32,
        counts: &mut Counts,
    ) -> Judgement {
        let known = self.groups.get(payload.flow as usize);
        let sent = known.is_some_and(|group| payload.counter < group.next_counter);
        let Some(window) = self.members.get_mut(member as usize).filter(|_| sent) else {
            return Judgement::Invented;
        };
        match window.arrive(payload.counter) {
            Step::Again => return Judgement::Again,
            Step::Late => counts.reordered += 1,
            Step::Ahead => {}
        }
        Judgement::First
    }

    pub(super) fn bytes(&self) -> usize {
        self.groups.capacity() * size_of::<Group>() + self.members.capacity() * size_of::<Window>()
    }
}
