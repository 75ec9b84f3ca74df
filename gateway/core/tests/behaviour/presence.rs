//! Presence: who watches learns how others are seen, once a second at most and the latest; nobody
//! learns what the other does not allow; a storm of reconnects reads nothing from the store.

use crate::support::{error, reply, user_at, world};
use portico_core::{
    Counter, Limits,
    testing::{Bare, CmdKind, Got, START_US, World},
};
use portico_wire::{
    CloseCode, ErrorCode, Op,
    encode::{Encoder, put_ping, put_plain},
    frame::Flags,
    ids::UserId,
    limits::PRESENCE_SUBS_MAX,
    message::{
        ClientState, Close,
        people::{ContactChange, Presence, PresenceItem, PresenceState, PresenceSub, Privacy, Who},
    },
};

const ONLINE: PresenceState = PresenceState::Online;
const AWAY: PresenceState = PresenceState::Away;
const OFFLINE: PresenceState = PresenceState::Offline;

fn item(user: u64, state: PresenceState, last_seen_s: u32) -> PresenceItem {
    PresenceItem {
        user: UserId(user),
        last_seen_s,
        state,
    }
}

fn items(got: &Got) -> Vec<PresenceItem> {
    assert_eq!(got.op(), Op::Presence, "{got:?}");
    let mut items = Presence::decode(got.body()).expect("valid").items;
    items.sort_unstable_by_key(|it| it.user);
    items
}

/// The states that the reply to a PRESENCE_SUB has.
fn replied(got: &[Got], corr: u32) -> Vec<PresenceItem> {
    items(reply(got, corr))
}

/// What was told of changes, a list per frame.
fn told(got: &[Got]) -> Vec<Vec<PresenceItem>> {
    let pushed = got
        .iter()
        .filter(|it| it.op() == Op::Presence && it.corr() == 0);
    pushed.map(items).collect()
}

/// The minute in which the world is now.
fn minute_s(world: &World) -> u32 {
    (world.now().wall_us / 60_000_000 * 60) as u32
}

/// Lets time pass in which these clients show that they live.
fn live(world: &mut World, clients: &[usize], ms: u64) {
    let end_us = world.now().mono_us + ms * 1_000;
    while world.now().mono_us < end_us {
        for client in clients {
            let mut bytes = Vec::new();
            put_ping(&mut bytes, 0, 0);
            world.write(*client, &bytes);
        }
        let left_ms = (end_us - world.now().mono_us) / 1_000;
        world.advance(left_ms.min(50_000));
    }
}

fn close(world: &mut World, client: usize, code: CloseCode) {
    let mut bytes = Vec::new();
    Encoder::new().close(&mut bytes, &Close::new(code, ""));
    world.write(client, &bytes);
    world.run();
}

#[test]
fn a_watcher_learns_the_state_and_every_change() {
    for shards in [1, 2] {
        let mut world = world(shards);
        let (alice, bob) = (user_at(0, shards, 0), user_at(shards - 1, shards, 1));
        let a = world.login(alice, 1);
        let corr = world.watch(a, &[bob], &[]);
        let got = world.run_and_take(a);
        assert_eq!(replied(&got, corr), [item(bob, OFFLINE, 0)]);
        let b = world.login(bob, 1);
        world.advance(2_000);
        assert_eq!(told(&world.take(a)), [[item(bob, ONLINE, 0)]]);
        world.advance(10_000);
        world.set_state(b, ClientState::Away);
        world.advance(2_000);
        assert_eq!(told(&world.take(a)), [[item(bob, AWAY, 0)]]);
        world.advance(10_000);
        // Another device in the foreground.
        let b2 = world.login(bob, 2);
        world.advance(2_000);
        assert_eq!(told(&world.take(a)), [[item(bob, ONLINE, 0)]]);
        world.advance(10_000);
        let left = minute_s(&world);
        world.cut(b2);
        world.cut(b);
        world.advance(18_000);
        // The grace; the one who was away counts as that meanwhile.
        let during = told(&world.take(a));
        assert!(during.iter().flatten().all(|it| it.state != OFFLINE));
        world.advance(10_000);
        let got = told(&world.take(a));
        assert_eq!(got, [[item(bob, OFFLINE, left)]]);
        let corr = world.watch(a, &[bob], &[]);
        let got = world.run_and_take(a);
        assert_eq!(replied(&got, corr), [item(bob, OFFLINE, left)]);
        world.cut(a);
        world.advance(1_000);
        assert!(!world.residue().iter().any(|(name, _)| {
            *name == "portico_presence_interests" || *name == "portico_presence_subscriptions"
        }));
        world.check_invariants();
    }
}

