//! The shard: what it owns, the one way in, and dispatch. What happens is in the files beside.

use crate::{
    absent::Absent,
    admission::Admission,
    body::Bodies,
    conn::{Conn, ConnId, Phase},
    drain::Drain,
    effects::{Effect, Effects},
    error::Refusal,
    groups::{Asked, FanIns, GroupOp, Groups, Listings},
    home::{ShardId, user_home},
    input::{Input, Now},
    lane::Lane,
    limits::ShardConfig,
    login::Session,
    lookup::Lookups,
    mesh::ShardMessage,
    metrics::{Counter, Counters, Gauges},
    ops::Tokens,
    outgoing::{Attempts, Gate, Outgoing},
    people::{People, Waiter},
    policy::{Denial, Policy, Verdict},
    pool::Pool,
    presence::Presence,
    rates::Limiter,
    receipt::Query,
    revoke::Revoked,
    seq::SeqClock,
    signal::Signals,
    stall::STALLED_S,
    stored::InStore,
    timer::Wheel,
    users::Users,
    watermark::Unsaved,
};
use portico_wire::{
    CloseCode, Frame, FrameError, Op,
    encode::Encoder,
    ids::{ConvId, Seq, UserId},
    limits::{FRAME_BYTES_BEFORE_WELCOME_MAX, RECEIVE_MAX_CEILING},
    op::{Direction, PRIVATE_FIRST},
};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// Of `Limits::login_reads_max`, each shard has this much at least.
const LOGIN_READS_MIN: usize = 8;
/// The part of `Limits::store_bytes_max` that may wait in the lane behind a request that takes long,
/// with its own answer there.
pub(crate) const STUCK_ONE_IN: usize = 8;
/// Of `Limits::pages_max`, each shard has this much at least.
pub(crate) const PAGES_MIN: usize = 4;
/// Seconds beyond twice the heartbeat before a silent connection is closed.
const HEARTBEAT_GRACE_S: u32 = 15;

/// The time of a turn and the place for its effects.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    pub(crate) now: Now,
    pub(crate) fx: &'a mut Effects,
}

/// One shard. See the crate's head for the rules.
#[derive(Debug)]
pub struct Shard {
    pub(crate) config: ShardConfig,
    pub(crate) conns: Vec<Conn>,
    pub(crate) users: Users,
    /// Devices that left with everything.
    pub(crate) absent: Absent,
    pub(crate) admission: Admission,
    pub(crate) limiter: Limiter,
    /// None: everybody may write to everybody.
    policy: Option<Box<dyn Policy>>,
    /// Logins that wait for the authenticator, by the connection's index.
    pub(crate) logins: FxHashMap<u32, Session>,
    /// The `corr` of REAUTHs that wait for the authenticator, likewise.
    pub(crate) reauths: FxHashMap<u32, u32>,
    /// What logins that are on their way may not know of.
    pub(crate) revoked: Revoked,
    pub(crate) lane: Lane,
    pub(crate) seq: SeqClock,
    pub(crate) wheel: Wheel,
    pub(crate) encoder: Encoder,
    pub(crate) pool: Pool,
    /// Where the bodies of messages are kept while they are on their way.
    pub(crate) bodies: Bodies,
    /// The same for ephemeral ones: they are gone at once, and among the others would keep room that
    /// those who stay are not charged for.
    pub(crate) passing: Bodies,
    pub(crate) counters: Counters,
    pub(crate) unsaved: Unsaved,
    pub(crate) people: People,
    pub(crate) presence: Presence,
    /// Of connections that have sent any, by index.
    pub(crate) signals: FxHashMap<u32, Box<Signals>>,
    pub(crate) drain: Option<Drain>,
    /// Messages of this shard's users whose fate is open.
    pub(crate) outgoing: Tokens<Outgoing>,
    /// The newest of them under each name.
    pub(crate) attempts: Attempts,
    /// The length of their bodies.
    pub(crate) outgoing_bytes: usize,
    /// When to stop waiting for each of them; in order, because the time allowed is the same.
    pub(crate) send_deadlines: VecDeque<(u64, u64)>,
    /// Messages that wait while a first attempt is looked for, per device and recipient.
    pub(crate) gates: FxHashMap<Gate, VecDeque<u64>>,
    /// Connections whose page failed, and when to read again; in order.
    pub(crate) page_retries: VecDeque<(u64, ConnId)>,
    /// Pages being read, how many may be, and the connections that wait for their turn.
    pub(crate) pages: usize,
    pub(crate) pages_max: usize,
    pub(crate) page_line: VecDeque<ConnId>,
    /// Queued for all connections, and this shard's share of what may be.
    pub(crate) outbox_bytes: usize,
    pub(crate) outboxes_bytes_max: usize,
    /// Groups that are at home here, and what is on its way in them.
    pub(crate) groups: Groups,
    /// Messages to groups for members who are at home here, while the store has enough to do.
    pub(crate) fan_ins: FanIns,
    /// Questions to homes of groups, and listings of a user's groups.
    pub(crate) asked: Asked,
    pub(crate) listings: Listings,
    /// The frame that all readers of a group's message share.
    pub(crate) frame: Vec<u8>,
    /// Questions for watermarks whose answers are being read.
    pub(crate) queries: Tokens<Query>,
    /// Questions about what was said before.
    pub(crate) lookups: Lookups,
    pub(crate) in_store: Tokens<InStore>,
    pub(crate) store_weight: usize,
    /// Logins that wait for the store. The pages that follow are not in it: those of devices that
    /// catch up would keep others out.
    pub(crate) inbox_reads: usize,
    /// Messages to this very shard.
    pub(crate) local: VecDeque<ShardMessage>,
    pub(crate) due: Vec<u32>,
    /// Time up to which everything that was due is done.
    timed_us: u64,
    /// Monotonic time of the input that is being handled.
    pub(crate) now_us: u64,
    /// The second of the last look at memory to give back.
    pub(crate) trimmed_s: u32,
    open: usize,
    pub(crate) sessions: usize,
}

