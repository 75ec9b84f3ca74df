//! Operations on groups at the home of the client who asks: checked, handed to the group's home, and
//! answered when it has.

use super::{GroupError, GroupMessage, judge};
use crate::{
    conn::ConnId,
    error::Refusal,
    home::ShardId,
    mesh::ShardMessage,
    metrics::Counter,
    ops::Tokens,
    outgoing::check_msg_id,
    shard::{Shard, Turn},
    store::Marks,
};
use bytes::Bytes;
use portico_wire::{
    BodyError, Flags, Frame, Op,
    encode::put_body,
    frame::ConvKind,
    ids::{DeviceId, GroupId, MsgId, UserId},
    message::group::{GroupCreate, GroupEdit, GroupGet},
};

use std::collections::VecDeque;

/// Beyond the store's own deadline, before a client is told that the outcome is unknown. An edit asks the
/// store several times.
const ASK_GRACE_US: u64 = 2_000_000;

/// An operation on its way to the group's home.
#[derive(Debug, PartialEq, Eq)]
pub struct GroupAsk {
    pub(crate) origin: ShardId,
    /// Comes back in the answer.
    pub(crate) token: u64,
    pub(crate) user: UserId,
    pub(crate) group: GroupId,
    pub(crate) wish: GroupWish,
}

/// What is wanted. Bodies were verified by the shard of the client.
#[derive(Debug, PartialEq, Eq)]
pub enum GroupWish {
    Create {
        device: DeviceId,
        msg_id: MsgId,
        body: Bytes,
    },
    Edit {
        device: DeviceId,
        msg_id: MsgId,
        epoch: u64,
        retry: bool,
        body: Bytes,
    },
    Get {
        known_epoch: u64,
        /// One of a listing: without its members.
        listed: bool,
    },
    Receipts {
        /// All watermarks, not their minimum.
        members: bool,
    },
}

impl GroupWish {
    pub(crate) fn body_bytes(&self) -> usize {
        match self {
            Self::Create { body, .. } | Self::Edit { body, .. } => body.len(),
            Self::Get { .. } | Self::Receipts { .. } => 0,
        }
    }
}

/// What the group's home answers.
#[derive(Debug, PartialEq, Eq)]
pub enum GroupAnswer {
    /// The body of a GROUP.
    Group(Bytes),
    /// How far members have come; under user 0, all of them, and how many there are.
    Marks(Vec<(UserId, Marks)>, u16),
}

impl GroupAnswer {
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Group(body) => body.len(),
            Self::Marks(marks, _) => marks.len() * size_of::<(UserId, Marks)>(),
        }
    }
}

/// Who waits for an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum For {
    /// A request of its own.
    Client { conn: ConnId, corr: u32, op: u8 },
    /// One group of a listing.
    Listing(u64),
    /// One group of a RECEIPTS_GET.
    Query(u64, GroupId),
}

/// Questions to homes of groups that are open, bounded by what connections may have unanswered.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    open: Tokens<For>,
    /// In order, because the time allowed is the same.
    deadlines: VecDeque<(u64, u64)>,
}

impl Asked {
    pub(crate) fn next_us(&self) -> Option<u64> {
        self.deadlines.front().map(|(at, _)| *at)
    }

    #[cfg(feature = "testing")]
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    #[cfg(feature = "testing")]
    pub(crate) fn values(&self) -> impl Iterator<Item = &For> {
        self.open.values()
    }

    pub(crate) fn give_back(&mut self) {
        use crate::pool::GiveBack;
        self.open.give_back();
        self.deadlines.give_back();
    }
}

/// A group's id follows from who makes it with which msg_id: making it again finds it. The numbers are
/// stored, so this function may never change.
pub(crate) fn group_id(user: UserId, device: DeviceId, msg_id: MsgId) -> GroupId {
    let parts = [user.0, u64::from(device.0), msg_id.hi(), msg_id.lo()];
    let mixed = |hash, part: u64| crate::home::spread(hash ^ part);
    let id = parts.into_iter().fold(0x6f17_0b5a_94c3_d2e8, mixed);
    // 0 asks for all groups, and the greatest number names nobody.
    GroupId(id.clamp(1, u64::MAX - 1))
}

