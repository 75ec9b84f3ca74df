//! The record family. One thread writes, so reading before writing needs no lock; what a commit
//! has changed already is kept beside its batch, and later commands of the commit see it.

use super::engine::{Engine, unix_s};
use super::failure::{Failure, read_failure, write_failure};
use super::layout;
use crate::records::{
    Cmd, Expect, PAGE_BYTES_MAX, PAGE_ROWS_MAX, Records, Reply, Row, TAKEN_KEPT_S, Table, Version,
};
use crate::{Error, Reader, Request, Writer};
use bytes::Bytes;
use fjall::{OwnedWriteBatch, PersistMode, Readable, Slice};
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

/// Remembered takes that each take looks at, to forget the old ones. More than one, so the sweep
/// is faster than the growth.
const SWEEP_ROWS: usize = 8;

pub(super) struct RecordWriter {
    engine: Arc<Engine>,
    /// From where the sweep of remembered takes goes on.
    sweep_from: Bound<[u8; 16]>,
}

/// What a command finds at its key.
enum Present {
    Absent,
    At(Version),
    Damaged,
}

/// One commit while it is put together.
struct Commit {
    batch: OwnedWriteBatch,
    /// Rows that this commit has changed, by stored key; `None` is deleted.
    changed: BTreeMap<Vec<u8>, Option<(Version, Bytes)>>,
    taken: HashMap<u128, Option<Row>>,
}

impl RecordWriter {
    pub(super) const fn new(engine: Arc<Engine>) -> Self {
        Self {
            engine,
            sweep_from: Bound::Unbounded,
        }
    }

    fn try_apply(
        &mut self,
        batch: &[Request<Records>],
        results: &mut Vec<Result<Reply, Error>>,
    ) -> Result<(), fjall::Error> {
        let batch_of_engine = OwnedWriteBatch::with_capacity(self.engine.db.clone(), batch.len());
        let mut commit = Commit {
            batch: batch_of_engine.durability(Some(PersistMode::SyncData)),
            changed: BTreeMap::new(),
            taken: HashMap::new(),
        };
        for request in batch {
            match self.stage(&request.cmd, &mut commit) {
                Ok(reply) => results.push(Ok(reply)),
                Err(Failure::Refused(error)) => results.push(Err(error)),
                Err(Failure::Engine(error)) => return Err(error),
            }
        }
        let mut batch = commit.batch;
        for (key, row) in commit.changed {
            match row {
                Some((version, value)) => {
                    let value = layout::record_value(version, &value);
                    batch.insert(&self.engine.record, key, value);
                }
                None => batch.remove(&self.engine.record, key),
            }
        }
        batch.commit()
    }

    fn stage(&mut self, cmd: &Cmd, commit: &mut Commit) -> Result<Reply, Failure> {
        cmd.check(self.engine.value_bytes_max)?;
        match cmd {
            Cmd::Put {
                table,
                key,
                value,
                expect,
                version,
            } => {
                let key = layout::record_key(*table, key);
                match self.present(&key, *expect, commit)? {
                    // A repeated command finds its own version.
                    Present::At(present) if present == *version => return Ok(Reply::Done),
                    Present::At(present) => expect.check(Some(present))?,
                    Present::Absent => expect.check(None)?,
                    Present::Damaged => {}
                }
                commit.changed.insert(key, Some((*version, value.clone())));
                Ok(Reply::Done)
            }
            Cmd::Delete { table, key, expect } => {
                let key = layout::record_key(*table, key);
                match self.present(&key, *expect, commit)? {
                    Present::Absent => return Ok(Reply::Done),
                    Present::At(present) => expect.check(Some(present))?,
                    Present::Damaged => {}
                }
                commit.changed.insert(key, None);
                Ok(Reply::Done)
            }
            Cmd::TakeOne { table, prefix, id } => {
                let row = self.take_one(*table, prefix, *id, commit)?;
                Ok(Reply::Taken(row))
            }
            Cmd::Get { .. } | Cmd::Scan { .. } => Err(Error::invalid("a read among writes").into()),
        }
    }

    /// The record as this commit has left it. A damaged one has no version to expect: only who
    /// expects nothing may replace it.
    fn present(&self, key: &[u8], expect: Expect, commit: &Commit) -> Result<Present, Failure> {
        if let Some(row) = commit.changed.get(key) {
            let version = row.as_ref().map(|(version, _)| *version);
            return Ok(version.map_or(Present::Absent, Present::At));
        }
        let Some(value) = self.engine.record.get(key)? else {
            return Ok(Present::Absent);
        };
        if let Some((version, _)) = layout::parse_record(&value) {
            return Ok(Present::At(version));
        }
        self.engine.count_damage("record");
        match expect {
            Expect::Any => Ok(Present::Damaged),
            Expect::Absent | Expect::Version(_) => Err(damaged_record().into()),
        }
    }

    fn take_one(
        &mut self,
        table: Table,
        prefix: &[u8],
        id: u128,
        commit: &mut Commit,
    ) -> Result<Option<Row>, Failure> {
        if let Some(row) = commit.taken.get(&id) {
            return Ok(row.clone());
        }
        if let Some(value) = self.engine.taken.get(id.to_be_bytes())? {
            match layout::parse_taken(&value) {
                Some((_, row)) => return Ok(row),
                // Taking another row would hand out two for one id.
                None => {
                    self.engine.count_damage("taken");
                    return Err(damaged_record().into());
                }
            }
        }
        let row = self.first_under(table, prefix, commit)?;
        if let Some(row) = &row {
            let key = layout::record_key(table, &row.key);
            commit.changed.insert(key, None);
        }
        let value = layout::taken_value(unix_s(), row.as_ref());
        commit
            .batch
            .insert(&self.engine.taken, id.to_be_bytes(), value);
        commit.taken.insert(id, row.clone());
        self.sweep_taken(commit)?;
        Ok(row)
    }

