//! Connections that break at bad moments.

use crate::harness::{Gateway, Random, Setup, eventually};
use portico_wire::{Flags, encode::Encoder, ids::UserId, message::Hello};
use socket2::SockRef;
use std::time::Duration;

/// Clients that reset their connections anywhere in a session leave nothing behind.
#[test]
fn resets_leave_nothing_behind() {
    let gateway = Setup::new().flag("--shards", 3).start();
    let mut random = Random::announced("resets");
    let mut neighbour = gateway.login(1, 1);
    for round in 0..300_u64 {
        let user = 100 + random.below(20);
        let token = gateway.token(user, 1);
        let mut bytes = Vec::new();
        let hello = Hello {
            token: Some(&token),
            ..Hello::default()
        };
        Encoder::new().hello(&mut bytes, 1, &hello);
        if random.below(3) == 0 {
            bytes.truncate(random.below(bytes.len() as u64) as usize);
        }
        let mut conn = gateway.connect();
        SockRef::from(conn.stream())
            .set_linger(Some(Duration::ZERO))
            .expect("an option of every socket");
        // Any of these may fail when the gateway is quicker.
        let _ = conn.write_bytes(&bytes);
        if random.below(2) == 0 {
            let id = crate::harness::new_msg_id();
            let _ = conn.send_text(2, UserId(1), id, Flags::NONE, "from a broken connection");
        }
        if random.below(3) == 0 {
            let _ = conn.read_frame(Duration::from_millis(random.below(20)));
        }
        drop(conn);
        if round % 30 == 0 {
            neighbour.ping();
        }
    }
    gateway.await_metric("portico_connections", |count| count == 1);
    gateway.await_metric("portico_sockets", |count| count == 1);
    gateway.await_metric("portico_unread_bytes", |bytes| bytes == 0);
    let failed = gateway
        .metrics()
        .get(r#"portico_handovers_total{result="failed"}"#);
    println!("{failed} hand-overs met a connection that was gone");
    assert_eq!(
        gateway
            .metrics()
            .get("portico_ring_stale_completions_total"),
        0
    );
    gateway.still_serves();
}

/// A client that takes over its own session again and again ends with exactly one.
#[test]
fn a_storm_of_takeovers_ends_with_one_session() {
    let gateway = Gateway::start();
    let connections: Vec<_> = (0..100)
        .map(|_| {
            let mut conn = gateway.connect();
            conn.hello(&gateway.token(1, 1)).expect("WELCOME");
            conn
        })
        .collect();
    let replaced = r#"portico_connections_closed_total{code="4024"}"#;
    gateway.await_metric(replaced, |count| count == 99);
    gateway.await_metric("portico_sessions", |count| count == 1);
    drop(connections);
    eventually("no sessions", || {
        (gateway.metrics().get("portico_sessions") == 0).then_some(())
    });
    gateway.await_metric("portico_sockets", |count| count == 0);
    gateway.still_serves();
}
