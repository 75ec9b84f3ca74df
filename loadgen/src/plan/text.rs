//! Plans as text: TOML with times such as `500ms`, `10s`, `2m`, and a comment for each field where
//! one is printed.

use super::Plan;
use anyhow::Context;
use std::{fmt::Write, time::Duration};

/// What each field means: table, field, comment. A test holds it to the fields that exist.
const COMMENTS: [(&str, &str, &str); 47] = [
    ("", "name", "what results call it"),
    ("", "about", "a line for the list"),
    (
        "",
        "protocol",
        "what the target speaks: portico, mqtt-qos0, mqtt-qos1, nats, redis, relay",
    ),
    (
        "",
        "seed",
        "fixes schedule, partners, sizes and whom something is done to",
    ),
    ("", "connections", "connected users"),
    ("", "rate", "messages per second, all users together"),
    ("", "duration", "how long messages are sent"),
    (
        "",
        "drain",
        "how long accepted messages may take to arrive after the last was sent",
    ),
    ("", "size", "bytes of a message body, 56 to 63,000"),
    (
        "",
        "partners",
        "recipients per sender: its pair, and others that are drawn",
    ),
    (
        "",
        "pace",
        "open: by the clock; rounds: a round when the one before has arrived",
    ),
    (
        "",
        "burst",
        "messages of one sender that are due together and leave in one write",
    ),
    ("", "spin", "workers never sleep in the kernel"),
    (
        "",
        "acks",
        "full: each message answered; minimal: no answers, half a window acknowledged at once",
    ),
    (
        "",
        "unverified",
        "the target discards: nothing is expected to arrive, the verdict is about the tester",
    ),
    ("hold", "active", "connections that exchange the messages"),
    ("hold", "ramp", "connections opened per second"),
    (
        "hold",
        "settle",
        "how long all are quiet between the last login and the first message",
    ),
    (
        "hold",
        "cut",
        "a third into the sending, cut all quiet connections at once",
    ),
    (
        "hold",
        "heartbeat",
        "between two heartbeats of a connection, whole seconds",
    ),
    (
        "pingpong",
        "think",
        "between an answer and the next message of the pair",
    ),
    (
        "fanout",
        "members",
        "of a group, besides its sender: each gets every message",
    ),
    ("storm", "at", "when they are cut, after the first message"),
    ("storm", "share", "of the connections, 0 to 1"),
    ("storm", "away", "how long each waits before it comes back"),
    (
        "slow-readers",
        "at",
        "when they stop reading, after the first message",
    ),
    ("slow-readers", "lasts", "how long they do not read"),
    (
        "slow-readers",
        "share",
        "of the connections that do, 0 to 1",
    ),
    ("flap", "share", "of the connections, cut each second"),
    ("flap", "away", "how long each stays away"),
    ("mixed", "sizes", "[bytes of a body, share of the messages]"),
    (
        "mixed",
        "writers",
        "[share of the users, how often they write compared with weight 1]",
    ),
    (
        "mixed",
        "answers",
        "share of the messages within pairs that are answered, beside the rate",
    ),
    (
        "mixed",
        "think",
        "at most so long, evenly drawn, before an answer",
    ),
    (
        "mixed",
        "offline",
        "share of the users who come within the first half of the run",
    ),
    (
        "mixed",
        "read_delay",
        "from arrival to the read mark; 0s: nothing is marked",
    ),
    (
        "groups",
        "sizes",
        "[members of a group, share of the groups]",
    ),
    ("groups", "per-user", "groups that a user is in, on average"),
    (
        "groups",
        "changes",
        "members removed per second, each added again after 500 ms",
    ),
    ("presence", "contacts", "users that each of them watches"),
    (
        "presence",
        "again",
        "when all are cut again, and watch from then on",
    ),
    (
        "typing",
        "signals",
        "per second, all users together, beside the messages",
    ),
    (
        "history",
        "pages",
        "per second, all users together, while messages flow",
    ),
    ("history", "limit", "entries of a page, 1 to 100"),
    ("tls", "ca", "certificate to trust, PEM"),
    ("tls", "name", "whose certificate is expected"),
    (
        "tls",
        "resume",
        "share of the handshakes that offer a ticket, 0 to 1",
    ),
];
/// Where comments begin.
const COMMENT_COLUMN: usize = 32;

pub(super) fn read(text: &str) -> anyhow::Result<Plan> {
    Ok(toml::from_str(text)?)
}

/// The whole plan as a file, a comment behind each field.
pub(crate) fn print(plan: &Plan) -> anyhow::Result<String> {
    let plain = toml::to_string(plan).context("the plan cannot be written as TOML")?;
    let mut out = String::new();
    let mut table = "";
    for line in plain.lines() {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            table = name;
        }
        let comment = line.split_once(" = ").and_then(|(field, _)| {
            let mut known = COMMENTS.iter();
            known.find(|(of, name, _)| *of == table && *name == field)
        });
        // Writing to a String cannot fail.
        let _ = match comment {
            Some((.., comment)) => writeln!(out, "{line:<COMMENT_COLUMN$}  # {comment}"),
            None => writeln!(out, "{line}"),
        };
    }
    Ok(out)
}

/// 10s, 500ms, 2m, 1h, or seconds without a unit.
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

