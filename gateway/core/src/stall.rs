//! A reader that takes nothing: what was queued for it is taken back.
//!
//! Messages that wait in a connection's queue are in the store as well. So when the socket has taken
//! nothing for two seconds, the queue keeps only what exists nowhere else: the frame that is being
//! sent, and answers. Messages are read from the store once the client reads again; ephemeral
//! frames and receipts go, and are counted.
//!
//! # Invariants
//! - The stream stays whole: a frame that the kernel has any byte of is sent to its end.
//! - What is taken back is everything with a place in the inbox from some number on, and the
//!   connection stands just before that number: nothing is skipped.
//! - SYNCED is not said before what it follows: behind a message that is taken back it is taken
//!   back too.

use crate::{
    conn::{Conn, ConnId, Phase, Replay, Source, Traffic},
    effects::Effect,
    metrics::Counter,
    shard::{Shard, Turn},
};
use portico_wire::{Op, frame::Flags, ids::Seq, next_frame};
use std::mem;

/// Without progress for so long a reader counts as stalled. Whole seconds are what is counted.
pub(crate) const STALLED_S: u32 = 2;
/// A shorter queue is left alone: it holds no more than what would be kept.
const RECALL_BYTES_MIN: usize = 4 << 10;

impl Shard {
    /// From so many queued bytes on a connection is watched for progress.
    pub(crate) fn recall_bytes_min(&self) -> usize {
        RECALL_BYTES_MIN.min(self.config.limits.outbox_bytes_soft)
    }

    /// Has the socket of this connection taken nothing for too long, with much to take?
    pub(crate) fn is_stalling(&self, conn: &Conn, now_s: u32) -> bool {
        conn.phase == Phase::Open
            && conn.traffic.as_ref().is_some_and(|traffic| {
                traffic.sending > 0 && !traffic.stalled && now_s >= traffic.progress_s + STALLED_S
            })
            && conn.pending_bytes() >= self.recall_bytes_min()
    }

    /// Asks for what the driver has of this connection; nothing more is pushed to it until it reads.
    pub(crate) fn recall(&mut self, id: ConnId, cx: &mut Turn<'_>) {
        let Some(traffic) = self
            .conn_mut(id)
            .and_then(|conn| conn.traffic.as_deref_mut())
        else {
            return;
        };
        traffic.stalled = true;
        self.counters.bump(Counter::Stalled);
        cx.fx.list.push(Effect::Recall(id));
    }

    /// The driver gives back a buffer of [`Self::take_output`], of which the kernel has taken the
    /// first `sent` bytes; those that were not reported as written are with this. What has to be
    /// sent all the same is fetched by the next [`Self::take_output`].
    pub fn take_back(&mut self, id: ConnId, buffer: Vec<u8>, sent: usize) {
        let Some(conn) = self.conns.get_mut(id.index as usize) else {
            return self.pool.put_buffer(buffer);
        };
        let same = conn.generation == id.generation && conn.phase == Phase::Open;
        let Some(traffic) = conn.traffic.as_deref_mut().filter(|_| same) else {
            return self.pool.put_buffer(buffer);
        };
        debug_assert_eq!(traffic.begun, 0, "what was begun is with the driver");
        let left = buffer.len() - sent;
        let taken = (traffic.sending as usize).saturating_sub(left);
        let before = traffic.pending_bytes();
        let mut sieve = Sieve::default();
        let whole = end_of_next(&buffer, traffic.begun_sending as usize, sent);
        sieve.kept.extend_from_slice(&buffer[sent..whole]);
        sieve.sift(&buffer[whole..]);
        sieve.sift(&traffic.out);
        let out = mem::replace(&mut traffic.out, sieve.kept);
        traffic.out.shrink_to_fit();
        traffic.sending = 0;
        traffic.begun_sending = 0;
        // A frame's length fits.
        traffic.begun = (whole - sent) as u32;
        if let Some(first) = sieve.first {
            let after = Seq(first.0 - 1).max(conn.acked);
            while traffic.window.back().is_some_and(|last| last.seq > after) {
                traffic.window.pop_back();
            }
            traffic.window.shrink_to_fit();
            conn.sent = after;
            if conn.source == Source::Live {
                conn.source = Source::Behind;
                self.counters.bump(Counter::FellBehind);
            }
        }
        if sieve.synced {
            conn.notes.replay = Replay::Runs;
        }
        if conn.notes.replay != Replay::Done {
            conn.replayed = conn.replayed.saturating_sub(sieve.before_synced);
        }
        let kept = traffic.pending_bytes();
        self.outbox_bytes -= before - kept;
        let counters = &mut self.counters;
        counters.add(Counter::BytesOut, taken as u64);
        counters.add(Counter::Recalled, u64::from(sieve.messages));
        counters.add(Counter::EphemeralDropped, u64::from(sieve.ephemeral));
        counters.add(Counter::ReceiptsDropped, u64::from(sieve.receipts));
        self.pool.put_buffer(buffer);
        self.pool.put_buffer(out);
        self.rest(id);
    }
}

/// The end of the frame that is next to be sent, or is being sent: it stays, and tells by its sending
/// when the client reads again. `begun`: where the first frame of the buffer begins.
fn end_of_next(buffer: &[u8], begun: usize, sent: usize) -> usize {
    let mut at = begun.min(buffer.len());
    while at <= sent && at < buffer.len() {
        match next_frame(&buffer[at..], usize::MAX) {
            Ok(Some(frame)) => at += frame.bytes().len(),
            // It was written here, frame by frame.
            Ok(None) | Err(_) => return buffer.len(),
        }
    }
    at
}

/// What is kept of a queue, and what was not.
#[derive(Debug, Default)]
struct Sieve {
    kept: Vec<u8>,
    /// The first number that was taken back.
    first: Option<Seq>,
    messages: u32,
    /// Of them, in front of SYNCED, or all if that is not among the frames.
    before_synced: u32,
    synced: bool,
    ephemeral: u32,
    receipts: u32,
}

impl Sieve {
    fn sift(&mut self, mut bytes: &[u8]) {
        while let Ok(Some(frame)) = next_frame(bytes, usize::MAX) {
            bytes = &bytes[frame.bytes().len()..];
            let answer = frame.flags().contains(Flags::REPLY);
            match frame.route().filter(|_| !answer) {
                Some(route) if route.seq != Seq(0) => {
                    self.first.get_or_insert(route.seq);
                    self.messages += 1;
                    self.before_synced += u32::from(!self.synced);
                }
                Some(_) if frame.known_op() == Some(Op::Receipt) => self.receipts += 1,
                Some(_) => self.ephemeral += 1,
                None if frame.known_op() == Some(Op::Synced) && self.first.is_some() => {
                    self.synced = true;
                }
                None => self.kept.extend_from_slice(frame.bytes()),
            }
        }
    }
}

impl Traffic {
    /// The driver has all that was queued.
    pub(crate) const fn note_taken(&mut self) {
        self.begun_sending = self.begun;
        self.begun = 0;
    }
}
