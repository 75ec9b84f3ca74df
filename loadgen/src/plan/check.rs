//! What cannot be carried out is refused before anything is connected, in a sentence that names the
//! flag: flags and fields of files have the same names.

mod life;

use super::{Acks, Pace, Plan, Protocol};
use crate::{fleet::promises, payload::BODY_BYTES_MIN};
use std::{ops::RangeInclusive, time::Duration};

/// Users of one run get consecutive ids below a power of two; see `run.rs`.
pub(crate) const CONNECTIONS_MAX: u32 = 4_000_000;
/// Room for the Envelope around a body.
const BODY_BYTES_MAX: usize = 63_000;
pub(crate) const RATE_MAX: f64 = 10_000_000.0;
const RAMP_PER_S_MAX: u32 = 1_000_000;
const HEARTBEAT_S_MAX: u16 = 3_600;
const DURATION_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);
const PARTNERS_MAX: u32 = 1_000;
/// More would outgrow what a gateway takes from one connection at once.
const BURST_MAX: u32 = 1_024;
const MEMBERS_MAX: u32 = 100_000;
const WEIGHT_MAX: u32 = 1_000;
const SHARES_MAX: usize = 64;

/// Why a plan cannot be carried out.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum BadPlan {
    #[error("{flag} is {value}, but must be {range}")]
    OutOfRange {
        flag: &'static str,
        value: String,
        range: String,
    },
    #[error("{flag} belongs to {of}, not to `{plan}`")]
    NotOfPlan {
        flag: &'static str,
        of: &'static str,
        plan: String,
    },
    #[error("{0}")]
    Conflict(String),
}

impl Plan {
    /// `workers` threads will carry it out.
    pub(crate) fn check(&self, workers: usize) -> Result<(), BadPlan> {
        self.check_combination()?;
        self.check_size(workers as u32)?;
        self.check_schedule()?;
        self.check_hold(workers as u32)?;
        self.check_disturbances()?;
        self.check_life(workers as u32)?;
        if let Some(resume) = self.tls.as_ref().and_then(|tls| tls.resume) {
            share("--tls-resume", resume)?;
        }
        self.check_mixed()
    }

    /// Behaviours that exclude each other, and what the protocol cannot do.
    fn check_combination(&self) -> Result<(), BadPlan> {
        let orders = [
            ("hold", self.hold.is_some()),
            ("pingpong", self.pingpong.is_some()),
            ("fanout", self.fanout.is_some()),
            ("mixed", self.mixed.is_some()),
            ("groups", self.groups.is_some()),
        ];
        at_most_one(&orders)?;
        let disturbances = [
            ("storm", self.storm.is_some()),
            ("slow-readers", self.slow_readers.is_some()),
            ("flap", self.flap.is_some()),
            ("hold", self.hold.is_some()),
            ("pingpong", self.pingpong.is_some()),
            ("mixed", self.mixed.is_some()),
        ];
        at_most_one(&disturbances)?;
        if self.pace == Pace::Rounds {
            let closed_already = orders.iter().chain(&disturbances);
            let mut others = closed_already.filter(|(name, given)| *given && *name != "fanout");
            if let Some((name, _)) = others.next() {
                return conflict(format!(
                    "--pace rounds compares the cost of plain messages and goes with relay and \
                     fanout, not with {name}"
                ));
            }
            if self.spin {
                return conflict("--pace rounds never sleeps: leave --spin out".to_owned());
            }
        }
        if self.pingpong.is_some() && self.partners != 1 {
            return conflict("--partners must be 1 with pingpong: pairs answer".to_owned());
        }
        if self.protocol == Protocol::Relay && self.partners != 1 {
            return conflict(
                "--partners must be 1 with --protocol relay: a connection there sends to one place"
                    .to_owned(),
            );
        }
        let promises = promises(self.protocol, self.acks);
        if self.has_absent() && !promises.stores {
            return conflict(format!(
                "the plan `{}` needs a system that keeps messages for users who are away; with \
                 --protocol {} they would rightly be lost",
                self.name, self.protocol
            ));
        }
        if self.has_absent() && self.acks == Acks::Minimal {
            return conflict(format!(
                "the plan `{}` cuts connections: without answers nobody would know what has to be \
                 sent again; leave --acks minimal out",
                self.name
            ));
        }
        if self.acks == Acks::Minimal && self.protocol != Protocol::Portico {
            return conflict(
                "--acks minimal is about Portico; other systems have one way of answering"
                    .to_owned(),
            );
        }
        if self.tls.is_some() && self.protocol != Protocol::Portico {
            return conflict(format!(
                "--tls is about Portico; --protocol {} is driven without it",
                self.protocol
            ));
        }
        if self.unverified {
            self.check_unverified()?;
        }
        let reads = self
            .mixed
            .as_ref()
            .is_some_and(|mixed| !mixed.read_delay.is_zero());
        if reads && !promises.receipts {
            return conflict(format!(
                "read marks are not promised with --protocol {} and --acks {}: set --read-delay 0s",
                self.protocol,
                if self.acks == Acks::Full {
                    "full"
                } else {
                    "minimal"
                }
            ));
        }
        Ok(())
    }

