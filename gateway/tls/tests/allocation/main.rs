//! What a session costs in memory, by form, and that an open one allocates nothing per record.
//!
//! The counting allocator is that of portico-core's tests. Each test counts on its own thread.

#[path = "../tls/common.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod common;
#[path = "../../../core/tests/allocation/counting.rs"]
mod counting;

use common::{Pair, Server};
use counting::{Counting, counted};
use portico_tls::{Form, RECORD_OVERHEAD, Session};
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SESSIONS: usize = 1_000;
/// Bytes per session, the value itself included. Measured: 1,272 and 152.
const OPEN_MAX: i64 = 1_400;
const _: () = assert!(Session::OPEN_BYTES as i64 <= OPEN_MAX);
const _: () = assert!(Session::HIBERNATED_BYTES as i64 <= HIBERNATED_MAX);
const HIBERNATED_MAX: i64 = 200;
/// Before the first byte.
const WAITING_MAX: i64 = 256;

fn live() -> i64 {
    counted().live_bytes
}

#[test]
fn sessions_are_small() {
    let server = Server::new();
    for suite in [
        TLS13_AES_128_GCM_SHA256,
        TLS13_AES_256_GCM_SHA384,
        TLS13_CHACHA20_POLY1305_SHA256,
    ] {
        let config = Arc::new(server.client(&[suite]));
        let mut sessions: Vec<Session> = Vec::with_capacity(SESSIONS);
        let values = (SESSIONS * size_of::<Session>()) as i64;
        // What is set up once, by the first session of this process.
        drop(Pair::open(&server.acceptor, &config));
        let before = live();
        sessions.extend((0..SESSIONS).map(|_| server.acceptor.accept()));
        let waiting = (live() - before + values) / SESSIONS as i64;
        sessions.clear();
        assert_eq!(live(), before);
        let mut largest_handshake = 0;
        // The client remembers tickets and the process what it has seen: only sessions are counted.
        for _ in 0..SESSIONS {
            let mut pair = Pair::new(&server.acceptor, &config);
            let mut hello = Vec::new();
            pair.client.write_tls(&mut hello).expect("memory");
            let start = live();
            let out = pair.server_gets(&hello);
            largest_handshake = largest_handshake.max(live() - start - out.capacity() as i64);
            pair.client_gets(&out);
            pair.run();
            pair.talks();
            assert_eq!(pair.session.form(), Form::Open);
            sessions.push(pair.session);
        }
        let with_all = live();
        sessions.iter_mut().for_each(Session::hibernate);
        let keys = (with_all - live()) / SESSIONS as i64;
        let with_hibernated = live();
        drop(sessions);
        let hibernated = (with_hibernated - live()) / SESSIONS as i64;
        let open = hibernated + keys;
        println!(
            "{:?}: waiting {waiting}, handshaking {largest_handshake}, open {open}, hibernated {hibernated} bytes",
            suite.suite()
        );
        assert!(waiting <= WAITING_MAX, "{waiting}");
        assert!(open <= OPEN_MAX, "{open}");
        assert!(hibernated <= HIBERNATED_MAX, "{hibernated}");
        assert!(hibernated > 100 && keys > 100, "the counters count");
    }
}

#[test]
fn an_open_session_allocates_nothing_per_record() {
    let server = Server::new();
    for suite in [
        TLS13_AES_128_GCM_SHA256,
        TLS13_AES_256_GCM_SHA384,
        TLS13_CHACHA20_POLY1305_SHA256,
    ] {
        let mut pair = Pair::open(&server.acceptor, &Arc::new(server.client(&[suite])));
        pair.talks();
        let mut out = Vec::with_capacity(200 + RECORD_OVERHEAD);
        let mut incoming = Vec::new();
        for _ in 0..100 {
            std::io::Write::write_all(&mut pair.client.writer(), &[5; 200]).expect("memory");
        }
        while pair.client.wants_write() {
            pair.client.write_tls(&mut incoming).expect("memory");
        }
        assert_eq!(incoming.len(), 100 * (200 + RECORD_OVERHEAD));
        let before = counted().allocations;
        for record in incoming.chunks_mut(200 + RECORD_OVERHEAD) {
            let received = pair.session.receive(record, &mut out);
            assert_eq!((received.plaintext, received.ended), (200, None));
            let sent = pair.session.send(&record[..200], &mut out);
            assert_eq!(sent, Ok(200));
            out.clear();
        }
        assert_eq!(counted().allocations - before, 0);
        // Waking takes one, hibernating none.
        pair.session.hibernate();
        assert_eq!(pair.session.send(&[1], &mut out), Ok(1));
        assert_eq!(counted().allocations - before, 1);
    }
}
