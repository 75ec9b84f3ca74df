//! A running gateway and its data directory.

use super::{Child, Exit, Metrics, Page, Peer, Process, admin, eventually};
use portico_client::{RawConnection, SessionConfig, mint};
use portico_wire::ids::{DeviceId, UserId};
use rustix::process::Signal;
use std::{
    fs,
    net::SocketAddr,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{SystemTime, UNIX_EPOCH},
};
use tempfile::TempDir;

/// Users that only [`Gateway::still_serves`] uses.
const FRESH_USER_FIRST: u64 = 9_000_000;
const TOKEN_TTL_S: u64 = 3_600;

/// How to start a gateway, any number of times on the same data directory.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    directory: Arc<TempDir>,
    settings: Vec<(String, String)>,
    arguments: Vec<String>,
    expected: Vec<String>,
    /// For an ordinary user: what the shell does before.
    ordinary: Option<String>,
}

/// Whom root starts gateways as, to see how an ordinary user fares.
const NOBODY: u32 = 65_534;

impl Setup {
    /// The embedded store in a new directory, two shards, and a drain that does not keep tests
    /// waiting.
    pub(crate) fn new() -> Self {
        Self::within(TempDir::new().expect("a temporary directory"))
    }

    /// The same, in a directory made by the caller.
    pub(crate) fn within(directory: TempDir) -> Self {
        let setup = Self {
            directory: Arc::new(directory),
            settings: Vec::new(),
            arguments: Vec::new(),
            expected: Vec::new(),
            ordinary: None,
        };
        setup
            .set("server.shards", 2)
            .set("drain.spread_ms", 0)
            .set("drain.deadline_ms", 500)
    }

    /// Sets a value through the environment.
    pub(crate) fn set(mut self, key: &str, value: impl ToString) -> Self {
        let path = key.strip_prefix("server.").unwrap_or(key);
        let name = format!("PORTICO_{}", path.replace('.', "_").to_uppercase());
        self.settings.retain(|(other, _)| *other != name);
        self.settings.push((name, value.to_string()));
        self
    }

    /// Sets any variable of the environment.
    pub(crate) fn variable(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// Adds a flag of `portico serve`.
    pub(crate) fn flag(mut self, name: &str, value: impl ToString) -> Self {
        self.arguments.push(name.to_owned());
        self.arguments.push(value.to_string());
        self
    }

    /// A WARN or ERROR with this text is what the test wants.
    pub(crate) fn expect_log(mut self, part: &str) -> Self {
        self.expected.push(part.to_owned());
        self
    }

    /// Starts as a user without rights, in a shell that has run this before: `ulimit` and the like.
    pub(crate) fn ordinary_user(mut self, before: &str) -> Self {
        self.ordinary = Some(before.to_owned());
        self
    }

    /// The data directory, which the first start makes.
    pub(crate) fn data(&self) -> PathBuf {
        self.directory().join("data")
    }

    /// Where it is: a place for other files.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Runs the program without waiting for anything.
    pub(crate) fn spawn(&self) -> Child {
        let data = self.data().display().to_string();
        let mut arguments = vec!["serve".to_owned(), "--data".to_owned(), data];
        for (flag, address) in [("--listen", "127.0.0.1:0"), ("--admin", "127.0.0.1:0")] {
            if !self.arguments.iter().any(|argument| argument == flag) {
                arguments.extend([flag.to_owned(), address.to_owned()]);
            }
        }
        arguments.extend(self.arguments.iter().cloned());
        let Some(before) = &self.ordinary else {
            return Child::portico(arguments, &self.settings);
        };
        // Where that user may run it, whatever the modes of the folders above the build are.
        let program = self.directory().join("portico");
        fs::copy(env!("CARGO_BIN_EXE_portico"), &program).expect("room for it");
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("{before}\nexec \"$0\" \"$@\"")])
            .arg(&program)
            .args(arguments);
        if rustix::process::geteuid().is_root() {
            chown(self.directory(), Some(NOBODY), Some(NOBODY)).expect("root may");
            command.uid(NOBODY).gid(NOBODY);
        }
        Child::start_with(command, &self.settings)
    }

    /// Starts a gateway and waits until it accepts clients.
    pub(crate) fn start(&self) -> Gateway {
        let mut child = self.spawn();
        let Some((listen, admin, tls)) = child.out.find(ready) else {
            let exit = child.wait();
            panic!(
                "it ended with {:?} instead of serving:\n{}",
                exit.code, exit.err
            );
        };
        let key = self.data().join(mint::KEY_FILE);
        Gateway {
            listen,
            admin,
            tls,
            key: mint::SigningKey::load(&key).expect("the key is there and private"),
            child,
            setup: self.clone(),
        }
    }

    /// Starts a gateway that must refuse to.
    pub(crate) fn start_refused(&self) -> Exit {
        let exit = self.spawn().wait();
        assert!(!exit.out.contains("ready"), "{}", exit.out);
        assert!(!exit.err.contains("panicked"), "{}", exit.err);
        exit
    }
}

/// The addresses in the ready line: of clients, of operators, and of TLS if it is served.
fn ready(line: &str) -> Option<(SocketAddr, SocketAddr, Option<SocketAddr>)> {
    let rest = line.strip_prefix("ready listen=")?;
    let (listen, rest) = rest.split_once(" admin=")?;
    let (admin, tls) = match rest.split_once(" tls=") {
        Some((admin, tls)) => (admin, Some(tls.parse().ok()?)),
        None => (rest, None),
    };
    Some((listen.parse().ok()?, admin.parse().ok()?, tls))
}

