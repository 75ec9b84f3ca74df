//! Plans: what is sent, how fast, who talks to whom, and what happens to connections meanwhile.
//!
//! A plan is a TOML file; those in `plans/` are built in. What all plans have stands at the top, and
//! a table for each behaviour that only some have: how messages follow each other (none: pairs and
//! partners on a schedule; `pingpong`, `fanout`, `groups`), what is done to connections (`storm`,
//! `slow-readers`, `flap`), what people are like (`mixed`), what they do besides (`presence`, `typing`,
//! `history`), `hold`, which has an engine of its own,
//! and what lies beneath the protocol (`tls`). [`text`] reads and writes the files, [`check`] refuses what cannot be carried out, [`flows`]
//! says who writes to whom.

mod check;
mod crowds;
mod flows;
mod life;
mod text;

pub(crate) use check::{BadPlan, CONNECTIONS_MAX, RATE_MAX};
pub(crate) use crowds::{Crowds, WRITERS};
pub(crate) use flows::{Flows, Groups};
pub(crate) use life::{GroupPlan, HistoryPlan, PresencePlan, TypingPlan};
pub(crate) use text::{parse_duration, print};

use crate::report::grouped;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// A workload. The built-in ones are starting points; flags override every field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    pub name: String,
    #[serde(default)]
    pub about: String,
    #[serde(default)]
    pub protocol: Protocol,
    #[serde(default = "one")]
    pub seed: u64,
    pub connections: u32,
    #[serde(rename = "rate", default)]
    pub rate_per_s: f64,
    #[serde(with = "text::time")]
    pub duration: Duration,
    /// How long accepted messages may take to arrive after the last one was sent.
    #[serde(with = "text::time", default = "drain_default")]
    pub drain: Duration,
    #[serde(rename = "size", default = "body_bytes_default")]
    pub body_bytes: usize,
    /// Recipients per sender: the first is its pair, the others are drawn.
    #[serde(default = "one_32")]
    pub partners: u32,
    #[serde(default)]
    pub pace: Pace,
    #[serde(default = "one_32")]
    pub burst: u32,
    #[serde(default)]
    pub spin: bool,
    #[serde(default)]
    pub acks: Acks,
    /// The target discards what it gets: nothing is expected to arrive, and the verdict is about the
    /// generator alone.
    #[serde(default)]
    pub unverified: bool,
    /// Most connections are only held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pingpong: Option<Pingpong>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fanout: Option<Fanout>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storm: Option<Storm>,
    #[serde(rename = "slow-readers")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_readers: Option<SlowReaders>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flap: Option<Flap>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixed: Option<Mixed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<GroupPlan>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence: Option<PresencePlan>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub typing: Option<TypingPlan>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<HistoryPlan>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// What is spoken with the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Protocol {
    #[default]
    Portico,
    MqttQos0,
    MqttQos1,
    Nats,
    Redis,
    /// Bytes that a relay copies without parsing them.
    Relay,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portico => "portico",
            Self::MqttQos0 => "mqtt-qos0",
            Self::MqttQos1 => "mqtt-qos1",
            Self::Nats => "nats",
            Self::Redis => "redis",
            Self::Relay => "relay",
        })
    }
}

/// What makes the next message due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pace {
    /// The clock, whatever became of the messages before (open loop).
    #[default]
    Open,
    /// The end of the round before (closed loop): for the cost of a message, not for latency.
    Rounds,
}

/// How much is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Acks {
    /// Each message is answered, each batch of arrivals acknowledged.
    #[default]
    Full,
    /// As little as the protocol needs: no answers, an acknowledgement per half receive window.
    Minimal,
}

/// What the plan `hold` has besides.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hold {
    /// Connections that exchange the messages; the others say nothing but PING.
    pub active: u32,
    /// Connections opened per second.
    #[serde(rename = "ramp")]
    pub ramp_per_s: u32,
    /// How long all are quiet before the first message.
    #[serde(with = "text::time")]
    pub settle: Duration,
    /// All that are only held are cut at once, a third into the sending.
    #[serde(default)]
    pub cut: bool,
    /// Seconds between two PINGs.
    #[serde(rename = "heartbeat", with = "text::whole_seconds")]
    pub heartbeat_s: u16,
}

