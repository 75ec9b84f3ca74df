//! Presence, typing, contacts, blocks and settings of the built program with its embedded store.

use crate::harness::{Peer, Setup, eventually};
use portico_wire::{
    ErrorCode, Flags, Op, RouteHeader,
    encode::{people::put_signal, put_plain},
    frame::{ConvKind, signal_kind},
    ids::UserId,
    message::{
        Close,
        people::{
            ContactChange, ContactEdit, Contacts, ContactsEdit, ContactsGet, Presence,
            PresenceItem, PresenceState, PresenceSub, Privacy, Who,
        },
    },
};

const CORR: u32 = 90;

fn block(peer: &mut Peer, user: u64, change: ContactChange) {
    let edit = ContactsEdit {
        edits: vec![ContactEdit {
            user: UserId(user),
            change,
            sealed_name: b"",
        }],
    };
    let mut out = Vec::new();
    peer.conn.encoder().contacts_edit(&mut out, CORR, &edit);
    peer.write(&out);
    assert_eq!(peer.reply(CORR).known_op(), Some(Op::Done));
}

fn set_privacy(peer: &mut Peer, privacy: &Privacy) {
    let mut out = Vec::new();
    peer.conn.encoder().privacy_set(&mut out, CORR, privacy);
    peer.write(&out);
    assert_eq!(peer.reply(CORR).known_op(), Some(Op::Done));
}

/// The state that the reply to a PRESENCE_SUB has for one user.
fn watch(peer: &mut Peer, user: u64) -> PresenceItem {
    let sub = PresenceSub {
        add: vec![UserId(user)],
        remove: Vec::new(),
    };
    let mut out = Vec::new();
    peer.conn.encoder().presence_sub(&mut out, CORR, &sub);
    peer.write(&out);
    let reply = peer.reply(CORR);
    assert_eq!(reply.known_op(), Some(Op::Presence));
    Presence::decode(&reply.body).expect("valid").items[0]
}

/// The next change that is told of a user.
fn told(peer: &mut Peer, user: u64) -> PresenceItem {
    peer.take("a change of presence", |frame| {
        if frame.known_op() != Some(Op::Presence) || frame.corr != 0 {
            return None;
        }
        assert!(frame.flags.contains(Flags::EPHEMERAL));
        let items = Presence::decode(&frame.body).expect("valid").items;
        items.into_iter().find(|item| item.user == UserId(user))
    })
}

#[test]
fn blocks_and_settings_hold_over_a_kill() {
    let setup = Setup::new().set("server.shards", 2);
    let gateway = setup.start();
    let (mut one, mut two) = (gateway.login(1, 1), gateway.login(2, 1));
    block(&mut two, 1, ContactChange::BLOCK);
    let shy = Privacy {
        online: Who::NOBODY,
        ..Privacy::default()
    };
    let mut three = gateway.login(3, 1);
    set_privacy(&mut three, &shy);
    let (corr, _) = one.post(2, "nobody reads this");
    assert_eq!(one.refused(corr).code, ErrorCode::FORBIDDEN);
    gateway.kill();

    let gateway = setup.start();
    let (mut one, mut two) = (gateway.login(1, 1), gateway.login(2, 1));
    let three = gateway.login(3, 1);
    let (corr, _) = one.post(2, "nor this");
    assert_eq!(one.refused(corr).code, ErrorCode::FORBIDDEN);
    assert_eq!(watch(&mut one, 3).state, PresenceState::Offline);
    let get = ContactsGet {
        after: UserId(0),
        limit: 500,
        blocked: true,
    };
    let mut out = Vec::new();
    two.conn.encoder().contacts_get(&mut out, CORR, &get);
    two.write(&out);
    let reply = two.reply(CORR);
    let page = Contacts::decode(&reply.body).expect("valid");
    assert_eq!(page.contacts.len(), 1);
    assert_eq!(page.contacts[0].user, UserId(1));
    block(&mut two, 1, ContactChange::UNBLOCK);
    one.send(2, "but this");
    two.receive();
    // The count begins with the process.
    gateway.await_metric(r#"portico_blocked_total{what="message"}"#, |count| {
        count == 1
    });
    drop(three);
    gateway.stop();
}

#[test]
fn watchers_are_told_of_coming_typing_and_leaving() {
    let setup = Setup::new()
        .set("server.shards", 2)
        .set("limits.presence_grace_ms", 200);
    let gateway = setup.start();
    let mut one = gateway.login(1, 1);
    assert_eq!(watch(&mut one, 2).state, PresenceState::Offline);
    let mut two = gateway.login(2, 1);
    assert_eq!(told(&mut one, 2).state, PresenceState::Online);
    // To whoever is in the foreground.
    let route = RouteHeader {
        conv: 1,
        conv_kind: ConvKind::DIRECT,
        kind: signal_kind::TYPING,
        ..RouteHeader::default()
    };
    let mut out = Vec::new();
    put_signal(&mut out, CORR, &route);
    two.write(&out);
    assert_eq!(two.reply(CORR).known_op(), Some(Op::Done));
    let signal = one.take("a signal", |frame| {
        let is = frame.known_op() == Some(Op::Signal);
        is.then_some(frame.route).flatten()
    });
    assert_eq!((signal.conv, signal.user), (2, UserId(2)));
    assert_eq!((signal.kind, signal.ttl_s), (signal_kind::TYPING, 6));
    // Away, then gone.
    let mut out = Vec::new();
    put_plain(&mut out, Op::ClientState, Flags::NONE, 0, 1);
    two.write(&out);
    assert_eq!(told(&mut one, 2).state, PresenceState::Away);
    let mut out = Vec::new();
    let good_bye = Close::new(portico_wire::CloseCode::NORMAL, "");
    two.conn.encoder().close(&mut out, &good_bye);
    two.write(&out);
    let left = told(&mut one, 2);
    assert_eq!(left.state, PresenceState::Offline);
    assert!(left.last_seen_s > 0 && left.last_seen_s.is_multiple_of(60));
    drop(one);
    let gone = eventually("nobody watches", || {
        let metrics = gateway.metrics();
        let held = metrics.get("portico_presence_interests");
        (held == 0).then_some(metrics)
    });
    assert_eq!(gone.get("portico_presence_subscriptions"), 0);
    assert_eq!(gone.get(r#"portico_last_seen_total{result="read"}"#), 0);
    gateway.stop();
}
