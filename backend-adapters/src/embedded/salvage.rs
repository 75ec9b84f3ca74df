//! Saves what can be read of a damaged store into a new one.
//!
//! Rows are read from the files themselves, without the engine: from every block of a table and
//! every commit of a journal that has its checksums, also around and after what has not. Keys are made
//! anew from the values, so nothing of the old store but its rows is needed.
//!
//! # Invariants
//! * The old store is not changed.
//! * Of several versions of a row the one that was written last counts; entries and references have only
//!   one.
//! * The ceiling of the new store is above every number found, and not below a ceiling found.

use super::check::{EXAMPLES_MAX, lock_if_there, refuse_absent};
use super::engine::{Engine, Months};
use super::failure::OpenError;
use super::journal::{JournalReader, follows};
use super::layout::{self, EntryView};
use super::month::Month;
use super::revive::Alarm;
use super::survey::{self, Damage, Survey};
use super::tables::{self, Tree};
use super::{Options, journal};
use fjall::{OwnedWriteBatch, PersistMode};
use portico_wire::ids::UserId;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows written at once.
const BATCH_ROWS: usize = 4_096;
const BATCH_BYTES: usize = 8 << 20;
/// The ceiling is so far above the greatest number, as after a commit (`portico_backend::Ceiling`).
const CEILING_LEAD_US: u64 = 10_000_000;

/// What was saved, and what was not.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Salvage {
    pub from: PathBuf,
    pub to: PathBuf,
    pub entries: u64,
    pub references: u64,
    pub cursors: u64,
    pub watermarks: u64,
    pub fan_outs: u64,
    pub records: u64,
    pub taken: u64,
    pub ceiling: u64,
    /// Parts of files that could not be read. How many rows they held nobody knows: about 70 bytes are a
    /// reference, and 100 and a body an entry.
    pub lost: Vec<Damage>,
    pub lost_bytes: u64,
    /// Rows that were read and make no sense.
    pub rows_unknown: u64,
    pub unknown_examples: Vec<String>,
}

/// Copies the store in `from` into a new one in `to`, which must be empty or absent.
///
/// # Errors
/// If a gateway has the old one open, or there is none; if the new one cannot be made.
pub fn salvage(from: &Path, to: &Path) -> Result<Salvage, OpenError> {
    refuse_absent(from)?;
    let _lock = lock_if_there(from)?;
    let in_old = |error| OpenError::io(from, error);
    let in_new = |error| OpenError::io(to, error);
    if to.exists() && fs::read_dir(to).map_err(in_new)?.next().is_some() {
        return Err(OpenError::Foreign { dir: to.into() });
    }
    let found = survey::survey(from).map_err(in_old)?;
    let (alarm, _trouble) = Alarm::new();
    let engine = Engine::open(&Options::new(to), Arc::default(), alarm)?;
    let mut saving = Saving {
        months: engine.months(),
        batch: OwnedWriteBatch::with_capacity(engine.db.clone(), BATCH_ROWS),
        batch_bytes: 0,
        engine: &engine,
        latest: BTreeMap::new(),
        greatest: 0,
        report: Salvage {
            from: from.to_owned(),
            to: to.to_owned(),
            ..Salvage::default()
        },
    };
    saving.tables(&found).map_err(in_old)?;
    saving.journals(&found).map_err(in_old)?;
    saving.finish().map_err(in_new)?;
    Ok(saving.report)
}

