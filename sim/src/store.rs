//! The store: the real memory adapter behind a stage that delays, groups, fails and tears.
//!
//! Requests of the shards become the adapter's commands in the gateway's own words (`store_map`).
//! Writes wait in the lane of their shard until a commit takes some of each lane; reads wait by
//! themselves. What was carried out survives the death of the gateway, what was not is gone; of a
//! commit that is under way at that moment any start of each lane may be carried out.
//!
//! # Invariants
//! - Writes of a lane are carried out in the order of submission.
//! - A read sees every write that was answered before the read was submitted.
//! - Every request of a living gateway is answered once. `Unknown` may or may not have been carried
//!   out; every other failure was not.
//!
//! # Does not
//! Carry out what it has answered as unknown at some later time: the contract has no such adapter.

use crate::{
    canary::Canary,
    event::Event,
    plan::StoreMood,
    random::Random,
    slots::Slots,
    store_map::{self, Command},
    world::World,
};
use bytes::Bytes;
use portico_backend::{
    Backend, Completion, Error, Family, Kind, Limits, Request, Sink,
    memory::Store,
    messages::{Cmd, InboxRef, Item, Messages, Reply, Watermark},
    records::{self, Records},
};
use portico_core::{
    Input, RESTRICTIONS, restricted_user,
    store::{StoreError, StoreReply, StoreRequest, StoreToken},
};
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, Seq, UserId};
use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The adapter goes by the machine's clock, which has no part in this.
const NEVER: Duration = Duration::from_secs(7 * 86_400);
/// How long a store that has given up is left alone.
const REPLACED_AFTER_US: u64 = 3_000_000;

/// Where the adapter puts its answers: it gives them before `submit` returns.
struct Basket<F: Family>(Mutex<Vec<Completion<F>>>);

impl<F: Family> Sink<F> for Basket<F> {
    fn complete(&self, batch: Vec<Completion<F>>) {
        let mut basket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        basket.extend(batch);
    }
}

/// The adapter of one family, which answers at once.
struct Shelf<F: Family> {
    backend: Arc<dyn Backend<F>>,
    basket: Arc<Basket<F>>,
    sink: Arc<dyn Sink<F>>,
    deadline: Instant,
}

impl<F: Family> Shelf<F> {
    fn new(backend: Arc<dyn Backend<F>>) -> Self {
        let basket = Arc::new(Basket(Mutex::default()));
        Self {
            backend,
            sink: basket.clone(),
            basket,
            deadline: Instant::now() + NEVER,
        }
    }

    /// Carries out one command now.
    fn ask(&self, cmd: F::Cmd) -> Result<F::Reply, Error> {
        let request = Request {
            token: 0,
            lane: 0,
            deadline: self.deadline,
            cmd,
        };
        if let Err(rejected) = self.backend.submit(vec![request], &self.sink) {
            return Err(rejected.why);
        }
        let mut basket = self.basket.0.lock().unwrap_or_else(PoisonError::into_inner);
        match basket.pop() {
            Some(completion) => completion.result,
            None => unreachable!("this adapter answers at once"),
        }
    }
}

#[derive(Debug)]
struct Waiting {
    token: StoreToken,
    lane: u16,
    deadline_us: u64,
    cmd: Command,
    /// Somebody has been told that it is done.
    answered: bool,
}

#[derive(Debug)]
struct Answer {
    lane: u16,
    token: StoreToken,
    result: Result<StoreReply, StoreError>,
}

#[derive(Debug, Default)]
struct Lane {
    writes: VecDeque<Waiting>,
    /// When its latest answer goes.
    answered_us: u64,
}

/// See the head of this file.
pub(crate) struct Stage {
    messages: Shelf<Messages>,
    records: Shelf<Records>,
    lanes: Vec<Lane>,
    reads: Slots<Waiting>,
    answers: Slots<Answer>,
    committing: bool,
    pub(crate) stalled_until_us: u64,
    pub(crate) foul_until_us: u64,
    /// It has given up.
    pub(crate) poisoned: bool,
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage")
            .field("lanes", &self.lanes)
            .field("committing", &self.committing)
            .finish_non_exhaustive()
    }
}

/// What becomes of a command.
enum Fate {
    Done,
    /// Carried out, and nobody is told.
    ReplyLost,
    Failed(Error),
}

impl Stage {
    pub(crate) fn new() -> Self {
        let store = Store::new();
        Self {
            messages: Shelf::new(store.messages(Limits::default())),
            records: Shelf::new(store.records(Limits::default())),
            lanes: Vec::new(),
            reads: Slots::default(),
            answers: Slots::default(),
            committing: false,
            stalled_until_us: 0,
            foul_until_us: 0,
            poisoned: false,
        }
    }

