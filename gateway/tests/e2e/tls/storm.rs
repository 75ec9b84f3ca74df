//! A storm of handshakes makes handshakes slow, and nothing else.
//!
//! The gateway is stopped while the storm gathers, so that all of it is there when it goes on, however
//! slow the machine is.

use super::client::{TlsClient, setup, trust};
use crate::harness::{Gateway, Setup};
use rustix::process::Signal;
use std::{
    io::{ErrorKind, Write},
    time::Instant,
};

const HANDSHAKING: &str = "portico_tls_handshaking";

/// All on one shard; who is slow is not to be closed here.
fn setup_storm() -> Setup {
    setup()
        .set("server.shards", 1)
        .set("tls.handshake_ms", 120_000)
}

/// So many clients that are accepted, and have their first flight ready.
fn gather(gateway: &Gateway, count: usize) -> Vec<(TlsClient, Vec<u8>)> {
    let config = trust(gateway);
    let storm = (0..count).map(|_| {
        let mut client = TlsClient::connect(gateway.tls(), &config);
        let mut first_flight = Vec::new();
        let written = client.tls.write_tls(&mut first_flight);
        written.expect("ClientHello");
        (client, first_flight)
    });
    let storm = storm.collect();
    gateway.await_metric(HANDSHAKING, |found| found == count as u64);
    storm
}

fn write_all(storm: &mut [(TlsClient, Vec<u8>)]) {
    for (client, first_flight) in storm {
        client.tcp.write_all(first_flight).expect("room");
    }
}

/// Of those that came at once, hardly any is answered before a live connection that spoke after them.
#[test]
fn messages_do_not_wait_behind_handshakes() {
    const STORM: usize = 300;
    let gateway = setup_storm().start();
    let mut bystander = gateway.login(1, 1);
    let mut worst = 0;
    for _ in 0..3 {
        let mut storm = gather(&gateway, STORM);
        gateway.child.signal(Signal::STOP);
        write_all(&mut storm);
        gateway.child.signal(Signal::CONT);
        let start = Instant::now();
        bystander.ping();
        let took = start.elapsed();
        let answered = storm.iter().filter(|(client, _)| {
            client.tcp.set_nonblocking(true).expect("an option");
            let answered = match client.tcp.peek(&mut [0]) {
                Ok(_) => true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => false,
                Err(error) => panic!("{error}"),
            };
            client.tcp.set_nonblocking(false).expect("an option");
            answered
        });
        let answered = answered.count();
        println!("{STORM} handshakes at once: PONG after {took:?}, {answered} of them");
        worst = worst.max(answered);
        // Every one of them is served in the end.
        for (mut client, _) in storm {
            client.shake_hands().expect("a handshake");
        }
        gateway.await_metric(HANDSHAKING, |count| count == 0);
    }
    assert!(worst < STORM / 2, "{worst} handshakes went first");
    gateway.await_metric("portico_sockets", |count| count == 1);
}

/// With that many waiting the door is held for those who come later, and opened again.
#[test]
fn a_crowd_waits_at_the_door() {
    const CROWD: usize = 1_200;
    let gateway = setup_storm().start();
    let held = gateway.watch("portico_tls_accept_held_total");
    let mut crowd = gather(&gateway, CROWD);
    gateway.child.signal(Signal::STOP);
    write_all(&mut crowd);
    gateway.child.signal(Signal::CONT);
    let config = trust(&gateway);
    let mut late = TlsClient::connect(gateway.tls(), &config);
    for (mut client, _) in crowd {
        client.shake_hands().expect("a handshake");
    }
    late.shake_hands().expect("a handshake");
    late.close();
    held.moves();
    gateway.await_metric("portico_sockets", |count| count == 0);
    gateway.still_serves();
}
