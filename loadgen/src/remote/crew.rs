//! Who carries a plan out: threads of this process, or workers elsewhere that are led like these.

use super::{
    Flags,
    clocks::{Offset, RoundTrip},
    divide::divide,
    link::Link,
    message::{
        ANSWER_TIMEOUT, BEAT, FRAME_MAX_FOUND, FRAME_MAX_STRANGER, FromWorker, GAUGES, Limits,
        MAGIC, NONCE_MAX, Order, POLL, SILENCE_MAX, Shown, TOKENS_PER_FRAME, ToWorker, VERSION,
    },
    secret::{Role, Secret, nonce},
};
use crate::{
    cli::Args,
    control::{Control, Gauges, Stage},
    environment::Means,
    fleet::sockets_per_user,
    observer::Observer,
    plan::{Plan, Protocol},
    progress::Progress,
    report::{Measured, grouped, printable},
    run::{self, Course, TOKEN_RESERVE, View, add_up, first_user, run_id},
    target::{self, Target},
    tls::Trust,
    tokens::Tokens,
    watch::Watch,
    worker::Outcome,
};
use anyhow::{Context, anyhow, bail};
use portico_client::many::Clock;
use portico_wire::ids::{DeviceId, UserId};
use serde::Serialize;
use std::{
    net::{TcpStream, ToSocketAddrs},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Questions for a worker's clock before a run.
const PINGS: usize = 16;
/// The word to start must be everywhere by then.
const START_DELAY_US: u64 = 500_000;
/// Gauges of a worker are at most this old: the interval, and a network's time.
const STALE_US: u64 = 2 * GAUGES.as_micros() as u64;
/// How long workers may take to close everything and to tell what they have found.
const FINISH_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) enum Crew {
    /// Threads of this process.
    Own,
    Remote(Vec<Remote>),
}

/// A worker elsewhere.
#[derive(Debug)]
pub(crate) struct Remote {
    /// HOST:PORT, as it was given.
    name: String,
    link: Link,
    limits: Limits,
}

/// A worker in the report. Keys are only ever added.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Host {
    pub name: String,
    pub users: u32,
    pub limits: Limits,
    /// Its clock against the coordinator's, when the run began.
    pub clock: Offset,
    /// Its wall clock against the coordinator's, give or take the same uncertainty.
    pub wall_offset_us: i64,
}

impl Crew {
    /// Connects to the workers that the flags name.
    pub(crate) fn gather(flags: &Flags) -> anyhow::Result<Self> {
        if flags.workers.is_empty() {
            return Ok(Self::Own);
        }
        for (at, name) in flags.workers.iter().enumerate() {
            if flags.workers[..at].contains(name) {
                bail!("--workers names {name} twice: a worker takes one part of a run");
            }
        }
        let secret = match &flags.secret_file {
            Some(path) => Secret::load(path)?,
            None => Secret::none(),
        };
        let greet = |name: &String| {
            greet(name, &secret).with_context(|| format!("the worker {name} cannot be used"))
        };
        let remotes = flags.workers.iter().map(greet);
        Ok(Self::Remote(remotes.collect::<anyhow::Result<_>>()?))
    }

    /// How old what a watch sees may be.
    pub(crate) const fn stale_us(&self) -> u64 {
        match self {
            Self::Own => 0,
            Self::Remote(_) => STALE_US,
        }
    }

    /// Carries the plan out, once more with every call.
    pub(crate) fn run(
        &mut self,
        args: &Args,
        plan: &Plan,
        watch: &mut Watch<'_>,
    ) -> anyhow::Result<Measured> {
        match self {
            Self::Own => run::run_watched(args, plan, watch),
            Self::Remote(remotes) => lead(remotes, args, plan, watch),
        }
    }
}

