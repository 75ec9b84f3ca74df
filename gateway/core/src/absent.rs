//! Devices that have left and had everything: they come back without a read of the store.
//!
//! When a session ends whose device has acknowledged all that its inbox holds, the shard remembers
//! where the device stands. It forgets that as soon as anything more comes to the inbox, or may have
//! come. So what is in this table is true at any time, and a device that is found here, and says the
//! same of itself, is up to date: the answers of the store to both questions of a login are known.
//!
//! # Invariants
//! - A device is here only while it has no session, and while the store holds nothing for it beyond
//!   `cursor` that is settled. (What is not settled is shown when its turn in the lane comes.)
//! - `siblings` is true if the user has any other device.
//! - The memory is bounded: a table that grows by doubling up to a maximum, in sets of eight places.
//!   In a full set the oldest is forgotten. That costs its device a read, and nothing else.
//!
//! Nothing here outlives the process. The inbox has one writer, the shard, so that nobody else can
//! make it untrue.

use crate::{home::spread, shard::Shard};
use portico_wire::ids::{DeviceId, Seq, UserId};

/// Places that one user's devices may take, and share with other users.
const WAYS: usize = 8;
/// Sets of the smallest table.
const SETS_MIN: usize = 64;

/// What is known of a device that is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// `UserId(0)`: the place is free.
    pub(crate) user: UserId,
    /// What it has acknowledged, which is in the store or on its way there.
    pub(crate) cursor: Seq,
    pub(crate) device: DeviceId,
    pub(crate) siblings: bool,
}

const FREE: Known = Known {
    user: UserId(0),
    cursor: Seq(0),
    device: DeviceId(0),
    siblings: false,
};

const _: () = assert!(
    size_of::<Known>() <= 24,
    "a million clients may be away for a moment"
);

#[derive(Debug)]
pub(crate) struct Absent {
    /// In a set the oldest comes first, free places last.
    sets: Vec<[Known; WAYS]>,
    sets_max: usize,
    len: usize,
}

impl Absent {
    /// For about so many devices; 0 remembers none.
    pub(crate) const fn new(devices_max: usize) -> Self {
        Self {
            sets: Vec::new(),
            sets_max: devices_max.div_ceil(WAYS),
            len: 0,
        }
    }

    pub(crate) fn remember(&mut self, known: Known) {
        // Beyond that some sets are full while most have room.
        if self.len >= self.sets.len() * WAYS * 3 / 8 && self.sets.len() < self.sets_max {
            self.resize((self.sets.len() * 2).max(SETS_MIN));
        }
        self.put(known);
    }

    fn put(&mut self, known: Known) {
        let Some(set) = self.set(known.user) else {
            return;
        };
        match set.iter().position(|place| place.user == FREE.user) {
            Some(free) => {
                set[free] = known;
                self.len += 1;
            }
            None => {
                set.rotate_left(1);
                set[WAYS - 1] = known;
            }
        }
    }

    fn resize(&mut self, sets: usize) {
        let new = vec![[FREE; WAYS]; sets.min(self.sets_max)];
        let old = std::mem::replace(&mut self.sets, new);
        self.len = 0;
        for known in old.into_iter().flatten() {
            if known.user != FREE.user {
                self.put(known);
            }
        }
    }

    pub(crate) fn find(&self, user: UserId, device: DeviceId) -> Option<Known> {
        let set = self.sets.get(self.set_index(user))?;
        set.iter()
            .find(|known| known.user == user && known.device == device)
            .copied()
    }

    /// A device begins a session: it is no longer away, and the user's others have a sibling.
    pub(crate) fn take(&mut self, user: UserId, device: DeviceId) -> Option<Known> {
        let found = self.find(user, device);
        let mut left = 0;
        if let Some(set) = self.set(user) {
            left = retain(set, |known| known.user != user || known.device != device);
            for known in set.iter_mut().filter(|known| known.user == user) {
                known.siblings = true;
            }
        }
        self.len -= left;
        found
    }

    /// Something came to the inbox of this user, or may have.
    pub(crate) fn forget(&mut self, user: UserId) {
        if self.len == 0 {
            return;
        }
        if let Some(set) = self.set(user) {
            self.len -= retain(set, |known| known.user != user);
        }
    }

    /// Gives memory back when most have returned.
    pub(crate) fn trim(&mut self) {
        let places = self.sets.len() * WAYS;
        if self.len == 0 {
            self.sets = Vec::new();
        } else if self.len < places / 16 && self.sets.len() > SETS_MIN {
            self.resize((places / 4 / WAYS).max(SETS_MIN));
        }
    }

    fn set_index(&self, user: UserId) -> usize {
        // By the upper bits: the users of a shard have the lower ones in common. The upper half of
        // the product is below `sets.len()`.
        ((u128::from(spread(user.0)) * self.sets.len() as u128) >> 64) as usize
    }

    fn set(&mut self, user: UserId) -> Option<&mut [Known; WAYS]> {
        let index = self.set_index(user);
        self.sets.get_mut(index)
    }

    #[cfg(feature = "testing")]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Known> {
        let all = self.sets.iter().flatten();
        all.filter(|known| known.user != FREE.user)
    }

    #[cfg(feature = "testing")]
    pub(crate) const fn len(&self) -> usize {
        self.len
    }
}

/// Keeps the order of what stays, and moves the free places to the end. Says how many left.
fn retain(set: &mut [Known; WAYS], stays: impl Fn(&Known) -> bool) -> usize {
    let mut kept = 0;
    let mut left = 0;
    for at in 0..WAYS {
        let known = std::mem::replace(&mut set[at], FREE);
        if known.user == FREE.user {
            continue;
        }
        if stays(&known) {
            set[kept] = known;
            kept += 1;
        } else {
            left += 1;
        }
    }
    left
}

