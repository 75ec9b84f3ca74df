//! Who may log in.
//!
//! The gateway asks an [`Authenticator`] once per HELLO and believes its answer. The one it ships
//! is [`JwtAuthenticator`]: access tokens are JWTs signed with Ed25519, and a resume token, which
//! is a MAC of this node's own, spares the signature check on reconnects. Embedders bring their
//! own, or [`StaticAuthenticator`] in tests.
//!
//! # Invariants
//! - One signature algorithm: what the token says about itself never selects another one.
//! - A resume token never outlives the login that earned it by more than its time to live: a
//!   resumed login gets the rest of that time, not a new one.
//! - No secret reaches a log line or a `Debug` output.
//!
//! # Does not
//! Read a clock, do I/O after start, or keep state per user: it is called on a shard's thread.

mod jwt;
mod keys;
mod resume;
mod statics;

pub use keys::{AUTH_KEY_FILE, KeyError, RESUME_KEY_FILE, VerifyingKey};
pub use resume::ResumeKey;
pub use statics::StaticAuthenticator;

use portico_core::{AuthError, Credentials, Grant};
use portico_wire::ids::{DeviceId, UserId};
use std::path::{Path, PathBuf};

/// Decides who a client is.
///
/// Called on the thread of a shard, between two turns of its loop: it must not block, and what it
/// costs (an Ed25519 check is some 50 us) delays the other connections of that shard.
pub trait Authenticator: Send + Sync + 'static {
    /// `now_unix_s` is the gateway's clock; implementations read none of their own.
    fn authenticate(&self, credentials: &Credentials, now_unix_s: u64) -> Result<Grant, AuthError>;
}

/// Someone who proved to be this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    user: UserId,
    device: DeviceId,
    /// Counts how often the device was linked anew. Carried along so that a revocation can name
    /// the generations it ends.
    generation: u32,
}

/// What may be chosen about tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtOptions {
    /// The only `aud` accepted. A token without `aud` is accepted too.
    pub audience: String,
    /// How far the issuer's clock may be off.
    pub clock_skew_s: u64,
    /// How long after a login with an access token a reconnect may do without one.
    pub resume_ttl_s: u32,
    /// Ed25519 public keys (PEM, SubjectPublicKeyInfo) accepted beside the node's own.
    pub keys: Vec<PathBuf>,
}

impl Default for JwtOptions {
    fn default() -> Self {
        Self {
            audience: "portico".to_owned(),
            clock_skew_s: 30,
            resume_ttl_s: 86_400,
            keys: Vec::new(),
        }
    }
}

/// Access tokens signed with Ed25519, and resume tokens made by this node.
#[derive(Debug)]
pub struct JwtAuthenticator {
    verifier: jwt::Verifier,
    resume: ResumeKey,
    resume_ttl_s: u32,
}

impl JwtAuthenticator {
    /// Uses the keys of a data directory and makes what is missing: the directory (mode 0700), the
    /// signing key `auth-key.pem` and the resume key `resume-key` (mode 0600 each).
    ///
    /// # Errors
    /// A key file that cannot be read, is readable by other users, or holds no Ed25519 key.
    pub fn open(data: &Path, options: &JwtOptions) -> Result<Self, KeyError> {
        keys::create_data_dir(data)?;
        let mut verifying = vec![keys::open_signing_key(data)?];
        for path in &options.keys {
            verifying.push(VerifyingKey::read(path)?);
        }
        Self::new(verifying, keys::open_resume_key(data)?, options)
    }

    /// Uses the given keys; [`JwtOptions::keys`] is not looked at.
    ///
    /// # Errors
    /// No key, or more than [`VerifyingKey::COUNT_MAX`].
    pub fn new(
        verifying: Vec<VerifyingKey>,
        resume: ResumeKey,
        options: &JwtOptions,
    ) -> Result<Self, KeyError> {
        if verifying.is_empty() || verifying.len() > VerifyingKey::COUNT_MAX {
            return Err(KeyError::Count {
                count: verifying.len(),
            });
        }
        let audience = options.audience.clone();
        Ok(Self {
            verifier: jwt::Verifier::new(verifying, audience, options.clock_skew_s),
            resume,
            resume_ttl_s: options.resume_ttl_s,
        })
    }

    /// The keys that access tokens are checked with.
    #[must_use]
    pub fn keys(&self) -> &[VerifyingKey] {
        self.verifier.keys()
    }

    fn resumed(&self, credentials: &Credentials, now_unix_s: u64) -> Option<Grant> {
        let token = credentials.resume_token.as_deref()?;
        let (identity, expires_unix_s) = self.resume.verify(token, now_unix_s)?;
        if !claims_own_device(credentials, identity.device) {
            return None;
        }
        let left_s = expires_unix_s.saturating_sub(now_unix_s);
        Some(Grant {
            user: identity.user,
            device: identity.device,
            resumed: true,
            resume_token: token.to_vec(),
            resume_ttl_s: u32::try_from(left_s).unwrap_or(u32::MAX),
        })
    }
}

impl Authenticator for JwtAuthenticator {
    fn authenticate(&self, credentials: &Credentials, now_unix_s: u64) -> Result<Grant, AuthError> {
        if let Some(grant) = self.resumed(credentials, now_unix_s) {
            return Ok(grant);
        }
        let Some(token) = credentials.token.as_deref().filter(|text| !text.is_empty()) else {
            return Err(match credentials.resume_token {
                Some(_) => AuthError::ResumeRefused,
                None => AuthError::Invalid,
            });
        };
        let identity = self.verifier.verify(token, now_unix_s)?;
        if !claims_own_device(credentials, identity.device) {
            return Err(AuthError::WrongDevice);
        }
        let resume_token = if self.resume_ttl_s == 0 {
            Vec::new()
        } else {
            let expires_unix_s = now_unix_s.saturating_add(u64::from(self.resume_ttl_s));
            self.resume.issue(identity, expires_unix_s)
        };
        Ok(Grant {
            user: identity.user,
            device: identity.device,
            resumed: false,
            resume_token,
            resume_ttl_s: self.resume_ttl_s,
        })
    }
}

/// HELLO may leave the device to the token, but not contradict it.
fn claims_own_device(credentials: &Credentials, device: DeviceId) -> bool {
    credentials.device.0 == 0 || credentials.device == device
}

#[cfg(test)]
mod tests;
