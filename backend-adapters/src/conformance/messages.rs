//! The message family: the list of its checks, and those of inboxes and conversations.

use super::client::Client;
use super::ids::{DEVICE, Direct, append, conv, entry, entry_at, fresh, reference_at, tick, user};
use super::{
    Check, Harness, Outcome, Violation, ensure, ensure_eq, history, limits, order, restart, run,
    state,
};
use crate::messages::{Cmd, Entry, Item, Messages, Reply, SEQ_MAX, Watermark};
use crate::{Backend, Kind};
use bytes::Bytes;
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, GroupId, MsgId, Seq, UserId};
use std::sync::Arc;

/// All checks of the message family.
///
/// # Errors
/// The first rule that is broken.
pub fn messages(harness: &dyn Harness<Messages>) -> Result<(), Violation> {
    let backend = run("open", harness.open())?;
    let checks: [Check<Messages>; 25] = [
        ("replay is complete", replay_is_complete),
        ("pages end where they say", pages_end_where_they_say),
        ("neighbours do not leak", neighbours_do_not_leak),
        ("entries keep every field", entries_keep_every_field),
        ("repetition", repeating_changes_nothing),
        ("find", find_knows_sender_device_and_id),
        ("history", history_reads_backwards),
        ("history forward", history::reads_forward_and_stops),
        ("history over months", history::crosses_months_both_ways),
        ("references", history::references_go_back_without_entries),
        ("count", history::counts_what_others_wrote),
        ("partitions", partitions_are_invisible),
        ("fan-out", state::fan_out_stays_open_until_it_ends),
        ("cursors", state::cursors_never_go_back),
        ("watermarks", state::watermarks_merge_by_maximum),
        ("expiry", state::expire_keeps_what_is_newer),
        ("ceiling", state::ceiling_is_above_everything),
        ("one bad command", limits::one_bad_command_fails_alone),
        (
            "limits of a batch",
            limits::batches_past_the_caps_are_invalid,
        ),
        ("expired work", limits::expired_work_is_answered),
        ("flood", limits::a_flood_is_rejected_not_lost),
        ("follower", order::a_follower_misses_nothing),
        (
            "fresh references",
            order::a_failed_reference_gets_a_fresh_number,
        ),
        ("lanes side by side", order::lanes_run_side_by_side),
        ("redaction", history::redacting_takes_the_body_alone),
    ];
    for (name, check) in checks {
        run(name, check(&backend))?;
    }
    if harness.keeps_data() {
        let backend = run("restart", restart::by_closing(harness, backend))?;
        let backend = run("crash", restart::by_crashing(harness, backend))?;
        run("closing", restart::closing_ends_it(backend))
    } else {
        run("closing", restart::closing_ends_it(backend))
    }
}

pub(super) type Messenger = Client<Messages>;

pub(super) fn messenger(backend: &Arc<dyn Backend<Messages>>) -> Messenger {
    Client::new(Arc::clone(backend), 0)
}

pub(super) fn page(
    client: &mut Messenger,
    user: UserId,
    after: Seq,
    limit: u32,
    max_bytes: u32,
) -> Result<(Vec<Item>, bool), String> {
    let cmd = Cmd::Replay {
        user,
        after,
        limit,
        max_bytes,
    };
    match client.ok(&cmd)? {
        Reply::Page { items, more } => {
            ensure!(items.len() <= limit as usize, "a page keeps its limit");
            Ok((items, more))
        }
        other => Err(format!("Replay is answered with a page, not {other:?}")),
    }
}

/// The whole inbox, page by page.
pub(super) fn inbox(client: &mut Messenger, user: UserId) -> Result<Vec<Item>, String> {
    let (mut all, mut after) = (Vec::new(), Seq(0));
    loop {
        let (items, more) = page(client, user, after, 7, u32::MAX)?;
        ensure!(
            !more || !items.is_empty(),
            "a page that was cut has an item"
        );
        for item in items {
            ensure!(
                item.seq > after,
                "a replay ascends and begins after the cursor"
            );
            after = item.seq;
            all.push(item);
        }
        if !more {
            return Ok(all);
        }
    }
}

