//! Requests that are answered with a value, and what the server says of groups and people unasked.

use crate::{
    story::{ME, PEER, Story},
    support::{Delivery, Seen, envelope},
};
use portico_client::{
    AskId, OwnedAnswer, OwnedEvent, Page, ProtocolFault, SendError, SendOptions, SessionState,
    plain_envelope,
};
use portico_wire::{
    CloseCode, ErrorCode, Flags, Op, RouteHeader,
    encode::{put_body, put_done, put_routed, put_sent},
    frame::{ConvKind, receipt_kind, signal_kind},
    ids::{ConvSeq, DeviceId, GroupId, MsgId, Seq, UserId},
    message::{
        group::{Group, GroupAction, GroupCreate, GroupEdit, GroupEvent, GroupGet, Member, Role},
        history::{Conversation, ConversationsGet, HistoryEnd, HistoryGet, Revoke},
        people::{
            Contact, ContactChange, ContactEdit, Contacts, ContactsEdit, ContactsGet, PresenceItem,
            PresenceState, PresenceSub, Privacy, Who,
        },
    },
};

const TEAM: GroupId = GroupId(77);

fn group_route(seq: u64, conv_seq: u64) -> RouteHeader {
    RouteHeader {
        seq: Seq(seq),
        msg_id: MsgId(u128::from(conv_seq)),
        conv: TEAM.0,
        conv_seq: ConvSeq(conv_seq),
        user: PEER,
        dev: DeviceId(1),
        conv_kind: ConvKind::GROUP,
        ..RouteHeader::default()
    }
}

impl Story {
    fn routed(&mut self, op: Op, flags: Flags, corr: u32, route: &RouteHeader, body: &[u8]) {
        put_routed(&mut self.server.out, op as u8, flags, corr, 0, route, body);
    }

    /// The one frame that the client has written.
    fn asked(&mut self, op: Op) -> Seen {
        let mut frames = self.written();
        assert_eq!(frames.len(), 1, "{frames:?}");
        assert_eq!(frames[0].op, op);
        assert_ne!(frames[0].corr, 0);
        frames.remove(0)
    }

    /// What a request has brought since, and nothing else has happened.
    fn answers(&mut self, wanted: AskId) -> Vec<OwnedAnswer> {
        self.receive();
        let events = self.take_events().into_iter();
        let answers = events.map(|event| match event {
            OwnedEvent::Answer { ask, answer } if ask == wanted => answer,
            other => panic!("{other:?}"),
        });
        answers.collect()
    }
}

fn failed(code: ErrorCode) -> OwnedAnswer {
    OwnedAnswer::Failed {
        code,
        retry_after_ms: 0,
        detail: String::new(),
    }
}

#[test]
fn a_group_is_made_once_and_its_answer_is_the_group() {
    let mut story = Story::live();
    let create = GroupCreate {
        members: vec![PEER, UserId(3)],
        title: "team",
        ..GroupCreate::default()
    };
    let ask = story
        .session
        .create_group(story.now, &create, None)
        .unwrap();
    let first = story.asked(Op::GroupCreate);
    assert_eq!(GroupCreate::decode(&first.body).unwrap(), create);
    assert!(!first.is_retry());
    // The connection ends before the answer: the same request goes again.
    story.disconnect();
    story.take_events();
    story.log_in();
    let again = story.asked(Op::GroupCreate);
    assert_eq!(again.route.msg_id, first.route.msg_id);
    assert!(again.is_retry());
    assert_eq!(again.body, first.body);
    let group = Group {
        group: TEAM,
        epoch: 5,
        title: "team",
        members: Some(vec![Member {
            user: PEER,
            joined_s: 9,
            role: Role::OWNER,
        }]),
        ..Group::default()
    };
    let server = &mut story.server;
    server
        .encoder
        .group(&mut server.out, again.corr, false, &group);
    let answers = story.answers(ask);
    let [OwnedAnswer::Group { group: got, more }] = &answers[..] else {
        panic!("{answers:?}");
    };
    assert_eq!((got.group, got.epoch, *more), (TEAM, 5, false));
    assert_eq!(got.title, "team");
    assert_eq!(got.members, group.members);
    // It is done: nothing goes again.
    story.disconnect();
    story.take_events();
    story.log_in();
    assert_eq!(story.written(), []);
}

