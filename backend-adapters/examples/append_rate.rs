//! How many durable direct messages per second the embedded store takes on this machine.
//!
//! ```text
//! cargo run --release -p portico-backend --features embedded --example append_rate -- 2000000 256
//! ```
//!
//! The arguments: how many messages, how many per submission, how many submissions in flight (1),
//! bytes of a body (200), the directory under which the store is made (the system's for temporary
//! files: mind that it may live in memory), messages per second (0: as many as go), and 1 for
//! watermarks: each message is also marked as delivered, with the submission after it, as the
//! gateway does. A million users with twenty partners each; every twentieth message goes to one of
//! 2,000 users. With one submission in flight each is a commit of its own.
//!
//! CPU is that of the whole process, and then by thread: commit thread, flush and compaction, and
//! this producer. With a rate, answers count from when the submission was due.

use bytes::Bytes;
use portico_backend::embedded::{self, Options};
use portico_backend::messages::{Cmd, Entry, EntryMeta, InboxRef, Mark, Messages, Refs};
use portico_backend::stats::COMMIT_BOUNDS_US;
use portico_backend::{Backend, Completion, Limits, Request, Sink, Stats};
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, MsgId, Seq, UserId};
use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const USERS: u64 = 1_000_000;
const BUSY_USERS: u64 = 2_000;
const PARTNERS: u64 = 20;
const SUBMISSIONS_MAX: usize = 1_024;

struct Done(std::sync::Mutex<SyncSender<(usize, Option<String>)>>);

impl Sink<Messages> for Done {
    fn complete(&self, batch: Vec<Completion<Messages>>) {
        let error = batch.iter().find_map(|c| c.result.as_ref().err());
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The receiver is gone only when the run has failed.
        let _ = sender.send((batch.len(), error.map(ToString::to_string)));
    }
}

/// Makes the traffic. SplitMix64: fast, and the same in every run.
struct Traffic {
    state: u64,
    seq: u64,
    body: Bytes,
    token: u64,
    /// Those of the submission before, if watermarks are wanted.
    marks: Option<Vec<Mark>>,
}

/// What is measured, and how.
struct Plan {
    count: usize,
    batch: usize,
    window: usize,
    body_len: usize,
    /// Messages per second; 0: no pace.
    rate: usize,
    marks: bool,
}

impl Traffic {
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn next(&mut self, deadline: Instant) -> Request<Messages> {
        let dice = self.random();
        let users = if dice.is_multiple_of(20) {
            BUSY_USERS
        } else {
            USERS
        };
        let to = UserId(1 + self.random() % users);
        let from = UserId(1 + (to.0 + 1 + (dice >> 32) % PARTNERS * 7_919) % USERS);
        let conv = ConvId::direct(from, to);
        self.seq += 2;
        self.token += 1;
        let conv_seq = ConvSeq(self.seq);
        let entry = Entry {
            conv,
            conv_seq,
            sender: from,
            device: DeviceId(1),
            msg_id: MsgId::new_v7(self.seq / 1_000, u128::from(dice)),
            meta: EntryMeta {
                op: 34,
                ..EntryMeta::default()
            },
            body: self.body.clone(),
        };
        if let Some(marks) = &mut self.marks {
            marks.push(Mark {
                conv,
                user: to,
                delivered: conv_seq,
                read: ConvSeq(0),
                at_s: 1,
            });
        }
        let reference = InboxRef {
            user: to,
            seq: Seq(self.seq + 1),
            conv,
            conv_seq,
        };
        Request {
            token: self.token,
            lane: 0,
            deadline,
            cmd: Cmd::Append {
                entry,
                refs: Refs::from_buf([reference]),
                fan_out: false,
            },
        }
    }

    fn submission(&mut self, size: usize) -> Vec<Request<Messages>> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let marks = self.marks.as_mut().map(std::mem::take).unwrap_or_default();
        let mut requests: Vec<_> = (0..size).map(|_| self.next(deadline)).collect();
        if !marks.is_empty() {
            self.token += 1;
            requests.push(Request {
                token: self.token,
                lane: 0,
                deadline,
                cmd: Cmd::SetWatermarks { marks },
            });
        }
        requests
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| -> Result<usize, Box<dyn Error>> {
        Ok(args.get(i).map_or(Ok(default), |arg| arg.parse())?)
    };
    let count = number(0, 1_000_000)?;
    let batch = number(1, 256)?.clamp(1, 4_096);
    // A store takes so many commands at once; each submission may carry watermarks besides.
    let window_max = (Limits::default().commands_max / (batch + 1)).clamp(1, SUBMISSIONS_MAX);
    let window = number(2, 1)?.clamp(1, window_max);
    let body_len = number(3, 200)?;
    let parent = args.get(4).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = parent.join(format!("append_rate-{}", std::process::id()));

    let plan = Plan {
        count,
        batch,
        window,
        body_len,
        rate: number(5, 0)?,
        marks: number(6, 0)? == 1,
    };
    let store = embedded::open(Options::new(&dir))?;
    let outcome = run(store.messages.as_ref(), &plan);
    let closed = store.close(Instant::now() + Duration::from_secs(60));
    fs::remove_dir_all(&dir)?;
    closed?;
    outcome
}

