//! The blocking driver and the raw connection over real sockets on loopback, against a gateway in
//! memory that breaks what a test wants broken.

mod support;

use portico_client::{
    Client, OwnedEvent, Phase, RawConnection, RawError, Session, SessionConfig, SessionState,
    blocking::EVENTS_MAX, plain_envelope,
};
use portico_wire::{
    CloseCode, ErrorCode, Flags, Op,
    encode::put_ping,
    frame::receipt_kind,
    ids::{ConvSeq, DeviceId, MsgId, UserId},
    message::Hello,
};
use std::{
    io::Write,
    net::{Shutdown, TcpListener},
    thread,
    time::{Duration, Instant},
};
use support::{
    Delivery,
    server::{PATIENCE, Server, plain_identity},
    text,
};

fn session(user: u64, change: impl FnOnce(&mut SessionConfig)) -> Session {
    let mut config = SessionConfig::new(UserId(user), DeviceId(1), format!("{user}:1"));
    change(&mut config);
    Session::new(config, SessionState::default(), user)
}

fn client(server: &Server, user: u64) -> Client {
    let client = Client::connect(server.address.to_string(), session(user, |_| {})).unwrap();
    assert!(client.wait_live(PATIENCE));
    client
}

fn message(event: &OwnedEvent) -> Option<String> {
    match event {
        OwnedEvent::Message {
            envelope: Some(envelope),
            ..
        } => Some(String::from_utf8(envelope.body.clone()).unwrap()),
        _ => None,
    }
}

fn sent(event: &OwnedEvent) -> Option<MsgId> {
    match event {
        OwnedEvent::Sent { msg_id, .. } => Some(*msg_id),
        _ => None,
    }
}

fn closed(event: &OwnedEvent) -> Option<(CloseCode, Option<u32>)> {
    match event {
        OwnedEvent::Closed {
            code,
            reconnect_after_ms,
            ..
        } => Some((*code, *reconnect_after_ms)),
        _ => None,
    }
}

#[test]
fn two_clients_talk_and_learn_of_delivery_and_reading() {
    let server = Server::start(plain_identity);
    let (one, two) = (client(&server, 1), client(&server, 2));
    let id = one.send_text(UserId(2), "hello").unwrap();
    assert_eq!(one.wait_for(PATIENCE, sent), Some(id));
    assert_eq!(one.unsent(), 0);
    let (text, conv_seq) = two
        .wait_for(PATIENCE, |event| match event {
            OwnedEvent::Message { conv_seq, .. } => Some((message(event)?, *conv_seq)),
            _ => None,
        })
        .unwrap();
    assert_eq!(text, "hello");
    two.read(UserId(1), conv_seq);
    let mut marks = Vec::new();
    one.wait_for(PATIENCE, |event| {
        if let OwnedEvent::Receipt { read, up_to, .. } = event {
            marks.push((*read, *up_to));
        }
        (marks.len() == 2).then_some(())
    });
    assert_eq!(marks, [(false, conv_seq), (true, conv_seq)]);
}

#[test]
fn a_message_whose_sent_is_lost_is_accepted_once() {
    let server = Server::start(plain_identity);
    let (one, two) = (client(&server, 1), client(&server, 2));
    server.world().lose_sent = 2;
    let ids: Vec<MsgId> = (0..5)
        .map(|n| one.send_text(UserId(2), &n.to_string()).unwrap())
        .collect();
    for id in ids {
        assert_eq!(one.wait_for(PATIENCE, sent), Some(id));
    }
    for n in 0..5 {
        assert_eq!(two.wait_for(PATIENCE, message), Some(n.to_string()));
    }
    let sends = server.world().sends(Op::Send);
    assert!(sends.len() > 5 && sends.iter().any(|seen| seen.is_retry()));
}

#[test]
fn a_cut_connection_comes_back_and_misses_nothing() {
    let server = Server::start(plain_identity);
    let one = client(&server, 1);
    server.cut((1, 1));
    server.wait(|world| (world.logins == 2).then_some(()));
    server.inject(2, 1, 1, &plain_envelope("while away"));
    let (code, after_ms) = one.wait_for(PATIENCE, closed).unwrap();
    assert_eq!(code, CloseCode::SERVER_ERROR);
    assert!(after_ms.unwrap() <= 500);
    assert_eq!(
        one.wait_for(PATIENCE, message).as_deref(),
        Some("while away")
    );
    // Taken out, so acknowledged.
    server.wait(|world| (world.cursor((1, 1)) != 0).then_some(()));
}

