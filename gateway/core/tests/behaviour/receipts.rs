//! Delivered, read, and the question for both: watermarks that only grow, pushed within a moment,
//! written behind, and never claimed before they are written.

use crate::support::{assert_idle, error, ops, reply, sent, user_at, world};
use portico_core::{
    Counter, Limits,
    store::StoreError,
    testing::{CmdKind, Got, World},
};
use portico_wire::{
    ErrorCode, Op,
    frame::{Flags, receipt_kind},
    ids::{ConvId, ConvSeq, DeviceId, UserId},
    message::ClientState,
};

fn receipts(got: &[Got]) -> Vec<(u8, u64, ConvSeq)> {
    let receipts = got.iter().filter(|got| got.op() == Op::Receipt);
    receipts
        .map(|got| (got.route().kind, got.route().user.0, got.route().conv_seq))
        .collect()
}

/// Alice (1) has said something to Bob (2), and everything is told and written.
fn talk(shards: u16) -> (World, usize, usize, ConvSeq) {
    let (a, b) = (user_at(0, shards, 0), user_at(shards - 1, shards, 1));
    let mut world = world(shards);
    let (alice, bob) = (world.login(a, 1), world.login(b, 1));
    let message = world.say(alice, b, "read me");
    let (place, _) = sent(&world.run_and_take(alice), message.corr);
    world.advance(3_000);
    world.take(alice);
    world.take(bob);
    (world, alice, bob, place)
}

#[test]
fn done_means_that_the_read_mark_is_durable() {
    for shards in 1..=2 {
        let (mut world, alice, bob, place) = talk(shards);
        let (a, b) = (user_at(0, shards, 0), user_at(shards - 1, shards, 1));
        world.store.hold(&[CmdKind::SetMarks]);
        let corr = world.corr(bob);
        world.mark_read(bob, a, place, corr);
        world.advance(5_000);
        assert!(!ops(&world.take(bob)).contains(&Op::Done));
        world.store.release();
        let got = world.run_and_take(bob);
        assert_eq!(reply(&got, corr).op(), Op::Done);
        let conv = ConvId::direct(UserId(a), UserId(b));
        assert_eq!(world.store.marks(conv, UserId(b)).read, place);
        // The other side was told meanwhile.
        let got = world.take(alice);
        assert_eq!(receipts(&got), [(receipt_kind::READ, b, place)]);
        world.advance(2_000);
        assert_idle(&world);
    }
}

#[test]
fn a_read_request_does_not_wait_for_the_usual_pace() {
    let (mut world, _, bob, place) = talk(1);
    let corr = world.corr(bob);
    world.mark_read(bob, user_at(0, 1, 0), place, corr);
    world.advance(u64::from(Limits::default().flush_ms) + 1);
    assert_eq!(reply(&world.take(bob), corr).op(), Op::Done);
}

#[test]
fn each_mark_is_answered_for_by_its_own_batch() {
    // More marks than one storage command holds: the one that fails answers its own requests.
    let mut world = world(1);
    let limits = Limits::default();
    let readers: Vec<usize> = (0..2).map(|n| world.login(900 + n, 1)).collect();
    world.advance(3_000);
    let mut corrs = Vec::new();
    for reader in &readers {
        for peer in 1..=u64::from(limits.requests_max) {
            let corr = world.corr(*reader);
            world.mark_read(*reader, peer, ConvSeq(7), corr);
            corrs.push((*reader, peer, corr));
        }
    }
    world
        .store
        .fail(&[CmdKind::SetMarks], 1, StoreError::Unavailable);
    world.advance(300);
    let mut answers = std::collections::BTreeMap::new();
    for reader in &readers {
        let got = world.take(*reader);
        for got in got.iter().filter(|got| got.corr() != 0) {
            answers.insert((*reader, got.corr()), got.op());
        }
    }
    let (mut done, mut failed) = (0, 0);
    for (reader, peer, corr) in &corrs {
        let user = UserId(if *reader == readers[0] { 900 } else { 901 });
        let conv = ConvId::direct(user, UserId(*peer));
        let written = world.store.marks(conv, user).read == ConvSeq(7);
        let answer = answers[&(*reader, *corr)];
        assert_eq!(answer == Op::Done, written, "{answer:?}");
        (done, failed) = (done + usize::from(written), failed + usize::from(!written));
    }
    assert_eq!((done, failed), (256, 256));
    // They are written later all the same.
    world.advance(3_000);
    let conv = ConvId::direct(UserId(900), UserId(1));
    assert_eq!(world.store.marks(conv, UserId(900)).read, ConvSeq(7));
    assert_idle(&world);
}