/// So that [`parse_duration`] gives the same, to the microsecond.
fn format_duration(time: Duration) -> String {
    if time.subsec_nanos() == 0 {
        format!("{}s", time.as_secs())
    } else if time.subsec_micros().is_multiple_of(1_000) {
        format!("{}ms", time.as_millis())
    } else {
        format!("{}s", time.as_secs_f64())
    }
}

/// Times in a file.
pub(super) mod time {
    use super::{format_duration, parse_duration};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::time::Duration;

    pub(in crate::plan) fn serialize<S: Serializer>(
        time: &Duration,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format_duration(*time))
    }

    pub(in crate::plan) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        parse_duration(&text).map_err(D::Error::custom)
    }
}

/// Times that are kept in seconds.
pub(super) mod whole_seconds {
    use super::{format_duration, parse_duration};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::time::Duration;

    // The signature is serde's.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub(in crate::plan) fn serialize<S: Serializer>(
        seconds: &u16,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format_duration(Duration::from_secs(u64::from(*seconds))))
    }

    pub(in crate::plan) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<u16, D::Error> {
        let text = String::deserialize(from)?;
        let time = parse_duration(&text).map_err(D::Error::custom)?;
        let seconds = u16::try_from(time.as_secs()).ok();
        seconds
            .filter(|_| time.subsec_nanos() == 0)
            .ok_or_else(|| D::Error::custom(format!("`{text}` is not a time in whole seconds")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Acks, Pace, Protocol, Tls};

    fn every_field_of_tls() -> Tls {
        Tls {
            ca: Some("ca.pem".into()),
            name: Some("a.example".to_owned()),
            resume: Some(0.5),
        }
    }

    #[test]
    fn what_is_printed_is_read_as_the_same_plan() {
        for name in [
            "smoke",
            "relay",
            "pingpong",
            "fanout",
            "storm",
            "slow-readers",
            "flap",
            "mixed",
            "hold",
            "groups",
            "presence-storm",
            "typing",
            "history",
        ] {
            let mut plan = Plan::named(name).expect(name);
            plan.rate_per_s = 1_234.5;
            plan.duration = Duration::from_micros(1_500_250);
            plan.protocol = Protocol::MqttQos1;
            plan.pace = Pace::Rounds;
            plan.acks = Acks::Minimal;
            plan.spin = true;
            plan.tls = Some(every_field_of_tls());
            plan.about = "with \"quotes\" and # signs".to_owned();
            let printed = print(&plan).expect(name);
            assert_eq!(read(&printed).expect(name), plan, "{printed}");
        }
    }

    #[test]
    fn every_field_has_a_comment_and_every_comment_a_field() {
        let mut used = Vec::new();
        for name in [
            "fanout",
            "pingpong",
            "storm",
            "slow-readers",
            "flap",
            "mixed",
            "hold",
            "groups",
            "presence-storm",
            "typing",
            "history",
        ] {
            let mut plan = Plan::named(name).expect(name);
            plan.tls = Some(every_field_of_tls());
            for line in print(&plan).expect(name).lines() {
                if line.contains(" = ") {
                    let comment = line.rsplit("  # ").next().expect("a comment");
                    let known = COMMENTS.iter().position(|(.., text)| *text == comment);
                    used.push(known.unwrap_or_else(|| panic!("no comment in: {line}")));
                }
            }
        }
        for (number, (table, field, _)) in COMMENTS.iter().enumerate() {
            let shown = used.contains(&number);
            assert!(shown, "{table}.{field} does not exist");
        }
    }

    #[test]
    fn unknown_fields_and_bad_times_are_named() {
        let relay = print(&Plan::named("relay").expect("built in")).expect("printed");
        for (more, part) in [
            ("rat = 5\n", "rat"),
            ("[storm]\nat = \"5x\"\nshare = 1.0\naway = \"1s\"\n", "5x"),
            ("[flap]\nshare = 0.1\naway = \"1s\"\nback = 1\n", "back"),
            (
                "[hold]\nactive = 10\nramp = 10\nsettle = \"1s\"\nheartbeat = \"1.5s\"\n",
                "whole seconds",
            ),
        ] {
            let error = read(&format!("{relay}{more}")).expect_err(more).to_string();
            assert!(error.contains(part), "{more}: {error}");
        }
    }

    #[test]
    fn a_few_fields_are_enough() {
        let plan = read("name = \"own\"\nconnections = 4\nrate = 10\nduration = \"1s\"\n");
        let plan = plan.expect("valid");
        assert_eq!((plan.partners, plan.burst, plan.seed), (1, 1, 1));
        assert_eq!(plan.body_bytes, 128);
        assert_eq!(plan.check(1), Ok(()));
    }

    #[test]
    fn durations_are_read() {
        for (text, ms) in [
            ("500ms", 500),
            ("10", 10_000),
            ("1.5s", 1_500),
            ("2m", 120_000),
        ] {
            let expected = Duration::from_millis(ms);
            assert_eq!(parse_duration(text), Ok(expected), "{text}");
            assert_eq!(parse_duration(&format_duration(expected)), Ok(expected));
        }
        for text in ["", "s", "5x", "1.2.3", "-1s", "1e3"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
