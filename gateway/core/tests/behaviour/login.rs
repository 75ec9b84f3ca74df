//! From the first byte to SYNCED, and every way in which that can end instead.

use crate::support::{assert_idle, error, ops, user_at, world};
use portico_core::{
    AuthError, ConnId, Counter, Effects, Grant, Input, Limits, Now, Shard, ShardConfig, ShardId,
    feed,
    store::StoreError,
    testing::{CmdKind, World},
};
use portico_wire::{
    CloseCode, ErrorCode, Op,
    encode::{Encoder, put_ping, put_plain},
    frame::Flags,
    ids::{DeviceId, Seq, UserId},
    limits::RECEIVE_MAX_DEFAULT,
    message::Hello,
};

fn hello(token: &str) -> Hello<'_> {
    Hello {
        token: Some(token),
        ..Hello::default()
    }
}

/// The code with which a connection ends that says this HELLO.
fn ends_with(hello: &Hello<'_>) -> Option<CloseCode> {
    let mut world = world(1);
    let client = world.connect(0);
    world.hello(client, hello);
    world.run();
    assert!(!world.is_connected(client));
    assert_eq!(world.residue(), []);
    world.close_code(client)
}

#[test]
fn welcome_says_who_one_is_and_what_holds() {
    for shards in 1..=3 {
        for shard in 0..usize::from(shards) {
            let user = user_at(0, shards, 0);
            let mut world = world(shards);
            let client = world.open(shard, user, 4, |_| {});
            let got = world.run_and_take(client);
            assert_eq!(ops(&got), [Op::Welcome, Op::Synced]);
            let welcome = got[0].welcome().expect("WELCOME");
            assert_eq!((welcome.user, welcome.device), (UserId(user), DeviceId(4)));
            assert_eq!(welcome.receive_max, RECEIVE_MAX_DEFAULT);
            assert_eq!(
                welcome.max_frame as usize,
                Limits::default().frame_bytes_max
            );
            assert_eq!(welcome.server_us, world.now().wall_us);
            assert_eq!(welcome.node, "test");
            assert!(!welcome.resumed && !welcome.resume_token.is_empty());
            assert_eq!(got[0].corr(), 1, "it answers HELLO");
            assert!(got[0].frame().flags().contains(Flags::REPLY));
            assert_eq!(got[1].seq_header().arg, 0);
            assert_eq!(world.place_of(client), Some(0), "at the user's home");
            world.advance(2_000);
            assert_idle(&world);
        }
    }
}

#[test]
fn a_resume_token_alone_is_enough() {
    let mut world = world(1);
    let client = world.connect(0);
    world.hello(
        client,
        &Hello {
            resume_token: Some(b"5:2"),
            ..Hello::default()
        },
    );
    let got = world.run_and_take(client);
    let welcome = got[0].welcome().expect("WELCOME");
    assert!(welcome.resumed);
    assert_eq!((welcome.user, welcome.device), (UserId(5), DeviceId(2)));
    assert_eq!(world.count(Counter::Resumed), 1);
}

#[test]
fn each_refused_login_has_its_code() {
    let no_token = Hello::default();
    assert_eq!(ends_with(&no_token), Some(CloseCode::AUTH_FAILED));
    for (token, code) in [
        ("forged", CloseCode::AUTH_FAILED),
        ("expired", CloseCode::TOKEN_EXPIRED),
        ("revoked", CloseCode::DEVICE_REVOKED),
        // An authenticator that names nobody is not believed.
        ("0:1", CloseCode::AUTH_FAILED),
        ("18446744073709551615:1", CloseCode::AUTH_FAILED),
        ("1:0", CloseCode::AUTH_FAILED),
    ] {
        assert_eq!(ends_with(&hello(token)), Some(code), "{token}");
    }
    let other_device = Hello {
        device: DeviceId(2),
        ..hello("1:1")
    };
    assert_eq!(ends_with(&other_device), Some(CloseCode::AUTH_FAILED));
    let bad_resume = Hello {
        resume_token: Some(b"?"),
        ..Hello::default()
    };
    assert_eq!(ends_with(&bad_resume), Some(CloseCode::RESUME_REFUSED));
    for (min_version, max_version) in [(2, 9), (0, 0), (5, 1)] {
        let other_version = Hello {
            min_version,
            max_version,
            ..hello("1:1")
        };
        let code = Some(CloseCode::VERSION_UNSUPPORTED);
        assert_eq!(ends_with(&other_version), code);
    }
}

