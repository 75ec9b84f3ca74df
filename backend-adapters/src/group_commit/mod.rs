//! Makes a [`Backend`] of a blocking engine: one commit thread, and reader threads beside it.
//!
//! While one commit is in its fsync, what arrives becomes the next one. So an idle store answers
//! at once, a busy one shares each fsync among hundreds of messages, and no timer is needed. Reads
//! have threads of their own: a long history never delays a commit.
//!
//! # Invariants
//! * Every token that was taken is answered once, also if the engine or the sink panics, and also
//!   after [`Backend::close`].
//! * Writes are applied and answered in the order of their submission; expired ones are answered
//!   in their place. Reads may overtake writes and each other.
//! * Commands and bytes in flight are bounded, for reads and writes separately, so that a wave of
//!   reads at a login storm leaves writing its room, and the reverse.
//! * After a fatal write nothing is written any more: the engine is not called again.
//!
//! # Does not
//! Retry anything, or answer work that waits behind a commit which hangs: health tells that, and
//! the submitter has timers of its own.

mod committer;
mod meter;
mod reading;

use self::committer::Committer;
use self::meter::{Amount, Meter};
#[cfg(feature = "memory")]
pub(crate) use self::reading::expired;
use crate::{Backend, Caps, Error, Family, Health, Kind, Rejected, Request, Sink, Stats};
use crossbeam::channel::{self, Receiver, Sender};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long dropping a backend that was not closed may wait for work in flight.
const DROP_PATIENCE: Duration = Duration::from_secs(5);
/// The most reads handed to one reader thread at once: what stands behind a long read waits.
const READ_CHUNK_MAX: usize = 32;
/// The same for scans, each of which may take long.
const SCAN_CHUNK_MAX: usize = 4;

/// The write half of a blocking engine. Owned by the commit thread.
pub trait Writer<F: Family>: Send + 'static {
    /// Applies the commands in order, as one durable step, and pushes one result per command.
    /// Returns when they are as durable as the caps say. Called with at least one command and no
    /// reads.
    ///
    /// [`Kind::Fatal`] in any result means that the engine cannot write any more: it is not
    /// called again. A panic counts as that.
    fn apply(&mut self, batch: &[Request<F>], results: &mut Vec<Result<F::Reply, Error>>);
}

/// The read half. Each reader thread owns one.
pub trait Reader<F: Family>: Send + 'static {
    /// Sees every write that was answered before the read was submitted. A panic is answered as
    /// [`Kind::Fatal`], and the reader is used again: it keeps no state that a panic could break.
    fn read(&mut self, cmd: &F::Cmd) -> Result<F::Reply, Error>;
}

/// Bounds of a [`GroupCommit`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Commands in flight, of reads and of writes each. Past it: `Overloaded`. A read leaves this
    /// count with its answer, so pages that wait in a sink are for the owner of the sink to bound.
    pub commands_max: usize,
    /// Bytes of commands in flight, of reads and of writes each. Past it: `Overloaded`.
    pub bytes_max: usize,
    /// Weight of one commit, in messages. Only a store that is behind fills it: then a larger commit
    /// costs less per message, and takes longer.
    pub commit_messages_max: usize,
    /// A commit that takes longer makes the health `Degraded`, while it lasts.
    pub commit_slow: Duration,
    /// A commit that takes longer makes the health `Down`, while it lasts.
    pub commit_stuck: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            commands_max: 16_384,
            bytes_max: 64 << 20,
            commit_messages_max: 2_048,
            commit_slow: Duration::from_secs(1),
            commit_stuck: Duration::from_secs(3),
        }
    }
}

/// The part of one submission that goes to one thread.
struct Piece<F: Family> {
    requests: Vec<Request<F>>,
    sink: Arc<dyn Sink<F>>,
}

struct Queues<F: Family> {
    writes: Sender<Piece<F>>,
    reads: Sender<Piece<F>>,
    /// Not for the first reader, if there are others: however much there is to scan, one reader is
    /// left for the rest.
    scans: Sender<Piece<F>>,
}

/// A [`Backend`] over one [`Writer`] and some [`Reader`]s.
pub struct GroupCommit<F: Family> {
    caps: Caps,
    limits: Limits,
    readers: usize,
    meter: Arc<Meter>,
    /// `None` once closed: the threads end when their queue is empty and has no sender.
    queues: RwLock<Option<Queues<F>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Disconnected when the last thread has let go of the engine.
    ended: Receiver<()>,
}

