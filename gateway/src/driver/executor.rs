//! Where the driver meets glommio: a thread per shard, pinned, and the loop that blocks in the ring
//! while there is work and sleeps through glommio when there is none.
//!
//! A busy shard blocks in its own ring; a tick of two milliseconds, armed once, ends the block often
//! enough for glommio. After a few ticks without work the tick is taken away and the shard sleeps in
//! glommio until a completion rings the doorbell: an idle process uses no CPU.
//!
//! # Invariants
//! - No borrow of anything shared lives across the awaits; there are two.
//! - Before it blocks or sleeps, a shard announces it and looks at its queues once more.
//! - A shard that fails ends the process: half a gateway is worse than a wave of reconnects.

use super::{
    Driver, SignIns, Work,
    accept::Acceptor,
    buffer::Unread,
    clock,
    counters::{Published, Tallies, Tally},
    handover::Moves,
    mesh::{Mesh, Outbox},
    ring::{Doorbell, Ring, RingError, RingSizes},
    socket::Sockets,
    storage::Storage,
};
use crate::auth::Authenticator;
use glommio::{LocalExecutorBuilder, Placement};
use portico_backend::{Backend, messages::Messages};
use portico_core::{Effects, Shard, ShardConfig};
use std::{
    collections::VecDeque,
    io,
    net::TcpListener,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

/// How often a busy shard lets glommio run.
const TICK: Duration = Duration::from_millis(2);
/// Ticks without work before a shard sleeps.
const QUIET_TICKS: u32 = 4;
/// glommio's preemption timer, which must not fire: when it does between two looks of the executor
/// (a thread that lost its CPU for that long is enough), glommio 0.9 goes to sleep although a task
/// is ready, and nothing wakes it. The gateway needs neither preemption nor glommio's timers.
const PREEMPT: Duration = Duration::from_secs(86_400);
/// glommio registers this much with each of its three rings; the gateway does no file I/O there.
const IO_MEMORY_BYTES: usize = 256 << 10;
const RING_DEPTH: usize = 128;
/// What an executor locks: its rings, and the memory it registers with them.
pub(super) const LOCKED_BYTES: u64 = (64 << 10) + 3 * IO_MEMORY_BYTES as u64;

/// What a shard is made from.
pub(crate) struct ShardPlan {
    pub(crate) cpu: usize,
    pub(crate) core: ShardConfig,
    pub(crate) listener: TcpListener,
    /// Size of the table of direct descriptors.
    pub(crate) slots: u32,
    pub(crate) sizes: RingSizes,
    /// Budget of the shard for incomplete frames.
    pub(crate) unread_bytes_max: usize,
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) published: Arc<Published>,
    pub(crate) backend: Arc<dyn Backend<Messages>>,
    pub(crate) authenticator: Arc<dyn Authenticator>,
}

impl std::fmt::Debug for ShardPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardPlan")
            .field("shard", &self.core.shard)
            .field("cpu", &self.cpu)
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

/// A thread that runs a shard.
#[derive(Debug)]
pub(crate) struct ShardThread {
    thread: JoinHandle<()>,
    /// Whether its ring exists.
    made: mpsc::Receiver<Result<(), ShardError>>,
    /// Tells it that all rings do. Dropped without a word, it ends.
    go: mpsc::SyncSender<()>,
    /// That it accepts.
    accepts: mpsc::Receiver<()>,
}

/// Why a shard does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShardError {
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("cannot pin a shard to CPU {cpu}: {detail}")]
    Executor { cpu: usize, detail: String },
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
}

