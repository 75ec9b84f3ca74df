//! What users do with their apps, what goes to the disk, and what goes out.

use super::digest;
use crate::{event::Event, world::World};
use portico_client::{SendOptions, plain_envelope};
use portico_wire::{
    Flags, Op,
    ids::{Seq, UserId},
    message::Hello,
    next_frame,
};

impl World {
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

    pub(super) fn save_soon(&mut self, at: usize) {
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

    pub(super) fn set_timer(&mut self, at: usize) {
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
