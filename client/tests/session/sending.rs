//! Sending: outbox, window, RETRY, refusals, waiting times.

use crate::{
    story::{PEER, SECOND_US, SKEW_US, Story, WALL_US, ids},
    support::{Peer, Seen, text},
};
use portico_client::{
    OwnedEvent, ProtocolFault, SendError, SendOptions, SessionState, plain_envelope,
};
use portico_wire::{
    CloseCode, ErrorCode, Flags, Op,
    ids::{ConvSeq, MsgId, UserId},
};

#[test]
fn a_message_is_dated_by_the_servers_clock() {
    let mut story = Story::new();
    let early = story.send("before WELCOME");
    assert_eq!(early.unix_ms(), Some(WALL_US / 1_000));
    story.log_in();
    story.pass(3 * SECOND_US);
    let id = story.send("after");
    assert_eq!(
        id.unix_ms(),
        Some((WALL_US + 3 * SECOND_US + SKEW_US) / 1_000)
    );
    // Steps of the own wall clock do not matter any more.
    story.now.wall_us -= 3_600 * SECOND_US;
    let id = story.send("later");
    assert_eq!(
        id.unix_ms(),
        Some((WALL_US + 3 * SECOND_US + SKEW_US) / 1_000)
    );
}

#[test]
fn sent_ends_a_message() {
    let mut story = Story::live();
    let options = SendOptions {
        kind: 1,
        silent: true,
        ttl_s: 60,
        ..SendOptions::default()
    };
    let body = plain_envelope("hi");
    let id = story.session.send(story.now, PEER, &body, options).unwrap();
    assert_eq!(story.session.unsent(), 1);
    let sends = story.sends();
    let route = sends[0].route;
    assert_eq!((route.conv, route.msg_id), (2, id));
    assert_eq!((route.kind, route.ttl_s), (1, 60));
    assert_eq!(sends[0].flags, Flags::ROUTED | Flags::SILENT);
    assert_eq!(text(&sends[0].body), "hi");
    story.server.sent(sends[0].corr, 1_000, false);
    // Twice is once.
    story.server.sent(sends[0].corr, 2_000, true);
    story.receive();
    let sent = OwnedEvent::Sent {
        msg_id: id,
        conv_seq: ConvSeq(1_000),
        duplicate: false,
    };
    assert_eq!(story.take_events(), [sent]);
    assert_eq!(story.session.unsent(), 0);
}

#[test]
fn what_cannot_be_sent_is_refused_at_once() {
    let mut story = Story::with(|config| config.outbox_max = 2, SessionState::default(), 1);
    let body = plain_envelope("hi");
    let plain = SendOptions::default();
    let mut send = |to, body: &[u8], options| {
        story
            .session
            .send(story.now, UserId(to), body, options)
            .map(drop)
    };
    assert_eq!(send(0, &body, plain), Err(SendError::BadRecipient));
    assert_eq!(send(u64::MAX, &body, plain), Err(SendError::BadRecipient));
    assert_eq!(send(2, &[0; 64_001], plain), Err(SendError::TooLarge));
    assert_eq!(send(2, b"junk", plain), Err(SendError::BadEnvelope));
    let chosen = SendOptions {
        msg_id: Some(MsgId(5)),
        ..plain
    };
    assert_eq!(send(2, &body, chosen), Ok(()));
    assert_eq!(send(2, &body, chosen), Err(SendError::InOutbox));
    assert_eq!(send(2, &body, plain), Ok(()));
    assert_eq!(send(2, &body, plain), Err(SendError::Full));
}

#[test]
fn open_requests_stay_within_the_servers_window() {
    for (receive_max, open) in [(0, 1), (1, 1), (2, 1), (5, 4), (u32::MAX, 20)] {
        let mut story = Story::new();
        for n in 0..20 {
            story.send(&n.to_string());
        }
        story.connect();
        story.welcome(|welcome| welcome.receive_max = receive_max);
        let first = story.sends();
        assert_eq!(first.len(), open);
        // Each answer makes room for one more, in order.
        let mut texts: Vec<String> = first.iter().map(|seen| text(&seen.body)).collect();
        let mut corrs: std::collections::VecDeque<u32> =
            first.iter().map(|seen| seen.corr).collect();
        while let Some(corr) = corrs.pop_front() {
            story.server.sent(corr, 1, false);
            story.receive();
            for seen in story.sends() {
                texts.push(text(&seen.body));
                corrs.push_back(seen.corr);
            }
            assert!(corrs.len() <= open);
        }
        let expected: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        assert_eq!(texts, expected);
        assert_eq!(story.session.unsent(), 0);
    }
}

