//! Receipts: read marks until DONE, watermarks on demand.

use crate::{
    story::{ME, PEER, SECOND_US, Story},
    support::Delivery,
};
use portico_client::OwnedEvent;
use portico_wire::{
    ErrorCode, Op,
    ids::{ConvSeq, UserId},
    message::ReceiptsGet,
};

#[test]
fn a_read_mark_is_repeated_until_done_and_only_the_greatest_counts() {
    let mut story = Story::live();
    story.server.deliver(Delivery::new(50), "x");
    story.receive();
    story.session.read(story.now, PEER, ConvSeq(50));
    let written = story.written();
    // Delivered first, then read.
    assert_eq!((written[0].op, written[0].seq.seq), (Op::Ack, 50));
    let mark = &written[1];
    assert_eq!((mark.op, mark.route.kind), (Op::Receipt, 2));
    assert_eq!((mark.route.conv, mark.route.conv_seq), (2, ConvSeq(50)));
    assert_ne!(mark.corr, 0);
    // While it is open, later marks join; lesser ones vanish.
    for up_to in [55, 70, 60] {
        story.session.read(story.now, PEER, ConvSeq(up_to));
    }
    assert!(story.written().is_empty());
    story.server.done(mark.corr);
    story.receive();
    let second = story.written();
    assert_eq!(second[0].route.conv_seq, ConvSeq(70));
    story
        .server
        .error(second[0].corr, ErrorCode::OVERLOADED, 3_000);
    story.receive();
    story.pass(3 * SECOND_US);
    assert_eq!(story.written()[0].route.conv_seq, ConvSeq(70));
    story.disconnect();
    story.log_in();
    let third = story.written();
    assert_eq!(third[0].route.conv_seq, ConvSeq(70));
    // It survives a restart, too.
    let mut restarted = Story::with(|_| {}, story.session.state(), 2);
    restarted.log_in();
    assert_eq!(restarted.written()[0].route.conv_seq, ConvSeq(70));
    story.server.done(third[0].corr);
    story.receive();
    story.disconnect();
    story.log_in();
    assert!(story.written().is_empty());
}

#[test]
fn receipts_are_asked_for_in_hundreds() {
    let mut story = Story::live();
    let peers: Vec<UserId> = (2..252).map(UserId).collect();
    story.session.receipts(story.now, &peers);
    let asks = story.written();
    let counts: Vec<usize> = asks
        .iter()
        .map(|seen| ReceiptsGet::decode(&seen.body).unwrap().convs.len())
        .collect();
    assert_eq!(counts, [100, 100, 50]);
    story
        .server
        .receipt(2, 2, 1, 500, 60)
        .receipt(2, 2, 2, 400, 61);
    // The own read mark, from another device; a kind from the future.
    story
        .server
        .receipt(2, ME, 2, 300, 62)
        .receipt(2, 2, 9, 1, 63);
    story.server.done(asks[0].corr);
    story.receive();
    let receipt = |read, up_to, at_s| OwnedEvent::Receipt {
        peer: PEER,
        read,
        up_to: ConvSeq(up_to),
        at_s,
    };
    let elsewhere = OwnedEvent::ReadElsewhere {
        peer: PEER,
        up_to: ConvSeq(300),
    };
    let expected = [receipt(false, 500, 60), receipt(true, 400, 61), elsewhere];
    assert_eq!(story.take_events(), expected);
}
