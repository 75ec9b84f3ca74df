//! From HELLO to an open session: admission, sign-in, the move to the home shard, takeover, the
//! cursor.

use crate::{
    absent::Known,
    conn::{Conn, ConnId, Phase, Replay, Source},
    effects::Effect,
    error::AuthError,
    input::{Credentials, Grant},
    metrics::Counter,
    renew::expires_s,
    revoke::Standing,
    shard::{Shard, Turn},
    store::{StoreCmd, StoreError},
    stored::Purpose,
};
use portico_wire::{
    CloseCode, Frame, VERSION,
    encode::put_sync_gap,
    ids::{DeviceId, Seq, UserId},
    message::{ClientState, Close, Hello, Welcome, people::PresenceState},
};
use std::{fmt, mem};

/// A session between HELLO and WELCOME: one plain value that may cross shards.
#[derive(Clone, PartialEq, Eq)]
pub struct Session {
    pub user: UserId,
    pub device: DeviceId,
    /// HELLO's `corr`.
    pub corr: u32,
    pub receive_max: u32,
    pub last_seq: Seq,
    pub state: ClientState,
    /// The rates of clients hold for it.
    pub limited: bool,
    pub resumed: bool,
    pub resume_token: Vec<u8>,
    pub resume_ttl_s: u32,
    /// As in [`Grant`].
    pub expires_unix_s: u64,
    pub epoch: u32,
    /// Answers from before HELLO that were not sent yet.
    pub unsent: Vec<u8>,
}

impl fmt::Debug for Session {
    /// Without the resume token: credentials never reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("user", &self.user)
            .field("device", &self.device)
            .field("corr", &self.corr)
            .field("receive_max", &self.receive_max)
            .field("last_seq", &self.last_seq)
            .field("state", &self.state)
            .field("limited", &self.limited)
            .field("resumed", &self.resumed)
            .field("unsent", &self.unsent.len())
            .finish_non_exhaustive()
    }
}

/// A client that was refused for our own trouble comes back after this.
const RETRY_AFTER_MS: u32 = 1_000;
/// How long a device of a quiet user may keep its position.
const RENEW_AFTER_S: u64 = 30 * 86_400;

impl Shard {
    pub(crate) fn on_hello(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        if self.drain.is_some() {
            return self.close(id, CloseCode::DRAINING, "the gateway is going away", cx);
        }
        let hello = match Hello::decode(frame.body()) {
            Ok(hello) => hello,
            Err(_) => {
                let detail = "HELLO is malformed or a field is too long";
                return self.close(id, CloseCode::PROTOCOL_ERROR, detail, cx);
            }
        };
        if !(hello.min_version..=hello.max_version).contains(&VERSION) {
            let detail = "this gateway speaks version 1";
            return self.close(id, CloseCode::VERSION_UNSUPPORTED, detail, cx);
        }
        if !self.admit_hello(id, cx) {
            return;
        }
        // Who never was here needs the store. If it is a user of another shard, that one has about as
        // much to read as this: users are spread evenly.
        if hello.resume_token.is_none() && self.is_reading_enough() {
            self.counters.bump(Counter::LoginsDeferred);
            return self.put_off(id, "too many logins at once", cx);
        }
        // After what costs next to nothing, so that junk takes nobody's place; before anything is kept,
        // and before the token is looked at.
        if let Err(retry_after_ms) = self.admit(cx) {
            self.counters.bump(Counter::LoginsDeferred);
            let close = Close {
                retry_after_ms,
                ..Close::new(CloseCode::OVERLOADED, "too many logins at once")
            };
            return self.close_with(id, &close, cx);
        }
        let Some(conn) = self.conn_mut(id) else {
            return;
        };
        conn.phase = Phase::Authenticating;
        let session = Session {
            user: UserId(0),
            device: hello.device,
            corr: frame.corr(),
            receive_max: hello.receive_max,
            last_seq: hello.last_seq,
            state: hello.state,
            limited: conn.notes.limited,
            resumed: false,
            resume_token: Vec::new(),
            resume_ttl_s: 0,
            expires_unix_s: 0,
            epoch: 0,
            unsent: Vec::new(),
        };
        self.logins.insert(id.index, session);
        cx.fx.list.push(Effect::Authenticate {
            conn: id,
            credentials: Credentials {
                token: hello.token.map(str::to_owned),
                resume_token: hello.resume_token.map(<[u8]>::to_vec),
                device: hello.device,
            },
        });
    }

