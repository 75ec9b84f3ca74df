//! What became of every message.
//!
//! The verifier is always on: a rate means nothing while it is unknown whether the messages of it
//! arrived, once, in order, at the right user. It belongs to one worker, which sees both ends of
//! each of its flows. How it keeps account depends on what the system promises:
//!
//! - [`answered`]: messages between two users whose sender is told their fate. Each is kept until it
//!   is both accepted and delivered, so that every fault is pinned to its message.
//! - [`counted`]: messages between two users without answers. A message counts as accepted when it
//!   was queued; counters alone show what is missing, twice or late.
//! - [`groups`]: one message to many, counted alike for each member.
//! - [`crowds`]: groups that the gateway keeps, whose members come and go.
//!
//! # Memory
//! Bounded whatever the gateway does, and printed with the result (`verifier_bytes`). A flow with
//! answers takes 56 bytes, and 16 more where read marks are checked; a message on its way takes an
//! entry of 40 bytes in a hash map, of which there are at most [`UNSETTLED_MAX`]; past that nothing
//! more is sent. The map takes 42 MB then (63 MB while it grows). A flow without answers takes 24
//! bytes and a member of a group 8, however many messages are on their way. Where a plan does
//! something to connections each user takes 8 bytes more. The histograms take 200 kB each.
//!
//! # Invariants
//! - Each arrival is counted under exactly one of delivered, duplicated, misrouted, corrupt,
//!   foreign.
//! - `sent = accepted + refused + unanswered`, and `accepted = delivered of these + lost`.
//! - Each delivery is in exactly one of the histograms of latency and of affected latency.

mod answered;
mod counted;
mod counts;
mod crowds;
mod finish;
mod groups;
mod window;

pub(crate) use counts::Counts;
pub(crate) use finish::Findings;

use crate::{
    fleet::{MessageName, Promises},
    payload::{LATE_US_MAX, Payload},
    plan::{Flows, WRITERS},
};
use answered::Answered;
use counted::Counted;
use crowds::CrowdCounts;
use groups::GroupCounts;
use hdrhistogram::Histogram;
use portico_wire::ids::{ConvSeq, UserId};
use std::{ops::Range, rc::Rc};

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

/// A message that arrived for the first time, at the right user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub flow: u32,
    pub counter: u32,
    pub is_answer: bool,
}

/// What the system says of a message, where it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub author: Option<UserId>,
    pub place: Option<ConvSeq>,
    /// The group that the gateway keeps and that it was said in.
    pub crowd: Option<u32>,
}

/// What the account says about an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    First,
    Again,
    /// Never sent by anybody.
    Invented,
}

#[derive(Debug)]
enum Ledger {
    Answered(Answered),
    Counted(Counted),
    Groups(GroupCounts),
    Crowds(CrowdCounts),
}

#[derive(Debug)]
pub(crate) struct Verifier {
    run: u64,
    flows: Flows,
    promises: Promises,
    ledger: Ledger,
    counts: Counts,
    /// What was sent has to arrive: not where the target discards it.
    expects_deliveries: bool,
    /// Times mean something: not where the next message waits for the one before.
    timed: bool,
    times: Times,
    /// Since when nothing is done to a user any more; messages due before are affected.
    /// `u64::MAX`: something is. Empty while nobody is touched.
    calm_since_us: Vec<u64>,
    /// Messages that were due in this time, and not affected, are in a histogram of their own as
    /// well.
    storm_us: Range<u64>,
}

/// Histograms of a worker's messages.
#[derive(Debug)]
struct Times {
    /// From the intended time to arrival, and to the answer.
    latency_us: Histogram<u64>,
    sent_latency_us: Histogram<u64>,
    /// From being handed to the driver to arrival.
    service_us: Histogram<u64>,
    storm_latency_us: Histogram<u64>,
    /// Of messages whose sender or recipient was away or did not read when they were due or since.
    affected_latency_us: Histogram<u64>,
}