    /// Who expects nothing cannot wait for anything.
    fn check_unverified(&self) -> Result<(), BadPlan> {
        if promises(self.protocol, self.acks).answers {
            return conflict(format!(
                "--unverified is for a target that discards, and --protocol {} waits for answers{}",
                self.protocol,
                if self.protocol == Protocol::Portico {
                    ": add --acks minimal"
                } else {
                    ""
                }
            ));
        }
        let waits = self.pingpong.is_some()
            || self.hold.is_some()
            || self.mixed.is_some()
            || self.pace == Pace::Rounds;
        if waits {
            return conflict(format!(
                "--unverified goes with plans that send by the clock whatever arrives, as relay and \
                 fanout do, not with `{}`",
                self.name
            ));
        }
        Ok(())
    }

    fn check_size(&self, workers: u32) -> Result<(), BadPlan> {
        // Two users, so that each has somebody to write to, or a whole group.
        let unit = self.unit();
        let connections_min = unit.saturating_mul(workers);
        if !(connections_min..=CONNECTIONS_MAX).contains(&self.connections) {
            let range = format!("{connections_min} to {CONNECTIONS_MAX} with this many workers");
            return Err(out_of_range("--connections", self.connections, range));
        }
        if let Some(fanout) = self.fanout {
            within("--members", fanout.members, 1..=MEMBERS_MAX, "")?;
            if !self.connections.is_multiple_of(unit) {
                let range = format!(
                    "a multiple of {unit}: a sender and its {} members (or use --groups)",
                    fanout.members
                );
                return Err(out_of_range("--connections", self.connections, range));
            }
        }
        within("--partners", self.partners, 1..=PARTNERS_MAX, "")?;
        within("--burst", self.burst, 1..=BURST_MAX, "")?;
        body_fits("--size", self.body_bytes)
    }

    fn check_schedule(&self) -> Result<(), BadPlan> {
        // Written so that NaN is refused too.
        let rate_fits = self.rate_per_s > 0.0 && self.rate_per_s <= RATE_MAX;
        let by_the_clock = self.pingpong.is_none() && self.pace == Pace::Open;
        if by_the_clock && !rate_fits {
            let range = format!("above 0 and at most {RATE_MAX}");
            return Err(out_of_range("--rate", self.rate_per_s, range));
        }
        if self.duration.is_zero() || self.duration > DURATION_MAX {
            let range = "above 0 and at most 7 days".to_owned();
            return Err(out_of_range("--duration", seconds(self.duration), range));
        }
        at_most("--drain", self.drain, DURATION_MAX)
    }

    fn check_hold(&self, workers: u32) -> Result<(), BadPlan> {
        let Some(hold) = self.hold else {
            return Ok(());
        };
        let active_max = self.connections.saturating_sub(1);
        let why = ": at least one is only held";
        if hold.cut && self.protocol != Protocol::Portico {
            return conflict("--cut goes with --protocol portico alone".to_owned());
        }
        within("--active", hold.active, 2 * workers..=active_max, why)?;
        within("--ramp", hold.ramp_per_s, 1..=RAMP_PER_S_MAX, " per second")?;
        at_most("--settle", hold.settle, DURATION_MAX)?;
        let heartbeat = u32::from(hold.heartbeat_s);
        let most = u32::from(HEARTBEAT_S_MAX);
        within("--heartbeat", heartbeat, 1..=most, " whole seconds")
    }

