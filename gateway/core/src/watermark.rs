//! Cursors, delivered and read: three kinds of watermark, merged by maximum, pushed and written
//! behind.
//!
//! Receipts go to the other side `flush_ms` after what they tell, joined per conversation: not all
//! at one moment, which would keep everybody else waiting while they are sent. Cursors and marks are
//! written together, at every fourth `flush_ms`, the cursors once the marks are durable: a cursor
//! without its marks would hide for good that messages were delivered. While a save is under way
//! the next one waits, so that a store that stands still collects nothing.

use crate::{
    conn::ConnId,
    groups::GroupMessage,
    home::ShardId,
    mesh::ShardMessage,
    people::Waiter,
    receipt::Receipt,
    shard::{Shard, Turn},
    store::{Marks, StoreCmd, StoreError},
    stored::Purpose,
};
use portico_wire::{
    frame::receipt_kind,
    ids::{ConvId, ConvSeq, DeviceId, GroupId, Seq, UserId},
};
use rustc_hash::FxHashMap;
use std::{collections::VecDeque, mem};

/// Most cursors or marks in one storage command.
const BATCH_MAX: usize = 256;
/// Saves happen at every so many pushes.
const PUSHES_PER_SAVE: u8 = 4;
/// Receipts are told at so many moments in each `flush_ms`: some at once cost less than each alone.
const MOMENTS: u64 = 16;
/// How long after a failed save the next one is tried.
const SAVE_RETRY_US: u64 = 1_000_000;

type MarkKey = (ConvId, UserId);

/// The READ requests that are answered once their mark is written.
type Waiting = Vec<(ConnId, u32)>;

/// What has changed and is neither told nor written yet.
#[derive(Debug, Default)]
pub(crate) struct Unsaved {
    cursors: FxHashMap<(UserId, DeviceId), Seq>,
    pub(crate) marks: FxHashMap<MarkKey, (Marks, Waiting)>,
    /// Of the marks, what the other side has not been told.
    untold: FxHashMap<MarkKey, Marks>,
    /// The same by the time at which they are due; in order, because all wait equally long.
    telling: VecDeque<(u64, MarkKey)>,
    /// When the next save is thought of, and how many times more until it is done.
    flush_us: Option<u64>,
    until_save: u8,
    /// Somebody waits for the next save.
    hurry: bool,
    /// Cursors whose marks are being written.
    held: Vec<(UserId, DeviceId, Seq)>,
    /// Storage commands under way, and whether one of this save has failed.
    saving: usize,
    failed: bool,
}

impl Unsaved {
    /// A cursor that is newer than the store's.
    pub(crate) fn cursor(&self, user: UserId, device: DeviceId) -> Option<Seq> {
        self.cursors.get(&(user, device)).copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0 && self.untold.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.cursors.len() + self.marks.len() + self.held.len()
    }

    pub(crate) fn next_us(&self) -> Option<u64> {
        let told_us = self.telling.front().map(|(due_us, _)| *due_us);
        self.flush_us.into_iter().chain(told_us).min()
    }

    /// The other side is to be told of this.
    fn tell(&mut self, key: MarkKey, marks: Marks, now_us: u64, flush_ms: u32) {
        let untold = self.untold.entry(key).or_insert_with(|| {
            let flush_us = u64::from(flush_ms) * 1_000;
            let step_us = (flush_us / MOMENTS).max(1);
            let due_us = (now_us + flush_us).next_multiple_of(step_us);
            self.telling.push_back((due_us, key));
            Marks::default()
        });
        merge(untold, marks);
    }

    /// One whose time has come.
    fn next_told(&mut self, now_us: u64) -> Option<(MarkKey, Marks)> {
        let (due_us, key) = *self.telling.front()?;
        if due_us > now_us {
            return None;
        }
        self.telling.pop_front();
        Some((key, self.untold.remove(&key).unwrap_or_default()))
    }

