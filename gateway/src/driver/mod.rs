//! The driver of a shard: sockets, time, storage and the other shards on one side, the core on the
//! other.
//!
//! ```text
//!   loop (crew.rs), for all shards of a thread
//!     block, or sleep through glommio
//!     turn (below), of each shard that has something to do
//!       completions, letters, storage answers, orders, time  ->  core.handle(input)
//!       carry out the core's effects
//!       reads, accepts, one SEND per connection, one storage batch, letters, wakes
//! ```
//!
//! # Invariants
//! - Time is read once per turn. Handlers are plain functions: none of them waits.
//! - A turn handles a bounded slice; what is left is taken by the next turn, after glommio had its
//!   chance to run.
//! - All that a turn wants from the kernel goes there with one system call, at the next block.
//!
//! # Does not
//! Know what a frame means: that is the core's. Name a unit of glommio outside of `executor` and
//! `ring::park`.

mod accept;
#[doc(hidden)]
pub mod bench;
mod buffer;
mod clock;
mod counters;
mod crew;
mod executor;
pub mod footprint;
mod handover;
mod mailbox;
mod mesh;
mod proxy;
mod ring;
mod send;
mod socket;
mod storage;
mod tls;

pub(crate) use accept::listen;
pub(crate) use clock::now;
pub(crate) use counters::Published;
pub use counters::{Metric, MetricKind};
pub(crate) use executor::{CrewError, CrewThread, ShardPlan};
pub(crate) use mesh::{Mesh, Order};
pub(crate) use ring::RingError;
pub use ring::{Features, ProbeError, RingSizes, memlock_needed, probe_kernel};

use crate::{auth::Authenticator, store_map};
use accept::Acceptor;
use buffer::Unread;
use counters::{Level, Tallies, Tally};
use handover::Moves;
use mailbox::Mail;
use mesh::{Answers, Letter, Outbox};
use portico_backend::Completion as Answer;
use portico_core::{
    ConnId, Credentials, Effect, Effects, Input, Now, Shard, ShardId,
    store::{StoreError, StoreReply, StoreToken},
};
use proxy::Proxies;
use ring::{Completion, Ring};
use socket::{Sockets, State};
use std::{collections::VecDeque, mem, sync::Arc};
use storage::Storage;
use tls::Links;

/// What a turn takes at most, so that glommio and the other sources get their turns.
const COMPLETIONS_PER_TURN: usize = 1_024;
const TURN_MAX_US: u64 = 500;
/// The same for all shards of a thread together, each of which gets an equal part.
const ROUND_MAX_US: u64 = 2_000;
/// The clock is looked at once in so many completions.
const CLOCK_EVERY: usize = 32;
/// Answers of an adapter that answers at once lead to requests of their own: pages, for instance.
const STORE_ROUNDS_MAX: usize = 4;
const LETTERS_PER_TURN: usize = 512;
const PUBLISH_EVERY_US: u64 = 50_000;
/// How often lists that a burst has made long become short again.
const TRIM_EVERY_US: u64 = 1_000_000;
/// A list that has room for more than this gives it back.
const LISTED_MAX: usize = 1_024;

/// One shard with everything it owns.
#[derive(Debug)]
struct Driver {
    id: ShardId,
    core: Shard,
    now: Now,
    /// What the core asks for, and the list that is being carried out.
    fx: Effects,
    carried: Vec<Effect>,
    ring: Ring,
    mesh: Arc<Mesh>,
    mail: Mail,
    outbox: Outbox,
    acceptor: Acceptor,
    sockets: Sockets,
    proxies: Proxies,
    tls: Links,
    moves: Moves,
    unread: Unread,
    storage: Storage,
    sign_ins: SignIns,
    tallies: Tallies,
    published: Arc<Published>,
    published_at_us: u64,
    turn_max_us: u64,
    /// When time alone brings work, as of the last turn.
    due_us: u64,
    draining: bool,
    stopped: bool,
}

/// Clients that wait for the authenticator's word.
struct SignIns {
    authenticator: Arc<dyn Authenticator>,
    waiting: VecDeque<(ConnId, Credentials)>,
}

impl std::fmt::Debug for SignIns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignIns")
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

/// What a turn found to do.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    /// The tick came: glommio's turn.
    ticked: bool,
    /// Something beside it happened.
    busy: bool,
}