impl Verifier {
    pub(crate) fn new(run: u64, flows: Flows, promises: Promises) -> Self {
        assert!(flows.len() <= FLOWS_MAX, "a flow's number has 30 bits");
        let ledger = match (flows.groups(), promises.answers) {
            _ if let Some(crowds) = flows.crowds() => {
                Ledger::Crowds(CrowdCounts::new(Rc::clone(crowds)))
            }
            (Some(groups), _) => Ledger::Groups(GroupCounts::new(groups, flows.users())),
            (None, true) => Ledger::Answered(Answered::new(flows.len(), promises.receipts)),
            (None, false) => Ledger::Counted(Counted::new(flows.len())),
        };
        Self {
            run,
            flows,
            promises,
            ledger,
            counts: Counts::default(),
            expects_deliveries: true,
            timed: true,
            times: Times {
                latency_us: histogram(),
                sent_latency_us: histogram(),
                service_us: histogram(),
                storm_latency_us: histogram(),
                affected_latency_us: histogram(),
            },
            calm_since_us: Vec::new(),
            storm_us: u64::MAX..u64::MAX,
        }
    }

    /// Records no times from now on.
    pub(crate) fn without_times(mut self) -> Self {
        self.timed = false;
        self
    }

    /// Nothing has to arrive. What does is verified all the same.
    pub(crate) fn without_deliveries(mut self) -> Self {
        self.expects_deliveries = false;
        self
    }

    /// Also checks that read marks arrive.
    pub(crate) fn with_reads(mut self) -> Self {
        if let Ledger::Answered(answered) = &mut self.ledger {
            answered.check_reads();
        }
        self
    }

    /// Sets the time of the run that is judged apart. Its end may be set while it lasts.
    pub(crate) fn set_storm_us(&mut self, storm_us: Range<u64>) {
        self.storm_us = storm_us;
    }

    /// The plan does something to this user from now on.
    pub(crate) fn touch(&mut self, user: u32) {
        let users = self.flows.users() as usize;
        if self.calm_since_us.is_empty() {
            self.calm_since_us.resize(users, 0);
        }
        if let Some(since) = self.calm_since_us.get_mut(user as usize) {
            *since = u64::MAX;
        }
    }

    /// It is over: messages due from now on are like all others.
    pub(crate) fn calm(&mut self, user: u32, now_us: u64) {
        if let Some(since) = self.calm_since_us.get_mut(user as usize) {
            *since = now_us;
        }
    }

    fn is_affected(&self, user: u32, intended_us: u64) -> bool {
        let since = self.calm_since_us.get(user as usize);
        since.is_some_and(|since| intended_us < *since)
    }

    // --- the sender's side

    /// The next message of a flow, handed to the driver at `now_us`, or `None` while as many as may
    /// be are on their way. It counts once [`Self::sent`] is told that it was queued.
    pub(crate) fn next_message(&self, flow: u32, intended_us: u64, now_us: u64) -> Option<Payload> {
        let (counter, recipient) = match &self.ledger {
            Ledger::Answered(answered) => {
                (answered.next_counter(flow)?, self.flows.recipient(flow))
            }
            Ledger::Counted(counted) => (counted.next_counter(flow)?, self.flows.recipient(flow)),
            // The body is the same for all members, so it names the group's sender.
            Ledger::Groups(groups) => (groups.next_counter(flow)?, self.flows.sender(flow)),
            Ledger::Crowds(crowds) => (crowds.next_counter(flow)?, self.flows.sender(flow)),
        };
        let late_us = now_us.saturating_sub(intended_us);
        Some(Payload {
            run: self.run,
            flow,
            sender: self.flows.user(self.flows.sender(flow)),
            recipient: self.flows.user(recipient),
            counter,
            intended_us,
            late_us: u32::try_from(late_us).map_or(LATE_US_MAX, |late_us| late_us),
            is_answer: false,
        })
    }

    pub(crate) fn sent(&mut self, payload: &Payload) {
        let copies = match &mut self.ledger {
            Ledger::Answered(answered) => answered.sent(payload),
            Ledger::Counted(counted) => counted.sent(payload),
            Ledger::Groups(groups) => groups.sent(payload),
            Ledger::Crowds(crowds) => crowds.sent(payload),
        };
        self.counts.sent += copies;
        self.counts.answers += u64::from(payload.is_answer);
        if !self.promises.answers {
            self.counts.accepted += copies;
        }
        if !self.calm_since_us.is_empty()
            && self.flows.groups().is_none()
            && self.flows.crowds().is_none()
            && let Some(recipient) = self.flows.index_of(payload.recipient)
        {
            self.counts.to_absent +=
                u64::from(self.calm_since_us.get(recipient as usize) == Some(&u64::MAX));
        }
    }

