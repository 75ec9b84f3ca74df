//! `capacity`: the highest rate that a gateway holds.
//!
//! [`search`] chooses rates, [`trial`] carries each out as a run of its own and says what it showed,
//! [`overrun`] ends one that is lost before it is over, [`report`] writes all down. Every trial has
//! new users and new connections: what an earlier one has left in the gateway is addressed to
//! nobody of this one, and is not counted.

mod overrun;
mod report;
mod search;
mod trial;

use crate::{
    cli::Args,
    deliver, interrupt,
    outputs::Outcome,
    plan::{Pace, Plan, RATE_MAX, parse_duration},
    process::Machine,
    progress::say,
    remote::Crew,
    verdict::Verdict,
};
use anyhow::{Context, bail};
use report::CapacityReport;
use search::{Bounds, Conclusion, Limit, Search, Step};
use std::time::Duration;
use trial::{Limits, Purpose, Trial};

/// Shorter ones have too few messages for a percentile.
const TRIAL_MIN: Duration = Duration::from_millis(500);

/// Finds the highest rate of a plan that a gateway holds, and confirms it by a longer run.
///
/// A rate holds when 99 of 100 messages arrive within --p99 of their time, no more than --loss of
/// them are missing, and nothing arrives twice, out of order, damaged or at the wrong user. From
/// --min on the rate is doubled until it fails, then the gap is halved. A gateway that falls behind
/// is not pressed on: the trial ends, the gateway may catch up, and the search goes on below.
///
/// Exit code: 0 when a rate was found and confirmed, 1 when not even --min holds, 2 when nothing can
/// be concluded.
#[derive(Debug, clap::Args)]
pub(crate) struct CapacityArgs {
    #[command(flatten)]
    run: Args,
    /// How late 99 of 100 messages may arrive
    #[arg(long, value_name = "T", value_parser = parse_duration, default_value = "100ms")]
    p99: Duration,
    /// Which share of the messages may be missing: 0, 0.001 or 0.1%
    #[arg(long, value_name = "SHARE", value_parser = parse_share, default_value = "0")]
    loss: f64,
    /// Lowest rate to try, messages per second
    #[arg(long, value_name = "R", default_value_t = 1_000.0)]
    min: f64,
    /// Highest rate to try, messages per second
    #[arg(long, value_name = "R", default_value_t = 10_000_000.0)]
    max: f64,
    /// How long a trial sends
    #[arg(long, value_name = "T", value_parser = parse_duration, default_value = "5s")]
    trial: Duration,
    /// How long the confirming run sends
    #[arg(long, value_name = "T", value_parser = parse_duration, default_value = "30s")]
    confirm: Duration,
    /// How far above the rate found the lowest may be that fails
    #[arg(long, value_name = "SHARE", value_parser = parse_share, default_value = "5%")]
    precision: f64,
}

impl CapacityArgs {
    pub(crate) fn run(&self) -> anyhow::Result<Verdict> {
        if let Some(flag) = self.run.rate_or_duration() {
            bail!(
                "{flag} is what capacity sets itself; say --min and --max, --trial and --confirm"
            );
        }
        let plan = self.run.plan()?;
        self.check(&plan)?;
        deliver(&self.run.outputs, || self.search(&plan))
    }

    fn check(&self, plan: &Plan) -> anyhow::Result<()> {
        if plan.hold.is_some() {
            bail!("capacity looks for a rate of messages; the plan `hold` is about connections");
        }
        if plan.pingpong.is_some() || plan.pace == Pace::Rounds {
            bail!("capacity needs a plan whose rate can be set: not pingpong, not --pace rounds");
        }
        if plan.unverified {
            bail!("capacity judges by deliveries: leave --unverified out");
        }
        // Written so that NaN is refused too.
        let ordered = self.min > 0.0 && self.min <= self.max && self.max <= RATE_MAX;
        if !ordered {
            bail!(
                "--min is {} and --max {}, but 0 < min <= max <= {RATE_MAX} must hold",
                self.min,
                self.max
            );
        }
        if self.trial < TRIAL_MIN || self.confirm < self.trial {
            bail!("--trial must be at least 500ms, and --confirm at least as long as --trial");
        }
        let precise = (0.005..=1.0).contains(&self.precision);
        if !precise || self.loss >= 1.0 || self.p99.is_zero() {
            bail!("--precision must be 0.5% to 100%, --loss below 100%, --p99 above 0");
        }
        Ok(())
    }

