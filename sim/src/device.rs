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

use crate::{event::Event, network::Piece, world::World};
use portico_client::{
    Event as Told, Login, Now, Phase, SendOptions, Session, SessionState, Settings, plain_envelope,
};
use portico_wire::{
    CloseCode, ErrorCode, Flags, Op,
    ids::{ConvSeq, DeviceId, MsgId, Seq, UserId},
    message::Hello,
    next_frame,
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
        Told::ProtocolFault(_) => Word::Broken("a fault of the protocol"),
    });
}

impl World {
    fn client_now(&self, device: usize) -> Now {
        let skew_us = self.devices[device].skew_us;
        Now {
            mono_us: self.now_us,
            wall_us: self.true_wall_us().saturating_add_signed(skew_us),
        }
    }

    /// The app starts from its disk.
    pub(crate) fn launch(&mut self, at: usize) {
        let seed = self.random.next();
        let device = &mut self.devices[at];
        if device.app.is_some() || device.buried {
            return;
        }
        let state = if device.disk.state.is_empty() {
            SessionState::default()
        } else {
            match SessionState::decode(&device.disk.state) {
                Ok(state) => state,
                Err(error) => {
                    let what = format!("a saved state cannot be read again: {error}");
                    return self.checker.fail(4, what, &[device.name()]);
                }
            }
        };
        let login = Login::new(device.user, device.device, device.token());
        let session = Session::sharing(&device.settings, login, state, seed);
        device.app = Some(App {
            session,
            save_due: false,
        });
        device.run += 1;
        device.launched = true;
        device.frozen = false;
        device.deaf = false;
        self.note(|| format!("{}: the app starts", self.devices[at].name()));
        let pause_us = self.random.stretch(500_000);
        self.connect_in(at, pause_us);
    }

    /// The app is gone without a word; what it had not saved is lost.
    pub(crate) fn crash(&mut self, at: usize) {
        let device = &mut self.devices[at];
        if device.app.take().is_none() {
            return;
        }
        device.attempt += 1;
        device.timer_us = u64::MAX;
        device.disk.fall_back();
        self.note(|| format!("{}: the app crashes", self.devices[at].name()));
        if let Some(line) = self.devices[at].line.take() {
            if self.random.one_in(2) {
                self.hang_up(line);
            } else {
                // The whole device is gone, and nobody tells.
                self.swallow(line);
            }
        }
    }

    pub(crate) fn connect_in(&mut self, at: usize, pause_us: u64) {
        self.devices[at].attempt += 1;
        let attempt = self.devices[at].attempt;
        self.after(
            pause_us,
            Event::Connect {
                device: at,
                attempt,
            },
        );
    }

    pub(crate) fn connect(&mut self, at: usize, attempt: u32) {
        let now = self.client_now(at);
        let device = &mut self.devices[at];
        if device.attempt != attempt || device.app.is_none() {
            return;
        }
        if device.frozen {
            return self.after(
                100_000,
                Event::Connect {
                    device: at,
                    attempt,
                },
            );
        }
        if let Some(old) = self.devices[at].line.take() {
            self.hang_up(old);
        }
        if self.gateway.is_none() {
            let mut words = Vec::new();
            if let Some(app) = &mut self.devices[at].app {
                app.session
                    .connect_failed(now, &mut |told| hear(&mut words, told));
            }
            return self.heed(at, words);
        }
        let line = self.new_line(at);
        let device = &mut self.devices[at];
        device.line = Some(line);
        if !device.settings.auto_ack && !device.has_log {
            // What was shown and not stored will be shown again.
            let covered = device.disk.covered;
            for shown in device.disk.known.drain(covered..) {
                device.disk.at.remove(&shown.key);
            }
        }
        let token = device.token();
        if let Some(app) = &mut device.app {
            if app.session.needs_token() {
                app.session.set_token(token);
            }
            app.session.connected(now);
        }
        self.flush(at);
    }