/// See the [module](self). Killed when dropped, and its log is judged then.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    tls: Option<SocketAddr>,
    pub(crate) key: mint::SigningKey,
    pub(crate) child: Child,
    setup: Setup,
}

impl Gateway {
    /// With the usual settings.
    pub(crate) fn start() -> Self {
        Setup::new().start()
    }

    /// Where TLS is served.
    pub(crate) fn tls(&self) -> SocketAddr {
        self.tls.expect("it was started with TLS")
    }

    pub(crate) fn setup(&self) -> &Setup {
        &self.setup
    }

    pub(crate) fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// An access token that is good for an hour.
    pub(crate) fn token(&self, user: u64, device: u16) -> String {
        let (user, device) = (UserId(user), DeviceId(device));
        self.key.token(user, device, 0, TOKEN_TTL_S, unix_s())
    }

    /// How a session of the client library logs in here.
    pub(crate) fn session(&self, user: u64, device: u16) -> SessionConfig {
        SessionConfig::new(UserId(user), DeviceId(device), self.token(user, device))
    }

    /// A connection that has said nothing.
    pub(crate) fn connect(&self) -> RawConnection {
        RawConnection::connect(self.listen).expect("the gateway accepts connections")
    }

    /// A device that is up to date.
    pub(crate) fn login(&self, user: u64, device: u16) -> Peer {
        Peer::login(self.connect(), &self.token(user, device))
    }

    pub(crate) fn get(&self, path: &str) -> Page {
        admin::get(self.admin, path).expect("the admin port answers")
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let page = self.get("/metrics");
        assert_eq!(page.status, 200);
        Metrics::parse(&page.body)
    }

    /// Remembers where a counter stands.
    pub(crate) fn watch(&self, series: &'static str) -> Watch<'_> {
        Watch {
            gateway: self,
            series,
            before: self.metrics().get(series),
        }
    }

    /// Waits until a metric has a value; shards publish theirs a few times a second.
    pub(crate) fn await_metric(&self, series: &str, wanted: impl Fn(u64) -> bool) -> u64 {
        eventually(series, || {
            Some(self.metrics().get(series)).filter(|value| wanted(*value))
        })
    }

    /// Waits until so many acknowledgements have been heard and the cursors are in the store, where a
    /// later login finds them.
    pub(crate) fn has_stored_acks(&self, count: u64) {
        self.await_metric("portico_messages_acknowledged_total", |acks| acks >= count);
        self.await_metric("portico_unsaved", |count| count == 0);
    }

    /// Two users whom nobody has seen talk, and the operator is told that all is well.
    pub(crate) fn still_serves(&self) {
        static NEXT: AtomicU64 = AtomicU64::new(FRESH_USER_FIRST);
        let user = NEXT.fetch_add(2, Ordering::Relaxed);
        let (mut from, mut to) = (self.login(user, 1), self.login(user + 1, 1));
        from.send(user + 1, "still there?");
        assert_eq!(to.message().text, "still there?");
        assert_eq!(self.get("/healthz").status, 200);
        let ready = self.get("/readyz");
        assert_eq!(ready.status, 200, "{}", ready.body);
    }

    /// SIGTERM, and a good end.
    pub(crate) fn stop(mut self) -> Exit {
        self.child.signal(Signal::TERM);
        let exit = self.child.wait();
        assert_eq!(exit.code, Some(0), "{}", exit.err);
        exit
    }

    /// SIGKILL: what a power cut leaves of the process.
    pub(crate) fn kill(mut self) {
        self.child.kill();
    }

    /// Lines of its log that nobody announced, and panics.
    fn complaints(&self) -> Vec<String> {
        let expected = |line: &String| self.setup.expected.iter().any(|part| line.contains(part));
        let lines = self.child.err.all().into_iter();
        lines
            .filter(|line| line.contains("panicked") || (is_bad(line) && !expected(line)))
            .collect()
    }
}

/// A WARN or an ERROR: the level is the first word, or the second after the time.
fn is_bad(line: &str) -> bool {
    line.split_whitespace()
        .take(2)
        .any(|word| word == "WARN" || word == "ERROR")
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.child.kill();
        if thread::panicking() {
            eprintln!("-- the gateway's log:\n{}", self.child.err.text());
            return;
        }
        let complaints = self.complaints();
        assert!(complaints.is_empty(), "in the log: {complaints:#?}");
    }
}

/// A counter that is about to move.
#[derive(Debug)]
pub(crate) struct Watch<'a> {
    gateway: &'a Gateway,
    series: &'static str,
    before: u64,
}

impl Watch<'_> {
    /// It moves by exactly so much.
    pub(crate) fn moves_by(self, count: u64) {
        let value = self
            .gateway
            .await_metric(self.series, |value| value >= self.before + count);
        assert_eq!(value, self.before + count, "{}", self.series);
    }

    /// It moves.
    pub(crate) fn moves(self) {
        self.gateway
            .await_metric(self.series, |value| value > self.before);
    }
}

pub(crate) fn unix_s() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("the clock is past 1970").as_secs()
}
