//! Which connections a user has here: a table of the first of each user, and a chain from there
//! through the connections.
//!
//! The table holds indexes and nothing else, five bytes a place: whose they are stands in the
//! connection. So a connection is put in once its user is known, and taken out before its slot is
//! emptied.

use crate::{
    conn::{Conn, NO_CONN},
    shard::Shard,
};
use hashbrown::HashTable;
use portico_wire::ids::UserId;
use rustc_hash::FxBuildHasher;
use std::hash::BuildHasher;

#[derive(Debug)]
pub(crate) struct Users {
    firsts: HashTable<u32>,
}

impl Users {
    pub(crate) fn with_capacity(users: usize) -> Self {
        Self {
            firsts: HashTable::with_capacity(users),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.firsts.len()
    }

    pub(crate) fn first(&self, user: UserId, conns: &[Conn]) -> Option<u32> {
        self.firsts
            .find(hash(user), |index| of(conns, *index) == user)
            .copied()
    }

    /// Puts a connection in front of the others of its user, and returns the one that was there.
    pub(crate) fn put_first(&mut self, index: u32, conns: &[Conn]) -> Option<u32> {
        let user = of(conns, index);
        let same = |other: &u32| of(conns, *other) == user;
        if let Some(first) = self.firsts.find_mut(hash(user), same) {
            return Some(std::mem::replace(first, index));
        }
        let hasher = |other: &u32| hash(of(conns, *other));
        self.firsts.insert_unique(hash(user), index, hasher);
        None
    }

    /// The user's first connection goes; `next` takes its place.
    pub(crate) fn drop_first(&mut self, index: u32, next: Option<u32>, conns: &[Conn]) {
        let user = of(conns, index);
        let Ok(mut entry) = self.firsts.find_entry(hash(user), |first| *first == index) else {
            return;
        };
        match next {
            Some(next) => *entry.get_mut() = next,
            None => {
                entry.remove();
            }
        }
    }

    #[cfg(feature = "testing")]
    pub(crate) fn firsts(&self) -> impl Iterator<Item = u32> + '_ {
        self.firsts.iter().copied()
    }
}

fn hash(user: UserId) -> u64 {
    FxBuildHasher.hash_one(user)
}

fn of(conns: &[Conn], index: u32) -> UserId {
    conns[index as usize].user
}

impl Shard {
    /// Puts a connection at the head of its user's chain.
    pub(crate) fn link(&mut self, index: u32) {
        self.sessions += 1;
        let next = self.users.put_first(index, &self.conns);
        self.conns[index as usize].next_of_user = next.unwrap_or(NO_CONN);
    }

    pub(crate) fn unlink(&mut self, index: u32) {
        self.sessions -= 1;
        let Conn {
            user, next_of_user, ..
        } = self.conns[index as usize];
        if self.users.first(user, &self.conns) == Some(index) {
            let next = (next_of_user != NO_CONN).then_some(next_of_user);
            return self.users.drop_first(index, next, &self.conns);
        }
        let before = self
            .chain(user)
            .find(|at| self.conns[*at as usize].next_of_user == index);
        if let Some(before) = before {
            self.conns[before as usize].next_of_user = next_of_user;
        }
    }

    /// The connections of a user, newest first. The chain may not change while it is walked.
    pub(crate) fn chain(&self, user: UserId) -> impl Iterator<Item = u32> + '_ {
        let next = |index: u32| (index != NO_CONN).then_some(index);
        std::iter::successors(self.users.first(user, &self.conns), move |index| {
            next(self.conns[*index as usize].next_of_user)
        })
    }

    /// The same as a list, for loops that change connections. Users have few devices.
    pub(crate) fn chain_list(&self, user: UserId) -> Chain {
        self.chain(user).collect()
    }

    /// Has the user a session now?
    pub(crate) fn is_here(&self, user: UserId) -> bool {
        self.users.first(user, &self.conns).is_some()
    }
}

/// A short list of connections without a heap for the usual few devices.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    few: [u32; 4],
    len: usize,
    many: Vec<u32>,
}

impl FromIterator<u32> for Chain {
    fn from_iter<T: IntoIterator<Item = u32>>(indexes: T) -> Self {
        let mut chain = Self::default();
        for index in indexes {
            if chain.len < chain.few.len() {
                chain.few[chain.len] = index;
                chain.len += 1;
            } else {
                chain.many.push(index);
            }
        }
        chain
    }
}

impl Chain {
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.few[..self.len].iter().chain(&self.many).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ShardConfig, ShardId};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Makes this a connection of the user, as a login does.
    fn begin(shard: &mut Shard, index: u32, user: u64) {
        shard.conns[index as usize].user = UserId(user);
        shard.link(index);
    }

    proptest! {
        /// Against a map of lists: whoever comes and goes, each chain is what it should be, newest
        /// first. A slot that is empty again belongs to nobody.
        #[test]
        fn chains_are_those_of_a_map(
            hint in 0..200_usize,
            steps in proptest::collection::vec((0..64_u32, 1..24_u64), 1..400),
        ) {
            let mut shard = Shard::new(ShardConfig {
                connections_hint: hint,
                ..ShardConfig::new(ShardId(0), 1)
            });
            shard.conns.resize_with(64, Conn::free);
            let mut model = BTreeMap::<u64, Vec<u32>>::new();
            for (index, user) in steps {
                let owner = shard.conns[index as usize].user;
                if owner == UserId(0) {
                    begin(&mut shard, index, user);
                    model.entry(user).or_default().insert(0, index);
                } else {
                    shard.unlink(index);
                    shard.conns[index as usize] = Conn::free();
                    let chain = model.entry(owner.0).or_default();
                    chain.retain(|other| *other != index);
                    if chain.is_empty() {
                        model.remove(&owner.0);
                    }
                }
                prop_assert_eq!(shard.users.len(), model.len());
                for user in 1..24 {
                    let chain: Vec<u32> = shard.chain(UserId(user)).collect();
                    let due = model.get(&user).cloned().unwrap_or_default();
                    prop_assert_eq!(&chain, &due);
                    let list: Vec<u32> = shard.chain_list(UserId(user)).iter().collect();
                    prop_assert_eq!(list, due);
                    prop_assert_eq!(shard.is_here(UserId(user)), !chain.is_empty());
                }
            }
        }
    }
}
