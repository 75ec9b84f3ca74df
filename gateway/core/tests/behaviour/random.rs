//! Many small lives, each from a seed: clients that behave as the protocol asks, over networks,
//! stores and processes that do not. Whatever happens on the way, at the end
//! - every message that got SENT is with every device of both users, once for a client that drops
//!   what it has (O8, O9, O10, O14);
//! - nobody has somebody else's message, and nobody missed one below its cursor (O1);
//! - messages that were accepted at the first attempt stand in the order of sending (O13);
//! - what was promised about receipts is in the store;
//! - nothing is left in any shard.
//!
//! `PORTICO_SEEDS=from..to` runs other seeds; a failure names its own.

use crate::support::assert_idle;
use portico_core::{
    Counter, Limits,
    store::StoreError,
    testing::{CmdKind, Event, Got, Outgoing, World},
};
use portico_wire::{
    CloseCode, ErrorCode, Op,
    code::ErrorReaction,
    encode::Encoder,
    frame::{ConvKind, Flags},
    ids::{ConvId, ConvSeq, DeviceId, MsgId, Seq, UserId},
    limits::ENVELOPE_BYTES_MAX,
    message::history::{ConversationsGet, HistoryGet},
};
use std::collections::{BTreeMap, BTreeSet};

/// SplitMix64: small, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// A message in an outbox, or one that is through.
#[derive(Clone, Debug)]
struct Letter {
    outgoing: Outgoing,
    /// An attempt may have been accepted.
    unsure: bool,
    attempts: u32,
    /// It waits for an answer on the present connection.
    open: bool,
    sent: Option<ConvSeq>,
}

/// What a device has stored; a backup is a copy of it.
#[derive(Clone, Debug, Default)]
struct Stored {
    cursor: Seq,
    /// In the order of arrival, without what came again.
    messages: Vec<Got>,
    known: BTreeSet<(UserId, DeviceId, MsgId)>,
}

#[derive(Debug)]
struct Device {
    user: u64,
    device: u16,
    client: Option<usize>,
    welcome: bool,
    stored: Stored,
    backup: Stored,
    /// Its state has gone back once: the server's cursor may be ahead of it.
    restored: bool,
    letters: Vec<Letter>,
    /// READ requests: corr to (peer, up_to).
    reads: BTreeMap<u32, (u64, ConvSeq)>,
    read_done: BTreeMap<u64, ConvSeq>,
    /// Questions about what was said, by corr: with whom, or anybody.
    looks: BTreeMap<u32, Option<u64>>,
}

type Key = (UserId, DeviceId, MsgId);

fn key(got: &Got) -> Key {
    let route = got.route();
    (route.user, route.dev, route.msg_id)
}

impl Device {
    fn connect(&mut self, world: &mut World, random: &mut Random, receive_max: u32) {
        let shard = random.below(world.shards() as u64) as usize;
        // Now and then a device has lost its latest days; 0 lets the server say where it was.
        let restored = random.one_in(8) && self.backup.cursor > Seq(0);
        if restored {
            self.stored = self.backup.clone();
            self.restored = true;
        }
        let last_seq = if !self.restored && random.one_in(4) {
            Seq(0)
        } else {
            self.stored.cursor
        };
        let client = world.open(shard, self.user, self.device, |hello| {
            hello.last_seq = last_seq;
            hello.receive_max = receive_max;
        });
        if random.one_in(3) {
            world.set_chunk(client, 1 + random.below(40) as usize);
        }
        self.client = Some(client);
        self.welcome = false;
        self.reads.clear();
        self.looks.clear();
        for letter in &mut self.letters {
            // Its answer went with the old connection.
            letter.unsure |= letter.open;
            letter.open = false;
        }
    }

