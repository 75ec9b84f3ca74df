//! The plan `hold`: how many connections a gateway holds, and what one costs.
//!
//! Most connections only stay: [`holder`] threads, each with a descriptor table of its own
//! ([`descriptors`]), log them in at a pace and keep their heartbeats going. Some exchange messages
//! that are verified one by one, on the workers of the other plans. [`needs`] says beforehand what
//! this machine lacks for it, [`lead`] takes all through the phases, [`figures`] computes from what
//! was seen, [`table`] prints it, [`verdict`] judges.
//!
//! # Does not
//! Tell the costs of several gateways on one machine apart, or those of other programs from the
//! kernel's: a measurement wants the machine for itself.

mod descriptors;
mod figures;
mod held;
mod holder;
mod lead;
mod needs;
mod progress;
mod slab;
mod table;
mod verdict;

pub(crate) use figures::HoldReport;

use crate::{
    cli::Args,
    control::{Control, Gauges},
    environment::Means,
    fleet::{CLIENT, Credentials},
    interrupt,
    observer::{Observed, Observer},
    plan::{Hold, Plan},
    process,
    report::{Measured, MeasuredServer, grouped},
    run::{self, START_DELAY_US, TOKEN_RESERVE, add_up, first_user, ports_per_source, slices},
    target::{self, Target},
    tls::{self, Trust},
    tokens::Tokens,
    worker::{self, Assignment, Outcome},
};
use anyhow::{Context, anyhow, bail};
use figures::Measurement;
use held::Held;
use holder::{HolderGauges, Holding};
use lead::{Lead, Marks, View};
use needs::{Facts, Needs};
use portico_client::{
    Settings, TlsClient,
    many::{Clock, loopback_sources},
    mint::SigningKey,
};
use portico_wire::ids::DeviceId;
use progress::Progress;
use slab::{Kernel, Merged, Slab};
use std::{
    net::IpAddr,
    sync::Arc,
    thread::{self, Scope, ScopedJoinHandle},
    time::Duration,
};

/// Nobody writes to a held user, so the gateway needs to keep hardly anything ready for it.
const RECEIVE_MAX: u32 = 16;
/// Of a thread: the loops are flat, and there are dozens.
const STACK_BYTES: usize = 512 * 1_024;

/// Everything about a run that its threads are made from.
struct Setting<'a> {
    args: &'a Args,
    plan: &'a Plan,
    /// The part of the active ones.
    active_plan: Plan,
    hold: Hold,
    target: Target,
    /// The tickets of all threads.
    tls: Option<TlsClient>,
    key: &'a SigningKey,
    run: u64,
    clock: Clock,
    begin_us: u64,
    needs: Needs,
    sources: Vec<IpAddr>,
    token_ttl: Duration,
}

/// Carries the plan out. An error means that there is no result at all.
pub(crate) fn run(args: &Args, plan: &Plan, hold: Hold) -> anyhow::Result<(HoldReport, Observed)> {
    let trust = Trust::of(args, plan)?;
    let target = Target::find(args, plan, trust.as_ref())?;
    let key = target::load_key(args)?;
    let facts = Facts::read(&target).context("cannot raise the open file limit")?;
    let needs = match Needs::of(plan, hold, &facts) {
        Ok(needs) => needs,
        Err(missing) => bail!(
            "this machine cannot do that yet:\n  {}",
            missing.join("\n  ")
        ),
    };
    let connections = plan.connections as usize;
    let sources = loopback_sources(target.address, connections, ports_per_source())
        .context("the target has not enough source addresses")?;
    let progress = Progress::new(args.progress);
    progress.note(&format!(
        "{} connections take {} threads, {} source address(es), {} MB of memory",
        grouped(u64::from(plan.connections)),
        needs.holders,
        needs.sources.max(1),
        grouped(needs.memory_bytes / 1_000_000),
    ));
    let clock = Clock::start();
    let setting = Setting {
        args,
        plan,
        active_plan: Plan {
            connections: hold.active,
            ..plan.clone()
        },
        hold,
        target,
        tls: tls::clients(trust.as_ref())?,
        key: &key,
        run: run::run_id().context("cannot read /dev/urandom")?,
        clock,
        begin_us: clock.now().mono_us + START_DELAY_US,
        needs,
        sources,
        token_ttl: lead::ramp_patience(plan.connections, hold)
            + hold.settle
            + plan.duration
            + plan.drain
            + TOKEN_RESERVE,
    };
    setting.carry_out(progress, facts.open_files)
}

