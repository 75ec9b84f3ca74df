//! Files that are not as they were written: whatever flips, is cut or is missing, a start either finds
//! everything that was acknowledged or refuses and names the file; and what can be read is saved.

use super::engine::Engine;
use super::journal::{self, Journal, Tail};
use super::revive::Alarm;
use super::salvage::{Salvage, salvage};
use super::write::MessageWriter;
use super::{OpenError, Options, check, survey, tables};
use crate::messages::{Cmd, Entry, EntryMeta, InboxRef, Reply};
use crate::{Reader, Request, Writer};
use bytes::Bytes;
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, MsgId, Seq, UserId};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tempfile::TempDir;

/// 2027-01-15, 08:00 UTC.
const NOW_US: u64 = 1_800_000_000_000_000;
const READER: UserId = UserId(7);
/// Messages of a commit.
const COMMIT: u64 = 3;

/// Message n, and everything that follows from n.
fn append(n: u64) -> Cmd {
    let conv = ConvId::direct(READER, UserId(100 + n % 3));
    let entry = Entry {
        conv,
        conv_seq: ConvSeq(NOW_US + n * 10),
        sender: UserId(100 + n % 3),
        device: DeviceId(1),
        msg_id: MsgId(u128::from(n)),
        meta: EntryMeta::default(),
        body: Bytes::from(format!("message {n}")),
    };
    let refs = vec![InboxRef {
        user: READER,
        seq: Seq(NOW_US + n * 10 + 1),
        conv,
        conv_seq: entry.conv_seq,
    }];
    Cmd::Append {
        entry,
        refs: refs.into(),
        fan_out: false,
    }
}

struct Store {
    dir: TempDir,
    engine: Option<Arc<Engine>>,
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path()).unwrap();
        Self {
            dir,
            engine: Some(engine),
        }
    }

    /// Closed in order, with so many commits.
    fn with_commits(commits: u64) -> Self {
        let mut store = Self::new();
        for commit in 0..commits {
            store.commit(commit * COMMIT..(commit + 1) * COMMIT);
        }
        store.close();
        store
    }

    fn commit(&self, numbers: std::ops::Range<u64>) {
        let mut cmds: Vec<Cmd> = numbers.map(append).collect();
        cmds.push(Cmd::SetCursors {
            cursors: vec![(READER, DeviceId(1), Seq(NOW_US))],
        });
        let requests: Vec<_> = cmds
            .into_iter()
            .map(|cmd| Request {
                token: 0,
                lane: 0,
                deadline: Instant::now(),
                cmd,
            })
            .collect();
        let mut results = Vec::new();
        let engine = self.engine.as_ref().unwrap();
        MessageWriter::new(Arc::clone(engine)).apply(&requests, &mut results);
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }

    /// Writes all rows out into tables.
    fn flush(&self) {
        let db = &self.engine.as_ref().unwrap().db;
        for name in db.list_keyspace_names() {
            let keyspace = db.keyspace(&name, || unreachable!("it exists")).unwrap();
            keyspace.rotate_memtable_and_wait().unwrap();
        }
    }

    fn close(&mut self) {
        self.engine = None;
    }

    /// As after a crash: without the note of an orderly end.
    fn crashed(self) -> Self {
        let _ = fs::remove_file(self.path().join("floor"));
        self
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn journal(&self) -> PathBuf {
        journal::list(self.path()).unwrap().pop().unwrap().1
    }

    /// The directory of a keyspace.
    fn keyspace(&self, prefix: &str) -> PathBuf {
        let found = survey::survey(self.path()).unwrap();
        let mut ids = found
            .names
            .iter()
            .filter(|(_, name)| name.starts_with(prefix));
        let (id, _) = ids.next().unwrap();
        self.path().join("keyspaces").join(id.to_string())
    }

    /// The tables of a keyspace.
    fn tables(&self, prefix: &str) -> Vec<PathBuf> {
        let dir = self.keyspace(prefix).join("tables");
        let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
        files.collect()
    }
}

fn open(dir: &Path) -> Result<Arc<Engine>, OpenError> {
    Engine::open(&Options::new(dir), Arc::default(), Alarm::new().0).map(Arc::new)
}

