//! Requests that are asked once and answered with a value: what the server does once, however often it
//! comes, goes again after the end of a connection; the others end with it.

use super::{
    next_corr,
    work::{Open, Pump, Request, Work},
};
use crate::session::event::AskId;
use portico_wire::{Flags, Op};
use std::mem;

/// Where a frame has its flags and its corr.
const FLAGS_AT: usize = 5;
const CORR_AT: usize = 8;

/// A request, ready to be written.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) id: AskId,
    pub(crate) op: Op,
    /// The whole frame; its corr is written when it goes out.
    pub(crate) frame: Box<[u8]>,
    /// The server does it once, however often it comes.
    pub(crate) repeats: bool,
}

impl Ask {
    fn put(&self, out: &mut Vec<u8>, corr: u32) {
        let at = out.len();
        out.extend_from_slice(&self.frame);
        if let Some(place) = out.get_mut(at + CORR_AT..at + CORR_AT + 4) {
            place.copy_from_slice(&corr.to_le_bytes());
        }
    }

    /// An earlier attempt may have been done.
    fn mark_retry(&mut self) {
        if let Some(flags) = self.frame.get_mut(FLAGS_AT)
            && Flags(*flags).contains(Flags::ROUTED)
        {
            *flags |= Flags::RETRY.0;
        }
    }
}

impl Work {
    pub(super) fn pump_asked(&mut self, pump: &mut Pump<'_>) {
        while self.has_room(pump)
            && let Some(ask) = self.asked.pop_front()
        {
            let corr = next_corr(pump.corr);
            ask.put(pump.out, corr);
            let request = Request::Ask(ask);
            self.open.push_back(Open { corr, request });
        }
        if self.asked.is_empty() {
            self.asked = Default::default();
        }
    }

    /// The connection of a request has ended before its answer.
    pub(super) fn ask_unanswered(&mut self, mut ask: Ask, again: &mut Vec<Ask>) {
        if ask.repeats {
            ask.mark_retry();
            again.push(ask);
        } else {
            self.unanswered.push(ask.id);
        }
    }

    /// Requests that ended without an answer, and of whom nobody has been told.
    pub(super) fn take_unanswered(&mut self) -> Vec<AskId> {
        mem::take(&mut self.unanswered)
    }
}
