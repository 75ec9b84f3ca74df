//! A session lasts as long as its token: when to ask the owner for another, and what becomes of it.

use super::{Session, config::Now, event::Event};
use portico_wire::{ErrorCode, code::ErrorReaction, encode::Encoder, message::Reauth};

/// The part of a token's life that is left when the owner is asked, and the most of it.
const LEFT_DIVISOR: u32 = 5;
const LEFT_MAX_S: u32 = 300;
/// After a server that put a renewal off without saying for how long.
const AGAIN_S: u32 = 1;

/// When the owner is asked for a token, and the request that carries the last one it gave. Seconds of
/// the monotonic clock; 0: never, and none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Renewal {
    ask_at_s: u32,
    ends_at_s: u32,
    corr: u32,
}

impl Renewal {
    /// The server says how long the session lasts; 0 = without an end.
    pub(super) fn lasts(now: Now, ttl_s: u32) -> Self {
        if ttl_s == 0 {
            return Self::default();
        }
        let left_s = (ttl_s / LEFT_DIVISOR).min(LEFT_MAX_S);
        Self {
            ask_at_s: now_s(now).saturating_add(ttl_s - left_s),
            ends_at_s: now_s(now).saturating_add(ttl_s),
            corr: 0,
        }
    }

    const fn is_for(self, corr: u32) -> bool {
        self.corr != 0 && self.corr == corr
    }

    pub(super) const fn next_us(self) -> Option<u64> {
        match self.ask_at_s {
            0 => None,
            at_s => Some(at_s as u64 * 1_000_000),
        }
    }

    pub(super) fn tell(&mut self, now: Now, on_event: &mut dyn FnMut(Event<'_>)) {
        if self.ask_at_s != 0 && self.ask_at_s <= now_s(now) {
            self.ask_at_s = 0;
            let in_s = self.ends_at_s.saturating_sub(now_s(now));
            on_event(Event::TokenExpiring { in_s });
        }
    }
}

impl Session {
    pub(super) fn renewal(&self) -> Renewal {
        self.rare
            .as_deref()
            .map_or_else(Renewal::default, |rare| rare.renewal)
    }

    pub(super) fn set_renewal(&mut self, renewal: Renewal) {
        if renewal != Renewal::default() {
            self.rare.get_or_insert_default().renewal = renewal;
        } else if let Some(rare) = &mut self.rare {
            rare.renewal = renewal;
            self.drop_rare_if_empty();
        }
    }

    /// DONE has arrived. `true`: for a renewal.
    pub(super) fn renewal_done(
        &mut self,
        now: Now,
        corr: u32,
        ttl_s: u32,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> bool {
        if !self.renewal().is_for(corr) {
            return false;
        }
        self.set_renewal(if self.settings.tell_expiry {
            Renewal::lasts(now, ttl_s)
        } else {
            Renewal::default()
        });
        on_event(Event::Renewed { ttl_s });
        true
    }

    /// ERROR has arrived. `true`: for a renewal.
    pub(super) fn renewal_refused(
        &mut self,
        now: Now,
        corr: u32,
        (code, retry_after_ms): (ErrorCode, u32),
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> bool {
        let mut renewal = self.renewal();
        if !renewal.is_for(corr) {
            return false;
        }
        renewal.corr = 0;
        match code.reaction() {
            ErrorReaction::RetryPlain | ErrorReaction::RetryMarked => {
                let after_s = retry_after_ms.div_ceil(1_000).max(AGAIN_S);
                renewal.ask_at_s = now_s(now).saturating_add(after_s);
            }
            ErrorReaction::Mend | ErrorReaction::SignIn => {
                on_event(Event::RenewalRefused { code });
            }
        }
        self.set_renewal(renewal);
        true
    }

    /// A new access token of the same user and device: for the next login, and for the session as it
    /// is, which [`Event::Renewed`] tells to last longer. The answer to [`Event::TokenExpiring`].
    pub fn renew(&mut self, now: Now, token: impl Into<String>) {
        let token = token.into();
        if self.phase.is_welcome() && self.renewal().corr == 0 && !token.is_empty() {
            self.put_last_ack();
            let corr = self.requests.corr();
            self.set_renewal(Renewal {
                corr,
                ..self.renewal()
            });
            let reauth = Reauth { token: &token };
            Encoder::new().reauth(&mut self.output, corr, &reauth);
        }
        if self.settings.keep_token || !self.phase.is_welcome() {
            self.set_token(token);
        }
        self.pump(now, None);
    }
}

const fn now_s(now: Now) -> u32 {
    (now.mono_us / 1_000_000) as u32
}
