//! Login: HELLO, WELCOME, and servers that answer wrongly or not at all.

use crate::{
    story::{SECOND_US, Story},
    support::{Delivery, Peer},
};
use portico_client::{
    Login, Now, OwnedEvent, Phase, ProtocolFault, Session, SessionConfig, SessionState, Settings,
};
use portico_wire::{
    CloseCode, Op,
    ids::{DeviceId, Seq, UserId},
    message::{Close, Hello, Welcome},
};
use std::sync::Arc;

#[test]
fn hello_carries_who_where_and_how_much() {
    let state = SessionState::at(Seq(77));
    let mut story = Story::with(|config| config.receive_max = 9_999, state, 1);
    let hello = story.connect();
    assert_eq!(hello.token, Some("token"));
    assert_eq!(hello.device, DeviceId(1));
    assert_eq!(hello.resume_token, None);
    assert_eq!(hello.last_seq, Seq(77));
    assert_eq!(hello.receive_max, 4_096);
    assert_eq!((hello.min_version, hello.max_version), (1, 1));
    assert!(hello.client.starts_with("portico-client/"));
    assert_eq!(story.session.phase(), Phase::Greeting);
    story.welcome(|welcome| welcome.head_seq = Seq(99));
    assert_eq!(story.session.phase(), Phase::Replaying);
    let welcome = OwnedEvent::Welcome {
        resumed: false,
        head: Seq(99),
        floor: Seq(0),
    };
    assert_eq!(story.take_events(), [welcome]);
    // The resume token serves the next login, with the access token behind it.
    story.disconnect();
    let hello = story.connect();
    assert_eq!(hello.resume_token, Some(&b"resume me"[..]));
    assert_eq!(hello.token, Some("token"));
    story.session.set_token("");
    let hello = story.connect();
    assert_eq!((hello.token, hello.resume_token.is_some()), (None, true));
    story.session.set_token("fresh");
    assert_eq!(story.connect().token, Some("fresh"));
}

#[test]
fn a_session_that_keeps_no_token_resumes_and_asks_when_that_is_refused() {
    let drop_tokens = |config: &mut SessionConfig| config.keep_token = false;
    let mut story = Story::with(drop_tokens, SessionState::default(), 1);
    assert!(!story.session.needs_token());
    assert_eq!(story.connect().token, Some("token"));
    story.welcome(|_| {});
    // The network goes; the resume token is enough.
    story.disconnect();
    assert!(!story.session.needs_token());
    let hello = story.connect();
    assert_eq!(hello.token, None);
    assert_eq!(hello.resume_token, Some(&b"resume me"[..]));
    story.events.clear();
    // The server does not know it any more.
    story.server.close(CloseCode::RESUME_REFUSED, 0);
    story.receive();
    let (code, by_peer, after_ms) = story.closed();
    assert_eq!((code, by_peer), (CloseCode::RESUME_REFUSED, true));
    assert!(after_ms.is_some() && story.session.needs_token());
    story.session.set_token("another");
    assert!(!story.session.needs_token());
    let hello = story.connect();
    assert_eq!((hello.token, hello.resume_token), (Some("another"), None));
    // A server without resume tokens leaves a session that keeps none with nothing.
    story.welcome(|welcome| welcome.resume_token = b"");
    assert!(story.session.needs_token());
}

#[test]
fn settings_are_shared_and_a_login_is_not() {
    let settings = Arc::new(Settings {
        client: "many/1".to_owned(),
        receive_max: 70_000,
        ..Settings::default()
    });
    for user in 1..=2 {
        let login = Login::new(UserId(user), DeviceId(3), format!("token of {user}"));
        assert!(!format!("{login:?}").contains("token of"));
        let mut session = Session::sharing(&settings, login, SessionState::default(), user);
        session.connected(Now::default());
        let seen = Peer::default().read(session.output()).remove(0);
        let hello = Hello::decode(&seen.body).unwrap();
        assert_eq!(hello.token, Some(format!("token of {user}").as_str()));
        assert_eq!((hello.client, hello.device), ("many/1", DeviceId(3)));
        assert_eq!(hello.receive_max, 4_096);
        assert_eq!(session.user(), UserId(user));
        assert!(!format!("{session:?}").contains("token of"));
    }
    assert_eq!(Arc::strong_count(&settings), 1);
}

#[test]
fn a_welcome_for_somebody_else_or_of_another_version_is_a_fault() {
    type Change = fn(&mut Welcome<'_>);
    let cases: [(Change, ProtocolFault); 3] = [
        (|w| w.user = UserId(9), ProtocolFault::Identity),
        (|w| w.device = DeviceId(9), ProtocolFault::Identity),
        (|w| w.version = 2, ProtocolFault::Version),
    ];
    for (change, fault) in cases {
        let mut story = Story::new();
        story.connect();
        story.welcome(change);
        assert_eq!(story.events[0], OwnedEvent::ProtocolFault(fault));
        let (code, by_peer, _) = story.closed();
        assert_eq!((code, by_peer), (CloseCode::PROTOCOL_ERROR, false));
        let written = story.written();
        let close = Close::decode(&written[0].body).unwrap();
        assert_eq!(close.code, CloseCode::PROTOCOL_ERROR);
    }
}

#[test]
fn device_0_takes_the_device_of_the_token() {
    let mut story = Story::with(
        |config| config.device = DeviceId(0),
        SessionState::default(),
        1,
    );
    assert_eq!(story.connect().device, DeviceId(0));
    story.welcome(|welcome| welcome.device = DeviceId(7));
    assert_eq!(story.session.phase(), Phase::Replaying);
}

#[test]
fn frames_before_welcome_and_a_second_welcome_are_faults() {
    let mut story = Story::new();
    story.connect();
    story.server.deliver(Delivery::new(5), "early");
    story.receive();
    let early = ProtocolFault::Early(Op::Deliver as u8);
    assert_eq!(story.events[0], OwnedEvent::ProtocolFault(early));
    let mut story = Story::live();
    story.welcome(|_| {});
    let second = OwnedEvent::ProtocolFault(ProtocolFault::SecondWelcome);
    assert_eq!(story.events[0], second);
}

#[test]
fn a_server_that_does_not_answer_hello_is_left() {
    let mut story = Story::new();
    story.connect();
    story.pass(14 * SECOND_US);
    assert_eq!(story.session.phase(), Phase::Greeting);
    story.pass(SECOND_US);
    let (code, by_peer, after_ms) = story.closed();
    assert_eq!((code, by_peer), (CloseCode::IDLE_TIMEOUT, false));
    assert!(after_ms.is_some());
    assert_eq!(story.session.next_timeout(), None);
}
