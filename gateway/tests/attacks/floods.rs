//! More connections than there is room for, from one address, of clients that never log in.

use crate::{
    harness::{Gateway, PATIENCE},
    siege::{Ground, setup},
};
use portico_client::RawConnection;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    thread,
    time::{Duration, Instant},
};

/// Of each of two shards.
const SLOTS: u64 = 300;
/// Open at a time: more than fit.
const FLOOD: usize = 900;

/// Between two connections of the one client that comes and goes.
const PAUSE: Duration = Duration::from_micros(500);

/// A connection that is begun and not waited for.
fn begin(gateway: &Gateway) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    socket.set_nonblocking(true).expect("any socket");
    // It is in progress: nobody has answered yet.
    let _ = socket.connect(&SockAddr::from(gateway.listen));
    socket
}

/// The table of connections is full of strangers: who is in is served, and when the strangers' time
/// is up others get in.
#[test]
fn one_address_that_opens_everything_keeps_it_for_the_handshake_at_most() {
    let setup = setup()
        .set("limits.connections_max", SLOTS)
        .set("session.handshake_ms", 800);
    let ground = Ground::new(&setup);
    let gateway = &ground.gateway;
    ground.besiege(|siege| {
        let flood: Vec<_> = (0..FLOOD).map(|_| begin(gateway)).collect();
        gateway.await_metric("portico_sockets", |count| count >= SLOTS);
        while siege.goes_on() {
            thread::sleep(Duration::from_millis(10));
        }
        // Those who waited outside come in when the first are told to go.
        let silent = r#"portico_connections_closed_total{code="4014"}"#;
        gateway.await_metric(silent, |count| count >= SLOTS);
        drop(flood);
    });
    let begun = Instant::now();
    gateway.still_serves();
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    gateway.await_metric("portico_sockets", |count| count == 0);
}

/// Connections that come and go, up to 2,000 a second, half of them by a reset.
#[test]
fn connections_that_come_and_go_leave_nothing() {
    let ground = Ground::new(&setup());
    let gateway = &ground.gateway;
    let mut opened = 0_u64;
    ground.besiege(|siege| {
        while siege.goes_on() {
            let Ok(conn) = RawConnection::connect(gateway.listen) else {
                continue;
            };
            opened += 1;
            thread::sleep(PAUSE);
            if opened.is_multiple_of(2) {
                let socket = socket2::SockRef::from(conn.stream());
                socket.set_linger(Some(Duration::ZERO)).expect("any socket");
            }
        }
    });
    assert!(opened > 200, "{opened}");
    gateway.await_metric("portico_sockets", |count| count == 0);
    gateway.await_metric("portico_connections", |count| count == 0);
    gateway.still_serves();
}
