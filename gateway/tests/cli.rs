//! The program as scripts and people use it: exit codes, what goes to which stream, refusals at the
//! start. Each test runs the built binary in a folder of its own.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// No step of a test takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// `portico` with an environment of its own, in `folder`.
fn portico(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portico"));
    command.args(arguments).current_dir(folder).env_clear();
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    portico(folder, arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn refused(output: &Output, code: i32, parts: &[&str]) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    for part in parts {
        assert!(message.contains(part), "{message}\n  lacks: {part}");
    }
    assert!(!message.contains("panicked"), "{message}");
    assert_eq!(text(&output.stdout), "");
}

/// A gateway that is ended with the test.
struct Serving {
    child: Child,
    listen: SocketAddr,
    admin: SocketAddr,
    stdout: BufReader<ChildStdout>,
    stderr: mpsc::Receiver<String>,
}

impl Serving {
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        Self::start_at(folder, "127.0.0.1:0", arguments)
    }

    fn start_at(folder: &Path, listen: &str, arguments: &[&str]) -> Self {
        let mut all = vec!["serve", "--listen", listen, "--admin", "127.0.0.1:0"];
        all.extend(arguments);
        Self::spawn(portico(folder, &all))
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut errors = child.stderr.take().unwrap();
        let (send, stderr) = mpsc::channel();
        thread::spawn(move || {
            let mut all = String::new();
            let _ = errors.read_to_string(&mut all);
            let _ = send.send(all);
        });
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut ready = String::new();
        stdout.read_line(&mut ready).unwrap();
        let addresses: Vec<SocketAddr> = ready
            .strip_prefix("ready listen=")
            .and_then(|rest| rest.trim_end().split_once(" admin="))
            .map(|(listen, admin)| vec![listen.parse().unwrap(), admin.parse().unwrap()])
            .unwrap_or_else(|| panic!("no ready line: {ready:?} {:?}", stderr.recv()));
        Self {
            child,
            listen: addresses[0],
            admin: addresses[1],
            stdout,
            stderr,
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    /// Status, what followed the ready line on standard output, and standard error.
    fn end(mut self) -> (ExitStatus, String, String) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "the gateway does not end");
            thread::sleep(Duration::from_millis(10));
        };
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        (status, rest, self.stderr.recv_timeout(PATIENCE).unwrap())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status code and body.
fn http(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, body.to_owned())
}

