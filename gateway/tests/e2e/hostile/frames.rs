//! Bytes that are no frames, and frames that are wrong.

use super::{CLOSED_PROTOCOL, CLOSED_TOO_LARGE, ended_with, is_closed};
use crate::harness::{Gateway, PATIENCE, Peer, Random};
use portico_client::RawError;
use portico_wire::{
    CloseCode, ErrorCode, Flags, Op,
    encode::{Encoder, put_body, put_ping, put_plain},
    limits::{FRAME_BYTES_BEFORE_WELCOME_MAX, FRAME_BYTES_DEFAULT_MAX},
    message::Hello,
};

#[test]
fn a_web_browser_is_told_to_go() {
    let request = b"GET / HTTP/1.1\r\nHost: portico\r\n\r\n";
    is_closed(
        &Gateway::start(),
        CLOSED_TOO_LARGE,
        CloseCode::FRAME_TOO_LARGE,
        request,
    );
}

#[test]
fn a_tls_client_is_told_to_go() {
    // The head of a ClientHello record.
    let hello = [
        0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03,
    ];
    is_closed(
        &Gateway::start(),
        CLOSED_TOO_LARGE,
        CloseCode::FRAME_TOO_LARGE,
        &hello,
    );
}

#[test]
fn a_first_frame_beyond_the_limit_is_refused_by_its_length() {
    let len = (FRAME_BYTES_BEFORE_WELCOME_MAX as u32 + 1 - 4).to_le_bytes();
    is_closed(
        &Gateway::start(),
        CLOSED_TOO_LARGE,
        CloseCode::FRAME_TOO_LARGE,
        &len,
    );
}

#[test]
fn a_frame_beyond_the_limit_after_welcome_is_refused_by_its_length() {
    let gateway = Gateway::start();
    let closed = gateway.watch(CLOSED_TOO_LARGE);
    let mut peer = gateway.login(1, 1);
    assert_eq!(peer.welcome.max_frame as usize, FRAME_BYTES_DEFAULT_MAX);
    peer.write(&(peer.welcome.max_frame + 1 - 4).to_le_bytes());
    assert_eq!(peer.closed(), CloseCode::FRAME_TOO_LARGE);
    closed.moves_by(1);
    gateway.still_serves();
}

/// The largest frame that is legal is no offence, whatever is in it.
#[test]
fn a_frame_at_the_limit_is_read() {
    let gateway = Gateway::start();
    let mut peer = gateway.login(1, 1);
    let body = vec![0xee; peer.welcome.max_frame as usize - 16];
    let mut out = Vec::new();
    put_body(&mut out, Op::KeysFetch as u8, Flags::NONE, 7, 0, &body);
    peer.write(&out);
    assert_eq!(peer.refused(7).code, ErrorCode::UNSUPPORTED);
    peer.ping();
}

#[test]
fn a_frame_that_is_too_short_is_refused() {
    let gateway = Gateway::start();
    for len in [0_u32, 1, 11] {
        is_closed(
            &gateway,
            CLOSED_PROTOCOL,
            CloseCode::PROTOCOL_ERROR,
            &len.to_le_bytes(),
        );
    }
    let closed = gateway.watch(CLOSED_PROTOCOL);
    let mut peer = gateway.login(1, 1);
    peer.write(&11_u32.to_le_bytes());
    assert_eq!(peer.closed(), CloseCode::PROTOCOL_ERROR);
    closed.moves_by(1);
}

#[test]
fn headers_that_do_not_fit_are_refused() {
    let gateway = Gateway::start();
    let mut ping = Vec::new();
    put_ping(&mut ping, 1, 60);
    // (byte, value): a body offset beyond the frame, one inside the header, a PING that claims to be
    // a SEND without its second header, a SEND that does not say it is routed.
    for changes in [
        &[(6, 200)][..],
        &[(6, 1)],
        &[(4, 32)],
        &[(4, 32), (5, 0)],
        &[(5, 1)],
    ] {
        let mut bytes = ping.clone();
        for (at, value) in changes {
            bytes[*at] = *value;
        }
        is_closed(&gateway, CLOSED_PROTOCOL, CloseCode::PROTOCOL_ERROR, &bytes);
    }
}

