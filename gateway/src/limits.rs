//! `portico limits`: what this machine can hold with the settings given, and what bounds it; or what
//! so many connections need, and whether it is there.
//!
//! ```text
//!   Facts    read from the machine (facts.rs)
//!   Sizing   arithmetic over facts and settings (here), and what would change it (advice.rs)
//!   Report   all there is to say (report.rs): as text (text.rs), or as JSON
//! ```
//!
//! # Invariants
//! - Only `facts` looks at the machine: equal facts and settings give an equal report.
//! - Sizes of what the gateway is made of come from the types themselves (`portico_gateway::footprint`).

mod advice;
mod facts;
mod report;
mod text;

pub(crate) use text::grouped;

#[cfg(test)]
mod tests;

use crate::{
    Failure,
    config::{BackendKind, Config, SHARDS_MAX, Settings},
    probe::{self, Refusal},
};
use facts::Facts;
use portico_gateway::{RingSizes, footprint, memlock_needed, slots_per_shard};
use report::{Kind, Needs, Resource, Unit};

/// Connections fall on shards by hashes, of the user and of the address, so that some shards get
/// more than the average. A shard that is full leaves its part of the new ones waiting. In
/// standard deviations: with so many, none of hundreds of shards is full before the average is met.
const SPREAD_DEVIATIONS: u64 = 5;
/// Greatest table of direct descriptors that is looked for.
const SLOTS_MAX: u64 = 1 << 20;

/// How to say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    Json,
}

/// The report, and whether the machine has what `connections` need.
pub(crate) fn report(
    config: &Config,
    connections: Option<u64>,
    form: Form,
) -> Result<(String, bool), Failure> {
    let facts = Facts::read(config)?;
    let report = Sizing::new(&facts, config).report(connections);
    let text = match form {
        Form::Text => report.to_string(),
        Form::Json => serde_json::to_string_pretty(&report).map_err(Failure::runtime)? + "\n",
    };
    let enough = report.needs.is_none_or(|needs| needs.enough);
    Ok((text, enough))
}

/// What the queues and tables of one of so many shards can hold together.
pub(crate) fn shard_queue_bytes_max(settings: &Settings, shards: u16) -> u64 {
    let unread_bytes_max = settings.shard.unread_bytes_max;
    let parts = footprint::of_queues(&settings.limits, unread_bytes_max, shards);
    let add = |sum: u64, part: &footprint::Part| sum.saturating_add(part.bytes);
    parts.iter().fold(0, add)
}

/// What the store's cache and queues can hold. It counts reads and writes apart.
pub(crate) fn store_queue_bytes_max(settings: &Settings) -> u64 {
    let cache = match settings.server.backend {
        BackendKind::Embedded => settings.store.cache_bytes,
        BackendKind::Memory => 0,
    };
    cache.saturating_add(bytes(settings.store.bytes_max).saturating_mul(2))
}

fn bytes(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// What holds a number of connections down. Names are for people, and for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    OpenFiles,
    Setting,
    FileMax,
    LockedMemory,
    Memory,
}

impl Bound {
    const fn name(self) -> &'static str {
        match self {
            Self::OpenFiles => "open files",
            Self::Setting => "limits.connections_max",
            Self::FileMax => "fs.file-max",
            Self::LockedMemory => "locked memory",
            Self::Memory => "memory",
        }
    }
}

/// The arithmetic. `u64::MAX` stands for no limit.
struct Sizing<'a> {
    facts: &'a Facts,
    settings: &'a Settings,
    slots: u32,
    kernel_bytes: u64,
}

impl<'a> Sizing<'a> {
    fn new(facts: &'a Facts, settings: &'a Settings) -> Self {
        Self {
            facts,
            settings,
            slots: slots_per_shard(settings.shard.connections_max, facts.open_files.now),
            kernel_bytes: facts.kernel_parts.iter().map(|part| part.bytes).sum(),
        }
    }

    // ---- what a shard and a connection cost