impl<F: Family> fmt::Debug for GroupCommit<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupCommit")
            .field("caps", &self.caps)
            .field("limits", &self.limits)
            .field("readers", &self.readers)
            .finish_non_exhaustive()
    }
}

impl<F: Family> GroupCommit<F> {
    /// Starts the threads. A reader thread per reader; without readers, reads are `Invalid`.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start<W, R>(
        mut caps: Caps,
        limits: Limits,
        writer: W,
        readers: Vec<R>,
    ) -> io::Result<Self>
    where
        W: Writer<F>,
        R: Reader<F>,
    {
        // A batch that could never be taken must be refused as `Invalid`, not as `Overloaded`.
        caps.batch_max = caps.batch_max.min(limits.commands_max);
        caps.batch_bytes_max = caps.batch_bytes_max.min(limits.bytes_max);
        let meter = Arc::new(Meter::new(limits));
        let (ending, ended) = channel::bounded(0);
        // Unbounded as channels, bounded by the meter: each piece holds a command at least.
        let (writes, write_queue) = channel::unbounded();
        let (reads, read_queue) = channel::unbounded();
        let (scans, scan_queue) = channel::unbounded();
        let started = Self {
            readers: readers.len(),
            caps,
            limits,
            meter: Arc::clone(&meter),
            queues: RwLock::new(Some(Queues {
                writes,
                reads,
                scans,
            })),
            threads: Mutex::new(Vec::new()),
            ended,
        };
        // If a thread cannot be started, dropping `started` ends those that could.
        let committer = Committer::new(writer, write_queue, meter, limits);
        started.start_threads(committer, readers, (&read_queue, &scan_queue), ending)?;
        Ok(started)
    }

    fn start_threads<W, R>(
        &self,
        committer: Committer<F, W>,
        readers: Vec<R>,
        (reads, scans): (&Receiver<Piece<F>>, &Receiver<Piece<F>>),
        ending: Sender<()>,
    ) -> io::Result<()>
    where
        W: Writer<F>,
        R: Reader<F>,
    {
        self.spawn("store-commit", ending.clone(), move || committer.run())?;
        let alone = readers.len() == 1;
        for (at, reader) in readers.into_iter().enumerate() {
            let (reads, meter) = (reads.clone(), Arc::clone(&self.meter));
            let scans = (at > 0 || alone).then(|| scans.clone());
            self.spawn("store-read", ending.clone(), move || {
                reading::run(reader, &reads, scans.as_ref(), &meter);
            })?;
        }
        // The threads hold the only senders now: when they end, `ended` knows.
        drop(ending);
        Ok(())
    }

    fn spawn(
        &self,
        name: &str,
        ending: Sender<()>,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let handle = thread::Builder::new().name(name.into()).spawn(move || {
            body();
            drop(ending);
        })?;
        lock(&self.threads).push(handle);
        Ok(())
    }

    /// Splits a batch by kind. A batch of one kind, the usual one, is moved as it is.
    fn split(batch: Vec<Request<F>>) -> (Vec<Request<F>>, Vec<Request<F>>) {
        let reads = batch.iter().filter(|r| F::is_read(&r.cmd)).count();
        if reads == 0 {
            (batch, Vec::new())
        } else if reads == batch.len() {
            (Vec::new(), batch)
        } else {
            batch.into_iter().partition(|r| !F::is_read(&r.cmd))
        }
    }

    fn refuse(&self, batch: &[Request<F>]) -> Result<(Amount, Amount), Error> {
        if batch.len() > self.caps.batch_max {
            return Err(Error::invalid("more commands than a batch may hold"));
        }
        let (mut writes, mut reads) = (Amount::default(), Amount::default());
        for request in batch {
            let amount = if F::is_read(&request.cmd) {
                &mut reads
            } else {
                &mut writes
            };
            amount.commands += 1;
            amount.bytes += F::bytes(&request.cmd);
        }
        if writes.bytes + reads.bytes > self.caps.batch_bytes_max {
            return Err(Error::invalid("more bytes than a batch may hold"));
        }
        if reads.commands > 0 && self.readers == 0 {
            return Err(Error::invalid("this backend serves no reads"));
        }
        if writes.commands > 0
            && let Some(fatal) = self.meter.fatal()
        {
            return Err(fatal.clone());
        }
        self.meter.reserve(writes, reads)?;
        Ok((writes, reads))
    }

    /// Spreads reads over the reader threads, in few pieces: each is answered in one call or few.
    fn send_reads(&self, queues: &Queues<F>, reads: Vec<Request<F>>, sink: &Arc<dyn Sink<F>>) {
        let (scans, reads) = if reads.iter().any(|r| F::is_scan(&r.cmd)) {
            reads.into_iter().partition(|r| F::is_scan(&r.cmd))
        } else {
            (Vec::new(), reads)
        };
        self.spread(&queues.reads, reads, READ_CHUNK_MAX, sink);
        self.spread(&queues.scans, scans, SCAN_CHUNK_MAX, sink);
    }

    fn spread(
        &self,
        queue: &Sender<Piece<F>>,
        mut reads: Vec<Request<F>>,
        chunk_max: usize,
        sink: &Arc<dyn Sink<F>>,
    ) {
        let chunk = reads
            .len()
            .div_ceil(self.readers.max(1))
            .clamp(1, chunk_max);
        while !reads.is_empty() {
            let rest = reads.split_off(reads.len().min(chunk));
            let piece = Piece {
                requests: std::mem::replace(&mut reads, rest),
                sink: Arc::clone(sink),
            };
            if let Err(channel::SendError(piece)) = queue.send(piece) {
                // Readers end only after all senders, so this answers what cannot happen.
                let error = Error::fatal("the reader threads are gone");
                reading::answer_all(piece, &error, &self.meter);
            }
        }
    }
}

