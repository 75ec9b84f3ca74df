//! O1: an entry becomes visible when every entry of its inbox with a smaller number is durable or
//! never will be, in whatever order the store answers.

use crate::support::{assert_idle, error, sent, seqs, texts, user_at, world};
use portico_core::{
    Limits,
    store::StoreError,
    testing::{CmdKind, Event, Got, World},
};
use portico_wire::{
    ErrorCode,
    frame::Flags,
    ids::{Seq, UserId},
};

/// Gives the answers of shard 0 in this order, and lets everything else happen in between.
fn answer(world: &mut World, order: &[usize]) {
    for at in order {
        let mut events = Vec::new();
        world.ready(&mut events);
        let answers = events.iter().find_map(|event| match event {
            Event::Answer { shard: 0, of } => Some(*of),
            _ => None,
        });
        let of = answers.expect("an answer to give");
        world.perform(Event::Answer { shard: 0, of }, *at);
        quiet(world);
    }
}

/// Everything but answers.
fn quiet(world: &mut World) {
    let mut events = Vec::new();
    loop {
        world.ready(&mut events);
        events.retain(|event| !matches!(event, Event::Answer { .. }));
        if events.is_empty() {
            return;
        }
        for event in &events {
            world.perform(*event, 0);
        }
    }
}

fn orders(count: usize) -> Vec<Vec<usize>> {
    // Lehmer codes: the at-th of the answers that are left.
    let mut codes: Vec<Vec<usize>> = vec![Vec::new()];
    for left in (1..=count).rev() {
        codes = codes
            .into_iter()
            .flat_map(|code| (0..left).map(move |at| [code.as_slice(), &[at]].concat()))
            .collect();
    }
    codes
}

#[test]
fn any_order_of_answers_shows_the_same() {
    for order in orders(4) {
        let mut world = world(1);
        let (alice, bob) = (world.login(1, 1), world.login(2, 1));
        world.advance(2_000);
        world.take(bob);
        world.take(alice);
        let corrs: Vec<u32> = ["a", "b", "c", "d"]
            .map(|text| world.say(alice, 2, text).corr)
            .to_vec();
        quiet(&mut world);
        answer(&mut world, &order);
        let got = world.run_and_take(bob);
        assert_eq!(texts(&got), ["a", "b", "c", "d"], "{order:?}");
        assert!(seqs(&got).is_sorted());
        let got = world.take(alice);
        let places = corrs.iter().map(|corr| sent(&got, *corr).0);
        assert!(places.collect::<Vec<_>>().is_sorted(), "O13");
    }
}

