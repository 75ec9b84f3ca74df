//! A device: a real client session, an app above it, and the disk that both come back from.
//!
//! # Two kinds of app
//! One keeps messages and the session's state in one file, which it replaces as a whole; it
//! acknowledges what is in the file. The other appends each message to a log at once, acknowledges
//! it, and saves the session's state now and then; after a crash it is shown some messages again,
//! and drops what is in its log. Both save when the seed says.
//!
//! # Invariants
//! - Nothing goes out that depends on what is not on the disk yet, but what an app says: whoever
//!   loses power right after the key was pressed has said it or not.

mod app;
mod session;

use crate::world::World;
use portico_client::{Event as Told, Phase, Session, SessionState, Settings};
use portico_wire::{
    CloseCode, ErrorCode,
    ids::{ConvSeq, DeviceId, MsgId, Seq, UserId},
};
use rustc_hash::{FxHashMap, FxHashSet, FxHasher};
use std::{hash::Hasher, sync::Arc};

/// What names a message for ever.
pub(crate) type Key = (UserId, DeviceId, MsgId);

/// Whoever was replaced by another connection of the same device is started again by its user.
const RELAUNCH_US: u64 = 5_000_000;

/// A message as an app keeps it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown {
    pub(crate) key: Key,
    pub(crate) peer: UserId,
    pub(crate) conv_seq: ConvSeq,
    pub(crate) seq: Seq,
}

/// What outlives an app.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    /// The session's state as it was saved last; empty: never.
    state: Vec<u8>,
    /// How many of `known` that state knows of.
    covered: usize,
    /// The same for what the user has read.
    reads_covered: usize,
    /// What the session has shown, in this order. What is not covered goes with the app.
    pub(crate) known: Vec<Shown>,
    at: FxHashMap<Key, usize>,
    /// The log of an app that has one.
    log: FxHashSet<Key>,
    /// What the user has read.
    pub(crate) reads: Vec<(UserId, ConvSeq)>,
}

impl Disk {
    /// Forgets what was not saved.
    fn fall_back(&mut self) {
        for shown in self.known.drain(self.covered..) {
            self.at.remove(&shown.key);
        }
        self.reads.truncate(self.reads_covered);
    }
}

#[derive(Debug)]
pub(crate) struct App {
    pub(crate) session: Session,
    save_due: bool,
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) user: UserId,
    pub(crate) device: DeviceId,
    settings: Arc<Settings>,
    has_log: bool,
    /// What is said is saved before it goes out.
    saves_first: bool,
    save_us: u64,
    /// Its wall clock is wrong by so much.
    skew_us: i64,
    pub(crate) disk: Disk,
    backup: Option<Disk>,
    pub(crate) app: Option<App>,
    pub(crate) run: u32,
    pub(crate) line: Option<usize>,
    pub(crate) attempt: u32,
    timer_us: u64,
    /// Neither reads nor looks at its clock.
    pub(crate) frozen: bool,
    /// Does not read.
    pub(crate) deaf: bool,
    /// Has been here.
    pub(crate) launched: bool,
    /// Has heard SYNCED.
    pub(crate) registered: bool,
    /// Will not come again.
    pub(crate) buried: bool,
}

impl Device {
    pub(crate) fn new(world: &mut World, user: UserId, device: DeviceId) -> Self {
        let random = &mut world.random;
        let has_log = random.one_in(3);
        let save_us = random.pick(&[0, 0, 50_000, 2_000_000]);
        let settings = Settings {
            client: String::new(),
            receive_max: world.plan.receive_max,
            heartbeat_s: random.pick(&[0, 30, 300]),
            auto_ack: has_log && random.one_in(2),
            keep_token: random.one_in(2),
            ..Settings::default()
        };
        let skew_us = random.pick(&[0, 0, 0, 50_000, -3_600_000_000, 3_600_000_000]);
        Self {
            user,
            device,
            settings: Arc::new(settings),
            has_log,
            saves_first: random.one_in(2),
            save_us,
            skew_us,
            disk: Disk::default(),
            backup: None,
            app: None,
            run: 0,
            line: None,
            attempt: 0,
            timer_us: u64::MAX,
            frozen: false,
            deaf: false,
            launched: false,
            registered: false,
            buried: false,
        }
    }

    pub(crate) fn name(&self) -> String {
        format!("{}.{}", self.user, self.device)
    }

