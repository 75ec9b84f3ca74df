//! Clients that are gone without a word: their end of the connection answers nothing, not even the
//! kernel's own packets, and the gateway's end looks as alive as before.

use super::{CLOSED_BY_PEER, CLOSED_IDLE, CLOSED_REPLACED};
use crate::harness::{Gateway, Peer, Setup};
use portico_wire::Op;
use socket2::{SockFilter, SockRef};
use std::time::{Duration, Instant};

const MESSAGES: usize = 40;
const USER_TIMEOUT: Duration = Duration::from_millis(2_000);

/// From now on every packet for this client is dropped, as if its machine had been switched off. It
/// says nothing either, as long as it is not dropped.
fn vanish(peer: &Peer) {
    // Takes nothing of any packet: `ret #0`.
    let nothing = SockFilter::new(0x06, 0, 0, 0);
    SockRef::from(peer.conn.stream())
        .attach_filter(&[nothing])
        .expect("any socket may have a filter");
}

fn texts(from: usize, count: usize) -> Vec<String> {
    (from..from + count)
        .map(|n| format!("number {n}"))
        .collect()
}

fn say(sender: &mut Peer, to: u64, from: usize) {
    for text in texts(from, MESSAGES) {
        sender.send(to, &text);
    }
}

fn hears(gateway: &Gateway, user: u64, wanted: &[String]) {
    let mut peer = gateway.login(user, 1);
    for text in wanted {
        assert_eq!(peer.receive().text, *text);
    }
    peer.has_no(Op::Deliver);
}

#[test]
fn a_client_that_vanished_gets_everything_when_it_is_back() {
    let setup = Setup::new().set("session.user_timeout_ms", USER_TIMEOUT.as_millis());
    let gateway = setup.start();
    let ended = gateway.watch(CLOSED_BY_PEER);
    let mut sender = gateway.login(1, 1);
    let mut reader = gateway.login(2, 1);
    say(&mut sender, 2, 0);
    for text in texts(0, MESSAGES) {
        assert_eq!(reader.receive().text, text);
    }
    gateway.has_stored_acks(MESSAGES as u64);
    vanish(&reader);
    let begun = Instant::now();
    say(&mut sender, 2, MESSAGES);
    // Long before its heartbeat, which is due in minutes.
    ended.moves_by(1);
    let took = begun.elapsed();
    assert!(took >= USER_TIMEOUT / 2, "{took:?}: not by the timeout");
    gateway.await_metric("portico_sessions", |count| count == 1);
    // And what comes while nobody is there.
    say(&mut sender, 2, 2 * MESSAGES);
    hears(&gateway, 2, &texts(MESSAGES, 2 * MESSAGES));
    gateway.still_serves();
}

/// A login of the same device does not wait for any timeout.
#[test]
fn a_new_login_takes_over_from_a_connection_that_is_dead() {
    let gateway = Gateway::start();
    let replaced = gateway.watch(CLOSED_REPLACED);
    let mut sender = gateway.login(1, 1);
    let mut reader = gateway.login(2, 1);
    sender.send(2, "before");
    assert_eq!(reader.receive().text, "before");
    gateway.has_stored_acks(1);
    vanish(&reader);
    say(&mut sender, 2, 0);
    let begun = Instant::now();
    hears(&gateway, 2, &texts(0, MESSAGES));
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    replaced.moves_by(1);
    // The dead one's socket goes as well, although nothing confirms that.
    gateway.await_metric("portico_sockets", |count| count == 1);
}

/// To whom nothing is said, of whom nothing is heard: twice the heartbeat and 15 seconds.
#[test]
fn a_client_that_vanished_in_silence_is_found_by_its_heartbeat() {
    let setup = Setup::new()
        .set("session.heartbeat_s", 1)
        .set("session.heartbeat_min_s", 1);
    let gateway = setup.start();
    let idle = gateway.watch(CLOSED_IDLE);
    let reader = gateway.login(2, 1);
    vanish(&reader);
    let begun = Instant::now();
    idle.moves_by(1);
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(15), "{took:?}");
    // Two more seconds for its last bytes, then the socket goes.
    gateway.await_metric("portico_sockets", |count| count == 0);
    gateway.login(1, 1).send(2, "while away");
    hears(&gateway, 2, &["while away".to_owned()]);
}
