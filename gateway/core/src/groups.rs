//! Groups: what their homes know of them, and the way of a message to every member.
//!
//! ```text
//!   sender's home S          group's home G                       members' homes M (every shard)
//!   SEND -> checks, gate --> member? rules? -> Append + marker -> store
//!   SENT <------------------ durable -> one FanOut for each M --> numbers -> AddRefs -> store
//!                            marker goes <-- all done <---------- durable -> shown in order
//! ```
//! The conversation is the log and the record the snapshot. An edit appends its GROUP_EVENT with a
//! marker: with that it is accepted. Then the record is put, and the members' lists of groups; then the
//! event goes to the members. A marker that is found at start is driven again, and an event that is
//! newer than the record is applied first.
//!
//! # Invariants
//! - One edit of a group at a time; what comes meanwhile waits in order. Messages do not wait for each
//!   other, but go to members in the order of the conversation.
//! - Who is removed gets the event that says so, and nothing after it. Who joins gets nothing before.
//! - Groups are cached up to a number of bytes; of those with nothing going on the ones that were not
//!   used for longest go, and are read again when somebody needs them.
//!
//! # Does not
//! Know who is online: that is for the members' homes.

mod ask;
mod cache;
mod edit;
mod error;
mod fan_in;
mod fan_out;
mod group;
mod invite;
mod judge;
mod list;
mod passing;
mod receipts;
mod record;
mod reopen;
mod roll;

#[cfg(feature = "testing")]
pub(crate) use ask::group_id;
pub(crate) use ask::{Asked, For};
pub use ask::{GroupAnswer, GroupAsk, GroupWish};
pub(crate) use cache::Groups;
pub use error::GroupError;
pub(crate) use fan_in::FanIns;
pub(crate) use fan_out::FAN_OUT_ONE_IN;
pub use fan_out::{GroupSend, Spread};
pub(crate) use list::Listings;
pub use passing::Passing;
pub use receipts::GroupReceipt;
pub(crate) use receipts::summary;
pub use roll::Roll;

use crate::{
    home::{ShardId, conv_home},
    mesh::ShardMessage,
    outgoing::Draft,
    shard::{Shard, Turn},
    store::{Marks, RecordCmd, StoreCmd, StoreError, StoreReply},
    stored::Purpose,
};
use cache::Load;
use group::Group;
use portico_wire::ids::{ConvId, ConvSeq, GroupId, UserId};

/// How long after a failed write of the store the next attempt is made.
pub(crate) const RETRY_US: u64 = 500_000;

/// What a group's home is asked to do.
#[derive(Debug)]
pub(crate) enum GroupOp {
    Send(Box<GroupSend>),
    Ask(Box<GroupAsk>),
    /// What may this user read?
    Access {
        user: UserId,
        origin: ShardId,
        token: u64,
    },
    Marks(UserId, Marks),
    Ephemeral(Box<Draft>),
    /// A marker was found at start.
    Reopen(ConvSeq),
}

/// What the answer of the store is for.
#[derive(Debug)]
pub(crate) enum GroupPurpose {
    /// The record of a group that nobody knew.
    Load(GroupId),
    /// The entry of a message or an edit, with its marker.
    Append(u64),
    /// The marker goes.
    End(u64),
    /// One of the records that an edit writes, kept in case it must be written again.
    Write(GroupId, Box<RecordCmd>),
    /// Was this edit accepted before?
    Find(GroupId),
    /// The entry of a marker that was found at start.
    Entry(GroupId),
    /// References at a member's home.
    FanIn {
        place: u64,
        origin: ShardId,
        token: u64,
    },
    /// A page of a user's groups.
    List(u64),
    /// How far the members of a group have come.
    Marks(GroupId),
}

impl Shard {
    pub(crate) fn group_home(&self, group: GroupId) -> ShardId {
        conv_home(ConvId::Group(group), self.config.shards)
    }

    /// Everything about a group enters by this door, at its home.
    pub(crate) fn group_op(&mut self, id: GroupId, op: GroupOp, cx: &mut Turn<'_>) {
        match self
            .groups
            .enqueue(id, op, self.config.limits.group_ops_max)
        {
            Load::Ready(op) => self.run_group_op(id, op, cx),
            Load::Waits => {}
            Load::Cold => self.load_group(id, cx),
            Load::Busy(op) => self.refuse_group_op(op, GroupError::Busy, cx),
        }
    }

