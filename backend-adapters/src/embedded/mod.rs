//! The embedded store: one directory on a local disk, no server. The default of the gateway.
//!
//! One fjall database (a log-structured merge tree) holds both families. Each has its commit
//! thread; the engine commits one batch at a time, so a record that is written costs the messages
//! at most the wait for one fsync, and batches stay atomic and ordered. `docs/BACKENDS.md` has the
//! stored layout and what to do when something fails.
//!
//! # Invariants
//! * What was answered is on the disk: every commit ends with `fdatasync`.
//! * One process at a time has the directory; a second one is told so.
//! * After a write that failed nothing is written until the store is opened anew.
//! * What a crash cannot explain is refused, and nothing in the directory is changed ([`survey`]).

pub mod check;
mod engine;
mod failure;
mod floor;
mod journal;
mod layout;
mod month;
pub mod personal;
mod read;
mod recent;
mod records;
mod revive;
pub mod salvage;
mod survey;
mod tables;
mod write;

pub use failure::OpenError;
pub use survey::Damage;

use self::engine::Engine;
use self::read::MessageReader;
use self::records::{RecordReader, RecordWriter};
use self::revive::{Alarm, Keeper, Seat, Trouble};
use self::write::MessageWriter;
use crate::messages::Messages;
use crate::records::Records;
use crate::{Backend, Caps, Durability, Error, GroupCommit, Limits};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Instant;

/// How a store is opened. [`Options::new`] has the defaults that were measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Created if it does not exist, for this user alone.
    pub dir: PathBuf,
    /// Reader threads per family.
    pub readers: usize,
    /// Threads that flush and compact, at least 2. One alone can come to wait for ever for room in a
    /// queue that only it empties (docs/decisions/0012).
    pub workers: usize,
    pub cache_bytes: u64,
    /// Table files kept open. Counts against the limit of the process.
    pub open_files_max: usize,
    /// The largest body or record value.
    pub value_bytes_max: usize,
    pub limits: Limits,
}

impl Options {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            readers: 2,
            workers: 2,
            cache_bytes: 64 << 20,
            open_files_max: 512,
            value_bytes_max: 1 << 20,
            limits: Limits::default(),
        }
    }
}

/// An open store. The backends may be cloned out and used on; the directory is free again when
/// both are closed or dropped.
pub struct Embedded {
    pub messages: Arc<dyn Backend<Messages>>,
    pub records: Arc<dyn Backend<Records>>,
    store_id: u128,
    damage: Arc<AtomicU64>,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded")
            .field("store_id", &format_args!("{:032x}", self.store_id))
            .finish_non_exhaustive()
    }
}

/// One life of the engine, and what works on it.
struct Parts {
    messages: GroupCommit<Messages>,
    records: GroupCommit<Records>,
    store_id: u128,
    trouble: Receiver<Trouble>,
}

/// Opens the store, and creates it if the directory is empty or absent. After a crash this replays
/// the journal: about a second per million messages. A store whose disk was full is opened anew by
/// itself when there is room again ([`revive`]).
///
/// # Errors
/// Each with a sentence for the operator.
pub fn open(options: Options) -> Result<Embedded, OpenError> {
    let dir = options.dir.clone();
    let damage = Arc::new(AtomicU64::new(0));
    let parts = start(&options, &damage)?;
    let messages = Arc::new(Seat::new(parts.messages));
    let records = Arc::new(Seat::new(parts.records));
    Keeper::new(options, Arc::clone(&damage), &messages, &records)
        .start(parts.trouble)
        .map_err(|error| OpenError::io(&dir, error))?;
    Ok(Embedded {
        messages,
        records,
        store_id: parts.store_id,
        damage,
    })
}

fn start(options: &Options, damage: &Arc<AtomicU64>) -> Result<Parts, OpenError> {
    let dir = options.dir.as_path();
    let (alarm, trouble) = Alarm::new();
    // The engine trusts the names of its files and panics over foreign ones.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        Engine::open(options, Arc::clone(damage), alarm)
    }));
    let engine = opened.unwrap_or_else(|_| {
        Err(OpenError::damaged(
            dir,
            "the engine panicked over its files",
        ))
    })?;
    let engine = Arc::new(engine);
    let caps = Caps {
        name: "embedded",
        durability: Durability::Synced,
        batch_max: 4_096,
        batch_bytes_max: options.limits.bytes_max,
        value_bytes_max: options.value_bytes_max,
        shared: false,
    };
    let io = |error| OpenError::io(dir, error);
    let readers = options.readers.max(1);
    let message_readers = (0..readers).map(|_| MessageReader::new(Arc::clone(&engine)));
    let messages = GroupCommit::start(
        caps.clone(),
        options.limits,
        MessageWriter::new(Arc::clone(&engine)),
        message_readers.collect(),
    );
    let messages = messages.map_err(io)?;
    let record_readers = (0..readers).map(|_| RecordReader::new(Arc::clone(&engine)));
    let records = GroupCommit::start(
        caps,
        options.limits,
        RecordWriter::new(Arc::clone(&engine)),
        record_readers.collect(),
    );
    Ok(Parts {
        messages,
        records: records.map_err(io)?,
        store_id: engine.store_id,
        trouble,
    })
}

impl Embedded {
    /// Drawn at random when the store was created.
    #[must_use]
    pub const fn store_id(&self) -> u128 {
        self.store_id
    }

    /// Damaged rows met since the store was opened, each time they were met. Anything but 0 wants
    /// a look at the disk.
    #[must_use]
    pub fn rows_damaged(&self) -> u64 {
        self.damage.load(Ordering::Relaxed)
    }

    /// Closes both backends; see [`Backend::close`].
    ///
    /// # Errors
    /// If work was left at the deadline.
    pub fn close(&self, deadline: Instant) -> Result<(), Error> {
        // Both, whatever becomes of the first.
        let messages = self.messages.close(deadline);
        let records = self.records.close(deadline);
        messages.and(records)
    }
}

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod personal_tests;
#[cfg(test)]
mod tests;
