//! What users do besides sending messages: groups change, people look who is there, type, and read
//! what was said before.

use super::{engine::Worker, later::Task};
use crate::{
    plan::{GroupPlan, Plan, WRITERS},
    random::Random,
    schedule::Schedule,
};
use portico_wire::ids::UserId;

/// Of each kind, what is done in one turn at most.
const BITE: usize = 64;

/// What is due beside the messages, and when.
#[derive(Debug)]
pub(super) struct Besides {
    changes: Option<Schedule>,
    signals: Option<Schedule>,
    pages: Option<Schedule>,
    random: Random,
    next_flow: u32,
    /// All groups of the plan have been made, or it has none.
    pub(super) groups_are_made: bool,
}

impl Besides {
    pub(super) const fn new(plan: &Plan, first_user: u64) -> Self {
        Self {
            changes: None,
            signals: None,
            pages: None,
            random: Random::new(plan.seed.rotate_left(11) ^ first_user),
            next_flow: 0,
            groups_are_made: plan.groups.is_none(),
        }
    }

    /// `part` of all users are this worker's.
    pub(super) fn start(&mut self, plan: &Plan, start_us: u64, part: f64) {
        let duration_us = plan.duration.as_micros() as u64;
        let schedule = |rate: Option<f64>| {
            let rate = rate.filter(|rate| *rate > 0.0)?;
            Some(Schedule::new(start_us, rate * part, duration_us))
        };
        self.changes = schedule(plan.groups.as_ref().map(|groups| groups.changes));
        self.signals = schedule(plan.typing.map(|typing| typing.signals));
        self.pages = schedule(plan.history.map(|history| history.pages));
    }

    pub(super) fn next_us(&self) -> Option<u64> {
        let all = [&self.changes, &self.signals, &self.pages];
        all.into_iter()
            .flatten()
            .filter_map(Schedule::next_us)
            .min()
    }
}

fn is_due(schedule: &mut Option<Schedule>, now_us: u64) -> bool {
    schedule
        .as_mut()
        .is_some_and(|schedule| schedule.pop_due(now_us).is_some())
}

impl Worker<'_> {
    /// Makes the groups once everybody is there.
    pub(super) fn make_groups(&mut self) {
        let users = u64::from(self.assignment.users);
        if self.besides.groups_are_made || self.watch.up < users {
            return;
        }
        self.besides.groups_are_made = self.fleet.make_groups();
        let crowds = self.watch.verifier.flows().crowds();
        if let (true, Some(crowds)) = (self.besides.groups_are_made, crowds) {
            self.watch.figures.life.groups = u64::from(crowds.len());
            self.watch.figures.life.seats = crowds.seats_total() as u64;
        }
    }

    pub(super) fn live(&mut self, now_us: u64) {
        for _ in 0..BITE {
            if is_due(&mut self.besides.changes, now_us) {
                self.change_some_group(now_us);
            }
            if is_due(&mut self.besides.signals, now_us) {
                self.signal_somebody(now_us);
            }
            if is_due(&mut self.besides.pages, now_us) {
                self.read_some_page();
            }
        }
    }

    /// A member who does not write leaves its group for a moment.
    fn change_some_group(&mut self, now_us: u64) {
        let Some(crowds) = self.watch.verifier.flows().crowds().cloned() else {
            return;
        };
        let group = self.besides.random.below(crowds.len());
        let members = crowds.members(group);
        let user = members[self.besides.random.below(members.len() as u32) as usize];
        let writes =
            (group * WRITERS..(group + 1) * WRITERS).any(|flow| crowds.writer(flow) == user);
        // One that is outside at present would be told so by the gateway.
        if writes || self.watch.outside.contains(&(group, user)) {
            return;
        }
        self.watch.verifier.will_change(group, user);
        if self.fleet.change_group(group, user, false) {
            self.watch.figures.life.changes += 1;
            self.watch.open_asks += 1;
            self.watch.outside.insert((group, user));
            let back_us = now_us + GroupPlan::OUTSIDE.as_micros() as u64;
            self.watch.later.add(back_us, Task::Rejoin { group, user });
        }
    }

    pub(super) fn rejoin(&mut self, group: u32, user: u32) {
        if self.fleet.change_group(group, user, true) {
            self.watch.figures.life.changes += 1;
            self.watch.open_asks += 1;
            self.watch.outside.remove(&(group, user));
        }
    }

    fn next_flow(&mut self) -> u32 {
        let flow = self.besides.next_flow;
        let flows = self.watch.verifier.flows().len() as u32;
        self.besides.next_flow = (flow + 1) % flows.max(1);
        flow
    }

    fn signal_somebody(&mut self, now_us: u64) {
        let flow = self.next_flow();
        let flows = self.watch.verifier.flows();
        let (sender, to) = (flows.sender(flow), flows.user(flows.recipient(flow)));
        if self.fleet.signal(sender, to) {
            self.watch.signalled(flow, now_us);
        }
    }

    fn read_some_page(&mut self) {
        let flows = self.watch.verifier.flows();
        let flow = self.besides.random.below(flows.len() as u32);
        let (reader, author) = (flows.recipient(flow), flows.user(flows.sender(flow)));
        let limit = self.plan().history.map_or(1, |history| history.limit);
        if self.fleet.page(reader, author, limit) {
            self.watch.figures.life.pages += 1;
            self.watch.open_asks += 1;
        }
    }

    /// Those who have logged in since the plan wants it subscribe.
    pub(super) fn watch_contacts(&mut self) {
        let Some(presence) = self.plan().presence else {
            return;
        };
        for conn in std::mem::take(&mut self.watch.unwatching) {
            let users = self.assignment.users;
            let flows = self.watch.verifier.flows();
            // Spread over all of the slice, and alike for everybody.
            let step = (users / presence.contacts.max(1)).max(1);
            let contacts: Vec<UserId> = (0..presence.contacts)
                .map(|n| flows.user((conn + 1 + n * step) % users))
                .filter(|user| *user != flows.user(conn))
                .collect();
            if self.fleet.watch(conn, &contacts) {
                self.watch.open_asks += 1;
            }
        }
    }
}
