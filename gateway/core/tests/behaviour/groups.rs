//! Groups on any number of shards: made, edited, left; one order for all members, nothing from before
//! joining and nothing after removal, and a crash between an entry and its readers is made good.

use crate::support::{assert_idle, error, reply, sent, texts, user_at, world};
use portico_core::testing::{CmdKind, Got, World};
use portico_core::{Counter, Limits, store::StoreError};
use portico_wire::{
    ErrorCode, Flags, Op, RouteHeader,
    frame::{ConvKind, signal_kind},
    ids::{ConvId, ConvSeq, GroupId, MsgId, Seq, UserId},
    message::{
        ClientState,
        group::{Group, GroupAction, GroupCreate, GroupEdit, GroupEvent, GroupRules, Member, Role},
    },
};

/// Users whose homes are spread over all shards, the first at the home of none in particular.
fn users(shards: u16, count: usize) -> Vec<u64> {
    (0..count)
        .map(|nth| user_at(nth as u16 % shards, shards, nth / usize::from(shards)))
        .collect()
}

fn group_of(got: &[Got], corr: u32) -> Group<'_> {
    let reply = reply(got, corr);
    assert_eq!(reply.op(), Op::Group, "{reply:?}");
    Group::decode(reply.body()).expect("a valid body")
}

fn events(got: &[Got]) -> Vec<(GroupAction, u64)> {
    let events = got.iter().filter(|got| got.op() == Op::GroupEvent);
    events
        .map(|got| {
            let event = GroupEvent::decode(got.body()).expect("a valid body");
            assert_eq!(event.epoch, got.route().conv_seq.0);
            (event.action, event.epoch)
        })
        .collect()
}

fn edit(action: GroupAction) -> GroupEdit<'static> {
    GroupEdit {
        action,
        ..GroupEdit::default()
    }
}

/// A group of all these users, everybody logged in and nothing left to read.
fn meeting(world: &mut World, users: &[u64]) -> (Vec<usize>, u64) {
    let clients: Vec<usize> = users.iter().map(|user| world.login(*user, 1)).collect();
    let group = world.make_group(clients[0], &users[1..]);
    for client in &clients {
        world.take(*client);
    }
    (clients, group)
}

#[test]
fn a_group_is_made_spoken_to_and_listed() {
    for shards in 1..=4 {
        let mut world = world(shards);
        let users = users(shards, 9);
        let clients: Vec<usize> = users.iter().map(|user| world.login(*user, 1)).collect();
        clients.iter().for_each(|client| {
            world.take(*client);
        });
        let create = GroupCreate {
            members: users[1..].iter().copied().map(UserId).collect(),
            title: "trip",
            sealed_info: b"sealed",
            group_type: 3,
            ..GroupCreate::default()
        };
        let corr = world.create_group(clients[0], &create);
        let got = world.run_and_take(clients[0]);
        let made = group_of(&got, corr);
        assert_eq!((made.title, made.sealed_info), ("trip", &b"sealed"[..]));
        assert_eq!((made.created_by, made.max_members), (UserId(users[0]), 256));
        let mut members = made.members.clone().expect("all of them");
        members.sort_by_key(|member| member.user);
        assert_eq!(members.len(), 9);
        for member in &members {
            let owner = member.user == UserId(users[0]);
            assert_eq!(member.role, if owner { Role::OWNER } else { Role::MEMBER });
        }
        let group = made.group.0;
        for client in &clients[1..] {
            let got = world.take(*client);
            assert_eq!(events(&got), [(GroupAction::CREATE, made.epoch)]);
            assert!(got[0].is_sequenced());
            let route = got[0].route();
            assert_eq!((route.conv, route.conv_kind), (group, ConvKind::GROUP));
            assert_eq!(route.user, UserId(users[0]));
        }
        // Everybody speaks at once: all get all, in one order.
        let mut said = Vec::new();
        for round in 0..5 {
            for (at, client) in clients.iter().enumerate() {
                said.push((
                    *client,
                    world.tell(*client, group, &format!("{at}:{round}")),
                ));
            }
        }
        world.run();
        let mut orders = Vec::new();
        let mut places = Vec::new();
        let got: Vec<_> = clients.iter().map(|client| world.take(*client)).collect();
        for (client, message) in &said {
            let at = clients.iter().position(|other| other == client);
            let (place, again) = sent(&got[at.expect("known")], message.corr);
            assert!(!again);
            places.push(place);
        }
        for (at, got) in got.iter().enumerate() {
            let heard = texts(got);
            assert_eq!(heard.len(), 8 * 5, "all but one's own");
            let delivered = got.iter().filter(|got| got.op() == Op::Deliver);
            let places: Vec<_> = delivered.map(|got| got.route().conv_seq).collect();
            assert!(places.is_sorted(), "the order of the conversation");
            orders.push((at, heard));
        }
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 45);
        for (at, heard) in &orders {
            // Without what either of them said, two members heard the same.
            let (first, others) = (&orders[0], format!("{at}:"));
            let of = |list: &[String], skip: &str| -> Vec<String> {
                let list = list.iter().filter(|text| !text.starts_with(skip));
                list.cloned().collect()
            };
            assert_eq!(of(&first.1, &others), of(heard, "0:"));
        }
        // The one group, and all of mine.
        let corr = world.get_group(clients[1], group, made.epoch);
        let got = world.run_and_take(clients[1]);
        assert_eq!(group_of(&got, corr).members, None, "as of known_epoch");
        let corr = world.get_group(clients[1], group, 1);
        let got = world.run_and_take(clients[1]);
        assert_eq!(group_of(&got, corr).members.map(|all| all.len()), Some(9));
        let corr = world.get_group(clients[1], 0, 0);
        let got = world.run_and_take(clients[1]);
        let listed: Vec<_> = got.iter().filter(|got| got.corr() == corr).collect();
        assert_eq!(listed.len(), 2);
        let one = Group::decode(listed[0].body()).expect("a group");
        assert_eq!((one.group.0, one.title, one.members), (group, "trip", None));
        assert!(listed[0].frame().flags().contains(Flags::MORE));
        assert_eq!((listed[1].op(), listed[1].frame().aux()), (Op::Done, 1));
        world.advance(3_000);
        assert_eq!(world.store.fan_outs().count(), 0);
        assert_idle(&world);
    }
}

