//! JSON Web Keys: one, or a set of them.
//!
//! A set comes from elsewhere and is judged as a whole: what makes no sense, or must never be
//! published, refuses all of it, so that the keys before stay in use. Keys that are for something
//! else (RSA, encryption) are passed over.
//!
//! # Invariants
//! - Each key says what it is by its own type. Which algorithm it checks follows from that alone.
//! - No symmetric and no private key is ever taken.
//! - Keys of a set have names, each its own.

use super::keys::{ES256_BYTES, KeyKind, VerifyingKey};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

/// The longest document that is read.
pub(super) const SET_BYTES_MAX: usize = 64 << 10;
/// Keys of a set, those that are passed over included.
const SET_KEYS_MAX: usize = 64;
/// The longest name of a key.
const KID_BYTES_MAX: usize = 128;

/// Why a document is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum JwkError {
    #[error("it is longer than {SET_BYTES_MAX} bytes")]
    TooLong,
    #[error("it is not a JSON Web Key Set: {0}")]
    Malformed(String),
    #[error("it has {0} keys, and {SET_KEYS_MAX} are allowed")]
    TooMany(usize),
    #[error("key {0} is symmetric: whoever reads the set could sign with it")]
    Symmetric(String),
    #[error("key {0} is there with its private half: replace it at the issuer, it is known now")]
    Private(String),
    #[error("key {0} contradicts itself: {1}")]
    Contradiction(String, &'static str),
    #[error("two keys are called {0}")]
    Twice(String),
    #[error("a key's name is longer than {KID_BYTES_MAX} bytes")]
    LongName,
    #[error("it has no key for EdDSA (Ed25519) or ES256 (P-256)")]
    Nothing,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Jwk>,
}

/// What is looked at of a key; other members are ignored.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    /// The secret of a symmetric key.
    k: Option<serde::de::IgnoredAny>,
    /// The private half of any other.
    d: Option<serde::de::IgnoredAny>,
}

/// The keys of a set, or the one that is not in a set.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<VerifyingKey>, JwkError> {
    if bytes.len() > SET_BYTES_MAX {
        return Err(JwkError::TooLong);
    }
    // The set decides by its member "keys"; a document that has both is a set.
    let malformed = |error: serde_json::Error| JwkError::Malformed(place(&error));
    let probe: Probe = serde_json::from_slice(bytes).map_err(malformed)?;
    let keys = if probe.keys.is_some() {
        let set: Set = serde_json::from_slice(bytes).map_err(malformed)?;
        set.keys
    } else {
        vec![serde_json::from_slice(bytes).map_err(malformed)?]
    };
    if keys.len() > SET_KEYS_MAX {
        return Err(JwkError::TooMany(keys.len()));
    }
    let mut taken: Vec<VerifyingKey> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for (place, jwk) in keys.iter().enumerate() {
        if let Some(kid) = &jwk.kid {
            if kid.len() > KID_BYTES_MAX {
                return Err(JwkError::LongName);
            }
            if names.contains(kid) {
                return Err(JwkError::Twice(shown(kid)));
            }
            names.push(kid.clone());
        }
        if let Some(key) = jwk.key(place)? {
            if taken.iter().any(|other| other.kid() == key.kid()) {
                return Err(JwkError::Twice(shown(key.kid())));
            }
            taken.push(key);
        }
    }
    if taken.is_empty() {
        return Err(JwkError::Nothing);
    }
    Ok(taken)
}

#[derive(Deserialize)]
struct Probe {
    keys: Option<serde::de::IgnoredAny>,
}

