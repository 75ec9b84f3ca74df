//! The gateway as a library: a backend, an authenticator and a few settings make one that serves.
//!
//! ```text
//!   Gateway::start   asks the store for its ceiling, binds, starts the shards
//!   Gateway::drain   stops accepting and asks the clients to leave
//!   Gateway::stop    drains, waits, ends the shards, closes the store
//! ```
//!
//! # Invariants
//! - When `start` returns a gateway, all shards accept; when it returns an error, nothing runs.
//! - No sequence number is issued that the store may hold already, whatever the clock says.
//! - The store is closed after the last shard has ended.

mod fan_outs;
mod housekeeping;
mod people;
mod rings;
mod stores;

use crate::{
    auth::Authenticator,
    driver::{
        CrewError, CrewThread, Mesh, Metric, Order, Published, RingError, RingSizes, ShardPlan,
        listen, now,
    },
    tls_options::TlsOptions,
};
use housekeeping::Housekeeper;
pub(crate) use housekeeping::ask;
use portico_backend::{
    Backend, Health, Stats,
    messages::{Cmd, Messages, Reply},
};
use portico_core::{Limits, Network, Policy, Revocation, ShardConfig, ShardId, user_home};
use portico_wire::{ids::Seq, limits};
use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    io, mem,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
pub use stores::Stores;

/// Shards are numbered with 16 bits, and each pair of them has a queue.
pub const SHARDS_MAX: usize = 1_024;
/// What the kernel allows in one table of direct descriptors.
const SLOTS_MAX: u32 = 1 << 20;
/// A ceiling further ahead than this means that this machine's clock is wrong, or was.
const CEILING_AHEAD_MAX_US: u64 = 24 * 3_600 * 1_000_000;
/// For the first answer of the store.
const CEILING_PATIENCE: Duration = Duration::from_secs(30);
/// The least that closing the store gets, when stopping has used up its time.
const CLOSE_MIN: Duration = Duration::from_secs(1);
const JOIN_STEP: Duration = Duration::from_millis(2);

/// Settings of a gateway. The default serves on the loopback interface, one shard per core.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// Port 0 lets the kernel choose: [`Gateway::local_addr`] tells which.
    pub listen: SocketAddr,
    /// Beside the plain port. None: no TLS.
    pub tls: Option<TlsOptions>,
    /// 0: one per CPU. May exceed the number of CPUs: each shard has a table of its own for its
    /// connections, so that more shards hold more connections than one process may open files.
    pub shards: usize,
    /// A thread is pinned to each of these, and they share the shards evenly. Empty: those this
    /// process may run on.
    pub cpus: Vec<usize>,
    /// Goes into WELCOME, for support.
    pub node: String,
    pub limits: Limits,
    /// A connection whose peer confirms nothing of what is sent to it for so long is ended by the
    /// kernel. 0: when the kernel gives up by itself.
    pub user_timeout_ms: u32,
    /// The heartbeat assumed of clients, and the range they may ask for.
    pub heartbeat_s: u16,
    pub heartbeat_min_s: u16,
    pub heartbeat_max_s: u16,
    /// Entries are kept at least this long.
    pub retention: Duration,
    /// Connections one shard may hold; RLIMIT_NOFILE bounds it. 0: as many as that allows.
    pub slots_per_shard: u32,
    /// Sizes left open ([`RingSizes::AUTO`]) follow from the numbers of shards and CPUs.
    pub ring: RingSizes,
    /// Bytes of incomplete frames that one shard may hold.
    pub unread_bytes_max: usize,
    /// Balancers: connections from these networks begin with a PROXY header of version 2, and come from
    /// where that says.
    pub proxy_from: Vec<Network>,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7_400)),
            tls: None,
            shards: 0,
            cpus: Vec::new(),
            node: String::new(),
            limits: Limits::default(),
            user_timeout_ms: 45_000,
            heartbeat_s: limits::HEARTBEAT_DEFAULT_S,
            heartbeat_min_s: limits::HEARTBEAT_MIN_S,
            heartbeat_max_s: limits::HEARTBEAT_MAX_S,
            retention: Duration::from_secs(365 * 86_400),
            slots_per_shard: 0,
            ring: RingSizes::auto(),
            unread_bytes_max: 64 << 20,
            proxy_from: Vec::new(),
        }
    }
}

