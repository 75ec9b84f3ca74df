//! `portico serve`: from checked settings to a gateway that accepts, and back to nothing.
//!
//! # Invariants
//! - SIGHUP has the files of TLS read again, and does not end the process where TLS is served.
//! - Standard output gets one line, when clients are accepted; what is for people goes to standard
//!   error before it.
//! - Whatever cannot work is found before the first client is accepted, and is one sentence.
//! - On the first SIGTERM or SIGINT clients are asked to leave and the store is closed; a second
//!   signal ends the process at once, which loses nothing that was acknowledged.

mod greeting;
mod store;
mod tls;
mod tokens;
mod watchdog;

use crate::{
    Failure,
    admin::{self, Readiness, StoreView, Subject, TlsView, Wish},
    config::Config,
    manager::Manager,
    probe::{self, Machine},
    telemetry,
};
use portico_gateway::{
    Gateway, GatewayOptions, KeyStats, Meter, Metric, TlsStatus, backend::Health,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
    iterator::Signals,
};
use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};
use store::Store;
use tls::Tls;
use watchdog::Watchdog;

const DAY: Duration = Duration::from_secs(86_400);
/// Longest node name: it goes into every WELCOME.
const NODE_BYTES_MAX: usize = 64;

pub(crate) fn serve(config: &Config) -> Result<(), Failure> {
    let filters = std::env::var("RUST_LOG").ok();
    telemetry::start_logging(config.log.level, config.log.format, filters.as_deref());
    let manager = Manager::from_env().map_err(|error| {
        Failure::Runtime(format!(
            "the socket in NOTIFY_SOCKET cannot be reached: {error}"
        ))
    })?;
    let manager = Arc::new(manager);
    let machine = probe::look(config)?;
    if let Some(fewer) = &machine.fewer {
        tracing::warn!(%fewer, "fewer shards than CPUs");
    }
    let stage = Arc::new(Stage::default());
    let admin = admin::start(config.server.admin, stage.clone()).map_err(|error| {
        Failure::Runtime(match error.kind() {
            io::ErrorKind::AddrInUse => format!("admin address in use: {}", config.server.admin),
            _ => format!(
                "cannot bind the admin port {}: {error}",
                config.server.admin
            ),
        })
    })?;
    // The keys before the store: they are what a wrong start usually lacks.
    let tokens = tokens::Tokens::open(config)?;
    let store = Store::open(config)?;
    let tokens = tokens.with_revocations(config, &store)?;
    let tls = Tls::open(config)?;
    let mut signals =
        catch_signals(tls.is_some() || manager.is_there()).map_err(Failure::runtime)?;
    let mut options = options(config, &machine);
    options.tls = tls.as_ref().map(|tls| tls.options.clone());
    let mut gateway =
        Gateway::start(options, store.both(), tokens.authenticator()).map_err(Failure::runtime)?;
    let listen = gateway.local_addr();
    let keeper = tokens.keep_keys()?;
    stage.open(Scene {
        meter: gateway.meter(),
        desk: tokens.desk(&gateway),
        store: store.clone(),
        tls: tls.as_ref().map(Tls::status),
    });
    let reload = tls.map(Tls::watch).transpose()?;
    let addresses = Addresses {
        listen,
        admin,
        tls: gateway.tls_addr(),
    };
    greeting::print(config, &machine, addresses);
    let tls = addresses.tls;
    let tls = tls.map_or_else(String::new, |address| format!(" tls={address}"));
    announce(&format!("ready listen={listen} admin={admin}{tls}\n"));
    let watchdog = Watchdog::start(&manager, gateway.meter()).map_err(Failure::runtime)?;
    manager.ready();

    let signal = await_end(&mut signals, reload.as_ref(), &manager);
    tracing::info!(signal, "draining; a second signal ends at once");
    manager.stopping();
    // The drain has its own deadlines.
    drop(watchdog);
    stage.draining.store(true, Ordering::Relaxed);
    let start = Instant::now();
    let millis = |time: u32| Duration::from_millis(u64::from(time));
    let deadline = millis(config.drain.deadline_ms);
    let flush = millis(config.drain.flush_ms);
    gateway.drain(millis(config.drain.spread_ms), deadline);
    gateway.stop(deadline + flush).map_err(Failure::runtime)?;
    drop(keeper);
    store.close(Instant::now() + flush)?;
    tracing::info!(
        seconds = start.elapsed().as_secs_f64(),
        "drained and closed"
    );
    Ok(())
}

