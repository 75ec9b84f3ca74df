//! The ceiling of sequence numbers.
//!
//! Sequence numbers are made from a clock, and a clock can step back while the gateway is down. So
//! every store keeps one number, the ceiling, that lies strictly above each sequence number it
//! ever made durable; a gateway starts its generators there or at its clock, whichever is later.
//!
//! Invariant: after each commit the durable ceiling is greater than every number in the store. It
//! holds because a commit that would come close raises the ceiling *in the same atomic step*. No
//! timer and no lease takes part, and raising it by more than needed keeps that rare.
//!
//! [`Ceiling`] is the rule without the store, for any adapter with one writer.

use portico_wire::ids::Seq;

/// A commit whose greatest number comes this close to the ceiling raises it.
const MARGIN_US: u64 = 7_000_000;
/// How far above the greatest number it is raised. Under a steady load once in three seconds.
const STEP_US: u64 = 10_000_000;

const _: () = assert!(
    MARGIN_US < STEP_US,
    "a raised ceiling must clear its own margin"
);

/// The rule, and the ceiling as it stands in the store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ceiling {
    durable: u64,
}

impl Ceiling {
    /// As it was found in the store.
    #[must_use]
    pub const fn stored(durable: Seq) -> Self {
        Self { durable: durable.0 }
    }

    /// What a [`Cmd::Ceiling`](crate::messages::Cmd::Ceiling) is answered with.
    #[must_use]
    pub const fn get(self) -> Seq {
        Seq(self.durable)
    }

    /// The ceiling that a commit must write along when `greatest` is the greatest number in it,
    /// or `None` if the present one will do. Takes effect with [`Self::raise`], after the commit.
    #[must_use]
    pub const fn needed_for(self, greatest: u64) -> Option<Seq> {
        if greatest.saturating_add(MARGIN_US) < self.durable {
            None
        } else {
            Some(Seq(greatest.saturating_add(STEP_US)))
        }
    }

    /// After the commit that wrote it. A lower one changes nothing.
    pub const fn raise(&mut self, to: Seq) {
        if to.0 > self.durable {
            self.durable = to.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ceiling_is_raised_rarely_and_always_in_time() {
        let mut ceiling = Ceiling::default();
        let start = 1_800_000_000_000_000;
        let mut raised = 0;
        for ms in 0..60_000_u64 {
            let greatest = start + ms * 1_000;
            if let Some(to) = ceiling.needed_for(greatest) {
                ceiling.raise(to);
                raised += 1;
            }
            assert!(ceiling.get().0 > greatest + MARGIN_US - 1);
        }
        assert!((19..=21).contains(&raised), "raised {raised} times");
    }

    #[test]
    fn an_older_number_never_lowers_it() {
        let mut ceiling = Ceiling::stored(Seq(100 * STEP_US));
        assert_eq!(ceiling.needed_for(5), None);
        ceiling.raise(Seq(5));
        assert_eq!(ceiling.get(), Seq(100 * STEP_US));
    }
}
