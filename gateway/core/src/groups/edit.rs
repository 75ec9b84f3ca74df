//! An edit of a group at its home: judged, appended to the conversation, then put into the records.

use super::{
    GroupError, GroupPurpose,
    ask::{GroupAsk, GroupWish},
    fan_out::{Retry, Stage, conv_of, hearers},
    group::Group,
    invite, judge, record,
};
use crate::{
    home::ShardId,
    metrics::Counter,
    shard::{Shard, Turn},
    store::{Entry, Expect, RecordCmd, StoreCmd, StoreError, StoreReply},
    stored::Purpose,
};
use bytes::Bytes;
use portico_wire::{
    Op,
    ids::{ConvSeq, DeviceId, GroupId, MsgId, UserId},
    limits::MSG_ID_BEHIND_MAX_MS,
    message::group::{GroupCreate, GroupEdit, GroupEvent},
};
use std::sync::Arc;

/// Who waits for an edit: where from, under which token, and who it is.
type Asker = (ShardId, u64, UserId);

/// The edit that a group is busy with.
#[derive(Debug)]
pub(crate) enum Edit {
    /// It may have been accepted before: the conversation is searched.
    Finding(Box<GroupAsk>),
    /// The entry of a marker is read.
    Reopening(ConvSeq),
    /// Its event is on its way to the store, and then its records.
    Writing(Box<Writing>),
}

#[derive(Debug)]
pub(crate) struct Writing {
    /// `None`: it was found at start.
    asker: Option<Asker>,
    fan_out: u64,
    next: Group,
    /// Records that are not written.
    left: usize,
    failed: Option<StoreError>,
}

/// Who makes an event, with what.
#[derive(Clone, Copy, Debug)]
struct Author {
    user: UserId,
    device: DeviceId,
    msg_id: MsgId,
}

impl Shard {
    pub(crate) fn begin_edit(&mut self, id: GroupId, ask: GroupAsk, cx: &mut Turn<'_>) {
        if let GroupWish::Edit {
            retry: true,
            device,
            msg_id,
            ..
        } = ask.wish
        {
            let dated_ms = msg_id.unix_ms().unwrap_or(0);
            let since_ms = dated_ms.saturating_sub(MSG_ID_BEHIND_MAX_MS);
            let cmd = StoreCmd::Find {
                conv: conv_of(id),
                since: ConvSeq(since_ms * 1_000),
                sender: ask.user,
                device,
                msg_ids: vec![msg_id],
            };
            self.set_edit(id, Some(Edit::Finding(Box::new(ask))));
            return self.submit(Purpose::Group(GroupPurpose::Find(id)), cmd, cx);
        }
        self.judge_edit(id, &ask, cx);
    }

    pub(crate) fn on_edit_found(
        &mut self,
        id: GroupId,
        result: Result<StoreReply, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let work = self.groups.work(id);
        let Some(Edit::Finding(ask)) = work.and_then(|work| work.edit.take()) else {
            return;
        };
        match result {
            Ok(StoreReply::Found(found)) if found.is_empty() => self.judge_edit(id, &ask, cx),
            Ok(StoreReply::Found(_)) => {
                self.counters.bump(Counter::Duplicates);
                let answer = self.group_body(id, ask.user, true);
                self.give_answer(ask.origin, ask.token, Ok(answer), cx);
            }
            Ok(_) => {
                let why = GroupError::Store(StoreError::Invalid);
                self.give_answer(ask.origin, ask.token, Err(why), cx);
            }
            Err(error) => {
                let why = GroupError::Store(error);
                self.give_answer(ask.origin, ask.token, Err(why), cx);
            }
        }
        self.run_waiting(id, cx);
    }

    fn judge_edit(&mut self, id: GroupId, ask: &GroupAsk, cx: &mut Turn<'_>) {
        let asker = (ask.origin, ask.token, ask.user);
        let judged = match self.has_room_for_fan_out(ask.wish.body_bytes()) {
            Ok(()) => self.judged(id, ask),
            Err(why) => Err(why),
        };
        match judged {
            Ok(Some((author, event))) => self.append_event(id, asker, author, event, cx),
            Ok(None) => {
                let answer = self.group_body(id, ask.user, true);
                self.give_answer(ask.origin, ask.token, Ok(answer), cx);
            }
            Err(why) => self.give_answer(ask.origin, ask.token, Err(why), cx),
        }
    }

