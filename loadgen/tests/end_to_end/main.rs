//! The built program against a gateway that breaks one promise at a time: the verdict, the exact
//! counts and the exit code have to show it. Then wrong uses of the command line.
//!
//! All runs use pairs (`relay`) and send each user 20 messages, of which the gateway treats 5
//! wrongly: so every count is known beforehand.

mod hold;
mod hostile;
mod life;
mod plans;
mod reports;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod support;
mod tls;

use serde_json::Value;
use std::{fs, net::TcpListener, process::Stdio, thread, time::Duration};
use support::{
    CHOSEN, MESSAGES, Setup, USERS, fails_with,
    fake_gateway::{FakeGateway, Fault},
    pairs, program,
};

/// The exit code and the result of the standard run against a gateway with a fault.
fn measure(fault: Fault, more_flags: &str) -> (i32, Value) {
    let gateway = FakeGateway::start(fault);
    let setup = Setup::new();
    let target = gateway.address.to_string();
    let (output, result) = setup.measure(&target, &pairs(more_flags));
    (output.status.code().expect("it was not killed"), result)
}

/// All counts are those of a perfect run, except the ones named.
#[track_caller]
fn check(fault: Fault, more_flags: &str, verdict: &str, different: &[(&str, u64)]) -> Value {
    let (code, result) = measure(fault, more_flags);
    support::check(&result, verdict, different);
    let expected_code = match verdict {
        "pass" => 0,
        "fail" => 1,
        _ => 2,
    };
    assert_eq!(code, expected_code);
    result
}

#[test]
fn a_good_gateway_passes() {
    let result = check(Fault::None, "", "pass", &[]);
    assert_eq!(result["connections"], USERS);
    assert_eq!(result["latency_us"]["samples"], MESSAGES);
    assert_eq!(result["sent_latency_us"]["samples"], MESSAGES);
    let rate = result["rate_per_s"].as_f64().expect("a number");
    assert!((100.0..=200.5).contains(&rate), "{rate}");
}

#[test]
fn the_result_has_the_keys_that_scripts_rely_on() {
    let (_, result) = measure(Fault::None, "--seed 9");
    for key in [
        "verdict",
        "reasons",
        "connections",
        "sent",
        "accepted",
        "delivered",
        "lost",
        "duplicated",
        "reordered",
        "misrouted",
        "rate_per_s",
        "plan",
        "machine",
    ] {
        assert!(!result[key].is_null(), "{key} in {result:#}");
    }
    for key in ["p50", "p90", "p99", "p999", "max"] {
        assert!(result["latency_us"][key].is_u64(), "{key} in {result:#}");
        assert!(result["sent_latency_us"][key].is_u64(), "{key}");
    }
    assert_eq!(result["seed"], 9);
    // The gateway runs in the process of this test, and is found by its port.
    assert_eq!(result["server"]["pid"], std::process::id());
    let cpu = result["server"]["cpu_us_per_message"].as_f64();
    assert!(cpu.is_some_and(|us| us > 0.0), "{result:#}");
    assert!(
        result["server"]["rss_bytes"]
            .as_u64()
            .is_some_and(|rss| rss > 1_000_000)
    );
}

/// Up to two processors that this process may use.
fn two_processors() -> Vec<u32> {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let allowed = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .expect("a list of processors");
    let number = |text: &str| text.trim().parse::<u32>().expect("a processor");
    allowed
        .split(',')
        .flat_map(|part| match part.split_once('-') {
            Some((first, last)) => number(first)..=number(last),
            None => number(part)..=number(part),
        })
        .take(2)
        .collect()
}