/// Why a gateway does not start. Each is a sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    #[error("address in use: {0}")]
    AddressInUse(SocketAddr),
    #[error("cannot listen on {address}: {error}{}", advice(error))]
    Listen {
        address: SocketAddr,
        #[source]
        error: io::Error,
    },
    #[error("{0} shards are too many: {SHARDS_MAX} at most")]
    TooManyShards(usize),
    #[error("CPU {0} is not among those this process may run on")]
    NoSuchCpu(usize),
    #[error("shard {shard}: {detail}")]
    Shard { shard: usize, detail: String },
    #[error("the store did not say where its sequence numbers end: {0}")]
    NoCeiling(portico_backend::Error),
    #[error("the store did not say which messages of groups are still on their way: {0}")]
    NoFanOuts(portico_backend::Error),
    #[error("the store did not say whose settings it has: {0}")]
    NoSettings(portico_backend::Error),
    #[error(
        "the store holds sequence numbers {} hours ahead of this machine's clock: set the clock \
         right, or restore the store, and start again", ahead.as_secs() / 3_600
    )]
    CeilingAhead { ahead: Duration },
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            " (ports below 1024 want CAP_NET_BIND_SERVICE, AmbientCapabilities= in a systemd unit; \
             or choose another)"
        }
        _ => "",
    }
}

/// What did not go as it should while stopping. The gateway has ended in any case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StopError {
    #[error("{0} shards did not finish in time and were cut off")]
    CutOff(usize),
    #[error("the store did not close in order: {0}")]
    Store(portico_backend::Error),
}

/// The numbers of a running gateway.
#[derive(Clone, Debug)]
pub struct MetricsSnapshot {
    /// By shard; the same names in the same order in each.
    pub shards: Vec<Vec<Metric>>,
    pub health: Health,
    pub store: Stats,
}

/// How a thread of shards is doing. One that neither goes round nor sleeps hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pulse {
    /// Of its shards together, since the start; a look later it is more, unless the thread slept.
    pub turns: u64,
    pub sleeps: bool,
}

/// A gateway that serves. Dropping it cuts all connections and leaves the store open; [`Self::stop`]
/// does it in order.
pub struct Gateway {
    address: SocketAddr,
    tls_address: Option<SocketAddr>,
    mesh: Arc<Mesh>,
    published: Vec<Arc<Published>>,
    threads: Vec<CrewThread>,
    stores: Stores,
    housekeeper: Option<Housekeeper>,
    draining: bool,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("address", &self.address)
            .field("shards", &self.published.len())
            .field("draining", &self.draining)
            .finish_non_exhaustive()
    }
}

