//! The gateway's process: real shards, and a driver for them that goes by virtual time.
//!
//! It does what the driver of sockets does, by the same rules: one send per connection at a time,
//! nothing read from who is not to be read from, a move when nothing is in flight, two seconds for
//! last words. It differs from `portico_core::testing::World` in that nothing happens at once:
//! every effect is carried out by itself, and the process may die between any two of them.

mod sockets;

use crate::{canary::Canary, event::Event, slots::Slots, world::World};
use portico_core::{
    AuthError, ConnId, Credentials, Effect, Effects, Grant, Input, Now, Session, Shard,
    ShardConfig, ShardId, ShardMessage, user_home,
};
use portico_wire::ids::{DeviceId, UserId};
use std::{collections::VecDeque, mem};

/// From the decision to close until the connection is closed at the latest.
const LEAVE_MAX_US: u64 = 2_000_000;
/// The kernel takes so much at once.
const SEND_BYTES_MAX: usize = 32 << 10;
/// An authenticator that is asked during an outage says so after this at the latest.
const AUTH_PATIENCE_US: u64 = 12_000_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Free,
    Open,
    Moving,
    Leaving,
}

#[derive(Debug, Default)]
struct Socket {
    generation: u32,
    state: State,
    line: usize,
    /// Arrived and not yet understood.
    unread: Vec<u8>,
    /// The peer will send no more.
    ended: bool,
    is_hungry: bool,
    is_dirty: bool,
    /// Taken from the shard, and how much of it the kernel has.
    sending: Vec<u8>,
    sent: usize,
    /// What is to be said at last.
    farewell: Vec<u8>,
}

#[derive(Debug)]
struct Node {
    shard: Shard,
    sockets: Vec<Socket>,
    free: Vec<u32>,
    dirty: Vec<u32>,
    hungry: Vec<u32>,
    /// A turn is on the agenda.
    turning: bool,
    /// The next tick on the agenda.
    tick_us: u64,
}

impl Node {
    const fn conn(&self, index: u32) -> ConnId {
        ConnId {
            index,
            generation: self.sockets.as_slice()[index as usize].generation,
        }
    }

    fn socket(&mut self, conn: ConnId) -> Option<&mut Socket> {
        let socket = self.sockets.get_mut(conn.index as usize)?;
        let is_it = socket.generation == conn.generation && socket.state != State::Free;
        is_it.then_some(socket)
    }

    fn seat(&mut self, line: usize) -> ConnId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.sockets.push(Socket::default());
            self.sockets.len() as u32 - 1
        });
        let socket = &mut self.sockets[index as usize];
        *socket = Socket {
            generation: socket.generation + 1,
            state: State::Open,
            line,
            ..Socket::default()
        };
        self.conn(index)
    }

    fn vacate(&mut self, conn: ConnId) {
        if let Some(socket) = self.socket(conn) {
            *socket = Socket {
                generation: socket.generation,
                ..Socket::default()
            };
            self.free.push(conn.index);
        }
    }

    fn mark_dirty(&mut self, index: u32) {
        if !mem::replace(&mut self.sockets[index as usize].is_dirty, true) {
            self.dirty.push(index);
        }
    }

    fn mark_hungry(&mut self, index: u32) {
        if !mem::replace(&mut self.sockets[index as usize].is_hungry, true) {
            self.hungry.push(index);
        }
    }
}

#[derive(Debug)]
struct Moving {
    from: u16,
    conn: ConnId,
    to: u16,
    session: Session,
}

/// Letters from one shard to another, and when the last of them arrives.
#[derive(Debug, Default)]
struct Link {
    letters: VecDeque<ShardMessage>,
    last_us: u64,
}

/// One life of the gateway.
#[derive(Debug)]
pub(crate) struct Gateway {
    nodes: Vec<Node>,
    links: Vec<Link>,
    moves: VecDeque<Moving>,
    logins: Slots<(u16, ConnId, Credentials)>,
    pub(crate) is_draining: bool,
}

impl Gateway {
    pub(crate) fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.nodes.iter().map(|node| &node.shard)
    }

    fn node(&mut self, shard: u16) -> &mut Node {
        &mut self.nodes[usize::from(shard)]
    }

    fn link(&mut self, from: u16, to: u16) -> &mut Link {
        let shards = self.nodes.len();
        &mut self.links[usize::from(from) * shards + usize::from(to)]
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.shards().all(Shard::is_drained)
    }
}

impl World {
    /// The time as the gateway reads it.
    pub(crate) const fn gateway_now(&self) -> Now {
        Now {
            mono_us: self.now_us,
            wall_us: self.wall_us(),
        }
    }

