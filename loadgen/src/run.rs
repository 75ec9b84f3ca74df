//! A whole run: look at the target, start the workers, lead them through the stages, add up.

mod storms;

use crate::{
    cli::Args,
    control::{Control, Gauges},
    environment::Means,
    fleet::{Credentials, sockets_per_user},
    interrupt,
    observer::{Observed, Observer},
    plan::{Plan, Protocol},
    process::{self, Usage},
    progress::Progress,
    random::mix,
    report::{Measured, MeasuredServer, grouped, round},
    target::{self, Target},
    tls::{self, Trust},
    tokens::Tokens,
    watch::{Sight, Watch},
    worker::{self, Assignment, Outcome},
};
use anyhow::{Context, anyhow, bail};
use portico_client::many::{Clock, loopback_sources};
use portico_wire::ids::DeviceId;
use std::{
    fs::File,
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};
use storms::Storms;

/// User ids of one run: this bit, 30 bits of the run, then the user's number. Below 2^53, so that
/// clients in JavaScript could hold them; far above what people number their users.
const USER_RUN_BIT: u64 = 1 << 52;
const USER_NUMBER_BITS: u32 = 22;
const USER_RUN_MASK: u64 = (USER_RUN_BIT >> USER_NUMBER_BITS) - 1;
/// Files besides the sockets.
pub(crate) const FILES_RESERVE: u64 = 64;
/// Of the ports an address has, how many are planned for: others use ports too.
const PORTS_SHARE: f64 = 0.8;
/// Local ports of an address where the range cannot be read: the kernel's default is as good a
/// guess as any.
const PORTS_DEFAULT: usize = 28_232;
/// Between the last connection and the first message.
pub(crate) const START_DELAY_US: u64 = 50_000;
/// How long all connections may take: this, and a millisecond for each.
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);
/// How often one worker opens a connection, at most.
pub(crate) const CONNECTS_PER_S: u32 = 20_000;
/// How much longer than the run a token is valid.
pub(crate) const TOKEN_RESERVE: Duration = Duration::from_secs(3_600);
pub(crate) const POLL: Duration = Duration::from_millis(10);

const _: () = assert!(
    crate::plan::CONNECTIONS_MAX as u64 <= 1 << USER_NUMBER_BITS,
    "every user of a run has its own number"
);

