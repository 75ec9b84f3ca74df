//! OpenSSL's client against sessions, over loopback. Without `openssl` on the machine these tests
//! say so and pass.

use crate::common::Server;
use portico_tls::{End, Failure, Opened, Received, Session};
use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    process::{self, Child, Command, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc::Sender,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// A client that takes longer has hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the server saw of one connection.
#[derive(Default)]
struct Seen {
    opened: Option<Box<Opened>>,
    ended: Option<End>,
    plain: Vec<u8>,
}

/// Repeats what it receives, until the client has closed. Hibernates after every read.
fn echo(mut stream: TcpStream, mut session: Session) -> Seen {
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let (mut seen, mut held, mut buffer) = (Seen::default(), Vec::new(), [0; 1_000]);
    while seen.ended.is_none() {
        let length = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{error}"),
        };
        held.extend_from_slice(&buffer[..length]);
        let mut out = Vec::with_capacity(4_096);
        let Received {
            plaintext,
            consumed,
            opened,
            ended,
        } = session.receive(&mut held, &mut out);
        seen.plain.extend_from_slice(&held[..plaintext]);
        seen.opened = opened.or(seen.opened);
        seen.ended = ended;
        if plaintext > 0 {
            out.reserve(portico_tls::sealed_len(plaintext));
            assert_eq!(session.send(&held[..plaintext], &mut out), Ok(plaintext));
        }
        held.drain(..consumed);
        if seen.ended == Some(End::PeerClosed) {
            session.close(&mut out);
        }
        session.hibernate();
        // A client that was refused may be gone.
        if stream.write_all(&out).is_err() {
            break;
        }
    }
    seen
}

/// One run of `openssl s_client`, stopped at the end of the test.
struct Client {
    child: Child,
    certificate: PathBuf,
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.certificate);
    }
}

fn has_openssl() -> bool {
    let has = Command::new("openssl").arg("version").output().is_ok();
    if !has {
        println!("skipped: there is no `openssl` on this machine");
        assert!(
            std::env::var_os("CI").is_none(),
            "skipped in CI: no `openssl`"
        );
    }
    has
}

fn file(name: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("portico-tls-{}-{number}-{name}", process::id()))
}

/// Passes on what the client says, until it ends.
fn listen(mut from: impl Read + Send + 'static, to: Sender<Vec<u8>>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 4_096];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if to.send(buffer[..length].to_vec()).is_err() {
                break;
            }
        }
    })
}

/// Runs the client with these arguments. It types each of `lines` once it has said the
/// word before it, after what was heard already; then its input ends. Returns what it said and what the server saw.
fn run(server: &Server, arguments: &[&str], lines: &[(&str, &str)]) -> (String, Seen) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    let session = server.acceptor.accept();
    let serving = thread::spawn(move || echo(listener.accept().expect("a client").0, session));
    let certificate = file("ca.pem");
    fs::write(&certificate, &server.certificate).expect("a file");
    let child = Command::new("openssl")
        .args(["s_client", "-connect", &address, "-servername", "localhost"])
        .args(["-verify_return_error", "-CAfile"])
        .arg(&certificate)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl");
    let mut client = Client { child, certificate };
    let mut stdin = client.child.stdin.take().expect("piped");
    let (sender, pieces) = std::sync::mpsc::channel();
    let stdout = client.child.stdout.take().expect("piped");
    let stderr = client.child.stderr.take().expect("piped");
    let reading = [listen(stdout, sender.clone()), listen(stderr, sender)];
    let start = Instant::now();
    let mut said = Vec::new();
    let mut heard = 0;
    for (word, line) in lines {
        loop {
            let fresh = &said[heard..];
            let at = fresh
                .windows(word.len())
                .position(|text| text == word.as_bytes());
            if let Some(at) = at {
                heard += at + word.len();
                break;
            }
            let left = PATIENCE.saturating_sub(start.elapsed());
            match pieces.recv_timeout(left) {
                Ok(piece) => said.extend(piece),
                Err(error) => {
                    let said = String::from_utf8_lossy(&said);
                    panic!("{word:?} was not said ({error}), but:\n{said}");
                }
            }
        }
        stdin
            .write_all(line.as_bytes())
            .expect("a client that reads");
        stdin.flush().expect("a client that reads");
    }
    drop(stdin);
    while client.child.try_wait().expect("a child").is_none() {
        assert!(start.elapsed() < PATIENCE, "the client does not end");
        thread::sleep(Duration::from_millis(5));
    }
    for reading in reading {
        reading.join().expect("no panic");
    }
    said.extend(pieces.iter().flatten());
    let seen = serving.join().expect("no panic");
    (String::from_utf8_lossy(&said).into_owned(), seen)
}

