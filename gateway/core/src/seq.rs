//! Sequence numbers from the clock.

/// Hands out strictly increasing numbers: microseconds since 1970, or one more than the last where
/// the clock stands still or steps back. One per shard serves inboxes and conversations alike.
#[derive(Debug)]
pub(crate) struct SeqClock {
    last: u64,
}

impl SeqClock {
    /// Nothing at or below `floor` is ever handed out.
    pub(crate) const fn new(floor: u64) -> Self {
        Self { last: floor }
    }

    pub(crate) const fn last(&self) -> u64 {
        self.last
    }

    /// Another shard has given this number: what is given here from now on is greater.
    pub(crate) fn observe(&mut self, number: u64) {
        self.last = self.last.max(number);
    }

    pub(crate) fn next(&mut self, wall_us: u64) -> u64 {
        self.last = wall_us.max(self.last + 1);
        self.last
    }

    /// So many numbers in a row, one at least; returns the first.
    pub(crate) fn next_many(&mut self, wall_us: u64, count: usize) -> u64 {
        let first = self.next(wall_us);
        self.last = first + (count as u64).saturating_sub(1);
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_increase_whatever_the_clock_does() {
        let mut clock = SeqClock::new(1_000);
        assert_eq!(clock.next(10), 1_001);
        assert_eq!(clock.next(5_000), 5_000);
        assert_eq!(clock.next(5_000), 5_001);
        assert_eq!(clock.next(0), 5_002);
        clock.observe(7_000);
        clock.observe(6_000);
        assert_eq!(clock.next(0), 7_001);
        assert_eq!(clock.next_many(8_000, 3), 8_000);
        assert_eq!(clock.next(8_001), 8_003);
    }
}