#[test]
fn a_resume_within_the_grace_is_not_seen_and_a_good_bye_is_at_once() {
    let mut world = world(2);
    let (a, b) = (world.login(1, 1), world.login(2, 1));
    world.watch(a, &[2], &[]);
    world.run_and_take(a);
    let mut b = b;
    for _ in 0..3 {
        world.cut(b);
        live(&mut world, &[a], 15_000);
        b = world.login(2, 1);
        live(&mut world, &[a, b], 15_000);
    }
    live(&mut world, &[a, b], 60_000);
    assert_eq!(told(&world.take(a)), Vec::<Vec<_>>::new());
    let left = minute_s(&world);
    close(&mut world, b, CloseCode::NORMAL);
    world.advance(1_500);
    assert_eq!(told(&world.take(a)), [[item(2, OFFLINE, left)]]);
}

#[test]
fn changes_come_one_frame_a_second_and_the_latest_wins() {
    let mut world = world(2);
    let a = world.login(1, 1);
    let users: Vec<u64> = (2..42).collect();
    world.watch(a, &users, &[]);
    world.run();
    world.take(a);
    let clients: Vec<_> = users.iter().map(|user| world.login(*user, 1)).collect();
    for round in 0..30 {
        for client in &clients {
            let state = [ClientState::Away, ClientState::Foreground][round % 2];
            world.set_state(*client, state);
        }
        world.advance(1_000);
    }
    let frames = told(&world.take(a));
    assert!(frames.len() <= 31, "{}", frames.len());
    // One change of a target in five seconds.
    let changes = frames.iter().flatten().filter(|it| it.user == UserId(2));
    assert!((2..=7).contains(&changes.count()));
    world.advance(6_000);
    let last = told(&world.take(a));
    let now = last.iter().flatten().chain(frames.iter().flatten());
    assert!(now.clone().count() > users.len());
    for user in users {
        let mut seen = frames.iter().chain(&last).flatten();
        let latest = seen.rfind(|it| it.user == UserId(user));
        assert_eq!(latest.map(|it| it.state), Some(ONLINE));
    }
}

#[test]
fn five_hundred_may_be_watched_and_removing_makes_room() {
    let mut world = world(2);
    let a = world.login(1, 1);
    let all: Vec<u64> = (2..2 + PRESENCE_SUBS_MAX as u64).collect();
    let corr = world.watch(a, &all, &[]);
    assert_eq!(replied(&world.run_and_take(a), corr).len(), all.len());
    let one_more = all.len() as u64 + 2;
    let corr = world.watch(a, &[one_more], &[]);
    let got = world.run_and_take(a);
    assert_eq!(error(&got, corr), ErrorCode::QUOTA);
    // What is there already takes no room, and what is removed gives some.
    let corr = world.watch(a, &[2, 3], &[]);
    assert_eq!(replied(&world.run_and_take(a), corr).len(), 2);
    let corr = world.watch(a, &[one_more], &[2]);
    assert_eq!(replied(&world.run_and_take(a), corr).len(), 1);
    let list: Vec<u64> = (2..=one_more).collect();
    let corr = world.watch(a, &list, &list);
    assert_eq!(error(&world.run_and_take(a), corr), ErrorCode::QUOTA);
    let corr = world.watch(a, &[0], &[]);
    assert_eq!(error(&world.run_and_take(a), corr), ErrorCode::BAD_ARGUMENT);
    world.check_invariants();
    world.watch(a, &[], &all);
    world.watch(a, &[], &[one_more]);
    world.run();
    assert_eq!(world.count(Counter::RefusedQuota), 2);
    let login = world.login(3, 1);
    world.advance(3_000);
    assert!(told(&world.take(a)).is_empty(), "nobody is watched");
    world.cut(login);
    world.cut(a);
    world.advance(30_000);
    world.check_invariants();
}

