//! Who is not let in, and how it is told.

use super::{CLOSED_AUTH, CLOSED_EXPIRED, CLOSED_RESUME, CLOSED_VERSION};
use crate::harness::{Gateway, close_code, unix_s};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use portico_client::{RawError, mint};
use portico_wire::{
    CloseCode,
    ids::{DeviceId, UserId},
    message::Hello,
};
use ring::hmac;

/// HELLO with these fields ends in a CLOSE with `code`, and is counted.
fn is_refused(gateway: &Gateway, series: &'static str, code: CloseCode, hello: &Hello<'_>) {
    let closed = gateway.watch(series);
    let mut conn = gateway.connect();
    let refused = match conn.hello_with(hello) {
        Err(RawError::Closed(code)) => Ok(code),
        Err(error) => Err(error),
        Ok(welcome) => panic!("let in as {}", welcome.user),
    };
    assert_eq!(close_code(refused), code);
    closed.moves_by(1);
}

fn with_token(token: &str) -> Hello<'_> {
    Hello {
        token: Some(token),
        ..Hello::default()
    }
}

/// A JWT with any header and claims, signed by `sign`.
fn jwt(header: &str, claims: &str, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(claims)
    );
    let signature = sign(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn claims_of_user_1() -> String {
    let exp = unix_s() + 3_600;
    format!(r#"{{"sub":"1","dev":1,"gen":0,"exp":{exp},"aud":"portico"}}"#)
}

#[test]
fn nobody_is_let_in_without_a_token() {
    let gateway = Gateway::start();
    is_refused(
        &gateway,
        CLOSED_AUTH,
        CloseCode::AUTH_FAILED,
        &Hello::default(),
    );
    is_refused(
        &gateway,
        CLOSED_AUTH,
        CloseCode::AUTH_FAILED,
        &with_token(""),
    );
    is_refused(
        &gateway,
        CLOSED_AUTH,
        CloseCode::AUTH_FAILED,
        &with_token("1"),
    );
    gateway.still_serves();
}

#[test]
fn an_expired_token_is_refused_as_expired() {
    let gateway = Gateway::start();
    let token = gateway
        .key
        .token(UserId(1), DeviceId(1), 0, 60, unix_s() - 3_600);
    is_refused(
        &gateway,
        CLOSED_EXPIRED,
        CloseCode::TOKEN_EXPIRED,
        &with_token(&token),
    );
    gateway.still_serves();
}

#[test]
fn a_token_from_the_future_is_refused() {
    let gateway = Gateway::start();
    let token = gateway
        .key
        .token(UserId(1), DeviceId(1), 0, 60, unix_s() + 86_400);
    is_refused(
        &gateway,
        CLOSED_AUTH,
        CloseCode::AUTH_FAILED,
        &with_token(&token),
    );
}

#[test]
fn a_forged_token_is_refused() {
    let gateway = Gateway::start();
    let good = gateway.token(1, 1);
    // The claims of another user under the signature of this one.
    let other = gateway.token(2, 1);
    let parts: Vec<_> = good.split('.').collect();
    let others: Vec<_> = other.split('.').collect();
    let swapped = [parts[0], others[1], parts[2]].join(".");
    let unsigned = [parts[0], parts[1], ""].join(".");
    let mut flipped = URL_SAFE_NO_PAD.decode(parts[2]).expect("base64");
    flipped[5] ^= 1;
    let flipped = [parts[0], parts[1], &URL_SAFE_NO_PAD.encode(flipped)].join(".");
    for token in [
        swapped,
        unsigned,
        flipped,
        good.replace('.', ""),
        format!("{good}."),
    ] {
        is_refused(
            &gateway,
            CLOSED_AUTH,
            CloseCode::AUTH_FAILED,
            &with_token(&token),
        );
    }
    gateway.still_serves();
}

#[test]
fn a_token_of_another_key_is_refused() {
    let gateway = Gateway::start();
    let pem = mint::SigningKey::generate_pem().expect("a key");
    let stranger = mint::SigningKey::from_pem(&pem).expect("a key");
    let token = stranger.token(UserId(1), DeviceId(1), 0, 3_600, unix_s());
    is_refused(
        &gateway,
        CLOSED_AUTH,
        CloseCode::AUTH_FAILED,
        &with_token(&token),
    );
    // The same under the name of the gateway's key: its own name is not what counts.
    let header = format!(
        r#"{{"alg":"EdDSA","typ":"JWT","kid":"{}"}}"#,
        gateway.key.kid()
    );
    let rest = token.split_once('.').expect("three parts").1;
    let renamed = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header));
    is_refused(
        &gateway,
        CLOSED_AUTH,
        CloseCode::AUTH_FAILED,
        &with_token(&renamed),
    );
    gateway.still_serves();
}

