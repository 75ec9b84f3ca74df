//! Many connections on one thread: what loadgen and tests with thousands of clients drive.
//!
//! Plain epoll, edge-triggered, and `recv`/`send`: nothing of the gateway's io_uring driver is
//! shared with it, so that no fault of the ring can hide in both ends. It speaks to epoll itself
//! rather than through a portable layer because those wait in whole milliseconds, and an open-loop
//! generator has to wake within microseconds of its schedule.
//!
//! [`Many`] owns the sockets and the [`Session`]s. Its owner calls [`Many::turn`] in a loop and
//! [`Many::send`] between turns; a turn opens connections that are due, writes what sessions have
//! queued (everything that gathered since the last turn in one `send` per connection), waits, reads
//! and fires timers. Whatever happens reaches the owner through one callback.
//!
//! For very many, make the sessions with [`Session::sharing`] and settings that keep no access
//! token: the owner is asked for one when a session has no other way to log in.
//!
//! # Invariants
//! - A connection that is neither stopped nor open has a timer, stands in the queue of those to be
//!   opened, or waits for a token that its owner was asked for: none is forgotten.
//! - At most [`ManyConfig::connecting_max`] connections are between their first packet and WELCOME,
//!   or wait for a token.
//! - An idle connection owns its slot, a node of the wheel, its resume token and, with TLS, what
//!   rustls keeps of it, nothing else: no buffer, no heap entry, no object of the allocator that
//!   comes and goes with heartbeats.
//! - A thread with nothing to do but heartbeats wakes once a second for those of that second; the
//!   drivers of one process do so at different moments.
//! - Every descriptor is opened, used and closed by the thread that made the `Many`, which cannot
//!   leave it ([`Many`] is not `Send`). So that thread may have a descriptor table of its own
//!   (`unshare(CLONE_FILES)` before [`Many::new`]) and with it a limit of open files of its own.
//!
//! # Does not
//! Decide when to reconnect: the session's verdict says so, and how long to wait. Follow a server
//! to another endpoint: a measurement is of one target. Open the new connection before it leaves
//! the old one when the server drains; replay makes up for the moment between the two.

mod config;
mod open;
mod secure;
mod slot;
mod sources;
mod transport;
mod wheel;

pub use config::{Clock, ConnIndex, ManyConfig, ManyEvent, OnEvent};
pub use sources::loopback_sources;

use crate::session::{Conv, Now, Phase, SendError, SendOptions, Session};
use portico_wire::ids::MsgId;
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};
use secure::Security;
use slot::{Beat, Reconnect, Slot, State};
use socket2::SockRef;
use sources::Sources;
use std::{
    collections::VecDeque,
    fmt, io,
    marker::PhantomData,
    os::fd::OwnedFd,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use wheel::Wheel;

/// Ready sockets handled before the owner gets the thread back: what bounds the time between two
/// looks at its schedule.
const READY_PER_TURN_MAX: usize = 128;
/// Bytes read at once. One buffer serves all connections.
const READ_BYTES: usize = 65_536;

/// What a connection takes here at least, its session included; what the session has on the heap
/// comes on top, a resume token as a rule.
pub const CONNECTION_BYTES: usize = size_of::<Slot>() + Wheel::OWNER_BYTES + QUEUE_BYTES;
/// A place in the queue of those to be opened, which is kept for when all have to be.
const QUEUE_BYTES: usize = size_of::<u32>();

/// Many sessions over one epoll instance. See the module's head.
pub struct Many {
    config: ManyConfig,
    sources: Sources,
    epoll: OwnedFd,
    slots: Vec<Slot>,
    /// One for each slot with TLS, none without.
    security: Vec<Security>,
    /// Begun so far.
    handshakes: u64,
    wheel: Wheel,
    beat: Beat,
    /// Those to be opened, in order.
    queue: VecDeque<u32>,
    connecting: usize,
    /// Those whose owner was asked for a token.
    tokenless: usize,
    next_connect_us: u64,
    dirty: Vec<u32>,
    /// Those whose sockets gave full buffers to the last: more is there, and no edge will say so.
    unread: Vec<u32>,
    /// Those that were cut, and whose sessions do not know yet.
    cut: Vec<u32>,
    /// Of those, the ones whose owner has chosen when they come back.
    away: Vec<(u32, u64)>,
    // Scratch, kept for its memory.
    ready: Vec<epoll::Event>,
    due: Vec<u32>,
    read_buffer: Box<[u8]>,
    /// What TLS has opened.
    plain: Vec<u8>,
    spare_buffers: Vec<Vec<u8>>,
    /// Its descriptors belong to one thread.
    not_send: PhantomData<*const ()>,
}

impl fmt::Debug for Many {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Many")
            .field("connections", &self.slots.len())
            .field("connecting", &self.connecting)
            .field("queued", &self.queue.len())
            .field("tokenless", &self.tokenless)
            .finish_non_exhaustive()
    }
}

