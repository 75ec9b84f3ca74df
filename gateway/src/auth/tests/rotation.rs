//! Keys that change while the gateway runs: files, and an address that behaves well, badly, or not
//! at all.

use super::*;
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(30);

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// An issuer's address. What it answers may change; every request is counted.
struct Issuer {
    address: SocketAddr,
    answer: Arc<Mutex<Vec<u8>>>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    fn start(answer: Vec<u8>, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(Mutex::new(answer));
        let asked = Arc::new(AtomicUsize::new(0));
        let (answers, count) = (answer.clone(), asked.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::SeqCst);
                let bytes = answers.lock().unwrap().clone();
                let tls = tls.clone();
                thread::spawn(move || match tls {
                    Some(config) => {
                        let session = ServerConnection::new(config).unwrap();
                        serve(StreamOwned::new(session, stream), &bytes);
                    }
                    None => serve(stream, &bytes),
                });
            }
        });
        Self {
            address,
            answer,
            asked,
        }
    }

    fn say(&self, answer: Vec<u8>) {
        *self.answer.lock().unwrap() = answer;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn options(&self) -> JwtOptions {
        JwtOptions {
            jwks_url: format!("http://{}/keys", self.address),
            jwks_refresh_s: 3_600,
            jwks_cooldown_s: 3_600,
            ..JwtOptions::default()
        }
    }
}

fn serve(mut stream: impl Read + Write, answer: &[u8]) {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => request.push(byte[0]),
            _ => return,
        }
    }
    assert!(request.starts_with(b"GET /keys HTTP/1.1\r\nHost: "));
    // A client that has heard enough may be gone.
    let _ = stream.write_all(answer);
    let _ = stream.flush();
}

fn ok(body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
}

fn set(keys: &[(&str, u8)]) -> String {
    let keys: Vec<_> = keys
        .iter()
        .map(|(kid, seed)| {
            let x = URL_SAFE_NO_PAD.encode(public(&pair(*seed)));
            format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"{kid}","x":"{x}"}}"#)
        })
        .collect();
    format!(r#"{{"keys":[{}]}}"#, keys.join(","))
}

fn open(data: &Path, options: &JwtOptions) -> JwtAuthenticator {
    JwtAuthenticator::open(data, options).unwrap()
}

fn shown(auth: &JwtAuthenticator, kid: &str, seed: u8) -> Result<(), AuthError> {
    let claims = format!(
        r#"{{"sub":"1","dev":1,"exp":{},"aud":"portico"}}"#,
        NOW + 60
    );
    let header = format!(r#"{{"alg":"EdDSA","kid":"{kid}"}}"#);
    let token = signed(&header, &claims, &pair(seed));
    auth.authenticate(&shows(&token), NOW).map(drop)
}

#[test]
fn a_changed_file_is_read_and_a_broken_one_changes_nothing() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("issuer.json");
    let replace = |text: &str| {
        let new = data.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, &file).unwrap();
    };
    replace(&set(&[("old", 1)]));
    let options = JwtOptions {
        keys: vec![file.clone()],
        ..JwtOptions::default()
    };
    let auth = open(data.path(), &options);
    let stats = auth.key_stats();
    let keeper = auth.keep_keys().unwrap();
    assert_eq!((shown(&auth, "old", 1), stats().keys), (Ok(()), 2));
    // Step by step: the new one beside the old one, then without it.
    replace(&set(&[("old", 1), ("new", 2)]));
    eventually("both", || shown(&auth, "new", 2).is_ok());
    assert_eq!(shown(&auth, "old", 1), Ok(()));
    replace(&set(&[("new", 2)]));
    eventually("one", || shown(&auth, "old", 1) == Err(AuthError::Invalid));
    assert_eq!(
        (shown(&auth, "new", 2), stats().reloads_failed),
        (Ok(()), 0)
    );
    for broken in [
        "{",
        r#"{"keys":[{"kty":"oct","k":"AA"}]}"#,
        &set(&[("new", 2), ("new", 3)]),
    ] {
        let failed = stats().reloads_failed;
        replace(broken);
        eventually("a failure", || stats().reloads_failed > failed);
        assert_eq!(shown(&auth, "new", 2), Ok(()), "{broken}");
    }
    fs::remove_file(&file).unwrap();
    replace(&set(&[("newest", 3)]));
    eventually("the newest", || shown(&auth, "newest", 3).is_ok());
    // A signal has it read without a change.
    let before = stats().reloads;
    keeper
        .reload_flag()
        .store(true, std::sync::atomic::Ordering::Relaxed);
    eventually("a reload", || stats().reloads > before);
}

