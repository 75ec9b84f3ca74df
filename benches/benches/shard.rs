//! The shard core alone: the whole life of a direct message without sockets and without a store
//! that takes time. What remains is the gateway's own work.

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use portico_core::{Counter, Rate, Rates, testing::Bare};
use portico_wire::{
    Flags, Op, RouteHeader,
    encode::{self, Encoder},
    frame::ConvKind,
    ids::{MsgId, UserId},
    message::{Envelope, group::GroupCreate},
};
use std::time::{Duration, Instant};

/// Connections of the benches whose price might grow with their number.
const IDLE: u64 = 100_000;
/// What an idle client promises.
const HEARTBEAT_S: u64 = 60;
/// Recipients of the fan-out, and how many of its SENDs come in one segment.
const FANNED: u64 = 1_000;
const FANNED_PER_SEGMENT: u64 = 100;
/// Users whose ACKs are timed together: one alone is too short for the clock.
const ACKING: u64 = 256;

/// One shard with so many users, logged in.
fn shard_with(users: u64) -> Bare {
    let mut bare = Bare::new(1, users as usize);
    for _ in 0..users {
        bare.login();
    }
    bare
}

fn put_send(out: &mut Vec<u8>, bare: &Bare, to: u64, corr: u32, flags: Flags) {
    let body = [0x5a; 128];
    let envelope = Envelope {
        body: &body,
        ..Envelope::default()
    };
    let route = RouteHeader {
        msg_id: MsgId::new_v7(bare.now.wall_us / 1_000, u128::from(to)),
        conv: to,
        conv_kind: ConvKind::DIRECT,
        ..RouteHeader::default()
    };
    let body = Encoder::new().envelope(&envelope).to_vec();
    encode::put_routed(out, Op::Send as u8, flags, corr, 0, &route, &body);
}

fn ack_all(bare: &mut Bare, user: u64, frame: &mut Vec<u8>) {
    frame.clear();
    encode::put_ack(frame, bare.newest(user), 256);
    bare.receive(user, frame);
    bare.settle();
}

/// Nothing was refused and nobody fell behind: what was measured is the path it claims to be.
fn assert_pushed(bare: &Bare, sent: u64) {
    assert_eq!(bare.count(Counter::Accepted), sent);
    assert_eq!(bare.count(Counter::Delivered), sent);
}

/// Rates that count, and that nothing here exceeds.
fn wide_rates() -> Rates {
    let rate = |per_s| Rate {
        per_s,
        burst: 1 << 20,
    };
    Rates {
        frames: rate(1_000_000),
        bytes: rate(1 << 30),
        messages: rate(1_000_000),
        ..Rates::default()
    }
}

/// User 1 writes to user 2 in segments of `bunch` SENDs, user 2 acknowledges every 32nd message.
fn direct(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, bunch: u32, corr: u32) {
    direct_on(group, name, bunch, corr, shard_with(2));
}

fn direct_on(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    bunch: u32,
    corr: u32,
    mut bare: Bare,
) {
    let mut segment = Vec::new();
    for number in 0..bunch {
        let corr = if corr == 0 { 0 } else { corr + number };
        put_send(&mut segment, &bare, 2, corr, Flags::NONE);
    }
    let (mut ack, mut sent, mut unacknowledged) = (Vec::new(), 0, 0);
    group.throughput(Throughput::Elements(u64::from(bunch)));
    group.bench_function(name, |b| {
        b.iter(|| {
            bare.pass_us(10 * u64::from(bunch));
            bare.receive(1, &segment);
            bare.settle();
            sent += u64::from(bunch);
            unacknowledged += bunch;
            if unacknowledged >= 32 {
                unacknowledged = 0;
                ack_all(&mut bare, 2, &mut ack);
            }
        });
    });
    assert_pushed(&bare, sent);
}

fn messages(c: &mut Criterion) {
    let mut group = c.benchmark_group("shard");
    direct(&mut group, "SEND to SENT and DELIVER, an ACK per 32", 1, 7);
    direct(&mut group, "SEND without correlation, to DELIVER", 1, 0);
    direct(&mut group, "ten SENDs in a segment", 10, 7);
    direct(&mut group, "ten SENDs without correlation", 10, 0);
    for (name, bunch) in [
        ("SEND to SENT and DELIVER, rates counted", 1),
        ("ten SENDs in a segment, rates counted", 10),
    ] {
        let mut limited = Bare::with_rates(1, 2, Some(wide_rates()));
        limited.login();
        limited.login();
        direct_on(&mut group, name, bunch, 7, limited);
    }

    let mut bare = shard_with(2);
    let mut send = Vec::new();
    put_send(&mut send, &bare, 2, 0, Flags::EPHEMERAL);
    let mut sent = 0;
    group.throughput(Throughput::Elements(1));
    group.bench_function("an ephemeral message, relayed", |b| {
        b.iter(|| {
            sent += 1;
            bare.receive(1, &send);
            bare.settle();
        });
    });
    assert_eq!(bare.count(Counter::EphemeralDelivered), sent);
    group.finish();
}

