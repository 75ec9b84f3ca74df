//! What a store that nobody serves holds of one user: told row by row, or taken out of it.
//!
//! Entries have no index by author, so both walk every month once: about a second for a million
//! entries.
//!
//! # Invariants
//! * Both hold the lock of the store: they refuse one that a gateway has open.
//! * An erasure that is cut short is begun again without harm: each of its steps may be repeated.
//! * When it has ended no file of the store holds a body that the user sent: what was overwritten is
//!   gone from the tables by compaction, and from the journal by its rotation.
//!
//! # Does not
//! Take the entries themselves away (others have them in their history: that something was said, when
//! and by whom stays), nor a withdrawal or an event of a group, which name ids alone or belong to the
//! group.

use super::Options;
use super::check::refuse_absent;
use super::engine::Engine;
use super::failure::OpenError;
use super::layout::{self, EntryView};
use super::revive::Alarm;
use crate::messages::{Entry, Watermark};
use crate::records::{Table, Version};
use bytes::Bytes;
use fjall::{Keyspace, OwnedWriteBatch, PersistMode};
use portico_wire::Op;
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, Seq, UserId};
use serde::Serialize;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

/// Tables of records whose keys begin with the eight big-endian bytes of the user they belong to:
/// contacts and settings, and what history keeps. Generations of devices are not among them: a revoked
/// token must stay revoked.
const TABLES: [RangeInclusive<u16>; 2] = [32..=39, 48..=51];
/// Rows changed at once.
const BATCH_ROWS: usize = 4_096;
/// Entries between two words about progress.
const TELL_EVERY: u64 = 100_000;
/// The engine begins a new journal when the old one is longer than 64 MB.
const JOURNAL_FULL_BYTES: usize = 66 << 20;
const FILLER_BYTES: usize = 1 << 20;
/// Times that the engine is asked to let go of its old journals.
const ROUNDS_MAX: usize = 50;

/// One thing that a store holds of a user.
#[derive(Debug)]
pub enum Found {
    /// An entry that the user may see: of an own direct conversation, sent by the user, or named by
    /// the user's inbox.
    Message(Entry),
    Cursor(DeviceId, Seq),
    Mark(ConvId, Watermark),
    Record {
        table: Table,
        key: Bytes,
        value: Bytes,
        version: Version,
    },
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many entries have been looked at.
    Looked(u64),
    /// What was overwritten is being taken out of the files, keyspace by keyspace.
    Compacting { done: usize, of: usize },
}

/// What was taken out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Erased {
    pub entries_looked_at: u64,
    /// Bodies overwritten with nothing, and their bytes.
    pub bodies: u64,
    pub body_bytes: u64,
    pub references: u64,
    pub cursors: u64,
    pub watermarks: u64,
    pub records: u64,
}

fn open(dir: &Path) -> Result<Engine, OpenError> {
    refuse_absent(dir)?;
    let (alarm, _trouble) = Alarm::new();
    Engine::open(&Options::new(dir), Arc::default(), alarm)
}

