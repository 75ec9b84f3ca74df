//! One thread with a slice of the users: it connects them, keeps the schedule, hands every event
//! to its verifier and waits for what is still on its way.
//!
//! # Invariants
//! - A worker shares nothing with others but [`Control`] and its [`Gauges`]; it verifies alone.
//! - It looks at its schedule at least once per turn of the driver, and a turn is bounded.

use crate::{
    control::{Control, Gauges, Stage},
    plan::{Flows, Plan},
    process::thread_cpu_us,
    random::mix,
    remote,
    schedule::Schedule,
    tokens::Tokens,
    verifier::{Findings, Verifier, histogram, msg_id},
};
use anyhow::Context;
use hdrhistogram::Histogram;
use portico_client::{
    Event, Login, Now, SendOptions, Session, SessionState, Settings,
    many::{Clock, ConnIndex, Many, ManyConfig, ManyEvent},
};
use portico_wire::{
    CloseCode,
    encode::Encoder,
    ids::{DeviceId, UserId},
    message::Envelope,
};
use rustix::thread::{CpuSet, sched_setaffinity, set_current_timer_slack};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    num::NonZeroU64,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// What sessions call themselves.
pub(crate) const CLIENT: &str = "portico-loadgen";
/// Messages that are due go out in bites of this many, so that reading is never far away.
const SENDS_PER_TURN_MAX: usize = 64;
/// Messages of one user that may be unanswered. More than the gateway takes at once, and few
/// enough that a gateway in trouble does not fill this process.
const OUTBOX_MAX: usize = 512;
/// How long the driver may wait when nothing is scheduled: the stage is looked at in between.
const IDLE_TURN_US: u64 = 20_000;
/// The gateway pushes delivered marks once a second; after this they are asked for.
const RECEIPTS_PATIENCE_US: u64 = 2_500_000;
/// Between two looks at whether everything has arrived.
const SETTLED_CHECK_US: u64 = 10_000;

/// A worker's share of the run.
#[derive(Debug)]
pub(crate) struct Assignment<'a> {
    pub plan: &'a Plan,
    pub run: u64,
    pub seed: u64,
    pub clock: Clock,
    pub target: SocketAddr,
    pub sources: Vec<IpAddr>,
    pub tokens: Tokens<'a>,
    pub device: DeviceId,
    pub first_user: u64,
    pub users: u32,
    /// Of all workers' users, those before this slice: spreads the schedules of the workers.
    pub users_before: u32,
    pub cpu: Option<usize>,
    /// Connections opened per second, at most.
    pub connects_per_s: u32,
    /// Seconds between two PINGs; 0: as the gateway proposes.
    pub heartbeat_s: u16,
    /// How long a token is valid: longer than the run, for reconnecting must not fail because of it.
    pub token_ttl: Duration,
}

impl Assignment<'_> {
    fn rate_per_s(&self) -> f64 {
        self.plan.rate_per_s * f64::from(self.users) / f64::from(self.plan.connections)
    }

    fn token(&self, user: UserId) -> String {
        let unix_s = self.clock.now().wall_us / 1_000_000;
        self.tokens.token(user, self.device, self.token_ttl, unix_s)
    }
}

/// What happened to connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Transport {
    pub reconnects: u64,
    pub connect_failures: u64,
    /// Of those: this machine had no port or no file descriptor left.
    pub exhausted: u64,
    pub protocol_faults: u64,
    /// Text of one of the faults.
    pub fault: Option<String>,
    /// Ends of connections by close code.
    pub closes: BTreeMap<u16, u64>,
}

impl Transport {
    pub(crate) fn add(&mut self, other: Self) {
        self.reconnects += other.reconnects;
        self.connect_failures += other.connect_failures;
        self.exhausted += other.exhausted;
        self.protocol_faults += other.protocol_faults;
        self.fault = self.fault.take().or(other.fault);
        for (code, count) in other.closes {
            *self.closes.entry(code).or_default() += count;
        }
    }
}

