//! A message to a group at the home of some of its members: it gets a number in each of their inboxes,
//! one write for all of them, and is shown in order.
//!
//! What comes while the store has enough to do waits in order; homes of groups bound how much of theirs
//! can be under way. A write that failed is made again with fresh numbers, because a reader may have
//! passed the old ones.

use super::{GroupMessage, GroupPurpose, RETRY_US, Spread};
use crate::{
    home::ShardId,
    mesh::ShardMessage,
    metrics::Counter,
    pool::GiveBack,
    shard::{Shard, Turn},
    store::{InboxRef, StoreCmd, StoreError},
    stored::Purpose,
};
use portico_wire::ids::Seq;
use std::{collections::VecDeque, sync::Arc};

#[derive(Debug)]
struct FanIn {
    origin: ShardId,
    token: u64,
    spread: Arc<Spread>,
}

/// Messages to groups that wait for the store.
#[derive(Debug, Default)]
pub(crate) struct FanIns {
    waiting: VecDeque<FanIn>,
    /// After a failure, when the next attempt is made.
    resume_us: Option<u64>,
}

impl FanIns {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) const fn next_us(&self) -> Option<u64> {
        self.resume_us
    }
}

impl GiveBack for FanIns {
    fn give_back(&mut self) {
        self.waiting.give_back();
    }
}

impl Shard {
    pub(crate) fn on_fan_out(
        &mut self,
        origin: ShardId,
        token: u64,
        spread: Arc<Spread>,
        cx: &mut Turn<'_>,
    ) {
        let fan_in = FanIn {
            origin,
            token,
            spread,
        };
        let waits = !self.fan_ins.waiting.is_empty() || self.fan_ins.resume_us.is_some();
        if waits || self.is_store_full() {
            self.fan_ins.waiting.push_back(fan_in);
            self.fan_ins
                .resume_us
                .get_or_insert(cx.now.mono_us + RETRY_US);
        } else {
            self.take_in(fan_in, cx);
        }
    }

    /// The time has come, or the store has answered.
    pub(crate) fn resume_fan_ins(&mut self, cx: &mut Turn<'_>) {
        if self.fan_ins.resume_us.is_none_or(|at| at > cx.now.mono_us) {
            return;
        }
        while !self.is_store_full()
            && let Some(fan_in) = self.fan_ins.waiting.pop_front()
        {
            self.take_in(fan_in, cx);
        }
        let left = !self.fan_ins.waiting.is_empty();
        self.fan_ins.resume_us = left.then_some(cx.now.mono_us + RETRY_US);
    }

    fn take_in(&mut self, fan_in: FanIn, cx: &mut Turn<'_>) {
        let FanIn {
            origin,
            token,
            spread,
        } = fan_in;
        let (conv, conv_seq) = (spread.entry.conv, spread.entry.conv_seq);
        // As for a direct message: no inbox is behind what stands in it.
        self.seq.observe(conv_seq.0);
        let users = spread.roll.of(self.config.shard);
        let first = self.seq.next_many(cx.now.wall_us, users.len());
        let refs = users.iter().zip(first..).map(|(user, seq)| InboxRef {
            user: *user,
            seq: Seq(seq),
            conv,
            conv_seq,
        });
        let refs = refs.collect();
        let place = self
            .lane
            .push_spread(spread.clone(), Seq(first), users.len());
        let purpose = Purpose::Group(GroupPurpose::FanIn {
            place,
            origin,
            token,
        });
        self.submit(purpose, StoreCmd::AddRefs { refs }, cx);
    }

    pub(crate) fn on_fan_in_stored(
        &mut self,
        place: u64,
        origin: ShardId,
        token: u64,
        result: Result<(), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let again = match result {
            Ok(()) => false,
            Err(StoreError::Overloaded { .. } | StoreError::Unavailable | StoreError::Unknown) => {
                true
            }
            // The marker stays, and the next start tries again.
            Err(StoreError::Conflict | StoreError::Invalid | StoreError::Fatal) => false,
        };
        if again {
            self.counters.bump(Counter::FanInsRepeated);
        }
        if again && let Some(spread) = self.lane.spread_at(place) {
            self.fan_ins.waiting.push_front(FanIn {
                origin,
                token,
                spread,
            });
            self.fan_ins.resume_us = Some(cx.now.mono_us + RETRY_US);
        }
        self.lane.settle(place, result);
        self.show_visible(cx);
        if !again {
            let stored = result.is_ok();
            let message = GroupMessage::FanOutDone { token, stored };
            self.post(origin, ShardMessage::Group(message), cx);
        }
    }
}
