//! Looks at the machine during a run.

use super::{Environment, Means};
use crate::{
    process::kernel::{self, Counters, Ticks, Waits},
    report::round,
};
use rustix::time::{ClockId, clock_gettime};

#[derive(Debug)]
pub(crate) struct Lookout {
    counters: Counters,
    clocks: Clocks,
    clock_step_us: i64,
    suspended_us: i64,
    looked_us: Option<u64>,
    pause_us: u64,
    sending: Option<Load>,
    sent: Option<(Load, u64)>,
    sending_since_us: u64,
}

/// Of machine and process at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    ticks: Option<Ticks>,
    waits: Option<Waits>,
}

impl Load {
    fn read() -> Self {
        Self {
            ticks: kernel::ticks(),
            waits: kernel::own_waits(),
        }
    }
}

impl Lookout {
    pub(crate) fn new() -> Self {
        Self {
            counters: kernel::counters(),
            clocks: Clocks::read(),
            clock_step_us: 0,
            suspended_us: 0,
            looked_us: None,
            pause_us: 0,
            sending: None,
            sent: None,
            sending_since_us: 0,
        }
    }

    /// Called at every turn of the coordinating thread.
    pub(crate) fn turn(&mut self, now_us: u64) {
        if let Some(before_us) = self.looked_us.replace(now_us) {
            self.pause_us = self.pause_us.max(now_us.saturating_sub(before_us));
        }
    }

    /// Called once a second.
    pub(crate) fn look_at_clocks(&mut self) {
        let clocks = Clocks::read();
        let (step_us, slept_us) = clocks.since(&self.clocks);
        if step_us.abs() > self.clock_step_us.abs() {
            self.clock_step_us = step_us;
        }
        self.suspended_us += slept_us.max(0);
        self.clocks = clocks;
    }

    /// The first message is due.
    pub(crate) fn sending(&mut self, now_us: u64) {
        self.sending_since_us = now_us;
        self.sending = Some(Load::read());
    }

    /// The last message was due.
    pub(crate) fn sent(&mut self, now_us: u64) {
        self.sent = Some((Load::read(), now_us));
    }

    pub(crate) fn finish(mut self, means: Means) -> Environment {
        self.look_at_clocks();
        let mut environment = Environment {
            means,
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: kernel::growth(&self.counters, &kernel::counters()),
            clock_step_ms: self.clock_step_us / 1_000,
            suspended_ms: self.suspended_us.unsigned_abs() / 1_000,
            pause_ms: self.pause_us / 1_000,
            ..Environment::default()
        };
        if let Some((before, (after, sent_us))) = self.sending.zip(self.sent) {
            environment.load(before, after, sent_us.saturating_sub(self.sending_since_us));
        }
        environment
    }
}

impl Environment {
    fn load(&mut self, before: Load, after: Load, passed_us: u64) {
        let share = |part: u64, whole: u64| match whole {
            0 => 0.0,
            whole => round(part as f64 / whole as f64, 10_000.0),
        };
        if let Some((before, after)) = before.waits.zip(after.waits) {
            let ran_us = after.cpu_us.saturating_sub(before.cpu_us);
            let waited_us = after.waited_us.saturating_sub(before.waited_us);
            self.own_share = share(ran_us, passed_us * self.processors as u64);
            self.wait_share = share(waited_us, passed_us);
            self.preempted = after.preempted.saturating_sub(before.preempted);
        }
        if let Some((before, after)) = before.ticks.zip(after.ticks) {
            let all = after.all.saturating_sub(before.all);
            self.steal_share = share(after.steal.saturating_sub(before.steal), all);
            // Of a time too short for a tick there is nothing to say.
            let idle = share(after.idle.saturating_sub(before.idle), all);
            self.idle_share = (all > 0).then_some(idle);
        }
    }
}

/// How far two clocks are from the steady one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Clocks {
    wall_ahead_us: i64,
    asleep_us: i64,
    /// How far either may be from this: a thread that is stopped while it reads has read two times.
    uncertainty_us: i64,
}

impl Clocks {
    fn read() -> Self {
        let us = |clock| {
            let time = clock_gettime(clock);
            time.tv_sec * 1_000_000 + time.tv_nsec / 1_000
        };
        // The steady one between the others; should the thread be stopped there, that is no step.
        let (took, (wall, steady, with_sleep)) = (0..3)
            .map(|_| {
                let before = us(ClockId::Monotonic);
                let read = (us(ClockId::Realtime), us(ClockId::Boottime));
                let after = us(ClockId::Monotonic);
                (after - before, (read.0, before.midpoint(after), read.1))
            })
            .min_by_key(|(took, _)| *took)
            .unwrap_or_default();
        Self {
            wall_ahead_us: wall - steady,
            asleep_us: with_sleep - steady,
            uncertainty_us: took,
        }
    }

    /// How far the wall clock was set since an earlier reading, and how long the machine slept: as
    /// much of it as is certain.
    fn since(&self, earlier: &Self) -> (i64, i64) {
        let uncertain_us = self.uncertainty_us + earlier.uncertainty_us;
        let certain = |us: i64| us.signum() * (us.abs() - uncertain_us).max(0);
        (
            certain(self.wall_ahead_us - earlier.wall_ahead_us),
            certain(self.asleep_us - earlier.asleep_us),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_finds_steps_and_pauses_and_this_machine_has_none() {
        let mut lookout = Lookout::new();
        lookout.turn(1_000);
        lookout.sending(1_000);
        lookout.turn(2_500_000);
        lookout.sent(2_500_000);
        lookout.clocks.wall_ahead_us -= 300_000;
        lookout.look_at_clocks();
        let environment = lookout.finish(Means::default());
        assert_eq!(environment.pause_ms, 2_499);
        // Less what was not certain, on a busy machine.
        assert!((200..=302).contains(&environment.clock_step_ms));
        assert_eq!(environment.suspended_ms, 0);
        assert!(environment.processors > 0 && !environment.kernel.is_empty());
    }

    #[test]
    fn a_reader_that_was_stopped_between_two_clocks_sees_no_step() {
        let read = |wall_ahead_us, asleep_us, uncertainty_us| Clocks {
            wall_ahead_us,
            asleep_us,
            uncertainty_us,
        };
        let before = read(1_000_000, 0, 1);
        assert_eq!(read(1_150_000, 140_000, 300_000).since(&before), (0, 0));
        assert_eq!(read(1_150_001, 0, 0).since(&before), (150_000, 0));
        assert_eq!(read(700_000, 0, 9).since(&before), (-299_990, 0));
        assert_eq!(read(1_000_000, 5_000_001, 0).since(&before), (0, 5_000_000));
    }

    #[test]
    fn shares_are_of_the_time_between() {
        let load = |cpu_us, waited_us, all, idle, steal| Load {
            ticks: Some(Ticks { all, idle, steal }),
            waits: Some(Waits {
                cpu_us,
                waited_us,
                preempted: cpu_us / 1_000,
            }),
        };
        let mut environment = Environment {
            processors: 2,
            ..Environment::default()
        };
        let (before, after) = (
            load(1_000, 0, 100, 50, 0),
            load(501_000, 50_000, 300, 100, 2),
        );
        environment.load(before, after, 1_000_000);
        assert_eq!(environment.own_share, 0.25);
        assert_eq!(environment.wait_share, 0.05);
        assert_eq!(environment.preempted, 500);
        assert_eq!(environment.idle_share, Some(0.25));
        assert_eq!(environment.steal_share, 0.01);
    }
}
