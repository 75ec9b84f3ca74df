//! Groups over the real thing: made, spoken to, and whole again after the process was killed.

use crate::harness::{Gateway, Peer, Setup, eventually};
use portico_wire::{
    Flags, Op, RouteHeader,
    encode::{Encoder, put_routed},
    frame::ConvKind,
    ids::{ConvSeq, MsgId, UserId},
    message::{
        Envelope,
        group::{Group, GroupCreate, GroupGet},
    },
};
use std::time::{SystemTime, UNIX_EPOCH};

fn fresh(number: u128) -> MsgId {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("the clock is set").as_millis();
    MsgId::new_v7(u64::try_from(now).expect("a date"), number)
}

fn make(owner: &mut Peer, members: impl IntoIterator<Item = u64>) -> u64 {
    let create = GroupCreate {
        members: members.into_iter().map(UserId).collect(),
        title: "e2e",
        max_members: 1_024,
        ..GroupCreate::default()
    };
    let corr = owner.next_corr();
    let route = RouteHeader {
        msg_id: fresh(1),
        ..RouteHeader::default()
    };
    let mut bytes = Vec::new();
    Encoder::new().group_create(&mut bytes, Flags::NONE, corr, &route, &create);
    owner.conn.write_bytes(&bytes).expect("written");
    let frame = owner.take("GROUP", |frame| (frame.corr == corr).then(|| frame.clone()));
    assert_eq!(frame.known_op(), Some(Op::Group), "{frame:?}");
    Group::decode(&frame.body).expect("a group").group.0
}

/// Returns the request's number.
fn say(peer: &mut Peer, group: u64, number: u128, text: &str) -> u32 {
    let corr = peer.next_corr();
    let route = RouteHeader {
        msg_id: fresh(number),
        conv: group,
        conv_kind: ConvKind::GROUP,
        ..RouteHeader::default()
    };
    let envelope = Envelope {
        body: text.as_bytes(),
        ..Envelope::default()
    };
    let body = Encoder::new().envelope(&envelope).to_vec();
    let mut bytes = Vec::new();
    put_routed(
        &mut bytes,
        Op::Send as u8,
        Flags::NONE,
        corr,
        0,
        &route,
        &body,
    );
    peer.conn.write_bytes(&bytes).expect("written");
    corr
}

fn sent(peer: &mut Peer, corr: u32) -> ConvSeq {
    let frame = peer.take("SENT", |frame| (frame.corr == corr).then(|| frame.clone()));
    assert_eq!(frame.known_op(), Some(Op::Sent), "{frame:?}");
    ConvSeq(frame.seq.seq)
}

#[test]
fn everybody_gets_what_is_said_in_one_order() {
    let gateway = Gateway::start();
    let mut peers: Vec<Peer> = (1..=8).map(|user| gateway.login(user, 1)).collect();
    let group = make(&mut peers[0], 2..=8);
    let mut places = Vec::new();
    for round in 0..5 {
        for (at, peer) in peers[..4].iter_mut().enumerate() {
            let number = 100 + round * 10 + at as u128;
            let corr = say(peer, group, number, &format!("{at}:{round}"));
            places.push(sent(peer, corr));
        }
    }
    assert!(places.is_sorted());
    for peer in &mut peers[4..] {
        let heard: Vec<ConvSeq> = (0..20).map(|_| peer.receive().conv_seq).collect();
        assert_eq!(heard, places);
    }
}

#[test]
fn a_kill_between_the_entry_and_its_readers_is_made_good() {
    let setup = Setup::new();
    let gateway = setup.start();
    let mut owner = gateway.login(1, 1);
    let group = make(&mut owner, 2..=300);
    // As much as fits into the time between SENT and the last reference.
    let corrs: Vec<u32> = (0..40)
        .map(|number| say(&mut owner, group, 100 + number, &format!("{number}")))
        .collect();
    let places: Vec<ConvSeq> = corrs.iter().map(|corr| sent(&mut owner, *corr)).collect();
    gateway.kill();

    let gateway = setup.start();
    eventually("the fan-outs to end", || {
        (gateway.metrics().get("portico_fan_outs") == 0).then_some(())
    });
    for user in [2, 77, 150, 300] {
        let mut peer = gateway.login(user, 1);
        let mut heard: Vec<ConvSeq> = Vec::new();
        while heard
            .iter()
            .collect::<std::collections::BTreeSet<_>>()
            .len()
            < places.len()
        {
            heard.push(peer.receive().conv_seq);
        }
        heard.sort_unstable();
        heard.dedup();
        assert_eq!(heard, places, "user {user}");
    }
    let mut peer = gateway.login(300, 1);
    let corr = peer.next_corr();
    let get = GroupGet::default();
    let mut bytes = Vec::new();
    Encoder::new().group_get(&mut bytes, corr, &get);
    peer.conn.write_bytes(&bytes).expect("written");
    let listed = peer.take("the listing", |frame| {
        let last = frame.corr == corr && frame.known_op() == Some(Op::Done);
        last.then_some(frame.aux)
    });
    assert_eq!(listed, 1);
}
