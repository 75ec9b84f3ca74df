//! The reader threads' side of the message family. Each command reads one snapshot of the
//! database, so it sees a commit whole or not at all.

use super::engine::{Engine, Months};
use super::failure::{Failure, read_failure};
use super::layout::{self, EntryView};
use super::month::Month;
use crate::messages::{
    Cmd, Entry, InboxRef, Item, Messages, PAGE_ITEMS_MAX, PageBound, Reply, SEQ_MAX, Wanted,
    Watermark,
};
use crate::{Error, Reader};
use fjall::{Readable, Snapshot};
use portico_wire::ids::{ConvId, ConvSeq, Seq, UserId};
use std::ops::Bound;
use std::sync::Arc;

pub(super) struct MessageReader {
    engine: Arc<Engine>,
}

impl MessageReader {
    pub(super) const fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }
}

impl Reader<Messages> for MessageReader {
    fn read(&mut self, cmd: &Cmd) -> Result<Reply, Error> {
        let view = View {
            engine: &self.engine,
            months: self.engine.months(),
            snapshot: self.engine.db.snapshot(),
        };
        view.read(cmd).map_err(|failure| match failure {
            Failure::Refused(error) => error,
            Failure::Engine(error) => read_failure(&self.engine.dir, &error),
        })
    }
}

/// The store at one moment.
struct View<'a> {
    engine: &'a Engine,
    months: Arc<Months>,
    snapshot: Snapshot,
}