/// What a worker found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub findings: Findings,
    pub transport: Transport,
    /// How late messages were handed to the driver.
    #[serde(with = "remote::histogram")]
    pub slip_us: Histogram<u64>,
    /// Due, but the outbox of their sender was full of unanswered ones.
    pub not_queued: u64,
    /// Due, but the verifier's memory was full.
    pub withheld: u64,
    /// CPU time of this thread while messages were sent.
    pub sending_cpu_us: u64,
    pub last_arrival_us: u64,
}

pub(crate) fn run(
    assignment: &Assignment<'_>,
    control: &Control,
    gauges: &Gauges,
) -> anyhow::Result<Outcome> {
    prepare_thread(assignment.cpu)?;
    let mut worker = Worker::new(assignment, control, gauges)?;
    while !control.reached(Stage::Sending) {
        worker.turn(IDLE_TURN_US)?;
    }
    if !control.reached(Stage::Finishing) {
        worker.send_all()?;
        worker.drain()?;
    }
    gauges.done.store(true, Ordering::Relaxed);
    while !control.reached(Stage::Finishing) {
        worker.turn(IDLE_TURN_US)?;
    }
    Ok(worker.finish())
}

fn prepare_thread(cpu: Option<usize>) -> anyhow::Result<()> {
    if let Some(cpu) = cpu {
        let mut set = CpuSet::new();
        set.set(cpu);
        sched_setaffinity(None, &set)
            .with_context(|| format!("cannot run on processor {cpu} (see --cpus)"))?;
    }
    // The kernel may delay a sleeper by 50 us to wake several at once; a schedule cannot have that.
    // Where it is refused the slip shows it.
    let _ = set_current_timer_slack(NonZeroU64::new(1));
    Ok(())
}

struct Worker<'a> {
    assignment: &'a Assignment<'a>,
    control: &'a Control,
    gauges: &'a Gauges,
    many: Many,
    watch: Watch<'a>,
    encoder: Encoder,
    body: Vec<u8>,
    slip_us: Histogram<u64>,
    not_queued: u64,
    withheld: u64,
    sending_cpu_us: u64,
}

impl<'a> Worker<'a> {
    fn new(
        assignment: &'a Assignment<'a>,
        control: &'a Control,
        gauges: &'a Gauges,
    ) -> anyhow::Result<Self> {
        let users = assignment.users;
        let flows = Flows::new(
            assignment.first_user,
            users,
            assignment.plan.partners,
            assignment.seed,
        );
        let mut config = ManyConfig::new(assignment.target, assignment.clock);
        config.connections = users as usize;
        config.sources.clone_from(&assignment.sources);
        config.source_offset = assignment.users_before as usize;
        config.connects_per_s = assignment.connects_per_s;
        let mut many = Many::new(config).context("cannot set up epoll")?;
        let settings = Arc::new(Settings {
            client: CLIENT.to_owned(),
            outbox_max: OUTBOX_MAX,
            dedupe_max: DEDUPE_MAX,
            heartbeat_s: assignment.heartbeat_s,
            keep_token: false,
            ..Settings::default()
        });
        for index in 0..users {
            let user = flows.user(index);
            let login = Login::new(user, assignment.device, assignment.token(user));
            let seed = mix(assignment.run ^ user.0);
            let state = SessionState::default();
            many.add(Session::sharing(&settings, login, state, seed));
        }
        Ok(Self {
            assignment,
            control,
            gauges,
            many,
            watch: Watch {
                control,
                verifier: Verifier::new(assignment.run, flows),
                transport: Transport::default(),
                presence: vec![Presence::Never; users as usize],
                tokenless: Vec::new(),
                up: 0,
                last_arrival_us: 0,
            },
            encoder: Encoder::new(),
            body: Vec::with_capacity(assignment.plan.body_bytes),
            slip_us: histogram(),
            not_queued: 0,
            withheld: 0,
            sending_cpu_us: 0,
        })
    }

    fn turn(&mut self, wait_us: u64) -> io::Result<()> {
        let watch = &mut self.watch;
        watch.verifier.set_storm_us(self.control.storm_us());
        self.many.turn(wait_us, &mut |now, conn, event| {
            watch.event(now, conn, &event)
        })?;
        for conn in watch.tokenless.drain(..) {
            let token = self.assignment.token(watch.verifier.flows().user(conn.0));
            self.many.set_token(conn, token);
        }
        let counts = watch.verifier.counts();
        self.gauges.up.store(watch.up, Ordering::Relaxed);
        self.gauges.sent.store(counts.sent, Ordering::Relaxed);
        self.gauges
            .accepted
            .store(counts.accepted, Ordering::Relaxed);
        self.gauges
            .delivered
            .store(counts.delivered, Ordering::Relaxed);
        Ok(())
    }

