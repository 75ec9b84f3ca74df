//! What the service manager that started the gateway is told: the protocol of systemd's
//! `Type=notify`, which is a datagram with lines of `NAME=value` to the socket in `NOTIFY_SOCKET`.
//!
//! # Does not
//! Hold up the gateway: a manager that does not read is told nothing.

use rustix::time::{ClockId, clock_gettime};
use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    process,
    time::Duration,
};

/// Shorter times are taken for this: a sign of life is a look at every shard.
const WATCHDOG_MIN: Duration = Duration::from_millis(100);

/// Whoever started the process and asked to be told.
#[derive(Debug)]
pub(crate) struct Manager {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Manager {
    /// From the environment. Without a socket there, everything here does nothing.
    ///
    /// # Errors
    /// A socket is named that cannot be reached.
    pub(crate) fn from_env() -> io::Result<Self> {
        let text = |name| env::var(name).ok();
        Ok(Self {
            socket: match env::var_os("NOTIFY_SOCKET") {
                Some(name) if !name.is_empty() => Some(connect(&name)?),
                _ => None,
            },
            watchdog: watchdog(
                text("WATCHDOG_USEC").as_deref(),
                text("WATCHDOG_PID").as_deref(),
                process::id(),
            ),
        })
    }

    pub(crate) const fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// Clients are accepted; after [`Self::reloading`], the new settings hold.
    pub(crate) fn ready(&self) {
        self.tell("READY=1\nSTATUS=serving");
    }

    /// Settings are being read again.
    pub(crate) fn reloading(&self) {
        // Tells this message from an older one.
        let now = clock_gettime(ClockId::Monotonic);
        let now_us = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32).as_micros();
        self.tell(&format!(
            "RELOADING=1\nMONOTONIC_USEC={now_us}\nSTATUS=reading its settings again"
        ));
    }

    /// The drain has begun.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=draining: clients are asked to leave");
    }

    /// The process is well. To be said again within [`Self::watchdog`].
    pub(crate) fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    /// After so long without [`Self::alive`] the manager ends the process. None: it does not.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.socket.as_ref().and(self.watchdog)
    }

    fn tell(&self, text: &str) {
        if let Some(socket) = &self.socket {
            // Fails if the manager is gone or does not read.
            let _ = socket.send(text.as_bytes());
        }
    }
}

/// A path, or a name after `@` that is in no directory.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The manager may mean another process, which gave its environment to this one.
fn watchdog(usec: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    let micros = usec?.parse().ok().filter(|micros| *micros > 0)?;
    match pid.map(str::parse::<u32>) {
        Some(Ok(pid)) if pid != own => None,
        _ => Some(Duration::from_micros(micros).max(WATCHDOG_MIN)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(name: &OsStr) -> Manager {
        Manager {
            socket: Some(connect(name).unwrap()),
            watchdog: Some(Duration::from_secs(30)),
        }
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 512];
        let count = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }

    #[test]
    fn the_manager_hears_what_happens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let manager = manager(path.as_os_str());
        manager.ready();
        assert_eq!(heard(&socket).lines().next(), Some("READY=1"));
        manager.reloading();
        let said = heard(&socket);
        let mut lines = said.lines();
        assert_eq!(lines.next(), Some("RELOADING=1"));
        let micros = lines.next().unwrap().strip_prefix("MONOTONIC_USEC=");
        assert!(micros.unwrap().parse::<u64>().unwrap() > 0);
        manager.stopping();
        assert_eq!(heard(&socket).lines().next(), Some("STOPPING=1"));
        manager.alive();
        assert_eq!(heard(&socket), "WATCHDOG=1");
        assert_eq!(manager.watchdog(), Some(Duration::from_secs(30)));
    }

    #[test]
    fn the_socket_may_have_an_abstract_name() {
        let name = format!("portico-test-{}", process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        manager(OsStr::new(&format!("@{name}"))).alive();
        assert_eq!(heard(&socket), "WATCHDOG=1");
    }

    #[test]
    fn a_manager_that_does_not_read_holds_up_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let manager = manager(path.as_os_str());
        // More than any queue of datagrams holds.
        (0..10_000).for_each(|_| manager.alive());
        drop(socket);
        manager.alive();
        assert!(connect(folder.path().join("nobody").as_os_str()).is_err());
    }

    #[test]
    fn nobody_is_told_where_nobody_asked() {
        let manager = Manager {
            socket: None,
            watchdog: Some(Duration::from_secs(30)),
        };
        manager.ready();
        assert_eq!(manager.watchdog(), None);
    }

    #[test]
    fn the_watchdog_is_for_the_process_it_names() {
        let seconds = |count| Some(Duration::from_secs(count));
        assert_eq!(watchdog(Some("30000000"), None, 7), seconds(30));
        assert_eq!(watchdog(Some("30000000"), Some("7"), 7), seconds(30));
        assert_eq!(watchdog(Some("30000000"), Some("8"), 7), None);
        assert_eq!(watchdog(None, Some("7"), 7), None);
        assert_eq!(watchdog(Some("0"), None, 7), None);
        assert_eq!(watchdog(Some("soon"), None, 7), None);
        assert_eq!(watchdog(Some("1"), None, 7), Some(WATCHDOG_MIN));
    }
}
