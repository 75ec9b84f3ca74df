//! Full tables and used-up budgets.

use crate::support::*;
use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

/// More clients than descriptors: those without one wait in the backlog, nobody is closed, and they
/// are served as others leave.
#[test]
fn a_full_table_makes_clients_wait() {
    let _turn = together();
    let mut options = options(1);
    options.slots_per_shard = 24;
    let gateway = start(options);
    let address = gateway.local_addr();
    let mut clients: Vec<Client> = (1..=60)
        .map(|user| {
            let mut client = Client::connect(address);
            client.user = user;
            client.write(&hello(user));
            client
        })
        .collect();
    eventually("the table is full", || {
        sum(&gateway, "portico_sockets", "") == 24
            && sum(&gateway, "portico_accept_paused_total", "") > 0
    });
    let mut served = 0;
    while !clients.is_empty() {
        let short = Duration::from_millis(300);
        clients.retain_mut(|client| {
            client.stream.set_read_timeout(Some(short)).unwrap();
            match client.try_next() {
                Ok(Some(got)) => {
                    assert_eq!(got, Got::Welcome);
                    served += 1;
                    // It leaves and makes room.
                    false
                }
                Ok(None) => panic!("user {} was closed", client.user),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                    true
                }
            }
        });
    }
    assert_eq!(served, 60);
    assert_eq!(sum(&gateway, "portico_accept_errors_total", ""), 0);
    all_gone(&gateway);
    gateway.stop(PATIENCE).unwrap();
}

/// With several shards a part of each table is kept for connections that move in; when even that is
/// used up the move fails, and the client is told to come back.
#[test]
fn a_full_home_refuses_and_recovers() {
    let _turn = together();
    let mut options = options(2);
    options.slots_per_shard = 16;
    let gateway = start(options);
    let address = gateway.local_addr();
    let begun = Instant::now();
    let mut waiting: Vec<u64> = (1..=20).collect();
    let mut clients = Vec::new();
    // Users hash to their homes unevenly, so some may find theirs full.
    while let Some(user) = waiting.pop() {
        assert!(
            begun.elapsed() < 2 * PATIENCE,
            "stuck with {} users left",
            waiting.len() + 1
        );
        let mut client = Client::connect(address);
        client.user = user;
        client.write(&hello(user));
        match client.next() {
            Got::Welcome => clients.push(client),
            Got::Close(code) => {
                assert_eq!(code, portico_wire::CloseCode::OVERLOADED);
                // Somebody leaves, then it tries again.
                clients.remove(0);
                waiting.push(user);
            }
            got => panic!("{got:?}"),
        }
    }
    drop(clients);
    all_gone(&gateway);
    gateway.stop(PATIENCE).unwrap();
}

/// Clients that begin large frames and never end them use up a budget, not the memory.
#[test]
fn incomplete_frames_have_a_budget() {
    let _turn = together();
    let mut options = options(1);
    options.unread_bytes_max = 256 << 10;
    let gateway = start(options);
    let address = gateway.local_addr();
    let mut good = Client::login(address, 1);
    let whole = message(1, 1, &[0; 60_000]);
    let mut bad: Vec<Client> = (10..30)
        .map(|user| {
            let mut client = Client::login(address, user);
            client.write(&whole[..50_000]);
            client
        })
        .collect();
    eventually("some are ended", || {
        sum(&gateway, "portico_unread_shed_total", "") >= 14
    });
    assert!(sum(&gateway, "portico_unread_bytes", "") <= (256 << 10) + (64 << 10));
    // Whoever holds little is served as before.
    good.send(1, 5, b"small");
    good.until(&Got::Sent { corr: 5 });
    // Those that were within the budget may end their frames.
    let mut sent = 0;
    for client in &mut bad {
        let rest = std::io::Write::write_all(&mut client.stream, &whole[50_000..]);
        if rest.is_err() {
            continue;
        }
        while let Ok(Some(got)) = client.try_next() {
            if got == (Got::Sent { corr: 1 }) {
                sent += 1;
                break;
            }
        }
    }
    assert!((1..=6).contains(&sent), "{sent} were within the budget");
    drop((good, bad));
    all_gone(&gateway);
    assert_eq!(sum(&gateway, "portico_unread_bytes", ""), 0);
    gateway.stop(PATIENCE).unwrap();
}
