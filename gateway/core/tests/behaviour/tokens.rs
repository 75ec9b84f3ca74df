//! A session lasts as long as its token, a newer token extends it, and a revocation ends it at once.

use crate::support::{assert_idle, error, ops, reply, user_at, world};
use portico_core::{Counter, Limits, Revocation, testing::World};
use portico_wire::{
    CloseCode, ErrorCode, Op,
    encode::{Encoder, put_body, put_ping},
    frame::Flags,
    ids::{DeviceId, UserId},
    message::{Hello, Reauth},
};

fn now_s(world: &World) -> u64 {
    world.now().wall_us / 1_000_000
}

/// User 1, device 1, with a token that is good for so long.
fn login(world: &mut World, ttl_s: u64) -> usize {
    let token = format!("1:1:{}", now_s(world) + ttl_s);
    let client = world.connect(0);
    let hello = Hello {
        token: Some(&token),
        ..Hello::default()
    };
    world.hello(client, &hello);
    world.run();
    client
}

fn reauth(world: &mut World, client: usize, corr: u32, token: &str) {
    let mut bytes = Vec::new();
    Encoder::new().reauth(&mut bytes, corr, &Reauth { token });
    world.write(client, &bytes);
    world.run();
}

/// Lets time pass while the client pings.
fn live(world: &mut World, client: usize, seconds: u64) {
    for _ in 0..seconds {
        if world.is_connected(client) {
            let mut bytes = Vec::new();
            put_ping(&mut bytes, 0, 60);
            world.write(client, &bytes);
            world.run();
        }
        world.advance(1_000);
        world.run();
    }
}

fn revocation(user: u64, device: Option<u16>, epoch: u32) -> Revocation {
    Revocation {
        user: UserId(user),
        device: device.map(DeviceId),
        epoch,
    }
}

#[test]
fn a_session_ends_with_its_token() {
    let mut world = world(1);
    let client = login(&mut world, 100);
    let got = world.take(client);
    assert_eq!(got[0].welcome().expect("WELCOME").auth_ttl_s, 100);
    live(&mut world, client, 99);
    assert!(world.is_connected(client));
    live(&mut world, client, 3);
    assert_eq!(world.close_code(client), Some(CloseCode::TOKEN_EXPIRED));
    assert_eq!(world.count(Counter::ClosedTokenExpired), 1);
    assert_eq!(world.residue(), []);
}

/// The wheel is 512 s wide; a token that lives for days takes many rounds.
#[test]
fn a_long_token_ends_on_time_too() {
    let mut world = world(1);
    let client = login(&mut world, 5_000);
    live(&mut world, client, 4_999);
    assert!(world.is_connected(client));
    live(&mut world, client, 3);
    assert_eq!(world.close_code(client), Some(CloseCode::TOKEN_EXPIRED));
}

/// It has what it asked for before the end, also when it is silent meanwhile.
#[test]
fn a_token_that_ends_at_once_is_let_in_and_closed_in_order() {
    let mut world = world(1);
    let client = login(&mut world, 1);
    world.advance(3_000);
    world.run();
    let got = world.take(client);
    assert_eq!(ops(&got), [Op::Welcome, Op::Synced, Op::Close]);
    assert_eq!(world.close_code(client), Some(CloseCode::TOKEN_EXPIRED));
}

#[test]
fn without_an_end_it_lasts() {
    let mut world = world(1);
    let client = world.login(1, 1);
    let got = world.take(client);
    assert_eq!(got[0].welcome().expect("WELCOME").auth_ttl_s, 0);
    live(&mut world, client, 2_000);
    assert!(world.is_connected(client));
}

#[test]
fn a_newer_token_extends_the_session() {
    let mut world = world(1);
    let client = login(&mut world, 60);
    live(&mut world, client, 50);
    world.take(client);
    let token = format!("1:1:{}", now_s(&world) + 300);
    reauth(&mut world, client, 9, &token);
    let got = world.take(client);
    assert_eq!(reply(&got, 9).op(), Op::Done);
    assert_eq!(reply(&got, 9).frame().aux(), 300, "the new time to live");
    assert_eq!(world.count(Counter::Renewed), 1);
    live(&mut world, client, 299);
    assert!(world.is_connected(client));
    // Without an answer it works as well, and a token without an end makes a session without one.
    reauth(&mut world, client, 0, "1:1");
    assert_eq!(world.count(Counter::Renewed), 2);
    live(&mut world, client, 1_000);
    assert!(world.is_connected(client));
    assert_idle(&world);
}

