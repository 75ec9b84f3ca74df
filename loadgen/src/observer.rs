//! What the coordinating thread sees while others work: how far they are, and what server and
//! generator cost meanwhile.
//!
//! A [`Sample`] holds running totals, so that a lost or late one only makes a step longer: rates
//! and loads are differences, divided by the time that has really passed.
//!
//! # Memory
//! At most [`SAMPLES_MAX`] samples. When they are full, every other one is dropped and they are
//! taken half as often: half a day is kept by ever longer steps in the same memory.

use crate::{
    control::Gauges,
    environment::{Environment, Lookout, Means},
    process::{self, Usage},
    series::{STEPS_MAX, Series},
};
use portico_client::many::Clock;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Samples of a run, at most.
pub(crate) const SAMPLES_MAX: usize = STEPS_MAX;
const SECOND_US: u64 = 1_000_000;
/// After a sample, until it is told: by then the workers have given away the second that is over.
const TELL_AFTER_US: u64 = 100_000;

const _: () = assert!(SAMPLES_MAX.is_multiple_of(2), "see `Samples::add`");

/// Where everything stood at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    pub at_us: u64,
    pub up: u64,
    pub sent: u64,
    pub accepted: u64,
    pub delivered: u64,
    pub errors: u64,
    pub server: Option<Usage>,
    pub own: Option<Usage>,
}

/// Samples, a second apart or a power of two of it.
#[derive(Debug)]
pub(crate) struct Samples {
    kept: Vec<Sample>,
    every_us: u64,
    next_us: u64,
}

impl Default for Samples {
    fn default() -> Self {
        Self {
            kept: Vec::new(),
            every_us: SECOND_US,
            next_us: 0,
        }
    }
}

impl Samples {
    fn is_due(&self, now_us: u64) -> bool {
        now_us >= self.next_us
    }

    /// The next one is to be taken then, and later ones whole steps after it.
    fn align(&mut self, at_us: u64) {
        self.next_us = at_us;
    }

    fn add(&mut self, sample: Sample) {
        self.kept.push(sample);
        let late_us = sample.at_us.saturating_sub(self.next_us);
        self.next_us += (late_us / self.every_us + 1) * self.every_us;
        if self.kept.len() >= SAMPLES_MAX {
            // An even number of them: the last is dropped, and the next has an even place again.
            let mut is_kept = false;
            self.kept.retain(|_| {
                is_kept = !is_kept;
                is_kept
            });
            self.every_us *= 2;
        }
    }

    pub(crate) fn all(&self) -> &[Sample] {
        &self.kept
    }

    /// The last two, for what happened between them.
    pub(crate) fn newest(&self) -> Option<(&Sample, &Sample)> {
        match self.kept.as_slice() {
            [.., before, last] => Some((before, last)),
            _ => None,
        }
    }
}

/// All of it, when the run is over.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    pub series: Series,
    pub samples: Samples,
    pub environment: Environment,
    /// When the run began and when the first message was due: microseconds since 1970, and of the
    /// run's clock.
    pub began_unix_us: u64,
    pub start_us: u64,
    pub start_unix_us: u64,
}

/// Belongs to the coordinating thread, which calls [`Self::turn`] as often as it can.
#[derive(Debug)]
pub(crate) struct Observer {
    clock: Clock,
    pid: Option<u32>,
    means: Means,
    lookout: Lookout,
    series: Series,
    samples: Samples,
    began_unix_us: u64,
    start_us: Option<u64>,
    end_us: Option<u64>,
    /// When the newest sample is to be told.
    tell_us: Option<u64>,
    /// What was told to the lookout.
    is_sending: bool,
    is_sent: bool,
}

impl Observer {
    /// `pid` is the server, if it is a process of this machine.
    pub(crate) fn new(clock: Clock, pid: Option<u32>, means: Means) -> Self {
        Self {
            clock,
            pid,
            means,
            lookout: Lookout::new(),
            series: Series::default(),
            samples: Samples::default(),
            began_unix_us: clock.now().wall_us,
            start_us: None,
            end_us: None,
            tell_us: None,
            is_sending: false,
            is_sent: false,
        }
    }

    /// The first message is due at `start_us`, and the last one `duration` later.
    pub(crate) fn will_send(&mut self, start_us: u64, duration: Duration) {
        self.start_us = Some(start_us);
        self.end_us = Some(start_us + duration.as_micros() as u64);
        self.samples.align(start_us);
    }

    /// No message is due from `end_us` on: the sending was ended before its time.
    pub(crate) const fn will_send_until(&mut self, end_us: u64) {
        self.end_us = Some(end_us);
    }