#[test]
fn making_a_group_again_finds_it_and_a_repeated_edit_is_made_once() {
    let mut world = world(2);
    let users = users(2, 3);
    let (a, b) = (world.login(users[0], 1), world.login(users[1], 1));
    let create = GroupCreate {
        members: vec![UserId(users[1])],
        ..GroupCreate::default()
    };
    let route = RouteHeader {
        msg_id: world.msg_id(),
        ..RouteHeader::default()
    };
    world.create_group_as(a, Flags::NONE, 101, &route, &create);
    let got = world.run_and_take(a);
    let first = group_of(&got, 101);
    world.create_group_as(a, Flags::RETRY, 102, &route, &create);
    let got = world.run_and_take(a);
    let again = group_of(&got, 102);
    assert_eq!((first.group, first.epoch), (again.group, again.epoch));
    let conv = ConvId::Group(first.group);
    assert_eq!(world.store.conversation(conv).count(), 1);
    // Somebody else's id that happens to be the same cannot be had; another device's is another group.
    let route = RouteHeader {
        seq: Seq(first.epoch),
        msg_id: world.msg_id(),
        conv: first.group.0,
        conv_kind: ConvKind::GROUP,
        ..RouteHeader::default()
    };
    let add = GroupEdit {
        members: vec![Member {
            user: UserId(users[2]),
            ..Member::default()
        }],
        ..edit(GroupAction::ADD)
    };
    world.edit_group_as(a, Flags::NONE, 103, &route, &add);
    let got = world.run_and_take(a);
    let after = group_of(&got, 103);
    assert!(after.epoch > first.epoch);
    world.edit_group_as(a, Flags::RETRY, 104, &route, &add);
    let got = world.run_and_take(a);
    assert_eq!(group_of(&got, 104).epoch, after.epoch);
    assert_eq!(world.store.conversation(conv).count(), 2);
    // Without RETRY the same words rely on an epoch that is over.
    world.edit_group_as(a, Flags::NONE, 105, &route, &add);
    let got = world.run_and_take(a);
    assert_eq!(error(&got, 105), ErrorCode::STALE_EPOCH);
    assert_eq!(world.count(Counter::Duplicates), 1);
    world.take(b);
}

#[test]
fn a_repeated_message_is_in_the_group_once() {
    for shards in [1, 3] {
        let mut world = world(shards);
        let users = users(shards, 4);
        let (clients, group) = meeting(&mut world, &users);
        let mut message = world.tell(clients[0], group, "once");
        let got = world.run_and_take(clients[0]);
        let (place, _) = sent(&got, message.corr);
        message.flags = Flags::RETRY;
        message.corr = world.corr(clients[0]);
        world.post(clients[0], &message);
        let got = world.run_and_take(clients[0]);
        assert_eq!(sent(&got, message.corr), (place, true));
        for client in &clients[1..] {
            assert_eq!(texts(&world.take(*client)), ["once"]);
        }
    }
}

