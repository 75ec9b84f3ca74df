//! What went wrong, in the terms that decide what the caller may do next.

use std::sync::Arc;
use std::time::Duration;

/// What the caller may conclude from a failure. The two questions that matter are answered by
/// [`Kind::is_retryable`] and [`Kind::may_have_applied`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Not applied: too much is in flight. Later, not before `retry_after`.
    Overloaded,
    /// Not applied: the store cannot be reached or is closed, or the deadline passed in a queue.
    Unavailable,
    /// Perhaps applied: the answer was lost, or waiting for it took too long. Repeating is safe.
    Unknown,
    /// Not applied: the record is not in the expected version.
    Conflict,
    /// Not applied and never will be: too large, malformed, unsupported.
    Invalid,
    /// Perhaps applied, and the store cannot go on: full, damaged, or poisoned by an earlier
    /// failure. Stop accepting, raise the alarm, restart.
    Fatal,
}

impl Kind {
    /// May the same command, submitted again, have a better outcome?
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::Overloaded | Self::Unavailable | Self::Unknown => true,
            Self::Conflict | Self::Invalid | Self::Fatal => false,
        }
    }

    /// Can the command have taken effect although it failed?
    #[must_use]
    pub const fn may_have_applied(self) -> bool {
        match self {
            Self::Unknown | Self::Fatal => true,
            Self::Overloaded | Self::Unavailable | Self::Conflict | Self::Invalid => false,
        }
    }
}

/// The failure of one command, or of a whole batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind:?}: {detail}")]
pub struct Error {
    pub kind: Kind,
    /// A hint that comes with [`Kind::Overloaded`].
    pub retry_after: Option<Duration>,
    /// A sentence for the operator. Never holds message bodies, and nobody parses it.
    pub detail: Arc<str>,
}

impl Error {
    #[must_use]
    pub fn new(kind: Kind, detail: impl Into<Arc<str>>) -> Self {
        Self {
            kind,
            retry_after: None,
            detail: detail.into(),
        }
    }

    #[must_use]
    pub fn overloaded(retry_after: Duration, detail: impl Into<Arc<str>>) -> Self {
        Self {
            kind: Kind::Overloaded,
            retry_after: Some(retry_after),
            detail: detail.into(),
        }
    }

    pub(crate) fn invalid(detail: impl Into<Arc<str>>) -> Self {
        Self::new(Kind::Invalid, detail)
    }

    pub(crate) fn unavailable(detail: impl Into<Arc<str>>) -> Self {
        Self::new(Kind::Unavailable, detail)
    }

    pub(crate) fn fatal(detail: impl Into<Arc<str>>) -> Self {
        Self::new(Kind::Fatal, detail)
    }
}
