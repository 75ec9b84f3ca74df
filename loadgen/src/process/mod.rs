//! What processes cost: the server under test, when it runs on this machine, and this tool itself.
//!
//! Everything comes from `/proc`. What cannot be read (another user's process, another machine) is
//! absent from the report; it is never guessed.

pub(crate) mod kernel;

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};
use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::Path,
};

/// The state of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// CPU time and memory of a process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub cpu_us: u64,
    pub rss_bytes: u64,
}

/// The process of this machine that listens on `target`, if it may be looked at.
pub(crate) fn find_listener(target: SocketAddr) -> Option<u32> {
    let table = match target {
        SocketAddr::V4(_) => "/proc/net/tcp",
        SocketAddr::V6(_) => "/proc/net/tcp6",
    };
    // A socket bound to [::] also takes IPv4.
    let inode =
        listening_inode(table, target).or_else(|| listening_inode("/proc/net/tcp6", target))?;
    let wanted = format!("socket:[{inode}]");
    fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| holds_file(*pid, &wanted))
}

fn holds_file(pid: u32, wanted: &str) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    files
        .flatten()
        .any(|file| fs::read_link(file.path()).is_ok_and(|link| link == Path::new(wanted)))
}

/// The kernel lists the sockets that listen before all others, of which there may be millions: they
/// are not read.
fn listening_inode(table: &str, target: SocketAddr) -> Option<u64> {
    let lines = BufReader::new(File::open(table).ok()?).lines();
    lines
        .skip(1)
        .map_while(|line| listener(&line.ok()?))
        .find(|(address, _)| {
            let ours = address.ip().is_unspecified() || address.ip() == target.ip();
            ours && address.port() == target.port()
        })
        .map(|(_, inode)| inode)
}

/// The address and the inode in the line of a socket that listens.
fn listener(line: &str) -> Option<(SocketAddr, u64)> {
    let mut fields = line.split_whitespace().skip(1);
    let (ip, port) = parse_address(fields.next()?)?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?.parse().ok()?;
    (state == LISTEN).then_some((SocketAddr::new(ip, port), inode))
}

/// `0100007F:1CE8`: the address in words of the machine's byte order, the port as a number.
fn parse_address(field: &str) -> Option<(IpAddr, u16)> {
    let (ip, port) = field.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..ip.len()).step_by(8) {
        let word = u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?;
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => {
            let ip = Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?);
            ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)
        }
        _ => return None,
    };
    Some((ip, port))
}

/// Of all threads that `pid` has now. Nanosecond precise: accounting by ticks misses short turns.
/// The time of threads that have ended is not in it, so differences mean something only for
/// servers whose threads stay.
pub(crate) fn usage(pid: u32) -> Option<Usage> {
    let mut cpu_ns = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        // A thread may end meanwhile: before its file is opened, or, and then it is empty, after.
        let line = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        if let Some(ran_ns) = line.split_whitespace().next() {
            cpu_ns += ran_ns.parse::<u64>().ok()?;
        }
    }
    let pages = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let resident: u64 = pages.split_whitespace().nth(1)?.parse().ok()?;
    Some(Usage {
        cpu_us: cpu_ns / 1_000,
        rss_bytes: resident * rustix::param::page_size() as u64,
    })
}

/// The command name of a process.
pub(crate) fn name(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

/// CPU time of the calling thread.
pub(crate) fn thread_cpu_us() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1_000
}

/// Raises the soft limit of open files to the hard one and returns it.
pub(crate) fn raise_open_file_limit() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised)?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// Local ports that one address has towards one target.
pub(crate) fn ephemeral_ports() -> Option<usize> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ends = range.split_whitespace().map(str::parse::<usize>);
    let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
    Some((last + 1).saturating_sub(first))
}

/// A line of `/proc/meminfo`.
pub(crate) fn memory_bytes(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    text.lines().find_map(|line| {
        let kib = line.strip_prefix(name)?.strip_prefix(':')?;
        let kib = kib.trim().strip_suffix("kB")?.trim();
        Some(kib.parse::<u64>().ok()? * 1_024)
    })
}

/// Where a result was measured: numbers from different machines are not comparable.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Machine {
    pub cpus: usize,
    pub model: String,
    pub kernel: String,
    pub memory_bytes: u64,
}

impl Machine {
    pub(crate) fn read() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == "model name").then(|| value.trim().to_owned())
        });
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease");
        Self {
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            model: model.unwrap_or_else(|| "unknown".to_owned()),
            kernel: kernel.map_or_else(|_| "unknown".to_owned(), |k| k.trim().to_owned()),
            memory_bytes: memory_bytes("MemTotal").unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        net::TcpListener,
        process::Command,
        thread,
        time::{Duration, Instant},
    };

    #[test]
    fn the_listener_of_a_local_port_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let target = listener.local_addr().expect("bound");
        assert_eq!(find_listener(target), Some(std::process::id()));
        drop(listener);
        assert_eq!(find_listener(target), None);
    }

    #[test]
    fn a_listener_on_all_addresses_is_found() {
        let listener = TcpListener::bind("[::]:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let target = SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(find_listener(target), Some(std::process::id()));
    }

    #[test]
    fn usage_of_another_process_grows_with_its_work() {
        let mut busy = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .expect("a shell");
        let before = usage(busy.id()).expect("a child");
        let begun = Instant::now();
        let (mut worked_us, mut rss_bytes) = (0, 0);
        while worked_us < 20_000 && begun.elapsed() < Duration::from_secs(20) {
            thread::sleep(Duration::from_millis(5));
            let now = usage(busy.id()).expect("a child");
            worked_us = now.cpu_us - before.cpu_us;
            rss_bytes = now.rss_bytes;
        }
        let passed_us = begun.elapsed().as_micros() as u64;
        busy.kill().expect("a child");
        busy.wait().expect("a child");
        assert!((20_000..=passed_us + 1_000).contains(&worked_us));
        assert!(rss_bytes > 100_000);
        assert_eq!(usage(u32::MAX), None);
    }

    #[test]
    fn a_thread_knows_its_own_work() {
        let (start_us, begun) = (thread_cpu_us(), Instant::now());
        let mut spins = 0_u64;
        while thread_cpu_us() < start_us + 5_000 {
            spins = std::hint::black_box(spins + 1);
        }
        assert!(begun.elapsed() >= Duration::from_micros(4_900));
    }
}