#[test]
fn late_joiners_see_nothing_from_before_and_removed_members_nothing_after() {
    for shards in 1..=3 {
        let mut world = world(shards);
        let users = users(shards, 4);
        let (clients, group) = meeting(&mut world, &users[..3]);
        let late = world.login(users[3], 1);
        world.take(late);
        world.tell(clients[1], group, "before");
        world.run();
        // All of it at once: what is said while an edit is under way comes after it.
        world.edit_members(
            clients[0],
            group,
            GroupAction::ADD,
            &[(users[3], Role::MEMBER)],
        );
        world.edit_members(
            clients[0],
            group,
            GroupAction::REMOVE,
            &[(users[2], Role::MEMBER)],
        );
        world.tell(clients[0], group, "after");
        world.run();
        let got = world.take(late);
        assert_eq!(texts(&got), ["after"]);
        let seen: Vec<_> = events(&got).into_iter().map(|(action, _)| action).collect();
        assert_eq!(seen, [GroupAction::ADD, GroupAction::REMOVE]);
        let got = world.take(clients[2]);
        assert_eq!(texts(&got), ["before"]);
        assert_eq!(got.last().map(Got::op), Some(Op::GroupEvent));
        assert_eq!(
            events(&got).last().map(|(action, _)| *action),
            Some(GroupAction::REMOVE)
        );
        // Who is out may not speak, nor ask.
        let message = world.tell(clients[2], group, "let me in");
        let got = world.run_and_take(clients[2]);
        assert_eq!(error(&got, message.corr), ErrorCode::NOT_MEMBER);
        let corr = world.get_group(clients[2], group, 0);
        let got = world.run_and_take(clients[2]);
        assert_eq!(error(&got, corr), ErrorCode::NOT_MEMBER);
        let corr = world.get_group(clients[2], 0, 0);
        let got = world.run_and_take(clients[2]);
        let reply = reply(&got, corr);
        assert_eq!((reply.op(), reply.frame().aux()), (Op::Done, 0));
        let corr = world.get_group(late, 0, 0);
        let got = world.run_and_take(late);
        assert_eq!(got.iter().filter(|got| got.corr() == corr).count(), 2);
        assert_idle_soon(&mut world);
    }
}

fn assert_idle_soon(world: &mut World) {
    world.advance(5_000);
    assert_eq!(world.store.fan_outs().count(), 0);
    assert_idle(world);
}

