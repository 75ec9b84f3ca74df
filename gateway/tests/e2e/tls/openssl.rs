//! `openssl s_client` against the program. Without it these tests say so and pass; what it does with
//! records is tested in `portico-tls`.

use super::client::setup;
use crate::harness::{Child, Exit, Gateway};
use std::process::Command;

fn s_client(gateway: &Gateway, more: &[&str]) -> Option<Exit> {
    if Command::new("openssl").arg("version").output().is_err() {
        println!("openssl is not installed: nothing was tested");
        return None;
    }
    let mut command = Command::new("openssl");
    let authority = gateway.setup().data().join("tls-cert.pem");
    command
        .args([
            "s_client",
            "-verify_return_error",
            "-servername",
            "localhost",
        ])
        .arg("-connect")
        .arg(gateway.tls().to_string())
        .arg("-CAfile")
        .arg(authority)
        .args(more);
    let mut child = Child::start(command);
    // At the end of its input it says goodbye.
    child.end_input();
    Some(child.wait())
}

#[test]
fn openssl_shakes_hands_and_agrees_on_the_protocol() {
    let gateway = setup().start();
    let Some(exit) = s_client(&gateway, &["-alpn", "portico/1"]) else {
        return;
    };
    assert_eq!(exit.code, Some(0), "{}", exit.err);
    for part in [
        "ALPN protocol: portico/1",
        "New, TLSv1.3",
        "Verify return code: 0 (ok)",
    ] {
        assert!(exit.out.contains(part), "{}\n  lacks: {part}", exit.out);
    }
    gateway.await_metric("portico_sockets", |count| count == 0);
    gateway.still_serves();
}

/// The gateway closes the first connection when no HELLO comes; until then the client has read its
/// ticket.
#[test]
fn openssl_resumes() {
    let gateway = setup().set("session.handshake_ms", 1_000).start();
    let file = gateway.setup().directory().join("session.pem");
    let file = file.display().to_string();
    if s_client(&gateway, &["-sess_out", &file, "-ign_eof"]).is_none() {
        return;
    }
    let second = s_client(&gateway, &["-sess_in", &file]).expect("it is there");
    assert_eq!(second.code, Some(0), "{}", second.err);
    assert!(second.out.contains("Reused, TLSv1.3"), "{}", second.out);
    let series = r#"portico_tls_handshakes_total{result="resumed"}"#;
    gateway.await_metric(series, |count| count == 1);
}

#[test]
fn openssl_is_refused_with_an_older_version() {
    let gateway = setup().start();
    let series = r#"portico_tls_handshakes_failed_total{reason="incompatible"}"#;
    let incompatible = gateway.watch(series);
    let Some(exit) = s_client(&gateway, &["-tls1_2"]) else {
        return;
    };
    assert_ne!(exit.code, Some(0));
    let told = exit.err.contains("protocol version") || exit.err.contains("handshake failure");
    assert!(told, "{}", exit.err);
    incompatible.moves_by(1);
    gateway.await_metric("portico_sockets", |count| count == 0);
}
