//! What a program asks that blocks: groups, presence, history, settings. See the methods of the same
//! names of [`Session`].

use super::Client;
use crate::{
    owned::{OwnedAnswer, OwnedEvent},
    session::{AskId, Conv, Now, Page, SendError, Session},
};
use portico_wire::{
    ids::{ConvSeq, GroupId, MsgId, UserId},
    message::{
        group::{GroupCreate, GroupEdit},
        history::Revoke,
        people::{ContactsEdit, ContactsGet, Privacy},
    },
};
use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

impl Client {
    /// See [`Session::create_group`].
    pub fn create_group(
        &self,
        create: &GroupCreate<'_>,
        msg_id: Option<MsgId>,
    ) -> Result<AskId, SendError> {
        self.act(|session, now| session.create_group(now, create, msg_id))
    }

    /// See [`Session::edit_group`].
    pub fn edit_group(
        &self,
        group: GroupId,
        epoch: u64,
        edit: &GroupEdit<'_>,
    ) -> Result<AskId, SendError> {
        self.act(|session, now| session.edit_group(now, group, epoch, edit))
    }

    /// See [`Session::group`].
    pub fn group(&self, group: GroupId, known_epoch: u64) -> Result<AskId, SendError> {
        self.act(|session, now| session.group(now, group, known_epoch))
    }

    /// See [`Session::subscribe`].
    pub fn subscribe(&self, add: &[UserId], remove: &[UserId]) -> Result<AskId, SendError> {
        self.act(|session, now| session.subscribe(now, add, remove))
    }

    /// See [`Session::signal`].
    pub fn signal(&self, conv: impl Into<Conv>, kind: u8, ttl_s: u32) -> bool {
        self.act(|session, _| session.signal(conv, kind, ttl_s))
    }

    /// See [`Session::edit_contacts`].
    pub fn edit_contacts(&self, edit: &ContactsEdit<'_>) -> Result<AskId, SendError> {
        self.act(|session, now| session.edit_contacts(now, edit))
    }

    /// See [`Session::contacts`].
    pub fn contacts(&self, get: &ContactsGet) -> Result<AskId, SendError> {
        self.act(|session, now| session.contacts(now, get))
    }

    /// See [`Session::set_privacy`].
    pub fn set_privacy(&self, privacy: &Privacy) -> Result<AskId, SendError> {
        self.act(|session, now| session.set_privacy(now, privacy))
    }

    /// See [`Session::privacy`].
    pub fn privacy(&self) -> Result<AskId, SendError> {
        self.act(Session::privacy)
    }

    /// See [`Session::history`].
    pub fn history(&self, conv: impl Into<Conv>, page: Page) -> Result<AskId, SendError> {
        self.act(|session, now| session.history(now, conv, page))
    }

    /// See [`Session::conversations`].
    pub fn conversations(&self, before: ConvSeq, limit: u16) -> Result<AskId, SendError> {
        self.act(|session, now| session.conversations(now, before, limit))
    }

    /// See [`Session::withdraw`].
    pub fn withdraw(&self, conv: impl Into<Conv>, target: &Revoke) -> Result<AskId, SendError> {
        self.act(|session, now| session.withdraw(now, conv, target))
    }

    /// Anything else that a session can do.
    pub fn with<R>(&self, action: impl FnOnce(&mut Session, Now) -> R) -> R {
        self.act(action)
    }

    /// All parts of the answer to a request, taken out from among the events, which stay in their
    /// order. `None` when the last part has not come within `timeout`; what came before is lost then.
    /// While very many events wait to be taken nothing more is read, and no answer comes.
    pub fn answers(&self, ask: AskId, timeout: Duration) -> Option<Vec<OwnedAnswer>> {
        let deadline = Instant::now() + timeout;
        let mut parts = Vec::new();
        let mut state = self.shared.lock();
        loop {
            let of_ask = |event: &OwnedEvent| match event {
                OwnedEvent::Answer { ask: of, .. } => *of == ask,
                _ => false,
            };
            let was_full = state.events.len() >= super::EVENTS_MAX;
            while let Some(at) = state.events.iter().position(of_ask) {
                if let Some(OwnedEvent::Answer { answer, .. }) = state.events.remove(at) {
                    parts.push(answer);
                }
            }
            if parts.last().is_some_and(OwnedAnswer::is_last) {
                return Some(parts);
            }
            if was_full {
                self.shared.wake();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return None;
            }
            state = self
                .shared
                .arrived
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}
