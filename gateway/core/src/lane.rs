//! The order in which inbox entries of this shard become visible.
//!
//! Every reference that this shard submits gets the next number of one clock and a place in this
//! queue. It is shown only when it has reached the front, that is when every smaller number is
//! durable or will never be (rule O1). So a cursor can never pass an entry that appears later.

use crate::{
    groups::Spread,
    pool::GiveBack,
    store::{Entry, StoreError},
};
use portico_wire::ids::{Seq, UserId};
use std::{collections::VecDeque, sync::Arc};

/// Whose inboxes get something.
#[derive(Debug)]
pub(crate) enum Whose {
    /// What to show is absent when nobody was there to see it, or when the store knows better: then
    /// connections read it from there.
    One(UserId, Option<Entry>),
    /// The members of a group that are at home here, one number each.
    Members(Arc<Spread>),
}

/// A reference on its way to an inbox, or one for each of some members of a group.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) whose: Whose,
    /// The first number.
    pub(crate) seq: Seq,
    /// How many there are.
    count: u32,
    state: State,
}

impl Pending {
    /// It is in the store and may be shown. Otherwise it failed, or its fate is not known.
    pub(crate) fn is_durable(&self) -> bool {
        self.state == State::Durable
    }

    /// It may be in the store, though nobody can say so but the store itself.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.state == State::Doubtful
    }

    /// A group's home counts those of its messages.
    fn body_bytes(&self) -> usize {
        match &self.whose {
            Whose::One(_, entry) => entry.as_ref().map_or(0, |entry| entry.body.len()),
            Whose::Members(_) => 0,
        }
    }

    const fn last_seq(&self) -> Seq {
        Seq(self.seq.0 + (self.count as u64).saturating_sub(1))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Durable,
    /// Failed, and not there.
    Gone,
    /// Perhaps there: never shown from memory.
    Doubtful,
}

impl State {
    const fn of(result: Result<(), StoreError>) -> Self {
        match result {
            Ok(()) => Self::Durable,
            Err(
                StoreError::Overloaded { .. }
                | StoreError::Unavailable
                | StoreError::Conflict
                | StoreError::Invalid,
            ) => Self::Gone,
            Err(StoreError::Unknown | StoreError::Fatal) => Self::Doubtful,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Lane {
    queue: VecDeque<Pending>,
    /// Bodies of settled entries, which wait for one in front of them.
    stuck_bytes: usize,
    /// Place of the front.
    first: u64,
    visible: Seq,
    newest: Seq,
}

impl GiveBack for Lane {
    fn give_back(&mut self) {
        self.queue.give_back();
    }
}

impl Lane {
    /// `visible`: a number that no entry in the store exceeds.
    pub(crate) const fn new(visible: Seq) -> Self {
        Self {
            queue: VecDeque::new(),
            stuck_bytes: 0,
            first: 0,
            visible,
            newest: visible,
        }
    }

    /// Everything of this shard up to here is settled and visible to a read submitted now.
    pub(crate) const fn visible(&self) -> Seq {
        self.visible
    }

    /// The greatest number that is in the store for certain, or the one that this life began above.
    pub(crate) const fn newest(&self) -> Seq {
        self.newest
    }

    /// The smallest number whose fate is open: a reader that goes on to it or beyond could miss it.
    pub(crate) fn unsettled(&self) -> Option<Seq> {
        self.queue.front().map(|pending| pending.seq)
    }

    /// References that are not settled, or wait behind one that is not.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// The memory of what is settled and waits: nobody counts it as in flight any more. None in the
    /// long run where the store answers in order.
    pub(crate) const fn stuck_bytes(&self) -> usize {
        self.stuck_bytes
    }

    /// Takes a place; `seq` must be greater than all before.
    pub(crate) fn push(&mut self, user: UserId, seq: Seq, entry: Option<Entry>) -> u64 {
        self.push_for(Whose::One(user, entry), seq, 1)
    }

    /// The same for members of a group, whose numbers follow each other from `first` on.
    pub(crate) fn push_spread(&mut self, spread: Arc<Spread>, first: Seq, count: usize) -> u64 {
        // At most as many as a group has members.
        self.push_for(Whose::Members(spread), first, count as u32)
    }

    fn push_for(&mut self, whose: Whose, seq: Seq, count: u32) -> u64 {
        debug_assert!(self.queue.back().map_or(self.visible, Pending::last_seq) < seq);
        self.queue.push_back(Pending {
            whose,
            seq,
            count,
            state: State::Waiting,
        });
        self.first + self.queue.len() as u64 - 1
    }

    /// What the members of a group get at this place.
    pub(crate) fn spread_at(&self, place: u64) -> Option<Arc<Spread>> {
        let index = place.wrapping_sub(self.first) as usize;
        match &self.queue.get(index)?.whose {
            Whose::One(..) => None,
            Whose::Members(spread) => Some(spread.clone()),
        }
    }

    /// The store has answered for this place.
    pub(crate) fn settle(&mut self, place: u64, result: Result<(), StoreError>) {
        let index = place.wrapping_sub(self.first) as usize;
        if let Some(pending) = self.queue.get_mut(index) {
            if pending.state == State::Waiting {
                self.stuck_bytes += pending.body_bytes();
            }
            pending.state = State::of(result);
        }
    }

    /// The next reference whose fate is known, and that of all before it. Call until there is none.
    pub(crate) fn pop_settled(&mut self) -> Option<Pending> {
        let front = self.queue.front()?;
        if front.state == State::Waiting {
            return None;
        }
        let pending = self.queue.pop_front()?;
        self.first += 1;
        self.stuck_bytes -= pending.body_bytes();
        self.visible = pending.last_seq();
        if pending.is_durable() {
            self.newest = self.visible;
        }
        Some(pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(lane: &mut Lane) -> Vec<u64> {
        std::iter::from_fn(|| lane.pop_settled())
            .filter(Pending::is_durable)
            .map(|pending| pending.seq.0)
            .collect()
    }

    #[test]
    fn nothing_overtakes_and_failures_step_aside() {
        let mut lane = Lane::new(Seq(5));
        let places: Vec<u64> = (10..14)
            .map(|seq| lane.push(UserId(1), Seq(seq), None))
            .collect();
        lane.settle(places[1], Ok(()));
        lane.settle(places[3], Ok(()));
        assert_eq!(drain(&mut lane), Vec::<u64>::new());
        assert_eq!(lane.visible(), Seq(5));
        lane.settle(places[0], Err(StoreError::Unavailable));
        assert_eq!(drain(&mut lane), vec![11]);
        assert_eq!(lane.visible(), Seq(11));
        lane.settle(places[2], Ok(()));
        assert_eq!(drain(&mut lane), vec![12, 13]);
        assert_eq!(lane.stuck_bytes(), 0);
        // A late second answer meets nothing.
        lane.settle(places[0], Ok(()));
        assert_eq!(lane.push(UserId(1), Seq(20), None), 4);
    }
}
