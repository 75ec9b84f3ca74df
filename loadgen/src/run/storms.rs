//! What two storms of one run cost the server.

use crate::{plan::Plan, process};

/// The CPU time of the server in the two storms of a plan with presence.
pub(super) struct Storms {
    /// After the first message: the first storm, the second, and the end of its account.
    at_us: [u64; 3],
    lasts_us: u64,
    seen_us: Vec<u64>,
}

impl Storms {
    pub(super) fn of(plan: &Plan) -> Self {
        let times = plan.storm.zip(plan.presence).map(|(storm, presence)| {
            let (at, again) = (
                storm.at.as_micros() as u64,
                presence.again.as_micros() as u64,
            );
            ([at, again, 2 * again - at], again - at)
        });
        let (at_us, lasts_us) = times.unwrap_or(([u64::MAX; 3], 0));
        Self {
            at_us,
            lasts_us,
            seen_us: Vec::new(),
        }
    }

    pub(super) fn look(&mut self, pid: Option<u32>, passed_us: u64) {
        let next = self.at_us.get(self.seen_us.len());
        if next.is_some_and(|at_us| *at_us <= passed_us)
            && let Some(usage) = pid.and_then(process::usage)
        {
            self.seen_us.push(usage.cpu_us);
        }
    }

    pub(super) fn cpu_us(&self) -> Option<(u64, u64)> {
        match self.seen_us[..] {
            [first, second, end] => {
                Some((second.saturating_sub(first), end.saturating_sub(second)))
            }
            _ => None,
        }
    }

    /// How long each of the two is accounted for.
    pub(super) const fn lasts_us(&self) -> u64 {
        self.lasts_us
    }
}
