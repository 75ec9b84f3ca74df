//! Why an operation on a group is refused.

use crate::{metrics::Counter, store::StoreError};
use portico_wire::ErrorCode;

/// Answered by the group's home, told to the client by its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupError {
    /// There is no such group, or it has been deleted.
    NotFound,
    /// Another group has the id that follows from this msg_id.
    Taken,
    NotMember,
    /// Only admins may send.
    MaySend,
    /// Only admins may add.
    MayAdd,
    /// Only admins may change title and info.
    MayEditInfo,
    /// Only admins may do this.
    AdminsOnly,
    /// Only the owner may do this.
    OwnerOnly,
    /// The owner may not leave a group that others are in.
    OwnerStays,
    BadInvite,
    Full,
    Stale,
    BadAction,
    BadMember,
    BadRole,
    BadRules,
    BadMax,
    /// The edit names nobody, or changes nothing.
    Nothing,
    /// None of those named is a member.
    NobodyFound,
    /// Too much waits for this group, or too many messages are on their way to members.
    Busy,
    Store(StoreError),
}

impl GroupError {
    /// The text for people in ERROR.
    pub(crate) const fn detail(self) -> &'static str {
        match self {
            Self::NotFound => "there is no such group",
            Self::Taken => "the msg_id gives the id of another group: take a new one",
            Self::NotMember => "you are not a member of the group",
            Self::MaySend => "only admins may send to this group",
            Self::MayAdd => "only admins may add members to this group",
            Self::MayEditInfo => "only admins may change title and info of this group",
            Self::AdminsOnly => "only admins of the group may do this",
            Self::OwnerOnly => "only the owner of the group may do this",
            Self::OwnerStays => "the owner hands the group over before leaving it",
            Self::BadInvite => "the invite code is not valid",
            Self::Full => "the group has as many members as it may",
            Self::Stale => "the group has changed: get it again and repeat with its epoch",
            Self::BadAction => "no such action",
            Self::BadMember => "a member's user id is not valid",
            Self::BadRole => "a role is not one that this action can give",
            Self::BadRules => "the rules have bits that are not known",
            Self::BadMax => "max_members is 0 or above what this gateway allows",
            Self::Nothing => "the edit names nobody and changes nothing",
            Self::NobodyFound => "none of those named is a member of the group",
            Self::Busy => "too much waits for this group",
            Self::Store(_) => "the store did not take it",
        }
    }

    pub(crate) const fn code(self) -> ErrorCode {
        match self {
            Self::NotFound | Self::NobodyFound => ErrorCode::NOT_FOUND,
            Self::Taken => ErrorCode::CONFLICT,
            Self::NotMember => ErrorCode::NOT_MEMBER,
            Self::MaySend
            | Self::MayAdd
            | Self::MayEditInfo
            | Self::AdminsOnly
            | Self::OwnerOnly
            | Self::OwnerStays
            | Self::BadInvite => ErrorCode::FORBIDDEN,
            Self::Full => ErrorCode::GROUP_FULL,
            Self::Stale => ErrorCode::STALE_EPOCH,
            Self::BadAction
            | Self::BadMember
            | Self::BadRole
            | Self::BadRules
            | Self::BadMax
            | Self::Nothing => ErrorCode::BAD_ARGUMENT,
            Self::Busy => ErrorCode::OVERLOADED,
            Self::Store(_) => ErrorCode::UNAVAILABLE,
        }
    }

    /// What a refusal counts as.
    pub(crate) const fn counter(self) -> Counter {
        match self {
            Self::NotFound | Self::NobodyFound | Self::Taken => Counter::RefusedNotFound,
            Self::NotMember => Counter::RefusedNotMember,
            Self::MaySend
            | Self::MayAdd
            | Self::MayEditInfo
            | Self::AdminsOnly
            | Self::OwnerOnly
            | Self::OwnerStays
            | Self::BadInvite => Counter::RefusedForbidden,
            Self::Full => Counter::RefusedFull,
            Self::Stale => Counter::RefusedStale,
            Self::BadAction
            | Self::BadMember
            | Self::BadRole
            | Self::BadRules
            | Self::BadMax
            | Self::Nothing => Counter::RefusedArgument,
            Self::Busy => Counter::RefusedOverload,
            Self::Store(_) => Counter::RefusedStore,
        }
    }
}
