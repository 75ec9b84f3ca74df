//! The account of messages between two users whose sender is told their fate.

use super::{Counts, Judgement, UNSETTLED_MAX};
use crate::{fleet::MessageName, payload::Payload};
use portico_wire::ids::ConvSeq;
use rustc_hash::FxHashMap;
use std::collections::hash_map::Entry;

/// One direction between two users.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    /// Of the next message.
    next_counter: u32,
    /// One more than the greatest counter that arrived, and the place of that message.
    arrived_end: u32,
    arrived_at: ConvSeq,
    /// The same for the greatest counter that was accepted.
    accepted_end: u32,
    accepted_at: ConvSeq,
    /// The greatest place that an answer gave to a message.
    accepted_last: ConvSeq,
    /// The recipient has everything up to here.
    delivered_to: ConvSeq,
}

/// Read marks of a flow.
#[derive(Clone, Copy, Debug, Default)]
struct Reads {
    /// The reader has marked up to here.
    marked: ConvSeq,
    /// The sender has heard of it up to here.
    told: ConvSeq,
}

/// A message on its way.
#[derive(Clone, Copy, Debug)]
struct Message {
    intended_us: u64,
    /// As told by whichever of answer and delivery came first.
    place: Option<ConvSeq>,
    accepted: bool,
    arrived: bool,
    refused: bool,
    /// Refused for the time being at least once: later ones may overtake it.
    deferred: bool,
    /// Counted as reordered already.
    reordered: bool,
}

/// Names a message: flow and counter in one number, which hashes faster than two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key(u64);

impl Key {
    const fn new(flow: u32, counter: u32) -> Self {
        Self((flow as u64) << 32 | counter as u64)
    }
}

#[derive(Debug)]
pub(super) struct Answered {
    flows: Vec<Flow>,
    /// Empty where read marks are not checked.
    reads: Vec<Reads>,
    unsettled: FxHashMap<Key, Message>,
    /// How many of `unsettled` were refused for good: they stay, in case they arrive all the same.
    refused_kept: usize,
    receipts: bool,
}

impl Answered {
    pub(super) fn new(flows: usize, receipts: bool) -> Self {
        Self {
            flows: vec![Flow::default(); flows],
            reads: Vec::new(),
            unsettled: FxHashMap::default(),
            refused_kept: 0,
            receipts,
        }
    }

    pub(super) fn check_reads(&mut self) {
        self.reads = vec![Reads::default(); self.flows.len()];
    }

    pub(super) fn next_counter(&self, flow: u32) -> Option<u32> {
        let has_room = self.unsettled.len() < UNSETTLED_MAX;
        has_room.then(|| self.flows[flow as usize].next_counter)
    }

    /// Returns how many deliveries it should have.
    pub(super) fn sent(&mut self, payload: &Payload) -> u64 {
        self.flows[payload.flow as usize].next_counter = payload.counter + 1;
        let message = Message {
            intended_us: payload.intended_us,
            place: None,
            accepted: false,
            arrived: false,
            refused: false,
            deferred: false,
            reordered: false,
        };
        self.unsettled
            .insert(Key::new(payload.flow, payload.counter), message);
        1
    }

    /// Returns when the message was due, if this is its answer.
    pub(super) fn accepted(
        &mut self,
        name: MessageName,
        place: Option<ConvSeq>,
        duplicate: bool,
        counts: &mut Counts,
    ) -> Option<u64> {
        let key = Key::new(name.flow, name.counter);
        let Entry::Occupied(mut entry) = self.unsettled.entry(key) else {
            return None;
        };
        let message = entry.get_mut();
        if message.accepted || message.refused {
            return None;
        }
        message.accepted = true;
        let intended_us = message.intended_us;
        counts.accepted += 1;
        counts.accepted_before += u64::from(duplicate);
        if let Some(place) = place {
            let flow = &mut self.flows[name.flow as usize];
            flow.accepted_last = flow.accepted_last.max(place);
            // Places must ascend with counters, in whichever order the answers come.
            let in_order = if name.counter >= flow.accepted_end {
                let ascends = place > flow.accepted_at;
                flow.accepted_end = name.counter + 1;
                flow.accepted_at = place;
                ascends
            } else {
                place < flow.accepted_at
            };
            if !in_order {
                note_disorder(counts, message);
            }
        }
        if message.arrived {
            counts.misnumbered += u64::from(differ(message.place, place));
            entry.remove();
        } else {
            message.place = place;
        }
        Some(intended_us)
    }

