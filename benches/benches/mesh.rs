//! Letters between shards: what a batch costs on one thread, writing and reading together, and how
//! many letters per second go one way between two threads, with the wakes of a reader that sleeps
//! whenever it has read everything.

use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
    measurement::WallTime,
};
use portico_gateway::bench::{BareMesh, MeshEnd};
use std::{
    error::Error,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::Instant,
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Letters per flush: as a quiet turn, a busy one and a full one write them.
const BATCHES: [u64; 3] = [1, 32, 512];

fn mesh(c: &mut Criterion) {
    let mut group = c.benchmark_group("mesh");
    let done = one_thread(&mut group).and_then(|()| two_threads(&mut group));
    group.finish();
    if let Err(error) = done {
        panic!("the mesh needs an io_uring (`portico probe` says what is missing): {error}");
    }
}

/// Both shards belong to one thread, so nobody is woken.
fn one_thread(group: &mut BenchmarkGroup<'_, WallTime>) -> Outcome<()> {
    let mesh = BareMesh::new(2, 1)?;
    let (mut writer, mut reader) = (mesh.end(0)?, mesh.end(1)?);
    for batch in BATCHES {
        group.throughput(Throughput::Elements(batch));
        group.bench_function(BenchmarkId::new("a batch on one thread", batch), |b| {
            b.iter(|| -> Outcome<u64> {
                for number in 0..batch {
                    writer.write(1, number);
                }
                writer.flush()?;
                let mut sum = 0;
                let read = reader.read(|number| sum += number);
                assert_eq!(read as u64, batch);
                Ok(sum)
            });
        });
    }
    Ok(())
}

fn two_threads(group: &mut BenchmarkGroup<'_, WallTime>) -> Outcome<()> {
    let mesh = BareMesh::new(2, 2)?;
    let (orders, expected) = sync_channel(1);
    let (done, ended) = sync_channel(1);
    let theirs = mesh.clone();
    let reader = thread::spawn(move || read_all(&theirs, &expected, &done));
    // The reader's ring must be known before anything is written.
    ended.recv()?;
    let mut writer = mesh.end(0)?;
    for batch in BATCHES {
        // Per letter, whatever their number in a batch.
        group.throughput(Throughput::Elements(1));
        let id = BenchmarkId::new("one way between two threads, in batches of", batch);
        group.bench_function(id, |b| {
            b.iter_custom(|letters| {
                let start = Instant::now();
                let sent = orders.send(letters).is_ok() && write_all(&mut writer, letters, batch);
                assert!(sent && ended.recv().is_ok(), "both ends come to their end");
                start.elapsed()
            });
        });
    }
    drop(orders);
    reader.join().map_err(|_| "the reader panicked")?
}

fn write_all(writer: &mut MeshEnd, letters: u64, batch: u64) -> bool {
    let mut next = 0;
    while next < letters {
        for number in next..letters.min(next + batch) {
            writer.write(1, number);
        }
        next += batch;
        // A full queue is back-pressure: the writer takes no more work until there is room.
        loop {
            match writer.flush() {
                Ok(true) => break,
                Ok(false) => thread::yield_now(),
                Err(_) => return false,
            }
        }
    }
    true
}

/// Reads as many letters as it is told, in order, and says so; again and again.
fn read_all(mesh: &BareMesh, expected: &Receiver<u64>, done: &SyncSender<()>) -> Outcome<()> {
    let mut reader = mesh.end(1)?;
    done.send(())?;
    for letters in expected {
        let mut next = 0;
        while next < letters {
            let read = reader.read(|number| {
                assert_eq!(number, next, "in order");
                next += 1;
            });
            if read == 0 {
                reader.block()?;
            }
        }
        done.send(())?;
    }
    Ok(())
}

criterion_group!(benches, mesh);
criterion_main!(benches);
