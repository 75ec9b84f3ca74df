//! All that can happen in a run.

use portico_core::ConnId;

/// Names of things are indices into their tables. `life` is that of the gateway: what was meant for
/// an earlier one happens no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// Somebody does something, or something breaks.
    Act,
    /// A device opens a connection; an older attempt than its latest is void.
    Connect { device: usize, attempt: u32 },
    /// A session's timer, void if it has another one by now.
    Timer { device: usize },
    /// An app writes to its disk.
    Save { device: usize, run: u32 },
    /// An app is started.
    Launch { device: usize },
    /// A device that stood still, or did not read, goes on.
    Thaw { device: usize },
    /// The gateway's kernel accepts a connection.
    Accept { line: usize },
    /// Something arrives at the gateway.
    Up { line: usize },
    /// Something arrives at the client.
    Down { line: usize },
    /// A shard sends what has gathered, and reads what waits.
    Turn { life: u32, shard: u16 },
    /// A deadline of a shard.
    Tick { life: u32, shard: u16 },
    /// The kernel has taken bytes.
    Written {
        life: u32,
        shard: u16,
        conn: ConnId,
        bytes: usize,
    },
    /// The time for last words is over.
    Leave { life: u32, shard: u16, conn: ConnId },
    /// The authenticator answers.
    Judge { life: u32, at: usize },
    /// A letter between shards arrives.
    Mesh { life: u32, from: u16, to: u16 },
    /// The oldest hand-over that nothing stands in the way of.
    Move { life: u32 },
    /// The store commits.
    Commit { life: u32 },
    /// The store reads.
    Read { life: u32, at: usize },
    /// The store answers.
    Answer { life: u32, at: usize },
    /// The gateway starts, with so many shards.
    Boot { shards: u16 },
    /// A draining gateway is looked at.
    Drained { life: u32 },
    /// The gateway's supervisor ends it: its store has given up.
    Replace { life: u32 },
    /// Is everything said, after the faults have stopped?
    Look,
}