impl<F: Family> Backend<F> for GroupCommit<F> {
    fn caps(&self) -> Caps {
        self.caps.clone()
    }

    fn submit(&self, batch: Vec<Request<F>>, sink: &Arc<dyn Sink<F>>) -> Result<(), Rejected<F>> {
        if batch.is_empty() {
            return Ok(());
        }
        let queues = self.queues.read().unwrap_or_else(PoisonError::into_inner);
        let Some(queues) = queues.as_ref() else {
            self.meter.count_rejected();
            let why = Error::unavailable("the store is closed");
            return Err(Rejected { batch, why });
        };
        if let Err(why) = self.refuse(&batch) {
            self.meter.count_rejected();
            return Err(Rejected { batch, why });
        }
        let (writes, reads) = Self::split(batch);
        if !writes.is_empty() {
            let piece = Piece {
                requests: writes,
                sink: Arc::clone(sink),
            };
            if let Err(channel::SendError(piece)) = queues.writes.send(piece) {
                let error = Error::fatal("the commit thread is gone");
                reading::answer_all(piece, &error, &self.meter);
            }
        }
        if !reads.is_empty() {
            self.send_reads(queues, reads, sink);
        }
        Ok(())
    }

    fn health(&self) -> Health {
        let closed = self
            .queues
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none();
        if closed && self.meter.fatal().is_none() {
            return Health::Down("the store is closed".into());
        }
        self.meter.health()
    }

    fn stats(&self) -> Stats {
        self.meter.stats()
    }

    fn close(&self, deadline: Instant) -> Result<(), Error> {
        let queues = self
            .queues
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(queues);
        match self.ended.recv_deadline(deadline) {
            Err(channel::RecvTimeoutError::Disconnected) => {}
            Ok(()) | Err(channel::RecvTimeoutError::Timeout) => {
                return Err(Error::new(
                    Kind::Unknown,
                    "work was left when the time for closing was up; it goes on and is answered",
                ));
            }
        }
        let threads = std::mem::take(&mut *lock(&self.threads));
        for handle in threads {
            // All have let go of the engine and are about to end. A panic was logged where it
            // happened.
            let _ = handle.join();
        }
        Ok(())
    }
}

impl<F: Family> Drop for GroupCommit<F> {
    fn drop(&mut self) {
        if let Err(error) = self.close(Instant::now() + DROP_PATIENCE) {
            tracing::warn!(%error, store = self.caps.name, "a store was dropped while it worked");
        }
    }
}

/// The data behind our locks is whole at every step, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
