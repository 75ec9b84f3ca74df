//! The driver over real sockets: whole gateways in this process, with the memory store.
//!
//! Proved here: what io_uring, the hand-over between shards and the end of connections do to the
//! bytes of clients that are quick, slow, many, or gone. What the protocol means is proved in the
//! core's own tests.

mod bulk;
mod bulk_cost;
mod crew;
mod ending;
mod limits;
mod many;
mod serving;
mod starting;
mod support;
mod tls;
