//! Each plan against the fake gateway, with and without a fault that it has to notice; then ways to
//! name a plan.

use crate::support::{
    Setup, alone, fails_with,
    fake_gateway::{FakeGateway, Fault},
};
use serde_json::Value;
use std::fs;

/// The exit code and the result of a plan. These runs test the plans, not the machine they run on.
fn measure(fault: Fault, flags: &str) -> (i32, Value) {
    let gateway = FakeGateway::start(fault);
    let setup = Setup::new();
    let flags = format!("{flags} --slip-max 1m");
    let (output, result) = setup.measure(&gateway.address.to_string(), &flags);
    (output.status.code().expect("it was not killed"), result)
}

#[track_caller]
pub(crate) fn passes(flags: &str) -> Value {
    let (code, result) = measure(Fault::None, flags);
    assert_eq!(
        (code, &result["verdict"]),
        (0, &"pass".into()),
        "{result:#}"
    );
    assert_eq!(result["delivered"], result["sent"], "{result:#}");
    assert!(result["verifier_bytes"].as_u64() > Some(100_000));
    result
}

#[track_caller]
pub(crate) fn fails(fault: Fault, flags: &str) -> Value {
    let (code, result) = measure(fault, flags);
    assert_eq!(
        (code, &result["verdict"]),
        (1, &"fail".into()),
        "{result:#}"
    );
    result
}

#[track_caller]
pub(crate) fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("no number: {value}"))
}

#[test]
fn pairs_answer_each_other() {
    let flags = "pingpong --connections 20 --think 100ms --duration 1s";
    let result = passes(flags);
    let (sent, answers) = (number(&result["sent"]), number(&result["answers"]));
    assert_eq!(sent, 2 * answers);
    assert_eq!(number(&result["round_trip_us"]["samples"]), answers);
    // Ten pairs, one message under way in each: ten rounds at most, or one more at the start.
    assert!((20..=220).contains(&sent), "{result:#}");
}

#[test]
fn a_round_trip_takes_two_ways() {
    let flags = "pingpong --connections 2 --think 0s --duration 1s";
    let (_, result) = measure(Fault::DelayMs(20), flags);
    let round_trip = number(&result["round_trip_us"]["p50"]);
    assert!((40_000..200_000).contains(&round_trip), "{result:#}");
}

#[test]
fn one_message_reaches_many() {
    let flags = "fanout --groups 2 --members 5 --rate 40 --duration 1s";
    for more in ["", "--acks minimal"] {
        let result = passes(&format!("{flags} {more}"));
        assert_eq!(result["sent"], 200);
        assert_eq!(result["accepted"], 200);
        assert_eq!(result["connections"], 12);
        assert_eq!(number(&result["latency_us"]["samples"]), 200);
    }
}

/// Of each member's 20 messages the gateway treats 5 wrongly.
#[test]
fn each_member_of_a_group_is_verified() {
    let flags = "fanout --groups 2 --members 5 --rate 40 --duration 1s --drain 1s";
    for more in ["", "--acks minimal"] {
        let flags = format!("{flags} {more}");
        let result = fails(Fault::Drop, &flags);
        assert_eq!(result["lost"], 50);
        assert_eq!(result["delivered"], 150);
        assert_eq!(fails(Fault::Duplicate, &flags)["duplicated"], 50);
        assert_eq!(fails(Fault::Swap, &flags)["reordered"], 50);
        assert_eq!(fails(Fault::Corrupt, &flags)["corrupt"], 50);
    }
}

#[test]
fn all_come_back_after_a_storm() {
    let flags = "storm --connections 20 --rate 200 --duration 2s --at 500ms --share 0.5 \
                 --away 300ms";
    let result = passes(flags);
    assert_eq!(
        (number(&result["cut"]), number(&result["not_back"])),
        (10, 0)
    );
    assert_eq!(number(&result["back_us"]["samples"]), 10);
    assert_eq!(number(&result["login_us"]["samples"]), 30);
    assert_eq!(number(&result["reconnects"]), 10);
    let all_back_us = number(&result["all_back_us"]);
    assert!((300_000..5_000_000).contains(&all_back_us), "{result:#}");
    // Messages to those who were away waited for them; the others' did not.
    assert!(number(&result["to_absent"]) > 0, "{result:#}");
    assert!(number(&result["affected_latency_us"]["samples"]) > 0);
    assert!(number(&result["others_latency_us"]["samples"]) > 0);
    assert_eq!(result["closes"], serde_json::json!({}));
    let both = ["latency_us", "affected_latency_us"].map(|of| number(&result[of]["samples"]));
    assert_eq!(both.iter().sum::<u64>(), 400);
}

