//! What a run proves.
//!
//! - `fail`: the gateway broke a promise, whatever else happened: a message twice, out of order, at
//!   the wrong user, damaged.
//! - `invalid`: the generator could not do what the plan says, so that neither the figures nor a
//!   missing message prove anything about the gateway. The schedule counts as kept when 99 of 100
//!   messages were handed to the driver within `--slip-max` of their time; latencies include the
//!   slip, so below that bound they are at worst too long by it. What the machine did meanwhile is
//!   judged in [`crate::environment`].
//! - `fail` also: a message or a delivered mark is missing, was refused or never answered, in a run
//!   that is valid.
//! - `pass`: none of these. Of a plan that is `unverified` nothing is expected to arrive, so it is
//!   about the generator alone: it did what the plan says.

use crate::report::{Measured, Percentiles, grouped};
use serde::Serialize;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Pass,
    Fail,
    Invalid,
}

impl Verdict {
    pub(crate) const fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Fail => 1,
            Self::Invalid => 2,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "PASS",
            Self::Fail => "FAIL",
            Self::Invalid => "INVALID",
        })
    }
}

/// The verdict and a sentence for each reason against `pass`.
pub(crate) fn judge(measured: &Measured) -> (Verdict, Vec<String>) {
    let Measured {
        plan,
        counts,
        transport,
        ..
    } = measured;
    let mut reasons = Vec::new();
    let mut note = |count: u64, what: &str| {
        if count > 0 {
            reasons.push(format!("{} {what}", grouped(count)));
        }
        count > 0
    };

    let broken = note(counts.duplicated, "delivered twice")
        | note(counts.reordered, "out of order")
        | note(counts.misrouted, "at the wrong user or under another name")
        | note(counts.corrupt, "damaged, or never sent by anybody")
        | note(
            counts.misnumbered,
            "numbered differently for sender and recipient",
        )
        | note(counts.refused_delivered, "delivered although refused");
    let broken = broken | note(transport.protocol_faults, "times the protocol was broken");
    if let Some(fault) = &transport.fault {
        reasons.push(format!("one of the protocol faults: {fault}"));
    }

    let before = reasons.len();
    reasons.extend(measured.doubts.iter().cloned());
    if measured.connections < u64::from(plan.connections) {
        reasons.push(format!(
            "only {} of {} connections came up",
            grouped(measured.connections),
            grouped(u64::from(plan.connections))
        ));
    }
    if transport.exhausted > 0 {
        reasons.push(format!(
            "{} connection attempts found no local port or file descriptor left{}",
            grouped(transport.exhausted),
            measured.observed.environment.means_at_hand()
        ));
    }
    let slip_us = Percentiles::of(&measured.slip_us).p99;
    if slip_us > measured.slip_max_us {
        reasons.push(format!(
            "the generator was late: schedule slip p99 {} us, allowed {} us",
            grouped(slip_us),
            grouped(measured.slip_max_us)
        ));
    }
    reasons.extend(measured.doubts_of_the_machine().invalid);
    if measured.withheld > 0 {
        reasons.push(format!(
            "{} messages were withheld: too many were on their way for the verifier's memory",
            grouped(measured.withheld)
        ));
    }
    if measured.unsent > 0 {
        reasons.push(format!(
            "{} messages were never sent: the generator was so far behind that it gave up",
            grouped(measured.unsent)
        ));
    }
    if counts.sent == 0 {
        reasons.push("nothing was sent".to_owned());
    }
    let invalid = reasons.len() > before;

    let mut note = |count: u64, what: &str| {
        if count > 0 {
            reasons.push(format!("{} {what}", grouped(count)));
        }
        count > 0
    };
    let lost = match measured.promises.answers {
        true => "accepted but never delivered",
        false => "sent but never delivered",
    };
    let mut failed = false;
    for (count, what) in measured.figures.life.faults() {
        failed |= note(count, what);
    }
    let missing = failed
        | note(counts.lost, lost)
        | note(counts.unanswered, "never answered")
        | note(counts.refused_total(), "refused for good")
        | note(counts.receipts_missing, "delivered marks missing")
        | note(counts.reads_missing, "read marks missing")
        | note(measured.figures.not_back, "connections did not come back")
        | note(
            measured.not_queued,
            "not even queued: their senders had too many unanswered ones",
        );

    if counts.lost > 0 && counts.delivered == 0 {
        reasons.push(
            "nothing was delivered at all; if the target discards on purpose, measure it with \
             --acks minimal --unverified"
                .to_owned(),
        );
    }

    let verdict = if broken {
        Verdict::Fail
    } else if invalid {
        Verdict::Invalid
    } else if missing {
        Verdict::Fail
    } else {
        Verdict::Pass
    };
    (verdict, reasons)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{report::tests::good, verifier::Counts};
    use std::collections::BTreeMap;

    fn verdict(change: impl FnOnce(&mut Measured)) -> (Verdict, usize) {
        let mut measured = good();
        change(&mut measured);
        let (verdict, reasons) = judge(&measured);
        (verdict, reasons.len())
    }

    #[test]
    fn each_broken_promise_fails_the_run() {
        let faults: [fn(&mut Measured); 13] = [
            |m| m.counts.lost = 1,
            |m| m.counts.duplicated = 1,
            |m| m.counts.reordered = 1,
            |m| m.counts.misrouted = 1,
            |m| m.counts.corrupt = 1,
            |m| m.counts.misnumbered = 1,
            |m| m.counts.refused_delivered = 1,
            |m| m.counts.unanswered = 1,
            |m| m.counts.receipts_missing = 1,
            |m| m.counts.reads_missing = 1,
            |m| m.figures.not_back = 1,
            |m| m.counts.refused = BTreeMap::from([(8, 1)]),
            |m| m.not_queued = 1,
        ];
        for (number, fault) in faults.into_iter().enumerate() {
            assert_eq!(verdict(fault), (Verdict::Fail, 1), "fault {number}");
        }
        assert_eq!(verdict(|_| {}), (Verdict::Pass, 0));
    }

    #[test]
    fn what_the_protocol_allows_does_not() {
        let got = verdict(|m| {
            m.counts.repeated = 5;
            m.counts.overtaken = 5;
            m.counts.foreign = 5;
            m.counts.accepted_before = 5;
            m.counts.deferred = BTreeMap::from([(65, 5)]);
            m.transport.reconnects = 5;
        });
        assert_eq!(got, (Verdict::Pass, 0));
    }

    #[test]
    fn a_generator_that_failed_proves_nothing() {
        let faults: [fn(&mut Measured); 9] = [
            |m| m.observed.environment.clock_step_ms = 60_000,
            |m| m.doubts.push("a worker has failed".to_owned()),
            |m| m.connections = 999,
            |m| m.transport.exhausted = 1,
            |m| m.slip_us.record(20_000).expect("within bounds"),
            |m| m.generator_busy = 0.99,
            |m| m.withheld = 1,
            |m| m.unsent = 1,
            |m| m.counts = Counts::default(),
        ];
        for (number, fault) in faults.into_iter().enumerate() {
            assert_eq!(verdict(fault), (Verdict::Invalid, 1), "fault {number}");
        }
    }

    #[test]
    fn a_functional_run_is_not_judged_by_its_machine() {
        let busy = |m: &mut Measured| {
            m.functional = true;
            m.generator_busy = 0.99;
            m.observed.environment.steal_share = 0.4;
        };
        assert_eq!(verdict(busy), (Verdict::Pass, 0));
        let busy_and_late = |m: &mut Measured| {
            busy(m);
            m.slip_max_us = 0;
        };
        assert_eq!(verdict(busy_and_late), (Verdict::Invalid, 1));
        let mut measured = good();
        busy(&mut measured);
        assert_eq!(measured.doubts_of_the_machine().warnings.len(), 2);
    }

    #[test]
    fn one_that_spins_is_busy_but_may_not_be_late() {
        let spinning = |m: &mut Measured| {
            m.plan.spin = true;
            m.generator_busy = 1.0;
        };
        assert_eq!(verdict(spinning), (Verdict::Pass, 0));
        let late = verdict(|m| {
            spinning(m);
            m.slip_us.record(20_000).expect("within bounds");
        });
        assert_eq!(late, (Verdict::Invalid, 1));
    }

    #[test]
    fn whoever_ran_out_of_ports_is_told_how_many_there_were() {
        let mut measured = good();
        measured.transport.exhausted = 7;
        let means = &mut measured.observed.environment.means;
        (means.ports_per_address, means.addresses, means.files) = (28_232, 2, 20_000);
        let (_, reasons) = judge(&measured);
        let told = "left (28,232 ports on each of 2 address(es), 20,000 open files allowed)";
        assert!(reasons[0].ends_with(told), "{reasons:?}");
    }

    #[test]
    fn a_missing_message_is_no_proof_in_an_invalid_run_but_a_doubled_one_is() {
        let late = |m: &mut Measured| m.slip_us.record(20_000).expect("within bounds");
        let lost = verdict(|m| {
            late(m);
            m.counts.lost = 1;
        });
        assert_eq!(lost, (Verdict::Invalid, 2));
        let doubled = verdict(|m| {
            late(m);
            m.counts.duplicated = 1;
        });
        assert_eq!(doubled, (Verdict::Fail, 2));
    }
}