/// One refused wish of each kind, with the code it must have.
#[test]
fn each_refusal_has_its_code() {
    let mut world = world(2);
    let users = users(2, 6);
    let (clients, group) = meeting(&mut world, &users[..4]);
    let stranger = world.login(users[4], 1);
    world.take(stranger);
    let member = |user| (user, Role::MEMBER);
    let refused = |world: &mut World, client: usize, corr: u32, code: ErrorCode| {
        let got = world.run_and_take(client);
        let reply = reply(&got, corr);
        assert_eq!(reply.error(), Some(code), "{reply:?}");
        assert!(!reply.error_reply().expect("an error").detail.is_empty());
    };
    let corr = world.edit_members(stranger, group, GroupAction::ADD, &[member(users[5])]);
    refused(&mut world, stranger, corr, ErrorCode::NOT_MEMBER);
    let corr = world.edit_members(stranger, group ^ 1, GroupAction::ADD, &[member(users[5])]);
    refused(&mut world, stranger, corr, ErrorCode::NOT_FOUND);
    let message = world.tell(stranger, group ^ 1, "anybody?");
    refused(&mut world, stranger, message.corr, ErrorCode::NOT_FOUND);
    let message = world.tell(stranger, 0, "anybody?");
    refused(&mut world, stranger, message.corr, ErrorCode::NOT_FOUND);
    let corr = world.get_group(stranger, group ^ 1, 0);
    refused(&mut world, stranger, corr, ErrorCode::NOT_FOUND);
    for (action, who, code) in [
        (GroupAction::REMOVE, users[2], ErrorCode::FORBIDDEN),
        (GroupAction::SET_ROLE, users[2], ErrorCode::FORBIDDEN),
        (GroupAction::DELETE, 0, ErrorCode::FORBIDDEN),
        (GroupAction::SET_RULES, 0, ErrorCode::FORBIDDEN),
        (GroupAction::SET_INVITE, 0, ErrorCode::FORBIDDEN),
        (GroupAction::ADD, 0, ErrorCode::BAD_ARGUMENT),
        (GroupAction::CREATE, 0, ErrorCode::BAD_ARGUMENT),
        (GroupAction(77), 0, ErrorCode::BAD_ARGUMENT),
        (GroupAction::SET_INFO, 0, ErrorCode::BAD_ARGUMENT),
    ] {
        let corr = world.edit_members(clients[1], group, action, &[member(who)]);
        refused(&mut world, clients[1], corr, code);
    }
    for (action, who, role, code) in [
        (GroupAction::LEAVE, 0, Role::MEMBER, ErrorCode::FORBIDDEN),
        (
            GroupAction::REMOVE,
            users[5],
            Role::MEMBER,
            ErrorCode::NOT_FOUND,
        ),
        (
            GroupAction::REMOVE,
            users[0],
            Role::MEMBER,
            ErrorCode::BAD_ARGUMENT,
        ),
        (
            GroupAction::ADD,
            users[5],
            Role::ADMIN,
            ErrorCode::BAD_ARGUMENT,
        ),
        (
            GroupAction::SET_ROLE,
            users[0],
            Role::MEMBER,
            ErrorCode::BAD_ARGUMENT,
        ),
        (
            GroupAction::SET_ROLE,
            users[1],
            Role(3),
            ErrorCode::BAD_ARGUMENT,
        ),
        (
            GroupAction::SET_ROLE,
            users[5],
            Role::ADMIN,
            ErrorCode::NOT_FOUND,
        ),
    ] {
        let corr = world.edit_members(clients[0], group, action, &[(who, role)]);
        refused(&mut world, clients[0], corr, code);
    }
    let rules = GroupEdit {
        rules: GroupRules(8),
        ..edit(GroupAction::SET_RULES)
    };
    let corr = world.edit_group(clients[0], group, 0, &rules);
    refused(&mut world, clients[0], corr, ErrorCode::BAD_ARGUMENT);
    let nothing = edit(GroupAction::REMOVE);
    let corr = world.edit_group(clients[0], group, 0, &nothing);
    refused(&mut world, clients[0], corr, ErrorCode::BAD_ARGUMENT);
    let corr = world.edit_group(clients[0], group, 5, &nothing);
    refused(&mut world, clients[0], corr, ErrorCode::STALE_EPOCH);
    let join = GroupEdit {
        invite: Some("guess"),
        ..edit(GroupAction::JOIN)
    };
    let corr = world.edit_group(stranger, group, 0, &join);
    refused(&mut world, stranger, corr, ErrorCode::FORBIDDEN);
    // Groups that may not be made.
    for (create, code) in [
        (
            GroupCreate {
                max_members: 0,
                ..GroupCreate::default()
            },
            ErrorCode::BAD_ARGUMENT,
        ),
        (
            GroupCreate {
                max_members: 1_025,
                ..GroupCreate::default()
            },
            ErrorCode::BAD_ARGUMENT,
        ),
        (
            GroupCreate {
                rules: GroupRules(8),
                ..GroupCreate::default()
            },
            ErrorCode::BAD_ARGUMENT,
        ),
        (
            GroupCreate {
                members: vec![UserId(0)],
                ..GroupCreate::default()
            },
            ErrorCode::BAD_ARGUMENT,
        ),
        (
            GroupCreate {
                members: vec![UserId(7), UserId(8)],
                max_members: 2,
                ..GroupCreate::default()
            },
            ErrorCode::GROUP_FULL,
        ),
        (
            GroupCreate {
                members: vec![UserId(7); 1_025],
                ..GroupCreate::default()
            },
            ErrorCode::TOO_LARGE,
        ),
    ] {
        let corr = world.create_group(stranger, &create);
        refused(&mut world, stranger, corr, code);
    }
    let route = RouteHeader {
        msg_id: MsgId(5),
        ..RouteHeader::default()
    };
    world.create_group_as(stranger, Flags::NONE, 901, &route, &GroupCreate::default());
    refused(&mut world, stranger, 901, ErrorCode::BAD_ARGUMENT);
    let conv = ConvId::Group(GroupId(group));
    assert_eq!(
        world.store.conversation(conv).count(),
        1,
        "nothing happened"
    );
    assert_idle_soon(&mut world);
}

