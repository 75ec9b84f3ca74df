//! A message goes from one user to another and back come its marks: on any number of shards, for
//! every way in which the homes of the two can lie.

use crate::support::{assert_idle, error, ops, reply, sent, seqs, texts, user_at, world};
use portico_core::testing::{CmdKind, World};
use portico_core::{Counter, Limits};
use portico_wire::{
    ErrorCode, Op,
    frame::{ConvKind, Flags, receipt_kind},
    ids::{ConvId, ConvSeq, DeviceId, Seq, UserId},
};

/// Pairs of users whose homes lie in every possible way.
fn pairs(shards: u16) -> Vec<(u64, u64)> {
    let mut pairs = Vec::new();
    for first in 0..shards {
        for second in 0..shards {
            let a = user_at(first, shards, 0);
            let b = user_at(second, shards, usize::from(first == second));
            pairs.push((a, b));
        }
    }
    pairs
}

#[test]
fn a_message_is_stored_shown_acknowledged_and_ticked() {
    for shards in 1..=3 {
        for (a, b) in pairs(shards) {
            let mut world = world(shards);
            let (alice, bob) = (world.login(a, 1), world.login(b, 1));
            world.take(alice);
            world.take(bob);

            let message = world.say(alice, b, "hello");
            let got = world.run_and_take(alice);
            let (conv_seq, again) = sent(&got, message.corr);
            assert!(!again);
            assert_eq!(ops(&got), [Op::Sent]);

            let got = world.take(bob);
            assert_eq!(ops(&got), [Op::Deliver], "{shards} shards, {a} to {b}");
            assert_eq!(got[0].body(), b"hello");
            assert_eq!(got[0].corr(), 0);
            let route = got[0].route();
            assert_eq!(route.conv, a, "the other user as the reader sees it");
            assert_eq!((route.user, route.dev), (UserId(a), DeviceId(1)));
            assert_eq!((route.msg_id, route.conv_seq), (message.msg_id, conv_seq));
            assert_eq!(route.conv_kind, ConvKind::DIRECT);
            assert!(route.seq > Seq(0));

            // Bob has acknowledged: Alice learns of it, and both are written.
            world.advance(2_000);
            let got = world.take(alice);
            assert_eq!(ops(&got), [Op::Receipt]);
            let receipt = got[0].route();
            assert_eq!(receipt.kind, receipt_kind::DELIVERED);
            assert_eq!((receipt.conv, receipt.user), (b, UserId(b)));
            assert_eq!((receipt.conv_seq, receipt.seq), (conv_seq, Seq(0)));
            assert!(got[0].frame().aux() > 1_700_000_000, "the second of it");
            let conv = ConvId::direct(UserId(a), UserId(b));
            assert_eq!(world.store.marks(conv, UserId(b)).delivered, conv_seq);
            assert_eq!(world.store.cursor(UserId(b), DeviceId(1)), Some(route.seq));
            assert_idle(&world);
        }
    }
}

#[test]
fn both_sides_talk_at_once_and_agree_on_the_order() {
    for shards in 1..=3 {
        for (a, b) in pairs(shards) {
            let mut world = world(shards);
            let (alice, bob) = (world.login(a, 1), world.login(b, 1));
            world.take(alice);
            world.take(bob);
            for round in 0..20 {
                world.say(alice, b, &format!("a{round}"));
                world.say(bob, a, &format!("b{round}"));
                if round % 3 == 0 {
                    world.run();
                }
            }
            let (to_alice, to_bob) = (world.run_and_take(alice), world.take(bob));
            let expected = |who| (0..20).map(|n| format!("{who}{n}")).collect::<Vec<_>>();
            assert_eq!(texts(&to_alice), expected("b"));
            assert_eq!(texts(&to_bob), expected("a"));
            // O13: every message has a place of its own, ascending for each sender.
            let places = |got: &[portico_core::testing::Got]| -> Vec<ConvSeq> {
                let sent = got.iter().filter(|got| got.op() == Op::Sent);
                sent.map(|got| ConvSeq(got.seq_header().seq)).collect()
            };
            let mut all = places(&to_alice);
            assert!(all.is_sorted());
            all.extend(places(&to_bob));
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), 40);
        }
    }
}

