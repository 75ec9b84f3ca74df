//! What the kernel must offer, found out by doing it, and how much memory it will lock.

use super::super::executor;
use super::{AcceptMode, Completion, Door, Key, ReadMode, Ring, RingError, RingSizes, Slot};
use std::{
    fs,
    io::{self, Write},
    os::fd::{AsFd, AsRawFd},
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

/// What was found. Everything listed in [`ProbeError::Missing`] is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// As the kernel names itself, for example `6.12.9`.
    pub kernel: String,
    /// Older kernels than this work from 6.6 on, and are tested less.
    pub recommended: bool,
}

/// Why this machine cannot serve. Each is a sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    #[error(
        "io_uring is disabled on this machine: set the sysctl kernel.io_uring_disabled to 0 \
         (it is {0})"
    )]
    Disabled(String),
    #[error(
        "io_uring is forbidden to this process: allow io_uring_setup, io_uring_enter and \
         io_uring_register in the container's seccomp profile"
    )]
    Forbidden,
    #[error("the kernel ({kernel}) has no io_uring: Linux 6.6 or newer is needed")]
    NoRing { kernel: String },
    #[error(
        "not enough lockable memory for a small io_uring: raise RLIMIT_MEMLOCK (ulimit -l, \
         LimitMEMLOCK=)"
    )]
    Memlock,
    #[error("the kernel ({kernel}) lacks {what}: Linux 6.6 or newer is needed")]
    Missing { kernel: String, what: &'static str },
    #[error("probing io_uring failed: {0}")]
    Other(String),
}

const SIZES: RingSizes = RingSizes {
    submissions: 8,
    completions: 16,
    buffers: 8,
    buffer_bytes: 256,
};
const SLOTS: u32 = 8;
const PATIENCE: Duration = Duration::from_secs(5);
const RECOMMENDED: (u32, u32) = (6, 12);

/// Tries each unusual thing that a shard does once, on small rings and a thread of its own.
///
/// # Errors
/// [`ProbeError`], with a sentence that says what is missing and what to do.
pub fn probe_kernel() -> Result<Features, ProbeError> {
    let probing = thread::Builder::new()
        .name("portico-probe".to_owned())
        .spawn(probe)
        .map_err(|error| ProbeError::Other(error.to_string()))?;
    match probing.join() {
        Ok(result) => result,
        Err(_) => Err(ProbeError::Other("the probe panicked".to_owned())),
    }
}

/// Bytes of memory that `shards` on `cpus` lock: their rings, and what glommio needs for each thread,
/// of which there is one per CPU. Counts against RLIMIT_MEMLOCK unless the process has CAP_IPC_LOCK.
#[must_use]
pub fn memlock_needed(shards: usize, cpus: usize, sizes: &RingSizes) -> u64 {
    let threads = shards.min(cpus.max(1));
    shards as u64 * locked_bytes(sizes) + threads as u64 * executor::LOCKED_BYTES
}

/// What the ring of a shard locks.
pub(crate) fn locked_bytes(sizes: &RingSizes) -> u64 {
    const PAGE: u64 = 4_096;
    const COMPLETION: u64 = 16;
    const SUBMISSION: u64 = 64 + 4;
    const BUFFER: u64 = 16;
    let own = u64::from(sizes.completions) * COMPLETION
        + u64::from(sizes.submissions) * SUBMISSION
        + u64::from(sizes.buffers) * BUFFER;
    // Each of the areas starts on a page and ends within one.
    own + 4 * PAGE
}

fn probe() -> Result<Features, ProbeError> {
    let kernel = kernel_release();
    let missing = |what| ProbeError::Missing {
        kernel: kernel.clone(),
        what,
    };
    let mut source = Ring::new(&SIZES, SLOTS).map_err(|error| explain(error, &kernel))?;
    let mut target = Ring::new(&SIZES, SLOTS).map_err(|error| explain(error, &kernel))?;
    let (ours, mut theirs) = UnixStream::pair().map_err(|error| other(&error))?;

    // A tick that repeats.
    source.arm_tick(Duration::from_millis(1));
    for _ in 0..2 {
        let tick = wait_for(&mut source, |completion| match completion {
            Completion::Tick { last } => Some(!last),
            _ => None,
        })?;
        if tick != Some(true) {
            return Err(missing("multishot timeouts"));
        }
    }
    source.disarm_tick();

    // A socket from one ring's table to the other's, and bytes through it.
    let handle = target.handle().map_err(|error| explain(error, &kernel))?;
    let from = Slot(0);
    source
        .insert(ours.as_raw_fd(), from)
        .map_err(|error| explain(error, &kernel))?;
    source.hand_over(Key::NONE, from, &handle);
    let arrived = wait_for(&mut source, |completion| match completion {
        Completion::HandedOver { result, .. } => Some(result.ok()),
        _ => None,
    })?;
    let Some(Some(slot)) = arrived else {
        return Err(missing("sending descriptors between rings"));
    };
    theirs.write_all(b"probe").map_err(|error| other(&error))?;
    target.recv(Key::NONE, slot, ReadMode::Waiting);
    let received = receive(&mut target)?;
    if received.as_deref() != Some(b"probe".as_slice()) {
        return Err(missing("rings of receive buffers"));
    }

    // Connections accepted straight into the table, one after the other.
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).map_err(|error| other(&error))?;
    let address = listener.local_addr().map_err(|error| other(&error))?;
    source.accept(listener.as_fd(), AcceptMode::Multishot, Door::Plain);
    source
        .submit_and_reap()
        .map_err(|error| explain(error, &kernel))?;
    for _ in 0..2 {
        let _client = std::net::TcpStream::connect(address).map_err(|error| other(&error))?;
        let accepted = wait_for(&mut source, |completion| match completion {
            Completion::Accepted { result, last, .. } => Some(result.is_ok() && !last),
            _ => None,
        })?;
        if accepted != Some(true) {
            return Err(missing("multishot accept into direct descriptors"));
        }
    }
    Ok(Features {
        recommended: version(&kernel) >= RECOMMENDED,
        kernel,
    })
}