#[test]
fn a_server_that_is_not_there_yet_is_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = Client::connect(address.to_string(), session(1, |_| {})).unwrap();
    for _ in 0..3 {
        let (code, after_ms) = client.wait_for(PATIENCE, closed).unwrap();
        assert_eq!(code, CloseCode::SERVER_ERROR);
        assert!(after_ms.is_some());
    }
    assert_eq!(client.phase(), Phase::Offline);
    let start = Instant::now();
    client.close();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(client.has_ended());
    assert!(client.next_event(PATIENCE).is_none());
}

#[test]
fn a_close_that_means_stop_stops() {
    let server = Server::start(plain_identity);
    let one = client(&server, 1);
    let again = client(&server, 1);
    let (code, after_ms) = one.wait_for(PATIENCE, closed).unwrap();
    assert_eq!((code, after_ms), (CloseCode::SESSION_REPLACED, None));
    assert_eq!(one.phase(), Phase::Stopped(CloseCode::SESSION_REPLACED));
    thread::sleep(Duration::from_millis(50));
    assert_eq!(server.world().logins, 2);
    assert_eq!(again.phase(), Phase::Live);
}

#[test]
fn a_login_that_is_turned_away_is_tried_again() {
    let server = Server::start(plain_identity);
    server.world().close_at_hello =
        [(CloseCode::OVERLOADED, 30), (CloseCode::RESUME_REFUSED, 0)].into();
    let one = Client::connect(server.address.to_string(), session(1, |_| {})).unwrap();
    let (code, after_ms) = one.wait_for(PATIENCE, closed).unwrap();
    assert_eq!(code, CloseCode::OVERLOADED);
    assert!(after_ms.unwrap() >= 30);
    assert!(one.wait_live(PATIENCE));
}

#[test]
fn an_owner_whose_network_changed_need_not_wait() {
    let server = Server::start(plain_identity);
    let refusal = (CloseCode::OVERLOADED, 600_000);
    server.world().close_at_hello.push_back(refusal);
    let address = server.address.to_string();
    let one = Client::connect(address, session(1, |_| {})).unwrap();
    let (code, after_ms) = one.wait_for(PATIENCE, closed).unwrap();
    assert_eq!(code, CloseCode::OVERLOADED);
    assert!(after_ms.is_some_and(|after_ms| after_ms >= 600_000));
    // Out of ten minutes of waiting.
    one.reconnect_now();
    assert!(one.wait_live(PATIENCE));
    assert_eq!(server.world().logins, 1);
    // Out of a connection, which is not over before the next is there.
    one.reconnect_now();
    let event = one.next_event(PATIENCE);
    assert!(
        matches!(event, Some(OwnedEvent::Welcome { .. })),
        "{event:?}"
    );
    assert!(one.wait_live(PATIENCE));
    assert_eq!(server.world().logins, 2);
    // And not out of a stop.
    server.push((1, 1), |peer| {
        peer.close(CloseCode::BANNED, 0);
    });
    let (code, after_ms) = one.wait_for(PATIENCE, closed).unwrap();
    assert_eq!((code, after_ms), (CloseCode::BANNED, None));
    one.reconnect_now();
    assert_eq!(one.next_event(Duration::from_millis(200)), None);
    assert_eq!(server.world().logins, 2);
}

