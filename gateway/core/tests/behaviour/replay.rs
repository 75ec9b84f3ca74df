//! What waited in the store comes in order, in pages, from where the device stands, and SYNCED says
//! how far the device has everything.

use crate::support::{assert_idle, ops, seqs, texts, user_at, world};
use portico_core::{
    Counter, Limits,
    store::StoreError,
    testing::{CmdKind, World},
};
use portico_wire::{
    Op,
    frame::{Flags, receipt_kind},
    ids::{ConvId, ConvSeq, DeviceId, Seq, UserId},
};

/// User 1 writes `count` messages to user 2, "0", "1" and so on.
fn fill(world: &mut World, count: usize) {
    let alice = world.login(1, 1);
    for number in 0..count {
        world.say(alice, 2, &number.to_string());
        world.run();
    }
    world.cut(alice);
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

/// The inbox numbers of user 2.
fn inbox(world: &World) -> Vec<Seq> {
    let items = world.store.inbox(UserId(2));
    items.iter().map(|item| item.seq).collect()
}

#[test]
fn what_waited_comes_in_order_then_synced_then_what_is_new() {
    // O2.
    for shards in 1..=3 {
        let mut world = world(shards);
        let (a, b) = (user_at(0, shards, 0), user_at(shards - 1, shards, 1));
        let alice = world.login(a, 1);
        for number in 0..300 {
            world.say(alice, b, &number.to_string());
            if number % 100 == 0 {
                world.run();
            }
        }
        world.run();
        let bob = world.login(b, 1);
        let message = world.say(alice, b, "live");
        world.run();
        let got = world.take(bob);
        let mut expected = vec![Op::Welcome];
        expected.extend([Op::Deliver; 300]);
        expected.extend([Op::Synced, Op::Deliver]);
        assert_eq!(ops(&got), expected);
        let mut texts_due = numbers(0..300);
        texts_due.push("live".to_owned());
        assert_eq!(texts(&got), texts_due);
        assert_eq!(got[302].route().msg_id, message.msg_id);
        let synced = got[301].seq_header();
        assert_eq!(synced.arg, 300, "entries replayed");
        assert!(Seq(synced.seq) >= got[300].route().seq);
        assert!(Seq(synced.seq) < got[302].route().seq);
    }
}

#[test]
fn tiny_pages_and_windows_change_nothing() {
    // O4: never more than receive_max unacknowledged; what does not fit stays in the store.
    for receive_max in [1, 2, 3, 256] {
        let mut world = World::new(1, Limits::test_min());
        fill(&mut world, 25);
        let bob = world.open(0, 2, 1, |hello| hello.receive_max = receive_max);
        world.run();
        let window = receive_max.min(Limits::test_min().receive_max) as usize;
        let mut all = Vec::new();
        loop {
            let got = world.run_and_take(bob);
            let fresh = seqs(&got);
            assert!(fresh.len() <= window, "{fresh:?}");
            let synced = ops(&got).contains(&Op::Synced);
            all.extend(texts(&got));
            if synced {
                break;
            }
            assert_eq!(fresh.len(), window);
            let last = world.last_seq(bob);
            world.ack(bob, last, receive_max);
        }
        assert_eq!(all, numbers(0..25));
        assert_eq!(world.count(Counter::Replayed), 25);
        world.check_invariants();
    }
}

#[test]
fn a_page_that_is_cut_early_is_followed_by_the_next() {
    let limits = Limits {
        page_bytes_max: 1,
        ..Limits::default()
    };
    let mut world = World::new(1, limits);
    fill(&mut world, 9);
    let bob = world.login(2, 1);
    assert_eq!(texts(&world.take(bob)), numbers(0..9));
}

#[test]
fn nothing_is_delivered_while_receive_max_is_zero() {
    // O4.
    let mut world = world(1);
    fill(&mut world, 3);
    let bob = world.open(0, 2, 1, |hello| hello.receive_max = 0);
    let alice = world.login(1, 1);
    world.say(alice, 2, "3");
    assert_eq!(ops(&world.run_and_take(bob)), [Op::Welcome]);
    world.ack(bob, Seq(0), 1);
    assert_eq!(texts(&world.run_and_take(bob)), ["0"]);
    let last = world.last_seq(bob);
    world.ack(bob, last, 0);
    assert_eq!(world.run_and_take(bob), []);
    world.ack(bob, last, 10);
    let got = world.run_and_take(bob);
    assert_eq!(texts(&got), ["1", "2", "3"]);
    assert_eq!(got.last().map(|got| got.op()), Some(Op::Synced));
    // A pause in the middle of live delivery holds the rest in the store too.
    let last = world.last_seq(bob);
    world.ack(bob, last, 0);
    world.say(alice, 2, "4");
    assert_eq!(world.run_and_take(bob), []);
    world.ack(bob, last, 5);
    assert_eq!(texts(&world.run_and_take(bob)), ["4"]);
}

#[test]
fn a_pause_that_comes_while_a_page_is_read_holds() {
    // O4: the page was asked for under an earlier receive_max.
    let mut world = world(1);
    fill(&mut world, 4);
    world.store.hold(&[CmdKind::Replay]);
    let bob = world.open(0, 2, 1, |_| {});
    world.run();
    world.ack(bob, Seq(0), 1);
    world.run();
    world.store.release();
    let got = world.run_and_take(bob);
    assert_eq!(texts(&got), numbers(0..1));
    assert!(!ops(&got).contains(&Op::Synced));
    let last = world.last_seq(bob);
    world.ack(bob, last, 100);
    assert_eq!(texts(&world.run_and_take(bob)), numbers(1..4));
}

#[test]
fn a_device_that_was_never_here_gets_all_that_is_kept() {
    let mut world = world(1);
    fill(&mut world, 5);
    let first = world.login(2, 1);
    assert_eq!(texts(&world.take(first)), numbers(0..5));
    world.advance(3_000);
    let second = world.login(2, 2);
    let got = world.take(second);
    assert_eq!(texts(&got), numbers(0..5));
    assert!(!ops(&got).contains(&Op::SyncGap));
}

#[test]
fn zero_means_the_server_s_cursor() {
    // O6.
    let mut world = world(1);
    fill(&mut world, 4);
    let bob = world.open(0, 2, 1, |_| {});
    world.run();
    let second = inbox(&world)[1];
    world.ack(bob, second, 100);
    world.advance(3_000);
    world.cut(bob);
    let bob = world.login(2, 1);
    assert_eq!(texts(&world.take(bob)), numbers(2..4));
}

#[test]
fn a_quick_return_counts_what_was_acknowledged_and_is_not_written_yet() {
    let mut world = world(1);
    fill(&mut world, 4);
    let bob = world.open(0, 2, 1, |_| {});
    world.run();
    let third = inbox(&world)[2];
    world.ack(bob, third, 100);
    world.run();
    world.cut(bob);
    let bob = world.login(2, 1);
    assert_ne!(world.store.cursor(UserId(2), DeviceId(1)), Some(third));
    assert_eq!(texts(&world.take(bob)), numbers(3..4));
}

#[test]
fn a_client_restored_from_a_backup_gets_what_it_lost() {
    // O6: the replay starts after last_seq even if the server's cursor is further on.
    let mut world = world(1);
    fill(&mut world, 4);
    let first = inbox(&world)[0];
    let bob = world.login(2, 1);
    world.advance(3_000);
    world.cut(bob);
    let bob = world.open(0, 2, 1, |hello| hello.last_seq = first);
    assert_eq!(texts(&world.run_and_take(bob)), numbers(1..4));
    world.advance(3_000);
    let cursor = world.store.cursor(UserId(2), DeviceId(1));
    assert_eq!(cursor, inbox(&world).last().copied(), "it never goes back");
}

#[test]
fn a_claim_counts_as_the_acknowledgement_that_got_lost() {
    // O6: what lies between the stored cursor and the claim is not sent again, but its senders
    // learn that it was delivered.
    for receive_max in [1, 256] {
        let mut world = world(1);
        fill(&mut world, 6);
        let bob = world.open(0, 2, 1, |_| {});
        world.run();
        world.cut(bob);
        world.advance(3_000);
        let conv = ConvId::direct(UserId(1), UserId(2));
        assert_eq!(world.store.marks(conv, UserId(2)).delivered, ConvSeq(0));
        let alice = world.login(1, 1);
        world.take(alice);
        let fourth = inbox(&world)[3];
        let bob = world.open(0, 2, 1, |hello| {
            hello.last_seq = fourth;
            hello.receive_max = receive_max;
        });
        world.run();
        assert_eq!(texts(world.got(bob))[0], "4");
        world.advance(3_000);
        let marks = world.store.marks(conv, UserId(2));
        assert_eq!(
            marks.delivered,
            world.store.inbox(UserId(2))[3].entry.conv_seq
        );
        let got = world.take(alice);
        assert_eq!(ops(&got), [Op::Receipt]);
        assert_eq!(got[0].route().kind, receipt_kind::DELIVERED);
        assert_eq!(got[0].route().conv_seq, marks.delivered);
        assert_eq!(world.store.cursor(UserId(2), DeviceId(1)), Some(fourth));
    }
}

#[test]
fn a_claim_beyond_everything_means_everything() {
    let mut world = world(1);
    fill(&mut world, 3);
    let bob = world.open(0, 2, 1, |hello| hello.last_seq = Seq(u64::MAX));
    let got = world.run_and_take(bob);
    assert_eq!(ops(&got), [Op::Welcome, Op::Synced]);
    let last = inbox(&world)[2];
    assert_eq!(Seq(got[1].seq_header().seq), last);
    let alice = world.login(1, 1);
    world.say(alice, 2, "new");
    assert_eq!(texts(&world.run_and_take(bob)), ["new"]);
}

#[test]
fn what_is_older_than_the_retention_is_a_gap_then_the_tail() {
    // O7.
    let year_ms = 365 * 86_400_000;
    let mut world = world(1);
    fill(&mut world, 3);
    let first = inbox(&world)[0];
    let bob = world.open(0, 2, 1, |hello| hello.receive_max = 1);
    world.run();
    world.ack(bob, first, 0);
    world.advance(3_000);
    world.cut(bob);
    world.sleep(year_ms);
    world.tick();
    let alice = world.login(1, 1);
    world.say(alice, 2, "tail");
    world.run();
    let bob = world.login(2, 1);
    let got = world.take(bob);
    assert_eq!(
        ops(&got),
        [Op::Welcome, Op::SyncGap, Op::Deliver, Op::Synced]
    );
    let floor = got[0].welcome().expect("WELCOME").floor_seq;
    assert_eq!(Seq(got[1].seq_header().seq), floor);
    assert_eq!(floor.0, world.now().wall_us - year_ms * 1_000);
    assert_eq!(texts(&got), ["tail"]);
}

#[test]
fn a_client_that_has_everything_meets_no_gap() {
    // The server's cursor is older than the floor, the client's own word is not.
    let mut world = world(1);
    fill(&mut world, 1);
    let bob = world.login(2, 1);
    world.advance(3_000);
    world.cut(bob);
    let cursor = world.store.cursor(UserId(2), DeviceId(1));
    assert_eq!(cursor, Some(inbox(&world)[0]));
    world.sleep(366 * 86_400_000);
    let alice = world.login(1, 1);
    world.say(alice, 2, "new");
    world.run();
    let newest = inbox(&world)[1];
    let bob = world.open(0, 2, 1, |hello| hello.last_seq = newest);
    assert_eq!(ops(&world.run_and_take(bob)), [Op::Welcome, Op::Synced]);
}

#[test]
fn what_is_nothing_for_a_device_is_passed_over_by_synced() {
    // O3: one's own message to oneself, and one whose time is over.
    let mut world = world(1);
    let phone = world.login(2, 1);
    world.say(phone, 2, "note");
    world.run();
    world.cut(phone);
    let alice = world.login(1, 1);
    for (ttl_s, body) in [(5, "short"), (60, "long"), (5, "short again")] {
        let mut message = world.message(alice, 2, body);
        message.ttl_s = ttl_s;
        world.post(alice, &message);
    }
    world.advance(6_000);
    let phone = world.login(2, 1);
    let got = world.take(phone);
    assert_eq!(texts(&got), ["long"]);
    let synced = got.last().expect("SYNCED").seq_header();
    assert_eq!(synced.arg, 1);
    assert_eq!(
        Some(&Seq(synced.seq)),
        inbox(&world).last(),
        "past what was skipped"
    );
    // Acknowledging that number is enough to never see them again.
    world.ack(phone, Seq(synced.seq), 100);
    world.advance(3_000);
    assert_eq!(
        world.store.cursor(UserId(2), DeviceId(1)),
        Some(Seq(synced.seq))
    );
    assert_idle(&world);
}

#[test]
fn what_comes_while_a_page_is_read_follows_it() {
    for late in [1, 2, 5] {
        let mut world = world(1);
        fill(&mut world, 3);
        let alice = world.login(1, 1);
        world.store.hold(&[CmdKind::Replay]);
        let bob = world.login(2, 1);
        for number in 3..3 + late {
            world.say(alice, 2, &number.to_string());
        }
        world.run();
        assert_eq!(ops(&world.take(bob)), [Op::Welcome]);
        world.store.release();
        let got = world.run_and_take(bob);
        assert_eq!(texts(&got), numbers(0..3 + late));
        world.say(alice, 2, "live");
        let got = world.run_and_take(bob);
        assert_eq!(texts(&got), ["live"]);
    }
}

#[test]
fn what_came_after_a_page_was_read_and_before_its_answer_is_read_too() {
    let mut world = world(1);
    fill(&mut world, 3);
    let alice = world.login(1, 1);
    world.store.hold_answers(&[CmdKind::Replay]);
    let bob = world.login(2, 1);
    for number in 3..6 {
        world.say(alice, 2, &number.to_string());
    }
    world.run();
    assert_eq!(ops(&world.take(bob)), [Op::Welcome]);
    world.store.release();
    let got = world.run_and_take(bob);
    assert_eq!(texts(&got), numbers(0..6));
    assert_eq!(got.last().map(|got| got.op()), Some(Op::Synced));
}

#[test]
fn an_entry_that_the_store_shows_too_early_is_not_delivered_early() {
    // O1 and O9: a read may see what is written before its completion has arrived, here the second
    // of two entries whose answers are still open.
    let mut world = world(1);
    fill(&mut world, 2);
    let alice = world.login(1, 1);
    world.store.hold_answers(&[CmdKind::Append]);
    world.say(alice, 2, "2");
    world.say(alice, 2, "3");
    world.run();
    assert_eq!(inbox(&world).len(), 4);
    let bob = world.login(2, 1);
    let got = world.take(bob);
    assert_eq!(texts(&got), numbers(0..2));
    assert_eq!(got.last().map(|got| got.op()), Some(Op::Synced));
    assert!(Seq(got[3].seq_header().seq) < inbox(&world)[2]);
    world.store.release();
    assert_eq!(texts(&world.run_and_take(bob)), numbers(2..4));
}

#[test]
fn a_page_that_fails_is_read_again() {
    let mut world = world(1);
    fill(&mut world, 3);
    let unavailable = StoreError::Unavailable;
    world.store.fail(&[CmdKind::Replay], 3, unavailable);
    let bob = world.login(2, 1);
    assert_eq!(ops(&world.take(bob)), [Op::Welcome]);
    let executed = world.store.executed();
    // An impatient client does not make the store busier.
    for _ in 0..50 {
        world.ack(bob, Seq(0), 256);
        world.run();
    }
    assert_eq!(world.store.executed(), executed);
    world.advance(1_000);
    assert_eq!(world.store.executed(), executed + 2);
    world.advance(1_000);
    assert_eq!(texts(&world.take(bob)), numbers(0..3));
}

#[test]
fn a_page_that_gets_nowhere_is_not_asked_for_without_pause() {
    let mut world = world(1);
    fill(&mut world, 3);
    world.store.stall_pages(3);
    let executed = world.store.executed();
    let bob = world.login(2, 1);
    assert!(world.store.executed() <= executed + 3);
    assert_eq!(ops(&world.take(bob)), [Op::Welcome]);
    world.advance(2_000);
    assert_eq!(texts(&world.take(bob)), numbers(0..3));
}

#[test]
fn a_message_that_arrives_during_the_login_is_not_lost() {
    // Every prefix of the events of a login, then a message, then the rest.
    for steps in 0..14 {
        let mut world = world(2);
        let (a, b) = (user_at(0, 2, 0), user_at(1, 2, 0));
        let alice = world.login(a, 1);
        let bob = world.open(0, b, 1, |_| {});
        let mut events = Vec::new();
        for _ in 0..steps {
            world.ready(&mut events);
            if let Some(event) = events.first() {
                world.perform(*event, 0);
            }
        }
        let mut message = world.say(alice, b, "now");
        message.flags = Flags::NONE;
        let got = world.run_and_take(bob);
        assert_eq!(texts(&got), ["now"], "after {steps} steps");
        world.check_invariants();
    }
}