    fn check_disturbances(&self) -> Result<(), BadPlan> {
        if let Some(pingpong) = self.pingpong {
            at_most("--think", pingpong.think, DURATION_MAX)?;
        }
        if let Some(storm) = self.storm {
            share("--share", storm.share)?;
            at_most("--away", storm.away, self.drain)?;
            at_most("--at", storm.at, self.duration)?;
        }
        if let Some(slow) = self.slow_readers {
            share("--share", slow.share)?;
            let lasting = self.duration.saturating_sub(slow.at);
            at_most("--at", slow.at, self.duration)?;
            at_most("--lasts", slow.lasts, lasting)?;
        }
        if let Some(flap) = self.flap {
            share("--share", flap.share)?;
            at_most("--away", flap.away, self.drain)?;
        }
        Ok(())
    }

    fn check_mixed(&self) -> Result<(), BadPlan> {
        let Some(mixed) = &self.mixed else {
            return Ok(());
        };
        let shares = mixed.sizes.iter().map(|(_, share)| *share);
        shares_fit("--sizes", shares)?;
        shares_fit("--writers", mixed.writers.iter().map(|(share, _)| *share))?;
        for (bytes, _) in &mixed.sizes {
            body_fits("--sizes", *bytes)?;
        }
        for (_, weight) in &mixed.writers {
            let why = ": how often they write";
            within("--writers", *weight, 0..=WEIGHT_MAX, why)?;
        }
        let silent = mixed.writers.iter().all(|(_, weight)| *weight == 0);
        if silent && !mixed.writers.is_empty() {
            return conflict("--writers says that nobody writes: give one a weight".to_owned());
        }
        share("--answers", mixed.answers)?;
        share("--offline", mixed.offline)?;
        at_most("--think", mixed.think, self.drain)?;
        at_most("--read-delay", mixed.read_delay, self.drain)
    }
}

pub(super) fn out_of_range(flag: &'static str, value: impl ToString, range: String) -> BadPlan {
    BadPlan::OutOfRange {
        flag,
        value: value.to_string(),
        range,
    }
}

fn conflict(what: String) -> Result<(), BadPlan> {
    Err(BadPlan::Conflict(what))
}

fn at_most_one(behaviours: &[(&str, bool)]) -> Result<(), BadPlan> {
    let mut given = behaviours.iter().filter(|(_, given)| *given);
    match (given.next(), given.next()) {
        (Some((one, _)), Some((other, _))) => conflict(format!(
            "a plan cannot have both [{one}] and [{other}]: make it two plans"
        )),
        _ => Ok(()),
    }
}

fn within(
    flag: &'static str,
    value: u32,
    range: RangeInclusive<u32>,
    why: &str,
) -> Result<(), BadPlan> {
    if range.contains(&value) {
        return Ok(());
    }
    let range = format!("{} to {}{why}", range.start(), range.end());
    Err(out_of_range(flag, value, range))
}

fn at_most(flag: &'static str, time: Duration, most: Duration) -> Result<(), BadPlan> {
    if time <= most {
        return Ok(());
    }
    let range = format!("at most {}", seconds(most));
    Err(out_of_range(flag, seconds(time), range))
}

fn body_fits(flag: &'static str, bytes: usize) -> Result<(), BadPlan> {
    if (BODY_BYTES_MIN..=BODY_BYTES_MAX).contains(&bytes) {
        return Ok(());
    }
    let range = format!(
        "{BODY_BYTES_MIN} to {BODY_BYTES_MAX}: the verifier's fields take {BODY_BYTES_MIN}"
    );
    Err(out_of_range(flag, bytes, range))
}

/// Written so that NaN is refused too.
fn share(flag: &'static str, value: f64) -> Result<(), BadPlan> {
    let fits = (0.0..=1.0).contains(&value);
    if fits {
        return Ok(());
    }
    Err(out_of_range(flag, value, "a share from 0 to 1".to_owned()))
}

