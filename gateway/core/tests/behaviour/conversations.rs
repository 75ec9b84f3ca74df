//! The list of conversations for a device that keeps none: newest first, with what is unread, derived
//! from the inbox within its bounds.

use crate::support::{assert_idle, reply, world};
use portico_core::{
    Counter, Limits,
    store::StoreError,
    testing::{CmdKind, Got, World},
};
use portico_wire::{
    ErrorCode, Op,
    encode::Encoder,
    frame::{ConvKind, Flags},
    ids::ConvSeq,
    message::history::{Conversation, ConversationsGet},
};

fn ask(world: &mut World, client: usize, get: &ConversationsGet) -> u32 {
    let corr = world.corr(client);
    let mut bytes = Vec::new();
    Encoder::new().conversations_get(&mut bytes, corr, get);
    world.write(client, &bytes);
    corr
}

fn list(got: &[Got], corr: u32) -> Vec<Conversation> {
    let replies: Vec<_> = got.iter().filter(|got| got.corr() == corr).collect();
    let (last, rows) = replies.split_last().expect("a list has an end");
    assert_eq!(last.op(), Op::Done, "{last:?}");
    assert_eq!(last.frame().aux() as usize, rows.len(), "DONE counts them");
    let row = |got: &&Got| {
        assert!(got.frame().flags().contains(Flags::MORE), "F4");
        Conversation::decode(got.body()).expect("a valid body")
    };
    rows.iter().map(row).collect()
}

fn fetch(world: &mut World, client: usize, get: &ConversationsGet) -> Vec<Conversation> {
    let corr = ask(world, client, get);
    list(&world.run_and_take(client), corr)
}

const ALL: ConversationsGet = ConversationsGet {
    before: ConvSeq(0),
    limit: 100,
};

/// User 1 with two devices, and ten others who have each written to it, the `n`-th `n` times.
fn talk(shards: u16) -> (World, usize) {
    let mut world = world(shards);
    let phone = world.login(1, 1);
    world.login(1, 2);
    for peer in 2..12 {
        let client = world.login(peer, 1);
        for _ in 1..peer {
            world.say(client, 1, "hello");
            world.run();
            world.advance(5);
        }
    }
    world.advance(2_000);
    world.take(phone);
    (world, phone)
}

#[test]
fn conversations_come_newest_first_with_what_is_unread() {
    for shards in 1..=2 {
        let (mut world, phone) = talk(shards);
        let rows = fetch(&mut world, phone, &ALL);
        let found: Vec<_> = rows.iter().map(|row| (row.conv, row.unread)).collect();
        let expected: Vec<_> = (2..12).rev().map(|peer| (peer, peer as u32 - 1)).collect();
        assert_eq!(found, expected);
        assert!(rows.is_sorted_by(|a, b| a.head_seq > b.head_seq));
        let plain = |row: &Conversation| row.conv_kind == ConvKind::DIRECT && row.read_seq.0 == 0;
        assert!(rows.iter().all(plain));
        // Reading counts at once, written or not; one's own words move a conversation up, and are
        // nothing unread.
        let half = rows.iter().find(|row| row.conv == 5).expect("it is there");
        world.mark_read(phone, 5, half.head_seq, 0);
        world.say(phone, 3, "an answer");
        world.run();
        world.take(phone);
        let rows = fetch(&mut world, phone, &ALL);
        assert_eq!((rows[0].conv, rows[0].unread), (3, 2));
        let read = rows.iter().find(|row| row.conv == 5).expect("it is there");
        assert_eq!((read.unread, read.read_seq), (0, half.head_seq));
        world.advance(3_000);
        world.take(phone);
        assert_eq!(fetch(&mut world, phone, &ALL), rows, "written or not");
        assert_eq!(world.count(Counter::ConversationLists), 3);
        world.advance(3_000);
        assert_idle(&world);
    }
}