impl Setting<'_> {
    fn carry_out(&self, progress: Progress, files: u64) -> anyhow::Result<(HoldReport, Observed)> {
        let control = Control::new();
        let workers = gauges::<Gauges>(self.args.workers());
        let holders = gauges::<HolderGauges>(self.needs.holders as usize);
        let (assignments, holdings) = (self.assignments(), self.holdings());
        let view = View {
            clock: self.clock,
            pid: self.target.pid,
            workers: &workers,
            holders: &holders,
        };
        let means = Means {
            target_is_local: self.target.is_local,
            ports_per_address: run::ports(),
            addresses: self.sources.len().max(1),
            files,
            // Each thread that holds has a table of its own; only the active ones share one.
            connections: u64::from(self.hold.active),
        };
        let mut observer = Observer::new(self.clock, self.target.pid, means);
        let start = view.mark();
        let (slab_before, mut slab_after) = (Slab::read(), None);

        let (marks, outcomes, held) = thread::scope(|scope| {
            // Holders first: they leave the common table while there is nearly nothing in it.
            let held: Vec<_> = holdings
                .iter()
                .zip(&holders)
                .filter_map(|(own, gauges)| {
                    start_thread(scope, &control, || holder::run(own, &control, gauges))
                })
                .collect();
            let outcomes: Vec<_> = assignments
                .iter()
                .zip(&workers)
                .filter_map(|(own, gauges)| {
                    start_thread(scope, &control, || worker::run(own, &control, gauges))
                })
                .collect();
            let lead = Lead {
                plan: self.plan,
                hold: self.hold,
                control: &control,
                view,
                progress,
                observer: &mut observer,
                is_sending: false,
                is_over: &|| {
                    held.iter().any(ScopedJoinHandle::is_finished)
                        || outcomes.iter().any(ScopedJoinHandle::is_finished)
                },
            };
            let marks = lead.run(start, || slab_after = Slab::read());
            control.finish();
            (marks, join(outcomes), join(held))
        });
        // A thread that failed is why the others got no further.
        let (outcomes, held, marks) = (outcomes?, held?, marks?);
        let kernel = self.kernel(slab_before, slab_after, &marks);
        let observed = observer.finish(&workers);
        Ok(self.report(outcomes, held, &marks, kernel, observed))
    }

    /// The active users are the first of the run.
    fn assignments(&self) -> Vec<Assignment<'_>> {
        let slices = slices(self.hold.active, self.args.workers() as u32);
        let all = f64::from(self.plan.connections);
        slices
            .iter()
            .enumerate()
            .map(|(worker, (before, users))| Assignment {
                plan: &self.active_plan,
                run: self.run,
                clock: self.clock,
                target: self.target.address,
                sources: self.sources.clone(),
                login: Some(Credentials {
                    tokens: Tokens::Signed(self.key),
                    device: DeviceId(self.args.device),
                    token_ttl: self.token_ttl,
                }),
                first_user: first_user(self.run) + u64::from(*before),
                users: *users,
                users_before: *before,
                tls: self.tls.clone(),
                cpu: self.args.cpus.as_ref().map(|cpus| cpus.0[worker]),
                // Their share of the ramp, so that all come up together.
                connects_per_s: (self.pace() * f64::from(*users) / all).ceil() as u32,
                heartbeat_s: self.hold.heartbeat_s,
            })
            .collect()
    }

    fn holdings(&self) -> Vec<Holding<'_>> {
        let settings = Arc::new(Settings {
            tell_expiry: false,
            client: CLIENT.to_owned(),
            heartbeat_s: self.hold.heartbeat_s,
            receive_max: RECEIVE_MAX,
            dedupe_max: 0,
            keep_token: false,
            ..Settings::default()
        });
        let held = self.plan.connections - self.hold.active;
        let all = f64::from(self.plan.connections);
        even_slices(held, self.needs.holders)
            .map(|(before, users)| {
                let before = self.hold.active + before;
                Holding {
                    run: self.run,
                    clock: self.clock,
                    target: self.target.address,
                    sources: self.sources.clone(),
                    key: self.key,
                    settings: Arc::clone(&settings),
                    tls: self.tls.clone(),
                    device: DeviceId(self.args.device),
                    first_user: first_user(self.run) + u64::from(before),
                    users,
                    users_before: before,
                    begin_us: self.begin_us,
                    logins_per_s: self.pace() * f64::from(users) / all,
                    token_ttl: self.token_ttl,
                }
            })
            .collect()
    }

    fn pace(&self) -> f64 {
        f64::from(self.hold.ramp_per_s)
    }

    /// Only where both ends are here: of another machine's kernel nothing is known.
    fn kernel(&self, before: Option<Slab>, after: Option<Slab>, marks: &Marks) -> Option<Kernel> {
        let (before, after) = before.zip(after).filter(|_| self.target.is_local)?;
        let merged = Merged::read();
        Some(Kernel::grown(&before, &after, &merged, marks.settled.live))
    }

    fn report(
        &self,
        outcomes: Vec<Outcome>,
        parts: Vec<Held>,
        marks: &Marks,
        kernel: Option<Kernel>,
        observed: Observed,
    ) -> (HoldReport, Observed) {
        let server = self.target.pid.and_then(|pid| {
            Some(MeasuredServer {
                pid,
                name: process::name(pid)?,
                at_rest: marks.start.server?,
                connected: marks.settled.server?,
                end: marks.sent.server?,
            })
        });
        let active = u64::from(self.hold.active);
        let measured = Measured::new(self.args, &self.active_plan, self.run, active, server);
        let mut measured = add_up(measured, marks.send_us, outcomes);
        measured.observed = observed;
        let interrupted = marks.interrupted_us;
        measured
            .doubts
            .extend(interrupted.map(|us| interrupt::sentence(us, self.plan.duration)));
        let mut held = Held::new();
        parts.into_iter().for_each(|part| held.add(part));
        let report = HoldReport::new(&Measurement {
            plan: self.plan,
            hold: self.hold,
            needs: self.needs,
            begin_us: self.begin_us,
            marks,
            measured: &measured,
            held: &held,
            kernel,
        });
        (report, measured.observed)
    }
}