    /// Reads what came.
    fn listen(&mut self, world: &mut World) {
        let Some(client) = self.client else {
            return;
        };
        for got in world.take(client) {
            if self.looks.contains_key(&got.corr()) {
                self.on_look(&got);
                continue;
            }
            match got.op() {
                Op::Welcome => self.welcome = true,
                Op::Deliver => self.store(got),
                Op::Synced => {
                    self.stored.cursor = self.stored.cursor.max(Seq(got.seq_header().seq));
                }
                Op::Sent => self.on_sent(&got),
                Op::Error => self.on_error(&got),
                Op::Done => {
                    let (peer, up_to) = self.reads.remove(&got.corr()).expect("F4");
                    let done = self.read_done.entry(peer).or_default();
                    *done = up_to.max(*done);
                }
                Op::Close => {
                    let code = got.close().expect("a CLOSE").code;
                    let good = [
                        CloseCode::OVERLOADED,
                        CloseCode::SERVER_ERROR,
                        CloseCode::SLOW_CONSUMER,
                        CloseCode::HANDSHAKE_TIMEOUT,
                        CloseCode::IDLE_TIMEOUT,
                        // An abandoned connection may log in later than its successor.
                        CloseCode::SESSION_REPLACED,
                    ];
                    assert!(good.contains(&code), "{code:?}");
                }
                Op::Receipt => {
                    // Nobody reaches a point that nobody wrote.
                    assert!(got.route().conv_seq > ConvSeq(0));
                }
                other => panic!("{other:?} was not asked for"),
            }
        }
        if !world.is_connected(client) {
            self.client = None;
        }
    }

    fn store(&mut self, got: Got) {
        let route = got.route();
        let text = String::from_utf8(got.body().to_vec()).expect("it was text");
        let (from, rest) = text.split_once('>').expect("the form of a message");
        let (to, _) = rest.split_once(' ').expect("the form of a message");
        assert_eq!(from, format!("{}:{}", route.user, route.dev));
        let mine = to == self.user.to_string();
        let own = route.user == UserId(self.user);
        assert!(mine || own, "{self:?} got {text}");
        assert!(!own || route.dev != DeviceId(self.device), "O3: {text}");
        let other = if own {
            to.to_owned()
        } else {
            route.user.to_string()
        };
        assert_eq!(route.conv.to_string(), other);
        self.stored.cursor = self.stored.cursor.max(route.seq);
        if self.stored.known.insert(key(&got)) {
            self.stored.messages.push(got);
        }
    }

    /// Asks for what was said with `peer`, backwards or forwards, or for the conversations.
    fn look(&mut self, world: &mut World, peer: u64) {
        let Some(client) = self.client.filter(|_| self.welcome) else {
            return;
        };
        let (corr, mut bytes, mut encoder) = (world.corr(client), Vec::new(), Encoder::new());
        let about = if corr.is_multiple_of(3) {
            encoder.conversations_get(&mut bytes, corr, &ConversationsGet::default());
            None
        } else {
            let get = HistoryGet {
                conv_kind: ConvKind::DIRECT,
                conv: peer,
                forward: corr % 3 == 1,
                limit: 3,
                ..HistoryGet::default()
            };
            encoder.history_get(&mut bytes, corr, &get);
            Some(peer)
        };
        world.write(client, &bytes);
        self.looks.insert(corr, about);
    }

    /// An answer to that: of the conversation that was asked for, and an end.
    fn on_look(&mut self, got: &Got) {
        let about = self.looks[&got.corr()];
        match got.op() {
            Op::Deliver => {
                let route = got.route();
                assert_eq!((route.seq, Some(route.conv)), (Seq(0), about));
                let between = [Some(self.user), about];
                assert!(between.contains(&Some(route.user.0)), "{got:?}");
            }
            Op::Conversation => assert_eq!(about, None),
            Op::HistoryEnd | Op::Done | Op::Error => {
                let ends_list = got.op() == Op::Done;
                assert!(got.error().is_some() || ends_list == about.is_none());
                let mend = got.error().map(|code| code.reaction());
                assert_ne!(mend, Some(ErrorReaction::Mend), "{got:?}");
                self.looks.remove(&got.corr());
            }
            other => panic!("{other:?} was not asked for"),
        }
    }

    fn letter(&mut self, corr: u32) -> &mut Letter {
        let open = |letter: &&mut Letter| letter.open && letter.outgoing.corr == corr;
        self.letters
            .iter_mut()
            .find(open)
            .expect("F4: one answer to what was asked")
    }

    fn on_sent(&mut self, got: &Got) {
        let header = got.seq_header();
        let letter = self.letter(got.corr());
        assert!(letter.sent.is_none());
        assert!(
            header.arg == 0 || letter.attempts > 1,
            "the first is no duplicate"
        );
        letter.open = false;
        letter.sent = Some(ConvSeq(header.seq));
    }