    fn arm(&mut self, now_us: u64, flush_ms: u32) {
        if self.flush_us.is_none() {
            self.flush_us = Some(now_us + u64::from(flush_ms) * 1_000);
            self.until_save = PUSHES_PER_SAVE;
        }
    }
}

/// One storage command's worth, kept until it is known to be written.
#[derive(Debug)]
pub(crate) enum Batch {
    Cursors(Vec<(UserId, DeviceId, Seq)>),
    Marks(Vec<(MarkKey, (Marks, Waiting))>),
}

impl Shard {
    /// The device has everything up to here.
    pub(crate) fn save_cursor(
        &mut self,
        user: UserId,
        device: DeviceId,
        up_to: Seq,
        cx: &mut Turn<'_>,
    ) {
        let cursor = self.unsaved.cursors.entry((user, device)).or_default();
        *cursor = up_to.max(*cursor);
        let flush_ms = self.config.limits.flush_ms;
        self.unsaved.arm(cx.now.mono_us, flush_ms);
    }

    pub(crate) fn mark_delivered(
        &mut self,
        conv: ConvId,
        user: UserId,
        up_to: ConvSeq,
        cx: &mut Turn<'_>,
    ) {
        let marks = Marks {
            delivered: up_to,
            delivered_at_s: cx.now.wall_s(),
            ..Marks::default()
        };
        self.mark(conv, user, marks, cx);
    }

    fn mark(&mut self, conv: ConvId, user: UserId, marks: Marks, cx: &mut Turn<'_>) {
        let flush_ms = self.config.limits.flush_ms;
        self.unsaved
            .tell((conv, user), marks, cx.now.mono_us, flush_ms);
        self.save_mark(conv, user, marks, cx);
    }

    /// A mark that nobody has to be told of.
    pub(crate) fn save_mark(
        &mut self,
        conv: ConvId,
        user: UserId,
        marks: Marks,
        cx: &mut Turn<'_>,
    ) {
        let (unsaved, _) = self.unsaved.marks.entry((conv, user)).or_default();
        merge(unsaved, marks);
        let flush_ms = self.config.limits.flush_ms;
        self.unsaved.arm(cx.now.mono_us, flush_ms);
    }

    /// The user has read up to here; `waiting` is answered once that is written.
    pub(crate) fn mark_read(
        &mut self,
        conv: ConvId,
        user: UserId,
        up_to: ConvSeq,
        waiting: Option<(ConnId, u32)>,
        cx: &mut Turn<'_>,
    ) {
        let marks = Marks {
            read: up_to,
            read_at_s: cx.now.wall_s(),
            ..Marks::default()
        };
        self.mark(conv, user, marks, cx);
        if let Some(waiting) = waiting {
            let (_, list) = self.unsaved.marks.entry((conv, user)).or_default();
            list.push(waiting);
            self.unsaved.hurry = true;
        }
    }

    pub(crate) fn has_room_for_mark(&self, conv: ConvId, user: UserId) -> bool {
        let marks = &self.unsaved.marks;
        marks.len() < self.config.limits.unsaved_max || marks.contains_key(&(conv, user))
    }

    /// Tells and writes what is due.
    pub(crate) fn flush_unsaved(&mut self, cx: &mut Turn<'_>) {
        let now_us = cx.now.mono_us;
        self.tell_marks(cx);
        if self.unsaved.flush_us.is_none_or(|due| due > now_us) {
            return;
        }
        self.unsaved.until_save = self.unsaved.until_save.saturating_sub(1);
        // READ requests wait for their answer; at the end nothing may be left.
        let crowded = self.unsaved.marks.len() > self.config.limits.unsaved_max / 2;
        let hurry = self.unsaved.hurry || crowded || self.drain.is_some();
        if (self.unsaved.until_save == 0 || hurry) && self.unsaved.saving == 0 {
            self.save(cx);
        }
        self.unsaved.flush_us = (!self.unsaved.is_empty())
            .then(|| now_us + u64::from(self.config.limits.flush_ms) * 1_000);
    }

