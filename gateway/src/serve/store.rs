//! The store of the program: the embedded one, or memory.

use crate::{
    Failure,
    config::{BackendKind, Config},
    stored::{self, FOLDER},
};
use portico_gateway::{
    Stores,
    backend::{Backend, Limits, embedded, memory, messages::Messages, records::Records},
};
use std::{fmt, sync::Arc, time::Instant};

/// An open store. Clones are the same one.
#[derive(Clone)]
pub(super) struct Store(Arc<Inner>);

enum Inner {
    Embedded(embedded::Embedded),
    Memory(Arc<dyn Backend<Messages>>, Arc<dyn Backend<Records>>),
}

impl Store {
    pub(super) fn open(config: &Config) -> Result<Self, Failure> {
        let settings = &config.store;
        let limits = Limits {
            commands_max: settings.commands_max,
            bytes_max: settings.bytes_max,
            ..Limits::default()
        };
        let inner = match config.server.backend {
            BackendKind::Embedded => {
                let options = embedded::Options {
                    readers: settings.readers,
                    cache_bytes: settings.cache_bytes,
                    open_files_max: settings.open_files_max,
                    limits,
                    ..embedded::Options::new(config.server.data.join(FOLDER))
                };
                let opened = embedded::open(options);
                let explain = |error| stored::next_step(&error, &config.server.data);
                Inner::Embedded(opened.map_err(|error| Failure::Runtime(explain(error)))?)
            }
            BackendKind::Memory => {
                let store = memory::Store::new();
                Inner::Memory(store.messages(limits), store.records(limits))
            }
        };
        Ok(Self(Arc::new(inner)))
    }

    pub(super) fn both(&self) -> Stores {
        Stores {
            messages: self.messages(),
            records: self.records(),
        }
    }

    pub(super) fn messages(&self) -> Arc<dyn Backend<Messages>> {
        match &*self.0 {
            Inner::Embedded(store) => store.messages.clone(),
            Inner::Memory(messages, _) => messages.clone(),
        }
    }

    pub(super) fn records(&self) -> Arc<dyn Backend<Records>> {
        match &*self.0 {
            Inner::Embedded(store) => store.records.clone(),
            Inner::Memory(_, records) => records.clone(),
        }
    }

    pub(super) fn name(&self) -> &'static str {
        self.messages().caps().name
    }

    pub(super) fn rows_damaged(&self) -> u64 {
        match &*self.0 {
            Inner::Embedded(store) => store.rows_damaged(),
            Inner::Memory(..) => 0,
        }
    }

    /// Closes what the gateway did not: it only knows the messages.
    pub(super) fn close(&self, deadline: Instant) -> Result<(), Failure> {
        match &*self.0 {
            Inner::Embedded(store) => store.close(deadline),
            Inner::Memory(messages, _) => messages.close(deadline),
        }
        .map_err(|error| Failure::Runtime(format!("the store did not close in order: {error}")))
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.name()).finish()
    }
}
