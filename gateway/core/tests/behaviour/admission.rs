//! Logins are admitted at a bounded rate. What comes faster is refused before anything is done for
//! it, each client with its own place in line, and clients learn over how long to spread a return.

use crate::support::{assert_idle, ops, world};
use portico_core::{
    ConnId, Counter, Effect, Effects, Grant, Input, Limits, Now, Shard, ShardConfig, ShardId, feed,
    testing::World,
};
use portico_wire::{
    CloseCode, Op,
    encode::{Encoder, put_body, put_ping},
    frame::Flags,
    ids::{DeviceId, UserId},
    message::Hello,
};

fn admitting(logins_per_s: u32, shards: u16) -> World {
    let limits = Limits {
        logins_per_s,
        login_reads_max: 1 << 20,
        ..Limits::default()
    };
    World::new(shards, limits)
}

/// What a refused client was told to wait.
fn wait_ms(world: &World, client: usize) -> u32 {
    let close = world.got(client).last().and_then(|got| got.close());
    let close = close.expect("it was refused");
    assert_eq!(close.code, CloseCode::OVERLOADED);
    assert!(close.retry_after_ms > 0);
    close.retry_after_ms
}

#[test]
fn above_the_rate_each_is_told_a_place_of_its_own_and_is_taken_then() {
    for shards in 1..=3 {
        // 100 logins a second for each shard.
        let mut world = admitting(100 * u32::from(shards), shards);
        let mut waits = Vec::new();
        for user in 1..=200 * u64::from(shards) {
            let shard = user as usize % usize::from(shards);
            let client = world.open(shard, user, 1, |_| {});
            world.run();
            if !world.is_connected(client) {
                waits.push((wait_ms(&world, client), user, shard));
            }
        }
        let taken = 25 * usize::from(shards);
        assert_eq!(world.count(Counter::LoggedIn), taken as u64);
        let refused = 175 * usize::from(shards);
        assert_eq!(waits.len(), refused);
        assert_eq!(world.count(Counter::LoginsDeferred), refused as u64);
        assert_eq!(world.count(Counter::ClosedOverloaded), refused as u64);
        // A hundredth of a second apart.
        waits.sort_unstable();
        let start_us = world.now().mono_us;
        for (at, (wait_ms, user, shard)) in waits.into_iter().enumerate() {
            let place = at / usize::from(shards) + 1;
            assert_eq!(wait_ms as usize, 250 + 10 * place);
            let due_us = start_us + u64::from(wait_ms) * 1_000;
            world.advance(due_us.saturating_sub(world.now().mono_us) / 1_000);
            let client = world.open(shard, user, 1, |_| {});
            world.run();
            assert!(world.is_connected(client), "at the time it was told");
        }
        world.advance(2_000);
        assert_idle(&world);
    }
}

