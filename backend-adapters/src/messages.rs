//! The family of conversations, inboxes, cursors and watermarks.
//!
//! A conversation is a log of entries, an inbox is a log of references to entries. A direct
//! message is one [`Cmd::Append`] with one reference. A group message is an `Append` with
//! `fan_out` set, then [`Cmd::AddRefs`] for the members, then [`Cmd::EndFanOut`]; a fan-out found
//! open at start is driven again.
//!
//! # Invariants
//! * Sequence numbers come with the command; a store assigns none.
//! * Every command may be submitted again as it is, without a second effect: entries and
//!   references are named by their numbers, cursors and watermarks merge by maximum, a marker is
//!   there or not.
//! * A reference that failed is submitted again under a *fresh* inbox number: later references of
//!   that inbox may be visible already, and a cursor past them. At worst an inbox names a message
//!   twice, and clients drop what they have.
//! * An inbox is read in the order of its numbers from a cursor; nothing returns it whole.

use crate::{Error, Family};
use bytes::Bytes;
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, MsgId, Seq, UserId};
use smallvec::SmallVec;
use std::fmt;

/// The greatest sequence number a store accepts: the last microsecond of the year 9999. Keeps the
/// names of partitions at four digits, and a broken clock out of the ceiling.
pub const SEQ_MAX: u64 = 253_402_300_799_999_999;
/// References, cursors or marks in one command.
pub const ROWS_PER_CMD_MAX: usize = 4_096;
/// Items in one page. A greater `limit` is lowered to it.
pub const PAGE_ITEMS_MAX: u32 = 4_096;
/// Bytes of bodies in one page. A greater `max_bytes` is lowered to it.
pub const PAGE_BYTES_MAX: u32 = 8 << 20;

/// A message in its conversation, named by (`conv`, `conv_seq`).
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    pub conv: ConvId,
    pub conv_seq: ConvSeq,
    pub sender: UserId,
    pub device: DeviceId,
    pub msg_id: MsgId,
    pub meta: EntryMeta,
    pub body: Bytes,
}

/// Bodies never reach a log.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("conv", &self.conv)
            .field("conv_seq", &self.conv_seq)
            .field("sender", &self.sender)
            .field("device", &self.device)
            .field("msg_id", &self.msg_id)
            .field("meta", &self.meta)
            .field("body_len", &self.body.len())
            .finish()
    }
}

/// How an entry is delivered. A store keeps it and does not look inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EntryMeta {
    /// The wire operation under which the entry is delivered.
    pub op: u8,
    pub kind: u8,
    pub flags: u8,
    /// 0: for as long as the store keeps it.
    pub ttl_s: u32,
}

/// A place in an inbox, named by (`user`, `seq`), that names an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InboxRef {
    pub user: UserId,
    pub seq: Seq,
    pub conv: ConvId,
    pub conv_seq: ConvSeq,
}

/// References of one entry. A direct message has one, and needs no memory for a list.
pub type Refs = SmallVec<[InboxRef; 1]>;

/// How far a user has received and read a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark {
    pub conv: ConvId,
    pub user: UserId,
    /// 0 where the command does not speak of it.
    pub delivered: ConvSeq,
    pub read: ConvSeq,
    /// Unix second at which these were reached.
    pub at_s: u32,
}

/// The marks of one user in a conversation, each with the second at which it was first reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Watermark {
    pub user: UserId,
    pub delivered: ConvSeq,
    pub delivered_at_s: u32,
    pub read: ConvSeq,
    pub read_at_s: u32,
}

impl Watermark {
    /// A user who has neither received nor read anything.
    #[must_use]
    pub const fn none(user: UserId) -> Self {
        Self {
            user,
            delivered: ConvSeq(0),
            delivered_at_s: 0,
            read: ConvSeq(0),
            read_at_s: 0,
        }
    }

    /// Merges by maximum; a time follows its mark, and of two times for one mark the earlier
    /// stays. So any order and any repetition of the same marks gives the same result.
    pub fn merge(&mut self, mark: &Mark) {
        self.join(&Self {
            user: self.user,
            delivered: mark.delivered,
            delivered_at_s: mark.at_s,
            read: mark.read,
            read_at_s: mark.at_s,
        });
    }

    /// Merges what was merged elsewhere, as if all of its marks had come here.
    pub fn join(&mut self, other: &Self) {
        let reached = |at: &mut ConvSeq, at_s: &mut u32, new: ConvSeq, new_s: u32| {
            if new > *at {
                (*at, *at_s) = (new, new_s);
            } else if new == *at && new.0 != 0 {
                *at_s = new_s.min(*at_s);
            }
        };
        reached(
            &mut self.delivered,
            &mut self.delivered_at_s,
            other.delivered,
            other.delivered_at_s,
        );
        reached(
            &mut self.read,
            &mut self.read_at_s,
            other.read,
            other.read_at_s,
        );
    }
}

