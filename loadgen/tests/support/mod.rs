//! What the tests of the built program share: a folder with a key, a run and its result, and servers
//! that end with the test. Each of them uses a part of it.

pub(crate) mod fake_gateway;
#[path = "../../../client/tests/support/front.rs"]
#[allow(unreachable_pub, dead_code, reason = "the client's tests have it too")]
pub(crate) mod front;

use portico_client::mint::SigningKey;
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Of the standard run: pairs, 20 messages to each user.
pub(crate) const USERS: u64 = 20;
pub(crate) const MESSAGES: u64 = 400;
/// What a faulty server treats wrongly: 5 of each user's 20.
pub(crate) const CHOSEN: u64 = 100;

/// For what must happen, on a machine that is busy with other things.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_portico-loadgen"))
}

/// The program with nothing but these words.
pub(crate) fn alone(line: &str) -> Output {
    let output = program().args(line.split_whitespace()).output();
    output.expect("the program starts")
}

/// A folder with a signing key, where results are left.
pub(crate) struct Setup {
    pub(crate) directory: TempDir,
}

impl Setup {
    pub(crate) fn new() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let setup = Self { directory };
        let pem = SigningKey::generate_pem().expect("a key");
        setup.private_file("auth-key.pem", &pem);
        setup
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// One that only its owner can read.
    pub(crate) fn private_file(&self, name: &str, text: &str) -> PathBuf {
        let file = self.file(name);
        fs::write(&file, text).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("own file");
        file
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.file("auth-key.pem")
    }

    pub(crate) fn json_file(&self) -> PathBuf {
        self.file("result.json")
    }

    /// Words that follow `program`: a run against `target` that leaves its result here. It tests what
    /// becomes of the messages: how fast this machine is, and who else uses it, is no matter.
    fn arguments(&self, target: &str, flags: &str, mut program: Command) -> Command {
        program
            .args(flags.split_whitespace())
            .args(["--functional", "--target", target])
            .arg("--data")
            .arg(self.directory.path())
            .arg("--json")
            .arg(self.json_file());
        program
    }

    pub(crate) fn command(&self, target: &str, flags: &str) -> Command {
        self.arguments(target, flags, program())
    }

    pub(crate) fn run(&self, target: &str, flags: &str) -> Output {
        let output = self.command(target, flags).output();
        output.expect("the program starts")
    }

    /// The same, in a process that may open so many files.
    pub(crate) fn run_limited(&self, target: &str, flags: &str, files: u64) -> Output {
        let output = self.arguments(target, flags, limited(files)).output();
        output.expect("the program starts")
    }

    /// A run in the background.
    pub(crate) fn start(&self, target: &str, flags: &str) -> Child {
        self.command(target, flags)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts")
    }

    pub(crate) fn result(&self) -> Value {
        let json = fs::read(self.json_file()).expect("a result was written");
        serde_json::from_slice(&json).expect("valid JSON")
    }

    /// A run, which has a result.
    pub(crate) fn measure(&self, target: &str, flags: &str) -> (Output, Value) {
        let output = self.run(target, flags);
        let text = String::from_utf8_lossy(&output.stderr);
        let length = fs::metadata(self.json_file()).map_or(0, |file| file.len());
        assert!(length > 0, "no result: {text}");
        (output, self.result())
    }
}

/// The program, in a process that may open so many files.
pub(crate) fn limited(files: u64) -> Command {
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(format!("ulimit -n {files} && exec \"$0\" \"$@\""))
        .arg(env!("CARGO_BIN_EXE_portico-loadgen"));
    shell
}

/// The standard run with other flags. It tests the verifier, not the machine that it runs on: being
/// late is no matter.
pub(crate) fn pairs(more: &str) -> String {
    let flags = format!("relay --connections {USERS} --slip-max 1m {more}");
    match more.contains("--rate") {
        true => flags,
        false => format!("{flags} --rate 200 --duration 2s"),
    }
}

const COUNTS: [&str; 14] = [
    "sent",
    "accepted",
    "delivered",
    "lost",
    "duplicated",
    "reordered",
    "misrouted",
    "corrupt",
    "misnumbered",
    "unanswered",
    "receipts_missing",
    "not_queued",
    "repeated",
    "foreign",
];

/// All counts are those of a perfect standard run, except the ones named.
#[track_caller]
pub(crate) fn check(result: &Value, verdict: &str, different: &[(&str, u64)]) {
    for name in COUNTS {
        let perfect = match name {
            "sent" | "accepted" | "delivered" => MESSAGES,
            _ => 0,
        };
        let named = different.iter().find(|(other, _)| *other == name);
        let expected = named.map_or(perfect, |(_, count)| *count);
        assert_eq!(result[name], expected, "{name}: {result:#}");
    }
    assert_eq!(result["verdict"], verdict, "{result:#}");
    let no_reasons = result["reasons"] == Value::Array(Vec::new());
    assert_eq!(verdict == "pass", no_reasons, "{result:#}");
}

/// No result, and a sentence with these parts.
#[track_caller]
pub(crate) fn fails_with(output: &Output, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` in: {text}");
    }
}

#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < SOON, "not within {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// `INT` or `TERM`, to a child of ours.
pub(crate) fn signal(child: &Child, name: &str) {
    let told = Command::new("kill")
        .args([&format!("-{name}"), &child.id().to_string()])
        .status();
    assert!(told.expect("kill").success());
}

/// A command of the program that listens. Ended when dropped, whatever the test has done with it.
pub(crate) struct Listening {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
}

impl Listening {
    pub(crate) fn start<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Self {
        Self::of(program().args(words))
    }

    /// The last word of its first line says where it listens.
    pub(crate) fn of(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let address = line.trim().rsplit(' ').next().expect("words");
        let address = address.parse().unwrap_or_else(|_| panic!("`{line}`"));
        Self { child, address }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }

    /// Sockets that it has open.
    pub(crate) fn sockets(&self) -> usize {
        let files = fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("our child");
        let links = files.flatten().flat_map(|file| fs::read_link(file.path()));
        links
            .filter(|link| link.to_string_lossy().starts_with("socket:"))
            .count()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Without effect on one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
