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

mod lines;
mod sockets;

use super::{
    PeerOpening,
    dialect::{Dialect, Link},
    opening::{Cast, sources},
};
use crate::fleet::{Fleet, Full, Happened, OnEvent, Outgoing, Promises};
use portico_client::{Now, many::Clock};
use rustix::event::epoll;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    io,
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
}

/// Why a line ended, in the server's words or ours; empty: it just did.
struct End<'a> {
    detail: &'a str,
    by_peer: bool,
}

impl End<'_> {
    const SILENT: Self = Self {
        detail: "",
        by_peer: true,
    };
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
