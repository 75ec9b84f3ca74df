//! Shards with nothing around them: every request is answered at once, by an answer that costs
//! next to nothing and allocates nothing. What a bench measures over it, or a counting allocator,
//! is the shard's own work.
//!
//! # Does not
//! Check what clients get, keep what is stored, or reorder anything: that is [`super::World`].

use super::START_US;
use crate::{
    ConnId, Counter, Effect, Effects, Grant, Input, Limits, Now, Rates, Shard, ShardConfig,
    ShardId, ShardMessage, feed,
    store::{RecordCmd, StoreCmd, StoreReply, StoreRequest},
    timer::Wheel,
    user_home,
};
use portico_wire::{
    RouteHeader,
    encode::Encoder,
    ids::{DeviceId, Seq, UserId},
    message::Hello,
};
use std::net::IpAddr;

/// A connection, and the shard it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    pub shard: ShardId,
    pub conn: ConnId,
}

/// See the head of this file. Users are numbered from 1 and have one device each.
#[derive(Debug)]
pub struct Bare {
    pub now: Now,
    nodes: Vec<Node>,
    /// By user: where it sits, and the newest number in its inbox.
    seats: Vec<Seat>,
    newest: Vec<Seq>,
    encoder: Encoder,
    source: Option<IpAddr>,
}

#[derive(Debug)]
struct Node {
    shard: Shard,
    fx: Effects,
    /// The lists that are being carried out, kept for reuse.
    list: Vec<Effect>,
    store: Vec<StoreRequest>,
    mesh: Vec<(ShardId, ShardMessage)>,
    /// By connection.
    users: Vec<UserId>,
}

impl Bare {
    /// So many shards, with room for so many connections each. Logins have no bound.
    #[must_use]
    pub fn new(shards: u16, connections_hint: usize) -> Self {
        Self::with_rates(shards, connections_hint, None)
    }

    /// The same with clients that come from somewhere, so that these rates hold for them.
    #[must_use]
    pub fn with_rates(shards: u16, connections_hint: usize, rates: Option<Rates>) -> Self {
        let source = rates.as_ref().map(|_| IpAddr::from([192, 0, 2, 1]));
        let limits = Limits {
            logins_per_s: 0,
            rates: rates.unwrap_or_default(),
            ..Limits::default()
        };
        let node = |shard| Node {
            shard: Shard::new(ShardConfig {
                connections_hint,
                limits: limits.clone(),
                ..ShardConfig::new(ShardId(shard), shards)
            }),
            fx: Effects::default(),
            list: Vec::new(),
            store: Vec::new(),
            mesh: Vec::new(),
            users: Vec::with_capacity(connections_hint),
        };
        Self {
            now: Now {
                mono_us: 1_000_000,
                wall_us: START_US,
            },
            nodes: (0..shards).map(node).collect(),
            seats: Vec::with_capacity(connections_hint),
            newest: Vec::with_capacity(connections_hint),
            encoder: Encoder::new(),
            source,
        }
    }

    /// Bytes that this harness and its lists of effects hold, for whoever counts those of the
    /// shards.
    #[must_use]
    pub fn own_bytes(&self) -> usize {
        let of_node = |Node {
                           fx,
                           list,
                           store,
                           mesh,
                           users,
                           ..
                       }: &Node| {
            (fx.list.capacity() + list.capacity()) * size_of::<Effect>()
                + (fx.store.capacity() + store.capacity()) * size_of::<StoreRequest>()
                + (fx.mesh.capacity() + mesh.capacity()) * size_of::<(ShardId, ShardMessage)>()
                + users.capacity() * size_of::<UserId>()
        };
        self.nodes.iter().map(of_node).sum::<usize>()
            + self.seats.capacity() * size_of::<Seat>()
            + self.newest.capacity() * size_of::<Seq>()
    }