#[test]
fn marks_only_grow_and_point_to_no_far_future() {
    let (mut world, alice, bob, place) = talk(1);
    let (a, b) = (user_at(0, 1, 0), user_at(0, 1, 1));
    let conv = ConvId::direct(UserId(a), UserId(b));
    world.mark_read(bob, a, place, 0);
    world.advance(3_000);
    world.mark_read(bob, a, ConvSeq(place.0 - 50), 0);
    world.advance(3_000);
    assert_eq!(world.store.marks(conv, UserId(b)).read, place);
    world.mark_read(bob, a, ConvSeq(u64::MAX), 0);
    world.run();
    let latest = world.now().wall_us + 60_000_000;
    world.advance(3_000);
    assert_eq!(world.store.marks(conv, UserId(b)).read, ConvSeq(latest));
    let got = world.take(alice);
    assert!(receipts(&got).iter().all(|(_, _, up_to)| up_to.0 <= latest));
}

#[test]
fn a_clock_that_was_set_back_does_not_hold_ticks_back() {
    let (mut world, _, bob, _) = talk(1);
    let (a, b) = (user_at(0, 1, 0), user_at(0, 1, 1));
    let hour_ago = world.now().wall_us - 3_600_000_000;
    world.set_wall_us(hour_ago);
    let alice = world.login(a, 1);
    let message = world.say(alice, b, "numbers run ahead");
    let (place, _) = sent(&world.run_and_take(alice), message.corr);
    assert!(place.0 > world.now().wall_us + 3_000_000_000);
    world.mark_read(bob, a, place, 0);
    world.advance(3_000);
    let conv = ConvId::direct(UserId(a), UserId(b));
    assert_eq!(world.store.marks(conv, UserId(b)).read, place);
}

/// Found by the simulation: the recipient's shard had given no number for a while when the clock was
/// set back, and a READ of what stood in its own inbox pointed into the future.
#[test]
fn an_inbox_is_not_numbered_below_what_stands_in_it() {
    let (a, b) = (user_at(0, 2, 0), user_at(1, 2, 1));
    assert!(
        a < b,
        "the sender's shard gives the place in the conversation"
    );
    let mut world = world(2);
    let (alice, bob) = (world.login(a, 1), world.login(b, 1));
    world.say(alice, a, "a note of now");
    world.run();
    let hour_ago = world.now().wall_us - 3_600_000_000;
    world.set_wall_us(hour_ago);
    world.cut(alice);
    let alice = world.login(a, 1);
    let message = world.say(alice, b, "hello");
    let (place, _) = sent(&world.run_and_take(alice), message.corr);
    assert!(world.last_seq(bob).0 > place.0);
    let corr = world.corr(bob);
    world.mark_read(bob, a, place, corr);
    world.advance(3_000);
    let conv = ConvId::direct(UserId(a), UserId(b));
    assert_eq!(world.store.marks(conv, UserId(b)).read, place);
}

/// Found by the simulation: what a client says of itself at login was written before the entries
/// below it had been looked at. If it left just then, their senders never learned of the delivery.
#[test]
fn a_claim_is_written_after_what_it_covers() {
    let (mut world, _, _, place) = talk(1);
    let (a, b) = (user_at(0, 1, 0), user_at(0, 1, 1));
    let conv = ConvId::direct(UserId(a), UserId(b));
    let known = |world: &World| world.store.cursor(UserId(b), DeviceId(2));
    // Another device of Bob gets the message, stores it, and is gone before it says so.
    let second = world.open(0, b, 2, |_| {});
    world.run();
    let has = world.last_seq(second);
    world.cut(second);
    world.store.hold_answers(&[CmdKind::Replay]);
    let second = world.open(0, b, 2, |hello| hello.last_seq = has);
    world.advance(2_000);
    world.cut(second);
    world.store.release();
    world.advance(3_000);
    assert!(known(&world) < Some(has), "nothing was looked at");
    let second = world.open(0, b, 2, |hello| hello.last_seq = has);
    world.advance(3_000);
    assert_eq!(known(&world), Some(has));
    assert_eq!(world.store.marks(conv, UserId(b)).delivered, place);
    assert!(world.is_connected(second));
}

