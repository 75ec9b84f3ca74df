//! A full disk, and what comes after it.
//!
//! After a write that failed the engine writes nothing until it is opened anew. If the cause was a
//! lack of room, or a file system that became read-only, nothing is wrong with what is on the disk,
//! and waiting for a person to restart the gateway would only prolong the outage. So the store is
//! closed and opened again when there is room: the same as a restart, with the same checks, and clients
//! stay connected. After any other failure it stays down.
//!
//! # Invariants
//! * Between two lives of the engine nothing is taken: batches are given back as `Unavailable`.
//! * The old engine has let go of its files before the new one opens them.

use super::failure::OpenError;
use super::{Options, Parts, start};
use crate::messages::Messages;
use crate::records::Records;
use crate::{Backend, Caps, Error, Family, GroupCommit, Health, Rejected, Request, Sink, Stats};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// With less room than this, memtables could not be written out.
const ROOM_BYTES_MIN: u64 = 64 << 20;
const PROBE_FILE: &str = "probe";
const PROBE_BYTES: usize = 64 << 10;
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between two attempts. It doubles when a life was short: a quota may be exceeded where the file
/// system has room.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
const LONG_LIFE: Duration = Duration::from_secs(600);
/// For the threads of the old engine.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);

/// Why nothing is written any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// No room, or a read-only file system: it may pass.
    Room,
    Other,
}

impl Trouble {
    pub(super) fn of(error: &fjall::Error, dir: &Path) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        match error {
            fjall::Error::Io(error) | fjall::Error::Storage(lsm_tree::Error::Io(error)) => {
                match error.kind() {
                    StorageFull | QuotaExceeded | ReadOnlyFilesystem => Self::Room,
                    _ => Self::Other,
                }
            }
            // A flush in the background failed, and the engine does not say of what.
            fjall::Error::Poisoned if !has_room(dir) => Self::Room,
            _ => Self::Other,
        }
    }
}

fn has_room(dir: &Path) -> bool {
    // Where that cannot be told, trying is the only way to find out.
    rustix::fs::statvfs(dir).map_or(true, |about| {
        about.f_bavail.saturating_mul(about.f_frsize) >= ROOM_BYTES_MIN
    })
}

/// A few bytes can be written and synced: it is not read-only, and no quota is exceeded.
fn takes_writes(dir: &Path) -> bool {
    let path = dir.join(PROBE_FILE);
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(&[0; PROBE_BYTES])?;
        file.sync_all()
    });
    let removed = fs::remove_file(&path);
    written.and(removed).is_ok()
}

/// Where the backend of a family sits. It may be exchanged.
pub(super) struct Seat<F: Family> {
    caps: Caps,
    sitting: RwLock<Option<GroupCommit<F>>>,
    /// Why nobody sits there.
    absent: Mutex<String>,
    closed: AtomicBool,
    /// The counters of those who sat there before.
    past: Mutex<Stats>,
}

