//! The store from inside: which rows lie where, what damaged ones do, and when months come and
//! go. What it does for its callers is checked by the conformance suite.

use super::engine::{Engine, MONTHS_MAX};
use super::month::{DAY_US, Month};
use super::read::MessageReader;
use super::records::{RecordReader, RecordWriter};
use super::revive::Alarm;
use super::write::MessageWriter;
use super::{OpenError, Options, layout};
use crate::messages::{self, Cmd, Entry, EntryMeta, InboxRef, Mark, Messages, Refs, Reply};
use crate::records::{self, Expect, Records, Table, Version};
use crate::{Error, Family, Kind, Reader, Request, Writer};
use bytes::Bytes;
use fjall::Keyspace;
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, GroupId, MsgId, Seq, UserId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tempfile::TempDir;

/// 2027-01-15, 08:00 UTC.
const NOW_US: u64 = 1_800_000_000_000_000;
const CONV: ConvId = ConvId::Group(GroupId(0x77));
const USER: UserId = UserId(0x11);

struct Store {
    engine: Arc<Engine>,
    damage: Arc<AtomicU64>,
    dir: TempDir,
}

impl Store {
    fn new() -> Self {
        Self::open(tempfile::tempdir().expect("a directory"))
    }

    fn open(dir: TempDir) -> Self {
        let damage = Arc::new(AtomicU64::new(0));
        let engine = Engine::open(
            &Options::new(dir.path()),
            Arc::clone(&damage),
            Alarm::new().0,
        );
        Self {
            engine: Arc::new(engine.expect("opens")),
            damage,
            dir,
        }
    }

    fn write(&self, cmds: &[Cmd]) -> Vec<Result<Reply, Error>> {
        apply(&mut MessageWriter::new(Arc::clone(&self.engine)), cmds)
    }

    fn ok(&self, cmds: &[Cmd]) {
        for result in self.write(cmds) {
            result.expect("succeeds");
        }
    }

    fn read(&self, cmd: &Cmd) -> Reply {
        let mut reader = MessageReader::new(Arc::clone(&self.engine));
        reader.read(cmd).expect("succeeds")
    }

    fn record(&self, cmd: records::Cmd) -> Result<records::Reply, Error> {
        if Records::is_read(&cmd) {
            RecordReader::new(Arc::clone(&self.engine)).read(&cmd)
        } else {
            let mut writer = RecordWriter::new(Arc::clone(&self.engine));
            apply::<Records>(&mut writer, &[cmd]).remove(0)
        }
    }

    fn keyspace(&self, name: &str) -> Keyspace {
        assert!(self.engine.db.keyspace_exists(name), "there is a {name}");
        let keyspace = self.engine.db.keyspace(name, || unreachable!("it exists"));
        keyspace.expect("opens")
    }

    /// All rows of a keyspace, in hex.
    fn rows(&self, name: &str) -> Vec<(String, String)> {
        let rows = self.keyspace(name).iter().map(|row| {
            let (key, value) = row.into_inner().expect("can be read");
            (hex(&key), hex(&value))
        });
        rows.collect()
    }

    /// Partitions, without their prefix.
    fn months(&self, prefix: &str) -> Vec<String> {
        let names = self.engine.db.list_keyspace_names().into_iter();
        let months = names.filter_map(|name| Some(name.strip_prefix(prefix)?.to_owned()));
        let mut months: Vec<_> = months.collect();
        months.sort();
        months
    }

    fn damaged(&self) -> u64 {
        self.damage.load(Ordering::Relaxed)
    }
}

