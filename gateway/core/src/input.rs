//! All that can wake a shard.

use crate::{
    conn::ConnId,
    error::AuthError,
    home::ShardId,
    login::Session,
    mesh::ShardMessage,
    store::{StoreError, StoreReply, StoreToken},
};
use portico_wire::{
    Frame, FrameError,
    ids::{DeviceId, UserId},
};

/// The time of one turn, read once by the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Microseconds of a clock that never steps: deadlines.
    pub mono_us: u64,
    /// Microseconds since 1970: sequence numbers and what people see.
    pub wall_us: u64,
}

impl Now {
    pub(crate) const fn mono_s(self) -> u32 {
        (self.mono_us / 1_000_000) as u32
    }

    pub(crate) const fn wall_s(self) -> u32 {
        (self.wall_us / 1_000_000) as u32
    }
}

/// What a client showed to prove who it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub token: Option<String>,
    /// Tried before the token.
    pub resume_token: Option<Vec<u8>>,
    /// The device the client says it is; 0 = the token's own.
    pub device: DeviceId,
}

impl std::fmt::Debug for Credentials {
    /// Never shows a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

/// Who the authenticator says it is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Grant {
    pub user: UserId,
    pub device: DeviceId,
    /// The resume token was accepted.
    pub resumed: bool,
    /// Goes into WELCOME; empty = none.
    pub resume_token: Vec<u8>,
    pub resume_ttl_s: u32,
    /// The session ends then, unless REAUTH brings a later time. Unix seconds; 0 = never.
    pub expires_unix_s: u64,
    /// How many revocations the authenticator knew of. See [`Input::Revoke`].
    pub epoch: u32,
}

impl std::fmt::Debug for Grant {
    /// Never shows a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grant")
            .field("user", &self.user)
            .field("device", &self.device)
            .field("resumed", &self.resumed)
            .field("expires_unix_s", &self.expires_unix_s)
            .finish_non_exhaustive()
    }
}

/// What was shown before is not good any more, for one device of a user or for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revocation {
    pub user: UserId,
    /// `None`: every device.
    pub device: Option<DeviceId>,
    /// [`Grant::epoch`] of the first login that was judged with this in mind. 0: none was.
    pub epoch: u32,
}

/// One event. Connections are named by the driver: an index into its own table, with a generation
/// that changes at each use of the index.
#[derive(Debug)]
pub enum Input<'a> {
    /// A connection was accepted, and may speak. Where it comes from was told before, if it is known:
    /// [`crate::Shard::admit_source`].
    Opened { conn: ConnId },
    /// A whole frame arrived. [`crate::feed()`] makes these from bytes.
    Frame { conn: ConnId, frame: Frame<'a> },
    /// The bytes cannot be followed.
    BadFrame { conn: ConnId, error: FrameError },
    /// The peer ended the stream, or the transport failed. Nothing can be sent any more.
    Ended { conn: ConnId },
    /// The kernel took this many bytes of what [`crate::Shard::take_output`] gave.
    Written { conn: ConnId, bytes: usize },
    /// The answer to [`crate::Effect::Authenticate`].
    Authenticated {
        conn: ConnId,
        result: Result<Grant, AuthError>,
    },
    /// [`crate::Effect::Move`] succeeded: the socket is gone from this shard.
    Moved { conn: ConnId },
    /// [`crate::Effect::Move`] failed: the socket is still here.
    MoveFailed { conn: ConnId },
    /// A connection arrived from another shard, with its session.
    Adopted { conn: ConnId, session: Session },
    /// From another shard.
    Message {
        from: ShardId,
        message: ShardMessage,
    },
    /// The store answered a request.
    Stored {
        token: StoreToken,
        result: Result<StoreReply, StoreError>,
    },
    /// Time passed: deadlines are looked at. Due at [`crate::Shard::next_wakeup_us`] at the latest.
    Tick,
    /// Ask all clients to leave within `deadline_ms`, each after a random part of `spread_ms`.
    Drain { spread_ms: u32, deadline_ms: u32 },
    /// To the user's home: closes the connections that this is about, and those that arrive later with
    /// an earlier epoch.
    Revoke(Revocation),
}
