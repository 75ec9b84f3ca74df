//! Connections that end and come back: cut, refused, left at once; with a resume token alone, or
//! with another token from the owner.

use super::*;
use crate::{Login, Settings};
use portico_wire::message::Hello;
use std::sync::Arc;

/// A session that keeps no access token, and has none yet if `token` is empty.
fn tokenless(user: u64, token: &str) -> Session {
    let settings = Arc::new(Settings {
        keep_token: false,
        ..Settings::default()
    });
    let login = Login::new(UserId(user), DeviceId(1), token);
    Session::sharing(&settings, login, SessionState::default(), user)
}

/// The next frame, which must be HELLO, with its access token and its resume token.
fn hello(end: &mut Server) -> (Vec<u8>, Option<String>, Option<Vec<u8>>) {
    let (op, bytes) = end.frame().expect("HELLO");
    assert_eq!(op, Op::Hello);
    let frame = next_frame(&bytes, FRAME_BYTES_DEFAULT_MAX);
    let frame = frame.expect("a good frame").expect("a whole frame");
    let hello = Hello::decode(frame.body()).expect("a good HELLO");
    let token = hello.token.map(str::to_owned);
    let resume_token = hello.resume_token.map(<[u8]>::to_vec);
    (bytes, token, resume_token)
}

#[test]
fn a_cut_is_a_reset_and_the_resume_token_is_enough_to_return() {
    let (listener, target) = listener();
    let server = thread::spawn(move || {
        let mut first = Server::accept(&listener);
        let (bytes, token, resume_token) = hello(&mut first);
        assert_eq!((token.as_deref(), resume_token), (Some("first"), None));
        first.answer(1, &bytes);
        let mut byte = [0];
        let end = first.stream.read(&mut byte).expect_err("no gentle end");
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
        let mut second = Server::accept(&listener);
        let (bytes, token, resume_token) = hello(&mut second);
        assert_eq!((token, resume_token.as_deref()), (None, Some(RESUME_TOKEN)));
        second.answer(1, &bytes);
        second
    });
    let mut many = many(target, |_| {});
    let conn = many.add(tokenless(1, "first"));
    turn_until(&mut many, |many, _| all_live(many));
    many.cut(conn);
    // There is nothing left to cut, or to leave.
    many.cut(conn);
    many.reconnect_now(conn);
    assert!(many.slots[0].socket.is_none());
    let events = turn_until(&mut many, |many, events| {
        !events.is_empty() && all_live(many)
    });
    assert_eq!(events, ["0: closed 4004", "0: Welcome", "0: Synced"]);
    assert_eq!((many.connecting, many.tokenless), (0, 0));
    drop(server.join().expect("the script ran"));
}

#[test]
fn a_cut_before_welcome_is_a_failed_attempt() {
    let (listener, target) = listener();
    let mut many = many(target, |_| {});
    let conn = many.add(session(1));
    turn_until(&mut many, |many, _| many.slots[0].state == State::Greeting);
    many.cut(conn);
    let events = turn_until(&mut many, |_, events| !events.is_empty());
    assert_eq!(events, ["0: closed 4004"]);
    assert_eq!((many.connecting, many.slots[0].state), (0, State::Waiting));
    drop(listener);
}

#[test]
fn a_write_that_fails_does_not_hide_what_the_server_said() {
    let (listener, target) = listener();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let server = thread::spawn(move || {
        let mut end = Server::accept(&listener);
        end.welcome(1);
        wait.recv().expect("the test goes on");
        // Bytes that nobody has read make the kernel reset the connection.
        end.close(CloseCode::OVERLOADED);
    });
    let mut many = many(target, |_| {});
    let conn = many.add(session(1));
    turn_until(&mut many, |many, _| all_live(many));
    let body = crate::plain_envelope("x");
    let send = |many: &mut Many| {
        many.send(conn, PEER, &body, SendOptions::default())
            .expect("room in the outbox");
    };
    send(&mut many);
    many.turn(0, &mut |_, _, _| {}).expect("epoll");
    go.send(()).expect("the server waits");
    server.join().expect("the script ran");
    send(&mut many);
    let events = turn_until(&mut many, |_, events| !events.is_empty());
    assert_eq!(events, ["0: closed 4005"]);
}

