//! The backend over the maps: it does the work on the thread that hands it in.
//!
//! A map needs microseconds, a thread that has to be woken for it takes longer than the map. So a
//! batch is applied and answered within [`Backend::submit`]; nothing is ever in flight.
//!
//! Other threads that hand in batches meanwhile wait for the length of one batch. Most of it takes a
//! fraction of a microsecond per command; `Expire` walks everything, and `Find` a conversation from
//! the time asked for. So with this store one such command holds up every shard: one more reason
//! to take it for tests and trials only.

use super::{Engine, Store};
use crate::{
    Backend, Caps, Completion, Error, Family, Health, Limits, Rejected, Request, Sink, Stats,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

#[derive(Debug)]
pub(super) struct Inline {
    store: Store,
    caps: Caps,
    closed: AtomicBool,
    tallies: Tallies,
}

/// Added to once per batch. Relaxed: counters order nothing.
#[derive(Debug, Default)]
struct Tallies {
    commits: AtomicU64,
    writes: AtomicU64,
    messages: AtomicU64,
    bytes: AtomicU64,
    reads: AtomicU64,
    failed: AtomicU64,
    expired: AtomicU64,
    rejected: AtomicU64,
}

fn add(tally: &AtomicU64, count: u64) {
    if count > 0 {
        tally.fetch_add(count, Ordering::Relaxed);
    }
}

impl Inline {
    pub(super) fn new(store: Store, mut caps: Caps, limits: Limits) -> Self {
        caps.batch_max = caps.batch_max.min(limits.commands_max);
        caps.batch_bytes_max = caps.batch_bytes_max.min(limits.bytes_max);
        Self {
            store,
            caps,
            closed: AtomicBool::new(false),
            tallies: Tallies::default(),
        }
    }

    fn is_closed(&self) -> bool {
        // Acquire: pairs with `close`, whose caller expects that later batches are refused.
        self.closed.load(Ordering::Acquire)
    }

    fn check(&self, commands: usize, bytes: usize) -> Result<(), Error> {
        if self.is_closed() {
            return Err(Error::unavailable("the store is closed"));
        }
        if commands > self.caps.batch_max {
            return Err(Error::invalid("more commands than a batch may hold"));
        }
        if bytes > self.caps.batch_bytes_max {
            return Err(Error::invalid("more bytes than a batch may hold"));
        }
        Ok(())
    }
}

impl<F: Family> Backend<F> for Inline
where
    Store: Engine<F>,
{
    fn caps(&self) -> Caps {
        self.caps.clone()
    }

    fn submit(&self, batch: Vec<Request<F>>, sink: &Arc<dyn Sink<F>>) -> Result<(), Rejected<F>> {
        if batch.is_empty() {
            return Ok(());
        }
        let bytes = batch.iter().map(|request| F::bytes(&request.cmd)).sum();
        if let Err(why) = self.check(batch.len(), bytes) {
            add(&self.tallies.rejected, 1);
            return Err(Rejected { batch, why });
        }
        let now = Instant::now();
        let mut answers = Vec::with_capacity(batch.len());
        let mut stats = Stats::default();
        self.store.with(|state| {
            for request in batch {
                let is_read = F::is_read(&request.cmd);
                let (weight, bytes) = (F::weight(&request.cmd), F::bytes(&request.cmd));
                let result = if request.deadline <= now {
                    stats.expired += 1;
                    Err(crate::group_commit::expired())
                } else if is_read {
                    Store::read(state, &request.cmd)
                } else {
                    Store::write(state, request.cmd)
                };
                match &result {
                    Ok(_) if is_read => stats.reads += 1,
                    Ok(_) => {
                        stats.writes += 1;
                        stats.messages += weight as u64;
                        stats.bytes += bytes as u64;
                    }
                    Err(_) => stats.failed += 1,
                }
                answers.push(Completion {
                    token: request.token,
                    result,
                });
            }
        });
        add(&self.tallies.commits, u64::from(stats.writes > 0));
        add(&self.tallies.writes, stats.writes);
        add(&self.tallies.messages, stats.messages);
        add(&self.tallies.bytes, stats.bytes);
        add(&self.tallies.reads, stats.reads);
        add(&self.tallies.failed, stats.failed);
        add(&self.tallies.expired, stats.expired);
        sink.complete(answers);
        Ok(())
    }

    fn health(&self) -> Health {
        if self.is_closed() {
            return Health::Down("the store is closed".into());
        }
        Health::Up
    }

    fn stats(&self) -> Stats {
        let tallies = &self.tallies;
        let read = |tally: &AtomicU64| tally.load(Ordering::Relaxed);
        Stats {
            commits: read(&tallies.commits),
            writes: read(&tallies.writes),
            messages: read(&tallies.messages),
            bytes: read(&tallies.bytes),
            reads: read(&tallies.reads),
            failed: read(&tallies.failed),
            expired: read(&tallies.expired),
            rejected: read(&tallies.rejected),
            ..Stats::default()
        }
    }

    /// Everything was answered when it was taken.
    fn close(&self, _: Instant) -> Result<(), Error> {
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}
