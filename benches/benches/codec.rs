//! The wire codec: what a frame costs to find, to read and to write.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use portico_wire::{
    Flags, Op, RouteHeader,
    encode::{self, Encoder},
    frame::ConvKind,
    ids::{ConvSeq, DeviceId, MsgId, Seq, UserId},
    message::{Envelope, Hello},
    next_frame,
};
use std::hint::black_box;

const MAX_BYTES: usize = 262_144;

fn route() -> RouteHeader {
    RouteHeader {
        seq: Seq(1_790_000_000_000_000),
        msg_id: MsgId::new_v7(1_790_000_000_000, 7),
        conv: 42,
        conv_seq: ConvSeq(1_790_000_000_000_000),
        user: UserId(41),
        dev: DeviceId(1),
        conv_kind: ConvKind::DIRECT,
        ..RouteHeader::default()
    }
}

/// Ten SEND frames of one client, as one receive brings them.
fn ten_sends(envelope: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for corr in 1..=10 {
        let op = Op::Send as u8;
        encode::put_routed(&mut bytes, op, Flags::NONE, corr, 0, &route(), envelope);
    }
    bytes
}

fn envelope() -> Vec<u8> {
    let body = [0x5a; 200];
    let envelope = Envelope {
        cipher: 2,
        body: &body,
        ..Envelope::default()
    };
    Encoder::new().envelope(&envelope).to_vec()
}

fn read(c: &mut Criterion) {
    let envelope = envelope();
    let bytes = ten_sends(&envelope);
    let mut group = c.benchmark_group("read");
    group.throughput(Throughput::Elements(10));
    group.bench_function("ten SEND frames, headers only", |b| {
        b.iter(|| {
            let mut rest = black_box(&bytes[..]);
            let mut sum = 0_u64;
            while let Ok(Some(frame)) = next_frame(rest, MAX_BYTES) {
                rest = &rest[frame.bytes().len()..];
                sum += frame.route().map_or(0, |route| route.conv) + frame.body().len() as u64;
            }
            sum
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("an Envelope of 200 bytes, verified", |b| {
        b.iter(|| Envelope::decode(black_box(&envelope)).map(|envelope| envelope.body.len()));
    });
    let mut answers = Vec::new();
    encode::put_ack(&mut answers, Seq(7), 256);
    encode::put_sent(&mut answers, 7, ConvSeq(9), false);
    group.throughput(Throughput::Elements(2));
    group.bench_function("ACK and SENT", |b| {
        b.iter(|| {
            let mut rest = black_box(&answers[..]);
            let mut sum = 0;
            while let Ok(Some(frame)) = next_frame(rest, MAX_BYTES) {
                rest = &rest[frame.bytes().len()..];
                sum += frame.seq_header().seq;
            }
            sum
        });
    });
    group.throughput(Throughput::Elements(1));
    let mut hello = Vec::new();
    let token = "t".repeat(600);
    let value = Hello {
        token: Some(&token),
        ..Hello::default()
    };
    Encoder::new().hello(&mut hello, 1, &value);
    group.bench_function("HELLO with a token of 600 bytes", |b| {
        b.iter(|| {
            let frame = next_frame(black_box(&hello), MAX_BYTES);
            let body = frame.ok().flatten().map(|frame| frame.body());
            body.and_then(|body| Hello::decode(body).ok()).is_some()
        });
    });
    group.finish();
}

fn write(c: &mut Criterion) {
    let envelope = envelope();
    let mut out = Vec::with_capacity(64 << 10);
    let mut group = c.benchmark_group("write");
    group.throughput(Throughput::Elements(1));
    group.bench_function("DELIVER, header and copied body", |b| {
        b.iter(|| {
            out.clear();
            let op = Op::Deliver as u8;
            encode::put_routed(
                &mut out,
                op,
                Flags::NONE,
                0,
                0,
                black_box(&route()),
                &envelope,
            );
            out.len()
        });
    });
    group.bench_function("ACK", |b| {
        b.iter(|| {
            out.clear();
            encode::put_ack(&mut out, black_box(Seq(7)), 256);
            out.len()
        });
    });
    group.bench_function("SENT", |b| {
        b.iter(|| {
            out.clear();
            encode::put_sent(&mut out, black_box(7), ConvSeq(9), false);
            out.len()
        });
    });
    let mut encoder = Encoder::new();
    let body = [0x5a; 200];
    let value = Envelope {
        body: &body,
        ..Envelope::default()
    };
    group.bench_function("an Envelope of 200 bytes", |b| {
        b.iter(|| encoder.envelope(black_box(&value)).len());
    });
    group.finish();
}

/// What the gateway does with the bytes of a message: SEND is read, DELIVER and SENT are written.
fn relay(c: &mut Criterion) {
    let bytes = ten_sends(&envelope());
    let (mut out, mut sent) = (Vec::with_capacity(64 << 10), Vec::with_capacity(4 << 10));
    let mut group = c.benchmark_group("relay");
    group.throughput(Throughput::Elements(10));
    group.bench_function("ten SENDs to ten DELIVERs and ten SENTs", |b| {
        b.iter(|| {
            out.clear();
            sent.clear();
            let mut rest = black_box(&bytes[..]);
            while let Ok(Some(frame)) = next_frame(rest, MAX_BYTES) {
                rest = &rest[frame.bytes().len()..];
                let Some(send) = frame.route() else { continue };
                let route = RouteHeader {
                    seq: Seq(send.seq.0 + 1),
                    conv: 41,
                    conv_seq: ConvSeq(send.seq.0),
                    user: UserId(41),
                    dev: DeviceId(1),
                    ..send
                };
                let op = Op::Deliver as u8;
                encode::put_routed(&mut out, op, Flags::NONE, 0, 0, &route, frame.body());
                encode::put_sent(&mut sent, frame.corr(), route.conv_seq, false);
            }
            out.len() + sent.len()
        });
    });
    group.finish();
}

criterion_group!(benches, read, write, relay);
criterion_main!(benches);
