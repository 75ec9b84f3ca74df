//! What a run needs of this machine, compared with what there is, before anything is opened: a run
//! that fails at connection 28,233 has taken minutes to say what the arithmetic knew.
//!
//! [`Facts`] are read from the system in one place; everything else here is arithmetic on them.

use crate::{
    plan::{Hold, Plan},
    process,
    report::grouped,
    run::{FILES_RESERVE, ports_per_source},
    target::Target,
};
use rustix::process::{Resource, getrlimit};
use std::{fs, net::IpAddr};

/// Kernel memory of one established TCP connection: socket, inode, directory entry, file, and what
/// waits for its bytes (an epoll entry or an io_uring request).
const KERNEL_BYTES_PER_END: u64 = 4_150;
/// User memory of one quiet connection, in this process and in a gateway.
const USER_BYTES_PER_END: u64 = 400;
/// What TLS adds to each end: rustls here; with a gateway, which keeps less, to be safe the same.
const TLS_BYTES_PER_END: u64 = 4_200;
/// Files and threads that everything else on the machine may want meanwhile.
const OTHERS_RESERVE: u64 = 1_000;
/// Threads of one run. Above it the limit of open files is better raised.
const HOLDERS_MAX: u64 = 1_024;
/// Loopback addresses of one run.
const SOURCES_MAX: u64 = 1_000;

/// What this machine has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    /// Both ends are on this machine.
    pub is_local: bool,
    /// Any address of 127.0.0.0/8 can be a source.
    pub is_loopback: bool,
    /// One table of descriptors may have so many.
    pub open_files: u64,
    /// Of the whole system.
    pub files_max: u64,
    pub files_used: u64,
    /// Planned for one local address.
    pub ports_per_source: u64,
    pub memory_available_bytes: u64,
    pub threads_max: u64,
    pub threads_used: u64,
    /// Of the connection tracking of the firewall, where it is loaded.
    pub tracked: Option<Tracked>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Tracked {
    pub used: u64,
    pub max: u64,
}

/// What the run takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Needs {
    /// Threads that hold connections, each with a table of descriptors of its own.
    pub holders: u32,
    pub sources: usize,
    pub memory_bytes: u64,
}

impl Facts {
    /// What cannot be read is taken for enough: the run will show.
    pub(super) fn read(target: &Target) -> std::io::Result<Self> {
        let number = |path: &str, nth: usize| {
            let text = fs::read_to_string(path).ok()?;
            text.split_whitespace().nth(nth)?.parse::<u64>().ok()
        };
        let threads_used = || {
            let text = fs::read_to_string("/proc/loadavg").ok()?;
            text.split_whitespace()
                .nth(3)?
                .split_once('/')?
                .1
                .parse()
                .ok()
        };
        let tracked = || {
            Some(Tracked {
                used: number("/proc/sys/net/netfilter/nf_conntrack_count", 0)?,
                max: number("/proc/sys/net/netfilter/nf_conntrack_max", 0)?,
            })
        };
        let processes_max = getrlimit(Resource::Nproc).current.unwrap_or(u64::MAX);
        Ok(Self {
            is_local: target.is_local,
            is_loopback: matches!(target.address.ip(), IpAddr::V4(ip) if ip.is_loopback()),
            open_files: process::raise_open_file_limit()?,
            files_max: number("/proc/sys/fs/file-max", 0).unwrap_or(u64::MAX),
            files_used: number("/proc/sys/fs/file-nr", 0).unwrap_or(0),
            ports_per_source: ports_per_source() as u64,
            memory_available_bytes: process::memory_bytes("MemAvailable").unwrap_or(u64::MAX),
            threads_max: number("/proc/sys/kernel/threads-max", 0)
                .unwrap_or(u64::MAX)
                .min(processes_max),
            threads_used: threads_used().unwrap_or(0),
            tracked: tracked(),
        })
    }
}

