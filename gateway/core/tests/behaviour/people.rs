//! Blocks, settings and contacts: who has the defaults costs no read; a block holds from DONE on,
//! across restarts and while the store is slow; nothing overtakes; what cannot be read protects.

use crate::support::{assert_idle, error, reply, sent, texts, user_at, world};
use portico_core::{
    Counter, Limits,
    store::StoreError,
    testing::{CmdKind, Got, World},
};
use portico_wire::{
    ErrorCode, Op,
    frame::{Flags, receipt_kind},
    ids::{ConvId, UserId},
    limits::{BLOCKS_MAX, CONTACT_EDITS_MAX, CONTACTS_MAX},
    message::people::{Contact, ContactChange, Contacts, Privacy, Who},
};

/// Everything has had its time.
fn rest(world: &mut World) {
    world.advance(20_000);
    assert_idle(world);
}

fn detail(got: &[Got], corr: u32) -> String {
    let error = reply(got, corr).error_reply().expect("an error");
    error.detail.to_owned()
}

fn contacts(got: &[Got], corr: u32) -> (Vec<(u64, Vec<u8>, bool)>, bool) {
    let reply = reply(got, corr);
    assert_eq!(reply.op(), Op::Contacts, "{reply:?}");
    let page = Contacts::decode(reply.body()).expect("valid");
    let row = |it: &Contact<'_>| (it.user.0, it.sealed_name.to_vec(), it.blocked);
    (page.contacts.iter().map(row).collect(), page.more)
}

fn privacy(got: &[Got], corr: u32) -> Privacy {
    let reply = reply(got, corr);
    assert_eq!(reply.op(), Op::Privacy, "{reply:?}");
    Privacy::decode(reply.body()).expect("valid")
}

#[test]
fn a_blocked_user_is_refused_and_nothing_is_stored_on_one_shard_and_on_two() {
    for shards in [1, 2] {
        let mut world = world(shards);
        let (alice, bob) = (user_at(0, shards, 0), user_at(shards - 1, shards, 1));
        let (a, b) = (world.login(alice, 1), world.login(bob, 1));
        let corr = world.block(b, alice);
        assert_eq!(reply(&world.run_and_take(b), corr).op(), Op::Done);
        let message = world.say(a, bob, "hello?");
        let got = world.run_and_take(a);
        assert_eq!(error(&got, message.corr), ErrorCode::FORBIDDEN);
        assert!(detail(&got, message.corr).contains("does not take messages"));
        assert!(texts(&world.run_and_take(b)).is_empty());
        let conv = ConvId::direct(UserId(alice), UserId(bob));
        assert_eq!(world.store.conversation(conv).count(), 0);
        assert_eq!(world.count(Counter::BlockedMessages), 1);
        assert_eq!(world.count(Counter::RefusedBlocked), 1);
        // The other direction is not blocked, nor are others.
        let message = world.say(b, alice, "I may");
        sent(&world.run_and_take(b), message.corr);
        assert_eq!(texts(&world.run_and_take(a)), ["I may"]);
        // An ephemeral one is gone without a word.
        let mut message = world.message(a, bob, "psst");
        message.flags = Flags::EPHEMERAL;
        world.post(a, &message);
        assert_eq!(reply(&world.run_and_take(a), message.corr).op(), Op::Done);
        assert!(texts(&world.take(b)).is_empty());
        assert_eq!(world.count(Counter::BlockedEphemeral), 1);
        // And back.
        let corr = world.unblock(b, alice);
        assert_eq!(reply(&world.run_and_take(b), corr).op(), Op::Done);
        let message = world.say(a, bob, "again?");
        sent(&world.run_and_take(a), message.corr);
        assert_eq!(texts(&world.run_and_take(b)), ["again?"]);
        rest(&mut world);
    }
}

