//! From the network to the session, and what follows from its words.

use super::{App, RELAUNCH_US, Shown, Word, hear};
use crate::{device::Key, event::Event, network::Piece, world::World};
use portico_client::{Login, Now, Session, SessionState};
use portico_wire::{CloseCode, ErrorCode, ids::MsgId};

impl World {
    pub(super) fn client_now(&self, device: usize) -> Now {
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
}
