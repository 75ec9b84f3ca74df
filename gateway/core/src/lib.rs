//! The heart of a Portico shard: a deterministic state machine without I/O, clock or randomness.
//!
//! A shard owns its connections, its users' inbox order, its timers and its outgoing bytes. The
//! driver feeds it with [`Shard::handle`] and carries out what it finds in [`Effects`]:
//!
//! ```text
//!   sockets, store, other shards, clock            sockets, store, other shards
//!              |                                              ^
//!              v                                              |
//!        Input ---> Shard::handle(now, input, &mut effects) ---> Effects
//! ```
//!
//! # Invariants
//! - Equal inputs give equal effects, to the byte.
//! - Durable, then visible: SENT and the delivery of a stored message follow from a completion of
//!   the store and from nothing else.
//! - An inbox is shown in order: an entry goes out only when every entry of this shard with a
//!   smaller number is durable or will never exist (`lane`).
//! - A connection's queue is bounded. Past the bound the shard stops pushing, the messages wait in
//!   the store and are pulled from there as the client drains (`inbox`).
//! - An idle connection is a slot in a table: no heap object, no timer object, no buffer. What it
//!   borrows while it is busy comes from a pool that is trimmed (`pool`).
//! - What a client may do in a second is bounded, by connection, user and source (`rates`).
//! - Logins come at a bounded rate; who is refused knows when to come back (`admission`). A device
//!   that is known to have everything costs no read; what is known is true or forgotten (`absent`).
//!
//! # Does not
//! Touch sockets, files, threads or clocks; see flatbuffers accessors; know the storage adapter.

mod absent;
mod admission;
mod body;
mod conn;
mod contacts;
mod conversations;
mod direct;
mod drain;
mod effects;
mod error;
mod feed;
pub mod footprint;
mod groups;
mod history;
mod home;
mod inbox;
mod input;
mod lane;
mod limits;
mod login;
mod lookup;
mod mesh;
mod metrics;
mod ops;
mod outbox;
mod outgoing;
mod people;
mod policy;
mod pool;
mod presence;
mod rates;
mod receipt;
mod renew;
mod revoke;
mod seen;
mod seq;
mod shard;
mod signal;
mod stall;
pub mod store;
mod stored;
mod timer;
mod users;
mod watermark;
mod withdraw;

#[cfg(feature = "testing")]
pub mod testing;

pub use conn::ConnId;
pub use effects::{Effect, Effects};
pub use error::AuthError;
pub use feed::feed;
pub use groups::{
    GroupAnswer, GroupAsk, GroupError, GroupMessage, GroupReceipt, GroupSend, GroupWish, Passing,
    Roll, Spread,
};
pub use home::{ShardId, conv_home, user_home};
pub use input::{Credentials, Grant, Input, Now, Revocation};
pub use limits::{Limits, ShardConfig};
pub use login::Session;
pub use mesh::ShardMessage;
pub use metrics::{Counter, Counters, Gauges};
pub use outgoing::Draft;
pub use people::{RESTRICTIONS, restricted_user};
pub use policy::{Denial, Policy, Verdict};
pub use rates::{BadNetwork, Network, Rate, Rates};
pub use shard::Shard;
