//! What tokens are good for, and for how long: rotation of keys, renewal, expiry, revocation; and what
//! somebody can do with one that is not theirs.

use crate::harness::{Child, Exit, Gateway, Peer, Setup, eventually, unix_s};
use portico_client::{Client, OwnedEvent, RawError, Session, SessionState, mint::SigningKey};
use portico_wire::{
    CloseCode, ErrorCode, Op,
    ids::{DeviceId, UserId},
    message::{Hello, Reauth},
};
use rustix::process::Signal;
use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

const REVOKED: &str = r#"portico_logins_refused_total{reason="revoked"}"#;

/// `portico device revoke` beside this gateway.
fn revoke(gateway: &Gateway, more: &[&str]) -> Exit {
    let data = gateway.setup().data().display().to_string();
    let admin = gateway.admin.to_string();
    let mut arguments = vec!["device", "revoke", "--data", &data, "--admin", &admin];
    arguments.extend(more);
    Child::run(&arguments, &[])
}

/// How a login ends.
fn login(gateway: &Gateway, hello: &Hello<'_>) -> Result<(), CloseCode> {
    match gateway.connect().hello_with(hello) {
        Ok(_) => Ok(()),
        Err(RawError::Closed(code)) => Err(code),
        Err(error) => panic!("neither WELCOME nor CLOSE: {error}"),
    }
}

fn shows(token: &str) -> Hello<'_> {
    Hello {
        token: Some(token),
        ..Hello::default()
    }
}

fn resumes(token: &[u8]) -> Hello<'_> {
    Hello {
        resume_token: Some(token),
        ..Hello::default()
    }
}

/// REAUTH as request 77.
fn reauth(peer: &mut Peer, token: &str) {
    let mut out = Vec::new();
    let reauth = Reauth { token };
    peer.conn.encoder().reauth(&mut out, 77, &reauth);
    peer.write(&out);
}

fn token_of(gateway: &Gateway, user: u64, device: u16, generation: u32, ttl_s: u64) -> String {
    let (user, device) = (UserId(user), DeviceId(device));
    gateway.key.token(user, device, generation, ttl_s, unix_s())
}

#[test]
fn a_revocation_cuts_the_device_within_a_second_and_outlives_a_restart() {
    let gateway = Gateway::start();
    let mut lost = gateway.login(7, 3);
    let mut other_device = gateway.login(7, 4);
    let mut other_user = gateway.login(8, 3);
    let (resume, token) = (lost.welcome.resume_token.clone(), gateway.token(7, 3));
    assert_eq!(login(&gateway, &resumes(&resume)), Ok(()));
    assert_eq!(lost.closed(), CloseCode::SESSION_REPLACED);
    let mut lost = gateway.login(7, 3);

    let start = Instant::now();
    let exit = revoke(&gateway, &["--user", "7", "--device", "3"]);
    assert_eq!(exit.code, Some(0), "{}", exit.err);
    assert!(
        exit.out.contains("generation 1 from now on"),
        "{}",
        exit.out
    );
    assert_eq!(lost.closed(), CloseCode::DEVICE_REVOKED);
    // With the start of a process and an fsync in it.
    assert!(start.elapsed() < Duration::from_secs(5));
    let revoked = Err(CloseCode::DEVICE_REVOKED);
    assert_eq!(login(&gateway, &shows(&token)), revoked);
    assert_eq!(login(&gateway, &resumes(&resume)), revoked);
    gateway.await_metric(REVOKED, |count| count == 2);
    gateway.await_metric("portico_sessions_revoked_total", |count| count == 1);
    other_device.ping();
    other_user.ping();

    // Linked anew: the next generation is let in, at once and after a restart.
    let anew = token_of(&gateway, 7, 3, 1, 3_600);
    assert_eq!(login(&gateway, &shows(&anew)), Ok(()));
    let setup = gateway.setup().clone();
    gateway.kill();
    let gateway = setup.start();
    assert_eq!(login(&gateway, &shows(&token)), revoked);
    assert_eq!(login(&gateway, &resumes(&resume)), revoked);
    assert_eq!(login(&gateway, &shows(&anew)), Ok(()));
    gateway.still_serves();
}

