//! Group commit over engines that are slow, broken, or panic.

use crate::support::{mailbox, receive, requests, soon};
use portico_backend::memory::Store;
use portico_backend::messages::{Cmd, Messages, Reply};
use portico_backend::{
    Backend, Caps, Completion, Error, GroupCommit, Health, Kind, Limits, Reader, Request, Sink,
    Writer,
};
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, MsgId, Seq, UserId};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

type Results = Vec<Result<Reply, Error>>;

/// A writer made of a function.
struct Apply<A>(A);

impl<A: FnMut(&[Request<Messages>], &mut Results) + Send + 'static> Writer<Messages> for Apply<A> {
    fn apply(&mut self, batch: &[Request<Messages>], results: &mut Results) {
        (self.0)(batch, results);
    }
}

/// A reader made of a function.
struct Read<R>(R);

impl<R: FnMut(&Cmd) -> Result<Reply, Error> + Send + 'static> Reader<Messages> for Read<R> {
    fn read(&mut self, cmd: &Cmd) -> Result<Reply, Error> {
        (self.0)(cmd)
    }
}

fn start(
    limits: Limits,
    apply: impl FnMut(&[Request<Messages>], &mut Results) + Send + 'static,
) -> GroupCommit<Messages> {
    let readers = vec![Store::new(), Store::new()];
    GroupCommit::start(Store::caps(), limits, Apply(apply), readers).expect("starts")
}

fn all_done(batch: &[Request<Messages>], results: &mut Results) {
    results.extend(batch.iter().map(|_| Ok(Reply::Done)));
}

fn set(n: u64) -> Cmd {
    Cmd::SetCursors {
        cursors: vec![(UserId(n), DeviceId(1), Seq(n))],
    }
}

fn kind(completion: &Completion<Messages>) -> Option<Kind> {
    completion.result.as_ref().err().map(|error| error.kind)
}

/// A writer that waits for a permission per commit and tells when it has begun one.
fn gated(limits: Limits) -> (GroupCommit<Messages>, Receiver<usize>, Sender<()>) {
    let (began, begun) = channel();
    let (permit, permits) = channel::<()>();
    let backend = start(limits, move |batch, results| {
        let _ = began.send(batch.len());
        let _ = permits.recv();
        all_done(batch, results);
    });
    (backend, begun, permit)
}

#[test]
fn what_waits_shares_one_commit_and_one_call() {
    let (backend, begun, permit) = gated(Limits::default());
    let (sink, answers) = mailbox();
    backend.submit(requests(0, [set(0)]), &sink).expect("taken");
    assert_eq!(begun.recv().expect("begins"), 1);
    for n in 1..=100 {
        backend.submit(requests(n, [set(n)]), &sink).expect("taken");
    }
    permit.send(()).expect("waits");
    assert_eq!(begun.recv().expect("begins"), 100);
    permit.send(()).expect("waits");
    assert_eq!(answers.recv().expect("first").len(), 1);
    let second = answers.recv().expect("second");
    let tokens: Vec<u64> = second.iter().map(|c| c.token).collect();
    assert_eq!(tokens, (1..=100).collect::<Vec<u64>>());
    assert_eq!(backend.stats().commits, 2);
}

#[test]
fn a_commit_has_a_greatest_weight() {
    let limits = Limits {
        commit_messages_max: 10,
        ..Limits::default()
    };
    let (backend, begun, permit) = gated(limits);
    let (sink, answers) = mailbox();
    let heavy = Cmd::SetCursors {
        cursors: vec![(UserId(1), DeviceId(1), Seq(1)); 50],
    };
    backend.submit(requests(0, [set(0)]), &sink).expect("taken");
    assert_eq!(begun.recv().expect("begins"), 1);
    // 7 + 7 light ones, one of weight 25, 3 light ones: commits of 10, 4, 1 and 3.
    backend
        .submit(requests(1, (0..7).map(set)), &sink)
        .expect("taken");
    backend
        .submit(requests(8, (0..7).map(set)), &sink)
        .expect("taken");
    backend.submit(requests(15, [heavy]), &sink).expect("taken");
    backend
        .submit(requests(16, (0..3).map(set)), &sink)
        .expect("taken");
    for expected in [10, 4, 1, 3] {
        permit.send(()).expect("waits");
        assert_eq!(begun.recv().expect("begins"), expected);
    }
    permit.send(()).expect("waits");
    let tokens: Vec<u64> = receive(&answers, 19).iter().map(|c| c.token).collect();
    assert_eq!(tokens, (0..19).collect::<Vec<u64>>(), "in order");
}