/// The messages in the inbox, or why it cannot be read.
fn inbox(engine: &Arc<Engine>) -> Result<BTreeSet<u64>, String> {
    let mut reader = super::MessageReader::new(Arc::clone(engine));
    let replay = Cmd::Replay {
        user: READER,
        after: Seq(0),
        limit: 4_000,
        max_bytes: u32::MAX,
    };
    match reader.read(&replay) {
        Ok(Reply::Page { items, more: false }) => {
            let numbers = items.iter().map(|item| {
                let n = u64::try_from(item.entry.msg_id.0).unwrap();
                assert_eq!(item.entry.body, format!("message {n}"));
                n
            });
            Ok(numbers.collect())
        }
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

fn flip(file: &Path, at: u64, bit: u8) {
    let file = File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
}

fn cut(file: &Path, len: u64) {
    File::options()
        .write(true)
        .open(file)
        .unwrap()
        .set_len(len)
        .unwrap();
}

fn scan(file: &Path) -> Journal {
    journal::scan(0, file, None).unwrap()
}

/// Cut to its data, so that reading it takes no time.
fn small_journal(store: &Store) -> (PathBuf, Journal) {
    let path = store.journal();
    let whole = scan(&path);
    assert_eq!(whole.tail, Tail::Clean);
    cut(&path, whole.whole_bytes);
    (path, whole)
}

#[test]
fn every_cut_of_the_last_commit_is_torn_and_of_the_rest_nothing_is_lost() {
    let store = Store::with_commits(3);
    let (path, whole) = small_journal(&store);
    let bytes = fs::read(&path).unwrap();
    for at in whole.last_at + 1..whole.whole_bytes {
        for zeros in [0, 600] {
            let mut torn = bytes[..at as usize].to_vec();
            let kept = torn.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
            torn.resize(torn.len() + zeros, 0);
            fs::write(&path, torn).unwrap();
            let found = scan(&path);
            assert_eq!(found.whole_bytes, whole.last_at, "cut at {at}");
            // Zeros at the end of what was written cannot be told from zeros ahead of use.
            let bytes = kept - whole.last_at;
            assert_eq!(found.tail, Tail::Torn { bytes }, "cut at {at}");
        }
    }
    // Exactly between two commits there is nothing to see: that is what the note is for.
    cut(&path, whole.last_at);
    assert_eq!(scan(&path).tail, Tail::Clean);
    let error = open(store.path()).err().unwrap();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert!(
        error.to_string().contains(&path.display().to_string()),
        "{error}"
    );
}

#[test]
fn every_flipped_bit_of_a_journal_is_found_or_harmless() {
    let store = Store::with_commits(2);
    let (path, whole) = small_journal(&store);
    let bytes = fs::read(&path).unwrap();
    let mut accepted = 0;
    for at in 0..bytes.len() {
        for bit in [at % 8, (at + 3) % 8] {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            // As it is after a crash, with zeros ahead of use.
            flipped.resize(bytes.len() + 100, 0);
            fs::write(&path, flipped).unwrap();
            let found = scan(&path);
            match found.tail {
                Tail::Damaged { .. } => {}
                Tail::Clean => {
                    // A number that still rises: the order of commits is as it was.
                    assert_eq!(found.commits, whole.commits, "byte {at}, bit {bit}");
                    accepted += 1;
                }
                Tail::Torn { .. } => panic!("byte {at}, bit {bit} passes for a torn commit"),
            }
        }
    }
    assert!(
        accepted < 16 * whole.commits,
        "{accepted} flips of numbers were accepted"
    );
}

#[test]
fn a_flipped_bit_before_a_torn_commit_is_not_taken_for_its_begin() {
    let store = Store::with_commits(4);
    let (path, whole) = small_journal(&store);
    let first_end = first_commit_end(&path);
    cut(&path, whole.whole_bytes - 5);
    // The tag of the first row of the second commit.
    flip(&path, first_end + 13, 4);
    let Tail::Damaged { goes_on_at, .. } = scan(&path).tail else {
        panic!("{:?}", scan(&path).tail);
    };
    assert!(goes_on_at.is_some_and(|at| at > first_end && at < whole.last_at));
}

fn first_commit_end(path: &Path) -> u64 {
    let mut reader = journal::JournalReader::open(path).unwrap();
    reader.commit(0).unwrap().unwrap().end
}

#[test]
fn a_store_with_a_flipped_bit_in_its_journal_opens_whole_or_not_at_all() {
    let store = Store::with_commits(6).crashed();
    let (path, whole) = small_journal(&store);
    let bytes = fs::read(&path).unwrap();
    let all: BTreeSet<u64> = (0..6 * COMMIT).collect();
    let mut refused = 0;
    for step in 0..16 {
        let at = whole.whole_bytes * step / 16 + step % 7;
        fs::write(&path, &bytes).unwrap();
        flip(&path, at, (step % 8) as u8);
        match open(store.path()) {
            Ok(engine) => {
                assert_eq!(inbox(&engine).unwrap(), all, "byte {at}");
                // What it has written must not count in the next step.
                drop(engine);
            }
            Err(error) => {
                refused += 1;
                let text = error.to_string();
                assert!(text.contains(&path.display().to_string()), "{text}");
                assert!(text.contains("portico store check"), "{text}");
                let left = fs::read(&path).unwrap();
                assert_eq!(left.len(), bytes.len(), "a refused store is not changed");
            }
        }
        let _ = fs::remove_file(store.path().join("floor"));
    }
    assert!(refused > 8, "only {refused} of 16 were refused");
    fs::write(&path, &bytes).unwrap();
    assert_eq!(inbox(&open(store.path()).unwrap()).unwrap(), all);
}

#[test]
fn lists_of_tables_that_are_changed_or_gone_are_refused_by_name() {
    let store = Store::new();
    store.commit(0..9);
    store.flush();
    let mut store = store;
    store.close();
    small_journal(&store);
    let dir = store.keyspace("entry-");
    let list = fs::read_dir(&dir).unwrap().map(|file| file.unwrap().path());
    let list = list.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with('v'));
    let list = list.last().unwrap();
    for file in [dir.join("current"), list] {
        let bytes = fs::read(&file).unwrap();
        for at in 0..bytes.len() {
            fs::write(&file, &bytes).unwrap();
            flip(&file, at as u64, (at % 8) as u8);
            let found = survey::survey(store.path()).unwrap();
            let named = found
                .damage
                .iter()
                .any(|damage| damage.file.starts_with(&dir));
            assert!(named, "byte {at} of {}: {:?}", file.display(), found.damage);
        }
        fs::write(&file, &bytes).unwrap();
        refuses_without(&store, &file);
    }
}

/// Takes a file or directory away, and puts it back.
#[track_caller]
fn refuses_without(store: &Store, path: &Path) {
    let aside = store.path().with_extension("aside");
    fs::rename(path, &aside).unwrap();
    let error = open(store.path()).err().expect("must not open");
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&path.display().to_string()), "{text}");
    fs::rename(&aside, path).unwrap();
}

