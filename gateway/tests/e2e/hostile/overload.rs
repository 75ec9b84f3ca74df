//! More than the gateway can take, from clients that do not care: its memory stays within what it
//! said at the start, it goes on doing as much as it can, and it is as before when they stop.

use super::CLOSED_SLOW;
use crate::harness::{Gateway, PATIENCE, Peer, Process, Setup, new_msg_id};
use portico_client::{RawConnection, RawFrame};
use portico_wire::{
    ErrorCode, Flags, Op, RouteHeader,
    encode::{put_ping, put_routed},
    frame::ConvKind,
    message::ErrorReply,
};
use socket2::SockRef;
use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// Beside its queues: code, stacks, tables, what the embedded store has in memory before it writes
/// it to a table, and what allocators keep.
const FIXED_BYTES: u64 = 96 << 20;
/// Of each kind of hostile client.
const CLIENTS: u64 = 40;
/// How long they go on.
const SIEGE: Duration = Duration::from_secs(4);
const SAMPLE: Duration = Duration::from_millis(10);

fn tight() -> Setup {
    Setup::new()
        .set("limits.store_bytes_soft", 2 << 20)
        .set("limits.store_bytes_max", 4 << 20)
        .set("limits.store_requests_soft", 1_024)
        .set("limits.store_requests_max", 2_048)
        .set("limits.outboxes_bytes_max", 8 << 20)
        .set("limits.unread_bytes_max", 2 << 20)
        .set("limits.sign_ins_max", 64)
        .set("limits.absent_max", 1_024)
        .set("limits.unsaved_max", 1_024)
        .set("limits.pages_max", 16)
        .set("store.bytes_max", 8 << 20)
        .set("store.cache_bytes", 8 << 20)
        .set("ring.buffers", 256)
}

/// What the gateway said that its queues hold at most.
fn promised_bytes(gateway: &Gateway) -> u64 {
    let line = gateway.child.err.wait_for("  memory   at most ");
    let number = line.split_whitespace().nth(3).expect("a number");
    number.parse::<u64>().expect("MiB") << 20
}

/// A peer whose own buffers take next to nothing.
fn tiny(peer: &Peer) {
    SockRef::from(peer.conn.stream())
        .set_recv_buffer_size(4_096)
        .expect("an option of every socket");
}

fn send_frame(out: &mut Vec<u8>, to: u64, corr: u32, flags: Flags, body: &[u8]) {
    let route = RouteHeader {
        msg_id: new_msg_id(),
        conv: to,
        conv_kind: ConvKind::DIRECT,
        ..RouteHeader::default()
    };
    put_routed(out, Op::Send as u8, flags, corr, 0, &route, body);
}

/// Messages of all kinds to readers that do not read, as fast as the gateway takes them, until it is
/// over.
fn flood(conn: &mut RawConnection, first: u64, over: &AtomicBool) {
    let large = vec![b'x'; 60_000];
    let small = vec![b'y'; 200];
    let mut out = Vec::new();
    let mut next = first;
    while !over.load(Ordering::Relaxed) {
        out.clear();
        for _ in 0..16 {
            next += 1;
            let to = 2_000 + next % CLIENTS;
            let (flags, body) = match next % 7 {
                0 => (Flags::EPHEMERAL, &large),
                1 => (Flags::NONE, &large),
                _ => (Flags::NONE, &small),
            };
            send_frame(&mut out, to, 0, flags, body);
        }
        if conn.write_bytes(&out).is_err() {
            // It was in the middle of a large frame when room for those had run out.
            return;
        }
    }
}

/// The highest resident size while `siege` goes on.
fn highest(process: Process, siege: impl FnOnce()) -> u64 {
    let (ended, over) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let sampler = scope.spawn(move || {
            let mut peak = 0;
            while over.recv_timeout(SAMPLE) == Err(mpsc::RecvTimeoutError::Timeout) {
                peak = peak.max(process.resident_bytes());
            }
            peak
        });
        siege();
        drop(ended);
        sampler.join().expect("it only looks")
    })
}

