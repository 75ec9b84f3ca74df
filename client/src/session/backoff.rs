//! How long to wait before the next connection, and when to give up.

use super::random::Random;
use portico_wire::{CloseCode, code::CloseReaction};

/// Full jitter: uniform below a ceiling that doubles with each failure.
const CEILING_FIRST_MS: u64 = 500;
const CEILING_MAX_MS: u64 = 60_000;
/// A server's wish for more time is honoured up to here.
const WISH_MAX_MS: u32 = 3_600_000;
/// This long in LIVE, and earlier failures are forgotten.
const STABLE_US: u64 = 30_000_000;
/// Closes for a broken protocol, one after the other, before the session stops.
const STRIKES_MAX: u8 = 3;

const PROTOCOL_ERROR: u16 = CloseCode::PROTOCOL_ERROR.0;
const HANDSHAKE_TIMEOUT: u16 = CloseCode::HANDSHAKE_TIMEOUT.0;

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
    /// A connection has ended with `code`; `live_us` is how long it was in LIVE.
    pub(crate) fn ended(
        &mut self,
        code: CloseCode,
        live_us: u64,
        wish_ms: u32,
        random: &mut Random,
    ) -> Verdict {
        if live_us >= STABLE_US {
            *self = Self::default();
        }
        self.strikes = match code.0 {
            PROTOCOL_ERROR..=HANDSHAKE_TIMEOUT => self.strikes.saturating_add(1),
            _ => 0,
        };
        let stop = code.reaction() == CloseReaction::Stop || self.strikes >= STRIKES_MAX;
        Verdict {
            reconnect_after_ms: (!stop).then(|| self.delay_ms(wish_ms, random)),
            keep_resume_token: code.reaction() == CloseReaction::Resume,
        }
    }

    fn delay_ms(&mut self, wish_ms: u32, random: &mut Random) -> u32 {
        let ceiling = CEILING_FIRST_MS << self.failures.min(7);
        self.failures = self.failures.saturating_add(1);
        let drawn = random.below(ceiling.min(CEILING_MAX_MS) + 1) as u32;
        drawn.max(wish_ms.min(WISH_MAX_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(backoff: &mut Backoff, code: u16, live_us: u64, wish_ms: u32, seed: u64) -> Verdict {
        backoff.ended(CloseCode(code), live_us, wish_ms, &mut Random::new(seed))
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
    fn a_wish_is_a_floor_but_not_without_end() {
        let mut backoff = Backoff::default();
        let verdict = ended(&mut backoff, 4005, 0, 9_000, 1);
        assert_eq!(verdict.reconnect_after_ms, Some(9_000));
        let verdict = ended(&mut backoff, 4005, 0, u32::MAX, 1);
        assert_eq!(verdict.reconnect_after_ms, Some(WISH_MAX_MS));
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
