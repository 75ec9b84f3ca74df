//! Leaving: every client is told, gets time to go, and is closed at the deadline.

use crate::{
    conn::Phase,
    shard::{Shard, Turn},
};
use portico_wire::{CloseCode, message};

/// Connections told in one slice, and the pause until the next.
const SLICE: usize = 1_024;
const SLICE_PAUSE_US: u64 = 10_000;

/// A drain in progress.
#[derive(Debug)]
pub(crate) struct Drain {
    spread_ms: u32,
    deadline_us: u64,
    /// The first connection that has not been told.
    next: usize,
    /// When to go on.
    at_us: Option<u64>,
}

impl Drain {
    pub(crate) const fn next_us(&self) -> Option<u64> {
        self.at_us
    }
}

impl Shard {
    pub(crate) fn begin_drain(&mut self, spread_ms: u32, deadline_ms: u32, cx: &mut Turn<'_>) {
        self.drain = Some(Drain {
            spread_ms,
            deadline_us: cx.now.mono_us + u64::from(deadline_ms) * 1_000,
            next: 0,
            at_us: Some(cx.now.mono_us),
        });
    }

    pub(crate) fn continue_drain(&mut self, cx: &mut Turn<'_>) {
        let now_us = cx.now.mono_us;
        let Some(drain) = &self.drain else {
            return;
        };
        if drain.at_us.is_none_or(|at| at > now_us) {
            return;
        }
        let (first, spread_ms, deadline_us) = (drain.next, drain.spread_ms, drain.deadline_us);
        if now_us >= deadline_us {
            self.end_drain(cx);
            return;
        }
        let last = self.conns.len().min(first + SLICE);
        let left_ms = u32::try_from((deadline_us - now_us) / 1_000).unwrap_or(u32::MAX);
        for index in first..last {
            self.tell_drain(index as u32, spread_ms, left_ms, cx);
        }
        let told_all = last == self.conns.len();
        if let Some(drain) = &mut self.drain {
            drain.next = last;
            drain.at_us = Some(if told_all {
                deadline_us
            } else {
                now_us + SLICE_PAUSE_US
            });
        }
    }

    fn tell_drain(&mut self, index: u32, spread_ms: u32, left_ms: u32, cx: &mut Turn<'_>) {
        let id = self.id_of(index);
        match self.conns[index as usize].phase {
            Phase::Free | Phase::Moving => {}
            Phase::Greeting | Phase::Authenticating => {
                self.close(id, CloseCode::DRAINING, "the gateway is going away", cx);
            }
            Phase::Loading | Phase::Open => {
                let drain = message::Drain {
                    spread_ms: spread_ms.min(left_ms),
                    deadline_ms: left_ms,
                    endpoints: Vec::new(),
                };
                self.write(id, cx, |out, encoder| encoder.drain(out, &drain));
            }
        }
    }

    /// The time is over: whoever is still here is closed.
    fn end_drain(&mut self, cx: &mut Turn<'_>) {
        for index in 0..self.conns.len() as u32 {
            let id = self.id_of(index);
            self.close(id, CloseCode::DRAINING, "the gateway is going away", cx);
        }
        if let Some(drain) = &mut self.drain {
            drain.at_us = None;
        }
    }
}
