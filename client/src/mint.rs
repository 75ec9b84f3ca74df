//! Access tokens from a local signing key: for development, `portico token`, the chat and loadgen.
//! In production the operator's account service makes tokens; the gateway only verifies them.
//!
//! A token is a JWT, signed with EdDSA (Ed25519): header `alg`, `typ`, `kid`; claims `sub` (the
//! user as decimal text), `dev` (device), `gen` (device generation), `iat`, `exp`, `aud`
//! ("portico"). `kid` is the first 16 hexadecimal digits of the SHA-256 of the public key.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use portico_wire::ids::{DeviceId, UserId};
use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom, SystemRandom},
    signature::{Ed25519KeyPair, KeyPair},
};
use std::{fmt, fs::File, io, io::Read, os::unix::fs::PermissionsExt, path::Path};

/// The name of the key file in a gateway's data directory.
pub const KEY_FILE: &str = "auth-key.pem";
/// The audience of the tokens.
pub const AUDIENCE: &str = "portico";

/// A key file is one PEM block of about 120 bytes.
const PEM_BYTES_MAX: u64 = 16_384;
const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_END: &str = "-----END PRIVATE KEY-----";
const SEED_BYTES: usize = 32;
/// PKCS#8 version 1 of an Ed25519 key is this, then the seed: SEQUENCE { INTEGER 0, SEQUENCE { OID
/// 1.3.101.112 }, OCTET STRING { OCTET STRING seed } }.
const PKCS8_V1_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// A private key that signs tokens.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    kid: String,
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read the signing key: {0}")]
    Io(io::Error),
    #[error("the signing key can be read by others (mode {0:o}); it must have mode 600")]
    Exposed(u32),
    #[error("the signing key is not a PEM block \"PRIVATE KEY\"")]
    NotPem,
    #[error("the signing key is not an Ed25519 key in PKCS#8")]
    NotEd25519,
    #[error("the system has no randomness")]
    Random,
}

impl SigningKey {
    /// Reads a PEM file, PKCS#8 version 1 or 2. A file that others may read is refused.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let file = File::open(path).map_err(KeyError::Io)?;
        let mode = file.metadata().map_err(KeyError::Io)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed(mode));
        }
        let mut pem = String::new();
        file.take(PEM_BYTES_MAX)
            .read_to_string(&mut pem)
            .map_err(KeyError::Io)?;
        Self::from_pem(&pem)
    }

    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let (_, rest) = pem.split_once(PEM_BEGIN).ok_or(KeyError::NotPem)?;
        let (text, _) = rest.split_once(PEM_END).ok_or(KeyError::NotPem)?;
        let text: String = text.split_ascii_whitespace().collect();
        let der = STANDARD.decode(text).map_err(|_| KeyError::NotPem)?;
        // "maybe unchecked": version 1 has no public key to check the private one against.
        let pair =
            Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|_| KeyError::NotEd25519)?;
        let hash = digest(&SHA256, pair.public_key().as_ref());
        let kid = hash.as_ref().iter().take(8);
        let kid = kid.map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { pair, kid })
    }

    /// A new key as PEM text, PKCS#8 version 1, which every tool reads.
    pub fn generate_pem() -> Result<String, KeyError> {
        let mut seed = [0; SEED_BYTES];
        SystemRandom::new()
            .fill(&mut seed)
            .map_err(|_| KeyError::Random)?;
        let der = [&PKCS8_V1_PREFIX[..], &seed].concat();
        Ok(format!(
            "{PEM_BEGIN}\n{}\n{PEM_END}\n",
            STANDARD.encode(der)
        ))
    }

    /// The key's name in token headers.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The raw public key.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// A token for a device that is valid from `now_unix_s` for `ttl_s` seconds.
    #[must_use]
    pub fn token(
        &self,
        user: UserId,
        device: DeviceId,
        generation: u32,
        ttl_s: u64,
        now_unix_s: u64,
    ) -> String {
        let header = format!(r#"{{"alg":"EdDSA","typ":"JWT","kid":"{}"}}"#, self.kid);
        let exp = now_unix_s.saturating_add(ttl_s);
        let claims = format!(
            r#"{{"sub":"{user}","dev":{device},"gen":{generation},"iat":{now_unix_s},"exp":{exp},"aud":"{AUDIENCE}"}}"#,
        );
        let mut token = URL_SAFE_NO_PAD.encode(header);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self.pair.sign(token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        token
    }
}

/// Without the key.
impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{ED25519, UnparsedPublicKey};
    use std::fs;

    /// RFC 8032, section 7.1, test 1: seed and public key.
    const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
    const PUBLIC: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    fn pem(der: &[u8]) -> String {
        format!("{PEM_BEGIN}\n{}\n{PEM_END}\n", STANDARD.encode(der))
    }

    #[test]
    fn version_1_and_2_give_the_same_key() {
        let v1 = [&PKCS8_V1_PREFIX[..], &hex(SEED)].concat();
        // Version 2: one more, and the public key as [1] at the end.
        let mut v2 = v1.clone();
        v2[1] = 0x51;
        v2[4] = 1;
        v2.extend([0x81, 0x21, 0x00]);
        v2.extend(hex(PUBLIC));
        for der in [v1, v2] {
            let key = SigningKey::from_pem(&pem(&der)).unwrap();
            assert_eq!(key.public_key(), hex(PUBLIC));
            assert_eq!(key.kid(), "21fe31dfa154a261");
        }
    }

    #[test]
    fn a_token_has_the_claims_and_a_signature_that_holds() {
        let key = SigningKey::from_pem(&SigningKey::generate_pem().unwrap()).unwrap();
        let token = key.token(UserId(7), DeviceId(2), 3, 900, 1_790_000_000);
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        let text = |part: &str| String::from_utf8(URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
        let kid = key.kid();
        assert_eq!(
            text(header),
            format!(r#"{{"alg":"EdDSA","typ":"JWT","kid":"{kid}"}}"#)
        );
        assert_eq!(
            text(claims),
            r#"{"sub":"7","dev":2,"gen":3,"iat":1790000000,"exp":1790000900,"aud":"portico"}"#
        );
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let public = UnparsedPublicKey::new(&ED25519, key.public_key());
        public.verify(signed.as_bytes(), &signature).unwrap();
        assert!(public.verify(claims.as_bytes(), &signature).is_err());
    }

    #[test]
    fn two_new_keys_differ() {
        assert_ne!(
            SigningKey::generate_pem().unwrap(),
            SigningKey::generate_pem().unwrap()
        );
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in ["", PEM_BEGIN, &format!("{PEM_BEGIN}\n*\n{PEM_END}")] {
            assert!(matches!(SigningKey::from_pem(text), Err(KeyError::NotPem)));
        }
        for der in [&[][..], &PKCS8_V1_PREFIX, &[0x30; 48]] {
            assert!(matches!(
                SigningKey::from_pem(&pem(der)),
                Err(KeyError::NotEd25519)
            ));
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let path = std::env::temp_dir().join(format!("portico-key-{}", std::process::id()));
        fs::write(&path, SigningKey::generate_pem().unwrap()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let exposed = SigningKey::load(&path);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let private = SigningKey::load(&path);
        fs::remove_file(&path).unwrap();
        assert!(matches!(exposed, Err(KeyError::Exposed(0o640))));
        private.unwrap();
        assert!(matches!(SigningKey::load(&path), Err(KeyError::Io(_))));
    }
}
