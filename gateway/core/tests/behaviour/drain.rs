//! Leaving in good order: everybody is told and may go on for a while, then closed; what was in
//! flight is finished and written.

use crate::support::{ops, sent, texts, user_at, world};
use portico_core::{
    Counter, Limits,
    testing::{CmdKind, Got, World},
};
use portico_wire::{
    CloseCode, Op,
    ids::{DeviceId, UserId},
};

fn told(got: &[Got]) -> Vec<(u32, u32)> {
    let drains = got.iter().filter_map(Got::drain);
    drains
        .map(|drain| (drain.spread_ms, drain.deadline_ms))
        .collect()
}

#[test]
fn everybody_is_told_and_served_until_the_deadline() {
    let mut world = world(2);
    let (a, b) = (user_at(0, 2, 0), user_at(1, 2, 0));
    let (alice, bob) = (world.login(a, 1), world.login(b, 1));
    world.take(alice);
    world.take(bob);
    world.drain(5_000, 20_000);
    assert_eq!(told(&world.run_and_take(alice)), [(5_000, 20_000)]);
    assert_eq!(told(&world.take(bob)), [(5_000, 20_000)]);
    world.advance(19_000);
    let message = world.say(alice, b, "still served");
    sent(&world.run_and_take(alice), message.corr);
    assert_eq!(texts(&world.take(bob)), ["still served"]);
    assert!(!world.is_drained());
    world.advance(1_100);
    for client in [alice, bob] {
        assert_eq!(world.close_code(client), Some(CloseCode::DRAINING));
    }
    world.advance(2_000);
    assert!(world.is_drained());
    assert_eq!(world.residue(), []);
    // What was acknowledged last is written.
    let last = world.store.inbox(UserId(b))[0].seq;
    assert_eq!(world.store.cursor(UserId(b), DeviceId(1)), Some(last));
    assert_eq!(world.count(Counter::ClosedDraining), 2);
}

#[test]
fn they_are_told_in_slices_and_with_the_time_that_is_left() {
    let unbounded = Limits {
        logins_per_s: 0,
        ..Limits::default()
    };
    let mut world = World::new(1, unbounded);
    let clients: Vec<usize> = (1..=2_500)
        .map(|user| world.open(0, user, 1, |_| {}))
        .collect();
    world.run();
    for client in &clients {
        world.take(*client);
    }
    world.drain(600_000, 10_000);
    world.run();
    let count = |world: &World| {
        let told = clients
            .iter()
            .filter(|client| !told(world.got(**client)).is_empty());
        told.count()
    };
    let first = count(&world);
    assert!((1..2_500).contains(&first), "not all at once: {first}");
    world.advance(500);
    assert_eq!(count(&world), 2_500);
    for client in &clients {
        let (spread_ms, deadline_ms) = told(world.got(*client))[0];
        assert!(
            spread_ms <= deadline_ms,
            "nobody is sent beyond the deadline"
        );
        assert!((9_000..=10_000).contains(&deadline_ms));
    }
}

#[test]
fn who_goes_by_itself_ends_the_drain_early() {
    let mut world = world(1);
    let client = world.login(1, 1);
    world.drain(1_000, 60_000);
    world.run();
    assert!(!world.is_drained());
    world.cut(client);
    world.advance(1_500);
    assert!(world.is_drained());
}

#[test]
fn nobody_new_is_let_in() {
    let mut world = world(2);
    let user = user_at(1, 2, 0);
    let early = world.connect(0);
    let moving = world.open(0, user, 1, |_| {});
    // The hand-over is under way when the drain begins.
    let mut events = Vec::new();
    world.ready(&mut events);
    world.perform(events[0], 0);
    world.drain(1_000, 30_000);
    let late = world.open(1, user, 2, |_| {});
    world.run();
    for client in [early, moving, late] {
        assert_eq!(world.close_code(client), Some(CloseCode::DRAINING));
        assert!(!ops(world.got(client)).contains(&Op::Welcome));
    }
    world.advance(2_000);
    assert!(world.is_drained());
}

#[test]
fn work_in_flight_is_finished_first() {
    let mut world = world(2);
    let (a, b) = (user_at(0, 2, 0), user_at(1, 2, 0));
    let alice = world.login(a, 1);
    world.advance(2_000);
    world.store.hold(&[CmdKind::Append]);
    world.say(alice, b, "last words");
    world.run();
    world.drain(0, 0);
    world.advance(5_000);
    assert_eq!(world.close_code(alice), Some(CloseCode::DRAINING));
    assert!(!world.is_drained(), "a write is in flight");
    world.store.release();
    world.advance(2_000);
    assert!(world.is_drained());
    assert_eq!(world.store.inbox(UserId(b)).len(), 1);
}

#[test]
fn a_store_that_fails_for_a_while_delays_the_end_and_loses_nothing() {
    let mut world = world(1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    world.advance(2_000);
    world.say(alice, 2, "x");
    world.run();
    let kinds = [CmdKind::SetCursors, CmdKind::SetMarks];
    let unavailable = portico_core::store::StoreError::Unavailable;
    world.store.fail(&kinds, 5, unavailable);
    world.drain(0, 100);
    world.advance(1_000);
    assert!(!world.is_drained());
    world.advance(20_000);
    assert!(world.is_drained());
    let last = world.store.inbox(UserId(2))[0].seq;
    assert_eq!(world.store.cursor(UserId(2), DeviceId(1)), Some(last));
    let _ = bob;
}

#[test]
fn an_empty_shard_is_drained_at_once() {
    let mut world = World::new(3, Limits::default());
    assert!(!world.is_drained(), "nobody asked for it");
    world.drain(1_000, 1_000);
    assert!(world.is_drained());
}
