//! The plan `hold` against the fake gateway: all phases in a few seconds, with few connections.

use crate::support::{
    Setup, fails_with,
    fake_gateway::{FakeGateway, Fault},
};
use serde_json::Value;

const CONNECTIONS: u64 = 60;
const ACTIVE: u64 = 20;
const HELD: u64 = CONNECTIONS - ACTIVE;
/// Either way of sending them; the longer one leaves time to come back on a busy machine.
const MESSAGES: u64 = 600;
const QUICKLY: &str = "--rate 200 --duration 3s";
const WITH_CUT: &str = "--rate 60 --duration 10s --cut";

/// The exit code and the result.
fn hold(fault: Fault, sending: &str) -> (i32, Value) {
    let gateway = FakeGateway::start(fault);
    let setup = Setup::new();
    let flags = format!(
        "hold --connections {CONNECTIONS} --active {ACTIVE} --ramp 100 --settle 1s --slip-max 1m \
         {sending}"
    );
    let (output, result) = setup.measure(&gateway.address.to_string(), &flags);
    (output.status.code().expect("not killed"), result)
}

#[track_caller]
fn passes((code, result): (i32, Value)) -> Value {
    assert_eq!(result["verdict"], "pass", "{result:#}");
    assert_eq!(code, 0);
    assert_eq!(result["connections"], CONNECTIONS);
    assert_eq!(result["delivered"], MESSAGES);
    for phase in ["ramp", "settle", "send", "end"] {
        assert_eq!(result["hold"]["live"][phase], CONNECTIONS, "{phase}");
    }
    result
}

#[test]
fn connections_are_held_and_what_they_cost_is_said() {
    let result = passes(hold(Fault::None, QUICKLY));
    let hold = &result["hold"];
    assert_eq!(hold["threads"], 1);
    assert_eq!(hold["asked"], CONNECTIONS);
    assert_eq!(hold["return"], Value::Null, "nothing was cut");
    for times in ["connect_us", "login_us"] {
        assert_eq!(hold["ramp"][times]["samples"], HELD, "{times}");
        assert!(hold["ramp"][times]["p99"].as_u64() > Some(0), "{times}");
    }
    // 60 at 100 a second.
    let seconds = hold["ramp"]["seconds"].as_f64();
    assert!(seconds > Some(0.4), "the ramp is paced: {result:#}");
    for cost in [
        &hold["ramp"]["server_cpu_us_per_login"],
        &hold["server"]["cpu_us_per_message"],
        &hold["generator"]["cpu_us_per_login"],
    ] {
        assert!(cost.as_f64() > Some(0.0), "{result:#}");
    }
    assert!(hold["server"]["cpu_us_per_connection_s"].is_f64());
    assert!(hold["generator"]["rss_bytes_per_connection"].is_f64());
}

/// The fake gateway gives no resume tokens, so every way back asks for a new access token.
#[test]
fn all_that_are_cut_come_back() {
    let result = passes(hold(Fault::None, WITH_CUT));
    let back = &result["hold"]["return"];
    assert_eq!(back["cut"], HELD);
    assert_eq!(result["hold"]["live"]["back"], CONNECTIONS);
    assert!(back["all_back_s"].as_f64() > Some(0.0), "{result:#}");
    for times in ["connect_us", "login_us", "live_after_us"] {
        assert_eq!(back[times]["samples"], HELD, "{times}");
    }
    // What was due meanwhile is in both histograms.
    let meanwhile = back["latency_us"]["samples"].as_u64().expect("a number");
    assert!((1..MESSAGES).contains(&meanwhile), "{result:#}");
    assert_eq!(result["latency_us"]["samples"], MESSAGES);
    assert_eq!(result["hold"]["drops"], serde_json::json!({}));
}

#[test]
fn logins_that_are_put_off_are_counted_and_come_later() {
    let result = passes(hold(Fault::PutOff, QUICKLY));
    let ramp = &result["hold"]["ramp"];
    assert_eq!(ramp["deferred"], HELD / 4);
    assert_eq!(ramp["refused"]["OVERLOADED"], HELD / 4);
}

#[test]
fn connections_that_end_unasked_fail_the_run() {
    let (code, result) = hold(Fault::HangUp, QUICKLY);
    assert_eq!(result["verdict"], "fail", "{result:#}");
    assert_eq!(code, 1);
    let drops = result["hold"]["drops"]["SERVER_ERROR"].as_u64();
    assert!(drops >= Some(HELD / 4), "{result:#}");
    let reasons = result["reasons"].to_string();
    assert!(reasons.contains("ended unasked"), "{reasons}");
}

#[test]
fn what_cannot_work_is_said_before_or_at_once() {
    let gateway = FakeGateway::start(Fault::TurnAway);
    let address = gateway.address.to_string();
    let output = Setup::new().run(&address, "hold --connections 30");
    fails_with(&output, &["AUTH_FAILED", "--key-file"]);

    // More sockets than one thread may have, and more threads than anybody wants.
    let setup = Setup::new();
    let output = setup.run_limited(&address, "hold --connections 500000 --active 2", 100);
    fails_with(&output, &["this machine cannot do that", "`ulimit -n "]);
    assert!(!setup.json_file().exists(), "no result, no file");
}
