//! What the threads of a run share: how far it is, and what each has to show for it.

use crate::series::Mailbox;
use std::{
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
};

/// Where a run stands. Only ever goes forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Stage {
    Connecting,
    Sending,
    /// Send no more; wait for what is on its way.
    Draining,
    /// Every worker is done, or the run is given up: close.
    Finishing,
}

/// What the coordinating thread tells the workers, and what makes one of them stop the run.
#[derive(Debug)]
pub(crate) struct Control {
    stage: AtomicU8,
    start_us: AtomicU64,
    /// When held connections are cut, and when the last of them was back.
    cut_us: AtomicU64,
    back_us: AtomicU64,
    obstacle: Mutex<Option<String>>,
}

impl Control {
    pub(crate) const fn new() -> Self {
        Self {
            stage: AtomicU8::new(Stage::Connecting as u8),
            start_us: AtomicU64::new(0),
            cut_us: AtomicU64::new(u64::MAX),
            back_us: AtomicU64::new(u64::MAX),
            obstacle: Mutex::new(None),
        }
    }

    /// The first message is due at `start_us`.
    pub(crate) fn start(&self, start_us: u64) {
        self.start_us.store(start_us, Ordering::Relaxed);
        // Release: whoever sees the stage sees the start.
        self.stage.store(Stage::Sending as u8, Ordering::Release);
    }

    /// When the first message is due; known from the stage of sending on.
    pub(crate) fn start_us(&self) -> u64 {
        self.start_us.load(Ordering::Relaxed)
    }

    /// Ends the sending before its time. Not after [`Self::finish`].
    pub(crate) fn drain(&self) {
        self.stage.store(Stage::Draining as u8, Ordering::Release);
    }

    pub(crate) fn finish(&self) {
        self.stage.store(Stage::Finishing as u8, Ordering::Release);
    }

    pub(crate) fn reached(&self, stage: Stage) -> bool {
        self.stage.load(Ordering::Acquire) >= stage as u8
    }

    /// Sets the time at which every held connection is cut.
    pub(crate) fn cut_at(&self, cut_us: u64) {
        self.cut_us.store(cut_us, Ordering::Relaxed);
    }

    /// All that were cut are back.
    pub(crate) fn all_back(&self, back_us: u64) {
        self.back_us.store(back_us, Ordering::Relaxed);
    }

    /// From the cut until all are back; empty when nothing is cut, open until they are.
    pub(crate) fn storm_us(&self) -> Range<u64> {
        self.cut_us.load(Ordering::Relaxed)..self.back_us.load(Ordering::Relaxed)
    }

    /// Why no connection of this run can work; the first reason stays.
    pub(crate) fn obstruct(&self, reason: String) {
        let mut obstacle = self.obstacle.lock().unwrap_or_else(PoisonError::into_inner);
        obstacle.get_or_insert(reason);
    }

    pub(crate) fn obstacle(&self) -> Option<String> {
        let obstacle = self.obstacle.lock().unwrap_or_else(PoisonError::into_inner);
        obstacle.clone()
    }
}

/// A worker's numbers while it runs, for progress lines and what happened by the second. The totals
/// of the report do not come from here.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    pub up: AtomicU64,
    pub sent: AtomicU64,
    pub accepted: AtomicU64,
    pub delivered: AtomicU64,
    /// What went wrong: messages refused for good or damaged or out of place, connections that
    /// ended or did not come about.
    pub errors: AtomicU64,
    /// Each second's times, for the report too.
    pub intervals: Mailbox,
    /// Everything has arrived, or the time for it is over.
    pub done: AtomicBool,
}
