//! A gateway without sockets: shards, a store and clients under virtual time, on one thread.
//!
//! [`World`] plays the driver. Everything that could happen next is an [`Event`]; a test lets all of
//! them happen ([`World::run`]), or chooses one at a time and so makes any interleaving that real
//! sockets, storage threads and cores could make. Time stands still unless [`World::advance`] moves
//! it. Two worlds that are treated alike behave alike, to the byte ([`World::trace`]).
//!
//! # Invariants
//! - A connection's bytes arrive in order; so do the messages of a pair of shards, and the writes
//!   of a lane.
//! - Nothing of a connection is in flight when it moves to another shard.
//! - An index is used again as soon as its connection is gone, with the next generation.
//!
//! # Does not
//! Decide what is right: that is for the tests. But what no test may see broken is checked here:
//! by [`ModelStore`] for every command, by [`Client`] for every frame, by
//! [`Shard::check_invariants`] when asked.

mod bare;
mod client;
mod groups;
mod hands;
mod invariants;
mod people;
mod store;

pub use bare::{Bare, BareWheel, Seat};
pub use client::{Client, Got, Outgoing};
pub use store::{CmdKind, ModelStore};

use crate::{
    AuthError, Credentials, Effect, Effects, Grant, Input, Limits, Now, Policy, Revocation,
    Session, Shard, ShardConfig, ShardId, ShardMessage, conn::ConnId, conv_home, feed,
    store::StoreRequest, user_home,
};
use portico_wire::{
    encode::{Encoder, put_ack},
    ids::{ConvId, ConvSeq, DeviceId, UserId},
};
use rustc_hash::FxHasher;
use std::{
    collections::{BTreeMap, VecDeque},
    hash::{Hash, Hasher},
    mem,
    net::IpAddr,
};

/// Where a world's wall clock starts: some day in 2026.
pub const START_US: u64 = 1_790_000_000_000_000;
/// More events than any test needs: a world that never comes to rest is an error.
const EVENTS_MAX: usize = 3_000_000;

/// What shards know and keep within bounds: no sign that anything is left to do.
pub const KNOWLEDGE: [&str; 3] = [
    "portico_last_seen",
    "portico_restricted_users",
    "portico_restrictions_bytes",
];

/// Something that may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The gateway reads from a client.
    Read(usize),
    /// The kernel takes what the gateway has for a client, and the client gets it.
    Send(usize),
    /// The oldest message between two shards arrives.
    Mesh { from: usize, to: usize },
    /// The oldest hand-over that nothing stands in the way of.
    Move(usize),
    /// The store works.
    Execute { shard: usize, read: bool },
    /// The store answers, one of the `of` answers it could give.
    Answer { shard: usize, of: usize },
}