#[test]
fn memory_stays_within_what_was_said_at_the_start() {
    let gateway = tight().start();
    gateway.still_serves();
    let promised = promised_bytes(&gateway);
    let behind = gateway.watch("portico_readers_behind_total");
    let over = AtomicBool::new(false);
    let (mut askers, mut readers, mut stubs, mut senders) = (vec![], vec![], vec![], vec![]);
    for at in 0..CLIENTS {
        askers.push(gateway.login(1_000 + at, 1));
        readers.push(gateway.login(2_000 + at, 1));
        stubs.push(gateway.login(3_000 + at, 1));
        senders.push(gateway.login(4_000 + at, 1));
    }
    askers.iter().chain(&readers).for_each(tiny);
    let peak = highest(gateway.process(), || {
        thread::scope(|scope| {
            // Who asks and never reads.
            scope.spawn(|| {
                let mut pings = Vec::new();
                (1..=3_000).for_each(|corr| put_ping(&mut pings, corr, 60));
                while !over.load(Ordering::Relaxed) {
                    for peer in &mut askers {
                        let stream = peer.conn.stream();
                        stream.set_nonblocking(true).expect("any socket");
                        // Fails where it is not read any more.
                        let _ = peer.conn.write_bytes(&pings);
                    }
                    thread::sleep(Duration::from_millis(20));
                }
            });
            // Frames of 200 kB that do not end.
            scope.spawn(|| {
                let mut out = 262_000_u32.to_le_bytes().to_vec();
                out.extend_from_slice(&[Op::Send as u8, 1, 9, 0]);
                out.resize(200_000, 0);
                for peer in &mut stubs {
                    let timeout = Some(Duration::from_millis(200));
                    let stream = peer.conn.stream();
                    stream.set_write_timeout(timeout).expect("any socket");
                    let _ = peer.conn.write_bytes(&out);
                }
            });
            for (at, peer) in (0..).zip(&mut senders) {
                let over = &over;
                scope.spawn(move || flood(&mut peer.conn, 11 * at, over));
            }
            thread::sleep(SIEGE);
            over.store(true, Ordering::Relaxed);
        });
    });
    println!(
        "{} MiB at most, promised {} MiB in queues and {} MiB beside them",
        peak >> 20,
        promised >> 20,
        FIXED_BYTES >> 20
    );
    behind.moves();
    assert!(peak <= promised + FIXED_BYTES, "{} MiB", peak >> 20);
    let metrics = gateway.metrics();
    assert!(metrics.get(CLOSED_SLOW) > 0, "somebody let answers pile up");
    assert!(metrics.get("portico_unread_shed_total") > 0);
    assert!(metrics.get("portico_ephemeral_dropped_total") > 0);
    drop((askers, readers, stubs, senders));
    gateway.await_metric("portico_outbox_bytes", |bytes| bytes == 0);
    gateway.await_metric("portico_messages_in_flight", |count| count == 0);
    gateway.still_serves();
}

/// Messages of each of these clients, to itself alone.
const WORKERS: u64 = 6;
const PHASE: Duration = Duration::from_secs(3);
/// Unanswered messages of each: as many as the gateway grants, and far more.
const GRANTED: usize = 128;
const GREEDY: usize = 2_048;
/// Of what is accepted without overload, so much is accepted with it: two cores that also run the
/// clients and other tests are no good measure, so the bound is wide. docs/OPERATIONS.md has figures.
const KEPT_MIN: f64 = 0.6;

/// Answers that came within [`PHASE`].
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    accepted: u64,
    refused: u64,
}

/// Keeps so many messages unanswered for a while, whatever the gateway says to that.
fn press(gateway: &Gateway, user: u64, in_flight: usize) -> Tally {
    let mut peer = gateway.login(user, 1);
    let until = Instant::now() + PHASE;
    let mut tally = Tally::default();
    let (mut open, mut corr) = (0, 100);
    let mut out = Vec::new();
    let body = [b'z'; 100];
    while Instant::now() < until {
        out.clear();
        while open < in_flight {
            (open, corr) = (open + 1, corr + 1);
            send_frame(&mut out, user + 100_000, corr, Flags::NONE, &body);
        }
        peer.conn.write_bytes(&out).expect("it reads");
        // Some answers before the next round.
        while open > in_flight / 2 {
            let frame = peer.conn.expect_frame(PATIENCE).expect("an answer");
            open -= usize::from(count(&frame, &mut tally));
        }
    }
    while open > 0 {
        let frame = peer.conn.expect_frame(PATIENCE).expect("an answer");
        open -= usize::from(count(&frame, &mut Tally::default()));
    }
    tally
}

fn count(frame: &RawFrame, tally: &mut Tally) -> bool {
    match frame.known_op() {
        Some(Op::Sent) => tally.accepted += 1,
        Some(Op::Error) => {
            let reply = ErrorReply::decode(&frame.body).expect("an ErrorReply");
            let early = [ErrorCode::RATE_LIMITED, ErrorCode::OVERLOADED];
            assert!(early.contains(&reply.code), "{:?}", reply.code);
            tally.refused += 1;
        }
        _ => return false,
    }
    true
}

#[test]
fn a_gateway_that_is_asked_for_more_does_as_much_as_before() {
    let gateway = Gateway::start();
    let phase = |in_flight| {
        let (begun, cpu) = (Instant::now(), gateway.process().cpu());
        let tallies: Vec<Tally> = thread::scope(|scope| {
            let workers: Vec<_> = (1..=WORKERS)
                .map(|user| {
                    scope.spawn({
                        let gateway = &gateway;
                        move || press(gateway, user, in_flight)
                    })
                })
                .collect();
            let join = |worker: thread::ScopedJoinHandle<'_, Tally>| worker.join();
            workers
                .into_iter()
                .map(|w| join(w).expect("well"))
                .collect()
        });
        let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
        let (accepted, refused) = (sum(|t| t.accepted), sum(|t| t.refused));
        println!(
            "{in_flight} unanswered each: {accepted} accepted, {refused} refused in {:.1?}, {:.1?} of CPU",
            begun.elapsed(),
            gateway.process().cpu() - cpu
        );
        (accepted, refused)
    };
    let (usual, none) = phase(GRANTED);
    let (kept, refused) = phase(GREEDY);
    assert_eq!(none, 0, "what is granted is taken");
    assert!(refused > 0, "the overload is one");
    let share = kept as f64 / usual as f64;
    assert!(share >= KEPT_MIN, "{share:.2} of what it did before");
    // And at once as before: a message and its answer.
    let mut peer = gateway.login(WORKERS + 1, 1);
    let begun = Instant::now();
    peer.send(1, "all well?");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
}