#[test]
fn after_a_reconnect_the_old_order_comes_first_with_retry() {
    let mut story = Story::live();
    let ids_before: Vec<MsgId> = (0..5).map(|n| story.send(&n.to_string())).collect();
    let first = story.sends();
    assert!(first.iter().all(|seen| !seen.is_retry()));
    story.server.sent(first[1].corr, 10, false);
    story.receive();
    story.disconnect();
    assert_eq!(story.closed().0, CloseCode::SERVER_ERROR);
    let new = story.send("new");
    assert!(story.sends().is_empty());
    story.log_in();
    let second = story.sends();
    let mut expected = ids_before;
    expected.remove(1);
    expected.push(new);
    assert_eq!(ids(&second), expected);
    let retries: Vec<bool> = second.iter().map(Seen::is_retry).collect();
    assert_eq!(retries, [true, true, true, true, false]);
    // A living connection is no place for repeats, however long it takes.
    for _ in 0..10 {
        story.pass(5 * SECOND_US);
        story.server.plain(Op::MediaReady, 0);
        story.receive();
        assert!(story.written().iter().all(|seen| seen.op == Op::Ping));
    }
}

#[test]
fn a_reconnect_restores_the_order_of_what_rests_and_what_is_open() {
    let mut story = Story::live();
    let first = [story.send("a"), story.send("b"), story.send("c")];
    let corrs: Vec<u32> = story.sends().iter().map(|seen| seen.corr).collect();
    story.server.error(corrs[1], ErrorCode::UNAVAILABLE, 0);
    story.receive();
    story.disconnect();
    story.log_in();
    assert_eq!(ids(&story.sends()), first);
}

/// Found by the simulation. Of three messages to one peer the first and the third rest until the same
/// moment, the second for longer: when the first two wake and find no room, a lost connection must
/// not put the one that still rests before them.
#[test]
fn what_wakes_early_and_finds_no_room_keeps_its_place() {
    let mut story = Story::new();
    story.connect();
    story.welcome(|welcome| welcome.receive_max = 3);
    let (first, second) = (story.send("a"), story.send("b"));
    let corrs: Vec<u32> = story.sends().iter().map(|seen| seen.corr).collect();
    story.server.error(corrs[0], ErrorCode::UNAVAILABLE, 0);
    story.receive();
    let third = story.send("c");
    story.pass(SECOND_US / 2);
    story.server.error(corrs[1], ErrorCode::UNAVAILABLE, 0);
    story.receive();
    let others = ["x", "y"].map(|text| {
        let body = plain_envelope(text);
        let options = SendOptions::default();
        let sent = story.session.send(story.now, UserId(3), &body, options);
        sent.expect("there is room")
    });
    assert_eq!(ids(&story.sends()), others);
    story.pass(SECOND_US * 3 / 4);
    assert!(story.sends().is_empty(), "both places are taken");
    story.disconnect();
    story.log_in();
    let [x, y] = others;
    assert_eq!(ids(&story.sends()), [first, second, third, x, y]);
}

#[test]
fn certain_refusals_repeat_without_retry_and_uncertain_ones_with_it() {
    for (code, retry) in [
        (ErrorCode::RATE_LIMITED, false),
        (ErrorCode::OVERLOADED, false),
        (ErrorCode::UNAVAILABLE, true),
        (ErrorCode::TIMEOUT, true),
        (ErrorCode::INTERNAL, true),
        (ErrorCode(95), true),
        (ErrorCode::UNAUTHENTICATED, true),
    ] {
        let mut story = Story::live();
        let id = story.send("a");
        let corr = story.sends()[0].corr;
        story.server.error(corr, code, 0);
        story.receive();
        let refused = OwnedEvent::Refused {
            msg_id: id,
            code,
            retry_after_ms: 0,
            will_retry: true,
        };
        assert_eq!(story.take_events(), [refused]);
        story.pass(SECOND_US - 1);
        assert!(story.sends().is_empty());
        story.pass(1);
        let again = story.sends();
        assert_eq!(ids(&again), [id]);
        assert_eq!(again[0].is_retry(), retry, "{code}");
        // One uncertain attempt is enough for ever.
        story.server.error(again[0].corr, ErrorCode::TIMEOUT, 0);
        story.receive();
        story.pass(2 * SECOND_US);
        let corr = story.sends()[0].corr;
        story.server.error(corr, ErrorCode::OVERLOADED, 0);
        story.receive();
        story.pass(4 * SECOND_US);
        assert!(story.sends()[0].is_retry());
    }
}

