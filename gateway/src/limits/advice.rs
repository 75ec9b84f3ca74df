//! What to set, so that a machine holds more, or what was asked for.
//!
//! # Invariants
//! - What is proposed is enough, as far as the machine tells, and not more than is needed.

use super::{
    Bound, SLOTS_MAX, Sizing,
    report::{Change, Kind, Needs},
    slots_for, text,
};
use crate::{config::SHARDS_MAX, probe};
use portico_gateway::slots_per_shard;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Less room for unfinished frames is not proposed.
const UNREAD_BYTES_MIN: u64 = MIB;

/// What makes the difference, in the words of those who set it.
impl Sizing<'_> {
    /// For each thing that so many connections lack.
    pub(super) fn changes_for(&self, needs: &Needs) -> Vec<Change> {
        let mut changes = Vec::new();
        let started = self.settings.server.shards;
        let started = started.unwrap_or_else(|| probe::default_shards(self.facts.parallel));
        let shards = if self.by_slots(needs.shards) < needs.connections {
            self.fewest(needs.connections)
        } else {
            needs.shards
        };
        if shards != started {
            let each = needs.connections.div_ceil(u64::from(shards.max(1)));
            changes.push(serve(
                shards,
                format!("{} on each, on average", text::connections(each)),
            ));
        }
        let needs = self.needs_of(needs.connections, shards);
        let mut files = 0;
        for lacking in needs.resources.iter().filter(|lacking| !lacking.enough) {
            let needed = lacking.needed;
            match lacking.kind {
                Kind::Slots if self.slots_bound() == Bound::Setting => changes.push(Change {
                    set: "limits.connections_max = 0".to_owned(),
                    effect: "as many as open files allow".to_owned(),
                }),
                Kind::Slots if needed > SLOTS_MAX => changes.push(Change {
                    set: "more gateways".to_owned(),
                    effect: "so many are more than one can hold".to_owned(),
                }),
                Kind::Slots | Kind::ProcessFiles => files = files.max(needed),
                Kind::FileMax => changes.push(file_max(needed)),
                Kind::Locked => changes.push(lockable(needed, needs.shards)),
                Kind::Memory => changes.extend(self.more_memory(needed, needs.shards)),
            }
        }
        if files > 0 {
            changes.extend(self.open_files(files, "for the table of each shard".to_owned()));
        }
        changes
    }

    /// For more connections than `shards` hold.
    pub(super) fn changes_beyond(&self, shards: u16, bound: Bound) -> Vec<Change> {
        match bound {
            Bound::OpenFiles => {
                let mut changes = Vec::new();
                if let Some(best) = self.best(shards) {
                    let (holds, bound) = self.holds(best);
                    let effect =
                        format!("{}, bounded by {}", text::connections(holds), bound.name());
                    changes.push(serve(best, effect));
                    changes.extend(self.lockable_for(best));
                }
                let others = self.by_file_max(shards).min(self.by_memory(shards));
                let average = others / u64::from(shards.max(1));
                let slots = slots_for(average, shards).unwrap_or(SLOTS_MAX);
                let wider = self.with_open_files(slots);
                let (holds, bound) = wider.holds(shards);
                let effect = format!(
                    "{} with {}, bounded by {}",
                    text::connections(holds),
                    text::shards(shards),
                    bound.name()
                );
                changes.extend(self.open_files(slots, effect));
                changes
            }
            Bound::Setting => vec![Change {
                set: "limits.connections_max = 0".to_owned(),
                effect: "as many as open files allow".to_owned(),
            }],
            Bound::FileMax => {
                let others = self.by_slots(shards).min(self.by_memory(shards));
                let used = self.facts.system_files.map_or(0, |files| files.used);
                vec![file_max(others + used + self.process_files(shards))]
            }
            Bound::LockedMemory => {
                let asked = self.settings.server.shards;
                let asked = asked.unwrap_or_else(|| probe::default_shards(self.facts.parallel));
                self.lockable_for(asked).into_iter().collect()
            }
            Bound::Memory => vec![Change {
                set: "more memory".to_owned(),
                effect: format!(
                    "each GiB holds {} connections more",
                    text::grouped(GIB / self.connection_bytes())
                ),
            }],
        }
    }

    /// The number of shards that holds the most; the smallest such, and only if it is more than
    /// `shards` do.
    fn best(&self, shards: u16) -> Option<u16> {
        let files = self.facts.open_files.now.unwrap_or(u64::MAX);
        let mut best = (shards, self.holds(shards).0);
        for more in shards + 1..=SHARDS_MAX {
            let (holds, _) = self.holds(more);
            if holds > best.1 && self.process_files(more) <= files {
                best = (more, holds);
            }
        }
        (best.0 > shards).then_some(best.0)
    }

    fn lockable_for(&self, shards: u16) -> Option<Change> {
        let needed = self.locked_bytes(shards);
        let allowed = self.facts.locked_bytes_max?;
        (needed > allowed).then(|| lockable(needed, shards))
    }

    fn with_open_files(&self, files: u64) -> Self {
        Self {
            slots: slots_per_shard(self.settings.shard.connections_max, Some(files)),
            ..*self
        }
    }

    /// Nothing where it would not help.
    fn open_files(&self, files: u64, effect: String) -> Vec<Change> {
        let now = self.facts.open_files.now.unwrap_or(u64::MAX);
        if files <= now {
            return Vec::new();
        }
        let ceiling = self.facts.open_files_ceiling.unwrap_or(u64::MAX);
        let first = (files > ceiling).then(|| Change {
            set: format!("sysctl -w fs.nr_open={files}"),
            effect: "before that: no limit of open files may exceed it".to_owned(),
        });
        let raised = Change {
            set: format!("LimitNOFILE={files}"),
            effect,
        };
        first.into_iter().chain([raised]).collect()
    }

    fn more_memory(&self, needed: u64, shards: u16) -> Vec<Change> {
        let available = self.facts.memory.as_ref();
        let available = available.map_or(0, |memory| memory.available_bytes);
        let lacking = needed.saturating_sub(available);
        let memory = Change {
            set: format!("{} more memory", text::size(lacking)),
            effect: "for connections, and for queues when they are full".to_owned(),
        };
        let unread = self.settings.shard.unread_bytes_max as u64;
        let less = unread.saturating_sub(lacking.div_ceil(u64::from(shards.max(1))));
        let queues = (less >= UNREAD_BYTES_MIN).then(|| Change {
            set: format!("limits.unread_bytes_max = {}", less / MIB * MIB),
            effect: "instead of that".to_owned(),
        });
        [memory].into_iter().chain(queues).collect()
    }
}

fn file_max(files: u64) -> Change {
    Change {
        set: format!("sysctl -w fs.file-max={files}"),
        effect: "open files of all processes".to_owned(),
    }
}

fn lockable(needed: u64, shards: u16) -> Change {
    Change {
        set: format!("LimitMEMLOCK={}M", needed.div_ceil(MIB)),
        effect: format!("for {}; CAP_IPC_LOCK does, too", text::shards(shards)),
    }
}

fn serve(shards: u16, effect: String) -> Change {
    Change {
        set: format!("portico serve --shards {shards}"),
        effect,
    }
}