#[test]
fn several_workers_and_four_partners_pass_as_well() {
    let gateway = FakeGateway::start(Fault::None);
    let setup = Setup::new();
    let processors = two_processors();
    let list: Vec<String> = processors.iter().map(u32::to_string).collect();
    let flags = format!(
        "smoke --connections 21 --rate 400 --duration 1s --size 1000 --slip-max 1m --cpus {}",
        list.join(",")
    );
    let output = setup.run(&gateway.address.to_string(), &flags);
    let result = setup.result();
    assert_eq!(result["verdict"], "pass", "{result:#}");
    assert_eq!(result["delivered"], 400);
    assert_eq!(result["connections"], 21);
    assert_eq!(result["generator"]["workers"], processors.len());
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn dropped_messages_are_lost() {
    let lost = [("delivered", MESSAGES - CHOSEN), ("lost", CHOSEN)];
    check(Fault::Drop, "--drain 1s", "fail", &lost);
}

#[test]
fn repeated_frames_are_no_fault() {
    check(Fault::Repeat, "", "pass", &[("repeated", CHOSEN)]);
}

#[test]
fn a_message_under_two_ids_is_duplicated() {
    check(Fault::Duplicate, "", "fail", &[("duplicated", CHOSEN)]);
}

#[test]
fn swapped_messages_are_reordered() {
    check(Fault::Swap, "", "fail", &[("reordered", CHOSEN)]);
}

#[test]
fn changed_bits_are_corrupt() {
    let corrupt = [
        ("delivered", MESSAGES - CHOSEN),
        ("lost", CHOSEN),
        ("corrupt", CHOSEN),
    ];
    check(Fault::Corrupt, "--drain 1s", "fail", &corrupt);
}

#[test]
fn a_neighbours_message_is_misrouted() {
    let misrouted = [
        ("delivered", MESSAGES - CHOSEN),
        ("lost", CHOSEN),
        ("misrouted", CHOSEN),
    ];
    check(Fault::Misroute, "--drain 1s", "fail", &misrouted);
}

#[test]
fn two_places_for_one_message_are_noticed() {
    check(Fault::Misnumber, "", "fail", &[("misnumbered", CHOSEN)]);
}

#[test]
fn a_missing_answer_is_not_a_lost_message() {
    let silent = [("accepted", MESSAGES - CHOSEN), ("unanswered", CHOSEN)];
    check(Fault::Silence, "--drain 1s", "fail", &silent);
}

/// The plan goes on as if nothing were wrong, within the memory that was planned for it.
#[test]
fn what_a_gateway_never_answers_is_not_queued_without_end() {
    let (code, result) = measure(Fault::Swallow, "--duration 3s --rate 4000 --drain 1s");
    assert_eq!(code, 1, "{result:#}");
    let outboxes = USERS * 512;
    assert_eq!(result["sent"], outboxes);
    assert_eq!(result["unanswered"], outboxes);
    assert_eq!(result["not_queued"], 12_000 - outboxes);
    assert_eq!(result["lost"], 0);
}

#[test]
fn a_refusal_for_good_fails() {
    let forbidden = [
        ("accepted", MESSAGES - CHOSEN),
        ("delivered", MESSAGES - CHOSEN),
    ];
    let result = check(Fault::Forbid, "", "fail", &forbidden);
    assert_eq!(result["refused"]["FORBIDDEN"], CHOSEN);
}

#[test]
fn a_refusal_for_the_time_being_is_repeated_and_passes() {
    let (code, result) = measure(Fault::Overload, "--drain 30s");
    assert_eq!(result["verdict"], "pass", "{result:#}");
    assert_eq!(result["delivered"], MESSAGES);
    assert!(
        result["deferred"]["OVERLOADED"].as_u64() > Some(0),
        "{result:#}"
    );
    assert_eq!(code, 0);
}

#[test]
fn broken_connections_are_made_good_by_retry() {
    let (code, result) = measure(Fault::Disconnect, "--drain 60s");
    assert_eq!(result["verdict"], "pass", "{result:#}");
    assert_eq!(result["delivered"], MESSAGES);
    assert!(result["reconnects"].as_u64() >= Some(USERS), "{result:#}");
    assert!(
        result["accepted_before"].as_u64() >= Some(USERS),
        "{result:#}"
    );
    assert_eq!(code, 0);
}

#[test]
fn missing_delivered_marks_are_counted_by_conversation() {
    let missing = [("receipts_missing", USERS)];
    check(Fault::NoReceipts, "--drain 3s", "fail", &missing);
}

#[test]
fn lost_pushes_of_delivered_marks_are_asked_for() {
    check(Fault::ReceiptsOnRequest, "", "pass", &[]);
}

#[test]
fn a_known_delay_is_what_is_measured() {
    let result = check(Fault::DelayMs(20), "", "pass", &[]);
    for latency in ["latency_us", "sent_latency_us"] {
        let p50 = result[latency]["p50"].as_u64().expect("a number");
        assert!((20_000..100_000).contains(&p50), "{latency}: {result:#}");
    }
}

/// A closed loop would have sent nothing while the gateway stood still, and seen 20 slow messages:
/// one per sender.
#[test]
fn a_stall_is_charged_to_every_message_that_was_due_in_it() {
    let (_, result) = measure(Fault::StallMs(500), "");
    let latency = &result["latency_us"];
    assert_eq!(result["delivered"], MESSAGES);
    // About 100 of 400 messages fall into the 500 ms, and wait for what is left of them.
    assert!(latency["p90"].as_u64() > Some(200_000), "{result:#}");
    assert!(latency["max"].as_u64() > Some(450_000), "{result:#}");
    assert!(latency["p50"].as_u64() < Some(400_000), "{result:#}");
}

#[test]
fn a_gateway_that_is_not_there_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let output = Setup::new().run(&address, "smoke");
    let sentence = format!("nothing listens on {address}; start it with `cargo run --release`");
    fails_with(&output, &[&sentence]);
}

