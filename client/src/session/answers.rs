//! What answers a request with a value, and what the server says of groups and people unasked.

use super::{
    Session, bounds,
    config::Now,
    conv::Conv,
    event::{Answer, AskId, Event, Failure, ProtocolFault},
};
use portico_wire::{
    BodyError, ErrorCode, Flags, Frame, Op, RouteHeader,
    frame::{ConvKind, receipt_kind},
    ids::{ConvSeq, GroupId, UserId},
    message::{
        Envelope, ErrorReply,
        group::{Group, GroupEvent},
        history::{Conversation, HistoryEnd, Revoke},
        people::{Contacts, Presence, Privacy},
    },
};

impl Session {
    /// A frame that answers request `ask`.
    pub(super) fn on_answer(
        &mut self,
        now: Now,
        frame: Frame<'_>,
        (ask, asked): (AskId, Op),
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), ProtocolFault> {
        let op = frame.known_op();
        if !op.is_some_and(|op| may_answer(asked, op)) {
            return Err(ProtocolFault::Reply(frame.op()));
        }
        if op == Some(Op::Error)
            && let Ok(error) = ErrorReply::decode(frame.body())
            && error.code == ErrorCode::CLOCK_AHEAD
        {
            self.set_server_clock(now, error.server_us);
        }
        let mut is_last = true;
        let read = read_answer(frame, &mut |answer| {
            is_last = answer.is_last();
            on_event(Event::Answer { ask, answer });
        });
        if read.is_err() {
            // It is an answer, and cannot be read: its owner must not wait for ever.
            is_last = !frame.flags().contains(Flags::MORE);
            if is_last {
                let answer = Answer::Failed(Failure::of(ErrorCode::INTERNAL));
                on_event(Event::Answer { ask, answer });
            }
        }
        if is_last {
            self.requests.answered(frame.corr());
        }
        Ok(())
    }

    /// A change of a group, or a withdrawal: an entry of the inbox as messages are.
    pub(super) fn on_entry(
        &mut self,
        now: Now,
        frame: Frame<'_>,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), ProtocolFault> {
        let Some(route) = frame.route().filter(|route| route.seq.0 != 0) else {
            return Ok(());
        };
        let bounds = bounds(&self.settings);
        self.inbox.arrive(bounds, route.seq, None)?;
        let shown = route.seq > self.inbox.cursor() && show_entry(&route, frame, on_event);
        let stored = !shown || self.settings.auto_ack;
        self.inbox.put_entry(bounds, now.mono_us, route.seq, stored);
        Ok(())
    }

    pub(super) fn on_group_receipt(
        &self,
        route: &RouteHeader,
        at_s: u32,
        on_event: &mut dyn FnMut(Event<'_>),
    ) {
        let read = route.kind == receipt_kind::READ;
        let (group, up_to) = (GroupId(route.conv), route.conv_seq);
        if route.user == self.user {
            if read {
                on_event(Event::GroupReadElsewhere { group, up_to });
            }
            return;
        }
        on_event(Event::GroupReceipt {
            group,
            member: Some(route.user).filter(|user| user.0 != 0),
            reached: route.ttl_s as u16,
            of: (route.ttl_s >> 16) as u16,
            read,
            up_to,
            at_s,
        });
    }
}

pub(super) fn on_signal(frame: Frame<'_>, on_event: &mut dyn FnMut(Event<'_>)) {
    if let Some(route) = frame.route()
        && let Some(conv) = Conv::of(route.conv_kind, route.conv)
    {
        on_event(Event::Signal {
            conv,
            from: route.user,
            kind: route.kind,
            ttl_s: route.ttl_s,
        });
    }
}

/// A push that cannot be read is none: the next one has the state again.
pub(super) fn on_presence(frame: Frame<'_>, on_event: &mut dyn FnMut(Event<'_>)) {
    if let Ok(presence) = Presence::decode(frame.body()) {
        on_event(Event::Presence {
            items: &presence.items,
        });
    }
}

/// `false`: there is nothing that the owner has to store.
fn show_entry(route: &RouteHeader, frame: Frame<'_>, on_event: &mut dyn FnMut(Event<'_>)) -> bool {
    match frame.known_op() {
        Some(Op::GroupEvent) => match GroupEvent::decode(frame.body()) {
            Ok(change) => on_event(Event::GroupChanged {
                seq: route.seq,
                conv_seq: route.conv_seq,
                group: GroupId(route.conv),
                by: route.user,
                by_device: route.dev,
                change: &change,
            }),
            Err(_) => return undecodable(route, on_event),
        },
        _ => {
            let Some(conv) = Conv::of(route.conv_kind, route.conv) else {
                return false;
            };
            match Revoke::decode(frame.body()) {
                Ok(target) => on_event(Event::Withdrawn {
                    seq: route.seq,
                    conv_seq: route.conv_seq,
                    conv,
                    by: route.user,
                    target,
                }),
                Err(_) => return undecodable(route, on_event),
            }
        }
    }
    true
}