#[test]
fn a_refused_resume_token_falls_back_to_the_access_token() {
    let mut world = world(1);
    let client = world.connect(0);
    world.hello(
        client,
        &Hello {
            resume_token: Some(b"?"),
            ..hello("1:1")
        },
    );
    let got = world.run_and_take(client);
    assert!(!got[0].welcome().expect("WELCOME").resumed);
}

#[test]
fn an_authenticator_in_trouble_is_our_fault_not_the_client_s() {
    let mut world = world(1);
    world.auth_outage = Some(AuthError::Unavailable);
    let client = world.open(0, 1, 1, |_| {});
    let got = world.run_and_take(client);
    let close = got[0].close().expect("CLOSE");
    assert_eq!(close.code, CloseCode::SERVER_ERROR);
    assert!(close.retry_after_ms > 0);
}

#[test]
fn a_hello_that_cannot_be_read_is_a_protocol_error() {
    let mut world = world(1);
    let client = world.connect(0);
    let mut bytes = Vec::new();
    put_plain(&mut bytes, Op::Hello, Flags::NONE, 1, 0);
    world.write(client, &bytes);
    world.run();
    assert_eq!(world.close_code(client), Some(CloseCode::PROTOCOL_ERROR));
}

#[test]
fn hello_comes_first_and_once() {
    for op in [Op::Send, Op::Ack, Op::Welcome, Op::Sent, Op::ReceiptsGet] {
        let mut world = world(1);
        let client = world.connect(0);
        let mut frame = vec![0; 72];
        frame[0] = 68;
        frame[4] = op as u8;
        let (flags, hdr) = match op.header() {
            portico_wire::op::Header::Base => (0, 2),
            portico_wire::op::Header::Seq => (0, 4),
            portico_wire::op::Header::Route => (1, 9),
        };
        (frame[5], frame[6]) = (flags, hdr);
        world.write(client, &frame);
        world.run();
        let code = Some(CloseCode::PROTOCOL_ERROR);
        assert_eq!(world.close_code(client), code, "{op:?}");
    }
    let mut world = world(2);
    let client = world.open(0, 1, 1, |_| {});
    world.hello(client, &hello("1:1"));
    let got = world.run_and_take(client);
    assert_eq!(ops(&got)[0], Op::Welcome, "the first one was good");
    assert_eq!(world.close_code(client), Some(CloseCode::PROTOCOL_ERROR));
}

#[test]
fn before_hello_there_is_ping_and_an_answer_for_what_comes_later() {
    for shards in 1..=2 {
        let mut world = world(shards);
        let client = world.connect(0);
        let mut bytes = Vec::new();
        put_ping(&mut bytes, 71, 60);
        put_ping(&mut bytes, 0, 60);
        put_plain(&mut bytes, Op::TokenRefresh, Flags::NONE, 72, 0);
        for (op, corr) in [(200, 73), (230, 74)] {
            let at = bytes.len();
            put_plain(&mut bytes, Op::Ping, Flags::NONE, corr, 0);
            bytes[at + 4] = op;
        }
        // All in one segment with HELLO: the answers move along to the home shard.
        world.write(client, &bytes);
        let home_elsewhere = user_at(shards - 1, shards, 0);
        world.hello(client, &hello(&format!("{home_elsewhere}:1")));
        let got = world.run_and_take(client);
        let expected = [
            Op::Pong,
            Op::Error,
            Op::Error,
            Op::Error,
            Op::Welcome,
            Op::Synced,
        ];
        assert_eq!(ops(&got), expected, "F4: one PONG, and only if asked");
        assert_eq!(error(&got, 72), ErrorCode::UNSUPPORTED);
        assert_eq!(error(&got, 73), ErrorCode::UNKNOWN_OP);
        assert_eq!(error(&got, 74), ErrorCode::UNSUPPORTED);
    }
}

