//! The boundary between the gateway and durable storage.
//!
//! A core of the gateway hands over batches of commands and goes on; the answers come back later,
//! tagged, from whatever thread the adapter uses. Three ideas carry the rest:
//!
//! * **Numbers come with the command.** The gateway makes sequence numbers from its clock. So no
//!   command has to read before it writes, and each may be sent twice without a second effect.
//! * **A lane is an order of visibility.** Writes of one lane that succeed become visible in the
//!   order in which they were submitted. Lanes know nothing of each other.
//! * **Errors say what is known.** Either nothing happened or the outcome is open, and repeating
//!   is the caller's decision, never the adapter's.
//!
//! # Writing an adapter
//! A blocking engine implements [`Writer`] and [`Reader`], and [`GroupCommit`] makes a [`Backend`]
//! of them: threads, group commit, limits, deadlines, health and closing are done. A client of a
//! server that has its own runtime implements [`Backend`] itself. Either way the adapter passes
//! [`conformance`], bare and wrapped in [`fault::Faulty`]; `docs/BACKENDS.md` walks through it.
//!
//! # The contract
//! What an adapter owes to its callers, in the order in which a command lives.
//!
//! **Taking.** [`Backend::submit`] never blocks. It takes a whole batch or gives the whole batch
//! back: `Overloaded` past its bounds on commands and bytes in flight, `Invalid` if the batch is
//! larger than [`Caps`] allow, `Unavailable` when closed or cut off, `Fatal` when it cannot write
//! any more. A batch is a way of travelling, not a transaction.
//!
//! **Answering.** Exactly one [`Completion`] per token that was taken: not none, not two, and
//! also after `close`. The sink is called from any thread; an adapter calls it with many
//! completions at once rather than often.
//!
//! **Durability.** A write that is answered with success is as durable as [`Caps::durability`]
//! says. One command is atomic where its doc says so ([`messages::Cmd::Append`] above all).
//!
//! **Visibility.** A read sees every write that was answered before the read was submitted. Within
//! a lane, a write is not visible before an earlier one that succeeds: a reader that follows an
//! inbox by its cursor, while batches are in flight and fail, misses nothing. A lane must not
//! decide where data lies, because the number of lanes changes between two runs.
//!
//! **Repetition.** Every command may come again, also after success, and also from another
//! process. Entries and references are named by their numbers and always come with the same
//! content; cursors and watermarks merge by maximum; a record carries a version chosen by its
//! writer. No adapter keeps a table of what it has seen.
//!
//! **Deadlines.** Work that has not begun by its deadline is answered `Unavailable` when its turn
//! comes, and is not done. Work that has begun is answered when it ends. The caller has timers of
//! its own and does not wait for either.
//!
//! **Failing.** `Overloaded`, `Unavailable`, `Conflict` and `Invalid` promise that nothing was
//! applied. `Unknown` and `Fatal` do not. After a durable write has failed in a way that leaves
//! the engine in doubt, an adapter answers `Fatal` to every write until it is opened again:
//! writing on would bury the doubt.
//!
//! **The ceiling.** A store knows a number strictly above every sequence number that it ever made
//! durable ([`messages::Cmd::Ceiling`]), in the same atomic step that makes them so. It stands
//! between a clock that stepped back and a number that is issued twice.
//!
//! # Beyond the contract
//! The adapters of this crate also *answer* the writes of a lane in the order of their submission,
//! failed and expired ones included ([`conformance::ordered_completions`]). Reads are answered as
//! they are ready.
//!
//! # Does not
//! Know the gateway, the wire format of frames, or presence; repeat, route or cache anything.

mod backend;
mod ceiling;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "embedded")]
pub mod embedded;
mod error;
#[cfg(feature = "fault")]
pub mod fault;
mod group_commit;
#[cfg(feature = "memory")]
pub mod memory;
pub mod messages;
pub mod records;
pub mod stats;

pub use backend::{Backend, Caps, Completion, Durability, Family, Health, Rejected, Request, Sink};
pub use ceiling::Ceiling;
pub use error::{Error, Kind};
pub use group_commit::{GroupCommit, Limits, Reader, Writer};
pub use stats::Stats;