#[test]
fn rules_and_roles_decide_who_may_what() {
    let mut world = world(3);
    let users = users(3, 6);
    let (clients, group) = meeting(&mut world, &users[..4]);
    let [owner, admin, plain, _] = clients[..] else {
        panic!("four clients");
    };
    let ok = |world: &mut World, client: usize, corr: u32| -> u64 {
        let got = world.run_and_take(client);
        group_of(&got, corr).epoch
    };
    let corr = world.edit_members(
        owner,
        group,
        GroupAction::SET_ROLE,
        &[(users[1], Role::ADMIN)],
    );
    let epoch = ok(&mut world, owner, corr);
    let all = GroupEdit {
        rules: GroupRules::ALL,
        ..edit(GroupAction::SET_RULES)
    };
    let corr = world.edit_group(admin, group, epoch, &all);
    let epoch = ok(&mut world, admin, corr);
    // Of two edits that rely on the same epoch one is made.
    let info = |title| GroupEdit {
        title: Some(title),
        ..edit(GroupAction::SET_INFO)
    };
    let first = world.edit_group(owner, group, epoch, &info("one"));
    let second = world.edit_group(admin, group, epoch, &info("two"));
    world.run();
    let (of_owner, of_admin) = (world.take(owner), world.take(admin));
    let codes = [reply(&of_owner, first), reply(&of_admin, second)].map(Got::error);
    let stale = Some(ErrorCode::STALE_EPOCH);
    assert!(
        codes == [None, stale] || codes == [stale, None],
        "{codes:?}"
    );
    // A plain member may neither send, nor add, nor edit.
    let message = world.tell(plain, group, "no");
    let got = world.run_and_take(plain);
    assert_eq!(error(&got, message.corr), ErrorCode::FORBIDDEN);
    let corr = world.edit_members(plain, group, GroupAction::ADD, &[(users[4], Role::MEMBER)]);
    let got = world.run_and_take(plain);
    assert_eq!(error(&got, corr), ErrorCode::FORBIDDEN);
    let corr = world.edit_group(plain, group, 0, &info("mine"));
    let got = world.run_and_take(plain);
    assert_eq!(error(&got, corr), ErrorCode::FORBIDDEN);
    // An admin may all that, but not touch another admin.
    let message = world.tell(admin, group, "yes");
    let got = world.run_and_take(admin);
    sent(&got, message.corr);
    let corr = world.edit_members(
        admin,
        group,
        GroupAction::REMOVE,
        &[(users[0], Role::MEMBER)],
    );
    let got = world.run_and_take(admin);
    assert_eq!(error(&got, corr), ErrorCode::FORBIDDEN);
    // The group is handed over; then its first owner may leave.
    let corr = world.edit_members(
        owner,
        group,
        GroupAction::SET_ROLE,
        &[(users[1], Role::OWNER)],
    );
    ok(&mut world, owner, corr);
    let corr = world.edit_group(owner, group, 0, &edit(GroupAction::LEAVE));
    let got = world.run_and_take(owner);
    let left = group_of(&got, corr);
    assert_eq!((left.members, left.title), (None, ""));
    // A code lets somebody in, until it is taken away.
    let code = GroupEdit {
        invite: Some(""),
        ..edit(GroupAction::SET_INVITE)
    };
    let corr = world.edit_group(admin, group, 0, &code);
    let got = world.run_and_take(admin);
    let code = group_of(&got, corr).invite.expect("a code").to_owned();
    let corr = world.get_group(plain, group, 0);
    let got = world.run_and_take(plain);
    assert_eq!(group_of(&got, corr).invite, None, "for admins only");
    let join = GroupEdit {
        invite: Some(&code),
        ..edit(GroupAction::JOIN)
    };
    let (fifth, sixth) = (world.login(users[4], 1), world.login(users[5], 1));
    let corr = world.edit_group(fifth, group, 0, &join);
    let got = world.run_and_take(fifth);
    assert_eq!(group_of(&got, corr).members.map(|all| all.len()), Some(4));
    let corr = world.edit_group(admin, group, 0, &edit(GroupAction::SET_INVITE));
    ok(&mut world, admin, corr);
    let corr = world.edit_group(sixth, group, 0, &join);
    let got = world.run_and_take(sixth);
    assert_eq!(error(&got, corr), ErrorCode::FORBIDDEN);
    // The end: everybody hears of it, and there is nothing any more.
    let corr = world.edit_group(admin, group, 0, &edit(GroupAction::DELETE));
    world.run();
    assert_eq!(reply(&world.take(admin), corr).op(), Op::Group);
    let got = world.take(fifth);
    assert_eq!(
        events(&got).last().map(|(action, _)| *action),
        Some(GroupAction::DELETE)
    );
    let message = world.tell(fifth, group, "hello?");
    let got = world.run_and_take(fifth);
    assert_eq!(error(&got, message.corr), ErrorCode::NOT_FOUND);
    assert_idle_soon(&mut world);
}