    /// The measured part: every message at its time, or as soon after it as this thread can.
    fn send_all(&mut self) -> io::Result<()> {
        let plan = self.assignment.plan;
        let start_us = self.control.start_us();
        let stagger_us = f64::from(self.assignment.users_before) * 1e6
            / (plan.rate_per_s * f64::from(plan.connections));
        let mut schedule = Schedule::new(
            start_us + stagger_us as u64,
            self.assignment.rate_per_s(),
            plan.duration.as_micros() as u64,
        );
        while self.many.now().mono_us < start_us {
            self.turn(start_us.saturating_sub(self.many.now().mono_us))?;
        }
        let cpu_us = thread_cpu_us();
        while !self.control.reached(Stage::Draining) {
            let now_us = self.many.now().mono_us;
            for _ in 0..SENDS_PER_TURN_MAX {
                let Some((number, due_us)) = schedule.pop_due(now_us) else {
                    break;
                };
                self.slip_us.saturating_record((now_us - due_us).max(1));
                self.send(number, due_us);
            }
            let Some(next_us) = schedule.next_us() else {
                break;
            };
            self.turn(
                next_us
                    .saturating_sub(self.many.now().mono_us)
                    .min(IDLE_TURN_US),
            )?;
        }
        self.sending_cpu_us = thread_cpu_us().saturating_sub(cpu_us);
        Ok(())
    }

    fn send(&mut self, number: u64, due_us: u64) {
        let verifier = &mut self.watch.verifier;
        let flow = verifier.flows().of_message(number);
        let conn = ConnIndex(verifier.flows().sender(flow));
        let Some(payload) = verifier.next_message(flow, due_us) else {
            self.withheld += 1;
            return;
        };
        payload.encode(self.assignment.plan.body_bytes, &mut self.body);
        let envelope = self.encoder.envelope(&Envelope {
            body: &self.body,
            ..Envelope::default()
        });
        let server_us = self.many.session(conn).server_clock_us(self.many.now());
        let options = SendOptions {
            msg_id: Some(msg_id(server_us / 1_000, flow, payload.counter)),
            ..SendOptions::default()
        };
        match self.many.send(conn, payload.recipient, envelope, options) {
            Ok(_) => verifier.sent(&payload),
            // The plan's sizes and users are valid, so the outbox is full.
            Err(_) => self.not_queued += 1,
        }
    }

