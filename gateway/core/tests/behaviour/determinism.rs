//! Equal inputs give equal effects, to the byte: only then does a failing seed replay.

use portico_core::{
    Limits,
    testing::{CmdKind, World},
};
use portico_wire::{frame::Flags, ids::ConvSeq};

/// A crowded hour: logins, chats, repeats, receipts, faults, a drain.
fn hour(shards: u16, twist: u64) -> u64 {
    let mut world = World::new(shards, Limits::test_min());
    world.record();
    let mut clients: Vec<usize> = (1..=12).map(|user| world.login(user, 1)).collect();
    clients.extend((1..=4).map(|user| world.login(user, 2)));
    for round in 0..30_u64 {
        for (at, &client) in clients.iter().enumerate() {
            let to = 1 + (at as u64 * 7 + round * 3 + twist) % 12;
            let mut message = world.message(client, to, &format!("{at} {round}"));
            if round % 5 == 0 {
                message.flags = Flags::RETRY;
            }
            world.post(client, &message);
            world.mark_read(client, to, ConvSeq(1_000 + round), 0);
        }
        if round % 7 == 0 {
            world.store.lose_answers(&[CmdKind::Append], 2);
            world.store.hold_answers(&[CmdKind::AddRefs]);
        }
        world.run();
        world.store.release();
        world.advance(700);
    }
    world.drain(100, 1_000);
    world.advance(20_000);
    assert!(world.is_drained());
    world.trace()
}

#[test]
fn two_runs_are_one() {
    for shards in 1..=3 {
        assert_eq!(hour(shards, 0), hour(shards, 0));
        assert_ne!(
            hour(shards, 0),
            hour(shards, 1),
            "the trace sees differences"
        );
    }
}
