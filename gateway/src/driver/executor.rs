//! The threads of the shards: how they start, and how they end.
//!
//! Each is pinned to a CPU and runs a glommio executor with one task, the loop of its crew. Rings are
//! made on the thread that uses them, and no shard runs before all rings exist.
//!
//! # Invariants
//! - A shard that fails ends the process: half a gateway is worse than a wave of reconnects.

use super::{
    Driver, ROUND_MAX_US, SignIns, TURN_MAX_US,
    accept::Acceptor,
    buffer::Unread,
    clock,
    counters::{Published, Tallies},
    crew::Crew,
    handover::Moves,
    mailbox::Mail,
    mesh::{Mesh, Outbox},
    proxy::Proxies,
    ring::{Ring, RingError, RingSizes},
    socket::Sockets,
    storage::Storage,
    tls::Links,
};
use crate::{auth::Authenticator, gateway::Stores, tls_options::TlsOptions};
use glommio::{LocalExecutorBuilder, Placement};
use portico_core::{Effects, Network, Policy, Shard, ShardConfig, ShardId};
use std::{
    collections::VecDeque,
    io,
    net::TcpListener,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

/// glommio's preemption timer, which must not fire: when it does between two looks of the executor
/// (a thread that lost its CPU for that long is enough), glommio 0.9 goes to sleep although a task
/// is ready, and nothing wakes it. The gateway needs neither preemption nor glommio's timers.
const PREEMPT: Duration = Duration::from_secs(86_400);
/// glommio registers this much with each of its three rings, and not less; the gateway does no file
/// I/O there.
const IO_MEMORY_BYTES: usize = 64 << 10;
const RING_DEPTH: usize = 128;
/// What an executor locks: its rings, and the memory it registers with them.
pub(super) const LOCKED_BYTES: u64 = (64 << 10) + 3 * IO_MEMORY_BYTES as u64;

/// What a shard is made from.
pub(crate) struct ShardPlan {
    pub(crate) core: ShardConfig,
    pub(crate) listener: TcpListener,
    pub(crate) tls: Option<(TcpListener, TlsOptions)>,
    /// Size of the table of direct descriptors.
    pub(crate) slots: u32,
    pub(crate) sizes: RingSizes,
    /// Budget of the shard for incomplete frames.
    pub(crate) unread_bytes_max: usize,
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) published: Arc<Published>,
    pub(crate) stores: Stores,
    pub(crate) authenticator: Arc<dyn Authenticator>,
    /// Those who say where clients come from.
    pub(crate) proxy_from: Vec<Network>,
    /// None: everybody may write to everybody.
    pub(crate) policy: Option<Box<dyn Policy>>,
}

impl std::fmt::Debug for ShardPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardPlan")
            .field("shard", &self.core.shard)
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

/// A thread that runs the shards of a crew.
#[derive(Debug)]
pub(crate) struct CrewThread {
    thread: JoinHandle<()>,
    /// Whether its rings exist.
    made: mpsc::Receiver<Result<(), CrewError>>,
    /// Tells it that all rings do. Dropped without a word, it ends.
    go: mpsc::SyncSender<()>,
    /// That it accepts.
    accepts: mpsc::Receiver<()>,
}

/// The shard that does not start, and why.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(crate) struct CrewError {
    pub(crate) shard: ShardId,
    #[source]
    error: ShardError,
}

/// Why a shard does not start.
#[derive(Debug, thiserror::Error)]
enum ShardError {
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("cannot pin a shard to CPU {cpu}: {detail}")]
    Executor { cpu: usize, detail: String },
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
}

impl CrewThread {
    /// Starts the thread, which makes the rings of these shards and then waits for [`Self::go`].
    pub(crate) fn start(cpu: usize, plans: Vec<ShardPlan>) -> Result<Self, CrewError> {
        let leader = plans.first().map_or(ShardId(0), |plan| plan.core.shard);
        let (made_tx, made) = mpsc::sync_channel(1);
        let (go, go_rx) = mpsc::sync_channel(1);
        let (accepts_tx, accepts) = mpsc::sync_channel(1);
        let name = format!("portico-shard-{}", leader.0);
        let gates = Gates {
            made: made_tx,
            go: go_rx,
            accepts: accepts_tx,
        };
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || run_thread(cpu, plans, gates))
            .map_err(|error| CrewError {
                shard: leader,
                error: error.into(),
            })?;
        Ok(Self {
            thread,
            made,
            go,
            accepts,
        })
    }

    /// Waits until the rings exist.
    pub(crate) fn made(&self) -> Result<(), CrewError> {
        match self.made.recv() {
            Ok(made) => made,
            // A thread that ends without a word has panicked, and with it the process.
            Err(mpsc::RecvError) => Ok(()),
        }
    }

    /// All rings exist: serve. Returns once it accepts.
    pub(crate) fn go(&self) {
        if self.go.send(()).is_ok() {
            let _ = self.accepts.recv();
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    pub(crate) fn join(self) {
        drop(self.go);
        // A panic has ended the process before.
        let _ = self.thread.join();
    }
}

/// The three steps of a start, as the thread sees them.
struct Gates {
    made: mpsc::SyncSender<Result<(), CrewError>>,
    go: mpsc::Receiver<()>,
    accepts: mpsc::SyncSender<()>,
}

/// Ends the process when the thread unwinds.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            // The panic's own message is out already.
            eprintln!("a shard has failed; the gateway ends");
            std::process::abort();
        }
    }
}