fn undecodable(route: &RouteHeader, on_event: &mut dyn FnMut(Event<'_>)) -> bool {
    on_event(Event::Undecodable {
        seq: route.seq,
        from: route.user,
        msg_id: route.msg_id,
    });
    false
}

/// Whether this operation can be an answer to that one.
const fn may_answer(asked: Op, op: Op) -> bool {
    match op {
        Op::Error => true,
        Op::Group => matches!(asked, Op::GroupCreate | Op::GroupEdit | Op::GroupGet),
        Op::Presence => matches!(asked, Op::PresenceSub),
        Op::Deliver | Op::GroupEvent | Op::Revoke | Op::HistoryEnd => {
            matches!(asked, Op::History)
        }
        Op::Conversation => matches!(asked, Op::ConversationsGet),
        Op::Contacts => matches!(asked, Op::ContactsGet),
        Op::Privacy => matches!(asked, Op::PrivacyGet),
        Op::Sent => matches!(asked, Op::Revoke),
        Op::Done => matches!(
            asked,
            Op::GroupGet
                | Op::GroupEdit
                | Op::ConversationsGet
                | Op::ContactsEdit
                | Op::PrivacySet
                | Op::PresenceSub
        ),
        _ => false,
    }
}

fn read_answer(frame: Frame<'_>, on_answer: &mut dyn FnMut(Answer<'_>)) -> Result<(), BodyError> {
    let body = frame.body();
    match frame.known_op() {
        Some(Op::Group) => on_answer(Answer::Group {
            group: &Group::decode(body)?,
            more: frame.flags().contains(Flags::MORE),
        }),
        Some(Op::Presence) => on_answer(Answer::Presence {
            items: &Presence::decode(body)?.items,
        }),
        Some(Op::Contacts) => on_answer(Answer::Contacts(&Contacts::decode(body)?)),
        Some(Op::Privacy) => on_answer(Answer::Privacy(Privacy::decode(body)?)),
        Some(Op::Conversation) => on_answer(Answer::Conversation(Conversation::decode(body)?)),
        Some(Op::HistoryEnd) => {
            let HistoryEnd { more, next } = HistoryEnd::decode(body)?;
            on_answer(Answer::PageEnd { more, next });
        }
        Some(Op::Deliver | Op::GroupEvent | Op::Revoke) => {
            return read_entry(frame, on_answer);
        }
        Some(Op::Sent) => {
            let header = frame.seq_header();
            on_answer(Answer::Stored {
                conv_seq: ConvSeq(header.seq),
                duplicate: header.arg & 1 == 1,
            });
        }
        Some(Op::Done) => on_answer(Answer::Done { count: frame.aux() }),
        Some(Op::Error) => {
            let error = ErrorReply::decode(body)?;
            on_answer(Answer::Failed(Failure {
                code: error.code,
                retry_after_ms: error.retry_after_ms,
                detail: error.detail,
            }));
        }
        _ => return Err(BodyError::Missing),
    }
    Ok(())
}

/// An entry of a page.
fn read_entry(frame: Frame<'_>, on_answer: &mut dyn FnMut(Answer<'_>)) -> Result<(), BodyError> {
    let route = frame.route().ok_or(BodyError::Missing)?;
    let (conv_seq, by): (ConvSeq, UserId) = (route.conv_seq, route.user);
    let body = frame.body();
    match frame.known_op() {
        Some(Op::GroupEvent) => on_answer(Answer::GroupEntry {
            conv_seq,
            by,
            change: &GroupEvent::decode(body)?,
        }),
        Some(Op::Revoke) => on_answer(Answer::WithdrawnEntry {
            conv_seq,
            by,
            target: Revoke::decode(body)?,
        }),
        _ => on_answer(Answer::Entry {
            conv_seq,
            from: by,
            from_device: route.dev,
            msg_id: route.msg_id,
            kind: route.kind,
            envelope: match body {
                [] => None,
                _ => Some(Envelope::decode(body)?),
            },
        }),
    }
    Ok(())
}

/// The group of a message; `None` between two users.
pub(super) fn group_of(route: &RouteHeader) -> Option<GroupId> {
    (route.conv_kind == ConvKind::GROUP).then_some(GroupId(route.conv))
}
