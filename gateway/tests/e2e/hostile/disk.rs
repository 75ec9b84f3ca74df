//! A disk that fills up, becomes read-only or stalls, under load: refused with a code, told to the
//! operator, and nothing that was acknowledged is lost.

use crate::harness::{Gateway, PATIENCE, Peer, Setup, SmallDisk, eventually, new_msg_id, wall_us};
use portico_client::RawError;
use portico_wire::{ErrorCode, Flags, Op, message::ErrorReply};
use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Sent,
    Refused(ErrorCode),
    /// The connection ended first.
    Unknown,
}

fn fate(peer: &mut Peer, corr: u32) -> Fate {
    loop {
        match peer.conn.expect_frame(PATIENCE) {
            Ok(frame) if frame.corr != corr => {}
            Ok(frame) if frame.known_op() == Some(Op::Sent) => return Fate::Sent,
            Ok(frame) => {
                assert_eq!(frame.known_op(), Some(Op::Error), "{frame:?}");
                let reply = ErrorReply::decode(&frame.body).expect("an ErrorReply");
                return Fate::Refused(reply.code);
            }
            Err(RawError::Io(error)) if error.kind() == std::io::ErrorKind::TimedOut => {
                panic!("neither accepted nor refused");
            }
            Err(_) => return Fate::Unknown,
        }
    }
}

/// Sends until a message is refused. Returns the accepted ones; the others are added to `open`.
fn send_until_refused(sender: &mut Peer, size: usize, open: &mut Vec<String>) -> Vec<String> {
    let filler = "z".repeat(size);
    let mut accepted = Vec::new();
    for n in 0.. {
        assert!(n < 5_000, "the disk does not fill up");
        let text = format!("{n} {filler}");
        let (corr, _) = sender.post(2, &text);
        match fate(sender, corr) {
            Fate::Sent => accepted.push(text),
            fate => {
                // A code that says try again, with RETRY: nobody knows whether it is stored.
                let told = [ErrorCode::UNAVAILABLE, ErrorCode::TIMEOUT].map(Fate::Refused);
                assert!(told.contains(&fate), "{fate:?} after {n} messages");
                open.push(text);
                return accepted;
            }
        }
    }
    unreachable!("the loop returns")
}

/// /readyz has turned red, and says why.
fn is_red(gateway: &Gateway, why: &str) {
    let page = eventually("/readyz is red", || {
        Some(gateway.get("/readyz")).filter(|page| page.status == 503)
    });
    assert!(page.body.contains(why), "{}", page.body);
    assert_eq!(gateway.get("/healthz").status, 200);
    assert_eq!(gateway.metrics().get("portico_store_up"), 0);
}

fn is_green(gateway: &Gateway) {
    eventually("/readyz is green", || {
        (gateway.get("/readyz").status == 200).then_some(())
    });
    assert_eq!(gateway.metrics().get("portico_store_up"), 1);
}

/// All that was accepted arrives in its order, up to "after". What was refused with "outcome
/// unknown" may be there too.
fn arrives(gateway: &Gateway, device: u16, accepted: &[String], open: &[String]) {
    let mut reader = gateway.login(2, device);
    let mut arrived = Vec::new();
    while arrived.last().is_none_or(|text| text != "after") {
        arrived.push(reader.receive().text);
    }
    arrived.pop();
    arrived.retain(|text| !open.contains(text));
    let heads = |texts: &[String]| -> Vec<String> {
        let heads = texts.iter().map(|text| text.chars().take(8).collect());
        heads.collect()
    };
    assert_eq!(heads(&arrived), heads(accepted));
    assert!(arrived == accepted);
}