#[test]
fn files_that_are_missing_are_named() {
    let store = Store::new();
    store.commit(0..9);
    store.flush();
    let mut store = store;
    store.close();
    let mut store = Store {
        engine: Some(open(store.path()).unwrap()),
        ..store
    };
    store.commit(9..12);
    store.close();
    small_journal(&store);
    refuses_without(&store, &store.path().join("version"));
    refuses_without(&store, &store.journal());
    refuses_without(&store, &store.tables("entry-")[0]);
    refuses_without(&store, &store.keyspace("entry-"));
    refuses_without(&store, &store.keyspace("cursor"));
    refuses_without(&store, &store.path().join("keyspaces/0/current"));
    refuses_without(&store, &store.path().join("keyspaces/0"));
    let all: BTreeSet<u64> = (0..12).collect();
    assert_eq!(inbox(&open(store.path()).unwrap()).unwrap(), all);
}

/// What a kill leaves of a first start, or of a month that is being dropped, is no damage.
#[test]
fn a_creation_or_a_deletion_that_was_cut_short_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("version"), survey::COMPLETE_MARK_BYTES).unwrap();
    fs::write(dir.path().join("0.jnl"), [0; 4_096]).unwrap();
    fs::create_dir_all(dir.path().join("keyspaces/1/tables")).unwrap();
    drop(open(dir.path()).unwrap());

    let mut store = mixed();
    store.close();
    // A keyspace that nobody names, and of which only tables are left.
    let left = store.path().join("keyspaces/99/tables");
    fs::create_dir_all(&left).unwrap();
    fs::copy(&store.tables("entry-")[0], left.join("1")).unwrap();
    assert_eq!(survey::survey(store.path()).unwrap().damage, []);
    assert_eq!(inbox(&open(store.path()).unwrap()).unwrap().len(), 303);
    assert!(!left.exists());
}