#[test]
fn an_edit_names_the_epoch_it_relies_on() {
    let mut story = Story::live();
    let edit = GroupEdit {
        action: GroupAction::REMOVE,
        members: vec![Member {
            user: PEER,
            ..Member::default()
        }],
        ..GroupEdit::default()
    };
    let ask = story.session.edit_group(story.now, TEAM, 6, &edit).unwrap();
    let seen = story.asked(Op::GroupEdit);
    assert_eq!((seen.route.seq, seen.route.conv), (Seq(6), TEAM.0));
    assert_eq!(seen.route.conv_kind, ConvKind::GROUP);
    assert_eq!(GroupEdit::decode(&seen.body).unwrap(), edit);
    story.server.error(seen.corr, ErrorCode::STALE_EPOCH, 0);
    assert_eq!(story.answers(ask), [failed(ErrorCode::STALE_EPOCH)]);
}

#[test]
fn all_groups_come_one_by_one_and_end() {
    let mut story = Story::live();
    let ask = story.session.group(story.now, GroupId(0), 0).unwrap();
    let seen = story.asked(Op::GroupGet);
    assert_eq!(GroupGet::decode(&seen.body).unwrap(), GroupGet::default());
    let server = &mut story.server;
    for number in [1, 2] {
        let group = Group {
            group: GroupId(number),
            ..Group::default()
        };
        server
            .encoder
            .group(&mut server.out, seen.corr, true, &group);
    }
    put_done(&mut server.out, seen.corr, 2);
    let answers = story.answers(ask);
    let is_last: Vec<bool> = answers.iter().map(OwnedAnswer::is_last).collect();
    assert_eq!(is_last, [false, false, true]);
    assert_eq!(answers[2], OwnedAnswer::Done { count: 2 });
}

#[test]
fn what_is_asked_ends_with_its_connection_unless_it_changes_something() {
    let mut story = Story::live();
    let now = story.now;
    let page = Page::newest(10);
    let history = story.session.history(now, PEER, page).unwrap();
    let privacy = Privacy {
        online: Who::NOBODY,
        ..Privacy::default()
    };
    let set = story.session.set_privacy(now, &privacy).unwrap();
    assert_eq!(story.written().len(), 2);
    story.disconnect();
    let events = story.take_events();
    let answer = failed(ErrorCode::UNAVAILABLE);
    assert!(events.contains(&OwnedEvent::Answer {
        ask: history,
        answer
    }));
    let of_set =
        |event: &OwnedEvent| matches!(event, OwnedEvent::Answer { ask, .. } if *ask == set);
    assert!(!events.iter().any(of_set));
    story.log_in();
    let seen = story.asked(Op::PrivacySet);
    assert_eq!(Privacy::decode(&seen.body).unwrap(), privacy);
    story.server.done(seen.corr);
    assert_eq!(story.answers(set), [OwnedAnswer::Done { count: 0 }]);
}

#[test]
fn a_connection_that_replaces_another_tells_what_was_left_unanswered() {
    let mut story = Story::live();
    let ask = story.session.privacy(story.now).unwrap();
    story.asked(Op::PrivacyGet);
    story.connect();
    story.welcome(|_| {});
    let events = story.take_events();
    let answer = failed(ErrorCode::UNAVAILABLE);
    assert!(
        events.contains(&OwnedEvent::Answer { ask, answer }),
        "{events:?}"
    );
}

#[test]
fn what_is_asked_offline_waits_for_the_login() {
    let mut story = Story::new();
    let ask = story.session.privacy(story.now).unwrap();
    story.log_in();
    let seen = story.asked(Op::PrivacyGet);
    let privacy = Privacy {
        hide_read: true,
        ..Privacy::default()
    };
    let server = &mut story.server;
    server.encoder.privacy(&mut server.out, seen.corr, &privacy);
    assert_eq!(story.answers(ask), [OwnedAnswer::Privacy(privacy)]);
}

