//! The command line: plans by name, flags that override them, and what is wrong with either.

use crate::{
    payload::BODY_BYTES_MIN,
    plan::{Hold, Plan},
};
use clap::Parser;
use portico_client::mint::KEY_FILE;
use std::{path::PathBuf, time::Duration};

/// Users of one run get consecutive ids below a power of two; see `run.rs`.
pub(crate) const CONNECTIONS_MAX: u32 = 4_000_000;
/// Room for the Envelope around a body.
const BODY_BYTES_MAX: usize = 63_000;
const RATE_MAX: f64 = 10_000_000.0;
const RAMP_PER_S_MAX: u32 = 1_000_000;
const HEARTBEAT_S_MAX: u16 = 3_600;
const DURATION_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Measures what a Portico gateway carries, and proves that every message arrived.
///
/// `hold` opens --connections at --ramp per second, waits for --settle, then has --active of them
/// exchange --rate messages per second for --duration while the others stay quiet, and says what a
/// connection costs. The default of 100,000 takes a gigabyte. A million on one machine takes about
/// ten, a gateway with enough descriptors (`portico limits --connections 1000000`), and for --cut a
/// --duration of several minutes. What this machine lacks is said before anything is opened. Memory
/// is counted from the gateway's at the start: start it anew for each run. The connections that only
/// wait yield to all other programs (nice 19), as the phones they stand for do.
///
/// Exit code: 0 when the run passed, 1 when the gateway failed it, 2 when nothing can be concluded
/// (bad arguments, no connection, or a generator that could not keep its own schedule).
#[derive(Debug, Parser)]
#[command(name = "portico-loadgen", version, max_term_width = 100)]
pub(crate) struct Args {
    /// Which workload: `smoke`, `relay` or `hold`
    #[arg(default_value = "smoke")]
    plan: String,
    /// The gateway's binary protocol, HOST:PORT
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7400")]
    pub target: String,
    /// Private key that signs the tokens of the test users (PEM)
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    key_file: Option<PathBuf>,
    /// Data directory of the gateway, where that key is found
    #[arg(long, value_name = "DIR", default_value = "./portico-data")]
    data: PathBuf,
    /// Connected users
    #[arg(long, value_name = "N")]
    connections: Option<u32>,
    /// Messages per second, all users together
    #[arg(long, value_name = "R")]
    rate: Option<f64>,
    /// How long messages are sent: 10s, 500ms, 2m, or seconds
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// hold: connections that exchange messages; default: 1,000, or a tenth of few
    #[arg(long, value_name = "N")]
    active: Option<u32>,
    /// hold: connections opened per second; default: 10,000
    #[arg(long, value_name = "R")]
    ramp: Option<u32>,
    /// hold: how long all are quiet between the last login and the first message; default: 60s
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    settle: Option<Duration>,
    /// hold: a third into --duration, cut all quiet connections at once and see them come back
    #[arg(long)]
    cut: bool,
    /// hold: interval between heartbeats of a connection, in whole seconds; default: 60s
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    heartbeat: Option<Duration>,
    /// Bytes of a message body
    #[arg(long, value_name = "BYTES")]
    size: Option<usize>,
    /// How long accepted messages may take to arrive after the last was sent
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    drain: Option<Duration>,
    /// How late 99 of 100 messages may be sent before the result is invalid
    #[arg(long, value_name = "T", value_parser = parse_duration, default_value = "10ms")]
    pub slip_max: Duration,
    /// Makes partners and order of a plan repeatable
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
    /// One worker thread pinned to each of these, e.g. 1 or 0,2-3; default: one thread, not pinned
    #[arg(long, value_name = "LIST", value_parser = parse_cpus)]
    pub cpus: Option<Cpus>,
    /// Device number of the test users
    #[arg(long, value_name = "D", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub device: u16,
    /// Process to account CPU and memory to; default: the local one that listens on the target
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
    /// Write the result to FILE as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Say how far the run is on standard error even when that is no terminal
    #[arg(long)]
    pub progress: bool,
}

/// Why a command line cannot be run.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum BadUse {
    #[error("there is no plan `{name}`; the plans are\n{list}")]
    UnknownPlan { name: String, list: String },
    #[error("{flag} is {value}, but must be {range}")]
    OutOfRange {
        flag: &'static str,
        value: String,
        range: String,
    },
    #[error("{flag} belongs to the plan `hold`, not to `{plan}`")]
    NotOfPlan {
        flag: &'static str,
        plan: &'static str,
    },
}

