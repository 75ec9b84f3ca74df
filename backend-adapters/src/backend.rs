//! The adapter trait and the values that cross it. The contract is told once, in the head of the
//! crate; here each item repeats only its own part.

use crate::{Error, Stats};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

/// A set of commands and their replies that a store may serve: messages, records, later others.
///
/// What surrounds a backend (group commit, faults, metrics) is written once, over any family.
pub trait Family: Debug + Send + Sync + 'static {
    type Cmd: Clone + Debug + Send + Sync + 'static;
    type Reply: Clone + Debug + Send + 'static;

    /// Reads may be answered by other threads than writes, and out of the order of their lane.
    fn is_read(cmd: &Self::Cmd) -> bool;

    /// A read whose time grows with what is stored: the others must not have to wait behind it.
    fn is_scan(_cmd: &Self::Cmd) -> bool {
        false
    }

    /// How many plain messages the command is worth when a commit is cut to size. At least 1.
    fn weight(cmd: &Self::Cmd) -> usize;

    /// About how much memory the command holds while it is in flight.
    fn bytes(cmd: &Self::Cmd) -> usize;
}

/// One command on its way to the store.
#[derive(Clone, Debug)]
pub struct Request<F: Family> {
    /// Chosen by the submitter, returned with the completion, meaningless to the adapter. Unique
    /// among the requests in flight towards one sink.
    pub token: u64,
    /// An order of visibility: writes of one lane that succeed become visible in the order in
    /// which they were submitted. Where data lies must not depend on it, because the number of
    /// lanes changes with the number of cores.
    pub lane: u32,
    /// Work that has not begun by then is answered [`Kind::Unavailable`](crate::Kind) when its
    /// turn comes. Work that has begun is answered when it ends, or `Unknown` where the adapter
    /// can give up waiting.
    pub deadline: Instant,
    pub cmd: F::Cmd,
}

/// The answer to one command.
#[derive(Clone, Debug)]
pub struct Completion<F: Family> {
    pub token: u64,
    pub result: Result<F::Reply, Error>,
}

/// Where completions go: in the gateway, the queue of one core and one wake-up per call.
///
/// Called from any thread, also from within [`Backend::submit`]. Must not block, must not call
/// back into the backend, must not panic.
pub trait Sink<F: Family>: Send + Sync {
    fn complete(&self, batch: Vec<Completion<F>>);
}

/// What a completed write survives. Ordered from little to much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Durability {
    /// Nothing: it is gone when the process ends.
    Volatile,
    /// The end of the process, not a stop of the machine.
    Buffered,
    /// A stop of the machine: it is on stable storage.
    Synced,
    /// The loss of a machine.
    Replicated,
}

/// What an adapter promises. Constant for the life of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caps {
    /// For logs and metrics.
    pub name: &'static str,
    pub durability: Durability,
    /// Commands that one submitted batch may hold. A larger batch is rejected as `Invalid`.
    pub batch_max: usize,
    /// Bytes ([`Family::bytes`]) that one submitted batch may hold. Rejected likewise.
    pub batch_bytes_max: usize,
    /// The largest body or record value. A command past it is answered `Invalid`.
    pub value_bytes_max: usize,
    /// May several gateways use the same store at the same time?
    pub shared: bool,
}

/// For operators and load balancers, with a sentence that says why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Up,
    /// Works, but somebody should look.
    Degraded(String),
    /// Does not take writes.
    Down(String),
}

/// A batch that was not taken, exactly as it was submitted.
#[derive(Debug)]
pub struct Rejected<F: Family> {
    pub batch: Vec<Request<F>>,
    pub why: Error,
}

/// A store, as the gateway sees it. Object safe: the gateway holds `Arc<dyn Backend<Messages>>`.
///
/// The adapter owns its threads or its runtime. No future, waker or runtime type crosses here:
/// that a command was taken and that it is durable are two events.
pub trait Backend<F: Family>: Send + Sync {
    fn caps(&self) -> Caps;

    /// Never blocks. Takes the whole batch, and then delivers exactly one completion per token,
    /// or gives the whole batch back: that is the back-pressure. A batch is no transaction; each
    /// command succeeds or fails by itself.
    fn submit(&self, batch: Vec<Request<F>>, sink: &Arc<dyn Sink<F>>) -> Result<(), Rejected<F>>;

    /// Cheap, never blocks: it is asked while the store hangs.
    fn health(&self) -> Health;

    /// Counters since the backend was opened. Zeros where an adapter keeps none.
    fn stats(&self) -> Stats {
        Stats::default()
    }

    /// Takes no more work, finishes what was taken, releases files and connections. Fails with
    /// `Unknown` if that takes longer than until `deadline`; what was taken is still answered.
    /// Batches that come later are rejected as `Unavailable`. Closing again is harmless.
    fn close(&self, deadline: Instant) -> Result<(), Error>;
}