impl Jwk {
    /// The key, if it is one of ours.
    fn key(&self, place: usize) -> Result<Option<VerifyingKey>, JwkError> {
        let name = || {
            self.kid
                .as_deref()
                .map_or_else(|| format!("number {}", place + 1), shown)
        };
        let bad = |why| Err(JwkError::Contradiction(name(), why));
        if self.kty == "oct" || self.k.is_some() {
            return Err(JwkError::Symmetric(name()));
        }
        if self.d.is_some() {
            return Err(JwkError::Private(name()));
        }
        let crv = self.crv.as_deref().unwrap_or_default();
        let (kind, algs): (_, &[&str]) = match (self.kty.as_str(), crv) {
            ("OKP", "Ed25519") => (KeyKind::EdDsa, &["EdDSA", "Ed25519"]),
            ("EC", "P-256") => (KeyKind::Es256, &["ES256"]),
            _ => return Ok(None),
        };
        let is_other = self.purpose.as_deref().is_some_and(|it| it != "sig")
            || self
                .key_ops
                .as_ref()
                .is_some_and(|all| !all.iter().any(|it| it == "verify"));
        if is_other {
            return Ok(None);
        }
        if self.alg.as_deref().is_some_and(|alg| !algs.contains(&alg)) {
            return bad("its alg is not that of its curve");
        }
        let key = match kind {
            KeyKind::EdDsa => match coordinate(self.x.as_deref()) {
                Some(x) => VerifyingKey::new(x),
                None => return bad("x is not 32 bytes in base64url"),
            },
            KeyKind::Es256 => {
                let (Some(x), Some(y)) =
                    (coordinate(self.x.as_deref()), coordinate(self.y.as_deref()))
                else {
                    return bad("x and y are not 32 bytes each in base64url");
                };
                let mut point = [0; ES256_BYTES];
                point[0] = 4;
                point[1..33].copy_from_slice(&x);
                point[33..].copy_from_slice(&y);
                VerifyingKey::es256(point)
            }
        };
        Ok(Some(match &self.kid {
            Some(kid) => key.named(kid.clone()),
            None => key,
        }))
    }
}

fn coordinate(text: Option<&str>) -> Option<[u8; 32]> {
    URL_SAFE_NO_PAD.decode(text?).ok()?.try_into().ok()
}

/// A name from elsewhere, as a log may show it.
fn shown(kid: &str) -> String {
    let short: String = kid.chars().take(40).collect();
    format!("{short:?}")
}

