//! TLS in front of a server that speaks none: it shakes hands with rustls' own server and passes on
//! what either side says. It counts handshakes, and does wrong what a test wants.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::{
    HandshakeKind, ServerConfig, ServerConnection,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

/// A certificate and its key, and what a client has to trust for it.
#[derive(Clone, Debug)]
pub struct Identity {
    pub trusted: String,
    certificate: String,
    key: String,
}

impl Identity {
    /// As a gateway makes it for itself.
    pub fn self_signed() -> Self {
        Self::made(&["localhost", "127.0.0.1"], |_| {})
    }

    /// Its own authority.
    pub fn made(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = params(names);
        change(&mut params);
        let certificate = params.self_signed(&key).unwrap().pem();
        Self {
            trusted: certificate.clone(),
            certificate,
            key: key.serialize_pem(),
        }
    }

    /// Signed by an authority.
    pub fn signed() -> Self {
        let mut authority = params(&[]);
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap());
        let authority = authority.unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params(&["localhost"]).signed_by(&key, &authority).unwrap();
        Self {
            trusted: authority.pem(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    pub fn expired() -> Self {
        Self::made(&["127.0.0.1"], |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        })
    }

    pub fn authority() -> Self {
        Self::made(&["127.0.0.1"], |params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        })
    }
}

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().copied().map(str::to_owned).collect();
    CertificateParams::new(names).unwrap()
}

/// What the front does wrong, or at a time of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// It does not know the protocol.
    pub no_protocol: bool,
    /// Each connection ends after so many bytes to the client.
    pub cut_after: Option<usize>,
    /// Bytes to the client go one by one.
    pub dribbles: bool,
    /// It ends connections without saying so in TLS.
    pub truncates: bool,
    /// Keys are changed, and the client is asked to do the same, before each answer.
    pub updates_keys: bool,
}

#[derive(Debug, Default)]
struct Counts {
    full: AtomicU64,
    resumed: AtomicU64,
    /// Of the last connection.
    bytes_to_client: AtomicUsize,
    /// The client said close_notify.
    closed: AtomicU64,
}

#[derive(Debug)]
pub struct Front {
    pub address: SocketAddr,
    counts: Arc<Counts>,
}

impl Front {
    pub fn start(identity: &Identity, backend: SocketAddr, faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::new(Counts::default());
        let config = config(identity, faults);
        let counted = Arc::clone(&counts);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(client) = stream else { return };
                let side = Side {
                    connection: Mutex::new(ServerConnection::new(Arc::clone(&config)).unwrap()),
                    client,
                    counts: Arc::clone(&counted),
                    faults,
                    written: AtomicUsize::new(0),
                };
                small_thread(move || serve(Arc::new(side), backend));
            }
        });
        Self { address, counts }
    }

    /// Handshakes so far: full ones, and those that resumed.
    pub fn handshakes(&self) -> (u64, u64) {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (count(&self.counts.full), count(&self.counts.resumed))
    }

    pub fn bytes_to_client(&self) -> usize {
        self.counts.bytes_to_client.load(Ordering::Relaxed)
    }

    pub fn closed(&self) -> u64 {
        self.counts.closed.load(Ordering::Relaxed)
    }
}

fn small_thread(body: impl FnOnce() + Send + 'static) {
    let thread = thread::Builder::new().stack_size(256 * 1_024);
    thread.spawn(body).unwrap();
}

fn config(identity: &Identity, faults: Faults) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .unwrap();
    if !faults.no_protocol {
        config.alpn_protocols = vec![b"portico/1".to_vec()];
    }
    config.ticketer = rustls::crypto::ring::Ticketer::new().unwrap();
    config.send_tls13_tickets = 1;
    Arc::new(config)
}

struct Side {
    connection: Mutex<ServerConnection>,
    client: TcpStream,
    counts: Arc<Counts>,
    faults: Faults,
    written: AtomicUsize,
}

impl Side {
    /// Writes what TLS has for the client; `false` when the connection is over.
    fn flush(&self, connection: &mut ServerConnection) -> bool {
        let mut sealed = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut sealed).unwrap();
        }
        let before = self.written.fetch_add(sealed.len(), Ordering::Relaxed);
        let room = self.faults.cut_after.map(|cut| cut.saturating_sub(before));
        let is_cut = room.is_some_and(|room| room <= sealed.len());
        sealed.truncate(room.unwrap_or(usize::MAX));
        let bytes = &self.counts.bytes_to_client;
        bytes.store(before + sealed.len(), Ordering::Relaxed);
        let step = if self.faults.dribbles { 1 } else { usize::MAX };
        let _ = self.client.set_nodelay(true);
        let wrote = sealed
            .chunks(step)
            .all(|chunk| (&self.client).write_all(chunk).is_ok());
        if is_cut {
            let _ = self.client.shutdown(Shutdown::Write);
        }
        wrote && !is_cut
    }
}

/// From the client to the server behind; the other way in a thread of its own, once there is a
/// handshake.
fn serve(side: Arc<Side>, backend: SocketAddr) {
    let mut server: Option<TcpStream> = None;
    let mut chunk = [0; 16_384];
    'connection: while let Ok(count @ 1..) = (&side.client).read(&mut chunk) {
        let mut connection = side.connection.lock().unwrap();
        let mut came = &chunk[..count];
        let mut plain = Vec::new();
        while !came.is_empty() {
            connection.read_tls(&mut came).unwrap();
            let Ok(state) = connection.process_new_packets() else {
                side.flush(&mut connection);
                break 'connection;
            };
            if state.peer_has_closed() {
                side.counts.closed.fetch_add(1, Ordering::Relaxed);
            }
            let mut part = vec![0; state.plaintext_bytes_to_read()];
            connection.reader().read_exact(&mut part).unwrap();
            plain.append(&mut part);
        }
        if !side.flush(&mut connection) {
            break;
        }
        if server.is_none() && !connection.is_handshaking() {
            let counts = &side.counts;
            let counter = match connection.handshake_kind() {
                Some(HandshakeKind::Resumed) => &counts.resumed,
                _ => &counts.full,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            let Ok(stream) = TcpStream::connect(backend) else {
                break;
            };
            let (other, own) = (stream.try_clone().unwrap(), Arc::clone(&side));
            small_thread(move || answer(&own, other));
            server = Some(stream);
        }
        drop(connection);
        if let Some(server) = &mut server
            && server.write_all(&plain).is_err()
        {
            break;
        }
    }
    if let Some(server) = server {
        let _ = server.shutdown(Shutdown::Write);
    } else {
        let _ = side.client.shutdown(Shutdown::Both);
    }
}

fn answer(side: &Side, mut server: TcpStream) {
    let mut chunk = [0; 16_384];
    while let Ok(count @ 1..) = server.read(&mut chunk) {
        let mut connection = side.connection.lock().unwrap();
        if side.faults.updates_keys {
            connection.refresh_traffic_keys().unwrap();
        }
        connection.writer().write_all(&chunk[..count]).unwrap();
        if !side.flush(&mut connection) {
            break;
        }
    }
    let mut connection = side.connection.lock().unwrap();
    if !side.faults.truncates {
        connection.send_close_notify();
        side.flush(&mut connection);
    }
    // What the client still says is heard: it may be its close_notify.
    let _ = side.client.shutdown(Shutdown::Write);
}
