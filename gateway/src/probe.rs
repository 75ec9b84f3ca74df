//! What this machine offers, looked at before anything is started.
//!
//! The gateway refuses to start with one sentence that names what is missing and what to do. What
//! can be found out by doing it, the driver tries; here are the limits of the process, and how
//! many shards fit into them.

use crate::config::{SHARDS_MAX, Settings};
use portico_gateway::{Features, ProbeError, RingSizes, memlock_needed, probe_kernel};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{fmt, fs, num::NonZero, thread};

/// The oldest kernel with everything that shards use.
const KERNEL_MIN: (u32, u32) = (6, 6);
/// Open files the process needs beside connections: store, logs, listeners, rings.
const OPEN_FILES_MIN: u64 = 1_024;
/// Of /proc/self/status: this process may lock as much memory as it wants.
const CAP_IPC_LOCK: u64 = 1 << 14;
/// It may open files beyond fs.file-max.
pub(crate) const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Why the gateway cannot start here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the kernel is {release}, and Linux 6.6 or newer is needed")]
    OldKernel { release: String },
    #[error(transparent)]
    Kernel(#[from] ProbeError),
    #[error(
        "{shards} shards need {needed} bytes of locked memory, and RLIMIT_MEMLOCK allows {allowed}: \
         raise it (ulimit -l, LimitMEMLOCK= in a systemd unit),{} or make ring.completions and \
         ring.buffers smaller", at_most(*fit)
    )]
    LockedMemory {
        shards: u16,
        needed: u64,
        allowed: u64,
        fit: u16,
    },
    #[error(
        "RLIMIT_NOFILE allows {allowed} open files, and at least {OPEN_FILES_MIN} are needed: raise \
         it (ulimit -n, LimitNOFILE= in a systemd unit)"
    )]
    OpenFiles { allowed: u64 },
    #[error("server.cpus names CPU {cpu}: this process may use {usable}")]
    Cpu { cpu: u16, usable: String },
}

fn at_most(fit: u16) -> String {
    match fit {
        0 => String::new(),
        1 => " start one shard,".to_owned(),
        _ => format!(" start at most {fit} shards,"),
    }
}

/// What the gateway starts with.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) features: Features,
    pub(crate) cpus: Vec<u16>,
    pub(crate) shards: u16,
    /// With nothing left open.
    pub(crate) ring: RingSizes,
    pub(crate) locked_bytes: u64,
    /// None: no limit.
    pub(crate) locked_bytes_max: Option<u64>,
    pub(crate) open_files_max: u64,
    /// Why there are fewer shards than CPUs, if that was not asked for.
    pub(crate) fewer: Option<String>,
}

/// What there is, before anyone judges whether it is enough.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) features: Features,
    /// That shards are pinned to.
    pub(crate) cpus: Vec<u16>,
    /// That may be busy at a time, which a container can bound.
    pub(crate) parallel: usize,
    pub(crate) open_files: Allowed,
    /// None: no limit.
    pub(crate) locked_bytes_max: Option<u64>,
}

/// A limit of this process. None: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// What held when the process started.
    pub(crate) soft: Option<u64>,
    /// What it raised that to.
    pub(crate) now: Option<u64>,
}

/// Raises the limits of this process as far as it may and finds out whether `settings` fit.
pub(crate) fn look(settings: &Settings) -> Result<Machine, Refusal> {
    let found = find(settings)?;
    let open_files_max = found.open_files.now.unwrap_or(u64::MAX);
    if open_files_max < OPEN_FILES_MIN {
        return Err(Refusal::OpenFiles {
            allowed: open_files_max,
        });
    }
    let need = found.need(settings);
    let plan = plan(
        settings.server.shards,
        found.parallel,
        &need,
        found.locked_bytes_max,
    )?;
    Ok(Machine {
        ring: found.ring(settings, plan.shards),
        locked_bytes: need(plan.shards),
        shards: plan.shards,
        features: found.features.clone(),
        cpus: found.cpus.clone(),
        locked_bytes_max: found.locked_bytes_max,
        open_files_max,
        fewer: plan.fewer,
    })
}