/// Carries the plan out on threads of this process; somebody looks on. An error means that there
/// is no result at all.
pub(crate) fn run_watched(
    args: &Args,
    plan: &Plan,
    watch: &mut Watch<'_>,
) -> anyhow::Result<Measured> {
    let trust = Trust::of(args, plan)?;
    let target = Target::find(args, plan, trust.as_ref())?;
    let tls = tls::clients(trust.as_ref())?;
    let key = match plan.protocol {
        Protocol::Portico => Some(target::load_key(args)?),
        _ => None,
    };
    let files = process::raise_open_file_limit().context("cannot raise the open file limit")?;
    let sockets = u64::from(plan.connections) * u64::from(sockets_per_user(plan));
    if sockets + FILES_RESERVE > files {
        bail!(
            "{} sockets need more open files than the {} this process may have (ulimit -Hn)",
            grouped(sockets),
            grouped(files)
        );
    }
    let sources = sources(target.address, plan.connections)?;
    let run = run_id().context("cannot read /dev/urandom")?;
    let at_rest = at_rest(target.pid);
    let own_at_rest = process::usage(std::process::id());

    let clock = Clock::start();
    let control = Control::new();
    let gauges: Vec<Gauges> = (0..args.workers()).map(|_| Gauges::default()).collect();
    let first_user = first_user(run);
    let slices = slices_of(plan.connections, args.workers() as u32, plan.unit());
    let assignments: Vec<Assignment<'_>> = slices
        .iter()
        .enumerate()
        .map(|(worker, (before, users))| Assignment {
            plan,
            run,
            clock,
            target: target.address,
            sources: sources.clone(),
            login: key.as_ref().map(|key| Credentials {
                tokens: Tokens::Signed(key),
                device: DeviceId(args.device),
                token_ttl: plan.duration + plan.drain + TOKEN_RESERVE,
            }),
            first_user: first_user + u64::from(*before),
            users: *users,
            users_before: *before,
            cpu: args.cpus.as_ref().map(|cpus| cpus.0[worker]),
            tls: tls.clone(),
            connects_per_s: plan.hold.map_or(CONNECTS_PER_S, |hold| {
                hold.ramp_per_s.div_ceil(args.workers() as u32)
            }),
            heartbeat_s: plan.hold.map_or(0, |hold| hold.heartbeat_s),
        })
        .collect();

    let means = Means {
        target_is_local: target.is_local,
        ports_per_address: ports(),
        addresses: sources.len().max(1),
        files,
        connections: sockets,
    };
    let course = Course {
        plan,
        clock,
        control: &control,
        pid: at_rest.map(|(pid, _)| pid),
        start_delay_us: START_DELAY_US,
    };
    let view = View {
        gauges: &gauges,
        progress: Progress::new(args.progress),
        observer: Observer::new(clock, course.pid, means),
    };
    let (led, outcomes) = thread::scope(|scope| {
        let workers: Vec<_> = assignments
            .iter()
            .zip(&gauges)
            .map(|(assignment, gauges)| scope.spawn(|| worker::run(assignment, &control, gauges)))
            .collect();
        let is_over = || workers.iter().any(thread::ScopedJoinHandle::is_finished);
        let led = lead(&course, view, &is_over, watch);
        control.finish();
        let outcomes: Vec<_> = workers
            .into_iter()
            .map(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a worker panicked")))
            })
            .collect();
        (led, outcomes)
    });
    let outcomes = outcomes.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let (led, view) = led?;
    let observed = view.observer.finish(&gauges);
    let mut measured = measured(args, plan, run, &led, at_rest, observed);
    measured.own_bytes_per_connection = own_at_rest.zip(led.own).map(|(before, after)| {
        let grown = after.rss_bytes as f64 - before.rss_bytes as f64;
        round(grown / (led.connections as f64).max(1.0), 1.0)
    });
    Ok(add_up(measured, led.start_us, outcomes))
}

/// The process under test, before anything is connected.
pub(crate) fn at_rest(pid: Option<u32>) -> Option<(u32, Usage)> {
    pid.zip(pid.and_then(process::usage))
}

/// What the leading thread saw, before the workers' findings are added.
pub(crate) fn measured(
    args: &Args,
    plan: &Plan,
    run: u64,
    led: &Led,
    at_rest: Option<(u32, Usage)>,
    observed: Observed,
) -> Measured {
    let server = at_rest.and_then(|(pid, at_rest)| {
        let (connected, end) = led.usage?;
        Some(MeasuredServer {
            pid,
            name: process::name(pid)?,
            at_rest,
            connected,
            end,
        })
    });
    let mut measured = Measured::new(args, plan, run, led.connections, server);
    measured.doubts.extend(led.interrupted.clone());
    if let Some((pid, _)) = at_rest.filter(|(pid, _)| process::usage(*pid).is_none()) {
        measured
            .warnings
            .push(format!("the server's process, {pid}, ended during the run"));
    }
    measured.window_us = led.sending_us;
    measured.figures.life.storms_cpu_us = led.storms.cpu_us();
    measured.figures.life.storm_us = led.storms.lasts_us();
    measured.observed = observed;
    measured
}

/// What leading takes.
pub(crate) struct Course<'a> {
    pub plan: &'a Plan,
    pub clock: Clock,
    pub control: &'a Control,
    /// Process to account to.
    pub pid: Option<u32>,
    /// Between the last connection and the first message: workers must have heard of it.
    pub start_delay_us: u64,
}

/// What the coordinating thread saw.
pub(crate) struct Led {
    pub connections: u64,
    pub start_us: u64,
    /// The plan's duration, or less when the watch ended it.
    sending_us: u64,
    /// Somebody has ended it before its time: a sentence about it.
    interrupted: Option<String>,
    /// Of this process, before the first message.
    own: Option<Usage>,
    /// Of the server, before the first message and at the end.
    usage: Option<(Usage, Usage)>,
    storms: Storms,
}

