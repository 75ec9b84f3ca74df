//! Devices that are cut off: the connections they have, and those still on their way here.
//!
//! A login that was judged before the revocation may arrive after it, in a move from another shard.
//! So revocations are remembered for longer than a login can take.

use crate::{
    error::AuthError,
    input::Revocation,
    login::Session,
    metrics::Counter,
    shard::{Shard, Turn},
};
use std::collections::VecDeque;

/// Revocations that are remembered. Beyond it the oldest goes, and logins judged before it are put
/// off, whoever they are.
const KEPT_MAX: usize = 1_024;
/// Beyond the time in which a login must end.
const SLACK_US: u64 = 5_000_000;

/// The latest revocations of this shard's users, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Revoked {
    latest: VecDeque<(u64, Revocation)>,
    /// Up to this epoch one was forgotten before its time, which ends at the second number.
    forgotten: (u32, u64),
}

/// What the revocations say of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Good,
    Revoked,
    /// It was judged too long ago to be sure.
    Unsure,
}

impl Revoked {
    fn put(&mut self, revocation: Revocation, now_us: u64, until_us: u64) {
        while self
            .latest
            .front()
            .is_some_and(|(until, _)| *until <= now_us)
        {
            self.latest.pop_front();
        }
        if self.latest.len() >= KEPT_MAX
            && let Some((until_us, oldest)) = self.latest.pop_front()
        {
            self.forgotten = (oldest.epoch, until_us);
        }
        self.latest.push_back((until_us, revocation));
    }

    pub(crate) fn judge(&self, session: &Session, now_us: u64) -> Standing {
        let (forgotten, until_us) = self.forgotten;
        let hits = |(until, it): &(u64, Revocation)| {
            *until > now_us
                && it.user == session.user
                && it.device.is_none_or(|device| device == session.device)
                && session.epoch < it.epoch
        };
        if self.latest.iter().any(hits) {
            Standing::Revoked
        } else if session.epoch < forgotten && now_us < until_us {
            Standing::Unsure
        } else {
            Standing::Good
        }
    }
}

impl Shard {
    pub(crate) fn on_revoke(&mut self, revocation: Revocation, cx: &mut Turn<'_>) {
        let patience_us = u64::from(self.config.limits.handshake_ms) * 1_000 + SLACK_US;
        let now_us = cx.now.mono_us;
        self.revoked
            .put(revocation, now_us, now_us.saturating_add(patience_us));
        for index in self.chain_list(revocation.user).iter() {
            let device = self.conns[index as usize].device;
            if revocation.device.is_none_or(|revoked| revoked == device) {
                let error = AuthError::Revoked;
                self.counters.bump(Counter::RevokedLive);
                let id = self.id_of(index);
                self.close(id, error.close_code(), error.detail(), cx);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portico_wire::{
        ids::{DeviceId, Seq, UserId},
        message::ClientState,
    };

    fn session(user: u64, device: u16, epoch: u32) -> Session {
        Session {
            user: UserId(user),
            device: DeviceId(device),
            corr: 1,
            receive_max: 1,
            last_seq: Seq(0),
            state: ClientState::Foreground,
            resumed: false,
            resume_token: Vec::new(),
            resume_ttl_s: 0,
            expires_unix_s: 0,
            epoch,
            unsent: Vec::new(),
            limited: false,
        }
    }

    fn of(user: u64, device: Option<u16>, epoch: u32) -> Revocation {
        Revocation {
            user: UserId(user),
            device: device.map(DeviceId),
            epoch,
        }
    }

    #[test]
    fn who_was_judged_before_is_refused_and_who_was_judged_after_is_not() {
        let mut revoked = Revoked::default();
        revoked.put(of(7, Some(2), 5), 0, 100);
        revoked.put(of(8, None, 6), 0, 100);
        for (user, device, epoch, standing) in [
            (7, 2, 4, Standing::Revoked),
            (7, 2, 5, Standing::Good),
            (7, 3, 4, Standing::Good),
            (8, 1, 5, Standing::Revoked),
            (8, 9, 0, Standing::Revoked),
            (8, 9, 6, Standing::Good),
            (9, 2, 0, Standing::Good),
        ] {
            let found = revoked.judge(&session(user, device, epoch), 99);
            assert_eq!(found, standing, "{user} {device} {epoch}");
        }
        // After its time nothing is left to arrive.
        assert_eq!(revoked.judge(&session(8, 1, 5), 100), Standing::Good);
    }

    #[test]
    fn what_is_forgotten_early_puts_off_all_that_is_older() {
        let mut revoked = Revoked::default();
        for epoch in 1..=KEPT_MAX as u32 + 2 {
            revoked.put(of(u64::from(epoch), None, epoch), 0, 100);
        }
        assert_eq!(revoked.latest.len(), KEPT_MAX);
        assert_eq!(revoked.judge(&session(99_999, 1, 1), 50), Standing::Unsure);
        assert_eq!(revoked.judge(&session(99_999, 1, 2), 50), Standing::Good);
        assert_eq!(revoked.judge(&session(99_999, 1, 1), 100), Standing::Good);
        assert_eq!(revoked.judge(&session(3, 1, 1), 50), Standing::Revoked);
    }
}
