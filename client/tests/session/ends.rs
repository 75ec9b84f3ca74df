//! Heartbeats, the ends of connections, and what follows them.

use crate::{
    story::{SECOND_US, Story, ids},
    support::Delivery,
};
use portico_client::{Event, OwnedEvent, Phase, ProtocolFault, SessionConfig, SessionState};
use portico_wire::{CloseCode, Op, ids::Seq, message::Close};

#[test]
fn pings_promise_an_interval_and_keep_it() {
    for (wish_s, expected_s) in [(0, 60), (45, 45), (5, 30), (10_000, 300)] {
        let change = |config: &mut SessionConfig| config.heartbeat_s = wish_s;
        let mut story = Story::with(change, SessionState::default(), 1);
        story.log_in();
        let mut last_us = None;
        for _ in 0..5 {
            let at_us = story.session.next_timeout().unwrap();
            story.pass(at_us - story.now.mono_us);
            let ping = story.written().remove(0);
            assert_eq!((ping.op, ping.aux), (Op::Ping, expected_s));
            assert_ne!(ping.corr, 0);
            match last_us {
                // Until the first PING the server assumes 60 s.
                None => assert!(at_us - 7 <= 60 * SECOND_US),
                Some(last_us) => {
                    assert_eq!(at_us - last_us, u64::from(expected_s) * SECOND_US);
                }
            }
            last_us = Some(at_us);
            story.pass(9 * SECOND_US);
            story.server.pong(ping.corr);
            story.receive();
        }
    }
}

#[test]
fn first_pings_are_spread() {
    let first = |seed| {
        let mut story = Story::with(|_| {}, SessionState::default(), seed);
        story.log_in();
        story.session.next_timeout().unwrap() / SECOND_US
    };
    let mut seconds: Vec<u64> = (0..200).map(first).collect();
    seconds.sort_unstable();
    seconds.dedup();
    assert!(seconds.len() > 20, "{seconds:?}");
    assert!(seconds.iter().all(|second| (30..=60).contains(second)));
}

#[test]
fn without_a_sign_of_life_for_ten_seconds_the_connection_is_over() {
    let mut story = Story::live();
    let at_us = story.session.next_timeout().unwrap();
    story.pass(at_us - story.now.mono_us);
    assert_eq!(story.written()[0].op, Op::Ping);
    story.pass(10 * SECOND_US - 1);
    assert_eq!(story.session.phase(), Phase::Live);
    // Part of a frame is no life.
    story.receive_bytes(&[28, 0]);
    story.pass(1);
    let (code, by_peer, after_ms) = story.closed();
    assert_eq!((code, by_peer), (CloseCode::IDLE_TIMEOUT, false));
    assert!(after_ms.is_some());
    let written = story.written();
    assert_eq!(
        Close::decode(&written[0].body).unwrap().code,
        CloseCode::IDLE_TIMEOUT
    );
    // The end of the transport is no news.
    story.disconnect();
    assert_eq!(story.take_events(), []);
}

#[test]
fn a_driver_that_does_not_read_goes_on_pinging_and_blames_nobody() {
    let mut story = Story::live();
    let mut pings = Vec::new();
    for _ in 0..600 {
        story.session.not_reading();
        story.pass(SECOND_US);
        let written = story.written();
        pings.extend(written.iter().map(|seen| (seen.op, story.now.mono_us)));
    }
    assert_eq!(story.session.phase(), Phase::Live);
    assert!((10..=11).contains(&pings.len()), "{pings:?}");
    assert!(pings.iter().all(|(op, _)| *op == Op::Ping));
    assert!(
        pings
            .windows(2)
            .all(|pair| pair[1].1 - pair[0].1 <= 61 * SECOND_US)
    );
    // It reads again: from the next PING on an answer is due.
    story.pass(60 * SECOND_US + 10 * SECOND_US);
    assert_eq!(story.closed().0, CloseCode::IDLE_TIMEOUT);
}

