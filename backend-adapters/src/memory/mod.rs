//! Everything in memory: the reference for the contract, and the store of tests and trials.
//!
//! A [`Store`] is a handle to the data; clones share it. It outlives the backends opened over it,
//! so that a test can play a restart: close one backend, open the next. It is a [`Writer`] and a
//! [`Reader`] too, for a simulation that brings its own scheduling.
//!
//! # Does not
//! Bound its memory: it keeps what it is given until `Expire` or `Delete`. For anything but tests
//! and trials, take a store on a disk.

mod messages;
mod records;

use crate::messages::Messages;
use crate::records::Records;
use crate::{
    Backend, Caps, Durability, Error, Family, GroupCommit, Limits, Reader, Request, Writer,
};
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

const READERS: usize = 2;
const VALUE_BYTES_MAX: usize = 1 << 20;

/// The data. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Store {
    messages: Arc<RwLock<messages::State>>,
    records: Arc<RwLock<records::State>>,
}

impl Store {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A backend for messages over this data.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn messages(&self, limits: Limits) -> io::Result<Arc<dyn Backend<Messages>>> {
        self.open(limits)
    }

    /// A backend for records over this data.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn records(&self, limits: Limits) -> io::Result<Arc<dyn Backend<Records>>> {
        self.open(limits)
    }

    /// A backend of either family.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn open<F: Family>(&self, limits: Limits) -> io::Result<Arc<dyn Backend<F>>>
    where
        Self: Writer<F> + Reader<F>,
    {
        let readers = vec![self.clone(); READERS];
        let backend = GroupCommit::start(Self::caps(), limits, self.clone(), readers)?;
        Ok(Arc::new(backend))
    }

    #[must_use]
    pub fn caps() -> Caps {
        Caps {
            name: "memory",
            durability: Durability::Volatile,
            batch_max: 4_096,
            batch_bytes_max: 64 << 20,
            value_bytes_max: VALUE_BYTES_MAX,
            shared: false,
        }
    }
}

/// A panic leaves the maps whole, so the data stays usable.
fn write<T, R>(lock: &RwLock<T>, work: impl FnOnce(&mut T) -> R) -> R {
    work(&mut lock.write().unwrap_or_else(PoisonError::into_inner))
}

fn read<T, R>(lock: &RwLock<T>, work: impl FnOnce(&T) -> R) -> R {
    work(&lock.read().unwrap_or_else(PoisonError::into_inner))
}

impl Writer<Messages> for Store {
    fn apply(
        &mut self,
        batch: &[Request<Messages>],
        results: &mut Vec<Result<crate::messages::Reply, Error>>,
    ) {
        write(&self.messages, |state| {
            results.extend(batch.iter().map(|request| state.write(&request.cmd)));
        });
    }
}

impl Reader<Messages> for Store {
    fn read(&mut self, cmd: &crate::messages::Cmd) -> Result<crate::messages::Reply, Error> {
        read(&self.messages, |state| state.read(cmd))
    }
}

impl Writer<Records> for Store {
    fn apply(
        &mut self,
        batch: &[Request<Records>],
        results: &mut Vec<Result<crate::records::Reply, Error>>,
    ) {
        write(&self.records, |state| {
            results.extend(batch.iter().map(|request| state.write(&request.cmd)));
        });
    }
}

impl Reader<Records> for Store {
    fn read(&mut self, cmd: &crate::records::Cmd) -> Result<crate::records::Reply, Error> {
        read(&self.records, |state| state.read(cmd))
    }
}