#[test]
fn commands_and_bytes_in_flight_are_bounded() {
    let limits = Limits {
        commands_max: 10,
        bytes_max: 97_000,
        ..Limits::default()
    };
    let (backend, begun, permit) = gated(limits);
    assert_eq!(
        backend.caps().batch_max,
        10,
        "a batch that never fits is invalid"
    );
    let (sink, answers) = mailbox();
    backend
        .submit(requests(0, (0..8).map(set)), &sink)
        .expect("taken");
    begun.recv().expect("begins");
    let rejected = backend
        .submit(requests(8, (0..3).map(set)), &sink)
        .expect_err("full");
    assert_eq!(rejected.why.kind, Kind::Overloaded);
    assert!(rejected.why.retry_after.is_some());
    let tokens: Vec<u64> = rejected.batch.iter().map(|r| r.token).collect();
    assert_eq!(tokens, [8, 9, 10], "comes back whole");
    // Reads have room of their own.
    let reads = (0..10).map(|n| Cmd::Cursors { user: UserId(n) });
    backend.submit(requests(20, reads), &sink).expect("taken");
    receive(&answers, 10);
    // A few commands, but many bytes.
    let wide = || Cmd::SetCursors {
        cursors: vec![(UserId(1), DeviceId(1), Seq(1)); 4_000],
    };
    let rejected = backend
        .submit(requests(30, [wide()]), &sink)
        .expect_err("too many bytes");
    assert_eq!(rejected.why.kind, Kind::Overloaded);
    let rejected = backend
        .submit(requests(30, [wide(), wide()]), &sink)
        .expect_err("never");
    assert_eq!(rejected.why.kind, Kind::Invalid);
    permit.send(()).expect("waits");
    receive(&answers, 8);
    let stats = backend.stats();
    assert_eq!(
        (
            stats.writes_in_flight,
            stats.reads_in_flight,
            stats.bytes_in_flight
        ),
        (0, 0, 0)
    );
    assert_eq!(stats.rejected, 3);
    backend
        .submit(rejected.batch.into_iter().take(1).collect(), &sink)
        .expect("room again");
    permit.send(()).expect("waits");
    receive(&answers, 1);
}

#[test]
fn expired_commands_are_answered_in_their_place_and_not_applied() {
    let applied = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&applied);
    let backend = start(Limits::default(), move |batch, results| {
        counter.fetch_add(batch.len(), Ordering::Relaxed);
        all_done(batch, results);
    });
    let (sink, answers) = mailbox();
    let mut batch = requests(0, (0..9).map(set));
    for late in batch.iter_mut().step_by(3) {
        late.deadline = Instant::now();
    }
    backend.submit(batch, &sink).expect("taken");
    let answers = receive(&answers, 9);
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(answer.token, i as u64);
        let expected = (i % 3 == 0).then_some(Kind::Unavailable);
        assert_eq!(kind(answer), expected);
    }
    assert_eq!(applied.load(Ordering::Relaxed), 6);
    assert_eq!(backend.stats().expired, 3);
}