#[test]
fn a_short_interval_is_shortened_by_little() {
    let change = |config: &mut SessionConfig| config.heartbeat_s = 8;
    let mut story = Story::with(change, SessionState::default(), 1);
    story.connect();
    story.welcome(|welcome| welcome.heartbeat_min_s = 1);
    let (from_us, to_us) = story.session.next_timeout_window().unwrap();
    assert_eq!(to_us - from_us, SECOND_US / 2);
}

#[test]
fn a_hostile_heartbeat_range_does_no_harm() {
    for (min_s, max_s, proposed_s) in [(0, 0, 0), (300, 30, 60), (u16::MAX, u16::MAX, 0)] {
        let mut story = Story::new();
        story.connect();
        story.welcome(|welcome| {
            welcome.heartbeat_min_s = min_s;
            welcome.heartbeat_max_s = max_s;
            welcome.heartbeat_s = proposed_s;
        });
        story.pass(100 * SECOND_US);
    }
}

#[test]
fn closes_are_followed_by_their_range() {
    for code in 4_000..=4_030 {
        let mut story = Story::live();
        story.server.close(CloseCode(code), 0);
        story.receive();
        let (seen, by_peer, after_ms) = story.closed();
        assert_eq!((seen, by_peer), (CloseCode(code), true));
        let stops = (4_020..=4_029).contains(&code);
        assert_eq!(after_ms.is_none(), stops, "{code}");
        let phase = match stops {
            true => Phase::Stopped(CloseCode(code)),
            false => Phase::Offline,
        };
        assert_eq!(story.session.phase(), phase);
        assert!(story.written().is_empty());
        let hello = story.connect();
        let resumes = code < 4_010 || code == 4_030;
        assert_eq!(hello.resume_token.is_some(), resumes, "{code}");
    }
}

#[test]
fn a_close_that_cannot_be_read_is_a_server_error() {
    let mut story = Story::live();
    story.server.plain(Op::Close, 0);
    story.receive();
    assert_eq!(story.closed().0, CloseCode::SERVER_ERROR);
}

#[test]
fn three_broken_protocols_in_a_row_stop_the_session() {
    let mut story = Story::new();
    for attempt in 1..=3 {
        story.connect();
        story.receive_bytes(&[1, 0, 0, 0]);
        let (code, _, after_ms) = story.closed();
        assert_eq!(code, CloseCode::PROTOCOL_ERROR);
        assert_eq!(after_ms.is_none(), attempt == 3);
    }
    assert!(matches!(story.session.phase(), Phase::Stopped(_)));
}

#[test]
fn a_frame_that_is_too_long_is_judged_by_its_length_alone() {
    let mut story = Story::live();
    story.receive_bytes(&65_533_u32.to_le_bytes());
    assert!(matches!(
        story.events[0],
        OwnedEvent::ProtocolFault(ProtocolFault::Frame(_))
    ));
    assert_eq!(story.closed().0, CloseCode::FRAME_TOO_LARGE);
    // Nothing of a finished connection is looked at.
    story.server.deliver(Delivery::new(10), "x");
    story.receive();
    assert_eq!(story.take_events(), []);
}

#[test]
fn reconnects_back_off_and_a_quiet_half_minute_forgives() {
    let mut story = Story::new();
    let mut ceiling_ms = 500;
    for _ in 0..12 {
        let events = &mut story.events;
        let mut on_event = |event: Event<'_>| events.push(event.into());
        story.session.connect_failed(story.now, &mut on_event);
        let after_ms = story.closed().2.unwrap();
        assert!(after_ms <= ceiling_ms);
        ceiling_ms = (ceiling_ms * 2).min(60_000);
    }
    story.log_in();
    story.pass(30 * SECOND_US);
    story.disconnect();
    assert!(story.closed().2.unwrap() <= 500);
}

