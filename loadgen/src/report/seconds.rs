//! A run by the second, as columns of numbers.

use super::round;
use crate::{
    observer::{Observed, Sample},
    process::Usage,
    series::{Measure, Packed},
};
use serde::Serialize;

/// Columns of one length each: an entry per step, or per sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Seconds {
    /// Seconds that an entry of the times counts for; the first begins when the first message is
    /// due.
    pub step_s: u32,
    pub latency_us: Times,
    /// Absent when nothing was recorded.
    pub service_us: Option<Times>,
    pub sent_latency_us: Times,
    pub slip_us: Times,
    pub samples: Rates,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Times {
    pub samples: Vec<u64>,
    pub p50: Vec<u64>,
    pub p99: Vec<u64>,
    pub max: Vec<u64>,
}

/// What the coordinating thread saw. An entry is about the time since the one before; the first is
/// left out, as there is nothing before it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Rates {
    /// When, in seconds after the first message was due; negative before.
    pub at_s: Vec<f64>,
    pub connections: Vec<u64>,
    pub sent_per_s: Vec<f64>,
    pub accepted_per_s: Vec<f64>,
    pub delivered_per_s: Vec<f64>,
    pub errors_per_s: Vec<f64>,
    /// Processors' worth of CPU time, and resident memory. `null` where it could not be read.
    pub server_cpu: Vec<Option<f64>>,
    pub server_rss_bytes: Vec<Option<u64>>,
    pub generator_cpu: Vec<Option<f64>>,
    pub generator_rss_bytes: Vec<Option<u64>>,
}

impl Seconds {
    pub(crate) fn of(observed: &Observed) -> Self {
        let times = |measure: Measure| {
            let steps = observed.series.steps().iter();
            Times::of(steps.map(|step| &step[measure as usize]))
        };
        let service_us = times(Measure::Service);
        Self {
            step_s: observed.series.step_s(),
            latency_us: times(Measure::Latency),
            service_us: service_us
                .samples
                .iter()
                .any(|n| *n > 0)
                .then_some(service_us),
            sent_latency_us: times(Measure::Sent),
            slip_us: times(Measure::Slip),
            samples: Rates::of(observed.samples.all(), observed.start_us),
        }
    }
}

impl Times {
    fn of<'a>(steps: impl Iterator<Item = &'a Packed>) -> Self {
        let mut times = Self::default();
        for step in steps {
            times.samples.push(step.samples);
            times.p50.push(step.p50);
            times.p99.push(step.p99);
            times.max.push(step.max);
        }
        times
    }
}

impl Rates {
    fn of(samples: &[Sample], start_us: u64) -> Self {
        let mut rates = Self::default();
        for pair in samples.windows(2) {
            rates.add(&pair[0], &pair[1], start_us);
        }
        rates
    }

    fn add(&mut self, before: &Sample, now: &Sample, start_us: u64) {
        let passed_us = now.at_us.saturating_sub(before.at_us).max(1) as f64;
        let per_s = |now: u64, before: u64| {
            round(now.saturating_sub(before) as f64 * 1e6 / passed_us, 10.0)
        };
        let cpu = |before: Option<Usage>, now: Option<Usage>| {
            let cpu_us = now?.cpu_us.saturating_sub(before?.cpu_us) as f64;
            Some(round(cpu_us / passed_us, 10_000.0))
        };
        let rss_bytes = |usage: Option<Usage>| usage.map(|usage| usage.rss_bytes);
        let at_s = (now.at_us as f64 - start_us as f64) / 1e6;
        self.at_s.push(round(at_s, 1_000.0));
        self.connections.push(now.up);
        self.sent_per_s.push(per_s(now.sent, before.sent));
        self.accepted_per_s
            .push(per_s(now.accepted, before.accepted));
        self.delivered_per_s
            .push(per_s(now.delivered, before.delivered));
        self.errors_per_s.push(per_s(now.errors, before.errors));
        self.server_cpu.push(cpu(before.server, now.server));
        self.server_rss_bytes.push(rss_bytes(now.server));
        self.generator_cpu.push(cpu(before.own, now.own));
        self.generator_rss_bytes.push(rss_bytes(now.own));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        observer::Samples,
        series::{Series, tests::interval},
    };

    /// Three seconds of a run that began to send after one: 100, 200 and 300 messages.
    pub(crate) fn observed() -> Observed {
        let mut series = Series::default();
        for second in 0..3 {
            let latencies: Vec<u64> = (1..=100).map(|n| n * (u64::from(second) + 1)).collect();
            series.add(interval(second, &latencies));
        }
        series.finish();
        let usage = |cpu_us, rss_bytes| Some(Usage { cpu_us, rss_bytes });
        let sample = |second: u64, sent, delivered, cpu_us| Sample {
            at_us: second * 1_000_000,
            up: 50,
            sent,
            accepted: sent,
            delivered,
            errors: 0,
            server: usage(cpu_us, 1_000_000 + second),
            own: None,
        };
        Observed {
            series,
            samples: Samples::of(vec![
                sample(0, 0, 0, 0),
                sample(1, 0, 0, 10_000),
                sample(2, 100, 90, 510_000),
                // One was missed.
                sample(4, 600, 600, 2_510_000),
            ]),
            start_us: 1_000_000,
            ..Observed::default()
        }
    }

    #[test]
    fn rates_are_of_the_time_between_two_samples() {
        let seconds = Seconds::of(&observed());
        let samples = &seconds.samples;
        assert_eq!(samples.at_s, [0.0, 1.0, 3.0]);
        assert_eq!(samples.sent_per_s, [0.0, 100.0, 250.0]);
        assert_eq!(samples.delivered_per_s, [0.0, 90.0, 255.0]);
        assert_eq!(samples.server_cpu, [Some(0.01), Some(0.5), Some(1.0)]);
        assert_eq!(samples.generator_cpu, [None; 3]);
        assert_eq!(samples.server_rss_bytes[0], Some(1_000_001));
    }

    #[test]
    fn times_have_an_entry_per_second() {
        let seconds = Seconds::of(&observed());
        assert_eq!(seconds.step_s, 1);
        assert_eq!(seconds.latency_us.samples, [100; 3]);
        assert_eq!(seconds.latency_us.p50, [50, 100, 150]);
        assert_eq!(seconds.latency_us.max, [100, 200, 300]);
        assert_eq!(seconds.service_us, None);
        assert_eq!(seconds.slip_us.samples, [0; 3]);
    }
}
