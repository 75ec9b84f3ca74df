//! The core's words for the store, and the adapter's: one exhaustive match each way.
//!
//! The two vocabularies are alike and stay apart on purpose: the adapter trait is public and must
//! stand still while the core moves.

use portico_backend::{
    Error, Kind,
    messages::{Cmd, Entry, EntryMeta, InboxRef, Item, Mark, Refs, Reply, Watermark},
    records,
};
use portico_core::store::{self, RecordCmd, StoreCmd, StoreError, StoreReply};
use portico_wire::ids::{ConvId, ConvSeq, UserId};

/// A command for the adapter of one family.
#[derive(Debug)]
pub(crate) enum Command {
    Messages(Cmd),
    Records(records::Cmd),
}

/// A command for the adapter.
#[must_use]
pub(crate) fn command(cmd: StoreCmd) -> Command {
    Command::Messages(match cmd {
        StoreCmd::Record(cmd) => return Command::Records(record_command(cmd)),
        StoreCmd::Append { entry, to } => Cmd::Append {
            entry: entry_out(entry),
            refs: Refs::from_buf([reference(to)]),
            fan_out: false,
        },
        StoreCmd::AppendFanOut { entry } => Cmd::Append {
            entry: entry_out(entry),
            refs: Refs::new(),
            fan_out: true,
        },
        StoreCmd::EndFanOut { conv, conv_seq } => Cmd::EndFanOut { conv, conv_seq },
        StoreCmd::AddRefs { refs } => Cmd::AddRefs {
            refs: refs.into_iter().map(reference).collect(),
        },
        StoreCmd::Find {
            conv,
            since,
            sender,
            device,
            msg_ids,
        } => Cmd::Find {
            conv,
            since,
            sender,
            device,
            msg_ids,
        },
        StoreCmd::Replay {
            user,
            after,
            limit,
            bytes_max,
        } => Cmd::Replay {
            user,
            after,
            limit,
            max_bytes: bytes_max,
        },
        StoreCmd::Cursors { user } => Cmd::Cursors { user },
        StoreCmd::SetCursors { cursors } => Cmd::SetCursors { cursors },
        StoreCmd::SetMarks { marks } => Cmd::SetWatermarks {
            marks: marks.into_iter().flat_map(marks_out).collect(),
        },
        StoreCmd::Marks { conv } => Cmd::Watermarks { conv },
        StoreCmd::History {
            conv,
            after,
            before,
            forward,
            limit,
            bytes_max,
        } => Cmd::History {
            conv,
            after,
            before,
            forward,
            limit,
            max_bytes: bytes_max,
        },
        StoreCmd::References {
            user,
            before,
            limit,
        } => Cmd::References {
            user,
            before,
            limit,
        },
        StoreCmd::Count {
            conv,
            after,
            before,
            not_by,
            op,
            kind,
            limit,
        } => Cmd::Count {
            conv,
            after,
            before,
            not_by,
            op,
            kind,
            limit,
        },
        StoreCmd::Redact { conv, conv_seq } => Cmd::Redact { conv, conv_seq },
    })
}

fn record_command(cmd: RecordCmd) -> records::Cmd {
    match cmd {
        RecordCmd::Get { table, key } => records::Cmd::Get {
            table: records::Table(table.0),
            key,
        },
        RecordCmd::Put {
            table,
            key,
            value,
            expect,
            version,
        } => records::Cmd::Put {
            table: records::Table(table.0),
            key,
            value,
            expect: expectation(expect),
            version: records::Version(version),
        },
        RecordCmd::Delete { table, key, expect } => records::Cmd::Delete {
            table: records::Table(table.0),
            key,
            expect: expectation(expect),
        },
        RecordCmd::Scan {
            table,
            prefix,
            after,
            limit,
        } => records::Cmd::Scan {
            table: records::Table(table.0),
            prefix,
            after,
            limit,
        },
    }
}

const fn expectation(expect: store::Expect) -> records::Expect {
    match expect {
        store::Expect::Any => records::Expect::Any,
        store::Expect::Absent => records::Expect::Absent,
        store::Expect::Version(version) => records::Expect::Version(records::Version(version)),
    }
}

/// What the adapter answered, in the core's words. An answer to a question the core never asks is
/// a fault of the adapter.
///
/// # Errors
/// What the adapter failed with.
pub(crate) fn answer(result: Result<Reply, Error>) -> Result<StoreReply, StoreError> {
    match result {
        Ok(Reply::Done) => Ok(StoreReply::Done),
        Ok(Reply::Found(places)) => Ok(StoreReply::Found(places)),
        Ok(Reply::Page { items, more }) => Ok(StoreReply::Page {
            items: items.into_iter().map(item_in).collect(),
            more,
        }),
        Ok(Reply::Cursors(cursors)) => Ok(StoreReply::Cursors(cursors)),
        Ok(Reply::Watermarks(marks)) => {
            Ok(StoreReply::Marks(marks.into_iter().map(marks_in).collect()))
        }
        Ok(Reply::Entries { entries, more }) => Ok(StoreReply::Entries {
            entries: entries.into_iter().map(entry_in).collect(),
            more,
        }),
        Ok(Reply::References { refs, more }) => Ok(StoreReply::References {
            refs: refs.into_iter().map(reference_in).collect(),
            more,
        }),
        Ok(Reply::Count(count)) => Ok(StoreReply::Count(count)),
        Ok(Reply::FanOuts(_) | Reply::Ceiling(_)) => Err(StoreError::Invalid),
        Err(error) => Err(failure(&error)),
    }
}

