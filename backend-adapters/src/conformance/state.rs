//! The message family: fan-outs, cursors, watermarks, expiry and the ceiling.

use super::ids::{DEVICE, append, conv, entry, entry_at, reference_at, tick, user};
use super::messages::{
    all_history, ceiling, cursors_of, inbox, messenger, open_fan_outs, watermarks_of,
};
use super::{Outcome, ensure, ensure_eq};
use crate::Backend;
use crate::messages::{Cmd, InboxRef, Mark, Messages, Refs, Watermark};
use portico_wire::ids::{ConvSeq, DeviceId, Seq, UserId};
use std::sync::Arc;

pub(super) fn fan_out_stays_open_until_it_ends(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (conv, from) = (conv(), user());
    let messages: Vec<_> = (0..5).map(|_| entry(conv, from)).collect();
    for entry in &messages {
        client.ok(&Cmd::Append {
            entry: entry.clone(),
            refs: Refs::new(),
            fan_out: true,
        })?;
    }
    let open = open_fan_outs(&mut client)?;
    let listed = messages
        .iter()
        .all(|m| open.iter().filter(|o| **o == (conv, m.conv_seq)).count() == 1);
    ensure!(listed, "every open fan-out is listed once");
    let message = &messages[2];
    let members: Vec<UserId> = (0..50).map(|_| user()).collect();
    let refs: Vec<InboxRef> = members
        .iter()
        .map(|member| reference_at(*member, tick(), message))
        .collect();
    let half = refs[..25].to_vec();
    client.ok(&Cmd::AddRefs { refs: half })?;
    // Driven again, as after a crash in the middle.
    client.ok(&Cmd::AddRefs { refs })?;
    let end = Cmd::EndFanOut {
        conv,
        conv_seq: message.conv_seq,
    };
    client.ok(&end)?;
    client.ok(&end)?;
    let open = open_fan_outs(&mut client)?;
    ensure!(
        !open.contains(&(conv, message.conv_seq)),
        "a fan-out that ended is not open"
    );
    let others = open.iter().filter(|(c, _)| *c == conv).count();
    ensure_eq!(others, 4, "the end of one fan-out is not that of another");
    for member in members {
        let items = inbox(&mut client, member)?;
        ensure_eq!(items.len(), 1, "every member has one reference");
        ensure!(items[0].entry == *message, "and all name the same entry");
    }
    for entry in messages {
        let conv_seq = entry.conv_seq;
        client.ok(&Cmd::EndFanOut { conv, conv_seq })?;
    }
    Ok(())
}

pub(super) fn cursors_never_go_back(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let owner = user();
    let found = cursors_of(&mut client, owner)?;
    ensure!(found.is_empty(), "an unknown user has no devices");
    let set = |cursors: &[(u16, u64)]| Cmd::SetCursors {
        cursors: cursors
            .iter()
            .map(|(device, seq)| (owner, DeviceId(*device), Seq(*seq)))
            .collect(),
    };
    client.ok(&set(&[(3, 0)]))?;
    let found = cursors_of(&mut client, owner)?;
    ensure_eq!(
        found,
        vec![(DeviceId(3), Seq(0))],
        "a cursor of 0 registers its device"
    );
    for cursors in [
        &[(2, 300), (1, 500), (2, 200)][..],
        &[(1, 400), (u16::MAX, 900)],
        &[(2, 350), (2, 320), (3, 0)],
    ] {
        client.ok(&set(cursors))?;
    }
    client.all_ok(&[set(&[(2, 360)]), set(&[(2, 340)])])?;
    let found = cursors_of(&mut client, owner)?;
    let expected = [(1, 500), (2, 360), (3, 0), (u16::MAX, 900)];
    let expected = expected.map(|(device, seq)| (DeviceId(device), Seq(seq)));
    ensure_eq!(
        found,
        expected.to_vec(),
        "cursors merge by maximum and list by device"
    );
    Ok(())
}

