//! Keys and revocations of a gateway that serves.

use super::store::Store;
use crate::{
    Failure,
    admin::{Denial, Wish},
    config::Config,
};
use portico_gateway::{
    AdminKey, Authenticator, Control, Gateway, JwtAuthenticator, KeyKeeper, KeyStats, Revocations,
};
use portico_wire::ids::{DeviceId, UserId};
use signal_hook::{consts::SIGHUP, flag};
use std::{
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

/// Everything that judges tokens.
#[derive(Debug)]
pub(super) struct Tokens {
    authenticator: Arc<JwtAuthenticator>,
    revocations: Arc<Revocations>,
    admin: Arc<AdminKey>,
}

impl Tokens {
    /// Reads the keys, and makes those of the data directory if they are missing.
    pub(super) fn open(config: &Config) -> Result<Keys, Failure> {
        let data = &config.server.data;
        let authenticator = JwtAuthenticator::open(data, &config.auth).map_err(Failure::runtime)?;
        let admin = AdminKey::open(data).map_err(Failure::runtime)?;
        Ok(Keys {
            authenticator,
            admin,
        })
    }

    pub(super) fn authenticator(&self) -> Arc<dyn Authenticator> {
        self.authenticator.clone()
    }

    /// From now on keys are read again when they change, and on SIGHUP.
    pub(super) fn keep_keys(&self) -> Result<KeyKeeper, Failure> {
        let keeper = self.authenticator.keep_keys().map_err(Failure::runtime)?;
        flag::register(SIGHUP, keeper.reload_flag()).map_err(Failure::runtime)?;
        Ok(keeper)
    }

    /// What operators may ask of it while it serves.
    pub(super) fn desk(&self, gateway: &Gateway) -> Desk {
        Desk {
            keys: Box::new(self.authenticator.key_stats()),
            revocations: self.revocations.clone(),
            admin: self.admin.clone(),
            control: gateway.control(),
        }
    }
}

/// Keys without a store.
#[derive(Debug)]
pub(super) struct Keys {
    authenticator: JwtAuthenticator,
    admin: AdminKey,
}

impl Keys {
    /// Reads what has been revoked.
    pub(super) fn with_revocations(
        self,
        config: &Config,
        store: &Store,
    ) -> Result<Tokens, Failure> {
        let kept_s = config.auth.revocations_kept_s();
        let revocations =
            Revocations::open(store.records(), kept_s, unix_s()).map_err(|error| {
                Failure::Runtime(format!("the store did not say who is revoked: {error}"))
            })?;
        let revocations = Arc::new(revocations);
        Ok(Tokens {
            authenticator: Arc::new(self.authenticator.with_revocations(revocations.clone())),
            revocations,
            admin: Arc::new(self.admin),
        })
    }
}

/// Where the admin port's requests about tokens end.
pub(super) struct Desk {
    keys: Box<dyn Fn() -> KeyStats + Send + Sync>,
    revocations: Arc<Revocations>,
    admin: Arc<AdminKey>,
    control: Control,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl Desk {
    pub(super) fn keys(&self) -> KeyStats {
        (self.keys)()
    }

    /// Waits for the store.
    pub(super) fn grant(&self, wish: &Wish<'_>) -> Result<String, Denial> {
        if !self
            .admin
            .allows(wish.request, wish.authorization, unix_s())
        {
            return Err(Denial::Unauthorised);
        }
        let (user, device) = (UserId(wish.user), wish.device.map(DeviceId));
        let revoked = self.revocations.revoke(user, device, unix_s());
        let (generation, revocation) =
            revoked.map_err(|error| Denial::NotNow(error.to_string()))?;
        self.control.revoke(revocation);
        tracing::info!(
            user = wish.user,
            device = wish.device,
            generation,
            "revoked on an operator's word"
        );
        Ok(format!("{{\"generation\":{generation}}}\n"))
    }
}

/// Seconds since 1970. A clock before that makes every token one of the future.
fn unix_s() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}
