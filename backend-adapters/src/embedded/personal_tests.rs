//! What is told of a user is what the user may see, and what is erased is in no file any more.

use super::engine::Engine;
use super::personal::{Erased, Found, Progress, erase, export};
use super::records::RecordWriter;
use super::revive::Alarm;
use super::write::MessageWriter;
use super::{OpenError, Options, check};
use crate::messages::{Cmd, Entry, EntryMeta, InboxRef, Mark, Messages};
use crate::records::{self, Expect, Records, Table, Version};
use crate::{Family, Request, Writer};
use bytes::Bytes;
use portico_wire::Op;
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, GroupId, MsgId, Seq, UserId};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// 2026-12-31, 08:00 UTC, and a day later in the next month.
const OLD_US: u64 = 1_798_704_000_000_000;
const NEW_US: u64 = OLD_US + 86_400_000_000;
const USER: UserId = UserId(0x0a11_ce00);
const PEER: UserId = UserId(0x0b0b_0000);
const OTHER: UserId = UserId(0x0ca2_0100);
const SECRET: &str = "what-nobody-may-read-again";

fn message(conv: ConvId, sender: UserId, at: u64, op: Op, body: &str) -> Entry {
    Entry {
        conv,
        conv_seq: ConvSeq(at),
        sender,
        device: DeviceId(1),
        msg_id: MsgId(u128::from(at)),
        meta: EntryMeta {
            op: op as u8,
            ..EntryMeta::default()
        },
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn append(entry: Entry, readers: &[UserId]) -> Cmd {
    let refs = readers.iter().map(|user| InboxRef {
        user: *user,
        seq: Seq(entry.conv_seq.0 + 1),
        conv: entry.conv,
        conv_seq: entry.conv_seq,
    });
    Cmd::Append {
        refs: refs.collect(),
        entry,
        fan_out: false,
    }
}

fn request<F: Family>(cmd: F::Cmd) -> Request<F> {
    Request {
        token: 0,
        lane: 0,
        deadline: Instant::now(),
        cmd,
    }
}

fn open(dir: &Path) -> Arc<Engine> {
    let engine = Engine::open(&Options::new(dir), Arc::default(), Alarm::new().0);
    Arc::new(engine.expect("opens"))
}

/// Two months of three users: a direct conversation, one that the user is no part of, and a group. What
/// the user says holds [`SECRET`], and what is in tables as well as what is only in the journal.
fn fill(dir: &Path) {
    let direct = ConvId::direct(USER, PEER);
    let group = ConvId::Group(GroupId(7));
    let foreign = ConvId::direct(PEER, OTHER);
    for start in [OLD_US, NEW_US] {
        let engine = open(dir);
        let mut cmds = Vec::new();
        for n in 0..50 {
            let at = start + n * 100;
            let own = format!("{SECRET} {n}");
            let entries = [
                (message(direct, USER, at, Op::Deliver, &own), PEER),
                (message(direct, PEER, at + 10, Op::Deliver, "peer"), USER),
                (message(group, USER, at + 20, Op::Deliver, &own), PEER),
                (message(group, PEER, at + 30, Op::Deliver, "peer"), USER),
                (message(foreign, PEER, at + 40, Op::Deliver, "peer"), OTHER),
            ];
            cmds.extend(entries.map(|(entry, reader)| append(entry, &[reader])));
        }
        cmds.push(append(
            message(direct, USER, start + 90_000, Op::Revoke, "ids"),
            &[PEER],
        ));
        cmds.push(Cmd::SetCursors {
            cursors: vec![
                (USER, DeviceId(1), Seq(start)),
                (PEER, DeviceId(1), Seq(start)),
            ],
        });
        let mark = |user| Mark {
            conv: direct,
            user,
            delivered: ConvSeq(start),
            read: ConvSeq(start),
            at_s: 9,
        };
        cmds.push(Cmd::SetWatermarks {
            marks: vec![mark(USER), mark(PEER)],
        });
        let batch: Vec<_> = cmds.into_iter().map(request::<Messages>).collect();
        let mut results = Vec::new();
        MessageWriter::new(Arc::clone(&engine)).apply(&batch, &mut results);
        assert!(results.iter().all(Result::is_ok));
        let put = |table, user: UserId, value: &str| records::Cmd::Put {
            table: Table(table),
            key: Bytes::copy_from_slice(&user.0.to_be_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            expect: Expect::Any,
            version: Version(start),
        };
        let puts = [
            put(33, USER, SECRET),
            put(33, PEER, "peer"),
            put(1, USER, "generation"),
        ];
        let batch: Vec<_> = puts.into_iter().map(request::<Records>).collect();
        let mut results = Vec::new();
        RecordWriter::new(Arc::clone(&engine)).apply(&batch, &mut results);
        assert!(results.iter().all(Result::is_ok));
        if start == OLD_US {
            for keyspace in engine.months().entries.values() {
                keyspace.rotate_memtable_and_wait().expect("writes a table");
            }
        }
    }
}

fn told(dir: &Path, user: UserId) -> Vec<Found> {
    let mut all = Vec::new();
    let exported = export(dir, user, &mut |found| {
        all.push(found);
        Ok(())
    });
    exported.expect("the store can be read");
    all
}

fn bodies(found: &[Found], of: UserId) -> usize {
    let full = |found: &&Found| matches!(found, Found::Message(entry) if entry.sender == of && !entry.body.is_empty());
    found.iter().filter(full).count()
}

/// Files below a directory that hold these bytes.
fn files_with(dir: &Path, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files_with(&path, bytes));
        } else if fs::read(&path)
            .expect("a file")
            .windows(bytes.len())
            .any(|window| window == bytes)
        {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn an_export_tells_what_the_user_may_see_and_no_more() {
    let dir = tempfile::tempdir().expect("a directory");
    fill(dir.path());
    let all = told(dir.path(), USER);
    assert_eq!(bodies(&all, USER), 202, "own messages, and two withdrawals");
    assert_eq!(bodies(&all, PEER), 200, "those of both conversations");
    let foreign = |found: &Found| match found {
        Found::Message(entry) => entry.conv == ConvId::direct(PEER, OTHER),
        _ => false,
    };
    assert!(!all.iter().any(foreign));
    let count = |is: fn(&Found) -> bool| all.iter().filter(|found| is(found)).count();
    assert_eq!(count(|found| matches!(found, Found::Cursor(..))), 1);
    assert_eq!(count(|found| matches!(found, Found::Mark(..))), 1);
    assert_eq!(
        count(|found| matches!(found, Found::Record { value, .. } if *value == SECRET)),
        1
    );
    assert_eq!(count(|found| matches!(found, Found::Record { .. })), 1);
    let stranger = told(dir.path(), UserId(99));
    assert!(stranger.is_empty());
}

#[test]
fn what_is_erased_is_in_no_file_and_the_rest_stays() {
    let dir = tempfile::tempdir().expect("a directory");
    fill(dir.path());
    assert!(files_with(dir.path(), SECRET.as_bytes()).len() >= 2);
    let before = told(dir.path(), PEER);
    let mut steps = Vec::new();
    let erased = erase(dir.path(), USER, &mut |progress| steps.push(progress));
    let erased = erased.expect("erases");
    let body_bytes = (0..50).map(|n| SECRET.len() + 1 + format!("{n}").len());
    let expected = Erased {
        entries_looked_at: 502,
        bodies: 200,
        body_bytes: 4 * body_bytes.sum::<usize>() as u64,
        references: 200,
        cursors: 1,
        watermarks: 1,
        records: 1,
    };
    assert_eq!(erased, expected);
    assert!(steps.contains(&Progress::Looked(502)));
    let compacts = |step: &&Progress| matches!(step, Progress::Compacting { .. });
    assert!(steps.iter().filter(compacts).count() >= 7);
    let holding = files_with(dir.path(), SECRET.as_bytes());
    assert!(holding.is_empty(), "still there: {holding:?}");

    let all = told(dir.path(), USER);
    assert_eq!(bodies(&all, USER), 2, "withdrawals name ids alone");
    assert_eq!(
        bodies(&all, PEER),
        100,
        "the peer's own words are the peer's"
    );
    assert!(all.iter().all(|found| matches!(found, Found::Message(_))));
    let after = told(dir.path(), PEER);
    assert_eq!(after.len(), before.len(), "others miss nothing");
    assert_eq!(bodies(&after, PEER), bodies(&before, PEER));
    let report = check::check(dir.path()).expect("can be looked at");
    assert_eq!(report.verdict, check::Verdict::Sound, "{report:?}");
    let content = report.content.expect("its rows are told");
    assert_eq!(content.records, 2, "generations of devices stay");

    // Once more is harmless, and finds nothing.
    let again = erase(dir.path(), USER, &mut |_| {}).expect("erases");
    let nothing = Erased {
        entries_looked_at: 502,
        ..Erased::default()
    };
    assert_eq!(again, nothing);
}

#[test]
fn a_store_that_is_open_or_absent_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    fill(dir.path());
    let engine = open(dir.path());
    let refused = erase(dir.path(), USER, &mut |_| {});
    assert!(
        matches!(refused, Err(OpenError::InUse { .. })),
        "{refused:?}"
    );
    let refused = export(dir.path(), USER, &mut |_| Ok(()));
    assert!(
        matches!(refused, Err(OpenError::InUse { .. })),
        "{refused:?}"
    );
    drop(engine);
    let absent = dir.path().join("nothing");
    assert!(erase(&absent, USER, &mut |_| {}).is_err());
    assert!(!absent.exists(), "and none is made");
    // The first word that cannot be written ends it.
    let full = || std::io::Error::other("no room");
    let failed = export(dir.path(), USER, &mut |_| Err(full()));
    assert!(failed.is_err_and(|error| error.to_string().contains("no room")));
}
