//! Targets that are none, files that cannot take a result, and somebody who has no patience: each
//! gets a sentence and an exit code.

use crate::support::{
    Listening, Setup, fails_with,
    fake_gateway::{FakeGateway, Fault},
    signal, wait_until,
};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener},
    process::{Child, Stdio},
    thread,
};

/// Whoever connects is told this, or nothing, and hung up on when it hangs up.
fn stranger(says: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut bytes = [0; 4_096];
                while stream.read(&mut bytes).is_ok_and(|bytes| bytes > 0) {
                    // It may have gone.
                    let _ = stream.write_all(says.as_bytes());
                }
            });
        }
    });
    address
}

const FEW: &str = "relay --connections 10 --rate 200 --slip-max 1m";

#[track_caller]
fn ended(mut run: Child, within: &str) -> Option<i32> {
    wait_until(within, || run.try_wait().expect("our child").is_some());
    run.wait().expect("our child").code()
}

fn reasons(result: &Value) -> Vec<&str> {
    let reasons = result["reasons"].as_array().expect("sentences");
    reasons.iter().filter_map(Value::as_str).collect()
}

#[test]
fn a_server_of_something_else_is_named_as_that() {
    let web = stranger("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").to_string();
    for protocol in ["portico", "redis"] {
        let setup = Setup::new();
        let output = setup.run(&web, &format!("{FEW} --protocol {protocol}"));
        let parts = ["the target does not speak", "--protocol right?"];
        fails_with(&output, &parts);
        assert!(!setup.json_file().exists(), "no result, no file");
    }
}

/// To whoever measures another system, how to start a gateway is of no use.
#[test]
fn where_nothing_listens_the_hint_fits_the_protocol() {
    for (protocol, hint) in [
        ("portico", "`cargo run --release`"),
        ("nats", "speaks nats"),
        ("relay", "`portico-loadgen floor --listen 127.0.0.1:1`"),
    ] {
        let output = Setup::new().run("127.0.0.1:1", &format!("{FEW} --protocol {protocol}"));
        fails_with(&output, &["nothing listens on 127.0.0.1:1", hint]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(text.contains("cargo"), protocol == "portico", "{text}");
    }
}

#[test]
fn an_interrupted_run_says_what_it_has_found() {
    for name in ["INT", "TERM"] {
        let gateway = FakeGateway::start(Fault::None);
        let setup = Setup::new();
        let target = gateway.address.to_string();
        let run = setup.start(&target, &format!("{FEW} --duration 1h"));
        wait_until("messages are on their way", || gateway.messages() > 40);
        signal(&run, name);
        assert_eq!(ended(run, "it ends"), Some(2), "{name}");
        let result = setup.result();
        assert_eq!(result["verdict"], "invalid");
        assert!(reasons(&result)[0].starts_with("interrupted after"));
        assert!(result["sent"].as_u64() > Some(40), "{result:#}");
        assert_eq!(result["delivered"], result["sent"], "{result:#}");
        // Of the time in which messages were sent, not of the hour.
        assert!(result["rate_per_s"].as_f64() > Some(1.0), "{result:#}");
    }
}

#[test]
fn an_interrupted_hold_says_what_it_has_found() {
    let gateway = FakeGateway::start(Fault::None);
    let setup = Setup::new();
    let flags = "hold --connections 30 --active 10 --ramp 100 --settle 100ms --slip-max 1m \
                 --rate 200 --duration 1h --cut";
    let run = setup.start(&gateway.address.to_string(), flags);
    wait_until("messages are on their way", || gateway.messages() > 40);
    signal(&run, "INT");
    assert_eq!(ended(run, "it ends"), Some(2));
    let result = setup.result();
    let told = reasons(&result);
    let told = told.iter().any(|reason| reason.starts_with("interrupted"));
    assert!(told, "{result:#}");
    assert_eq!(result["hold"]["live"]["settle"], 30);
}

#[test]
fn an_interrupted_search_says_what_held() {
    let gateway = FakeGateway::start(Fault::None);
    let setup = Setup::new();
    let flags = "capacity relay --connections 10 --slip-max 1m --p99 1m --min 100 --max 100 \
                 --trial 500ms --confirm 1h";
    let run = setup.start(&gateway.address.to_string(), flags);
    // The trial has 50.
    wait_until("the long run has begun", || gateway.messages() > 90);
    signal(&run, "INT");
    assert_eq!(ended(run, "it ends"), Some(2));
    let result = setup.result();
    assert_eq!(result["verdict"], "invalid");
    assert!(result["found"].is_null(), "{result:#}");
    let sentence = "interrupted before a rate was confirmed; 100 messages/s held in a trial";
    assert_eq!(reasons(&result)[0], sentence);
}

#[test]
fn who_interrupts_before_the_first_message_gets_no_result() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("bound").to_string();
    let setup = Setup::new();
    let mut run = setup.command(&address, FEW);
    let mut run = run.stderr(Stdio::piped()).spawn().expect("it starts");
    let _unanswered = silent.accept().expect("it connects");
    signal(&run, "INT");
    let mut text = String::new();
    let mut stderr = run.stderr.take().expect("piped");
    stderr.read_to_string(&mut text).expect("text");
    assert_eq!(ended(run, "it ends"), Some(2), "{text}");
    assert!(
        text.contains("interrupted before the first message"),
        "{text}"
    );
    assert!(!setup.json_file().exists(), "no result, no file");
}

