//! The gateway's settings: where they come from, in which order, and what they may be.
//!
//! Defaults < file < environment < flags. Every setting is one line of the table in `knobs`, which
//! the file, the environment, the printed default file and the documentation all follow.
//!
//! # Invariants
//! - A [`Config`] holds no bad value and no bad combination: it is made by [`Config::load`] alone.
//! - A name nobody knows is an error, never ignored: a misspelt limit would be no limit.
//! - Every message names the key, the value, where it came from and what is allowed.

mod knobs;
mod load;
mod print;
mod value;

pub(crate) use knobs::{KNOBS, SHARDS_MAX};
pub(crate) use load::{Env, ProcessEnv, Sources};
pub(crate) use print::default_file;

use portico_gateway::{
    GatewayOptions, JwtOptions, Limits, Network, RingSizes, TlsOptions, backend::embedded,
};
use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    ops::Deref,
    path::PathBuf,
};

/// Where the gateway listens and who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) listen: SocketAddr,
    /// Plain text may leave the machine.
    pub(crate) allow_plaintext: bool,
    pub(crate) admin: SocketAddr,
    pub(crate) data: PathBuf,
    pub(crate) backend: BackendKind,
    /// None: one per CPU that the gateway may use.
    pub(crate) shards: Option<u16>,
    /// Empty: the CPUs that the process may use.
    pub(crate) cpus: Vec<u16>,
    /// Empty: the name of the host.
    pub(crate) node: String,
    pub(crate) proxy_from: Vec<Network>,
    pub(crate) core_dumps: CoreDumps,
}

/// May the kernel write the memory of the process to a file when it crashes?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CoreDumps {
    Never,
    Allowed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackendKind {
    Embedded,
    Memory,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    /// 0: the kernel's own.
    pub(crate) user_timeout_ms: u32,
    pub(crate) heartbeat_s: u16,
    pub(crate) heartbeat_min_s: u16,
    pub(crate) heartbeat_max_s: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Drain {
    pub(crate) spread_ms: u32,
    pub(crate) deadline_ms: u32,
    pub(crate) flush_ms: u32,
}

/// TLS, where it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tls {
    /// None: not at all. With it there is a certificate with its key, or `self_signed`.
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) self_signed: bool,
    pub(crate) ticket_secret: Option<PathBuf>,
    pub(crate) client_ca: Option<PathBuf>,
    pub(crate) client_required: bool,
    pub(crate) handshakes_per_turn: usize,
    pub(crate) handshake_ms: u32,
    pub(crate) hibernate_after_s: u32,
}

/// Bounds of one shard that the driver keeps, beside those of the core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    /// 0: as many as the limit of open files allows.
    pub(crate) connections_max: u32,
    pub(crate) unread_bytes_max: usize,
}

/// The messages' store. Sizes are those of the embedded one; the memory backend has the queues
/// only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Store {
    pub(crate) retention_days: u32,
    pub(crate) commands_max: usize,
    pub(crate) bytes_max: usize,
    pub(crate) readers: usize,
    pub(crate) cache_bytes: u64,
    pub(crate) open_files_max: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) level: LogLevel,
    pub(crate) format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// With the time of each line.
    Text,
    /// Without it, for a journal that adds its own.
    Journal,
}

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) server: Server,
    pub(crate) session: Session,
    pub(crate) tls: Tls,
    pub(crate) auth: JwtOptions,
    pub(crate) limits: Limits,
    pub(crate) shard: Shard,
    pub(crate) store: Store,
    pub(crate) ring: RingSizes,
    pub(crate) drain: Drain,
    pub(crate) log: Log,
}

impl Default for Settings {
    fn default() -> Self {
        let gateway = GatewayOptions::default();
        let embedded = embedded::Options::new("");
        Self {
            server: Server {
                listen: gateway.listen,
                allow_plaintext: false,
                admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 7480)),
                data: PathBuf::from("./portico-data"),
                backend: BackendKind::Embedded,
                shards: None,
                cpus: Vec::new(),
                node: String::new(),
                proxy_from: Vec::new(),
                core_dumps: CoreDumps::Never,
            },
            session: Session {
                user_timeout_ms: gateway.user_timeout_ms,
                heartbeat_s: gateway.heartbeat_s,
                heartbeat_min_s: gateway.heartbeat_min_s,
                heartbeat_max_s: gateway.heartbeat_max_s,
            },
            tls: Tls {
                listen: None,
                cert: None,
                key: None,
                self_signed: false,
                ticket_secret: None,
                client_ca: None,
                client_required: false,
                handshakes_per_turn: TlsOptions::HANDSHAKES_PER_TURN,
                handshake_ms: TlsOptions::HANDSHAKE_MS,
                hibernate_after_s: TlsOptions::HIBERNATE_AFTER_S,
            },
            auth: JwtOptions::default(),
            limits: gateway.limits,
            shard: Shard {
                connections_max: gateway.slots_per_shard,
                unread_bytes_max: gateway.unread_bytes_max,
            },
            store: Store {
                retention_days: 365,
                commands_max: embedded.limits.commands_max,
                bytes_max: embedded.limits.bytes_max,
                readers: embedded.readers,
                cache_bytes: embedded.cache_bytes,
                open_files_max: embedded.open_files_max,
            },
            ring: gateway.ring,
            drain: Drain {
                spread_ms: 10_000,
                deadline_ms: 25_000,
                flush_ms: 10_000,
            },
            log: Log {
                level: LogLevel::Info,
                format: LogFormat::Text,
            },
        }
    }
}

/// Settings that passed every check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config(Settings);

impl Deref for Config {
    type Target = Settings;

    fn deref(&self) -> &Settings {
        &self.0
    }
}

/// Where a value came from, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    File(PathBuf),
    Environment(String),
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "in {}", path.display()),
            Self::Environment(name) => write!(f, "from the environment variable {name}"),
            Self::Flag(name) => write!(f, "from --{name}"),
        }
    }
}

/// What is wrong with the settings. All of them end the program with code 64.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} is not valid TOML: {detail}", path.display())]
    Syntax { path: PathBuf, detail: String },
    #[error("unknown setting {key} ({origin}){}", hint(nearest.as_deref()))]
    UnknownKey {
        key: String,
        origin: Origin,
        nearest: Option<String>,
    },
    #[error("{key} = {value} ({origin}): allowed is {allowed}")]
    BadValue {
        key: &'static str,
        value: String,
        origin: Origin,
        allowed: String,
    },
    #[error("{left} = {left_value} and {right} = {right_value} do not go together: {rule}")]
    BadCombination {
        left: &'static str,
        left_value: String,
        right: &'static str,
        right_value: String,
        rule: &'static str,
    },
}

fn hint(nearest: Option<&str>) -> String {
    match nearest {
        Some(name) => format!(", did you mean {name}?"),
        None => "; `portico config --print-default` lists all".to_owned(),
    }
}

#[cfg(test)]
mod tests;
