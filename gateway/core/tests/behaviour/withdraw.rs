//! Delete for everyone: the author's body goes from the store, everybody is told in order, and a
//! repetition changes nothing.

use crate::support::{assert_idle, error, ops, reply, sent, user_at, world};
use portico_core::{
    Counter,
    store::StoreError,
    testing::{CmdKind, Outgoing, World},
};
use portico_wire::{
    ErrorCode, Op, RouteHeader,
    encode::{Encoder, put_routed},
    frame::{ConvKind, Flags},
    ids::{ConvId, ConvSeq, DeviceId, MsgId, UserId},
    message::history::Revoke,
};

struct Asked {
    peer: u64,
    target: Revoke,
    conv_kind: ConvKind,
    flags: Flags,
    corr: u32,
    msg_id: MsgId,
}

impl Asked {
    fn post(&self, world: &mut World, client: usize) {
        let route = RouteHeader {
            msg_id: self.msg_id,
            conv: self.peer,
            conv_kind: self.conv_kind,
            ..RouteHeader::default()
        };
        let (mut bytes, mut encoder) = (Vec::new(), Encoder::new());
        let body = encoder.revoke(&self.target);
        let op = Op::Revoke as u8;
        put_routed(&mut bytes, op, self.flags, self.corr, 0, &route, body);
        world.write(client, &bytes);
    }
}

/// Alice has said something to Bob, and both have a second device.
struct Talk {
    world: World,
    users: [u64; 2],
    /// Alice's two and Bob's two.
    clients: [usize; 4],
    message: Outgoing,
    place: ConvSeq,
}

impl Talk {
    fn new(shards: u16) -> Self {
        let users = [user_at(0, shards, 0), user_at(shards - 1, shards, 1)];
        let mut world = world(shards);
        let [a, b] = users;
        let clients = [(a, 1), (a, 2), (b, 1), (b, 2)];
        let clients = clients.map(|(user, device)| world.login(user, device));
        let message = world.say(clients[0], b, "not meant so");
        let place = sent(&world.run_and_take(clients[0]), message.corr).0;
        world.advance(3_000);
        clients.iter().for_each(|client| drop(world.take(*client)));
        Self {
            world,
            users,
            clients,
            message,
            place,
        }
    }

    /// A withdrawal of it by its author's first device.
    fn asked(&mut self) -> Asked {
        Asked {
            peer: self.users[1],
            target: Revoke {
                seq: self.place,
                user: UserId(self.users[0]),
                device: DeviceId(1),
                msg_id: self.message.msg_id,
            },
            conv_kind: ConvKind::DIRECT,
            flags: Flags::NONE,
            corr: self.world.corr(self.clients[0]),
            msg_id: self.world.msg_id(),
        }
    }

    fn conv(&self) -> ConvId {
        ConvId::direct(UserId(self.users[0]), UserId(self.users[1]))
    }

    /// The bodies of the conversation's entries, by operation.
    fn stored(&self) -> Vec<(u8, usize)> {
        let entries = self.world.store.conversation(self.conv());
        entries.map(|entry| (entry.op, entry.body.len())).collect()
    }
}

#[test]
fn the_body_goes_and_every_device_is_told_in_order() {
    for shards in 1..=2 {
        let mut talk = Talk::new(shards);
        let asked = talk.asked();
        asked.post(&mut talk.world, talk.clients[0]);
        talk.world.run();
        let (place, again) = sent(&talk.world.take(talk.clients[0]), asked.corr);
        assert!(place > talk.place && !again);
        for (client, conv) in [(1, 1), (2, 0), (3, 0)] {
            let got = talk.world.take(talk.clients[client]);
            let told = got.iter().find(|got| got.op() == Op::Revoke);
            let told = told.unwrap_or_else(|| panic!("device {client}: {got:?}"));
            let route = told.route();
            assert!(told.is_sequenced());
            assert_eq!(route.conv, talk.users[conv]);
            assert_eq!(route.user, UserId(talk.users[0]));
            assert_eq!((route.conv_seq, route.msg_id), (place, asked.msg_id));
            assert_eq!(Revoke::decode(told.body()), Ok(asked.target));
        }
        let stored = talk.stored();
        assert_eq!(stored.len(), 2);
        assert_eq!(stored[0], (Op::Deliver as u8, 0), "the entry stays, empty");
        assert_eq!(stored[1].0, Op::Revoke as u8);
        assert_eq!(talk.world.count(Counter::Withdrawn), 1);
        // Who comes later gets the message without its body.
        let late = talk.world.login(talk.users[1], 3);
        let got = talk.world.take(late);
        let entry = got.iter().find(|got| got.op() == Op::Deliver);
        let entry = entry.expect("it is replayed");
        assert_eq!(entry.body(), b"");
        assert_eq!(entry.route().msg_id, talk.message.msg_id);
        assert!(ops(&got).contains(&Op::Revoke));
        talk.world.advance(3_000);
        assert_idle(&talk.world);
    }
}