/// The part of [`look`] that asks the machine.
pub(crate) fn find(settings: &Settings) -> Result<Found, Refusal> {
    let release = kernel_release();
    if version(&release).is_some_and(|version| version < KERNEL_MIN) {
        return Err(Refusal::OldKernel { release });
    }
    let features = probe_kernel()?;
    let open_files = raise(Resource::Nofile);
    let locked = raise(Resource::Memlock);
    let cpus = cpus(&settings.server.cpus, &usable_cpus())?;
    let parallel = thread::available_parallelism().map_or(1, NonZero::get);
    let parallel = parallel.max(settings.server.cpus.len()).min(cpus.len());
    Ok(Found {
        features,
        cpus,
        parallel,
        open_files,
        locked_bytes_max: locked.now.filter(|_| !may(CAP_IPC_LOCK)),
    })
}

impl Found {
    /// The sizes that so many shards start with.
    pub(crate) fn ring(&self, settings: &Settings, shards: u16) -> RingSizes {
        settings.ring.resolve(usize::from(shards), self.cpus.len())
    }

    /// Bytes that so many shards lock.
    pub(crate) fn need(&self, settings: &Settings) -> impl Fn(u16) -> u64 {
        |shards| {
            let ring = self.ring(settings, shards);
            memlock_needed(usize::from(shards), self.cpus.len(), &ring)
        }
    }
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) shards: u16,
    pub(crate) fewer: Option<String>,
}

/// How many shards: what was asked for, if it fits, else as many as there are CPUs and fit. `need`
/// is what so many lock; a few with large rings may need more than some more with small ones.
pub(crate) fn plan(
    wanted: Option<u16>,
    cpus: usize,
    need: impl Fn(u16) -> u64,
    allowed: Option<u64>,
) -> Result<Plan, Refusal> {
    let shards = wanted.unwrap_or_else(|| default_shards(cpus));
    let allowed = allowed.unwrap_or(u64::MAX);
    let needed = need(shards);
    if needed <= allowed {
        return Ok(Plan {
            shards,
            fewer: None,
        });
    }
    match (1..shards).rev().find(|fewer| need(*fewer) <= allowed) {
        Some(fit) if wanted.is_none() => Ok(Plan {
            shards: fit,
            fewer: Some(format!(
                "{fit} shards for {shards} CPUs: RLIMIT_MEMLOCK allows no more; {needed} bytes \
                 would do (ulimit -l, LimitMEMLOCK=)",
            )),
        }),
        fit => Err(Refusal::LockedMemory {
            shards,
            needed,
            allowed,
            fit: fit.unwrap_or(0),
        }),
    }
}

/// One per CPU.
pub(crate) fn default_shards(cpus: usize) -> u16 {
    u16::try_from(cpus).unwrap_or(u16::MAX).clamp(1, SHARDS_MAX)
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

/// Raises the soft limit to the hard one.
fn raise(resource: Resource) -> Allowed {
    let Rlimit { current, maximum } = getrlimit(resource);
    let wanted = Rlimit {
        current: maximum,
        maximum,
    };
    // If it fails the old limit holds, which is judged like any other.
    let _ = setrlimit(resource, wanted);
    Allowed {
        soft: current,
        now: getrlimit(resource).current,
    }
}

/// Does this process have the capability?
pub(crate) fn may(capability: u64) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|capabilities| capabilities & capability != 0)
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

/// How reports about this machine begin.
pub(crate) fn opening(
    f: &mut fmt::Formatter<'_>,
    kernel: &str,
    recommended: bool,
    cpus: &[u16],
) -> fmt::Result {
    let advice = if recommended {
        ""
    } else {
        " (works; 6.12 or newer is recommended)"
    };
    writeln!(f, "kernel         Linux {kernel}{advice}")?;
    writeln!(f, "io_uring       everything that shards use works")?;
    writeln!(f, "CPUs           {}", list(cpus))
}

