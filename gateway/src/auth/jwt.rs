//! Access tokens: JWTs signed with Ed25519.
//!
//! The `jsonwebtoken` crate takes the token apart and pins the algorithm; the signature is checked
//! by `ring` through a provider of our own, so that no second cryptography library is built. Times
//! and audience are judged here, against the clock that the caller gives.

use super::{Identity, VerifyingKey};
use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, EncodingKey, Validation,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    errors::{ErrorKind, Result as JwtResult},
    signature::{Error as SignatureError, Verifier as VerifySignature},
};
use portico_core::AuthError;
use portico_wire::{
    ids::{DeviceId, UserId},
    limits::TOKEN_BYTES_MAX,
};
use serde::Deserialize;
use std::fmt;

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn names(&self, wanted: &str) -> bool {
        match self {
            Self::One(name) => name == wanted,
            Self::Many(names) => names.iter().any(|name| name == wanted),
        }
    }
}

/// What a token must say. Other claims are allowed and ignored; a claim that is there twice makes
/// the token invalid.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    dev: u16,
    #[serde(default, rename = "gen")]
    generation: u32,
    exp: u64,
    nbf: Option<u64>,
    iat: Option<u64>,
    aud: Option<Audience>,
}

/// Checks tokens against a fixed set of keys.
pub(super) struct Verifier {
    keys: Vec<(VerifyingKey, DecodingKey)>,
    listed: Vec<VerifyingKey>,
    audience: String,
    clock_skew_s: u64,
    signature_only: Validation,
}

impl Verifier {
    pub(super) fn new(keys: Vec<VerifyingKey>, audience: String, clock_skew_s: u64) -> Self {
        // Fails when the process has a provider already, an embedder's for example. Then that one
        // checks the signatures: every provider takes the raw 32 bytes of an Ed25519 key.
        let _ = PROVIDER.install_default();
        let mut signature_only = Validation::new(Algorithm::EdDSA);
        signature_only.required_spec_claims.clear();
        signature_only.validate_exp = false;
        signature_only.validate_aud = false;
        Self {
            keys: keys
                .iter()
                .map(|key| (key.clone(), DecodingKey::from_ed_der(key.raw())))
                .collect(),
            listed: keys,
            audience,
            clock_skew_s,
            signature_only,
        }
    }

    pub(super) fn keys(&self) -> &[VerifyingKey] {
        &self.listed
    }

    pub(super) fn verify(&self, token: &str, now_unix_s: u64) -> Result<Identity, AuthError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::Invalid);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| AuthError::Invalid)?;
        // Only a reader that understands what is critical may accept it; this one knows nothing.
        if header.alg != Algorithm::EdDSA || header.crit.is_some() {
            return Err(AuthError::Invalid);
        }
        let kid = header.kid.as_deref();
        // Without a key id every key may have signed it; there are at most COUNT_MAX.
        let claims = self
            .keys
            .iter()
            .filter(|(key, _)| kid.is_none_or(|kid| kid == key.kid()))
            .find_map(|(_, key)| {
                jsonwebtoken::decode::<Claims>(token, key, &self.signature_only).ok()
            })
            .ok_or(AuthError::Invalid)?
            .claims;
        self.judge(&claims, now_unix_s)
    }

    fn judge(&self, claims: &Claims, now_unix_s: u64) -> Result<Identity, AuthError> {
        let latest = now_unix_s.saturating_add(self.clock_skew_s);
        if claims.nbf.is_some_and(|from| from > latest)
            || claims.iat.is_some_and(|at| at > latest)
            || claims
                .aud
                .as_ref()
                .is_some_and(|aud| !aud.names(&self.audience))
        {
            return Err(AuthError::Invalid);
        }
        let user = canonical_user(&claims.sub).ok_or(AuthError::Invalid)?;
        if claims.dev == 0 {
            return Err(AuthError::Invalid);
        }
        // Last, so that Expired means: this was a good token once, fetch a fresh one.
        if claims.exp.saturating_add(self.clock_skew_s) <= now_unix_s {
            return Err(AuthError::Expired);
        }
        Ok(Identity {
            user,
            device: DeviceId(claims.dev),
            generation: claims.generation,
        })
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("keys", &self.listed)
            .field("audience", &self.audience)
            .field("clock_skew_s", &self.clock_skew_s)
            .finish_non_exhaustive()
    }
}

/// One spelling per user, so that two different `sub` texts are two different users everywhere
/// they are compared.
fn canonical_user(text: &str) -> Option<UserId> {
    let user = UserId(text.parse().ok()?);
    (user.is_valid() && user.to_string() == text).then_some(user)
}

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: no_signer,
    verifier_factory: ed25519_verifier,
    // Only JSON Web Keys need them, and no key comes from a token here.
    key_utils: KeyUtils::new_unimplemented(),
};

fn no_signer(_: &Algorithm, _: &EncodingKey) -> JwtResult<Box<dyn JwtSigner>> {
    Err(ErrorKind::UnsupportedAlgorithm.into())
}

fn ed25519_verifier(algorithm: &Algorithm, key: &DecodingKey) -> JwtResult<Box<dyn JwtVerifier>> {
    if *algorithm != Algorithm::EdDSA || key.family() != AlgorithmFamily::Ed {
        return Err(ErrorKind::UnsupportedAlgorithm.into());
    }
    Ok(Box::new(Ed25519(key.try_get_as_bytes()?.to_vec())))
}

/// A raw Ed25519 public key.
struct Ed25519(Vec<u8>);

impl VerifySignature<Vec<u8>> for Ed25519 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, &self.0)
            .verify(message, signature)
            .map_err(|_| SignatureError::new())
    }
}

impl JwtVerifier for Ed25519 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}
