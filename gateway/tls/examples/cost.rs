//! What TLS costs the server: CPU per message, per handshake and per wake, and bytes per session.
//!
//! `cargo run --release -p portico-tls --features self-signed --example cost`
//!
//! Times are CPU time of this thread (`/proc/thread-self/schedstat`), of the server's side only: the
//! clients' work is done between the measured parts. Memory is measured by
//! `cargo test -p portico-tls --test allocation -- --nocapture`.

use portico_tls::{
    Acceptor, DefaultTimeProvider, Identity, RECORD_OVERHEAD, Session, Settings, TicketSecret,
    TimeProvider, UnixTime, sealed_len,
};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, SupportedCipherSuite,
    client::Resumption,
    crypto::ring::{
        cipher_suite::{
            TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
        },
        default_provider,
    },
    pki_types::ServerName,
    version::TLS13,
};
use std::{error::Error, fs, hint::black_box, io::Write, sync::Arc};

type Outcome<T> = Result<T, Box<dyn Error>>;

const MESSAGE_BYTES: usize = 200;
/// In a round. The kernel adds to the CPU time at its ticks, so what is measured takes many of them.
const MESSAGES: usize = 100_000;
const ROUNDS: usize = 10;
const COPIES: usize = 10_000_000;
const HANDSHAKES: usize = 4_000;
/// At once.
const CLIENTS: usize = 200;
const WAKES: usize = 100_000;

/// Nanoseconds that this thread has been on a CPU.
fn cpu_ns() -> Outcome<u64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let first = text.split_whitespace().next();
    Ok(first.ok_or("an empty schedstat")?.parse()?)
}

/// CPU nanoseconds that `work` takes, per `count`.
fn timed(count: usize, work: impl FnOnce() -> Outcome<()>) -> Outcome<f64> {
    let start = cpu_ns()?;
    work()?;
    Ok((cpu_ns()? - start) as f64 / count as f64)
}

struct Server {
    acceptor: Acceptor,
    roots: Arc<RootCertStore>,
}

impl Server {
    fn new(algorithm: &'static rcgen::SignatureAlgorithm) -> Outcome<Self> {
        let now: UnixTime = DefaultTimeProvider.current_time().ok_or("no clock")?;
        assert!(now.as_secs() > 0);
        let key = KeyPair::generate_for(algorithm)?;
        let certificate =
            CertificateParams::new(vec!["localhost".to_owned()])?.self_signed(&key)?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone())?;
        let pem = certificate.pem();
        let identity = Identity::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes())?;
        Ok(Self {
            acceptor: Acceptor::new(&Settings::new(identity, TicketSecret::random()?))?,
            roots: Arc::new(roots),
        })
    }

    fn client(&self, suites: &[SupportedCipherSuite]) -> Outcome<Arc<ClientConfig>> {
        let mut provider = default_provider();
        provider.cipher_suites = suites.to_vec();
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![portico_tls::ALPN.to_vec()];
        Ok(Arc::new(config))
    }
}

/// A client, its session, and what lies between them.
struct Pair {
    client: ClientConnection,
    session: Session,
    up: Vec<u8>,
    down: Vec<u8>,
}

impl Pair {
    fn new(server: &Server, config: &Arc<ClientConfig>) -> Outcome<Self> {
        let name = ServerName::try_from("localhost")?;
        let mut pair = Self {
            client: ClientConnection::new(config.clone(), name)?,
            session: server.acceptor.accept(),
            up: Vec::new(),
            down: Vec::new(),
        };
        pair.client_turn()?;
        Ok(pair)
    }

    fn client_turn(&mut self) -> Outcome<()> {
        let mut bytes = &self.down[..];
        while !bytes.is_empty() {
            self.client.read_tls(&mut bytes)?;
            self.client.process_new_packets()?;
        }
        self.down.clear();
        while self.client.wants_write() {
            self.client.write_tls(&mut self.up)?;
        }
        Ok(())
    }

    fn server_turn(&mut self) -> Outcome<()> {
        let received = self.session.receive(&mut self.up, &mut self.down);
        if let Some(ended) = received.ended {
            return Err(format!("{ended:?}").into());
        }
        self.up.clear();
        Ok(())
    }
}

/// Server CPU in microseconds per handshake.
fn handshakes(server: &Server, config: &ClientConfig, resumed: bool) -> Outcome<f64> {
    // Each client remembers a ticket of its own.
    let configs: Vec<Arc<ClientConfig>> = (0..CLIENTS)
        .map(|_| {
            let mut config = config.clone();
            config.resumption = match resumed {
                true => Resumption::in_memory_sessions(2),
                false => Resumption::disabled(),
            };
            Arc::new(config)
        })
        .collect();
    let mut total = 0.0;
    // The first round earns the tickets.
    for round in 0..=HANDSHAKES / CLIENTS {
        let pairs: Outcome<Vec<Pair>> = configs.iter().map(|c| Pair::new(server, c)).collect();
        let mut pairs = pairs?;
        let mut cost = 0.0;
        for _ in 0..2 {
            cost += timed(1, || pairs.iter_mut().try_for_each(Pair::server_turn))?;
            pairs.iter_mut().try_for_each(Pair::client_turn)?;
        }
        if round == 0 {
            continue;
        }
        total += cost;
        for pair in &pairs {
            let kind = pair.client.handshake_kind();
            if (kind == Some(rustls::HandshakeKind::Resumed)) != resumed {
                return Err(format!("a handshake was {kind:?}").into());
            }
        }
    }
    Ok(total / 1_000.0 / HANDSHAKES as f64)
}

