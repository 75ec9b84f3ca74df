//! Bad frames get a clear answer, cost nothing else, and leave the connection as the rules say.

use crate::support::{error, ops, reply, sent, texts, world};
use portico_core::{Counter, Limits, testing::World};
use portico_wire::{
    CloseCode, ErrorCode, Op,
    encode::{put_body, put_plain, put_seq},
    frame::{ConvKind, Flags, SeqHeader},
    ids::{MsgId, UserId},
    limits::{ENVELOPE_BYTES_MAX, FRAME_BYTES_DEFAULT_MAX, MSG_ID_AGE_MAX_MS},
    op::{Direction, Header},
};

/// A logged-in client with nothing to read.
fn logged_in() -> (World, usize) {
    let mut world = world(1);
    let client = world.login(1, 1);
    world.take(client);
    (world, client)
}

#[test]
fn frames_that_cannot_be_followed_end_the_connection() {
    let long = (FRAME_BYTES_DEFAULT_MAX as u32 - 3).to_le_bytes();
    let cases: [(&[u8], CloseCode); 4] = [
        (&[11, 0, 0, 0], CloseCode::PROTOCOL_ERROR),
        (&[0xff, 0xff, 0xff, 0xff], CloseCode::FRAME_TOO_LARGE),
        (&long, CloseCode::FRAME_TOO_LARGE),
        // A header that claims to reach past the frame.
        (
            &[12, 0, 0, 0, 3, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            CloseCode::PROTOCOL_ERROR,
        ),
    ];
    for (bytes, code) in cases {
        let (mut world, client) = logged_in();
        // Judged by its first four bytes, before the rest has come.
        world.write(client, bytes);
        world.run();
        assert_eq!(world.close_code(client), Some(code), "{bytes:?}");
        world.advance(2_000);
        assert_eq!(world.residue(), []);
    }
}

#[test]
fn before_welcome_frames_are_small() {
    let mut world = world(1);
    let client = world.connect(0);
    world.write(client, &4_093_u32.to_le_bytes());
    world.run();
    assert_eq!(world.close_code(client), Some(CloseCode::FRAME_TOO_LARGE));
}

#[test]
fn a_message_is_judged_by_what_its_header_says() {
    let (mut world, client) = logged_in();
    let wall_ms = world.now().wall_us / 1_000;
    let id = |ms: u64| MsgId::new_v7(ms, 1 << 20 | u128::from(ms & 0xff));
    let mut case = |edit: &dyn Fn(&mut portico_core::testing::Outgoing)| {
        let mut message = world.message(client, 2, "x");
        edit(&mut message);
        world.post(client, &message);
        let got = world.run_and_take(client);
        let reply = reply(&got, message.corr);
        assert!(world.is_connected(client));
        (
            reply.error(),
            reply.error_reply().map_or(0, |error| error.server_us),
        )
    };
    let refused = |code| (Some(code), 0);
    let accepted = (None, 0);
    assert_eq!(case(&|_| {}), accepted);
    assert_eq!(
        case(&|m| m.to = UserId(0)),
        refused(ErrorCode::BAD_ARGUMENT)
    );
    assert_eq!(
        case(&|m| m.to = UserId(u64::MAX)),
        refused(ErrorCode::BAD_ARGUMENT)
    );
    assert_eq!(
        case(&|m| m.conv_kind = ConvKind::STATUS),
        refused(ErrorCode::UNSUPPORTED)
    );
    assert_eq!(
        case(&|m| m.conv_kind = ConvKind::GROUP),
        refused(ErrorCode::NOT_FOUND)
    );
    for kind in [ConvKind::NONE, ConvKind(77)] {
        assert_eq!(
            case(&|m| m.conv_kind = kind),
            refused(ErrorCode::BAD_ARGUMENT)
        );
    }
    assert_eq!(case(&|m| m.body.clear()), refused(ErrorCode::MALFORMED));
    assert_eq!(case(&|m| m.body = vec![1; ENVELOPE_BYTES_MAX]), accepted);
    assert_eq!(
        case(&|m| m.body = vec![1; ENVELOPE_BYTES_MAX + 1]),
        refused(ErrorCode::TOO_LARGE)
    );
    assert_eq!(case(&|m| m.kind = 3), accepted);
    assert_eq!(case(&|m| m.kind = 4), refused(ErrorCode::BAD_ARGUMENT));
    assert_eq!(
        case(&|m| m.msg_id = MsgId(7)),
        refused(ErrorCode::BAD_ARGUMENT)
    );
    assert_eq!(case(&|m| m.msg_id = id(wall_ms + 60_000)), accepted);
    assert_eq!(
        case(&|m| m.msg_id = id(wall_ms + 60_001)),
        (Some(ErrorCode::CLOCK_AHEAD), wall_ms * 1_000),
        "with the server's clock"
    );
    assert_eq!(
        case(&|m| m.msg_id = id((1 << 48) - 1)).0,
        Some(ErrorCode::CLOCK_AHEAD)
    );
    assert_eq!(
        case(&|m| m.msg_id = id(wall_ms - MSG_ID_AGE_MAX_MS)),
        accepted
    );
    for retry in [Flags::NONE, Flags::RETRY] {
        let old = |m: &mut portico_core::testing::Outgoing| {
            m.msg_id = id(wall_ms - MSG_ID_AGE_MAX_MS - 1);
            m.flags = retry;
        };
        assert_eq!(case(&old), refused(ErrorCode::EXPIRED));
    }
    // An ephemeral message has no identity to judge, but the rest holds.
    let ephemeral = |m: &mut portico_core::testing::Outgoing| {
        m.flags = Flags::EPHEMERAL;
        m.msg_id = MsgId(0);
    };
    assert_eq!(case(&ephemeral), accepted);
    let to_nobody = |m: &mut portico_core::testing::Outgoing| {
        m.flags = Flags::EPHEMERAL;
        m.to = UserId(0);
    };
    assert_eq!(case(&to_nobody), refused(ErrorCode::BAD_ARGUMENT));
}

#[test]
fn a_bad_message_without_corr_is_counted_and_not_answered() {
    let (mut world, client) = logged_in();
    let mut message = world.message(client, 0, "x");
    message.corr = 0;
    world.post(client, &message);
    // REPLY makes a number something else than a request.
    message.corr = 9;
    message.flags = Flags::REPLY;
    world.post(client, &message);
    assert_eq!(world.run_and_take(client), []);
    assert_eq!(world.count(Counter::UnanswerableSends), 2);
}

#[test]
fn every_operation_has_an_answer() {
    for op in Op::ALL {
        let (mut world, client) = logged_in();
        let flags = if op.header() == Header::Route {
            Flags::ROUTED
        } else {
            Flags::NONE
        };
        let mut bytes = Vec::new();
        put_body(&mut bytes, *op as u8, flags, 5, 0, &[0; 128]);
        bytes[6] = op.header().words();
        world.write(client, &bytes);
        let got = world.run_and_take(client);
        let close = got
            .last()
            .and_then(|got| got.close())
            .map(|close| close.code);
        match op {
            Op::Ack | Op::ClientState => assert_eq!(got, []),
            Op::Ping => assert_eq!(ops(&got), [Op::Pong]),
            Op::Close => assert!(!world.is_connected(client)),
            Op::Send | Op::Receipt | Op::GroupCreate | Op::History | Op::Signal => {
                assert_eq!(error(&got, 5), ErrorCode::BAD_ARGUMENT);
            }
            Op::GroupEdit => assert_eq!(error(&got, 5), ErrorCode::NOT_FOUND),
            // Group 0: all of mine, which is none.
            Op::GroupGet | Op::ConversationsGet => assert_eq!(ops(&got), [Op::Done]),
            // An empty table asks for nothing, or for the usual.
            Op::PresenceSub => assert_eq!(ops(&got), [Op::Presence]),
            Op::ContactsGet => assert_eq!(ops(&got), [Op::Contacts]),
            Op::PrivacySet => assert_eq!(ops(&got), [Op::Done]),
            Op::PrivacyGet => assert_eq!(ops(&got), [Op::Privacy]),
            Op::ReceiptsGet | Op::Reauth | Op::Revoke | Op::ContactsEdit => {
                assert_eq!(error(&got, 5), ErrorCode::MALFORMED);
            }
            Op::Hello | Op::RegStart | Op::RegConfirm => {
                assert_eq!(close, Some(CloseCode::PROTOCOL_ERROR));
            }
            op if op.direction() == Direction::ToClient => {
                assert_eq!(close, Some(CloseCode::PROTOCOL_ERROR), "{op:?}");
            }
            _ => assert_eq!(error(&got, 5), ErrorCode::UNSUPPORTED, "{op:?}"),
        }
    }
}

#[test]
fn unknown_operations_are_answered_or_counted() {
    // F5.
    let (mut world, client) = logged_in();
    for (op, corr) in [(0, 11), (15, 12), (255, 13), (200, 0), (224, 0)] {
        let mut bytes = Vec::new();
        put_plain(&mut bytes, Op::Ping, Flags::NONE, corr, 0);
        bytes[4] = op;
        world.write(client, &bytes);
    }
    let got = world.run_and_take(client);
    assert_eq!(got.len(), 3);
    assert_eq!(error(&got, 11), ErrorCode::UNKNOWN_OP);
    assert_eq!(error(&got, 12), ErrorCode::UNKNOWN_OP);
    assert_eq!(error(&got, 13), ErrorCode::UNSUPPORTED, "private");
    assert_eq!(got[0].error_reply().expect("ERROR").op, 0);
    assert_eq!(world.count(Counter::UnknownOps), 3);
    assert_eq!(world.count(Counter::UnsupportedOps), 2);
}

#[test]
fn the_tenth_malformed_body_in_a_minute_is_the_last() {
    // F6.
    let malformed = |world: &mut World, client: usize, corr: u32| {
        let mut bytes = Vec::new();
        put_body(
            &mut bytes,
            Op::ReceiptsGet as u8,
            Flags::NONE,
            corr,
            0,
            &[9; 40],
        );
        world.write(client, &bytes);
        world.run_and_take(client)
    };
    let (mut world, client) = logged_in();
    for corr in 1..=9 {
        let got = malformed(&mut world, client, 100 + corr);
        assert_eq!(error(&got, 100 + corr), ErrorCode::MALFORMED);
    }
    // The next minute begins from nothing.
    world.advance(61_000);
    for corr in 1..=9 {
        let got = malformed(&mut world, client, 200 + corr);
        assert_eq!(error(&got, 200 + corr), ErrorCode::MALFORMED);
    }
    let got = malformed(&mut world, client, 300);
    assert_eq!(ops(&got), [Op::Close]);
    assert_eq!(world.close_code(client), Some(CloseCode::PROTOCOL_ERROR));
    assert_eq!(world.count(Counter::MalformedBodies), 19);
}

#[test]
fn any_bytes_are_survived() {
    // Frames with valid headers and every operation, filled with noise; nothing else suffers.
    let mut noise = 0x1234_5678_9abc_def1_u64;
    let mut byte = move || {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        noise as u8
    };
    let mut world = world(2);
    let (alice, bob) = (world.login(101, 1), world.login(102, 1));
    for round in 0..3_000_u32 {
        let client = world.open(0, 103, 1 + (round % 3) as u16, |_| {});
        for _ in 0..4 {
            let length = usize::from(byte());
            let mut frame: Vec<u8> = (0..16 + length).map(|_| byte()).collect();
            let total = frame.len() as u32 - 4;
            frame[..4].copy_from_slice(&total.to_le_bytes());
            if byte() % 4 > 0 {
                let op = Op::ALL[usize::from(byte()) % Op::ALL.len()];
                frame[4] = op as u8;
                frame[6] = op.header().words();
                frame[5] = (frame[5] & !1) | u8::from(op.header() == Header::Route);
            }
            world.write(client, &frame);
        }
        if round % 50 == 0 {
            world.check_invariants();
        }
        world.run();
    }
    world.take(alice);
    world.take(bob);
    let message = world.say(alice, 102, "still here");
    sent(&world.run_and_take(alice), message.corr);
    assert_eq!(texts(&world.take(bob)), ["still here"]);
    world.advance(20_000);
    world.check_invariants();
}

#[test]
fn an_ack_beyond_what_was_sent_is_cut_down() {
    // O5.
    let mut world = world(1);
    let bob = world.open(0, 2, 1, |_| {});
    let alice = world.login(1, 1);
    let before = world.say(alice, 2, "one");
    world.run();
    let seq = world.last_seq(bob);
    let header = SeqHeader {
        seq: u64::MAX,
        arg: 4,
    };
    let mut bytes = Vec::new();
    put_seq(&mut bytes, Op::Ack, Flags::NONE, 0, header);
    world.write(bob, &bytes);
    world.run();
    assert_eq!(world.count(Counter::AckBeyondSent), 1);
    world.advance(2_000);
    let cursor = world
        .store
        .cursor(UserId(2), portico_wire::ids::DeviceId(1));
    assert_eq!(cursor, Some(seq));
    let after = world.say(alice, 2, "two");
    world.run();
    assert_eq!(texts(world.got(bob)), ["one", "two"]);
    assert_ne!(before.msg_id, after.msg_id);
}

#[test]
fn too_many_open_requests_are_refused_and_then_not_read() {
    // O15.
    let mut world = World::new(1, Limits::test_min());
    let max = Limits::test_min().requests_max;
    let client = world.login(1, 1);
    world.advance(2_000);
    world.take(client);
    world.store.hold(&[portico_core::testing::CmdKind::Append]);
    let messages: Vec<_> = (0..max + 2)
        .map(|_| world.say(client, 2, "x").corr)
        .collect();
    let got = world.run_and_take(client);
    assert_eq!(got.len(), 1, "the next ones wait where they are");
    let corr = messages[max as usize];
    let refused = reply(&got, corr).error_reply().expect("ERROR");
    assert_eq!(refused.code, ErrorCode::RATE_LIMITED);
    assert!(refused.retry_after_ms > 0);
    world.store.release();
    let got = world.run_and_take(client);
    assert_eq!(got.len(), max as usize + 1);
    sent(&got, messages[max as usize + 1]);
    let message = world.say(client, 2, "again");
    sent(&world.run_and_take(client), message.corr);
}