pub(super) fn watermarks_merge_by_maximum(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (conv, low) = (conv(), user());
    let high = UserId(low.0 + 1);
    let mark = |user, delivered, read, at_s| Mark {
        conv,
        user,
        delivered: ConvSeq(delivered),
        read: ConvSeq(read),
        at_s,
    };
    let found = watermarks_of(&mut client, conv)?;
    ensure!(found.is_empty(), "an unknown conversation has no marks");
    client.ok(&Cmd::SetWatermarks {
        marks: vec![
            mark(low, 9, 5, 100),
            mark(low, 3, 7, 110),
            mark(high, 4, 0, 7),
        ],
    })?;
    client.all_ok(&[
        Cmd::SetWatermarks {
            marks: vec![mark(low, 8, 0, 120)],
        },
        Cmd::SetWatermarks {
            marks: vec![mark(low, 9, 7, 130)],
        },
    ])?;
    let expected = vec![
        Watermark {
            user: low,
            delivered: ConvSeq(9),
            delivered_at_s: 100,
            read: ConvSeq(7),
            read_at_s: 110,
        },
        Watermark {
            user: high,
            delivered: ConvSeq(4),
            delivered_at_s: 7,
            read: ConvSeq(0),
            read_at_s: 0,
        },
    ];
    let found = watermarks_of(&mut client, conv)?;
    ensure_eq!(
        found,
        expected,
        "marks merge by maximum, each with the time it was reached"
    );
    Ok(())
}

/// The first of April 2001.
const EXPIRE_US: u64 = 986_083_200_000_000;

pub(super) fn expire_keeps_what_is_newer(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (to, conv, from) = (user(), conv(), user());
    let times = [
        EXPIRE_US - 40 * 86_400_000_000,
        EXPIRE_US,
        EXPIRE_US + 1,
        tick(),
    ];
    let sent = times.map(|at| entry_at(conv, from, at));
    let cmds = sent
        .each_ref()
        .map(|entry| append(entry, vec![reference_at(to, entry.conv_seq.0, entry)]));
    client.all_ok(&cmds)?;
    let before = Seq(EXPIRE_US);
    client.ok(&Cmd::Expire { before })?;
    client.ok(&Cmd::Expire { before })?;
    let items = inbox(&mut client, to)?;
    let kept = items
        .iter()
        .map(|item| &item.entry)
        .filter(|e| e.conv_seq.0 >= EXPIRE_US);
    ensure!(kept.eq(&sent[1..]), "what is not older stays in the inbox");
    let entries = all_history(&mut client, conv)?;
    let kept = entries.iter().filter(|e| e.conv_seq.0 >= EXPIRE_US);
    ensure!(kept.eq(sent[1..].iter().rev()), "and in the history");
    let late = entry_at(conv, from, EXPIRE_US - 20 * 86_400_000_000);
    client.ok(&append(
        &late,
        vec![reference_at(to, late.conv_seq.0, &late)],
    ))?;
    ensure!(
        all_history(&mut client, conv)?.contains(&late),
        "expiry is a moment: what is appended later is there"
    );
    Ok(())
}

pub(super) fn ceiling_is_above_everything(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (to, conv, from) = (user(), conv(), user());
    let start = tick();
    let mut last = ceiling(&mut client)?;
    for step in 1..=5 {
        // Hours apart, and each kind of number alone is the greatest once.
        let at = start + step * 3_600_000_000;
        let mut entry = entry_at(conv, from, at);
        let cmd = match step {
            1 => append(&entry, Vec::new()),
            2 => append(&entry, vec![reference_at(to, at + 20_000_000, &entry)]),
            3 => {
                entry.conv_seq = ConvSeq(start);
                let refs = vec![reference_at(to, at, &entry)];
                Cmd::AddRefs { refs }
            }
            4 => Cmd::SetCursors {
                cursors: vec![(to, DEVICE, Seq(at))],
            },
            _ => append(&entry, vec![reference_at(to, start, &entry)]),
        };
        let greatest = cmd.greatest_seq();
        client.ok(&cmd)?;
        let found = ceiling(&mut client)?;
        ensure!(
            found.0 > greatest,
            "the ceiling is above every number stored: {found} is not above {greatest}"
        );
        ensure!(found >= last, "the ceiling never comes down");
        last = found;
    }
    Ok(())
}
