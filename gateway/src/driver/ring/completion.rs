//! Completions as a closed enum of what happened.

use super::{
    request::{AcceptMode, Door},
    token::Key,
};
use std::{fmt, net::IpAddr};

/// A negative result of the kernel, as its positive number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

impl Errno {
    pub(crate) const AGAIN: Self = Self(libc::EAGAIN);
    pub(crate) const CANCELED: Self = Self(libc::ECANCELED);
    pub(crate) const INTR: Self = Self(libc::EINTR);
    pub(crate) const NOBUFS: Self = Self(libc::ENOBUFS);
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

/// A place in a ring's table of direct descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(pub(crate) u32);

/// What a POLL saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Events(pub(super) i32);

impl Events {
    /// The peer ended its stream, or the connection failed.
    pub(crate) const fn hung_up(self) -> bool {
        self.0 & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) as i32 != 0
    }
}

/// Received bytes in a buffer that the ring has lent: seen with [`super::Ring::bytes`], and given
/// back with [`super::Ring::give_back`], whatever became of the connection.
#[derive(Debug)]
#[must_use = "a buffer that is not given back is lost to the ring"]
pub(crate) struct Lent {
    pub(super) buffer: u16,
    /// Skipped at its start.
    pub(super) from: u32,
    pub(super) len: u32,
}

impl Lent {
    pub(crate) const fn len(&self) -> usize {
        self.len as usize
    }

    /// Leaves out so many bytes at the start, or all of them.
    pub(crate) fn skip(&mut self, bytes: usize) {
        let skipped = bytes.min(self.len()) as u32;
        self.from += skipped;
        self.len -= skipped;
    }
}

/// One completion. `last`: the request has ended; without it a multishot request goes on.
#[derive(Debug)]
#[must_use]
pub(crate) enum Completion {
    Accepted {
        mode: AcceptMode,
        door: Door,
        result: Result<Slot, Errno>,
        /// Of single ones.
        from: Option<IpAddr>,
        last: bool,
    },
    Polled {
        key: Key,
        result: Result<Events, Errno>,
        last: bool,
    },
    /// `lent` is `None` at the end of the stream, on errors, and never with bytes. `more`: the
    /// socket held further bytes when these were taken.
    Received {
        key: Key,
        result: Result<usize, Errno>,
        lent: Option<Lent>,
        more: bool,
        last: bool,
    },
    /// The kernel no longer reads from `buffer`.
    Sent {
        key: Key,
        result: Result<usize, Errno>,
        buffer: Vec<u8>,
    },
    /// The socket now also sits in this slot of the *other* ring's table.
    HandedOver {
        key: Key,
        result: Result<Slot, Errno>,
    },
    /// The slot is free, also after an error.
    Closed {
        key: Key,
    },
    /// Another shard has something for this one.
    Woken,
    /// A thread outside of the shards has. After the `last` the bell is not watched any more.
    Rung {
        last: bool,
    },
    Tick {
        last: bool,
    },
    Deadline,
    /// Of no interest, or not ours.
    Nothing,
}
