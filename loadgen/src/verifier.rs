//! What became of every message.
//!
//! The verifier is always on: a rate means nothing while it is unknown whether the messages of it
//! arrived, once, in order, at the right user. It belongs to one worker, which sees both ends of
//! each of its flows.
//!
//! # Memory
//! A flow takes 48 bytes. A message takes an entry of a hash map from the moment it is queued until
//! it has been both accepted and delivered; [`UNSETTLED_MAX`] bounds those, and past it nothing
//! more is sent. The map takes 35 MB then (52 MB while it grows), so that a worker with a thousand
//! connections stays below 60 MB however long it runs, and far below while the gateway keeps up.
//!
//! # Invariants
//! - Each arrival is counted under exactly one of delivered, duplicated, misrouted, corrupt,
//!   foreign.
//! - `sent = accepted + refused + unanswered`, and `accepted = delivered of these + lost`.

use crate::{payload::Payload, plan::Flows, remote};
use hdrhistogram::Histogram;
use portico_wire::{
    ErrorCode,
    ids::{ConvSeq, MsgId, UserId},
};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, collections::hash_map::Entry, ops::Range};

/// Messages of one worker that may be on their way: what a hash map of 2^20 slots holds.
pub(crate) const UNSETTLED_MAX: usize = 900_000;
/// Flows of one worker: their number has 30 bits in a message id.
pub(crate) const FLOWS_MAX: usize = 1 << 30;
/// Longest latency that is told apart; whatever is slower counts as this.
const LATENCY_MAX_US: u64 = 600_000_000;

/// A histogram of microseconds with three significant digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("the bounds are valid")
}

/// What was found so far. Those of several workers are added up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Queued for the gateway.
    pub sent: u64,
    /// Answered by SENT.
    pub accepted: u64,
    /// Of `accepted`: known from an attempt before (SENT with the duplicate mark).
    pub accepted_before: u64,
    /// Arrived at the right user for the first time, intact.
    pub delivered: u64,
    /// Accepted and never delivered. Only known at the end.
    pub lost: u64,
    /// Neither accepted nor refused. Only known at the end.
    pub unanswered: u64,
    /// Delivered again although the client remembers what it had.
    pub duplicated: u64,
    /// Sent by the gateway again and dropped by the client, as the protocol provides for.
    pub repeated: u64,
    /// Arrived or numbered behind a later message of the same flow.
    pub reordered: u64,
    /// The same, but after the gateway had refused the first attempt for the time being: allowed.
    pub overtaken: u64,
    /// Arrived at somebody else, or under another author's name.
    pub misrouted: u64,
    /// Arrived damaged, or was never sent.
    pub corrupt: u64,
    /// Its sender and its recipient were told different places in the conversation.
    pub misnumbered: u64,
    /// Delivered although it had been refused for good.
    pub refused_delivered: u64,
    /// Of another run of this tool.
    pub foreign: u64,
    /// Flows whose delivered mark stayed behind their last accepted message. Only known at the end.
    pub receipts_missing: u64,
    /// Refused for good, and for the time being, by code.
    pub refused: BTreeMap<u16, u64>,
    pub deferred: BTreeMap<u16, u64>,
}

impl Counts {
    pub(crate) fn refused_total(&self) -> u64 {
        self.refused.values().sum()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        // Taken apart, so that a new field cannot be forgotten here.
        let Self {
            sent,
            accepted,
            accepted_before,
            delivered,
            lost,
            unanswered,
            duplicated,
            repeated,
            reordered,
            overtaken,
            misrouted,
            corrupt,
            misnumbered,
            refused_delivered,
            foreign,
            receipts_missing,
            refused,
            deferred,
        } = other;
        self.sent += sent;
        self.accepted += accepted;
        self.accepted_before += accepted_before;
        self.delivered += delivered;
        self.lost += lost;
        self.unanswered += unanswered;
        self.duplicated += duplicated;
        self.repeated += repeated;
        self.reordered += reordered;
        self.overtaken += overtaken;
        self.misrouted += misrouted;
        self.corrupt += corrupt;
        self.misnumbered += misnumbered;
        self.refused_delivered += refused_delivered;
        self.foreign += foreign;
        self.receipts_missing += receipts_missing;
        for (code, count) in refused {
            *self.refused.entry(*code).or_default() += count;
        }
        for (code, count) in deferred {
            *self.deferred.entry(*code).or_default() += count;
        }
    }
}

/// One direction between two users.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    /// Of the next message.
    next_counter: u32,
    /// One more than the greatest counter that arrived, and the place of that message.
    arrived_end: u32,
    arrived_at: ConvSeq,
    /// The same for the greatest counter answered by SENT.
    accepted_end: u32,
    accepted_at: ConvSeq,
    /// The greatest place that SENT gave to a message.
    accepted_last: ConvSeq,
    /// The recipient's devices have acknowledged up to here.
    delivered_to: ConvSeq,
}