    fn on_error(&mut self, got: &Got) {
        let error = got.error_reply().expect("an ERROR");
        if error.op == Op::Receipt as u8 {
            self.reads.remove(&got.corr()).expect("F4");
            return;
        }
        let reaction = error.code.reaction();
        let letter = self.letter(got.corr());
        letter.open = false;
        match reaction {
            ErrorReaction::RetryPlain => {}
            ErrorReaction::RetryMarked => letter.unsure = true,
            ErrorReaction::Mend | ErrorReaction::SignIn => {
                assert_eq!(error.code, ErrorCode::CLOCK_AHEAD, "{got:?}");
            }
        }
    }

    /// Sends what is not sent, oldest first, up to `count`.
    fn push(&mut self, world: &mut World, count: usize) {
        let Some(client) = self.client.filter(|_| self.welcome) else {
            return;
        };
        let unsent = |letter: &&mut Letter| letter.sent.is_none() && !letter.open;
        for letter in self.letters.iter_mut().filter(unsent).take(count) {
            letter.outgoing.corr = world.corr(client);
            letter.outgoing.flags = if letter.unsure {
                Flags::RETRY
            } else {
                Flags::NONE
            };
            letter.open = true;
            letter.attempts += 1;
            world.post(client, &letter.outgoing);
        }
    }

    fn compose(&mut self, world: &mut World, to: u64, padding: usize) {
        let (user, device) = (self.user, self.device);
        let number = self.letters.len();
        let text = format!("{user}:{device}>{to} {number}{}", ".".repeat(padding));
        assert!(text.len() <= ENVELOPE_BYTES_MAX);
        let mut outgoing = world.message(self.client.unwrap_or_default(), to, &text);
        outgoing.corr = 0;
        self.letters.push(Letter {
            outgoing,
            unsure: false,
            attempts: 0,
            open: false,
            sent: None,
        });
    }

    fn ack(&mut self, world: &mut World, receive_max: u32) {
        if let Some(client) = self.client.filter(|_| self.welcome) {
            world.ack(client, self.stored.cursor, receive_max);
        }
    }

    /// Leaves with or without everything it got acknowledged.
    fn come_and_go(&mut self, world: &mut World, random: &mut Random) {
        let Some(client) = self.client else {
            return;
        };
        world.set_reading(client, true);
        for _ in 0..random.below(4) {
            world.run();
            self.listen(world);
            self.ack(world, 8);
        }
        if random.one_in(2) {
            world.run();
            self.listen(world);
        }
        if let Some(client) = self.client.take() {
            world.cut(client);
        }
        if random.one_in(2) {
            self.connect(world, random, 8);
        }
    }

    fn read(&mut self, world: &mut World) {
        let Some(client) = self.client.filter(|_| self.welcome) else {
            return;
        };
        let own = UserId(self.user);
        let newest = self.stored.messages.iter().rev();
        let mut newest = newest.filter(|got| got.route().user != own);
        if let Some(route) = newest.next().map(Got::route) {
            let corr = world.corr(client);
            world.mark_read(client, route.conv, route.conv_seq, corr);
            self.reads.insert(corr, (route.conv, route.conv_seq));
        }
    }
}

