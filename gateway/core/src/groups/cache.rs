//! The groups that a home has in memory, and what goes on in each.

use super::{
    GroupOp,
    edit::Edit,
    fan_out::{FanOut, Retry},
    group::Group,
    receipts::GroupMarks,
    reopen::AT_ONCE_MAX,
};
use crate::{ops::Tokens, pool::GiveBack};
use portico_wire::ids::{ConvId, ConvSeq, GroupId, UserId};
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, VecDeque};

/// What a group costs beside what it holds: its slot, and its places in the table and in the queue.
const SLOT_BYTES: usize = size_of::<Slot>() + 64;

/// Old places in the queue that are not worth a look.
const PLACES_SLACK: usize = 256;

/// What goes on in a group right now.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// The record is being read.
    loading: bool,
    pub(crate) edit: Option<Edit>,
    waiting: VecDeque<GroupOp>,
    /// Messages and edits that have not gone to the members, in the order of the conversation.
    pub(crate) flights: VecDeque<u64>,
}

impl Work {
    fn is_over(&self) -> bool {
        !self.loading && self.edit.is_none() && self.waiting.is_empty() && self.flights.is_empty()
    }

    fn holds_back(&self) -> bool {
        self.loading || self.edit.is_some()
    }
}

#[derive(Debug)]
pub(crate) struct Slot {
    /// `None` while it is read.
    pub(crate) group: Option<Group>,
    pub(crate) work: Option<Box<Work>>,
    pub(crate) marks: Option<Box<GroupMarks>>,
    /// The newest message that was accepted in this life, and its author.
    pub(crate) newest: (ConvSeq, UserId),
    bytes: usize,
    /// When it was last used, in a clock of its own.
    used: u32,
    /// The time with which it stands in the queue of those that may go.
    queued: u32,
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Groups {
    table: FxHashMap<GroupId, Slot>,
    /// Each group of the table with the time at which it was put here. One that was used since goes to
    /// the end when its turn comes.
    order: VecDeque<(GroupId, u32)>,
    clock: u32,
    bytes: usize,
    bytes_max: usize,
    /// Operations that wait, of all groups.
    waiting: usize,
    pub(crate) fan_outs: Tokens<FanOut>,
    /// The length of their bodies.
    pub(crate) fan_out_bytes: usize,
    /// Writes to be tried again, and when; in order.
    pub(crate) retries: VecDeque<(u64, Retry)>,
    /// Markers found at start whose groups were not looked at yet.
    pub(crate) reopen: BTreeMap<GroupId, Vec<ConvSeq>>,
    /// Of those that were, how many are not done; and when the next are looked at.
    pub(crate) reopening: usize,
    pub(crate) reopen_us: u64,
    /// Groups with news about receipts, and when they are told.
    pub(crate) tellers: Vec<GroupId>,
    pub(crate) tell_us: Option<u64>,
    pub(crate) evicted: u64,
}

/// Where an operation stands.
#[derive(Debug)]
pub(crate) enum Load {
    /// It can be done now.
    Ready(GroupOp),
    Waits,
    /// It waits, and the group has to be read.
    Cold,
    /// Too much waits already.
    Busy(GroupOp),
}

impl Groups {
    pub(crate) fn new(bytes_max: usize, open: &[(ConvId, ConvSeq)]) -> Self {
        let mut reopen = BTreeMap::<GroupId, Vec<ConvSeq>>::new();
        for (conv, conv_seq) in open {
            if let ConvId::Group(group) = conv {
                reopen.entry(*group).or_default().push(*conv_seq);
            }
        }
        for list in reopen.values_mut() {
            list.sort_unstable();
        }
        Self {
            table: FxHashMap::default(),
            order: VecDeque::new(),
            clock: 0,
            bytes: 0,
            bytes_max,
            waiting: 0,
            fan_outs: Tokens::default(),
            fan_out_bytes: 0,
            retries: VecDeque::new(),
            reopen,
            reopening: 0,
            reopen_us: 0,
            tellers: Vec::new(),
            tell_us: None,
            evicted: 0,
        }
    }

    /// Takes an operation, unless it can be done at once.
    pub(crate) fn enqueue(&mut self, id: GroupId, op: GroupOp, waiting_max: usize) -> Load {
        let full = self.waiting >= waiting_max;
        match self.table.get_mut(&id) {
            Some(slot) => {
                self.clock = self.clock.wrapping_add(1);
                slot.used = self.clock;
                let Some(work) = &mut slot.work else {
                    return Load::Ready(op);
                };
                if !work.holds_back() && work.waiting.is_empty() {
                    return Load::Ready(op);
                }
                if full {
                    return Load::Busy(op);
                }
                self.waiting += 1;
                work.waiting.push_back(op);
                Load::Waits
            }
            None if full => Load::Busy(op),
            None => {
                let mut work = Work {
                    loading: true,
                    ..Work::default()
                };
                // What was on its way when the process ended goes first.
                let open = self.reopen.remove(&id).unwrap_or_default();
                self.reopening += open.len();
                self.waiting += open.len() + 1;
                work.waiting.extend(open.into_iter().map(GroupOp::Reopen));
                work.waiting.push_back(op);
                self.clock = self.clock.wrapping_add(1);
                let slot = Slot {
                    group: None,
                    work: Some(Box::new(work)),
                    marks: None,
                    newest: (ConvSeq(0), UserId(0)),
                    bytes: 0,
                    used: self.clock,
                    queued: self.clock,
                };
                self.table.insert(id, slot);
                self.order.push_back((id, self.clock));
                self.forget_old_places();
                Load::Cold
            }
        }
    }

