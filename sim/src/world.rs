//! All of a run: what there is, the clock, and the one loop.

use crate::{
    Options,
    agenda::Agenda,
    canary::Canary,
    checker::{Checker, Failure},
    device::Device,
    event::Event,
    gateway::Gateway,
    network::{Line, Stream},
    plan::Plan,
    random::Random,
    store::Stage,
    story::Story,
};
use portico_core::Effects;
use portico_wire::ids::{DeviceId, UserId};
use std::hash::{Hash, Hasher};

/// Where the wall clock starts: some day in 2026.
const START_US: u64 = 1_790_000_000_000_000;
/// Shards are looked through after so many steps.
const LOOK_THROUGH_EVERY: u64 = 64;

/// All that happened, in one number.
#[derive(Debug, Default)]
pub(crate) struct Trace(u64);

impl Trace {
    fn event(&mut self, at_us: u64, event: Event) {
        self.write_u64(at_us);
        event.hash(self);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.write(bytes);
    }
}

impl Hasher for Trace {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        for byte in rest {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 29);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) random: Random,
    pub(crate) canary: Option<Canary>,
    /// Microseconds of the clock that never steps.
    pub(crate) now_us: u64,
    /// What the gateway's wall clock is wrong by.
    pub(crate) clock_us: i64,
    pub(crate) agenda: Agenda<Event>,
    pub(crate) gateway: Option<Gateway>,
    /// How many there have been.
    pub(crate) life: u32,
    pub(crate) stage: Stage,
    pub(crate) lines: Vec<Line>,
    pub(crate) devices: Vec<Device>,
    pub(crate) checker: Checker,
    pub(crate) story: Story,
    pub(crate) hash: Trace,
    pub(crate) fx: Effects,
    pub(crate) steps: u64,
    /// No more faults.
    pub(crate) calm: bool,
    /// The gateway dies after so many more effects.
    pub(crate) die_after: Option<u32>,
    pub(crate) auth_down_until_us: u64,
    pub(crate) failing_moves: u32,
    /// Resume tokens made under another one are refused.
    pub(crate) resume_key: u32,
    arrivals: Vec<u64>,
}