#[test]
fn receipts_are_joined_and_reach_who_is_watching() {
    let (mut world, alice, bob, _) = talk(1);
    let (a, b) = (user_at(0, 1, 0), user_at(0, 1, 1));
    let away = world.open(0, a, 2, |hello| hello.state = ClientState::Background);
    let other = world.login(b, 2);
    world.advance(3_000);
    for client in [alice, bob, away, other] {
        world.take(client);
    }
    let places: Vec<ConvSeq> = (0..5)
        .map(|n| {
            let message = world.say(alice, b, &n.to_string());
            sent(&world.run_and_take(alice), message.corr).0
        })
        .collect();
    world.take(bob);
    world.take(other);
    for place in &places {
        world.mark_read(bob, a, *place, 0);
    }
    world.advance(1_000);
    let last = places[4];
    let expected = [
        (receipt_kind::DELIVERED, b, last),
        (receipt_kind::READ, b, last),
    ];
    assert_eq!(receipts(&world.take(alice)), expected);
    // The reader's other devices clear their badge; the background is left alone.
    assert_eq!(
        receipts(&world.take(other)),
        [(receipt_kind::READ, b, last)]
    );
    assert_eq!(receipts(&world.take(away)), []);
}

#[test]
fn only_read_and_only_of_conversations_that_have_marks() {
    let (mut world, _, bob, place) = talk(1);
    for (kind, conv_kind, peer) in [(1, 1, 5), (3, 1, 5), (2, 2, 0), (2, 3, 5), (2, 1, 0)] {
        let corr = world.corr(bob);
        let route = portico_wire::RouteHeader {
            conv: peer,
            conv_seq: place,
            conv_kind: portico_wire::frame::ConvKind(conv_kind),
            kind,
            ..portico_wire::RouteHeader::default()
        };
        let mut bytes = Vec::new();
        let op = Op::Receipt as u8;
        portico_wire::encode::put_routed(&mut bytes, op, Flags::NONE, corr, 0, &route, &[]);
        world.write(bob, &bytes);
        let got = world.run_and_take(bob);
        assert_eq!(error(&got, corr), ErrorCode::BAD_ARGUMENT);
    }
}

#[test]
fn the_question_for_marks_is_answered_per_conversation() {
    for shards in 1..=2 {
        let (mut world, alice, bob, place) = talk(shards);
        let (a, b) = (user_at(0, shards, 0), user_at(shards - 1, shards, 1));
        let corr = world.corr(bob);
        world.mark_read(bob, a, place, corr);
        world.advance(3_000);
        world.take(alice);
        let corr = world.corr(alice);
        world.ask_receipts(alice, corr, &[b, 12_345]);
        let got = world.run_and_take(alice);
        assert_eq!(ops(&got), [Op::Receipt, Op::Receipt, Op::Done]);
        let expected = [
            (receipt_kind::DELIVERED, b, place),
            (receipt_kind::READ, b, place),
        ];
        assert_eq!(receipts(&got), expected);
        for frame in &got[..2] {
            assert_eq!(frame.corr(), corr);
            let flags = frame.frame().flags();
            assert!(flags.contains(Flags::REPLY | Flags::MORE), "F4");
            assert_eq!(frame.route().conv, b);
            assert!(frame.frame().aux() > 0);
        }
        assert!(!got[2].frame().flags().contains(Flags::MORE));
        // Nothing asked for, and what is not served.
        let corr = world.corr(alice);
        world.ask_receipts(alice, corr, &[]);
        assert_eq!(reply(&world.run_and_take(alice), corr).op(), Op::Done);
        let corr = world.corr(alice);
        world.ask_receipts(alice, corr, &[b, 0]);
        let got = world.run_and_take(alice);
        assert_eq!(error(&got, corr), ErrorCode::UNSUPPORTED);
        let corr = world.corr(alice);
        world.ask_receipts(alice, corr, &[b; 101]);
        assert_eq!(
            error(&world.run_and_take(alice), corr),
            ErrorCode::MALFORMED
        );
        assert_idle(&world);
    }
}

