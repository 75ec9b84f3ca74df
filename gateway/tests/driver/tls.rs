//! TLS as an embedder sets it up: an acceptor of its own, a rule of its own for who a certificate
//! stands for, and new settings while the gateway serves.

use super::support::{PATIENCE, all_gone, options, start, together};
use portico_gateway::{
    Gateway, GatewayOptions, TlsOptions,
    tls::{
        Acceptor, Client, ClientMap, Clients, Identity, SelfSigned, Settings, TicketSecret,
        UnixTime, self_signed,
    },
};
use portico_wire::{
    Op,
    encode::Encoder,
    ids::{DeviceId, UserId},
    message::{Hello, Welcome},
    next_frame,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    version::TLS13,
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

/// Whoever has a certificate is user 77.
#[derive(Debug)]
struct AllTheSame;

impl ClientMap for AllTheSame {
    fn client(&self, chain: &[CertificateDer<'_>]) -> Option<Client> {
        chain.first().map(|_| Client {
            user: UserId(77),
            device: Some(DeviceId(3)),
        })
    }
}

fn made() -> SelfSigned {
    self_signed(&["localhost"], UnixTime::now()).unwrap()
}

/// One that a client may show, and its own authority.
fn made_for_client() -> SelfSigned {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    SelfSigned {
        certificate: params.self_signed(&key).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

fn settings(server: &SelfSigned, clients: Option<&SelfSigned>) -> Settings {
    let identity = Identity::from_pem(server.certificate.as_bytes(), server.key.as_bytes());
    let clients = clients.map(|made| {
        let authority = made.certificate.as_bytes();
        Clients::from_pem(authority, true, Arc::new(AllTheSame)).unwrap()
    });
    Settings {
        clients,
        ..Settings::new(identity.unwrap(), TicketSecret::random().unwrap())
    }
}

fn serve(acceptor: Acceptor) -> Gateway {
    start(GatewayOptions {
        tls: Some(TlsOptions {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            ..TlsOptions::new(acceptor)
        }),
        ..options(2)
    })
}

type Connection = StreamOwned<ClientConnection, TcpStream>;

fn connect(gateway: &Gateway, server: &SelfSigned, own: Option<&SelfSigned>) -> Connection {
    let mut roots = RootCertStore::empty();
    let certificate =
        |made: &SelfSigned| CertificateDer::from_pem_slice(made.certificate.as_bytes());
    roots.add(certificate(server).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(made) => {
            let key = PrivateKeyDer::from_pem_slice(made.key.as_bytes()).unwrap();
            let chain = vec![certificate(made).unwrap()];
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let name = ServerName::try_from("localhost").unwrap();
    let tcp = TcpStream::connect(gateway.tls_addr().unwrap()).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), tcp)
}

/// Who WELCOME says it is.
fn login(connection: &mut Connection, token: Option<&str>) -> (UserId, DeviceId) {
    let mut hello = Vec::new();
    let says = Hello {
        token,
        ..Hello::default()
    };
    Encoder::new().hello(&mut hello, 1, &says);
    connection.write_all(&hello).unwrap();
    let mut got = Vec::new();
    loop {
        if let Some(frame) = next_frame(&got, usize::MAX).unwrap() {
            assert_eq!(frame.known_op(), Some(Op::Welcome));
            let welcome = Welcome::decode(frame.body()).unwrap();
            return (welcome.user, welcome.device);
        }
        let mut buffer = [0; 4_096];
        let read = connection.read(&mut buffer).unwrap();
        assert!(read > 0, "closed");
        got.extend_from_slice(&buffer[..read]);
    }
}

#[test]
fn an_embedder_says_who_a_certificate_stands_for() {
    let _together = together();
    let (server, client) = (made(), made_for_client());
    let gateway = serve(Acceptor::new(&settings(&server, Some(&client))).unwrap());
    let mut connection = connect(&gateway, &server, Some(&client));
    let who = login(&mut connection, None);
    assert_eq!(who, (UserId(77), DeviceId(3)));
    drop(connection);
    all_gone(&gateway);
}

#[test]
fn new_settings_are_for_new_connections() {
    let _together = together();
    let (first, second) = (made(), made());
    let acceptor = Acceptor::new(&settings(&first, None)).unwrap();
    let gateway = serve(acceptor.clone());
    let mut old = connect(&gateway, &first, None);
    assert_eq!(login(&mut old, Some("5")).0, UserId(5));
    acceptor.reload(&settings(&second, None)).unwrap();
    let mut new = connect(&gateway, &second, None);
    assert_eq!(login(&mut new, Some("6")).0, UserId(6));
    // The old one is told of what comes with its own keys.
    let mut ping = Vec::new();
    portico_wire::encode::put_ping(&mut ping, 9, 60);
    old.write_all(&ping).unwrap();
    assert!(old.read(&mut [0; 64]).unwrap() > 0);
    let refused = connect(&gateway, &first, None).write_all(b"x");
    assert!(refused.is_err(), "it trusts the first certificate only");
    drop((old, new));
    all_gone(&gateway);
}