#[test]
fn a_later_entry_waits_for_an_earlier_one() {
    let mut world = world(1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    world.advance(2_000);
    world.take(bob);
    world.take(alice);
    let first = world.say(alice, 2, "first").corr;
    let second = world.say(alice, 2, "second").corr;
    quiet(&mut world);
    answer(&mut world, &[1]);
    // Durable, hence SENT; but not shown, or a cursor could pass the first.
    sent(&world.take(alice), second);
    assert_eq!(world.take(bob), []);
    // A device that logs in now is told of neither, and misses neither.
    let other = world.open(0, 2, 2, |_| {});
    quiet(&mut world);
    answer(&mut world, &[0]);
    sent(&world.take(alice), first);
    assert_eq!(texts(&world.run_and_take(bob)), ["first", "second"]);
    assert_eq!(texts(&world.take(other)), ["first", "second"]);
}

#[test]
fn a_failed_entry_steps_aside_and_comes_back_under_a_fresh_number() {
    for order in orders(3) {
        for lost in 0..3 {
            let mut world = world(1);
            let (alice, bob) = (world.login(1, 1), world.login(2, 1));
            world.advance(2_000);
            world.take(bob);
            world.take(alice);
            let mut letters = Vec::new();
            for (at, text) in ["a", "b", "c"].into_iter().enumerate() {
                if at == lost {
                    world.store.lose_answers(&[CmdKind::Append], 1);
                }
                letters.push(world.say(alice, 2, text));
                quiet(&mut world);
            }
            answer(&mut world, &order);
            world.run();
            let got = world.take(alice);
            assert_eq!(error(&got, letters[lost].corr), ErrorCode::TIMEOUT);
            // It is there, and not shown on a guess: his connection found it in the store.
            assert_eq!(texts(&world.take(bob)), ["a", "b", "c"], "{order:?} {lost}");
            // The repeat brings it up once more.
            let letter = &mut letters[lost];
            letter.flags = Flags::RETRY;
            letter.corr = world.corr(alice);
            world.post(alice, letter);
            let (_, again) = sent(&world.run_and_take(alice), letter.corr);
            assert!(again);
            // O8.
            let got = world.take(bob);
            let named = |got: &&Got| got.route().msg_id == letter.msg_id;
            assert_eq!(got.iter().filter(named).count(), got.len());
            let last = world.store.inbox(UserId(2)).last().map(|item| item.seq);
            assert_eq!(last, seqs(&got).last().copied(), "a fresh number");
        }
    }
}

#[test]
fn a_failed_entry_never_blocks_the_others() {
    for failure in [
        StoreError::Unavailable,
        StoreError::Overloaded { retry_after_ms: 9 },
        StoreError::Invalid,
        StoreError::Fatal,
    ] {
        let mut world = world(2);
        let (a, b) = (user_at(0, 2, 0), user_at(1, 2, 0));
        let (alice, bob) = (world.login(a, 1), world.login(b, 1));
        world.take(alice);
        world.take(bob);
        world.store.fail(&[CmdKind::Append], 1, failure);
        let bad = world.say(alice, b, "bad").corr;
        let good = world.say(alice, b, "good").corr;
        let got = world.run_and_take(alice);
        let code = match failure {
            StoreError::Overloaded { .. } => ErrorCode::OVERLOADED,
            StoreError::Invalid => ErrorCode::INTERNAL,
            _ => ErrorCode::UNAVAILABLE,
        };
        assert_eq!(error(&got, bad), code);
        sent(&got, good);
        assert_eq!(texts(&world.take(bob)), ["good"]);
    }
}

#[test]
fn own_copies_keep_their_place_in_the_sender_s_inbox() {
    // User 1 sends from one device and receives at the same time; the other device sees both in the
    // order of the inbox, whatever is answered first.
    for order in orders(3) {
        let mut world = world(1);
        let (phone, desk) = (world.login(1, 1), world.login(1, 2));
        let bob = world.login(2, 1);
        world.advance(2_000);
        world.take(desk);
        world.say(phone, 2, "out");
        world.say(bob, 1, "in");
        quiet(&mut world);
        answer(&mut world, &order);
        world.run();
        let got = world.take(desk);
        let mut shown = texts(&got);
        shown.sort();
        assert_eq!(shown, ["in", "out"], "{order:?}");
        let stored = world.store.inbox(UserId(1));
        let stored: Vec<Seq> = stored.iter().map(|item| item.seq).collect();
        assert_eq!(seqs(&got), stored);
        let _ = phone;
    }
}

/// Found by the simulation: the reader's cursor passed an entry that the store had and whose answer
/// was lost. It was counted as delivered then, and never shown if its sender did not repeat it.
#[test]
fn what_may_be_stored_is_looked_up_before_a_reader_goes_on() {
    let mut world = world(1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    world.take(bob);
    world.store.lose_answers(&[CmdKind::Append], 1);
    let maybe = world.say(alice, 2, "maybe").corr;
    world.say(alice, 2, "next");
    world.run();
    assert_eq!(error(&world.take(alice), maybe), ErrorCode::TIMEOUT);
    assert_eq!(texts(&world.take(bob)), ["maybe", "next"]);
    world.store.fail(&[CmdKind::Append], 1, StoreError::Unknown);
    world.say(alice, 2, "never there");
    world.say(alice, 2, "last");
    assert_eq!(texts(&world.run_and_take(bob)), ["last"]);
    world.advance(2_000);
    assert_idle(&world);
}

/// Found by the simulation: what is settled behind an entry whose answer is late has left the store's
/// count, and still waits here with its body.
#[test]
fn the_lane_itself_is_bounded() {
    let limits = Limits {
        store_requests_max: 8,
        ..Limits::default()
    };
    let mut world = World::new(1, limits);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    world.advance(2_000);
    world.take(alice);
    world.take(bob);
    world.say(alice, 2, "0");
    quiet(&mut world);
    for number in 1..8 {
        let corr = world.say(alice, 2, &number.to_string()).corr;
        quiet(&mut world);
        answer(&mut world, &[1]);
        sent(&world.take(alice), corr);
    }
    let corr = world.say(alice, 2, "too much").corr;
    quiet(&mut world);
    assert_eq!(error(&world.take(alice), corr), ErrorCode::OVERLOADED);
    answer(&mut world, &[0]);
    let all: Vec<String> = (0..8).map(|number| number.to_string()).collect();
    assert_eq!(texts(&world.run_and_take(bob)), all);
    let corr = world.say(alice, 2, "room again").corr;
    sent(&world.run_and_take(alice), corr);
}
