//! Bodies of the operations on groups.

use crate::{
    error::BodyError,
    generated::fb,
    ids::{GroupId, UserId},
    limits::{
        GROUP_INFO_BYTES_MAX, GROUP_INVITE_BYTES_MAX, GROUP_MEMBERS_DEFAULT_MAX, GROUP_MEMBERS_MAX,
        GROUP_TITLE_BYTES_MAX,
    },
    verify::{Scope, root},
};
use std::ops::BitOr;

/// What a member may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Role(pub u8);

impl Role {
    pub const MEMBER: Self = Self(0);
    pub const ADMIN: Self = Self(1);
    /// One in each group.
    pub const OWNER: Self = Self(2);
}

/// What an edit does, and what an event tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupAction(pub u8);

impl GroupAction {
    /// In events only: GROUP_CREATE is an operation of its own.
    pub const CREATE: Self = Self(0);
    pub const ADD: Self = Self(1);
    pub const REMOVE: Self = Self(2);
    pub const LEAVE: Self = Self(3);
    pub const SET_ROLE: Self = Self(4);
    pub const SET_INFO: Self = Self(5);
    pub const SET_RULES: Self = Self(6);
    pub const DELETE: Self = Self(7);
    pub const JOIN: Self = Self(8);
    pub const SET_INVITE: Self = Self(9);
}

/// What only admins and the owner may do; bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupRules(pub u32);

impl GroupRules {
    pub const NONE: Self = Self(0);
    pub const ADMINS_SEND: Self = Self(1);
    pub const ADMINS_ADD: Self = Self(2);
    pub const ADMINS_EDIT_INFO: Self = Self(4);
    /// Every bit this version knows.
    pub const ALL: Self = Self(7);

    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for GroupRules {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// One user of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Member {
    pub user: UserId,
    /// Unix seconds; the server writes it.
    pub joined_s: u32,
    pub role: Role,
}

/// Makes a group. Whoever asks is its owner, and need not be in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupCreate<'a> {
    pub members: Vec<UserId>,
    pub title: &'a str,
    /// Encrypted title, picture, description.
    pub sealed_info: &'a [u8],
    pub rules: GroupRules,
    pub max_members: u16,
    /// The application's own.
    pub group_type: u8,
}

impl Default for GroupCreate<'_> {
    fn default() -> Self {
        Self {
            members: Vec::new(),
            title: "",
            sealed_info: &[],
            rules: GroupRules::NONE,
            max_members: GROUP_MEMBERS_DEFAULT_MAX,
            group_type: 0,
        }
    }
}

impl<'a> GroupCreate<'a> {
    pub fn decode(body: &'a [u8]) -> Result<Self, BodyError> {
        let table = root::<fb::GroupCreate<'_>>(body, Scope::Server)?;
        let members = table.members();
        if members.is_some_and(|members| members.len() > GROUP_MEMBERS_MAX) {
            return Err(BodyError::TooLong);
        }
        Ok(Self {
            members: members.iter().flatten().map(UserId).collect(),
            title: title(table.title())?.unwrap_or_default(),
            sealed_info: info(table.sealed_info().map(|bytes| bytes.bytes()))?.unwrap_or_default(),
            rules: GroupRules(table.rules().bits()),
            max_members: table.max_members(),
            group_type: table.group_type(),
        })
    }
}

/// Changes a group. Which fields count follows from the action.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupEdit<'a> {
    pub action: GroupAction,
    pub members: Vec<Member>,
    pub title: Option<&'a str>,
    pub sealed_info: Option<&'a [u8]>,
    pub rules: GroupRules,
    /// JOIN: the code. SET_INVITE: present asks for a new code, absent takes the old one away.
    pub invite: Option<&'a str>,
}

impl<'a> GroupEdit<'a> {
    pub fn decode(body: &'a [u8]) -> Result<Self, BodyError> {
        let table = root::<fb::GroupEdit<'_>>(body, Scope::Server)?;
        let invite = table.invite();
        if invite.is_some_and(|code| code.len() > GROUP_INVITE_BYTES_MAX) {
            return Err(BodyError::TooLong);
        }
        Ok(Self {
            action: GroupAction(table.action().0),
            members: members(table.members())?.unwrap_or_default(),
            title: title(table.title())?,
            sealed_info: info(table.sealed_info().map(|bytes| bytes.bytes()))?,
            rules: GroupRules(table.rules().bits()),
            invite,
        })
    }
}

/// Asks for one group, or with group 0 for all that the user is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupGet {
    pub group: GroupId,
    /// What the client has; 0 = nothing.
    pub known_epoch: u64,
}

