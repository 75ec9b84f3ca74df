//! The loop of a worker: connect, send by the clock or in rounds, wait for what is on its way.

use super::{
    Assignment, Outcome,
    disturb::{Deed, Disturbances},
    later::Task,
    life::Besides,
    watch::Watch,
};
use crate::{
    control::{Control, Gauges, Stage},
    figures::Disturbance,
    fleet::{Fleet, MessageName, Outgoing},
    plan::{Flows, Pace, Plan},
    process::thread_cpu_us,
    schedule::Schedule,
    series::Tap,
    verifier::{Verifier, histogram},
};
use hdrhistogram::Histogram;
use portico_wire::ids::UserId;
use std::{collections::BTreeMap, io, sync::atomic::Ordering};

/// Messages that are due go out in bites of this many, so that reading is never far away.
const SENDS_PER_TURN_MAX: usize = 64;
/// How long the driver may wait when nothing is scheduled: the stage is looked at in between.
const IDLE_TURN_US: u64 = 20_000;
/// A gateway pushes delivered marks once a second; after this they are asked for.
const RECEIPTS_PATIENCE_US: u64 = 2_500_000;
/// Between two looks at whether everything has arrived.
const SETTLED_CHECK_US: u64 = 10_000;
/// How far behind its schedule a worker may be after the end of it, or as far as the schedule was long:
/// whoever is so slow proves nothing by going on.
const BEHIND_MAX_US: u64 = 10_000_000;
/// Longer than any run: those who come later have a deed that brings them.
const AWAY_US: u64 = 365 * 24 * 3_600 * 1_000_000;