/// The same for records.
///
/// # Errors
/// What the adapter failed with.
pub(crate) fn record_answer(
    result: Result<records::Reply, Error>,
) -> Result<StoreReply, StoreError> {
    match result {
        Ok(records::Reply::Done) => Ok(StoreReply::Done),
        Ok(records::Reply::Value(row)) => Ok(StoreReply::Record(row.map(record))),
        Ok(records::Reply::Rows(rows)) => {
            Ok(StoreReply::Records(rows.into_iter().map(record).collect()))
        }
        Ok(records::Reply::Taken(_)) => Err(StoreError::Invalid),
        Err(error) => Err(failure(&error)),
    }
}

fn record(row: records::Row) -> store::Record {
    store::Record {
        key: row.key,
        value: row.value,
        version: row.version.0,
    }
}

/// Why a command failed, in the core's words.
#[must_use]
pub(crate) fn failure(error: &Error) -> StoreError {
    match error.kind {
        Kind::Overloaded => StoreError::Overloaded {
            retry_after_ms: error.retry_after.map_or(0, |after| {
                u32::try_from(after.as_millis()).unwrap_or(u32::MAX)
            }),
        },
        Kind::Unavailable => StoreError::Unavailable,
        Kind::Unknown => StoreError::Unknown,
        Kind::Conflict => StoreError::Conflict,
        Kind::Invalid => StoreError::Invalid,
        Kind::Fatal => StoreError::Fatal,
    }
}

fn entry_out(entry: store::Entry) -> Entry {
    Entry {
        conv: entry.conv,
        conv_seq: entry.conv_seq,
        sender: entry.sender,
        device: entry.device,
        msg_id: entry.msg_id,
        meta: EntryMeta {
            op: entry.op,
            kind: entry.kind,
            flags: entry.flags,
            ttl_s: entry.ttl_s,
        },
        body: entry.body,
    }
}

const fn reference(to: store::InboxRef) -> InboxRef {
    InboxRef {
        user: to.user,
        seq: to.seq,
        conv: to.conv,
        conv_seq: to.conv_seq,
    }
}

/// The adapter's mark has one time; two marks that were reached at different times are two rows.
fn marks_out((conv, user, marks): (ConvId, UserId, store::Marks)) -> impl Iterator<Item = Mark> {
    let mark = |delivered, read, at_s| Mark {
        conv,
        user,
        delivered,
        read,
        at_s,
    };
    let none = ConvSeq(0);
    let (first, second) = if marks.delivered_at_s == marks.read_at_s {
        let both = mark(marks.delivered, marks.read, marks.read_at_s);
        (Some(both), None)
    } else {
        let delivered = mark(marks.delivered, none, marks.delivered_at_s);
        let read = mark(none, marks.read, marks.read_at_s);
        (
            (marks.delivered != none).then_some(delivered),
            (marks.read != none).then_some(read),
        )
    };
    first.into_iter().chain(second)
}

fn item_in(item: Item) -> store::Item {
    store::Item {
        seq: item.seq,
        entry: entry_in(item.entry),
    }
}

fn entry_in(entry: Entry) -> store::Entry {
    store::Entry {
        conv: entry.conv,
        conv_seq: entry.conv_seq,
        sender: entry.sender,
        device: entry.device,
        msg_id: entry.msg_id,
        op: entry.meta.op,
        kind: entry.meta.kind,
        flags: entry.meta.flags,
        ttl_s: entry.meta.ttl_s,
        body: entry.body,
    }
}

const fn reference_in(of: InboxRef) -> store::InboxRef {
    store::InboxRef {
        user: of.user,
        seq: of.seq,
        conv: of.conv,
        conv_seq: of.conv_seq,
    }
}

