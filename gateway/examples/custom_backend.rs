//! A gateway embedded with a backend of one's own.
//!
//! The store here is a few maps behind a lock, and volatile. What a real one must keep to is said in
//! `portico_backend`; its conformance suite tells whether it does. This one answers within
//! `submit`, which is allowed to whoever never waits.
//!
//! ```text
//! cargo run --example custom_backend
//! ```

use portico_client::{Client, OwnedEvent, Session, SessionConfig, SessionState};
use portico_gateway::{
    Gateway, GatewayOptions, StaticAuthenticator, Stores,
    backend::{
        Backend, Caps, Completion, Durability, Error, Health, Kind, Limits, Rejected, Request,
        Sink, memory,
        messages::{Cmd, Entry, InboxRef, Item, Messages, Reply, Watermark},
    },
};
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, Seq, UserId};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound::{Excluded, Included, Unbounded},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// What is stored.
#[derive(Debug, Default)]
struct Maps {
    entries: BTreeMap<(ConvId, ConvSeq), Entry>,
    inbox: BTreeMap<(UserId, Seq), InboxRef>,
    cursors: BTreeMap<(UserId, DeviceId), Seq>,
    watermarks: BTreeMap<(ConvId, UserId), Watermark>,
    fan_outs: BTreeSet<(ConvId, ConvSeq)>,
    greatest: u64,
}

#[derive(Debug, Default)]
struct MapBackend {
    maps: Mutex<Maps>,
}

const VALUE_BYTES_MAX: usize = 1 << 20;

impl Backend<Messages> for MapBackend {
    fn caps(&self) -> Caps {
        Caps {
            name: "maps",
            durability: Durability::Volatile,
            batch_max: 1_024,
            batch_bytes_max: 16 << 20,
            value_bytes_max: VALUE_BYTES_MAX,
            shared: false,
        }
    }

    fn submit(
        &self,
        batch: Vec<Request<Messages>>,
        sink: &Arc<dyn Sink<Messages>>,
    ) -> Result<(), Rejected<Messages>> {
        if batch.len() > self.caps().batch_max {
            let why = Error::new(Kind::Invalid, "more commands than a batch may hold");
            return Err(Rejected { batch, why });
        }
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        let completions = batch
            .into_iter()
            .map(|request| Completion {
                token: request.token,
                result: maps.apply(request.cmd),
            })
            .collect();
        drop(maps);
        sink.complete(completions);
        Ok(())
    }

    fn health(&self) -> Health {
        Health::Up
    }

    fn close(&self, _: Instant) -> Result<(), Error> {
        Ok(())
    }
}

impl Maps {
    fn apply(&mut self, cmd: Cmd) -> Result<Reply, Error> {
        cmd.check(VALUE_BYTES_MAX)?;
        self.greatest = self.greatest.max(cmd.greatest_seq());
        match cmd {
            Cmd::Append {
                entry,
                refs,
                fan_out,
            } => {
                let place = (entry.conv, entry.conv_seq);
                if fan_out {
                    self.fan_outs.insert(place);
                }
                self.entries.insert(place, entry);
                self.refer(refs.into_vec());
            }
            Cmd::AddRefs { refs } => self.refer(refs),
            Cmd::EndFanOut { conv, conv_seq } => {
                self.fan_outs.remove(&(conv, conv_seq));
            }
            Cmd::Redact { conv, conv_seq } => {
                if let Some(entry) = self.entries.get_mut(&(conv, conv_seq)) {
                    entry.body.clear();
                }
            }
            Cmd::SetCursors { cursors } => {
                for (user, device, seq) in cursors {
                    let cursor = self.cursors.entry((user, device)).or_default();
                    *cursor = seq.max(*cursor);
                }
            }
            Cmd::SetWatermarks { marks } => {
                for mark in marks {
                    self.watermarks
                        .entry((mark.conv, mark.user))
                        .or_insert(Watermark::none(mark.user))
                        .merge(&mark);
                }
            }
            Cmd::Expire { before } => {
                self.entries.retain(|(_, seq), _| seq.0 >= before.0);
                self.inbox.retain(|(_, seq), _| *seq >= before);
            }
            read => return Ok(self.read(read)),
        }
        Ok(Reply::Done)
    }

    fn refer(&mut self, refs: Vec<InboxRef>) {
        let named = refs.into_iter().map(|to| ((to.user, to.seq), to));
        self.inbox.extend(named);
    }

    /// Both bounds are exclusive.
    fn between(
        &self,
        conv: ConvId,
        after: ConvSeq,
        before: ConvSeq,
    ) -> impl DoubleEndedIterator<Item = &Entry> {
        let before = before.max(ConvSeq(after.0.saturating_add(1)));
        let range = (Excluded((conv, after)), Excluded((conv, before)));
        self.entries.range(range).map(|(_, entry)| entry)
    }