#[test]
fn a_crash_between_the_entry_and_its_readers_is_made_good() {
    // Where the process dies: before the record of an edit, before the references, before the end.
    for held in [CmdKind::WriteRecord, CmdKind::AddRefs, CmdKind::EndFanOut] {
        for shards in [1_u16, 3] {
            let mut world = world(shards);
            let users = users(shards, 5);
            let (clients, group) = meeting(&mut world, &users[..4]);
            let late = world.login(users[4], 1);
            world.advance(2_000);
            for client in &clients {
                world.take(*client);
            }
            world.store.hold(&[held]);
            let message = world.tell(clients[0], group, "said");
            let got = world.run_and_take(clients[0]);
            sent(&got, message.corr);
            // Other writes that are held keep back what one lane has after them.
            let edits = held == CmdKind::WriteRecord;
            if edits {
                world.edit_members(
                    clients[0],
                    group,
                    GroupAction::ADD,
                    &[(users[4], Role::MEMBER)],
                );
            }
            world.run();
            assert!(world.store.fan_outs().count() > 0, "{held:?}");
            world.store.release();
            // Another process, with other homes.
            world.restart(4 - shards);
            world.advance(1_000);
            assert_eq!(world.store.fan_outs().count(), 0, "{held:?}");
            assert!(world.count(Counter::FanOutsReopened) > 0);
            for user in &users[..4] {
                let entries = world.store.inbox(UserId(*user));
                let said = entries.iter().any(|item| item.entry.body == "said");
                assert!(said, "{held:?}: {user} has it");
                if edits {
                    let last = entries.last().map(|item| item.entry.op);
                    assert_eq!(last, Some(Op::GroupEvent as u8), "{held:?}");
                }
            }
            if !edits {
                continue;
            }
            let inbox = world.store.inbox(UserId(users[4]));
            assert!(inbox.iter().all(|item| item.entry.body != "said"));
            assert!(!inbox.is_empty(), "{held:?}: the newcomer learns of it");
            let back = world.login(users[4], 1);
            world.take(back);
            let corr = world.get_group(back, group, 0);
            let got = world.run_and_take(back);
            let found = group_of(&got, corr);
            assert_eq!(found.members.map(|all| all.len()), Some(5), "{held:?}");
            let corr = world.get_group(back, 0, 0);
            let got = world.run_and_take(back);
            assert_eq!(got.iter().filter(|got| got.corr() == corr).count(), 2);
            let _ = late;
            world.check_invariants();
        }
    }
}

#[test]
fn a_group_whose_making_was_cut_off_is_made_at_the_next_start() {
    let mut world = world(2);
    let users = users(2, 3);
    let client = world.login(users[0], 1);
    world.store.hold(&[CmdKind::WriteRecord]);
    let create = GroupCreate {
        members: users[1..].iter().copied().map(UserId).collect(),
        title: "trip",
        max_members: 300,
        group_type: 7,
        ..GroupCreate::default()
    };
    let route = RouteHeader {
        msg_id: world.msg_id(),
        ..RouteHeader::default()
    };
    world.create_group_as(client, Flags::NONE, 50, &route, &create);
    world.run();
    world.store.release();
    world.restart(3);
    // The client repeats at once: what was cut off goes first.
    let client = world.login(users[0], 1);
    world.take(client);
    world.create_group_as(client, Flags::RETRY, 51, &route, &create);
    let got = world.run_and_take(client);
    let group = group_of(&got, 51);
    assert_eq!(
        (group.title, group.max_members, group.group_type),
        ("trip", 300, 7)
    );
    let conv = ConvId::Group(group.group);
    assert_eq!(world.store.conversation(conv).count(), 1);
    assert_eq!(world.store.inbox(UserId(users[1])).len(), 1);
    assert_idle_soon(&mut world);
}