    fn judged<'a>(
        &self,
        id: GroupId,
        ask: &'a GroupAsk,
    ) -> Result<Option<(Author, GroupEvent<'a>)>, GroupError> {
        let group = self.groups.get(id).ok_or(GroupError::NotFound)?;
        let user = ask.user;
        let author = |device, msg_id| Author {
            user,
            device,
            msg_id,
        };
        match &ask.wish {
            GroupWish::Create {
                device,
                msg_id,
                body,
            } => {
                if group.deleted {
                    return Err(GroupError::NotFound);
                }
                if group.epoch != 0 {
                    // Made before, by this very request; or the id of somebody else's.
                    let own = group.created_by == user;
                    return if own {
                        Ok(None)
                    } else {
                        Err(GroupError::Taken)
                    };
                }
                let wish = GroupCreate::decode(body).map_err(|_| GroupError::BadAction)?;
                let max = self.config.limits.group_members_max;
                let event = judge::create(user, &wish, max)?;
                Ok(Some((author(*device, *msg_id), event)))
            }
            GroupWish::Edit {
                device,
                msg_id,
                epoch,
                body,
                ..
            } => {
                let wish = GroupEdit::decode(body).map_err(|_| GroupError::BadAction)?;
                let event = judge::edit(group, user, *epoch, &wish)?;
                Ok(event.map(|event| (author(*device, *msg_id), event)))
            }
            GroupWish::Get { .. } | GroupWish::Receipts { .. } => Err(GroupError::BadAction),
        }
    }

    fn append_event(
        &mut self,
        id: GroupId,
        asker: Asker,
        author: Author,
        mut event: GroupEvent<'_>,
        cx: &mut Turn<'_>,
    ) {
        let conv_seq = ConvSeq(self.seq.next(cx.now.wall_us));
        event.epoch = conv_seq.0;
        for member in &mut event.members {
            member.joined_s = self.joined_s(id, member.user, conv_seq);
        }
        let entry = Entry {
            conv: conv_of(id),
            conv_seq,
            sender: author.user,
            device: author.device,
            msg_id: author.msg_id,
            op: Op::GroupEvent as u8,
            kind: 0,
            flags: 0,
            ttl_s: 0,
            body: Bytes::copy_from_slice(self.encoder.group_event(&event)),
        };
        let Some((next, roll)) = self.after_event(id, author.user, &event) else {
            return;
        };
        let fan_out = self.append_to_group(id, entry, roll, None, cx);
        self.set_edit(id, Some(writing(Some(asker), fan_out, next)));
    }

    fn joined_s(&self, id: GroupId, user: UserId, now: ConvSeq) -> u32 {
        let group = self.groups.get(id);
        let standing = group.and_then(|group| group.standing(user));
        let since = standing.map_or(now, |standing| standing.since());
        (since.0 / 1_000_000) as u32
    }

    /// The group after an event, and who hears of it.
    fn after_event(
        &self,
        id: GroupId,
        actor: UserId,
        event: &GroupEvent<'_>,
    ) -> Option<(Group, Arc<super::Roll>)> {
        let shards = self.config.shards;
        let group = self.groups.get(id)?;
        let code = if event.has_invite {
            invite::code(self.config.invite_key, id, event.epoch)
        } else {
            String::new()
        };
        let next = group.after(actor, ConvSeq(event.epoch), event, &code, shards);
        let roll = hearers(group, &next, shards);
        Some((next, roll))
    }

    fn set_edit(&mut self, id: GroupId, edit: Option<Edit>) {
        if let Some(work) = self.groups.work(id) {
            work.edit = edit;
        }
    }

    /// The event is durable: the edit is accepted, and becomes what everybody reads.
    pub(crate) fn on_edit_appended(&mut self, id: GroupId, fan_out: u64, cx: &mut Turn<'_>) {
        let Some(group) = self.groups.get(id) else {
            return;
        };
        let expect = if group.epoch == 0 {
            Expect::Absent
        } else {
            Expect::Version(group.epoch)
        };
        let Some(work) = self.groups.work(id) else {
            return;
        };
        let Some(Edit::Writing(writing)) = &work.edit else {
            return;
        };
        if writing.fan_out != fan_out {
            return;
        }
        let next = &writing.next;
        let record = RecordCmd::Put {
            table: record::GROUPS,
            key: record::group_key(id),
            value: record::write(next),
            expect,
            version: next.epoch,
        };
        let mut cmds = vec![record];
        let (version, roll) = (next.epoch, next.roll.clone());
        let Some(group) = self.groups.get(id) else {
            return;
        };
        // The lists of those who came and those who went.
        for user in roll.users() {
            if group.standing(*user).is_none() {
                cmds.push(RecordCmd::Put {
                    table: record::MEMBERSHIPS,
                    key: record::membership_key(*user, id),
                    value: record::membership_value(),
                    expect: Expect::Any,
                    version,
                });
            }
        }
        for user in group.roll.users() {
            if roll.place(*user).is_none() {
                cmds.push(RecordCmd::Delete {
                    table: record::MEMBERSHIPS,
                    key: record::membership_key(*user, id),
                    expect: Expect::Any,
                });
            }
        }
        if let Some(work) = self.groups.work(id)
            && let Some(Edit::Writing(writing)) = &mut work.edit
        {
            writing.left = cmds.len();
        }
        for cmd in cmds {
            self.write_group_record(id, cmd, cx);
        }
    }

    pub(crate) fn write_group_record(&mut self, id: GroupId, cmd: RecordCmd, cx: &mut Turn<'_>) {
        let purpose = Purpose::Group(GroupPurpose::Write(id, Box::new(cmd.clone())));
        self.submit(purpose, StoreCmd::Record(cmd), cx);
    }

    pub(crate) fn on_group_written(
        &mut self,
        id: GroupId,
        cmd: RecordCmd,
        result: Result<(), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        if let Err(StoreError::Overloaded { .. } | StoreError::Unavailable | StoreError::Unknown) =
            result
        {
            return self.retry_group(Retry::Write(id, Box::new(cmd)), cx);
        }
        let Some(work) = self.groups.work(id) else {
            return;
        };
        let Some(Edit::Writing(writing)) = &mut work.edit else {
            return;
        };
        writing.left -= 1;
        if let Err(error) = result {
            writing.failed = Some(error);
        }
        if writing.left > 0 {
            return;
        }
        let Some(Edit::Writing(writing)) = work.edit.take() else {
            return;
        };
        self.finish_edit(id, *writing, cx);
    }

    fn finish_edit(&mut self, id: GroupId, writing: Writing, cx: &mut Turn<'_>) {
        let Writing {
            asker,
            fan_out,
            next,
            failed,
            ..
        } = writing;
        if let Some(error) = failed {
            // It stands in the conversation, and the marker brings it into the record at the next start.
            self.set_stage(fan_out, Stage::Gone);
            self.answer_edit(id, asker, Err(GroupError::Store(error)), cx);
        } else {
            self.groups.put(id, next);
            self.set_stage(fan_out, Stage::Ready);
            self.counters.bump(Counter::GroupEdits);
            self.answer_edit(id, asker, Ok(()), cx);
        }
        self.release_flights(id, cx);
        self.run_waiting(id, cx);
    }

    fn answer_edit(
        &mut self,
        id: GroupId,
        asker: Option<Asker>,
        result: Result<(), GroupError>,
        cx: &mut Turn<'_>,
    ) {
        if let Some((origin, token, user)) = asker {
            let answer = result.map(|()| self.group_body(id, user, true));
            self.give_answer(origin, token, answer, cx);
        }
        if asker.is_none() {
            self.groups.reopening = self.groups.reopening.saturating_sub(1);
        }
    }

    /// The event could not be written, for certain: nothing has happened.
    pub(crate) fn on_edit_failed(
        &mut self,
        id: GroupId,
        fan_out: u64,
        error: StoreError,
        cx: &mut Turn<'_>,
    ) {
        let work = self.groups.work(id);
        let Some(Edit::Writing(writing)) = work.and_then(|work| work.edit.take()) else {
            return;
        };
        self.set_stage(fan_out, Stage::Gone);
        self.answer_edit(id, writing.asker, Err(GroupError::Store(error)), cx);
        self.release_flights(id, cx);
        self.run_waiting(id, cx);
    }

    /// An entry whose marker was found at start: its event may not be in the record yet.
    pub(crate) fn resume_entry(&mut self, id: GroupId, entry: Entry, cx: &mut Turn<'_>) {
        let shards = self.config.shards;
        let Some(group) = self.groups.get(id) else {
            return;
        };
        let newer = entry.op == Op::GroupEvent as u8 && entry.conv_seq.0 > group.epoch;
        let event = newer
            .then(|| GroupEvent::decode(&entry.body).ok())
            .flatten();
        if let Some(event) = event
            && let Some((next, roll)) = self.after_event(id, entry.sender, &event)
        {
            let fan_out = self.begin_fan_out(id, entry.clone(), roll, None);
            self.set_edit(id, Some(writing(None, fan_out, next)));
            return self.on_edit_appended(id, fan_out, cx);
        }
        let roll = group.roll_at(entry.conv_seq, shards);
        let fan_out = self.begin_fan_out(id, entry, roll, None);
        self.set_stage(fan_out, Stage::Ready);
        self.groups.reopening = self.groups.reopening.saturating_sub(1);
        self.release_flights(id, cx);
        self.run_waiting(id, cx);
    }
}

fn writing(asker: Option<Asker>, fan_out: u64, next: Group) -> Edit {
    Edit::Writing(Box::new(Writing {
        asker,
        fan_out,
        next,
        left: 0,
        failed: None,
    }))
}
