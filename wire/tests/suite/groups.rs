//! Bodies of the operations on groups: what is written reads back, and what is over a bound is
//! refused.

use portico_wire::{
    BodyError, Flags, Op, RouteHeader,
    encode::Encoder,
    frame::{BASE_END, ConvKind, ROUTE_END},
    ids::{GroupId, MsgId, Seq, UserId},
    limits::{
        FRAME_BYTES_TO_CLIENT_MAX, GROUP_INFO_BYTES_MAX, GROUP_INVITE_BYTES_MAX, GROUP_MEMBERS_MAX,
        GROUP_TITLE_BYTES_MAX,
    },
    message::group::{
        Group, GroupAction, GroupCreate, GroupEdit, GroupEvent, GroupGet, GroupRules, Member, Role,
    },
    next_frame,
};

fn route() -> RouteHeader {
    RouteHeader {
        seq: Seq(7),
        msg_id: MsgId::new_v7(1_790_000_000_000, 5),
        conv: 99,
        conv_kind: ConvKind::GROUP,
        ..RouteHeader::default()
    }
}

fn members(count: usize) -> Vec<Member> {
    let member = |number: u64| Member {
        user: UserId(number + 1),
        joined_s: 1_790_000_000,
        role: Role((number % 3) as u8),
    };
    (0..count as u64).map(member).collect()
}

#[test]
fn requests_read_back_with_their_headers() {
    let (mut encoder, mut out) = (Encoder::new(), Vec::new());
    let create = GroupCreate {
        members: vec![UserId(2), UserId(3)],
        title: "trip",
        sealed_info: b"sealed",
        rules: GroupRules::ADMINS_SEND | GroupRules::ADMINS_ADD,
        max_members: 1_024,
        group_type: 4,
    };
    encoder.group_create(&mut out, Flags::RETRY, 5, &route(), &create);
    let frame = next_frame(&out, usize::MAX).expect("valid").expect("whole");
    assert_eq!(frame.known_op(), Some(Op::GroupCreate));
    assert!(frame.flags().contains(Flags::RETRY) && frame.corr() == 5);
    assert_eq!(frame.route(), Some(route()));
    assert_eq!(GroupCreate::decode(frame.body()), Ok(create));

    let edits = [
        GroupEdit::default(),
        GroupEdit {
            action: GroupAction::SET_ROLE,
            members: members(3),
            title: Some(""),
            sealed_info: Some(b""),
            rules: GroupRules::ALL,
            invite: Some(""),
        },
    ];
    for edit in edits {
        out.clear();
        encoder.group_edit(&mut out, Flags::NONE, 6, &route(), &edit);
        assert_eq!(GroupEdit::decode(&out[ROUTE_END..]), Ok(edit));
    }
    let get = GroupGet {
        group: GroupId(99),
        known_epoch: 3,
    };
    out.clear();
    encoder.group_get(&mut out, 7, &get);
    assert_eq!(GroupGet::decode(&out[BASE_END..]), Ok(get));
}

#[test]
fn the_largest_group_and_event_fit_into_a_frame_to_a_client() {
    let (mut encoder, mut out) = (Encoder::new(), Vec::new());
    let (title, info) = (
        "t".repeat(GROUP_TITLE_BYTES_MAX),
        vec![7; GROUP_INFO_BYTES_MAX],
    );
    let invite = "i".repeat(GROUP_INVITE_BYTES_MAX);
    let group = Group {
        group: GroupId(99),
        epoch: 12,
        members: Some(members(GROUP_MEMBERS_MAX)),
        title: &title,
        sealed_info: &info,
        rules: GroupRules::ADMINS_EDIT_INFO,
        created_s: 1_790_000_000,
        created_by: UserId(1),
        max_members: 1_024,
        group_type: 1,
        invite: Some(&invite),
    };
    encoder.group(&mut out, 8, false, &group);
    assert!(out.len() <= FRAME_BYTES_TO_CLIENT_MAX);
    assert_eq!(Group::decode(&out[BASE_END..]), Ok(group));
    let event = GroupEvent {
        epoch: 13,
        action: GroupAction::CREATE,
        members: members(GROUP_MEMBERS_MAX),
        title: Some(&title),
        sealed_info: Some(&info),
        rules: GroupRules::ADMINS_EDIT_INFO,
        max_members: 1_024,
        group_type: 3,
        has_invite: true,
    };
    let body = encoder.group_event(&event);
    assert!(body.len() + ROUTE_END <= FRAME_BYTES_TO_CLIENT_MAX);
    assert_eq!(GroupEvent::decode(body), Ok(event));
    // A listing has no members, which is not the same as none.
    out.clear();
    encoder.group(&mut out, 8, true, &Group::default());
    let frame = next_frame(&out, usize::MAX).expect("valid").expect("whole");
    assert!(frame.flags().contains(Flags::MORE | Flags::REPLY));
    assert_eq!(Group::decode(frame.body()), Ok(Group::default()));
}

#[test]
fn what_is_over_a_bound_is_refused() {
    let (mut encoder, mut out) = (Encoder::new(), Vec::new());
    let title = "t".repeat(GROUP_TITLE_BYTES_MAX + 1);
    let info = vec![7; GROUP_INFO_BYTES_MAX + 1];
    let invite = "i".repeat(GROUP_INVITE_BYTES_MAX + 1);
    let creates = [
        GroupCreate {
            members: vec![UserId(1); GROUP_MEMBERS_MAX + 1],
            ..GroupCreate::default()
        },
        GroupCreate {
            title: &title,
            ..GroupCreate::default()
        },
        GroupCreate {
            sealed_info: &info,
            ..GroupCreate::default()
        },
    ];
    for create in creates {
        out.clear();
        encoder.group_create(&mut out, Flags::NONE, 1, &route(), &create);
        let read = GroupCreate::decode(&out[ROUTE_END..]);
        assert_eq!(read, Err(BodyError::TooLong));
    }
    let edits = [
        GroupEdit {
            members: members(GROUP_MEMBERS_MAX + 1),
            ..GroupEdit::default()
        },
        GroupEdit {
            title: Some(&title),
            ..GroupEdit::default()
        },
        GroupEdit {
            sealed_info: Some(&info),
            ..GroupEdit::default()
        },
        GroupEdit {
            invite: Some(&invite),
            ..GroupEdit::default()
        },
    ];
    for edit in edits {
        out.clear();
        encoder.group_edit(&mut out, Flags::NONE, 1, &route(), &edit);
        let read = GroupEdit::decode(&out[ROUTE_END..]);
        assert_eq!(read, Err(BodyError::TooLong));
    }
}
