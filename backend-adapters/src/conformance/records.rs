//! The record family.

use super::client::{Client, PATIENCE};
use super::ids::fresh;
use super::{Check, Harness, Outcome, Violation, ensure, ensure_eq, run};
use crate::records::{Cmd, Expect, KEY_BYTES_MAX, Records, Reply, Row, Table, Version};
use crate::{Backend, Kind};
use bytes::Bytes;
use std::collections::HashSet;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

type Opened = Arc<dyn Backend<Records>>;

/// All checks of the record family.
///
/// # Errors
/// The first rule that is broken.
pub fn records(harness: &dyn Harness<Records>) -> Result<(), Violation> {
    let backend = run("open", harness.open())?;
    let checks: [Check<Records>; 8] = [
        ("compare and set", compare_and_set),
        ("repeated put", a_repeated_put_meets_itself),
        ("one batch", a_batch_sees_its_own_writes),
        ("scan", scan_pages_in_key_order),
        ("tables", tables_and_prefixes_do_not_leak),
        ("take one, in order", take_one_takes_the_first),
        ("take one, by many", take_one_takes_each_once),
        ("bad commands", bad_commands_fail_alone),
    ];
    for (name, check) in checks {
        run(name, check(&backend))?;
    }
    if harness.keeps_data() {
        run("restart", restart_keeps_records(harness, backend))?;
    }
    Ok(())
}

const TABLE: Table = Table(1);

fn client(backend: &Opened) -> Client<Records> {
    Client::new(Arc::clone(backend), 0)
}

fn key(prefix: u64, n: u16) -> Bytes {
    [&prefix.to_be_bytes()[..], &n.to_be_bytes()]
        .concat()
        .into()
}

fn prefix(prefix: u64) -> Bytes {
    Bytes::copy_from_slice(&prefix.to_be_bytes())
}

fn put(key: &Bytes, value: &'static [u8], expect: Expect, version: u64) -> Cmd {
    Cmd::Put {
        table: TABLE,
        key: key.clone(),
        value: Bytes::from_static(value),
        expect,
        version: Version(version),
    }
}

fn delete(key: &Bytes, expect: Expect) -> Cmd {
    Cmd::Delete {
        table: TABLE,
        key: key.clone(),
        expect,
    }
}

fn take(of: u64, id: u128) -> Cmd {
    Cmd::TakeOne {
        table: TABLE,
        prefix: prefix(of),
        id,
    }
}

fn get(client: &mut Client<Records>, key: &Bytes) -> Result<Option<(Bytes, u64)>, String> {
    let cmd = Cmd::Get {
        table: TABLE,
        key: key.clone(),
    };
    match client.ok(&cmd)? {
        Reply::Value(row) => {
            ensure!(
                row.as_ref().is_none_or(|row| row.key == *key),
                "a record comes back under its key"
            );
            Ok(row.map(|row| (row.value, row.version.0)))
        }
        other => Err(format!("Get is answered with a value, not {other:?}")),
    }
}

fn taken(client: &mut Client<Records>, cmd: &Cmd) -> Result<Option<Row>, String> {
    match client.ok(cmd)? {
        Reply::Taken(row) => Ok(row),
        other => Err(format!(
            "TakeOne is answered with what it took, not {other:?}"
        )),
    }
}

fn kind_of(client: &mut Client<Records>, cmd: Cmd) -> Result<Option<Kind>, String> {
    let answers = client.settle(&[cmd])?;
    Ok(answers
        .into_iter()
        .next()
        .and_then(Result::err)
        .map(|error| error.kind))
}

fn compare_and_set(backend: &Opened) -> Outcome {
    let mut client = client(backend);
    let key = key(fresh(), 0);
    let at = |version| Expect::Version(Version(version));
    let value = |bytes: &'static [u8], version| Some((Bytes::from_static(bytes), version));
    ensure_eq!(get(&mut client, &key)?, None, "an unknown record is absent");
    client.ok(&put(&key, b"a", Expect::Absent, 10))?;
    let conflict = Some(Kind::Conflict);
    let found = kind_of(&mut client, put(&key, b"b", Expect::Absent, 11))?;
    ensure_eq!(found, conflict, "a present record is not absent");
    let found = kind_of(&mut client, put(&key, b"b", at(9), 11))?;
    ensure_eq!(found, conflict, "another version conflicts");
    ensure_eq!(
        get(&mut client, &key)?,
        value(b"a", 10),
        "a conflict changes nothing"
    );
    client.ok(&put(&key, b"b", at(10), 11))?;
    client.ok(&put(&key, b"", Expect::Any, 12))?;
    let found = kind_of(&mut client, delete(&key, at(11)))?;
    ensure_eq!(found, conflict, "deleting another version conflicts");
    ensure_eq!(
        get(&mut client, &key)?,
        value(b"", 12),
        "an empty value is a value"
    );
    for _ in 0..2 {
        client.ok(&delete(&key, at(12)))?;
        ensure_eq!(get(&mut client, &key)?, None, "what is deleted is absent");
    }
    let found = kind_of(&mut client, put(&key, b"c", at(12), 13))?;
    ensure_eq!(found, conflict, "an absent record has no version");
    Ok(())
}

