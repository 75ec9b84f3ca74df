//! What is counted, one number per kind of fate.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What was found so far. Those of several workers are added up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Queued for the gateway.
    pub sent: u64,
    /// Answered by SENT.
    pub accepted: u64,
    /// Of `accepted`: known from an attempt before (SENT with the duplicate mark).
    pub accepted_before: u64,
    /// Arrived at the right user for the first time, intact.
    pub delivered: u64,
    /// Accepted and never delivered. Only known at the end.
    pub lost: u64,
    /// Neither accepted nor refused. Only known at the end.
    pub unanswered: u64,
    /// Delivered again although the client remembers what it had.
    pub duplicated: u64,
    /// Sent by the gateway again and dropped by the client, as the protocol provides for.
    pub repeated: u64,
    /// Arrived or numbered behind a later message of the same flow.
    pub reordered: u64,
    /// The same, but after the gateway had refused the first attempt for the time being: allowed.
    pub overtaken: u64,
    /// Arrived at somebody else, or under another author's name.
    pub misrouted: u64,
    /// Arrived damaged, or was never sent.
    pub corrupt: u64,
    /// Its sender and its recipient were told different places in the conversation.
    pub misnumbered: u64,
    /// Delivered although it had been refused for good.
    pub refused_delivered: u64,
    /// Of another run of this tool.
    pub foreign: u64,
    /// Flows whose delivered mark stayed behind their last accepted message. Only known at the end.
    pub receipts_missing: u64,
    /// Queued while their recipient was away or did not read, as the plan wanted it.
    pub to_absent: u64,
    /// Of `sent`: answers, which the plan's rate does not count.
    pub answers: u64,
    /// Conversations whose read mark never reached the sender. Only known at the end.
    pub reads_missing: u64,
    /// Refused for good, and for the time being, by code.
    pub refused: BTreeMap<u16, u64>,
    pub deferred: BTreeMap<u16, u64>,
}

impl Counts {
    pub(crate) fn refused_total(&self) -> u64 {
        self.refused.values().sum()
    }

    /// What is wrong with messages, as far as it is known before the end.
    pub(crate) fn errors(&self) -> u64 {
        self.duplicated
            + self.reordered
            + self.misrouted
            + self.corrupt
            + self.misnumbered
            + self.refused_delivered
            + self.refused_total()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        // Taken apart, so that a new field cannot be forgotten here.
        let Self {
            sent,
            accepted,
            accepted_before,
            delivered,
            lost,
            unanswered,
            duplicated,
            repeated,
            reordered,
            overtaken,
            misrouted,
            corrupt,
            misnumbered,
            refused_delivered,
            foreign,
            receipts_missing,
            to_absent,
            answers,
            reads_missing,
            refused,
            deferred,
        } = other;
        self.sent += sent;
        self.accepted += accepted;
        self.accepted_before += accepted_before;
        self.delivered += delivered;
        self.lost += lost;
        self.unanswered += unanswered;
        self.duplicated += duplicated;
        self.repeated += repeated;
        self.reordered += reordered;
        self.overtaken += overtaken;
        self.misrouted += misrouted;
        self.corrupt += corrupt;
        self.misnumbered += misnumbered;
        self.refused_delivered += refused_delivered;
        self.foreign += foreign;
        self.receipts_missing += receipts_missing;
        self.to_absent += to_absent;
        self.answers += answers;
        self.reads_missing += reads_missing;
        for (code, count) in refused {
            *self.refused.entry(*code).or_default() += count;
        }
        for (code, count) in deferred {
            *self.deferred.entry(*code).or_default() += count;
        }
    }
}
