//! What was measured second by second.
//!
//! A worker records into running totals only. Once a second its [`Tap`] takes what has come since
//! the second before, as the difference of two states of a total, and leaves it in a [`Mailbox`];
//! the coordinating thread adds up the workers in a [`Series`]. So a message costs nothing for
//! being in a second.
//!
//! # Memory
//! A worker keeps one histogram per [`Measure`] more (0.2 MB each). A finished step of the series
//! is kept packed (HdrHistogram V2, deflated: some hundred bytes to a few kilobytes per measure),
//! and there are at most [`STEPS_MAX`] of them: when they are full, neighbours are joined and a
//! step counts for twice the time. An hour is kept by the second, two hours in steps of two, a week
//! in steps of 256.
//!
//! # Invariants
//! - All steps of a measure together are what the total would have been.
//! - A value belongs to the second in which it was recorded, which is when the message arrived.

use crate::{remote, verifier::histogram};
use hdrhistogram::{
    Histogram,
    serialization::{Deserializer, Serializer, V2DeflateSerializer},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Steps of a series, at most.
pub(crate) const STEPS_MAX: usize = 3_600;
/// Intervals that may wait in a mailbox; more are joined with the last.
const MAILBOX_MAX: usize = 8;
/// Seconds that stay unpacked, so that slower workers can still be added: the one that is over and
/// the one that runs.
const OPEN_MAX: usize = 2;
const SECOND_US: u64 = 1_000_000;

/// What is measured in time, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    /// From the intended time of a message to its arrival.
    Latency,
    /// From the moment it was handed to the driver to its arrival.
    Service,
    /// From its intended time to the answer to its sender.
    Sent,
    /// From its intended time to the moment it was handed to the driver.
    Slip,
}

impl Measure {
    pub(crate) const COUNT: usize = 4;
    pub(crate) const ALL: [Self; Self::COUNT] =
        [Self::Latency, Self::Service, Self::Sent, Self::Slip];

    /// Its tag in an interval log.
    pub(crate) const fn tag(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Service => "service",
            Self::Sent => "sent",
            Self::Slip => "slip",
        }
    }
}

/// By [`Measure`]; `None` where nothing was recorded.
pub(crate) type Parts = [Option<Histogram<u64>>; Measure::COUNT];

/// What one worker recorded in one second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Interval {
    /// Counted from the time at which the first message was due.
    pub second: u32,
    #[serde(with = "remote::histogram::parts")]
    pub parts: Parts,
}

/// Where a worker leaves its intervals. The worker never waits for the reader.
#[derive(Debug, Default)]
pub(crate) struct Mailbox(Mutex<Vec<Interval>>);

impl Mailbox {
    pub(crate) fn put(&self, interval: Interval) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = waiting.len() >= MAILBOX_MAX;
        match waiting.last_mut().filter(|_| is_full) {
            Some(last) => join(&mut last.parts, interval.parts),
            None => waiting.push(interval),
        }
    }

    pub(crate) fn take(&self) -> Vec<Interval> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *waiting)
    }
}

/// What several workers recorded, one for each second.
pub(crate) fn by_second(intervals: impl Iterator<Item = Interval>) -> Vec<Interval> {
    let mut seconds: BTreeMap<u32, Parts> = BTreeMap::new();
    intervals.for_each(|one| join(seconds.entry(one.second).or_default(), one.parts));
    let intervals = seconds.into_iter();
    intervals
        .map(|(second, parts)| Interval { second, parts })
        .collect()
}

/// Cuts a worker's running totals into seconds.
#[derive(Debug)]
pub(crate) struct Tap {
    /// The second that runs.
    second: u32,
    before: [Histogram<u64>; Measure::COUNT],
}

impl Tap {
    pub(crate) fn new() -> Self {
        Self {
            second: 0,
            before: std::array::from_fn(|_| histogram()),
        }
    }

    /// Called once per turn, before anything of the turn is recorded: after a stall, what follows
    /// belongs to the second after it.
    pub(crate) fn tick(
        &mut self,
        since_start_us: u64,
        totals: [&Histogram<u64>; Measure::COUNT],
        mailbox: &Mailbox,
    ) {
        // A run lasts a week at most.
        let second = u32::try_from(since_start_us / SECOND_US).unwrap_or(u32::MAX);
        if second > self.second {
            self.flush(totals, mailbox);
            self.second = second;
        }
    }

