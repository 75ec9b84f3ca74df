//! What goes out to clients: the queue of a connection and its bounds.

use crate::{
    conn::{Conn, ConnId, Phase, Source},
    effects::Effect,
    error::Refusal,
    metrics::Counter,
    shard::{Shard, Turn},
};
use portico_wire::{
    CloseCode, Frame,
    encode::{self, Encoder},
    limits::FRAME_BYTES_TO_CLIENT_MAX,
    message::{Close, ErrorReply},
};
use std::mem;

/// What may be queued for a connection that has not logged in: answers to a few early questions.
/// Anyone can open thousands of those.
const OUTBOX_BYTES_BEFORE_WELCOME_MAX: usize = 8 << 10;
/// And for one that has, while the queues of the shard are full together: the largest frame, and
/// answers beside it.
const OUTBOX_BYTES_WHEN_FULL_MAX: usize = FRAME_BYTES_TO_CLIENT_MAX + (8 << 10);

impl Shard {
    /// The bytes that wait for this connection, for one send. The driver reports them with
    /// [`crate::Input::Written`] once the kernel has them, and returns the buffer to [`Self::recycle`].
    pub fn take_output(&mut self, id: ConnId) -> Vec<u8> {
        let Some(conn) = self.conn_mut(id) else {
            return Vec::new();
        };
        conn.notes.output_told = false;
        let Some(traffic) = &mut conn.traffic else {
            return Vec::new();
        };
        let out = mem::take(&mut traffic.out);
        // Bounded by `outbox_bytes_max`.
        traffic.sending += out.len() as u32;
        traffic.note_taken();
        out
    }

