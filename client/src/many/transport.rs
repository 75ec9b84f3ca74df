//! What comes from sockets and timers, and what goes to them: the session of a connection is driven
//! from here.

use super::{
    Many,
    config::{ConnIndex, ManyEvent, OnEvent},
    slot::{Outcome, Reconnect, State},
};
use crate::{
    session::{Event, Now, Phase, Session},
    tls::TlsError,
};
use rustix::event::epoll;
use std::{
    io::{self, Read, Write},
    net::TcpStream,
};

/// Full buffers taken from one connection before the others get their turn.
const READS_IN_A_ROW_MAX: usize = 8;
/// Write buffers kept for sessions that are about to send.
const SPARE_BUFFERS_MAX: usize = 256;
/// A write buffer that has grown beyond this is given back instead of kept.
const SPARE_BUFFER_BYTES_MAX: usize = 65_536;

/// What a connection's socket is to be given: what TLS has sealed, or without TLS what the session
/// says.
struct Unsent<'a> {
    socket: Option<&'a TcpStream>,
    bytes: &'a mut Vec<u8>,
    blocked: &'a mut bool,
}

impl<'a> Unsent<'a> {
    fn of(many: &'a mut Many, index: u32) -> Self {
        let slot = &mut many.slots[index as usize];
        let security = many.security.get_mut(index as usize);
        Self {
            socket: slot.socket.as_ref(),
            bytes: match security.and_then(|security| security.secured.as_mut()) {
                Some(secured) => secured.unsent(),
                None => slot.session.output(),
            },
            blocked: &mut slot.blocked,
        }
    }
}

impl Many {
    pub(super) fn socket_event(
        &mut self,
        index: u32,
        flags: epoll::EventFlags,
        on_event: &mut OnEvent<'_>,
    ) {
        let slot = &mut self.slots[index as usize];
        let Some(socket) = &slot.socket else {
            // Closed earlier in this turn.
            return;
        };
        if slot.state == State::Connecting {
            match socket.take_error() {
                Ok(None) if flags.contains(epoll::EventFlags::OUT) => {
                    self.connected(index, on_event);
                }
                Ok(None) => return,
                Ok(Some(error)) | Err(error) => {
                    self.connect_failed(index, &error, on_event);
                    return;
                }
            }
        } else if slot.blocked && flags.contains(epoll::EventFlags::OUT) {
            slot.blocked = false;
            self.mark_dirty(index);
        }
        if self.slots[index as usize].paused {
            return;
        }
        let ended = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        if flags.intersects(epoll::EventFlags::IN | ended) {
            self.read(index, flags.intersects(ended), on_event);
        }
    }