#[derive(Clone, Debug)]
pub enum Cmd {
    /// Atomic: the entry, the references, and the marker of an open fan-out if `fan_out`.
    Append {
        entry: Entry,
        refs: Refs,
        fan_out: bool,
    },
    /// Each reference by itself. Guarded by the marker.
    AddRefs { refs: Vec<InboxRef> },
    /// The marker goes. Ending what is not open succeeds.
    EndFanOut { conv: ConvId, conv_seq: ConvSeq },
    /// Open fan-outs after `after`, in a fixed order that the adapter chooses. An empty page is
    /// the end. Asked at start, when nothing else is in flight.
    FanOuts {
        after: Option<(ConvId, ConvSeq)>,
        limit: u32,
    },
    /// References of an inbox after a cursor, oldest first, with the entries they name; a
    /// reference whose entry is gone is passed over. At most `limit` items, and no more bodies
    /// than `max_bytes`, but always one item if there is one.
    Replay {
        user: UserId,
        after: Seq,
        limit: u32,
        max_bytes: u32,
    },
    /// Entries of a conversation after `after` and before `before`, both exclusive: newest first, or
    /// oldest first if `forward`. Bounded like a replay.
    History {
        conv: ConvId,
        after: ConvSeq,
        before: ConvSeq,
        forward: bool,
        limit: u32,
        max_bytes: u32,
    },
    /// References of an inbox before `before`, newest first, without their entries, of which some may
    /// be gone. At most `limit`.
    References {
        user: UserId,
        before: Seq,
        limit: u32,
    },
    /// How many entries of a conversation after `after` and before `before`, both exclusive, are of
    /// this operation and kind, have a body and come from others than `not_by`: counted up to
    /// `limit`, and among the newest [`PAGE_ITEMS_MAX`] of them.
    Count {
        conv: ConvId,
        after: ConvSeq,
        before: ConvSeq,
        not_by: UserId,
        op: u8,
        kind: u8,
        limit: u32,
    },
    /// The body of an entry is overwritten with nothing; all else of it stays. An entry that is not
    /// there is not made: the command succeeds, as its purpose is met. An [`Cmd::Append`] of the same
    /// entry must not be repeated afterwards, or the body is back; whoever redacts has read the entry,
    /// so its append has been answered.
    Redact { conv: ConvId, conv_seq: ConvSeq },
    /// Which of these messages of a device were accepted at or after `since`? Asked only for frames
    /// that their sender marks as repeated, so a scan of the conversation will do and no index is
    /// kept. The scan is as long as the conversation since then, however many are looked for: the
    /// caller bounds how far back a client may ask, and asks for many at once.
    Find {
        conv: ConvId,
        since: ConvSeq,
        sender: UserId,
        device: DeviceId,
        msg_ids: Vec<MsgId>,
    },
    /// Positions of devices, merged by maximum. Setting an unknown device, to 0 too, registers it.
    SetCursors {
        cursors: Vec<(UserId, DeviceId, Seq)>,
    },
    /// The devices of a user, by number, with their positions.
    Cursors { user: UserId },
    /// Merged as [`Watermark::merge`] says.
    SetWatermarks { marks: Vec<Mark> },
    /// Of all users of a conversation who have any, by user.
    Watermarks { conv: ConvId },
    /// Forget entries and references before `before`. Whole partitions go: some of what is older
    /// may stay, nothing newer may go.
    Expire { before: Seq },
    /// A number strictly above every `seq` and `conv_seq` of entries, references and cursors that
    /// this store ever made durable, expired ones included. A gateway starts its generators above
    /// it, so that a clock that stepped back issues no number twice. Cursors count because a new
    /// device starts at the present, at a number that no message may carry yet.
    Ceiling,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To every write.
    Done,
    FanOuts(Vec<(ConvId, ConvSeq)>),
    /// To a replay. `more` if the page was cut; the next one may turn out empty.
    Page {
        items: Vec<Item>,
        more: bool,
    },
    /// To a history. `more` as above.
    Entries {
        entries: Vec<Entry>,
        more: bool,
    },
    /// To `References`. `more` as above.
    References {
        refs: Vec<InboxRef>,
        more: bool,
    },
    Count(u32),
    /// The places of those that were accepted, in the order of the conversation.
    Found(Vec<(MsgId, ConvSeq)>),
    Cursors(Vec<(DeviceId, Seq)>),
    Watermarks(Vec<Watermark>),
    Ceiling(Seq),
}

/// One step of a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub seq: Seq,
    pub entry: Entry,
}

/// The family.
#[derive(Clone, Copy, Debug)]
pub struct Messages;

impl Family for Messages {
    type Cmd = Cmd;
    type Reply = Reply;