/// Name, length, content and time of change of every file.
fn state(dir: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for file in fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        let about = fs::metadata(&path).unwrap();
        if about.is_dir() {
            found.insert(
                path.clone(),
                (0, about.mtime(), about.mtime_nsec(), Vec::new()),
            );
            found.extend(state(&path));
        } else {
            let mut bytes = fs::read(&path).unwrap();
            bytes.truncate(1 << 20);
            found.insert(
                path,
                (about.len(), about.mtime(), about.mtime_nsec(), bytes),
            );
        }
    }
    found
}

/// Most rows in tables, some in the journal.
fn mixed() -> Store {
    let store = Store::new();
    for commit in 0..100 {
        store.commit(commit * COMMIT..(commit + 1) * COMMIT);
    }
    store.flush();
    store.commit(300..303);
    store
}

#[test]
fn a_check_counts_what_is_there_and_changes_nothing() {
    let mut store = mixed();
    let error = check::check(store.path()).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    store.close();
    let before = state(store.path());
    let report = check::check(store.path()).unwrap();
    assert_eq!(state(store.path()), before);
    assert_eq!(report.verdict, check::Verdict::Sound, "{report:#?}");
    assert_eq!(report.closed, Some(true));
    let content = report.content.unwrap();
    let month = &content.months[0];
    assert_eq!((month.entries, month.references), (303, 303));
    assert_eq!((content.cursors, content.format), (1, 1));
    assert_eq!(content.greatest, NOW_US + 302 * 10 + 1);
    assert!(content.ceiling > content.greatest);
    assert!(check::check(&store.path().join("nowhere")).is_err());
}

#[test]
fn a_check_tells_a_torn_commit_from_a_flipped_bit() {
    let store = Store::with_commits(4).crashed();
    let (path, whole) = small_journal(&store);
    cut(&path, whole.whole_bytes - 1);
    let report = check::check(store.path()).unwrap();
    assert_eq!(report.verdict, check::Verdict::Torn, "{report:#?}");
    assert_eq!(
        report.journals[0].torn_bytes,
        whole.whole_bytes - 1 - whole.last_at
    );
    assert_eq!(report.content.unwrap().months[0].entries, 3 * COMMIT);
    flip(&path, whole.last_at / 2, 3);
    let report = check::check(store.path()).unwrap();
    assert_eq!(report.verdict, check::Verdict::Damaged);
    assert_eq!(report.damage[0].file, path);
    assert!(
        report.damage[0]
            .at
            .is_some_and(|at| at <= whole.last_at / 2)
    );
    assert_eq!(report.content, None);
}

#[test]
fn a_check_finds_rows_that_contradict_each_other() {
    let store = Store::new();
    store.commit(0..6);
    let engine = store.engine.as_ref().unwrap();
    let months = engine.months();
    let entries = months.entries.values().next().unwrap();
    let rows: Vec<_> = entries
        .iter()
        .map(|row| row.into_inner().unwrap())
        .collect();
    // The entry of a reference is gone, one lies where it does not belong, and one is not a row.
    entries.remove(rows[0].0.clone()).unwrap();
    let mut elsewhere = rows[1].0.to_vec();
    elsewhere[0] ^= 1;
    entries.insert(elsewhere, rows[1].1.clone()).unwrap();
    let mut again = rows[2].0.to_vec();
    *again.last_mut().unwrap() ^= 1;
    entries.insert(again, rows[2].1.clone()).unwrap();
    entries.insert(rows[3].0.clone(), "nonsense").unwrap();
    engine
        .meta
        .insert("clock", (NOW_US + 30).to_be_bytes())
        .unwrap();
    drop(months);
    let mut store = store;
    store.close();
    let report = check::check(store.path()).unwrap();
    assert_eq!(report.verdict, check::Verdict::Damaged);
    assert_eq!(report.damage, []);
    let broken: BTreeMap<&str, u64> = report
        .broken
        .iter()
        .map(|broken| (broken.rule.split(' ').next().unwrap(), broken.rows))
        .collect();
    assert_eq!(report.broken.len(), 5, "{:#?}", report.broken);
    // Two references whose entries are gone or unreadable.
    let references = report
        .broken
        .iter()
        .find(|b| b.rule.contains("inbox reference"));
    assert_eq!(references.unwrap().rows, 2, "{broken:?}");
    assert!(
        report
            .broken
            .iter()
            .all(|broken| !broken.examples.is_empty())
    );
}