    /// Gives a buffer back for reuse.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        self.pool.put_buffer(buffer);
    }

    /// Appends a frame to a connection's queue. The queue has a last bound: a client that lets its
    /// answers pile up beyond it is closed.
    pub(crate) fn write(
        &mut self,
        id: ConnId,
        cx: &mut Turn<'_>,
        put: impl FnOnce(&mut Vec<u8>, &mut Encoder),
    ) {
        let now_s = cx.now.mono_s();
        let watched = self.recall_bytes_min();
        let max = self.outbox_bytes_max();
        let Some(conn) = self.conns.get_mut(id.index as usize) else {
            return;
        };
        if conn.generation != id.generation || conn.phase == Phase::Free {
            return;
        }
        let before = conn.pending_bytes();
        let traffic = conn.traffic.get_or_insert_with(|| self.pool.take_traffic());
        if traffic.out.capacity() == 0 {
            traffic.out = self.pool.take_buffer();
        }
        if before == 0 {
            traffic.progress_s = now_s;
        }
        put(&mut traffic.out, &mut self.encoder);
        if !mem::replace(&mut conn.notes.output_told, true) {
            cx.fx.list.push(Effect::Output(id));
        }
        let pending = conn.pending_bytes();
        self.outbox_bytes += pending - before;
        let crossed = before < watched && pending >= watched && conn.phase == Phase::Open;
        let max = if conn.is_logged_in() {
            max
        } else {
            max.min(OUTBOX_BYTES_BEFORE_WELCOME_MAX)
        };
        if pending > max {
            let detail = "the client does not read";
            self.close(id, CloseCode::SLOW_CONSUMER, detail, cx);
        } else if crossed {
            self.arm_idle(id.index);
        }
    }

    pub(crate) fn on_written(&mut self, id: ConnId, bytes: usize, cx: &mut Turn<'_>) {
        self.counters.add(Counter::BytesOut, bytes as u64);
        let now_s = cx.now.mono_s();
        let Some(conn) = self.conn_mut(id) else {
            return;
        };
        let mut taken = 0;
        if let Some(traffic) = &mut conn.traffic {
            taken = traffic.sending.min(bytes as u32);
            traffic.sending -= taken;
            if bytes > 0 {
                traffic.progress_s = now_s;
                traffic.stalled = false;
            }
        }
        let behind = conn.source == Source::Behind;
        self.outbox_bytes -= taken as usize;
        if behind {
            self.pull(id, cx);
        }
        if self.listings.len() > 0 {
            self.continue_listings_of(id, cx);
        }
        self.rest(id);
    }

    /// May more be pushed to this connection? What does not fit waits in the store, or is dropped
    /// if it is not there. Where the queues of the shard are full together, each has room for one
    /// frame at a time.
    pub(crate) fn has_room(&self, conn: &Conn) -> bool {
        let pending = conn.pending_bytes();
        let within = if self.outbox_bytes < self.outboxes_bytes_max {
            self.config.limits.outbox_bytes_soft
        } else {
            1
        };
        pending < within && !conn.is_stalled()
    }

    /// What may be queued for a connection before it is closed.
    fn outbox_bytes_max(&self) -> usize {
        let max = self.config.limits.outbox_bytes_max;
        if self.outbox_bytes < self.outboxes_bytes_max {
            max
        } else {
            max.min(OUTBOX_BYTES_WHEN_FULL_MAX)
        }
    }

    /// Gives back what the connection borrowed, if nothing is on its way any more.
    pub(crate) fn rest(&mut self, id: ConnId) {
        if let Some(conn) = self.conn_mut(id)
            && conn
                .traffic
                .as_ref()
                .is_some_and(|traffic| traffic.is_at_rest())
            && let Some(traffic) = conn.traffic.take()
        {
            self.pool.put_traffic(traffic);
        }
    }

    /// Ends a connection from this side: what is queued goes out, then CLOSE.
    pub(crate) fn close(&mut self, id: ConnId, code: CloseCode, detail: &str, cx: &mut Turn<'_>) {
        self.close_with(id, &Close::new(code, detail), cx);
    }

    pub(crate) fn close_with(&mut self, id: ConnId, close: &Close<'_>, cx: &mut Turn<'_>) {
        if self.conn(id).is_none() {
            return;
        }
        self.counters.bump(closed_counter(close.code));
        let begun = self.conn(id).and_then(|conn| conn.traffic.as_ref());
        let begun = begun.map_or(0, |traffic| traffic.begun as usize);
        let mut last = self.vacate(id);
        if close.code == CloseCode::SLOW_CONSUMER {
            // It would not read the queue either, but for the frame that it has part of.
            last.truncate(begun);
        }
        if last.capacity() == 0 {
            last = self.pool.take_buffer();
        }
        self.encoder.close(&mut last, close);
        cx.fx.list.push(Effect::Close { conn: id, last });
    }

    /// Ends a connection that may come back when it is its turn.
    pub(crate) fn put_off(&mut self, id: ConnId, detail: &str, cx: &mut Turn<'_>) {
        let close = Close {
            retry_after_ms: self.admission.defer(cx.now.mono_us),
            ..Close::new(CloseCode::OVERLOADED, detail)
        };
        self.close_with(id, &close, cx);
    }

    /// Answers a PING, if it asks for an answer.
    pub(crate) fn pong(&mut self, id: ConnId, ping: Frame<'_>, cx: &mut Turn<'_>) {
        if ping.is_request() {
            let corr = ping.corr();
            let spread_ms = self.admission.spread_ms(self.sessions);
            self.write(id, cx, |out, _| {
                encode::put_pong_spread(out, corr, spread_ms);
            });
        }
    }

    pub(crate) fn done(&mut self, id: ConnId, corr: u32, cx: &mut Turn<'_>) {
        if corr != 0 {
            self.write(id, cx, |out, _| encode::put_done(out, corr, 0));
        }
    }

    /// Answers a request with ERROR; what asked for no answer is counted only.
    pub(crate) fn refuse(
        &mut self,
        id: ConnId,
        request: bool,
        corr: u32,
        op: u8,
        why: Refusal,
        cx: &mut Turn<'_>,
    ) {
        self.counters.bump(refused_counter(why));
        if matches!(why, Refusal::TooManyRequests)
            && let Some(conn) = self.conn_mut(id)
        {
            // Refusing is cheap, and a client that goes on all the same could keep a core busy with it:
            // it is not read until half of what it has asked is answered.
            conn.notes.paused = true;
        }
        if !request {
            return;
        }
        let reply = ErrorReply {
            code: why.code(),
            retry_after_ms: why.retry_after_ms(),
            detail: why.detail(),
            op,
            server_us: match why {
                Refusal::ClockAhead => cx.now.wall_us,
                _ => 0,
            },
        };
        self.write(id, cx, |out, encoder| encoder.error(out, corr, &reply));
    }
}

