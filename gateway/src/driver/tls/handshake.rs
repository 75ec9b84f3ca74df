//! Handshakes: a connection before the core knows it.
//!
//! A handshake costs a hundred times what a message costs. Its bytes therefore wait in a queue, of
//! which a turn takes a few, after all that live connections wanted was submitted: a storm of
//! handshakes makes handshakes slow, and nothing else.
//!
//! When many wait, the door holds: clients then wait in the backlog, where they cost nothing, and not
//! behind each other until their deadlines.
//!
//! # Invariants
//! - A connection whose bytes wait is not read: its socket holds what else it says.
//! - From accept to the end of the handshake there is a deadline. The core's, for HELLO, begins then.

use super::Link;
use crate::driver::{
    Driver, buffer::FAIR_BYTES, clock, counters::Tally, ring::Slot, socket::State,
};
use portico_core::Input;
use portico_tls::{Alert, End, Failure, Opened};
use std::{mem, net::IpAddr};

impl Driver {
    /// A connection came in through the TLS door.
    pub(in crate::driver) fn begin_handshake(&mut self, slot: Slot, from: Option<IpAddr>) {
        let index = self.sockets.occupy(slot, State::Handshaking);
        if !self.admits(index, from) {
            return self.begin_close(index);
        }
        let Some(options) = self.tls.options.as_ref().filter(|_| !self.draining) else {
            return self.begin_close(index);
        };
        let session = options.acceptor.accept();
        let until_us = self.now.mono_us + u64::from(options.handshake_ms) * 1_000;
        self.tls.insert(index, Box::new(Link::new(session)));
        let key = self.sockets.key(index);
        self.tls.deadlines.push_back((until_us, key));
        self.sockets.want_read(index);
    }

    /// Goes on with some of the handshakes that have bytes: as many as a turn may take, and none after
    /// its time is over.
    pub(in crate::driver) fn shake_hands(&mut self) {
        if self.tls.waiting.is_empty() {
            return;
        }
        // What live connections are to get goes first. Should it fail, the next call says so again.
        let _ = self.ring.submit_and_reap();
        let per_turn = self.tls.options.as_ref();
        let per_turn = per_turn.map_or(1, |tls| tls.handshakes_per_turn.max(1));
        let start_us = clock::mono_us();
        for _ in 0..per_turn {
            let Some(index) = self.tls.waiting.pop_front() else {
                break;
            };
            self.shake(index);
            if clock::mono_us() - start_us > self.turn_max_us {
                break;
            }
        }
    }

    fn shake(&mut self, index: u32) {
        let Some(link) = self.tls.get_mut(index) else {
            return;
        };
        // A place that an earlier use of the entry left behind finds nothing to do.
        if !mem::take(&mut link.waiting) || self.sockets.get(index).state != State::Handshaking {
            return;
        }
        let mut unread = mem::take(&mut self.sockets.get_mut(index).unread);
        // A socket's buffer is far below 4 GiB.
        link.shaken += unread.len() as u32;
        let shaken = link.shaken as usize;
        self.tls.shaken_bytes += unread.len();
        let within = self.unread.allows(self.tls.shaken_bytes);
        let received = self.open_unread(index, &mut unread);
        if let Some(opened) = received.opened {
            self.on_opened(index, *opened);
            self.feed_unread(index, &mut unread);
            self.sockets.get_mut(index).unread = unread;
            self.after_receive(index, received.ended);
            return self.read_on(index);
        }
        self.sockets.get_mut(index).unread = unread;
        if let Some(link) = self.tls.get_mut(index)
            && !link.out.is_empty()
        {
            link.answered = true;
            self.sockets.mark_dirty(index);
        }
        match received.ended {
            None if !within && shaken > FAIR_BYTES => {
                self.tallies.bump(Tally::UnreadShed);
                self.on_handshake_gone(index);
            }
            None => self.read_on(index),
            Some(end) => self.on_handshake_failed(index, &end),
        }
    }

    fn on_opened(&mut self, index: u32, opened: Opened) {
        self.tallies.bump(match opened.resumed {
            true => Tally::TlsResumed,
            false => Tally::TlsFull,
        });
        if let Some(link) = self.tls.get_mut(index) {
            link.opened = true;
            link.client = opened.client.map(Box::new);
            let shaken = link.shaken as usize;
            self.tls.shaken_bytes -= shaken;
            self.tls.handshaking -= 1;
            self.tls.opened += 1;
        }
        self.sockets.get_mut(index).state = State::Greeting;
        let conn = self.sockets.conn(index);
        self.core
            .handle(self.now, Input::Opened { conn }, &mut self.fx);
    }

    fn on_handshake_failed(&mut self, index: u32, end: &End) {
        let reason = failure_tally(end);
        self.tallies.bump(reason);
        let Some(link) = self.tls.get_mut(index) else {
            return;
        };
        match end {
            End::Failed(failure) => {
                tracing::debug!(%failure, index, "a TLS handshake failed");
                if !link.out.is_empty() {
                    self.tallies.bump(Tally::TlsAlertOutHandshake);
                }
            }
            End::PeerAlert(alert) => {
                tracing::debug!(%alert, index, "a client ended its TLS handshake");
                self.tallies.bump(super::alert_in_tally(*alert));
                link.mute();
            }
            End::PeerClosed => link.mute(),
        }
        self.leave(index, Vec::new());
    }

    /// The stream of a handshaking connection has ended.
    pub(in crate::driver) fn on_handshake_gone(&mut self, index: u32) {
        self.tallies.bump(Tally::TlsFailedGone);
        self.begin_close(index);
    }

    /// Closes what has not shaken hands in time.
    pub(in crate::driver) fn end_slow_handshakes(&mut self) {
        let now_us = self.now.mono_us;
        while let Some((at_us, key)) = self.tls.deadlines.front().copied() {
            let index = self.sockets.of_key(key);
            let index = index.filter(|index| self.sockets.get(*index).state == State::Handshaking);
            if index.is_some() && at_us > now_us {
                break;
            }
            self.tls.deadlines.pop_front();
            if let Some(index) = index {
                self.tallies.bump(Tally::TlsFailedTimeout);
                self.begin_close(index);
            }
        }
    }

    /// The gateway goes away: who is not in yet stays out.
    pub(in crate::driver) fn end_handshakes(&mut self) {
        for (_, key) in mem::take(&mut self.tls.deadlines) {
            if let Some(index) = self.sockets.of_key(key)
                && self.sockets.get(index).state == State::Handshaking
            {
                self.tallies.bump(Tally::TlsFailedDrained);
                self.begin_close(index);
            }
        }
    }
}

fn failure_tally(end: &End) -> Tally {
    match end {
        End::PeerClosed => Tally::TlsFailedGone,
        End::PeerAlert(Alert(42..=46 | 48)) => Tally::TlsFailedOurCertificate,
        End::PeerAlert(_) => Tally::TlsFailedAlert,
        End::Failed(Failure::UnknownClient) => Tally::TlsFailedUnknownClient,
        End::Failed(failure) => match failure.label() {
            "incompatible" => Tally::TlsFailedIncompatible,
            "client_certificate" => Tally::TlsFailedCertificate,
            "internal" => Tally::TlsFailedInternal,
            _ => Tally::TlsFailedMalformed,
        },
    }
}
