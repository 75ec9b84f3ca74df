//! What this machine offers, looked at before anything is started.
//!
//! The gateway refuses to start with one sentence that names what is missing and what to do. What
//! can be found out by doing it, the driver tries; here are the limits of the process, and how
//! many shards fit into them.

use crate::config::Settings;
use portico_gateway::{Features, ProbeError, memlock_needed, probe_kernel};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{fmt, fs, num::NonZero, thread};

/// The oldest kernel with everything that shards use.
const KERNEL_MIN: (u32, u32) = (6, 6);
/// Open files the process needs beside connections: store, logs, listeners, rings.
const OPEN_FILES_MIN: u64 = 1_024;
/// Of /proc/self/status: this process may lock as much memory as it wants.
const CAP_IPC_LOCK: u64 = 1 << 14;

/// Why the gateway cannot start here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the kernel is {release}, and Linux 6.6 or newer is needed")]
    OldKernel { release: String },
    #[error(transparent)]
    Kernel(#[from] ProbeError),
    #[error(
        "{shards} shards need {needed} bytes of locked memory, and RLIMIT_MEMLOCK allows {allowed}: \
         raise it (ulimit -l, LimitMEMLOCK= in a systemd unit), start at most {fit} shards, or make \
         ring.completions and ring.buffers smaller"
    )]
    LockedMemory {
        shards: u16,
        needed: u64,
        allowed: u64,
        fit: u64,
    },
    #[error(
        "RLIMIT_NOFILE allows {allowed} open files, and at least {OPEN_FILES_MIN} are needed: raise \
         it (ulimit -n, LimitNOFILE= in a systemd unit)"
    )]
    OpenFiles { allowed: u64 },
    #[error("server.cpus names CPU {cpu}: this process may use {usable}")]
    Cpu { cpu: u16, usable: String },
}

/// What the gateway starts with.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) features: Features,
    pub(crate) cpus: Vec<u16>,
    pub(crate) shards: u16,
    pub(crate) locked_bytes: u64,
    /// None: no limit.
    pub(crate) locked_bytes_max: Option<u64>,
    pub(crate) open_files_max: u64,
    /// Why there are fewer shards than CPUs, if that was not asked for.
    pub(crate) fewer: Option<String>,
}

/// Raises the limits of this process as far as it may and finds out whether `settings` fit.
pub(crate) fn look(settings: &Settings) -> Result<Machine, Refusal> {
    let release = kernel_release();
    if version(&release).is_some_and(|version| version < KERNEL_MIN) {
        return Err(Refusal::OldKernel { release });
    }
    let features = probe_kernel()?;
    let open_files_max = raise(Resource::Nofile).unwrap_or(u64::MAX);
    if open_files_max < OPEN_FILES_MIN {
        return Err(Refusal::OpenFiles {
            allowed: open_files_max,
        });
    }
    let locked_bytes_max = raise(Resource::Memlock).filter(|_| !may_lock_all());
    let cpus = cpus(&settings.server.cpus, &usable_cpus())?;
    let per_shard = memlock_needed(1, &settings.ring);
    let parallel = thread::available_parallelism().map_or(1, NonZero::get);
    let plan = plan(
        settings.server.shards,
        cpus.len().min(parallel.max(settings.server.cpus.len())),
        per_shard,
        locked_bytes_max,
    )?;
    Ok(Machine {
        features,
        cpus,
        shards: plan.shards,
        locked_bytes: per_shard.saturating_mul(u64::from(plan.shards)),
        locked_bytes_max,
        open_files_max,
        fewer: plan.fewer,
    })
}

struct Plan {
    shards: u16,
    fewer: Option<String>,
}

/// How many shards: what was asked for, if it fits, else as many as there are CPUs and fit.
fn plan(
    wanted: Option<u16>,
    cpus: usize,
    per_shard: u64,
    allowed: Option<u64>,
) -> Result<Plan, Refusal> {
    let shards = wanted.unwrap_or_else(|| u16::try_from(cpus).unwrap_or(u16::MAX).clamp(1, 256));
    let fit = allowed.map_or(u64::MAX, |bytes| bytes / per_shard.max(1));
    let refusal = |shards: u16| Refusal::LockedMemory {
        shards,
        needed: per_shard.saturating_mul(u64::from(shards)),
        allowed: allowed.unwrap_or(u64::MAX),
        fit,
    };
    if u64::from(shards) <= fit {
        return Ok(Plan {
            shards,
            fewer: None,
        });
    }
    match u16::try_from(fit) {
        Ok(fit) if wanted.is_none() && fit > 0 => Ok(Plan {
            shards: fit,
            fewer: Some(format!(
                "{fit} shards for {shards} CPUs: RLIMIT_MEMLOCK allows no more; {} bytes would do \
                 (ulimit -l, LimitMEMLOCK=)",
                per_shard.saturating_mul(u64::from(shards)),
            )),
        }),
        _ => Err(refusal(shards)),
    }
}

