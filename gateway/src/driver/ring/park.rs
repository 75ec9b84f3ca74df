//! How the shards of a thread are reached while it waits: the doorbell, on which it blocks or sleeps
//! through glommio, and the bell, with which threads outside of the shards wake it.
//!
//! The doorbell is an eventfd, registered with each ring and rung by the kernel for completions, but
//! only while the ring is told to ring: a busy thread looks at its rings anyway. The bell is a pipe,
//! watched *by* a ring with a multishot POLL, so one byte in it ends a block in the ring and, through the
//! doorbell, a sleep in glommio.
//!
//! The bell must not be an eventfd. Where a write to one eventfd completes a request of a ring that
//! signals another, Linux (seen on 6.18) defers the second signal and does so only once in the
//! life of the ring; all later ones are dropped, and the shard sleeps on.

use super::{Ring, RingError};
use glommio::io::BufferedFile;
use rustix::pipe::{PipeFlags, pipe_with};
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
};

/// Wakes a shard from any thread.
#[derive(Debug)]
pub(crate) struct Bell {
    heard: OwnedFd,
    pulled: OwnedFd,
}

impl Bell {
    pub(crate) fn new() -> Result<Self, RingError> {
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (heard, pulled) = pipe_with(flags).map_err(|error| RingError::Create(error.into()))?;
        Ok(Self { heard, pulled })
    }

    /// Never blocks.
    pub(crate) fn ring(&self) {
        // It fails only when the pipe is full of rings that nobody has heard yet.
        let _ = rustix::io::write(&self.pulled, &[1]);
    }

    /// Forgets the rings so far, which have been heard. A ring that comes meanwhile is either
    /// forgotten with them, before its listener looks at its queues, or heard again.
    pub(crate) fn quiet(&self) {
        let mut rings = [0; 64];
        while matches!(rustix::io::read(&self.heard, &mut rings), Ok(count) if count == rings.len())
        {
        }
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.heard.as_raw_fd()
    }
}

/// Where a thread waits for its rings. Lives inside of a glommio executor.
#[derive(Debug)]
pub(crate) struct Doorbell {
    file: BufferedFile,
}

impl Doorbell {
    pub(crate) fn new() -> Result<Self, RingError> {
        let fd = eventfd().map_err(RingError::Create)?;
        // SAFETY: the descriptor is open, and its only owner gives it up here.
        let file = unsafe { BufferedFile::from_raw_fd(fd.into_raw_fd()) };
        Ok(Self { file })
    }

    /// This ring will ring it, once it is told to ([`Ring::set_ringing`]).
    pub(crate) fn install(&self, ring: &mut Ring) -> Result<(), RingError> {
        ring.io
            .submitter()
            .register_eventfd(self.file.as_raw_fd())
            .map_err(|error| RingError::from_register("an eventfd of completions", error))?;
        ring.set_ringing(false);
        Ok(())
    }

    /// Forgets older ringing.
    pub(crate) fn forget(&self) {
        let mut poll = libc::pollfd {
            fd: self.file.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid pollfd, and no waiting.
        if unsafe { libc::poll(&raw mut poll, 1, 0) } == 1 {
            // Readable, so it does not block; only this thread reads.
            let _ = self.block();
        }
    }

    /// Blocks the thread until it rings, or has rung since the last wait.
    pub(crate) fn block(&self) -> io::Result<()> {
        let mut count = [0; 8];
        // SAFETY: the file keeps its descriptor open, and the borrow ends with the call.
        let fd = unsafe { BorrowedFd::borrow_raw(self.file.as_raw_fd()) };
        match rustix::io::read(fd, &mut count) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Sleeps until it rings. glommio runs whatever else it has meanwhile.
    pub(crate) async fn wait(&self) -> io::Result<()> {
        match self.file.read_at(0, 8).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// In blocking mode, because glommio reads it through a ring of its own: a non-blocking one would
/// answer at once.
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
