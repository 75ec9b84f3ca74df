//! Bounds of a shard. Every queue has its maximum here and its policy beside the code that fills
//! it.

use crate::rates::Rates;
use portico_wire::{
    ids::{ConvId, ConvSeq},
    limits,
};

/// What bounds memory and time in one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest frame a client may send after WELCOME.
    pub frame_bytes_max: usize,
    /// Past this much queued for a connection the shard stops pushing to it: ephemeral frames are
    /// dropped, messages wait in the store.
    pub outbox_bytes_soft: usize,
    /// Past this much the connection is closed as a slow consumer.
    pub outbox_bytes_max: usize,
    /// Queued for all connections of the gateway, an even part of it in each shard. Past it each
    /// connection has room for one frame, and one that lets answers pile up is closed sooner.
    pub outboxes_bytes_max: usize,
    /// A connection that takes nothing for two seconds has its queue taken back; after this long it
    /// is closed.
    pub stalled_ms: u32,
    /// Requests of a connection that may be unanswered; more are refused as rate limited.
    pub requests_max: u32,
    /// Sequenced frames a client may ask to leave unacknowledged.
    pub receive_max: u32,
    /// Entries and bytes of one page of a replay.
    pub page_entries_max: u32,
    pub page_bytes_max: u32,
    /// Pages that are being read, all shards together; further connections wait for their turn.
    pub pages_max: usize,
    /// Storage requests in flight: past it the shard asks for no more input ([`crate::Shard::is_congested`]).
    pub store_requests_soft: usize,
    pub store_bytes_soft: usize,
    /// Past these, messages are refused as overloaded.
    pub store_requests_max: usize,
    pub store_bytes_max: usize,
    /// An answer of the store that takes longer counts as unknown.
    pub store_timeout_ms: u32,
    /// From accept to WELCOME.
    pub handshake_ms: u32,
    /// Logins per second that the whole gateway takes, an even part of it each shard; more are told
    /// when to come back. 0: no bound.
    pub logins_per_s: u32,
    /// Logins that may wait for the authenticator; more are told when to come back.
    pub sign_ins_max: usize,
    /// Reads of inboxes that the gateway may have in flight, all shards together, before devices that
    /// need one to log in are put off. What logins pile up at the store keeps everybody waiting.
    pub login_reads_max: usize,
    /// Devices without a session that are remembered as up to date, rounded up to a multiple of 8.
    /// They come back without a read of the store.
    pub absent_max: usize,
    /// Messages of one device and conversation that wait behind a search for a first attempt.
    pub gate_messages_max: usize,
    /// Cursors and watermarks are told and written together at this pace.
    pub flush_ms: u32,
    /// Watermarks that wait to be written: past it a READ is refused as overloaded. (What delivery
    /// adds is bounded by what is delivered.)
    pub unsaved_max: usize,
    /// Members that a group may have at most, whatever it asks for.
    pub group_members_max: u16,
    /// Groups in memory at their homes, all shards together; of those with nothing going on the ones not
    /// used for longest go, and are read again when needed.
    pub groups_bytes_max: usize,
    /// Operations that wait for a group to be read or for an edit of it; more are refused as overloaded.
    pub group_ops_max: usize,
    /// Messages of a shard's groups on their way to members; more are refused as overloaded.
    pub fan_outs_max: usize,
    /// A user whose last connection has ended is seen offline after this.
    pub presence_grace_ms: u32,
    /// Subscriptions to the presence of users, all shards together, an even part of it each; 500 of
    /// each shard at least. More are refused as overloaded.
    pub presence_subs_max: usize,
    /// Users who have left that are remembered, with the time, all shards together. Of others the
    /// store is asked.
    pub presence_left_max: usize,
    /// Cache of users' settings and blocks, all shards together.
    pub people_cache_bytes: usize,
    /// Reads of them under way, all shards together; further users wait for their turn.
    pub people_reads_max: usize,
    /// What waits in a shard until a user's settings and blocks are read: messages past it are
    /// refused as overloaded, the rest is dropped.
    pub people_waiting_max: usize,
    /// What clients may do in a second.
    pub rates: Rates,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_bytes_max: limits::FRAME_BYTES_DEFAULT_MAX,
            outbox_bytes_soft: 64 << 10,
            outbox_bytes_max: 256 << 10,
            outboxes_bytes_max: 256 << 20,
            stalled_ms: 30_000,
            requests_max: limits::RECEIVE_MAX_DEFAULT,
            receive_max: limits::RECEIVE_MAX_CEILING,
            page_entries_max: 128,
            page_bytes_max: 48 << 10,
            pages_max: 256,
            store_requests_soft: 8_192,
            store_bytes_soft: 16 << 20,
            store_requests_max: 16_384,
            store_bytes_max: 32 << 20,
            store_timeout_ms: 10_000,
            handshake_ms: 10_000,
            logins_per_s: 20_000,
            sign_ins_max: 4_096,
            login_reads_max: 4_096,
            absent_max: 65_536,
            gate_messages_max: limits::RECEIVE_MAX_DEFAULT as usize,
            flush_ms: 250,
            unsaved_max: 16_384,
            group_members_max: limits::GROUP_MEMBERS_MAX as u16,
            groups_bytes_max: 128 << 20,
            group_ops_max: 2_048,
            fan_outs_max: 2_048,
            presence_grace_ms: 20_000,
            presence_subs_max: 4_194_304,
            presence_left_max: 262_144,
            people_cache_bytes: 64 << 20,
            people_reads_max: 256,
            people_waiting_max: 256,
            rates: Rates::default(),
        }
    }
}

