//! Who may log in.
//!
//! The gateway asks an [`Authenticator`] once per HELLO and believes its answer. The one it ships
//! is [`JwtAuthenticator`]: access tokens are JWTs signed with Ed25519 or ECDSA P-256, and a resume
//! token, which is a MAC of this node's own, spares the signature check on reconnects. Embedders bring their
//! own, or [`StaticAuthenticator`] in tests.
//!
//! # Invariants
//! - One signature algorithm per key: what the token says about itself never selects another one.
//! - A resume token never outlives the login that earned it by more than its time to live: a
//!   resumed login gets the rest of that time, not a new one.
//! - What a revocation ends stays ended, also after a restart, for access and resume tokens alike.
//! - No secret reaches a log line or a `Debug` output.
//!
//! # Does not
//! Read a clock or do I/O when it is asked: that happens on a shard's thread. Keys are kept fresh by
//! a thread of their own ([`KeyKeeper`]), revocations are written by whoever revokes.

mod admin;
mod fetch;
mod jwk;
mod jwt;
mod keys;
mod keystore;
mod resume;
mod revocations;
mod statics;

pub use admin::AdminKey;
pub use keys::{AUTH_KEY_FILE, KeyError, KeyKind, RESUME_KEY_FILE, VerifyingKey};
pub use keystore::{KeyKeeper, KeyStats};
pub use resume::ResumeKey;
pub use revocations::{Revocations, RevokeError};
pub use statics::StaticAuthenticator;

use keystore::{KeyStore, Sources};
use portico_core::{AuthError, Credentials, Grant};
use portico_wire::ids::{DeviceId, UserId};
use resume::Life;
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Decides who a client is.
///
/// Called on the thread of a shard, between two turns of its loop: it must not block, and what it
/// costs (an Ed25519 check is some 50 us) delays the other connections of that shard.
pub trait Authenticator: Send + Sync + 'static {
    /// `now_unix_s` is the gateway's clock; implementations read none of their own.
    fn authenticate(&self, credentials: &Credentials, now_unix_s: u64) -> Result<Grant, AuthError>;

    /// A device has shown a certificate, and no token. May it come in for all this knows, and as of
    /// which [`Grant::epoch`]? Usually it may.
    ///
    /// # Errors
    /// [`AuthError::Revoked`], if it needs a token that is newer than its revocation.
    fn vouch(&self, user: UserId, device: DeviceId) -> Result<u32, AuthError> {
        let _ = (user, device);
        Ok(0)
    }
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
    /// The only `aud` accepted. A token without `aud` is accepted too, unless its key comes from a
    /// set.
    pub audience: String,
    /// The only `iss` accepted, which a token must then have. Empty: any, or none.
    pub issuer: String,
    /// How far the issuer's clock may be off.
    pub clock_skew_s: u64,
    /// The longest life of an access token.
    pub token_ttl_s_max: u64,
    /// How long after a login with an access token a reconnect may do without one.
    pub resume_ttl_s: u32,
    /// Public keys accepted beside the node's own: Ed25519 or P-256 in PEM (SubjectPublicKeyInfo), JSON
    /// Web Keys, or sets of them.
    pub keys: Vec<PathBuf>,
    /// The address of a JSON Web Key Set, empty for none. `https`, or `http` on this machine.
    pub jwks_url: String,
    /// The authorities trusted for it, a PEM file; `None`: those of the system.
    pub jwks_ca: Option<PathBuf>,
    /// How often it is asked.
    pub jwks_refresh_s: u32,
    /// How often at most it is asked for a key that a token names and it had not.
    pub jwks_cooldown_s: u32,
}

impl Default for JwtOptions {
    fn default() -> Self {
        Self {
            audience: "portico".to_owned(),
            issuer: String::new(),
            clock_skew_s: 30,
            token_ttl_s_max: 365 * 86_400,
            resume_ttl_s: 86_400,
            keys: Vec::new(),
            jwks_url: String::new(),
            jwks_ca: None,
            jwks_refresh_s: 300,
            jwks_cooldown_s: 30,
        }
    }
}

impl JwtOptions {
    /// No token lives longer than this: after it, a revocation has nothing to refuse any more.
    #[must_use]
    pub fn revocations_kept_s(&self) -> u64 {
        self.token_ttl_s_max
            .max(self.resume_ttl_s.into())
            .saturating_add(2 * self.clock_skew_s)
    }

    fn rules(&self) -> jwt::Rules {
        jwt::Rules {
            audience: self.audience.clone(),
            issuer: self.issuer.clone(),
            clock_skew_s: self.clock_skew_s,
            ttl_s_max: self.token_ttl_s_max,
        }
    }
}

/// Is this an address that [`JwtOptions::jwks_url`] may be?
#[must_use]
pub fn is_key_url(text: &str) -> bool {
    text.is_empty() || fetch::Url::parse(text).is_some()
}

/// Access tokens signed by keys that are known, and resume tokens made by this node.
#[derive(Debug)]
pub struct JwtAuthenticator {
    keys: Arc<KeyStore>,
    rules: jwt::Rules,
    resume: ResumeKey,
    resume_ttl_s: u32,
    revocations: Arc<Revocations>,
}

