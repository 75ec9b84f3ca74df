//! A store in memory that does what an adapter promises and no more: lanes, any delay, any error.
//!
//! It is an oracle too. It panics when the shards break a rule that a real store would not notice:
//! an inbox number used twice or out of order, written by a shard that is not the inbox's home, or
//! an entry that changes.

use crate::{
    home::{ShardId, conv_home, user_home},
    store::{
        Entry, Expect, InboxRef, Item, Marks, Record, RecordCmd, StoreCmd, StoreError, StoreReply,
        StoreRequest, StoreToken, Table,
    },
};
use bytes::Bytes;
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, Seq, UserId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Kinds of command, for the switches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CmdKind {
    Append,
    AppendFanOut,
    EndFanOut,
    AddRefs,
    Find,
    Replay,
    Cursors,
    SetCursors,
    SetMarks,
    Marks,
    ReadRecords,
    WriteRecord,
    History,
    References,
    Count,
    Redact,
}

impl CmdKind {
    pub const ALL: [Self; 16] = [
        Self::Append,
        Self::AppendFanOut,
        Self::EndFanOut,
        Self::AddRefs,
        Self::Find,
        Self::Replay,
        Self::Cursors,
        Self::SetCursors,
        Self::SetMarks,
        Self::Marks,
        Self::ReadRecords,
        Self::WriteRecord,
        Self::History,
        Self::References,
        Self::Count,
        Self::Redact,
    ];

    #[must_use]
    pub const fn of(cmd: &StoreCmd) -> Self {
        match cmd {
            StoreCmd::Append { .. } => Self::Append,
            StoreCmd::AppendFanOut { .. } => Self::AppendFanOut,
            StoreCmd::EndFanOut { .. } => Self::EndFanOut,
            StoreCmd::AddRefs { .. } => Self::AddRefs,
            StoreCmd::Find { .. } => Self::Find,
            StoreCmd::Replay { .. } => Self::Replay,
            StoreCmd::Cursors { .. } => Self::Cursors,
            StoreCmd::SetCursors { .. } => Self::SetCursors,
            StoreCmd::SetMarks { .. } => Self::SetMarks,
            StoreCmd::Marks { .. } => Self::Marks,
            StoreCmd::Record(cmd) if cmd.is_read() => Self::ReadRecords,
            StoreCmd::Record(_) => Self::WriteRecord,
            StoreCmd::History { .. } => Self::History,
            StoreCmd::References { .. } => Self::References,
            StoreCmd::Count { .. } => Self::Count,
            StoreCmd::Redact { .. } => Self::Redact,
        }
    }

    const fn is_read(self) -> bool {
        matches!(
            self,
            Self::Find
                | Self::Replay
                | Self::Cursors
                | Self::Marks
                | Self::ReadRecords
                | Self::History
                | Self::References
                | Self::Count
        )
    }
}

/// The next `times` commands of these kinds are answered with `error`.
#[derive(Clone, Debug)]
struct Fault {
    kinds: Vec<CmdKind>,
    times: usize,
    error: StoreError,
    applied: bool,
}

#[derive(Debug)]
struct Answer {
    token: StoreToken,
    kind: CmdKind,
    result: Result<StoreReply, StoreError>,
}

/// One shard's requests. Writes are executed in the order of submission; reads overtake them.
#[derive(Debug, Default)]
struct Lane {
    writes: VecDeque<StoreRequest>,
    reads: VecDeque<StoreRequest>,
    answers: Vec<Answer>,
    last: Seq,
}

#[derive(Debug, Default)]
pub struct ModelStore {
    entries: BTreeMap<(ConvId, ConvSeq), Entry>,
    inbox: BTreeMap<(UserId, Seq), (ConvId, ConvSeq)>,
    fan_outs: BTreeSet<(ConvId, ConvSeq)>,
    cursors: BTreeMap<(UserId, DeviceId), Seq>,
    marks: BTreeMap<(ConvId, UserId), Marks>,
    records: BTreeMap<(Table, Bytes), (Bytes, u64)>,
    /// Every inbox number ever asked for, written or not.
    issued: BTreeSet<(UserId, Seq)>,
    ceiling: u64,
    lanes: Vec<Lane>,
    faults: VecDeque<Fault>,
    held: Vec<CmdKind>,
    unanswered: Vec<CmdKind>,
    executed: usize,
    executed_of: BTreeMap<CmdKind, usize>,
    /// Pages that get nowhere: see [`Self::stall_pages`].
    stalled: usize,
}