    /// Gives away what the running second has so far.
    pub(crate) fn flush(&mut self, totals: [&Histogram<u64>; Measure::COUNT], mailbox: &Mailbox) {
        let mut before = self.before.iter_mut();
        let parts: Parts = totals.map(|total| difference(before.next()?, total));
        if parts.iter().any(Option::is_some) {
            let second = self.second;
            mailbox.put(Interval { second, parts });
        }
    }
}

/// What came to `total` since `before`, which becomes the same.
fn difference(before: &mut Histogram<u64>, total: &Histogram<u64>) -> Option<Histogram<u64>> {
    if total.len() == before.len() {
        return None;
    }
    let mut part = total.clone();
    part.subtract(&*before).expect("totals only ever grow");
    before.clone_from(total);
    Some(part)
}

fn join(parts: &mut Parts, others: Parts) {
    for (part, other) in parts.iter_mut().zip(others) {
        match (part.as_mut(), other) {
            (Some(part), Some(other)) => part.add(other).expect("histograms of the same bounds"),
            (None, other) => *part = other,
            (Some(_), None) => {}
        }
    }
}

/// A histogram at rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Packed {
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
    pub samples: u64,
    /// V2, deflated; empty if nothing was recorded.
    bytes: Vec<u8>,
}

impl Packed {
    fn new(histogram: &Histogram<u64>) -> Self {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(histogram, &mut bytes)
            .expect("a histogram of these bounds fits its format");
        bytes.shrink_to_fit();
        Self {
            p50: histogram.value_at_quantile(0.5),
            p99: histogram.value_at_quantile(0.99),
            max: histogram.max(),
            samples: histogram.len(),
            bytes,
        }
    }

    pub(crate) fn unpack(&self) -> Option<Histogram<u64>> {
        // These are our own bytes; if they could not be read, the step would be missing.
        (self.samples > 0)
            .then(|| Deserializer::new().deserialize(&mut self.bytes.as_slice()))?
            .ok()
    }
}

/// One step of time.
pub(crate) type Step = [Packed; Measure::COUNT];

/// The seconds of a run, of all workers.
#[derive(Debug)]
pub(crate) struct Series {
    step_s: u32,
    steps: Vec<Step>,
    open: BTreeMap<u32, Parts>,
}

impl Default for Series {
    fn default() -> Self {
        Self {
            step_s: 1,
            steps: Vec::new(),
            open: BTreeMap::new(),
        }
    }
}

impl Series {
    pub(crate) fn add(&mut self, interval: Interval) {
        let Interval { second, parts } = interval;
        join(self.open.entry(second).or_default(), parts);
        while self.open.len() > OPEN_MAX {
            self.close_oldest();
        }
    }

    /// Nothing more will come.
    pub(crate) fn finish(&mut self) {
        while !self.open.is_empty() {
            self.close_oldest();
        }
    }

    /// Latency (p50, p99) in the newest second that has any; for progress lines.
    pub(crate) fn newest_latency_us(&self) -> Option<(u64, u64)> {
        let mut newest = self.open.values().rev();
        let latency = newest.find_map(|parts| parts[Measure::Latency as usize].as_ref())?;
        Some((
            latency.value_at_quantile(0.5),
            latency.value_at_quantile(0.99),
        ))
    }

    /// Seconds that a step counts for.
    pub(crate) const fn step_s(&self) -> u32 {
        self.step_s
    }

    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    fn close_oldest(&mut self) {
        let Some((second, parts)) = self.open.pop_first() else {
            return;
        };
        while (second / self.step_s) as usize >= STEPS_MAX {
            self.halve();
        }
        let at = (second / self.step_s) as usize;
        if self.steps.len() <= at {
            self.steps.resize_with(at + 1, Step::default);
        }
        for (packed, part) in self.steps[at].iter_mut().zip(parts) {
            let Some(mut part) = part else { continue };
            if let Some(other) = packed.unpack() {
                part.add(other).expect("histograms of the same bounds");
            }
            *packed = Packed::new(&part);
        }
    }

    /// Twice the time for each step.
    fn halve(&mut self) {
        let mut steps = std::mem::take(&mut self.steps).into_iter();
        while let Some(first) = steps.next() {
            let second = steps.next().unwrap_or_default();
            let mut pairs = first.into_iter().zip(second);
            self.steps.push(std::array::from_fn(|_| {
                pairs.next().map(both).unwrap_or_default()
            }));
        }
        self.step_s *= 2;
    }
}

