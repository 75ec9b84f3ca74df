//! What an attacker would look for where operators look: in logs, on the admin pages, in the command
//! line. A gateway lives a whole life at the finest log level, with good and bad logins, messages,
//! refusals and a drain; then everything it wrote is searched for everything it knew.

use crate::{
    harness::{Gateway, Random, Setup, new_msg_id},
    siege::Ground,
    tls,
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use portico_wire::{
    Flags,
    encode::Encoder,
    ids::{DeviceId, UserId},
    message::Hello,
};
use rustix::process::Signal;
use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
};

/// So many bytes of a secret in a row give it away.
const TELLING: usize = 12;

/// Something that must not be found, and what it is.
struct Secret {
    what: &'static str,
    bytes: Vec<u8>,
}

impl Secret {
    fn new(what: &'static str, bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        assert!(bytes.len() >= TELLING, "{what} is too short to look for");
        Self { what, bytes }
    }

    /// As it would appear in a text: itself, in hexadecimal, in base64 at each of three places
    /// in a longer text, and as `Debug` prints bytes and strings.
    fn forms(&self) -> Vec<Vec<u8>> {
        let middle = &self.bytes[..TELLING];
        let hex: String = middle.iter().map(|byte| format!("{byte:02x}")).collect();
        let list = format!("{middle:?}");
        let list = list.trim_matches(['[', ']']).to_owned();
        let escaped: String = middle.escape_ascii().to_string();
        let mut forms = vec![
            middle.to_vec(),
            hex.to_uppercase().into_bytes(),
            hex.into_bytes(),
            list.into_bytes(),
            escaped.into_bytes(),
        ];
        for skipped in 0..3 {
            // Whole groups of three bytes: what is before and behind does not change them.
            let bytes = &self.bytes[skipped..];
            let whole = &bytes[..(bytes.len() / 3 * 3).min(TELLING)];
            forms.push(STANDARD_NO_PAD.encode(whole).into_bytes());
            forms.push(URL_SAFE_NO_PAD.encode(whole).into_bytes());
        }
        forms
    }

    fn is_in(&self, text: &[u8]) -> bool {
        self.forms()
            .iter()
            .any(|form| text.windows(form.len()).any(|window| window == form))
    }
}

/// The parts of a token. The first is the same for all tokens, and no secret.
fn of_token(secrets: &mut Vec<Secret>, token: &str) {
    let parts: Vec<_> = token.split('.').collect();
    secrets.push(Secret::new("the claims of a token", parts[1]));
    secrets.push(Secret::new("the signature of a token", parts[2]));
    let raw = URL_SAFE_NO_PAD.decode(parts[2]).expect("base64");
    secrets.push(Secret::new("the signature of a token", raw));
}

/// What the data directory holds.
fn of_directory(secrets: &mut Vec<Secret>, gateway: &Gateway) {
    let data = gateway.setup().data();
    let pem = fs::read_to_string(data.join("auth-key.pem")).expect("it was made");
    let text: String = pem.lines().filter(|line| !line.contains("---")).collect();
    let der = STANDARD.decode(&text).expect("base64");
    // RFC 8410: the seed is behind 16 bytes that all such keys have.
    secrets.push(Secret::new("the signing key", &der[16..48]));
    secrets.push(Secret::new("the signing key", &text.as_bytes()[24..]));
    let pem = fs::read_to_string(data.join("tls-key.pem")).expect("it was made");
    let text: String = pem.lines().filter(|line| !line.contains("---")).collect();
    // What is before is the same in all keys of this kind.
    let der = STANDARD.decode(&text).expect("base64");
    secrets.push(Secret::new("the key of TLS", &der[36..68]));
    secrets.push(Secret::new("the key of TLS", &text.as_bytes()[52..]));
    let resume = fs::read(data.join("resume-key")).expect("it was made");
    secrets.push(Secret::new("the key of resume tokens", resume));
}