    fn is_read(cmd: &Cmd) -> bool {
        match cmd {
            Cmd::FanOuts { .. }
            | Cmd::Replay { .. }
            | Cmd::History { .. }
            | Cmd::References { .. }
            | Cmd::Count { .. }
            | Cmd::Find { .. }
            | Cmd::Cursors { .. }
            | Cmd::Watermarks { .. }
            | Cmd::Ceiling => true,
            Cmd::Append { .. }
            | Cmd::AddRefs { .. }
            | Cmd::EndFanOut { .. }
            | Cmd::Redact { .. }
            | Cmd::SetCursors { .. }
            | Cmd::SetWatermarks { .. }
            | Cmd::Expire { .. } => false,
        }
    }

    /// A conversation may have grown to any length, and anybody may ask for a message that is not
    /// in it.
    fn is_scan(cmd: &Cmd) -> bool {
        matches!(cmd, Cmd::Find { .. })
    }

    /// A direct message writes two rows and is worth one.
    fn weight(cmd: &Cmd) -> usize {
        let rows = match cmd {
            Cmd::Append { refs, fan_out, .. } => 1 + refs.len() + usize::from(*fan_out),
            Cmd::AddRefs { refs } => refs.len(),
            Cmd::SetCursors { cursors } => cursors.len(),
            Cmd::SetWatermarks { marks } => marks.len(),
            _ => 1,
        };
        rows.div_ceil(2).max(1)
    }

    fn bytes(cmd: &Cmd) -> usize {
        let beside = match cmd {
            Cmd::Append { entry, refs, .. } => entry.body.len() + size_of_val(refs.as_slice()),
            Cmd::AddRefs { refs } => size_of_val(refs.as_slice()),
            Cmd::SetCursors { cursors } => size_of_val(cursors.as_slice()),
            Cmd::SetWatermarks { marks } => size_of_val(marks.as_slice()),
            Cmd::Find { msg_ids, .. } => size_of_val(msg_ids.as_slice()),
            _ => 0,
        };
        size_of::<crate::Request<Self>>() + beside
    }
}

impl Cmd {
    /// What every adapter checks before it touches the store, so that one bad command fails by
    /// itself and all adapters refuse the same.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::Kind::Invalid), with the bound that is broken.
    pub fn check(&self, value_bytes_max: usize) -> Result<(), Error> {
        match self {
            Self::Append { entry, refs, .. } => {
                if entry.body.len() > value_bytes_max {
                    return Err(Error::invalid("the body is larger than the store takes"));
                }
                check_rows(refs.len())?;
                check_seq(entry.conv_seq.0)?;
                check_refs(refs)
            }
            Self::AddRefs { refs } => {
                check_rows(refs.len())?;
                check_refs(refs)
            }
            Self::EndFanOut { conv_seq, .. } | Self::Redact { conv_seq, .. } => {
                check_seq(conv_seq.0)
            }
            Self::SetCursors { cursors } => {
                check_rows(cursors.len())?;
                cursors.iter().try_for_each(|(_, _, seq)| check_seq(seq.0))
            }
            Self::SetWatermarks { marks } => {
                check_rows(marks.len())?;
                marks
                    .iter()
                    .try_for_each(|mark| check_seq(mark.delivered.0.max(mark.read.0)))
            }
            Self::FanOuts { limit, .. }
            | Self::Replay { limit, .. }
            | Self::History { limit, .. }
            | Self::References { limit, .. }
            | Self::Count { limit, .. } => check_limit(*limit),
            Self::Find { msg_ids, .. } => check_rows(msg_ids.len()),
            Self::Cursors { .. }
            | Self::Watermarks { .. }
            | Self::Expire { .. }
            | Self::Ceiling => Ok(()),
        }
    }

    /// The greatest number that counts for the ceiling; 0 if the command writes none.
    #[must_use]
    pub fn greatest_seq(&self) -> u64 {
        let of_refs = |refs: &[InboxRef]| {
            let greatest = refs.iter().map(|r| r.seq.0.max(r.conv_seq.0)).max();
            greatest.unwrap_or(0)
        };
        match self {
            Self::Append { entry, refs, .. } => entry.conv_seq.0.max(of_refs(refs)),
            Self::AddRefs { refs } => of_refs(refs),
            Self::SetCursors { cursors } => {
                let greatest = cursors.iter().map(|(_, _, seq)| seq.0).max();
                greatest.unwrap_or(0)
            }
            _ => 0,
        }
    }
}

fn check_refs(refs: &[InboxRef]) -> Result<(), Error> {
    refs.iter()
        .try_for_each(|r| check_seq(r.seq.0.max(r.conv_seq.0)))
}

fn check_rows(rows: usize) -> Result<(), Error> {
    if rows > ROWS_PER_CMD_MAX {
        return Err(Error::invalid("more rows than one command may hold"));
    }
    Ok(())
}