/// One life.
struct Life {
    world: World,
    random: Random,
    devices: Vec<Device>,
    users: u64,
    tiny: bool,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let shards = 1 + random.below(3) as u16;
        let tiny = random.one_in(2);
        let usual = if tiny {
            Limits::test_min()
        } else {
            Limits::default()
        };
        // Without it every login reads the store.
        let absent_max = if random.one_in(6) {
            0
        } else {
            usual.absent_max
        };
        let limits = Limits {
            absent_max,
            ..usual
        };
        let mut world = World::new(shards, limits);
        let users = 1 + random.below(4);
        let mut devices = Vec::new();
        for user in 1..=users {
            for device in 1..=1 + random.below(2) as u16 {
                devices.push(Device {
                    user,
                    device,
                    client: None,
                    welcome: false,
                    stored: Stored::default(),
                    backup: Stored::default(),
                    restored: false,
                    letters: Vec::new(),
                    reads: BTreeMap::new(),
                    read_done: BTreeMap::new(),
                    looks: BTreeMap::new(),
                });
            }
        }
        // Every device is known before anything is said: it may expect copies from then on.
        for device in &mut devices {
            device.connect(&mut world, &mut random, 4);
            world.run();
            device.listen(&mut world);
        }
        Self {
            world,
            random,
            devices,
            users,
            tiny,
        }
    }

    fn receive_max(&mut self) -> u32 {
        self.random.pick(&[0, 1, 2, 3, 8, 256])
    }

    fn act(&mut self) {
        let at = self.random.below(self.devices.len() as u64) as usize;
        let receive_max = self.receive_max();
        let to = 1 + self.random.below(self.users);
        let padding = match (self.random.one_in(6), self.tiny) {
            (false, _) => 0,
            (true, true) => 1_500,
            (true, false) => 40_000,
        };
        let (world, random) = (&mut self.world, &mut self.random);
        let device = &mut self.devices[at];
        device.listen(world);
        match random.below(16) {
            0..=4 => {
                device.compose(world, to, padding);
                device.push(world, 1);
            }
            5 => device.push(world, usize::MAX),
            6 | 7 => device.ack(world, receive_max),
            8 => {
                device.read(world);
                device.look(world, to);
            }
            9 => {
                if let Some(client) = device.client {
                    let reading = random.one_in(2);
                    world.set_reading(client, reading);
                }
            }
            10 => device.backup = device.stored.clone(),
            11 if random.one_in(3) => {
                if let Some(client) = device.client.take() {
                    world.cut(client);
                }
            }
            // It takes what there is, leaves and comes back at once or later. Perhaps something
            // comes meanwhile, perhaps nothing.
            14 | 15 if device.client.is_some() => device.come_and_go(world, random),
            // A second connection takes over, or the first one comes.
            12 if device.client.is_none() || random.one_in(6) => {
                if let Some(client) = device.client {
                    device.listen(world);
                    world.set_reading(client, true);
                }
                device.connect(world, random, receive_max);
            }
            _ => self.disturb(),
        }
    }

    fn disturb(&mut self) {
        let (world, random) = (&mut self.world, &mut self.random);
        let times = 1 + random.below(3) as usize;
        let kind = random.pick(&CmdKind::ALL);
        match random.below(12) {
            0 => {
                let error = random.pick(&[
                    StoreError::Overloaded { retry_after_ms: 0 },
                    StoreError::Unavailable,
                    StoreError::Unknown,
                ]);
                world.store.fail(&[kind], times, error);
            }
            1 => world.store.lose_answers(&[kind], times),
            2 => world.store.hold(&[kind]),
            3 => world.store.hold_answers(&[kind]),
            4..=6 => world.store.release(),
            7 => world.failing_moves = times - 1,
            8 if random.one_in(4) => {
                for device in &mut self.devices {
                    device.listen(world);
                    device.client = None;
                }
                let shards = 1 + random.below(3) as u16;
                if random.one_in(3) {
                    // The clock was wrong and is set back; clients follow it.
                    let wall_us = world.now().wall_us;
                    world.set_wall_us(wall_us - 5_000_000);
                }
                world.restart(shards);
            }
            9 | 10 => {
                let ms = random.pick(&[1, 260, 1_100, 4_000]);
                // `advance` lets everything come to rest; `sleep` does not.
                if random.one_in(2) {
                    world.advance(ms);
                } else {
                    world.sleep(ms);
                    world.tick();
                }
            }
            _ => {}
        }
    }

    /// Lets a few of the possible events happen.
    fn drift(&mut self) {
        let mut events = Vec::<Event>::new();
        for _ in 0..self.random.below(12) {
            self.world.ready(&mut events);
            if events.is_empty() {
                return;
            }
            let event = self.random.pick(&events);
            let choice = self.random.next() as usize;
            self.world.perform(event, choice);
        }
    }

    /// No more faults: everybody connects, repeats and acknowledges until all is said.
    fn settle(&mut self) {
        self.world.store.heal();
        self.world.failing_moves = 0;
        for round in 0.. {
            assert!(round < 100, "it does not converge: {:?}", self.open());
            for device in &mut self.devices {
                device.listen(&mut self.world);
                if let Some(client) = device.client {
                    self.world.set_reading(client, true);
                } else {
                    device.connect(&mut self.world, &mut self.random, 8);
                }
            }
            self.world.run();
            for device in &mut self.devices {
                device.listen(&mut self.world);
                // Few at a time, or tiny limits refuse the same ones again and again.
                device.push(&mut self.world, 3);
                device.ack(&mut self.world, 8);
                self.world.run();
            }
            self.world.advance(1_300);
            self.world.check_invariants();
            if round > 3 && self.open().is_empty() && self.is_quiet() {
                return;
            }
        }
    }

    /// Everybody is here and nobody gets anything any more.
    fn is_quiet(&mut self) -> bool {
        let mut quiet = true;
        for device in &mut self.devices {
            device.ack(&mut self.world, 8);
            self.world.run();
            let count = |client| self.world.got(client).len();
            quiet &= device.client.map(count) == Some(0);
            device.listen(&mut self.world);
        }
        quiet
    }

    fn open(&self) -> Vec<&Letter> {
        let letters = self.devices.iter().flat_map(|device| &device.letters);
        letters.filter(|letter| letter.sent.is_none()).collect()
    }

    fn judge(&mut self) {
        let Self { world, devices, .. } = self;
        for from in devices.iter() {
            for letter in &from.letters {
                let (sender, device) = (UserId(from.user), DeviceId(from.device));
                let key = (sender, device, letter.outgoing.msg_id);
                for to in devices.iter() {
                    let own = (to.user, to.device) == (from.user, from.device);
                    let due = to.user == letter.outgoing.to.0 || to.user == from.user;
                    let has = to.stored.known.contains(&key);
                    assert_eq!(has, due && !own, "{letter:?} at {}:{}", to.user, to.device);
                }
                // Where it stands is what SENT said, and it stands there once.
                let conv = ConvId::direct(sender, letter.outgoing.to);
                let mut places = world
                    .store
                    .conversation(conv)
                    .filter(|entry| (entry.sender, entry.device, entry.msg_id) == key);
                let place = places.next().map(|entry| entry.conv_seq);
                assert_eq!(place, letter.sent);
                assert_eq!(places.next(), None, "O10: accepted once");
            }
            let mut latest = BTreeMap::<UserId, ConvSeq>::new();
            for letter in from.letters.iter().filter(|letter| letter.attempts == 1) {
                let at = latest.entry(letter.outgoing.to).or_default();
                let sent = letter.sent.expect("all is sent");
                assert!(sent > *at, "O13");
                *at = sent;
            }
        }
        for reader in devices.iter() {
            let user = UserId(reader.user);
            for (peer, up_to) in &reader.read_done {
                let marks = world.store.marks(ConvId::direct(user, UserId(*peer)), user);
                assert!(marks.read >= *up_to, "DONE means written");
            }
            for got in &reader.stored.messages {
                let route = got.route();
                if route.user != user {
                    let conv = ConvId::direct(user, route.user);
                    let delivered = world.store.marks(conv, user).delivered;
                    assert!(delivered >= route.conv_seq, "delivered: {got:?}");
                }
            }
        }
    }

    fn leave(&mut self) {
        for device in &mut self.devices {
            if let Some(client) = device.client.take() {
                self.world.cut(client);
            }
        }
        self.world.advance(15_000);
        assert_idle(&self.world);
        assert_eq!(self.world.residue(), []);
    }
}