#[test]
fn who_says_nothing_is_closed_in_time() {
    let mut world = world(1);
    let client = world.connect(0);
    world.advance(9_000);
    assert!(world.is_connected(client));
    world.advance(1_500);
    assert_eq!(world.close_code(client), Some(CloseCode::HANDSHAKE_TIMEOUT));
    assert_eq!(world.residue(), []);
}

#[test]
fn a_byte_a_second_does_not_help() {
    let mut world = world(1);
    let client = world.connect(0);
    for byte in [200, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0] {
        world.write(client, &[byte]);
        world.advance(1_000);
    }
    assert_eq!(world.close_code(client), Some(CloseCode::HANDSHAKE_TIMEOUT));
}

#[test]
fn the_first_connection_after_a_long_silence_gets_its_whole_time() {
    let mut world = world(1);
    world.sleep(3_600_000);
    let client = world.connect(0);
    world.run();
    assert!(world.is_connected(client));
    world.advance(9_000);
    assert!(world.is_connected(client));
    let late = world.open(0, 1, 1, |_| {});
    world.run();
    // One that is open keeps the wheel busy; the clock still stands while nothing happens.
    world.sleep(140_000);
    let next = world.connect(0);
    world.run();
    assert!(world.is_connected(next));
    assert_eq!(world.close_code(late), Some(CloseCode::IDLE_TIMEOUT));
}

#[test]
fn an_authenticator_that_answers_at_the_last_moment_is_in_time() {
    // The answer and the deadline fall into one turn: the answer brings a new deadline.
    let mut shard = Shard::new(ShardConfig::new(ShardId(0), 1));
    let mut fx = Effects::default();
    let conn = ConnId {
        index: 0,
        generation: 1,
    };
    let at = |second: u64| Now {
        mono_us: second * 1_000_000,
        wall_us: second * 1_000_000,
    };
    shard.handle(at(5), Input::Opened { conn }, &mut fx);
    let mut bytes = Vec::new();
    Encoder::new().hello(&mut bytes, 1, &hello("1:1"));
    assert_eq!(feed(&mut shard, at(5), conn, &bytes, &mut fx), bytes.len());
    let grant = Grant {
        user: UserId(1),
        device: DeviceId(1),
        resumed: false,
        resume_token: Vec::new(),
        resume_ttl_s: 0,
        ..Grant::default()
    };
    let result = Ok(grant);
    shard.handle(at(15), Input::Authenticated { conn, result }, &mut fx);
    assert!(shard.is_open(conn));
    assert_eq!(fx.store.len(), 1, "the store is asked for the cursors");
    shard.handle(at(26), Input::Tick, &mut fx);
    assert!(!shard.is_open(conn), "but not for ever");
}

#[test]
fn a_login_that_the_store_does_not_answer_ends() {
    let mut world = world(1);
    world.store.hold(&[CmdKind::Cursors]);
    let client = world.open(0, 1, 1, |_| {});
    assert_eq!(ops(&world.run_and_take(client)), [Op::Welcome]);
    world.advance(10_500);
    assert_eq!(world.close_code(client), Some(CloseCode::HANDSHAKE_TIMEOUT));
    world.store.release();
    world.run();
    assert_eq!(world.residue(), []);
}

#[test]
fn a_login_that_the_store_refuses_ends_with_a_hint() {
    let mut world = world(1);
    world
        .store
        .fail(&[CmdKind::Cursors], 1, StoreError::Unavailable);
    let client = world.open(0, 1, 1, |_| {});
    let got = world.run_and_take(client);
    let close = got[1].close().expect("CLOSE");
    assert_eq!(close.code, CloseCode::SERVER_ERROR);
    assert!(close.retry_after_ms > 0);
    assert_eq!(world.residue(), []);
}

