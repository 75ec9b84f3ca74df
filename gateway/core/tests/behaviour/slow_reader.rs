//! O16: a client that reads slowly costs a bounded queue and delays nobody. Past the soft bound the
//! shard stops pushing and pulls from the store as the client drains: nothing is lost, nothing comes
//! twice.

use crate::support::{assert_idle, ops, sent, texts, world};
use portico_core::{
    Counter, Limits,
    testing::{CmdKind, Got, World},
};
use portico_wire::{CloseCode, Op, encode::put_ping, frame::Flags};

fn numbered(number: usize) -> String {
    format!("{number:05}{}", "x".repeat(995))
}

#[test]
fn push_turns_into_pull_and_back() {
    let mut world = world(1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    world.take(bob);
    world.set_reading(bob, false);
    world.set_acking(bob, false);
    let receive_max = Limits::default().receive_max;
    let last = world.last_seq(bob);
    world.ack(bob, last, receive_max);
    world.run();
    for number in 0..500 {
        let message = world.say(alice, 2, &numbered(number));
        // The sender does not notice.
        sent(&world.run_and_take(alice), message.corr);
    }
    assert_eq!(world.count(Counter::FellBehind), 1);
    let pushed = world.count(Counter::Delivered);
    assert!((60..70).contains(&pushed), "64 KiB, then no more: {pushed}");
    world.check_invariants();
    world.set_reading(bob, true);
    let got = world.run_and_take(bob);
    let all: Vec<_> = (0..500).map(numbered).collect();
    assert_eq!(texts(&got), all);
    assert_eq!(ops(&got), [Op::Deliver; 500], "no second SYNCED");
    // Back to push.
    world.say(alice, 2, "live");
    assert_eq!(texts(&world.run_and_take(bob)), ["live"]);
    assert_eq!(world.count(Counter::Delivered), pushed + 1);
    assert_eq!(world.count(Counter::Replayed), 500 - pushed);
}

#[test]
fn a_full_window_turns_push_into_pull_too() {
    let mut world = world(1);
    let alice = world.login(1, 1);
    let bob = world.open(0, 2, 1, |hello| hello.receive_max = 2);
    world.run();
    for number in 0..7 {
        world.say(alice, 2, &number.to_string());
    }
    world.run();
    let mut all = Vec::new();
    for _ in 0..5 {
        let got = world.run_and_take(bob);
        assert!(texts(&got).len() <= 2);
        all.extend(texts(&got));
        let last = world.last_seq(bob);
        world.ack(bob, last, 2);
    }
    assert_eq!(all, ["0", "1", "2", "3", "4", "5", "6"]);
}

#[test]
fn who_takes_nothing_for_half_a_minute_is_closed() {
    let mut world = world(1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    world.take(bob);
    let last = world.last_seq(bob);
    world.ack(bob, last, 4_096);
    world.run();
    world.set_reading(bob, false);
    for number in 0..100 {
        world.say(alice, 2, &numbered(number));
    }
    world.advance(29_000);
    // It lives, by its own word, and by shorter and shorter promises; that does not count.
    for seconds in [300, 200, 100, 30] {
        let mut ping = Vec::new();
        put_ping(&mut ping, 0, seconds);
        world.write(bob, &ping);
        world.run();
    }
    assert_eq!(world.count(Counter::ClosedSlow), 0);
    world.advance(2_500);
    assert_eq!(world.count(Counter::ClosedSlow), 1);
    world.set_reading(bob, true);
    world.run();
    assert_eq!(world.close_code(bob), Some(CloseCode::SLOW_CONSUMER));
    // Nothing is lost: the messages wait for the next connection.
    let bob = world.login(2, 1);
    assert_eq!(texts(&world.take(bob)).len(), 100);
    world.advance(2_000);
    assert_idle(&world);
}

#[test]
fn a_queue_full_of_answers_counts_as_well() {
    // No message at all, and not a word after the burst: half a minute, not the whole heartbeat.
    let mut world = world(1);
    let client = world.login(1, 1);
    world.set_reading(client, false);
    let mut pings = Vec::new();
    for corr in 1..=5_000 {
        put_ping(&mut pings, corr, 60);
    }
    world.write(client, &pings);
    world.advance(29_000);
    assert_eq!(world.count(Counter::ClosedSlow), 0);
    world.advance(2_500);
    assert_eq!(world.count(Counter::ClosedSlow), 1);
}

#[test]
fn who_takes_a_little_now_and_then_is_not() {
    let mut world = world(1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    let last = world.last_seq(bob);
    world.ack(bob, last, 4_096);
    world.run();
    world.set_reading(bob, false);
    for number in 0..300 {
        world.say(alice, 2, &numbered(number));
    }
    for _ in 0..3 {
        world.advance(25_000);
        // One buffer's worth.
        world.set_reading(bob, true);
        let mut events = Vec::new();
        world.ready(&mut events);
        let send = |event: &&portico_core::testing::Event| {
            **event == portico_core::testing::Event::Send(bob)
        };
        let event = *events.iter().find(send).expect("there are bytes for Bob");
        world.perform(event, 0);
        world.set_reading(bob, false);
        let mut ping = Vec::new();
        put_ping(&mut ping, 0, 60);
        world.write(bob, &ping);
        world.run();
    }
    assert!(world.is_connected(bob));
    assert_eq!(world.count(Counter::ClosedSlow), 0);
}

#[test]
fn answers_that_pile_up_past_the_last_bound_close_the_connection() {
    let mut world = world(1);
    let client = world.login(1, 1);
    world.set_reading(client, false);
    let mut pings = Vec::new();
    for corr in 1..=10_000 {
        put_ping(&mut pings, corr, 60);
    }
    world.write(client, &pings);
    world.run();
    assert!(world.is_connected(client), "160 kB are within the bound");
    world.write(client, &pings);
    world.run();
    assert_eq!(world.count(Counter::ClosedSlow), 1);
    world.set_reading(client, true);
    world.run();
    assert_eq!(world.close_code(client), Some(CloseCode::SLOW_CONSUMER));
    world.advance(2_000);
    assert_eq!(world.residue(), []);
}

#[test]
fn ephemeral_frames_and_receipts_go_first() {
    let mut world = world(1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    world.take(bob);
    let last = world.last_seq(bob);
    world.ack(bob, last, 4_096);
    world.say(bob, 1, "so that there is a tick to come");
    world.run();
    world.set_reading(bob, false);
    for number in 0..100 {
        world.say(alice, 2, &numbered(number));
    }
    world.run();
    let mut typing = world.message(alice, 2, "typing");
    typing.flags = Flags::EPHEMERAL;
    world.post(alice, &typing);
    world.advance(1_000);
    assert_eq!(world.count(Counter::EphemeralDropped), 1);
    assert_eq!(world.count(Counter::ReceiptsDropped), 1);
    world.set_reading(bob, true);
    let got = world.run_and_take(bob);
    assert!(!texts(&got).contains(&"typing".to_owned()));
    assert!(!ops(&got).contains(&Op::Receipt));
    assert_eq!(texts(&got).len(), 100);
}

#[test]
fn a_flood_of_ephemeral_frames_does_not_keep_messages_away() {
    let mut world = world(1);
    let (alice, bob, mallory) = (world.login(1, 1), world.login(2, 1), world.login(3, 1));
    let last = world.last_seq(bob);
    world.ack(bob, last, 4_096);
    world.run();
    world.take(bob);
    world.set_reading(bob, false);
    for number in 0..100 {
        world.say(alice, 2, &numbered(number));
    }
    world.run();
    assert_eq!(world.count(Counter::FellBehind), 1);
    // Whenever Bob reads a little, Mallory fills the room again before the page has come.
    let mut got = Vec::new();
    for _ in 0..5 {
        world.store.hold(&[CmdKind::Replay]);
        world.set_reading(bob, true);
        world.run();
        got.extend(world.take(bob));
        world.set_reading(bob, false);
        for number in 0..100 {
            let mut noise = world.message(mallory, 2, &numbered(number));
            noise.flags = Flags::EPHEMERAL;
            world.post(mallory, &noise);
        }
        world.run();
        world.store.release();
        world.run();
    }
    let all: Vec<_> = (0..100).map(numbered).collect();
    got.retain(Got::is_sequenced);
    assert_eq!(texts(&got), all);
    assert!(world.count(Counter::EphemeralDropped) > 0);
}

#[test]
fn before_login_a_reader_that_stops_costs_little() {
    let mut world = world(1);
    let client = world.connect(0);
    world.set_reading(client, false);
    let mut pings = Vec::new();
    for corr in 1..=600 {
        put_ping(&mut pings, corr, 60);
    }
    world.write(client, &pings);
    world.run();
    assert_eq!(world.count(Counter::ClosedSlow), 1);
    world.set_reading(client, true);
    world.run();
    assert_eq!(world.close_code(client), Some(CloseCode::SLOW_CONSUMER));
    world.advance(2_000);
    assert_eq!(world.residue(), []);
}

#[test]
fn one_slow_reader_is_not_another_s_trouble() {
    let mut world = World::new(1, Limits::test_min());
    let alice = world.login(1, 1);
    let (slow, fast) = (world.login(2, 1), world.login(2, 2));
    world.take(fast);
    world.set_reading(slow, false);
    for number in 0..50 {
        world.say(alice, 2, &number.to_string());
        world.run();
    }
    assert_eq!(texts(&world.take(fast)).len(), 50);
    world.store.hold(&[CmdKind::Replay]);
    world.set_reading(slow, true);
    world.say(alice, 2, "last");
    world.run();
    assert_eq!(
        texts(&world.take(fast)),
        ["last"],
        "while the other one's page is read"
    );
}

/// A reader that takes nothing holds one frame and its answers, whatever is sent to it.
#[test]
fn what_a_stalled_reader_does_not_take_is_taken_back_and_read_from_the_store_later() {
    const MESSAGES: usize = 400;
    let mut world = world(1);
    let (alice, bob, carol) = (world.login(1, 1), world.login(2, 1), world.login(3, 1));
    world.take(bob);
    let last = world.last_seq(bob);
    world.ack(bob, last, 4_096);
    world.run();
    world.set_reading(bob, false);
    let asked = world.say(bob, 3, "has an answer");
    for number in 0..MESSAGES / 2 {
        world.say(alice, 2, &numbered(number));
    }
    let mut typing = world.message(alice, 2, "typing");
    typing.flags = Flags::EPHEMERAL;
    world.post(alice, &typing);
    world.run();
    let held = |world: &World| world.shard(0).gauges().outbox_bytes;
    assert!(held(&world) >= 64 << 10, "{}", held(&world));
    world.advance(3_500);
    assert_eq!(world.count(Counter::Stalled), 1);
    assert!(
        world.count(Counter::Recalled) >= 40,
        "what the kernel had not taken"
    );
    assert!(held(&world) <= 2 << 10, "{}", held(&world));
    world.check_invariants();
    // Nothing more is queued, and nothing that is only for those who are there.
    for number in MESSAGES / 2..MESSAGES {
        world.say(alice, 2, &numbered(number));
    }
    world.post(alice, &typing);
    world.run();
    world.advance(1_500);
    assert!(held(&world) <= 2 << 10, "{}", held(&world));
    assert_eq!(texts(&world.take(carol)), ["has an answer"]);
    world.set_reading(bob, true);
    let got = world.run_and_take(bob);
    sent(&got, asked.corr);
    let all: Vec<_> = (0..MESSAGES).map(numbered).collect();
    let messages: Vec<_> = got.into_iter().filter(Got::is_sequenced).collect();
    assert_eq!(texts(&messages), all, "all of them, once, in order");
    assert_eq!(world.count(Counter::Stalled), 1);
    world.say(alice, 2, "live");
    assert_eq!(texts(&world.run_and_take(bob)), ["live"]);
    world.check_invariants();
}

/// SYNCED stands for what came before it: if that is taken back, so is SYNCED.
#[test]
fn a_replay_that_is_taken_back_ends_with_synced_all_the_same() {
    let mut world = world(1);
    let alice = world.login(1, 1);
    for number in 0..30 {
        world.say(alice, 2, &numbered(number));
    }
    world.run();
    let bob = world.open(0, 2, 1, |_| {});
    world.set_reading(bob, false);
    world.run();
    world.advance(3_500);
    assert_eq!(world.count(Counter::Stalled), 1);
    assert!(world.count(Counter::Recalled) >= 10);
    world.set_reading(bob, true);
    let got = world.run_and_take(bob);
    let mut want = vec![Op::Welcome];
    want.extend([Op::Deliver; 30]);
    want.push(Op::Synced);
    assert_eq!(ops(&got), want);
    let synced = got.last().expect("SYNCED").seq_header();
    assert_eq!(synced.arg, 30, "each is counted once");
}

/// Fault: a page on its way, of what comes after the messages that were taken back meanwhile, was
/// shown when the reader had room again, and what was taken back was skipped.
#[test]
fn a_page_that_comes_after_the_queue_was_taken_back_skips_nothing() {
    let mut world = world(1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    let last = world.last_seq(bob);
    world.ack(bob, last, 4_096);
    world.run();
    world.take(bob);
    world.set_reading(bob, false);
    for number in 0..100 {
        world.say(alice, 2, &numbered(number));
    }
    world.run();
    // It reads a little, which asks for a page, and stops again before that has come.
    world.store.hold(&[CmdKind::Replay]);
    world.set_reading(bob, true);
    world.perform(portico_core::testing::Event::Send(bob), 0);
    world.set_reading(bob, false);
    world.run();
    assert_eq!(world.shard(0).gauges().pages, 1);
    world.advance(3_500);
    assert!(world.count(Counter::Recalled) > 0);
    world.set_reading(bob, true);
    world.run();
    world.store.release();
    let mut got = world.run_and_take(bob);
    got.retain(Got::is_sequenced);
    let all: Vec<_> = (0..100).map(numbered).collect();
    assert_eq!(texts(&got), all);
}

/// Together, queues are bounded for the whole shard: then each reader has room for one frame, and
/// everything comes all the same.
#[test]
fn the_queues_of_a_shard_are_bounded_together() {
    const READERS: u64 = 40;
    let limits = Limits {
        outboxes_bytes_max: 256 << 10,
        ..Limits::default()
    };
    let mut world = World::new(1, limits);
    let alice = world.login(1, 1);
    let readers: Vec<_> = (2..2 + READERS).map(|user| world.login(user, 1)).collect();
    for reader in &readers {
        world.take(*reader);
        world.set_reading(*reader, false);
    }
    for number in 0..30 {
        for user in 2..2 + READERS {
            world.say(alice, user, &numbered(number));
        }
        world.run();
    }
    let held = world.shard(0).gauges().outbox_bytes;
    assert!(held <= (256 << 10) + READERS * 1_100, "{held}");
    assert!(world.count(Counter::FellBehind) > 0);
    // Who lets answers pile up is closed sooner than alone.
    let noisy = world.login(100, 1);
    world.set_reading(noisy, false);
    let mut pings = Vec::new();
    for corr in 1..=6_000 {
        put_ping(&mut pings, corr, 60);
    }
    world.write(noisy, &pings);
    world.run();
    assert_eq!(world.count(Counter::ClosedSlow), 1, "past 72 KiB");
    world.check_invariants();
    for reader in &readers {
        world.set_reading(*reader, true);
    }
    world.run();
    let all: Vec<_> = (0..30).map(numbered).collect();
    for reader in &readers {
        assert_eq!(texts(&world.take(*reader)), all);
    }
    assert_eq!(world.shard(0).gauges().outbox_bytes, 0);
}

/// However many are behind, so many pages are read at a time, and each connection has its turn.
#[test]
fn pages_are_read_some_at_a_time() {
    const READERS: u64 = 30;
    let limits = Limits {
        pages_max: 5,
        ..Limits::default()
    };
    let mut world = World::new(1, limits);
    let alice = world.login(1, 1);
    for user in 2..2 + READERS {
        world.say(alice, user, "first");
        world.say(alice, user, "second");
    }
    world.run();
    world.store.hold(&[CmdKind::Replay]);
    let readers: Vec<_> = (2..2 + READERS)
        .map(|user| world.open(0, user, 1, |_| {}))
        .collect();
    world.run();
    let gauges = world.shard(0).gauges();
    assert_eq!((gauges.pages, gauges.pages_waiting), (5, READERS - 5));
    // One that waits leaves, another stays.
    world.cut(readers[10]);
    world.check_invariants();
    world.store.release();
    world.run();
    for (at, reader) in readers.iter().enumerate() {
        if at != 10 {
            assert_eq!(texts(&world.take(*reader)), ["first", "second"]);
        }
    }
    let gauges = world.shard(0).gauges();
    assert_eq!((gauges.pages, gauges.pages_waiting), (0, 0));
}