/// Logins, and how many of them went without a read.
fn live(seed: u64) -> (u64, u64) {
    let mut life = Life::new(seed);
    for _ in 0..220 {
        life.act();
        life.drift();
        life.world.check_invariants();
    }
    life.settle();
    life.judge();
    life.leave();
    let count = |counter| life.world.count(counter);
    (count(Counter::LoggedIn), count(Counter::LoggedInKnown))
}

#[test]
fn whatever_happens_nothing_said_is_lost() {
    let seeds = match std::env::var("PORTICO_SEEDS") {
        Ok(text) => {
            let (from, to) = text.split_once("..").expect("from..to");
            let number = |text: &str| text.parse::<u64>().expect("a number");
            number(from)..number(to)
        }
        Err(_) => 0..300,
    };
    let (mut logins, mut known) = (0, 0);
    for seed in seeds {
        match std::panic::catch_unwind(|| live(seed)) {
            Ok((more, without_read)) => {
                logins += more;
                known += without_read;
            }
            Err(panic) => {
                eprintln!("seed {seed} failed");
                std::panic::resume_unwind(panic);
            }
        }
    }
    // Both ways in have been tried, over and over.
    assert!(
        known * 10 > logins && known * 10 < logins * 9,
        "{known} of {logins}"
    );
}
