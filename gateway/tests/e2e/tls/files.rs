//! Certificates and settings: what is refused at the start, what is made, and what changes while the
//! gateway serves.

use super::client::{TlsClient, Tunnel, config, setup, trust, trust_file};
use crate::harness::{Gateway, Setup, eventually};
use portico_gateway::tls::{UnixTime, self_signed};
use rustix::process::Signal;
use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

const USED: &str = r#"portico_tls_reloads_total{result="used"}"#;
const FAILED: &str = r#"portico_tls_reloads_total{result="failed"}"#;

/// Makes a certificate and its key.
fn make(folder: &Path) -> (PathBuf, PathBuf) {
    fs::create_dir_all(folder).expect("a folder");
    let made = self_signed(&["localhost"], UnixTime::now()).expect("a certificate");
    let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    // Never half of one and half of the other under the names that are watched: as in operation.
    fs::write(&key, made.key).expect("a file");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("it is ours");
    fs::write(&certificate, made.certificate).expect("a file");
    (certificate, key)
}

/// A gateway with certificates of its own, behind a link that can be exchanged.
fn with_files() -> (Setup, PathBuf) {
    let setup = Setup::new().set("tls.listen", "127.0.0.1:0");
    let link = setup.directory().join("tls");
    exchange(&link, 0);
    let setup = setup
        .set("tls.cert", link.join("cert.pem").display())
        .set("tls.key", link.join("key.pem").display());
    (setup, link)
}

/// Puts new files in place in one step, as an orchestrator does.
fn exchange(link: &Path, number: usize) {
    let folder = link.with_extension(number.to_string());
    make(&folder);
    let next = link.with_extension("next");
    symlink(&folder, &next).expect("a link");
    fs::rename(&next, link).expect("the old link goes");
}

/// Every certificate in turn is seen by new clients, while messages go through connections that were
/// there before the first.
#[test]
fn certificates_rotate_under_load_without_a_lost_message() {
    const ROTATIONS: usize = 4;
    let (setup, link) = with_files();
    let gateway = setup.set("server.shards", 3).start();
    let tunnel = Tunnel::with(gateway.tls(), trust_file(&link.join("cert.pem")));
    let over = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let mut pairs = Vec::new();
        for pair in 0..3 {
            let (from, to) = (2 * pair + 1, 2 * pair + 2);
            let mut sender = tunnel.login(&gateway, from, 1);
            let mut receiver = tunnel.login(&gateway, to, 1);
            let over = &over;
            pairs.push(scope.spawn(move || {
                let mut sent = 0;
                while !over.load(Ordering::Relaxed) {
                    let text = sent.to_string();
                    sender.send(to, &text);
                    assert_eq!(receiver.receive().text, text);
                    sent += 1;
                }
                sent
            }));
        }
        for rotation in 1..=ROTATIONS {
            let reloads = gateway.watch(USED);
            exchange(&link, rotation);
            // The file is looked at, or a signal says so.
            if rotation % 2 == 0 {
                gateway.child.signal(Signal::HUP);
            }
            reloads.moves();
            let config = trust_file(&link.join("cert.pem"));
            TlsClient::open(gateway.tls(), &config).close();
        }
        over.store(true, Ordering::Relaxed);
        let counts = pairs
            .into_iter()
            .map(|pair| pair.join().expect("all is well"));
        counts.sum::<usize>()
    });
    assert!(sent > 0);
    println!("{sent} messages during {ROTATIONS} rotations");
    let metrics = gateway.metrics();
    assert_eq!(metrics.get(FAILED), 0);
    // A year less a little.
    let left_s = metrics.get("portico_tls_certificate_expiry_seconds");
    assert!((364 * 86_400..366 * 86_400).contains(&left_s), "{left_s}");
}

#[test]
fn bad_new_files_leave_the_old_ones_in_use() {
    let (setup, link) = with_files();
    let gateway = setup
        .expect_log("the TLS files cannot be used; the gateway goes on")
        .start();
    let trusts = trust_file(&link.join("cert.pem"));
    let failed = gateway.watch(FAILED);
    fs::write(link.join("cert.pem"), "half a certif").expect("a file");
    failed.moves_by(1);
    TlsClient::open(gateway.tls(), &trusts).close();
    let used = gateway.watch(USED);
    exchange(&link, 1);
    used.moves_by(1);
    TlsClient::open(gateway.tls(), &trust_file(&link.join("cert.pem"))).close();
    gateway.still_serves();
}

