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
                before,
                limit,
                max_bytes,
            } => Ok(self.history(*conv, *before, PageBound::new(*limit, *max_bytes))),
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

    fn history(&self, conv: ConvId, before: ConvSeq, mut page: PageBound) -> Reply {
        let mut entries = Vec::new();
        let log = self.entries.get(&conv).into_iter();
        for (conv_seq, stored) in log.flat_map(|log| log.before(before)) {
            if !page.admit(stored.body.len()) {
                return Reply::Entries {
                    entries,
                    more: true,
                };
            }
            entries.push(stored.entry(conv, *conv_seq));
        }
        Reply::Entries {
            entries,
            more: false,
        }
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
