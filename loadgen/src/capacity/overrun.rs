//! Sees while a trial runs that the gateway does not keep up, so that it need not be pressed to the
//! end.
//!
//! Two signs end a trial:
//! - *too late*: more messages are already later than the bound of the 99th percentile than the
//!   whole trial may have. It cannot hold any more, whatever comes.
//! - *growing*: for two seconds, what is on its way (or has not even been accepted) has grown from
//!   each quarter of a second to the next, by at least a twentieth of what was sent. The bound may
//!   be far away; the gateway's queues have no reason to stop growing before it.

use crate::watch::Sight;
use std::{collections::VecDeque, fmt};

/// Between two looks at what is on its way.
const WINDOW_US: u64 = 250_000;
/// Windows in a row that count as growing.
const WINDOWS: usize = 8;
/// Of what was sent meanwhile.
const GROWTH: f64 = 0.05;
/// Of all messages, those that may be later than the 99th percentile's bound.
const LATE_SHARE: f64 = 0.01;
/// Samples kept of what had been sent when, over the time of the bound.
const SAMPLES: u64 = 64;
/// What this process shows of itself is never older than this.
const STALE_US: u64 = 25_000;

/// Why a trial was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overrun {
    /// So many messages are later than the bound and have not arrived.
    TooLate { messages: u64 },
    /// So many are on their way, ever more.
    Growing { messages: u64 },
}

impl fmt::Display for Overrun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLate { messages } => {
                write!(f, "ended early: {messages} messages were late already")
            }
            Self::Growing { messages } => {
                write!(
                    f,
                    "ended early: {messages} messages on their way, ever more"
                )
            }
        }
    }
}

/// Watches one trial.
#[derive(Debug)]
pub(crate) struct Pressure {
    /// How late a message is that counts as late, and how often that is sampled.
    bound_us: u64,
    sample_us: u64,
    /// Messages that may be late or missing.
    late_max: f64,
    /// (time, sent so far), ascending; the first is the newest that is older than the bound.
    sent: VecDeque<(u64, u64)>,
    /// At the end of the last windows: (not delivered, not accepted, sent).
    windows: VecDeque<(u64, u64, u64)>,
    window_end_us: u64,
}

impl Pressure {
    /// A trial of `messages` messages, of which 99 of 100 must arrive within `p99_us` and a share of
    /// `loss` may be missing. What is seen is at most `stale_us` old.
    pub(crate) fn new(p99_us: u64, messages: f64, loss: f64, stale_us: u64) -> Self {
        Self {
            bound_us: p99_us + stale_us.max(STALE_US),
            sample_us: (p99_us / SAMPLES).max(1),
            late_max: messages * (LATE_SHARE + loss),
            sent: VecDeque::new(),
            windows: VecDeque::with_capacity(WINDOWS + 1),
            window_end_us: WINDOW_US,
        }
    }

    /// Tells as soon as the trial cannot hold.
    pub(crate) fn look(&mut self, sight: &Sight) -> Option<Overrun> {
        self.too_late(sight).or_else(|| self.growing(sight))
    }

    fn too_late(&mut self, sight: &Sight) -> Option<Overrun> {
        let newest = self.sent.back().map(|(at_us, _)| *at_us);
        if newest.is_none_or(|newest| sight.passed_us >= newest + self.sample_us) {
            self.sent.push_back((sight.passed_us, sight.sent));
        }
        let is_old = |at_us: u64| at_us + self.bound_us <= sight.passed_us;
        while self.sent.get(1).is_some_and(|(at_us, _)| is_old(*at_us)) {
            self.sent.pop_front();
        }
        let (_, sent) = self.sent.front().filter(|(at_us, _)| is_old(*at_us))?;
        let messages = sent.saturating_sub(sight.delivered);
        (messages as f64 > self.late_max).then_some(Overrun::TooLate { messages })
    }

    fn growing(&mut self, sight: &Sight) -> Option<Overrun> {
        if sight.passed_us < self.window_end_us {
            return None;
        }
        self.window_end_us = sight.passed_us + WINDOW_US;
        let undelivered = sight.sent.saturating_sub(sight.delivered);
        let unaccepted = sight.sent.saturating_sub(sight.accepted);
        self.windows
            .push_back((undelivered, unaccepted, sight.sent));
        if self.windows.len() <= WINDOWS {
            return None;
        }
        let first = self.windows.pop_front()?;
        let growth_min = sight.sent.saturating_sub(first.2) as f64 * GROWTH;
        let grows = |waiting: fn(&(u64, u64, u64)) -> u64| {
            let mut before = waiting(&first);
            let always = self.windows.iter().map(waiting).all(|now| {
                let grown = now > before;
                before = now;
                grown
            });
            always && (before - waiting(&first)) as f64 > growth_min
        };
        (grows(|window| window.0) || grows(|window| window.1)).then_some(Overrun::Growing {
            messages: undelivered.max(unaccepted),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every 10 ms at a gateway that delivers what `delivered` says; when it was ended, and
    /// why.
    fn watch(p99_us: u64, seconds: u64, delivered: impl Fn(u64) -> u64) -> Option<(u64, Overrun)> {
        let rate = 1_000;
        let mut pressure = Pressure::new(p99_us, (rate * seconds) as f64, 0.0, 0);
        (0..seconds * 100).find_map(|look| {
            let passed_us = look * 10_000;
            let arrived = delivered(passed_us);
            let sight = Sight {
                passed_us,
                sent: passed_us * rate / 1_000_000,
                accepted: arrived,
                delivered: arrived,
            };
            pressure.look(&sight).map(|overrun| (passed_us, overrun))
        })
    }

    #[test]
    fn a_gateway_that_keeps_up_is_left_alone() {
        assert_eq!(watch(100_000, 10, |at_us| at_us / 1_000), None);
        // Behind by 90 ms, always.
        let behind = |at_us: u64| at_us.saturating_sub(90_000) / 1_000;
        assert_eq!(watch(100_000, 10, behind), None);
    }

    #[test]
    fn a_stall_that_costs_less_than_one_in_a_hundred_does_not_end_it() {
        // 150 ms without a delivery; the 50 messages that are late are one in 200.
        let stalled = |at_us: u64| match at_us {
            3_000_000..3_150_000 => 3_000,
            _ => at_us / 1_000,
        };
        assert_eq!(watch(100_000, 10, stalled), None);
    }

    #[test]
    fn a_trial_ends_when_it_cannot_hold_any_more() {
        // Nothing from the third second on: 100 of 10,000 are late after the bound and 100 ms more.
        let (ended_us, overrun) =
            watch(100_000, 10, |at_us| at_us.min(3_000_000) / 1_000).expect("ended");
        assert!(
            (3_200_000..3_260_000).contains(&ended_us),
            "{ended_us}: {overrun}"
        );
        assert!(matches!(overrun, Overrun::TooLate { messages: 101..150 }));
    }

    #[test]
    fn steady_growth_ends_it_long_before_a_wide_bound() {
        // 90 % of what is sent arrives; the bound of a minute is never reached.
        let (ended_us, overrun) = watch(60_000_000, 30, |at_us| at_us * 9 / 10_000).expect("ended");
        assert!(ended_us <= 2_500_000, "{ended_us}: {overrun}");
        assert!(matches!(overrun, Overrun::Growing { .. }));
        // 98 %: slow growth, which a short trial may well hold.
        assert_eq!(watch(60_000_000, 30, |at_us| at_us * 98 / 100_000), None);
    }
}
