//! Who is in a group, by the shards that are their homes: shared by reference with every message that
//! is on its way to them.

use crate::home::{ShardId, user_home};
use portico_wire::ids::UserId;
use std::sync::Arc;

/// The members of a group at one moment. Those of one shard lie together, each part in ascending order.
#[derive(Debug, PartialEq, Eq)]
pub struct Roll {
    users: Box<[UserId]>,
    /// Where the part of each shard ends; at most 1,024 members fit into 16 bits.
    ends: Box<[u16]>,
}

impl Roll {
    pub(crate) fn new(users: impl IntoIterator<Item = UserId>, shards: u16) -> Arc<Self> {
        let mut users: Vec<UserId> = users.into_iter().collect();
        users.sort_unstable_by_key(|user| (user_home(*user, shards), *user));
        users.dedup();
        let mut ends = vec![0_u16; usize::from(shards.max(1))];
        for user in &users {
            ends[usize::from(user_home(*user, shards).0)] += 1;
        }
        let mut end = 0;
        for part in &mut ends {
            end += *part;
            *part = end;
        }
        Arc::new(Self {
            users: users.into(),
            ends: ends.into(),
        })
    }

    /// The members whose home is this shard.
    pub(crate) fn of(&self, shard: ShardId) -> &[UserId] {
        let at = usize::from(shard.0);
        let end = self.ends.get(at).map_or(0, |end| usize::from(*end));
        let start = match at {
            0 => 0,
            at => self.ends.get(at - 1).map_or(0, |end| usize::from(*end)),
        };
        self.users.get(start..end).unwrap_or_default()
    }

    /// The shards that are home to at least one member.
    pub(crate) fn shards(&self) -> impl Iterator<Item = ShardId> + '_ {
        let shards = 0..self.ends.len() as u16;
        shards
            .map(ShardId)
            .filter(|shard| !self.of(*shard).is_empty())
    }

    pub(crate) fn users(&self) -> &[UserId] {
        &self.users
    }

    /// Where a member stands in [`Self::users`].
    pub(crate) fn place(&self, user: UserId) -> Option<usize> {
        let home = user_home(user, self.ends.len() as u16);
        let part = self.of(home);
        let start = usize::from(self.ends[usize::from(home.0)]) - part.len();
        part.binary_search(&user).ok().map(|at| start + at)
    }

    pub(crate) fn bytes(&self) -> usize {
        const COUNTS: usize = 16;
        size_of::<Self>() + COUNTS + size_of_val(&*self.users) + size_of_val(&*self.ends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_is_in_the_part_of_its_home_and_nowhere_else() {
        for shards in [1, 2, 3, 7] {
            let roll = Roll::new((1..=1_024).map(UserId), shards);
            let mut seen = 0;
            for shard in (0..shards).map(ShardId) {
                for user in roll.of(shard) {
                    assert_eq!(user_home(*user, shards), shard);
                    let at = roll.place(*user).expect("a member has a place");
                    assert_eq!(roll.users()[at], *user);
                    seen += 1;
                }
            }
            assert_eq!(seen, 1_024);
            assert_eq!(roll.place(UserId(2_000)), None);
            assert!(roll.of(ShardId(shards)).is_empty());
        }
        let few = Roll::new([UserId(5), UserId(5)], 64);
        assert_eq!(few.shards().count(), 1);
        assert_eq!(few.users(), [UserId(5)]);
    }
}
