//! Two worker processes and a coordinator, all of the built program, against the fake gateway.

use super::{CHOSEN, MESSAGES, Setup, USERS, fails_with};
use crate::fake_gateway::{FakeGateway, Fault};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(30);
const PAIRS: &str = "relay --connections 20 --slip-max 1m --rate 200 --duration 2s";

struct Worker {
    child: Child,
    address: String,
}

impl Worker {
    fn start(more_flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_portico-loadgen"))
            .args(["worker", "--listen", "127.0.0.1:0"])
            .args(more_flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let address = line.trim().rsplit(' ').next().expect("words").to_owned();
        assert!(address.starts_with("127.0.0.1:"), "{line}");
        Self { child, address }
    }

    fn kill(&mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }

    fn sockets(&self) -> usize {
        let files = fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("our child");
        let links = files.flatten().flat_map(|file| fs::read_link(file.path()));
        links
            .filter(|link| link.to_string_lossy().starts_with("socket:"))
            .count()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have been killed by the test.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn with(workers: &[&Worker]) -> String {
    let addresses: Vec<&str> = workers
        .iter()
        .map(|worker| worker.address.as_str())
        .collect();
    format!("{PAIRS} --workers {}", addresses.join(","))
}

/// A run in the background.
fn coordinator(gateway: &FakeGateway, setup: &Setup, flags: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_portico-loadgen"))
        .args(flags.split_whitespace())
        .args(["--target", &gateway.address.to_string(), "--data"])
        .arg(setup.directory.path())
        .arg("--json")
        .arg(setup.json_file())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts")
}

#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < SOON, "not within {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[track_caller]
fn passes(gateway: &FakeGateway, flags: &str) -> Value {
    let setup = Setup::new();
    let output = setup.run(&gateway.address.to_string(), flags);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
    setup.result()
}

fn secret(setup: &Setup, name: &str, text: &str) -> PathBuf {
    let path = setup.directory.path().join(name);
    fs::write(&path, text).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("own file");
    path
}

#[test]
fn two_workers_add_up_exactly() {
    let gateway = FakeGateway::start(Fault::None);
    let (one, other) = (Worker::start(&[]), Worker::start(&[]));
    let result = passes(&gateway, &with(&[&one, &other]));
    assert_eq!(result["connections"], USERS);
    for count in ["sent", "accepted", "delivered"] {
        assert_eq!(result[count], MESSAGES, "{count}: {result:#}");
    }
    for histogram in ["latency_us", "sent_latency_us", "slip_us"] {
        assert_eq!(result[histogram]["samples"], MESSAGES, "{histogram}");
        let seconds = result["series"][histogram]["samples"].as_array();
        let seconds = seconds.expect("a column").iter();
        let sum: u64 = seconds.filter_map(Value::as_u64).sum();
        assert_eq!(sum, MESSAGES, "{histogram} by the second");
    }
    assert_eq!(result["generator"]["workers"], 2);
    let hosts = result["hosts"].as_array().expect("two");
    for (host, worker) in hosts.iter().zip([&one, &other]) {
        assert_eq!(host["name"], worker.address);
        assert_eq!(host["users"], USERS / 2);
        let clock = &host["clock"];
        let round_trip_us = clock["round_trip_us"].as_u64().expect("a time");
        assert!(clock["uncertainty_us"].as_u64() <= Some(round_trip_us.div_ceil(2)));
        // One machine has one wall clock.
        let wall_us = host["wall_offset_us"].as_i64().expect("a time");
        assert!(wall_us.unsigned_abs() < 100_000, "{host:#}");
    }
    let rate = result["rate_per_s"].as_f64().expect("a number");
    assert!((100.0..=200.5).contains(&rate), "{rate}");
}

#[test]
fn groups_go_to_workers_whole() {
    let gateway = FakeGateway::start(Fault::None);
    let (one, other) = (Worker::start(&[]), Worker::start(&[]));
    let flags = format!(
        "fanout --connections 33 --members 10 --rate 30 --duration 2s --slip-max 1m --workers {},{}",
        one.address, other.address
    );
    let result = passes(&gateway, &flags);
    assert_eq!(result["hosts"][0]["users"], 22, "{result:#}");
    assert_eq!(result["hosts"][1]["users"], 11);
    // 60 messages to 10 members each.
    assert_eq!(result["delivered"], 600);
    assert_eq!(result["lost"], 0);
}

#[test]
fn what_each_has_missed_is_missing_in_the_sum() {
    let gateway = FakeGateway::start(Fault::Drop);
    let (one, other) = (Worker::start(&[]), Worker::start(&["--cpus", "0"]));
    let setup = Setup::new();
    let flags = format!("{} --drain 1s", with(&[&one, &other]));
    let output = setup.run(&gateway.address.to_string(), &flags);
    let result = setup.result();
    assert_eq!(output.status.code(), Some(1), "{result:#}");
    assert_eq!(result["lost"], CHOSEN);
    assert_eq!(result["delivered"], MESSAGES - CHOSEN);
}

#[test]
fn a_killed_worker_makes_the_result_invalid_by_name() {
    let gateway = FakeGateway::start(Fault::None);
    let (one, mut other) = (Worker::start(&[]), Worker::start(&[]));
    let setup = Setup::new();
    let flags = with(&[&one, &other]).replace("2s", "60s");
    let begun = Instant::now();
    let mut run = coordinator(&gateway, &setup, &flags);
    wait_until("all are connected", || other.sockets() > 10);
    // Some messages are to be on their way.
    thread::sleep(Duration::from_secs(2));
    other.kill();
    let status = run.wait().expect("our child");
    assert!(begun.elapsed() < Duration::from_secs(50), "it went on");
    assert_eq!(status.code(), Some(2));
    let result = setup.result();
    assert_eq!(result["verdict"], "invalid");
    let reasons = result["reasons"].to_string();
    let named = format!("the worker {} has failed", other.address);
    assert!(reasons.contains(&named), "{reasons}");
    assert!(result["delivered"].as_u64() > Some(0), "{result:#}");
    // The other one is ready for more.
    passes(&gateway, &with(&[&one]));
}

#[test]
fn a_worker_whose_coordinator_dies_lets_go_and_serves_the_next() {
    let gateway = FakeGateway::start(Fault::None);
    let worker = Worker::start(&[]);
    let at_rest = worker.sockets();
    let setup = Setup::new();
    let flags = with(&[&worker]).replace("2s", "60s");
    let mut run = coordinator(&gateway, &setup, &flags);
    wait_until("all are connected", || worker.sockets() > USERS as usize);
    run.kill().expect("our child");
    run.wait().expect("our child");
    wait_until("all are closed", || worker.sockets() == at_rest);
    let result = passes(&gateway, &with(&[&worker]));
    assert_eq!(result["delivered"], MESSAGES);
}

#[test]
fn a_busy_worker_takes_no_second_coordinator() {
    let gateway = FakeGateway::start(Fault::None);
    let worker = Worker::start(&[]);
    let setup = Setup::new();
    let flags = with(&[&worker]).replace("2s", "6s");
    let mut run = coordinator(&gateway, &setup, &flags);
    wait_until("all are connected", || worker.sockets() > USERS as usize);
    let second = Setup::new();
    let output = second.run(&gateway.address.to_string(), &flags);
    fails_with(&output, &[&worker.address, "another coordinator"]);
    // The first one has not noticed.
    assert_eq!(run.wait().expect("our child").code(), Some(0));
    assert_eq!(setup.result()["delivered"], 1_200);
}

#[test]
fn only_who_knows_the_secret_is_served() {
    let gateway = FakeGateway::start(Fault::None);
    let setup = Setup::new();
    let right = secret(&setup, "right", "a secret of some length\n");
    let wrong = secret(&setup, "wrong", "another secret, as long");
    let right = right.to_str().expect("ASCII");
    let wrong = wrong.to_str().expect("ASCII");
    let worker = Worker::start(&["--secret-file", right]);
    let target = gateway.address.to_string();
    let flags = with(&[&worker]);
    fails_with(&setup.run(&target, &flags), &["secret is wrong or missing"]);
    let output = setup.run(&target, &format!("{flags} --secret-file {wrong}"));
    fails_with(&output, &[&worker.address, "secret is wrong or missing"]);
    passes(&gateway, &format!("{flags} --secret-file {right}"));
}

#[test]
fn garbage_does_not_harm_a_worker() {
    let gateway = FakeGateway::start(Fault::None);
    let worker = Worker::start(&[]);
    let at_rest = worker.sockets();
    let long: Vec<u8> = vec![0xff; 100_000];
    let enter = br#"{"enter":{"version":1,"nonce":[],"proof":[]}}"#;
    let enter = [&(enter.len() as u32).to_le_bytes()[..], enter].concat();
    let order = [&6_u32.to_le_bytes()[..], br#""ping""#].concat();
    for garbage in [
        b"GET / HTTP/1.1\r\n\r\n".as_slice(),
        &long,
        b"",
        &enter,
        &order,
    ] {
        let mut stream = TcpStream::connect(&worker.address).expect("it listens");
        stream.set_read_timeout(Some(SOON)).expect("a socket");
        // It may hang up before it has everything.
        let _ = stream.write_all(garbage);
        if garbage.is_empty() {
            continue;
        }
        // It says who it is, perhaps why it refuses, and hangs up.
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 1_000, "{} bytes", answer.len());
    }
    wait_until("all are closed", || worker.sockets() == at_rest);
    passes(&gateway, &with(&[&worker]));
}

#[test]
fn users_are_divided_by_what_workers_can_open() {
    let gateway = FakeGateway::start(Fault::None);
    let worker = Worker::start(&[]);
    // 74 files: the reserve of 64, and 10 connections.
    let small = Command::new("sh")
        .args([
            "-c",
            "ulimit -n 74 && exec \"$0\" worker --listen 127.0.0.1:0",
        ])
        .arg(env!("CARGO_BIN_EXE_portico-loadgen"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = small.expect("a shell");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped"))
        .read_line(&mut line)
        .expect("a line");
    let address = line.trim().rsplit(' ').next().expect("words").to_owned();
    let small = Worker { child, address };
    let flags = with(&[&small, &worker]).replace("--connections 20", "--connections 60");
    let result = passes(&gateway, &flags);
    assert_eq!(result["hosts"][0]["users"], 10, "{result:#}");
    assert_eq!(result["hosts"][1]["users"], 50);
    let setup = Setup::new();
    let flags = with(&[&small]);
    fails_with(
        &setup.run(&gateway.address.to_string(), &flags),
        &["20 connections cannot be divided", &small.address],
    );
}

#[test]
fn capacity_is_searched_with_workers_too() {
    let gateway = FakeGateway::start(Fault::DelayMs(20));
    let (one, other) = (Worker::start(&[]), Worker::start(&[]));
    let flags = format!(
        "capacity relay --connections 20 --slip-max 1m --drain 20s --min 400 --max 3200 --p99 200ms \
         --trial 3s --confirm 3s --precision 50% --workers {},{}",
        one.address, other.address
    );
    let result = passes(&gateway, &flags);
    let found = result["found"]["rate_per_s"].as_f64().expect("a rate");
    assert!((400.0..=1_100.0).contains(&found), "{result:#}");
    assert_eq!(
        result["confirmation"]["hosts"].as_array().map(Vec::len),
        Some(2)
    );
}

#[test]
fn what_cannot_work_is_said() {
    let setup = Setup::new();
    let nowhere = "127.0.0.1:1";
    let flags = format!("{PAIRS} --workers 127.0.0.1:1");
    fails_with(
        &setup.run(nowhere, &flags),
        &["the worker 127.0.0.1:1", "portico-loadgen worker --listen"],
    );
    let hold = "hold --connections 20 --workers 127.0.0.1:1";
    fails_with(&setup.run(nowhere, hold), &["hold", "--workers"]);
    let worker = Worker::start(&[]);
    fails_with(
        &setup.run(nowhere, &with(&[&worker])),
        &[&worker.address, "nothing listens on 127.0.0.1:1"],
    );
    let output = Command::new(env!("CARGO_BIN_EXE_portico-loadgen"))
        .args(["worker", "--listen", "0.0.0.0:0"])
        .output()
        .expect("the program starts");
    fails_with(&output, &["--allow-remote", "--secret-file"]);
}
