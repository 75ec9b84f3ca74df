//! How far the members of a group have come: kept at its home while the group is active, told to those
//! who are there in one number for all, and to the author of the newest message as so many of so many.
//!
//! Marks are written by the homes of the members, as those of direct conversations are; here they are
//! read once, and then merged with what arrives.

use super::{
    GroupAnswer, GroupError, GroupPurpose,
    ask::{GroupAsk, GroupWish},
    fan_out::conv_of,
    group::Group,
    judge,
    roll::Roll,
};
use crate::{
    conn::Phase,
    mesh::ShardMessage,
    metrics::Counter,
    shard::{Shard, Turn},
    store::{Marks, StoreCmd, StoreError, StoreReply},
    stored::Purpose,
    watermark::merge,
};
use portico_wire::{
    Op, RouteHeader,
    encode::put_routed,
    frame::{ConvKind, Flags, receipt_kind},
    ids::{ConvId, ConvSeq, GroupId, UserId},
    message::ClientState,
};
use std::{mem, sync::Arc};

/// Groups whose members' marks wait for the store, with those who asked for them.
const ASKS_MAX: usize = 64;

/// Have the stored marks been read?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Read {
    #[default]
    No,
    Asked,
    Done,
}

/// One of the two kinds of receipt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    /// All have reached this.
    all: ConvSeq,
    /// So many have reached the newest message.
    newest: ConvSeq,
    count: u16,
}

/// 24 bytes a member.
#[derive(Debug, Default)]
pub(crate) struct GroupMarks {
    /// In the order of the roll.
    marks: Box<[Marks]>,
    read: Read,
    /// Delivered and read.
    told: [Told; 2],
    /// Which of the four things that can be told comes first.
    turn: u8,
    /// It is among those that have news.
    teller: bool,
    asks: Vec<GroupAsk>,
}

/// How far the members of a group have come, on its way to the members of one shard.
#[derive(Debug, PartialEq, Eq)]
pub struct GroupReceipt {
    group: GroupId,
    roll: Arc<Roll>,
    /// One member alone, or everybody who is there.
    to: Option<UserId>,
    kind: u8,
    up_to: ConvSeq,
    at_s: u32,
    reached: u16,
    of: u16,
}

impl GroupMarks {
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.marks)
    }

    /// Somebody waits for them to be read.
    pub(crate) fn is_asked(&self) -> bool {
        !self.asks.is_empty()
    }

    /// The members have changed: each keeps its own.
    pub(crate) fn follow(&mut self, before: Option<&Group>, after: &Group) {
        let mut marks = vec![Marks::default(); after.roll.users().len()];
        if let Some(before) = before {
            for (user, old) in before.roll.users().iter().zip(&self.marks) {
                if let Some(at) = after.roll.place(*user) {
                    marks[at] = *old;
                }
            }
        }
        self.marks = marks.into();
    }

    fn note(&mut self, group: &Group, user: UserId, new: Marks) {
        if let Some(at) = group.roll.place(user)
            && let Some(marks) = self.marks.get_mut(at)
        {
            merge(marks, new);
        }
    }

    /// What a member has reached, of one kind. Nobody owes anything from before they came.
    fn reached(marks: &Marks, since: ConvSeq, kind: u8) -> (ConvSeq, u32) {
        let read = (marks.read, marks.read_at_s);
        let reached = if kind == receipt_kind::READ {
            read
        } else {
            // What was read was delivered.
            read.max((marks.delivered, marks.delivered_at_s))
        };
        reached.max((since, 0))
    }

    fn members<'a>(
        &'a self,
        group: &'a Group,
        kind: u8,
    ) -> impl Iterator<Item = (UserId, ConvSeq, ConvSeq, u32)> + 'a {
        group
            .members()
            .zip(&self.marks)
            .map(move |(member, marks)| {
                let (user, standing) = member;
                let (up_to, at_s) = Self::reached(marks, standing.since(), kind);
                (user, standing.since(), up_to, at_s)
            })
    }

    /// Where the slowest member stands, and since when.
    fn minimum(&self, group: &Group, kind: u8) -> (ConvSeq, u32) {
        let all = self.members(group, kind);
        let least = all.map(|(_, _, up_to, at_s)| (up_to, at_s)).min();
        least.unwrap_or_default()
    }

    /// How many have reached the newest message, of how many that were there.
    fn count(&self, group: &Group, kind: u8, newest: (ConvSeq, UserId)) -> (u16, u16, u32) {
        let (mut reached, mut of, mut latest_s) = (0, 0, 0);
        for (user, since, up_to, at_s) in self.members(group, kind) {
            if user != newest.1 && since <= newest.0 {
                of += 1;
                if up_to >= newest.0 {
                    reached += 1;
                    latest_s = at_s.max(latest_s);
                }
            }
        }
        (reached, of, latest_s)
    }

    /// The next news, if there is any: at most one at a time, each of the four in its turn.
    fn next_news(
        &mut self,
        id: GroupId,
        group: &Group,
        newest: (ConvSeq, UserId),
    ) -> Option<GroupReceipt> {
        let others = (group.standings.len() as u16).saturating_sub(1);
        if others == 0 {
            return None;
        }
        for step in 0..4 {
            let turn = (self.turn + step) % 4;
            let kind_at = usize::from(turn % 2);
            let kind = [receipt_kind::READ, receipt_kind::DELIVERED][kind_at];
            let (all, all_at_s) = self.minimum(group, kind);
            let told = &mut self.told[kind_at];
            let (up_to, at_s, to, reached, of) = if turn < 2 {
                if all <= told.all {
                    continue;
                }
                told.all = all;
                (all, all_at_s, None, others, others)
            } else {
                let known = if told.newest == newest.0 {
                    told.count
                } else {
                    0
                };
                let (reached, of, at_s) = self.count(group, kind, newest);
                // All of them is told in the other way.
                if newest.0 == ConvSeq(0) || reached <= known || reached == of {
                    continue;
                }
                let told = &mut self.told[kind_at];
                (told.newest, told.count) = (newest.0, reached);
                (newest.0, at_s, Some(newest.1), reached, of)
            };
            self.turn = (turn + 1) % 4;
            return Some(GroupReceipt {
                group: id,
                roll: group.roll.clone(),
                to,
                kind,
                up_to,
                at_s,
                reached,
                of,
            });
        }
        None
    }
}

