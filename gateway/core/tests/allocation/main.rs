//! What a message costs in allocations: its whole life in one or two shards that have warmed up,
//! under an allocator that counts ([`counting`]). The store and the clients are
//! [`Bare`](portico_core::testing::Bare), whose answers allocate nothing, so what is counted is the
//! core's.
//!
//! Each test prints its counts by stage (`--nocapture`) and holds them to the bounds below. A
//! change that lowers a count lowers the bound with it.

mod counting;

use counting::{Counting, counted};
use portico_core::{Counter, testing::Bare};
use portico_wire::{
    Flags, Op, RouteHeader,
    encode::{Encoder, put_ack, put_routed},
    frame::{ConvKind, receipt_kind},
    ids::{ConvSeq, MsgId, UserId},
    message::group::GroupCreate,
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Users that write to their neighbour in turn, so that pools and tables are used as they are in
/// life.
const USERS: u64 = 64;
/// Before counting, and while it is counted. At [`MESSAGE_US`] each, they take seconds of the
/// shard's time: the flushes and the trimming of pools that fall into them are part of the price.
const WARM_UP: u64 = 4_000;
const MESSAGES: u64 = 8_000;
/// Time that passes per message.
const MESSAGE_US: u64 = 500;
/// The bytes of a body.
const BODY: [u8; 128] = [0x5a; 128];

/// Allocations per thousand messages at most: SEND, letters, append answered, output, ACK, flush.
/// At SEND a chunk for many bodies; where an append is answered what the pool has given back since
/// and lends again; at ACK and flush the tables that each flush empties and ACKs fill again.
const ONE_SHARD_MAX: [u64; STAGES.len()] = [1, 0, 2, 0, 6, 3];
const BUNCHED_MAX: [u64; STAGES.len()] = [13, 0, 0, 0, 6, 3];
const READ_MAX: [u64; STAGES.len()] = [1, 0, 2, 0, 6, 3];
/// Half of the pairs live on different shards: the letter between them.
const TWO_SHARDS_MAX: [u64; STAGES.len()] = [502, 0, 1, 0, 10, 5];
/// The letter, which an ephemeral message has on one shard too.
const EPHEMERAL_MAX: [u64; STAGES.len()] = [1_001, 0, 0, 0, 0, 0];

/// Per message to a group of [`USERS`]: of the order of ten for all its deliveries together.
const GROUP_MAX: [u64; STAGES.len()] = [4_000, 6_000, 3_000, 0, 3_000, 2_000];
/// A message to a group counts as so many.
const GROUP_SHARE: u64 = 16;

/// Stages of a message's life, in order.
#[derive(Clone, Copy)]
enum Stage {
    /// SEND arrives: to the request for the store.
    Send,
    /// Letters between the shards.
    Letters,
    /// The store has answered: to SENT and DELIVER in the queues of their connections.
    Stored,
    /// The queues are taken and written.
    Output,
    /// ACK (or READ) arrives.
    Ack,
    /// Receipts, cursors and marks, joined and written behind.
    Flush,
}

const STAGES: [(Stage, &str); 6] = [
    (Stage::Send, "SEND"),
    (Stage::Letters, "letters"),
    (Stage::Stored, "append answered"),
    (Stage::Output, "output"),
    (Stage::Ack, "ACK"),
    (Stage::Flush, "flush"),
];

/// Allocations per stage, since the last [`Tally::reset`].
#[derive(Default)]
struct Tally([u64; STAGES.len()]);

impl Tally {
    fn run<T>(&mut self, stage: Stage, work: impl FnOnce() -> T) -> T {
        let before = counted().allocations;
        let value = work();
        self.0[stage as usize] += counted().allocations - before;
        value
    }

    /// Prints the counts and holds them to `bounds`, in thousandths of an allocation per message.
    #[track_caller]
    fn check(&self, name: &str, messages: u64, bounds: [u64; STAGES.len()]) {
        let per_thousand = self.0.map(|count| (count * 1_000).div_ceil(messages));
        println!("{name}: allocations per thousand messages");
        for ((_, stage), (found, bound)) in STAGES.iter().zip(per_thousand.iter().zip(bounds)) {
            println!("  {stage:<16}{found:>6}, at most {bound}");
        }
        for ((_, stage), (found, bound)) in STAGES.iter().zip(per_thousand.iter().zip(bounds)) {
            assert!(
                *found <= bound,
                "{name}, {stage}: {found} allocations per thousand messages, {bound} allowed"
            );
        }
    }
}

/// Shards, their users, and what is counted.
struct Life {
    bare: Bare,
    tally: Tally,
    frame: Vec<u8>,
    sent: u64,
}

impl Life {
    fn new(shards: u16) -> Self {
        let mut bare = Bare::new(shards, USERS as usize);
        for _ in 0..USERS {
            bare.login();
        }
        Self {
            bare,
            tally: Tally::default(),
            frame: Vec::with_capacity(16 << 10),
            sent: 0,
        }
    }

    /// Appends a SEND of the next message, from one user to the other.
    fn put_send(&mut self, to: u64, flags: Flags, corr: u32) {
        self.sent += 1;
        let route = RouteHeader {
            msg_id: MsgId::new_v7(self.bare.now.wall_us / 1_000, u128::from(self.sent)),
            conv: to,
            conv_kind: ConvKind::DIRECT,
            ..RouteHeader::default()
        };
        let op = Op::Send as u8;
        put_routed(&mut self.frame, op, flags, corr, 0, &route, &BODY);
    }

    fn receive(&mut self, stage: Stage, user: u64) {
        let (bare, frame) = (&mut self.bare, &self.frame);
        self.tally.run(stage, || bare.receive(user, frame));
        self.frame.clear();
    }

    /// All users in one group, which the first has made.
    fn make_group(&mut self) -> u64 {
        let create = GroupCreate {
            members: (2..=USERS).map(UserId).collect(),
            ..GroupCreate::default()
        };
        let route = RouteHeader {
            msg_id: MsgId::new_v7(self.bare.now.wall_us / 1_000, 1),
            ..RouteHeader::default()
        };
        let group = Bare::group_id(1, &route);
        Encoder::new().group_create(&mut self.frame, Flags::NONE, 5, &route, &create);
        self.receive(Stage::Send, 1);
        self.settle();
        group
    }

    /// Everything that follows, each under its own stage but for what a flush brings.
    fn settle(&mut self) {
        let Self { bare, tally, .. } = self;
        loop {
            let letters = tally.run(Stage::Letters, || bare.carry_messages());
            let stored = tally.run(Stage::Stored, || bare.answer_store());
            let output = tally.run(Stage::Output, || bare.send_out());
            if !(letters || stored || output) {
                return;
            }
        }
    }

    fn flush(&mut self) {
        let Self { bare, tally, .. } = self;
        tally.run(Stage::Flush, || {
            bare.tick();
            bare.settle();
        });
    }

    /// `count` messages from `from` to its neighbour in one segment, answered, delivered and
    /// acknowledged; then so much time passes, with the flushes that fall due.
    fn converse(&mut self, from: u64, count: u64, corr: u32) {
        let to = from % USERS + 1;
        for number in 0..count {
            let corr = if corr == 0 { 0 } else { corr + number as u32 };
            self.put_send(to, Flags::NONE, corr);
        }
        self.receive(Stage::Send, from);
        self.settle();
        put_ack(&mut self.frame, self.bare.newest(to), 256);
        self.receive(Stage::Ack, to);
        self.settle();
        self.bare.pass_us(count * MESSAGE_US);
        self.flush();
    }

    fn messages(&mut self, total: u64, per_segment: u64, corr: u32) {
        for round in 0..total / per_segment {
            self.converse(round % USERS + 1, per_segment, corr);
        }
    }

    /// Warms up, forgets what that cost, and counts.
    fn measure(&mut self, mut run: impl FnMut(&mut Self, u64)) {
        run(self, WARM_UP);
        self.tally = Tally::default();
        run(self, MESSAGES);
    }
}

/// Nothing was refused, lost or left in a queue: what was counted is the path it claims to be.
#[track_caller]
fn assert_delivered(bare: &Bare, messages: u64) {
    assert_eq!(bare.count(Counter::Accepted), messages);
    assert_eq!(bare.count(Counter::Delivered), messages);
    assert_eq!(bare.count(Counter::Acknowledged), messages);
}

#[test]
fn the_allocator_counts() {
    let before = counted();
    let boxed = std::hint::black_box(Box::new([0_u8; 100]));
    let during = counted();
    assert_eq!(during.allocations - before.allocations, 1);
    assert_eq!(during.live_bytes - before.live_bytes, 100);
    drop(boxed);
    assert_eq!(counted().live_bytes, before.live_bytes);
    assert_eq!(counted().allocations, during.allocations);
}

#[test]
fn a_direct_message_on_one_shard() {
    let mut life = Life::new(1);
    life.measure(|life, messages| life.messages(messages, 1, 7));
    assert_delivered(&life.bare, WARM_UP + MESSAGES);
    life.tally.check("one shard", MESSAGES, ONE_SHARD_MAX);
}

#[test]
fn direct_messages_bunched_by_ten() {
    let mut life = Life::new(1);
    life.measure(|life, messages| life.messages(messages, 10, 0));
    assert_delivered(&life.bare, WARM_UP + MESSAGES);
    life.tally.check("bunched by ten", MESSAGES, BUNCHED_MAX);
}

#[test]
fn direct_messages_between_two_shards() {
    let mut life = Life::new(2);
    life.measure(|life, messages| life.messages(messages, 1, 7));
    assert_delivered(&life.bare, WARM_UP + MESSAGES);
    life.tally.check("two shards", MESSAGES, TWO_SHARDS_MAX);
}

#[test]
fn ephemeral_messages() {
    let mut life = Life::new(1);
    life.measure(|life, messages| {
        for round in 0..messages {
            let from = round % USERS + 1;
            life.put_send(from % USERS + 1, Flags::EPHEMERAL, 0);
            life.receive(Stage::Send, from);
            life.settle();
            life.bare.pass_us(MESSAGE_US);
            life.flush();
        }
    });
    let delivered = life.bare.count(Counter::EphemeralDelivered);
    assert_eq!(delivered, WARM_UP + MESSAGES);
    life.tally.check("ephemeral", MESSAGES, EPHEMERAL_MAX);
}

/// One group of all users, who acknowledge each message. What is allocated is a few things for each
/// message and shard, however many members there are.
#[test]
fn messages_to_a_group() {
    for shards in [1, 2] {
        let mut life = Life::new(shards);
        let group = life.make_group();
        life.measure(|life, messages| {
            for round in 0..messages / GROUP_SHARE {
                life.sent += 1;
                let route = RouteHeader {
                    msg_id: MsgId::new_v7(life.bare.now.wall_us / 1_000, u128::from(life.sent)),
                    conv: group,
                    conv_kind: ConvKind::GROUP,
                    ..RouteHeader::default()
                };
                put_routed(
                    &mut life.frame,
                    Op::Send as u8,
                    Flags::NONE,
                    7,
                    0,
                    &route,
                    &BODY,
                );
                let author = round % USERS + 1;
                life.receive(Stage::Send, author);
                life.settle();
                for user in (1..=USERS).filter(|user| *user != author) {
                    put_ack(&mut life.frame, life.bare.newest(user), 256);
                    life.receive(Stage::Ack, user);
                    life.settle();
                }
                life.bare.pass_us(MESSAGE_US);
                life.flush();
            }
        });
        let messages = (WARM_UP + MESSAGES) / GROUP_SHARE;
        assert_eq!(life.bare.count(Counter::Accepted), messages);
        // The event that made the group is a delivery too.
        let delivered = (messages + 1) * (USERS - 1);
        assert_eq!(life.bare.count(Counter::Delivered), delivered);
        let name = format!("a group of {USERS}, {shards} shards");
        life.tally.check(&name, MESSAGES / GROUP_SHARE, GROUP_MAX);
    }
}

/// A READ per message on top of its life, without a request for an answer.
#[test]
fn read_receipts() {
    let mut life = Life::new(1);
    life.measure(|life, messages| {
        for round in 0..messages {
            let (from, to) = (round % USERS + 1, (round % USERS + 1) % USERS + 1);
            life.converse(from, 1, 7);
            let route = RouteHeader {
                conv: from,
                conv_seq: ConvSeq(life.bare.newest(to).0),
                conv_kind: ConvKind::DIRECT,
                kind: receipt_kind::READ,
                user: UserId(to),
                ..RouteHeader::default()
            };
            let op = Op::Receipt as u8;
            put_routed(&mut life.frame, op, Flags::NONE, 0, 0, &route, &[]);
            life.receive(Stage::Ack, to);
            life.settle();
        }
    });
    assert_delivered(&life.bare, WARM_UP + MESSAGES);
    life.tally.check("with READ", MESSAGES, READ_MAX);
}
