//! Connections that fill buffer after buffer: they get a multishot receive and give it back, and no
//! byte is lost or moved where one way of receiving follows the other.

use crate::support::*;
use portico_backend::fault::{Faulty, Plan};
use portico_gateway::Gateway;
use portico_wire::{CloseCode, ids::UserId};
use socket2::SockRef;
use std::{
    io::{ErrorKind, Write},
    ops::Range,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// Three receive buffers, nearly.
const LARGE_BYTES: usize = 6_000;

fn begun(gateway: &Gateway) -> u64 {
    sum(gateway, "portico_bulk_begun_total", "")
}

fn ended(gateway: &Gateway, reason: &str) -> u64 {
    let label = format!("reason=\"{reason}\"");
    sum(gateway, "portico_bulk_ended_total", &label)
}

fn in_bulk(gateway: &Gateway) -> u64 {
    sum(gateway, "portico_bulk_connections", "")
}

/// Different in each place and for each number.
fn body(number: u32, bytes: usize) -> Vec<u8> {
    let filling =
        (0..bytes as u32 - 4).map(|at| (at.wrapping_mul(31).wrapping_add(number) >> 3) as u8);
    number.to_le_bytes().into_iter().chain(filling).collect()
}

/// Messages with these numbers, ready to be written at once.
fn burst(to: u64, numbers: Range<u32>, bytes: usize) -> Vec<u8> {
    numbers
        .flat_map(|number| message(to, number, &body(number, bytes)))
        .collect()
}

/// Reads messages with these numbers, whole and in order.
fn expect(reader: &mut Client, from: u64, numbers: Range<u32>, bytes: usize) {
    for number in numbers {
        let (seq, sender, got) = reader.next_message();
        assert_eq!(sender, UserId(from));
        assert!(
            got == body(number, bytes),
            "message {number} of {from} is damaged or misplaced"
        );
        reader.acknowledge(seq);
    }
}

#[test]
fn a_bulk_sender_gets_a_multishot_receive_and_gives_it_back() {
    let _turn = together();
    let gateway = start(options(1));
    let mut from = Client::login(gateway.local_addr(), 1);
    let mut to = Client::login(gateway.local_addr(), 2);
    from.write(&burst(2, 1..41, LARGE_BYTES));
    expect(&mut to, 1, 1..41, LARGE_BYTES);
    from.until(&Got::Sent { corr: 40 });
    eventually("it is counted", || {
        begun(&gateway) == 1 && in_bulk(&gateway) == 1
    });
    // Small messages come through the same receive, and do not keep it.
    for number in 41..60 {
        from.write(&burst(2, number..number + 1, 64));
        from.until(&Got::Sent { corr: number });
        thread::sleep(Duration::from_millis(50));
    }
    expect(&mut to, 1, 41..60, 64);
    eventually("the time of rest ends it", || in_bulk(&gateway) == 0);
    assert_eq!((begun(&gateway), ended(&gateway, "quiet")), (1, 1));
    // Messages of one buffer, and of three, are no reason to begin.
    for number in 60..90 {
        let bytes = if number % 2 == 0 { 64 } else { LARGE_BYTES };
        from.write(&burst(2, number..number + 1, bytes));
        from.until(&Got::Sent { corr: number });
        expect(&mut to, 1, number..number + 1, bytes);
    }
    thread::sleep(Duration::from_millis(100));
    assert_eq!(begun(&gateway), 1);
    drop((from, to));
    all_gone(&gateway);
    gateway.stop(PATIENCE).unwrap();
}

/// Bursts, small messages and pauses around the time after which the receive is given back, so that
/// bytes come just when it ends.
#[test]
fn nothing_is_lost_where_one_way_follows_the_other() {
    let _turn = together();
    const SENDERS: u64 = 24;
    const ROUNDS: u32 = 4;
    let gateway = start(options(2));
    let address = gateway.local_addr();
    let pairs: Vec<(Client, Client)> = (0..SENDERS)
        .map(|pair| {
            let from = Client::login(address, 1 + pair);
            (from, Client::login(address, 101 + pair))
        })
        .collect();
    thread::scope(|scope| {
        for (mut from, mut to) in pairs {
            scope.spawn(move || {
                let mut next = 1;
                for _ in 0..ROUNDS {
                    for (count, bytes) in [(20, LARGE_BYTES), (3, 100), (2, 60_000), (1, 8)] {
                        let numbers = next..next + count;
                        next = numbers.end;
                        from.write(&burst(to.user, numbers.clone(), bytes));
                        expect(&mut to, from.user, numbers, bytes);
                        from.until(&Got::Sent { corr: next - 1 });
                    }
                    thread::sleep(Duration::from_millis(950 + 10 * from.user));
                }
            });
        }
    });
    all_gone(&gateway);
    assert!(begun(&gateway) >= SENDERS);
    assert!(ended(&gateway, "quiet") > 0);
    assert_eq!(in_bulk(&gateway), 0);
    gateway.stop(PATIENCE).unwrap();
}

/// While the store stands still the gateway takes a bounded amount from a sender in bulk, then
/// nothing; afterwards all of it.
#[test]
fn congestion_stops_a_bulk_sender() {
    let _turn = together();
    const MESSAGES: u32 = 240;
    const SOFT_BYTES: usize = 64 << 10;
    /// More than a socket brings in a turn, so that none of them is the reason to stop.
    const BUFFERS: u16 = 256;
    const STALL: Duration = Duration::from_secs(3);
    let mut options = options(1);
    options.limits.store_bytes_soft = SOFT_BYTES;
    options.ring.buffers = BUFFERS;
    let store = Arc::new(Faulty::new(memory(), Plan::default(), 1).unwrap());
    let gateway = Gateway::start(options, stores(store.clone()), Arc::new(Trusting)).unwrap();
    let mut from = Client::login(gateway.local_addr(), 1);
    let mut to = Client::login(gateway.local_addr(), 2);
    // Below the limit, and enough to begin.
    from.write(&burst(2, 1..9, LARGE_BYTES));
    expect(&mut to, 1, 1..9, LARGE_BYTES);
    from.until(&Got::Sent { corr: 8 });
    eventually("it is counted", || in_bulk(&gateway) == 1);
    let receives = || sum(&gateway, "portico_receives_total", "");
    let before = receives();

    let flood = burst(2, 9..9 + MESSAGES, LARGE_BYTES);
    let mut writer = from.stream.try_clone().unwrap();
    store.stall(STALL);
    let stalled = Instant::now();
    let writing = thread::spawn(move || writer.write_all(&flood).unwrap());
    eventually("it is stopped", || ended(&gateway, "paused") == 1);
    thread::sleep(Duration::from_millis(400));
    let taken = receives() - before;
    thread::sleep(Duration::from_millis(200));
    assert_eq!((receives() - before, in_bulk(&gateway)), (taken, 0));
    assert!(
        stalled.elapsed() < STALL,
        "the machine is too slow for this"
    );
    // What filled the store, and one ring of buffers: half of what was written.
    let bound = SOFT_BYTES / 2_048 + usize::from(BUFFERS);
    assert!(taken as usize <= bound, "{taken} buffers, {bound} allowed");

    expect(&mut to, 1, 9..9 + MESSAGES, LARGE_BYTES);
    from.until(&Got::Sent { corr: 8 + MESSAGES });
    writing.join().unwrap();
    drop((from, to));
    all_gone(&gateway);
    gateway.stop(PATIENCE).unwrap();
}

/// Far fewer buffers than the senders could use.
#[test]
fn without_buffers_everybody_gets_through() {
    let _turn = together();
    const SENDERS: u64 = 12;
    let mut options = options(1);
    options.ring.buffers = 4;
    let gateway = start(options);
    let address = gateway.local_addr();
    let pairs: Vec<(Client, Client)> = (0..SENDERS)
        .map(|pair| {
            (
                Client::login(address, 1 + pair),
                Client::login(address, 101 + pair),
            )
        })
        .collect();
    thread::scope(|scope| {
        for (mut from, mut to) in pairs {
            scope.spawn(move || {
                for round in 0..4 {
                    let numbers = 1 + 50 * round..51 + 50 * round;
                    from.write(&burst(to.user, numbers.clone(), LARGE_BYTES));
                    from.until(&Got::Sent {
                        corr: numbers.end - 1,
                    });
                    expect(&mut to, from.user, numbers, LARGE_BYTES);
                }
            });
        }
    });
    all_gone(&gateway);
    assert!(sum(&gateway, "portico_receive_buffers_exhausted_total", "") > 0);
    assert!(ended(&gateway, "cut") > 0);
    assert_eq!(in_bulk(&gateway), 0);
    gateway.stop(PATIENCE).unwrap();
}

/// However a connection ends while it sends in bulk, its slot and its buffers come back.
#[test]
fn a_bulk_sender_may_end_in_any_way() {
    let _turn = together();
    let gateway = start(options(2));
    let address = gateway.local_addr();
    for round in 0..40_u64 {
        let mut from = Client::login(address, 1 + round);
        let bytes = burst(999, 1..41, LARGE_BYTES);
        let cut = bytes.len() - 3_000 * (round as usize % 7);
        from.write(&bytes[..cut]);
        match round % 4 {
            // Without a word, in the middle of a frame or at its end.
            0 => drop(from),
            // With a reset.
            1 => SockRef::from(&from.stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap(),
            // By the gateway, while it goes on writing.
            2 => {
                from.write(&bytes[cut..]);
                // A second HELLO is a violation, and so is everything that follows it.
                let mut garbage = hello(1 + round);
                garbage.resize(300_000, 0xff);
                let mut writer = from.stream.try_clone().unwrap();
                let writing = thread::spawn(move || {
                    let _ = writer.write_all(&garbage);
                });
                while from.next() != Got::Close(CloseCode::PROTOCOL_ERROR) {}
                drop(from);
                writing.join().unwrap();
            }
            // By another connection of the device.
            _ => {
                let _next = Client::login(address, 1 + round);
                while from.next() != Got::Close(CloseCode::SESSION_REPLACED) {}
            }
        }
    }
    all_gone(&gateway);
    assert!(begun(&gateway) >= 20);
    assert_eq!(in_bulk(&gateway), 0);
    assert_eq!(sum(&gateway, "portico_farewells_lost_total", ""), 0);
    // All buffers are there: twice as much as they hold comes through.
    let mut from = Client::login(address, 5_000);
    let mut to = Client::login(address, 5_001);
    from.write(&burst(5_001, 1..200, LARGE_BYTES));
    expect(&mut to, 5_000, 1..200, LARGE_BYTES);
    drop((from, to));
    gateway.stop(PATIENCE).unwrap();
}

/// Its answers pile up until the gateway gives it up; nobody else notices.
#[test]
fn a_bulk_sender_that_does_not_read_is_closed() {
    let _turn = together();
    let mut options = options(1);
    options.limits.stalled_ms = 1_000;
    let gateway = start(options);
    let mut from = Client::login(gateway.local_addr(), 1);
    let mut other = Client::login(gateway.local_addr(), 2);
    SockRef::from(&from.stream)
        .set_recv_buffer_size(4 << 10)
        .unwrap();
    let writing = thread::spawn(move || {
        let bytes = ephemeral(999, LARGE_BYTES).repeat(40);
        let begun = Instant::now();
        let error = loop {
            if let Err(error) = from.stream.write_all(&bytes) {
                break error;
            }
            assert!(begun.elapsed() < PATIENCE, "it may write for ever");
        };
        assert!(
            matches!(
                error.kind(),
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
            ),
            "{error}"
        );
    });
    let mut slowest = Duration::ZERO;
    let mut corr = 0;
    while !writing.is_finished() {
        corr += 1;
        let asked = Instant::now();
        other.send(2, corr, b"still there?");
        other.until(&Got::Sent { corr });
        slowest = slowest.max(asked.elapsed());
    }
    writing.join().unwrap();
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(begun(&gateway) > 0);
    assert_eq!(
        sum(
            &gateway,
            "portico_connections_closed_total",
            "code=\"4003\""
        ),
        1
    );
    drop(other);
    all_gone(&gateway);
    gateway.stop(PATIENCE).unwrap();
}
