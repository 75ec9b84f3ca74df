//! Bytes per connection, as the core and the driver hold them: asked of an allocator that counts,
//! with thousands of logged-in connections. Prints what a connection holds at rest, with a message
//! that it has not acknowledged, and with one that the kernel has not taken; fails above the bounds
//! below.
//!
//! # Does not
//! Count the kernel's memory, or what the allocator of the program adds by rounding up; both are in
//! the figures of `docs/CAPACITY.md`, which are taken from a whole process.

#[path = "../../gateway/core/tests/allocation/counting.rs"]
mod counting;

use counting::{Counting, counted};
use portico_core::{Counter, testing::Bare};
use portico_gateway::bench::BareSockets;
use portico_wire::{Flags, Op, RouteHeader, encode::put_routed, frame::ConvKind, ids::MsgId};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CONNECTIONS: [u32; 2] = [10_000, 100_000];
const BODY: [u8; 128] = [0x5a; 128];
/// Seconds in which the pool gives back what the logins borrowed. Less than a silent connection
/// may last.
const QUIET_S: u32 = 60;

/// The promise is 400 for the whole process, with the store, the buffers of the rings and the
/// queues. The tables alone are 172: a heap object that a connection keeps at rest would show here
/// long before the promise is broken.
const AT_REST_MAX: f64 = 180.0;
const UNACKNOWLEDGED_MAX: f64 = 400.0;
const QUEUED_MAX: f64 = 1_000.0;

/// Bytes per connection.
struct Found {
    core: f64,
    driver: f64,
    unacknowledged: f64,
    queued: f64,
}

fn live() -> f64 {
    counted().live_bytes as f64
}

fn measure(connections: u32) -> Found {
    let per_connection = |bytes: f64| bytes / f64::from(connections);
    let before = live();
    let sockets = BareSockets::at_rest(connections);
    assert_eq!(sockets.in_use(), connections as usize);
    let driver = per_connection(live() - before);
    drop(sockets);

    // What a shard has before its first connection is no part of the price.
    let before = live();
    let empty = Bare::new(1, 0);
    let base = live() - before - empty.own_bytes() as f64;
    drop(empty);

    let before = live() + base;
    let mut bare = Bare::new(1, connections as usize);
    for _ in 0..connections {
        bare.login();
    }
    for _ in 0..QUIET_S {
        bare.pass_us(1_000_000);
        bare.tick();
        bare.settle();
    }
    assert_eq!(bare.count(Counter::LoggedIn), u64::from(connections));
    assert_eq!(bare.count(Counter::ClosedIdle), 0);
    let held = |bare: &Bare| per_connection(live() - before - bare.own_bytes() as f64);
    let core = held(&bare);

    // To each a message from its neighbour, stored and not yet written to anybody.
    let mut frame = Vec::with_capacity(1 << 10);
    for to in 1..=u64::from(connections) {
        frame.clear();
        let route = RouteHeader {
            msg_id: MsgId::new_v7(bare.now.wall_us / 1_000, u128::from(to)),
            conv: to,
            conv_kind: ConvKind::DIRECT,
            ..RouteHeader::default()
        };
        put_routed(&mut frame, Op::Send as u8, Flags::NONE, 0, 0, &route, &BODY);
        bare.receive(to % u64::from(connections) + 1, &frame);
        bare.answer_store();
    }
    assert_eq!(bare.count(Counter::Delivered), u64::from(connections));
    let queued = held(&bare) + driver;
    bare.settle();
    // The pool keeps what it has lent for a while.
    for _ in 0..QUIET_S / 2 {
        bare.pass_us(1_000_000);
        bare.tick();
        bare.settle();
    }
    assert_eq!(bare.count(Counter::ClosedIdle), 0);
    Found {
        core,
        driver,
        unacknowledged: held(&bare) + driver,
        queued,
    }
}

fn main() -> ExitCode {
    // `cargo bench` says that it measures; `cargo test --benches` wants a quick look.
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let sizes = if is_bench {
        &CONNECTIONS[..]
    } else {
        &CONNECTIONS[..1]
    };
    let mut failed = false;
    println!("bytes per connection, one shard");
    for &connections in sizes {
        let found = measure(connections);
        let rows = [
            ("at rest", found.core + found.driver, AT_REST_MAX),
            (
                "one unacknowledged",
                found.unacknowledged,
                UNACKNOWLEDGED_MAX,
            ),
            ("one queued to send", found.queued, QUEUED_MAX),
        ];
        println!(
            "{connections:>7} connections: {:.1} in the core, {:.1} in the driver",
            found.core, found.driver
        );
        for (name, bytes, bound) in rows {
            println!("  {name:<20}{bytes:>8.1}, at most {bound}");
            failed |= bytes > bound;
        }
    }
    if failed {
        eprintln!("memory: a connection holds more than its bound; see benches/benches/memory.rs");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