/// After the restart the list is read when the first message comes, once, and what comes meanwhile
/// waits in order; from others as well.
#[test]
fn a_block_survives_a_restart_and_messages_wait_in_order_while_it_is_read() {
    let mut world = world(1);
    let b = world.login(2, 1);
    world.block(b, 1);
    world.run();
    world.restart(2);
    let (a, b, c) = (world.login(1, 1), world.login(2, 1), world.login(3, 1));
    let reads = world.store.executed_of(CmdKind::ReadRecords);
    world.store.hold(&[CmdKind::ReadRecords]);
    let refused = world.say(a, 2, "blocked");
    let others: Vec<_> = ["one", "two", "three"]
        .map(|text| world.say(c, 2, text))
        .into();
    world.run();
    assert!(world.take(b).iter().all(|got| got.op() != Op::Deliver));
    world.store.release();
    assert_eq!(
        error(&world.run_and_take(a), refused.corr),
        ErrorCode::FORBIDDEN
    );
    let got = world.take(c);
    others.iter().for_each(|it| {
        sent(&got, it.corr);
    });
    assert_eq!(texts(&world.take(b)), ["one", "two", "three"]);
    assert_eq!(world.store.executed_of(CmdKind::ReadRecords), reads + 1);
    assert_eq!(world.count(Counter::PeopleReads), 1);
    rest(&mut world);
}

#[test]
fn a_list_that_cannot_be_read_lets_nothing_through_and_the_sender_may_try_again() {
    let mut world = world(1);
    let b = world.login(2, 1);
    world.block(b, 1);
    world.run();
    world.restart(1);
    let (c, b) = (world.login(3, 1), world.login(2, 1));
    let lost = StoreError::Unavailable;
    world.store.fail(&[CmdKind::ReadRecords], 1, lost);
    let mut message = world.say(c, 2, "hello");
    let got = world.run_and_take(c);
    assert_eq!(error(&got, message.corr), ErrorCode::UNAVAILABLE);
    assert!(texts(&world.take(b)).is_empty());
    message.flags = Flags::RETRY;
    message.corr = world.corr(c);
    world.post(c, &message);
    sent(&world.run_and_take(c), message.corr);
    assert_eq!(texts(&world.run_and_take(b)), ["hello"]);
    rest(&mut world);
}

#[test]
fn what_waits_for_a_list_is_bounded_and_the_rest_is_refused() {
    let limits = Limits {
        people_waiting_max: 3,
        ..Limits::default()
    };
    let mut world = World::new(1, limits);
    let b = world.login(2, 1);
    world.block(b, 9);
    world.run();
    world.restart(1);
    let c = world.login(3, 1);
    world.store.hold(&[CmdKind::ReadRecords]);
    let all: Vec<_> = (0..5).map(|_| world.say(c, 2, "x")).collect();
    let got = world.run_and_take(c);
    let refused = |corr| got.iter().any(|it| it.corr() == corr);
    for (at, message) in all.iter().enumerate() {
        assert_eq!(refused(message.corr), at >= 3);
    }
    assert_eq!(error(&got, all[4].corr), ErrorCode::OVERLOADED);
    assert_eq!(world.count(Counter::PeopleWaitingFull), 2);
    world.check_invariants();
    world.store.release();
    let got = world.run_and_take(c);
    all[..3].iter().for_each(|it| {
        sent(&got, it.corr);
    });
    rest(&mut world);
}

#[test]
fn users_with_the_defaults_are_never_read() {
    let mut world = world(2);
    let clients: Vec<_> = (1..=6).map(|user| world.login(user, 1)).collect();
    for (at, client) in clients.iter().enumerate() {
        world.say(*client, (at as u64 + 1) % 6 + 1, "x");
        world.signal(*client, (at as u64 + 1) % 6 + 1, 1, 0);
    }
    world.run();
    assert_eq!(world.store.executed_of(CmdKind::ReadRecords), 0);
    assert_eq!(world.count(Counter::PeopleReads), 0);
}

/// What was accepted before the block is not refused after it.
#[test]
fn a_message_that_was_accepted_is_a_duplicate_after_a_block() {
    let mut world = world(2);
    let (a, b) = (world.login(1, 1), world.login(2, 1));
    let mut message = world.say(a, 2, "first");
    let (place, _) = sent(&world.run_and_take(a), message.corr);
    world.block(b, 1);
    world.run();
    message.flags = Flags::RETRY;
    message.corr = world.corr(a);
    world.post(a, &message);
    assert_eq!(sent(&world.run_and_take(a), message.corr), (place, true));
}