/// The first completion that `wanted` recognizes; `None` if none comes in time.
fn wait_for<T>(
    ring: &mut Ring,
    mut wanted: impl FnMut(&Completion) -> Option<T>,
) -> Result<Option<T>, ProbeError> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        ring.submit_and_reap()
            .map_err(|error| ProbeError::Other(error.to_string()))?;
        while let Some(completion) = ring.next_completion() {
            if let Some(found) = wanted(&completion) {
                return Ok(Some(found));
            }
        }
        thread::sleep(Duration::from_micros(200));
    }
    Ok(None)
}

fn receive(ring: &mut Ring) -> Result<Option<Vec<u8>>, ProbeError> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        ring.submit_and_reap()
            .map_err(|error| ProbeError::Other(error.to_string()))?;
        while let Some(completion) = ring.next_completion() {
            if let Completion::Received { lent, .. } = completion {
                let bytes = lent.as_ref().map(|lent| ring.bytes(lent).to_vec());
                if let Some(lent) = lent {
                    ring.give_back(lent);
                }
                return Ok(bytes);
            }
        }
        thread::sleep(Duration::from_micros(200));
    }
    Ok(None)
}

fn explain(error: RingError, kernel: &str) -> ProbeError {
    match error {
        RingError::Create(error) => match error.raw_os_error() {
            Some(libc::ENOSYS) => ProbeError::NoRing {
                kernel: kernel.to_owned(),
            },
            Some(libc::EPERM | libc::EACCES) => match disabled() {
                Some(value) => ProbeError::Disabled(value),
                None => ProbeError::Forbidden,
            },
            Some(libc::EINVAL) => ProbeError::Missing {
                kernel: kernel.to_owned(),
                what: "io_uring with deferred task work",
            },
            _ => other(&error),
        },
        RingError::Memlock => ProbeError::Memlock,
        RingError::Register { what, .. } => ProbeError::Missing {
            kernel: kernel.to_owned(),
            what,
        },
        RingError::Slots { .. } | RingError::BadSize(_) | RingError::Enter(_) => {
            ProbeError::Other(error.to_string())
        }
    }
}

fn other(error: &io::Error) -> ProbeError {
    ProbeError::Other(error.to_string())
}

/// The value of the sysctl, if it forbids anything.
fn disabled() -> Option<String> {
    let value = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    let value = value.trim();
    (value != "0").then(|| value.to_owned())
}

fn kernel_release() -> String {
    match fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(release) => release.trim().to_owned(),
        Err(_) => "unknown".to_owned(),
    }
}

/// Major and minor number of a release such as `6.12.9-arch1`.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_serve() {
        let features = probe_kernel().expect("the tests need what the gateway needs");
        assert!(version(&features.kernel) >= (6, 6));
    }

    #[test]
    fn releases_are_read_as_far_as_they_go() {
        assert_eq!(version("6.12.9-arch1"), (6, 12));
        assert_eq!(version("6.6-rc3"), (6, 6));
        assert_eq!(version("unknown"), (0, 0));
        assert!(version("6.9") < RECOMMENDED && version("10.0") > RECOMMENDED);
    }

    #[test]
    fn locked_memory_grows_with_shards_and_sizes() {
        let small = RingSizes {
            submissions: 256,
            completions: 4_096,
            buffers: 512,
            buffer_bytes: 2_048,
        };
        let large = RingSizes::default();
        let one = memlock_needed(1, 1, &large);
        assert_eq!(memlock_needed(0, 2, &large), 0);
        assert_eq!(memlock_needed(6, 6, &large), 6 * one);
        assert_eq!(memlock_needed(1, 6, &large), one, "the others stay idle");
        assert_eq!(
            memlock_needed(6, 2, &large),
            6 * one - 4 * executor::LOCKED_BYTES,
            "shards share threads"
        );
        let saved = 12_288 * 16 + 768 * 68 + 512 * 16;
        assert_eq!(
            one - memlock_needed(1, 1, &small),
            saved,
            "glommio's share does not depend on the ring"
        );
    }
}