fn apply<F: Family>(writer: &mut impl Writer<F>, cmds: &[F::Cmd]) -> Vec<Result<F::Reply, Error>> {
    let requests: Vec<_> = cmds
        .iter()
        .map(|cmd| Request {
            token: 0,
            lane: 0,
            deadline: Instant::now(),
            cmd: cmd.clone(),
        })
        .collect();
    let mut results = Vec::new();
    writer.apply(&requests, &mut results);
    assert_eq!(results.len(), cmds.len());
    results
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn entry(at: u64) -> Entry {
    Entry {
        conv: CONV,
        conv_seq: ConvSeq(at),
        sender: UserId(5),
        device: DeviceId(6),
        msg_id: MsgId(u128::from(at)),
        meta: EntryMeta::default(),
        body: Bytes::from_static(b"hi"),
    }
}

fn reference(seq: u64, at: u64) -> InboxRef {
    InboxRef {
        user: USER,
        seq: Seq(seq),
        conv: CONV,
        conv_seq: ConvSeq(at),
    }
}

/// An entry at `at` and a reference one later.
fn direct(at: u64) -> Cmd {
    Cmd::Append {
        entry: entry(at),
        refs: vec![reference(at + 1, at)].into(),
        fan_out: false,
    }
}

fn replay() -> Cmd {
    Cmd::Replay {
        user: USER,
        after: Seq(0),
        limit: 100,
        max_bytes: u32::MAX,
    }
}

fn seqs(reply: Reply) -> Vec<u64> {
    match reply {
        Reply::Page { items, .. } => items.iter().map(|item| item.seq.0).collect(),
        Reply::Entries { entries, .. } => entries.iter().map(|entry| entry.conv_seq.0).collect(),
        other => panic!("not a page: {other:?}"),
    }
}

#[test]
fn rows_lie_where_the_document_says() {
    let store = Store::new();
    let h12 = hex(&store.engine.hash.h12(CONV));
    let conv = hex(&CONV.to_bytes());
    let at = format!("{NOW_US:016x}");
    store.ok(&[
        Cmd::Append {
            entry: entry(NOW_US),
            refs: vec![reference(NOW_US + 1, NOW_US)].into(),
            fan_out: true,
        },
        Cmd::SetCursors {
            cursors: vec![(USER, DeviceId(2), Seq(0x33))],
        },
        Cmd::SetWatermarks {
            marks: vec![Mark {
                conv: CONV,
                user: USER,
                delivered: ConvSeq(0xa),
                read: ConvSeq(0xb),
                at_s: 0xc,
            }],
        },
    ]);
    let row = |key: String, value: String| vec![(key, value)];
    let head = "0100000000000000";
    let body = "000000026869";
    let msg_id = format!("0000000000000000{at}");
    let entry = format!("{head}{conv}000000000000000500000006{msg_id}{body}");
    assert_eq!(
        store.rows("entry-2027-01"),
        row(format!("{h12}{at}"), entry)
    );
    let key = format!("0000000000000011{:016x}", NOW_US + 1);
    assert_eq!(
        store.rows("inbox-2027-01"),
        row(key, format!("01{conv}{at}"))
    );
    assert_eq!(
        store.rows("fanout"),
        row(format!("{h12}{at}"), format!("01{conv}"))
    );
    let key = "000000000000001100000002".into();
    assert_eq!(store.rows("cursor"), row(key, "010000000000000033".into()));
    let key = format!("{h12}0000000000000011");
    let value = format!("01{conv}000000000000000a0000000c000000000000000b0000000c");
    assert_eq!(store.rows("mark"), row(key, value));

    store
        .record(records::Cmd::Put {
            table: Table(0x0102),
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
            expect: Expect::Any,
            version: Version(7),
        })
        .expect("succeeds");
    assert_eq!(
        store.rows("record"),
        row("01026b".into(), "01000000000000000776".into())
    );
    let take = records::Cmd::TakeOne {
        table: Table(0x0102),
        prefix: Bytes::new(),
        id: 0x99,
    };
    store.record(take).expect("succeeds");
    assert_eq!(store.rows("record"), []);
    let [(key, value)] = &store.rows("taken")[..] else {
        panic!("one row is remembered");
    };
    assert_eq!(key, "00000000000000000000000000000099");
    assert!(
        value.starts_with("01") && value.ends_with("000000000000000700016b76"),
        "{value}"
    );

    let meta = store.rows("meta");
    let names: Vec<String> = meta.iter().map(|(name, _)| name.clone()).collect();
    let expected = ["clock", "format", "hash_key", "store_id"].map(|name| hex(name.as_bytes()));
    assert_eq!(names, expected);
    assert_eq!(meta[0].1, format!("{:016x}", NOW_US + 1 + 10_000_000));
    assert_eq!(meta[1].1, "00000001");
}

#[test]
fn a_damaged_row_is_passed_over_and_counted() {
    let store = Store::new();
    store.ok(&[direct(NOW_US), direct(NOW_US + 10), direct(NOW_US + 20)]);
    let entries = store.keyspace("entry-2027-01");
    let inbox = store.keyspace("inbox-2027-01");
    let key = layout::conv_key(&store.engine.hash.h12(CONV), NOW_US);
    entries
        .insert(key, b"\x02 from the future")
        .expect("writes");
    let key = layout::inbox_key(USER, Seq(NOW_US + 21));
    inbox.insert(key, b"").expect("writes");
    assert_eq!(seqs(store.read(&replay())), [NOW_US + 11]);
    assert_eq!(store.damaged(), 2);
    let history = Cmd::History {
        conv: CONV,
        after: ConvSeq(0),
        before: ConvSeq(u64::MAX),
        forward: false,
        limit: 10,
        max_bytes: u32::MAX,
    };
    assert_eq!(seqs(store.read(&history)), [NOW_US + 20, NOW_US + 10]);
    assert_eq!(store.damaged(), 3);

    let cursors = vec![(USER, DeviceId(1), Seq(5)), (USER, DeviceId(2), Seq(6))];
    store.ok(&[Cmd::SetCursors { cursors }]);
    let key = layout::cursor_key(USER, DeviceId(1));
    store
        .engine
        .cursor
        .insert(key, b"\x01\x00")
        .expect("writes");
    let read = store.read(&Cmd::Cursors { user: USER });
    assert_eq!(read, Reply::Cursors(vec![(DeviceId(2), Seq(6))]));
    // Setting it anew mends it.
    let cursors = vec![(USER, DeviceId(1), Seq(4))];
    store.ok(&[Cmd::SetCursors { cursors }]);
    let read = store.read(&Cmd::Cursors { user: USER });
    let both = vec![(DeviceId(1), Seq(4)), (DeviceId(2), Seq(6))];
    assert_eq!(read, Reply::Cursors(both));

    let key = layout::conv_key(&store.engine.hash.h12(CONV), USER.0);
    store.engine.mark.insert(key, b"\x07").expect("writes");
    store.engine.fan_out.insert(key, b"\x07").expect("writes");
    let marks = store.read(&Cmd::Watermarks { conv: CONV });
    assert_eq!(marks, Reply::Watermarks(Vec::new()));
    let after = None;
    let open = store.read(&Cmd::FanOuts { after, limit: 9 });
    assert_eq!(open, Reply::FanOuts(Vec::new()));
    assert_eq!(store.damaged(), 7);
}

/// Two conversations whose hashes collide share a stretch of keys; readers tell them apart.
#[test]
fn rows_of_a_colliding_conversation_are_not_shown() {
    let store = Store::new();
    store.ok(&[direct(NOW_US)]);
    let other = ConvId::Group(GroupId(0x78));
    let mut value = Vec::new();
    let stranger = Entry {
        conv: other,
        ..entry(NOW_US + 5)
    };
    layout::put_entry(&mut value, &stranger);
    let key = layout::conv_key(&store.engine.hash.h12(CONV), NOW_US + 5);
    store
        .keyspace("entry-2027-01")
        .insert(key, value)
        .expect("writes");
    let history = Cmd::History {
        conv: CONV,
        after: ConvSeq(0),
        before: ConvSeq(u64::MAX),
        forward: false,
        limit: 10,
        max_bytes: u32::MAX,
    };
    assert_eq!(seqs(store.read(&history)), [NOW_US]);
    let find = Cmd::Find {
        conv: CONV,
        since: ConvSeq(0),
        sender: stranger.sender,
        device: stranger.device,
        msg_ids: vec![stranger.msg_id],
    };
    assert_eq!(store.read(&find), Reply::Found(Vec::new()));
    assert_eq!(store.damaged(), 0);
}

#[test]
fn a_damaged_record_is_an_error_until_it_is_put_anew() {
    let store = Store::new();
    let key = Bytes::from_static(b"key");
    let put = |expect| records::Cmd::Put {
        table: Table(1),
        key: key.clone(),
        value: Bytes::from_static(b"value"),
        expect,
        version: Version(2),
    };
    let get = || records::Cmd::Get {
        table: Table(1),
        key: key.clone(),
    };
    let stored = layout::record_key(Table(1), &key);
    store
        .engine
        .record
        .insert(stored, b"\x01short")
        .expect("writes");
    let kind = |result: Result<records::Reply, Error>| result.err().map(|error| error.kind);
    assert_eq!(kind(store.record(get())), Some(Kind::Invalid));
    assert_eq!(kind(store.record(put(Expect::Absent))), Some(Kind::Invalid));
    assert_eq!(
        kind(store.record(put(Expect::Version(Version(1))))),
        Some(Kind::Invalid)
    );
    let take = records::Cmd::TakeOne {
        table: Table(1),
        prefix: Bytes::new(),
        id: 1,
    };
    let taken = store.record(take).expect("succeeds");
    assert_eq!(
        taken,
        records::Reply::Taken(None),
        "a damaged record is not handed out"
    );
    store.record(put(Expect::Any)).expect("mends it");
    let read = store.record(get()).expect("succeeds");
    assert!(matches!(read, records::Reply::Value(Some(row)) if row.version == Version(2)));
}

#[test]
fn what_was_taken_long_ago_is_forgotten() {
    let store = Store::new();
    let old = layout::taken_value(1_000, None);
    for id in 0..20_u128 {
        store
            .engine
            .taken
            .insert(id.to_be_bytes(), old.clone())
            .expect("writes");
    }
    let mut writer = RecordWriter::new(Arc::clone(&store.engine));
    for id in 100..110_u128 {
        let take = records::Cmd::TakeOne {
            table: Table(1),
            prefix: Bytes::new(),
            id,
        };
        apply::<Records>(&mut writer, &[take])
            .remove(0)
            .expect("succeeds");
    }
    let left = store.rows("taken");
    assert_eq!(
        left.len(),
        10,
        "the old ones are gone, the new ones stay: {left:?}"
    );
}

#[test]
fn expiry_drops_whole_months() {
    let store = Store::new();
    let january = Month::of(NOW_US);
    let (february, march) = (january.next(), january.next().next());
    let times = [january, february, march].map(|month| month.start() + 10 * DAY_US);
    store.ok(&times.map(direct));
    assert_eq!(store.months("entry-"), ["2027-01", "2027-02", "2027-03"]);
    let expire = |before| Cmd::Expire {
        before: Seq(before),
    };
    store.ok(&[expire(february.start() - 1)]);
    assert_eq!(store.months("inbox-").len(), 3, "the month is not over");
    store.ok(&[expire(march.start() + 5 * DAY_US)]);
    assert_eq!(store.months("entry-"), ["2027-03"]);
    assert_eq!(store.months("inbox-"), ["2027-03"]);
    assert_eq!(seqs(store.read(&replay())), [times[2] + 1]);
    // A new life in an expired month.
    store.ok(&[direct(times[0])]);
    assert_eq!(seqs(store.read(&replay())), [times[0] + 1, times[2] + 1]);

    let greatest = times[2] + 1;
    let dir = store.dir;
    drop(store.engine);
    let store = Store::open(dir);
    assert_eq!(store.months("entry-"), ["2027-01", "2027-03"]);
    let Reply::Ceiling(ceiling) = store.read(&Cmd::Ceiling) else {
        panic!("a ceiling");
    };
    assert!(ceiling.0 > greatest);
}

/// A reference just after the turn of a month may outlive its entry.
#[test]
fn a_reference_without_entry_is_passed_over() {
    let store = Store::new();
    let turn = Month::of(NOW_US).next().start();
    store.ok(&[direct(turn - 1), direct(turn + 5)]);
    assert_eq!(seqs(store.read(&replay())), [turn, turn + 6]);
    store.ok(&[Cmd::Expire { before: Seq(turn) }]);
    assert_eq!(seqs(store.read(&replay())), [turn + 6]);
    assert_eq!(store.damaged(), 0, "that is no damage");
}

#[test]
fn the_next_month_is_made_a_day_ahead() {
    let store = Store::new();
    let turn = Month::of(NOW_US).next().start();
    store.ok(&[direct(turn - DAY_US - 10)]);
    assert_eq!(store.months("inbox-"), ["2027-01"]);
    store.ok(&[direct(turn - DAY_US)]);
    assert_eq!(store.months("inbox-"), ["2027-01", "2027-02"]);
    assert_eq!(store.months("entry-"), ["2027-01", "2027-02"]);
}

#[test]
fn the_ceiling_is_written_with_the_commit_that_needs_it_and_no_other() {
    let store = Store::new();
    let clock = || {
        let clock = store
            .engine
            .meta
            .get(layout::META_CLOCK)
            .expect("can be read");
        u64::from_be_bytes(
            clock
                .expect("is there")
                .as_ref()
                .try_into()
                .expect("8 bytes"),
        )
    };
    assert_eq!(clock(), 0);
    let mut writer = MessageWriter::new(Arc::clone(&store.engine));
    let mut at = |us: u64| {
        apply::<Messages>(&mut writer, &[direct(NOW_US + us)])
            .remove(0)
            .expect("succeeds");
        clock() - NOW_US
    };
    assert_eq!(at(0), 10_000_001);
    assert_eq!(at(2_999_998), 10_000_001, "not near enough");
    assert_eq!(at(3_000_000), 13_000_001, "within seven seconds");
    assert_eq!(at(100), 13_000_001, "an older number changes nothing");
}

#[test]
fn a_store_holds_so_many_months_and_refuses_the_next_whole() {
    let store = Store::new();
    let mut month = Month::of(NOW_US);
    let mut months = Arc::unwrap_or_clone(store.engine.months());
    // Names are enough here; real partitions would take long to make.
    let stand_in = store.engine.cursor.clone();
    for _ in 0..MONTHS_MAX {
        months.entries.insert(month, stand_in.clone());
        months.inboxes.insert(month, stand_in.clone());
        month = month.next();
    }
    let mut months = Arc::new(months);
    let created = store
        .engine
        .create_month(&mut months, month)
        .expect("no failure");
    assert!(!created);
    assert_eq!(months.entries.len(), MONTHS_MAX);
}

#[test]
fn a_refused_command_leaves_nothing_in_the_commit() {
    let store = Store::new();
    let late = Cmd::Append {
        entry: entry(NOW_US),
        refs: vec![
            reference(NOW_US + 1, NOW_US),
            reference(messages::SEQ_MAX + 1, NOW_US),
        ]
        .into(),
        fan_out: true,
    };
    let results = store.write(&[late, direct(NOW_US + 10)]);
    assert_eq!(
        results[0].as_ref().map_err(|error| error.kind),
        Err(Kind::Invalid)
    );
    assert!(results[1].is_ok());
    assert_eq!(store.rows("entry-2027-01").len(), 1);
    assert_eq!(store.rows("inbox-2027-01").len(), 1);
    assert_eq!(store.rows("fanout"), []);
}

/// The rows of a commit share one number inside the engine; of two for one key the later wins, in
/// memory and when the journal is replayed.
#[test]
fn within_a_commit_the_later_row_wins() {
    let begin = |at| Cmd::Append {
        entry: entry(at),
        refs: Refs::new(),
        fan_out: true,
    };
    let end = |at| Cmd::EndFanOut {
        conv: CONV,
        conv_seq: ConvSeq(at),
    };
    let mut store = Store::new();
    let (one, two) = (NOW_US, NOW_US + 1);
    store.ok(&[begin(one), end(one), end(two), begin(two)]);
    for reopened in [false, true] {
        if reopened {
            let dir = store.dir;
            drop(store.engine);
            store = Store::open(dir);
        }
        let after = None;
        let open = store.read(&Cmd::FanOuts { after, limit: 9 });
        assert_eq!(open, Reply::FanOuts(vec![(CONV, ConvSeq(two))]));
    }
}

/// One writer goes on from commit to commit, the other is new in each and has to look everything up.
#[test]
fn a_writer_that_remembers_merges_like_one_that_reads() {
    let (remembering, reading) = (Store::new(), Store::new());
    let mut writer = MessageWriter::new(Arc::clone(&remembering.engine));
    // SplitMix64.
    let mut state = 1_u64;
    let mut random = |below: u64| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % below
    };
    for step in 0..60 {
        let marks = (0..random(6)).map(|_| Mark {
            conv: CONV,
            user: UserId(random(3)),
            delivered: ConvSeq(random(20)),
            read: ConvSeq(random(20)),
            at_s: random(100) as u32,
        });
        let marks: Vec<Mark> = marks.collect();
        let cursors = (0..random(6)).map(|_| (USER, DeviceId(random(3) as u16), Seq(random(50))));
        let cursors = cursors.collect();
        let cmds = [Cmd::SetWatermarks { marks }, Cmd::SetCursors { cursors }];
        for result in apply(&mut writer, &cmds) {
            result.expect("succeeds");
        }
        reading.ok(&cmds);
        for cmd in [Cmd::Watermarks { conv: CONV }, Cmd::Cursors { user: USER }] {
            assert_eq!(remembering.read(&cmd), reading.read(&cmd), "step {step}");
        }
    }
}

/// Opens the store with one row of `meta` changed.
fn reopen_with(row: &str, value: Option<&[u8]>) -> OpenError {
    let store = Store::new();
    match value {
        Some(value) => store.engine.meta.insert(row, value).expect("writes"),
        None => store.engine.meta.remove(row).expect("writes"),
    }
    let dir = store.dir;
    drop(store.engine);
    let opened = Engine::open(&Options::new(dir.path()), Arc::default(), Alarm::new().0);
    opened.err().expect("must not open")
}

#[test]
fn a_store_of_another_format_is_refused() {
    let error = reopen_with(layout::META_FORMAT, Some(&2_u32.to_be_bytes()));
    assert!(
        matches!(
            error,
            OpenError::Newer {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_store_with_a_broken_head_is_refused() {
    for row in [
        layout::META_CLOCK,
        layout::META_HASH_KEY,
        layout::META_STORE_ID,
    ] {
        for value in [None, Some(&b"short"[..])] {
            let error = reopen_with(row, value);
            assert!(matches!(error, OpenError::Damaged { .. }), "{row}: {error}");
        }
    }
    let error = reopen_with(layout::META_FORMAT, None);
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}
