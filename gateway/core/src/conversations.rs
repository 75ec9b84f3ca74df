//! CONVERSATIONS_GET: the newest conversations of a user, for a device that keeps no list.
//!
//! Nothing is written for it when a message is sent: the list is derived from the end of the user's
//! inbox, whose references name conversations. How far the walk goes is bounded, and so is what it can
//! show (docs/decisions/0024).

use crate::{
    conn::ConnId,
    error::Refusal,
    inbox::{conv_kind, shown_conv},
    lookup::Subject,
    metrics::Counter,
    shard::{Shard, Turn},
    store::{InboxRef, Marks, StoreCmd, StoreError},
    stored::Purpose,
};
use portico_wire::{
    Frame, Op,
    encode::put_done,
    frame::msg_kind,
    ids::{ConvId, ConvSeq, Seq, UserId},
    limits::{CONVERSATIONS_PAGE_MAX, UNREAD_MAX},
    message::history::{Conversation, ConversationsGet},
};
use rustc_hash::FxHashMap;

/// References that the walk looks at, from the end of the inbox; and those of one step.
pub(crate) const REFS_MAX: usize = 8_192;
const REFS_PER_STEP: u32 = 1_024;
/// Conversations of a list that are looked at side by side.
const SIDE_BY_SIDE: usize = 8;

/// What the walk has seen of a conversation.
#[derive(Clone, Copy, Debug)]
struct Seen {
    newest: ConvSeq,
    oldest: ConvSeq,
}

/// A list that is being put together.
#[derive(Debug)]
pub(crate) struct List {
    user: UserId,
    before: ConvSeq,
    limit: usize,
    /// Where the walk goes on, and how many references it has seen.
    at: Seq,
    refs: usize,
    seen: FxHashMap<ConvId, Seen>,
    /// What is shown, newest first, once the walk has ended; and of these, how many have been asked
    /// after and how many are complete.
    rows: Vec<Row>,
    asked: usize,
    complete: usize,
    failed: Option<StoreError>,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    conv: ConvId,
    seen: Seen,
    read: ConvSeq,
    unread: u32,
}

/// For a list, at most.
pub(crate) const LIST_BYTES: usize = size_of::<List>()
    + 2 * REFS_MAX * size_of::<(ConvId, Seen)>()
    + CONVERSATIONS_PAGE_MAX as usize * size_of::<Row>()
    + REFS_PER_STEP as usize * size_of::<InboxRef>();

impl List {
    /// Takes a step of the walk. Is the list known now?
    fn take(&mut self, refs: &[InboxRef], more: bool) -> bool {
        for reference in refs {
            self.at = reference.seq;
            let place = reference.conv_seq;
            let seen = self.seen.entry(reference.conv).or_insert(Seen {
                newest: place,
                oldest: place,
            });
            seen.newest = seen.newest.max(place);
            seen.oldest = seen.oldest.min(place);
        }
        self.refs += refs.len();
        !more || refs.is_empty() || self.refs >= REFS_MAX || self.is_settled()
    }

    /// What is still to come is older than the last that will be shown: an entry gets its place in
    /// the conversation before it gets one in an inbox.
    fn is_settled(&self) -> bool {
        let settled = |seen: &&Seen| seen.newest < self.before && seen.newest.0 >= self.at.0;
        self.seen.values().filter(settled).count() >= self.limit
    }

    fn choose(&mut self) {
        let before = self.before;
        let older = self.seen.drain().filter(|(_, seen)| seen.newest < before);
        self.rows = older
            .map(|(conv, seen)| Row {
                conv,
                seen,
                read: ConvSeq(0),
                unread: 0,
            })
            .collect();
        self.rows
            .sort_unstable_by_key(|row| (std::cmp::Reverse(row.seen.newest), row.conv));
        self.rows.truncate(self.limit);
        self.rows.shrink_to_fit();
        self.seen = FxHashMap::default();
    }
}

impl Shard {
    pub(crate) fn on_conversations_get(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let Ok(get) = ConversationsGet::decode(frame.body()) else {
            return self.on_malformed(id, frame, cx);
        };
        let Some(conn) = self.conn(id).filter(|_| frame.is_request()) else {
            return;
        };
        let user = conn.user;
        let checked = if get.limit == 0 || get.limit > CONVERSATIONS_PAGE_MAX {
            Err(Refusal::BadPage)
        } else {
            self.check_lookup(id)
        };
        if let Err(why) = checked {
            return self.refuse(id, true, frame.corr(), frame.op(), why, cx);
        }
        let before = if get.before == ConvSeq(0) {
            ConvSeq(u64::MAX)
        } else {
            get.before
        };
        let list = Box::new(List {
            user,
            before,
            limit: usize::from(get.limit),
            at: Seq(u64::MAX),
            refs: 0,
            seen: FxHashMap::default(),
            rows: Vec::new(),
            asked: 0,
            complete: 0,
            failed: None,
        });
        let token = self.open_lookup(id, frame, Subject::List(list));
        self.line_up_list(token, cx);
    }

    /// One step of the walk.
    pub(crate) fn begin_list(&mut self, token: u64, cx: &mut Turn<'_>) {
        let Some(list) = self.list_mut(token) else {
            return;
        };
        let cmd = StoreCmd::References {
            user: list.user,
            before: list.at,
            limit: REFS_PER_STEP,
        };
        self.submit(Purpose::References { lookup: token }, cmd, cx);
    }