/// Found by the simulation: a gateway that died between SYNCED and the write forgot the device, and
/// what its user's other devices said before it came back never reached it.
#[test]
fn a_new_device_is_in_once_the_store_knows_it() {
    let mut world = world(2);
    world.store.hold(&[CmdKind::SetCursors]);
    let client = world.open(0, user_at(1, 2, 0), 1, |_| {});
    assert_eq!(ops(&world.run_and_take(client)), [Op::Welcome]);
    world.store.release();
    assert_eq!(ops(&world.run_and_take(client)), [Op::Synced]);
    world
        .store
        .fail(&[CmdKind::SetCursors], 1, StoreError::Unavailable);
    let other = world.open(0, user_at(1, 2, 0), 2, |_| {});
    let got = world.run_and_take(other);
    let close = got[1].close().expect("CLOSE");
    assert_eq!(close.code, CloseCode::SERVER_ERROR);
    assert!(close.retry_after_ms > 0);
    world.advance(2_000);
    assert_idle(&world);
}

#[test]
fn frames_after_hello_wait_for_the_store() {
    let mut world = world(2);
    world.store.hold(&[CmdKind::Cursors]);
    let client = world.open(0, user_at(1, 2, 0), 1, |_| {});
    let mut bytes = Vec::new();
    put_ping(&mut bytes, 9, 60);
    world.write(client, &bytes);
    assert_eq!(ops(&world.run_and_take(client)), [Op::Welcome]);
    world.store.release();
    let got = world.run_and_take(client);
    assert!(ops(&got).contains(&Op::Pong), "{got:?}");
}

#[test]
fn a_move_that_fails_sends_the_client_away_with_a_hint() {
    let mut world = world(2);
    world.failing_moves = 1;
    let client = world.open(0, user_at(1, 2, 0), 1, |_| {});
    let got = world.run_and_take(client);
    let close = got[0].close().expect("CLOSE");
    assert_eq!(close.code, CloseCode::OVERLOADED);
    assert!(close.retry_after_ms > 0);
    assert_eq!(world.count(Counter::MoveFailed), 1);
    assert_eq!(world.residue(), []);
}

#[test]
fn a_client_that_leaves_on_the_way_leaves_nothing_behind() {
    for steps in 0..8 {
        let mut world = world(2);
        let client = world.open(0, user_at(1, 2, 0), 1, |_| {});
        let mut events = Vec::new();
        for _ in 0..steps {
            world.ready(&mut events);
            if let Some(event) = events.first() {
                world.perform(*event, 0);
            }
        }
        world.cut(client);
        world.advance(2_000);
        assert_eq!(world.residue(), [], "after {steps} steps");
    }
}

#[test]
fn inputs_for_a_connection_that_is_gone_do_nothing() {
    let mut world = world(1);
    let old = world.login(1, 1);
    world.cut(old);
    let client = world.login(2, 1);
    world.take(client);
    // The index is in use again; the generation tells them apart.
    let conn = portico_core::ConnId {
        index: 0,
        generation: 1,
    };
    assert!(!world.shard(0).wants_input(conn));
    world.input(0, Input::Ended { conn });
    world.input(0, Input::Written { conn, bytes: 7 });
    world.input(0, Input::Moved { conn });
    world.input(0, Input::MoveFailed { conn });
    let result = Err(AuthError::Invalid);
    world.input(0, Input::Authenticated { conn, result });
    assert_eq!(world.run_and_take(client), []);
    assert!(world.is_connected(client));
    world.check_invariants();
}

#[test]
fn the_client_says_goodbye() {
    let mut world = World::new(1, Limits::default());
    let client = world.login(1, 1);
    let mut bytes = Vec::new();
    put_plain(&mut bytes, Op::Close, Flags::NONE, 0, 0);
    world.write(client, &bytes);
    world.run();
    assert!(!world.is_connected(client));
    assert_eq!(world.count(Counter::ClosedNormal), 1);
    world.advance(2_000);
    assert_eq!(world.residue(), []);
}

