//! Everything in memory: the reference for the contract, and the store of tests and trials.
//!
//! A [`Store`] is a handle to the data; clones share it. It outlives the backends opened over it,
//! so that a test can play a restart: close one backend, open the next. It is a [`Writer`] and a
//! [`Reader`] too, for a simulation that brings its own scheduling.
//!
//! # Does not
//! Bound its memory: it keeps what it is given until `Expire` or `Delete`. For anything but tests
//! and trials, take a store on a disk.

mod inline;
mod log;
mod messages;
mod records;

use crate::messages::Messages;
use crate::records::Records;
use crate::{Backend, Caps, Durability, Error, Family, Limits, Reader, Request, Writer};
use inline::Inline;
use std::sync::{Arc, Mutex, PoisonError};

const VALUE_BYTES_MAX: usize = 1 << 20;

/// The data. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Store {
    messages: Arc<Mutex<messages::State>>,
    records: Arc<Mutex<records::State>>,
}

impl Store {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A backend for messages over this data. It works on the thread that calls it and answers
    /// before [`Backend::submit`] returns; of the limits, those of a batch count.
    #[must_use]
    pub fn messages(&self, limits: Limits) -> Arc<dyn Backend<Messages>> {
        self.open(limits)
    }

    /// A backend for records over this data.
    #[must_use]
    pub fn records(&self, limits: Limits) -> Arc<dyn Backend<Records>> {
        self.open(limits)
    }

    fn open<F: Family>(&self, limits: Limits) -> Arc<dyn Backend<F>>
    where
        Self: Engine<F>,
    {
        Arc::new(Inline::new(self.clone(), Self::caps(), limits))
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

/// The maps of one family, behind their lock.
trait Engine<F: Family>: Send + Sync + 'static {
    type State;

    fn with<R>(&self, work: impl FnOnce(&mut Self::State) -> R) -> R;
    fn write(state: &mut Self::State, cmd: F::Cmd) -> Result<F::Reply, Error>;
    fn read(state: &Self::State, cmd: &F::Cmd) -> Result<F::Reply, Error>;
}

/// A panic leaves the maps whole, so the data stays usable.
fn locked<T, R>(lock: &Mutex<T>, work: impl FnOnce(&mut T) -> R) -> R {
    work(&mut lock.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Engine<Messages> for Store {
    type State = messages::State;

    fn with<R>(&self, work: impl FnOnce(&mut Self::State) -> R) -> R {
        locked(&self.messages, work)
    }

    fn write(
        state: &mut Self::State,
        cmd: crate::messages::Cmd,
    ) -> Result<crate::messages::Reply, Error> {
        state.write(cmd)
    }

    fn read(
        state: &Self::State,
        cmd: &crate::messages::Cmd,
    ) -> Result<crate::messages::Reply, Error> {
        state.read(cmd)
    }
}

impl Engine<Records> for Store {
    type State = records::State;

    fn with<R>(&self, work: impl FnOnce(&mut Self::State) -> R) -> R {
        locked(&self.records, work)
    }

    fn write(
        state: &mut Self::State,
        cmd: crate::records::Cmd,
    ) -> Result<crate::records::Reply, Error> {
        state.write(&cmd)
    }

    fn read(
        state: &Self::State,
        cmd: &crate::records::Cmd,
    ) -> Result<crate::records::Reply, Error> {
        state.read(cmd)
    }
}

impl<F: Family> Writer<F> for Store
where
    Self: Engine<F>,
{
    fn apply(&mut self, batch: &[Request<F>], results: &mut Vec<Result<F::Reply, Error>>) {
        self.with(|state| {
            let cmds = batch.iter().map(|request| request.cmd.clone());
            results.extend(cmds.map(|cmd| Self::write(state, cmd)));
        });
    }
}

impl<F: Family> Reader<F> for Store
where
    Self: Engine<F>,
{
    fn read(&mut self, cmd: &F::Cmd) -> Result<F::Reply, Error> {
        self.with(|state| <Self as Engine<F>>::read(state, cmd))
    }
}