fn run_thread(cpu: usize, plans: Vec<ShardPlan>, gates: Gates) {
    let _guard = AbortOnPanic;
    let leader = plans.first().map_or(ShardId(0), |plan| plan.core.shard);
    let executor = LocalExecutorBuilder::new(Placement::Fixed(cpu))
        .io_memory(IO_MEMORY_BYTES)
        .ring_depth(RING_DEPTH)
        .preempt_timer(PREEMPT)
        .make();
    let executor = match executor {
        Ok(executor) => executor,
        Err(error) => {
            let detail = error.to_string();
            let error = ShardError::Executor { cpu, detail };
            let failed = CrewError {
                shard: leader,
                error,
            };
            let _ = gates.made.send(Err(failed));
            return;
        }
    };
    executor.run(async move {
        let mut crew = match make_crew(plans) {
            Ok(crew) => crew,
            Err(error) => {
                let _ = gates.made.send(Err(error));
                return;
            }
        };
        let _ = gates.made.send(Ok(()));
        if gates.go.recv().is_err() {
            return;
        }
        if let Err(error) = crew.run(&gates.accepts).await {
            tracing::error!(shard = leader.0, %error, "a shard has failed; the gateway ends");
            std::process::abort();
        }
    });
}

fn make_crew(plans: Vec<ShardPlan>) -> Result<Crew, CrewError> {
    let turn_max_us = (ROUND_MAX_US / plans.len().max(1) as u64).min(TURN_MAX_US);
    let mut last = ShardId(0);
    let mut make = |plan: ShardPlan| {
        last = plan.core.shard;
        Driver::new(plan, turn_max_us)
    };
    let drivers: Result<Vec<_>, RingError> = plans.into_iter().map(&mut make).collect();
    drivers.and_then(Crew::new).map_err(|error| CrewError {
        shard: last,
        error: error.into(),
    })
}

impl Driver {
    /// On the shard's own thread, inside of its executor.
    fn new(plan: ShardPlan, turn_max_us: u64) -> Result<Self, RingError> {
        let id = plan.core.shard;
        let ring = Ring::new(&plan.sizes, plan.slots)?;
        plan.mesh.set_ring(id, ring.handle()?);
        let proxies = Proxies::new(plan.proxy_from);
        let mut core = Shard::new(ShardConfig {
            connections_hint: plan.slots as usize,
            ..plan.core.clone()
        });
        if let Some(policy) = plan.policy {
            core.set_policy(policy);
        }
        let (tls_listener, tls_options) = plan.tls.unzip();
        Ok(Self {
            id,
            now: clock::now(),
            fx: Effects::default(),
            carried: Vec::new(),
            ring,
            mail: Mail::new(plan.mesh.shards()),
            outbox: Outbox::new(plan.mesh.clone(), id),
            acceptor: Acceptor::new(
                (plan.listener, tls_listener),
                plan.slots,
                plan.mesh.shards(),
                &plan.core.limits.rates,
                proxies.has_balancers(),
            ),
            tls: Links::new(tls_options),
            sockets: Sockets::with_capacity(plan.slots as usize),
            proxies,
            moves: Moves::default(),
            unread: Unread::new(plan.unread_bytes_max),
            storage: Storage::new(plan.stores, plan.mesh.clone(), id),
            sign_ins: SignIns {
                authenticator: plan.authenticator,
                waiting: VecDeque::new(),
            },
            tallies: Tallies::new(),
            published: plan.published,
            published_at_us: 0,
            turn_max_us,
            due_us: 0,
            draining: false,
            stopped: false,
            core,
            mesh: plan.mesh,
        })
    }
}
