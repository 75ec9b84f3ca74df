//! The connections of a gateway: what is read and when, what is sent, how they move and end.

use super::{Moving, SEND_BYTES_MAX, State};
use crate::{event::Event, network::Piece, world::World};
use portico_core::{ConnId, Input, feed};
use std::mem;

impl World {
    pub(super) fn turn_soon(&mut self, shard: u16) {
        let life = self.life;
        let pause_us = self.random.stretch(self.plan.turn_us);
        if let Some(gateway) = &mut self.gateway
            && !mem::replace(&mut gateway.node(shard).turning, true)
        {
            self.after(pause_us, Event::Turn { life, shard });
        }
    }

    pub(crate) fn turn(&mut self, shard: u16) {
        let life = self.life;
        let Some(gateway) = &mut self.gateway else {
            return;
        };
        let node = gateway.node(shard);
        node.turning = false;
        let mut hungry = mem::take(&mut node.hungry);
        for index in hungry.drain(..) {
            self.read_socket(shard, index);
            if self.life != life || self.gateway.is_none() {
                return;
            }
        }
        let Some(gateway) = &mut self.gateway else {
            return;
        };
        let mut dirty = mem::take(&mut gateway.node(shard).dirty);
        for index in dirty.drain(..) {
            self.flush_socket(shard, index);
        }
        self.rest(shard);
    }

    /// After a turn: what is still to be read, when to wake up, and whether all is well.
    fn rest(&mut self, shard: u16) {
        let life = self.life;
        let Some(gateway) = &mut self.gateway else {
            return;
        };
        let node = gateway.node(shard);
        let again =
            !node.dirty.is_empty() || (!node.hungry.is_empty() && !node.shard.is_congested());
        self.checker.at_rest(&node.shard, &self.plan);
        if let Some(at_us) = node.shard.next_wakeup_us()
            && at_us < node.tick_us
        {
            node.tick_us = at_us;
            let at_us = at_us.max(self.now_us + 1);
            self.agenda.add(at_us, Event::Tick { life, shard });
        }
        if again {
            self.turn_soon(shard);
        }
    }

    /// Hands the shard what has arrived, as far as it wants it.
    fn read_socket(&mut self, shard: u16, index: u32) {
        let now = self.gateway_now();
        let Some(gateway) = &mut self.gateway else {
            return;
        };
        let node = gateway.node(shard);
        let conn = node.conn(index);
        let congested = node.shard.is_congested();
        let socket = &mut node.sockets[index as usize];
        if socket.state != State::Open {
            socket.is_hungry = false;
            return;
        }
        if congested {
            // It is looked at again when the shard is.
            node.hungry.push(index);
            return;
        }
        socket.is_hungry = false;
        let unread = mem::take(&mut socket.unread);
        let mut fx = mem::take(&mut self.fx);
        let used = feed(&mut node.shard, now, conn, &unread, &mut fx);
        let socket = &mut node.sockets[index as usize];
        socket.unread = unread;
        socket.unread.drain(..used);
        let owed = !socket.unread.is_empty() && !node.shard.wants_input(conn);
        if socket.ended && !owed && node.shard.is_open(conn) {
            node.shard.handle(now, Input::Ended { conn }, &mut fx);
        }
        self.absorb(shard, fx);
    }

    /// Sends what has gathered for a connection, unless a send is under way.
    fn flush_socket(&mut self, shard: u16, index: u32) {
        let Some(gateway) = &mut self.gateway else {
            return;
        };
        let node = gateway.node(shard);
        let conn = node.conn(index);
        let socket = &mut node.sockets[index as usize];
        socket.is_dirty = false;
        if !socket.sending.is_empty() {
            return;
        }
        let bytes = match socket.state {
            State::Open => node.shard.take_output(conn),
            State::Leaving => mem::take(&mut socket.farewell),
            State::Moving | State::Free => return,
        };
        let (line, leaving) = (socket.line, socket.state == State::Leaving);
        let bytes = self.spoil(line, bytes);
        if bytes.is_empty() {
            if leaving {
                self.close_socket(shard, conn);
            }
            return;
        }
        if let Some(gateway) = &mut self.gateway {
            let socket = &mut gateway.node(shard).sockets[index as usize];
            socket.sending = bytes;
            socket.sent = 0;
        }
        self.push(shard, conn);
    }

    /// Hands the kernel what it has room for.
    fn push(&mut self, shard: u16, conn: ConnId) {
        let life = self.life;
        let Some(gateway) = &mut self.gateway else {
            return;
        };
        let Some(socket) = gateway.node(shard).socket(conn) else {
            return;
        };
        let at = socket.line;
        let room = self
            .plan
            .socket_bytes
            .saturating_sub(self.lines[at].down.held);
        let left = &socket.sending[socket.sent..];
        let bytes = left.len().min(room).min(SEND_BYTES_MAX);
        if bytes == 0 {
            self.lines[at].is_full = true;
            return;
        }
        let taken = left[..bytes].to_vec();
        socket.sent += bytes;
        self.write_down(at, taken);
        let pause_us = self.random.stretch(self.plan.turn_us);
        let written = Event::Written {
            life,
            shard,
            conn,
            bytes,
        };
        self.after(pause_us, written);
    }