impl Limits {
    /// Everything small, so that tests reach every full queue.
    #[must_use]
    pub fn test_min() -> Self {
        Self {
            outbox_bytes_soft: 1 << 10,
            outbox_bytes_max: 8 << 10,
            requests_max: 4,
            receive_max: 8,
            page_entries_max: 2,
            page_bytes_max: 512,
            pages_max: 4,
            outboxes_bytes_max: 16 << 10,
            store_requests_soft: 8,
            store_bytes_soft: 4 << 10,
            store_requests_max: 16,
            store_bytes_max: 8 << 10,
            gate_messages_max: 4,
            unsaved_max: 8,
            sign_ins_max: 4,
            login_reads_max: 8,
            absent_max: 8,
            group_members_max: 16,
            groups_bytes_max: 8 << 10,
            group_ops_max: 8,
            fan_outs_max: 4,
            presence_subs_max: 500,
            presence_left_max: 8,
            people_cache_bytes: 2 << 10,
            people_reads_max: 2,
            people_waiting_max: 8,
            ..Self::default()
        }
    }
}

/// What a shard must know at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardConfig {
    pub shard: crate::ShardId,
    pub shards: u16,
    /// Goes into WELCOME, for support.
    pub node: String,
    /// Entries are kept this long; older cursors meet a SYNC_GAP.
    pub retention_s: u64,
    pub heartbeat_s: u16,
    pub heartbeat_min_s: u16,
    pub heartbeat_max_s: u16,
    /// Connections to make room for at start, so that tables need not grow while they come. It is no
    /// bound. Room that is not used is not resident.
    pub connections_hint: usize,
    /// No sequence number at or below this one is ever issued: the store's ceiling at start.
    pub seq_floor: u64,
    /// Users of this shard who have a record of [`crate::RESTRICTIONS`].
    pub restricted: Vec<portico_wire::ids::UserId>,
    /// Decides which sources and users share a place in tables of fixed size. A number that nobody
    /// outside can know; the same in no two processes.
    pub hash_seed: u64,
    /// Makes invite codes that nobody can guess. The same in all shards and no two processes.
    pub invite_key: (u64, u64),
    /// Markers of fan-outs of this shard's groups that the store holds at start.
    pub open_fan_outs: Vec<(ConvId, ConvSeq)>,
    pub limits: Limits,
}

impl ShardConfig {
    /// One shard of `shards`, with the usual settings and an empty store.
    #[must_use]
    pub fn new(shard: crate::ShardId, shards: u16) -> Self {
        Self {
            shard,
            shards,
            node: String::new(),
            retention_s: 365 * 86_400,
            heartbeat_s: limits::HEARTBEAT_DEFAULT_S,
            heartbeat_min_s: limits::HEARTBEAT_MIN_S,
            heartbeat_max_s: limits::HEARTBEAT_MAX_S,
            connections_hint: 0,
            seq_floor: 0,
            restricted: Vec::new(),
            hash_seed: 0,
            invite_key: (0, 0),
            open_fan_outs: Vec::new(),
            limits: Limits::default(),
        }
    }
}