fn both((first, second): (Packed, Packed)) -> Packed {
    match (first.unpack(), second.unpack()) {
        (Some(mut sum), Some(other)) => {
            sum.add(other).expect("histograms of the same bounds");
            Packed::new(&sum)
        }
        (Some(_), None) => first,
        (None, _) => second,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn of(values: &[u64]) -> Histogram<u64> {
        let mut histogram = histogram();
        for value in values {
            histogram.record(*value).expect("within bounds");
        }
        histogram
    }

    /// Latencies only.
    pub(crate) fn interval(second: u32, latencies_us: &[u64]) -> Interval {
        Interval {
            second,
            parts: [Some(of(latencies_us)), None, None, None],
        }
    }

    #[test]
    fn seconds_are_what_came_between_two_looks_at_the_totals() {
        let (mut tap, mailbox) = (Tap::new(), Mailbox::default());
        let (mut latency, none) = (histogram(), histogram());
        let tick = |tap: &mut Tap, at_us, latency: &Histogram<u64>| {
            tap.tick(at_us, [latency, &none, &none, latency], &mailbox);
            mailbox.take()
        };
        latency.record(100).expect("within bounds");
        assert!(tick(&mut tap, 999_999, &latency).is_empty());
        let first = tick(&mut tap, 1_000_000, &latency);
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].second, 0);
        assert_eq!(
            first[0].parts,
            [Some(of(&[100])), None, None, Some(of(&[100]))]
        );
        latency.record(5_000).expect("within bounds");
        // Nothing was looked at for two seconds: it belongs to the one that ran.
        let second = tick(&mut tap, 3_500_000, &latency);
        assert_eq!(second[0].second, 1);
        assert_eq!(second[0].parts[0], Some(of(&[5_000])));
        assert!(
            tick(&mut tap, 4_000_000, &latency).is_empty(),
            "nothing new"
        );
    }

    #[test]
    fn a_mailbox_that_nobody_empties_loses_nothing_and_stays_small() {
        let mailbox = Mailbox::default();
        (0..100).for_each(|second| mailbox.put(interval(second, &[7])));
        let intervals = mailbox.take();
        assert_eq!(intervals.len(), MAILBOX_MAX);
        let counts = intervals.iter().flat_map(|one| one.parts.iter().flatten());
        assert_eq!(counts.map(Histogram::len).sum::<u64>(), 100);
    }

    #[test]
    fn workers_are_added_up_also_when_one_is_late() {
        let mut series = Series::default();
        series.add(interval(0, &[10, 20]));
        series.add(interval(1, &[30]));
        series.add(interval(2, &[40]));
        series.add(interval(0, &[1_000]));
        assert_eq!(series.newest_latency_us(), Some((40, 40)));
        series.finish();
        let latency: Vec<_> = series.steps().iter().map(|step| &step[0]).collect();
        assert_eq!(latency.len(), 3);
        assert_eq!((latency[0].samples, latency[0].max), (3, 1_000));
        assert_eq!(latency[0].unpack(), Some(of(&[10, 20, 1_000])));
        assert_eq!(latency[1].p50, 30);
        assert_eq!(series.steps()[0][1], Packed::default(), "nothing recorded");
    }

    #[test]
    fn a_long_run_keeps_all_samples_in_coarser_steps() {
        let mut series = Series::default();
        let seconds = STEPS_MAX as u32 * 2 + 1;
        (0..seconds).for_each(|second| series.add(interval(second, &[u64::from(second) + 1])));
        series.finish();
        assert_eq!(series.step_s(), 4);
        assert_eq!(series.steps().len(), seconds.div_ceil(4) as usize);
        let samples = series.steps().iter().map(|step| step[0].samples);
        assert_eq!(samples.sum::<u64>(), u64::from(seconds));
        assert_eq!(series.steps()[1][0].unpack(), Some(of(&[5, 6, 7, 8])));
    }

    #[test]
    fn a_second_far_away_takes_no_memory() {
        let mut series = Series::default();
        series.add(interval(u32::MAX, &[1]));
        series.finish();
        assert!(series.steps().len() <= STEPS_MAX);
    }
}
