//! Where connections come from: local addresses, and a port on each.
//!
//! The kernel can choose ports, but it searches: measured on Linux 6.18 towards one target, the
//! first half of an address's ports (it tries every second one first) costs it nothing to speak of,
//! and each port of the second half 0.8 ms of CPU time, or 2.9 ms when the socket was bound to an
//! address before (with IP_BIND_ADDRESS_NO_PORT 0.8). A port that is named costs nothing to find,
//! so this driver names them, from the range that the kernel itself would choose from.
//!
//! # Invariants
//! - Two connections of one process have different places, if the offsets of their drivers are
//!   right, so they never want the same port.
//! - A port that a stranger has is met with one that the kernel chooses.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
};

/// What the kernel chooses from unless told otherwise.
const PORTS_DEFAULT: RangeInclusive<u16> = 32_768..=60_999;
const PORTS_FILE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Loopback addresses that [`loopback_sources`] gives at most: enough for twenty million
/// connections.
const ADDRESSES_MAX: usize = 1_000;
/// Of the last part of an address: 2 to 251, so that neither 0, 1 nor 255 is used.
const ADDRESSES_PER_BLOCK: usize = 250;

/// The places of one driver's connections.
#[derive(Debug)]
pub(super) struct Sources {
    addresses: Vec<IpAddr>,
    ports: RangeInclusive<u16>,
    offset: usize,
}

impl Sources {
    pub(super) fn new(addresses: Vec<IpAddr>, offset: usize) -> Self {
        // Nothing to name, nothing to read.
        let ports = match addresses.is_empty() {
            true => PORTS_DEFAULT,
            false => local_ports().unwrap_or(PORTS_DEFAULT),
        };
        Self {
            addresses,
            ports,
            offset,
        }
    }

    /// The place of this driver's connection `index`; `None`: the kernel chooses.
    pub(super) fn place(&self, index: usize) -> Option<SocketAddr> {
        let nth = self.offset.wrapping_add(index);
        let address = nth.checked_rem(self.addresses.len())?;
        let round = nth / self.addresses.len();
        let port = usize::from(*self.ports.start()) + round % self.ports.len();
        // Within the range, whose end is a u16.
        Some(SocketAddr::new(self.addresses[address], port as u16))
    }
}

/// The kernel's range of local ports.
fn local_ports() -> Option<RangeInclusive<u16>> {
    let text = fs::read_to_string(PORTS_FILE).ok()?;
    let mut bounds = text.split_whitespace().map(str::parse);
    let (first, last) = (bounds.next()?.ok()?, bounds.next()?.ok()?);
    (first > 0 && first <= last).then_some(first..=last)
}

/// Local addresses for `connections` connections to a loopback target, when one address has not
/// enough ports that are found quickly: 127.0.0.2 to 127.0.0.251, then 127.0.1.2 and on, all of
/// which the loopback interface answers for. Empty when the system can choose by itself; `None` when
/// the target is elsewhere and ports would run out.
#[must_use]
pub fn loopback_sources(
    target: SocketAddr,
    connections: usize,
    ports_per_address: usize,
) -> Option<Vec<IpAddr>> {
    let loopback = match target.ip() {
        IpAddr::V4(address) => address.is_loopback(),
        IpAddr::V6(_) => false,
    };
    let by_itself = if loopback {
        ports_per_address / 2
    } else {
        ports_per_address
    };
    if connections <= by_itself {
        return Some(Vec::new());
    }
    let addresses = connections.div_ceil(ports_per_address.max(1));
    (loopback && addresses <= ADDRESSES_MAX).then(|| (0..addresses).map(loopback_address).collect())
}

fn loopback_address(nth: usize) -> IpAddr {
    // Both parts are below 256, because `nth` is below ADDRESSES_MAX.
    let (block, last) = (nth / ADDRESSES_PER_BLOCK, nth % ADDRESSES_PER_BLOCK);
    Ipv4Addr::new(127, 0, block as u8, last as u8 + 2).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
    const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 1);

    #[test]
    fn sources_are_needed_only_when_ports_run_out() {
        assert_eq!(loopback_sources(LOOPBACK, 50, 100), Some(Vec::new()));
        assert_eq!(loopback_sources(ELSEWHERE, 100, 100), Some(Vec::new()));
        assert_eq!(loopback_sources(ELSEWHERE, 101, 100), None);
        let addresses = |connections| loopback_sources(LOOPBACK, connections, 100).map(|s| s.len());
        assert_eq!(addresses(51), Some(1));
        assert_eq!(addresses(101), Some(2));
        assert_eq!(addresses(100_000), Some(1_000));
        assert_eq!(addresses(100_001), None);
        assert_eq!(addresses(usize::MAX), None);
        assert_eq!(loopback_sources(LOOPBACK, 1, 0).map(|s| s.len()), Some(1));
    }

    #[test]
    fn loopback_addresses_go_on_in_the_next_block() {
        let addresses = loopback_sources(LOOPBACK, 1_000, 1).unwrap();
        let at = |nth: usize| addresses[nth].to_string();
        assert_eq!([at(0), at(249)], ["127.0.0.2", "127.0.0.251"]);
        assert_eq!([at(250), at(999)], ["127.0.1.2", "127.0.3.251"]);
        assert!(addresses.iter().all(IpAddr::is_loopback));
        assert_eq!(addresses.iter().collect::<HashSet<_>>().len(), 1_000);
    }

    #[test]
    fn drivers_that_share_addresses_share_them_evenly_and_never_meet() {
        let addresses = loopback_sources(LOOPBACK, 100_000, 20_000).unwrap();
        // 7 drivers of different sizes.
        let mut offset = 0;
        let mut places = HashSet::new();
        let mut per_address = std::collections::HashMap::new();
        for connections in [20_000, 1_000, 19_000, 3, 20_000, 19_997, 20_000] {
            let sources = Sources::new(addresses.clone(), offset);
            for index in 0..connections {
                let place = sources.place(index).unwrap();
                assert!(places.insert(place), "{place} twice");
                *per_address.entry(place.ip()).or_insert(0) += 1;
            }
            offset += connections;
        }
        assert_eq!(offset, 100_000);
        assert_eq!(per_address.len(), 5);
        assert!(per_address.values().all(|count| *count == 20_000));
    }

    #[test]
    fn without_addresses_the_kernel_chooses() {
        assert_eq!(Sources::new(Vec::new(), 7).place(9), None);
    }

    #[test]
    fn ports_come_round_again_within_their_range() {
        let sources = Sources {
            addresses: vec![LOOPBACK.ip()],
            ports: 65_533..=65_535,
            offset: usize::MAX,
        };
        let ports: Vec<u16> = (1..=4)
            .map(|index| sources.place(index).unwrap().port())
            .collect();
        assert_eq!(ports, [65_533, 65_534, 65_535, 65_533]);
    }
}
