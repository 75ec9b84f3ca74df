//! One trial: a run at one rate, ended early when the gateway is overrun, and what it showed.

use super::{
    overrun::{Overrun, Pressure},
    search::Finding,
};
use crate::{
    cli::Args,
    interrupt,
    observer::Observed,
    plan::Plan,
    process,
    remote::Crew,
    report::{Percentiles, Report, grouped, round},
    verdict::Verdict,
};
use serde::Serialize;
use std::{
    thread,
    time::{Duration, Instant},
};

/// After a trial that failed: a gateway that cannot be looked at gets this long to recover.
const REST: Duration = Duration::from_secs(3);
/// One that can be looked at gets until it is quiet, but no longer than this: it may have other
/// users.
const REST_MAX: Duration = Duration::from_secs(20);
/// Between two looks at its CPU time.
const REST_LOOK: Duration = Duration::from_millis(250);
/// Quiet is using less of a processor than this.
const QUIET: f64 = 0.1;

/// What a rate must keep to hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub p99: Duration,
    /// Share of the messages that may be missing.
    pub loss: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Purpose {
    Search,
    Confirm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Result {
    Held,
    Failed,
    Invalid,
}

/// A trial in the report. Keys are only ever added.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Trial {
    pub number: usize,
    pub purpose: Purpose,
    pub rate_per_s: f64,
    pub result: Result,
    /// Why it did not hold.
    pub reasons: Vec<String>,
    /// It was ended before its time, because it could not hold any more.
    pub ended_early: bool,
    pub sent: u64,
    pub delivered: u64,
    pub delivered_per_s: f64,
    /// Of the messages that were due, those that never arrived.
    pub loss_share: f64,
    pub latency_us: Percentiles,
    pub server_cpu_us_per_message: Option<f64>,
    pub generator_busy: f64,
    pub slip_p99_us: u64,
}

/// Carries out a trial of the plan's rate and duration. After one that failed the gateway has had
/// time to recover.
pub(super) fn carry_out(
    crew: &mut Crew,
    args: &Args,
    plan: &Plan,
    limits: &Limits,
    (purpose, number): (Purpose, usize),
) -> anyhow::Result<(Trial, Report, Observed)> {
    let p99_us = limits.p99.as_micros() as u64;
    // One of a group is as many as it has members.
    let each = plan.fanout.map_or(1.0, |fanout| f64::from(fanout.members));
    let messages = plan.rate_per_s * plan.duration.as_secs_f64() * each;
    let mut pressure = Pressure::new(p99_us, messages, limits.loss, crew.stale_us());
    let mut overrun = None;
    let measured = crew.run(args, plan, &mut |sight| {
        overrun = pressure.look(sight);
        overrun.is_some()
    })?;
    let report = Report::new(&measured);
    let (result, reasons) = assess(&report, limits, overrun);
    if result == Result::Failed {
        rest(report.server.as_ref().map(|server| server.pid));
    }
    let trial = Trial {
        number,
        purpose,
        rate_per_s: plan.rate_per_s,
        result,
        reasons,
        ended_early: overrun.is_some(),
        sent: report.sent,
        delivered: report.delivered,
        delivered_per_s: report.rate_per_s,
        loss_share: loss_share(&report),
        latency_us: report.latency_us,
        server_cpu_us_per_message: report
            .server
            .as_ref()
            .and_then(|server| server.cpu_us_per_message),
        generator_busy: report.generator.busy,
        slip_p99_us: report.slip_us.p99,
    };
    Ok((trial, report, measured.observed))
}

/// Messages that were due and never arrived.
fn missing(report: &Report) -> u64 {
    let refused: u64 = report.refused.values().sum();
    report.lost + report.unanswered + refused + report.not_queued
}

fn loss_share(report: &Report) -> f64 {
    let due = report.sent + report.not_queued;
    round(missing(report) as f64 / (due as f64).max(1.0), 1e6)
}

fn assess(report: &Report, limits: &Limits, overrun: Option<Overrun>) -> (Result, Vec<String>) {
    let mut reasons = report.reasons.clone();
    if report.verdict == Verdict::Invalid {
        return (Result::Invalid, reasons);
    }
    let broken = report.duplicated
        + report.reordered
        + report.misrouted
        + report.corrupt
        + report.misnumbered
        + report.refused_delivered
        + report.protocol_faults;
    // Missing messages alone may be allowed; their number was compared with what was due.
    let missing = missing(report) as f64;
    let due = (report.sent + report.not_queued) as f64;
    let excused = limits.loss > 0.0 && broken == 0 && missing <= limits.loss * due;
    let mut failed = report.verdict == Verdict::Fail && !excused;
    let p99_us = report.latency_us.p99;
    let bound_us = limits.p99.as_micros() as u64;
    if p99_us > bound_us {
        failed = true;
        reasons.push(format!(
            "99 of 100 arrived within {} us only, allowed {} us",
            grouped(p99_us),
            grouped(bound_us)
        ));
    }
    if let Some(overrun) = overrun {
        failed = true;
        reasons.push(overrun.to_string());
    }
    match failed {
        true => (Result::Failed, reasons),
        false => (Result::Held, reasons),
    }
}

