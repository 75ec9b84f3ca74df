//! What works: talk, resumption, changes of keys, ends.

use crate::{
    Setup, session,
    support::{front::Faults, server::PATIENCE},
};
use portico_client::{
    Client, Event, OwnedEvent, Phase, RawConnection, Resume,
    many::{Clock, ConnIndex, Many, ManyConfig, ManyEvent},
    plain_envelope,
};
use portico_wire::{CloseCode, ids::UserId};
use std::time::Instant;

fn client(setup: &Setup, user: u64) -> Client {
    let client = Client::connect_tls(setup.address(), session(user), setup.tls.clone()).unwrap();
    assert!(client.wait_live(PATIENCE), "{:?}", client.tls_failure());
    client
}

fn text(event: &OwnedEvent) -> Option<String> {
    match event {
        OwnedEvent::Message {
            envelope: Some(envelope),
            ..
        } => Some(String::from_utf8(envelope.body.clone()).unwrap()),
        _ => None,
    }
}

/// Sixty kilobytes are four records, and more than one read.
fn talk(setup: &Setup) {
    let (one, two) = (client(setup, 1), client(setup, 2));
    for body in ["hello".to_owned(), "long ".repeat(12_000), "end".to_owned()] {
        one.send_text(UserId(2), &body).unwrap();
        assert_eq!(two.wait_for(PATIENCE, text), Some(body.clone()));
        two.send_text(UserId(1), &body).unwrap();
        assert_eq!(one.wait_for(PATIENCE, text), Some(body));
    }
}

#[test]
fn two_clients_talk() {
    let setup = Setup::new(Faults::default());
    talk(&setup);
    // Both had the same trust, and so the same tickets.
    assert_eq!(setup.front.handshakes(), (1, 1));
}

#[test]
fn records_may_come_byte_by_byte() {
    let setup = Setup::new(Faults {
        dribbles: true,
        ..Faults::default()
    });
    let (one, two) = (client(&setup, 1), client(&setup, 2));
    one.send_text(UserId(2), "slowly").unwrap();
    assert_eq!(two.wait_for(PATIENCE, text).as_deref(), Some("slowly"));
}

#[test]
fn keys_that_the_server_changes_are_followed() {
    let setup = Setup::new(Faults {
        updates_keys: true,
        ..Faults::default()
    });
    talk(&setup);
}

#[test]
fn the_next_connection_resumes() {
    let setup = Setup::new(Faults::default());
    let one = client(&setup, 1);
    for resumed in 1..=3 {
        setup.server.cut((1, 1));
        assert!(one.wait_live(PATIENCE));
        assert_eq!(setup.front.handshakes(), (1, resumed));
    }
    one.close();
    // A ticket that was kept by a clone of the same trust.
    let again = RawConnection::connect_tls(&setup.address(), &setup.tls).unwrap();
    assert!(again.has_resumed());
}