#[test]
fn all_devices_of_a_user_can_be_revoked_and_with_a_stopped_gateway_too() {
    let gateway = Gateway::start();
    let (mut one, mut two) = (gateway.login(7, 1), gateway.login(7, 2));
    let (resume, away) = (one.welcome.resume_token.clone(), gateway.token(7, 9));
    let exit = revoke(&gateway, &["--user", "7"]);
    assert_eq!(exit.code, Some(0), "{}", exit.err);
    assert!(exit.out.contains("all devices of user 7"), "{}", exit.out);
    assert_eq!(one.closed(), CloseCode::DEVICE_REVOKED);
    assert_eq!(two.closed(), CloseCode::DEVICE_REVOKED);
    let revoked = Err(CloseCode::DEVICE_REVOKED);
    assert_eq!(login(&gateway, &shows(&away)), revoked);

    let setup = gateway.setup().clone();
    let data = setup.data().display().to_string();
    let admin = gateway.admin.to_string();
    // The store is in use: that is said, and not worked around.
    let nobody = "127.0.0.1:1";
    let arguments = [
        "device", "revoke", "--data", &data, "--admin", nobody, "--user", "7",
    ];
    let exit = Child::run(&arguments, &[]);
    assert_eq!(exit.code, Some(1));
    assert!(exit.err.contains("name it with --admin"), "{}", exit.err);
    let device_1 = token_of(&gateway, 7, 1, 1, 3_600);
    let device_2 = token_of(&gateway, 7, 2, 1, 3_600);
    assert_eq!(login(&gateway, &shows(&device_1)), Ok(()));
    gateway.stop();

    let arguments = [
        "device", "revoke", "--data", &data, "--admin", &admin, "--user", "7", "--device", "1",
    ];
    let exit = Child::run(&arguments, &[]);
    assert_eq!(exit.code, Some(0), "{}", exit.err);
    assert!(
        exit.out.contains("generation 2 from now on"),
        "{}",
        exit.out
    );
    assert!(exit.out.contains("no gateway runs here"), "{}", exit.out);
    let gateway = setup.start();
    assert_eq!(login(&gateway, &shows(&device_1)), revoked);
    assert_eq!(login(&gateway, &shows(&device_2)), Ok(()));
    assert_eq!(login(&gateway, &resumes(&resume)), revoked);
    let anew = token_of(&gateway, 7, 1, 2, 3_600);
    assert_eq!(login(&gateway, &shows(&anew)), Ok(()));
}