#[test]
fn a_damaged_table_is_named_and_the_rest_of_it_is_saved() {
    let mut store = mixed();
    store.close();
    // Its journal has been replaced by a later one, as it is after some time.
    fs::remove_file(store.journal()).unwrap();
    fs::write(store.path().join("1.jnl"), "").unwrap();
    let table = store.tables("entry-").remove(0);
    let blocks = tables::blocks(&table).unwrap();
    assert!(blocks.good.len() > 4 && blocks.bad.is_empty(), "{blocks:?}");
    let (begin, end) = blocks.good[2];
    flip(&table, begin + (end - begin) / 2, 5);

    let report = check::check(store.path()).unwrap();
    assert_eq!(report.verdict, check::Verdict::Damaged);
    assert_eq!(
        (&report.damage[0].file, report.damage[0].at),
        (&table, Some(begin))
    );
    // The gateway opens it, and refuses what it cannot read instead of passing it over.
    let engine = open(store.path()).unwrap();
    let error = inbox(&engine).unwrap_err();
    assert!(error.contains("damaged"), "{error}");
    drop(engine);

    let to = tempfile::tempdir().unwrap();
    let saved = salvage(store.path(), to.path()).unwrap();
    assert_eq!(saved.lost.len(), 1, "{saved:#?}");
    assert_eq!((saved.lost_bytes, saved.references), (end - begin, 300));
    assert!(
        saved.entries > 200 && saved.entries < 300,
        "{}",
        saved.entries
    );
    assert_eq!(salvaged(&to), saved.entries);
}

/// Messages that a salvaged store serves, after a look at it.
fn salvaged(to: &TempDir) -> u64 {
    let report = check::check(to.path()).unwrap();
    assert_eq!(report.damage, []);
    let content = report.content.unwrap();
    assert!(content.ceiling > content.greatest);
    assert_eq!(content.cursors, 1);
    inbox(&open(to.path()).unwrap()).unwrap().len() as u64
}

#[test]
fn a_damaged_journal_loses_one_commit_when_it_is_saved() {
    let store = Store::with_commits(9);
    let (path, whole) = small_journal(&store);
    flip(&path, whole.last_at / 2, 1);
    let before = state(store.path());
    let to = tempfile::tempdir().unwrap();
    let saved: Salvage = salvage(store.path(), to.path()).unwrap();
    assert_eq!(state(store.path()), before, "the old store is not changed");
    assert_eq!((saved.entries, saved.references), (8 * COMMIT, 8 * COMMIT));
    assert_eq!(saved.rows_unknown, 0, "{saved:#?}");
    assert_eq!(salvaged(&to), 8 * COMMIT);
    // Not into a directory that holds something.
    let error = salvage(store.path(), to.path()).unwrap_err();
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
}

#[test]
fn a_store_whose_names_are_lost_is_saved_by_the_shape_of_its_rows() {
    let mut store = mixed();
    store.close();
    fs::remove_dir_all(store.path().join("keyspaces/0")).unwrap();
    fs::remove_file(store.path().join("version")).unwrap();
    let to = tempfile::tempdir().unwrap();
    let saved = salvage(store.path(), to.path()).unwrap();
    assert_eq!((saved.entries, saved.references), (303, 303), "{saved:#?}");
    assert_eq!(salvaged(&to), 303);
}

#[test]
fn a_sound_store_is_saved_whole() {
    let mut store = mixed();
    store.close();
    let to = tempfile::tempdir().unwrap();
    let saved = salvage(store.path(), to.path()).unwrap();
    assert_eq!(saved.lost, []);
    assert_eq!((saved.entries, saved.references), (303, 303));
    assert_eq!((saved.cursors, saved.rows_unknown), (1, 0));
    assert_eq!(salvaged(&to), 303);
}
