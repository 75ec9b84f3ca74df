//! What each operation from the server does to a session.

use super::{
    Alarm, Ending, ResumeToken, Session,
    answers::{group_of, on_presence, on_signal},
    bounds,
    config::Now,
    event::{Event, Phase, ProtocolFault},
    inbox::{Arrival, Key},
    renewal::Renewal,
    requests::Window,
};
use portico_wire::{
    CloseCode, ErrorCode, Flags, Frame, Op, RouteHeader, VERSION,
    frame::{ConvKind, receipt_kind},
    ids::{ConvSeq, DeviceId, Seq, UserId},
    limits::{FRAME_BYTES_BEFORE_WELCOME_MAX, RECEIVE_MAX_CEILING, RESUME_TOKEN_BYTES_MAX},
    message::{Close, Drain, Envelope, ErrorReply, Welcome},
};

use std::num::NonZeroU64;

/// The longest time a draining server can make its clients wait before they move.
const DRAIN_MAX_MS: u32 = 600_000;
/// Longest "host:port" taken from a server.
const ENDPOINT_BYTES_MAX: usize = 260;
/// Times on the wire are microseconds since 1970; this is the year 2255.
const SERVER_US_END: u64 = 1 << 53;

impl Session {
    /// Acts on one whole frame.
    pub(super) fn frame(
        &mut self,
        now: Now,
        frame: Frame<'_>,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), ProtocolFault> {
        // Any frame is a sign of life.
        self.alive();
        let corr = frame.corr();
        match frame.known_op() {
            Some(Op::Welcome) => return self.on_welcome(now, frame, on_event),
            Some(Op::Close) => {
                self.on_close(now, frame, on_event);
                return Ok(());
            }
            _ if !self.phase.is_welcome() => return early(frame),
            _ if corr != 0
                && let Some(asked) = self.requests.asked(corr) =>
            {
                return self.on_answer(now, frame, asked, on_event);
            }
            Some(Op::Deliver) => return self.on_deliver(now, frame, on_event),
            Some(Op::GroupEvent | Op::Revoke) => return self.on_entry(now, frame, on_event),
            Some(Op::Receipt) => self.on_receipt(frame, on_event),
            Some(Op::Signal) => on_signal(frame, on_event),
            Some(Op::Presence) => on_presence(frame, on_event),
            Some(Op::Sent) => {
                let header = frame.seq_header();
                let (conv_seq, duplicate) = (ConvSeq(header.seq), header.arg & 1 == 1);
                let sent = self.requests.sent(corr, conv_seq, duplicate, on_event);
                return sent.map_err(|_| ProtocolFault::Reply(frame.op()));
            }
            Some(Op::Done) if self.renewal_done(now, corr, frame.aux(), on_event) => {}
            Some(Op::Done) => {
                let done = self.requests.done(corr, on_event);
                return done.map_err(|_| ProtocolFault::Reply(frame.op()));
            }
            Some(Op::Pong) => {
                let pong = self.requests.pong(corr);
                self.spread_ms = frame.aux();
                return pong.map_err(|_| ProtocolFault::Reply(frame.op()));
            }
            Some(Op::Error) => self.on_error(now, frame, on_event),
            // Nothing was accepted; the owner must make the message anew.
            Some(Op::DevicesStale) => {
                let code = ErrorCode::STALE_EPOCH;
                self.requests.refused(now, corr, code, 0, on_event);
            }
            Some(Op::Synced) => return self.on_synced(now, frame, on_event),
            Some(Op::SyncGap) => {
                let floor = Seq(frame.seq_header().seq);
                on_event(Event::Gap { floor });
            }
            Some(Op::Drain) => self.on_drain(frame, on_event),
            // What this version has no use for still moves the cursor, if it is in the inbox.
            _ => {
                if let Some(route) = frame.route().filter(|route| route.seq.0 != 0) {
                    let bounds = bounds(&self.settings);
                    self.inbox.arrive(bounds, route.seq, None)?;
                    self.inbox.put(bounds, now.mono_us, route.seq, None, true);
                }
            }
        }
        Ok(())
    }

