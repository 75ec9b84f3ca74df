//! The timer wheel of a shard, with a deadline for each of 100,000 connections.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use portico_core::testing::BareWheel;
use std::hint::black_box;

const CONNECTIONS: u32 = 100_000;
/// Twice the heartbeat and the grace: what a quiet connection's deadline is ahead.
const AHEAD_S: u32 = 135;

/// Deadlines spread over the next [`AHEAD_S`] seconds.
fn wheel() -> BareWheel {
    let mut wheel = BareWheel::new(CONNECTIONS as usize);
    for index in 0..CONNECTIONS {
        wheel.set(index, 1 + spread(index) % AHEAD_S);
    }
    wheel
}

/// Neighbours in the table are no neighbours in time.
const fn spread(index: u32) -> u32 {
    index.wrapping_mul(2_654_435_761) >> 8
}

fn timer(c: &mut Criterion) {
    let mut group = c.benchmark_group("timer wheel");
    group.throughput(Throughput::Elements(1));

    let (mut full, mut turn) = (wheel(), 0_u32);
    group.bench_function("set anew", |b| {
        b.iter(|| {
            turn = turn.wrapping_add(1);
            let index = spread(turn) % CONNECTIONS;
            full.set(black_box(index), 1 + turn % AHEAD_S);
        });
    });
    group.bench_function("cancel and set", |b| {
        b.iter(|| {
            turn = turn.wrapping_add(1);
            let index = spread(turn) % CONNECTIONS;
            full.cancel(black_box(index));
            full.set(index, 1 + turn % AHEAD_S);
        });
    });
    group.bench_function("the earliest deadline", |b| b.iter(|| full.next_s()));

    // One second passes: what came due is set again, as the owner of a live connection does.
    let (mut full, mut now_s, mut due) = (wheel(), 0, Vec::new());
    let per_second = CONNECTIONS / AHEAD_S;
    group.throughput(Throughput::Elements(u64::from(per_second)));
    group.bench_function("a second, what came due set again", |b| {
        b.iter(|| {
            now_s += 1;
            full.advance(now_s, &mut due);
            for index in due.drain(..) {
                full.set(index, now_s + AHEAD_S);
            }
        });
    });
    // Each second looked at its own: none is lost, none is set twice.
    let mut left = Vec::new();
    full.advance(now_s + AHEAD_S, &mut left);
    assert_eq!(left.len(), CONNECTIONS as usize);
    group.finish();
}

criterion_group!(benches, timer);
criterion_main!(benches);