#[test]
fn nothing_is_said_or_shown_before_it_is_durable() {
    // O9, for one home and for two.
    for shards in [1, 2] {
        let (a, b) = (user_at(0, shards, 0), user_at(shards - 1, shards, 1));
        let mut world = world(shards);
        let (alice, bob) = (world.login(a, 1), world.login(b, 1));
        world.take(alice);
        world.take(bob);
        world.store.hold(&[CmdKind::Append]);
        let message = world.say(alice, b, "soon");
        assert_eq!(world.run_and_take(alice), []);
        assert_eq!(world.take(bob), []);
        world.store.release();
        sent(&world.run_and_take(alice), message.corr);
        assert_eq!(texts(&world.take(bob)), ["soon"]);
    }
}

#[test]
fn a_frame_without_corr_gets_no_answer_and_is_delivered() {
    let mut world = world(1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    world.take(alice);
    let mut message = world.message(alice, 2, "quiet");
    message.corr = 0;
    world.post(alice, &message);
    assert_eq!(world.run_and_take(alice), []);
    assert_eq!(texts(&world.take(bob)), ["quiet"]);
}

#[test]
fn silent_and_ttl_go_along_and_the_client_s_other_flags_do_not() {
    let mut world = world(1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    world.take(bob);
    let mut message = world.message(alice, 2, "hush");
    message.flags = Flags::SILENT | Flags::MORE | Flags::COMPRESSED;
    message.ttl_s = 77;
    message.kind = 3;
    world.post(alice, &message);
    world.run();
    let got = world.take(bob);
    assert_eq!(got[0].frame().flags(), Flags::SILENT | Flags::ROUTED);
    assert_eq!((got[0].route().ttl_s, got[0].route().kind), (77, 3));
}

#[test]
fn a_message_longer_than_a_first_frame_may_follow_hello_at_once() {
    for shards in 1..=2 {
        for shard in 0..usize::from(shards) {
            let (a, b) = (user_at(0, shards, 0), user_at(0, shards, 1));
            let mut world = world(shards);
            let bob = world.login(b, 1);
            let alice = world.open(shard, a, 1, |_| {});
            let long = "x".repeat(60_000);
            let message = world.say(alice, b, &long);
            sent(&world.run_and_take(alice), message.corr);
            assert_eq!(texts(&world.take(bob)), [long]);
        }
    }
}

#[test]
fn bytes_may_come_one_at_a_time() {
    let mut world = world(2);
    let (a, b) = (user_at(0, 2, 0), user_at(1, 2, 0));
    let bob = world.login(b, 1);
    let alice = world.open(1, a, 1, |_| {});
    world.set_chunk(alice, 1);
    let message = world.say(alice, b, "drop by drop");
    let got = world.run_and_take(alice);
    assert_eq!(ops(&got), [Op::Welcome, Op::Synced, Op::Sent]);
    sent(&got, message.corr);
    assert_eq!(texts(&world.take(bob)), ["drop by drop"]);
}

#[test]
fn other_devices_of_both_get_it_too() {
    // O14, and O9 for the copy.
    for shards in 1..=3 {
        for (a, b) in pairs(shards) {
            let mut world = world(shards);
            let (phone, desk) = (world.login(a, 1), world.login(a, 2));
            let (bob1, bob2) = (world.login(b, 1), world.login(b, 2));
            for client in [phone, desk, bob1, bob2] {
                world.take(client);
            }
            world.store.hold(&[CmdKind::AddRefs]);
            let message = world.say(phone, b, "to all");
            world.run();
            assert_eq!(texts(&world.take(bob1)), ["to all"]);
            assert_eq!(texts(&world.take(bob2)), ["to all"]);
            assert_eq!(world.take(phone), [], "SENT waits for the own copy");
            assert_eq!(world.take(desk), []);
            world.store.release();
            let (conv_seq, _) = sent(&world.run_and_take(phone), message.corr);
            let got = world.take(desk);
            assert_eq!(texts(&got), ["to all"]);
            let route = got[0].route();
            assert_eq!((route.conv, route.user), (b, UserId(a)));
            assert_eq!((route.dev, route.conv_seq), (DeviceId(1), conv_seq));

            // The copy is nobody's delivery: only Bob's devices make ticks.
            world.advance(2_000);
            let conv = ConvId::direct(UserId(a), UserId(b));
            assert_eq!(world.store.marks(conv, UserId(a)).delivered, ConvSeq(0));
            assert_eq!(world.store.marks(conv, UserId(b)).delivered, conv_seq);
            assert_idle(&world);
        }
    }
}

#[test]
fn a_device_that_is_away_gets_its_copy_later() {
    let mut world = world(1);
    let desk = world.login(1, 2);
    world.advance(2_000);
    world.cut(desk);
    let phone = world.login(1, 1);
    let message = world.say(phone, 2, "noted");
    sent(&world.run_and_take(phone), message.corr);
    let desk = world.login(1, 2);
    assert_eq!(texts(&world.take(desk)), ["noted"]);
}

#[test]
fn a_device_that_comes_while_a_message_is_on_its_way_gets_a_copy() {
    let mut world = world(1);
    let phone = world.login(1, 1);
    world.store.hold(&[CmdKind::Append]);
    let message = world.say(phone, 2, "both");
    world.run();
    let desk = world.login(1, 2);
    assert_eq!(texts(&world.take(desk)), Vec::<String>::new());
    world.store.release();
    sent(&world.run_and_take(phone), message.corr);
    assert_eq!(texts(&world.take(desk)), ["both"]);
}

#[test]
fn a_failed_own_copy_is_no_sent_and_a_repeat_mends_it() {
    let mut world = world(1);
    let (phone, desk) = (world.login(1, 1), world.login(1, 2));
    world.take(desk);
    let unavailable = portico_core::store::StoreError::Unavailable;
    world.store.fail(&[CmdKind::AddRefs], 1, unavailable);
    let mut message = world.say(phone, 2, "twice");
    let got = world.run_and_take(phone);
    assert_eq!(error(&got, message.corr), ErrorCode::UNAVAILABLE);
    assert_eq!(texts(&world.take(desk)), Vec::<String>::new());
    message.flags = Flags::RETRY;
    message.corr = world.corr(phone);
    world.post(phone, &message);
    let (_, again) = sent(&world.run_and_take(phone), message.corr);
    assert!(again);
    assert_eq!(texts(&world.take(desk)), ["twice"]);
}

#[test]
fn a_note_to_oneself_reaches_the_other_devices_only() {
    for shards in 1..=2 {
        let mut world = world(shards);
        let (phone, desk) = (world.login(7, 1), world.login(7, 2));
        world.take(phone);
        world.take(desk);
        let message = world.say(phone, 7, "milk");
        let got = world.run_and_take(phone);
        sent(&got, message.corr);
        assert_eq!(ops(&got), [Op::Sent], "O3: not to the device itself");
        let got = world.take(desk);
        assert_eq!(texts(&got), ["milk"]);
        assert_eq!((got[0].route().conv, got[0].route().user), (7, UserId(7)));
        world.advance(2_000);
        assert_eq!(world.take(phone), [], "no tick for a note");
        assert_idle(&world);
    }
}

#[test]
fn an_ephemeral_message_is_shown_once_to_who_is_there() {
    for (a, b) in pairs(2) {
        let mut world = world(2);
        let (alice, bob) = (world.login(a, 1), world.login(b, 1));
        let away = world.open(0, b, 2, |hello| {
            hello.state = portico_wire::message::ClientState::Background;
        });
        world.run();
        for client in [alice, bob, away] {
            world.take(client);
        }
        world.advance(2_000);
        let executed = world.store.executed();
        let mut message = world.message(alice, b, "...");
        message.flags = Flags::EPHEMERAL;
        world.post(alice, &message);
        let got = world.run_and_take(alice);
        assert_eq!(reply(&got, message.corr).op(), Op::Done);
        let got = world.take(bob);
        assert_eq!(texts(&got), ["..."]);
        assert_eq!(seqs(&got), [], "not sequenced");
        let route = got[0].route();
        assert_eq!((route.conv, route.user), (a, UserId(a)));
        assert_eq!(route.msg_id, message.msg_id);
        assert!(got[0].frame().flags().contains(Flags::EPHEMERAL));
        assert_eq!(world.take(away), [], "not in the background");
        assert_eq!(world.store.executed(), executed, "nothing is stored");
        assert_eq!(world.count(Counter::EphemeralDelivered), 1);
    }
}

#[test]
fn the_wrong_user_sees_nothing() {
    let mut world = World::new(3, Limits::default());
    let clients: Vec<usize> = (1..=6).map(|user| world.login(user, 1)).collect();
    for client in &clients {
        world.take(*client);
    }
    world.say(clients[0], 4, "for four");
    world.run();
    for (at, client) in clients.iter().enumerate() {
        let expected: &[&str] = if at == 3 { &["for four"] } else { &[] };
        assert_eq!(texts(&world.take(*client)), expected);
    }
}
