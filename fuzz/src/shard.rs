//! Two shards against clients that say anything, and a store that misbehaves within its contract.
//!
//! The input is a list of steps. The lowest three bits of a step's first byte say what happens, the
//! rest how; see [`step`].

use portico_core::{
    Limits,
    store::StoreError,
    testing::{CmdKind, World},
};
use portico_wire::message::people::{ContactChange, Privacy, Who};

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
        4 => {
            // A client says something about people, which bytes alone rarely would.
            if let Some(op) = how.checked_sub(8) {
                people(world, clients[op % clients.len()], op / clients.len());
            }
            world.run();
        }
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
            let kinds = [
                CmdKind::Append,
                CmdKind::Replay,
                CmdKind::Cursors,
                CmdKind::ReadRecords,
                CmdKind::WriteRecord,
                CmdKind::History,
                CmdKind::References,
                CmdKind::Redact,
            ];
            let kind = kinds[how % kinds.len()];
            match how / kinds.len() % 5 {
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

fn people(world: &mut World, client: usize, what: usize) {
    let shy = Privacy {
        online: Who::CONTACTS,
        hide_read: true,
        ..Privacy::default()
    };
    match what {
        0 => {
            world.watch(client, &[1, 2, 3], &[]);
        }
        1 => {
            world.watch(client, &[2], &[1, 2]);
        }
        2 => {
            let edits = [
                (1, ContactChange::BLOCK, &b""[..]),
                (2, ContactChange::BLOCK, b""),
                (3, ContactChange::SET, b"name"),
            ];
            // One of them names oneself: of the others each is tried.
            for edit in edits {
                world.edit_contacts(client, &[edit]);
            }
        }
        3 => {
            world.unblock(client, 1);
            world.unblock(client, 2);
        }
        4 => {
            world.set_privacy(client, &shy);
        }
        _ => {
            world.set_privacy(client, &Privacy::default());
            world.signal(client, 2, 1, 0);
        }
    }
}