    pub(crate) fn admit(&mut self, cx: &Turn<'_>) -> Result<(), u32> {
        if self.logins.len() + self.reauths.len() >= self.config.limits.sign_ins_max {
            return Err(self.admission.defer(cx.now.mono_us));
        }
        self.admission.admit(cx.now.mono_us)
    }

    pub(crate) fn on_authenticated(
        &mut self,
        id: ConnId,
        result: Result<Grant, AuthError>,
        cx: &mut Turn<'_>,
    ) {
        if self.reauths.contains_key(&id.index) && self.conn(id).is_some() {
            return self.on_reauthenticated(id, result, cx);
        }
        let waits = |conn: &Conn| conn.phase == Phase::Authenticating;
        if !self.conn(id).is_some_and(waits) {
            return;
        }
        let Some(mut session) = self.logins.remove(&id.index) else {
            return;
        };
        let grant = match result.and_then(|grant| agree(&session, grant)) {
            Ok(grant) => grant,
            Err(error) => {
                self.counters.bump(error.counter());
                let close = Close {
                    retry_after_ms: match error {
                        AuthError::Unavailable => RETRY_AFTER_MS,
                        _ => 0,
                    },
                    ..Close::new(error.close_code(), error.detail())
                };
                return self.close_with(id, &close, cx);
            }
        };
        session.user = grant.user;
        session.device = grant.device;
        session.resumed = grant.resumed;
        session.resume_token = grant.resume_token;
        session.resume_ttl_s = grant.resume_ttl_s;
        session.expires_unix_s = grant.expires_unix_s;
        session.epoch = grant.epoch;
        let home = self.home(session.user);
        if home == self.config.shard {
            return self.begin_session(id, session, cx);
        }
        if let Some(conn) = self.conn_mut(id) {
            conn.phase = Phase::Moving;
            if let Some(traffic) = &mut conn.traffic {
                session.unsent = mem::take(&mut traffic.out);
            }
        }
        self.rest(id);
        cx.fx.list.push(Effect::Move {
            conn: id,
            to: home,
            session,
        });
    }

    pub(crate) fn on_moved(&mut self, id: ConnId) {
        if self
            .conn(id)
            .is_some_and(|conn| conn.phase == Phase::Moving)
        {
            self.counters.bump(Counter::MovedOut);
            let out = self.vacate(id);
            self.pool.put_buffer(out);
        }
    }

    pub(crate) fn on_move_failed(&mut self, id: ConnId, cx: &mut Turn<'_>) {
        self.counters.bump(Counter::MoveFailed);
        self.put_off(id, "the user's shard has no room", cx);
    }

    pub(crate) fn on_adopted(&mut self, id: ConnId, session: Session, cx: &mut Turn<'_>) {
        self.occupy(id, Phase::Moving, cx);
        if self.drain.is_some() {
            return self.close(id, CloseCode::DRAINING, "the gateway is going away", cx);
        }
        self.begin_session(id, session, cx);
    }