#[test]
fn a_wish_of_the_server_is_kept_and_spread() {
    let waits: Vec<u32> = (0..200)
        .map(|seed| {
            let mut story = Story::with(|_| {}, SessionState::default(), seed);
            story.log_in();
            story.server.close(CloseCode::OVERLOADED, 90_000);
            story.receive();
            story.closed().2.unwrap()
        })
        .collect();
    assert!(waits.iter().all(|ms| (90_000..=112_500).contains(ms)));
    assert!(waits.iter().any(|ms| *ms < 93_000) && waits.iter().any(|ms| *ms > 109_000));
}

/// The wait after an end that `end` makes, for many seeds, with a spread of 40 s from WELCOME.
fn waits_after(end: impl Fn(&mut Story)) -> Vec<u32> {
    let wait = |seed| {
        let mut story = Story::with(|_| {}, SessionState::default(), seed);
        story.connect();
        story.welcome(|welcome| welcome.reconnect_spread_ms = 40_000);
        story.server.synced(0, 0);
        story.receive();
        story.events.clear();
        end(&mut story);
        story.closed().2.unwrap()
    };
    (0..400).map(wait).collect()
}

fn is_spread(waits: &[u32], end_ms: u32) -> bool {
    let tenth = end_ms / 10;
    waits.iter().all(|ms| *ms < end_ms)
        && waits.iter().any(|ms| *ms < tenth)
        && waits.iter().any(|ms| *ms > end_ms - tenth)
}

#[test]
fn an_end_without_a_word_is_spread_as_the_server_said() {
    assert!(is_spread(&waits_after(Story::disconnect), 40_000));
    // Silence is no word either.
    let silent = |story: &mut Story| story.pass(100 * SECOND_US);
    assert!(is_spread(&waits_after(silent), 40_000));
    // PONG has newer news, of both kinds.
    for (spread_ms, end_ms) in [(10_000, 10_000), (0, 501)] {
        let pong = |story: &mut Story| {
            let at_us = story.session.next_timeout().unwrap();
            story.pass(at_us - story.now.mono_us);
            let ping = story.written().remove(0);
            story.server.pong_spread(ping.corr, spread_ms);
            story.receive();
            story.disconnect();
        };
        assert!(is_spread(&waits_after(pong), end_ms), "{spread_ms}");
    }
}

#[test]
fn an_end_that_was_announced_is_not_spread() {
    let close = |story: &mut Story| {
        story.server.close(CloseCode::SERVER_ERROR, 0);
        story.receive();
    };
    let drain = |story: &mut Story| {
        story.server.drain(1_000, 1_000, &[]);
        story.receive();
        story.disconnect();
    };
    let before_welcome = |story: &mut Story| {
        story.connect();
        story.disconnect();
    };
    assert!(waits_after(close).iter().all(|ms| *ms <= 500));
    assert!(waits_after(drain).iter().all(|ms| *ms <= 500));
    assert!(waits_after(before_welcome).iter().all(|ms| *ms <= 500));
}

#[test]
fn only_the_first_wait_is_spread() {
    let mut again = Vec::new();
    for seed in 0..200 {
        let mut story = Story::with(|_| {}, SessionState::default(), seed);
        story.connect();
        story.welcome(|welcome| welcome.reconnect_spread_ms = 40_000);
        story.disconnect();
        story.closed();
        let events = &mut story.events;
        let mut on_event = |event: Event<'_>| events.push(event.into());
        story.session.connect_failed(story.now, &mut on_event);
        again.push(story.closed().2.unwrap());
    }
    assert!(again.iter().all(|ms| *ms <= 1_000), "{again:?}");
}

