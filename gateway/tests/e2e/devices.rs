//! Users with several devices, devices with several connections, and messages that are not kept.

use crate::harness::{Gateway, Message, PATIENCE, Peer, Setup, eventually, new_msg_id, quiet_port};
use portico_client::{
    Client, OwnedEvent, Phase, SendOptions, Session, SessionConfig, SessionState, plain_envelope,
};
use portico_wire::{
    CloseCode, Flags, Op,
    ids::{Seq, UserId},
    message::Hello,
};

#[test]
fn every_device_of_both_users_gets_a_message_but_its_author() {
    let gateway = Gateway::start();
    let mut author = gateway.login(1, 1);
    let mut sibling = gateway.login(1, 2);
    let mut others = [gateway.login(2, 1), gateway.login(2, 2)];
    let conv_seq = author.send(2, "to all");
    for device in &mut others {
        let message = device.receive();
        assert_eq!(
            (message.text.as_str(), message.conv_seq),
            ("to all", conv_seq)
        );
        assert_eq!((message.peer, message.from), (UserId(1), UserId(1)));
        assert_eq!(message.device.0, 1);
    }
    let copy = sibling.receive();
    assert_eq!((copy.peer, copy.from), (UserId(2), UserId(1)));
    assert_eq!(copy.conv_seq, conv_seq);
    author.has_no(Op::Deliver);

    // A device that was away gets it from the log, the author's own copy included.
    gateway.has_stored_acks(3);
    drop(sibling);
    eventually("the device is gone", || {
        (gateway.metrics().get("portico_sessions") == 3).then_some(())
    });
    author.send(2, "while away");
    assert_eq!(gateway.login(1, 2).receive().text, "while away");
    for device in &mut others {
        assert_eq!(device.receive().text, "while away");
    }
}

#[test]
fn a_note_to_oneself_reaches_the_other_devices() {
    let gateway = Gateway::start();
    let (mut one, mut two) = (gateway.login(5, 1), gateway.login(5, 2));
    one.send(5, "remember");
    let note = two.receive();
    assert_eq!(
        (note.peer, note.from, note.text.as_str()),
        (UserId(5), UserId(5), "remember")
    );
    one.has_no(Op::Deliver);
}

