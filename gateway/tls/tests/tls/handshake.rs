//! Handshakes, tickets and talk with rustls' client.

use crate::common::{Pair, Server};
use portico_tls::{
    Acceptor, End, Form, Suite, TICKET_PERIOD_S, TicketSecret, TimeProvider, UnixTime,
};
use rustls::{
    HandshakeKind, SupportedCipherSuite,
    crypto::ring::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    },
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

const SUITES: [(SupportedCipherSuite, Suite); 3] = [
    (TLS13_AES_128_GCM_SHA256, Suite::Aes128Gcm),
    (TLS13_AES_256_GCM_SHA384, Suite::Aes256Gcm),
    (TLS13_CHACHA20_POLY1305_SHA256, Suite::Chacha20Poly1305),
];

#[test]
fn any_chunking_and_suite_opens_and_talks_also_when_hibernating() {
    let server = Server::new();
    for (suite, expected) in SUITES {
        let config = Arc::new(server.client(&[suite]));
        for chunk in [1, 2, 3, 5, 6, 7, 16, 64, 333, usize::MAX] {
            let mut pair = Pair::new(&server.acceptor, &config);
            assert_eq!(pair.session.form(), Form::Handshaking);
            pair.chunk = chunk;
            pair.hibernate = chunk % 2 == 1;
            pair.run();
            let opened = pair.opened.take().expect("open");
            assert_eq!((opened.suite, opened.alpn), (expected, true));
            assert_eq!(opened.client, None);
            pair.talks();
            let long: Vec<u8> = (0..40_000_u32).map(|i| i as u8).collect();
            (pair.up, pair.down) = (Vec::new(), Vec::new());
            pair.client_says(&long);
            pair.server_says(&long);
            assert!(
                pair.up == long && pair.down == long,
                "{expected:?} by {chunk}"
            );
            pair.client.refresh_traffic_keys().expect("open");
            pair.run();
            pair.talks();
            let hibernated = pair.session.form() == Form::Hibernated;
            assert!(hibernated || chunk % 2 == 0 || pair.session.form() == Form::Open);
        }
    }
}

#[test]
fn data_right_behind_the_finished_message_is_received() {
    let server = Server::new();
    let config = Arc::new(server.client(&[]));
    let mut pair = Pair::new(&server.acceptor, &config);
    // rustls' client queues what is written before its handshake is over, and sends it in one go.
    std::io::Write::write_all(&mut pair.client.writer(), b"HELLO").expect("memory");
    pair.run();
    assert_eq!(pair.up, b"HELLO");
    pair.talks();
}

#[test]
fn a_client_without_alpn_is_let_in() {
    let server = Server::new();
    let mut config = server.client(&[]);
    config.alpn_protocols.clear();
    let mut pair = Pair::open(&server.acceptor, &Arc::new(config));
    assert!(!pair.opened.take().expect("open").alpn);
}

#[test]
fn both_sides_close() {
    let server = Server::new();
    let config = Arc::new(server.client(&[]));
    let mut pair = Pair::open(&server.acceptor, &config);
    pair.client.send_close_notify();
    pair.run();
    assert_eq!(pair.ended, Some(End::PeerClosed));
    let mut out = Vec::with_capacity(200);
    assert_eq!(pair.session.send(b"still", &mut out), Ok(5));
    pair.session.close(&mut out);
    pair.client_gets(&out);
    assert_eq!(pair.down, b"still");
    let state = pair.client.process_new_packets().expect("an orderly end");
    assert!(state.peer_has_closed());
}

#[derive(Debug)]
struct Clock(AtomicU64);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let now = Duration::from_secs(self.0.load(Ordering::Relaxed));
        Some(UnixTime::since_unix_epoch(now))
    }
}

#[test]
fn tickets_resume_here_on_other_nodes_and_after_a_restart_until_they_are_old() {
    let mut server = Server::new();
    let now = server.settings.clock.current_time().expect("a clock");
    let clock = Arc::new(Clock(AtomicU64::new(now.as_secs())));
    server.settings.clock = clock.clone();
    let acceptor = Acceptor::new(&server.settings).expect("good settings");
    let other_node = Acceptor::new(&server.settings).expect("good settings");
    for (suite, _) in SUITES {
        let mut config = server.client(&[suite]);
        config.time_provider = clock.clone();
        let config = Arc::new(config);
        let resumed = |acceptor: &Acceptor| {
            let mut pair = Pair::open(acceptor, &config);
            pair.talks();
            let resumed = pair.opened.take().expect("open").resumed;
            let theirs = pair.client.handshake_kind() == Some(HandshakeKind::Resumed);
            assert_eq!(resumed, theirs);
            resumed
        };
        assert!(!resumed(&acceptor));
        assert!(resumed(&acceptor));
        assert!(resumed(&other_node));
        assert!(resumed(
            &Acceptor::new(&server.settings).expect("good settings")
        ));
        // rustls' client forgets a ticket after its lifetime; ours are good for it.
        let passes = |seconds| clock.0.fetch_add(seconds, Ordering::Relaxed);
        passes(u64::from(TICKET_PERIOD_S) - 10);
        assert!(resumed(&acceptor));
        passes(u64::from(TICKET_PERIOD_S) * 2);
        assert!(!resumed(&acceptor));
        // Another secret knows nothing of it.
        let mut stranger = server.settings.clone();
        stranger.tickets = TicketSecret::random().expect("random numbers");
        assert!(!resumed(&Acceptor::new(&stranger).expect("good settings")));
    }
}

#[test]
fn settings_are_changed_under_open_sessions() {
    let server = Server::new();
    let config = Arc::new(server.client(&[]));
    let mut before = Pair::open(&server.acceptor, &config);
    let mut halfway = Pair::new(&server.acceptor, &config);
    let renewed = Server::new();
    let clone = server.acceptor.clone();
    server
        .acceptor
        .reload(&renewed.settings)
        .expect("good settings");
    before.talks();
    halfway.run();
    halfway.talks();
    Pair::open(&clone, &Arc::new(renewed.client(&[]))).talks();
    let mut refused = Pair::new(&clone, &Arc::new(server.client(&[])));
    refused.run();
    assert!(
        refused.client_error.is_some(),
        "the old certificate is gone"
    );
    assert!(
        matches!(refused.ended, Some(End::PeerAlert(_))),
        "{:?}",
        refused.ended
    );
}
