//! What Portico's users ask besides sending messages: groups, subscriptions, pages of history. Each
//! request is remembered until its answer has come, so there are never more than are open.

use super::{Happened, OnEvent};
use crate::{payload::Payload, plan::Crowds};
use portico_client::{
    Answer, AskId, Event, Failure, Now, Page, Session,
    many::{ConnIndex, Many},
};
use portico_wire::{
    ids::{ConvSeq, GroupId, UserId},
    message::group::{GroupAction, GroupCreate, GroupEdit, Member},
};
use rustc_hash::FxHashMap;
use std::rc::Rc;

/// Groups that are being made at the same time.
const MAKING_MAX: usize = 64;

/// What an answer will be about.
#[derive(Debug)]
enum Asked {
    Make { group: u32 },
    Change,
    Watch,
    Page(OpenPage),
}

#[derive(Debug)]
struct OpenPage {
    asked_us: u64,
    peer: UserId,
    last: ConvSeq,
    entries: u64,
    wrong: u64,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Asks {
    run: u64,
    first_user: u64,
    crowds: Option<Rc<Crowds>>,
    /// By number of the plan; 0 until the gateway has made it.
    groups: Vec<GroupId>,
    numbers: FxHashMap<GroupId, u32>,
    /// The next group to be made.
    next: u32,
    making: usize,
    open: FxHashMap<(u32, AskId), Asked>,
}

impl Asks {
    pub(super) fn new(run: u64, first_user: u64, crowds: Option<Rc<Crowds>>) -> Self {
        let groups = crowds.as_ref().map_or(0, |crowds| crowds.len());
        Self {
            run,
            first_user,
            crowds,
            groups: vec![GroupId(0); groups as usize],
            ..Self::default()
        }
    }

    fn user(&self, index: u32) -> UserId {
        UserId(self.first_user + u64::from(index))
    }

    pub(super) fn group(&self, number: u32) -> Option<GroupId> {
        let group = self.groups.get(number as usize).copied()?;
        (group.0 != 0).then_some(group)
    }

    pub(super) fn number_of(&self, group: GroupId) -> Option<u32> {
        self.numbers.get(&group).copied()
    }

    /// Asks for more of the groups; true when all are there.
    pub(super) fn make_groups(&mut self, many: &mut Many) -> bool {
        let Some(crowds) = self.crowds.clone() else {
            return true;
        };
        while self.making < MAKING_MAX && self.next < crowds.len() {
            let group = self.next;
            let members = crowds.members(group);
            let create = GroupCreate {
                members: members[1..].iter().map(|user| self.user(*user)).collect(),
                title: "portico-loadgen",
                max_members: members.len() as u16,
                ..GroupCreate::default()
            };
            let owner = crowds.owner(group);
            let asked = many.with(ConnIndex(owner), |session, now| {
                session.create_group(now, &create, None)
            });
            let Ok(ask) = asked else {
                break;
            };
            self.open.insert((owner, ask), Asked::Make { group });
            self.making += 1;
            self.next += 1;
        }
        self.numbers.len() as u32 == crowds.len()
    }

    /// Removes a member from a group, or adds it again. False: nothing was asked.
    pub(super) fn change(&mut self, many: &mut Many, group: u32, user: u32, add: bool) -> bool {
        let (Some(id), Some(crowds)) = (self.group(group), self.crowds.clone()) else {
            return false;
        };
        let edit = GroupEdit {
            action: if add {
                GroupAction::ADD
            } else {
                GroupAction::REMOVE
            },
            members: vec![Member {
                user: self.user(user),
                ..Member::default()
            }],
            ..GroupEdit::default()
        };
        let owner = crowds.owner(group);
        let asked = many.with(ConnIndex(owner), |session, now| {
            session.edit_group(now, id, 0, &edit)
        });
        asked.is_ok_and(|ask| self.open.insert((owner, ask), Asked::Change).is_none())
    }

    pub(super) fn watch(&mut self, many: &mut Many, conn: u32, users: &[UserId]) -> bool {
        let asked = many.with(ConnIndex(conn), |session, now| {
            session.subscribe(now, users, &[])
        });
        asked.is_ok_and(|ask| self.open.insert((conn, ask), Asked::Watch).is_none())
    }