    fn tell_marks(&mut self, cx: &mut Turn<'_>) {
        // Of members of groups: one message for each shard that is home to some.
        let mut of_groups = FxHashMap::<ShardId, Vec<(GroupId, UserId, Marks)>>::default();
        while let Some(((conv, reader), marks)) = self.unsaved.next_told(cx.now.mono_us) {
            if let ConvId::Group(group) = conv {
                if marks.read > ConvSeq(0) {
                    let (kind, up_to, at_s) = (receipt_kind::READ, marks.read, marks.read_at_s);
                    let read = Receipt {
                        conv,
                        reader,
                        kind,
                        up_to,
                        at_s,
                    };
                    self.push_receipt(reader, &read, cx);
                }
                let home = self.group_home(group);
                of_groups
                    .entry(home)
                    .or_default()
                    .push((group, reader, marks));
                continue;
            }
            let Some(peer) = conv.peer_of(reader) else {
                continue;
            };
            let receipt = |kind, up_to, at_s| Receipt {
                conv,
                reader,
                kind,
                up_to,
                at_s,
            };
            let delivered = receipt(
                receipt_kind::DELIVERED,
                marks.delivered,
                marks.delivered_at_s,
            );
            let read = receipt(receipt_kind::READ, marks.read, marks.read_at_s);
            if read.up_to > ConvSeq(0) {
                // The reader's own devices clear their badge.
                self.push_receipt(reader, &read, cx);
            }
            for receipt in [delivered, read] {
                if peer == reader || receipt.up_to == ConvSeq(0) {
                    continue;
                }
                let of_read = receipt.kind == receipt_kind::READ;
                if of_read && self.people.is_restricted(reader) {
                    self.want(reader, Waiter::TellRead(receipt), cx);
                } else {
                    self.tell_peer(&receipt, cx);
                }
            }
        }
        for (home, marks) in of_groups {
            let message = ShardMessage::Group(GroupMessage::Marks(marks));
            self.post(home, message, cx);
        }
    }

    /// Tells the other side of a direct conversation.
    pub(crate) fn tell_peer(&mut self, receipt: &Receipt, cx: &mut Turn<'_>) {
        if let Some(peer) = receipt.conv.peer_of(receipt.reader) {
            let message = ShardMessage::Receipt {
                to: peer,
                receipt: *receipt,
            };
            self.post(self.home(peer), message, cx);
        }
    }

    fn save(&mut self, cx: &mut Turn<'_>) {
        self.unsaved.until_save = PUSHES_PER_SAVE;
        self.unsaved.hurry = false;
        let mut marks = mem::take(&mut self.unsaved.marks).into_iter();
        while marks.len() > 0 {
            let batch = Batch::Marks(marks.by_ref().take(BATCH_MAX).collect());
            self.submit_batch(batch, cx);
        }
        let cursors = mem::take(&mut self.unsaved.cursors).into_iter();
        self.unsaved.held = cursors
            .map(|((user, device), seq)| (user, device, seq))
            .collect();
        if self.unsaved.saving == 0 {
            self.save_held(cx);
        }
    }

    /// The marks of the held cursors are written.
    fn save_held(&mut self, cx: &mut Turn<'_>) {
        let mut cursors = mem::take(&mut self.unsaved.held).into_iter();
        while cursors.len() > 0 {
            let batch = Batch::Cursors(cursors.by_ref().take(BATCH_MAX).collect());
            self.submit_batch(batch, cx);
        }
    }

    fn take_cursors_back(&mut self, cursors: Vec<(UserId, DeviceId, Seq)>) {
        for (user, device, seq) in cursors {
            let cursor = self.unsaved.cursors.entry((user, device)).or_default();
            *cursor = seq.max(*cursor);
        }
    }