    /// The first row of those that are stored and not changed, and those that were put.
    fn first_under(
        &self,
        table: Table,
        prefix: &[u8],
        commit: &Commit,
    ) -> Result<Option<Row>, Failure> {
        let prefix = layout::record_key(table, prefix);
        let changed = commit.changed.range(prefix.clone()..);
        let put = changed
            .take_while(|(key, _)| key.starts_with(&prefix))
            .find_map(|(key, row)| row.as_ref().map(|row| (key, row)));
        for stored in self.engine.record.prefix(&prefix) {
            let (key, value) = stored.into_inner()?;
            if put.is_some_and(|(put, _)| put.as_slice() < &*key) {
                break;
            }
            if commit.changed.contains_key(&*key) {
                continue;
            }
            match row_of(&key, &value) {
                Some(row) => return Ok(Some(row)),
                None => self.engine.count_damage("record"),
            }
        }
        Ok(put.and_then(|(key, (version, value))| {
            let (_, key) = key.split_first_chunk::<2>()?;
            Some(Row {
                key: Bytes::copy_from_slice(key),
                value: value.clone(),
                version: *version,
            })
        }))
    }

    /// Goes round through what was taken and forgets the old, a few rows per take.
    fn sweep_taken(&mut self, commit: &mut Commit) -> Result<(), Failure> {
        let now = u64::from(unix_s());
        let mut looked_at = 0;
        let range = (self.sweep_from, Bound::Unbounded);
        for row in self.engine.taken.range(range).take(SWEEP_ROWS) {
            let (key, value) = row.into_inner()?;
            looked_at += 1;
            if let Ok(id) = key.as_ref().try_into() {
                self.sweep_from = Bound::Excluded(id);
            }
            let at_s = layout::parse_taken(&value).map(|(at_s, _)| u64::from(at_s));
            if at_s.is_some_and(|at_s| at_s + TAKEN_KEPT_S < now) {
                commit.batch.remove(&self.engine.taken, key);
            }
        }
        if looked_at < SWEEP_ROWS {
            self.sweep_from = Bound::Unbounded;
        }
        Ok(())
    }
}

impl Writer<Records> for RecordWriter {
    fn apply(&mut self, batch: &[Request<Records>], results: &mut Vec<Result<Reply, Error>>) {
        if let Err(error) = self.try_apply(batch, results) {
            self.engine.note_failure(&error);
            let error = write_failure(&self.engine.dir, &error);
            for result in results.iter_mut().filter(|result| result.is_ok()) {
                *result = Err(error.clone());
            }
            results.resize(batch.len(), Err(error));
        }
    }
}

pub(super) struct RecordReader {
    engine: Arc<Engine>,
}

impl RecordReader {
    pub(super) const fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }

    fn try_read(&self, cmd: &Cmd) -> Result<Reply, Failure> {
        cmd.check(self.engine.value_bytes_max)?;
        let snapshot = self.engine.db.snapshot();
        match cmd {
            Cmd::Get { table, key } => {
                let stored = layout::record_key(*table, key);
                let Some(value) = snapshot.get(&self.engine.record, &stored)? else {
                    return Ok(Reply::Value(None));
                };
                match row_of(&stored, &value) {
                    Some(row) => Ok(Reply::Value(Some(row))),
                    None => {
                        self.engine.count_damage("record");
                        Err(damaged_record().into())
                    }
                }
            }
            Cmd::Scan {
                table,
                prefix,
                after,
                limit,
            } => {
                let prefix = layout::record_key(*table, prefix);
                let after = layout::record_key(*table, after);
                let from = if after < prefix {
                    Bound::Included(prefix.clone())
                } else {
                    Bound::Excluded(after)
                };
                let range = snapshot.range(&self.engine.record, (from, Bound::Unbounded));
                self.scan(range, &prefix, *limit)
            }
            Cmd::Put { .. } | Cmd::Delete { .. } | Cmd::TakeOne { .. } => {
                Err(Error::invalid("a write among reads").into())
            }
        }
    }

    fn scan(&self, range: fjall::Iter, prefix: &[u8], limit: u32) -> Result<Reply, Failure> {
        let limit = limit.min(PAGE_ROWS_MAX) as usize;
        let mut bytes = 0;
        let mut rows = Vec::new();
        for stored in range {
            let (key, value) = stored.into_inner()?;
            if !key.starts_with(prefix) {
                break;
            }
            let Some(row) = row_of(&key, &value) else {
                self.engine.count_damage("record");
                continue;
            };
            bytes += row.value.len();
            if bytes > PAGE_BYTES_MAX && !rows.is_empty() {
                break;
            }
            rows.push(row);
            if rows.len() == limit {
                break;
            }
        }
        Ok(Reply::Rows(rows))
    }
}

impl Reader<Records> for RecordReader {
    fn read(&mut self, cmd: &Cmd) -> Result<Reply, Error> {
        self.try_read(cmd).map_err(|failure| match failure {
            Failure::Refused(error) => error,
            Failure::Engine(error) => read_failure(&self.engine.dir, &error),
        })
    }
}

fn row_of(stored_key: &[u8], value: &Slice) -> Option<Row> {
    let (_, key) = stored_key.split_first_chunk::<2>()?;
    let (version, value) = layout::parse_record(value)?;
    Some(Row {
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(value),
        version,
    })
}

/// Of one record: the store goes on.
fn damaged_record() -> Error {
    Error::invalid("the stored record is damaged; putting it anew without expectation mends it")
}