impl Driver {
    /// One turn of the loop. `ticked` on another shard's word: one tick serves all of a thread.
    fn turn(&mut self, ticked: bool) -> Work {
        self.now = clock::now();
        self.tallies.bump(Tally::Turns);
        let mut work = Work {
            ticked,
            busy: false,
        };
        self.take_completions(&mut work);
        work.busy |= self.take_letters();
        if self.take_stored() {
            work.busy = true;
            self.storage.retry();
        }
        work.busy |= self.take_orders();
        self.on_time(&mut work);
        self.carry_out();
        work.busy |= self.sign_in();
        self.store();
        self.arm_reads();
        self.keep_accepting();
        self.flush_sends();
        self.post_messages();
        self.shake_hands();
        let wakes = self.outbox.flush(&mut self.ring);
        self.tallies.add(Tally::Wakes, wakes);
        if self.draining {
            self.mesh.set_drained(self.id, self.is_drained());
        }
        self.due_us = self.next_deadline_us().unwrap_or(u64::MAX);
        work
    }

    /// Would a turn find anything? Asked at every round of the thread, so it only looks at flags.
    fn is_due(&mut self, now_us: u64) -> bool {
        self.due_us <= now_us
            || self.ring.has_news()
            || self.mesh.has_news(self.id)
            || self.has_work()
    }

    /// Is there work that no completion, letter or answer would announce?
    fn has_work(&self) -> bool {
        !self.fx.is_empty()
            || !self.mail.is_empty()
            || !self.sign_ins.waiting.is_empty()
            || self.tls.has_work()
            || self.storage.has_failed()
            || !self.sockets.dirty.is_empty()
            || !self.sockets.urgent.is_empty()
            || !self.sockets.hung_up.is_empty()
            || (!self.sockets.ready.is_empty() && !self.is_congested())
            || self.stopped
    }

    /// May the shard do without its tick?
    fn may_sleep(&self) -> bool {
        !self.has_work() && !self.waits_for_tick() && !self.draining
    }

    /// Does something wait to be tried again?
    fn waits_for_tick(&self) -> bool {
        self.sockets.waiting_reads() > 0
            || self.outbox.waiting() > 0
            || self.storage.waiting() > 0
            || self.acceptor.is_failed()
    }

    /// When time alone brings work.
    fn next_deadline_us(&self) -> Option<u64> {
        let core = self.core.next_wakeup_us();
        let sockets = self.sockets.next_deadline_us();
        let tls = self.tls.next_deadline_us();
        [core, sockets, tls].into_iter().flatten().min()
    }

    /// Reading from clients would make it worse.
    fn is_congested(&self) -> bool {
        self.core.is_congested() || self.outbox.waiting() > 0 || self.storage.waiting() > 0
    }

    /// Nothing is left to do, here or anywhere, or nobody wants to wait for it.
    fn is_over(&self) -> bool {
        let over = self.draining && self.mesh.all_drained();
        self.stopped || (over && self.is_drained() && !self.mesh.has_letters(self.id))
    }

    fn is_drained(&self) -> bool {
        self.core.is_drained()
            && self.sockets.in_use() == 0
            && self.outbox.waiting() == 0
            && self.storage.waiting() == 0
    }

    // ---- what comes in

    fn take_completions(&mut self, work: &mut Work) {
        let start_us = self.now.mono_us;
        for count in 1..=COMPLETIONS_PER_TURN {
            let Some(completion) = self.ring.next_completion() else {
                break;
            };
            self.on_completion(completion, work);
            if count % CLOCK_EVERY == 0 && clock::mono_us() - start_us > self.turn_max_us {
                break;
            }
        }
        self.ring.publish_buffers();
    }

    fn on_completion(&mut self, completion: Completion, work: &mut Work) {
        let tick = matches!(completion, Completion::Tick { .. });
        work.busy |= !tick && !matches!(completion, Completion::Nothing);
        match completion {
            Completion::Tick { .. } => work.ticked = true,
            Completion::Polled { key, result, last } => self.on_polled(key, result, last),
            Completion::Received {
                key,
                result,
                lent,
                more,
                last,
            } => self.on_received(key, result, lent, more, last),
            Completion::Sent {
                key,
                result,
                buffer,
            } => self.on_sent(key, result, buffer),
            Completion::Accepted {
                mode,
                door,
                result,
                from,
                last,
            } => self.on_accepted((mode, door), result, from, last),
            Completion::HandedOver { key, result } => self.on_handed_over(key, result),
            Completion::Closed { key } => self.on_closed(key),
            Completion::Rung { last } => {
                let bell = self.mesh.bell(self.id);
                bell.quiet();
                if last {
                    self.ring.watch(bell);
                }
            }
            Completion::Woken | Completion::Deadline | Completion::Nothing => {}
        }
    }

