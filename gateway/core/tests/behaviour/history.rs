//! Pages of what was said: in both directions, within their bounds, only what the reader may see, and
//! never what is over.

use crate::support::{assert_idle, error, reply, sent, user_at, world};
use portico_core::{
    Counter, Limits,
    store::StoreError,
    testing::{CmdKind, Got, World},
};
use portico_wire::{
    ErrorCode, Op,
    encode::Encoder,
    frame::{ConvKind, Flags},
    ids::{ConvSeq, Seq},
    message::history::{HistoryEnd, HistoryGet},
};

fn direct(peer: u64) -> HistoryGet {
    HistoryGet {
        conv_kind: ConvKind::DIRECT,
        conv: peer,
        ..HistoryGet::default()
    }
}

fn ask(world: &mut World, client: usize, get: &HistoryGet) -> u32 {
    let corr = world.corr(client);
    let mut bytes = Vec::new();
    Encoder::new().history_get(&mut bytes, corr, get);
    world.write(client, &bytes);
    corr
}

/// The texts of a page, and its end.
fn page(got: &[Got], corr: u32) -> (Vec<String>, HistoryEnd) {
    let replies: Vec<_> = got.iter().filter(|got| got.corr() == corr).collect();
    let (last, entries) = replies.split_last().expect("a page has an end");
    assert_eq!(last.op(), Op::HistoryEnd, "{last:?}");
    assert!(!last.frame().flags().contains(Flags::MORE), "F4");
    for entry in entries {
        assert!(entry.frame().flags().contains(Flags::REPLY | Flags::MORE));
        assert_eq!(entry.route().seq, Seq(0), "it is no part of the inbox");
    }
    let text = |got: &&Got| String::from_utf8_lossy(got.body()).into_owned();
    let end = HistoryEnd::decode(last.body()).expect("a valid body");
    (entries.iter().map(text).collect(), end)
}

fn fetch(world: &mut World, client: usize, get: &HistoryGet) -> (Vec<String>, HistoryEnd) {
    let corr = ask(world, client, get);
    page(&world.run_and_take(client), corr)
}

/// Alice and Bob have said ten things in turns; the places of these.
fn talk(shards: u16) -> (World, [usize; 2], [u64; 2], Vec<ConvSeq>) {
    let users = [user_at(0, shards, 0), user_at(shards - 1, shards, 1)];
    let mut world = world(shards);
    let clients = users.map(|user| world.login(user, 1));
    let mut places = Vec::new();
    for at in 0..10_usize {
        world.advance(10);
        let (from, to) = (clients[at % 2], users[1 - at % 2]);
        let message = world.say(from, to, &format!("m{at}"));
        places.push(sent(&world.run_and_take(from), message.corr).0);
    }
    world.advance(3_000);
    clients.iter().for_each(|client| drop(world.take(*client)));
    (world, clients, users, places)
}

fn names(range: impl Iterator<Item = usize>) -> Vec<String> {
    range.map(|at| format!("m{at}")).collect()
}

#[test]
fn both_see_the_same_conversation_from_either_end() {
    for shards in 1..=2 {
        let (mut world, clients, users, places) = talk(shards);
        for (client, peer) in [(clients[0], users[1]), (clients[1], users[0])] {
            let (texts, end) = fetch(&mut world, client, &direct(peer));
            assert_eq!(texts, names((0..10).rev()), "newest first");
            assert_eq!((end.more, end.next), (false, places[0]));
            let forward = HistoryGet {
                forward: true,
                ..direct(peer)
            };
            let (texts, end) = fetch(&mut world, client, &forward);
            assert_eq!(texts, names(0..10), "oldest first");
            assert_eq!((end.more, end.next), (false, places[9]));
        }
        assert_eq!(world.count(Counter::HistoryPages), 4);
        assert_eq!(world.count(Counter::HistoryEntries), 40);
        assert_idle(&world);
    }
}

