//! Typing and recording: to the peer's devices in the foreground, one in two seconds, never stored.

use crate::support::{assert_idle, error, reply, user_at, world};
use portico_core::{Counter, testing::Got};
use portico_wire::{
    ErrorCode, Op,
    frame::{ConvKind, Flags, signal_kind},
    ids::{DeviceId, UserId},
    message::ClientState,
};

fn signals(got: &[Got]) -> Vec<&Got> {
    got.iter().filter(|it| it.op() == Op::Signal).collect()
}

#[test]
fn a_signal_reaches_the_foreground_and_nothing_is_stored() {
    for shards in [1, 2] {
        let mut world = world(shards);
        let (alice, bob) = (user_at(0, shards, 0), user_at(shards - 1, shards, 1));
        let a = world.login(alice, 3);
        let (b, away, hidden) = (
            world.login(bob, 1),
            world.login(bob, 2),
            world.login(bob, 4),
        );
        world.set_state(away, ClientState::Away);
        world.set_state(hidden, ClientState::Background);
        world.run();
        let executed = world.store.executed();
        let corr = world.signal(a, bob, signal_kind::TYPING, 0);
        assert_eq!(reply(&world.run_and_take(a), corr).op(), Op::Done);
        let got = world.take(b);
        let [signal] = signals(&got)[..] else {
            panic!("{got:?}");
        };
        let route = signal.route();
        assert_eq!((route.conv, route.conv_kind), (alice, ConvKind::DIRECT));
        assert_eq!((route.user, route.dev), (UserId(alice), DeviceId(3)));
        assert_eq!((route.kind, route.ttl_s), (signal_kind::TYPING, 6));
        assert!(signal.frame().flags().contains(Flags::EPHEMERAL));
        assert!(signals(&world.take(away)).is_empty() && signals(&world.take(hidden)).is_empty());
        assert_eq!(world.store.executed(), executed);
        assert_eq!(world.count(Counter::SignalsOut), 1);
        world.advance(20_000);
        assert_idle(&world);
    }
}

#[test]
fn one_in_two_seconds_per_conversation_and_stopping_is_free() {
    let mut world = world(1);
    let (a, b, c) = (world.login(1, 1), world.login(2, 1), world.login(3, 1));
    let first = world.signal(a, 2, signal_kind::TYPING, 0);
    let again = world.signal(a, 2, signal_kind::RECORDING, 0);
    let other = world.signal(a, 3, signal_kind::TYPING, 900);
    let stopped = world.signal(a, 2, signal_kind::STOPPED, 0);
    let got = world.run_and_take(a);
    for corr in [first, other, stopped] {
        assert_eq!(reply(&got, corr).op(), Op::Done);
    }
    let refused = reply(&got, again).error_reply().expect("an error");
    assert_eq!(refused.code, ErrorCode::RATE_LIMITED);
    assert_eq!(refused.retry_after_ms, 2_000);
    assert_eq!(world.count(Counter::LimitedSignals), 1);
    let kinds =
        |got: &[Got]| -> Vec<u8> { signals(got).iter().map(|it| it.route().kind).collect() };
    let got = world.take(b);
    assert_eq!(kinds(&got), [signal_kind::TYPING, signal_kind::STOPPED]);
    let got = world.take(c);
    assert_eq!(signals(&got)[0].route().ttl_s, 30, "cut to the ceiling");
    world.advance(2_000);
    let corr = world.signal(a, 2, signal_kind::TYPING, 3);
    assert_eq!(reply(&world.run_and_take(a), corr).op(), Op::Done);
    assert_eq!(signals(&world.take(b))[0].route().ttl_s, 3);
}

#[test]
fn a_blocked_user_types_to_nobody() {
    let mut world = world(2);
    let (a, b) = (world.login(1, 1), world.login(2, 1));
    world.block(b, 1);
    world.run();
    let corr = world.signal(a, 2, signal_kind::TYPING, 0);
    assert_eq!(reply(&world.run_and_take(a), corr).op(), Op::Done);
    assert!(signals(&world.run_and_take(b)).is_empty());
    assert_eq!(world.count(Counter::BlockedSignals), 1);
}

#[test]
fn bad_signals_have_an_error_each() {
    let mut world = world(1);
    let a = world.login(1, 1);
    let corr = world.signal(a, 2, 3, 0);
    assert_eq!(error(&world.run_and_take(a), corr), ErrorCode::BAD_ARGUMENT);
    let corr = world.signal(a, 0, signal_kind::TYPING, 0);
    assert_eq!(error(&world.run_and_take(a), corr), ErrorCode::BAD_ARGUMENT);
    assert_eq!(world.count(Counter::RefusedArgument), 2);
}

/// Who does not read loses signals and nothing else.
#[test]
fn signals_are_dropped_where_there_is_no_room() {
    let mut world = portico_core::testing::World::new(1, portico_core::Limits::test_min());
    let (a, b) = (world.login(1, 1), world.login(2, 1));
    world.set_reading(b, false);
    for _ in 0..40 {
        world.signal(a, 2, signal_kind::STOPPED, 0);
        world.run();
    }
    assert!(world.count(Counter::SignalsDropped) > 0);
    world.set_reading(b, true);
    world.run();
    assert!(world.is_connected(b));
    let shown = signals(&world.take(b)).len() as u64;
    assert_eq!(shown, world.count(Counter::SignalsOut));
    assert_eq!(shown + world.count(Counter::SignalsDropped), 40);
}