#[test]
fn a_server_that_dies_is_named() {
    let mut sink = Listening::start(["sink", "--answer", "sent"]);
    let setup = Setup::new();
    let flags = format!("{FEW} --duration 6s --drain 1s --progress");
    let mut run = setup.command(&sink.address.to_string(), &flags);
    let run = run.stderr(Stdio::piped()).stdout(Stdio::null()).spawn();
    let mut run = run.expect("the program starts");
    let lines = BufReader::new(run.stderr.take().expect("piped")).lines();
    let mut lines = lines.map_while(Result::ok);
    assert!(
        lines.any(|line| line.contains("sending")),
        "messages go out"
    );
    sink.kill();
    // What it says from here on goes to nobody, which must not matter to it.
    drop(lines);
    let code = ended(run, "it ends");
    let result = setup.result();
    assert!(code == Some(1) || code == Some(2), "{result:#}");
    let warnings = result["warnings"].to_string();
    let named = format!("the server's process, {}, ended", sink.child.id());
    assert!(warnings.contains(&named), "{result:#}");
    assert!(result["server"].is_null());
}

#[test]
fn a_full_disk_costs_the_file_and_not_the_table() {
    let gateway = FakeGateway::start(Fault::None);
    let setup = Setup::new();
    let flags = format!("{FEW} --duration 500ms --html /dev/full");
    let output = setup.run(&gateway.address.to_string(), &flags);
    fails_with(
        &output,
        &["cannot write the result to /dev/full", "No space"],
    );
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(
        table.contains("PASS") || table.contains("INVALID"),
        "{table}"
    );
    assert_eq!(setup.result()["delivered"], 100, "the other file is whole");
}

/// As behind `| head -1`: the files are whole all the same.
#[test]
fn whoever_does_not_read_the_table_gets_the_files() {
    let gateway = FakeGateway::start(Fault::None);
    let setup = Setup::new();
    let flags = format!("{FEW} --duration 1500ms --progress");
    let mut run = setup.command(&gateway.address.to_string(), &flags);
    let run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut run = run.expect("the program starts");
    drop((run.stdout.take(), run.stderr.take()));
    assert_eq!(ended(run, "it ends"), Some(2));
    assert_eq!(setup.result()["delivered"], 300);
}

#[test]
fn two_results_do_not_go_into_one_file() {
    let setup = Setup::new();
    let same = setup.json_file();
    let flags = format!("{FEW} --html {}", same.display());
    let output = setup.run("127.0.0.1:1", &flags);
    fails_with(&output, &["must be different files", "result.json"]);
}

#[test]
fn absurd_numbers_are_refused_by_name() {
    let setup = Setup::new();
    let file = setup.file("absurd.toml");
    let text = "name = \"absurd\"\nconnections = 4\nrate = 1\nduration = \"1s\"\n";
    fs::write(&file, format!("{text}[fanout]\nmembers = 4294967295\n")).expect("written");
    let file = file.display().to_string();
    for (line, parts) in [
        (file.as_str(), ["--connections is 4", "must be"]),
        ("relay --rate 1e12", ["--rate is", "at most"]),
        ("relay --rate -5", ["--rate is -5", "above 0"]),
        ("relay --duration 0", ["--duration is 0", "above 0"]),
        ("capacity --max 1e300", ["--max", "must hold"]),
    ] {
        fails_with(&setup.run("127.0.0.1:1", line), &parts);
    }
}