#[test]
fn other_algorithms_are_refused() {
    let gateway = Gateway::start();
    let kid = gateway.key.kid().to_owned();
    let claims = claims_of_user_1();
    for alg in ["none", "None", "NONE", "", "HS256", "RS256", "ES256"] {
        let header = format!(r#"{{"alg":"{alg}","typ":"JWT","kid":"{kid}"}}"#);
        let nothing = jwt(&header, &claims, |_| Vec::new());
        is_refused(
            &gateway,
            CLOSED_AUTH,
            CloseCode::AUTH_FAILED,
            &with_token(&nothing),
        );
        // The public key as the secret of a MAC: the classic confusion.
        let mac = jwt(&header, &claims, |signed| {
            let secret = hmac::Key::new(hmac::HMAC_SHA256, gateway.key.public_key());
            hmac::sign(&secret, signed).as_ref().to_vec()
        });
        is_refused(
            &gateway,
            CLOSED_AUTH,
            CloseCode::AUTH_FAILED,
            &with_token(&mac),
        );
    }
    gateway.still_serves();
}

#[test]
fn a_device_that_is_not_the_tokens_is_refused() {
    let gateway = Gateway::start();
    let token = gateway.token(1, 1);
    let hello = Hello {
        device: DeviceId(2),
        ..with_token(&token)
    };
    is_refused(&gateway, CLOSED_AUTH, CloseCode::AUTH_FAILED, &hello);
    let hello = Hello {
        device: DeviceId(1),
        ..with_token(&token)
    };
    assert!(gateway.connect().hello_with(&hello).is_ok());
    gateway.still_serves();
}

#[test]
fn tokens_for_nobody_are_refused() {
    let gateway = Gateway::start();
    for (user, device) in [(0, 1), (u64::MAX, 1), (1, 0)] {
        let token = gateway.token(user, device);
        is_refused(
            &gateway,
            CLOSED_AUTH,
            CloseCode::AUTH_FAILED,
            &with_token(&token),
        );
    }
    gateway.still_serves();
}

#[test]
fn a_forged_resume_token_is_refused_unless_the_access_token_is_good() {
    let gateway = Gateway::start();
    let mut resume = gateway.login(1, 1).welcome.resume_token;
    let last = resume.len() - 1;
    resume[last] ^= 1;
    let forged = Hello {
        resume_token: Some(&resume),
        ..Hello::default()
    };
    is_refused(&gateway, CLOSED_RESUME, CloseCode::RESUME_REFUSED, &forged);
    let token = gateway.token(1, 1);
    let both = Hello {
        token: Some(&token),
        ..forged
    };
    let welcome = gateway.connect().hello_with(&both).expect("WELCOME");
    assert!(!welcome.resumed);
    gateway.still_serves();
}

#[test]
fn versions_of_the_future_and_of_the_past_are_refused() {
    let gateway = Gateway::start();
    let token = gateway.token(1, 1);
    for (min_version, max_version) in [(2, 3), (0, 0), (3, 1)] {
        let hello = Hello {
            min_version,
            max_version,
            ..with_token(&token)
        };
        is_refused(
            &gateway,
            CLOSED_VERSION,
            CloseCode::VERSION_UNSUPPORTED,
            &hello,
        );
    }
    let hello = Hello {
        min_version: 0,
        max_version: 9,
        ..with_token(&token)
    };
    assert!(gateway.connect().hello_with(&hello).is_ok(), "1 is between");
    gateway.still_serves();
}

/// Credentials are nowhere in the log, however wrong they are.
#[test]
fn the_log_holds_no_tokens() {
    let setup = crate::harness::Setup::new().set("log.level", "trace");
    let gateway = setup.start();
    let good = gateway.token(1, 1);
    let resume = gateway.login(1, 1).welcome.resume_token;
    let bad = good.replace('.', ".A");
    let _ = gateway.connect().hello(&bad);
    gateway.still_serves();
    let log = gateway.child.err.text();
    let signature = good.rsplit('.').next().expect("three parts");
    for secret in [
        good.as_str(),
        bad.as_str(),
        signature,
        &URL_SAFE_NO_PAD.encode(&resume),
    ] {
        assert!(!log.contains(secret));
    }
}