    fn submit_batch(&mut self, batch: Batch, cx: &mut Turn<'_>) {
        let cmd = match &batch {
            Batch::Cursors(cursors) => StoreCmd::SetCursors {
                cursors: cursors.clone(),
            },
            Batch::Marks(marks) => StoreCmd::SetMarks {
                marks: marks
                    .iter()
                    .map(|&((conv, user), (marks, _))| (conv, user, marks))
                    .collect(),
            },
        };
        self.unsaved.saving += 1;
        self.submit(Purpose::Save(batch), cmd, cx);
    }

    pub(crate) fn on_saved(
        &mut self,
        batch: Batch,
        result: Result<(), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        self.unsaved.saving -= 1;
        // What was refused for good, or by a store that has stopped, is not taken later either; the
        // client's own word and a replay make up for it after a restart.
        let again = match result {
            Ok(()) | Err(StoreError::Conflict | StoreError::Invalid | StoreError::Fatal) => false,
            Err(StoreError::Overloaded { .. } | StoreError::Unavailable | StoreError::Unknown) => {
                true
            }
        };
        match batch {
            Batch::Cursors(cursors) if again => self.take_cursors_back(cursors),
            Batch::Cursors(_) => {}
            Batch::Marks(marks) => {
                for (key, (marks, waiting)) in marks {
                    if again {
                        merge(&mut self.unsaved.marks.entry(key).or_default().0, marks);
                    }
                    for (id, corr) in waiting {
                        self.answer_read(id, corr, result, cx);
                    }
                }
            }
        }
        self.unsaved.failed |= again;
        if self.unsaved.saving == 0 {
            if mem::take(&mut self.unsaved.failed) {
                let held = mem::take(&mut self.unsaved.held);
                self.take_cursors_back(held);
            } else {
                self.save_held(cx);
            }
        }
        if again {
            self.retry_save(cx);
        }
    }

    fn retry_save(&mut self, cx: &Turn<'_>) {
        let at = cx.now.mono_us + SAVE_RETRY_US;
        self.unsaved.flush_us = Some(self.unsaved.flush_us.map_or(at, |due| due.max(at)));
        self.unsaved.until_save = 1;
    }
}

pub(crate) fn merge(into: &mut Marks, from: Marks) {
    if from.delivered > into.delivered {
        into.delivered = from.delivered;
        into.delivered_at_s = from.delivered_at_s;
    }
    if from.read > into.read {
        into.read = from.read;
        into.read_at_s = from.read_at_s;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of a busy shard are not told all at one moment, and none early or late.
    #[test]
    fn receipts_are_told_at_many_moments() {
        const FLUSH_MS: u32 = 250;
        const MARKS: u64 = 1_600;
        let flush_us = u64::from(FLUSH_MS) * 1_000;
        let mut unsaved = Unsaved::default();
        let first_us = |number: u64| 7_000_000 + number * flush_us / MARKS;
        let key = |number: u64| (ConvId::direct(UserId(1), UserId(9 + number)), UserId(1));
        for number in 0..MARKS {
            for up_to in [1, 3, 2] {
                let marks = Marks {
                    delivered: ConvSeq(up_to),
                    ..Marks::default()
                };
                unsaved.tell(key(number), marks, first_us(number), FLUSH_MS);
            }
        }
        let mut told = 0;
        while let Some(now_us) = unsaved.next_us() {
            let before = told;
            while let Some((told_key, marks)) = unsaved.next_told(now_us) {
                assert_eq!((told_key, marks.delivered), (key(told), ConvSeq(3)));
                let waited_us = now_us - first_us(told);
                assert!((flush_us..=flush_us + flush_us / MOMENTS).contains(&waited_us));
                told += 1;
            }
            assert!((1..=MARKS / MOMENTS + 1).contains(&(told - before)));
        }
        assert_eq!(told, MARKS);
        assert!(unsaved.untold.is_empty());
    }
}
