//! A message to a group at the group's home: accepted, stored, and sent to the homes of the members.

use super::{GroupError, GroupMessage, GroupPurpose, RETRY_US, group::Group, judge, roll::Roll};
use crate::{
    error::Refusal,
    home::ShardId,
    mesh::ShardMessage,
    metrics::Counter,
    outgoing::Draft,
    shard::{Shard, Turn},
    store::{Entry, RecordCmd, StoreCmd, StoreError},
    stored::Purpose,
};
use portico_wire::ids::{ConvId, ConvSeq, GroupId};
use std::sync::Arc;

/// The part of `Limits::store_bytes_max` that bodies on their way to members may take.
pub(crate) const FAN_OUT_ONE_IN: usize = 16;

/// From the sender's home to the group's.
#[derive(Debug, PartialEq, Eq)]
pub struct GroupSend {
    pub origin: ShardId,
    /// Comes back in the answer.
    pub token: u64,
    pub draft: Draft,
}

/// An entry and who gets it, shared by all shards that it goes to.
#[derive(Debug, PartialEq, Eq)]
pub struct Spread {
    pub(crate) entry: Entry,
    pub(crate) roll: Arc<Roll>,
}

/// How far an entry has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It is not durable, or its group's record is not.
    Pending,
    /// It may go to the members when all before it have gone.
    Ready,
    /// It will never exist.
    Gone,
    /// It is on its way to so many shards.
    Out(u16),
    /// They all have it: the marker goes.
    Ending,
}

/// A message or an event of a group from its number to the end of its marker.
#[derive(Debug)]
pub(crate) struct FanOut {
    group: GroupId,
    spread: Arc<Spread>,
    stage: Stage,
    /// Who waits for the fate of a message.
    asker: Option<(ShardId, u64)>,
    /// Some members did not get it: the next start tries again.
    lost: bool,
}

/// What is tried again after a failure of the store.
#[derive(Debug)]
pub(crate) enum Retry {
    /// It may be there or not: written again, it is there once.
    Append(u64),
    End(u64),
    Write(GroupId, Box<RecordCmd>),
    Reopen(GroupId, ConvSeq),
}

impl Shard {
    /// A message of a user of this shard is new, or is said to be.
    pub(crate) fn send_to_group(&mut self, token: u64, draft: Draft, cx: &mut Turn<'_>) {
        let home = crate::home::conv_home(draft.conv, self.config.shards);
        let send = Box::new(GroupSend {
            origin: self.config.shard,
            token,
            draft,
        });
        self.post(home, ShardMessage::Group(GroupMessage::Send(send)), cx);
    }

    /// At the group's home: may the sender, and is there room?
    pub(crate) fn accept_group_send(&mut self, id: GroupId, send: GroupSend, cx: &mut Turn<'_>) {
        let GroupSend {
            origin,
            token,
            draft,
        } = send;
        let Some(group) = self.groups.get(id) else {
            return;
        };
        let roll = group.roll.clone();
        let judged = judge::send(group, draft.sender, draft.epoch);
        let judged = judged.and_then(|()| self.has_room_for_fan_out(draft.body.len()));
        if let Err(why) = judged {
            return self.answer_group_send(origin, token, Err(why), cx);
        }
        let conv_seq = ConvSeq(self.seq.next(cx.now.wall_us));
        let entry = draft.entry(conv_seq);
        self.append_to_group(id, entry, roll, Some((origin, token)), cx);
    }

    pub(crate) fn has_room_for_fan_out(&self, body_bytes: usize) -> Result<(), GroupError> {
        let limits = &self.config.limits;
        // One of any size goes.
        let bytes = self.groups.fan_out_bytes;
        let crowded = bytes > 0 && bytes + body_bytes > limits.store_bytes_max / FAN_OUT_ONE_IN;
        let full =
            crowded || self.is_store_full() || self.groups.fan_outs.len() >= limits.fan_outs_max;
        if full { Err(GroupError::Busy) } else { Ok(()) }
    }

