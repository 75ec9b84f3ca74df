//! What all sessions of a listener have in common, and where they start.

use crate::{
    clients::{ClientMap, Clients},
    end::SettingsError,
    handshake,
    identity::Identity,
    session::Session,
    tickets::{TicketSecret, Tickets},
};
use rustls::{
    ServerConfig,
    crypto::ring,
    server::{NoServerSessionStorage, UnbufferedServerConnection, WebPkiClientVerifier},
    sign::SingleCertAndKey,
    time_provider::{DefaultTimeProvider, TimeProvider},
    version::TLS13,
};
use std::sync::{Arc, PoisonError, RwLock};

/// The protocol's name in ALPN.
pub const ALPN: &[u8] = b"portico/1";

/// What a listener is to do.
#[derive(Clone, Debug)]
pub struct Settings {
    pub identity: Identity,
    /// None: clients are not asked for certificates.
    pub clients: Option<Clients>,
    /// Kept over a reload, else tickets are lost.
    pub tickets: TicketSecret,
    /// Judges certificates and tickets.
    pub clock: Arc<dyn TimeProvider>,
}

impl Settings {
    /// No client certificates, the system's clock.
    #[must_use]
    pub fn new(identity: Identity, tickets: TicketSecret) -> Self {
        Self {
            identity,
            clients: None,
            tickets,
            clock: Arc::new(DefaultTimeProvider),
        }
    }
}

/// Settings in the form that sessions use. A session keeps those it started with.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) clients: Option<Arc<dyn ClientMap>>,
}

impl Current {
    fn new(settings: &Settings) -> Result<Self, SettingsError> {
        let refused = |error: rustls::Error| SettingsError::Refused(error.to_string());
        let provider = Arc::new(ring::default_provider());
        let (verifier, binding) = match &settings.clients {
            None => (WebPkiClientVerifier::no_client_auth(), Vec::new()),
            Some(clients) => (
                clients.verifier(&provider)?,
                clients.fingerprint().as_ref().to_vec(),
            ),
        };
        let resolver = SingleCertAndKey::from(settings.identity.certified.clone());
        let mut config = ServerConfig::builder_with_details(provider, settings.clock.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(refused)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::new(Tickets {
            secret: settings.tickets.clone(),
            binding,
            clock: settings.clock.clone(),
        });
        // One ticket; a client that asks for fewer gets none, one that asks for more gets one.
        config.send_tls13_tickets = 1;
        config.max_tls13_tickets = 1;
        config.max_early_data_size = 0;
        config.enable_secret_extraction = true;
        config.key_log = handshake::key_log();
        let config = Arc::new(config);
        // What rustls refuses it should refuse now, not at each connection.
        UnbufferedServerConnection::new(config.clone()).map_err(refused)?;
        Ok(Self {
            config,
            clients: settings.clients.as_ref().map(|clients| clients.map.clone()),
        })
    }
}

/// Makes sessions. Clones share their settings.
#[derive(Clone, Debug)]
pub struct Acceptor {
    current: Arc<RwLock<Arc<Current>>>,
}

impl Acceptor {
    /// # Errors
    /// An authority for clients that is no certificate, or settings that rustls refuses.
    pub fn new(settings: &Settings) -> Result<Self, SettingsError> {
        let current = Arc::new(Current::new(settings)?);
        Ok(Self {
            current: Arc::new(RwLock::new(current)),
        })
    }

    /// New sessions of all clones use these settings; those that exist keep theirs.
    ///
    /// # Errors
    /// As [`Self::new`]; then nothing has changed.
    pub fn reload(&self, settings: &Settings) -> Result<(), SettingsError> {
        let current = Arc::new(Current::new(settings)?);
        // A thread that panicked holding the lock has left a whole pointer behind.
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        Ok(())
    }

    /// The session of a new connection.
    #[must_use]
    pub fn accept(&self) -> Session {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Session::new(current.clone())
    }
}
