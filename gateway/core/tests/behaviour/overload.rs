//! Every queue has an end, and what is refused is refused with a clear word; afterwards all is as
//! before.

use crate::support::{assert_idle, error, sent, texts, user_at, world};
use portico_core::{
    Counter, Limits,
    testing::{CmdKind, Outgoing, World},
};
use portico_wire::{
    CloseCode, ErrorCode, Flags,
    ids::{Seq, UserId},
};

/// The driver reads on although the store is busy.
fn deaf() -> Limits {
    Limits {
        store_requests_soft: 1_000,
        store_bytes_soft: 1 << 20,
        requests_max: 100,
        login_reads_max: 1_000,
        ..Limits::test_min()
    }
}

#[test]
fn a_busy_store_stops_the_reading() {
    // O15.
    let mut world = World::new(1, Limits::test_min());
    let clients: Vec<usize> = (1..=8).map(|user| world.login(user, 1)).collect();
    world.advance(2_000);
    world.store.hold(&[CmdKind::Append]);
    for client in &clients {
        for _ in 0..4 {
            world.say(*client, 50, "x");
        }
    }
    world.run();
    assert!(world.shard(0).is_congested());
    let soft = Limits::test_min().store_requests_soft as u64;
    let taken = world.shard(0).gauges().store_requests;
    assert!((soft + 1..=soft + 4).contains(&taken), "{taken}");
    assert_eq!(
        world.count(Counter::RefusedOverload),
        0,
        "nobody is refused"
    );
    world.store.release();
    world.run();
    assert!(!world.shard(0).is_congested());
    assert_eq!(world.store.inbox(UserId(50)).len(), 32);
}

#[test]
fn past_the_hard_bounds_messages_are_refused() {
    for (body, shards) in [
        ("x", 1),
        ("x", 2),
        (&*"y".repeat(2_000), 1),
        (&*"y".repeat(2_000), 2),
    ] {
        let mut world = World::new(shards, deaf());
        let (a, b) = (user_at(0, shards, 0), user_at(shards - 1, shards, 1));
        let alice = world.login(a, 1);
        world.advance(2_000);
        world.take(alice);
        world.store.hold(&[CmdKind::Append]);
        let corrs: Vec<u32> = (0..40).map(|_| world.say(alice, b, body).corr).collect();
        let refused = world.run_and_take(alice);
        assert!(!refused.is_empty());
        for got in &refused {
            let reply = got.error_reply().expect("ERROR");
            assert_eq!(reply.code, ErrorCode::OVERLOADED);
            assert!(reply.retry_after_ms > 0);
        }
        for shard in 0..usize::from(shards) {
            let gauges = world.shard(shard).gauges();
            assert!(gauges.store_requests <= deaf().store_requests_max as u64);
            assert!(gauges.store_bytes <= deaf().store_bytes_max as u64 + 2_200);
        }
        world.check_invariants();
        // "Certainly not accepted": what was refused is not there, the rest is.
        world.store.release();
        let got = world.run_and_take(alice);
        assert_eq!(got.len() + refused.len(), corrs.len());
        assert_eq!(world.store.inbox(UserId(b)).len(), got.len());
        let message = world.say(alice, b, "after");
        sent(&world.run_and_take(alice), message.corr);
        world.cut(alice);
        world.advance(15_000);
        assert_eq!(world.residue(), []);
    }
}

#[test]
fn bodies_that_wait_for_another_shard_are_bounded_too() {
    // The messages wait between the shards, where the store's own bound does not see them.
    let limits = Limits {
        requests_max: 1_000,
        store_requests_max: 1_000,
        ..deaf()
    };
    let mut world = World::new(2, limits.clone());
    let (a, b) = (user_at(0, 2, 0), user_at(1, 2, 0));
    let alice = world.login(a, 1);
    world.advance(2_000);
    world.take(alice);
    let body = "z".repeat(1_000);
    for _ in 0..50 {
        world.say(alice, b, &body);
    }
    // Only reading; nothing crosses.
    let read = portico_core::testing::Event::Read(alice);
    world.perform(read, 0);
    assert!(world.count(Counter::RefusedOverload) >= 40);
    assert!(world.shard(0).gauges().messages_in_flight <= 9);
    world.run();
    world.check_invariants();
    world.cut(alice);
    world.advance(15_000);
    assert_eq!(world.residue(), []);
}

/// Fault: logins piled up at the store until the shard read from nobody, and those who were in got no
/// PONG any more.
#[test]
fn logins_never_take_all_of_the_store() {
    let limits = Limits {
        login_reads_max: 24,
        ..Limits::default()
    };
    let mut world = World::new(2, limits);
    world.store.hold(&CmdKind::ALL);
    let clients: Vec<usize> = (1..=100)
        .map(|user| world.open((user % 2) as usize, user, 1, |_| {}))
        .collect();
    world.run();
    let reads = |shard| world.shard(shard).gauges().store_requests;
    assert_eq!((reads(0), reads(1)), (12, 12), "a share for each shard");
    assert!(!world.shard(0).is_congested() && !world.shard(1).is_congested());
    let refused = clients.iter().filter(|client| {
        let close = world.got(**client).last().and_then(|got| got.close());
        close.is_some_and(|close| close.code == CloseCode::OVERLOADED && close.retry_after_ms > 0)
    });
    assert_eq!(refused.count(), 76);
    assert_eq!(world.count(Counter::LoginsDeferred), 76);
    world.store.release();
    world.run();
    let client = world.login(200, 1);
    assert!(world.is_connected(client));
}

