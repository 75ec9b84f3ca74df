//! What the kernel keeps per connection: `/proc/slabinfo`, which only root may read.
//!
//! Each end of a TCP connection has a socket, an inode, a directory entry and a file in the
//! kernel. With both ends on one machine these caches grow twice per connection, and half of the
//! growth belongs to the gateway. Other caches belong to one side: io_uring requests to the
//! gateway, epoll entries and local ports to this tool. The rest (general allocations) cannot be
//! told apart from what else the machine does, and is shown as such.
//!
//! The kernel merges caches of one size and kind, and shows them under the name of whichever came
//! first; `/sys/kernel/slab` says which were merged.

use crate::report::round;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

/// Growth below this is noise.
const BYTES_PER_CONNECTION_MIN: f64 = 1.0;

const OF_BOTH: &[&str] = &[
    "TCP",
    "TCPv6",
    "sock_inode_cache",
    "filp",
    "dentry",
    "lsm_file_cache",
    "lsm_inode_cache",
    "skbuff_head_cache",
    "skbuff_small_head",
    "skbuff_fclone_cache",
    "skbuff_ext_cache",
];
const OF_GATEWAY: &[&str] = &["io_kiocb", "io_buffer"];
const OF_LOADGEN: &[&str] = &[
    "eventpoll_epi",
    "eventpoll_pwq",
    "ep_head",
    "tcp_bind_bucket",
    "tcp_bind2_bucket",
];

/// Whose connections make a cache grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Side {
    Both,
    Gateway,
    Loadgen,
    Unknown,
}

impl Side {
    /// By the names of the caches that were merged into one; with those that say so.
    fn of(names: &BTreeSet<String>) -> (Self, Vec<&str>) {
        let of = |known: &[&str]| -> Vec<&str> {
            let names = names.iter().map(String::as_str);
            names.filter(|name| known.contains(name)).collect()
        };
        let sides = [
            (Self::Both, of(OF_BOTH)),
            (Self::Gateway, of(OF_GATEWAY)),
            (Self::Loadgen, of(OF_LOADGEN)),
        ];
        let mut found = sides.into_iter().filter(|(_, names)| !names.is_empty());
        match (found.next(), found.next()) {
            (Some(side), None) => side,
            _ => (Self::Unknown, Vec::new()),
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Both => "both ends",
            Self::Gateway => "gateway",
            Self::Loadgen => "loadgen",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Cache {
    objects: u64,
    /// With its share of what a slab wastes.
    bytes_per_object: f64,
}

/// The kernel's caches at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Slab(BTreeMap<String, Cache>);

impl Slab {
    /// `None` where it may not be read.
    pub(super) fn read() -> Option<Self> {
        let text = fs::read_to_string("/proc/slabinfo").ok()?;
        Some(Self::parse(&text, rustix::param::page_size() as u64))
    }

    fn parse(text: &str, page_bytes: u64) -> Self {
        let caches = text.lines().filter_map(|line| {
            let mut fields = line.split_whitespace();
            let name = fields.next()?.to_owned();
            let mut number = || fields.next()?.parse::<u64>().ok();
            let (objects, _all, _bytes) = (number()?, number()?, number()?);
            let (per_slab, pages) = (number()?, number()?);
            let bytes_per_object = (pages * page_bytes) as f64 / per_slab.max(1) as f64;
            let cache = Cache {
                objects,
                bytes_per_object,
            };
            Some((name, cache))
        });
        Self(caches.collect())
    }
}

/// Which caches are one: each name with all that share its memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Merged(BTreeMap<String, BTreeSet<String>>);

impl Merged {
    pub(super) fn read() -> Self {
        let links = fs::read_dir("/sys/kernel/slab").into_iter().flatten();
        Self::of(links.flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let target = fs::read_link(entry.path()).ok()?;
            Some((name, target.to_string_lossy().into_owned()))
        }))
    }

    fn of(links: impl Iterator<Item = (String, String)>) -> Self {
        let mut by_target: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (name, target) in links {
            by_target.entry(target).or_default().insert(name);
        }
        let groups = by_target.into_values();
        Self(
            groups
                .flat_map(|group| group.clone().into_iter().map(move |n| (n, group.clone())))
                .collect(),
        )
    }

    fn with(&self, name: &str) -> BTreeSet<String> {
        let merged = self.0.get(name).cloned();
        merged.unwrap_or_else(|| BTreeSet::from([name.to_owned()]))
    }
}

/// What one cache has grown by.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Growth {
    /// Its name; of merged ones, the names that say whose it is.
    pub cache: String,
    pub side: Side,
    pub objects_per_connection: f64,
    pub bytes_per_connection: f64,
}

