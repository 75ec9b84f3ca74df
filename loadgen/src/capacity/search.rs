//! Which rate to try next: doubling, then halving the gap, then a longer run that confirms.
//!
//! A state machine without clock, socket or randomness: [`Search::step`] says what to do,
//! [`Search::record`] takes what came of it.
//!
//! # Invariants
//! - A rate counts as held after it has held once, and as failed after it has failed twice: other
//!   programs of the machine can make a trial fail, but hardly one hold.
//! - After a failure the next trial is below it. Whether it was noise is asked when nothing but that
//!   failure stands in the way, and the gateway has had time to recover.
//! - No trial offers more than twice the greatest rate that has held, none more than the maximum, and
//!   none more than a rate that has failed and was not tried again with success.
//! - The search ends after [`TRIALS_MAX`] trials, the confirming after [`CONFIRMS_MAX`].

/// Far more than a search with a little noise takes: 14 doublings, 5 halvings, 5 again per ceiling
/// that was noise.
pub(crate) const TRIALS_MAX: u32 = 64;
/// At 90 % each, the last of them offers a tenth of what the first one did.
pub(crate) const CONFIRMS_MAX: u32 = 24;
/// What is left of the rate after it was not confirmed.
const CONFIRM_BACK_OFF: f64 = 0.9;
/// Failures that count.
const FAILURES: u32 = 2;

/// Where to look, in messages per second; both ends are tried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bounds {
    pub min: f64,
    pub max: f64,
    /// The search ends when the lowest rate that failed is within this share above the greatest
    /// that held: 0.05 for 5 %.
    pub precision: f64,
}

/// What a trial showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    Held,
    Failed,
    /// The generator could not keep its schedule: nothing is known of the gateway.
    Invalid,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Step {
    Try(f64),
    /// The longer run.
    Confirm(f64),
    Done(Conclusion),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Conclusion {
    /// The confirmed rate; none when not even the minimum holds.
    pub rate: Option<f64>,
    pub limit: Limit,
}

/// What stood in the way of more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Gateway,
    /// The rate is a lower bound.
    Generator,
    /// Nothing: the maximum held. The rate is a lower bound.
    Maximum,
    /// The number of trials: results changed too often. The rate is a lower bound.
    Trials,
    /// Somebody has ended the search. No rate is confirmed.
    Interrupted,
}

/// A rate that did not hold.
#[derive(Clone, Copy, Debug)]
struct Ceiling {
    rate: f64,
    failed: u32,
    invalid: u32,
}

impl Ceiling {
    /// The reason, once there is no doubt left.
    fn settled(&self) -> Option<Limit> {
        if self.failed >= FAILURES {
            Some(Limit::Gateway)
        } else if self.invalid >= FAILURES {
            Some(Limit::Generator)
        } else {
            None
        }
    }
}

#[derive(Debug)]
pub(crate) struct Search {
    bounds: Bounds,
    held: Option<f64>,
    /// Ascending, all above `held`.
    ceilings: Vec<Ceiling>,
    trials: u32,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Searching,
    Confirming {
        rate: f64,
        limit: Limit,
        runs: u32,
        /// In a row, at this rate.
        invalid: u32,
    },
    Done(Conclusion),
}

impl Search {
    /// `min` is above 0 and at most `max`; `precision` is above 0.
    pub(crate) const fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            held: None,
            ceilings: Vec::new(),
            trials: 0,
            stage: Stage::Searching,
        }
    }

    pub(crate) fn step(&self) -> Step {
        match self.stage {
            Stage::Searching => self.next(),
            Stage::Confirming { rate, .. } => Step::Confirm(rate),
            Stage::Done(conclusion) => Step::Done(conclusion),
        }
    }

    /// Takes what came of the last [`Self::step`].
    pub(crate) fn record(&mut self, finding: Finding) {
        match self.step() {
            Step::Try(rate) => self.tried(rate, finding),
            Step::Confirm(_) => self.ran(finding),
            Step::Done(_) => {}
        }
    }

    fn next(&self) -> Step {
        let Bounds {
            min,
            max,
            precision,
        } = self.bounds;
        match (self.held, self.ceilings.first()) {
            (None, _) => Step::Try(min),
            (Some(held), None) => Step::Try((held * 2.0).min(max)),
            (Some(held), Some(ceiling)) => {
                let middle = whole(held.midpoint(ceiling.rate));
                let close = ceiling.rate <= held * (1.0 + precision);
                if close || middle <= held || middle >= ceiling.rate {
                    Step::Try(ceiling.rate)
                } else {
                    Step::Try(middle)
                }
            }
        }
    }

    fn tried(&mut self, rate: f64, finding: Finding) {
        self.trials += 1;
        if finding == Finding::Held {
            self.held = Some(rate);
            self.ceilings.retain(|ceiling| ceiling.rate > rate);
        } else {
            let known = self.ceilings.iter().position(|other| other.rate == rate);
            let at = known.unwrap_or_else(|| {
                let ceiling = Ceiling {
                    rate,
                    failed: 0,
                    invalid: 0,
                };
                // Nothing above the lowest ceiling is ever tried.
                self.ceilings.insert(0, ceiling);
                0
            });
            let ceiling = &mut self.ceilings[at];
            match finding {
                Finding::Invalid => ceiling.invalid += 1,
                _ => ceiling.failed += 1,
            }
        }
        if let Some(limit) = self.limit() {
            self.stage = match self.held {
                Some(rate) => confirming(rate, limit, 0, 0),
                None => done(None, limit),
            };
        }
    }

    /// What stands in the way of more, when nothing is left to try.
    fn limit(&self) -> Option<Limit> {
        let in_the_way = match (self.next(), self.ceilings.first()) {
            (Step::Try(rate), Some(ceiling)) if rate == ceiling.rate => ceiling.settled(),
            _ => None,
        };
        let maximum = || (self.held == Some(self.bounds.max)).then_some(Limit::Maximum);
        let trials = || (self.trials >= TRIALS_MAX).then_some(Limit::Trials);
        in_the_way.or_else(maximum).or_else(trials)
    }

    fn ran(&mut self, finding: Finding) {
        let Stage::Confirming {
            rate,
            limit,
            runs,
            invalid,
        } = self.stage
        else {
            return;
        };
        let runs = runs + 1;
        let lower = whole(rate * CONFIRM_BACK_OFF).max(self.bounds.min);
        let limit_now = match finding {
            Finding::Held => limit,
            Finding::Failed => Limit::Gateway,
            Finding::Invalid => Limit::Generator,
        };
        self.stage = if finding == Finding::Held {
            done(Some(rate), limit)
        } else if finding == Finding::Invalid && invalid + 1 < FAILURES {
            confirming(rate, limit, runs, invalid + 1)
        } else if lower < rate && runs < CONFIRMS_MAX {
            confirming(lower, limit_now, runs, 0)
        } else {
            done(None, limit_now)
        };
    }
}

const fn confirming(rate: f64, limit: Limit, runs: u32, invalid: u32) -> Stage {
    Stage::Confirming {
        rate,
        limit,
        runs,
        invalid,
    }
}

const fn done(rate: Option<f64>, limit: Limit) -> Stage {
    Stage::Done(Conclusion { rate, limit })
}

/// Whole messages per second, where that is no coarser than a percent.
fn whole(rate: f64) -> f64 {
    if rate >= 100.0 { rate.round() } else { rate }
}

#[cfg(test)]
mod tests;
