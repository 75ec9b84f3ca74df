//! What groups, presence, typing and history measure: counted by a worker, added up, shown.

use crate::{
    plan::Plan,
    remote,
    report::{Percentiles, grouped, round},
    verifier::histogram,
};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Write};

/// Of one worker, or of all.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Life {
    pub groups: u64,
    pub seats: u64,
    pub changes: u64,
    pub changes_failed: u64,
    /// Deliveries to members who had been removed, or had not been added again.
    pub after_removal: u64,
    pub subscriptions: u64,
    pub subscriptions_failed: u64,
    pub presence_frames: u64,
    pub presence_items: u64,
    /// Of the server in the two storms: without anybody watching, and with.
    pub storms_cpu_us: Option<(u64, u64)>,
    /// How long each of the two is accounted for.
    pub storm_us: u64,
    pub logins: u64,
    pub signals: u64,
    pub signals_arrived: u64,
    #[serde(with = "remote::histogram")]
    pub signal_us: Histogram<u64>,
    pub pages: u64,
    pub pages_answered: u64,
    pub pages_failed: u64,
    pub entries: u64,
    /// Entries out of order, of another conversation or damaged.
    pub entries_wrong: u64,
    #[serde(with = "remote::histogram")]
    pub page_us: Histogram<u64>,
}