    /// Something has arrived from the gateway.
    pub(crate) fn receive(&mut self, line: usize) {
        let at = self.lines[line].device;
        loop {
            let device = &self.devices[at];
            let is_mine = device.line == Some(line);
            if is_mine && (device.frozen || device.deaf) {
                return;
            }
            let now = self.client_now(at);
            let Some(piece) = self.lines[line].down.take(self.now_us) else {
                break;
            };
            if !is_mine {
                // The socket is closed; nobody reads this.
                continue;
            }
            let mut words = Vec::new();
            let Some(app) = &mut self.devices[at].app else {
                continue;
            };
            match piece {
                Piece::Bytes(bytes) => {
                    self.hash.bytes(&bytes);
                    app.session
                        .received(now, &bytes, &mut |told| hear(&mut words, told));
                }
                Piece::End => {
                    self.devices[at].line = None;
                    if let Some(app) = &mut self.devices[at].app {
                        app.session
                            .disconnected(now, &mut |told| hear(&mut words, told));
                    }
                    self.hang_up(line);
                }
            }
            self.heed(at, words);
        }
        self.room(line);
    }

    pub(crate) fn time_out(&mut self, at: usize) {
        let now = self.client_now(at);
        let device = &mut self.devices[at];
        if device.timer_us != self.now_us {
            return;
        }
        device.timer_us = u64::MAX;
        if device.frozen {
            return;
        }
        let mut words = Vec::new();
        if let Some(app) = &mut device.app {
            if device.deaf {
                app.session.not_reading();
            }
            app.session
                .on_timeout(now, &mut |told| hear(&mut words, told));
        }
        self.heed(at, words);
    }

    pub(crate) fn thaw(&mut self, at: usize) {
        let device = &mut self.devices[at];
        device.frozen = false;
        device.deaf = false;
        if let Some(line) = device.line {
            self.after(0, Event::Down { line });
        }
        self.set_timer(at);
    }

    /// Does what follows from the session's words, then lets out what it has to say.
    fn heed(&mut self, at: usize, words: Vec<Word>) {
        // What it shows is safe before anything that follows from it goes out.
        let is_message = |word: &Word| matches!(word, Word::Message { .. });
        let (messages, others): (Vec<_>, Vec<_>) = words.into_iter().partition(is_message);
        for word in messages.into_iter().chain(others) {
            self.heed_word(at, word);
        }
        let device = &mut self.devices[at];
        if device.has_log
            && !device.settings.auto_ack
            && let Some(last) = device.disk.known.last()
        {
            let (seq, now) = (last.seq, self.client_now(at));
            if let Some(app) = &mut self.devices[at].app {
                app.session.acknowledge(now, seq);
            }
        }
        self.flush(at);
    }

    fn heed_word(&mut self, at: usize, word: Word) {
        match word {
            Word::Welcome => {}
            Word::Synced => {
                self.devices[at].registered = true;
                self.note(|| format!("{}: SYNCED", self.devices[at].name()));
                self.save_soon(at);
            }
            Word::Message {
                shown,
                body,
                ephemeral,
            } => self.show(at, shown, body, ephemeral),
            Word::Known(from, msg_id, seq) => {
                self.note(|| {
                    let letter = self.checker.name_of(from, msg_id);
                    format!("{}: {letter} again, at {seq}", self.devices[at].name())
                });
                let device = &self.devices[at];
                let has = |key: &Key| (key.0, key.2) == (from, msg_id);
                if !(device.disk.known.iter().any(|shown| has(&shown.key))
                    || device.disk.log.iter().any(has))
                {
                    let letter = self.checker.name_of(from, msg_id);
                    let name = device.name();
                    let what = format!("{name} dropped {letter} as known, and never had it");
                    self.checker.fail(1, what, &[name, letter]);
                }
            }
            Word::Sent(msg_id, conv_seq, duplicate) => {
                self.checker.sent(&self.devices[at], msg_id, conv_seq);
                self.note(|| {
                    let letter = self.checker.name_of(self.devices[at].user, msg_id);
                    let again = if duplicate { " (duplicate)" } else { "" };
                    let name = self.devices[at].name();
                    format!("{name}: SENT {letter} at {conv_seq}{again}")
                });
                self.save_soon(at);
            }
            Word::Refused(msg_id, code, will_retry) => {
                self.note(|| {
                    let letter = self.checker.name_of(self.devices[at].user, msg_id);
                    format!("{}: {letter} is refused: {code}", self.devices[at].name())
                });
                if !will_retry {
                    self.refused(at, msg_id, code);
                }
            }
            Word::Receipt {
                peer,
                read,
                own,
                up_to,
            } => {
                let device = &self.devices[at];
                self.checker.receipt(device, peer, read, own, up_to);
            }
            Word::Draining(leave_after_ms) => {
                self.connect_in(at, u64::from(leave_after_ms) * 1_000);
            }
            Word::Closed(code, reconnect_after_ms) => self.closed(at, code, reconnect_after_ms),
            Word::Broken(what) => {
                let name = self.devices[at].name();
                let what = format!("{name} heard {what}");
                self.checker.fail(2, what, &[name]);
            }
        }
    }

