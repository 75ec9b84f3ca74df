//! Cursors, delivered and read: three kinds of watermark, merged by maximum, pushed and written
//! behind.
//!
//! Receipts go to the other side within `flush_ms`, joined per conversation. Cursors and marks are
//! written together four times less often, marks first: a cursor that is durable while its mark
//! is not would hide for good that the message was delivered.

use crate::{
    conn::ConnId,
    mesh::ShardMessage,
    receipt::Receipt,
    shard::{Purpose, Shard, Turn},
    store::{Marks, StoreCmd, StoreError},
};
use portico_wire::{
    frame::receipt_kind,
    ids::{ConvId, ConvSeq, DeviceId, Seq, UserId},
};
use rustc_hash::FxHashMap;
use std::mem;

/// Most cursors or marks in one storage command.
const BATCH_MAX: usize = 256;
/// Saves happen at every so many pushes.
const PUSHES_PER_SAVE: u8 = 4;
/// How long after a failed save the next one is tried.
const SAVE_RETRY_US: u64 = 1_000_000;

type MarkKey = (ConvId, UserId);

/// What has changed and is neither told nor written yet.
#[derive(Debug, Default)]
pub(crate) struct Unsaved {
    cursors: FxHashMap<(UserId, DeviceId), Seq>,
    marks: FxHashMap<MarkKey, Marks>,
    /// Of the marks, what the other side has not been told.
    untold: FxHashMap<MarkKey, Marks>,
    /// READ requests to be answered once their mark is written.
    waiting: Vec<(ConnId, u32)>,
    /// When the next flush is due, and how many are left until the next save.
    flush_us: Option<u64>,
    until_save: u8,
}

impl Unsaved {
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0 && self.untold.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.cursors.len() + self.marks.len()
    }

    pub(crate) const fn next_us(&self) -> Option<u64> {
        self.flush_us
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
    Marks {
        marks: Vec<(ConvId, UserId, Marks)>,
        waiting: Vec<(ConnId, u32)>,
    },
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
        merge(self.unsaved.marks.entry((conv, user)).or_default(), marks);
        merge(self.unsaved.untold.entry((conv, user)).or_default(), marks);
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
        self.unsaved.waiting.extend(waiting);
    }

    /// Tells and writes what is due.
    pub(crate) fn flush_unsaved(&mut self, cx: &mut Turn<'_>) {
        let now_us = cx.now.mono_us;
        if self.unsaved.flush_us.is_none_or(|due| due > now_us) {
            return;
        }
        self.tell_marks(cx);
        self.unsaved.until_save = self.unsaved.until_save.saturating_sub(1);
        // READ requests wait for their answer; at the end nothing may be left.
        let hurry = !self.unsaved.waiting.is_empty() || self.drain.is_some();
        if self.unsaved.until_save == 0 || hurry {
            self.save(cx);
        }
        self.unsaved.flush_us = (!self.unsaved.is_empty())
            .then(|| now_us + u64::from(self.config.limits.flush_ms) * 1_000);
    }

    fn tell_marks(&mut self, cx: &mut Turn<'_>) {
        let untold = mem::take(&mut self.unsaved.untold);
        for ((conv, reader), marks) in untold {
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
                if peer != reader && receipt.up_to > ConvSeq(0) {
                    let home = self.home(peer);
                    let message = ShardMessage::Receipt { to: peer, receipt };
                    self.post(home, message, cx);
                }
            }
        }
    }

    fn save(&mut self, cx: &mut Turn<'_>) {
        self.unsaved.until_save = PUSHES_PER_SAVE;
        let mut waiting = mem::take(&mut self.unsaved.waiting);
        let marks: Vec<_> = mem::take(&mut self.unsaved.marks)
            .into_iter()
            .map(|((conv, user), marks)| (conv, user, marks))
            .collect();
        let batches = marks.chunks(BATCH_MAX).count();
        for (number, chunk) in marks.chunks(BATCH_MAX).enumerate() {
            let last = number + 1 == batches;
            let batch = Batch::Marks {
                marks: chunk.to_vec(),
                waiting: if last {
                    mem::take(&mut waiting)
                } else {
                    Vec::new()
                },
            };
            self.submit_batch(batch, cx);
        }
        let cursors: Vec<_> = mem::take(&mut self.unsaved.cursors)
            .into_iter()
            .map(|((user, device), seq)| (user, device, seq))
            .collect();
        for chunk in cursors.chunks(BATCH_MAX) {
            self.submit_batch(Batch::Cursors(chunk.to_vec()), cx);
        }
    }

    fn submit_batch(&mut self, batch: Batch, cx: &mut Turn<'_>) {
        let cmd = match &batch {
            Batch::Cursors(cursors) => StoreCmd::SetCursors {
                cursors: cursors.clone(),
            },
            Batch::Marks { marks, .. } => StoreCmd::SetMarks {
                marks: marks.clone(),
            },
        };
        self.submit(Purpose::Save(batch), cmd, cx);
    }

    pub(crate) fn on_saved(
        &mut self,
        batch: Batch,
        result: Result<(), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        match (batch, result) {
            (Batch::Cursors(_), Ok(())) => {}
            (Batch::Marks { waiting, .. }, Ok(())) => {
                for (id, corr) in waiting {
                    self.answer_read(id, corr, Ok(()), cx);
                }
            }
            // A store that has stopped will not take them later either; the client's own word and
            // a replay make up for both after the restart.
            (Batch::Cursors(_), Err(StoreError::Fatal)) => {}
            (Batch::Marks { waiting, .. }, Err(StoreError::Fatal)) => {
                for (id, corr) in waiting {
                    self.answer_read(id, corr, Err(StoreError::Fatal), cx);
                }
            }
            (Batch::Cursors(cursors), Err(_)) => {
                for (user, device, seq) in cursors {
                    let cursor = self.unsaved.cursors.entry((user, device)).or_default();
                    *cursor = seq.max(*cursor);
                }
                self.retry_save(cx);
            }
            (Batch::Marks { marks, waiting }, Err(error)) => {
                for (conv, user, marks) in marks {
                    merge(self.unsaved.marks.entry((conv, user)).or_default(), marks);
                }
                for (id, corr) in waiting {
                    self.answer_read(id, corr, Err(error), cx);
                }
                self.retry_save(cx);
            }
        }
    }

    fn retry_save(&mut self, cx: &Turn<'_>) {
        let at = cx.now.mono_us + SAVE_RETRY_US;
        self.unsaved.flush_us = Some(self.unsaved.flush_us.map_or(at, |due| due.max(at)));
        self.unsaved.until_save = 1;
    }
}

fn merge(into: &mut Marks, from: Marks) {
    if from.delivered > into.delivered {
        into.delivered = from.delivered;
        into.delivered_at_s = from.delivered_at_s;
    }
    if from.read > into.read {
        into.read = from.read;
        into.read_at_s = from.read_at_s;
    }
}
