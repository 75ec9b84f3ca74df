//! How many durable direct messages per second the embedded store takes on this machine.
//!
//! ```text
//! cargo run --release -p portico-backend --features embedded --example append_rate -- 2000000 256
//! ```
//!
//! The arguments: how many messages, how many per submission, how many submissions in flight (1),
//! bytes of a body (200), and the directory under which the store is made (the system's for
//! temporary files: mind that it may live in memory). A million users with twenty partners each;
//! every twentieth message goes to one of 2,000 users. With one submission in flight each is a
//! commit of its own.
//!
//! CPU is that of the whole process: commit thread, flush, compaction and this producer.

use bytes::Bytes;
use portico_backend::embedded::{self, Options};
use portico_backend::messages::{Cmd, Entry, EntryMeta, InboxRef, Messages, Refs};
use portico_backend::stats::COMMIT_BOUNDS_US;
use portico_backend::{Backend, Completion, Request, Sink, Stats};
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, MsgId, Seq, UserId};
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
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
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| -> Result<usize, Box<dyn Error>> {
        Ok(args.get(i).map_or(Ok(default), |arg| arg.parse())?)
    };
    let count = number(0, 1_000_000)?;
    let batch = number(1, 256)?.clamp(1, 4_096);
    let window = number(2, 1)?.clamp(1, SUBMISSIONS_MAX);
    let body_len = number(3, 200)?;
    let parent = args.get(4).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = parent.join(format!("append_rate-{}", std::process::id()));

    let store = embedded::open(Options::new(&dir))?;
    let outcome = run(store.messages.as_ref(), count, batch, window, body_len);
    let closed = store.close(Instant::now() + Duration::from_secs(60));
    fs::remove_dir_all(&dir)?;
    closed?;
    outcome
}

fn run(
    backend: &dyn Backend<Messages>,
    count: usize,
    batch: usize,
    window: usize,
    body_len: usize,
) -> Result<(), Box<dyn Error>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let mut traffic = Traffic {
        state: 1,
        seq: u64::try_from(now.as_micros())?,
        body: Bytes::from(vec![0x5a; body_len]),
        token: 0,
    };
    // Random bytes, so that nothing below can profit from repetition.
    traffic.body = (0..body_len).map(|_| traffic.random() as u8).collect();
    let (sender, answers) = sync_channel(SUBMISSIONS_MAX);
    let sink: Arc<dyn Sink<Messages>> = Arc::new(Done(std::sync::Mutex::new(sender)));

    let (cpu, clock) = (cpu_time()?, Instant::now());
    let (mut sent, mut answered) = (0, 0);
    while answered < count {
        while sent < count && sent - answered < window * batch {
            let deadline = Instant::now() + Duration::from_secs(60);
            let size = batch.min(count - sent);
            let requests = (0..size).map(|_| traffic.next(deadline)).collect();
            backend
                .submit(requests, &sink)
                .map_err(|rejected| rejected.why)?;
            sent += size;
        }
        answered += receive(&answers)?;
    }
    let (elapsed, cpu) = (clock.elapsed(), cpu_time()?.saturating_sub(cpu));
    report(&backend.stats(), count, elapsed, cpu);
    Ok(())
}

fn receive(answers: &Receiver<(usize, Option<String>)>) -> Result<usize, Box<dyn Error>> {
    let mut total = 0;
    let mut next = Some(answers.recv_timeout(Duration::from_secs(60))?);
    while let Some((answered, error)) = next {
        if let Some(error) = error {
            return Err(error.into());
        }
        total += answered;
        next = answers.try_recv().ok();
    }
    Ok(total)
}

fn report(stats: &Stats, count: usize, elapsed: Duration, cpu: Duration) {
    let per_second = count as f64 / elapsed.as_secs_f64();
    let cpu_us = cpu.as_secs_f64() * 1e6 / count as f64;
    println!(
        "{count} messages in {elapsed:.2?}: {per_second:.0} messages/s, {cpu_us:.1} us of CPU each"
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

/// User and system time of this process. The kernel counts in hundredths of a second.
fn cpu_time() -> Result<Duration, Box<dyn Error>> {
    const TICKS_PER_S: u64 = 100;
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name of the program stands in brackets and may hold spaces.
    let (_, fields) = stat.rsplit_once(')').ok_or("no name in /proc/self/stat")?;
    let mut times = fields.split_whitespace().skip(11);
    let mut next = || -> Result<u64, Box<dyn Error>> {
        Ok(times.next().ok_or("/proc/self/stat is short")?.parse()?)
    };
    let ticks = next()? + next()?;
    Ok(Duration::from_millis(ticks * 1_000 / TICKS_PER_S))
}
