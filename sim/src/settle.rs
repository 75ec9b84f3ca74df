//! The end of a run: the faults stop, and everything must come to rest. This is promise 7, and the
//! place for those that can be judged only then.

use crate::{
    Options,
    checker::Failure,
    device::Device,
    event::Event,
    plan::StoreMood,
    world::{Outcome, World},
};
use portico_client::Phase;
use portico_core::{Counter, testing::KNOWLEDGE};
use portico_wire::ids::UserId;
use std::hash::Hasher;

/// Everything must be said and heard within this, in virtual time. The longest chain: a vanished
/// network is noticed by a PING after 300 s and its silence of 10 s, the next attempt waits 75 s, and a
/// message that was refused rests 60 s.
const CONVERGE_US: u64 = 500_000_000;
/// Marks and positions are written behind, four flushes of 250 ms, and once more if that was refused;
/// not before the last answer of a store that took its time, up to 15 s.
const WRITTEN_US: u64 = 20_000_000;
/// A gateway notices a vanished client by its silence: twice the longest heartbeat and 15 s.
const FORGOTTEN_US: u64 = 620_000_000;
/// Between two looks.
const LOOK_US: u64 = 500_000;
/// A run that takes more steps than this to come to rest goes round in circles.
const STEPS_MAX: u64 = 300_000;

/// Ephemeral messages of the last check.
const WHISPERS: usize = 8;

impl World {
    pub(crate) fn live(mut self, seed: u64, options: &Options) -> Outcome {
        let failure = self.live_on(options);
        Outcome {
            seed,
            hash: self.hash.finish(),
            steps: self.steps,
            time_us: self.now_us,
            messages: self.checker.letters(),
            failure,
        }
    }

    pub(crate) fn live_on(&mut self, options: &Options) -> Option<Failure> {
        while self.steps < options.steps && self.step() {}
        if self.checker.failure().is_none() {
            self.settle();
        }
        self.checker.failure().cloned()
    }

    fn settle(&mut self) {
        self.note(|| "the faults stop".to_owned());
        self.calm = true;
        self.die_after = None;
        self.auth_down_until_us = 0;
        self.failing_moves = 0;
        self.plan.mood = StoreMood::default();
        self.plan.laggard = 0;
        (self.stage.stalled_until_us, self.stage.foul_until_us) = (0, 0);
        for at in 0..self.devices.len() {
            self.thaw(at);
            if self.devices[at].launched && self.devices[at].app.is_none() {
                self.launch(at);
            }
        }
        let end_us = self.now_us + CONVERGE_US;
        loop {
            if !self.pass(LOOK_US) {
                return;
            }
            let Some(why) = self.unsettled() else {
                break;
            };
            if self.now_us > end_us {
                let (what, about) = why;
                let what = format!("{} s after the last fault {what}", CONVERGE_US / 1_000_000);
                return self.checker.fail(7, what, &about);
            }
        }
        self.note(|| "everything is said".to_owned());
        if !self.pass(WRITTEN_US) {
            return;
        }
        self.checker.check_inboxes(&self.devices, &self.stage);
        self.checker.check_order(&self.devices, self.plan.reorder);
        self.checker.check_marks(&self.devices, &self.stage);
        if self.checker.failure().is_none() {
            self.whisper();
        }
        if self.checker.failure().is_none() {
            self.leave();
        }
    }

    /// Lets so much time pass. False if something is wrong.
    fn pass(&mut self, time_us: u64) -> bool {
        let end_us = self.now_us + time_us;
        let first = self.steps;
        self.after(time_us, Event::Look);
        while self.now_us < end_us {
            if !self.step() {
                return self.checker.failure().is_none();
            }
            if self.steps - first > STEPS_MAX {
                let what = format!("{STEPS_MAX} steps within {time_us} us");
                self.checker.fail::<&str>(7, what, &[]);
                return false;
            }
        }
        true
    }

