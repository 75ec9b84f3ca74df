//! What must hold in a shard between any two inputs, too costly to check outside tests.

use crate::{
    conn::{Conn, ConnId, NO_CONN, Phase, Replay, Source},
    groups::For,
    lookup::{LISTS_MAX, Lookup, Subject},
    shard::Shard,
    stored::{InStore, Purpose},
    watermark::Batch,
};
use portico_wire::ids::{DeviceId, UserId};
use std::collections::{BTreeMap, BTreeSet};

impl Shard {
    /// # Panics
    /// If an invariant is broken.
    pub fn check_invariants(&self) {
        self.check_chains();
        self.check_windows();
        self.check_requests();
        self.check_logins();
        self.check_absent();
        self.people.check();
        self.presence.check();
        assert!(self.presence.is_settled());
        let busy = self.conns.iter().filter_map(|conn| conn.traffic.as_ref());
        assert!(busy.into_iter().all(|traffic| !traffic.is_at_rest()));
        assert_eq!(self.outbox_bytes, self.output_bytes());
        let reading = self.in_store.values();
        let is_page =
            |open: &&InStore| matches!(open.op, Purpose::Page { .. } | Purpose::History { .. });
        let pages = reading.filter(is_page);
        assert_eq!(self.pages, pages.count());
        assert!(self.pages <= self.pages_max);
        let is_list = |lookup: &&Lookup| matches!(lookup.subject, Subject::List(_));
        let lists = self.lookups.open.values().filter(is_list).count();
        assert_eq!(lists, self.lookups.lists + self.lookups.list_line.len());
        assert!(self.lookups.lists <= LISTS_MAX);
        let bodies = self.outgoing.values().map(|open| open.body_bytes as usize);
        assert_eq!(self.outgoing_bytes, bodies.sum::<usize>());
        assert!(self.attempts.len() <= self.outgoing.len());
        let limited = |conn: &&Conn| {
            let greets = matches!(
                conn.phase,
                Phase::Greeting | Phase::Authenticating | Phase::Moving
            );
            greets && conn.notes.limited
        };
        // Those that arrive from another shard count there no more, and here not.
        let greeting = self.conns.iter().filter(limited).count();
        assert!(self.limiter.waiting() <= greeting);
        for (key, gate) in &self.gates {
            assert!(
                gate.len() <= self.config.limits.gate_messages_max,
                "{key:?}"
            );
        }
    }

    /// Every logged-in connection is in the chain of its user, once, and nobody else is.
    fn check_chains(&self) {
        let mut seen = BTreeSet::new();
        for first in self.users.firsts() {
            let user = self.conns[first as usize].user;
            let mut devices = BTreeSet::<DeviceId>::new();
            for index in self.chain(user) {
                let conn = &self.conns[index as usize];
                assert!(conn.is_logged_in() && conn.user == user);
                assert!(devices.insert(conn.device), "one connection per device");
                assert!(seen.insert(index), "one chain per connection");
            }
            assert!(!devices.is_empty(), "no user without a connection");
        }
        let logged_in = self.conns.iter().filter(|conn| conn.is_logged_in());
        assert_eq!(logged_in.count(), seen.len());
        let gauges = self.gauges();
        assert_eq!(gauges.sessions, seen.len() as u64);
        let open = self.conns.iter().filter(|conn| conn.phase != Phase::Free);
        assert_eq!(gauges.connections, open.count() as u64);
        let free = self.conns.iter().filter(|conn| conn.phase == Phase::Free);
        assert!(
            free.into_iter()
                .all(|conn| conn.next_of_user == NO_CONN && conn.traffic.is_none())
        );
    }

    /// Who waits for the authenticator has a login, and nobody else.
    fn check_logins(&self) {
        for (index, conn) in self.conns.iter().enumerate() {
            let waits = conn.phase == Phase::Authenticating;
            assert_eq!(self.logins.contains_key(&(index as u32)), waits);
        }
        for index in self.reauths.keys() {
            assert_eq!(self.conns[*index as usize].phase, Phase::Open);
        }
        let waiting = self.logins.len() + self.reauths.len();
        assert!(waiting <= self.config.limits.sign_ins_max);
    }

    /// Who is away has no session, and nothing that is settled waits for it (the store's side of
    /// this is checked by the tests, which see what arrives).
    fn check_absent(&self) {
        assert_eq!(self.absent.iter().count(), self.absent.len());
        for known in self.absent.iter() {
            let here = self.devices_here(known.user);
            assert!(!here.contains(&known.device), "{known:?} is here");
            assert!(here.is_empty() || known.siblings, "{known:?}: {here:?}");
            assert!(known.cursor <= self.lane.visible());
        }
    }