impl Args {
    /// The plan by its name, with the flags applied, checked.
    pub(crate) fn plan(&self) -> Result<Plan, BadUse> {
        let mut plan = Plan::named(&self.plan).ok_or_else(|| BadUse::UnknownPlan {
            name: self.plan.clone(),
            list: Plan::list(),
        })?;
        plan.connections = self.connections.unwrap_or(plan.connections);
        plan.rate_per_s = self.rate.unwrap_or(plan.rate_per_s);
        plan.duration = self.duration.unwrap_or(plan.duration);
        plan.body_bytes = self.size.unwrap_or(plan.body_bytes);
        plan.drain = self.drain.unwrap_or(plan.drain);

        // A worker needs two users, so that they have somebody to write to.
        let connections_min = 2 * self.workers() as u32;
        if !(connections_min..=CONNECTIONS_MAX).contains(&plan.connections) {
            return Err(out_of_range(
                "--connections",
                plan.connections,
                format!("{connections_min} to {CONNECTIONS_MAX} with this many workers"),
            ));
        }
        // Written so that NaN is refused too.
        let rate_fits = plan.rate_per_s > 0.0 && plan.rate_per_s <= RATE_MAX;
        if !rate_fits {
            let range = format!("above 0 and at most {RATE_MAX}");
            return Err(out_of_range("--rate", plan.rate_per_s, range));
        }
        if plan.duration.is_zero() || plan.duration > DURATION_MAX {
            let range = "above 0 and at most 7 days".to_owned();
            return Err(out_of_range(
                "--duration",
                self.seconds(plan.duration),
                range,
            ));
        }
        if plan.drain > DURATION_MAX {
            let range = "at most 7 days".to_owned();
            return Err(out_of_range("--drain", self.seconds(plan.drain), range));
        }
        if !(BODY_BYTES_MIN..=BODY_BYTES_MAX).contains(&plan.body_bytes) {
            return Err(out_of_range(
                "--size",
                plan.body_bytes,
                format!(
                    "{BODY_BYTES_MIN} to {BODY_BYTES_MAX}: the verifier's fields take {BODY_BYTES_MIN}"
                ),
            ));
        }
        plan.hold = self.hold(&plan)?;
        Ok(plan)
    }

    /// The part of the plan `hold`, with its flags applied; other plans have no such flags.
    fn hold(&self, plan: &Plan) -> Result<Option<Hold>, BadUse> {
        let Some(mut hold) = plan.hold else {
            let given = [
                ("--active", self.active.is_some()),
                ("--ramp", self.ramp.is_some()),
                ("--settle", self.settle.is_some()),
                ("--cut", self.cut),
                ("--heartbeat", self.heartbeat.is_some()),
            ];
            return match given.iter().find(|(_, given)| *given) {
                Some((flag, _)) => Err(BadUse::NotOfPlan {
                    flag,
                    plan: plan.name,
                }),
                None => Ok(None),
            };
        };
        let active_min = 2 * self.workers() as u32;
        let active_max = plan.connections.saturating_sub(1);
        let active_default = hold.active.min(plan.connections / 10).max(active_min);
        hold.active = self.active.unwrap_or(active_default);
        if !(active_min..=active_max).contains(&hold.active) {
            let range = format!("{active_min} to {active_max}: at least one is only held");
            return Err(out_of_range("--active", hold.active, range));
        }
        hold.ramp_per_s = self.ramp.unwrap_or(hold.ramp_per_s);
        if !(1..=RAMP_PER_S_MAX).contains(&hold.ramp_per_s) {
            let range = format!("1 to {RAMP_PER_S_MAX} per second");
            return Err(out_of_range("--ramp", hold.ramp_per_s, range));
        }
        hold.settle = self.settle.unwrap_or(hold.settle);
        if hold.settle > DURATION_MAX {
            let range = "at most 7 days".to_owned();
            return Err(out_of_range("--settle", self.seconds(hold.settle), range));
        }
        if let Some(heartbeat) = self.heartbeat {
            let whole = heartbeat.subsec_nanos() == 0;
            let seconds = u16::try_from(heartbeat.as_secs()).unwrap_or(u16::MAX);
            if !whole || !(1..=HEARTBEAT_S_MAX).contains(&seconds) {
                let range = format!("1 to {HEARTBEAT_S_MAX} whole seconds");
                return Err(out_of_range("--heartbeat", self.seconds(heartbeat), range));
            }
            hold.heartbeat_s = seconds;
        }
        hold.cut = self.cut;
        Ok(Some(hold))
    }

    /// The file with the signing key.
    pub(crate) fn key_file(&self) -> PathBuf {
        match &self.key_file {
            Some(file) => file.clone(),
            None => self.data.join(KEY_FILE),
        }
    }

    pub(crate) fn workers(&self) -> usize {
        self.cpus.as_ref().map_or(1, |cpus| cpus.0.len())
    }

    fn seconds(&self, duration: Duration) -> String {
        format!("{} s", duration.as_secs_f64())
    }
}

fn out_of_range(flag: &'static str, value: impl ToString, range: String) -> BadUse {
    BadUse::OutOfRange {
        flag,
        value: value.to_string(),
        range,
    }
}

/// Processors, each named once, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cpus(pub Vec<usize>);

/// The highest processor number that a CPU set can hold, plus one.
const CPUS_MAX: usize = 1_024;

