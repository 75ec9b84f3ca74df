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
//! # Invariants
//! - A connection that is neither stopped nor open has a timer or stands in the queue of those to
//!   be opened: none is forgotten.
//! - At most [`ManyConfig::connecting_max`] connections are between their first packet and WELCOME.
//! - An idle connection owns its slot and nothing else here: no buffer, no heap entry.
//!
//! # Does not
//! Decide when to reconnect: the session's verdict says so, and how long to wait. Follow a server
//! to another endpoint: a measurement is of one target. Open the new connection before it leaves
//! the old one when the server drains; replay makes up for the moment between the two.

mod wheel;

use crate::session::{Event, Now, Phase, SendError, SendOptions, Session};
use portico_wire::ids::{MsgId, UserId};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    collections::VecDeque,
    fmt,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use wheel::Wheel;

/// Ready sockets handled before the owner gets the thread back: what bounds the time between two
/// looks at its schedule.
const READY_PER_TURN_MAX: usize = 128;
/// Bytes read at once. One buffer serves all connections.
const READ_BYTES: usize = 65_536;
/// Full buffers taken from one connection before the others get their turn.
const READS_IN_A_ROW_MAX: usize = 8;
/// Write buffers kept for sessions that are about to send.
const SPARE_BUFFERS_MAX: usize = 256;
/// A write buffer that has grown beyond this is given back instead of kept.
const SPARE_BUFFER_BYTES_MAX: usize = 16_384;
/// How far the pace of connecting may catch up after a pause.
const CONNECT_CATCH_UP_US: u64 = 10_000;

/// The time of this driver: one origin for every thread of a program, so that times taken on one
/// thread mean the same on another.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
    wall_at_origin_us: u64,
}

impl Clock {
    #[must_use]
    pub fn start() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            origin: Instant::now(),
            // A clock set before 1970 is no clock; the server's offset corrects it.
            wall_at_origin_us: wall.map_or(0, |wall| wall.as_micros() as u64),
        }
    }

    #[must_use]
    pub fn now(&self) -> Now {
        let mono_us = self.origin.elapsed().as_micros() as u64;
        Now {
            mono_us,
            wall_us: self.wall_at_origin_us + mono_us,
        }
    }
}

/// How connections are opened.
#[derive(Clone, Debug)]
pub struct ManyConfig {
    pub target: SocketAddr,
    /// Local addresses, used in turn. Empty: the system chooses. An address has only so many ports
    /// towards one target (about 28,000 by default).
    pub sources: Vec<IpAddr>,
    /// Connections that will be added, to reserve memory once.
    pub connections: usize,
    /// Connections between their first packet and WELCOME.
    pub connecting_max: usize,
    /// Connections opened per second, at most.
    pub connects_per_s: u32,
    /// From the first packet to WELCOME.
    pub connect_timeout_ms: u32,
    pub clock: Clock,
}

impl ManyConfig {
    #[must_use]
    pub fn new(target: SocketAddr, clock: Clock) -> Self {
        Self {
            target,
            sources: Vec::new(),
            connections: 0,
            connecting_max: 256,
            connects_per_s: 20_000,
            connect_timeout_ms: 10_000,
            clock,
        }
    }
}

/// A connection, numbered from 0 in the order of [`Many::add`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnIndex(pub u32);

/// What happened to a connection.
#[derive(Debug)]
pub enum ManyEvent<'a> {
    /// The session says so. After `Closed` with a delay the driver reconnects by itself.
    Session(Event<'a>),
    /// No connection came about; the session decides about the next attempt.
    ConnectFailed(&'a io::Error),
}

/// The owner's callback.
pub type OnEvent<'a> = dyn FnMut(Now, ConnIndex, ManyEvent<'_>) + 'a;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Until `until_us`, then in the queue.
    Waiting,
    /// In the queue of connections to be opened.
    Queued,
    /// The handshake of TCP runs, until `until_us` at most.
    Connecting,
    /// HELLO is out, WELCOME is awaited, until `until_us` at most.
    Greeting,
    Up,
    /// The server drains: leave at `until_us`.
    Leaving,
    /// The session's last word.
    Stopped,
}

struct Slot {
    session: Session,
    until_us: u64,
    socket: Option<TcpStream>,
    state: State,
    /// In the list of those that have something to write.
    dirty: bool,
    /// The socket's buffer is full: the next edge says when it is not.
    blocked: bool,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("state", &self.state)
            .field("until_us", &self.until_us)
            .field("blocked", &self.blocked)
            .finish_non_exhaustive()
    }
}

