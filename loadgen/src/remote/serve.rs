//! A worker that waits for a coordinator, carries out what it is told, and waits for the next.

use super::{
    link::{Link, LinkError},
    message::{
        ANSWER_TIMEOUT, FRAME_MAX_ORDERS, FRAME_MAX_STRANGER, FromWorker, GAUGES, Limits, MAGIC,
        NONCE_MAX, Order, POLL, SILENCE_MAX, Shown, ToWorker, VERSION,
    },
    secret::{Role, Secret, nonce},
};
use crate::{
    cli::{Cpus, parse_cpus},
    control::{Control, Gauges},
    fleet::Credentials,
    plan::Plan,
    process::{self, Machine},
    progress::say,
    run::{self, CONNECTS_PER_S, FILES_RESERVE, TOKEN_RESERVE, ports_per_source, slices_of},
    series, target, tls,
    tokens::{GivenTokens, Tokens},
    worker::{self, Assignment, Outcome},
};
use anyhow::{Context, anyhow, bail};
use portico_client::many::Clock;
use portico_wire::ids::DeviceId;
use std::{
    convert::Infallible,
    io::{self, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Mutex, TryLockError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Connections that have not proved anything yet; more are dropped.
const STRANGERS_MAX: usize = 16;
/// Between two runs of a coordinator: a gateway may need time to recover.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// After a connection that could not be taken, because files are short: not again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Carries out plans for a coordinator (`portico-loadgen PLAN --workers HOST:PORT,...`), one at a
/// time, until it is stopped.
///
/// Whoever commands a worker can send traffic to any address it reaches. Beyond loopback it
/// therefore wants --allow-remote and a secret. What is said is not encrypted.
#[derive(Debug, clap::Args)]
pub(crate) struct WorkerArgs {
    /// Where to wait for a coordinator, IP:PORT; port 0: any that is free
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// Listen on an address that other machines reach; wants --secret-file
    #[arg(long, requires = "secret_file")]
    allow_remote: bool,
    /// File with a secret of at least 16 bytes, mode 600; the coordinator must have the same
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// One thread pinned to each of these, e.g. 1 or 0,2-3; default: one thread, not pinned
    #[arg(long, value_name = "LIST", value_parser = parse_cpus)]
    cpus: Option<Cpus>,
}

/// What all sessions share.
struct Worker {
    secret: Secret,
    limits: Limits,
    cpus: Option<Cpus>,
    clock: Clock,
    /// Held by the session that has the worker.
    engaged: Mutex<()>,
    strangers: AtomicUsize,
}

impl WorkerArgs {
    /// Serves until the process ends; an error when it cannot listen.
    pub(crate) fn run(&self) -> anyhow::Result<Infallible> {
        if !self.listen.ip().is_loopback() && !self.allow_remote {
            bail!(
                "--listen {} can be reached by other machines; add --allow-remote and --secret-file, \
                 or listen on 127.0.0.1",
                self.listen
            );
        }
        let secret = match &self.secret_file {
            Some(path) => Secret::load(path)?,
            None => Secret::none(),
        };
        let files = process::raise_open_file_limit().context("cannot raise the open file limit")?;
        let listener = TcpListener::bind(self.listen)
            .with_context(|| format!("cannot listen on {}", self.listen))?;
        let address = listener.local_addr().context("no address")?;
        let worker = Arc::new(Worker {
            secret,
            limits: Limits {
                threads: self.cpus.as_ref().map_or(1, |cpus| cpus.0.len()) as u32,
                connections_by_files: files.saturating_sub(FILES_RESERVE),
                connections_by_ports: ports_per_source() as u64,
                machine: Machine::read(),
            },
            cpus: self.cpus.clone(),
            clock: Clock::start(),
            engaged: Mutex::new(()),
            strangers: AtomicUsize::new(0),
        });
        let mut out = io::stdout().lock();
        writeln!(out, "worker listens on {address}")
            .and_then(|()| out.flush())
            .context("cannot say where it listens")?;
        drop(out);
        loop {
            let Ok((stream, from)) = listener.accept() else {
                thread::sleep(ACCEPT_PAUSE);
                continue;
            };
            if worker.strangers.fetch_add(1, Ordering::Relaxed) >= STRANGERS_MAX {
                worker.strangers.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let worker = Arc::clone(&worker);
            thread::spawn(move || {
                let greeted = worker.greet(stream);
                worker.strangers.fetch_sub(1, Ordering::Relaxed);
                let ended = match greeted {
                    Ok(Some(link)) => worker.work_for(link),
                    Ok(None) => Ok(()),
                    Err(error) => Err(error),
                };
                if let Err(error) = ended {
                    say(&format!(
                        "coordinator {from}: {error:#}; waiting for the next"
                    ));
                }
            });
        }
    }
}

impl Worker {
    /// A link to somebody who has proved to know the secret. `None`: one who was refused.
    fn greet(&self, stream: TcpStream) -> anyhow::Result<Option<Link>> {
        let mut link = Link::new(stream, FRAME_MAX_STRANGER)?;
        let ours = nonce()?;
        link.send(&FromWorker::Challenge {
            magic: MAGIC.to_owned(),
            version: VERSION,
            nonce: ours.clone(),
        })?;
        let ToWorker::Enter {
            version,
            nonce: theirs,
            proof,
        } = link.receive(ANSWER_TIMEOUT)?
        else {
            bail!("it did not introduce itself");
        };
        let refusal = if version != VERSION {
            format!(
                "it speaks version {version}, this worker {VERSION}; use the same on both sides"
            )
        } else if theirs.len() > NONCE_MAX
            || !self
                .secret
                .proves(&proof, Role::Coordinator, &ours, &theirs)
        {
            "the secret is wrong or missing; --secret-file must name the same on both sides"
                .to_owned()
        } else {
            link.send(&FromWorker::Welcome {
                proof: self.secret.proof(Role::Worker, &ours, &theirs),
                limits: self.limits.clone(),
            })?;
            link.set_frame_max(FRAME_MAX_ORDERS);
            return Ok(Some(link));
        };
        link.send(&FromWorker::Failed {
            reason: refusal.clone(),
        })?;
        Err(anyhow!(refusal))
    }

    /// Carries out one run after the other, until the coordinator goes.
    fn work_for(&self, mut link: Link) -> anyhow::Result<()> {
        let _engaged = match self.engaged.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let reason = "it works for another coordinator".to_owned();
                link.send(&FromWorker::Failed { reason })?;
                return Ok(());
            }
        };
        loop {
            match link.poll(IDLE_MAX) {
                Ok(Some(ToWorker::Order(order))) => {
                    if let Err(error) = self.take(&mut link, &order) {
                        // Whether it can still hear this does not matter.
                        let reason = format!("{error:#}");
                        let _ = link.send(&FromWorker::Failed { reason });
                        return Err(error);
                    }
                }
                Ok(Some(ToWorker::Ping)) => link.send(&self.pong())?,
                // Late words about a run that is over.
                Ok(Some(ToWorker::Beat | ToWorker::Drain | ToWorker::Finish)) => {}
                Ok(Some(_)) => bail!("it said something out of turn"),
                Ok(None) => bail!("it has given no order for {IDLE_MAX:?}"),
                Err(LinkError::Closed) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn pong(&self) -> FromWorker {
        let now = self.clock.now();
        FromWorker::Pong {
            mono_us: now.mono_us,
            wall_us: now.wall_us,
        }
    }

    /// Carries out an order and says what was found.
    fn take(&self, link: &mut Link, order: &Order) -> anyhow::Result<()> {
        order.check(&self.limits).map_err(anyhow::Error::msg)?;
        let plan = &order.plan;
        let mut given = GivenTokens {
            first_user: order.first_user,
            tokens: Vec::with_capacity(order.tokens as usize),
        };
        while given.tokens.len() < order.tokens as usize {
            match link.receive(ANSWER_TIMEOUT)? {
                ToWorker::Tokens(tokens) => given.tokens.extend(tokens),
                _ => bail!("{} of {} tokens came", given.tokens.len(), order.tokens),
            }
        }
        let target = target::reach(&order.target, plan.protocol, order.tls.as_ref())?;
        let tls = tls::clients(order.tls.as_ref())?;
        let sources = self.sources(plan, order, target)?;
        let threads = self.limits.threads.min(order.users / plan.unit());
        let login = (order.tokens > 0).then(|| Credentials {
            tokens: Tokens::Given(&given),
            device: DeviceId(order.device),
            token_ttl: plan.duration + plan.drain + TOKEN_RESERVE,
        });
        let control = Control::new();
        let gauges: Vec<Gauges> = (0..threads).map(|_| Gauges::default()).collect();
        let assignments: Vec<Assignment<'_>> = slices_of(order.users, threads, plan.unit())
            .into_iter()
            .enumerate()
            .map(|(thread, (before, users))| Assignment {
                plan,
                run: order.run,
                clock: self.clock,
                target,
                sources: sources.clone(),
                login,
                first_user: order.first_user + u64::from(before),
                users,
                users_before: order.users_before + before,
                cpu: self.cpus.as_ref().map(|cpus| cpus.0[thread]),
                tls: tls.clone(),
                connects_per_s: CONNECTS_PER_S,
                heartbeat_s: order.heartbeat_s,
            })
            .collect();
        let outcomes = thread::scope(|scope| {
            let threads: Vec<_> = assignments
                .iter()
                .zip(&gauges)
                .map(|(assignment, gauges)| {
                    scope.spawn(|| worker::run(assignment, &control, gauges))
                })
                .collect();
            let is_over = || threads.iter().any(thread::ScopedJoinHandle::is_finished);
            let led = self.obey(link, &control, &gauges, &is_over);
            // Whatever has happened: nothing runs on unattended.
            control.finish();
            let outcomes: Vec<anyhow::Result<Outcome>> = threads
                .into_iter()
                .map(|thread| {
                    let joined = thread.join();
                    joined.unwrap_or_else(|_| Err(anyhow!("a thread of it panicked")))
                })
                .collect();
            led.map(|()| outcomes)
        })?;
        let outcomes = outcomes.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        // The last second is over now.
        link.send(&FromWorker::Gauges(show(&control, &gauges)))?;
        link.send(&FromWorker::Outcome(outcomes))?;
        Ok(())
    }

    /// To this machine, addresses and ports are shared with its other workers; elsewhere they are
    /// ours.
    fn sources(
        &self,
        plan: &Plan,
        order: &Order,
        target: SocketAddr,
    ) -> anyhow::Result<Vec<IpAddr>> {
        let connections = match target.ip().is_loopback() {
            true => plan.connections,
            false => order.users,
        };
        run::sources(target, connections)
    }

    /// Does what the coordinator says and shows it the gauges, until it says that it is enough.
    fn obey(
        &self,
        link: &mut Link,
        control: &Control,
        gauges: &[Gauges],
        is_over: &dyn Fn() -> bool,
    ) -> Result<(), LinkError> {
        let mut shown: Option<Instant> = None;
        loop {
            match link.poll(POLL)? {
                Some(ToWorker::Start { start_us }) => control.start(start_us),
                Some(ToWorker::Drain) => control.drain(),
                Some(ToWorker::Finish) => return Ok(()),
                Some(ToWorker::Ping) => link.send(&self.pong())?,
                Some(_) | None => {}
            }
            link.check_silence(SILENCE_MAX)?;
            if is_over() {
                // A thread has failed: what it says is what there is to say.
                return Ok(());
            }
            if shown.is_none_or(|shown| shown.elapsed() >= GAUGES) {
                shown = Some(Instant::now());
                link.send(&FromWorker::Gauges(show(control, gauges)))?;
            }
        }
    }
}

fn show(control: &Control, gauges: &[Gauges]) -> Shown {
    let sum = |gauge: fn(&Gauges) -> &AtomicU64| {
        let values = gauges.iter().map(gauge);
        values.map(|value| value.load(Ordering::Relaxed)).sum()
    };
    Shown {
        up: sum(|gauges| &gauges.up),
        sent: sum(|gauges| &gauges.sent),
        accepted: sum(|gauges| &gauges.accepted),
        delivered: sum(|gauges| &gauges.delivered),
        errors: sum(|gauges| &gauges.errors),
        intervals: series::by_second(gauges.iter().flat_map(|gauges| gauges.intervals.take())),
        done: gauges
            .iter()
            .all(|gauges| gauges.done.load(Ordering::Relaxed)),
        obstacle: control.obstacle(),
    }
}