#[test]
fn a_refused_token_ends_the_run() {
    let gateway = FakeGateway::start(Fault::TurnAway);
    let output = Setup::new().run(&gateway.address.to_string(), "smoke --connections 4");
    fails_with(
        &output,
        &["AUTH_FAILED", "not signed by our key", "--key-file"],
    );
}

#[test]
fn a_missing_key_is_named() {
    let gateway = FakeGateway::start(Fault::None);
    let setup = Setup::new();
    fs::remove_file(setup.key_file()).expect("it was there");
    let output = setup.run(&gateway.address.to_string(), "smoke");
    fails_with(&output, &["no usable signing key at", "auth-key.pem"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text.matches("os error").count(), 1, "said once: {text}");
    assert!(!setup.json_file().exists(), "no result, no file");
}

#[test]
fn bad_use_is_answered_before_anything_is_connected() {
    let setup = Setup::new();
    let nowhere = "127.0.0.1:1";
    fails_with(&setup.run(nowhere, "smoky"), &["`smoky`", "smoke", "relay"]);
    fails_with(&setup.run(nowhere, "smoke --size 10"), &["--size is 10"]);
    fails_with(&setup.run(nowhere, "smoke --rate x"), &["--rate"]);
    fails_with(&setup.run(nowhere, "--unknown"), &["--unknown"]);
    fails_with(&setup.run("nonsense", "smoke"), &["--target nonsense"]);
}

#[test]
fn a_result_that_could_not_be_written_is_no_run() {
    let setup = Setup::new();
    fs::create_dir(setup.json_file()).expect("a directory in the way");
    let output = setup.run("127.0.0.1:1", "smoke");
    fails_with(&output, &["cannot write", "result.json"]);
}

/// Not part of the usual tests, because it measures: 2,000 connections, 20,000 messages/s. Run it
/// with `cargo test --release -p portico-loadgen -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement of half a minute that wants an optimised build"]
fn twenty_thousand_messages_a_second_take_a_fraction_of_a_core() {
    let gateway = FakeGateway::start(Fault::None);
    let setup = Setup::new();
    let output = setup.run(
        &gateway.address.to_string(),
        "relay --duration 10s --progress",
    );
    println!("{}", String::from_utf8_lossy(&output.stderr));
    println!("{}", String::from_utf8_lossy(&output.stdout));
    let result = setup.result();
    assert_eq!(result["sent"], 200_000);
    assert!(
        result["generator"]["busy"].as_f64() < Some(0.8),
        "{result:#}"
    );
}

/// Memory of this tool with so many connections that are up and hardly used.
fn resident_bytes(connections: u64) -> u64 {
    let gateway = FakeGateway::start(Fault::None);
    let setup = Setup::new();
    let mut child = program()
        .args(["relay", "--rate", "1", "--duration", "4s", "--drain", "0s"])
        .args(["--connections", &connections.to_string()])
        .args(["--target", &gateway.address.to_string()])
        .arg("--data")
        .arg(setup.directory.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("the program starts");
    let mut samples = Vec::new();
    while child.try_wait().expect("a child").is_none() {
        let pages = fs::read_to_string(format!("/proc/{}/statm", child.id()));
        let pages = pages
            .ok()
            .and_then(|line| line.split(' ').nth(1)?.parse::<u64>().ok());
        samples.extend(pages.map(|pages| pages * 4_096));
        thread::sleep(Duration::from_millis(50));
    }
    // Neither the start nor the end, which take more than running.
    samples[samples.len() * 3 / 4]
}

#[test]
#[ignore = "a measurement that wants an optimised build"]
fn an_idle_connection_takes_little_memory() {
    let (few, many) = (1_000, 7_000);
    let bytes = (resident_bytes(many) - resident_bytes(few)) / (many - few);
    println!("{bytes} bytes per idle connection");
    assert!(bytes < 1_000, "{bytes}");
}