#[test]
fn a_page_of_history_has_entries_of_every_kind_and_an_end() {
    let mut story = Story::live();
    let page = Page {
        before: ConvSeq(900),
        after: ConvSeq(100),
        limit: 3,
        forward: true,
    };
    let ask = story.session.history(story.now, TEAM, page).unwrap();
    let seen = story.asked(Op::History);
    let get = HistoryGet {
        conv_kind: ConvKind::GROUP,
        conv: TEAM.0,
        before: ConvSeq(900),
        after: ConvSeq(100),
        limit: 3,
        forward: true,
    };
    assert_eq!(HistoryGet::decode(&seen.body).unwrap(), get);
    let part = Flags::REPLY | Flags::MORE;
    let corr = seen.corr;
    story.routed(
        Op::Deliver,
        part,
        corr,
        &group_route(0, 200),
        &envelope("hi"),
    );
    story.routed(Op::Deliver, part, corr, &group_route(0, 201), &[]);
    let event = GroupEvent {
        epoch: 3,
        action: GroupAction::ADD,
        ..GroupEvent::default()
    };
    let body = story.server.encoder.group_event(&event).to_vec();
    story.routed(Op::GroupEvent, part, corr, &group_route(0, 202), &body);
    let target = Revoke {
        seq: ConvSeq(201),
        user: PEER,
        device: DeviceId(1),
        msg_id: MsgId(201),
    };
    let body = story.server.encoder.revoke(&target).to_vec();
    story.routed(Op::Revoke, part, corr, &group_route(0, 203), &body);
    let end = HistoryEnd {
        more: true,
        next: ConvSeq(203),
    };
    let server = &mut story.server;
    server.encoder.history_end(&mut server.out, corr, &end);
    let answers = story.answers(ask);
    let places: Vec<(u64, bool)> = answers
        .iter()
        .map(|answer| match answer {
            OwnedAnswer::Entry {
                conv_seq, envelope, ..
            } => (conv_seq.0, envelope.is_some()),
            OwnedAnswer::GroupEntry {
                conv_seq, change, ..
            } => (conv_seq.0, change.action == GroupAction::ADD),
            OwnedAnswer::WithdrawnEntry {
                conv_seq,
                target: got,
                ..
            } => (conv_seq.0, *got == target),
            OwnedAnswer::PageEnd { more, next } => (next.0, *more),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [
        (200, true),
        (201, false),
        (202, true),
        (203, true),
        (203, true),
    ];
    assert_eq!(places, expected);
    // Nothing of it was an entry of the inbox.
    assert_eq!(story.session.cursor(), Seq(0));
}

#[test]
fn conversations_contacts_and_withdrawals_are_answered() {
    let mut story = Story::live();
    let now = story.now;
    let ask = story.session.conversations(now, ConvSeq(7), 20).unwrap();
    let seen = story.asked(Op::ConversationsGet);
    let get = ConversationsGet {
        before: ConvSeq(7),
        limit: 20,
    };
    assert_eq!(ConversationsGet::decode(&seen.body).unwrap(), get);
    let conversation = Conversation {
        conv_kind: ConvKind::DIRECT,
        conv: 2,
        head_seq: ConvSeq(6),
        read_seq: ConvSeq(5),
        unread: 1,
    };
    let server = &mut story.server;
    server
        .encoder
        .conversation(&mut server.out, seen.corr, &conversation);
    put_done(&mut server.out, seen.corr, 1);
    let answers = story.answers(ask);
    let expected = [
        OwnedAnswer::Conversation(conversation),
        OwnedAnswer::Done { count: 1 },
    ];
    assert_eq!(answers, expected);

    let edit = ContactsEdit {
        edits: vec![ContactEdit {
            user: PEER,
            change: ContactChange::BLOCK,
            sealed_name: b"",
        }],
    };
    let ask = story.session.edit_contacts(now, &edit).unwrap();
    let seen = story.asked(Op::ContactsEdit);
    assert_eq!(ContactsEdit::decode(&seen.body).unwrap(), edit);
    story.server.done(seen.corr);
    assert_eq!(story.answers(ask), [OwnedAnswer::Done { count: 0 }]);

    let get = ContactsGet {
        after: UserId(0),
        limit: 5,
        blocked: true,
    };
    let ask = story.session.contacts(now, &get).unwrap();
    let seen = story.asked(Op::ContactsGet);
    assert_eq!(ContactsGet::decode(&seen.body).unwrap(), get);
    let page = Contacts {
        contacts: vec![Contact {
            user: PEER,
            blocked: true,
            ..Contact::default()
        }],
        more: true,
    };
    let server = &mut story.server;
    server.encoder.contacts(&mut server.out, seen.corr, &page);
    let answers = story.answers(ask);
    let [OwnedAnswer::Contacts { contacts, more }] = &answers[..] else {
        panic!("{answers:?}");
    };
    assert!(*more && contacts[0].blocked && contacts[0].user == PEER);

    let target = Revoke {
        seq: ConvSeq(6),
        user: UserId(ME),
        device: DeviceId(1),
        msg_id: MsgId(9),
    };
    let ask = story.session.withdraw(now, PEER, &target).unwrap();
    let seen = story.asked(Op::Revoke);
    assert_eq!(
        (seen.route.conv, seen.route.conv_kind),
        (2, ConvKind::DIRECT)
    );
    assert_eq!(Revoke::decode(&seen.body).unwrap(), target);
    put_sent(&mut story.server.out, seen.corr, ConvSeq(8), true);
    let stored = OwnedAnswer::Stored {
        conv_seq: ConvSeq(8),
        duplicate: true,
    };
    assert_eq!(story.answers(ask), [stored]);
}

#[test]
fn watching_users_is_answered_with_their_states_and_changes_follow() {
    let mut story = Story::live();
    let ask = story.session.subscribe(story.now, &[PEER], &[]).unwrap();
    let seen = story.asked(Op::PresenceSub);
    let sub = PresenceSub {
        add: vec![PEER],
        remove: Vec::new(),
    };
    assert_eq!(PresenceSub::decode(&seen.body).unwrap(), sub);
    let item = |state| PresenceItem {
        user: PEER,
        last_seen_s: 0,
        state,
    };
    let online = vec![item(PresenceState::Online)];
    let server = &mut story.server;
    server.encoder.presence(&mut server.out, seen.corr, &online);
    let answer = OwnedAnswer::Presence {
        items: online.clone(),
    };
    assert_eq!(story.answers(ask), [answer]);
    let offline = vec![item(PresenceState::Offline)];
    let server = &mut story.server;
    server.encoder.presence(&mut server.out, 0, &offline);
    story.receive();
    let event = OwnedEvent::Presence { items: offline };
    assert_eq!(story.take_events(), [event]);
    let too_many = vec![PEER; 501];
    let refused = story.session.subscribe(story.now, &too_many, &[]);
    assert_eq!(refused, Err(SendError::TooMany));
}

#[test]
fn signals_go_and_come_and_are_never_kept() {
    let mut story = Story::new();
    assert!(!story.session.signal(PEER, signal_kind::TYPING, 6));
    story.log_in();
    assert!(story.session.signal(TEAM, signal_kind::TYPING, 6));
    let frames = story.written();
    let seen = &frames[0];
    assert_eq!((seen.op, seen.corr), (Op::Signal, 0));
    assert!(seen.flags.contains(Flags::EPHEMERAL));
    let RouteHeader {
        conv,
        conv_kind,
        kind,
        ttl_s,
        ..
    } = seen.route;
    assert_eq!((conv, conv_kind), (TEAM.0, ConvKind::GROUP));
    assert_eq!((kind, ttl_s), (signal_kind::TYPING, 6));
    let route = RouteHeader {
        kind: signal_kind::RECORDING,
        ttl_s: 6,
        ..group_route(0, 0)
    };
    story.routed(Op::Signal, Flags::EPHEMERAL, 0, &route, &[]);
    story.receive();
    let signal = OwnedEvent::Signal {
        conv: TEAM.into(),
        from: PEER,
        kind: signal_kind::RECORDING,
        ttl_s: 6,
    };
    assert_eq!(story.take_events(), [signal]);
}

#[test]
fn messages_of_groups_name_their_group() {
    let mut story = Story::live();
    let body = plain_envelope("to all");
    let options = SendOptions::default();
    let id = story.session.send(story.now, TEAM, &body, options).unwrap();
    let sends = story.sends();
    assert_eq!((sends[0].route.conv, sends[0].route.msg_id), (TEAM.0, id));
    assert_eq!(sends[0].route.conv_kind, ConvKind::GROUP);
    story.session.read(story.now, TEAM, ConvSeq(40));
    let read = story.asked(Op::Receipt);
    assert_eq!(read.route.conv_kind, ConvKind::GROUP);
    // It is still in the outbox: a restart sends it to the group again.
    let state = SessionState::decode(&story.session.state().encode()).unwrap();
    assert_eq!(state, story.session.state());
    story.server.sent(sends[0].corr, 50, false).done(read.corr);
    story.routed(Op::Deliver, Flags::NONE, 0, &group_route(60, 55), &body);
    story.receive();
    let events = story.take_events();
    let [
        OwnedEvent::Sent { .. },
        OwnedEvent::Message {
            group, peer, from, ..
        },
    ] = &events[..]
    else {
        panic!("{events:?}");
    };
    assert_eq!((*group, *peer, *from), (Some(TEAM), PEER, PEER));
}

/// A change of a group and a withdrawal are entries of the inbox: the cursor passes them when they are
/// stored, not before.
#[test]
fn changes_and_withdrawals_wait_to_be_stored() {
    let mut story = Story::with(|config| config.auto_ack = false, SessionState::default(), 1);
    story.log_in();
    let event = GroupEvent {
        epoch: 9,
        action: GroupAction::LEAVE,
        ..GroupEvent::default()
    };
    let body = story.server.encoder.group_event(&event).to_vec();
    story.routed(Op::GroupEvent, Flags::NONE, 0, &group_route(10, 100), &body);
    let target = Revoke {
        seq: ConvSeq(90),
        user: PEER,
        device: DeviceId(1),
        msg_id: MsgId(90),
    };
    let body = story.server.encoder.revoke(&target).to_vec();
    story.routed(Op::Revoke, Flags::NONE, 0, &group_route(11, 101), &body);
    story.server.deliver(Delivery::new(12), "after");
    story.receive();
    let events = story.take_events();
    let [
        OwnedEvent::GroupChanged { change, .. },
        OwnedEvent::Withdrawn { conv, .. },
        OwnedEvent::Message { .. },
    ] = &events[..]
    else {
        panic!("{events:?}");
    };
    assert_eq!((change.epoch, change.action), (9, GroupAction::LEAVE));
    assert_eq!(*conv, TEAM.into());
    assert_eq!(story.session.cursor(), Seq(0));
    story.session.acknowledge(story.now, Seq(10));
    assert_eq!(story.session.cursor(), Seq(10));
    story.session.acknowledge(story.now, Seq(12));
    assert_eq!(story.session.cursor(), Seq(12));
    // Not stored before the connection ended: it comes again, and is shown again.
    let body = story.server.encoder.group_event(&event).to_vec();
    story.routed(Op::GroupEvent, Flags::NONE, 0, &group_route(20, 110), &body);
    story.receive();
    story.disconnect();
    story.take_events();
    story.log_in();
    story.routed(Op::GroupEvent, Flags::NONE, 0, &group_route(20, 110), &body);
    story.receive();
    assert_eq!(story.take_events().len(), 1);
}

#[test]
fn marks_of_groups_are_of_all_or_of_a_member() {
    let mut story = Story::live();
    story.session.group_receipts(story.now, TEAM, true);
    let asked = story.asked(Op::ReceiptsGet);
    let mark = |user: u64, kind, up_to| RouteHeader {
        kind,
        user: UserId(user),
        ..group_route(0, up_to)
    };
    let part = Flags::REPLY | Flags::MORE;
    let corr = asked.corr;
    story.routed(
        Op::Receipt,
        part,
        corr,
        &mark(3, receipt_kind::READ, 5),
        &[],
    );
    put_done(&mut story.server.out, corr, 1);
    let delivered = mark(0, receipt_kind::DELIVERED, 6);
    story.routed(Op::Receipt, Flags::NONE, 0, &delivered, &[]);
    let some = RouteHeader {
        ttl_s: 5 << 16 | 2,
        ..mark(0, receipt_kind::READ, 8)
    };
    story.routed(Op::Receipt, Flags::NONE, 0, &some, &[]);
    let own = mark(ME, receipt_kind::READ, 7);
    story.routed(Op::Receipt, Flags::NONE, 0, &own, &[]);
    story.receive();
    let receipt = |member, read, up_to| OwnedEvent::GroupReceipt {
        group: TEAM,
        member,
        reached: 0,
        of: 0,
        read,
        up_to: ConvSeq(up_to),
        at_s: 0,
    };
    let expected = [
        receipt(Some(UserId(3)), true, 5),
        receipt(None, false, 6),
        OwnedEvent::GroupReceipt {
            group: TEAM,
            member: None,
            reached: 2,
            of: 5,
            read: true,
            up_to: ConvSeq(8),
            at_s: 0,
        },
        OwnedEvent::GroupReadElsewhere {
            group: TEAM,
            up_to: ConvSeq(7),
        },
    ];
    assert_eq!(story.take_events(), expected);
}

#[test]
fn an_answer_of_another_kind_is_a_fault_and_one_that_cannot_be_read_a_failure() {
    let mut story = Story::live();
    story.session.privacy(story.now).unwrap();
    let seen = story.asked(Op::PrivacyGet);
    put_sent(&mut story.server.out, seen.corr, ConvSeq(1), false);
    story.receive();
    let events = story.take_events();
    let fault = ProtocolFault::Reply(Op::Sent as u8);
    assert_eq!(events[0], OwnedEvent::ProtocolFault(fault));

    let mut story = Story::live();
    let ask = story.session.privacy(story.now).unwrap();
    let seen = story.asked(Op::PrivacyGet);
    let out = &mut story.server.out;
    put_body(
        out,
        Op::Privacy as u8,
        Flags::REPLY,
        seen.corr,
        0,
        b"nonsense",
    );
    assert_eq!(story.answers(ask), [failed(ErrorCode::INTERNAL)]);
    assert_ne!(
        story.session.phase(),
        portico_client::Phase::Stopped(CloseCode::NORMAL)
    );
}

#[test]
fn requests_that_wait_are_bounded() {
    let mut story = Story::new();
    let taken = (0..2_000).filter(|_| story.session.privacy(story.now).is_ok());
    assert_eq!(taken.count(), 1_024);
}