#[test]
fn a_ping_may_be_sent_early_and_an_end_judged_late_by_a_second() {
    let mut story = Story::live();
    let (from_us, to_us) = story.session.next_timeout_window().unwrap();
    assert_eq!(
        (to_us - from_us, Some(to_us)),
        (SECOND_US, story.session.next_timeout())
    );
    let on_time = |story: &mut Story, at_us| {
        story.set_time(at_us);
        let events = &mut story.events;
        let mut on_event = |event: Event<'_>| events.push(event.into());
        story.session.on_timeout(story.now, &mut on_event);
        story.written()
    };
    assert_eq!(on_time(&mut story, from_us - 1), []);
    let pings = on_time(&mut story, from_us);
    assert_eq!((pings.len(), pings[0].op), (1, Op::Ping));
    // The answer is waited for from when it was asked; giving up can wait a little longer.
    let (give_up_us, to_us) = story.session.next_timeout_window().unwrap();
    assert_eq!(give_up_us, from_us + 10 * SECOND_US);
    assert_eq!(to_us, give_up_us + SECOND_US);
    story.server.pong(pings[0].corr);
    story.receive();
    // The promise runs from the PING that was sent.
    assert_eq!(story.session.next_timeout(), Some(from_us + 60 * SECOND_US));
    // What cannot wait has no window.
    story.server.deliver(Delivery::new(30), "x");
    story.receive();
    let (from_us, to_us) = story.session.next_timeout_window().unwrap();
    assert_eq!((from_us, to_us), (story.now.mono_us + 250_000, from_us));
}

#[test]
fn draining_draws_a_moment_within_the_spread_and_an_endpoint() {
    let mut delays = Vec::new();
    for seed in 0..200 {
        let mut story = Story::with(|_| {}, SessionState::default(), seed);
        story.log_in();
        story.server.drain(10_000, 30_000, &["a:1", "b:2"]);
        story.receive();
        let [OwnedEvent::Draining { leave_after_ms }] = story.take_events()[..] else {
            panic!("one event");
        };
        assert!(leave_after_ms < 10_000);
        delays.push(leave_after_ms);
        let endpoint = story.session.take_endpoint().unwrap();
        assert!(endpoint == "a:1" || endpoint == "b:2");
        assert_eq!(story.session.take_endpoint(), None);
    }
    assert!(delays.iter().any(|ms| *ms < 1_000) && delays.iter().any(|ms| *ms > 9_000));
    let mut story = Story::live();
    story.server.drain(u32::MAX, u32::MAX, &[]).drain(0, 0, &[]);
    story.receive();
    assert!(matches!(
        story.events[0],
        OwnedEvent::Draining {
            leave_after_ms: ..=600_000
        }
    ));
    assert!(matches!(
        story.events[1],
        OwnedEvent::Draining { leave_after_ms: 0 }
    ));
}

#[test]
fn a_new_connection_takes_over_without_a_close() {
    let mut story = Story::live();
    let id = story.send("a");
    story.sends();
    story.server.deliver(Delivery::new(30), "x");
    story.receive();
    story.take_events();
    let hello = story.connect();
    assert_eq!(hello.last_seq, Seq(30));
    story.welcome(|_| {});
    let again = story.sends();
    assert_eq!(ids(&again), [id]);
    assert!(again[0].is_retry());
    assert!(
        !story
            .events
            .iter()
            .any(|event| matches!(event, OwnedEvent::Closed { .. }))
    );
}

#[test]
fn an_owner_who_closes_acknowledges_first() {
    let mut story = Story::live();
    story.server.deliver(Delivery::new(30), "x");
    story.receive();
    story.session.close(story.now);
    let written = story.written();
    assert_eq!((written[0].op, written[0].seq.seq), (Op::Ack, 30));
    assert_eq!(
        Close::decode(&written[1].body).unwrap().code,
        CloseCode::NORMAL
    );
    assert_eq!(story.session.phase(), Phase::Stopped(CloseCode::NORMAL));
    story.take_events();
    story.disconnect();
    assert_eq!(story.take_events(), []);
    assert_eq!(story.session.next_timeout(), None);
}
