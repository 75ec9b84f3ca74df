//! How long to wait before the next connection, and when to give up.
//!
//! A wait has one of three sources, the best informed first:
//! - the server said when to come back: that long, and a jitter that only adds, so that those who
//!   were told the same do not come together;
//! - the connection ended without a word, so many others may have ended with it: once, a uniform
//!   time below what the server said it needs to take everybody back;
//! - otherwise full jitter under a ceiling that doubles.

use super::random::Random;
use portico_wire::{CloseCode, code::CloseReaction};

/// Full jitter: uniform below a ceiling that doubles with each failure.
const CEILING_FIRST_MS: u64 = 500;
const CEILING_MAX_MS: u64 = 60_000;
/// A server's wish for more time is honoured up to here.
const WISH_MAX_MS: u32 = 3_600_000;
/// The jitter on top of a wish is at most one part in this many of it.
const WISH_JITTER_DIVISOR: u64 = 4;
/// A server's spread is honoured up to here.
const SPREAD_MAX_MS: u32 = 600_000;
/// This long in LIVE, and earlier failures are forgotten.
const STABLE_US: u64 = 30_000_000;
/// Closes for a broken protocol, one after the other, before the session stops.
const STRIKES_MAX: u8 = 3;

const PROTOCOL_ERROR: u16 = CloseCode::PROTOCOL_ERROR.0;
const HANDSHAKE_TIMEOUT: u16 = CloseCode::HANDSHAKE_TIMEOUT.0;

/// How a connection ended, as far as the wait depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) code: CloseCode,
    /// How long it was in LIVE.
    pub(crate) live_us: u64,
    /// The server's wish, 0 if it has none.
    pub(crate) wish_ms: u32,
    /// The server's spread if it ended without a word, else 0.
    pub(crate) spread_ms: u32,
}

/// What to do after a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// `None`: stop.
    pub(crate) reconnect_after_ms: Option<u32>,
    pub(crate) keep_resume_token: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    failures: u8,
    strikes: u8,
}

impl Backoff {
    pub(crate) fn ended(&mut self, end: End, random: &mut Random) -> Verdict {
        if end.live_us >= STABLE_US {
            *self = Self::default();
        }
        self.strikes = match end.code.0 {
            PROTOCOL_ERROR..=HANDSHAKE_TIMEOUT => self.strikes.saturating_add(1),
            _ => 0,
        };
        let reaction = end.code.reaction();
        let stop = reaction == CloseReaction::Stop || self.strikes >= STRIKES_MAX;
        Verdict {
            reconnect_after_ms: (!stop).then(|| self.delay_ms(end, random)),
            keep_resume_token: reaction == CloseReaction::Resume,
        }
    }