    /// A share of the letters of each shard that has written.
    fn take_letters(&mut self) -> bool {
        self.mesh.take_mail(self.id, &mut self.mail);
        if self.mail.is_empty() {
            return false;
        }
        let share = (LETTERS_PER_TURN / self.mail.senders()).max(1);
        let mut next = 0;
        while let Some(from) = self.mail.next(next) {
            next = usize::from(from.0) + 1;
            for _ in 0..share {
                let Some(letter) = self.mesh.take_letter(from, self.id) else {
                    self.mail.done(from);
                    break;
                };
                match letter {
                    Letter::Message(message) => {
                        let input = Input::Message { from, message };
                        self.core.handle(self.now, input, &mut self.fx);
                    }
                    Letter::Adopt(adoption) => self.adopt(*adoption),
                    Letter::Discard(slot) => self.discard(slot),
                }
            }
        }
        true
    }

    /// All of them: they are what frees memory.
    fn take_stored(&mut self) -> bool {
        let mut any = self.storage.has_failed();
        for (token, error) in self.storage.take_failed() {
            let result = Err(error);
            let input = Input::Stored { token, result };
            self.core.handle(self.now, input, &mut self.fx);
        }
        while let Some(answers) = self.mesh.take_stored(self.id) {
            any = true;
            match answers {
                Answers::Messages(batch) => {
                    for Answer { token, result } in batch {
                        self.on_stored(token, store_map::answer(result));
                    }
                }
                Answers::Records(batch) => {
                    for Answer { token, result } in batch {
                        self.on_stored(token, store_map::record_answer(result));
                    }
                }
            }
        }
        any
    }

    fn on_stored(&mut self, token: u64, result: Result<StoreReply, StoreError>) {
        let token = StoreToken(token);
        let input = Input::Stored { token, result };
        self.core.handle(self.now, input, &mut self.fx);
    }

    fn take_orders(&mut self) -> bool {
        let mut any = false;
        while let Some(order) = self.mesh.take_order(self.id) {
            any = true;
            match order {
                Order::Drain {
                    spread_ms,
                    deadline_ms,
                } => {
                    self.draining = true;
                    self.stop_accepting();
                    self.end_handshakes();
                    let input = Input::Drain {
                        spread_ms,
                        deadline_ms,
                    };
                    self.core.handle(self.now, input, &mut self.fx);
                }
                Order::Revoke(revocation) => {
                    let input = Input::Revoke(revocation);
                    self.core.handle(self.now, input, &mut self.fx);
                }
                Order::Stop => self.stopped = true,
            }
        }
        any
    }

    fn on_time(&mut self, work: &mut Work) {
        let due = |at_us: Option<u64>| at_us.is_some_and(|at_us| at_us <= self.now.mono_us);
        if due(self.core.next_wakeup_us()) {
            work.busy = true;
            self.core.handle(self.now, Input::Tick, &mut self.fx);
        }
        self.end_leaving();
        self.end_slow_handshakes();
        self.hibernate_quiet();
        if work.ticked {
            self.acceptor.on_tick();
            self.storage.retry();
            if self.now.mono_us - self.published_at_us > PUBLISH_EVERY_US {
                self.publish();
            }
        }
    }

    // ---- what goes out

    /// Does what the core asked for, and what it asks for in consequence.
    fn carry_out(&mut self) {
        while !self.fx.list.is_empty() {
            let mut effects = mem::take(&mut self.carried);
            mem::swap(&mut effects, &mut self.fx.list);
            for effect in effects.drain(..) {
                self.carry_out_one(effect);
            }
            self.carried = effects;
        }
    }

