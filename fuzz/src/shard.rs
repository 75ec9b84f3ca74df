//! Two shards against clients that say anything, and a store that misbehaves within its contract.
//!
//! The input is a list of steps. The lowest three bits of a step's first byte say what happens, the
//! rest how; see [`step`].

use portico_core::{
    Limits,
    store::StoreError,
    testing::{CmdKind, World},
};

/// Bytes that one step writes at most.
const CHUNK_MAX: usize = 512;
/// More steps than this add time and nothing else.
const STEPS_MAX: usize = 256;
/// Two devices of one user and one of another.
const PEOPLE: [(u64, u16); 3] = [(1, 1), (1, 2), (2, 1)];

/// Whatever comes: no panic, the books agree after each step, and when the faults stop and everybody
/// has gone, nothing is left in flight.
pub fn shard(data: &[u8]) {
    let mut world = World::new(2, Limits::test_min());
    let mut clients: Vec<usize> = PEOPLE
        .map(|(user, device)| world.login(user, device))
        .into();
    clients.push(world.connect(0));
    let mut rest = data;
    for _ in 0..STEPS_MAX {
        let Some((first, after)) = rest.split_first() else {
            break;
        };
        rest = step(&mut world, &mut clients, *first, after);
        world.check_invariants();
    }
    world.store.heal();
    world.run();
    for client in clients {
        world.cut(client);
    }
    world.run();
    world.advance(120_000);
    world.check_invariants();
    for (what, left) in world.residue() {
        assert_eq!(left, 0, "{what} after everybody has gone");
    }
}

fn step<'a>(world: &mut World, clients: &mut [usize], first: u8, rest: &'a [u8]) -> &'a [u8] {
    let how = usize::from(first >> 3);
    match first & 7 {
        // A client writes: the length, then the bytes.
        seat @ 0..=3 => {
            let Some((length, rest)) = rest.split_first_chunk::<2>() else {
                return &[];
            };
            let length = usize::from(u16::from_le_bytes(*length)) % CHUNK_MAX;
            let (chunk, rest) = rest.split_at(length.min(rest.len()));
            world.write(clients[usize::from(seat)], chunk);
            return rest;
        }
        4 => world.run(),
        5 => world.advance(1 << (how % 16)),
        // A client goes and comes back, or stops reading, or reads on.
        6 => {
            let seat = how % clients.len();
            match how / clients.len() % 3 {
                0 => {
                    world.cut(clients[seat]);
                    clients[seat] = match PEOPLE.get(seat) {
                        Some((user, device)) => world.open(seat % 2, *user, *device, |_| {}),
                        None => world.connect(1),
                    };
                }
                reading => world.set_reading(clients[seat], reading == 1),
            }
        }
        _ => {
            let kind = [
                CmdKind::Append,
                CmdKind::Replay,
                CmdKind::Cursors,
                CmdKind::History,
                CmdKind::References,
                CmdKind::Redact,
            ][how % 6];
            match how / 6 {
                0 => world.store.hold(&[kind]),
                1 => world.store.hold_answers(&[kind]),
                2 => world.store.fail(&[kind], 1, StoreError::Unavailable),
                3 => world.store.lose_answers(&[kind], 1),
                _ => world.store.release(),
            }
        }
    }
    rest
}