fn shares_fit(flag: &'static str, shares: impl Iterator<Item = f64>) -> Result<(), BadPlan> {
    let shares: Vec<f64> = shares.collect();
    let (sum, count) = (shares.iter().sum::<f64>(), shares.len());
    let each = shares
        .iter()
        .all(|share| *share >= 0.0 && share.is_finite());
    if count == 0 || (each && sum > 0.0 && count <= SHARES_MAX) {
        return Ok(());
    }
    let range = format!("up to {SHARES_MAX} shares that are not all 0");
    Err(out_of_range(flag, format!("{shares:?}"), range))
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(name: &str, change: impl FnOnce(&mut Plan)) -> String {
        let mut plan = Plan::named(name).expect("built in");
        change(&mut plan);
        plan.check(1).expect_err(name).to_string()
    }

    #[test]
    fn what_excludes_each_other_is_refused() {
        let storm = Plan::named("storm").and_then(|plan| plan.storm);
        let hold = Plan::named("hold").and_then(|plan| plan.hold);
        for (text, part) in [
            (
                refusal("flap", |plan| plan.storm = storm),
                "[storm] and [flap]",
            ),
            (
                refusal("mixed", |plan| plan.storm = storm),
                "[storm] and [mixed]",
            ),
            (
                refusal("fanout", |plan| plan.hold = hold),
                "[hold] and [fanout]",
            ),
            (
                refusal("flap", |plan| plan.pace = Pace::Rounds),
                "with flap",
            ),
            (refusal("pingpong", |plan| plan.partners = 2), "--partners"),
            (
                refusal("storm", |plan| plan.acks = Acks::Minimal),
                "--acks minimal",
            ),
            (
                refusal("flap", |plan| plan.protocol = Protocol::Nats),
                "keeps messages",
            ),
            (
                refusal("relay", |plan| {
                    plan.protocol = Protocol::Redis;
                    plan.acks = Acks::Minimal;
                }),
                "--acks minimal",
            ),
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn held_connections_are_cut_at_portico_alone() {
        let text = refusal("hold", |plan| {
            plan.protocol = Protocol::Nats;
            plan.hold.iter_mut().for_each(|hold| hold.cut = true);
        });
        assert!(text.contains("--cut"), "{text}");
        let mut plan = Plan::named("hold").expect("built in");
        plan.protocol = Protocol::MqttQos0;
        assert_eq!(plan.check(1), Ok(()));
    }

    #[test]
    fn a_fan_out_has_whole_groups() {
        let text = refusal("fanout", |plan| plan.connections += 1);
        assert!(text.starts_with("--connections"), "{text}");
        let mut plan = Plan::named("fanout").expect("built in");
        plan.connections = plan.unit();
        assert_eq!(plan.check(1), Ok(()));
        let text = plan.check(2).expect_err("one group for two").to_string();
        assert!(text.starts_with("--connections"), "{text}");
    }

    #[test]
    fn shares_and_weights_are_checked() {
        for (text, flag) in [
            (
                refusal("storm", |plan| {
                    plan.storm.iter_mut().for_each(|storm| storm.share = 1.5);
                }),
                "--share",
            ),
            (
                refusal("mixed", |plan| {
                    plan.mixed
                        .iter_mut()
                        .for_each(|mixed| mixed.answers = f64::NAN);
                }),
                "--answers",
            ),
            (
                refusal("mixed", |plan| {
                    plan.mixed
                        .iter_mut()
                        .for_each(|mixed| mixed.sizes = vec![(10, 1.0)]);
                }),
                "--sizes",
            ),
            (
                refusal("mixed", |plan| {
                    plan.mixed
                        .iter_mut()
                        .for_each(|mixed| mixed.writers = vec![(1.0, 0)]);
                }),
                "--writers",
            ),
            (
                refusal("slow-readers", |plan| {
                    plan.slow_readers
                        .iter_mut()
                        .for_each(|slow| slow.lasts = DURATION_MAX);
                }),
                "--lasts",
            ),
        ] {
            assert!(text.starts_with(flag), "{text}");
        }
    }
}
