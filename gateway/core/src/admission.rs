//! How many logins a shard takes: a bounded rate, and a place in line for those above it.
//!
//! A login costs a signature check, perhaps a move to another shard and a read of the store. What
//! comes faster than the rate is refused before any of that, with the time of its own place in a
//! queue that exists in numbers only: a million clients that were refused in the same second come
//! back one after the other, at the rate at which they are taken.
//!
//! # Does not
//! Know who was told what: a client that comes back is one like any other, and is refused again if
//! others filled its place.

use crate::limits::ShardConfig;

/// What may come at once after a pause: as many as this time has places, but not less than
/// `BURST_MIN`.
const BURST_NS: u64 = 250_000_000;
const BURST_MIN: u64 = 8;
/// Nobody is told to stay away longer. When the line is longer than that it begins anew at the
/// front: then each place has been given to several, but still to equally many.
const WAIT_MAX_NS: u64 = 60_000_000_000;
/// Between two places in line where no rate is set.
const UNBOUNDED_SPACING_NS: u64 = 100_000;
/// Below this a spread is not worth a wait.
const SPREAD_MIN_MS: u64 = 500;

/// Nanoseconds of the monotonic clock throughout: a place may be shorter than a microsecond.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Between two logins at the admitted rate; 0: no bound.
    interval_ns: u64,
    /// When all logins taken so far have had their time.
    taken_ns: u64,
    /// The last place in line that somebody was told.
    told_ns: u64,
}

impl Admission {
    pub(crate) fn new(config: &ShardConfig) -> Self {
        // The rate is the gateway's; its shards share it evenly.
        let shards = u64::from(config.shards.max(1));
        let rate = u64::from(config.limits.logins_per_s);
        Self {
            interval_ns: (shards * 1_000_000_000).checked_div(rate).unwrap_or(0),
            taken_ns: 0,
            told_ns: 0,
        }
    }

    /// Takes a login, or says after how many milliseconds it may be tried again.
    pub(crate) fn admit(&mut self, now_us: u64) -> Result<(), u32> {
        if self.interval_ns == 0 {
            return Ok(());
        }
        let now_ns = now_us * 1_000;
        let burst_ns = BURST_NS.max(BURST_MIN * self.interval_ns);
        let taken_ns = self.taken_ns.max(now_ns) + self.interval_ns;
        if taken_ns > now_ns + burst_ns {
            return Err(self.defer(now_us));
        }
        self.taken_ns = taken_ns;
        Ok(())
    }

    /// The next place in line, in milliseconds from now.
    pub(crate) fn defer(&mut self, now_us: u64) -> u32 {
        let now_ns = now_us * 1_000;
        let spacing_ns = match self.interval_ns {
            0 => UNBOUNDED_SPACING_NS,
            interval_ns => interval_ns,
        };
        let front_ns = self.taken_ns.max(now_ns + BURST_NS);
        let mut place_ns = self.told_ns.max(front_ns) + spacing_ns;
        if place_ns > now_ns + WAIT_MAX_NS {
            place_ns = front_ns + spacing_ns;
        }
        self.told_ns = place_ns;
        // At most a minute.
        (place_ns - now_ns).min(WAIT_MAX_NS).div_ceil(1_000_000) as u32
    }

    /// The time in which so many sessions can be taken back, and a tenth to spare.
    pub(crate) fn spread_ms(&self, sessions: usize) -> u32 {
        let all_ns = (sessions as u64).saturating_mul(self.interval_ns);
        let spread_ms =
            (all_ns.saturating_add(all_ns / 10) / 1_000_000).min(WAIT_MAX_NS / 1_000_000);
        if spread_ms < SPREAD_MIN_MS {
            0
        } else {
            spread_ms as u32
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, ShardId};

    fn admission(logins_per_s: u32, shards: u16) -> Admission {
        let limits = Limits {
            logins_per_s,
            ..Limits::default()
        };
        Admission::new(&ShardConfig {
            limits,
            ..ShardConfig::new(ShardId(0), shards)
        })
    }

    /// How many of `count` at this time are taken.
    fn taken(admission: &mut Admission, count: usize, now_us: u64) -> usize {
        (0..count)
            .filter(|_| admission.admit(now_us).is_ok())
            .count()
    }

    #[test]
    fn the_rate_holds_over_time_and_a_pause_saves_up_one_burst() {
        // 1,000 a second and shard: 250 at once, then one a millisecond.
        let mut admission = admission(2_000, 2);
        assert_eq!(taken(&mut admission, 500, 1_000_000), 250);
        assert_eq!(taken(&mut admission, 500, 1_000_999), 0);
        assert_eq!(taken(&mut admission, 500, 1_001_000), 1);
        assert_eq!(taken(&mut admission, 500, 1_011_000), 10);
        assert_eq!(taken(&mut admission, 500, 900_000_000), 250);
        let second: usize = (0..1_000)
            .map(|ms| taken(&mut admission, 3, 900_000_000 + ms * 1_000))
            .sum();
        assert_eq!(second, 999, "the first of them is still within the burst");
    }

    #[test]
    fn zero_bounds_nothing_and_a_small_rate_takes_a_few() {
        assert_eq!(taken(&mut admission(0, 4), 100_000, 5), 100_000);
        // One login in 256 s for this shard.
        let mut slow = admission(1, 256);
        assert_eq!(taken(&mut slow, 50, 1), BURST_MIN as usize);
        assert_eq!(slow.admit(2), Err(60_000));
        assert_eq!(taken(&mut slow, 50, 256_000_001), 1);
    }

    #[test]
    fn those_who_come_when_they_were_told_are_taken() {
        let mut admission = admission(1_000, 1);
        let mut waiting = Vec::new();
        for _ in 0..20_000 {
            waiting.extend(admission.admit(0).err());
        }
        assert_eq!(waiting.len(), 19_750);
        assert!(waiting.is_sorted());
        // One a millisecond: no two are told the same time.
        assert!(waiting.windows(2).all(|pair| pair[1] == pair[0] + 1));
        for wait_ms in waiting {
            assert_eq!(admission.admit(u64::from(wait_ms) * 1_000), Ok(()));
        }
    }

    #[test]
    fn a_line_that_is_too_long_begins_anew_and_stays_even() {
        // 1,000 a second: a minute has 60,000 places.
        let mut admission = admission(1_000, 1);
        let mut told = vec![0_u32; 61];
        for _ in 0..300_000 {
            if let Err(wait_ms) = admission.admit(7) {
                assert!((1..=60_000).contains(&wait_ms));
                told[wait_ms as usize / 1_000] += 1;
            }
        }
        let even = &told[1..60];
        let (least, most) = (even.iter().min(), even.iter().max());
        assert!(
            least
                .zip(most)
                .is_some_and(|(a, b)| *a >= 4_000 && b - a <= 1_000)
        );
    }

    #[test]
    fn the_spread_is_the_time_to_take_everybody_back() {
        // 20,000 a second on 50 shards: 400 for each.
        let all = admission(20_000, 50);
        assert_eq!(all.spread_ms(0), 0);
        assert_eq!(all.spread_ms(181), 0);
        assert_eq!(all.spread_ms(182), 500);
        assert_eq!(all.spread_ms(4_000), 11_000);
        assert_eq!(all.spread_ms(19_200), 52_800);
        assert_eq!(all.spread_ms(25_000), 60_000);
        assert_eq!(all.spread_ms(usize::MAX), 60_000);
        assert_eq!(admission(0, 1).spread_ms(1_000_000), 0);
    }
}
