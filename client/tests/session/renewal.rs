//! A token that runs out: the owner is asked in good time, and the session goes on with the new one.

use crate::story::{SECOND_US, Story};
use portico_client::{OwnedEvent, SessionConfig, SessionState};
use portico_wire::{ErrorCode, Op, message::Reauth};

fn logged_in(ttl_s: u32) -> Story {
    let mut story = Story::new();
    story.connect();
    story.welcome(|welcome| welcome.auth_ttl_s = ttl_s);
    story.server.synced(0, 0);
    story.receive();
    story.take_events();
    story
}

/// The token of a REAUTH among what the session has written, and its number.
fn reauth(story: &mut Story) -> Option<(String, u32)> {
    let written = story.written();
    let frame = written.iter().find(|seen| seen.op == Op::Reauth)?;
    let token = Reauth::decode(&frame.body).unwrap().token.to_owned();
    Some((token, frame.corr))
}

fn asked(story: &mut Story) -> Vec<OwnedEvent> {
    let mut events = story.take_events();
    events.retain(|event| matches!(event, OwnedEvent::TokenExpiring { .. }));
    events
}

/// Seconds pass; PINGs are answered.
fn pass(story: &mut Story, seconds: u64) -> Option<(String, u32)> {
    let mut found = None;
    for _ in 0..seconds {
        story.pass(SECOND_US);
        for seen in story.written() {
            match seen.op {
                Op::Ping => {
                    story.server.pong(seen.corr);
                    story.receive();
                }
                Op::Reauth => {
                    let token = Reauth::decode(&seen.body).unwrap().token.to_owned();
                    found = Some((token, seen.corr));
                }
                _ => {}
            }
        }
    }
    found
}

#[test]
fn the_owner_is_asked_once_before_the_end_and_the_answer_extends_the_session() {
    let mut story = logged_in(100);
    pass(&mut story, 79);
    assert_eq!(asked(&mut story), []);
    pass(&mut story, 1);
    assert_eq!(asked(&mut story), [OwnedEvent::TokenExpiring { in_s: 20 }]);
    pass(&mut story, 10);
    assert_eq!(asked(&mut story), [], "once");
    story.session.renew(story.now, "fresh");
    let (token, corr) = reauth(&mut story).expect("REAUTH");
    assert_eq!(token, "fresh");
    story.server.done_with(corr, 1_000);
    story.receive();
    assert_eq!(story.take_events(), [OwnedEvent::Renewed { ttl_s: 1_000 }]);
    pass(&mut story, 799);
    assert_eq!(asked(&mut story), []);
    pass(&mut story, 1);
    assert_eq!(asked(&mut story), [OwnedEvent::TokenExpiring { in_s: 200 }]);
    // The next login has it too.
    story.disconnect();
    assert_eq!(story.connect().token, Some("fresh"));
}

#[test]
fn a_session_without_an_end_asks_for_nothing() {
    let mut story = logged_in(0);
    pass(&mut story, 3_000);
    assert_eq!(asked(&mut story), []);
    // What the owner gives all the same is shown; messages keep their numbers.
    story.session.renew(story.now, "fresh");
    story.session.renew(story.now, "fresher");
    let (token, corr) = reauth(&mut story).expect("REAUTH");
    assert_eq!(token, "fresh", "one at a time");
    story.send("hi");
    let sends = story.sends();
    assert_ne!(sends[0].corr, corr);
    story.server.done_with(corr, 0);
    story.receive();
    assert_eq!(story.take_events(), [OwnedEvent::Renewed { ttl_s: 0 }]);
    assert_eq!(story.session.unsent(), 1, "DONE was not for the message");
}

#[test]
fn a_renewal_that_is_put_off_is_asked_for_again_and_a_refused_one_is_told() {
    let mut story = logged_in(1_000);
    story.session.renew(story.now, "a");
    let (_, corr) = reauth(&mut story).expect("REAUTH");
    story.server.error(corr, ErrorCode::RATE_LIMITED, 2_500);
    story.receive();
    assert_eq!(story.take_events(), []);
    pass(&mut story, 2);
    assert_eq!(asked(&mut story), []);
    pass(&mut story, 1);
    assert_eq!(asked(&mut story).len(), 1);
    story.session.renew(story.now, "b");
    let (token, corr) = reauth(&mut story).expect("REAUTH");
    assert_eq!(token, "b");
    story.server.error(corr, ErrorCode::FORBIDDEN, 0);
    story.receive();
    let refused = OwnedEvent::RenewalRefused {
        code: ErrorCode::FORBIDDEN,
    };
    assert_eq!(story.take_events(), [refused]);
    assert!(story.session.phase().is_welcome());
}

/// What is asked on one connection is not answered on the next.
#[test]
fn a_new_connection_begins_anew() {
    let mut story = logged_in(100);
    story.session.renew(story.now, "a");
    let (_, corr) = reauth(&mut story).expect("REAUTH");
    story.disconnect();
    story.connect();
    story.welcome(|welcome| welcome.auth_ttl_s = 50);
    story.take_events();
    story.server.done_with(corr, 9_000);
    story.receive();
    assert_eq!(story.take_events(), []);
    pass(&mut story, 40);
    assert_eq!(asked(&mut story).len(), 1);
}

#[test]
fn a_session_that_keeps_no_token_shows_it_and_forgets_it() {
    let forget = |config: &mut SessionConfig| config.keep_token = false;
    let mut story = Story::with(forget, SessionState::default(), 1);
    story.connect();
    story.welcome(|welcome| welcome.auth_ttl_s = 100);
    story.session.renew(story.now, "fresh");
    assert_eq!(reauth(&mut story).expect("REAUTH").0, "fresh");
    story.disconnect();
    assert_eq!(story.connect().token, None);
    // While there is no connection it is for the next login.
    story.disconnect();
    story.session.renew(story.now, "later");
    assert_eq!(story.connect().token, Some("later"));
}
