//! How long a session may last: until its token runs out, which REAUTH puts off with a newer one.
//!
//! The time stands in the connection, and whatever sets its deadline heeds it: there is no timer
//! for it. A token that does not do costs its sender an answer; the session goes on as long as the
//! one before it lasts.

use crate::{
    conn::{ConnId, Phase},
    effects::Effect,
    error::{AuthError, Refusal},
    input::{Credentials, Grant},
    metrics::Counter,
    shard::{Shard, Turn},
};
use portico_wire::{CloseCode, Frame, Op, encode, message::Reauth};

/// Who sends a second REAUTH before the first is answered may ask again then.
const PENDING_RETRY_MS: u32 = 100;

impl Shard {
    pub(crate) fn on_reauth(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let Ok(reauth) = Reauth::decode(frame.body()) else {
            return self.on_malformed(id, frame, cx);
        };
        let Some(device) = self.conn(id).map(|conn| conn.device) else {
            return;
        };
        // One at a time, at the pace of logins, since it costs what a login costs.
        let admitted = if self.reauths.contains_key(&id.index) {
            Err(Refusal::TooManyLogins(PENDING_RETRY_MS))
        } else {
            self.admit(cx).map_err(Refusal::TooManyLogins)
        };
        if let Err(why) = admitted {
            return self.refuse(id, frame.is_request(), frame.corr(), frame.op(), why, cx);
        }
        self.reauths.insert(id.index, frame.corr());
        cx.fx.list.push(Effect::Authenticate {
            conn: id,
            credentials: Credentials {
                token: Some(reauth.token.to_owned()),
                resume_token: None,
                device,
            },
        });
    }

    /// The authenticator's word on a REAUTH.
    pub(crate) fn on_reauthenticated(
        &mut self,
        id: ConnId,
        result: Result<Grant, AuthError>,
        cx: &mut Turn<'_>,
    ) {
        let Some(corr) = self.reauths.remove(&id.index) else {
            return;
        };
        let Some(conn) = self.conn(id) else {
            return;
        };
        let (user, device, before_s) = (conn.user, conn.device, conn.expires_s);
        let agreed = result.and_then(|grant| {
            if grant.user != user {
                return Err(AuthError::WrongUser);
            }
            if grant.device != device {
                return Err(AuthError::WrongDevice);
            }
            Ok(grant)
        });
        let grant = match agreed {
            Ok(grant) => grant,
            Err(error) => {
                self.counters.bump(error.counter());
                if error == AuthError::Revoked {
                    return self.close(id, error.close_code(), error.detail(), cx);
                }
                let op = Op::Reauth as u8;
                self.refuse(id, corr != 0, corr, op, Refusal::Token(error), cx);
                return self.note_useless(id, cx);
            }
        };
        let expires_s = expires_s(grant.expires_unix_s, cx);
        let extends = before_s != 0 && (expires_s == 0 || expires_s > before_s);
        if extends {
            self.counters.bump(Counter::Renewed);
            if let Some(conn) = self.conn_mut(id) {
                conn.expires_s = expires_s;
            }
            self.arm_idle(id.index);
        }
        if corr != 0 {
            let left_s = self.auth_ttl_s(id, cx);
            self.write(id, cx, |out, _| encode::put_done(out, corr, left_s));
        }
        if !extends {
            self.note_useless(id, cx);
        }
    }

    /// A signature was checked for nothing: counted as a malformed body is, because too many of them
    /// are an attack or a loop.
    fn note_useless(&mut self, id: ConnId, cx: &mut Turn<'_>) {
        let minute = cx.now.mono_s() / 60;
        if self
            .conn_mut(id)
            .is_some_and(|conn| conn.malformed.note(minute))
        {
            let detail = "too many tokens that change nothing";
            self.close(id, CloseCode::PROTOCOL_ERROR, detail, cx);
        }
    }

    /// Seconds until the connection's token runs out; 0 = never.
    pub(crate) fn auth_ttl_s(&self, id: ConnId, cx: &Turn<'_>) -> u32 {
        match self.conn(id).map_or(0, |conn| conn.expires_s) {
            0 => 0,
            at_s => at_s.saturating_sub(cx.now.mono_s()).max(1),
        }
    }

    /// The token of a connection has run out, if it has.
    pub(crate) fn is_expired(&self, index: u32, now_s: u32) -> bool {
        let conn = &self.conns[index as usize];
        conn.phase == Phase::Open && conn.expires_s != 0 && now_s >= conn.expires_s
    }
}

/// The second of the shard's own clock at which a token runs out; 0 = never.
pub(crate) fn expires_s(expires_unix_s: u64, cx: &Turn<'_>) -> u32 {
    if expires_unix_s == 0 {
        return 0;
    }
    let left_s = expires_unix_s.saturating_sub(cx.now.wall_us / 1_000_000);
    let at_s = u64::from(cx.now.mono_s()).saturating_add(left_s);
    // Beyond 136 years of uptime it is never. Second 0 would be as well, and is not reached.
    u32::try_from(at_s).unwrap_or(0).max(u32::from(at_s == 0))
}
