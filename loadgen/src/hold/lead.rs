//! Leads the threads of a run through its phases, and takes stock between them.
//!
//! ramp -> rest -> settle -> send (with the cut and the way back in it) -> drain
//!
//! What a phase has cost is the difference of two [`Mark`]s, which are taken here and nowhere else.

use super::{
    holder::HolderGauges,
    progress::{Progress, Totals},
};
use crate::{
    control::{Control, Gauges},
    interrupt,
    observer::Observer,
    plan::{Hold, Plan},
    process::{self, Usage},
    run::{POLL, START_DELAY_US},
};
use anyhow::bail;
use portico_client::many::Clock;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

/// How long the ramp may take: this, and so many times what the plan says. The limit is there to
/// end a run that goes nowhere, not to judge it.
const RAMP_PATIENCE: Duration = Duration::from_secs(20);
const RAMP_PATIENCE_TIMES: f64 = 4.0;
/// After the ramp, before the settling is measured, at most: what logins leave to do (cursors to
/// store, memory to give back) is no cost of being idle. At most a fifth of the settling.
const REST_MAX: Duration = Duration::from_secs(2);
/// When the stock before the cut is taken: it takes some milliseconds.
const CUT_MARK_US: u64 = 20_000;

/// Where everything stands at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    pub at_us: u64,
    /// Connections, held and active.
    pub live: u64,
    /// Messages.
    pub delivered: u64,
    pub own: Option<Usage>,
    pub server: Option<Usage>,
}

/// The ends of the phases.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Marks {
    /// Nothing is connected.
    pub start: Mark,
    pub ramped: Mark,
    pub rested: Mark,
    pub settled: Mark,
    /// When the first message is due.
    pub send_us: u64,
    pub cut: Option<Mark>,
    pub back: Option<Mark>,
    pub sent: Mark,
    pub end: Mark,
    /// Somebody has ended the sending before its time.
    pub interrupted_us: Option<u64>,
}

/// What the coordinating thread sees of the others.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub clock: Clock,
    pub pid: Option<u32>,
    pub workers: &'a [Gauges],
    pub holders: &'a [HolderGauges],
}

impl View<'_> {
    fn now_us(&self) -> u64 {
        self.clock.now().mono_us
    }

    fn totals(&self) -> Totals {
        let of_workers = |gauge: fn(&Gauges) -> &AtomicU64| -> u64 {
            let load = |gauges| gauge(gauges).load(Ordering::Relaxed);
            self.workers.iter().map(load).sum()
        };
        let of_holders = |gauge: fn(&HolderGauges) -> &AtomicU64| -> u64 {
            let load = |gauges| gauge(gauges).load(Ordering::Relaxed);
            self.holders.iter().map(load).sum()
        };
        Totals {
            live: of_workers(|gauges| &gauges.up) + of_holders(|gauges| &gauges.live),
            logins: of_holders(|gauges| &gauges.logins),
            refused: of_holders(|gauges| &gauges.refused),
            delivered: of_workers(|gauges| &gauges.delivered),
        }
    }

    /// Connections that only stay.
    fn held(&self) -> u64 {
        let live = |gauges: &HolderGauges| gauges.live.load(Ordering::Relaxed);
        self.holders.iter().map(live).sum()
    }

    pub(super) fn mark(&self) -> Mark {
        let totals = self.totals();
        Mark {
            at_us: self.now_us(),
            live: totals.live,
            delivered: totals.delivered,
            own: process::usage(std::process::id()),
            server: self.pid.and_then(process::usage),
        }
    }

    /// Every holder has cut its connections, and what is live is so since.
    fn is_cut(&self) -> bool {
        let mut holders = self.holders.iter();
        holders.all(|gauges| gauges.is_cut.load(Ordering::Acquire))
    }

    fn is_done(&self) -> bool {
        let mut workers = self.workers.iter();
        workers.all(|gauges| gauges.done.load(Ordering::Relaxed))
    }
}

pub(super) struct Lead<'a> {
    pub plan: &'a Plan,
    pub hold: Hold,
    pub control: &'a Control,
    pub view: View<'a>,
    pub progress: Progress,
    pub observer: &'a mut Observer,
    pub is_sending: bool,
    /// A thread has ended before its time.
    pub is_over: &'a dyn Fn() -> bool,
}