/// CPU nanoseconds per message: opened, sealed, copied in and out. `per_record` go in one record.
fn messages(
    server: &Server,
    config: &Arc<ClientConfig>,
    per_record: usize,
) -> Outcome<(f64, f64, f64)> {
    let mut pair = Pair::new(server, config)?;
    for _ in 0..2 {
        pair.server_turn()?;
        pair.client_turn()?;
    }
    let plain = vec![5; MESSAGE_BYTES * per_record];
    let record = plain.len() + RECORD_OVERHEAD;
    let (mut opened, mut sealed) = (0.0, 0.0);
    let records = MESSAGES / per_record;
    let mut out = Vec::with_capacity(sealed_len(plain.len()));
    for _ in 0..ROUNDS {
        for _ in 0..records {
            pair.client.writer().write_all(&plain)?;
            while pair.client.wants_write() {
                pair.client.write_tls(&mut pair.up)?;
            }
        }
        opened += timed(1, || {
            for bytes in pair.up.chunks_mut(record) {
                let received = pair.session.receive(bytes, &mut pair.down);
                if received.plaintext != plain.len() {
                    return Err(format!("{received:?}").into());
                }
            }
            Ok(())
        })?;
        pair.up.clear();
        sealed += timed(1, || {
            for _ in 0..records {
                out.clear();
                pair.session.send(black_box(&plain), &mut out)?;
                black_box(&out);
            }
            Ok(())
        })?;
    }
    let copied = timed(COPIES / per_record, || {
        for _ in 0..COPIES / per_record {
            for _ in 0..2 {
                out.clear();
                out.extend_from_slice(black_box(&plain));
                black_box(&out);
            }
        }
        Ok(())
    })?;
    let done = (records * ROUNDS * per_record) as f64;
    Ok((opened / done, sealed / done, copied / per_record as f64))
}

/// CPU microseconds to make the keys of a hibernated session again and drop them.
fn wakes(server: &Server, config: &Arc<ClientConfig>) -> Outcome<f64> {
    let mut pair = Pair::new(server, config)?;
    for _ in 0..2 {
        pair.server_turn()?;
        pair.client_turn()?;
    }
    let mut out = Vec::with_capacity(64);
    let mut run = |hibernate: bool| {
        timed(WAKES, || {
            for _ in 0..WAKES {
                if hibernate {
                    pair.session.hibernate();
                }
                out.clear();
                pair.session.send(b"x", &mut out)?;
            }
            Ok(())
        })
    };
    Ok((run(true)? - run(false)?) / 1_000.0)
}

fn main() -> Outcome<()> {
    let suites = [
        TLS13_AES_128_GCM_SHA256,
        TLS13_AES_256_GCM_SHA384,
        TLS13_CHACHA20_POLY1305_SHA256,
    ];
    let server = Server::new(&PKCS_ECDSA_P256_SHA256)?;
    println!("CPU per message of {MESSAGE_BYTES} bytes, ns (one per record | ten per record)");
    for suite in suites {
        let config = server.client(&[suite])?;
        let one = messages(&server, &config, 1)?;
        let ten = messages(&server, &config, 10)?;
        println!(
            "  {:?}: open {:.0} | {:.0}, seal {:.0} | {:.0}, both {:.0} | {:.0}; copying in and out {:.0} | {:.0}",
            suite.suite(),
            one.0,
            ten.0,
            one.1,
            ten.1,
            one.0 + one.1,
            ten.0 + ten.1,
            one.2,
            ten.2
        );
    }
    println!("CPU to wake a hibernated session, us");
    for suite in suites {
        let config = server.client(&[suite])?;
        println!("  {:?}: {:.1}", suite.suite(), wakes(&server, &config)?);
    }
    println!("Server CPU per handshake, us (and per second and core)");
    for (name, algorithm) in [
        ("ECDSA P-256", &PKCS_ECDSA_P256_SHA256),
        ("Ed25519", &PKCS_ED25519),
    ] {
        let server = Server::new(algorithm)?;
        let config = server.client(&[TLS13_AES_128_GCM_SHA256])?;
        for (kind, resumed) in [("full", false), ("resumed", true)] {
            let us = handshakes(&server, &config, resumed)?;
            println!("  {name}, {kind}: {us:.0} us, {:.0}/s", 1e6 / us);
        }
    }
    Ok(())
}