#[test]
fn operations_before_hello_are_refused() {
    let gateway = Gateway::start();
    for op in [
        Op::Ack,
        Op::ReceiptsGet,
        Op::ClientState,
        Op::Reauth,
        Op::Welcome,
    ] {
        let mut bytes = Vec::new();
        match op {
            Op::Ack => portico_wire::encode::put_ack(&mut bytes, portico_wire::ids::Seq(1), 8),
            _ => put_plain(&mut bytes, op, Flags::NONE, 1, 0),
        }
        is_closed(&gateway, CLOSED_PROTOCOL, CloseCode::PROTOCOL_ERROR, &bytes);
    }
    let closed = gateway.watch(CLOSED_PROTOCOL);
    let mut conn = gateway.connect();
    let (to, id) = (portico_wire::ids::UserId(2), crate::harness::new_msg_id());
    conn.send_text(1, to, id, Flags::NONE, "too early")
        .expect("the socket takes it");
    assert_eq!(ended_with(&mut conn), CloseCode::PROTOCOL_ERROR);
    closed.moves_by(1);
    gateway.login(2, 1).has_no(Op::Deliver);
}

#[test]
fn a_second_hello_and_operations_of_the_server_are_refused() {
    let gateway = Gateway::start();
    let closed = gateway.watch(CLOSED_PROTOCOL);
    let token = gateway.token(1, 1);
    let mut hello = Vec::new();
    let fields = Hello {
        token: Some(&token),
        ..Hello::default()
    };
    Encoder::new().hello(&mut hello, 9, &fields);
    let mut synced = Vec::new();
    portico_wire::encode::put_synced(&mut synced, portico_wire::ids::Seq(1), 0);
    for bytes in [&hello, &synced] {
        let mut peer = gateway.login(1, 1);
        peer.write(bytes);
        assert_eq!(peer.closed(), CloseCode::PROTOCOL_ERROR);
    }
    closed.moves_by(2);
    gateway.still_serves();
}

#[test]
fn a_ping_before_hello_is_answered() {
    let gateway = Gateway::start();
    let mut conn = gateway.connect();
    let mut ping = Vec::new();
    put_ping(&mut ping, 5, 60);
    conn.write_bytes(&ping).expect("the socket takes it");
    let pong = conn.expect_op(Op::Pong, PATIENCE).expect("PONG");
    assert_eq!(pong.corr, 5);
    conn.hello(&gateway.token(1, 1)).expect("WELCOME");
}