    fn token(&self) -> String {
        format!("{}:{}", self.user, self.device)
    }

    pub(crate) fn phase(&self) -> Phase {
        let app = self.app.as_ref();
        app.map_or(Phase::Offline, |app| app.session.phase())
    }

    /// Is this message safe with the device?
    pub(crate) fn has(&self, key: &Key) -> bool {
        let saved = self.disk.at.get(key);
        saved.is_some_and(|at| *at < self.disk.covered) || self.disk.log.contains(key)
    }

    /// Messages and marks that wait to be saved.
    pub(crate) fn unsaved(&self) -> usize {
        self.disk.known.len() - self.disk.covered
    }

    pub(crate) fn unsent(&self) -> usize {
        self.app.as_ref().map_or(0, |app| app.session.unsent())
    }

    /// Takes a copy of the disk for bad days. One without a position is no use: it would have the
    /// server go by its own word.
    pub(crate) fn back_up(&mut self) {
        let mut copy = self.disk.clone();
        copy.fall_back();
        let state = SessionState::decode(&copy.state);
        if state.is_ok_and(|state| state.cursor > Seq(0)) {
            self.backup = Some(copy);
        }
    }

    /// Goes back to that copy, if there is one.
    pub(crate) fn restore(&mut self) -> bool {
        let copy = self.backup.clone();
        copy.map(|copy| self.disk = copy).is_some()
    }
}

/// What a session said, without what is borrowed.
#[derive(Clone, Copy, Debug)]
enum Word {
    Welcome,
    Synced,
    Message {
        shown: Shown,
        body: u64,
        ephemeral: bool,
    },
    Known(UserId, MsgId, Seq),
    Sent(MsgId, ConvSeq, bool),
    Refused(MsgId, ErrorCode, bool),
    Receipt {
        peer: UserId,
        read: bool,
        own: bool,
        up_to: ConvSeq,
    },
    Draining(u32),
    Closed(CloseCode, Option<u32>),
    Broken(&'static str),
}

/// What a body says, in one number.
pub(crate) fn digest(body: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(body);
    hasher.write_usize(body.len());
    hasher.finish()
}

fn hear(words: &mut Vec<Word>, told: Told<'_>) {
    words.push(match told {
        Told::Welcome { .. } => Word::Welcome,
        Told::Synced { .. } => Word::Synced,
        Told::Message {
            seq,
            conv_seq,
            peer,
            from,
            from_device,
            msg_id,
            ephemeral,
            raw,
            ..
        } => Word::Message {
            shown: Shown {
                key: (from, from_device, msg_id),
                peer,
                conv_seq,
                seq,
            },
            body: digest(raw),
            ephemeral,
        },
        Told::Duplicate { seq, from, msg_id } => Word::Known(from, msg_id, seq),
        Told::Sent {
            msg_id,
            conv_seq,
            duplicate,
        } => Word::Sent(msg_id, conv_seq, duplicate),
        Told::Refused {
            msg_id,
            code,
            will_retry,
            ..
        } => Word::Refused(msg_id, code, will_retry),
        Told::Receipt {
            peer, read, up_to, ..
        } => Word::Receipt {
            peer,
            read,
            own: false,
            up_to,
        },
        Told::ReadElsewhere { peer, up_to } => Word::Receipt {
            peer,
            read: true,
            own: true,
            up_to,
        },
        Told::Draining { leave_after_ms } => Word::Draining(leave_after_ms),
        Told::Closed {
            code,
            reconnect_after_ms,
            ..
        } => Word::Closed(code, reconnect_after_ms),
        Told::Gap { .. } => Word::Broken("a gap, where nothing was old enough to be dropped"),
        Told::Undecodable { .. } => Word::Broken("a message whose body is no Envelope"),
        Told::TokenExpiring { .. } | Told::Renewed { .. } | Told::RenewalRefused { .. } => {
            Word::Broken("a token that runs out, where none does")
        }
        Told::GroupChanged { .. }
        | Told::GroupReceipt { .. }
        | Told::GroupReadElsewhere { .. }
        | Told::Withdrawn { .. }
        | Told::Signal { .. }
        | Told::Presence { .. }
        | Told::Answer { .. } => Word::Broken("something that no device here has asked for"),
        Told::ProtocolFault(_) => Word::Broken("a fault of the protocol"),
    });
}