    /// A gateway starts over what there is. Returns the number above all others.
    pub(crate) fn open(&mut self, shards: u16) -> u64 {
        self.lanes.clear();
        self.lanes.resize_with(usize::from(shards), Lane::default);
        self.reads.clear();
        self.answers.clear();
        self.committing = false;
        self.poisoned = false;
        match self.ask(Cmd::Ceiling) {
            Ok(Reply::Ceiling(Seq(ceiling))) => ceiling,
            other => unreachable!("the ceiling is a number: {other:?}"),
        }
    }

    /// Users who have other settings than the defaults.
    pub(crate) fn restricted(&self) -> Vec<UserId> {
        let mut users = Vec::new();
        let mut after = Bytes::new();
        loop {
            let scan = records::Cmd::Scan {
                table: records::Table(RESTRICTIONS.0),
                prefix: Bytes::new(),
                after,
                limit: records::PAGE_ROWS_MAX,
            };
            let Ok(records::Reply::Rows(rows)) = self.records.ask(scan) else {
                unreachable!("the store is open");
            };
            let Some(last) = rows.last() else {
                return users;
            };
            after = last.key.clone();
            users.extend(rows.iter().filter_map(|row| restricted_user(&row.key)));
        }
    }

    fn ask(&self, cmd: Cmd) -> Result<Reply, Error> {
        self.messages.ask(cmd)
    }

    /// All that a user's inbox names, in order.
    pub(crate) fn inbox(&self, user: UserId) -> Vec<Item> {
        let mut all = Vec::new();
        let mut after = Seq(0);
        loop {
            let page = self.ask(Cmd::Replay {
                user,
                after,
                limit: u32::MAX,
                max_bytes: u32::MAX,
            });
            let Ok(Reply::Page { items, more }) = page else {
                return all;
            };
            after = items.last().map_or(after, |item| item.seq);
            all.extend(items);
            if !more {
                return all;
            }
        }
    }

    pub(crate) fn marks(&self, conv: ConvId) -> Vec<Watermark> {
        match self.ask(Cmd::Watermarks { conv }) {
            Ok(Reply::Watermarks(marks)) => marks,
            _ => Vec::new(),
        }
    }

    fn mood(&self, now_us: u64, usual: StoreMood, foul: StoreMood) -> StoreMood {
        if now_us < self.foul_until_us {
            foul
        } else {
            usual
        }
    }
}

impl StoreMood {
    fn draw(self, random: &mut Random) -> Fate {
        if random.per_mille(self.overloaded) {
            let after = Duration::from_millis(random.pick(&[0, 1, 70, 3_000]));
            return Fate::Failed(Error::overloaded(after, "simulated: too much in flight"));
        }
        if random.per_mille(self.unavailable) {
            let detail = "simulated: the request was lost";
            return Fate::Failed(Error::new(Kind::Unavailable, detail));
        }
        if random.per_mille(self.unknown_lost) {
            let detail = "simulated: the request was lost, and nobody knows";
            return Fate::Failed(Error::new(Kind::Unknown, detail));
        }
        if random.per_mille(self.unknown_applied) {
            return Fate::ReplyLost;
        }
        Fate::Done
    }
}

impl World {
    /// A shard asks for something.
    pub(crate) fn submit(&mut self, lane: u16, request: StoreRequest) {
        let mut cmd = store_map::command(request.cmd);
        if let Command::Messages(cmd) = &mut cmd {
            self.checker.submitted(lane, cmd);
            self.tamper(lane, request.token, cmd);
        }
        let waiting = Waiting {
            token: request.token,
            lane,
            deadline_us: request.deadline_us,
            answered: self.canary == Some(Canary::AckBeforeStored)
                && matches!(cmd, Command::Messages(Cmd::Append { .. })),
            cmd,
        };
        let life = self.life;
        let is_read = match &waiting.cmd {
            Command::Messages(cmd) => Messages::is_read(cmd),
            Command::Records(cmd) => Records::is_read(cmd),
        };
        if is_read {
            let at = self.stage.reads.put(waiting);
            let pause_us = 1 + self.random.stretch(self.plan.commit_us);
            self.after(pause_us, Event::Read { life, at });
            return;
        }
        if waiting.answered {
            self.answer_in(0, lane, waiting.token, Ok(StoreReply::Done));
        }
        self.stage.lanes[usize::from(lane)]
            .writes
            .push_back(waiting);
        self.begin_commit();
    }

