//! What goes wrong, by who is at fault, and the one place that turns it into codes.

use crate::{groups::GroupError, metrics::Counter, policy::Denial, store::StoreError};
use portico_wire::{CloseCode, ErrorCode};

/// Why an authenticator refused a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No token, a forged one, or one that means nothing here.
    #[error("the token is not valid")]
    Invalid,
    /// Signed by a key that is not among those known now.
    #[error("the token's key is not known")]
    UnknownKey,
    /// For another service, or by another issuer.
    #[error("the token is for another audience, or of another issuer")]
    WrongAudience,
    /// Issued in the future, or not to be used yet.
    #[error("the token is not valid yet")]
    NotYetValid,
    #[error("the token lives longer than is allowed")]
    LivesTooLong,
    #[error("the token has expired")]
    Expired,
    /// The resume token is not valid and there was no access token beside it.
    #[error("the resume token is not valid")]
    ResumeRefused,
    #[error("the token is for another device")]
    WrongDevice,
    /// For another user than the session's: REAUTH changes nobody's name.
    #[error("the token is for another user")]
    WrongUser,
    #[error("the device has been revoked")]
    Revoked,
    /// The authenticator itself cannot answer now.
    #[error("sign-in is not available")]
    Unavailable,
}

impl AuthError {
    /// The text for people in CLOSE.
    pub(crate) const fn detail(self) -> &'static str {
        match self {
            // What exactly is wrong helps whoever tries tokens, and is counted instead.
            Self::Invalid | Self::WrongAudience | Self::LivesTooLong => "the token is not valid",
            Self::NotYetValid => "the token is not valid yet",
            Self::UnknownKey => "the token's key is not known here: fetch a fresh token",
            Self::WrongUser => "the token is for another user",
            Self::Expired => "the token has expired",
            Self::ResumeRefused => "the resume token is not valid",
            Self::WrongDevice => "the token is for another device",
            Self::Revoked => "the device has been revoked",
            Self::Unavailable => "sign-in is not available",
        }
    }

    pub(crate) const fn close_code(self) -> CloseCode {
        match self {
            Self::Invalid
            | Self::WrongAudience
            | Self::NotYetValid
            | Self::LivesTooLong
            | Self::WrongDevice
            | Self::WrongUser => CloseCode::AUTH_FAILED,
            // The key may have been changed since: a fresh token is signed with the present one.
            Self::Expired | Self::UnknownKey => CloseCode::TOKEN_EXPIRED,
            Self::ResumeRefused => CloseCode::RESUME_REFUSED,
            Self::Revoked => CloseCode::DEVICE_REVOKED,
            Self::Unavailable => CloseCode::SERVER_ERROR,
        }
    }

    /// What a refused login counts as.
    pub(crate) const fn counter(self) -> Counter {
        match self {
            Self::Invalid => Counter::LoginInvalid,
            Self::UnknownKey => Counter::LoginUnknownKey,
            Self::WrongAudience => Counter::LoginWrongAudience,
            Self::NotYetValid => Counter::LoginNotYetValid,
            Self::LivesTooLong => Counter::LoginLivesTooLong,
            Self::Expired => Counter::LoginExpired,
            Self::ResumeRefused => Counter::LoginResumeRefused,
            Self::WrongDevice => Counter::LoginWrongDevice,
            Self::WrongUser => Counter::LoginWrongUser,
            Self::Revoked => Counter::LoginRevoked,
            Self::Unavailable => Counter::LoginUnavailable,
        }
    }
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Malformed,
    UnknownOp,
    UnsupportedOp,
    UnsupportedConversation,
    TooLarge,
    NoSuchUser,
    BadKind,
    BadReceipt,
    BadMsgId,
    BadPage,
    NoSuchMessage,
    NotAuthor,
    ClockAhead,
    MsgIdTooOld,
    TooManyRequests,
    TooFast {
        retry_after_ms: u32,
    },
    Denied(Denial),
    /// An operation on a group, by the word of the group's home.
    Group(GroupError),
    GroupTooLarge,
    /// RECEIPTS_GET of members names something else than one group.
    MembersOfOne,
    /// By the recipient.
    Blocked,
    BadSignal,
    TooManySubscriptions,
    EditTooLong,
    BadContactChange,
    OwnContact,
    NameWithoutSet,
    TooManyContacts,
    TooManyBlocks,
    BadPrivacy,
    /// A page of nothing.
    NoLimit,
    /// REAUTH beyond what the gateway takes of logins; comes back after so many milliseconds.
    TooManyLogins(u32),
    /// REAUTH with a token that does not do.
    Token(AuthError),
    Overloaded,
    TimedOut,
    Store(StoreError),
}

