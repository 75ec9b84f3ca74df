//! A TLS client, and a tunnel through which clients of the plain protocol speak TLS.

use crate::harness::{Gateway, PATIENCE, Peer, Setup};
use portico_client::RawConnection;
use portico_gateway::tls::ALPN;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    version::TLS13,
};
use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Instant,
};

/// A gateway that serves TLS with a certificate of its own.
pub(super) fn setup() -> Setup {
    Setup::new()
        .set("tls.listen", "127.0.0.1:0")
        .set("tls.self_signed", true)
}

/// How clients trust this gateway.
pub(super) fn trust(gateway: &Gateway) -> Arc<ClientConfig> {
    trust_file(&gateway.setup().data().join("tls-cert.pem"))
}

pub(super) fn trust_file(certificate: &Path) -> Arc<ClientConfig> {
    config(certificate, None)
}

/// With a certificate of the client's own and its key, in PEM.
pub(super) fn config(certificate: &Path, own: Option<(&str, &str)>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let trusted = CertificateDer::from_pem_file(certificate).expect("a certificate");
    roots.add(trusted).expect("an authority");
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::from_pem_slice(chain.as_bytes()).expect("a certificate");
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
            let config = builder.with_client_auth_cert(vec![chain], key);
            config.expect("they fit together")
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config)
}

/// One connection, byte by byte.
#[derive(Debug)]
pub(super) struct TlsClient {
    pub(super) tls: ClientConnection,
    pub(super) tcp: TcpStream,
}

impl TlsClient {
    /// Connected, with nothing said.
    pub(super) fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> Self {
        let name = ServerName::try_from("localhost").expect("a name");
        let tcp = TcpStream::connect(address).expect("the gateway accepts connections");
        tcp.set_nodelay(true).expect("an option of every socket");
        tcp.set_read_timeout(Some(PATIENCE)).expect("an option");
        Self {
            tls: ClientConnection::new(config.clone(), name).expect("a client"),
            tcp,
        }
    }

    /// With its handshake done.
    pub(super) fn open(address: SocketAddr, config: &Arc<ClientConfig>) -> Self {
        let mut client = Self::connect(address, config);
        client.shake_hands().expect("a handshake");
        client
    }

    pub(super) fn shake_hands(&mut self) -> io::Result<()> {
        while self.tls.is_handshaking() {
            self.tls.complete_io(&mut self.tcp)?;
        }
        // The Finished.
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.tcp)?;
        }
        Ok(())
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tls.writer().write_all(bytes)?;
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.tcp)?;
        }
        Ok(())
    }

    /// Plaintext that has come, at least a byte; nothing at the end of the stream.
    pub(super) fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; 16 << 10];
        let mut stream = rustls::Stream::new(&mut self.tls, &mut self.tcp);
        let read = stream.read(&mut buffer)?;
        buffer.truncate(read);
        Ok(buffer)
    }

    /// close_notify, and the gateway's.
    pub(super) fn close(mut self) {
        self.tls.send_close_notify();
        while self.tls.wants_write() {
            self.tls
                .write_tls(&mut self.tcp)
                .expect("the gateway reads");
        }
        let mut rest = Vec::new();
        let mut stream = rustls::Stream::new(&mut self.tls, &mut self.tcp);
        stream
            .read_to_end(&mut rest)
            .expect("close_notify comes back");
    }
}

/// Bytes that the server sends until it closes, as they are on the wire.
pub(super) fn read_to_end(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.set_read_timeout(Some(PATIENCE)).expect("an option");
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the gateway does not close: {error}"),
    }
    bytes
}

/// Listens for plain connections and takes each through TLS to the gateway. Its threads end with
/// their connections.
#[derive(Debug)]
pub(super) struct Tunnel {
    entrance: SocketAddr,
}

impl Tunnel {
    pub(super) fn to(gateway: &Gateway) -> Self {
        Self::with(gateway.tls(), trust(gateway))
    }