/// Leads the workers from connecting to done.
pub(crate) fn lead<'a>(
    course: &Course<'_>,
    mut view: View<'a>,
    is_over: &dyn Fn() -> bool,
    watch: &mut Watch<'_>,
) -> anyhow::Result<(Led, View<'a>)> {
    let Course {
        plan,
        clock,
        control,
        pid,
        start_delay_us,
    } = *course;
    let ramp = plan.hold.map_or(Duration::ZERO, |hold| {
        Duration::from_secs(u64::from(plan.connections / hold.ramp_per_s))
    });
    let making = plan.groups.as_ref().map_or(Duration::ZERO, |groups| {
        Duration::from_millis(u64::from(plan.connections) * u64::from(groups.per_user))
    });
    let patience =
        CONNECT_PATIENCE + Duration::from_millis(u64::from(plan.connections)) + ramp + making;
    let begun = Instant::now();
    let connections = loop {
        let up = view.up();
        if let Some(obstacle) = control.obstacle() {
            bail!("{obstacle}");
        }
        if interrupt::asked() {
            bail!(
                "interrupted before the first message, with {} connections",
                grouped(up)
            );
        }
        if up == u64::from(plan.connections) || is_over() {
            break up;
        }
        if begun.elapsed() > patience {
            if up == 0 {
                match plan.protocol {
                    Protocol::Portico => bail!(
                        "something listens on the target, but it lets no user of Portico log in"
                    ),
                    other => {
                        bail!("something listens on the target, but it does not speak {other}")
                    }
                }
            }
            break up;
        }
        view.turn("connecting");
        thread::sleep(POLL);
    };
    let up_since = Instant::now();
    let settle = plan.hold.map_or(Duration::ZERO, |hold| hold.settle);
    while up_since.elapsed() < settle && !is_over() {
        if interrupt::asked() {
            bail!("interrupted before the first message");
        }
        view.turn("settling");
        thread::sleep(POLL);
    }
    let connected = pid.and_then(process::usage);
    let own = process::usage(std::process::id());
    let start_us = clock.now().mono_us + start_delay_us;
    control.start(start_us);
    view.observer.will_send(start_us, plan.duration);
    let mut storms = Storms::of(plan);
    let mut sending_us = plan.duration.as_micros() as u64;
    let mut interrupted = None;
    while !view.all_done() && !is_over() {
        let passed_us = clock.now().mono_us.saturating_sub(start_us);
        storms.look(pid, passed_us);
        let sending = passed_us < sending_us;
        let asked = interrupt::asked() && interrupted.is_none();
        if asked {
            interrupted = Some(interrupt::sentence(
                passed_us.min(sending_us),
                plan.duration,
            ));
        }
        if sending && (asked || watch(&view.sight(passed_us))) {
            control.drain();
            sending_us = passed_us.max(1);
            view.observer.will_send_until(start_us + sending_us);
        } else if asked {
            // Whoever does not want to wait for what is missing.
            break;
        }
        view.turn(if sending { "sending" } else { "draining" });
        thread::sleep(POLL);
    }
    let end = pid.and_then(process::usage);
    let led = Led {
        connections,
        start_us,
        sending_us,
        interrupted,
        own,
        usage: connected.zip(end),
        storms,
    };
    Ok((led, view))
}

/// Adds what the workers found to `measured`; `start_us` is when the first message was due.
pub(crate) fn add_up(mut measured: Measured, start_us: u64, outcomes: Vec<Outcome>) -> Measured {
    let duration_us = measured.window_us;
    measured.workers = outcomes.len();
    for outcome in outcomes {
        measured.counts.add(&outcome.findings.counts);
        measured.transport.add(outcome.transport);
        // All have the same bounds and precision.
        let sums = [
            (&mut measured.latency_us, &outcome.findings.latency_us),
            (
                &mut measured.sent_latency_us,
                &outcome.findings.sent_latency_us,
            ),
            (&mut measured.service_us, &outcome.findings.service_us),
            (
                &mut measured.storm_latency_us,
                &outcome.findings.storm_latency_us,
            ),
            (&mut measured.slip_us, &outcome.slip_us),
        ];
        for (sum, part) in sums {
            sum.add(part).expect("histograms of the same bounds");
        }
        measured.figures.add(&outcome.figures);
        measured.not_queued += outcome.not_queued;
        measured.withheld += outcome.withheld;
        measured.unsent += outcome.unsent;
        let window_us = outcome.last_arrival_us.saturating_sub(start_us);
        measured.window_us = measured.window_us.max(window_us);
        measured.generator_cpu_us += outcome.sending_cpu_us;
        let busy = outcome.sending_cpu_us as f64 / duration_us as f64;
        measured.generator_busy = measured.generator_busy.max(busy);
    }
    measured
}