    fn check_windows(&self) {
        let limits = &self.config.limits;
        for conn in self.conns.iter().filter(|conn| conn.phase == Phase::Open) {
            let window = conn.traffic.iter().flat_map(|traffic| &traffic.window);
            let seqs: Vec<_> = window.map(|frame| frame.seq).collect();
            assert!(seqs.is_sorted(), "O2: the window ascends");
            assert!(seqs.len() <= limits.receive_max as usize, "O4");
            assert!(seqs.last().is_none_or(|last| *last <= conn.sent));
            assert!(conn.acked <= conn.sent || conn.notes.replay != Replay::Done);
            if let Some(unsettled) = self.lane.unsettled() {
                assert!(conn.sent < unsettled, "O1: nothing beyond what is settled");
            }
            assert!(conn.pending_bytes() <= limits.outbox_bytes_max, "O16");
            assert!(conn.source != Source::Live || conn.notes.replay == Replay::Done);
            assert!(
                !conn.is_stalled() || conn.pending_bytes() > 0,
                "something is sent that tells when it reads"
            );
        }
    }

    /// What each connection waits for is what the shard owes it.
    fn check_requests(&self) {
        let mut owed = BTreeMap::new();
        let mut owe = |conn: ConnId, weight: usize| *owed.entry(conn).or_insert(0) += weight;
        for attempt in self.outgoing.values() {
            if let Some(conn) = attempt.conn {
                owe(conn, 1);
            }
        }
        for asker in self.asked.values() {
            if let For::Client { conn, .. } = asker {
                owe(*conn, 1);
            }
        }
        for listing in self.listings.values() {
            owe(listing.conn, 1);
        }
        for lookup in self.lookups.open.values() {
            owe(lookup.conn, 1);
        }
        for request in self.presence.requests.values() {
            owe(request.conn, 1);
        }
        for edit in self.people.edits.values().flatten() {
            owe(edit.conn, 1);
        }
        for page in self.people.pages() {
            owe(page.conn, 1);
        }
        for open in self.in_store.values() {
            if let Purpose::Contacts { page, .. } = &open.op {
                owe(page.conn, 1);
            }
        }
        for query in self.queries.values() {
            owe(query.conn, usize::from(query.weight));
        }
        let unsaved = self.unsaved.marks.values().flat_map(|(_, waiting)| waiting);
        let saving = self.in_store.values().filter_map(|open| match &open.op {
            Purpose::Save(Batch::Marks(marks)) => Some(marks),
            _ => None,
        });
        let saving = saving.flatten().flat_map(|(_, (_, waiting))| waiting);
        for (conn, _) in unsaved.chain(saving) {
            owe(*conn, 1);
        }
        for (index, conn) in self.conns.iter().enumerate() {
            if conn.phase == Phase::Open {
                let id = self.id_of(index as u32);
                let owed = owed.get(&id).copied().unwrap_or(0);
                assert_eq!(usize::from(conn.requests), owed, "requests of {id:?}");
            }
        }
    }

    /// Queues without a gauge.
    #[must_use]
    pub fn residue(&self) -> Vec<(&'static str, u64)> {
        let windows = self.conns.iter().filter(|conn| conn.unacknowledged() > 0);
        vec![
            ("lane", self.lane.len() as u64),
            ("queries", self.queries.len() as u64),
            ("asked", self.asked.len() as u64),
            ("listings", self.listings.len() as u64),
            ("fan_outs", self.groups.fan_outs.len() as u64),
            ("fan_out_bytes", self.groups.fan_out_bytes as u64),
            ("group retries", self.groups.retries.len() as u64),
            ("reopening", self.groups.reopening as u64),
            ("lookups", self.lookups.open.len() as u64),
            ("lookup_line", self.lookups.line.len() as u64),
            ("lists", self.lookups.lists as u64),
            ("list_line", self.lookups.list_line.len() as u64),
            ("send_deadlines", self.send_deadlines.len() as u64),
            ("page_retries", self.page_retries.len() as u64),
            ("attempts", self.attempts.len() as u64),
            ("outgoing_bytes", self.outgoing_bytes as u64),
            ("presence_requests", self.presence.requests.len() as u64),
            ("reauths", self.reauths.len() as u64),
            ("windows", windows.count() as u64),
            ("output_bytes", self.output_bytes() as u64),
        ]
    }

    fn output_bytes(&self) -> usize {
        self.conns.iter().map(Conn::pending_bytes).sum()
    }

    /// What is kept for reuse.
    #[must_use]
    pub fn pooled_bytes(&self) -> usize {
        self.pool.bytes()
    }

    /// The user's devices that are here.
    #[must_use]
    pub fn devices_here(&self, user: UserId) -> Vec<DeviceId> {
        self.chain(user)
            .map(|index| self.conns[index as usize].device)
            .collect()
    }
}