#[test]
fn pages_follow_each_other_and_stop_where_they_are_told_to() {
    let (mut world, clients, users, places) = talk(1);
    for forward in [false, true] {
        let mut get = HistoryGet {
            limit: 3,
            forward,
            ..direct(users[1])
        };
        let mut all = Vec::new();
        loop {
            let (texts, end) = fetch(&mut world, clients[0], &get);
            assert!(texts.len() <= 3);
            all.extend(texts);
            if forward {
                get.after = end.next;
            } else {
                get.before = end.next;
            }
            if !end.more {
                break;
            }
        }
        let expected = if forward {
            names(0..10)
        } else {
            names((0..10).rev())
        };
        assert_eq!(all, expected);
        let between = HistoryGet {
            after: places[2],
            before: places[6],
            forward,
            ..direct(users[1])
        };
        let (mut texts, end) = fetch(&mut world, clients[0], &between);
        if !forward {
            texts.reverse();
        }
        assert_eq!(texts, names(3..6), "both ends are exclusive");
        assert!(!end.more);
        let nothing = HistoryGet {
            after: places[5],
            before: places[5],
            forward,
            ..direct(users[1])
        };
        let (texts, end) = fetch(&mut world, clients[0], &nothing);
        assert!(texts.is_empty() && !end.more);
        // From the end of what there is: where to go on is where it was.
        let beyond = HistoryGet {
            after: if forward { places[9] } else { ConvSeq(0) },
            before: if forward { ConvSeq(0) } else { places[0] },
            forward,
            ..direct(users[1])
        };
        let (texts, end) = fetch(&mut world, clients[0], &beyond);
        assert!(texts.is_empty() && !end.more);
        assert_eq!(end.next, if forward { places[9] } else { places[0] });
    }
    assert_idle(&world);
}

#[test]
fn each_wrong_question_has_its_own_answer() {
    let (mut world, clients, users, _) = talk(2);
    let of = |conv_kind, conv, limit| HistoryGet {
        conv_kind,
        conv,
        limit,
        ..HistoryGet::default()
    };
    let (peer, group) = (users[1], 77);
    for (get, code, detail) in [
        (
            of(ConvKind::DIRECT, peer, 0),
            ErrorCode::BAD_ARGUMENT,
            "a page holds 1 to 100",
        ),
        (
            of(ConvKind::DIRECT, peer, 101),
            ErrorCode::BAD_ARGUMENT,
            "a page holds 1 to 100",
        ),
        (
            of(ConvKind::DIRECT, 0, 10),
            ErrorCode::BAD_ARGUMENT,
            "the conversation names no user",
        ),
        (
            of(ConvKind::NONE, peer, 10),
            ErrorCode::BAD_ARGUMENT,
            "the conversation names no user",
        ),
        (
            of(ConvKind(9), peer, 10),
            ErrorCode::BAD_ARGUMENT,
            "the conversation names no user",
        ),
        (
            of(ConvKind::STATUS, peer, 10),
            ErrorCode::UNSUPPORTED,
            "only direct conversations and groups are served",
        ),
        (
            of(ConvKind::GROUP, group, 10),
            ErrorCode::NOT_MEMBER,
            "you are not a member of the group",
        ),
    ] {
        let corr = ask(&mut world, clients[0], &get);
        let got = world.run_and_take(clients[0]);
        let answer = reply(&got, corr).error_reply().expect("an error");
        assert_eq!((answer.code, answer.detail), (code, detail), "{get:?}");
        assert_eq!(answer.op, Op::History as u8);
    }
    assert_eq!(world.count(Counter::RefusedNotMember), 1);
    // What asks for no answer gets none; and somebody else's talk has no name that one could ask by.
    let mut bytes = Vec::new();
    Encoder::new().history_get(&mut bytes, 0, &direct(peer));
    world.write(clients[0], &bytes);
    assert!(world.run_and_take(clients[0]).is_empty());
    let stranger = world.login(9_999, 1);
    world.take(stranger);
    for user in users {
        let (texts, end) = fetch(&mut world, stranger, &direct(user));
        assert!(texts.is_empty() && !end.more);
    }
    world
        .store
        .fail(&[CmdKind::History], 1, StoreError::Unavailable);
    let corr = ask(&mut world, clients[0], &direct(peer));
    let got = world.run_and_take(clients[0]);
    assert_eq!(error(&got, corr), ErrorCode::UNAVAILABLE);
    assert_idle(&world);
}