    /// The system has taken a message, to all its recipients.
    pub(crate) fn accepted(
        &mut self,
        name: MessageName,
        place: Option<ConvSeq>,
        duplicate: bool,
        now_us: u64,
    ) {
        let intended_us = match &mut self.ledger {
            Ledger::Answered(answered) => {
                answered.accepted(name, place, duplicate, &mut self.counts)
            }
            Ledger::Groups(groups) if self.promises.answers => {
                let copies = u64::from(groups.members());
                groups.accepted(name, copies, duplicate, &mut self.counts)
            }
            Ledger::Crowds(crowds) => crowds.accepted(name, place, duplicate, &mut self.counts),
            Ledger::Groups(_) | Ledger::Counted(_) => None,
        };
        self.record_answer(name.flow, intended_us, now_us);
    }

    /// The system has taken one member's copy of a message to a group.
    pub(crate) fn accepted_copy(&mut self, name: MessageName, duplicate: bool, now_us: u64) {
        if let Ledger::Groups(groups) = &mut self.ledger {
            let intended_us = groups.accepted(name, 1, duplicate, &mut self.counts);
            self.record_answer(name.flow, intended_us, now_us);
        }
    }

    /// Not for a sender to whom something was done: it could not hear the answer.
    fn record_answer(&mut self, flow: u32, intended_us: Option<u64>, now_us: u64) {
        let Some(intended_us) = intended_us.filter(|_| self.timed) else {
            return;
        };
        let touched = !self.calm_since_us.is_empty();
        if !touched || !self.is_affected(self.flows.sender(flow), intended_us) {
            record(&mut self.times.sent_latency_us, intended_us, now_us);
        }
    }

    pub(crate) fn refused(&mut self, name: MessageName, code: u16, will_retry: bool) {
        let counts = &mut self.counts;
        match &mut self.ledger {
            Ledger::Answered(answered) => answered.refused(name, code, will_retry, counts),
            Ledger::Crowds(crowds) if !will_retry => crowds.refused(name, code, counts),
            Ledger::Groups(_) | Ledger::Counted(_) | Ledger::Crowds(_) if will_retry => {
                *counts.deferred.entry(code).or_default() += 1;
            }
            Ledger::Groups(_) | Ledger::Counted(_) | Ledger::Crowds(_) => {
                *counts.refused.entry(code).or_default() += 1;
            }
        }
    }

    /// A delivered mark reached `sender` (an index of the slice) from `peer`.
    pub(crate) fn receipt(&mut self, sender: u32, peer: UserId, up_to: ConvSeq) {
        if let (Ledger::Answered(answered), Some(flow)) =
            (&mut self.ledger, self.flows.between(sender, peer))
        {
            answered.receipt(flow, up_to);
        }
    }

    /// A read mark reached `sender` from `peer`.
    pub(crate) fn read_receipt(&mut self, sender: u32, peer: UserId, up_to: ConvSeq) {
        if let (Ledger::Answered(answered), Some(flow)) =
            (&mut self.ledger, self.flows.between(sender, peer))
        {
            answered.read_receipt(flow, up_to);
        }
    }

    // --- the recipient's side