impl Shard {
    pub(crate) fn on_group_create(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let (Some(route), Some(conn)) = (frame.route(), self.conn(id)) else {
            return;
        };
        let (user, device) = (conn.user, conn.device);
        let wish = match GroupCreate::decode(frame.body()) {
            Ok(wish) => wish,
            Err(error) => return self.on_bad_group_body(id, frame, error, cx),
        };
        let max = self.config.limits.group_members_max;
        let checked = check_msg_id(route.msg_id, cx.now.wall_us / 1_000).and_then(|()| {
            // What is wrong in itself needs no home.
            judge::create(user, &wish, max).map_err(Refusal::from)
        });
        if let Err(why) = checked {
            return self.refuse(id, frame.is_request(), frame.corr(), frame.op(), why, cx);
        }
        let group = group_id(user, device, route.msg_id);
        let wish = GroupWish::Create {
            device,
            msg_id: route.msg_id,
            body: Bytes::copy_from_slice(frame.body()),
        };
        self.ask_group(id, frame, group, wish, cx);
    }

    pub(crate) fn on_group_edit(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let (Some(route), Some(conn)) = (frame.route(), self.conn(id)) else {
            return;
        };
        let device = conn.device;
        if let Err(error) = GroupEdit::decode(frame.body()) {
            return self.on_bad_group_body(id, frame, error, cx);
        }
        let named = if route.conv_kind == ConvKind::GROUP && route.conv != 0 {
            Ok(())
        } else {
            Err(Refusal::Group(GroupError::NotFound))
        };
        let wall_ms = cx.now.wall_us / 1_000;
        if let Err(why) = named.and_then(|()| check_msg_id(route.msg_id, wall_ms)) {
            return self.refuse(id, frame.is_request(), frame.corr(), frame.op(), why, cx);
        }
        let wish = GroupWish::Edit {
            device,
            msg_id: route.msg_id,
            epoch: route.seq.0,
            retry: frame.flags().contains(Flags::RETRY),
            body: Bytes::copy_from_slice(frame.body()),
        };
        self.ask_group(id, frame, GroupId(route.conv), wish, cx);
    }

    pub(crate) fn on_group_get(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let get = match GroupGet::decode(frame.body()) {
            Ok(get) => get,
            Err(error) => return self.on_bad_group_body(id, frame, error, cx),
        };
        if !frame.is_request() {
            return;
        }
        if get.group == GroupId(0) {
            return self.list_groups(id, frame, cx);
        }
        let wish = GroupWish::Get {
            known_epoch: get.known_epoch,
            listed: false,
        };
        self.ask_group(id, frame, get.group, wish, cx);
    }

    fn on_bad_group_body(
        &mut self,
        id: ConnId,
        frame: Frame<'_>,
        error: BodyError,
        cx: &mut Turn<'_>,
    ) {
        match error {
            BodyError::TooLong => {
                let why = Refusal::GroupTooLarge;
                self.refuse(id, frame.is_request(), frame.corr(), frame.op(), why, cx);
            }
            BodyError::Malformed | BodyError::Missing => self.on_malformed(id, frame, cx),
        }
    }

    /// May this connection ask for one thing more?
    pub(crate) fn may_ask(&self, id: ConnId) -> Result<(), Refusal> {
        let busy = self
            .conn(id)
            .is_none_or(|conn| u32::from(conn.requests) >= self.config.limits.requests_max);
        if busy {
            Err(Refusal::TooManyRequests)
        } else if self.is_full() {
            Err(Refusal::Overloaded)
        } else {
            Ok(())
        }
    }

    fn ask_group(
        &mut self,
        id: ConnId,
        frame: Frame<'_>,
        group: GroupId,
        wish: GroupWish,
        cx: &mut Turn<'_>,
    ) {
        if let Err(why) = self.may_ask(id) {
            return self.refuse(id, frame.is_request(), frame.corr(), frame.op(), why, cx);
        }
        let Some(conn) = self.conn_mut(id) else {
            return;
        };
        conn.requests += 1;
        let user = conn.user;
        let corr = if frame.is_request() { frame.corr() } else { 0 };
        let op = frame.op();
        let asker = For::Client { conn: id, corr, op };
        self.ask_home(asker, user, group, wish, cx);
    }

