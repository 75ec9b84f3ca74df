//! Many connections, and many that vanish.

use crate::support::*;
use socket2::SockRef;
use std::{thread, time::Duration};

const CONNECTIONS: u64 = 2_000;

/// The client closes with a reset.
fn reset(client: Client) {
    SockRef::from(&client.stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

#[test]
fn two_thousand_connections() {
    let _turn = together();
    let before = threads();
    let gateway = start(options(2));
    let address = gateway.local_addr();
    let mut clients: Vec<Client> = (1..=CONNECTIONS)
        .map(|user| {
            let mut client = Client::connect(address);
            client.user = user;
            client.write(&hello(user));
            client
        })
        .collect();
    for client in &mut clients {
        client.until(&Got::Welcome);
        client.until(&Got::Synced);
    }
    for client in &mut clients {
        let to = client.user % CONNECTIONS + 1;
        client.send(to, 9, b"round the table");
    }
    for client in &mut clients {
        let (seq, from, body) = client.next_message();
        assert_eq!(from.0 % CONNECTIONS + 1, client.user);
        assert_eq!(body, b"round the table");
        client.acknowledge(seq);
    }
    eventually("the sessions are counted", || {
        sum(&gateway, "portico_sessions", "") == CONNECTIONS
    });
    let io_wq = threads()
        .into_iter()
        .filter(|(id, (name, _))| !before.contains_key(id) && name.starts_with("iou-wrk"));
    assert_eq!(io_wq.count(), 0, "sockets never need worker threads");
    // Half leave in order, half by reset, while the others still talk.
    for (number, client) in clients.into_iter().enumerate() {
        if number % 2 == 0 {
            drop(client);
        } else {
            reset(client);
        }
    }
    all_gone(&gateway);
    gateway.stop(PATIENCE).unwrap();
}

/// Peers that vanish in the middle of whatever they were doing leave nothing behind.
#[test]
fn resets_under_load_leave_no_slots() {
    let _turn = together();
    let gateway = start(options(2));
    let address = gateway.local_addr();
    thread::scope(|scope| {
        for worker in 0..4_u64 {
            scope.spawn(move || {
                for round in 0..150 {
                    let user = 1 + worker * 1_000 + round;
                    let mut client = Client::connect(address);
                    client.user = user;
                    let mut bytes = hello(user);
                    for corr in 1..=20 {
                        let to = 1 + (worker + 1) % 4 * 1_000 + round;
                        bytes.extend(message(to, corr, &[7; 900]));
                    }
                    // Anywhere: before HELLO, within it, within messages, after all.
                    let cut = match round % 5 {
                        0 => 0,
                        1 => 30,
                        2 => bytes.len() / 2,
                        _ => bytes.len(),
                    };
                    let _ = std::io::Write::write_all(&mut client.stream, &bytes[..cut]);
                    match round % 3 {
                        0 => {
                            thread::sleep(Duration::from_millis(round % 7));
                            reset(client);
                        }
                        1 => reset(client),
                        _ => drop(client),
                    }
                }
            });
        }
    });
    all_gone(&gateway);
    // And it still serves.
    let mut client = Client::login(address, 99_999);
    client.send(99_999, 1, b"hello?");
    client.until(&Got::Sent { corr: 1 });
    drop(client);
    gateway.stop(PATIENCE).unwrap();
}

/// A shard without work uses no CPU, however many connections it holds.
#[test]
fn an_idle_gateway_sleeps() {
    let _turn = alone();
    let before = threads();
    let gateway = start(options(2));
    let address = gateway.local_addr();
    let clients: Vec<Client> = (1..=100).map(|user| Client::login(address, user)).collect();
    // Cursors are written behind, and the last ticks run out.
    thread::sleep(Duration::from_millis(1_500));
    let cpu_ns = || {
        let new = threads()
            .into_iter()
            .filter(|(id, _)| !before.contains_key(id));
        let new: Vec<(String, u64)> = new.map(|(_, thread)| thread).collect();
        let shards = new
            .iter()
            .filter(|(name, _)| name.starts_with("portico-shard"));
        assert!(shards.count() >= 2, "{new:?}");
        new.iter().map(|(_, cpu)| cpu).sum::<u64>()
    };
    let parks = || sum(&gateway, "portico_shard_parks_total", "");
    let (start_ns, start_parks) = (cpu_ns(), parks());
    assert!(start_parks > 0);
    thread::sleep(Duration::from_secs(2));
    let (used_ns, parked) = (cpu_ns() - start_ns, parks() - start_parks);
    // A turn of a debug build takes up to a millisecond or two.
    assert!(
        used_ns < 6_000_000 && parked < 20,
        "{used_ns} ns in two seconds, {parked} parks"
    );
    drop(clients);
    gateway.stop(PATIENCE).unwrap();
}
