//! Portico's gateway as a library: a thread per core, each with an io_uring of its own, the state
//! machine of `portico_core` on it, and a store behind [`backend::Backend`].
//!
//! The program `portico` is a thin shell around this crate: whatever it does with a [`Gateway`], an
//! embedder can do too, with a store and an [`Authenticator`] of its own. `examples/custom_backend.rs`
//! is a complete one.
//!
//! # Invariants
//! - Nothing is shown to anyone before the store has it; nothing is accepted without a valid login.
//! - `glommio` is named under `driver` only, `unsafe` is written under `driver::ring` only.
//! - Nothing that comes from the network, the disk or the configuration can make this crate panic.

mod auth;
mod driver;
mod gateway;
mod store_map;
mod tls_files;
mod tls_options;

pub use auth::{
    AUTH_KEY_FILE, AdminKey, Authenticator, JwtAuthenticator, JwtOptions, KeyError, KeyKeeper,
    KeyKind, KeyStats, RESUME_KEY_FILE, ResumeKey, Revocations, RevokeError, StaticAuthenticator,
    VerifyingKey, is_key_url,
};
#[doc(hidden)]
pub use driver::bench;
pub use driver::{
    Features, Metric, MetricKind, ProbeError, RingSizes, footprint, memlock_needed, probe_kernel,
};
pub use gateway::{
    Control, Gateway, GatewayOptions, Meter, MetricsSnapshot, Pulse, SHARDS_MAX, StartError,
    StopError, Stores, slots_per_shard,
};
pub use portico_backend as backend;
pub use portico_core::{
    AuthError, BadNetwork, Credentials, Denial, Grant, Limits, Network, Policy, Rate, Rates,
    Revocation, Verdict,
};
pub use portico_tls as tls;
pub use portico_wire::ids::{DeviceId, UserId};
pub use tls_files::{ClientFiles, TlsFiles, TlsReloader, TlsStatus};
pub use tls_options::TlsOptions;

/// Every number a shard publishes, at zero: names, labels and what they mean.
#[must_use]
pub fn metric_table() -> Vec<Metric> {
    driver::Published::default().read()
}
