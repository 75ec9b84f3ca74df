//! From HELLO to an open session: sign-in, the move to the home shard, takeover, the cursor.

use crate::{
    conn::{ConnId, Phase, Source},
    effects::Effect,
    error::AuthError,
    input::{Credentials, Grant},
    metrics::Counter,
    shard::{Purpose, Shard, Turn},
    store::StoreCmd,
};
use portico_wire::{
    CloseCode, Frame, VERSION,
    encode::put_sync_gap,
    ids::{DeviceId, Seq, UserId},
    message::{ClientState, Close, Hello, Welcome},
};
use std::{fmt, mem};

/// A session between HELLO and SYNCED: one plain value that may cross shards.
#[derive(Clone, PartialEq, Eq)]
pub struct Session {
    pub user: UserId,
    pub device: DeviceId,
    /// HELLO's `corr`.
    pub corr: u32,
    pub receive_max: u32,
    pub last_seq: Seq,
    pub state: ClientState,
    pub resumed: bool,
    pub resume_token: Vec<u8>,
    pub resume_ttl_s: u32,
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
            .field("resumed", &self.resumed)
            .field("unsent", &self.unsent.len())
            .finish_non_exhaustive()
    }
}

/// A client that was refused for our own trouble comes back after this.
const RETRY_AFTER_MS: u32 = 1_000;

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
        let Some(conn) = self.conn_mut(id) else {
            return;
        };
        conn.phase = Phase::Authenticating;
        conn.login = Some(Box::new(Session {
            user: UserId(0),
            device: hello.device,
            corr: frame.corr(),
            receive_max: hello.receive_max,
            last_seq: hello.last_seq,
            state: hello.state,
            resumed: false,
            resume_token: Vec::new(),
            resume_ttl_s: 0,
            unsent: Vec::new(),
        }));
        cx.fx.list.push(Effect::Authenticate {
            conn: id,
            credentials: Credentials {
                token: hello.token.map(str::to_owned),
                resume_token: hello.resume_token.map(<[u8]>::to_vec),
                device: hello.device,
            },
        });
    }

    pub(crate) fn on_authenticated(
        &mut self,
        id: ConnId,
        result: Result<Grant, AuthError>,
        cx: &mut Turn<'_>,
    ) {
        let Some(conn) = self.conn_mut(id) else {
            return;
        };
        if conn.phase != Phase::Authenticating {
            return;
        }
        let Some(mut session) = conn.login.take() else {
            return;
        };
        let grant = match result.and_then(|grant| agree(&session, grant)) {
            Ok(grant) => grant,
            Err(error) => {
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
        let home = self.home(session.user);
        if home == self.config.shard {
            return self.begin_session(id, session, cx);
        }
        if let Some(conn) = self.conn_mut(id) {
            conn.phase = Phase::Moving;
            session.unsent = mem::take(&mut conn.out);
        }
        cx.fx.list.push(Effect::Move {
            conn: id,
            to: home,
            session: *session,
        });
    }

    pub(crate) fn on_moved(&mut self, id: ConnId) {
        if self
            .conn(id)
            .is_some_and(|conn| conn.phase == Phase::Moving)
        {
            self.counters.bump(Counter::MovedOut);
            let out = self.vacate(id);
            self.pool.put(out);
        }
    }

    pub(crate) fn on_move_failed(&mut self, id: ConnId, cx: &mut Turn<'_>) {
        self.counters.bump(Counter::MoveFailed);
        let close = Close {
            retry_after_ms: RETRY_AFTER_MS,
            ..Close::new(CloseCode::OVERLOADED, "the user's shard has no room")
        };
        self.close_with(id, &close, cx);
    }

    pub(crate) fn on_adopted(&mut self, id: ConnId, session: Session, cx: &mut Turn<'_>) {
        self.occupy(id, Phase::Moving, cx);
        if self.drain.is_some() {
            return self.close(id, CloseCode::DRAINING, "the gateway is going away", cx);
        }
        self.begin_session(id, Box::new(session), cx);
    }

    /// On the home shard: an older connection of the device goes, WELCOME is said, and the store is
    /// asked where the device stands. No frame is read until that is known.
    fn begin_session(&mut self, id: ConnId, mut session: Box<Session>, cx: &mut Turn<'_>) {
        if self.is_store_full() {
            // Each login asks the store. An older connection of the device lives on.
            let close = Close {
                retry_after_ms: RETRY_AFTER_MS,
                ..Close::new(CloseCode::OVERLOADED, "the gateway has too much in flight")
            };
            return self.close_with(id, &close, cx);
        }
        let (user, device) = (session.user, session.device);
        for index in self.chain_list(user).iter() {
            if self.conns[index as usize].device == device {
                let detail = "another connection of this device took over";
                let old = self.id_of(index);
                self.close(old, CloseCode::SESSION_REPLACED, detail, cx);
            }
        }
        self.link(user, id.index);
        self.counters.bump(Counter::LoggedIn);
        if session.resumed {
            self.counters.bump(Counter::Resumed);
        }
        let heartbeat_s = self.config.heartbeat_s;
        let receive_max = session.receive_max.min(self.config.limits.receive_max);
        let handshake_s = self.config.limits.handshake_ms.div_ceil(1_000);
        let floor_seq = self.floor_seq(cx);
        let conn = &mut self.conns[id.index as usize];
        conn.phase = Phase::Loading;
        conn.user = user;
        conn.device = device;
        conn.state = session.state;
        conn.heartbeat_s = heartbeat_s;
        conn.receive_max = u16::try_from(receive_max).unwrap_or(u16::MAX);
        let node = self.config.node.clone();
        let welcome = Welcome {
            version: VERSION,
            user,
            device,
            resumed: session.resumed,
            resume_token: &session.resume_token,
            resume_ttl_s: session.resume_ttl_s,
            floor_seq,
            receive_max: self.config.limits.requests_max,
            // Bounded by FRAME_BYTES_CEILING.
            max_frame: self.config.limits.frame_bytes_max as u32,
            heartbeat_s,
            heartbeat_min_s: self.config.heartbeat_min_s,
            heartbeat_max_s: self.config.heartbeat_max_s,
            server_us: cx.now.wall_us,
            node: &node,
            ..Welcome::default()
        };
        let corr = session.corr;
        let unsent = mem::take(&mut session.unsent);
        if !unsent.is_empty() {
            self.write(id, cx, |out, _| out.extend_from_slice(&unsent));
        }
        self.write(id, cx, |out, encoder| encoder.welcome(out, corr, &welcome));
        if let Some(conn) = self.conn_mut(id) {
            conn.login = Some(session);
            self.wheel.set(id.index, cx.now.mono_s() + handshake_s);
            let cmd = StoreCmd::Cursors { user };
            self.submit(Purpose::Cursors { conn: id }, cmd, cx);
        }
    }

    /// The store says where the user's devices stand: the replay begins.
    pub(crate) fn on_cursors(
        &mut self,
        id: ConnId,
        cursors: &[(DeviceId, Seq)],
        cx: &mut Turn<'_>,
    ) {
        let floor = self.floor_seq(cx);
        let visible = self.lane.visible();
        let Some(conn) = self.conn(id) else {
            return;
        };
        let (user, device) = (conn.user, conn.device);
        // What the device acknowledged a moment ago, on its last connection, may not be written yet.
        let unsaved = self.unsaved.cursor(user, device);
        let stored = cursors
            .iter()
            .find(|(other, _)| *other == device)
            .map(|(_, seq)| *seq)
            .max(unsaved);
        let Some(conn) = self.conn_mut(id) else {
            return;
        };
        let Some(session) = conn.login.as_mut() else {
            return;
        };
        // A claim beyond everything that exists means no more than everything.
        session.last_seq = session.last_seq.min(visible);
        let claimed = session.last_seq;
        let has = match stored {
            Some(stored) if claimed == Seq(0) => stored,
            _ => claimed,
        };
        // From the lower of the two: between them lie entries that the client has stored and whose
        // acknowledgement got lost; they are passed over, but their senders learn of it.
        let start = stored.map_or(has, |stored| stored.min(has));
        let gap = has != Seq(0) && has < floor;
        conn.phase = Phase::Open;
        conn.source = Source::Behind;
        // Without a gap the floor is left out of it: SYNCED would tell it to the client as a
        // position, and the same position would be below the floor at the next login.
        conn.sent = if gap { floor } else { start };
        conn.notes.siblings = cursors.iter().any(|(other, _)| *other != device);
        if gap {
            self.write(id, cx, |out, _| put_sync_gap(out, floor));
        }
        match stored {
            // From now on it gets copies of what its user's other devices send, here or not, so
            // this does not wait for the next flush.
            None => self.save_new_device(user, device, claimed, cx),
            Some(stored) if claimed > stored => self.save_cursor(user, device, claimed, cx),
            Some(_) => {}
        }
        if self.conn(id).is_none() {
            return;
        }
        for index in self.chain_list(user).iter() {
            let other = &mut self.conns[index as usize];
            if other.device != device {
                other.notes.siblings = true;
                self.conns[id.index as usize].notes.siblings = true;
            }
        }
        self.arm_idle(id.index);
        cx.fx.list.push(Effect::Resume(id));
        self.pull(id, cx);
    }

    pub(crate) fn on_no_cursors(&mut self, id: ConnId, cx: &mut Turn<'_>) {
        let close = Close {
            retry_after_ms: RETRY_AFTER_MS,
            ..Close::new(CloseCode::SERVER_ERROR, "the store did not answer")
        };
        self.close_with(id, &close, cx);
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
