//! How connections and gateways end.

use crate::support::*;
use portico_wire::CloseCode;
use std::{
    io::{ErrorKind, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

/// A refused client must learn why, even if it has written much more than the gateway will ever
/// read: a reset would overtake the reason.
#[test]
fn the_reason_reaches_a_client_that_keeps_writing() {
    let _turn = together();
    let gateway = start(options(2));
    let address = gateway.local_addr();
    for round in 0..40 {
        let mut client = Client::connect(address);
        let mut bytes = hello(1);
        // A second HELLO is a violation, and so is everything that follows it.
        bytes.extend(hello(1));
        bytes.resize(bytes.len() + (round % 8) * 60_000, 0xff);
        let mut writer = client.stream.try_clone().unwrap();
        let writing = thread::spawn(move || {
            let _ = writer.write_all(&bytes);
        });
        if round % 2 == 0 {
            // The close is decided long before the client looks.
            thread::sleep(Duration::from_millis(20));
        }
        let code = loop {
            match client.next() {
                Got::Close(code) => break code,
                Got::Welcome | Got::Synced | Got::Other(_) => {}
                got => panic!("{got:?}"),
            }
        };
        assert_eq!(code, CloseCode::PROTOCOL_ERROR);
        drop(client);
        writing.join().unwrap();
    }
    all_gone(&gateway);
    assert_eq!(sum(&gateway, "portico_farewells_lost_total", ""), 0);
    gateway.stop(PATIENCE).unwrap();
}

#[test]
fn a_refused_client_that_does_not_close_is_closed() {
    let _turn = together();
    let gateway = start(options(2));
    let mut client = Client::connect(gateway.local_addr());
    let mut bytes = hello(1);
    let token = bytes.iter().rposition(|byte| *byte == b'1').unwrap();
    bytes[token] = b'x';
    let asked = Instant::now();
    client.write(&bytes);
    // Waits for the end of the stream, which the gateway leaves to the client for a while.
    assert_eq!(client.until_closed(), CloseCode::AUTH_FAILED);
    assert!(asked.elapsed() < Duration::from_secs(4));
    all_gone(&gateway);
    gateway.stop(PATIENCE).unwrap();
}

/// Half-closing after the last request is a usual way to end: answers are not owed any more, but
/// the slot must be free.
#[test]
fn a_client_that_says_all_and_ends_is_gone() {
    let _turn = together();
    let gateway = start(options(2));
    let mut reader = Client::login(gateway.local_addr(), 2);
    for user in 10..30 {
        let mut client = Client::login(gateway.local_addr(), user);
        client.send(2, 1, b"last words");
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let (seq, from, _) = reader.next_message();
        assert_eq!(from.0, user);
        reader.acknowledge(seq);
        // Whatever was under way comes, then the end.
        while client.try_next().unwrap().is_some() {}
    }
    drop(reader);
    all_gone(&gateway);
    gateway.stop(PATIENCE).unwrap();
}

#[test]
fn a_reader_that_never_reads_is_closed_and_loses_nothing() {
    let _turn = together();
    const MESSAGES: u32 = 4_000;
    let mut options = options(2);
    options.limits.stalled_ms = 1_000;
    let gateway = start(options);
    let address = gateway.local_addr();
    let victim = Client::login(address, 2);
    let mut from = Client::login(address, 1);
    for corr in 1..=MESSAGES {
        from.send(2, corr, &[corr as u8; 4_000]);
        from.until(&Got::Sent { corr });
    }
    eventually("the victim is closed", || {
        sum(
            &gateway,
            "portico_connections_closed_total",
            "code=\"4003\"",
        ) == 1
    });
    eventually("and its slot is free", || {
        sum(&gateway, "portico_sockets", "") == 1
    });
    drop(victim);
    // It comes back, and reads this time.
    let mut victim = Client::connect(address);
    victim.user = 2;
    victim.write(&hello(2));
    for corr in 1..=MESSAGES {
        let (seq, _, body) = victim.next_message();
        assert!(body == [corr as u8; 4_000], "message {corr}");
        victim.acknowledge(seq);
    }
    drop((victim, from));
    gateway.stop(PATIENCE).unwrap();
}

/// DRAIN is operation 9.
const DRAIN: Got = Got::Other(9);

#[test]
fn a_drain_asks_waits_and_closes_who_stays() {
    let _turn = together();
    let mut gateway = start(options(3));
    let address = gateway.local_addr();
    let mut clients: Vec<Client> = (1..=30).map(|user| Client::login(address, user)).collect();
    let silent = Client::connect(address);
    gateway.drain(Duration::from_millis(200), Duration::from_millis(1_500));
    assert!(gateway.is_draining());
    for client in &mut clients {
        client.until(&DRAIN);
    }
    eventually("nobody is accepted", || {
        matches!(TcpStream::connect(address), Err(error)
            if error.kind() == ErrorKind::ConnectionRefused)
    });
    // Half of them go; the others go on talking until the deadline.
    let mut stubborn = clients.split_off(15);
    drop(clients);
    for client in &mut stubborn {
        client.send(client.user, 1, b"one more");
        client.until(&Got::Sent { corr: 1 });
    }
    assert!(!gateway.is_drained());
    for mut client in stubborn {
        let code = loop {
            match client.next() {
                Got::Close(code) => break code,
                got => assert!(!matches!(got, Got::Welcome), "{got:?}"),
            }
        };
        assert_eq!(code, CloseCode::DRAINING);
    }
    drop(silent);
    eventually("the shards end", || gateway.is_drained());
    gateway.stop(PATIENCE).unwrap();
}

#[test]
fn stopping_is_quick_when_nobody_is_there_and_bounded_when_somebody_is() {
    let _turn = together();
    let gateway = start(options(2));
    let begun = Instant::now();
    gateway.stop(PATIENCE).unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );

    let gateway = start(options(2));
    let mut clients: Vec<Client> = (1..=10)
        .map(|user| Client::login(gateway.local_addr(), user))
        .collect();
    let begun = Instant::now();
    let _ = gateway.stop(Duration::from_millis(600));
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    for client in &mut clients {
        while !matches!(client.try_next(), Ok(None) | Err(_)) {}
    }
}

#[test]
fn a_dropped_gateway_leaves_no_thread_and_no_connection() {
    let _turn = alone();
    let before = threads();
    let gateway = start(options(2));
    let mut client = Client::login(gateway.local_addr(), 1);
    drop(gateway);
    while !matches!(client.try_next(), Ok(None) | Err(_)) {}
    eventually("the threads are gone", || {
        let left = threads().into_iter();
        let mut new = left.filter(|(id, _)| !before.contains_key(id));
        !new.any(|(_, (name, _))| name.starts_with("portico"))
    });
}