impl World {
    pub(crate) fn new(seed: u64, options: &Options, story: Story) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::draw(options.preset, &mut random);
        let mut world = Self {
            random,
            canary: options.canary,
            now_us: 1_000_000,
            clock_us: 0,
            agenda: Agenda::new(),
            gateway: None,
            life: 0,
            stage: Stage::new(),
            lines: Vec::new(),
            devices: Vec::new(),
            checker: Checker::new(),
            story,
            hash: Trace::default(),
            fx: Effects::default(),
            steps: 0,
            calm: false,
            die_after: None,
            auth_down_until_us: 0,
            failing_moves: 0,
            resume_key: 0,
            arrivals: Vec::new(),
            plan,
        };
        world.note(|| format!("a {} life: {:?}", world.plan.preset.name(), world.plan));
        world.boot(world.plan.shards);
        for user in 1..=world.plan.users {
            let devices = world.random.between(1, world.plan.devices_max) as u16;
            for device in 1..=devices {
                let device = Device::new(&mut world, UserId(user), DeviceId(device));
                let at = world.devices.len();
                world.devices.push(device);
                let first = world.devices[at].device == DeviceId(1);
                if first || !world.plan.latecomers {
                    world.launch(at);
                }
            }
        }
        world.after(0, Event::Act);
        world
    }

    // ---- time

    /// Microseconds since 1970.
    pub(crate) const fn true_wall_us(&self) -> u64 {
        START_US + self.now_us
    }

    /// The same by the gateway's clock.
    pub(crate) const fn wall_us(&self) -> u64 {
        self.true_wall_us().saturating_add_signed(self.clock_us)
    }

    pub(crate) fn after(&mut self, pause_us: u64, event: Event) {
        self.agenda.add(self.now_us + pause_us, event);
    }

    /// A line of the story, made only if somebody listens.
    pub(crate) fn note(&self, text: impl FnOnce() -> String) {
        if self.story.is_told() {
            self.story.tell(self.now_us, &text());
        }
    }

    /// The next event happens. False if there is none, or something is wrong.
    pub(crate) fn step(&mut self) -> bool {
        let Some((at_us, event)) = self.agenda.pop() else {
            return false;
        };
        self.now_us = at_us;
        self.steps += 1;
        self.hash.event(at_us, event);
        self.perform(event);
        if self.steps.is_multiple_of(LOOK_THROUGH_EVERY)
            && let Some(gateway) = &self.gateway
        {
            gateway.shards().for_each(|shard| shard.check_invariants());
        }
        self.checker.failure().is_none()
    }

    fn perform(&mut self, event: Event) {
        let is_of = |life: u32| life == self.life;
        match event {
            Event::Act => self.act(),
            Event::Connect { device, attempt } => self.connect(device, attempt),
            Event::Timer { device } => self.time_out(device),
            Event::Save { device, run } => self.save_due(device, run),
            Event::Launch { device } => self.launch(device),
            Event::Thaw { device } => self.thaw(device),
            Event::Accept { line } => self.accept(line),
            Event::Up { line } => self.arrive(line),
            Event::Down { line } => self.receive(line),
            Event::Boot { shards } => self.boot(shards),
            Event::Look => {}
            Event::Turn { life, shard } if is_of(life) => self.turn(shard),
            Event::Tick { life, shard } if is_of(life) => self.tick(shard),
            Event::Written {
                life,
                shard,
                conn,
                bytes,
            } if is_of(life) => self.written(shard, conn, bytes),
            Event::Leave { life, shard, conn } if is_of(life) => self.close_socket(shard, conn),
            Event::Judge { life, at } if is_of(life) => self.judge(at),
            Event::Mesh { life, from, to } if is_of(life) => self.letter(from, to),
            Event::Move { life } if is_of(life) => self.hand_over(),
            Event::Commit { life } if is_of(life) && self.gateway.is_some() => self.commit(),
            Event::Read { life, at } if is_of(life) && self.gateway.is_some() => self.read(at),
            Event::Answer { life, at } if is_of(life) && self.gateway.is_some() => self.answer(at),
            Event::Drained { life } if is_of(life) => self.look_drained(),
            Event::Replace { life } if is_of(life) => self.kill(),
            Event::Turn { .. }
            | Event::Tick { .. }
            | Event::Written { .. }
            | Event::Leave { .. }
            | Event::Judge { .. }
            | Event::Mesh { .. }
            | Event::Move { .. }
            | Event::Commit { .. }
            | Event::Read { .. }
            | Event::Answer { .. }
            | Event::Drained { .. }
            | Event::Replace { .. } => {}
        }
    }

    // ---- connections

    pub(crate) fn new_line(&mut self, device: usize) -> usize {
        let line = self.lines.len();
        let mut new = Line::new(device, self.life);
        let accept_us = self.now_us + self.plan.network_delay(&mut self.random);
        new.up.not_before(accept_us);
        let mut earlier = self.lines.iter();
        new.takes_over = earlier.any(|line| line.device == device && line.seat.is_some());
        self.lines.push(new);
        self.agenda.add(accept_us, Event::Accept { line });
        line
    }

    pub(crate) fn write_up(&mut self, line: usize, bytes: Vec<u8>) {
        let mut arrivals = std::mem::take(&mut self.arrivals);
        let stream = &mut self.lines[line].up;
        stream.write(
            self.now_us,
            bytes,
            &self.plan,
            &mut self.random,
            &mut arrivals,
        );
        for at_us in arrivals.drain(..) {
            self.agenda.add(at_us, Event::Up { line });
        }
        self.arrivals = arrivals;
    }

    pub(crate) fn write_down(&mut self, line: usize, bytes: Vec<u8>) {
        let mut arrivals = std::mem::take(&mut self.arrivals);
        let stream = &mut self.lines[line].down;
        stream.write(
            self.now_us,
            bytes,
            &self.plan,
            &mut self.random,
            &mut arrivals,
        );
        for at_us in arrivals.drain(..) {
            self.agenda.add(at_us, Event::Down { line });
        }
        self.arrivals = arrivals;
    }

    /// The client learns that the stream has ended.
    pub(crate) fn end_down(&mut self, line: usize, pause_us: u64) {
        if let Some(at_us) = self.lines[line].down.end(self.now_us + pause_us) {
            self.agenda.add(at_us, Event::Down { line });
        }
    }

    /// The gateway does.
    pub(crate) fn end_up(&mut self, line: usize, pause_us: u64) {
        if let Some(at_us) = self.lines[line].up.end(self.now_us + pause_us) {
            self.agenda.add(at_us, Event::Up { line });
        }
    }

    /// The client closes its end.
    pub(crate) fn hang_up(&mut self, line: usize) {
        if !self.lines[line].up.is_cut() {
            let pause_us = self.plan.network_delay(&mut self.random);
            self.end_up(line, pause_us);
        }
    }

    /// The network takes nothing more, in either direction, and says nothing.
    pub(crate) fn swallow(&mut self, line: usize) {
        let cut = |stream: &mut Stream, random: &mut Random| {
            let kept = random.index(stream.in_flight() + 1);
            stream.cut(kept);
        };
        cut(&mut self.lines[line].up, &mut self.random);
        cut(&mut self.lines[line].down, &mut self.random);
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    pub seed: u64,
    /// Of everything that happened: two runs of a seed have the same.
    pub hash: u64,
    pub steps: u64,
    /// Virtual microseconds.
    pub time_us: u64,
    /// Messages that were said.
    pub messages: usize,
    pub failure: Option<Failure>,
}
