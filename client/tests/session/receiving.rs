//! Receiving: order, acknowledgement, repeated and undecodable entries.

use crate::{
    story::{ME, PEER, SECOND_US, Story},
    support::{Delivery, Peer, envelope},
};
use portico_client::{
    Login, OwnedEvent, ProtocolFault, Session, SessionConfig, SessionState, Settings,
};
use portico_wire::{
    Flags, Op,
    ids::{ConvSeq, DeviceId, MsgId, Seq, UserId},
};
use std::sync::Arc;

#[test]
fn any_chunking_gives_the_same_events() {
    let mut server = Peer::default();
    for seq in 10..40 {
        server.deliver(Delivery::new(seq), &"x".repeat(seq as usize * 7));
    }
    server.synced(50, 30);
    let bytes = server.take();
    let mut whole = None;
    for size in [1, 2, 3, 15, 16, 17, 100, 1_000, bytes.len()] {
        let mut story = Story::new();
        story.connect();
        story.welcome(|_| {});
        for chunk in bytes.chunks(size) {
            story.receive_bytes(chunk);
        }
        let events = story.take_events();
        assert_eq!(events.len(), 32);
        assert_eq!(whole.get_or_insert(events.clone()), &events);
        assert_eq!(story.session.cursor(), Seq(50));
    }
}

#[test]
fn a_message_shows_what_the_server_wrote() {
    let mut story = Story::live();
    let delivery = Delivery {
        seq: 20,
        conv_seq: 19,
        peer: 2,
        from: ME,
        device: 4,
        msg_id: 99,
    };
    story.server.deliver(delivery, "from my phone");
    story
        .server
        .deliver_raw(Delivery::new(21), Flags::NONE, &[]);
    story
        .server
        .deliver_raw(Delivery::new(22), Flags::NONE, b"not a flatbuffer");
    story
        .server
        .deliver_raw(Delivery::new(0), Flags::EPHEMERAL, &envelope("now"));
    // An answer to a request that was never made.
    story
        .server
        .deliver_raw(Delivery::new(0), Flags::MORE, &envelope("old"));
    story.receive();
    let events = story.take_events();
    let OwnedEvent::Message {
        seq,
        conv_seq,
        peer,
        from,
        from_device,
        msg_id,
        ephemeral,
        ref envelope,
        ..
    } = events[0]
    else {
        panic!("{events:?}");
    };
    assert_eq!((seq, conv_seq, msg_id), (Seq(20), ConvSeq(19), MsgId(99)));
    assert_eq!((peer, from, from_device), (PEER, UserId(ME), DeviceId(4)));
    assert_eq!(envelope.as_ref().unwrap().body, b"from my phone");
    assert!(!ephemeral);
    assert!(matches!(
        events[1],
        OwnedEvent::Message {
            seq: Seq(21),
            envelope: None,
            ..
        }
    ));
    assert!(matches!(
        events[2],
        OwnedEvent::Undecodable { seq: Seq(22), .. }
    ));
    assert!(matches!(
        events[3],
        OwnedEvent::Message {
            seq: Seq(0),
            ephemeral: true,
            ..
        }
    ));
    assert_eq!(events.len(), 4);
    assert_eq!(story.session.cursor(), Seq(22));
}

#[test]
fn acknowledgements_come_after_32_entries_or_a_quarter_of_a_second() {
    let mut story = Story::live();
    for seq in 1..=31 {
        story.server.deliver(Delivery::new(seq), "x");
    }
    story.receive();
    assert_eq!(story.acks(), []);
    story.pass(249_999);
    assert_eq!(story.acks(), []);
    story.pass(1);
    assert_eq!(story.acks(), [31]);
    for seq in 32..=63 {
        story.server.deliver(Delivery::new(seq), "x");
    }
    story.receive();
    assert_eq!(story.acks(), [63]);
    story.pass(SECOND_US);
    assert_eq!(story.acks(), []);
}

#[test]
fn acknowledgements_come_at_half_of_a_small_window() {
    for (receive_max, frames) in [(1, 1), (2, 1), (8, 4), (64, 32), (4_096, 32)] {
        let change = |config: &mut SessionConfig| config.receive_max = receive_max;
        let mut story = Story::with(change, SessionState::default(), 1);
        story.log_in();
        for seq in 1..=frames {
            assert_eq!(story.acks(), [], "window {receive_max}");
            story.server.deliver(Delivery::new(seq), "x");
            story.receive();
        }
        let ack = story.written().pop().unwrap();
        assert_eq!((ack.seq.seq, ack.seq.arg), (frames, receive_max));
    }
}