#[derive(Debug, Default)]
struct Socket {
    generation: u32,
    client: Option<usize>,
    /// Read and not yet understood.
    unread: Vec<u8>,
    /// There is something new to look at.
    hungry: bool,
    moving: bool,
    dirty: bool,
    in_flight: Vec<u8>,
    /// What the kernel has and the client has not read.
    kernel: Vec<u8>,
    last: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Node {
    shard: Shard,
    sockets: Vec<Socket>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Moving {
    from: usize,
    conn: ConnId,
    to: ShardId,
    session: Session,
}

/// See the head of this file.
#[derive(Debug)]
pub struct World {
    pub store: ModelStore,
    config: ShardConfig,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    links: BTreeMap<(usize, usize), VecDeque<ShardMessage>>,
    moves: VecDeque<Moving>,
    /// Hand-overs that fail from now on.
    pub failing_moves: usize,
    /// What the authenticator says to everybody, if it does not look at tokens.
    pub auth_outage: Option<AuthError>,
    /// Where clients come from that connect from now on; none: nobody knows.
    pub source: Option<IpAddr>,
    now: Now,
    encoder: Encoder,
    fx: Effects,
    ids: u128,
    trace: Option<u64>,
}

impl World {
    /// `shards` shards over an empty store.
    #[must_use]
    pub fn new(shards: u16, limits: Limits) -> Self {
        let config = ShardConfig {
            node: "test".to_owned(),
            limits,
            ..ShardConfig::new(ShardId(0), shards)
        };
        let mut world = Self {
            store: ModelStore::default(),
            config,
            nodes: Vec::new(),
            clients: Vec::new(),
            links: BTreeMap::new(),
            moves: VecDeque::new(),
            failing_moves: 0,
            auth_outage: None,
            source: None,
            now: Now {
                mono_us: 1_000_000,
                wall_us: START_US,
            },
            encoder: Encoder::new(),
            fx: Effects::default(),
            ids: 0,
            trace: None,
        };
        world.start(shards);
        world
    }

    fn start(&mut self, shards: u16) {
        self.config.shards = shards;
        self.config.seq_floor = self.store.ceiling();
        self.store.restart(usize::from(shards));
        self.links.clear();
        self.moves.clear();
        let open: Vec<_> = self.store.fan_outs().collect();
        let of = |shard| {
            let home = |(conv, _): &&(ConvId, ConvSeq)| conv_home(*conv, shards) == ShardId(shard);
            open.iter().filter(home).copied().collect()
        };
        self.nodes = (0..shards)
            .map(|shard| Node {
                shard: Shard::new(ShardConfig {
                    shard: ShardId(shard),
                    open_fan_outs: of(shard),
                    restricted: self.restricted(ShardId(shard)),
                    ..self.config.clone()
                }),
                sockets: Vec::new(),
                free: Vec::new(),
            })
            .collect();
    }

    /// The process dies and another one starts over the same store, perhaps with another number of
    /// shards. Work that the store had not executed is lost, every connection is cut.
    pub fn restart(&mut self, shards: u16) {
        for client in &mut self.clients {
            client.seat = None;
            client.pipe.clear();
        }
        self.start(shards);
    }

    /// From now on everything the shards ask for goes into [`Self::trace`].
    pub fn record(&mut self) {
        self.trace = Some(0);
    }

    /// A hash of all effects since [`Self::record`].
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.trace.unwrap_or_default()
    }

    // ---- time

    #[must_use]
    pub const fn now(&self) -> Now {
        self.now
    }

    /// Moves the wall clock alone, forward or back.
    pub const fn set_wall_us(&mut self, wall_us: u64) {
        self.now.wall_us = wall_us;
    }

    /// Lets time pass, with every deadline on the way in its turn.
    ///
    /// # Panics
    /// If a deadline stays due although it was looked at.
    pub fn advance(&mut self, ms: u64) {
        let end_us = self.now.mono_us + ms * 1_000;
        let mut idle = 0;
        loop {
            self.run();
            let next = self.nodes.iter().filter_map(|n| n.shard.next_wakeup_us());
            let next_us = next.min().unwrap_or(u64::MAX).max(self.now.mono_us);
            if next_us > end_us {
                break;
            }
            idle = if next_us == self.now.mono_us {
                idle + 1
            } else {
                0
            };
            assert!(idle < 100, "a deadline stays due");
            self.pass(next_us);
            self.tick();
        }
        self.pass(end_us);
    }

    /// Moves both clocks without looking at any deadline, as if the process had slept.
    pub const fn sleep(&mut self, ms: u64) {
        self.pass(self.now.mono_us + ms * 1_000);
    }

    const fn pass(&mut self, mono_us: u64) {
        self.now.wall_us += mono_us - self.now.mono_us;
        self.now.mono_us = mono_us;
    }

    /// Every shard looks at its deadlines.
    pub fn tick(&mut self) {
        for at in 0..self.nodes.len() {
            self.input(at, Input::Tick);
        }
    }

    // ---- events

    /// Everything that could happen now, in a fixed order.
    pub fn ready(&self, events: &mut Vec<Event>) {
        events.clear();
        for (at, client) in self.clients.iter().enumerate() {
            let Some((node, conn)) = client.seat else {
                continue;
            };
            let socket = self.socket(node, conn);
            if self.can_read(at) {
                events.push(Event::Read(at));
            }
            let some =
                !socket.in_flight.is_empty() || !socket.kernel.is_empty() || socket.last.is_some();
            if (socket.dirty && socket.in_flight.is_empty()) || (some && client.reading) {
                events.push(Event::Send(at));
            }
        }
        for (&(from, to), link) in &self.links {
            if !link.is_empty() {
                events.push(Event::Mesh { from, to });
            }
        }
        for (at, moving) in self.moves.iter().enumerate() {
            if self.can_move(moving) {
                events.push(Event::Move(at));
                break;
            }
        }
        for shard in 0..self.nodes.len() {
            for read in [false, true] {
                if self.store.can_execute(shard, read) {
                    events.push(Event::Execute { shard, read });
                }
            }
            let of = self.store.answers(shard);
            if of > 0 {
                events.push(Event::Answer { shard, of });
            }
        }
    }

    /// Makes one of the [`Self::ready`] events happen. `choice` picks among the answers of the
    /// store; one that is no longer possible does nothing.
    pub fn perform(&mut self, event: Event, choice: usize) {
        match event {
            Event::Read(client) => self.read(client),
            Event::Send(client) => self.send_out(client),
            Event::Mesh { from, to } => {
                let next = self
                    .links
                    .get_mut(&(from, to))
                    .and_then(VecDeque::pop_front);
                if let Some(message) = next {
                    let from = ShardId(from as u16);
                    self.input(to, Input::Message { from, message });
                }
            }
            Event::Move(at) => self.hand_over(at),
            Event::Execute { shard, read } => self.store.execute(shard, read),
            Event::Answer { shard, of } => {
                if let Some((token, result)) = self.store.answer(shard, choice % of.max(1)) {
                    self.input(shard, Input::Stored { token, result });
                }
            }
        }
    }

    /// Lets everything happen until nothing more can.
    ///
    /// # Panics
    /// If there is no end to it.
    pub fn run(&mut self) {
        let mut events = Vec::new();
        let mut performed = 0;
        loop {
            self.ready(&mut events);
            if events.is_empty() {
                return;
            }
            for &event in &events {
                self.perform(event, 0);
            }
            performed += events.len();
            assert!(performed < EVENTS_MAX, "the world comes to rest");
        }
    }

    fn can_read(&self, at: usize) -> bool {
        let client = &self.clients[at];
        let Some((node, conn)) = client.seat else {
            return false;
        };
        let socket = self.socket(node, conn);
        let shard = &self.nodes[node].shard;
        let open = !socket.moving && socket.last.is_none();
        let fresh = socket.hungry || !client.pipe.is_empty();
        open && fresh && shard.wants_input(conn) && !shard.is_congested()
    }

    fn read(&mut self, client: usize) {
        let Some((node, conn)) = self.clients[client].seat.filter(|_| self.can_read(client)) else {
            return;
        };
        let pipe = &mut self.clients[client].pipe;
        let chunk = pipe.len().min(self.clients[client].chunk);
        let bytes: Vec<u8> = self.clients[client].pipe.drain(..chunk).collect();
        let socket = self.socket_mut(node, conn);
        socket.hungry = false;
        socket.unread.extend_from_slice(&bytes);
        let unread = mem::take(&mut socket.unread);
        let mut fx = mem::take(&mut self.fx);
        let used = feed(
            &mut self.nodes[node].shard,
            self.now,
            conn,
            &unread,
            &mut fx,
        );
        self.socket_mut(node, conn).unread = unread[used..].to_vec();
        self.absorb(node, fx);
    }

    fn send_out(&mut self, client: usize) {
        let Some((node, conn)) = self.clients[client].seat else {
            return;
        };
        let reading = self.clients[client].reading;
        let socket = self.socket(node, conn);
        if socket.dirty && socket.in_flight.is_empty() {
            let bytes = self.nodes[node].shard.take_output(conn);
            let socket = self.socket_mut(node, conn);
            socket.dirty = false;
            socket.in_flight = bytes;
        }
        if !reading {
            return;
        }
        let socket = self.socket_mut(node, conn);
        let (early, bytes) = (
            mem::take(&mut socket.kernel),
            mem::take(&mut socket.in_flight),
        );
        self.deliver(client, &early);
        if !bytes.is_empty() {
            self.deliver(client, &bytes);
            let written = Input::Written {
                conn,
                bytes: bytes.len(),
            };
            self.input(node, written);
            self.nodes[node].shard.recycle(bytes);
        }
        let socket = self.socket_mut(node, conn);
        if socket.in_flight.is_empty()
            && let Some(last) = socket.last.take()
        {
            self.deliver(client, &last);
            self.leave(client);
        }
    }

    fn deliver(&mut self, at: usize, bytes: &[u8]) {
        let client = &mut self.clients[at];
        let fresh = client.receive(bytes);
        if client.acking
            && let Some(up_to) = fresh.last()
        {
            put_ack(&mut client.pipe, *up_to, client.receive_max);
        }
    }

    fn can_move(&self, moving: &Moving) -> bool {
        let socket = self.socket(moving.from, moving.conn);
        socket.in_flight.is_empty()
    }

    fn hand_over(&mut self, at: usize) {
        if !self
            .moves
            .get(at)
            .is_some_and(|moving| self.can_move(moving))
        {
            return;
        }
        let Some(moving) = self.moves.remove(at) else {
            return;
        };
        let Moving {
            from,
            conn,
            to,
            session,
        } = moving;
        let socket = self.socket_mut(from, conn);
        socket.moving = false;
        let client = socket.client;
        if self.failing_moves > 0 {
            self.failing_moves -= 1;
            self.input(from, Input::MoveFailed { conn });
            if client.is_none() {
                self.free(from, conn);
            }
            return;
        }
        let unread = mem::take(&mut self.socket_mut(from, conn).unread);
        self.input(from, Input::Moved { conn });
        self.free(from, conn);
        let target = usize::from(to.0);
        let new = self.seat(target, client);
        let socket = self.socket_mut(target, new);
        socket.hungry = !unread.is_empty();
        socket.unread = unread;
        self.input(target, Input::Adopted { conn: new, session });
        if client.is_none() {
            // The peer left on the way.
            self.input(target, Input::Ended { conn: new });
            self.free(target, new);
        }
    }

    // ---- sockets

    fn seat(&mut self, node: usize, client: Option<usize>) -> ConnId {
        let Node { sockets, free, .. } = &mut self.nodes[node];
        let index = free.pop().unwrap_or_else(|| {
            sockets.push(Socket::default());
            sockets.len() as u32 - 1
        });
        let socket = &mut sockets[index as usize];
        *socket = Socket {
            generation: socket.generation + 1,
            client,
            ..Socket::default()
        };
        let conn = ConnId {
            index,
            generation: socket.generation,
        };
        if let Some(client) = client {
            self.clients[client].seat = Some((node, conn));
        }
        conn
    }

    fn free(&mut self, node: usize, conn: ConnId) {
        let socket = self.socket_mut(node, conn);
        *socket = Socket {
            generation: socket.generation,
            ..Socket::default()
        };
        self.nodes[node].free.push(conn.index);
    }

    /// The client is no longer connected.
    fn leave(&mut self, client: usize) {
        if let Some((node, conn)) = self.clients[client].seat.take() {
            self.clients[client].pipe.clear();
            self.socket_mut(node, conn).client = None;
            if !self.socket(node, conn).moving {
                self.free(node, conn);
            }
        }
    }

    fn socket(&self, node: usize, conn: ConnId) -> &Socket {
        &self.nodes[node].sockets[conn.index as usize]
    }

    fn socket_mut(&mut self, node: usize, conn: ConnId) -> &mut Socket {
        &mut self.nodes[node].sockets[conn.index as usize]
    }

    // ---- effects

    /// Gives one input to a shard and does what it asks for.
    pub fn input(&mut self, node: usize, input: Input<'_>) {
        let mut fx = mem::take(&mut self.fx);
        self.nodes[node].shard.handle(self.now, input, &mut fx);
        self.absorb(node, fx);
    }

    fn absorb(&mut self, node: usize, mut fx: Effects) {
        if let Some(trace) = &mut self.trace {
            let mut hasher = FxHasher::default();
            (*trace, format!("{node} {:?} {fx:?}", self.now)).hash(&mut hasher);
            *trace = hasher.finish();
        }
        for request in fx.store.drain(..) {
            self.submit(node, request);
        }
        for (to, message) in fx.mesh.drain(..) {
            assert_ne!(
                usize::from(to.0),
                node,
                "the mesh never names the shard itself"
            );
            let link = self.links.entry((node, usize::from(to.0))).or_default();
            link.push_back(message);
        }
        let mut list = mem::take(&mut fx.list);
        fx.clear();
        // The buffer is free again before effects cause further inputs.
        self.fx = fx;
        for effect in list.drain(..) {
            self.carry_out(node, effect);
        }
    }

    fn submit(&mut self, node: usize, request: StoreRequest) {
        let shards = self.config.shards;
        self.store.submit(ShardId(node as u16), shards, request);
    }

    fn carry_out(&mut self, node: usize, effect: Effect) {
        match effect {
            Effect::Output(conn) => self.socket_mut(node, conn).dirty = true,
            Effect::Close { conn, last } => {
                assert!(!self.nodes[node].shard.is_open(conn), "it is forgotten");
                let socket = self.socket_mut(node, conn);
                assert!(!socket.moving, "a moving connection is the driver's");
                socket.dirty = false;
                socket.unread.clear();
                if socket.client.is_some() {
                    socket.last = Some(last);
                }
            }
            Effect::Authenticate { conn, credentials } => {
                let result = match self.auth_outage {
                    Some(error) => Err(error),
                    None => authenticate(&credentials),
                };
                self.input(node, Input::Authenticated { conn, result });
            }
            Effect::Move { conn, to, session } => {
                self.socket_mut(node, conn).moving = true;
                self.moves.push_back(Moving {
                    from: node,
                    conn,
                    to,
                    session,
                });
            }
            Effect::Resume(conn) => self.socket_mut(node, conn).hungry = true,
            Effect::Recall(conn) => self.take_back(node, conn),
        }
    }

    /// The kernel has taken a part of what was on its way, wherever that ends.
    fn take_back(&mut self, node: usize, conn: ConnId) {
        let socket = self.socket_mut(node, conn);
        let bytes = mem::take(&mut socket.in_flight);
        if bytes.is_empty() {
            return;
        }
        socket.dirty = true;
        let sent = bytes.len() / 3;
        socket.kernel.extend_from_slice(&bytes[..sent]);
        self.nodes[node].shard.take_back(conn, bytes, sent);
    }

    // ---- the shards

    #[must_use]
    pub fn shards(&self) -> usize {
        self.nodes.len()
    }

    #[must_use]
    pub fn shard(&self, at: usize) -> &Shard {
        &self.nodes[at].shard
    }

    /// The sum of a counter over the shards.
    #[must_use]
    pub fn count(&self, counter: crate::Counter) -> u64 {
        let shards = self.nodes.iter();
        shards.map(|node| node.shard.counters().get(counter)).sum()
    }

    /// Tells every shard to drain.
    pub fn drain(&mut self, spread_ms: u32, deadline_ms: u32) {
        for at in 0..self.nodes.len() {
            let drain = Input::Drain {
                spread_ms,
                deadline_ms,
            };
            self.input(at, drain);
        }
    }

    /// Tells the user's home that devices are revoked.
    pub fn revoke(&mut self, revocation: Revocation) {
        let home = user_home(revocation.user, self.config.shards);
        self.input(usize::from(home.0), Input::Revoke(revocation));
    }

    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.nodes.iter().all(|node| node.shard.is_drained())
    }