#[test]
fn help_and_version_are_answers_and_bad_use_has_a_code() {
    let folder = tempfile::tempdir().unwrap();
    let help = run(folder.path(), &["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for word in [
        "serve", "token", "chat", "config", "probe", "limits", "metrics", "--listen",
    ] {
        assert!(text(&help.stdout).contains(word), "{word}");
    }
    let version = run(folder.path(), &["version"]);
    assert_eq!(version.status.code(), Some(0));
    let expected = concat!("portico ", env!("CARGO_PKG_VERSION"));
    assert!(text(&version.stdout).starts_with(expected));
    for bad in [
        &["fly"][..],
        &["--fly"],
        &["serve", "extra"],
        &["token"],
        &["token", "--user", "0"],
        &["token", "--user", "1", "--ttl", "forever"],
        &["config"],
        &["limits", "--connections", "0"],
        &["limits", "--connections", "many"],
    ] {
        refused(&run(folder.path(), bad), 64, &[]);
    }
}

#[test]
fn bad_settings_are_refused_with_key_value_and_range() {
    let folder = tempfile::tempdir().unwrap();
    refused(
        &run(folder.path(), &["--shards", "0"]),
        64,
        &["server.shards = \"0\" (from --shards): allowed is 1 to 256 shards"],
    );
    refused(
        &run(folder.path(), &["serve", "--config", "absent.toml"]),
        64,
        &["cannot read the configuration file absent.toml"],
    );
    let environment = portico(folder.path(), &[])
        .env("PORTICO_LISTEN", "everywhere")
        .output()
        .unwrap();
    refused(
        &environment,
        64,
        &["server.listen = \"everywhere\" (from the environment variable PORTICO_LISTEN)"],
    );
    refused(
        &run(folder.path(), &["--cpus", "4095"]),
        64,
        &["server.cpus names CPU 4095: this process may use "],
    );
    assert!(!folder.path().join("portico-data").exists());
}

#[test]
fn the_printed_configuration_passes_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let printed = run(folder.path(), &["config", "--print-default"]);
    assert_eq!(printed.status.code(), Some(0));
    fs::write(folder.path().join("a.toml"), &printed.stdout).unwrap();
    let checked = run(folder.path(), &["config", "--check", "a.toml"]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    let wrong = text(&printed.stdout).replace("heartbeat_s = 60", "heartbeat_s = 0");
    fs::write(folder.path().join("a.toml"), wrong).unwrap();
    refused(
        &run(folder.path(), &["config", "--check", "a.toml"]),
        64,
        &["session.heartbeat_s = 0 (in a.toml): allowed is 1 to 3600 s"],
    );
}

#[test]
fn metrics_and_probe_say_what_they_know() {
    let folder = tempfile::tempdir().unwrap();
    let metrics = run(folder.path(), &["metrics"]);
    assert_eq!(metrics.status.code(), Some(0));
    assert!(text(&metrics.stdout).contains("\nportico_logins_total (counter) "));
    let probe = run(folder.path(), &["probe", "--shards", "1"]);
    assert_eq!(probe.status.code(), Some(0), "{}", text(&probe.stderr));
    assert!(text(&probe.stdout).starts_with("kernel "));
    refused(
        &run(folder.path(), &["probe", "--cpus", "4095"]),
        64,
        &["server.cpus names CPU 4095"],
    );
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn limits_are_reported_for_people_and_for_scripts() {
    let folder = tempfile::tempdir().unwrap();
    let plain = run(folder.path(), &["limits", "--shards", "3"]);
    assert_eq!(plain.status.code(), Some(0), "{}", text(&plain.stderr));
    let plain = text(&plain.stdout);
    for part in [
        "shards         3, rings of ",
        "\nAn idle connection, in bytes\n",
        "\nThis machine can hold ",
        " connections with 3 shards, bounded by ",
    ] {
        assert!(plain.contains(part), "{plain}\n  lacks: {part}");
    }
    let output = run(folder.path(), &["limits", "--shards", "3", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let report = json(&output);
    assert_eq!(report["shards"], 3);
    assert_eq!(report["needs"], serde_json::Value::Null);
    let connection = &report["connection"];
    let sum = |owner: &str| -> u64 {
        let parts = connection[owner].as_array().unwrap();
        parts
            .iter()
            .map(|part| part["bytes"].as_u64().unwrap())
            .sum()
    };
    assert_eq!(connection["bytes"], sum("kernel") + sum("gateway"));
    assert!(
        sum("kernel") > 2_000 && sum("gateway") > 100,
        "{connection}"
    );
    refused(
        &run(folder.path(), &["limits", "--cpus", "4095"]),
        64,
        &["server.cpus names CPU 4095"],
    );
    assert!(!folder.path().join("portico-data").exists());
}

#[test]
fn what_is_asked_for_and_not_there_is_an_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let few = run(folder.path(), &["limits", "--connections", "100", "--json"]);
    assert_eq!(few.status.code(), Some(0), "{}", text(&few.stderr));
    assert_eq!(json(&few)["needs"]["enough"], true);
    // Four terabytes.
    let many = &["limits", "--connections", "1000000000"];
    let plain = run(folder.path(), many);
    assert_eq!(plain.status.code(), Some(1));
    assert!(text(&plain.stdout).contains("\nThis machine cannot hold them.\n"));
    assert!(text(&plain.stderr).starts_with("portico: "));
}

/// What the command says of the process itself, against a process.
#[test]
fn a_gateway_opens_no_more_files_than_limits_says() {
    let folder = tempfile::tempdir().unwrap();
    let shards = ["--backend", "memory", "--shards", "5"];
    let mut arguments = vec!["limits", "--json", "--connections", "1"];
    arguments.extend(shards);
    let report = json(&run(folder.path(), &arguments));
    let resources = report["needs"]["resources"].as_array().unwrap();
    let files = resources
        .iter()
        .find(|resource| resource["name"] == "open files of the process")
        .and_then(|resource| resource["needed"].as_u64())
        .unwrap();
    // Its open files are shown to the user of the test.
    let config = "[server]\ncore_dumps = \"allowed\"\n";
    fs::write(folder.path().join("shown.toml"), config).unwrap();
    let shown = [&shards[..], &["--config", "shown.toml"]].concat();
    let serving = Serving::start(folder.path(), &shown);
    let open = fs::read_dir(format!("/proc/{}/fd", serving.child.id())).unwrap();
    let open = open.count() as u64 - inherited_files();
    // The admin port's 64 connections are among them, and nobody is connected.
    assert!(
        open + 64 <= files && files < 2 * open + 64,
        "{open} of {files}"
    );
}

/// Files that whoever runs the tests leaves to every process they start, besides the usual three.
fn inherited_files() -> u64 {
    let listed = Command::new("ls").arg("/proc/self/fd").output().unwrap();
    // The usual three, and the folder itself.
    String::from_utf8(listed.stdout).unwrap().lines().count() as u64 - 4
}

/// A first CPU that this process may use.
fn a_cpu() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let cpus = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let first = cpus.unwrap().trim().split([',', '-']).next();
    first.unwrap().to_owned()
}

/// Without CAP_IPC_LOCK the memory that rings lock is bounded. Above two shards per CPU rings are
/// small, and the number of shards that a refusal offers is one that starts.
#[test]
fn shards_of_an_ordinary_user_are_bounded_by_what_it_may_lock() {
    const ALLOWED: u64 = 8 << 20;
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("portico");
    fs::copy(env!("CARGO_BIN_EXE_portico"), &program).unwrap();
    let is_root = rustix::process::getuid().is_root();
    // Locked memory is counted per user: one whom nobody else is.
    let user = 1_000_000 + std::process::id();
    if is_root {
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(folder.path(), Some(user), None).unwrap();
    }
    let serve = |shards: &str| {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "ulimit -l \"$0\" && exec \"$@\""])
            .arg((ALLOWED >> 10).to_string())
            .arg(&program)
            .args(["serve", "--backend", "memory", "--cpus", &a_cpu()])
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(["--shards", shards])
            .current_dir(folder.path())
            .env_clear();
        if is_root {
            command.uid(user);
        }
        command
    };
    let ring = portico_gateway::RingSizes::auto().resolve(256, 1);
    let needed = portico_gateway::memlock_needed(256, 1, &ring);
    let refusal = serve("256").output().unwrap();
    let sentence = format!(
        "portico: 256 shards need {needed} bytes of locked memory, and RLIMIT_MEMLOCK allows \
         {ALLOWED}: raise it (ulimit -l, LimitMEMLOCK= in a systemd unit), start at most "
    );
    refused(&refusal, 1, &[&sentence]);
    let message = text(&refusal.stderr);
    let offered = message.split_once(&sentence).unwrap().1;
    let offered = offered.split_once(' ').unwrap().0;
    assert!(offered.parse::<u16>().unwrap() > 2, "{message}");
    let serving = Serving::spawn(serve(offered));
    let (_, page) = http(serving.admin, "/metrics");
    assert!(page.contains(&format!("\nportico_shards {offered}\n")));
    serving.signal(Signal::TERM);
    let (status, _, log) = serving.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

#[test]
fn tokens_need_a_key_that_nobody_else_reads() {
    let folder = tempfile::tempdir().unwrap();
    let ask = [
        "token", "--data", "data", "--user", "7", "--device", "1", "--ttl", "15m",
    ];
    refused(
        &run(folder.path(), &ask),
        1,
        &["data/auth-key.pem", "portico serve"],
    );
    Serving::start(
        folder.path(),
        &["--data", "data", "--backend", "memory", "--shards", "1"],
    );
    let printed = run(folder.path(), &ask);
    assert_eq!(printed.status.code(), Some(0), "{}", text(&printed.stderr));
    let token = text(&printed.stdout);
    assert_eq!(token.trim_end().split('.').count(), 3);
    assert_eq!(token.lines().count(), 1);
    assert_eq!(text(&printed.stderr), "");
    // The environment names the directory as it does for the gateway.
    let by_environment = portico(folder.path(), &["token", "--user", "7"])
        .env("PORTICO_DATA", "data")
        .output()
        .unwrap();
    assert_eq!(by_environment.status.code(), Some(0));
    let key = folder.path().join("data/auth-key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    refused(&run(folder.path(), &ask), 1, &["auth-key.pem", "644"]);
    refused(
        &run(folder.path(), &["--data", "data", "--backend", "memory"]),
        1,
        &["can be read by other users (mode 0644)"],
    );
}

#[test]
fn a_gateway_tells_where_it_is_and_ends_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    for backend in ["embedded", "memory"] {
        for signal in [Signal::TERM, Signal::INT] {
            let serving = Serving::start(folder.path(), &["--backend", backend, "--shards", "2"]);
            assert_eq!(http(serving.admin, "/healthz").0, 200);
            assert_eq!(http(serving.admin, "/readyz"), (200, "ready\n".to_owned()));
            let (code, version) = http(serving.admin, "/version");
            assert_eq!(code, 200);
            assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
            let (code, page) = http(serving.admin, "/metrics");
            assert_eq!(code, 200);
            assert!(page.contains("\nportico_shards 2\n"));
            let up = format!("\nportico_store_up{{backend=\"{backend}\"}} 1\n");
            assert!(page.contains(&up), "{page}");
            TcpStream::connect(serving.listen).unwrap();
            serving.signal(signal);
            let (status, rest, log) = serving.end();
            assert_eq!(status.code(), Some(0), "{backend} {signal:?}: {log}");
            assert_eq!(rest, "", "only the ready line belongs on standard output");
            assert!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
            assert!(log.contains("portico chat --as 1 --to 2"), "{log}");
        }
    }
    let data = folder.path().join("portico-data");
    let mode = fs::metadata(data).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700);
}