/// The CPUs to pin to: those named, all of which must be usable, or all usable ones.
fn cpus(named: &[u16], usable: &[u16]) -> Result<Vec<u16>, Refusal> {
    match named.iter().find(|cpu| !usable.contains(cpu)) {
        Some(cpu) => Err(Refusal::Cpu {
            cpu: *cpu,
            usable: list(usable),
        }),
        None if named.is_empty() => Ok(usable.to_vec()),
        None => Ok(named.to_vec()),
    }
}

fn usable_cpus() -> Vec<u16> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU)
            .filter(|cpu| set.is_set(*cpu))
            .filter_map(|cpu| u16::try_from(cpu).ok())
            .collect(),
        Err(_) => vec![0],
    }
}

/// Raises the soft limit to the hard one. Returns what holds now, None for no limit.
fn raise(resource: Resource) -> Option<u64> {
    let Rlimit { maximum, .. } = getrlimit(resource);
    let wanted = Rlimit {
        current: maximum,
        maximum,
    };
    // If it fails the old limit holds, which is judged like any other.
    let _ = setrlimit(resource, wanted);
    getrlimit(resource).current
}

fn may_lock_all() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|capabilities| capabilities & CAP_IPC_LOCK != 0)
}

fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// The first two numbers of a kernel release. None where there are none: then trying decides.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']);
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next()?.parse().ok()?;
    Some((major, minor))
}

/// Numbers with runs joined, as `server.cpus` takes them.
pub(crate) fn list(numbers: &[u16]) -> String {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*number) => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let texts: Vec<_> = runs
        .into_iter()
        .map(|(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            }
        })
        .collect();
    texts.join(",")
}

/// The report of `portico probe`.
impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let advice = if self.features.recommended {
            ""
        } else {
            " (works; 6.12 or newer is recommended)"
        };
        writeln!(f, "kernel         Linux {}{advice}", self.features.kernel)?;
        writeln!(f, "io_uring       everything that shards use works")?;
        writeln!(f, "CPUs           {}", list(&self.cpus))?;
        writeln!(f, "shards         {}", self.shards)?;
        if let Some(fewer) = &self.fewer {
            writeln!(f, "               {fewer}")?;
        }
        match self.locked_bytes_max {
            Some(max) => writeln!(
                f,
                "locked memory  {} of {max} bytes (RLIMIT_MEMLOCK)",
                self.locked_bytes
            )?,
            None => writeln!(f, "locked memory  {} bytes, no limit", self.locked_bytes)?,
        }
        writeln!(
            f,
            "connections    at most {} per shard (RLIMIT_NOFILE)",
            self.open_files_max
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_compared_by_their_numbers() {
        assert_eq!(version("6.6.0-generic"), Some((6, 6)));
        assert_eq!(version("6.12"), Some((6, 12)));
        assert_eq!(version("6.18-rc1"), Some((6, 18)));
        assert_eq!(version("unknown"), None);
        assert!(version("6.5.13-arch").unwrap() < KERNEL_MIN);
        assert!(version("6.18.1").unwrap() >= KERNEL_MIN);
    }

    #[test]
    fn shards_that_were_asked_for_fit_or_are_refused() {
        assert_eq!(plan(Some(5), 2, 100, Some(500)).unwrap().shards, 5);
        assert_eq!(plan(Some(5), 2, 100, None).unwrap().shards, 5);
        let message = plan(Some(6), 2, 100, Some(500)).err().unwrap().to_string();
        for part in [
            "6 shards need 600 bytes",
            "allows 500",
            "at most 5 shards",
            "LimitMEMLOCK=",
        ] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn without_a_number_as_many_shards_as_fit_are_started() {
        assert_eq!(plan(None, 16, 100, None).unwrap().shards, 16);
        assert!(plan(None, 16, 100, Some(1_600)).unwrap().fewer.is_none());
        let plan = |allowed| plan(None, 16, 100, Some(allowed));
        assert_eq!(plan(1_599).unwrap().shards, 15);
        assert!(
            plan(799)
                .unwrap()
                .fewer
                .unwrap()
                .starts_with("7 shards for 16 CPUs")
        );
        assert!(matches!(
            plan(99),
            Err(Refusal::LockedMemory { fit: 0, .. })
        ));
    }

    #[test]
    fn cpus_that_the_process_may_not_use_are_refused() {
        assert_eq!(cpus(&[], &[0, 2]).unwrap(), [0, 2]);
        assert_eq!(cpus(&[2, 0], &[0, 2]).unwrap(), [2, 0]);
        let message = cpus(&[1], &[0, 2, 3, 4]).unwrap_err().to_string();
        assert_eq!(
            message,
            "server.cpus names CPU 1: this process may use 0,2-4"
        );
    }

    #[test]
    fn limits_are_raised_to_the_hard_one() {
        let allowed = raise(Resource::Nofile);
        assert_eq!(allowed, getrlimit(Resource::Nofile).maximum);
    }

    #[test]
    fn this_machine_passes_with_the_defaults() {
        let machine = look(&Settings::default()).unwrap();
        assert!(machine.shards >= 1 && !machine.cpus.is_empty());
        let report = machine.to_string();
        assert!(report.contains("kernel         Linux "), "{report}");
    }
}