fn a_repeated_put_meets_itself(backend: &Opened) -> Outcome {
    let mut client = client(backend);
    let key = key(fresh(), 0);
    let first = put(&key, b"a", Expect::Absent, 77);
    client.ok(&first)?;
    client.ok(&first)?;
    client.all_ok(&[first.clone(), first])?;
    let expected = Some((Bytes::from_static(b"a"), 77));
    ensure_eq!(
        get(&mut client, &key)?,
        expected,
        "a repeated put is one put"
    );
    Ok(())
}

/// Several commands on one record in one submission: each sees those before it. Under faults a
/// part of them may be repeated later, so the steps do not undo each other.
fn a_batch_sees_its_own_writes(backend: &Opened) -> Outcome {
    let mut client = client(backend);
    let of = fresh();
    let first = key(of, 0);
    let cmds: Vec<_> = (1..=20)
        .map(|version| {
            let expect = if version == 1 {
                Expect::Absent
            } else {
                Expect::Version(Version(version - 1))
            };
            put(&first, b"x", expect, version)
        })
        .collect();
    // A conflict means that a step before was lost: then the rest is to be sent again.
    let give_up = Instant::now() + PATIENCE;
    loop {
        ensure!(Instant::now() < give_up, "a chain of puts gets through");
        let present = get(&mut client, &first)?.map_or(0, |(_, version)| version);
        let rest = cmds.get(present as usize..).unwrap_or_default();
        if rest.is_empty() {
            break;
        }
        let mut broken = false;
        for answer in client.attempt(rest)? {
            match answer {
                Ok(_) => ensure!(
                    !broken,
                    "a put fails after one that it builds on has failed"
                ),
                Err(error) => {
                    let expected = error.kind == Kind::Conflict || error.kind.is_retryable();
                    ensure!(expected, "a chain of puts fails for a while only: {error}");
                    // An unknown outcome may be a success: then the next one may succeed.
                    broken |= !error.kind.may_have_applied();
                }
            }
        }
    }
    let expected = Some((Bytes::from_static(b"x"), 20));
    ensure_eq!(get(&mut client, &first)?, expected, "all steps were taken");
    Ok(())
}

fn scan(client: &mut Client<Records>, of: u64, limit: u32) -> Result<Vec<Row>, String> {
    let (mut rows, mut after) = (Vec::new(), Bytes::new());
    loop {
        let cmd = Cmd::Scan {
            table: TABLE,
            prefix: prefix(of),
            after: after.clone(),
            limit,
        };
        match client.ok(&cmd)? {
            Reply::Rows(page) => {
                ensure!(page.len() <= limit as usize, "a page keeps its limit");
                let Some(last) = page.last() else {
                    return Ok(rows);
                };
                after = last.key.clone();
                rows.extend(page);
            }
            other => return Err(format!("Scan is answered with rows, not {other:?}")),
        }
    }
}

fn scan_pages_in_key_order(backend: &Opened) -> Outcome {
    let mut client = client(backend);
    let of = fresh();
    for n in (0..20).rev() {
        client.ok(&put(&key(of, n), b"row", Expect::Any, u64::from(n)))?;
    }
    client.ok(&put(&key(of + 1, 0), b"other", Expect::Any, 1))?;
    for limit in [1, 6, 20, 100] {
        let rows = scan(&mut client, of, limit)?;
        let expected: Vec<_> = (0..20)
            .map(|n| Row {
                key: key(of, n),
                value: Bytes::from_static(b"row"),
                version: Version(u64::from(n)),
            })
            .collect();
        ensure_eq!(
            rows,
            expected,
            "a scan gives all rows under its prefix, in order"
        );
    }
    Ok(())
}

fn tables_and_prefixes_do_not_leak(backend: &Opened) -> Outcome {
    let mut client = client(backend);
    let of = fresh();
    let mine = key(of, 1);
    client.ok(&put(&mine, b"mine", Expect::Any, 1))?;
    for (table, key) in [
        (Table(0), mine.clone()),
        (Table(2), mine.clone()),
        (TABLE, prefix(of + 1)),
    ] {
        client.ok(&Cmd::Put {
            table,
            key,
            value: Bytes::from_static(b"other"),
            expect: Expect::Any,
            version: Version(1),
        })?;
    }
    let expected = Some((Bytes::from_static(b"mine"), 1));
    ensure_eq!(
        get(&mut client, &mine)?,
        expected,
        "a table is one name space"
    );
    let rows = scan(&mut client, of, 10)?;
    ensure_eq!(
        rows.len(),
        1,
        "a scan stays in its table and under its prefix"
    );
    for _ in 0..3 {
        taken(&mut client, &take(of, u128::from(fresh()) << 64))?;
    }
    let row = client.ok(&Cmd::Get {
        table: Table(2),
        key: mine,
    })?;
    ensure!(
        matches!(row, Reply::Value(Some(_))),
        "taking stays in its table"
    );
    Ok(())
}

