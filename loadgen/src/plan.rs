//! Plans: what is sent, how fast, and who talks to whom.

use crate::random::Random;
use portico_wire::ids::UserId;
use std::time::Duration;

/// A workload. The built-in ones are starting points; flags override every field.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Plan {
    pub name: &'static str,
    pub about: &'static str,
    pub connections: u32,
    pub rate_per_s: f64,
    pub duration: Duration,
    pub body_bytes: usize,
    /// Recipients per sender: the first is its pair, the others are drawn.
    pub partners: u32,
    /// How long accepted messages may take to arrive after the last one was sent.
    pub drain: Duration,
    /// Most connections are only held.
    pub hold: Option<Hold>,
}

/// What the plan `hold` has besides.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Hold {
    /// Connections that exchange the messages; the others say nothing but PING.
    pub active: u32,
    /// Connections opened per second.
    pub ramp_per_s: u32,
    /// How long all are quiet before the first message.
    pub settle: Duration,
    /// All that are only held are cut at once, a third into the sending.
    pub cut: bool,
    /// Seconds between two PINGs.
    pub heartbeat_s: u16,
}

const BUILT_IN: [Plan; 3] = [
    Plan {
        name: "smoke",
        about: "does it work: direct messages to four partners each, a light load",
        connections: 1_000,
        rate_per_s: 2_000.0,
        duration: Duration::from_secs(10),
        body_bytes: 128,
        partners: 4,
        drain: Duration::from_secs(10),
        hold: None,
    },
    Plan {
        name: "relay",
        about: "how fast is it: direct messages within fixed pairs, a steady load",
        connections: 2_000,
        rate_per_s: 20_000.0,
        duration: Duration::from_secs(60),
        body_bytes: 128,
        partners: 1,
        drain: Duration::from_secs(10),
        hold: None,
    },
    Plan {
        name: "hold",
        about: "how many can it hold: quiet connections with heartbeats beside some that exchange \
                messages",
        connections: 100_000,
        rate_per_s: 2_000.0,
        duration: Duration::from_secs(60),
        body_bytes: 128,
        partners: 1,
        drain: Duration::from_secs(10),
        hold: Some(Hold {
            active: 1_000,
            ramp_per_s: 10_000,
            settle: Duration::from_secs(60),
            cut: false,
            heartbeat_s: 60,
        }),
    },
];

impl Plan {
    pub(crate) fn named(name: &str) -> Option<Self> {
        BUILT_IN.iter().find(|plan| plan.name == name).cloned()
    }

    /// The built-in plans with a line about each.
    pub(crate) fn list() -> String {
        BUILT_IN
            .iter()
            .map(|plan| format!("  {:<8} {}\n", plan.name, plan.about))
            .collect()
    }
}

/// Who sends to whom within one worker's slice of users.
///
/// Partners stay within the slice, so a worker sees both ends of each of its flows and verifies
/// them without a lock. The gateway places users by a hash, so this does not favour any core.
#[derive(Clone, Debug)]
pub(crate) struct Flows {
    first_user: u64,
    users: u32,
    partners: u32,
    /// Recipient of flow `n`, as an index of the slice; its sender is `n / partners`.
    recipients: Vec<u32>,
    /// The order in which senders take their turns.
    senders: Vec<u32>,
}

impl Flows {
    /// `users` users from `first_user` on; at least 2.
    pub(crate) fn new(first_user: u64, users: u32, partners: u32, seed: u64) -> Self {
        let mut random = Random::new(seed ^ first_user.rotate_left(32));
        let partners = partners.clamp(1, users - 1);
        let mut recipients = Vec::with_capacity(users as usize * partners as usize);
        for sender in 0..users {
            let first = recipients.len();
            let pair = sender ^ 1;
            // The last of an odd number has no pair and writes to the first.
            recipients.push(if pair < users { pair } else { 0 });
            while recipients.len() - first < partners as usize {
                let drawn = random.below(users);
                if drawn != sender && !recipients[first..].contains(&drawn) {
                    recipients.push(drawn);
                }
            }
        }
        let mut senders: Vec<u32> = (0..users).collect();
        random.shuffle(&mut senders);
        Self {
            first_user,
            users,
            partners,
            recipients,
            senders,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.recipients.len()
    }

    /// The flow of message `n`: every sender takes its turn before any takes another, and each
    /// changes its partner from one turn to the next.
    pub(crate) fn of_message(&self, number: u64) -> u32 {
        let users = u64::from(self.users);
        let sender = self.senders[(number % users) as usize];
        let partner = (number / users % u64::from(self.partners)) as u32;
        sender * self.partners + partner
    }

    pub(crate) fn sender(&self, flow: u32) -> u32 {
        flow / self.partners
    }

    pub(crate) fn recipient(&self, flow: u32) -> u32 {
        self.recipients[flow as usize]
    }

    /// The flow from one user of the slice to another.
    pub(crate) fn between(&self, sender: u32, recipient: UserId) -> Option<u32> {
        let wanted = u32::try_from(recipient.0.checked_sub(self.first_user)?).ok()?;
        let first = sender * self.partners;
        (first..first + self.partners).find(|flow| self.recipients[*flow as usize] == wanted)
    }

    pub(crate) fn user(&self, index: u32) -> UserId {
        UserId(self.first_user + u64::from(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partners_are_distinct_and_never_oneself() {
        for users in [2, 3, 7, 50] {
            let flows = Flows::new(1_000, users, 4, 9);
            let partners = 4.min(users as usize - 1);
            assert_eq!(flows.len(), users as usize * partners);
            for sender in 0..users {
                let first = sender as usize * partners;
                let mut own = flows.recipients[first..first + partners].to_vec();
                own.sort_unstable();
                own.dedup();
                assert_eq!(own.len(), partners);
                assert!(!own.contains(&sender));
            }
        }
    }

    #[test]
    fn every_flow_is_used_equally_often() {
        let flows = Flows::new(1, 10, 3, 4);
        let mut used = vec![0; flows.len()];
        (0..60).for_each(|number| used[flows.of_message(number) as usize] += 1);
        assert_eq!(used, vec![2; 30]);
    }

    #[test]
    fn a_flow_is_found_by_its_ends() {
        let flows = Flows::new(500, 10, 3, 4);
        for flow in 0..flows.len() as u32 {
            let recipient = flows.user(flows.recipient(flow));
            assert_eq!(flows.between(flows.sender(flow), recipient), Some(flow));
        }
        assert_eq!(flows.between(3, UserId(499)), None);
        assert_eq!(flows.between(3, UserId(503)), None);
    }

    #[test]
    fn a_seed_fixes_the_plan() {
        let recipients = |seed| Flows::new(1, 100, 4, seed).recipients;
        assert_eq!(recipients(1), recipients(1));
        assert_ne!(recipients(1), recipients(2));
    }
}