#[test]
fn waits_double_up_to_a_minute_and_end_after_a_day() {
    let mut story = Story::live();
    let id = story.send("a");
    let mut corr = story.sends()[0].corr;
    let mut waits = Vec::new();
    loop {
        story.server.error(corr, ErrorCode::UNAVAILABLE, 0);
        story.receive();
        story.take_events();
        let start_us = story.now.mono_us;
        let at_us = loop {
            let at_us = story.session.next_timeout().unwrap();
            story.pass(at_us - story.now.mono_us);
            let written = story.written();
            match written.first() {
                Some(seen) if seen.op == Op::Ping => {
                    story.server.pong(seen.corr);
                    story.receive();
                }
                Some(seen) => {
                    corr = seen.corr;
                    break Some(story.now.mono_us);
                }
                None if story.session.unsent() == 0 => break None,
                None => {}
            }
        };
        match at_us {
            Some(at_us) => waits.push((at_us - start_us) / SECOND_US),
            None => break,
        }
    }
    assert_eq!(waits[..8], [1, 2, 4, 8, 16, 32, 60, 60]);
    assert!(waits[8..].iter().all(|wait| *wait == 60));
    let total: u64 = waits.iter().sum();
    assert!((86_000..=86_400).contains(&total), "{total}");
    let given_up = OwnedEvent::Refused {
        msg_id: id,
        code: ErrorCode::TIMEOUT,
        retry_after_ms: 0,
        will_retry: false,
    };
    assert_eq!(story.take_events(), [given_up]);
}

#[test]
fn a_servers_wish_for_time_is_kept_and_holds_all_messages() {
    let mut story = Story::live();
    story.send("a");
    let corr = story.sends()[0].corr;
    story.server.error(corr, ErrorCode::RATE_LIMITED, 7_000);
    story.receive();
    story.send("b");
    let other = plain_envelope("c");
    let now = story.now;
    story
        .session
        .send(now, UserId(3), &other, SendOptions::default())
        .unwrap();
    story.pass(7 * SECOND_US - 1);
    assert!(story.sends().is_empty());
    story.pass(1);
    let texts: Vec<String> = story.sends().iter().map(|seen| text(&seen.body)).collect();
    assert_eq!(texts, ["a", "b", "c"]);
}

/// A server that takes ten messages at once and 200 a second, and gives each one that it refuses the next
/// place in line.
#[test]
fn messages_refused_together_go_each_in_its_own_place() {
    const PLACE_US: u64 = 5_000;
    const BURST_US: u64 = 10 * PLACE_US;
    let mut story = Story::live();
    let all: Vec<MsgId> = (0..300).map(|n| story.send(&format!("{n}"))).collect();
    let begun_us = story.now.mono_us;
    let (mut good_at_us, mut told_us) = (begun_us, begun_us);
    let (mut taken, mut refused) = (Vec::new(), 0);
    loop {
        let now_us = story.now.mono_us;
        for seen in story.sends() {
            assert!(!seen.is_retry(), "it was certainly not accepted");
            let owed_us = good_at_us.max(now_us) + PLACE_US - now_us;
            if owed_us <= BURST_US {
                good_at_us = now_us + owed_us;
                taken.push(seen.route.msg_id);
                story.server.sent(seen.corr, now_us, false);
            } else {
                refused += 1;
                let first_us = now_us + owed_us - BURST_US;
                told_us = first_us.max(told_us + PLACE_US);
                let wait_ms = (told_us - now_us).div_ceil(1_000) as u32;
                let code = ErrorCode::RATE_LIMITED;
                story.server.error(seen.corr, code, wait_ms);
            }
        }
        story.receive();
        if taken.len() == all.len() {
            break;
        }
        let next_us = story.session.next_timeout().expect("something waits");
        story.pass(next_us.saturating_sub(story.now.mono_us).max(1_000));
    }
    assert_eq!(taken, all);
    let took_us = story.now.mono_us - begun_us;
    assert!(took_us < 1_600_000, "{took_us}");
    // Each waited once, but for those that had not been sent when the line began.
    assert!(refused < all.len() + 50, "{refused}");
}

