//! The commit thread's side of the message family.
//!
//! A commit is one atomic batch of the engine with one `fdatasync`. Appends are blind: nothing is
//! read before an entry or a reference is written; only who withdraws one reads it first. Cursors and watermarks merge by maximum with
//! what is stored; as this thread alone writes them, it remembers those of late and reads only the
//! others. What the commit that is being put together has merged is kept beside the batch until
//! its end.
//!
//! # Invariants
//! * The ceiling is raised in the same batch that comes close to it.
//! * A command that is refused leaves nothing in the batch.
//! * What is remembered is stored: it is noted after the commit.

use super::engine::{Engine, Months};
use super::failure::{Failure, write_failure};
use super::layout::{self, ConvKey, CursorKey, InboxKey, InboxValue};
use super::month::{DAY_US, Month};
use super::recent::Recent;
use crate::ceiling::Ceiling;
use crate::messages::{Cmd, Entry, InboxRef, Mark, Messages, Reply, Watermark};
use crate::{Error, Request, Writer};
use fjall::{OwnedWriteBatch, PersistMode, UserValue};
use portico_wire::ids::{ConvId, DeviceId, Seq, UserId};
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// Cursors, and watermarks, that are remembered without fail; up to twice as many are, at some 60
/// bytes each.
const RECENT_MAX: usize = 65_536;

pub(super) struct MessageWriter {
    engine: Arc<Engine>,
    months: Arc<Months>,
    ceiling: Ceiling,
    /// As they are stored.
    cursors: Recent<CursorKey, Seq>,
    marks: Recent<ConvKey, Watermark>,
    /// For the value of one entry. Kept for its memory.
    scratch: Vec<u8>,
}

/// One commit while it is put together.
///
/// Rows of months are gathered here and given to the engine in the order of their keys: it inserts
/// one after the other into a sorted list too large for the caches of a CPU, and neighbours find
/// what their predecessor has just fetched.
struct Commit {
    batch: OwnedWriteBatch,
    entries: Vec<(Month, ConvKey, UserValue)>,
    inboxes: Vec<(Month, InboxKey, InboxValue)>,
    /// Merged among themselves, not yet with what is stored.
    cursors: FxHashMap<CursorKey, Seq>,
    marks: FxHashMap<ConvKey, (ConvId, Watermark)>,
    /// The greatest number that counts for the ceiling, and the greatest of a row in a month.
    greatest: u64,
    newest_row: u64,
    expire: Option<Seq>,
}

