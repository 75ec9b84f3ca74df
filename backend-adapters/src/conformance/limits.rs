//! The message family: what is too much, too late or malformed.

use super::client::PATIENCE;
use super::ids::{Direct, append, conv, entry, entry_at, reference_at, tick, user};
use super::messages::{all_history, inbox, messenger};
use super::{Outcome, ensure, ensure_eq};
use crate::messages::{Cmd, Messages, SEQ_MAX};
use crate::{Backend, Kind};
use bytes::Bytes;
use portico_wire::ids::Seq;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) fn one_bad_command_fails_alone(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (to, conv, from) = (user(), conv(), user());
    let mut huge = entry(conv, from);
    huge.body = Bytes::from(vec![0; backend.caps().value_bytes_max + 1]);
    let late = entry_at(conv, from, SEQ_MAX + 1);
    let mut stray = Direct::new(conv, from, to);
    stray.reference.seq = Seq(SEQ_MAX + 1);
    let answers = client.settle(&[
        Direct::new(conv, from, to).cmd(),
        append(&huge, vec![reference_at(to, tick(), &huge)]),
        append(&late, vec![reference_at(to, tick(), &late)]),
        stray.cmd(),
        Direct::new(conv, from, to).cmd(),
    ])?;
    let kinds: Vec<_> = answers
        .iter()
        .map(|answer| answer.as_ref().err().map(|error| error.kind))
        .collect();
    let invalid = Some(Kind::Invalid);
    ensure_eq!(
        kinds,
        [None, invalid, invalid, invalid, None],
        "a bad command fails alone"
    );
    let count = inbox(&mut client, to)?.len();
    ensure_eq!(count, 2, "and nothing of it is applied");
    let count = all_history(&mut client, conv)?.len();
    ensure_eq!(count, 2, "not even its entry");
    Ok(())
}

pub(super) fn batches_past_the_caps_are_invalid(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let caps = backend.caps();
    let set = Cmd::SetCursors {
        cursors: Vec::new(),
    };
    let deadline = Instant::now() + PATIENCE;
    let mut refused = |cmds: &[Cmd]| -> Result<Option<Kind>, String> {
        loop {
            match client.submit(cmds, deadline)? {
                Err(why) if why.kind.is_retryable() => {}
                Err(why) => return Ok(Some(why.kind)),
                Ok(_) => return client.collect().map(|_| None),
            }
        }
    };
    // An adapter without a bound has nothing to refuse.
    if caps.batch_max < 1 << 20 {
        let kind = refused(&vec![set; caps.batch_max + 1])?;
        ensure_eq!(
            kind,
            Some(Kind::Invalid),
            "more commands than a batch may hold"
        );
    }
    if caps.batch_bytes_max < 1 << 28 {
        let mut body = entry(conv(), user());
        body.body = Bytes::from(vec![0; caps.value_bytes_max]);
        let count = caps.batch_bytes_max / caps.value_bytes_max + 1;
        if count <= caps.batch_max {
            let kind = refused(&vec![append(&body, Vec::new()); count])?;
            ensure_eq!(
                kind,
                Some(Kind::Invalid),
                "more bytes than a batch may hold"
            );
        }
    }
    Ok(())
}

pub(super) fn expired_work_is_answered(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (to, conv, from) = (user(), conv(), user());
    let past = Instant::now();
    std::thread::sleep(Duration::from_millis(1));
    let cmds = [Direct::new(conv, from, to).cmd(), Cmd::Cursors { user: to }];
    if client.submit(&cmds, past)?.is_ok() {
        for answer in client.collect()?.into_values() {
            let retryable = answer.err().is_none_or(|error| error.kind.is_retryable());
            ensure!(retryable, "what expired may be tried again");
        }
    }
    Ok(())
}

pub(super) fn a_flood_is_rejected_not_lost(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (to, conv, from) = (user(), conv(), user());
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut accepted = Vec::new();
    for _ in 0..400 {
        let sent: Vec<_> = (0..16).map(|_| Direct::new(conv, from, to)).collect();
        let cmds: Vec<_> = sent.iter().map(Direct::cmd).collect();
        match client.submit(&cmds, deadline)? {
            Ok(tokens) => accepted.extend(tokens.into_iter().zip(sent)),
            Err(why) => ensure!(
                why.kind.is_retryable(),
                "a flood is refused for a while: {why}"
            ),
        }
    }
    let answers = client.collect()?;
    let extra = client.next(Duration::from_millis(20))?;
    ensure!(extra.is_none(), "a token is answered once");
    let items = inbox(&mut client, to)?;
    let stored: HashSet<Seq> = items.iter().map(|item| item.seq).collect();
    for (token, message) in accepted {
        let found = stored.contains(&message.reference.seq);
        match &answers[&token] {
            Ok(_) => ensure!(found, "what was answered with success is stored"),
            Err(error) if !error.kind.may_have_applied() => {
                ensure!(
                    !found,
                    "{error}: the kind promises that nothing was applied"
                );
            }
            Err(_) => {}
        }
    }
    Ok(())
}
