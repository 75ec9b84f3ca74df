//! When messages (or logins) are due: an absolute, open-loop schedule.
//!
//! Message `n` is due at `start + n / rate`, whatever became of the messages before it. A
//! generator that waits for answers sends less while the server is slow, and so leaves out just
//! the samples that matter; this one does not know that there are answers.
//!
//! With bursts several messages in a row are due at the time of the first of them.
//!
//! # Invariants
//! - Due times depend on the plan alone, never on when somebody asked.
//! - Rounding does not add up: due times are computed from `n`, not from the one before.

/// The messages of one worker.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    start_us: u64,
    rate_per_s: f64,
    total: u64,
    burst: u32,
    /// Of the present burst, the next one included.
    left: u32,
    next: u64,
    /// Of the next one.
    due_us: u64,
}

impl Schedule {
    /// `rate_per_s` for `duration_us`; `start_us` is when the first one is due.
    pub(crate) fn new(start_us: u64, rate_per_s: f64, duration_us: u64) -> Self {
        let total = (rate_per_s * duration_us as f64 / 1e6).round() as u64;
        Self::of(total, start_us, rate_per_s)
    }

    /// `total` of them.
    pub(crate) const fn of(total: u64, start_us: u64, rate_per_s: f64) -> Self {
        Self {
            start_us,
            rate_per_s,
            total,
            burst: 1,
            left: 1,
            next: 0,
            due_us: start_us,
        }
    }

    /// So many messages at a time, at the same mean rate.
    pub(crate) fn in_bursts(mut self, burst: u32) -> Self {
        self.burst = burst.max(1);
        self.left = self.burst;
        self
    }

    /// Takes the next message if it is due: its number and when it was.
    pub(crate) fn pop_due(&mut self, now_us: u64) -> Option<(u64, u64)> {
        let due_us = self.next_us()?;
        if due_us > now_us {
            return None;
        }
        let number = self.next;
        self.next += 1;
        self.left -= 1;
        if self.left == 0 {
            self.left = self.burst;
            self.due_us = self.start_us + (self.next as f64 * 1e6 / self.rate_per_s) as u64;
        }
        Some((number, due_us))
    }

    /// How many are still to come.
    pub(crate) const fn left(&self) -> u64 {
        self.total - self.next
    }

    /// When the next one is due; `None` after the last.
    pub(crate) fn next_us(&self) -> Option<u64> {
        (self.next < self.total).then_some(self.due_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_due(schedule: &mut Schedule, now_us: u64) -> Vec<u64> {
        std::iter::from_fn(|| schedule.pop_due(now_us))
            .map(|(_, due_us)| due_us)
            .collect()
    }

    #[test]
    fn messages_are_due_evenly_and_the_clock_is_only_compared_with() {
        let mut schedule = Schedule::new(1_000, 4.0, 2_000_000);
        assert!(all_due(&mut schedule, 999).is_empty());
        assert_eq!(all_due(&mut schedule, 1_000), [1_000]);
        assert_eq!(schedule.next_us(), Some(251_000));
        assert_eq!(all_due(&mut schedule, 501_000), [251_000, 501_000]);
    }

    #[test]
    fn after_a_stall_every_message_keeps_its_own_time() {
        let mut schedule = Schedule::new(0, 1_000.0, 1_000_000);
        let due = all_due(&mut schedule, 60_000_000);
        assert_eq!(due.len(), 1_000);
        assert_eq!(due[..3], [0, 1_000, 2_000]);
        assert_eq!(due[999], 999_000);
        assert_eq!(schedule.next_us(), None);
    }

    #[test]
    fn an_uneven_rate_does_not_drift() {
        let mut schedule = Schedule::new(0, 3.0, 3_600_000_000);
        let due = all_due(&mut schedule, u64::MAX);
        assert_eq!(due.len(), 10_800);
        assert_eq!(due[10_797], 3_599_000_000);
    }

    #[test]
    fn a_burst_is_due_at_once_and_the_rate_counts_messages() {
        let mut schedule = Schedule::new(1_000, 100.0, 1_000_000).in_bursts(4);
        assert_eq!(all_due(&mut schedule, 1_000), [1_000; 4]);
        assert_eq!(schedule.next_us(), Some(41_000));
        let rest = all_due(&mut schedule, u64::MAX);
        assert_eq!(rest.len(), 96);
        assert_eq!(rest[..5], [41_000, 41_000, 41_000, 41_000, 81_000]);
    }
}