const fn marks_in(mark: Watermark) -> (UserId, store::Marks) {
    let marks = store::Marks {
        delivered: mark.delivered,
        delivered_at_s: mark.delivered_at_s,
        read: mark.read,
        read_at_s: mark.read_at_s,
    };
    (mark.user, marks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use portico_wire::ids::{DeviceId, GroupId, MsgId, Seq};
    use std::time::Duration;

    fn entry() -> store::Entry {
        store::Entry {
            conv: ConvId::direct(UserId(3), UserId(2)),
            conv_seq: ConvSeq(11),
            sender: UserId(3),
            device: DeviceId(4),
            msg_id: MsgId(5),
            op: 34,
            kind: 7,
            flags: 64,
            ttl_s: 9,
            body: Bytes::from_static(b"sealed"),
        }
    }

    #[test]
    fn an_entry_comes_back_as_it_went() {
        let to = store::InboxRef {
            user: UserId(2),
            seq: Seq(12),
            conv: entry().conv,
            conv_seq: ConvSeq(11),
        };
        let cmd = command(StoreCmd::Append { entry: entry(), to });
        let Command::Messages(Cmd::Append {
            entry: stored,
            refs,
            fan_out: false,
        }) = cmd
        else {
            panic!("{cmd:?}");
        };
        assert_eq!(refs.as_slice(), [reference(to)]);
        let reply = Reply::Page {
            items: vec![Item {
                seq: Seq(12),
                entry: stored,
            }],
            more: true,
        };
        let back = store::Item {
            seq: Seq(12),
            entry: entry(),
        };
        let page = StoreReply::Page {
            items: vec![back],
            more: true,
        };
        assert_eq!(answer(Ok(reply)), Ok(page));
    }

    #[test]
    fn an_entry_with_a_marker_has_no_reference() {
        let Command::Messages(Cmd::Append {
            refs,
            fan_out: true,
            ..
        }) = command(StoreCmd::AppendFanOut { entry: entry() })
        else {
            panic!("another command");
        };
        assert!(refs.is_empty());
    }

    #[test]
    fn pages_of_a_conversation_come_back_as_they_are() {
        let page = Reply::Entries {
            entries: vec![entry_out(entry())],
            more: true,
        };
        let expected = StoreReply::Entries {
            entries: vec![entry()],
            more: true,
        };
        assert_eq!(answer(Ok(page)), Ok(expected));
        let to = store::InboxRef {
            user: UserId(2),
            seq: Seq(12),
            conv: entry().conv,
            conv_seq: ConvSeq(11),
        };
        let page = Reply::References {
            refs: vec![reference(to)],
            more: false,
        };
        let expected = StoreReply::References {
            refs: vec![to],
            more: false,
        };
        assert_eq!(answer(Ok(page)), Ok(expected));
        assert_eq!(answer(Ok(Reply::Count(3))), Ok(StoreReply::Count(3)));
    }

    #[test]
    fn marks_keep_both_times() {
        let conv = ConvId::Group(GroupId(1));
        let check = |marks: store::Marks, rows: usize| {
            let cmd = command(StoreCmd::SetMarks {
                marks: vec![(conv, UserId(2), marks)],
            });
            let Command::Messages(Cmd::SetWatermarks { marks: sent }) = cmd else {
                panic!("{cmd:?}");
            };
            assert_eq!(sent.len(), rows);
            let mut stored = Watermark::none(UserId(2));
            sent.iter().for_each(|mark| stored.merge(mark));
            let reply = answer(Ok(Reply::Watermarks(vec![stored])));
            assert_eq!(reply, Ok(StoreReply::Marks(vec![(UserId(2), marks)])));
        };
        let both = store::Marks {
            delivered: ConvSeq(8),
            delivered_at_s: 100,
            read: ConvSeq(5),
            read_at_s: 200,
        };
        check(both, 2);
        check(
            store::Marks {
                read_at_s: 100,
                ..both
            },
            1,
        );
        check(
            store::Marks {
                read: ConvSeq(0),
                read_at_s: 0,
                ..both
            },
            1,
        );
    }

    #[test]
    fn a_record_comes_back_as_it_went() {
        let key = Bytes::from_static(b"key");
        let value = Bytes::from_static(b"value");
        let put = command(StoreCmd::Record(RecordCmd::Put {
            table: store::Table(16),
            key: key.clone(),
            value: value.clone(),
            expect: store::Expect::Version(6),
            version: 7,
        }));
        let Command::Records(records::Cmd::Put {
            table: records::Table(16),
            key,
            value,
            expect: records::Expect::Version(records::Version(6)),
            version,
        }) = put
        else {
            panic!("{put:?}");
        };
        let row = records::Row {
            key: key.clone(),
            value: value.clone(),
            version,
        };
        let record = store::Record {
            key,
            value,
            version: 7,
        };
        let reply = record_answer(Ok(records::Reply::Value(Some(row.clone()))));
        assert_eq!(reply, Ok(StoreReply::Record(Some(record.clone()))));
        let reply = record_answer(Ok(records::Reply::Rows(vec![row])));
        assert_eq!(reply, Ok(StoreReply::Records(vec![record])));
        let unasked = record_answer(Ok(records::Reply::Taken(None)));
        assert_eq!(unasked, Err(StoreError::Invalid));
    }

    #[test]
    fn failures_say_what_the_core_may_conclude() {
        let check = |kind, expected| {
            assert_eq!(answer(Err(Error::new(kind, "no"))), Err(expected));
        };
        check(Kind::Unavailable, StoreError::Unavailable);
        check(Kind::Unknown, StoreError::Unknown);
        check(Kind::Conflict, StoreError::Conflict);
        check(Kind::Invalid, StoreError::Invalid);
        check(Kind::Fatal, StoreError::Fatal);
        let later = Error::overloaded(Duration::from_millis(70), "full");
        assert_eq!(
            failure(&later),
            StoreError::Overloaded { retry_after_ms: 70 }
        );
        assert_eq!(answer(Ok(Reply::Ceiling(Seq(1)))), Err(StoreError::Invalid));
    }
}
