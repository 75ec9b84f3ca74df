//! Questions to the store on their way: what each is for, and who takes its answer.

use crate::{
    conn::ConnId,
    contacts::Page,
    groups::GroupPurpose,
    home::ShardId,
    metrics::Counter,
    people::Restrictions,
    shard::{Shard, Turn},
    store::{Entry, Record, StoreCmd, StoreError, StoreReply, StoreRequest, StoreToken},
};
use portico_wire::ids::{ConvId, ConvSeq, Seq, UserId};

/// What the answer to a storage request is for.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// A message and its reference; `place` in the lane.
    Append {
        place: u64,
        origin: ShardId,
        token: u64,
        conv_seq: ConvSeq,
    },
    /// The copy for the sender's other devices.
    OwnCopy {
        place: u64,
        token: u64,
    },
    /// Were this repeated message, and those sought with it, accepted before?
    Find {
        token: u64,
    },
    /// The cursor of a device that logs in.
    Cursors {
        conn: ConnId,
    },
    /// A device that the store did not know, written before it is let in.
    Register {
        conn: ConnId,
        siblings: bool,
    },
    /// A page of an inbox; everything up to `visible` was visible to it, and the connection had
    /// been `sent` what comes before it.
    Page {
        conn: ConnId,
        visible: Seq,
        sent: Seq,
    },
    /// One conversation of a RECEIPTS_GET.
    Marks {
        query: u64,
        conv: ConvId,
    },
    /// Something about a group.
    Group(GroupPurpose),
    /// A page of history.
    History {
        lookup: u64,
    },
    /// A step along an inbox from its end, and what is asked after a conversation found there.
    References {
        lookup: u64,
    },
    RowMarks {
        lookup: u64,
        row: u8,
    },
    RowCount {
        lookup: u64,
        row: u8,
    },
    /// The message that is to be withdrawn, and its withdrawal.
    Target {
        lookup: u64,
    },
    Redact {
        lookup: u64,
    },
    /// What a user allows, and its contacts where that names them.
    Restrictions {
        user: UserId,
    },
    RestrictionsBook {
        user: UserId,
        restrictions: Box<Restrictions>,
    },
    /// For the edit at the head of the user's line: who is a contact, and a write of it.
    Book {
        user: UserId,
    },
    EditWrite {
        user: UserId,
    },
    /// A page of a user's contacts.
    Contacts {
        user: UserId,
        page: Page,
    },
    /// When a user was last seen.
    LastSeen {
        user: UserId,
    },
    LastSeenWrite {
        user: UserId,
        until_us: u64,
    },
    /// Cursors or watermarks, kept in case they must be written again.
    Save(crate::watermark::Batch),
}

impl Purpose {
    const fn reads_inbox(&self) -> bool {
        matches!(self, Self::Cursors { .. })
    }
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct InStore {
    pub(crate) op: Purpose,
    pub(crate) weight: usize,
}

impl Shard {
    pub(crate) fn submit(&mut self, op: Purpose, cmd: StoreCmd, cx: &mut Turn<'_>) {
        let weight = cmd.weight();
        self.store_weight += weight;
        self.inbox_reads += usize::from(op.reads_inbox());
        let token = self.in_store.insert(InStore { op, weight });
        cx.fx.store.push(StoreRequest {
            token: StoreToken(token),
            deadline_us: cx.now.mono_us + u64::from(self.config.limits.store_timeout_ms) * 1_000,
            cmd,
        });
    }

