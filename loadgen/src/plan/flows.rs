//! Who sends to whom within one worker's slice of users.
//!
//! Partners and groups stay within the slice, so a worker sees both ends of each of its flows and
//! verifies them without a lock. The gateway places users by a hash, so this does not favour any
//! core.

use super::{Crowds, Mixed, Plan, WRITERS};
use crate::{fleet::Audience, random::Random};
use portico_wire::ids::UserId;
use std::{ops::Range, rc::Rc};

/// Groups of one sender and its members, one after the other: connection `n * (members + 1)` sends
/// to group `n`, and the connections after it are its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Groups {
    pub count: u32,
    pub members: u32,
}

impl Groups {
    pub(crate) const fn sender_of(self, group: u32) -> u32 {
        group * (self.members + 1)
    }

    pub(crate) const fn members_of(self, group: u32) -> Range<u32> {
        let first = self.sender_of(group) + 1;
        first..first + self.members
    }

    /// The group that a member is in.
    pub(crate) const fn group_of(self, conn: u32) -> u32 {
        conn / (self.members + 1)
    }

    /// The message to a group of which `wire` names one member's copy.
    pub(crate) const fn name(self, wire: crate::fleet::MessageName) -> crate::fleet::MessageName {
        crate::fleet::MessageName {
            flow: self.group_of(wire.flow),
            counter: wire.counter,
        }
    }
}

/// The flows of a slice: from each sender to each of its partners, or to its group.
#[derive(Clone, Debug)]
pub(crate) struct Flows {
    first_user: u64,
    users: u32,
    partners: u32,
    /// Recipient of flow `n`, as an index of the slice; its sender is `n / partners`. Empty with
    /// groups.
    recipients: Vec<u32>,
    /// The order in which senders take their turns. Who writes more often stands here more often.
    senders: Vec<u32>,
    groups: Option<Groups>,
    /// With groups of the gateway's the turns name flows, not senders.
    crowds: Option<Rc<Crowds>>,
}

impl Flows {
    /// `users` users from `first_user` on; at least 2, or one whole group.
    pub(crate) fn of(plan: &Plan, first_user: u64, users: u32) -> Self {
        if let Some(groups) = &plan.groups {
            let seed = plan.seed ^ first_user.rotate_left(32);
            let crowds = Crowds::of(groups, users, seed);
            return Self::to_crowds(first_user, users, crowds, seed);
        }
        match plan.fanout {
            Some(fanout) => Self::to_groups(first_user, users, fanout.members),
            None => {
                let weights = plan.mixed.as_ref().map_or(&[][..], |mixed| &mixed.writers);
                let flows =
                    Self::between_users(first_user, users, plan.partners, weights, plan.seed);
                match plan.hold {
                    Some(hold) => flows.written_by(share_of(hold.active, plan.connections, users)),
                    None => flows,
                }
            }
        }
    }

    /// `weights` are shares of the users with how often they write; empty: all alike.
    pub(crate) fn between_users(
        first_user: u64,
        users: u32,
        partners: u32,
        weights: &[(f64, u32)],
        seed: u64,
    ) -> Self {
        let mut random = Random::new(seed ^ first_user.rotate_left(32));
        let partners = partners.clamp(1, users - 1);
        let mut recipients = Vec::with_capacity(users as usize * partners as usize);
        for sender in 0..users {
            let first = recipients.len();
            let pair = sender ^ 1;
            // The last of an odd number has no pair and writes to the first.
            recipients.push(if pair < users { pair } else { 0 });
            while recipients.len() - first < partners as usize {
                let drawn = random.below(users);
                if drawn != sender && !recipients[first..].contains(&drawn) {
                    recipients.push(drawn);
                }
            }
        }
        let mut order: Vec<u32> = (0..users).collect();
        random.shuffle(&mut order);
        let mut senders = order.clone();
        if !weights.is_empty() {
            senders.clear();
            for (place, sender) in order.iter().enumerate() {
                let weight = weight_of(weights, place as f64 / f64::from(users));
                senders.extend((0..weight).map(|_| *sender));
            }
            random.shuffle(&mut senders);
        }
        Self {
            first_user,
            users,
            partners,
            recipients,
            senders,
            groups: None,
            crowds: None,
        }
    }

    /// The first so many users write; the others listen.
    fn written_by(mut self, active: u32) -> Self {
        self.senders.retain(|sender| *sender < active);
        self
    }

    fn to_groups(first_user: u64, users: u32, members: u32) -> Self {
        let groups = Groups {
            count: users / (members + 1),
            members,
        };
        Self {
            first_user,
            users,
            partners: 1,
            recipients: Vec::new(),
            senders: (0..groups.count)
                .map(|group| groups.sender_of(group))
                .collect(),
            groups: Some(groups),
            crowds: None,
        }
    }

    fn to_crowds(first_user: u64, users: u32, crowds: Crowds, seed: u64) -> Self {
        let mut senders: Vec<u32> = (0..crowds.len() * WRITERS).collect();
        Random::new(seed).shuffle(&mut senders);
        Self {
            first_user,
            users,
            partners: 1,
            recipients: Vec::new(),
            senders,
            groups: None,
            crowds: Some(Rc::new(crowds)),
        }
    }

