//! Both drivers over TLS, against rustls' server in front of the gateway in memory: nothing here is
//! the gateway's own TLS.

#[path = "../support/mod.rs"]
mod support;

mod drivers;
mod refused;

use portico_client::{Session, SessionConfig, SessionState, TlsClient};
use portico_wire::ids::{DeviceId, UserId};
use support::{
    front::{Faults, Front, Identity},
    server::{Server, plain_identity},
};

/// A server, TLS in front of it, and a client's trust in that.
struct Setup {
    server: Server,
    front: Front,
    tls: TlsClient,
}

impl Setup {
    fn new(faults: Faults) -> Self {
        let identity = Identity::self_signed();
        let server = Server::start(plain_identity);
        let front = Front::start(&identity, server.address, faults);
        let tls = trusting(&identity);
        Self { server, front, tls }
    }

    fn address(&self) -> String {
        self.front.address.to_string()
    }
}

fn trusting(identity: &Identity) -> TlsClient {
    TlsClient::trusting_pem(identity.trusted.as_bytes(), "the test").unwrap()
}

fn session(user: u64) -> Session {
    let config = SessionConfig::new(UserId(user), DeviceId(1), format!("{user}:1"));
    Session::new(config, SessionState::default(), user)
}
