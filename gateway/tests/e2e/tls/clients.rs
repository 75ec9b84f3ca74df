//! Clients that show certificates.

use super::client::{TlsClient, Tunnel, config, setup, trust};
use crate::harness::{Gateway, Peer, Setup, close_code};
use portico_client::RawError;
use portico_wire::{CloseCode, ids::DeviceId, message::Hello};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
    string::Ia5String,
};
use rustls::ClientConfig;
use std::{fs, sync::Arc};

const UNKNOWN: &str = r#"portico_tls_handshakes_failed_total{reason="unknown_client"}"#;
const BAD_CERTIFICATE: &str = r#"portico_tls_handshakes_failed_total{reason="client_certificate"}"#;

/// Signs certificates of clients.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        Self {
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A client with a certificate for this name.
    fn client(&self, gateway: &Gateway, uri: &str) -> Arc<ClientConfig> {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let uri = Ia5String::try_from(uri).expect("ASCII");
        params.subject_alt_names = vec![SanType::URI(uri)];
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let trusted = gateway.setup().data().join("tls-cert.pem");
        config(&trusted, Some((&certificate.pem(), &key.serialize_pem())))
    }
}

fn start(authority: &Authority, required: bool) -> Gateway {
    let setup: Setup = setup();
    let file = setup.directory().join("clients.pem");
    fs::write(&file, &authority.pem).expect("a file");
    setup
        .set("server.shards", 3)
        .set("tls.client_ca", file.display())
        .set("tls.client_required", required)
        .start()
}

fn without_token(device: u16) -> Hello<'static> {
    Hello {
        device: DeviceId(device),
        ..Hello::default()
    }
}

#[test]
fn a_certificate_is_a_login() {
    let authority = Authority::new();
    let gateway = start(&authority, false);
    let mut talkers = Vec::new();
    for user in 1..=6_u64 {
        let name = format!("portico:user:{user}:device:2");
        let tunnel = Tunnel::with(gateway.tls(), authority.client(&gateway, &name));
        let peer = Peer::login_with(tunnel.connect(), &without_token(0));
        assert_eq!(peer.welcome.user.0, user);
        assert_eq!(peer.welcome.device, DeviceId(2));
        talkers.push(peer);
    }
    let (one, rest) = talkers.split_first_mut().expect("six");
    for (at, other) in rest.iter_mut().enumerate() {
        one.send(at as u64 + 2, "by certificate");
        assert_eq!(other.receive().text, "by certificate");
    }
}

/// The certificate leaves the device open, HELLO names it; and each that is wrong is refused.
#[test]
fn what_hello_says_has_to_agree() {
    let authority = Authority::new();
    let gateway = start(&authority, false);
    let any_device = authority.client(&gateway, "portico:user:7");
    let tunnel = Tunnel::with(gateway.tls(), any_device);
    let peer = Peer::login_with(tunnel.connect(), &without_token(5));
    assert_eq!(peer.welcome.device, DeviceId(5));
    let refusal = |hello: &Hello<'_>| match tunnel.connect().hello_with(hello) {
        Err(RawError::Closed(code)) => code,
        other => close_code(other.map(|_| CloseCode::NORMAL)),
    };
    assert_eq!(refusal(&without_token(0)), CloseCode::AUTH_FAILED);
    let (own, stolen) = (gateway.token(7, 3), gateway.token(8, 1));
    let with_token = |token| Hello {
        token: Some(token),
        ..Hello::default()
    };
    assert_eq!(refusal(&with_token(&stolen)), CloseCode::AUTH_FAILED);
    let peer = Peer::login_with(tunnel.connect(), &with_token(&own));
    assert_eq!(peer.welcome.device, DeviceId(3));
}

#[test]
fn strangers_are_refused_in_the_handshake() {
    let (authority, other) = (Authority::new(), Authority::new());
    let gateway = start(&authority, true);
    let (unknown, bad) = (gateway.watch(UNKNOWN), gateway.watch(BAD_CERTIFICATE));
    let refused = |config: &Arc<ClientConfig>, alert: &str| {
        let mut client = TlsClient::connect(gateway.tls(), config);
        let error = client.shake_hands().and_then(|()| client.read());
        let error = error.expect_err("refused").to_string();
        assert!(error.contains(alert), "{error}");
    };
    refused(
        &authority.client(&gateway, "https://example.org"),
        "AccessDenied",
    );
    unknown.moves_by(1);
    refused(&other.client(&gateway, "portico:user:7"), "fatal alert");
    refused(&trust(&gateway), "CertificateRequired");
    bad.moves_by(2);
    TlsClient::open(gateway.tls(), &authority.client(&gateway, "portico:user:7")).close();
    gateway.await_metric("portico_sockets", |count| count == 0);
}