pub(super) fn page_back(
    client: &mut Messenger,
    conv: ConvId,
    before: ConvSeq,
    limit: u32,
    max_bytes: u32,
) -> Result<(Vec<Entry>, bool), String> {
    let cmd = Cmd::History {
        conv,
        after: ConvSeq(0),
        before,
        forward: false,
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

pub(super) fn all_history(client: &mut Messenger, conv: ConvId) -> Result<Vec<Entry>, String> {
    Ok(page_back(client, conv, ConvSeq(u64::MAX), 1_000, u32::MAX)?.0)
}

pub(super) fn open_fan_outs(client: &mut Messenger) -> Result<Vec<(ConvId, ConvSeq)>, String> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        match client.ok(&Cmd::FanOuts { after, limit: 3 })? {
            Reply::FanOuts(page) if page.is_empty() => return Ok(all),
            Reply::FanOuts(page) => {
                ensure!(page.len() <= 3, "a page of fan-outs keeps its limit");
                after = page.last().copied();
                all.extend(page);
            }
            other => return Err(format!("FanOuts is answered with fan-outs, not {other:?}")),
        }
    }
}

pub(super) fn ceiling(client: &mut Messenger) -> Result<Seq, String> {
    match client.ok(&Cmd::Ceiling)? {
        Reply::Ceiling(ceiling) => Ok(ceiling),
        other => Err(format!("Ceiling is answered with one, not {other:?}")),
    }
}

pub(super) fn cursors_of(
    client: &mut Messenger,
    user: UserId,
) -> Result<Vec<(DeviceId, Seq)>, String> {
    match client.ok(&Cmd::Cursors { user })? {
        Reply::Cursors(cursors) => Ok(cursors),
        other => Err(format!("Cursors is answered with cursors, not {other:?}")),
    }
}

pub(super) fn watermarks_of(
    client: &mut Messenger,
    conv: ConvId,
) -> Result<Vec<Watermark>, String> {
    match client.ok(&Cmd::Watermarks { conv })? {
        Reply::Watermarks(marks) => Ok(marks),
        other => Err(format!("Watermarks is answered with marks, not {other:?}")),
    }
}

fn replay_is_complete(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let users: Vec<UserId> = (0..7).map(|_| user()).collect();
    let (conv, from) = (conv(), user());
    let sent: Vec<_> = (0..100)
        .map(|i| Direct::new(conv, from, users[i % users.len()]))
        .collect();
    client.all_ok(&sent.iter().map(Direct::cmd).collect::<Vec<_>>())?;
    for user in users {
        let of_user = sent.iter().filter(|d| d.reference.user == user);
        let expected: Vec<_> = of_user
            .map(|d| Item {
                seq: d.reference.seq,
                entry: d.entry.clone(),
            })
            .collect();
        ensure_eq!(
            inbox(&mut client, user)?,
            expected,
            "a replay gives all, in order"
        );
    }
    Ok(())
}

fn pages_end_where_they_say(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (to, conv, from) = (user(), conv(), user());
    let (items, more) = page(&mut client, to, Seq(0), 10, u32::MAX)?;
    ensure!(items.is_empty() && !more, "an unknown inbox is empty");
    let sent: Vec<_> = (0..10).map(|_| Direct::new(conv, from, to)).collect();
    client.all_ok(&sent.iter().map(Direct::cmd).collect::<Vec<_>>())?;
    let (items, more) = page(&mut client, to, Seq(0), 10, u32::MAX)?;
    ensure_eq!(
        (items.len(), more),
        (10, false),
        "an exact page is the last"
    );
    let (items, more) = page(&mut client, to, Seq(0), 9, u32::MAX)?;
    ensure_eq!(
        (items.len(), more),
        (9, true),
        "a page that was cut says so"
    );
    let last = sent[9].reference.seq;
    let (items, more) = page(&mut client, to, last, 10, u32::MAX)?;
    ensure!(items.is_empty() && !more, "a cursor is not given again");
    for after in [SEQ_MAX, u64::MAX] {
        let (items, more) = page(&mut client, to, Seq(after), 10, u32::MAX)?;
        ensure!(
            items.is_empty() && !more,
            "the greatest cursor is a valid one"
        );
    }
    // Bodies have 200 bytes.
    let (items, more) = page(&mut client, to, Seq(0), 10, 450)?;
    ensure_eq!((items.len(), more), (2, true), "bytes bound a page");
    let (items, more) = page(&mut client, to, Seq(0), 10, 1)?;
    ensure_eq!(
        (items.len(), more),
        (1, true),
        "a page has one item, however large"
    );
    let nothing = Cmd::Replay {
        user: to,
        after: Seq(0),
        limit: 0,
        max_bytes: 1,
    };
    let answers = client.settle(&[nothing])?;
    let kind = answers[0].as_ref().err().map(|error| error.kind);
    ensure_eq!(kind, Some(Kind::Invalid), "a page of no items is invalid");
    Ok(())
}

