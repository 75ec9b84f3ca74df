//! Storage requests on their way to the adapters: one batch per turn and family.
//!
//! # Invariants
//! - Requests of a family are handed in in the order in which the core made them; all of a shard go
//!   in one lane. Between messages and records there is no order.
//! - What the adapter gives back keeps its place and is handed in again at the next tick, or when
//!   an answer has made room. The core bounds how much can wait: it counts it as in flight.
//! - A batch that was given back is tried again at half its size, and sizes double again with
//!   success: dozens of shards that press on a full adapter would else spend their time on carrying
//!   large batches back and forth.
//! - Each request is answered once: by the adapter, or here when its deadline passes first.

use super::{
    clock,
    mesh::{Mesh, StoreDesk},
};
use crate::{
    gateway::Stores,
    store_map::{self, Command},
};
use portico_backend::{
    Backend, Caps, Error, Family, Kind, Rejected, Request, Sink, messages::Messages,
    records::Records,
};
use portico_core::{
    Now, ShardId,
    store::{StoreError, StoreRequest, StoreToken},
};
use std::{collections::VecDeque, mem, sync::Arc, time::Instant};

/// The requests of one family.
struct Queue<F: Family> {
    backend: Arc<dyn Backend<F>>,
    sink: Arc<dyn Sink<F>>,
    caps: Caps,
    waiting: VecDeque<Request<F>>,
    /// Requests of the next batch, at most.
    batch_max: usize,
    /// Why the adapter gave the last batch back; nothing is handed in until it may take more.
    refused: Option<Error>,
}

pub(super) struct Storage {
    messages: Queue<Messages>,
    records: Queue<Records>,
    lane: u32,
    /// Requests that will never reach the adapter, with the answer they get instead.
    failed: Vec<(StoreToken, StoreError)>,
    counts: StoreCounts,
}

/// What happened since it was last asked.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StoreCounts {
    pub(super) batches: u64,
    pub(super) rejected: u64,
    pub(super) expired: u64,
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Storage")
            .field("adapter", &self.messages.caps.name)
            .field("messages", &self.messages.waiting.len())
            .field("records", &self.records.waiting.len())
            .finish_non_exhaustive()
    }
}

impl Storage {
    pub(super) fn new(stores: Stores, mesh: Arc<Mesh>, shard: ShardId) -> Self {
        let desk = Arc::new(StoreDesk { mesh, shard });
        Self {
            messages: Queue::new(stores.messages, desk.clone()),
            records: Queue::new(stores.records, desk),
            lane: u32::from(shard.0),
            failed: Vec::new(),
            counts: StoreCounts::default(),
        }
    }

    /// Takes the requests of a turn, in order.
    pub(super) fn enqueue(&mut self, now: Now, requests: &mut Vec<StoreRequest>) {
        if requests.is_empty() {
            return;
        }
        let lane = self.lane;
        let deadlines = clock::Deadlines::from(now);
        for request in requests.drain(..) {
            let token = request.token.0;
            let deadline = deadlines.at(request.deadline_us);
            match store_map::command(request.cmd) {
                Command::Messages(cmd) => self.messages.waiting.push_back(Request {
                    token,
                    lane,
                    deadline,
                    cmd,
                }),
                Command::Records(cmd) => self.records.waiting.push_back(Request {
                    token,
                    lane,
                    deadline,
                    cmd,
                }),
            }
        }
    }

    /// Hands in what the adapters take. True if that was anything.
    pub(super) fn submit(&mut self) -> bool {
        let before = self.counts.batches;
        self.messages.submit(&mut self.failed, &mut self.counts);
        self.records.submit(&mut self.failed, &mut self.counts);
        self.counts.batches > before
    }

    /// Time has passed, or an answer has come: an adapter may take more. Requests whose time is
    /// over are answered with what held them up.
    pub(super) fn retry(&mut self) {
        self.messages.retry(&mut self.failed, &mut self.counts);
        self.records.retry(&mut self.failed, &mut self.counts);
    }

    /// Answers that did not come from an adapter.
    pub(super) fn take_failed(&mut self) -> Vec<(StoreToken, StoreError)> {
        mem::take(&mut self.failed)
    }