impl Needs {
    /// What the run takes, or a sentence for each thing that is missing.
    pub(super) fn of(plan: &Plan, hold: Hold, facts: &Facts) -> Result<Self, Vec<String>> {
        let connections = u64::from(plan.connections);
        let held = connections - u64::from(hold.active);
        let per_table = facts.open_files.saturating_sub(FILES_RESERVE).max(1);
        let holders = held.div_ceil(per_table);
        let sources = connections.div_ceil(facts.ports_per_source.max(1));
        let ends = if facts.is_local { 2 } else { 1 };
        let tls_bytes = plan.tls.as_ref().map_or(0, |_| TLS_BYTES_PER_END);
        let bytes_per_end = KERNEL_BYTES_PER_END + USER_BYTES_PER_END + tls_bytes;
        let memory_bytes = connections * ends * bytes_per_end;

        let mut missing = Vec::new();
        let asked = grouped(connections);
        if u64::from(hold.active) > per_table {
            missing.push(format!(
                "{} active connections need {} open files in one table, and a process may have \
                 {}: raise the limit (`ulimit -n {}`), or lower --active",
                grouped(u64::from(hold.active)),
                grouped(u64::from(hold.active) + FILES_RESERVE),
                grouped(facts.open_files),
                u64::from(hold.active) + FILES_RESERVE,
            ));
        }
        if holders > HOLDERS_MAX {
            let files = held.div_ceil(HOLDERS_MAX) + FILES_RESERVE;
            missing.push(format!(
                "{asked} connections with {} open files per thread need {} threads, more than \
                 {}: raise the limit of open files (`ulimit -n {files}`)",
                grouped(facts.open_files),
                grouped(holders),
                grouped(HOLDERS_MAX),
            ));
        }
        let threads = facts.threads_used + holders + OTHERS_RESERVE;
        if threads > facts.threads_max {
            missing.push(format!(
                "{} more threads are needed beside the {} that run, and {} are allowed: `sysctl -w \
                 kernel.threads-max={threads}` and `ulimit -u {threads}`",
                grouped(holders),
                grouped(facts.threads_used),
                grouped(facts.threads_max),
            ));
        }
        let files = facts.files_used + connections * ends + OTHERS_RESERVE;
        if files > facts.files_max {
            missing.push(format!(
                "{asked} connections need {} open files in the whole system{}, and {} of {} are \
                 left: `sysctl -w fs.file-max={files}`",
                grouped(connections * ends),
                if facts.is_local { ", two for each" } else { "" },
                grouped(facts.files_max.saturating_sub(facts.files_used)),
                grouped(facts.files_max),
            ));
        }
        missing.extend(Self::ports_missing(connections, sources, facts));
        // A connection was made a moment ago, to see whether anybody listens. If the firewall knows of
        // none it does not track this interface.
        if let Some(Tracked { used, max }) = facts.tracked
            && used > 0
            && used + connections > max
        {
            missing.push(format!(
                "the firewall tracks {} connections of at most {}, and would drop packets of \
                 {asked} more: `sysctl -w net.netfilter.nf_conntrack_max={}`",
                grouped(used),
                grouped(max),
                used + connections + OTHERS_RESERVE,
            ));
        }
        if memory_bytes > facts.memory_available_bytes {
            let mb = |bytes: u64| grouped(bytes / 1_000_000);
            missing.push(format!(
                "{asked} connections take {} MB of memory{}, and {} MB are available: stop \
                 something, or lower --connections to {}",
                mb(memory_bytes),
                if facts.is_local { " for both ends" } else { "" },
                mb(facts.memory_available_bytes),
                grouped(facts.memory_available_bytes * connections / memory_bytes.max(1)),
            ));
        }
        if !missing.is_empty() {
            return Err(missing);
        }
        Ok(Self {
            // At most HOLDERS_MAX and SOURCES_MAX.
            holders: holders as u32,
            sources: sources as usize,
            memory_bytes,
        })
    }

