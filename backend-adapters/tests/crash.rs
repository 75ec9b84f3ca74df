//! The embedded store against crashes: what was answered is there after SIGKILL, after a torn
//! tail of the journal, and after a full disk.
//!
//! This test brings its own `main`, because it starts itself again as the process that is killed:
//! `crash write DIR FIRST` appends messages from number FIRST on and prints what was answered;
//! `crash fill DIR` writes until the disk refuses. Without such arguments all checks run.
//!
//! Everything about message n follows from n, so the checker needs no other record than the
//! numbers that the writer printed.

use bytes::Bytes;
use portico_backend::embedded::{self, Embedded, OpenError, Options};
use portico_backend::messages::{Cmd, Entry, EntryMeta, InboxRef, Item, Messages, Reply};
use portico_backend::{Completion, Error, Health, Kind, Request, Sink};
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, MsgId, Seq, UserId};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const ROUNDS: u64 = 20;
const USERS: u64 = 40;
/// Commands per submission, and submissions in flight, of the writer that is killed.
const BATCH: u64 = 64;
const WINDOW: u64 = 4;
/// In January 2027.
const START_US: u64 = 1_800_000_000_000_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", dir, first] => write(Path::new(dir), first.parse().expect("a number")),
        ["fill", dir] => fill(Path::new(dir)),
        _ => {
            check("what was answered survives SIGKILL", killed);
            check("a cut tail costs the torn commit alone", cut_tail);
            check("a zeroed tail costs the torn commit alone", zeroed_tail);
            check("a flipped bit is refused, not guessed", flipped_bit);
            check("a full disk is fatal, told, and loses nothing", full_disk);
        }
    }
}

fn check(name: &str, body: fn()) {
    let begun = Instant::now();
    body();
    println!("crash: {name} ... ok ({:.1?})", begun.elapsed());
}

// Message n.

fn user_of(n: u64) -> UserId {
    UserId(1 + n % USERS)
}

fn seq_of(n: u64) -> u64 {
    START_US + n * 10
}

fn body_of(n: u64, len: usize) -> Bytes {
    let mut body = n.to_be_bytes().repeat(len.div_ceil(8));
    body.truncate(len);
    Bytes::from(body)
}

fn len_of(n: u64) -> usize {
    (n % 7 * 60) as usize
}

fn append(n: u64, len: usize) -> Cmd {
    let conv = ConvId::direct(user_of(n), UserId(1_000 + n % 13));
    let entry = Entry {
        conv,
        conv_seq: ConvSeq(seq_of(n)),
        sender: UserId(1_000 + n % 13),
        device: DeviceId(1),
        msg_id: MsgId(u128::from(n)),
        meta: EntryMeta::default(),
        body: body_of(n, len),
    };
    let refs = vec![InboxRef {
        user: user_of(n),
        seq: Seq(seq_of(n) + 1),
        conv,
        conv_seq: entry.conv_seq,
    }];
    Cmd::Append {
        entry,
        refs: refs.into(),
        fan_out: false,
    }
}

// Talking to the store.

struct ToChannel(Mutex<Sender<Vec<Completion<Messages>>>>);

impl Sink<Messages> for ToChannel {
    fn complete(&self, batch: Vec<Completion<Messages>>) {
        let _ = self.0.lock().expect("no panic here").send(batch);
    }
}

type Answers = Receiver<Vec<Completion<Messages>>>;

fn mailbox() -> (Arc<dyn Sink<Messages>>, Answers) {
    let (sender, answers) = channel();
    (Arc::new(ToChannel(Mutex::new(sender))), answers)
}

fn request(token: u64, cmd: Cmd) -> Request<Messages> {
    Request {
        token,
        lane: 0,
        deadline: Instant::now() + Duration::from_secs(60),
        cmd,
    }
}

fn ask(store: &Embedded, cmd: Cmd) -> Result<Reply, Error> {
    let (sink, answers) = mailbox();
    store
        .messages
        .submit(vec![request(0, cmd)], &sink)
        .map_err(|rejected| rejected.why)?;
    let wait = Duration::from_secs(60);
    let mut batch = answers.recv_timeout(wait).expect("is answered");
    batch.remove(0).result
}

fn append_all(store: &Embedded, numbers: std::ops::Range<u64>, len: impl Fn(u64) -> usize) {
    let (sink, answers) = mailbox();
    let count = (numbers.end - numbers.start) as usize;
    let batch = numbers.map(|n| request(n, append(n, len(n)))).collect();
    let taken = store.messages.submit(batch, &sink);
    taken.map_err(|rejected| rejected.why).expect("is taken");
    let mut answered = 0;
    while answered < count {
        let wait = Duration::from_secs(60);
        for completion in answers.recv_timeout(wait).expect("is answered") {
            completion.result.expect("succeeds");
            answered += 1;
        }
    }
}

