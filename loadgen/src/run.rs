//! A whole run: look at the target, start the workers, lead them through the stages, add up.

use crate::{
    cli::Args,
    plan::Plan,
    process::{self, Machine, Usage},
    random::mix,
    report::{Measured, MeasuredServer, grouped},
    verifier::{Counts, histogram},
    worker::{self, Assignment, Control, Gauges, Outcome, Transport},
};
use anyhow::{Context, anyhow, bail};
use portico_client::{
    many::{Clock, loopback_sources},
    mint::SigningKey,
};
use portico_wire::ids::DeviceId;
use std::{
    fs::File,
    io::{self, IsTerminal, Read},
    net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// User ids of one run: this bit, 31 bits of the run, then the user's number. Below 2^53, so that
/// clients in JavaScript could hold them; far above what people number their users.
const USER_RUN_BIT: u64 = 1 << 52;
const USER_NUMBER_BITS: u32 = 20;
/// Files besides the sockets.
const FILES_RESERVE: u64 = 64;
/// Of the ports an address has, how many are planned for: others use ports too.
const PORTS_SHARE: f64 = 0.8;
/// To see whether anything listens at all.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Between the last connection and the first message.
const START_DELAY_US: u64 = 50_000;
/// How long all connections may take: this, and a millisecond for each.
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);

const _: () = assert!(
    crate::cli::CONNECTIONS_MAX as u64 <= 1 << USER_NUMBER_BITS,
    "every user of a run has its own number"
);

/// Carries the plan out. An error means that there is no result at all.
pub(crate) fn run(args: &Args, plan: &Plan) -> anyhow::Result<Measured> {
    let target = resolve(&args.target)?;
    let is_local = probe(target)?;
    let key_file = args.key_file();
    let key = SigningKey::load(&key_file).with_context(|| {
        format!(
            "no usable signing key at {}; --data names the gateway's data directory, --key-file a \
             key",
            key_file.display()
        )
    })?;
    let files = process::raise_open_file_limit().context("cannot raise the open file limit")?;
    if u64::from(plan.connections) + FILES_RESERVE > files {
        bail!(
            "{} connections need more open files than the {} this process may have (ulimit -Hn)",
            grouped(u64::from(plan.connections)),
            grouped(files)
        );
    }
    let sources = sources(target, plan.connections)?;
    let run = run_id().context("cannot read /dev/urandom")?;
    let listener = || is_local.then(|| process::find_listener(target)).flatten();
    let pid = args.server_pid.or_else(listener);
    let at_rest = pid.and_then(process::usage);

    let clock = Clock::start();
    let control = Control::new();
    let gauges: Vec<Gauges> = (0..args.workers()).map(|_| Gauges::default()).collect();
    let first_user = USER_RUN_BIT | (run & 0x7fff_ffff) << USER_NUMBER_BITS;
    let slices = slices(plan.connections, args.workers() as u32);
    let assignments: Vec<Assignment<'_>> = slices
        .iter()
        .enumerate()
        .map(|(worker, (before, users))| Assignment {
            plan,
            run,
            seed: args.seed,
            clock,
            target,
            sources: sources.clone(),
            key: &key,
            device: DeviceId(args.device),
            first_user: first_user + u64::from(*before),
            users: *users,
            users_before: *before,
            cpu: args.cpus.as_ref().map(|cpus| cpus.0[worker]),
        })
        .collect();

    let progress = Progress::new(args.progress || io::stderr().is_terminal(), &gauges);
    let (led, outcomes) = thread::scope(|scope| {
        let workers: Vec<_> = assignments
            .iter()
            .zip(&gauges)
            .map(|(assignment, gauges)| scope.spawn(|| worker::run(assignment, &control, gauges)))
            .collect();
        let is_over = || workers.iter().any(thread::ScopedJoinHandle::is_finished);
        let led = lead(plan, clock, &control, progress, &is_over, pid);
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
    let led = led?;

    let server = pid.zip(at_rest).and_then(|(pid, at_rest)| {
        let (connected, end) = led.usage?;
        Some(MeasuredServer {
            pid,
            name: process::name(pid)?,
            at_rest,
            connected,
            end,
        })
    });
    Ok(add_up(args, plan, run, &led, server, outcomes))
}

/// What the coordinating thread saw.
struct Led {
    connections: u64,
    start_us: u64,
    /// Of the server, before the first message and at the end.
    usage: Option<(Usage, Usage)>,
}

/// Leads the workers from connecting to done.
fn lead(
    plan: &Plan,
    clock: Clock,
    control: &Control,
    mut progress: Progress<'_>,
    is_over: &dyn Fn() -> bool,
    pid: Option<u32>,
) -> anyhow::Result<Led> {
    let patience = CONNECT_PATIENCE + Duration::from_millis(u64::from(plan.connections));
    let begun = Instant::now();
    let connections = loop {
        let up = progress.up();
        if let Some(obstacle) = control.obstacle() {
            bail!("{obstacle}");
        }
        if up == u64::from(plan.connections) || is_over() {
            break up;
        }
        if begun.elapsed() > patience {
            if up == 0 {
                bail!("something listens on the target, but it lets no user of Portico log in");
            }
            break up;
        }
        progress.tick("connecting");
        thread::sleep(POLL);
    };
    let connected = pid.and_then(process::usage);
    let start_us = clock.now().mono_us + START_DELAY_US;
    control.start(start_us);
    while !progress.all_done() && !is_over() {
        let late_us = clock.now().mono_us.saturating_sub(start_us);
        let sending = late_us < plan.duration.as_micros() as u64;
        progress.tick(if sending { "sending" } else { "draining" });
        thread::sleep(POLL);
    }
    let end = pid.and_then(process::usage);
    Ok(Led {
        connections,
        start_us,
        usage: connected.zip(end),
    })
}

fn add_up(
    args: &Args,
    plan: &Plan,
    run: u64,
    led: &Led,
    server: Option<MeasuredServer>,
    outcomes: Vec<Outcome>,
) -> Measured {
    let duration_us = plan.duration.as_micros() as u64;
    let mut measured = Measured {
        plan: plan.clone(),
        seed: args.seed,
        run,
        target: args.target.clone(),
        machine: Machine::read(),
        connections: led.connections,
        counts: Counts::default(),
        transport: Transport::default(),
        latency_us: histogram(),
        sent_latency_us: histogram(),
        slip_us: histogram(),
        slip_max_us: args.slip_max.as_micros() as u64,
        not_queued: 0,
        withheld: 0,
        window_us: duration_us,
        generator_cpu_us: 0,
        generator_busy: 0.0,
        workers: outcomes.len(),
        server,
    };
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
            (&mut measured.slip_us, &outcome.slip_us),
        ];
        for (sum, part) in sums {
            sum.add(part).expect("histograms of the same bounds");
        }
        measured.not_queued += outcome.not_queued;
        measured.withheld += outcome.withheld;
        let window_us = outcome.last_arrival_us.saturating_sub(led.start_us);
        measured.window_us = measured.window_us.max(window_us);
        measured.generator_cpu_us += outcome.sending_cpu_us;
        let busy = outcome.sending_cpu_us as f64 / duration_us as f64;
        measured.generator_busy = measured.generator_busy.max(busy);
    }
    measured
}