/// Each pair has one message under way: the next goes when the answer to it has come.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pingpong {
    /// Between an answer and the next message.
    #[serde(with = "text::time")]
    pub think: Duration,
}

/// Groups of one sender and so many members, to each of whom every message goes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fanout {
    pub members: u32,
}

/// Many connections are cut at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Storm {
    /// After the first message.
    #[serde(with = "text::time")]
    pub at: Duration,
    /// Of the connections, 0 to 1.
    pub share: f64,
    /// How long each waits before it comes back.
    #[serde(with = "text::time")]
    pub away: Duration,
}

/// Some stop reading for a time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SlowReaders {
    /// After the first message.
    #[serde(with = "text::time")]
    pub at: Duration,
    #[serde(with = "text::time")]
    pub lasts: Duration,
    /// Of the connections, 0 to 1.
    pub share: f64,
}

/// Connections come and go, as those of phones do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Flap {
    /// Of the connections, cut per second.
    pub share: f64,
    /// How long each stays away.
    #[serde(with = "text::time")]
    pub away: Duration,
}

/// People: they write more or less, longer or shorter, think before they answer, come late, and
/// read what they got after a while.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mixed {
    /// Body sizes in bytes, each with its share of the messages.
    pub sizes: Vec<(usize, f64)>,
    /// Shares of the users, each with how often it writes compared with one of weight 1.
    pub writers: Vec<(f64, u32)>,
    /// Of the messages within a pair, how many are answered.
    pub answers: f64,
    /// At most so long, evenly drawn, before an answer.
    #[serde(with = "text::time")]
    pub think: Duration,
    /// Of the users, how many come only within the first half of the run.
    pub offline: f64,
    /// From arrival to the read mark; 0: nothing is marked.
    #[serde(with = "text::time")]
    pub read_delay: Duration,
}

/// TLS beneath the protocol.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    /// Certificate to trust; `None`: that of the gateway's data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Whose certificate is expected; `None`: the target's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Share of the handshakes that offer a ticket, 0 to 1; `None`: of those that come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<f64>,
}

const fn one() -> u64 {
    1
}

const fn one_32() -> u32 {
    1
}

const fn body_bytes_default() -> usize {
    128
}

const fn drain_default() -> Duration {
    Duration::from_secs(10)
}

const BUILT_IN: [(&str, &str); 13] = [
    ("smoke", include_str!("../plans/smoke.toml")),
    ("relay", include_str!("../plans/relay.toml")),
    ("pingpong", include_str!("../plans/pingpong.toml")),
    ("fanout", include_str!("../plans/fanout.toml")),
    ("storm", include_str!("../plans/storm.toml")),
    ("slow-readers", include_str!("../plans/slow-readers.toml")),
    ("flap", include_str!("../plans/flap.toml")),
    ("mixed", include_str!("../plans/mixed.toml")),
    ("hold", include_str!("../plans/hold.toml")),
    ("groups", include_str!("../plans/groups.toml")),
    (
        "presence-storm",
        include_str!("../plans/presence-storm.toml"),
    ),
    ("typing", include_str!("../plans/typing.toml")),
    ("history", include_str!("../plans/history.toml")),
];