#[test]
fn a_second_connection_of_a_device_takes_over() {
    let gateway = Gateway::start();
    let replaced = gateway.watch(r#"portico_connections_closed_total{code="4024"}"#);
    let mut old = gateway.login(1, 1);
    let mut new = gateway.login(1, 1);
    assert_eq!(old.closed(), CloseCode::SESSION_REPLACED);
    replaced.moves_by(1);
    gateway.login(2, 1).send(1, "to the new one");
    assert_eq!(new.receive().text, "to the new one");
}

#[test]
fn what_is_not_acknowledged_comes_again_and_what_is_does_not() {
    let gateway = Gateway::start();
    let mut sender = gateway.login(1, 1);
    for n in 0..10 {
        sender.send(2, &n.to_string());
    }
    let mut reader = gateway.login(2, 1);
    let first: Vec<_> = (0..10).map(|_| reader.message()).collect();
    assert!(first.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    reader.ack(first[5].seq);
    gateway.has_stored_acks(6);
    drop(reader);
    let mut reader = gateway.login(2, 1);
    let again: Vec<_> = (6..10).map(|_| reader.message()).collect();
    assert_eq!(again, first[6..]);
    reader.has_no(Op::Deliver);
    // A client that knows where it is does not depend on what the gateway remembers of it.
    drop(reader);
    let token = gateway.token(2, 1);
    let hello = Hello {
        token: Some(&token),
        last_seq: first[8].seq,
        ..Hello::default()
    };
    let mut reader = Peer::login_with(gateway.connect(), &hello);
    assert_eq!(reader.message(), first[9]);
    reader.has_no(Op::Deliver);
}

#[test]
fn a_reader_decides_how_much_is_under_way() {
    let gateway = Gateway::start();
    let token = gateway.token(2, 1);
    let hello = Hello {
        token: Some(&token),
        receive_max: 3,
        ..Hello::default()
    };
    let mut reader = Peer::login_with(gateway.connect(), &hello);
    let mut sender = gateway.login(1, 1);
    for n in 0..10 {
        sender.send(2, &n.to_string());
    }
    let mut expected = 0..10;
    let mut last = Seq(0);
    for n in 0..3 {
        let message = reader.message();
        assert_eq!(message.text, expected.next().expect("ten").to_string());
        assert_eq!(message.text, n.to_string());
        last = message.seq;
    }
    reader.has_no(Op::Deliver);
    for n in expected {
        // `Peer::ack` opens the window wider from here on.
        reader.ack(last);
        let message = reader.message();
        assert_eq!(message.text, n.to_string());
        last = message.seq;
    }
}

#[test]
fn a_repeated_message_gets_its_first_answer() {
    let gateway = Gateway::start();
    let (mut sender, mut reader) = (gateway.login(1, 1), gateway.login(2, 1));
    let (corr, msg_id) = sender.post(2, "once");
    let (conv_seq, _) = sender.sent(corr);
    assert_eq!(reader.receive().text, "once");
    let again = gateway.watch("portico_messages_duplicate_total");
    for _ in 0..3 {
        let corr = sender.next_corr();
        sender.post_as(corr, 2, msg_id, Flags::RETRY, "once");
        assert_eq!(sender.sent(corr), (conv_seq, true));
    }
    again.moves_by(3);
    // Another device's message with the same id is another message.
    let mut other = gateway.login(3, 1);
    other.post_as(9, 2, msg_id, Flags::RETRY, "not the same");
    let (_, duplicate) = other.sent(9);
    assert!(!duplicate);
    let message = reader.take("the other's message", |frame| {
        Message::decode(frame).filter(|message| message.from == UserId(3))
    });
    assert_eq!(message.text, "not the same");
}

#[test]
fn ephemeral_messages_reach_who_is_there_and_are_not_kept() {
    let gateway = Gateway::start();
    let (mut sender, mut reader) = (gateway.login(1, 1), gateway.login(2, 1));
    let corr = sender.next_corr();
    let id = new_msg_id();
    sender.post_as(corr, 2, id, Flags::EPHEMERAL, "now or never");
    assert_eq!(sender.reply(corr).known_op(), Some(Op::Done));
    let message = reader.message();
    assert!(message.ephemeral);
    assert_eq!(
        (message.seq, message.text.as_str()),
        (Seq(0), "now or never")
    );
    drop(reader);
    eventually("the reader is gone", || {
        (gateway.metrics().get("portico_sessions") == 1).then_some(())
    });
    let corr = sender.next_corr();
    sender.post_as(corr, 2, id, Flags::EPHEMERAL, "to nobody");
    assert_eq!(sender.reply(corr).known_op(), Some(Op::Done));
    sender.send(2, "kept");
    let mut reader = gateway.login(2, 1);
    assert_eq!(reader.receive().text, "kept");
    reader.has_no(Op::Deliver);
}

/// The client library through a restart of the gateway: its owner does nothing but wait.
#[test]
fn a_client_comes_back_by_itself() {
    let setup = Setup::new().flag("--listen", quiet_port());
    let gateway = setup.start();
    let connect = |gateway: &Gateway, config: SessionConfig, seed| {
        let session = Session::new(config, SessionState::default(), seed);
        Client::connect(gateway.listen.to_string(), session).expect("a thread")
    };
    let writer = connect(&gateway, gateway.session(1, 1), 1);
    let reader = connect(&gateway, gateway.session(2, 1), 2);
    assert!(writer.wait_live(PATIENCE) && reader.wait_live(PATIENCE));
    gateway.kill();
    for n in 0..5 {
        writer
            .send_text(UserId(2), &format!("message {n}"))
            .expect("the outbox has room");
    }
    let gateway = setup.start();
    for n in 0..5 {
        let text = reader
            .wait_for(PATIENCE, |event| match event {
                OwnedEvent::Message { envelope, .. } => {
                    let body = envelope.clone().unwrap_or_default().body;
                    Some(String::from_utf8(body).expect("a text"))
                }
                _ => None,
            })
            .expect("a message");
        assert_eq!(text, format!("message {n}"));
    }
    eventually("all sent", || (writer.unsent() == 0).then_some(()));

    assert_eq!(writer.phase(), Phase::Live);
    let options = SendOptions {
        ephemeral: true,
        ..SendOptions::default()
    };
    writer
        .send(UserId(2), &plain_envelope("bye"), options)
        .expect("the outbox has room");
    let bye = reader.wait_for(PATIENCE, |event| match event {
        OwnedEvent::Message { ephemeral, .. } => ephemeral.then_some(()),
        _ => None,
    });
    assert!(bye.is_some());
    // It says good-bye in good order.
    let normal = gateway.watch(r#"portico_connections_closed_total{code="4000"}"#);
    writer.close();
    reader.close();
    normal.moves_by(2);
}
