//! A rustls client and a session, with bytes carried between them by hand.

use portico_tls::{
    Acceptor, DefaultTimeProvider, End, Identity, Opened, Received, Session, Settings,
    TicketSecret, TimeProvider, self_signed,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, SupportedCipherSuite,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
    version::TLS13,
};
use std::{
    io::{Read, Write},
    sync::Arc,
};

/// The server's side of a test: its settings and the certificate that clients trust.
pub(crate) struct Server {
    pub(crate) settings: Settings,
    pub(crate) acceptor: Acceptor,
    pub(crate) certificate: String,
}

impl Server {
    pub(crate) fn new() -> Self {
        let now = DefaultTimeProvider.current_time().expect("a clock");
        let made = self_signed(&["localhost", "127.0.0.1"], now).expect("a certificate");
        let identity = Identity::from_pem(made.certificate.as_bytes(), made.key.as_bytes());
        let tickets = TicketSecret::random().expect("random numbers");
        let settings = Settings::new(identity.expect("an identity"), tickets);
        Self {
            acceptor: Acceptor::new(&settings).expect("good settings"),
            settings,
            certificate: made.certificate,
        }
    }

    /// A client that trusts this server.
    pub(crate) fn client(&self, suites: &[SupportedCipherSuite]) -> ClientConfig {
        let mut provider = ring::default_provider();
        if !suites.is_empty() {
            provider.cipher_suites = suites.to_vec();
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        config.alpn_protocols = vec![portico_tls::ALPN.to_vec()];
        config
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        let pem = self.certificate.as_bytes();
        let certificate = CertificateDer::from_pem_slice(pem).expect("a certificate");
        roots.add(certificate).expect("an authority");
        roots
    }
}

/// Both ends, and what lies between them.
pub(crate) struct Pair {
    pub(crate) client: ClientConnection,
    pub(crate) session: Session,
    /// Received by the server and not consumed.
    held: Vec<u8>,
    /// Bytes per call of `receive`.
    pub(crate) chunk: usize,
    /// Hibernate after every call.
    pub(crate) hibernate: bool,
    pub(crate) opened: Option<Box<Opened>>,
    pub(crate) ended: Option<End>,
    /// Plaintext at the server and at the client.
    pub(crate) up: Vec<u8>,
    pub(crate) down: Vec<u8>,
    pub(crate) client_error: Option<rustls::Error>,
}

impl Pair {
    pub(crate) fn new(acceptor: &Acceptor, config: &Arc<ClientConfig>) -> Self {
        let name = ServerName::try_from("localhost").expect("a name");
        Self {
            client: ClientConnection::new(config.clone(), name).expect("a client"),
            session: acceptor.accept(),
            held: Vec::new(),
            chunk: usize::MAX,
            hibernate: false,
            opened: None,
            ended: None,
            up: Vec::new(),
            down: Vec::new(),
            client_error: None,
        }
    }

    /// A pair whose handshake is over.
    pub(crate) fn open(acceptor: &Acceptor, config: &Arc<ClientConfig>) -> Self {
        let mut pair = Self::new(acceptor, config);
        pair.run();
        assert_eq!((&pair.ended, &pair.client_error), (&None, &None));
        assert!(pair.opened.is_some() && !pair.client.is_handshaking());
        pair
    }

    /// Until neither side has anything to say.
    pub(crate) fn run(&mut self) {
        loop {
            let mut bytes = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut bytes).expect("memory");
            }
            let out = self.server_gets(&bytes);
            self.client_gets(&out);
            if bytes.is_empty() && out.is_empty() {
                return;
            }
        }
    }

    pub(crate) fn server_gets(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for part in bytes.chunks(self.chunk) {
            self.held.extend_from_slice(part);
            let Received {
                plaintext,
                consumed,
                opened,
                ended,
            } = self.session.receive(&mut self.held, &mut out);
            self.up.extend_from_slice(&self.held[..plaintext]);
            self.held.drain(..consumed);
            self.opened = opened.or(self.opened.take());
            self.ended = ended.or(self.ended.take());
            if self.hibernate {
                self.session.hibernate();
            }
        }
        out
    }

    pub(crate) fn client_gets(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.client_error.is_none() {
            if self.client.read_tls(&mut bytes).expect("memory") == 0 {
                break;
            }
            if let Err(error) = self.client.process_new_packets() {
                self.client_error = Some(error);
            }
            let mut plain = [0; 4_096];
            while let Ok(length @ 1..) = self.client.reader().read(&mut plain) {
                self.down.extend_from_slice(&plain[..length]);
            }
        }
    }

    pub(crate) fn client_says(&mut self, text: &[u8]) {
        self.client.writer().write_all(text).expect("memory");
        self.run();
    }

    pub(crate) fn server_says(&mut self, text: &[u8]) {
        let mut out = Vec::with_capacity(portico_tls::sealed_len(text.len()) + 27);
        assert_eq!(self.session.send(text, &mut out), Ok(text.len()));
        self.client_gets(&out);
        self.run();
    }

    #[track_caller]
    pub(crate) fn talks(&mut self) {
        self.client_says(b"ping");
        self.server_says(b"pong");
        assert!(self.up.ends_with(b"ping") && self.down.ends_with(b"pong"));
        assert_eq!((&self.ended, &self.client_error), (&None, &None));
    }
}