impl Shard {
    #[must_use]
    pub fn new(mut config: ShardConfig) -> Self {
        let floor = config.seq_floor;
        // They are counted in 16 bits.
        let limits = &mut config.limits;
        limits.requests_max = limits.requests_max.min(RECEIVE_MAX_CEILING);
        limits.receive_max = limits.receive_max.min(RECEIVE_MAX_CEILING);
        Self {
            conns: Vec::with_capacity(config.connections_hint),
            users: Users::with_capacity(config.connections_hint),
            absent: Absent::new(config.limits.absent_max),
            admission: Admission::new(&config),
            limiter: Limiter::new(&config),
            policy: None,
            logins: FxHashMap::default(),
            reauths: FxHashMap::default(),
            revoked: Revoked::default(),
            lane: Lane::new(Seq(floor)),
            seq: SeqClock::new(floor),
            wheel: Wheel::new(config.connections_hint),
            encoder: Encoder::new(),
            pool: Pool::new(config.shards),
            bodies: Bodies::default(),
            passing: Bodies::default(),
            counters: Counters::default(),
            unsaved: Unsaved::default(),
            people: People::new(&config),
            presence: Presence::new(&config),
            signals: FxHashMap::default(),
            drain: None,
            outgoing: Tokens::default(),
            attempts: Attempts::default(),
            outgoing_bytes: 0,
            send_deadlines: VecDeque::new(),
            gates: FxHashMap::default(),
            page_retries: VecDeque::new(),
            pages: 0,
            pages_max: share(config.limits.pages_max, config.shards).max(PAGES_MIN),
            page_line: VecDeque::new(),
            outbox_bytes: 0,
            outboxes_bytes_max: share(config.limits.outboxes_bytes_max, config.shards),
            groups: Groups::new(
                share(config.limits.groups_bytes_max, config.shards),
                &std::mem::take(&mut config.open_fan_outs),
            ),
            fan_ins: FanIns::default(),
            asked: Asked::default(),
            listings: Listings::default(),
            frame: Vec::new(),
            queries: Tokens::default(),
            lookups: Lookups::default(),
            in_store: Tokens::default(),
            store_weight: 0,
            inbox_reads: 0,
            local: VecDeque::new(),
            due: Vec::new(),
            timed_us: 0,
            now_us: 0,
            trimmed_s: 0,
            open: 0,
            sessions: 0,
            config,
        }
    }

    /// From now on this decides who may write to whom.
    pub fn set_policy(&mut self, policy: Box<dyn Policy>) {
        self.policy = Some(policy);
    }

