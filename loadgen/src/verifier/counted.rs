//! The account of messages between two users that nobody answers: counters alone.
//!
//! A late message is told from a repeated one while it is less than [`super::window::WINDOW`] behind
//! the newest of its flow; beyond that it counts as repeated, and as lost too. Either fails the run.

use super::{
    Counts, Judgement,
    window::{Step, Window},
};
use crate::payload::Payload;
use portico_wire::ids::ConvSeq;

#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    arrived: Window,
    /// The place of the newest that arrived.
    arrived_at: ConvSeq,
    /// Of the next message.
    next_counter: u32,
}

#[derive(Debug)]
pub(super) struct Counted {
    flows: Vec<Flow>,
}

impl Counted {
    pub(super) fn new(flows: usize) -> Self {
        Self {
            flows: vec![Flow::default(); flows],
        }
    }

    pub(super) fn next_counter(&self, flow: u32) -> Option<u32> {
        Some(self.flows[flow as usize].next_counter).filter(|counter| *counter < u32::MAX)
    }

    pub(super) fn sent(&mut self, payload: &Payload) -> u64 {
        self.flows[payload.flow as usize].next_counter = payload.counter + 1;
        1
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
        let in_order = match flow.arrived.arrive(payload.counter) {
            Step::Again => return Judgement::Again,
            Step::Late => false,
            Step::Ahead => {
                let ascends = place.is_none_or(|place| place > flow.arrived_at);
                flow.arrived_at = place.unwrap_or(flow.arrived_at);
                ascends
            }
        };
        counts.reordered += u64::from(!in_order);
        Judgement::First
    }

    pub(super) fn bytes(&self) -> usize {
        self.flows.capacity() * size_of::<Flow>()
    }
}
