//! What the report consists of, and how it is put together. The names are those of the JSON.

use super::{
    Bound, Sizing, average_max, facts::KernelPart, shard_queue_bytes_max, store_queue_bytes_max,
    sum, text,
};
use portico_gateway::footprint;
use serde::Serialize;

/// Everything that the command says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Report {
    pub(super) kernel: String,
    pub(super) kernel_recommended: bool,
    pub(super) cpus: Vec<u16>,
    pub(super) shards: u16,
    /// Why it is another number than was asked for.
    pub(super) shards_because: Option<String>,
    pub(super) ring: Ring,
    pub(super) slots_per_shard: u32,
    pub(super) connection: Connection,
    pub(super) shard: Shard,
    pub(super) thread: Vec<Part>,
    pub(super) store_queue_bytes_max: u64,
    pub(super) limits: Vec<Limit>,
    pub(super) beside: Vec<Beside>,
    /// Connections, and what bounds them.
    pub(super) holds: u64,
    pub(super) bounded_by: &'static str,
    pub(super) needs: Option<Needs>,
    pub(super) changes: Vec<Change>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Ring {
    pub(super) submissions: u32,
    pub(super) completions: u32,
    pub(super) buffers: u16,
    pub(super) buffer_bytes: u32,
}

/// What an idle connection costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Connection {
    pub(super) kernel: Vec<KernelPart>,
    pub(super) kernel_bytes: u64,
    pub(super) gateway: Vec<Part>,
    pub(super) gateway_bytes: u64,
    pub(super) bytes: u64,
}

/// What a shard costs without connections, and what its queues may take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Shard {
    pub(super) parts: Vec<Part>,
    pub(super) bytes: u64,
    pub(super) queue_bytes_max: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) bytes: u64,
}

/// A bound of the connections.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Limit {
    pub(super) name: &'static str,
    pub(super) detail: String,
    /// None: no bound here, or unknown.
    pub(super) connections: Option<u64>,
}

/// What does not bound connections and is worth a look.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Beside {
    pub(super) name: &'static str,
    pub(super) detail: String,
}

/// What so many connections need.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Needs {
    pub(super) connections: u64,
    pub(super) shards: u16,
    pub(super) resources: Vec<Resource>,
    pub(super) enough: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Resource {
    #[serde(skip)]
    pub(super) kind: Kind,
    pub(super) name: &'static str,
    pub(super) unit: Unit,
    pub(super) needed: u64,
    /// None: no limit.
    pub(super) available: Option<u64>,
    pub(super) enough: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Slots,
    ProcessFiles,
    FileMax,
    Locked,
    Memory,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Unit {
    Count,
    Bytes,
}

/// What to set, and what for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Change {
    pub(super) set: String,
    pub(super) effect: String,
}