pub(super) struct Worker<'a> {
    pub(super) assignment: &'a Assignment<'a>,
    control: &'a Control,
    gauges: &'a Gauges,
    pub(super) fleet: Box<dyn Fleet + 'a>,
    pub(super) watch: Watch<'a>,
    pub(super) besides: Besides,
    disturbances: Disturbances,
    disturbance: Option<Disturbance>,
    body: Vec<u8>,
    slip_us: Histogram<u64>,
    tap: Tap,
    not_queued: u64,
    withheld: u64,
    unsent: u64,
    sending_cpu_us: u64,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        assignment: &'a Assignment<'a>,
        control: &'a Control,
        gauges: &'a Gauges,
        mut fleet: Box<dyn Fleet + 'a>,
        flows: Flows,
    ) -> Self {
        let plan = assignment.plan;
        let mut verifier = Verifier::new(assignment.run, flows, fleet.promises());
        if !plan.measures_latency() {
            verifier = verifier.without_times();
        }
        if plan.unverified {
            verifier = verifier.without_deliveries();
        }
        if plan
            .mixed
            .as_ref()
            .is_some_and(|mixed| !mixed.read_delay.is_zero())
        {
            verifier = verifier.with_reads();
        }
        let mut watch = Watch::new(control, plan, verifier);
        let disturbances = Disturbances::new(plan, assignment.first_user, assignment.users);
        for conn in disturbances.absent() {
            fleet.cut(*conn, AWAY_US);
            watch.keep_away(*conn, AWAY_US);
        }
        Self {
            assignment,
            control,
            gauges,
            fleet,
            watch,
            disturbances,
            besides: Besides::new(plan, assignment.first_user),
            disturbance: None,
            body: Vec::with_capacity(plan.body_bytes),
            slip_us: histogram(),
            tap: Tap::new(),
            not_queued: 0,
            withheld: 0,
            unsent: 0,
            sending_cpu_us: 0,
        }
    }

    pub(super) const fn plan(&self) -> &'a Plan {
        self.assignment.plan
    }

    fn now_us(&self) -> u64 {
        self.fleet.now().mono_us
    }

    /// Waits until the run's leader says that everybody is there.
    pub(super) fn connect(&mut self) -> io::Result<()> {
        while !self.control.reached(Stage::Sending) {
            self.turn(IDLE_TURN_US)?;
        }
        Ok(())
    }

    /// Keeps everybody connected until all workers are done.
    pub(super) fn stay(&mut self) -> io::Result<()> {
        while !self.control.reached(Stage::Finishing) {
            self.turn(IDLE_TURN_US)?;
        }
        Ok(())
    }

    fn turn(&mut self, wait_us: u64) -> io::Result<()> {
        if self.control.reached(Stage::Sending) {
            let since_us = self.now_us().saturating_sub(self.control.start_us());
            let [latency, service, sent] = self.watch.verifier.times_us();
            let totals = [latency, service, sent, &self.slip_us];
            self.tap.tick(since_us, totals, &self.gauges.intervals);
        }
        let watch = &mut self.watch;
        match &self.disturbance {
            Some(disturbance) => watch.verifier.set_storm_us(disturbance.span_us()),
            None => watch.verifier.set_storm_us(self.control.storm_us()),
        }
        self.fleet.turn(wait_us, &mut |now, conn, event| {
            watch.event(now, conn, &event);
        })?;
        if let Some(disturbance) = &mut self.disturbance
            && watch.away == 0
        {
            disturbance.all_back(self.fleet.now().mono_us);
        }
        self.make_groups();
        self.watch_contacts();
        let counts = self.watch.verifier.counts();
        // Whom the plan keeps away at first is where it should be.
        let ready = if self.control.reached(Stage::Sending) {
            self.watch.up
        } else {
            self.watch.up + self.watch.away
        };
        // Nobody is ready before the groups are.
        let ready = match self.besides.groups_are_made {
            true => ready,
            false => ready.saturating_sub(1),
        };
        self.gauges.up.store(ready, Ordering::Relaxed);
        self.gauges.sent.store(counts.sent, Ordering::Relaxed);
        self.gauges
            .accepted
            .store(counts.accepted, Ordering::Relaxed);
        self.gauges
            .delivered
            .store(counts.delivered, Ordering::Relaxed);
        let errors = counts.errors() + self.watch.transport.errors();
        self.gauges.errors.store(errors, Ordering::Relaxed);
        Ok(())
    }

    /// The measured part.
    pub(super) fn send_all(&mut self) -> io::Result<()> {
        let start_us = self.control.start_us();
        while self.now_us() < start_us && !self.control.reached(Stage::Draining) {
            self.turn(start_us.saturating_sub(self.now_us()))?;
        }
        self.disturbances.start(start_us);
        let part = f64::from(self.assignment.users) / f64::from(self.plan().connections);
        self.besides.start(self.assignment.plan, start_us, part);
        self.watch.start_us = start_us;
        let end_us = start_us + self.plan().duration.as_micros() as u64;
        self.watch.end_us = end_us;
        let cpu_us = thread_cpu_us();
        match self.plan().pace {
            Pace::Open => self.by_the_clock(start_us, end_us)?,
            Pace::Rounds => self.in_rounds(end_us)?,
        }
        self.sending_cpu_us = thread_cpu_us().saturating_sub(cpu_us);
        Ok(())
    }

    /// Every message at its time, or as soon after it as this thread can.
    fn by_the_clock(&mut self, start_us: u64, end_us: u64) -> io::Result<()> {
        let plan = self.plan();
        let mut schedule = self.schedule(start_us);
        if let Some(pingpong) = plan.pingpong {
            self.begin_pairs(start_us, pingpong.think.as_micros() as u64);
        }
        let give_up_us = end_us + BEHIND_MAX_US.max(end_us - start_us);
        let (mut flow, mut left, mut turn) = (0, 0, 0);
        let bite = SENDS_PER_TURN_MAX.max(plan.burst as usize);
        while !self.control.reached(Stage::Draining) {
            let now_us = self.now_us();
            for _ in 0..bite {
                let Some((_, due_us)) = schedule.pop_due(now_us) else {
                    break;
                };
                self.slip_us.saturating_record((now_us - due_us).max(1));
                // All of a burst are of one flow.
                if left == 0 {
                    flow = self.watch.verifier.flows().of_turn(turn);
                    (turn, left) = (turn + 1, plan.burst);
                }
                left -= 1;
                self.send(flow, due_us, now_us, false);
            }
            self.disturb(now_us);
            self.do_later(now_us);
            self.live(now_us);
            if now_us >= end_us && schedule.next_us().is_none() {
                break;
            }
            if now_us >= give_up_us {
                self.unsent = schedule.left();
                break;
            }
            let wait_us = if plan.spins() {
                0
            } else {
                let others = [
                    self.watch.later.next_us(),
                    self.disturbances.next_us(),
                    self.besides.next_us(),
                ];
                let next_us = others
                    .into_iter()
                    .flatten()
                    .chain(schedule.next_us())
                    .chain([end_us])
                    .min();
                let next_us = next_us.unwrap_or(end_us);
                next_us.saturating_sub(self.now_us()).min(IDLE_TURN_US)
            };
            self.turn(wait_us)?;
        }
        Ok(())
    }

    fn schedule(&self, start_us: u64) -> Schedule {
        let plan = self.plan();
        if plan.pingpong.is_some() {
            return Schedule::of(0, start_us, 1.0);
        }
        let stagger_us = f64::from(self.assignment.users_before) * 1e6
            / (plan.rate_per_s * f64::from(plan.connections));
        let duration_us = plan.duration.as_micros() as u64;
        Schedule::new(
            start_us + stagger_us as u64,
            self.assignment.rate_per_s(),
            duration_us,
        )
        .in_bursts(plan.burst)
    }

    /// Each pair's first message, spread over the time between an answer and the next.
    fn begin_pairs(&mut self, start_us: u64, think_us: u64) {
        let pairs = self.assignment.users / 2;
        for pair in 0..pairs {
            let spread_us = think_us * u64::from(pair) / u64::from(pairs);
            let question = Task::Send {
                flow: 2 * pair,
                is_answer: false,
            };
            self.watch.later.add(start_us + spread_us, question);
        }
    }

    /// As fast as everything arrives, never asleep: on loopback the waking of a sleeper is charged
    /// to whoever writes to it, and this is for comparing what a message costs a server.
    fn in_rounds(&mut self, end_us: u64) -> io::Result<()> {
        let plan = self.plan();
        let patience_us = plan.drain.as_micros() as u64;
        let turns = self.watch.verifier.flows().turns_per_round();
        let mut begun_us = self.now_us();
        let mut round = 0;
        while begun_us < end_us {
            for turn in round * turns..(round + 1) * turns {
                let flow = self.watch.verifier.flows().of_turn(turn);
                for _ in 0..plan.burst {
                    self.send(flow, begun_us, begun_us, false);
                }
            }
            round += 1;
            let mut now_us = begun_us;
            loop {
                self.turn(0)?;
                if self.watch.verifier.is_settled() {
                    break;
                }
                now_us = self.now_us();
                let late = now_us.saturating_sub(begun_us) > patience_us;
                if late || self.control.reached(Stage::Draining) {
                    return Ok(());
                }
            }
            begun_us = now_us.max(self.now_us());
        }
        Ok(())
    }

    fn send(&mut self, flow: u32, due_us: u64, now_us: u64, is_answer: bool) {
        let plan = self.assignment.plan;
        let verifier = &mut self.watch.verifier;
        let Some(mut payload) = verifier.next_message(flow, due_us, now_us) else {
            self.withheld += 1;
            return;
        };
        payload.is_answer = is_answer;
        payload.encode(plan.body_bytes_of(flow, payload.counter), &mut self.body);
        let message = Outgoing {
            name: MessageName {
                flow,
                counter: payload.counter,
            },
            to: verifier.flows().audience(flow),
            body: &self.body,
        };
        match self.fleet.send(verifier.flows().sender(flow), &message) {
            Ok(()) => {
                verifier.sent(&payload);
                self.watch.pair_begins(flow, due_us);
            }
            Err(_) => self.not_queued += 1,
        }
    }

    /// What the plan does to connections at this time.
    fn disturb(&mut self, now_us: u64) {
        while let Some((conn, deed)) = self.disturbances.pop_due(now_us) {
            match deed {
                Deed::Cut { away_us } => {
                    // One that is still away would be away for no longer than planned.
                    if self.watch.is_kept_away(conn) {
                        continue;
                    }
                    self.fleet.cut(conn, away_us);
                    self.watch.keep_away(conn, now_us + away_us);
                    self.watch.figures.cut();
                }
                Deed::StopReading => {
                    self.fleet.set_reading(conn, false);
                    // For the rest of the run: the backlog is read, but who knows until when.
                    self.watch.verifier.touch(conn);
                    self.watch.figures.stopped_reading();
                }
                Deed::ReadOn => self.fleet.set_reading(conn, true),
                Deed::Come => {
                    self.fleet.cut(conn, 0);
                    self.watch.keep_away(conn, now_us);
                }
            }
            if self.disturbance.is_none() {
                self.disturbance = Disturbance::begin(self.plan(), now_us);
            }
        }
    }

    fn do_later(&mut self, now_us: u64) {
        for _ in 0..SENDS_PER_TURN_MAX {
            let Some((due_us, task)) = self.watch.later.pop_due(now_us) else {
                return;
            };
            match task {
                Task::Send { flow, is_answer } => {
                    self.slip_us.saturating_record((now_us - due_us).max(1));
                    self.send(flow, due_us, now_us, is_answer);
                }
                Task::Rejoin { group, user } => self.rejoin(group, user),
                Task::Read { flow, author } => {
                    let reader = self.watch.verifier.flows().recipient(flow);
                    // Marked again when more has come.
                    if let Some(up_to) = self.watch.mark_read(flow) {
                        self.fleet.read(reader, author, up_to);
                    }
                }
            }
        }
    }

    /// Waits until everything has arrived and every mark is there, or for the plan's patience.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        let begun_us = self.now_us();
        let patience_us = self.plan().drain.as_micros() as u64;
        let mut ask_us = begun_us + RECEIPTS_PATIENCE_US;
        let mut check_us = begun_us;
        while !self.control.reached(Stage::Finishing) {
            let now_us = self.now_us();
            self.disturb(now_us);
            self.do_later(now_us);
            if now_us >= check_us {
                check_us = now_us + SETTLED_CHECK_US;
                let verifier = &self.watch.verifier;
                let quiet = self.watch.later.is_empty()
                    && self.watch.away == 0
                    && self.watch.open_asks == 0;
                let settled = quiet && verifier.is_settled();
                if settled && verifier.receipts_behind().next().is_none() {
                    return Ok(());
                }
                if settled && now_us >= ask_us {
                    ask_us = now_us + RECEIPTS_PATIENCE_US;
                    self.ask_for_receipts();
                }
            }
            if now_us >= begun_us + patience_us {
                return Ok(());
            }
            self.turn(SETTLED_CHECK_US)?;
        }
        Ok(())
    }

    /// A push of a mark may be lost by design; the mark itself may not.
    fn ask_for_receipts(&mut self) {
        let mut behind: BTreeMap<u32, Vec<UserId>> = BTreeMap::new();
        for (sender, recipient) in self.watch.verifier.receipts_behind() {
            behind.entry(sender).or_default().push(recipient);
        }
        for (sender, peers) in behind {
            self.fleet.ask_receipts(sender, &peers);
        }
    }

    pub(super) fn finish(mut self) -> Outcome {
        self.fleet.close_all();
        let [latency, service, sent] = self.watch.verifier.times_us();
        let totals = [latency, service, sent, &self.slip_us];
        self.tap.flush(totals, &self.gauges.intervals);
        let mut figures = self.watch.figures;
        figures.missing(self.watch.away);
        let life = &mut figures.life;
        life.pages_failed = life.pages - life.pages_answered;
        if let Some(disturbance) = self.disturbance {
            figures.disturbed(&disturbance);
        }
        let findings = self.watch.verifier.finish();
        figures.found(&findings);
        Outcome {
            findings,
            figures,
            transport: self.watch.transport,
            slip_us: self.slip_us,
            not_queued: self.not_queued,
            withheld: self.withheld,
            unsent: self.unsent,
            sending_cpu_us: self.sending_cpu_us,
            last_arrival_us: self.watch.last_arrival_us,
        }
    }
}