#[test]
fn a_failed_question_is_one_error() {
    let (mut world, alice, _, _) = talk(1);
    let b = user_at(0, 1, 1);
    world
        .store
        .fail(&[CmdKind::Marks], 1, StoreError::Unavailable);
    let corr = world.corr(alice);
    world.ask_receipts(alice, corr, &[5, b, 6]);
    let got = world.run_and_take(alice);
    let last = got.last().expect("an answer");
    assert_eq!(last.error(), Some(ErrorCode::UNAVAILABLE));
    assert_eq!(got.iter().filter(|got| got.op() == Op::Error).count(), 1);
    assert_idle(&world);
}

#[test]
fn one_connection_cannot_fill_the_store_with_questions() {
    let (mut world, alice, bob, _) = talk(1);
    world.store.hold(&[CmdKind::Marks]);
    let peers: Vec<u64> = (1..=100).collect();
    let corrs: Vec<u32> = (0..20)
        .map(|_| {
            let corr = world.corr(alice);
            world.ask_receipts(alice, corr, &peers);
            corr
        })
        .collect();
    let got = world.run_and_take(alice);
    assert_eq!(world.store.queued(CmdKind::Marks), 300);
    assert_eq!(got.len(), 1, "the next ones are not read for now");
    assert_eq!(error(&got, corrs[3]), ErrorCode::RATE_LIMITED);
    world.check_invariants();
    // Others are served meanwhile.
    let message = world.say(bob, 77, "x");
    sent(&world.run_and_take(bob), message.corr);
    world.store.release();
    world.run();
    world.advance(2_000);
    assert_idle(&world);
}

#[test]
fn marks_are_bounded_while_the_store_stands_still() {
    let mut world = World::new(1, Limits::test_min());
    let max = Limits::test_min().unsaved_max as u64;
    let client = world.login(1, 1);
    world.advance(3_000);
    world.take(client);
    world.store.hold(&[CmdKind::SetMarks]);
    for round in 0..40 {
        for peer in 0..50 {
            world.mark_read(client, 1_000 + round * 50 + peer, ConvSeq(5), 0);
        }
        world.advance(300);
        world.check_invariants();
        let gauges = world.shard(0).gauges();
        assert!(gauges.unsaved <= max, "{}", gauges.unsaved);
        assert!(gauges.store_requests <= 2, "saves do not pile up");
    }
    assert!(world.count(Counter::RefusedOverload) > 1_000);
    let corr = world.corr(client);
    world.mark_read(client, 9_999, ConvSeq(5), corr);
    assert_eq!(
        error(&world.run_and_take(client), corr),
        ErrorCode::OVERLOADED
    );
    world.store.release();
    world.advance(5_000);
    assert_idle(&world);
}

#[test]
fn a_cursor_is_written_after_its_marks() {
    // Else a crash between the two would hide for good that a message was delivered.
    let mut world = world(1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    world.advance(3_000);
    let before = world.store.cursor(UserId(2), DeviceId(1));
    world
        .store
        .fail(&[CmdKind::SetMarks], 2, StoreError::Unavailable);
    world.say(alice, 2, "x");
    world.advance(1_200);
    assert_eq!(world.store.cursor(UserId(2), DeviceId(1)), before);
    world.advance(5_000);
    assert!(world.store.cursor(UserId(2), DeviceId(1)) > before);
    let conv = ConvId::direct(UserId(1), UserId(2));
    assert!(world.store.marks(conv, UserId(2)).delivered > ConvSeq(0));
    let _ = bob;
    assert_idle(&world);
}

#[test]
fn what_a_store_refuses_for_good_is_not_tried_for_ever() {
    for error in [StoreError::Invalid, StoreError::Fatal] {
        let (mut world, _, bob, place) = talk(1);
        let corr = world.corr(bob);
        world.mark_read(bob, user_at(0, 1, 0), place, corr);
        world.store.fail(&[CmdKind::SetMarks], 1, error);
        world.advance(300);
        let got = world.take(bob);
        assert!(reply(&got, corr).error().is_some());
        let executed = world.store.executed();
        world.advance(10_000);
        assert_eq!(world.store.executed(), executed);
        assert_idle(&world);
    }
}
