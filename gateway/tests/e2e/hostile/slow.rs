//! Peers that are slow on purpose, and peers that are slow and mean well.

use super::{CLOSED_HANDSHAKE, CLOSED_SLOW, ended_with};
use crate::harness::{Gateway, PATIENCE, Peer, Setup};
use portico_wire::{
    CloseCode, Flags, Op, RouteHeader,
    encode::{Encoder, put_ping, put_routed},
    frame::ConvKind,
    message::Hello,
};
use socket2::SockRef;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Memory that one hostile connection may add to the process, the store's caches included.
const MEMORY_MAX: u64 = 96 << 20;
/// A neighbour's round trip, at the 99th percentile, beside a hostile peer. Milliseconds on an idle
/// machine; the bound is for two cores that run other tests as well.
const NEIGHBOUR_P99_MAX: Duration = Duration::from_secs(2);
/// Round trips that make a percentile worth its name.
const NEIGHBOUR_ROUNDS_MIN: usize = 50;

/// Two users exchange messages for as long as `hostile` runs.
fn beside_neighbours(gateway: &Gateway, hostile: impl FnOnce()) {
    let over = AtomicBool::new(false);
    let mut times = thread::scope(|scope| {
        let neighbours = scope.spawn(|| {
            let (mut one, mut two) = (gateway.login(81, 1), gateway.login(82, 1));
            let mut times = Vec::new();
            while !over.load(Ordering::Relaxed) || times.len() < NEIGHBOUR_ROUNDS_MIN {
                let start = Instant::now();
                one.send(82, "ping");
                two.receive();
                times.push(start.elapsed());
            }
            times
        });
        hostile();
        over.store(true, Ordering::Relaxed);
        neighbours.join().expect("the neighbours are well")
    });
    times.sort_unstable();
    let p99 = times[times.len() * 99 / 100];
    println!("neighbours: {} round trips, p99 {p99:?}", times.len());
    assert!(p99 <= NEIGHBOUR_P99_MAX, "p99 {p99:?}");
}

#[test]
fn a_peer_that_never_reads_its_messages_is_closed_and_loses_none() {
    const MESSAGES: usize = 250;
    let setup = Setup::new().set("limits.stalled_ms", 2_000);
    let gateway = setup.start();
    let process = gateway.process();
    gateway.still_serves();
    let closed = gateway.watch(CLOSED_SLOW);
    let behind = gateway.watch("portico_readers_behind_total");
    let memory = process.resident_bytes();
    // 15 MB: more than the kernel buffers between two sockets.
    let text = "x".repeat(60_000);
    let reader = gateway.login(2, 1);
    SockRef::from(reader.conn.stream())
        .set_recv_buffer_size(4_096)
        .expect("an option of every socket");
    beside_neighbours(&gateway, || {
        let mut sender = gateway.login(1, 1);
        for _ in 0..MESSAGES {
            sender.send(2, &text);
        }
        closed.moves_by(1);
    });
    behind.moves();
    let grown = process.resident_bytes().saturating_sub(memory);
    assert!(grown <= MEMORY_MAX, "the process grew by {grown} bytes");
    drop(reader);
    let mut reader = gateway.login(2, 1);
    for _ in 0..MESSAGES {
        assert_eq!(reader.receive().text.len(), text.len());
    }
    reader.has_no(Op::Deliver);
    gateway.still_serves();
}

#[test]
fn a_peer_that_asks_and_never_reads_is_closed() {
    let setup = Setup::new().set("limits.stalled_ms", 2_000);
    let gateway = setup.start();
    let process = gateway.process();
    gateway.still_serves();
    let closed = gateway.watch(CLOSED_SLOW);
    let memory = process.resident_bytes();
    beside_neighbours(&gateway, || {
        let mut peer = gateway.login(1, 1);
        let socket = SockRef::from(peer.conn.stream());
        socket.set_recv_buffer_size(4_096).expect("an option");
        let mut pings = Vec::new();
        for corr in 1..=1_000 {
            put_ping(&mut pings, corr, 60);
        }
        let deadline = Instant::now() + PATIENCE;
        // Until the gateway hangs up: it stops reading at some point, and writing fails then.
        while peer.conn.write_bytes(&pings).is_ok() {
            assert!(Instant::now() < deadline, "still served");
            if gateway.metrics().get(CLOSED_SLOW) > 0 {
                break;
            }
        }
        closed.moves_by(1);
    });
    let grown = process.resident_bytes().saturating_sub(memory);
    assert!(grown <= MEMORY_MAX, "the process grew by {grown} bytes");
    gateway.await_metric("portico_sockets", |count| count == 0);
    gateway.still_serves();
}