#[test]
fn the_keys_of_an_address_are_used_and_stay_when_it_goes_mad() {
    let data = tempfile::tempdir().unwrap();
    let issuer = Issuer::start(ok(&set(&[("a", 1)])), None);
    let options = JwtOptions {
        jwks_refresh_s: 1,
        jwks_cooldown_s: 1,
        ..issuer.options()
    };
    let auth = open(data.path(), &options);
    assert_eq!(
        shown(&auth, "a", 1),
        Err(AuthError::Unavailable),
        "nobody has asked yet"
    );
    let stats = auth.key_stats();
    let _keeper = auth.keep_keys().unwrap();
    assert_eq!(shown(&auth, "a", 1), Ok(()));
    let long = format!("{}{}", " ".repeat(70_000), set(&[("b", 2)]));
    let private = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"b","x":"AA","d":"AA"}]}"#;
    for mad in [
        Vec::new(),
        b"SSH-2.0-x\r\n\r\n".to_vec(),
        b"HTTP/1.1 500 No\r\n\r\n".to_vec(),
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{".to_vec(),
        vec![b'x'; 200_000],
        ok(&long),
        ok("{}"),
        ok("[]"),
        ok(private),
        ok(r#"{"keys":[{"kty":"oct","k":"AA","kid":"b"}]}"#),
        ok(&set(&[("b", 2), ("b", 3)])),
        // The name of the node's own key, for another key.
        ok(&set(&[(auth.keys()[0].kid(), 2)])),
    ] {
        let failed = stats().fetches_failed;
        issuer.say(mad.clone());
        eventually("a failure", || stats().fetches_failed > failed);
        let start = String::from_utf8_lossy(&mad[..mad.len().min(60)]).into_owned();
        assert_eq!(shown(&auth, "a", 1), Ok(()), "{start}");
        assert_eq!(shown(&auth, "b", 2), Err(AuthError::UnknownKey), "{start}");
    }
    // It comes to its senses, with another key.
    issuer.say(ok(&set(&[("b", 2)])));
    eventually("the new key", || shown(&auth, "b", 2).is_ok());
    assert_eq!(shown(&auth, "a", 1), Err(AuthError::UnknownKey));
    assert!(stats().age_s.is_some());
}

#[test]
fn a_flood_of_unknown_keys_is_one_question() {
    let data = tempfile::tempdir().unwrap();
    let issuer = Issuer::start(ok(&set(&[("a", 1)])), None);
    let auth = open(data.path(), &issuer.options());
    let _keeper = auth.keep_keys().unwrap();
    assert_eq!(issuer.asked(), 1);
    for number in 0..2_000 {
        let verdict = shown(&auth, &format!("unknown-{number}"), 9);
        assert_eq!(verdict, Err(AuthError::UnknownKey));
    }
    // Longer than the thread needs to notice.
    thread::sleep(Duration::from_millis(2_500));
    assert_eq!(issuer.asked(), 1, "within the cooldown nothing is asked");
}

#[test]
fn a_key_that_is_new_is_found_before_the_next_refresh() {
    let data = tempfile::tempdir().unwrap();
    let issuer = Issuer::start(ok(&set(&[("a", 1)])), None);
    let options = JwtOptions {
        jwks_cooldown_s: 1,
        ..issuer.options()
    };
    let auth = open(data.path(), &options);
    let _keeper = auth.keep_keys().unwrap();
    issuer.say(ok(&set(&[("a", 1), ("b", 2)])));
    eventually("the new key", || shown(&auth, "b", 2).is_ok());
    // The last look that failed may have been after the question: it is asked once more then.
    thread::sleep(Duration::from_millis(2_500));
    let asked = issuer.asked();
    assert_eq!(shown(&auth, "b", 2), Ok(()));
    thread::sleep(Duration::from_millis(2_500));
    assert_eq!(issuer.asked(), asked, "nothing is asked without a reason");
}

/// Nobody listens: the keys of the files work, and the start does not wait.
#[test]
fn an_address_that_is_away_keeps_nobody_waiting() {
    let data = tempfile::tempdir().unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let options = JwtOptions {
        jwks_url: format!("http://{}/keys", gone.local_addr().unwrap()),
        ..JwtOptions::default()
    };
    // Accepted by the kernel, and never answered.
    let start = Instant::now();
    let auth = open(data.path(), &options);
    let keeper = auth.keep_keys().unwrap();
    assert!(start.elapsed() < Duration::from_secs(8));
    assert_eq!(shown(&auth, "a", 1), Err(AuthError::Unavailable));
    let stop = Instant::now();
    drop(keeper);
    assert!(stop.elapsed() < Duration::from_secs(2));
}

/// A certificate for 127.0.0.1, and the server that has it.
fn certified() -> (String, Arc<ServerConfig>) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (made.cert.pem(), Arc::new(config))
}

#[test]
fn over_tls_the_address_must_prove_who_it_is() {
    let data = tempfile::tempdir().unwrap();
    let (pem, config) = certified();
    let (other_pem, _) = certified();
    let issuer = Issuer::start(ok(&set(&[("a", 1)])), Some(config));
    let ca = data.path().join("ca.pem");
    let options = JwtOptions {
        jwks_url: format!("https://{}/keys", issuer.address),
        jwks_ca: Some(ca.clone()),
        ..issuer.options()
    };
    for (trusted, answers) in [(pem.as_str(), true), (&other_pem, false), ("", false)] {
        fs::write(&ca, trusted).unwrap();
        let auth = open(data.path(), &options);
        let _keeper = auth.keep_keys().unwrap();
        let verdict = shown(&auth, "a", 1);
        if answers {
            assert_eq!(verdict, Ok(()));
        } else {
            assert_eq!(verdict, Err(AuthError::Unavailable));
            let failed = auth.key_stats();
            eventually("a failure", || failed().fetches_failed == 1);
        }
    }
    // A port without TLS.
    fs::write(&ca, &pem).unwrap();
    let plain = Issuer::start(ok(&set(&[("a", 1)])), None);
    let options = JwtOptions {
        jwks_url: format!("https://{}/keys", plain.address),
        ..options
    };
    let auth = open(data.path(), &options);
    let _keeper = auth.keep_keys().unwrap();
    assert_eq!(shown(&auth, "a", 1), Err(AuthError::Unavailable));
    assert!(TcpStream::connect(plain.address).is_ok());
}

#[test]
fn an_address_that_could_be_changed_on_its_way_is_refused() {
    let data = tempfile::tempdir().unwrap();
    for url in [
        "http://id.example/keys",
        "https://a:b@id.example/",
        "file:///x",
    ] {
        let options = JwtOptions {
            jwks_url: url.to_owned(),
            ..JwtOptions::default()
        };
        let refused = JwtAuthenticator::open(data.path(), &options).unwrap_err();
        assert!(refused.to_string().contains("auth.jwks_url"), "{refused}");
    }
}
