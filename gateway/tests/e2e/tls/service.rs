//! The same messages, through TLS: between shards, large and small, to readers that stop, across
//! sleep, death and goodbye.

use super::client::{TlsClient, Tunnel, await_plaintext, setup, trust};
use crate::harness::{Setup, eventually, quiet_port};
use portico_wire::{
    CloseCode, Op,
    encode::{Encoder, put_ack, put_ping},
    ids::Seq,
    message::Hello,
    next_frame,
};
use rustix::process::Signal;
use rustls::HandshakeKind;
use std::{
    fs::{self, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
    thread,
    time::Duration,
};

const USERS: u64 = 12;
const SESSIONS: &str = "portico_tls_sessions";
const HIBERNATED: &str = "portico_tls_hibernated";

/// Frames over several records, several frames in a record, and connections that move between
/// shards with what they have sent behind HELLO.
#[test]
fn everybody_reaches_everybody() {
    let gateway = setup().set("server.shards", 3).start();
    let tunnel = Tunnel::to(&gateway);
    let mut peers: Vec<_> = (1..=USERS)
        .map(|user| tunnel.login(&gateway, user, 1))
        .collect();
    for (round, length) in [1, 200, 20_000, 60_000].into_iter().enumerate() {
        let text = "x".repeat(length);
        let mut requests = Vec::new();
        for (at, peer) in peers.iter_mut().enumerate() {
            let to = (at as u64 + round as u64 + 1) % USERS + 1;
            requests.push(peer.post(to, &format!("{} {text}", at + 1)).0);
        }
        for (peer, corr) in peers.iter_mut().zip(requests) {
            peer.sent(corr);
        }
        for (at, peer) in peers.iter_mut().enumerate() {
            let from = (at as u64 + USERS - round as u64 - 1) % USERS + 1;
            assert_eq!(peer.receive().text, format!("{from} {text}"));
        }
    }
    gateway.await_metric(SESSIONS, |count| count == USERS);
    let metrics = gateway.metrics();
    assert!(metrics.get(r#"portico_handovers_total{result="moved"}"#) > 0);
    let full = metrics.get(r#"portico_tls_handshakes_total{result="full"}"#);
    let resumed = metrics.get(r#"portico_tls_handshakes_total{result="resumed"}"#);
    assert_eq!(full + resumed, USERS);
    drop(peers);
    gateway.await_metric(SESSIONS, |count| count == 0);
    gateway.await_metric("portico_sockets", |count| count == 0);
    let ended = gateway.metrics();
    assert_eq!(
        ended.get(r#"portico_tls_sessions_ended_total{reason="closed"}"#),
        USERS
    );
}

/// Two ports, one service.
#[test]
fn who_comes_through_tls_and_who_does_not_talk_to_each_other() {
    let gateway = setup().start();
    let tunnel = Tunnel::to(&gateway);
    let (mut one, mut two) = (tunnel.login(&gateway, 1, 1), gateway.login(2, 1));
    one.send(2, "sealed");
    assert_eq!(two.receive().text, "sealed");
    two.send(1, "in the open");
    assert_eq!(one.receive().text, "in the open");
}

#[test]
fn a_second_login_of_a_device_is_told_to_the_first() {
    let gateway = setup().set("server.shards", 3).start();
    let tunnel = Tunnel::to(&gateway);
    for user in 1..=4 {
        let mut first = tunnel.login(&gateway, user, 1);
        let mut second = tunnel.login(&gateway, user, 1);
        assert_eq!(first.closed(), CloseCode::SESSION_REPLACED);
        second.ping();
    }
}

/// HELLO in the segment of the handshake's last flight, frames behind it, and half a record: all of it
/// moves to the user's shard with the session.
#[test]
fn what_comes_with_the_end_of_the_handshake_moves_with_the_connection() {
    let gateway = setup().set("server.shards", 3).start();
    let config = trust(&gateway);
    let moved = gateway.watch(r#"portico_handovers_total{result="moved"}"#);
    for user in 1..=12 {
        let mut client = TlsClient::connect(gateway.tls(), &config);
        let token = gateway.token(user, 1);
        let says = Hello {
            token: Some(&token),
            ..Hello::default()
        };
        let mut frames = Vec::new();
        Encoder::new().hello(&mut frames, 1, &says);
        put_ping(&mut frames, 2, 60);
        // rustls holds it back until it may be sent.
        client.tls.writer().write_all(&frames).expect("room");
        while client.tls.is_handshaking() {
            let mut first = Vec::new();
            if client.tls.write_tls(&mut first).expect("memory") > 0 {
                client.tcp.write_all(&first).expect("a socket");
            } else {
                client.tls.read_tls(&mut client.tcp).expect("an answer");
                client.tls.process_new_packets().expect("a handshake");
            }
        }
        frames.clear();
        put_ping(&mut frames, 3, 60);
        client.tls.writer().write_all(&frames).expect("room");
        let mut last = Vec::new();
        while client.tls.write_tls(&mut last).expect("memory") > 0 {}
        let (now, later) = last.split_at(last.len() - 9);
        client.tcp.write_all(now).expect("a socket");
        let pong = |corr: u32| {
            move |got: &[u8]| {
                let mut rest = got;
                while let Ok(Some(frame)) = next_frame(rest, usize::MAX) {
                    if frame.known_op() == Some(Op::Pong) && frame.corr() == corr {
                        return true;
                    }
                    rest = &rest[frame.bytes().len()..];
                }
                false
            }
        };
        let got = await_plaintext(&mut client, pong(2));
        let frame = next_frame(&got, usize::MAX).expect("a frame");
        assert_eq!(frame.and_then(|frame| frame.known_op()), Some(Op::Welcome));
        client.tcp.write_all(later).expect("a socket");
        await_plaintext(&mut client, |more| pong(3)(&[&got[..], more].concat()));
        client.close();
    }
    moved.moves();
    gateway.await_metric("portico_sockets", |count| count == 0);
}

#[test]
fn a_reader_that_stops_gets_everything_in_order_later() {
    const MESSAGES: usize = 300;
    let gateway = setup().set("limits.stalled_ms", 60_000).start();
    let config = trust(&gateway);
    // Not through a tunnel: that would read.
    let mut reader = TlsClient::open(gateway.tls(), &config);
    let token = gateway.token(2, 1);
    let mut hello = Vec::new();
    let says = Hello {
        token: Some(&token),
        receive_max: 1_000,
        ..Hello::default()
    };
    Encoder::new().hello(&mut hello, 1, &says);
    reader.write(&hello).expect("the gateway reads");
    let mut sender = Tunnel::to(&gateway).login(&gateway, 1, 1);
    let behind = gateway.watch("portico_readers_behind_total");
    let recalled = gateway.watch("portico_messages_recalled_total");
    let text = "x".repeat(40_000);
    for number in 0..MESSAGES {
        sender.send(2, &format!("{number} {text}"));
    }
    behind.moves();
    recalled.moves();
    let mut bytes = Vec::new();
    let (mut next, mut seq) = (0, Seq(0));
    while next < MESSAGES {
        while let Some(frame) = portico_wire::next_frame(&bytes, usize::MAX).expect("frames") {
            if frame.known_op() == Some(Op::Deliver) {
                let body = portico_wire::message::Envelope::decode(frame.body());
                let body = body.expect("an Envelope").body.to_vec();
                let number = body.split(|byte| *byte == b' ').next().unwrap_or_default();
                assert_eq!(number, next.to_string().as_bytes());
                next += 1;
                seq = frame.route().expect("a route").seq;
            }
            let used = frame.bytes().len();
            bytes.drain(..used);
        }
        if next < MESSAGES {
            let mut ack = Vec::new();
            put_ack(&mut ack, seq, 1_000);
            reader.write(&ack).expect("the gateway reads");
            let more = reader.read().expect("more comes");
            assert!(!more.is_empty(), "closed after {next}");
            bytes.extend(more);
        }
    }
}

#[test]
fn quiet_sessions_hibernate_and_wake_in_both_directions() {
    let gateway = setup().set("tls.hibernate_after_s", 1).start();
    let tunnel = Tunnel::to(&gateway);
    let mut peers: Vec<_> = (1..=6)
        .map(|user| tunnel.login(&gateway, user, 1))
        .collect();
    for round in 0..3 {
        gateway.await_metric(HIBERNATED, |count| count == 6);
        assert_eq!(gateway.metrics().get(SESSIONS), 6);
        for at in 0..3 {
            let text = format!("{round} {at}");
            peers[at].send(at as u64 + 4, &text);
            assert_eq!(peers[at + 3].receive().text, text);
        }
    }
    drop(peers);
    gateway.await_metric(SESSIONS, |count| count == 0);
    assert_eq!(gateway.metrics().get(HIBERNATED), 0);
}

/// No timer of a session runs once it hibernates; the files are looked at every two seconds.
#[test]
fn hibernated_sessions_cost_no_cpu() {
    const COUNT: u64 = 100;
    const QUIET: Duration = Duration::from_secs(3);
    const CPU_MAX: Duration = Duration::from_millis(10);
    const LOOKS: usize = 5;
    let gateway = setup()
        .set("tls.hibernate_after_s", 1)
        .set("session.handshake_ms", 120_000)
        .start();
    let config = trust(&gateway);
    let crowd: Vec<_> = (0..COUNT)
        .map(|_| TlsClient::open(gateway.tls(), &config))
        .collect();
    gateway.await_metric(HIBERNATED, |count| count == COUNT);
    let process = gateway.process();
    let looks = (0..LOOKS).map(|_| {
        let before = process.cpu();
        thread::sleep(QUIET);
        process.cpu() - before
    });
    let quiet = looks.into_iter().any(|used| used <= CPU_MAX);
    assert!(quiet, "more than {CPU_MAX:?} in {QUIET:?}, {LOOKS} times");
    drop(crowd);
    gateway.await_metric("portico_sockets", |count| count == 0);
}

#[test]
fn clients_are_asked_to_leave_before_the_end() {
    let gateway = setup().set("drain.deadline_ms", 5_000).start();
    let tunnel = Tunnel::to(&gateway);
    let mut peer = tunnel.login(&gateway, 1, 1);
    // It has said nothing: nobody waits for it.
    let silent = TlsClient::connect(gateway.tls(), &trust(&gateway));
    gateway.await_metric("portico_tls_handshaking", |count| count == 1);
    gateway.child.signal(Signal::TERM);
    assert_eq!(peer.closed(), CloseCode::DRAINING);
    drop(peer);
    let mut gateway = gateway;
    assert_eq!(gateway.child.wait().code, Some(0));
    drop(silent);
}

/// The peer's close_notify is answered, and the socket closes.
#[test]
fn a_client_that_closes_is_answered() {
    let gateway = setup().start();
    let config = trust(&gateway);
    TlsClient::open(gateway.tls(), &config).close();
    let mut peer = TlsClient::open(gateway.tls(), &config);
    peer.write(b"PORT").expect("half a header of a frame");
    peer.close();
    gateway.await_metric("portico_sockets", |count| count == 0);
    let series = r#"portico_tls_alerts_total{direction="sent",alert="close_notify"}"#;
    gateway.await_metric(series, |count| count == 2);
}

/// A killed gateway forgets its sessions; whoever has the secret of the tickets resumes them.
#[test]
fn sessions_are_resumed_after_a_restart_with_the_same_secret() {
    let setup = setup().set("tls.listen", quiet_port());
    let secret = setup.directory().join("ticket-secret");
    fs::write(&secret, [7; 32]).expect("a file");
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("it is ours");
    let with_secret = setup.clone().set("tls.ticket_secret", secret.display());
    let first = with_secret.start();
    let config = trust(&first);
    let kind = |gateway: &crate::harness::Gateway| {
        let client = TlsClient::open(gateway.tls(), &config);
        let kind = client.tls.handshake_kind();
        client.close();
        kind
    };
    assert_eq!(kind(&first), Some(HandshakeKind::Full));
    assert_eq!(kind(&first), Some(HandshakeKind::Resumed));
    first.kill();
    let second = restart(&with_secret);
    assert_eq!(kind(&second), Some(HandshakeKind::Resumed));
    second.kill();
    // Without the file, the secret was that process's own.
    let third = restart(&setup);
    assert_eq!(kind(&third), Some(HandshakeKind::Full));
    assert_eq!(kind(&third), Some(HandshakeKind::Resumed));
}

fn restart(setup: &Setup) -> crate::harness::Gateway {
    eventually("the port is free again", || Some(setup.start()))
}
