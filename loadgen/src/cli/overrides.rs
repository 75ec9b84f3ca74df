//! The flags that override fields of a plan. One that the plan has no use for is refused: whoever
//! gave it expects something that would not happen.

use crate::plan::{Acks, BadPlan, Pace, Plan, Protocol, parse_duration};
use clap::Args;
use std::{path::PathBuf, str::FromStr, time::Duration};

#[derive(Debug, Default, Args)]
pub(crate) struct Overrides {
    /// What the target speaks
    #[arg(long, value_enum, value_name = "P")]
    protocol: Option<Protocol>,
    /// Speak TLS with the target
    #[arg(long)]
    tls: bool,
    /// Certificate to trust (PEM): an authority's, or the gateway's own if it is self-signed;
    /// default: tls-cert.pem in the data directory, where `serve --tls-self-signed` leaves it
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Whose certificate is expected; default: the host of --target
    #[arg(long, value_name = "NAME", alias = "server-name")]
    tls_name: Option<String>,
    /// Share of the handshakes that offer a ticket, 0 to 1; default: those of connections that come
    /// back
    #[arg(long, value_name = "X")]
    tls_resume: Option<f64>,
    /// Connected users
    #[arg(long, value_name = "N")]
    connections: Option<u32>,
    /// Messages per second, all users together
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    rate: Option<f64>,
    /// How long messages are sent: 10s, 500ms, 2m, or seconds
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Bytes of a message body
    #[arg(long, value_name = "BYTES")]
    size: Option<usize>,
    /// How long accepted messages may take to arrive after the last was sent
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    drain: Option<Duration>,
    /// Recipients per sender: its pair, and others that are drawn
    #[arg(long, value_name = "N")]
    partners: Option<u32>,
    /// What makes messages due: the clock, or the end of the round before (for CPU per message)
    #[arg(long, value_enum, value_name = "PACE")]
    pace: Option<Pace>,
    /// Messages of one sender that are due together and leave in one write; --rate counts messages
    #[arg(long, value_name = "B")]
    burst: Option<u32>,
    /// Never sleep in the kernel
    #[arg(long)]
    spin: bool,
    /// full: each message is answered; minimal: as little as the protocol needs
    #[arg(long, value_enum, value_name = "ACKS")]
    acks: Option<Acks>,
    /// The target discards (`sink --answer none`): nothing is expected to arrive, and the verdict is
    /// about this program alone; with --acks minimal
    #[arg(long)]
    unverified: bool,
    /// Makes partners, order, sizes and cuts of a plan repeatable
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
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
    /// fanout: members of a group, each of whom gets every message
    #[arg(long, value_name = "M")]
    members: Option<u32>,
    /// fanout: so many groups, each with its sender; sets --connections
    #[arg(long, value_name = "G", conflicts_with = "connections")]
    groups: Option<u32>,
    /// groups: members and their share of the groups, e.g. 8:0.6,32:0.3,256:0.1
    #[arg(long, value_name = "LIST", value_parser = pairs::<u32, f64>)]
    group_sizes: Option<Pairs<u32, f64>>,
    /// groups: how many a user is in, on average
    #[arg(long, value_name = "N")]
    per_user: Option<u32>,
    /// groups: members removed per second, all groups together; each is added again after 500 ms
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    changes: Option<f64>,
    /// presence-storm: users that each of them watches
    #[arg(long, value_name = "N")]
    contacts: Option<u32>,
    /// presence-storm: when all are cut again, and watch from then on
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    again: Option<Duration>,
    /// typing: signals per second, all users together
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    signals: Option<f64>,
    /// history: pages per second, all users together
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pages: Option<f64>,
    /// history: entries of a page
    #[arg(long, value_name = "N")]
    limit: Option<u16>,
    /// pingpong: between an answer and the next message; mixed: at most, before an answer
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    think: Option<Duration>,
    /// storm, slow-readers: when it begins, after the first message
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    at: Option<Duration>,
    /// slow-readers: how long they do not read
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    lasts: Option<Duration>,
    /// storm, slow-readers: of the connections, 0 to 1; flap: cut each second
    #[arg(long, value_name = "X")]
    share: Option<f64>,
    /// storm, flap: how long those who were cut stay away
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    away: Option<Duration>,
    /// mixed: bytes of a body and their share of the messages, e.g. 64:0.7,1000:0.3
    #[arg(long, value_name = "LIST", value_parser = pairs::<usize, f64>)]
    sizes: Option<Pairs<usize, f64>>,
    /// mixed: shares of the users and how often they write, e.g. 0.1:10,0.9:1
    #[arg(long, value_name = "LIST", value_parser = pairs::<f64, u32>)]
    writers: Option<Pairs<f64, u32>>,
    /// mixed: share of the messages within pairs that are answered
    #[arg(long, value_name = "X")]
    answers: Option<f64>,
    /// mixed: share of the users who come within the first half of the run
    #[arg(long, value_name = "X")]
    offline: Option<f64>,
    /// mixed: from arrival to the read mark; 0s: nothing is marked
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    read_delay: Option<Duration>,
}