impl Shard {
    /// A member has come further.
    pub(crate) fn note_group_marks(
        &mut self,
        id: GroupId,
        user: UserId,
        new: Marks,
        cx: &mut Turn<'_>,
    ) {
        let Some(slot) = self.groups.slot(id) else {
            return;
        };
        let Some(group) = slot.group.as_ref().filter(|group| group.is_live()) else {
            return;
        };
        if group.standing(user).is_none() {
            return;
        }
        let fresh = slot.marks.is_none();
        let marks = slot.marks.get_or_insert_with(|| {
            let mut marks = Box::<GroupMarks>::default();
            marks.follow(None, group);
            marks
        });
        marks.note(group, user, new);
        let unread = marks.read == Read::No;
        if unread {
            marks.read = Read::Asked;
        }
        if !mem::replace(&mut marks.teller, true) {
            self.groups.tellers.push(id);
            let at = cx.now.mono_us + u64::from(self.config.limits.flush_ms) * 1_000;
            self.groups.tell_us.get_or_insert(at);
        }
        if unread {
            self.read_group_marks(id, cx);
        }
        if fresh {
            self.groups.weigh(id);
        }
    }

    fn read_group_marks(&mut self, id: GroupId, cx: &mut Turn<'_>) {
        let cmd = StoreCmd::Marks { conv: conv_of(id) };
        self.submit(Purpose::Group(GroupPurpose::Marks(id)), cmd, cx);
    }

    pub(crate) fn on_group_marks_read(
        &mut self,
        id: GroupId,
        result: Result<StoreReply, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let Some(slot) = self.groups.slot(id) else {
            return;
        };
        let (Some(group), Some(marks)) = (&slot.group, &mut slot.marks) else {
            return;
        };
        let asks = mem::take(&mut marks.asks);
        let result = match result {
            Ok(StoreReply::Marks(stored)) => {
                marks.read = Read::Done;
                for (user, stored) in stored {
                    marks.note(group, user, stored);
                }
                Ok(())
            }
            Ok(_) => Err(StoreError::Invalid),
            Err(error) => Err(error),
        };
        if result.is_err() {
            // The next mark asks again.
            marks.read = Read::No;
        }
        for ask in asks {
            match result {
                Ok(()) => self.answer_group_receipts(id, ask, cx),
                Err(error) => {
                    let why = GroupError::Store(error);
                    self.give_answer(ask.origin, ask.token, Err(why), cx);
                }
            }
        }
    }

    /// A message was accepted: its author has come as far.
    pub(crate) fn note_group_author(
        &mut self,
        id: GroupId,
        author: UserId,
        conv_seq: ConvSeq,
        cx: &mut Turn<'_>,
    ) {
        if let Some(slot) = self.groups.slot(id) {
            if conv_seq > slot.newest.0 {
                slot.newest = (conv_seq, author);
            }
            if slot.marks.is_some() {
                let at_s = cx.now.wall_s();
                let own = Marks {
                    delivered: conv_seq,
                    delivered_at_s: at_s,
                    read: conv_seq,
                    read_at_s: at_s,
                };
                self.note_group_marks(id, author, own, cx);
            }
        }
    }

    /// News goes out at the pace of receipts: one frame per group, connection and beat.
    pub(crate) fn tell_group_receipts(&mut self, cx: &mut Turn<'_>) {
        if self.groups.tell_us.is_none_or(|at| at > cx.now.mono_us) {
            return;
        }
        let mut tellers = mem::take(&mut self.groups.tellers);
        tellers.retain(|id| self.tell_group(*id, cx));
        if !tellers.is_empty() {
            let at = cx.now.mono_us + u64::from(self.config.limits.flush_ms) * 1_000;
            self.groups.tell_us = Some(at);
        } else {
            self.groups.tell_us = None;
        }
        self.groups.tellers.append(&mut tellers);
    }

