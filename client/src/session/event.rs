//! What a session tells its owner.

use portico_wire::{
    BodyError, CloseCode, ErrorCode, FrameError,
    ids::{ConvSeq, DeviceId, MsgId, Seq, UserId},
    message::Envelope,
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
    /// A message. The only event that [`crate::Session::acknowledge`] is about.
    Message {
        /// Place in the inbox; 0 for an ephemeral message, which needs no acknowledgement.
        seq: Seq,
        /// Place in the conversation: the order to show, and in microseconds the time to show.
        conv_seq: ConvSeq,
        /// The other user of the conversation, also when the author is another own device.
        peer: UserId,
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
    /// Another own device has read this conversation: clear the badge.
    ReadElsewhere { peer: UserId, up_to: ConvSeq },
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

/// Why a message was not taken into the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("the outbox is full")]
    Full,
    #[error("the envelope is larger than the protocol allows")]
    TooLarge,
    #[error("the envelope is not a valid flatbuffer")]
    BadEnvelope,
    #[error("no user has this number")]
    BadRecipient,
    #[error("a message with this id is in the outbox already")]
    InOutbox,
    #[error("not logged in, and a message without an answer cannot wait until then")]
    Offline,
}