impl Many {
    pub fn new(mut config: ManyConfig) -> io::Result<Self> {
        static DRIVERS: AtomicU64 = AtomicU64::new(0);
        let connections = config.connections;
        let addresses = std::mem::take(&mut config.sources);
        Ok(Self {
            sources: Sources::new(addresses, config.source_offset),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            security: match config.tls {
                Some(_) => Vec::with_capacity(connections),
                None => Vec::new(),
            },
            handshakes: 0,
            slots: Vec::with_capacity(connections),
            wheel: Wheel::with_capacity(connections),
            beat: Beat::new(DRIVERS.fetch_add(1, Ordering::Relaxed)),
            queue: VecDeque::with_capacity(connections),
            connecting: 0,
            tokenless: 0,
            next_connect_us: 0,
            dirty: Vec::new(),
            unread: Vec::new(),
            cut: Vec::new(),
            away: Vec::new(),
            config,
            ready: Vec::with_capacity(READY_PER_TURN_MAX),
            due: Vec::new(),
            read_buffer: vec![0; READ_BYTES].into_boxed_slice(),
            plain: Vec::new(),
            spare_buffers: Vec::new(),
            not_send: PhantomData,
        })
    }

    /// Takes a session in; its connection is opened in one of the next turns.
    ///
    /// # Panics
    /// When there are 2^32 connections already.
    pub fn add(&mut self, session: Session) -> ConnIndex {
        let index = u32::try_from(self.slots.len()).expect("fewer than 2^32 connections");
        self.slots.push(Slot::new(session));
        if self.config.tls.is_some() {
            self.security.push(Security::default());
        }
        self.wheel.add_owner();
        self.queue.push_back(index);
        ConnIndex(index)
    }

    /// Queues a message; it goes out with the next turn.
    pub fn send(
        &mut self,
        conn: ConnIndex,
        to: impl Into<Conv>,
        envelope: &[u8],
        options: SendOptions,
    ) -> Result<MsgId, SendError> {
        let now = self.now();
        self.lend_buffer(conn.0);
        let session = &mut self.slots[conn.0 as usize].session;
        let result = session.send(now, to, envelope, options);
        // Perhaps nothing can go out now.
        self.take_buffer_back(conn.0);
        self.after_session(conn.0);
        result
    }

    /// Anything else a session can do: acknowledge, mark as read, close.
    pub fn with<R>(&mut self, conn: ConnIndex, action: impl FnOnce(&mut Session, Now) -> R) -> R {
        let now = self.now();
        let slot = &mut self.slots[conn.0 as usize];
        let result = action(&mut slot.session, now);
        if slot.state == State::Tokenless {
            let stopped = matches!(slot.session.phase(), Phase::Stopped(_));
            if stopped || !slot.session.needs_token() {
                self.tokenless -= 1;
                // Ahead of the others: it was its turn already. If it has stopped, that is seen
                // there.
                self.slots[conn.0 as usize].state = State::Queued;
                self.queue.push_front(conn.0);
            }
        }
        self.after_session(conn.0);
        result
    }

    /// A new access token, for the next login: the answer to [`ManyEvent::TokenWanted`], or given
    /// before it is asked for.
    pub fn set_token(&mut self, conn: ConnIndex, token: impl Into<String>) {
        self.with(conn, |session, _| session.set_token(token));
    }

    /// Ends a connection as a network does that goes away: at once, without a word, and with a
    /// reset, so that the kernel remembers nothing of it. The session hears of it in the next turn,
    /// and comes back after its own time. Nothing happens to one that has no socket.
    pub fn cut(&mut self, conn: ConnIndex) {
        if self.reset(conn.0) {
            self.cut.push(conn.0);
        }
    }

    /// As [`Self::cut`], and the connection is opened again `back_after_us` from now, whatever its
    /// session would do. One that has no socket is not opened before that; a second call replaces
    /// the time of the first. Nothing happens to a session that has stopped.
    pub fn cut_for(&mut self, conn: ConnIndex, back_after_us: u64) {
        let back_us = self.now().mono_us.saturating_add(back_after_us);
        if self.reset(conn.0) {
            self.cut.push(conn.0);
            self.away.push((conn.0, back_us));
        } else if !self.stay_away(conn.0, back_us) {
            // Cut since the last turn, or stopped: then this comes to nothing.
            self.away.push((conn.0, back_us));
        }
    }

    /// True if there was a socket.
    fn reset(&mut self, index: u32) -> bool {
        let slot = &mut self.slots[index as usize];
        let Some(socket) = slot.socket.take() else {
            return false;
        };
        // Without it the end is a gentle one, which is still an end.
        let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
        slot.blocked = false;
        slot.paused = false;
        self.forget_security(index);
        true
    }