/// Tells everything that the store in `dir` holds of a user. Ends with the first error of `tell`.
///
/// # Errors
/// If a gateway has the store open, or there is none; if it cannot be read.
pub fn export(
    dir: &Path,
    user: UserId,
    tell: &mut dyn FnMut(Found) -> io::Result<()>,
) -> Result<(), OpenError> {
    let engine = open(dir)?;
    let failed = |error| OpenError::engine(dir, error);
    let io = |error| OpenError::io(dir, error);
    let months = engine.months();
    for keyspace in months.entries.values() {
        for row in keyspace.iter() {
            let (key, value) = row.into_inner().map_err(failed)?;
            let place = layout::conv_key_number(&key).zip(EntryView::parse(&value));
            let Some((at, entry)) = place else {
                engine.count_damage("entry");
                continue;
            };
            if entry.sender == user || entry.conv.peer_of(user).is_some() {
                tell(Found::Message(entry.to_entry(ConvSeq(at)))).map_err(io)?;
            }
        }
    }
    for keyspace in months.inboxes.values() {
        for row in keyspace.prefix(user.0.to_be_bytes()) {
            let (_, value) = row.into_inner().map_err(failed)?;
            let Some((conv, at)) = layout::parse_inbox(&value) else {
                engine.count_damage("inbox");
                continue;
            };
            if conv.peer_of(user).is_some() {
                continue;
            }
            let month = months.entries.get(&super::month::Month::of(at.0));
            let key = layout::conv_key(&engine.hash.h12(conv), at.0);
            let value = month.map(|month| month.get(key)).transpose();
            let Some(value) = value.map_err(failed)?.flatten() else {
                continue;
            };
            let entry = EntryView::parse(&value).filter(|entry| entry.conv == conv);
            if let Some(entry) = entry.filter(|entry| entry.sender != user) {
                tell(Found::Message(entry.to_entry(at))).map_err(io)?;
            }
        }
    }
    for row in engine.cursor.prefix(user.0.to_be_bytes()) {
        let (key, value) = row.into_inner().map_err(failed)?;
        let device = layout::cursor_key_device(&key);
        if let Some((device, seq)) = device.zip(layout::parse_cursor(&value)) {
            tell(Found::Cursor(device, seq)).map_err(io)?;
        }
    }
    for row in engine.mark.iter() {
        let (key, value) = row.into_inner().map_err(failed)?;
        if layout::conv_key_number(&key) == Some(user.0)
            && let Some((conv, water)) = layout::parse_mark(user, &value)
        {
            tell(Found::Mark(conv, water)).map_err(io)?;
        }
    }
    for table in TABLES.into_iter().flatten().map(Table) {
        let prefix = layout::record_key(table, &user.0.to_be_bytes());
        for row in engine.record.prefix(&prefix) {
            let (key, value) = row.into_inner().map_err(failed)?;
            if let Some((version, value)) = layout::parse_record(&value) {
                let found = Found::Record {
                    table,
                    key: Bytes::copy_from_slice(key.get(2..).unwrap_or_default()),
                    value: Bytes::copy_from_slice(value),
                    version,
                };
                tell(found).map_err(io)?;
            }
        }
    }
    Ok(())
}

/// Takes a user out of the store in `dir`.
///
/// # Errors
/// If a gateway has the store open, or there is none; if it cannot be read or written. What was done
/// until then stays done.
pub fn erase(
    dir: &Path,
    user: UserId,
    tell: &mut dyn FnMut(Progress),
) -> Result<Erased, OpenError> {
    let engine = open(dir)?;
    let mut erasing = Erasing::new(&engine);
    erasing
        .rows(user, tell)
        .and_then(|()| erasing.commit())
        .and_then(|()| sweep(&engine, tell))
        .map_err(|error| OpenError::engine(dir, error))?;
    let erased = erasing.erased;
    drop(erasing);
    let left = engine.db.journal_count();
    drop(engine);
    if left > 1 {
        let detail = "the engine kept an old journal; start the erasure again";
        return Err(OpenError::io(dir, io::Error::other(detail)));
    }
    // A start takes away the tables that compaction has replaced.
    open(dir).map(drop)?;
    Ok(erased)
}

/// Changes on their way.
struct Erasing<'a> {
    engine: &'a Engine,
    batch: OwnedWriteBatch,
    rows: usize,
    erased: Erased,
}

impl<'a> Erasing<'a> {
    fn new(engine: &'a Engine) -> Self {
        Self {
            engine,
            batch: Self::batch(engine),
            rows: 0,
            erased: Erased::default(),
        }
    }

    fn batch(engine: &Engine) -> OwnedWriteBatch {
        let batch = OwnedWriteBatch::with_capacity(engine.db.clone(), BATCH_ROWS);
        batch.durability(Some(PersistMode::SyncData))
    }