fn take_one_takes_the_first(backend: &Opened) -> Outcome {
    let mut client = client(backend);
    let of = fresh();
    let id = || u128::from(fresh()) << 64;
    let early = id();
    ensure_eq!(
        taken(&mut client, &take(of, early))?,
        None,
        "there is nothing to take"
    );
    client.ok(&put(&key(of, 0), b"prekey", Expect::Any, 5))?;
    ensure_eq!(
        taken(&mut client, &take(of, early))?,
        None,
        "the same id gets the same answer, also if that was nothing"
    );
    let second = id();
    let expected = Some(Row {
        key: key(of, 0),
        value: Bytes::from_static(b"prekey"),
        version: Version(5),
    });
    for _ in 0..3 {
        let row = taken(&mut client, &take(of, second))?;
        ensure_eq!(row, expected, "the same id gets the same row");
    }
    ensure_eq!(
        get(&mut client, &key(of, 0))?,
        None,
        "what is taken is gone"
    );
    ensure_eq!(taken(&mut client, &take(of, id()))?, None, "and taken once");
    Ok(())
}

/// Eight takers, forty rows, every taker asking twice under each id.
fn take_one_takes_each_once(backend: &Opened) -> Outcome {
    let of = fresh();
    let mut filler = client(backend);
    for n in 0..40 {
        filler.ok(&put(&key(of, n), b"prekey", Expect::Any, 1))?;
    }
    let taken: Vec<Bytes> = thread::scope(|scope| -> Result<_, String> {
        let takers: Vec<_> = (0..8)
            .map(|lane| {
                scope.spawn(move || -> Result<Vec<Bytes>, String> {
                    let mut client = Client::new(Arc::clone(backend), lane);
                    let mut keys = Vec::new();
                    for _ in 0..6 {
                        let cmd = take(of, u128::from(fresh()) << 64);
                        let first = taken(&mut client, &cmd)?;
                        let again = taken(&mut client, &cmd)?;
                        ensure_eq!(again, first, "the same id gets the same row");
                        keys.extend(first.map(|row| row.key));
                    }
                    Ok(keys)
                })
            })
            .collect();
        let mut all = Vec::new();
        for taker in takers {
            all.extend(taker.join().map_err(|_| "a taker ends without panic")??);
        }
        Ok(all)
    })?;
    let distinct: HashSet<&Bytes> = taken.iter().collect();
    ensure_eq!(taken.len(), 40, "all rows are handed out");
    ensure_eq!(distinct.len(), 40, "each of them once");
    Ok(())
}

fn bad_commands_fail_alone(backend: &Opened) -> Outcome {
    let mut client = client(backend);
    let (of, caps) = (fresh(), backend.caps());
    let long = Bytes::from(vec![1; KEY_BYTES_MAX + 1]);
    let huge = Cmd::Put {
        table: TABLE,
        key: key(of, 1),
        value: Bytes::from(vec![0; caps.value_bytes_max + 1]),
        expect: Expect::Any,
        version: Version(1),
    };
    let nothing = Cmd::Scan {
        table: TABLE,
        prefix: prefix(of),
        after: Bytes::new(),
        limit: 0,
    };
    let answers = client.settle(&[
        put(&key(of, 0), b"good", Expect::Any, 1),
        huge,
        put(&long, b"bad", Expect::Any, 1),
        nothing,
        put(&key(of, 2), b"good", Expect::Any, 1),
    ])?;
    let kinds: Vec<_> = answers
        .iter()
        .map(|answer| answer.as_ref().err().map(|error| error.kind))
        .collect();
    let invalid = Some(Kind::Invalid);
    ensure_eq!(
        kinds,
        [None, invalid, invalid, invalid, None],
        "a bad command fails alone"
    );
    let rows = scan(&mut client, of, 10)?;
    ensure_eq!(rows.len(), 2, "and nothing of it is applied");
    Ok(())
}

fn restart_keeps_records(harness: &dyn Harness<Records>, backend: Opened) -> Outcome {
    let mut before = client(&backend);
    let (of, id) = (fresh(), u128::from(fresh()) << 64);
    let (kept, deleted) = (key(of, 1), key(of, 2));
    for n in 0..3 {
        before.ok(&put(&key(of, n), b"kept", Expect::Any, 9))?;
    }
    before.ok(&delete(&deleted, Expect::Any))?;
    let row = taken(&mut before, &take(of, id))?;
    drop(before);
    let closed = backend.close(Instant::now() + PATIENCE);
    closed.map_err(|error| format!("a backend closes in time: {error}"))?;
    drop(backend);
    let backend = harness.open()?;
    let mut after = client(&backend);
    let expected = Some((Bytes::from_static(b"kept"), 9));
    ensure_eq!(get(&mut after, &kept)?, expected, "a record is still there");
    ensure_eq!(get(&mut after, &deleted)?, None, "a deleted one is not");
    let again = taken(&mut after, &take(of, id))?;
    ensure_eq!(again, row, "what an id took is remembered");
    Ok(())
}
