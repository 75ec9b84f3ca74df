//! Every row, and what rows say about each other.

use super::{Broken, Content, EXAMPLES_MAX, MonthRows, likeness};
use crate::embedded::engine::{Engine, Months};
use crate::embedded::failure::OpenError;
use crate::embedded::layout::{self, EntryView, H12};
use crate::embedded::month::Month;
use crate::embedded::survey::Survey;
use fjall::{Keyspace, Readable, Snapshot};
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, MsgId, UserId};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

/// A message is accepted once within this time.
const ONCE_WITHIN_US: u64 = 7 * 24 * 3_600 * 1_000_000;

const DECODED: &str = "every row can be decoded (others are passed over)";
const PLACED: &str =
    "an entry lies in its month, under the hash of its conversation (else it is not found)";
const REFERENCED: &str =
    "an inbox reference names an entry that is stored (else it is passed over)";
const MARKED: &str =
    "a fan-out marker names an entry that is stored (else it is ended without effect)";
const BELOW: &str = "every number is below the ceiling (else it could be given out again)";
const ONCE: &str =
    "a message of a device is stored once within seven days (else it is shown twice)";

pub(super) fn look(dir: &Path, found: &Survey) -> Result<(Content, Vec<Broken>), OpenError> {
    let likeness = likeness::make(dir, found)?;
    let engine = &likeness.engine;
    let mut look = Look {
        engine,
        months: engine.months(),
        snapshot: engine.db.snapshot(),
        content: Content {
            format: layout::FORMAT,
            store_id: format!("{:032x}", engine.store_id),
            ceiling: engine.ceiling().0,
            ..Content::default()
        },
        broken: BTreeMap::new(),
    };
    look.all().map_err(|error| OpenError::engine(dir, error))?;
    Ok((look.content, look.broken.into_values().collect()))
}

struct Look<'a> {
    engine: &'a Engine,
    months: Arc<Months>,
    snapshot: Snapshot,
    content: Content,
    broken: BTreeMap<&'static str, Broken>,
}

