//! Which conversation.

use portico_wire::{
    frame::ConvKind,
    ids::{GroupId, UserId},
};
use std::fmt;

/// A conversation, as its reader names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Conv {
    /// With this user.
    User(UserId),
    Group(GroupId),
}

impl Conv {
    /// `None`: a kind that this version does not know.
    #[must_use]
    pub fn of(kind: ConvKind, number: u64) -> Option<Self> {
        match kind {
            ConvKind::DIRECT => Some(Self::User(UserId(number))),
            ConvKind::GROUP => Some(Self::Group(GroupId(number))),
            _ => None,
        }
    }

    #[must_use]
    pub const fn kind(self) -> ConvKind {
        match self {
            Self::User(_) => ConvKind::DIRECT,
            Self::Group(_) => ConvKind::GROUP,
        }
    }

    #[must_use]
    pub const fn number(self) -> u64 {
        match self {
            Self::User(user) => user.0,
            Self::Group(group) => group.0,
        }
    }

    pub(crate) const fn is_valid(self) -> bool {
        match self {
            Self::User(user) => user.is_valid(),
            Self::Group(group) => group.0 != 0,
        }
    }
}

impl From<UserId> for Conv {
    fn from(user: UserId) -> Self {
        Self::User(user)
    }
}

impl From<GroupId> for Conv {
    fn from(group: GroupId) -> Self {
        Self::Group(group)
    }
}

impl fmt::Display for Conv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "user {user}"),
            Self::Group(group) => write!(f, "group {group}"),
        }
    }
}
