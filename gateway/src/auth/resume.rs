//! Resume tokens: a MAC that says "this device logged in here with an access token".
//!
//! The token is 63 bytes, numbers big-endian, and means nothing to anyone but holders of the key:
//!
//! ```text
//! version 1 | user 8 | device 2 | generation 4 | issued 8 | expiry 8 (both Unix seconds) | HMAC-SHA256 32
//! ```
//!
//! Nothing is stored per token. Replacing the key file refuses all of them, which costs each
//! client one login with its access token.

use super::{Identity, KeyError};
use portico_wire::{
    ids::{DeviceId, UserId},
    limits::RESUME_TOKEN_BYTES_MAX,
};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use std::fmt;

/// Version 1 did not say when it was issued.
const VERSION: u8 = 2;
const CLAIMS_BYTES: usize = 1 + 8 + 2 + 4 + 8 + 8;
const TAG_BYTES: usize = 32;
const TOKEN_BYTES: usize = CLAIMS_BYTES + TAG_BYTES;

const _: () = assert!(
    TOKEN_BYTES <= RESUME_TOKEN_BYTES_MAX,
    "the token must fit into HELLO and WELCOME"
);

/// The secret that resume tokens are made and checked with. Nodes that share it accept each
/// other's tokens.
#[derive(Clone)]
pub struct ResumeKey(hmac::Key);

impl ResumeKey {
    pub const BYTES: usize = 32;

    #[must_use]
    pub fn new(secret: &[u8; Self::BYTES]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// A key that no other process and no later start has.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn random() -> Result<Self, KeyError> {
        Ok(Self::new(&random()?))
    }

    pub(super) fn issue(&self, identity: Identity, life: Life) -> Vec<u8> {
        let mut token = Vec::with_capacity(TOKEN_BYTES);
        token.push(VERSION);
        token.extend_from_slice(&identity.user.0.to_be_bytes());
        token.extend_from_slice(&identity.device.0.to_be_bytes());
        token.extend_from_slice(&identity.generation.to_be_bytes());
        token.extend_from_slice(&life.issued_unix_s.to_be_bytes());
        token.extend_from_slice(&life.expires_unix_s.to_be_bytes());
        let tag = hmac::sign(&self.0, &token);
        token.extend_from_slice(tag.as_ref());
        token
    }

    /// Whose token it is and how long it lives, if it is genuine and still good.
    pub(super) fn verify(&self, token: &[u8], now_unix_s: u64) -> Option<(Identity, Life)> {
        if token.len() != TOKEN_BYTES {
            return None;
        }
        let (claims, tag) = token.split_at_checked(CLAIMS_BYTES)?;
        // Compares in constant time.
        hmac::verify(&self.0, claims, tag).ok()?;
        let (version, rest) = claims.split_first()?;
        if *version != VERSION {
            return None;
        }
        let (user, rest) = rest.split_first_chunk()?;
        let (device, rest) = rest.split_first_chunk()?;
        let (generation, rest) = rest.split_first_chunk()?;
        let (issued, rest) = rest.split_first_chunk()?;
        let life = Life {
            issued_unix_s: u64::from_be_bytes(*issued),
            expires_unix_s: u64::from_be_bytes(rest.try_into().ok()?),
        };
        let identity = Identity {
            user: UserId(u64::from_be_bytes(*user)),
            device: DeviceId(u16::from_be_bytes(*device)),
            generation: u32::from_be_bytes(*generation),
        };
        (life.expires_unix_s > now_unix_s).then_some((identity, life))
    }

    /// A MAC over something else than a resume token, which begins with a version: `purpose` is text.
    pub(super) fn seal(&self, purpose: &str, text: &str) -> Vec<u8> {
        hmac::sign(&self.0, sealed(purpose, text).as_bytes())
            .as_ref()
            .to_vec()
    }

    /// Is this what [`Self::seal`] makes of it?
    pub(super) fn is_sealed(&self, purpose: &str, text: &str, tag: &[u8]) -> bool {
        hmac::verify(&self.0, sealed(purpose, text).as_bytes(), tag).is_ok()
    }
}

fn sealed(purpose: &str, text: &str) -> String {
    format!("{purpose}\n{text}")
}

/// When a token began, and when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) issued_unix_s: u64,
    pub(super) expires_unix_s: u64,
}

impl fmt::Debug for ResumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResumeKey(..)")
    }
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| KeyError::NoRandomness)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Life = Life {
        issued_unix_s: 900,
        expires_unix_s: 1_000,
    };
    const WHO: Identity = Identity {
        user: UserId(7),
        device: DeviceId(3),
        generation: 2,
    };

    #[test]
    fn a_token_says_who_it_was_made_for_until_it_expires() {
        let key = ResumeKey::new(&[9; 32]);
        let token = key.issue(WHO, LIFE);
        assert_eq!(token.len(), TOKEN_BYTES);
        assert_eq!(key.verify(&token, 999), Some((WHO, LIFE)));
        assert_eq!(key.verify(&token, 1_000), None);
    }

    #[test]
    fn every_single_flipped_bit_is_noticed() {
        let key = ResumeKey::new(&[9; 32]);
        let token = key.issue(WHO, LIFE);
        for bit in 0..token.len() * 8 {
            let mut forged = token.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.verify(&forged, 0), None, "bit {bit}");
        }
    }

    #[test]
    fn other_lengths_and_other_keys_are_refused() {
        let key = ResumeKey::new(&[9; 32]);
        let token = key.issue(WHO, LIFE);
        for length in 0..token.len() {
            assert_eq!(key.verify(&token[..length], 0), None);
        }
        let longer = [token.as_slice(), &[0]].concat();
        assert_eq!(key.verify(&longer, 0), None);
        assert_eq!(ResumeKey::new(&[8; 32]).verify(&token, 0), None);
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", ResumeKey::new(&[65; 32])), "ResumeKey(..)");
    }
}