/// The first user id of a run.
pub(crate) const fn first_user(run: u64) -> u64 {
    USER_RUN_BIT | (run & USER_RUN_MASK) << USER_NUMBER_BITS
}

/// Local ports of one address.
pub(crate) fn ports() -> usize {
    process::ephemeral_ports().unwrap_or(PORTS_DEFAULT)
}

/// Connections that are planned for one local address.
pub(crate) fn ports_per_source() -> usize {
    (ports() as f64 * PORTS_SHARE) as usize
}

pub(crate) fn sources(target: SocketAddr, connections: u32) -> anyhow::Result<Vec<IpAddr>> {
    loopback_sources(target, connections as usize, ports_per_source()).with_context(|| {
        format!(
            "{} connections to {target} need more local ports than there are \
             (net.ipv4.ip_local_port_range)",
            grouped(u64::from(connections))
        )
    })
}

/// Contiguous slices of the users, as even as pairs allow: (users before, users).
pub(crate) fn slices(connections: u32, workers: u32) -> Vec<(u32, u32)> {
    slices_of(connections, workers, 2)
}

/// The same, with so many users in a row that stay together.
pub(crate) fn slices_of(connections: u32, workers: u32, unit: u32) -> Vec<(u32, u32)> {
    let end = |worker: u32| {
        if worker == workers {
            return connections;
        }
        let even = u64::from(connections) * u64::from(worker) / u64::from(workers);
        even as u32 / unit * unit
    };
    (0..workers)
        .map(|worker| (end(worker), end(worker + 1) - end(worker)))
        .collect()
}

pub(crate) fn run_id() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(mix(u64::from_le_bytes(bytes)))
}

/// What the coordinating thread sees of the workers.
pub(crate) struct View<'a> {
    pub gauges: &'a [Gauges],
    pub progress: Progress,
    pub observer: Observer,
}

impl View<'_> {
    fn sum(&self, gauge: fn(&Gauges) -> &AtomicU64) -> u64 {
        let load = |gauges| gauge(gauges).load(Ordering::Relaxed);
        self.gauges.iter().map(load).sum()
    }

    fn up(&self) -> u64 {
        self.sum(|gauges| &gauges.up)
    }

    fn sight(&self, passed_us: u64) -> Sight {
        Sight {
            passed_us,
            sent: self.sum(|gauges| &gauges.sent),
            accepted: self.sum(|gauges| &gauges.accepted),
            delivered: self.sum(|gauges| &gauges.delivered),
        }
    }

    fn all_done(&self) -> bool {
        let mut done = self.gauges.iter().map(|gauges| &gauges.done);
        done.all(|done| done.load(Ordering::Relaxed))
    }

    fn turn(&mut self, stage: &str) {
        if self.observer.turn(self.gauges, || 0) {
            self.progress.print(stage, &self.observer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_all_users_and_keep_pairs_together() {
        for (connections, workers) in [(2, 1), (7, 1), (4, 2), (1_001, 3), (10, 5), (1 << 20, 7)] {
            let slices = slices(connections, workers);
            assert_eq!(slices.len(), workers as usize);
            let mut next = 0;
            for (before, users) in slices {
                assert_eq!(before, next);
                assert!(before % 2 == 0 && users >= 2, "{connections} by {workers}");
                next += users;
            }
            assert_eq!(next, connections);
        }
    }

    #[test]
    fn slices_keep_groups_together() {
        assert_eq!(slices_of(21, 2, 7), [(0, 7), (7, 14)]);
        assert_eq!(slices_of(14, 2, 7), [(0, 7), (7, 7)]);
    }

    #[test]
    fn runs_do_not_share_users() {
        let users = u64::from(crate::plan::CONNECTIONS_MAX);
        assert!(first_user(2) - first_user(1) >= users);
        assert_eq!(first_user(0), USER_RUN_BIT);
        assert!(first_user(u64::MAX) + users <= 1 << 53);
    }
}
