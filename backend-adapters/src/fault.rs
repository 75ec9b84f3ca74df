//! A wrapper that makes any backend misbehave within its contract, from a seed.
//!
//! Whoever survives it relies on the contract alone: batches come back, requests and replies get
//! lost, answers are late and overtake those of other lanes, the store is away or stands still for
//! a while. What happens to the n-th command that is submitted follows from the seed and n, not
//! from the timing of threads.
//!
//! # Invariants
//! * A lost request was never submitted, a lost reply is `Unknown` and was: the error kinds stay
//!   true.
//! * Answers to the writes of a lane keep their order, as with a plain backend. Reads and other
//!   lanes overtake.
//! * Every token that was taken is answered once, at latest when the wrapper is dropped.

use crate::{
    Backend, Caps, Completion, Error, Family, Health, Kind, Rejected, Request, Sink, Stats,
};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often what goes wrong. Shares are in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    /// A batch comes back as `Overloaded`.
    pub reject: u64,
    /// A command never reaches the store and is answered `Unavailable`.
    pub lose_request: u64,
    /// A command is carried out and answered `Unknown`.
    pub lose_reply: u64,
    /// An answer is late by up to `delay_max`.
    pub delay: u64,
    pub delay_max: Duration,
}

impl Plan {
    /// All of it, often enough to hurt.
    #[must_use]
    pub const fn rough() -> Self {
        Self {
            reject: 100,
            lose_request: 50,
            lose_reply: 100,
            delay: 200,
            delay_max: Duration::from_millis(3),
        }
    }
}

/// Wraps a backend.
pub struct Faulty<F: Family> {
    inner: Arc<dyn Backend<F>>,
    caps: Caps,
    post: Arc<Post<F>>,
    down: AtomicBool,
    postman: Option<JoinHandle<()>>,
}

impl<F: Family> fmt::Debug for Faulty<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty")
            .field("plan", &self.post.plan)
            .field("seed", &self.post.seed)
            .field("down", &self.down)
            .finish_non_exhaustive()
    }
}

impl<F: Family> Faulty<F> {
    /// # Errors
    /// If the system gives no thread.
    pub fn new(inner: Arc<dyn Backend<F>>, plan: Plan, seed: u64) -> io::Result<Self> {
        let post = Arc::new(Post {
            plan,
            seed,
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        });
        let office = Arc::clone(&post);
        let postman = thread::Builder::new()
            .name("faulty-post".into())
            .spawn(move || office.deliver_until_closed())?;
        Ok(Self {
            caps: inner.caps(),
            inner,
            post,
            down: AtomicBool::new(false),
            postman: Some(postman),
        })
    }

    /// While down, every batch is refused as `Unavailable` and health says so: the connection to
    /// the store is cut. What is in flight is still answered.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Release);
    }

    /// For that long the store takes work and answers nothing, as in a hanging fsync.
    pub fn stall(&self, pause: Duration) {
        self.post.lock().stalled_until = Some(Instant::now() + pause);
    }
}

impl<F: Family> Backend<F> for Faulty<F> {
    fn caps(&self) -> Caps {
        self.caps.clone()
    }

    fn submit(
        &self,
        mut batch: Vec<Request<F>>,
        sink: &Arc<dyn Sink<F>>,
    ) -> Result<(), Rejected<F>> {
        let post = &self.post;
        let bytes: usize = batch.iter().map(|request| F::bytes(&request.cmd)).sum();
        if batch.len() > self.caps.batch_max || bytes > self.caps.batch_bytes_max {
            // To be refused for what it is, not taken for what is left of it.
            return self.inner.submit(batch, sink);
        }
        if self.down.load(Ordering::Acquire) {
            let why = Error::unavailable("injected: the store is away");
            return Err(Rejected { batch, why });
        }
        let serials = post.enter(&mut batch, sink);
        let Some(first) = serials.first() else {
            return Ok(());
        };
        if post.hits(*first, Fate::Reject, post.plan.reject) {
            let why = Error::overloaded(Duration::from_millis(1), "injected: a full queue");
            post.leave(&mut batch);
            return Err(Rejected { batch, why });
        }
        let is_lost = |serial: u64| post.hits(serial, Fate::LoseRequest, post.plan.lose_request);
        let (mut lost, sent): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .partition(|request| is_lost(request.token));
        if !sent.is_empty() {
            let inbound: Arc<dyn Sink<F>> = Arc::new(Inbound(Arc::clone(post)));
            if let Err(mut rejected) = self.inner.submit(sent, &inbound) {
                rejected.batch.append(&mut lost);
                // Serials rise in the order of submission.
                rejected.batch.sort_by_key(|request| request.token);
                post.leave(&mut rejected.batch);
                return Err(rejected);
            }
        }
        let error = Error::unavailable("injected: the request was lost");
        post.answer(lost.into_iter().map(|request| Completion {
            token: request.token,
            result: Err(error.clone()),
        }));
        Ok(())
    }

