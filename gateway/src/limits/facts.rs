//! What the machine says about itself. Nothing of it is required: what cannot be read is not known,
//! and the report says so.

use crate::{
    Failure,
    config::Config,
    probe::{self, Allowed, CAP_SYS_ADMIN},
};
use portico_gateway::Features;
use rustix::param::page_size;
use serde::Serialize;
use std::{fs, path::Path};

/// Where the memory of a container is bounded.
const CGROUPS: &str = "/sys/fs/cgroup";

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Facts {
    pub(super) features: Features,
    pub(super) cpus: Vec<u16>,
    /// CPUs that may be busy at a time.
    pub(super) parallel: usize,
    pub(super) open_files: Allowed,
    /// What that can be raised to.
    pub(super) open_files_ceiling: Option<u64>,
    /// None: no limit.
    pub(super) locked_bytes_max: Option<u64>,
    pub(super) system_files: Option<SystemFiles>,
    pub(super) memory: Option<Memory>,
    pub(super) somaxconn: Option<u64>,
    pub(super) tcp_buffers: Option<TcpBuffers>,
    /// None: the kernel follows no connections for a firewall.
    pub(super) tracked: Option<Tracked>,
    /// Of an idle connection.
    pub(super) kernel_parts: Vec<KernelPart>,
}

/// Open files of all processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SystemFiles {
    pub(super) used: u64,
    pub(super) max: u64,
    /// The kernel asks this process for nothing.
    pub(super) exempt: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) total_bytes: u64,
    pub(super) available_bytes: u64,
    /// A control group allows less than the machine has.
    pub(super) of_cgroup: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TcpBuffers {
    pub(super) max_bytes: u64,
}

/// Connections that the kernel follows for a firewall. Whether it does so for the gateway's, its
/// rules say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tracked {
    pub(super) used: u64,
    pub(super) max: u64,
}

/// One of the objects that the kernel keeps for a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct KernelPart {
    pub(super) name: &'static str,
    pub(super) cache: &'static str,
    /// With its share of what its page does not fill.
    pub(super) bytes: u64,
    /// Read from this kernel; otherwise the figure is that of Linux 6.18 on x86-64.
    pub(super) measured: bool,
}

/// Name, slab cache, and bytes where the cache cannot be read.
type Object = (&'static str, &'static str, u64);

const SOCKET_V4: Object = ("TCP socket", "TCP", 2_521);
const SOCKET_V6: Object = ("TCP socket", "TCPv6", 2_521);
const OBJECTS: [Object; 6] = [
    ("its inode", "sock_inode_cache", 862),
    ("label of the inode", "lsm_inode_cache", 32),
    ("its file", "filp", 195),
    ("label of the file", "lsm_file_cache", 24),
    ("its directory entry", "dentry", 195),
    ("poll that waits for bytes", "io_kiocb", 256),
];
/// It comes from a general cache, which says nothing about it.
const DIRECT_SLOT: Object = ("slot of the direct descriptor", "kmalloc-32", 32);

impl Facts {
    pub(super) fn read(config: &Config) -> Result<Self, Failure> {
        let found = probe::find(config)?;
        let read = |path: &str| fs::read_to_string(path).ok();
        let number = |path: &str| read(path)?.trim().parse().ok();
        let slabs = read("/proc/slabinfo");
        let page_bytes = page_size() as u64;
        let exempt = probe::may(CAP_SYS_ADMIN);
        let tracked = |name: &str| number(&format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
        Ok(Self {
            features: found.features,
            cpus: found.cpus,
            parallel: found.parallel,
            open_files: found.open_files,
            open_files_ceiling: number("/proc/sys/fs/nr_open"),
            locked_bytes_max: found.locked_bytes_max,
            system_files: read("/proc/sys/fs/file-nr").and_then(|text| system_files(&text, exempt)),
            memory: read("/proc/meminfo")
                .and_then(|text| memory(&text))
                .map(|memory| memory.within(cgroup_room(Path::new(CGROUPS)))),
            somaxconn: number("/proc/sys/net/core/somaxconn"),
            tcp_buffers: read("/proc/sys/net/ipv4/tcp_mem")
                .and_then(|text| tcp_buffers(&text, page_bytes)),
            tracked: tracked("count")
                .zip(tracked("max"))
                .map(|(used, max)| Tracked { used, max }),
            kernel_parts: kernel_parts(
                slabs.as_deref().unwrap_or_default(),
                config.server.listen.is_ipv6(),
                page_bytes,
            ),
        })
    }
}

/// Allocated, free, maximum; the second is always 0.
fn system_files(text: &str, exempt: bool) -> Option<SystemFiles> {
    let mut numbers = text.split_whitespace().map(|number| number.parse().ok());
    let used = numbers.next()??;
    let max = numbers.nth(1)??;
    Some(SystemFiles { used, max, exempt })
}

fn memory(meminfo: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1 << 10)
    };
    Some(Memory {
        total_bytes: bytes("MemTotal:")?,
        available_bytes: bytes("MemAvailable:")?,
        of_cgroup: false,
    })
}