#[test]
fn who_is_in_stays_in_and_is_served() {
    let mut world = admitting(80, 1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    for user in 100..200 {
        world.open(0, user, 1, |_| {});
    }
    world.say(alice, 2, "as ever");
    world.run();
    assert!(world.count(Counter::LoginsDeferred) > 0);
    assert_eq!(crate::support::texts(world.got(bob)), ["as ever"]);
    // The older connection of a device lives on when its successor is refused.
    let successor = world.open(0, 1, 1, |_| {});
    world.run();
    wait_ms(&world, successor);
    assert!(world.is_connected(alice));
    assert_eq!(world.close_code(alice), None);
}

#[test]
fn no_bound_is_a_setting() {
    let mut world = admitting(0, 1);
    for user in 1..=5_000 {
        world.open(0, user, 1, |_| {});
    }
    world.run();
    assert_eq!(world.count(Counter::LoggedIn), 5_000);
    assert_eq!(world.count(Counter::LoginsDeferred), 0);
}

/// Fault: a HELLO that could not be read took a place all the same.
#[test]
fn junk_takes_nobodys_place() {
    let mut world = admitting(1, 1);
    let mut bytes = Vec::new();
    put_body(&mut bytes, Op::Hello as u8, Flags::NONE, 1, 0, b"no hello");
    for _ in 0..100 {
        let client = world.connect(0);
        world.write(client, &bytes);
        world.run();
        assert_eq!(world.close_code(client), Some(CloseCode::PROTOCOL_ERROR));
    }
    assert_eq!(world.count(Counter::LoginsDeferred), 0);
    let client = world.open(0, 1, 1, |_| {});
    world.run();
    assert!(world.is_connected(client));
}

/// A shard whose authenticator takes its time.
struct Slow {
    shard: Shard,
    fx: Effects,
    waiting: Vec<ConnId>,
    closed: usize,
}

const NOW: Now = Now {
    mono_us: 5_000_000,
    wall_us: 1_790_000_000_000_000,
};

impl Slow {
    fn hello(&mut self, index: u32) {
        let conn = ConnId {
            index,
            generation: 1,
        };
        let mut bytes = Vec::new();
        let hello = Hello {
            token: Some("anything"),
            ..Hello::default()
        };
        Encoder::new().hello(&mut bytes, 1, &hello);
        self.shard.handle(NOW, Input::Opened { conn }, &mut self.fx);
        feed(&mut self.shard, NOW, conn, &bytes, &mut self.fx);
        self.look();
    }

    fn look(&mut self) {
        for effect in self.fx.list.drain(..) {
            match effect {
                Effect::Authenticate { conn, .. } => self.waiting.push(conn),
                Effect::Close { .. } => self.closed += 1,
                _ => {}
            }
        }
        self.shard.check_invariants();
    }
}

#[test]
fn a_slow_authenticator_is_not_asked_for_more_than_it_may_hold() {
    let config = ShardConfig {
        limits: Limits {
            logins_per_s: 0,
            sign_ins_max: 6,
            ..Limits::default()
        },
        ..ShardConfig::new(ShardId(0), 1)
    };
    let mut slow = Slow {
        shard: Shard::new(config),
        fx: Effects::default(),
        waiting: Vec::new(),
        closed: 0,
    };
    (0..20).for_each(|index| slow.hello(index));
    assert_eq!((slow.waiting.len(), slow.closed), (6, 14));
    assert_eq!(slow.shard.counters().get(Counter::LoginsDeferred), 14);
    // An answer, or the end of a connection that waits, makes room for one more.
    let conn = slow.waiting[0];
    let result = Ok(Grant {
        user: UserId(1),
        device: DeviceId(1),
        resumed: false,
        resume_token: Vec::new(),
        resume_ttl_s: 0,
        ..Grant::default()
    });
    let answer = Input::Authenticated { conn, result };
    slow.shard.handle(NOW, answer, &mut slow.fx);
    let conn = slow.waiting[1];
    slow.shard.handle(NOW, Input::Ended { conn }, &mut slow.fx);
    slow.look();
    (30..40).for_each(|index| slow.hello(index));
    assert_eq!(slow.waiting.len(), 8);
}

#[test]
fn welcome_and_pong_say_over_how_long_to_spread_a_return() {
    // 20 a second: each session adds 50 ms, and a tenth of it.
    let mut world = admitting(20, 1);
    let mut clients = Vec::new();
    for user in 1..=16 {
        world.advance(1_000);
        let client = world.login(user, 1);
        let welcome = world.take(client).remove(0);
        let spread_ms = welcome.welcome().expect("WELCOME").reconnect_spread_ms;
        let expected = user as u32 * 55;
        let expected = if expected < 500 { 0 } else { expected };
        assert_eq!(spread_ms, expected, "{user} sessions");
        clients.push(client);
    }
    let pong = |world: &mut World, client: usize| {
        let mut bytes = Vec::new();
        put_ping(&mut bytes, 7, 60);
        world.write(client, &bytes);
        let got = world.run_and_take(client);
        assert_eq!(ops(&got), [Op::Pong]);
        got[0].frame().aux()
    };
    // The newest value goes to the oldest session.
    assert_eq!(pong(&mut world, clients[0]), 880);
    for client in clients.drain(10..) {
        world.cut(client);
    }
    assert_eq!(pong(&mut world, clients[0]), 550);
    world.cut(clients[9]);
    assert_eq!(pong(&mut world, clients[0]), 0);
}

#[test]
fn what_a_burst_borrowed_is_given_back() {
    let mut world = world(1);
    let clients: Vec<usize> = (1..=200).map(|user| world.login(user, 1)).collect();
    for client in &clients {
        world.set_reading(*client, false);
    }
    for client in &clients {
        world.say(*client, 1 + (*client as u64 + 1) % 200, &"x".repeat(2_000));
    }
    world.run();
    for client in &clients {
        world.set_reading(*client, true);
    }
    world.run();
    assert!(world.shard(0).pooled_bytes() > 100_000);
    // Nobody says anything for a minute; the shard looks after its memory by itself.
    world.advance(20_000);
    assert_eq!(world.shard(0).pooled_bytes(), 0);
    let next_us = world.shard(0).next_wakeup_us().expect("heartbeats");
    assert!(next_us > world.now().mono_us + 10_000_000, "it sleeps");
    world.check_invariants();
}

/// Fault: a move that waited for a client which never reads had no end, nor had the drain that waited
/// for the move.
#[test]
fn a_move_that_does_not_come_about_is_timed_out() {
    let mut slow = Slow {
        shard: Shard::new(ShardConfig::new(ShardId(0), 2)),
        fx: Effects::default(),
        waiting: Vec::new(),
        closed: 0,
    };
    // Some of these live on the other shard; the driver never says that they have arrived there.
    let mut moving = 0;
    for index in 0..16 {
        slow.hello(index);
        let conn = slow.waiting[index as usize];
        let result = Ok(Grant {
            user: UserId(u64::from(index) + 1),
            device: DeviceId(1),
            resumed: false,
            resume_token: Vec::new(),
            resume_ttl_s: 0,
            ..Grant::default()
        });
        let answer = Input::Authenticated { conn, result };
        slow.shard.handle(NOW, answer, &mut slow.fx);
        let moves = |effect: &&Effect| matches!(effect, Effect::Move { .. });
        moving += slow.fx.list.iter().filter(moves).count();
        slow.look();
    }
    assert!((1..16).contains(&moving));
    assert_eq!(slow.closed, 0);
    let late = Now {
        mono_us: NOW.mono_us + 12_000_000,
        ..NOW
    };
    slow.shard.handle(late, Input::Tick, &mut slow.fx);
    slow.look();
    // Those at home wait for the store, which does not answer either.
    assert_eq!(slow.closed, 16);
    assert_eq!(slow.shard.gauges().connections, 0);
}
