//! The two eventfds of a shard: the doorbell, on which it sleeps through glommio, and the bell,
//! with which threads outside of the shards wake it.
//!
//! The doorbell is registered with the ring and rung by the kernel for each completion, but only
//! while it is enabled: a busy shard looks at its ring anyway. The bell is watched *by* the ring with
//! a multishot POLL, so one write to it ends a block in the ring and, through the doorbell, a
//! sleep in glommio. It is never read: the counter has room for 2^64 - 2 rings.

use super::{Ring, RingError};
use glommio::io::BufferedFile;
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
};

/// Wakes a shard from any thread.
#[derive(Debug)]
pub(crate) struct Bell(OwnedFd);

impl Bell {
    pub(crate) fn new() -> Result<Self, RingError> {
        eventfd().map(Self).map_err(RingError::Create)
    }

    /// Cannot block: the counter would have to be full.
    pub(crate) fn ring(&self) {
        // An eventfd takes exactly eight bytes. It fails only when the counter is full, and then
        // the bell has been rung.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Where a shard sleeps. Lives inside of a glommio executor.
#[derive(Debug)]
pub(crate) struct Doorbell {
    file: BufferedFile,
}

impl Doorbell {
    /// Registers a new doorbell, disabled.
    pub(crate) fn install(ring: &mut Ring) -> Result<Self, RingError> {
        let fd = eventfd().map_err(RingError::Create)?;
        ring.io
            .submitter()
            .register_eventfd(fd.as_raw_fd())
            .map_err(|error| RingError::from_register("an eventfd of completions", error))?;
        ring.io.completion().disable_eventfd();
        // SAFETY: the descriptor is open, and its only owner gives it up here.
        let file = unsafe { BufferedFile::from_raw_fd(fd.into_raw_fd()) };
        Ok(Self { file })
    }

    /// From here on each completion rings. Forgets older ringing.
    pub(crate) fn enable(&self, ring: &mut Ring) {
        ring.io.completion().enable_eventfd();
        let mut poll = libc::pollfd {
            fd: self.file.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid pollfd, and no waiting.
        if unsafe { libc::poll(&raw mut poll, 1, 0) } == 1 {
            let mut count = [0; 8];
            // SAFETY: the file keeps its descriptor open, and the borrow ends with the call.
            let fd = unsafe { BorrowedFd::borrow_raw(self.file.as_raw_fd()) };
            // Readable, so it does not block; only this thread reads.
            let _ = rustix::io::read(fd, &mut count);
        }
    }

    pub(crate) fn disable(&self, ring: &mut Ring) {
        ring.io.completion().disable_eventfd();
    }

    /// Sleeps until it rings. glommio runs whatever else it has meanwhile.
    pub(crate) async fn wait(&self) -> io::Result<()> {
        match self.file.read_at(0, 8).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Blocking, because glommio reads it through a ring of its own: a non-blocking one would answer
/// at once.
fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers; the descriptor is new and ours.
    unsafe {
        let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}
