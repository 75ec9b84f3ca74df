//! Access tokens: JWTs signed with Ed25519 or ECDSA P-256.
//!
//! The `jsonwebtoken` crate takes the token apart; the signature is checked by `ring` through a
//! provider of our own, so that no second cryptography library is built. Which algorithm is used
//! follows from the key, and a token that claims another is refused. Times, audience and issuer are
//! judged here, against the clock that the caller gives.

use super::{Identity, KeyError, KeyKind, VerifyingKey};
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
use ring::signature::VerificationAlgorithm;
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
    iss: Option<String>,
}

/// What tokens must say beside who they are for.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) audience: String,
    /// Empty: any.
    pub(super) issuer: String,
    pub(super) clock_skew_s: u64,
    pub(super) ttl_s_max: u64,
}

/// The keys that tokens are checked with. It is never changed, only replaced.
#[derive(Debug)]
pub(super) struct Keyring {
    keys: Vec<Known>,
    /// What a token is told whose key is not here.
    stranger: AuthError,
}

struct Known {
    key: VerifyingKey,
    decoding: DecodingKey,
    signature_only: Validation,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}

impl Keyring {
    /// # Errors
    /// No key, too many that have no name of their own, or two different ones under one name.
    pub(super) fn new(keys: Vec<VerifyingKey>, stranger: AuthError) -> Result<Self, KeyError> {
        // Fails when the process has a provider already, an embedder's for example. Then that one
        // checks the signatures: every provider takes the raw bytes of these keys.
        let _ = PROVIDER.install_default();
        let mut known: Vec<Known> = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(other) = known.iter().find(|other| other.key.kid() == key.kid()) {
                if other.key.kind() == key.kind() && other.key.raw() == key.raw() {
                    continue;
                }
                return Err(KeyError::SameName {
                    kid: key.kid().to_owned(),
                });
            }
            known.push(Known::new(key));
        }
        let nameless = known.iter().filter(|known| !known.key.is_named()).count();
        if known.is_empty() || nameless > VerifyingKey::COUNT_MAX {
            return Err(KeyError::Count { count: nameless });
        }
        Ok(Self {
            keys: known,
            stranger,
        })
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &VerifyingKey> {
        self.keys.iter().map(|known| &known.key)
    }

    /// Who the token is for.
    pub(super) fn verify(
        &self,
        token: &str,
        rules: &Rules,
        now_unix_s: u64,
    ) -> Result<Shown, AuthError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::Invalid);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| AuthError::Invalid)?;
        // Only a reader that understands what is critical may accept it; this one knows nothing.
        if header.crit.is_some() {
            return Err(AuthError::Invalid);
        }
        let kind = match header.alg {
            Algorithm::EdDSA => KeyKind::EdDsa,
            Algorithm::ES256 => KeyKind::Es256,
            _ => return Err(AuthError::Invalid),
        };
        let (claims, named) = match header.kid.as_deref() {
            Some(kid) => {
                let by_name = |known: &&Known| known.key.kid() == kid;
                let known = self.keys.iter().find(by_name).ok_or(self.stranger)?;
                let claims = known.claims(token, kind).ok_or(AuthError::Invalid)?;
                (claims, known.key.is_named())
            }
            None => {
                let nameless = self.keys.iter().filter(|known| !known.key.is_named());
                let claims = nameless
                    .filter_map(|known| known.claims(token, kind))
                    .next()
                    .ok_or(AuthError::Invalid)?;
                (claims, false)
            }
        };
        rules.judge(&claims, named, now_unix_s)
    }
}

impl Known {
    fn new(key: VerifyingKey) -> Self {
        let (algorithm, decoding) = match key.kind() {
            KeyKind::EdDsa => (Algorithm::EdDSA, DecodingKey::from_ed_der(key.raw())),
            KeyKind::Es256 => (Algorithm::ES256, DecodingKey::from_ec_der(key.raw())),
        };
        let mut signature_only = Validation::new(algorithm);
        signature_only.required_spec_claims.clear();
        signature_only.validate_exp = false;
        signature_only.validate_aud = false;
        Self {
            key,
            decoding,
            signature_only,
        }
    }

