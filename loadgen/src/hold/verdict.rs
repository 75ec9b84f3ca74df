//! What a run of the plan `hold` proves, beside what its messages do ([`crate::verdict`]).
//!
//! - `fail`: a connection that was up ended although nobody here wanted that, the protocol was
//!   broken, or a message reached somebody to whom nobody writes.
//! - `invalid`: this machine ran out of ports or descriptors, or the messages' part is invalid.
//! - `fail` also: a connection is missing at the end of the ramp, after the way back or at the end,
//!   in a run that is valid.
//! - `pass`: none of these. Logins that the gateway put off (CLOSE 4005, with a time to come back) are
//!   no fault: that is how it bounds a storm. Nor are attempts without a connection: they come again,
//!   and are counted. A login refused for any other reason, or broken off, is a fault.

use super::{figures::Measurement, held::Wave};
use crate::{report::grouped, verdict::Verdict};
use portico_wire::CloseCode;

/// The verdict and a sentence for each reason against `pass`, the messages' ones first.
pub(super) fn judge(
    measurement: &Measurement<'_>,
    messages: (Verdict, Vec<String>),
) -> (Verdict, Vec<String>) {
    let Measurement {
        marks,
        held,
        measured,
        ..
    } = measurement;
    let (of_messages, mut reasons) = messages;
    let asked = u64::from(measurement.plan.connections);
    let mut note = |count: u64, what: &str| {
        if count > 0 {
            reasons.push(format!("{} {what}", grouped(count)));
        }
        count > 0
    };

    let dropped = held.drops.values().sum::<u64>();
    let broken = note(dropped, "held connections ended unasked")
        | note(
            measured.transport.reconnects,
            "times an active connection ended unasked and came back",
        )
        | note(held.heartbeats_missed, "heartbeats were not answered")
        | note(held.drains, "connections were asked to leave (DRAIN)")
        | note(
            held.strays,
            "messages at held connections, to whom nobody writes",
        )
        | note(
            held.protocol_faults,
            "times the protocol was broken at held connections",
        )
        | note(
            refused(&held.ramp) + refused(&held.comeback),
            "logins were refused, and not for their number",
        )
        | note(
            held.ramp.broken_off + held.comeback.broken_off,
            "logins ended before WELCOME, without a word",
        );
    let exhausted = held.ramp.exhausted + held.comeback.exhausted;
    let invalid = note(
        exhausted,
        "connection attempts found no local port or file descriptor left",
    );
    let missing = note(
        asked.saturating_sub(marks.ramped.live),
        "connections did not come up in the ramp",
    ) | note(
        asked.saturating_sub(marks.end.live),
        "connections were not live at the end",
    );
    let mut not_back = false;
    if marks.cut.is_some() && marks.back.is_none() {
        reasons.push("not all were back when the sending ended; a longer --duration?".to_owned());
        not_back = true;
    }
    if let Some(fault) = &held.fault {
        reasons.push(format!("one of the protocol faults: {fault}"));
    }

    let verdict = if broken || of_messages == Verdict::Fail {
        Verdict::Fail
    } else if invalid || of_messages == Verdict::Invalid {
        Verdict::Invalid
    } else if missing || not_back {
        Verdict::Fail
    } else {
        Verdict::Pass
    };
    (verdict, reasons)
}

/// Logins that the gateway closed for another reason than that there were too many.
fn refused(wave: &Wave) -> u64 {
    let others = wave.refused.iter();
    others
        .filter(|(code, _)| **code != CloseCode::OVERLOADED.0)
        .map(|(_, count)| count)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hold::figures::tests::with_good;

    fn verdict(change: impl FnOnce(&mut crate::hold::figures::tests::Parts)) -> (Verdict, usize) {
        with_good(change, |measurement| {
            let (verdict, reasons) = judge(measurement, (Verdict::Pass, Vec::new()));
            (verdict, reasons.len())
        })
    }

    #[test]
    fn a_run_that_held_all_passes_even_if_logins_were_put_off() {
        assert_eq!(verdict(|_| {}), (Verdict::Pass, 0));
        let put_off = verdict(|parts| {
            parts.held.ramp.refused.insert(4_005, 7);
            parts.held.comeback.connect_failures = 3;
        });
        assert_eq!(put_off, (Verdict::Pass, 0));
    }

    #[test]
    fn whatever_was_not_held_fails() {
        type Change = fn(&mut crate::hold::figures::tests::Parts);
        let faults: [(Change, usize); 11] = [
            (|parts| _ = parts.held.ramp.refused.insert(4_004, 1), 1),
            (|parts| _ = parts.held.comeback.refused.insert(4_010, 1), 1),
            (|parts| parts.held.comeback.broken_off = 1, 1),
            (|parts| _ = parts.held.drops.insert(4_004, 1), 1),
            (|parts| parts.held.heartbeats_missed = 1, 1),
            (|parts| parts.held.drains = 1, 1),
            (|parts| parts.held.strays = 1, 1),
            (|parts| parts.measured.transport.reconnects = 1, 1),
            (|parts| parts.marks.ramped.live -= 1, 1),
            (|parts| parts.marks.end.live -= 1, 1),
            (|parts| parts.marks.back = None, 1),
        ];
        for (number, (fault, reasons)) in faults.into_iter().enumerate() {
            assert_eq!(verdict(fault), (Verdict::Fail, reasons), "fault {number}");
        }
    }

    #[test]
    fn a_machine_without_ports_proves_nothing_about_what_is_missing() {
        let exhausted = verdict(|parts| {
            parts.held.ramp.exhausted = 5;
            parts.marks.ramped.live -= 5;
        });
        assert_eq!(exhausted, (Verdict::Invalid, 2));
        let dropped = verdict(|parts| {
            parts.held.ramp.exhausted = 5;
            parts.held.drops.insert(4_004, 1);
        });
        assert_eq!(dropped, (Verdict::Fail, 2));
    }
}