    pub(super) const fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Requests that no adapter has taken.
    pub(super) fn waiting(&self) -> usize {
        self.messages.waiting.len() + self.records.waiting.len()
    }

    pub(super) const fn take_counts(&mut self) -> StoreCounts {
        mem::replace(
            &mut self.counts,
            StoreCounts {
                batches: 0,
                rejected: 0,
                expired: 0,
            },
        )
    }
}

impl<F: Family> Queue<F> {
    fn new(backend: Arc<dyn Backend<F>>, sink: Arc<dyn Sink<F>>) -> Self {
        let caps = backend.caps();
        Self {
            batch_max: caps.batch_max.max(1),
            caps,
            sink,
            backend,
            waiting: VecDeque::new(),
            refused: None,
        }
    }

    fn submit(&mut self, failed: &mut Vec<(StoreToken, StoreError)>, counts: &mut StoreCounts) {
        while self.refused.is_none() && !self.waiting.is_empty() {
            let batch = self.next_batch();
            counts.batches += 1;
            match self.backend.submit(batch, &self.sink) {
                Ok(()) => {
                    let most = self.caps.batch_max.max(1);
                    self.batch_max = self.batch_max.saturating_mul(2).min(most);
                }
                Err(Rejected { batch, why }) => {
                    counts.rejected += 1;
                    self.take_back(batch, why, failed);
                }
            }
        }
    }

    fn retry(&mut self, failed: &mut Vec<(StoreToken, StoreError)>, counts: &mut StoreCounts) {
        let Some(why) = self.refused.take() else {
            return;
        };
        let now = Instant::now();
        // Deadlines are in the order of the requests, as all get the same time.
        let over = |request: &&Request<F>| request.deadline <= now;
        let expired = self.waiting.iter().take_while(over).count();
        counts.expired += expired as u64;
        let failure = store_map::failure(&why);
        let tokens = self.waiting.drain(..expired).map(|request| request.token);
        failed.extend(tokens.map(|token| (StoreToken(token), failure)));
    }

    /// One request at least, and no more than the adapter takes at once.
    fn next_batch(&mut self) -> Vec<Request<F>> {
        let mut bytes = 0;
        let fits = |request: &&Request<F>| {
            let size = F::bytes(&request.cmd);
            let first = bytes == 0;
            bytes += size;
            first || bytes <= self.caps.batch_bytes_max
        };
        let some = self.waiting.iter().take(self.batch_max);
        let count = some.take_while(fits).count();
        if count == self.waiting.len() {
            // Usually: the list itself goes, and nothing in it is moved.
            return mem::take(&mut self.waiting).into();
        }
        self.waiting.drain(..count).collect()
    }