    /// Why it is not over yet, if so.
    fn unsettled(&self) -> Option<(String, Vec<String>)> {
        let Some(gateway) = &self.gateway else {
            return Some(("there is no gateway".to_owned(), Vec::new()));
        };
        if gateway.is_draining || self.stage.poisoned {
            return Some(("the gateway is not replaced".to_owned(), Vec::new()));
        }
        for device in &self.devices {
            if !device.launched || device.buried {
                continue;
            }
            let name = device.name();
            let what = match device.phase() {
                Phase::Live if !self.is_connected(device) => {
                    format!("{name} has not noticed that its connection is gone")
                }
                Phase::Live if device.unsent() > 0 => {
                    format!("{name} has {} messages without SENT", device.unsent())
                }
                Phase::Live if device.unsaved() > 0 => {
                    format!("{name} has not saved all it was shown")
                }
                Phase::Live => continue,
                phase => format!("{name} is {phase:?}"),
            };
            return Some((what, vec![name]));
        }
        let (number, at) = self.checker.missing(&self.devices)?;
        let name = self.devices[at].name();
        let what = format!("m{number} got SENT and is not with {name}");
        Some((what, vec![format!("m{number}"), name]))
    }

    fn is_connected(&self, device: &Device) -> bool {
        let line = device.line.map(|line| &self.lines[line]);
        line.is_some_and(|line| line.seat.is_some() && !line.up.is_cut() && !line.down.is_cut())
    }

    fn count(&self, counter: Counter) -> u64 {
        let shards = self.gateway.iter().flat_map(|gateway| gateway.shards());
        shards.map(|shard| shard.counters().get(counter)).sum()
    }

    /// Of ephemeral messages, also to somebody who does not read, each copy is delivered or counted as
    /// dropped: promise 6.
    fn whisper(&mut self) {
        let alive = |at: &usize| self.devices[*at].phase() == Phase::Live;
        let alive: Vec<usize> = (0..self.devices.len()).filter(alive).collect();
        let Some(&deaf) = alive.first() else {
            return;
        };
        let to = self.devices[deaf].user;
        let before = (
            self.count(Counter::EphemeralDelivered),
            self.count(Counter::EphemeralDropped),
            self.checker.whispers(),
        );
        self.checker.whispers_confirmed.clear();
        self.devices[deaf].deaf = true;
        let bytes = self.plan.limits.outbox_bytes_soft / 3;
        for &at in &alive {
            for _ in 0..WHISPERS.div_ceil(alive.len()) {
                self.say(at, to, bytes, true);
            }
            self.say(at, to, 1, true);
        }
        if !self.pass(3_000_000) {
            return;
        }
        self.thaw(deaf);
        if !self.pass(10_000_000) {
            return;
        }
        // Connections of devices that are gone count too, until the gateway has noticed.
        let shards = self.gateway.iter().flat_map(|gateway| gateway.shards());
        let here: Vec<_> = shards.flat_map(|shard| shard.devices_here(to)).collect();
        let is_alive = |at: &&usize| self.devices[**at].user == to;
        let ghosts = here.len() - alive.iter().filter(is_alive).count();
        let readers = |number: &usize| {
            let from = &self.devices[self.checker.from(*number)];
            let own = from.user == to && here.contains(&from.device);
            (here.len() - usize::from(own)) as u64
        };
        let confirmed = self.checker.whispers_confirmed.iter();
        let due: u64 = confirmed.map(readers).sum();
        let delivered = self.count(Counter::EphemeralDelivered) - before.0;
        let dropped = self.count(Counter::EphemeralDropped) - before.1;
        let heard = (self.checker.whispers() - before.2) as u64;
        // What is taken back from a reader that takes nothing was counted as delivered before.
        let accounted = if ghosts > 0 {
            heard + dropped <= due
        } else {
            heard + dropped == due
        };
        if !accounted || delivered + dropped < due || heard > delivered {
            let what = format!(
                "of {due} ephemeral frames to user {to} {delivered} are counted as delivered and \
                 {dropped} as dropped; {heard} were heard"
            );
            self.checker.fail(6, what, &[UserId::to_string(&to)]);
        }
    }

    /// Everybody goes: nothing may be left in any shard.
    fn leave(&mut self) {
        for at in 0..self.devices.len() {
            self.say_goodbye(at);
        }
        if !self.pass(FORGOTTEN_US) {
            return;
        }
        let left: Vec<_> = self
            .gateway
            .iter()
            .flat_map(|gateway| {
                gateway.shards().flat_map(|shard| {
                    let gauges = shard.gauges().entries();
                    let gauges = gauges.into_iter().map(|(name, _, value)| (name, value));
                    gauges.chain(shard.residue()).collect::<Vec<_>>()
                })
            })
            .filter(|(name, value)| *value > 0 && !KNOWLEDGE.contains(name))
            .collect();
        if !left.is_empty() {
            let what = format!("everybody has gone, and the shards still hold {left:?}");
            self.checker.fail::<&str>(7, what, &[]);
        }
    }
}