    pub(super) fn refused(
        &mut self,
        name: MessageName,
        code: u16,
        will_retry: bool,
        counts: &mut Counts,
    ) {
        let key = Key::new(name.flow, name.counter);
        let Some(message) = self.unsettled.get_mut(&key) else {
            return;
        };
        if will_retry {
            message.deferred = true;
            *counts.deferred.entry(code).or_default() += 1;
        } else if !message.accepted && !message.refused {
            message.refused = true;
            self.refused_kept += 1;
            *counts.refused.entry(code).or_default() += 1;
            counts.refused_delivered += u64::from(message.arrived);
        }
    }

    pub(super) fn receipt(&mut self, flow: u32, up_to: ConvSeq) {
        let flow = &mut self.flows[flow as usize];
        flow.delivered_to = flow.delivered_to.max(up_to);
    }

    pub(super) fn read_receipt(&mut self, flow: u32, up_to: ConvSeq) {
        if let Some(reads) = self.reads.get_mut(flow as usize) {
            reads.told = reads.told.max(up_to);
        }
    }

    pub(super) fn mark_read(&mut self, flow: u32) -> Option<ConvSeq> {
        let reads = self.reads.get_mut(flow as usize)?;
        let arrived_at = self.flows[flow as usize].arrived_at;
        if arrived_at <= reads.marked {
            return None;
        }
        reads.marked = arrived_at;
        Some(arrived_at)
    }

    pub(super) fn arrived(
        &mut self,
        payload: &Payload,
        place: Option<ConvSeq>,
        counts: &mut Counts,
    ) -> Judgement {
        let known = self.flows.get_mut(payload.flow as usize);
        let Some(flow) = known.filter(|flow| payload.counter < flow.next_counter) else {
            return Judgement::Invented;
        };
        let key = Key::new(payload.flow, payload.counter);
        let Entry::Occupied(mut entry) = self.unsettled.entry(key) else {
            return Judgement::Again;
        };
        let message = entry.get_mut();
        if message.arrived {
            return Judgement::Again;
        }
        message.arrived = true;
        counts.refused_delivered += u64::from(message.refused);
        let ascends = place.is_none_or(|place| place > flow.arrived_at);
        let in_order = payload.counter >= flow.arrived_end && ascends;
        if payload.counter >= flow.arrived_end {
            flow.arrived_end = payload.counter + 1;
            flow.arrived_at = place.unwrap_or(flow.arrived_at);
        }
        if !in_order {
            note_disorder(counts, message);
        }
        if message.accepted {
            counts.misnumbered += u64::from(differ(message.place, place));
            entry.remove();
        } else {
            message.place = place;
        }
        Judgement::First
    }

    pub(super) fn is_settled(&self) -> bool {
        self.unsettled.len() == self.refused_kept
    }

    fn is_undelivered(&self, flow: &Flow) -> bool {
        self.receipts && flow.delivered_to < flow.accepted_last
    }

    /// Flows with a mark that is behind.
    pub(super) fn behind(&self) -> impl Iterator<Item = u32> {
        self.flows
            .iter()
            .enumerate()
            .filter(|(number, flow)| {
                let unread = self.reads.get(*number).is_some_and(Reads::is_behind);
                unread || self.is_undelivered(flow)
            })
            .map(|(number, _)| number as u32)
    }

    pub(super) fn judge_open(&self, counts: &mut Counts) {
        let undelivered = self.flows.iter().filter(|flow| self.is_undelivered(flow));
        counts.receipts_missing = undelivered.count() as u64;
        counts.reads_missing = self.reads.iter().filter(|reads| reads.is_behind()).count() as u64;
        for message in self.unsettled.values() {
            if message.accepted {
                counts.lost += 1;
            } else if !message.refused {
                counts.unanswered += 1;
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        // A byte per slot beside the entries, and an eighth of the slots stays empty.
        let slots = self.unsettled.capacity() * 8 / 7;
        self.flows.capacity() * size_of::<Flow>()
            + self.reads.capacity() * size_of::<Reads>()
            + slots * (size_of::<(Key, Message)>() + 1)
    }

    #[cfg(test)]
    pub(super) fn unsettled(&self) -> (usize, usize) {
        (self.unsettled.len(), self.unsettled.capacity())
    }
}

impl Reads {
    fn is_behind(&self) -> bool {
        self.told < self.marked
    }
}

/// Both ends were told a place, and not the same.
fn differ(one: Option<ConvSeq>, other: Option<ConvSeq>) -> bool {
    one.zip(other).is_some_and(|(one, other)| one != other)
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