    fn on_welcome(
        &mut self,
        now: Now,
        frame: Frame<'_>,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), ProtocolFault> {
        if self.phase != Phase::Greeting {
            return Err(ProtocolFault::SecondWelcome);
        }
        let welcome = Welcome::decode(frame.body()).map_err(ProtocolFault::Welcome)?;
        if welcome.version != VERSION {
            return Err(ProtocolFault::Version);
        }
        let any_device = self.device == DeviceId(0);
        if welcome.user != self.user || !(any_device || welcome.device == self.device) {
            return Err(ProtocolFault::Identity);
        }
        self.phase = Phase::Replaying;
        self.window = Window {
            requests_max: welcome.receive_max.clamp(1, RECEIVE_MAX_CEILING),
            frame_bytes_max: welcome.max_frame.max(FRAME_BYTES_BEFORE_WELCOME_MAX as u32),
        };
        self.set_server_clock(now, welcome.server_us);
        self.ping_interval_s = ping_interval_s(self.settings.heartbeat_s, &welcome);
        // The first PING must come within what the server assumes until then. Drawing it spreads
        // the heartbeats of clients that connected together.
        let first_s = self.ping_interval_s.min(welcome.heartbeat_s.max(1));
        let first_us = u64::from(first_s) * 1_000_000;
        let first_us = first_us / 2 + self.random.below(first_us / 2);
        self.set_alarm(Alarm::Ping, now.mono_us.saturating_add(first_us));
        if welcome.resume_token.len() <= RESUME_TOKEN_BYTES_MAX {
            self.resume_token = ResumeToken(welcome.resume_token.into());
        }
        if !self.settings.keep_token {
            self.set_token("");
        }
        self.spread_ms = welcome.reconnect_spread_ms;
        if self.settings.tell_expiry {
            self.set_renewal(Renewal::lasts(now, welcome.auth_ttl_s));
        }
        on_event(Event::Welcome {
            resumed: welcome.resumed,
            head: welcome.head_seq,
            floor: welcome.floor_seq,
        });
        Ok(())
    }

    fn on_deliver(
        &mut self,
        now: Now,
        frame: Frame<'_>,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), ProtocolFault> {
        let Some(route) = frame.route() else {
            return Ok(());
        };
        let ephemeral = frame.flags().contains(Flags::EPHEMERAL);
        if route.seq.0 == 0 {
            // Without EPHEMERAL it belongs to a history that nobody asked for.
            if ephemeral {
                show(&route, frame, ephemeral, on_event);
            }
            return Ok(());
        }
        let key = Key {
            msg_id: route.msg_id,
            user: route.user,
            device: route.dev,
        };
        let bounds = bounds(&self.settings);
        let (key, stored) = match self.inbox.arrive(bounds, route.seq, Some(key))? {
            Arrival::Known => {
                on_event(Event::Duplicate {
                    seq: route.seq,
                    from: route.user,
                    msg_id: route.msg_id,
                });
                (None, true)
            }
            Arrival::Fresh => {
                let shown = show(&route, frame, ephemeral, on_event);
                (Some(key), !shown || self.settings.auto_ack)
            }
        };
        self.inbox.put(bounds, now.mono_us, route.seq, key, stored);
        Ok(())
    }

