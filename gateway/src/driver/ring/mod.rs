//! The private ring of a shard: a safe face over io_uring, and the only hand-written `unsafe` of the
//! gateway.
//!
//! # Why it is sound
//! The kernel works with memory of this process after a call has returned. Three kinds are lent to
//! it, and each is owned by the [`Ring`] while it is lent:
//! - *Receive buffers* ([`provided`]): two maps that live as long as the ring. A filled one is
//!   handed out as a [`Lent`], which can be neither copied nor made elsewhere; the kernel gets the
//!   buffer again only when that value is given back.
//! - *Send buffers*: [`Ring::send`] takes the buffer and keeps it, one per connection, until the
//!   completion returns it. Nobody can change or free it meanwhile.
//! - *Addresses* of those who connect ([`names`]): a box per ACCEPT in flight, which is neither freed
//!   nor used again before its completion has been taken.
//! - *Times* of timeouts: a box of the ring. The kernel copies them when the request is submitted.
//!
//! Everything else in a request is a number (a descriptor, a slot, a flag) that the kernel checks.
//! Only [`request`] builds requests, so this list is complete.
//!
//! *Dropping* a ring first cancels and collects whatever is in flight. If that does not come to an
//! end in time, the memory is leaked: the kernel may still write to it, and a leak is harmless.
//!
//! *Threads*: a ring belongs to the thread that made it (SINGLE_ISSUER) and is not `Send`. Other
//! threads reach it with a [`RingHandle`], through their own rings, and with a [`Bell`].
//!
//! # Invariants
//! - `in_flight` counts the requests whose last completion has not been taken.
//! - One SEND per connection is in flight, at most.
//! - With DEFER_TASKRUN completions appear only when the owner enters the kernel.
//!
//! # Does not
//! Know connections: a [`Key`] is two numbers here.

#![allow(unsafe_code)]

mod completion;
mod names;
mod park;
mod probe;
mod provided;
mod request;
mod token;

#[cfg(test)]
mod tests;

pub(crate) use completion::{Completion, Errno, Events, Lent, Slot};
pub(crate) use park::{Bell, Doorbell};
pub(crate) use probe::locked_bytes;
pub use probe::{Features, ProbeError, memlock_needed, probe_kernel};
pub(crate) use request::{AcceptMode, Door, ReadMode};
pub(crate) use token::{Key, Op};

use io_uring::{EnterFlags, IoUring, cqueue, squeue, types};
use names::Names;
use provided::Provided;
use rustc_hash::FxHashMap;
use std::{
    collections::VecDeque,
    fmt, io,
    marker::PhantomData,
    mem::ManuallyDrop,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
    thread,
    time::{Duration, Instant},
};

/// How large a ring is. Its locked memory follows from it: [`memlock_needed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingSizes {
    /// Entries of the submission queue, a power of two.
    pub submissions: u32,
    /// Entries of the completion queue, a power of two and at least `submissions`.
    pub completions: u32,
    /// Receive buffers, a power of two up to 32,768.
    pub buffers: u16,
    /// Size of one receive buffer.
    pub buffer_bytes: u32,
}

impl Default for RingSizes {
    fn default() -> Self {
        Self {
            submissions: 1_024,
            completions: 16_384,
            buffers: 1_024,
            buffer_bytes: 2_048,
        }
    }
}