    /// On the home shard: an older connection of the device goes, WELCOME is said, and the store is
    /// asked where the device stands, unless that is known. No frame is read before.
    fn begin_session(&mut self, id: ConnId, session: Session, cx: &mut Turn<'_>) {
        let (user, device) = (session.user, session.device);
        self.limiter.release(id.index);
        if let Some(conn) = self.conn_mut(id) {
            conn.notes.limited = session.limited;
        }
        match self.revoked.judge(&session, cx.now.mono_us) {
            Standing::Good => {}
            Standing::Revoked => {
                let error = AuthError::Revoked;
                self.counters.bump(error.counter());
                return self.close(id, error.close_code(), error.detail(), cx);
            }
            Standing::Unsure => {
                self.counters.bump(Counter::LoginsDeferred);
                return self.put_off(id, "too many devices are revoked at once", cx);
            }
        }
        if !self.admit_user(id, user, cx) {
            return;
        }
        let known = self.known(user, device);
        let busy = self.is_store_full() || self.is_reading_enough();
        if busy && !self.is_up_to_date(known, &session, cx) {
            // An older connection of the device lives on.
            self.counters.bump(Counter::LoginsDeferred);
            return self.put_off(id, "the gateway has too much in flight", cx);
        }
        for index in self.chain_list(user).iter() {
            if self.conns[index as usize].device == device {
                let detail = "another connection of this device took over";
                let old = self.id_of(index);
                self.close(old, CloseCode::SESSION_REPLACED, detail, cx);
            }
        }
        // Perhaps of the connection that just ended.
        let known = self.absent.take(user, device);
        self.counters.bump(Counter::LoggedIn);
        if session.resumed {
            self.counters.bump(Counter::Resumed);
        }
        let heartbeat_s = self.config.heartbeat_s;
        let receive_max = session.receive_max.min(self.config.limits.receive_max);
        let visible = self.lane.visible();
        let conn = &mut self.conns[id.index as usize];
        conn.phase = Phase::Loading;
        conn.user = user;
        conn.device = device;
        conn.state = session.state;
        conn.heartbeat_s = heartbeat_s;
        conn.expires_s = expires_s(session.expires_unix_s, cx);
        conn.receive_max = u16::try_from(receive_max).unwrap_or(u16::MAX);
        // A claim beyond everything that exists means no more than everything.
        conn.acked = session.last_seq.min(visible);
        self.link(id.index);
        self.take_debts(id.index, cx.now.mono_us);
        self.welcome(id, &session, cx);
        if self.conn(id).is_none() {
            return;
        }
        match known.filter(|known| self.is_up_to_date(Some(*known), &session, cx)) {
            Some(known) => {
                self.counters.bump(Counter::LoggedInKnown);
                let Known {
                    cursor, siblings, ..
                } = known;
                self.open_session(id, cursor, cursor, siblings, cx);
                self.catch_up(id, visible, cx);
            }
            None => self.ask_cursors(id, cx),
        }
    }

    fn welcome(&mut self, id: ConnId, session: &Session, cx: &mut Turn<'_>) {
        let node = self.config.node.clone();
        let welcome = Welcome {
            version: VERSION,
            user: session.user,
            device: session.device,
            resumed: session.resumed,
            resume_token: &session.resume_token,
            resume_ttl_s: session.resume_ttl_s,
            auth_ttl_s: self.auth_ttl_s(id, cx),
            floor_seq: self.floor_seq(cx),
            receive_max: self.config.limits.requests_max,
            // Bounded by FRAME_BYTES_CEILING.
            max_frame: self.config.limits.frame_bytes_max as u32,
            heartbeat_s: self.config.heartbeat_s,
            heartbeat_min_s: self.config.heartbeat_min_s,
            heartbeat_max_s: self.config.heartbeat_max_s,
            server_us: cx.now.wall_us,
            node: &node,
            reconnect_spread_ms: self.admission.spread_ms(self.sessions),
            ..Welcome::default()
        };
        let corr = session.corr;
        let unsent = &session.unsent;
        self.write(id, cx, |out, encoder| {
            out.extend_from_slice(unsent);
            encoder.welcome(out, corr, &welcome);
        });
    }

    fn ask_cursors(&mut self, id: ConnId, cx: &mut Turn<'_>) {
        let handshake_s = self.config.limits.handshake_ms.div_ceil(1_000);
        let user = self.conns[id.index as usize].user;
        self.wheel.set(id.index, cx.now.mono_s() + handshake_s);
        let cmd = StoreCmd::Cursors { user };
        self.submit(Purpose::Cursors { conn: id }, cmd, cx);
    }

    /// Does what is known of the device, and its own word, answer all that the store would be asked?
    /// Otherwise the store is: what lies between two different positions has to be looked at.
    fn is_up_to_date(&self, known: Option<Known>, session: &Session, cx: &Turn<'_>) -> bool {
        let claimed = session.last_seq.min(self.lane.visible());
        known.is_some_and(|Known { cursor, .. }| {
            let agreed = claimed == cursor || claimed == Seq(0);
            let gap = cursor != Seq(0) && cursor < self.floor_seq(cx);
            agreed && !gap && session.receive_max > 0
        })
    }

    /// The store says where the user's devices stand: the replay begins.
    pub(crate) fn on_cursors(
        &mut self,
        id: ConnId,
        cursors: &[(DeviceId, Seq)],
        cx: &mut Turn<'_>,
    ) {
        let Some(conn) = self.conn(id) else {
            return;
        };
        let (user, device, claimed) = (conn.user, conn.device, conn.acked);
        // What the device acknowledged a moment ago, on its last connection, may not be written yet.
        let unsaved = self.unsaved.cursor(user, device);
        let stored = cursors
            .iter()
            .find(|(other, _)| *other == device)
            .map(|(_, seq)| *seq)
            .max(unsaved);
        let siblings = cursors.iter().any(|(other, _)| *other != device);
        match stored {
            Some(stored) => self.begin_replay(id, stored, siblings, cx),
            // Once it is in it gets copies of what its user's other devices send, here or not: so it
            // is not in before the store knows it.
            None => {
                let cmd = StoreCmd::SetCursors {
                    cursors: vec![(user, device, claimed)],
                };
                let purpose = Purpose::Register { conn: id, siblings };
                self.submit(purpose, cmd, cx);
            }
        }
    }