    pub(crate) fn denial(&mut self, from: UserId, to: UserId) -> Option<Denial> {
        match self.policy.as_mut()?.may_message(from, to) {
            Verdict::Allow => None,
            Verdict::Deny(denial) => Some(denial),
        }
    }

    /// Takes one event and says what follows from it. Effects are appended to `fx`.
    pub fn handle(&mut self, now: Now, input: Input<'_>, fx: &mut Effects) {
        let cx = &mut Turn { now, fx };
        // A driver hands in many inputs of one moment: time is looked after at the first of them,
        // and wherever the input asks for it.
        let mut timely = self.timed_us != now.mono_us;
        self.now_us = now.mono_us;
        // The wheel's clock moves first, so that a deadline set now is not cut short by it; what
        // came due is looked at after the input, which may be the sign of life waited for.
        self.wheel.advance(now.mono_s(), &mut self.due);
        match input {
            Input::Opened { conn } => self.on_opened(conn, cx),
            Input::Frame { conn, frame } => self.on_frame(conn, frame, cx),
            Input::BadFrame { conn, error } => self.on_bad_frame(conn, error, cx),
            Input::Ended { conn } => self.on_ended(conn, cx),
            Input::Written { conn, bytes } => self.on_written(conn, bytes, cx),
            Input::Authenticated { conn, result } => self.on_authenticated(conn, result, cx),
            Input::Moved { conn } => self.on_moved(conn),
            Input::MoveFailed { conn } => self.on_move_failed(conn, cx),
            Input::Adopted { conn, session } => self.on_adopted(conn, session, cx),
            Input::Message { message, .. } => self.on_message(message, cx),
            Input::Stored { token, result } => self.on_stored(token, result, cx),
            Input::Tick => timely = true,
            Input::Drain {
                spread_ms,
                deadline_ms,
            } => {
                timely = true;
                self.begin_drain(spread_ms, deadline_ms, cx);
            }
            Input::Revoke(revocation) => self.on_revoke(revocation, cx),
        }
        if timely {
            self.timed_us = now.mono_us;
            self.on_time(cx);
        }
        loop {
            self.settle_presence(cx);
            let Some(message) = self.local.pop_front() else {
                break;
            };
            self.on_message(message, cx);
        }
    }

    /// The longest frame this connection may send now.
    #[must_use]
    pub fn frame_bytes_max(&self, conn: ConnId) -> usize {
        match self.conn(conn) {
            Some(conn) if conn.is_logged_in() => self.config.limits.frame_bytes_max,
            _ => FRAME_BYTES_BEFORE_WELCOME_MAX,
        }
    }

    /// May frames of this connection be handed in now?
    #[must_use]
    pub fn wants_input(&self, conn: ConnId) -> bool {
        self.conn(conn).is_some_and(|conn| match conn.phase {
            Phase::Greeting => true,
            Phase::Open => !conn.notes.paused,
            Phase::Free | Phase::Authenticating | Phase::Moving | Phase::Loading => false,
        })
    }

    /// Does the shard still know this connection?
    #[must_use]
    pub fn is_open(&self, conn: ConnId) -> bool {
        self.conn(conn).is_some()
    }

    /// The store has enough to do: the driver should not read from sockets for now.
    #[must_use]
    pub fn is_congested(&self) -> bool {
        let limits = &self.config.limits;
        self.in_store.len() > limits.store_requests_soft
            || self.store_weight > limits.store_bytes_soft
    }

    /// The store has enough to read for those who are in: logins that would add to it are put off.
    pub(crate) fn is_reading_enough(&self) -> bool {
        let share = share(self.config.limits.login_reads_max, self.config.shards);
        self.inbox_reads >= share.max(LOGIN_READS_MIN)
    }

    /// Nothing more fits into the store: what would need it is refused.
    pub(crate) fn is_store_full(&self) -> bool {
        let limits = &self.config.limits;
        self.in_store.len() >= limits.store_requests_max
            || self.store_weight >= limits.store_bytes_max
            || self.lane.len() >= limits.store_requests_max
            || self.lane.stuck_bytes() >= limits.store_bytes_max / STUCK_ONE_IN
    }

    /// The same for messages, which may wait for another shard's store or for a search.
    pub(crate) fn is_full(&self) -> bool {
        let limits = &self.config.limits;
        self.is_store_full()
            || self.outgoing.len() >= limits.store_requests_max
            || self.outgoing_bytes >= limits.store_bytes_max
    }