impl<F: Family> Seat<F> {
    pub(super) fn new(backend: GroupCommit<F>) -> Self {
        Self {
            caps: backend.caps(),
            sitting: RwLock::new(Some(backend)),
            absent: Mutex::new(String::new()),
            closed: AtomicBool::new(false),
            past: Mutex::default(),
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn explain(&self, why: &str) {
        let mut absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        why.clone_into(&mut absent);
    }

    /// Takes nothing more until [`Self::put`].
    fn take(&self) -> Option<GroupCommit<F>> {
        let mut sitting = self.sitting.write().unwrap_or_else(PoisonError::into_inner);
        sitting.take()
    }

    fn put(&self, backend: GroupCommit<F>) {
        let mut sitting = self.sitting.write().unwrap_or_else(PoisonError::into_inner);
        if !self.is_closed() {
            *sitting = Some(backend);
        }
    }

    fn remember(&self, old: &Stats) {
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        *past = past.followed_by(old);
    }
}

impl<F: Family> Backend<F> for Seat<F> {
    fn caps(&self) -> Caps {
        self.caps.clone()
    }

    fn submit(&self, batch: Vec<Request<F>>, sink: &Arc<dyn Sink<F>>) -> Result<(), Rejected<F>> {
        let sitting = self.sitting.read().unwrap_or_else(PoisonError::into_inner);
        match sitting.as_ref() {
            Some(backend) => backend.submit(batch, sink),
            None if batch.is_empty() => Ok(()),
            None => {
                let why = Error::unavailable("the store is being opened anew");
                Err(Rejected { batch, why })
            }
        }
    }

    fn health(&self) -> Health {
        let sitting = self.sitting.read().unwrap_or_else(PoisonError::into_inner);
        match sitting.as_ref() {
            Some(backend) => backend.health(),
            None => {
                let absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
                Health::Down(absent.clone())
            }
        }
    }

    fn stats(&self) -> Stats {
        let past = *self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let sitting = self.sitting.read().unwrap_or_else(PoisonError::into_inner);
        let now = sitting.as_ref().map(GroupCommit::stats);
        past.followed_by(&now.unwrap_or_default())
    }

    fn close(&self, deadline: Instant) -> Result<(), Error> {
        self.closed.store(true, Ordering::Release);
        self.explain("the store is closed");
        let sitting = self.sitting.read().unwrap_or_else(PoisonError::into_inner);
        sitting
            .as_ref()
            .map_or(Ok(()), |backend| backend.close(deadline))
    }
}

type Seats = (Arc<Seat<Messages>>, Arc<Seat<Records>>);

/// Waits for trouble, on a thread of its own, which ends with the engine.
pub(super) struct Keeper {
    options: Options,
    /// Of rows, counted through all lives of the engine.
    damage: Arc<AtomicU64>,
    messages: Weak<Seat<Messages>>,
    records: Weak<Seat<Records>>,
    pause: Duration,
    born: Instant,
}

impl Keeper {
    pub(super) fn new(
        options: Options,
        damage: Arc<AtomicU64>,
        messages: &Arc<Seat<Messages>>,
        records: &Arc<Seat<Records>>,
    ) -> Self {
        Self {
            options,
            damage,
            messages: Arc::downgrade(messages),
            records: Arc::downgrade(records),
            pause: PAUSE_MIN,
            born: Instant::now(),
        }
    }

    pub(super) fn start(self, trouble: Receiver<Trouble>) -> io::Result<()> {
        let named = thread::Builder::new().name("store-keeper".to_owned());
        named.spawn(move || self.run(trouble)).map(drop)
    }

    fn run(mut self, mut trouble: Receiver<Trouble>) {
        while let Ok(Trouble::Room) = trouble.recv() {
            if self.born.elapsed() > LONG_LIFE {
                self.pause = PAUSE_MIN;
            }
            match self.revive() {
                Some(next) => trouble = next,
                None => return,
            }
        }
    }

    /// `None` if there is nothing left to keep.
    fn revive(&mut self) -> Option<Receiver<Trouble>> {
        loop {
            self.wait_for_room()?;
            let (messages, records) = self.seats()?;
            match self.exchange(&messages, &records) {
                Ok(next) => {
                    tracing::info!("the disk takes writes again: the store was opened anew");
                    self.born = Instant::now();
                    return Some(next);
                }
                Err(error) => {
                    let text = error.to_string();
                    messages.explain(&text);
                    records.explain(&text);
                    tracing::error!(%error, "the store could not be opened anew");
                    // What a disk without room explains may pass.
                    if !matches!(error, OpenError::Io { .. } | OpenError::InUse { .. }) {
                        return None;
                    }
                }
            }
        }
    }

    fn wait_for_room(&mut self) -> Option<()> {
        let until = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        let dir = self.options.dir.clone();
        while Instant::now() < until || !has_room(&dir) || !takes_writes(&dir) {
            self.seats()?;
            thread::sleep(LOOK_EVERY);
        }
        Some(())
    }

    /// `None` when the store is closed or gone.
    fn seats(&self) -> Option<Seats> {
        let seats = self.messages.upgrade().zip(self.records.upgrade());
        seats.filter(|(messages, records)| !messages.is_closed() && !records.is_closed())
    }

    fn exchange(
        &self,
        messages: &Seat<Messages>,
        records: &Seat<Records>,
    ) -> Result<Receiver<Trouble>, OpenError> {
        let why = "the disk was full; the store is being opened anew";
        messages.explain(why);
        records.explain(why);
        let until = Instant::now() + CLOSE_PATIENCE;
        leave(messages, until);
        leave(records, until);
        let Parts {
            messages: new_messages,
            records: new_records,
            trouble,
            ..
        } = start(&self.options, &self.damage)?;
        messages.put(new_messages);
        records.put(new_records);
        Ok(trouble)
    }
}

fn leave<F: Family>(seat: &Seat<F>, until: Instant) {
    let Some(old) = seat.take() else {
        return;
    };
    if let Err(error) = old.close(until) {
        // Its lock stays, and the next attempt says so.
        tracing::warn!(%error, "the store works on although it was told to end");
    }
    seat.remember(&old.stats());
}

/// Tells the keeper about failures of one life of the engine.
#[derive(Debug)]
pub(super) struct Alarm(Sender<Trouble>);

impl Alarm {
    pub(super) fn new() -> (Self, Receiver<Trouble>) {
        let (sender, receiver) = channel();
        (Self(sender), receiver)
    }

    pub(super) fn raise(&self, trouble: Trouble) {
        // Nobody listens after the first that is not about room.
        let _ = self.0.send(trouble);
    }
}