/// For measurements: half the window, however large and however long it takes; and at the end.
#[test]
fn a_lazy_client_acknowledges_half_a_window_at_a_time() {
    let mut story = Story::new();
    let settings = Settings {
        receive_max: 256,
        lazy_ack: true,
        ..Settings::default()
    };
    let login = Login::new(UserId(1), DeviceId(1), "token");
    story.session = Session::sharing(&Arc::new(settings), login, SessionState::default(), 1);
    story.log_in();
    for seq in 1..=127 {
        story.server.deliver(Delivery::new(seq), "x");
    }
    story.receive();
    story.pass(10 * SECOND_US);
    assert_eq!(story.acks(), []);
    assert_eq!(story.session.cursor(), Seq(127));
    story.server.deliver(Delivery::new(128), "x");
    story.server.deliver(Delivery::new(129), "x");
    story.receive();
    assert_eq!(story.acks(), [129]);
    story.server.deliver(Delivery::new(130), "x");
    story.receive();
    assert_eq!(story.acks(), []);
    story.session.close(story.now);
    assert_eq!(story.acks(), [130]);
}

#[test]
fn nothing_is_acknowledged_before_its_owner_has_stored_it() {
    let mut story = Story::with(|config| config.auto_ack = false, SessionState::default(), 1);
    story.log_in();
    story.server.deliver(Delivery::new(10), "a");
    story
        .server
        .deliver_raw(Delivery::new(11), Flags::NONE, b"broken");
    story.server.deliver(Delivery::new(12), "b");
    story.server.synced(15, 3);
    story.receive();
    story.pass(SECOND_US);
    assert_eq!(story.acks(), []);
    assert_eq!(story.session.cursor(), Seq(0));
    // The broken one needs nobody; what the server skipped is passed with the last.
    story.session.acknowledge(story.now, Seq(10));
    assert_eq!(story.session.cursor(), Seq(11));
    story.session.acknowledge(story.now, Seq(9_999));
    assert_eq!(story.session.cursor(), Seq(15));
    story.pass(250_000);
    assert_eq!(story.acks(), [15]);
    // An owner that acknowledges what it was never shown changes nothing.
    story.session.acknowledge(story.now, Seq(9_999));
    story.pass(SECOND_US);
    assert_eq!(story.acks(), []);
    assert_eq!(story.session.cursor(), Seq(15));
}

#[test]
fn what_was_shown_but_not_stored_is_shown_again() {
    let mut story = Story::with(|config| config.auto_ack = false, SessionState::default(), 1);
    story.log_in();
    story
        .server
        .deliver(Delivery::new(10), "a")
        .deliver(Delivery::new(11), "b");
    story.receive();
    assert_eq!(story.shown(), [10, 11]);
    story.session.acknowledge(story.now, Seq(10));
    let saved = story.session.state();
    story.disconnect();
    story.take_events();
    assert_eq!(story.connect().last_seq, Seq(10));
    story.welcome(|_| {});
    story.server.deliver(Delivery::new(11), "b");
    story.receive();
    assert_eq!(story.shown(), [11]);
    // The same after a restart.
    let mut story = Story::with(|config| config.auto_ack = false, saved, 2);
    assert_eq!(story.connect().last_seq, Seq(10));
    story.welcome(|_| {});
    story.server.deliver(Delivery::new(11), "b");
    story.receive();
    assert_eq!(story.shown(), [11]);
}

#[test]
fn repeated_deliveries_are_dropped_and_acknowledged() {
    let mut story = Story::live();
    story.server.deliver(Delivery::new(10), "a");
    story.receive();
    assert_eq!(story.shown(), [10]);
    // The reference was written again under a new sequence.
    let again = Delivery {
        seq: 11,
        ..Delivery::new(10)
    };
    story.server.deliver(again, "a");
    story.receive();
    let duplicate = OwnedEvent::Duplicate {
        seq: Seq(11),
        from: UserId(2),
        msg_id: MsgId(1_010),
    };
    assert_eq!(story.take_events(), [duplicate]);
    story.pass(SECOND_US);
    assert_eq!(story.acks(), [11]);
    // The server starts too early after a reconnect.
    story.disconnect();
    story.connect();
    story.welcome(|_| {});
    story.take_events();
    story
        .server
        .deliver(Delivery::new(9), "z")
        .deliver(Delivery::new(12), "b");
    story.receive();
    assert_eq!(story.shown(), [12]);
}

