//! What is in flight, how the engine does, and the counters: all that the threads share.

use super::Limits;
use crate::stats::COMMIT_BOUNDS_US;
use crate::{Error, Health, Stats};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Between these lies the hint when to come back after `Overloaded`.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(1);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(1);

/// Commands, and the bytes they hold.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Amount {
    pub(super) commands: usize,
    pub(super) bytes: usize,
}

/// Commands of one kind in flight.
#[derive(Debug, Default)]
struct InFlight {
    commands: AtomicUsize,
    bytes: AtomicUsize,
}

impl InFlight {
    /// Two submitters that meet at the bound may both be refused. That is no harm: each may come
    /// again, and nobody passes the bound.
    fn reserve(&self, amount: Amount, limits: &Limits) -> bool {
        if amount.commands == 0 {
            return true;
        }
        let add = |counter: &AtomicUsize, more: usize, max: usize| {
            let before = counter.fetch_add(more, Ordering::AcqRel);
            let fits = before.saturating_add(more) <= max;
            if !fits {
                counter.fetch_sub(more, Ordering::AcqRel);
            }
            fits
        };
        if !add(&self.commands, amount.commands, limits.commands_max) {
            return false;
        }
        let fits = add(&self.bytes, amount.bytes, limits.bytes_max);
        if !fits {
            self.commands.fetch_sub(amount.commands, Ordering::AcqRel);
        }
        fits
    }

    fn release(&self, amount: Amount) {
        self.commands.fetch_sub(amount.commands, Ordering::AcqRel);
        self.bytes.fetch_sub(amount.bytes, Ordering::AcqRel);
    }
}

/// Which of the two bounds a command counts against.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    Write,
    Read,
}

#[derive(Debug)]
pub(super) struct Meter {
    limits: Limits,
    opened: Instant,
    writes: InFlight,
    reads: InFlight,
    /// Microseconds from `opened` to the begin of the commit that runs, plus one; 0 if none does.
    commit_began: AtomicU64,
    commit_us_last: AtomicU64,
    /// The failure after which nothing is written any more.
    fatal: OnceLock<Error>,
    /// The first read that found damage.
    read_fatal: OnceLock<Error>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    commits: AtomicU64,
    writes: AtomicU64,
    messages: AtomicU64,
    bytes: AtomicU64,
    commit_us_sum: AtomicU64,
    commit_us_max: AtomicU64,
    commit_us_buckets: [AtomicU64; COMMIT_BOUNDS_US.len() + 1],
    reads: AtomicU64,
    read_us_sum: AtomicU64,
    failed: AtomicU64,
    expired: AtomicU64,
    rejected: AtomicU64,
}

/// What one commit brought.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Committed {
    pub(super) writes: u64,
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

