//! The admin port: is it alive, is it ready, what has it counted.
//!
//! It runs on a thread of its own with a small tokio runtime and reads what shards publish. What it
//! shows needs no sign-in and is no user's data; what it changes needs the secret of the data
//! directory ([`portico_gateway::AdminKey`]). It belongs on loopback or in a network of operators.
//!
//! # Invariants
//! - A request costs the shards nothing: it reads atomics.
//! - At most [`limited::CONNECTIONS_MAX`] connections, each for at most
//!   [`limited::LIFETIME`]: a client that misbehaves here takes no descriptors from the store.

mod limited;
mod page;
mod wish;

pub(crate) use page::{StoreView, TlsView, table};
pub(crate) use wish::{Denial, Wish, request};

use crate::telemetry::Process;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::{get, post},
};
use limited::Limited;
use page::{Observed, page};
use portico_gateway::{KeyStats, Metric};
use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread,
};

/// The version of this program.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit it was built from, where the build says so in `BUILD_COMMIT`.
pub(crate) const COMMIT: &str = match option_env!("BUILD_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// The Content-Type of the text format of Prometheus.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the admin port tells about. Called on its thread; must not block.
pub(crate) trait Subject: Send + Sync + 'static {
    /// The numbers of each shard, none before there are shards.
    fn shards(&self) -> Vec<Vec<Metric>>;
    /// The store, once it is open.
    fn store(&self) -> Option<StoreView>;
    /// TLS, where it is served.
    fn tls(&self) -> Option<TlsView>;
    fn readiness(&self) -> Readiness;
    /// The keys of tokens, once there is a gateway.
    fn keys(&self) -> Option<KeyStats>;
    /// Does what is asked, if whoever asks may. Called on a thread of its own: it may wait.
    fn grant(&self, wish: &Wish<'_>) -> Result<String, Denial>;
}

/// Whether clients are welcome, and what there is to say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Readiness {
    ready: bool,
    remark: Option<String>,
}

impl Readiness {
    pub(crate) const fn yes(remark: Option<String>) -> Self {
        Self {
            ready: true,
            remark,
        }
    }

    pub(crate) fn no(why: &str) -> Self {
        Self {
            ready: false,
            remark: Some(why.to_owned()),
        }
    }
}

/// Binds the port and starts to answer.
///
/// # Errors
/// The address cannot be bound, or the system gives no thread.
pub(crate) fn start(address: SocketAddr, subject: Arc<dyn Subject>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let local = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    thread::Builder::new()
        .name("portico-admin".to_owned())
        .spawn(move || {
            let served = runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                axum::serve(Limited::new(listener), router(subject)).await
            });
            if let Err(error) = served {
                tracing::error!(%error, "the admin port stopped");
            }
        })?;
    Ok(local)
}

fn router(subject: Arc<dyn Subject>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .route(wish::REVOKE, post(wish::revoke))
        .with_state(subject)
}

/// The process lives and answers. A shard that fails takes the process with it.
async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(subject): State<Arc<dyn Subject>>) -> (StatusCode, String) {
    let Readiness { ready, remark } = subject.readiness();
    let remark = remark.map_or_else(String::new, |remark| format!("{remark}\n"));
    if ready {
        (StatusCode::OK, format!("ready\n{remark}"))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, remark)
    }
}

async fn metrics(State(subject): State<Arc<dyn Subject>>) -> impl IntoResponse {
    let observed = Observed {
        shards: subject.shards(),
        store: subject.store(),
        tls: subject.tls(),
        keys: subject.keys(),
        ready: subject.readiness().ready,
        process: Process::read(),
    };
    ([(CONTENT_TYPE, PROMETHEUS)], page(&observed))
}

async fn version() -> impl IntoResponse {
    let text = format!(
        "{{\"name\":\"portico\",\"version\":\"{VERSION}\",\"commit\":\"{COMMIT}\",\"protocol\":{}}}\n",
        portico_wire::VERSION
    );
    ([(CONTENT_TYPE, "application/json")], text)
}

#[cfg(test)]
mod tests;
