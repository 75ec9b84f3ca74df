//! Shards that share threads: one that waits is woken whatever the wait was, and idle ones use no CPU.

use crate::support::*;
use std::{collections::BTreeSet, thread, time::Duration};

const SHARDS: usize = 7;
const USERS: u64 = 14;

/// The thread blocks on the doorbell between messages that follow quickly, sleeps in glommio between
/// those that do not, and changes over in between: none of the waits may miss a message.
#[test]
fn every_wait_ends_with_a_message() {
    let _turn = together();
    let gateway = start(options(SHARDS));
    let address = gateway.local_addr();
    let mut clients: Vec<Client> = (1..=USERS)
        .map(|user| Client::login(address, user))
        .collect();
    for round in 0..120_u64 {
        // Pauses from none to more than the quiet time before a sleep, in no order.
        thread::sleep(Duration::from_millis(round * 37 % 67));
        let from = (round % USERS) as usize;
        let to = (from + 1 + (round / USERS) as usize) % USERS as usize;
        if to == from {
            continue;
        }
        let recipient = clients[to].user;
        clients[from].send(recipient, round as u32 + 1, &round.to_le_bytes());
        let (seq, sender, body) = clients[to].next_message();
        assert_eq!(
            (sender.0, body),
            (clients[from].user, round.to_le_bytes().to_vec())
        );
        clients[to].acknowledge(seq);
    }
    drop(clients);
    all_gone(&gateway);
    gateway.stop(PATIENCE).unwrap();
}

#[test]
fn idle_shards_sleep_and_share_the_threads() {
    let _turn = alone();
    let before = threads();
    let gateway = start(options(SHARDS));
    let address = gateway.local_addr();
    let clients: Vec<Client> = (1..=USERS)
        .map(|user| Client::login(address, user))
        .collect();
    let own = || {
        let shard =
            |id: &u64, name: &str| !before.contains_key(id) && name.starts_with("portico-shard");
        let mut own = threads();
        own.retain(|id, (name, _)| shard(id, name));
        own
    };
    let cpus = thread::available_parallelism().unwrap().get();
    // The executor's own helper thread has the name of its shard's.
    let names: BTreeSet<String> = own().into_values().map(|(name, _)| name).collect();
    assert_eq!(
        names.len(),
        SHARDS.min(cpus),
        "a thread for each CPU, not for each shard: {names:?}"
    );
    thread::sleep(Duration::from_millis(1_500));
    let cpu_ns = |threads: &std::collections::HashMap<u64, (String, u64)>| -> u64 {
        threads.values().map(|(_, cpu_ns)| cpu_ns).sum()
    };
    let at_rest = cpu_ns(&own());
    thread::sleep(Duration::from_secs(1));
    let used_us = (cpu_ns(&own()) - at_rest) / 1_000;
    assert!(used_us < 5_000, "{used_us} us of CPU in an idle second");
    drop(clients);
    all_gone(&gateway);
    gateway.stop(PATIENCE).unwrap();
}