fn open(dir: &Path) -> Embedded {
    embedded::open(Options::new(dir)).expect("the store opens")
}

fn close(store: Embedded) {
    let deadline = Instant::now() + Duration::from_secs(60);
    store.close(deadline).expect("the store closes");
}

/// All messages in all inboxes from number `first` on, each checked byte by byte.
fn stored(store: &Embedded, first: u64, len: impl Fn(u64) -> usize) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    for user in 1..=USERS {
        let mut after = Seq(seq_of(first));
        loop {
            let replay = Cmd::Replay {
                user: UserId(user),
                after,
                limit: 1_000,
                max_bytes: u32::MAX,
            };
            let Ok(Reply::Page { items, more }) = ask(store, replay) else {
                panic!("a replay is answered with a page");
            };
            for Item { seq, entry } in items {
                after = seq;
                let n = u64::try_from(entry.msg_id.0).expect("one of ours");
                let Cmd::Append {
                    entry: expected,
                    refs,
                    ..
                } = append(n, len(n))
                else {
                    unreachable!("append makes appends");
                };
                assert_eq!(
                    (seq, refs[0].user),
                    (refs[0].seq, UserId(user)),
                    "message {n}"
                );
                assert!(entry == expected, "message {n} comes back as it was");
                found.insert(n);
            }
            if !more {
                break;
            }
        }
    }
    found
}

fn assert_ceiling_above(store: &Embedded, numbers: &BTreeSet<u64>) {
    let Some(greatest) = numbers.last().map(|n| seq_of(*n) + 1) else {
        return;
    };
    match ask(store, Cmd::Ceiling) {
        Ok(Reply::Ceiling(ceiling)) => assert!(ceiling.0 > greatest, "{ceiling} > {greatest}"),
        other => panic!("Ceiling is answered with one, not {other:?}"),
    }
}

// SIGKILL.

/// The process that is killed.
fn write(dir: &Path, first: u64) {
    let store = open(dir);
    let (sink, answers) = mailbox();
    let mut out = std::io::stdout().lock();
    let (mut next, mut in_flight) = (first, 0);
    // Ends by itself should the parent be gone.
    let give_up = Instant::now() + Duration::from_secs(30);
    while Instant::now() < give_up {
        while in_flight < WINDOW * BATCH {
            let numbers = next..next + BATCH;
            let batch = numbers.map(|n| request(n, append(n, len_of(n)))).collect();
            let taken = store.messages.submit(batch, &sink);
            taken.map_err(|rejected| rejected.why).expect("is taken");
            next += BATCH;
            in_flight += BATCH;
        }
        let wait = Duration::from_secs(30);
        let batch = answers.recv_timeout(wait).expect("is answered");
        in_flight -= batch.len() as u64;
        let tokens: Vec<String> = batch
            .into_iter()
            .map(|completion| {
                completion.result.expect("succeeds");
                completion.token.to_string()
            })
            .collect();
        // One write per line, so the parent sees whole lines but the last.
        if writeln!(out, "{}", tokens.join(" "))
            .and_then(|()| out.flush())
            .is_err()
        {
            return;
        }
    }
}