    fn carry_out_one(&mut self, effect: Effect) {
        let (Effect::Output(conn)
        | Effect::Close { conn, .. }
        | Effect::Authenticate { conn, .. }
        | Effect::Move { conn, .. }
        | Effect::Recall(conn)
        | Effect::Resume(conn)) = effect;
        let Some(index) = self.sockets.of_conn(conn) else {
            return;
        };
        match effect {
            Effect::Output(_) => self.sockets.mark_dirty(index),
            Effect::Close { last, .. } => self.leave(index, last),
            Effect::Authenticate { credentials, .. } => {
                self.sign_ins.waiting.push_back((conn, credentials));
            }
            Effect::Move { to, session, .. } => self.begin_move(index, to, session),
            Effect::Recall(_) => self.recall(index),
            Effect::Resume(_) => self.resume(index),
        }
    }

    /// Asks the authenticator, for as many of those who wait as there is time: a resume token takes
    /// it a microsecond or two, an access token some 50.
    fn sign_in(&mut self) -> bool {
        if self.sign_ins.waiting.is_empty() {
            return false;
        }
        let start_us = clock::mono_us();
        let now_unix_s = self.now.wall_us / 1_000_000;
        while let Some((conn, credentials)) = self.sign_ins.waiting.pop_front() {
            let Some(index) = self.sockets.of_conn(conn) else {
                continue;
            };
            let authenticator = &self.sign_ins.authenticator;
            let result = tls::authenticate(
                self.tls.client(index),
                &credentials,
                |credentials| authenticator.authenticate(credentials, now_unix_s),
                |user, device| authenticator.vouch(user, device),
            );
            if result.is_ok() && self.sockets.get(index).state == State::Greeting {
                // Unless the core moves it away at once.
                self.sockets.get_mut(index).state = State::Open;
                self.sockets.want_read(index);
            }
            let input = Input::Authenticated { conn, result };
            self.core.handle(self.now, input, &mut self.fx);
            if clock::mono_us() - start_us > self.turn_max_us {
                break;
            }
        }
        self.carry_out();
        true
    }

    /// Hands the turn's requests to the adapter. One that answers at once is heard at once, so that
    /// what follows leaves with the same SENDs.
    fn store(&mut self) {
        for _ in 0..STORE_ROUNDS_MAX {
            self.storage.enqueue(self.now, &mut self.fx.store);
            if !self.storage.submit() || !self.take_stored() {
                return;
            }
            self.carry_out();
        }
    }

    fn post_messages(&mut self) {
        let mut messages = mem::take(&mut self.fx.mesh);
        for (to, message) in messages.drain(..) {
            self.post(to, Letter::Message(message));
        }
        self.fx.mesh = messages;
    }

    fn post(&mut self, to: ShardId, letter: Letter) {
        self.tallies.bump(Tally::Letters);
        if !self.outbox.post(to, letter) {
            self.tallies.bump(Tally::MeshFull);
        }
    }

    /// Gives back what a burst has left in lists.
    fn trim(&mut self) {
        self.fx.trim();
        self.carried.shrink_to(LISTED_MAX);
        self.sign_ins.waiting.shrink_to(LISTED_MAX);
        self.sockets.trim();
        self.moves.trim();
        self.proxies.trim();
        self.tls.trim();
        self.ring.trim(LISTED_MAX);
    }

    fn publish(&mut self) {
        if self.now.mono_us / TRIM_EVERY_US != self.published_at_us / TRIM_EVERY_US {
            self.trim();
        }
        self.published_at_us = self.now.mono_us;
        let counts = self.storage.take_counts();
        self.tallies.add(Tally::StoreBatches, counts.batches);
        self.tallies.add(Tally::StoreRejected, counts.rejected);
        self.tallies.add(Tally::StoreExpired, counts.expired);
        let mut levels = [0; Level::COUNT];
        let mut set = |level: Level, value: usize| levels[level as usize] = value as u64;
        set(Level::Sockets, self.sockets.in_use());
        set(Level::SocketsMax, self.acceptor.slots());
        set(Level::UnreadBytes, self.unread.bytes());
        set(Level::ReadsWaiting, self.sockets.waiting_reads());
        set(Level::Bulk, self.sockets.in_bulk());
        set(Level::TlsHandshaking, self.tls.handshaking());
        set(Level::TlsSessions, self.tls.opened());
        set(Level::TlsHibernated, self.tls.hibernated());
        set(Level::StoreQueue, self.storage.waiting());
        set(Level::MeshOutbox, self.outbox.waiting());
        set(Level::MeshBytes, self.mesh.large_bytes(self.id));
        let gauges = self.core.gauges();
        self.published
            .publish(self.core.counters(), &gauges, &self.tallies, &levels);
    }
}