/// One user writes to a thousand others; each of them acknowledges.
fn fan_out(c: &mut Criterion) {
    let mut group = c.benchmark_group("shard");
    let mut bare = shard_with(1 + FANNED);
    let recipients: Vec<u64> = (2..2 + FANNED).collect();
    let segments: Vec<Vec<u8>> = recipients
        .chunks(FANNED_PER_SEGMENT as usize)
        .map(|chunk| {
            let mut segment = Vec::new();
            for to in chunk {
                put_send(&mut segment, &bare, *to, 0, Flags::NONE);
            }
            segment
        })
        .collect();
    let (mut ack, mut sent) = (Vec::new(), 0);
    group.throughput(Throughput::Elements(FANNED));
    group.bench_function("one to 1,000, each acknowledged", |b| {
        b.iter(|| {
            bare.pass_us(10 * FANNED);
            sent += FANNED;
            for segment in &segments {
                bare.receive(1, segment);
                bare.settle();
            }
            for to in &recipients {
                ack_all(&mut bare, *to, &mut ack);
            }
        });
    });
    assert_pushed(&bare, sent);
    group.finish();
}

/// One member of a group writes, the others acknowledge every 32nd message; per delivery.
fn groups(c: &mut Criterion) {
    let mut bench = c.benchmark_group("shard");
    for members in [256_u64, 1_024] {
        let mut bare = shard_with(members);
        let create = GroupCreate {
            members: (2..=members).map(UserId).collect(),
            max_members: 1_024,
            ..GroupCreate::default()
        };
        let route = RouteHeader {
            msg_id: MsgId::new_v7(bare.now.wall_us / 1_000, 1),
            ..RouteHeader::default()
        };
        let group = Bare::group_id(1, &route);
        let mut frame = Vec::new();
        Encoder::new().group_create(&mut frame, Flags::NONE, 5, &route, &create);
        bare.receive(1, &frame);
        bare.settle();
        let envelope = Envelope {
            body: &[0x5a; 128],
            ..Envelope::default()
        };
        let body = Encoder::new().envelope(&envelope).to_vec();
        let route = RouteHeader {
            conv: group,
            conv_kind: ConvKind::GROUP,
            ..route
        };
        frame.clear();
        encode::put_routed(&mut frame, Op::Send as u8, Flags::NONE, 7, 0, &route, &body);
        let (mut acks, mut sent) = (Vec::new(), 0);
        bench.throughput(Throughput::Elements(members - 1));
        bench.bench_function(format!("one message to a group of {members}"), |b| {
            b.iter(|| {
                bare.pass_us(10 * members);
                bare.receive(1, &frame);
                bare.settle();
                sent += 1;
                if sent % 32 == 0 {
                    for user in 2..=members {
                        acks.clear();
                        encode::put_ack(&mut acks, bare.newest(user), 256);
                        bare.receive(user, &acks);
                    }
                    bare.settle();
                    bare.tick();
                    bare.settle();
                }
            });
        });
        assert_eq!(bare.count(Counter::Accepted), sent);
        assert_eq!(bare.count(Counter::Delivered), (sent + 1) * (members - 1));
    }
    bench.finish();
}

fn acks(c: &mut Criterion) {
    let mut group = c.benchmark_group("shard");
    let mut bare = shard_with(1 + ACKING);
    let (mut sends, mut acks, mut sent) = (Vec::new(), Vec::new(), 0);
    for (name, messages) in [("ACK of one message", 1), ("ACK of 32 messages", 32)] {
        group.throughput(Throughput::Elements(ACKING));
        group.bench_function(name, |b| {
            b.iter_custom(|iterations| {
                let mut spent = Duration::ZERO;
                for _ in 0..iterations {
                    bare.pass_us(10 * ACKING * messages);
                    acks.clear();
                    for to in 2..2 + ACKING {
                        sends.clear();
                        for _ in 0..messages {
                            put_send(&mut sends, &bare, to, 0, Flags::NONE);
                        }
                        bare.receive(1, &sends);
                        bare.settle();
                        encode::put_ack(&mut acks, bare.newest(to), 256);
                    }
                    sent += ACKING * messages;
                    let ack_bytes = acks.len() / ACKING as usize;
                    let start = Instant::now();
                    for (to, ack) in (2..).zip(acks.chunks(ack_bytes)) {
                        bare.receive(to, ack);
                    }
                    spent += start.elapsed();
                    bare.settle();
                }
                spent
            });
        });
    }
    assert_eq!(bare.count(Counter::Acknowledged), sent);
    group.finish();
}

/// What connections cost that say nothing but a heartbeat.
fn idle(c: &mut Criterion) {
    let mut group = c.benchmark_group("idle");
    let mut bare = shard_with(2);
    let mut ping = Vec::new();
    encode::put_ping(&mut ping, 0, HEARTBEAT_S as u32);
    group.throughput(Throughput::Elements(1));
    group.bench_function("PING to PONG", |b| {
        b.iter(|| {
            bare.receive(1, &ping);
            bare.settle();
        });
    });

    let mut bare = shard_with(IDLE);
    group.bench_function("a tick with nothing due, 100,000 connections", |b| {
        b.iter(|| bare.tick());
    });
    // Deadlines and heartbeats are spread over a minute before anything is measured.
    let mut next = 0;
    let mut second = |bare: &mut Bare| {
        bare.pass_us(1_000_000);
        for _ in 0..IDLE / HEARTBEAT_S + 1 {
            bare.receive(next % IDLE + 1, &ping);
            next += 1;
        }
        bare.tick();
        bare.settle();
    };
    for _ in 0..HEARTBEAT_S {
        second(&mut bare);
    }
    group.throughput(Throughput::Elements(IDLE));
    group.bench_function("a second of 100,000 connections, heartbeat 60 s", |b| {
        b.iter(|| second(&mut bare));
    });
    assert_eq!(bare.count(Counter::ClosedIdle), 0, "none was closed");
    group.finish();
}

criterion_group!(benches, messages, fan_out, groups, acks, idle);
criterion_main!(benches);