impl ShardThread {
    /// Starts the thread, which makes its ring and then waits for [`Self::go`].
    pub(crate) fn start(plan: ShardPlan) -> Result<Self, ShardError> {
        let (made_tx, made) = mpsc::sync_channel(1);
        let (go, go_rx) = mpsc::sync_channel(1);
        let (accepts_tx, accepts) = mpsc::sync_channel(1);
        let name = format!("portico-shard-{}", plan.core.shard.0);
        let gates = Gates {
            made: made_tx,
            go: go_rx,
            accepts: accepts_tx,
        };
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || run_thread(plan, gates))?;
        Ok(Self {
            thread,
            made,
            go,
            accepts,
        })
    }

    /// Waits until the ring exists.
    pub(crate) fn made(&self) -> Result<(), ShardError> {
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
    made: mpsc::SyncSender<Result<(), ShardError>>,
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

fn run_thread(plan: ShardPlan, gates: Gates) {
    let _guard = AbortOnPanic;
    let cpu = plan.cpu;
    let executor = LocalExecutorBuilder::new(Placement::Fixed(cpu))
        .io_memory(IO_MEMORY_BYTES)
        .ring_depth(RING_DEPTH)
        .preempt_timer(PREEMPT)
        .make();
    let executor = match executor {
        Ok(executor) => executor,
        Err(error) => {
            let detail = error.to_string();
            let _ = gates.made.send(Err(ShardError::Executor { cpu, detail }));
            return;
        }
    };
    executor.run(async move {
        let shard = plan.core.shard;
        let (mut driver, doorbell) = match Driver::new(plan) {
            Ok(made) => made,
            Err(error) => {
                let _ = gates.made.send(Err(error.into()));
                return;
            }
        };
        let _ = gates.made.send(Ok(()));
        if gates.go.recv().is_err() {
            return;
        }
        if let Err(error) = driver.run(&doorbell, &gates.accepts).await {
            tracing::error!(shard = shard.0, %error, "a shard has failed; the gateway ends");
            std::process::abort();
        }
    });
}

impl Driver {
    /// On the shard's own thread, inside of its executor.
    fn new(plan: ShardPlan) -> Result<(Self, Doorbell), RingError> {
        let id = plan.core.shard;
        let mut ring = Ring::new(&plan.sizes, plan.slots)?;
        let doorbell = Doorbell::install(&mut ring)?;
        plan.mesh.set_ring(id, ring.handle()?);
        ring.watch(plan.mesh.bell(id));
        let driver = Self {
            id,
            now: clock::now(),
            fx: Effects::default(),
            carried: Vec::new(),
            ring,
            outbox: Outbox::new(plan.mesh.clone(), id),
            acceptor: Acceptor::new(plan.listener, plan.slots, plan.mesh.shards()),
            sockets: Sockets::default(),
            moves: Moves::default(),
            unread: Unread::new(plan.unread_bytes_max),
            storage: Storage::new(plan.backend, plan.mesh.clone(), id),
            sign_ins: SignIns {
                authenticator: plan.authenticator,
                waiting: VecDeque::new(),
            },
            tallies: Tallies::new(),
            published: plan.published,
            published_at_us: 0,
            draining: false,
            stopped: false,
            core: Shard::new(plan.core),
            mesh: plan.mesh,
        };
        Ok((driver, doorbell))
    }

    /// Serves until the drain is complete or the shard is told to stop.
    async fn run(
        &mut self,
        doorbell: &Doorbell,
        accepts: &mpsc::SyncSender<()>,
    ) -> Result<(), RingError> {
        self.turn();
        self.ring.submit_and_reap()?;
        let _ = accepts.send(());
        let mut quiet_ticks = 0;
        while !self.is_over() {
            self.ring.arm_tick(TICK);
            self.block()?;
            let Work { ticked, busy } = self.turn();
            if busy {
                quiet_ticks = 0;
            } else if ticked {
                quiet_ticks += 1;
            }
            if quiet_ticks >= QUIET_TICKS && self.may_sleep() {
                quiet_ticks = 0;
                self.sleep(doorbell).await?;
            } else if ticked {
                glommio::executor().yield_task_queue_now().await;
            }
        }
        self.publish();
        Ok(())
    }

    /// Submits, and waits for something to do.
    fn block(&mut self) -> Result<(), RingError> {
        let waits = !self.has_work() && self.mesh.announce_block(self.id);
        let entered = if waits {
            self.ring.submit_and_wait()
        } else {
            self.ring.submit_and_reap()
        };
        self.mesh.unblocked(self.id);
        entered
    }

    /// Waits in glommio, without a tick.
    async fn sleep(&mut self, doorbell: &Doorbell) -> Result<(), RingError> {
        self.ring.disarm_tick();
        self.ring.submit_and_reap()?;
        // The last of the busy time; from here on each completion rings.
        self.turn();
        doorbell.enable(&mut self.ring);
        let entered = self.sleep_enabled(doorbell).await;
        self.mesh.unblocked(self.id);
        doorbell.disable(&mut self.ring);
        entered
    }

    async fn sleep_enabled(&mut self, doorbell: &Doorbell) -> Result<(), RingError> {
        if !self.may_sleep() || !self.mesh.announce_block(self.id) {
            return Ok(());
        }
        if let Some(at_us) = self.next_deadline_us() {
            self.ring.arm_deadline(at_us);
        }
        self.ring.submit_and_reap()?;
        if self.ring.has_completions() {
            return Ok(());
        }
        self.tallies.bump(Tally::Parks);
        self.publish();
        doorbell.wait().await.map_err(RingError::Enter)
    }
}
