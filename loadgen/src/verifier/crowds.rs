//! The account of groups that the gateway keeps: every message to each member, in one order for all,
//! and to nobody who is not a member.
//!
//! A message counts once per member besides its author. Its place in the group's conversation is told
//! to its author and to each member, and must be the same. Who has been removed and added again is
//! judged by places too: a message belongs to a member if its place lies outside of the time away, which
//! begins and ends at the places of the two changes. As that is known for sure only when both changes
//! have been heard of, what reaches such a member is kept until the end.
//!
//! # Memory
//! 8 bytes for each message, of which there are at most [`PLACES_MAX`]; 48 bytes for each member of
//! each group; 8 for each message to a member who was ever removed.

use super::{
    Counts, Judgement,
    window::{Step, Window},
};
use crate::{
    fleet::MessageName,
    payload::Payload,
    plan::{Crowds, WRITERS},
};
use portico_wire::ids::ConvSeq;
use rustc_hash::FxHashMap;
use std::{mem::size_of, rc::Rc};

/// Messages of one worker whose places are kept; then no more are sent.
const PLACES_MAX: usize = 16_000_000;
/// Messages of a flow whose times are kept for their answers.
const RECENT: usize = 4;
/// The place of a message that nobody has named yet.
const UNKNOWN: u64 = 0;

#[derive(Debug, Default)]
struct Flow {
    /// By counter; [`UNKNOWN`] until somebody has named it.
    places: Vec<u64>,
    recent: [u64; RECENT],
}

/// What a member has of its group.
#[derive(Clone, Copy, Debug, Default)]
struct Seat {
    last_place: u64,
    got: u32,
    windows: [Window; WRITERS as usize],
}

/// A member who was removed, and perhaps added again.
#[derive(Debug, Default)]
struct Changed {
    /// The places of its removals and additions, in turn.
    edges: Vec<u64>,
    /// The places of what it got since it was first to be removed.
    got: Vec<u64>,
    /// What it had got before.
    got_before: u32,
}

impl Changed {
    fn is_outside(&self, place: u64) -> bool {
        let passed = self.edges.partition_point(|edge| *edge < place);
        passed % 2 == 1
    }
}

#[derive(Debug)]
pub(super) struct CrowdCounts {
    crowds: Rc<Crowds>,
    flows: Vec<Flow>,
    seats: Vec<Seat>,
    changed: FxHashMap<u32, Changed>,
    places: usize,
    /// Copies accepted, of all messages.
    accepted: u64,
}

impl CrowdCounts {
    pub(super) fn new(crowds: Rc<Crowds>) -> Self {
        let flows = (crowds.len() * WRITERS) as usize;
        Self {
            flows: std::iter::repeat_with(Flow::default).take(flows).collect(),
            seats: vec![Seat::default(); crowds.seats_total()],
            changed: FxHashMap::default(),
            places: 0,
            accepted: 0,
            crowds,
        }
    }

    fn copies(&self, flow: u32) -> u64 {
        u64::from(self.crowds.size(flow / WRITERS)) - 1
    }

    pub(super) fn next_counter(&self, flow: u32) -> Option<u32> {
        let next = self.flows[flow as usize].places.len();
        (self.places < PLACES_MAX).then_some(next as u32)
    }

    /// Returns how many deliveries it should have.
    pub(super) fn sent(&mut self, payload: &Payload) -> u64 {
        let flow = &mut self.flows[payload.flow as usize];
        flow.recent[payload.counter as usize % RECENT] = payload.intended_us;
        flow.places.push(UNKNOWN);
        self.places += 1;
        self.copies(payload.flow)
    }

    /// Returns when the message was due, if that is still known.
    pub(super) fn accepted(
        &mut self,
        name: MessageName,
        place: Option<ConvSeq>,
        duplicate: bool,
        counts: &mut Counts,
    ) -> Option<u64> {
        self.flows.get(name.flow as usize)?;
        let copies = self.copies(name.flow);
        counts.accepted += copies;
        self.accepted += copies;
        counts.accepted_before += if duplicate { copies } else { 0 };
        self.note_place(name.flow, name.counter, place, counts);
        let flow = self.flows.get(name.flow as usize)?;
        let behind = flow.places.len().checked_sub(name.counter as usize + 1)?;
        (behind < RECENT).then(|| flow.recent[name.counter as usize % RECENT])
    }

    pub(super) fn refused(&self, name: MessageName, code: u16, counts: &mut Counts) {
        if (name.flow as usize) < self.flows.len() {
            *counts.refused.entry(code).or_default() += self.copies(name.flow);
        }
    }

    /// All who name a message's place must name the same.
    fn note_place(&mut self, flow: u32, counter: u32, place: Option<ConvSeq>, counts: &mut Counts) {
        let known = self.flows.get_mut(flow as usize);
        let known = known.and_then(|flow| flow.places.get_mut(counter as usize));
        if let (Some(known), Some(place)) = (known, place) {
            if *known == UNKNOWN {
                *known = place.0;
            } else if *known != place.0 {
                counts.misnumbered += 1;
            }
        }
    }