#[test]
fn the_shard_has_a_bound_for_all_subscriptions() {
    let limits = Limits {
        presence_subs_max: PRESENCE_SUBS_MAX,
        ..Limits::default()
    };
    let mut world = World::new(1, limits);
    let (a, b) = (world.login(1, 1), world.login(2, 1));
    let all: Vec<u64> = (10..10 + PRESENCE_SUBS_MAX as u64).collect();
    let corr = world.watch(a, &all, &[]);
    assert_eq!(replied(&world.run_and_take(a), corr).len(), all.len());
    let corr = world.watch(b, &[10], &[]);
    assert_eq!(error(&world.run_and_take(b), corr), ErrorCode::OVERLOADED);
    world.cut(a);
    let corr = world.watch(b, &[10], &[]);
    assert_eq!(replied(&world.run_and_take(b), corr).len(), 1);
}

#[test]
fn the_background_is_told_nothing_until_it_comes_back() {
    let mut world = world(1);
    let a = world.login(1, 1);
    world.watch(a, &[2], &[]);
    world.run();
    world.set_state(a, ClientState::Background);
    world.run();
    world.take(a);
    world.login(2, 1);
    world.advance(10_000);
    assert!(told(&world.take(a)).is_empty());
    world.set_state(a, ClientState::Foreground);
    world.advance(1_000);
    assert_eq!(told(&world.take(a)), [[item(2, ONLINE, 0)]]);
}

#[test]
fn settings_hide_and_so_do_blocks_in_both_directions() {
    for shards in [1, 2] {
        let mut world = world(shards);
        let (alice, bob) = (user_at(0, shards, 0), user_at(shards - 1, shards, 1));
        let (a, b) = (world.login(alice, 1), world.login(bob, 1));
        let watch = |world: &mut World| {
            let corr = world.watch(a, &[bob], &[]);
            replied(&world.run_and_take(a), corr)
        };
        assert_eq!(watch(&mut world), [item(bob, ONLINE, 0)]);
        // Only contacts see it.
        let shy = Privacy {
            online: Who::CONTACTS,
            last_seen: Who::NOBODY,
            ..Privacy::default()
        };
        world.set_privacy(b, &shy);
        world.advance(2_000);
        assert_eq!(told(&world.take(a)), [[item(bob, OFFLINE, 0)]]);
        assert_eq!(watch(&mut world), [item(bob, OFFLINE, 0)]);
        world.edit_contacts(b, &[(alice, ContactChange::SET, b"a")]);
        world.advance(2_000);
        assert_eq!(told(&world.take(a)), [[item(bob, ONLINE, 0)]]);
        world.set_privacy(b, &Privacy::default());
        world.advance(2_000);
        world.take(a);
        // The watched blocks the watcher, and takes it back.
        world.block(b, alice);
        world.advance(2_000);
        assert_eq!(told(&world.take(a)), [[item(bob, OFFLINE, 0)]]);
        assert_eq!(watch(&mut world), [item(bob, OFFLINE, 0)]);
        world.unblock(b, alice);
        world.advance(2_000);
        assert_eq!(told(&world.take(a)), [[item(bob, ONLINE, 0)]]);
        // The watcher blocks the watched, and takes it back.
        world.block(a, bob);
        world.advance(2_000);
        assert_eq!(told(&world.take(a)), [[item(bob, OFFLINE, 0)]]);
        assert_eq!(watch(&mut world), [item(bob, OFFLINE, 0)]);
        world.set_state(b, ClientState::Away);
        world.advance(7_000);
        assert!(told(&world.take(a)).is_empty());
        world.unblock(a, bob);
        world.advance(2_000);
        assert_eq!(told(&world.take(a)), [[item(bob, AWAY, 0)]]);
        // What is hidden stays hidden when it changes.
        world.set_privacy(b, &shy);
        world.edit_contacts(b, &[(alice, ContactChange::REMOVE, b"")]);
        world.advance(7_000);
        world.take(a);
        world.set_state(b, ClientState::Foreground);
        world.advance(7_000);
        world.cut(b);
        world.advance(40_000);
        assert!(told(&world.take(a)).is_empty(), "no change is seen");
        world.check_invariants();
    }
}