    fn on_receipt(&self, frame: Frame<'_>, on_event: &mut dyn FnMut(Event<'_>)) {
        let Some(route) = frame.route() else {
            return;
        };
        let read = match route.kind {
            receipt_kind::DELIVERED => false,
            receipt_kind::READ => true,
            _ => return,
        };
        if route.conv_kind == ConvKind::GROUP {
            return self.on_group_receipt(&route, frame.aux(), on_event);
        }
        if route.conv_kind != ConvKind::DIRECT {
            return;
        }
        let peer = UserId(route.conv);
        let (up_to, at_s) = (route.conv_seq, frame.aux());
        if route.user != self.user {
            on_event(Event::Receipt {
                peer,
                read,
                up_to,
                at_s,
            });
        } else if read {
            on_event(Event::ReadElsewhere { peer, up_to });
        }
    }

    fn on_error(&mut self, now: Now, frame: Frame<'_>, on_event: &mut dyn FnMut(Event<'_>)) {
        // An error that cannot be read is still an answer: the outcome is unknown.
        let error = ErrorReply::decode(frame.body()).unwrap_or(ErrorReply {
            code: ErrorCode::INTERNAL,
            retry_after_ms: 0,
            detail: "",
            op: 0,
            server_us: 0,
        });
        if error.code == ErrorCode::CLOCK_AHEAD {
            self.set_server_clock(now, error.server_us);
        }
        let (corr, wish_ms) = (frame.corr(), error.retry_after_ms);
        let answer = (error.code, wish_ms);
        if !self.renewal_refused(now, corr, answer, on_event) {
            self.requests
                .refused(now, corr, error.code, wish_ms, on_event);
        }
    }

    fn on_synced(
        &mut self,
        now: Now,
        frame: Frame<'_>,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), ProtocolFault> {
        let header = frame.seq_header();
        let up_to = Seq(header.seq);
        self.inbox
            .synced(bounds(&self.settings), now.mono_us, up_to)?;
        self.phase = Phase::Live;
        self.live_since_us = self.live_since_us.or(NonZeroU64::new(now.mono_us.max(1)));
        on_event(Event::Synced {
            up_to,
            replayed: header.arg,
        });
        Ok(())
    }

    fn on_drain(&mut self, frame: Frame<'_>, on_event: &mut dyn FnMut(Event<'_>)) {
        self.draining = true;
        // A DRAIN that cannot be read says nothing about when; the CLOSE will.
        let Ok(drain) = Drain::decode(frame.body()) else {
            return;
        };
        let window_ms = drain.spread_ms.min(drain.deadline_ms).min(DRAIN_MAX_MS);
        let leave_after_ms = self.random.below(u64::from(window_ms)) as u32;
        let drawn = self.random.below(drain.endpoints.len() as u64) as usize;
        if let Some(endpoint) = drain.endpoints.get(drawn) {
            self.note_endpoint(endpoint);
        }
        on_event(Event::Draining { leave_after_ms });
    }

    fn on_close(&mut self, now: Now, frame: Frame<'_>, on_event: &mut dyn FnMut(Event<'_>)) {
        let close = Close::decode(frame.body()).unwrap_or(Close::new(CloseCode::SERVER_ERROR, ""));
        if close.code == CloseCode::MOVED {
            self.note_endpoint(close.endpoint);
        }
        let ending = Ending {
            code: close.code,
            by_peer: true,
            retry_after_ms: close.retry_after_ms,
            detail: close.detail,
        };
        self.end(now, ending, on_event);
    }

    pub(super) const fn set_server_clock(&mut self, now: Now, server_us: u64) {
        if server_us != 0 && server_us < SERVER_US_END {
            self.server_offset_us = NonZeroU64::new(server_us.wrapping_sub(now.mono_us));
        }
    }

    fn note_endpoint(&mut self, endpoint: &str) {
        if !endpoint.is_empty() && endpoint.len() <= ENDPOINT_BYTES_MAX {
            self.rare.get_or_insert_default().endpoint = Some(endpoint.to_owned());
        }
    }
}

/// Shows a message to the owner. `false`: there is nothing that the owner has to store.
fn show(
    route: &RouteHeader,
    frame: Frame<'_>,
    ephemeral: bool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> bool {
    let group = group_of(route);
    let peer = match group {
        Some(_) => route.user,
        None if route.conv_kind == ConvKind::DIRECT => UserId(route.conv),
        None => return false,
    };
    let raw = frame.body();
    let envelope = match raw {
        [] => None,
        _ => match Envelope::decode(raw) {
            Ok(envelope) => Some(envelope),
            Err(_) => {
                on_event(Event::Undecodable {
                    seq: route.seq,
                    from: route.user,
                    msg_id: route.msg_id,
                });
                return false;
            }
        },
    };
    on_event(Event::Message {
        seq: route.seq,
        conv_seq: route.conv_seq,
        peer,
        group,
        from: route.user,
        from_device: route.dev,
        msg_id: route.msg_id,
        kind: route.kind,
        ephemeral,
        envelope,
        raw,
    });
    true
}

/// Before WELCOME a server may hang up and say what is not known yet, nothing else.
fn early(frame: Frame<'_>) -> Result<(), ProtocolFault> {
    match frame.known_op() {
        None | Some(Op::Pong | Op::Drain) => Ok(()),
        Some(_) => Err(ProtocolFault::Early(frame.op())),
    }
}

/// The owner's wish within the server's range, which a hostile server cannot make empty or zero.
fn ping_interval_s(wish_s: u16, welcome: &Welcome<'_>) -> u16 {
    let wish_s = if wish_s == 0 {
        welcome.heartbeat_s
    } else {
        wish_s
    };
    let max_s = welcome.heartbeat_max_s.max(1);
    let min_s = welcome.heartbeat_min_s.clamp(1, max_s);
    wish_s.clamp(min_s, max_s)
}
