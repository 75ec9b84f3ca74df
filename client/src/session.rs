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

mod backoff;
mod config;
mod event;
mod inbox;
mod incoming;
mod random;
mod requests;
mod state;

pub use config::{Now, SendOptions, SessionConfig};
pub use event::{Event, Phase, ProtocolFault, SendError};
pub use state::{SessionState, StateError};

use backoff::Backoff;
use inbox::Inbox;
use portico_wire::{
    CloseCode, VERSION,
    encode::{Encoder, put_ack},
    frame::next_frame,
    ids::{ConvSeq, MsgId, Seq, UserId},
    limits::{ENVELOPE_BYTES_MAX, FRAME_BYTES_TO_CLIENT_MAX, RECEIVE_MAX_CEILING},
    message::{Close, Envelope, Hello},
};
use random::Random;
use requests::{Requests, Window};
use std::mem;

/// HELLO must be answered within this.
const GREETING_US: u64 = 15_000_000;
/// A PING must be followed by a frame within this.
const PONG_US: u64 = 10_000_000;

/// See the [module](self).
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    /// Closed has been told for the present connection, or there is none.
    settled: bool,
    backoff: Backoff,
    random: Random,
    input: Vec<u8>,
    output: Vec<u8>,
    inbox: Inbox,
    requests: Requests,
    alarm: Alarm,
    alarm_at_us: u64,
    live_since_us: Option<u64>,
    /// Add the monotonic time to get the server's clock.
    server_offset_us: Option<u64>,
    window: Window,
    ping_interval_s: u16,
    cold: Box<Cold>,
}

/// A tool with a million sessions keeps them all in memory.
const _: () = assert!(size_of::<Session>() <= 448, "a session has a budget");

/// What an established connection does not touch.
#[derive(Debug)]
struct Cold {
    config: SessionConfig,
    resume_token: Vec<u8>,
    endpoint: Option<String>,
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
    pub fn new(mut config: SessionConfig, state: SessionState, seed: u64) -> Self {
        config.receive_max = config.receive_max.clamp(1, RECEIVE_MAX_CEILING);
        Self {
            phase: Phase::Offline,
            settled: true,
            backoff: Backoff::default(),
            random: Random::new(seed),
            input: Vec::new(),
            output: Vec::new(),
            inbox: Inbox::new(
                state.cursor,
                state.recent,
                config.receive_max,
                config.dedupe_max,
            ),
            requests: Requests::new(state.outbox, state.reads),
            alarm: Alarm::Greeting,
            alarm_at_us: 0,
            live_since_us: None,
            server_offset_us: None,
            window: Window {
                requests_max: 1,
                frame_bytes_max: 0,
            },
            ping_interval_s: 0,
            cold: Box::new(Cold {
                config,
                resume_token: state.resume_token,
                endpoint: None,
            }),
        }
    }

    /// A transport is up: HELLO goes out on it. If another connection was there, the new one
    /// replaces it without an event; this is how a session leaves a draining server.
    pub fn connected(&mut self, now: Now) {
        self.requests.disconnected();
        self.input = Vec::new();
        self.output.clear();
        self.inbox.connected();
        self.phase = Phase::Greeting;
        self.settled = false;
        self.live_since_us = None;
        self.set_alarm(Alarm::Greeting, now.mono_us.saturating_add(GREETING_US));
        let Cold {
            config,
            resume_token,
            ..
        } = &*self.cold;
        let hello = Hello {
            min_version: VERSION,
            max_version: VERSION,
            token: (!config.token.is_empty()).then_some(&config.token),
            device: config.device,
            resume_token: (!resume_token.is_empty()).then_some(resume_token),
            last_seq: self.inbox.cursor(),
            receive_max: self.inbox.receive_max(),
            client: &config.client,
            ..Hello::default()
        };
        Encoder::new().hello(&mut self.output, 1, &hello);
    }