    /// A message reached a user, who sits in `seat`.
    pub(super) fn arrived(
        &mut self,
        payload: &Payload,
        seat: u32,
        place: Option<ConvSeq>,
        counts: &mut Counts,
    ) -> Judgement {
        let flow = self.flows.get(payload.flow as usize);
        if flow.is_none_or(|flow| payload.counter as usize >= flow.places.len()) {
            return Judgement::Invented;
        }
        self.note_place(payload.flow, payload.counter, place, counts);
        let writer = (payload.flow % WRITERS) as usize;
        let Some(state) = self.seats.get_mut(seat as usize) else {
            return Judgement::Invented;
        };
        let step = state.windows[writer].arrive(payload.counter);
        if step == Step::Again {
            return Judgement::Again;
        }
        let place = place.map_or(0, |place| place.0);
        // Behind a later one of its author, or of anybody.
        if step == Step::Late || (place != 0 && place < state.last_place) {
            counts.reordered += 1;
        }
        state.last_place = state.last_place.max(place);
        state.got += 1;
        if let Some(changed) = self.changed.get_mut(&seat) {
            changed.got.push(place);
        }
        Judgement::First
    }

    /// A member is going to be removed: from now on what reaches it is kept.
    pub(super) fn will_change(&mut self, seat: u32) {
        let got = self.seats.get(seat as usize).map_or(0, |seat| seat.got);
        self.changed.entry(seat).or_insert_with(|| Changed {
            got_before: got,
            ..Changed::default()
        });
    }

    /// A member was removed or added at this place. Everybody tells; the first one counts.
    pub(super) fn changed(&mut self, seat: u32, added: bool, place: ConvSeq) {
        if let Some(changed) = self.changed.get_mut(&seat) {
            let next_is_added = changed.edges.len() % 2 == 1;
            let is_news = changed.edges.last().is_none_or(|last| *last < place.0);
            if next_is_added == added && is_news {
                changed.edges.push(place.0);
            }
        }
    }

    /// Messages to members who were outside when they were said, of those whose place is known: nobody
    /// waits for these; and what reached one of them all the same.
    fn outside(&self) -> (u64, u64) {
        let (mut excused, mut strays) = (0, 0);
        for (seat, changed) in &self.changed {
            strays += changed
                .got
                .iter()
                .filter(|place| changed.is_outside(**place))
                .count() as u64;
            let group = self.group_of(*seat);
            self.each_place(group, *seat, &mut |place| {
                excused += u64::from(changed.is_outside(place));
            });
        }
        (excused, strays)
    }

    fn group_of(&self, seat: u32) -> u32 {
        // The last group that begins at or before the seat.
        let (mut low, mut high) = (0, self.crowds.len());
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.crowds.seats_of(middle).start <= seat {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Each message of a group that somebody else than the user of `seat` has written.
    fn each_place(&self, group: u32, seat: u32, each: &mut dyn FnMut(u64)) {
        for flow in group * WRITERS..(group + 1) * WRITERS {
            if self.crowds.seat(group, self.crowds.writer(flow)) == Some(seat) {
                continue;
            }
            let places = self.flows[flow as usize].places.iter();
            places
                .filter(|place| **place != UNKNOWN)
                .for_each(|place| each(*place));
        }
    }

    pub(super) fn is_settled(&self, counts: &Counts) -> bool {
        let refused = counts.refused_total();
        if counts.accepted + refused < counts.sent {
            return false;
        }
        if self.changed.is_empty() {
            return counts.delivered >= counts.accepted;
        }
        let (excused, strays) = self.outside();
        counts.delivered - strays >= counts.accepted.saturating_sub(excused)
    }

    /// The last word: what each member lacks, and what reached those who were no members.
    pub(super) fn judge_open(&self, counts: &mut Counts) -> u64 {
        let (excused, strays) = self.outside();
        let refused = counts.refused_total();
        counts.unanswered = counts.sent.saturating_sub(counts.accepted + refused);
        counts.misrouted += strays;
        counts.delivered -= strays.min(counts.delivered);
        for group in 0..self.crowds.len() {
            let flows = group * WRITERS..(group + 1) * WRITERS;
            let known: Vec<u64> = flows
                .clone()
                .map(|flow| {
                    let places = &self.flows[flow as usize].places;
                    places.iter().filter(|place| **place != UNKNOWN).count() as u64
                })
                .collect();
            let total: u64 = known.iter().sum();
            let writers: Vec<Option<u32>> = flows
                .map(|flow| self.crowds.seat(group, self.crowds.writer(flow)))
                .collect();
            for seat in self.crowds.seats_of(group) {
                let own = writers.iter().zip(&known);
                let own: u64 = own
                    .filter(|(writer, _)| **writer == Some(seat))
                    .map(|(_, known)| *known)
                    .sum();
                let (mut wanted, mut got) = (total - own, u64::from(self.seats[seat as usize].got));
                if let Some(changed) = self.changed.get(&seat) {
                    let inside = changed
                        .got
                        .iter()
                        .filter(|place| !changed.is_outside(**place));
                    got = u64::from(changed.got_before) + inside.count() as u64;
                    wanted = 0;
                    self.each_place(group, seat, &mut |place| {
                        wanted += u64::from(!changed.is_outside(place));
                    });
                }
                counts.lost += wanted.saturating_sub(got);
            }
        }
        // They were never meant to have these.
        counts.sent -= excused.min(counts.sent);
        counts.accepted -= excused.min(counts.accepted);
        strays
    }

    pub(super) fn bytes(&self) -> usize {
        let places: usize = self
            .flows
            .iter()
            .map(|flow| flow.places.capacity() * 8)
            .sum();
        let changed: usize = self
            .changed
            .values()
            .map(|changed| changed.got.capacity() * 8)
            .sum();
        places
            + changed
            + self.flows.capacity() * size_of::<Flow>()
            + self.seats.capacity() * size_of::<Seat>()
    }
}