    fn show(&mut self, at: usize, shown: Shown, body: u64, ephemeral: bool) {
        self.note(|| {
            let letter = self.checker.name_of(shown.key.0, shown.key.2);
            let (name, seq) = (self.devices[at].name(), shown.seq);
            format!("{name}: shows {letter}, {seq} in its inbox")
        });
        self.checker
            .shown(at, &self.devices[at], &shown, body, ephemeral);
        if ephemeral {
            return;
        }
        let device = &mut self.devices[at];
        let disk = &mut device.disk;
        let remembered = device.settings.dedupe_max;
        if let Some(known) = disk.at.get(&shown.key).copied() {
            if known + remembered > disk.known.len() {
                let letter = self.checker.name_of(shown.key.0, shown.key.2);
                let name = device.name();
                let what = format!("{name} shows {letter} twice");
                self.checker.fail(3, what, &[name, letter]);
            }
            return;
        }
        disk.at.insert(shown.key, disk.known.len());
        disk.known.push(shown);
        if device.has_log {
            disk.log.insert(shown.key);
        }
        self.save_soon(at);
    }

    fn refused(&mut self, at: usize, msg_id: MsgId, code: ErrorCode) {
        let again = self.checker.refused(&self.devices[at], msg_id);
        // The session has set its clock by the server's: a new id will do.
        if code == ErrorCode::CLOCK_AHEAD
            && let Some((to, bytes)) = again
        {
            self.say(at, to, bytes, false);
        }
    }

    fn closed(&mut self, at: usize, code: CloseCode, reconnect_after_ms: Option<u32>) {
        self.note(|| format!("{}: closed with {code}", self.devices[at].name()));
        self.flush(at);
        if let Some(line) = self.devices[at].line.take() {
            self.hang_up(line);
        }
        match reconnect_after_ms {
            Some(ms) => self.connect_in(at, u64::from(ms) * 1_000),
            None if code == CloseCode::SESSION_REPLACED => {
                // A connection that it had given up came in after its successor.
                self.crash(at);
                self.after(RELAUNCH_US, Event::Launch { device: at });
            }
            None => {
                let name = self.devices[at].name();
                let what = format!("{name} was stopped for good, with {code}");
                self.checker.fail(7, what, &[name]);
            }
        }
    }

    // ---- what users do

    /// Sends a message of about so many bytes.
    pub(crate) fn say(&mut self, at: usize, to: UserId, bytes: usize, ephemeral: bool) {
        let now = self.client_now(at);
        let number = self.checker.letters();
        let device = &self.devices[at];
        let text = format!("{} {} > {to} {}", number, device.name(), ".".repeat(bytes));
        let envelope = plain_envelope(&text);
        let options = SendOptions {
            ephemeral,
            ..SendOptions::default()
        };
        let Some(app) = &mut self.devices[at].app else {
            return;
        };
        let Ok(msg_id) = app.session.send(now, to, &envelope, options) else {
            return;
        };
        let body = digest(&envelope);
        let siblings = self.siblings(at);
        self.checker.said(
            at,
            &self.devices[at],
            to,
            msg_id,
            body,
            bytes,
            ephemeral,
            siblings,
        );
        self.note(|| {
            let name = self.devices[at].name();
            let kind = if ephemeral { "whispers" } else { "says" };
            format!("{name}: {kind} m{number} to user {to}, {bytes} bytes")
        });
        if self.devices[at].saves_first && !ephemeral {
            self.save(at);
        } else {
            self.save_soon(at);
        }
        self.flush(at);
    }

    /// The user's other devices that are known to the service.
    fn siblings(&self, at: usize) -> Vec<usize> {
        let own = &self.devices[at];
        let all = self.devices.iter().enumerate();
        all.filter(|(other, device)| *other != at && device.user == own.user && device.registered)
            .map(|(other, _)| other)
            .collect()
    }

