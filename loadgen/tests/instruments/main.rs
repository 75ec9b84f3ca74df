//! What this program is tested with, and itself by it: its schedule and its latency by a sink with a
//! known delay, its verifier by a proxy that breaks chosen frames, its commands beside the plans.

mod others;
mod proxy;

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod support;

use proxy::{Fault, Proxy};
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Output,
    time::Duration,
};
use support::{CHOSEN, Listening, MESSAGES, Setup, alone, check, pairs, signal, wait_until};

/// A floor or a sink; it also ends with its standard input.
fn serving(line: &str) -> Listening {
    Listening::start(line.split_whitespace().chain(["--until-eof"]))
}

fn run(target: SocketAddr, flags: &str) -> (Output, Value) {
    Setup::new().measure(&target.to_string(), flags)
}

fn through_proxy(fault: Fault, more: &str) -> Value {
    let sink = serving("sink --answer sent");
    let proxy = Proxy::start(sink.address, fault);
    let (_, result) = run(proxy.address, &pairs(more));
    result
}

#[test]
fn a_proxy_without_fault_changes_nothing() {
    check(&through_proxy(Fault::None, ""), "pass", &[]);
}

#[test]
fn dropped_deliveries_are_lost() {
    let lost = [("delivered", MESSAGES - CHOSEN), ("lost", CHOSEN)];
    check(
        &through_proxy(Fault::DropDelivery, "--drain 1s"),
        "fail",
        &lost,
    );
}

#[test]
fn dropped_answers_are_missed_and_their_messages_are_not() {
    let silent = [("accepted", MESSAGES - CHOSEN), ("unanswered", CHOSEN)];
    check(
        &through_proxy(Fault::DropAnswer, "--drain 1s"),
        "fail",
        &silent,
    );
}

#[test]
fn dropped_messages_are_unanswered_and_not_lost() {
    let dropped = [
        ("accepted", MESSAGES - CHOSEN),
        ("delivered", MESSAGES - CHOSEN),
        ("unanswered", CHOSEN),
    ];
    check(
        &through_proxy(Fault::DropMessage, "--drain 1s"),
        "fail",
        &dropped,
    );
}

#[test]
fn repeated_deliveries_are_counted_and_no_fault() {
    check(
        &through_proxy(Fault::Repeat, ""),
        "pass",
        &[("repeated", CHOSEN)],
    );
}

#[test]
fn repeated_deliveries_under_another_id_are_duplicates() {
    check(
        &through_proxy(Fault::Double, ""),
        "fail",
        &[("duplicated", CHOSEN)],
    );
}

#[test]
fn swapped_deliveries_are_reordered() {
    check(
        &through_proxy(Fault::Swap, ""),
        "fail",
        &[("reordered", CHOSEN)],
    );
}

#[test]
fn changed_bits_are_corrupt() {
    let corrupt = [
        ("delivered", MESSAGES - CHOSEN),
        ("lost", CHOSEN),
        ("corrupt", CHOSEN),
    ];
    check(
        &through_proxy(Fault::Corrupt, "--drain 1s"),
        "fail",
        &corrupt,
    );
}

/// A frame that comes a second time byte for byte breaks the order of the inbox: the client does
/// not take it for anything else.
#[test]
fn a_place_that_comes_twice_is_a_fault_of_the_protocol() {
    let result = through_proxy(Fault::RepeatAsIs, "--drain 1s");
    assert_eq!(result["verdict"], "fail", "{result:#}");
    assert!(result["protocol_faults"].as_u64() > Some(0), "{result:#}");
    assert_eq!(result["duplicated"], 0);
    assert_eq!(result["corrupt"], 0);
}

#[test]
fn a_known_delay_is_what_is_measured() {
    let sink = serving("sink --answer sent --delay 20ms");
    let (output, result) = run(sink.address, &pairs(""));
    check(&result, "pass", &[]);
    assert_eq!(output.status.code(), Some(0));
    for latency in ["latency_us", "sent_latency_us", "service_us"] {
        // The service time is not in every version's result.
        let Some(p50) = result[latency]["p50"].as_u64() else {
            assert_eq!(latency, "service_us", "{result:#}");
            continue;
        };
        assert!((20_000..=22_000).contains(&p50), "{latency}: {result:#}");
    }
}