fn start(args: &[&str]) -> Child {
    Command::new(std::env::current_exe().expect("this program has a path"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts")
}

fn killed() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = dir.path().join("store");
    let mut dice = 0x1234_5678_9abc_def0_u64;
    let mut all = BTreeSet::new();
    for round in 0..ROUNDS {
        let first = round * 1_000_000;
        let mut child = start(&["write", &place.to_string_lossy(), &first.to_string()]);
        let pipe = child.stdout.take().expect("is piped");
        let reader = thread::spawn(move || answered(pipe));
        // Xorshift: other moments in each round, the same in each run.
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        // The first answers come after opening; some rounds die in the middle of that.
        thread::sleep(Duration::from_millis(20 + dice % 200));
        child.kill().expect("can be killed");
        child.wait().expect("ends");
        let numbers = reader.join().expect("reads to the end");

        let store = open(&place);
        let found = stored(&store, first, len_of);
        let lost: Vec<_> = numbers.difference(&found).take(10).collect();
        assert!(
            lost.is_empty(),
            "round {round} lost {lost:?} of {}",
            numbers.len()
        );
        assert_ceiling_above(&store, &found);
        assert_eq!(store.rows_damaged(), 0);
        close(store);
        all.extend(numbers);
    }
    assert!(!all.is_empty(), "no round lived long enough to be answered");
    let store = open(&place);
    let found = stored(&store, 0, len_of);
    assert!(all.is_subset(&found), "later rounds harmed earlier ones");
    close(store);
    println!(
        "crash: {ROUNDS} kills, {} messages answered, none lost",
        all.len()
    );
}

/// The numbers that a killed writer printed. Its last line may be cut.
fn answered(pipe: impl Read) -> BTreeSet<u64> {
    let mut numbers = BTreeSet::new();
    let mut pipe = BufReader::new(pipe);
    let mut line = String::new();
    while pipe.read_line(&mut line).is_ok_and(|len| len > 0) {
        if line.ends_with('\n') {
            let parsed = line.split_whitespace().map(|n| n.parse::<u64>());
            numbers.extend(parsed.map(|n| n.expect("a number")));
        }
        line.clear();
    }
    numbers
}

// A torn tail.

/// A closed store whose journal ends with the commit of messages 500 to 599.
struct Whole {
    dir: tempfile::TempDir,
    /// Where in the journal that commit lies.
    commit: std::ops::Range<u64>,
}

/// A copy of it, to be harmed.
struct Torn {
    _dir: tempfile::TempDir,
    place: PathBuf,
    journal: PathBuf,
    commit: std::ops::Range<u64>,
}

const KEPT: u64 = 500;
const TORN: std::ops::Range<u64> = KEPT..600;

fn whole() -> Whole {
    let dir = tempfile::tempdir().expect("a directory");
    let place = dir.path().join("store");
    let store = open(&place);
    append_all(&store, 0..KEPT, len_of);
    let journal = newest_journal(&place);
    let begin = end_of_data(&journal);
    append_all(&store, TORN, len_of);
    let end = end_of_data(&journal);
    assert!(end > begin, "the journal has grown");
    close(store);
    Whole {
        dir,
        commit: begin..end,
    }
}

impl Whole {
    fn copy(&self) -> Torn {
        let dir = tempfile::tempdir().expect("a directory");
        let place = dir.path().join("store");
        copy_dir(&self.dir.path().join("store"), &place);
        // A store that was closed in order has a note of how long its journal is. A crash leaves none.
        fs::remove_file(place.join("floor")).expect("the store was closed");
        Torn {
            journal: newest_journal(&place),
            place,
            _dir: dir,
            commit: self.commit.clone(),
        }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).expect("can be made");
    for file in fs::read_dir(from).expect("can be read") {
        let file = file.expect("can be read");
        let target = to.join(file.file_name());
        if file.file_type().expect("has a type").is_dir() {
            copy_dir(&file.path(), &target);
        } else {
            fs::copy(file.path(), target).expect("can be copied");
        }
    }
}

fn newest_journal(place: &Path) -> PathBuf {
    let files = fs::read_dir(place).expect("can be read");
    let journals: BTreeMap<u64, PathBuf> = files
        .map(|file| file.expect("can be read").path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "jnl"))
        .map(|path| {
            let id = path
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse().ok());
            (id.expect("journals are numbered"), path)
        })
        .collect();
    journals
        .into_values()
        .next_back()
        .expect("there is a journal")
}

/// The journal is made larger than its data; the rest is zeros.
fn end_of_data(journal: &Path) -> u64 {
    let bytes = fs::read(journal).expect("can be read");
    bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last as u64 + 1)
}

/// Points spread over the torn commit, its first and last bytes included. Its rows are in the order of
/// hashed keys, so what lies there is another thing in each run.
fn points(commit: &std::ops::Range<u64>) -> Vec<u64> {
    let len = commit.end - commit.start;
    let spread = (0..6).map(|i| commit.start + len * i / 6 + i);
    spread.chain([commit.start + 1, commit.end - 1]).collect()
}

/// The store opens, has what came before the torn commit and nothing of it, and goes on well.
fn assert_recovers(torn: &Torn, at: u64) {
    let store = open(&torn.place);
    let found = stored(&store, 0, len_of);
    assert_eq!(found, (0..KEPT).collect(), "torn at {at}");
    assert_ceiling_above(&store, &found);
    append_all(&store, 700..800, len_of);
    close(store);
    let store = open(&torn.place);
    let expected: BTreeSet<u64> = (0..KEPT).chain(700..800).collect();
    assert_eq!(
        stored(&store, 0, len_of),
        expected,
        "torn at {at}, then appended to"
    );
    close(store);
}