#[test]
fn contacts_are_kept_listed_in_pages_renamed_and_removed() {
    let mut world = world(2);
    let a = world.login(1, 1);
    let edits: Vec<_> = (2..=11)
        .map(|user| (user, ContactChange::SET, &b"name"[..]))
        .collect();
    let corr = world.edit_contacts(a, &edits);
    assert_eq!(reply(&world.run_and_take(a), corr).op(), Op::Done);
    let corr = world.edit_contacts(
        a,
        &[
            (3, ContactChange::SET, b"renamed"),
            (4, ContactChange::REMOVE, b""),
            (5, ContactChange::BLOCK, b""),
            (99, ContactChange::BLOCK, b""),
        ],
    );
    assert_eq!(reply(&world.run_and_take(a), corr).op(), Op::Done);
    world.restart(1);
    let a = world.login(1, 2);
    let corr = world.get_contacts(a, 0, 4, false);
    let (page, more) = contacts(&world.run_and_take(a), corr);
    let name = |name: &[u8]| name.to_vec();
    let due = vec![
        (2, name(b"name"), false),
        (3, name(b"renamed"), false),
        (5, name(b"name"), true),
        (6, name(b"name"), false),
    ];
    assert_eq!((page, more), (due, true));
    let corr = world.get_contacts(a, 6, 500, false);
    let (page, more) = contacts(&world.run_and_take(a), corr);
    let users: Vec<_> = page.iter().map(|row| row.0).collect();
    assert_eq!((users, more), ((7..=11).collect(), false));
    let corr = world.get_contacts(a, 0, 1, true);
    let page = contacts(&world.run_and_take(a), corr);
    assert_eq!(page, (vec![(5, Vec::new(), true)], true));
    let corr = world.get_contacts(a, 5, 9, true);
    let page = contacts(&world.run_and_take(a), corr);
    assert_eq!(page, (vec![(99, Vec::new(), true)], false));
    rest(&mut world);
}

/// A page of long names ends before a frame would be too long, and says that there is more.
#[test]
fn a_page_fits_into_a_frame() {
    let mut world = world(1);
    let a = world.login(1, 1);
    let name = [7; 256];
    let all = 2..=501_u64;
    for chunk in all.clone().collect::<Vec<_>>().chunks(CONTACT_EDITS_MAX) {
        let edits: Vec<_> = chunk
            .iter()
            .map(|user| (*user, ContactChange::SET, &name[..]))
            .collect();
        let corr = world.edit_contacts(a, &edits);
        assert_eq!(reply(&world.run_and_take(a), corr).op(), Op::Done);
    }
    let (mut after, mut found) = (0, Vec::new());
    loop {
        let corr = world.get_contacts(a, after, 500, false);
        let (page, more) = contacts(&world.run_and_take(a), corr);
        found.extend(page.iter().map(|row| row.0));
        after = found.last().copied().expect("some");
        if !more {
            break;
        }
    }
    assert_eq!(found, all.collect::<Vec<_>>());
}

#[test]
fn settings_are_kept_and_go_back_to_nothing() {
    let mut world = world(2);
    let a = world.login(1, 1);
    let corr = world.get_privacy(a);
    assert_eq!(privacy(&world.run_and_take(a), corr), Privacy::default());
    let wanted = Privacy {
        last_seen: Who::CONTACTS,
        online: Who::NOBODY,
        hide_read: true,
        group_add: Who::CONTACTS,
        ..Privacy::default()
    };
    let corr = world.set_privacy(a, &wanted);
    assert_eq!(reply(&world.run_and_take(a), corr).op(), Op::Done);
    let corr = world.get_privacy(a);
    assert_eq!(privacy(&world.run_and_take(a), corr), wanted);
    world.restart(2);
    let a = world.login(1, 1);
    let corr = world.get_privacy(a);
    assert_eq!(privacy(&world.run_and_take(a), corr), wanted);
    assert_eq!(world.store.keys(portico_core::RESTRICTIONS).count(), 1);
    let corr = world.set_privacy(a, &Privacy::default());
    assert_eq!(reply(&world.run_and_take(a), corr).op(), Op::Done);
    assert_eq!(world.store.keys(portico_core::RESTRICTIONS).count(), 0);
    let reads = world.count(Counter::PeopleReads);
    let corr = world.get_privacy(a);
    assert_eq!(privacy(&world.run_and_take(a), corr), Privacy::default());
    assert_eq!(
        world.count(Counter::PeopleReads),
        reads,
        "there is no record"
    );
    rest(&mut world);
}