impl Lead<'_> {
    /// An error means that there is no result at all. `on_settled` is called when every connection
    /// is up and quiet.
    pub(super) fn run(mut self, start: Mark, on_settled: impl FnOnce()) -> anyhow::Result<Marks> {
        let asked = u64::from(self.plan.connections);
        let patience_us = ramp_patience(self.plan.connections, self.hold).as_micros() as u64;
        let deadline_us = self.view.now_us() + patience_us;
        self.wait("ramp", |view, live| {
            live == asked || view.now_us() >= deadline_us
        })?;
        let ramped = self.view.mark();
        if ramped.live == 0 {
            bail!("something listens on the target, but it lets no user of Portico log in");
        }
        let rest = REST_MAX.min(self.hold.settle / 5);
        self.pass("rest", ramped.at_us + rest.as_micros() as u64)?;
        let rested = self.view.mark();
        let settle_us = (self.hold.settle - rest).as_micros() as u64;
        self.pass("settle", rested.at_us + settle_us)?;
        let settled = self.view.mark();
        on_settled();

        let send_us = self.view.now_us() + START_DELAY_US;
        let end_us = send_us + self.plan.duration.as_micros() as u64;
        if self.hold.cut {
            self.control.cut_at(send_us + (end_us - send_us) / 3);
        }
        self.control.start(send_us);
        self.is_sending = true;
        self.observer.will_send(send_us, self.plan.duration);
        let (cut, back) = self.sending(end_us)?;
        let sent = self.view.mark();
        let interrupted_us = interrupt::asked().then(|| {
            self.control.drain();
            self.observer.will_send_until(sent.at_us);
            sent.at_us.saturating_sub(send_us)
        });
        self.wait("drain", |view, _| view.is_done())?;
        let end = self.view.mark();
        self.progress.finish();
        Ok(Marks {
            start,
            ramped,
            rested,
            settled,
            send_us,
            cut,
            back,
            sent,
            end,
            interrupted_us,
        })
    }

    /// Until `end_us`; what was seen before the cut, and when all were back.
    fn sending(&mut self, end_us: u64) -> anyhow::Result<(Option<Mark>, Option<Mark>)> {
        let asked = u64::from(self.plan.connections);
        if !self.hold.cut {
            self.pass("send", end_us)?;
            return Ok((None, None));
        }
        let cut_us = self.control.storm_us().start;
        self.pass("send", cut_us.saturating_sub(CUT_MARK_US))?;
        let cut = self.view.mark();
        // In this order: what was live before the cut must not pass for what is back.
        self.wait("return", |view, _| {
            (view.is_cut() && view.totals().live == asked) || view.now_us() >= end_us
        })?;
        let mark = self.view.mark();
        let is_back = mark.at_us < end_us;
        if is_back {
            self.control.all_back(mark.at_us);
        }
        self.pass("send", end_us)?;
        Ok((Some(cut), is_back.then_some(mark)))
    }

    fn pass(&mut self, stage: &str, until_us: u64) -> anyhow::Result<()> {
        self.wait(stage, |view, _| view.now_us() >= until_us)
    }

    /// Until `is_enough`, told how many are live.
    fn wait(
        &mut self,
        stage: &str,
        is_enough: impl Fn(&View<'_>, u64) -> bool,
    ) -> anyhow::Result<()> {
        loop {
            if let Some(obstacle) = self.control.obstacle() {
                self.progress.finish();
                bail!("{obstacle}");
            }
            if (self.is_over)() {
                self.progress.finish();
                bail!("a thread of this run ended before its time");
            }
            let totals = self.view.totals();
            if is_enough(&self.view, totals.live) {
                return Ok(());
            }
            if interrupt::asked() && stage != "drain" {
                if self.is_sending {
                    return Ok(());
                }
                self.progress.finish();
                bail!("interrupted before the first message");
            }
            let view = self.view;
            self.observer.turn(view.workers, || view.held());
            self.progress.tick(stage, totals);
            thread::sleep(POLL);
        }
    }
}

pub(super) fn ramp_patience(connections: u32, hold: Hold) -> Duration {
    let planned_s = f64::from(connections) / f64::from(hold.ramp_per_s);
    RAMP_PATIENCE + Duration::from_secs_f64(planned_s * RAMP_PATIENCE_TIMES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_ramp_has_more_patience() {
        let hold = Plan::named("hold").and_then(|plan| plan.hold);
        let hold = hold.expect("built in");
        assert_eq!(ramp_patience(100_000, hold), Duration::from_secs(60));
        assert_eq!(ramp_patience(1_000_000, hold), Duration::from_secs(420));
    }
}
