//! The end of an account: whether everything is there, and the last word about what is not.

use super::{Counts, Ledger, Verifier};
use crate::remote;
use hdrhistogram::Histogram;
use portico_wire::ids::UserId;
use serde::{Deserialize, Serialize};

/// The verifier's last word.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Findings {
    pub counts: Counts,
    /// Memory of the verifier at the end.
    pub bytes: u64,
    /// Deliveries to members of groups who had been removed.
    pub after_removal: u64,
    #[serde(with = "remote::histogram")]
    pub latency_us: Histogram<u64>,
    #[serde(with = "remote::histogram")]
    pub sent_latency_us: Histogram<u64>,
    #[serde(with = "remote::histogram")]
    pub service_us: Histogram<u64>,
    #[serde(with = "remote::histogram")]
    pub storm_latency_us: Histogram<u64>,
    #[serde(with = "remote::histogram")]
    pub affected_latency_us: Histogram<u64>,
}

impl Verifier {
    /// Every message was answered, where that is promised, and every accepted one has arrived.
    pub(crate) fn is_settled(&self) -> bool {
        if !self.expects_deliveries {
            return true;
        }
        match &self.ledger {
            Ledger::Answered(answered) => answered.is_settled(),
            Ledger::Counted(_) => self.counts.delivered >= self.counts.sent,
            Ledger::Crowds(crowds) => crowds.is_settled(&self.counts),
            Ledger::Groups(_) => {
                let counts = &self.counts;
                let refused = counts.refused_total();
                counts.accepted + refused >= counts.sent
                    && counts.delivered + refused >= counts.sent
            }
        }
    }

    /// Flows whose delivered or read mark is behind, as (sender, recipient's user).
    pub(crate) fn receipts_behind(&self) -> Box<dyn Iterator<Item = (u32, UserId)> + '_> {
        let Ledger::Answered(answered) = &self.ledger else {
            return Box::new(std::iter::empty());
        };
        Box::new(answered.behind().map(|flow| {
            let recipient = self.flows.user(self.flows.recipient(flow));
            (self.flows.sender(flow), recipient)
        }))
    }

    /// What all of this takes now.
    pub(super) fn bytes(&self) -> u64 {
        let ledger = match &self.ledger {
            Ledger::Answered(answered) => answered.bytes(),
            Ledger::Counted(counted) => counted.bytes(),
            Ledger::Groups(groups) => groups.bytes(),
            Ledger::Crowds(crowds) => crowds.bytes(),
        };
        let times = &self.times;
        let histograms = [
            &times.latency_us,
            &times.sent_latency_us,
            &times.service_us,
            &times.storm_latency_us,
            &times.affected_latency_us,
        ];
        let histograms: usize = histograms
            .iter()
            .map(|histogram| histogram.distinct_values() * size_of::<u64>())
            .sum();
        let users = self.calm_since_us.capacity() * size_of::<u64>();
        (size_of::<Self>() + self.flows.bytes() + ledger + histograms + users) as u64
    }

    /// Judges what is still open, and gives everything away.
    pub(crate) fn finish(self) -> Findings {
        let bytes = self.bytes();
        let mut counts = self.counts;
        let mut after_removal = 0;
        match &self.ledger {
            Ledger::Answered(answered) => answered.judge_open(&mut counts),
            Ledger::Crowds(crowds) => after_removal = crowds.judge_open(&mut counts),
            Ledger::Counted(_) | Ledger::Groups(_) => {
                let refused = counts.refused_total();
                counts.unanswered = counts.sent.saturating_sub(counts.accepted + refused);
                // Which copy was refused or not answered is not kept: as far as these go, what is
                // missing is put down to them.
                let missing = counts.sent.saturating_sub(counts.delivered);
                counts.lost = missing.saturating_sub(refused + counts.unanswered);
            }
        }
        if !self.expects_deliveries {
            counts.lost = 0;
        }
        Findings {
            counts,
            bytes,
            after_removal,
            latency_us: self.times.latency_us,
            sent_latency_us: self.times.sent_latency_us,
            service_us: self.times.service_us,
            storm_latency_us: self.times.storm_latency_us,
            affected_latency_us: self.times.affected_latency_us,
        }
    }
}
