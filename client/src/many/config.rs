//! What the owner of a [`Many`](super::Many) gives it, and what it hears.

use crate::{
    session::{Event, Now},
    tls::TlsClient,
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// The time of this driver: one origin for every thread of a program, so that times taken on one
/// thread mean the same on another.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
    wall_at_origin_us: u64,
}

impl Clock {
    #[must_use]
    pub fn start() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            origin: Instant::now(),
            // A clock set before 1970 is no clock; the server's offset corrects it.
            wall_at_origin_us: wall.map_or(0, |wall| wall.as_micros() as u64),
        }
    }

    #[must_use]
    pub fn now(&self) -> Now {
        let mono_us = self.origin.elapsed().as_micros() as u64;
        Now {
            mono_us,
            wall_us: self.wall_at_origin_us + mono_us,
        }
    }
}

/// How connections are opened.
#[derive(Clone, Debug)]
pub struct ManyConfig {
    pub target: SocketAddr,
    /// Local addresses, used in turn, each with its ports in turn. Empty: the system chooses both.
    /// See [`super::loopback_sources`].
    pub sources: Vec<IpAddr>,
    /// How many connections others make from the same `sources` before this one's first: with the
    /// sum of theirs here, several drivers share addresses and ports evenly and never meet.
    pub source_offset: usize,
    /// Connections that will be added, to reserve memory once.
    pub connections: usize,
    /// Connections between their first packet and WELCOME, or waiting for a token.
    pub connecting_max: usize,
    /// Connections opened per second, at most.
    pub connects_per_s: u32,
    /// From the first packet to WELCOME.
    pub connect_timeout_ms: u32,
    /// With the feature `tls`: what is spoken beneath the protocol. `None`: nothing.
    #[cfg(feature = "tls")]
    pub tls: Option<TlsClient>,
    #[cfg(not(feature = "tls"))]
    pub(crate) tls: Option<TlsClient>,
    pub clock: Clock,
}

impl ManyConfig {
    #[must_use]
    pub fn new(target: SocketAddr, clock: Clock) -> Self {
        Self {
            target,
            sources: Vec::new(),
            source_offset: 0,
            connections: 0,
            connecting_max: 256,
            connects_per_s: 20_000,
            connect_timeout_ms: 10_000,
            tls: None,
            clock,
        }
    }
}

/// A connection, numbered from 0 in the order of [`super::Many::add`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnIndex(pub u32);

/// What happened to a connection.
#[derive(Debug)]
pub enum ManyEvent<'a> {
    /// The session says so. After `Closed` with a delay the driver reconnects by itself.
    Session(Event<'a>),
    /// No connection came about; the session decides about the next attempt.
    ConnectFailed(&'a io::Error),
    /// The handshake of TCP is done, so long after the attempt began.
    Connected { after_us: u64 },
    /// The handshake of TLS is done, so long after it began; it was one that resumes, or a full one.
    Secured { handshake_us: u64, resumed: bool },
    /// WELCOME has come, so long after the attempt began; the session's own event follows.
    LoggedIn { after_us: u64 },
    /// The connection is to be opened, and its session has no token left to log in with: it waits
    /// for [`super::Many::set_token`].
    TokenWanted,
}

/// The owner's callback.
pub type OnEvent<'a> = dyn FnMut(Now, ConnIndex, ManyEvent<'_>) + 'a;
