//! What crosses shards: plain values, a closed list.

use crate::{
    direct::DirectSend, groups::{GroupError, GroupMessage}, home::ShardId, outgoing::Draft, receipt::Receipt,
    store::StoreError,
};
use portico_wire::ids::{ConvSeq, GroupId, UserId};

/// A message from one shard to another. A shard's own traffic enters by the same door.
#[derive(Debug, PartialEq, Eq)]
pub enum ShardMessage {
    /// To the recipient's home: make it durable, show it, answer with `DirectDone`.
    Direct(Box<DirectSend>),
    /// To the sender's home: the fate of `Direct`.
    DirectDone {
        /// `DirectSend::token`.
        token: u64,
        result: Result<ConvSeq, StoreError>,
    },
    /// To the recipient's home: show it to whoever is there, store nothing.
    Ephemeral(Box<Draft>),
    /// To the home of `to`: somebody has reached a point in a conversation.
    Receipt {
        to: UserId,
        receipt: Receipt,
    },
    Group(GroupMessage),
    /// To the group's home: show it to members who are there, store nothing.
    GroupEphemeral(Box<Draft>),
    /// To a group's home: what of its history may this user see? Answered with `GroupAccessIs`.
    GroupAccess {
        group: GroupId,
        user: UserId,
        origin: ShardId,
        /// Comes back in the answer.
        token: u64,
    },
    /// To `origin`: the first and the last entry that a member may see; or why they may see
    /// nothing.
    GroupAccessIs {
        token: u64,
        range: Result<(ConvSeq, ConvSeq), GroupError>,
        /// May take back what others said.
        admin: bool,
    },
}

impl ShardMessage {
    /// Of what it points to, a body aside.
    pub const BOXED_BYTES: usize = size_of::<DirectSend>();

    /// What it holds beside its own size, which is small: a body.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        match self {
            Self::Direct(send) => send.draft.body.len(),
            Self::Ephemeral(draft) | Self::GroupEphemeral(draft) => draft.body.len(),
            Self::Group(message) => message.body_bytes(),
            Self::DirectDone { .. } | Self::Receipt { .. } => 0,
            Self::GroupAccess { .. } | Self::GroupAccessIs { .. } => 0,
        }
    }
}