fn neighbours_do_not_leak(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (id, group) = (fresh(), fresh());
    let low = ConvId::Group(GroupId(group));
    let high = ConvId::Group(GroupId(group + 1));
    let users = [id - 1, id, id + 1, u64::MAX].map(UserId);
    let mut cmds = Vec::new();
    for to in users {
        cmds.push(Direct::new(low, UserId(1), to).cmd());
        cmds.push(Direct::new(high, UserId(1), to).cmd());
    }
    client.all_ok(&cmds)?;
    let count = inbox(&mut client, UserId(id))?.len();
    ensure_eq!(count, 2, "an inbox is that of one user");
    let entries = all_history(&mut client, low)?;
    ensure_eq!(entries.len(), 4, "a history is that of one conversation");
    ensure!(entries.iter().all(|e| e.conv == low), "and of no other");
    let cursors = vec![
        (UserId(id), DEVICE, Seq(5)),
        (UserId(id + 1), DEVICE, Seq(9)),
    ];
    client.ok(&Cmd::SetCursors { cursors })?;
    let found = cursors_of(&mut client, UserId(id))?;
    ensure_eq!(
        found,
        vec![(DEVICE, Seq(5))],
        "cursors are those of one user"
    );
    Ok(())
}

fn entries_keep_every_field(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (low, high) = (UserId(fresh()), UserId(fresh()));
    let convs = [
        ConvId::direct(low, high),
        ConvId::direct(low, low),
        ConvId::Status(low),
        conv(),
    ];
    let largest = backend.caps().value_bytes_max.min(1 << 20);
    for (i, conv) in convs.into_iter().enumerate() {
        let mut entry = entry(conv, low);
        entry.device = DeviceId(u16::MAX);
        entry.msg_id = MsgId(u128::MAX - i as u128);
        entry.body = match i {
            0 => Bytes::new(),
            1 => Bytes::from(vec![7; largest]),
            _ => entry.body,
        };
        client.ok(&append(&entry, vec![reference_at(high, tick(), &entry)]))?;
        let found = all_history(&mut client, conv)?;
        ensure!(found == [entry], "an entry comes back as it was");
    }
    let count = inbox(&mut client, high)?.len();
    ensure_eq!(count, 4, "whatever the size of the bodies");
    Ok(())
}

fn repeating_changes_nothing(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (to, conv, from) = (user(), conv(), user());
    let cmds: Vec<_> = (0..20).map(|_| Direct::new(conv, from, to).cmd()).collect();
    for _ in 0..3 {
        client.all_ok(&cmds)?;
    }
    let count = inbox(&mut client, to)?.len();
    ensure_eq!(count, 20, "a repeated reference is one reference");
    let count = all_history(&mut client, conv)?.len();
    ensure_eq!(count, 20, "a repeated entry is one entry");
    Ok(())
}

fn find_knows_sender_device_and_id(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (conv, sender, to) = (conv(), user(), user());
    let message = Direct::new(conv, sender, to);
    let find = |since: u64, sender: UserId, device: u16, msg_id: MsgId| Cmd::Find {
        conv,
        since: ConvSeq(since),
        sender,
        device: DeviceId(device),
        msg_ids: vec![msg_id],
    };
    let id = message.entry.msg_id;
    let nowhere = Reply::Found(Vec::new());
    ensure_eq!(
        client.ok(&find(0, sender, 1, id))?,
        nowhere,
        "nothing sent, nothing found"
    );
    client.all_ok(&[message.cmd(), Direct::new(conv, sender, to).cmd()])?;
    let at = message.entry.conv_seq.0;
    let here = Reply::Found(vec![(id, ConvSeq(at))]);
    ensure_eq!(
        client.ok(&find(0, sender, 1, id))?,
        here,
        "what was accepted is found"
    );
    ensure_eq!(
        client.ok(&find(at, sender, 1, id))?,
        here,
        "`since` is inclusive"
    );
    ensure_eq!(
        client.ok(&find(at + 1, sender, 1, id))?,
        nowhere,
        "`since` is a bound"
    );
    let other = UserId(sender.0 + 1);
    ensure_eq!(
        client.ok(&find(0, other, 1, id))?,
        nowhere,
        "ids belong to a user"
    );
    ensure_eq!(
        client.ok(&find(0, sender, 2, id))?,
        nowhere,
        "ids belong to a device"
    );
    let other = MsgId(id.0 + 1);
    ensure_eq!(
        client.ok(&find(0, sender, 1, other))?,
        nowhere,
        "another id is another message"
    );
    let more: Vec<_> = (0..3).map(|_| Direct::new(conv, sender, to)).collect();
    for message in &more {
        client.ok(&message.cmd())?;
    }
    let mut several = find(0, sender, 1, more[2].entry.msg_id);
    if let Cmd::Find { msg_ids, .. } = &mut several {
        msg_ids.extend([other, id, more[0].entry.msg_id]);
    }
    let place = |message: &Direct| (message.entry.msg_id, message.entry.conv_seq);
    ensure_eq!(
        client.ok(&several)?,
        Reply::Found(vec![place(&message), place(&more[0]), place(&more[2])]),
        "one search finds several, in their order, and leaves out what is not there"
    );
    Ok(())
}

