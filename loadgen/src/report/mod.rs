//! The result of a run: what was measured, and the forms in which it leaves.
//!
//! [`json`] holds all of it for programs, [`table`] what people look at first, [`html`] a page with
//! charts, [`hlog`] the times of each second for the tools of HdrHistogram. [`compare`] puts two
//! JSON files side by side.

pub(crate) mod compare;
pub(crate) mod hlog;
pub(crate) mod html;
mod json;
mod seconds;
mod significance;
mod table;
mod time;

pub(crate) use json::{Report, close_name, to_json};

use crate::{
    cli::Args,
    environment::Doubts,
    figures::Figures,
    fleet::{Promises, promises_to},
    observer::Observed,
    plan::Plan,
    process::{Machine, Usage},
    remote::Host,
    verifier::{Counts, histogram},
    worker::Transport,
};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;

/// A worker that is busy for more of the time than this has no reserve: what it measures is itself.
const BUSY_MAX: f64 = 0.95;

/// Everything that was measured, added up over the workers.
#[derive(Debug)]
pub(crate) struct Measured {
    pub plan: Plan,
    pub seed: u64,
    pub run: u64,
    pub target: String,
    pub machine: Machine,
    /// Connections that were up when sending began.
    pub connections: u64,
    pub counts: Counts,
    pub transport: Transport,
    pub latency_us: Histogram<u64>,
    pub sent_latency_us: Histogram<u64>,
    /// From being handed to the driver to arrival.
    pub service_us: Histogram<u64>,
    /// From the cut until all are back (plan `hold`); part of `latency_us`.
    pub storm_latency_us: Histogram<u64>,
    pub slip_us: Histogram<u64>,
    /// Bound of its 99th percentile.
    pub slip_max_us: u64,
    /// What the machine did to the figures is a warning.
    pub functional: bool,
    pub not_queued: u64,
    pub withheld: u64,
    pub unsent: u64,
    /// What some plans measure besides.
    pub figures: Figures,
    /// From the first message's time to the last arrival, at least the plan's duration.
    pub window_us: u64,
    /// While messages were sent.
    pub generator_cpu_us: u64,
    /// Of the busiest worker, while messages were sent.
    pub generator_busy: f64,
    pub workers: usize,
    pub server: Option<MeasuredServer>,
    /// By how much this process grew until all were up, per connection.
    pub own_bytes_per_connection: Option<f64>,
    /// What the target tells its clients, and so what was checked.
    pub promises: Promises,
    /// Why the figures prove nothing, from outside of them.
    pub doubts: Vec<String>,
    /// What is to be known when the figures are read, from outside of them.
    pub warnings: Vec<String>,
    /// The workers elsewhere, if there were any.
    pub hosts: Vec<Host>,
    /// By the second, and of the machine.
    pub observed: Observed,
}

impl Measured {
    /// Of a run that is over, before the workers' findings are added.
    pub(crate) fn new(
        args: &Args,
        plan: &Plan,
        run: u64,
        connections: u64,
        server: Option<MeasuredServer>,
    ) -> Self {
        Self {
            plan: plan.clone(),
            seed: plan.seed,
            run,
            target: args.target(plan),
            machine: Machine::read(),
            connections,
            counts: Counts::default(),
            transport: Transport::default(),
            latency_us: histogram(),
            sent_latency_us: histogram(),
            service_us: histogram(),
            storm_latency_us: histogram(),
            slip_us: histogram(),
            slip_max_us: args.slip_max.as_micros() as u64,
            functional: args.functional,
            not_queued: 0,
            withheld: 0,
            unsent: 0,
            figures: Figures::new(),
            window_us: plan.duration.as_micros() as u64,
            generator_cpu_us: 0,
            generator_busy: 0.0,
            workers: 0,
            server,
            own_bytes_per_connection: None,
            promises: promises_to(plan),
            doubts: Vec::new(),
            warnings: Vec::new(),
            hosts: Vec::new(),
            observed: Observed::default(),
        }
    }

    /// What there is to doubt about the machine that measured.
    pub(crate) fn doubts_of_the_machine(&self) -> Doubts {
        let spins = self.plan.spins();
        let mut doubts = self.observed.environment.doubts(self.counts.sent, spins);
        // One that never sleeps is always busy; its slip says whether it kept up.
        if self.generator_busy > BUSY_MAX && !spins {
            doubts.invalid.push(format!(
                "the generator was saturated: {:.0} % of a processor, allowed {:.0} %",
                self.generator_busy * 100.0,
                BUSY_MAX * 100.0
            ));
        }
        if self.functional {
            doubts.warnings.splice(0..0, doubts.invalid.drain(..));
        }
        doubts
    }
}

/// The process under test, before the first connection, before the first message, at the end.
#[derive(Clone, Debug)]
pub(crate) struct MeasuredServer {
    pub pid: u32,
    pub name: String,
    pub at_rest: Usage,
    pub connected: Usage,
    pub end: Usage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
    pub mean: f64,
    pub samples: u64,
}

impl Percentiles {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        Self {
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
            mean: (histogram.mean() * 10.0).round() / 10.0,
            samples: histogram.len(),
        }
    }
}

pub(crate) fn named(counts: &BTreeMap<u16, u64>, name: fn(u16) -> String) -> BTreeMap<String, u64> {
    counts
        .iter()
        .map(|(code, count)| (name(*code), *count))
        .collect()
}

/// What somebody else said, for a terminal: on one line, and not too long.
pub(crate) fn printable(text: &str) -> String {
    const CHARACTERS_MAX: usize = 200;
    let plain = text.chars().take(CHARACTERS_MAX);
    plain
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// 1234567 as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

pub(crate) fn round(value: f64, per_unit: f64) -> f64 {
    (value * per_unit).round() / per_unit
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Of a run without fault.
    pub(crate) fn good() -> Measured {
        let plan = Plan::named("smoke").expect("built in");
        let mut slip_us = histogram();
        slip_us.record(50).expect("within bounds");
        Measured {
            connections: u64::from(plan.connections),
            promises: promises_to(&plan),
            plan,
            seed: 1,
            run: 2,
            target: "127.0.0.1:7400".to_owned(),
            machine: Machine::read(),
            counts: Counts {
                sent: 100,
                accepted: 100,
                delivered: 100,
                ..Counts::default()
            },
            transport: Transport::default(),
            latency_us: histogram(),
            sent_latency_us: histogram(),
            service_us: histogram(),
            storm_latency_us: histogram(),
            slip_us,
            slip_max_us: 10_000,
            functional: false,
            not_queued: 0,
            withheld: 0,
            unsent: 0,
            figures: Figures::new(),
            window_us: 50_000,
            generator_cpu_us: 300,
            generator_busy: 0.1,
            workers: 1,
            server: None,
            own_bytes_per_connection: None,
            doubts: Vec::new(),
            warnings: Vec::new(),
            hosts: Vec::new(),
            observed: Observed::default(),
        }
    }

    #[test]
    fn what_a_stranger_says_does_not_command_the_terminal() {
        let said = printable(&format!("no\u{1b}[2J\r\n{}", "é".repeat(500)));
        assert!(said.starts_with("no\u{fffd}[2J\u{fffd}\u{fffd}é"), "{said}");
        assert_eq!(said.chars().count(), 200);
        assert_eq!(printable("not signed by our key"), "not signed by our key");
    }

    #[test]
    fn thousands_are_set_apart() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (12_345_678, "12,345,678"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