    /// Logs the next user in, at home. Returns its number.
    pub fn login(&mut self) -> u64 {
        let user = UserId(self.seats.len() as u64 + 1);
        let shard = user_home(user, self.nodes.len() as u16);
        let node = &mut self.nodes[usize::from(shard.0)];
        let conn = ConnId {
            index: node.users.len() as u32,
            generation: 1,
        };
        node.users.push(user);
        self.seats.push(Seat { shard, conn });
        self.newest.push(Seq(0));
        if let Some(source) = self.source {
            let now = self.now;
            let node = &mut self.nodes[usize::from(shard.0)];
            assert!(node.shard.admit_source(now, conn, source), "it has room");
        }
        self.handle(shard, Input::Opened { conn });
        let mut hello = Vec::new();
        self.encoder.hello(&mut hello, 1, &Hello::default());
        self.receive(user.0, &hello);
        self.settle();
        user.0
    }

    /// The shard takes bytes of this user. Nothing is carried out yet.
    ///
    /// # Panics
    /// If the shard leaves some of them.
    pub fn receive(&mut self, user: u64, bytes: &[u8]) {
        let Seat { shard, conn } = self.seats[user as usize - 1];
        let node = &mut self.nodes[usize::from(shard.0)];
        let used = feed(&mut node.shard, self.now, conn, bytes, &mut node.fx);
        assert_eq!(used, bytes.len(), "the shard takes everything");
    }

    /// The id of the group that a user makes with such a header.
    #[must_use]
    pub fn group_id(user: u64, route: &RouteHeader) -> u64 {
        crate::groups::group_id(UserId(user), DeviceId(1), route.msg_id).0
    }

    /// The newest number in a user's inbox: what an ACK of everything says.
    #[must_use]
    pub fn newest(&self, user: u64) -> Seq {
        self.newest[user as usize - 1]
    }

    /// Sum over the shards.
    #[must_use]
    pub fn count(&self, counter: Counter) -> u64 {
        let of = |node: &Node| node.shard.counters().get(counter);
        self.nodes.iter().map(of).sum()
    }

    /// Moves both clocks; deadlines are not looked at.
    pub const fn pass_us(&mut self, us: u64) {
        self.now.mono_us += us;
        self.now.wall_us += us;
    }

    /// Every shard looks at its deadlines.
    pub fn tick(&mut self) {
        for at in 0..self.nodes.len() {
            self.handle(ShardId(at as u16), Input::Tick);
        }
    }

    /// Carries out all that the shards ask for, and what follows from that.
    pub fn settle(&mut self) {
        while self.carry_messages() | self.answer_store() | self.send_out() {}
    }

    /// Messages between shards arrive. True if there was one.
    pub fn carry_messages(&mut self) -> bool {
        let mut any = false;
        for at in 0..self.nodes.len() {
            let node = &mut self.nodes[at];
            std::mem::swap(&mut node.fx.mesh, &mut node.mesh);
            let mut messages = std::mem::take(&mut node.mesh);
            any |= !messages.is_empty();
            let from = ShardId(at as u16);
            for (to, message) in messages.drain(..) {
                self.handle(to, Input::Message { from, message });
            }
            self.nodes[at].mesh = messages;
        }
        any
    }

