//! Issuer, audience, lifetimes, and what a session has of them.

use super::*;

fn with(options: JwtOptions) -> JwtAuthenticator {
    let keys = vec![
        VerifyingKey::new(public(&pair(1))),
        VerifyingKey::new(public(&pair(2))).named("set".to_owned()),
    ];
    JwtAuthenticator::new(keys, ResumeKey::new(&[7; 32]), &options).unwrap()
}

fn ask(auth: &JwtAuthenticator, token: &str) -> Result<Grant, AuthError> {
    auth.authenticate(&shows(token), NOW)
}

#[test]
fn the_issuer_counts_where_one_is_named() {
    let auth = with(JwtOptions {
        issuer: "https://id.example".to_owned(),
        ..JwtOptions::default()
    });
    let exp = NOW + 60;
    for (iss, expected) in [
        (r#""https://id.example""#, Ok(())),
        (r#""https://id.example/""#, Err(AuthError::WrongAudience)),
        (r#""""#, Err(AuthError::WrongAudience)),
        ("null", Err(AuthError::WrongAudience)),
        ("7", Err(AuthError::Invalid)),
    ] {
        let text = token(&format!(r#"{{"sub":"1","dev":1,"exp":{exp},"iss":{iss}}}"#));
        assert_eq!(ask(&auth, &text).map(drop), expected, "{iss}");
    }
    let without = token(&format!(r#"{{"sub":"1","dev":1,"exp":{exp}}}"#));
    assert_eq!(ask(&auth, &without), Err(AuthError::WrongAudience));
}

/// A set of keys may serve other services of the same issuer.
#[test]
fn a_key_of_a_set_is_used_by_its_name_and_for_this_audience_only() {
    let auth = with(JwtOptions::default());
    let exp = NOW + 60;
    let of = |header: &str, aud: &str| {
        let claims = format!(r#"{{"sub":"1","dev":1,"exp":{exp}{aud}}}"#);
        ask(&auth, &signed(header, &claims, &pair(2))).map(drop)
    };
    let named = r#"{"alg":"EdDSA","kid":"set"}"#;
    assert_eq!(of(named, r#","aud":"portico""#), Ok(()));
    assert_eq!(of(named, ""), Err(AuthError::WrongAudience));
    assert_eq!(of(named, r#","aud":null"#), Err(AuthError::WrongAudience));
    assert_eq!(of(named, r#","aud":"mail""#), Err(AuthError::WrongAudience));
    let nameless = r#"{"alg":"EdDSA"}"#;
    assert_eq!(of(nameless, r#","aud":"portico""#), Err(AuthError::Invalid));
}

#[test]
fn lives_are_bounded_by_what_a_token_says_and_by_what_is_left_of_it() {
    let auth = with(JwtOptions {
        token_ttl_s_max: 3_600,
        clock_skew_s: SKEW,
        ..JwtOptions::default()
    });
    let long = Err(AuthError::LivesTooLong);
    for (times, expected) in [
        (format!(r#""iat":{NOW},"exp":{}"#, NOW + 3_600), Ok(())),
        (format!(r#""iat":{NOW},"exp":{}"#, NOW + 3_601), long),
        // Old, and about to end: it was too long from the start.
        (format!(r#""iat":{},"exp":{}"#, NOW - 9_000, NOW + 60), long),
        (format!(r#""exp":{}"#, NOW + 3_600 + SKEW), Ok(())),
        (format!(r#""exp":{}"#, NOW + 3_601 + SKEW), long),
        (format!(r#""exp":{}"#, u64::MAX), long),
        (format!(r#""iat":0,"exp":{}"#, u64::MAX), long),
        (
            format!(r#""iat":{},"exp":{}"#, NOW + 10, NOW + 5),
            Err(AuthError::Invalid),
        ),
    ] {
        let text = token(&format!(r#"{{"sub":"1","dev":1,{times}}}"#));
        assert_eq!(ask(&auth, &text).map(drop), expected, "{times}");
    }
}

#[test]
fn a_session_lasts_as_long_as_what_was_shown_for_it() {
    let auth = with(JwtOptions {
        clock_skew_s: SKEW,
        ..JwtOptions::default()
    });
    let first = ask(&auth, &good()).unwrap();
    assert_eq!(first.expires_unix_s, NOW + 60 + SKEW);
    let resume = Credentials {
        token: None,
        resume_token: Some(first.resume_token),
        device: DeviceId(0),
    };
    let again = auth.authenticate(&resume, NOW + 100).unwrap();
    assert_eq!(again.expires_unix_s, NOW + 86_400);
}

#[test]
fn a_revoked_device_needs_a_token_of_its_new_generation() {
    use portico_backend::{Limits, memory};
    let store = memory::Store::new();
    let records = store.records(Limits::default());
    let revocations = Arc::new(Revocations::open(records, 1_000_000, NOW).unwrap());
    let auth = with(JwtOptions::default()).with_revocations(revocations.clone());
    let of = |generation: u32, iat: u64| {
        let exp = iat + 900;
        token(&format!(
            r#"{{"sub":"7","dev":3,"gen":{generation},"iat":{iat},"exp":{exp}}}"#
        ))
    };
    let before = ask(&auth, &of(0, NOW)).unwrap();
    let resume = |token: Option<String>| Credentials {
        token,
        resume_token: Some(before.resume_token.clone()),
        device: DeviceId(0),
    };
    assert!(auth.authenticate(&resume(None), NOW).unwrap().resumed);
    let device = Some(DeviceId(3));
    let (generation, revocation) = revocations.revoke(UserId(7), device, NOW + 100).unwrap();
    assert_eq!(generation, 1);
    assert_eq!(before.epoch, 0);
    let later = NOW + 101;
    let verdict = |credentials: &Credentials| auth.authenticate(credentials, later);
    assert_eq!(verdict(&shows(&of(0, NOW))), Err(AuthError::Revoked));
    assert_eq!(verdict(&shows(&of(0, later))), Err(AuthError::Revoked));
    // The generation is guessed, the time is not.
    assert_eq!(verdict(&shows(&of(9, NOW))), Err(AuthError::Revoked));
    assert_eq!(verdict(&resume(None)), Err(AuthError::Revoked));
    assert_eq!(verdict(&resume(Some(of(0, NOW)))), Err(AuthError::Revoked));
    // Linked anew, with the old resume token still beside the new token.
    let anew = verdict(&resume(Some(of(1, later)))).unwrap();
    assert!(!anew.resumed && anew.epoch >= revocation.epoch);
    // A certificate has no generation: alone it is that of before.
    let vouch = |device| auth.vouch(UserId(7), DeviceId(device));
    assert_eq!(vouch(3), Err(AuthError::Revoked));
    assert_eq!(vouch(4), Ok(revocation.epoch));
    // Another device of the user never heard of it.
    let other = format!(r#"{{"sub":"7","dev":4,"exp":{}}}"#, NOW + 900);
    assert!(verdict(&shows(&token(&other))).is_ok());
}