/// What s_client says last before it takes lines.
const READY: &str = "Verify return code: 0 (ok)";

#[test]
fn every_suite_shakes_hands_talks_and_closes() {
    if !has_openssl() {
        return;
    }
    let server = Server::new();
    for suite in [
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
    ] {
        let arguments = ["-tls1_3", "-ciphersuites", suite, "-alpn", "portico/1"];
        // Ends by the command Q, with close_notify.
        let lines = [(READY, "hello there\n"), ("hello there", "Q\n")];
        let (said, seen) = run(&server, &arguments, &lines);
        assert!(said.contains(&format!("Cipher is {suite}")), "{said}");
        assert!(said.contains("ALPN protocol: portico/1"), "{said}");
        assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
        assert_eq!(
            said.matches("Post-Handshake New Session Ticket").count(),
            1,
            "{said}"
        );
        assert_eq!(seen.plain, b"hello there\n", "{said}");
        assert_eq!(seen.ended, Some(End::PeerClosed), "{said}");
        assert!(seen.opened.expect("open").alpn);
    }
}

#[test]
fn keys_are_updated_in_both_ways() {
    if !has_openssl() {
        return;
    }
    let server = Server::new();
    for suite in ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"] {
        let arguments = ["-tls1_3", "-ciphersuites", suite];
        // k updates the client's key, K asks for the server's as well.
        let lines = [
            (READY, "before\n"),
            ("before", "k\n"),
            ("KEYUPDATE", "between\n"),
            ("between", "K\n"),
            ("KEYUPDATE", "after\n"),
            ("after", "Q\n"),
        ];
        let (said, seen) = run(&server, &arguments, &lines);
        assert_eq!(seen.plain, b"before\nbetween\nafter\n", "{said}");
        assert_eq!(said.matches("KEYUPDATE").count(), 2, "{said}");
        assert_eq!(seen.ended, Some(End::PeerClosed), "{said}");
    }
}

#[test]
fn a_ticket_resumes() {
    if !has_openssl() {
        return;
    }
    let server = Server::new();
    let ticket = file("ticket.pem");
    let path = ticket.to_str().expect("a path in UTF-8");
    let lines = [(READY, "one\n"), ("one", "Q\n")];
    let (said, seen) = run(&server, &["-tls1_3", "-sess_out", path], &lines);
    assert!(said.contains("New, TLSv1.3"), "{said}");
    assert!(!seen.opened.expect("open").resumed);
    let (said, seen) = run(&server, &["-tls1_3", "-sess_in", path], &lines);
    let _ = fs::remove_file(&ticket);
    assert!(said.contains("Reused, TLSv1.3"), "{said}");
    assert!(seen.opened.expect("open").resumed);
    assert_eq!(seen.plain, b"one\n");
}

#[test]
fn older_versions_and_other_protocols_are_refused() {
    if !has_openssl() {
        return;
    }
    let server = Server::new();
    let (said, seen) = run(&server, &["-tls1_2"], &[]);
    assert!(said.contains("alert protocol version"), "{said}");
    assert!(matches!(
        seen.ended,
        Some(End::Failed(Failure::Handshake(_)))
    ));
    let (said, seen) = run(&server, &["-tls1_3", "-alpn", "h2"], &[]);
    assert!(said.contains("no application protocol"), "{said}");
    assert!(matches!(
        seen.ended,
        Some(End::Failed(Failure::Handshake(_)))
    ));
}