    /// True if there is something new to tell, once a second. `held` are connections that are up
    /// and not of the workers.
    pub(crate) fn turn(&mut self, workers: &[Gauges], held: impl FnOnce() -> u64) -> bool {
        let now_us = self.clock.now().mono_us;
        self.lookout.turn(now_us);
        if !self.is_sending && self.start_us.is_some_and(|start_us| now_us >= start_us) {
            self.is_sending = true;
            self.lookout.sending(now_us);
        }
        if !self.is_sent && self.end_us.is_some_and(|end_us| now_us >= end_us) {
            self.is_sent = true;
            self.lookout.sent(now_us);
        }
        let intervals = workers.iter().flat_map(|worker| worker.intervals.take());
        intervals.for_each(|interval| self.series.add(interval));
        if self.samples.is_due(now_us) {
            self.tell_us = Some(now_us + TELL_AFTER_US);
            self.lookout.look_at_clocks();
            let sample = self.sample(workers, held());
            self.samples.add(sample);
        }
        self.tell_us.take_if(|tell_us| now_us >= *tell_us).is_some()
    }

    pub(crate) const fn series(&self) -> &Series {
        &self.series
    }

    pub(crate) const fn samples(&self) -> &Samples {
        &self.samples
    }

    /// All workers are done.
    pub(crate) fn finish(mut self, workers: &[Gauges]) -> Observed {
        let intervals = workers.iter().flat_map(|worker| worker.intervals.take());
        intervals.for_each(|interval| self.series.add(interval));
        self.series.finish();
        let now = self.clock.now();
        if self.is_sending && !self.is_sent {
            self.lookout.sent(now.mono_us);
        }
        let start_us = self.start_us.unwrap_or(now.mono_us);
        Observed {
            series: self.series,
            samples: self.samples,
            environment: self.lookout.finish(self.means),
            began_unix_us: self.began_unix_us,
            start_us,
            start_unix_us: (now.wall_us + start_us).saturating_sub(now.mono_us),
        }
    }

    fn sample(&self, workers: &[Gauges], held: u64) -> Sample {
        let sum = |gauge: fn(&Gauges) -> &AtomicU64| -> u64 {
            let load = |gauges| gauge(gauges).load(Ordering::Relaxed);
            workers.iter().map(load).sum()
        };
        Sample {
            up: sum(|gauges| &gauges.up) + held,
            sent: sum(|gauges| &gauges.sent),
            accepted: sum(|gauges| &gauges.accepted),
            delivered: sum(|gauges| &gauges.delivered),
            errors: sum(|gauges| &gauges.errors),
            server: self.pid.and_then(process::usage),
            own: process::usage(std::process::id()),
            // After the reading of all of it, which takes a while.
            at_us: self.clock.now().mono_us,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    impl Samples {
        pub(crate) fn of(kept: Vec<Sample>) -> Self {
            Self {
                kept,
                ..Self::default()
            }
        }
    }

    #[test]
    fn samples_get_rarer_and_stay_bounded() {
        let mut samples = Samples::default();
        let mut now_us = 0;
        for _ in 0..SAMPLES_MAX * 8 {
            if samples.is_due(now_us) {
                samples.add(Sample {
                    at_us: now_us,
                    ..Sample::default()
                });
            }
            now_us += SECOND_US;
        }
        assert!(samples.all().len() < SAMPLES_MAX);
        let distances: Vec<u64> = samples
            .all()
            .windows(2)
            .map(|pair| pair[1].at_us - pair[0].at_us)
            .collect();
        assert!(distances.iter().all(|us| *us == distances[0]), "even steps");
        assert_eq!(samples.all()[0].at_us, 0);
        assert!(
            samples
                .all()
                .last()
                .is_some_and(|last| last.at_us > now_us * 9 / 10)
        );
    }

    #[test]
    fn a_late_sample_does_not_move_the_next() {
        let mut samples = Samples::default();
        samples.align(500);
        for (at_us, next_us) in [(500, 1_000_500), (3_700_000, 4_000_500)] {
            samples.add(Sample {
                at_us,
                ..Sample::default()
            });
            assert_eq!(samples.next_us, next_us);
        }
    }

    #[test]
    fn an_observer_adds_up_workers_and_sees_itself() {
        let clock = Clock::start();
        let workers = [Gauges::default(), Gauges::default()];
        let own = std::process::id();
        let mut observer = Observer::new(clock, Some(own), Means::default());
        for worker in &workers {
            worker.up.store(3, Ordering::Relaxed);
            worker.delivered.store(5, Ordering::Relaxed);
        }
        assert!(!observer.turn(&workers, || 10), "told a little later");
        observer.will_send(clock.now().mono_us, Duration::from_secs(1));
        let begun = std::time::Instant::now();
        while !observer.turn(&workers, || 10) {
            assert!(begun.elapsed() < Duration::from_secs(20), "never told");
        }
        let observed = observer.finish(&workers);
        let sample = observed.samples.all()[1];
        assert_eq!((sample.up, sample.delivered), (16, 10));
        assert!(sample.own.is_some_and(|usage| usage.rss_bytes > 0));
        assert!(sample.server.is_some());
        assert!(observed.start_unix_us >= observed.began_unix_us);
        assert!(observed.environment.processors > 0);
    }
}
