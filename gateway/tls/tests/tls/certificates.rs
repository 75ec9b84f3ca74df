//! Certificates of servers and clients: what is read, what is refused and how it is said.

use crate::common::{Pair, Server};
use portico_tls::{
    Acceptor, Client, Clients, End, Failure, Identity, SettingsError, TicketSecret, UnixTime,
    UriNames,
};
use portico_wire::ids::{DeviceId, UserId};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::{
    ClientConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process,
    sync::Arc,
    time::Duration,
};

/// An authority for clients.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Two of one name would be taken for each other, until signatures are checked.
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    fn clients(&self, required: bool) -> Clients {
        Clients::from_pem(self.pem.as_bytes(), required, Arc::new(UriNames)).expect("an authority")
    }

    /// A client of `server` with a certificate of this name.
    fn client(&self, server: &Server, name: &str) -> Arc<ClientConfig> {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        let name = name.try_into().expect("ASCII");
        params.subject_alt_names = vec![SanType::URI(name)];
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let plain = server.client(&[]);
        let mut config = ClientConfig::builder_with_provider(plain.crypto_provider().clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(server.roots())
            .with_client_auth_cert(vec![certificate.der().clone()], key)
            .expect("a matching key");
        config.alpn_protocols = plain.alpn_protocols;
        Arc::new(config)
    }
}

#[test]
fn a_client_certificate_names_its_user_also_when_resumed() {
    let mut server = Server::new();
    let authority = Authority::new("ours");
    server.settings.clients = Some(authority.clients(true));
    let acceptor = Acceptor::new(&server.settings).expect("good settings");
    let config = authority.client(&server, "portico:user:7:device:3");
    let expected = Client {
        user: UserId(7),
        device: Some(DeviceId(3)),
    };
    for resumed in [false, true] {
        let mut pair = Pair::open(&acceptor, &config);
        let opened = pair.opened.take().expect("open");
        assert_eq!((opened.client, opened.resumed), (Some(expected), resumed));
        pair.talks();
    }
}

#[test]
fn who_shows_no_certificate_a_foreign_one_or_an_unknown_name_is_refused() {
    let mut server = Server::new();
    let authority = Authority::new("ours");
    server.settings.clients = Some(authority.clients(true));
    let acceptor = Acceptor::new(&server.settings).expect("good settings");
    let refused = |config: &Arc<ClientConfig>| {
        let mut pair = Pair::new(&acceptor, config);
        pair.run();
        let heard = match pair.client_error {
            Some(rustls::Error::AlertReceived(alert)) => alert,
            other => panic!("{other:?}"),
        };
        assert!(pair.opened.is_none());
        (pair.ended.expect("refused"), heard)
    };
    let (_, heard) = refused(&Arc::new(server.client(&[])));
    assert_eq!(heard, rustls::AlertDescription::CertificateRequired);
    let (_, heard) = refused(&Authority::new("foreign").client(&server, "portico:user:7"));
    assert_eq!(heard, rustls::AlertDescription::UnknownCA);
    let (ended, heard) = refused(&authority.client(&server, "https://example.org"));
    assert_eq!(ended, End::Failed(Failure::UnknownClient));
    assert_eq!(heard, rustls::AlertDescription::AccessDenied);

    server.settings.clients = Some(authority.clients(false));
    let acceptor = Acceptor::new(&server.settings).expect("good settings");
    let mut pair = Pair::open(&acceptor, &Arc::new(server.client(&[])));
    assert_eq!(pair.opened.take().expect("open").client, None);
}

#[test]
fn a_ticket_does_not_stand_for_a_certificate() {
    let mut server = Server::new();
    let config = Arc::new(server.client(&[]));
    Pair::open(&server.acceptor, &config);
    let authority = Authority::new("ours");
    server.settings.clients = Some(authority.clients(false));
    server
        .acceptor
        .reload(&server.settings)
        .expect("good settings");
    let mut pair = Pair::open(&server.acceptor, &config);
    assert!(!pair.opened.take().expect("open").resumed);
    let mut pair = Pair::open(&server.acceptor, &config);
    assert!(pair.opened.take().expect("open").resumed);
}

