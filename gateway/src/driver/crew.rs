//! Where the driver meets glommio: the loop of a thread, which serves one shard or several.
//!
//! A busy thread blocks in the ring of its shard; with several shards, each of which has a ring of
//! its own for the sake of its table of descriptors, it blocks on the doorbell that all of them
//! ring. A tick ends the block often enough for glommio and for what is tried again. After a few
//! ticks without work the tick is taken away and the thread sleeps in glommio until the doorbell
//! rings: an idle process uses no CPU.
//!
//! Why several shards to a thread, and not a thread for each: a wake costs more than the message
//! it is for, letters within a crew need none, and a saturated machine serves its shards in turn,
//! each for a fraction of a millisecond, where a scheduler would give each a slice of its own.
//!
//! # Invariants
//! - No borrow of anything shared lives across the awaits; there are two.
//! - Before it blocks or sleeps, a crew announces it and looks at all its queues and rings once
//!   more.
//! - The first shard of a crew is its *leader*: its ring holds the tick, the deadline and the bell,
//!   and gets the wakes of other crews.

use super::{
    Driver, Work, clock,
    counters::Tally,
    ring::{Doorbell, RingError},
};
use std::{
    sync::atomic::{Ordering, fence},
    sync::mpsc,
    time::Duration,
};

/// How often a busy thread lets glommio run.
const TICK: Duration = Duration::from_millis(10);
/// The same while something waits to be tried again.
const TICK_RETRY: Duration = Duration::from_millis(2);
/// So many of those without need, and the tick slows down.
const RETRY_TICKS: u32 = 50;
/// Ticks without work before a thread sleeps.
const QUIET_TICKS: u32 = 4;

/// The shards of a thread. Never empty.
#[derive(Debug)]
pub(super) struct Crew {
    drivers: Vec<Driver>,
    doorbell: Doorbell,
    /// Fast ticks to come.
    retry_ticks: u32,
}

impl Crew {
    pub(super) fn new(mut drivers: Vec<Driver>) -> Result<Self, RingError> {
        let doorbell = Doorbell::new()?;
        for driver in &mut drivers {
            doorbell.install(&mut driver.ring)?;
        }
        if let Some(leader) = drivers.first_mut() {
            leader.ring.watch(leader.mesh.bell(leader.id));
        }
        Ok(Self {
            drivers,
            doorbell,
            retry_ticks: 0,
        })
    }

    /// Serves until the drain is complete or all shards are told to stop.
    pub(super) async fn run(&mut self, accepts: &mpsc::SyncSender<()>) -> Result<(), RingError> {
        self.turn_all();
        self.enter_all()?;
        let _ = accepts.send(());
        let mut quiet_ticks = 0;
        while !self.drivers.iter().all(Driver::is_over) {
            let period = self.tick_period();
            self.leader().ring.arm_tick(period);
            let Work { ticked, busy } = match self.drivers.len() {
                1 => self.round_alone()?,
                _ => self.round()?,
            };
            if busy {
                quiet_ticks = 0;
            } else if ticked {
                quiet_ticks += 1;
            }
            if ticked {
                self.retry_ticks = self.retry_ticks.saturating_sub(1);
            }
            if quiet_ticks >= QUIET_TICKS && self.drivers.iter().all(Driver::may_sleep) {
                quiet_ticks = 0;
                self.sleep().await?;
            } else if ticked {
                glommio::executor().yield_task_queue_now().await;
            }
        }
        self.drivers.iter_mut().for_each(Driver::publish);
        Ok(())
    }

    fn leader(&mut self) -> &mut Driver {
        &mut self.drivers[0]
    }

    fn tick_period(&mut self) -> Duration {
        if self.drivers.iter().any(Driver::waits_for_tick) {
            self.retry_ticks = RETRY_TICKS;
        }
        if self.retry_ticks > 0 {
            TICK_RETRY
        } else {
            TICK
        }
    }

    /// One shard: what it wants from the kernel, the wait, and what the kernel has for it are one
    /// system call.
    fn round_alone(&mut self) -> Result<Work, RingError> {
        let driver = self.leader();
        let waits = !driver.has_work() && driver.mesh.announce_block(driver.id);
        let entered = if waits {
            driver.ring.submit_and_wait()
        } else {
            driver.ring.submit_and_reap()
        };
        driver.mesh.unblocked(driver.id);
        entered?;
        Ok(driver.turn(false))
    }

    /// Several shards: those that have something to do, in turn; first a wait if none has.
    fn round(&mut self) -> Result<Work, RingError> {
        self.block()?;
        let now_us = clock::mono_us();
        let mut work = Work::default();
        for driver in &mut self.drivers {
            if work.ticked || driver.is_due(now_us) {
                driver.ring.submit_and_reap()?;
                let done = driver.turn(work.ticked);
                work.ticked |= done.ticked;
                work.busy |= done.busy;
            }
        }
        Ok(work)
    }

    fn block(&mut self) -> Result<(), RingError> {
        let now_us = clock::mono_us();
        if self.drivers.iter_mut().any(|driver| driver.is_due(now_us)) {
            return Ok(());
        }
        let (id, mesh) = (self.leader().id, self.leader().mesh.clone());
        if mesh.announce_block(id) {
            self.listen(true);
            // The kernel notes deferred work in the ring before it looks whether to ring. What it
            // noted before it could see us listen must be seen here.
            fence(Ordering::SeqCst);
            let news = self.drivers.iter_mut().any(|driver| driver.ring.has_news());
            let waited = if news { Ok(()) } else { self.doorbell.block() };
            self.listen(false);
            mesh.unblocked(id);
            return waited.map_err(RingError::Enter);
        }
        mesh.unblocked(id);
        Ok(())
    }

    /// Waits in glommio, without a tick.
    async fn sleep(&mut self) -> Result<(), RingError> {
        self.leader().ring.disarm_tick();
        self.enter_all()?;
        // The last of the busy time; from here on each completion rings.
        self.turn_all();
        self.doorbell.forget();
        self.listen(true);
        let slept = self.sleep_listening().await;
        let leader = self.leader();
        leader.mesh.unblocked(leader.id);
        self.listen(false);
        slept
    }

    async fn sleep_listening(&mut self) -> Result<(), RingError> {
        let leader = self.leader();
        let (id, mesh) = (leader.id, leader.mesh.clone());
        if !self.drivers.iter().all(Driver::may_sleep) || !mesh.announce_block(id) {
            return Ok(());
        }
        let deadlines = self.drivers.iter().filter_map(Driver::next_deadline_us);
        if let Some(at_us) = deadlines.min() {
            self.leader().ring.arm_deadline(at_us);
        }
        self.enter_all()?;
        let has_news = |driver: &mut Driver| driver.ring.has_news();
        if self.drivers.iter_mut().any(has_news) {
            return Ok(());
        }
        self.leader().tallies.bump(Tally::Parks);
        self.drivers.iter_mut().for_each(Driver::publish);
        self.doorbell.wait().await.map_err(RingError::Enter)
    }

    /// Submits what waits in every ring, and runs what the kernel has deferred.
    fn enter_all(&mut self) -> Result<(), RingError> {
        self.drivers
            .iter_mut()
            .try_for_each(|driver| driver.ring.submit_and_reap())
    }

    fn turn_all(&mut self) {
        for driver in &mut self.drivers {
            driver.turn(false);
        }
    }

    fn listen(&mut self, listens: bool) {
        for driver in &mut self.drivers {
            driver.ring.set_ringing(listens);
        }
    }
}