fn parse_cpus(text: &str) -> Result<Cpus, String> {
    let number = |text: &str| match text.trim().parse::<usize>() {
        Ok(cpu) if cpu < CPUS_MAX => Ok(cpu),
        _ => Err(format!(
            "`{text}` is not a processor number below {CPUS_MAX}"
        )),
    };
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let range = match part.split_once('-') {
            Some((first, last)) => number(first)?..=number(last)?,
            None => number(part)?..=number(part)?,
        };
        if range.is_empty() {
            return Err(format!("the range `{part}` ends before it starts"));
        }
        for cpu in range {
            if cpus.contains(&cpu) {
                return Err(format!("processor {cpu} is named twice"));
            }
            cpus.push(cpu);
        }
    }
    Ok(Cpus(cpus))
}

pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let scale = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err(format!("`{unit}` is not a unit: use ms, s, m or h")),
    };
    let seconds = number
        .parse::<f64>()
        .map_err(|_| format!("`{text}` is not a time"))?
        * scale;
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("`{text}` is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(line: &str) -> Result<Plan, BadUse> {
        let args = std::iter::once("portico-loadgen").chain(line.split_whitespace());
        Args::try_parse_from(args).expect("well-formed").plan()
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn flags_override_the_plan() {
        let got = plan("relay --connections 64 --rate 500 --duration 90s --size 64 --drain 3");
        let expected = Plan {
            connections: 64,
            rate_per_s: 500.0,
            duration: Duration::from_secs(90),
            body_bytes: 64,
            drain: Duration::from_secs(3),
            ..Plan::named("relay").expect("built in")
        };
        assert_eq!(got, Ok(expected));
        assert_eq!(plan("").map(|plan| plan.name), Ok("smoke"));
    }

    #[test]
    fn few_connections_have_fewer_active_ones() {
        let hold = |line: &str| plan(line).expect(line).hold.expect(line);
        assert_eq!(hold("hold").active, 1_000);
        assert_eq!(hold("hold --connections 500").active, 50);
        assert_eq!(hold("hold --connections 5").active, 2);
        let all = "hold --active 10 --ramp 7 --settle 0s --cut --heartbeat 30s";
        let expected = Hold {
            active: 10,
            ramp_per_s: 7,
            settle: Duration::ZERO,
            cut: true,
            heartbeat_s: 30,
        };
        assert_eq!(hold(all), expected);
    }

    #[test]
    fn values_out_of_range_name_the_flag() {
        for (line, flag) in [
            ("smoke --connections 1", "--connections"),
            ("smoke --connections 3 --cpus 0,1", "--connections"),
            ("smoke --connections 5000000", "--connections"),
            ("smoke --rate 0", "--rate"),
            ("smoke --rate nan", "--rate"),
            ("smoke --duration 0s", "--duration"),
            ("smoke --duration 200h", "--duration"),
            ("smoke --size 55", "--size"),
            ("smoke --size 64000", "--size"),
            ("hold --active 1", "--active"),
            ("hold --connections 50 --active 50", "--active"),
            ("hold --connections 2", "--active"),
            ("hold --ramp 0", "--ramp"),
            ("hold --settle 200h", "--settle"),
            ("hold --heartbeat 500ms", "--heartbeat"),
            ("hold --heartbeat 2h", "--heartbeat"),
            ("relay --cut", "--cut"),
            ("smoke --active 10", "--active"),
        ] {
            let message = plan(line).expect_err(line).to_string();
            assert!(message.starts_with(flag), "{line}: {message}");
        }
    }

    #[test]
    fn an_unknown_plan_is_answered_with_the_list() {
        let message = plan("rely").expect_err("no such plan").to_string();
        for part in ["`rely`", "smoke", "relay", "hold"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn durations_and_processors_are_read() {
        for (text, ms) in [
            ("500ms", 500),
            ("10", 10_000),
            ("1.5s", 1_500),
            ("2m", 120_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(ms)),
                "{text}"
            );
        }
        for text in ["", "s", "5x", "1.2.3", "-1s", "1e3"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(parse_cpus("1"), Ok(Cpus(vec![1])));
        assert_eq!(parse_cpus("4,0-2"), Ok(Cpus(vec![4, 0, 1, 2])));
        for text in ["", "a", "3-1", "1,1", "1024", "0-"] {
            assert!(parse_cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_key_is_named_or_found_in_the_data_directory() {
        let key_file = |line: &str| {
            let args = std::iter::once("portico-loadgen").chain(line.split_whitespace());
            Args::try_parse_from(args).map(|args| args.key_file())
        };
        assert_eq!(
            key_file("--data d").expect("valid"),
            PathBuf::from("d/auth-key.pem")
        );
        assert_eq!(key_file("--key-file k").expect("valid"), PathBuf::from("k"));
        assert!(key_file("--key-file k --data d").is_err());
    }
}