/// What the control groups of this process allow, and what is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    total_bytes: u64,
    available_bytes: u64,
}

impl Memory {
    fn within(self, room: Option<Room>) -> Self {
        match room {
            Some(room) if room.available_bytes < self.available_bytes => Self {
                total_bytes: room.total_bytes,
                available_bytes: room.available_bytes,
                of_cgroup: true,
            },
            _ => self,
        }
    }
}

/// The tightest of the groups from the process's own up to the root. They count the memory of
/// sockets and files as well.
fn cgroup_room(root: &Path) -> Option<Room> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let folder = root.join(own);
    folder
        .ancestors()
        .take_while(|folder| folder.starts_with(root))
        .filter_map(room_of)
        .min_by_key(|room| room.available_bytes)
}

/// None where the group has no limit.
fn room_of(folder: &Path) -> Option<Room> {
    let number = |name: &str| -> Option<u64> {
        let text = fs::read_to_string(folder.join(name)).ok()?;
        text.trim().parse().ok()
    };
    let total_bytes = number("memory.max")?;
    let used = number("memory.current")?;
    Some(Room {
        total_bytes,
        available_bytes: total_bytes.saturating_sub(used),
    })
}

/// Pages at which the kernel is content, begins to save, and refuses.
fn tcp_buffers(text: &str, page_bytes: u64) -> Option<TcpBuffers> {
    let pages: u64 = text.split_whitespace().nth(2)?.parse().ok()?;
    Some(TcpBuffers {
        max_bytes: pages.saturating_mul(page_bytes),
    })
}

fn kernel_parts(slabs: &str, v6: bool, page_bytes: u64) -> Vec<KernelPart> {
    let socket = if v6 { SOCKET_V6 } else { SOCKET_V4 };
    let part = |(name, cache, documented): Object| {
        let measured = slab_bytes(slabs, cache, page_bytes);
        KernelPart {
            name,
            cache,
            bytes: measured.unwrap_or(documented),
            measured: measured.is_some(),
        }
    };
    let (name, cache, bytes) = DIRECT_SLOT;
    let slot = KernelPart {
        name,
        cache,
        bytes,
        measured: false,
    };
    [socket]
        .into_iter()
        .chain(OBJECTS)
        .map(part)
        .chain([slot])
        .collect()
}

