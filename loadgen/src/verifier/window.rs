//! What has arrived of a row of counters, in eight bytes: the next one in order, and which of the
//! 32 before it have come.

/// How far behind the newest a late one is still told from a repeated one.
pub(super) const WINDOW: u32 = u32::BITS;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    /// One more than the greatest counter that arrived.
    next: u32,
    /// Bit `n`: counter `next - 1 - n` has arrived.
    seen: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Above all others; those that it passed over may still come.
    Ahead,
    /// Behind a later one, for the first time.
    Late,
    /// Has been here; or is so far behind that nobody knows any more, which counts as this.
    Again,
}

impl Window {
    pub(super) const fn arrive(&mut self, counter: u32) -> Step {
        if counter >= self.next {
            let steps = counter - self.next + 1;
            self.seen = if steps >= WINDOW {
                0
            } else {
                self.seen << steps
            };
            self.seen |= 1;
            self.next = counter + 1;
            return Step::Ahead;
        }
        let behind = self.next - 1 - counter;
        if behind >= WINDOW || self.seen >> behind & 1 == 1 {
            return Step::Again;
        }
        self.seen |= 1 << behind;
        Step::Late
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use std::collections::BTreeSet;

    /// Against a set that remembers everything.
    #[test]
    fn a_window_judges_as_a_whole_memory_would_within_its_reach() {
        let mut random = Random::new(5);
        for _ in 0..200 {
            let (mut window, mut seen, mut top) = (Window::default(), BTreeSet::new(), None);
            for _ in 0..200 {
                let around = top.map_or(0, |top| top + 1_u32);
                let counter = (around + random.below(40)).saturating_sub(30);
                let expected = match (seen.insert(counter), top) {
                    (_, Some(top)) if top >= counter + WINDOW => Step::Again,
                    (false, _) => Step::Again,
                    (true, Some(top)) if top > counter => Step::Late,
                    (true, _) => Step::Ahead,
                };
                assert_eq!(window.arrive(counter), expected, "{counter} after {top:?}");
                top = top.max(Some(counter));
            }
        }
    }
}