/// A folder of this test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("portico-tls-{}-{name}", process::id()));
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).expect("a file");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is ours");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_name() {
    let folder = Folder::new("files");
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_795_737_600));
    let one = portico_tls::self_signed(&["localhost"], now).expect("a certificate");
    let other = portico_tls::self_signed(&["localhost"], now).expect("a certificate");
    let certificate = folder.file("cert.pem", &one.certificate);
    let key = folder.file("key.pem", &one.key);
    let other_key = folder.file("other.pem", &other.key);
    let empty = folder.file("empty.pem", "");
    let torn = folder.file("torn.pem", &one.certificate[..200]);
    let block = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let bad = folder.file("bad.pem", block);
    let block = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";
    let odd_key = folder.file("odd.pem", block);
    let absent = folder.0.join("absent.pem");
    assert!(Identity::read(&certificate, &key).is_ok());
    for (certificate, key, names, says) in [
        (&absent, &key, &absent, "cannot be read"),
        (&certificate, &absent, &absent, "cannot be read"),
        (&empty, &key, &empty, "holds no certificate"),
        (&key, &key, &key, "holds no certificate"),
        (&certificate, &empty, &empty, "holds no private key"),
        (
            &certificate,
            &certificate,
            &certificate,
            "holds no private key",
        ),
        (
            &certificate,
            &other_key,
            &other_key,
            "is not the key of the first certificate",
        ),
        (&torn, &key, &torn, "is not PEM: a block has no END line"),
        (&bad, &key, &bad, "certificate 1 cannot be parsed"),
        (
            &certificate,
            &odd_key,
            &odd_key,
            "of a kind that is not supported",
        ),
    ] {
        let error = Identity::read(certificate, key)
            .expect_err(says)
            .to_string();
        let name = names.display().to_string();
        assert!(error.contains(says) && error.contains(&name), "{error}");
        let secret = one.key.lines().nth(1).expect("a line of the key");
        assert!(!error.contains(secret), "{error}");
    }
    let exposed = folder.file("exposed.pem", &one.key);
    fs::set_permissions(&exposed, Permissions::from_mode(0o644)).expect("it is ours");
    let error = Identity::read(&certificate, &exposed).expect_err("everybody has it");
    assert!(matches!(error, SettingsError::Exposed { mode: 0o644, .. }));
    let short = folder.file("secret", [1; 31]);
    let error = TicketSecret::read(&short).expect_err("31 bytes");
    assert!(matches!(
        error,
        SettingsError::TicketSecretLength { bytes: 31, .. }
    ));
    assert!(TicketSecret::read(&folder.file("secret", [1; 32])).is_ok());
    let clients = Clients::read(&bad, true, Arc::new(UriNames)).expect("parsed when used");
    let server = Server::new();
    let mut settings = server.settings.clone();
    settings.clients = Some(clients);
    let error = server
        .acceptor
        .reload(&settings)
        .expect_err("no certificate");
    assert!(
        error.to_string().contains("bad.pem: certificate 1"),
        "{error}"
    );
    Pair::open(&server.acceptor, &Arc::new(server.client(&[]))).talks();
}

#[test]
fn dates_are_warned_of() {
    const DAY: u64 = 86_400;
    let made = 1_795_737_600;
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let one = portico_tls::self_signed(&["localhost"], at(made)).expect("a certificate");
    let identity = Identity::from_pem(one.certificate.as_bytes(), one.key.as_bytes());
    let identity = identity.expect("an identity");
    let validity = identity.validity().expect("dates");
    assert_eq!(validity.not_before_s, made - DAY);
    assert_eq!(validity.not_after_s, made + 365 * DAY);
    for (now, says) in [
        (made - 2 * DAY, Some("not valid yet, but in 24 h")),
        (made, None),
        (made + 350 * DAY, None),
        (made + 355 * DAY, Some("expires in 10 days")),
        (made + 368 * DAY, Some("has expired 3 days ago")),
    ] {
        let warning = identity.warning(at(now));
        let as_expected = match (&warning, says) {
            (Some(warning), Some(says)) => warning.contains(says),
            (warning, says) => warning.is_none() && says.is_none(),
        };
        assert!(as_expected, "{warning:?}");
    }
}
