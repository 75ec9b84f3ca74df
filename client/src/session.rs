//! One device's session with a gateway, without I/O: bytes and the time go in, bytes and events
//! come out.
//!
//! The driver's part: open a transport, call [`Session::connected`], write what
//! [`Session::output`] holds and take it out of there, hand over what it reads with
//! [`Session::received`], call [`Session::on_timeout`] at [`Session::next_timeout`]. When
//! [`Event::Closed`] arrives, write what output is left, close the transport, and open another
//! after the time that the event names. [`crate::Client`] does all this on a thread.
//!
//! # Invariants
//! - Equal configuration, state, seed and calls give equal bytes and events.
//! - A message taken by [`Session::send`] leaves the outbox by SENT, by a refusal that the owner
//!   sees, or not at all.
//! - The cursor that the server learns never passes an entry that the owner has not stored.
//! - Nothing that a server sends makes a session panic or hold more than one frame of input. After
//!   a broken rule it closes the connection, and follows the same back-off as for any other end.
//!
//! # Does not
//! Know sockets, clocks or randomness, resolve names, or encrypt: an Envelope is the owner's.

mod answers;
mod asking;
mod backoff;
mod config;
mod conv;
mod event;
mod heartbeat;
mod inbox;
mod incoming;
mod random;
mod renewal;
mod requests;
mod sending;
mod state;

pub use asking::Page;
pub use config::{Login, Now, SendOptions, SessionConfig, Settings};
pub use conv::Conv;
pub use event::{Answer, AskId, Event, Failure, Phase, ProtocolFault, SendError};
pub use state::{SessionState, StateError};

use backoff::{Backoff, End};
use inbox::{Bounds, Inbox};
use portico_wire::{
    CloseCode, ErrorCode, VERSION,
    encode::{Encoder, put_ack},
    frame::next_frame,
    ids::{DeviceId, MsgId, Seq, UserId},
    limits::FRAME_BYTES_TO_CLIENT_MAX,
    message::{Close, Hello},
};
use random::Random;
use renewal::Renewal;
use requests::{Requests, Window};
use std::{fmt, mem, num::NonZeroU64, sync::Arc};

/// HELLO must be answered within this.
const GREETING_US: u64 = 15_000_000;
/// See the [module](self).
///
/// A tool keeps a million of these, most of them idle: what an idle session has no use for is
/// behind a pointer that is null then.
#[derive(Debug)]
pub struct Session {
    settings: Arc<Settings>,
    rare: Option<Box<Rare>>,
    resume_token: ResumeToken,
    output: Vec<u8>,
    inbox: Inbox,
    requests: Requests,
    random: Random,
    user: UserId,
    alarm_at_us: u64,
    live_since_us: Option<NonZeroU64>,
    /// Add the monotonic time to get the server's clock.
    server_offset_us: Option<NonZeroU64>,
    window: Window,
    /// See `Welcome::reconnect_spread_ms`.
    spread_ms: u32,
    phase: Phase,
    backoff: Backoff,
    ping_interval_s: u16,
    device: DeviceId,
    alarm: Alarm,
    /// Closed has been told for the present connection, or there is none.
    settled: bool,
    /// The server has said that it will go away.
    draining: bool,
}

const _: () = assert!(size_of::<Session>() <= 200, "a session has a budget");

/// Empty if there is none.
struct ResumeToken(Box<[u8]>);

/// Without its bytes: they are as secret as an access token.
impl fmt::Debug for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResumeToken({} bytes)", self.0.len())
    }
}

/// What few sessions have at a time.
#[derive(Default)]
struct Rare {
    /// The access token, if it is kept.
    token: String,
    endpoint: Option<String>,
    /// The first part of a frame.
    input: Vec<u8>,
    /// When the token of the connection runs out, where the owner wants to know.
    renewal: Renewal,
}

/// Without the token: it must not reach a log.
impl fmt::Debug for Rare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rare")
            .field("endpoint", &self.endpoint)
            .field("input", &self.input.len())
            .finish_non_exhaustive()
    }
}

/// What the one alarm of a connection means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alarm {
    /// WELCOME is late.
    Greeting,
    /// A PING is due.
    Ping,
    /// Nothing has come since the PING.
    Pong,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug)]
struct Ending<'a> {
    code: CloseCode,
    by_peer: bool,
    retry_after_ms: u32,
    detail: &'a str,
}

