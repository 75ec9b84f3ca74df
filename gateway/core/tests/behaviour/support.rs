//! Short names for what most tests do.

use portico_core::{
    Limits, ShardId,
    testing::{Got, World},
    user_home,
};
use portico_wire::{
    ErrorCode, Op,
    ids::{ConvSeq, Seq, UserId},
};

pub(crate) fn world(shards: u16) -> World {
    World::new(shards, Limits::default())
}

/// The `nth` user, from 0, whose home is this shard.
pub(crate) fn user_at(shard: u16, shards: u16, nth: usize) -> u64 {
    let here = |user: &u64| user_home(UserId(*user), shards) == ShardId(shard);
    (1..).filter(here).nth(nth).expect("there are many users")
}

pub(crate) fn ops(got: &[Got]) -> Vec<Op> {
    got.iter().map(Got::op).collect()
}

/// The bodies of the messages among the frames.
pub(crate) fn texts(got: &[Got]) -> Vec<String> {
    let messages = got.iter().filter(|got| got.op() == Op::Deliver);
    messages
        .map(|got| String::from_utf8_lossy(got.body()).into_owned())
        .collect()
}

pub(crate) fn seqs(got: &[Got]) -> Vec<Seq> {
    let sequenced = got.iter().filter(|got| got.is_sequenced());
    sequenced.map(|got| got.route().seq).collect()
}

/// The answer to a request.
pub(crate) fn reply(got: &[Got], corr: u32) -> &Got {
    let mut replies = got.iter().filter(|got| got.corr() == corr);
    let reply = replies.next();
    assert!(replies.next().is_none(), "F4: one reply to {corr}: {got:?}");
    reply.unwrap_or_else(|| panic!("no reply to {corr}: {got:?}"))
}

/// The place that SENT gave to a message, and whether it was there already.
pub(crate) fn sent(got: &[Got], corr: u32) -> (ConvSeq, bool) {
    let reply = reply(got, corr);
    assert_eq!(reply.op(), Op::Sent, "{reply:?}");
    let header = reply.seq_header();
    (ConvSeq(header.seq), header.arg == 1)
}

pub(crate) fn error(got: &[Got], corr: u32) -> ErrorCode {
    let reply = reply(got, corr);
    reply.error().unwrap_or_else(|| panic!("{reply:?}"))
}

/// Nothing is in use but connections and what belongs to them.
pub(crate) fn assert_idle(world: &World) {
    let connections = ["portico_connections", "portico_sessions", "portico_users"];
    let mut residue = world.residue();
    // What is cached stays.
    let cached = [
        "portico_groups",
        "portico_group_bytes",
        "portico_groups_evicted",
    ];
    residue.retain(|(name, _)| !connections.contains(name) && !cached.contains(name));
    assert!(residue.is_empty(), "{residue:?}");
    world.check_invariants();
}