impl Shard {
    /// A session ends. If its device has everything, that is worth knowing when it comes back.
    pub(crate) fn remember(&mut self, index: u32) {
        if let Some(known) = self.known_of(index) {
            let siblings = known.siblings || self.is_here(known.user);
            self.absent.remember(Known { siblings, ..known });
        }
    }

    /// What is known of a device that is away, or whose last connection has not ended yet.
    pub(crate) fn known(&self, user: UserId, device: DeviceId) -> Option<Known> {
        self.absent.find(user, device).or_else(|| {
            let mut known = self.chain(user).filter_map(|index| self.known_of(index));
            known.find(|known| known.device == device)
        })
    }

    fn known_of(&self, index: u32) -> Option<Known> {
        let conn = &self.conns[index as usize];
        conn.has_everything().then_some(Known {
            user: conn.user,
            cursor: conn.acked,
            device: conn.device,
            siblings: conn.notes.siblings,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn known(user: u64, device: u16, cursor: u64) -> Known {
        Known {
            user: UserId(user),
            cursor: Seq(cursor),
            device: DeviceId(device),
            siblings: false,
        }
    }

    #[test]
    fn a_full_set_forgets_the_oldest() {
        let mut absent = Absent::new(WAYS);
        // One set holds them all.
        for user in 1..=WAYS as u64 + 2 {
            absent.remember(known(user, 1, user));
        }
        assert_eq!(absent.len, WAYS);
        assert_eq!(absent.find(UserId(1), DeviceId(1)), None);
        assert_eq!(absent.find(UserId(2), DeviceId(1)), None);
        assert_eq!(absent.find(UserId(3), DeviceId(1)), Some(known(3, 1, 3)));
        absent.forget(UserId(5));
        absent.remember(known(20, 1, 0));
        assert!(absent.find(UserId(3), DeviceId(1)).is_some());
        absent.remember(known(21, 1, 0));
        assert!(absent.find(UserId(3), DeviceId(1)).is_none());
    }

    #[test]
    fn none_are_remembered_when_none_may_be() {
        let mut absent = Absent::new(0);
        absent.remember(known(1, 1, 1));
        absent.forget(UserId(1));
        assert_eq!(absent.take(UserId(1), DeviceId(1)), None);
        assert_eq!(absent.sets.capacity(), 0);
    }

    #[test]
    fn it_grows_with_those_who_leave_and_shrinks_with_those_who_return() {
        let mut absent = Absent::new(65_536);
        let all = 20_000;
        for user in 1..=all {
            absent.remember(known(user, 1, user));
        }
        let places = absent.sets.len() * WAYS;
        assert!((40_000..=65_536).contains(&places), "{places}");
        assert!(absent.len > 19_800, "{} are remembered", absent.len);
        for user in 1..=all - 200 {
            absent.take(UserId(user), DeviceId(1));
            if user % 1_000 == 0 {
                absent.trim();
            }
        }
        absent.trim();
        assert!(absent.sets.len() <= 4 * SETS_MIN);
        assert!(absent.len > 190, "{} are left", absent.len);
        for user in all - 200..=all {
            absent.forget(UserId(user));
        }
        absent.trim();
        assert_eq!((absent.len, absent.sets.capacity()), (0, 0));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Remember(u64, u16),
        Take(u64, u16),
        Forget(u64),
        Trim,
    }

    fn step() -> impl Strategy<Value = Step> {
        let user = 1..40_u64;
        prop_oneof![
            4 => (user.clone(), 1..4_u16).prop_map(|(user, device)| Step::Remember(user, device)),
            2 => (user.clone(), 1..4_u16).prop_map(|(user, device)| Step::Take(user, device)),
            1 => user.prop_map(Step::Forget),
            1 => Just(Step::Trim),
        ]
    }

    proptest! {
        /// Against a map without bounds: what is found is what was remembered last, and what was
        /// taken or forgotten is not found.
        #[test]
        fn it_never_knows_what_is_not_so(
            max in 0..64_usize,
            steps in proptest::collection::vec(step(), 1..200),
        ) {
            let (mut absent, mut model) = (Absent::new(max), BTreeMap::new());
            for (at, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Remember(user, device) => {
                        // As the shard does it: the device had a session until now.
                        absent.take(UserId(user), DeviceId(device));
                        absent.remember(known(user, device, at as u64));
                        model.insert((user, device), at as u64);
                    }
                    Step::Take(user, device) => {
                        let took = absent.take(UserId(user), DeviceId(device));
                        let due = model.remove(&(user, device));
                        prop_assert!(took.is_none() || took.map(|known| known.cursor.0) == due);
                        let others = absent.sets.iter().flatten();
                        let mut others = others.filter(|known| known.user == UserId(user));
                        prop_assert!(others.all(|known| known.siblings));
                    }
                    Step::Forget(user) => {
                        absent.forget(UserId(user));
                        model.retain(|(other, _), _| *other != user);
                    }
                    Step::Trim => absent.trim(),
                }
                let all = absent.sets.iter().flatten();
                let all: Vec<_> = all.filter(|known| known.user != FREE.user).collect();
                prop_assert_eq!(all.len(), absent.len);
                for known in all {
                    let due = model.get(&(known.user.0, known.device.0));
                    prop_assert_eq!(due, Some(&known.cursor.0));
                }
            }
        }
    }
}