#[test]
fn logins_wait_outside_while_the_store_stands_still() {
    let mut world = World::new(1, deaf());
    let max = deaf().store_requests_max;
    world.store.hold(&CmdKind::ALL);
    let clients: Vec<usize> = (1..=100)
        .map(|user| world.open(0, user, 1, |_| {}))
        .collect();
    world.run();
    assert!(world.shard(0).gauges().store_requests <= max as u64);
    let refused = clients.iter().filter(|client| {
        let got = world.got(**client).last();
        let close = got.and_then(|got| got.close());
        close.is_some_and(|close| {
            assert!(close.retry_after_ms > 0);
            close.code == CloseCode::OVERLOADED
        })
    });
    assert_eq!(refused.count(), 100 - max);
    assert_eq!(world.count(Counter::ClosedOverloaded), 100 - max as u64);
    world.store.release();
    world.run();
    let client = world.login(200, 1);
    assert!(world.is_connected(client));
}

#[test]
fn an_older_session_survives_a_refused_successor() {
    let mut world = World::new(1, deaf());
    let old = world.login(1, 1);
    world.say(old, 2, "so that there is something");
    world.advance(2_000);
    world.store.hold(&[CmdKind::Append]);
    for _ in 0..deaf().store_requests_max {
        world.say(old, 2, "x");
    }
    world.run();
    // Its position is not the one that is known: the store would have to be asked.
    let new = world.open(0, 1, 1, |hello| hello.last_seq = Seq(1));
    world.run();
    assert_eq!(world.close_code(new), Some(CloseCode::OVERLOADED));
    assert!(world.is_connected(old));
    // Whose position is known is let in, though its last connection has not ended.
    let again = world.open(0, 1, 1, |_| {});
    world.run();
    assert!(world.is_connected(again));
    assert_eq!(world.close_code(old), Some(CloseCode::SESSION_REPLACED));
}

#[test]
fn churn_leaves_nothing_behind() {
    let mut world = world(3);
    for round in 0..60_u64 {
        let clients: Vec<usize> = (1..=6)
            .map(|user| world.open((user % 3) as usize, user, 1 + (round % 2) as u16, |_| {}))
            .collect();
        if round % 4 != 0 {
            world.run();
        }
        for (at, client) in clients.iter().enumerate() {
            world.say(*client, 1 + (at as u64 + round) % 6, "hello");
            let corr = world.corr(*client);
            world.mark_read(*client, 1, portico_wire::ids::ConvSeq(round + 1), corr);
            let corr = world.corr(*client);
            world.ask_receipts(*client, corr, &[1, 2, 3]);
        }
        if round % 3 == 0 {
            let mut events = Vec::new();
            for _ in 0..round {
                world.ready(&mut events);
                if let Some(event) = events.last() {
                    world.perform(*event, 0);
                }
            }
        } else {
            world.run();
        }
        world.check_invariants();
        for client in clients {
            world.cut(client);
        }
        world.check_invariants();
    }
    world.advance(15_000);
    assert_eq!(world.residue(), []);
    assert_idle(&world);
}

#[test]
fn the_longest_message_passes_the_default_bounds() {
    let mut world = world(1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    let body = "m".repeat(64_000);
    for _ in 0..20 {
        let message = world.say(alice, 2, &body);
        let got = world.run_and_take(alice);
        sent(&got, message.corr);
    }
    assert_eq!(texts(&world.take(bob)).len(), 20);
    let message = world.message(alice, 2, &"m".repeat(64_001));
    world.post(alice, &message);
    assert_eq!(
        error(&world.run_and_take(alice), message.corr),
        ErrorCode::TOO_LARGE
    );
}

#[test]
fn who_asks_for_no_answers_is_not_read_for_a_while() {
    // O15.
    let limits = Limits::test_min();
    let max = u64::from(limits.requests_max);
    let mut world = World::new(1, limits);
    let a = world.login(1, 1);
    world.advance(2_000);
    world.store.hold(&[CmdKind::Append]);
    for number in 0..10 * max {
        let message = Outgoing {
            corr: 0,
            ..world.message(a, 2, &format!("m{number}"))
        };
        world.post(a, &message);
    }
    world.run();
    let open = world.shard(0).gauges().messages_in_flight;
    assert_eq!(open, max, "as many as may be are open");
    world.store.release();
    world.run();
    world.advance(2_000);
    assert_eq!(world.store.inbox(UserId(2)).len() as u64, 10 * max);
    assert_eq!(world.count(Counter::RefusedRate), 0, "nobody is refused");
    assert_eq!(
        world.count(Counter::UnanswerableSends),
        0,
        "nothing is lost"
    );
}

#[test]
fn who_repeats_without_asking_for_answers_is_not_read_for_a_while_either() {
    // O15.
    let limits = Limits::test_min();
    let max = limits.requests_max as usize;
    let mut world = World::new(1, limits);
    let a = world.login(1, 1);
    world.advance(2_000);
    world.store.hold(&[CmdKind::Append]);
    let messages: Vec<Outgoing> = (0..max)
        .map(|number| Outgoing {
            corr: 0,
            ..world.message(a, 2, &format!("m{number}"))
        })
        .collect();
    messages.iter().for_each(|message| world.post(a, message));
    world.run();
    let again = world.login(1, 1);
    for message in messages {
        let flags = Flags::RETRY;
        world.post(again, &Outgoing { flags, ..message });
    }
    for number in 0..10 {
        let message = Outgoing {
            corr: 0,
            ..world.message(again, 2, &format!("new{number}"))
        };
        world.post(again, &message);
    }
    world.run();
    world.store.release();
    world.run();
    assert_eq!(world.store.inbox(UserId(2)).len(), max + 10);
    assert_eq!(
        world.count(Counter::UnanswerableSends),
        0,
        "nothing is lost"
    );
}