#[test]
fn what_is_over_or_older_than_the_retention_is_not_shown() {
    let mut world = world(1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    for (text, ttl_s) in [("short", 60), ("kept", 0), ("long", 3_600)] {
        let mut message = world.message(alice, 2, text);
        message.ttl_s = ttl_s;
        world.post(alice, &message);
        world.run();
        world.advance(10);
    }
    let shown = |world: &mut World, client, peer| fetch(world, client, &direct(peer)).0;
    world.take(bob);
    assert_eq!(shown(&mut world, bob, 1), ["long", "kept", "short"]);
    world.cut(bob);
    world.set_wall_us(world.now().wall_us + 61_000_000);
    assert_eq!(shown(&mut world, alice, 2), ["long", "kept"]);
    // A new device of Bob's that reads from the start gets neither what is over.
    let tablet = world.login(2, 2);
    let replayed = crate::support::texts(&world.take(tablet));
    assert_eq!(replayed, ["kept", "long"]);
    world.set_wall_us(world.now().wall_us + 3_600_000_000);
    assert_eq!(shown(&mut world, alice, 2), ["kept"]);
    world.set_wall_us(world.now().wall_us + 365 * 86_400_000_000);
    assert!(shown(&mut world, alice, 2).is_empty(), "a year has passed");
}

#[test]
fn what_takes_longer_than_its_lifetime_to_become_durable_is_not_pushed() {
    let mut world = world(1);
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    world.take(bob);
    world.store.hold(&[CmdKind::Append]);
    let mut message = world.message(alice, 2, "gone by then");
    message.ttl_s = 2;
    world.post(alice, &message);
    world.say(alice, 2, "still good");
    world.run();
    world.advance(3_000);
    world.store.release();
    world.run();
    assert_eq!(crate::support::texts(&world.take(bob)), ["still good"]);
    world.advance(3_000);
    assert_idle(&world);
}

#[test]
fn a_page_ends_early_where_the_queue_of_the_client_is_full() {
    let mut world = World::new(
        1,
        Limits {
            outbox_bytes_soft: 4 << 10,
            page_bytes_max: 64 << 10,
            ..Limits::default()
        },
    );
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    for at in 0..20 {
        world.say(alice, 2, &format!("{at:01000}"));
        world.run();
        world.advance(10);
    }
    world.take(bob);
    let (mut all, mut get) = (Vec::new(), direct(1));
    loop {
        let (texts, end) = fetch(&mut world, bob, &get);
        assert!(texts.len() <= 5, "what is queued stays within its bound");
        all.extend(texts);
        get.before = end.next;
        if !end.more {
            break;
        }
    }
    let expected: Vec<_> = (0..20).rev().map(|at| format!("{at:01000}")).collect();
    assert_eq!(all, expected, "and nothing is lost");
    // One who reads nothing gets the ends of pages, and is closed before they pile up.
    world.set_reading(bob, false);
    for _ in 0..200 {
        ask(&mut world, bob, &direct(1));
        world.run();
        world.check_invariants();
    }
}

#[test]
fn pages_take_turns_and_those_beyond_the_line_are_refused() {
    let mut world = World::new(1, Limits::test_min());
    let clients: Vec<_> = (1..=8).map(|user| world.login(user, 1)).collect();
    world.store.hold(&[CmdKind::History]);
    let asked: Vec<_> = clients
        .iter()
        .flat_map(|client| [*client; 4])
        .map(|client| (client, ask(&mut world, client, &direct(9))))
        .collect();
    world.run();
    world.check_invariants();
    // Four are being read, sixteen wait.
    assert_eq!(world.count(Counter::RefusedOverload), 12);
    assert_eq!(world.store.queued(CmdKind::History), 4);
    // Who goes away takes its questions along.
    world.cut(clients[2]);
    world.store.release();
    world.run();
    let mut answered = 0;
    for client in clients.iter().filter(|client| **client != clients[2]) {
        let got = world.take(*client);
        for (_, corr) in asked.iter().filter(|(of, _)| of == client) {
            let last = got.iter().rfind(|got| got.corr() == *corr);
            let last = last.expect("each question has its answer");
            answered += usize::from(last.op() == Op::HistoryEnd);
        }
    }
    assert_eq!(answered, 16);
    assert_idle(&world);
}