impl From<GroupError> for Refusal {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::Store(error) => Self::Store(error),
            error => Self::Group(error),
        }
    }
}

impl Refusal {
    /// The text for people in ERROR.
    pub(crate) const fn detail(self) -> &'static str {
        match self {
            Self::Malformed => "the body is not a valid flatbuffer of this operation",
            Self::UnknownOp => "no such operation",
            Self::UnsupportedOp => "this gateway does not serve the operation",
            Self::UnsupportedConversation => "only direct conversations and groups are served",
            Self::TooLarge => "the envelope is longer than 64,000 bytes",
            Self::NoSuchUser => "the conversation names no user",
            Self::BadKind => "the message kind is not known",
            Self::BadReceipt => {
                "clients send READ receipts for direct conversations and groups only"
            }
            Self::BadMsgId => "the msg_id is not a version 7 UUID",
            Self::BadPage => "a page holds 1 to 100",
            Self::NoSuchMessage => {
                "no message of this conversation has this place, author, device and msg_id"
            }
            Self::NotAuthor => "only its author, or an admin of the group, may withdraw a message",
            Self::ClockAhead => "the msg_id is dated ahead of the server's clock",
            Self::MsgIdTooOld => "the msg_id is older than seven days",
            Self::TooManyRequests => "too many unanswered requests",
            Self::TooFast { .. } => "faster than this connection may",
            Self::Denied(denial) => denial.detail(),
            Self::Group(error) => error.detail(),
            Self::GroupTooLarge => {
                "a title, sealed_info, invite or list of members is over its bound"
            }
            Self::MembersOfOne => "the watermarks of members are asked for one group at a time",
            Self::Blocked => "the recipient does not take messages from this user",
            Self::BadSignal => "the kind of signal is not known",
            Self::TooManySubscriptions => {
                "a connection may watch 500 users, and name 500 in a list"
            }
            Self::EditTooLong => "an edit has 100 changes at most, and a name 256 bytes",
            Self::BadContactChange => "the change of a contact is not known",
            Self::OwnContact => "nobody can be a contact of oneself, or block oneself",
            Self::NameWithoutSet => "only SET takes a name",
            Self::TooManyContacts => "a user has 10,000 contacts at most: remove some first",
            Self::TooManyBlocks => "a user blocks 1,000 others at most: unblock some first",
            Self::BadPrivacy => {
                "a setting is EVERYONE, CONTACTS or NOBODY, and findable is not CONTACTS"
            }
            Self::NoLimit => "the limit of a page is 1 at least",
            Self::TooManyLogins(_) => "too many logins at once",
            Self::Token(error) => error.detail(),
            Self::Overloaded => "the gateway has too much in flight",
            Self::TimedOut => "the store did not answer in time",
            Self::Store(error) => match error {
                StoreError::Overloaded { .. } => "the store has too much in flight",
                StoreError::Unavailable => "the store cannot be reached",
                StoreError::Unknown => "the store did not say whether it was written",
                StoreError::Conflict => "somebody else changed it at the same time",
                StoreError::Invalid => "the store refused the request",
                StoreError::Fatal => "the store has stopped",
            },
        }
    }

    pub(crate) const fn code(self) -> ErrorCode {
        match self {
            Self::Malformed => ErrorCode::MALFORMED,
            Self::UnknownOp => ErrorCode::UNKNOWN_OP,
            Self::UnsupportedOp | Self::UnsupportedConversation => ErrorCode::UNSUPPORTED,
            Self::TooLarge => ErrorCode::TOO_LARGE,
            Self::NoSuchUser | Self::BadKind | Self::BadReceipt | Self::BadMsgId => {
                ErrorCode::BAD_ARGUMENT
            }
            Self::BadPage => ErrorCode::BAD_ARGUMENT,
            Self::NoSuchMessage => ErrorCode::NOT_FOUND,
            Self::NotAuthor => ErrorCode::FORBIDDEN,
            Self::BadSignal
            | Self::BadContactChange
            | Self::OwnContact
            | Self::NameWithoutSet
            | Self::BadPrivacy
            | Self::NoLimit => ErrorCode::BAD_ARGUMENT,
            Self::EditTooLong => ErrorCode::TOO_LARGE,
            Self::Blocked => ErrorCode::FORBIDDEN,
            Self::TooManySubscriptions | Self::TooManyContacts | Self::TooManyBlocks => {
                ErrorCode::QUOTA
            }
            Self::ClockAhead => ErrorCode::CLOCK_AHEAD,
            Self::MsgIdTooOld => ErrorCode::EXPIRED,
            Self::TooManyRequests | Self::TooFast { .. } | Self::TooManyLogins(_) => {
                ErrorCode::RATE_LIMITED
            }
            Self::Denied(denial) => denial.code(),
            Self::Group(error) => error.code(),
            Self::GroupTooLarge => ErrorCode::TOO_LARGE,
            Self::MembersOfOne => ErrorCode::BAD_ARGUMENT,
            Self::Token(error) => match error {
                AuthError::Invalid
                | AuthError::WrongAudience
                | AuthError::NotYetValid
                | AuthError::LivesTooLong
                | AuthError::ResumeRefused => ErrorCode::UNAUTHENTICATED,
                AuthError::WrongDevice | AuthError::WrongUser => ErrorCode::FORBIDDEN,
                AuthError::Expired | AuthError::UnknownKey => ErrorCode::TOKEN_EXPIRED,
                AuthError::Revoked => ErrorCode::DEVICE_REVOKED,
                AuthError::Unavailable => ErrorCode::UNAVAILABLE,
            },
            Self::Overloaded => ErrorCode::OVERLOADED,
            Self::TimedOut => ErrorCode::TIMEOUT,
            Self::Store(error) => match error {
                StoreError::Overloaded { .. } => ErrorCode::OVERLOADED,
                StoreError::Unavailable => ErrorCode::UNAVAILABLE,
                StoreError::Unknown => ErrorCode::TIMEOUT,
                StoreError::Conflict => ErrorCode::CONFLICT,
                StoreError::Invalid => ErrorCode::INTERNAL,
                StoreError::Fatal => ErrorCode::UNAVAILABLE,
            },
        }
    }

    pub(crate) const fn retry_after_ms(self) -> u32 {
        match self {
            Self::TooManyRequests => 100,
            Self::TooFast { retry_after_ms } => retry_after_ms,
            Self::TooManyLogins(after_ms) => after_ms,
            Self::Token(AuthError::Unavailable) => 1_000,
            Self::Overloaded | Self::Group(GroupError::Busy) => 500,
            Self::TimedOut => 1_000,
            Self::Store(StoreError::Overloaded { retry_after_ms }) if retry_after_ms > 0 => {
                retry_after_ms
            }
            Self::Store(StoreError::Overloaded { .. }) => 500,
            Self::Store(_) => 1_000,
            _ => 0,
        }
    }
}
