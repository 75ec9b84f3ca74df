//! What the authenticator accepts, and every way known to us in which a token can be wrong.
//!
//! Tokens are put together here by hand, byte by byte, so that nothing the gateway verifies with
//! takes part in making them.

mod confusion;
mod rotation;
mod rules;

use super::*;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use proptest::prelude::*;
use ring::{hmac, signature::Ed25519KeyPair, signature::KeyPair};
use std::{fs, os::unix::fs::PermissionsExt};

const NOW: u64 = 1_790_000_000;
const SKEW: u64 = 30;

fn pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

fn public(pair: &Ed25519KeyPair) -> [u8; 32] {
    pair.public_key().as_ref().try_into().unwrap()
}

fn authenticator() -> JwtAuthenticator {
    let options = JwtOptions {
        clock_skew_s: SKEW,
        ..JwtOptions::default()
    };
    let keys = vec![
        VerifyingKey::new(public(&pair(1))),
        VerifyingKey::new(public(&pair(2))),
    ];
    JwtAuthenticator::new(keys, ResumeKey::new(&[7; 32]), &options).unwrap()
}

fn encode(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

fn signed(header: &str, claims: &str, key: &Ed25519KeyPair) -> String {
    let message = format!("{}.{}", encode(header), encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(key.sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn token(claims: &str) -> String {
    signed(r#"{"alg":"EdDSA","typ":"JWT"}"#, claims, &pair(1))
}

fn good() -> String {
    token(&format!(
        r#"{{"sub":"7","dev":3,"gen":1,"iat":{NOW},"exp":{},"aud":"portico"}}"#,
        NOW + 60
    ))
}

fn shows(token: &str) -> Credentials {
    Credentials {
        token: Some(token.to_owned()),
        resume_token: None,
        device: DeviceId(0),
    }
}

fn verdict(token: &str) -> Result<(u64, u16), AuthError> {
    authenticator()
        .authenticate(&shows(token), NOW)
        .map(|grant| (grant.user.0, grant.device.0))
}

#[track_caller]
fn check(claims: &str, expected: Result<(u64, u16), AuthError>) {
    assert_eq!(verdict(&token(claims)), expected, "{claims}");
}

#[test]
fn a_good_token_logs_in_its_user_and_device() {
    let grant = authenticator().authenticate(&shows(&good()), NOW).unwrap();
    assert_eq!((grant.user, grant.device), (UserId(7), DeviceId(3)));
    assert!(!grant.resumed);
    assert_eq!(grant.resume_ttl_s, 86_400);
}

#[test]
fn claims_are_judged_one_by_one() {
    use AuthError::{Expired, Invalid, LivesTooLong, NotYetValid, WrongAudience};
    let exp = NOW + 60;
    let max = u64::MAX - 1;
    check(&format!(r#"{{"sub":"1","dev":1,"exp":{exp}}}"#), Ok((1, 1)));
    check(
        &format!(r#"{{"sub":"{max}","dev":65535,"exp":{exp}}}"#),
        Ok((max, 65_535)),
    );
    // The user.
    for sub in [
        "\"0\"",
        "\"18446744073709551615\"",
        "\"18446744073709551616\"",
        "\"-1\"",
        "\"+1\"",
        "\"01\"",
        "\" 1\"",
        "\"1 \"",
        "\"1e3\"",
        "\"\"",
        "\"\u{661}\"",
        "1",
        "null",
        "[\"1\"]",
    ] {
        check(
            &format!(r#"{{"sub":{sub},"dev":1,"exp":{exp}}}"#),
            Err(Invalid),
        );
    }
    check(&format!(r#"{{"dev":1,"exp":{exp}}}"#), Err(Invalid));
    // The device and its generation.
    for dev in ["0", "65536", "-1", "1.5", "\"1\"", "null"] {
        check(
            &format!(r#"{{"sub":"1","dev":{dev},"exp":{exp}}}"#),
            Err(Invalid),
        );
    }
    check(&format!(r#"{{"sub":"1","exp":{exp}}}"#), Err(Invalid));
    check(
        &format!(r#"{{"sub":"1","dev":1,"gen":4294967295,"exp":{exp}}}"#),
        Ok((1, 1)),
    );
    for generation in ["4294967296", "-1", "\"1\""] {
        check(
            &format!(r#"{{"sub":"1","dev":1,"gen":{generation},"exp":{exp}}}"#),
            Err(Invalid),
        );
    }
    // Times.
    check(r#"{"sub":"1","dev":1}"#, Err(Invalid));
    for exp in ["\"1\"", "-1", "null", "1e300", "18446744073709551616"] {
        check(
            &format!(r#"{{"sub":"1","dev":1,"exp":{exp}}}"#),
            Err(Invalid),
        );
    }
    check(
        &format!(r#"{{"sub":"1","dev":1,"exp":{}}}"#, u64::MAX),
        Err(LivesTooLong),
    );
    check(
        &format!(r#"{{"sub":"1","dev":1,"exp":{}}}"#, NOW - SKEW),
        Err(Expired),
    );
    check(
        &format!(r#"{{"sub":"1","dev":1,"exp":{}}}"#, NOW - SKEW + 1),
        Ok((1, 1)),
    );
    check(r#"{"sub":"1","dev":1,"exp":0}"#, Err(Expired));
    for name in ["nbf", "iat"] {
        let with = |at: u64| format!(r#"{{"sub":"1","dev":1,"exp":{exp},"{name}":{at}}}"#);
        check(&with(NOW + SKEW), Ok((1, 1)));
        check(&with(NOW + SKEW + 1), Err(NotYetValid));
    }
    // The audience.
    let with = |aud: &str| format!(r#"{{"sub":"1","dev":1,"exp":{exp},"aud":{aud}}}"#);
    check(&with(r#"["other","portico"]"#), Ok((1, 1)));
    for aud in [r#""other""#, r#""Portico""#, "[]", r#"["other"]"#] {
        check(&with(aud), Err(WrongAudience));
    }
    for aud in ["7", "{}"] {
        check(&with(aud), Err(Invalid));
    }
    // A claim said twice: readers could differ on which one counts.
    check(
        &format!(r#"{{"sub":"1","sub":"2","dev":1,"exp":{exp}}}"#),
        Err(Invalid),
    );
    check("{}", Err(Invalid));
    check("[]", Err(Invalid));
    check("7", Err(Invalid));
    check("", Err(Invalid));
}

#[test]
fn expired_is_said_only_of_a_token_that_was_good() {
    let claims = r#"{"sub":"0","dev":1,"exp":1}"#;
    check(claims, Err(AuthError::Invalid));
    let forged = signed(
        r#"{"alg":"EdDSA"}"#,
        r#"{"sub":"1","dev":1,"exp":1}"#,
        &pair(9),
    );
    assert_eq!(verdict(&forged), Err(AuthError::Invalid));
}

#[test]
fn no_other_algorithm_is_accepted_however_it_is_signed() {
    let claims = format!(r#"{{"sub":"1","dev":1,"exp":{}}}"#, NOW + 60);
    let raw = public(&pair(1));
    for alg in [
        "none", "None", "NONE", "", "HS256", "HS384", "HS512", "RS256", "PS256", "ES256", "ES384",
        "eddsa", "EDDSA", "Ed25519", "EdDSA ",
    ] {
        let header = format!(r#"{{"alg":"{alg}","typ":"JWT"}}"#);
        let message = format!("{}.{}", encode(&header), encode(&claims));
        let unsigned = format!("{message}.");
        assert_eq!(
            verdict(&unsigned),
            Err(AuthError::Invalid),
            "{alg} unsigned"
        );
        // The known confusion: the public key used as a shared secret.
        let secret = hmac::Key::new(hmac::HMAC_SHA256, &raw);
        let tag = hmac::sign(&secret, message.as_bytes());
        let keyed = format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag));
        assert_eq!(verdict(&keyed), Err(AuthError::Invalid), "{alg} keyed");
        // A good Ed25519 signature under another name.
        let renamed = signed(&header, &claims, &pair(1));
        assert_eq!(verdict(&renamed), Err(AuthError::Invalid), "{alg} renamed");
    }
    for header in [
        r#"{"typ":"JWT"}"#,
        r#"{"alg":null}"#,
        r#"{"alg":["EdDSA"]}"#,
        r#"{"alg":"EdDSA","alg":"none"}"#,
        r#"{"alg":"none","alg":"EdDSA"}"#,
        r#"{"alg":"EdDSA","crit":["exp"]}"#,
        r#"{"alg":"EdDSA","crit":[]}"#,
        "",
        "EdDSA",
        "{",
    ] {
        let token = signed(header, &claims, &pair(1));
        assert_eq!(verdict(&token), Err(AuthError::Invalid), "{header}");
    }
}

#[test]
fn a_key_inside_the_token_is_not_used() {
    let attacker = pair(9);
    let x = URL_SAFE_NO_PAD.encode(public(&attacker));
    let header = format!(
        r#"{{"alg":"EdDSA","jwk":{{"kty":"OKP","crv":"Ed25519","x":"{x}"}},"jku":"http://localhost/"}}"#
    );
    let claims = format!(r#"{{"sub":"1","dev":1,"exp":{}}}"#, NOW + 60);
    let token = signed(&header, &claims, &attacker);
    assert_eq!(verdict(&token), Err(AuthError::Invalid));
}

#[test]
fn the_key_id_selects_the_key() {
    let claims = format!(r#"{{"sub":"1","dev":1,"exp":{}}}"#, NOW + 60);
    let kid = |seed| VerifyingKey::new(public(&pair(seed))).kid().to_owned();
    let with = |kid: &str, key| {
        signed(
            &format!(r#"{{"alg":"EdDSA","kid":"{kid}"}}"#),
            &claims,
            &key,
        )
    };
    assert_eq!(verdict(&with(&kid(1), pair(1))), Ok((1, 1)));
    assert_eq!(verdict(&with(&kid(2), pair(2))), Ok((1, 1)));
    assert_eq!(verdict(&with(&kid(1), pair(2))), Err(AuthError::Invalid));
    assert_eq!(
        verdict(&with("0123456789abcdef", pair(1))),
        Err(AuthError::Invalid)
    );
    assert_eq!(verdict(&with("", pair(1))), Err(AuthError::Invalid));
    // None named: any of the node's keys.
    assert_eq!(
        verdict(&signed(r#"{"alg":"EdDSA"}"#, &claims, &pair(2))),
        Ok((1, 1))
    );
    assert_eq!(
        verdict(&signed(r#"{"alg":"EdDSA"}"#, &claims, &pair(3))),
        Err(AuthError::Invalid)
    );
}

#[test]
fn the_device_of_hello_must_be_the_tokens() {
    let with = |device| Credentials {
        device: DeviceId(device),
        ..shows(&good())
    };
    assert!(authenticator().authenticate(&with(3), NOW).is_ok());
    assert_eq!(
        authenticator().authenticate(&with(4), NOW),
        Err(AuthError::WrongDevice)
    );
}

#[test]
fn a_truncated_or_oversized_token_is_refused() {
    let good = good();
    for length in 0..good.len() {
        assert_eq!(
            verdict(&good[..length]),
            Err(AuthError::Invalid),
            "{length}"
        );
    }
    for tail in [".", "=", "A", " ", ".AAAA", "\n"] {
        assert_eq!(verdict(&format!("{good}{tail}")), Err(AuthError::Invalid));
    }
    // Genuine, but longer than the protocol allows.
    let padded = |filler: usize| {
        token(&format!(
            r#"{{"sub":"1","dev":1,"exp":{},"x":"{}"}}"#,
            NOW + 60,
            "x".repeat(filler)
        ))
    };
    let fits = padded(1_300);
    assert!(fits.len() < portico_wire::limits::TOKEN_BYTES_MAX);
    assert_eq!(verdict(&fits), Ok((1, 1)));
    let long = padded(1_500);
    assert!(long.len() > portico_wire::limits::TOKEN_BYTES_MAX);
    assert_eq!(verdict(&long), Err(AuthError::Invalid));
}

#[test]
fn a_resume_token_needs_no_access_token_and_does_not_renew_itself() {
    let auth = authenticator();
    let first = auth.authenticate(&shows(&good()), NOW).unwrap();
    let reconnect = Credentials {
        token: None,
        resume_token: Some(first.resume_token.clone()),
        device: DeviceId(3),
    };
    let later = auth.authenticate(&reconnect, NOW + 80_000).unwrap();
    assert!(later.resumed);
    assert_eq!((later.user, later.device), (UserId(7), DeviceId(3)));
    assert_eq!(later.resume_token, first.resume_token);
    assert_eq!(later.resume_ttl_s, 6_400);
    assert_eq!(
        auth.authenticate(&reconnect, NOW + 86_400),
        Err(AuthError::ResumeRefused)
    );
}

#[test]
fn a_refused_resume_token_leaves_the_decision_to_the_access_token() {
    let auth = authenticator();
    let with = |token: Option<String>, resume: Vec<u8>, device| Credentials {
        token,
        resume_token: Some(resume),
        device: DeviceId(device),
    };
    let grant = auth
        .authenticate(&with(Some(good()), vec![0; 63], 0), NOW)
        .unwrap();
    assert!(!grant.resumed);
    let expired = token(&format!(r#"{{"sub":"7","dev":3,"exp":{}}}"#, NOW - 100));
    for (token, expected) in [
        (None, AuthError::ResumeRefused),
        (Some(String::new()), AuthError::ResumeRefused),
        (Some("x".to_owned()), AuthError::Invalid),
        (Some(expired), AuthError::Expired),
    ] {
        for resume in [vec![], vec![1; 63], vec![1; 128]] {
            assert_eq!(
                auth.authenticate(&with(token.clone(), resume, 0), NOW),
                Err(expected)
            );
        }
    }
    // Genuine, but of another device than HELLO says.
    assert_eq!(
        auth.authenticate(&with(None, grant.resume_token, 4), NOW),
        Err(AuthError::ResumeRefused)
    );
    assert_eq!(
        auth.authenticate(
            &Credentials {
                token: None,
                resume_token: None,
                device: DeviceId(0)
            },
            NOW
        ),
        Err(AuthError::Invalid)
    );
}

#[test]
fn without_a_time_to_live_no_resume_token_is_issued() {
    let options = JwtOptions {
        resume_ttl_s: 0,
        ..JwtOptions::default()
    };
    let keys = vec![VerifyingKey::new(public(&pair(1)))];
    let auth = JwtAuthenticator::new(keys, ResumeKey::new(&[7; 32]), &options).unwrap();
    let grant = auth.authenticate(&shows(&good()), NOW).unwrap();
    assert_eq!(grant.resume_token, Vec::<u8>::new());
}

#[test]
fn keys_are_made_once_for_this_user_only() {
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("a/b");
    let first = JwtAuthenticator::open(&data, &JwtOptions::default()).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&data), 0o700);
    let mut names: Vec<_> = fs::read_dir(&data)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, [AUTH_KEY_FILE, RESUME_KEY_FILE]);
    for name in names {
        assert_eq!(mode(&data.join(name)), 0o600);
    }
    let again = JwtAuthenticator::open(&data, &JwtOptions::default()).unwrap();
    assert_eq!(first.keys(), again.keys());
    // A resume token survives the restart.
    let identity = Identity {
        user: UserId(7),
        device: DeviceId(3),
        generation: 0,
    };
    let life = Life {
        issued_unix_s: NOW,
        expires_unix_s: NOW + 1,
    };
    let resume = first.resume.issue(identity, life);
    assert_eq!(again.resume.verify(&resume, NOW), Some((identity, life)));
}

#[test]
fn many_processes_that_start_at_once_agree_on_one_key() {
    let data = tempfile::tempdir().unwrap();
    let open = || JwtAuthenticator::open(data.path(), &JwtOptions::default()).unwrap();
    let keys: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap().keys().to_vec())
            .collect()
    });
    assert!(keys.iter().all(|key| *key == keys[0]));
    assert_eq!(fs::read_dir(data.path()).unwrap().count(), 2);
}

#[test]
fn unusable_key_files_are_refused_with_a_sentence() {
    let data = tempfile::tempdir().unwrap();
    let open = |options: &JwtOptions| {
        JwtAuthenticator::open(data.path(), options)
            .unwrap_err()
            .to_string()
    };
    let path = data.path().join(AUTH_KEY_FILE);
    JwtAuthenticator::open(data.path(), &JwtOptions::default()).unwrap();
    let good = fs::read(&path).unwrap();

    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let text = open(&JwtOptions::default());
    assert!(
        text.contains("auth-key.pem can be read by other users (mode 0640)"),
        "{text}"
    );

    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    for bad in [
        &b""[..],
        b"-----BEGIN PRIVATE KEY-----",
        &good[..40],
        &[0xff; 80],
    ] {
        fs::write(&path, bad).unwrap();
        let text = open(&JwtOptions::default());
        assert!(
            text.contains("is not an Ed25519 private key in PEM"),
            "{text}"
        );
    }
    fs::write(&path, &good).unwrap();

    let resume = data.path().join(RESUME_KEY_FILE);
    let secret = fs::read(&resume).unwrap();
    fs::write(&resume, b"short").unwrap();
    assert!(open(&JwtOptions::default()).contains("is not a resume key"));
    fs::write(&resume, secret).unwrap();

    let missing = JwtOptions {
        keys: vec![data.path().join("absent.pem")],
        ..JwtOptions::default()
    };
    assert!(open(&missing).contains("absent.pem"));
    let private_given_as_public = JwtOptions {
        keys: vec![path.clone()],
        ..JwtOptions::default()
    };
    assert!(open(&private_given_as_public).contains("is not an Ed25519 public key"));

    let occupied = JwtAuthenticator::open(&path, &JwtOptions::default());
    assert!(occupied.unwrap_err().to_string().contains("data directory"));
}

#[test]
fn a_configured_public_key_is_accepted_beside_the_nodes_own() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("issuer.pem");
    // RFC 8410, section 10.1: the example public key, as OpenSSL writes it.
    fs::write(
        &file,
        "-----BEGIN PUBLIC KEY-----\n\
         MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
         -----END PUBLIC KEY-----\n",
    )
    .unwrap();
    let options = JwtOptions {
        keys: vec![file],
        ..JwtOptions::default()
    };
    let auth = JwtAuthenticator::open(data.path(), &options).unwrap();
    assert_eq!(auth.keys().len(), 2);
    assert_eq!(auth.keys()[1].raw()[..4], [0x19, 0xbf, 0x44, 0x09]);
}

#[test]
fn the_number_of_keys_is_bounded() {
    let key = |seed| VerifyingKey::new(public(&pair(seed)));
    let with = |keys| JwtAuthenticator::new(keys, ResumeKey::new(&[7; 32]), &JwtOptions::default());
    assert!(matches!(with(vec![]), Err(KeyError::Count { count: 0 })));
    assert!(with((0..8).map(key).collect()).is_ok());
    assert!(matches!(
        with((0..9).map(key).collect()),
        Err(KeyError::Count { count: 9 })
    ));
}

#[test]
fn debug_output_shows_no_secret() {
    let data = tempfile::tempdir().unwrap();
    let auth = JwtAuthenticator::open(data.path(), &JwtOptions::default()).unwrap();
    let text = format!("{auth:?}");
    assert!(text.contains(auth.keys()[0].kid()));
    assert!(text.contains("ResumeKey(..)"), "{text}");
}

#[test]
fn static_tokens_log_in_their_device_only() {
    let auth = StaticAuthenticator::new().allow("secret", UserId(1), DeviceId(2));
    let mut credentials = shows("secret");
    assert_eq!(auth.authenticate(&credentials, 0).unwrap().user, UserId(1));
    credentials.device = DeviceId(9);
    assert_eq!(
        auth.authenticate(&credentials, 0),
        Err(AuthError::WrongDevice)
    );
    assert_eq!(
        auth.authenticate(&shows("other"), 0),
        Err(AuthError::Invalid)
    );
    assert!(!format!("{auth:?}").contains("secret"));
}

proptest! {
    /// A flipped bit anywhere makes the token another text, and no other text is accepted.
    #[test]
    fn a_flipped_bit_is_noticed(position in any::<prop::sample::Index>(), bit in 0..7_u8) {
        let mut bytes = good().into_bytes();
        let index = position.index(bytes.len());
        bytes[index] ^= 1 << bit;
        let forged = String::from_utf8(bytes).unwrap();
        prop_assert_eq!(verdict(&forged), Err(AuthError::Invalid));
    }

    #[test]
    fn garbage_is_refused_without_a_panic(text in "\\PC{0,300}", dots in 0..4_usize) {
        let text = format!("{text}{}", ".eyJhbGciOiJFZERTQSJ9".repeat(dots));
        prop_assert_eq!(verdict(&text), Err(AuthError::Invalid));
    }

    #[test]
    fn garbage_under_a_good_signature_is_refused(claims in "\\PC{0,200}") {
        prop_assert!(verdict(&token(&claims)).is_err());
    }

    #[test]
    fn garbage_resume_tokens_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..160)) {
        let credentials = Credentials {
            token: None,
            resume_token: Some(bytes),
            device: DeviceId(0),
        };
        prop_assert_eq!(
            authenticator().authenticate(&credentials, NOW),
            Err(AuthError::ResumeRefused)
        );
    }
}
