//! How long a page of history takes from the embedded store while durable messages flow into it.
//!
//! ```text
//! cargo run --release -p portico-backend --features embedded --example history_rate -- 20000 30
//! ```
//!
//! The arguments: messages per second that flow meanwhile (20,000), seconds (30), the directory under
//! which the store is made (the system's for temporary files: mind that it may live in memory), and
//! messages that are written before (1,000,000).
//!
//! Messages of 200 bytes go between 2,000 users with twenty partners each; one of a hundred belongs to
//! one long conversation, so that its entries lie far apart in time. One reader asks one question after
//! the other: a page of 100 of the long conversation, from its end back to its begin and again, a page
//! of another, and after each twentieth the reads of a list of conversations. What is told are the
//! times from the submission to the answer.

use bytes::Bytes;
use portico_backend::embedded::{self, Options};
use portico_backend::messages::{Cmd, Entry, EntryMeta, InboxRef, Messages, Refs, Reply};
use portico_backend::{Backend, Completion, Request, Sink};
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, MsgId, Seq, UserId};
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const USERS: u64 = 2_000;
const PARTNERS: u64 = 20;
/// The two who have said much to each other, and of how many messages one is theirs.
const TALKERS: (UserId, UserId) = (UserId(1), UserId(2));
const THEIRS_ONE_IN: u64 = 100;
const FILL_BATCH: usize = 512;
const PATIENCE: Duration = Duration::from_secs(60);

type Answer = Result<Reply, String>;

struct Post(Mutex<Sender<Answer>>);

impl Sink<Messages> for Post {
    fn complete(&self, batch: Vec<Completion<Messages>>) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for completion in batch {
            // The receiver is gone only when the run has failed.
            let _ = sender.send(completion.result.map_err(|error| error.to_string()));
        }
    }
}

/// Submits and waits.
struct Asker {
    backend: Arc<dyn Backend<Messages>>,
    sink: Arc<dyn Sink<Messages>>,
    answers: Receiver<Answer>,
}

impl Asker {
    fn new(backend: &Arc<dyn Backend<Messages>>) -> Self {
        let (sender, answers) = channel();
        Self {
            backend: Arc::clone(backend),
            sink: Arc::new(Post(Mutex::new(sender))),
            answers,
        }
    }

    fn submit(&self, cmds: Vec<Cmd>) -> Result<(), Box<dyn Error>> {
        let deadline = Instant::now() + PATIENCE;
        let requests = cmds.into_iter().map(|cmd| Request {
            token: 0,
            lane: 0,
            deadline,
            cmd,
        });
        let submitted = self.backend.submit(requests.collect(), &self.sink);
        Ok(submitted.map_err(|rejected| rejected.why)?)
    }

    fn wait(&self) -> Result<Reply, Box<dyn Error>> {
        Ok(self.answers.recv_timeout(PATIENCE)??)
    }

    /// The answer, and how long it took.
    fn ask(&self, cmd: Cmd) -> Result<(Reply, Duration), Box<dyn Error>> {
        let began = Instant::now();
        self.submit(vec![cmd])?;
        let reply = self.wait()?;
        Ok((reply, began.elapsed()))
    }
}

/// SplitMix64: fast, and the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

fn pair(random: &mut Random) -> (UserId, UserId) {
    let to = 3 + random.next() % USERS;
    let from = 3 + (to + 1 + random.next() % PARTNERS * 7_919) % USERS;
    (UserId(from), UserId(to))
}

/// Numbers from the clock, as a gateway gives them.
struct Traffic {
    random: Random,
    seq: u64,
    body: Bytes,
}

impl Traffic {
    fn new() -> Result<Self, Box<dyn Error>> {
        let mut random = Random(1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        Ok(Self {
            // Random bytes, so that nothing below can profit from repetition.
            body: (0..200).map(|_| random.next() as u8).collect(),
            seq: u64::try_from(now.as_micros())?,
            random,
        })
    }

    fn next(&mut self) -> Cmd {
        let (from, to) = if self.random.next().is_multiple_of(THEIRS_ONE_IN) {
            TALKERS
        } else {
            pair(&mut self.random)
        };
        self.seq += 2;
        let entry = Entry {
            conv: ConvId::direct(from, to),
            conv_seq: ConvSeq(self.seq),
            sender: from,
            device: DeviceId(1),
            msg_id: MsgId::new_v7(self.seq / 1_000, u128::from(self.random.next())),
            meta: EntryMeta {
                op: 34,
                ..EntryMeta::default()
            },
            body: self.body.clone(),
        };
        let reference = InboxRef {
            user: to,
            seq: Seq(self.seq + 1),
            conv: entry.conv,
            conv_seq: entry.conv_seq,
        };
        Cmd::Append {
            entry,
            refs: Refs::from_buf([reference]),
            fan_out: false,
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: u64| -> Result<u64, Box<dyn Error>> {
        Ok(args.get(i).map_or(Ok(default), |arg| arg.parse())?)
    };
    let (rate, seconds) = (number(0, 20_000)?, number(1, 30)?);
    let parent = args.get(2).map_or_else(std::env::temp_dir, PathBuf::from);
    let fill = number(3, 1_000_000)?;
    let dir = parent.join(format!("history_rate-{}", std::process::id()));
    let store = embedded::open(Options::new(&dir))?;
    let outcome = run(&store.messages, rate, seconds, fill);
    let closed = store.close(Instant::now() + PATIENCE);
    fs::remove_dir_all(&dir)?;
    closed?;
    outcome
}

fn run(
    backend: &Arc<dyn Backend<Messages>>,
    rate: u64,
    seconds: u64,
    fill: u64,
) -> Result<(), Box<dyn Error>> {
    let mut traffic = Traffic::new()?;
    let asker = Asker::new(backend);
    for _ in 0..fill / FILL_BATCH as u64 {
        asker.submit((0..FILL_BATCH).map(|_| traffic.next()).collect())?;
        for _ in 0..FILL_BATCH {
            asker.wait()?;
        }
    }
    println!("{fill} messages are there; {rate}/s more for {seconds} s");
    let (ended, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            flow(backend, traffic, rate, &ended, &answered).map_err(|error| error.to_string())
        });
        let before = answered.load(Ordering::Relaxed);
        let began = Instant::now();
        let times = read(&asker, began + Duration::from_secs(seconds));
        let flowed = answered.load(Ordering::Relaxed) - before;
        let per_second = flowed as f64 / began.elapsed().as_secs_f64();
        ended.store(true, Ordering::Relaxed);
        writer
            .join()
            .map_err(|_| "the writer panicked".to_owned())??;
        println!("{per_second:.0} messages/s were made durable meanwhile");
        times?.into_iter().for_each(report);
        Ok(())
    })
}

