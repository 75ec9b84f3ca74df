//! The load generator against the built gateway. It is another package's program: `PORTICO_LOADGEN`
//! names it, or it lies beside the gateway, where a build of the workspace puts it.
//!
//! Apart from the other end-to-end tests, which run before: twenty thousand clients and two processors
//! leave nothing for anybody else.

#[path = "../e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "other tests use more of it")]
mod harness;

use harness::{Child, Exit, Gateway, PATIENCE, Setup};
use rustix::process::{Resource, getrlimit};
use serde_json::Value;
use std::{env, fs, path::PathBuf, process::Command};

/// Connections of the large run, unless `PORTICO_E2E_HOLD` says otherwise. So many that a machine of
/// which others take two thirds lets them all in again while the messages last.
const HELD: u64 = 20_000;
const SHARDS: u64 = 4;
/// Users are spread over the shards by a hash: a shard may get so much more than its share.
const SHARD_SLACK: f64 = 1.1;
/// Resident memory of the gateway: what it takes once, mostly receive buffers, and per connection.
/// Generous for a build that is not optimised; with a buffer or a task for each it would be tenfold.
const RSS_BYTES_ONCE: f64 = 10e6;
const RSS_BYTES_PER_CONNECTION: f64 = 500.0;
/// Files of the gateway, however many connections it has.
const FILES_MAX: usize = 100;

fn program() -> Option<PathBuf> {
    if let Some(named) = env::var_os("PORTICO_LOADGEN") {
        return Some(named.into());
    }
    let beside = PathBuf::from(env!("CARGO_BIN_EXE_portico")).with_file_name("portico-loadgen");
    beside.exists().then_some(beside)
}

/// Says that a test has not run. Where nobody reads that, it is a failure.
fn skip(reason: &str) {
    println!("skipped: {reason}");
    assert!(env::var_os("CI").is_none(), "skipped in CI: {reason}");
}

fn start(program: PathBuf, gateway: &Gateway, arguments: &str) -> Child {
    let mut command = Command::new(program);
    command.args(arguments.split_whitespace());
    // How busy this machine is meanwhile is not what is asked.
    command.arg("--functional");
    let target = match arguments.contains("--tls") {
        true => gateway.tls(),
        false => gateway.listen,
    };
    command.args(["--target", &target.to_string()]);
    command.arg("--data").arg(gateway.setup().data());
    command.arg("--json").arg(json_file(gateway));
    Child::start(command)
}

fn json_file(gateway: &Gateway) -> PathBuf {
    gateway.setup().directory().join("loadgen.json")
}

/// The report of a run that passed.
fn passed(gateway: &Gateway, exit: &Exit) -> Value {
    assert_eq!(exit.code, Some(0), "{}\n{}", exit.out, exit.err);
    let report = fs::read(json_file(gateway)).expect("a report");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    assert_eq!(report["verdict"], "pass");
    for nothing in ["lost", "duplicated", "reordered", "misrouted"] {
        assert_eq!(report[nothing], 0, "{nothing}");
    }
    report
}

#[test]
fn a_short_smoke_run_passes() {
    let Some(program) = program() else {
        return skip("PORTICO_LOADGEN does not name a built portico-loadgen");
    };
    let gateway = Gateway::start();
    // Other tests run beside it: whether it was on time is not what is asked here.
    let smoke = "smoke --connections 200 --rate 500 --duration 5s --slip-max 1m";
    let exit = start(program, &gateway, smoke).wait_for(PATIENCE * 2);
    let report = passed(&gateway, &exit);
    assert!(report["delivered"].as_u64() > Some(0));
    gateway.still_serves();
}

/// The certificate is the one that the gateway leaves in its data directory.
#[test]
fn a_storm_over_tls_passes_and_those_who_come_back_resume() {
    let Some(program) = program() else {
        return skip("PORTICO_LOADGEN does not name a built portico-loadgen");
    };
    let gateway = Setup::new()
        .set("tls.listen", "127.0.0.1:0")
        .set("tls.self_signed", true)
        .start();
    let storm = "storm --tls --connections 100 --rate 200 --duration 5s --at 2s --share 0.5 \
                 --slip-max 1m";
    let exit = start(program, &gateway, storm).wait_for(PATIENCE * 2);
    let report = passed(&gateway, &exit);
    assert_eq!(report["tls"]["handshakes_full"], 100);
    assert_eq!(report["tls"]["handshakes_resumed"], 50);
    gateway.still_serves();
}

/// The run that is made with a million connections, with fewer: they come up, stay, are all cut at
/// once and come back, while others exchange messages.
#[test]
fn twenty_thousand_connections_are_held_cut_and_taken_back() {
    let Some(program) = program() else {
        return skip("PORTICO_LOADGEN does not name a built portico-loadgen");
    };
    let wanted = env::var("PORTICO_E2E_HOLD").map(|text| text.parse());
    let connections: u64 = wanted.unwrap_or(Ok(HELD)).expect("a number");
    let per_shard = (connections as f64 / SHARDS as f64 * SHARD_SLACK) as u64;
    let files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    if files < per_shard {
        return skip(&format!(
            "a shard needs {per_shard} open files, and may have {files}"
        ));
    }

    let gateway = Setup::new()
        .set("server.shards", SHARDS)
        .set("limits.logins_per_s", 4_000)
        .set("session.heartbeat_min_s", 12)
        .set("server.core_dumps", "allowed")
        .start();
    // On a machine that is busy with other tests the schedule may slip: that is not what is judged.
    let hold = format!(
        "hold --connections {connections} --active 1000 --rate 2000 --ramp 3800 --settle 4s \
         --heartbeat 12s --duration 39s --cut --slip-max 1m"
    );
    let mut loadgen = start(program, &gateway, &hold);
    let (mut most, mut most_connections) = (0, 0);
    let exit = loop {
        if loadgen.has_ended() {
            break loadgen.wait();
        }
        // A connection is a direct descriptor of a ring, not a file of the process.
        let present = gateway.metrics().get("portico_connections");
        most_connections = most_connections.max(present);
        if present > connections / 2 {
            most = most.max(gateway.process().descriptors());
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
    };
    if exit.code == Some(2) && exit.err.contains("this machine cannot do that yet") {
        return skip(&exit.err);
    }
    let report = passed(&gateway, &exit);
    println!("{}", exit.out);

    let hold = &report["hold"];
    for phase in ["ramp", "settle", "back", "send", "end"] {
        assert_eq!(hold["live"][phase], connections, "{phase}");
    }
    assert_eq!(hold["return"]["cut"], connections - 1_000);
    assert_eq!(hold["drops"], serde_json::json!({}));
    assert_eq!(hold["heartbeat_s"], 12, "the gateway allows it");
    assert_eq!(most_connections, connections, "by the gateway's count");
    // Who had everything comes back without a read of the store.
    let metrics = gateway.metrics();
    let resumed = metrics.get("portico_logins_resumed_total");
    let without_read = metrics.get("portico_logins_without_read_total");
    assert!(resumed >= connections - 1_000, "{resumed} resumed");
    assert!(
        without_read * 100 >= resumed * 99,
        "{without_read} of {resumed} read nothing"
    );
    assert!((1..FILES_MAX).contains(&most), "{most} files");
    let bytes = hold["server"]["rss_bytes_per_connection"].as_f64();
    let bytes = bytes.expect("the gateway is a process of ours");
    let bytes_max = RSS_BYTES_PER_CONNECTION + RSS_BYTES_ONCE / connections as f64;
    assert!(
        bytes <= bytes_max,
        "{bytes} bytes per connection, not {bytes_max}"
    );
    gateway.still_serves();
}
