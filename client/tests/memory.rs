//! What an idle session costs, as the kernel counts it: memory of this process before and after,
//! so that what the allocator adds, and what the logins before left in pieces, is in the figure.
//! In a binary of its own, because nothing else may allocate meanwhile.

mod support;

use portico_client::{Login, Now, Phase, Session, SessionState, Settings, many::CONNECTION_BYTES};
use portico_wire::{
    Op,
    ids::{DeviceId, UserId},
    message::Welcome,
};
use std::{fs, sync::Arc};
use support::Peer;

const SESSIONS: usize = 100_000;
/// Enough that everything which is allocated once has been.
const WARM_UP: usize = 1_000;
/// A connection of `Many`, everything included. With 1,000,000 of them a load generator, which
/// keeps some figures of its own for each, stays below 400 bytes.
const BYTES_MAX: usize = 320;

/// As long as a signed access token, and as a gateway's resume token.
const TOKEN: [u8; 220] = [b't'; 220];
const RESUME_TOKEN: [u8; 55] = [7; 55];

fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

/// A session that has logged in, is up to date, and has had one heartbeat.
fn idle_session(settings: &Arc<Settings>, user: u64) -> Session {
    let token = String::from_utf8(TOKEN.to_vec()).unwrap();
    let login = Login::new(UserId(user), DeviceId(1), token);
    let mut session = Session::sharing(settings, login, SessionState::default(), user);
    let mut now = Now {
        mono_us: 1,
        wall_us: 1_790_000_000_000_000,
    };
    let mut server = Peer::default();
    session.connected(now);
    // As a driver does: what is written is taken away.
    let hello = server.read(&std::mem::take(session.output())).remove(0);
    let welcome = Welcome {
        user: UserId(user),
        device: DeviceId(1),
        resume_token: &RESUME_TOKEN,
        server_us: now.wall_us,
        ..Welcome::default()
    };
    server.welcome(hello.corr, &welcome).synced(0, 0);
    session.received(now, &server.take(), &mut |_| {});
    now.mono_us = session.next_timeout().unwrap();
    session.on_timeout(now, &mut |_| {});
    let ping = server.read(&std::mem::take(session.output())).remove(0);
    assert_eq!(ping.op, Op::Ping);
    server.pong(ping.corr);
    session.received(now, &server.take(), &mut |_| {});
    assert_eq!(
        (session.phase(), session.needs_token()),
        (Phase::Live, false)
    );
    session
}

#[test]
fn an_idle_connection_costs_little() {
    let settings = Arc::new(Settings {
        tell_expiry: false,
        keep_token: false,
        ..Settings::default()
    });
    let mut sessions = Vec::with_capacity(SESSIONS);
    sessions.extend((1..=WARM_UP as u64).map(|user| idle_session(&settings, user)));
    let before = resident_bytes();
    sessions
        .extend((WARM_UP as u64 + 1..=SESSIONS as u64).map(|user| idle_session(&settings, user)));
    let measured = (resident_bytes() - before).div_ceil(SESSIONS - WARM_UP);
    let bytes = measured + CONNECTION_BYTES - size_of::<Session>();
    println!(
        "{bytes} bytes per idle connection: {CONNECTION_BYTES} here, {} on the heap of its session",
        measured - size_of::<Session>()
    );
    assert!(bytes <= BYTES_MAX, "{bytes}");
    assert!(measured > size_of::<Session>(), "the measure sees nothing");
}
