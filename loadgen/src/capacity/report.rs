//! The result of a search: as JSON for programs and as a table for people.

use super::{
    search::{Conclusion, Limit},
    trial::{Purpose, Result, Trial},
};
use crate::{
    process::Machine,
    report::{Percentiles, Report, grouped},
    verdict::Verdict,
};
use serde::Serialize;
use std::fmt::{self, Write};

/// The confirmed rate and what the confirming run measured at it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Found {
    pub rate_per_s: f64,
    /// `gateway`, or what else stood in the way of more: `generator`, `maximum`, `trials`.
    pub limited_by: &'static str,
    /// The gateway was not the limit: it may hold more.
    pub is_lower_bound: bool,
    pub latency_us: Percentiles,
    pub server_cpu_us_per_message: Option<f64>,
    pub generator_busy: f64,
    pub loss_share: f64,
}

/// The JSON file. Keys are only ever added.
#[derive(Debug, Serialize)]
pub(crate) struct CapacityReport {
    pub verdict: Verdict,
    pub reasons: Vec<String>,
    pub plan: String,
    pub target: String,
    pub seed: u64,
    pub connections: u32,
    pub body_bytes: usize,
    pub p99_max_us: u64,
    pub loss_max: f64,
    pub min_per_s: f64,
    pub max_per_s: f64,
    pub precision: f64,
    pub trial_s: f64,
    pub confirm_s: f64,
    pub found: Option<Found>,
    pub trials: Vec<Trial>,
    /// The whole report of the confirming run.
    pub confirmation: Option<Report>,
    pub machine: Machine,
}

impl CapacityReport {
    /// With what the search came to.
    pub(super) fn concluded(mut self, conclusion: Conclusion) -> Self {
        let last = self.trials.last();
        let limited_by = match conclusion.limit {
            Limit::Gateway => "gateway",
            Limit::Generator => "generator",
            Limit::Maximum => "maximum",
            Limit::Trials => "trials",
            Limit::Interrupted => "interrupted",
        };
        self.found = conclusion.rate.zip(last).map(|(rate_per_s, last)| Found {
            rate_per_s,
            limited_by,
            is_lower_bound: conclusion.limit != Limit::Gateway,
            latency_us: last.latency_us,
            server_cpu_us_per_message: last.server_cpu_us_per_message,
            generator_busy: last.generator_busy,
            loss_share: last.loss_share,
        });
        let rate = grouped(conclusion.rate.unwrap_or_default() as u64);
        let reason = match (conclusion.rate, conclusion.limit) {
            (Some(_), Limit::Gateway) => format!("{rate} messages/s; the gateway was the limit"),
            (Some(_), Limit::Generator) => {
                format!("at least {rate} messages/s; the generator was the limit")
            }
            (Some(_), Limit::Maximum) => {
                format!("at least {rate} messages/s; --max was the limit")
            }
            (_, Limit::Interrupted) => {
                let held = self
                    .trials
                    .iter()
                    .filter(|trial| trial.result == Result::Held);
                let rate = held.map(|trial| trial.rate_per_s).fold(0.0, f64::max);
                format!(
                    "interrupted before a rate was confirmed; {} messages/s held in a trial",
                    grouped(rate as u64)
                )
            }
            (Some(_), Limit::Trials) => {
                format!("at least {rate} messages/s; results changed too often to find the limit")
            }
            (None, Limit::Generator) => {
                "the generator could not even keep a schedule at --min, or at what had held".into()
            }
            (None, _) => "not even --min held".into(),
        };
        self.reasons.push(reason);
        // What stood in the way, in its own words.
        let wanted = match conclusion {
            Conclusion {
                limit: Limit::Generator,
                ..
            } => Some(Result::Invalid),
            Conclusion {
                limit: Limit::Gateway,
                ..
            } => Some(Result::Failed),
            _ => None,
        };
        let mut trials = self.trials.iter().rev();
        if let Some(trial) = trials.find(|trial| Some(trial.result) == wanted) {
            let rate = grouped(trial.rate_per_s as u64);
            let reasons = trial.reasons.iter();
            self.reasons
                .extend(reasons.map(|reason| format!("at {rate}/s: {reason}")));
        }
        self
    }

    pub(super) fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_table(&mut out);
        out
    }

    fn write_table(&self, out: &mut String) -> fmt::Result {
        writeln!(
            out,
            "capacity of {}: {} connections, {} bytes, p99 at most {} us, loss at most {} %, target {}",
            self.plan,
            grouped(u64::from(self.connections)),
            grouped(self.body_bytes as u64),
            grouped(self.p99_max_us),
            self.loss_max * 100.0,
            self.target,
        )?;
        writeln!(
            out,
            "{} x {}, Linux {}\n",
            self.machine.cpus, self.machine.model, self.machine.kernel
        )?;
        writeln!(
            out,
            "{:>3} {:<8}{:>11} {:<8}{:>10}{:>10}{:>10}{:>10}{:>9}",
            "", "", "messages/s", "", "p50 us", "p99 us", "p99.9 us", "loss %", "CPU us"
        )?;
        for trial in &self.trials {
            let purpose = match trial.purpose {
                Purpose::Search => "trial",
                Purpose::Confirm => "confirm",
            };
            let cpu = trial.server_cpu_us_per_message;
            writeln!(
                out,
                "{:>3} {purpose:<8}{:>11} {:<8}{:>10}{:>10}{:>10}{:>10.3}{:>9}",
                trial.number,
                grouped(trial.rate_per_s as u64),
                trial.result.word(),
                grouped(trial.latency_us.p50),
                grouped(trial.latency_us.p99),
                grouped(trial.latency_us.p999),
                trial.loss_share * 100.0,
                cpu.map_or_else(|| "-".to_owned(), |us| format!("{us:.1}")),
            )?;
        }
        writeln!(out, "\n{}", self.verdict)?;
        for reason in &self.reasons {
            writeln!(out, "  {reason}")?;
        }
        Ok(())
    }
}
