//! Checks of what was said before: pages in both directions, redaction, the references of an inbox
//! from its end, and counting.

use super::ids::{Direct, append, conv, entry, entry_at, reference_at, tick, user};
use super::messages::{Messenger, TURNS_US, all_history, inbox, messenger};
use super::{Outcome, ensure, ensure_eq};
use crate::messages::{Cmd, Entry, InboxRef, Messages, Reply};
use crate::{Backend, Kind};
use bytes::Bytes;
use portico_wire::ids::{ConvId, ConvSeq, Seq, UserId};
use std::sync::Arc;

fn between(
    client: &mut Messenger,
    conv: ConvId,
    (after, before): (u64, u64),
    forward: bool,
    limit: u32,
    max_bytes: u32,
) -> Result<(Vec<Entry>, bool), String> {
    let cmd = Cmd::History {
        conv,
        after: ConvSeq(after),
        before: ConvSeq(before),
        forward,
        limit,
        max_bytes,
    };
    match client.ok(&cmd)? {
        Reply::Entries { entries, more } => {
            ensure!(entries.len() <= limit as usize, "a history keeps its limit");
            Ok((entries, more))
        }
        other => Err(format!("History is answered with entries, not {other:?}")),
    }
}

pub(super) fn reads_forward_and_stops(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (conv, from) = (conv(), user());
    let sent: Vec<_> = (0..25).map(|_| entry(conv, from)).collect();
    let cmds: Vec<_> = sent.iter().map(|entry| append(entry, Vec::new())).collect();
    client.all_ok(&cmds)?;
    for (limit, max_bytes) in [(10, u32::MAX), (10, 450), (1, u32::MAX), (25, u32::MAX)] {
        let (mut seen, mut after) = (Vec::new(), 0);
        loop {
            let range = (after, u64::MAX);
            let (entries, more) = between(&mut client, conv, range, true, limit, max_bytes)?;
            after = entries.last().map_or(after, |entry| entry.conv_seq.0);
            ensure!(
                !more || !entries.is_empty(),
                "a page that was cut has an entry"
            );
            seen.extend(entries);
            if !more {
                break;
            }
        }
        ensure!(
            seen.iter().eq(&sent),
            "oldest first, without gap or repetition"
        );
    }
    // Both ends are exclusive, in both directions.
    let (first, last) = (sent[4].conv_seq.0, sent[9].conv_seq.0);
    for forward in [false, true] {
        let page = between(&mut client, conv, (first, last), forward, 100, u32::MAX)?;
        let (mut entries, more) = page;
        if !forward {
            entries.reverse();
        }
        ensure!(!more, "what was asked for is all there is");
        ensure!(entries == sent[5..9], "a page stops where it is told to");
        for (after, before) in [
            (last, first),
            (first, first),
            (first, first + 1),
            (u64::MAX, u64::MAX),
            (u64::MAX, 0),
            (0, 0),
            (0, 1),
        ] {
            let range = (after, before);
            let (entries, more) = between(&mut client, conv, range, forward, 10, u32::MAX)?;
            ensure!(
                entries.is_empty() && !more,
                "nothing lies between {after} and {before}"
            );
        }
    }
    Ok(())
}

pub(super) fn crosses_months_both_ways(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (conv, from) = (conv(), user());
    let mut times: Vec<u64> = TURNS_US.iter().flat_map(|turn| [turn - 1, *turn]).collect();
    times.sort_unstable();
    let sent: Vec<_> = times.iter().map(|at| entry_at(conv, from, *at)).collect();
    let cmds: Vec<_> = sent.iter().map(|entry| append(entry, Vec::new())).collect();
    client.all_ok(&cmds)?;
    let all = (0, u64::MAX);
    let (entries, _) = between(&mut client, conv, all, true, 100, u32::MAX)?;
    ensure!(entries == sent, "forward over the turns of months");
    let inner = (times[0], times[5]);
    let (entries, _) = between(&mut client, conv, inner, true, 100, u32::MAX)?;
    ensure!(entries == sent[1..5], "from within a month into another");
    let (mut entries, _) = between(&mut client, conv, inner, false, 100, u32::MAX)?;
    entries.reverse();
    ensure!(entries == sent[1..5], "and back");
    Ok(())
}

pub(super) fn redacting_takes_the_body_alone(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (conv, from, to) = (conv(), user(), user());
    let sent: Vec<_> = (0..3).map(|_| Direct::new(conv, from, to)).collect();
    client.all_ok(&sent.iter().map(Direct::cmd).collect::<Vec<_>>())?;
    let redact = |entry: &Entry| Cmd::Redact {
        conv: entry.conv,
        conv_seq: entry.conv_seq,
    };
    let bare = |entry: &Entry| Entry {
        body: Bytes::new(),
        ..entry.clone()
    };
    // Twice: it is idempotent.
    for _ in 0..2 {
        client.ok(&redact(&sent[1].entry))?;
        let expected = [
            sent[2].entry.clone(),
            bare(&sent[1].entry),
            sent[0].entry.clone(),
        ];
        let found = all_history(&mut client, conv)?;
        ensure!(found == expected, "one body goes, and nothing else");
        let items = inbox(&mut client, to)?;
        ensure!(
            items.len() == 3 && items[1].entry == bare(&sent[1].entry),
            "a replay brings the entry without its body"
        );
    }
    // What is not there is not made, in months that exist and in others.
    let absent = entry(conv, from);
    let long_ago = entry_at(conv, from, 1);
    client.all_ok(&[redact(&absent), redact(&long_ago)])?;
    let count = all_history(&mut client, conv)?.len();
    ensure_eq!(count, 3, "redacting what is not there leaves nothing");
    // In the same batch as the entry, after it.
    let late = entry(conv, from);
    // (If one of the two is lost on its way, this says nothing.)
    let answers = client.attempt(&[append(&late, Vec::new()), redact(&late)])?;
    let found = all_history(&mut client, conv)?;
    ensure!(
        answers.iter().any(Result::is_err) || found.first() == Some(&bare(&late)),
        "an entry of the same batch is redacted too"
    );
    let beyond = Cmd::Redact {
        conv,
        conv_seq: ConvSeq(u64::MAX),
    };
    let answers = client.settle(&[beyond])?;
    let kind = answers[0].as_ref().err().map(|error| error.kind);
    ensure_eq!(kind, Some(Kind::Invalid), "no number is past the greatest");
    Ok(())
}

