use super::*;
use crate::{ShardConfig, ShardId};

fn restrictions(blocked: &[u64]) -> Restrictions {
    Restrictions {
        privacy: Privacy {
            last_seen: Who::CONTACTS,
            online: Who::NOBODY,
            hide_read: true,
            profile: Who::EVERYONE,
            group_add: Who::CONTACTS,
            findable: Who::NOBODY,
        },
        blocked: blocked.iter().copied().map(UserId).collect(),
        contacts: Vec::new(),
        version: 7,
    }
}

fn record(value: Bytes) -> Record {
    Record {
        key: user_key(UserId(1)),
        value,
        version: 7,
    }
}

#[test]
fn a_record_reads_back_and_another_does_not() {
    for blocked in [&[][..], &[3], &[3, 5, u64::MAX - 1]] {
        let it = restrictions(blocked);
        let value = it.encode();
        assert_eq!(value.len(), 3 + 8 * blocked.len());
        assert_eq!(Restrictions::decode(&record(value)), Some(it));
    }
    // The bytes as they are stored: format, then 1 01 10 00 01 10, then who is blocked.
    let value = restrictions(&[3]).encode();
    assert_eq!(&value[..], b"\x01\x05\x86\0\0\0\0\0\0\0\x03");
    for bad in [&b""[..], b"\x01\x00", b"\x02\0\0", b"\x01\0\0\x01"] {
        let bad = record(Bytes::copy_from_slice(bad));
        assert_eq!(Restrictions::decode(&bad), None, "{bad:?}");
    }
    assert_eq!(restricted_user(&user_key(UserId(9))), Some(UserId(9)));
    assert_eq!(restricted_user(b"short"), None);
}

#[test]
fn settings_decide_who_is_allowed() {
    let mut it = restrictions(&[3]);
    it.contacts = vec![UserId(3), UserId(4)];
    assert!(it.blocks(UserId(3)) && !it.blocks(UserId(4)));
    assert!(it.allows(Who::EVERYONE, UserId(9)));
    assert!(it.allows(Who::CONTACTS, UserId(4)) && !it.allows(Who::CONTACTS, UserId(9)));
    assert!(!it.allows(Who::NOBODY, UserId(4)) && !it.allows(Who(3), UserId(4)));
    assert!(it.names_contacts() && !it.is_default());
    assert!(Restrictions::default().is_default());
}

#[test]
fn the_cache_is_bounded_and_keeps_what_is_asked_for() {
    let mut config = ShardConfig::new(ShardId(0), 1);
    config.restricted = (1..=1_000).map(UserId).collect();
    let room = 40 * restrictions(&[1, 2]).weight();
    config.limits.people_cache_bytes = room;
    let mut people = People::new(&config);
    assert!(people.is_restricted(UserId(1)) && !people.is_restricted(UserId(1_001)));
    assert!(people.is_known(UserId(1_001)) && !people.is_known(UserId(1)));
    people.keep(UserId(1), restrictions(&[1, 2]));
    for user in 2..=1_000 {
        people.keep(UserId(user), restrictions(&[1, 2]));
        people.touch(UserId(1));
        assert!(people.cached_bytes() <= room);
    }
    assert!(people.is_known(UserId(1)), "it is asked for");
    assert!(people.is_known(UserId(1_000)) && !people.is_known(UserId(2)));
    people.forget(UserId(1), false);
    people.forget(UserId(1_000), true);
    assert!(people.is_known(UserId(1)), "it has the defaults now");
    assert!(!people.is_known(UserId(1_000)));
}

/// One that is larger than the cache is kept until the next comes: somebody waits for it.
#[test]
fn what_was_read_last_is_there_however_large() {
    let mut config = ShardConfig::new(ShardId(0), 1);
    config.restricted = vec![UserId(1), UserId(2)];
    config.limits.people_cache_bytes = 10;
    let mut people = People::new(&config);
    people.keep(UserId(1), restrictions(&[1]));
    assert!(people.is_known(UserId(1)));
    people.keep(UserId(2), restrictions(&[1]));
    assert!(people.is_known(UserId(2)));
}