impl Plan {
    /// A built-in plan.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let (_, text) = BUILT_IN.iter().find(|(known, _)| *known == name)?;
        // Each of them is read in a test.
        text::read(text).ok()
    }

    pub(crate) fn from_file(file: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(file)
            .with_context(|| format!("cannot read the plan {}", file.display()))?;
        text::read(&text).with_context(|| format!("{} is not a plan", file.display()))
    }

    /// The built-in plans with a line about each.
    pub(crate) fn list() -> String {
        BUILT_IN
            .iter()
            .filter_map(|(name, _)| Self::named(name))
            .map(|plan| format!("  {:<15} {}\n", plan.name, plan.about))
            .collect()
    }

    /// Connections that must not be torn apart between workers.
    pub(crate) fn unit(&self) -> u32 {
        self.fanout
            .map_or(2, |fanout| fanout.members.saturating_add(1))
    }

    /// How many messages are asked for, before `of 128 bytes`.
    pub(crate) fn pace_in_words(&self) -> String {
        match (self.pace, self.pingpong) {
            (Pace::Rounds, _) => "rounds of messages".to_owned(),
            (_, Some(_)) => "messages in turn".to_owned(),
            (Pace::Open, None) => format!("{} messages/s", grouped(self.rate_per_s as u64)),
        }
    }

    /// Latency from the intended time means something.
    pub(crate) fn measures_latency(&self) -> bool {
        self.pace == Pace::Open
    }

    /// The workers never sleep, so that how busy they are says nothing.
    pub(crate) fn spins(&self) -> bool {
        self.spin || self.pace == Pace::Rounds
    }

    /// Messages may wait for users who are away.
    pub(crate) fn has_absent(&self) -> bool {
        let offline = self.mixed.as_ref().is_some_and(|mixed| mixed.offline > 0.0);
        self.storm.is_some() || self.flap.is_some() || offline
    }

    /// From which time after the first message to which other something is done to connections.
    /// Whoever it is not done to is judged apart in between; the end of a storm is when all are
    /// back.
    pub(crate) fn disturbance(&self) -> Option<(Duration, Option<Duration>)> {
        match (self.storm, self.slow_readers, self.flap) {
            (Some(storm), ..) => Some((storm.at, None)),
            (_, Some(slow), _) => Some((slow.at, Some(slow.at + slow.lasts))),
            (.., Some(_)) => Some((Duration::ZERO, Some(self.duration))),
            _ => None,
        }
    }

    /// The size of a message's body: the same for the same seed, however the run goes.
    pub(crate) fn body_bytes_of(&self, flow: u32, counter: u32) -> usize {
        let Some(mixed) = self.mixed.as_ref().filter(|mixed| !mixed.sizes.is_empty()) else {
            return self.body_bytes;
        };
        let name = u64::from(flow) << 32 | u64::from(counter);
        let drawn = crate::random::unit(crate::random::mix(self.seed ^ name));
        let total: f64 = mixed.sizes.iter().map(|(_, share)| share).sum();
        let mut left = drawn * total;
        for (bytes, share) in &mixed.sizes {
            left -= share;
            if left < 0.0 {
                return *bytes;
            }
        }
        mixed
            .sizes
            .last()
            .map_or(self.body_bytes, |(bytes, _)| *bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_plan_is_read_under_its_own_name_and_can_be_carried_out() {
        for (name, text) in BUILT_IN {
            let plan = text::read(text).expect(name);
            assert_eq!(plan.name, name);
            assert_eq!(plan.check(1), Ok(()), "{name}");
            assert!(!plan.about.is_empty());
        }
    }

    /// So that whoever opens one sees everything that can be set.
    #[test]
    fn every_built_in_plan_is_written_as_it_is_printed() {
        for (name, text) in BUILT_IN {
            let plan = text::read(text).expect(name);
            assert_eq!(print(&plan).expect(name), text, "{name}");
        }
    }

    #[test]
    fn sizes_are_drawn_by_their_shares_and_fixed_by_the_seed() {
        let mut plan = Plan::named("mixed").expect("built in");
        if let Some(mixed) = &mut plan.mixed {
            mixed.sizes = vec![(64, 3.0), (1_000, 1.0)];
        }
        let sizes =
            |plan: &Plan| -> Vec<usize> { (0..4_000).map(|n| plan.body_bytes_of(7, n)).collect() };
        let drawn = sizes(&plan);
        let small = drawn.iter().filter(|bytes| **bytes == 64).count();
        assert!((2_800..3_200).contains(&small), "{small}");
        assert!(drawn.iter().all(|bytes| [64, 1_000].contains(bytes)));
        assert_eq!(drawn, sizes(&plan));
        plan.seed += 1;
        assert_ne!(drawn, sizes(&plan));
        let relay = Plan::named("relay").expect("built in");
        assert_eq!(relay.body_bytes_of(7, 8), relay.body_bytes);
    }
}