#[test]
fn a_peer_that_says_nothing_is_closed() {
    let setup = Setup::new().set("session.handshake_ms", 1_000);
    let gateway = setup.start();
    let closed = gateway.watch(CLOSED_HANDSHAKE);
    let mut conn = gateway.connect();
    assert_eq!(ended_with(&mut conn), CloseCode::HANDSHAKE_TIMEOUT);
    closed.moves_by(1);
    gateway.still_serves();
}

/// A byte now and then does not extend the deadline, and neither do PINGs.
#[test]
fn a_peer_that_stretches_the_handshake_is_closed() {
    let setup = Setup::new().set("session.handshake_ms", 2_000);
    let gateway = setup.start();
    let closed = gateway.watch(CLOSED_HANDSHAKE);
    let token = gateway.token(1, 1);
    let mut hello = Vec::new();
    let fields = Hello {
        token: Some(&token),
        ..Hello::default()
    };
    Encoder::new().hello(&mut hello, 1, &fields);
    let mut ping = Vec::new();
    put_ping(&mut ping, 1, 60);
    let ping = ping.repeat(10_000);
    beside_neighbours(&gateway, || {
        thread::scope(|scope| {
            for bytes in [&hello, &ping] {
                let mut conn = gateway.connect();
                scope.spawn(move || {
                    let start = Instant::now();
                    for byte in bytes {
                        // The pause is what the peer does, not a wait for anything.
                        thread::sleep(Duration::from_millis(50));
                        if conn.write_bytes(&[*byte]).is_err() {
                            break;
                        }
                        if start.elapsed() > Duration::from_secs(4) {
                            break;
                        }
                    }
                    let code = conn.expect_close(PATIENCE).expect("CLOSE");
                    assert_eq!(code, CloseCode::HANDSHAKE_TIMEOUT);
                });
            }
        });
    });
    closed.moves_by(2);
    gateway.still_serves();
}

/// Byte by byte, but all of it: slow is no offence.
#[test]
fn a_slow_client_that_means_well_is_served() {
    let gateway = Gateway::start();
    let mut other = gateway.login(2, 1);
    let token = gateway.token(1, 1);
    let mut bytes = Vec::new();
    let hello = Hello {
        token: Some(&token),
        ..Hello::default()
    };
    Encoder::new().hello(&mut bytes, 1, &hello);
    let route = RouteHeader {
        msg_id: crate::harness::new_msg_id(),
        conv: 2,
        conv_kind: ConvKind::DIRECT,
        ..RouteHeader::default()
    };
    let body = portico_client::plain_envelope("letter by letter");
    put_routed(&mut bytes, Op::Send as u8, Flags::NONE, 2, 0, &route, &body);
    let mut conn = gateway.connect();
    for byte in bytes {
        conn.write_bytes(&[byte]).expect("the gateway reads");
        thread::yield_now();
    }
    for op in [Op::Welcome, Op::Sent] {
        conn.expect_op(op, PATIENCE).expect("an answer");
    }
    assert_eq!(other.receive().text, "letter by letter");
    gateway.still_serves();
}

/// Reads everything, but slowly: every message comes, in order.
#[test]
fn a_slow_reader_gets_everything() {
    const MESSAGES: usize = 120;
    let gateway = Gateway::start();
    let mut reader: Peer = gateway.login(2, 1);
    SockRef::from(reader.conn.stream())
        .set_recv_buffer_size(65_536)
        .expect("an option of every socket");
    let mut sender = gateway.login(1, 1);
    let filler = "y".repeat(40_000);
    for n in 0..MESSAGES {
        sender.send(2, &format!("{n} {filler}"));
    }
    for n in 0..MESSAGES {
        let text = reader.receive().text;
        assert_eq!(text.split(' ').next(), Some(n.to_string().as_str()));
        thread::sleep(Duration::from_millis(2));
    }
    reader.has_no(Op::Deliver);
    assert_eq!(gateway.metrics().get(CLOSED_SLOW), 0);
}
