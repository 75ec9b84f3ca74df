//! What the machine counts for all programs together: dropped packets, stolen time, idle time.
//!
//! The counters never say whose packet it was; only how many there were. They are read before and
//! after a run, and [`crate::environment`] decides what the difference means.

use std::{collections::BTreeMap, fs};

/// Of `/proc/net/netstat` and `/proc/net/snmp`, under the kernel's own names.
const WANTED: [&str; 13] = [
    // A listener's queue was full: the SYN, or the last ACK, was dropped.
    "ListenOverflows",
    "ListenDrops",
    // A socket was locked by its owner and had no more room aside.
    "TCPBacklogDrop",
    // A socket's receive buffer was full: what was out of order, or all, was thrown away.
    "PruneCalled",
    "RcvPruned",
    "TCPRcvQDrop",
    // A segment came although the window was closed.
    "TCPZeroWindowDrop",
    // Consequences, of either end.
    "TCPTimeouts",
    "TCPLossProbes",
    "RetransSegs",
    "OutSegs",
    // Memory of all sockets together (net.ipv4.tcp_mem).
    "TCPMemoryPressures",
    "TCPAbortOnMemory",
];
/// Not a name of the kernel: the second column of `/proc/net/softnet_stat`, of all processors.
/// Packets that came faster than `net.core.netdev_max_backlog` allows.
pub(crate) const SOFTNET_DROPPED: &str = "SoftnetDropped";

/// Counters by name. A kernel that does not have one leaves it out.
pub(crate) type Counters = BTreeMap<&'static str, u64>;

pub(crate) fn counters() -> Counters {
    let mut counters = Counters::new();
    for table in ["/proc/net/netstat", "/proc/net/snmp"] {
        if let Ok(text) = fs::read_to_string(table) {
            read_table(&text, &mut counters);
        }
    }
    let softnet = fs::read_to_string("/proc/net/softnet_stat").ok();
    if let Some(dropped) = softnet.as_deref().and_then(softnet_dropped) {
        counters.insert(SOFTNET_DROPPED, dropped);
    }
    counters
}

/// Lines come in pairs: names, then numbers, both after the same prefix.
fn read_table(text: &str, counters: &mut Counters) {
    let lines: Vec<&str> = text.lines().collect();
    for pair in lines.chunks_exact(2) {
        let fields = pair[0].split_whitespace().zip(pair[1].split_whitespace());
        for (name, value) in fields.skip(1) {
            let wanted = WANTED.iter().find(|wanted| **wanted == name);
            // Some have -1 for "no limit"; none of ours.
            if let Some((wanted, value)) = wanted.zip(value.parse().ok()) {
                counters.insert(wanted, value);
            }
        }
    }
}

fn softnet_dropped(text: &str) -> Option<u64> {
    let dropped = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    text.lines().map(dropped).sum()
}

/// What has come to each counter. One that went back (the namespace is another) has not moved.
pub(crate) fn growth(before: &Counters, after: &Counters) -> Counters {
    let grown = after.iter().filter_map(|(name, after)| {
        let before = before.get(name)?;
        Some((*name, after.saturating_sub(*before)))
    });
    grown.collect()
}

/// Time of all processors together, in ticks of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ticks {
    pub all: u64,
    pub idle: u64,
    /// Wanted, and given to another guest of the host.
    pub steal: u64,
}

pub(crate) fn ticks() -> Option<Ticks> {
    parse_ticks(&fs::read_to_string("/proc/stat").ok()?)
}

/// `cpu user nice system idle iowait irq softirq steal guest guest_nice`; the last two are part of
/// the first two.
fn parse_ticks(text: &str) -> Option<Ticks> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let fields = line.split_whitespace().take(8).map(str::parse::<u64>);
    let fields: Vec<u64> = fields.collect::<Result<_, _>>().ok()?;
    Some(Ticks {
        all: fields.iter().sum(),
        idle: fields.get(3)? + fields.get(4)?,
        steal: *fields.get(7)?,
    })
}

/// What the threads of this process had to put up with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waits {
    pub cpu_us: u64,
    /// Ready to run, and none of the processors that it may use was free.
    pub waited_us: u64,
    /// Taken off a processor although there was more to do.
    pub preempted: u64,
}

/// Of all threads that this process has now.
pub(crate) fn own_waits() -> Option<Waits> {
    let mut waits = Waits::default();
    for task in fs::read_dir("/proc/self/task").ok()?.flatten() {
        // A thread may end between two calls.
        let read = |file| fs::read_to_string(task.path().join(file)).ok();
        if let Some((ran_ns, waited_ns)) = read("schedstat").as_deref().and_then(schedstat) {
            waits.cpu_us += ran_ns / 1_000;
            waits.waited_us += waited_ns / 1_000;
        }
        waits.preempted += read("status").as_deref().and_then(preempted).unwrap_or(0);
    }
    Some(waits)
}

fn schedstat(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_whitespace().map(str::parse);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}

fn preempted(status: &str) -> Option<u64> {
    let mut lines = status.lines();
    let count = lines.find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"))?;
    count.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_matched_by_their_place() {
        let mut counters = Counters::new();
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPBacklogDrop\n\
                    TcpExt: 1 22 333 4444\n\
                    IpExt: InNoRoutes ListenDrops2\n\
                    IpExt: 5 6\n";
        read_table(text, &mut counters);
        let expected = [
            ("ListenDrops", 333),
            ("ListenOverflows", 22),
            ("TCPBacklogDrop", 4_444),
        ];
        assert_eq!(counters, Counters::from(expected));
    }

    #[test]
    fn what_this_kernel_counts_can_be_read_and_grows() {
        let (before, after) = (counters(), counters());
        for name in ["ListenDrops", "RetransSegs", "OutSegs", SOFTNET_DROPPED] {
            assert!(before.contains_key(name), "{name} in {before:?}");
        }
        assert_eq!(growth(&before, &after).len(), before.len());
        let went_back = growth(
            &Counters::from([("OutSegs", 9)]),
            &Counters::from([("OutSegs", 2), ("ListenDrops", 1)]),
        );
        assert_eq!(went_back, Counters::from([("OutSegs", 0)]));
    }

    #[test]
    fn drops_of_all_processors_are_added_up() {
        assert_eq!(
            softnet_dropped("00000011 0000000a 0\n00000b26 00000001 0\n"),
            Some(11)
        );
        assert_eq!(softnet_dropped("x"), None);
    }

    #[test]
    fn guests_are_not_counted_twice() {
        let expected = Ticks {
            all: 36,
            idle: 9,
            steal: 8,
        };
        assert_eq!(
            parse_ticks("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1\n"),
            Some(expected)
        );
        assert_eq!(parse_ticks("intr 1"), None);
        assert!(ticks().is_some_and(|ticks| ticks.all > 0));
    }

    #[test]
    fn a_thread_that_works_is_seen_working() {
        let before = own_waits().expect("Linux");
        let begun = std::time::Instant::now();
        let mut after = before;
        while after.cpu_us < before.cpu_us + 3_000 && begun.elapsed().as_secs() < 20 {
            after = own_waits().expect("Linux");
        }
        assert!(after.cpu_us >= before.cpu_us + 3_000);
        assert_eq!(schedstat("123 456 7\n"), Some((123, 456)));
        assert_eq!(preempted("a: 1\nnonvoluntary_ctxt_switches:\t7\n"), Some(7));
    }
}