/// Why a ring cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RingError {
    #[error("cannot create an io_uring: {0}")]
    Create(#[source] io::Error),
    #[error("not enough lockable memory for an io_uring: raise RLIMIT_MEMLOCK (ulimit -l)")]
    Memlock,
    #[error("{slots} direct descriptors are more than RLIMIT_NOFILE (ulimit -n) allows")]
    Slots { slots: u32 },
    #[error("the kernel does not offer {what}: {error}")]
    Register {
        what: &'static str,
        #[source]
        error: io::Error,
    },
    #[error("the number or size of {0} must be a power of two above 0")]
    BadSize(&'static str),
    #[error("io_uring_enter failed: {0}")]
    Enter(#[source] io::Error),
}

impl RingError {
    fn from_register(what: &'static str, error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOMEM) => Self::Memlock,
            _ => Self::Register { what, error },
        }
    }
}

/// Memory of an earlier process may be given back late: creation is tried this often.
const CREATE_ATTEMPTS: u32 = 10;
const CREATE_PAUSE: Duration = Duration::from_millis(50);
/// How long dropping waits for the last completions.
const QUIESCE_MAX: Duration = Duration::from_secs(1);
const QUIESCE_STEP: Duration = Duration::from_millis(20);

/// What is lent to the kernel.
struct Memory {
    provided: Provided,
    /// By the index of the connection: those with a SEND in flight, which are few.
    sends: FxHashMap<u32, Vec<u8>>,
    names: Names,
    times: Box<Times>,
}

#[derive(Default)]
struct Times {
    tick: types::Timespec,
    deadline: types::Timespec,
}

/// See the module's head.
pub(crate) struct Ring {
    io: ManuallyDrop<IoUring>,
    memory: ManuallyDrop<Memory>,
    /// Requests that found the submission queue full, in order.
    backlog: VecDeque<squeue::Entry>,
    /// Completions taken from the kernel and not yet handed out.
    batch: VecDeque<cqueue::Entry>,
    in_flight: usize,
    /// The period of the armed tick.
    tick: Option<Duration>,
    /// The time of the armed deadline, in microseconds of the monotonic clock.
    deadline_us: Option<u64>,
    /// A ring stays on its thread.
    not_send: PhantomData<*const ()>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("in_flight", &self.in_flight)
            .field("backlog", &self.backlog.len())
            .finish_non_exhaustive()
    }
}

/// Names a ring to other rings. The descriptor is a duplicate, so that its number means this ring
/// for as long as anybody can use it.
#[derive(Debug)]
pub(crate) struct RingHandle(OwnedFd);