fn references(
    client: &mut Messenger,
    user: UserId,
    before: Seq,
    limit: u32,
) -> Result<(Vec<InboxRef>, bool), String> {
    let cmd = Cmd::References {
        user,
        before,
        limit,
    };
    match client.ok(&cmd)? {
        Reply::References { refs, more } => {
            ensure!(refs.len() <= limit as usize, "references keep their limit");
            Ok((refs, more))
        }
        other => Err(format!("References is answered with them, not {other:?}")),
    }
}

pub(super) fn references_go_back_without_entries(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (to, conv, from) = (user(), conv(), user());
    let (refs, more) = references(&mut client, to, Seq(u64::MAX), 10)?;
    ensure!(refs.is_empty() && !more, "an unknown inbox is empty");
    let old = entry_at(conv, from, TURNS_US[1] - 1);
    let mut expected = vec![reference_at(to, TURNS_US[1] + 1, &old)];
    client.ok(&append(&old, expected.clone()))?;
    let sent: Vec<_> = (0..9).map(|_| Direct::new(conv, from, to)).collect();
    client.all_ok(&sent.iter().map(Direct::cmd).collect::<Vec<_>>())?;
    // A reference to nothing is one all the same.
    let absent = entry(conv, from);
    let dangling = reference_at(to, tick(), &absent);
    client.ok(&Cmd::AddRefs {
        refs: vec![dangling],
    })?;
    expected.extend(sent.iter().map(|direct| direct.reference));
    expected.push(dangling);
    expected.reverse();
    for limit in [1, 4, 11, 12, u32::MAX] {
        let (mut seen, mut before) = (Vec::new(), Seq(u64::MAX));
        loop {
            let (refs, more) = references(&mut client, to, before, limit)?;
            before = refs.last().map_or(before, |reference| reference.seq);
            ensure!(!more || !refs.is_empty(), "a page that was cut has one");
            seen.extend(refs);
            if !more {
                break;
            }
        }
        ensure!(seen == expected, "newest first, over the turns of months");
    }
    let (refs, more) = references(&mut client, to, Seq(0), 10)?;
    ensure!(refs.is_empty() && !more, "nothing comes before the first");
    Ok(())
}

pub(super) fn counts_what_others_wrote(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (conv, own, other) = (conv(), user(), user());
    let mut sent = Vec::new();
    for at in 0..20 {
        let mut entry = entry(conv, if at % 4 == 0 { own } else { other });
        (entry.meta.op, entry.meta.kind) = (34, u8::from(at % 5 == 0));
        sent.push(entry);
    }
    let cmds: Vec<_> = sent.iter().map(|entry| append(entry, Vec::new())).collect();
    client.all_ok(&cmds)?;
    // Of 20 there are 5 own ones and, of the others, 3 of another kind: those at 5, 10 and 15.
    let mut count = |after: u64, before: u64, not_by, op, kind, limit| {
        let cmd = Cmd::Count {
            conv,
            after: ConvSeq(after),
            before: ConvSeq(before),
            not_by,
            op,
            kind,
            limit,
        };
        client.ok(&cmd)
    };
    let of = |count| Ok::<_, String>(Reply::Count(count));
    ensure_eq!(count(0, u64::MAX, own, 34, 0, 1_000), of(12), "of others");
    ensure_eq!(count(0, u64::MAX, other, 34, 0, 1_000), of(4), "by author");
    ensure_eq!(count(0, u64::MAX, own, 34, 1, 1_000), of(3), "by kind");
    ensure_eq!(count(0, u64::MAX, own, 42, 0, 1_000), of(0), "by operation");
    ensure_eq!(count(0, u64::MAX, own, 34, 0, 7), of(7), "up to a limit");
    let (first, last) = (sent[1].conv_seq.0, sent[7].conv_seq.0);
    ensure_eq!(
        count(first, last, own, 34, 0, 1_000),
        of(3),
        "between two numbers, both exclusive"
    );
    ensure_eq!(count(last, first, own, 34, 0, 9), of(0), "nothing between");
    client.ok(&Cmd::Redact {
        conv,
        conv_seq: sent[1].conv_seq,
    })?;
    let cmd = Cmd::Count {
        conv,
        after: ConvSeq(0),
        before: ConvSeq(u64::MAX),
        not_by: own,
        op: 34,
        kind: 0,
        limit: 1_000,
    };
    ensure_eq!(client.ok(&cmd)?, Reply::Count(11), "only what has a body");
    Ok(())
}
