//! How far two machines' clocks are apart, from round trips.
//!
//! A worker answers with its clock. It has read it somewhere between our question and its answer's
//! arrival, so the offset is known to half a round trip; of several trips the shortest tells most.
//! Only the start of a run depends on it: both ends of every flow are in one worker, and latencies
//! are differences of one clock.

use serde::Serialize;

/// One question and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RoundTrip {
    pub asked_us: u64,
    /// The other clock, as it was read in between.
    pub theirs_us: u64,
    pub answered_us: u64,
}

/// The other clock is ours plus `offset_us`, give or take `uncertainty_us`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Offset {
    pub offset_us: i64,
    pub uncertainty_us: u64,
    pub round_trip_us: u64,
}

impl Offset {
    /// From the shortest of the trips; `None` without any.
    pub(super) fn of(trips: &[RoundTrip]) -> Option<Self> {
        let duration_us = |trip: &RoundTrip| trip.answered_us.saturating_sub(trip.asked_us);
        let best = trips.iter().min_by_key(|trip| duration_us(trip))?;
        let round_trip_us = duration_us(best);
        let middle_us = best.asked_us + round_trip_us / 2;
        Some(Self {
            offset_us: best.theirs_us.wrapping_sub(middle_us).cast_signed(),
            uncertainty_us: round_trip_us.div_ceil(2),
            round_trip_us,
        })
    }

    /// A time of ours on the other clock.
    pub(super) const fn theirs(&self, ours_us: u64) -> u64 {
        ours_us.saturating_add_signed(self.offset_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_true_offset_is_within_the_uncertainty() {
        // The other clock is 1,000,000 us ahead, or as much behind. One way takes 10 us, the other
        // up to 500 us.
        for ahead_us in [1_000_000_i64, -1_000_000] {
            let trips: Vec<RoundTrip> = (1..50)
                .map(|n| {
                    let asked_us = 2_000_000 + n * 1_000;
                    let back_us = n * 10;
                    RoundTrip {
                        asked_us,
                        theirs_us: (asked_us + 10).saturating_add_signed(ahead_us),
                        answered_us: asked_us + 10 + back_us,
                    }
                })
                .collect();
            let offset = Offset::of(&trips).expect("trips");
            assert_eq!(offset.round_trip_us, 20);
            assert_eq!(offset.uncertainty_us, 10);
            let error_us = (offset.offset_us - ahead_us).unsigned_abs();
            assert!(error_us <= offset.uncertainty_us, "{error_us}");
            assert_eq!(
                offset.theirs(3_000_000),
                3_000_000_u64.saturating_add_signed(ahead_us)
            );
            // Few and bad trips: uncertain, but still not wrong.
            let bad = Offset::of(&trips[40..]).expect("trips");
            assert!((bad.offset_us - ahead_us).unsigned_abs() <= bad.uncertainty_us);
        }
        assert_eq!(Offset::of(&[]), None);
    }
}