impl Session {
    /// `seed` must differ between sessions of one device, restarts included: ids are made from it.
    #[must_use]
    pub fn new(config: SessionConfig, state: SessionState, seed: u64) -> Self {
        let (login, settings) = config.split();
        Self::sharing(&Arc::new(settings), login, state, seed)
    }

    /// As [`Self::new`], with settings that other sessions have too.
    #[must_use]
    pub fn sharing(settings: &Arc<Settings>, login: Login, state: SessionState, seed: u64) -> Self {
        let mut session = Self {
            settings: Arc::clone(settings),
            rare: None,
            resume_token: ResumeToken(state.resume_token.into_boxed_slice()),
            output: Vec::new(),
            inbox: Inbox::new(state.cursor, state.recent, bounds(settings)),
            requests: Requests::new(state.outbox, state.reads),
            random: Random::new(seed),
            user: login.user,
            alarm_at_us: 0,
            live_since_us: None,
            server_offset_us: None,
            window: Window {
                requests_max: 1,
                frame_bytes_max: 0,
            },
            spread_ms: 0,
            phase: Phase::Offline,
            backoff: Backoff::default(),
            ping_interval_s: 0,
            device: login.device,
            alarm: Alarm::Greeting,
            settled: true,
            draining: false,
        };
        session.set_token(login.token);
        session
    }

    /// A transport is up: HELLO goes out on it. If another connection was there, the new one
    /// replaces it without an event; this is how a session leaves a draining server.
    pub fn connected(&mut self, now: Now) {
        self.requests.disconnected();
        self.put_input(Vec::new());
        self.output.clear();
        self.inbox.connected();
        self.phase = Phase::Greeting;
        self.settled = false;
        self.draining = false;
        self.live_since_us = None;
        self.set_renewal(Renewal::default());
        self.set_alarm(Alarm::Greeting, now.mono_us.saturating_add(GREETING_US));
        let rare = self.rare.as_deref();
        let hello = Hello {
            min_version: VERSION,
            max_version: VERSION,
            token: rare
                .map(|rare| rare.token.as_str())
                .filter(|token| !token.is_empty()),
            device: self.device,
            resume_token: (!self.resume_token.0.is_empty()).then_some(&self.resume_token.0),
            last_seq: self.inbox.cursor(),
            receive_max: self.settings.receive_max(),
            client: &self.settings.client,
            ..Hello::default()
        };
        Encoder::new().hello(&mut self.output, 1, &hello);
    }

    /// Seconds between PINGs on the present connection: what was wished for, within what the server
    /// allows. 0 before the first WELCOME.
    #[must_use]
    pub const fn ping_interval_s(&self) -> u16 {
        self.ping_interval_s
    }