    fn ports_missing(connections: u64, sources: u64, facts: &Facts) -> Option<String> {
        let all_ports = "`sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\"`";
        if sources > 1 && !facts.is_loopback {
            return Some(format!(
                "{} connections need more local ports than the {} planned for the one address from \
                 which this target is reached: lower --connections, widen the range ({all_ports}), \
                 or run on several machines",
                grouped(connections),
                grouped(facts.ports_per_source),
            ));
        }
        (sources > SOURCES_MAX).then(|| {
            format!(
                "{} connections with {} ports planned for each address need {} source addresses, \
                 more than {}: widen the range ({all_ports})",
                grouped(connections),
                grouped(facts.ports_per_source),
                grouped(sources),
                grouped(SOURCES_MAX),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine like the one on which a million was first held.
    fn facts() -> Facts {
        Facts {
            is_local: true,
            is_loopback: true,
            open_files: 20_000,
            files_max: 2_466_177,
            files_used: 1_024,
            ports_per_source: 22_585,
            memory_available_bytes: 23_000_000_000,
            threads_max: 192_730,
            threads_used: 200,
            tracked: None,
        }
    }

    fn needs(connections: u32, change: impl FnOnce(&mut Facts)) -> Result<Needs, Vec<String>> {
        let mut facts = facts();
        change(&mut facts);
        let plan = Plan {
            connections,
            ..Plan::named("hold").expect("built in")
        };
        Needs::of(&plan, plan.hold.expect("it holds"), &facts)
    }

    #[test]
    fn a_million_fits_a_small_machine() {
        let needs = needs(1_000_000, |_| {}).expect("enough of everything");
        assert_eq!(needs.holders, 51);
        assert_eq!(needs.sources, 45);
        assert_eq!(needs.memory_bytes, 9_100_000_000);
    }

    #[track_caller]
    fn lacks(connections: u32, change: impl FnOnce(&mut Facts), parts: &[&str]) {
        let missing = needs(connections, change).expect_err("something is missing");
        assert_eq!(missing.len(), 1, "{missing:?}");
        for part in parts {
            assert!(missing[0].contains(part), "{part} in {}", missing[0]);
        }
    }

    #[test]
    fn each_shortage_is_one_sentence_with_the_value_and_the_command() {
        lacks(
            2_000_000,
            |_| {},
            &["4,000,000 open files", "sysctl -w fs.file-max=4002024"],
        );
        lacks(100_000, |f| f.open_files = 900, &["`ulimit -n 1064`"]);
        let few_files = |f: &mut Facts| f.open_files = 1_100;
        let many = "raise the limit of open files (`ulimit -n 3970`)";
        let missing = needs(4_000_000, few_files).expect_err("not enough of anything");
        assert!(
            missing.iter().any(|text| text.contains(many)),
            "{missing:?}"
        );
        lacks(
            1_000_000,
            |f| f.threads_max = 1_100,
            &["kernel.threads-max=1251"],
        );
        lacks(
            30_000,
            |f| f.is_loopback = false,
            &["one address", "ip_local_port_range"],
        );
        lacks(
            1_000_000,
            |f| f.ports_per_source = 800,
            &[
                "1,250 source addresses",
                "more than 1,000",
                "ip_local_port_range",
            ],
        );
        lacks(
            1_000_000,
            |f| f.memory_available_bytes = 4_550_000_000,
            &["9,100 MB", "4,550 MB", "--connections to 500,000"],
        );
        let tracked = Tracked {
            used: 10,
            max: 65_536,
        };
        lacks(
            100_000,
            |f| f.tracked = Some(tracked),
            &["nf_conntrack_max=101010"],
        );
        let unused = Tracked { used: 0, ..tracked };
        assert!(needs(100_000, |f| f.tracked = Some(unused)).is_ok());
    }

    #[test]
    fn a_target_elsewhere_takes_one_end_only() {
        let here = needs(10_000, |_| {}).expect("enough");
        let elsewhere = needs(10_000, |facts| facts.is_local = false).expect("enough");
        assert_eq!(here.memory_bytes, 2 * elsewhere.memory_bytes);
    }
}