impl View<'_> {
    fn read(&self, cmd: &Cmd) -> Result<Reply, Failure> {
        cmd.check(self.engine.value_bytes_max)?;
        match cmd {
            Cmd::FanOuts { after, limit } => self.fan_outs(*after, *limit),
            Cmd::Replay {
                user,
                after,
                limit,
                max_bytes,
            } => self.replay(*user, *after, PageBound::new(*limit, *max_bytes)),
            Cmd::History {
                conv,
                after,
                before,
                forward,
                limit,
                max_bytes,
            } => {
                let page = PageBound::new(*limit, *max_bytes);
                self.history(*conv, (*after, *before), *forward, page)
            }
            Cmd::References {
                user,
                before,
                limit,
            } => self.references(*user, *before, *limit),
            Cmd::Count {
                conv,
                after,
                before,
                not_by,
                op,
                kind,
                limit,
            } => {
                let counts = |entry: &EntryView<'_>| {
                    let is_meant = (entry.meta.op, entry.meta.kind) == (*op, *kind);
                    is_meant && entry.sender != *not_by && !entry.body.is_empty()
                };
                self.count(*conv, (*after, *before), *limit, counts)
            }
            Cmd::Find {
                conv,
                since,
                sender,
                device,
                msg_ids,
            } => self.find(*conv, *since, Wanted::new(*sender, *device, msg_ids)),
            Cmd::Cursors { user } => self.cursors(*user),
            Cmd::Watermarks { conv } => self.watermarks(*conv),
            Cmd::Ceiling => Ok(Reply::Ceiling(self.engine.ceiling())),
            Cmd::Append { .. }
            | Cmd::AddRefs { .. }
            | Cmd::EndFanOut { .. }
            | Cmd::Redact { .. }
            | Cmd::SetCursors { .. }
            | Cmd::SetWatermarks { .. }
            | Cmd::Expire { .. } => Err(Error::invalid("a write among reads").into()),
        }
    }

    /// From the month of the cursor to the last.
    fn replay(&self, user: UserId, after: Seq, mut page: PageBound) -> Result<Reply, Failure> {
        let mut items = Vec::new();
        if after.0 >= SEQ_MAX {
            return Ok(Reply::Page { items, more: false });
        }
        let from = Bound::Excluded(layout::inbox_key(user, after));
        let to = Bound::Included(layout::inbox_key(user, Seq(u64::MAX)));
        for inbox in self.months.inboxes.range(Month::of(after.0)..) {
            for row in self.snapshot.range(inbox.1, (from, to)) {
                let (key, value) = row.into_inner()?;
                let place = layout::inbox_key_seq(&key).zip(layout::parse_inbox(&value));
                let Some((seq, (conv, conv_seq))) = place else {
                    self.engine.count_damage("inbox");
                    continue;
                };
                if page.is_full() {
                    return Ok(Reply::Page { items, more: true });
                }
                let Some(row) = self.entry_row(conv, conv_seq)? else {
                    continue;
                };
                let Some(entry) = self.parse_entry(&row, conv) else {
                    continue;
                };
                if !page.admit(entry.body.len()) {
                    return Ok(Reply::Page { items, more: true });
                }
                let entry = entry.to_entry(conv_seq);
                items.push(Item { seq, entry });
            }
        }
        Ok(Reply::Page { items, more: false })
    }

    fn entry_row(&self, conv: ConvId, at: ConvSeq) -> Result<Option<fjall::Slice>, Failure> {
        let Some(entries) = self.months.entries.get(&Month::of(at.0)) else {
            return Ok(None);
        };
        let key = layout::conv_key(&self.engine.hash.h12(conv), at.0);
        Ok(self.snapshot.get(entries, key)?)
    }

    /// `None` if the row is damaged, or belongs to a conversation with the same hash.
    fn parse_entry<'r>(&self, row: &'r [u8], conv: ConvId) -> Option<EntryView<'r>> {
        let entry = EntryView::parse(row);
        if entry.is_none() {
            self.engine.count_damage("entry");
        }
        entry.filter(|entry| entry.conv == conv)
    }

    /// From the month of `before` back to that of `after`, or the other way round.
    fn history(
        &self,
        conv: ConvId,
        between: (ConvSeq, ConvSeq),
        forward: bool,
        mut page: PageBound,
    ) -> Result<Reply, Failure> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut more = false;
        self.walk(conv, between, forward, |at, entry| {
            more = !page.admit(entry.body.len());
            if !more {
                entries.push(entry.to_entry(at));
            }
            !more
        })?;
        Ok(Reply::Entries { entries, more })
    }

    fn count(
        &self,
        conv: ConvId,
        between: (ConvSeq, ConvSeq),
        limit: u32,
        counts: impl Fn(&EntryView<'_>) -> bool,
    ) -> Result<Reply, Failure> {
        let (mut counted, mut looked_at) = (0, 0);
        self.walk(conv, between, false, |_, entry| {
            counted += u32::from(counts(&entry));
            looked_at += 1;
            counted < limit && looked_at < PAGE_ITEMS_MAX
        })?;
        Ok(Reply::Count(counted))
    }

    /// Entries between two numbers, both exclusive, for as long as `visit` says so.
    fn walk(
        &self,
        conv: ConvId,
        (after, before): (ConvSeq, ConvSeq),
        forward: bool,
        mut visit: impl FnMut(ConvSeq, EntryView<'_>) -> bool,
    ) -> Result<(), Failure> {
        let first = after.0.saturating_add(1);
        // A range that ends before it begins makes the engine panic.
        if first >= before.0 {
            return Ok(());
        }
        let h12 = self.engine.hash.h12(conv);
        let from = Bound::Included(layout::conv_key(&h12, first));
        let to = Bound::Excluded(layout::conv_key(&h12, before.0));
        let entries = &self.months.entries;
        let mut months = entries.range(Month::of(first)..=Month::of(before.0));
        while let Some((_, month)) = if forward {
            months.next()
        } else {
            months.next_back()
        } {
            let mut rows = self.snapshot.range(month, (from, to));
            while let Some(row) = if forward {
                rows.next()
            } else {
                rows.next_back()
            } {
                let (key, value) = row.into_inner()?;
                let entry = self.parse_entry(&value, conv);
                let Some((at, entry)) = layout::conv_key_number(&key).zip(entry) else {
                    continue;
                };
                if !visit(ConvSeq(at), entry) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// From the month of `before` back to the first.
    fn references(&self, user: UserId, before: Seq, limit: u32) -> Result<Reply, Failure> {
        let limit = limit.min(PAGE_ITEMS_MAX) as usize;
        let mut refs = Vec::new();
        let from = Bound::Included(layout::inbox_key(user, Seq(0)));
        let to = Bound::Excluded(layout::inbox_key(user, before));
        if before.0 == 0 {
            return Ok(Reply::References { refs, more: false });
        }
        for inbox in self.months.inboxes.range(..=Month::of(before.0)).rev() {
            for row in self.snapshot.range(inbox.1, (from, to)).rev() {
                let (key, value) = row.into_inner()?;
                let place = layout::inbox_key_seq(&key).zip(layout::parse_inbox(&value));
                let Some((seq, (conv, conv_seq))) = place else {
                    self.engine.count_damage("inbox");
                    continue;
                };
                if refs.len() == limit {
                    return Ok(Reply::References { refs, more: true });
                }
                refs.push(InboxRef {
                    user,
                    seq,
                    conv,
                    conv_seq,
                });
            }
        }
        Ok(Reply::References { refs, more: false })
    }

    fn find(&self, conv: ConvId, since: ConvSeq, mut wanted: Wanted<'_>) -> Result<Reply, Failure> {
        let h12 = self.engine.hash.h12(conv);
        let from = Bound::Included(layout::conv_key(&h12, since.0));
        let to = Bound::Included(layout::conv_key(&h12, u64::MAX));
        for month in self.months.entries.range(Month::of(since.0)..) {
            for row in self.snapshot.range(month.1, (from, to)) {
                let (key, value) = row.into_inner()?;
                let entry = self.parse_entry(&value, conv);
                let Some((at, e)) = layout::conv_key_number(&key).zip(entry) else {
                    continue;
                };
                if wanted.is_all_after(e.sender, e.device, e.msg_id, ConvSeq(at)) {
                    return Ok(wanted.found());
                }
            }
        }
        Ok(wanted.found())
    }

    /// In the order of the hashed keys.
    fn fan_outs(&self, after: Option<(ConvId, ConvSeq)>, limit: u32) -> Result<Reply, Failure> {
        let from = after.map_or(Bound::Unbounded, |(conv, at)| {
            Bound::Excluded(layout::conv_key(&self.engine.hash.h12(conv), at.0))
        });
        let range = (from, Bound::Unbounded);
        let limit = limit.min(PAGE_ITEMS_MAX) as usize;
        let mut open = Vec::new();
        for row in self.snapshot.range(&self.engine.fan_out, range) {
            let (key, value) = row.into_inner()?;
            let place = layout::parse_fan_out(&value).zip(layout::conv_key_number(&key));
            let Some((conv, at)) = place else {
                self.engine.count_damage("fanout");
                continue;
            };
            open.push((conv, ConvSeq(at)));
            if open.len() == limit {
                break;
            }
        }
        Ok(Reply::FanOuts(open))
    }

    fn cursors(&self, user: UserId) -> Result<Reply, Failure> {
        let mut cursors = Vec::new();
        for row in self
            .snapshot
            .prefix(&self.engine.cursor, user.0.to_be_bytes())
        {
            let (key, value) = row.into_inner()?;
            let device = layout::cursor_key_device(&key);
            match device.zip(layout::parse_cursor(&value)) {
                Some(cursor) => cursors.push(cursor),
                None => self.engine.count_damage("cursor"),
            }
        }
        Ok(Reply::Cursors(cursors))
    }

    fn watermarks(&self, conv: ConvId) -> Result<Reply, Failure> {
        let mut marks: Vec<Watermark> = Vec::new();
        let h12 = self.engine.hash.h12(conv);
        for row in self.snapshot.prefix(&self.engine.mark, h12) {
            let (key, value) = row.into_inner()?;
            let user = layout::conv_key_number(&key).map(UserId);
            match user.and_then(|user| layout::parse_mark(user, &value)) {
                Some((of, water)) if of == conv => marks.push(water),
                Some(_) => {}
                None => self.engine.count_damage("mark"),
            }
        }
        Ok(Reply::Watermarks(marks))
    }
}
