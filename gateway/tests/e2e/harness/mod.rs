//! Starts gateways, talks to them, and reads what they say about themselves.

mod admin;
mod child;
mod disk;
mod gateway;
mod peer;
mod process;
mod random;

pub(crate) use admin::{Metrics, Page};
pub(crate) use child::{Child, Exit};
pub(crate) use disk::SmallDisk;
pub(crate) use gateway::{Gateway, Setup, unix_s};
pub(crate) use peer::{Message, Peer, close_code, msg_id_at, new_msg_id, wall_us};
pub(crate) use process::Process;
pub(crate) use random::Random;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    thread,
    time::{Duration, Instant},
};

/// How long anything may take that takes milliseconds on a machine with nothing else to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Looks again and again until there is a value.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// An address for a gateway that is started several times. Its port is outside the range from which
/// the kernel takes ports for outgoing connections, so that none of them sits there in between.
pub(crate) fn quiet_port() -> SocketAddr {
    let mut random = Random::new(wall_us());
    eventually("a free port", || {
        let port = 10_000 + random.below(20_000) as u16;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        TcpListener::bind(address).ok().map(|_| address)
    })
}