    /// The client has read: there may be room again.
    pub(crate) fn room(&mut self, line: usize) {
        if mem::take(&mut self.lines[line].is_full)
            && let Some((shard, conn)) = self.lines[line].seat
        {
            self.push(shard, conn);
        }
    }

    pub(crate) fn written(&mut self, shard: u16, conn: ConnId, bytes: usize) {
        let Some(gateway) = &mut self.gateway else {
            return;
        };
        let node = gateway.node(shard);
        let Some(socket) = node.socket(conn) else {
            return;
        };
        let (state, done) = (socket.state, socket.sent == socket.sending.len());
        if done {
            socket.sending.clear();
        }
        match state {
            State::Open => {
                if done {
                    node.mark_dirty(conn.index);
                }
                self.input(shard, Input::Written { conn, bytes });
            }
            State::Moving if done => {
                let life = self.life;
                self.after(0, Event::Move { life });
            }
            State::Leaving if done => {
                node.mark_dirty(conn.index);
                self.turn_soon(shard);
            }
            State::Free | State::Moving | State::Leaving => {}
        }
        if !done {
            self.push(shard, conn);
        }
    }

    /// The last words are out, or their time is over.
    pub(crate) fn close_socket(&mut self, shard: u16, conn: ConnId) {
        let Some(gateway) = &mut self.gateway else {
            return;
        };
        let node = gateway.node(shard);
        let Some(socket) = node.socket(conn) else {
            return;
        };
        if socket.state != State::Leaving {
            return;
        }
        let line = socket.line;
        node.vacate(conn);
        self.lines[line].seat = None;
        self.lines[line].is_full = false;
        if !self.lines[line].down.is_cut() {
            let pause_us = self.plan.network_delay(&mut self.random);
            self.end_down(line, pause_us);
        }
    }

    // ---- connections

    /// A connection is there, if the gateway it was made to still is.
    pub(crate) fn accept(&mut self, line: usize) {
        let life = self.lines[line].life;
        let Some(gateway) = self.gateway.as_mut().filter(|_| life == self.life) else {
            return self.end_down(line, 1);
        };
        let shard = self.random.index(gateway.nodes.len()) as u16;
        let conn = gateway.node(shard).seat(line);
        self.lines[line].seat = Some((shard, conn));
        self.input(shard, Input::Opened { conn });
    }

    /// Something has arrived from a client.
    pub(crate) fn arrive(&mut self, line: usize) {
        while let Some(piece) = self.lines[line].up.take(self.now_us) {
            let Some((shard, conn)) = self.lines[line].seat else {
                continue;
            };
            let Some(gateway) = &mut self.gateway else {
                continue;
            };
            let node = gateway.node(shard);
            let Some(socket) = node.socket(conn) else {
                continue;
            };
            match piece {
                Piece::Bytes(bytes) if socket.state != State::Leaving => {
                    self.hash.bytes(&bytes);
                    socket.unread.extend_from_slice(&bytes);
                }
                Piece::Bytes(_) => {}
                Piece::End => socket.ended = true,
            }
            match socket.state {
                State::Leaving if socket.ended => self.close_socket(shard, conn),
                _ => {
                    node.mark_hungry(conn.index);
                    self.turn_soon(shard);
                }
            }
        }
    }

    /// The oldest hand-over of a connection that has nothing in flight.
    pub(crate) fn hand_over(&mut self) {
        let life = self.life;
        let Some(gateway) = &mut self.gateway else {
            return;
        };
        let nodes = &mut gateway.nodes;
        let ready = gateway.moves.iter().position(|moving| {
            let node = &mut nodes[usize::from(moving.from)];
            node.socket(moving.conn)
                .is_some_and(|socket| socket.sending.is_empty())
        });
        let Some(moving) = ready.and_then(|at| gateway.moves.remove(at)) else {
            return;
        };
        let Moving {
            from,
            conn,
            to,
            session,
        } = moving;
        if self.failing_moves > 0 {
            self.failing_moves -= 1;
            if let Some(socket) = gateway.node(from).socket(conn) {
                socket.state = State::Open;
            }
            return self.input(from, Input::MoveFailed { conn });
        }
        let node = gateway.node(from);
        let Some(socket) = node.socket(conn) else {
            return;
        };
        let (line, ended) = (socket.line, socket.ended);
        let unread = mem::take(&mut socket.unread);
        node.vacate(conn);
        self.input(from, Input::Moved { conn });
        if self.life != life {
            return;
        }
        let Some(gateway) = &mut self.gateway else {
            return;
        };
        let node = gateway.node(to);
        let new = node.seat(line);
        let socket = &mut node.sockets[new.index as usize];
        (socket.unread, socket.ended) = (unread, ended);
        node.mark_hungry(new.index);
        self.lines[line].seat = Some((to, new));
        self.input(to, Input::Adopted { conn: new, session });
    }
}
