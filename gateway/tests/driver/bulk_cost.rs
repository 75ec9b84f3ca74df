//! What receiving costs: CPU time of the shard per message, for frames that fill several receive
//! buffers and for small ones. A measurement, so it is ignored; docs/decisions/0009 has its figures:
//!
//! ```text
//! cargo test --release -p portico-gateway --test driver -- --ignored --nocapture receive_costs
//! ```
//!
//! The messages are ephemeral ones to a user who is not there: the gateway receives, checks and
//! answers them, and nothing else. One shard runs on the first CPU, the clients on the second.

use crate::support::*;
use portico_gateway::RingSizes;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::io::{Read, Write};

/// An answer is a frame without headers of its own.
const DONE_BYTES: usize = 16;
const ABSENT_USER: u64 = 999_999;

/// One workload: each connection writes some frames at once and waits for the answers.
struct Load {
    frame_bytes: usize,
    at_once: usize,
    connections: u64,
    rounds: usize,
}

const fn load(frame_bytes: usize, at_once: usize, connections: u64, rounds: usize) -> Load {
    Load {
        frame_bytes,
        at_once,
        connections,
        rounds,
    }
}

#[test]
#[ignore = "a measurement"]
fn receive_costs_of_large_frames() {
    measure(&[
        load(6_000, 4, 100, 400),
        load(6_000, 4, 1_000, 40),
        load(6_000, 1, 100, 1_000),
        load(60_000, 1, 100, 200),
    ]);
}

#[test]
#[ignore = "a measurement"]
fn receive_costs_of_small_frames() {
    measure(&[load(128, 1, 1_000, 300), load(128, 8, 1_000, 150)]);
}

fn shard_cpu_ns() -> u64 {
    let threads = threads().into_values();
    let shards = threads.filter(|(name, _)| name.starts_with("portico-shard"));
    shards.map(|(_, cpu_ns)| cpu_ns).sum()
}

fn measure(loads: &[Load]) {
    let _turn = alone();
    let mut options = options(1);
    options.cpus = vec![0];
    options.ring = RingSizes {
        submissions: 1_024,
        completions: 16_384,
        buffers: 1_024,
        buffer_bytes: 2_048,
    };
    let gateway = start(options);
    let mut second = CpuSet::new();
    second.set(1);
    sched_setaffinity(None, &second).unwrap();
    for load in loads {
        let mut clients: Vec<Client> = (1..=load.connections)
            .map(|user| Client::login(gateway.local_addr(), user))
            .collect();
        let batch = ephemeral(ABSENT_USER, load.frame_bytes).repeat(load.at_once);
        let mut answers = vec![0; load.at_once * DONE_BYTES];
        let mut run = |rounds| {
            for _ in 0..rounds {
                for client in &mut clients {
                    client.stream.write_all(&batch).unwrap();
                }
                for client in &mut clients {
                    client.stream.read_exact(&mut answers).unwrap();
                }
            }
        };
        run(load.rounds / 10);
        let before_ns = shard_cpu_ns();
        run(load.rounds);
        let used_ns = shard_cpu_ns() - before_ns;
        let messages = load.rounds as u64 * load.connections * load.at_once as u64;
        println!(
            "{:>6} bytes x {} at once, {:>4} connections: {:>6} ns per message",
            load.frame_bytes,
            load.at_once,
            load.connections,
            used_ns / messages
        );
        drop(clients);
        all_gone(&gateway);
    }
    println!(
        "{} multishot receives, {} receives without a buffer",
        sum(&gateway, "portico_bulk_begun_total", ""),
        sum(&gateway, "portico_receive_buffers_exhausted_total", "")
    );
    gateway.stop(PATIENCE).unwrap();
}
