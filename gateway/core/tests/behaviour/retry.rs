//! O10 and O11: a message marked RETRY is accepted once, whatever became of its first attempt, and
//! what follows it does not overtake it (O13).

use crate::support::{assert_idle, error, ops, sent, texts, user_at, world};
use portico_core::{
    Counter, Limits,
    store::StoreError,
    testing::{CmdKind, Outgoing, World},
};
use portico_wire::{
    ErrorCode, Op,
    frame::Flags,
    ids::{ConvId, UserId},
};

/// Sends it again, marked.
fn repeat(world: &mut World, client: usize, message: &Outgoing) -> Outgoing {
    let again = Outgoing {
        flags: Flags::RETRY,
        corr: world.corr(client),
        ..message.clone()
    };
    world.post(client, &again);
    again
}

/// How many entries the conversation has.
fn entries(world: &World, a: u64, b: u64) -> usize {
    let conv = ConvId::direct(UserId(a), UserId(b));
    world.store.conversation(conv).count()
}

#[test]
fn a_repeat_gets_the_first_answer_across_a_reconnect_and_a_restart() {
    for shards in 1..=3 {
        for home in 0..shards {
            let (a, b) = (user_at(0, shards, 0), user_at(home, shards, 1));
            let mut world = world(shards);
            let alice = world.login(a, 1);
            let message = world.say(alice, b, "once");
            let first = sent(&world.run_and_take(alice), message.corr);
            assert!(!first.1);
            world.cut(alice);
            let alice = world.login(a, 1);
            let again = repeat(&mut world, alice, &message);
            let second = sent(&world.run_and_take(alice), again.corr);
            assert_eq!(second, (first.0, true));
            world.restart(4 - shards);
            let alice = world.login(a, 1);
            let again = repeat(&mut world, alice, &message);
            let third = sent(&world.run_and_take(alice), again.corr);
            assert_eq!(third, (first.0, true));
            assert_eq!(entries(&world, a, b), 1);
            world.advance(20_000);
            assert_idle(&world);
        }
    }
}

#[test]
fn a_repeat_of_what_was_never_accepted_is_accepted() {
    for failure in [StoreError::Unavailable, StoreError::Unknown] {
        let mut world = world(2);
        let alice = world.login(1, 1);
        world.store.fail(&[CmdKind::Append], 1, failure);
        let message = world.say(alice, 2, "at last");
        let got = world.run_and_take(alice);
        assert!(error(&got, message.corr).0 >= 66, "outcome unknown");
        let again = repeat(&mut world, alice, &message);
        let (_, duplicate) = sent(&world.run_and_take(alice), again.corr);
        assert!(!duplicate);
        let bob = world.login(2, 1);
        assert_eq!(texts(&world.take(bob)), ["at last"]);
    }
}

#[test]
fn a_repeat_of_what_was_accepted_unseen_is_found() {
    let mut world = world(2);
    let alice = world.login(1, 1);
    world.store.lose_answers(&[CmdKind::Append], 1);
    let message = world.say(alice, 2, "lost answer");
    assert_eq!(
        error(&world.run_and_take(alice), message.corr),
        ErrorCode::TIMEOUT
    );
    let again = repeat(&mut world, alice, &message);
    let (_, duplicate) = sent(&world.run_and_take(alice), again.corr);
    assert!(duplicate);
    assert_eq!(entries(&world, 1, 2), 1);
}

