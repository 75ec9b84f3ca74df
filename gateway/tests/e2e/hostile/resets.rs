//! Connections that break at bad moments.

use crate::harness::{Gateway, Random, Setup, eventually, new_msg_id};
use portico_client::plain_envelope;
use portico_wire::{
    Flags, Op, RouteHeader,
    encode::{Encoder, put_routed},
    frame::ConvKind,
    ids::UserId,
    message::Hello,
};
use socket2::SockRef;
use std::{net::Shutdown, time::Duration};

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
            let id = new_msg_id();
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

/// What was said before the end of a stream counts, also where the gateway had stopped reading: more
/// messages than a connection may have open, in one write, and then a half-close.
#[test]
fn everything_before_a_half_close_is_taken() {
    const MESSAGES: u64 = 400;
    const OPEN_MAX: u64 = 16;
    let gateway = Setup::new().set("limits.requests_max", OPEN_MAX).start();
    let mut receiver = gateway.login(1, 1);
    let sender = gateway.login(2, 1);
    let mut out = Vec::new();
    for number in 0..MESSAGES {
        let route = RouteHeader {
            msg_id: new_msg_id(),
            conv: 1,
            conv_kind: ConvKind::DIRECT,
            ..RouteHeader::default()
        };
        let body = plain_envelope(&number.to_string());
        // Nobody waits for an answer.
        put_routed(&mut out, Op::Send as u8, Flags::NONE, 0, 0, &route, &body);
    }
    let mut conn = sender.conn;
    conn.write_bytes(&out).expect("the gateway reads");
    conn.stream()
        .shutdown(Shutdown::Write)
        .expect("an open socket");
    for number in 0..MESSAGES {
        assert_eq!(receiver.receive().text, number.to_string());
    }
    gateway.await_metric("portico_sockets", |count| count == 1);
}
