//! Where events end: what happened to connections is counted here, what happened to messages goes to
//! the verifier, and what follows from an arrival is noted for later.

use super::{
    Transport, is_exhaustion,
    later::{Later, Task},
    tls_is_wanted, turned_away,
};
use crate::{
    control::Control,
    figures::Figures,
    fleet::Happened,
    plan::Plan,
    report::printable,
    verifier::{Arrived, Said, Verifier},
};
use portico_client::Now;
use portico_wire::{CloseCode, ErrorCode, ids::UserId};
use rustc_hash::FxHashSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Never,
    Up,
    Down,
}

pub(super) struct Watch<'a> {
    control: &'a Control,
    plan: &'a Plan,
    pub(super) verifier: Verifier,
    pub(super) transport: Transport,
    pub(super) figures: Figures,
    pub(super) later: Later,
    presence: Vec<Presence>,
    /// From when a connection that the plan keeps away may come back; 0 if it keeps it not. Empty
    /// while it keeps nobody.
    away_until_us: Vec<u64>,
    /// How many it keeps away, or has not yet seen again.
    pub(super) away: u64,
    /// When each pair's message under way was due; empty unless pairs answer.
    begun_us: Vec<u64>,
    /// A read mark of the flow is due later. Empty unless there are any.
    marking: Vec<bool>,
    /// Nothing new is begun after this.
    pub(super) end_us: u64,
    pub(super) up: u64,
    pub(super) last_arrival_us: u64,
    /// When the first message was due.
    pub(super) start_us: u64,
    /// Requests beside messages that have no answer yet.
    pub(super) open_asks: u64,
    /// Members who are outside of their groups at present.
    pub(super) outside: FxHashSet<(u32, u32)>,
    /// Those who have logged in and are to subscribe.
    pub(super) unwatching: Vec<u32>,
    /// When each flow's sender was last said to be typing; empty unless there are signals.
    signalled_us: Vec<u64>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(control: &'a Control, plan: &'a Plan, verifier: Verifier) -> Self {
        let users = verifier.flows().users() as usize;
        let flows = verifier.flows().len();
        let pairs = if plan.pingpong.is_some() {
            users.div_ceil(2)
        } else {
            0
        };
        let marks = plan
            .mixed
            .as_ref()
            .is_some_and(|mixed| !mixed.read_delay.is_zero());
        Self {
            control,
            plan,
            verifier,
            transport: Transport::default(),
            figures: Figures::new(),
            later: Later::default(),
            presence: vec![Presence::Never; users],
            away_until_us: Vec::new(),
            away: 0,
            begun_us: vec![0; pairs],
            marking: vec![false; if marks { flows } else { 0 }],
            end_us: u64::MAX,
            up: 0,
            last_arrival_us: 0,
            start_us: u64::MAX,
            open_asks: 0,
            outside: FxHashSet::default(),
            unwatching: Vec::new(),
            signalled_us: vec![0; if plan.typing.is_some() { flows } else { 0 }],
        }
    }

    pub(super) fn event(&mut self, now: Now, conn: u32, event: &Happened<'_>) {
        match *event {
            Happened::Arrived {
                body,
                author,
                place,
                crowd,
            } => {
                self.last_arrival_us = now.mono_us;
                let said = Said {
                    author,
                    place,
                    crowd,
                };
                let arrived = self.verifier.arrived(conn, said, body, now.mono_us);
                if let Some(arrived) = arrived {
                    self.follow_up(arrived, now.mono_us);
                }
            }
            Happened::Accepted {
                name,
                place,
                duplicate,
            } => self.verifier.accepted(name, place, duplicate, now.mono_us),
            Happened::AcceptedCopy { name, duplicate } => {
                self.verifier.accepted_copy(name, duplicate, now.mono_us);
            }
            Happened::Refused {
                name,
                code,
                will_retry,
            } => self.verifier.refused(name, code, will_retry),
            Happened::Receipt { peer, up_to } => self.verifier.receipt(conn, peer, up_to),
            Happened::ReadReceipt { peer, up_to } => self.verifier.read_receipt(conn, peer, up_to),
            Happened::Undecodable => self.verifier.undecodable(),
            Happened::Repeated => self.verifier.repeated(),
            Happened::Secured {
                handshake_us,
                resumed,
            } => self.figures.handshakes.record(handshake_us, resumed),
            Happened::Up { after_us } => self.came_up(conn, now.mono_us, after_us),
            Happened::Down {
                code,
                detail,
                by_peer,
                for_good,
            } => {
                let was_up = self.went_down(conn);
                if (was_up || by_peer) && !self.is_kept_away(conn) {
                    *self.transport.closes.entry(code).or_default() += 1;
                }
                if for_good {
                    self.control
                        .obstruct(turned_away(CloseCode(code), detail, by_peer));
                }
            }
            Happened::ConnectFailed(error) => {
                self.transport.connect_failures += 1;
                self.transport.exhausted += u64::from(is_exhaustion(error));
                if let Some(wanted) = tls_is_wanted(error) {
                    self.control.obstruct(wanted);
                }
            }
            Happened::GroupFailed { code, detail } => {
                let code = ErrorCode(code);
                let detail = printable(detail);
                self.control
                    .obstruct(format!("the target made no group: {code} {detail}"));
            }
            Happened::GroupChanged {
                group,
                user,
                added,
                place,
            } => self.verifier.group_changed(group, user, added, place),
            Happened::ChangeAnswered { ok } => {
                self.open_asks = self.open_asks.saturating_sub(1);
                self.figures.life.changes_failed += u64::from(!ok);
            }
            Happened::Watching { items } => {
                self.open_asks = self.open_asks.saturating_sub(1);
                let life = &mut self.figures.life;
                match items {
                    Some(items) => {
                        life.subscriptions += 1;
                        life.presence_items += items;
                    }
                    None => life.subscriptions_failed += 1,
                }
            }
            Happened::Presence { items } => {
                self.figures.life.presence_frames += 1;
                self.figures.life.presence_items += items;
            }
            Happened::Signal { from } => self.signal_came(conn, from, now.mono_us),
            Happened::Page {
                us,
                entries,
                wrong,
                ok,
            } => {
                self.open_asks = self.open_asks.saturating_sub(1);
                let life = &mut self.figures.life;
                life.pages_answered += u64::from(ok);
                life.entries += entries;
                life.entries_wrong += wrong;
                if ok {
                    life.page_us.saturating_record(us.max(1));
                }
            }
            Happened::Fault(fault) => {
                self.transport.protocol_faults += 1;
                self.transport.fault.get_or_insert_with(|| fault.to_owned());
            }
        }
    }

    /// What the plan makes of an arrival.
    fn follow_up(&mut self, arrived: Arrived, now_us: u64) {
        if let Some(pingpong) = self.plan.pingpong {
            self.follow_pair(arrived.flow, now_us, pingpong.think.as_micros() as u64);
        }
        let Some(mixed) = &self.plan.mixed else {
            return;
        };
        let flows = self.verifier.flows();
        let Arrived { flow, counter, .. } = arrived;
        if let Some(marking) = self.marking.get_mut(flow as usize)
            && !std::mem::replace(marking, true)
        {
            let author: UserId = flows.user(flows.sender(flow));
            let due_us = now_us + mixed.read_delay.as_micros() as u64;
            self.later.add(due_us, Task::Read { flow, author });
        }
        let seed = self.plan.seed;
        if !arrived.is_answer
            && mixed.answers(seed, flow, counter)
            && let Some(back) = flows.back(flow)
        {
            let due_us = now_us + mixed.think_us(seed, flow, counter);
            if due_us < self.end_us {
                let answer = Task::Send {
                    flow: back,
                    is_answer: true,
                };
                self.later.add(due_us, answer);
            }
        }
    }

    /// The first of a pair begins, the other answers at once.
    fn follow_pair(&mut self, flow: u32, now_us: u64, think_us: u64) {
        let flows = self.verifier.flows();
        let is_question = flows.sender(flow).is_multiple_of(2);
        let Some(back) = flows.back(flow) else {
            return;
        };
        let due_us = if is_question {
            now_us
        } else {
            let pair = flows.sender(back) as usize / 2;
            let begun_us = self.begun_us.get(pair).copied().unwrap_or(now_us);
            self.figures.round_trip(now_us.saturating_sub(begun_us));
            now_us + think_us
        };
        // An answer that is owed is given, also after the end.
        if is_question || due_us < self.end_us {
            let next = Task::Send {
                flow: back,
                is_answer: is_question,
            };
            self.later.add(due_us, next);
        }
    }

    /// The sender of a flow was said to be typing.
    pub(super) fn signalled(&mut self, flow: u32, now_us: u64) {
        self.figures.life.signals += 1;
        if let Some(signalled) = self.signalled_us.get_mut(flow as usize) {
            *signalled = now_us;
        }
    }

    fn signal_came(&mut self, conn: u32, from: UserId, now_us: u64) {
        let flows = self.verifier.flows();
        let flow = flows
            .index_of(from)
            .and_then(|sender| flows.between(sender, flows.user(conn)));
        let Some(flow) = flow else {
            return;
        };
        let sent_us = self.signalled_us.get(flow as usize).copied().unwrap_or(0);
        let life = &mut self.figures.life;
        life.signals_arrived += 1;
        if sent_us != 0 {
            let us = now_us.saturating_sub(sent_us).max(1);
            life.signal_us.saturating_record(us);
        }
    }

    /// A message of a pair's first went out that was due then.
    pub(super) fn pair_begins(&mut self, flow: u32, due_us: u64) {
        let sender = self.verifier.flows().sender(flow);
        if sender.is_multiple_of(2)
            && let Some(begun_us) = self.begun_us.get_mut(sender as usize / 2)
        {
            *begun_us = due_us;
        }
    }

    /// How far the reader of a flow marks it as read now.
    pub(super) fn mark_read(&mut self, flow: u32) -> Option<portico_wire::ids::ConvSeq> {
        if let Some(marking) = self.marking.get_mut(flow as usize) {
            *marking = false;
        }
        self.verifier.mark_read(flow)
    }

    /// The plan keeps a connection away until then.
    pub(super) fn keep_away(&mut self, conn: u32, until_us: u64) {
        if self.away_until_us.is_empty() {
            self.away_until_us.resize(self.presence.len(), 0);
        }
        if let Some(until) = self.away_until_us.get_mut(conn as usize) {
            self.away += u64::from(*until == 0);
            *until = until_us.max(1);
            self.verifier.touch(conn);
        }
    }

    pub(super) fn is_kept_away(&self, conn: u32) -> bool {
        let until = self.away_until_us.get(conn as usize);
        until.is_some_and(|until| *until != 0)
    }

    fn came_up(&mut self, conn: u32, now_us: u64, after_us: u64) {
        let Some(presence) = self.presence.get_mut(conn as usize) else {
            return;
        };
        match std::mem::replace(presence, Presence::Up) {
            Presence::Up => return,
            Presence::Never => {}
            Presence::Down => self.transport.reconnects += 1,
        }
        self.up += 1;
        self.figures.login(after_us);
        if let Some(presence) = self.plan.presence {
            let again_us = presence.again.as_micros() as u64;
            if now_us >= self.start_us.saturating_add(again_us) {
                self.unwatching.push(conn);
            }
        }
        if let Some(until) = self.away_until_us.get_mut(conn as usize)
            && *until != 0
        {
            self.figures.came_back(now_us.saturating_sub(*until));
            *until = 0;
            self.away -= 1;
            self.verifier.calm(conn, now_us);
        }
    }

    /// True if there was something to go down.
    fn went_down(&mut self, conn: u32) -> bool {
        match self.presence.get_mut(conn as usize) {
            Some(presence @ Presence::Up) => {
                *presence = Presence::Down;
                self.up -= 1;
                true
            }
            _ => false,
        }
    }
}
