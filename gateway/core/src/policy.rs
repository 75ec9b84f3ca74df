//! Who may write to whom: a question to the program that embeds the gateway.
//!
//! It is asked at the sender's home shard, of each message before anything is kept of it, and answers
//! from what it has in memory. What it must look up elsewhere it looks up elsewhere, and keeps here.

use portico_wire::{ErrorCode, ids::UserId};
use std::fmt;

/// The rules of an embedding program. Each shard has one of its own, on its own thread.
pub trait Policy: fmt::Debug + Send {
    /// May this user send messages to that one, stored or ephemeral? Called for every message, also for
    /// one that is said again: without I/O, without waiting, in well under a microsecond.
    fn may_message(&mut self, from: UserId, to: UserId) -> Verdict;
}

/// The answer of a [`Policy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    Deny(Denial),
}

/// What the sender is told. None of these is tried again by a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Denial {
    /// ERROR `FORBIDDEN`.
    Forbidden,
    /// ERROR `NOT_FOUND`: as if there were no such user.
    NotFound,
    /// ERROR `QUOTA`: as many as the sender's plan has.
    Quota,
}

impl Denial {
    pub(crate) const fn code(self) -> ErrorCode {
        match self {
            Self::Forbidden => ErrorCode::FORBIDDEN,
            Self::NotFound => ErrorCode::NOT_FOUND,
            Self::Quota => ErrorCode::QUOTA,
        }
    }

    /// The text for people in ERROR.
    pub(crate) const fn detail(self) -> &'static str {
        match self {
            Self::Forbidden => "this user may not be written to",
            Self::NotFound => "there is no such user",
            Self::Quota => "the sender's quota is used up",
        }
    }
}