/// Open loop: what is due is submitted, every millisecond.
fn flow(
    backend: &Arc<dyn Backend<Messages>>,
    mut traffic: Traffic,
    rate: u64,
    ended: &AtomicBool,
    answered: &AtomicU64,
) -> Result<(), Box<dyn Error>> {
    let asker = Asker::new(backend);
    let began = Instant::now();
    let (mut sent, mut open) = (0, 0_u64);
    while !ended.load(Ordering::Relaxed) {
        let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
        let batch = due.saturating_sub(sent).min(4_096);
        if batch > 0 {
            asker.submit((0..batch).map(|_| traffic.next()).collect())?;
            (sent, open) = (sent + batch, open + batch);
        }
        while let Ok(answer) = asker.answers.try_recv() {
            answer?;
            open -= 1;
            answered.fetch_add(1, Ordering::Relaxed);
        }
        thread::sleep(Duration::from_millis(1));
    }
    for _ in 0..open {
        asker.wait()?;
    }
    Ok(())
}

type Times = (&'static str, Vec<Duration>);

fn read(asker: &Asker, until: Instant) -> Result<[Times; 4], Box<dyn Error>> {
    let mut random = Random(2);
    let (mut long, mut short, mut refs, mut counts) = (vec![], vec![], vec![], vec![]);
    let long_conv = ConvId::direct(TALKERS.0, TALKERS.1);
    let mut before = ConvSeq(u64::MAX);
    while Instant::now() < until {
        // Back through the long one, page by page, and from its end again.
        let (reply, took) = asker.ask(page(long_conv, before))?;
        let Reply::Entries { entries, more } = reply else {
            return Err("a page is entries".into());
        };
        if entries.len() == 100 {
            long.push(took);
        }
        let last = entries.last().filter(|_| more);
        before = last.map_or(ConvSeq(u64::MAX), |entry| entry.conv_seq);
        let (from, to) = pair(&mut random);
        let conv = ConvId::direct(from, to);
        short.push(asker.ask(page(conv, ConvSeq(u64::MAX)))?.1);
        if long.len() % 20 == 1 {
            refs.push(references(asker)?);
            let count = Cmd::Count {
                conv: long_conv,
                after: ConvSeq(0),
                before: ConvSeq(u64::MAX),
                not_by: UserId(0),
                op: 34,
                kind: 0,
                limit: 1_000,
            };
            counts.push(asker.ask(count)?.1);
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok([
        ("page of 100, long conversation", long),
        ("page of the newest 100, others", short),
        ("8,192 references, in steps of 1,024", refs),
        ("count of 1,000", counts),
    ])
}

fn page(conv: ConvId, before: ConvSeq) -> Cmd {
    Cmd::History {
        conv,
        after: ConvSeq(0),
        before,
        forward: false,
        limit: 100,
        max_bytes: 48 << 10,
    }
}

/// The walk of a list of conversations, for the user with the longest inbox.
fn references(asker: &Asker) -> Result<Duration, Box<dyn Error>> {
    let (mut before, mut took) = (Seq(u64::MAX), Duration::ZERO);
    for _ in 0..8 {
        let step = Cmd::References {
            user: TALKERS.1,
            before,
            limit: 1_024,
        };
        let (reply, time) = asker.ask(step)?;
        took += time;
        let Reply::References { refs, more } = reply else {
            return Err("a walk is references".into());
        };
        match refs.last() {
            Some(last) if more => before = last.seq,
            _ => break,
        }
    }
    Ok(took)
}

fn report((what, mut times): Times) {
    times.sort_unstable();
    let at = |share: f64| {
        let index = (times.len() as f64 * share) as usize;
        let time = times.get(index.min(times.len().saturating_sub(1)));
        time.map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    println!(
        "{what}: {} times, {:.2} ms (p50), {:.2} ms (p99), {:.2} ms (p99.9), {:.2} ms at most",
        times.len(),
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
    );
}