#[test]
fn a_store_that_fails_now_and_then_loses_nothing() {
    for shards in [1, 2] {
        for kind in [
            CmdKind::AppendFanOut,
            CmdKind::AddRefs,
            CmdKind::EndFanOut,
            CmdKind::WriteRecord,
        ] {
            let mut world = world(shards);
            let users = users(shards, 4);
            let (clients, group) = meeting(&mut world, &users);
            for (lost, store_error) in [
                (true, StoreError::Unknown),
                (false, StoreError::Unknown),
                (false, StoreError::Unavailable),
            ] {
                if lost {
                    world.store.lose_answers(&[kind], 2);
                } else {
                    world.store.fail(&[kind], 2, store_error);
                }
                let message = world.tell(clients[0], group, "one");
                let info = GroupEdit {
                    title: Some("new"),
                    ..edit(GroupAction::SET_INFO)
                };
                world.edit_group(clients[1], group, 0, &info);
                world.advance(4_000);
                let got = world.take(clients[0]);
                let reply = reply(&got, message.corr);
                let refused =
                    kind == CmdKind::AppendFanOut && store_error == StoreError::Unavailable;
                assert_eq!(reply.op() == Op::Error, refused, "{kind:?} {reply:?}");
                for client in &clients[2..] {
                    let mut heard = texts(&world.take(*client));
                    // A reference that was written again under a fresh number is seen twice (O8).
                    heard.dedup();
                    assert_eq!(heard.len(), usize::from(!refused), "{kind:?}");
                }
                world.store.heal();
                world.take(clients[1]);
            }
            assert_idle_soon(&mut world);
        }
    }
}

#[test]
fn the_cache_is_bounded_and_cold_groups_come_back() {
    let limits = Limits {
        groups_bytes_max: 40 << 10,
        ..Limits::default()
    };
    let mut world = World::new(2, limits);
    let users = users(2, 20);
    let client = world.login(users[0], 1);
    let other = world.login(users[1], 1);
    let groups: Vec<u64> = (0..200)
        .map(|_| world.make_group(client, &users[1..]))
        .collect();
    let bytes: u64 = (0..2).map(|at| world.shard(at).gauges().group_bytes).sum();
    assert!(bytes <= 40 << 10, "{bytes}");
    let held: u64 = (0..2).map(|at| world.shard(at).gauges().groups).sum();
    assert!(held > 10 && held < 150, "{held}");
    world.take(other);
    for (at, group) in groups.iter().enumerate() {
        world.tell(client, *group, &format!("{at}"));
        world.run();
    }
    assert_eq!(texts(&world.take(other)).len(), 200);
    let bytes: u64 = (0..2).map(|at| world.shard(at).gauges().group_bytes).sum();
    assert!(bytes <= 40 << 10, "{bytes}");
    // One user in hundreds of groups gets them all, page by page.
    let corr = world.get_group(other, 0, 0);
    let got = world.run_and_take(other);
    let listed: Vec<_> = got.iter().filter(|got| got.corr() == corr).collect();
    assert_eq!(listed.len(), 201);
    assert_eq!(listed[200].frame().aux(), 200);
    // Names that mean nothing leave nothing behind.
    for nonsense in 1..100 {
        world.get_group(client, nonsense, 0);
        world.run();
    }
    let after: u64 = (0..2).map(|at| world.shard(at).gauges().groups).sum();
    assert!(after <= held + 20, "{after}");
    assert_idle_soon(&mut world);
}

#[test]
fn ephemeral_messages_reach_members_who_are_there_and_nobody_else() {
    let mut world = world(3);
    let users = users(3, 5);
    let (clients, group) = meeting(&mut world, &users[..4]);
    let stranger = world.login(users[4], 1);
    world.take(stranger);
    for (client, heard) in [(clients[1], 3), (stranger, 0)] {
        let mut message = world.message(client, group, "now");
        message.conv_kind = ConvKind::GROUP;
        message.flags = Flags::EPHEMERAL;
        world.post(client, &message);
        world.run();
        let got: Vec<Got> = clients.iter().flat_map(|all| world.take(*all)).collect();
        let seen = got.iter().filter(|got| got.op() == Op::Deliver);
        assert_eq!(seen.clone().count(), heard);
        for frame in seen {
            assert!(frame.frame().flags().contains(Flags::EPHEMERAL));
            assert_eq!(frame.route().seq, Seq(0));
            assert_eq!(frame.route().conv, group);
        }
    }
    let conv = ConvId::Group(GroupId(group));
    assert_eq!(world.store.conversation(conv).count(), 1);
}

/// Typing in a group is seen by members who look at it, and by nobody else; a stranger is not heard.
#[test]
fn signals_reach_members_in_the_foreground() {
    let mut world = world(3);
    let users = users(3, 5);
    let (clients, group) = meeting(&mut world, &users[..4]);
    let stranger = world.login(users[4], 1);
    world.set_state(clients[3], ClientState::Away);
    world.run();
    world.take(stranger);
    for (client, heard) in [(clients[1], 2), (stranger, 0)] {
        let conv = (ConvKind::GROUP, group);
        let corr = world.signal_in(client, conv, signal_kind::TYPING, 0);
        assert_eq!(reply(&world.run_and_take(client), corr).op(), Op::Done);
        let got: Vec<Got> = clients.iter().flat_map(|all| world.take(*all)).collect();
        let seen = got.iter().filter(|got| got.op() == Op::Signal);
        assert_eq!(seen.clone().count(), heard);
        for frame in seen {
            let route = frame.route();
            assert_eq!((route.conv, route.conv_kind), (group, ConvKind::GROUP));
            assert_eq!((route.user, route.ttl_s), (UserId(users[1]), 6));
        }
    }
    let corr = world.signal_in(clients[1], (ConvKind::GROUP, 0), signal_kind::TYPING, 0);
    let got = world.run_and_take(clients[1]);
    assert_eq!(error(&got, corr), ErrorCode::NOT_FOUND);
}

