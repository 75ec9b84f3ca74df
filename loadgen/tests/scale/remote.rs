//! Two worker processes and a coordinator, all of the built program, against the fake gateway.

use crate::support::{
    CHOSEN, Listening, MESSAGES, SOON, Setup, USERS, alone, fails_with,
    fake_gateway::{FakeGateway, Fault},
    limited, signal, wait_until,
};
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
};

const PAIRS: &str = "relay --connections 20 --slip-max 1m --rate 400 --duration 1s";
const WORKER: [&str; 3] = ["worker", "--listen", "127.0.0.1:0"];

fn worker(more_flags: &[&str]) -> Listening {
    Listening::start(WORKER.iter().chain(more_flags))
}

fn list(workers: &[&Listening]) -> String {
    let addresses = workers.iter().map(|worker| worker.address.to_string());
    addresses.collect::<Vec<_>>().join(",")
}

fn with(workers: &[&Listening]) -> String {
    format!("{PAIRS} --workers {}", list(workers))
}

/// A run that somebody has to end.
fn endless(workers: &[&Listening]) -> String {
    with(workers).replace("--duration 1s", "--duration 1h")
}

#[track_caller]
fn passes(gateway: &FakeGateway, flags: &str) -> Value {
    let (output, result) = Setup::new().measure(&gateway.address.to_string(), flags);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{text} {}",
        result["reasons"]
    );
    result
}

fn words(path: &Path) -> &str {
    path.to_str().expect("ASCII")
}

#[test]
fn two_workers_add_up_exactly() {
    let gateway = FakeGateway::start(Fault::None);
    let (one, other) = (worker(&[]), worker(&[]));
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
        assert_eq!(host["name"], worker.address.to_string());
        assert_eq!(host["users"], USERS / 2);
        let clock = &host["clock"];
        let round_trip_us = clock["round_trip_us"].as_u64().expect("a time");
        assert!(clock["uncertainty_us"].as_u64() <= Some(round_trip_us.div_ceil(2)));
        // One machine has one wall clock, as far as it was to be seen.
        let wall_us = host["wall_offset_us"].as_i64().expect("a time");
        assert!(wall_us.unsigned_abs() <= round_trip_us + 1_000, "{host:#}");
    }
    // From the first message's time to the last arrival, which is at least the plan's duration.
    let rate = result["rate_per_s"].as_f64().expect("a number");
    assert!(rate > 0.0 && rate <= 401.0, "{rate}");
}

