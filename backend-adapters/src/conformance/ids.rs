//! Identities and numbers for the checks: distinct within a run, and between runs over one store.

use crate::messages::{Cmd, Entry, EntryMeta, InboxRef};
use bytes::Bytes;
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, GroupId, MsgId, Seq, UserId};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// In January 2027, away from the turn of a month.
static CLOCK: AtomicU64 = AtomicU64::new(1_800_000_000_000_000);
static IDS: AtomicU64 = AtomicU64::new(1);

/// A sequence number, greater than all before.
pub(super) fn tick() -> u64 {
    CLOCK.fetch_add(1, Ordering::Relaxed)
}

/// A number that no other check and no other run uses, with room to both sides.
pub(super) fn fresh() -> u64 {
    static RUN: OnceLock<u64> = OnceLock::new();
    let run = *RUN.get_or_init(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_nanos() as u64)
    });
    let n = IDS.fetch_add(1, Ordering::Relaxed);
    // Spread over the whole range, so that neighbours do not lie together by accident.
    (run.wrapping_add(n)).wrapping_mul(0x9e37_79b9_7f4a_7c15) & !0xf | 1 << 40
}

pub(super) fn user() -> UserId {
    UserId(fresh())
}

pub(super) fn conv() -> ConvId {
    ConvId::Group(GroupId(fresh()))
}

/// The device that sends in the checks.
pub(super) const DEVICE: DeviceId = DeviceId(1);

pub(super) fn entry_at(conv: ConvId, sender: UserId, conv_seq: u64) -> Entry {
    let id = fresh();
    Entry {
        conv,
        conv_seq: ConvSeq(conv_seq),
        sender,
        device: DEVICE,
        msg_id: MsgId(u128::from(id)),
        meta: EntryMeta {
            op: 34,
            kind: id as u8,
            flags: (id >> 8) as u8,
            ttl_s: (id >> 16) as u32,
        },
        body: Bytes::from(id.to_be_bytes().repeat(25)),
    }
}

pub(super) fn entry(conv: ConvId, sender: UserId) -> Entry {
    entry_at(conv, sender, tick())
}

pub(super) fn reference_at(user: UserId, seq: u64, entry: &Entry) -> InboxRef {
    InboxRef {
        user,
        seq: Seq(seq),
        conv: entry.conv,
        conv_seq: entry.conv_seq,
    }
}

pub(super) fn append(entry: &Entry, refs: Vec<InboxRef>) -> Cmd {
    Cmd::Append {
        entry: entry.clone(),
        refs: refs.into(),
        fan_out: false,
    }
}

/// A direct message: one entry and the recipient's reference to it.
#[derive(Clone, Debug)]
pub(super) struct Direct {
    pub(super) entry: Entry,
    pub(super) reference: InboxRef,
}

impl Direct {
    pub(super) fn new(conv: ConvId, from: UserId, to: UserId) -> Self {
        let entry = entry(conv, from);
        let reference = reference_at(to, tick(), &entry);
        Self { entry, reference }
    }

    pub(super) fn cmd(&self) -> Cmd {
        append(&self.entry, vec![self.reference])
    }
}