    /// The store answers all that it was asked. True if it was asked anything.
    pub fn answer_store(&mut self) -> bool {
        let mut any = false;
        for node in &mut self.nodes {
            std::mem::swap(&mut node.fx.store, &mut node.store);
            any |= !node.store.is_empty();
            for request in node.store.drain(..) {
                let reply = match request.cmd {
                    StoreCmd::Append { to, .. } => {
                        self.newest[to.user.0 as usize - 1] = to.seq;
                        StoreReply::Done
                    }
                    // Vectors without elements hold no memory.
                    StoreCmd::Cursors { .. } => StoreReply::Cursors(Vec::new()),
                    StoreCmd::Marks { .. } => StoreReply::Marks(Vec::new()),
                    StoreCmd::Find { .. } => StoreReply::Found(Vec::new()),
                    StoreCmd::Replay { .. } => StoreReply::Page {
                        items: Vec::new(),
                        more: false,
                    },
                    StoreCmd::History { .. } => StoreReply::Entries {
                        entries: Vec::new(),
                        more: false,
                    },
                    StoreCmd::References { .. } => StoreReply::References {
                        refs: Vec::new(),
                        more: false,
                    },
                    StoreCmd::Count { .. } => StoreReply::Count(0),
                    StoreCmd::AddRefs { refs } => {
                        for to in &refs {
                            self.newest[to.user.0 as usize - 1] = to.seq;
                        }
                        StoreReply::Done
                    }
                    StoreCmd::Redact { .. }
                    | StoreCmd::SetCursors { .. }
                    | StoreCmd::SetMarks { .. }
                    | StoreCmd::Record(RecordCmd::Put { .. } | RecordCmd::Delete { .. }) => {
                        StoreReply::Done
                    }
                    StoreCmd::Record(RecordCmd::Get { .. }) => StoreReply::Record(None),
                    StoreCmd::AppendFanOut { .. } | StoreCmd::EndFanOut { .. } => StoreReply::Done,
                    StoreCmd::Record(RecordCmd::Scan { .. }) => StoreReply::Records(Vec::new()),
                };
                let input = Input::Stored {
                    token: request.token,
                    result: Ok(reply),
                };
                node.shard.handle(self.now, input, &mut node.fx);
            }
        }
        any
    }

    /// Clients get what waits for them, and logins their grant. True if there was anything.
    ///
    /// # Panics
    /// If a shard closes or moves a connection.
    pub fn send_out(&mut self) -> bool {
        let mut any = false;
        for node in &mut self.nodes {
            std::mem::swap(&mut node.fx.list, &mut node.list);
            any |= !node.list.is_empty();
            let mut list = std::mem::take(&mut node.list);
            for effect in list.drain(..) {
                node.carry_out(effect, self.now);
            }
            node.list = list;
        }
        any
    }

    fn handle(&mut self, shard: ShardId, input: Input<'_>) {
        let node = &mut self.nodes[usize::from(shard.0)];
        node.shard.handle(self.now, input, &mut node.fx);
    }
}

impl Node {
    fn carry_out(&mut self, effect: Effect, now: Now) {
        match effect {
            Effect::Output(conn) => {
                let out = self.shard.take_output(conn);
                let bytes = out.len();
                self.shard.recycle(out);
                let written = Input::Written { conn, bytes };
                self.shard.handle(now, written, &mut self.fx);
            }
            Effect::Authenticate { conn, .. } => {
                let grant = Grant {
                    user: self.users[conn.index as usize],
                    device: DeviceId(1),
                    resumed: false,
                    resume_token: Vec::new(),
                    resume_ttl_s: 0,
                    ..Grant::default()
                };
                let result = Ok(grant);
                let input = Input::Authenticated { conn, result };
                self.shard.handle(now, input, &mut self.fx);
            }
            Effect::Resume(_) => {}
            Effect::Close { .. } | Effect::Move { .. } | Effect::Recall(_) => {
                panic!("connections stay: {effect:?}")
            }
        }
    }
}

/// The timer wheel of a shard, which has no other use outside of it than to be measured.
#[derive(Debug)]
pub struct BareWheel(Wheel);

impl BareWheel {
    #[must_use]
    pub fn new(connections_hint: usize) -> Self {
        Self(Wheel::new(connections_hint))
    }

    #[inline]
    pub fn set(&mut self, index: u32, deadline_s: u32) {
        self.0.set(index, deadline_s);
    }

    #[inline]
    pub fn cancel(&mut self, index: u32) {
        self.0.cancel(index);
    }

    #[inline]
    pub fn advance(&mut self, now_s: u32, due: &mut Vec<u32>) {
        self.0.advance(now_s, due);
    }

    #[inline]
    #[must_use]
    pub fn next_s(&self) -> Option<u32> {
        self.0.next_s()
    }
}
