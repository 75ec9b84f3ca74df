//! What a run leaves behind: the seconds in the JSON file, the interval log, the page; and two runs
//! side by side.

use crate::support::{
    Setup,
    fake_gateway::{FakeGateway, Fault},
    program,
};
use base64::Engine;
use hdrhistogram::{
    Histogram,
    serialization::{
        Deserializer,
        interval_log::{IntervalLogIterator, LogEntry},
    },
};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path, process::Output};

const MESSAGES: u64 = 600;

/// Three seconds with a gateway that answers after so long.
fn run(setup: &Setup, delay_ms: u64, more_flags: &str) -> Output {
    let gateway = FakeGateway::start(Fault::DelayMs(delay_ms));
    let flags =
        format!("relay --connections 20 --rate 200 --duration 3s --slip-max 1m {more_flags}");
    setup.run(&gateway.address.to_string(), &flags)
}

fn numbers(value: &Value) -> Vec<f64> {
    let array = value.as_array().expect("a column");
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    array.iter().map(number).collect()
}

#[test]
fn the_seconds_of_a_run_are_the_whole_run() {
    let setup = Setup::new();
    let hlog = setup.file("run.hlog");
    let html = setup.file("run.html");
    let files = format!(
        "--hlog {} --html {} --progress",
        hlog.display(),
        html.display()
    );
    let output = run(&setup, 20, &files);
    let result = setup.result();
    assert_eq!(result["verdict"], "pass", "{result:#}");

    let series = &result["series"];
    assert_eq!(series["step_s"], 1);
    for (name, total) in [
        ("latency_us", MESSAGES),
        ("service_us", MESSAGES),
        ("sent_latency_us", MESSAGES),
        ("slip_us", MESSAGES),
    ] {
        let samples = numbers(&series[name]["samples"]);
        assert_eq!(samples.iter().sum::<f64>() as u64, total, "{name}");
        assert!((3..=5).contains(&samples.len()), "{name}: {samples:?}");
    }
    let p50 = numbers(&series["latency_us"]["p50"]);
    assert!(p50[..3].iter().all(|us| *us >= 20_000.0), "{p50:?}");
    assert!(result["service_us"]["p50"].as_u64() >= Some(20_000));

    let samples = &series["samples"];
    let at_s = numbers(&samples["at_s"]);
    assert!(at_s.len() >= 3, "{samples}");
    for column in samples.as_object().expect("columns").values() {
        assert_eq!(column.as_array().map(Vec::len), Some(at_s.len()));
    }
    assert_eq!(numbers(&samples["connections"])[1], 20.0);
    // The gateway is a thread of this test, and this machine's.
    assert!(numbers(&samples["server_rss_bytes"])[1] > 1e6);
    assert!(numbers(&samples["generator_rss_bytes"])[1] > 1e5);

    assert_eq!(result["workload"]["name"], "relay");
    assert_eq!(result["not_promised"], serde_json::json!([]));
    assert_eq!(result["environment"]["target_is_local"], true);
    assert!(result["environment"]["kernel"]["OutSegs"].is_u64());
    let started = result["started"].as_str().expect("a date");
    assert!(started.ends_with('Z') && started.len() == 24, "{started}");
    let curve = numbers(&result["curve_us"]["percentile"]);
    assert_eq!(curve.last(), Some(&100.0));

    check_log(&hlog);
    check_page(&html);
    check_terminal(&output);
}