    pub(crate) const fn crowds(&self) -> Option<&Rc<Crowds>> {
        self.crowds.as_ref()
    }

    pub(crate) const fn users(&self) -> u32 {
        self.users
    }

    pub(crate) const fn groups(&self) -> Option<Groups> {
        self.groups
    }

    pub(crate) fn len(&self) -> usize {
        match (self.groups, &self.crowds) {
            (Some(groups), _) => groups.count as usize,
            (None, Some(_)) => self.senders.len(),
            (None, None) => self.recipients.len(),
        }
    }

    /// Turns until every sender had as many as it has in one round.
    pub(crate) fn turns_per_round(&self) -> u64 {
        self.senders.len() as u64
    }

    /// The flow of turn `n`: every sender takes its turns of a round before the next round begins,
    /// and changes its partner from one round to the next.
    pub(crate) fn of_turn(&self, number: u64) -> u32 {
        let round = self.turns_per_round();
        let sender = self.senders[(number % round) as usize];
        if let Some(groups) = self.groups {
            return groups.group_of(sender);
        }
        if self.crowds.is_some() {
            return sender;
        }
        let partner = (number / round % u64::from(self.partners)) as u32;
        sender * self.partners + partner
    }

    pub(crate) fn sender(&self, flow: u32) -> u32 {
        match (self.groups, &self.crowds) {
            (Some(groups), _) => groups.sender_of(flow),
            (None, Some(crowds)) => crowds.writer(flow),
            (None, None) => flow / self.partners,
        }
    }

    /// Of a flow between two users.
    pub(crate) fn recipient(&self, flow: u32) -> u32 {
        self.recipients[flow as usize]
    }

    pub(crate) fn audience(&self, flow: u32) -> Audience {
        match (self.groups, &self.crowds) {
            (Some(_), _) => Audience::Group(flow),
            (None, Some(_)) => Audience::Crowd(flow / WRITERS),
            (None, None) => Audience::User(self.user(self.recipient(flow))),
        }
    }

    /// The flow from one user of the slice to another.
    pub(crate) fn between(&self, sender: u32, recipient: UserId) -> Option<u32> {
        let wanted = self.index_of(recipient)?;
        let first = sender as usize * self.partners as usize;
        let own = self.recipients.get(first..first + self.partners as usize)?;
        let at = own.iter().position(|recipient| *recipient == wanted)?;
        Some((first + at) as u32)
    }

    /// The flow that answers another.
    pub(crate) fn back(&self, flow: u32) -> Option<u32> {
        let sender = self.user(self.sender(flow));
        self.between(*self.recipients.get(flow as usize)?, sender)
    }

    pub(crate) fn user(&self, index: u32) -> UserId {
        UserId(self.first_user + u64::from(index))
    }

    pub(crate) fn index_of(&self, user: UserId) -> Option<u32> {
        let index = u32::try_from(user.0.checked_sub(self.first_user)?).ok()?;
        (index < self.users).then_some(index)
    }

    /// Of the tables here.
    pub(crate) fn bytes(&self) -> usize {
        let crowds = self.crowds.as_ref().map_or(0, |crowds| crowds.bytes());
        4 * (self.recipients.capacity() + self.senders.capacity()) + crowds
    }
}

/// Of `active` of `all` users, how many are in a slice of so many: whole pairs, at least one.
fn share_of(active: u32, all: u32, users: u32) -> u32 {
    let share = (u64::from(active) * u64::from(users)).div_ceil(u64::from(all).max(1));
    (share as u32).next_multiple_of(2).clamp(2, users.max(2))
}

/// The weight of the user at this place of all, 0 to 1.
fn weight_of(weights: &[(f64, u32)], place: f64) -> u32 {
    let total: f64 = weights.iter().map(|(share, _)| share).sum();
    let mut left = place * total;
    for (share, weight) in weights {
        left -= share;
        if left < 0.0 {
            return *weight;
        }
    }
    weights.last().map_or(1, |(_, weight)| *weight)
}

impl Mixed {
    /// Whether this message is answered: fixed by the seed.
    pub(crate) fn answers(&self, seed: u64, flow: u32, counter: u32) -> bool {
        let name = u64::from(flow) << 32 | u64::from(counter);
        let drawn = Random::new(seed.rotate_left(17) ^ name).next();
        crate::random::unit(drawn) < self.answers
    }