impl ModelStore {
    // ---- switches

    /// Commands of these kinds are not executed until [`Self::release`].
    pub fn hold(&mut self, kinds: &[CmdKind]) {
        self.held.extend_from_slice(kinds);
    }

    /// Commands of these kinds are executed, and seen by reads, but not answered until
    /// [`Self::release`].
    pub fn hold_answers(&mut self, kinds: &[CmdKind]) {
        self.unanswered.extend_from_slice(kinds);
    }

    /// Ends both.
    pub fn release(&mut self) {
        self.held.clear();
        self.unanswered.clear();
    }

    /// The next `times` commands of these kinds fail without effect.
    pub fn fail(&mut self, kinds: &[CmdKind], times: usize, error: StoreError) {
        self.faults.push_back(Fault {
            kinds: kinds.to_vec(),
            times,
            error,
            applied: false,
        });
    }

    /// The next `times` commands of these kinds are applied and answered as unknown.
    pub fn lose_answers(&mut self, kinds: &[CmdKind], times: usize) {
        self.faults.push_back(Fault {
            kinds: kinds.to_vec(),
            times,
            error: StoreError::Unknown,
            applied: true,
        });
    }

    /// The next `times` pages are empty and say that there is more, as of an adapter that skips
    /// what it cannot show and does not go on.
    pub const fn stall_pages(&mut self, times: usize) {
        self.stalled = times;
    }

    /// No more faults.
    pub fn heal(&mut self) {
        self.faults.clear();
        self.stalled = 0;
        self.release();
    }

    // ---- what is in it

    /// The inbox of a user as it stands.
    #[must_use]
    pub fn inbox(&self, user: UserId) -> Vec<Item> {
        self.page(user, Seq(0), usize::MAX, usize::MAX).0
    }

    /// A conversation as it stands.
    pub fn conversation(&self, conv: ConvId) -> impl Iterator<Item = &Entry> {
        self.entries
            .range((conv, ConvSeq(0))..=(conv, ConvSeq(u64::MAX)))
            .map(|(_, entry)| entry)
    }

    #[must_use]
    pub fn cursor(&self, user: UserId, device: DeviceId) -> Option<Seq> {
        self.cursors.get(&(user, device)).copied()
    }

