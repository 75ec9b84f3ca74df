//! Answers with bytes of their own.

use super::OwnedEnvelope;
use crate::session::{Answer, Failure};
use portico_wire::{
    ErrorCode,
    ids::{ConvSeq, DeviceId, GroupId, MsgId, UserId},
    message::{
        group::{Group, GroupAction, GroupEvent, GroupRules, Member},
        history::{Conversation, Revoke},
        people::{Contacts, PresenceItem, Privacy},
    },
};

/// A group with bytes of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnedGroup {
    pub group: GroupId,
    pub epoch: u64,
    /// `None`: as known, or a listing.
    pub members: Option<Vec<Member>>,
    pub title: String,
    pub sealed_info: Vec<u8>,
    pub rules: GroupRules,
    pub created_s: u32,
    pub created_by: UserId,
    pub max_members: u16,
    pub group_type: u8,
    pub invite: Option<String>,
}

impl From<&Group<'_>> for OwnedGroup {
    fn from(group: &Group<'_>) -> Self {
        Self {
            group: group.group,
            epoch: group.epoch,
            members: group.members.clone(),
            title: group.title.to_owned(),
            sealed_info: group.sealed_info.to_vec(),
            rules: group.rules,
            created_s: group.created_s,
            created_by: group.created_by,
            max_members: group.max_members,
            group_type: group.group_type,
            invite: group.invite.map(str::to_owned),
        }
    }
}

/// A change of a group with bytes of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnedGroupChange {
    pub epoch: u64,
    pub action: GroupAction,
    /// The ones that the action is about.
    pub members: Vec<Member>,
    pub title: Option<String>,
    pub sealed_info: Option<Vec<u8>>,
    pub rules: GroupRules,
}

impl From<&GroupEvent<'_>> for OwnedGroupChange {
    fn from(change: &GroupEvent<'_>) -> Self {
        Self {
            epoch: change.epoch,
            action: change.action,
            members: change.members.clone(),
            title: change.title.map(str::to_owned),
            sealed_info: change.sealed_info.map(<[u8]>::to_vec),
            rules: change.rules,
        }
    }
}

/// A contact with bytes of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnedContact {
    pub user: UserId,
    pub sealed_name: Vec<u8>,
    pub added_s: u32,
    pub blocked: bool,
}

/// An [`Answer`] with bytes of its own; the variants are explained there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnedAnswer {
    Done {
        count: u32,
    },
    Group {
        group: OwnedGroup,
        more: bool,
    },
    Presence {
        items: Vec<PresenceItem>,
    },
    Entry {
        conv_seq: ConvSeq,
        from: UserId,
        from_device: DeviceId,
        msg_id: MsgId,
        kind: u8,
        envelope: Option<OwnedEnvelope>,
    },
    GroupEntry {
        conv_seq: ConvSeq,
        by: UserId,
        change: OwnedGroupChange,
    },
    WithdrawnEntry {
        conv_seq: ConvSeq,
        by: UserId,
        target: Revoke,
    },
    PageEnd {
        more: bool,
        next: ConvSeq,
    },
    Conversation(Conversation),
    Contacts {
        contacts: Vec<OwnedContact>,
        more: bool,
    },
    Privacy(Privacy),
    Stored {
        conv_seq: ConvSeq,
        duplicate: bool,
    },
    Failed {
        code: ErrorCode,
        retry_after_ms: u32,
        detail: String,
    },
}

impl OwnedAnswer {
    /// See [`Answer::is_last`].
    #[must_use]
    pub const fn is_last(&self) -> bool {
        match self {
            Self::Entry { .. }
            | Self::GroupEntry { .. }
            | Self::WithdrawnEntry { .. }
            | Self::Conversation(_) => false,
            Self::Group { more, .. } => !*more,
            Self::Done { .. }
            | Self::Presence { .. }
            | Self::PageEnd { .. }
            | Self::Contacts { .. }
            | Self::Privacy(_)
            | Self::Stored { .. }
            | Self::Failed { .. } => true,
        }
    }
}

impl From<Answer<'_>> for OwnedAnswer {
    fn from(answer: Answer<'_>) -> Self {
        match answer {
            Answer::Done { count } => Self::Done { count },
            Answer::Group { group, more } => Self::Group {
                group: group.into(),
                more,
            },
            Answer::Presence { items } => Self::Presence {
                items: items.to_vec(),
            },
            Answer::Entry {
                conv_seq,
                from,
                from_device,
                msg_id,
                kind,
                envelope,
            } => Self::Entry {
                conv_seq,
                from,
                from_device,
                msg_id,
                kind,
                envelope: envelope.map(OwnedEnvelope::from),
            },
            Answer::GroupEntry {
                conv_seq,
                by,
                change,
            } => Self::GroupEntry {
                conv_seq,
                by,
                change: change.into(),
            },
            Answer::WithdrawnEntry {
                conv_seq,
                by,
                target,
            } => Self::WithdrawnEntry {
                conv_seq,
                by,
                target,
            },
            Answer::PageEnd { more, next } => Self::PageEnd { more, next },
            Answer::Conversation(conversation) => Self::Conversation(conversation),
            Answer::Contacts(page) => Self::contacts(page),
            Answer::Privacy(privacy) => Self::Privacy(privacy),
            Answer::Stored {
                conv_seq,
                duplicate,
            } => Self::Stored {
                conv_seq,
                duplicate,
            },
            Answer::Failed(Failure {
                code,
                retry_after_ms,
                detail,
            }) => Self::Failed {
                code,
                retry_after_ms,
                detail: detail.to_owned(),
            },
        }
    }
}

impl OwnedAnswer {
    fn contacts(page: &Contacts<'_>) -> Self {
        let contacts = page.contacts.iter().map(|contact| OwnedContact {
            user: contact.user,
            sealed_name: contact.sealed_name.to_vec(),
            added_s: contact.added_s,
            blocked: contact.blocked,
        });
        Self::Contacts {
            contacts: contacts.collect(),
            more: page.more,
        }
    }
}
