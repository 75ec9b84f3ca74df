//! A device that had everything when it left, and for which nothing came since, comes back without
//! a read of the store. In every other case the store is asked, and nothing is missed: each test
//! here is a way in which the shard's memory could be wrong.

use crate::support::{assert_idle, ops, texts, world};
use portico_core::{
    Counter, Limits,
    store::StoreError,
    testing::{CmdKind, World},
};
use portico_wire::{
    CloseCode, Op,
    frame::Flags,
    ids::{ConvId, DeviceId, Seq, UserId},
};

const BOB: UserId = UserId(2);

/// Logins that asked nothing of the store.
fn known(world: &World) -> u64 {
    world.count(Counter::LoggedInKnown)
}

/// Reads of logins.
fn reads(world: &World) -> usize {
    world.store.executed_of(CmdKind::Cursors) + world.store.executed_of(CmdKind::Replay)
}

/// Alice is here; Bob was, got `count` messages, acknowledged them and left.
fn bob_left(count: usize) -> (World, usize) {
    let mut world = world(1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    for number in 0..count {
        world.say(alice, 2, &number.to_string());
        world.run();
    }
    world.advance(3_000);
    world.cut(bob);
    world.take(alice);
    (world, alice)
}

/// Bob comes back with this claim. What he got before SYNCED, or instead.
fn bob_returns(world: &mut World, last_seq: Seq) -> (usize, Vec<String>) {
    let bob = world.open(0, 2, 1, |hello| {
        hello.last_seq = last_seq;
        hello.resume_token = Some(b"2:1");
    });
    world.set_acking(bob, true);
    let got = world.run_and_take(bob);
    let (last, first) = (got.last().map(|got| got.op()), got[0].op());
    assert_eq!((first, last), (Op::Welcome, Some(Op::Synced)));
    world.check_invariants();
    (bob, texts(&got))
}

#[test]
fn when_nothing_waits_nothing_is_read() {
    for claims in [true, false] {
        let (mut world, alice) = bob_left(3);
        let position = world.store.inbox(BOB)[2].seq;
        let before = reads(&world);
        for round in 1..=5 {
            let claim = if claims { position } else { Seq(0) };
            let (bob, got) = bob_returns(&mut world, claim);
            assert!(got.is_empty());
            assert_eq!((reads(&world), known(&world)), (before, round));
            world.cut(bob);
        }
        // It is a session like any other: live, acknowledged, written.
        let (bob, _) = bob_returns(&mut world, position);
        world.say(alice, 2, "live");
        assert_eq!(texts(&world.run_and_take(bob)), ["live"]);
        world.say(bob, 1, "back");
        assert!(texts(&world.run_and_take(alice)).contains(&"back".to_owned()));
        world.advance(3_000);
        let last = world.store.inbox(BOB)[3].seq;
        assert_eq!(world.store.cursor(BOB, DeviceId(1)), Some(last));
        let conv = ConvId::direct(UserId(1), BOB);
        assert!(world.store.marks(conv, BOB).delivered > Default::default());
        assert_idle(&world);
    }
}

#[test]
fn a_device_that_never_got_anything_is_known_too() {
    let (mut world, _) = bob_left(0);
    assert_eq!(bob_returns(&mut world, Seq(0)).1, [""; 0]);
    assert_eq!(known(&world), 1);
}

#[test]
fn what_came_meanwhile_is_read() {
    let (mut world, alice) = bob_left(2);
    world.say(alice, 2, "meanwhile");
    world.run();
    let position = world.store.inbox(BOB)[1].seq;
    let (bob, got) = bob_returns(&mut world, position);
    assert_eq!((got, known(&world)), (vec!["meanwhile".to_owned()], 0));
    // Once he has it, he is known again.
    world.cut(bob);
    let position = world.last_seq(bob);
    assert_eq!(bob_returns(&mut world, position).1, [""; 0]);
    assert_eq!(known(&world), 1);
}

#[test]
fn what_was_under_way_when_it_left_arrives_whenever_it_is_settled() {
    // Before, during and after the return; durable, failed, or with an answer that got lost.
    for settled_before_return in [true, false] {
        for lost in [true, false] {
            let mut world = world(1);
            let (alice, bob) = (world.login(1, 1), world.login(2, 1));
            world.advance(3_000);
            world.store.hold(&[CmdKind::Append]);
            world.say(alice, 2, "under way");
            world.run();
            if lost {
                world.store.lose_answers(&[CmdKind::Append], 1);
            }
            world.cut(bob);
            if settled_before_return {
                world.store.release();
                world.run();
            }
            let (bob, mut got) = bob_returns(&mut world, Seq(0));
            let early = u64::from(!settled_before_return);
            assert_eq!(known(&world), early, "{settled_before_return} {lost}");
            world.store.release();
            got.extend(texts(&world.run_and_take(bob)));
            assert_eq!(got, ["under way"], "{settled_before_return} {lost}");
        }
    }
}

#[test]
fn a_message_that_failed_for_the_sender_may_still_be_there() {
    // The answer got lost while Bob was there: his connection looked in the store.
    let mut world = world(1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    world.store.lose_answers(&[CmdKind::Append], 1);
    let message = world.say(alice, 2, "perhaps");
    world.run();
    assert_eq!(texts(&world.take(bob)), ["perhaps"]);
    world.cut(bob);
    let (bob, got) = bob_returns(&mut world, Seq(0));
    assert_eq!((got, known(&world)), (Vec::new(), 1));
    // The sender repeats it, Bob has it, and gets the reference again (O8).
    let again = portico_core::testing::Outgoing {
        flags: Flags::RETRY,
        ..message
    };
    world.cut(bob);
    world.post(alice, &again);
    world.run();
    assert_eq!(bob_returns(&mut world, Seq(0)).1, ["perhaps"]);
    assert_eq!(known(&world), 1);
}

#[test]
fn what_was_not_acknowledged_comes_again() {
    let (mut world, alice) = bob_left(0);
    let bob = world.open(0, 2, 1, |_| {});
    world.run();
    world.say(alice, 2, "one");
    world.say(alice, 2, "two");
    world.run();
    let first = world.store.inbox(BOB)[0].seq;
    world.ack(bob, first, 256);
    world.run();
    world.cut(bob);
    let before = known(&world);
    assert_eq!(bob_returns(&mut world, first).1, ["two"]);
    assert_eq!(known(&world), before);
}

#[test]
fn a_claim_of_more_or_less_than_is_known_is_looked_at() {
    // More: the acknowledgement got lost, and the sender is still to learn of the delivery.
    let (mut world, alice) = bob_left(0);
    let bob = world.open(0, 2, 1, |_| {});
    world.say(alice, 2, "one");
    world.run();
    let (position, before) = (world.last_seq(bob), known(&world));
    world.cut(bob);
    let (bob, got) = bob_returns(&mut world, position);
    assert_eq!((got, known(&world)), (Vec::new(), before));
    world.advance(3_000);
    let conv = ConvId::direct(UserId(1), BOB);
    assert!(world.store.marks(conv, BOB).delivered > Default::default());
    assert_eq!(world.store.cursor(BOB, DeviceId(1)), Some(position));
    // Less: it was restored from a backup.
    world.say(alice, 2, "two");
    world.run();
    world.cut(bob);
    assert_eq!(bob_returns(&mut world, position).1, ["two"]);
    assert_eq!(known(&world), before);
    // A claim beyond everything means everything.
    let (mut world, _) = bob_left(1);
    assert_eq!(bob_returns(&mut world, Seq(u64::MAX)).1, [""; 0]);
}

#[test]
fn the_cursor_counts_before_it_is_written_and_if_it_cannot_be() {
    let (mut world, alice) = bob_left(0);
    let (bob, _) = bob_returns(&mut world, Seq(0));
    let unavailable = StoreError::Unavailable;
    world.store.fail(&[CmdKind::SetCursors], 3, unavailable);
    world.say(alice, 2, "one");
    world.run();
    let position = world.last_seq(bob);
    world.cut(bob);
    for _ in 0..8 {
        let before = known(&world);
        let (bob, got) = bob_returns(&mut world, Seq(0));
        assert_eq!((got, known(&world)), (Vec::new(), before + 1));
        world.cut(bob);
        world.advance(700);
    }
    world.advance(3_000);
    assert_eq!(world.store.cursor(BOB, DeviceId(1)), Some(position));
}

#[test]
fn a_device_that_is_new_while_another_is_away_gets_copies_from_it() {
    for still_here in [true, false] {
        let (mut world, alice) = bob_left(1);
        let second = world.login(2, 9);
        if !still_here {
            world.cut(second);
        }
        let (bob, _) = bob_returns(&mut world, Seq(0));
        assert_eq!(known(&world), 1);
        copies(&mut world, alice, bob, second);
    }
}

#[test]
fn one_that_leaves_while_a_new_one_logs_in_learns_of_it() {
    for still_here in [true, false] {
        let (mut world, alice) = bob_left(1);
        let (bob, _) = bob_returns(&mut world, Seq(0));
        world.store.hold(&[CmdKind::Cursors]);
        let second = world.open(0, 2, 9, |_| {});
        world.run();
        world.cut(bob);
        world.store.release();
        world.run();
        world.take(second);
        if !still_here {
            world.cut(second);
        }
        let (bob, _) = bob_returns(&mut world, Seq(0));
        assert_eq!(known(&world), 2);
        copies(&mut world, alice, bob, second);
    }
}

/// What Bob says on his first device reaches Alice, and his second device now or later.
fn copies(world: &mut World, alice: usize, bob: usize, second: usize) {
    world.say(bob, 1, "copied");
    world.run();
    assert_eq!(
        texts(world.got(alice)).last().map(String::as_str),
        Some("copied")
    );
    let second = if world.is_connected(second) {
        second
    } else {
        world.login(2, 9)
    };
    assert_eq!(
        texts(world.got(second)).last().map(String::as_str),
        Some("copied")
    );
    world.ack(second, world.last_seq(second), 8);
    world.advance(3_000);
    assert_idle(world);
}

#[test]
fn a_message_for_one_device_concerns_the_other_that_is_away() {
    let mut world = world(1);
    let alice = world.login(1, 1);
    let (phone, tablet) = (world.login(2, 1), world.login(2, 2));
    world.advance(3_000);
    world.cut(phone);
    world.say(alice, 2, "to both");
    world.run();
    assert_eq!(texts(world.got(tablet)), ["to both"]);
    assert_eq!(bob_returns(&mut world, Seq(0)).1, ["to both"]);
    assert_eq!(known(&world), 0);
}

#[test]
fn a_takeover_knows_what_the_older_connection_had() {
    let (mut world, alice) = bob_left(2);
    let position = world.store.inbox(BOB)[1].seq;
    let (old, _) = bob_returns(&mut world, position);
    let before = reads(&world);
    let (new, got) = bob_returns(&mut world, position);
    assert_eq!(world.close_code(old), Some(CloseCode::SESSION_REPLACED));
    assert_eq!((got, reads(&world)), (Vec::new(), before));
    // With something unacknowledged on the older one the store is asked.
    world.set_acking(new, false);
    world.say(alice, 2, "open");
    world.run();
    let (_, got) = bob_returns(&mut world, position);
    assert_eq!(got, ["open"]);
    assert!(reads(&world) > before);
}

#[test]
fn a_slow_reader_that_is_closed_by_a_message_has_not_got_it() {
    // The message that overflows the queue of a live connection is the one it was closed by: it
    // was shown and not sent.
    let limits = Limits {
        outbox_bytes_soft: 4 << 10,
        ..Limits::test_min()
    };
    let mut world = World::new(1, limits);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    world.advance(3_000);
    world.set_reading(bob, false);
    // Below the soft bound it is live, and the next message may pass the last bound.
    world.say(alice, 2, &"a".repeat(3_000));
    world.run();
    let first = world.store.inbox(BOB)[0].seq;
    world.ack(bob, first, 8);
    world.run();
    world.say(alice, 2, &"b".repeat(7_000));
    world.run();
    assert_eq!(world.count(Counter::ClosedSlow), 1);
    let (_, got) = bob_returns(&mut world, first);
    assert_eq!(got, ["b".repeat(7_000)]);
    assert_eq!(known(&world), 0);
}

#[test]
fn a_pause_holds_for_a_device_that_is_known() {
    // O4: with receive_max 0 nothing goes on, SYNCED included.
    let (mut world, alice) = bob_left(1);
    let bob = world.open(0, 2, 1, |hello| hello.receive_max = 0);
    assert_eq!(ops(&world.run_and_take(bob)), [Op::Welcome]);
    world.say(alice, 2, "waits");
    assert_eq!(ops(&world.run_and_take(bob)), []);
    world.ack(bob, Seq(0), 8);
    assert_eq!(ops(&world.run_and_take(bob)), [Op::Deliver, Op::Synced]);
    assert_eq!(known(&world), 0);
}

#[test]
fn a_gap_is_told_to_a_device_that_is_known() {
    // O7, by the same rule as for everybody.
    let (mut world, _) = bob_left(1);
    world.sleep(366 * 86_400_000);
    world.tick();
    let bob = world.login(2, 1);
    let got = world.take(bob);
    assert_eq!(ops(&got), [Op::Welcome, Op::SyncGap, Op::Synced]);
    assert_eq!(known(&world), 0);
}

#[test]
fn a_new_process_knows_nobody() {
    let (mut world, alice) = bob_left(1);
    world.restart(2);
    assert!(!world.is_connected(alice));
    assert_eq!(bob_returns(&mut world, Seq(0)).1, [""; 0]);
    assert_eq!(known(&world), 0);
}

#[test]
fn as_many_are_remembered_as_may_be() {
    for (absent_max, expected) in [(0, 0), (1, 8), (8, 8), (4_096, 100)] {
        let limits = Limits {
            absent_max,
            ..Limits::default()
        };
        let mut world = World::new(1, limits);
        for _ in 0..2 {
            let clients: Vec<usize> = (1..=100).map(|user| world.login(user, 1)).collect();
            for client in clients {
                world.cut(client);
                world.check_invariants();
            }
        }
        assert_eq!(known(&world), expected, "{absent_max}");
    }
}

#[test]
fn who_is_known_is_let_in_while_the_store_stands_still() {
    let limits = Limits {
        // The driver reads on all the same.
        store_requests_soft: 1_000,
        ..Limits::test_min()
    };
    let mut world = World::new(1, limits);
    let bob = world.login(2, 1);
    world.advance(3_000);
    world.cut(bob);
    world.store.hold(&CmdKind::ALL);
    for user in 10..40 {
        world.open(0, user, 1, |_| {});
        world.run();
    }
    assert!(world.count(Counter::ClosedOverloaded) > 0, "it is full");
    let before = world.store.executed();
    assert_eq!(bob_returns(&mut world, Seq(0)).1, [""; 0]);
    assert_eq!((known(&world), world.store.executed()), (1, before));
    world.store.release();
    world.advance(15_000);
    assert_idle(&world);
}