/// 300 of 3,000 messages are due while the sink stands still, and wait for what is left of it. A
/// closed loop would have seen 20 slow ones: one per sender.
#[test]
fn a_stall_is_charged_to_every_message_that_was_due_in_it() {
    let sink = serving("sink --answer sent --stall 300ms --stall-after 1s");
    let (_, result) = run(sink.address, &pairs("--rate 1000 --duration 3s"));
    let latency = &result["latency_us"];
    assert_eq!(result["delivered"], 3_000, "{result:#}");
    let value = |name: &str| latency[name].as_f64().expect("a number");
    // The slowest hundredth: the thirty that were due first.
    assert!((240_000.0..340_000.0).contains(&value("p99")), "{result:#}");
    assert!((290_000.0..400_000.0).contains(&value("max")), "{result:#}");
    // A tenth of them 150 ms on average, the others next to nothing.
    assert!((12_000.0..30_000.0).contains(&value("mean")), "{result:#}");
    assert!(value("p50") < 20_000.0, "{result:#}");
}

#[test]
fn a_sink_that_answers_nothing_leaves_everything_unanswered() {
    let sink = serving("sink");
    let (_, result) = run(sink.address, &pairs("--drain 1s"));
    let silent = [("accepted", 0), ("delivered", 0), ("unanswered", MESSAGES)];
    check(&result, "fail", &silent);
}

/// What the tester can send: nothing arrives, and nothing is missed.
#[test]
fn a_sink_measures_the_tester_itself() {
    let sink = serving("sink --answer none");
    let flags = "--acks minimal --burst 10 --unverified";
    let (output, result) = run(sink.address, &pairs(flags));
    check(&result, "pass", &[("delivered", 0)]);
    assert_eq!(output.status.code(), Some(0));
    let unchecked = ["lost", "accepted", "receipts_missing", "misnumbered"];
    assert_eq!(result["not_promised"], serde_json::json!(unchecked));
    assert_eq!(result["cpu_per"], "sent");
    assert!(result["server"]["cpu_us_per_message"].as_f64() > Some(0.0));
    assert_eq!(result["slip_us"]["samples"], MESSAGES);
    let table = String::from_utf8_lossy(&output.stdout);
    for part in ["deliveries were not checked", "CPU per message sent"] {
        assert!(table.contains(part), "{part} in {table}");
    }
    // Without the flag that is a failure, which says what to do.
    let (output, result) = run(sink.address, &pairs("--acks minimal --drain 1s"));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(result["lost"], MESSAGES);
    let reasons = result["reasons"].to_string();
    assert!(
        reasons.contains("400 sent but never delivered"),
        "{reasons}"
    );
    assert!(reasons.contains("--unverified"), "{reasons}");
}

#[test]
fn servers_end_with_their_standard_input() {
    for line in ["floor", "sink"] {
        let mut server = serving(line);
        TcpStream::connect(server.address).expect("it listens");
        drop(server.child.stdin.take());
        let status = server.child.wait().expect("a child");
        assert_eq!(status.code(), Some(0), "{line}");
    }
}

#[test]
fn servers_end_when_told_to() {
    let mut server = serving("floor");
    signal(&server.child, "TERM");
    wait_until("it ends", || {
        server.child.try_wait().expect("a child").is_some()
    });
}

#[test]
fn the_floor_copies_bytes() {
    let floor = serving("floor --cpu 0");
    let join = |role: u8| {
        let mut stream = TcpStream::connect(floor.address).expect("it listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a socket");
        let mut greeting = *b"PTFL\0\0\0\0\x07\0\0\0\0\0\0\0";
        greeting[4] = role;
        stream.write_all(&greeting).expect("sent");
        let mut answer = [0];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"+");
        stream
    };
    let (mut ear, mut voice) = (join(b'r'), join(b's'));
    voice.write_all(b"anything at all").expect("sent");
    let mut got = [0; 15];
    ear.read_exact(&mut got).expect("copied");
    assert_eq!(&got, b"anything at all");
}

#[test]
fn an_address_that_is_taken_is_named() {
    let sink = serving("sink");
    let address = sink.address.to_string();
    let output = alone(&format!("floor --listen {address}"));
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains(&format!("cannot listen on {address} (see --listen)")),
        "{text}"
    );
}