    fn health(&self) -> Health {
        if self.down.load(Ordering::Acquire) {
            return Health::Down("injected: the store is away".into());
        }
        let stalled_until = self.post.lock().stalled_until;
        if stalled_until.is_some_and(|until| until > Instant::now()) {
            return Health::Degraded("injected: the store stands still".into());
        }
        self.inner.health()
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }

    fn close(&self, deadline: Instant) -> Result<(), Error> {
        self.inner.close(deadline)?;
        if self.post.wait_until_empty(deadline) {
            Ok(())
        } else {
            let detail = "injected: answers were late for the time of closing";
            Err(Error::new(Kind::Unknown, detail))
        }
    }
}

impl<F: Family> Drop for Faulty<F> {
    fn drop(&mut self) {
        self.post.lock().closed = true;
        self.post.changed.notify_all();
        if let Some(postman) = self.postman.take() {
            // A panic in a sink was reported by that thread.
            let _ = postman.join();
        }
    }
}

/// What the dice are thrown for; each command has one throw for each.
#[derive(Clone, Copy)]
enum Fate {
    Reject = 1,
    LoseRequest = 2,
    LoseReply = 3,
    Delay = 4,
    Pause = 5,
}

/// Holds answers back and hands them on in an allowed order.
struct Post<F: Family> {
    plan: Plan,
    seed: u64,
    state: Mutex<State<F>>,
    changed: Condvar,
}

struct State<F: Family> {
    /// Commands get a number of our own as token: tokens are unique per sink only.
    next_serial: u64,
    waiting: HashMap<u64, Waiting<F>>,
    /// Writes of each lane that are not handed on, in order, with their answers.
    lanes: HashMap<u32, VecDeque<u64>>,
    /// Answers by the time at which they go, then by serial.
    due: BTreeMap<(Instant, u64), Letter<F>>,
    /// When the latest answer of a lane goes: the next one does not go earlier.
    lane_due: HashMap<u32, Instant>,
    stalled_until: Option<Instant>,
    closed: bool,
}

/// An answer and where it goes.
type Letter<F> = (Completion<F>, Arc<dyn Sink<F>>);

struct Waiting<F: Family> {
    token: u64,
    lane: u32,
    is_read: bool,
    sink: Arc<dyn Sink<F>>,
    answer: Option<Result<F::Reply, Error>>,
}

impl<F: Family> Default for State<F> {
    fn default() -> Self {
        Self {
            next_serial: 0,
            waiting: HashMap::new(),
            lanes: HashMap::new(),
            due: BTreeMap::new(),
            lane_due: HashMap::new(),
            stalled_until: None,
            closed: false,
        }
    }
}

/// The sink that the inner backend sees.
struct Inbound<F: Family>(Arc<Post<F>>);

impl<F: Family> Sink<F> for Inbound<F> {
    fn complete(&self, batch: Vec<Completion<F>>) {
        let post = &self.0;
        post.answer(batch.into_iter().map(|mut completion| {
            let loses = post.hits(completion.token, Fate::LoseReply, post.plan.lose_reply);
            if completion.result.is_ok() && loses {
                completion.result = Err(Error::new(Kind::Unknown, "injected: the reply was lost"));
            }
            completion
        }));
    }
}