    /// `stored`: where the device stands by the store's word. Its own is in the connection.
    fn begin_replay(&mut self, id: ConnId, stored: Seq, siblings: bool, cx: &mut Turn<'_>) {
        let floor = self.floor_seq(cx);
        let Some(claimed) = self.conn(id).map(|conn| conn.acked) else {
            return;
        };
        let has = if claimed == Seq(0) { stored } else { claimed };
        // From the lower of the two: between them lie entries that the client has stored and whose
        // acknowledgement got lost; they are passed over, but their senders learn of it.
        let start = stored.min(has);
        if claimed > stored
            && let Some(conn) = self.conn_mut(id)
        {
            conn.notes.replay = Replay::Claims;
        }
        let gap = has != Seq(0) && has < floor;
        // Without a gap the floor is left out of it: SYNCED would tell it to the client as a
        // position, and the same position would be below the floor at the next login.
        let from = if gap { floor } else { start };
        if gap {
            self.write(id, cx, |out, _| put_sync_gap(out, floor));
        }
        self.open_session(id, has, from, siblings, cx);
        self.pull(id, cx);
    }

    /// The store knows a new device, or could not be told.
    pub(crate) fn on_registered(
        &mut self,
        id: ConnId,
        siblings: bool,
        result: Result<(), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let Some(claimed) = self.conn(id).map(|conn| conn.acked) else {
            return;
        };
        match result {
            Ok(()) => self.begin_replay(id, claimed, siblings, cx),
            Err(_) => self.on_no_cursors(id, cx),
        }
    }

    /// The device has everything up to `has`; what comes after `from` is to be looked at.
    fn open_session(&mut self, id: ConnId, has: Seq, from: Seq, siblings: bool, cx: &mut Turn<'_>) {
        let Some(conn) = self.conn_mut(id) else {
            return;
        };
        conn.phase = Phase::Open;
        conn.source = Source::Behind;
        conn.sent = from;
        conn.acked = has;
        // An answer of the store may be older than what a newer device has told since.
        conn.notes.siblings |= siblings;
        let (user, device) = (conn.user, conn.device);
        for index in self.chain_list(user).iter() {
            let other = &mut self.conns[index as usize];
            if other.device != device {
                other.notes.siblings = true;
                self.conns[id.index as usize].notes.siblings = true;
            }
        }
        self.arm_idle(id.index);
        self.presence_changed(user, PresenceState::Offline, cx);
        cx.fx.list.push(Effect::Resume(id));
    }

    pub(crate) fn on_no_cursors(&mut self, id: ConnId, cx: &mut Turn<'_>) {
        let close = Close {
            retry_after_ms: RETRY_AFTER_MS,
            ..Close::new(CloseCode::SERVER_ERROR, "the store did not answer")
        };
        self.close_with(id, &close, cx);
    }

    /// SYNCED renews a position that is older: the store looks through every month from there on, and
    /// one day it would be below the floor although nothing was missed.
    pub(crate) fn renewal_seq(&self, cx: &Turn<'_>) -> Seq {
        let age_s = RENEW_AFTER_S.min(self.config.retention_s / 2);
        Seq(cx.now.wall_us.saturating_sub(age_s * 1_000_000))
    }

    /// The oldest number that the retention keeps.
    pub(crate) fn floor_seq(&self, cx: &Turn<'_>) -> Seq {
        let kept_us = self.config.retention_s.saturating_mul(1_000_000);
        Seq(cx.now.wall_us.saturating_sub(kept_us))
    }
}

/// The authenticator's word must name somebody, and the device the client named.
fn agree(session: &Session, grant: Grant) -> Result<Grant, AuthError> {
    if !grant.user.is_valid() || grant.device == DeviceId(0) {
        return Err(AuthError::Invalid);
    }
    if session.device != DeviceId(0) && session.device != grant.device {
        return Err(AuthError::WrongDevice);
    }
    Ok(grant)
}