const fn refused_counter(why: Refusal) -> Counter {
    match why {
        Refusal::Malformed => Counter::MalformedBodies,
        Refusal::UnknownOp | Refusal::UnsupportedOp | Refusal::UnsupportedConversation => {
            Counter::RefusedUnsupported
        }
        Refusal::TooLarge | Refusal::GroupTooLarge | Refusal::EditTooLong => {
            Counter::RefusedTooLarge
        }
        Refusal::MembersOfOne
        | Refusal::NoSuchUser
        | Refusal::BadKind
        | Refusal::BadReceipt
        | Refusal::BadPage
        | Refusal::BadMsgId
        | Refusal::BadSignal
        | Refusal::BadContactChange
        | Refusal::OwnContact
        | Refusal::NameWithoutSet
        | Refusal::BadPrivacy
        | Refusal::NoLimit => Counter::RefusedArgument,
        Refusal::NoSuchMessage => Counter::RefusedNotFound,
        Refusal::NotAuthor => Counter::RefusedForbidden,
        Refusal::Blocked => Counter::RefusedBlocked,
        Refusal::TooManySubscriptions | Refusal::TooManyContacts | Refusal::TooManyBlocks => {
            Counter::RefusedQuota
        }
        Refusal::ClockAhead => Counter::RefusedClock,
        Refusal::MsgIdTooOld => Counter::RefusedExpired,
        Refusal::TooManyRequests | Refusal::TooFast { .. } | Refusal::TooManyLogins(_) => {
            Counter::RefusedRate
        }
        Refusal::Denied(_) => Counter::RefusedDenied,
        Refusal::Group(error) => error.counter(),
        Refusal::Token(_) => Counter::RefusedToken,
        Refusal::Overloaded => Counter::RefusedOverload,
        Refusal::TimedOut => Counter::StoreTimeouts,
        Refusal::Store(_) => Counter::RefusedStore,
    }
}

const fn closed_counter(code: CloseCode) -> Counter {
    match code {
        CloseCode::NORMAL => Counter::ClosedNormal,
        CloseCode::DRAINING => Counter::ClosedDraining,
        CloseCode::IDLE_TIMEOUT => Counter::ClosedIdle,
        CloseCode::SLOW_CONSUMER => Counter::ClosedSlow,
        CloseCode::OVERLOADED => Counter::ClosedOverloaded,
        CloseCode::RATE_LIMITED => Counter::ClosedLimited,
        CloseCode::RESUME_REFUSED => Counter::ClosedResume,
        CloseCode::TOKEN_EXPIRED => Counter::ClosedTokenExpired,
        CloseCode::PROTOCOL_ERROR => Counter::ClosedProtocol,
        CloseCode::FRAME_TOO_LARGE => Counter::ClosedTooLarge,
        CloseCode::HANDSHAKE_TIMEOUT => Counter::ClosedHandshake,
        CloseCode::AUTH_FAILED => Counter::ClosedAuth,
        CloseCode::DEVICE_REVOKED => Counter::ClosedRevoked,
        CloseCode::VERSION_UNSUPPORTED => Counter::ClosedVersion,
        CloseCode::SESSION_REPLACED => Counter::ClosedReplaced,
        // SERVER_ERROR, and what this version does not send.
        _ => Counter::ClosedServerError,
    }
}