    fn rows(&mut self, user: UserId, tell: &mut dyn FnMut(Progress)) -> Result<(), fjall::Error> {
        let engine = self.engine;
        let months = engine.months();
        for keyspace in months.entries.values() {
            for row in keyspace.iter() {
                let (key, value) = row.into_inner()?;
                self.erased.entries_looked_at += 1;
                if self.erased.entries_looked_at.is_multiple_of(TELL_EVERY) {
                    tell(Progress::Looked(self.erased.entries_looked_at));
                }
                let Some(entry) = EntryView::parse(&value) else {
                    engine.count_damage("entry");
                    continue;
                };
                if entry.sender != user || entry.body.is_empty() || !is_content(entry.meta.op) {
                    continue;
                }
                if let Some(redacted) = layout::redacted(&value, entry.conv) {
                    self.erased.bodies += 1;
                    self.erased.body_bytes += entry.body.len() as u64;
                    self.batch.insert(keyspace, key, redacted);
                    self.staged()?;
                }
            }
        }
        tell(Progress::Looked(self.erased.entries_looked_at));
        for keyspace in months.inboxes.values() {
            self.erased.references += self.remove(keyspace, &user.0.to_be_bytes())?;
        }
        self.erased.cursors += self.remove(&engine.cursor, &user.0.to_be_bytes())?;
        for row in engine.mark.iter() {
            let key = row.key()?;
            if layout::conv_key_number(&key) == Some(user.0) {
                self.erased.watermarks += 1;
                self.batch.remove(&engine.mark, key);
                self.staged()?;
            }
        }
        for table in TABLES.into_iter().flatten().map(Table) {
            let prefix = layout::record_key(table, &user.0.to_be_bytes());
            self.erased.records += self.remove(&engine.record, &prefix)?;
        }
        Ok(())
    }

    fn remove(&mut self, keyspace: &Keyspace, prefix: &[u8]) -> Result<u64, fjall::Error> {
        let mut removed = 0;
        for row in keyspace.prefix(prefix) {
            let key = row.key()?;
            self.batch.remove(keyspace, key);
            removed += 1;
            self.staged()?;
        }
        Ok(removed)
    }

    fn staged(&mut self) -> Result<(), fjall::Error> {
        self.rows += 1;
        if self.rows < BATCH_ROWS {
            return Ok(());
        }
        self.commit()
    }

    fn commit(&mut self) -> Result<(), fjall::Error> {
        self.rows = 0;
        let full = std::mem::replace(&mut self.batch, Self::batch(self.engine));
        full.commit()
    }
}

/// A withdrawal names ids alone, and an event belongs to its group.
const fn is_content(op: u8) -> bool {
    op != Op::Revoke as u8 && op != Op::GroupEvent as u8
}

/// Takes what was overwritten or removed out of the files.
fn sweep(engine: &Engine, tell: &mut dyn FnMut(Progress)) -> Result<(), fjall::Error> {
    let months = engine.months();
    let mut keyspaces: Vec<&Keyspace> = months.entries.values().collect();
    keyspaces.extend(months.inboxes.values());
    keyspaces.extend([&engine.cursor, &engine.mark, &engine.record]);
    // A compaction keeps the version before the newest commit; so one commit more.
    note(engine)?;
    for (done, keyspace) in keyspaces.iter().enumerate() {
        let of = keyspaces.len();
        tell(Progress::Compacting { done, of });
        keyspace.rotate_memtable_and_wait()?;
        keyspace.major_compact()?;
    }
    fill_journal(engine)?;
    keyspaces.extend([&engine.fan_out, &engine.taken, &engine.meta]);
    for keyspace in &keyspaces {
        keyspace.rotate_memtable_and_wait()?;
    }
    // The engine looks for journals that it needs no more whenever a memtable is put aside.
    for _ in 0..ROUNDS_MAX {
        note(engine)?;
        engine.meta.rotate_memtable_and_wait()?;
        if engine.db.journal_count() == 1 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    engine.meta.major_compact()
}

/// A commit that changes nothing.
fn note(engine: &Engine) -> Result<(), fjall::Error> {
    let mut batch = engine.db.batch().durability(Some(PersistMode::SyncData));
    let ceiling = engine.ceiling().0.to_be_bytes();
    batch.insert(&engine.meta, layout::META_CLOCK, ceiling);
    batch.commit()
}

/// The engine has no word for a new journal, but begins one when the old one is full.
fn fill_journal(engine: &Engine) -> Result<(), fjall::Error> {
    let (mut state, mut filler) = (1_u64, vec![0; FILLER_BYTES]);
    for _ in 0..JOURNAL_FULL_BYTES / FILLER_BYTES {
        // Not to be compressed away.
        for bytes in filler.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.copy_from_slice(&state.to_le_bytes());
        }
        engine.meta.insert(META_FILLER, filler.as_slice())?;
    }
    engine.meta.remove(META_FILLER)?;
    engine.db.persist(PersistMode::SyncData)?;
    engine.meta.rotate_memtable_and_wait()
}

/// Gone again before the erasure ends.
const META_FILLER: &str = "filler";