#[test]
fn a_fatal_write_ends_all_writing_but_not_reading() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let backend = start(Limits::default(), move |batch, results| {
        counter.fetch_add(1, Ordering::Relaxed);
        let full = Error::new(Kind::Fatal, "the disk is full");
        results.extend(batch.iter().map(|_| Err(full.clone())));
    });
    let (sink, answers) = mailbox();
    backend.submit(requests(0, [set(1)]), &sink).expect("taken");
    assert_eq!(kind(&receive(&answers, 1)[0]), Some(Kind::Fatal));
    let rejected = backend
        .submit(requests(1, [set(2)]), &sink)
        .expect_err("poisoned");
    assert_eq!(rejected.why.kind, Kind::Fatal);
    assert!(matches!(backend.health(), Health::Down(why) if why.contains("full")));
    let read = Cmd::Cursors { user: UserId(1) };
    backend
        .submit(requests(2, [read.clone()]), &sink)
        .expect("reads go on");
    assert!(receive(&answers, 1)[0].result.is_ok());
    let mixed = backend
        .submit(requests(3, [read, set(3)]), &sink)
        .expect_err("whole");
    assert_eq!(mixed.batch.len(), 2);
    assert_eq!(
        calls.load(Ordering::Relaxed),
        1,
        "the engine is not called again"
    );
}

#[test]
fn a_panic_in_a_commit_is_fatal_and_everything_is_answered() {
    let backend = start(Limits::default(), |_, _| panic!("meant to happen: commit"));
    let (sink, answers) = mailbox();
    // What comes after the panic is rejected; what was taken before is answered.
    let taken = (0..5)
        .filter(|n| {
            backend
                .submit(requests(n * 10, (0..10).map(set)), &sink)
                .is_ok()
        })
        .count();
    assert!(taken >= 1);
    let answers = receive(&answers, taken * 10);
    assert!(answers.iter().all(|c| kind(c) == Some(Kind::Fatal)));
    assert!(matches!(backend.health(), Health::Down(_)));
    backend.close(soon()).expect("closes");
}

#[test]
fn a_wrong_number_of_results_is_fatal() {
    let backend = start(Limits::default(), |batch, results| {
        results.extend(batch.iter().skip(1).map(|_| Ok(Reply::Done)));
    });
    let (sink, answers) = mailbox();
    backend
        .submit(requests(0, (0..3).map(set)), &sink)
        .expect("taken");
    let answers = receive(&answers, 3);
    assert!(answers.iter().all(|c| kind(c) == Some(Kind::Fatal)));
}

#[test]
fn a_panic_in_a_read_harms_that_read_alone() {
    let reader = || {
        Read(|cmd: &Cmd| match cmd {
            Cmd::Cursors { user: UserId(13) } => panic!("meant to happen: read"),
            _ => Ok(Reply::Cursors(Vec::new())),
        })
    };
    let backend = GroupCommit::start(
        Store::caps(),
        Limits::default(),
        Apply(all_done),
        vec![reader(), reader()],
    );
    let backend = backend.expect("starts");
    let (sink, answers) = mailbox();
    let reads = (0..100).map(|n| Cmd::Cursors { user: UserId(n) });
    backend.submit(requests(0, reads), &sink).expect("taken");
    for answer in receive(&answers, 100) {
        let expected = (answer.token == 13).then_some(Kind::Fatal);
        assert_eq!(kind(&answer), expected);
    }
    assert!(matches!(backend.health(), Health::Degraded(_)));
    backend
        .submit(requests(100, [set(1)]), &sink)
        .expect("writes go on");
    assert!(receive(&answers, 1)[0].result.is_ok());
}

/// A sink that panics.
struct Grenade;

impl Sink<Messages> for Grenade {
    fn complete(&self, _: Vec<Completion<Messages>>) {
        panic!("meant to happen: sink");
    }
}

#[test]
fn a_panicking_sink_harms_itself_alone() {
    let backend = start(Limits::default(), all_done);
    let grenade: Arc<dyn Sink<Messages>> = Arc::new(Grenade);
    let (sink, answers) = mailbox();
    backend
        .submit(requests(0, [set(1)]), &grenade)
        .expect("taken");
    let read = Cmd::Cursors { user: UserId(1) };
    backend
        .submit(requests(1, [read]), &grenade)
        .expect("taken");
    backend.submit(requests(2, [set(1)]), &sink).expect("taken");
    assert!(receive(&answers, 1)[0].result.is_ok());
    backend.close(soon()).expect("closes");
}

