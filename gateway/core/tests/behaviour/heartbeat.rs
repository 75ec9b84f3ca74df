//! The client pings, the server only times out: twice the promised interval and a grace.

use crate::support::{ops, world};
use portico_core::{
    Limits,
    testing::{CmdKind, World},
};
use portico_wire::{
    CloseCode, Op,
    encode::{put_ping, put_plain},
    frame::Flags,
};

fn ping(world: &mut World, client: usize, next_s: u32) {
    let mut bytes = Vec::new();
    put_ping(&mut bytes, 1, next_s);
    world.write(client, &bytes);
    world.run();
}

/// After how many whole seconds of silence the connection is closed.
fn silence_s(world: &mut World, client: usize) -> u32 {
    for second in 0..2_000 {
        if !world.is_connected(client) {
            assert_eq!(world.close_code(client), Some(CloseCode::IDLE_TIMEOUT));
            return second;
        }
        world.advance(1_000);
    }
    panic!("it is never closed");
}

#[test]
fn silence_is_measured_by_the_promise() {
    for (promised_s, interval_s) in [
        (0, 60),
        (60, 60),
        (30, 30),
        (1, 30),
        (300, 300),
        (100_000, 300),
        (u32::MAX, 300),
    ] {
        let mut world = world(1);
        let client = world.login(1, 1);
        world.take(client);
        ping(&mut world, client, promised_s);
        assert_eq!(ops(&world.take(client)), [Op::Pong]);
        let seconds = silence_s(&mut world, client);
        let expected = 2 * interval_s + 15;
        assert!(
            (expected..=expected + 1).contains(&seconds),
            "{promised_s} s promised, closed after {seconds} s"
        );
        assert_eq!(world.residue(), []);
    }
}

#[test]
fn a_ping_without_a_number_counts_and_is_not_answered() {
    let mut world = world(1);
    let client = world.login(1, 1);
    world.take(client);
    world.advance(100_000);
    let mut bytes = Vec::new();
    put_ping(&mut bytes, 0, 60);
    world.write(client, &bytes);
    world.run();
    assert_eq!(ops(&world.take(client)), []);
    let seconds = silence_s(&mut world, client);
    assert!((135..=136).contains(&seconds), "closed after {seconds} s");
}

#[test]
fn a_shorter_promise_holds_at_once_and_a_longer_one_too() {
    let mut world = world(1);
    let client = world.login(1, 1);
    ping(&mut world, client, 300);
    world.advance(10_000);
    ping(&mut world, client, 30);
    let seconds = silence_s(&mut world, client);
    assert!((75..=76).contains(&seconds), "{seconds}");
    let client = world.login(1, 1);
    ping(&mut world, client, 30);
    world.advance(10_000);
    ping(&mut world, client, 300);
    let seconds = silence_s(&mut world, client);
    assert!((615..=616).contains(&seconds), "{seconds}");
}

#[test]
fn any_frame_counts_as_life() {
    let mut world = world(1);
    let client = world.login(1, 1);
    for _ in 0..10 {
        world.advance(130_000);
        let mut bytes = Vec::new();
        put_plain(&mut bytes, Op::ClientState, Flags::NONE, 0, 1);
        world.write(client, &bytes);
        world.run();
    }
    assert!(world.is_connected(client));
}

#[test]
fn a_frame_that_comes_with_the_deadline_counts() {
    // A loop that was late sees both in one turn.
    let mut world = world(1);
    let client = world.login(1, 1);
    world.take(client);
    world.sleep(140_000);
    ping(&mut world, client, 60);
    assert_eq!(ops(&world.take(client)), [Op::Pong]);
    assert!(world.is_connected(client));
    world.advance(100_000);
    assert!(world.is_connected(client));
}

#[test]
fn nobody_is_blamed_for_silence_while_nothing_is_read() {
    let mut world = World::new(1, Limits::test_min());
    let clients: Vec<usize> = (1..=4).map(|user| world.login(user, 1)).collect();
    world.advance(2_000);
    world.store.hold(&[CmdKind::Append]);
    for client in &clients {
        for _ in 0..4 {
            world.say(*client, 9, "x");
        }
    }
    world.run();
    assert!(world.shard(0).is_congested());
    for _ in 0..10 {
        for client in &clients {
            ping(&mut world, *client, 30);
        }
        world.advance(30_000);
    }
    assert!(clients.iter().all(|client| world.is_connected(*client)));
    world.store.release();
    world.run();
    // From here on silence counts again.
    world.advance(200_000);
    assert!(clients.iter().all(|client| !world.is_connected(*client)));
}

#[test]
fn thousands_of_silent_connections_end_in_their_time() {
    let mut world = world(2);
    let clients: Vec<usize> = (1..=2_000)
        .map(|user| world.open((user % 2) as usize, user, 1, |_| {}))
        .collect();
    world.run();
    world.advance(134_000);
    assert!(clients.iter().all(|client| world.is_connected(*client)));
    world.advance(2_000);
    assert!(clients.iter().all(|client| !world.is_connected(*client)));
    assert_eq!(world.residue(), []);
}
