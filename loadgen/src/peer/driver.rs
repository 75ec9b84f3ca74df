//! The connections of one worker over epoll, whatever dialect they speak.
//!
//! Edge-triggered and non-blocking; what a connection has queued leaves in one write per turn; a
//! buffer is lent to a connection that has something to write and taken back when it is written.
//!
//! # Invariants
//! - A line that is neither stopped nor up has a timer, or stands in the queue of those to be
//!   opened: none is forgotten.
//! - A user is up when all its lines are, and when one goes down all go down.
//! - A turn is bounded, and never sleeps when it may wait for 0.

use super::{
    PeerOpening,
    dialect::{Dialect, Heard, Link},
    opening::{Cast, open_socket, reset_at_close, sources},
};
use crate::fleet::{Fleet, Full, Happened, OnEvent, Outgoing, Promises};
use portico_client::{Now, many::Clock};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::OwnedFd,
};

/// Ready sockets handled before the owner gets the thread back.
const READY_PER_TURN_MAX: usize = 256;
/// Bytes read at once. One buffer serves all connections.
const READ_BYTES: usize = 65_536;
/// Full buffers taken from one connection before the others get their turn.
const READS_IN_A_ROW_MAX: usize = 8;
const SPARE_BUFFERS_MAX: usize = 1_024;
const SPARE_BUFFER_BYTES_MAX: usize = 16_384;
/// What a connection may have queued before it takes no more messages.
const QUEUED_BYTES_MAX: usize = 8 << 20;
/// Lines between their first packet and the end of their login.
const OPENING_MAX: usize = 256;
/// How far the pace of connecting may catch up after a pause.
const CATCH_UP_US: u64 = 10_000;
const LOGIN_TIMEOUT_US: u64 = 10_000_000;
/// Before a connection that went down is opened again, unless its owner said otherwise.
const RECONNECT_DELAY_US: u64 = 500_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Until its timer fires, then in the queue.
    Waiting,
    Queued,
    /// The handshake of TCP runs.
    Connecting,
    LoggingIn,
    Up,
    Stopped,
}

/// One socket.
struct Line {
    link: Link,
    socket: Option<TcpStream>,
    state: State,
    /// Timers and places in the queue of an earlier one are void.
    generation: u32,
    /// When the present attempt began.
    begun_us: u64,
    out: Vec<u8>,
    dirty: bool,
    /// The socket's buffer is full: the next edge says when it is not.
    blocked: bool,
    reading: bool,
}

/// Names a line as it is now.
type Stamp = (u32, u32);

pub(super) struct Driver<D> {
    dialect: D,
    cast: Cast,
    clock: Clock,
    target: SocketAddr,
    sources: Vec<IpAddr>,
    lines_before: usize,
    gap_us: u64,
    heartbeat_us: u64,
    users: u32,
    epoll: OwnedFd,
    /// Line `n` is the first of user `n`; if there are twice as many, line `users + n` is its other.
    lines: Vec<Line>,
    /// Lines of each user that are up.
    up: Vec<u8>,
    queue: VecDeque<Stamp>,
    opening: usize,
    next_open_us: u64,
    timers: BinaryHeap<Reverse<(u64, Stamp)>>,
    dirty: Vec<u32>,
    /// Those with more to read, of which no edge will tell.
    unread: Vec<u32>,
    /// Users that were cut, of which nobody has been told yet.
    cut_off: Vec<u32>,
    // Scratch, kept for its memory.
    ready: Vec<epoll::Event>,
    read_buffer: Box<[u8]>,
    spare: Vec<Vec<u8>>,
}