#[test]
fn receipts_say_how_many_of_how_many_and_then_that_all_have_it() {
    for shards in [1, 3] {
        let mut world = world(shards);
        let users = users(shards, 4);
        let (clients, group) = meeting(&mut world, &users);
        world.advance(3_000);
        for client in &clients {
            world.take(*client);
        }
        world.set_acking(clients[3], false);
        let message = world.tell(clients[0], group, "hello");
        let got = world.run_and_take(clients[0]);
        let (place, _) = sent(&got, message.corr);
        world.advance(3_000);
        let receipts = |got: &[Got]| -> Vec<(u8, ConvSeq, u32, u32)> {
            let receipts = got.iter().filter(|got| got.op() == Op::Receipt);
            receipts
                .map(|got| {
                    let route = got.route();
                    assert_eq!((route.conv, route.conv_kind), (group, ConvKind::GROUP));
                    assert_eq!(route.user, UserId(0));
                    let (n, m) = (route.ttl_s & 0xffff, route.ttl_s >> 16);
                    (route.kind, route.conv_seq, n, m)
                })
                .collect()
        };
        let got = receipts(&world.take(clients[0]));
        assert_eq!(got.last(), Some(&(1, place, 2, 3)), "{got:?}");
        assert!(
            receipts(&world.take(clients[1]))
                .iter()
                .all(|r| r.1 < place)
        );
        // The last one has it: everybody learns that all have.
        let seq = world.last_seq(clients[3]);
        world.ack(clients[3], seq, 256);
        world.advance(3_000);
        for client in &clients[..3] {
            let got = receipts(&world.take(*client));
            assert!(got.contains(&(1, place, 3, 3)), "{got:?}");
        }
        // Read by one, then asked for in detail.
        let corr = world.corr(clients[1]);
        let read = RouteHeader {
            conv: group,
            conv_seq: place,
            conv_kind: ConvKind::GROUP,
            kind: 2,
            ..RouteHeader::default()
        };
        let mut bytes = Vec::new();
        portico_wire::encode::put_routed(
            &mut bytes,
            Op::Receipt as u8,
            Flags::NONE,
            corr,
            0,
            &read,
            &[],
        );
        world.write(clients[1], &bytes);
        world.advance(3_000);
        assert_eq!(reply(&world.take(clients[1]), corr).op(), Op::Done);
        let got = receipts(&world.take(clients[0]));
        assert_eq!(got.last(), Some(&(2, place, 1, 3)), "{got:?}");
        let corr = world.ask_group_receipts(clients[2], group, true);
        let got = world.run_and_take(clients[2]);
        let rows: Vec<_> = got.iter().filter(|got| got.corr() == corr).collect();
        assert_eq!(rows.last().map(|got| got.op()), Some(Op::Done));
        let of = |kind: u8| {
            let rows = rows.iter().filter(|got| got.op() == Op::Receipt);
            let rows = rows.filter(|got| got.route().kind == kind);
            rows.filter(|got| got.route().conv_seq == place).count()
        };
        assert_eq!((of(1), of(2)), (4, 2), "the author has read its own");
        let corr = world.ask_group_receipts(clients[2], group, false);
        let got = world.run_and_take(clients[2]);
        let all: Vec<_> = got.iter().filter(|got| got.corr() == corr).collect();
        assert_eq!(all[0].route().conv_seq, place);
        assert_eq!(all[0].route().user, UserId(0));
        assert_idle_soon(&mut world);
        // Another life knows the same.
        world.restart(shards);
        let client = world.login(users[2], 1);
        world.take(client);
        let corr = world.ask_group_receipts(client, group, true);
        let got = world.run_and_take(client);
        let rows = got.iter().filter(|got| got.corr() == corr);
        let rows = rows.filter(|got| got.op() == Op::Receipt && got.route().kind == 1);
        assert_eq!(rows.filter(|got| got.route().conv_seq == place).count(), 4);
    }
}