impl Gateway {
    /// Starts to serve. Returns once every shard accepts connections. Everybody may write to everybody.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub fn start(
        options: GatewayOptions,
        stores: Stores,
        authenticator: Arc<dyn Authenticator>,
    ) -> Result<Self, StartError> {
        Self::start_with(options, stores, authenticator, &|| None)
    }

    /// The same with rules about who may write to whom. Each shard has a clone of its own, and asks it
    /// on its own thread: what the clones share they share by themselves, in an `Arc`.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub fn start_with_policy<P: Policy + Clone + 'static>(
        options: GatewayOptions,
        stores: Stores,
        authenticator: Arc<dyn Authenticator>,
        policy: &P,
    ) -> Result<Self, StartError> {
        Self::start_with(options, stores, authenticator, &|| {
            Some(Box::new(policy.clone()))
        })
    }

    fn start_with(
        options: GatewayOptions,
        stores: Stores,
        authenticator: Arc<dyn Authenticator>,
        policy: &dyn Fn() -> Option<Box<dyn Policy>>,
    ) -> Result<Self, StartError> {
        let cpus = cpus(&options.cpus)?;
        let shards = match options.shards {
            0 => cpus.len(),
            shards if shards > SHARDS_MAX => return Err(StartError::TooManyShards(shards)),
            shards => shards,
        };
        let mut open_fan_outs = fan_outs::open(&stores.messages, shards)?;
        let seq_floor = ceiling(&stores.messages)?;
        let mut restricted = people::restricted(&stores.records, shards)?.into_iter();
        let (plain_listeners, address) =
            listeners(options.listen, options.user_timeout_ms, shards)?;
        let tls_listeners = options.tls.as_ref();
        let tls_listeners = tls_listeners
            .map(|tls| listeners(tls.listen, options.user_timeout_ms, shards))
            .transpose()?;
        let (mut tls_listeners, tls_address) = match tls_listeners {
            Some((listeners, address)) => (listeners.into_iter(), Some(address)),
            None => (Vec::new().into_iter(), None),
        };
        let in_shard = |shard: usize, error: &dyn fmt::Display| StartError::Shard {
            shard,
            detail: error.to_string(),
        };
        // Shards beyond the CPUs share their threads.
        let crews = shards.min(cpus.len());
        let mesh = Mesh::new(shards, crews).map_err(|error: RingError| in_shard(0, &error))?;
        let mut gateway = Self {
            address,
            tls_address,
            mesh: Arc::new(mesh),
            published: (0..shards).map(|_| Arc::default()).collect(),
            threads: Vec::with_capacity(crews),
            stores,
            housekeeper: None,
            draining: false,
        };
        let open_files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let slots = slots_per_shard(options.slots_per_shard, open_files.current);
        let hash_seed = RandomState::new().hash_one(seq_floor);
        let random = || RandomState::new().hash_one(seq_floor);
        let invite_key = (random(), random());
        let sizes = options.ring.resolve(shards, cpus.len());
        let mut plans: Vec<Vec<ShardPlan>> = (0..crews).map(|_| Vec::new()).collect();
        for (shard, listener) in plain_listeners.into_iter().enumerate() {
            plans[shard % crews].push(ShardPlan {
                core: ShardConfig {
                    hash_seed,
                    invite_key,
                    open_fan_outs: mem::take(&mut open_fan_outs[shard]),
                    restricted: restricted.next().unwrap_or_default(),
                    ..core_config(&options, shard, shards, seq_floor)
                },
                listener,
                tls: tls_listeners.next().zip(options.tls.clone()),
                slots,
                sizes: sizes.clone(),
                unread_bytes_max: options.unread_bytes_max,
                mesh: gateway.mesh.clone(),
                published: gateway.published[shard].clone(),
                stores: gateway.stores.clone(),
                authenticator: authenticator.clone(),
                proxy_from: options.proxy_from.clone(),
                policy: policy(),
            });
        }
        let in_crew = |error: CrewError| in_shard(usize::from(error.shard.0), &error);
        for (cpu, plans) in cpus.iter().zip(plans) {
            let thread = CrewThread::start(*cpu, plans).map_err(in_crew)?;
            gateway.threads.push(thread);
        }
        // Nobody sends to a ring before all of them exist.
        for thread in &gateway.threads {
            thread.made().map_err(in_crew)?;
        }
        gateway.threads.iter().for_each(CrewThread::go);
        let housekeeper = Housekeeper::start(gateway.stores.messages.clone(), options.retention)
            .map_err(StartError::Thread)?;
        gateway.housekeeper = Some(housekeeper);
        Ok(gateway)
    }

    /// Stops accepting and asks the clients to leave, each at a random moment within `spread`. Who
    /// is still there after `deadline` is closed.
    pub fn drain(&mut self, spread: Duration, deadline: Duration) {
        self.draining = true;
        let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        for shard in 0..self.mesh.shards() {
            let order = Order::Drain {
                spread_ms: millis(spread),
                deadline_ms: millis(deadline),
            };
            self.mesh.order(shard, order);
        }
    }

    /// Ends the gateway within about this time: drains unless that has begun, waits for the shards,
    /// and closes the store.
    ///
    /// # Errors
    /// [`StopError`], when something was cut short. The gateway has ended all the same.
    pub fn stop(mut self, within: Duration) -> Result<(), StopError> {
        let until = Instant::now() + within;
        if !self.draining {
            self.drain(Duration::ZERO, within / 2);
        }
        while !self.is_drained() && Instant::now() < until {
            thread::sleep(JOIN_STEP);
        }
        let cut_off = self.end_shards();
        self.housekeeper = None;
        let close_until = until.max(Instant::now() + CLOSE_MIN);
        let closed = self.stores.close(close_until);
        if cut_off > 0 {
            return Err(StopError::CutOff(cut_off));
        }
        closed.map_err(StopError::Store)
    }

    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Where TLS is served, if it is.
    #[must_use]
    pub const fn tls_addr(&self) -> Option<SocketAddr> {
        self.tls_address
    }

    #[must_use]
    pub const fn shards(&self) -> usize {
        self.published.len()
    }

    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.draining
    }

    /// After [`Self::drain`]: everything has ended, and [`Self::stop`] will not wait for clients.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.threads.iter().all(CrewThread::is_finished)
    }

    /// The shards' numbers as they last published them, and the store's. Disturbs nobody.
    #[must_use]
    pub fn metrics(&self) -> MetricsSnapshot {
        self.meter().read()
    }

    /// Reads the same numbers from elsewhere, also after the gateway has moved on.
    #[must_use]
    pub fn meter(&self) -> Meter {
        Meter {
            mesh: self.mesh.clone(),
            published: self.published.clone(),
            messages: self.stores.messages.clone(),
        }
    }

    /// Changes what runs, from elsewhere; without effect once the gateway has ended.
    #[must_use]
    pub fn control(&self) -> Control {
        Control {
            mesh: self.mesh.clone(),
        }
    }

    /// Returns how many shards had to be told to stop.
    fn end_shards(&mut self) -> usize {
        let mut cut_off = 0;
        for (crew, thread) in self.threads.iter().enumerate() {
            if thread.is_finished() {
                continue;
            }
            for shard in (crew..self.mesh.shards()).step_by(self.threads.len()) {
                cut_off += 1;
                self.mesh.order(shard, Order::Stop);
            }
        }
        self.threads.drain(..).for_each(CrewThread::join);
        cut_off
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.end_shards();
    }
}