#[test]
fn those_who_are_cut_together_hear_of_it_in_one_turn_and_all_return() {
    const CONNECTIONS: usize = 200;
    let (listener, target) = listener();
    let server = thread::spawn(move || {
        let mut ends: Vec<_> = (0..2 * CONNECTIONS)
            .map(|_| Server::accept(&listener))
            .collect();
        let hellos = ends.iter_mut().map(Server::frame);
        hellos.filter(Option::is_some).count()
    });
    let mut many = many(target, |config| {
        config.connections = CONNECTIONS;
        config.connects_per_s = 1_000_000;
        config.sources = vec![Ipv4Addr::new(127, 0, 0, 3).into()];
    });
    add_users(&mut many, CONNECTIONS as u64);
    turn_until(&mut many, |many, _| {
        let mut slots = many.slots.iter();
        slots.all(|slot| slot.state == State::Greeting)
    });
    for index in 0..CONNECTIONS as u32 {
        many.cut(ConnIndex(index));
    }
    let mut closed = 0;
    many.turn(0, &mut |_, _, event| {
        closed += usize::from(matches!(event, ManyEvent::Session(Event::Closed { .. })));
    })
    .expect("epoll");
    assert_eq!(closed, CONNECTIONS);
    assert_eq!(
        many.cut.capacity(),
        0,
        "no memory is kept for the next time"
    );
    turn_until(&mut many, |_, _| server.is_finished());
    assert!(server.join().expect("the script ran") >= CONNECTIONS);
}

#[test]
fn a_refused_resume_asks_the_owner_for_a_token() {
    let (listener, target) = listener();
    let server = thread::spawn(move || {
        let mut first = Server::accept(&listener);
        let (bytes, token, _) = hello(&mut first);
        assert_eq!(token.as_deref(), Some("given when asked"));
        first.answer(1, &bytes);
        // CLOSE from the client, or the end: nothing more comes.
        first.stream.shutdown(Shutdown::Write).expect("connected");
        let mut second = Server::accept(&listener);
        let (_, token, resume_token) = hello(&mut second);
        assert_eq!((token, resume_token.is_some()), (None, true));
        second.close(CloseCode::RESUME_REFUSED);
        let mut third = Server::accept(&listener);
        let (bytes, token, resume_token) = hello(&mut third);
        let token = token.as_deref();
        assert_eq!((token, resume_token), (Some("given when asked"), None));
        third.answer(1, &bytes);
        third
    });
    let mut many = many(target, |_| {});
    let conn = many.add(tokenless(1, ""));
    let mut told = Vec::new();
    for _ in 0..2 {
        told.extend(turn_until(&mut many, |_, events| {
            events.iter().any(|event| event.contains("token?"))
        }));
        // It is asked for once, and waits as long as the owner likes.
        assert_eq!((many.slots[0].state, many.tokenless), (State::Tokenless, 1));
        many.turn(0, &mut |_, _, event| panic!("{event:?} without a token"))
            .expect("epoll");
        many.set_token(conn, "given when asked");
        assert_eq!(many.tokenless, 0);
    }
    let expected = [
        "token?",
        "Welcome",
        "Synced",
        "closed 4004",
        "closed 4010",
        "token?",
    ];
    assert_eq!(told, expected.map(|event| format!("0: {event}")));
    turn_until(&mut many, |many, _| all_live(many));
    drop(server.join().expect("the script ran"));
}

#[test]
fn those_who_wait_for_a_token_count_as_connecting() {
    let (_listener, target) = listener();
    let mut many = many(target, |config| config.connecting_max = 3);
    for user in 1..=10 {
        many.add(tokenless(user, ""));
    }
    let events = turn_until(&mut many, |many, _| many.tokenless == 3);
    assert_eq!(events, ["0: token?", "1: token?", "2: token?"]);
    many.turn(0, &mut |_, _, event| panic!("{event:?} beyond the bound"))
        .expect("epoll");
    // One that is closed instead of answered makes room.
    many.with(ConnIndex(1), Session::close);
    let events = turn_until(&mut many, |_, events| !events.is_empty());
    assert_eq!(events, ["3: token?"]);
    assert_eq!(many.slots[1].state, State::Stopped);
    many.close_all();
    assert_eq!((many.tokenless, many.queue.len()), (0, 0));
}

