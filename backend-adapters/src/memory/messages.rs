//! The message family over maps of lists.

use super::{VALUE_BYTES_MAX, log::Log};
use crate::Error;
use crate::ceiling::Ceiling;
use crate::messages::{
    Cmd, Entry, EntryMeta, InboxRef, Item, Mark, PAGE_ITEMS_MAX, PageBound, Reply, Wanted,
    Watermark,
};
use bytes::Bytes;
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, MsgId, Seq, UserId};
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;
use std::ops::Bound;

/// An entry, without what names it.
#[derive(Debug)]
struct Stored {
    sender: UserId,
    msg_id: MsgId,
    meta: EntryMeta,
    device: DeviceId,
    body: Bytes,
}

impl Stored {
    fn entry(&self, conv: ConvId, conv_seq: ConvSeq) -> Entry {
        Entry {
            conv,
            conv_seq,
            sender: self.sender,
            device: self.device,
            msg_id: self.msg_id,
            meta: self.meta,
            body: self.body.clone(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    entries: FxHashMap<ConvId, Log<ConvSeq, Stored>>,
    inboxes: FxHashMap<UserId, Log<Seq, (ConvId, ConvSeq)>>,
    fan_outs: BTreeSet<(ConvId, ConvSeq)>,
    /// By device.
    cursors: FxHashMap<UserId, Log<DeviceId, Seq>>,
    /// By user.
    watermarks: FxHashMap<ConvId, Log<UserId, Watermark>>,
    ceiling: Ceiling,
}

/// A page of what lies between.
fn history<'a>(
    conv: ConvId,
    between: impl Iterator<Item = &'a (ConvSeq, Stored)>,
    mut page: PageBound,
) -> Reply {
    let mut entries = Vec::new();
    let mut more = false;
    for (at, stored) in between {
        more = !page.admit(stored.body.len());
        if more {
            break;
        }
        entries.push(stored.entry(conv, *at));
    }
    Reply::Entries { entries, more }
}

impl State {
    pub(super) fn write(&mut self, cmd: Cmd) -> Result<Reply, Error> {
        cmd.check(VALUE_BYTES_MAX)?;
        let greatest = cmd.greatest_seq();
        if greatest > 0
            && let Some(to) = self.ceiling.needed_for(greatest)
        {
            self.ceiling.raise(to);
        }
        match cmd {
            Cmd::Append {
                entry,
                refs,
                fan_out,
            } => {
                let place = (entry.conv, entry.conv_seq);
                let conv = self.entries.entry(entry.conv).or_default();
                let stored = Stored {
                    sender: entry.sender,
                    msg_id: entry.msg_id,
                    meta: entry.meta,
                    device: entry.device,
                    body: entry.body,
                };
                conv.insert(entry.conv_seq, stored);
                self.add_refs(&refs);
                if fan_out {
                    self.fan_outs.insert(place);
                }
            }
            Cmd::AddRefs { refs } => self.add_refs(&refs),
            Cmd::EndFanOut { conv, conv_seq } => {
                self.fan_outs.remove(&(conv, conv_seq));
            }
            Cmd::Redact { conv, conv_seq } => {
                let entries = self.entries.get_mut(&conv);
                if let Some(stored) = entries.and_then(|conv| conv.get_mut(conv_seq)) {
                    stored.body = Bytes::new();
                }
            }
            Cmd::SetCursors { cursors } => {
                for (user, device, seq) in cursors {
                    let devices = self.cursors.entry(user).or_default();
                    let known = devices.get(device).copied().unwrap_or_default();
                    devices.insert(device, seq.max(known));
                }
            }
            Cmd::SetWatermarks { marks } => marks.iter().for_each(|mark| self.mark(mark)),
            Cmd::Expire { before } => {
                self.entries.retain(|_, conv| {
                    conv.expire(ConvSeq(before.0));
                    !conv.is_empty()
                });
                self.inboxes.retain(|_, inbox| {
                    inbox.expire(before);
                    !inbox.is_empty()
                });
            }
            Cmd::FanOuts { .. }
            | Cmd::Replay { .. }
            | Cmd::History { .. }
            | Cmd::References { .. }
            | Cmd::Count { .. }
            | Cmd::Find { .. }
            | Cmd::Cursors { .. }
            | Cmd::Watermarks { .. }
            | Cmd::Ceiling => return Err(Error::invalid("a read among writes")),
        }
        Ok(Reply::Done)
    }

    pub(super) fn read(&self, cmd: &Cmd) -> Result<Reply, Error> {
        cmd.check(VALUE_BYTES_MAX)?;
        match cmd {
            Cmd::FanOuts { after, limit } => {
                let from = after.map_or(Bound::Unbounded, Bound::Excluded);
                let open = self.fan_outs.range((from, Bound::Unbounded));
                let limit = (*limit).min(PAGE_ITEMS_MAX) as usize;
                Ok(Reply::FanOuts(open.take(limit).copied().collect()))
            }
            Cmd::Replay {
                user,
                after,
                limit,
                max_bytes,
            } => Ok(self.replay(*user, *after, PageBound::new(*limit, *max_bytes))),
            Cmd::History {
                conv,
                after,
                before,
                forward,
                limit,
                max_bytes,
            } => {
                let page = PageBound::new(*limit, *max_bytes);
                Ok(if *forward {
                    let log = self.entries.get(conv).into_iter();
                    let newer = log.flat_map(|log| log.from(*after));
                    let newer = newer.skip_while(|(at, _)| at <= after);
                    let between = newer.take_while(|(at, _)| at < before);
                    history(*conv, between, page)
                } else {
                    history(*conv, self.between(*conv, *after, *before), page)
                })
            }
            Cmd::References {
                user,
                before,
                limit,
            } => Ok(self.references(*user, *before, *limit)),
            Cmd::Count {
                conv,
                after,
                before,
                not_by,
                op,
                kind,
                limit,
            } => {
                let counts = |stored: &Stored| {
                    let is_meant = (stored.meta.op, stored.meta.kind) == (*op, *kind);
                    is_meant && stored.sender != *not_by && !stored.body.is_empty()
                };
                let between = self.between(*conv, *after, *before);
                let looked_at = between.take(PAGE_ITEMS_MAX as usize);
                let counted = looked_at.filter(|(_, stored)| counts(stored));
                let counted = counted.take(*limit as usize).count();
                Ok(Reply::Count(u32::try_from(counted).unwrap_or(u32::MAX)))
            }
            Cmd::Find {
                conv,
                since,
                sender,
                device,
                msg_ids,
            } => Ok(self.find(*conv, *since, Wanted::new(*sender, *device, msg_ids))),
            Cmd::Cursors { user } => {
                let devices = self.cursors.get(user).into_iter();
                let cursors = devices.flat_map(|devices| devices.from(DeviceId(0)));
                Ok(Reply::Cursors(cursors.copied().collect()))
            }
            Cmd::Watermarks { conv } => {
                let users = self.watermarks.get(conv).into_iter();
                let waters = users.flat_map(|users| users.from(UserId(0)));
                Ok(Reply::Watermarks(waters.map(|(_, water)| *water).collect()))
            }
            Cmd::Ceiling => Ok(Reply::Ceiling(self.ceiling.get())),
            Cmd::Append { .. }
            | Cmd::AddRefs { .. }
            | Cmd::EndFanOut { .. }
            | Cmd::Redact { .. }
            | Cmd::SetCursors { .. }
            | Cmd::SetWatermarks { .. }
            | Cmd::Expire { .. } => Err(Error::invalid("a write among reads")),
        }
    }

    fn add_refs(&mut self, refs: &[InboxRef]) {
        for r in refs {
            let inbox = self.inboxes.entry(r.user).or_default();
            inbox.insert(r.seq, (r.conv, r.conv_seq));
        }
    }

    fn stored(&self, (conv, conv_seq): (ConvId, ConvSeq)) -> Option<&Stored> {
        self.entries.get(&conv)?.get(conv_seq)
    }

    fn mark(&mut self, mark: &Mark) {
        let users = self.watermarks.entry(mark.conv).or_default();
        let known = users.get(mark.user).copied();
        let mut water = known.unwrap_or_else(|| Watermark::none(mark.user));
        water.merge(mark);
        users.insert(mark.user, water);
    }

    fn replay(&self, user: UserId, after: Seq, mut page: PageBound) -> Reply {
        let mut items = Vec::new();
        let inbox = self.inboxes.get(&user).into_iter();
        let refs = inbox.flat_map(|inbox| inbox.from(after));
        for (seq, place) in refs.filter(|(seq, _)| *seq > after) {
            let Some(stored) = self.stored(*place) else {
                continue;
            };
            if !page.admit(stored.body.len()) {
                return Reply::Page { items, more: true };
            }
            items.push(Item {
                seq: *seq,
                entry: stored.entry(place.0, place.1),
            });
        }
        Reply::Page { items, more: false }
    }

    /// Newest first; both bounds are exclusive.
    fn between(
        &self,
        conv: ConvId,
        after: ConvSeq,
        before: ConvSeq,
    ) -> impl Iterator<Item = &(ConvSeq, Stored)> {
        let log = self.entries.get(&conv).into_iter();
        let older = log.flat_map(move |log| log.before(before));
        older.take_while(move |(at, _)| *at > after)
    }

    fn references(&self, user: UserId, before: Seq, limit: u32) -> Reply {
        let inbox = self.inboxes.get(&user).into_iter();
        let mut older = inbox.flat_map(|inbox| inbox.before(before));
        let limit = limit.min(PAGE_ITEMS_MAX) as usize;
        let refs = older.by_ref().take(limit);
        let refs = refs.map(|&(seq, (conv, conv_seq))| InboxRef {
            user,
            seq,
            conv,
            conv_seq,
        });
        let refs = refs.collect();
        let more = older.next().is_some();
        Reply::References { refs, more }
    }

    fn find(&self, conv: ConvId, since: ConvSeq, mut wanted: Wanted<'_>) -> Reply {
        let conv = self.entries.get(&conv).into_iter();
        for (conv_seq, entry) in conv.flat_map(|conv| conv.from(since)) {
            if wanted.is_all_after(entry.sender, entry.device, entry.msg_id, *conv_seq) {
                break;
            }
        }
        wanted.found()
    }
}