    pub(crate) fn on_stored(
        &mut self,
        token: StoreToken,
        result: Result<StoreReply, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let Some(InStore { op, weight }) = self.in_store.remove(token.0) else {
            return;
        };
        self.store_weight -= weight;
        self.inbox_reads -= usize::from(op.reads_inbox());
        if result.is_err() {
            self.counters.bump(Counter::StoreErrors);
        }
        match op {
            Purpose::Append {
                place,
                origin,
                token,
                conv_seq,
            } => {
                let result = result.map(|_| conv_seq);
                self.on_appended(place, origin, token, result, cx);
            }
            Purpose::OwnCopy { place, token } => {
                self.on_own_copy(place, token, result.map(|_| ()), cx)
            }
            Purpose::Find { token } => match result {
                Ok(StoreReply::Found(found)) => self.on_found(token, Ok(&found), cx),
                Ok(_) => self.on_found(token, Err(StoreError::Invalid), cx),
                Err(error) => self.on_found(token, Err(error), cx),
            },
            Purpose::Cursors { conn } => match result {
                Ok(StoreReply::Cursors(cursors)) => self.on_cursors(conn, &cursors, cx),
                Ok(_) | Err(_) => self.on_no_cursors(conn, cx),
            },
            Purpose::Register { conn, siblings } => {
                self.on_registered(conn, siblings, result.map(|_| ()), cx);
            }
            Purpose::Page {
                conn,
                visible,
                sent,
            } => {
                self.pages -= 1;
                match result {
                    Ok(StoreReply::Page { items, more }) => {
                        self.on_page(conn, (visible, sent), items, more, cx);
                    }
                    Ok(_) | Err(_) => self.on_no_page(conn, cx),
                }
                self.next_page(cx);
            }
            Purpose::History { lookup } => {
                self.pages -= 1;
                self.on_history_page(lookup, entries(result), cx);
                self.next_page(cx);
            }
            Purpose::References { lookup } => {
                let refs = match result {
                    Ok(StoreReply::References { refs, more }) => Ok((refs, more)),
                    Ok(_) => Err(StoreError::Invalid),
                    Err(error) => Err(error),
                };
                self.on_references(lookup, refs, cx);
            }
            Purpose::RowMarks { lookup, row } => {
                let marks = match result {
                    Ok(StoreReply::Marks(marks)) => Ok(marks),
                    Ok(_) => Err(StoreError::Invalid),
                    Err(error) => Err(error),
                };
                self.on_row_marks(lookup, row, marks, cx);
            }
            Purpose::RowCount { lookup, row } => {
                let count = match result {
                    Ok(StoreReply::Count(count)) => Ok(count),
                    Ok(_) => Err(StoreError::Invalid),
                    Err(error) => Err(error),
                };
                self.on_row_count(lookup, row, count, cx);
            }
            Purpose::Target { lookup } => {
                let found = entries(result).map(|(entries, _)| entries);
                self.on_target(lookup, found, cx);
            }
            Purpose::Redact { lookup } => self.on_redacted(lookup, result.map(|_| ()), cx),
            Purpose::Marks { query, conv } => {
                let marks = match result {
                    Ok(StoreReply::Marks(marks)) => Ok(marks),
                    Ok(_) => Err(StoreError::Invalid),
                    Err(error) => Err(error),
                };
                self.on_marks(query, conv, marks, cx);
            }
            Purpose::Group(purpose) => self.on_group_stored(purpose, result, cx),
            Purpose::Restrictions { user } => self.on_restrictions(user, record(result), cx),
            Purpose::RestrictionsBook { user, restrictions } => {
                self.on_restrictions_book(user, *restrictions, record(result), cx);
            }
            Purpose::Book { user } => self.on_book(user, record(result), cx),
            Purpose::EditWrite { user } => self.on_edit_written(user, result.map(|_| ()), cx),
            Purpose::Contacts { user, page } => {
                let rows = match result {
                    Ok(StoreReply::Records(rows)) => Ok(rows),
                    Ok(_) => Err(StoreError::Invalid),
                    Err(error) => Err(error),
                };
                self.on_contacts(user, page, rows, cx);
            }
            Purpose::LastSeen { user } => self.on_last_seen(user, record(result), cx),
            Purpose::LastSeenWrite { user, until_us } => {
                self.on_last_seen_written(user, until_us, result.map(|_| ()), cx);
            }
            Purpose::Save(batch) => self.on_saved(batch, result.map(|_| ()), cx),
        }
    }
}

/// What a store says of a conversation.
fn entries(result: Result<StoreReply, StoreError>) -> Result<(Vec<Entry>, bool), StoreError> {
    match result {
        Ok(StoreReply::Entries { entries, more }) => Ok((entries, more)),
        Ok(_) => Err(StoreError::Invalid),
        Err(error) => Err(error),
    }
}

/// The answer to a question for one record.
fn record(result: Result<StoreReply, StoreError>) -> Result<Option<Record>, StoreError> {
    match result? {
        StoreReply::Record(record) => Ok(record),
        _ => Err(StoreError::Invalid),
    }
}
