//! What crosses shards: plain values, a closed list.

use crate::{
    direct::DirectSend,
    groups::{GroupError, GroupMessage},
    home::ShardId,
    outgoing::Draft,
    presence::Watch,
    receipt::Receipt,
    signal::Signal,
    store::StoreError,
};
use portico_wire::{
    ids::{ConvId, ConvSeq, GroupId, UserId},
    message::people::PresenceItem,
};

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
    /// To the sender's home: the recipient has blocked the sender, and nothing was stored.
    DirectBlocked {
        /// `DirectSend::token`.
        token: u64,
    },
    /// To the home of `to`, which may have blocked the sender.
    Signal {
        to: UserId,
        signal: Signal,
    },
    /// To the home of those who are watched.
    Watch(Box<Watch>),
    /// To the watcher's home: how those are seen whom `Watch` added.
    Watched {
        token: u64,
        items: Vec<PresenceItem>,
    },
    /// To the home of the watchers: how somebody is seen now.
    PresenceChanges(Vec<(UserId, PresenceItem)>),
    /// To the home of `user`: does it hide what it has read in this conversation?
    AskHidesRead {
        from: ShardId,
        query: u64,
        conv: ConvId,
        user: UserId,
    },
    /// To the asker's home.
    HidesRead {
        query: u64,
        conv: ConvId,
        hides: Result<bool, StoreError>,
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
            Self::Watch(watch) => (watch.add.len() + watch.remove.len()) * size_of::<UserId>(),
            Self::Watched { items, .. } => items.len() * size_of::<PresenceItem>(),
            Self::PresenceChanges(items) => items.len() * size_of::<(UserId, PresenceItem)>(),
            Self::DirectDone { .. }
            | Self::Receipt { .. }
            | Self::GroupAccess { .. }
            | Self::GroupAccessIs { .. }
            | Self::DirectBlocked { .. }
            | Self::Signal { .. }
            | Self::AskHidesRead { .. }
            | Self::HidesRead { .. } => 0,
        }
    }
}
