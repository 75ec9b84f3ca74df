//! At the port of TLS: handshakes that are slow, that are none, that ask for less than TLS 1.3, or for
//! another handshake.

#[path = "../e2e/tls/client.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod client;

use crate::{
    harness::{Gateway, Random},
    siege::{self, Ground},
};
use client::{TlsClient, read_to_end, trust};
use std::{
    io::Write,
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

const CLIENTS: usize = 100;
const PAUSE: Duration = Duration::from_millis(10);
const HANDSHAKE: Duration = Duration::from_millis(700);
const TIMEOUT: &str = r#"portico_tls_handshakes_failed_total{reason="timeout"}"#;
const ALERT: u8 = 21;
const PROTOCOL_VERSION: u8 = 70;

/// Bystanders come through the plain port: what is measured is the gateway, not their own ciphers.
fn ground() -> Ground {
    let setup = siege::setup()
        .set("tls.listen", "127.0.0.1:0")
        .set("tls.self_signed", true)
        .set("tls.handshake_ms", HANDSHAKE.as_millis());
    Ground::new(&setup)
}

fn connect(gateway: &Gateway) -> TcpStream {
    TcpStream::connect(gateway.tls()).expect("the gateway accepts connections")
}

/// What a client gets that says `bytes` through TLS.
pub(crate) fn answer(gateway: &Gateway, bytes: &[u8]) -> Vec<u8> {
    let mut client = TlsClient::open(gateway.tls(), &trust(gateway));
    client.write(bytes).expect("it reads");
    client.read().expect("an answer")
}

/// Instead of a handshake.
pub(crate) fn say_garbage(gateway: &Gateway, bytes: &[u8]) {
    let mut stream = connect(gateway);
    // The gateway may have closed while this was written.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    read_to_end(&stream);
}

fn is_well(gateway: &Gateway) {
    gateway.await_metric("portico_sockets", |count| count == 0);
    gateway.await_metric("portico_tls_handshaking", |count| count == 0);
    gateway.await_metric("portico_unread_bytes", |bytes| bytes == 0);
    gateway.still_serves();
}

/// A ClientHello of a client that knows nothing newer than `version`: without extensions.
fn client_hello(version: [u8; 2]) -> Vec<u8> {
    let mut hello = version.to_vec();
    hello.extend([7; 32]);
    // No session; TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256; no compression.
    hello.extend([0, 0, 2, 0xc0, 0x2f, 1, 0]);
    let mut message = vec![1, 0, 0, hello.len() as u8];
    message.extend(hello);
    let mut record = vec![22, 3, 1, 0, message.len() as u8];
    record.extend(message);
    record
}

#[test]
fn slow_handshakes_cost_nobody_else() {
    let ground = ground();
    let gateway = &ground.gateway;
    let mut hello = Vec::new();
    let mut client = TlsClient::connect(gateway.tls(), &trust(gateway));
    client.tls.write_tls(&mut hello).expect("a ClientHello");
    drop(client);
    // Slower than it can end in time.
    assert!(hello.len() as u32 * PAUSE > 2 * HANDSHAKE);
    ground.besiege(|siege| {
        let timeouts = gateway.watch(TIMEOUT);
        let mut crowd: Vec<_> = (0..CLIENTS).map(|_| connect(gateway)).collect();
        let begun = Instant::now();
        for byte in &hello {
            if !siege.goes_on() && begun.elapsed() > 2 * HANDSHAKE {
                break;
            }
            // Half of them say nothing.
            for stream in crowd.iter_mut().step_by(2) {
                // Fails where the gateway has closed.
                let _ = stream.write_all(&[*byte]);
            }
            thread::sleep(PAUSE);
        }
        drop(crowd);
        timeouts.moves_by(CLIENTS as u64);
    });
    is_well(gateway);
}

/// Noise, noise behind the head of a handshake, records longer than there may be, and frames of the
/// plain protocol.
#[test]
fn garbage_instead_of_a_handshake_harms_nobody() {
    let ground = ground();
    let gateway = &ground.gateway;
    let mut random = Random::announced("garbage for TLS");
    ground.besiege(|siege| {
        while siege.goes_on() {
            let count = 5 + random.below(3_000) as usize;
            let mut bytes = random.bytes(count);
            let heads: [&[u8]; 4] = [
                &[],
                &[22, 3, 1, 0, 200],
                &[22, 3, 3, 0xff, 0xff],
                &[12, 0, 0, 0],
            ];
            let head = heads[random.below(4) as usize];
            bytes[..head.len()].copy_from_slice(head);
            say_garbage(gateway, &bytes);
        }
    });
    is_well(gateway);
}

#[test]
fn older_versions_are_refused_by_name() {
    let ground = ground();
    let gateway = &ground.gateway;
    let mut count = 0;
    ground.besiege(|siege| {
        while siege.goes_on() {
            // SSL 3.0 to TLS 1.2.
            let version = [3, (count % 4) as u8];
            count += 1;
            let mut stream = connect(gateway);
            stream.write_all(&client_hello(version)).expect("it reads");
            let answer = read_to_end(&stream);
            assert_eq!(answer.first(), Some(&ALERT), "{version:?}: {answer:?}");
            if version == [3, 3] {
                assert_eq!(answer.last(), Some(&PROTOCOL_VERSION), "{answer:?}");
            }
        }
    });
    is_well(gateway);
}

/// TLS 1.3 has no renegotiation: a second ClientHello, in the clear or as a part of a session, ends it.
#[test]
fn another_handshake_ends_the_session() {
    let ground = ground();
    let gateway = &ground.gateway;
    let trusted = trust(gateway);
    ground.besiege(|siege| {
        while siege.goes_on() {
            let mut client = TlsClient::open(gateway.tls(), &trusted);
            client
                .tcp
                .write_all(&client_hello([3, 3]))
                .expect("it reads");
            // The alert is sealed: it must end, and say nothing in the clear but its record's head.
            let answer = read_to_end(&client.tcp);
            assert_ne!(answer.first(), Some(&22), "{answer:?}");
        }
    });
    is_well(gateway);
}