    fn begin_commit(&mut self) {
        if !self.stage.committing {
            self.stage.committing = true;
            let pause_us = 1 + self.random.stretch(self.plan.commit_us);
            let life = self.life;
            self.after(pause_us, Event::Commit { life });
        }
    }

    /// Some of what waits in each lane is carried out.
    pub(crate) fn commit(&mut self) {
        if let Some(pause_us) = self.stall() {
            let life = self.life;
            return self.after(pause_us, Event::Commit { life });
        }
        self.stage.committing = false;
        let first = self.random.index(self.stage.lanes.len());
        let mut left = self.plan.commit_max;
        for step in 0..self.stage.lanes.len() {
            let lane = (first + step) % self.stage.lanes.len();
            while left > 0
                && let Some(write) = self.stage.lanes[lane].writes.pop_front()
            {
                left -= 1;
                self.write(write);
            }
        }
        if self.stage.lanes.iter().any(|lane| !lane.writes.is_empty()) {
            self.begin_commit();
        }
    }

    fn stall(&self) -> Option<u64> {
        let until_us = self.stage.stalled_until_us;
        (until_us > self.now_us).then(|| until_us - self.now_us)
    }

    fn write(&mut self, write: Waiting) {
        let Waiting {
            token,
            lane,
            deadline_us,
            cmd,
            answered,
        } = write;
        let fate = self.fate(deadline_us, true);
        let result = match fate {
            Fate::Failed(error) => Err(store_map::failure(&error)),
            Fate::Done => self.apply(cmd),
            Fate::ReplyLost => self.apply(cmd).and(Err(StoreError::Unknown)),
        };
        if answered {
            return;
        }
        let pause_us = self.answer_delay();
        let at_us = self.now_us + pause_us;
        let queue = &mut self.stage.lanes[usize::from(lane)];
        let at_us = if self.plan.reorder {
            at_us
        } else {
            at_us.max(queue.answered_us)
        };
        queue.answered_us = queue.answered_us.max(at_us);
        self.answer_in(at_us - self.now_us, lane, token, result);
    }

    fn apply(&mut self, cmd: Command) -> Result<StoreReply, StoreError> {
        let cmd = match cmd {
            Command::Messages(cmd) => cmd,
            Command::Records(cmd) => {
                self.note(|| format!("store: {cmd:?}"));
                return store_map::record_answer(self.stage.records.ask(cmd));
            }
        };
        self.checker.applied(&cmd);
        self.note_applied(&cmd);
        let result = self.stage.ask(cmd);
        if let Err(error) = &result {
            self.checker.refused_by_store(error);
        }
        store_map::answer(result)
    }

    fn note_applied(&self, cmd: &Cmd) {
        self.note(|| match cmd {
            Cmd::Append { entry, refs, .. } => {
                let letter = self.checker.name_of(entry.sender, entry.msg_id);
                let places = refs
                    .iter()
                    .map(|to| format!("{} for user {}", to.seq, to.user));
                let places: Vec<String> = places.collect();
                format!(
                    "store: {letter} at {}, {}",
                    entry.conv_seq,
                    places.join(", ")
                )
            }
            Cmd::AddRefs { refs } => {
                let name = |to: &InboxRef| {
                    let letter = self.checker.name_at(to.conv, to.conv_seq);
                    format!("{letter} again, {} for user {}", to.seq, to.user)
                };
                let places: Vec<String> = refs.iter().map(name).collect();
                format!("store: {}", places.join(", "))
            }
            Cmd::SetCursors { cursors } => {
                let name = |(user, device, seq): &(UserId, DeviceId, Seq)| {
                    format!("{user}.{device} has all up to {seq}")
                };
                let cursors: Vec<String> = cursors.iter().map(name).collect();
                format!("store: {}", cursors.join(", "))
            }
            other => format!("store: {other:?}"),
        });
    }

    pub(crate) fn read(&mut self, at: usize) {
        if let Some(pause_us) = self.stall() {
            let life = self.life;
            return self.after(pause_us, Event::Read { life, at });
        }
        let Some(read) = self.stage.reads.take(at) else {
            return;
        };
        if self.canary == Some(Canary::NoAnswer)
            && matches!(read.cmd, Command::Messages(Cmd::Replay { .. }))
            && self.random.one_in(10)
        {
            return self.note(|| format!("canary: a page for lane {} stays out", read.lane));
        }
        let forgets = self.canary == Some(Canary::ForgetAttempts);
        let result = match self.fate(read.deadline_us, false) {
            Fate::Failed(error) => Err(store_map::failure(&error)),
            Fate::ReplyLost => Err(StoreError::Unknown),
            Fate::Done => match read.cmd {
                Command::Messages(Cmd::Find { .. }) if forgets => Ok(StoreReply::Found(Vec::new())),
                Command::Messages(cmd) => store_map::answer(self.stage.ask(cmd)),
                Command::Records(cmd) => store_map::record_answer(self.stage.records.ask(cmd)),
            },
        };
        let pause_us = self.answer_delay();
        self.answer_in(pause_us, read.lane, read.token, result);
    }