#[test]
fn pages_of_the_list_follow_each_other() {
    let (mut world, phone) = talk(1);
    let all = fetch(&mut world, phone, &ALL);
    for limit in [1, 3, 10] {
        let (mut seen, mut before) = (Vec::new(), ConvSeq(0));
        loop {
            let get = ConversationsGet { before, limit };
            let rows = fetch(&mut world, phone, &get);
            let Some(last) = rows.last() else {
                break;
            };
            assert!(rows.len() <= usize::from(limit));
            before = last.head_seq;
            seen.extend(rows);
        }
        assert_eq!(seen, all);
    }
    let nobody = world.login(500, 1);
    world.take(nobody);
    assert!(fetch(&mut world, nobody, &ALL).is_empty());
}

#[test]
fn the_walk_is_bounded_and_a_busy_conversation_hides_what_lies_behind_it() {
    let mut world = world(1);
    let (reader, early, busy) = (world.login(1, 1), world.login(2, 1), world.login(3, 1));
    world.say(early, 1, "long ago");
    world.run();
    for at in 0..9_000 {
        world.say(busy, 1, "again");
        if at % 100 == 0 {
            world.run();
            world.advance(5);
            world.take(busy);
            world.take(reader);
        }
    }
    world.run();
    world.take(reader);
    let rows = fetch(&mut world, reader, &ALL);
    let found: Vec<_> = rows.iter().map(|row| (row.conv, row.unread)).collect();
    assert_eq!(found, [(3, 1_000)], "unread is counted up to 1,000");
    // One more, and it is at the end of the inbox again.
    world.say(early, 1, "and now");
    world.run();
    world.take(reader);
    let rows = fetch(&mut world, reader, &ALL);
    let found: Vec<_> = rows.iter().map(|row| (row.conv, row.unread)).collect();
    assert_eq!(found, [(2, 2), (3, 1_000)]);
}

#[test]
fn each_wrong_question_has_its_own_answer() {
    let (mut world, phone) = talk(1);
    for limit in [0, 101] {
        let get = ConversationsGet { limit, ..ALL };
        let corr = ask(&mut world, phone, &get);
        let got = world.run_and_take(phone);
        let answer = reply(&got, corr).error_reply().expect("an error");
        assert_eq!(answer.code, ErrorCode::BAD_ARGUMENT);
        assert_eq!(answer.detail, "a page holds 1 to 100");
        assert_eq!(answer.op, Op::ConversationsGet as u8);
    }
    for kind in [CmdKind::References, CmdKind::Marks, CmdKind::Count] {
        world.store.fail(&[kind], 1, StoreError::Unavailable);
        let corr = ask(&mut world, phone, &ALL);
        let got = world.run_and_take(phone);
        let answer = reply(&got, corr).error().expect("an error");
        assert_eq!(answer, ErrorCode::UNAVAILABLE, "{kind:?}");
        world.check_invariants();
    }
    assert_eq!(fetch(&mut world, phone, &ALL).len(), 10);
    assert_idle(&world);
}

#[test]
fn few_lists_are_put_together_at_a_time_and_the_rest_wait() {
    let mut world = World::new(1, Limits::default());
    let readers: Vec<_> = (1..=3).map(|user| world.login(user, 1)).collect();
    world.store.hold(&[CmdKind::References]);
    let mut asked = Vec::new();
    for _ in 0..100 {
        for reader in &readers {
            asked.push((*reader, ask(&mut world, *reader, &ALL)));
        }
    }
    world.run();
    world.check_invariants();
    assert_eq!(world.store.queued(CmdKind::References), 4);
    assert_eq!(world.count(Counter::RefusedOverload), 300 - 4 - 256);
    world.cut(readers[0]);
    world.store.release();
    world.run();
    for reader in &readers[1..] {
        let got = world.take(*reader);
        for (_, corr) in asked.iter().filter(|(of, _)| of == reader) {
            assert!(matches!(reply(&got, *corr).op(), Op::Done | Op::Error));
        }
    }
    assert_idle(&world);
}
