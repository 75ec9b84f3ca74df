//! What an owner asks: groups, presence, history, settings. Each request has an [`AskId`]; its answer
//! comes as [`crate::Event::Answer`], in one part or several.
//!
//! What changes something for good (groups, contacts, settings, withdrawals) is asked again after the
//! end of a connection, until it is answered. Everything else fails with UNAVAILABLE then, and so
//! does a subscription, which is the connection's own: the owner subscribes again after
//! [`crate::Event::Synced`]. What a server puts off (RATE_LIMITED, OVERLOADED) fails as well: the
//! owner knows whether it still wants it.

use super::{
    Session,
    config::Now,
    conv::Conv,
    event::{AskId, SendError},
    requests::Ask,
};
use portico_wire::{
    Flags, Op, RouteHeader,
    encode::{Encoder, people::put_signal, put_plain, put_routed},
    ids::{ConvSeq, GroupId, MsgId, Seq, UserId},
    limits::{
        CONTACT_EDITS_MAX, CONTACT_NAME_BYTES_MAX, GROUP_INFO_BYTES_MAX, GROUP_INVITE_BYTES_MAX,
        GROUP_MEMBERS_MAX, GROUP_TITLE_BYTES_MAX, PRESENCE_SUBS_MAX,
    },
    message::{
        ClientState,
        group::{GroupCreate, GroupEdit, GroupGet},
        history::{ConversationsGet, HistoryGet, Revoke},
        people::{ContactsEdit, ContactsGet, PresenceSub, Privacy},
    },
};

/// Signals are written while less than this waits for the transport; they would be late anyway.
const SIGNAL_BEHIND_BYTES_MAX: usize = 16_384;

/// Which part of a conversation: at most `limit` entries, from `before` backwards, or with `forward`
/// from `after` onwards. Both are exclusive; 0 is the newest and the oldest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub before: ConvSeq,
    pub after: ConvSeq,
    pub limit: u16,
    pub forward: bool,
}

impl Page {
    /// The newest so many.
    #[must_use]
    pub fn newest(limit: u16) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }
}

impl Session {
    // --- groups

    /// Makes a group of this user, its owner, and the members named. Answered by
    /// [`crate::Answer::Group`]. With a `msg_id` of the owner's the same call may be repeated after a
    /// restart and makes no second group.
    pub fn create_group(
        &mut self,
        now: Now,
        create: &GroupCreate<'_>,
        msg_id: Option<MsgId>,
    ) -> Result<AskId, SendError> {
        if create.members.len() > GROUP_MEMBERS_MAX {
            return Err(SendError::TooMany);
        }
        if create.title.len() > GROUP_TITLE_BYTES_MAX
            || create.sealed_info.len() > GROUP_INFO_BYTES_MAX
        {
            return Err(SendError::TooLong);
        }
        let retry = msg_id.is_some();
        let route = RouteHeader {
            msg_id: msg_id.unwrap_or_else(|| self.new_msg_id(now)),
            ..RouteHeader::default()
        };
        let flags = if retry { Flags::RETRY } else { Flags::NONE };
        let mut frame = Vec::new();
        Encoder::new().group_create(&mut frame, flags, 1, &route, create);
        self.ask(now, Op::GroupCreate, frame, true)
    }

    /// Changes a group that is at `epoch` (0: whatever it is at). Answered by
    /// [`crate::Answer::Group`]; STALE_EPOCH: somebody else was faster, look at it again.
    pub fn edit_group(
        &mut self,
        now: Now,
        group: GroupId,
        epoch: u64,
        edit: &GroupEdit<'_>,
    ) -> Result<AskId, SendError> {
        if edit.members.len() > GROUP_MEMBERS_MAX {
            return Err(SendError::TooMany);
        }
        if edit
            .title
            .is_some_and(|title| title.len() > GROUP_TITLE_BYTES_MAX)
            || edit
                .sealed_info
                .is_some_and(|info| info.len() > GROUP_INFO_BYTES_MAX)
            || edit
                .invite
                .is_some_and(|code| code.len() > GROUP_INVITE_BYTES_MAX)
        {
            return Err(SendError::TooLong);
        }
        let route = RouteHeader {
            seq: Seq(epoch),
            msg_id: self.new_msg_id(now),
            ..route_to(Conv::Group(group))
        };
        let mut frame = Vec::new();
        Encoder::new().group_edit(&mut frame, Flags::NONE, 1, &route, edit);
        self.ask(now, Op::GroupEdit, frame, true)
    }

    /// The group as it is, without its members if it is still at `known_epoch`. Group 0: all of this
    /// user's groups, without members; then [`crate::Answer::Done`] ends the list.
    pub fn group(
        &mut self,
        now: Now,
        group: GroupId,
        known_epoch: u64,
    ) -> Result<AskId, SendError> {
        let mut frame = Vec::new();
        Encoder::new().group_get(&mut frame, 1, &GroupGet { group, known_epoch });
        self.ask(now, Op::GroupGet, frame, false)
    }

    // --- people

    /// Watches some users, and others no longer, on this connection. Answered by
    /// [`crate::Answer::Presence`] with the states of those added; changes come as
    /// [`crate::Event::Presence`].
    pub fn subscribe(
        &mut self,
        now: Now,
        add: &[UserId],
        remove: &[UserId],
    ) -> Result<AskId, SendError> {
        if add.len() > PRESENCE_SUBS_MAX || remove.len() > PRESENCE_SUBS_MAX {
            return Err(SendError::TooMany);
        }
        let sub = PresenceSub {
            add: add.to_vec(),
            remove: remove.to_vec(),
        };
        let mut frame = Vec::new();
        Encoder::new().presence_sub(&mut frame, 1, &sub);
        self.ask(now, Op::PresenceSub, frame, false)
    }