impl Overrides {
    /// Changes what flags were given for. `workers` threads will carry the plan out.
    pub(crate) fn apply(&self, plan: &mut Plan, workers: usize) -> Result<(), BadPlan> {
        self.refuse_strangers(plan)?;
        set(&mut plan.protocol, self.protocol);
        set(&mut plan.connections, self.connections);
        set(&mut plan.rate_per_s, self.rate);
        set(&mut plan.duration, self.duration);
        set(&mut plan.body_bytes, self.size);
        set(&mut plan.drain, self.drain);
        set(&mut plan.partners, self.partners);
        set(&mut plan.pace, self.pace);
        set(&mut plan.burst, self.burst);
        plan.spin |= self.spin;
        set(&mut plan.acks, self.acks);
        plan.unverified |= self.unverified;
        set(&mut plan.seed, self.seed);
        self.apply_tls(plan)?;
        self.apply_hold(plan, workers)?;
        if let Some(fanout) = &mut plan.fanout {
            set(&mut fanout.members, self.members);
            if let Some(groups) = self.groups {
                // Too many are refused by the check.
                let unit = fanout.members.saturating_add(1);
                plan.connections = groups.saturating_mul(unit);
            }
        }
        self.apply_life(plan);
        if let Some(pingpong) = &mut plan.pingpong {
            set(&mut pingpong.think, self.think);
        }
        if let Some(storm) = &mut plan.storm {
            set(&mut storm.at, self.at);
            set(&mut storm.share, self.share);
            set(&mut storm.away, self.away);
        }
        if let Some(slow) = &mut plan.slow_readers {
            set(&mut slow.at, self.at);
            set(&mut slow.lasts, self.lasts);
            set(&mut slow.share, self.share);
        }
        if let Some(flap) = &mut plan.flap {
            set(&mut flap.share, self.share);
            set(&mut flap.away, self.away);
        }
        if let Some(mixed) = &mut plan.mixed {
            if self.size.is_some() {
                mixed.sizes.clear();
            }
            set(&mut mixed.sizes, self.sizes.clone().map(|pairs| pairs.0));
            set(
                &mut mixed.writers,
                self.writers.clone().map(|pairs| pairs.0),
            );
            set(&mut mixed.answers, self.answers);
            set(&mut mixed.think, self.think);
            set(&mut mixed.offline, self.offline);
            set(&mut mixed.read_delay, self.read_delay);
        }
        Ok(())
    }

