//! The family of small versioned records: users, devices, keys, groups, push tokens.
//!
//! The *writer* chooses the version of what it puts: any number it never used for that key. So a
//! repeated [`Cmd::Put`] whose first outcome was unknown finds its own version and succeeds,
//! instead of reporting a conflict with itself.

use crate::messages::check_limit;
use crate::{Error, Family};
use bytes::Bytes;
use std::fmt;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1_024;
/// Rows in one page. A greater `limit` is lowered to it.
pub const PAGE_ROWS_MAX: u32 = 4_096;
/// Bytes of values after which a page ends (it holds one row at least).
pub const PAGE_BYTES_MAX: usize = 8 << 20;
/// For how long a store remembers at least what a [`Cmd::TakeOne`] got.
pub const TAKEN_KEPT_S: u64 = 8 * 24 * 3_600;

/// A name space of keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table(pub u16);

/// Chosen by the writer. Compared for equality only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Version(pub u64);

/// The state in which a record must be for a command to take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expect {
    Any,
    Absent,
    Version(Version),
}

impl Expect {
    /// # Errors
    /// [`Kind::Conflict`](crate::Kind::Conflict) if `present` is another state.
    pub fn check(self, present: Option<Version>) -> Result<(), Error> {
        let holds = match self {
            Self::Any => true,
            Self::Absent => present.is_none(),
            Self::Version(version) => present == Some(version),
        };
        if holds {
            Ok(())
        } else {
            Err(Error::new(
                crate::Kind::Conflict,
                "the record is in another version",
            ))
        }
    }
}

#[derive(Clone)]
pub enum Cmd {
    Get {
        table: Table,
        key: Bytes,
    },
    /// Succeeds without effect if the record has `version` already.
    Put {
        table: Table,
        key: Bytes,
        value: Bytes,
        expect: Expect,
        version: Version,
    },
    /// Deleting what is absent succeeds, whatever is expected: it may be a repetition.
    Delete {
        table: Table,
        key: Bytes,
        expect: Expect,
    },
    /// Rows whose key starts with `prefix` and is greater than `after`, in the order of their
    /// keys. An empty page is the end.
    Scan {
        table: Table,
        prefix: Bytes,
        after: Bytes,
        limit: u32,
    },
    /// Removes one row under `prefix` and returns it (a one-time prekey); `None` if there is
    /// none. The same `id` gets the same answer again for [`TAKEN_KEPT_S`] at least.
    TakeOne {
        table: Table,
        prefix: Bytes,
        id: u128,
    },
}

/// Values never reach a log.
impl fmt::Debug for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, table, key) = match self {
            Self::Get { table, key } => ("Get", table, key),
            Self::Put { table, key, .. } => ("Put", table, key),
            Self::Delete { table, key, .. } => ("Delete", table, key),
            Self::Scan { table, prefix, .. } => ("Scan", table, prefix),
            Self::TakeOne { table, prefix, .. } => ("TakeOne", table, prefix),
        };
        f.debug_struct(name)
            .field("table", &table.0)
            .field("key", key)
            .finish_non_exhaustive()
    }
}

/// A record as a scan returns it.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    pub key: Bytes,
    pub value: Bytes,
    pub version: Version,
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Row")
            .field("key", &self.key)
            .field("value_len", &self.value.len())
            .field("version", &self.version)
            .finish()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Done,
    /// To a get.
    Value(Option<Row>),
    Rows(Vec<Row>),
    Taken(Option<Row>),
}

/// The family.
#[derive(Clone, Copy, Debug)]
pub struct Records;

impl Family for Records {
    type Cmd = Cmd;
    type Reply = Reply;

    fn is_read(cmd: &Cmd) -> bool {
        match cmd {
            Cmd::Get { .. } | Cmd::Scan { .. } => true,
            Cmd::Put { .. } | Cmd::Delete { .. } | Cmd::TakeOne { .. } => false,
        }
    }

    fn weight(_: &Cmd) -> usize {
        1
    }

    fn bytes(cmd: &Cmd) -> usize {
        let beside = match cmd {
            Cmd::Get { key, .. } | Cmd::Delete { key, .. } => key.len(),
            Cmd::Put { key, value, .. } => key.len() + value.len(),
            Cmd::Scan { prefix, after, .. } => prefix.len() + after.len(),
            Cmd::TakeOne { prefix, .. } => prefix.len(),
        };
        size_of::<crate::Request<Self>>() + beside
    }
}

impl Cmd {
    /// What every adapter checks before it touches the store.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::Kind::Invalid), with the bound that is broken.
    pub fn check(&self, value_bytes_max: usize) -> Result<(), Error> {
        let key = match self {
            Self::Get { key, .. } | Self::Delete { key, .. } => key,
            Self::Put { key, value, .. } => {
                if value.len() > value_bytes_max {
                    return Err(Error::invalid("the value is larger than the store takes"));
                }
                key
            }
            Self::Scan { prefix, limit, .. } => {
                check_limit(*limit)?;
                prefix
            }
            Self::TakeOne { prefix, .. } => prefix,
        };
        if key.len() > KEY_BYTES_MAX {
            return Err(Error::invalid("the key is longer than 1,024 bytes"));
        }
        Ok(())
    }
}
