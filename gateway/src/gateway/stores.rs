//! Where a gateway keeps what has to last.

use portico_backend::{Backend, Error, messages::Messages, records::Records};
use std::{fmt, sync::Arc, time::Instant};

/// An adapter for each family; both may be of one store. Clones are the same ones.
#[derive(Clone)]
pub struct Stores {
    /// Conversations, inboxes, cursors and watermarks.
    pub messages: Arc<dyn Backend<Messages>>,
    /// Groups, contacts, settings, devices that are revoked.
    pub records: Arc<dyn Backend<Records>>,
}

impl Stores {
    /// Closes both, whatever becomes of the first.
    pub(super) fn close(&self, deadline: Instant) -> Result<(), Error> {
        let messages = self.messages.close(deadline);
        let records = self.records.close(deadline);
        messages.and(records)
    }
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stores")
            .field("messages", &self.messages.caps().name)
            .field("records", &self.records.caps().name)
            .finish()
    }
}
