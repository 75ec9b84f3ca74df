//! What people do, and what breaks: one act after the other, drawn from the plan.

use crate::{canary::Canary, event::Event, plan::Act, world::World};
use portico_wire::{Op, frame::Flags, ids::UserId, next_frame};

/// The longest outages.
const STALL_MAX_US: u64 = 15_000_000;
const OUTAGE_MAX_US: u64 = 20_000_000;
const FREEZE_MAX_US: u64 = 60_000_000;
const UNNOTICED_MAX_US: u64 = 60_000_000;

impl World {
    /// The next act, until the faults stop.
    pub(crate) fn act(&mut self) {
        if self.calm {
            return;
        }
        let act = self.plan.act(&mut self.random);
        self.note(|| format!("act: {act:?}"));
        self.perform_act(act);
        let pause_us = self.random.below(2 * self.plan.pace_us);
        self.after(pause_us, Event::Act);
    }

    fn perform_act(&mut self, act: Act) {
        let at = self.random.index(self.devices.len());
        match act {
            Act::Say => self.chat(at, false),
            Act::SayMuch => {
                for _ in 0..self.random.between(2, 12) {
                    self.chat(at, false);
                }
            }
            Act::SayEphemeral => self.chat(at, true),
            Act::MarkRead => self.mark_read(at),
            Act::AskReceipts => {
                let peer = self.somebody();
                self.ask_receipts(at, peer);
            }
            Act::Cut => self.cut(at),
            Act::Vanish => {
                if let Some(line) = self.devices[at].line {
                    self.swallow(line);
                }
            }
            Act::Roam => {
                if let Some(line) = self.devices[at].line
                    && self.random.one_in(2)
                {
                    self.swallow(line);
                }
                self.connect_in(at, 0);
            }
            Act::Crash => self.crash_and_come_back(at),
            Act::Restore => {
                if self.random.one_in(2) {
                    self.devices[at].back_up();
                } else if self.devices[at].app.is_some() {
                    self.crash(at);
                    if self.devices[at].restore() {
                        self.note(|| format!("{}: comes from its backup", self.devices[at].name()));
                    }
                    self.launch_in(at);
                }
            }
            Act::Bury => {
                // Not the last one of a user: somebody must see what was sent.
                if self.devices[at].launched && self.devices[at].device.0 > 1 {
                    self.crash(at);
                    self.devices[at].buried = true;
                }
            }
            Act::Freeze | Act::Deafen => {
                if act == Act::Freeze {
                    self.devices[at].frozen = true;
                } else {
                    self.devices[at].deaf = true;
                }
                let pause_us = self.random.stretch(FREEZE_MAX_US);
                self.after(pause_us, Event::Thaw { device: at });
            }
            Act::Appear => {
                let absent = |at: &usize| !self.devices[*at].launched;
                if let Some(at) = (0..self.devices.len()).find(absent) {
                    self.launch(at);
                }
            }
            Act::Kill => self.kill(),
            Act::KillSoon => self.die_after = Some(self.random.below(40) as u32),
            Act::Drain => {
                let (spread_ms, deadline_ms) = (self.random.below(3_000), self.random.below(6_000));
                self.drain(spread_ms as u32, deadline_ms as u32);
            }
            Act::StepClock => {
                let step_us = self
                    .random
                    .pick(&[1_000, 5_000_000, 90_000_000, 3_600_000_000]);
                let step_us = self.random.stretch(step_us) as i64;
                self.clock_us += if self.random.one_in(2) {
                    step_us
                } else {
                    -step_us
                };
                self.note(|| format!("gateway: its clock is wrong by {} us", self.clock_us));
            }
            Act::StallStore => {
                let stall_us = self.random.stretch(STALL_MAX_US);
                self.stage.stalled_until_us = self.now_us + stall_us;
            }
            Act::FailStore => {
                let time_us = self.random.stretch(OUTAGE_MAX_US);
                self.stage.foul_until_us = self.now_us + time_us;
            }
            Act::PoisonStore => self.poison(),
            Act::AuthOutage => {
                let time_us = self.random.stretch(OUTAGE_MAX_US);
                self.auth_down_until_us = self.now_us + time_us;
            }
            Act::ForgetResume => self.resume_key += 1,
            Act::FailMoves => self.failing_moves = self.random.between(1, 3) as u32,
            Act::CutAll => (0..self.devices.len()).for_each(|at| self.cut(at)),
            Act::AllToOne => {
                let one = self.somebody();
                for at in 0..self.devices.len() {
                    let bytes = self.length();
                    self.say(at, one, bytes, false);
                }
            }
        }
    }

    fn somebody(&mut self) -> UserId {
        UserId(self.random.between(1, self.plan.users))
    }

    fn length(&mut self) -> usize {
        let most = if self.plan.limits.outbox_bytes_max < 60_000 {
            1_500
        } else {
            40_000
        };
        if self.random.one_in(10) {
            self.random.stretch(most) as usize
        } else {
            self.random.index(40)
        }
    }

    fn chat(&mut self, at: usize, ephemeral: bool) {
        let (to, bytes) = (self.somebody(), self.length());
        if !self.devices[at].frozen {
            self.say(at, to, bytes, ephemeral);
        }
    }

    /// The connection breaks at any byte, and each end learns of it in its time, or not.
    fn cut(&mut self, at: usize) {
        let Some(line) = self.devices[at].line else {
            return;
        };
        self.swallow(line);
        let pause_us = self.random.stretch(1_000_000);
        self.end_down(line, pause_us);
        if !self.random.one_in(4) {
            let pause_us = self.random.stretch(UNNOTICED_MAX_US);
            self.end_up(line, pause_us);
        }
    }

    fn crash_and_come_back(&mut self, at: usize) {
        if self.devices[at].app.is_some() {
            self.crash(at);
            self.launch_in(at);
        }
    }

    fn launch_in(&mut self, at: usize) {
        let pause_us = self.random.stretch(5_000_000);
        self.after(pause_us, Event::Launch { device: at });
    }

    /// What a canary does to bytes on their way to a client: whole frames.
    pub(crate) fn spoil(&mut self, line: usize, bytes: Vec<u8>) -> Vec<u8> {
        let drops_one = self.canary == Some(Canary::DropAtTakeover) && self.lines[line].takes_over;
        let drops_whispers = self.canary == Some(Canary::SilentDrop);
        if !(drops_one || drops_whispers) {
            return bytes;
        }
        let mut kept = Vec::new();
        let mut rest = bytes.as_slice();
        while let Ok(Some(frame)) = next_frame(rest, usize::MAX) {
            rest = &rest[frame.bytes().len()..];
            let is_delivery = frame.known_op() == Some(Op::Deliver);
            let is_whisper = is_delivery && frame.flags().contains(Flags::EPHEMERAL);
            if is_whisper && drops_whispers && self.random.one_in(4) {
                continue;
            }
            if is_delivery && !is_whisper && drops_one && self.lines[line].takes_over {
                self.lines[line].takes_over = false;
                continue;
            }
            kept.extend_from_slice(frame.bytes());
        }
        kept
    }
}