#[test]
fn a_token_of_somebody_else_changes_nothing() {
    let mut world = world(1);
    let client = login(&mut world, 100);
    world.take(client);
    let until = now_s(&world) + 9_000;
    for (corr, token, code) in [
        (2, format!("2:1:{until}"), ErrorCode::FORBIDDEN),
        (3, format!("1:2:{until}"), ErrorCode::FORBIDDEN),
        (4, "forged".to_owned(), ErrorCode::UNAUTHENTICATED),
        (5, "expired".to_owned(), ErrorCode::TOKEN_EXPIRED),
    ] {
        reauth(&mut world, client, corr, &token);
        let got = world.take(client);
        assert_eq!(error(&got, corr), code, "{token}");
    }
    assert_eq!(world.count(Counter::RefusedToken), 4);
    assert_eq!(world.count(Counter::LoginWrongUser), 1);
    assert_eq!(world.count(Counter::Renewed), 0);
    live(&mut world, client, 102);
    assert_eq!(world.close_code(client), Some(CloseCode::TOKEN_EXPIRED));
}

#[test]
fn a_revoked_device_is_closed_when_it_shows_its_token() {
    let mut world = world(1);
    let client = login(&mut world, 100);
    reauth(&mut world, client, 2, "revoked");
    assert_eq!(world.close_code(client), Some(CloseCode::DEVICE_REVOKED));
    assert_eq!(world.residue(), []);
}

#[test]
fn tokens_that_change_nothing_are_counted_and_end_the_connection() {
    let mut world = world(1);
    let client = login(&mut world, 100);
    let same = format!("1:1:{}", now_s(&world) + 100);
    for corr in 2..20 {
        reauth(&mut world, client, corr, &same);
    }
    assert_eq!(world.close_code(client), Some(CloseCode::PROTOCOL_ERROR));
    let done = world.take(client);
    let done = done.iter().filter(|got| got.op() == Op::Done).count();
    assert_eq!(done, 10);
}

#[test]
fn a_renewal_keeps_to_the_pace_of_logins() {
    let limits = Limits {
        logins_per_s: 1,
        ..Limits::default()
    };
    let mut world = World::new(1, limits);
    let client = login(&mut world, 1_000);
    world.take(client);
    let mut refused = 0;
    for corr in 2..40 {
        let token = format!("1:1:{}", now_s(&world) + 1_000 + u64::from(corr));
        reauth(&mut world, client, corr, &token);
        let got = world.take(client);
        if let Some(error) = reply(&got, corr).error_reply() {
            assert_eq!(error.code, ErrorCode::RATE_LIMITED);
            assert!(error.retry_after_ms > 0);
            refused += 1;
        }
    }
    assert!(refused > 0);
    assert!(world.is_connected(client));
}

#[test]
fn a_renewal_without_a_token_is_malformed() {
    let mut world = world(1);
    let client = login(&mut world, 100);
    world.take(client);
    let mut bytes = Vec::new();
    put_body(&mut bytes, Op::Reauth as u8, Flags::NONE, 7, 0, &[1, 2, 3]);
    world.write(client, &bytes);
    world.run();
    let got = world.take(client);
    assert_eq!(error(&got, 7), ErrorCode::MALFORMED);
    let long = "x".repeat(portico_wire::limits::TOKEN_BYTES_MAX + 1);
    reauth(&mut world, client, 8, &long);
    let got = world.take(client);
    assert_eq!(error(&got, 8), ErrorCode::MALFORMED);
}

#[test]
fn a_revocation_ends_the_devices_sessions_and_nobody_elses() {
    for shards in 1..=3 {
        let mut world = world(shards);
        let (user, other) = (user_at(0, shards, 0), user_at(0, shards, 1));
        let clients = [
            world.login(user, 1),
            world.login(user, 2),
            world.login(other, 1),
        ];
        world.revoke(revocation(user, Some(1), 1));
        world.run();
        let open = clients.map(|client| world.is_connected(client));
        assert_eq!(open, [false, true, true]);
        let code = Some(CloseCode::DEVICE_REVOKED);
        assert_eq!(world.close_code(clients[0]), code);
        world.revoke(revocation(user, None, 2));
        world.run();
        assert_eq!(world.close_code(clients[1]), code);
        assert!(world.is_connected(clients[2]));
        assert_eq!(world.count(Counter::RevokedLive), 2);
    }
}

/// The token was good when it was looked at, on another shard; meanwhile the device is revoked.
#[test]
fn a_login_that_is_on_its_way_does_not_slip_through() {
    let user = user_at(1, 2, 0);
    let login = |world: &mut World, epoch: u32| {
        let token = format!("{user}:1:0:{epoch}");
        let client = world.connect(0);
        let hello = Hello {
            token: Some(&token),
            ..Hello::default()
        };
        world.hello(client, &hello);
        world.run();
        client
    };
    let mut world = world(2);
    world.revoke(revocation(user, Some(1), 5));
    let late = login(&mut world, 4);
    assert_eq!(world.close_code(late), Some(CloseCode::DEVICE_REVOKED));
    assert_eq!(world.count(Counter::LoginRevoked), 1);
    // Judged with the revocation in mind: linked anew, and welcome.
    let anew = login(&mut world, 5);
    assert!(world.is_connected(anew));
}