/// A message on its way.
#[derive(Clone, Copy, Debug)]
struct Message {
    intended_us: u64,
    /// As told by whichever of SENT and DELIVER came first.
    conv_seq: ConvSeq,
    accepted: bool,
    arrived: bool,
    refused: bool,
    /// Refused for the time being at least once: later ones may overtake it.
    deferred: bool,
    /// Counted as reordered already.
    reordered: bool,
}

/// Names a message: flow and counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key(u64);

impl Key {
    const fn new(flow: u32, counter: u32) -> Self {
        Self((flow as u64) << 32 | counter as u64)
    }

    const fn flow(self) -> usize {
        (self.0 >> 32) as usize
    }

    const fn counter(self) -> u32 {
        self.0 as u32
    }
}

/// The message id is free to choose as long as the device never uses it twice, so it says which
/// message it is: no table from ids to messages is needed.
pub(crate) fn msg_id(unix_ms: u64, flow: u32, counter: u32) -> MsgId {
    MsgId::new_v7(unix_ms, u128::from(Key::new(flow, counter).0))
}

fn key_of(msg_id: MsgId) -> Key {
    Key(msg_id.lo() & 0x3fff_ffff_ffff_ffff)
}

#[derive(Debug)]
pub(crate) struct Verifier {
    run: u64,
    flows: Flows,
    states: Vec<Flow>,
    unsettled: FxHashMap<Key, Message>,
    /// How many of `unsettled` were refused for good: they stay, in case they arrive all the same.
    refused_kept: usize,
    counts: Counts,
    /// From the intended time to arrival, and to SENT.
    latency_us: Histogram<u64>,
    sent_latency_us: Histogram<u64>,
    /// Messages that were due in this time are in a histogram of their own as well.
    storm_us: Range<u64>,
    storm_latency_us: Histogram<u64>,
}

impl Verifier {
    pub(crate) fn new(run: u64, flows: Flows) -> Self {
        assert!(flows.len() <= FLOWS_MAX, "a flow's number has 30 bits");
        Self {
            run,
            states: vec![Flow::default(); flows.len()],
            flows,
            unsettled: FxHashMap::default(),
            refused_kept: 0,
            counts: Counts::default(),
            latency_us: histogram(),
            sent_latency_us: histogram(),
            storm_us: u64::MAX..u64::MAX,
            storm_latency_us: histogram(),
        }
    }

    /// Sets the time of the run that is judged apart. Its end may be set while it lasts.
    pub(crate) fn set_storm_us(&mut self, storm_us: Range<u64>) {
        self.storm_us = storm_us;
    }

    // --- the sender's side

    /// The next message of a flow, or `None` while as many as may be are on their way. It counts
    /// once [`Self::sent`] is told that it was queued.
    pub(crate) fn next_message(&self, flow: u32, intended_us: u64) -> Option<Payload> {
        (self.unsettled.len() < UNSETTLED_MAX).then(|| Payload {
            run: self.run,
            flow,
            sender: self.flows.user(self.flows.sender(flow)),
            recipient: self.flows.user(self.flows.recipient(flow)),
            counter: self.states[flow as usize].next_counter,
            intended_us,
        })
    }

    pub(crate) fn sent(&mut self, payload: &Payload) {
        let flow = &mut self.states[payload.flow as usize];
        flow.next_counter = payload.counter + 1;
        let message = Message {
            intended_us: payload.intended_us,
            conv_seq: ConvSeq(0),
            accepted: false,
            arrived: false,
            refused: false,
            deferred: false,
            reordered: false,
        };
        self.unsettled
            .insert(Key::new(payload.flow, payload.counter), message);
        self.counts.sent += 1;
    }

    pub(crate) fn accepted(&mut self, id: MsgId, conv_seq: ConvSeq, duplicate: bool, now_us: u64) {
        let key = key_of(id);
        let Entry::Occupied(mut entry) = self.unsettled.entry(key) else {
            return;
        };
        let message = entry.get_mut();
        if message.accepted || message.refused {
            return;
        }
        message.accepted = true;
        self.counts.accepted += 1;
        self.counts.accepted_before += u64::from(duplicate);
        record(&mut self.sent_latency_us, message.intended_us, now_us);

        let flow = &mut self.states[key.flow()];
        flow.accepted_last = flow.accepted_last.max(conv_seq);
        // Places must ascend with counters, in whichever order the answers come.
        let in_order = if key.counter() >= flow.accepted_end {
            let ascends = conv_seq > flow.accepted_at;
            flow.accepted_end = key.counter() + 1;
            flow.accepted_at = conv_seq;
            ascends
        } else {
            conv_seq < flow.accepted_at
        };
        if !in_order {
            note_disorder(&mut self.counts, message);
        }
        if message.arrived {
            self.counts.misnumbered += u64::from(message.conv_seq != conv_seq);
            entry.remove();
        } else {
            message.conv_seq = conv_seq;
        }
    }

    pub(crate) fn refused(&mut self, id: MsgId, code: ErrorCode, will_retry: bool) {
        let Some(message) = self.unsettled.get_mut(&key_of(id)) else {
            return;
        };
        if will_retry {
            message.deferred = true;
            *self.counts.deferred.entry(code.0).or_default() += 1;
        } else if !message.accepted && !message.refused {
            message.refused = true;
            self.refused_kept += 1;
            *self.counts.refused.entry(code.0).or_default() += 1;
            self.counts.refused_delivered += u64::from(message.arrived);
        }
    }

