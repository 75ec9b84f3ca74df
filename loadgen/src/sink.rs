//! A gateway that is none: what this program is measured and tested against.
//!
//! It lets everybody log in, keeps nothing, and either discards what is sent or answers it and
//! delivers it to whoever is connected, after a delay that is known. One thread over epoll; what
//! gathers for a connection in a turn leaves in one write. It checks no signatures.
//!
//! # Invariants
//! - Answers and deliveries are held back for the same time, so they leave in the order in which
//!   their messages came, and one queue holds them all.
//! - A client that does not read costs [`OUT_BYTES_MAX`] at most, then its connection.
//!
//! # Does not
//! Store: a message to somebody who is away is accepted and gone. Recognise a repeated message: one
//! that is sent again is delivered again.

mod protocol;

use crate::{aside::Served, plan::parse_duration};
use anyhow::Context;
use clap::{Args, ValueEnum};
use portico_wire::{
    encode::Encoder,
    frame::next_frame,
    ids::{ConvSeq, DeviceId, Seq, UserId},
    limits::FRAME_BYTES_DEFAULT_MAX,
};
use rustc_hash::FxHashMap;
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};
use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Answer {
    /// What is sent is discarded
    None,
    /// SENT to the sender, the message to its recipient if that is connected, delivered marks
    Sent,
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Behaviour {
    #[arg(long, value_enum, value_name = "A", default_value_t = Answer::None)]
    answer: Answer,
    /// How long each SENT and each delivery is held back
    #[arg(long, value_name = "T", value_parser = parse_duration, default_value = "0s")]
    delay: Duration,
    /// Once, everything stands still so long
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    stall: Option<Duration>,
    /// When that is, counted from the first message
    #[arg(long, value_name = "T", value_parser = parse_duration, default_value = "1s")]
    stall_after: Duration,
}

/// One buffer serves all connections.
const READ_BYTES: usize = 262_144;
const READY_MAX: usize = 512;
const OUT_BYTES_MAX: usize = 16 << 20;
/// Between the places of two messages, which are microseconds since 1970 at first.
const SEQ_STEP: u64 = 16;
/// The listener's place in the epoll; connections have their index.
const LISTENER: u64 = u64::MAX;
/// Sessions are told to stay as they are.
const HEARTBEAT_S: u16 = 600;

/// Serves until the process ends.
pub(crate) fn run(
    listener: TcpListener,
    served: Served,
    behaviour: Behaviour,
) -> anyhow::Result<()> {
    // The kernel may delay a sleeper by 50 us; a delay that is known cannot have that.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    let address = listener.local_addr().context("the socket has no address")?;
    let mut sink = Sink::new(listener, behaviour).context("cannot set up epoll")?;
    served.ready(address)?;
    loop {
        sink.turn()?;
    }
}

struct Sink {
    behaviour: Behaviour,
    listener: TcpListener,
    epoll: OwnedFd,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// Counts connections, so that what is held back does not reach another of the same place.
    accepted: u64,
    users: FxHashMap<UserId, usize>,
    /// How far a recipient has got what a sender sent.
    marks: FxHashMap<(UserId, UserId), ConvSeq>,
    held: VecDeque<Held>,
    dirty: Vec<usize>,
    last_seq: u64,
    stall_at: Stall,
    encoder: Encoder,
    ready: Vec<epoll::Event>,
    buffer: Box<[u8]>,
}

enum Stall {
    Never,
    /// So long after the first message.
    Armed,
    At(Instant),
}

/// Frames that wait for their time.
struct Held {
    due: Instant,
    to: Place,
    frame: Vec<u8>,
}

/// A connection, not whoever has its index later.
#[derive(Clone, Copy)]
struct Place {
    index: usize,
    nth: u64,
}

struct Connection {
    stream: TcpStream,
    nth: u64,
    user: UserId,
    device: DeviceId,
    /// The start of a frame whose end has not come.
    input: Vec<u8>,
    out: Vec<u8>,
    dirty: bool,
    blocked: bool,
    /// Delivered and not acknowledged: place in the inbox, author, place in the conversation.
    unacknowledged: VecDeque<(Seq, UserId, ConvSeq)>,
}

/// The connection has to be closed.
struct Ended;

impl Sink {
    fn new(listener: TcpListener, behaviour: Behaviour) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(LISTENER);
        epoll::add(&epoll, &listener, data, epoll::EventFlags::IN)?;
        Ok(Self {
            behaviour,
            listener,
            epoll,
            connections: Vec::new(),
            free: Vec::new(),
            accepted: 0,
            users: FxHashMap::default(),
            marks: FxHashMap::default(),
            held: VecDeque::new(),
            dirty: Vec::new(),
            last_seq: now_us(),
            stall_at: behaviour.stall.map_or(Stall::Never, |_| Stall::Armed),
            encoder: Encoder::new(),
            ready: Vec::with_capacity(READY_MAX),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
        })
    }

    fn turn(&mut self) -> io::Result<()> {
        let next = self.held.front().map(|held| held.due);
        let timeout = next.map(|due| timespec(due.saturating_duration_since(Instant::now())));
        match epoll::wait(
            &self.epoll,
            spare_capacity(&mut self.ready),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = std::mem::take(&mut self.ready);
        for event in ready.drain(..) {
            let (data, flags) = (event.data.u64(), event.flags);
            if data == LISTENER {
                self.accept()?;
                continue;
            }
            let index = data as usize;
            if flags.contains(epoll::EventFlags::OUT) {
                self.unblock(index);
            }
            if flags != epoll::EventFlags::OUT && self.read(index).is_err() {
                self.close(index);
            }
            self.stall();
        }
        self.ready = ready;
        self.release();
        for index in std::mem::take(&mut self.dirty) {
            if self.write(index).is_err() {
                self.close(index);
            }
        }
        Ok(())
    }

    /// Stands still when it is time to, whatever comes meanwhile.
    fn stall(&mut self) {
        if let (Stall::At(at), Some(stall)) = (&self.stall_at, self.behaviour.stall)
            && Instant::now() >= *at
        {
            self.stall_at = Stall::Never;
            thread::sleep(stall);
        }
    }

    /// What has been held back long enough leaves.
    fn release(&mut self) {
        while self
            .held
            .front()
            .is_some_and(|held| held.due <= Instant::now())
        {
            let Some(held) = self.held.pop_front() else {
                return;
            };
            self.queue(held.to, &held.frame);
        }
    }

    // --- connections

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            self.accepted += 1;
            let data = epoll::EventData::new_u64(index as u64);
            epoll::add(&self.epoll, &stream, data, epoll::EventFlags::IN)?;
            self.connections[index] = Some(Connection {
                stream,
                nth: self.accepted,
                user: UserId(0),
                device: DeviceId(0),
                input: Vec::new(),
                out: Vec::new(),
                dirty: false,
                blocked: false,
                unacknowledged: VecDeque::new(),
            });
        }
    }

    fn close(&mut self, index: usize) {
        let Some(mut connection) = self.connections[index].take() else {
            return;
        };
        // A reason may be the last that it has to say.
        let _ = connection.stream.write(&connection.out);
        if self.users.get(&connection.user) == Some(&index) {
            self.users.remove(&connection.user);
        }
        self.free.push(index);
    }

    fn read(&mut self, index: usize) -> Result<(), Ended> {
        let Some(connection) = &mut self.connections[index] else {
            // Closed earlier in this turn.
            return Ok(());
        };
        let bytes = match connection.stream.read(&mut self.buffer) {
            Ok(0) => return Err(Ended),
            Ok(bytes) => bytes,
            Err(error) if is_passing(&error) => return Ok(()),
            Err(_) => return Err(Ended),
        };
        // Both are lent, because a frame may concern other connections too.
        let buffer = std::mem::take(&mut self.buffer);
        let mut input = std::mem::take(&mut connection.input);
        let used = if input.is_empty() {
            let used = self.frames(index, &buffer[..bytes]);
            if let Ok(used) = used {
                input.extend_from_slice(&buffer[used..bytes]);
            }
            used
        } else {
            input.extend_from_slice(&buffer[..bytes]);
            let used = self.frames(index, &input);
            if let Ok(used) = used {
                drop(input.drain(..used));
            }
            used
        };
        self.buffer = buffer;
        if let Some(connection) = &mut self.connections[index]
            && !input.is_empty()
        {
            connection.input = input;
        }
        used.map(drop)
    }

    fn frames(&mut self, index: usize, bytes: &[u8]) -> Result<usize, Ended> {
        let mut used = 0;
        while let Some(frame) =
            next_frame(&bytes[used..], FRAME_BYTES_DEFAULT_MAX).map_err(|_| Ended)?
        {
            used += frame.bytes().len();
            self.frame(index, frame)?;
        }
        Ok(used)
    }

    /// Appends to what a connection will be written.
    fn queue(&mut self, to: Place, frame: &[u8]) {
        let Some(connection) = &mut self.connections[to.index] else {
            return;
        };
        if connection.nth != to.nth {
            return;
        }
        connection.out.extend_from_slice(frame);
        if !connection.dirty && !connection.blocked {
            connection.dirty = true;
            self.dirty.push(to.index);
        }
    }

    fn queue_late(&mut self, to: Place, frame: Vec<u8>) {
        if self.behaviour.delay.is_zero() {
            return self.queue(to, &frame);
        }
        let due = Instant::now() + self.behaviour.delay;
        self.held.push_back(Held { due, to, frame });
    }

    fn write(&mut self, index: usize) -> Result<(), Ended> {
        let Some(connection) = &mut self.connections[index] else {
            return Ok(());
        };
        connection.dirty = false;
        match connection.stream.write(&connection.out) {
            Ok(bytes) if bytes == connection.out.len() => {
                connection.out.clear();
                return Ok(());
            }
            Ok(bytes) => drop(connection.out.drain(..bytes)),
            Err(error) if is_passing(&error) => {}
            Err(_) => return Err(Ended),
        }
        connection.blocked = true;
        let data = epoll::EventData::new_u64(index as u64);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT;
        let armed = epoll::modify(&self.epoll, &connection.stream, data, flags);
        match connection.out.len() <= OUT_BYTES_MAX && armed.is_ok() {
            true => Ok(()),
            false => Err(Ended),
        }
    }

    fn unblock(&mut self, index: usize) {
        let Some(connection) = &mut self.connections[index] else {
            return;
        };
        connection.blocked = false;
        if !connection.dirty {
            connection.dirty = true;
            self.dirty.push(index);
        }
        let data = epoll::EventData::new_u64(index as u64);
        // Where it fails the next write does.
        let _ = epoll::modify(&self.epoll, &connection.stream, data, epoll::EventFlags::IN);
    }
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // A clock set before 1970 is no clock.
    now.map_or(0, |now| now.as_micros() as u64)
}

const fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: duration.subsec_nanos() as i64,
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
