//! What must hold, checked as it happens and at the end. A ledger of what was said, by whom and to
//! whom, and a file per promise:
//!
//! 1. `inbox`: what got SENT is with every device of both users that is alive, and in the inbox;
//! 2. `order`: one order of a conversation, on all devices; the order of each sender is kept;
//! 3. `once`: nothing is shown twice, nothing that was not said, nothing to the wrong user;
//! 4. `retry`: a message is accepted once, and its place is the first answer for ever;
//! 5. `marks`: no cursor passes what its device acknowledged, no receipt claims what was not;
//! 6. `bounds`: memory stays within the bounds, and every ephemeral frame is accounted for;
//! 7. `crate::settle`: after the faults have stopped, everything comes to rest in time.
//!
//! The first thing that is wrong ends the run: what follows from it is no news.

mod bounds;
mod inbox;
mod marks;
mod once;
mod order;
mod retry;

use crate::device::{Device, Key};
use marks::Marks;
use portico_backend::{Error, messages::Cmd};
use portico_wire::{
    Flags, Op,
    ids::{ConvId, ConvSeq, DeviceId, MsgId, Seq, UserId},
    message::Hello,
    next_frame,
};
use rustc_hash::{FxHashMap, FxHashSet};
use std::fmt;

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its number, of those in the head of this module; 0: the service broke down by itself.
    pub promise: u8,
    pub what: String,
    /// Messages and devices that it is about.
    pub about: Vec<String>,
    /// What happened to these, if it was written down.
    pub story: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.promise {
            0 => write!(f, "{}", self.what),
            number => write!(f, "promise {number} is broken: {}", self.what),
        }
    }
}

/// A message, as its sender knows it.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) from: usize,
    pub(crate) key: Key,
    pub(crate) to: UserId,
    body: u64,
    bytes: usize,
    pub(crate) ephemeral: bool,
    /// Frames that carried it.
    attempts: u32,
    /// Where it stands, by the first SENT.
    pub(crate) sent: Option<ConvSeq>,
    /// Where it stands in the store.
    stored: Option<ConvSeq>,
    /// The sender's other devices that were known when it was said.
    copies: Vec<usize>,
}

impl Letter {
    pub(crate) fn conv(&self) -> ConvId {
        ConvId::direct(self.key.0, self.to)
    }
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    letters: Vec<Letter>,
    by_key: FxHashMap<Key, usize>,
    /// Places of conversations that are taken.
    places: FxHashMap<(ConvId, ConvSeq), usize>,
    marks: Marks,
    /// Ephemeral messages that a device was shown.
    whispers: FxHashSet<(usize, usize)>,
    pub(crate) whispers_confirmed: Vec<usize>,
    /// Inbox numbers that were ever asked for, and the latest of each lane.
    numbers: FxHashSet<(UserId, Seq)>,
    lanes: FxHashMap<u16, Seq>,
    /// Of shards, so far.
    turns: u64,
    failure: Option<Failure>,
}

