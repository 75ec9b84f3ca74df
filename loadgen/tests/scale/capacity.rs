//! The search against the fake gateway, which answers each user's messages one after the other: what
//! it can carry is known.

use super::{Setup, fails_with};
use crate::fake_gateway::{FakeGateway, Fault};
use serde_json::Value;

/// 20 users, 20 ms for each message.
const CAPACITY: f64 = 1_000.0;
const FLAGS: &str = "capacity relay --connections 20 --slip-max 1m --drain 20s --min 100 \
                     --p99 300ms --precision 20%";
const SHORT: &str = "--trial 1s --confirm 1s";

fn rate(result: &Value) -> f64 {
    let rate = result["found"]["rate_per_s"].as_f64();
    rate.unwrap_or_else(|| panic!("a rate in {result:#}"))
}

#[test]
fn the_capacity_of_a_gateway_is_found_and_confirmed() {
    let gateway = FakeGateway::start(Fault::DelayMs(20));
    let setup = Setup::new();
    let flags = format!("{FLAGS} --trial 2s --confirm 4s");
    let output = setup.run(&gateway.address.to_string(), &flags);
    let result = setup.result();
    assert_eq!(output.status.code(), Some(0), "{result:#}");
    assert_eq!(result["verdict"], "pass");
    // A sleep of 20 ms takes a little longer, more so on a busy machine.
    let found = rate(&result);
    assert!(
        (CAPACITY * 0.5..=CAPACITY * 1.1).contains(&found),
        "{result:#}"
    );
    assert_eq!(result["found"]["limited_by"], "gateway");
    assert_eq!(result["found"]["is_lower_bound"], false);
    assert!(result["found"]["server_cpu_us_per_message"].is_f64());

    let trials = result["trials"].as_array().expect("trials");
    let last = trials.last().expect("a confirming run");
    assert_eq!(last["purpose"], "confirm");
    assert_eq!(last["result"], "held");
    assert_eq!(last["rate_per_s"], found);
    assert_eq!(result["confirmation"]["delivered"], last["delivered"]);
    // Twice the capacity was offered, and not for long.
    let overrun = trials.iter().find(|trial| trial["ended_early"] == true);
    let overrun = overrun.unwrap_or_else(|| panic!("{result:#}"));
    let offered = overrun["rate_per_s"].as_f64().expect("a rate") * 2.0;
    assert!(
        overrun["sent"].as_f64() < Some(offered * 0.8),
        "{overrun:#}"
    );
    // It was left to deliver what it had taken.
    assert_eq!(overrun["sent"], overrun["delivered"]);

    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("the gateway was the limit"), "{text}");
    let lines = String::from_utf8_lossy(&output.stderr);
    assert!(lines.lines().count() >= trials.len(), "{lines}");
}

#[test]
fn a_maximum_that_holds_is_a_lower_bound() {
    let gateway = FakeGateway::start(Fault::None);
    let setup = Setup::new();
    let flags = format!("{FLAGS} {SHORT} --max 200");
    let output = setup.run(&gateway.address.to_string(), &flags);
    let result = setup.result();
    assert_eq!(output.status.code(), Some(0), "{result:#}");
    assert_eq!(rate(&result), 200.0);
    assert_eq!(result["found"]["limited_by"], "maximum");
    assert_eq!(result["trials"].as_array().map(Vec::len), Some(3));
}

#[test]
fn a_gateway_that_loses_messages_holds_no_rate() {
    let gateway = FakeGateway::start(Fault::Drop);
    let setup = Setup::new();
    let flags = format!("{FLAGS} {SHORT}").replace("--drain 20s", "--drain 1s");
    let output = setup.run(&gateway.address.to_string(), &flags);
    let result = setup.result();
    assert_eq!(output.status.code(), Some(1), "{result:#}");
    assert_eq!(result["verdict"], "fail");
    assert!(result["found"].is_null());
    assert_eq!(result["trials"].as_array().map(Vec::len), Some(2));
    // A quarter of them: more than that may be allowed.
    let flags = format!("{flags} --max 100 --loss 40%");
    let output = setup.run(&gateway.address.to_string(), &flags);
    assert_eq!(output.status.code(), Some(0), "{:#}", setup.result());
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