impl GroupGet {
    pub fn decode(body: &[u8]) -> Result<Self, BodyError> {
        let table = root::<fb::GroupGet<'_>>(body, Scope::Server)?;
        Ok(Self {
            group: GroupId(table.group()),
            known_epoch: table.known_epoch(),
        })
    }
}

/// A group as one of its members sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group<'a> {
    pub group: GroupId,
    pub epoch: u64,
    /// Absent: as of `known_epoch`, or a listing.
    pub members: Option<Vec<Member>>,
    pub title: &'a str,
    pub sealed_info: &'a [u8],
    pub rules: GroupRules,
    /// Unix seconds.
    pub created_s: u32,
    pub created_by: UserId,
    pub max_members: u16,
    pub group_type: u8,
    /// For admins only.
    pub invite: Option<&'a str>,
}

impl Default for Group<'_> {
    fn default() -> Self {
        Self {
            group: GroupId(0),
            epoch: 0,
            members: None,
            title: "",
            sealed_info: &[],
            rules: GroupRules::NONE,
            created_s: 0,
            created_by: UserId(0),
            max_members: GROUP_MEMBERS_DEFAULT_MAX,
            group_type: 0,
            invite: None,
        }
    }
}

impl<'a> Group<'a> {
    pub fn decode(body: &'a [u8]) -> Result<Self, BodyError> {
        let table = root::<fb::Group<'_>>(body, Scope::Client)?;
        Ok(Self {
            group: GroupId(table.group()),
            epoch: table.epoch(),
            members: members(table.members())?,
            title: table.title().unwrap_or_default(),
            sealed_info: table
                .sealed_info()
                .map(|bytes| bytes.bytes())
                .unwrap_or_default(),
            rules: GroupRules(table.rules().bits()),
            created_s: table.created_s(),
            created_by: UserId(table.created_by()),
            max_members: table.max_members(),
            group_type: table.group_type(),
            invite: table.invite(),
        })
    }
}

/// What happened to a group; an entry of its conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupEvent<'a> {
    /// The group's from now on.
    pub epoch: u64,
    pub action: GroupAction,
    /// The ones the action is about; CREATE: all.
    pub members: Vec<Member>,
    pub title: Option<&'a str>,
    pub sealed_info: Option<&'a [u8]>,
    pub rules: GroupRules,
    /// CREATE.
    pub max_members: u16,
    pub group_type: u8,
    /// SET_INVITE: there is a code now. The code itself is for admins, who ask with GROUP_GET.
    pub has_invite: bool,
}

impl Default for GroupEvent<'_> {
    fn default() -> Self {
        Self {
            epoch: 0,
            action: GroupAction::CREATE,
            members: Vec::new(),
            title: None,
            sealed_info: None,
            rules: GroupRules::NONE,
            max_members: GROUP_MEMBERS_DEFAULT_MAX,
            group_type: 0,
            has_invite: false,
        }
    }
}

impl<'a> GroupEvent<'a> {
    pub fn decode(body: &'a [u8]) -> Result<Self, BodyError> {
        let table = root::<fb::GroupEvent<'_>>(body, Scope::Client)?;
        Ok(Self {
            epoch: table.epoch(),
            action: GroupAction(table.action().0),
            members: members(table.members())?.unwrap_or_default(),
            title: table.title(),
            sealed_info: table.sealed_info().map(|bytes| bytes.bytes()),
            rules: GroupRules(table.rules().bits()),
            max_members: table.max_members(),
            group_type: table.group_type(),
            has_invite: table.has_invite(),
        })
    }
}

fn members(
    list: Option<flatbuffers::Vector<'_, fb::Member>>,
) -> Result<Option<Vec<Member>>, BodyError> {
    let Some(list) = list else {
        return Ok(None);
    };
    if list.len() > GROUP_MEMBERS_MAX {
        return Err(BodyError::TooLong);
    }
    let member = |member: &fb::Member| Member {
        user: UserId(member.user()),
        joined_s: member.joined_s(),
        role: Role(member.role()),
    };
    Ok(Some(list.iter().map(member).collect()))
}

fn title(text: Option<&str>) -> Result<Option<&str>, BodyError> {
    match text {
        Some(text) if text.len() > GROUP_TITLE_BYTES_MAX => Err(BodyError::TooLong),
        text => Ok(text),
    }
}

fn info(bytes: Option<&[u8]>) -> Result<Option<&[u8]>, BodyError> {
    match bytes {
        Some(bytes) if bytes.len() > GROUP_INFO_BYTES_MAX => Err(BodyError::TooLong),
        bytes => Ok(bytes),
    }
}