    pub(super) fn rate_or_duration(&self) -> Option<&'static str> {
        match (self.rate, self.duration) {
            (Some(_), _) => Some("--rate"),
            (None, Some(_)) => Some("--duration"),
            (None, None) => None,
        }
    }

    fn apply_life(&self, plan: &mut Plan) {
        if let Some(groups) = &mut plan.groups {
            let sizes = self.group_sizes.clone().map(|pairs| pairs.0);
            set(&mut groups.sizes, sizes);
            set(&mut groups.per_user, self.per_user);
            set(&mut groups.changes, self.changes);
        }
        if let Some(presence) = &mut plan.presence {
            set(&mut presence.contacts, self.contacts);
            set(&mut presence.again, self.again);
        }
        if let Some(typing) = &mut plan.typing {
            set(&mut typing.signals, self.signals);
        }
        if let Some(history) = &mut plan.history {
            set(&mut history.pages, self.pages);
            set(&mut history.limit, self.limit);
        }
    }

    /// Flags of groups, presence, typing and history: given, fitting, to what they belong.
    fn life_flags(&self, plan: &Plan) -> [(&'static str, bool, bool, &'static str); 8] {
        let groups = (plan.groups.is_some(), "the plan `groups`");
        let presence = (plan.presence.is_some(), "the plan `presence-storm`");
        let history = (plan.history.is_some(), "the plan `history`");
        let typing = (plan.typing.is_some(), "the plan `typing`");
        [
            ("--group-sizes", self.group_sizes.is_some(), groups),
            ("--per-user", self.per_user.is_some(), groups),
            ("--changes", self.changes.is_some(), groups),
            ("--contacts", self.contacts.is_some(), presence),
            ("--again", self.again.is_some(), presence),
            ("--signals", self.signals.is_some(), typing),
            ("--pages", self.pages.is_some(), history),
            ("--limit", self.limit.is_some(), history),
        ]
        .map(|(flag, given, (fits, of))| (flag, given, fits, of))
    }

    fn apply_tls(&self, plan: &mut Plan) -> Result<(), BadPlan> {
        if self.tls {
            plan.tls.get_or_insert_default();
        }
        let flags = [
            ("--tls-ca", self.tls_ca.is_some()),
            ("--tls-name", self.tls_name.is_some()),
            ("--tls-resume", self.tls_resume.is_some()),
        ];
        let given = flags.iter().find(|(_, given)| *given);
        let Some(tls) = &mut plan.tls else {
            return match given {
                None => Ok(()),
                Some((flag, _)) => Err(BadPlan::Conflict(format!(
                    "{flag} says how TLS is spoken: add --tls"
                ))),
            };
        };
        tls.ca = self.tls_ca.clone().or(tls.ca.take());
        tls.name = self.tls_name.clone().or(tls.name.take());
        tls.resume = self.tls_resume.or(tls.resume);
        Ok(())
    }

    fn apply_hold(&self, plan: &mut Plan, workers: usize) -> Result<(), BadPlan> {
        let connections = plan.connections;
        let Some(hold) = &mut plan.hold else {
            return Ok(());
        };
        let active_min = 2 * workers as u32;
        let active_default = hold.active.min(connections / 10).max(active_min);
        hold.active = self.active.unwrap_or(active_default);
        set(&mut hold.ramp_per_s, self.ramp);
        set(&mut hold.settle, self.settle);
        hold.cut |= self.cut;
        if let Some(heartbeat) = self.heartbeat {
            // What is no whole second is none that the check lets pass.
            let whole = heartbeat.subsec_nanos() == 0;
            let seconds = u16::try_from(heartbeat.as_secs()).ok();
            hold.heartbeat_s = seconds.filter(|_| whole).unwrap_or(0);
        }
        Ok(())
    }

    fn refuse_strangers(&self, plan: &Plan) -> Result<(), BadPlan> {
        let hold = plan.hold.is_some();
        let pingpong = plan.pingpong.is_some();
        let (fanout, mixed) = (plan.fanout.is_some(), plan.mixed.is_some());
        let (storm, slow) = (plan.storm.is_some(), plan.slow_readers.is_some());
        let flap = plan.flap.is_some();
        let rounds = self.pace.unwrap_or(plan.pace) == Pace::Rounds;
        let by_the_clock = !pingpong && !rounds;
        let clock = "plans that send by the clock (pingpong and --pace rounds follow answers)";
        let plain = "plans other than hold, whose messages are only there to be felt";
        let bursts = "plans that send by the clock or in rounds, not to hold";
        let flags = [
            ("--rate", self.rate.is_some(), by_the_clock, clock),
            ("--active", self.active.is_some(), hold, "the plan `hold`"),
            ("--ramp", self.ramp.is_some(), hold, "the plan `hold`"),
            ("--settle", self.settle.is_some(), hold, "the plan `hold`"),
            ("--cut", self.cut, hold, "the plan `hold`"),
            (
                "--heartbeat",
                self.heartbeat.is_some(),
                hold,
                "the plan `hold`",
            ),
            ("--burst", self.burst.is_some(), !hold && !pingpong, bursts),
            ("--pace", self.pace.is_some(), !hold, plain),
            ("--spin", self.spin, !hold, plain),
            ("--acks", self.acks.is_some(), !hold, plain),
            (
                "--partners",
                self.partners.is_some(),
                !fanout && plan.groups.is_none(),
                "plans without groups",
            ),
            (
                "--members",
                self.members.is_some(),
                fanout,
                "the plan `fanout`",
            ),
            (
                "--groups",
                self.groups.is_some(),
                fanout,
                "the plan `fanout`",
            ),
            (
                "--think",
                self.think.is_some(),
                pingpong || mixed,
                "the plans `pingpong` and `mixed`",
            ),
            (
                "--at",
                self.at.is_some(),
                storm || slow,
                "the plans `storm` and `slow-readers`",
            ),
            (
                "--lasts",
                self.lasts.is_some(),
                slow,
                "the plan `slow-readers`",
            ),
            (
                "--share",
                self.share.is_some(),
                storm || slow || flap,
                "the plans `storm`, `slow-readers` and `flap`",
            ),
            (
                "--away",
                self.away.is_some(),
                storm || flap,
                "the plans `storm` and `flap`",
            ),
            ("--sizes", self.sizes.is_some(), mixed, "the plan `mixed`"),
            (
                "--writers",
                self.writers.is_some(),
                mixed,
                "the plan `mixed`",
            ),
            (
                "--answers",
                self.answers.is_some(),
                mixed,
                "the plan `mixed`",
            ),
            (
                "--offline",
                self.offline.is_some(),
                mixed,
                "the plan `mixed`",
            ),
            (
                "--read-delay",
                self.read_delay.is_some(),
                mixed,
                "the plan `mixed`",
            ),
        ];
        let life = self.life_flags(plan);
        match flags
            .iter()
            .chain(&life)
            .find(|(_, given, belongs, _)| *given && !belongs)
        {
            Some((flag, _, _, of)) => Err(BadPlan::NotOfPlan {
                flag,
                of,
                plan: plan.name.clone(),
            }),
            None => Ok(()),
        }
    }
}

fn set<T>(field: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *field = given;
    }
}

/// A list of pairs, which clap would take for several values if it were a plain one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pairs<A, B>(Vec<(A, B)>);

fn pairs<A: FromStr, B: FromStr>(text: &str) -> Result<Pairs<A, B>, String> {
    let pair = |part: &str| {
        let (left, right) = part.split_once(':')?;
        Some((left.trim().parse().ok()?, right.trim().parse().ok()?))
    };
    text.split(',')
        .map(|part| pair(part).ok_or_else(|| format!("`{part}` is not NUMBER:NUMBER")))
        .collect::<Result<_, _>>()
        .map(Pairs)
}