    pub(crate) fn load_group(&mut self, id: GroupId, cx: &mut Turn<'_>) {
        let cmd = RecordCmd::Get {
            table: record::GROUPS,
            key: record::group_key(id),
        };
        let purpose = Purpose::Group(GroupPurpose::Load(id));
        self.submit(purpose, StoreCmd::Record(cmd), cx);
    }

    fn run_group_op(&mut self, id: GroupId, op: GroupOp, cx: &mut Turn<'_>) {
        match op {
            GroupOp::Send(send) => self.accept_group_send(id, *send, cx),
            GroupOp::Ask(ask) => self.answer_group_ask(id, *ask, cx),
            GroupOp::Access {
                user,
                origin,
                token,
            } => {
                let group = self.groups.get(id);
                let range = group.and_then(|group| group.readable(user));
                let admin = group.is_some_and(|group| group.is_admin(user));
                let message = ShardMessage::GroupAccessIs {
                    token,
                    range: range.ok_or(GroupError::NotMember),
                    admin,
                };
                self.post(origin, message, cx);
            }
            GroupOp::Marks(user, marks) => self.note_group_marks(id, user, marks, cx),
            GroupOp::Ephemeral(draft) => self.spread_ephemeral(id, *draft, cx),
            GroupOp::Reopen(conv_seq) => self.reopen_fan_out(id, conv_seq, cx),
        }
    }

    fn refuse_group_op(&mut self, op: GroupOp, why: GroupError, cx: &mut Turn<'_>) {
        match op {
            GroupOp::Send(send) => self.answer_group_send(send.origin, send.token, Err(why), cx),
            GroupOp::Ask(ask) => self.give_answer(ask.origin, ask.token, Err(why), cx),
            GroupOp::Access { origin, token, .. } => {
                let message = ShardMessage::GroupAccessIs {
                    token,
                    range: Err(why),
                    admin: false,
                };
                self.post(origin, message, cx);
            }
            // A later mark makes up for it; an ephemeral message was never promised; and a marker is found
            // again at the next start.
            GroupOp::Marks(..) | GroupOp::Ephemeral(_) | GroupOp::Reopen(_) => {}
        }
    }

    fn on_group_loaded(
        &mut self,
        id: GroupId,
        result: Result<StoreReply, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let shards = self.config.shards;
        let group = match result {
            Ok(StoreReply::Record(None)) => Ok(Group::none(shards)),
            Ok(StoreReply::Record(Some(found))) => {
                record::read(&found.value, shards).ok_or(StoreError::Invalid)
            }
            Ok(_) => Err(StoreError::Invalid),
            Err(error) => Err(error),
        };
        match group {
            Ok(group) => {
                self.groups.put(id, group);
                self.run_waiting(id, cx);
            }
            Err(error) => {
                self.groups.reopen_us = cx.now.mono_us + RETRY_US;
                for op in self.groups.give_up(id) {
                    self.refuse_group_op(op, GroupError::Store(error), cx);
                }
            }
        }
    }

    /// Lets what waits for this group go on, up to the next edit.
    fn run_waiting(&mut self, id: GroupId, cx: &mut Turn<'_>) {
        while let Some(op) = self.groups.next_waiting(id) {
            self.run_group_op(id, op, cx);
        }
        self.groups.rest(id);
    }

    pub(crate) fn on_group_stored(
        &mut self,
        purpose: GroupPurpose,
        result: Result<StoreReply, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        match purpose {
            GroupPurpose::Load(id) => self.on_group_loaded(id, result, cx),
            GroupPurpose::Append(token) => self.on_group_appended(token, result.map(|_| ()), cx),
            GroupPurpose::End(token) => self.on_fan_out_ended(token, result.map(|_| ()), cx),
            GroupPurpose::Write(id, cmd) => {
                self.on_group_written(id, *cmd, result.map(|_| ()), cx);
            }
            GroupPurpose::Find(id) => self.on_edit_found(id, result, cx),
            GroupPurpose::Entry(id) => self.on_reopened_entry(id, result, cx),
            GroupPurpose::FanIn {
                place,
                origin,
                token,
            } => self.on_fan_in_stored(place, origin, token, result.map(|_| ()), cx),
            GroupPurpose::List(token) => self.on_listed(token, result, cx),
            GroupPurpose::Marks(id) => self.on_group_marks_read(id, result, cx),
        }
    }