fn history_reads_backwards(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (conv, from) = (conv(), user());
    let sent: Vec<_> = (0..25).map(|_| entry(conv, from)).collect();
    let cmds: Vec<_> = sent.iter().map(|entry| append(entry, Vec::new())).collect();
    client.all_ok(&cmds)?;
    for (limit, max_bytes) in [(10, u32::MAX), (10, 450), (1, u32::MAX), (25, u32::MAX)] {
        let (mut seen, mut before) = (Vec::new(), ConvSeq(u64::MAX));
        loop {
            let (entries, more) = page_back(&mut client, conv, before, limit, max_bytes)?;
            before = entries.last().map_or(before, |entry| entry.conv_seq);
            ensure!(
                !more || !entries.is_empty(),
                "a page that was cut has an entry"
            );
            seen.extend(entries);
            if !more {
                break;
            }
        }
        let expected = sent.iter().rev();
        ensure!(
            seen.iter().eq(expected),
            "newest first, without gap or repetition"
        );
    }
    let (entries, more) = page_back(&mut client, conv, ConvSeq(0), 10, u32::MAX)?;
    ensure!(
        entries.is_empty() && !more,
        "nothing comes before the first"
    );
    Ok(())
}

/// Around midnight at the turn of years and months, UTC: 2020-02-29, 2019-12-31, 1999-12-31.
pub(super) const TURNS_US: [u64; 3] = [
    1_583_020_800_000_000,
    1_577_836_800_000_000,
    946_684_800_000_000,
];

fn partitions_are_invisible(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (to, conv, from) = (user(), conv(), user());
    let mut times: Vec<u64> = TURNS_US
        .iter()
        .flat_map(|turn| [turn - 2, turn - 1, *turn, turn + 1])
        .collect();
    times.sort_unstable();
    let sent: Vec<_> = times.iter().map(|at| entry_at(conv, from, *at)).collect();
    // The reference of an entry may lie on the other side of the turn.
    let cmds = sent.iter().map(|entry| {
        let seq = entry.conv_seq.0 + 1;
        append(entry, vec![reference_at(to, seq, entry)])
    });
    client.all_ok(&cmds.collect::<Vec<_>>())?;
    let items = inbox(&mut client, to)?;
    ensure!(
        items.iter().map(|item| &item.entry).eq(&sent),
        "a replay crosses partitions"
    );
    let after = Seq(TURNS_US[1] + 1);
    let (items, _) = page(&mut client, to, after, 100, u32::MAX)?;
    let newer = times.iter().filter(|at| **at + 1 > after.0).count();
    ensure_eq!(items.len(), newer, "a replay begins inside a partition");
    let entries = all_history(&mut client, conv)?;
    ensure!(
        entries.iter().eq(sent.iter().rev()),
        "a history crosses partitions"
    );
    let before = ConvSeq(TURNS_US[0]);
    let (entries, _) = page_back(&mut client, conv, before, 100, u32::MAX)?;
    let older = times.iter().filter(|at| **at < before.0).count();
    ensure_eq!(
        entries.len(),
        older,
        "a history begins at the edge of a partition"
    );
    let first = &sent[0];
    let find = Cmd::Find {
        conv,
        since: first.conv_seq,
        sender: from,
        device: DEVICE,
        msg_ids: vec![sent[11].msg_id],
    };
    let at = Reply::Found(vec![(sent[11].msg_id, sent[11].conv_seq)]);
    ensure_eq!(client.ok(&find)?, at, "a search crosses partitions");
    Ok(())
}