/// Gives orders to a gateway from any thread.
#[derive(Clone, Debug)]
pub struct Control {
    mesh: Arc<Mesh>,
}

impl Control {
    /// Ends the sessions that a revocation is about, with CLOSE 4021, in the next turn of their shard;
    /// also those that were let in by the authenticator before and are still on their way there.
    /// The authenticator has to know of it first.
    pub fn revoke(&self, revocation: Revocation) {
        // Fits: `SHARDS_MAX`.
        let home = user_home(revocation.user, self.mesh.shards() as u16);
        self.mesh
            .order(usize::from(home.0), Order::Revoke(revocation));
    }
}

/// Reads the numbers of a gateway from any thread.
#[derive(Clone)]
pub struct Meter {
    mesh: Arc<Mesh>,
    published: Vec<Arc<Published>>,
    messages: Arc<dyn Backend<Messages>>,
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter")
            .field("shards", &self.published.len())
            .finish_non_exhaustive()
    }
}

impl Meter {
    #[must_use]
    pub fn read(&self) -> MetricsSnapshot {
        MetricsSnapshot {
            shards: self.published.iter().map(|shard| shard.read()).collect(),
            health: self.messages.health(),
            store: self.messages.stats(),
        }
    }

    /// Of each thread of shards.
    #[must_use]
    pub fn pulses(&self) -> Vec<Pulse> {
        let crews = self.mesh.crews();
        (0..crews)
            .map(|crew| Pulse {
                turns: (self.published.iter().skip(crew).step_by(crews))
                    .map(|shard| shard.turns())
                    .sum(),
                sleeps: self.mesh.is_parked(crew),
            })
            .collect()
    }