fn resolve(target: &str) -> anyhow::Result<SocketAddr> {
    target
        .to_socket_addrs()
        .with_context(|| format!("--target {target} is not HOST:PORT of a known host"))?
        .next()
        .with_context(|| format!("--target {target} has no address"))
}

/// The usual mistake deserves a plain answer, before anything else is complained about. True if the
/// target is this machine: then the connection has the same address at both ends.
fn probe(target: SocketAddr) -> anyhow::Result<bool> {
    match TcpStream::connect_timeout(&target, PROBE_TIMEOUT) {
        Ok(stream) => {
            let own = stream.local_addr().map(|own| own.ip());
            Ok(target.ip().is_loopback() || own.is_ok_and(|own| own == target.ip()))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            bail!("nothing listens on {target}; start it with `cargo run --release`")
        }
        Err(error) => Err(error).with_context(|| format!("cannot connect to {target}")),
    }
}

fn sources(target: SocketAddr, connections: u32) -> anyhow::Result<Vec<IpAddr>> {
    // Where the range cannot be read the kernel's default is as good a guess as any.
    let ports = process::ephemeral_ports().unwrap_or(28_232) as f64 * PORTS_SHARE;
    loopback_sources(target, connections as usize, ports as usize).with_context(|| {
        format!(
            "{} connections to {target} need more local ports than there are \
             (net.ipv4.ip_local_port_range)",
            grouped(u64::from(connections))
        )
    })
}

/// Contiguous slices of the users, as even as pairs allow: (users before, users).
fn slices(connections: u32, workers: u32) -> Vec<(u32, u32)> {
    let end = |worker: u32| {
        if worker == workers {
            return connections;
        }
        // Even, so that pairs stay together.
        (u64::from(connections) * u64::from(worker) / u64::from(workers)) as u32 & !1
    };
    (0..workers)
        .map(|worker| (end(worker), end(worker + 1) - end(worker)))
        .collect()
}

fn run_id() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(mix(u64::from_le_bytes(bytes)))
}

/// A line a second on standard error.
struct Progress<'a> {
    gauges: &'a [Gauges],
    wanted: bool,
    begun: Instant,
    printed: Instant,
    delivered: u64,
}

impl<'a> Progress<'a> {
    fn new(wanted: bool, gauges: &'a [Gauges]) -> Self {
        let begun = Instant::now();
        Self {
            gauges,
            wanted,
            begun,
            printed: begun,
            delivered: 0,
        }
    }

    fn sum(&self, gauge: fn(&Gauges) -> &AtomicU64) -> u64 {
        let load = |gauges| gauge(gauges).load(Ordering::Relaxed);
        self.gauges.iter().map(load).sum()
    }

    fn up(&self) -> u64 {
        self.sum(|gauges| &gauges.up)
    }

    fn all_done(&self) -> bool {
        let mut done = self.gauges.iter().map(|gauges| &gauges.done);
        done.all(|done| done.load(Ordering::Relaxed))
    }

    fn tick(&mut self, stage: &str) {
        let passed = self.printed.elapsed();
        if passed < Duration::from_secs(1) {
            return;
        }
        self.printed = Instant::now();
        let delivered = self.sum(|gauges| &gauges.delivered);
        let rate = (delivered - self.delivered) as f64 / passed.as_secs_f64();
        self.delivered = delivered;
        if self.wanted {
            eprintln!(
                "{:>4.0} s  {stage:<10}  {:>9} up  {:>12} sent  {:>12} accepted  {:>12} delivered  {:>9}/s",
                self.begun.elapsed().as_secs_f64(),
                grouped(self.up()),
                grouped(self.sum(|gauges| &gauges.sent)),
                grouped(self.sum(|gauges| &gauges.accepted)),
                grouped(delivered),
                grouped(rate as u64),
            );
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
    fn runs_do_not_share_users() {
        let first = |run: u64| USER_RUN_BIT | (run & 0x7fff_ffff) << USER_NUMBER_BITS;
        assert_eq!(first(2) - first(1), u64::from(crate::cli::CONNECTIONS_MAX));
        let last = first(u64::MAX) + u64::from(crate::cli::CONNECTIONS_MAX) - 1;
        assert!(last < 1 << 53);
    }
}