    /// Bytes from the transport, cut anywhere.
    pub fn received(&mut self, now: Now, bytes: &[u8], on_event: &mut dyn FnMut(Event<'_>)) {
        if !self.phase.is_connected() {
            return;
        }
        let mut carried = mem::take(&mut self.input);
        let rest = if carried.is_empty() {
            let used = self.frames(now, bytes, on_event);
            bytes.get(used..).unwrap_or_default().to_vec()
        } else {
            carried.extend_from_slice(bytes);
            let used = self.frames(now, &carried, on_event);
            carried.drain(..used);
            carried
        };
        if self.phase.is_connected() && !rest.is_empty() {
            self.input = rest;
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

    /// Sends a message to a user. `envelope` is a finished Envelope (see
    /// [`crate::plain_envelope`]). The message stays in the outbox until [`Event::Sent`] or a
    /// final [`Event::Refused`].
    pub fn send(
        &mut self,
        now: Now,
        to: UserId,
        envelope: &[u8],
        options: SendOptions,
    ) -> Result<MsgId, SendError> {
        if !to.is_valid() {
            return Err(SendError::BadRecipient);
        }
        if envelope.len() > ENVELOPE_BYTES_MAX {
            return Err(SendError::TooLarge);
        }
        if Envelope::decode(envelope).is_err() {
            return Err(SendError::BadEnvelope);
        }
        if self.requests.unsent() >= self.cold.config.outbox_max {
            return Err(SendError::Full);
        }
        let msg_id = match options.msg_id {
            Some(msg_id) => msg_id,
            None => self.new_msg_id(now),
        };
        self.requests.send(now, to, msg_id, envelope, options)?;
        self.pump(now, None);
        Ok(msg_id)
    }

    /// The owner has stored every message up to `up_to`. Not needed with `auto_ack`.
    pub fn acknowledge(&mut self, now: Now, up_to: Seq) {
        self.inbox.store(now.mono_us, up_to);
        self.flush_ack(now);
    }

    /// The user has read a conversation up to `up_to`. Repeated until the server has it. What is
    /// read is delivered: an acknowledgement that waits goes out ahead of it.
    pub fn read(&mut self, now: Now, peer: UserId, up_to: ConvSeq) {
        self.put_last_ack();
        self.requests.read(peer, up_to);
        self.pump(now, None);
    }

    /// Asks how far these users have got and read our messages: after [`Event::Synced`], where
    /// ticks are open. Answered by [`Event::Receipt`]s; not repeated if the connection ends.
    pub fn receipts(&mut self, now: Now, peers: &[UserId]) {
        self.requests.ask_receipts(peers);
        self.pump(now, None);
    }

    /// Ends the session in good order. There is no [`Event::Closed`]; the driver writes the output
    /// and closes. [`Self::connected`] may start it again.
    pub fn close(&mut self, _now: Now) {
        if self.phase.is_connected() {
            self.put_last_ack();
            self.put_close(CloseCode::NORMAL, "");
        }
        self.requests.disconnected();
        self.input = Vec::new();
        self.settled = true;
        self.phase = Phase::Stopped(CloseCode::NORMAL);
    }

    /// A new access token, for the next login. An empty one is left out of HELLO: then the resume
    /// token has to do. (A tool with many sessions need not keep a token for each while they live.)
    pub fn set_token(&mut self, token: impl Into<String>) {
        self.cold.config.token = token.into();
    }

    /// Bytes for the transport. The driver takes out what it has written.
    pub const fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// When to call [`Self::on_timeout`], in monotonic microseconds.
    #[must_use]
    pub fn next_timeout(&self) -> Option<u64> {
        if !self.phase.is_connected() {
            return None;
        }
        if !self.phase.is_welcome() {
            return Some(self.alarm_at_us);
        }
        let others = [self.inbox.ack_at_us(), self.requests.next_timeout()];
        others.into_iter().flatten().chain([self.alarm_at_us]).min()
    }

    /// Heartbeats, late acknowledgements, second attempts.
    pub fn on_timeout(&mut self, now: Now, on_event: &mut dyn FnMut(Event<'_>)) {
        if self.phase.is_connected() && self.alarm_at_us <= now.mono_us {
            match self.alarm {
                Alarm::Ping => {
                    let next_s = u32::from(self.ping_interval_s);
                    self.requests.ping(&mut self.output, next_s);
                    self.set_alarm(Alarm::Pong, now.mono_us.saturating_add(PONG_US));
                }
                Alarm::Greeting => {
                    self.give_up(now, CloseCode::IDLE_TIMEOUT, "no answer to HELLO", on_event);
                }
                Alarm::Pong => {
                    self.give_up(now, CloseCode::IDLE_TIMEOUT, "no answer to PING", on_event);
                }
            }
        }
        self.flush(now, on_event);
    }

    /// From now on messages wait for [`Self::acknowledge`]; returns how it was configured.
    pub(crate) const fn take_over_acks(&mut self) -> bool {
        mem::replace(&mut self.cold.config.auto_ack, false)
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
        self.cold.config.user
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
    pub const fn take_endpoint(&mut self) -> Option<String> {
        self.cold.endpoint.take()
    }

    /// The server's clock, or the own one before the first WELCOME.
    #[must_use]
    pub const fn server_clock_us(&self, now: Now) -> u64 {
        match self.server_offset_us {
            Some(offset_us) => now.mono_us.wrapping_add(offset_us),
            None => now.wall_us,
        }
    }

    /// A copy of what has to survive a restart.
    #[must_use]
    pub fn state(&self) -> SessionState {
        SessionState {
            cursor: self.inbox.cursor(),
            resume_token: self.cold.resume_token.clone(),
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
        self.input = Vec::new();
        self.settled = true;
        let since_us = self.live_since_us.take();
        let live_us = since_us.map_or(0, |since_us| now.mono_us.saturating_sub(since_us));
        let verdict = self.backoff.ended(
            ending.code,
            live_us,
            ending.retry_after_ms,
            &mut self.random,
        );
        if !verdict.keep_resume_token {
            self.cold.resume_token = Vec::new();
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
        if self.phase.is_welcome()
            && let Some(up_to) = self.inbox.take_ack(now.mono_us)
        {
            put_ack(&mut self.output, up_to, self.inbox.receive_max());
        }
    }

    /// Acknowledges what is stored, due or not.
    fn put_last_ack(&mut self) {
        if self.phase.is_welcome()
            && let Some(up_to) = self.inbox.take_last_ack()
        {
            put_ack(&mut self.output, up_to, self.inbox.receive_max());
        }
    }

    fn put_close(&mut self, code: CloseCode, detail: &str) {
        Encoder::new().close(&mut self.output, &Close::new(code, detail));
    }

    /// Ends the wait for a sign of life. The promised interval runs from the PING.
    const fn alive(&mut self) {
        if matches!(self.alarm, Alarm::Pong) {
            let asked_us = self.alarm_at_us.saturating_sub(PONG_US);
            let interval_us = self.ping_interval_s as u64 * 1_000_000;
            self.set_alarm(Alarm::Ping, asked_us.saturating_add(interval_us));
        }
    }

    const fn set_alarm(&mut self, alarm: Alarm, at_us: u64) {
        self.alarm = alarm;
        self.alarm_at_us = at_us;
    }

    const fn new_msg_id(&mut self, now: Now) -> MsgId {
        MsgId::new_v7(self.server_clock_us(now) / 1_000, self.random.bits_128())
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