    /// False: there is no news of this group any more.
    fn tell_group(&mut self, id: GroupId, cx: &mut Turn<'_>) -> bool {
        let Some(slot) = self.groups.slot(id) else {
            return false;
        };
        let (Some(group), Some(marks)) = (&slot.group, &mut slot.marks) else {
            return false;
        };
        let news = match marks.read {
            Read::Done => marks.next_news(id, group, slot.newest),
            // Until the stored ones are known, who was silent would count as far behind.
            Read::Asked => return true,
            Read::No => None,
        };
        let Some(news) = news else {
            marks.teller = false;
            return false;
        };
        let homes: Vec<_> = match news.to {
            Some(user) => vec![self.home(user)],
            None => news.roll.shards().collect(),
        };
        for home in homes {
            let receipt = Box::new(GroupReceipt {
                roll: news.roll.clone(),
                ..news
            });
            let message = super::GroupMessage::Receipt(receipt);
            self.post(home, ShardMessage::Group(message), cx);
        }
        true
    }

    /// At the home of members.
    pub(crate) fn show_group_receipt(&mut self, receipt: &GroupReceipt, cx: &mut Turn<'_>) {
        let route = summary(
            receipt.group,
            receipt.kind,
            receipt.up_to,
            (receipt.reached, receipt.of),
        );
        let at_s = receipt.at_s;
        let all = receipt.roll.of(self.config.shard);
        let users = match &receipt.to {
            Some(user) => std::slice::from_ref(user),
            None => all,
        };
        for user in users {
            for index in self.chain_list(*user).iter() {
                let conn = &self.conns[index as usize];
                if conn.state == ClientState::Background || conn.phase != Phase::Open {
                    continue;
                }
                if !self.has_room(conn) {
                    self.counters.bump(Counter::ReceiptsDropped);
                    continue;
                }
                let id = self.id_of(index);
                self.write(id, cx, |out, _| {
                    put_routed(out, Op::Receipt as u8, Flags::NONE, 0, at_s, &route, &[]);
                });
                self.counters.bump(Counter::ReceiptsOut);
            }
        }
    }

    /// RECEIPTS_GET at the group's home.
    pub(crate) fn answer_group_receipts(&mut self, id: GroupId, ask: GroupAsk, cx: &mut Turn<'_>) {
        let GroupWish::Receipts { members } = ask.wish else {
            return;
        };
        let Some(slot) = self.groups.slot(id) else {
            return;
        };
        let Some(group) = &slot.group else {
            return;
        };
        if let Err(why) = judge::role(group, ask.user) {
            return self.give_answer(ask.origin, ask.token, Err(why), cx);
        }
        let marks = slot.marks.get_or_insert_with(|| {
            let mut marks = Box::<GroupMarks>::default();
            marks.follow(None, group);
            marks
        });
        if marks.read != Read::Done {
            if marks.asks.len() >= ASKS_MAX {
                return self.give_answer(ask.origin, ask.token, Err(GroupError::Busy), cx);
            }
            marks.asks.push(ask);
            if marks.read == Read::No {
                marks.read = Read::Asked;
                self.read_group_marks(id, cx);
                self.groups.weigh(id);
            }
            return;
        }
        let others = (group.standings.len() as u16).saturating_sub(1);
        let rows = if members {
            let users = group.roll.users().iter().copied();
            users.zip(marks.marks.iter().copied()).collect()
        } else {
            let (delivered, delivered_at_s) = marks.minimum(group, receipt_kind::DELIVERED);
            let (read, read_at_s) = marks.minimum(group, receipt_kind::READ);
            let all = Marks {
                delivered,
                delivered_at_s,
                read,
                read_at_s,
            };
            vec![(UserId(0), all)]
        };
        let answer = GroupAnswer::Marks(rows, others);
        self.give_answer(ask.origin, ask.token, Ok(answer), cx);
    }

    /// The author's own message moves its marks, which are written with the others.
    pub(crate) fn save_own_mark(
        &mut self,
        conv: ConvId,
        author: UserId,
        conv_seq: ConvSeq,
        cx: &mut Turn<'_>,
    ) {
        let at_s = cx.now.wall_s();
        let own = Marks {
            delivered: conv_seq,
            delivered_at_s: at_s,
            read: conv_seq,
            read_at_s: at_s,
        };
        self.save_mark(conv, author, own, cx);
    }
}

/// The header of a receipt about members of a group together: `ttl_s` says how many of how many.
pub(crate) fn summary(
    group: GroupId,
    kind: u8,
    up_to: ConvSeq,
    (reached, of): (u16, u16),
) -> RouteHeader {
    RouteHeader {
        conv: group.0,
        conv_kind: ConvKind::GROUP,
        kind,
        conv_seq: up_to,
        ttl_s: u32::from(of) << 16 | u32::from(reached),
        ..RouteHeader::default()
    }
}
