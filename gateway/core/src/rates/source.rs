//! Where connections come from: what a source is, which are exempt, and what each may do before it
//! has logged in.

use super::{
    Pace,
    table::{Table, Whole},
};
use crate::{limits::ShardConfig, metrics::Counter, pool::GiveBack};
use rustc_hash::FxHashMap;
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// A network in the usual notation: `10.0.0.0/8`, `2001:db8::/32`, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// The text is not a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a network: an address with the length of its prefix, such as 10.0.0.0/8, is")]
pub struct BadNetwork;

impl Network {
    /// This machine itself.
    #[must_use]
    pub fn loopback() -> Vec<Self> {
        vec![
            Self {
                address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)),
                prefix: 8,
            },
            Self {
                address: IpAddr::V6(Ipv6Addr::LOCALHOST),
                prefix: 128,
            },
        ]
    }

    /// IPv4 addresses in IPv6 notation are IPv4 addresses.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let shift = 32 - u32::from(self.prefix);
                (own.to_bits() ^ other.to_bits()).checked_shr(shift) == Some(0) || shift == 32
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let shift = 128 - u32::from(self.prefix);
                (own.to_bits() ^ other.to_bits()).checked_shr(shift) == Some(0) || shift == 128
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| BadNetwork)?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => max,
            Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().map_err(|_| BadNetwork)?
            }
            Some(_) => return Err(BadNetwork),
        };
        if prefix > max || address != address.to_canonical() {
            return Err(BadNetwork);
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// What counts as one source: an IPv4 address, or the 64 bits of an IPv6 address that name its
/// network; a host there has as many addresses as it likes. Never 0.
pub(super) fn key(address: IpAddr) -> u64 {
    match address.to_canonical() {
        // A prefix that is assigned to nobody.
        IpAddr::V4(address) => 0xffff << 32 | u64::from(address.to_bits()),
        IpAddr::V6(address) => ((address.to_bits() >> 64) as u64).max(1),
    }
}

/// Places of `Due` for sources.
const OPENS: usize = 0;
const LOGINS: usize = 1;

/// The sources of a shard's connections.
#[derive(Debug)]
pub(super) struct Sources {
    opens: Pace,
    logins: Pace,
    greeting_max: u32,
    table: Table,
    /// By connection, those that have not logged in.
    greeting: FxHashMap<u32, u64>,
}

impl Sources {
    pub(super) fn new(config: &ShardConfig) -> Self {
        let (rates, shards) = (&config.limits.rates, config.shards);
        let max = rates.source_greeting_max;
        let share = (max / u32::from(shards.max(1))).max(super::SOURCE_BURST_MIN.min(max));
        let opens = Pace::share(rates.source_opens, shards);
        let logins = Pace::share(rates.source_logins, shards);
        let whole = Whole {
            bursts_us: [opens.burst_us, logins.burst_us],
            held_max: share,
        };
        Self {
            opens,
            logins,
            greeting_max: share,
            table: Table::new(rates.table_max, config.hash_seed, whole),
            greeting: FxHashMap::default(),
        }
    }

    /// A connection of this source; or what it is too much for.
    pub(super) fn open(&mut self, conn: u32, source: IpAddr, now_us: u64) -> Result<(), Counter> {
        let key = key(source);
        let place = self.table.find_or_add(key, now_us);
        if self.greeting_max > 0 && place.held >= self.greeting_max {
            return Err(Counter::LimitedSourceGreeting);
        }
        if place.take(OPENS, &self.opens, now_us).is_err() {
            return Err(Counter::LimitedSourceOpens);
        }
        place.held += 1;
        self.greeting.insert(conn, key);
        Ok(())
    }

    /// A login of the source of this connection; or the milliseconds to wait.
    pub(super) fn login(&mut self, conn: u32, now_us: u64) -> Result<(), u32> {
        match self.greeting.get(&conn) {
            Some(&key) => {
                let place = self.table.find_or_add(key, now_us);
                place.take_or_wait(LOGINS, &self.logins, now_us)
            }
            None => Ok(()),
        }
    }

    pub(super) fn knows(&self, conn: u32) -> bool {
        !self.greeting.is_empty() && self.greeting.contains_key(&conn)
    }

    pub(super) fn give_back(&mut self) {
        self.greeting.give_back();
    }

    pub(super) fn release(&mut self, conn: u32) {
        if self.greeting.is_empty() {
            return;
        }
        // The source may have been forgotten meanwhile, and found again.
        if let Some(key) = self.greeting.remove(&conn)
            && let Some(place) = self.table.find(key)
        {
            place.held = place.held.saturating_sub(1);
        }
    }

    #[cfg(feature = "testing")]
    pub(super) fn waiting(&self) -> usize {
        self.greeting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_are_read_and_matched() {
        let contains = |network: &str, address: &str| {
            let network: Network = network.parse().unwrap();
            network.contains(ip(address))
        };
        assert!(contains("127.0.0.0/8", "127.1.2.3"));
        assert!(!contains("127.0.0.0/8", "128.0.0.1"));
        assert!(contains("10.1.2.3", "10.1.2.3"));
        assert!(!contains("10.1.2.3", "10.1.2.2"));
        assert!(contains("0.0.0.0/0", "203.0.113.9"));
        assert!(!contains("0.0.0.0/0", "2001:db8::1"));
        assert!(contains("::/0", "2001:db8::1"));
        assert!(contains("2001:db8::/33", "2001:db8:7fff::1"));
        assert!(!contains("2001:db8::/33", "2001:db8:8000::1"));
        assert!(contains("10.0.0.0/8", "::ffff:10.9.9.9"));
        for bad in [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "a/8",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "::ffff:10.0.0.0/104",
        ] {
            assert_eq!(bad.parse::<Network>(), Err(BadNetwork), "{bad:?}");
        }
        let all: Vec<String> = Network::loopback().iter().map(Network::to_string).collect();
        assert_eq!(all, ["127.0.0.0/8", "::1/128"]);
    }

    #[test]
    fn a_network_of_ipv6_is_one_source_and_mapped_addresses_are_folded() {
        assert_eq!(key(ip("2001:db8:1:2::1")), key(ip("2001:db8:1:2:ffff::9")));
        assert_ne!(key(ip("2001:db8:1:2::1")), key(ip("2001:db8:1:3::1")));
        assert_eq!(key(ip("::ffff:192.0.2.1")), key(ip("192.0.2.1")));
        assert_ne!(key(ip("192.0.2.1")), key(ip("192.0.2.2")));
        assert_ne!(key(ip("::")), 0);
    }
}