#[test]
fn what_another_process_holds_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let first = Serving::start(folder.path(), &["--data", "data", "--shards", "1"]);
    let listen = first.listen.to_string();
    let admin = first.admin.to_string();
    let second = |arguments: &[&str]| run(folder.path(), arguments);
    refused(
        &second(&[
            "--data",
            "data",
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
        ]),
        1,
        &["in use by another process", "data"],
    );
    refused(
        &second(&[
            "--data",
            "other",
            "--listen",
            &listen,
            "--admin",
            "127.0.0.1:0",
        ]),
        1,
        &["in use", &listen],
    );
    refused(
        &second(&[
            "--data",
            "other",
            "--listen",
            "127.0.0.1:0",
            "--admin",
            &admin,
        ]),
        1,
        &["in use", &admin],
    );
}

#[test]
fn a_data_directory_that_cannot_be_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let free = [
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--data",
    ];
    for data in ["file", "file/below"] {
        let mut arguments = free.to_vec();
        arguments.push(data);
        refused(
            &run(folder.path(), &arguments),
            1,
            &["data directory", data],
        );
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let config = "[drain]\nspread_ms = 50000\ndeadline_ms = 50000\n";
    fs::write(folder.path().join("slow.toml"), config).unwrap();
    let serving = Serving::start(
        folder.path(),
        &["--backend", "memory", "--config", "slow.toml"],
    );
    // A login that stays would hold up the drain; the handshake deadline is too short for that.
    let token = run(folder.path(), &["token", "--user", "1"]);
    let mut client = portico_client::RawConnection::connect(serving.listen).unwrap();
    client.hello(text(&token.stdout).trim_end()).unwrap();
    serving.signal(Signal::TERM);
    let start = Instant::now();
    while http(serving.admin, "/readyz").0 == 200 {
        assert!(start.elapsed() < PATIENCE);
    }
    let (code, reason) = http(serving.admin, "/readyz");
    assert_eq!((code, reason.as_str()), (503, "draining\n"));
    assert_eq!(http(serving.admin, "/healthz").0, 200);
    serving.signal(Signal::TERM);
    let (status, _, _) = serving.end();
    assert_eq!(status.code(), Some(1));
    assert!(start.elapsed() < Duration::from_secs(20));
}

