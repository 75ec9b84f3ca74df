//! A process dies and another takes over the store, perhaps with another number of shards and a
//! clock that was set back: numbers never repeat and cursors stay honest.

use crate::support::{ops, sent, texts, world};
use portico_core::{Limits, testing::World};
use portico_wire::{
    Op,
    ids::{ConvId, ConvSeq, DeviceId, Seq, UserId},
};
use std::collections::BTreeSet;

/// Everybody writes to everybody.
fn chat(world: &mut World, round: usize) {
    let clients: Vec<usize> = (1..=5).map(|user| world.login(user, 1)).collect();
    for (at, client) in clients.iter().enumerate() {
        for to in 1..=5 {
            let message = world.say(*client, to, &format!("{at}>{to} {round}"));
            sent(&world.run_and_take(*client), message.corr);
        }
    }
}

#[test]
fn numbers_rise_across_restarts_whatever_the_clock_does() {
    // The model store refuses a number that was used before, in an inbox or a conversation.
    let mut world = world(3);
    let start_us = world.now().wall_us;
    let mut newest = BTreeSet::new();
    for (round, (shards, wall_us)) in [
        (3, start_us),
        (1, start_us - 7_200_000_000),
        (2, start_us - 86_400_000_000),
        (3, start_us + 1_000),
        (2, 5),
    ]
    .into_iter()
    .enumerate()
    {
        world.restart(shards);
        // The new process keeps what the old one's clock promised, and ids follow the new clock.
        world.set_wall_us(wall_us.max(8 * 24 * 3_600_000_000));
        chat(&mut world, round);
        for user in 1..=5 {
            let inbox = world.store.inbox(UserId(user));
            assert_eq!(inbox.len(), 5 * (round + 1));
            let seqs: Vec<Seq> = inbox.iter().map(|item| item.seq).collect();
            assert!(seqs.is_sorted());
            newest.extend(seqs.last().map(|seq| (user, *seq)));
        }
        let conv = ConvId::direct(UserId(1), UserId(2));
        let places = world.store.conversation(conv);
        let places: Vec<ConvSeq> = places.map(|entry| entry.conv_seq).collect();
        assert_eq!(places.len(), 2 * (round + 1));
    }
    assert_eq!(newest.len(), 25, "every round went beyond the last");
}

#[test]
fn a_device_goes_on_after_a_restart_where_it_was() {
    let mut world = world(2);
    let alice = world.login(1, 1);
    let bob = world.login(2, 1);
    for number in 0..4 {
        world.say(alice, 2, &number.to_string());
    }
    world.advance(3_000);
    world.cut(bob);
    for number in 4..8 {
        world.say(alice, 2, &number.to_string());
    }
    world.run();
    world.restart(3);
    let bob = world.login(2, 1);
    let got = world.take(bob);
    assert_eq!(texts(&got), ["4", "5", "6", "7"]);
    assert_eq!(got.last().map(|got| got.op()), Some(Op::Synced));
}

#[test]
fn a_crash_between_sent_and_everything_else_loses_nothing() {
    // After each number of events of one message the process dies; if SENT was out, it is there.
    for steps in 0..40 {
        let mut world = world(2);
        let alice = world.login(1, 1);
        world.login(2, 1);
        world.take(alice);
        let message = world.say(alice, 2, "promise");
        let mut events = Vec::new();
        for _ in 0..steps {
            world.ready(&mut events);
            if let Some(event) = events.first() {
                world.perform(*event, 0);
            }
        }
        let got = world.take(alice);
        let promised = ops(&got).contains(&Op::Sent);
        world.restart(1);
        let bob = world.open(0, 2, 2, |_| {});
        let there = texts(&world.run_and_take(bob)) == ["promise"];
        assert!(there || !promised, "after {steps} steps");
        let alice = world.login(1, 1);
        let again = portico_core::testing::Outgoing {
            flags: portico_wire::Flags::RETRY,
            corr: 77,
            ..message
        };
        world.post(alice, &again);
        let got = world.run_and_take(alice);
        assert_eq!(sent(&got, 77).1, there);
        let conv = ConvId::direct(UserId(1), UserId(2));
        assert_eq!(world.store.conversation(conv).count(), 1);
    }
}

#[test]
fn a_new_device_is_known_before_the_next_flush() {
    // Or a crash would make the copies of other devices' messages miss it.
    let mut world = World::new(1, Limits::default());
    world.login(1, 2);
    assert_eq!(world.store.cursor(UserId(1), DeviceId(2)), Some(Seq(0)));
    world.restart(1);
    let phone = world.login(1, 1);
    world.say(phone, 9, "noted");
    world.run();
    let desk = world.login(1, 2);
    assert_eq!(texts(&world.take(desk)), ["noted"]);
}
