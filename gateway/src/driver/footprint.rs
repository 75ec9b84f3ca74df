//! Memory that connections and shards take, from the sizes of what they are made of. For whoever
//! finds out what a machine can hold.
//!
//! # Does not
//! Count what the queues may hold under load: their bounds are settings. Nor what a connection
//! holds only while it has something to do.

use super::{
    accept, buffer, executor, mesh,
    ring::{self, RingSizes},
    socket, tls,
};
use portico_core::{
    Limits,
    footprint::{SLOT_BYTES, TIMER_BYTES, user_table_bytes},
};

use portico_tls::Session;

pub use accept::BACKLOG;
pub use portico_core::footprint::ABSENT_BYTES;

/// Open files of the process beside those of the store: standard streams, the admin port and its
/// connections, signals.
pub const FILES: u64 = 96;
/// Its ring, the name of it that other shards use, and its listeners, of which it may have two.
pub const FILES_PER_SHARD: u64 = 4;
/// The executor's, the doorbell and the bell.
pub const FILES_PER_THREAD: u64 = 9;

/// The kernel's pointer to an entry in the table of direct descriptors.
const DESCRIPTOR_BYTES: u64 = 8;

/// A share of the memory, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub name: &'static str,
    pub bytes: u64,
}

const fn part(name: &'static str, bytes: usize) -> Part {
    Part {
        name,
        bytes: bytes as u64,
    }
}

/// The process's memory for a connection that is logged in and idle, on a shard with room for
/// `slots`.
#[must_use]
pub fn of_connection(slots: u32) -> Vec<Part> {
    let slots = (slots as usize).max(1);
    vec![
        part("slot in the core", SLOT_BYTES),
        part("links in the timer wheel", TIMER_BYTES),
        part(
            "share of the table of users",
            user_table_bytes(slots).div_ceil(slots),
        ),
        part("slot in the driver", socket::SLOT_BYTES),
    ]
}

/// What one over TLS takes beside that, its keys prepared.
#[must_use]
pub fn of_tls_session() -> Vec<Part> {
    let session = Session::OPEN_BYTES - size_of::<Session>();
    vec![
        part("TLS: link and its place", tls::LINK_BYTES),
        part("TLS: session, awake", session),
    ]
}

/// What the thread of each CPU takes.
#[must_use]
pub fn of_thread() -> Vec<Part> {
    vec![Part {
        name: "executor, locked",
        bytes: executor::LOCKED_BYTES,
    }]
}

/// What each of `shards` takes before the first connection comes.
#[must_use]
pub fn of_shard(sizes: &RingSizes, slots: u32, shards: usize) -> Vec<Part> {
    vec![
        Part {
            name: "ring, locked",
            bytes: ring::locked_bytes(sizes),
        },
        Part {
            name: "receive buffers",
            bytes: u64::from(sizes.buffers) * u64::from(sizes.buffer_bytes),
        },
        Part {
            name: "table of direct descriptors",
            bytes: u64::from(slots) * DESCRIPTOR_BYTES,
        },
        part("letters from other shards", mesh::queue_bytes(shards)),
    ]
}

/// The most that the queues of each of `shards` can hold, beside [`of_shard`].
#[must_use]
pub fn of_queues(limits: &Limits, unread_bytes_max: usize, shards: u16) -> Vec<Part> {
    let of_core = portico_core::footprint::of_queues(limits, shards);
    let mut parts: Vec<_> = of_core
        .into_iter()
        .map(|(name, bytes)| part(name, bytes))
        .collect();
    let unread = unread_bytes_max.saturating_add(buffer::KEPT_BYTES_MAX);
    let letters = mesh::letter_bytes_max(usize::from(shards));
    parts.push(part("unfinished frames, and room for reuse", unread));
    parts.push(part("what letters hold", letters));
    parts
}

/// How many connections a shard with `slots` may hold before it stops to accept: a few slots are
/// kept for those that other shards hand over.
#[must_use]
pub fn accepted_max(slots: u32, shards: usize) -> u32 {
    slots.saturating_sub(accept::reserve(slots, shards))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_stays_within_its_budget() {
        let sum = |slots| -> u64 { of_connection(slots).iter().map(|part| part.bytes).sum() };
        for slots in [16, 1_024, 20_000, 1 << 20] {
            assert!(sum(slots) <= 400, "{slots}: {:?}", of_connection(slots));
        }
        assert!(of_connection(0).iter().all(|part| part.bytes > 0));
        let tls: u64 = of_tls_session().iter().map(|part| part.bytes).sum();
        assert!(tls <= 1_500, "{:?}", of_tls_session());
    }

    #[test]
    fn a_shard_costs_less_with_small_rings_and_nothing_for_others_alone() {
        let sum = |shards, sizes| -> u64 {
            let parts = of_shard(&sizes, 20_000, shards);
            parts.iter().map(|part| part.bytes).sum()
        };
        let auto = |shards| RingSizes::auto().resolve(shards, 2);
        assert!(sum(5, auto(5)) < sum(4, auto(4)));
        let letters = of_shard(&auto(1), 20_000, 1).pop();
        assert_eq!(letters, Some(part("letters from other shards", 0)));
    }

    #[test]
    fn a_reserve_is_kept_where_connections_move() {
        let kept = 20_000 - accepted_max(20_000, 52);
        assert!(0 < kept && kept < 20_000 / 32, "{kept}");
        assert_eq!(accepted_max(20_000, 1), 20_000);
        assert_eq!(accepted_max(0, 2), 0);
    }
}
