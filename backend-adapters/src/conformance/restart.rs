//! The message family: what a store remembers when it is closed, or stopped, and opened again.

use super::Harness;
use super::client::PATIENCE;
use super::ids::{DEVICE, Direct, conv, entry, entry_at, tick, user};
use super::messages::{
    Messenger, ceiling, cursors_of, inbox, messenger, open_fan_outs, watermarks_of,
};
use super::{Outcome, ensure, ensure_eq};
use crate::messages::{Cmd, Item, Mark, Messages, Refs, Watermark};
use crate::{Backend, Durability};
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, Seq, UserId};
use std::sync::Arc;
use std::time::Instant;

type Opened = Arc<dyn Backend<Messages>>;

/// Closes the backend and opens the store again.
pub(super) fn by_closing(
    harness: &dyn Harness<Messages>,
    backend: Opened,
) -> Result<Opened, String> {
    let written = Written::make(&mut messenger(&backend))?;
    let closed = backend.close(Instant::now() + PATIENCE);
    closed.map_err(|error| format!("a backend closes in time: {error}"))?;
    drop(backend);
    let backend = harness.open()?;
    written.check(&mut messenger(&backend))?;
    Ok(backend)
}

/// Stops the backend and opens the store again.
pub(super) fn by_crashing(
    harness: &dyn Harness<Messages>,
    backend: Opened,
) -> Result<Opened, String> {
    let synced = backend.caps().durability >= Durability::Synced;
    let written = Written::make(&mut messenger(&backend))?;
    if synced {
        harness.crash(backend);
    } else {
        // Less durable stores may lose data here: nothing to check.
        let closed = backend.close(Instant::now() + PATIENCE);
        closed.map_err(|error| format!("a backend closes in time: {error}"))?;
        drop(backend);
    }
    let backend = harness.open()?;
    written.check(&mut messenger(&backend))?;
    Ok(backend)
}

/// A closed backend takes no more work, and closing it again is harmless.
pub(super) fn closing_ends_it(backend: Opened) -> Outcome {
    let mut client = messenger(&backend);
    let message = Direct::new(conv(), user(), user());
    client.ok(&message.cmd())?;
    for _ in 0..2 {
        let closed = backend.close(Instant::now() + PATIENCE);
        closed.map_err(|error| format!("a backend closes in time, also twice: {error}"))?;
    }
    for cmd in [message.cmd(), Cmd::Ceiling] {
        let answers = client.attempt(&[cmd])?;
        let error = answers.into_iter().next().and_then(Result::err);
        ensure!(
            error.is_some_and(|error| !error.kind.may_have_applied()),
            "a closed backend takes no work"
        );
    }
    Ok(())
}

/// One of everything.
struct Written {
    to: UserId,
    conv: ConvId,
    items: Vec<Item>,
    open_fan_out: (ConvId, ConvSeq),
    ended_fan_out: (ConvId, ConvSeq),
    water: Watermark,
    greatest: u64,
    ceiling: Seq,
}

impl Written {
    fn make(client: &mut Messenger) -> Result<Self, String> {
        let (to, conv, from) = (user(), conv(), user());
        let sent: Vec<_> = (0..50).map(|_| Direct::new(conv, from, to)).collect();
        client.all_ok(&sent.iter().map(Direct::cmd).collect::<Vec<_>>())?;
        let fan_outs = [entry(conv, from), entry(conv, from)];
        for entry in &fan_outs {
            client.ok(&Cmd::Append {
                entry: entry.clone(),
                refs: Refs::new(),
                fan_out: true,
            })?;
        }
        let [open_fan_out, ended_fan_out] = fan_outs.map(|entry| (conv, entry.conv_seq));
        client.ok(&Cmd::EndFanOut {
            conv,
            conv_seq: ended_fan_out.1,
        })?;
        let cursor = sent[20].reference.seq;
        client.ok(&Cmd::SetCursors {
            cursors: vec![(to, DEVICE, cursor), (to, DeviceId(2), Seq(0))],
        })?;
        let read = sent[10].entry.conv_seq;
        client.ok(&Cmd::SetWatermarks {
            marks: vec![Mark {
                conv,
                user: to,
                delivered: read,
                read,
                at_s: 77,
            }],
        })?;
        // A clock that ran a day ahead for one message.
        let greatest = tick() + 86_400_000_000;
        let ahead = entry_at(conv, from, greatest);
        client.ok(&super::ids::append(&ahead, Vec::new()))?;
        Ok(Self {
            to,
            conv,
            items: inbox(client, to)?,
            open_fan_out,
            ended_fan_out,
            water: watermarks_of(client, conv)?
                .pop()
                .ok_or("a mark that was set is there")?,
            greatest,
            ceiling: ceiling(client)?,
        })
    }

    fn check(&self, client: &mut Messenger) -> Outcome {
        ensure_eq!(
            self.items.len(),
            50,
            "an inbox is complete before the restart"
        );
        ensure_eq!(
            inbox(client, self.to)?,
            self.items,
            "what was answered is still there"
        );
        let open = open_fan_outs(client)?;
        ensure!(
            open.contains(&self.open_fan_out),
            "an open fan-out is still open"
        );
        ensure!(!open.contains(&self.ended_fan_out), "one that ended is not");
        let cursors = cursors_of(client, self.to)?;
        let expected = vec![(DEVICE, self.items[20].seq), (DeviceId(2), Seq(0))];
        ensure_eq!(
            cursors,
            expected,
            "cursors and registered devices are still there"
        );
        let marks = watermarks_of(client, self.conv)?;
        ensure_eq!(marks, vec![self.water], "watermarks are still there");
        let found = ceiling(client)?;
        ensure!(
            found.0 > self.greatest && found >= self.ceiling,
            "after a restart the ceiling is above every number: {found} is not above {}",
            self.greatest
        );
        Ok(())
    }
}
