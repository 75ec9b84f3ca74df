//! What TLS costs the gateway: memory of a quiet session, CPU of a message and of a handshake.
//!
//! Wants an optimised build and a quiet machine:
//! `cargo test --release -p portico-gateway --test e2e -- --ignored --nocapture tls_costs`

use super::client::{TlsClient, Tunnel, setup, trust};
use crate::harness::{Gateway, Peer, Setup};
use portico_wire::{encode::Encoder, message::Hello};
use rustls::{ClientConfig, client::Resumption};
use std::{io::Write, net::TcpStream, sync::Arc, time::Duration};

const SESSIONS: u64 = 5_000;
const MESSAGES: u32 = 10_000;
const ROUNDS: usize = 5;
const HANDSHAKES: u32 = 1_000;

fn quiet(setup: Setup) -> Setup {
    setup
        .set("server.shards", 1)
        .set("server.backend", "memory")
        .set("limits.logins_per_s", 0)
}

fn hello(gateway: &Gateway, user: u64) -> Vec<u8> {
    let token = gateway.token(user, 1);
    let mut bytes = Vec::new();
    let says = Hello {
        token: Some(&token),
        ..Hello::default()
    };
    Encoder::new().hello(&mut bytes, 1, &says);
    bytes
}

fn resident(gateway: &Gateway) -> u64 {
    gateway.process().resident_bytes()
}

/// Logged in and then quiet, one connection after the other.
fn hold_plain(gateway: &Gateway) -> Vec<TcpStream> {
    let clients = (1..=SESSIONS).map(|user| {
        let mut tcp = TcpStream::connect(gateway.listen).expect("a connection");
        tcp.write_all(&hello(gateway, user)).expect("a socket");
        tcp
    });
    let clients = clients.collect();
    gateway.await_metric("portico_sessions", |count| count == SESSIONS);
    clients
}

fn hold_tls(gateway: &Gateway, config: &Arc<ClientConfig>) -> Vec<TlsClient> {
    let clients = (1..=SESSIONS).map(|user| {
        let mut client = TlsClient::open(gateway.tls(), config);
        client.write(&hello(gateway, user)).expect("a socket");
        client
    });
    let clients = clients.collect();
    gateway.await_metric("portico_sessions", |count| count == SESSIONS);
    clients
}

#[test]
#[ignore = "measures; needs an optimised build and a quiet machine"]
fn tls_costs_memory() {
    let per_session = |before: u64, after: u64| (after.saturating_sub(before)) / SESSIONS;
    let gateway = quiet(setup()).start();
    let before = resident(&gateway);
    let held = hold_plain(&gateway);
    println!(
        "plain: {} B per session",
        per_session(before, resident(&gateway))
    );
    drop(held);
    drop(gateway);
    let gateway = quiet(setup()).set("tls.hibernate_after_s", 0).start();
    let config = trust(&gateway);
    let before = resident(&gateway);
    let held = hold_tls(&gateway, &config);
    println!(
        "TLS, awake: {} B per session",
        per_session(before, resident(&gateway))
    );
    drop(held);
    drop(gateway);
    let gateway = quiet(setup()).set("tls.hibernate_after_s", 1).start();
    let config = trust(&gateway);
    let before = resident(&gateway);
    let held = hold_tls(&gateway, &config);
    gateway.await_metric("portico_tls_hibernated", |count| count == SESSIONS);
    std::thread::sleep(Duration::from_secs(2));
    println!(
        "TLS, hibernated: {} B per session",
        per_session(before, resident(&gateway))
    );
    drop(held);
}

/// SEND, SENT, DELIVER, ACK and receipt of so many messages of 200 bytes, one after the other.
fn exchange(gateway: &Gateway, from: &mut Peer, to: &mut Peer, user: u64) -> Duration {
    let text = "x".repeat(200);
    let before = gateway.process().cpu();
    for _ in 0..MESSAGES {
        from.send(user, &text);
        to.receive();
    }
    (gateway.process().cpu() - before) / MESSAGES
}

#[test]
#[ignore = "measures; needs an optimised build and a quiet machine"]
fn tls_costs_cpu() {
    let gateway = quiet(setup()).start();
    let tunnel = Tunnel::to(&gateway);
    let (mut a, mut b) = (gateway.login(1, 1), gateway.login(2, 1));
    let (mut c, mut d) = (tunnel.login(&gateway, 3, 1), tunnel.login(&gateway, 4, 1));
    let mut differences = Vec::new();
    for _ in 0..ROUNDS {
        let plain = exchange(&gateway, &mut a, &mut b, 2);
        let sealed = exchange(&gateway, &mut c, &mut d, 4);
        println!("per message: plain {plain:?}, TLS {sealed:?}");
        differences.push(sealed.as_nanos() as i64 - plain.as_nanos() as i64);
    }
    differences.sort_unstable();
    println!("TLS adds {} ns (median)", differences[ROUNDS / 2]);
    let config = trust(&gateway);
    let mut without = (*config).clone();
    without.resumption = Resumption::disabled();
    let handshakes = |config: &Arc<ClientConfig>| {
        let before = gateway.process().cpu();
        for _ in 0..HANDSHAKES {
            TlsClient::open(gateway.tls(), config).close();
        }
        (gateway.process().cpu() - before) / HANDSHAKES
    };
    println!(
        "full handshake, connection included: {:?}",
        handshakes(&Arc::new(without))
    );
    println!("resumed: {:?}", handshakes(&config));
}