    /// A gateway starts over the store.
    pub(crate) fn boot(&mut self, shards: u16) {
        if self.gateway.is_some() {
            return;
        }
        self.life += 1;
        let seq_floor = self.stage.open(shards);
        self.checker.booted(seq_floor);
        let restricted = self.stage.restricted();
        let at_home = |shard: ShardId| {
            let users = restricted.iter().copied();
            users
                .filter(|user| user_home(*user, shards) == shard)
                .collect()
        };
        self.note(|| format!("gateway: life {} starts with {shards} shards", self.life));
        let node = |shard| Node {
            shard: Shard::new(ShardConfig {
                limits: self.plan.limits.clone(),
                seq_floor,
                restricted: at_home(ShardId(shard)),
                ..ShardConfig::new(ShardId(shard), shards)
            }),
            sockets: Vec::new(),
            free: Vec::new(),
            dirty: Vec::new(),
            hungry: Vec::new(),
            turning: false,
            tick_us: u64::MAX,
        };
        let mut links = Vec::new();
        links.resize_with(usize::from(shards) * usize::from(shards), Link::default);
        self.gateway = Some(Gateway {
            nodes: (0..shards).map(node).collect(),
            links,
            moves: VecDeque::new(),
            logins: Slots::default(),
            is_draining: false,
        });
    }

    /// The process is gone. Of what it had handed to the kernel some arrives.
    pub(crate) fn kill(&mut self) {
        if self.gateway.take().is_none() {
            return;
        }
        self.note(|| "gateway: dies".to_owned());
        self.die_after = None;
        self.tear();
        // Now and then the whole machine: then nobody is told.
        let silent = !self.calm && self.random.one_in(6);
        for at in 0..self.lines.len() {
            if self.lines[at].seat.take().is_none() {
                continue;
            }
            self.lines[at].is_full = false;
            let bytes = self.lines[at].down.in_flight();
            if self.random.one_in(2) {
                let kept = self.random.index(bytes + 1);
                self.lines[at].down.cut(kept);
            }
            if silent {
                self.lines[at].down.cut(bytes);
            } else {
                let pause_us = self.plan.network_delay(&mut self.random);
                self.end_down(at, pause_us);
            }
        }
        let pause_us = self.random.pick(&[1_000, 200_000, 2_000_000, 20_000_000]);
        let shards = self.random.between(1, u64::from(self.plan.shards_max)) as u16;
        self.after(pause_us, Event::Boot { shards });
    }

    // ---- the shards

    /// Gives one input to a shard and has done what it asks for. The process may be gone after it.
    pub(crate) fn input(&mut self, shard: u16, input: Input<'_>) {
        let now = self.gateway_now();
        let mut fx = mem::take(&mut self.fx);
        if let Some(gateway) = &mut self.gateway {
            gateway.node(shard).shard.handle(now, input, &mut fx);
        }
        self.absorb(shard, fx);
    }

    fn absorb(&mut self, shard: u16, mut fx: Effects) {
        // The three lists belong to one moment: any may be first when the process dies.
        let first = if self.die_after.is_some() {
            self.random.below(3)
        } else {
            0
        };
        let mut alive = self.gateway.is_some();
        for list in (first..first + 3).map(|at| at % 3) {
            match list {
                0 => {
                    for request in fx.store.drain(..) {
                        alive = alive && self.goes_on();
                        if alive {
                            self.submit(shard, request);
                        }
                    }
                }
                1 => {
                    for (to, letter) in fx.mesh.drain(..) {
                        alive = alive && self.goes_on();
                        if alive {
                            self.post(shard, to.0, letter);
                        }
                    }
                }
                _ => {
                    for effect in fx.list.drain(..) {
                        alive = alive && self.goes_on();
                        if alive {
                            self.carry_out(shard, effect);
                        }
                    }
                }
            }
        }
        fx.clear();
        self.fx = fx;
        if alive {
            self.turn_soon(shard);
        } else {
            self.kill();
        }
    }

    /// Does the process live to carry out another effect?
    const fn goes_on(&mut self) -> bool {
        match &mut self.die_after {
            Some(0) => return false,
            Some(left) => *left -= 1,
            None => {}
        }
        true
    }

    fn carry_out(&mut self, shard: u16, effect: Effect) {
        let life = self.life;
        let Some(gateway) = &mut self.gateway else {
            return;
        };
        let node = gateway.node(shard);
        match effect {
            Effect::Output(conn) => node.mark_dirty(conn.index),
            Effect::Resume(conn) => node.mark_hungry(conn.index),
            Effect::Close { conn, last } => {
                let Some(socket) = node.socket(conn) else {
                    return;
                };
                let was_moving = socket.state == State::Moving;
                socket.state = State::Leaving;
                socket.unread.clear();
                socket.farewell = last;
                node.mark_dirty(conn.index);
                if was_moving {
                    gateway
                        .moves
                        .retain(|moving| (moving.from, moving.conn) != (shard, conn));
                }
                self.after(LEAVE_MAX_US, Event::Leave { life, shard, conn });
            }
            Effect::Recall(conn) => self.recall(shard, conn),
            Effect::Authenticate { conn, credentials } => {
                let at = gateway.logins.put((shard, conn, credentials));
                let most_us = if self.now_us < self.auth_down_until_us {
                    AUTH_PATIENCE_US
                } else {
                    self.plan.mesh_us
                };
                let pause_us = self.random.stretch(most_us);
                self.after(pause_us, Event::Judge { life, at });
            }
            Effect::Move { conn, to, session } => {
                if let Some(socket) = node.socket(conn) {
                    socket.state = State::Moving;
                    gateway.moves.push_back(Moving {
                        from: shard,
                        conn,
                        to: to.0,
                        session,
                    });
                    let pause_us = self.random.stretch(self.plan.mesh_us);
                    self.after(pause_us, Event::Move { life });
                }
            }
        }
    }