    /// Fan-outs that have not ended.
    pub fn fan_outs(&self) -> impl Iterator<Item = (ConvId, ConvSeq)> + '_ {
        self.fan_outs.iter().copied()
    }

    #[must_use]
    pub fn marks(&self, conv: ConvId, user: UserId) -> Marks {
        self.marks.get(&(conv, user)).copied().unwrap_or_default()
    }

    /// The keys of a table of records.
    pub fn keys(&self, table: Table) -> impl Iterator<Item = &Bytes> {
        let all = self.records.keys().filter(move |(of, _)| *of == table);
        all.map(|(_, key)| key)
    }

    /// No greater number was ever asked for.
    #[must_use]
    pub const fn ceiling(&self) -> u64 {
        self.ceiling
    }

    /// Commands executed so far.
    #[must_use]
    pub const fn executed(&self) -> usize {
        self.executed
    }

    /// Of them, those of this kind.
    #[must_use]
    pub fn executed_of(&self, kind: CmdKind) -> usize {
        self.executed_of.get(&kind).copied().unwrap_or_default()
    }

    /// Commands of this kind that wait to be executed.
    #[must_use]
    pub fn queued(&self, kind: CmdKind) -> usize {
        self.lanes
            .iter()
            .flat_map(|lane| lane.writes.iter().chain(&lane.reads))
            .filter(|request| CmdKind::of(&request.cmd) == kind)
            .count()
    }

    // ---- for the world

    /// The machine stops: what was not executed is gone, and so are the answers.
    pub(super) fn restart(&mut self, lanes: usize) {
        self.lanes.clear();
        self.lanes.resize_with(lanes, Lane::default);
    }

    pub(super) fn submit(&mut self, shard: ShardId, shards: u16, request: StoreRequest) {
        match &request.cmd {
            StoreCmd::Append { entry, to } => {
                self.ceiling = self.ceiling.max(entry.conv_seq.0);
                self.check(shard, shards, to);
            }
            StoreCmd::AppendFanOut { entry } => {
                self.ceiling = self.ceiling.max(entry.conv_seq.0);
                assert_eq!(
                    conv_home(entry.conv, shards),
                    shard,
                    "one author of the order"
                );
            }
            StoreCmd::AddRefs { refs } => {
                for reference in refs {
                    self.check(shard, shards, reference);
                }
            }
            _ => {}
        }
        let lane = &mut self.lanes[shard.0 as usize];
        if CmdKind::of(&request.cmd).is_read() {
            lane.reads.push_back(request);
        } else {
            lane.writes.push_back(request);
        }
    }

    fn check(&mut self, shard: ShardId, shards: u16, reference: &InboxRef) {
        let &InboxRef { user, seq, .. } = reference;
        assert_eq!(user_home(user, shards), shard, "one writer per inbox");
        assert!(self.issued.insert((user, seq)), "a number is used once");
        self.ceiling = self.ceiling.max(seq.0);
        let lane = &mut self.lanes[shard.0 as usize];
        assert!(seq > lane.last, "references are submitted in order");
        lane.last = seq;
    }

    /// Can a write (or a read) of this lane be executed?
    pub(super) fn can_execute(&self, lane: usize, read: bool) -> bool {
        let lane = &self.lanes[lane];
        if read {
            lane.reads.iter().any(|request| !self.is_held(request))
        } else {
            let first = lane.writes.front();
            first.is_some_and(|request| !self.is_held(request))
        }
    }

    fn is_held(&self, request: &StoreRequest) -> bool {
        self.held.contains(&CmdKind::of(&request.cmd))
    }

    pub(super) fn execute(&mut self, lane: usize, read: bool) {
        let queue = &self.lanes[lane];
        let request = if read {
            let first = queue.reads.iter().position(|read| !self.is_held(read));
            first.and_then(|at| self.lanes[lane].reads.remove(at))
        } else if self.can_execute(lane, false) {
            self.lanes[lane].writes.pop_front()
        } else {
            None
        };
        let Some(StoreRequest { token, cmd, .. }) = request else {
            return;
        };
        let kind = CmdKind::of(&cmd);
        let result = match self.next_fault(kind) {
            None => self.apply(cmd),
            Some((error, applied)) => {
                if applied {
                    let _ = self.apply(cmd);
                }
                Err(error)
            }
        };
        self.executed += 1;
        *self.executed_of.entry(kind).or_default() += 1;
        self.lanes[lane].answers.push(Answer {
            token,
            kind,
            result,
        });
    }

    fn next_fault(&mut self, kind: CmdKind) -> Option<(StoreError, bool)> {
        let at = self
            .faults
            .iter()
            .position(|fault| fault.kinds.contains(&kind))?;
        let fault = &mut self.faults[at];
        fault.times -= 1;
        let found = (fault.error, fault.applied);
        if fault.times == 0 {
            self.faults.remove(at);
        }
        Some(found)
    }

    /// How many answers of this lane can be given now.
    pub(super) fn answers(&self, lane: usize) -> usize {
        let open = |answer: &&Answer| !self.unanswered.contains(&answer.kind);
        self.lanes[lane].answers.iter().filter(open).count()
    }

    /// Takes the `at`-th of them.
    pub(super) fn answer(
        &mut self,
        lane: usize,
        at: usize,
    ) -> Option<(StoreToken, Result<StoreReply, StoreError>)> {
        let unanswered = &self.unanswered;
        let answers = &mut self.lanes[lane].answers;
        let (index, _) = answers
            .iter()
            .enumerate()
            .filter(|(_, answer)| !unanswered.contains(&answer.kind))
            .nth(at)?;
        let answer = answers.remove(index);
        Some((answer.token, answer.result))
    }

    // ---- commands

    fn apply(&mut self, cmd: StoreCmd) -> Result<StoreReply, StoreError> {
        Ok(match cmd {
            StoreCmd::History { .. }
            | StoreCmd::References { .. }
            | StoreCmd::Count { .. }
            | StoreCmd::Redact { .. } => self.apply_to_history(cmd),
            StoreCmd::Record(cmd) => return self.apply_to_record(cmd),
            StoreCmd::Append { entry, to } => {
                let key = (entry.conv, entry.conv_seq);
                assert_eq!(key, (to.conv, to.conv_seq));
                let before = self.entries.insert(key, entry);
                assert!(before.is_none(), "a place in a conversation is used once");
                self.inbox.insert((to.user, to.seq), key);
                StoreReply::Done
            }
            StoreCmd::AppendFanOut { entry } => {
                let key = (entry.conv, entry.conv_seq);
                self.fan_outs.insert(key);
                let before = self.entries.insert(key, entry.clone());
                assert!(
                    before.is_none_or(|before| before == entry),
                    "a place is used once"
                );
                StoreReply::Done
            }
            StoreCmd::EndFanOut { conv, conv_seq } => {
                self.fan_outs.remove(&(conv, conv_seq));
                StoreReply::Done
            }
            StoreCmd::AddRefs { refs } => {
                for reference in refs {
                    let key = (reference.conv, reference.conv_seq);
                    assert!(self.entries.contains_key(&key), "the entry comes first");
                    self.inbox.insert((reference.user, reference.seq), key);
                }
                StoreReply::Done
            }
            StoreCmd::Find {
                conv,
                since,
                sender,
                device,
                msg_ids,
            } => StoreReply::Found(
                self.entries
                    .range((conv, since)..=(conv, ConvSeq(u64::MAX)))
                    .filter(|(_, entry)| {
                        (entry.sender, entry.device) == (sender, device)
                            && msg_ids.contains(&entry.msg_id)
                    })
                    .map(|((_, conv_seq), entry)| (entry.msg_id, *conv_seq))
                    .collect(),
            ),
            StoreCmd::Replay {
                user,
                after,
                limit,
                bytes_max,
            } => {
                if self.stalled > 0 {
                    self.stalled -= 1;
                    let (items, more) = (Vec::new(), true);
                    return Ok(StoreReply::Page { items, more });
                }
                let (items, more) = self.page(user, after, limit as usize, bytes_max as usize);
                StoreReply::Page { items, more }
            }
            StoreCmd::Cursors { user } => StoreReply::Cursors(
                self.cursors
                    .range((user, DeviceId(0))..=(user, DeviceId(u16::MAX)))
                    .map(|((_, device), seq)| (*device, *seq))
                    .collect(),
            ),
            StoreCmd::SetCursors { cursors } => {
                for (user, device, seq) in cursors {
                    let cursor = self.cursors.entry((user, device)).or_default();
                    *cursor = seq.max(*cursor);
                }
                StoreReply::Done
            }
            StoreCmd::SetMarks { marks } => {
                for (conv, user, new) in marks {
                    let old = self.marks.entry((conv, user)).or_default();
                    if new.delivered > old.delivered {
                        (old.delivered, old.delivered_at_s) = (new.delivered, new.delivered_at_s);
                    }
                    if new.read > old.read {
                        (old.read, old.read_at_s) = (new.read, new.read_at_s);
                    }
                }
                StoreReply::Done
            }
            StoreCmd::Marks { conv } => StoreReply::Marks(
                self.marks
                    .range((conv, UserId(0))..=(conv, UserId(u64::MAX)))
                    .map(|((_, user), marks)| (*user, *marks))
                    .collect(),
            ),
        })
    }

    fn apply_to_record(&mut self, cmd: RecordCmd) -> Result<StoreReply, StoreError> {
        let record = |(key, (value, version)): (&(Table, Bytes), &(Bytes, u64))| Record {
            key: key.1.clone(),
            value: value.clone(),
            version: *version,
        };
        match cmd {
            RecordCmd::Get { table, key } => {
                let found = self.records.get_key_value(&(table, key));
                Ok(StoreReply::Record(found.map(record)))
            }
            RecordCmd::Put {
                table,
                key,
                value,
                expect,
                version,
            } => {
                let present = self.records.get(&(table, key.clone())).map(|(_, v)| *v);
                if present != Some(version) {
                    check_expected(expect, present)?;
                    self.records.insert((table, key), (value, version));
                }
                Ok(StoreReply::Done)
            }
            RecordCmd::Delete { table, key, expect } => {
                let present = self.records.get(&(table, key.clone())).map(|(_, v)| *v);
                if present.is_some() {
                    check_expected(expect, present)?;
                    self.records.remove(&(table, key));
                }
                Ok(StoreReply::Done)
            }
            RecordCmd::Scan {
                table,
                prefix,
                after,
                limit,
            } => {
                let from = (table, prefix.clone());
                let rows = self
                    .records
                    .range(from..)
                    .take_while(|((t, key), _)| *t == table && key.starts_with(&prefix));
                let rows = rows.filter(|((_, key), _)| *key > after);
                let rows = rows.take(limit as usize).map(record).collect();
                Ok(StoreReply::Records(rows))
            }
        }
    }

    /// Newest first; both bounds are exclusive.
    fn between(
        &self,
        conv: ConvId,
        after: ConvSeq,
        before: ConvSeq,
    ) -> impl DoubleEndedIterator<Item = &Entry> {
        let first = ConvSeq(after.0.saturating_add(1));
        let range = (conv, first)..(conv, before.max(first));
        self.entries.range(range).map(|(_, entry)| entry).rev()
    }

    fn apply_to_history(&mut self, cmd: StoreCmd) -> StoreReply {
        match cmd {
            StoreCmd::History {
                conv,
                after,
                before,
                forward,
                limit,
                bytes_max,
            } => {
                let mut between = self.between(conv, after, before);
                let (mut entries, mut bytes) = (Vec::<Entry>::new(), 0);
                while let Some(entry) = if forward {
                    between.next_back()
                } else {
                    between.next()
                } {
                    bytes += entry.body.len();
                    let full = entries.len() >= limit as usize || bytes > bytes_max as usize;
                    if full && !entries.is_empty() {
                        let more = true;
                        return StoreReply::Entries { entries, more };
                    }
                    entries.push(entry.clone());
                }
                StoreReply::Entries {
                    entries,
                    more: false,
                }
            }
            StoreCmd::References {
                user,
                before,
                limit,
            } => {
                let older = self.inbox.range((user, Seq(0))..(user, before)).rev();
                let refs = older.clone().take(limit as usize);
                let refs = refs.map(|(&(user, seq), &(conv, conv_seq))| InboxRef {
                    user,
                    seq,
                    conv,
                    conv_seq,
                });
                StoreReply::References {
                    refs: refs.collect(),
                    more: older.count() > limit as usize,
                }
            }
            StoreCmd::Count {
                conv,
                after,
                before,
                not_by,
                op,
                kind,
                limit,
            } => {
                let counts = |entry: &&Entry| {
                    (entry.op, entry.kind) == (op, kind)
                        && entry.sender != not_by
                        && !entry.body.is_empty()
                };
                let counted = self.between(conv, after, before).filter(counts);
                StoreReply::Count(counted.take(limit as usize).count() as u32)
            }
            StoreCmd::Redact { conv, conv_seq } => {
                if let Some(entry) = self.entries.get_mut(&(conv, conv_seq)) {
                    entry.body.clear();
                }
                StoreReply::Done
            }
            _ => unreachable!("the caller sends these four"),
        }
    }

    fn page(&self, user: UserId, after: Seq, limit: usize, bytes_max: usize) -> (Vec<Item>, bool) {
        let mut items = Vec::new();
        let mut bytes = 0;
        let rest = self
            .inbox
            .range((user, Seq(after.0.saturating_add(1)))..=(user, Seq(u64::MAX)));
        for ((_, seq), key) in rest {
            if items.len() >= limit || (bytes > bytes_max && !items.is_empty()) {
                return (items, true);
            }
            let Some(entry) = self.entries.get(key) else {
                continue;
            };
            bytes += entry.body.len();
            items.push(Item {
                seq: *seq,
                entry: entry.clone(),
            });
        }
        (items, false)
    }
}

fn check_expected(expect: Expect, present: Option<u64>) -> Result<(), StoreError> {
    let holds = match expect {
        Expect::Any => true,
        Expect::Absent => present.is_none(),
        Expect::Version(version) => present == Some(version),
    };
    if holds {
        Ok(())
    } else {
        Err(StoreError::Conflict)
    }
}
