//! A connection moves to the shard of its user: first the descriptor, then by letter the session, the
//! bytes that were read already, and the TLS session with what it has not sent.
//!
//! # Invariants
//! - Nothing of the connection is in flight when its descriptor is sent, and nothing is armed until
//!   the outcome is known.
//! - Until the kernel says that the descriptor has arrived, this shard owns the connection: a
//!   failure is handled here, where the state is.
//! - A descriptor that has arrived at another shard is followed by exactly one letter.

use super::{
    Driver, LISTED_MAX,
    counters::Tally,
    mesh::{Adoption, Letter},
    ring::{Errno, Key, Op, Slot},
    socket::State,
};
use portico_core::{Input, Session, ShardId};
use std::{collections::HashMap, mem};

#[derive(Debug)]
struct Move {
    to: ShardId,
    session: Session,
    /// The kernel has the request.
    sent: bool,
}

/// The connections that are moving away, by index.
#[derive(Debug, Default)]
pub(super) struct Moves(HashMap<u32, Move>);

impl Moves {
    /// Can it no longer be called off?
    pub(super) fn is_sent(&self, index: u32) -> bool {
        self.0.get(&index).is_some_and(|moving| moving.sent)
    }

    pub(super) fn cancel(&mut self, index: u32) {
        self.0.remove(&index);
    }

    /// Gives back what a burst has left.
    pub(super) fn trim(&mut self) {
        self.0.shrink_to(LISTED_MAX);
    }
}

impl Driver {
    pub(super) fn begin_move(&mut self, index: u32, to: ShardId, session: Session) {
        let key = self.sockets.key(index);
        let socket = self.sockets.get_mut(index);
        if !matches!(socket.state, State::Greeting | State::Open) {
            return;
        }
        socket.state = State::Moving;
        if socket.receiving.is_some() {
            self.ring.cancel(Op::Recv, key);
        }
        if socket.polling {
            self.ring.cancel(Op::Poll, key);
        }
        let moving = Move {
            to,
            session,
            sent: false,
        };
        self.moves.0.insert(index, moving);
        self.try_move(index);
    }

    /// Sends the descriptor once nothing is in flight.
    pub(super) fn try_move(&mut self, index: u32) {
        let key = self.sockets.key(index);
        let socket = self.sockets.get_mut(index);
        let Some(moving) = self.moves.0.get_mut(&index) else {
            return;
        };
        if moving.sent || socket.in_flight > 0 {
            return;
        }
        let Some(target) = self.mesh.ring(moving.to) else {
            return self.on_move_failed(index);
        };
        moving.sent = true;
        socket.in_flight = 1;
        self.ring.hand_over(key, socket.slot, target);
    }

    pub(super) fn on_handed_over(&mut self, key: Key, result: Result<Slot, Errno>) {
        let Some(index) = self.sockets.of_key(key) else {
            return self.tallies.bump(Tally::RingStale);
        };
        self.sockets.get_mut(index).in_flight -= 1;
        let Ok(slot) = result else {
            return self.on_move_failed(index);
        };
        self.tallies.bump(Tally::HandedOver);
        let Some(moving) = self.moves.0.remove(&index) else {
            return;
        };
        if let Some(last) = self.sockets.farewells.remove(&index) {
            // The core closed it meanwhile. The other shard only drops its reference.
            self.post(moving.to, Letter::Discard(slot));
            self.sockets.get_mut(index).state = State::Greeting;
            return self.leave(index, last);
        }
        let conn = self.sockets.conn(index);
        let mut unread = mem::take(&mut self.sockets.get_mut(index).unread);
        let adoption = Adoption {
            slot,
            session: moving.session,
            unread: self.unread.hand_out(&mut unread),
            link: self.tls.remove(index),
        };
        self.post(moving.to, Letter::Adopt(Box::new(adoption)));
        self.core
            .handle(self.now, Input::Moved { conn }, &mut self.fx);
        self.begin_close(index);
    }

    fn on_move_failed(&mut self, index: u32) {
        self.tallies.bump(Tally::HandOverFailed);
        self.moves.cancel(index);
        self.sockets.get_mut(index).state = State::Greeting;
        if let Some(last) = self.sockets.farewells.remove(&index) {
            return self.leave(index, last);
        }
        let conn = self.sockets.conn(index);
        let input = Input::MoveFailed { conn };
        self.core.handle(self.now, input, &mut self.fx);
    }

    /// A connection arrives: its descriptor is in this ring's table.
    pub(super) fn adopt(&mut self, adoption: Adoption) {
        self.tallies.bump(Tally::Adopted);
        let index = self.sockets.occupy(adoption.slot, State::Open);
        self.unread.take_in(&adoption.unread);
        self.sockets.get_mut(index).unread = adoption.unread;
        let conn = self.sockets.conn(index);
        if let Some(link) = adoption.link {
            self.adopt_link(index, link);
        }
        let session = adoption.session;
        let input = Input::Adopted { conn, session };
        self.core.handle(self.now, input, &mut self.fx);
        // Its unread bytes are handed in when the core resumes it.
        self.sockets.want_read(index);
    }

    /// A descriptor arrived for a session that has ended.
    pub(super) fn discard(&mut self, slot: Slot) {
        let index = self.sockets.occupy(slot, State::Greeting);
        self.begin_close(index);
    }
}
