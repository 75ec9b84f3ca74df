//! The message family over ordered maps.

use super::VALUE_BYTES_MAX;
use crate::Error;
use crate::ceiling::Ceiling;
use crate::messages::{
    Cmd, Entry, InboxRef, Item, Mark, PAGE_ITEMS_MAX, PageBound, Reply, Watermark,
};
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, MsgId, Seq, UserId};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

#[derive(Debug, Default)]
pub(super) struct State {
    entries: BTreeMap<(ConvId, ConvSeq), Entry>,
    inbox: BTreeMap<(UserId, Seq), (ConvId, ConvSeq)>,
    fan_outs: BTreeSet<(ConvId, ConvSeq)>,
    cursors: BTreeMap<(UserId, DeviceId), Seq>,
    watermarks: BTreeMap<(ConvId, UserId), Watermark>,
    ceiling: Ceiling,
}

impl State {
    pub(super) fn write(&mut self, cmd: &Cmd) -> Result<Reply, Error> {
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
                self.entries.insert(place, entry.clone());
                self.add_refs(refs);
                if *fan_out {
                    self.fan_outs.insert(place);
                }
            }
            Cmd::AddRefs { refs } => self.add_refs(refs),
            Cmd::EndFanOut { conv, conv_seq } => {
                self.fan_outs.remove(&(*conv, *conv_seq));
            }
            Cmd::SetCursors { cursors } => {
                for (user, device, seq) in cursors {
                    let cursor = self.cursors.entry((*user, *device)).or_default();
                    *cursor = (*cursor).max(*seq);
                }
            }
            Cmd::SetWatermarks { marks } => marks.iter().for_each(|mark| self.mark(mark)),
            Cmd::Expire { before } => {
                self.entries.retain(|(_, seq), _| seq.0 >= before.0);
                self.inbox.retain(|(_, seq), _| seq >= before);
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
                msg_id,
            } => Ok(self.find(*conv, *since, (*sender, *device, *msg_id))),
            Cmd::Cursors { user } => {
                let first = (*user, DeviceId(0));
                let devices = self.cursors.range(first..=(*user, DeviceId(u16::MAX)));
                let cursors = devices.map(|((_, device), seq)| (*device, *seq));
                Ok(Reply::Cursors(cursors.collect()))
            }
            Cmd::Watermarks { conv } => {
                let first = (*conv, UserId(0));
                let users = self.watermarks.range(first..=(*conv, UserId(u64::MAX)));
                Ok(Reply::Watermarks(users.map(|(_, water)| *water).collect()))
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
            self.inbox.insert((r.user, r.seq), (r.conv, r.conv_seq));
        }
    }

    fn mark(&mut self, mark: &Mark) {
        let key = (mark.conv, mark.user);
        let water = self.watermarks.entry(key);
        water
            .or_insert_with(|| Watermark::none(mark.user))
            .merge(mark);
    }

    fn replay(&self, user: UserId, after: Seq, mut page: PageBound) -> Reply {
        let mut items = Vec::new();
        let from = Bound::Excluded((user, after));
        let to = Bound::Included((user, Seq(u64::MAX)));
        // An exclusive start at the greatest key would be an empty, hence invalid range.
        let refs = (after.0 < u64::MAX).then(|| self.inbox.range((from, to)));
        for ((_, seq), place) in refs.into_iter().flatten() {
            let Some(entry) = self.entries.get(place) else {
                continue;
            };
            if !page.admit(entry.body.len()) {
                return Reply::Page { items, more: true };
            }
            items.push(Item {
                seq: *seq,
                entry: entry.clone(),
            });
        }
        Reply::Page { items, more: false }
    }

    fn history(&self, conv: ConvId, before: ConvSeq, mut page: PageBound) -> Reply {
        let mut entries = Vec::new();
        let older = self.entries.range((conv, ConvSeq(0))..(conv, before));
        for (_, entry) in older.rev() {
            if !page.admit(entry.body.len()) {
                return Reply::Entries {
                    entries,
                    more: true,
                };
            }
            entries.push(entry.clone());
        }
        Reply::Entries {
            entries,
            more: false,
        }
    }

    fn find(&self, conv: ConvId, since: ConvSeq, wanted: (UserId, DeviceId, MsgId)) -> Reply {
        let last = (conv, ConvSeq(u64::MAX));
        let mut entries = self.entries.range((conv, since)..=last);
        let found = entries.find(|(_, e)| (e.sender, e.device, e.msg_id) == wanted);
        Reply::Found(found.map(|((_, conv_seq), _)| *conv_seq))
    }
}