/// Waits until the gateway has done what is left to do.
fn rest(pid: Option<u32>) {
    let Some(pid) = pid else {
        thread::sleep(REST);
        return;
    };
    let begun = Instant::now();
    let cpu_us = || process::usage(pid).map(|usage| usage.cpu_us);
    let mut before = cpu_us();
    while begun.elapsed() < REST_MAX && !interrupt::asked() {
        thread::sleep(REST_LOOK);
        let now = cpu_us();
        let used_us = now
            .zip(before)
            .map(|(now, before)| now.saturating_sub(before));
        let quiet_us = (REST_LOOK.as_micros() as f64 * QUIET) as u64;
        // One that cannot be looked at any more has ended; the next trial says so.
        if used_us.is_none_or(|used_us| used_us < quiet_us) {
            return;
        }
        before = now;
    }
}

impl Trial {
    pub(super) const fn finding(&self) -> Finding {
        match self.result {
            Result::Held => Finding::Held,
            Result::Failed => Finding::Failed,
            Result::Invalid => Finding::Invalid,
        }
    }

    /// For people, while the search goes on.
    pub(super) fn line(&self) -> String {
        let purpose = match self.purpose {
            Purpose::Search => "trial",
            Purpose::Confirm => "confirm",
        };
        let why = self.reasons.first().map(String::as_str).unwrap_or_default();
        format!(
            "{purpose:<8}{:>3}  {:>10}/s  {:<8} p99 {:>10} us  {why}",
            self.number,
            grouped(self.rate_per_s as u64),
            self.result.word(),
            grouped(self.latency_us.p99),
        )
        .trim_end()
        .to_owned()
    }
}

impl Result {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Failed => "failed",
            Self::Invalid => "invalid",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Measured, tests::good};

    const STRICT: Limits = Limits {
        p99: Duration::from_millis(100),
        loss: 0.0,
    };

    fn assessed(
        limits: Limits,
        overrun: Option<Overrun>,
        change: impl FnOnce(&mut Measured),
    ) -> Result {
        let mut measured = good();
        change(&mut measured);
        assess(&Report::new(&measured), &limits, overrun).0
    }

    #[test]
    fn a_trial_holds_when_it_passes_in_time() {
        let late = |m: &mut Measured| m.latency_us.record(150_000).expect("within bounds");
        assert_eq!(assessed(STRICT, None, |_| {}), Result::Held);
        assert_eq!(assessed(STRICT, None, late), Result::Failed);
        let patient = Limits {
            p99: Duration::from_millis(200),
            ..STRICT
        };
        assert_eq!(assessed(patient, None, late), Result::Held);
        let overrun = Some(Overrun::Growing { messages: 1 });
        assert_eq!(assessed(STRICT, overrun, |_| {}), Result::Failed);
    }

    #[test]
    fn only_missing_messages_can_be_excused_and_only_so_many() {
        let tolerant = Limits {
            loss: 0.02,
            ..STRICT
        };
        assert_eq!(
            assessed(STRICT, None, |m| m.counts.lost = 1),
            Result::Failed
        );
        assert_eq!(
            assessed(tolerant, None, |m| m.counts.lost = 2),
            Result::Held
        );
        assert_eq!(
            assessed(tolerant, None, |m| m.counts.lost = 3),
            Result::Failed
        );
        assert_eq!(
            assessed(tolerant, None, |m| m.counts.duplicated = 1),
            Result::Failed
        );
    }

    #[test]
    fn a_generator_that_was_late_shows_nothing() {
        let late = |m: &mut Measured| m.slip_us.record(20_000).expect("within bounds");
        let overrun = Some(Overrun::TooLate { messages: 9 });
        assert_eq!(assessed(STRICT, None, late), Result::Invalid);
        assert_eq!(assessed(STRICT, overrun, late), Result::Invalid);
    }

    #[test]
    fn a_busy_server_is_waited_for_and_a_quiet_one_is_not() {
        let begun = Instant::now();
        let mut quiet = std::process::Command::new("sleep")
            .arg("30")
            .spawn()
            .expect("a process");
        rest(Some(quiet.id()));
        quiet.kill().expect("a child");
        quiet.wait().expect("a child");
        assert!(begun.elapsed() < REST_MAX / 2);

        let mut busy = std::process::Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .expect("a shell");
        let pid = busy.id();
        let ended = thread::spawn(move || {
            thread::sleep(Duration::from_millis(1_500));
            busy.kill().expect("a child");
            busy.wait().expect("a child");
        });
        let begun = Instant::now();
        rest(Some(pid));
        assert!(begun.elapsed() >= Duration::from_millis(1_400));
        ended.join().expect("no panic");
    }
}