    /// Waits until everything has arrived and every delivered mark is there, or for the plan's
    /// patience.
    fn drain(&mut self) -> io::Result<()> {
        let begun_us = self.many.now().mono_us;
        let patience_us = self.assignment.plan.drain.as_micros() as u64;
        let mut ask_us = begun_us + RECEIPTS_PATIENCE_US;
        let mut check_us = begun_us;
        while !self.control.reached(Stage::Finishing) {
            let now_us = self.many.now().mono_us;
            if now_us >= check_us {
                check_us = now_us + SETTLED_CHECK_US;
                let settled = self.watch.verifier.is_settled();
                if settled && self.watch.verifier.receipts_behind().next().is_none() {
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

    /// A push of a delivered mark may be lost by design; the mark itself may not.
    fn ask_for_receipts(&mut self) {
        let mut behind: BTreeMap<u32, Vec<UserId>> = BTreeMap::new();
        for (sender, recipient) in self.watch.verifier.receipts_behind() {
            behind.entry(sender).or_default().push(recipient);
        }
        for (sender, peers) in behind {
            self.many.with(ConnIndex(sender), |session, now| {
                session.receipts(now, &peers);
            });
        }
    }

    fn finish(mut self) -> Outcome {
        self.many.close_all();
        Outcome {
            findings: self.watch.verifier.finish(),
            transport: self.watch.transport,
            slip_us: self.slip_us,
            not_queued: self.not_queued,
            withheld: self.withheld,
            sending_cpu_us: self.sending_cpu_us,
            last_arrival_us: self.watch.last_arrival_us,
        }
    }
}

/// Messages whose ids a client remembers. A gateway repeats what it sent last, so few suffice.
const DEDUPE_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Never,
    Up,
    Down,
}

/// Where events end.
struct Watch<'a> {
    control: &'a Control,
    verifier: Verifier,
    transport: Transport,
    presence: Vec<Presence>,
    /// Those that wait for another token: the gateway has refused to resume their session.
    tokenless: Vec<ConnIndex>,
    up: u64,
    last_arrival_us: u64,
}

impl Watch<'_> {
    fn event(&mut self, now: Now, conn: ConnIndex, event: &ManyEvent<'_>) {
        match event {
            ManyEvent::Session(event) => self.session_event(now, conn, event),
            ManyEvent::ConnectFailed(error) => {
                self.transport.connect_failures += 1;
                self.transport.exhausted += u64::from(is_exhaustion(error));
            }
            ManyEvent::TokenWanted => self.tokenless.push(conn),
            ManyEvent::Connected { .. } | ManyEvent::LoggedIn { .. } => {}
        }
    }

    fn session_event(&mut self, now: Now, conn: ConnIndex, event: &Event<'_>) {
        let user = conn.0;
        match *event {
            Event::Message {
                conv_seq,
                from,
                envelope,
                ..
            } => {
                self.last_arrival_us = now.mono_us;
                // Nothing is ever revoked here, so a tombstone has lost its body on the way.
                let body = envelope.map_or(&[][..], |envelope| envelope.body);
                self.verifier
                    .arrived(user, from, conv_seq, body, now.mono_us);
            }
            Event::Sent {
                msg_id,
                conv_seq,
                duplicate,
            } => self
                .verifier
                .accepted(msg_id, conv_seq, duplicate, now.mono_us),
            Event::Refused {
                msg_id,
                code,
                will_retry,
                ..
            } => self.verifier.refused(msg_id, code, will_retry),
            Event::Receipt {
                peer,
                read: false,
                up_to,
                ..
            } => self.verifier.receipt(user, peer, up_to),
            Event::Undecodable { .. } => self.verifier.undecodable(),
            Event::Duplicate { .. } => self.verifier.repeated(),
            Event::Synced { .. } => self.came_up(user),
            Event::Closed {
                code,
                by_peer,
                reconnect_after_ms,
                detail,
            } => {
                if self.went_down(user) || by_peer {
                    *self.transport.closes.entry(code.0).or_default() += 1;
                }
                if reconnect_after_ms.is_none() {
                    self.control.obstruct(turned_away(code, detail));
                }
            }
            Event::ProtocolFault(fault) => {
                self.transport.protocol_faults += 1;
                self.transport
                    .fault
                    .get_or_insert_with(|| fault.to_string());
            }
            Event::Draining { .. }
            | Event::Welcome { .. }
            | Event::Gap { .. }
            | Event::Receipt { .. }
            | Event::ReadElsewhere { .. } => {}
        }
    }

    fn came_up(&mut self, conn: u32) {
        if let Some(presence) = self.presence.get_mut(conn as usize) {
            match std::mem::replace(presence, Presence::Up) {
                Presence::Never => self.up += 1,
                Presence::Down => {
                    self.up += 1;
                    self.transport.reconnects += 1;
                }
                Presence::Up => {}
            }
        }
    }

    /// True if there was something to go down.
    fn went_down(&mut self, conn: u32) -> bool {
        match self.presence.get_mut(conn as usize) {
            Some(presence @ Presence::Up) => {
                *presence = Presence::Down;
                self.up -= 1;
                true
            }
            _ => false,
        }
    }
}

pub(crate) fn turned_away(code: CloseCode, detail: &str) -> String {
    let hint = match code {
        CloseCode::AUTH_FAILED => "; is --data its data directory, or --key-file its key?",
        _ => "",
    };
    format!("the gateway turned a user away: {code} {detail}{hint}")
}

/// This machine ran out of something: the gateway is not to blame.
pub(crate) fn is_exhaustion(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    matches!(
        error.kind(),
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse
    ) || exhausted
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
