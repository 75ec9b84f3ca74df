//! The record family over ordered maps.

use super::VALUE_BYTES_MAX;
use crate::Error;
use crate::records::{Cmd, PAGE_BYTES_MAX, PAGE_ROWS_MAX, Reply, Row, Table, Version};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;

/// Answers of `TakeOne` that are remembered. A store on a disk goes by time; the clock of this
/// one would make tests depend on it.
const TAKEN_MAX: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct State {
    rows: BTreeMap<(Table, Bytes), (Bytes, Version)>,
    taken: HashMap<u128, Option<Row>>,
    taken_order: VecDeque<u128>,
}

impl State {
    pub(super) fn write(&mut self, cmd: &Cmd) -> Result<Reply, Error> {
        cmd.check(VALUE_BYTES_MAX)?;
        match cmd {
            Cmd::Put {
                table,
                key,
                value,
                expect,
                version,
            } => {
                let key = (*table, key.clone());
                let present = self.rows.get(&key).map(|(_, version)| *version);
                // A repeated command finds its own version.
                if present != Some(*version) {
                    expect.check(present)?;
                    self.rows.insert(key, (value.clone(), *version));
                }
                Ok(Reply::Done)
            }
            Cmd::Delete { table, key, expect } => {
                let key = (*table, key.clone());
                if let Some((_, version)) = self.rows.get(&key) {
                    expect.check(Some(*version))?;
                    self.rows.remove(&key);
                }
                Ok(Reply::Done)
            }
            Cmd::TakeOne { table, prefix, id } => Ok(self.take_one(*table, prefix, *id)),
            Cmd::Get { .. } | Cmd::Scan { .. } => Err(Error::invalid("a read among writes")),
        }
    }

    pub(super) fn read(&self, cmd: &Cmd) -> Result<Reply, Error> {
        cmd.check(VALUE_BYTES_MAX)?;
        match cmd {
            Cmd::Get { table, key } => {
                let row = self.rows.get(&(*table, key.clone()));
                Ok(Reply::Value(row.map(|(value, version)| Row {
                    key: key.clone(),
                    value: value.clone(),
                    version: *version,
                })))
            }
            Cmd::Scan {
                table,
                prefix,
                after,
                limit,
            } => {
                let limit = (*limit).min(PAGE_ROWS_MAX) as usize;
                let mut bytes = 0;
                let mut rows = Vec::new();
                let under = self.under(*table, prefix).filter(|row| row.key > *after);
                for row in under.take(limit) {
                    bytes += row.value.len();
                    if bytes > PAGE_BYTES_MAX && !rows.is_empty() {
                        break;
                    }
                    rows.push(row);
                }
                Ok(Reply::Rows(rows))
            }
            Cmd::Put { .. } | Cmd::Delete { .. } | Cmd::TakeOne { .. } => {
                Err(Error::invalid("a write among reads"))
            }
        }
    }

    fn take_one(&mut self, table: Table, prefix: &Bytes, id: u128) -> Reply {
        if let Some(taken) = self.taken.get(&id) {
            return Reply::Taken(taken.clone());
        }
        let taken = self.under(table, prefix).next();
        if let Some(row) = &taken {
            self.rows.remove(&(table, row.key.clone()));
        }
        self.taken.insert(id, taken.clone());
        self.taken_order.push_back(id);
        if self.taken_order.len() > TAKEN_MAX
            && let Some(oldest) = self.taken_order.pop_front()
        {
            self.taken.remove(&oldest);
        }
        Reply::Taken(taken)
    }

    fn under<'a>(&'a self, table: Table, prefix: &'a Bytes) -> impl Iterator<Item = Row> + 'a {
        let from = Bound::Included((table, prefix.clone()));
        self.rows
            .range((from, Bound::Unbounded))
            .take_while(move |((t, key), _)| *t == table && key.starts_with(prefix))
            .map(|((_, key), (value, version))| Row {
                key: key.clone(),
                value: value.clone(),
                version: *version,
            })
    }
}