    /// What this client is doing, for those who watch its user. The owner says it again after each
    /// login if it is not in the foreground.
    pub fn set_client_state(&mut self, state: ClientState) {
        if self.phase.is_welcome() {
            let aux = u32::from(state.to_u8());
            put_plain(&mut self.output, Op::ClientState, Flags::NONE, 0, aux);
        }
    }

    /// Tells those who are there that this user is typing (a value of
    /// `portico_wire::frame::signal_kind`), to be shown for `ttl_s` seconds. Written at once or not at
    /// all: `false` when there is no connection, or much waits for it.
    pub fn signal(&mut self, conv: impl Into<Conv>, kind: u8, ttl_s: u32) -> bool {
        if !self.phase.is_welcome() || self.output.len() > SIGNAL_BEHIND_BYTES_MAX {
            return false;
        }
        let route = RouteHeader {
            kind,
            ttl_s,
            ..route_to(conv.into())
        };
        put_signal(&mut self.output, 0, &route);
        true
    }

    /// Changes the list of contacts and of those blocked. Answered by [`crate::Answer::Done`].
    pub fn edit_contacts(&mut self, now: Now, edit: &ContactsEdit<'_>) -> Result<AskId, SendError> {
        if edit.edits.len() > CONTACT_EDITS_MAX {
            return Err(SendError::TooMany);
        }
        let is_long = |name: &[u8]| name.len() > CONTACT_NAME_BYTES_MAX;
        if edit.edits.iter().any(|edit| is_long(edit.sealed_name)) {
            return Err(SendError::TooLong);
        }
        let mut frame = Vec::new();
        Encoder::new().contacts_edit(&mut frame, 1, edit);
        self.ask(now, Op::ContactsEdit, frame, true)
    }

    /// A page of contacts. Answered by [`crate::Answer::Contacts`].
    pub fn contacts(&mut self, now: Now, get: &ContactsGet) -> Result<AskId, SendError> {
        let mut frame = Vec::new();
        Encoder::new().contacts_get(&mut frame, 1, get);
        self.ask(now, Op::ContactsGet, frame, false)
    }

    /// Who may see what. Answered by [`crate::Answer::Done`].
    pub fn set_privacy(&mut self, now: Now, privacy: &Privacy) -> Result<AskId, SendError> {
        let mut frame = Vec::new();
        Encoder::new().privacy_set(&mut frame, 1, privacy);
        self.ask(now, Op::PrivacySet, frame, true)
    }

    /// Answered by [`crate::Answer::Privacy`].
    pub fn privacy(&mut self, now: Now) -> Result<AskId, SendError> {
        let mut frame = Vec::new();
        put_plain(&mut frame, Op::PrivacyGet, Flags::NONE, 1, 0);
        self.ask(now, Op::PrivacyGet, frame, false)
    }

    // --- history

    /// A page of a conversation: [`crate::Answer::Entry`] and its like, newest first or with `forward`
    /// oldest first, then [`crate::Answer::PageEnd`].
    pub fn history(
        &mut self,
        now: Now,
        conv: impl Into<Conv>,
        page: Page,
    ) -> Result<AskId, SendError> {
        let conv = conv.into();
        let get = HistoryGet {
            conv_kind: conv.kind(),
            conv: conv.number(),
            before: page.before,
            after: page.after,
            limit: page.limit,
            forward: page.forward,
        };
        let mut frame = Vec::new();
        Encoder::new().history_get(&mut frame, 1, &get);
        self.ask(now, Op::History, frame, false)
    }

    /// The conversations whose newest message is older than `before` (0: from the newest), newest
    /// first: one [`crate::Answer::Conversation`] each, then [`crate::Answer::Done`].
    pub fn conversations(
        &mut self,
        now: Now,
        before: ConvSeq,
        limit: u16,
    ) -> Result<AskId, SendError> {
        let mut frame = Vec::new();
        Encoder::new().conversations_get(&mut frame, 1, &ConversationsGet { before, limit });
        self.ask(now, Op::ConversationsGet, frame, false)
    }

    /// Deletes a message for everybody. Answered by [`crate::Answer::Stored`].
    pub fn withdraw(
        &mut self,
        now: Now,
        conv: impl Into<Conv>,
        target: &Revoke,
    ) -> Result<AskId, SendError> {
        let route = RouteHeader {
            msg_id: self.new_msg_id(now),
            ..route_to(conv.into())
        };
        let mut encoder = Encoder::new();
        let body = encoder.revoke(target);
        let mut frame = Vec::new();
        let op = Op::Revoke;
        put_routed(&mut frame, op as u8, Flags::NONE, 1, 0, &route, body);
        self.ask(now, op, frame, true)
    }

    fn ask(&mut self, now: Now, op: Op, frame: Vec<u8>, repeats: bool) -> Result<AskId, SendError> {
        let id = AskId(self.random.next());
        self.requests.ask(Ask {
            id,
            op,
            frame: frame.into_boxed_slice(),
            repeats,
        })?;
        self.pump(now, None);
        Ok(id)
    }
}

fn route_to(conv: Conv) -> RouteHeader {
    RouteHeader {
        conv: conv.number(),
        conv_kind: conv.kind(),
        ..RouteHeader::default()
    }
}