impl<F: Family> Post<F> {
    fn lock(&self) -> MutexGuard<'_, State<F>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a batch and gives its commands our serials as tokens.
    fn enter(&self, batch: &mut [Request<F>], sink: &Arc<dyn Sink<F>>) -> Vec<u64> {
        let mut state = self.lock();
        let mut serials = Vec::with_capacity(batch.len());
        for request in batch {
            state.next_serial += 1;
            let serial = state.next_serial;
            let is_read = F::is_read(&request.cmd);
            if !is_read {
                let lane = state.lanes.entry(request.lane).or_default();
                lane.push_back(serial);
            }
            let waiting = Waiting {
                token: std::mem::replace(&mut request.token, serial),
                lane: request.lane,
                is_read,
                sink: Arc::clone(sink),
                answer: None,
            };
            state.waiting.insert(serial, waiting);
            serials.push(serial);
        }
        serials
    }

    /// Forgets a batch that is given back.
    fn leave(&self, batch: &mut [Request<F>]) {
        let mut state = self.lock();
        for request in batch.iter_mut() {
            let serial = request.token;
            if let Some(waiting) = state.waiting.remove(&serial) {
                request.token = waiting.token;
            }
            if let Some(lane) = state.lanes.get_mut(&request.lane) {
                lane.retain(|waiting| *waiting != serial);
            }
        }
        // The lane may have waited for what has gone.
        for request in batch.iter() {
            self.release_lane(&mut state, request.lane);
        }
        drop(state);
        self.changed.notify_all();
    }

    fn answer(&self, completions: impl Iterator<Item = Completion<F>>) {
        let mut state = self.lock();
        for completion in completions {
            let serial = completion.token;
            let Some(waiting) = state.waiting.get_mut(&serial) else {
                tracing::error!("the wrapped backend answered a command twice");
                continue;
            };
            waiting.answer = Some(completion.result);
            if waiting.is_read {
                self.send(&mut state, serial, None);
            } else {
                let lane = waiting.lane;
                self.release_lane(&mut state, lane);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Sends what stands answered at the head of a lane.
    fn release_lane(&self, state: &mut State<F>, lane: u32) {
        while let Some(queue) = state.lanes.get_mut(&lane)
            && let Some(serial) = queue.front().copied()
            && state
                .waiting
                .get(&serial)
                .is_some_and(|waiting| waiting.answer.is_some())
        {
            queue.pop_front();
            self.send(state, serial, Some(lane));
        }
    }

    /// Gives an answer its time.
    fn send(&self, state: &mut State<F>, serial: u64, lane: Option<u32>) {
        let Some(waiting) = state.waiting.remove(&serial) else {
            return;
        };
        let Some(result) = waiting.answer else {
            return;
        };
        let mut at = Instant::now();
        if self.hits(serial, Fate::Delay, self.plan.delay) {
            let range_us = u64::try_from(self.plan.delay_max.as_micros()).unwrap_or(u64::MAX);
            at += Duration::from_micros(self.throw(serial, Fate::Pause) % range_us.max(1));
        }
        at = at.max(state.stalled_until.unwrap_or(at));
        if let Some(lane) = lane {
            let latest = state.lane_due.entry(lane).or_insert(at);
            at = at.max(*latest);
            *latest = at;
        }
        let completion = Completion {
            token: waiting.token,
            result,
        };
        state.due.insert((at, serial), (completion, waiting.sink));
    }

    fn deliver_until_closed(&self) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let closed = state.closed;
            let mut ready = Vec::new();
            while let Some(first) = state.due.first_entry()
                && (first.key().0 <= now || closed)
            {
                ready.push(first.remove());
            }
            if !ready.is_empty() {
                drop(state);
                for (completion, sink) in ready {
                    sink.complete(vec![completion]);
                }
                state = self.lock();
                self.changed.notify_all();
                continue;
            }
            if closed {
                return;
            }
            let pause = state.due.first_key_value().map(|((at, _), _)| *at - now);
            let pause = pause.unwrap_or(Duration::from_secs(3_600));
            let waited = self.changed.wait_timeout(state, pause);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn wait_until_empty(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        while !state.waiting.is_empty() || !state.due.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn hits(&self, serial: u64, fate: Fate, per_mille: u64) -> bool {
        per_mille > 0 && self.throw(serial, fate) % 1_000 < per_mille
    }

    /// SplitMix64 over the seed, the command and what the throw is for.
    fn throw(&self, serial: u64, fate: Fate) -> u64 {
        let index = serial.wrapping_mul(8).wrapping_add(fate as u64);
        let mut x = self
            .seed
            .wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}
