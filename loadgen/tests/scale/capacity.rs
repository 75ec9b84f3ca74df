//! The search against the fake gateway: what it can carry is known. Where it is a number of messages
//! and no time, whatever else this machine does changes nothing about it.

use crate::support::{
    Setup, fails_with,
    fake_gateway::{FakeGateway, Fault},
};
use serde_json::Value;

/// Of a trial of half a second, to each of 20 users: 1,000 messages a second.
const QUOTA: Fault = Fault::Quota(25);
const CAPACITY: f64 = 1_000.0;
const FLAGS: &str = "capacity relay --connections 20 --slip-max 1m --drain 60s --min 100 --p99 1m \
                     --precision 20%";
const SHORT: &str = "--trial 500ms --confirm 500ms";

fn rate(result: &Value) -> f64 {
    let rate = result["found"]["rate_per_s"].as_f64();
    rate.unwrap_or_else(|| panic!("a rate in {result:#}"))
}

#[test]
fn the_capacity_of_a_gateway_is_found_and_confirmed() {
    let gateway = FakeGateway::start(QUOTA);
    let setup = Setup::new();
    let (output, result) = setup.measure(&gateway.address.to_string(), &format!("{FLAGS} {SHORT}"));
    assert_eq!(output.status.code(), Some(0), "{result:#}");
    assert_eq!(result["verdict"], "pass");
    assert_eq!(rate(&result), CAPACITY, "{result:#}");
    assert_eq!(result["found"]["limited_by"], "gateway");
    assert_eq!(result["found"]["is_lower_bound"], false);
    assert!(result["found"]["server_cpu_us_per_message"].is_f64());

    let trials = result["trials"].as_array().expect("trials");
    let tried: Vec<_> = trials.iter().map(|trial| &trial["rate_per_s"]).collect();
    // Doubled until it fails, then the gap is halved until it is 20 %: the upper end fails again.
    let expected = [
        100.0, 200.0, 400.0, 800.0, 1_600.0, 1_200.0, 1_000.0, 1_200.0, 1_000.0,
    ];
    assert_eq!(tried, expected);
    for trial in trials {
        let holds = trial["rate_per_s"].as_f64() <= Some(CAPACITY);
        let found = if holds { "held" } else { "failed" };
        assert_eq!(trial["result"], found, "{trial:#}");
    }
    let last = trials.last().expect("a confirming run");
    assert_eq!(last["purpose"], "confirm");
    assert_eq!(result["confirmation"]["delivered"], last["delivered"]);

    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("the gateway was the limit"), "{text}");
    let lines = String::from_utf8_lossy(&output.stderr);
    assert!(lines.lines().count() >= trials.len(), "{lines}");
}

/// 20 users and 20 ms for each message: half of what is offered.
#[test]
fn an_overrun_gateway_is_not_pressed_on() {
    let gateway = FakeGateway::start(Fault::DelayMs(20));
    let setup = Setup::new();
    let flags = "capacity relay --connections 20 --slip-max 1m --drain 60s --min 2000 --max 2000 \
                 --p99 300ms --trial 10s --confirm 10s";
    let (output, result) = setup.measure(&gateway.address.to_string(), flags);
    assert_eq!(output.status.code(), Some(1), "{result:#}");
    let trials = result["trials"].as_array().expect("trials");
    assert_eq!(trials.len(), 2, "{result:#}");
    for trial in trials {
        assert_eq!(trial["result"], "failed");
        assert_eq!(trial["ended_early"], true, "{trial:#}");
        assert!(trial["sent"].as_u64() < Some(16_000), "{trial:#}");
        // It was left to deliver what it had taken.
        assert_eq!(trial["sent"], trial["delivered"]);
    }
}

#[test]
fn a_maximum_that_holds_is_a_lower_bound() {
    let gateway = FakeGateway::start(Fault::None);
    let setup = Setup::new();
    let flags = format!("{FLAGS} {SHORT} --max 200");
    let (output, result) = setup.measure(&gateway.address.to_string(), &flags);
    assert_eq!(output.status.code(), Some(0), "{result:#}");
    assert_eq!(rate(&result), 200.0);
    assert_eq!(result["found"]["limited_by"], "maximum");
    assert_eq!(result["trials"].as_array().map(Vec::len), Some(3));
}

#[test]
fn a_gateway_that_loses_messages_holds_no_rate() {
    let gateway = FakeGateway::start(Fault::Drop);
    let target = gateway.address.to_string();
    let setup = Setup::new();
    let flags = format!("{FLAGS} --trial 1s --confirm 1s").replace("--drain 60s", "--drain 1s");
    let (output, result) = setup.measure(&target, &flags);
    assert_eq!(output.status.code(), Some(1), "{result:#}");
    assert_eq!(result["verdict"], "fail");
    assert!(result["found"].is_null());
    assert_eq!(result["trials"].as_array().map(Vec::len), Some(2));
    // A quarter of them: more than that may be allowed.
    let flags = format!("{flags} --max 100 --loss 40%");
    let (output, result) = setup.measure(&target, &flags);
    assert_eq!(output.status.code(), Some(0), "{result:#}");
}

#[test]
fn a_generator_that_is_late_proves_nothing() {
    let gateway = FakeGateway::start(Fault::None);
    let setup = Setup::new();
    // Nobody keeps a schedule to the nanosecond.
    let flags = format!("{FLAGS} {SHORT} --slip-max 0").replace("--slip-max 1m", "");
    let output = setup.run(&gateway.address.to_string(), &flags);
    let result = setup.result();
    assert_eq!(output.status.code(), Some(2), "{result:#}");
    assert_eq!(result["verdict"], "invalid");
}

#[test]
fn nothing_to_measure_is_no_result() {
    let setup = Setup::new();
    fails_with(&setup.run("127.0.0.1:1", FLAGS), &["nothing listens"]);
    assert!(!setup.json_file().exists());
}