impl<D: Dialect> Driver<D> {
    pub(super) fn open(dialect: D, opening: &PeerOpening) -> io::Result<Self> {
        let cast = Cast::new(opening);
        let users = opening.users;
        let double = dialect.splits() && opening.members.is_none();
        let mut lines = Vec::with_capacity(users as usize * (1 + usize::from(double)));
        let line = |link| Line {
            link,
            socket: None,
            state: State::Queued,
            generation: 0,
            begun_us: 0,
            out: Vec::new(),
            dirty: false,
            blocked: false,
            reading: true,
        };
        for conn in 0..users {
            let speaks_to = cast.speaks_to(conn).filter(|_| !double);
            lines.push(line(Link::new(
                cast.user(conn),
                cast.hears(conn),
                speaks_to,
            )));
        }
        for conn in (0..users).filter(|_| double) {
            let speaks_to = cast.speaks_to(conn);
            lines.push(line(Link::new(cast.user(conn), None, speaks_to)));
        }
        let lines_before = opening.users_before * (1 + usize::from(double));
        // A user's lines one after the other, so that users come up one by one.
        let queue = (0..users)
            .flat_map(|conn| {
                let other = double.then_some(users + conn);
                std::iter::once(conn).chain(other)
            })
            .map(|line| (line, 0))
            .collect();
        Ok(Self {
            dialect,
            cast,
            clock: opening.clock,
            target: opening.target,
            sources: sources(opening, lines_before, lines.len())?,
            lines_before,
            gap_us: 1_000_000 / u64::from(opening.connects_per_s.max(1)),
            heartbeat_us: u64::from(opening.heartbeat_s) * 1_000_000,
            users,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            lines,
            up: vec![0; users as usize],
            queue,
            opening: 0,
            next_open_us: 0,
            timers: BinaryHeap::new(),
            dirty: Vec::new(),
            unread: Vec::new(),
            cut_off: Vec::new(),
            ready: Vec::with_capacity(READY_PER_TURN_MAX),
            read_buffer: vec![0; READ_BYTES].into_boxed_slice(),
            spare: Vec::new(),
        })
    }

    fn lines_per_user(&self) -> u8 {
        if self.lines.len() > self.users as usize {
            2
        } else {
            1
        }
    }

    /// The lines of a user.
    fn lines_of(&self, conn: u32) -> impl Iterator<Item = u32> + use<D> {
        let second = (self.lines_per_user() == 2).then_some(conn + self.users);
        std::iter::once(conn).chain(second)
    }

    const fn conn_of(&self, index: u32) -> u32 {
        if index >= self.users {
            index - self.users
        } else {
            index
        }
    }

    // --- opening

    fn may_open(&self) -> bool {
        !self.queue.is_empty() && self.opening < OPENING_MAX
    }

    fn open_queued(&mut self, on: &mut OnEvent<'_>) {
        while self.may_open() {
            let now = self.clock.now();
            if now.mono_us < self.next_open_us {
                return;
            }
            let Some((index, generation)) = self.queue.pop_front() else {
                return;
            };
            let line = &mut self.lines[index as usize];
            if line.state != State::Queued || line.generation != generation {
                continue;
            }
            let earliest_us = now.mono_us.saturating_sub(CATCH_UP_US);
            self.next_open_us = self.next_open_us.max(earliest_us) + self.gap_us;
            line.link.reset();
            line.state = State::Connecting;
            line.begun_us = now.mono_us;
            line.reading = true;
            self.opening += 1;
            let nth = self.lines_before + index as usize;
            let source = nth
                .checked_rem(self.sources.len())
                .map(|at| self.sources[at]);
            match open_socket(self.target, source, &self.epoll, u64::from(index)) {
                Ok(socket) => {
                    self.lines[index as usize].socket = Some(socket);
                    self.set_timer(index, now.mono_us + LOGIN_TIMEOUT_US);
                }
                Err(error) => self.connect_failed(now, index, &error, on),
            }
        }
    }

    fn connect_failed(&mut self, now: Now, index: u32, error: &io::Error, on: &mut OnEvent<'_>) {
        on(now, self.conn_of(index), Happened::ConnectFailed(error));
        // Its other line has nothing to wait for alone; it stays, and this one is tried again.
        self.drop_line(index, now.mono_us + RECONNECT_DELAY_US);
    }

    fn connected(&mut self, index: u32) {
        let line = &mut self.lines[index as usize];
        line.state = State::LoggingIn;
        lend(&mut line.out, &mut self.spare);
        self.dialect.connected(&mut line.link, &mut line.out);
        self.mark_dirty(index);
    }

    // --- closing