    fn ring(&self, shards: u16) -> RingSizes {
        let cpus = self.facts.cpus.len();
        self.settings.ring.resolve(usize::from(shards), cpus)
    }

    fn locked_bytes(&self, shards: u16) -> u64 {
        let cpus = self.facts.cpus.len();
        memlock_needed(usize::from(shards), cpus, &self.ring(shards))
    }

    fn shard_parts(&self, shards: u16) -> Vec<footprint::Part> {
        footprint::of_shard(&self.ring(shards), self.slots, usize::from(shards))
    }

    /// Shards share threads, of which there is one per CPU.
    fn threads(&self, shards: u16) -> u64 {
        let cpus = self.facts.cpus.len().max(1);
        usize::from(shards).min(cpus) as u64
    }

    /// Everything but connections, with every queue full.
    fn fixed_bytes(&self, shards: u16) -> u64 {
        let queues = u64::from(shards).saturating_mul(shard_queue_bytes_max(self.settings, shards));
        (u64::from(shards) * sum(&self.shard_parts(shards)))
            .saturating_add(self.threads(shards) * sum(&footprint::of_thread()))
            .saturating_add(queues)
            .saturating_add(store_queue_bytes_max(self.settings))
    }

    fn connection_bytes(&self) -> u64 {
        self.kernel_bytes + sum(&self.connection_parts())
    }

    /// Of a connection that is quiet. Where TLS is served, each is taken to come through it.
    fn connection_parts(&self) -> Vec<footprint::Part> {
        let mut parts = footprint::of_connection(self.slots);
        if self.settings.tls.listen.is_some() {
            parts.extend(footprint::of_tls_session());
        }
        parts
    }

    /// Open files of the process itself.
    fn process_files(&self, shards: u16) -> u64 {
        let store = match self.settings.server.backend {
            BackendKind::Embedded => bytes(self.settings.store.open_files_max),
            BackendKind::Memory => 0,
        };
        footprint::FILES
            + u64::from(shards) * footprint::FILES_PER_SHARD
            + self.threads(shards) * footprint::FILES_PER_THREAD
            + store
    }

    // ---- how many connections each limit allows

    fn by_slots(&self, shards: u16) -> u64 {
        u64::from(shards) * average_max(self.slots, shards)
    }

    fn by_file_max(&self, shards: u16) -> u64 {
        let Some(files) = self.facts.system_files.filter(|files| !files.exempt) else {
            return u64::MAX;
        };
        let free = files.max.saturating_sub(files.used);
        free.saturating_sub(self.process_files(shards))
    }

    fn by_memory(&self, shards: u16) -> u64 {
        let Some(memory) = &self.facts.memory else {
            return u64::MAX;
        };
        let free = memory.available_bytes;
        free.saturating_sub(self.fixed_bytes(shards)) / self.connection_bytes()
    }

    /// What bounds the connections of a shard.
    fn slots_bound(&self) -> Bound {
        match self.settings.shard.connections_max {
            0 => Bound::OpenFiles,
            max if max > self.slots => Bound::OpenFiles,
            _ => Bound::Setting,
        }
    }

    /// Connections of a gateway with so many shards, whether or not they can be started.
    fn holds(&self, shards: u16) -> (u64, Bound) {
        [
            (self.by_slots(shards), self.slots_bound()),
            (self.by_file_max(shards), Bound::FileMax),
            (self.by_memory(shards), Bound::Memory),
        ]
        .into_iter()
        .min_by_key(|(connections, _)| *connections)
        .unwrap_or((0, Bound::OpenFiles))
    }

    /// The shards that start, and why they are others than was asked for.
    fn shards(&self) -> (u16, Option<String>) {
        let plan = probe::plan(
            self.settings.server.shards,
            self.facts.parallel,
            |shards| self.locked_bytes(shards),
            self.facts.locked_bytes_max,
        );
        match plan {
            Ok(plan) => (plan.shards, plan.fewer),
            Err(refusal) => {
                let fit = match refusal {
                    Refusal::LockedMemory { fit, .. } => fit,
                    Refusal::OldKernel { .. }
                    | Refusal::Kernel(_)
                    | Refusal::OpenFiles { .. }
                    | Refusal::Cpu { .. } => 0,
                };
                (fit, Some(refusal.to_string()))
            }
        }
    }

