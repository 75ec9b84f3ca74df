//! Batches of direct messages through the storage adapters: from `submit` to the last completion.
//! For the embedded store that is a commit with its fsync, in a temporary directory: `TMPDIR` says
//! on which disk, and a directory in memory would measure nothing of it.

use bytes::Bytes;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
    measurement::WallTime,
};
use portico_backend::{
    Backend, Completion, Limits, Request, Sink,
    embedded::{self, Options},
    memory::Store,
    messages::{Cmd, Entry, EntryMeta, InboxRef, Messages, Refs},
};
use portico_wire::{
    Op,
    ids::{ConvId, ConvSeq, DeviceId, MsgId, Seq, UserId},
};
use std::{
    error::Error,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

const BATCHES: [usize; 3] = [1, 32, 512];
const USERS: u64 = 10_000;
const START_US: u64 = 1_790_000_000_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// Counts what was answered. A failure counts as nothing, and the bench ends with it.
struct Answers(SyncSender<usize>);

impl Sink<Messages> for Answers {
    fn complete(&self, batch: Vec<Completion<Messages>>) {
        let good = batch.iter().filter(|answer| answer.result.is_ok()).count();
        // The receiver lives as long as the bench.
        let _ = self.0.send(good);
    }
}

/// A store, and the messages that go into it.
struct Bench {
    store: Arc<dyn Backend<Messages>>,
    sink: Arc<dyn Sink<Messages>>,
    answers: Receiver<usize>,
    body: Bytes,
    count: u64,
}

impl Bench {
    fn new(store: Arc<dyn Backend<Messages>>) -> Self {
        // More places than there are completions in flight: the sink must not block.
        let (sender, answers) = sync_channel(1_024);
        Self {
            store,
            sink: Arc::new(Answers(sender)),
            answers,
            body: Bytes::from(vec![0x5a; 200]),
            count: 0,
        }
    }

    fn batch(&mut self, size: usize) -> Vec<Request<Messages>> {
        (0..size).map(|_| self.request()).collect()
    }

    fn request(&mut self) -> Request<Messages> {
        self.count += 1;
        let seq = START_US + 2 * self.count;
        // Neighbours in time are no neighbours in the store.
        let to = UserId(1 + self.count.wrapping_mul(7_919) % USERS);
        let from = UserId(1 + (to.0 + 1 + self.count % 20) % USERS);
        let conv = ConvId::direct(from, to);
        let conv_seq = ConvSeq(seq);
        let entry = Entry {
            conv,
            conv_seq,
            sender: from,
            device: DeviceId(1),
            msg_id: MsgId::new_v7(seq / 1_000, u128::from(self.count)),
            meta: EntryMeta {
                op: Op::Deliver as u8,
                ..EntryMeta::default()
            },
            body: self.body.clone(),
        };
        let reference = InboxRef {
            user: to,
            seq: Seq(seq + 1),
            conv,
            conv_seq,
        };
        Request {
            token: self.count,
            lane: 0,
            deadline: Instant::now() + PATIENCE,
            cmd: Cmd::Append {
                entry,
                refs: Refs::from_buf([reference]),
                fan_out: false,
            },
        }
    }
}

fn store_batch(
    store: &dyn Backend<Messages>,
    sink: &Arc<dyn Sink<Messages>>,
    answers: &Receiver<usize>,
    batch: Vec<Request<Messages>>,
) {
    let mut open = batch.len();
    if let Err(rejected) = store.submit(batch, sink) {
        panic!("the store took nothing: {}", rejected.why);
    }
    while open > 0 {
        match answers.recv_timeout(PATIENCE) {
            Ok(good) if good > 0 => open -= good,
            Ok(_) => panic!("the store failed to write"),
            Err(error) => panic!("the store did not answer: {error}"),
        }
    }
}

fn batches(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, bench: &mut Bench) {
    let (store, sink) = (bench.store.clone(), bench.sink.clone());
    for size in BATCHES {
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(BenchmarkId::new(name, size), |b| {
            b.iter_custom(|iterations| {
                let mut spent = Duration::ZERO;
                for _ in 0..iterations {
                    let batch = bench.batch(size);
                    let start = Instant::now();
                    store_batch(store.as_ref(), &sink, &bench.answers, batch);
                    spent += start.elapsed();
                }
                spent
            });
        });
    }
}

fn storage(c: &mut Criterion) {
    if let Err(error) = run(c) {
        panic!("a store could not be opened or closed: {error}");
    }
}

fn run(c: &mut Criterion) -> Result<(), Box<dyn Error>> {
    let mut group = c.benchmark_group("storage");
    group.sample_size(20);
    group.measurement_time(Duration::from_secs(3));
    group.warm_up_time(Duration::from_secs(1));

    let store = Store::new().messages(Limits::default());
    batches(&mut group, "memory", &mut Bench::new(store.clone()));
    store.close(Instant::now() + PATIENCE)?;

    let dir = tempfile::tempdir()?;
    let embedded = embedded::open(Options::new(dir.path()))?;
    let store = embedded.messages.clone();
    batches(&mut group, "embedded, fsync", &mut Bench::new(store));
    embedded.close(Instant::now() + PATIENCE)?;
    group.finish();
    Ok(())
}

criterion_group!(benches, storage);
criterion_main!(benches);
