//! One session on a thread of its own, over TCP or TLS, for programs that block.
//!
//! The thread waits in `poll` for the socket, the session's timers and its owner, all at once, so
//! that an idle client costs nothing. It reconnects as the session says; the owner sees that in
//! [`OwnedEvent::Closed`] and [`OwnedEvent::Welcome`] and need not act.
//!
//! # Invariants
//! - While [`EVENTS_MAX`] events wait for the owner nothing more is read from the socket: a slow
//!   owner slows the server down, and memory stays bounded.
//! - With `auto_ack` a message is acknowledged when the owner has taken it out with
//!   [`Client::next_event`], not before.
//! - The session is never locked during a system call that can wait.

mod asking;

use crate::{
    link::Link,
    owned::OwnedEvent,
    session::{Conv, Event, Now, Phase, SendError, SendOptions, Session, SessionState},
    tls::{TlsClient, TlsError},
};
use portico_wire::{
    CloseCode,
    ids::{ConvSeq, GroupId, MsgId, Seq, UserId},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    collections::VecDeque,
    fmt,
    io::{self, Read, Write},
    mem,
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Events that may wait for the owner before the socket is left alone. One read can exceed it by
/// what 16 KiB hold.
pub const EVENTS_MAX: usize = 1_024;
const READ_BYTES: usize = 16_384;
/// Bytes that the socket has not taken; with more, nothing is read.
const UNWRITTEN_BYTES_MAX: usize = 512 * 1_024;
/// A draining server is left after another attempt when the first failed.
const LEAVE_AGAIN_US: u64 = 1_000_000;

/// A running session. Dropping it closes the connection in good order.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when an event has come, or the thread has ended.
    arrived: Condvar,
    /// A byte here wakes the thread.
    waker: UnixStream,
    origin: Instant,
}

#[derive(Debug)]
struct State {
    session: Session,
    events: VecDeque<OwnedEvent>,
    auto_ack: bool,
    source: Option<TokenSource>,
    /// The source is to be asked.
    token_wanted: bool,
    /// Why the last attempt came to nothing, if TLS was the reason.
    tls_failure: Option<TlsError>,
    /// The owner wants another connection, now.
    reconnect: bool,
    closing: bool,
    ended: bool,
}

/// Makes access tokens.
struct TokenSource(Box<dyn FnMut() -> Option<String> + Send>);

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSource")
    }
}

impl Client {
    /// Starts the thread that connects to `address` ("host:port"), now and again. It returns at
    /// once; [`Self::wait_live`] tells when the session is up to date.
    pub fn connect(address: impl Into<String>, session: Session) -> io::Result<Self> {
        Self::start(address.into(), session, None)
    }

    /// The same with TLS. Each connection after the first resumes with the ticket of the one before
    /// if the server still takes it. Why there is none is told by [`Self::tls_failure`].
    #[cfg(feature = "tls")]
    pub fn connect_tls(
        address: impl Into<String>,
        session: Session,
        tls: TlsClient,
    ) -> io::Result<Self> {
        Self::start(address.into(), session, Some(tls))
    }