fn check_seq(seq: u64) -> Result<(), Error> {
    if seq > SEQ_MAX {
        return Err(Error::invalid("a sequence number past the year 9999"));
    }
    Ok(())
}

/// A page of nothing would never end.
pub(crate) fn check_limit(limit: u32) -> Result<(), Error> {
    if limit == 0 {
        return Err(Error::invalid("a page of no items"));
    }
    Ok(())
}

/// Decides where a page of a replay or a history ends. For adapters, so that all agree.
#[derive(Debug)]
pub struct PageBound {
    items_left: u32,
    bytes_left: u64,
    empty: bool,
}

impl PageBound {
    /// The bounds of a command, lowered to those of the family.
    #[must_use]
    pub fn new(limit: u32, max_bytes: u32) -> Self {
        Self {
            items_left: limit.min(PAGE_ITEMS_MAX),
            bytes_left: u64::from(max_bytes.min(PAGE_BYTES_MAX)),
            empty: true,
        }
    }

    /// Is there no room for another item, whatever its size?
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.items_left == 0
    }

    /// Makes room for an item, or says that the page ends before it.
    #[must_use]
    pub const fn admit(&mut self, body_len: usize) -> bool {
        let bytes = body_len as u64;
        if self.items_left == 0 || (!self.empty && bytes > self.bytes_left) {
            return false;
        }
        self.items_left -= 1;
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
        self.empty = false;
        true
    }
}

/// What a search looks for and has found so far. For adapters that walk a conversation.
#[derive(Debug)]
pub struct Wanted<'a> {
    sender: UserId,
    device: DeviceId,
    msg_ids: &'a [MsgId],
    found: Vec<(MsgId, ConvSeq)>,
}

impl<'a> Wanted<'a> {
    #[must_use]
    pub const fn new(sender: UserId, device: DeviceId, msg_ids: &'a [MsgId]) -> Self {
        Self {
            sender,
            device,
            msg_ids,
            found: Vec::new(),
        }
    }

    /// Looks at the next entry. Has everything been found, so that the walk may end?
    #[must_use]
    pub fn is_all_after(
        &mut self,
        sender: UserId,
        device: DeviceId,
        msg_id: MsgId,
        at: ConvSeq,
    ) -> bool {
        if (sender, device) == (self.sender, self.device) && self.msg_ids.contains(&msg_id) {
            self.found.push((msg_id, at));
        }
        self.found.len() >= self.msg_ids.len()
    }

    #[must_use]
    pub fn found(self) -> Reply {
        Reply::Found(self.found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portico_wire::ids::GroupId;

    fn mark(delivered: u64, read: u64, at_s: u32) -> Mark {
        Mark {
            conv: ConvId::Group(GroupId(1)),
            user: UserId(1),
            delivered: ConvSeq(delivered),
            read: ConvSeq(read),
            at_s,
        }
    }

    #[test]
    fn marks_merge_to_the_same_in_any_order() {
        let marks = [
            mark(5, 0, 10),
            mark(9, 5, 20),
            mark(9, 7, 15),
            mark(3, 7, 30),
        ];
        let merge = |order: &[usize]| {
            let mut water = Watermark::none(UserId(1));
            for i in order {
                water.merge(&marks[*i]);
                water.merge(&marks[*i]);
            }
            water
        };
        let expected = Watermark {
            user: UserId(1),
            delivered: ConvSeq(9),
            delivered_at_s: 15,
            read: ConvSeq(7),
            read_at_s: 15,
        };
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]] {
            assert_eq!(merge(&order), expected, "order {order:?}");
            // In two heaps, each merged by itself.
            let mut joined = merge(&order[..2]);
            joined.join(&merge(&order[2..]));
            assert_eq!(joined, expected, "order {order:?} in two heaps");
        }
    }

    #[test]
    fn a_page_has_one_item_at_least_and_keeps_its_bounds() {
        let mut page = PageBound::new(3, 100);
        assert!(page.admit(500), "the first item always fits");
        assert!(!page.admit(1), "bytes are used up");
        let mut page = PageBound::new(3, 100);
        assert!(page.admit(60) && page.admit(40) && page.admit(0));
        assert!(page.is_full() && !page.admit(0), "three items are three");
    }

    #[test]
    fn a_direct_message_weighs_one() {
        let reference = InboxRef {
            user: UserId(1),
            seq: Seq(1),
            conv: ConvId::Group(GroupId(1)),
            conv_seq: ConvSeq(1),
        };
        let weigh = |refs| Messages::weight(&Cmd::AddRefs { refs });
        assert_eq!(weigh(vec![]), 1);
        assert_eq!(weigh(vec![reference]), 1);
        assert_eq!(weigh(vec![reference; 1_024]), 512);
    }
}
