//! What a TLS session costs a client: memory that the driver's thread asked for and holds, per
//! connection that has logged in and is quiet. The server runs on other threads and is not counted.

#[path = "../../gateway/core/tests/allocation/counting.rs"]
mod counting;
mod support;

use counting::{Counting, counted};
use portico_client::{
    Login, Phase, Resume, Session, SessionState, Settings, TlsClient,
    many::{Clock, ConnIndex, Many, ManyConfig},
};
use portico_wire::ids::{DeviceId, UserId};
use std::{net::SocketAddr, sync::Arc, time::Instant};
use support::{
    front::{Faults, Front, Identity},
    server::{PATIENCE, Server, plain_identity},
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WARM_UP: u64 = 100;
const SESSIONS: u64 = 200;
/// Measured: 3,814, and 3,976 of one that has resumed.
const TLS_BYTES_MAX: i64 = 4_400;

fn bytes_per_session(target: SocketAddr, tls: Option<TlsClient>) -> i64 {
    let mut config = ManyConfig::new(target, Clock::start());
    config.connections = (WARM_UP + SESSIONS) as usize;
    config.tls = tls;
    let settings = Arc::new(Settings {
        keep_token: false,
        ..Settings::default()
    });
    let mut many = Many::new(config).unwrap();
    let mut log_in = |users: std::ops::Range<u64>| {
        for user in users {
            let login = Login::new(UserId(user), DeviceId(1), format!("{user}:1"));
            let state = SessionState::default();
            many.add(Session::sharing(&settings, login, state, user));
        }
        let begun = Instant::now();
        let mut conns = (0..many.len() as u32).map(ConnIndex);
        while !conns
            .clone()
            .all(|conn| many.session(conn).phase() == Phase::Live)
        {
            assert!(begun.elapsed() < PATIENCE);
            many.turn(10_000, &mut |_, _, _| {}).unwrap();
        }
        conns.next();
        counted().live_bytes
    };
    let before = log_in(1..WARM_UP + 1);
    let after = log_in(WARM_UP + 1..WARM_UP + SESSIONS + 1);
    (after - before) / SESSIONS as i64
}

#[test]
fn an_idle_tls_session_costs_a_client_little() {
    let identity = Identity::self_signed();
    let server = Server::start(plain_identity);
    let front = Front::start(&identity, server.address, Faults::default());
    let tls = TlsClient::trusting_pem(identity.trusted.as_bytes(), "the test").unwrap();
    let plain = bytes_per_session(server.address, None);
    // All but the first resume, so that tickets do not grow with the connections.
    let resumed = tls.clone().for_many(Resume::Share(1.0));
    let resumed = bytes_per_session(front.address, Some(resumed)) - plain;
    let full = tls.for_many(Resume::Share(0.0));
    let full = bytes_per_session(front.address, Some(full)) - plain;
    println!("{full} bytes of TLS per session, {resumed} of one that has resumed; {plain} besides");
    assert!((1..=TLS_BYTES_MAX).contains(&full), "{full}");
    assert!((1..=TLS_BYTES_MAX).contains(&resumed), "{resumed}");
}
