//! All that a shard can ask for.

use crate::{
    conn::ConnId, home::ShardId, input::Credentials, login::Session, mesh::ShardMessage,
    pool::GiveBack, store::StoreRequest,
};

/// One request to the driver.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// The connection has bytes: fetch them with [`crate::Shard::take_output`] when no earlier
    /// send of this connection is in flight. Said once until they are fetched.
    Output(ConnId),
    /// Send `last` after what is in flight, then close the socket. The shard has forgotten the
    /// connection; a peer that does not take the bytes soon loses them.
    Close { conn: ConnId, last: Vec<u8> },
    /// Answer with [`crate::Input::Authenticated`].
    Authenticate {
        conn: ConnId,
        credentials: Credentials,
    },
    /// Hand the socket and its unread bytes to another shard; answer with [`crate::Input::Moved`]
    /// or [`crate::Input::MoveFailed`], and give [`crate::Input::Adopted`] to the other shard.
    /// Nothing of this connection is read meanwhile.
    Move {
        conn: ConnId,
        to: ShardId,
        session: Session,
    },
    /// The connection takes nothing: end its send in flight, and give what is left of the buffer to
    /// [`crate::Shard::take_back`]. A driver that cannot may ignore this, and keeps the buffer.
    Recall(ConnId),
    /// Reading was paused ([`crate::Shard::wants_input`] was false) and goes on, first with the
    /// bytes that were left unread.
    Resume(ConnId),
}

/// What one or more turns asked for. Owned and reused by the driver, which empties all three lists.
#[derive(Debug, Default)]
pub struct Effects {
    pub list: Vec<Effect>,
    /// Storage requests in submission order: the order of this shard's lane.
    pub store: Vec<StoreRequest>,
    /// Messages to other shards, in order per destination. Never to the shard itself.
    pub mesh: Vec<(ShardId, ShardMessage)>,
}

impl Effects {
    pub fn clear(&mut self) {
        self.list.clear();
        self.store.clear();
        self.mesh.clear();
    }

    /// Gives back the memory that a burst left in the lists. For now and then.
    pub fn trim(&mut self) {
        self.list.give_back();
        self.store.give_back();
        self.mesh.give_back();
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty() && self.store.is_empty() && self.mesh.is_empty()
    }
}
