//! Who is turned away at the TLS port, how soon, and what is said.

use super::client::{TlsClient, read_to_end, setup, trust};
use crate::harness::{Gateway, Random};
use portico_client::RawConnection;
use portico_wire::{encode::Encoder, message::Hello};
use socket2::SockRef;
use std::{
    io::{self, Write},
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

const ALERT: u8 = 21;
const MALFORMED: &str = r#"portico_tls_handshakes_failed_total{reason="malformed"}"#;
const TIMEOUT: &str = r#"portico_tls_handshakes_failed_total{reason="timeout"}"#;
const INCOMPATIBLE: &str = r#"portico_tls_handshakes_failed_total{reason="incompatible"}"#;

fn connect(gateway: &Gateway) -> TcpStream {
    TcpStream::connect(gateway.tls()).expect("the gateway accepts connections")
}

/// All are gone, nothing is left of them, and the gateway serves.
fn is_well(gateway: &Gateway) {
    gateway.await_metric("portico_sockets", |count| count == 0);
    gateway.await_metric("portico_tls_handshaking", |count| count == 0);
    gateway.await_metric("portico_unread_bytes", |count| count == 0);
    gateway.still_serves();
}

/// It is told by an alert, in the clear: no key was agreed on.
#[test]
fn a_client_without_tls_gets_an_alert() {
    let gateway = setup().start();
    let malformed = gateway.watch(MALFORMED);
    let mut hello = Vec::new();
    let says = Hello {
        token: Some("x"),
        ..Hello::default()
    };
    Encoder::new().hello(&mut hello, 1, &says);
    let mut stream = connect(&gateway);
    stream.write_all(&hello).expect("a socket");
    let answer = read_to_end(&stream);
    assert_eq!((answer.first(), answer.len()), (Some(&ALERT), 7));
    malformed.moves_by(1);
    is_well(&gateway);
}

#[test]
fn noise_is_turned_away() {
    let gateway = setup().start();
    let mut random = Random::announced("noise_is_turned_away");
    for _ in 0..50 {
        let length = 1 + random.below(3_000) as usize;
        let mut noise: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        // Half of it looks like a handshake at first.
        if random.below(2) == 0 {
            let head = [22, 3, 1, 0, 200];
            let length = noise.len().min(head.len());
            noise[..length].copy_from_slice(&head[..length]);
        }
        let mut stream = connect(&gateway);
        stream.write_all(&noise).expect("a socket");
        let _ = stream.shutdown(std::net::Shutdown::Write);
        read_to_end(&stream);
    }
    is_well(&gateway);
}

#[test]
fn another_protocol_is_refused_and_none_is_not() {
    let gateway = setup().start();
    let incompatible = gateway.watch(INCOMPATIBLE);
    let mut config = (*trust(&gateway)).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut client = TlsClient::connect(gateway.tls(), &Arc::new(config.clone()));
    let error = client.shake_hands().expect_err("no protocol in common");
    assert!(
        error.to_string().contains("NoApplicationProtocol"),
        "{error}"
    );
    drop(client);
    incompatible.moves_by(1);
    config.alpn_protocols.clear();
    TlsClient::open(gateway.tls(), &Arc::new(config)).close();
    is_well(&gateway);
}

/// Who says nothing, who says it byte by byte, and who stops half-way: all have the same time.
#[test]
fn slow_handshakes_end_at_the_deadline() {
    const LIMIT: Duration = Duration::from_millis(700);
    let gateway = setup().set("tls.handshake_ms", LIMIT.as_millis()).start();
    let config = trust(&gateway);
    let timeouts = gateway.watch(TIMEOUT);
    let start = Instant::now();
    let silent = connect(&gateway);
    let mut half = TlsClient::connect(gateway.tls(), &config);
    let mut first_flight = Vec::new();
    half.tls.write_tls(&mut first_flight).expect("ClientHello");
    half.tcp.write_all(&first_flight).expect("a socket");
    // Its header says that 16 KiB follow.
    let mut slow = connect(&gateway);
    let bytes = [22, 3, 1, 64, 0].into_iter().chain(std::iter::repeat(1));
    for byte in bytes {
        std::thread::sleep(Duration::from_millis(20));
        assert!(start.elapsed() < 20 * LIMIT, "it may go on for ever");
        if slow.write_all(&[byte]).is_err() {
            break;
        }
    }
    read_to_end(&silent);
    assert!(start.elapsed() >= LIMIT);
    read_to_end(&half.tcp);
    timeouts.moves_by(3);
    is_well(&gateway);
}

/// Records that never end: together they may hold what incomplete frames may, and no more.
#[test]
fn unfinished_handshakes_hold_a_bounded_memory() {
    const CLIENTS: usize = 200;
    let setup = setup().set("server.shards", 1);
    let gateway = setup.set("limits.unread_bytes_max", 1 << 20).start();
    let shed = gateway.watch("portico_unread_shed_total");
    let mut part = vec![22, 3, 1, 64, 0];
    part.resize(12_000, 1);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut stream = connect(&gateway);
            // Who comes late may be turned away before all of it is written.
            let _ = stream.write_all(&part);
            stream
        })
        .collect();
    shed.moves();
    // 12,000 bytes each fit into a MiB 87 times; what is being read comes on top.
    gateway.await_metric("portico_tls_handshaking", |count| count <= 100);
    drop(clients);
    is_well(&gateway);
}