    /// Without the numbers.
    #[must_use]
    pub fn health(&self) -> Health {
        self.messages.health()
    }
}

/// Where the store's sequence numbers end, if the clock makes sense of it.
fn ceiling(messages: &Arc<dyn Backend<Messages>>) -> Result<u64, StartError> {
    let ceiling = match ask(messages, Cmd::Ceiling, CEILING_PATIENCE) {
        Ok(Reply::Ceiling(Seq(ceiling))) => ceiling,
        Ok(_) => {
            let detail = "the adapter gave another answer than the one it was asked for";
            let error = portico_backend::Error::new(portico_backend::Kind::Invalid, detail);
            return Err(StartError::NoCeiling(error));
        }
        Err(error) => return Err(StartError::NoCeiling(error)),
    };
    let ahead_us = ceiling.saturating_sub(now().wall_us);
    if ahead_us > CEILING_AHEAD_MAX_US {
        let ahead = Duration::from_micros(ahead_us);
        return Err(StartError::CeilingAhead { ahead });
    }
    Ok(ceiling)
}

/// One per shard, on one port, and the address with that port.
fn listeners(
    address: SocketAddr,
    user_timeout_ms: u32,
    shards: usize,
) -> Result<(Vec<TcpListener>, SocketAddr), StartError> {
    // SO_REUSEPORT would let a second gateway of the same user join in: ask without it first.
    if address.port() != 0 {
        drop(TcpListener::bind(address).map_err(|error| cannot_listen(address, error))?);
    }
    let mut listeners = Vec::with_capacity(shards);
    let mut address = address;
    for _ in 0..shards {
        let listener =
            listen(address, user_timeout_ms).map_err(|error| cannot_listen(address, error))?;
        address = listener
            .local_addr()
            .map_err(|error| cannot_listen(address, error))?;
        listeners.push(listener);
    }
    Ok((listeners, address))
}

fn cannot_listen(address: SocketAddr, error: io::Error) -> StartError {
    match error.kind() {
        io::ErrorKind::AddrInUse => StartError::AddressInUse(address),
        _ => StartError::Listen { address, error },
    }
}

fn core_config(
    options: &GatewayOptions,
    shard: usize,
    shards: usize,
    seq_floor: u64,
) -> ShardConfig {
    // Both fit: `SHARDS_MAX`.
    ShardConfig {
        node: options.node.clone(),
        retention_s: options.retention.as_secs(),
        heartbeat_s: options.heartbeat_s,
        heartbeat_min_s: options.heartbeat_min_s,
        heartbeat_max_s: options.heartbeat_max_s,
        seq_floor,
        limits: options.limits.clone(),
        ..ShardConfig::new(ShardId(shard as u16), shards as u16)
    }
}

/// The CPUs that are wanted, or all that this process may use.
fn cpus(wanted: &[usize]) -> Result<Vec<usize>, StartError> {
    let allowed = match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU)
            .filter(|cpu| set.is_set(*cpu))
            .collect(),
        Err(_) => vec![0],
    };
    match wanted.iter().find(|cpu| !allowed.contains(cpu)) {
        Some(cpu) => Err(StartError::NoSuchCpu(*cpu)),
        None if wanted.is_empty() => Ok(allowed),
        None => Ok(wanted.to_vec()),
    }
}

/// Entries of each shard's table of direct descriptors: those wanted, or if that is 0, as many as
/// the process may open files (None: no limit).
#[must_use]
pub fn slots_per_shard(wanted: u32, open_files_max: Option<u64>) -> u32 {
    let limit = open_files_max.map_or(SLOTS_MAX, |files| {
        u32::try_from(files).unwrap_or(SLOTS_MAX).min(SLOTS_MAX)
    });
    if wanted == 0 {
        limit
    } else {
        wanted.min(limit)
    }
}