impl Meter {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            opened: Instant::now(),
            writes: InFlight::default(),
            reads: InFlight::default(),
            commit_began: AtomicU64::new(0),
            commit_us_last: AtomicU64::new(0),
            fatal: OnceLock::new(),
            read_fatal: OnceLock::new(),
            counters: Counters::default(),
        }
    }

    /// Takes room for a whole batch, or for none of it.
    pub(super) fn reserve(&self, writes: Amount, reads: Amount) -> Result<(), Error> {
        if !self.writes.reserve(writes, &self.limits) {
            return Err(self.overloaded("too many writes are in flight"));
        }
        if !self.reads.reserve(reads, &self.limits) {
            self.writes.release(writes);
            return Err(self.overloaded("too many reads are in flight"));
        }
        Ok(())
    }

    pub(super) fn release(&self, side: Side, amount: Amount) {
        match side {
            Side::Write => self.writes.release(amount),
            Side::Read => self.reads.release(amount),
        }
    }

    /// One commit from now there is room again, most likely.
    fn overloaded(&self, detail: &'static str) -> Error {
        let last = Duration::from_micros(self.commit_us_last.load(Ordering::Relaxed));
        Error::overloaded(last.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX), detail)
    }

    pub(super) fn fatal(&self) -> Option<&Error> {
        self.fatal.get()
    }

    /// The first failure stays: it names the cause.
    pub(super) fn poison(&self, error: &Error) {
        if self.fatal.set(error.clone()).is_ok() {
            tracing::error!(%error, "the store cannot write any more");
        }
    }

    pub(super) fn note_read_fatal(&self, error: &Error) {
        if self.read_fatal.set(error.clone()).is_ok() {
            tracing::error!(%error, "a read found the store damaged");
        }
    }

    pub(super) fn commit_begins(&self) -> Instant {
        let now = Instant::now();
        let at = micros(now.saturating_duration_since(self.opened)) + 1;
        self.commit_began.store(at, Ordering::Release);
        now
    }

    pub(super) fn commit_ends(&self, began: Instant, committed: Committed) {
        let us = micros(began.elapsed());
        self.commit_began.store(0, Ordering::Release);
        self.commit_us_last.store(us, Ordering::Relaxed);
        let counters = &self.counters;
        let add = |counter: &AtomicU64, more| counter.fetch_add(more, Ordering::Relaxed);
        add(&counters.commits, 1);
        add(&counters.writes, committed.writes);
        add(&counters.messages, committed.messages);
        add(&counters.bytes, committed.bytes);
        add(&counters.commit_us_sum, us);
        counters.commit_us_max.fetch_max(us, Ordering::Relaxed);
        let bucket = COMMIT_BOUNDS_US.partition_point(|bound| *bound < us);
        if let Some(bucket) = counters.commit_us_buckets.get(bucket) {
            add(bucket, 1);
        }
    }

    pub(super) fn count_reads(&self, reads: u64, took: Duration) {
        self.counters.reads.fetch_add(reads, Ordering::Relaxed);
        self.counters
            .read_us_sum
            .fetch_add(micros(took), Ordering::Relaxed);
    }

    pub(super) fn count_failed(&self, failed: u64, expired: u64) {
        self.counters.failed.fetch_add(failed, Ordering::Relaxed);
        self.counters.expired.fetch_add(expired, Ordering::Relaxed);
    }

    pub(super) fn count_rejected(&self) {
        self.counters.rejected.fetch_add(1, Ordering::Relaxed);
    }

    /// Looks at the commit that runs, so a hanging one shows while it hangs.
    pub(super) fn health(&self) -> Health {
        if let Some(error) = self.fatal.get() {
            return Health::Down(error.to_string());
        }
        let began = self.commit_began.load(Ordering::Acquire);
        if began != 0 {
            let now = micros(self.opened.elapsed());
            let running = Duration::from_micros(now.saturating_sub(began - 1));
            if running > self.limits.commit_slow {
                let text = format!("a commit has been running for {running:.1?}");
                return if running > self.limits.commit_stuck {
                    Health::Down(text)
                } else {
                    Health::Degraded(text)
                };
            }
        }
        match self.read_fatal.get() {
            Some(error) => Health::Degraded(error.to_string()),
            None => Health::Up,
        }
    }

    pub(super) fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let level = |counter: &AtomicUsize| counter.load(Ordering::Relaxed) as u64;
        let counters = &self.counters;
        Stats {
            commits: read(&counters.commits),
            writes: read(&counters.writes),
            messages: read(&counters.messages),
            bytes: read(&counters.bytes),
            commit_us_sum: read(&counters.commit_us_sum),
            commit_us_max: read(&counters.commit_us_max),
            commit_us_buckets: std::array::from_fn(|i| {
                counters.commit_us_buckets.get(i).map_or(0, read)
            }),
            reads: read(&counters.reads),
            read_us_sum: read(&counters.read_us_sum),
            failed: read(&counters.failed),
            expired: read(&counters.expired),
            rejected: read(&counters.rejected),
            writes_in_flight: level(&self.writes.commands),
            reads_in_flight: level(&self.reads.commands),
            bytes_in_flight: level(&self.writes.bytes),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
