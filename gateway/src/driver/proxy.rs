//! The PROXY protocol, version 2, as balancers speak it: before the first byte of the client, TLS or not,
//! they say where the client comes from.
//!
//! # Invariants
//! - It is asked for from the configured networks only, and there it must come. From elsewhere its
//!   bytes are what they are: the beginning of a frame that is far too long.
//! - Until it has come nothing of the connection is looked at. The deadline of a session that has not
//!   begun ends one that says nothing.
//! - What is held of it is bounded: a header of at most 536 bytes.

use super::{Driver, counters::Tally, ring::Lent};
use portico_core::{Input, Network};
use portico_wire::FrameError;
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const FIXED_BYTES: usize = 16;
/// Of what follows: the longest addresses and some TLVs.
const VARIABLE_BYTES_MAX: usize = 520;
/// How version 1, which is text, begins.
const TEXT: &[u8] = b"PROXY ";

/// What is wrong with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Of version 1.
    Text,
    /// None at all, or a version, command or length that means nothing here.
    Other,
}

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    bytes: usize,
    /// None: the balancer speaks for itself (a health check), or does not know.
    source: Option<IpAddr>,
}

/// Reads the header at the beginning of these bytes. `None`: more are needed.
fn parse(bytes: &[u8]) -> Result<Option<Header>, Fault> {
    let common = bytes.len().min(SIGNATURE.len());
    if bytes[..common] != SIGNATURE[..common] {
        let text = bytes.len().min(TEXT.len());
        return Err(if bytes[..text] == TEXT[..text] {
            Fault::Text
        } else {
            Fault::Other
        });
    }
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED_BYTES>() else {
        return Ok(None);
    };
    let (version, command, family) = (fixed[12] >> 4, fixed[12] & 15, fixed[13]);
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if version != 2 || command > 1 || length > VARIABLE_BYTES_MAX {
        return Err(Fault::Other);
    }
    let Some(addresses) = rest.get(..length) else {
        return Ok(None);
    };
    let source = match (command, family) {
        (0, _) | (_, 0) => None,
        // TCP over IPv4 and IPv6: source, destination, two ports; TLVs behind them are passed over.
        (_, 0x11) if length >= 12 => {
            first(addresses).map(|octets: [u8; 4]| Ipv4Addr::from(octets).into())
        }
        (_, 0x21) if length >= 36 => {
            first(addresses).map(|octets: [u8; 16]| Ipv6Addr::from(octets).into())
        }
        _ => return Err(Fault::Other),
    };
    Ok(Some(Header {
        bytes: FIXED_BYTES + length,
        source,
    }))
}

fn first<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.first_chunk().copied()
}

/// The connections of which a header has to come.
#[derive(Debug)]
pub(super) struct Proxies {
    balancers: Vec<Network>,
    /// By index: what has come of it.
    waiting: HashMap<u32, Vec<u8>>,
}

impl Proxies {
    pub(super) fn new(balancers: Vec<Network>) -> Self {
        Self {
            balancers,
            waiting: HashMap::new(),
        }
    }

    pub(super) fn has_balancers(&self) -> bool {
        !self.balancers.is_empty()
    }

    /// Does this one speak for others? Then its header is waited for.
    pub(super) fn expect(&mut self, index: u32, from: IpAddr) -> bool {
        let speaks = self.balancers.iter().any(|network| network.contains(from));
        if speaks {
            self.waiting.insert(index, Vec::new());
        }
        speaks
    }

    pub(super) fn is_waiting(&self, index: u32) -> bool {
        !self.waiting.is_empty() && self.waiting.contains_key(&index)
    }

    pub(super) fn forget(&mut self, index: u32) {
        if !self.waiting.is_empty() {
            self.waiting.remove(&index);
        }
    }

    pub(super) fn trim(&mut self) {
        self.waiting.shrink_to(super::LISTED_MAX);
    }
}