impl JwtAuthenticator {
    /// Uses the keys of a data directory and makes what is missing: the directory (mode 0700), the
    /// signing key `auth-key.pem` and the resume key `resume-key` (mode 0600 each). Key files are
    /// read once, and the address is not asked, until [`Self::keep_keys`].
    ///
    /// # Errors
    /// A key file that cannot be read, is readable by other users, or holds no usable key.
    pub fn open(data: &Path, options: &JwtOptions) -> Result<Self, KeyError> {
        keys::create_data_dir(data)?;
        keys::open_signing_key(data)?;
        let sources = Sources::new(Some(data.join(AUTH_KEY_FILE)), options)?;
        let keys = KeyStore::open(sources)?;
        Ok(Self::with(keys, keys::open_resume_key(data)?, options))
    }

    /// Uses the given keys; [`JwtOptions::keys`] is not looked at.
    ///
    /// # Errors
    /// No key, or too many.
    pub fn new(
        verifying: Vec<VerifyingKey>,
        resume: ResumeKey,
        options: &JwtOptions,
    ) -> Result<Self, KeyError> {
        let given = JwtOptions {
            keys: Vec::new(),
            jwks_url: String::new(),
            ..options.clone()
        };
        let keys = KeyStore::new(verifying, Sources::new(None, &given)?)?;
        Ok(Self::with(keys, resume, options))
    }

    fn with(keys: KeyStore, resume: ResumeKey, options: &JwtOptions) -> Self {
        Self {
            keys: Arc::new(keys),
            rules: options.rules(),
            resume,
            resume_ttl_s: options.resume_ttl_s,
            revocations: Arc::default(),
        }
    }

    /// Refuses what these end, too.
    #[must_use]
    pub fn with_revocations(self, revocations: Arc<Revocations>) -> Self {
        Self {
            revocations,
            ..self
        }
    }

    /// Keeps the keys as their files and their address have them, until it is dropped. Returns when
    /// the address has been asked, or after three seconds.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn keep_keys(&self) -> io::Result<KeyKeeper> {
        KeyKeeper::start(self.keys.clone())
    }

    /// Tells about the keys from elsewhere.
    pub fn key_stats(&self) -> impl Fn() -> KeyStats + Send + Sync + 'static {
        let keys = self.keys.clone();
        move || keys.stats()
    }

    /// The keys that access tokens are checked with now.
    #[must_use]
    pub fn keys(&self) -> Vec<VerifyingKey> {
        self.keys.ring().keys().cloned().collect()
    }

    /// `None`: the access token decides.
    fn resumed(
        &self,
        credentials: &Credentials,
        now_unix_s: u64,
    ) -> Option<Result<Grant, AuthError>> {
        let token = credentials.resume_token.as_deref()?;
        let (identity, life) = self.resume.verify(token, now_unix_s)?;
        if !claims_own_device(credentials, identity.device) {
            return None;
        }
        let Some(epoch) = self.revocations.judge(identity, Some(life.issued_unix_s)) else {
            // Unless the device was linked anew since: then it has a token that says so.
            let alone = credentials.token.as_deref().is_none_or(str::is_empty);
            return alone.then_some(Err(AuthError::Revoked));
        };
        let left_s = life.expires_unix_s.saturating_sub(now_unix_s);
        Some(Ok(Grant {
            user: identity.user,
            device: identity.device,
            resumed: true,
            resume_token: token.to_vec(),
            resume_ttl_s: u32::try_from(left_s).unwrap_or(u32::MAX),
            expires_unix_s: life.expires_unix_s,
            epoch,
        }))
    }
}

impl Authenticator for JwtAuthenticator {
    fn authenticate(&self, credentials: &Credentials, now_unix_s: u64) -> Result<Grant, AuthError> {
        if let Some(decided) = self.resumed(credentials, now_unix_s) {
            return decided;
        }
        let Some(token) = credentials.token.as_deref().filter(|text| !text.is_empty()) else {
            return Err(match credentials.resume_token {
                Some(_) => AuthError::ResumeRefused,
                None => AuthError::Invalid,
            });
        };
        let shown = self
            .keys
            .ring()
            .verify(token, &self.rules, now_unix_s)
            .inspect_err(|error| {
                if matches!(error, AuthError::UnknownKey | AuthError::Unavailable) {
                    self.keys.want();
                }
            })?;
        let identity = shown.identity;
        if !claims_own_device(credentials, identity.device) {
            return Err(AuthError::WrongDevice);
        }
        // An issuer whose clock is behind may have dated it before a revocation that it knew of.
        let issued = shown
            .issued_unix_s
            .map(|at| at.saturating_add(self.rules.clock_skew_s));
        let epoch = self
            .revocations
            .judge(identity, issued)
            .ok_or(AuthError::Revoked)?;
        let resume_token = if self.resume_ttl_s == 0 {
            Vec::new()
        } else {
            let life = Life {
                issued_unix_s: now_unix_s,
                expires_unix_s: now_unix_s.saturating_add(u64::from(self.resume_ttl_s)),
            };
            self.resume.issue(identity, life)
        };
        Ok(Grant {
            user: identity.user,
            device: identity.device,
            resumed: false,
            resume_token,
            resume_ttl_s: self.resume_ttl_s,
            expires_unix_s: shown.expires_unix_s,
            epoch,
        })
    }

    fn vouch(&self, user: UserId, device: DeviceId) -> Result<u32, AuthError> {
        let who = Identity {
            user,
            device,
            generation: 0,
        };
        self.revocations.judge(who, None).ok_or(AuthError::Revoked)
    }
}

/// HELLO may leave the device to the token, but not contradict it.
fn claims_own_device(credentials: &Credentials, device: DeviceId) -> bool {
    credentials.device.0 == 0 || credentials.device == device
}

#[cfg(test)]
mod tests;