    /// A connection without a socket is opened at `back_us`; false if it is not at rest.
    fn stay_away(&mut self, index: u32, back_us: u64) -> bool {
        let slot = &mut self.slots[index as usize];
        match slot.state {
            State::Tokenless => self.tokenless -= 1,
            // Its place in the queue is passed over.
            State::Queued | State::Waiting => {}
            State::Connecting
            | State::Securing
            | State::Greeting
            | State::Up
            | State::Leaving
            | State::Stopped => {
                return false;
            }
        }
        slot.state = State::Waiting;
        slot.until_us = back_us;
        self.wheel.clear(index);
        self.rearm(index);
        true
    }

    /// A connection that does not read leaves what comes in its socket, until the peer can write no
    /// more. Silence does not end it meanwhile; its end is seen when it reads again. A new
    /// connection reads.
    pub fn set_reading(&mut self, conn: ConnIndex, reading: bool) {
        let slot = &mut self.slots[conn.0 as usize];
        if slot.paused == reading && slot.socket.is_some() {
            slot.paused = !reading;
            if reading {
                // What came meanwhile has had its edge.
                self.unread.push(conn.0);
            }
        }
    }

    /// Queues a message that asks for no answer ([`SendOptions::request`] is taken as `false`), at
    /// a time that the owner has read already. The short way: such a message changes no timer, and
    /// that `envelope` is an Envelope is not checked. A server takes what is none for a broken body.
    pub fn send_unanswered(
        &mut self,
        now: Now,
        conn: ConnIndex,
        to: impl Into<Conv>,
        envelope: &[u8],
        options: SendOptions,
    ) -> Result<MsgId, SendError> {
        self.lend_buffer(conn.0);
        let session = &mut self.slots[conn.0 as usize].session;
        let result = session.send_unanswered(now, to, envelope, options);
        if result.is_err() {
            self.take_buffer_back(conn.0);
        }
        self.mark_dirty(conn.0);
        result
    }

    /// The owner knows that only its own network has changed: a connection is left, or no longer
    /// waited with, and opened anew as soon as pace and bound allow.
    pub fn reconnect_now(&mut self, conn: ConnIndex) {
        let slot = &self.slots[conn.0 as usize];
        match slot.state {
            State::Waiting => self.enqueue(conn.0),
            // One that was cut a moment ago has no socket; its session decides.
            State::Greeting | State::Up | State::Leaving if slot.socket.is_some() => {
                self.leave(conn.0);
            }
            State::Greeting | State::Up | State::Leaving => {}
            State::Queued
            | State::Tokenless
            | State::Connecting
            | State::Securing
            | State::Stopped => {}
        }
    }

    #[must_use]
    pub fn session(&self, conn: ConnIndex) -> &Session {
        &self.slots[conn.0 as usize].session
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    #[must_use]
    pub fn now(&self) -> Now {
        self.config.clock.now()
    }

    /// One round: open, write, wait for at most `wait_us`, read, fire timers, write.
    pub fn turn(&mut self, wait_us: u64, on_event: &mut OnEvent<'_>) -> io::Result<()> {
        for index in std::mem::take(&mut self.cut) {
            self.transport_ended(index, on_event);
        }
        for (index, back_us) in std::mem::take(&mut self.away) {
            self.stay_away(index, back_us);
        }
        self.open_queued(on_event);
        self.flush(on_event);
        self.wait(wait_us)?;

        let mut again = std::mem::take(&mut self.unread);
        for index in again.drain(..) {
            self.read(index, false, on_event);
        }
        again.append(&mut self.unread);
        self.unread = again;
        let mut ready = std::mem::take(&mut self.ready);
        for event in ready.drain(..) {
            self.socket_event(event.data.u64() as u32, event.flags, on_event);
        }
        self.ready = ready;

        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(self.now().mono_us, &mut due);
        for index in due.drain(..) {
            self.timer(index, on_event);
        }
        self.due = due;
        self.flush(on_event);
        Ok(())
    }

    /// Says CLOSE on every connection and drops the sockets. What a peer does not take at once is
    /// not waited for.
    pub fn close_all(&mut self) {
        for index in 0..self.slots.len() as u32 {
            self.with(ConnIndex(index), Session::close);
            self.write(index);
            self.end(index, self.now(), Reconnect::Never);
        }
        self.queue.clear();
        self.cut.clear();
        self.away.clear();
    }

    fn wait(&mut self, wait_us: u64) -> io::Result<()> {
        let now_us = self.now().mono_us;
        let mut wait_us = wait_us;
        if let Some(at_us) = self.wheel.next_us() {
            wait_us = wait_us.min(at_us.saturating_sub(now_us));
        }
        if self.may_open() {
            wait_us = wait_us.min(self.next_connect_us.saturating_sub(now_us));
        }
        if !self.unread.is_empty() {
            wait_us = 0;
        }
        let timeout = Timespec {
            tv_sec: (wait_us / 1_000_000) as i64,
            tv_nsec: (wait_us % 1_000_000 * 1_000) as i64,
        };
        match epoll::wait(&self.epoll, spare_capacity(&mut self.ready), Some(&timeout)) {
            Ok(_) => Ok(()),
            Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests;