#[test]
fn a_certificate_of_its_own_is_kept_with_a_private_key() {
    let setup = setup();
    let file = setup.data().join("tls-cert.pem");
    let first = setup.start();
    let certificate = fs::read(&file).expect("it is there");
    let key = fs::metadata(setup.data().join("tls-key.pem")).expect("so is its key");
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    TlsClient::open(first.tls(), &trust(&first)).close();
    first.stop();
    let second = setup.start();
    assert_eq!(fs::read(&file).expect("it is there"), certificate);
    second.stop();
    fs::remove_file(setup.data().join("tls-key.pem")).expect("a file");
    let third = setup.start();
    assert_ne!(fs::read(&file).expect("it is there"), certificate);
    TlsClient::open(third.tls(), &config(&file, None)).close();
}

fn refused(setup: &Setup, code: i32, parts: &[&str]) {
    let exit = setup.start_refused();
    assert_eq!(exit.code, Some(code), "{}", exit.err);
    for part in parts {
        assert!(exit.err.contains(part), "{}\n  lacks: {part}", exit.err);
    }
}

#[test]
fn what_cannot_serve_says_what_to_do() {
    let plain = Setup::new();
    let open = plain.clone().flag("--listen", "0.0.0.0:0");
    refused(&open, 64, &["--tls-listen", "--allow-plaintext"]);
    let tls = plain.clone().set("tls.listen", "127.0.0.1:0");
    refused(
        &tls,
        64,
        &["--tls-cert FILE --tls-key FILE", "--tls-self-signed"],
    );
    let lonely = tls.clone().set("tls.cert", "a.pem");
    refused(&lonely, 64, &["tls.key", "come together"]);
    let portless = plain.clone().set("tls.self_signed", "true");
    refused(&portless, 64, &["--tls-listen ADDR"]);
    let (certificate, key) = make(&plain.directory().join("a"));
    let (_, other) = make(&plain.directory().join("b"));
    let with = |certificate: &Path, key: &Path| {
        let setup = tls.clone().set("tls.cert", certificate.display());
        setup.set("tls.key", key.display())
    };
    let absent = plain.directory().join("absent");
    refused(&with(&absent, &key), 1, &["absent: cannot be read"]);
    refused(&with(&certificate, &other), 1, &["is not the key of"]);
    refused(&with(&key, &key), 1, &["holds no certificate"]);
    let short = plain.directory().join("short");
    fs::write(&short, "short").expect("a file");
    fs::set_permissions(&short, Permissions::from_mode(0o600)).expect("it is ours");
    let short = with(&certificate, &key).set("tls.ticket_secret", short.display());
    refused(&short, 1, &["5 bytes"]);
    fs::set_permissions(&key, Permissions::from_mode(0o644)).expect("it is ours");
    refused(&with(&certificate, &key), 1, &["(mode 0644)", "chmod o= "]);
}

/// Whoever says so may serve plain text to the world.
#[test]
fn plain_text_is_served_to_others_where_it_is_allowed() {
    let setup = Setup::new()
        .flag("--listen", "0.0.0.0:0")
        .set("server.allow_plaintext", "true");
    let mut gateway: Gateway = setup.start();
    gateway.listen.set_ip([127, 0, 0, 1].into());
    gateway.still_serves();
}

/// The environment, the flags and the ready line.
#[test]
fn the_flags_are_the_settings() {
    let setup = Setup::new();
    let (certificate, key) = make(&setup.directory().join("files"));
    let gateway = setup
        .flag("--tls-listen", "127.0.0.1:0")
        .flag("--tls-cert", certificate.display())
        .flag("--tls-key", key.display())
        .start();
    let config = trust_file(&certificate);
    eventually("a handshake", || {
        TlsClient::open(gateway.tls(), &config).close();
        Some(())
    });
}