    pub(crate) fn get(&self, id: GroupId) -> Option<&Group> {
        self.table.get(&id)?.group.as_ref()
    }

    pub(crate) fn slot(&mut self, id: GroupId) -> Option<&mut Slot> {
        self.table.get_mut(&id)
    }

    pub(crate) fn work(&mut self, id: GroupId) -> Option<&mut Work> {
        let slot = self.table.get_mut(&id)?;
        Some(slot.work.get_or_insert_default())
    }

    /// The group as it is from now on.
    pub(crate) fn put(&mut self, id: GroupId, group: Group) {
        if let Some(slot) = self.table.get_mut(&id) {
            if let Some(marks) = &mut slot.marks {
                marks.follow(slot.group.as_ref(), &group);
            }
            slot.group = Some(group);
            if let Some(work) = &mut slot.work {
                work.loading = false;
            }
        }
        self.weigh(id);
    }

    /// Call when a group has become larger or smaller.
    pub(crate) fn weigh(&mut self, id: GroupId) {
        if let Some(slot) = self.table.get_mut(&id) {
            let marks = slot.marks.as_ref().map_or(0, |marks| marks.bytes());
            let bytes = SLOT_BYTES + slot.group.as_ref().map_or(0, Group::bytes) + marks;
            self.bytes = self.bytes - slot.bytes + bytes;
            slot.bytes = bytes;
        }
        self.evict();
    }

    /// The group cannot be read: returns what waited for it.
    pub(crate) fn give_up(&mut self, id: GroupId) -> VecDeque<GroupOp> {
        let work = self.remove(id).and_then(|slot| slot.work);
        let waiting = work.map(|work| work.waiting).unwrap_or_default();
        self.waiting -= waiting.len();
        let markers = waiting.iter().filter(|op| matches!(op, GroupOp::Reopen(_)));
        self.reopening -= markers.count();
        for op in &waiting {
            if let GroupOp::Reopen(conv_seq) = op {
                self.reopen.entry(id).or_default().push(*conv_seq);
            }
        }
        waiting
    }

    /// The next operation that need not wait any more.
    pub(crate) fn next_waiting(&mut self, id: GroupId) -> Option<GroupOp> {
        let work = self.table.get_mut(&id)?.work.as_mut()?;
        if work.holds_back() {
            return None;
        }
        let op = work.waiting.pop_front()?;
        self.waiting -= 1;
        Some(op)
    }

    /// Forgets what is not needed if nothing goes on any more.
    pub(crate) fn rest(&mut self, id: GroupId) {
        let Some(slot) = self.table.get_mut(&id) else {
            return;
        };
        if slot.work.as_ref().is_some_and(|work| work.is_over()) {
            slot.work = None;
        }
        let none = slot.group.as_ref().is_some_and(|group| group.epoch == 0);
        if none && slot.work.is_none() {
            // Names that mean nothing take no room.
            self.remove(id);
        }
    }

    /// Its place in the queue stays until its turn comes.
    fn remove(&mut self, id: GroupId) -> Option<Slot> {
        let slot = self.table.remove(&id)?;
        self.bytes -= slot.bytes;
        Some(slot)
    }

    fn evict(&mut self) {
        let mut looks = self.order.len();
        while self.bytes > self.bytes_max && looks > 0 {
            looks -= 1;
            let Some((id, at)) = self.order.pop_front() else {
                return;
            };
            let Some(slot) = self.table.get_mut(&id) else {
                continue;
            };
            if slot.queued != at {
                continue;
            }
            let asked = slot.marks.as_ref().is_some_and(|marks| marks.is_asked());
            if slot.used == at && slot.work.is_none() && !asked {
                self.remove(id);
                self.evicted += 1;
            } else {
                slot.queued = slot.used;
                self.order.push_back((id, slot.used));
            }
        }
    }

    /// Groups that went for other reasons left their places in the queue.
    fn forget_old_places(&mut self) {
        if self.order.len() > 2 * self.table.len() + PLACES_SLACK {
            let table = &self.table;
            let valid =
                |(id, at): &(GroupId, u32)| table.get(id).is_some_and(|slot| slot.queued == *at);
            self.order.retain(valid);
        }
    }

    pub(crate) fn next_us(&self) -> Option<u64> {
        let retry = self.retries.front().map(|(at, _)| *at);
        let more = !self.reopen.is_empty() && self.reopening < AT_ONCE_MAX;
        let reopen = more.then_some(self.reopen_us);
        [retry, reopen, self.tell_us].into_iter().flatten().min()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.fan_outs.len() == 0 && self.waiting == 0 && self.retries.is_empty()
    }

    pub(crate) const fn waiting(&self) -> usize {
        self.waiting
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }
}

impl GiveBack for Groups {
    fn give_back(&mut self) {
        self.table.give_back();
        self.order.give_back();
        self.fan_outs.give_back();
        self.retries.give_back();
        self.tellers.give_back();
    }
}