#[test]
fn synced_positions_are_good_for_the_next_login() {
    // What SYNCED says to a device without messages brings no gap when it comes back.
    let mut world = world(1);
    let client = world.login(1, 1);
    let up_to = Seq(world.take(client)[1].seq_header().seq);
    world.advance(5_000);
    let client = world.open(0, 1, 1, |hello| hello.last_seq = up_to);
    assert_eq!(ops(&world.run_and_take(client)), [Op::Welcome, Op::Synced]);
}

#[test]
fn synced_gives_a_device_that_has_everything_nothing_to_acknowledge() {
    // O3: its own position, whatever other people said meanwhile. A million logins must not become
    // a million cursors to write.
    for absent_max in [0, 8] {
        let mut world = World::new(
            1,
            Limits {
                absent_max,
                ..Limits::default()
            },
        );
        let (alice, carol) = (world.login(1, 1), world.login(3, 1));
        let synced = world.take(carol)[1].seq_header();
        assert_eq!((synced.seq, synced.arg), (0, 0), "nothing ever came");
        world.say(alice, 3, "for Carol");
        world.run();
        let last = world.store.inbox(UserId(3))[0].seq;
        world.cut(carol);
        world.say(alice, 2, "not for Carol");
        world.advance(2_000);
        let writes = world.store.executed_of(CmdKind::SetCursors);
        for last_seq in [last, Seq(0), last] {
            let carol = world.open(0, 3, 1, |hello| hello.last_seq = last_seq);
            let got = world.run_and_take(carol);
            assert_eq!(ops(&got), [Op::Welcome, Op::Synced]);
            assert_eq!(Seq(got[1].seq_header().seq), last, "{last_seq:?}");
            world.cut(carol);
        }
        world.advance(2_000);
        assert_eq!(world.store.executed_of(CmdKind::SetCursors), writes);
        let known = if absent_max == 0 { 0 } else { 3 };
        assert_eq!(world.count(Counter::LoggedInKnown), known);
    }
}

/// Found by the simulation: SYNCED named the number of a message that failed, the clock was set back,
/// and after a restart the number was given again, to an entry that the client then took for old.
#[test]
fn synced_names_no_number_that_is_not_in_the_store() {
    let mut world = world(1);
    let alice = world.login(1, 1);
    let bob = world.login(2, 1);
    world.cut(bob);
    let fail = |world: &mut World, text: &str| {
        world
            .store
            .fail(&[CmdKind::Append], 1, StoreError::Unavailable);
        world.say(alice, 2, text);
        world.run();
    };
    fail(&mut world, "never stored");
    world.store.hold_answers(&[CmdKind::Replay]);
    let bob = world.open(0, 2, 1, |_| {});
    world.run();
    // Something comes, or seems to, while the page is read: it is read once more.
    fail(&mut world, "nor this");
    world.store.release();
    let got = world.run_and_take(bob);
    let synced = got.last().expect("SYNCED");
    assert_eq!(synced.op(), Op::Synced);
    assert_eq!(synced.seq_header().seq, 0, "nothing was passed over");
}

#[test]
fn an_old_position_is_renewed() {
    // It would be below the floor one day, although nothing was missed.
    for absent_max in [0, 8] {
        let mut world = World::new(
            1,
            Limits {
                absent_max,
                ..Limits::default()
            },
        );
        let (alice, carol) = (world.login(1, 1), world.login(3, 1));
        world.say(alice, 3, "for Carol");
        world.run();
        let mut position = world.last_seq(carol);
        world.advance(2_000);
        world.cut(carol);
        for month in 0..14 {
            // Once a month she looks, and nobody has written to her.
            world.sleep(31 * 86_400_000);
            world.tick();
            let alice = world.login(1, 1);
            world.say(alice, 2, "not for Carol");
            world.run();
            let carol = world.open(0, 3, 1, |hello| hello.last_seq = position);
            let got = world.run_and_take(carol);
            assert_eq!(ops(&got), [Op::Welcome, Op::Synced], "month {month}");
            let renewed = Seq(got[1].seq_header().seq);
            assert!(renewed > position);
            position = renewed;
            world.ack(carol, position, 256);
            world.advance(2_000);
            world.cut(carol);
        }
    }
}