impl Slot {
    fn is_connecting(&self) -> bool {
        matches!(self.state, State::Connecting | State::Greeting)
    }

    /// When something has to be done without an event of the socket.
    fn deadline_us(&self) -> Option<u64> {
        match self.state {
            State::Waiting | State::Connecting => Some(self.until_us),
            State::Greeting | State::Leaving => {
                let session = self.session.next_timeout().unwrap_or(u64::MAX);
                Some(self.until_us.min(session))
            }
            State::Up => self.session.next_timeout(),
            State::Queued | State::Stopped => None,
        }
    }
}

/// What a call of the session meant for its connection.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    welcomed: bool,
    leave_after_ms: Option<u32>,
    closed: Option<Reconnect>,
}

#[derive(Clone, Copy, Debug)]
enum Reconnect {
    AfterMs(u32),
    Never,
}

impl Outcome {
    fn note(&mut self, event: &Event<'_>) {
        match event {
            Event::Welcome { .. } => self.welcomed = true,
            Event::Draining { leave_after_ms } => self.leave_after_ms = Some(*leave_after_ms),
            Event::Closed {
                reconnect_after_ms, ..
            } => {
                self.closed = Some(match reconnect_after_ms {
                    Some(ms) => Reconnect::AfterMs(*ms),
                    None => Reconnect::Never,
                });
            }
            _ => {}
        }
    }
}

/// Many sessions over one epoll instance. See the module's head.
pub struct Many {
    config: ManyConfig,
    epoll: OwnedFd,
    slots: Vec<Slot>,
    wheel: Wheel,
    /// Those to be opened, in order.
    queue: VecDeque<u32>,
    connecting: usize,
    next_connect_us: u64,
    dirty: Vec<u32>,
    /// Those whose sockets gave full buffers to the last: more is there, and no edge will say so.
    unread: Vec<u32>,
    // Scratch, kept for its memory.
    ready: Vec<epoll::Event>,
    due: Vec<u32>,
    read_buffer: Box<[u8]>,
    spare_buffers: Vec<Vec<u8>>,
}

impl fmt::Debug for Many {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Many")
            .field("connections", &self.slots.len())
            .field("connecting", &self.connecting)
            .field("queued", &self.queue.len())
            .finish_non_exhaustive()
    }
}

impl Many {
    pub fn new(config: ManyConfig) -> io::Result<Self> {
        let connections = config.connections;
        Ok(Self {
            config,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            slots: Vec::with_capacity(connections),
            wheel: Wheel::with_capacity(connections),
            queue: VecDeque::with_capacity(connections),
            connecting: 0,
            next_connect_us: 0,
            dirty: Vec::new(),
            unread: Vec::new(),
            ready: Vec::with_capacity(READY_PER_TURN_MAX),
            due: Vec::new(),
            read_buffer: vec![0; READ_BYTES].into_boxed_slice(),
            spare_buffers: Vec::new(),
        })
    }

    /// Takes a session in; its connection is opened in one of the next turns.
    ///
    /// # Panics
    /// When there are 2^32 connections already.
    pub fn add(&mut self, session: Session) -> ConnIndex {
        let index = u32::try_from(self.slots.len()).expect("fewer than 2^32 connections");
        self.slots.push(Slot {
            session,
            until_us: 0,
            socket: None,
            state: State::Queued,
            dirty: false,
            blocked: false,
        });
        self.wheel.add_owner();
        self.queue.push_back(index);
        ConnIndex(index)
    }

    /// Queues a message; it goes out with the next turn.
    pub fn send(
        &mut self,
        conn: ConnIndex,
        to: UserId,
        envelope: &[u8],
        options: SendOptions,
    ) -> Result<MsgId, SendError> {
        let now = self.now();
        let slot = &mut self.slots[conn.0 as usize];
        let output = slot.session.output();
        // A buffer that has been through this before spares the steps of growing a new one.
        if output.capacity() == 0
            && let Some(buffer) = self.spare_buffers.pop()
        {
            *output = buffer;
        }
        let result = slot.session.send(now, to, envelope, options);
        let output = slot.session.output();
        if output.is_empty() && output.capacity() > 0 {
            // Nothing can go out now; the buffer must not stay behind.
            self.spare_buffers.push(std::mem::take(output));
        }
        self.after_session(conn.0);
        result
    }

    /// Anything else a session can do: acknowledge, mark as read, close.
    pub fn with<R>(&mut self, conn: ConnIndex, action: impl FnOnce(&mut Session, Now) -> R) -> R {
        let now = self.config.clock.now();
        let result = action(&mut self.slots[conn.0 as usize].session, now);
        self.after_session(conn.0);
        result
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
    }