/// What changes something through the admin port needs the secret of the data directory.
#[test]
fn a_stranger_at_the_admin_port_revokes_nobody() {
    use std::io::{Read, Write};
    let gateway = Gateway::start();
    let mut peer = gateway.login(7, 1);
    let post = |head: &str| {
        let mut stream = std::net::TcpStream::connect(gateway.admin).expect("the admin port");
        let text = format!(
            "POST /devices/revoke?user=7 HTTP/1.1\r\nHost: portico\r\n{head}\
             Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(text.as_bytes()).expect("it is taken");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    };
    let forged = format!(
        "Authorization: Portico t={},n=0123456789abcdef,mac={}\r\n",
        unix_s(),
        "0".repeat(64)
    );
    for head in ["", "Authorization: Bearer x\r\n", &forged] {
        let answer = post(head);
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    }
    assert_ne!(gateway.get("/devices/revoke?user=7").status, 200);
    peer.ping();
    // The key of another data directory is not this gateway's.
    let other = Gateway::start();
    let data = other.setup().data().display().to_string();
    let admin = gateway.admin.to_string();
    let arguments = [
        "device", "revoke", "--data", &data, "--admin", &admin, "--user", "7",
    ];
    let exit = Child::run(&arguments, &[]);
    assert_eq!(exit.code, Some(1));
    assert!(exit.err.contains("has another key"), "{}", exit.err);
    peer.ping();
}

#[test]
fn a_session_ends_with_its_token_and_a_new_one_extends_it() {
    let gateway = Setup::new().set("auth.clock_skew_s", 0).start();
    let short = token_of(&gateway, 1, 1, 0, 4);
    let mut extended = Peer::login(gateway.connect(), &short);
    let mut left = Peer::login(gateway.connect(), &token_of(&gateway, 2, 1, 0, 4));
    reauth(&mut extended, &token_of(&gateway, 1, 1, 0, 600));
    let done = extended.reply(77);
    assert_eq!(done.known_op(), Some(Op::Done));
    assert!((590..=600).contains(&done.aux), "{}", done.aux);
    assert_eq!(left.closed(), CloseCode::TOKEN_EXPIRED);
    extended.ping();
    gateway.await_metric("portico_logins_renewed_total", |count| count == 1);
    // The expired one does not open another.
    let expired = Err(CloseCode::TOKEN_EXPIRED);
    eventually("the first token has expired too", || {
        (login(&gateway, &shows(&short)) == expired).then_some(())
    });
    // That was one login of the same device, which took over, until the token ran out.
    gateway.still_serves();
}

#[test]
fn a_token_of_somebody_else_extends_nothing() {
    let gateway = Gateway::start();
    let mut peer = gateway.login(1, 1);
    let forged = gateway.token(1, 1).replace('.', ".A");
    for (token, code) in [
        (gateway.token(2, 1), ErrorCode::FORBIDDEN),
        (gateway.token(1, 2), ErrorCode::FORBIDDEN),
        (forged, ErrorCode::UNAUTHENTICATED),
        (
            gateway
                .key
                .token(UserId(1), DeviceId(1), 0, 60, unix_s() - 9_000),
            ErrorCode::TOKEN_EXPIRED,
        ),
    ] {
        reauth(&mut peer, &token);
        assert_eq!(peer.refused(77).code, code);
    }
    peer.ping();
    gateway.await_metric(
        r#"portico_logins_refused_total{reason="wrong_user"}"#,
        |count| count == 1,
    );
    gateway.still_serves();
}

/// The client library gets itself a new token before the old one runs out, and nobody notices.
#[test]
fn a_client_with_a_source_of_tokens_stays_connected() {
    let gateway = Setup::new().set("auth.clock_skew_s", 0).start();
    let pem = fs::read_to_string(gateway.setup().data().join("auth-key.pem")).expect("the key");
    let key = SigningKey::from_pem(&pem).expect("a key");
    let mut config = gateway.session(1, 1);
    config.token = token_of(&gateway, 1, 1, 0, 5);
    let session = Session::new(config, SessionState::default(), 1);
    let client = Client::connect(gateway.listen.to_string(), session).expect("a thread");
    let made = Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    client.refresh_with(move || {
        count.fetch_add(1, Ordering::SeqCst);
        Some(key.token(UserId(1), DeviceId(1), 0, 600, unix_s()))
    });
    let mut ended = false;
    let renewed = client.wait_for(Duration::from_secs(30), |event| match event {
        OwnedEvent::Renewed { ttl_s } => Some(*ttl_s),
        OwnedEvent::Closed { .. } => {
            ended = true;
            Some(0)
        }
        _ => None,
    });
    assert!(!ended, "the session ended first");
    assert!(renewed.is_some_and(|ttl_s| ttl_s > 500), "{renewed:?}");
    assert_eq!(made.load(Ordering::SeqCst), 1);
    client
        .send_text(UserId(2), "still here")
        .expect("it is sent");
    assert_eq!(gateway.login(2, 1).message().text, "still here");
}

#[test]
fn keys_are_replaced_step_by_step_without_a_restart() {
    let keys: Vec<_> = (0..2)
        .map(|_| SigningKey::from_pem(&SigningKey::generate_pem().expect("a key")).expect("a key"))
        .collect();
    let setup = Setup::new();
    let file = setup.directory().join("issuer.json");
    let write = |named: &[(&str, &SigningKey)]| {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        let keys: Vec<_> = named
            .iter()
            .map(|(kid, key)| {
                let x = URL_SAFE_NO_PAD.encode(key.public_key());
                format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"{kid}","x":"{x}"}}"#)
            })
            .collect();
        let new = file.with_extension("new");
        fs::write(&new, format!(r#"{{"keys":[{}]}}"#, keys.join(","))).expect("written");
        fs::rename(&new, &file).expect("renamed");
    };
    let kid = |key: &SigningKey| key.kid().to_owned();
    let (old, new) = (&keys[0], &keys[1]);
    write(&[(&kid(old), old)]);
    let gateway = setup.set("auth.keys", file.display()).start();
    let of = |key: &SigningKey| key.token(UserId(1), DeviceId(1), 0, 600, unix_s());
    let enters = |key: &SigningKey| login(&gateway, &shows(&of(key))).is_ok();
    assert!(enters(old) && !enters(new));
    let mut stays = Peer::login(
        gateway.connect(),
        &old.token(UserId(5), DeviceId(1), 0, 600, unix_s()),
    );
    write(&[(&kid(old), old), (&kid(new), new)]);
    eventually("the new key is accepted", || enters(new).then_some(()));
    assert!(enters(old));
    write(&[(&kid(new), new)]);
    eventually("the old key is refused", || (!enters(old)).then_some(()));
    assert!(enters(new));
    // A signal has everything read again; nobody is disconnected by any of it.
    let read = r#"portico_token_keys_read_total{source="files",result="good"}"#;
    let before = gateway.metrics().get(read);
    gateway.child.signal(Signal::HUP);
    gateway.await_metric(read, |count| count > before);
    stays.ping();
    assert_eq!(gateway.metrics().get("portico_token_keys"), 2);
    gateway.still_serves();
}

#[test]
fn a_broken_key_file_is_told_and_changes_nothing() {
    let setup = Setup::new().expect_log("key files cannot be used; the keys before stay");
    let key = SigningKey::from_pem(&SigningKey::generate_pem().expect("a key")).expect("a key");
    let file = setup.directory().join("issuer.json");
    let x = {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        URL_SAFE_NO_PAD.encode(key.public_key())
    };
    let good = format!(
        r#"{{"kty":"OKP","crv":"Ed25519","kid":"{}","x":"{x}"}}"#,
        key.kid()
    );
    fs::write(&file, good).expect("written");
    let gateway = setup.set("auth.keys", file.display()).start();
    let token = key.token(UserId(1), DeviceId(1), 0, 600, unix_s());
    assert_eq!(login(&gateway, &shows(&token)), Ok(()));
    fs::write(&file, r#"{"kty":"oct","k":"c2VjcmV0","kid":"s"}"#).expect("written");
    let failed = r#"portico_token_keys_read_total{source="files",result="failed"}"#;
    gateway.await_metric(failed, |count| count == 1);
    assert_eq!(login(&gateway, &shows(&token)), Ok(()));
    gateway.child.err.wait_for("is symmetric");
}

/// A resume token is good for its own device only, and a thief who uses it shows himself: the owner's
/// session ends, and the owner has it revoked.
#[test]
fn a_stolen_resume_token_is_for_its_device_and_can_be_ended() {
    let gateway = Gateway::start();
    let mut owner = gateway.login(1, 1);
    let stolen = owner.welcome.resume_token.clone();
    for device in [2, 65_535] {
        let hello = Hello {
            device: DeviceId(device),
            ..resumes(&stolen)
        };
        assert_eq!(login(&gateway, &hello), Err(CloseCode::RESUME_REFUSED));
    }
    // With an access token of somebody else beside it, that one decides.
    let other = gateway.token(2, 9);
    let mixed = Hello {
        device: DeviceId(9),
        resume_token: Some(&stolen),
        ..shows(&other)
    };
    let welcome = gateway.connect().hello_with(&mixed).expect("WELCOME");
    assert_eq!((welcome.user, welcome.resumed), (UserId(2), false));
    owner.ping();
    // Used twice: the second takes over from the first, as any login of a device does.
    let mut thief = Peer::login_with(gateway.connect(), &resumes(&stolen));
    assert_eq!(owner.closed(), CloseCode::SESSION_REPLACED);
    let mut again = Peer::login_with(gateway.connect(), &resumes(&stolen));
    assert_eq!(thief.closed(), CloseCode::SESSION_REPLACED);
    let exit = revoke(&gateway, &["--user", "1", "--device", "1"]);
    assert_eq!(exit.code, Some(0), "{}", exit.err);
    assert_eq!(again.closed(), CloseCode::DEVICE_REVOKED);
    let revoked = Err(CloseCode::DEVICE_REVOKED);
    assert_eq!(login(&gateway, &resumes(&stolen)), revoked);
    gateway.still_serves();
}

/// A token seen on one device's wire is good for that device, whoever shows it, and for no other.
#[test]
fn a_replayed_token_names_its_own_device() {
    let gateway = Gateway::start();
    let token = gateway.token(1, 1);
    let hello = Hello {
        device: DeviceId(2),
        ..shows(&token)
    };
    assert_eq!(login(&gateway, &hello), Err(CloseCode::AUTH_FAILED));
    let wrong = r#"portico_logins_refused_total{reason="wrong_device"}"#;
    gateway.await_metric(wrong, |count| count == 1);
    let welcome = gateway
        .connect()
        .hello_with(&shows(&token))
        .expect("WELCOME");
    assert_eq!(welcome.device, DeviceId(1));
}

/// Neither the log nor the metrics hold what a thief could use.
#[test]
fn a_revocation_and_a_renewal_are_told_without_their_tokens() {
    let gateway = Setup::new().set("log.level", "trace").start();
    let token = gateway.token(7, 3);
    let mut peer = Peer::login(gateway.connect(), &token);
    let fresh = token_of(&gateway, 7, 3, 0, 9_000);
    reauth(&mut peer, &fresh);
    assert_eq!(peer.reply(77).known_op(), Some(Op::Done));
    assert_eq!(revoke(&gateway, &["--user", "7"]).code, Some(0));
    assert_eq!(peer.closed(), CloseCode::DEVICE_REVOKED);
    gateway.child.err.wait_for("revoked on an operator's word");
    let page = gateway.get("/metrics").body;
    let log = gateway.child.err.text();
    for token in [&token, &fresh] {
        let signature = token.rsplit('.').next().expect("three parts");
        assert!(!log.contains(signature) && !page.contains(signature));
    }
    assert!(!log.contains("mac="));
}