#[test]
fn what_is_shown_after_a_repeat_is_what_was_stored() {
    // A client that says something else under the same name changes nothing.
    let mut world = world(1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    let desk = world.login(1, 2);
    let message = world.say(alice, 2, "first");
    sent(&world.run_and_take(alice), message.corr);
    world.take(bob);
    world.take(desk);
    let other = Outgoing {
        body: b"second".to_vec(),
        ..message
    };
    let again = repeat(&mut world, alice, &other);
    assert!(sent(&world.run_and_take(alice), again.corr).1);
    // O8: it comes again, under a fresh number.
    assert_eq!(texts(&world.take(bob)), ["first"]);
    assert_eq!(texts(&world.take(desk)), ["first"]);
}

#[test]
fn a_repeat_adopts_the_attempt_that_is_still_on_its_way() {
    // O11: looked for among the writes in flight, or a fast reconnect would be accepted twice.
    for shards in 1..=2 {
        let (a, b) = (user_at(0, shards, 0), user_at(shards - 1, shards, 1));
        let mut world = world(shards);
        let old = world.login(a, 1);
        let bob = world.login(b, 1);
        world.take(bob);
        world.store.hold(&[CmdKind::Append]);
        let message = world.say(old, b, "slow");
        world.run();
        world.cut(old);
        let alice = world.login(a, 1);
        world.take(alice);
        let again = repeat(&mut world, alice, &message);
        let next = world.say(alice, b, "next");
        assert_eq!(world.run_and_take(alice), []);
        world.check_invariants();
        world.store.release();
        let got = world.run_and_take(alice);
        let first = sent(&got, again.corr);
        assert!(!first.1 && first.0 < sent(&got, next.corr).0);
        assert_eq!(texts(&world.take(bob)), ["slow", "next"]);
        assert_eq!(world.store.queued(CmdKind::Find), 0);
        assert_eq!(entries(&world, a, b), 2);
    }
}

#[test]
fn asking_twice_on_one_connection_gives_each_question_one_answer() {
    let mut world = world(1);
    let alice = world.login(1, 1);
    world.take(alice);
    world.store.hold(&[CmdKind::Append]);
    let message = world.say(alice, 2, "twice");
    let again = repeat(&mut world, alice, &message);
    let got = world.run_and_take(alice);
    assert_eq!(error(&got, message.corr), ErrorCode::TIMEOUT);
    world.check_invariants();
    world.store.release();
    let got = world.run_and_take(alice);
    assert_eq!(ops(&got), [Op::Sent]);
    sent(&got, again.corr);
    assert_eq!(entries(&world, 1, 2), 1);
}

#[test]
fn an_attempt_that_takes_too_long_times_out_and_is_adopted_later() {
    let mut world = world(1);
    let alice = world.login(1, 1);
    world.take(alice);
    world.store.hold(&[CmdKind::Append]);
    let message = world.say(alice, 2, "patience");
    world.advance(11_900);
    assert_eq!(world.take(alice), []);
    world.advance(200);
    let got = world.take(alice);
    assert_eq!(error(&got, message.corr), ErrorCode::TIMEOUT);
    world.check_invariants();
    // Adopted, and again not for ever: the second question has a deadline too.
    let again = repeat(&mut world, alice, &message);
    world.advance(11_900);
    assert_eq!(world.take(alice), []);
    world.advance(200);
    assert_eq!(error(&world.take(alice), again.corr), ErrorCode::TIMEOUT);
    let last = repeat(&mut world, alice, &message);
    world.run();
    world.store.release();
    let got = world.run_and_take(alice);
    assert!(!sent(&got, last.corr).1);
    assert_eq!(entries(&world, 1, 2), 1);
    world.advance(20_000);
    assert_idle(&world);
}

#[test]
fn an_answer_after_the_timeout_makes_it_durable_and_unlocks_the_rest() {
    let mut world = world(1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    world.take(bob);
    world.take(alice);
    world.store.hold(&[CmdKind::Append]);
    let message = world.say(alice, 2, "late");
    world.advance(13_000);
    assert_eq!(error(&world.take(alice), message.corr), ErrorCode::TIMEOUT);
    world.store.release();
    assert_eq!(world.run_and_take(alice), []);
    assert_eq!(texts(&world.take(bob)), ["late"]);
}

#[test]
fn what_follows_a_repeat_waits_for_it() {
    for shards in 1..=2 {
        let (a, b) = (user_at(0, shards, 0), user_at(shards - 1, shards, 1));
        let mut world = world(shards);
        let (alice, bob) = (world.login(a, 1), world.login(b, 1));
        let other = world.login(b + 100, 1);
        world.take(alice);
        world.take(bob);
        world.take(other);
        world.store.hold(&[CmdKind::Find]);
        let mut letters = Vec::new();
        for (retry, text) in [(true, "0"), (false, "1"), (true, "2"), (false, "3")] {
            let mut message = world.message(alice, b, text);
            if retry {
                message.flags = Flags::RETRY;
            }
            world.post(alice, &message);
            letters.push(message.corr);
        }
        // Another conversation is not held back.
        let aside = world.say(alice, b + 100, "aside");
        sent(&world.run_and_take(alice), aside.corr);
        assert_eq!(texts(&world.take(other)), ["aside"]);
        assert_eq!(world.take(bob), []);
        assert_eq!(world.store.queued(CmdKind::Find), 1, "one search at a time");
        world.check_invariants();
        world.store.release();
        let got = world.run_and_take(alice);
        let places: Vec<_> = letters.iter().map(|corr| sent(&got, *corr).0).collect();
        assert!(places.is_sorted(), "{places:?}");
        assert_eq!(texts(&world.take(bob)), ["0", "1", "2", "3"]);
        world.advance(20_000);
        assert_idle(&world);
    }
}

/// Fault: each was looked for on its own, one after the other, so that a client that came back to a
/// busy conversation with a window of repeats waited longer than its own timeout.
#[test]
fn those_that_wait_for_a_search_are_looked_for_together() {
    for shards in 1..=2 {
        let (a, b) = (user_at(0, shards, 0), user_at(shards - 1, shards, 1));
        let mut world = world(shards);
        let (alice, bob) = (world.login(a, 1), world.login(b, 1));
        let known = world.say(alice, b, "2");
        sent(&world.run_and_take(alice), known.corr);
        world.take(bob);
        let mut letters: Vec<_> = ["0", "1", "2", "3"]
            .map(|text| world.message(alice, b, text))
            .into();
        letters[2].msg_id = known.msg_id;
        for message in &mut letters {
            message.flags = Flags::RETRY;
        }
        // Two searches that fail are an answer to all four: the first is alone, the others together.
        world
            .store
            .fail(&[CmdKind::Find], 2, StoreError::Unavailable);
        world.store.hold(&[CmdKind::Find]);
        for message in &letters {
            world.post(alice, message);
        }
        world.run();
        assert_eq!(world.store.queued(CmdKind::Find), 1, "one search at a time");
        world.check_invariants();
        world.store.release();
        let got = world.run_and_take(alice);
        for message in &letters {
            assert_eq!(error(&got, message.corr), ErrorCode::UNAVAILABLE);
        }
        let again: Vec<_> = letters
            .iter()
            .map(|message| repeat(&mut world, alice, message).corr)
            .collect();
        let got = world.run_and_take(alice);
        let known: Vec<_> = again.iter().map(|corr| sent(&got, *corr).1).collect();
        assert_eq!(known, [false, false, true, false]);
        // The reference of the known one is written again, its entry is not.
        assert_eq!(texts(&world.take(bob)), ["0", "1", "2", "3"]);
        assert_eq!(entries(&world, a, b), 4);
        world.advance(20_000);
        assert_idle(&world);
    }
}

#[test]
fn a_search_that_fails_lets_the_rest_go() {
    let mut world = world(1);
    let alice = world.login(1, 1);
    world.take(alice);
    world
        .store
        .fail(&[CmdKind::Find], 1, StoreError::Unavailable);
    let mut first = world.message(alice, 2, "first");
    first.flags = Flags::RETRY;
    world.post(alice, &first);
    let second = world.say(alice, 2, "second");
    let got = world.run_and_take(alice);
    assert_eq!(error(&got, first.corr), ErrorCode::UNAVAILABLE);
    sent(&got, second.corr);
    let again = repeat(&mut world, alice, &first);
    assert!(!sent(&world.run_and_take(alice), again.corr).1);
}

#[test]
fn the_queue_behind_a_search_is_bounded() {
    let limits = Limits {
        requests_max: 100,
        ..Limits::test_min()
    };
    let mut world = World::new(1, limits.clone());
    let alice = world.login(1, 1);
    world.advance(2_000);
    world.take(alice);
    world.store.hold(&[CmdKind::Find]);
    let mut first = world.message(alice, 2, "first");
    first.flags = Flags::RETRY;
    world.post(alice, &first);
    let corrs: Vec<u32> = (0..limits.gate_messages_max + 2)
        .map(|_| world.say(alice, 2, "more").corr)
        .collect();
    let got = world.run_and_take(alice);
    assert_eq!(got.len(), 2);
    for corr in &corrs[limits.gate_messages_max..] {
        assert_eq!(error(&got, *corr), ErrorCode::OVERLOADED);
    }
    world.check_invariants();
    world.store.release();
    assert_eq!(
        world.run_and_take(alice).len(),
        1 + limits.gate_messages_max
    );
    world.advance(20_000);
    assert_idle(&world);
}

#[test]
fn a_sender_that_leaves_during_the_search_leaves_nothing_behind() {
    let mut world = world(2);
    let (a, b) = (user_at(0, 2, 0), user_at(1, 2, 0));
    let (alice, bob) = (world.login(a, 1), world.login(b, 1));
    world.take(bob);
    world.store.hold(&[CmdKind::Find]);
    let mut first = world.message(alice, b, "first");
    first.flags = Flags::RETRY;
    world.post(alice, &first);
    world.say(alice, b, "second");
    world.run();
    world.cut(alice);
    world.store.release();
    world.run();
    assert_eq!(texts(&world.take(bob)), ["first", "second"]);
    world.cut(bob);
    world.advance(20_000);
    assert_eq!(world.residue(), []);
}

#[test]
fn nobody_searches_for_a_sender_who_has_gone() {
    // Fault: hundreds of repeats behind one search were each looked for in turn although their
    // sender had gone, and a drain waited for all of them.
    let mut world = world(1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    world.take(bob);
    world.store.hold(&[CmdKind::Find]);
    let mut said = Vec::new();
    for (body, flags) in [
        ("first", Flags::RETRY),
        ("second", Flags::RETRY),
        ("third", Flags::NONE),
    ] {
        let mut message = world.message(alice, 2, body);
        message.flags = flags;
        world.post(alice, &message);
        said.push(message);
    }
    world.run();
    world.cut(alice);
    world.store.release();
    world.run();
    assert_eq!(texts(&world.take(bob)), ["first"]);
    let open = |(what, _): &(&str, u64)| what.contains("in_flight") || what.contains("gates");
    assert!(!world.residue().iter().any(open), "{:?}", world.residue());
    // Its sender comes back and says all of it again: in order, and the first is known.
    let alice = world.login(1, 1);
    world.take(alice);
    for message in &said {
        repeat(&mut world, alice, message);
    }
    world.run();
    let shown = texts(&world.take(bob));
    assert_eq!(&shown[shown.len() - 2..], ["second", "third"]);
    assert_eq!(entries(&world, 1, 2), 3);
}

#[test]
fn a_search_starts_a_minute_before_the_id_s_own_time() {
    // A client whose clock is ahead by a minute made the id; the entry is older than the id says.
    let mut world = world(1);
    let alice = world.login(1, 1);
    let wall_ms = world.now().wall_us / 1_000;
    let mut message = world.message(alice, 2, "from the future");
    message.msg_id = portico_wire::ids::MsgId::new_v7(wall_ms + 60_000, 1);
    world.post(alice, &message);
    let (place, _) = sent(&world.run_and_take(alice), message.corr);
    let again = repeat(&mut world, alice, &message);
    let found = sent(&world.run_and_take(alice), again.corr);
    assert_eq!(found, (place, true));
}

#[test]
fn the_same_id_of_another_device_is_another_message() {
    // O8: a bare msg_id could be copied by a hostile sender.
    let mut world = world(1);
    let (alice, eve) = (world.login(1, 1), world.login(3, 1));
    let message = world.say(alice, 2, "alice");
    sent(&world.run_and_take(alice), message.corr);
    let copied = Outgoing {
        corr: world.corr(eve),
        flags: Flags::RETRY,
        body: b"eve".to_vec(),
        ..message.clone()
    };
    world.post(eve, &copied);
    assert!(!sent(&world.run_and_take(eve), copied.corr).1);
    let bob = world.login(2, 1);
    assert_eq!(texts(&world.take(bob)), ["alice", "eve"]);
}

#[test]
fn a_repeat_while_the_store_is_full_still_adopts() {
    let limits = Limits {
        // The driver goes on reading, so that the repeat meets the full store.
        store_requests_soft: 1_000,
        store_bytes_soft: 1 << 20,
        ..Limits::test_min()
    };
    let mut world = World::new(1, limits);
    let alice = world.login(1, 1);
    let busy: Vec<usize> = (0..4).map(|n| world.login(10 + n, 1)).collect();
    world.advance(2_000);
    world.take(alice);
    world.store.hold(&[CmdKind::Append]);
    let message = world.say(alice, 2, "mine");
    world.run();
    for client in &busy {
        for _ in 0..4 {
            world.say(*client, 2, "theirs");
        }
    }
    world.run();
    let refused = world.say(alice, 2, "new");
    let again = repeat(&mut world, alice, &message);
    let got = world.run_and_take(alice);
    assert_eq!(error(&got, refused.corr), ErrorCode::OVERLOADED);
    assert_eq!(error(&got, message.corr), ErrorCode::TIMEOUT);
    world.store.release();
    let got = world.run_and_take(alice);
    sent(&got, again.corr);
    assert_eq!(world.count(Counter::Duplicates), 0);
}

#[test]
fn deadlines_behind_a_slow_attempt_do_not_pile_up() {
    let mut world = World::new(1, Limits::test_min());
    let alice = world.login(1, 1);
    world.store.hold(&[CmdKind::Find]);
    let mut slow = world.message(alice, 2, "slow");
    slow.flags = Flags::RETRY;
    world.post(alice, &slow);
    for _ in 0..200 {
        let message = world.say(alice, 3, "fast");
        sent(&world.run_and_take(alice), message.corr);
    }
    let residue = world.shard(0).residue();
    let deadlines = residue.iter().find(|(name, _)| *name == "send_deadlines");
    let most = 2 * Limits::test_min().store_requests_max as u64;
    assert!(deadlines.is_some_and(|(_, count)| (1..=most).contains(count)));
    world.store.release();
    world.run();
    assert_eq!(world.store.inbox(UserId(2)).len(), 1);
}

#[test]
fn a_retry_storm_costs_no_walk_over_what_is_in_flight() {
    // Thousands of attempts in flight, each repeated: finished in an instant, by an index.
    let mut world = world(1);
    let clients: Vec<usize> = (1..=40).map(|user| world.login(user, 1)).collect();
    world.store.hold(&[CmdKind::Append]);
    let mut letters = Vec::new();
    for client in &clients {
        for _ in 0..200 {
            letters.push((*client, world.say(*client, 99, "x")));
        }
    }
    world.run();
    for (client, message) in &letters {
        repeat(&mut world, *client, message);
    }
    world.run();
    world.check_invariants();
    assert_eq!(world.store.queued(CmdKind::Find), 0);
    world.store.release();
    world.run();
    assert_eq!(world.store.inbox(UserId(99)).len(), letters.len());
}
