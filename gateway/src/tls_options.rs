//! What is told to the shards about TLS.

use portico_tls::Acceptor;
use std::net::SocketAddr;

/// A door for TLS beside the plain one. Clones of the [`Acceptor`] share its settings: whoever keeps one
/// can [`reload`](Acceptor::reload) it while the gateway serves.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    /// Port 0 lets the kernel choose: [`Gateway::tls_addr`](crate::Gateway::tls_addr) tells which.
    pub listen: SocketAddr,
    pub acceptor: Acceptor,
    /// Steps of handshakes that a turn of a shard takes, each of which costs a fraction of a
    /// millisecond; none is begun half a millisecond after the first. At least 1.
    pub handshakes_per_turn: usize,
    /// From accept until the handshake is over. What comes then has a time of its own
    /// ([`Limits::handshake_ms`](crate::Limits)).
    pub handshake_ms: u32,
    /// A session that has been quiet for so long gives its prepared keys back. 0: never.
    pub hibernate_after_s: u32,
}

impl TlsOptions {
    /// On port 7443 of the loopback interface, with the usual limits.
    #[must_use]
    pub const fn new(acceptor: Acceptor) -> Self {
        Self {
            listen: SocketAddr::new(
                std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
                Self::PORT,
            ),
            acceptor,
            handshakes_per_turn: Self::HANDSHAKES_PER_TURN,
            handshake_ms: Self::HANDSHAKE_MS,
            hibernate_after_s: Self::HIBERNATE_AFTER_S,
        }
    }

    /// Where clients expect it.
    pub const PORT: u16 = 7_443;
    pub const HANDSHAKES_PER_TURN: usize = 8;
    pub const HANDSHAKE_MS: u32 = 10_000;
    pub const HIBERNATE_AFTER_S: u32 = 10;
}