fn run(backend: &dyn Backend<Messages>, plan: &Plan) -> Result<(), Box<dyn Error>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let mut traffic = Traffic {
        state: 1,
        seq: u64::try_from(now.as_micros())?,
        body: Bytes::new(),
        token: 0,
        marks: plan.marks.then(Vec::new),
    };
    // Random bytes, so that nothing below can profit from repetition.
    traffic.body = (0..plan.body_len).map(|_| traffic.random() as u8).collect();
    let (sender, answers) = sync_channel(SUBMISSIONS_MAX);
    let sink: Arc<dyn Sink<Messages>> = Arc::new(Done(std::sync::Mutex::new(sender)));

    let (cpu, clock) = (cpu_by_thread()?, Instant::now());
    let mut waiting: VecDeque<(Instant, usize)> = VecDeque::new();
    let mut took_us = Vec::new();
    let (mut sent, mut open) = (0, 0);
    while sent < plan.count || open > 0 {
        let due = match plan.rate {
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64(sent as f64 / rate as f64),
        };
        let may_send = sent < plan.count && waiting.len() < plan.window;
        if may_send && clock.elapsed() >= due {
            let size = plan.batch.min(plan.count - sent);
            let requests = traffic.submission(size);
            let since = match plan.rate {
                0 => Instant::now(),
                _ => clock + due,
            };
            waiting.push_back((since, requests.len()));
            open += requests.len();
            backend
                .submit(requests, &sink)
                .map_err(|rejected| rejected.why)?;
            sent += size;
            continue;
        }
        let patience = match may_send {
            true => due.saturating_sub(clock.elapsed()),
            false => Duration::from_secs(60),
        };
        let mut answered = match answers.recv_timeout(patience) {
            Ok((_, Some(error))) => return Err(error.into()),
            Ok((answered, None)) => answered,
            Err(RecvTimeoutError::Timeout) if may_send => continue,
            Err(error) => return Err(error.into()),
        };
        open -= answered;
        while let Some((since, left)) = waiting.front_mut() {
            if *left > answered {
                *left -= answered;
                break;
            }
            answered -= *left;
            took_us.push(since.elapsed().as_micros() as u64);
            waiting.pop_front();
        }
    }
    let elapsed = clock.elapsed();
    report(&backend.stats(), plan.count, elapsed, took_us);
    report_cpu(&cpu, &cpu_by_thread()?, plan.count);
    Ok(())
}

fn report(stats: &Stats, count: usize, elapsed: Duration, mut took_us: Vec<u64>) {
    let per_second = count as f64 / elapsed.as_secs_f64();
    took_us.sort_unstable();
    let at = |share: f64| {
        let index = (took_us.len() as f64 * share) as usize;
        took_us
            .get(index.min(took_us.len() - 1))
            .copied()
            .unwrap_or(0) as f64
            / 1e3
    };
    println!(
        "{count} messages in {elapsed:.2?}: {per_second:.0} messages/s; answered after {:.2} ms \
         (p50), {:.2} ms (p99), {:.1} ms at most",
        at(0.5),
        at(0.99),
        at(1.0),
    );
    println!(
        "{} commits, {:.0} messages each; {:.2} ms on average, {:.1} ms at most",
        stats.commits,
        stats.messages as f64 / stats.commits as f64,
        stats.commit_us_sum as f64 / 1e3 / stats.commits as f64,
        stats.commit_us_max as f64 / 1e3,
    );
    let mut below = 0;
    for (bound, bucket) in COMMIT_BOUNDS_US.iter().zip(stats.commit_us_buckets) {
        below += bucket;
        if bucket > 0 {
            let share = below as f64 * 100.0 / stats.commits as f64;
            println!("  {share:6.2} % took at most {:.1} ms", *bound as f64 / 1e3);
        }
    }
}

type CpuByThread = BTreeMap<u32, (String, u64)>;

/// Name and CPU time in nanoseconds of each thread of this process, by its number.
fn cpu_by_thread() -> Result<CpuByThread, Box<dyn Error>> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task")?.flatten() {
        let stat = fs::read_to_string(task.path().join("schedstat"))?;
        let name = fs::read_to_string(task.path().join("comm"))?;
        let ns = stat.split_whitespace().next().ok_or("schedstat is empty")?;
        let id = task.file_name().to_string_lossy().parse()?;
        threads.insert(id, (name.trim_end().to_owned(), ns.parse()?));
    }
    Ok(threads)
}

fn report_cpu(before: &CpuByThread, after: &CpuByThread, count: usize) {
    let mut by_name: BTreeMap<&str, f64> = BTreeMap::new();
    for (id, (name, ns)) in after {
        let before = before.get(id).map_or(0, |(_, ns)| *ns);
        *by_name.entry(name).or_default() += (ns - before) as f64 / 1e3 / count as f64;
    }
    print!(
        "{:.2} us of CPU per message:",
        by_name.values().sum::<f64>()
    );
    for (name, us) in by_name.iter().filter(|(_, us)| **us >= 0.005) {
        print!(" {name} {us:.2}");
    }
    println!();
}
