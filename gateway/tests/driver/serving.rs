//! Login and messages, on few and on many shards, in whatever pieces the bytes come.

use crate::support::*;
use portico_wire::{CloseCode, ids::UserId};
use std::{
    collections::HashSet,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// Every user sends to every other one; each must get exactly what was sent to it, in the order of
/// each sender.
fn exchange(shards: usize, users: u64, rounds: u32) {
    let _turn = together();
    let gateway = start(options(shards));
    let address = gateway.local_addr();
    let mut clients: Vec<Client> = (1..=users)
        .map(|user| Client::login(address, user))
        .collect();
    for round in 0..rounds {
        for client in &mut clients {
            let from = client.user;
            for to in (1..=users).filter(|to| *to != from) {
                client.send(to, round + 1, format!("{from} to {to}, {round}").as_bytes());
            }
        }
        for client in &mut clients {
            let (mut sent, mut messages) = (0, HashSet::new());
            let mut newest = None;
            while sent < users - 1 || messages.len() < users as usize - 1 {
                match client.next() {
                    Got::Sent { corr } => {
                        assert_eq!(corr, round + 1);
                        sent += 1;
                    }
                    Got::Message { seq, from, body } => {
                        assert!(newest < Some(seq), "an inbox is shown in order");
                        newest = Some(seq);
                        let expected = format!("{from} to {}, {round}", client.user);
                        assert_eq!(body, expected.as_bytes());
                        assert!(messages.insert(from), "twice from {from}");
                    }
                    Got::Other(_) => {}
                    got => panic!("{got:?}"),
                }
            }
            assert!(!messages.contains(&UserId(client.user)));
            client.acknowledge(newest.unwrap());
        }
    }
    drop(clients);
    all_gone(&gateway);
    gateway.stop(PATIENCE).unwrap();
}

#[test]
fn one_shard() {
    exchange(1, 6, 20);
}

#[test]
fn two_shards() {
    exchange(2, 8, 20);
}

#[test]
fn more_shards_than_cores() {
    exchange(5, 10, 10);
}

/// HELLO and the first messages in one segment: what was read with HELLO must move with the
/// connection.
#[test]
fn bytes_after_hello_move_with_it() {
    let _turn = together();
    let gateway = start(options(3));
    let address = gateway.local_addr();
    for user in 1..=60 {
        let mut client = Client::connect(address);
        client.user = user;
        let mut bytes = hello(user);
        for corr in 1..=5 {
            bytes.extend(message(user, corr, format!("note {corr}").as_bytes()));
        }
        // And a sixth that is cut in two.
        let last = message(user, 6, b"note 6");
        let (head, tail) = last.split_at(50);
        bytes.extend(head);
        client.write(&bytes);
        if user % 2 == 0 {
            thread::sleep(Duration::from_millis(2));
        }
        client.write(tail);
        let mut sent = Vec::new();
        while sent.len() < 6 {
            match client.next() {
                Got::Sent { corr } => sent.push(corr),
                Got::Close(code) => panic!("{code:?}"),
                _ => {}
            }
        }
        assert_eq!(sent, [1, 2, 3, 4, 5, 6]);
    }
    let moved = sum(
        &gateway,
        "portico_sockets_handed_over_total",
        "result=\"moved\"",
    );
    let failed = sum(
        &gateway,
        "portico_sockets_handed_over_total",
        "result=\"failed\"",
    );
    assert_eq!(
        (moved > 0, failed),
        (true, 0),
        "some arrived at the wrong shard"
    );
    all_gone(&gateway);
    gateway.stop(PATIENCE).unwrap();
}

#[test]
fn a_client_that_writes_byte_by_byte_is_understood() {
    let _turn = together();
    let gateway = start(options(2));
    for user in [1, 2, 3] {
        let mut client = Client::connect(gateway.local_addr());
        let mut bytes = hello(user);
        bytes.extend(message(user, 1, b"slowly"));
        for byte in bytes {
            client.write(&[byte]);
        }
        client.until(&Got::Welcome);
        client.until(&Got::Sent { corr: 1 });
    }
    all_gone(&gateway);
    gateway.stop(PATIENCE).unwrap();
}

/// Bodies as large as they may be fill many receive buffers each.
#[test]
fn large_messages_arrive_whole() {
    let _turn = together();
    let gateway = start(options(2));
    let address = gateway.local_addr();
    let mut to = Client::login(address, 2);
    let mut from = Client::login(address, 1);
    let body: Vec<u8> = (0..64_000_u32).map(|i| ((i * 31) >> 3) as u8).collect();
    for corr in 1..=40 {
        from.send(2, corr, &body[corr as usize..]);
    }
    for corr in 1..=40 {
        let (seq, _, got) = to.next_message();
        assert!(got == body[corr as usize..], "message {corr} is damaged");
        to.acknowledge(seq);
        from.until(&Got::Sent { corr });
    }
    drop((from, to));
    gateway.stop(PATIENCE).unwrap();
}

#[test]
fn a_second_connection_of_a_device_takes_over() {
    let _turn = together();
    let gateway = start(options(3));
    let address = gateway.local_addr();
    let mut clients = vec![Client::login(address, 7)];
    for round in 0..30 {
        clients.push(Client::login(address, 7));
        let replaced = Got::Close(CloseCode::SESSION_REPLACED);
        let mut old = clients.remove(0);
        while old.next() != replaced {}
        clients[0].send(7, 1, format!("{round}").as_bytes());
        clients[0].until(&Got::Sent { corr: 1 });
    }
    clients.clear();
    all_gone(&gateway);
    gateway.stop(PATIENCE).unwrap();
}

/// Senders that do not wait for answers keep every queue between the shards busy.
#[test]
fn a_flood_across_shards_loses_nothing() {
    let _turn = together();
    const USERS: u64 = 6;
    const EACH: u32 = 3_000;
    let gateway = start(options(3));
    let address = gateway.local_addr();
    let done = AtomicU64::new(0);
    // Before anybody sends: `login` skips what is replayed.
    let mut clients: Vec<Client> = (1..=USERS)
        .map(|user| Client::login(address, user))
        .collect();
    thread::scope(|scope| {
        for client in &mut clients {
            let (user, done) = (client.user, &done);
            scope.spawn(move || {
                let mut writer = client.stream.try_clone().unwrap();
                let answers = Arc::new(AtomicU32::new(0));
                let seen = answers.clone();
                let sending = thread::spawn(move || {
                    for corr in 1..=EACH {
                        // As many open requests as are allowed, and a few less.
                        while corr - seen.load(Ordering::Relaxed) > 250 {
                            thread::sleep(Duration::from_micros(200));
                        }
                        let step = u64::from(corr) % (USERS - 1) + 1;
                        let to = (user - 1 + step) % USERS + 1;
                        let bytes = message(to, corr, &corr.to_le_bytes());
                        writer.write_all(&bytes).unwrap();
                    }
                });
                let (mut answered, mut last_of) = (0, [0; USERS as usize + 1]);
                let mut got = 0;
                while answered < EACH || got < EACH {
                    let next = client.try_next();
                    let Ok(Some(next)) = next else {
                        panic!("{user}: {answered} answers, {got} messages, then {next:?}");
                    };
                    match next {
                        Got::Sent { .. } => {
                            answered += 1;
                            answers.store(answered, Ordering::Relaxed);
                        }
                        Got::Message { seq, from, body } => {
                            let number = u32::from_le_bytes(body.try_into().unwrap());
                            let last = &mut last_of[from.0 as usize];
                            assert!(*last < number, "{from}: {number} after {last}");
                            *last = number;
                            got += 1;
                            client.acknowledge(seq);
                        }
                        // ERROR is operation 7.
                        Got::Other(7) => panic!("refused after {answered}"),
                        Got::Other(_) => {}
                        other => panic!("{other:?}"),
                    }
                }
                sending.join().unwrap();
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    assert_eq!(done.into_inner(), USERS);
    drop(clients);
    all_gone(&gateway);
    gateway.stop(PATIENCE).unwrap();
}
