//! The driver against scripted servers on loopback: a thread that accepts, reads and writes as the
//! test says. Real sockets, because what is tested is how they behave.

mod absent;
mod returning;

use super::*;
use crate::{Event, SessionConfig, SessionState};
use portico_wire::ids::UserId;
use portico_wire::{
    CloseCode, Flags, Op, RouteHeader,
    encode::{self, Encoder},
    frame::{ConvKind, next_frame},
    ids::{ConvSeq, DeviceId, Seq},
    limits::FRAME_BYTES_DEFAULT_MAX,
    message::{Close, Envelope, Welcome},
};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

const RESUME_TOKEN: &[u8] = b"resume me";
const PEER: UserId = UserId(1_000);
/// Longer than anything here takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(20);

fn session(user: u64) -> Session {
    let config = SessionConfig::new(UserId(user), DeviceId(1), "token");
    Session::new(config, SessionState::default(), user)
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

fn many(target: SocketAddr, change: impl FnOnce(&mut ManyConfig)) -> Many {
    let mut config = ManyConfig::new(target, Clock::start());
    change(&mut config);
    Many::new(config).expect("epoll")
}

/// Turns until `done`; collects what happened as text.
fn turn_until(many: &mut Many, mut done: impl FnMut(&Many, &[String]) -> bool) -> Vec<String> {
    let begun = Instant::now();
    let mut events = Vec::new();
    while !done(many, &events) {
        assert!(begun.elapsed() < PATIENCE, "after {events:#?}");
        many.turn(10_000, &mut |_, conn, event| {
            let text = match event {
                ManyEvent::Session(Event::Message { envelope, .. }) => {
                    let body = envelope.map_or(&[][..], |envelope| envelope.body);
                    format!("message of {} bytes", body.len())
                }
                ManyEvent::Session(Event::Closed { code, .. }) => format!("closed {}", code.0),
                ManyEvent::Session(event) => {
                    let text = format!("{event:?}");
                    text.split([' ', '{', '('])
                        .next()
                        .unwrap_or_default()
                        .to_owned()
                }
                ManyEvent::ConnectFailed(error) => format!("failed {:?}", error.kind()),
                ManyEvent::TokenWanted => "token?".to_owned(),
                ManyEvent::Connected { .. }
                | ManyEvent::Secured { .. }
                | ManyEvent::LoggedIn { .. } => return,
            };
            events.push(format!("{}: {text}", conn.0));
        })
        .expect("epoll");
    }
    events
}

fn add_users(many: &mut Many, last: u64) {
    for user in 1..=last {
        many.add(session(user));
    }
}

fn all_live(many: &Many) -> bool {
    let mut conns = (0..many.len() as u32).map(ConnIndex);
    conns.all(|conn| many.session(conn).phase() == Phase::Live)
}

/// One end of a connection, as the server has it.
struct Server {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Server {
    fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Self {
            stream,
            input: Vec::new(),
        }
    }

    /// The operation and the whole of the next frame.
    fn frame(&mut self) -> Option<(Op, Vec<u8>)> {
        loop {
            let frame = next_frame(&self.input, FRAME_BYTES_DEFAULT_MAX).expect("good frames");
            if let Some(frame) = frame {
                let op = frame.known_op().expect("known");
                let bytes = frame.bytes().to_vec();
                self.input.drain(..bytes.len());
                return Some((op, bytes));
            }
            let mut chunk = [0; 65_536];
            let read = self.stream.read(&mut chunk).ok().filter(|read| *read > 0)?;
            self.input.extend_from_slice(&chunk[..read]);
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the client reads");
    }

    fn welcome(&mut self, user: u64) {
        let (op, hello) = self.frame().expect("HELLO");
        assert_eq!(op, Op::Hello);
        self.answer(user, &hello);
    }

    fn answer(&mut self, user: u64, hello: &[u8]) {
        let welcome = Welcome {
            user: UserId(user),
            device: DeviceId(1),
            resume_token: RESUME_TOKEN,
            ..Welcome::default()
        };
        let mut out = Vec::new();
        Encoder::new().welcome(&mut out, corr_of(hello), &welcome);
        encode::put_synced(&mut out, Seq(0), 0);
        self.write(&out);
    }

    fn close(&mut self, code: CloseCode) {
        let mut out = Vec::new();
        Encoder::new().close(&mut out, &Close::new(code, ""));
        self.write(&out);
    }
}

fn corr_of(frame: &[u8]) -> u32 {
    let frame = next_frame(frame, FRAME_BYTES_DEFAULT_MAX).expect("a good frame");
    frame.expect("a whole frame").corr()
}

fn deliver(out: &mut Vec<u8>, seq: u64, body: &[u8]) {
    let route = RouteHeader {
        seq: Seq(seq),
        msg_id: MsgId(u128::from(seq)),
        conv: PEER.0,
        conv_kind: ConvKind::DIRECT,
        conv_seq: ConvSeq(seq),
        user: PEER,
        dev: DeviceId(1),
        ..RouteHeader::default()
    };
    let envelope = Envelope {
        body,
        ..Envelope::default()
    };
    let mut encoder = Encoder::new();
    let envelope = encoder.envelope(&envelope);
    encode::put_routed(out, Op::Deliver as u8, Flags::NONE, 0, 0, &route, envelope);
}

#[test]
fn many_log_in_and_each_gets_its_own_events() {
    let (listener, target) = listener();
    let server = thread::spawn(move || {
        let mut ends: Vec<_> = (1..=50).map(|_| Server::accept(&listener)).collect();
        for (user, end) in (1..=50).zip(&mut ends) {
            end.welcome(user);
        }
        for (n, end) in ends.iter_mut().enumerate() {
            let mut out = Vec::new();
            deliver(&mut out, 1, &vec![7; n]);
            end.write(&out);
        }
        ends
    });
    // One at a time: the server's order of accepting is that of the sessions.
    let mut many = many(target, |config| config.connects_per_s = 2_000);
    add_users(&mut many, 50);
    let events = turn_until(&mut many, |_, events| {
        events
            .iter()
            .filter(|event| event.contains("message"))
            .count()
            == 50
    });
    for conn in 0..50 {
        let own = format!("{conn}: message of {conn} bytes");
        assert!(events.contains(&own), "{own} in {events:#?}");
    }
    drop(server.join().expect("the script ran"));
}

#[test]
fn frames_queued_between_turns_leave_together_and_in_order() {
    let (listener, target) = listener();
    let server = thread::spawn(move || {
        let mut end = Server::accept(&listener);
        end.welcome(1);
        let frames: Vec<_> = (0..20).map(|_| end.frame().expect("a message").1).collect();
        frames
    });
    let mut many = many(target, |_| {});
    let conn = many.add(session(1));
    turn_until(&mut many, |many, _| all_live(many));
    for n in 0..20_u8 {
        let body = crate::plain_envelope(&n.to_string());
        many.send(conn, PEER, &body, SendOptions::default())
            .expect("room in the outbox");
    }
    assert_eq!(many.dirty, [0], "listed once, whatever it has to say");
    turn_until(&mut many, |_, _| server.is_finished());
    for (n, frame) in server.join().expect("the script ran").iter().enumerate() {
        let text = n.to_string();
        assert!(
            frame
                .windows(text.len())
                .any(|bytes| bytes == text.as_bytes())
        );
    }
    let output = many.slots[0].session.output();
    assert_eq!(output.capacity(), 0, "an idle connection keeps no buffer");
}

#[test]
fn a_peer_that_does_not_read_blocks_only_its_connection() {
    let (listener, target) = listener();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let server = thread::spawn(move || {
        let mut lazy = Server::accept(&listener);
        lazy.welcome(1);
        let mut quick = Server::accept(&listener);
        quick.welcome(2);
        let (op, _) = quick.frame().expect("a message");
        assert_eq!(op, Op::Send);
        wait.recv().expect("the test goes on");
        let mut read = 0;
        while read < 200 {
            let (_, message) = lazy.frame().expect("a message");
            let mut sent = Vec::new();
            encode::put_sent(&mut sent, corr_of(&message), ConvSeq(read + 1), false);
            lazy.write(&sent);
            read += 1;
        }
        read
    });
    let mut many = many(target, |config| config.connects_per_s = 10);
    let (first, second) = (many.add(session(1)), many.add(session(2)));
    turn_until(&mut many, |many, _| all_live(many));
    let body = Encoder::new()
        .envelope(&Envelope {
            body: &[0; 60_000],
            ..Envelope::default()
        })
        .to_vec();
    let mut sent = 0;
    while !many.slots[0].blocked {
        assert!(sent < 200, "12 MB fit into no socket");
        many.send(first, PEER, &body, SendOptions::default())
            .expect("room in the outbox");
        many.turn(0, &mut |_, _, _| {}).expect("epoll");
        sent += 1;
    }
    let small = crate::plain_envelope("x");
    many.send(second, PEER, &small, SendOptions::default())
        .expect("room in the outbox");
    for _ in sent..200 {
        many.send(first, PEER, &body, SendOptions::default())
            .expect("room in the outbox");
    }
    many.turn(0, &mut |_, _, _| {}).expect("epoll");
    go.send(()).expect("the server waits");
    turn_until(&mut many, |_, _| server.is_finished());
    assert_eq!(server.join().expect("the script ran"), 200);
}

#[test]
fn more_than_a_buffer_is_read_to_the_end() {
    let (listener, target) = listener();
    let server = thread::spawn(move || {
        let mut end = Server::accept(&listener);
        end.welcome(1);
        let mut out = Vec::new();
        for seq in 1..=60 {
            deliver(&mut out, seq, &[1; 40_000]);
        }
        end.write(&out);
        // The end of the stream follows the last byte at once. The socket itself is closed when the
        // client's acknowledgements have been read: with them unread the kernel would reset the
        // connection, and what the client has not read yet would be gone.
        end.stream.shutdown(Shutdown::Write).expect("connected");
        let _ = io::copy(&mut end.stream, &mut io::sink());
    });
    let mut many = many(target, |_| {});
    many.add(session(1));
    let events = turn_until(&mut many, |_, events| {
        events.iter().any(|event| event.contains("closed"))
    });
    let messages = events
        .iter()
        .filter(|event| event.contains("message of 40000"));
    assert_eq!(messages.count(), 60);
    server.join().expect("the script ran");
}

#[test]
fn an_end_without_close_is_followed_by_another_connection() {
    let (listener, target) = listener();
    let server = thread::spawn(move || {
        Server::accept(&listener).welcome(1);
        let mut second = Server::accept(&listener);
        second.welcome(1);
        second
    });
    let mut many = many(target, |_| {});
    many.add(session(1));
    let events = turn_until(&mut many, |_, events| {
        events
            .iter()
            .filter(|event| event.contains("Synced"))
            .count()
            == 2
    });
    assert_eq!(
        events,
        [
            "0: Welcome",
            "0: Synced",
            "0: closed 4004",
            "0: Welcome",
            "0: Synced"
        ]
    );
    assert_eq!(many.connecting, 0);
    drop(server.join().expect("the script ran"));
}

#[test]
fn a_close_that_says_stop_is_obeyed() {
    let (listener, target) = listener();
    let server = thread::spawn(move || {
        let mut end = Server::accept(&listener);
        end.close(CloseCode::BANNED);
        listener
    });
    let mut many = many(target, |_| {});
    many.add(session(1));
    let events = turn_until(&mut many, |_, events| !events.is_empty());
    assert_eq!(events, ["0: closed 4023"]);
    let listener = server.join().expect("the script ran");
    listener.set_nonblocking(true).expect("a socket");
    for _ in 0..20 {
        many.turn(10_000, &mut |_, _, event| panic!("{event:?} after the end"))
            .expect("epoll");
    }
    assert!(listener.accept().is_err(), "nobody came back");
    assert_eq!((many.connecting, many.slots[0].state), (0, State::Stopped));
}

#[test]
fn a_refused_connection_is_tried_again() {
    let (listener, target) = listener();
    drop(listener);
    let mut many = many(target, |_| {});
    many.add(session(1));
    let events = turn_until(&mut many, |_, events| events.len() >= 2);
    assert_eq!(
        events[..2],
        ["0: failed ConnectionRefused", "0: closed 4004"]
    );
    let listener = TcpListener::bind(target).expect("the port is still free");
    let server = thread::spawn(move || {
        let mut end = Server::accept(&listener);
        end.welcome(1);
        end
    });
    turn_until(&mut many, |many, _| all_live(many));
    drop(server.join().expect("the script ran"));
}

#[test]
fn a_server_that_does_not_answer_hello_is_given_up() {
    let (listener, target) = listener();
    let mut many = many(target, |config| config.connect_timeout_ms = 100);
    many.add(session(1));
    let events = turn_until(&mut many, |_, events| events.len() >= 2);
    assert_eq!(events[..2], ["0: failed TimedOut", "0: closed 4004"]);
    assert_eq!(many.connecting, 0);
    drop(listener);
}

#[test]
fn a_draining_server_is_left_without_a_pause() {
    let (listener, target) = listener();
    let server = thread::spawn(move || {
        let mut first = Server::accept(&listener);
        first.welcome(1);
        let mut out = Vec::new();
        let drain = portico_wire::message::Drain {
            spread_ms: 50,
            deadline_ms: 60_000,
            endpoints: Vec::new(),
        };
        Encoder::new().drain(&mut out, &drain);
        first.write(&out);
        let mut second = Server::accept(&listener);
        second.welcome(1);
        second
    });
    let mut many = many(target, |_| {});
    many.add(session(1));
    let events = turn_until(&mut many, |_, events| {
        events
            .iter()
            .filter(|event| event.contains("Synced"))
            .count()
            == 2
    });
    let expected = ["Welcome", "Synced", "Draining", "Welcome", "Synced"];
    assert_eq!(events, expected.map(|event| format!("0: {event}")));
    drop(server.join().expect("the script ran"));
}

#[test]
fn no_more_connect_at_once_than_allowed() {
    let (listener, target) = listener();
    let mut many = many(target, |config| {
        config.connecting_max = 3;
        config.connects_per_s = 1_000_000;
    });
    add_users(&mut many, 10);
    for _ in 0..20 {
        many.turn(5_000, &mut |_, _, _| {}).expect("epoll");
    }
    assert_eq!((many.connecting, many.queue.len()), (3, 7));
    let server = thread::spawn(move || {
        let accept = |user| {
            let mut end = Server::accept(&listener);
            end.welcome(user);
            end
        };
        (1..=10).map(accept).collect::<Vec<_>>()
    });
    turn_until(&mut many, |many, _| all_live(many));
    drop(server.join().expect("the script ran"));
}

#[test]
fn several_source_addresses_take_turns() {
    let (listener, target) = listener();
    let server = thread::spawn(move || {
        let peer = || listener.accept().expect("a connection").1.ip();
        let mut peers: Vec<_> = (0..4).map(|_| peer()).collect();
        peers.sort_unstable();
        peers
    });
    let sources = loopback_sources(target, 4, 2).expect("loopback");
    let mut many = many(target, |config| config.sources = sources);
    add_users(&mut many, 4);
    turn_until(&mut many, |_, _| server.is_finished());
    let address = |last| IpAddr::from(Ipv4Addr::new(127, 0, 0, last));
    assert_eq!(
        server.join().expect("the script ran"),
        [address(2), address(2), address(3), address(3)]
    );
}

#[test]
fn closing_says_so_and_stops() {
    let (listener, target) = listener();
    let server = thread::spawn(move || {
        let mut end = Server::accept(&listener);
        end.welcome(1);
        let (op, _) = end.frame().expect("a last frame");
        (op, end.frame().is_none())
    });
    let mut many = many(target, |_| {});
    many.add(session(1));
    turn_until(&mut many, |many, _| all_live(many));
    many.close_all();
    assert_eq!(server.join().expect("the script ran"), (Op::Close, true));
}

#[test]
fn a_session_closed_by_its_owner_stays_closed() {
    let (listener, target) = listener();
    let server = thread::spawn(move || {
        let mut end = Server::accept(&listener);
        end.welcome(1);
        let (op, _) = end.frame().expect("a last frame");
        op
    });
    let mut many = many(target, |_| {});
    let conn = many.add(session(1));
    turn_until(&mut many, |many, _| all_live(many));
    many.with(conn, Session::close);
    let events = turn_until(&mut many, |many, _| many.slots[0].socket.is_none());
    assert!(events.is_empty(), "{events:?}");
    assert_eq!(many.slots[0].state, State::Stopped);
    assert_eq!(server.join().expect("the script ran"), Op::Close);
}