#[test]
fn later_messages_to_the_same_peer_are_kept_back_others_are_not() {
    let mut story = Story::live();
    story.send("a");
    let corr = story.sends()[0].corr;
    story.server.error(corr, ErrorCode::UNAVAILABLE, 0);
    story.receive();
    story.send("b");
    let other = plain_envelope("c");
    let now = story.now;
    story
        .session
        .send(now, UserId(3), &other, SendOptions::default())
        .unwrap();
    let texts: Vec<String> = story.sends().iter().map(|seen| text(&seen.body)).collect();
    assert_eq!(texts, ["c"]);
    story.pass(SECOND_US);
    let sends = story.sends();
    let texts: Vec<String> = sends.iter().map(|seen| text(&seen.body)).collect();
    assert_eq!(texts, ["a", "b"]);
    let retries: Vec<bool> = sends.iter().map(Seen::is_retry).collect();
    assert_eq!(retries, [true, false]);
}

#[test]
fn final_refusals_end_a_message() {
    for code in [ErrorCode::NOT_FOUND, ErrorCode::EXPIRED, ErrorCode(31)] {
        let mut story = Story::live();
        let id = story.send("a");
        let corr = story.sends()[0].corr;
        story.server.error(corr, code, 0);
        story.receive();
        let refused = OwnedEvent::Refused {
            msg_id: id,
            code,
            retry_after_ms: 0,
            will_retry: false,
        };
        assert_eq!(story.take_events(), [refused]);
        assert_eq!(story.session.unsent(), 0);
    }
    let mut story = Story::live();
    let id = story.send("a");
    let corr = story.sends()[0].corr;
    story.server.plain(Op::DevicesStale, corr);
    story.receive();
    assert!(matches!(
        story.events[0],
        OwnedEvent::Refused { msg_id, code: ErrorCode::STALE_EPOCH, .. } if msg_id == id
    ));
}

#[test]
fn a_message_too_large_for_this_server_is_told_even_without_a_callback() {
    let mut story = Story::new();
    story.connect();
    story.welcome(|welcome| welcome.max_frame = 0);
    story.take_events();
    let large = story.send(&"x".repeat(5_000));
    let small = story.send("small");
    story.pass(0);
    assert_eq!(ids(&story.sends()), [small]);
    let refused = OwnedEvent::Refused {
        msg_id: large,
        code: ErrorCode::TOO_LARGE,
        retry_after_ms: 0,
        will_retry: false,
    };
    assert_eq!(story.take_events(), [refused]);
}

#[test]
fn ephemeral_messages_are_sent_once() {
    let options = SendOptions {
        ephemeral: true,
        ..SendOptions::default()
    };
    let mut story = Story::live();
    let body = plain_envelope("typing");
    let id = story.session.send(story.now, PEER, &body, options).unwrap();
    let sends = story.sends();
    assert!(sends[0].flags.contains(Flags::EPHEMERAL));
    story.server.done(sends[0].corr);
    story.receive();
    let sent = OwnedEvent::Sent {
        msg_id: id,
        conv_seq: ConvSeq(0),
        duplicate: false,
    };
    assert_eq!(story.take_events(), [sent]);
    let mut id = story.session.send(story.now, PEER, &body, options).unwrap();
    assert_eq!(story.session.unsent(), 1);
    assert_eq!(story.session.state().unsent().count(), 0);
    story.sends();
    // Neither a lost connection nor one that was taken over lets it go out again or vanish.
    for lose in [true, false] {
        if lose {
            story.disconnect();
        }
        story.take_events();
        story.connect();
        story.welcome(|_| {});
        assert!(story.sends().is_empty());
        let refused = OwnedEvent::Refused {
            msg_id: id,
            code: ErrorCode::UNAVAILABLE,
            retry_after_ms: 0,
            will_retry: false,
        };
        assert_eq!(story.events.pop(), Some(refused));
        id = story.session.send(story.now, PEER, &body, options).unwrap();
        story.sends();
    }
}

