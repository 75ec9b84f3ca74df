//! More shards than cores: connections move to their users' shards, messages cross between them.

use crate::harness::{Peer, Setup};
use portico_wire::{
    Flags, Op, RouteHeader,
    encode::{Encoder, put_ping, put_routed},
    frame::ConvKind,
    message::Hello,
};

const USERS: u64 = 24;

#[test]
fn everybody_reaches_everybody() {
    for shards in [1, 3, 5] {
        let setup = Setup::new().flag("--shards", shards);
        let gateway = setup.start();
        let mut peers: Vec<_> = (1..=USERS).map(|user| gateway.login(user, 1)).collect();
        for round in 1..USERS {
            let mut requests = Vec::new();
            for (at, peer) in peers.iter_mut().enumerate() {
                let to = (at as u64 + round) % USERS + 1;
                requests.push(peer.post(to, &format!("{} to {to}", at + 1)).0);
            }
            for (peer, corr) in peers.iter_mut().zip(requests) {
                peer.sent(corr);
            }
            for (at, peer) in peers.iter_mut().enumerate() {
                let from = (at as u64 + USERS - round) % USERS + 1;
                assert_eq!(peer.receive().text, format!("{from} to {}", at + 1));
            }
        }
        gateway.await_metric("portico_sessions", |count| count == USERS);
        let metrics = gateway.metrics();
        let moved = metrics.get(r#"portico_handovers_total{result="moved"}"#);
        if shards == 1 {
            assert_eq!(moved, 0);
        } else {
            // Which shard accepts is the kernel's choice; that all choices were right for 24 users
            // has a chance of less than one in 10^11.
            assert!(moved > 0);
            assert!(metrics.get("portico_mesh_letters_total") > 0);
        }
        assert_eq!(
            metrics.get(r#"portico_handovers_total{result="failed"}"#),
            0
        );
    }
}

/// What a client writes behind HELLO without waiting arrives on the shard it is moved to.
#[test]
fn bytes_behind_hello_move_with_the_connection() {
    let gateway = Setup::new().flag("--shards", 3).start();
    let moved = gateway.watch(r#"portico_handovers_total{result="moved"}"#);
    for user in 100..130 {
        let token = gateway.token(user, 1);
        let hello = Hello {
            token: Some(&token),
            ..Hello::default()
        };
        let mut out = Vec::new();
        Encoder::new().hello(&mut out, 1, &hello);
        let route = RouteHeader {
            msg_id: crate::harness::new_msg_id(),
            conv: 1,
            conv_kind: ConvKind::DIRECT,
            ..RouteHeader::default()
        };
        let envelope = portico_client::plain_envelope(&user.to_string());
        put_routed(
            &mut out,
            Op::Send as u8,
            Flags::NONE,
            2,
            0,
            &route,
            &envelope,
        );
        put_ping(&mut out, 3, 60);
        let mut conn = gateway.connect();
        conn.write_bytes(&out).expect("the gateway reads");
        for (op, corr) in [(Op::Welcome, 1), (Op::Pong, 3), (Op::Sent, 2)] {
            // SENT waits for the store, SYNCED comes when it comes.
            let frame = conn
                .expect_op(op, crate::harness::PATIENCE)
                .unwrap_or_else(|error| panic!("no {op:?} for user {user}: {error}"));
            assert_eq!(frame.corr, corr);
        }
    }
    moved.moves();
    let mut reader: Peer = gateway.login(1, 1);
    let mut arrived: Vec<u64> = (100..130)
        .map(|_| reader.receive().text.parse().expect("a number"))
        .collect();
    assert!(arrived.is_sorted(), "they were sent one after the other");
    arrived.dedup();
    assert_eq!(arrived.len(), 30);
}
