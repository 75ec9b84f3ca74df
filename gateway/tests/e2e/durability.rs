//! `kill -9` under load, again and again: no message that had a SENT is lost, none is accepted twice,
//! and everything arrives in its sender's order.
//!
//! Writers send without pause and write down every SENT; readers write down every arrival and
//! acknowledge behind. Each round starts the gateway on the same data, lets them work until a
//! random number of messages is acknowledged, and kills it at once; every few rounds it is killed
//! while it starts. After the last kill everything is made good, and the records must agree.

mod library;
mod reader;
mod writer;

use crate::harness::{Child, Exit, Gateway, PATIENCE, Random, Setup, eventually};
use library::Pair;
use reader::Reader;
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};
use writer::Writer;

/// Kills of gateways on one data directory. `PORTICO_E2E_KILLS` sets another sum; more than these take
/// place in several directories, one after the other, so that a thousand take no longer each than sixty.
/// With `PORTICO_E2E_KILLS_EACH` a directory outlives so many instead, and grows.
const KILLS: u64 = 60;
/// Every so many kills the gateway is killed before it is ready, once or more in a row: while it reads
/// and mends what the kill before has left, and while it mends what it was mending.
const EARLY_EVERY: u64 = 6;
const EARLY_IN_A_ROW_MAX: u64 = 3;
/// Every so many kills the store is looked at before the next start.
const CHECK_EVERY: u64 = 25;
/// A round ends after at most so many acknowledged messages.
const ROUND_SENT_MAX: u64 = 500;
/// After this the writers of a round stop making new messages, which bounds the time of the test.
const ROUND_MESSAGES_MAX: u64 = 400;
const READERS: u64 = 2;
const WRITERS: u64 = 4;
const FIRST_READER: u64 = 200;
const FIRST_WRITER: u64 = 100;

/// What the clients of a round share.
#[derive(Debug, Default)]
struct Round {
    /// Messages that got SENT in this round.
    sent: AtomicU64,
    /// No new messages any more.
    closing: AtomicBool,
    /// The gateway was killed: connections that end are no surprise.
    over: AtomicBool,
}