#[test]
fn only_what_is_there_and_only_by_its_author() {
    let mut talk = Talk::new(2);
    let right = talk.asked().target;
    let wrong = [
        Revoke {
            seq: ConvSeq(right.seq.0 + 1),
            ..right
        },
        Revoke {
            seq: ConvSeq(0),
            ..right
        },
        Revoke {
            seq: ConvSeq(u64::MAX),
            ..right
        },
        Revoke {
            user: UserId(talk.users[1]),
            ..right
        },
        Revoke {
            device: DeviceId(2),
            ..right
        },
        Revoke {
            msg_id: MsgId(1),
            ..right
        },
    ];
    for target in wrong {
        let asked = Asked {
            target,
            ..talk.asked()
        };
        asked.post(&mut talk.world, talk.clients[0]);
        let got = talk.world.run_and_take(talk.clients[0]);
        let code = reply(&got, asked.corr).error_reply().expect("an error");
        assert_eq!(code.code, ErrorCode::NOT_FOUND, "{target:?}");
        assert_eq!(code.op, Op::Revoke as u8);
    }
    // Bob knows the message well, and may not withdraw it.
    let asked = Asked {
        peer: talk.users[0],
        corr: talk.world.corr(talk.clients[2]),
        ..talk.asked()
    };
    asked.post(&mut talk.world, talk.clients[2]);
    let got = talk.world.run_and_take(talk.clients[2]);
    assert_eq!(error(&got, asked.corr), ErrorCode::FORBIDDEN);
    for (conv_kind, peer, code) in [
        (ConvKind::NONE, 5, ErrorCode::BAD_ARGUMENT),
        (ConvKind::DIRECT, 0, ErrorCode::BAD_ARGUMENT),
        (ConvKind::STATUS, 5, ErrorCode::UNSUPPORTED),
        (ConvKind::GROUP, 5, ErrorCode::NOT_MEMBER),
    ] {
        let asked = Asked {
            peer,
            conv_kind,
            ..talk.asked()
        };
        asked.post(&mut talk.world, talk.clients[0]);
        let got = talk.world.run_and_take(talk.clients[0]);
        assert_eq!(error(&got, asked.corr), code, "{conv_kind:?}");
    }
    let mut asked = talk.asked();
    asked.msg_id = MsgId(5);
    asked.post(&mut talk.world, talk.clients[0]);
    let got = talk.world.run_and_take(talk.clients[0]);
    assert_eq!(error(&got, asked.corr), ErrorCode::BAD_ARGUMENT);
    assert_eq!(talk.stored(), [(Op::Deliver as u8, "not meant so".len())]);
    assert_eq!(talk.world.count(Counter::Withdrawn), 0);
    assert_idle(&talk.world);
}

#[test]
fn a_withdrawal_is_not_itself_withdrawn_and_a_second_one_is_harmless() {
    let mut talk = Talk::new(1);
    let first = talk.asked();
    first.post(&mut talk.world, talk.clients[0]);
    let got = talk.world.run_and_take(talk.clients[0]);
    let place = sent(&got, first.corr).0;
    let mut of_it = talk.asked();
    (of_it.target.seq, of_it.target.msg_id) = (place, first.msg_id);
    of_it.post(&mut talk.world, talk.clients[0]);
    let got = talk.world.run_and_take(talk.clients[0]);
    assert_eq!(error(&got, of_it.corr), ErrorCode::NOT_FOUND);
    let second = talk.asked();
    second.post(&mut talk.world, talk.clients[0]);
    let got = talk.world.run_and_take(talk.clients[0]);
    assert!(!sent(&got, second.corr).1, "another msg_id, another entry");
    assert_eq!(talk.stored().len(), 3);
    talk.world.advance(3_000);
    assert_idle(&talk.world);
}

#[test]
fn a_repetition_finds_the_first_at_every_stage() {
    let stages = [CmdKind::History, CmdKind::Redact, CmdKind::Append];
    for shards in 1..=2 {
        for stage in stages {
            let mut talk = Talk::new(shards);
            let asked = talk.asked();
            talk.world.store.hold(&[stage]);
            asked.post(&mut talk.world, talk.clients[0]);
            talk.world.run();
            // The network breaks, and the client says it again over another connection.
            talk.world.cut(talk.clients[0]);
            let again = talk.world.login(talk.users[0], 1);
            talk.world.take(again);
            let repeated = Asked {
                flags: Flags::RETRY,
                corr: talk.world.corr(again),
                ..asked
            };
            repeated.post(&mut talk.world, again);
            talk.world.run();
            talk.world.store.release();
            talk.world.run();
            let got = talk.world.take(again);
            assert_eq!(reply(&got, repeated.corr).op(), Op::Sent, "{stage:?}");
            let withdrawn = talk.stored();
            assert_eq!(withdrawn.len(), 2, "{stage:?}: accepted once");
            assert_eq!(withdrawn[0].1, 0);
            talk.world.advance(3_000);
            assert_idle(&talk.world);
        }
    }
}

#[test]
fn what_the_store_refuses_is_told_and_may_be_said_again() {
    for (kind, error_of_store, code) in [
        (
            CmdKind::History,
            StoreError::Unavailable,
            ErrorCode::UNAVAILABLE,
        ),
        (CmdKind::Redact, StoreError::Unknown, ErrorCode::TIMEOUT),
        (CmdKind::Append, StoreError::Unknown, ErrorCode::TIMEOUT),
    ] {
        let mut talk = Talk::new(1);
        let asked = talk.asked();
        talk.world.store.fail(&[kind], 1, error_of_store);
        asked.post(&mut talk.world, talk.clients[0]);
        let got = talk.world.run_and_take(talk.clients[0]);
        assert_eq!(error(&got, asked.corr), code, "{kind:?}");
        let repeated = Asked {
            flags: Flags::RETRY,
            corr: talk.world.corr(talk.clients[0]),
            ..asked
        };
        repeated.post(&mut talk.world, talk.clients[0]);
        let got = talk.world.run_and_take(talk.clients[0]);
        assert_eq!(reply(&got, repeated.corr).op(), Op::Sent, "{kind:?}");
        assert_eq!(talk.stored().len(), 2);
    }
}
