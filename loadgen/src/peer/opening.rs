//! Who has which sockets, and how a socket is opened.

use super::{PeerOpening, dialect::Topic};
use crate::fleet::Audience;
use portico_client::many::loopback_sources;
use portico_wire::ids::UserId;
use rustix::event::epoll;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::Duration,
};

/// The topics of a worker's users.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cast {
    first_user: u64,
    users: u32,
    members: Option<u32>,
}

impl Cast {
    pub(super) const fn new(opening: &PeerOpening) -> Self {
        Self {
            first_user: opening.first_user,
            users: opening.users,
            members: opening.members,
        }
    }

    pub(super) const fn user(&self, conn: u32) -> UserId {
        UserId(self.first_user + conn as u64)
    }

    pub(super) fn topic(&self, to: Audience) -> Topic {
        match to {
            Audience::User(user) => Topic::User(user.0),
            // Groups that a gateway keeps are Portico's alone; the plan has been checked.
            Audience::Crowd(number) | Audience::Group(number) => {
                let unit = self.members.unwrap_or(0) + 1;
                Topic::Group(self.user(number * unit).0)
            }
        }
    }

    pub(super) fn hears(&self, conn: u32) -> Option<Topic> {
        match self.members {
            None => Some(Topic::User(self.user(conn).0)),
            Some(members) => {
                let unit = members + 1;
                let is_member = !conn.is_multiple_of(unit);
                is_member.then(|| self.topic(Audience::Group(conn / unit)))
            }
        }
    }

    /// Where everything goes that a user sends: to its group, or to its pair. Only a system that
    /// fixes this at login looks at it.
    pub(super) fn speaks_to(&self, conn: u32) -> Option<Topic> {
        match self.members {
            None => {
                let pair = conn ^ 1;
                // The last of an odd number has no pair and writes to the first.
                let pair = if pair < self.users { pair } else { 0 };
                Some(Topic::User(self.user(pair).0))
            }
            Some(members) => {
                let unit = members + 1;
                let is_sender = conn.is_multiple_of(unit);
                is_sender.then(|| self.topic(Audience::Group(conn / unit)))
            }
        }
    }
}

/// Local addresses for `lines` sockets after `before` others, or none where the system can choose by
/// itself. A quarter of an address's ports is planned for: the kernel chooses them, and searches
/// long once half of them are taken.
pub(super) fn sources(
    opening: &PeerOpening,
    before: usize,
    lines: usize,
) -> io::Result<Vec<IpAddr>> {
    let wanted = 2 * (before + lines);
    loopback_sources(opening.target, wanted, opening.ports_per_source).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            format!(
                "{} connections to {} need more local ports than there are \
                 (net.ipv4.ip_local_port_range)",
                before + lines,
                opening.target
            ),
        )
    })
}

/// Begins to connect. The socket is in `epoll` under `data`, edge-triggered.
pub(super) fn open_socket(
    target: SocketAddr,
    source: Option<IpAddr>,
    epoll: &OwnedFd,
    data: u64,
) -> io::Result<TcpStream> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(target), kind, Some(Protocol::TCP))?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    let in_progress = Some(rustix::io::Errno::INPROGRESS.raw_os_error());
    match socket.connect(&target.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == in_progress => {}
        Err(error) => return Err(error),
    }
    // Packets are gathered by the driver; waiting in the kernel as well would only add delay.
    socket.set_tcp_nodelay(true)?;
    let flags = epoll::EventFlags::IN
        | epoll::EventFlags::OUT
        | epoll::EventFlags::RDHUP
        | epoll::EventFlags::ET;
    epoll::add(epoll, &socket, epoll::EventData::new_u64(data), flags)?;
    Ok(socket.into())
}

/// The end will be a reset, after which neither side's kernel remembers anything.
pub(super) fn reset_at_close(socket: &TcpStream) {
    // Without it the end is a gentle one, which is still an end.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}