impl Sizing<'_> {
    pub(super) fn report(&self, connections: Option<u64>) -> Report {
        let needs = connections.map(|connections| self.needs(connections));
        let (shards, because) = match &needs {
            Some(needs) => (needs.shards, None),
            None => self.shards(),
        };
        let (holds, bound) = match self.holds(shards) {
            (connections, Bound::OpenFiles | Bound::Setting) if because.is_some() => {
                (connections, Bound::LockedMemory)
            }
            other => other,
        };
        let changes = match &needs {
            Some(needs) => self.changes_for(needs),
            None => self.changes_beyond(shards, bound),
        };
        let ring = self.ring(shards);
        Report {
            kernel: self.facts.features.kernel.clone(),
            kernel_recommended: self.facts.features.recommended,
            cpus: self.facts.cpus.clone(),
            shards,
            shards_because: because,
            ring: Ring {
                submissions: ring.submissions,
                completions: ring.completions,
                buffers: ring.buffers,
                buffer_bytes: ring.buffer_bytes,
            },
            slots_per_shard: self.slots,
            connection: self.connection(),
            shard: self.shard(shards),
            thread: parts(&footprint::of_thread()),
            store_queue_bytes_max: store_queue_bytes_max(self.settings),
            limits: self.limits(shards),
            beside: self.beside(holds),
            holds,
            bounded_by: bound.name(),
            needs,
            changes,
        }
    }

    fn connection(&self) -> Connection {
        let gateway = self.connection_parts();
        Connection {
            kernel: self.facts.kernel_parts.clone(),
            kernel_bytes: self.kernel_bytes,
            gateway_bytes: sum(&gateway),
            gateway: parts(&gateway),
            bytes: self.connection_bytes(),
        }
    }

    fn shard(&self, shards: u16) -> Shard {
        let of_shard = self.shard_parts(shards);
        Shard {
            bytes: sum(&of_shard),
            parts: parts(&of_shard),
            queue_bytes_max: shard_queue_bytes_max(self.settings, shards),
        }
    }

    fn limits(&self, shards: u16) -> Vec<Limit> {
        let facts = self.facts;
        let origin = match (self.slots_bound(), facts.open_files.soft) {
            (Bound::Setting, _) => ", by limits.connections_max".to_owned(),
            (_, soft) if soft == facts.open_files.now => String::new(),
            (_, soft) => format!(", raised from {}", text::limit(soft)),
        };
        let files = Limit {
            name: "open files",
            detail: format!(
                "{} per shard{origin}; {} on average",
                text::grouped(self.slots),
                text::grouped(average_max(self.slots, shards)),
            ),
            connections: Some(self.by_slots(shards)),
        };
        let bounded = |connections: u64| Some(connections).filter(|count| *count < u64::MAX);
        let file_max = Limit {
            name: "fs.file-max",
            detail: match facts.system_files {
                None => "not readable".to_owned(),
                Some(files) => format!(
                    "{}, {} in use{}",
                    text::grouped(files.max),
                    text::grouped(files.used),
                    if files.exempt {
                        "; no bound for this user (CAP_SYS_ADMIN)"
                    } else {
                        ""
                    }
                ),
            },
            connections: bounded(self.by_file_max(shards)),
        };
        let memory = Limit {
            name: "memory",
            detail: match &facts.memory {
                None => "not readable".to_owned(),
                Some(memory) => format!(
                    "{} free of {}{}, {} for shards and full queues",
                    text::size(memory.available_bytes),
                    text::size(memory.total_bytes),
                    if memory.of_cgroup { " (cgroup)" } else { "" },
                    text::size(self.fixed_bytes(shards)),
                ),
            },
            connections: bounded(self.by_memory(shards)),
        };
        let locked = Limit {
            name: "locked memory",
            detail: format!(
                "{} for {}; {}",
                text::size(self.locked_bytes(shards)),
                text::shards(shards),
                match facts.locked_bytes_max {
                    None => "no limit".to_owned(),
                    Some(max) => format!("RLIMIT_MEMLOCK allows {}", text::size(max)),
                }
            ),
            connections: None,
        };
        vec![files, file_max, memory, locked]
    }

    fn beside(&self, connections: u64) -> Vec<Beside> {
        let backlog = u64::from(footprint::BACKLOG);
        let somaxconn = self.facts.somaxconn.map(|somaxconn| Beside {
            name: "backlog",
            detail: format!(
                "{} per shard may wait to be accepted; net.core.somaxconn is {}{}",
                text::grouped(backlog),
                text::grouped(somaxconn),
                if somaxconn < backlog {
                    ", set it to that"
                } else {
                    ""
                }
            ),
        });
        let buffers = self.facts.tcp_buffers.map(|buffers| {
            let each = match buffers.max_bytes.checked_div(connections) {
                None => String::new(),
                Some(each) => format!("; {} each, idle ones take none", text::size(each)),
            };
            Beside {
                name: "TCP buffers",
                detail: format!("{} (net.ipv4.tcp_mem){each}", text::size(buffers.max_bytes)),
            }
        });
        let tracked = self.facts.tracked.map(|tracked| Beside {
            name: "conntrack",
            detail: format!(
                "{} (nf_conntrack_max), {} in use; counts with a firewall",
                text::grouped(tracked.max),
                text::grouped(tracked.used),
            ),
        });
        [somaxconn, buffers, tracked]
            .into_iter()
            .flatten()
            .collect()
    }
}

fn parts(parts: &[footprint::Part]) -> Vec<Part> {
    let part = |part: &footprint::Part| Part {
        name: part.name,
        bytes: part.bytes,
    };
    parts.iter().map(part).collect()
}