#[test]
fn refusals_reach_the_owner_and_a_temporary_one_heals() {
    let server = Server::start(plain_identity);
    let one = client(&server, 1);
    server.world().refuse = [(ErrorCode::RATE_LIMITED, 20), (ErrorCode::FORBIDDEN, 0)].into();
    let id = one.send_text(UserId(2), "slowly").unwrap();
    let refused = |event: &OwnedEvent| match event {
        OwnedEvent::Refused {
            code, will_retry, ..
        } => Some((*code, *will_retry)),
        _ => None,
    };
    let first = one.wait_for(PATIENCE, refused);
    assert_eq!(first, Some((ErrorCode::RATE_LIMITED, true)));
    let second = one.wait_for(PATIENCE, refused);
    assert_eq!(second, Some((ErrorCode::FORBIDDEN, false)));
    assert_eq!(one.unsent(), 0);
    let ids: Vec<MsgId> = server.wait(|world| {
        let sends = world.sends(Op::Send);
        (sends.len() == 2).then(|| sends.iter().map(|seen| seen.route.msg_id).collect())
    });
    assert_eq!(ids, [id, id]);
}

#[test]
fn with_manual_acknowledgement_only_the_owner_moves_the_cursor() {
    let server = Server::start(plain_identity);
    let manual = session(1, |config| config.auto_ack = false);
    let one = Client::connect(server.address.to_string(), manual).unwrap();
    assert!(one.wait_live(PATIENCE));
    server.inject(2, 1, 1, &plain_envelope("a"));
    server.inject(2, 1, 2, &plain_envelope("b"));
    let mut seqs = Vec::new();
    one.wait_for(PATIENCE, |event| {
        if let OwnedEvent::Message { seq, .. } = event {
            seqs.push(*seq);
        }
        (seqs.len() == 2).then_some(())
    });
    thread::sleep(Duration::from_millis(400));
    assert_eq!(server.world().cursor((1, 1)), 0);
    one.acknowledge(seqs[0]);
    server.wait(|world| (world.cursor((1, 1)) == seqs[0].0).then_some(()));
    assert_eq!(one.state().cursor, seqs[0]);
    // The next session starts there.
    one.close();
    let config = SessionConfig::new(UserId(1), DeviceId(1), "1:1");
    let next = Session::new(config, one.state(), 9);
    let next = Client::connect(server.address.to_string(), next).unwrap();
    assert_eq!(next.wait_for(PATIENCE, message).as_deref(), Some("b"));
}

#[test]
fn closing_says_so_after_the_last_acknowledgement() {
    let server = Server::start(plain_identity);
    let one = client(&server, 1);
    server.inject(2, 1, 1, &plain_envelope("last"));
    assert!(one.wait_for(PATIENCE, message).is_some());
    one.close();
    let world = server.world();
    let ops: Vec<Op> = world.seen.iter().map(|(_, seen)| seen.op).collect();
    assert_eq!(ops, [Op::Hello, Op::Ack, Op::Close]);
    assert_ne!(world.cursor((1, 1)), 0);
}

#[test]
fn an_owner_that_does_not_look_stops_the_stream_and_loses_nothing() {
    const MESSAGES: u64 = 6_000;
    let server = Server::start(plain_identity);
    let one = client(&server, 1);
    let body = plain_envelope(&"x".repeat(100));
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..MESSAGES {
                // Not sequenced, so that no window but only the driver's bound holds them.
                let now = Delivery {
                    conv_seq: n,
                    ..Delivery::new(0)
                };
                server.push((1, 1), |peer| {
                    peer.deliver_raw(now, Flags::EPHEMERAL, &body);
                });
            }
        });
        let deadline = Instant::now() + PATIENCE;
        while one.waiting() < EVENTS_MAX {
            assert!(Instant::now() < deadline);
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(200));
        // One read holds at most this many frames.
        assert!(one.waiting() < EVENTS_MAX + 16_384 / 72);
        for n in 0..MESSAGES {
            let place = one.wait_for(PATIENCE, |event| match event {
                OwnedEvent::Message { conv_seq, .. } => Some(*conv_seq),
                _ => None,
            });
            assert_eq!(place, Some(ConvSeq(n)));
        }
    });
}

#[test]
fn a_draining_server_is_left_for_the_one_it_names() {
    let (old, new) = (Server::start(plain_identity), Server::start(plain_identity));
    let one = client(&old, 1);
    let endpoint = new.address.to_string();
    old.push((1, 1), |peer| {
        peer.drain(1, 10_000, &[&endpoint]);
    });
    let draining = one.next_event(PATIENCE).unwrap();
    assert_eq!(draining, OwnedEvent::Draining { leave_after_ms: 0 });
    let welcome = one.next_event(PATIENCE).unwrap();
    assert!(matches!(welcome, OwnedEvent::Welcome { .. }), "{welcome:?}");
    assert_eq!(new.world().logins, 1);
}