    fn fate(&mut self, deadline_us: u64, write: bool) -> Fate {
        if self.stage.poisoned && write {
            let detail = "simulated: the store has given up";
            return Fate::Failed(Error::new(Kind::Fatal, detail));
        }
        if deadline_us < self.now_us {
            let detail = "simulated: the deadline passed in a queue";
            return Fate::Failed(Error::new(Kind::Unavailable, detail));
        }
        let (usual, foul) = (self.plan.mood, self.plan.foul_mood);
        let mood = self.stage.mood(self.now_us, usual, foul);
        mood.draw(&mut self.random)
    }

    fn answer_delay(&mut self) -> u64 {
        let (usual, foul) = (self.plan.mood, self.plan.foul_mood);
        let mood = self.stage.mood(self.now_us, usual, foul);
        if self.random.per_mille(mood.late) {
            self.random.stretch(self.plan.late_us)
        } else {
            self.random.stretch(self.plan.commit_us / 4)
        }
    }

    fn answer_in(
        &mut self,
        pause_us: u64,
        lane: u16,
        token: StoreToken,
        result: Result<StoreReply, StoreError>,
    ) {
        let at = self.stage.answers.put(Answer {
            lane,
            token,
            result,
        });
        let life = self.life;
        self.after(pause_us, Event::Answer { life, at });
    }

    pub(crate) fn answer(&mut self, at: usize) {
        let Some(Answer {
            lane,
            token,
            result,
        }) = self.stage.answers.take(at)
        else {
            return;
        };
        self.note(|| match &result {
            Ok(_) => format!("store: shard {lane} gets its answer {:x}", token.0),
            Err(error) => format!("store: shard {lane} gets {error:?} for {:x}", token.0),
        });
        self.input(lane, Input::Stored { token, result });
    }

    /// The gateway dies: of a commit under way any start of each lane is carried out.
    pub(crate) fn tear(&mut self) {
        let under_way = self.stage.committing && !self.stage.poisoned;
        for lane in 0..self.stage.lanes.len() {
            let writes = std::mem::take(&mut self.stage.lanes[lane].writes);
            let all = writes.len();
            let some = self.random.index(all + 1);
            let kept = if under_way {
                self.random.pick(&[0, all, some])
            } else {
                0
            };
            if all > 0 {
                self.note(|| format!("store: lane {lane} is torn, {kept} of {all} are written"));
            }
            for write in writes.into_iter().take(kept) {
                // Nobody is there to hear the answer.
                let _ = self.apply(write.cmd);
            }
        }
    }

    /// The store gives up; the supervisor replaces the gateway.
    pub(crate) fn poison(&mut self) {
        if self.gateway.is_some() && !self.stage.poisoned {
            self.stage.poisoned = true;
            let life = self.life;
            self.after(REPLACED_AFTER_US, Event::Replace { life });
        }
    }

    /// What a canary does to a command.
    fn tamper(&mut self, lane: u16, token: StoreToken, cmd: &mut Cmd) {
        const SECOND: u64 = 1_000_000;
        let Some(canary) = self.canary else {
            return;
        };
        match cmd {
            Cmd::Append { refs, .. } if canary == Canary::WrongInbox && self.random.one_in(10) => {
                let users = self.plan.users;
                refs.iter_mut()
                    .for_each(|to| to.user = UserId(to.user.0 % users + 1));
                self.note(|| format!("canary: {:x} of lane {lane} goes astray", token.0));
            }
            Cmd::SetCursors { cursors } if canary == Canary::CursorAhead => {
                let ahead = cursors.iter_mut().filter(|(_, _, seq)| seq.0 > 0);
                ahead.for_each(|(_, _, seq)| seq.0 += SECOND);
            }
            Cmd::SetWatermarks { marks } if canary == Canary::ReceiptAhead => {
                let some = marks.iter_mut().filter(|mark| mark.delivered > ConvSeq(0));
                some.for_each(|mark| mark.delivered.0 += SECOND);
            }
            _ => {}
        }
    }
}
