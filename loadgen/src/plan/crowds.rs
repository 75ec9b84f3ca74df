//! Who is in which group of the gateway's: drawn from the users of one worker's slice, so that it sees
//! all ends of each group. The gateway places users by a hash, so members are on all of its cores.

use super::GroupPlan;
use crate::random::{Random, unit};
use std::ops::Range;

/// Members of a group who write, or all of a smaller one.
pub(crate) const WRITERS: u32 = 4;
/// What a group needs to be one.
pub(crate) const SIZE_MIN: u32 = 2;

/// Groups of drawn sizes. A seat is a member's place in a group; those of a group lie together, its
/// owner's first and the others by user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Crowds {
    /// Where the seats of each group begin, and the end of the last.
    starts: Vec<u32>,
    /// Who sits there, as an index of the slice.
    seats: Vec<u32>,
}

impl Crowds {
    /// Groups among `users` users, until each is in `per_user` on average; one at least.
    pub(crate) fn of(plan: &GroupPlan, users: u32, seed: u64) -> Self {
        let mut random = Random::new(seed.rotate_left(41));
        let mut order: Vec<u32> = (0..users).collect();
        let wanted = users as usize * plan.per_user as usize;
        let mut crowds = Self {
            starts: vec![0],
            seats: Vec::with_capacity(wanted),
        };
        loop {
            let size = draw(&plan.sizes, unit(random.next())).clamp(SIZE_MIN, users.max(SIZE_MIN));
            if !crowds.is_empty() && crowds.seats.len() + size as usize > wanted {
                return crowds;
            }
            for place in 0..size {
                let other = place + random.below(users - place);
                order.swap(place as usize, other as usize);
            }
            let members = &mut order[..size as usize];
            members[1..].sort_unstable();
            crowds.seats.extend_from_slice(members);
            crowds.starts.push(crowds.seats.len() as u32);
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.starts.len() as u32 - 1
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn seats_total(&self) -> usize {
        self.seats.len()
    }

    pub(crate) fn seats_of(&self, group: u32) -> Range<u32> {
        self.starts[group as usize]..self.starts[group as usize + 1]
    }

    pub(crate) fn size(&self, group: u32) -> u32 {
        self.seats_of(group).len() as u32
    }

    /// Its members, the owner first.
    pub(crate) fn members(&self, group: u32) -> &[u32] {
        let seats = self.seats_of(group);
        &self.seats[seats.start as usize..seats.end as usize]
    }

    pub(crate) fn owner(&self, group: u32) -> u32 {
        self.members(group)[0]
    }

    /// Where a user sits in a group.
    pub(crate) fn seat(&self, group: u32, user: u32) -> Option<u32> {
        if group >= self.len() {
            return None;
        }
        let members = self.members(group);
        let first = self.starts[group as usize];
        if members[0] == user {
            return Some(first);
        }
        let at = members[1..].binary_search(&user).ok()?;
        Some(first + 1 + at as u32)
    }

    /// Who writes a flow: of the `WRITERS` flows of a group each has another writer, as far as there
    /// are members.
    pub(crate) fn writer(&self, flow: u32) -> u32 {
        let members = self.members(flow / WRITERS);
        let place = (flow % WRITERS) as usize * members.len() / WRITERS as usize;
        members[place]
    }

    pub(crate) fn bytes(&self) -> usize {
        4 * (self.starts.capacity() + self.seats.capacity())
    }
}

/// The size at this place of all, 0 to 1.
fn draw(sizes: &[(u32, f64)], place: f64) -> u32 {
    let total: f64 = sizes.iter().map(|(_, share)| share).sum();
    let mut left = place * total;
    for (size, share) in sizes {
        left -= share;
        if left < 0.0 {
            return *size;
        }
    }
    sizes.last().map_or(SIZE_MIN, |(size, _)| *size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(sizes: &[(u32, f64)], per_user: u32) -> GroupPlan {
        GroupPlan {
            sizes: sizes.to_vec(),
            per_user,
            changes: 0.0,
        }
    }

    #[test]
    fn groups_have_the_sizes_asked_for_and_distinct_members() {
        let crowds = Crowds::of(&plan(&[(8, 0.6), (32, 0.4)], 20), 100, 3);
        let sizes: Vec<u32> = (0..crowds.len()).map(|group| crowds.size(group)).collect();
        assert!(sizes.iter().all(|size| [8, 32].contains(size)), "{sizes:?}");
        assert!(sizes.contains(&8) && sizes.contains(&32));
        assert!((1_900..=2_000).contains(&crowds.seats_total()));
        for group in 0..crowds.len() {
            let mut members = crowds.members(group).to_vec();
            for (at, member) in members.iter().enumerate() {
                let seat = crowds.seat(group, *member);
                assert_eq!(seat, Some(crowds.seats_of(group).start + at as u32));
            }
            members.sort_unstable();
            members.dedup();
            assert_eq!(members.len() as u32, crowds.size(group));
            assert!(members.iter().all(|member| *member < 100));
            assert_eq!(crowds.seat(group, 100), None);
        }
        assert_eq!(crowds.seat(crowds.len(), 0), None);
    }

    #[test]
    fn a_seed_fixes_the_groups_and_few_users_have_one() {
        let sizes = plan(&[(8, 1.0)], 2);
        assert_eq!(Crowds::of(&sizes, 50, 1), Crowds::of(&sizes, 50, 1));
        assert_ne!(Crowds::of(&sizes, 50, 1), Crowds::of(&sizes, 50, 2));
        let few = Crowds::of(&plan(&[(256, 1.0)], 1), 3, 1);
        assert_eq!((few.len(), few.size(0)), (1, 3));
    }

    #[test]
    fn writers_are_members_and_as_many_as_there_can_be() {
        let crowds = Crowds::of(&plan(&[(8, 1.0)], 1), 8, 1);
        let mut writers: Vec<u32> = (0..WRITERS).map(|flow| crowds.writer(flow)).collect();
        assert_eq!(writers[0], crowds.owner(0));
        writers.sort_unstable();
        writers.dedup();
        assert_eq!(writers.len(), 4);
        let pair = Crowds::of(&plan(&[(2, 1.0)], 1), 2, 1);
        assert!((0..WRITERS).all(|flow| pair.seat(0, pair.writer(flow)).is_some()));
    }
}