#[test]
fn the_steps_of_an_attempt_are_timed_from_its_start() {
    const PAUSE_US: u64 = 30_000;
    let (listener, target) = listener();
    let server = thread::spawn(move || {
        let mut end = Server::accept(&listener);
        let (bytes, ..) = hello(&mut end);
        thread::sleep(Duration::from_micros(PAUSE_US));
        end.answer(1, &bytes);
        end
    });
    let mut many = many(target, |_| {});
    many.add(session(1));
    let begun_us = many.now().mono_us;
    let mut steps = Vec::new();
    while !all_live(&many) {
        many.turn(10_000, &mut |now, _, event| match event {
            ManyEvent::Connected { after_us } => steps.push(("connected", after_us, now)),
            ManyEvent::LoggedIn { after_us } => steps.push(("logged in", after_us, now)),
            ManyEvent::Session(Event::Welcome { .. }) => steps.push(("welcome", 0, now)),
            _ => {}
        })
        .expect("epoll");
    }
    let names: Vec<_> = steps.iter().map(|(name, ..)| *name).collect();
    assert_eq!(names, ["connected", "logged in", "welcome"]);
    let (connected_us, logged_in_us) = (steps[0].1, steps[1].1);
    // The server's pause lies after the one and before the other.
    assert!(connected_us < logged_in_us && logged_in_us >= PAUSE_US);
    for (_, after_us, now) in &steps[..2] {
        assert!(begun_us + after_us <= now.mono_us);
    }
    drop(server.join().expect("the script ran"));
}

#[test]
fn the_owner_may_go_at_once_when_its_own_network_changed() {
    let (listener, target) = listener();
    let server = thread::spawn(move || {
        let mut ends = Vec::new();
        for _ in 0..3 {
            let mut end = Server::accept(&listener);
            let (bytes, ..) = hello(&mut end);
            let welcome = Welcome {
                user: UserId(1),
                device: DeviceId(1),
                reconnect_spread_ms: 600_000,
                ..Welcome::default()
            };
            let mut out = Vec::new();
            Encoder::new().welcome(&mut out, corr_of(&bytes), &welcome);
            encode::put_synced(&mut out, Seq(0), 0);
            end.write(&out);
            ends.push(end);
        }
        ends
    });
    let mut many = many(target, |_| {});
    let conn = many.add(session(1));
    turn_until(&mut many, |many, _| all_live(many));
    // Out of a connection that the network has forgotten.
    many.reconnect_now(conn);
    let events = turn_until(&mut many, |_, events| events.len() >= 2);
    assert_eq!(events, ["0: Welcome", "0: Synced"]);
    // Out of the wait after one that is gone: up to ten minutes here.
    many.cut(conn);
    let events = turn_until(&mut many, |_, events| !events.is_empty());
    assert_eq!(events, ["0: closed 4004"]);
    assert_eq!(many.slots[0].state, State::Waiting);
    many.reconnect_now(conn);
    turn_until(&mut many, |many, _| all_live(many));
    drop(server.join().expect("the script ran"));
}

#[test]
fn a_session_closed_while_it_waits_is_not_opened_again() {
    let (listener, target) = listener();
    drop(listener);
    let mut many = many(target, |_| {});
    let conn = many.add(session(1));
    turn_until(&mut many, |many, _| many.slots[0].state == State::Waiting);
    many.with(conn, Session::close);
    let events = turn_until(&mut many, |many, _| many.slots[0].state == State::Stopped);
    assert!(events.is_empty(), "{events:?}");
    assert!(many.queue.is_empty());
}

#[test]
fn a_place_that_a_stranger_has_is_met_with_another_port() {
    let (listener, target) = listener();
    let source: IpAddr = Ipv4Addr::new(127, 0, 0, 4).into();
    // A place whose port is free, found by taking it.
    let (stranger, offset) = (0..100)
        .find_map(|offset| {
            let place = Sources::new(vec![source], offset).place(0)?;
            let stranger = TcpListener::bind(place).ok()?;
            Some((stranger, offset))
        })
        .expect("one of a hundred ports is free");
    let server = thread::spawn(move || listener.accept().expect("a connection"));
    let mut many = many(target, |config| {
        config.sources = vec![source];
        config.source_offset = offset;
    });
    many.add(session(1));
    turn_until(&mut many, |_, _| server.is_finished());
    let (_stream, peer) = server.join().expect("the script ran");
    let place = stranger.local_addr().expect("bound");
    assert_eq!(peer.ip(), place.ip());
    assert_ne!(peer.port(), place.port());
}