impl Round {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    fn count_sent(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn nothing_acknowledged_is_lost_by_sixty_kills() {
    let mut random = Random::announced("sixty_kills");
    let mut left = number("PORTICO_E2E_KILLS").unwrap_or(KILLS);
    let each = number("PORTICO_E2E_KILLS_EACH").unwrap_or(KILLS);
    let mut lives = 0;
    while left > 0 {
        let kills = left.min(each);
        one_life(kills, &mut random);
        left -= kills;
        lives += 1;
        println!("{lives} lives, {left} kills to go");
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("the variable is a number"))
}

/// So many kills of gateways on one data directory, and what is left in the end.
fn one_life(kills: u64, random: &mut Random) {
    let setup = Setup::new();
    let mut readers: Vec<_> = (0..READERS)
        .map(|n| Reader::new(FIRST_READER + n))
        .collect();
    let mut writers: Vec<_> = (0..WRITERS)
        .map(|n| Writer::new(FIRST_WRITER + n, FIRST_READER + n % READERS))
        .collect();
    let mut pair = Pair::new(300, 301);
    // The key is there before the first kill.
    setup.start().stop();

    let start = Instant::now();
    let mut early = 0;
    for kill in 1..=kills {
        if kill % CHECK_EVERY == 0 {
            is_sound_or_torn(&setup);
        }
        if kill % EARLY_EVERY == 0 {
            early = 1 + random.below(EARLY_IN_A_ROW_MAX);
        }
        if early > 0 {
            early -= 1;
            kill_while_starting(&setup, random);
            continue;
        }
        let gateway = setup.start();
        let wanted = random.below(ROUND_SENT_MAX);
        let round = Round::default();
        thread::scope(|scope| {
            for reader in &mut readers {
                scope.spawn(|| reader.run(&gateway, &round, kill % 2 == 0));
            }
            for writer in &mut writers {
                scope.spawn(|| writer.run(&gateway, &round, ROUND_MESSAGES_MAX));
            }
            scope.spawn(|| pair.run(&gateway, &round));
            eventually("messages are acknowledged", || {
                (round.sent.load(Ordering::Relaxed) >= wanted).then_some(())
            });
            round.over.store(true, Ordering::Release);
            gateway.child.signal(rustix::process::Signal::KILL);
        });
        gateway.kill();
    }
    println!("{kills} kills in {:?}", start.elapsed());
    is_sound_or_torn(&setup);

    let gateway = setup.start();
    let round = Round::default();
    round.closing.store(true, Ordering::Release);
    thread::scope(|scope| {
        for writer in &mut writers {
            scope.spawn(|| writer.run(&gateway, &round, 0));
        }
        scope.spawn(|| pair.finish(&gateway));
    });
    thread::scope(|scope| {
        for reader in &mut readers {
            scope.spawn(|| reader.finish(&gateway));
        }
    });
    for writer in &writers {
        let reader = &readers[(writer.to() - FIRST_READER) as usize];
        writer.agrees_with(reader);
    }
    pair.agrees();
    let total: usize = writers.iter().map(Writer::sent_count).sum();
    println!(
        "{total} messages of {WRITERS} writers and {} of the library",
        pair.sent_count()
    );
    assert!(total as u64 > kills, "there was no load");
    gateway.still_serves();
    gateway.stop();
    assert_eq!(check(&setup).code, Some(0));
}

fn check(setup: &Setup) -> Exit {
    let data = setup.data().display().to_string();
    let exit = Child::run(&["store", "check", "--data", &data], &[]);
    println!("{}", exit.out.lines().next().unwrap_or(&exit.err));
    exit
}

fn is_sound_or_torn(setup: &Setup) {
    let exit = check(setup);
    assert!(matches!(exit.code, Some(0 | 1)), "{}{}", exit.out, exit.err);
}

/// Somewhere between the start of the program and its ready line, or shortly after.
fn kill_while_starting(setup: &Setup, random: &mut Random) {
    let mut child = setup.spawn();
    let moment = Duration::from_millis(random.below(150));
    thread::sleep(moment);
    child.kill();
    assert!(
        !child.err.text().contains("panicked"),
        "{}",
        child.err.text()
    );
}

/// Messages for somebody who is away wait through a good end and a bad one.
#[test]
fn messages_wait_through_restarts() {
    let setup = Setup::new();
    let mut expected = Vec::new();
    for round in 0..4 {
        let gateway = setup.start();
        let mut sender = gateway.login(1, 1);
        for n in 0..25 {
            let text = format!("round {round}, message {n}");
            sender.send(2, &text);
            expected.push(text);
        }
        if round % 2 == 0 {
            drop(sender);
            gateway.stop();
        } else {
            gateway.kill();
        }
    }
    let gateway = setup.start();
    let mut reader = gateway.login(2, 1);
    let mut last = None;
    for text in &expected {
        let message = reader.receive();
        assert_eq!(message.text, *text);
        let place = (message.seq, message.conv_seq);
        assert!(
            last < Some(place),
            "numbers of the new process are above the old ones"
        );
        last = Some(place);
    }
    reader.has_no(portico_wire::Op::Deliver);
    // What was acknowledged does not come again after the next restart.
    drop(reader);
    gateway.await_metric("portico_unsaved", |count| count == 0);
    gateway.stop();
    setup.start().login(2, 1).has_no(portico_wire::Op::Deliver);
}

/// The number of shards may change between two runs: data belongs to no shard.
#[test]
fn another_number_of_shards_finds_everything() {
    let setup = Setup::new();
    for (shards, texts) in [(1, ["a", "b"]), (4, ["c", "d"]), (3, ["e", "f"])] {
        let gateway: Gateway = setup.clone().flag("--shards", shards).start();
        for (from, text) in (10..).zip(texts) {
            gateway.login(from, 1).send(2, text);
        }
        gateway.kill();
    }
    let gateway = setup.clone().flag("--shards", 2).start();
    let mut reader = gateway.login(2, 1);
    let arrived: String = (0..6).map(|_| reader.receive().text).collect();
    assert_eq!(arrived, "abcdef");
}