    /// The answer comes to [`Self::on_group_answer`], in time or not at all.
    pub(crate) fn ask_home(
        &mut self,
        asker: For,
        user: UserId,
        group: GroupId,
        wish: GroupWish,
        cx: &mut Turn<'_>,
    ) {
        let token = self.asked.open.insert(asker);
        let patience_us = u64::from(self.config.limits.store_timeout_ms) * 1_000 + ASK_GRACE_US;
        let deadline = (cx.now.mono_us + patience_us, token);
        self.asked.deadlines.push_back(deadline);
        let ask = GroupAsk {
            origin: self.config.shard,
            token,
            user,
            group,
            wish,
        };
        let message = ShardMessage::Group(GroupMessage::Ask(Box::new(ask)));
        self.post(self.group_home(group), message, cx);
    }

    pub(crate) fn give_answer(
        &mut self,
        origin: ShardId,
        token: u64,
        answer: Result<GroupAnswer, GroupError>,
        cx: &mut Turn<'_>,
    ) {
        let answer = Box::new(answer);
        let message = GroupMessage::Answer { token, answer };
        self.post(origin, ShardMessage::Group(message), cx);
    }

    pub(crate) fn on_group_answer(
        &mut self,
        token: u64,
        answer: Result<GroupAnswer, GroupError>,
        cx: &mut Turn<'_>,
    ) {
        // Its time may be over.
        if let Some(asker) = self.asked.open.remove(token) {
            self.pass_answer(asker, answer.map_err(Refusal::from), cx);
        }
        while let Some((_, token)) = self.asked.deadlines.front()
            && self.asked.open.get(*token).is_none()
        {
            self.asked.deadlines.pop_front();
        }
        // Behind a question that takes long, those of the answered ones pile up.
        if self.asked.deadlines.len() > 2 * self.asked.open.len() + DEADLINES_SLACK {
            let open = &self.asked.open;
            self.asked
                .deadlines
                .retain(|(_, token)| open.get(*token).is_some());
        }
    }

    fn pass_answer(&mut self, asker: For, answer: Result<GroupAnswer, Refusal>, cx: &mut Turn<'_>) {
        match asker {
            For::Client { conn, corr, op } => {
                self.release_request(conn, cx);
                match answer {
                    Ok(GroupAnswer::Group(body)) if corr != 0 => {
                        let op = Op::Group as u8;
                        self.write(conn, cx, |out, _| {
                            put_body(out, op, Flags::REPLY, corr, 0, &body);
                        });
                    }
                    Ok(_) => {}
                    Err(why) => self.refuse(conn, corr != 0, corr, op, why, cx),
                }
            }
            For::Listing(listing) => self.on_listed_group(listing, answer, cx),
            For::Query(query, group) => self.on_group_marks_told(query, group, answer, cx),
        }
    }

    pub(crate) fn expire_asks(&mut self, cx: &mut Turn<'_>) {
        while let Some(&(at, token)) = self.asked.deadlines.front()
            && at <= cx.now.mono_us
        {
            self.asked.deadlines.pop_front();
            if let Some(asker) = self.asked.open.remove(token) {
                self.pass_answer(asker, Err(Refusal::TimedOut), cx);
            }
        }
    }

    /// At the group's home.
    pub(crate) fn answer_group_ask(&mut self, id: GroupId, ask: GroupAsk, cx: &mut Turn<'_>) {
        match ask.wish {
            GroupWish::Create { .. } | GroupWish::Edit { .. } => self.begin_edit(id, ask, cx),
            GroupWish::Get {
                known_epoch,
                listed,
            } => {
                let Some(group) = self.groups.get(id) else {
                    return;
                };
                let known = listed || known_epoch == group.epoch;
                let answer = judge::role(group, ask.user).map(|_| !known);
                let answer = answer.map(|members| self.group_body(id, ask.user, members));
                self.give_answer(ask.origin, ask.token, answer, cx);
            }
            GroupWish::Receipts { .. } => self.answer_group_receipts(id, ask, cx),
        }
        self.counters.bump(Counter::GroupRequests);
    }

    pub(crate) fn group_body(&mut self, id: GroupId, user: UserId, members: bool) -> GroupAnswer {
        let Some(group) = self.groups.get(id) else {
            return GroupAnswer::Group(Bytes::new());
        };
        let body = self.encoder.group_body(&group.shown_to(id, user, members));
        GroupAnswer::Group(Bytes::copy_from_slice(body))
    }
}

/// Old deadlines that are not worth a look.
const DEADLINES_SLACK: usize = 64;