    /// The user reads what came last from somebody.
    pub(crate) fn mark_read(&mut self, at: usize) {
        let now = self.client_now(at);
        let device = &mut self.devices[at];
        let own = device.user;
        let mut newest = device.disk.known.iter().rev();
        let Some(shown) = newest.find(|shown| shown.key.0 != own).copied() else {
            return;
        };
        let Some(app) = &mut device.app else {
            return;
        };
        app.session.read(now, shown.peer, shown.conv_seq);
        device.disk.reads.push((shown.peer, shown.conv_seq));
        self.save_soon(at);
        self.flush(at);
    }

    pub(crate) fn ask_receipts(&mut self, at: usize, peer: UserId) {
        let now = self.client_now(at);
        if let Some(app) = &mut self.devices[at].app {
            app.session.receipts(now, &[peer]);
        }
        self.flush(at);
    }

    /// Ends the session in good order.
    pub(crate) fn say_goodbye(&mut self, at: usize) {
        let now = self.client_now(at);
        if let Some(app) = &mut self.devices[at].app {
            app.session.close(now);
        }
        self.flush(at);
        if let Some(line) = self.devices[at].line.take() {
            self.hang_up(line);
        }
        self.devices[at].app = None;
        self.devices[at].attempt += 1;
    }

    // ---- the disk

    fn save_soon(&mut self, at: usize) {
        let most_us = self.devices[at].save_us;
        let pause_us = self.random.stretch(most_us);
        let device = &mut self.devices[at];
        let run = device.run;
        if let Some(app) = &mut device.app
            && !std::mem::replace(&mut app.save_due, true)
        {
            self.after(pause_us, Event::Save { device: at, run });
        }
    }

    pub(crate) fn save_due(&mut self, at: usize, run: u32) {
        if self.devices[at].run == run && !self.devices[at].frozen {
            self.save(at);
            self.flush(at);
        } else if self.devices[at].run == run {
            self.after(100_000, Event::Save { device: at, run });
        }
    }

    /// Everything goes to the disk, in one piece; from then on it is acknowledged.
    fn save(&mut self, at: usize) {
        let now = self.client_now(at);
        let device = &mut self.devices[at];
        let Some(app) = &mut device.app else {
            return;
        };
        app.save_due = false;
        if let Some(last) = device.disk.known.last()
            && !device.settings.auto_ack
        {
            app.session.acknowledge(now, last.seq);
        }
        device.disk.state = app.session.state().encode();
        device.disk.covered = device.disk.known.len();
        device.disk.reads_covered = device.disk.reads.len();
    }

    // ---- what goes out

    /// Hands the session's output to the network, and has its timer set.
    pub(crate) fn flush(&mut self, at: usize) {
        let line = self.devices[at].line;
        if let Some(app) = &mut self.devices[at].app {
            let output = std::mem::take(app.session.output());
            if let Some(line) = line
                && !output.is_empty()
            {
                self.checker.written(at, &self.devices[at], &output);
                self.note_written(at, &output);
                self.write_up(line, output);
            }
        }
        self.set_timer(at);
    }

    fn note_written(&self, at: usize, output: &[u8]) {
        let mut rest = output;
        while self.story.is_told()
            && let Ok(Some(frame)) = next_frame(rest, usize::MAX)
        {
            rest = &rest[frame.bytes().len()..];
            let (name, user) = (self.devices[at].name(), self.devices[at].user);
            let Some(op) = frame.known_op() else {
                continue;
            };
            self.note(|| match (op, frame.route()) {
                (Op::Send, Some(route)) => {
                    let letter = self.checker.name_of(user, route.msg_id);
                    let retry = frame.flags().contains(Flags::RETRY);
                    let again = if retry { " with RETRY" } else { "" };
                    format!("{name}: sends {letter}{again}")
                }
                (Op::Hello, _) => {
                    let last_seq = Hello::decode(frame.body()).map_or(Seq(0), |it| it.last_seq);
                    format!("{name}: says HELLO from {last_seq}")
                }
                (Op::Ack, _) => format!("{name}: acknowledges {}", frame.seq_header().seq),
                _ => format!("{name}: sends {}", op.name()),
            });
        }
    }

    fn set_timer(&mut self, at: usize) {
        let device = &mut self.devices[at];
        let next = device
            .app
            .as_ref()
            .and_then(|app| app.session.next_timeout());
        if let Some(at_us) = next
            && !device.frozen
        {
            let at_us = at_us.max(self.now_us + 1);
            if at_us != device.timer_us {
                device.timer_us = at_us;
                self.agenda.add(at_us, Event::Timer { device: at });
            }
        }
    }
}