/// Read by the format's own reader, tag by tag.
fn check_log(file: &Path) {
    let log = fs::read(file).expect("a log");
    let mut sums: BTreeMap<String, Histogram<u64>> = BTreeMap::new();
    let mut has_start = false;
    for entry in IntervalLogIterator::new(&log) {
        match entry.expect("well-formed") {
            LogEntry::StartTime(at) => has_start = at.as_secs() > 1_700_000_000,
            LogEntry::BaseTime(_) => {}
            LogEntry::Interval(line) => {
                assert_eq!(line.duration().as_secs(), 1);
                let tag = line.tag().expect("a tag").as_str().to_owned();
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(line.encoded_histogram())
                    .expect("base64");
                let histogram: Histogram<u64> = Deserializer::new()
                    .deserialize(&mut bytes.as_slice())
                    .expect("a histogram");
                match sums.get_mut(&tag) {
                    Some(sum) => sum.add(histogram).expect("the same bounds"),
                    None => _ = sums.insert(tag, histogram),
                }
            }
        }
    }
    assert!(has_start);
    let counts: Vec<_> = sums
        .iter()
        .map(|(tag, sum)| (tag.as_str(), sum.len()))
        .collect();
    let expected = ["latency", "sent", "service", "slip"].map(|tag| (tag, MESSAGES));
    assert_eq!(counts, expected);
    assert!(sums["latency"].min() >= 19_900);
}

fn check_page(file: &Path) {
    let page = fs::read_to_string(file).expect("a page");
    for part in [
        "<!doctype html>",
        "PASS",
        "Latency over time",
        "Throughput",
        "Connections",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(
        !page.contains("NaN") && !page.contains("inf "),
        "all numbers"
    );
    assert!(!page.contains("http"), "it asks nobody");
}

fn check_terminal(output: &Output) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("sending") && text.contains("p99"), "{text}");
    assert!(text.contains("cpu "), "{text}");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("service time"), "{table}");
    // The name of the processor is as long as it is.
    for line in text
        .lines()
        .chain(table.lines())
        .filter(|line| !line.contains("Linux"))
    {
        assert!(
            line.chars().count() <= 80,
            "{}: {line}",
            line.chars().count()
        );
    }
}

fn compare(arguments: &[&str]) -> (Option<i32>, String) {
    let output = program()
        .arg("compare")
        .args(arguments)
        .output()
        .expect("the program starts");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    (output.status.code(), text)
}

#[test]
fn two_runs_are_compared_and_a_slower_one_is_worse() {
    let (fast, slow) = (Setup::new(), Setup::new());
    run(&fast, 5, "");
    run(&slow, 300, "--size 64");
    let names = [fast.json_file(), slow.json_file()].map(|file| file.display().to_string());
    let [a, b] = names.each_ref().map(String::as_str);
    let (code, text) = compare(&[a, b]);
    assert_eq!(code, Some(0), "{text}");
    for part in [
        "latency p99",
        "not like for like",
        "settings.body_bytes: 128 in A, 64 in B",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let page = fast.file("compare.html");
    let page = page.display().to_string();
    let (code, text) = compare(&[a, b, "--worse-than", "100%", "--html", &page]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("worse: latency p99"), "{text}");
    assert!(fs::read_to_string(page).is_ok_and(|page| page.contains("Not like for like")));
    let (code, text) = compare(&[b, b, "--worse-than", "0%"]);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn what_is_no_result_is_not_compared() {
    let setup = Setup::new();
    let file = setup.json_file();
    let name = file.display().to_string();
    let (code, text) = compare(&[&name, &name]);
    assert_eq!(code, Some(2));
    assert!(
        text.contains("cannot read") && text.contains("result.json"),
        "{text}"
    );
    for (content, sentence) in [("nonsense", "is not JSON"), ("{}", "is no result")] {
        fs::write(&file, content).expect("written");
        let (code, text) = compare(&[&name, &name]);
        assert_eq!(code, Some(2));
        assert!(text.contains(sentence), "{text}");
    }
    assert_eq!(compare(&[&name]).0, Some(2), "two files are wanted");
}

#[test]
fn a_run_without_a_result_leaves_no_files() {
    let setup = Setup::new();
    let html = setup.file("run.html");
    let output = setup.run("127.0.0.1:1", &format!("smoke --html {}", html.display()));
    assert_eq!(output.status.code(), Some(2));
    assert!(!html.exists() && !setup.json_file().exists());
}