/// What the kernel's caches have grown by, per connection. Both ends are on this machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Kernel {
    /// Half of what belongs to both ends, and what is the gateway's alone.
    pub gateway_bytes_per_connection: f64,
    pub both_bytes_per_connection: f64,
    pub gateway_only_bytes_per_connection: f64,
    pub loadgen_only_bytes_per_connection: f64,
    pub unknown_bytes_per_connection: f64,
    /// Largest first, without noise.
    pub caches: Vec<Growth>,
}

impl Kernel {
    pub(super) fn grown(before: &Slab, after: &Slab, merged: &Merged, connections: u64) -> Self {
        let connections = connections.max(1) as f64;
        let mut caches: Vec<Growth> = after
            .0
            .iter()
            .map(|(name, now)| {
                let objects = before.0.get(name).map_or(0, |then| then.objects);
                let grown = (now.objects as f64 - objects as f64) / connections;
                let names = merged.with(name);
                let (side, known) = Side::of(&names);
                Growth {
                    cache: match known[..] {
                        [] => name.clone(),
                        _ => known.join(" + "),
                    },
                    side,
                    objects_per_connection: round(grown, 100.0),
                    bytes_per_connection: round(grown * now.bytes_per_object, 10.0),
                }
            })
            .filter(|growth| growth.bytes_per_connection.abs() >= BYTES_PER_CONNECTION_MIN)
            .collect();
        caches.sort_by(|a, b| b.bytes_per_connection.total_cmp(&a.bytes_per_connection));
        let sum = |side| {
            let of_side = caches.iter().filter(|growth| growth.side == side);
            round(of_side.map(|growth| growth.bytes_per_connection).sum(), 1.0)
        };
        let (both, gateway_only) = (sum(Side::Both), sum(Side::Gateway));
        Self {
            gateway_bytes_per_connection: round(both / 2.0 + gateway_only, 1.0),
            both_bytes_per_connection: both,
            gateway_only_bytes_per_connection: gateway_only,
            loadgen_only_bytes_per_connection: sum(Side::Loadgen),
            unknown_bytes_per_connection: sum(Side::Unknown),
            caches,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables 0 0 0
io_kiocb            140    296    256   16    1 : tunables    0    0    0 : slabdata 1 1 0
TCP                  69    169   2368   13    8 : tunables    0    0    0 : slabdata 3 3 0
:A-0000128          100    112    128   32    1 : tunables    0    0    0 : slabdata 7 7 0
kmalloc-64         2739   3200     64   64    1 : tunables    0    0    0 : slabdata 5 5 0
";
    const AFTER: &str = "slabinfo - version: 2.1
io_kiocb           1140   1296    256   16    1 : tunables    0    0    0 : slabdata 1 1 0
TCP                2069   2169   2368   13    8 : tunables    0    0    0 : slabdata 3 3 0
:A-0000128         1100   1112    128   32    1 : tunables    0    0    0 : slabdata 7 7 0
kmalloc-64         3739   4200     64   64    1 : tunables    0    0    0 : slabdata 5 5 0
filp                  1     21    192   21    1 : tunables    0    0    0 : slabdata 1 1 0
";

    #[test]
    fn the_gateway_has_half_of_what_is_shared_and_all_of_its_own() {
        let links = [
            ("eventpoll_epi", ":A-0000128"),
            (":A-0000128", ":A-0000128"),
            ("tcp_bind_bucket", ":A-0000128"),
        ];
        let links = links.map(|(name, target)| (name.to_owned(), target.to_owned()));
        let merged = Merged::of(links.into_iter());
        let (before, after) = (Slab::parse(BEFORE, 4_096), Slab::parse(AFTER, 4_096));
        let kernel = Kernel::grown(&before, &after, &merged, 1_000);
        // Two sockets of 8 pages / 13 each; a request of 256 bytes.
        assert_eq!(kernel.both_bytes_per_connection, 5_041.0);
        assert_eq!(kernel.gateway_only_bytes_per_connection, 256.0);
        assert_eq!(kernel.gateway_bytes_per_connection, 2_777.0);
        assert_eq!(kernel.loadgen_only_bytes_per_connection, 128.0);
        assert_eq!(kernel.unknown_bytes_per_connection, 64.0);
        let names: Vec<&str> = kernel.caches.iter().map(|c| c.cache.as_str()).collect();
        let merged = "eventpoll_epi + tcp_bind_bucket";
        assert_eq!(names, ["TCP", "io_kiocb", merged, "kmalloc-64"]);
        assert_eq!(kernel.caches[0].objects_per_connection, 2.0);
    }

    #[test]
    fn a_cache_that_serves_two_masters_is_nobodys() {
        let side = |names: &[&str]| Side::of(&names.iter().map(|n| (*n).to_owned()).collect()).0;
        assert_eq!(side(&["eventpoll_epi", "pid"]), Side::Loadgen);
        assert_eq!(side(&["eventpoll_epi", "io_kiocb"]), Side::Unknown);
        assert_eq!(side(&["kmalloc-64"]), Side::Unknown);
    }
}