    fn search(&self, plan: &Plan) -> anyhow::Result<Outcome> {
        let limits = Limits {
            p99: self.p99,
            loss: self.loss,
        };
        let bounds = Bounds {
            min: self.min,
            max: self.max,
            precision: self.precision,
        };
        let mut crew = Crew::gather(&self.run.remote)?;
        let mut search = Search::new(bounds);
        let mut trials: Vec<Trial> = Vec::new();
        let mut last = None;
        let conclusion = loop {
            let (purpose, rate, duration) = match search.step() {
                Step::Try(rate) => (Purpose::Search, rate, self.trial),
                Step::Confirm(rate) => (Purpose::Confirm, rate, self.confirm),
                Step::Done(conclusion) => break conclusion,
            };
            let plan = Plan {
                rate_per_s: rate,
                duration,
                ..plan.clone()
            };
            let number = trials.len() + 1;
            let done = trial::carry_out(&mut crew, &self.run, &plan, &limits, (purpose, number));
            // One that was ended before its first message has no result; those before it have.
            if !(interrupt::asked() && done.is_err() && number > 1) {
                let (trial, report, observed) = done.with_context(|| {
                    format!("trial {number}, at {rate} messages/s, has no result")
                })?;
                say(&trial.line());
                search.record(trial.finding());
                last = Some((purpose, report, observed));
                trials.push(trial);
            }
            if interrupt::asked() {
                break Conclusion {
                    rate: None,
                    limit: Limit::Interrupted,
                };
            }
        };
        let (purpose, shown, observed) = last.context("no trial was carried out")?;
        let confirmation = (purpose == Purpose::Confirm).then(|| shown.clone());
        let report = CapacityReport {
            verdict: match (conclusion.rate, conclusion.limit) {
                (Some(_), _) => Verdict::Pass,
                (None, Limit::Generator | Limit::Interrupted) => Verdict::Invalid,
                (None, _) => Verdict::Fail,
            },
            reasons: Vec::new(),
            plan: plan.name.to_string(),
            target: self.run.target(plan),
            seed: plan.seed,
            connections: plan.connections,
            body_bytes: plan.body_bytes,
            p99_max_us: self.p99.as_micros() as u64,
            loss_max: self.loss,
            min_per_s: self.min,
            max_per_s: self.max,
            precision: self.precision,
            trial_s: self.trial.as_secs_f64(),
            confirm_s: self.confirm.as_secs_f64(),
            found: None,
            trials,
            confirmation,
            machine: Machine::read(),
        }
        .concluded(conclusion);
        let outcome = Outcome::new(&report, &shown, report.table(), observed)?;
        Ok(outcome.of_several(report.verdict))
    }
}

/// `0.05` or `5%`.
fn parse_share(text: &str) -> Result<f64, String> {
    let (number, scale) = match text.strip_suffix('%') {
        Some(number) => (number, 0.01),
        None => (text, 1.0),
    };
    let share = number.trim().parse::<f64>().map(|number| number * scale);
    match share {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("`{text}` is not a share: 0 to 1, or 0% to 100%")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Command, tests::parsed};

    fn search(line: &str) -> Box<CapacityArgs> {
        match parsed(&format!("capacity {line}")).command {
            Some(Command::Capacity(search)) => search,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn refused(line: &str) -> String {
        search(line).run().expect_err(line).to_string()
    }

    #[test]
    fn pairs_are_searched_unless_another_plan_is_named() {
        let plan = |line: &str| search(line).run.plan().expect(line).name;
        assert_eq!(plan(""), "relay");
        assert_eq!(plan("smoke"), "smoke");
    }

    #[test]
    fn bad_bounds_are_named() {
        for (line, part) in [
            ("hold", "hold"),
            ("pingpong", "pingpong"),
            ("relay --pace rounds", "rounds"),
            ("--rate 5", "--min and --max"),
            ("--duration 5s", "--trial and --confirm"),
            ("--min 0", "--min is 0"),
            ("--min 10 --max 5", "--max 5"),
            ("--min nan", "--min is NaN"),
            ("--max 1e300", "10000000 must hold"),
            ("--acks minimal --unverified", "deliveries"),
            ("--trial 100ms", "--trial"),
            ("--trial 5s --confirm 4s", "--confirm"),
            ("--precision 0", "--precision"),
            ("--loss 100%", "--loss"),
            ("--p99 0s", "--p99"),
        ] {
            let message = refused(line);
            assert!(message.contains(part), "{line}: {message}");
        }
    }

    #[test]
    fn shares_are_read() {
        assert_eq!(parse_share("5%"), Ok(0.05));
        assert_eq!(parse_share("0.25"), Ok(0.25));
        assert_eq!(parse_share("0"), Ok(0.0));
        for text in ["", "%", "-1", "1.5", "150%", "nan"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
    }
}