    pub(crate) fn on_group_message(&mut self, message: GroupMessage, cx: &mut Turn<'_>) {
        match message {
            GroupMessage::Send(send) => match send.draft.conv {
                ConvId::Group(id) => self.group_op(id, GroupOp::Send(send), cx),
                ConvId::Direct(..) | ConvId::Status(_) => {}
            },
            GroupMessage::Sent { token, result } => self.on_group_sent(token, result, cx),
            GroupMessage::Ask(ask) => self.group_op(ask.group, GroupOp::Ask(ask), cx),
            GroupMessage::Answer { token, answer } => self.on_group_answer(token, *answer, cx),
            GroupMessage::FanOut {
                origin,
                token,
                spread,
            } => self.on_fan_out(origin, token, spread, cx),
            GroupMessage::FanOutDone { token, stored } => self.on_fan_out_done(token, stored, cx),
            GroupMessage::Passing(passing) => self.show_passing(&passing, cx),
            GroupMessage::Marks(marks) => {
                for (id, user, marks) in marks {
                    self.group_op(id, GroupOp::Marks(user, marks), cx);
                }
            }
            GroupMessage::Receipt(receipt) => self.show_group_receipt(&receipt, cx),
        }
    }

    /// Work of groups that is due.
    pub(crate) fn groups_on_time(&mut self, cx: &mut Turn<'_>) {
        self.retry_groups(cx);
        self.resume_fan_ins(cx);
        self.reopen_some(cx);
        self.tell_group_receipts(cx);
        self.expire_asks(cx);
    }

    /// When the next of it is due.
    pub(crate) fn next_group_us(&self) -> Option<u64> {
        let times = [
            self.groups.next_us(),
            self.fan_ins.next_us(),
            self.asked.next_us(),
        ];
        times.into_iter().flatten().min()
    }
}

/// What shards tell each other about groups.
#[derive(Debug, PartialEq, Eq)]
pub enum GroupMessage {
    /// To the group's home: make it durable, send it to the members, answer with `Sent`.
    Send(Box<GroupSend>),
    /// To the sender's home: the fate of `Send`.
    Sent {
        token: u64,
        result: Result<ConvSeq, GroupError>,
    },
    /// To the group's home: an operation of a client on it.
    Ask(Box<GroupAsk>),
    /// To the home of who asked.
    Answer {
        token: u64,
        answer: Box<Result<GroupAnswer, GroupError>>,
    },
    /// To the home of members: number it, store the references, show it, answer with `FanOutDone`.
    FanOut {
        origin: ShardId,
        token: u64,
        spread: std::sync::Arc<Spread>,
    },
    FanOutDone {
        token: u64,
        /// Or it never will be, and the marker stays.
        stored: bool,
    },
    /// To the home of members: show it to whoever is there, store nothing.
    Passing(std::sync::Arc<Passing>),
    /// To the group's home: how far some members have come.
    Marks(Vec<(GroupId, UserId, Marks)>),
    /// To the home of members: how far all have come.
    Receipt(Box<GroupReceipt>),
}

impl GroupMessage {
    /// What it holds beside its own size.
    pub(crate) fn body_bytes(&self) -> usize {
        match self {
            Self::Send(send) => send.draft.body.len(),
            Self::Ask(ask) => ask.wish.body_bytes(),
            Self::Answer { answer, .. } => answer.as_ref().as_ref().map_or(0, GroupAnswer::bytes),
            // They share one body, and the group's home counts it as on its way.
            Self::FanOut { .. } | Self::Passing(_) => 0,
            Self::Marks(marks) => marks.len() * size_of::<(GroupId, UserId, Marks)>(),
            Self::Sent { .. } | Self::FanOutDone { .. } | Self::Receipt(_) => 0,
        }
    }
}