    /// How long the answer to it is thought about.
    pub(crate) fn think_us(&self, seed: u64, flow: u32, counter: u32) -> u64 {
        let name = u64::from(flow) << 32 | u64::from(counter);
        let drawn = Random::new(seed.rotate_left(29) ^ name).next();
        (crate::random::unit(drawn) * self.think.as_micros() as f64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::MessageName;

    fn alike(first_user: u64, users: u32, partners: u32, seed: u64) -> Flows {
        Flows::between_users(first_user, users, partners, &[], seed)
    }

    #[test]
    fn partners_are_distinct_and_never_oneself() {
        for users in [2, 3, 7, 50] {
            let flows = alike(1_000, users, 4, 9);
            let partners = 4.min(users as usize - 1);
            assert_eq!(flows.len(), users as usize * partners);
            for sender in 0..users {
                let first = sender as usize * partners;
                let mut own = flows.recipients[first..first + partners].to_vec();
                own.sort_unstable();
                own.dedup();
                assert_eq!(own.len(), partners);
                assert!(!own.contains(&sender));
            }
        }
    }

    #[test]
    fn of_held_users_few_write_and_they_in_pairs() {
        let mut plan = Plan::named("hold").expect("built in");
        plan.connections = 1_000;
        plan.hold.iter_mut().for_each(|hold| hold.active = 10);
        let writers = |users| {
            let flows = Flows::of(&plan, 1, users);
            let turns = 0..flows.turns_per_round();
            let mut writers: Vec<u32> = turns
                .map(|turn| flows.sender(flows.of_turn(turn)))
                .collect();
            writers.sort_unstable();
            writers
        };
        assert_eq!(writers(1_000), (0..10).collect::<Vec<_>>());
        assert_eq!(writers(500), (0..6).collect::<Vec<_>>());
        assert_eq!(writers(2), [0, 1]);
        // The engine of its own has a plan of the active ones alone.
        plan.connections = 10;
        let flows = Flows::of(&plan, 1, 10);
        assert_eq!(flows.turns_per_round(), 10);
    }

    #[test]
    fn every_flow_is_used_equally_often() {
        let flows = alike(1, 10, 3, 4);
        let mut used = vec![0; flows.len()];
        (0..60).for_each(|number| used[flows.of_turn(number) as usize] += 1);
        assert_eq!(used, vec![2; 30]);
    }

    #[test]
    fn who_has_more_weight_writes_more_often() {
        let flows = Flows::between_users(1, 10, 1, &[(0.2, 5), (0.8, 1)], 4);
        assert_eq!(flows.turns_per_round(), 2 * 5 + 8);
        let mut used = vec![0; 10];
        (0..18).for_each(|number| used[flows.sender(flows.of_turn(number)) as usize] += 1);
        used.sort_unstable();
        assert_eq!(used, [1, 1, 1, 1, 1, 1, 1, 1, 5, 5]);
    }

    #[test]
    fn a_flow_is_found_by_its_ends() {
        let flows = alike(500, 10, 3, 4);
        for flow in 0..flows.len() as u32 {
            let recipient = flows.user(flows.recipient(flow));
            assert_eq!(flows.between(flows.sender(flow), recipient), Some(flow));
        }
        assert_eq!(flows.between(3, UserId(499)), None);
        assert_eq!(flows.between(3, UserId(503)), None);
        assert_eq!(flows.between(3, UserId(510)), None);
    }

    #[test]
    fn pairs_can_answer() {
        let flows = alike(500, 10, 1, 4);
        for flow in 0..10 {
            let back = flows.back(flow).expect("a pair");
            assert_eq!(flows.sender(back), flows.recipient(flow));
            assert_eq!(flows.back(back), Some(flow));
        }
    }

    #[test]
    fn groups_lie_one_after_the_other() {
        let flows = Flows::to_groups(100, 14, 6);
        let groups = flows.groups().expect("it has groups");
        assert_eq!((flows.len(), groups.count), (2, 2));
        assert_eq!(
            (flows.of_turn(0), flows.of_turn(1), flows.of_turn(2)),
            (0, 1, 0)
        );
        assert_eq!((flows.sender(0), flows.sender(1)), (0, 7));
        assert_eq!(groups.members_of(1), 8..14);
        assert!((8..14).all(|member| groups.group_of(member) == 1));
        assert_eq!(flows.audience(1), Audience::Group(1));
        let copy = MessageName {
            flow: 9,
            counter: 3,
        };
        assert_eq!(
            groups.name(copy),
            MessageName {
                flow: 1,
                counter: 3
            }
        );
    }

    #[test]
    fn a_seed_fixes_the_flows() {
        let flows = |seed| {
            let flows = Flows::between_users(1, 100, 4, &[(0.5, 3), (0.5, 1)], seed);
            (flows.recipients, flows.senders)
        };
        assert_eq!(flows(1), flows(1));
        assert_ne!(flows(1), flows(2));
    }

    #[test]
    fn answers_are_drawn_by_their_share() {
        let mut mixed = Plan::named("mixed")
            .and_then(|plan| plan.mixed)
            .expect("mixed");
        mixed.answers = 0.25;
        let answered = (0..4_000).filter(|n| mixed.answers(1, 3, *n)).count();
        assert!((850..1_150).contains(&answered), "{answered}");
        let think_us = mixed.think.as_micros() as u64;
        assert!((0..1_000).all(|n| mixed.think_us(1, 3, n) <= think_us));
        mixed.answers = 0.0;
        assert!((0..100).all(|n| !mixed.answers(1, 3, n)));
    }
}
