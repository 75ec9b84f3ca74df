//! The store in the core's own words. The gateway maps them to its adapter.

use bytes::Bytes;
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, MsgId, Seq, UserId};

/// Names a request until its answer. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoreToken(pub u64);

/// One request. All requests of a shard go in one lane: what succeeds becomes visible in the order
/// of submission.
#[derive(Debug, PartialEq, Eq)]
pub struct StoreRequest {
    pub token: StoreToken,
    /// The shard gives up waiting at this time of its monotonic clock; work not begun by then may
    /// be answered as unavailable.
    pub deadline_us: u64,
    pub cmd: StoreCmd,
}

/// A message in its conversation. Identified by (`conv`, `conv_seq`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub conv: ConvId,
    pub conv_seq: ConvSeq,
    pub sender: UserId,
    pub device: DeviceId,
    pub msg_id: MsgId,
    /// The wire operation under which it is delivered.
    pub op: u8,
    /// Kind of the wire's route header.
    pub kind: u8,
    /// Those of the wire's flags that are kept: SILENT.
    pub flags: u8,
    pub ttl_s: u32,
    pub body: Bytes,
}

/// A pointer from an inbox to an entry. Identified by (`user`, `seq`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboxRef {
    pub user: UserId,
    pub seq: Seq,
    pub conv: ConvId,
    pub conv_seq: ConvSeq,
}

/// Watermarks of a user in a conversation; both only grow. The seconds say when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    pub delivered: ConvSeq,
    pub delivered_at_s: u32,
    pub read: ConvSeq,
    pub read_at_s: u32,
}

/// A name space of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table(pub u16);

/// A small value under a key. Its version is chosen by who writes it, and never used twice for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub key: Bytes,
    pub value: Bytes,
    pub version: u64,
}

/// The state in which a record must be for a command to take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Any,
    Absent,
    Version(u64),
}

/// What can be asked about records. They are no part of the lane: a command that must follow
/// another, or a message, waits for its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordCmd {
    Get {
        table: Table,
        key: Bytes,
    },
    /// Succeeds without effect if the record has `version` already: it may be a repetition.
    Put {
        table: Table,
        key: Bytes,
        value: Bytes,
        expect: Expect,
        version: u64,
    },
    /// Deleting what is absent succeeds.
    Delete {
        table: Table,
        key: Bytes,
        expect: Expect,
    },
    /// Records whose key starts with `prefix` and is greater than `after`, by key; none is the end.
    Scan {
        table: Table,
        prefix: Bytes,
        after: Bytes,
        limit: u32,
    },
}

impl RecordCmd {
    #[must_use]
    pub const fn is_read(&self) -> bool {
        matches!(self, Self::Get { .. } | Self::Scan { .. })
    }

    fn weight(&self) -> usize {
        match self {
            Self::Get { key, .. } | Self::Delete { key, .. } => key.len(),
            Self::Put { key, value, .. } => key.len() + value.len(),
            Self::Scan { prefix, after, .. } => prefix.len() + after.len(),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum StoreCmd {
    /// Atomic: the entry and the reference.
    Append {
        entry: Entry,
        to: InboxRef,
    },
    /// Atomic: the entry, and a marker that it is not yet with all who get it.
    AppendFanOut {
        entry: Entry,
    },
    /// The marker goes.
    EndFanOut {
        conv: ConvId,
        conv_seq: ConvSeq,
    },
    /// References to entries that exist.
    AddRefs {
        refs: Vec<InboxRef>,
    },
    /// Which of these messages were accepted at or after `since`?
    Find {
        conv: ConvId,
        since: ConvSeq,
        sender: UserId,
        device: DeviceId,
        msg_ids: Vec<MsgId>,
    },
    /// The inbox after `after`, oldest first, at most `limit` entries; cut early once the bodies
    /// exceed `bytes_max`, but never before one entry.
    Replay {
        user: UserId,
        after: Seq,
        limit: u32,
        bytes_max: u32,
    },
    /// Every device of the user that was ever here, with its cursor.
    Cursors {
        user: UserId,
    },
    /// Merged by maximum; a cursor of 0 makes the device known.
    SetCursors {
        cursors: Vec<(UserId, DeviceId, Seq)>,
    },
    /// Merged by maximum.
    SetMarks {
        marks: Vec<(ConvId, UserId, Marks)>,
    },
    /// Of all users in the conversation.
    Marks {
        conv: ConvId,
    },
    Record(RecordCmd),
    /// Entries of a conversation between two numbers, both exclusive: newest first, or oldest first if
    /// `forward`. Bounded like a replay.
    History {
        conv: ConvId,
        after: ConvSeq,
        before: ConvSeq,
        forward: bool,
        limit: u32,
        bytes_max: u32,
    },
    /// The end of the inbox before `before`, newest first, without the entries.
    References {
        user: UserId,
        before: Seq,
        limit: u32,
    },
    /// How many entries of this operation and kind between two numbers, both exclusive, have a body
    /// and come from others than `not_by`; counted up to `limit`.
    Count {
        conv: ConvId,
        after: ConvSeq,
        before: ConvSeq,
        not_by: UserId,
        op: u8,
        kind: u8,
        limit: u32,
    },
    /// The body of an entry goes; one that is not there is not made.
    Redact {
        conv: ConvId,
        conv_seq: ConvSeq,
    },
}

impl StoreCmd {
    /// About how much memory the request holds while it waits.
    #[must_use]
    pub fn weight(&self) -> usize {
        const FIXED: usize = 160;
        FIXED
            + match self {
                Self::Append { entry, .. } | Self::AppendFanOut { entry } => entry.body.len(),
                Self::EndFanOut { .. } => 0,
                Self::AddRefs { refs } => refs.len() * size_of::<InboxRef>(),
                Self::SetCursors { cursors } => cursors.len() * 24,
                Self::SetMarks { marks } => marks.len() * 64,
                Self::Find { msg_ids, .. } => msg_ids.len() * size_of::<MsgId>(),
                Self::Replay { .. } | Self::Cursors { .. } => 0,
                Self::Marks { .. } => 0,
                Self::History { .. } | Self::References { .. } => 0,
                Self::Count { .. } | Self::Redact { .. } => 0,
                Self::Record(cmd) => cmd.weight(),
            }
    }
}

/// One step of a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub seq: Seq,
    pub entry: Entry,
}

#[derive(Debug, PartialEq, Eq)]
pub enum StoreReply {
    Done,
    Found(Vec<(MsgId, ConvSeq)>),
    /// A page that says `more` holds at least one entry.
    Page {
        items: Vec<Item>,
        more: bool,
    },
    Cursors(Vec<(DeviceId, Seq)>),
    Marks(Vec<(UserId, Marks)>),
    /// To [`RecordCmd::Get`].
    Record(Option<Record>),
    /// To [`RecordCmd::Scan`].
    Records(Vec<Record>),
    /// To a history. A page that says `more` holds at least one entry.
    Entries {
        entries: Vec<Entry>,
        more: bool,
    },
    References {
        refs: Vec<InboxRef>,
        more: bool,
    },
    Count(u32),
}

/// Why a request failed, by what is known about its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// Not applied: too much in flight.
    Overloaded { retry_after_ms: u32 },
    /// Not applied: the store cannot be reached.
    Unavailable,
    /// Perhaps applied.
    Unknown,
    /// Not applied: the record is in another state than was expected.
    Conflict,
    /// Not applied, and never will be.
    Invalid,
    /// The store has given up. Perhaps applied.
    Fatal,
}
