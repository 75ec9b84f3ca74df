//! What a messenger does besides messages between two users: groups of the gateway's own, who is
//! there, who is typing, what was said before.

use super::text;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Groups that the gateway keeps; every message goes to one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GroupPlan {
    /// Members of a group, each size with its share of the groups.
    pub sizes: Vec<(u32, f64)>,
    /// How many groups a user is in, on average.
    #[serde(rename = "per-user")]
    pub per_user: u32,
    /// Members removed per second, all groups together; each is added again after
    /// [`GroupPlan::OUTSIDE`].
    #[serde(default)]
    pub changes: f64,
}

impl GroupPlan {
    pub(crate) const OUTSIDE: Duration = Duration::from_millis(500);

    pub(crate) fn largest(&self) -> u32 {
        self.sizes.iter().map(|(size, _)| *size).max().unwrap_or(2)
    }
}

/// Users watch each other. The storm of the plan comes twice: first without anybody watching, then
/// everybody subscribes after each login.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PresencePlan {
    /// Users that each of them watches.
    pub contacts: u32,
    /// When the second storm comes, after the first message. Between the two as much time is
    /// accounted for as after the second.
    #[serde(with = "text::time")]
    pub again: Duration,
}

/// Signals beside the messages.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TypingPlan {
    /// Per second, all users together.
    pub signals: f64,
}

/// Pages of history beside the messages.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HistoryPlan {
    /// Per second, all users together.
    pub pages: f64,
    /// Entries of a page.
    pub limit: u16,
}