    pub(super) fn with(address: SocketAddr, config: Arc<ClientConfig>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let entrance = listener.local_addr().expect("an address");
        thread::spawn(move || {
            for plain in listener.incoming() {
                let plain = plain.expect("a connection");
                let config = config.clone();
                thread::spawn(move || carry(plain, address, &config));
            }
        });
        Self { entrance }
    }

    pub(super) fn connect(&self) -> RawConnection {
        RawConnection::connect(self.entrance).expect("the tunnel is there")
    }

    pub(super) fn login(&self, gateway: &Gateway, user: u64, device: u16) -> Peer {
        Peer::login(self.connect(), &gateway.token(user, device))
    }
}

/// Until both directions have ended. What fails ends the connection; its client will notice.
fn carry(plain: TcpStream, address: SocketAddr, config: &Arc<ClientConfig>) {
    let mut client = TlsClient::connect(address, config);
    client.tcp.set_read_timeout(None).expect("an option");
    plain.set_nodelay(true).expect("an option of every socket");
    if client.shake_hands().is_err() {
        return;
    }
    let sealed = client.tcp.try_clone().expect("a second handle");
    let tls = Arc::new(Mutex::new(client.tls));
    let up = {
        let (tls, plain) = (tls.clone(), plain.try_clone().expect("a second handle"));
        thread::spawn(move || carry_up(&plain, &tls, &client.tcp))
    };
    carry_down(&sealed, &tls, &plain);
    let _ = plain.shutdown(Shutdown::Write);
    let _ = up.join();
    let _ = sealed.shutdown(Shutdown::Both);
}

fn carry_up(mut plain: &TcpStream, tls: &Mutex<ClientConnection>, sealed: &TcpStream) {
    let mut buffer = vec![0; 32 << 10];
    loop {
        let read = plain.read(&mut buffer).unwrap_or(0);
        let mut tls = tls.lock().unwrap_or_else(PoisonError::into_inner);
        let written = match read {
            0 => {
                tls.send_close_notify();
                Ok(())
            }
            read => tls.writer().write_all(&buffer[..read]),
        };
        if written.and_then(|()| flush(&mut tls, sealed)).is_err() || read == 0 {
            return;
        }
    }
}

fn carry_down(mut sealed: &TcpStream, tls: &Mutex<ClientConnection>, mut plain: &TcpStream) {
    let mut buffer = vec![0; 32 << 10];
    loop {
        let mut plaintext = Vec::new();
        let mut ended = {
            // What came with the handshake is there before anything is read.
            let mut tls = tls.lock().unwrap_or_else(PoisonError::into_inner);
            match tls.reader().read_to_end(&mut plaintext) {
                Ok(_) => true,
                Err(error) => error.kind() != ErrorKind::WouldBlock,
            }
        };
        if plain.write_all(&plaintext).is_err() || ended {
            return;
        }
        let read = sealed.read(&mut buffer).unwrap_or(0);
        let mut tls = tls.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = &buffer[..read];
        while !bytes.is_empty() && !ended {
            let taken = tls.read_tls(&mut bytes).unwrap_or(0);
            ended = taken == 0 || tls.process_new_packets().is_err();
            let mut plaintext = Vec::new();
            let _ = tls.reader().read_to_end(&mut plaintext);
            ended |= plain.write_all(&plaintext).is_err();
        }
        ended |= flush(&mut tls, sealed).is_err();
        if read == 0 || ended {
            return;
        }
    }
}

fn flush(tls: &mut ClientConnection, mut sealed: &TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(&mut sealed)?;
    }
    Ok(())
}

/// Reads until something has come that fits, or the stream ends.
pub(super) fn await_plaintext(client: &mut TlsClient, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let deadline = Instant::now() + PATIENCE;
    let mut all = Vec::new();
    while !enough(&all) {
        assert!(Instant::now() < deadline, "in vain");
        let more = client.read().expect("bytes");
        if more.is_empty() {
            break;
        }
        all.extend(more);
    }
    all
}