    /// A delivered mark reached `sender` (an index of the slice) from `peer`.
    pub(crate) fn receipt(&mut self, sender: u32, peer: UserId, up_to: ConvSeq) {
        if let Some(flow) = self.flows.between(sender, peer) {
            let flow = &mut self.states[flow as usize];
            flow.delivered_to = flow.delivered_to.max(up_to);
        }
    }

    // --- the recipient's side

    /// A message reached user `recipient` of the slice, said to be from `author`.
    pub(crate) fn arrived(
        &mut self,
        recipient: u32,
        author: UserId,
        conv_seq: ConvSeq,
        body: &[u8],
        now_us: u64,
    ) {
        let Ok(payload) = Payload::decode(body) else {
            self.counts.corrupt += 1;
            return;
        };
        if payload.run != self.run {
            self.counts.foreign += 1;
            return;
        }
        if payload.recipient != self.flows.user(recipient) || payload.sender != author {
            self.counts.misrouted += 1;
            return;
        }
        let known = self.states.get_mut(payload.flow as usize);
        let Some(flow) = known.filter(|flow| payload.counter < flow.next_counter) else {
            self.counts.corrupt += 1;
            return;
        };
        let key = Key::new(payload.flow, payload.counter);
        let Entry::Occupied(mut entry) = self.unsettled.entry(key) else {
            self.counts.duplicated += 1;
            return;
        };
        let message = entry.get_mut();
        if message.arrived {
            self.counts.duplicated += 1;
            return;
        }
        message.arrived = true;
        self.counts.delivered += 1;
        self.counts.refused_delivered += u64::from(message.refused);
        record(&mut self.latency_us, message.intended_us, now_us);
        if self.storm_us.contains(&message.intended_us) {
            record(&mut self.storm_latency_us, message.intended_us, now_us);
        }

        let in_order = payload.counter >= flow.arrived_end && conv_seq > flow.arrived_at;
        if payload.counter >= flow.arrived_end {
            flow.arrived_end = payload.counter + 1;
            flow.arrived_at = conv_seq;
        }
        if !in_order {
            note_disorder(&mut self.counts, message);
        }
        if message.accepted {
            self.counts.misnumbered += u64::from(message.conv_seq != conv_seq);
            entry.remove();
        } else {
            message.conv_seq = conv_seq;
        }
    }

    /// The client could not read what arrived.
    pub(crate) fn undecodable(&mut self) {
        self.counts.corrupt += 1;
    }

    /// The client dropped a delivery that it had before.
    pub(crate) fn repeated(&mut self) {
        self.counts.repeated += 1;
    }

    // --- the end

    /// Every message was answered, and every accepted one has arrived.
    pub(crate) fn is_settled(&self) -> bool {
        self.unsettled.len() == self.refused_kept
    }

    /// Flows whose delivered mark is behind, as (sender, recipient's user).
    pub(crate) fn receipts_behind(&self) -> impl Iterator<Item = (u32, UserId)> {
        self.states
            .iter()
            .enumerate()
            .filter(|(_, flow)| flow.delivered_to < flow.accepted_last)
            .map(|(number, _)| {
                let number = number as u32;
                let recipient = self.flows.user(self.flows.recipient(number));
                (self.flows.sender(number), recipient)
            })
    }

    pub(crate) const fn counts(&self) -> &Counts {
        &self.counts
    }

    pub(crate) const fn flows(&self) -> &Flows {
        &self.flows
    }

    /// Judges what is still open, and gives everything away.
    pub(crate) fn finish(self) -> Findings {
        let mut counts = self.counts.clone();
        counts.receipts_missing = self.receipts_behind().count() as u64;
        for message in self.unsettled.values() {
            if message.accepted {
                counts.lost += 1;
            } else if !message.refused {
                counts.unanswered += 1;
            }
        }
        Findings {
            counts,
            latency_us: self.latency_us,
            sent_latency_us: self.sent_latency_us,
            storm_latency_us: self.storm_latency_us,
        }
    }
}

/// The verifier's last word.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Findings {
    pub counts: Counts,
    #[serde(with = "remote::histogram")]
    pub latency_us: Histogram<u64>,
    #[serde(with = "remote::histogram")]
    pub sent_latency_us: Histogram<u64>,
    #[serde(with = "remote::histogram")]
    pub storm_latency_us: Histogram<u64>,
}

/// A message out of order counts once, whether its arrival or its number shows it.
fn note_disorder(counts: &mut Counts, message: &mut Message) {
    if !std::mem::replace(&mut message.reordered, true) {
        if message.deferred {
            counts.overtaken += 1;
        } else {
            counts.reordered += 1;
        }
    }
}

fn record(histogram: &mut Histogram<u64>, intended_us: u64, now_us: u64) {
    histogram.saturating_record(now_us.saturating_sub(intended_us).max(1));
}

#[cfg(test)]
mod tests;
