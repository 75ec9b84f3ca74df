//! Storage requests on their way to the adapter: one batch per turn.
//!
//! # Invariants
//! - Requests are handed in in the order in which the core made them; all of a shard go in one lane.
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
use crate::store_map;
use portico_backend::{
    Backend, Caps, Error, Family, Kind, Rejected, Request, Sink, messages::Messages,
};
use portico_core::{
    Now, ShardId,
    store::{StoreError, StoreRequest, StoreToken},
};
use std::{collections::VecDeque, mem, sync::Arc, time::Instant};

pub(super) struct Storage {
    backend: Arc<dyn Backend<Messages>>,
    sink: Arc<dyn Sink<Messages>>,
    caps: Caps,
    lane: u32,
    queue: VecDeque<Request<Messages>>,
    /// Requests of the next batch, at most.
    batch_max: usize,
    /// Why the adapter gave the last batch back; nothing is handed in until it may take more.
    refused: Option<Error>,
    /// Requests that will never reach the adapter, with the answer they get instead.
    failed: Vec<(StoreToken, StoreError)>,
    batches: u64,
    rejected: u64,
    expired: u64,
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
            .field("adapter", &self.caps.name)
            .field("queue", &self.queue.len())
            .field("refused", &self.refused)
            .finish_non_exhaustive()
    }
}

impl Storage {
    pub(super) fn new(
        backend: Arc<dyn Backend<Messages>>,
        mesh: Arc<Mesh>,
        shard: ShardId,
    ) -> Self {
        let caps = backend.caps();
        Self {
            batch_max: caps.batch_max.max(1),
            caps,
            sink: Arc::new(StoreDesk { mesh, shard }),
            backend,
            lane: u32::from(shard.0),
            queue: VecDeque::new(),
            refused: None,
            failed: Vec::new(),
            batches: 0,
            rejected: 0,
            expired: 0,
        }
    }

    /// Takes the requests of a turn, in order.
    pub(super) fn enqueue(&mut self, now: Now, requests: &mut Vec<StoreRequest>) {
        if requests.is_empty() {
            return;
        }
        let lane = self.lane;
        let deadlines = clock::Deadlines::from(now);
        self.queue.extend(requests.drain(..).map(|request| Request {
            token: request.token.0,
            lane,
            deadline: deadlines.at(request.deadline_us),
            cmd: store_map::command(request.cmd),
        }));
    }

    /// Hands in what the adapter takes. True if that was anything.
    pub(super) fn submit(&mut self) -> bool {
        let before = self.batches;
        while self.refused.is_none() && !self.queue.is_empty() {
            let batch = self.next_batch();
            self.batches += 1;
            match self.backend.submit(batch, &self.sink) {
                Ok(()) => {
                    let most = self.caps.batch_max.max(1);
                    self.batch_max = self.batch_max.saturating_mul(2).min(most);
                }
                Err(Rejected { batch, why }) => self.take_back(batch, why),
            }
        }
        self.batches > before
    }

    /// Time has passed, or an answer has come: the adapter may take more. Requests whose time is
    /// over are answered with what held them up.
    pub(super) fn retry(&mut self) {
        let Some(why) = self.refused.take() else {
            return;
        };
        let now = Instant::now();
        // Deadlines are in the order of the requests, as all get the same time.
        let over = |request: &&Request<Messages>| request.deadline <= now;
        let expired = self.queue.iter().take_while(over).count();
        self.expired += expired as u64;
        let failure = store_map::failure(&why);
        let tokens = self.queue.drain(..expired).map(|request| request.token);
        self.failed
            .extend(tokens.map(|token| (StoreToken(token), failure)));
    }

    /// Answers that did not come from the adapter.
    pub(super) fn take_failed(&mut self) -> Vec<(StoreToken, StoreError)> {
        mem::take(&mut self.failed)
    }

    pub(super) const fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Requests that the adapter has not taken.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    pub(super) const fn take_counts(&mut self) -> StoreCounts {
        let counts = StoreCounts {
            batches: self.batches,
            rejected: self.rejected,
            expired: self.expired,
        };
        (self.batches, self.rejected, self.expired) = (0, 0, 0);
        counts
    }

    /// One request at least, and no more than the adapter takes at once.
    fn next_batch(&mut self) -> Vec<Request<Messages>> {
        let mut bytes = 0;
        let fits = |request: &&Request<Messages>| {
            let size = Messages::bytes(&request.cmd);
            let first = bytes == 0;
            bytes += size;
            first || bytes <= self.caps.batch_bytes_max
        };
        let some = self.queue.iter().take(self.batch_max);
        let count = some.take_while(fits).count();
        if count == self.queue.len() {
            // Usually: the list itself goes, and nothing in it is moved.
            return mem::take(&mut self.queue).into();
        }
        self.queue.drain(..count).collect()
    }

    fn take_back(&mut self, batch: Vec<Request<Messages>>, why: Error) {
        self.rejected += 1;
        match why.kind {
            Kind::Overloaded | Kind::Unavailable | Kind::Unknown => {
                self.batch_max = (batch.len() / 2).max(1);
                for request in batch.into_iter().rev() {
                    self.queue.push_front(request);
                }
                self.refused = Some(why);
            }
            // No repetition helps.
            Kind::Conflict | Kind::Invalid | Kind::Fatal => {
                let error = store_map::failure(&why);
                let tokens = batch.iter().map(|request| StoreToken(request.token));
                self.failed.extend(tokens.map(|token| (token, error)));
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
        Storage::new(backend.clone(), mesh, ShardId(0))
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