    /// Gives back what the kernel has not taken of a send that waits for room. One that is going on is
    /// left alone, as a driver may.
    fn recall(&mut self, shard: u16, conn: ConnId) {
        let Some(gateway) = &mut self.gateway else {
            return;
        };
        let node = gateway.node(shard);
        let Some(socket) = node.socket(conn) else {
            return;
        };
        let line = &mut self.lines[socket.line];
        if socket.state == State::Open && mem::take(&mut line.is_full) {
            let (buffer, sent) = (mem::take(&mut socket.sending), socket.sent);
            node.shard.take_back(conn, buffer, sent);
            node.mark_dirty(conn.index);
        }
    }

    fn post(&mut self, from: u16, to: u16, letter: ShardMessage) {
        let life = self.life;
        let at_us = self.now_us + self.random.stretch(self.plan.mesh_us);
        let Some(gateway) = &mut self.gateway else {
            return;
        };
        let link = gateway.link(from, to);
        link.letters.push_back(letter);
        link.last_us = link.last_us.max(at_us);
        let at_us = link.last_us;
        if self.canary == Some(Canary::ReorderLetters) && self.random.one_in(2) {
            let all = link.letters.len();
            if all > 1 {
                link.letters.swap(all - 1, all - 2);
            }
        }
        self.agenda.add(at_us, Event::Mesh { life, from, to });
    }

    pub(crate) fn letter(&mut self, from: u16, to: u16) {
        let Some(gateway) = &mut self.gateway else {
            return;
        };
        if let Some(message) = gateway.link(from, to).letters.pop_front() {
            let from = ShardId(from);
            self.input(to, Input::Message { from, message });
        }
    }

    pub(crate) fn tick(&mut self, shard: u16) {
        if let Some(gateway) = &mut self.gateway {
            gateway.node(shard).tick_us = u64::MAX;
            self.input(shard, Input::Tick);
        }
    }

    pub(crate) fn drain(&mut self, spread_ms: u32, deadline_ms: u32) {
        let Some(gateway) = &mut self.gateway else {
            return;
        };
        gateway.is_draining = true;
        for shard in 0..gateway.nodes.len() as u16 {
            let drain = Input::Drain {
                spread_ms,
                deadline_ms,
            };
            self.input(shard, drain);
        }
        let life = self.life;
        self.after(10_000, Event::Drained { life });
    }

    /// Is everything written? Then the process ends by itself.
    pub(crate) fn look_drained(&mut self) {
        let Some(gateway) = &self.gateway else {
            return;
        };
        if gateway.is_drained() {
            self.note(|| "gateway: drained".to_owned());
            self.kill();
        } else {
            let life = self.life;
            self.after(50_000, Event::Drained { life });
        }
    }

    // ---- who may come in

    pub(crate) fn judge(&mut self, at: usize) {
        let Some(gateway) = &mut self.gateway else {
            return;
        };
        let Some((shard, conn, credentials)) = gateway.logins.take(at) else {
            return;
        };
        let result = if self.now_us < self.auth_down_until_us {
            Err(AuthError::Unavailable)
        } else {
            judge(&credentials, self.resume_key)
        };
        self.input(shard, Input::Authenticated { conn, result });
    }
}

/// An access token is "user:device"; a resume token has the key in front under which it was made.
fn judge(credentials: &Credentials, key: u32) -> Result<Grant, AuthError> {
    let resume = credentials.resume_token.as_deref();
    let resumed = resume.and_then(|token| {
        let rest = std::str::from_utf8(token).ok()?;
        let (made_by, rest) = rest.split_once('/')?;
        (made_by.parse() == Ok(key)).then(|| names(rest))?
    });
    let (user, device) = match (resumed, credentials.token.as_deref()) {
        (Some(names), _) => names,
        (None, Some(token)) => names(token).ok_or(AuthError::Invalid)?,
        (None, None) if resume.is_some() => return Err(AuthError::ResumeRefused),
        (None, None) => return Err(AuthError::Invalid),
    };
    Ok(Grant {
        user,
        device,
        resumed: resumed.is_some(),
        resume_token: format!("{key}/{user}:{device}").into_bytes(),
        resume_ttl_s: 3_600,
        ..Grant::default()
    })
}

fn names(token: &str) -> Option<(UserId, DeviceId)> {
    let (user, device) = token.split_once(':')?;
    Some((UserId(user.parse().ok()?), DeviceId(device.parse().ok()?)))
}