/// What a keyspace holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Entry,
    Inbox,
    Cursor,
    Mark,
    FanOut,
    Record,
    Taken,
    Meta,
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            layout::CURSOR => Self::Cursor,
            layout::MARK => Self::Mark,
            layout::FAN_OUT => Self::FanOut,
            layout::RECORD => Self::Record,
            layout::TAKEN => Self::Taken,
            layout::META => Self::Meta,
            _ if name.starts_with(layout::ENTRY_PREFIX) => Self::Entry,
            _ if name.starts_with(layout::INBOX_PREFIX) => Self::Inbox,
            _ => return None,
        })
    }

    /// From a row, where the names are lost. Records have no shape of their own: they are told by
    /// the length of no other key, so those with a key of 20, 16 or 12 bytes may be taken for others
    /// only if their values parse as such.
    fn guess(key: &[u8], value: &[u8]) -> Option<Self> {
        match key.len() {
            20 if EntryView::parse(value).is_some() => Some(Self::Entry),
            20 if layout::parse_mark(UserId(0), value).is_some() => Some(Self::Mark),
            20 if layout::parse_fan_out(value).is_some() => Some(Self::FanOut),
            16 if layout::parse_inbox(value).is_some() => Some(Self::Inbox),
            12 if layout::parse_cursor(value).is_some() => Some(Self::Cursor),
            _ => None,
        }
    }
}

/// Its number, and the value unless it was deleted.
type Version = (u64, Option<Vec<u8>>);

struct Saving<'a> {
    engine: &'a Engine,
    months: Arc<Months>,
    batch: OwnedWriteBatch,
    batch_bytes: usize,
    /// Of rows that come in versions.
    latest: BTreeMap<(Kind, Vec<u8>), Version>,
    greatest: u64,
    report: Salvage,
}