    /// Bytes from the transport, cut anywhere.
    pub fn received(&mut self, now: Now, bytes: &[u8], on_event: &mut dyn FnMut(Event<'_>)) {
        if !self.phase.is_connected() {
            return;
        }
        let mut carried = self.take_input();
        let rest = if carried.is_empty() {
            let used = self.frames(now, bytes, on_event);
            bytes.get(used..).unwrap_or_default().to_vec()
        } else {
            carried.extend_from_slice(bytes);
            let used = self.frames(now, &carried, on_event);
            carried.drain(..used);
            carried
        };
        if self.phase.is_connected() {
            self.put_input(rest);
        }
        self.flush(now, on_event);
    }

    /// The transport has ended. Without a CLOSE before it this counts as SERVER_ERROR; after
    /// [`Event::Closed`] it is no news.
    pub fn disconnected(&mut self, now: Now, on_event: &mut dyn FnMut(Event<'_>)) {
        if !self.settled {
            let detail = "the connection ended";
            self.end(now, ending_by_us(CloseCode::SERVER_ERROR, detail), on_event);
        }
    }

    /// A transport could not be opened. [`Event::Closed`] names the time of the next attempt. No
    /// news while another connection is there, or none is wanted.
    pub fn connect_failed(&mut self, now: Now, on_event: &mut dyn FnMut(Event<'_>)) {
        if self.phase == Phase::Offline {
            let detail = "nobody answers there";
            self.end(now, ending_by_us(CloseCode::SERVER_ERROR, detail), on_event);
        }
    }

    /// Ends the session in good order. There is no [`Event::Closed`]; the driver writes the output
    /// and closes. [`Self::connected`] may start it again.
    pub fn close(&mut self, _now: Now) {
        if self.phase.is_connected() {
            self.put_last_ack();
            self.put_close(CloseCode::NORMAL, "");
        }
        self.requests.disconnected();
        self.put_input(Vec::new());
        self.settled = true;
        self.phase = Phase::Stopped(CloseCode::NORMAL);
    }

    /// A new access token, for the next login. An empty one is left out of HELLO: then the resume
    /// token has to do.
    pub fn set_token(&mut self, token: impl Into<String>) {
        let token = token.into();
        if !token.is_empty() || self.rare.is_some() {
            self.rare.get_or_insert_default().token = token;
            self.drop_rare_if_empty();
        }
    }

    /// There is neither an access token nor a resume token, so that a login would be refused. The
    /// owner calls [`Self::set_token`] before the next connection. This is so before the first
    /// login without a token, and when the server has refused the resume token of a session that
    /// keeps no other: then [`Event::Closed`] has come with a code of the range that logs in anew,
    /// RESUME_REFUSED as a rule.
    #[must_use]
    pub fn needs_token(&self) -> bool {
        let has_token = self
            .rare
            .as_ref()
            .is_some_and(|rare| !rare.token.is_empty());
        !has_token && self.resume_token.0.is_empty()
    }

    /// Bytes for the transport. The driver takes out what it has written.
    pub const fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// From now on messages wait for [`Self::acknowledge`]; returns how it was configured.
    pub(crate) fn take_over_acks(&mut self) -> bool {
        let auto_ack = self.settings.auto_ack;
        if auto_ack {
            Arc::make_mut(&mut self.settings).auto_ack = false;
        }
        auto_ack
    }

    /// The driver does not read at present, for reasons of its own: silence is not the server's
    /// fault then, and does not end the connection. PINGs go on.
    pub const fn not_reading(&mut self) {
        self.alive();
    }

    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    #[must_use]
    pub const fn user(&self) -> UserId {
        self.user
    }

    /// Messages without SENT.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.requests.unsent()
    }

    /// Everything up to here is stored by the owner.
    #[must_use]
    pub const fn cursor(&self) -> Seq {
        self.inbox.cursor()
    }

    /// Where the server wants the next connection to go ("host:port"); asked once.
    pub fn take_endpoint(&mut self) -> Option<String> {
        let endpoint = self.rare.as_mut()?.endpoint.take();
        self.drop_rare_if_empty();
        endpoint
    }

    /// The server's clock, or the own one before the first WELCOME.
    #[must_use]
    pub const fn server_clock_us(&self, now: Now) -> u64 {
        match self.server_offset_us {
            Some(offset_us) => now.mono_us.wrapping_add(offset_us.get()),
            None => now.wall_us,
        }
    }

    /// A copy of what has to survive a restart.
    #[must_use]
    pub fn state(&self) -> SessionState {
        SessionState {
            cursor: self.inbox.cursor(),
            resume_token: self.resume_token.0.to_vec(),
            outbox: self.requests.saved(),
            recent: self.inbox.recent().collect(),
            reads: self.requests.saved_reads(),
        }
    }

    /// Takes whole frames off the front of `bytes`; returns how many bytes they were.
    fn frames(&mut self, now: Now, bytes: &[u8], on_event: &mut dyn FnMut(Event<'_>)) -> usize {
        let mut used = 0;
        while self.phase.is_connected() {
            let rest = bytes.get(used..).unwrap_or_default();
            match next_frame(rest, FRAME_BYTES_TO_CLIENT_MAX) {
                Ok(Some(frame)) => {
                    used += frame.bytes().len();
                    if let Err(fault) = self.frame(now, frame, on_event) {
                        self.fault(now, fault, on_event);
                    }
                }
                Ok(None) => break,
                Err(error) => self.fault(now, ProtocolFault::Frame(error), on_event),
            }
        }
        used
    }

    fn fault(&mut self, now: Now, fault: ProtocolFault, on_event: &mut dyn FnMut(Event<'_>)) {
        on_event(Event::ProtocolFault(fault));
        let code = match fault {
            ProtocolFault::Frame(error) => error.close_code(),
            _ => CloseCode::PROTOCOL_ERROR,
        };
        self.give_up(now, code, "protocol fault", on_event);
    }

    /// This side closes.
    fn give_up(
        &mut self,
        now: Now,
        code: CloseCode,
        detail: &str,
        on_event: &mut dyn FnMut(Event<'_>),
    ) {
        self.put_close(code, detail);
        self.end(now, ending_by_us(code, detail), on_event);
    }

    fn end(&mut self, now: Now, ending: Ending<'_>, on_event: &mut dyn FnMut(Event<'_>)) {
        self.requests.disconnected();
        for ask in self.requests.take_unanswered() {
            let answer = Answer::Failed(Failure::of(ErrorCode::UNAVAILABLE));
            on_event(Event::Answer { ask, answer });
        }
        self.put_input(Vec::new());
        self.settled = true;
        let since_us = self.live_since_us.take();
        let live_us = since_us.map_or(0, |since_us| now.mono_us.saturating_sub(since_us.get()));
        let without_a_word = self.phase.is_welcome() && !ending.by_peer && !self.draining;
        let end = End {
            code: ending.code,
            live_us,
            wish_ms: ending.retry_after_ms,
            spread_ms: if without_a_word { self.spread_ms } else { 0 },
        };
        let verdict = self.backoff.ended(end, &mut self.random);
        if !verdict.keep_resume_token {
            self.resume_token = ResumeToken(Box::default());
        }
        self.phase = match verdict.reconnect_after_ms {
            Some(_) => Phase::Offline,
            None => Phase::Stopped(ending.code),
        };
        on_event(Event::Closed {
            code: ending.code,
            by_peer: ending.by_peer,
            reconnect_after_ms: verdict.reconnect_after_ms,
            detail: ending.detail,
        });
    }

    /// Sends what has become possible or due.
    fn flush(&mut self, now: Now, on_event: &mut dyn FnMut(Event<'_>)) {
        self.flush_ack(now);
        self.pump(now, Some(on_event));
    }

    fn pump(&mut self, now: Now, on_event: Option<&mut dyn FnMut(Event<'_>)>) {
        if self.phase.is_welcome() {
            let (window, out) = (self.window, &mut self.output);
            self.requests.pump(now, window, out, on_event);
        }
    }

    fn flush_ack(&mut self, now: Now) {
        if !self.phase.is_welcome() {
            return;
        }
        let bounds = bounds(&self.settings);
        if let Some(up_to) = self.inbox.take_ack(bounds, now.mono_us) {
            put_ack(&mut self.output, up_to, bounds.receive_max);
        }
    }

    /// Acknowledges what is stored, due or not.
    fn put_last_ack(&mut self) {
        if self.phase.is_welcome()
            && let Some(up_to) = self.inbox.take_last_ack()
        {
            put_ack(&mut self.output, up_to, self.settings.receive_max());
        }
    }

    fn put_close(&mut self, code: CloseCode, detail: &str) {
        Encoder::new().close(&mut self.output, &Close::new(code, detail));
    }

    fn take_input(&mut self) -> Vec<u8> {
        self.rare
            .as_mut()
            .map_or_else(Vec::new, |rare| mem::take(&mut rare.input))
    }

    fn put_input(&mut self, input: Vec<u8>) {
        if !input.is_empty() {
            self.rare.get_or_insert_default().input = input;
        } else if let Some(rare) = &mut self.rare {
            rare.input = Vec::new();
            self.drop_rare_if_empty();
        }
    }

    fn drop_rare_if_empty(&mut self) {
        let is_empty = |rare: &Rare| {
            let texts = rare.token.is_empty() && rare.endpoint.is_none();
            texts && rare.input.is_empty() && rare.renewal == Renewal::default()
        };
        if self.rare.as_deref().is_some_and(is_empty) {
            self.rare = None;
        }
    }

    const fn new_msg_id(&mut self, now: Now) -> MsgId {
        MsgId::new_v7(self.server_clock_us(now) / 1_000, self.random.bits_128())
    }
}

fn bounds(settings: &Settings) -> Bounds {
    Bounds {
        receive_max: settings.receive_max(),
        dedupe_max: settings.dedupe_max,
        lazy: settings.lazy_ack,
    }
}

const fn ending_by_us(code: CloseCode, detail: &str) -> Ending<'_> {
    Ending {
        code,
        by_peer: false,
        retry_after_ms: 0,
        detail,
    }
}
