//! What was said before, through the built program and its embedded store: pages, the list of
//! conversations, withdrawals, and what is handed out or erased when nothing runs.

use crate::harness::{Child, Gateway, Peer, Setup, new_msg_id};
use portico_client::RawFrame;
use portico_wire::{
    ErrorCode, Op, RouteHeader,
    encode::{Encoder, put_routed},
    frame::{ConvKind, Flags},
    ids::{ConvSeq, DeviceId, MsgId, UserId},
    message::{
        Envelope,
        history::{Conversation, ConversationsGet, HistoryEnd, HistoryGet, Revoke},
    },
};
use serde_json::Value;
use std::{fs, path::Path};

fn ask(peer: &mut Peer, get: &HistoryGet) -> u32 {
    let (corr, mut out) = (peer.next_corr(), Vec::new());
    Encoder::new().history_get(&mut out, corr, get);
    peer.write(&out);
    corr
}

/// All frames of the answer to `corr`.
fn answer(peer: &mut Peer, corr: u32) -> Vec<RawFrame> {
    let mut frames = Vec::new();
    loop {
        let frame = peer.take("an answer", |frame| {
            (frame.corr == corr).then(|| frame.clone())
        });
        let last = !frame.flags.contains(Flags::MORE);
        frames.push(frame);
        if last {
            return frames;
        }
    }
}

/// The texts of a page, `None` for what was withdrawn, and its end. A withdrawal is no text.
fn page(peer: &mut Peer, get: &HistoryGet) -> (Vec<Option<String>>, HistoryEnd) {
    let corr = ask(peer, get);
    let frames = answer(peer, corr);
    let (last, entries) = frames.split_last().expect("a page has an end");
    assert_eq!(last.known_op(), Some(Op::HistoryEnd));
    let messages = entries
        .iter()
        .filter(|entry| entry.known_op() == Some(Op::Deliver));
    let text = |entry: &RawFrame| {
        let envelope = (!entry.body.is_empty()).then(|| Envelope::decode(&entry.body));
        let body = envelope.map(|envelope| envelope.expect("an Envelope").body.to_vec());
        body.map(|body| String::from_utf8(body).expect("a text"))
    };
    let end = HistoryEnd::decode(&last.body).expect("a valid body");
    (messages.map(text).collect(), end)
}

fn with(peer: u64) -> HistoryGet {
    HistoryGet {
        conv_kind: ConvKind::DIRECT,
        conv: peer,
        ..HistoryGet::default()
    }
}

fn conversations(peer: &mut Peer) -> Vec<Conversation> {
    let (corr, mut out) = (peer.next_corr(), Vec::new());
    Encoder::new().conversations_get(&mut out, corr, &ConversationsGet::default());
    peer.write(&out);
    let frames = answer(peer, corr);
    let (last, rows) = frames.split_last().expect("a list has an end");
    assert_eq!(last.known_op(), Some(Op::Done));
    let row = |frame: &RawFrame| Conversation::decode(&frame.body).expect("a valid body");
    rows.iter().map(row).collect()
}

fn withdraw(peer: &mut Peer, to: u64, target: &Revoke) -> u32 {
    let (corr, mut out) = (peer.next_corr(), Vec::new());
    let route = RouteHeader {
        msg_id: new_msg_id(),
        conv: to,
        conv_kind: ConvKind::DIRECT,
        ..RouteHeader::default()
    };
    let mut encoder = Encoder::new();
    let body = encoder.revoke(target);
    put_routed(
        &mut out,
        Op::Revoke as u8,
        Flags::NONE,
        corr,
        0,
        &route,
        body,
    );
    peer.write(&out);
    corr
}

fn send(peer: &mut Peer, to: u64, text: &str) -> (ConvSeq, MsgId) {
    let (corr, msg_id) = peer.post(to, text);
    (peer.sent(corr).0, msg_id)
}

#[test]
fn pages_survive_a_restart_and_end_where_they_say() {
    let gateway = Gateway::start();
    let (mut alice, mut bob) = (gateway.login(1, 1), gateway.login(2, 1));
    for n in 0..60 {
        let (from, to) = if n % 2 == 0 {
            (&mut alice, 2)
        } else {
            (&mut bob, 1)
        };
        from.send(to, &n.to_string());
    }
    let setup = gateway.setup().clone();
    gateway.stop();
    let gateway = setup.start();
    let (mut alice, mut bob) = (gateway.login(1, 1), gateway.login(2, 1));
    for (peer, other) in [(&mut alice, 2), (&mut bob, 1)] {
        for forward in [false, true] {
            let mut get = HistoryGet {
                limit: 25,
                forward,
                ..with(other)
            };
            let (mut all, mut pages) = (Vec::new(), 0);
            loop {
                let (texts, end) = page(peer, &get);
                all.extend(texts.into_iter().flatten());
                (get.before, get.after) = if forward {
                    (ConvSeq(0), end.next)
                } else {
                    (end.next, ConvSeq(0))
                };
                pages += 1;
                if !end.more {
                    break;
                }
            }
            if !forward {
                all.reverse();
            }
            let expected: Vec<_> = (0..60).map(|n| n.to_string()).collect();
            assert_eq!((all, pages), (expected, 3));
        }
    }
    let wrong = HistoryGet {
        limit: 101,
        ..with(2)
    };
    let corr = ask(&mut alice, &wrong);
    assert_eq!(alice.refused(corr).code, ErrorCode::BAD_ARGUMENT);
    let group = HistoryGet {
        conv_kind: ConvKind::GROUP,
        ..with(5)
    };
    let corr = ask(&mut alice, &group);
    assert_eq!(alice.refused(corr).code, ErrorCode::NOT_MEMBER);
}

