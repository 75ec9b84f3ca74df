//! What coordinator and worker tell each other, in this order:
//!
//! ```text
//! worker                                  coordinator
//! Challenge  who I am, a random number ->
//!                                      <- Enter   a proof that I know the secret, a random number
//! Welcome    my proof, my limits       ->
//!                                      <- Ping    as often as it takes to know the clocks
//! Pong       my clock                  ->
//!                                      <- Order   plan, run, users; then their tokens
//! Gauges     four times a second       ->
//!                                      <- Start, Drain, Finish; Beat once a second
//! Gauges     once more, then
//! Outcome    all that was found        ->
//!                                      <- Ping, Order ... of the next run
//! ```
//! Instead of an answer the worker may say [`FromWorker::Failed`], and why; then it hangs up.

use crate::{
    fleet::sockets_per_user, plan::Plan, process::Machine, series::Interval, tls::Trust,
    worker::Outcome,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Raised with every change: both ends are to be of one version.
pub(super) const VERSION: u32 = 3;
pub(super) const MAGIC: &str = "portico-loadgen worker";
/// The longest frame before the other is known, in bytes.
pub(super) const FRAME_MAX_STRANGER: usize = 4_096;
/// The longest frame to a worker; tokens come in portions.
pub(super) const FRAME_MAX_ORDERS: usize = 1 << 20;
/// The longest frame from a worker: what its threads have found.
pub(super) const FRAME_MAX_FOUND: usize = 64 << 20;
/// Random numbers may have so many bytes.
pub(super) const NONCE_MAX: usize = 64;
/// Of at most about 400 bytes each.
pub(super) const TOKENS_PER_FRAME: usize = 1_000;
/// For a step of the greeting, or of the question for the clock.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Whoever says nothing for so long is taken for gone.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Between two looks at the other's messages.
pub(super) const POLL: Duration = Duration::from_millis(10);
pub(super) const BEAT: Duration = Duration::from_secs(1);
pub(super) const GAUGES: Duration = Duration::from_millis(250);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum ToWorker {
    Enter {
        version: u32,
        nonce: Vec<u8>,
        proof: Vec<u8>,
    },
    Ping,
    Order(Box<Order>),
    /// The next of the order's tokens, by user.
    Tokens(Vec<String>),
    /// The first message is due then, by the worker's clock.
    Start {
        start_us: u64,
    },
    /// Send no more; wait for what is on its way.
    Drain,
    /// Close everything and tell what was found.
    Finish,
    Beat,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum FromWorker {
    Challenge {
        magic: String,
        version: u32,
        nonce: Vec<u8>,
    },
    Welcome {
        proof: Vec<u8>,
        limits: Limits,
    },
    Pong {
        mono_us: u64,
        wall_us: u64,
    },
    Gauges(Shown),
    /// One for each thread.
    Outcome(Vec<Outcome>),
    Failed {
        reason: String,
    },
}

/// What a worker can take.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Threads that share the work.
    pub threads: u32,
    /// Connections, by the limit of open files.
    pub connections_by_files: u64,
    /// Connections to one target that is not this machine, by the range of local ports.
    pub connections_by_ports: u64,
    pub machine: Machine,
}

/// A worker's gauges, all its threads together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Shown {
    pub up: u64,
    pub sent: u64,
    pub accepted: u64,
    pub delivered: u64,
    pub errors: u64,
    /// The seconds that are over since the last time.
    pub intervals: Vec<Interval>,
    pub done: bool,
    /// Why no connection can work.
    pub obstacle: Option<String>,
}

/// A worker's share of a run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub plan: Plan,
    pub run: u64,
    /// HOST:PORT, as the worker's machine names it.
    pub target: String,
    /// Whom to trust there, if TLS is spoken.
    pub tls: Option<Trust>,
    pub device: u16,
    pub first_user: u64,
    pub users: u32,
    /// Of all workers' users, those before this slice.
    pub users_before: u32,
    pub heartbeat_s: u16,
    /// How many tokens follow: one for each user, or none where nobody needs any.
    pub tokens: u32,
}

impl Order {
    /// Whether this can be carried out by a worker with such limits.
    pub(super) fn check(&self, limits: &Limits) -> Result<(), String> {
        let plan = &self.plan;
        // A worker's own threads come later; what one could do, some can.
        plan.check(1).map_err(|bad| bad.to_string())?;
        if plan.hold.is_some() {
            return Err("the plan `hold` is not for workers".into());
        }
        let end = u64::from(self.users_before) + u64::from(self.users);
        let ids = self.first_user.checked_add(u64::from(self.users));
        if self.users < plan.unit() || end > u64::from(plan.connections) || ids.is_none() {
            return Err(format!(
                "a worker needs {} users or more, and no more than the plan has",
                plan.unit()
            ));
        }
        if plan.tls.is_some() != self.tls.is_some() {
            return Err("TLS needs a certificate to trust".into());
        }
        if self.tokens != 0 && self.tokens != self.users {
            return Err("each user needs one token".into());
        }
        let sockets = u64::from(self.users) * u64::from(sockets_per_user(plan));
        if sockets > limits.connections_by_files {
            return Err(format!(
                "{} users need more open files than the {} of this worker (ulimit -Hn)",
                self.users, limits.connections_by_files
            ));
        }
        Ok(())
    }
}
