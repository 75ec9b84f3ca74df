//! Runs over several processes or machines.
//!
//! [`serve`] is a worker that waits for orders, [`crew`] the coordinator that gives them and adds up
//! what comes back; to the rest of the tool a worker elsewhere looks like a thread here. What they
//! say to each other is in [`message`], how in [`link`], how each knows the other in [`secret`], how
//! they start at the same moment in [`clocks`].
//!
//! # Trust
//! A worker opens connections to any address that its coordinator names, and sends what its plan
//! says: whoever commands one can use it against others. So it listens on loopback, unless
//! `--allow-remote` is given together with a secret. The signing key never travels: the coordinator
//! sends access tokens, which are worth something for the users of this run only, until an hour
//! after it. They and everything else go unencrypted: who can read the network can use them until
//! then, and who can change it can command the worker. Over networks that are not your own, use a
//! tunnel.
//!
//! # Invariants
//! - Nothing keeps running unattended: a worker whose coordinator has gone, or is silent, closes its
//!   connections.
//! - Both ends of a flow are in one worker, so nothing that is judged depends on two clocks.

mod clocks;
mod crew;
mod divide;
pub(crate) mod histogram;
mod link;
mod message;
mod secret;
mod serve;

pub(crate) use crew::{Crew, Host};
pub(crate) use serve::WorkerArgs;

use std::path::PathBuf;

/// Flags of every plan.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Flags {
    /// Let these carry the plan out instead: `portico-loadgen worker` at HOST:PORT, ...
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        conflicts_with = "cpus"
    )]
    pub workers: Vec<String>,
    /// File with the secret that the workers share with us
    #[arg(long, value_name = "FILE", requires = "workers")]
    pub secret_file: Option<PathBuf>,
}