#[test]
fn when_somebody_was_last_seen_is_written_behind_and_read_late() {
    let mut world = world(2);
    let b = world.login(2, 1);
    world.advance(1_000);
    let left = minute_s(&world);
    world.cut(b);
    world.advance(70_000);
    assert_eq!(world.count(Counter::LastSeenWrites), 1);
    world.restart(1);
    let a = world.login(1, 1);
    let corr = world.watch(a, &[2, 3], &[]);
    let got = world.run_and_take(a);
    let nothing = [item(2, OFFLINE, 0), item(3, OFFLINE, 0)];
    assert_eq!(replied(&got, corr), nothing);
    live(&mut world, &[a], 60_000);
    assert_eq!(world.count(Counter::LastSeenReads), 0, "they may come back");
    live(&mut world, &[a], 60_000);
    assert_eq!(told(&world.take(a)), [[item(2, OFFLINE, left)]]);
    assert_eq!(world.count(Counter::LastSeenReads), 2);
    // Whoever asks later is answered from memory, or soon.
    let c = world.login(4, 1);
    world.watch(c, &[9], &[]);
    let corr = world.watch(c, &[2], &[]);
    let got = world.run_and_take(c);
    assert_eq!(replied(&got, corr), [item(2, OFFLINE, left)]);
    world.watch(c, &[5], &[]);
    world.advance(1_000);
    assert_eq!(world.count(Counter::LastSeenReads), 3);
}

/// Who comes back before it is written is not written; who is back is not asked for.
#[test]
fn a_storm_of_reconnects_reads_nothing() {
    let users = 200_u64;
    let mut world = world(2);
    let storm = |world: &mut World| {
        let before = world.store.executed_of(CmdKind::ReadRecords);
        let clients: Vec<_> = (1..=users).map(|user| world.login(user, 1)).collect();
        for (at, client) in clients.iter().enumerate() {
            let user = at as u64 + 1;
            let contacts: Vec<u64> = (1..=users).filter(|other| *other != user).collect();
            world.watch(*client, &contacts, &[]);
            if at % 20 == 0 {
                live(world, &clients, 1_000);
            }
        }
        world.advance(5_000);
        let ready = told(&world.take(clients[0]));
        assert!(ready.len() <= 20);
        live(world, &clients, 120_000);
        assert_eq!(world.store.executed_of(CmdKind::ReadRecords), before);
        assert_eq!(world.count(Counter::LastSeenReads), 0);
        let corr = world.watch(clients[0], &[users], &[]);
        let got = world.run_and_take(clients[0]);
        assert_eq!(replied(&got, corr), [item(users, ONLINE, 0)]);
        clients
    };
    // After a start nobody is in memory; then all are cut off at once.
    let clients = storm(&mut world);
    clients.iter().for_each(|client| world.cut(*client));
    storm(&mut world);
    assert_eq!(world.count(Counter::LastSeenWrites), 0);
    world.restart(2);
    storm(&mut world);
    world.check_invariants();
}

/// Everything that could be full is small; nothing breaks, and it is counted.
#[test]
fn who_left_is_remembered_within_bounds() {
    let mut world = World::new(1, Limits::test_min());
    for user in 10..60 {
        let client = world.login(user, 1);
        world.cut(client);
        world.check_invariants();
    }
    assert!((8..=3 * 8 + 1).contains(&world.shard(0).gauges().last_seen));
    world.advance(120_000);
    world.check_invariants();
    let a = world.login(1, 1);
    world.watch(a, &[59, 10], &[]);
    world.advance(100_000);
    let got = world.take(a);
    let seen: Vec<_> = told(&got).into_iter().flatten().collect();
    assert!(
        seen.iter()
            .all(|it| u64::from(it.last_seen_s) >= START_US / 1_000_000 - 60)
    );
    world.cut(a);
    world.advance(200_000);
    world.check_invariants();
}

