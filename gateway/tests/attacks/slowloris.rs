//! Clients that keep what they hold by hardly using it: a connection that says nothing, a HELLO and
//! a body that come byte by byte.

use crate::{
    harness::{Gateway, PATIENCE},
    siege::{Ground, setup},
};
use portico_client::RawConnection;
use portico_wire::{
    CloseCode, Flags, Op, RouteHeader,
    encode::{Encoder, put_routed},
    frame::ConvKind,
    message::Hello,
};
use std::{
    thread,
    time::{Duration, Instant},
};

const CLIENTS: usize = 200;
const CLOSED_IDLE: &str = r#"portico_connections_closed_total{code="4002"}"#;
const CLOSED_HANDSHAKE: &str = r#"portico_connections_closed_total{code="4014"}"#;
/// Between two bytes of the same client.
const PAUSE: Duration = Duration::from_millis(10);

fn crowd(gateway: &Gateway) -> Vec<RawConnection> {
    (0..CLIENTS).map(|_| gateway.connect()).collect()
}

/// One byte of `bytes` from each, as far as they are taken.
fn drip(crowd: &mut [RawConnection], bytes: &[u8], at: usize) {
    if let Some(byte) = bytes.get(at) {
        for conn in crowd {
            // Fails where the gateway has closed.
            let _ = conn.write_bytes(&[*byte]);
        }
    }
}

fn are_told(crowd: Vec<RawConnection>, code: CloseCode) {
    for mut conn in crowd {
        assert_eq!(conn.expect_close(PATIENCE).expect("CLOSE"), code);
    }
}

#[test]
fn connections_that_say_nothing_are_closed_and_cost_nobody_else() {
    let ground = Ground::new(&setup().set("session.handshake_ms", 1_000));
    let gateway = &ground.gateway;
    ground.besiege(|siege| {
        let closed = gateway.watch(CLOSED_HANDSHAKE);
        let crowd = crowd(gateway);
        while siege.goes_on() {
            thread::sleep(PAUSE);
        }
        are_told(crowd, CloseCode::HANDSHAKE_TIMEOUT);
        closed.moves_by(CLIENTS as u64);
    });
    gateway.await_metric("portico_sockets", |count| count == 0);
    gateway.still_serves();
}

#[test]
fn a_hello_byte_by_byte_wins_no_time() {
    let ground = Ground::new(&setup().set("session.handshake_ms", 1_000));
    let gateway = &ground.gateway;
    let token = gateway.token(1, 1);
    let hello = Hello {
        token: Some(&token),
        ..Hello::default()
    };
    let mut bytes = Vec::new();
    Encoder::new().hello(&mut bytes, 1, &hello);
    // Slower than it can end in time.
    assert!(bytes.len() as u32 * PAUSE > Duration::from_secs(2));
    ground.besiege(|siege| {
        let closed = gateway.watch(CLOSED_HANDSHAKE);
        let mut crowd = crowd(gateway);
        let begun = Instant::now();
        for at in 0.. {
            if !siege.goes_on() && begun.elapsed() > Duration::from_millis(1_500) {
                break;
            }
            drip(&mut crowd, &bytes, at);
            thread::sleep(PAUSE);
        }
        drop(crowd);
        closed.moves_by(CLIENTS as u64);
    });
    gateway.await_metric("portico_unread_bytes", |bytes| bytes == 0);
    gateway.still_serves();
}

/// A body counts as a sign of life when it is whole: the heartbeat ends who drags one out.
#[test]
fn a_body_byte_by_byte_is_no_heartbeat() {
    let setup = setup()
        .set("session.heartbeat_s", 1)
        .set("session.heartbeat_min_s", 1);
    let ground = Ground::new(&setup);
    let gateway = &ground.gateway;
    let route = RouteHeader {
        msg_id: crate::harness::new_msg_id(),
        conv: 2,
        conv_kind: ConvKind::DIRECT,
        ..RouteHeader::default()
    };
    let mut bytes = Vec::new();
    let body = [b'x'; 60_000];
    put_routed(&mut bytes, Op::Send as u8, Flags::NONE, 2, 0, &route, &body);
    let mut crowd = crowd(gateway);
    for (user, conn) in (1_000..).zip(&mut crowd) {
        conn.hello(&gateway.token(user, 1)).expect("WELCOME");
    }
    let mut at = 0;
    ground.besiege(|siege| {
        while siege.goes_on() {
            drip(&mut crowd, &bytes, at);
            at += 1;
            thread::sleep(PAUSE);
        }
    });
    let held = gateway.await_metric("portico_unread_bytes", |bytes| bytes > 0);
    // What has come, not what was announced.
    assert!(held <= (CLIENTS * (at + 8_192)) as u64, "{held}");
    let gateway = ground.calm();
    let begun = Instant::now();
    while gateway.metrics().get(CLOSED_IDLE) == 0 {
        assert!(begun.elapsed() < PATIENCE, "still served");
        drip(&mut crowd, &bytes, at);
        at += 1;
        thread::sleep(Duration::from_millis(200));
    }
    gateway.await_metric(CLOSED_IDLE, |closed| closed == CLIENTS as u64);
    drop(crowd);
    gateway.await_metric("portico_unread_bytes", |bytes| bytes == 0);
    gateway.still_serves();
}