    fn delay_ms(&mut self, end: End, random: &mut Random) -> u32 {
        let ceiling_ms = (CEILING_FIRST_MS << self.failures.min(7)).min(CEILING_MAX_MS);
        self.failures = self.failures.saturating_add(1);
        if end.wish_ms > 0 {
            let wish_ms = u64::from(end.wish_ms.min(WISH_MAX_MS));
            let wait_ms = wish_ms + random.below(wish_ms / WISH_JITTER_DIVISOR + 1);
            // A short wish is a floor, no leave to come back again and again without a pause.
            if wish_ms >= CEILING_FIRST_MS {
                return wait_ms as u32;
            }
            return wait_ms.max(random.below(ceiling_ms + 1)) as u32;
        }
        let spread_ms = u64::from(end.spread_ms.min(SPREAD_MAX_MS));
        if spread_ms > ceiling_ms {
            return random.below(spread_ms) as u32;
        }
        random.below(ceiling_ms + 1) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(backoff: &mut Backoff, code: u16, live_us: u64, wish_ms: u32, seed: u64) -> Verdict {
        let end = End {
            code: CloseCode(code),
            live_us,
            wish_ms,
            spread_ms: 0,
        };
        backoff.ended(end, &mut Random::new(seed))
    }

    /// The first wait of a session with this wish or spread, under many seeds.
    fn waits(failures: u8, wish_ms: u32, spread_ms: u32) -> Vec<u32> {
        let end = End {
            code: CloseCode::SERVER_ERROR,
            live_us: 0,
            wish_ms,
            spread_ms,
        };
        let wait = |seed| {
            let mut backoff = Backoff {
                failures,
                strikes: 0,
            };
            let verdict = backoff.ended(end, &mut Random::new(seed));
            verdict.reconnect_after_ms.unwrap()
        };
        (0..10_000).map(wait).collect()
    }

    /// Each tenth of `from..to` has about a tenth of the waits, and nothing lies outside.
    fn assert_uniform(waits: &[u32], from: u32, to: u32) {
        let mut tenths = [0; 10];
        for wait in waits {
            assert!((from..to).contains(wait), "{wait} in {from}..{to}");
            tenths[(u64::from(wait - from) * 10 / u64::from(to - from)) as usize] += 1;
        }
        let share = waits.len() / 10;
        let fair = share * 8 / 10..share * 12 / 10;
        assert!(
            tenths.iter().all(|tenth| fair.contains(tenth)),
            "{tenths:?}"
        );
    }

    #[test]
    fn delays_stay_below_a_ceiling_that_doubles_up_to_a_minute() {
        for seed in 0..200 {
            let mut backoff = Backoff::default();
            let mut ceiling = 500;
            for _ in 0..300 {
                let verdict = ended(&mut backoff, 4004, 0, 0, seed);
                assert!(verdict.reconnect_after_ms.unwrap() <= ceiling);
                ceiling = (ceiling * 2).min(60_000);
            }
        }
    }

    #[test]
    fn delays_use_the_whole_range() {
        let drawn: Vec<u32> = (0..400)
            .map(|seed| {
                let mut backoff = Backoff {
                    failures: 20,
                    strikes: 0,
                };
                ended(&mut backoff, 4004, 0, 0, seed)
                    .reconnect_after_ms
                    .unwrap()
            })
            .collect();
        assert!(drawn.iter().any(|ms| *ms < 6_000));
        assert!(drawn.iter().any(|ms| *ms > 54_000));
    }

    #[test]
    fn those_who_are_told_the_same_come_back_spread_and_never_early() {
        assert_uniform(&waits(0, 9_000, 0), 9_000, 11_251);
        // Earlier failures change nothing: the server knows better than a guess.
        assert_uniform(&waits(20, 9_000, 0), 9_000, 11_251);
        // A word of the server comes before its spread.
        assert_uniform(&waits(0, 9_000, 60_000), 9_000, 11_251);
    }

    #[test]
    fn a_wish_has_an_end() {
        assert_uniform(&waits(0, u32::MAX, 0), WISH_MAX_MS, WISH_MAX_MS / 4 * 5 + 1);
    }

    #[test]
    fn a_short_wish_is_a_floor_of_the_back_off() {
        let waits = waits(20, 100, 0);
        assert!(waits.iter().all(|wait| (100..=60_000).contains(wait)));
        let mean = waits.iter().sum::<u32>() / waits.len() as u32;
        assert!((28_000..32_000).contains(&mean), "{mean}");
    }

    #[test]
    fn an_end_without_a_word_is_spread_over_the_time_the_server_needs() {
        assert_uniform(&waits(0, 0, 40_000), 0, 40_000);
        assert_uniform(&waits(0, 0, 501), 0, 501);
        assert_uniform(&waits(0, 0, u32::MAX), 0, SPREAD_MAX_MS);
    }

    #[test]
    fn a_spread_below_the_ceiling_is_no_reason_to_come_sooner() {
        assert_uniform(&waits(0, 0, 500), 0, 501);
        assert_uniform(&waits(20, 0, 40_000), 0, 60_001);
    }

    #[test]
    fn half_a_minute_in_live_forgives() {
        let mut backoff = Backoff {
            failures: 20,
            strikes: 2,
        };
        ended(&mut backoff, 4012, STABLE_US - 1, 0, 1);
        assert_eq!(backoff.strikes, 3);
        let verdict = ended(&mut backoff, 4012, STABLE_US, 0, 1);
        assert!(verdict.reconnect_after_ms.unwrap() <= 500);
    }

    #[test]
    fn three_broken_protocols_in_a_row_stop() {
        let mut backoff = Backoff::default();
        assert!(
            ended(&mut backoff, 4012, 0, 0, 1)
                .reconnect_after_ms
                .is_some()
        );
        assert!(
            ended(&mut backoff, 4014, 0, 0, 1)
                .reconnect_after_ms
                .is_some()
        );
        assert!(
            ended(&mut backoff, 4004, 0, 0, 1)
                .reconnect_after_ms
                .is_some()
        );
        assert!(
            ended(&mut backoff, 4012, 0, 0, 1)
                .reconnect_after_ms
                .is_some()
        );
        assert!(
            ended(&mut backoff, 4013, 0, 0, 1)
                .reconnect_after_ms
                .is_some()
        );
        assert_eq!(ended(&mut backoff, 4012, 0, 0, 1).reconnect_after_ms, None);
    }

    #[test]
    fn each_range_of_codes_has_its_reaction() {
        for code in 4000..=4009 {
            let verdict = ended(&mut Backoff::default(), code, 0, 0, 1);
            assert!(verdict.keep_resume_token && verdict.reconnect_after_ms.is_some());
        }
        for code in 4010..=4019 {
            let verdict = ended(&mut Backoff::default(), code, 0, 0, 1);
            assert!(!verdict.keep_resume_token && verdict.reconnect_after_ms.is_some());
        }
        for code in 4020..=4029 {
            let verdict = ended(&mut Backoff::default(), code, 0, 0, 1);
            assert_eq!(verdict.reconnect_after_ms, None);
        }
    }
}
