//! What a session tells its owner.

use super::conv::Conv;
use portico_wire::{
    BodyError, CloseCode, ErrorCode, FrameError,
    ids::{ConvSeq, DeviceId, GroupId, MsgId, Seq, UserId},
    message::{
        Envelope,
        group::{Group, GroupEvent},
        history::{Conversation, Revoke},
        people::{Contacts, PresenceItem, Privacy},
    },
};

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No connection.
    Offline,
    /// HELLO is under way.
    Greeting,
    /// Logged in; what was missed is arriving. Messages may be sent.
    Replaying,
    /// Logged in and up to date.
    Live,
    /// No connection, and none should be made without the user or an update.
    Stopped(CloseCode),
}

impl Phase {
    /// Logged in: requests go out.
    #[must_use]
    pub const fn is_welcome(self) -> bool {
        matches!(self, Self::Replaying | Self::Live)
    }

    /// There is a connection, logged in or not.
    #[must_use]
    pub const fn is_connected(self) -> bool {
        matches!(self, Self::Greeting | Self::Replaying | Self::Live)
    }
}

/// One thing that happened. Borrows from the bytes that were received; the drivers hand out
/// [`crate::OwnedEvent`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// Logged in. `head` is the newest entry of the inbox (0: the server has not looked yet).
    Welcome {
        resumed: bool,
        head: Seq,
        floor: Seq,
    },
    /// All that was missed has been delivered.
    Synced { up_to: Seq, replayed: u32 },
    /// Entries before `floor` are gone: retention was shorter than this device's absence.
    Gap { floor: Seq },
    /// A message. With [`Event::GroupChanged`] and [`Event::Withdrawn`] what
    /// [`crate::Session::acknowledge`] is about.
    Message {
        /// Place in the inbox; 0 for an ephemeral message, which needs no acknowledgement.
        seq: Seq,
        /// Place in the conversation: the order to show, and in microseconds the time to show.
        conv_seq: ConvSeq,
        /// The other user of the conversation, also when the author is another own device. In a group
        /// the author.
        peer: UserId,
        /// The group in which it was said; `None`: between two users.
        group: Option<GroupId>,
        from: UserId,
        from_device: DeviceId,
        msg_id: MsgId,
        kind: u8,
        ephemeral: bool,
        /// `None`: revoked, show a tombstone.
        envelope: Option<Envelope<'a>>,
        /// The body as it came.
        raw: &'a [u8],
    },
    /// Somebody has changed a group that this user is, or was, a member of.
    GroupChanged {
        seq: Seq,
        /// Its place among the messages of the group.
        conv_seq: ConvSeq,
        group: GroupId,
        by: UserId,
        by_device: DeviceId,
        change: &'a GroupEvent<'a>,
    },
    /// A message was deleted for everybody: its author, or an admin of the group, has taken it back.
    Withdrawn {
        seq: Seq,
        /// The place of the withdrawal; that of the message is in `target`.
        conv_seq: ConvSeq,
        conv: Conv,
        by: UserId,
        target: Revoke,
    },
    /// A message whose body is not an Envelope. It is acknowledged without the owner.
    Undecodable {
        seq: Seq,
        from: UserId,
        msg_id: MsgId,
    },
    /// A message that this device has already: the server delivered it again.
    Duplicate {
        seq: Seq,
        from: UserId,
        msg_id: MsgId,
    },
    /// The server has stored an own message. Ephemeral messages end here too, with `conv_seq` 0.
    Sent {
        msg_id: MsgId,
        conv_seq: ConvSeq,
        duplicate: bool,
    },
    /// An attempt to send failed. Unless `will_retry`, the message has left the outbox.
    Refused {
        msg_id: MsgId,
        code: ErrorCode,
        retry_after_ms: u32,
        will_retry: bool,
    },
    /// The peer has (read) everything up to `up_to`, seen by the server at `at_s`.
    Receipt {
        peer: UserId,
        read: bool,
        up_to: ConvSeq,
        at_s: u32,
    },
    /// The same in a group, of one member, or of all together (`member` is `None`): then so many of so
    /// many have got there; 0 of 0: all have.
    GroupReceipt {
        group: GroupId,
        member: Option<UserId>,
        reached: u16,
        of: u16,
        read: bool,
        up_to: ConvSeq,
        at_s: u32,
    },
    /// Another own device has read this conversation: clear the badge.
    ReadElsewhere { peer: UserId, up_to: ConvSeq },
    /// The same for a group.
    GroupReadElsewhere { group: GroupId, up_to: ConvSeq },
    /// Somebody is typing or recording, or has stopped (`kind` is a value of
    /// `portico_wire::frame::signal_kind`). To be shown for `ttl_s` seconds, or until a message comes.
    Signal {
        conv: Conv,
        from: UserId,
        kind: u8,
        ttl_s: u32,
    },
    /// Users whose presence this connection watches have changed.
    Presence { items: &'a [PresenceItem] },
    /// A part of the answer to a request, or all of it: see [`Answer::is_last`].
    Answer { ask: AskId, answer: Answer<'a> },
    /// The session ends in so many seconds, when its token runs out: the owner gets another and gives it
    /// to [`crate::Session::renew`]. Comes in good time, once for each token, and again when the server
    /// puts off the new one.
    TokenExpiring { in_s: u32 },
    /// The server took a new token: the session lasts for so many seconds more, 0 = without an end.
    Renewed { ttl_s: u32 },
    /// The server did not take it. The session goes on until its former token runs out.
    RenewalRefused { code: ErrorCode },
    /// The server will go away: connect anew after this time, before leaving this connection.
    Draining { leave_after_ms: u32 },
    /// The connection is over; comes exactly once for each.
    Closed {
        code: CloseCode,
        by_peer: bool,
        /// `None`: do not reconnect. A driver need not wait so long when it knows that only the
        /// network of this device has changed: the wait is there to spread those who lost their
        /// connections together.
        reconnect_after_ms: Option<u32>,
        /// For people, written by the server: neither parsed nor trusted.
        detail: &'a str,
    },
    /// The server broke a rule of the protocol; [`Event::Closed`] follows.
    ProtocolFault(ProtocolFault),
}

/// Names a request of [`crate::Session`] that is answered with a value: 64 bits drawn for each, because a
/// counter would take memory in every idle session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AskId(pub u64);

/// What a request has brought. The answer to one is a single of these, or several parts and an end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Answer<'a> {
    /// Done; how many it was about, where the operation counts. Also the end of a list of groups or
    /// conversations.
    Done {
        count: u32,
    },
    /// The group as it is now. A part where all groups were asked for.
    Group {
        group: &'a Group<'a>,
        more: bool,
    },
    /// The states of the users that the subscription was about.
    Presence {
        items: &'a [PresenceItem],
    },
    /// A part of a page of history: a message, or the tombstone of one.
    Entry {
        conv_seq: ConvSeq,
        from: UserId,
        from_device: DeviceId,
        msg_id: MsgId,
        kind: u8,
        envelope: Option<Envelope<'a>>,
    },
    /// A part of a page of history: the group was changed.
    GroupEntry {
        conv_seq: ConvSeq,
        by: UserId,
        change: &'a GroupEvent<'a>,
    },
    /// A part of a page of history: a message was withdrawn.
    WithdrawnEntry {
        conv_seq: ConvSeq,
        by: UserId,
        target: Revoke,
    },
    /// The end of a page; with `more` the next one starts at `next`.
    PageEnd {
        more: bool,
        next: ConvSeq,
    },
    /// A part of the list of conversations.
    Conversation(Conversation),
    Contacts(&'a Contacts<'a>),
    Privacy(Privacy),
    /// What was asked is durable, at this place in the conversation.
    Stored {
        conv_seq: ConvSeq,
        duplicate: bool,
    },
    /// It was not done, or nobody knows: see [`ErrorCode::reaction`].
    Failed(Failure<'a>),
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure<'a> {
    pub code: ErrorCode,
    pub retry_after_ms: u32,
    /// For people, written by the server: neither parsed nor trusted.
    pub detail: &'a str,
}

impl Failure<'_> {
    pub(crate) const fn of(code: ErrorCode) -> Self {
        Self {
            code,
            retry_after_ms: 0,
            detail: "",
        }
    }
}

