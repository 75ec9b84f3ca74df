//! Requests of a logged-in client that make no sense.

use crate::harness::{Gateway, msg_id_at, new_msg_id, wall_us};
use portico_client::{OwnedEvent, Session, SessionState, plain_envelope};
use portico_wire::{
    ErrorCode, Flags, Op, RouteHeader,
    encode::{Encoder, put_routed},
    frame::ConvKind,
    ids::{DeviceId, MsgId, Seq, UserId},
    limits::ENVELOPE_BYTES_MAX,
    message::Envelope,
};

const DAY_MS: u64 = 86_400_000;

fn refused(reason: &str) -> &'static str {
    match reason {
        "bad_argument" => r#"portico_requests_refused_total{reason="bad_argument"}"#,
        "clock_ahead" => r#"portico_requests_refused_total{reason="clock_ahead"}"#,
        "expired" => r#"portico_requests_refused_total{reason="expired"}"#,
        "too_large" => r#"portico_requests_refused_total{reason="too_large"}"#,
        "unsupported" => r#"portico_requests_refused_total{reason="unsupported"}"#,
        "rate_limited" => r#"portico_requests_refused_total{reason="rate_limited"}"#,
        other => panic!("no counter for {other}"),
    }
}

#[test]
fn messages_to_nobody_are_refused() {
    let gateway = Gateway::start();
    let counted = gateway.watch(refused("bad_argument"));
    let mut peer = gateway.login(1, 1);
    for nobody in [0, u64::MAX] {
        let (corr, _) = peer.post(nobody, "to nobody");
        let answer = peer.refused(corr);
        assert_eq!(
            (answer.code, answer.op),
            (ErrorCode::BAD_ARGUMENT, Op::Send as u8)
        );
    }
    counted.moves_by(2);
    peer.send(2, "to somebody");
    gateway.still_serves();
}

#[test]
fn conversations_that_are_not_served_are_refused() {
    let gateway = Gateway::start();
    let counted = gateway.watch(refused("unsupported"));
    let mut peer = gateway.login(1, 1);
    for (conv_kind, code) in [
        (ConvKind::GROUP, ErrorCode::NOT_FOUND),
        (ConvKind::STATUS, ErrorCode::UNSUPPORTED),
    ] {
        let (corr, mut out) = (peer.next_corr(), Vec::new());
        let route = RouteHeader {
            msg_id: new_msg_id(),
            conv: 2,
            conv_kind,
            ..RouteHeader::default()
        };
        let body = plain_envelope("to many");
        put_routed(
            &mut out,
            Op::Send as u8,
            Flags::NONE,
            corr,
            0,
            &route,
            &body,
        );
        peer.write(&out);
        assert_eq!(peer.refused(corr).code, code);
    }
    counted.moves_by(1);
}

#[test]
fn an_id_from_the_future_is_refused_with_the_servers_clock() {
    let gateway = Gateway::start();
    let counted = gateway.watch(refused("clock_ahead"));
    let mut peer = gateway.login(1, 1);
    let ahead = msg_id_at(wall_us() / 1_000 + 61_500);
    peer.post_as(7, 2, ahead, Flags::NONE, "from the future");
    let answer = peer.refused(7);
    assert_eq!(answer.code, ErrorCode::CLOCK_AHEAD);
    let off_us = answer.server_us.abs_diff(wall_us());
    assert!(off_us < 60_000_000, "the server's clock is {off_us} us off");
    counted.moves_by(1);
    // Up to a minute is forgiven.
    let near = msg_id_at(wall_us() / 1_000 + 50_000);
    peer.post_as(8, 2, near, Flags::NONE, "from the near future");
    peer.sent(8);
    gateway.still_serves();
}

#[test]
fn ids_that_are_too_old_or_no_ids_are_refused() {
    let gateway = Gateway::start();
    let expired = gateway.watch(refused("expired"));
    let argument = gateway.watch(refused("bad_argument"));
    let mut peer = gateway.login(1, 1);
    let old = msg_id_at(wall_us() / 1_000 - 8 * DAY_MS);
    peer.post_as(7, 2, old, Flags::RETRY, "from last week");
    assert_eq!(peer.refused(7).code, ErrorCode::EXPIRED);
    peer.post_as(8, 2, MsgId(0x1234), Flags::NONE, "no version 7");
    assert_eq!(peer.refused(8).code, ErrorCode::BAD_ARGUMENT);
    expired.moves_by(1);
    argument.moves_by(1);
    gateway.login(2, 1).has_no(Op::Deliver);
}

/// An Envelope of exactly this many bytes.
fn envelope_of(bytes: usize) -> Vec<u8> {
    let mut body = vec![b'x'; bytes];
    loop {
        let envelope = Envelope {
            body: &body,
            ..Envelope::default()
        };
        let encoded = Encoder::new().envelope(&envelope).to_vec();
        if encoded.len() <= bytes {
            let mut exact = encoded;
            exact.resize(bytes, 0);
            return exact;
        }
        body.truncate(body.len() - 4);
    }
}

#[test]
fn a_body_at_the_limit_is_delivered_and_one_above_is_refused() {
    let gateway = Gateway::start();
    let counted = gateway.watch(refused("too_large"));
    let (mut peer, mut other) = (gateway.login(1, 1), gateway.login(2, 1));
    let corr = peer.post_body(2, &envelope_of(ENVELOPE_BYTES_MAX + 1));
    assert_eq!(peer.refused(corr).code, ErrorCode::TOO_LARGE);
    let largest = envelope_of(ENVELOPE_BYTES_MAX);
    let corr = peer.post_body(2, &largest);
    peer.sent(corr);
    let body = other.take("DELIVER", |frame| {
        (frame.known_op() == Some(Op::Deliver)).then(|| frame.body.clone())
    });
    assert!(body == largest, "{} bytes came", body.len());
    counted.moves_by(1);
    gateway.still_serves();
}