    fn take_back(
        &mut self,
        batch: Vec<Request<F>>,
        why: Error,
        failed: &mut Vec<(StoreToken, StoreError)>,
    ) {
        match why.kind {
            Kind::Overloaded | Kind::Unavailable | Kind::Unknown => {
                self.batch_max = (batch.len() / 2).max(1);
                for request in batch.into_iter().rev() {
                    self.waiting.push_front(request);
                }
                self.refused = Some(why);
            }
            // No repetition helps.
            Kind::Conflict | Kind::Invalid | Kind::Fatal => {
                let error = store_map::failure(&why);
                let tokens = batch.iter().map(|request| StoreToken(request.token));
                failed.extend(tokens.map(|token| (token, error)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portico_backend::{Durability, Health, messages::Cmd};
    use portico_core::store::StoreCmd;
    use portico_wire::ids::UserId;
    use std::{sync::Mutex, time::Duration};

    /// Takes batches while `room` lasts, otherwise answers with `kind`.
    #[derive(Debug)]
    struct Scripted {
        room: Mutex<usize>,
        kind: Kind,
        taken: Mutex<Vec<Vec<u64>>>,
    }

    impl Scripted {
        fn new(room: usize, kind: Kind) -> Arc<Self> {
            Arc::new(Self {
                room: Mutex::new(room),
                kind,
                taken: Mutex::default(),
            })
        }
    }

    impl Backend<Messages> for Scripted {
        fn caps(&self) -> Caps {
            Caps {
                name: "scripted",
                durability: Durability::Volatile,
                batch_max: 3,
                batch_bytes_max: 1 << 20,
                value_bytes_max: 1 << 16,
                shared: false,
            }
        }

        fn submit(
            &self,
            batch: Vec<Request<Messages>>,
            _: &Arc<dyn Sink<Messages>>,
        ) -> Result<(), Rejected<Messages>> {
            let mut room = self.room.lock().unwrap();
            if *room == 0 {
                let why = Error::new(self.kind, "no room");
                return Err(Rejected { batch, why });
            }
            *room -= 1;
            assert!(batch.iter().all(|request| request.lane == 0));
            assert!(matches!(batch[0].cmd, Cmd::Cursors { .. }));
            let tokens = batch.iter().map(|request| request.token).collect();
            self.taken.lock().unwrap().push(tokens);
            Ok(())
        }

        fn health(&self) -> Health {
            Health::Up
        }

        fn close(&self, _: Instant) -> Result<(), Error> {
            Ok(())
        }
    }

    fn storage(backend: &Arc<Scripted>) -> Storage {
        let mesh = Arc::new(Mesh::new(1, 1).unwrap());
        let stores = Stores {
            messages: backend.clone(),
            records: portico_backend::memory::Store::new().records(Default::default()),
        };
        Storage::new(stores, mesh, ShardId(0))
    }

    fn requests(tokens: std::ops::Range<u64>, now: Now, time_us: u64) -> Vec<StoreRequest> {
        let request = |token| StoreRequest {
            token: StoreToken(token),
            deadline_us: now.mono_us + time_us,
            cmd: StoreCmd::Cursors {
                user: UserId(token),
            },
        };
        tokens.map(request).collect()
    }

    #[test]
    fn what_is_given_back_keeps_its_place() {
        let backend = Scripted::new(1, Kind::Overloaded);
        let mut storage = storage(&backend);
        let now = clock::now();
        storage.enqueue(now, &mut requests(0..5, now, 10_000_000));
        storage.submit();
        storage.enqueue(now, &mut requests(5..7, now, 10_000_000));
        storage.submit();
        assert_eq!(storage.waiting(), 4);
        assert_eq!(storage.take_counts().rejected, 1, "not before a retry");
        *backend.room.lock().unwrap() = 9;
        storage.retry();
        storage.submit();
        let taken = backend.taken.lock().unwrap().clone();
        // The second try is half as large, and what follows grows again.
        assert_eq!(taken, [vec![0, 1, 2], vec![3], vec![4, 5], vec![6]]);
        assert!(!storage.has_failed() && storage.waiting() == 0);
    }

    #[test]
    fn a_deadline_in_the_queue_is_answered_with_its_cause() {
        let backend = Scripted::new(0, Kind::Unavailable);
        let mut storage = storage(&backend);
        let now = clock::now();
        storage.enqueue(now, &mut requests(0..2, now, 0));
        storage.enqueue(now, &mut requests(2..3, now, 60_000_000));
        storage.submit();
        std::thread::sleep(Duration::from_millis(2));
        storage.retry();
        let unavailable = StoreError::Unavailable;
        let failed = storage.take_failed();
        assert_eq!(
            failed,
            [(StoreToken(0), unavailable), (StoreToken(1), unavailable)]
        );
        assert_eq!((storage.waiting(), storage.take_counts().expired), (1, 2));
    }

    #[test]
    fn what_no_repetition_helps_fails_at_once() {
        for (kind, error) in [
            (Kind::Invalid, StoreError::Invalid),
            (Kind::Fatal, StoreError::Fatal),
        ] {
            let backend = Scripted::new(0, kind);
            let mut storage = storage(&backend);
            let now = clock::now();
            storage.enqueue(now, &mut requests(0..4, now, 1_000_000));
            storage.submit();
            assert_eq!(storage.waiting(), 0);
            let failed = storage.take_failed();
            assert_eq!(failed.len(), 4);
            assert!(failed.iter().all(|(_, failure)| *failure == error));
        }
    }
}