impl Saving<'_> {
    fn tables(&mut self, found: &Survey) -> io::Result<()> {
        for damage in &found.damage {
            // Journals are read again, and tables too.
            if damage.at.is_none() {
                self.report.lost.push(damage.clone());
            }
        }
        for tree in found
            .trees
            .iter()
            .filter(|tree| tree.id != tables::NAMES_ID)
        {
            let known = found.names.get(&tree.id).map(|name| Kind::of(name));
            let names_are_whole = !self.names_are_lost(found);
            if known.is_none() && names_are_whole {
                // Deleted, and not yet removed.
                continue;
            }
            self.tree(tree, known.flatten())?;
        }
        Ok(())
    }

    fn names_are_lost(&self, found: &Survey) -> bool {
        let names = found.trees.iter().find(|tree| tree.id == tables::NAMES_ID);
        names.is_none_or(|names| {
            let lost = |damage: &Damage| damage.file.starts_with(&names.dir);
            names.list.is_none() || found.damage.iter().any(lost)
        })
    }

    fn tree(&mut self, tree: &Tree, kind: Option<Kind>) -> io::Result<()> {
        let listed = tree
            .tables
            .iter()
            .map(|table| (table.path.clone(), table.number_base));
        let mut files: Vec<(PathBuf, u64)> = listed.collect();
        if tree.list.is_none() {
            // Among them may be tables that others have replaced: what was deleted since may return.
            let all = tables::table_files(tree)?.into_iter();
            files = all.map(|path| (path, 0)).collect();
        }
        for (path, number_base) in files {
            if !path.is_file() {
                continue;
            }
            let bad = tables::each_row(&path, number_base, |row| {
                let value = (!row.is_tombstone()).then_some(&row.value[..]);
                self.row(kind, row.key.seqno, &row.key.user_key, value)
                    .map_err(io::Error::other)
            })?;
            for at in bad {
                let bytes = tables::bad_bytes(&path, at)?;
                self.lose(&path, at, bytes, "a block cannot be read");
            }
        }
        Ok(())
    }

    fn journals(&mut self, found: &Survey) -> io::Result<()> {
        let names_are_lost = self.names_are_lost(found);
        let mut before = None;
        for (_, path) in journal::list(&self.report.from.clone())? {
            let mut reader = JournalReader::open(&path)?;
            let mut at = 0;
            while at < reader.data_bytes() {
                let commit = match reader.commit(at)? {
                    Ok(commit) => commit,
                    Err(_) => {
                        let next = reader.find_commit(at + 1, before)?;
                        let end = next.map_or(reader.data_bytes(), |next| next.at);
                        let what = match next {
                            Some(_) => "a commit cannot be read",
                            None => "the last commit cannot be read, or has no end",
                        };
                        self.lose(&path, at, end - at, what);
                        match next {
                            Some(next) => next,
                            None => break,
                        }
                    }
                };
                // A number that cannot be right is that of a commit that is.
                let number = match before {
                    Some(before) if !follows(Some(before), commit.number) => before + 1,
                    _ => commit.number,
                };
                before = Some(number);
                for row in reader.rows(&commit)? {
                    let known = found.names.get(&row.keyspace).map(|name| Kind::of(name));
                    if known.is_none() && !names_are_lost {
                        continue;
                    }
                    self.row(known.flatten(), number, &row.key, row.value.as_deref())
                        .map_err(io::Error::other)?;
                }
                at = commit.end;
            }
        }
        Ok(())
    }

    fn lose(&mut self, file: &Path, at: u64, bytes: u64, what: &str) {
        self.report.lost_bytes += bytes;
        self.report.lost.push(Damage {
            file: file.to_owned(),
            at: Some(at),
            what: format!("{what}; {bytes} bytes"),
        });
    }

    fn row(
        &mut self,
        kind: Option<Kind>,
        number: u64,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), fjall::Error> {
        let kind = kind.or_else(|| Kind::guess(key, value?));
        match (kind, value) {
            (Some(Kind::Entry), Some(value)) => self.entry(key, value),
            (Some(Kind::Inbox), Some(value)) => self.reference(key, value),
            // Nobody deletes these.
            (Some(Kind::Entry | Kind::Inbox), None) => Ok(()),
            (Some(kind), value) => {
                let place = (kind, key.to_vec());
                let known = self.latest.get(&place);
                if known.is_none_or(|(known, _)| *known <= number) {
                    self.latest
                        .insert(place, (number, value.map(<[u8]>::to_vec)));
                }
                Ok(())
            }
            (None, _) => {
                self.unknown("row", key);
                Ok(())
            }
        }
    }

    fn unknown(&mut self, kind: &str, key: &[u8]) {
        self.report.rows_unknown += 1;
        if self.report.unknown_examples.len() < EXAMPLES_MAX {
            let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            self.report.unknown_examples.push(format!("{kind} {key}"));
        }
    }

    fn entry(&mut self, key: &[u8], value: &[u8]) -> Result<(), fjall::Error> {
        let entry = EntryView::parse(value).zip(layout::conv_key_number(key));
        let Some((entry, at)) = entry.filter(|(_, at)| self.has_month(*at)) else {
            self.unknown("entry", key);
            return Ok(());
        };
        let key = layout::conv_key(&self.engine.hash.h12(entry.conv), at);
        if let Some(partition) = self.months.entries.get(&Month::of(at)) {
            self.batch.insert(partition, key, value);
        }
        self.greatest = self.greatest.max(at);
        self.written(value.len())
    }

    fn reference(&mut self, key: &[u8], value: &[u8]) -> Result<(), fjall::Error> {
        let seq = layout::inbox_key_seq(key).filter(|_| layout::parse_inbox(value).is_some());
        let Some(seq) = seq.filter(|seq| self.has_month(seq.0)) else {
            self.unknown("inbox", key);
            return Ok(());
        };
        if let Some(partition) = self.months.inboxes.get(&Month::of(seq.0)) {
            self.batch.insert(partition, key, value);
        }
        self.greatest = self.greatest.max(seq.0);
        self.written(value.len())
    }

    /// Created if need be. False if the store would hold too many, or the engine refuses.
    fn has_month(&mut self, number: u64) -> bool {
        let month = Month::of(number);
        if self.months.entries.contains_key(&month) && self.months.inboxes.contains_key(&month) {
            return true;
        }
        self.engine
            .create_month(&mut self.months, month)
            .unwrap_or(false)
    }

    fn written(&mut self, bytes: usize) -> Result<(), fjall::Error> {
        self.batch_bytes += bytes;
        if self.batch.len() >= BATCH_ROWS || self.batch_bytes >= BATCH_BYTES {
            self.commit()?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), fjall::Error> {
        let next = OwnedWriteBatch::with_capacity(self.engine.db.clone(), BATCH_ROWS);
        self.batch_bytes = 0;
        std::mem::replace(&mut self.batch, next).commit()
    }

    fn finish(&mut self) -> io::Result<()> {
        let mut ceiling = 0;
        for ((kind, key), (_, value)) in std::mem::take(&mut self.latest) {
            let Some(value) = value else {
                continue;
            };
            if kind == Kind::Meta {
                if key == layout::META_FORMAT.as_bytes()
                    && value.as_slice() > layout::FORMAT.to_be_bytes().as_slice()
                {
                    let text = "the old store has a later format than this program knows";
                    return Err(io::Error::other(text));
                }
                if key == layout::META_CLOCK.as_bytes() {
                    let found = value.as_slice().try_into().map(u64::from_be_bytes);
                    ceiling = ceiling.max(found.unwrap_or(0));
                }
                continue;
            }
            self.versioned(kind, &key, &value)
                .map_err(io::Error::other)?;
        }
        let least = self.greatest.saturating_add(CEILING_LEAD_US);
        self.report.ceiling = ceiling.max(least);
        let clock = self.report.ceiling.to_be_bytes();
        self.batch
            .insert(&self.engine.meta, layout::META_CLOCK, clock);
        self.commit().map_err(io::Error::other)?;
        let synced = self.engine.db.persist(PersistMode::SyncAll);
        synced.map_err(io::Error::other)?;
        self.count().map_err(io::Error::other)
    }

    /// A row may have been found more than once, in a journal and in tables.
    fn count(&mut self) -> Result<(), fjall::Error> {
        for partition in self.months.entries.values() {
            self.report.entries += partition.len()? as u64;
        }
        for partition in self.months.inboxes.values() {
            self.report.references += partition.len()? as u64;
        }
        Ok(())
    }

    fn versioned(&mut self, kind: Kind, key: &[u8], value: &[u8]) -> Result<(), fjall::Error> {
        let engine = self.engine;
        let number = layout::conv_key_number(key);
        let conv_key = |conv| number.map(|number| layout::conv_key(&engine.hash.h12(conv), number));
        let (keyspace, key_new, count) = match kind {
            Kind::Cursor => {
                let cursor = layout::parse_cursor(value);
                self.greatest = self.greatest.max(cursor.map_or(0, |seq| seq.0));
                let key = cursor.map(|_| key.to_vec());
                (&engine.cursor, key, &mut self.report.cursors)
            }
            Kind::Mark => {
                let mark = layout::parse_mark(UserId(0), value);
                let key = mark.and_then(|(conv, _)| conv_key(conv)).map(Vec::from);
                (&engine.mark, key, &mut self.report.watermarks)
            }
            Kind::FanOut => {
                let conv = layout::parse_fan_out(value);
                let key = conv.and_then(conv_key).map(Vec::from);
                (&engine.fan_out, key, &mut self.report.fan_outs)
            }
            Kind::Record => {
                let key = layout::parse_record(value).map(|_| key.to_vec());
                (&engine.record, key, &mut self.report.records)
            }
            Kind::Taken => {
                let key = layout::parse_taken(value).map(|_| key.to_vec());
                (&engine.taken, key, &mut self.report.taken)
            }
            Kind::Entry | Kind::Inbox | Kind::Meta => return Ok(()),
        };
        match key_new {
            Some(key_new) => {
                *count += 1;
                self.batch.insert(keyspace, key_new, value);
                self.written(value.len())
            }
            None => {
                self.unknown("versioned row", key);
                Ok(())
            }
        }
    }
}