/// A second signal, or a third, ends the process with code 1 from within its handler. The first
/// only arms that, and is told to whoever reads the iterator.
///
/// SIGHUP ends a process that does not catch it, as it should when its terminal goes away: it is
/// caught only if it has a meaning, or comes from a service manager.
fn catch_signals(reloads: bool) -> io::Result<Signals> {
    let armed = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order: the handler that looks runs before the one that arms.
        flag::register_conditional_shutdown(signal, 1, armed.clone())?;
        flag::register(signal, armed.clone())?;
    }
    let hangup = reloads.then_some(SIGHUP);
    Signals::new([SIGTERM, SIGINT].into_iter().chain(hangup))
}

/// The signal that asks for the end.
fn await_end(
    signals: &mut Signals,
    reload: Option<&mpsc::Sender<()>>,
    manager: &Manager,
) -> Option<i32> {
    for signal in signals.forever() {
        if signal != SIGHUP {
            return Some(signal);
        }
        manager.reloading();
        if let Some(reload) = reload {
            // The thread that reads the files lives as long as this sender.
            let _ = reload.send(());
        }
        manager.ready();
    }
    None
}

/// Where a gateway can be reached.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    listen: SocketAddr,
    admin: SocketAddr,
    tls: Option<SocketAddr>,
}

fn options(config: &Config, machine: &Machine) -> GatewayOptions {
    GatewayOptions {
        listen: config.server.listen,
        tls: None,
        shards: usize::from(machine.shards),
        cpus: machine.cpus.iter().map(|cpu| usize::from(*cpu)).collect(),
        node: node(&config.server.node),
        limits: config.limits.clone(),
        user_timeout_ms: config.session.user_timeout_ms,
        heartbeat_s: config.session.heartbeat_s,
        heartbeat_min_s: config.session.heartbeat_min_s,
        heartbeat_max_s: config.session.heartbeat_max_s,
        retention: DAY * config.store.retention_days,
        slots_per_shard: config.shard.connections_max,
        ring: machine.ring.clone(),
        unread_bytes_max: config.shard.unread_bytes_max,
        proxy_from: config.server.proxy_from.clone(),
    }
}

/// The configured name, or that of the host.
fn node(configured: &str) -> String {
    if !configured.is_empty() {
        return configured.to_owned();
    }
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    host.trim()
        .chars()
        .filter(char::is_ascii_graphic)
        .take(NODE_BYTES_MAX)
        .collect()
}

/// For whoever started this. If nobody reads it, clients are served all the same.
fn announce(line: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

/// What the admin port sees, from before there is a gateway until after.
#[derive(Debug, Default)]
struct Stage {
    scene: OnceLock<Scene>,
    draining: AtomicBool,
}

#[derive(Debug)]
struct Scene {
    meter: Meter,
    store: Store,
    tls: Option<Arc<TlsStatus>>,
    desk: tokens::Desk,
}

impl Stage {
    fn open(&self, scene: Scene) {
        // Called once; a second scene would be dropped.
        let _ = self.scene.set(scene);
    }
}

impl Subject for Stage {
    fn shards(&self) -> Vec<Vec<Metric>> {
        self.scene
            .get()
            .map(|scene| scene.meter.read().shards)
            .unwrap_or_default()
    }

    fn store(&self) -> Option<StoreView> {
        let scene = self.scene.get()?;
        let snapshot = scene.meter.read();
        Some(StoreView {
            name: scene.store.name(),
            health: snapshot.health,
            stats: snapshot.store,
            rows_damaged: scene.store.rows_damaged(),
        })
    }

    fn tls(&self) -> Option<TlsView> {
        let status = self.scene.get()?.tls.as_ref()?;
        Some(TlsView {
            expires_unix_s: status.expires_unix_s(),
            reloaded: status.reloaded(),
            failed: status.failed(),
        })
    }

    fn keys(&self) -> Option<KeyStats> {
        Some(self.scene.get()?.desk.keys())
    }

    fn grant(&self, wish: &Wish<'_>) -> Result<String, admin::Denial> {
        match self.scene.get() {
            Some(scene) => scene.desk.grant(wish),
            None => Err(admin::Denial::NotNow("the gateway is starting".to_owned())),
        }
    }

    fn readiness(&self) -> Readiness {
        let Some(scene) = self.scene.get() else {
            return Readiness::no("starting");
        };
        if self.draining.load(Ordering::Relaxed) {
            return Readiness::no("draining");
        }
        match scene.meter.health() {
            Health::Up => Readiness::yes(None),
            Health::Degraded(why) => Readiness::yes(Some(format!("store: {why}"))),
            Health::Down(why) => Readiness::no(&format!("store: {why}")),
        }
    }
}