type Rows<'r> = &'r mut dyn FnMut(&mut Look<'_>, &[u8], &[u8]) -> Result<(), fjall::Error>;

impl Look<'_> {
    fn all(&mut self) -> Result<(), fjall::Error> {
        let months = Arc::clone(&self.months);
        let mut names: Vec<Month> = months.entries.keys().copied().collect();
        names.extend(months.inboxes.keys());
        names.sort_unstable();
        names.dedup();
        for month in names {
            let mut rows = MonthRows {
                month: month.to_string(),
                ..MonthRows::default()
            };
            if let Some(entries) = months.entries.get(&month) {
                self.entries(month, entries, &mut rows)?;
            }
            if let Some(inbox) = months.inboxes.get(&month) {
                self.references(month, inbox, &mut rows)?;
            }
            self.content.months.push(rows);
        }
        self.others()
    }

    fn each(&mut self, keyspace: &Keyspace, visit: Rows<'_>) -> Result<(), fjall::Error> {
        for row in self.snapshot.iter(keyspace) {
            let (key, value) = row.into_inner()?;
            visit(self, &key, &value)?;
        }
        Ok(())
    }

    fn entries(
        &mut self,
        month: Month,
        keyspace: &Keyspace,
        rows: &mut MonthRows,
    ) -> Result<(), fjall::Error> {
        // Rows of a conversation are neighbours.
        let mut conv_of_seen: H12 = [0; 12];
        let mut seen: HashMap<(UserId, DeviceId, MsgId), u64> = HashMap::new();
        self.each(keyspace, &mut |look, key, value| {
            let entry = EntryView::parse(value).zip(layout::conv_key_number(key));
            let Some((entry, at)) = entry else {
                look.undecoded("entry", key);
                return Ok(());
            };
            rows.entries += 1;
            rows.body_bytes += entry.body.len() as u64;
            let h12 = look.engine.hash.h12(entry.conv);
            if Month::of(at) != month || !key.starts_with(&h12) {
                look.breaks(PLACED, || format!("entry {at} of {:?}", entry.conv));
            }
            look.number(at, || format!("entry {at} of {:?}", entry.conv));
            if conv_of_seen != h12 {
                conv_of_seen = h12;
                seen.clear();
            }
            let id = (entry.sender, entry.device, entry.msg_id);
            if let Some(first) = seen.insert(id, at)
                && at - first < ONCE_WITHIN_US
            {
                look.breaks(ONCE, || {
                    format!("entries {first} and {at} of {:?}", entry.conv)
                });
            }
            Ok(())
        })
    }

    fn references(
        &mut self,
        month: Month,
        keyspace: &Keyspace,
        rows: &mut MonthRows,
    ) -> Result<(), fjall::Error> {
        self.each(keyspace, &mut |look, key, value| {
            let place = layout::inbox_key_seq(key).zip(layout::parse_inbox(value));
            let Some((seq, (conv, conv_seq))) = place else {
                look.undecoded("inbox", key);
                return Ok(());
            };
            rows.references += 1;
            let user = layout::inbox_key_user(key).unwrap_or(UserId(0));
            let name = || format!("reference {seq} in the inbox of user {user}");
            look.number(seq.0, name);
            if Month::of(seq.0) != month {
                look.breaks(PLACED, name);
            }
            match look.has_entry(conv, conv_seq)? {
                Some(true) => {}
                Some(false) => look.breaks(REFERENCED, || {
                    format!("{} names entry {conv_seq} of {conv:?}", name())
                }),
                None => look.content.references_expired += 1,
            }
            Ok(())
        })
    }

    fn others(&mut self) -> Result<(), fjall::Error> {
        let engine = self.engine;
        self.each(&engine.cursor, &mut |look, key, value| {
            match layout::parse_cursor(value).zip(layout::cursor_key_device(key)) {
                Some((seq, device)) => {
                    look.content.cursors += 1;
                    look.number(seq.0, || format!("cursor {seq} of a device {device}"));
                }
                None => look.undecoded("cursor", key),
            }
            Ok(())
        })?;
        self.each(&engine.mark, &mut |look, key, value| {
            let user = layout::conv_key_number(key).map(UserId);
            match user.and_then(|user| layout::parse_mark(user, value)) {
                Some((conv, water)) => {
                    look.content.watermarks += 1;
                    let greatest = water.delivered.max(water.read);
                    let user = water.user;
                    let name = || format!("watermark {greatest} of user {user} in {conv:?}");
                    look.number(greatest.0, name);
                    if !key.starts_with(&look.engine.hash.h12(conv)) {
                        look.breaks(PLACED, name);
                    }
                }
                None => look.undecoded("mark", key),
            }
            Ok(())
        })?;
        self.each(&engine.fan_out, &mut |look, key, value| {
            match layout::parse_fan_out(value).zip(layout::conv_key_number(key)) {
                Some((conv, at)) => {
                    look.content.fan_outs += 1;
                    if look.has_entry(conv, ConvSeq(at))? == Some(false) {
                        look.breaks(MARKED, || format!("marker {at} of {conv:?}"));
                    }
                }
                None => look.undecoded("fanout", key),
            }
            Ok(())
        })?;
        self.each(&engine.record, &mut |look, key, value| {
            match layout::parse_record(value) {
                Some(_) => look.content.records += 1,
                None => look.undecoded("record", key),
            }
            Ok(())
        })?;
        self.each(&engine.taken, &mut |look, key, value| {
            match layout::parse_taken(value) {
                Some(_) => look.content.taken += 1,
                None => look.undecoded("taken", key),
            }
            Ok(())
        })
    }

    /// `None` if the month of the entry is dropped.
    fn has_entry(&self, conv: ConvId, at: ConvSeq) -> Result<Option<bool>, fjall::Error> {
        let Some(entries) = self.months.entries.get(&Month::of(at.0)) else {
            return Ok(None);
        };
        let key = layout::conv_key(&self.engine.hash.h12(conv), at.0);
        let row = self.snapshot.get(entries, key)?;
        let entry = row.as_deref().and_then(EntryView::parse);
        Ok(Some(entry.is_some_and(|entry| entry.conv == conv)))
    }

    fn number(&mut self, number: u64, name: impl FnOnce() -> String) {
        self.content.greatest = self.content.greatest.max(number);
        if number >= self.content.ceiling {
            self.breaks(BELOW, name);
        }
    }

    fn undecoded(&mut self, kind: &str, key: &[u8]) {
        let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        self.breaks(DECODED, || format!("{kind} {key}"));
    }

    fn breaks(&mut self, rule: &'static str, example: impl FnOnce() -> String) {
        let broken = self.broken.entry(rule).or_insert_with(|| Broken {
            rule,
            rows: 0,
            examples: Vec::new(),
        });
        broken.rows += 1;
        if broken.examples.len() < EXAMPLES_MAX {
            broken.examples.push(example());
        }
    }
}