/// Red while it is full, green when there is room again, without a restart and with the same
/// connections; and a restart finds the same.
#[test]
fn a_full_disk_refuses_messages_and_loses_none() {
    let directory = TempDir::new().expect("a temporary directory");
    let Some(disk) = SmallDisk::in_memory(directory.path(), 256) else {
        return;
    };
    let setup = Setup::within(directory)
        .set("limits.store_timeout_ms", 5_000)
        .expect_log("store");
    let gateway = setup.start();
    let refused = gateway.watch(r#"portico_requests_refused_total{reason="store"}"#);
    let mut sender = gateway.login(1, 1);
    sender.send(2, "before");
    let ballast = disk.fill_up_to(4 << 20);
    let mut open = Vec::new();
    let mut accepted = vec!["before".to_owned()];
    accepted.extend(send_until_refused(&mut sender, 50_000, &mut open));
    println!(
        "{} messages were accepted before the disk was full",
        accepted.len()
    );
    refused.moves();
    is_red(&gateway, "store");

    // Nothing is written while it is full, and what needs no disk goes on.
    let (corr, _) = sender.post(2, "while full");
    assert!(matches!(fate(&mut sender, corr), Fate::Refused(_)));
    open.push("while full".to_owned());
    sender.ping();

    let freed = Instant::now();
    fs::remove_file(ballast).expect("it is there");
    is_green(&gateway);
    println!(
        "it took messages again {:?} after there was room",
        freed.elapsed()
    );
    sender.send(2, "after");
    arrives(&gateway, 1, &accepted, &open);
    gateway.still_serves();
    gateway.kill();

    let gateway = setup.start();
    arrives(&gateway, 2, &accepted, &open);
    gateway.still_serves();
    drop(gateway);
    drop(disk);
}

/// As a file system does it by itself when its disk fails.
#[test]
fn a_disk_that_becomes_read_only_refuses_messages_and_loses_none() {
    let directory = TempDir::new().expect("a temporary directory");
    let Some(disk) = SmallDisk::in_a_file(directory.path(), 128) else {
        return;
    };
    let setup = Setup::within(directory)
        .set("limits.store_timeout_ms", 5_000)
        .expect_log("store");
    let gateway = setup.start();
    let mut sender = gateway.login(1, 1);
    let mut accepted: Vec<String> = (0..20).map(|n| format!("{n} before")).collect();
    for text in &accepted {
        sender.send(2, text);
    }
    // A device that the store knows; a new one would wait until it can be written down.
    drop(gateway.login(2, 1));
    disk.fail();
    let mut open = Vec::new();
    accepted.extend(send_until_refused(&mut sender, 1_000, &mut open));
    is_red(&gateway, "read-only");
    sender.ping();
    // What is there can be read.
    assert_eq!(gateway.login(2, 1).message().text, accepted[0]);
    gateway.kill();

    // It is refused while it is read-only, with the directory and what to do.
    let exit = setup.start_refused();
    assert_eq!(exit.code, Some(1), "{}", exit.err);
    let data = setup.data().display().to_string();
    for part in [data.as_str(), "can be written to"] {
        assert!(exit.err.contains(part), "{}", exit.err);
    }
    disk.repair();
    let gateway = setup.start();
    gateway.login(1, 1).send(2, "after");
    arrives(&gateway, 1, &accepted, &open);
    gateway.still_serves();
    drop(gateway);
    drop(disk);
}

#[test]
fn a_read_only_directory_is_refused_at_the_start() {
    let directory = TempDir::new().expect("a temporary directory");
    let Some(disk) = SmallDisk::in_memory(directory.path(), 128) else {
        return;
    };
    let setup = Setup::within(directory);
    disk.remount("ro");
    // Before there is anything, and when there is a store.
    for made in [false, true] {
        if made {
            disk.remount("rw");
            setup.start().stop();
            disk.remount("ro");
        }
        let exit = setup.start_refused();
        assert_eq!(exit.code, Some(1), "{}", exit.err);
        let data = setup.data().display().to_string();
        assert!(exit.err.contains(&data), "{}", exit.err);
        assert!(exit.err.contains("Read-only file system"), "{}", exit.err);
    }
    disk.remount("rw");
    setup.start().still_serves();
    drop(disk);
}

/// A message is answered when the disk goes on, or sooner with a code. Whatever needs no commit goes
/// on meanwhile.
#[test]
fn a_disk_that_stalls_for_five_seconds_delays_commits_and_nothing_else() {
    const STALL: Duration = Duration::from_secs(5);
    let directory = TempDir::new().expect("a temporary directory");
    let Some(disk) = SmallDisk::in_a_file(directory.path(), 128) else {
        return;
    };
    let setup = Setup::within(directory);
    let gateway = setup.start();
    let (mut sender, mut reader) = (gateway.login(1, 1), gateway.login(2, 1));
    // A device that the store knows; a new one is in when that is written down.
    drop(gateway.login(3, 1));
    let mut open: BTreeSet<u32> = BTreeSet::new();
    sender.send(2, "before");
    assert_eq!(reader.receive().text, "before");
    assert_eq!(gateway.get("/readyz").status, 200);

    let thaw = disk.freeze();
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    let mut reds = 0;
    while begun.elapsed() < STALL {
        if open.len() < 40 {
            open.insert(sender.post(2, "during").0);
        }
        let asked = Instant::now();
        sender.ping();
        let sent = wall_us();
        let corr = sender.next_corr();
        sender.post_as(corr, 2, new_msg_id(), Flags::EPHEMERAL, &sent.to_string());
        assert_eq!(sender.reply(corr).known_op(), Some(Op::Done));
        let got = reader.message();
        assert!(
            got.ephemeral,
            "a message was shown before it was stored: {got:?}"
        );
        assert_eq!(got.text, sent.to_string());
        // Somebody comes, and leaves.
        drop(gateway.login(3, 1));
        slowest = slowest.max(asked.elapsed());
        reds += u64::from(gateway.get("/readyz").status == 503);
    }
    assert!(reds > 0, "/readyz was never red");
    is_red(&gateway, "a commit has been running");
    drop(thaw);
    is_green(&gateway);
    println!("during the stall a PING, an ephemeral message and a login took {slowest:?} at most");
    // Under the load of other tests too: the disk stood still for longer.
    assert!(slowest < STALL / 2, "{slowest:?}");

    // Each has its answer, and those with SENT have arrived.
    let mut sent = 0;
    let told = [
        ErrorCode::OVERLOADED,
        ErrorCode::UNAVAILABLE,
        ErrorCode::TIMEOUT,
    ];
    for corr in open {
        let reply = sender.reply(corr);
        if reply.known_op() == Some(Op::Sent) {
            sent += 1;
            continue;
        }
        let reply = ErrorReply::decode(&reply.body).expect("an ErrorReply");
        assert!(told.contains(&reply.code), "{reply:?}");
    }
    assert!(sent > 0);
    for _ in 0..sent {
        assert_eq!(reader.receive().text, "during");
    }
    gateway.still_serves();
    drop(gateway);
    drop(disk);
}