    /// Gives each shard the rules that this makes.
    pub fn set_policy(&mut self, make: &dyn Fn() -> Box<dyn Policy>) {
        for node in &mut self.nodes {
            node.shard.set_policy(make());
        }
    }

    /// Connections that count for a source, because they have not logged in.
    #[must_use]
    pub fn residue_of_sources(&self) -> usize {
        self.nodes
            .iter()
            .map(|node| node.shard.limiter.waiting())
            .sum()
    }

    /// Checks what must hold between any two inputs.
    ///
    /// # Panics
    /// If it does not.
    pub fn check_invariants(&self) {
        for node in &self.nodes {
            node.shard.check_invariants();
        }
    }

    /// What the shards still hold, by name, without what is zero.
    #[must_use]
    pub fn residue(&self) -> Vec<(&'static str, u64)> {
        let all = self.nodes.iter().flat_map(|node| {
            let gauges = node.shard.gauges().entries();
            let gauges = gauges.into_iter().map(|(name, _, value)| (name, value));
            gauges.chain(node.shard.residue()).collect::<Vec<_>>()
        });
        all.filter(|(name, value)| *value > 0 && !KNOWLEDGE.contains(name))
            .collect()
    }
}

/// Tokens are "user:device", or "user:device:until" with Unix seconds, or with an epoch as a fourth
/// part; some words stand for what an authenticator may find. A resume token is
/// the same text, and is believed in the same way.
fn authenticate(credentials: &Credentials) -> Result<Grant, AuthError> {
    let resumed = credentials.resume_token.as_deref().and_then(read_token);
    let (user, device, expires_unix_s, epoch) = match (resumed, credentials.token.as_deref()) {
        (Some(names), _) => names,
        (None, Some("expired")) => return Err(AuthError::Expired),
        (None, Some("revoked")) => return Err(AuthError::Revoked),
        (None, Some(token)) => read_token(token.as_bytes()).ok_or(AuthError::Invalid)?,
        (None, None) if credentials.resume_token.is_some() => {
            return Err(AuthError::ResumeRefused);
        }
        (None, None) => return Err(AuthError::Invalid),
    };
    Ok(Grant {
        user,
        device,
        resumed: resumed.is_some(),
        resume_token: format!("{user}:{device}").into_bytes(),
        resume_ttl_s: 3_600,
        expires_unix_s,
        epoch,
    })
}

fn read_token(token: &[u8]) -> Option<(UserId, DeviceId, u64, u32)> {
    let mut parts = std::str::from_utf8(token).ok()?.split(':');
    let (user, device) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let until = parts.next().map_or(Some(0), |part| part.parse().ok())?;
    let epoch = parts.next().map_or(Some(0), |part| part.parse().ok())?;
    Some((UserId(user), DeviceId(device), until, epoch))
}