impl Driver {
    /// Takes the header off received bytes. False: nothing is left, or the connection has ended.
    pub(super) fn take_header(&mut self, index: u32, lent: &mut Lent) -> bool {
        let Some(held) = self.proxies.waiting.get_mut(&index) else {
            return true;
        };
        let before = held.len();
        let bytes = self.ring.bytes(lent);
        let wanted = (FIXED_BYTES + VARIABLE_BYTES_MAX - before).min(bytes.len());
        held.extend_from_slice(&bytes[..wanted]);
        match parse(held) {
            Ok(None) => false,
            Ok(Some(Header { bytes, source })) => {
                self.proxies.forget(index);
                lent.skip(bytes - before);
                self.tallies.bump(Tally::ProxyHeaders);
                let conn = self.sockets.conn(index);
                if source.is_none_or(|from| self.core.admit_source(self.now, conn, from)) {
                    return lent.len() > 0;
                }
                self.tallies.bump(Tally::AcceptRefused);
                self.fail(index);
                false
            }
            Err(fault) => {
                self.proxies.forget(index);
                self.tallies.bump(match fault {
                    Fault::Text => Tally::ProxyText,
                    Fault::Other => Tally::ProxyFaults,
                });
                let conn = self.sockets.conn(index);
                if !self.core.is_open(conn) {
                    // In the middle of a TLS handshake nothing can be said.
                    self.fail(index);
                    return false;
                }
                let error = FrameError::BadHeader;
                let input = Input::BadFrame { conn, error };
                self.core.handle(self.now, input, &mut self.fx);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(version_command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend_from_slice(&[version_command, family]);
        bytes.extend_from_slice(&(addresses.len() as u16).to_be_bytes());
        bytes.extend_from_slice(addresses);
        bytes
    }

    fn source(bytes: &[u8]) -> Option<IpAddr> {
        let header = parse(bytes).unwrap().unwrap();
        assert_eq!(header.bytes, bytes.len());
        header.source
    }

    #[test]
    fn what_balancers_say() {
        let four = [192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 0, 80];
        assert_eq!(source(&header(0x21, 0x11, &four)), "192.0.2.7".parse().ok());
        let mut with_tlv = four.to_vec();
        with_tlv.extend_from_slice(&[3, 0, 4, 1, 2, 3, 4]);
        assert_eq!(
            source(&header(0x21, 0x11, &with_tlv)),
            "192.0.2.7".parse().ok()
        );
        let mut six = [0; 36];
        six[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
        six[15] = 9;
        assert_eq!(
            source(&header(0x21, 0x21, &six)),
            "2001:db8::9".parse().ok()
        );
        assert_eq!(source(&header(0x20, 0, &[])), None, "a health check");
        assert_eq!(source(&header(0x20, 0x11, &four)), None);
        assert_eq!(
            source(&header(0x21, 0, &[1, 2, 3])),
            None,
            "it does not know"
        );
    }

    #[test]
    fn what_is_refused() {
        let four = [0; 12];
        for bytes in [
            header(0x11, 0x11, &four),
            header(0x22, 0x11, &four),
            header(0x21, 0x12, &four),
            header(0x21, 0x31, &[0; 216]),
            header(0x21, 0x11, &four[..11]),
            header(0x21, 0x21, &[0; 35]),
            header(0x21, 0x11, &[0; VARIABLE_BYTES_MAX + 1]),
            b"\x74\0\0\0hello".to_vec(),
            b"GET / HTTP/1.1\r\n".to_vec(),
        ] {
            assert_eq!(parse(&bytes), Err(Fault::Other), "{bytes:?}");
        }
        let text = b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 80\r\n";
        assert_eq!(parse(text), Err(Fault::Text));
        assert_eq!(parse(b"PRO"), Err(Fault::Text));
        assert_eq!(parse(b""), Ok(None));
    }

    proptest! {
        /// Whatever comes, in whatever pieces: never a panic, never more than is there, and a prefix
        /// of a good header is an unfinished one.
        #[test]
        fn any_bytes(junk in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = SIGNATURE.to_vec();
            bytes.extend_from_slice(&junk);
            for end in 0..=bytes.len() {
                if let Ok(Some(header)) = parse(&bytes[..end]) {
                    prop_assert!(header.bytes <= end);
                    prop_assert_eq!(parse(&bytes), Ok(Some(header)));
                }
            }
            let _ = parse(&junk);
        }

        #[test]
        fn any_pieces(octets in any::<[u8; 4]>(), tail in proptest::collection::vec(any::<u8>(), 0..500)) {
            let mut addresses = octets.to_vec();
            addresses.extend_from_slice(&[0; 8]);
            addresses.extend_from_slice(&tail);
            let bytes = header(0x21, 0x11, &addresses);
            for end in 0..bytes.len() {
                prop_assert_eq!(parse(&bytes[..end]), Ok(None));
            }
            prop_assert_eq!(source(&bytes), Some(Ipv4Addr::from(octets).into()));
        }
    }
}
