//! An authenticator with a fixed list, for tests.

use super::Authenticator;
use portico_core::{AuthError, Credentials, Grant};
use portico_wire::ids::{DeviceId, UserId};
use std::{collections::HashMap, fmt};

/// Accepts the tokens it was told, each for one device. **For tests of embedders**: tokens never
/// expire, are compared in plain, and there is no resume token.
#[derive(Clone, Default)]
pub struct StaticAuthenticator {
    tokens: HashMap<String, (UserId, DeviceId)>,
}

impl StaticAuthenticator {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on `token` logs in this device.
    #[must_use]
    pub fn allow(mut self, token: impl Into<String>, user: UserId, device: DeviceId) -> Self {
        self.tokens.insert(token.into(), (user, device));
        self
    }
}

impl Authenticator for StaticAuthenticator {
    fn authenticate(&self, credentials: &Credentials, _: u64) -> Result<Grant, AuthError> {
        let token = credentials.token.as_deref().ok_or(AuthError::Invalid)?;
        let (user, device) = *self.tokens.get(token).ok_or(AuthError::Invalid)?;
        if !super::claims_own_device(credentials, device) {
            return Err(AuthError::WrongDevice);
        }
        Ok(Grant {
            user,
            device,
            resumed: false,
            resume_token: Vec::new(),
            resume_ttl_s: 0,
            ..Grant::default()
        })
    }
}

impl fmt::Debug for StaticAuthenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StaticAuthenticator({} tokens)", self.tokens.len())
    }
}