impl Life {
    pub(crate) fn new() -> Self {
        Self {
            groups: 0,
            seats: 0,
            changes: 0,
            changes_failed: 0,
            after_removal: 0,
            subscriptions: 0,
            subscriptions_failed: 0,
            presence_frames: 0,
            presence_items: 0,
            storms_cpu_us: None,
            storm_us: 0,
            logins: 0,
            signals: 0,
            signals_arrived: 0,
            signal_us: histogram(),
            pages: 0,
            pages_answered: 0,
            pages_failed: 0,
            entries: 0,
            entries_wrong: 0,
            page_us: histogram(),
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let sums = [
            (&mut self.groups, other.groups),
            (&mut self.seats, other.seats),
            (&mut self.changes, other.changes),
            (&mut self.changes_failed, other.changes_failed),
            (&mut self.after_removal, other.after_removal),
            (&mut self.subscriptions, other.subscriptions),
            (&mut self.subscriptions_failed, other.subscriptions_failed),
            (&mut self.presence_frames, other.presence_frames),
            (&mut self.presence_items, other.presence_items),
            (&mut self.logins, other.logins),
            (&mut self.signals, other.signals),
            (&mut self.signals_arrived, other.signals_arrived),
            (&mut self.pages, other.pages),
            (&mut self.pages_answered, other.pages_answered),
            (&mut self.pages_failed, other.pages_failed),
            (&mut self.entries, other.entries),
            (&mut self.entries_wrong, other.entries_wrong),
        ];
        for (sum, part) in sums {
            *sum += part;
        }
        self.storms_cpu_us = self.storms_cpu_us.or(other.storms_cpu_us);
        self.storm_us = self.storm_us.max(other.storm_us);
        // All have the same bounds and precision.
        let sums = [
            (&mut self.signal_us, &other.signal_us),
            (&mut self.page_us, &other.page_us),
        ];
        for (sum, part) in sums {
            sum.add(part).expect("histograms of the same bounds");
        }
    }

    /// What the gateway did wrong, beside what is wrong with messages.
    pub(crate) fn faults(&self) -> [(u64, &'static str); 4] {
        [
            (
                self.entries_wrong,
                "entries of history wrong or out of order",
            ),
            (
                self.pages_failed,
                "pages of history refused or never answered",
            ),
            (self.changes_failed, "changes of groups refused"),
            (self.subscriptions_failed, "subscriptions refused"),
        ]
    }
}

/// The parts of a result, each there only with the plan that it is about. Keys are only ever added.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct LifeReport {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<GroupsReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence: Option<PresenceReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub typing: Option<TypingReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<HistoryReport>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct GroupsReport {
    pub count: u64,
    /// Members of all groups, together.
    pub members: u64,
    pub changes: u64,
    pub changes_failed: u64,
    pub after_removal: u64,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct PresenceReport {
    pub contacts: u32,
    pub subscriptions: u64,
    pub subscriptions_failed: u64,
    pub frames: u64,
    pub items: u64,
    /// CPU of the server in the storm without subscriptions, and with. None: it is not on this
    /// machine.
    pub cpu_us_without: Option<u64>,
    pub cpu_us_with: Option<u64>,
    /// The difference, per login and as a share of one core over the time of the storm.
    pub cpu_us_per_login: Option<f64>,
    pub share_of_a_core: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct TypingReport {
    pub signals: u64,
    pub arrived: u64,
    pub latency_us: Percentiles,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct HistoryReport {
    pub pages: u64,
    pub answered: u64,
    pub failed: u64,
    pub pages_per_s: f64,
    pub entries: u64,
    pub entries_wrong: u64,
    pub page_us: Percentiles,
}

impl LifeReport {
    pub(crate) fn new(life: &Life, plan: &Plan) -> Self {
        Self {
            groups: plan.groups.as_ref().map(|_| GroupsReport {
                count: life.groups,
                members: life.seats,
                changes: life.changes,
                changes_failed: life.changes_failed,
                after_removal: life.after_removal,
            }),
            presence: plan.presence.map(|presence| {
                let more_us = life
                    .storms_cpu_us
                    .map(|(without, with)| with as f64 - without as f64);
                let share = |parts: f64| more_us.map(|us| us / parts.max(1.0));
                PresenceReport {
                    contacts: presence.contacts,
                    subscriptions: life.subscriptions,
                    subscriptions_failed: life.subscriptions_failed,
                    frames: life.presence_frames,
                    items: life.presence_items,
                    cpu_us_without: life.storms_cpu_us.map(|(without, _)| without),
                    cpu_us_with: life.storms_cpu_us.map(|(_, with)| with),
                    cpu_us_per_login: share(life.subscriptions as f64).map(|us| round(us, 100.0)),
                    share_of_a_core: share(life.storm_us as f64).map(|part| round(part, 1e4)),
                }
            }),
            typing: plan.typing.map(|_| TypingReport {
                signals: life.signals,
                arrived: life.signals_arrived,
                latency_us: Percentiles::of(&life.signal_us),
            }),
            history: plan.history.map(|_| HistoryReport {
                pages: life.pages,
                answered: life.pages_answered,
                failed: life.pages_failed,
                pages_per_s: round(
                    life.pages_answered as f64 / plan.duration.as_secs_f64(),
                    10.0,
                ),
                entries: life.entries,
                entries_wrong: life.entries_wrong,
                page_us: Percentiles::of(&life.page_us),
            }),
        }
    }

    pub(crate) fn counts(&self) -> [(&'static str, u64); 10] {
        let groups = self.groups.as_ref();
        let presence = self.presence.as_ref();
        let typing = self.typing.as_ref();
        let history = self.history.as_ref();
        [
            ("groups", groups.map_or(0, |groups| groups.count)),
            ("members", groups.map_or(0, |groups| groups.members)),
            ("changes", groups.map_or(0, |groups| groups.changes)),
            (
                "after removal",
                groups.map_or(0, |groups| groups.after_removal),
            ),
            ("subscriptions", presence.map_or(0, |all| all.subscriptions)),
            ("presence frames", presence.map_or(0, |all| all.frames)),
            ("signals", typing.map_or(0, |typing| typing.signals)),
            ("signals arrived", typing.map_or(0, |typing| typing.arrived)),
            ("pages", history.map_or(0, |history| history.answered)),
            ("entries", history.map_or(0, |history| history.entries)),
        ]
    }

    pub(crate) fn times(&self) -> Vec<(&'static str, &Percentiles)> {
        let typing = self.typing.as_ref();
        let history = self.history.as_ref();
        let signals = typing.map(|typing| ("signal", &typing.latency_us));
        let pages = history.map(|history| ("page of history", &history.page_us));
        signals.into_iter().chain(pages).collect()
    }

    pub(crate) fn write_notes(&self, out: &mut String) -> fmt::Result {
        let Some(presence) = &self.presence else {
            return Ok(());
        };
        match (presence.cpu_us_per_login, presence.share_of_a_core) {
            (Some(per_login), Some(share)) => writeln!(
                out,
                "presence   {} items; {per_login} us of the server's CPU per login, {:.1} % of a core",
                grouped(presence.items),
                share * 100.0
            ),
            _ => writeln!(
                out,
                "presence   {} items; what they cost is only known of a server on this machine",
                grouped(presence.items)
            ),
        }
    }
}