impl Checker {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) const fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Only the first failure counts.
    pub(crate) fn fail<S: AsRef<str>>(&mut self, promise: u8, what: String, about: &[S]) {
        self.failure.get_or_insert_with(|| Failure {
            promise,
            what,
            about: about.iter().map(|name| name.as_ref().to_owned()).collect(),
            story: String::new(),
        });
    }

    /// How many messages were said.
    pub(crate) const fn letters(&self) -> usize {
        self.letters.len()
    }

    pub(crate) fn name_of(&self, from: UserId, msg_id: MsgId) -> String {
        let of = |(number, letter): (usize, &Letter)| {
            ((letter.key.0, letter.key.2) == (from, msg_id)).then_some(number)
        };
        match self.letters.iter().enumerate().find_map(of) {
            Some(number) => format!("m{number}"),
            None => format!("{msg_id:?} of user {from}"),
        }
    }

    pub(crate) fn name_at(&self, conv: ConvId, at: ConvSeq) -> String {
        match self.places.get(&(conv, at)) {
            Some(number) => format!("m{number}"),
            None => format!("{conv:?} at {at}"),
        }
    }

    /// Ephemeral messages that were shown.
    pub(crate) fn whispers(&self) -> usize {
        self.whispers.len()
    }

    /// The device that said a message.
    pub(crate) fn from(&self, number: usize) -> usize {
        self.letters[number].from
    }

    fn number_of(&self, device: &Device, msg_id: MsgId) -> Option<usize> {
        let key = (device.user, device.device, msg_id);
        self.by_key.get(&key).copied()
    }

    // ---- what users do

    #[expect(clippy::too_many_arguments, reason = "a letter has so many sides")]
    pub(crate) fn said(
        &mut self,
        from: usize,
        device: &Device,
        to: UserId,
        msg_id: MsgId,
        body: u64,
        bytes: usize,
        ephemeral: bool,
        copies: Vec<usize>,
    ) {
        let key = (device.user, device.device, msg_id);
        self.by_key.insert(key, self.letters.len());
        self.letters.push(Letter {
            from,
            key,
            to,
            body,
            bytes,
            ephemeral,
            attempts: 0,
            sent: None,
            stored: None,
            copies,
        });
    }

    /// A message will not be said again. Returns to whom it was, and its length.
    pub(crate) fn refused(&self, device: &Device, msg_id: MsgId) -> Option<(UserId, usize)> {
        let letter = &self.letters[self.number_of(device, msg_id)?];
        (!letter.ephemeral).then_some((letter.to, letter.bytes))
    }

    /// Frames that a client has written.
    pub(crate) fn written(&mut self, at: usize, device: &Device, bytes: &[u8]) {
        let mut rest = bytes;
        while let Ok(Some(frame)) = next_frame(rest, usize::MAX) {
            rest = &rest[frame.bytes().len()..];
            match frame.known_op() {
                Some(Op::Hello) => {
                    if let Ok(hello) = Hello::decode(frame.body()) {
                        self.marks.acknowledged(at, device, hello.last_seq);
                    }
                }
                Some(Op::Ack) => {
                    let up_to = Seq(frame.seq_header().seq);
                    self.marks.acknowledged(at, device, up_to);
                }
                Some(Op::Receipt) => {
                    if let Some(route) = frame.route() {
                        self.marks
                            .read(device.user, UserId(route.conv), route.conv_seq);
                    }
                }
                Some(Op::Send) => {
                    let msg_id = frame.route().map(|route| route.msg_id);
                    if let Some(number) = msg_id.and_then(|id| self.number_of(device, id)) {
                        self.attempted(number, frame.flags().contains(Flags::RETRY));
                    }
                }
                _ => {}
            }
        }
    }

    fn attempted(&mut self, number: usize, retry: bool) {
        let letter = &mut self.letters[number];
        letter.attempts += 1;
        // The client may leave RETRY off only while nothing can have been accepted.
        if letter.attempts > 1 && !retry && letter.stored.is_some() {
            let what = format!("m{number} is in the store and is said again without RETRY");
            self.fail(4, what, &[format!("m{number}")]);
        }
    }

    // ---- what the store does

    /// A shard has asked for something.
    pub(crate) fn submitted(&mut self, lane: u16, cmd: &Cmd) {
        match cmd {
            Cmd::Append { refs, .. } => {
                for to in refs {
                    self.numbered(lane, to.user, to.seq);
                }
            }
            Cmd::AddRefs { refs } => {
                for to in refs {
                    self.numbered(lane, to.user, to.seq);
                }
            }
            _ => {}
        }
    }

    /// The store carries it out.
    pub(crate) fn applied(&mut self, cmd: &Cmd) {
        match cmd {
            Cmd::Append { entry, refs, .. } => {
                let key = (entry.sender, entry.device, entry.msg_id);
                self.stored(key, entry.conv, entry.conv_seq);
                for to in refs {
                    self.addressed(&key, to.user);
                }
            }
            Cmd::AddRefs { refs } => {
                for to in refs {
                    self.referred(to);
                }
            }
            Cmd::SetCursors { cursors } => {
                for &(user, device, seq) in cursors {
                    self.cursor_written(user, device, seq);
                }
            }
            Cmd::SetWatermarks { marks } => {
                for mark in marks {
                    self.marks_written(mark);
                }
            }
            _ => {}
        }
    }

    pub(crate) fn refused_by_store(&mut self, error: &Error) {
        let what = format!("the store refused what a shard asked for: {error}");
        self.fail::<&str>(0, what, &[]);
    }

    /// A gateway starts, with numbers above this one.
    pub(crate) fn booted(&mut self, seq_floor: u64) {
        self.lanes.clear();
        let beyond = |letter: &Letter| letter.stored.is_some_and(|at| at.0 > seq_floor);
        if let Some(number) = self.letters.iter().position(beyond) {
            let what = format!("a gateway starts below the number of m{number}");
            self.fail(2, what, &[format!("m{number}")]);
        }
        // What was numbered and never stored was never seen: it may be numbered so again.
        self.numbers.retain(|(_, seq)| seq.0 <= seq_floor);
    }
}

fn device_name(user: UserId, device: DeviceId) -> String {
    format!("{user}.{device}")
}