#[test]
fn groups_go_to_workers_whole() {
    let gateway = FakeGateway::start(Fault::None);
    let (one, other) = (worker(&[]), worker(&[]));
    let workers = list(&[&one, &other]);
    let flags = format!(
        "fanout --connections 33 --members 10 --rate 60 --duration 1s --slip-max 1m \
         --workers {workers}"
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
    let (one, other) = (worker(&[]), worker(&["--cpus", "0"]));
    let setup = Setup::new();
    let flags = format!("{} --drain 1s", with(&[&one, &other]));
    let (output, result) = setup.measure(&gateway.address.to_string(), &flags);
    assert_eq!(output.status.code(), Some(1), "{result:#}");
    assert_eq!(result["lost"], CHOSEN);
    assert_eq!(result["delivered"], MESSAGES - CHOSEN);
}

#[test]
fn a_killed_worker_makes_the_result_invalid_by_name() {
    let gateway = FakeGateway::start(Fault::None);
    let (one, mut other) = (worker(&[]), worker(&[]));
    let setup = Setup::new();
    let target = gateway.address.to_string();
    let mut run = setup.start(&target, &endless(&[&one, &other]));
    wait_until("messages are on their way", || gateway.messages() > 40);
    other.kill();
    wait_until("the run ends", || {
        run.try_wait().expect("our child").is_some()
    });
    assert_eq!(run.wait().expect("our child").code(), Some(2));
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
    let worker = worker(&[]);
    let at_rest = worker.sockets();
    let setup = Setup::new();
    let target = gateway.address.to_string();
    let mut run = setup.start(&target, &endless(&[&worker]));
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
    let worker = worker(&[]);
    let setup = Setup::new();
    let target = gateway.address.to_string();
    let mut run = setup.start(&target, &endless(&[&worker]));
    wait_until("all are connected", || worker.sockets() > USERS as usize);
    let output = Setup::new().run(&target, &with(&[&worker]));
    let named = worker.address.to_string();
    fails_with(&output, &[&named, "another coordinator"]);
    // The first one has not noticed.
    let sent = gateway.messages();
    wait_until("it goes on", || gateway.messages() > sent + 40);
    signal(&run, "INT");
    assert_eq!(run.wait().expect("our child").code(), Some(2));
    let result = setup.result();
    assert_eq!(result["delivered"], result["sent"], "{result:#}");
    let reasons = result["reasons"].as_array().expect("sentences");
    let told = reasons.iter().filter_map(Value::as_str);
    assert!(told.clone().any(|reason| reason.starts_with("interrupted")));
    assert!(
        !told.clone().any(|reason| reason.contains("worker")),
        "{result:#}"
    );
}

#[test]
fn only_who_knows_the_secret_is_served() {
    let gateway = FakeGateway::start(Fault::None);
    let setup = Setup::new();
    let right = setup.private_file("right", "a secret of some length\n");
    let wrong = setup.private_file("wrong", "another secret, as long");
    let (right, wrong) = (words(&right), words(&wrong));
    let worker = worker(&["--secret-file", right]);
    let target = gateway.address.to_string();
    let flags = with(&[&worker]);
    fails_with(&setup.run(&target, &flags), &["secret is wrong or missing"]);
    let output = setup.run(&target, &format!("{flags} --secret-file {wrong}"));
    let named = worker.address.to_string();
    fails_with(&output, &[&named, "secret is wrong or missing"]);
    passes(&gateway, &format!("{flags} --secret-file {right}"));
}

#[test]
fn garbage_does_not_harm_a_worker() {
    let gateway = FakeGateway::start(Fault::None);
    let worker = worker(&[]);
    let at_rest = worker.sockets();
    let long: Vec<u8> = vec![0xff; 100_000];
    let enter = br#"{"enter":{"version":2,"nonce":[],"proof":[]}}"#;
    let enter = [&(enter.len() as u32).to_le_bytes()[..], enter].concat();
    let order = [&6_u32.to_le_bytes()[..], br#""ping""#].concat();
    for garbage in [
        b"GET / HTTP/1.1\r\n\r\n".as_slice(),
        &long,
        b"",
        &enter,
        &order,
    ] {
        let mut stream = TcpStream::connect(worker.address).expect("it listens");
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
    let worker = worker(&[]);
    // 74 files: the reserve of 64, and 10 connections.
    let small = Listening::of(limited(74).args(WORKER));
    let flags = with(&[&small, &worker]).replace("--connections 20", "--connections 60");
    let result = passes(&gateway, &flags);
    assert_eq!(result["hosts"][0]["users"], 10, "{result:#}");
    assert_eq!(result["hosts"][1]["users"], 50);
    let setup = Setup::new();
    let flags = with(&[&small]);
    fails_with(
        &setup.run(&gateway.address.to_string(), &flags),
        &[
            "20 connections cannot be divided",
            &small.address.to_string(),
        ],
    );
}

#[test]
fn capacity_is_searched_with_workers_too() {
    // 25 to each of 20 users in half a second.
    let gateway = FakeGateway::start(Fault::Quota(25));
    let (one, other) = (worker(&[]), worker(&[]));
    let flags = format!(
        "capacity relay --connections 20 --slip-max 1m --drain 60s --min 400 --p99 1m \
         --trial 500ms --confirm 500ms --precision 50% --workers {}",
        list(&[&one, &other])
    );
    let result = passes(&gateway, &flags);
    assert_eq!(result["found"]["rate_per_s"], 800.0, "{result:#}");
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
    let twice = format!("{PAIRS} --workers 127.0.0.1:1,127.0.0.1:1");
    fails_with(
        &setup.run(nowhere, &twice),
        &["--workers names 127.0.0.1:1 twice"],
    );
    let hold = "hold --connections 20 --workers 127.0.0.1:1";
    fails_with(&setup.run(nowhere, hold), &["hold", "--workers"]);
    let worker = worker(&[]);
    let named = worker.address.to_string();
    fails_with(
        &setup.run(nowhere, &with(&[&worker])),
        &[&named, "nothing listens on 127.0.0.1:1"],
    );
    let output = alone("worker --listen 0.0.0.0:0");
    fails_with(&output, &["--allow-remote", "--secret-file"]);
}
