//! Delivered and read: pushed, asked for, and remembered.

use crate::harness::{Gateway, Peer, Setup, eventually, unix_s};
use portico_wire::ids::{ConvSeq, UserId};

fn marks(peer: &mut Peer, other: u64) -> (ConvSeq, ConvSeq) {
    let receipts = peer.receipts(other);
    let of = |read: bool| {
        receipts
            .iter()
            .filter(|receipt| receipt.reader == UserId(other) && receipt.read == read)
            .map(|receipt| receipt.up_to)
            .max()
            .unwrap_or_default()
    };
    (of(false), of(true))
}

#[test]
fn marks_appear_while_both_are_there() {
    let gateway = Gateway::start();
    let (mut one, mut two) = (gateway.login(1, 1), gateway.login(2, 1));
    let mut sibling = gateway.login(2, 2);
    let conv_seq = one.send(2, "hi");
    assert_eq!(two.receive().conv_seq, conv_seq);
    let delivered = one.receipt(false, conv_seq);
    assert_eq!((delivered.peer, delivered.reader), (UserId(2), UserId(2)));
    assert_eq!(delivered.up_to, conv_seq);
    assert!(unix_s().abs_diff(u64::from(delivered.at_s)) < 120);
    two.read(1, conv_seq);
    assert_eq!(one.receipt(true, conv_seq).up_to, conv_seq);
    // The reader's other device clears its badge.
    let elsewhere = sibling.receipt(true, conv_seq);
    assert_eq!((elsewhere.peer, elsewhere.reader), (UserId(1), UserId(2)));
    // A mark never goes back.
    two.read(1, ConvSeq(conv_seq.0 - 1));
    assert_eq!(marks(&mut one, 2), (conv_seq, conv_seq));
}

#[test]
fn marks_set_while_the_author_was_away_are_there_when_asked_for() {
    let gateway = Gateway::start();
    let mut one = gateway.login(1, 1);
    let conv_seq = one.send(2, "hi");
    assert_eq!(marks(&mut one, 2), (ConvSeq(0), ConvSeq(0)));
    drop(one);
    let mut two = gateway.login(2, 1);
    two.receive();
    two.read(1, conv_seq);
    let mut one = gateway.login(1, 1);
    eventually("the delivered mark", || {
        (marks(&mut one, 2) == (conv_seq, conv_seq)).then_some(())
    });
}

#[test]
fn marks_survive_restarts() {
    let setup = Setup::new();
    let gateway = setup.start();
    let (mut one, mut two) = (gateway.login(1, 1), gateway.login(2, 1));
    let first = one.send(2, "delivered before a good end");
    two.receive();
    drop((one, two));
    gateway.stop();

    // DONE means that the mark is stored, even if the next thing is a kill.
    let gateway = setup.start();
    let (mut one, mut two) = (gateway.login(1, 1), gateway.login(2, 1));
    assert_eq!(marks(&mut one, 2), (first, ConvSeq(0)));
    let second = one.send(2, "read before a bad end");
    two.receive();
    two.read(1, second);
    gateway.kill();

    let gateway = setup.start();
    let mut one = gateway.login(1, 1);
    let (delivered, read) = marks(&mut one, 2);
    assert_eq!(read, second);
    assert!(delivered >= first, "{delivered} is before {first}");
}
