//! A storm of handshakes makes handshakes slow, and nothing else.

use super::client::{TlsClient, setup, trust};
use std::{
    io::{ErrorKind, Write},
    time::Instant,
};

/// All of them at once, on one shard.
const STORM: usize = 300;

/// All ClientHellos are in the sockets before a live connection says something. Its answer comes after
/// a few handshakes, not after all of them: however slow the machine is, most are unanswered then.
#[test]
fn messages_do_not_wait_behind_handshakes() {
    let gateway = setup().set("server.shards", 1).start();
    let config = trust(&gateway);
    let mut bystander = gateway.login(1, 1);
    let mut worst = 0;
    for _ in 0..3 {
        let mut storm: Vec<_> = (0..STORM)
            .map(|_| {
                let mut client = TlsClient::connect(gateway.tls(), &config);
                let mut first_flight = Vec::new();
                client
                    .tls
                    .write_tls(&mut first_flight)
                    .expect("ClientHello");
                (client, first_flight)
            })
            .collect();
        gateway.await_metric("portico_tls_handshaking", |count| count == STORM as u64);
        for (client, first_flight) in &mut storm {
            client.tcp.set_nonblocking(true).expect("an option");
            client.tcp.write_all(first_flight).expect("room");
        }
        let start = Instant::now();
        bystander.ping();
        let took = start.elapsed();
        let answered = storm
            .iter_mut()
            .filter(|(client, _)| match client.tcp.peek(&mut [0]) {
                Ok(_) => true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => false,
                Err(error) => panic!("{error}"),
            });
        let answered = answered.count();
        println!("{STORM} handshakes at once: PONG after {took:?}, {answered} of them");
        worst = worst.max(answered);
        // Every one of them is served in the end.
        for (mut client, _) in storm {
            client.tcp.set_nonblocking(false).expect("an option");
            client.shake_hands().expect("a handshake");
        }
        gateway.await_metric("portico_tls_handshaking", |count| count == 0);
    }
    assert!(worst < STORM / 2, "{worst} handshakes went first");
    gateway.await_metric("portico_sockets", |count| count == 1);
}