#[test]
fn a_message_that_is_lost_in_a_storm_is_noticed() {
    let flags = "storm --connections 20 --rate 200 --duration 2s --at 500ms --drain 3s";
    let result = fails(Fault::Drop, flags);
    assert!(number(&result["lost"]) > 0, "{result:#}");
}

#[test]
fn slow_readers_lose_nothing_and_slow_nobody() {
    let flags = "slow-readers --connections 20 --rate 200 --duration 2s --at 500ms --lasts 1s \
                 --share 0.2";
    let result = passes(flags);
    assert_eq!(number(&result["stopped_reading"]), 4);
    assert!(number(&result["to_absent"]) > 0, "{result:#}");
    let (slow, others) = (&result["affected_latency_us"], &result["others_latency_us"]);
    assert!(number(&slow["max"]) > 500_000, "{result:#}");
    assert!(number(&others["samples"]) > 50, "{result:#}");
    // Half of the slow ones are messages *from* someone who does not read, and as quick as any.
    assert!(number(&others["p50"]) < number(&slow["p90"]), "{result:#}");
}

#[test]
fn those_who_come_and_go_get_everything() {
    let flags = "flap --connections 20 --rate 200 --duration 2s --share 0.5 --away 200ms";
    let result = passes(flags);
    // Ten a second; one that has not come back yet is left in peace.
    assert!((10..=20).contains(&number(&result["cut"])), "{result:#}");
    assert_eq!(
        number(&result["back_us"]["samples"]),
        number(&result["cut"])
    );
    assert!(number(&result["to_absent"]) > 0, "{result:#}");
    assert!(number(&result["affected_latency_us"]["max"]) > 50_000);
}

const MIXED: &str = "mixed --connections 20 --rate 200 --duration 2s --offline 0.2 --answers 0.5 \
                     --think 200ms --read-delay 100ms --sizes 64:0.5,500:0.5 --drain 8s";

#[test]
fn people_come_late_answer_and_read() {
    let result = passes(MIXED);
    assert_eq!(number(&result["back_us"]["samples"]), 4);
    assert!(number(&result["to_absent"]) > 0, "{result:#}");
    let answers = number(&result["answers"]);
    assert!((10..200).contains(&answers), "{result:#}");
    assert_eq!(number(&result["sent"]), 400 + answers);
    assert_eq!(number(&result["reads_missing"]), 0);
}

#[test]
fn read_marks_that_never_come_are_counted() {
    let result = fails(Fault::NoReads, MIXED);
    assert!(number(&result["reads_missing"]) > 10, "{result:#}");
    assert_eq!(result["receipts_missing"], 0);
}

#[test]
fn without_acknowledgements_only_what_is_promised_is_checked() {
    let flags = "relay --connections 20 --rate 200 --duration 2s --acks minimal --burst 4 --spin";
    let result = passes(flags);
    assert_eq!(result["sent"], 400);
    let promised = ["accepted", "receipts_missing", "misnumbered"];
    assert_eq!(result["not_promised"], serde_json::json!(promised));
    assert_eq!(number(&result["sent_latency_us"]["samples"]), 0);
    let flags = format!("{flags} --drain 1s");
    assert_eq!(fails(Fault::Drop, &flags)["lost"], 100);
    assert_eq!(fails(Fault::Duplicate, &flags)["duplicated"], 100);
    assert_eq!(fails(Fault::Swap, &flags)["reordered"], 100);
}

#[test]
fn rounds_measure_throughput_and_no_latency() {
    for acks in ["full", "minimal"] {
        let flags =
            format!("relay --connections 10 --pace rounds --burst 4 --duration 1s --acks {acks}");
        let result = passes(&flags);
        assert_eq!(result["latency_measured"], false);
        assert_eq!(number(&result["latency_us"]["samples"]), 0);
        assert!(number(&result["sent"]).is_multiple_of(40));
        assert!(number(&result["sent"]) > 200, "{result:#}");
        assert!(result["server"]["cpu_us_per_message"].as_f64() > Some(0.0));
    }
}