#[test]
fn nothing_that_is_secret_is_written_anywhere() {
    let setup = Setup::new()
        .set("log.level", "trace")
        .set("tls.listen", "127.0.0.1:0")
        .set("tls.self_signed", true);
    let secret = setup.directory().join("ticket-secret");
    let mut random = Random::announced("secrets");
    let ticket_secret = random.bytes(32);
    fs::write(&secret, &ticket_secret).expect("a file");
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("it is ours");
    let setup = setup.set("tls.ticket_secret", secret.display());
    let ground = Ground::new(&setup);
    let mut gateway = ground.calm();
    let mut secrets = Vec::new();
    of_directory(&mut secrets, &gateway);
    secrets.push(Secret::new("the secret of tickets", ticket_secret));
    let mut body = || URL_SAFE_NO_PAD.encode(random.bytes(24));

    let token = gateway.token(1, 1);
    of_token(&mut secrets, &token);
    let mut one = gateway.login(1, 1);
    secrets.push(Secret::new(
        "a resume token",
        one.welcome.resume_token.clone(),
    ));
    let mut two = gateway.login(2, 1);
    // Stored and shown, ephemeral, to somebody who is away, and refused.
    for (to, flags) in [
        (2, Flags::NONE),
        (2, Flags::EPHEMERAL),
        (3, Flags::NONE),
        (0, Flags::NONE),
    ] {
        let text = body();
        let corr = one.next_corr();
        one.post_as(corr, to, new_msg_id(), flags, &text);
        one.reply(corr);
        secrets.push(Secret::new("a message", text));
    }
    two.receive();
    // The same through TLS, and a handshake that fails.
    let mut hello = Vec::new();
    let says = Hello {
        token: Some(&token),
        ..Hello::default()
    };
    Encoder::new().hello(&mut hello, 1, &says);
    assert!(!tls::answer(&gateway, &hello).is_empty());
    tls::say_garbage(&gateway, &[22, 3, 3, 0xff, 0xff]);
    // Tokens that are refused, and bodies that cannot be read.
    let forged = format!("{}A", token.trim_end_matches(char::is_alphanumeric));
    let _ = gateway.connect().hello(&forged);
    let expired = gateway.key.token(UserId(1), DeviceId(1), 0, 1, 1_000_000);
    of_token(&mut secrets, &expired);
    let _ = gateway.connect().hello(&expired);
    let mut resume = one.welcome.resume_token.clone();
    let again = gateway.connect().hello_with(&Hello {
        resume_token: Some(&resume),
        ..Hello::default()
    });
    let again = again.expect("WELCOME");
    assert!(again.resumed);
    secrets.push(Secret::new("a resume token", again.resume_token));
    let last = resume.len() - 1;
    resume[last] ^= 1;
    let _ = gateway.connect().hello_with(&Hello {
        resume_token: Some(&resume),
        ..Hello::default()
    });
    let noise = body();
    let mut three = gateway.login(3, 1);
    three.receive();
    let _ = three.conn.write_bytes(noise.as_bytes());
    secrets.push(Secret::new("bytes that are no frame", noise));

    let mut written = Vec::new();
    for path in ["/healthz", "/readyz", "/metrics", "/version", "/", "/debug"] {
        written.extend(gateway.get(path).body.into_bytes());
    }
    let of_process = format!("/proc/{}", gateway.child.id());
    for name in ["cmdline", "status", "comm"] {
        written.extend(fs::read(format!("{of_process}/{name}")).expect("it lives"));
    }
    gateway.child.signal(Signal::TERM);
    let exit = gateway.child.wait();
    assert_eq!(exit.code, Some(0), "{}", exit.err);
    written.extend(exit.out.into_bytes());
    written.extend(exit.err.into_bytes());
    println!(
        "{} bytes searched for {} secrets",
        written.len(),
        secrets.len()
    );
    assert!(written.len() > 5_000, "it did log");
    for secret in &secrets {
        assert!(!secret.is_in(&written), "{} was written", secret.what);
    }
}

/// That the search would find something, in each form.
#[test]
fn the_search_finds_what_is_there() {
    let secret = Secret::new("a key", *b"\xfa\x01secret\x80bytes\xff\x00!");
    let text = |text: String| format!("level=INFO field={text} end").into_bytes();
    let bytes = &secret.bytes;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let prefixed = [b"xy", bytes.as_slice()].concat();
    for found in [
        text(hex.clone()),
        text(hex.to_uppercase()),
        text(format!("{bytes:?}")),
        text(STANDARD_NO_PAD.encode(bytes)),
        text(URL_SAFE_NO_PAD.encode(&prefixed)),
        text(bytes.escape_ascii().to_string()),
        [b"a".as_slice(), bytes].concat(),
    ] {
        assert!(secret.is_in(&found), "{}", String::from_utf8_lossy(&found));
    }
    assert!(!secret.is_in(&text("secret bytes".to_owned())));
}
