//! Questions about what was said before, from the frame to the answer: pages of history, lists of
//! conversations, and the messages that are to be withdrawn.
//!
//! A page of history needs the store's readers as a page of a replay does, so both share the bound
//! `Limits::pages_max` and take turns. A list of conversations reads much more, and few run at a time.
//!
//! # Invariants
//! - Each open question counts as one request of its connection until it is answered.
//! - Both lines are bounded: what does not fit is refused as overloaded.

use crate::{
    conn::ConnId,
    conversations::List,
    error::Refusal,
    groups::GroupError,
    history::Page,
    metrics::Counter,
    ops::Tokens,
    pool::GiveBack,
    shard::{Shard, Turn},
    withdraw::Withdrawal,
};
use portico_wire::{Frame, ids::ConvSeq};
use std::collections::VecDeque;

/// Questions that may wait for a page, for each page that may be read.
const LINE_PER_PAGE: usize = 4;
/// Lists that a shard puts together at a time, and those that may wait for one to end.
pub(crate) const LISTS_MAX: usize = 4;
const LIST_LINE_MAX: usize = 256;

/// What was asked.
#[derive(Debug)]
pub(crate) enum Subject {
    Page(Page),
    List(Box<List>),
    Withdrawal(Box<Withdrawal>),
}

/// A question that is not answered yet.
#[derive(Debug)]
pub(crate) struct Lookup {
    pub(crate) conn: ConnId,
    pub(crate) corr: u32,
    pub(crate) op: u8,
    pub(crate) subject: Subject,
}

/// All of a shard.
#[derive(Debug, Default)]
pub(crate) struct Lookups {
    pub(crate) open: Tokens<Lookup>,
    /// Pages of history that wait for a reader.
    pub(crate) line: VecDeque<u64>,
    /// Lists being put together, and those that wait.
    pub(crate) lists: usize,
    pub(crate) list_line: VecDeque<u64>,
    /// Whose turn it is when a page has been read: a replay's or a history's.
    history_next: bool,
}

impl GiveBack for Lookups {
    fn give_back(&mut self) {
        self.open.give_back();
        self.line.give_back();
        self.list_line.give_back();
    }
}

impl Shard {
    /// What holds for every question: it wants an answer, and there is room for it.
    pub(crate) fn check_lookup(&self, id: ConnId) -> Result<(), Refusal> {
        let Some(conn) = self.conn(id) else {
            return Ok(());
        };
        if u32::from(conn.requests) >= self.config.limits.requests_max {
            return Err(Refusal::TooManyRequests);
        }
        if self.is_store_full() {
            return Err(Refusal::Overloaded);
        }
        Ok(())
    }

    /// Takes a question; it counts as a request of its connection from here on.
    pub(crate) fn open_lookup(&mut self, id: ConnId, frame: Frame<'_>, subject: Subject) -> u64 {
        let request = frame.is_request();
        self.count_send(id, request);
        self.lookups.open.insert(Lookup {
            conn: id,
            corr: if request { frame.corr() } else { 0 },
            op: frame.op(),
            subject,
        })
    }

    /// The question is answered or given up: the connection may ask another.
    pub(crate) fn end_lookup(&mut self, token: u64, cx: &mut Turn<'_>) -> Option<Lookup> {
        let lookup = self.lookups.open.remove(token)?;
        self.release_request(lookup.conn, cx);
        Some(lookup)
    }

    pub(crate) fn fail_lookup(&mut self, token: u64, why: Refusal, cx: &mut Turn<'_>) {
        if let Some(Lookup { conn, corr, op, .. }) = self.end_lookup(token, cx) {
            self.refuse(conn, corr != 0, corr, op, why, cx);
        }
    }

    /// Nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self, token: u64) -> bool {
        let lookup = self.lookups.open.get(token);
        lookup.is_none_or(|lookup| !self.is_open(lookup.conn))
    }

    /// Reads a page now, or when it is its turn.
    pub(crate) fn line_up(&mut self, token: u64, cx: &mut Turn<'_>) {
        if self.pages < self.pages_max {
            self.read_history(token, cx);
        } else if self.lookups.line.len() < LINE_PER_PAGE * self.pages_max {
            self.lookups.line.push_back(token);
        } else {
            self.fail_lookup(token, Refusal::Overloaded, cx);
        }
    }

    /// A page has been answered: the next of those that wait, of replays and histories in turns.
    pub(crate) fn next_page(&mut self, cx: &mut Turn<'_>) {
        self.lookups.history_next = !self.lookups.history_next;
        if self.lookups.history_next {
            self.next_history(cx);
            self.pull_next(cx);
        } else {
            self.pull_next(cx);
            self.next_history(cx);
        }
    }

    fn next_history(&mut self, cx: &mut Turn<'_>) {
        while self.pages < self.pages_max {
            let Some(token) = self.lookups.line.pop_front() else {
                return;
            };
            if self.is_abandoned(token) {
                self.end_lookup(token, cx);
            } else {
                self.read_history(token, cx);
            }
        }
    }

    /// Puts a list together now, or when one of the others has ended.
    pub(crate) fn line_up_list(&mut self, token: u64, cx: &mut Turn<'_>) {
        if self.lookups.lists < LISTS_MAX {
            self.lookups.lists += 1;
            self.begin_list(token, cx);
        } else if self.lookups.list_line.len() < LIST_LINE_MAX {
            self.lookups.list_line.push_back(token);
        } else {
            self.fail_lookup(token, Refusal::Overloaded, cx);
        }
    }

    /// A list has ended.
    pub(crate) fn next_list(&mut self, cx: &mut Turn<'_>) {
        self.lookups.lists -= 1;
        while self.lookups.lists < LISTS_MAX {
            let Some(token) = self.lookups.list_line.pop_front() else {
                return;
            };
            if self.is_abandoned(token) {
                self.end_lookup(token, cx);
            } else {
                self.lookups.lists += 1;
                self.begin_list(token, cx);
            }
        }
    }

    /// A group's home has said what of its history a user may see.
    pub(crate) fn on_group_access_is(
        &mut self,
        token: u64,
        range: Result<(ConvSeq, ConvSeq), GroupError>,
        admin: bool,
        cx: &mut Turn<'_>,
    ) {
        if self.is_abandoned(token) {
            self.end_lookup(token, cx);
            return;
        }
        let range = match range {
            Ok(range) => range,
            Err(why) => return self.fail_lookup(token, Refusal::Group(why), cx),
        };
        let Some(lookup) = self.lookups.open.get_mut(token) else {
            return;
        };
        match &mut lookup.subject {
            Subject::Page(page) => {
                page.restrict(range);
                self.line_up(token, cx);
            }
            Subject::Withdrawal(withdrawal) => {
                let (first, last) = range;
                withdrawal.set_admin(admin);
                if (first..=last).contains(&withdrawal.target_seq()) {
                    self.read_target(token, cx);
                } else {
                    self.fail_lookup(token, Refusal::NoSuchMessage, cx);
                }
            }
            Subject::List(_) => {}
        }
    }

    pub(crate) fn count_history(&mut self, entries: u64) {
        self.counters.bump(Counter::HistoryPages);
        self.counters.add(Counter::HistoryEntries, entries);
    }
}
