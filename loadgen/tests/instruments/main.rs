//! What this program is tested with, and itself by it: its schedule and its latency by a sink with a
//! known delay, its verifier by a proxy that breaks chosen frames, its commands beside the plans.

mod others;
mod proxy;

use portico_client::mint::SigningKey;
use proxy::{Fault, Proxy};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const USERS: u64 = 20;
const MESSAGES: u64 = 400;
/// 5 of each user's 20.
const CHOSEN: u64 = 100;

/// A command that serves, ended by the end of its standard input.
struct Serving {
    child: Child,
    address: SocketAddr,
}

impl Serving {
    fn start(line: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_portico-loadgen"))
            .args(line.split_whitespace())
            .arg("--until-eof")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut ready = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout)
            .read_line(&mut ready)
            .expect("a line");
        let address = ready.trim().strip_prefix("listening on ").expect("ready");
        Self {
            address: address.parse().expect("an address"),
            child,
        }
    }

    /// Ends it and says how it ended.
    fn end(mut self) -> Option<i32> {
        drop(self.child.stdin.take());
        self.child.wait().expect("a child").code()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Without effect on one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(target: SocketAddr, flags: &str) -> (Output, Value) {
    let folder = TempDir::new().expect("a temporary directory");
    let key = folder.path().join("auth-key.pem");
    fs::write(&key, SigningKey::generate_pem().expect("a key")).expect("written");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("own file");
    let json = folder.path().join("result.json");
    let output = Command::new(env!("CARGO_BIN_EXE_portico-loadgen"))
        .args(flags.split_whitespace())
        .args(["--target", &target.to_string()])
        .arg("--data")
        .arg(folder.path())
        .arg("--json")
        .arg(&json)
        .output()
        .expect("the program starts");
    let text = String::from_utf8_lossy(&output.stderr);
    let json = fs::read(&json).unwrap_or_else(|_| panic!("no result: {text}"));
    (output, serde_json::from_slice(&json).expect("valid JSON"))
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

/// These runs test the verifier, not the machine they run on, so that being late is no matter.
fn plan(more: &str) -> String {
    let sized = format!("relay --connections {USERS} --slip-max 1m {more}");
    match more.contains("--rate") {
        true => sized,
        false => format!("{sized} --rate 200 --duration 2s"),
    }
}

/// All counts are those of a perfect run, except the ones named.
#[track_caller]
fn check(result: &Value, verdict: &str, different: &[(&str, u64)]) {
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
}

fn through_proxy(fault: Fault, more: &str) -> Value {
    let sink = Serving::start("sink --answer sent");
    let proxy = Proxy::start(sink.address, fault);
    let (_, result) = run(proxy.address, &plan(more));
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
    let sink = Serving::start("sink --answer sent --delay 20ms");
    let (output, result) = run(sink.address, &plan(""));
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
    let sink = Serving::start("sink --answer sent --stall 300ms --stall-after 1s");
    let (_, result) = run(sink.address, &plan("--rate 1000 --duration 3s"));
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
    let sink = Serving::start("sink");
    let (_, result) = run(sink.address, &plan("--drain 1s"));
    let silent = [("accepted", 0), ("delivered", 0), ("unanswered", MESSAGES)];
    check(&result, "fail", &silent);
}

#[test]
fn servers_end_with_their_standard_input() {
    for line in ["floor", "sink"] {
        let serving = Serving::start(line);
        TcpStream::connect(serving.address).expect("it listens");
        assert_eq!(serving.end(), Some(0), "{line}");
    }
}

#[test]
fn servers_end_when_told_to() {
    let mut serving = Serving::start("floor");
    let pid = serving.child.id().to_string();
    let told = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(told.expect("kill").success());
    let begun = Instant::now();
    while serving.child.try_wait().expect("a child").is_none() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_floor_copies_bytes() {
    let floor = Serving::start("floor --cpu 0");
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
    let sink = Serving::start("sink");
    let address = sink.address.to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_portico-loadgen"))
        .args(["floor", "--listen", &address])
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains(&format!("cannot listen on {address} (see --listen)")),
        "{text}"
    );
}
