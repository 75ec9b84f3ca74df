//! What an owner decides about a session.

use portico_wire::{
    Flags,
    ids::{DeviceId, MsgId, UserId},
    limits::{RECEIVE_MAX_CEILING, RECEIVE_MAX_DEFAULT},
};
use std::fmt;

/// The time, as the owner of a session reads it: the session has no clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Microseconds since any fixed moment, never stepping back: for timers.
    pub mono_us: u64,
    /// Microseconds since 1970: for dates.
    pub wall_us: u64,
}

/// Who logs in.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    pub user: UserId,
    /// 0: the token's own.
    pub device: DeviceId,
    /// The access token. Replaced by [`crate::Session::set_token`] when it runs out. May be empty
    /// while there is a resume token, see [`crate::Session::needs_token`].
    pub token: String,
}

/// How sessions behave. A program with very many shares one of these between them, see
/// [`crate::Session::sharing`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// "name/version platform", for the operator's statistics.
    pub client: String,
    /// Entries that the server may have under way without an acknowledgement (1..=4,096).
    pub receive_max: u32,
    /// Seconds between two PINGs; 0: as the server proposes. The server's range has the last word.
    pub heartbeat_s: u16,
    /// Messages that wait in the outbox or for their reply.
    pub outbox_max: usize,
    /// `true`: an entry counts as stored once the event callback has returned. `false`: the owner
    /// calls [`crate::Session::acknowledge`] when it has stored a message.
    pub auto_ack: bool,
    /// `false`: the access token is dropped at WELCOME, because it takes more memory than an idle
    /// session and is used once. The owner gives another when [`crate::Session::needs_token`].
    pub keep_token: bool,
    /// `true`: [`crate::Event::TokenExpiring`] comes before the token runs out, for which the session
    /// keeps some bytes more.
    pub tell_expiry: bool,
    /// Messages whose ids are remembered, so that a repeated delivery is recognised.
    pub dedupe_max: usize,
    /// `true`: acknowledge when half of `receive_max` is used, and before the session closes, and
    /// not for the sake of time. A gateway then keeps for longer what this client has long had, and
    /// its senders hear late that it was delivered: meant for measurements only.
    pub lazy_ack: bool,
}

/// Who logs in, and how: [`Login`] and [`Settings`] in one, for a session that shares nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionConfig {
    /// See [`Login`].
    pub user: UserId,
    pub device: DeviceId,
    pub token: String,
    /// See [`Settings`].
    pub client: String,
    pub receive_max: u32,
    pub heartbeat_s: u16,
    pub outbox_max: usize,
    pub auto_ack: bool,
    pub keep_token: bool,
    pub dedupe_max: usize,
}

impl Login {
    pub fn new(user: UserId, device: DeviceId, token: impl Into<String>) -> Self {
        Self {
            user,
            device,
            token: token.into(),
        }
    }
}

impl Settings {
    pub const OUTBOX_MAX_DEFAULT: usize = 1_000;
    pub const DEDUPE_MAX_DEFAULT: usize = 512;

    /// `receive_max` as the protocol allows it.
    pub(crate) fn receive_max(&self) -> u32 {
        self.receive_max.clamp(1, RECEIVE_MAX_CEILING)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            client: concat!("portico-client/", env!("CARGO_PKG_VERSION")).to_owned(),
            receive_max: RECEIVE_MAX_DEFAULT,
            heartbeat_s: 0,
            outbox_max: Self::OUTBOX_MAX_DEFAULT,
            auto_ack: true,
            keep_token: true,
            tell_expiry: true,
            dedupe_max: Self::DEDUPE_MAX_DEFAULT,
            lazy_ack: false,
        }
    }
}

impl SessionConfig {
    pub fn new(user: UserId, device: DeviceId, token: impl Into<String>) -> Self {
        let Settings {
            client,
            receive_max,
            heartbeat_s,
            outbox_max,
            auto_ack,
            keep_token,
            dedupe_max,
            lazy_ack: _,
            tell_expiry: _,
        } = Settings::default();
        Self {
            user,
            device,
            token: token.into(),
            client,
            receive_max,
            heartbeat_s,
            outbox_max,
            auto_ack,
            keep_token,
            dedupe_max,
        }
    }

    /// The part that is this session's own, and the part that others can share.
    #[must_use]
    pub fn split(self) -> (Login, Settings) {
        let login = Login {
            user: self.user,
            device: self.device,
            token: self.token,
        };
        let settings = Settings {
            client: self.client,
            receive_max: self.receive_max,
            heartbeat_s: self.heartbeat_s,
            outbox_max: self.outbox_max,
            auto_ack: self.auto_ack,
            keep_token: self.keep_token,
            dedupe_max: self.dedupe_max,
            lazy_ack: false,
            tell_expiry: true,
        };
        (login, settings)
    }
}

/// Without the token: it must not reach a log.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

/// Without the token: it must not reach a log.
impl fmt::Debug for SessionConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionConfig")
            .field("user", &self.user)
            .field("device", &self.device)
            .field("client", &self.client)
            .field("receive_max", &self.receive_max)
            .field("auto_ack", &self.auto_ack)
            .finish_non_exhaustive()
    }
}

/// How one message is sent. The default is an ordinary message with an id made by the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendOptions {
    /// An id made by the owner: version 7, dated by [`crate::Session::server_clock_us`].
    pub msg_id: Option<MsgId>,
    /// `msg_id` may have been sent by an earlier session: the server then looks for it first.
    pub retry: bool,
    /// A value of `portico_wire::frame::msg_kind`.
    pub kind: u8,
    /// Neither stored nor repeated: sent once. If the connection ends before the answer, the
    /// refusal comes with the next one.
    pub ephemeral: bool,
    /// No push notification.
    pub silent: bool,
    /// Not delivered when older; 0 = the usual retention.
    pub ttl_s: u32,
    /// `false`: the server is asked for no answer (`corr` 0). The message is written at once or not
    /// at all, stays in no outbox and is never repeated; its sender learns nothing of its fate.
    pub request: bool,
}

impl SendOptions {
    pub(crate) fn flags(&self) -> Flags {
        let mut flags = Flags::NONE;
        if self.ephemeral {
            flags = flags | Flags::EPHEMERAL;
        }
        if self.silent {
            flags = flags | Flags::SILENT;
        }
        flags
    }
}

impl Default for SendOptions {
    fn default() -> Self {
        Self {
            msg_id: None,
            retry: false,
            kind: 0,
            ephemeral: false,
            silent: false,
            ttl_s: 0,
            request: true,
        }
    }
}
