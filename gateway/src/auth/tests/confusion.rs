//! Each key has one algorithm, and nothing that a token says gives it another.

use super::*;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};

struct Issuer {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl Issuer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        Self { pair, random }
    }

    fn point(&self) -> [u8; 65] {
        self.pair.public_key().as_ref().try_into().unwrap()
    }

    fn sign(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", encode(header), encode(claims));
        let signature = self.pair.sign(&self.random, message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// An Ed25519 key and one of P-256, both known under their own names.
fn both(issuer: &Issuer) -> JwtAuthenticator {
    let keys = vec![
        VerifyingKey::new(public(&pair(1))),
        VerifyingKey::es256(issuer.point()),
    ];
    JwtAuthenticator::new(keys, ResumeKey::new(&[7; 32]), &JwtOptions::default()).unwrap()
}

fn claims() -> String {
    format!(r#"{{"sub":"1","dev":1,"exp":{}}}"#, NOW + 60)
}

#[test]
fn es256_tokens_are_accepted_from_a_p256_key() {
    let issuer = Issuer::new();
    let auth = both(&issuer);
    let kid = auth.keys()[1].kid().to_owned();
    for header in [
        r#"{"alg":"ES256"}"#.to_owned(),
        format!(r#"{{"alg":"ES256","kid":"{kid}"}}"#),
    ] {
        let token = issuer.sign(&header, &claims());
        assert!(auth.authenticate(&shows(&token), NOW).is_ok(), "{header}");
        // The two halves of the signature exchanged, cut, and one bit of it turned.
        let (message, signature) = token.rsplit_once('.').unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let mut turned = bytes.clone();
        turned[40] ^= 1;
        let exchanged = [&bytes[32..], &bytes[..32]].concat();
        for bad in [&turned[..], &exchanged, &bytes[..63], &[0; 64], &[]] {
            let forged = format!("{message}.{}", URL_SAFE_NO_PAD.encode(bad));
            let refused = auth.authenticate(&shows(&forged), NOW);
            assert_eq!(refused, Err(AuthError::Invalid));
        }
    }
}

#[test]
fn a_key_checks_its_own_algorithm_only() {
    let issuer = Issuer::new();
    let auth = both(&issuer);
    let (ed, ec) = (auth.keys()[0].clone(), auth.keys()[1].clone());
    let named =
        |alg: &str, key: &VerifyingKey| format!(r#"{{"alg":"{alg}","kid":"{}"}}"#, key.kid());
    for header in [
        // The name of the other key, under either algorithm.
        named("ES256", &ed),
        named("EdDSA", &ed),
        named("EdDSA", &ec),
        r#"{"alg":"EdDSA"}"#.to_owned(),
        r#"{"alg":"ES384"}"#.to_owned(),
        named("ES384", &ec),
        named("none", &ec),
    ] {
        let token = issuer.sign(&header, &claims());
        let refused = auth.authenticate(&shows(&token), NOW);
        assert_eq!(refused, Err(AuthError::Invalid), "{header}");
    }
    for header in [
        named("EdDSA", &ec),
        named("ES256", &ec),
        named("ES256", &ed),
        r#"{"alg":"ES256"}"#.to_owned(),
    ] {
        let token = signed(&header, &claims(), &pair(1));
        let refused = auth.authenticate(&shows(&token), NOW);
        assert_eq!(refused, Err(AuthError::Invalid), "{header}");
    }
}

#[test]
fn a_public_key_is_no_shared_secret() {
    let issuer = Issuer::new();
    let auth = both(&issuer);
    for key in auth.keys() {
        let texts = [
            key.raw().to_vec(),
            URL_SAFE_NO_PAD.encode(key.raw()).into_bytes(),
            key.kid().as_bytes().to_vec(),
        ];
        for secret in texts {
            for alg in ["HS256", "HS384", "HS512", "none", "EdDSA", "ES256"] {
                let header = format!(r#"{{"alg":"{alg}","kid":"{}"}}"#, key.kid());
                let message = format!("{}.{}", encode(&header), encode(&claims()));
                let tag = hmac::sign(
                    &hmac::Key::new(hmac::HMAC_SHA256, &secret),
                    message.as_bytes(),
                );
                for signature in [tag.as_ref(), &[]] {
                    let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature));
                    let refused = auth.authenticate(&shows(&token), NOW);
                    assert_eq!(refused, Err(AuthError::Invalid), "{header}");
                }
            }
        }
    }
}

/// Whatever is in the place of a P-256 key checks nothing, and brings nothing down.
#[test]
fn a_point_that_is_on_no_curve_signs_for_nobody() {
    let issuer = Issuer::new();
    for byte in [0, 1, 0xff] {
        let mut point = [byte; 65];
        point[0] = 4;
        let keys = vec![VerifyingKey::es256(point)];
        let auth =
            JwtAuthenticator::new(keys, ResumeKey::new(&[7; 32]), &JwtOptions::default()).unwrap();
        let token = issuer.sign(r#"{"alg":"ES256"}"#, &claims());
        assert_eq!(
            auth.authenticate(&shows(&token), NOW),
            Err(AuthError::Invalid)
        );
    }
}

#[test]
fn files_of_both_kinds_are_read() {
    let data = tempfile::tempdir().unwrap();
    let issuer = Issuer::new();
    let point = issuer.point();
    let spki = [
        &[
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
            0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ][..],
        &point,
    ]
    .concat();
    let body = base64::engine::general_purpose::STANDARD.encode(spki);
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n");
    let set = format!(
        r#" {{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"a","x":"{}"}}]}}"#,
        URL_SAFE_NO_PAD.encode(public(&pair(5)))
    );
    let paths = [data.path().join("a.pem"), data.path().join("b.json")];
    fs::write(&paths[0], pem).unwrap();
    fs::write(&paths[1], set).unwrap();
    let options = JwtOptions {
        keys: paths.to_vec(),
        ..JwtOptions::default()
    };
    let auth = JwtAuthenticator::open(data.path(), &options).unwrap();
    let kinds: Vec<_> = auth.keys().iter().map(VerifyingKey::kind).collect();
    assert_eq!(kinds, [KeyKind::EdDsa, KeyKind::Es256, KeyKind::EdDsa]);
    assert_eq!(auth.keys()[2].kid(), "a");
    let token = issuer.sign(r#"{"alg":"ES256"}"#, &claims());
    assert!(auth.authenticate(&shows(&token), NOW).is_ok());
    // Two keys under one name: neither can be meant.
    let other = format!(
        r#"{{"kty":"OKP","crv":"Ed25519","kid":"a","x":"{}"}}"#,
        URL_SAFE_NO_PAD.encode(public(&pair(6)))
    );
    fs::write(&paths[0], other).unwrap();
    let refused = JwtAuthenticator::open(data.path(), &options).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("two verification keys are called \"a\"")
    );
}