/// The report of `portico probe`.
impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Features {
            kernel,
            recommended,
        } = &self.features;
        opening(f, kernel, *recommended, &self.cpus)?;
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
            "connections    at most {} per shard (RLIMIT_NOFILE); `portico limits` says more",
            self.open_files_max
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each_100(shards: u16) -> u64 {
        100 * u64::from(shards)
    }

    fn found(cpus: u16) -> Found {
        Found {
            features: Features {
                kernel: "6.12.0".to_owned(),
                recommended: true,
            },
            cpus: (0..cpus).collect(),
            parallel: usize::from(cpus),
            open_files: Allowed {
                soft: Some(1_024),
                now: Some(20_000),
            },
            locked_bytes_max: Some(8 << 20),
        }
    }

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
        assert_eq!(plan(Some(5), 2, each_100, Some(500)).unwrap().shards, 5);
        assert_eq!(plan(Some(5), 2, each_100, None).unwrap().shards, 5);
        let refused = |allowed| plan(Some(6), 2, each_100, Some(allowed)).unwrap_err();
        let message = refused(500).to_string();
        for part in [
            "6 shards need 600 bytes",
            "allows 500",
            "at most 5 shards",
            "LimitMEMLOCK=",
        ] {
            assert!(message.contains(part), "{message}");
        }
        assert!(refused(100).to_string().contains(" start one shard, or "));
        assert!(!refused(99).to_string().contains("shard,"), "none fits");
    }

    /// Above two shards per CPU rings are small, and some more shards may need less than some fewer.
    #[test]
    fn shards_with_automatic_rings_are_refused_with_what_they_would_need() {
        let here = found(2);
        let settings = Settings::default();
        let need = here.need(&settings);
        let plan = |shards| super::plan(Some(shards), 2, &need, Some(8 << 20));
        let message = plan(256).unwrap_err().to_string();
        let small = RingSizes {
            submissions: 256,
            completions: 4_096,
            buffers: 256,
            ..RingSizes::default()
        };
        let needed = memlock_needed(256, 2, &small);
        for part in [
            format!("256 shards need {needed} bytes of locked memory"),
            "RLIMIT_MEMLOCK allows 8388608: ".to_owned(),
        ] {
            assert!(message.contains(&part), "{message}");
        }
        // What it offers is true.
        let Err(Refusal::LockedMemory { fit, .. }) = plan(256) else {
            panic!("{message}");
        };
        assert!(message.contains(&format!("start at most {fit} shards")));
        assert_eq!(here.ring(&settings, fit), small);
        assert_eq!(plan(fit).unwrap().shards, fit);
        assert!(plan(fit + 1).is_err());
        // With more CPUs so many shards have large rings, and fewer of them fit.
        let here = found(32);
        let need = here.need(&settings);
        assert_eq!(need(52), memlock_needed(52, 32, &RingSizes::default()));
        assert!(need(65) < need(64));
        let refusal = super::plan(Some(65), 32, &need, Some(8 << 20)).unwrap_err();
        let Refusal::LockedMemory { fit: fewer, .. } = refusal else {
            panic!("{refusal}");
        };
        assert!(0 < fewer && fewer < fit, "{refusal}");
    }

    #[test]
    fn without_a_number_as_many_shards_as_fit_are_started() {
        assert_eq!(plan(None, 16, each_100, None).unwrap().shards, 16);
        let enough = plan(None, 16, each_100, Some(1_600)).unwrap();
        assert!(enough.fewer.is_none());
        let plan = |allowed| plan(None, 16, each_100, Some(allowed));
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
        assert_eq!(allowed.now, getrlimit(Resource::Nofile).maximum);
    }

    #[test]
    fn this_machine_passes_with_the_defaults() {
        let machine = look(&Settings::default()).unwrap();
        assert!(machine.shards >= 1 && !machine.cpus.is_empty());
        let report = machine.to_string();
        assert!(report.contains("kernel         Linux "), "{report}");
    }
}