#[test]
fn a_hanging_commit_shows_while_it_hangs() {
    let limits = Limits {
        commit_slow: Duration::from_millis(50),
        commit_stuck: Duration::from_millis(200),
        ..Limits::default()
    };
    let (backend, begun, permit) = gated(limits);
    let (sink, answers) = mailbox();
    backend.submit(requests(0, [set(1)]), &sink).expect("taken");
    begun.recv().expect("begins");
    assert_eq!(backend.health(), Health::Up);
    let wait_for = |expected: fn(&Health) -> bool| {
        let give_up = soon();
        while !expected(&backend.health()) {
            assert!(Instant::now() < give_up, "health is {:?}", backend.health());
            thread::sleep(Duration::from_millis(5));
        }
    };
    wait_for(|health| matches!(health, Health::Degraded(_)));
    wait_for(|health| matches!(health, Health::Down(_)));
    permit.send(()).expect("waits");
    receive(&answers, 1);
    wait_for(|health| *health == Health::Up);
    assert!(backend.stats().commit_us_max >= 200_000);
}

#[test]
fn closing_drains_and_keeps_its_deadline() {
    let (backend, begun, permit) = gated(Limits::default());
    let (sink, answers) = mailbox();
    backend.submit(requests(0, [set(1)]), &sink).expect("taken");
    begun.recv().expect("begins");
    backend
        .submit(requests(1, (0..20).map(set)), &sink)
        .expect("taken");
    let late = backend.close(Instant::now() + Duration::from_millis(20));
    assert_eq!(late.expect_err("a commit hangs").kind, Kind::Unknown);
    let rejected = backend
        .submit(requests(30, [set(1)]), &sink)
        .expect_err("closed");
    assert_eq!(rejected.why.kind, Kind::Unavailable);
    assert!(matches!(backend.health(), Health::Down(_)));
    permit.send(()).expect("waits");
    permit.send(()).expect("waits");
    backend.close(soon()).expect("drains");
    receive(&answers, 21);
}

#[test]
fn each_sink_is_called_once_per_commit() {
    struct Counting {
        calls: AtomicUsize,
        completions: Mutex<Vec<u64>>,
    }
    impl Sink<Messages> for Counting {
        fn complete(&self, batch: Vec<Completion<Messages>>) {
            self.calls.fetch_add(1, Ordering::Relaxed);
            let mut all = self.completions.lock().expect("no panic here");
            all.extend(batch.iter().map(|c| c.token));
        }
    }
    let (backend, begun, permit) = gated(Limits::default());
    let cores: Vec<Arc<Counting>> = (0..3)
        .map(|_| {
            Arc::new(Counting {
                calls: AtomicUsize::new(0),
                completions: Mutex::new(Vec::new()),
            })
        })
        .collect();
    let (first, answers) = mailbox();
    backend
        .submit(requests(0, [set(0)]), &first)
        .expect("taken");
    begun.recv().expect("begins");
    for round in 0..10 {
        for core in &cores {
            let sink: Arc<dyn Sink<Messages>> = Arc::clone(core) as _;
            backend
                .submit(requests(round * 2, (0..2).map(set)), &sink)
                .expect("taken");
        }
    }
    permit.send(()).expect("waits");
    assert_eq!(begun.recv().expect("begins"), 60);
    permit.send(()).expect("waits");
    receive(&answers, 1);
    backend.close(soon()).expect("closes");
    for core in cores {
        assert_eq!(core.calls.load(Ordering::Relaxed), 1);
        let tokens = core.completions.lock().expect("no panic here");
        assert_eq!(*tokens, (0..20).collect::<Vec<u64>>());
    }
}