#[test]
fn a_client_that_closes_says_so_in_tls() {
    let setup = Setup::new(Faults::default());
    client(&setup, 1).close();
    let begun = Instant::now();
    while setup.front.closed() == 0 {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
}

/// Without CLOSE the end of a connection is a loss, whether TLS announces it or not.
#[test]
fn an_end_without_close_is_a_lost_connection() {
    for truncates in [false, true] {
        let setup = Setup::new(Faults {
            truncates,
            ..Faults::default()
        });
        let one = client(&setup, 1);
        setup.server.cut((1, 1));
        let closed = one.wait_for(PATIENCE, |event| match event {
            OwnedEvent::Closed {
                code,
                by_peer,
                reconnect_after_ms,
                ..
            } => Some((*code, *by_peer, reconnect_after_ms.is_some())),
            _ => None,
        });
        assert_eq!(closed, Some((CloseCode::SERVER_ERROR, false, true)));
        setup.server.inject(2, 1, 1, &plain_envelope("while away"));
        assert_eq!(one.wait_for(PATIENCE, text).as_deref(), Some("while away"));
    }
}

/// Turns until `done`; the handshakes that were seen, full ones and resumed ones.
fn turn_until(many: &mut Many, mut done: impl FnMut(&Many, u64) -> bool) -> (u64, u64) {
    let begun = Instant::now();
    let (mut full, mut resumed, mut messages) = (0, 0, 0);
    while !done(many, messages) {
        assert!(begun.elapsed() < PATIENCE, "{full} {resumed} {messages}");
        many.turn(10_000, &mut |_, conn, event| match event {
            ManyEvent::Secured {
                handshake_us,
                resumed: has_resumed,
            } => {
                assert!(handshake_us > 0);
                *(if has_resumed { &mut resumed } else { &mut full }) += 1;
            }
            ManyEvent::ConnectFailed(error) => panic!("{conn:?}: {error}"),
            ManyEvent::Session(Event::Message { .. }) => messages += 1,
            _ => {}
        })
        .unwrap();
    }
    (full, resumed)
}

fn all_live(many: &Many) -> bool {
    let mut conns = (0..many.len() as u32).map(ConnIndex);
    conns.all(|conn| many.session(conn).phase() == Phase::Live)
}

const USERS: u64 = 30;

fn many(setup: &Setup, resume: Resume) -> Many {
    let mut config = ManyConfig::new(setup.front.address, Clock::start());
    config.tls = Some(setup.tls.clone().for_many(resume));
    // One after the other, so that each finds the ticket of the one before.
    config.connecting_max = 1;
    let mut many = Many::new(config).unwrap();
    for user in 1..=USERS {
        many.add(session(user));
    }
    many
}

#[test]
fn many_talk_and_resume_when_they_come_back() {
    let setup = Setup::new(Faults::default());
    let mut many = many(&setup, Resume::Returning);
    let seen = turn_until(&mut many, |many, _| all_live(many));
    assert_eq!(seen, (USERS, 0));
    let body = "long ".repeat(12_000);
    for user in 1..=USERS {
        let to = UserId(user % USERS + 1);
        let (conn, envelope) = (ConnIndex(user as u32 - 1), plain_envelope(&body));
        many.send(conn, to, &envelope, Default::default()).unwrap();
    }
    turn_until(&mut many, |_, messages| messages == USERS);
    for conn in 0..USERS as u32 {
        many.cut_for(ConnIndex(conn), 1_000);
    }
    let away = turn_until(&mut many, |many, _| !all_live(many));
    assert_eq!(away, (0, 0));
    let seen = turn_until(&mut many, |many, _| all_live(many));
    assert_eq!(seen, (0, USERS));
    assert_eq!(setup.front.handshakes(), (USERS, USERS));
    many.close_all();
    let begun = Instant::now();
    while setup.front.closed() == 0 {
        assert!(begun.elapsed() < PATIENCE, "{}", setup.front.closed());
        std::thread::yield_now();
    }
}

#[test]
fn a_share_of_many_resumes() {
    for (share, full) in [(0.0, USERS), (0.5, USERS / 2), (1.0, 1)] {
        let setup = Setup::new(Faults::default());
        let mut many = many(&setup, Resume::Share(share));
        let seen = turn_until(&mut many, |many, _| all_live(many));
        assert_eq!(seen, (full, USERS - full), "{share}");
        assert_eq!(setup.front.handshakes(), seen);
    }
}

#[test]
fn many_follow_changes_of_keys_and_records_in_pieces() {
    for (updates_keys, dribbles) in [(true, false), (false, true)] {
        let setup = Setup::new(Faults {
            updates_keys,
            dribbles,
            ..Faults::default()
        });
        let mut many = many(&setup, Resume::Returning);
        turn_until(&mut many, |many, _| all_live(many));
        for round in 0..3 {
            let text = format!("round {round}");
            let to = UserId(2);
            let envelope = plain_envelope(&text);
            many.send(ConnIndex(0), to, &envelope, Default::default())
                .unwrap();
            turn_until(&mut many, |_, messages| messages == 1);
        }
    }
}