    // ---- so many connections

    /// From one shard per CPU on, and all there may be if none are enough.
    fn fewest(&self, connections: u64) -> u16 {
        let least = probe::default_shards(self.facts.parallel);
        (least..=SHARDS_MAX)
            .find(|shards| self.by_slots(*shards) >= connections)
            .unwrap_or(SHARDS_MAX)
    }

    /// With the shards that were asked for, or the fewest that hold them.
    fn needs(&self, connections: u64) -> Needs {
        let asked = self.settings.server.shards;
        self.needs_of(
            connections,
            asked.unwrap_or_else(|| self.fewest(connections)),
        )
    }

    fn needs_of(&self, connections: u64, shards: u16) -> Needs {
        let facts = self.facts;
        let average = connections.div_ceil(u64::from(shards.max(1)));
        // Too many for any: more than the largest.
        let slots = slots_for(average, shards).unwrap_or(SLOTS_MAX + 1);
        let process = self.process_files(shards);
        let system = facts.system_files.map(|files| {
            let needed = connections
                .saturating_add(process)
                .saturating_add(files.used);
            let max = Some(files.max).filter(|_| !files.exempt);
            resource(Kind::FileMax, needed, max)
        });
        let memory = connections
            .saturating_mul(self.connection_bytes())
            .saturating_add(self.fixed_bytes(shards));
        let available = facts.memory.as_ref().map(|memory| memory.available_bytes);
        let resources: Vec<_> = [
            Some(resource(Kind::Slots, slots, Some(u64::from(self.slots)))),
            Some(resource(Kind::ProcessFiles, process, facts.open_files.now)),
            system,
            Some(resource(
                Kind::Locked,
                self.locked_bytes(shards),
                facts.locked_bytes_max,
            )),
            Some(resource(Kind::Memory, memory, available)),
        ]
        .into_iter()
        .flatten()
        .collect();
        Needs {
            connections,
            shards,
            enough: resources.iter().all(|resource| resource.enough),
            resources,
        }
    }
}

fn sum(parts: &[footprint::Part]) -> u64 {
    parts.iter().map(|part| part.bytes).sum()
}

fn resource(kind: Kind, needed: u64, available: Option<u64>) -> Resource {
    let (name, unit) = match kind {
        Kind::Slots => ("slots of each shard", Unit::Count),
        Kind::ProcessFiles => ("open files of the process", Unit::Count),
        Kind::FileMax => ("fs.file-max", Unit::Count),
        Kind::Locked => ("locked memory", Unit::Bytes),
        Kind::Memory => ("memory", Unit::Bytes),
    };
    Resource {
        kind,
        name,
        unit,
        needed,
        available,
        enough: available.is_none_or(|available| needed <= available),
    }
}

/// The greatest average with which no shard is likely to be full: average + 5 x its square root
/// (the standard deviation) is what a shard accepts.
fn average_max(slots: u32, shards: u16) -> u64 {
    let accepted = u64::from(footprint::accepted_max(slots, usize::from(shards)));
    if shards <= 1 {
        return accepted * u64::from(shards);
    }
    let squared = SPREAD_DEVIATIONS * SPREAD_DEVIATIONS + 4 * accepted;
    let root = (squared.isqrt() - SPREAD_DEVIATIONS) / 2;
    root * root
}

/// The least slots with which shards hold so many on average.
fn slots_for(average: u64, shards: u16) -> Option<u64> {
    let holds =
        |slots: u64| u32::try_from(slots).is_ok_and(|slots| average_max(slots, shards) >= average);
    if !holds(SLOTS_MAX) {
        return None;
    }
    let (mut low, mut high) = (0, SLOTS_MAX);
    while low < high {
        let middle = (low + high) / 2;
        if holds(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Some(low)
}