    /// Closes a line that may or may not have a socket, to be opened again at `back_us`.
    fn drop_line(&mut self, index: u32, back_us: u64) {
        let conn = self.conn_of(index) as usize;
        let line = &mut self.lines[index as usize];
        match line.state {
            State::Connecting | State::LoggingIn => self.opening -= 1,
            State::Up => self.up[conn] -= 1,
            State::Waiting | State::Queued => {}
            State::Stopped => return,
        }
        if let Some(socket) = line.socket.take() {
            reset_at_close(&socket);
        }
        line.state = State::Waiting;
        line.blocked = false;
        line.out = Vec::new();
        line.link.reset();
        self.set_timer(index, back_us);
    }

    /// All lines of a user go down with one of them.
    fn user_down(&mut self, now: Now, conn: u32, end: &End<'_>, on: &mut OnEvent<'_>) {
        let back_us = now.mono_us + RECONNECT_DELAY_US;
        for index in self.lines_of(conn) {
            self.drop_line(index, back_us);
            if end.for_good {
                let line = &mut self.lines[index as usize];
                line.state = State::Stopped;
                line.generation += 1;
            }
        }
        let down = Happened::Down {
            code: 0,
            detail: end.detail,
            by_peer: true,
            for_good: end.for_good,
        };
        on(now, conn, down);
    }

    // --- timers

    fn set_timer(&mut self, index: u32, at_us: u64) {
        let line = &mut self.lines[index as usize];
        line.generation = line.generation.wrapping_add(1);
        self.timers.push(Reverse((at_us, (index, line.generation))));
    }

    fn fire_timers(&mut self, on: &mut OnEvent<'_>) {
        let now = self.clock.now();
        while let Some(Reverse((at_us, (index, generation)))) = self.timers.peek().copied() {
            if at_us > now.mono_us {
                return;
            }
            self.timers.pop();
            let line = &mut self.lines[index as usize];
            if line.generation != generation {
                continue;
            }
            match line.state {
                State::Waiting => {
                    line.state = State::Queued;
                    self.queue.push_back((index, generation));
                }
                State::Connecting | State::LoggingIn => {
                    let error = io::Error::from(io::ErrorKind::TimedOut);
                    self.connect_failed(now, index, &error, on);
                }
                State::Up => {
                    lend(&mut line.out, &mut self.spare);
                    self.dialect.heartbeat(&line.link, &mut line.out);
                    self.mark_dirty(index);
                    self.set_timer(index, now.mono_us + self.heartbeat_us);
                }
                State::Queued | State::Stopped => {}
            }
        }
    }

    // --- sockets