impl Answer<'_> {
    /// Nothing more comes for this request.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        match self {
            Self::Entry { .. }
            | Self::GroupEntry { .. }
            | Self::WithdrawnEntry { .. }
            | Self::Conversation(_) => false,
            Self::Group { more, .. } => !*more,
            Self::Done { .. }
            | Self::Presence { .. }
            | Self::PageEnd { .. }
            | Self::Contacts(_)
            | Self::Privacy(_)
            | Self::Stored { .. }
            | Self::Failed(_) => true,
        }
    }
}

/// How a server can break the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolFault {
    #[error("framing: {0}")]
    Frame(FrameError),
    #[error("WELCOME cannot be read: {0}")]
    Welcome(BodyError),
    #[error("WELCOME names a version that was not offered")]
    Version,
    #[error("WELCOME is for another user or device")]
    Identity,
    #[error("a second WELCOME")]
    SecondWelcome,
    #[error("operation {0} before WELCOME")]
    Early(u8),
    #[error("an inbox sequence that is not above the one before")]
    Disorder,
    #[error("an inbox sequence that no clock can have made")]
    Sequence,
    #[error("more unacknowledged entries than this client allows")]
    Window,
    #[error("operation {0} answers a request of another kind")]
    Reply(u8),
}

/// Why a message was not taken into the outbox, or a request not taken at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("the outbox is full")]
    Full,
    #[error("it names more users than one request may")]
    TooMany,
    #[error("a text in it is longer than the protocol allows")]
    TooLong,
    #[error("the envelope is larger than the protocol allows")]
    TooLarge,
    #[error("the envelope is not a valid flatbuffer")]
    BadEnvelope,
    #[error("no user or group has this number")]
    BadRecipient,
    #[error("a message with this id is in the outbox already")]
    InOutbox,
    #[error("not logged in, and a message without an answer cannot wait until then")]
    Offline,
}