    /// Writes an entry with its marker. It goes to the members in its turn.
    pub(crate) fn append_to_group(
        &mut self,
        id: GroupId,
        entry: Entry,
        roll: Arc<Roll>,
        asker: Option<(ShardId, u64)>,
        cx: &mut Turn<'_>,
    ) -> u64 {
        let token = self.begin_fan_out(id, entry.clone(), roll, asker);
        let purpose = Purpose::Group(GroupPurpose::Append(token));
        self.submit(purpose, StoreCmd::AppendFanOut { entry }, cx);
        token
    }

    /// An entry takes its place among those that go to the members.
    pub(crate) fn begin_fan_out(
        &mut self,
        id: GroupId,
        entry: Entry,
        roll: Arc<Roll>,
        asker: Option<(ShardId, u64)>,
    ) -> u64 {
        self.groups.fan_out_bytes += entry.body.len();
        let token = self.groups.fan_outs.insert(FanOut {
            group: id,
            spread: Arc::new(Spread { entry, roll }),
            stage: Stage::Pending,
            asker,
            lost: false,
        });
        if let Some(work) = self.groups.work(id) {
            work.flights.push_back(token);
        }
        token
    }

    pub(crate) fn on_group_appended(
        &mut self,
        token: u64,
        result: Result<(), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let Some(fan_out) = self.groups.fan_outs.get_mut(token) else {
            return;
        };
        let (id, conv_seq) = (fan_out.group, fan_out.spread.entry.conv_seq);
        let (author, is_message) = (fan_out.spread.entry.sender, fan_out.asker.is_some());
        match result {
            Ok(()) if !is_message => return self.on_edit_appended(id, token, cx),
            Ok(()) => fan_out.stage = Stage::Ready,
            // Nobody may be told anything before it is certain: said again without a trace of this one, it
            // would be accepted twice. Its sender's patience has an end of its own.
            Err(StoreError::Unknown) => {
                return self.retry_group(Retry::Append(token), cx);
            }
            Err(error) if !is_message => return self.on_edit_failed(id, token, error, cx),
            Err(_) => fan_out.stage = Stage::Gone,
        }
        if let Some((origin, asker)) = fan_out.asker {
            let result = result.map(|()| conv_seq).map_err(GroupError::Store);
            self.answer_group_send(origin, asker, result, cx);
        }
        if result.is_ok() {
            self.note_group_author(id, author, conv_seq, cx);
        }
        self.release_flights(id, cx);
    }

    pub(crate) fn set_stage(&mut self, token: u64, stage: Stage) {
        if let Some(fan_out) = self.groups.fan_outs.get_mut(token) {
            fan_out.stage = stage;
        }
    }

    /// Sends to the members what has nothing undecided before it.
    pub(crate) fn release_flights(&mut self, id: GroupId, cx: &mut Turn<'_>) {
        while let Some(work) = self.groups.work(id)
            && let Some(token) = work.flights.front().copied()
        {
            let stage = self.groups.fan_outs.get(token).map(|open| open.stage);
            match stage {
                Some(Stage::Pending) => break,
                Some(Stage::Ready) => self.spread(token, cx),
                Some(Stage::Gone) | None => self.forget_fan_out(token),
                Some(Stage::Out(_) | Stage::Ending) => {}
            }
            if let Some(work) = self.groups.work(id) {
                work.flights.pop_front();
            }
        }
        self.groups.rest(id);
    }

    fn spread(&mut self, token: u64, cx: &mut Turn<'_>) {
        let Some(fan_out) = self.groups.fan_outs.get_mut(token) else {
            return;
        };
        let spread = fan_out.spread.clone();
        let shards = spread.roll.shards().count();
        fan_out.stage = Stage::Out(shards as u16);
        if shards == 0 {
            return self.end_fan_out(token, cx);
        }
        self.counters.bump(Counter::GroupMessages);
        let origin = self.config.shard;
        for shard in spread.roll.shards() {
            let message = GroupMessage::FanOut {
                origin,
                token,
                spread: spread.clone(),
            };
            self.post(shard, ShardMessage::Group(message), cx);
        }
    }

    /// The members of one shard have it.
    pub(crate) fn on_fan_out_done(&mut self, token: u64, stored: bool, cx: &mut Turn<'_>) {
        let Some(fan_out) = self.groups.fan_outs.get_mut(token) else {
            return;
        };
        fan_out.lost |= !stored;
        let Stage::Out(left) = fan_out.stage else {
            return;
        };
        fan_out.stage = Stage::Out(left.saturating_sub(1));
        if left > 1 {
            return;
        }
        if fan_out.lost {
            self.forget_fan_out(token);
        } else {
            self.end_fan_out(token, cx);
        }
    }