    fn list_mut(&mut self, token: u64) -> Option<&mut List> {
        match &mut self.lookups.open.get_mut(token)?.subject {
            Subject::List(list) => Some(list),
            Subject::Page(_) | Subject::Withdrawal(_) => None,
        }
    }

    pub(crate) fn on_references(
        &mut self,
        token: u64,
        result: Result<(Vec<InboxRef>, bool), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let floor = self.floor_seq(cx);
        let abandoned = self.is_abandoned(token);
        let Some(list) = self.list_mut(token) else {
            return;
        };
        match result {
            Ok((refs, more)) => {
                // What the retention has ended is not shown.
                let kept = refs.partition_point(|reference| reference.seq >= floor);
                let (kept, more) = (&refs[..kept], more && kept == refs.len());
                if !abandoned && !list.take(kept, more) {
                    return self.begin_list(token, cx);
                }
                list.choose();
            }
            Err(error) => list.failed = Some(error),
        }
        for _ in 0..SIDE_BY_SIDE {
            self.ask_next_row(token, cx);
        }
        self.end_list_if_complete(token, cx);
    }

    /// How far has the user read the next conversation?
    fn ask_next_row(&mut self, token: u64, cx: &mut Turn<'_>) {
        let abandoned = self.is_abandoned(token);
        let Some(list) = self.list_mut(token) else {
            return;
        };
        if list.failed.is_some() || abandoned {
            // What is not asked after is complete: it will not be shown.
            list.complete += list.rows.len() - list.asked;
            list.asked = list.rows.len();
            return;
        }
        let Some(row) = list.rows.get(list.asked) else {
            return;
        };
        let (index, conv) = (list.asked, row.conv);
        list.asked += 1;
        let purpose = Purpose::RowMarks {
            lookup: token,
            row: index as u8,
        };
        self.submit(purpose, StoreCmd::Marks { conv }, cx);
    }

    pub(crate) fn on_row_marks(
        &mut self,
        token: u64,
        index: u8,
        result: Result<Vec<(UserId, Marks)>, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let Some(list) = self.list_mut(token) else {
            return;
        };
        let Some(row) = list.rows.get(usize::from(index)).copied() else {
            return;
        };
        let user = list.user;
        let marks = match result {
            Ok(marks) => marks,
            Err(error) => {
                list.failed = Some(error);
                return self.complete_row(token, cx);
            }
        };
        let stored = marks.iter().find(|(of, _)| *of == user);
        let unsaved = self.unsaved.marks.get(&(row.conv, user));
        let read = stored.map_or(ConvSeq(0), |(_, marks)| marks.read);
        let read = unsaved.map_or(read, |(marks, _)| read.max(marks.read));
        let direct = matches!(row.conv, ConvId::Direct(..));
        // Of a group what the inbox names: the rest may be from before the user joined.
        let seen_from = ConvSeq(row.seen.oldest.0.saturating_sub(1));
        let (after, before) = if direct {
            (read, ConvSeq(u64::MAX))
        } else {
            (read.max(seen_from), ConvSeq(row.seen.newest.0 + 1))
        };
        let cmd = StoreCmd::Count {
            conv: row.conv,
            after,
            before,
            not_by: user,
            op: Op::Deliver as u8,
            kind: msg_kind::CONTENT,
            limit: UNREAD_MAX,
        };
        if let Some(row) = self
            .list_mut(token)
            .and_then(|list| list.rows.get_mut(usize::from(index)))
        {
            row.read = read;
        }
        let purpose = Purpose::RowCount {
            lookup: token,
            row: index,
        };
        self.submit(purpose, cmd, cx);
    }

    pub(crate) fn on_row_count(
        &mut self,
        token: u64,
        index: u8,
        result: Result<u32, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        if let Some(list) = self.list_mut(token) {
            match result {
                Ok(count) => {
                    if let Some(row) = list.rows.get_mut(usize::from(index)) {
                        row.unread = count;
                    }
                }
                Err(error) => list.failed = Some(error),
            }
        }
        self.complete_row(token, cx);
    }

    fn complete_row(&mut self, token: u64, cx: &mut Turn<'_>) {
        if let Some(list) = self.list_mut(token) {
            list.complete += 1;
        }
        self.ask_next_row(token, cx);
        self.end_list_if_complete(token, cx);
    }

    /// All rows in order, then DONE with their number.
    fn end_list_if_complete(&mut self, token: u64, cx: &mut Turn<'_>) {
        let Some(list) = self.list_mut(token) else {
            return;
        };
        if list.complete < list.rows.len() {
            return;
        }
        if let Some(error) = list.failed {
            self.fail_lookup(token, Refusal::Store(error), cx);
            return self.next_list(cx);
        }
        if let Some(lookup) = self.end_lookup(token, cx)
            && let Subject::List(list) = lookup.subject
        {
            let (id, corr) = (lookup.conn, lookup.corr);
            for row in &list.rows {
                let conversation = Conversation {
                    conv_kind: conv_kind(row.conv),
                    conv: shown_conv(row.conv, list.user),
                    head_seq: row.seen.newest,
                    read_seq: row.read,
                    unread: row.unread,
                };
                self.write(id, cx, |out, encoder| {
                    encoder.conversation(out, corr, &conversation);
                });
            }
            let count = list.rows.len() as u32;
            self.write(id, cx, |out, _| put_done(out, corr, count));
            self.counters.bump(Counter::ConversationLists);
        }
        self.next_list(cx);
    }
}