    fn read(&self, cmd: Cmd) -> Reply {
        match cmd {
            Cmd::Replay {
                user,
                after,
                limit,
                max_bytes,
            } => {
                let range = (Excluded((user, after)), Included((user, Seq(u64::MAX))));
                let refs = self.inbox.range(range).map(|(_, to)| to);
                let items = refs.filter_map(|to| {
                    let entry = self.entries.get(&(to.conv, to.conv_seq))?.clone();
                    Some(Item { seq: to.seq, entry })
                });
                let (items, more) = page(items, limit, max_bytes, |item| item.entry.body.len());
                Reply::Page { items, more }
            }
            Cmd::History {
                conv,
                after,
                before,
                forward,
                limit,
                max_bytes,
            } => {
                let mut between = self.between(conv, after, before);
                let next = || {
                    if forward {
                        between.next()
                    } else {
                        between.next_back()
                    }
                };
                let entries = std::iter::from_fn(next).cloned();
                let (entries, more) = page(entries, limit, max_bytes, |entry| entry.body.len());
                Reply::Entries { entries, more }
            }
            Cmd::References {
                user,
                before,
                limit,
            } => {
                let older = self.inbox.range((user, Seq(0))..(user, before)).rev();
                let refs = older.map(|(_, reference)| *reference);
                let (refs, more) = page(refs, limit, u32::MAX, |_| 0);
                Reply::References { refs, more }
            }
            Cmd::Count {
                conv,
                after,
                before,
                not_by,
                op,
                kind,
                limit,
            } => {
                let counted = self.between(conv, after, before).filter(|entry| {
                    (entry.meta.op, entry.meta.kind) == (op, kind)
                        && entry.sender != not_by
                        && !entry.body.is_empty()
                });
                Reply::Count(counted.take(limit as usize).count() as u32)
            }
            Cmd::Find {
                conv,
                since,
                sender,
                device,
                msg_ids,
            } => {
                let range = (conv, since)..=(conv, ConvSeq(u64::MAX));
                let wanted = self.entries.range(range).filter(|(_, entry)| {
                    (entry.sender, entry.device) == (sender, device)
                        && msg_ids.contains(&entry.msg_id)
                });
                let places = wanted.map(|((_, conv_seq), entry)| (entry.msg_id, *conv_seq));
                Reply::Found(places.collect())
            }
            Cmd::FanOuts { after, limit } => {
                let start = after.map_or(Unbounded, Excluded);
                let open = self.fan_outs.range((start, Unbounded));
                Reply::FanOuts(open.take(limit as usize).copied().collect())
            }
            Cmd::Cursors { user } => {
                let range = (user, DeviceId(0))..=(user, DeviceId(u16::MAX));
                let cursors = self.cursors.range(range);
                Reply::Cursors(cursors.map(|((_, dev), seq)| (*dev, *seq)).collect())
            }
            Cmd::Watermarks { conv } => {
                let range = (conv, UserId(0))..=(conv, UserId(u64::MAX));
                Reply::Watermarks(self.watermarks.range(range).map(|(_, w)| *w).collect())
            }
            // Strictly above all that was stored.
            Cmd::Ceiling => Reply::Ceiling(Seq(self.greatest + 1)),
            Cmd::Append { .. }
            | Cmd::AddRefs { .. }
            | Cmd::EndFanOut { .. }
            | Cmd::Redact { .. }
            | Cmd::SetCursors { .. }
            | Cmd::SetWatermarks { .. }
            | Cmd::Expire { .. } => Reply::Done,
        }
    }
}

/// As many items as the bounds allow, one at least, and whether more follow.
fn page<T>(
    items: impl Iterator<Item = T>,
    limit: u32,
    bytes_max: u32,
    bytes: impl Fn(&T) -> usize,
) -> (Vec<T>, bool) {
    let (mut page, mut used) = (Vec::new(), 0);
    for item in items {
        used += bytes(&item);
        let full = page.len() == limit as usize || used > bytes_max as usize;
        if full && !page.is_empty() {
            return (page, true);
        }
        page.push(item);
    }
    (page, false)
}

/// Visible to the tests, which run it, too.
pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let authenticator = StaticAuthenticator::new()
        .allow("token of 1", UserId(1), DeviceId(1))
        .allow("token of 2", UserId(2), DeviceId(1));
    let options = GatewayOptions {
        listen: "127.0.0.1:0".parse()?,
        shards: 2,
        ..GatewayOptions::default()
    };
    let messages: Arc<dyn Backend<Messages>> = Arc::new(MapBackend::default());
    // What is not messages may be kept elsewhere: here in the memory that comes with the crate.
    let records = memory::Store::new().records(Limits::default());
    let stores = Stores { messages, records };
    let gateway = Gateway::start(options, stores, Arc::new(authenticator))?;
    let address = gateway.local_addr().to_string();

    let log_in = |user: u64, seed: u64| {
        let token = format!("token of {user}");
        let config = SessionConfig::new(UserId(user), DeviceId(1), token);
        Client::connect(
            address.as_str(),
            Session::new(config, SessionState::default(), seed),
        )
    };
    let seed = std::time::UNIX_EPOCH.elapsed()?.as_nanos() as u64;
    let (one, two) = (log_in(1, seed)?, log_in(2, seed + 1)?);
    one.send_text(UserId(2), "hello from 1")?;

    let patience = Duration::from_secs(10);
    let body = two.wait_for(patience, |event| match event {
        OwnedEvent::Message {
            envelope: Some(envelope),
            ..
        } => Some(envelope.body.clone()),
        _ => None,
    });
    let body = body.ok_or("the message did not arrive")?;
    println!("2 got: {}", String::from_utf8_lossy(&body));
    one.close();
    two.close();
    gateway.stop(patience)?;
    Ok(())
}