#[test]
fn a_clock_that_is_ahead_is_set() {
    let mut story = Story::new();
    story.now.wall_us += 3_600 * SECOND_US;
    story.connect();
    story.welcome(|welcome| welcome.server_us = 0);
    assert_eq!(
        story.session.server_clock_us(story.now),
        WALL_US + 3_600 * SECOND_US
    );
    let id = story.send("a");
    let corr = story.written()[0].corr;
    let error = portico_wire::message::ErrorReply {
        code: ErrorCode::CLOCK_AHEAD,
        retry_after_ms: 0,
        detail: "",
        op: 32,
        server_us: WALL_US,
    };
    let Peer { out, encoder, .. } = &mut story.server;
    encoder.error(out, corr, &error);
    story.receive();
    assert!(matches!(
        story.events[1],
        OwnedEvent::Refused { msg_id, will_retry: false, .. } if msg_id == id
    ));
    assert_eq!(story.session.server_clock_us(story.now), WALL_US);
}

#[test]
fn an_answer_of_the_wrong_kind_is_a_fault_and_loses_nothing() {
    let mut story = Story::live();
    let id = story.send("a");
    let corr = story.sends()[0].corr;
    story.server.done(corr);
    story.receive();
    let fault = ProtocolFault::Reply(Op::Done as u8);
    assert_eq!(story.events[0], OwnedEvent::ProtocolFault(fault));
    assert_eq!(story.session.unsent(), 1);
    story.written();
    story.log_in();
    let again = story.sends();
    assert_eq!(ids(&again), [id]);
    assert!(again[0].is_retry());
}

/// A message without an answer goes out at once or not at all, and nothing of it is kept.
#[test]
fn a_message_may_do_without_an_answer() {
    let mut story = Story::new();
    let options = SendOptions {
        request: false,
        ..SendOptions::default()
    };
    let body = plain_envelope("hi");
    let early = story.session.send(story.now, PEER, &body, options);
    assert_eq!(early, Err(SendError::Offline));
    assert!(!story.session.has_room_for(1, body.len(), false));
    story.log_in();
    let id = story.session.send(story.now, PEER, &body, options).unwrap();
    assert_eq!(story.session.unsent(), 0);
    let sends = story.sends();
    assert_eq!((sends[0].corr, sends[0].route.msg_id), (0, id));
    assert_eq!(
        (sends[0].route.conv, text(&sends[0].body)),
        (2, "hi".to_owned())
    );
    assert!(!sends[0].flags.contains(Flags::RETRY));
    // Not with the next connection either.
    story.disconnect();
    story.log_in();
    assert_eq!(story.sends(), []);
}

#[test]
fn messages_without_an_answer_are_bounded_by_what_waits_for_the_transport() {
    let mut story = Story::live();
    let options = SendOptions {
        request: false,
        ..SendOptions::default()
    };
    let body = plain_envelope(&"x".repeat(10_000));
    let mut sent = 0;
    while story.session.has_room_for(1, body.len(), false) {
        story.session.send(story.now, PEER, &body, options).unwrap();
        sent += 1;
    }
    assert!((100..110).contains(&sent), "{sent}");
    // One more than there was surely room for, and no more.
    story.session.send(story.now, PEER, &body, options).unwrap();
    let full = story.session.send(story.now, PEER, &body, options);
    assert_eq!(full, Err(SendError::Full));
    assert_eq!(story.sends().len(), sent + 1);
    assert!(story.session.send(story.now, PEER, &body, options).is_ok());
}

#[test]
fn room_is_known_beforehand() {
    let mut story = Story::new();
    let outbox_max = portico_client::Settings::OUTBOX_MAX_DEFAULT;
    assert!(story.session.has_room_for(outbox_max, 100, true));
    assert!(!story.session.has_room_for(outbox_max + 1, 100, true));
    story.send("one");
    assert!(!story.session.has_room_for(outbox_max, 100, true));
}