    /// Everybody has it, or there is nothing to have: the marker goes.
    pub(crate) fn end_fan_out(&mut self, token: u64, cx: &mut Turn<'_>) {
        let Some(fan_out) = self.groups.fan_outs.get_mut(token) else {
            return;
        };
        fan_out.stage = Stage::Ending;
        let cmd = StoreCmd::EndFanOut {
            conv: fan_out.spread.entry.conv,
            conv_seq: fan_out.spread.entry.conv_seq,
        };
        self.submit(Purpose::Group(GroupPurpose::End(token)), cmd, cx);
    }

    pub(crate) fn on_fan_out_ended(
        &mut self,
        token: u64,
        result: Result<(), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        match result {
            Err(StoreError::Overloaded { .. } | StoreError::Unavailable | StoreError::Unknown) => {
                self.retry_group(Retry::End(token), cx);
            }
            // A marker that stays costs a repetition at the next start, no more.
            Ok(()) | Err(StoreError::Conflict | StoreError::Invalid | StoreError::Fatal) => {
                self.forget_fan_out(token);
            }
        }
    }

    pub(crate) fn forget_fan_out(&mut self, token: u64) {
        if let Some(fan_out) = self.groups.fan_outs.remove(token) {
            self.groups.fan_out_bytes -= fan_out.spread.entry.body.len();
        }
    }

    pub(crate) fn retry_group(&mut self, retry: Retry, cx: &Turn<'_>) {
        let at = cx.now.mono_us + RETRY_US;
        self.groups.retries.push_back((at, retry));
    }

    pub(crate) fn retry_groups(&mut self, cx: &mut Turn<'_>) {
        while let Some((at, _)) = self.groups.retries.front()
            && *at <= cx.now.mono_us
            && let Some((_, retry)) = self.groups.retries.pop_front()
        {
            match retry {
                Retry::Append(token) => {
                    let open = self.groups.fan_outs.get(token);
                    let Some(entry) = open.map(|open| open.spread.entry.clone()) else {
                        continue;
                    };
                    let purpose = Purpose::Group(GroupPurpose::Append(token));
                    self.submit(purpose, StoreCmd::AppendFanOut { entry }, cx);
                }
                Retry::End(token) => self.end_fan_out(token, cx),
                Retry::Write(id, cmd) => self.write_group_record(id, *cmd, cx),
                Retry::Reopen(id, conv_seq) => self.reopen_fan_out(id, conv_seq, cx),
            }
        }
    }

    pub(crate) fn answer_group_send(
        &mut self,
        origin: ShardId,
        token: u64,
        result: Result<ConvSeq, GroupError>,
        cx: &mut Turn<'_>,
    ) {
        let message = GroupMessage::Sent { token, result };
        self.post(origin, ShardMessage::Group(message), cx);
    }

    /// Back at the sender's home.
    pub(crate) fn on_group_sent(
        &mut self,
        token: u64,
        result: Result<ConvSeq, GroupError>,
        cx: &mut Turn<'_>,
    ) {
        let conv_seq = match result {
            Ok(conv_seq) => conv_seq,
            Err(why) => return self.fail_send(token, Refusal::from(why), cx),
        };
        if let Some(attempt) = self.outgoing.get_mut(token) {
            attempt.conv_seq = conv_seq;
            let (author, conv) = (attempt.name.0, attempt.conv);
            self.save_own_mark(conv, author, conv_seq, cx);
        }
        self.finish_send(token, cx);
    }
}

/// The group's conversation.
pub(crate) const fn conv_of(id: GroupId) -> ConvId {
    ConvId::Group(id)
}

/// Who hears of an event: everybody of before and after.
pub(crate) fn hearers(before: &Group, after: &Group, shards: u16) -> Arc<Roll> {
    if before.roll == after.roll || before.roll.users().is_empty() {
        return after.roll.clone();
    }
    let users = before.roll.users().iter().chain(after.roll.users());
    Roll::new(users.copied(), shards)
}