impl Ring {
    /// On the thread that will use it. `slots` is the size of the table of direct descriptors.
    pub(crate) fn new(sizes: &RingSizes, slots: u32) -> Result<Self, RingError> {
        let io = create(sizes)?;
        io.submitter()
            .register_files_sparse(slots)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EMFILE) => RingError::Slots { slots },
                _ => RingError::from_register("a table of direct descriptors", error),
            })?;
        let provided = Provided::register(&io, sizes.buffers, sizes.buffer_bytes)?;
        Ok(Self {
            io: ManuallyDrop::new(io),
            memory: ManuallyDrop::new(Memory {
                provided,
                sends: FxHashMap::default(),
                names: Names::default(),
                times: Box::default(),
            }),
            backlog: VecDeque::new(),
            batch: VecDeque::new(),
            in_flight: 0,
            tick: None,
            deadline_us: None,
            not_send: PhantomData,
        })
    }

    pub(crate) fn handle(&self) -> Result<RingHandle, RingError> {
        // SAFETY: the descriptor is open for as long as `self.io` lives, and the borrow ends here.
        let fd = unsafe { BorrowedFd::borrow_raw(self.io.as_raw_fd()) };
        let duplicate = fd.try_clone_to_owned().map_err(RingError::Create)?;
        Ok(RingHandle(duplicate))
    }

    /// Puts an open descriptor into the table as well. Sockets come in by accept; this is for the
    /// probe and for tests.
    fn insert(&mut self, fd: RawFd, slot: Slot) -> Result<(), RingError> {
        self.io
            .submitter()
            .register_files_update(slot.0, &[fd])
            .map(drop)
            .map_err(|error| RingError::from_register("an update of direct descriptors", error))
    }

    /// Submits, and blocks until a completion is there.
    pub(crate) fn submit_and_wait(&mut self) -> Result<(), RingError> {
        if !self.batch.is_empty() {
            return self.submit_and_reap();
        }
        self.fill();
        tolerate(self.io.submit_and_wait(1))
    }

    /// Submits and runs deferred work, without blocking.
    pub(crate) fn submit_and_reap(&mut self) -> Result<(), RingError> {
        self.fill();
        let pending = self.io.submission().len();
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is passed, and every submitted entry was built by `request`.
        let entered = unsafe {
            self.io
                .submitter()
                .enter::<libc::sigset_t>(pending as u32, 0, flags, None)
        };
        tolerate(entered)
    }

    /// Is there anything that an entry into the kernel, or a look at the completions, would bring on?
    pub(crate) fn has_news(&mut self) -> bool {
        self.has_completions() || !self.backlog.is_empty() || {
            let submissions = self.io.submission();
            // Completions that found the queue full are put into it when the kernel is entered.
            !submissions.is_empty() || submissions.taskrun() || submissions.cq_overflow()
        }
    }

    /// Shall completions ring the doorbell?
    pub(crate) fn set_ringing(&mut self, rings: bool) {
        let completions = self.io.completion();
        if rings {
            completions.enable_eventfd();
        } else {
            completions.disable_eventfd();
        }
    }

    /// Are completions there to be taken?
    pub(crate) fn has_completions(&mut self) -> bool {
        !self.batch.is_empty() || !self.io.completion().is_empty()
    }

    /// The next completion, if the kernel has shown one.
    pub(crate) fn next_completion(&mut self) -> Option<Completion> {
        if self.batch.is_empty() {
            self.batch.extend(self.io.completion());
        }
        let entry = self.batch.pop_front()?;
        Some(self.decode(&entry))
    }

    /// The received bytes, until the buffer is given back.
    pub(crate) fn bytes(&self, lent: &Lent) -> &[u8] {
        self.memory.provided.bytes(lent)
    }

    /// The same, to be deciphered where they lie.
    pub(crate) fn bytes_mut(&mut self, lent: &Lent) -> &mut [u8] {
        self.memory.provided.bytes_mut(lent)
    }

    pub(crate) fn give_back(&mut self, lent: Lent) {
        self.memory.provided.give_back(lent);
    }

    /// Gives back what a burst has left in lists, down to so many entries each.
    pub(crate) fn trim(&mut self, entries: usize) {
        self.memory.sends.shrink_to(entries);
        self.backlog.shrink_to(entries);
        self.batch.shrink_to(entries);
    }

    /// Shows the buffers given back to the kernel.
    pub(crate) fn publish_buffers(&mut self) {
        self.memory.provided.publish();
    }

    pub(crate) fn buffer_bytes(&self) -> usize {
        self.memory.provided.size()
    }

    pub(crate) fn buffer_count(&self) -> usize {
        usize::from(self.memory.provided.count())
    }

    /// Cancels everything and collects what comes back. True if nothing is left in flight.
    pub(crate) fn quiesce(&mut self, at_most: Duration) -> bool {
        let until = Instant::now() + at_most;
        while self.in_flight > 0 && Instant::now() < until {
            self.cancel_all();
            self.fill();
            let step = types::Timespec::from(QUIESCE_STEP);
            let arguments = types::SubmitArgs::new().timespec(&step);
            let entered = self.io.submitter().submit_with_args(1, &arguments);
            if tolerate(entered).is_err() {
                break;
            }
            while let Some(completion) = self.next_completion() {
                if let Completion::Received {
                    lent: Some(lent), ..
                } = completion
                {
                    self.give_back(lent);
                }
            }
        }
        self.in_flight == 0
    }

    /// Moves the backlog into the submission queue. What the kernel does not take now, it takes at
    /// the next entry.
    fn fill(&mut self) {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: entries come from `request` alone; what they point to is owned by
            // `self.memory` until the completion has been taken.
            if unsafe { self.io.submission().push(entry) }.is_ok() {
                self.backlog.pop_front();
            } else if !matches!(self.io.submit(), Ok(taken) if taken > 0) {
                return;
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if !self.quiesce(QUIESCE_MAX) {
            tracing::warn!(
                in_flight = self.in_flight,
                "a ring is left to the kernel with requests in flight"
            );
            return;
        }
        // The handles of other shards may keep the ring alive; its sockets close now.
        let _ = self.io.submitter().unregister_files();
        // SAFETY: neither field is used after this, and no request is in flight, so the kernel does
        // not touch the memory any more. The ring goes first.
        unsafe {
            ManuallyDrop::drop(&mut self.io);
            ManuallyDrop::drop(&mut self.memory);
        }
    }
}

fn create(sizes: &RingSizes) -> Result<IoUring, RingError> {
    let valid = sizes.submissions.is_power_of_two()
        && sizes.completions.is_power_of_two()
        && sizes.completions >= sizes.submissions;
    if !valid {
        return Err(RingError::BadSize("ring entries"));
    }
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(sizes.completions);
    let mut attempt = 1;
    loop {
        match builder.build(sizes.submissions) {
            Ok(io) => return Ok(io),
            Err(error) if error.raw_os_error() != Some(libc::ENOMEM) => {
                return Err(RingError::Create(error));
            }
            Err(_) if attempt == CREATE_ATTEMPTS => return Err(RingError::Memlock),
            Err(_) => {
                attempt += 1;
                thread::sleep(CREATE_PAUSE);
            }
        }
    }
}

/// A signal, a timeout, and a completion queue that wants to be emptied first are no failures.
fn tolerate(entered: io::Result<usize>) -> Result<(), RingError> {
    match entered {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(RingError::Enter(error)),
        },
    }
}
