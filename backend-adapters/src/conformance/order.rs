//! The message family: order of visibility, lanes, and the order of answers.

use super::client::{Client, PATIENCE};
use super::ids::{Direct, append, conv, entry, reference_at, tick, user};
use super::messages::{inbox, messenger, page};
use super::{Harness, Outcome, Violation, ensure, ensure_eq, run};
use crate::Backend;
use crate::messages::{Entry, Messages};
use portico_wire::ids::{ConvId, MsgId, Seq, UserId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const PANICKED: &str = "a thread of the suite ends without panic";

/// A device that follows its inbox by cursor alone, while batches are in flight and fail, sees
/// every message that was accepted.
pub(super) fn a_follower_misses_nothing(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let (to, conv) = (user(), conv());
    let done = AtomicBool::new(false);
    let (sent, seen) = thread::scope(|scope| -> Result<_, String> {
        let writer = scope.spawn(|| {
            let sent = pipeline(backend, conv, to);
            done.store(true, Ordering::Release);
            sent
        });
        let mut reader = messenger(backend);
        let (mut seen, mut cursor) = (HashSet::new(), Seq(0));
        loop {
            let last_round = done.load(Ordering::Acquire);
            let (items, more) = page(&mut reader, to, cursor, 20, u32::MAX)?;
            for item in items {
                cursor = item.seq;
                seen.insert(item.entry.msg_id);
            }
            if last_round && !more {
                break Ok((writer.join().map_err(|_| PANICKED)??, seen));
            }
        }
    })?;
    let missed = sent.iter().filter(|id| !seen.contains(id)).count();
    ensure_eq!(
        missed,
        0,
        "the writes of a lane become visible in their order"
    );
    Ok(())
}

/// Keeps eight batches in flight and sends what failed again under a fresh inbox number, as the
/// gateway does. Returns the ids that were accepted in the end: all of them.
fn pipeline(
    backend: &Arc<dyn Backend<Messages>>,
    conv: ConvId,
    to: UserId,
) -> Result<Vec<MsgId>, String> {
    let mut client = messenger(backend);
    let deadline = Instant::now() + Duration::from_secs(60);
    let from = user();
    let mut waiting: Vec<Entry> = (0..300).map(|_| entry(conv, from)).collect();
    let ids = waiting.iter().map(|entry| entry.msg_id).collect();
    let mut flying = HashMap::new();
    while !waiting.is_empty() || !flying.is_empty() {
        if !waiting.is_empty() && flying.len() < 40 {
            let rest = waiting.split_off(waiting.len().min(5));
            let entries = std::mem::replace(&mut waiting, rest);
            let cmds: Vec<_> = entries
                .iter()
                .map(|entry| append(entry, vec![reference_at(to, tick(), entry)]))
                .collect();
            match client.submit(&cmds, deadline)? {
                Ok(tokens) => flying.extend(tokens.into_iter().zip(entries)),
                Err(_) => waiting.extend(entries),
            }
            continue;
        }
        let completion = client.next(PATIENCE)?.ok_or("every token is answered")?;
        let entry = flying.remove(&completion.token);
        if let Err(error) = completion.result {
            ensure!(
                error.kind.is_retryable(),
                "a good append fails for a while only: {error}"
            );
            waiting.extend(entry);
        }
    }
    Ok(ids)
}

/// One entry under two references: what a failed reference and its repetition leave behind.
pub(super) fn a_failed_reference_gets_a_fresh_number(
    backend: &Arc<dyn Backend<Messages>>,
) -> Outcome {
    let mut client = messenger(backend);
    let (to, conv, from) = (user(), conv(), user());
    let message = entry(conv, from);
    let first = append(&message, vec![reference_at(to, tick(), &message)]);
    let later = Direct::new(conv, from, to);
    client.all_ok(&[
        first,
        later.cmd(),
        append(&message, vec![reference_at(to, tick(), &message)]),
    ])?;
    let items = inbox(&mut client, to)?;
    let ids: Vec<_> = items.iter().map(|item| item.entry.msg_id).collect();
    let expected = vec![message.msg_id, later.entry.msg_id, message.msg_id];
    ensure_eq!(ids, expected, "an inbox may name a message twice");
    Ok(())
}

pub(super) fn lanes_run_side_by_side(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..8)
            .map(|lane| {
                scope.spawn(move || -> Outcome {
                    let mut client = Client::new(Arc::clone(backend), lane);
                    let (to, conv, from) = (user(), conv(), user());
                    for _ in 0..20 {
                        let cmds: Vec<_> =
                            (0..5).map(|_| Direct::new(conv, from, to).cmd()).collect();
                        client.all_ok(&cmds)?;
                    }
                    let count = inbox(&mut client, to)?.len();
                    ensure_eq!(count, 100, "lanes do not disturb each other");
                    Ok(())
                })
            })
            .collect();
        for lane in lanes {
            lane.join().map_err(|_| PANICKED)??;
        }
        Ok(())
    })
}

/// For adapters that promise more than the contract asks: the writes of a lane are *answered* in
/// the order of their submission, the failed ones too.
///
/// # Errors
/// If they are not.
pub fn ordered_completions(harness: &dyn Harness<Messages>) -> Result<(), Violation> {
    const CHECK: &str = "ordered completions";
    let backend = run(CHECK, harness.open())?;
    run(CHECK, completions_of_a_lane_in_order(&backend))?;
    let closed = backend.close(Instant::now() + PATIENCE);
    run(CHECK, closed.map_err(|error| error.to_string()))
}

fn completions_of_a_lane_in_order(backend: &Arc<dyn Backend<Messages>>) -> Outcome {
    let mut client = messenger(backend);
    let (to, conv, from) = (user(), conv(), user());
    let (past, future) = (Instant::now(), Instant::now() + PATIENCE);
    let (mut open, mut last) = (0_usize, 0);
    for round in 0..300 {
        let cmds: Vec<_> = (0..1 + round % 7)
            .map(|_| Direct::new(conv, from, to).cmd())
            .collect();
        // Expired commands keep their place too.
        let deadline = if round % 5 == 0 { past } else { future };
        if client.submit(&cmds, deadline)?.is_ok() {
            open += cmds.len();
        }
        while open > 200 || (round == 299 && open > 0) {
            let completion = client.next(PATIENCE)?.ok_or("every token is answered")?;
            ensure!(
                completion.token > last,
                "the writes of a lane are answered in their order"
            );
            (open, last) = (open - 1, completion.token);
        }
    }
    Ok(())
}