    /// When [`Input::Tick`] is due, in monotonic microseconds.
    #[must_use]
    pub fn next_wakeup_us(&self) -> Option<u64> {
        let wheel = self
            .wheel
            .next_s()
            .map(|second| u64::from(second) * 1_000_000);
        let send = self.send_deadlines.front().map(|(at, _)| *at);
        let page = self.page_retries.front().map(|(at, _)| *at);
        let drain = self.drain.as_ref().and_then(Drain::next_us);
        let (unsaved, trim) = (self.unsaved.next_us(), self.next_trim_us());
        let groups = self.next_group_us();
        let presence = self.presence.next_us();
        [wheel, send, page, drain, unsaved, trim, groups, presence]
            .into_iter()
            .flatten()
            .min()
    }

    /// After [`Input::Drain`]: every connection is gone and everything is written.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.drain.is_some()
            && self.open == 0
            && self.in_store.len() == 0
            && self.outgoing.len() == 0
            && self.unsaved.is_empty()
            && self.groups.is_idle()
            && self.fan_ins.len() == 0
    }

    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    #[must_use]
    pub fn gauges(&self) -> Gauges {
        Gauges {
            connections: self.open as u64,
            sessions: self.sessions as u64,
            users: self.users.len() as u64,
            store_requests: self.in_store.len() as u64,
            store_bytes: self.store_weight as u64,
            messages_in_flight: self.outgoing.len() as u64,
            gates: self.gates.len() as u64,
            unsaved: self.unsaved.len() as u64,
            outbox_bytes: self.outbox_bytes as u64,
            pages: self.pages as u64,
            pages_waiting: self.page_line.len() as u64,
            groups: self.groups.len() as u64,
            group_bytes: self.groups.bytes() as u64,
            groups_evicted: self.groups.evicted,
            group_ops_waiting: self.groups.waiting() as u64,
            fan_outs: self.groups.fan_outs.len() as u64,
            fan_ins_waiting: self.fan_ins.len() as u64,
            presence_subscriptions: self.presence.subscriptions() as u64,
            presence_interests: self.presence.interests() as u64,
            last_seen: self.presence.seen.len() as u64,
            restricted: self.people.restricted() as u64,
            restrictions_bytes: self.people.cached_bytes() as u64,
            restrictions_waiting: self.people.waiters() as u64,
            people_edits: self.people.edits_open as u64,
        }
    }

    // ---- connections

    pub(crate) fn conn(&self, id: ConnId) -> Option<&Conn> {
        let conn = self.conns.get(id.index as usize)?;
        (conn.generation == id.generation && conn.phase != Phase::Free).then_some(conn)
    }

    pub(crate) fn conn_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        let conn = self.conns.get_mut(id.index as usize)?;
        (conn.generation == id.generation && conn.phase != Phase::Free).then_some(conn)
    }

    pub(crate) fn id_of(&self, index: u32) -> ConnId {
        ConnId {
            index,
            generation: self.conns[index as usize].generation,
        }
    }

    fn on_opened(&mut self, id: ConnId, cx: &mut Turn<'_>) {
        self.counters.bump(Counter::Opened);
        self.occupy(id, Phase::Greeting, cx);
        self.conns[id.index as usize].notes.limited = self.limiter.knows_source(id.index);
        let deadline_s = cx.now.mono_s() + self.config.limits.handshake_ms.div_ceil(1_000);
        self.wheel.set(id.index, deadline_s);
    }

    pub(crate) fn occupy(&mut self, id: ConnId, phase: Phase, cx: &Turn<'_>) {
        let index = id.index as usize;
        if self.conns.len() <= index {
            self.conns.resize_with(index + 1, Conn::free);
        }
        debug_assert_eq!(self.conns[index].phase, Phase::Free);
        self.conns[index] = Conn {
            generation: id.generation,
            phase,
            active_s: cx.now.mono_s(),
            ..Conn::free()
        };
        self.open += 1;
    }

    /// Forgets a connection and returns what it still had to send.
    pub(crate) fn vacate(&mut self, id: ConnId) -> Vec<u8> {
        match self.conn(id).map(|conn| conn.phase) {
            None => return Vec::new(),
            Some(Phase::Authenticating) => {
                self.logins.remove(&id.index);
            }
            Some(Phase::Loading | Phase::Open) => {
                self.reauths.remove(&id.index);
                self.unlink(id.index);
                self.presence_gone(id.index);
                self.remember(id.index);
                self.keep_debts(id.index);
                while let Some(token) = self.listings.find(|listing| listing.conn == id) {
                    self.listings.remove(token);
                }
            }
            Some(Phase::Free | Phase::Greeting | Phase::Moving) => {}
        }
        let conn = std::mem::replace(&mut self.conns[id.index as usize], Conn::free());
        // The generation stays with the slot until it is used again.
        self.conns[id.index as usize].generation = conn.generation;
        self.wheel.cancel(id.index);
        self.limiter.release(id.index);
        self.open -= 1;
        let Some(mut traffic) = conn.traffic else {
            return Vec::new();
        };
        self.outbox_bytes -= traffic.pending_bytes();
        let out = std::mem::take(&mut traffic.out);
        self.pool.put_traffic(traffic);
        out
    }

    fn on_ended(&mut self, id: ConnId, cx: &mut Turn<'_>) {
        if self.conn(id).is_some() {
            self.counters.bump(Counter::ClosedByPeer);
            let out = self.vacate(id);
            self.pool.put_buffer(out);
            let last = Vec::new();
            cx.fx.list.push(Effect::Close { conn: id, last });
        }
    }

    // ---- frames

    fn on_bad_frame(&mut self, id: ConnId, error: FrameError, cx: &mut Turn<'_>) {
        let detail = match error {
            FrameError::TooShort => "the length field is below 12",
            FrameError::TooLong => "the frame is longer than the limit",
            FrameError::BadHeader => "the header does not fit the frame or the operation",
        };
        self.close(id, error.close_code(), detail, cx);
    }

    fn on_frame(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let now_s = cx.now.mono_s();
        let Some(conn) = self.conn_mut(id) else {
            return;
        };
        conn.active_s = now_s;
        let (phase, limited) = (conn.phase, conn.notes.limited);
        self.counters.bump(Counter::FramesIn);
        self.counters
            .add(Counter::BytesIn, frame.bytes().len() as u64);
        match phase {
            Phase::Greeting => self.on_greeting_frame(id, frame, cx),
            Phase::Open if limited && !self.admit_frame(id, frame, cx) => {}
            Phase::Open => self.on_open_frame(id, frame, cx),
            // The driver asks `wants_input` first.
            Phase::Free | Phase::Authenticating | Phase::Moving | Phase::Loading => {}
        }
    }

    fn on_greeting_frame(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        match frame.known_op() {
            Some(Op::Hello) => self.on_hello(id, frame, cx),
            Some(Op::Ping) => self.pong(id, frame, cx),
            Some(Op::Close) => self.on_close(id, cx),
            Some(Op::RegStart | Op::RegConfirm | Op::TokenRefresh | Op::DeviceLink) => {
                self.on_unserved(id, frame, Refusal::UnsupportedOp, cx);
            }
            Some(_) => {
                let detail = "the first frame of a session is HELLO";
                self.close(id, CloseCode::PROTOCOL_ERROR, detail, cx);
            }
            None => self.on_unknown(id, frame, cx),
        }
    }

    fn on_open_frame(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let Some(op) = frame.known_op() else {
            return self.on_unknown(id, frame, cx);
        };
        match op {
            Op::Send => self.on_send(id, frame, cx),
            Op::Ack => self.on_ack(id, frame.seq_header(), cx),
            Op::Ping => self.on_ping(id, frame, cx),
            Op::Receipt => self.on_receipt_frame(id, frame, cx),
            Op::ReceiptsGet => self.on_receipts_get(id, frame, cx),
            Op::GroupCreate => self.on_group_create(id, frame, cx),
            Op::GroupEdit => self.on_group_edit(id, frame, cx),
            Op::GroupGet => self.on_group_get(id, frame, cx),
            Op::History => self.on_history(id, frame, cx),
            Op::ConversationsGet => self.on_conversations_get(id, frame, cx),
            Op::Revoke => self.on_withdraw(id, frame, cx),
            Op::ClientState => self.on_client_state(id, frame, cx),
            Op::PresenceSub => self.on_presence_sub(id, frame, cx),
            Op::Signal => self.on_signal(id, frame, cx),
            Op::ContactsEdit => self.on_contacts_edit(id, frame, cx),
            Op::ContactsGet => self.on_contacts_get(id, frame, cx),
            Op::PrivacySet => self.on_privacy_set(id, frame, cx),
            Op::PrivacyGet => self.on_privacy_get(id, frame, cx),
            Op::Reauth => self.on_reauth(id, frame, cx),
            Op::Close => {
                self.note_good_bye(frame);
                self.on_close(id, cx);
            }
            Op::Hello | Op::RegStart | Op::RegConfirm => {
                let detail = "the session has begun already";
                self.close(id, CloseCode::PROTOCOL_ERROR, detail, cx);
            }
            op if op.direction() == Direction::ToClient => {
                let detail = "only the server sends this operation";
                self.close(id, CloseCode::PROTOCOL_ERROR, detail, cx);
            }
            _ => self.on_unserved(id, frame, Refusal::UnsupportedOp, cx),
        }
    }

    /// A number without a meaning, or one that an embedding program would give a meaning to.
    fn on_unknown(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let refusal = if frame.op() >= PRIVATE_FIRST {
            Refusal::UnsupportedOp
        } else {
            Refusal::UnknownOp
        };
        self.on_unserved(id, frame, refusal, cx);
    }

    fn on_unserved(&mut self, id: ConnId, frame: Frame<'_>, why: Refusal, cx: &mut Turn<'_>) {
        self.counters.bump(match why {
            Refusal::UnknownOp => Counter::UnknownOps,
            _ => Counter::UnsupportedOps,
        });
        self.refuse(id, frame.is_request(), frame.corr(), frame.op(), why, cx);
    }

    /// A body that cannot be read: an answer, and too many of them end the connection.
    pub(crate) fn on_malformed(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let minute = cx.now.mono_s() / 60;
        let Some(conn) = self.conn_mut(id) else {
            return;
        };
        if conn.malformed.note(minute) {
            self.counters.bump(Counter::MalformedBodies);
            let detail = "too many malformed bodies";
            return self.close(id, CloseCode::PROTOCOL_ERROR, detail, cx);
        }
        let (request, corr) = (frame.is_request(), frame.corr());
        self.refuse(id, request, corr, frame.op(), Refusal::Malformed, cx);
    }

    fn on_ping(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let (min, max) = (self.config.heartbeat_min_s, self.config.heartbeat_max_s);
        let Some(conn) = self.conn_mut(id) else {
            return;
        };
        let promised = u16::try_from(frame.aux()).unwrap_or(u16::MAX);
        if promised != 0 {
            let interval_s = promised.min(max).max(min);
            let shorter = interval_s < conn.heartbeat_s;
            conn.heartbeat_s = interval_s;
            if shorter {
                self.arm_idle(id.index);
            }
        }
        self.pong(id, frame, cx);
    }

    fn on_close(&mut self, id: ConnId, cx: &mut Turn<'_>) {
        self.counters.bump(Counter::ClosedNormal);
        let last = self.vacate(id);
        cx.fx.list.push(Effect::Close { conn: id, last });
    }

    // ---- time

    fn on_time(&mut self, cx: &mut Turn<'_>) {
        let mut due = std::mem::take(&mut self.due);
        for index in due.drain(..) {
            // The input of this turn may have set a new one.
            if !self.wheel.is_set(index) {
                self.on_deadline(index, cx);
            }
        }
        self.due = due;
        self.expire_sends(cx);
        self.retry_pages(cx);
        self.groups_on_time(cx);
        self.flush_unsaved(cx);
        self.flush_presence(cx);
        self.continue_drain(cx);
        self.trim(cx);
    }

    fn on_deadline(&mut self, index: u32, cx: &mut Turn<'_>) {
        let id = self.id_of(index);
        let stalled_s = self.config.limits.stalled_ms / 1_000;
        let now_s = cx.now.mono_s();
        let Some(conn) = self.conn(id) else {
            return;
        };
        match conn.phase {
            Phase::Free => {}
            // A move waits until nothing of the connection is in flight, and a client that does not read
            // can keep a SEND in flight for ever.
            Phase::Greeting | Phase::Authenticating | Phase::Moving | Phase::Loading => {
                let detail = "the session did not begin in time";
                self.close(id, CloseCode::HANDSHAKE_TIMEOUT, detail, cx);
            }
            Phase::Open if self.is_expired(index, now_s) => {
                let detail = "the token of the session has expired";
                self.close(id, CloseCode::TOKEN_EXPIRED, detail, cx);
            }
            // Nothing is read meanwhile, so that silence proves nothing.
            Phase::Open
                if now_s >= idle_deadline_s(conn) && (conn.notes.paused || self.is_congested()) =>
            {
                self.conns[index as usize].active_s = now_s;
                self.arm_idle(index);
            }
            Phase::Open if now_s >= idle_deadline_s(conn) => {
                let detail = "nothing was heard for twice the promised interval";
                self.close(id, CloseCode::IDLE_TIMEOUT, detail, cx);
            }
            Phase::Open if conn.pending_bytes() > 0 && now_s >= conn.progress_s() + stalled_s => {
                let detail = "nothing was read for too long";
                self.close(id, CloseCode::SLOW_CONSUMER, detail, cx);
            }
            Phase::Open if self.is_stalling(conn, now_s) => {
                self.recall(id, cx);
                self.arm_idle(index);
            }
            Phase::Open => self.arm_idle(index),
        }
    }

    /// Sets the deadline of an open connection: the heartbeat, progress of a full queue, or the end of
    /// its token.
    pub(crate) fn arm_idle(&mut self, index: u32) {
        let conn = &self.conns[index as usize];
        let mut deadline_s = idle_deadline_s(conn);
        let stalled_s = self.config.limits.stalled_ms / 1_000;
        if conn.is_stalled() {
            deadline_s = deadline_s.min(conn.progress_s() + stalled_s);
        } else if conn.pending_bytes() >= self.recall_bytes_min() {
            deadline_s = deadline_s.min(conn.progress_s() + stalled_s.min(STALLED_S));
        }
        if conn.expires_s != 0 {
            deadline_s = deadline_s.min(conn.expires_s);
        }
        self.wheel.set(index, deadline_s);
    }

    // ---- the store and other shards

    pub(crate) fn home(&self, user: UserId) -> ShardId {
        user_home(user, self.config.shards)
    }

    /// Sends to another shard, or to this one by the same door.
    pub(crate) fn post(&mut self, to: ShardId, message: ShardMessage, cx: &mut Turn<'_>) {
        if to == self.config.shard {
            self.local.push_back(message);
        } else {
            cx.fx.mesh.push((to, message));
        }
    }

    fn on_message(&mut self, message: ShardMessage, cx: &mut Turn<'_>) {
        match message {
            ShardMessage::Direct(send) => self.on_direct(*send, cx),
            ShardMessage::DirectDone { token, result } => self.on_direct_done(token, result, cx),
            ShardMessage::Ephemeral(draft) => self.on_ephemeral(draft, cx),
            ShardMessage::Receipt { to, receipt } => self.push_receipt(to, &receipt, cx),
            ShardMessage::Group(message) => self.on_group_message(message, cx),
            ShardMessage::GroupEphemeral(draft) => {
                if let ConvId::Group(id) = draft.conv {
                    self.group_op(id, GroupOp::Ephemeral(draft), cx);
                }
            }
            ShardMessage::GroupAccess {
                group,
                user,
                origin,
                token,
            } => {
                let access = GroupOp::Access {
                    user,
                    origin,
                    token,
                };
                self.group_op(group, access, cx);
            }
            ShardMessage::GroupAccessIs {
                token,
                range,
                admin,
            } => self.on_group_access_is(token, range, admin, cx),
            ShardMessage::DirectBlocked { token } => self.on_direct_blocked(token, cx),
            ShardMessage::Signal { to, signal } => self.on_signal_to(to, signal, cx),
            ShardMessage::Watch(watch) => self.on_watch(*watch, cx),
            ShardMessage::Watched { token, items } => self.on_watched(token, items, cx),
            ShardMessage::PresenceChanges(items) => self.on_seen(items, cx),
            ShardMessage::AskHidesRead {
                from,
                query,
                conv,
                user,
            } => self.want(user, Waiter::HidesRead { from, query, conv }, cx),
            ShardMessage::HidesRead { query, conv, hides } => {
                self.on_hides_read(query, conv, hides, cx);
            }
        }
    }
}

/// What each of so many shards has of a bound that they have together.
pub(crate) fn share(all: usize, shards: u16) -> usize {
    all / usize::from(shards.max(1))
}

/// When a connection that stays silent is closed.
fn idle_deadline_s(conn: &Conn) -> u32 {
    conn.active_s + 2 * u32::from(conn.heartbeat_s) + HEARTBEAT_GRACE_S
}
