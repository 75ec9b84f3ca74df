//! A second connection of a device takes over, in whatever state the first one is; nothing is lost
//! and nothing of the first one is left.

use crate::support::{assert_idle, ops, sent, texts, user_at, world};
use portico_core::{
    Counter,
    testing::{CmdKind, World},
};
use portico_wire::{
    CloseCode, Op,
    frame::Flags,
    ids::{DeviceId, Seq, UserId},
};

#[test]
fn the_older_connection_is_told_and_closed() {
    for shards in 1..=2 {
        let user = user_at(shards - 1, shards, 0);
        let mut world = world(shards);
        let old = world.login(user, 1);
        let other = world.login(user, 2);
        let new = world.login(user, 1);
        assert_eq!(world.close_code(old), Some(CloseCode::SESSION_REPLACED));
        assert!(!world.is_connected(old));
        assert!(world.is_connected(other) && world.is_connected(new));
        assert_eq!(world.count(Counter::ClosedReplaced), 1);
        let home = usize::from(shards - 1);
        let mut devices = world.shard(home).devices_here(UserId(user));
        devices.sort();
        assert_eq!(devices, [DeviceId(1), DeviceId(2)]);
        world.check_invariants();
    }
}

#[test]
fn it_works_in_every_state_of_the_older_connection() {
    // The older one stands after any number of events of its login, or in the middle of a replay.
    for kind in [None, Some(CmdKind::Cursors), Some(CmdKind::Replay)] {
        for steps in 0..12 {
            let mut world = world(2);
            let (a, b) = (user_at(0, 2, 0), user_at(1, 2, 0));
            let alice = world.login(a, 1);
            world.say(alice, b, "waiting");
            world.run();
            world.store.hold(kind.as_slice());
            let old = world.open(0, b, 1, |_| {});
            let mut events = Vec::new();
            for _ in 0..steps {
                world.ready(&mut events);
                if let Some(event) = events.first() {
                    world.perform(*event, 0);
                }
            }
            let new = world.open(1, b, 1, |_| {});
            world.run();
            world.store.release();
            world.run();
            // One of the two is left, and has everything.
            let (here, gone) = if world.is_connected(new) {
                (new, old)
            } else {
                (old, new)
            };
            assert_eq!(world.close_code(gone), Some(CloseCode::SESSION_REPLACED));
            assert_eq!(texts(world.got(here)), ["waiting"], "{kind:?} {steps}");
            world.say(alice, b, "live");
            world.run();
            assert_eq!(texts(world.got(here)), ["waiting", "live"]);
            world.check_invariants();
            world.cut(here);
            world.cut(alice);
            world.advance(3_000);
            assert_eq!(world.residue(), []);
        }
    }
}

#[test]
fn the_new_connection_goes_on_where_the_old_one_acknowledged() {
    let mut world = world(1);
    let alice = world.login(1, 1);
    let old = world.open(0, 2, 1, |_| {});
    world.run();
    for number in 0..6 {
        world.say(alice, 2, &number.to_string());
    }
    world.run();
    let third = world.store.inbox(UserId(2))[2].seq;
    world.ack(old, third, 100);
    world.run();
    // At once, before the cursor is written: the client's own word is enough.
    let new = world.open(0, 2, 1, |hello| hello.last_seq = third);
    assert_eq!(texts(&world.run_and_take(new)), ["3", "4", "5"]);
    let last = world.last_seq(new);
    world.ack(new, last, 100);
    world.advance(3_000);
    assert_idle(&world);
}

#[test]
fn requests_of_the_old_connection_are_settled_without_it() {
    let mut world = world(1);
    let old = world.login(1, 1);
    world.take(old);
    world
        .store
        .hold(&[CmdKind::Append, CmdKind::SetMarks, CmdKind::Marks]);
    let message = world.say(old, 2, "in flight");
    let corr = world.corr(old);
    world.ask_receipts(old, corr, &[2, 3]);
    let corr = world.corr(old);
    world.mark_read(old, 2, portico_wire::ids::ConvSeq(5), corr);
    world.advance(500);
    let new = world.login(1, 1);
    world.take(new);
    let again = portico_core::testing::Outgoing {
        flags: Flags::RETRY,
        corr: 50,
        ..message
    };
    world.post(new, &again);
    world.run();
    world.check_invariants();
    world.store.release();
    let got = world.run_and_take(new);
    assert_eq!(ops(&got), [Op::Sent], "only what it asked for itself");
    sent(&got, 50);
    world.advance(15_000);
    assert_idle(&world);
}

#[test]
fn many_devices_come_and_go_and_the_chain_holds() {
    let mut world = World::new(1, portico_core::Limits::default());
    let mut clients = Vec::new();
    for round in 0..200_u16 {
        let device = 1 + round.wrapping_mul(7) % 12;
        clients.push(world.open(0, 5, device, |_| {}));
        if round % 3 == 0 {
            let at = usize::from(round) * 5 % clients.len();
            world.cut(clients[at]);
        }
        if round % 2 == 0 {
            world.run();
        }
        world.check_invariants();
    }
    for client in clients {
        world.cut(client);
        world.check_invariants();
    }
    world.advance(3_000);
    assert_eq!(world.residue(), []);
    assert!(world.shard(0).devices_here(UserId(5)).is_empty());
    let back = world.open(0, 5, 1, |hello| hello.last_seq = Seq(1));
    world.run();
    assert!(world.is_connected(back));
}
