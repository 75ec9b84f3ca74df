//! Error and close codes, numbered by what the client should do next.
//!
//! Both are open sets: an old client meets numbers it does not know, and then acts by the range.

use crate::generated::fb;
use std::fmt;

/// Why a request failed. `ERROR` frames carry it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ErrorCode(pub u16);

/// Why a connection ends. `CLOSE` frames carry it; a WebSocket close frame carries the same number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CloseCode(pub u16);

/// What to do about an [`ErrorCode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorReaction {
    /// Do not send it again as it is.
    Mend,
    /// Sign in again.
    SignIn,
    /// Certainly not accepted: send it again after `retry_after_ms`.
    RetryPlain,
    /// Outcome unknown: send it again with RETRY.
    RetryMarked,
}

/// What to do after a [`CloseCode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReaction {
    /// Reconnect with the resume token, after back-off.
    Resume,
    /// Reconnect without the resume token.
    LogIn,
    /// Do not reconnect without the user or an update.
    Stop,
}

macro_rules! codes {
    ($ty:ident, $raw:ident, $($name:ident),+ $(,)?) => {
        impl $ty {
            $(pub const $name: Self = Self(fb::$raw::$name.0);)+

            /// Every code this version knows.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The name in the schema, or `None` for a number from the future.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)+
                    _ => None,
                }
            }
        }

        impl fmt::Debug for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.name() {
                    Some(name) => write!(f, "{name} ({})", self.0),
                    None => write!(f, "code {}", self.0),
                }
            }
        }
    };
}

codes!(
    ErrorCode,
    ErrorCode,
    NONE,
    MALFORMED,
    UNKNOWN_OP,
    UNSUPPORTED,
    TOO_LARGE,
    BAD_ARGUMENT,
    NOT_FOUND,
    CONFLICT,
    FORBIDDEN,
    NOT_MEMBER,
    GROUP_FULL,
    STALE_EPOCH,
    EXPIRED,
    QUOTA,
    CLOCK_AHEAD,
    UNAUTHENTICATED,
    TOKEN_EXPIRED,
    DEVICE_REVOKED,
    BAD_CODE,
    RATE_LIMITED,
    OVERLOADED,
    UNAVAILABLE,
    TIMEOUT,
    INTERNAL,
);

codes!(
    CloseCode,
    CloseCode,
    NORMAL,
    DRAINING,
    IDLE_TIMEOUT,
    SLOW_CONSUMER,
    SERVER_ERROR,
    OVERLOADED,
    MOVED,
    RATE_LIMITED,
    RESUME_REFUSED,
    TOKEN_EXPIRED,
    PROTOCOL_ERROR,
    FRAME_TOO_LARGE,
    HANDSHAKE_TIMEOUT,
    AUTH_FAILED,
    DEVICE_REVOKED,
    VERSION_UNSUPPORTED,
    BANNED,
    SESSION_REPLACED,
);

impl ErrorCode {
    #[must_use]
    pub const fn reaction(self) -> ErrorReaction {
        match self.0 {
            32..=63 => ErrorReaction::SignIn,
            64 | 65 => ErrorReaction::RetryPlain,
            66..=95 => ErrorReaction::RetryMarked,
            _ => ErrorReaction::Mend,
        }
    }
}

impl CloseCode {
    #[must_use]
    pub const fn reaction(self) -> CloseReaction {
        match self.0 {
            4010..=4019 => CloseReaction::LogIn,
            4020..=4029 => CloseReaction::Stop,
            _ => CloseReaction::Resume,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reactions_follow_the_range_even_for_unknown_codes() {
        assert_eq!(ErrorCode::CLOCK_AHEAD.reaction(), ErrorReaction::Mend);
        assert_eq!(ErrorCode(31).reaction(), ErrorReaction::Mend);
        assert_eq!(ErrorCode(63).reaction(), ErrorReaction::SignIn);
        assert_eq!(ErrorCode::OVERLOADED.reaction(), ErrorReaction::RetryPlain);
        assert_eq!(
            ErrorCode::UNAVAILABLE.reaction(),
            ErrorReaction::RetryMarked
        );
        assert_eq!(ErrorCode(95).reaction(), ErrorReaction::RetryMarked);
        assert_eq!(CloseCode(4009).reaction(), CloseReaction::Resume);
        assert_eq!(CloseCode(4019).reaction(), CloseReaction::LogIn);
        assert_eq!(CloseCode::SESSION_REPLACED.reaction(), CloseReaction::Stop);
        assert_eq!(CloseCode(1006).reaction(), CloseReaction::Resume);
    }

    #[test]
    fn every_code_of_the_schema_is_named_here() {
        let listed: Vec<u16> = ErrorCode::ALL.iter().map(|code| code.0).collect();
        let schema: Vec<u16> = fb::ErrorCode::ENUM_VALUES
            .iter()
            .map(|code| code.0)
            .collect();
        assert_eq!(listed, schema);
        let listed: Vec<u16> = CloseCode::ALL.iter().map(|code| code.0).collect();
        let schema: Vec<u16> = fb::CloseCode::ENUM_VALUES
            .iter()
            .map(|code| code.0)
            .collect();
        assert_eq!(listed, schema);
    }
}
