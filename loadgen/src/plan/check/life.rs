//! Groups, presence, typing and history: what cannot be carried out.

use super::{BadPlan, RATE_MAX, at_most_one, conflict, out_of_range, seconds, shares_fit, within};
use crate::plan::{Acks, GroupPlan, Pace, Plan, Protocol};
use portico_wire::limits::{GROUP_MEMBERS_MAX, HISTORY_PAGE_MAX, PRESENCE_SUBS_MAX};

const PER_USER_MAX: u32 = 1_000;

impl Plan {
    /// Groups, presence, typing, history.
    pub(super) fn check_life(&self, workers: u32) -> Result<(), BadPlan> {
        let besides = [
            ("groups", self.groups.is_some()),
            ("presence", self.presence.is_some()),
            ("typing", self.typing.is_some()),
            ("history", self.history.is_some()),
        ];
        at_most_one(&besides)?;
        let Some((name, _)) = besides.iter().find(|(_, given)| *given) else {
            return Ok(());
        };
        if self.protocol != Protocol::Portico || self.acks != Acks::Full {
            return conflict(format!(
                "[{name}] is about what Portico answers: it goes with --protocol portico and --acks full"
            ));
        }
        if self.hold.is_some() || self.fanout.is_some() || self.pingpong.is_some() {
            return conflict(format!(
                "[{name}] goes with plans that send by the clock, not with [hold], [fanout] or \
                 [pingpong]"
            ));
        }
        if self.pace == Pace::Rounds {
            return conflict(format!("[{name}] goes with --pace open alone"));
        }
        if let Some(groups) = &self.groups {
            self.check_groups(groups, workers)?;
        }
        if let Some(presence) = self.presence {
            let Some(storm) = self.storm else {
                return conflict("[presence] needs a [storm], which comes twice".to_owned());
            };
            let contacts_max = (PRESENCE_SUBS_MAX as u32).min(self.connections / workers - 1);
            within("--contacts", presence.contacts, 1..=contacts_max, "")?;
            let end = presence.again.saturating_mul(2).saturating_sub(storm.at);
            if presence.again <= storm.at || end > self.duration {
                let range = format!(
                    "after --at, and as long again before the end of --duration: {} to {} here",
                    seconds(storm.at),
                    seconds((self.duration + storm.at) / 2)
                );
                return Err(out_of_range("--again", seconds(presence.again), range));
            }
        }
        if let Some(typing) = self.typing {
            per_second("--signals", typing.signals)?;
        }
        if let Some(history) = self.history {
            per_second("--pages", history.pages)?;
            let most = u32::from(HISTORY_PAGE_MAX);
            within("--limit", u32::from(history.limit), 1..=most, " entries")?;
        }
        Ok(())
    }

    fn check_groups(&self, groups: &GroupPlan, workers: u32) -> Result<(), BadPlan> {
        let shares = groups.sizes.iter().map(|(_, share)| *share);
        shares_fit("--group-sizes", shares)?;
        if groups.sizes.is_empty() {
            return conflict("--group-sizes needs one size at least".to_owned());
        }
        for (size, _) in &groups.sizes {
            let why = " members";
            within("--group-sizes", *size, 2..=GROUP_MEMBERS_MAX as u32, why)?;
        }
        let users = self.connections / workers;
        if groups.largest() > users {
            let range = format!(
                "at least {}: the largest group has as many, and each worker has its own users",
                u64::from(groups.largest()) * u64::from(workers)
            );
            return Err(out_of_range("--connections", self.connections, range));
        }
        within("--per-user", groups.per_user, 1..=PER_USER_MAX, " groups")?;
        // Written so that NaN is refused too.
        let fits = groups.changes >= 0.0 && groups.changes <= RATE_MAX;
        if !fits {
            let range = format!("0 to {RATE_MAX}");
            return Err(out_of_range("--changes", groups.changes, range));
        }
        if self.has_absent() || self.slow_readers.is_some() {
            return conflict(
                "[groups] goes with connections that stay: leave [storm], [slow-readers] and [flap] out"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

/// Written so that NaN is refused too.
fn per_second(flag: &'static str, rate: f64) -> Result<(), BadPlan> {
    if rate > 0.0 && rate <= RATE_MAX {
        return Ok(());
    }
    let range = format!("above 0 and at most {RATE_MAX}");
    Err(out_of_range(flag, rate, range))
}