#[test]
fn a_new_device_finds_its_conversations_and_what_is_unread() {
    let gateway = Gateway::start();
    let mut reader = gateway.login(1, 1);
    let mut newest = ConvSeq(0);
    for from in 2..6 {
        let mut peer = gateway.login(from, 1);
        for n in 0..from {
            newest = peer.send(1, &n.to_string());
        }
    }
    reader.read(5, newest);
    let mut tablet = gateway.login(1, 2);
    let rows = conversations(&mut tablet);
    let found: Vec<_> = rows.iter().map(|row| (row.conv, row.unread)).collect();
    assert_eq!(found, [(5, 0), (4, 4), (3, 3), (2, 2)]);
    assert_eq!((rows[0].head_seq, rows[0].read_seq), (newest, newest));
}

#[test]
fn a_withdrawn_message_is_gone_for_everybody() {
    let gateway = Gateway::start();
    let (mut alice, mut bob) = (gateway.login(1, 1), gateway.login(2, 1));
    let (place, msg_id) = send(&mut alice, 2, "not meant so");
    send(&mut alice, 2, "this stays");
    let target = Revoke {
        seq: place,
        user: UserId(1),
        device: DeviceId(1),
        msg_id,
    };
    let corr = withdraw(&mut bob, 1, &target);
    assert_eq!(bob.refused(corr).code, ErrorCode::FORBIDDEN);
    let elsewhere = Revoke {
        device: DeviceId(2),
        ..target
    };
    let corr = withdraw(&mut alice, 2, &elsewhere);
    assert_eq!(alice.refused(corr).code, ErrorCode::NOT_FOUND);
    let corr = withdraw(&mut alice, 2, &target);
    let (of_it, again) = alice.sent(corr);
    assert!(of_it > place && !again);
    let told = bob.take("REVOKE", |frame| {
        (frame.known_op() == Some(Op::Revoke)).then(|| frame.clone())
    });
    assert_eq!(Revoke::decode(&told.body), Ok(target));
    for (peer, other) in [(&mut alice, 2), (&mut bob, 1)] {
        let (texts, _) = page(peer, &with(other));
        assert_eq!(texts, [Some("this stays".to_owned()), None]);
    }
}

fn files_with(dir: &Path, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files_with(&path, bytes));
        } else if let Ok(content) = fs::read(&path)
            && content.windows(bytes.len()).any(|part| part == bytes)
        {
            found.push(path.display().to_string());
        }
    }
    found
}

fn portico(setup: &Setup, arguments: &[&str]) -> crate::harness::Exit {
    let data = setup.data();
    let data = data.to_str().expect("a plain path");
    let arguments: Vec<_> = arguments.iter().copied().chain(["--data", data]).collect();
    Child::run(&arguments, &[])
}

#[test]
fn a_user_is_handed_out_and_erased_while_nothing_runs() {
    const MARKER: &str = "nobody-reads-this-again";
    let gateway = Gateway::start();
    let (mut alice, mut bob) = (gateway.login(1, 1), gateway.login(2, 1));
    for n in 0..20 {
        alice.send(2, &format!("{MARKER} {n}"));
        bob.send(1, &format!("from bob {n}"));
    }
    let setup = gateway.setup().clone();
    for command in [
        &["user", "erase", "--user", "1", "--yes"][..],
        &["user", "export", "--user", "1"],
    ] {
        let refused = portico(&setup, command);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.err.contains("in use"), "{refused:?}");
    }
    gateway.stop();
    assert!(!files_with(&setup.data(), MARKER.as_bytes()).is_empty());

    let exported = portico(&setup, &["user", "export", "--user", "1"]);
    assert_eq!(exported.code, Some(0), "{exported:?}");
    let lines = exported.out.lines().map(serde_json::from_str::<Value>);
    let lines: Vec<_> = lines.map(|line| line.expect("a line of JSON")).collect();
    let messages = lines.iter().filter(|line| line["type"] == "message");
    assert_eq!(messages.clone().count(), 40);
    assert!(messages.clone().all(|line| line["conv"] == "2"));
    assert_eq!(messages.filter(|line| line["user"] == "1").count(), 20);
    assert!(lines.iter().any(|line| line["type"] == "cursor"));
    let file = setup.directory().join("user-1.jsonl");
    let out = file.to_str().expect("a plain path");
    let written = portico(&setup, &["user", "export", "--user", "1", "--out", out]);
    assert_eq!(written.code, Some(0), "{written:?}");
    let again = portico(&setup, &["user", "export", "--user", "1", "--out", out]);
    assert_eq!(again.code, Some(1));
    assert!(again.err.contains("is there already"), "{again:?}");

    let unsure = portico(&setup, &["user", "erase", "--user", "1"]);
    assert_eq!(unsure.code, Some(64));
    assert!(unsure.err.contains("--yes"), "{unsure:?}");
    let erased = portico(&setup, &["user", "erase", "--user", "1", "--yes", "--json"]);
    assert_eq!(erased.code, Some(0), "{erased:?}");
    let report: Value = serde_json::from_str(&erased.out).expect("JSON");
    assert_eq!(report["bodies"], 20);
    assert_eq!(report["user"], "1");
    let holding = files_with(&setup.data(), MARKER.as_bytes());
    assert!(holding.is_empty(), "still there: {holding:?}");

    // Bob keeps his own words, and where Alice's were.
    let gateway = setup.start();
    let mut bob = gateway.login(2, 1);
    let (texts, _) = page(&mut bob, &with(1));
    assert_eq!(texts.iter().flatten().count(), 20);
    assert_eq!(texts.len(), 40);
}
