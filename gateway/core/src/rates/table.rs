//! What is known of many sources, or many users, in a fixed amount of memory.
//!
//! # Invariants
//! - The memory is fixed: none before the first entry, then that of all places, in sets of eight.
//! - In a full set the one is forgotten that has used up the smallest part of what it may. So a crowd of
//!   new names, each of which has used next to nothing, pushes out one another, never one who has used up
//!   all that was his.
//! - Which names share a set follows from a seed that nobody outside knows.

use super::{FRACTION_BITS, Pace, WAIT_US_MAX};
use crate::home::spread;

const WAYS: usize = 8;

/// Times at which nothing is owed any more, in monotonic microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Due(pub(super) [u64; 3]);

/// Of them, the last place in line that somebody was told.
const TOLD: usize = 2;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// 0: free.
    key: u64,
    pub(super) due: Due,
    /// Connections that count.
    pub(super) held: u32,
}

pub(crate) const PLACE_BYTES: usize = size_of::<Place>();

const _: () = assert!(PLACE_BYTES <= 40, "three buckets and a name");

impl Place {
    /// Takes one, or says how many microseconds to wait.
    pub(super) fn take(&mut self, which: usize, pace: &Pace, now_us: u64) -> Result<(), u64> {
        if pace.unit == 0 {
            return Ok(());
        }
        let burst_us = u64::from(pace.burst_us);
        let unit_us = pace.unit >> FRACTION_BITS;
        let owed_us = self.due.0[which].saturating_sub(now_us).min(burst_us);
        if owed_us + unit_us > burst_us {
            return Err(owed_us + unit_us - burst_us);
        }
        self.due.0[which] = now_us + owed_us + unit_us;
        Ok(())
    }

    /// The same with a place in line of one's own, in milliseconds.
    pub(super) fn take_or_wait(
        &mut self,
        which: usize,
        pace: &Pace,
        now_us: u64,
    ) -> Result<(), u32> {
        self.take(which, pace, now_us).map_err(|first_us| {
            let told_us = self.due.0[TOLD].saturating_sub(now_us);
            let mut wait_us = first_us.max(told_us + (pace.unit >> FRACTION_BITS));
            if wait_us > u64::from(WAIT_US_MAX) {
                wait_us = first_us.min(u64::from(WAIT_US_MAX));
            }
            self.due.0[TOLD] = now_us + wait_us;
            (wait_us.div_ceil(1_000) as u32).max(1)
        })
    }

    /// The greatest part, of 65,536, that it has used up of anything.
    fn used(&self, whole: &Whole, now_us: u64) -> u64 {
        let owed = self
            .due
            .0
            .iter()
            .zip(whole.bursts_us)
            .map(|(due_us, burst_us)| {
                let owed_us = due_us.saturating_sub(now_us).min(u64::from(burst_us));
                (owed_us << 16).checked_div(u64::from(burst_us))
            });
        let held = (u64::from(self.held) << 16).checked_div(u64::from(whole.held_max));
        owed.chain([held]).flatten().max().unwrap_or(0)
    }
}

/// What a name may use up; 0: without a bound.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Whole {
    pub(super) bursts_us: [u32; TOLD],
    pub(super) held_max: u32,
}

#[derive(Debug)]
pub(super) struct Table {
    sets: Vec<[Place; WAYS]>,
    sets_max: usize,
    seed: u64,
    whole: Whole,
}

impl Table {
    pub(super) fn new(places_max: usize, seed: u64, whole: Whole) -> Self {
        Self {
            sets: Vec::new(),
            sets_max: places_max.div_ceil(WAYS).max(1),
            seed,
            whole,
        }
    }

    pub(super) fn find(&mut self, key: u64) -> Option<&mut Place> {
        let index = self.index(key);
        let set = self.sets.get_mut(index)?;
        set.iter_mut().find(|place| place.key == key)
    }

    /// The place of this name, which is not 0; perhaps that of another one who had it until now.
    pub(super) fn find_or_add(&mut self, key: u64, now_us: u64) -> &mut Place {
        debug_assert_ne!(key, 0);
        if self.sets.is_empty() {
            self.sets = vec![[Place::default(); WAYS]; self.sets_max];
        }
        let index = self.index(key);
        let whole = self.whole;
        let set = &mut self.sets[index];
        let known = set.iter().position(|place| place.key == key);
        let at = known.unwrap_or_else(|| {
            let mut at = 0;
            for other in 1..WAYS {
                let free = |at: usize| set[at].key == 0;
                let used = |at: usize| set[at].used(&whole, now_us);
                if !free(at) && (free(other) || used(other) < used(at)) {
                    at = other;
                }
            }
            set[at] = Place {
                key,
                ..Place::default()
            };
            at
        });
        &mut set[at]
    }

    fn index(&self, key: u64) -> usize {
        let hash = spread(key ^ self.seed);
        // The upper half of the product is below `sets_max`.
        ((u128::from(hash) * self.sets_max as u128) >> 64) as usize
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.sets.capacity() * size_of::<[Place; WAYS]>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rates::Rate;

    fn pace() -> Pace {
        Pace::new(Rate {
            per_s: 10,
            burst: 20,
        })
    }

    #[test]
    fn a_crowd_of_names_does_not_give_a_debtor_a_new_start() {
        let pace = pace();
        let whole = Whole {
            bursts_us: [pace.burst_us, 0],
            held_max: 100,
        };
        let mut table = Table::new(64, 0x5eed, whole);
        let debtor = 77;
        while table.find_or_add(debtor, 0).take(0, &pace, 0).is_ok() {}
        let bytes = table.bytes();
        for other in 1_000..101_000 {
            let place = table.find_or_add(other, 10);
            assert!(place.take(0, &pace, 10).is_ok());
            // Fault: who only held a connection pushed out who owed.
            place.held = 50;
        }
        assert_eq!(table.bytes(), bytes, "the memory is fixed");
        let place = table.find(debtor).expect("it is still known");
        assert!(place.take(0, &pace, 10).is_err());
        // When nothing is owed any more it is one like any other.
        for other in 200_000..201_000 {
            table.find_or_add(other, 3_000_000).held = 1;
        }
        assert!(table.find(debtor).is_none());
    }

    #[test]
    fn those_who_wait_are_told_times_that_follow_each_other() {
        let (mut place, pace) = (Place::default(), pace());
        for _ in 0..20 {
            assert_eq!(place.take_or_wait(0, &pace, 1_000_000), Ok(()));
        }
        for number in 1..=50 {
            assert_eq!(place.take_or_wait(0, &pace, 1_000_000), Err(100 * number));
        }
        for number in 1..=50 {
            assert_eq!(
                place.take_or_wait(0, &pace, 1_000_000 + 100_000 * number),
                Ok(())
            );
        }
        // A long pause brings a burst, and not more.
        let later_us = 1 << 60;
        let taken = (0..100).filter(|_| place.take_or_wait(0, &pace, later_us).is_ok());
        assert_eq!(taken.count(), 20);
    }
}