/// A body that is no Envelope passes the gateway, which does not look, and is dropped by the
/// reader's client, whose session goes on.
#[test]
fn a_corrupt_envelope_harms_nobody() {
    let gateway = Gateway::start();
    let mut sender = gateway.login(1, 1);
    let corr = sender.post_body(2, &[0xff; 100]);
    sender.sent(corr);
    sender.send(2, "and a good one");
    let session = Session::new(gateway.session(2, 1), SessionState::default(), 1);
    let reader = portico_client::Client::connect(gateway.listen.to_string(), session);
    let reader = reader.expect("a thread");
    let mut undecodable = 0;
    let text = reader.wait_for(crate::harness::PATIENCE, |event| match event {
        OwnedEvent::Undecodable { from, .. } => {
            assert_eq!(*from, UserId(1));
            undecodable += 1;
            None
        }
        OwnedEvent::Message { envelope, .. } => envelope.clone(),
        _ => None,
    });
    assert_eq!(text.expect("a message").body, b"and a good one");
    assert_eq!(undecodable, 1);
    // It was acknowledged: it does not come back for ever.
    gateway.has_stored_acks(2);
    reader.close();
    gateway.login(2, 1).has_no(Op::Deliver);
}

#[test]
fn an_empty_body_is_malformed() {
    let gateway = Gateway::start();
    let mut peer = gateway.login(1, 1);
    let corr = peer.post_body(2, &[]);
    assert_eq!(peer.refused(corr).code, ErrorCode::MALFORMED);
    peer.send(2, "not empty");
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_is_cut_down() {
    let gateway = Gateway::start();
    let counted = gateway.watch("portico_acks_beyond_sent_total");
    let mut sender = gateway.login(1, 1);
    let mut reader = gateway.login(2, 1);
    sender.send(2, "one");
    reader.message();
    for beyond in [wall_us() + 3_600_000_000, u64::MAX] {
        reader.ack(Seq(beyond));
    }
    gateway.has_stored_acks(1);
    counted.moves();
    // What comes later is not acknowledged in advance.
    sender.send(2, "two");
    assert_eq!(reader.message().text, "two");
    drop(reader);
    let mut reader = gateway.login(2, 1);
    assert_eq!(reader.message().text, "two");
    // Nor is it with the cursor in HELLO, which counts for what there is.
    drop(reader);
    let token = gateway.token(2, 1);
    let hello = portico_wire::message::Hello {
        token: Some(&token),
        last_seq: Seq(u64::MAX),
        ..portico_wire::message::Hello::default()
    };
    let mut reader = crate::harness::Peer::login_with(gateway.connect(), &hello);
    sender.send(2, "three");
    assert_eq!(reader.message().text, "three");
    gateway.still_serves();
}

/// A client cannot speak for somebody else: what only the server may write is overwritten.
#[test]
fn the_author_of_a_message_is_the_servers_word() {
    let gateway = Gateway::start();
    let (mut liar, mut victim) = (gateway.login(1, 1), gateway.login(2, 1));
    let (corr, mut out) = (liar.next_corr(), Vec::new());
    let route = RouteHeader {
        msg_id: new_msg_id(),
        conv: 2,
        conv_kind: ConvKind::DIRECT,
        user: UserId(3),
        dev: DeviceId(9),
        conv_seq: portico_wire::ids::ConvSeq(5),
        ..RouteHeader::default()
    };
    let body = plain_envelope("I am user 3");
    put_routed(
        &mut out,
        Op::Send as u8,
        Flags::NONE,
        corr,
        0,
        &route,
        &body,
    );
    liar.write(&out);
    let (conv_seq, _) = liar.sent(corr);
    let message = victim.receive();
    assert_eq!((message.from, message.device), (UserId(1), DeviceId(1)));
    assert_eq!((message.peer, message.conv_seq), (UserId(1), conv_seq));
}

#[test]
fn too_many_open_requests_are_refused_and_none_is_forgotten() {
    let setup = crate::harness::Setup::new().set("limits.requests_max", 8);
    let gateway = setup.start();
    let counted = gateway.watch(refused("rate_limited"));
    let mut peer = gateway.login(1, 1);
    assert_eq!(peer.welcome.receive_max, 8);
    let body = plain_envelope("one of many");
    let mut out = Vec::new();
    let corrs: Vec<u32> = (0..200).map(|_| peer.next_corr()).collect();
    for corr in &corrs {
        let route = RouteHeader {
            msg_id: new_msg_id(),
            conv: 2,
            conv_kind: ConvKind::DIRECT,
            ..RouteHeader::default()
        };
        put_routed(
            &mut out,
            Op::Send as u8,
            Flags::NONE,
            *corr,
            0,
            &route,
            &body,
        );
    }
    peer.write(&out);
    let (mut sent, mut limited) = (0, 0);
    for corr in corrs {
        let reply = peer.reply(corr);
        match reply.known_op() {
            Some(Op::Sent) => sent += 1,
            Some(Op::Error) => {
                let error = portico_wire::message::ErrorReply::decode(&reply.body);
                let error = error.expect("an ErrorReply");
                assert_eq!(error.code, ErrorCode::RATE_LIMITED);
                assert!(error.retry_after_ms > 0);
                limited += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(sent >= 8 && limited > 0, "{sent} sent, {limited} limited");
    counted.moves_by(limited);
    let mut reader = gateway.login(2, 1);
    for _ in 0..sent {
        reader.receive();
    }
    reader.has_no(Op::Deliver);
}