    fn wait(&mut self, wait_us: u64) -> io::Result<()> {
        let mut wait_us = wait_us;
        if wait_us > 0 {
            let now_us = self.clock.now().mono_us;
            if let Some(Reverse((at_us, _))) = self.timers.peek() {
                wait_us = wait_us.min(at_us.saturating_sub(now_us));
            }
            if self.may_open() {
                wait_us = wait_us.min(self.next_open_us.saturating_sub(now_us));
            }
            if !self.unread.is_empty() {
                wait_us = 0;
            }
        }
        let timeout = Timespec {
            tv_sec: (wait_us / 1_000_000) as i64,
            tv_nsec: (wait_us % 1_000_000 * 1_000) as i64,
        };
        match epoll::wait(&self.epoll, spare_capacity(&mut self.ready), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn socket_event(&mut self, index: u32, flags: epoll::EventFlags, on: &mut OnEvent<'_>) {
        let line = &mut self.lines[index as usize];
        let Some(socket) = &line.socket else {
            // Closed earlier in this turn.
            return;
        };
        if line.state == State::Connecting {
            match socket.take_error() {
                Ok(None) if flags.contains(epoll::EventFlags::OUT) => self.connected(index),
                Ok(None) => return,
                Ok(Some(error)) | Err(error) => {
                    return self.connect_failed(self.clock.now(), index, &error, on);
                }
            }
        } else if line.blocked && flags.contains(epoll::EventFlags::OUT) {
            line.blocked = false;
            self.mark_dirty(index);
        }
        let ended = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        if flags.intersects(epoll::EventFlags::IN | ended) {
            self.read(index, flags.intersects(ended), on);
        }
    }

    /// Reads until the socket is empty. A buffer that was not filled says so without another call,
    /// unless the peer has ended: then the end must be met now, no edge will come for it.
    fn read(&mut self, index: u32, ended: bool, on: &mut OnEvent<'_>) {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        for reads in 0.. {
            let line = &mut self.lines[index as usize];
            if !line.reading {
                // What has come is looked for when it reads again.
                break;
            }
            if reads == READS_IN_A_ROW_MAX && !ended {
                self.unread.push(index);
                break;
            }
            let Some(mut socket) = line.socket.as_ref() else {
                break;
            };
            match socket.read(&mut buffer) {
                Ok(0) => {
                    self.line_ended(index, "", on);
                    break;
                }
                Ok(bytes) => {
                    self.received(index, &buffer[..bytes], on);
                    if bytes < buffer.len() && !ended {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.line_ended(index, "", on);
                    break;
                }
            }
        }
        self.read_buffer = buffer;
    }

    fn received(&mut self, index: u32, bytes: &[u8], on: &mut OnEvent<'_>) {
        let now = self.clock.now();
        let conn = self.conn_of(index);
        let line = &mut self.lines[index as usize];
        lend(&mut line.out, &mut self.spare);
        let mut is_up = false;
        let mut complaint = None;
        let fed = line.link.feed(
            &self.dialect,
            bytes,
            &mut line.out,
            &mut |heard| match heard {
                Heard::Nothing => {}
                Heard::Up => is_up = true,
                Heard::Message(body) => {
                    let arrived = Happened::Arrived {
                        body,
                        author: None,
                        place: None,
                    };
                    on(now, conn, arrived);
                }
                Heard::Accepted(name) => {
                    let accepted = Happened::Accepted {
                        name,
                        place: None,
                        duplicate: false,
                    };
                    on(now, conn, accepted);
                }
                Heard::Complaint(text) => {
                    complaint.get_or_insert_with(|| String::from_utf8_lossy(text).into_owned());
                }
            },
        );
        if let Err(fault) = fed {
            on(now, conn, Happened::Fault(fault.0));
            return self.line_ended(index, fault.0, on);
        }
        if let Some(text) = complaint {
            return self.line_ended(index, &text, on);
        }
        if is_up {
            self.logged_in(now, index, on);
        }
        self.mark_dirty(index);
        self.take_back(index);
    }

    fn logged_in(&mut self, now: Now, index: u32, on: &mut OnEvent<'_>) {
        let conn = self.conn_of(index);
        let line = &mut self.lines[index as usize];
        if line.state != State::LoggingIn {
            return;
        }
        line.state = State::Up;
        self.opening -= 1;
        if self.heartbeat_us > 0 {
            self.set_timer(index, now.mono_us + self.heartbeat_us);
        } else {
            // The one of the login is void.
            line.generation = line.generation.wrapping_add(1);
        }
        self.up[conn as usize] += 1;
        if self.up[conn as usize] == self.lines_per_user() {
            let begun_us = self
                .lines_of(conn)
                .map(|line| self.lines[line as usize].begun_us);
            let begun_us = begun_us.min().unwrap_or(now.mono_us);
            let after_us = now.mono_us.saturating_sub(begun_us);
            on(now, conn, Happened::Up { after_us });
        }
    }

    /// The server has closed a line, or it is of no more use. A complaint during the login is a
    /// refusal: another attempt would have the same answer.
    fn line_ended(&mut self, index: u32, detail: &str, on: &mut OnEvent<'_>) {
        let line = &self.lines[index as usize];
        let end = End {
            detail,
            for_good: !detail.is_empty() && line.state == State::LoggingIn,
        };
        self.user_down(self.clock.now(), self.conn_of(index), &end, on);
    }

    fn mark_dirty(&mut self, index: u32) {
        let line = &mut self.lines[index as usize];
        if !line.dirty && !line.blocked && !line.out.is_empty() {
            line.dirty = true;
            self.dirty.push(index);
        }
    }

    fn flush(&mut self, on: &mut OnEvent<'_>) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            self.lines[index as usize].dirty = false;
            if !self.write(index) {
                // What the server said before it went decides nothing here, but may be messages.
                self.read(index, true, on);
                if self.lines[index as usize].socket.is_some() {
                    self.line_ended(index, "", on);
                }
            }
        }
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
    }

    /// Writes what a line has queued; false when the socket is gone.
    fn write(&mut self, index: u32) -> bool {
        let line = &mut self.lines[index as usize];
        let Some(mut socket) = line.socket.as_ref() else {
            return true;
        };
        while !line.out.is_empty() {
            match socket.write(&line.out) {
                Ok(bytes) if bytes == line.out.len() => line.out.clear(),
                Ok(bytes) => drop(line.out.drain(..bytes)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    line.blocked = true;
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.take_back(index);
        true
    }

    /// An idle line keeps no buffer.
    fn take_back(&mut self, index: u32) {
        let out = &mut self.lines[index as usize].out;
        if !out.is_empty() || out.capacity() == 0 {
            return;
        }
        let out = std::mem::take(out);
        if self.spare.len() < SPARE_BUFFERS_MAX && out.capacity() <= SPARE_BUFFER_BYTES_MAX {
            self.spare.push(out);
        }
    }
}

/// Why a line ended, in the server's words or ours; empty: it just did.
struct End<'a> {
    detail: &'a str,
    for_good: bool,
}

fn lend(out: &mut Vec<u8>, spare: &mut Vec<Vec<u8>>) {
    if out.capacity() == 0
        && let Some(buffer) = spare.pop()
    {
        *out = buffer;
    }
}

impl<D: Dialect> Fleet for Driver<D> {
    fn promises(&self) -> Promises {
        self.dialect.promises()
    }

    fn now(&self) -> Now {
        self.clock.now()
    }

    fn turn(&mut self, wait_us: u64, on: &mut OnEvent<'_>) -> io::Result<()> {
        let now = self.clock.now();
        for conn in std::mem::take(&mut self.cut_off) {
            let down = Happened::Down {
                code: 0,
                detail: "",
                by_peer: false,
                for_good: false,
            };
            on(now, conn, down);
        }
        self.open_queued(on);
        self.flush(on);
        self.wait(wait_us)?;

        let mut again = std::mem::take(&mut self.unread);
        for index in again.drain(..) {
            self.read(index, false, on);
        }
        again.append(&mut self.unread);
        self.unread = again;
        let mut ready = std::mem::take(&mut self.ready);
        for event in ready.drain(..) {
            self.socket_event(event.data.u64() as u32, event.flags, on);
        }
        self.ready = ready;
        self.fire_timers(on);
        self.flush(on);
        Ok(())
    }

    fn send(&mut self, conn: u32, message: &Outgoing<'_>) -> Result<(), Full> {
        if self.up.get(conn as usize) != Some(&self.lines_per_user()) {
            return Err(Full);
        }
        let index = match self.lines_per_user() {
            2 => conn + self.users,
            _ => conn,
        };
        let to = self.cast.topic(message.to);
        let line = &mut self.lines[index as usize];
        if line.out.len() > QUEUED_BYTES_MAX {
            return Err(Full);
        }
        lend(&mut line.out, &mut self.spare);
        self.dialect.publish(
            &mut line.link,
            to,
            message.name,
            message.body,
            &mut line.out,
        )?;
        self.mark_dirty(index);
        Ok(())
    }

    fn cut(&mut self, conn: u32, back_after_us: u64) {
        let back_us = self.clock.now().mono_us.saturating_add(back_after_us);
        let was_up = self.up[conn as usize] > 0;
        for index in self.lines_of(conn) {
            self.drop_line(index, back_us);
        }
        if was_up {
            self.cut_off.push(conn);
        }
    }

    fn set_reading(&mut self, conn: u32, reading: bool) {
        for index in self.lines_of(conn) {
            let line = &mut self.lines[index as usize];
            if reading && !line.reading {
                // What came meanwhile has had its edge.
                self.unread.push(index);
            }
            line.reading = reading;
        }
    }

    fn close_all(&mut self) {
        for index in 0..self.lines.len() as u32 {
            let line = &mut self.lines[index as usize];
            if line.state == State::Up {
                self.dialect.goodbye(&line.link, &mut line.out);
                self.write(index);
            }
            let line = &mut self.lines[index as usize];
            line.socket = None;
            line.state = State::Stopped;
            line.out = Vec::new();
        }
        self.up.fill(0);
        self.queue.clear();
        self.timers.clear();
        self.opening = 0;
    }
}
