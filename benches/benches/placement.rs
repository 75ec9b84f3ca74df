//! Placement: which shard a user or a conversation belongs to, and the shard as the remainder of a
//! hash. Asked several times per message.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use portico_core::{conv_home, user_home};
use portico_wire::ids::{ConvId, UserId};
use std::hint::black_box;

/// As many shards as a large machine has cores, and the number a small one needs for a million
/// connections: no power of two.
const SHARDS: [u16; 2] = [64, 54];
const IDS: u64 = 1_000;

fn placement(c: &mut Criterion) {
    let mut group = c.benchmark_group("placement");
    group.throughput(Throughput::Elements(IDS));
    for shards in SHARDS {
        group.bench_function(format!("home of a user, {shards} shards"), |b| {
            b.iter(|| -> u64 {
                let home = |user| u64::from(user_home(UserId(black_box(user)), shards).0);
                (1..=IDS).map(home).sum()
            });
        });
        group.bench_function(format!("home of a conversation, {shards} shards"), |b| {
            b.iter(|| -> u64 {
                let home = |user| {
                    let conv = ConvId::direct(UserId(black_box(user)), UserId(IDS - user));
                    u64::from(conv_home(conv, shards).0)
                };
                (1..=IDS).map(home).sum()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, placement);
criterion_main!(benches);
