//! Presence, contacts and settings as values: what the encoder writes today is what it wrote when
//! the golden file was committed, reads back as it was meant, and keeps the bounds.

use crate::{golden::hold, hex};
use portico_wire::{
    BodyError, Flags, Op, RouteHeader,
    encode::{Encoder, people::put_signal},
    fb,
    frame::{BASE_END, ConvKind, signal_kind},
    ids::UserId,
    limits::{CONTACT_EDITS_MAX, CONTACT_NAME_BYTES_MAX, CONTACTS_PAGE_MAX, PRESENCE_SUBS_MAX},
    message::people::{
        Contact, ContactChange, ContactEdit, Contacts, ContactsEdit, ContactsGet, Presence,
        PresenceItem, PresenceState, PresenceSub, Privacy, Who,
    },
    next_frame,
};
use proptest::{collection::vec, prelude::*};

const USER: UserId = UserId(0x0102_0304_0506_0708);
const OTHER: UserId = UserId(0x1112_1314_1516_1718);

fn sub() -> PresenceSub {
    PresenceSub {
        add: vec![USER, OTHER],
        remove: vec![UserId(7)],
    }
}

fn presence() -> Presence {
    let item = |user, last_seen_s, state| PresenceItem {
        user,
        last_seen_s,
        state,
    };
    Presence {
        items: vec![
            item(USER, 0, PresenceState::Online),
            item(OTHER, 1_790_000_040, PresenceState::Offline),
            item(UserId(7), 0, PresenceState::Away),
        ],
    }
}

fn edit() -> ContactsEdit<'static> {
    let edit = |user, change, sealed_name| ContactEdit {
        user,
        change,
        sealed_name,
    };
    ContactsEdit {
        edits: vec![
            edit(USER, ContactChange::SET, &b"sealed"[..]),
            edit(OTHER, ContactChange::BLOCK, b""),
        ],
    }
}

fn contacts() -> Contacts<'static> {
    Contacts {
        contacts: vec![
            Contact {
                user: USER,
                sealed_name: b"sealed",
                added_s: 1_790_000_000,
                blocked: false,
            },
            Contact {
                user: OTHER,
                blocked: true,
                ..Contact::default()
            },
        ],
        more: true,
    }
}

const PRIVACY: Privacy = Privacy {
    last_seen: Who::CONTACTS,
    online: Who::NOBODY,
    hide_read: true,
    profile: Who::CONTACTS,
    group_add: Who::NOBODY,
    findable: Who::NOBODY,
};

#[test]
fn what_is_written_has_its_bytes_and_reads_back() {
    let mut encoder = Encoder::new();
    let mut frames = Vec::new();
    let mut add = |name: &'static str, op: Op, flags: Flags, put: &mut dyn FnMut(&mut Vec<u8>)| {
        let mut bytes = Vec::new();
        put(&mut bytes);
        let frame = next_frame(&bytes, bytes.len()).expect(name).expect(name);
        assert_eq!(frame.known_op(), Some(op), "{name}");
        assert_eq!(frame.flags(), flags, "{name}");
        frames.push((name, bytes));
    };
    let e = &mut encoder;
    add("PRESENCE_SUB", Op::PresenceSub, Flags::NONE, &mut |out| {
        e.presence_sub(out, 5, &sub());
    });
    add("PRESENCE reply", Op::Presence, Flags::REPLY, &mut |out| {
        e.presence(out, 5, &presence().items);
    });
    add(
        "PRESENCE push",
        Op::Presence,
        Flags::EPHEMERAL,
        &mut |out| {
            e.presence(out, 0, &presence().items);
        },
    );
    add("CONTACTS_EDIT", Op::ContactsEdit, Flags::NONE, &mut |out| {
        e.contacts_edit(out, 6, &edit());
    });
    let get = ContactsGet {
        after: OTHER,
        limit: 3,
        blocked: true,
    };
    add("CONTACTS_GET", Op::ContactsGet, Flags::NONE, &mut |out| {
        e.contacts_get(out, 7, &get);
    });
    add("CONTACTS", Op::Contacts, Flags::REPLY, &mut |out| {
        e.contacts(out, 7, &contacts());
    });
    add("PRIVACY_SET", Op::PrivacySet, Flags::NONE, &mut |out| {
        e.privacy_set(out, 8, &PRIVACY);
    });
    add("PRIVACY", Op::Privacy, Flags::REPLY, &mut |out| {
        e.privacy(out, 9, &PRIVACY);
    });
    let route = RouteHeader {
        conv: OTHER.0,
        conv_kind: ConvKind::DIRECT,
        kind: signal_kind::TYPING,
        ttl_s: 6,
        ..RouteHeader::default()
    };
    let signal = Flags::ROUTED | Flags::EPHEMERAL;
    add("SIGNAL", Op::Signal, signal, &mut |out| {
        put_signal(out, 0, &route);
    });
    let line = |(name, bytes): &(&str, Vec<u8>)| format!("{name}\t{}", hex(bytes));
    let lines: Vec<String> = frames.iter().map(line).collect();
    let head = "# name, tab, the whole frame in hexadecimal, as the encoder writes it.\n";
    hold("people.txt", head, &lines);

    let body = |name: &str| {
        let (_, bytes) = frames.iter().find(|(at, _)| *at == name).expect(name);
        &bytes[BASE_END..]
    };
    assert_eq!(PresenceSub::decode(body("PRESENCE_SUB")), Ok(sub()));
    for name in ["PRESENCE reply", "PRESENCE push"] {
        assert_eq!(Presence::decode(body(name)), Ok(presence()), "{name}");
    }
    assert_eq!(ContactsEdit::decode(body("CONTACTS_EDIT")), Ok(edit()));
    assert_eq!(ContactsGet::decode(body("CONTACTS_GET")), Ok(get));
    assert_eq!(Contacts::decode(body("CONTACTS")), Ok(contacts()));
    for name in ["PRIVACY_SET", "PRIVACY"] {
        assert_eq!(Privacy::decode(body(name)), Ok(PRIVACY), "{name}");
    }
}

