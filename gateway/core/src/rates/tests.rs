use super::*;
use crate::{Limits, ShardId};
use portico_wire::{
    encode::{put_ack, put_ping},
    ids::Seq,
    next_frame,
};

fn limiter(rates: Rates) -> Limiter {
    Limiter::new(&ShardConfig {
        limits: Limits {
            rates,
            ..Limits::default()
        },
        ..ShardConfig::new(ShardId(0), 1)
    })
}

const fn rate(per_s: u32, burst: u32) -> Rate {
    Rate { per_s, burst }
}

const OFF: Rate = rate(0, 0);

/// Of `count` frames at this time, how many are taken.
fn taken(
    limiter: &Limiter,
    conn: &mut ConnRates,
    frame: &[u8],
    count: usize,
    now_us: u64,
) -> usize {
    let frame = next_frame(frame, 1 << 20).unwrap().unwrap();
    (0..count)
        .filter(|_| limiter.take(conn, frame, now_us).is_ok())
        .count()
}

fn ack() -> Vec<u8> {
    let mut bytes = Vec::new();
    put_ack(&mut bytes, Seq(1), 1);
    bytes
}

#[test]
fn the_rate_holds_over_hours_and_a_pause_brings_one_burst() {
    let limiter = limiter(Rates {
        frames: rate(100, 40),
        bytes: OFF,
        ..Rates::default()
    });
    let (mut conn, frame) = (ConnRates::default(), ack());
    // The 32 bits come round four times.
    let start_us = u64::from(u32::MAX) - 1_000_000;
    assert_eq!(taken(&limiter, &mut conn, &frame, 1_000, start_us), 40);
    let mut sum = 0;
    for step in 1..=40_000_u64 {
        sum += taken(&limiter, &mut conn, &frame, 60, start_us + step * 300_000);
    }
    assert_eq!(sum, 40_000 * 30);
    let later_us = start_us + 40_000 * 300_000 + 3_000_000_000;
    assert_eq!(taken(&limiter, &mut conn, &frame, 1_000, later_us), 40);
    // A clock that jumps, in whatever direction, gives a burst at most.
    for now_us in [0, u64::MAX / 2, 7, u64::from(u32::MAX) + 8] {
        assert!(taken(&limiter, &mut conn, &frame, 1_000, now_us) <= 40);
        assert!(taken(&limiter, &mut conn, &frame, 1_000, now_us + 1_000_000) >= 40);
    }
}

#[test]
fn bytes_count_and_what_is_larger_than_the_burst_passes_alone() {
    let limiter = limiter(Rates {
        frames: OFF,
        bytes: rate(3_200, 64),
        ..Rates::default()
    });
    let (mut conn, frame) = (ConnRates::default(), ack());
    assert_eq!(frame.len(), 32);
    assert_eq!(taken(&limiter, &mut conn, &frame, 9, 50), 2);
    assert_eq!(taken(&limiter, &mut conn, &frame, 9, 10_050), 1);
    let mut large = Vec::new();
    let route = portico_wire::RouteHeader::default();
    let flags = portico_wire::Flags::NONE;
    portico_wire::encode::put_routed(&mut large, 32, flags, 0, 0, &route, &[0; 5_000]);
    assert_eq!(taken(&limiter, &mut conn, &large, 9, 10_060), 0);
    assert_eq!(taken(&limiter, &mut conn, &large, 9, 900_000), 1);
    assert_eq!(taken(&limiter, &mut conn, &frame, 9, 905_000), 0);
}

#[test]
fn only_messages_count_as_messages_and_each_refused_one_has_its_place() {
    let limiter = limiter(Rates {
        frames: OFF,
        bytes: OFF,
        messages: rate(50, 10),
        ..Rates::default()
    });
    let mut conn = ConnRates::default();
    let (mut send, mut ping) = (Vec::new(), Vec::new());
    let route = portico_wire::RouteHeader::default();
    let flags = portico_wire::Flags::NONE;
    portico_wire::encode::put_routed(&mut send, 32, flags, 1, 0, &route, b"x");
    put_ping(&mut ping, 1, 60);
    let frame = next_frame(&send, 1 << 20).unwrap().unwrap();
    for _ in 0..10 {
        assert_eq!(limiter.take(&mut conn, frame, 7), Ok(()));
    }
    for number in 1..=100 {
        let told = limiter.take(&mut conn, frame, 7);
        assert_eq!(told, Err((Limit::Messages, number * 20_000)));
    }
    assert_eq!(taken(&limiter, &mut conn, &ping, 100, 7), 100);
    for number in 1..=100 {
        let now_us = 7 + number * 20_000;
        assert_eq!(limiter.take(&mut conn, frame, now_us), Ok(()), "{number}");
    }
    // Nobody is told to wait for more than a minute, however long the line.
    for _ in 0..10_000 {
        let told = limiter.take(&mut conn, frame, 2_000_007);
        assert!(matches!(told, Err((Limit::Messages, 1..=WAIT_US_MAX))));
    }
}

#[test]
fn shards_share_the_rate_of_a_source_and_each_takes_a_few() {
    let part = |shards| Pace::share(rate(1_000, 400), shards);
    assert_eq!(part(1).unit >> FRACTION_BITS, 1_000);
    assert_eq!(part(1).burst_us, 400_000);
    assert_eq!(part(4).unit >> FRACTION_BITS, 4_000);
    assert_eq!(part(4).burst_us, 400_000, "100 of them");
    assert_eq!(part(200).burst_us, 8 * 200_000, "8 of them");
    assert_eq!(Pace::share(rate(10, 2), 4).burst_us, 800_000, "2 of them");
    assert_eq!(Pace::share(OFF, 4).unit, 0);
}