#[test]
fn unknown_operations_are_answered_or_ignored_and_counted() {
    let gateway = Gateway::start();
    let ignored = gateway.watch(r#"portico_frames_ignored_total{reason="unknown_op"}"#);
    let mut peer = gateway.login(1, 1);
    let unknown = 200;
    let mut out = Vec::new();
    put_body(&mut out, unknown, Flags::NONE, 7, 0, b"whatever");
    put_body(&mut out, unknown, Flags::NONE, 0, 0, b"whatever");
    peer.write(&out);
    let refused = peer.refused(7);
    assert_eq!((refused.code, refused.op), (ErrorCode::UNKNOWN_OP, unknown));
    peer.ping();
    ignored.moves_by(2);
    gateway.still_serves();
}

/// Operations of later versions of the gateway: known by number, not served.
#[test]
fn operations_that_come_later_are_unsupported() {
    let gateway = Gateway::start();
    let unsupported = gateway.watch(r#"portico_frames_ignored_total{reason="unsupported"}"#);
    let mut peer = gateway.login(1, 1);
    let plain: Vec<_> = Op::ALL
        .iter()
        .filter(|op| op.header() == portico_wire::op::Header::Base)
        .filter(|op| op.may_come_from_client(portico_wire::op::Stage::Welcomed))
        .filter(|op| {
            let served = [
                Op::Ping,
                Op::Close,
                Op::Reauth,
                Op::ReceiptsGet,
                Op::ClientState,
                Op::History,
                Op::ConversationsGet,
                Op::GroupGet,
                Op::PresenceSub,
                Op::ContactsEdit,
                Op::ContactsGet,
                Op::PrivacySet,
                Op::PrivacyGet,
            ];
            !served.contains(op)
        })
        .collect();
    assert!(plain.len() > 15);
    for op in &plain {
        let (corr, mut out) = (peer.next_corr(), Vec::new());
        put_plain(&mut out, **op, Flags::NONE, corr, 0);
        peer.write(&out);
        assert_eq!(peer.refused(corr).code, ErrorCode::UNSUPPORTED, "{op:?}");
    }
    unsupported.moves_by(plain.len() as u64);
}

/// Every cut and many corruptions of a good HELLO: a clear end, or WELCOME where the change did
/// not matter.
#[test]
fn a_damaged_hello_never_gets_further_than_it_should() {
    let gateway = Gateway::start();
    let mut random = Random::announced("a_damaged_hello");
    let token = gateway.token(1, 1);
    let mut good = Vec::new();
    let hello = Hello {
        token: Some(&token),
        client: "damaged",
        ..Hello::default()
    };
    Encoder::new().hello(&mut good, 1, &hello);
    let mut codes = Vec::new();
    for round in 0..300 {
        let mut bytes = good.clone();
        if round % 3 == 0 {
            bytes.truncate(17 + random.below(bytes.len() as u64 - 17) as usize);
            let len = (bytes.len() as u32 - 4).to_le_bytes();
            bytes[..4].copy_from_slice(&len);
        } else {
            let at = 16 + random.below(bytes.len() as u64 - 16) as usize;
            bytes[at] ^= 1 << random.below(8);
        }
        let mut conn = gateway.connect();
        conn.write_bytes(&bytes).expect("the socket takes it");
        match conn.expect_frame(PATIENCE) {
            Ok(frame) if frame.known_op() == Some(Op::Welcome) => {}
            Ok(frame) => codes.push(frame.close_code().expect("CLOSE or WELCOME")),
            Err(error) => panic!("round {round}: {error}"),
        }
    }
    let expected = [
        CloseCode::PROTOCOL_ERROR,
        CloseCode::AUTH_FAILED,
        CloseCode::TOKEN_EXPIRED,
        CloseCode::RESUME_REFUSED,
        CloseCode::VERSION_UNSUPPORTED,
    ];
    assert!(
        codes.iter().all(|code| expected.contains(code)),
        "{codes:?}"
    );
    assert!(codes.contains(&CloseCode::PROTOCOL_ERROR));
    assert!(codes.contains(&CloseCode::AUTH_FAILED));
    gateway.still_serves();
}

#[test]
fn a_hello_without_a_flatbuffer_is_refused() {
    let gateway = Gateway::start();
    for body in [&b""[..], b"\xff\xff\xff\xff", &[1; 64], &[0xff; 64]] {
        let mut bytes = Vec::new();
        put_body(&mut bytes, Op::Hello as u8, Flags::NONE, 1, 0, body);
        is_closed(&gateway, CLOSED_PROTOCOL, CloseCode::PROTOCOL_ERROR, &bytes);
    }
}

#[test]
fn malformed_bodies_are_answered_until_there_are_too_many() {
    let gateway = Gateway::start();
    let malformed = gateway.watch(r#"portico_requests_refused_total{reason="malformed"}"#);
    let closed = gateway.watch(CLOSED_PROTOCOL);
    let mut peer = gateway.login(1, 1);
    let mut answered = 0;
    // The tenth of a minute ends it. A new minute may begin in between, so it may take up to
    // nineteen.
    let code = loop {
        let (corr, mut out) = (peer.next_corr(), Vec::new());
        put_body(
            &mut out,
            Op::ReceiptsGet as u8,
            Flags::NONE,
            corr,
            0,
            &[0xff; 40],
        );
        peer.write(&out);
        let frame = peer.take("ERROR or CLOSE", |frame| Some(frame.clone()));
        if let Some(code) = frame.close_code() {
            break code;
        }
        answered += 1;
        assert_eq!((frame.known_op(), frame.corr), (Some(Op::Error), corr));
        let reply = portico_wire::message::ErrorReply::decode(&frame.body).expect("ErrorReply");
        assert_eq!(reply.code, ErrorCode::MALFORMED);
        assert!(answered < 19);
    };
    assert_eq!(code, CloseCode::PROTOCOL_ERROR);
    assert!(answered >= 9, "only {answered} were answered");
    malformed.moves_by(answered + 1);
    closed.moves_by(1);
    gateway.still_serves();
}

/// Random bytes, and random bytes in frames of the right length, with and without a login.
#[test]
fn noise_harms_nobody() {
    let gateway = Gateway::start();
    let mut random = Random::announced("noise");
    let mut neighbour = gateway.login(1, 1);
    for round in 0..200_u64 {
        let mut conn = gateway.connect();
        if round % 2 == 0 {
            conn.hello(&gateway.token(10 + round, 1)).expect("WELCOME");
        }
        let count = 1 + random.below(2_000) as usize;
        let mut bytes = random.bytes(count);
        if round % 4 >= 2 {
            // A frame that passes the first check.
            let mut framed = Vec::new();
            put_body(&mut framed, bytes[0], Flags(bytes[count / 2]), 1, 0, &bytes);
            bytes = framed;
        }
        // The gateway may have closed while this was written.
        let _ = conn.write_bytes(&bytes);
        let _ = conn.stream().shutdown(std::net::Shutdown::Write);
        match conn.expect_end(PATIENCE) {
            Ok(()) | Err(RawError::Io(_)) => {}
            Err(error) => panic!("round {round}: {error}"),
        }
        if round % 20 == 0 {
            neighbour.ping();
        }
    }
    drop::<Peer>(neighbour);
    gateway.still_serves();
    gateway.await_metric("portico_connections", |count| count == 0);
}
