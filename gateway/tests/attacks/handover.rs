//! Resets while a connection is on its way from the shard that accepted it to its user's own.

use crate::{
    harness::{Gateway, Random, eventually},
    siege::{Ground, setup},
};
use portico_wire::{Flags, Op, encode::Encoder, message::Hello};
use socket2::SockRef;
use std::{
    thread,
    time::{Duration, Instant},
};

const THREADS: u64 = 3;
/// Between two of a thread: several hundred a second together. More than a shard can accept delays
/// everybody, which is what bounds of connections are for.
const PAUSE: Duration = Duration::from_millis(4);
/// A hand-over takes some hundred microseconds from the moment HELLO is there.
const MOMENT_US: u64 = 800;
/// What allocators keep of one siege after another.
const GROWTH_MAX: u64 = 8 << 20;
const MOVED: &str = r#"portico_handovers_total{result="moved"}"#;
const FAILED: &str = r#"portico_handovers_total{result="failed"}"#;

/// HELLO, a message behind it, and a reset a random moment later.
fn strike(gateway: &Gateway, token: &str, random: &mut Random) {
    let mut bytes = Vec::new();
    let hello = Hello {
        token: Some(token),
        ..Hello::default()
    };
    Encoder::new().hello(&mut bytes, 1, &hello);
    let mut conn = gateway.connect();
    let socket = SockRef::from(conn.stream());
    socket.set_linger(Some(Duration::ZERO)).expect("any socket");
    let _ = conn.write_bytes(&bytes);
    if random.below(2) == 0 {
        let id = crate::harness::new_msg_id();
        let to = portico_wire::ids::UserId(9_999);
        let _ = conn.send_text(2, to, id, Flags::NONE, "from a connection on its way");
    }
    // The sleep of the system is too coarse for such a moment.
    let until = Instant::now() + Duration::from_micros(random.below(MOMENT_US));
    while Instant::now() < until {
        thread::yield_now();
    }
    drop(conn);
}

/// Strikes from each thread, with so long a pause between two, beside bystanders.
fn flood(ground: &Ground, seeds: &mut Random, pause: Duration) {
    let gateway = &ground.gateway;
    let tokens: Vec<_> = (1_000..1_060).map(|user| gateway.token(user, 1)).collect();
    ground.besiege(|siege| {
        thread::scope(|scope| {
            for _ in 0..THREADS {
                let (mut random, tokens) = (Random::new(seeds.next()), &tokens);
                scope.spawn(move || {
                    while siege.goes_on() {
                        let token = &tokens[random.below(60) as usize];
                        strike(gateway, token, &mut random);
                        thread::sleep(pause);
                    }
                });
            }
        });
    });
}

#[test]
fn resets_on_the_way_between_shards_leave_nothing() {
    // Three of four connections move.
    let ground = Ground::new(
        &setup()
            .flag("--shards", 4)
            .set("server.core_dumps", "allowed"),
    );
    let gateway = &ground.gateway;
    let process = gateway.process();
    let mut seeds = Random::announced("hand-over");
    let mut siege_once = || {
        flood(&ground, &mut seeds, PAUSE);
        for series in [
            "portico_sockets",
            "portico_connections",
            "portico_sessions",
            "portico_users",
            "portico_unread_bytes",
            "portico_outbox_bytes",
            "portico_messages_in_flight",
        ] {
            gateway.await_metric(series, |count| count == 0);
        }
        process.resident_bytes()
    };
    // The first makes what is kept for reuse.
    let memory = siege_once();
    let files = process.descriptors();
    let memory_after = siege_once();
    eventually("as many descriptors as before", || {
        (process.descriptors() <= files).then_some(())
    });
    let metrics = gateway.metrics();
    let (moved, failed) = (metrics.get(MOVED), metrics.get(FAILED));
    println!(
        "{moved} moved, {failed} gone on the way; {} KiB more",
        memory_after.saturating_sub(memory) >> 10
    );
    assert!(moved > 200, "{moved}");
    let grown = memory_after.saturating_sub(memory);
    assert!(grown < GROWTH_MAX, "{grown} bytes more");
    assert_eq!(metrics.get("portico_ring_stale_completions_total"), 0);
    // Who was struck is served as before.
    let mut peer = gateway.login(1_000, 1);
    peer.send(1_001, "still here");
    let mut reader = gateway.login(1_001, 1);
    assert_eq!(reader.receive().text, "still here");
    reader.has_no(Op::Deliver);
    gateway.still_serves();
}

/// As fast as three threads can: what such a flood brings stands in one queue with everybody's frames.
#[test]
fn logins_that_are_reset_without_a_pause_hold_up_nobody() {
    let ground = Ground::new(&setup().flag("--shards", 4));
    let gateway = &ground.gateway;
    flood(
        &ground,
        &mut Random::announced("resets without a pause"),
        Duration::ZERO,
    );
    let metrics = gateway.metrics();
    println!("{} accepted", metrics.get("portico_sockets_accepted_total"));
    gateway.still_serves();
}