#[test]
fn what_is_absent_has_its_default() {
    let empty = [0; 4];
    assert_eq!(PresenceSub::decode(&empty), Ok(PresenceSub::default()));
    assert_eq!(Presence::decode(&empty), Ok(Presence::default()));
    assert_eq!(ContactsEdit::decode(&empty), Err(BodyError::Missing));
    let get = ContactsGet {
        after: UserId(0),
        limit: CONTACTS_PAGE_MAX,
        blocked: false,
    };
    assert_eq!(ContactsGet::decode(&empty), Ok(get));
    assert_eq!(Contacts::decode(&empty), Ok(Contacts::default()));
    assert_eq!(Privacy::decode(&empty), Ok(Privacy::default()));
    for body in [&b""[..], b"\0", b"\xff\xff\xff\xff"] {
        assert_eq!(PresenceSub::decode(body), Err(BodyError::Malformed));
        assert_eq!(ContactsEdit::decode(body), Err(BodyError::Malformed));
        assert_eq!(Privacy::decode(body), Err(BodyError::Malformed));
    }
}

#[test]
fn lists_and_names_are_bounded() {
    let mut encoder = Encoder::new();
    let mut written = |put: &dyn Fn(&mut Encoder, &mut Vec<u8>)| {
        let mut out = Vec::new();
        put(&mut encoder, &mut out);
        out.split_off(BASE_END)
    };
    for (add, remove, fits) in [
        (PRESENCE_SUBS_MAX, PRESENCE_SUBS_MAX, true),
        (PRESENCE_SUBS_MAX + 1, 0, false),
        (0, PRESENCE_SUBS_MAX + 1, false),
    ] {
        let sub = PresenceSub {
            add: vec![USER; add],
            remove: vec![USER; remove],
        };
        let body = written(&|e, out| e.presence_sub(out, 1, &sub));
        let due = fits.then_some(sub).ok_or(BodyError::TooLong);
        assert_eq!(PresenceSub::decode(&body), due);
    }
    let name = [7; CONTACT_NAME_BYTES_MAX + 1];
    for (count, name, fits) in [
        (CONTACT_EDITS_MAX, &name[1..], true),
        (CONTACT_EDITS_MAX + 1, &name[1..], false),
        (1, &name[..], false),
    ] {
        let edit = ContactEdit {
            user: USER,
            change: ContactChange::SET,
            sealed_name: name,
        };
        let edit = ContactsEdit {
            edits: vec![edit; count],
        };
        let body = written(&|e, out| e.contacts_edit(out, 1, &edit));
        let due = fits.then_some(edit.clone()).ok_or(BodyError::TooLong);
        assert_eq!(ContactsEdit::decode(&body), due);
    }
    // The longest page that a client is sent still verifies there.
    let page = Contacts {
        contacts: vec![
            Contact {
                user: USER,
                sealed_name: &name[..70],
                added_s: 1,
                blocked: false,
            };
            usize::from(CONTACTS_PAGE_MAX)
        ],
        more: false,
    };
    let body = written(&|e, out| e.contacts(out, 1, &page));
    assert_eq!(Contacts::decode(&body), Ok(page));
}

/// The numbers that the crate names by hand are those of the schema.
#[test]
fn kinds_agree_with_the_schema() {
    let changes = [
        ContactChange::SET,
        ContactChange::REMOVE,
        ContactChange::BLOCK,
        ContactChange::UNBLOCK,
    ];
    let changes = changes.map(|change| fb::ContactChange(change.0));
    assert_eq!(changes, fb::ContactChange::ENUM_VALUES);
    let whos = [Who::EVERYONE, Who::CONTACTS, Who::NOBODY].map(|who| fb::Who(who.0));
    assert_eq!(whos, fb::Who::ENUM_VALUES);
    assert!(Who::NOBODY.is_known() && !Who(3).is_known());
    for state in fb::PresenceState::ENUM_VALUES {
        assert_eq!(PresenceState::from_u8(state.0).to_u8(), state.0);
    }
    assert_eq!(PresenceState::from_u8(3), PresenceState::Offline);
}

proptest! {
    #[test]
    fn presence_reads_back(
        items in vec((any::<u64>(), any::<u32>(), 0..3_u8), 0..PRESENCE_SUBS_MAX),
        corr: u32,
    ) {
        let items = items.into_iter().map(|(user, last_seen_s, state)| PresenceItem {
            user: UserId(user),
            last_seen_s,
            state: PresenceState::from_u8(state),
        });
        let items: Vec<_> = items.collect();
        let mut out = Vec::new();
        Encoder::new().presence(&mut out, corr, &items);
        prop_assert_eq!(Presence::decode(&out[BASE_END..]), Ok(Presence { items }));
    }

    #[test]
    fn nothing_makes_the_reader_panic(body in vec(any::<u8>(), 0..200)) {
        let _ = PresenceSub::decode(&body);
        let _ = Presence::decode(&body);
        let _ = ContactsEdit::decode(&body);
        let _ = ContactsGet::decode(&body);
        let _ = Contacts::decode(&body);
        let _ = Privacy::decode(&body);
    }
}