#[test]
fn bad_edits_have_an_error_each_and_change_nothing() {
    let mut world = world(1);
    let a = world.login(1, 1);
    let long = [7; 257];
    let many = vec![(2, ContactChange::BLOCK, &b""[..]); CONTACT_EDITS_MAX + 1];
    type Edits<'a> = &'a [(u64, ContactChange, &'a [u8])];
    let cases: [(Edits<'_>, ErrorCode, &str); 6] = [
        (
            &[(2, ContactChange::BLOCK, b""), (3, ContactChange(9), b"")],
            ErrorCode::BAD_ARGUMENT,
            "the change of a contact",
        ),
        (
            &[(0, ContactChange::SET, b"x")],
            ErrorCode::BAD_ARGUMENT,
            "names no user",
        ),
        (
            &[(1, ContactChange::BLOCK, b"")],
            ErrorCode::BAD_ARGUMENT,
            "oneself",
        ),
        (
            &[(2, ContactChange::BLOCK, b"x")],
            ErrorCode::BAD_ARGUMENT,
            "only SET",
        ),
        (
            &[(2, ContactChange::SET, &long)],
            ErrorCode::TOO_LARGE,
            "a name 256 bytes",
        ),
        (&many, ErrorCode::TOO_LARGE, "100 changes"),
    ];
    for (edits, code, text) in cases {
        let corr = world.edit_contacts(a, edits);
        let got = world.run_and_take(a);
        assert_eq!(error(&got, corr), code, "{text}");
        assert!(detail(&got, corr).contains(text), "{}", detail(&got, corr));
    }
    for bad in [
        Privacy {
            findable: Who::CONTACTS,
            ..Privacy::default()
        },
        Privacy {
            online: Who(3),
            ..Privacy::default()
        },
    ] {
        let corr = world.set_privacy(a, &bad);
        let got = world.run_and_take(a);
        assert_eq!(error(&got, corr), ErrorCode::BAD_ARGUMENT);
        assert!(detail(&got, corr).contains("EVERYONE, CONTACTS or NOBODY"));
    }
    let corr = world.get_contacts(a, 0, 0, false);
    let got = world.run_and_take(a);
    assert_eq!(error(&got, corr), ErrorCode::BAD_ARGUMENT);
    assert_eq!(world.store.executed_of(CmdKind::WriteRecord), 0);
    rest(&mut world);
}

#[test]
fn contacts_and_blocks_are_bounded() {
    let mut world = world(1);
    let a = world.login(1, 1);
    let fill = |world: &mut World, change: ContactChange, count: usize| {
        let users: Vec<u64> = (2..2 + count as u64).collect();
        for chunk in users.chunks(CONTACT_EDITS_MAX) {
            let edits: Vec<_> = chunk.iter().map(|user| (*user, change, &b""[..])).collect();
            let corr = world.edit_contacts(a, &edits);
            assert_eq!(reply(&world.run_and_take(a), corr).op(), Op::Done);
        }
    };
    for (change, back, count) in [
        (ContactChange::BLOCK, ContactChange::UNBLOCK, BLOCKS_MAX),
        (ContactChange::SET, ContactChange::REMOVE, CONTACTS_MAX),
    ] {
        fill(&mut world, change, count);
        let over = [(5, change, &b""[..]), (1_000_000, change, b"")];
        let corr = world.edit_contacts(a, &over);
        assert_eq!(error(&world.run_and_take(a), corr), ErrorCode::QUOTA);
        let swapped = [(2, back, &b""[..]), (1_000_000, change, b"")];
        let corr = world.edit_contacts(a, &swapped);
        assert_eq!(reply(&world.run_and_take(a), corr).op(), Op::Done);
    }
    assert_eq!(world.count(Counter::RefusedQuota), 2);
}

/// Edits of two devices at a time are made one after the other; what fails says so, and is repeated.
#[test]
fn edits_are_serialised_and_done_means_durable() {
    let mut world = world(1);
    let (a, b) = (world.login(1, 1), world.login(1, 2));
    world.take(a);
    world.take(b);
    world.store.hold(&[CmdKind::WriteRecord]);
    let first = world.block(a, 7);
    let second = world.block(b, 8);
    assert!(world.run_and_take(a).is_empty() && world.run_and_take(b).is_empty());
    world.check_invariants();
    world.store.release();
    assert_eq!(reply(&world.run_and_take(a), first).op(), Op::Done);
    assert_eq!(reply(&world.take(b), second).op(), Op::Done);
    let corr = world.get_contacts(a, 0, 500, true);
    let (page, _) = contacts(&world.run_and_take(a), corr);
    assert_eq!(page.iter().map(|row| row.0).collect::<Vec<_>>(), [7, 8]);
    // The answer is lost: perhaps it is so. It is read again, and may be repeated.
    world.store.lose_answers(&[CmdKind::WriteRecord], 1);
    let corr = world.block(a, 9);
    assert_eq!(error(&world.run_and_take(a), corr), ErrorCode::TIMEOUT);
    let corr = world.block(a, 9);
    assert_eq!(reply(&world.run_and_take(a), corr).op(), Op::Done);
    let nine = world.login(9, 1);
    let message = world.say(nine, 1, "x");
    let got = world.run_and_take(nine);
    assert_eq!(error(&got, message.corr), ErrorCode::FORBIDDEN);
    rest(&mut world);
}

#[test]
fn who_hides_what_was_read_tells_nobody_and_is_told_nothing() {
    for shards in [1, 2] {
        let mut world = world(shards);
        let (alice, bob) = (user_at(0, shards, 0), user_at(shards - 1, shards, 1));
        let (a, b) = (world.login(alice, 1), world.login(bob, 1));
        let b2 = world.login(bob, 2);
        let hide = Privacy {
            hide_read: true,
            ..Privacy::default()
        };
        world.set_privacy(b, &hide);
        world.run();
        let message = world.say(a, bob, "hello");
        let (place, _) = sent(&world.run_and_take(a), message.corr);
        let answer = world.say(b, alice, "hi");
        let (back, _) = sent(&world.run_and_take(b), answer.corr);
        world.run();
        world.mark_read(b, alice, place, 0);
        world.mark_read(a, bob, back, 0);
        world.take(b);
        world.advance(2_000);
        let reads = |got: &[Got], of: u64| {
            let receipts = got.iter().filter(|it| it.op() == Op::Receipt);
            receipts
                .map(Got::route)
                .filter(|it| it.kind == receipt_kind::READ && it.user == UserId(of))
                .count()
        };
        assert_eq!(reads(&world.take(a), bob), 0, "it is hidden");
        let (got_b, got_b2) = (world.take(b), world.take(b2));
        assert_eq!((reads(&got_b, alice), reads(&got_b2, alice)), (0, 0));
        assert_eq!(reads(&got_b2, bob), 1, "one's own devices know");
        // Nor does either learn it by asking.
        for (client, peer) in [(a, bob), (b, alice)] {
            let corr = world.corr(client);
            world.ask_receipts(client, corr, &[peer]);
            let got = world.run_and_take(client);
            assert_eq!(reads(&got, peer), 0);
            assert!(got.iter().any(|it| it.op() == Op::Done));
        }
        // Once it is no longer hidden both do.
        world.set_privacy(b, &Privacy::default());
        world.run();
        for (client, peer) in [(a, bob), (b, alice)] {
            let corr = world.corr(client);
            world.ask_receipts(client, corr, &[peer]);
            assert_eq!(reads(&world.run_and_take(client), peer), 1);
        }
        rest(&mut world);
    }
}

/// While the record is read it is written; who asked then learns what was written, and nobody
/// overtakes.
#[test]
fn a_read_that_a_change_has_passed_is_made_again() {
    // The cache holds two users at most.
    let limits = Limits {
        people_cache_bytes: 10,
        ..Limits::default()
    };
    let mut world = World::new(1, limits);
    let (a, b) = (world.login(1, 1), world.login(2, 1));
    let others = [3, 4, 5].map(|user| world.login(user, 1));
    for client in others.into_iter().chain([b]) {
        world.block(client, 9);
        world.run();
    }
    world.take(a);
    world.take(b);
    // What user 2 allows is known, and a change of it is being written.
    world.get_privacy(b);
    world.run();
    world.store.hold(&[CmdKind::WriteRecord]);
    let corr = world.block(b, 1);
    world.run();
    // Then it leaves the cache, and a message has it read.
    for client in others {
        world.get_privacy(client);
        world.run();
    }
    world.store.hold_answers(&[CmdKind::ReadRecords]);
    let first = world.say(a, 2, "first");
    world.run();
    // The change is durable before the answer of the old read comes.
    world.store.release();
    world.store.hold_answers(&[CmdKind::ReadRecords]);
    world.take(b);
    assert_eq!(reply(&world.run_and_take(b), corr).op(), Op::Done);
    let second = world.say(a, 2, "second");
    world.run();
    world.store.release();
    let got = world.run_and_take(a);
    for message in [first, second] {
        assert_eq!(error(&got, message.corr), ErrorCode::FORBIDDEN);
    }
    rest(&mut world);
}