fn gauges<G: Default>(count: usize) -> Vec<G> {
    (0..count).map(|_| G::default()).collect()
}

/// Contiguous slices, as even as can be: (connections before, connections).
fn even_slices(connections: u32, slices: u32) -> impl Iterator<Item = (u32, u32)> {
    let end = move |slice: u32| {
        // At most `connections`.
        (u64::from(connections) * u64::from(slice) / u64::from(slices.max(1))) as u32
    };
    (0..slices).map(move |slice| (end(slice), end(slice + 1) - end(slice)))
}

/// `None`, and an end of the run, when the system refuses.
fn start_thread<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    control: &Control,
    body: impl FnOnce() -> T + Send + 'scope,
) -> Option<ScopedJoinHandle<'scope, T>> {
    let thread = thread::Builder::new().stack_size(STACK_BYTES);
    match thread.spawn_scoped(scope, body) {
        Ok(handle) => Some(handle),
        Err(error) => {
            control.obstruct(format!("cannot start a thread: {error}"));
            None
        }
    }
}

fn join<T>(threads: Vec<ScopedJoinHandle<'_, anyhow::Result<T>>>) -> anyhow::Result<Vec<T>> {
    // All of them, so that none is left running when the first has failed.
    let ends: Vec<_> = threads.into_iter().map(ScopedJoinHandle::join).collect();
    ends.into_iter()
        .map(|end| end.unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_even_and_cover_all() {
        for (connections, slices) in [(1, 1), (10, 3), (999_000, 51), (4_000_000, 201)] {
            let cut: Vec<_> = even_slices(connections, slices).collect();
            let mut next = 0;
            for (before, count) in &cut {
                assert_eq!(*before, next);
                assert!(count.abs_diff(connections / slices) <= 1);
                next += count;
            }
            assert_eq!(next, connections);
        }
    }
}