#[test]
fn a_server_that_is_moved_sends_its_clients_on() {
    let (old, new) = (Server::start(plain_identity), Server::start(plain_identity));
    let one = client(&old, 1);
    let endpoint = new.address.to_string();
    old.push((1, 1), |peer| {
        let close = portico_wire::message::Close {
            endpoint: &endpoint,
            ..portico_wire::message::Close::new(CloseCode::MOVED, "")
        };
        peer.encoder.close(&mut peer.out, &close);
    });
    let (code, _) = one.wait_for(PATIENCE, closed).unwrap();
    assert_eq!(code, CloseCode::MOVED);
    assert!(one.wait_live(PATIENCE));
    assert_eq!(new.world().logins, 1);
}

#[test]
fn a_raw_connection_can_do_right_and_wrong() {
    let server = Server::start(plain_identity);
    let mut raw = RawConnection::connect(server.address).unwrap();
    let welcome = raw.hello("7:2").unwrap();
    assert_eq!((welcome.user, welcome.device), (UserId(7), DeviceId(2)));
    assert_eq!(welcome.resume_token, b"resume");
    raw.expect_op(Op::Synced, PATIENCE).unwrap();
    raw.send_text(5, UserId(7), MsgId(1), Flags::NONE, "to myself")
        .unwrap();
    let deliver = raw.expect_op(Op::Deliver, PATIENCE).unwrap();
    assert_eq!(text(&deliver.body), "to myself");
    let sent = raw.expect_op(Op::Sent, PATIENCE).unwrap();
    assert_eq!((sent.corr, sent.seq.arg), (5, 0));
    assert_eq!(deliver.route.unwrap().conv_seq, ConvSeq(sent.seq.seq));
    // A frame in two pieces.
    let mut ping = Vec::new();
    put_ping(&mut ping, 6, 60);
    raw.write_bytes(&ping[..7]).unwrap();
    let nothing = raw.read_frame(Duration::from_millis(30));
    assert!(
        matches!(nothing, Err(RawError::Io(error)) if error.kind() == std::io::ErrorKind::TimedOut)
    );
    raw.write_bytes(&ping[7..]).unwrap();
    assert_eq!(raw.expect_op(Op::Pong, PATIENCE).unwrap().corr, 6);
    server.push((7, 2), |peer| {
        peer.receipt(1, 1, receipt_kind::READ, 5, 6);
        peer.close(CloseCode::SLOW_CONSUMER, 0);
    });
    assert_eq!(
        raw.expect_close(PATIENCE).unwrap(),
        CloseCode::SLOW_CONSUMER
    );
    server.cut((7, 2));
    raw.expect_end(PATIENCE).unwrap();
}

#[test]
fn a_raw_connection_tells_why_there_is_no_welcome() {
    let server = Server::start(plain_identity);
    server.world().close_at_hello = [(CloseCode::AUTH_FAILED, 0)].into();
    let mut raw = RawConnection::connect(server.address).unwrap();
    let refused = raw.hello_with(&Hello::default());
    assert!(matches!(
        refused,
        Err(RawError::Closed(CloseCode::AUTH_FAILED))
    ));
    // Other ends, from a server that only knows those.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answers = [&[][..], &[9, 0, 0, 0][..], &[1, 1][..]];
    let serving = thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            // Its HELLO first, so that the end is not a reset.
            let mut hello = [0; 4_096];
            std::io::Read::read(&mut stream, &mut hello).unwrap();
            stream.write_all(answer).unwrap();
            stream.shutdown(Shutdown::Both).unwrap();
        }
    });
    let hello = || RawConnection::connect(address).unwrap().hello("1:1");
    assert!(matches!(hello(), Err(RawError::Ended)));
    assert!(matches!(hello(), Err(RawError::Broken)));
    assert!(matches!(hello(), Err(RawError::Ended)));
    serving.join().unwrap();
}