/// After the handshake the deadline for HELLO begins, and its end is said in the protocol's words.
#[test]
fn a_client_that_says_nothing_after_its_handshake_is_closed() {
    let gateway = setup().set("session.handshake_ms", 500).start();
    let config = trust(&gateway);
    let mut client = TlsClient::open(gateway.tls(), &config);
    let closed = client.read().expect("CLOSE");
    let frame = portico_wire::next_frame(&closed, usize::MAX).expect("a frame");
    let op = frame.and_then(|frame| frame.known_op());
    assert_eq!(op, Some(portico_wire::Op::Close));
    assert_eq!(client.read().expect("close_notify"), b"");
    is_well(&gateway);
}

#[test]
fn a_record_that_was_changed_on_its_way_ends_the_session() {
    let gateway = setup().start();
    let series = r#"portico_tls_sessions_ended_total{reason="bad_record"}"#;
    let bad = gateway.watch(series);
    let mut client = TlsClient::open(gateway.tls(), &trust(&gateway));
    io::Write::write_all(&mut client.tls.writer(), b"anything").expect("room");
    let mut record = Vec::new();
    client.tls.write_tls(&mut record).expect("a record");
    *record.last_mut().expect("a tag") ^= 1;
    client.tcp.write_all(&record).expect("a socket");
    let error = client.read().expect_err("an alert");
    assert!(error.to_string().contains("BadRecordMac"), "{error}");
    bad.moves_by(1);
    drop(client);
    is_well(&gateway);
}

/// On the plain port nothing has changed: a ClientHello there is no frame.
#[test]
fn a_tls_client_at_the_plain_port_is_turned_away() {
    let gateway = setup().start();
    let mut client = TlsClient::connect(gateway.tls(), &trust(&gateway));
    let mut first_flight = Vec::new();
    client
        .tls
        .write_tls(&mut first_flight)
        .expect("ClientHello");
    let mut plain: RawConnection = gateway.connect();
    plain.write_bytes(&first_flight).expect("a socket");
    plain
        .expect_end(crate::harness::PATIENCE)
        .expect("it is closed");
    drop(client);
    is_well(&gateway);
}

/// Before, during and after the handshake, and while the connection moves to its user's shard: by a
/// reset or in order, nothing is left of it.
#[test]
fn connections_that_break_off_anywhere_leave_nothing() {
    const CONNECTIONS: u64 = 200;
    let gateway = setup().set("server.shards", 3).start();
    let config = trust(&gateway);
    let mut random = Random::announced("connections_that_break_off_anywhere_leave_nothing");
    for user in 1..=CONNECTIONS {
        let mut client = TlsClient::connect(gateway.tls(), &config);
        if random.below(2) == 0 {
            let reset = Some(Duration::ZERO);
            let socket = SockRef::from(&client.tcp);
            socket.set_linger(reset).expect("an option of every socket");
        }
        let step = random.below(5);
        if step == 1 {
            let mut first_flight = Vec::new();
            client
                .tls
                .write_tls(&mut first_flight)
                .expect("ClientHello");
            let part = random.below(first_flight.len() as u64 + 1) as usize;
            client
                .tcp
                .write_all(&first_flight[..part])
                .expect("a socket");
        } else if step > 1 {
            client.shake_hands().expect("a handshake");
        }
        if step > 2 {
            let token = gateway.token(user, 1);
            let mut hello = Vec::new();
            let says = Hello {
                token: Some(&token),
                ..Hello::default()
            };
            Encoder::new().hello(&mut hello, 1, &says);
            client.write(&hello).expect("a socket");
        }
        if step > 3 {
            std::thread::sleep(Duration::from_micros(random.below(3_000)));
        }
    }
    for series in ["portico_tls_sessions", "portico_tls_hibernated"] {
        gateway.await_metric(series, |count| count == 0);
    }
    is_well(&gateway);
    let stale = gateway
        .metrics()
        .get("portico_ring_stale_completions_total");
    assert_eq!(stale, 0);
}