/// Bytes that an object of the cache takes: its share of the pages that hold it.
fn slab_bytes(slabs: &str, cache: &str, page_bytes: u64) -> Option<u64> {
    // Name, active and all objects, size, objects per slab, pages per slab.
    let mut columns = slabs
        .lines()
        .map(str::split_whitespace)
        .find_map(|mut columns| (columns.next() == Some(cache)).then_some(columns))?;
    let objects: u64 = columns.nth(3)?.parse().ok()?;
    let pages: u64 = columns.next()?.parse().ok()?;
    let slab = pages.checked_mul(page_bytes)?;
    // To the nearest byte.
    (slab.checked_add(objects / 2)?).checked_div(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLABS: &str = "\
slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables
TCPv6                 26     26   2496   13    8 : tunables    0    0    0 : slabdata      2
TCP                28782  28782   2368   13    8 : tunables    0    0    0 : slabdata   2214
sock_inode_cache   28842  28842    832   19    4 : tunables    0    0    0 : slabdata   1518
filp               29757  29757    200   20    1 : tunables    0    0    0 : slabdata   1417
broken              1 1 1 0 1
";

    #[test]
    fn objects_cost_their_share_of_a_slab() {
        assert_eq!(slab_bytes(SLABS, "TCP", 4_096), Some(2_521));
        assert_eq!(slab_bytes(SLABS, "TCP", 16_384), Some(10_082));
        assert_eq!(slab_bytes(SLABS, "sock_inode_cache", 4_096), Some(862));
        for absent in ["dentry", "TCP6", "broken", "slabinfo", "#"] {
            assert_eq!(slab_bytes(SLABS, absent, 4_096), None, "{absent}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_documented_and_says_so() {
        let parts = kernel_parts(SLABS, false, 4_096);
        let of = |cache: &str| parts.iter().find(|part| part.cache == cache);
        let filp = of("filp").unwrap();
        assert_eq!((filp.bytes, filp.measured), (205, true));
        let dentry = of("dentry").unwrap();
        assert_eq!((dentry.bytes, dentry.measured), (195, false));
        assert!(of("TCP").is_some() && of("TCPv6").is_none());
        let v6 = kernel_parts(SLABS, true, 4_096);
        assert_eq!(v6.first().map(|part| part.cache), Some("TCPv6"));
        let none = kernel_parts("", false, 4_096);
        assert_eq!(none.len(), parts.len());
        assert!(none.iter().all(|part| !part.measured && part.bytes > 0));
    }

    #[test]
    fn files_like_the_kernel_shows_them() {
        let files = system_files("29735\t0\t2466177\n", false).unwrap();
        assert_eq!(
            (files.used, files.max, files.exempt),
            (29_735, 2_466_177, false)
        );
        assert_eq!(system_files("29735\t0", true), None);
        assert_eq!(system_files("", true), None);
    }

    #[test]
    fn memory_is_that_of_the_tighter_of_machine_and_group() {
        let text = "MemTotal:       24684092 kB\nMemFree: 1 kB\nMemAvailable:   23474560 kB\n";
        let machine = memory(text).unwrap();
        assert_eq!(machine.total_bytes, 24_684_092 << 10);
        assert_eq!(machine.available_bytes, 23_474_560 << 10);
        assert_eq!(memory("MemTotal: 5 kB"), None);
        let room = |available_bytes| {
            let total_bytes = 4 << 30;
            Some(Room {
                total_bytes,
                available_bytes,
            })
        };
        let tight = machine.clone().within(room(1 << 30));
        assert_eq!(
            (tight.total_bytes, tight.available_bytes, tight.of_cgroup),
            (4 << 30, 1 << 30, true)
        );
        assert_eq!(machine.clone().within(room(1 << 40)), machine);
        assert_eq!(machine.clone().within(None), machine);
    }

    #[test]
    fn groups_are_read_from_their_files() {
        let folder = tempfile::tempdir().unwrap();
        let group = folder.path().to_owned();
        assert_eq!(room_of(&group), None);
        fs::write(group.join("memory.current"), "1000\n").unwrap();
        fs::write(group.join("memory.max"), "max\n").unwrap();
        assert_eq!(room_of(&group), None, "no limit");
        fs::write(group.join("memory.max"), "5000\n").unwrap();
        let room = room_of(&group).unwrap();
        assert_eq!((room.total_bytes, room.available_bytes), (5_000, 4_000));
        fs::write(group.join("memory.max"), "500\n").unwrap();
        assert_eq!(room_of(&group).unwrap().available_bytes, 0);
    }

    #[test]
    fn buffers_are_counted_in_pages() {
        let buffers = tcp_buffers("287901\t383868\t575802\n", 4_096).unwrap();
        assert_eq!(buffers.max_bytes, 575_802 * 4_096);
        assert_eq!(tcp_buffers("1 2", 4_096), None);
    }
}