    /// Reads until the socket is empty. A buffer that was not filled says so without another call,
    /// unless the peer has ended: then the end must be met now, no edge will come for it.
    pub(super) fn read(&mut self, index: u32, ended: bool, on_event: &mut OnEvent<'_>) {
        if self.slots[index as usize].paused && !ended {
            // Its turn comes when its owner lets it read.
            return;
        }
        let mut buffer = std::mem::take(&mut self.read_buffer);
        let mut reads = 0;
        while let Some(mut socket) = self.slots[index as usize].socket.as_ref() {
            match socket.read(&mut buffer) {
                Ok(0) => {
                    self.socket_ended(index, on_event);
                    break;
                }
                Ok(bytes) => {
                    self.received(index, &mut buffer[..bytes], on_event);
                    if bytes < buffer.len() && !ended {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.socket_ended(index, on_event);
                    break;
                }
            }
            reads += 1;
            if reads == READS_IN_A_ROW_MAX && !ended {
                self.unread.push(index);
                break;
            }
        }
        self.read_buffer = buffer;
    }

    pub(super) fn timer(&mut self, index: u32, on_event: &mut OnEvent<'_>) {
        let now_us = self.now().mono_us;
        let slot = &mut self.slots[index as usize];
        let over = now_us >= slot.until_us;
        match slot.state {
            State::Waiting if over => self.enqueue(index),
            State::Securing if over => {
                self.connect_failed(index, &TlsError::TimedOut.into(), on_event);
            }
            State::Connecting | State::Greeting if over => {
                let error = io::Error::from(io::ErrorKind::TimedOut);
                self.connect_failed(index, &error, on_event);
            }
            State::Leaving if over => self.leave(index),
            State::Greeting | State::Up | State::Leaving => {
                let window = slot.session.next_timeout_window();
                if window.is_some_and(|(from_us, _)| from_us <= now_us) {
                    if slot.paused {
                        slot.session.not_reading();
                    }
                    self.lend_buffer(index);
                    self.drive(index, on_event, |session, now, on_event| {
                        session.on_timeout(now, on_event);
                    });
                    self.take_buffer_back(index);
                } else {
                    self.rearm(index);
                }
            }
            State::Waiting | State::Connecting | State::Securing => self.rearm(index),
            State::Queued | State::Tokenless | State::Stopped => {}
        }
    }

    /// Lets the session do something and acts on what it said.
    pub(super) fn drive(
        &mut self,
        index: u32,
        on_event: &mut OnEvent<'_>,
        step: impl FnOnce(&mut Session, Now, &mut dyn FnMut(Event<'_>)),
    ) {
        let now = self.now();
        let mut outcome = Outcome::default();
        let after_us = self.attempt_us(index, now);
        let slot = &mut self.slots[index as usize];
        let greeting = slot.state == State::Greeting;
        step(&mut slot.session, now, &mut |event| {
            outcome.note(&event);
            if greeting && matches!(event, Event::Welcome { .. }) {
                on_event(now, ConnIndex(index), ManyEvent::LoggedIn { after_us });
            }
            on_event(now, ConnIndex(index), ManyEvent::Session(event));
        });
        if outcome.welcomed && slot.state == State::Greeting {
            slot.state = State::Up;
            self.connecting -= 1;
        }
        if let Some(ms) = outcome.leave_after_ms
            && slot.state == State::Up
        {
            slot.state = State::Leaving;
            slot.until_us = now.mono_us + u64::from(ms) * 1_000;
        }
        match outcome.closed {
            Some(reconnect) => self.end(index, now, reconnect),
            None => self.after_session(index),
        }
    }

    /// Nothing more comes. With TLS this may be somebody's doing who cannot do more than cut: what
    /// counts is whether the server has said CLOSE, and the session knows that.
    fn socket_ended(&mut self, index: u32, on_event: &mut OnEvent<'_>) {
        if self.slots[index as usize].state == State::Securing {
            self.connect_failed(index, &TlsError::CutOff.into(), on_event);
        } else {
            self.transport_ended(index, on_event);
        }
    }

    /// The socket is gone, or never was: the session hears of it and gives its verdict.
    pub(super) fn transport_ended(&mut self, index: u32, on_event: &mut OnEvent<'_>) {
        self.drop_socket(index);
        self.drive(index, on_event, |session, now, on_event| {
            if session.phase().is_connected() {
                session.disconnected(now, on_event);
            } else {
                session.connect_failed(now, on_event);
            }
        });
        // Closed by its owner: nothing was said, and nothing follows.
        let slot = &self.slots[index as usize];
        if slot.socket.is_none() && matches!(slot.session.phase(), Phase::Stopped(_)) {
            self.end(index, self.now(), Reconnect::Never);
        }
    }

    /// The server drains and this client's time to go has come: at once, without back-off. The
    /// session keeps what is open and says HELLO on the next socket.
    pub(super) fn leave(&mut self, index: u32) {
        self.drop_socket(index);
        self.enqueue(index);
    }

    /// To be opened when its turn comes.
    pub(super) fn enqueue(&mut self, index: u32) {
        self.slots[index as usize].state = State::Queued;
        self.wheel.clear(index);
        self.queue.push_back(index);
    }

    /// The connection is over; what the session still wanted to say (a CLOSE) is tried once.
    pub(super) fn end(&mut self, index: u32, now: Now, reconnect: Reconnect) {
        if self.slots[index as usize].socket.is_some() {
            self.seal(index, true);
            let unsent = Unsent::of(self, index);
            if let Some(mut socket) = unsent.socket
                && !unsent.bytes.is_empty()
            {
                let _ = socket.write(unsent.bytes);
            }
        }
        self.drop_socket(index);
        let slot = &mut self.slots[index as usize];
        match reconnect {
            Reconnect::AfterMs(ms) => {
                slot.state = State::Waiting;
                slot.until_us = now.mono_us + u64::from(ms) * 1_000;
                self.rearm(index);
            }
            Reconnect::Never => {
                slot.state = State::Stopped;
                self.wheel.clear(index);
            }
        }
    }

    fn drop_socket(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.is_connecting() {
            self.connecting -= 1;
            slot.state = State::Queued;
        }
        slot.socket = None;
        slot.blocked = false;
        slot.paused = false;
        *slot.session.output() = Vec::new();
        self.forget_security(index);
    }

    /// After every call of a session: it may have bytes to write and another deadline.
    pub(super) fn after_session(&mut self, index: u32) {
        self.mark_dirty(index);
        self.rearm(index);
    }

    pub(super) fn mark_dirty(&mut self, index: u32) {
        let has_unsent = self.has_unsent(index);
        let slot = &mut self.slots[index as usize];
        let waits = has_unsent || !slot.session.output().is_empty();
        if !slot.dirty && !slot.blocked && waits {
            slot.dirty = true;
            self.dirty.push(index);
        }
    }

    /// The wheel may wake a connection too early, never too late: a deadline that moves away costs
    /// nothing until the old one comes.
    pub(super) fn rearm(&mut self, index: u32) {
        let Some(at_us) = self.slots[index as usize].deadline_us(self.beat) else {
            return;
        };
        if self.wheel.get(index).is_none_or(|armed| at_us < armed) {
            self.wheel.set(index, at_us);
        }
    }

    pub(super) fn flush(&mut self, on_event: &mut OnEvent<'_>) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            self.slots[index as usize].dirty = false;
            if !self.write(index) {
                self.lost(index, on_event);
            }
        }
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
    }

    /// A write has failed. A CLOSE may lie in front of the end, and what it says decides when the
    /// session comes back.
    fn lost(&mut self, index: u32, on_event: &mut OnEvent<'_>) {
        self.read(index, true, on_event);
        if self.slots[index as usize].socket.is_some() {
            self.transport_ended(index, on_event);
        }
    }

    /// Writes what the session has queued; false when the transport is gone.
    pub(super) fn write(&mut self, index: u32) -> bool {
        if !self.seal(index, false) {
            return false;
        }
        let Unsent {
            socket,
            bytes,
            blocked,
        } = Unsent::of(self, index);
        let Some(mut socket) = socket else {
            return true;
        };
        while !bytes.is_empty() {
            match socket.write(bytes) {
                Ok(count) if count == bytes.len() => {
                    bytes.clear();
                    let buffer = std::mem::take(bytes);
                    self.keep_buffer(buffer);
                    return true;
                }
                Ok(count) => drop(bytes.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    *blocked = true;
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// A buffer that has been through this before spares a session the steps of growing a new one.
    pub(super) fn lend_buffer(&mut self, index: u32) {
        let output = self.slots[index as usize].session.output();
        if output.capacity() == 0
            && let Some(buffer) = self.spare_buffers.pop()
        {
            *output = buffer;
        }
    }

    /// An idle connection keeps no buffer.
    pub(super) fn take_buffer_back(&mut self, index: u32) {
        let output = self.slots[index as usize].session.output();
        if !output.is_empty() || output.capacity() == 0 {
            return;
        }
        let buffer = std::mem::take(output);
        self.keep_buffer(buffer);
    }

    /// An empty one, for whoever is next.
    fn keep_buffer(&mut self, buffer: Vec<u8>) {
        if self.spare_buffers.len() < SPARE_BUFFERS_MAX
            && buffer.capacity() <= SPARE_BUFFER_BYTES_MAX
        {
            self.spare_buffers.push(buffer);
        }
    }
}
