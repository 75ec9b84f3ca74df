//! Traffic secrets, and what follows from them (RFC 8446, section 7): the keys of a direction, and
//! the secret after it.

use ring::{
    aead::{self, LessSafeKey, UnboundKey},
    error::Unspecified,
    hkdf,
};
use rustls::CipherSuite;
use std::fmt;
use zeroize::Zeroize;

/// Of the longest hash, SHA-384.
const SECRET_BYTES_MAX: usize = 48;
const KEY_BYTES_MAX: usize = 32;
pub(crate) const IV_BYTES: usize = aead::NONCE_LEN;

/// What protects the records of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Suite {
    Aes128Gcm,
    Aes256Gcm,
    Chacha20Poly1305,
}

impl Suite {
    pub(crate) fn of(suite: CipherSuite) -> Option<Self> {
        Some(match suite {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => Self::Aes128Gcm,
            CipherSuite::TLS13_AES_256_GCM_SHA384 => Self::Aes256Gcm,
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => Self::Chacha20Poly1305,
            _ => return None,
        })
    }

    fn aead(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128Gcm => &aead::AES_128_GCM,
            Self::Aes256Gcm => &aead::AES_256_GCM,
            Self::Chacha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }

    fn hkdf(self) -> hkdf::Algorithm {
        match self {
            Self::Aes128Gcm | Self::Chacha20Poly1305 => hkdf::HKDF_SHA256,
            Self::Aes256Gcm => hkdf::HKDF_SHA384,
        }
    }

    const fn secret_bytes(self) -> usize {
        match self {
            Self::Aes128Gcm | Self::Chacha20Poly1305 => 32,
            Self::Aes256Gcm => 48,
        }
    }
}

/// The secret of one direction. Everything else of that direction can be made from it.
pub(crate) struct Secret([u8; SECRET_BYTES_MAX]);

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Secret {
    /// None if it is longer than any secret of a suite.
    pub(crate) fn new(bytes: &[u8]) -> Option<Self> {
        let mut secret = Self([0; SECRET_BYTES_MAX]);
        secret.0.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(secret)
    }

    /// The secret that a key update puts in this one's place.
    pub(crate) fn next(&self, suite: Suite) -> Result<Self, Unspecified> {
        let mut next = Self([0; SECRET_BYTES_MAX]);
        let length = suite.secret_bytes();
        expand(
            &self.pseudo_random_key(suite),
            b"traffic upd",
            &mut next.0[..length],
        )?;
        Ok(next)
    }

    /// The key of a direction and the start of its nonces.
    pub(crate) fn expand(&self, suite: Suite) -> Result<Expanded, Unspecified> {
        let mut expanded = Expanded {
            key: [0; KEY_BYTES_MAX],
            iv: [0; IV_BYTES],
        };
        let secret = self.pseudo_random_key(suite);
        let length = suite.aead().key_len();
        expand(&secret, b"key", &mut expanded.key[..length])?;
        expand(&secret, b"iv", &mut expanded.iv)?;
        Ok(expanded)
    }

    fn pseudo_random_key(&self, suite: Suite) -> hkdf::Prk {
        hkdf::Prk::new_less_safe(suite.hkdf(), &self.0[..suite.secret_bytes()])
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A key before the cipher has prepared it.
pub(crate) struct Expanded {
    key: [u8; KEY_BYTES_MAX],
    pub(crate) iv: [u8; IV_BYTES],
}

impl Drop for Expanded {
    fn drop(&mut self) {
        self.key.zeroize();
        self.iv.zeroize();
    }
}

impl Expanded {
    /// Whether these are the key and nonces given.
    pub(crate) fn is(&self, suite: Suite, key: &[u8], iv: &[u8]) -> bool {
        self.key[..suite.aead().key_len()] == *key && self.iv == *iv
    }

    pub(crate) fn key(&self, suite: Suite) -> Result<LessSafeKey, Unspecified> {
        let algorithm = suite.aead();
        let key = UnboundKey::new(algorithm, &self.key[..algorithm.key_len()])?;
        Ok(LessSafeKey::new(key))
    }
}

/// HKDF-Expand-Label without context.
fn expand(secret: &hkdf::Prk, label: &[u8], out: &mut [u8]) -> Result<(), Unspecified> {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    const PREFIX: &[u8] = b"tls13 ";
    // Labels and lengths are constants of this file, far below 256.
    let length = (out.len() as u16).to_be_bytes();
    let label_length = [(PREFIX.len() + label.len()) as u8];
    let info = [&length[..], &label_length, PREFIX, label, &[0]];
    secret.expand(&info, Length(out.len()))?.fill(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let digit = |c: u8| (c as char).to_digit(16).expect("a hexadecimal digit") as u8;
        digits
            .chunks(2)
            .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
            .collect()
    }

    /// RFC 8448, section 3: the server's application traffic secret and what follows from it.
    #[test]
    fn keys_are_those_of_the_published_example() {
        let secret = bytes("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643");
        let secret = Secret::new(&secret).expect("32 bytes");
        let expanded = secret.expand(Suite::Aes128Gcm).expect("known lengths");
        let key = bytes("9f02283b6c9c07efc26bb9f2ac92e356");
        let iv = bytes("cf782b88dd83549aadf1e984");
        assert!(expanded.is(Suite::Aes128Gcm, &key, &iv));
        let next = secret.next(Suite::Aes128Gcm).expect("known lengths");
        let expanded = next.expand(Suite::Aes128Gcm).expect("known lengths");
        assert!(!expanded.is(Suite::Aes128Gcm, &key, &iv));
    }

    #[test]
    fn what_is_too_long_for_a_secret_is_none() {
        assert!(Secret::new(&[0; SECRET_BYTES_MAX]).is_some());
        assert!(Secret::new(&[0; SECRET_BYTES_MAX + 1]).is_none());
    }

    #[test]
    fn secrets_are_not_printed() {
        let secret = Secret::new(&[0xab; 32]).expect("32 bytes");
        assert_eq!(format!("{secret:?}"), "Secret");
    }
}