fn greet(name: &str, secret: &Secret) -> anyhow::Result<Remote> {
    let address = name
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .context("it is not HOST:PORT of a known host")?;
    let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)
        .context("start it with `portico-loadgen worker --listen`")?;
    let mut link = Link::new(stream, FRAME_MAX_STRANGER)?;
    let FromWorker::Challenge {
        magic,
        version,
        nonce: theirs,
    } = link.receive(ANSWER_TIMEOUT)?
    else {
        bail!("it is no worker of this tool");
    };
    if magic != MAGIC || theirs.len() > NONCE_MAX {
        bail!("it is no worker of this tool");
    }
    if version != VERSION {
        bail!("it speaks version {version}, we {VERSION}; use the same on both sides");
    }
    let ours = nonce()?;
    link.send(&ToWorker::Enter {
        version,
        nonce: ours.clone(),
        proof: secret.proof(Role::Coordinator, &theirs, &ours),
    })?;
    match link.receive(ANSWER_TIMEOUT)? {
        FromWorker::Welcome { proof, limits } => {
            if !secret.proves(&proof, Role::Worker, &theirs, &ours) {
                bail!("it does not know the secret, and gets nothing from us");
            }
            link.set_frame_max(FRAME_MAX_FOUND);
            Ok(Remote {
                name: name.to_owned(),
                link,
                limits,
            })
        }
        FromWorker::Failed { reason } => bail!("it refuses: {}", printable(&reason)),
        _ => bail!("it is no worker of this tool"),
    }
}

fn lead(
    remotes: &mut [Remote],
    args: &Args,
    plan: &Plan,
    watch: &mut Watch<'_>,
) -> anyhow::Result<Measured> {
    if plan.hold.is_some() {
        bail!("the plan `hold` is not for workers: one process holds more than its open files");
    }
    let key = match plan.protocol {
        Protocol::Portico => Some(target::load_key(args)?),
        _ => None,
    };
    let tokens = key.as_ref().map(Tokens::Signed);
    let trust = Trust::of(args, plan)?;
    // Only to account for its process; the workers say whether they reach it.
    let target = Target::find(args, plan, None).ok();
    let is_local = target.is_some_and(|target| target.is_local);
    let shares = share_out(plan, remotes, is_local)?;
    let run = run_id().context("cannot read /dev/urandom")?;
    let clock = Clock::start();
    let at_rest = run::at_rest(target.and_then(|target| target.pid));

    let mut hosts = Vec::new();
    let mut slices = Vec::new();
    let mut before = 0;
    for (remote, users) in remotes.iter_mut().zip(shares) {
        let clocks = remote.compare_clocks(clock);
        let (clock, wall_offset_us) =
            clocks.with_context(|| format!("the worker {} has failed", remote.name))?;
        hosts.push(Host {
            name: remote.name.clone(),
            users,
            limits: remote.limits.clone(),
            clock,
            wall_offset_us,
        });
        slices.push(Slice {
            run,
            first_user: first_user(run) + u64::from(before),
            users,
            users_before: before,
            trust: trust.clone(),
        });
        before += users;
    }

    let control = Control::new();
    let gauges: Vec<Gauges> = remotes.iter().map(|_| Gauges::default()).collect();
    let course = Course {
        plan,
        clock,
        control: &control,
        pid: at_rest.map(|(pid, _)| pid),
        start_delay_us: START_DELAY_US,
    };
    // Ports and files are the workers' own; `hosts` has them.
    let means = Means {
        target_is_local: is_local,
        ..Means::default()
    };
    let view = View {
        gauges: &gauges,
        progress: Progress::new(args.progress),
        observer: Observer::new(clock, course.pid, means),
    };
    let (led, outcomes) = thread::scope(|scope| {
        let workers: Vec<_> = remotes
            .iter_mut()
            .zip(&gauges)
            .zip(hosts.iter().zip(&slices))
            .map(|((remote, gauges), (host, slice))| {
                let control = &control;
                scope.spawn(move || {
                    // Here, because signing tokens takes time: others must not wait in silence.
                    remote.order(args, plan, slice, tokens, clock)?;
                    remote.carry_out(host.clock, control, gauges)
                })
            })
            .collect();
        let is_over = || workers.iter().any(thread::ScopedJoinHandle::is_finished);
        let led = run::lead(&course, view, &is_over, watch);
        control.finish();
        let outcomes: Vec<anyhow::Result<Vec<Outcome>>> = workers
            .into_iter()
            .map(|worker| {
                let joined = worker.join();
                joined.unwrap_or_else(|_| Err(anyhow!("its thread here panicked")))
            })
            .collect();
        (led, outcomes)
    });

    let mut found = Vec::new();
    let mut doubts = Vec::new();
    for (outcome, host) in outcomes.into_iter().zip(&hosts) {
        match outcome {
            Ok(outcomes) => found.extend(outcomes),
            Err(error) => doubts.push(format!("the worker {} has failed: {error:#}", host.name)),
        }
    }
    if found.is_empty()
        && let Some(doubt) = doubts.first()
    {
        bail!("{doubt}");
    }
    let (led, view) = led?;
    let observed = view.observer.finish(&gauges);
    let mut measured = run::measured(args, plan, run, &led, at_rest, observed);
    measured.doubts.extend(doubts);
    measured.hosts = hosts;
    Ok(add_up(measured, led.start_us, found))
}