/// Where a document stops making sense, without what stands there: that may be anything.
fn place(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "it ends too early",
        serde_json::error::Category::Syntax => "it is no JSON",
        serde_json::error::Category::Data | serde_json::error::Category::Io => {
            "a member is missing, is there twice or is of the wrong type"
        }
    };
    format!("{what} (line {}, column {})", error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

    fn okp(more: &str) -> String {
        format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{X}"{more}}}"#)
    }

    fn set(keys: &[String]) -> Result<Vec<VerifyingKey>, JwkError> {
        read(format!(r#"{{"keys":[{}]}}"#, keys.join(",")).as_bytes())
    }

    #[test]
    fn the_key_of_rfc_8037_is_read_alone_and_in_a_set() {
        let alone = read(okp("").as_bytes()).unwrap();
        assert_eq!(alone[0].kind(), KeyKind::EdDsa);
        assert_eq!(alone[0].raw()[..4], [0xd7, 0x5a, 0x98, 0x01]);
        assert_eq!(alone[0].kid(), "21fe31dfa154a261", "made from the key");
        let named = set(&[okp(r#","kid":"a","alg":"EdDSA","use":"sig""#)]).unwrap();
        assert_eq!(named[0].kid(), "a");
        assert_eq!(named[0].raw(), alone[0].raw());
    }

    #[test]
    fn a_p256_key_is_read() {
        // RFC 7517, appendix A.1.
        let key = r#"{"kty":"EC","crv":"P-256","kid":"1",
            "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
            "y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}"#;
        let keys = read(key.as_bytes()).unwrap();
        assert_eq!(keys[0].kind(), KeyKind::Es256);
        assert_eq!(keys[0].raw()[..3], [4, 0x30, 0xa0]);
    }

    #[test]
    fn keys_for_something_else_are_passed_over() {
        let others = [
            r#"{"kty":"RSA","n":"AQAB","e":"AQAB","kid":"r"}"#.to_owned(),
            r#"{"kty":"OKP","crv":"X25519","x":"AA"}"#.to_owned(),
            okp(r#","use":"enc","kid":"e""#),
            okp(r#","key_ops":["sign"]"#),
        ];
        assert_eq!(set(&others), Err(JwkError::Nothing));
        let with_one = [&others[..], &[okp("")]].concat();
        assert_eq!(set(&with_one).unwrap().len(), 1);
        assert_eq!(set(&[]), Err(JwkError::Nothing));
    }

    #[test]
    fn what_must_not_be_published_refuses_the_whole_set() {
        let secret = r#"{"kty":"oct","k":"AAAA","kid":"s"}"#.to_owned();
        let refused = set(&[okp(""), secret]);
        assert_eq!(refused, Err(JwkError::Symmetric("\"s\"".to_owned())));
        let hidden = okp(r#","k":"AAAA""#);
        assert!(matches!(set(&[hidden]), Err(JwkError::Symmetric(_))));
        for rsa in [false, true] {
            let private = if rsa {
                r#"{"kty":"RSA","n":"AQAB","e":"AQAB","d":"AA"}"#.to_owned()
            } else {
                okp(r#","d":"AA""#)
            };
            assert!(matches!(set(&[private]), Err(JwkError::Private(_))));
        }
    }

    #[test]
    fn names_are_each_of_one_key() {
        let twice = [okp(r#","kid":"a""#), okp(r#","kid":"a""#)];
        assert_eq!(set(&twice), Err(JwkError::Twice("\"a\"".to_owned())));
        // Also where one of the two is not ours, and where the name is made from the key.
        let other = r#"{"kty":"RSA","kid":"a"}"#.to_owned();
        assert!(matches!(
            set(&[okp(r#","kid":"a""#), other]),
            Err(JwkError::Twice(_))
        ));
        assert!(matches!(set(&[okp(""), okp("")]), Err(JwkError::Twice(_))));
        let long = okp(&format!(r#","kid":"{}""#, "k".repeat(KID_BYTES_MAX + 1)));
        assert_eq!(set(&[long]), Err(JwkError::LongName));
    }

    #[test]
    fn a_key_that_contradicts_itself_refuses_the_set() {
        for bad in [
            okp(r#","alg":"ES256""#),
            okp(r#","alg":"HS256""#),
            okp(r#","alg":"none""#),
            r#"{"kty":"OKP","crv":"Ed25519"}"#.to_owned(),
            r#"{"kty":"OKP","crv":"Ed25519","x":"AAAA"}"#.to_owned(),
            r#"{"kty":"OKP","crv":"Ed25519","x":"*"}"#.to_owned(),
            format!(r#"{{"kty":"EC","crv":"P-256","x":"{X}"}}"#),
            format!(r#"{{"kty":"EC","crv":"P-256","x":"{X}","y":"{X}","alg":"EdDSA"}}"#),
        ] {
            let refused = set(std::slice::from_ref(&bad));
            assert!(
                matches!(refused, Err(JwkError::Contradiction(..))),
                "{bad}: {refused:?}"
            );
        }
    }

    #[test]
    fn what_is_no_set_is_refused() {
        let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
        for bad in [
            "",
            "{",
            "[]",
            "null",
            "7",
            "{}",
            r#"{"keys":{}}"#,
            r#"{"keys":[7]}"#,
            r#"{"keys":[{}]}"#,
            r#"{"keys":[{"kty":7}]}"#,
            r#"{"keys":[],"keys":[]}"#,
            r#"{"keys":[{"kty":"OKP","kty":"EC"}]}"#,
            deep.as_str(),
        ] {
            let refused = read(bad.as_bytes());
            assert!(
                matches!(refused, Err(JwkError::Malformed(_))),
                "{refused:?}"
            );
        }
        let many: Vec<_> = (0..=SET_KEYS_MAX)
            .map(|kid| okp(&format!(r#","kid":"{kid}""#)))
            .collect();
        assert_eq!(set(&many), Err(JwkError::TooMany(SET_KEYS_MAX + 1)));
        let huge = vec![b' '; SET_BYTES_MAX + 1];
        assert_eq!(read(&huge), Err(JwkError::TooLong));
    }
}
