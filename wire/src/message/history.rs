//! What was said before: pages of a conversation, the list of conversations, and withdrawal.

use crate::{
    error::BodyError,
    frame::ConvKind,
    generated::fb,
    ids::{ConvSeq, DeviceId, MsgId, UserId},
    limits::HISTORY_PAGE_DEFAULT,
    verify::{Scope, root},
};

/// HISTORY: asks for a page of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryGet {
    pub conv_kind: ConvKind,
    pub conv: u64,
    /// Exclusive; 0 = up to the newest.
    pub before: ConvSeq,
    /// Exclusive; 0 = from the oldest.
    pub after: ConvSeq,
    /// 1..=[`HISTORY_PAGE_MAX`](crate::limits::HISTORY_PAGE_MAX); judged by whoever serves it.
    pub limit: u16,
    /// Oldest first, beginning after `after`; else newest first, beginning before `before`.
    pub forward: bool,
}

impl Default for HistoryGet {
    fn default() -> Self {
        Self {
            conv_kind: ConvKind::NONE,
            conv: 0,
            before: ConvSeq(0),
            after: ConvSeq(0),
            limit: HISTORY_PAGE_DEFAULT,
            forward: false,
        }
    }
}

impl HistoryGet {
    pub fn decode(body: &[u8]) -> Result<Self, BodyError> {
        let table = root::<fb::HistoryGet<'_>>(body, Scope::Server)?;
        Ok(Self {
            conv_kind: ConvKind(table.conv_kind().0),
            conv: table.conv(),
            before: ConvSeq(table.before()),
            after: ConvSeq(table.after()),
            limit: table.limit(),
            forward: table.forward(),
        })
    }
}

/// HISTORY_END: the last frame of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistoryEnd {
    /// There may be entries beyond this page; the next one may turn out empty.
    pub more: bool,
    /// Where the page ended: the `before` of the next one, or its `after` going forward.
    pub next: ConvSeq,
}

impl HistoryEnd {
    pub fn decode(body: &[u8]) -> Result<Self, BodyError> {
        let table = root::<fb::HistoryEnd<'_>>(body, Scope::Client)?;
        Ok(Self {
            more: table.more(),
            next: ConvSeq(table.next()),
        })
    }
}

/// CONVERSATIONS_GET: asks for a page of one's conversations, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConversationsGet {
    /// Exclusive, compared with `head_seq`; 0 = from the newest.
    pub before: ConvSeq,
    /// 1..=[`CONVERSATIONS_PAGE_MAX`](crate::limits::CONVERSATIONS_PAGE_MAX); judged by whoever
    /// serves it.
    pub limit: u16,
}

impl Default for ConversationsGet {
    fn default() -> Self {
        Self {
            before: ConvSeq(0),
            limit: HISTORY_PAGE_DEFAULT,
        }
    }
}

impl ConversationsGet {
    pub fn decode(body: &[u8]) -> Result<Self, BodyError> {
        let table = root::<fb::ConversationsGet<'_>>(body, Scope::Server)?;
        Ok(Self {
            before: ConvSeq(table.before()),
            limit: table.limit(),
        })
    }
}

/// One conversation of the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    pub conv_kind: ConvKind,
    pub conv: u64,
    /// Of the newest entry.
    pub head_seq: ConvSeq,
    /// How far the asking user has read; 0 = nothing.
    pub read_seq: ConvSeq,
    /// Messages of others beyond `read_seq`, counted up to
    /// [`UNREAD_MAX`](crate::limits::UNREAD_MAX).
    pub unread: u32,
}

impl Conversation {
    pub fn decode(body: &[u8]) -> Result<Self, BodyError> {
        let table = root::<fb::Conversation<'_>>(body, Scope::Client)?;
        Ok(Self {
            conv_kind: ConvKind(table.conv_kind().0),
            conv: table.conv(),
            head_seq: ConvSeq(table.head_seq()),
            read_seq: ConvSeq(table.read_seq()),
            unread: table.unread(),
        })
    }
}

/// REVOKE: which message goes, named in two ways that must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revoke {
    pub seq: ConvSeq,
    pub user: UserId,
    pub device: DeviceId,
    pub msg_id: MsgId,
}

impl Revoke {
    pub fn decode(body: &[u8]) -> Result<Self, BodyError> {
        let table = root::<fb::Revoke<'_>>(body, Scope::Server)?;
        let id = table.target_id().ok_or(BodyError::Missing)?;
        Ok(Self {
            seq: ConvSeq(table.target_seq()),
            user: UserId(table.target_user()),
            device: DeviceId(table.target_device()),
            msg_id: MsgId::from_parts(id.hi(), id.lo()),
        })
    }
}
