//! What survives a restart of the client.

use crate::{
    story::{PEER, SECOND_US, Story, ids},
    support::{Delivery, Seen},
};
use portico_client::{SessionState, StateError};
use portico_wire::{
    Op,
    ids::{ConvSeq, Seq},
};

#[test]
fn a_state_survives_its_encoding_and_the_outbox_goes_out_again() {
    let mut story = Story::live();
    story.server.deliver(Delivery::new(30), "x");
    story.receive();
    let first = story.send("one");
    let second = story.send("two");
    story.session.read(story.now, PEER, ConvSeq(9));
    let state = story.session.state();
    assert_eq!(state.unsent().collect::<Vec<_>>(), [first, second]);
    let decoded = SessionState::decode(&state.encode()).unwrap();
    assert_eq!(decoded, state);
    let mut story = Story::with(|_| {}, decoded, 2);
    let hello = story.connect();
    assert_eq!(hello.last_seq, Seq(30));
    assert_eq!(hello.resume_token, Some(&b"resume me"[..]));
    story.welcome(|_| {});
    let written = story.written();
    assert_eq!(written[0].op, Op::Receipt);
    assert_eq!(ids(&written[1..]), [first, second]);
    // Nobody knows whether they went out before.
    assert!(written[1..].iter().all(Seen::is_retry));
}

#[test]
fn damaged_states_are_refused() {
    let mut story = Story::live();
    story.send("one");
    let bytes = story.session.state().encode();
    for at in 0..bytes.len() {
        let cut = SessionState::decode(&bytes[..at]);
        assert!(matches!(
            cut,
            Err(StateError::Damaged | StateError::Foreign)
        ));
        let mut changed = bytes.clone();
        changed[at] ^= 0x40;
        assert!(SessionState::decode(&changed).is_err(), "byte {at}");
    }
    let mut newer = bytes;
    newer[4] = 3;
    assert_eq!(SessionState::decode(&newer), Err(StateError::Version(3)));
}

/// A state that was saved before there were groups, with a message and a read mark to user 2.
#[test]
fn states_of_the_first_version_are_read() {
    let mut old = b"PTCS\x01".to_vec();
    old.extend_from_slice(&30_u64.to_le_bytes());
    old.extend_from_slice(&0_u32.to_le_bytes());
    old.extend_from_slice(&1_u32.to_le_bytes());
    old.extend_from_slice(&[7; 16]);
    old.extend_from_slice(&PEER.0.to_le_bytes());
    old.extend_from_slice(&1_790_000_000_000_000_u64.to_le_bytes());
    old.extend_from_slice(&[0; 6]);
    old.extend_from_slice(&0_u32.to_le_bytes());
    old.extend_from_slice(&0_u32.to_le_bytes());
    old.extend_from_slice(&1_u32.to_le_bytes());
    old.extend_from_slice(&PEER.0.to_le_bytes());
    old.extend_from_slice(&9_u64.to_le_bytes());
    let sum = old.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    old.extend_from_slice(&sum.to_le_bytes());
    let state = SessionState::decode(&old).unwrap();
    assert_eq!(state.cursor, Seq(30));
    let mut story = Story::with(|_| {}, state, 1);
    story.log_in();
    let frames = story.written();
    let to: Vec<_> = frames
        .iter()
        .map(|seen| (seen.op, seen.route.conv))
        .collect();
    assert_eq!(to, [(Op::Receipt, PEER.0), (Op::Send, PEER.0)]);
}

#[test]
fn equal_calls_give_equal_bytes() {
    let run = |seed| {
        let mut story = Story::with(|_| {}, SessionState::default(), seed);
        story.log_in();
        story.send("a");
        story.pass(100 * SECOND_US);
        std::mem::take(story.session.output())
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}