/// Work wakes shards that sleep, again and again, and so does a signal.
#[test]
fn a_sleeping_gateway_hears_clients_and_signals() {
    let folder = tempfile::tempdir().unwrap();
    let serving = Serving::start(folder.path(), &["--shards", "2"]);
    for user in ["1", "2", "3", "4", "5", "6"] {
        let token = run(folder.path(), &["token", "--user", user]);
        let mut client = portico_client::RawConnection::connect(serving.listen).unwrap();
        client.hello(text(&token.stdout).trim_end()).unwrap();
        drop(client);
        // Long enough for shards without work to go to sleep.
        thread::sleep(Duration::from_millis(100));
    }
    let start = Instant::now();
    serving.signal(Signal::TERM);
    let (status, _, log) = serving.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "nobody was left to wait for"
    );
}

#[test]
fn a_port_is_free_again_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let first = Serving::start(folder.path(), &["--backend", "memory", "--shards", "1"]);
    let listen = first.listen.to_string();
    TcpStream::connect(first.listen).unwrap();
    first.signal(Signal::TERM);
    assert_eq!(first.end().0.code(), Some(0));
    let again = Serving::start_at(
        folder.path(),
        &listen,
        &["--backend", "memory", "--shards", "1"],
    );
    assert_eq!(again.listen.to_string(), listen);
}