#[test]
fn the_same_id_from_another_sender_is_another_message() {
    let mut story = Story::live();
    let original = Delivery::new(10);
    let copied = Delivery {
        seq: 11,
        from: 3,
        peer: 3,
        ..original
    };
    let device = Delivery {
        seq: 12,
        device: 2,
        ..original
    };
    story.server.deliver(copied, "hostile").deliver(device, "x");
    story.server.deliver(
        Delivery {
            seq: 13,
            ..original
        },
        "mine",
    );
    story.receive();
    assert_eq!(story.shown(), [11, 12, 13]);
}

#[test]
fn known_ids_are_bounded_and_survive_a_restart() {
    let small = |config: &mut SessionConfig| config.dedupe_max = 2;
    let mut story = Story::with(small, SessionState::default(), 1);
    story.log_in();
    for seq in 10..13 {
        story.server.deliver(Delivery::new(seq), "x");
    }
    story.receive();
    let mut story = Story::with(small, story.session.state(), 2);
    story.log_in();
    for (seq, first) in [(20, 12), (21, 11), (22, 10)] {
        story.server.deliver(
            Delivery {
                seq,
                ..Delivery::new(first)
            },
            "x",
        );
    }
    story.receive();
    // The oldest was forgotten.
    assert_eq!(story.shown(), [22]);
}

#[test]
fn a_sequence_that_does_not_ascend_is_a_fault() {
    for (first, second) in [(10, 10), (10, 9)] {
        let mut story = Story::live();
        story.server.deliver(Delivery::new(first), "a");
        story.server.deliver(
            Delivery {
                msg_id: 5,
                ..Delivery::new(second)
            },
            "b",
        );
        story.receive();
        let fault = OwnedEvent::ProtocolFault(ProtocolFault::Disorder);
        assert_eq!(story.events[1], fault);
    }
    let mut story = Story::live();
    story
        .server
        .synced(20, 0)
        .deliver(Delivery::new(15), "skipped");
    story.receive();
    assert!(
        story
            .events
            .contains(&OwnedEvent::ProtocolFault(ProtocolFault::Disorder))
    );
}

#[test]
fn a_sequence_from_beyond_time_does_not_poison_the_cursor() {
    for seq in [1 << 53, u64::MAX] {
        let mut story = Story::live();
        story.server.deliver(Delivery::new(seq), "a");
        story.receive();
        assert_eq!(
            story.events[0],
            OwnedEvent::ProtocolFault(ProtocolFault::Sequence)
        );
        assert_eq!(story.session.cursor(), Seq(0));
        let mut story = Story::live();
        story.server.synced(seq, 0);
        story.receive();
        assert_eq!(
            story.events[0],
            OwnedEvent::ProtocolFault(ProtocolFault::Sequence)
        );
        assert_eq!(story.session.cursor(), Seq(0));
    }
}

#[test]
fn a_server_that_ignores_the_window_is_left() {
    let manual = |config: &mut SessionConfig| {
        config.auto_ack = false;
        config.receive_max = 3;
    };
    let mut story = Story::with(manual, SessionState::default(), 1);
    story.log_in();
    for seq in 1..=4 {
        story.server.deliver(Delivery::new(seq), "x");
    }
    story.receive();
    assert_eq!(story.events.len(), 5);
    assert_eq!(
        story.events[3],
        OwnedEvent::ProtocolFault(ProtocolFault::Window)
    );
}

#[test]
fn unknown_operations_are_ignored_but_acknowledged() {
    let mut story = Story::live();
    story
        .server
        .routed(200, Delivery::new(10), Flags::NONE, b"the future");
    story.server.routed(
        Op::DevicesChanged as u8,
        Delivery::new(11),
        Flags::NONE,
        b"devices",
    );
    story.server.plain(Op::MediaReady, 0);
    story.receive();
    assert_eq!(story.take_events(), []);
    story.pass(250_000);
    assert_eq!(story.acks(), [11]);
}

#[test]
fn a_gap_is_told() {
    let mut story = Story::live();
    story.server.gap(500);
    story.receive();
    assert_eq!(story.take_events(), [OwnedEvent::Gap { floor: Seq(500) }]);
}