#[test]
fn a_reader_who_is_behind_is_told_once_and_the_latest() {
    let mut world = World::new(1, Limits::test_min());
    let (a, b) = (world.login(1, 1), world.login(2, 1));
    world.watch(a, &[2], &[]);
    world.run();
    world.take(a);
    world.set_reading(a, false);
    for _ in 0..6 {
        let message = world.message(b, 1, &"x".repeat(900));
        world.post(b, &message);
    }
    world.run();
    world.set_state(b, ClientState::Away);
    world.advance(1_900);
    assert!(world.count(Counter::PresencePutOff) > 0);
    world.set_reading(a, true);
    world.advance(10_000);
    let got = world.take(a);
    assert_eq!(told(&got), [[item(2, AWAY, 0)]]);
}

/// What presence costs a shard, without sockets and store: `cargo test --release -p portico-core
/// --test behaviour -- --ignored --nocapture presence_costs`. Nothing is read from the store meanwhile.
#[test]
#[ignore = "measures, and wants a release build"]
#[expect(
    clippy::disallowed_methods,
    reason = "it is the machine's time that is measured"
)]
fn presence_costs() {
    const USERS: u64 = 20_000;
    const CONTACTS: u64 = 200;
    for shards in [1, 4] {
        let mut bare = Bare::new(shards, USERS as usize);
        let login = std::time::Instant::now();
        for _ in 0..USERS {
            bare.login();
        }
        let login = login.elapsed();
        let mut encoder = Encoder::new();
        let contacts = |user: u64| PresenceSub {
            // Spread over all users and shards.
            add: (1..=CONTACTS)
                .map(|nth| UserId((user + nth * 97) % USERS + 1))
                .collect(),
            remove: Vec::new(),
        };
        let frames: Vec<Vec<u8>> = (1..=USERS)
            .map(|user| {
                let mut frame = Vec::new();
                encoder.presence_sub(&mut frame, 7, &contacts(user));
                frame
            })
            .collect();
        let start = std::time::Instant::now();
        for (at, frame) in frames.iter().enumerate() {
            bare.receive(at as u64 + 1, frame);
            bare.settle();
        }
        let subscribed = start.elapsed();
        assert_eq!(bare.count(Counter::PresenceSubscribed), USERS * CONTACTS);
        // Every user changes at once.
        let mut away = Vec::new();
        put_plain(&mut away, Op::ClientState, Flags::NONE, 0, 1);
        bare.pass_us(10_000_000);
        let start = std::time::Instant::now();
        for user in 1..=USERS {
            bare.receive(user, &away);
        }
        for _ in 0..8 {
            bare.settle();
            bare.pass_us(300_000);
            bare.tick();
        }
        bare.settle();
        let changed = start.elapsed();
        let told = bare.count(Counter::PresenceTold);
        assert_eq!(told, USERS * CONTACTS);
        assert_eq!(bare.count(Counter::LastSeenReads), 0);
        assert_eq!(bare.count(Counter::PeopleReads), 0);
        let per = |time: std::time::Duration, count: u64| time.as_nanos() as u64 / count;
        println!(
            "{shards} shards: login {} ns; subscription {} ns, {} us for {CONTACTS}; \
             change told to one watcher {} ns in {} frames",
            per(login, USERS),
            per(subscribed, USERS * CONTACTS),
            per(subscribed, USERS) / 1_000,
            per(changed, told),
            bare.count(Counter::PresenceFrames),
        );
    }
}

/// Who begins to watch while a change waits to be told is told how that ends.
#[test]
fn a_state_that_was_shown_is_taken_back() {
    let mut world = world(2);
    let (a, c) = (world.login(1, 1), world.login(3, 1));
    world.watch(a, &[2], &[]);
    world.run();
    let b = world.login(2, 1);
    let corr = world.watch(c, &[2], &[]);
    let got = world.run_and_take(c);
    assert_eq!(replied(&got, corr), [item(2, ONLINE, 0)]);
    let left = minute_s(&world);
    close(&mut world, b, CloseCode::NORMAL);
    world.advance(7_000);
    for client in [a, c] {
        let last = told(&world.take(client)).pop();
        assert_eq!(last, Some(vec![item(2, OFFLINE, left)]));
    }
}