fn cut_tail() {
    let whole = whole();
    for at in points(&whole.commit) {
        let torn = whole.copy();
        let journal = OpenOptions::new().write(true).open(&torn.journal);
        journal
            .and_then(|file| file.set_len(at))
            .expect("can be cut");
        assert_recovers(&torn, at);
    }
}

fn zeroed_tail() {
    let whole = whole();
    for at in points(&whole.commit) {
        let torn = whole.copy();
        let zeros = vec![0; (torn.commit.end - at) as usize];
        let journal = OpenOptions::new().write(true).open(&torn.journal);
        let zeroed = journal.and_then(|file| file.write_all_at(&zeros, at));
        zeroed.expect("can be written");
        assert_recovers(&torn, at);
    }
}

/// The journal's checksum finds it. The store does not open, and says what to do.
fn flipped_bit() {
    let torn = whole().copy();
    // In the body of a message, so that the structure stays whole.
    let needle = body_of(555, len_of(555));
    let mut journal = File::options()
        .read(true)
        .write(true)
        .open(&torn.journal)
        .expect("opens");
    let mut bytes = Vec::new();
    journal.read_to_end(&mut bytes).expect("can be read");
    let mut windows = bytes.windows(needle.len());
    let at = windows
        .position(|window| window == needle)
        .expect("is in the journal");
    journal.seek(SeekFrom::Start(at as u64)).expect("seeks");
    journal.write_all(&[bytes[at] ^ 1]).expect("can be written");
    drop(journal);
    let error = embedded::open(Options::new(&torn.place)).expect_err("must not be accepted");
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert!(
        error.to_string().contains("copy the directory away"),
        "{error}"
    );
}

// A full disk.

const LARGE: usize = 1 << 20;
/// Commits of 8 MiB: the one that passes the limit does so in one step.
const LARGE_BATCH: u64 = 8;

/// The process that meets a file size limit, which fails a write like a full disk does.
fn fill(dir: &Path) {
    let store = open(dir);
    for first in (0..).step_by(LARGE_BATCH as usize) {
        assert!(first < 1_000, "the limit is never met");
        let (sink, answers) = mailbox();
        let numbers = first..first + LARGE_BATCH;
        let batch = numbers
            .clone()
            .map(|n| request(n, append(n, LARGE)))
            .collect();
        let taken = store.messages.submit(batch, &sink);
        taken.map_err(|rejected| rejected.why).expect("is taken");
        let mut failure = None;
        let mut left = LARGE_BATCH as usize;
        while left > 0 {
            let wait = Duration::from_secs(60);
            for completion in answers.recv_timeout(wait).expect("is answered") {
                left -= 1;
                failure = failure.or(completion.result.err());
            }
        }
        let Some(error) = failure else {
            println!(
                "{}",
                numbers.map(|n| n.to_string()).collect::<Vec<_>>().join(" ")
            );
            continue;
        };
        assert_eq!(error.kind, Kind::Fatal, "{error}");
        assert!(error.detail.contains("restart the gateway"), "{error}");
        assert!(matches!(store.messages.health(), Health::Down(_)));
        let next = ask(&store, append(first + 100, 10)).expect_err("nothing is written any more");
        assert_eq!(next.kind, Kind::Fatal, "{next}");
        let read = ask(&store, Cmd::Ceiling).expect("reads go on");
        assert!(matches!(read, Reply::Ceiling(_)));
        println!("refused");
        return;
    }
}

fn full_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = dir.path().join("store");
    let program = std::env::current_exe().expect("this program has a path");
    // The limit is the size that the engine gives its journal from the start, 64 MiB, in blocks
    // of 512 bytes. Ignoring the signal makes the write fail instead.
    let script = "trap '' XFSZ; ulimit -f 131072; exec \"$0\" fill \"$1\"";
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(program)
        .arg(&place)
        .stdin(Stdio::null())
        .output()
        .expect("a shell");
    let text = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{complaints}");
    assert!(
        text.ends_with("refused\n"),
        "the disk was never full: {text}{complaints}"
    );
    let numbers = answered(text.trim_end_matches("refused\n").as_bytes());
    assert!(!numbers.is_empty(), "something was written before");

    let store = open(&place);
    let found = stored(&store, 0, |_| LARGE);
    assert!(numbers.is_subset(&found), "what was answered is there");
    append_all(&store, 2_000..2_010, |_| LARGE);
    assert_eq!(
        store.messages.health(),
        Health::Up,
        "with room again the store goes on"
    );
    close(store);
}