/// How many users each worker gets.
fn share_out(plan: &Plan, remotes: &[Remote], is_local: bool) -> anyhow::Result<Vec<u32>> {
    let threads: Vec<u32> = remotes.iter().map(|remote| remote.limits.threads).collect();
    let sockets = u64::from(sockets_per_user(plan));
    let room: Vec<u64> = remotes
        .iter()
        .map(|remote| match is_local {
            // Loopback has addresses enough.
            true => remote.limits.connections_by_files,
            false => {
                let limits = &remote.limits;
                limits.connections_by_files.min(limits.connections_by_ports)
            }
        })
        .map(|room| room / sockets)
        .collect();
    divide(plan.connections, plan.unit(), &threads, &room).with_context(|| {
        let rooms: Vec<String> = remotes
            .iter()
            .zip(&room)
            .map(|(remote, room)| format!("{}: {}", remote.name, grouped(*room)))
            .collect();
        format!(
            "{} connections cannot be divided: each worker takes at least {}, and at most ({})",
            grouped(u64::from(plan.connections)),
            plan.unit(),
            rooms.join(", ")
        )
    })
}

/// A worker's part of the users.
struct Slice {
    run: u64,
    first_user: u64,
    users: u32,
    users_before: u32,
    trust: Option<Trust>,
}

impl Remote {
    /// Gives the order with the tokens.
    fn order(
        &mut self,
        args: &Args,
        plan: &Plan,
        slice: &Slice,
        tokens: Option<Tokens<'_>>,
        clock: Clock,
    ) -> anyhow::Result<()> {
        self.link.send(&ToWorker::Order(Box::new(Order {
            plan: plan.clone(),
            run: slice.run,
            target: args.target(plan),
            tls: slice.trust.clone(),
            device: args.device,
            first_user: slice.first_user,
            users: slice.users,
            users_before: slice.users_before,
            heartbeat_s: 0,
            tokens: tokens.map_or(0, |_| slice.users),
        })))?;
        let Some(tokens) = tokens else {
            return Ok(());
        };
        let unix_s = clock.now().wall_us / 1_000_000;
        let ttl = plan.duration + plan.drain + TOKEN_RESERVE;
        let device = DeviceId(args.device);
        let users = slice.first_user..slice.first_user + u64::from(slice.users);
        let mut made = users.map(|user| tokens.token(UserId(user), device, ttl, unix_s));
        loop {
            let portion: Vec<String> = made.by_ref().take(TOKENS_PER_FRAME).collect();
            if portion.is_empty() {
                break;
            }
            self.link.send(&ToWorker::Tokens(portion))?;
        }
        Ok(())
    }