    fn wait(&mut self, wait_us: u64) -> io::Result<()> {
        let now_us = self.now().mono_us;
        let mut wait_us = wait_us;
        if let Some(at_us) = self.wheel.next_us() {
            wait_us = wait_us.min(at_us.saturating_sub(now_us));
        }
        if !self.queue.is_empty() && self.connecting < self.config.connecting_max {
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

    // --- opening

    fn open_queued(&mut self, on_event: &mut OnEvent<'_>) {
        let gap_us = 1_000_000 / u64::from(self.config.connects_per_s.max(1));
        while self.connecting < self.config.connecting_max {
            let now = self.now();
            if self.queue.is_empty() || now.mono_us < self.next_connect_us {
                break;
            }
            let earliest = now.mono_us.saturating_sub(CONNECT_CATCH_UP_US);
            self.next_connect_us = self.next_connect_us.max(earliest) + gap_us;
            if let Some(index) = self.queue.pop_front() {
                self.open(index, now, on_event);
            }
        }
    }

    fn open(&mut self, index: u32, now: Now, on_event: &mut OnEvent<'_>) {
        let slot = &mut self.slots[index as usize];
        slot.state = State::Connecting;
        slot.until_us = now.mono_us + u64::from(self.config.connect_timeout_ms) * 1_000;
        self.connecting += 1;
        match open_socket(&self.config, index as usize, &self.epoll) {
            Ok(socket) => {
                slot.socket = Some(socket);
                self.rearm(index);
            }
            Err(error) => self.connect_failed(index, &error, on_event),
        }
    }

    fn connected(&mut self, index: u32, on_event: &mut OnEvent<'_>) {
        let slot = &mut self.slots[index as usize];
        let Some(socket) = &slot.socket else { return };
        // Frames are gathered here; waiting in the kernel as well would only add delay. A socket
        // on which this fails is broken, and the next write says so.
        let _ = socket.set_nodelay(true);
        slot.state = State::Greeting;
        self.drive(index, on_event, |session, now, _| session.connected(now));
    }

    fn connect_failed(&mut self, index: u32, error: &io::Error, on_event: &mut OnEvent<'_>) {
        on_event(
            self.now(),
            ConnIndex(index),
            ManyEvent::ConnectFailed(error),
        );
        self.transport_ended(index, on_event);
    }

    // --- events

    fn socket_event(&mut self, index: u32, flags: epoll::EventFlags, on_event: &mut OnEvent<'_>) {
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
        let ended = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        if flags.intersects(epoll::EventFlags::IN | ended) {
            self.read(index, flags.intersects(ended), on_event);
        }
    }

    /// Reads until the socket is empty. A buffer that was not filled says so without another call,
    /// unless the peer has ended: then the end must be met now, no edge will come for it.
    fn read(&mut self, index: u32, ended: bool, on_event: &mut OnEvent<'_>) {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        let mut reads = 0;
        while let Some(mut socket) = self.slots[index as usize].socket.as_ref() {
            match socket.read(&mut buffer) {
                Ok(0) => {
                    self.transport_ended(index, on_event);
                    break;
                }
                Ok(bytes) => {
                    self.drive(index, on_event, |session, now, on_event| {
                        session.received(now, &buffer[..bytes], on_event);
                    });
                    if bytes < buffer.len() && !ended {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.transport_ended(index, on_event);
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

    fn timer(&mut self, index: u32, on_event: &mut OnEvent<'_>) {
        let now_us = self.now().mono_us;
        let slot = &mut self.slots[index as usize];
        let over = now_us >= slot.until_us;
        match slot.state {
            State::Waiting if over => {
                slot.state = State::Queued;
                self.queue.push_back(index);
            }
            State::Connecting | State::Greeting if over => {
                let error = io::Error::from(io::ErrorKind::TimedOut);
                self.connect_failed(index, &error, on_event);
            }
            State::Leaving if over => self.leave(index),
            State::Greeting | State::Up | State::Leaving => {
                if slot.session.next_timeout().is_some_and(|at| at <= now_us) {
                    self.drive(index, on_event, |session, now, on_event| {
                        session.on_timeout(now, on_event);
                    });
                } else {
                    self.rearm(index);
                }
            }
            State::Waiting | State::Connecting => self.rearm(index),
            State::Queued | State::Stopped => {}
        }
    }

    // --- the session and its transport

    /// Lets the session do something and acts on what it said.
    fn drive(
        &mut self,
        index: u32,
        on_event: &mut OnEvent<'_>,
        step: impl FnOnce(&mut Session, Now, &mut dyn FnMut(Event<'_>)),
    ) {
        let now = self.now();
        let mut outcome = Outcome::default();
        step(&mut self.slots[index as usize].session, now, &mut |event| {
            outcome.note(&event);
            on_event(now, ConnIndex(index), ManyEvent::Session(event));
        });
        let slot = &mut self.slots[index as usize];
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

    /// The socket is gone, or never was: the session hears of it and gives its verdict.
    fn transport_ended(&mut self, index: u32, on_event: &mut OnEvent<'_>) {
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
    fn leave(&mut self, index: u32) {
        self.drop_socket(index);
        self.slots[index as usize].state = State::Queued;
        self.queue.push_back(index);
    }

    /// The connection is over; what the session still wanted to say (a CLOSE) is tried once.
    fn end(&mut self, index: u32, now: Now, reconnect: Reconnect) {
        let slot = &mut self.slots[index as usize];
        if let Some(mut socket) = slot.socket.as_ref()
            && !slot.session.output().is_empty()
        {
            let _ = socket.write(slot.session.output());
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
        *slot.session.output() = Vec::new();
    }

    /// After every call of a session: it may have bytes to write and another deadline.
    fn after_session(&mut self, index: u32) {
        self.mark_dirty(index);
        self.rearm(index);
    }

    fn mark_dirty(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if !slot.dirty && !slot.blocked && !slot.session.output().is_empty() {
            slot.dirty = true;
            self.dirty.push(index);
        }
    }

    /// The wheel may wake a connection too early, never too late: a deadline that moves away costs
    /// nothing until the old one comes.
    fn rearm(&mut self, index: u32) {
        let Some(at_us) = self.slots[index as usize].deadline_us() else {
            return;
        };
        if self.wheel.get(index).is_none_or(|armed| at_us < armed) {
            self.wheel.set(index, at_us);
        }
    }

    fn flush(&mut self, on_event: &mut OnEvent<'_>) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            self.slots[index as usize].dirty = false;
            if !self.write(index) {
                self.transport_ended(index, on_event);
            }
        }
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
    }

    /// Writes what the session has queued; false when the transport is gone.
    fn write(&mut self, index: u32) -> bool {
        let slot = &mut self.slots[index as usize];
        let Some(mut socket) = slot.socket.as_ref() else {
            return true;
        };
        let output = slot.session.output();
        while !output.is_empty() {
            match socket.write(output) {
                Ok(bytes) if bytes == output.len() => {
                    let mut buffer = std::mem::take(output);
                    buffer.clear();
                    if self.spare_buffers.len() < SPARE_BUFFERS_MAX
                        && buffer.capacity() <= SPARE_BUFFER_BYTES_MAX
                    {
                        self.spare_buffers.push(buffer);
                    }
                }
                Ok(bytes) => drop(output.drain(..bytes)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    slot.blocked = true;
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

fn open_socket(config: &ManyConfig, index: usize, epoll: &OwnedFd) -> io::Result<TcpStream> {
    let domain = Domain::for_address(config.target);
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(domain, kind, Some(Protocol::TCP))?;
    if let Some(nth) = index.checked_rem(config.sources.len()) {
        socket.bind(&SocketAddr::new(config.sources[nth], 0).into())?;
    }
    let socket = match socket.connect(&config.target.into()) {
        Ok(()) => TcpStream::from(socket),
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) =>
        {
            TcpStream::from(socket)
        }
        Err(error) => return Err(error),
    };
    let flags = epoll::EventFlags::IN
        | epoll::EventFlags::OUT
        | epoll::EventFlags::RDHUP
        | epoll::EventFlags::ET;
    epoll::add(
        epoll,
        &socket,
        epoll::EventData::new_u64(index as u64),
        flags,
    )?;
    Ok(socket)
}

/// Local addresses for `connections` connections to a loopback target, when one address has not
/// enough ports: 127.0.0.2 and up, all of which the loopback interface answers for. Empty when the
/// system can choose by itself; `None` when the target is elsewhere and ports would run out.
#[must_use]
pub fn loopback_sources(
    target: SocketAddr,
    connections: usize,
    ports_per_address: usize,
) -> Option<Vec<IpAddr>> {
    if connections <= ports_per_address {
        return Some(Vec::new());
    }
    let IpAddr::V4(address) = target.ip() else {
        return None;
    };
    let addresses = connections.div_ceil(ports_per_address.max(1));
    if !address.is_loopback() || addresses > 250 {
        return None;
    }
    let sources = (0..addresses as u8).map(|n| IpAddr::from([127, 0, 0, 2 + n]));
    Some(sources.collect())
}

#[cfg(test)]
mod tests;