#[test]
fn reads_are_spread_and_answered_in_few_calls() {
    let threads = Arc::new(Mutex::new(Vec::new()));
    let reader = || {
        let threads = Arc::clone(&threads);
        Read(move |_: &Cmd| {
            thread::sleep(Duration::from_micros(200));
            let mut threads = threads.lock().expect("no panic here");
            threads.push(thread::current().id());
            Ok(Reply::Cursors(Vec::new()))
        })
    };
    let readers = vec![reader(), reader()];
    let backend = GroupCommit::start(Store::caps(), Limits::default(), Apply(all_done), readers);
    let backend = backend.expect("starts");
    let (sink, answers) = mailbox();
    let reads = (0..100).map(|n| Cmd::Cursors { user: UserId(n) });
    backend.submit(requests(0, reads), &sink).expect("taken");
    let (mut calls, mut answered) = (0, 0);
    while answered < 100 {
        answered += answers.recv().expect("is answered").len();
        calls += 1;
    }
    assert_eq!(answered, 100);
    // A piece of 32 takes some 6 ms and is answered in steps of 2 ms.
    assert!(calls <= 50, "{calls} calls");
    let mut threads = threads.lock().expect("no panic here").clone();
    threads.dedup();
    assert!(threads.len() > 1, "one thread read all");
    assert_eq!(backend.stats().reads, 100);
}

fn find(n: u64) -> Cmd {
    Cmd::Find {
        conv: ConvId::direct(UserId(1), UserId(2)),
        since: ConvSeq(0),
        sender: UserId(1),
        device: DeviceId(1),
        msg_ids: vec![MsgId::new_v7(n, 0)],
    }
}

/// Readers in which a search waits for a permission.
fn searching(readers: usize) -> (GroupCommit<Messages>, crossbeam::channel::Sender<()>) {
    let (permit, permits) = crossbeam::channel::unbounded::<()>();
    let reader = || {
        let permits = permits.clone();
        Read(move |cmd: &Cmd| match cmd {
            Cmd::Find { .. } => {
                let _ = permits.recv();
                Ok(Reply::Found(Vec::new()))
            }
            _ => Ok(Reply::Cursors(Vec::new())),
        })
    };
    let readers = (0..readers).map(|_| reader()).collect();
    let backend = GroupCommit::start(Store::caps(), Limits::default(), Apply(all_done), readers);
    (backend.expect("starts"), permit)
}

#[test]
fn searches_leave_a_reader_for_the_rest() {
    let (backend, permit) = searching(3);
    let (searches, found) = mailbox();
    backend
        .submit(requests(0, (0..50).map(find)), &searches)
        .expect("taken");
    let (sink, answers) = mailbox();
    for n in 0..50 {
        let read = Cmd::Cursors { user: UserId(n) };
        let search = requests(100 + n, [find(n)]);
        backend.submit(search, &searches).expect("taken");
        backend
            .submit(requests(200 + n, [read]), &sink)
            .expect("taken");
        let answer = answers.recv_timeout(Duration::from_secs(20));
        assert_eq!(answer.expect("not behind the searches").len(), 1);
    }
    drop(permit);
    assert_eq!(receive(&found, 100).len(), 100, "and each is answered");
}

#[test]
fn a_lone_reader_searches_too() {
    let (backend, permit) = searching(1);
    drop(permit);
    let (sink, answers) = mailbox();
    let both = [find(1), Cmd::Cursors { user: UserId(1) }, find(2)];
    backend.submit(requests(0, both), &sink).expect("taken");
    assert_eq!(receive(&answers, 3).len(), 3);
}

#[test]
fn a_backend_without_readers_refuses_reads() {
    let caps: Caps = Store::caps();
    let none: Vec<Store> = Vec::new();
    let backend = GroupCommit::start(caps, Limits::default(), Apply(all_done), none);
    let backend = backend.expect("starts");
    let (sink, _answers) = mailbox();
    let rejected = backend
        .submit(requests(0, [Cmd::Ceiling]), &sink)
        .expect_err("no readers");
    assert_eq!(rejected.why.kind, Kind::Invalid);
}