    fn start(address: String, mut session: Session, tls: Option<TlsClient>) -> io::Result<Self> {
        let (waker, wakes) = UnixStream::pair()?;
        waker.set_nonblocking(true)?;
        wakes.set_nonblocking(true)?;
        let auto_ack = session.take_over_acks();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                session,
                events: VecDeque::new(),
                auto_ack,
                source: None,
                token_wanted: false,
                tls_failure: None,
                reconnect: false,
                closing: false,
                ended: false,
            }),
            arrived: Condvar::new(),
            waker,
            origin: Instant::now(),
        });
        let worker = Worker {
            shared: Arc::clone(&shared),
            wakes,
            address,
            tls,
            link: None,
            plain: Vec::new(),
            connect_at_us: Some(0),
            leave_at_us: None,
            full: false,
        };
        let thread = thread::Builder::new()
            .name("portico-client".to_owned())
            .spawn(move || worker.run())?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// See [`Session::send`].
    pub fn send(
        &self,
        to: impl Into<Conv>,
        envelope: &[u8],
        options: SendOptions,
    ) -> Result<MsgId, SendError> {
        self.act(|session, now| session.send(now, to, envelope, options))
    }

    /// Sends a plain text.
    pub fn send_text(&self, to: impl Into<Conv>, text: &str) -> Result<MsgId, SendError> {
        self.send(to, &crate::plain_envelope(text), SendOptions::default())
    }

    /// See [`Session::acknowledge`].
    pub fn acknowledge(&self, up_to: Seq) {
        self.act(|session, now| session.acknowledge(now, up_to));
    }

    /// See [`Session::read`].
    pub fn read(&self, conv: impl Into<Conv>, up_to: ConvSeq) {
        self.act(|session, now| session.read(now, conv, up_to));
    }

    /// See [`Session::receipts`].
    pub fn receipts(&self, peers: &[UserId]) {
        self.act(|session, now| session.receipts(now, peers));
    }

    /// See [`Session::group_receipts`].
    pub fn group_receipts(&self, group: GroupId, members: bool) {
        self.act(|session, now| session.group_receipts(now, group, members));
    }

    /// See [`Session::set_token`].
    pub fn set_token(&self, token: impl Into<String>) {
        self.shared.lock().session.set_token(token);
    }

    /// See [`Session::renew`].
    pub fn renew(&self, token: impl Into<String>) {
        self.act(|session, now| session.renew(now, token));
    }

    /// From now on tokens come from here: before the one in use runs out, and when the server refuses
    /// it as expired. Called on the thread of this client, which does nothing else meanwhile; `None`:
    /// there is none, and none is asked for until the next of these moments.
    pub fn refresh_with(&self, source: impl FnMut() -> Option<String> + Send + 'static) {
        self.shared.lock().source = Some(TokenSource(Box::new(source)));
    }

    /// The owner knows that only its own network has changed: another connection is opened at once,
    /// without the wait that spreads those who lost theirs together. One that is there is left for
    /// the new one, as when a server drains. Nothing happens to a session that has stopped.
    pub fn reconnect_now(&self) {
        self.shared.lock().reconnect = true;
        self.shared.wake();
    }

    /// The next event, or `None` after `timeout`, and at once when nothing can come any more.
    pub fn next_event(&self, timeout: Duration) -> Option<OwnedEvent> {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.lock();
        loop {
            if let Some(event) = state.events.pop_front() {
                self.taken(state, &event);
                return Some(event);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return None;
            }
            state = self
                .shared
                .arrived
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Drops events until one for which `wanted` has a value.
    pub fn wait_for<T>(
        &self,
        timeout: Duration,
        mut wanted: impl FnMut(&OwnedEvent) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.next_event(left)?;
            if let Some(value) = wanted(&event) {
                return Some(value);
            }
        }
    }

    /// Drops events until the session is up to date with the server.
    pub fn wait_live(&self, timeout: Duration) -> bool {
        self.wait_for(timeout, |event| match event {
            OwnedEvent::Synced { .. } => Some(()),
            _ => None,
        })
        .is_some()
    }

    /// Events that wait to be taken.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.lock().events.len()
    }

    #[must_use]
    pub fn phase(&self) -> Phase {
        self.shared.lock().session.phase()
    }

    /// Why there is no connection, if TLS is the reason: the certificate, or that one side speaks
    /// TLS and the other does not. After [`OwnedEvent::Closed`] of an attempt that failed so.
    #[must_use]
    pub fn tls_failure(&self) -> Option<TlsError> {
        self.shared.lock().tls_failure.clone()
    }

    /// Messages without SENT.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.shared.lock().session.unsent()
    }

    /// See [`Session::state`].
    #[must_use]
    pub fn state(&self) -> SessionState {
        self.shared.lock().session.state()
    }

    /// The thread has ended, after [`Self::close`]: no event will come any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.shared.lock().ended
    }

    /// Says CLOSE and waits for the thread's end, a few seconds at most. What the next session
    /// should start from is in [`Self::state`].
    pub fn close(&self) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            self.act(|session, now| session.close(now));
            self.shared.lock().closing = true;
            self.shared.wake();
            // A panic there has been reported by the thread; there is nothing left to do here.
            let _ = thread.join();
        }
    }

    fn act<T>(&self, act: impl FnOnce(&mut Session, Now) -> T) -> T {
        let now = self.shared.now();
        let value = act(&mut self.shared.lock().session, now);
        self.shared.wake();
        value
    }

    fn taken(&self, mut state: MutexGuard<'_, State>, event: &OwnedEvent) {
        let was_full = state.events.len() + 1 == EVENTS_MAX;
        let mut acked = false;
        if let OwnedEvent::Message { seq, .. }
        | OwnedEvent::GroupChanged { seq, .. }
        | OwnedEvent::Withdrawn { seq, .. } = *event
            && state.auto_ack
        {
            let now = self.shared.now();
            state.session.acknowledge(now, seq);
            acked = true;
        }
        drop(state);
        if was_full || acked {
            self.shared.wake();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// The lock is poisoned only by a panic in the session, and then its state is what it is.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        Now {
            mono_us: micros(self.origin.elapsed()),
            wall_us: wall.map_or(0, micros),
        }
    }

    fn wake(&self) {
        // A full pipe means that the thread has been woken often enough.
        let _ = (&self.waker).write(&[0]);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The thread's side.
#[derive(Debug)]
struct Worker {
    shared: Arc<Shared>,
    wakes: UnixStream,
    address: String,
    tls: Option<TlsClient>,
    link: Option<Link>,
    /// What was read last; kept for its memory.
    plain: Vec<u8>,
    connect_at_us: Option<u64>,
    leave_at_us: Option<u64>,
    /// The owner has too many events to take; nothing is read.
    full: bool,
}

impl Worker {
    fn run(mut self) {
        let mut buffer = vec![0; READ_BYTES];
        while self.turn(&mut buffer) {}
        let mut state = self.shared.lock();
        state.ended = true;
        self.shared.arrived.notify_all();
    }

    /// One round; `false` when the owner wants the end.
    fn turn(&mut self, buffer: &mut [u8]) -> bool {
        let now = self.shared.now();
        let full = self.full;
        self.with_session(now, |session, on_event| {
            if full {
                session.not_reading();
            }
            if session
                .next_timeout()
                .is_some_and(|at_us| at_us <= now.mono_us)
            {
                session.on_timeout(now, on_event);
            }
        });
        self.refresh(now);
        if self.write_output().is_err() {
            // A CLOSE may be waiting in front of the end.
            while self.read(buffer) {}
            self.lost();
        }
        let mut state = self.shared.lock();
        let closing = state.closing;
        let reconnect = mem::take(&mut state.reconnect);
        let connected = state.session.phase().is_connected();
        let room = state.events.len() < EVENTS_MAX;
        let timeout_us = state.session.next_timeout();
        drop(state);
        if !connected && let Some(link) = self.link.take() {
            link.farewell(buffer);
        }
        if closing {
            return false;
        }
        if reconnect {
            // At most one of the two is set: there is a connection, or there will be one.
            let wanted_us = if connected {
                Some(&mut self.leave_at_us)
            } else {
                // `None` there: the session has stopped.
                self.connect_at_us
                    .is_some()
                    .then_some(&mut self.connect_at_us)
            };
            if let Some(at_us) = wanted_us {
                *at_us = Some(now.mono_us);
            }
        }
        if due(self.connect_at_us, now) || due(self.leave_at_us, now) {
            self.connect();
            return true;
        }
        self.full = !room;
        // A server that writes and never reads must not make us hold answers without end.
        let unwritten = self.link.as_ref().map_or(0, Link::unwritten);
        let reads = room && unwritten < UNWRITTEN_BYTES_MAX;
        self.wait(timeout_us, reads);
        if reads {
            self.read(buffer);
        }
        true
    }

    /// Calls into the session and takes note of what concerns the driver.
    fn with_session(
        &mut self,
        now: Now,
        call: impl FnOnce(&mut Session, &mut dyn FnMut(Event<'_>)),
    ) {
        let Self {
            shared,
            connect_at_us,
            leave_at_us,
            ..
        } = self;
        let mut state = shared.lock();
        let State {
            session,
            events,
            token_wanted,
            ..
        } = &mut *state;
        let before = events.len();
        call(session, &mut |event| {
            match event {
                Event::TokenExpiring { .. } => *token_wanted = true,
                Event::Closed {
                    reconnect_after_ms,
                    code,
                    ..
                } => {
                    *token_wanted |= code == CloseCode::TOKEN_EXPIRED;
                    *connect_at_us = reconnect_after_ms.map(|ms| after_ms(now, ms));
                    *leave_at_us = None;
                }
                Event::Draining { leave_after_ms } => {
                    *leave_at_us = Some(after_ms(now, leave_after_ms));
                }
                _ => {}
            }
            events.push_back(event.into());
        });
        if events.len() != before {
            shared.arrived.notify_all();
        }
    }

    /// Asks the owner's source for a token, if it is time. The lock is free meanwhile.
    fn refresh(&self, now: Now) {
        let mut state = self.shared.lock();
        if !mem::take(&mut state.token_wanted) {
            return;
        }
        let Some(mut source) = state.source.take() else {
            return;
        };
        drop(state);
        let token = (source.0)();
        let mut state = self.shared.lock();
        // The owner may have given another source meanwhile.
        state.source.get_or_insert(source);
        if let Some(token) = token {
            state.session.renew(now, token);
        }
    }

    /// Opens a connection: the first, or one that takes over from a draining server.
    fn connect(&mut self) {
        self.connect_at_us = None;
        let leaving = self.leave_at_us.take().is_some();
        let endpoint = self.shared.lock().session.take_endpoint();
        let mut plain = mem::take(&mut self.plain);
        let mut open = |address: &str| {
            plain.clear();
            Link::open(address, self.tls.as_ref(), &mut plain)
        };
        let link = match &endpoint {
            Some(endpoint) => open(endpoint).or_else(|_| open(&self.address)),
            None => open(&self.address),
        };
        let now = self.shared.now();
        let mut state = self.shared.lock();
        state.tls_failure = link.as_ref().err().and_then(TlsError::within).cloned();
        // The owner may have closed the session while this thread was connecting.
        let wanted = !state.closing && state.session.phase() != Phase::Stopped(CloseCode::NORMAL);
        drop(state);
        match link {
            Ok(link) if wanted => {
                self.link = Some(link);
                self.with_session(now, |session, on_event| {
                    session.connected(now);
                    if !plain.is_empty() {
                        session.received(now, &plain, on_event);
                    }
                });
            }
            Ok(_) => {}
            Err(_) if leaving => {
                self.leave_at_us = Some(now.mono_us.saturating_add(LEAVE_AGAIN_US));
            }
            Err(_) => {
                self.with_session(now, |session, on_event| {
                    session.connect_failed(now, on_event);
                });
            }
        }
    }

    fn write_output(&mut self) -> io::Result<()> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        let mut output = mem::take(self.shared.lock().session.output());
        link.say(&mut output)?;
        link.write()
    }

    /// Waits for the socket, a timer or the owner.
    fn wait(&mut self, timeout_us: Option<u64>, reads: bool) {
        let now = self.shared.now();
        let first_us = [timeout_us, self.connect_at_us, self.leave_at_us]
            .into_iter()
            .flatten()
            .min();
        let timeout = first_us.map(|at_us| {
            let left = Duration::from_micros(at_us.saturating_sub(now.mono_us));
            Timespec::try_from(left).unwrap_or_default()
        });
        let mut fds = vec![PollFd::new(&self.wakes, PollFlags::IN)];
        if let Some(link) = &self.link {
            let mut interest = PollFlags::empty();
            interest.set(PollFlags::IN, reads);
            interest.set(PollFlags::OUT, link.unwritten() > 0);
            // Without an interest the socket stays out: a hang-up is reported to everybody who
            // listens, again and again.
            if !interest.is_empty() {
                fds.push(PollFd::new(&link.stream, interest));
            }
        }
        // Interrupted, or out of memory for a moment: the next round looks again.
        let _ = poll(&mut fds, timeout.as_ref());
        let mut wakes = [0; 64];
        while matches!((&self.wakes).read(&mut wakes), Ok(count) if count == wakes.len()) {}
    }

    /// Reads once; `false` when nothing was there.
    fn read(&mut self, buffer: &mut [u8]) -> bool {
        let Some(link) = &mut self.link else {
            return false;
        };
        let mut plain = mem::take(&mut self.plain);
        plain.clear();
        let result = link.read(buffer, &mut plain);
        if !plain.is_empty() {
            let now = self.shared.now();
            self.with_session(now, |session, on_event| {
                session.received(now, &plain, on_event);
            });
        }
        self.plain = plain;
        match result {
            Ok(true) => return true,
            Err(error) if is_transient(&error) => {}
            Ok(false) => self.lost(),
            Err(error) => {
                let failure = TlsError::within(&error).cloned();
                self.shared.lock().tls_failure = failure;
                self.lost();
            }
        }
        false
    }

    /// The connection is gone.
    fn lost(&mut self) {
        self.link = None;
        let now = self.shared.now();
        self.with_session(now, |session, on_event| {
            session.disconnected(now, on_event);
        });
    }
}

fn due(at_us: Option<u64>, now: Now) -> bool {
    at_us.is_some_and(|at_us| at_us <= now.mono_us)
}

const fn after_ms(now: Now, ms: u32) -> u64 {
    now.mono_us.saturating_add(ms as u64 * 1_000)
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
