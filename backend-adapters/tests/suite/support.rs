//! Harnesses and small helpers.

use portico_backend::conformance::{self, Harness};
use portico_backend::embedded::{self, Options};
use portico_backend::fault::{Faulty, Plan};
use portico_backend::memory::Store;
use portico_backend::messages::Messages;
use portico_backend::records::Records;
use portico_backend::{Backend, Completion, Family, Limits, Request, Sink};
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Small enough that the suite meets every limit.
pub(crate) fn tight() -> Limits {
    Limits {
        commands_max: 1_024,
        commit_messages_max: 64,
        ..Limits::default()
    }
}

fn wrap<F: Family>(
    plain: Arc<dyn Backend<F>>,
    fault: Option<(Plan, u64)>,
) -> Result<Arc<dyn Backend<F>>, String> {
    match fault {
        None => Ok(plain),
        Some((plan, seed)) => {
            let faulty = Faulty::new(plain, plan, seed);
            Ok(Arc::new(faulty.map_err(|error| error.to_string())?))
        }
    }
}

/// The memory adapter; its data outlives the backend.
pub(crate) struct InMemory {
    pub(crate) store: Store,
    pub(crate) fault: Option<(Plan, u64)>,
}

impl Harness<Messages> for InMemory {
    fn open(&self) -> Result<Arc<dyn Backend<Messages>>, String> {
        wrap(self.store.messages(tight()), self.fault)
    }
}

impl Harness<Records> for InMemory {
    fn open(&self) -> Result<Arc<dyn Backend<Records>>, String> {
        wrap(self.store.records(tight()), self.fault)
    }
}

/// The embedded adapter in a directory of its own.
pub(crate) struct OnDisk {
    pub(crate) dir: TempDir,
    pub(crate) fault: Option<(Plan, u64)>,
}

impl OnDisk {
    pub(crate) fn new(fault: Option<(Plan, u64)>) -> Self {
        Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            fault,
        }
    }

    fn store(&self) -> Result<embedded::Embedded, String> {
        embedded::open(options(self.dir.path())).map_err(|error| error.to_string())
    }
}

pub(crate) fn options(dir: &Path) -> Options {
    Options {
        limits: tight(),
        cache_bytes: 4 << 20,
        ..Options::new(dir.join("store"))
    }
}

impl Harness<Messages> for OnDisk {
    fn open(&self) -> Result<Arc<dyn Backend<Messages>>, String> {
        wrap(self.store()?.messages, self.fault)
    }
}

impl Harness<Records> for OnDisk {
    fn open(&self) -> Result<Arc<dyn Backend<Records>>, String> {
        wrap(self.store()?.records, self.fault)
    }
}

/// The whole suite over a harness per seed, all at the same time: most of it is waiting.
pub(crate) fn under_seeds<H>(seeds: Range<u64>, harness: impl Fn(u64) -> H)
where
    H: Harness<Messages> + Harness<Records> + Send,
{
    thread::scope(|scope| {
        for seed in seeds {
            let harness = harness(seed);
            scope.spawn(move || {
                let outcome = conformance::messages(&harness)
                    .and_then(|()| conformance::records(&harness))
                    .and_then(|()| conformance::ordered_completions(&harness));
                outcome.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
            });
        }
    });
}

struct Inbox<F: Family>(Mutex<Sender<Vec<Completion<F>>>>);

pub(crate) type Answers<F> = Receiver<Vec<Completion<F>>>;

/// A sink, and where its completions come out: each call by itself.
pub(crate) fn mailbox<F: Family>() -> (Arc<dyn Sink<F>>, Answers<F>) {
    let (sender, answers) = channel();
    (Arc::new(Inbox(Mutex::new(sender))), answers)
}

impl<F: Family> Sink<F> for Inbox<F> {
    fn complete(&self, batch: Vec<Completion<F>>) {
        let _ = self.0.lock().expect("no test panics here").send(batch);
    }
}

/// Receives that many completions, in as many calls as the backend makes.
pub(crate) fn receive<F: Family>(answers: &Answers<F>, count: usize) -> Vec<Completion<F>> {
    let mut all = Vec::new();
    while all.len() < count {
        let batch = answers.recv_timeout(Duration::from_secs(20));
        all.extend(batch.expect("every command is answered"));
    }
    assert_eq!(all.len(), count, "and no other");
    all
}

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Requests with tokens from `first` on, in lane 0.
pub(crate) fn requests<F: Family>(
    first: u64,
    cmds: impl IntoIterator<Item = F::Cmd>,
) -> Vec<Request<F>> {
    let request = |(token, cmd)| Request {
        token,
        lane: 0,
        deadline: soon(),
        cmd,
    };
    (first..).zip(cmds).map(request).collect()
}