impl MessageWriter {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        Self {
            months: engine.months(),
            ceiling: Ceiling::stored(engine.ceiling()),
            engine,
            cursors: Recent::new(RECENT_MAX),
            marks: Recent::new(RECENT_MAX),
            scratch: Vec::new(),
        }
    }

    fn try_apply(
        &mut self,
        batch: &[Request<Messages>],
        results: &mut Vec<Result<Reply, Error>>,
    ) -> Result<(), fjall::Error> {
        // A direct message has two rows and a watermark; a group's batch grows by itself.
        let rows = batch.len() * 3 + 1;
        let batch_of_engine = OwnedWriteBatch::with_capacity(self.engine.db.clone(), rows);
        let mut commit = Commit {
            batch: batch_of_engine.durability(Some(PersistMode::SyncData)),
            entries: Vec::with_capacity(batch.len()),
            inboxes: Vec::with_capacity(batch.len()),
            cursors: FxHashMap::default(),
            marks: FxHashMap::default(),
            greatest: 0,
            newest_row: 0,
            expire: None,
        };
        for request in batch {
            match self.stage(&request.cmd, &mut commit) {
                Ok(()) => results.push(Ok(Reply::Done)),
                Err(Failure::Refused(error)) => results.push(Err(error)),
                Err(Failure::Engine(error)) => return Err(error),
            }
        }
        self.finish(commit)
    }

    fn stage(&mut self, cmd: &Cmd, commit: &mut Commit) -> Result<(), Failure> {
        cmd.check(self.engine.value_bytes_max)?;
        match cmd {
            Cmd::Append {
                entry,
                refs,
                fan_out,
            } => self.stage_append(entry, refs, *fan_out, commit)?,
            Cmd::AddRefs { refs } => {
                self.prepare_refs(refs)?;
                Self::stage_refs(refs, commit);
            }
            Cmd::EndFanOut { conv, conv_seq } => {
                let key = layout::conv_key(&self.engine.hash.h12(*conv), conv_seq.0);
                commit.batch.remove(&self.engine.fan_out, key);
            }
            Cmd::Redact { conv, conv_seq } => self.stage_redact(*conv, conv_seq.0, commit)?,
            Cmd::SetCursors { cursors } => stage_cursors(cursors, commit),
            Cmd::SetWatermarks { marks } => self.stage_marks(marks, commit),
            Cmd::Expire { before } => commit.expire = commit.expire.max(Some(*before)),
            Cmd::FanOuts { .. }
            | Cmd::Replay { .. }
            | Cmd::History { .. }
            | Cmd::References { .. }
            | Cmd::Count { .. }
            | Cmd::Find { .. }
            | Cmd::Cursors { .. }
            | Cmd::Watermarks { .. }
            | Cmd::Ceiling => return Err(Error::invalid("a read among writes").into()),
        }
        commit.greatest = commit.greatest.max(cmd.greatest_seq());
        Ok(())
    }

    fn stage_append(
        &mut self,
        entry: &Entry,
        refs: &[InboxRef],
        fan_out: bool,
        commit: &mut Commit,
    ) -> Result<(), Failure> {
        self.prepare_refs(refs)?;
        let month = self.prepare_month(entry.conv_seq.0)?;
        let key = layout::conv_key(&self.engine.hash.h12(entry.conv), entry.conv_seq.0);
        layout::put_entry(&mut self.scratch, entry);
        let value = UserValue::from(self.scratch.as_slice());
        commit.entries.push((month, key, value));
        commit.newest_row = commit.newest_row.max(entry.conv_seq.0);
        if fan_out {
            let value = layout::fan_out_value(entry.conv);
            commit.batch.insert(&self.engine.fan_out, key, value);
        }
        Self::stage_refs(refs, commit);
        Ok(())
    }

    /// The entry as this commit has left it or as it is stored, without its body.
    fn stage_redact(&self, conv: ConvId, at: u64, commit: &mut Commit) -> Result<(), Failure> {
        let month = Month::of(at);
        let Some(partition) = self.months.entries.get(&month) else {
            return Ok(());
        };
        let key = layout::conv_key(&self.engine.hash.h12(conv), at);
        let staged = commit.entries.iter_mut().rev();
        let mut staged = staged.filter(|(of, staged_key, _)| (*of, staged_key) == (month, &key));
        if let Some((_, _, value)) = staged.next() {
            if let Some(redacted) = layout::redacted(value, conv) {
                *value = redacted.into();
            }
            return Ok(());
        }
        let Some(value) = partition.get(key)? else {
            return Ok(());
        };
        match layout::redacted(&value, conv) {
            Some(redacted) => commit.entries.push((month, key, redacted.into())),
            None => self.engine.count_damage("entry"),
        }
        Ok(())
    }

    /// Creates what the references need, so that staging them cannot fail half way.
    fn prepare_refs(&mut self, refs: &[InboxRef]) -> Result<(), Failure> {
        let mut last = None;
        for reference in refs {
            let month = Month::of(reference.seq.0);
            if last != Some(month) {
                self.prepare_month(reference.seq.0)?;
                last = Some(month);
            }
        }
        Ok(())
    }

    fn stage_refs(refs: &[InboxRef], commit: &mut Commit) {
        for reference in refs {
            let month = Month::of(reference.seq.0);
            let key = layout::inbox_key(reference.user, reference.seq);
            commit
                .inboxes
                .push((month, key, layout::inbox_value(reference)));
            commit.newest_row = commit.newest_row.max(reference.seq.0);
        }
    }

    fn stage_marks(&self, marks: &[Mark], commit: &mut Commit) {
        for mark in marks {
            let key = layout::conv_key(&self.engine.hash.h12(mark.conv), mark.user.0);
            let none = || (mark.conv, Watermark::none(mark.user));
            let (_, water) = commit.marks.entry(key).or_insert_with(none);
            water.merge(mark);
        }
    }

    fn prepare_month(&mut self, seq: u64) -> Result<Month, Failure> {
        let month = Month::of(seq);
        let known =
            self.months.entries.contains_key(&month) && self.months.inboxes.contains_key(&month);
        if !known && !self.engine.create_month(&mut self.months, month)? {
            let error = "the store holds as many months as it can; expire old ones first";
            return Err(Error::invalid(error).into());
        }
        Ok(month)
    }

    fn stored_cursor(&self, key: &CursorKey) -> Result<Option<Seq>, fjall::Error> {
        if let Some(cursor) = self.cursors.get(key) {
            return Ok(Some(cursor));
        }
        let Some(value) = self.engine.cursor.get(key)? else {
            return Ok(None);
        };
        let parsed = layout::parse_cursor(&value);
        if parsed.is_none() {
            self.engine.count_damage("cursor");
        }
        Ok(parsed)
    }

    fn stored_mark(
        &self,
        key: &ConvKey,
        conv: ConvId,
        user: UserId,
    ) -> Result<Option<Watermark>, fjall::Error> {
        if let Some(water) = self.marks.get(key) {
            return Ok(Some(water));
        }
        let Some(value) = self.engine.mark.get(key)? else {
            return Ok(None);
        };
        let parsed = layout::parse_mark(user, &value).filter(|(of, _)| *of == conv);
        if parsed.is_none() {
            self.engine.count_damage("mark");
        }
        Ok(parsed.map(|(_, water)| water))
    }

    /// Adds those that exceed what is stored, and returns them.
    fn add_cursors(
        &self,
        staged: FxHashMap<CursorKey, Seq>,
        batch: &mut OwnedWriteBatch,
    ) -> Result<Vec<(CursorKey, Seq)>, fjall::Error> {
        let mut rows: Vec<_> = staged.into_iter().collect();
        rows.sort_unstable_by_key(|(key, _)| *key);
        let mut added = Vec::with_capacity(rows.len());
        for (key, seq) in rows {
            // What is there already need not be written.
            if self.stored_cursor(&key)?.is_none_or(|stored| stored < seq) {
                batch.insert(&self.engine.cursor, key, layout::cursor_value(seq));
                added.push((key, seq));
            }
        }
        Ok(added)
    }

    /// Merges with what is stored, adds what that changes, and returns it.
    fn add_marks(
        &self,
        staged: FxHashMap<ConvKey, (ConvId, Watermark)>,
        batch: &mut OwnedWriteBatch,
    ) -> Result<Vec<(ConvKey, Watermark)>, fjall::Error> {
        let mut rows: Vec<_> = staged.into_iter().collect();
        rows.sort_unstable_by_key(|(key, _)| *key);
        let mut added = Vec::with_capacity(rows.len());
        for (key, (conv, mut water)) in rows {
            let stored = self.stored_mark(&key, conv, water.user)?;
            if let Some(stored) = &stored {
                water.join(stored);
            }
            if stored != Some(water) {
                batch.insert(&self.engine.mark, key, layout::mark_value(conv, &water));
                added.push((key, water));
            }
        }
        Ok(added)
    }

    fn finish(&mut self, commit: Commit) -> Result<(), fjall::Error> {
        let Commit {
            mut batch,
            mut entries,
            mut inboxes,
            cursors,
            marks,
            greatest,
            newest_row,
            expire,
        } = commit;
        // Stable: of two rows with one key the later one counts.
        entries.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        for (month, key, value) in entries {
            let partition = self.months.entries.get(&month);
            batch.insert(partition.ok_or(fjall::Error::KeyspaceDeleted)?, key, value);
        }
        inboxes.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        for (month, key, value) in inboxes {
            let partition = self.months.inboxes.get(&month);
            batch.insert(partition.ok_or(fjall::Error::KeyspaceDeleted)?, key, value);
        }
        let cursors = self.add_cursors(cursors, &mut batch)?;
        let marks = self.add_marks(marks, &mut batch)?;
        let raised = (greatest > 0)
            .then(|| self.ceiling.needed_for(greatest))
            .flatten();
        if let Some(to) = raised {
            batch.insert(&self.engine.meta, layout::META_CLOCK, to.0.to_be_bytes());
        }
        batch.commit()?;
        for (key, seq) in cursors {
            self.cursors.put(key, seq);
        }
        for (key, water) in marks {
            self.marks.put(key, water);
        }
        if let Some(to) = raised {
            self.ceiling.raise(to);
            self.engine.note_ceiling(to);
        }
        if let Some(before) = expire {
            self.engine.drop_months(&mut self.months, before)?;
        }
        self.create_ahead(newest_row)
    }

    /// The next month is made a day ahead, so that its first messages find it.
    fn create_ahead(&mut self, newest_row: u64) -> Result<(), fjall::Error> {
        let soon = Month::of(newest_row.saturating_add(DAY_US));
        if newest_row > 0 && !self.months.entries.contains_key(&soon) {
            self.engine.create_month(&mut self.months, soon)?;
        }
        Ok(())
    }
}

fn stage_cursors(cursors: &[(UserId, DeviceId, Seq)], commit: &mut Commit) {
    for (user, device, seq) in cursors {
        let key = layout::cursor_key(*user, *device);
        let staged = commit.cursors.entry(key).or_insert(*seq);
        *staged = (*staged).max(*seq);
    }
}

impl Writer<Messages> for MessageWriter {
    fn apply(&mut self, batch: &[Request<Messages>], results: &mut Vec<Result<Reply, Error>>) {
        if let Err(error) = self.try_apply(batch, results) {
            self.engine.note_failure(&error);
            let error = write_failure(&self.engine.dir, &error);
            // Refused commands keep their own answer; all others share the fate of the commit.
            for result in results.iter_mut().filter(|result| result.is_ok()) {
                *result = Err(error.clone());
            }
            results.resize(batch.len(), Err(error));
        }
    }
}