    /// A message reached user `recipient` of the slice.
    pub(crate) fn arrived(
        &mut self,
        recipient: u32,
        said: Said,
        body: &[u8],
        now_us: u64,
    ) -> Option<Arrived> {
        let Said { author, place, .. } = said;
        let Ok(payload) = Payload::decode(body) else {
            self.counts.corrupt += 1;
            return None;
        };
        if payload.run != self.run {
            self.counts.foreign += 1;
            return None;
        }
        let is_reader = match self.flows.groups() {
            _ if let Some(crowds) = self.flows.crowds() => {
                let group = payload.flow / WRITERS;
                // One of no group is judged by the account: nobody sent it.
                group >= crowds.len()
                    || (said.crowd == Some(group)
                        && crowds.seat(group, recipient).is_some()
                        && payload.sender != self.flows.user(recipient))
            }
            // One of no group is judged by the account: nobody sent it.
            Some(groups) if payload.flow < groups.count => {
                groups.members_of(payload.flow).contains(&recipient)
            }
            Some(_) => true,
            None => payload.recipient == self.flows.user(recipient),
        };
        if !is_reader || author.is_some_and(|author| author != payload.sender) {
            self.counts.misrouted += 1;
            return None;
        }
        let counts = &mut self.counts;
        let judgement = match &mut self.ledger {
            Ledger::Answered(answered) => answered.arrived(&payload, place, counts),
            Ledger::Counted(counted) => counted.arrived(&payload, place, counts),
            Ledger::Groups(groups) => groups.arrived(&payload, recipient, counts),
            Ledger::Crowds(crowds) => {
                let group = payload.flow / WRITERS;
                let seat = self
                    .flows
                    .crowds()
                    .and_then(|all| all.seat(group, recipient));
                match seat {
                    Some(seat) => crowds.arrived(&payload, seat, place, counts),
                    None => Judgement::Invented,
                }
            }
        };
        match judgement {
            Judgement::First => {}
            Judgement::Again => {
                counts.duplicated += 1;
                return None;
            }
            Judgement::Invented => {
                counts.corrupt += 1;
                return None;
            }
        }
        counts.delivered += 1;
        self.record_arrival(&payload, recipient, now_us);
        Some(Arrived {
            flow: payload.flow,
            counter: payload.counter,
            is_answer: payload.is_answer,
        })
    }

    fn record_arrival(&mut self, payload: &Payload, recipient: u32, now_us: u64) {
        if !self.timed {
            return;
        }
        let intended_us = payload.intended_us;
        if !self.calm_since_us.is_empty() {
            let sender = self.flows.sender(payload.flow);
            if self.is_affected(recipient, intended_us) || self.is_affected(sender, intended_us) {
                record(&mut self.times.affected_latency_us, intended_us, now_us);
                return;
            }
        }
        let handed_us = intended_us + u64::from(payload.late_us);
        record(&mut self.times.latency_us, intended_us, now_us);
        record(&mut self.times.service_us, handed_us, now_us);
        if self.storm_us.contains(&intended_us) {
            record(&mut self.times.storm_latency_us, intended_us, now_us);
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

    /// How far the reader of a flow can mark it as read; from now on the mark is awaited.
    pub(crate) fn mark_read(&mut self, flow: u32) -> Option<ConvSeq> {
        match &mut self.ledger {
            Ledger::Answered(answered) => answered.mark_read(flow),
            Ledger::Counted(_) | Ledger::Groups(_) | Ledger::Crowds(_) => None,
        }
    }

    // --- groups that change

    /// A member of a group is going to be removed.
    pub(crate) fn will_change(&mut self, group: u32, user: u32) {
        let seat = self.flows.crowds().and_then(|all| all.seat(group, user));
        if let (Ledger::Crowds(crowds), Some(seat)) = (&mut self.ledger, seat) {
            crowds.will_change(seat);
        }
    }

    /// It was removed, or added again, at this place of the group's conversation.
    pub(crate) fn group_changed(&mut self, group: u32, user: u32, added: bool, place: ConvSeq) {
        let seat = self.flows.crowds().and_then(|all| all.seat(group, user));
        if let (Ledger::Crowds(crowds), Some(seat)) = (&mut self.ledger, seat) {
            crowds.changed(seat, added, place);
        }
    }

    pub(crate) const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Running totals: latency, service time, time to the answer.
    pub(crate) const fn times_us(&self) -> [&Histogram<u64>; 3] {
        let times = &self.times;
        [&times.latency_us, &times.service_us, &times.sent_latency_us]
    }

    pub(crate) const fn flows(&self) -> &Flows {
        &self.flows
    }
}

fn record(histogram: &mut Histogram<u64>, from_us: u64, now_us: u64) {
    histogram.saturating_record(now_us.saturating_sub(from_us).max(1));
}

#[cfg(test)]
mod tests;