    fn compare_clocks(&mut self, clock: Clock) -> anyhow::Result<(Offset, i64)> {
        let mut trips = Vec::with_capacity(PINGS);
        let mut walls = Vec::with_capacity(PINGS);
        while trips.len() < PINGS {
            let asked = clock.now();
            self.link.send(&ToWorker::Ping)?;
            let (mono_us, wall_us) = match self.link.receive(ANSWER_TIMEOUT)? {
                FromWorker::Pong { mono_us, wall_us } => (mono_us, wall_us),
                FromWorker::Failed { reason } => bail!("{reason}"),
                _ => bail!("it was asked for its clock and said something else"),
            };
            let answered = clock.now();
            let trip = |asked_us, theirs_us, answered_us| RoundTrip {
                asked_us,
                theirs_us,
                answered_us,
            };
            trips.push(trip(asked.mono_us, mono_us, answered.mono_us));
            walls.push(trip(asked.wall_us, wall_us, answered.wall_us));
        }
        let offset = Offset::of(&trips).context("no answers")?;
        let wall = Offset::of(&walls).context("no answers")?;
        Ok((offset, wall.offset_us))
    }

    /// Passes on where the run stands, and the worker's gauges, until it tells what it has found.
    fn carry_out(
        &mut self,
        offset: Offset,
        control: &Control,
        gauges: &Gauges,
    ) -> anyhow::Result<Vec<Outcome>> {
        let mut told = Stage::Connecting;
        let mut beaten = Instant::now();
        let mut finishing: Option<Instant> = None;
        loop {
            for (stage, message) in [
                (
                    Stage::Sending,
                    ToWorker::Start {
                        start_us: offset.theirs(control.start_us()),
                    },
                ),
                (Stage::Draining, ToWorker::Drain),
                (Stage::Finishing, ToWorker::Finish),
            ] {
                if told < stage && control.reached(stage) {
                    // A run that is given up before it began has no start to tell.
                    if stage == Stage::Finishing || control.start_us() > 0 {
                        self.link.send(&message)?;
                    }
                    told = stage;
                    if stage == Stage::Finishing {
                        finishing = Some(Instant::now());
                    }
                }
            }
            if beaten.elapsed() >= BEAT {
                beaten = Instant::now();
                self.link.send(&ToWorker::Beat)?;
            }
            match self.link.poll(POLL)? {
                Some(FromWorker::Gauges(shown)) => take_over(shown, control, gauges),
                Some(FromWorker::Outcome(outcomes)) => {
                    let start_us = control.start_us();
                    let outcomes = outcomes.into_iter();
                    return Ok(outcomes
                        .map(|outcome| Outcome {
                            last_arrival_us: ours(outcome.last_arrival_us, offset, start_us),
                            ..outcome
                        })
                        .collect());
                }
                Some(FromWorker::Failed { reason }) => bail!("{reason}"),
                Some(_) => bail!("it said something out of turn"),
                None => {}
            }
            match finishing {
                // It closes its connections, and says nothing meanwhile.
                Some(begun) if begun.elapsed() > FINISH_TIMEOUT => {
                    bail!("it has not told its result for {FINISH_TIMEOUT:?}")
                }
                Some(_) => {}
                None => self.link.check_silence(SILENCE_MAX)?,
            }
        }
    }
}

/// A time of the worker's on our clock: as long after the start as on its own.
fn ours(theirs_us: u64, offset: Offset, start_us: u64) -> u64 {
    let since_start_us = theirs_us.saturating_sub(offset.theirs(start_us));
    match theirs_us {
        // Never.
        0 => 0,
        _ => start_us + since_start_us,
    }
}

fn take_over(shown: Shown, control: &Control, gauges: &Gauges) {
    gauges.up.store(shown.up, Ordering::Relaxed);
    gauges.sent.store(shown.sent, Ordering::Relaxed);
    gauges.accepted.store(shown.accepted, Ordering::Relaxed);
    gauges.delivered.store(shown.delivered, Ordering::Relaxed);
    gauges.errors.store(shown.errors, Ordering::Relaxed);
    let intervals = shown.intervals.into_iter();
    intervals.for_each(|interval| gauges.intervals.put(interval));
    gauges.done.store(shown.done, Ordering::Relaxed);
    if let Some(obstacle) = shown.obstacle {
        control.obstruct(obstacle);
    }
}
