//! What the gateway asks of the store by itself, apart from its shards: single questions at start,
//! and once a day to forget what is older than the retention.

use crate::driver::now;
use portico_backend::{
    Backend, Completion, Error, Family, Kind, Request, Sink,
    messages::{Cmd, Messages},
};
use portico_wire::ids::Seq;
use std::{
    io,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// No shard has this lane.
const LANE: u32 = u32::MAX;
const EXPIRE_EVERY: Duration = Duration::from_secs(24 * 3_600);
/// After a failure.
const EXPIRE_RETRY: Duration = Duration::from_secs(15 * 60);
/// Dropping months of files may take its time.
const EXPIRE_PATIENCE: Duration = Duration::from_secs(60);

/// Passes on the one answer it is made for.
struct Answer<F: Family>(mpsc::SyncSender<Result<F::Reply, Error>>);

impl<F: Family> Sink<F> for Answer<F> {
    fn complete(&self, batch: Vec<Completion<F>>) {
        for completion in batch {
            // Full or gone: nobody waits any more.
            let _ = self.0.try_send(completion.result);
        }
    }
}

/// Asks one thing and waits for the answer.
pub(crate) fn ask<F: Family>(
    backend: &Arc<dyn Backend<F>>,
    cmd: F::Cmd,
    patience: Duration,
) -> Result<F::Reply, Error> {
    let (answer, answered) = mpsc::sync_channel(1);
    let sink: Arc<dyn Sink<F>> = Arc::new(Answer::<F>(answer));
    let request = Request {
        token: 0,
        lane: LANE,
        deadline: Instant::now() + patience,
        cmd,
    };
    match backend.submit(vec![request], &sink) {
        Ok(()) => answered
            .recv_timeout(patience)
            .unwrap_or_else(|_| Err(Error::new(Kind::Unknown, "the store did not answer"))),
        Err(rejected) => Err(rejected.why),
    }
}

/// Expires what is too old, at start and then daily. Ends when dropped.
#[derive(Debug)]
pub(super) struct Housekeeper {
    end: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Housekeeper {
    pub(super) fn start(
        backend: Arc<dyn Backend<Messages>>,
        retention: Duration,
    ) -> io::Result<Self> {
        let (end, ended) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("portico-expire".to_owned())
            .spawn(move || run(&backend, retention, &ended))?;
        Ok(Self {
            end: Some(end),
            thread: Some(thread),
        })
    }
}

impl Drop for Housekeeper {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(backend: &Arc<dyn Backend<Messages>>, retention: Duration, ended: &mpsc::Receiver<()>) {
    loop {
        let wait = match expire(backend, retention) {
            Ok(()) => EXPIRE_EVERY,
            Err(error) => {
                tracing::warn!(%error, "old messages could not be expired");
                EXPIRE_RETRY
            }
        };
        match ended.recv_timeout(wait) {
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn expire(backend: &Arc<dyn Backend<Messages>>, retention: Duration) -> Result<(), Error> {
    let kept_us = u64::try_from(retention.as_micros()).unwrap_or(u64::MAX);
    let before = Seq(now().wall_us.saturating_sub(kept_us));
    ask(backend, Cmd::Expire { before }, EXPIRE_PATIENCE).map(drop)
}