    /// What the token says, if this key signed it, in its own way.
    fn claims(&self, token: &str, kind: KeyKind) -> Option<Claims> {
        if kind != self.key.kind() {
            return None;
        }
        jsonwebtoken::decode(token, &self.decoding, &self.signature_only)
            .ok()
            .map(|data| data.claims)
    }
}

/// A good token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) identity: Identity,
    /// When it was issued, if it says so.
    pub(super) issued_unix_s: Option<u64>,
    /// The end of its life, with the tolerance for clocks.
    pub(super) expires_unix_s: u64,
}

impl Rules {
    /// `named`: the key comes from a set, which may serve other services too, so that the token must
    /// say that it is for this one.
    fn judge(&self, claims: &Claims, named: bool, now_unix_s: u64) -> Result<Shown, AuthError> {
        let user = canonical_user(&claims.sub).ok_or(AuthError::Invalid)?;
        if claims.dev == 0 || claims.iat.is_some_and(|at| at > claims.exp) {
            return Err(AuthError::Invalid);
        }
        let audience = match &claims.aud {
            Some(audience) => audience.names(&self.audience),
            None => !named,
        };
        let issuer = self.issuer.is_empty() || claims.iss.as_ref() == Some(&self.issuer);
        if !audience || !issuer {
            return Err(AuthError::WrongAudience);
        }
        let latest = now_unix_s.saturating_add(self.clock_skew_s);
        let is_later = |at: Option<u64>| at.is_some_and(|at| at > latest);
        if is_later(claims.nbf) || is_later(claims.iat) {
            return Err(AuthError::NotYetValid);
        }
        // By its own word, and by what is left of it where it does not say when it began.
        let lives_s = claims.iat.map_or(0, |at| claims.exp.saturating_sub(at));
        if lives_s > self.ttl_s_max || claims.exp > latest.saturating_add(self.ttl_s_max) {
            return Err(AuthError::LivesTooLong);
        }
        // Last, so that Expired means: this was a good token once, fetch a fresh one.
        let expires_unix_s = claims.exp.saturating_add(self.clock_skew_s);
        if expires_unix_s <= now_unix_s {
            return Err(AuthError::Expired);
        }
        Ok(Shown {
            identity: Identity {
                user,
                device: DeviceId(claims.dev),
                generation: claims.generation,
            },
            issued_unix_s: claims.iat,
            expires_unix_s,
        })
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
    verifier_factory: verifier,
    // Only JSON Web Keys need them, and no key comes from a token here.
    key_utils: KeyUtils::new_unimplemented(),
};

fn no_signer(_: &Algorithm, _: &EncodingKey) -> JwtResult<Box<dyn JwtSigner>> {
    Err(ErrorKind::UnsupportedAlgorithm.into())
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> JwtResult<Box<dyn JwtVerifier>> {
    let check: &'static dyn VerificationAlgorithm = match (algorithm, key.family()) {
        (Algorithm::EdDSA, AlgorithmFamily::Ed) => &ring::signature::ED25519,
        (Algorithm::ES256, AlgorithmFamily::Ec) => &ring::signature::ECDSA_P256_SHA256_FIXED,
        _ => return Err(ErrorKind::UnsupportedAlgorithm.into()),
    };
    Ok(Box::new(Check {
        algorithm: *algorithm,
        check,
        key: key.try_get_as_bytes()?.to_vec(),
    }))
}

/// A raw public key, and the one way in which it is used.
struct Check {
    algorithm: Algorithm,
    check: &'static dyn VerificationAlgorithm,
    key: Vec<u8>,
}

impl VerifySignature<Vec<u8>> for Check {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        ring::signature::UnparsedPublicKey::new(self.check, &self.key)
            .verify(message, signature)
            .map_err(|_| SignatureError::new())
    }
}

impl JwtVerifier for Check {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