    pub(super) fn page(&mut self, many: &mut Many, conn: u32, peer: UserId, limit: u16) -> bool {
        let page = |session: &mut Session, now| session.history(now, peer, Page::newest(limit));
        let Ok(ask) = many.with(ConnIndex(conn), page) else {
            return false;
        };
        let page = OpenPage {
            asked_us: many.now().mono_us,
            peer,
            last: ConvSeq(u64::MAX),
            entries: 0,
            wrong: 0,
        };
        self.open.insert((conn, ask), Asked::Page(page));
        true
    }

    /// Tells what an event means; false: it is none of these.
    pub(super) fn event(
        &mut self,
        now: Now,
        conn: u32,
        event: &Event<'_>,
        on: &mut OnEvent<'_>,
    ) -> bool {
        match *event {
            Event::Answer { ask, answer } => self.answer(now, conn, ask, &answer, on),
            Event::GroupChanged {
                group,
                conv_seq,
                change,
                ..
            } => {
                let added = match change.action {
                    GroupAction::ADD => true,
                    GroupAction::REMOVE => false,
                    _ => return true,
                };
                if let Some(group) = self.number_of(group) {
                    for member in &change.members {
                        let user = member.user.0.wrapping_sub(self.first_user) as u32;
                        let changed = Happened::GroupChanged {
                            group,
                            user,
                            added,
                            place: conv_seq,
                        };
                        on(now, conn, changed);
                    }
                }
            }
            Event::Presence { items } => {
                let items = items.len() as u64;
                on(now, conn, Happened::Presence { items });
            }
            Event::Signal { from, .. } => on(now, conn, Happened::Signal { from }),
            _ => return false,
        }
        true
    }

    fn answer(
        &mut self,
        now: Now,
        conn: u32,
        ask: AskId,
        answer: &Answer<'_>,
        on: &mut OnEvent<'_>,
    ) {
        let key = (conn, ask);
        if !answer.is_last() {
            let (run, me) = (self.run, self.user(conn));
            if let (Some(Asked::Page(page)), Answer::Entry { .. }) =
                (self.open.get_mut(&key), answer)
            {
                page.entry(run, me, answer);
            }
            return;
        }
        let Some(asked) = self.open.remove(&key) else {
            return;
        };
        let failure = match answer {
            Answer::Failed(failure) => Some(failure),
            _ => None,
        };
        match (asked, failure) {
            (Asked::Make { group: number }, failure) => {
                self.making -= 1;
                match (answer, failure) {
                    (Answer::Group { group, .. }, None) => {
                        self.groups[number as usize] = group.group;
                        self.numbers.insert(group.group, number);
                    }
                    (_, failure) => {
                        let Failure { code, detail, .. } = failure.copied().unwrap_or(Failure {
                            code: portico_wire::ErrorCode::INTERNAL,
                            retry_after_ms: 0,
                            detail: "no group in the answer",
                        });
                        let code = code.0;
                        on(now, conn, Happened::GroupFailed { code, detail });
                    }
                }
            }
            (Asked::Change, failure) => {
                let ok = failure.is_none();
                on(now, conn, Happened::ChangeAnswered { ok });
            }
            (Asked::Watch, Some(_)) => on(now, conn, Happened::Watching { items: None }),
            (Asked::Watch, None) => {
                let items = match answer {
                    Answer::Presence { items } => items.len() as u64,
                    _ => 0,
                };
                on(now, conn, Happened::Watching { items: Some(items) });
            }
            (Asked::Page(page), failure) => {
                let answered = Happened::Page {
                    us: now.mono_us.saturating_sub(page.asked_us),
                    entries: page.entries,
                    wrong: page.wrong,
                    ok: failure.is_none(),
                };
                on(now, conn, answered);
            }
        }
    }
}

impl OpenPage {
    /// Newest first, of this conversation, as it was sent.
    fn entry(&mut self, run: u64, me: UserId, answer: &Answer<'_>) {
        let Answer::Entry {
            conv_seq,
            envelope,
            from,
            ..
        } = answer
        else {
            return;
        };
        self.entries += 1;
        let body = envelope.map_or(&[][..], |envelope| envelope.body);
        let is_ours = Payload::decode(body).is_ok_and(|payload| {
            let ends = [payload.sender, payload.recipient];
            payload.run == run
                && payload.sender == *from
                && ends.contains(&me)
                && ends.contains(&self.peer)
        });
        self.wrong += u64::from(!is_ours || *conv_seq >= self.last);
        self.last = *conv_seq;
    }
}