/// A round that does not end is given up after the plan's patience.
#[test]
fn a_round_that_loses_a_message_ends() {
    let flags = "relay --connections 10 --pace rounds --burst 4 --duration 1m --drain 500ms";
    let result = fails(Fault::Drop, flags);
    assert_eq!(number(&result["sent"]), 40);
    assert_eq!(number(&result["lost"]), 10);
}

/// No schedule is kept to the microsecond, so this one was not.
#[test]
fn a_schedule_that_slipped_makes_a_run_invalid_whatever_its_pace() {
    let gateway = FakeGateway::start(Fault::None);
    let setup = Setup::new();
    for more in ["", "--spin", "--burst 4", "--acks minimal"] {
        let flags = format!("relay --connections 10 --rate 200 --duration 500ms {more}");
        let target = gateway.address.to_string();
        let output = setup.run(&target, &format!("{flags} --slip-max 0s"));
        let result = setup.result();
        assert_eq!(result["verdict"], "invalid", "{more}: {result:#}");
        let reason = result["reasons"][0].as_str().unwrap_or_default();
        assert!(reason.starts_with("the generator was late"), "{result:#}");
        assert_eq!(output.status.code(), Some(2));
    }
}

#[test]
fn a_printed_plan_is_one_that_can_be_given() {
    let listed = String::from_utf8(alone("plan").stdout).expect("text");
    let names: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(names.len(), 13);
    let setup = Setup::new();
    for name in names {
        let printed = alone(&format!("plan --print {name}")).stdout;
        let file = setup.file(&format!("{name}.toml"));
        fs::write(&file, &printed).expect("written");
        let again = alone(&format!("plan --print {}", file.display()));
        assert_eq!(again.stdout, printed, "{name}");
    }
    let gateway = FakeGateway::start(Fault::None);
    let file = setup.file("relay.toml");
    let flags = "--connections 10 --rate 100 --duration 1s --slip-max 1m --seed 5";
    let flags = format!("{} {flags}", file.display());
    setup.run(&gateway.address.to_string(), &flags);
    let result = setup.result();
    assert_eq!(
        (&result["plan"], number(&result["seed"])),
        (&"relay".into(), 5)
    );
    assert_eq!(number(&result["delivered"]), 100);
    assert_eq!(result["workload"]["partners"], 1);
}

#[test]
fn plans_that_cannot_be_carried_out_are_refused_at_once() {
    let setup = Setup::new();
    let file = setup.file("own.toml");
    fs::write(&file, "name = \"own\"\nconections = 5\n").expect("written");
    let own = file.display().to_string();
    for (line, parts) in [
        (own.as_str(), ["own.toml is not a plan", "conections"]),
        ("relay --share 0.5", ["--share belongs to", "`relay`"]),
        ("flap --protocol nats", ["`flap` needs", "nats"]),
        (
            "smoke --protocol relay",
            ["--partners must be 1", "--protocol relay"],
        ),
        ("none.toml", ["cannot read the plan", "none.toml"]),
    ] {
        fails_with(&setup.run("127.0.0.1:1", line), &parts);
    }
}

/// Not part of the usual tests, because it measures what one core produces: the CPU time of this
/// tool per message that nobody reads.
#[test]
#[ignore = "a measurement that wants an optimised build"]
fn a_message_costs_less_than_a_microsecond() {
    let gateway = FakeGateway::start(Fault::Discard);
    let setup = Setup::new();
    for (connections, size) in [(100, 64), (1_000, 64), (1_000, 128)] {
        let flags = format!(
            "relay --connections {connections} --rate 400000 --burst 64 --acks minimal \
             --duration 5s --drain 0s --size {size}"
        );
        let output = setup.run(&gateway.address.to_string(), &flags);
        let result = setup.result();
        let busy = result["generator"]["busy"].as_f64().expect("a number");
        let sent = number(&result["sent"]) as f64;
        let us = busy * 5e6 / sent;
        println!("{connections} connections, {size} bytes: {us:.3} us per message, {sent} sent");
        assert!(sent > 1e6, "{}", String::from_utf8_lossy(&output.stdout));
        assert!(us < 1.0, "{us}");
    }
}
