//! The only reader of time in the driver: once per turn, and around a sleep.

use portico_core::Now;
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::time::{Duration, Instant};

/// Both clocks, now. The monotonic one is the kernel's, so its values mean the same on all shards
/// and in timeouts given to a ring.
pub(crate) fn now() -> Now {
    Now {
        mono_us: micros(clock_gettime(ClockId::Monotonic)),
        wall_us: micros(clock_gettime(ClockId::Realtime)),
    }
}

/// The monotonic clock alone, for measuring within a turn.
pub(super) fn mono_us() -> u64 {
    micros(clock_gettime(ClockId::Monotonic))
}

/// Times of the monotonic clock as the adapters see them. `Instant` runs on the same clock, and is
/// read once for as many as there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    now: Instant,
    now_us: u64,
}

impl Deadlines {
    pub(super) fn from(now: Now) -> Self {
        Self {
            now: Instant::now(),
            now_us: now.mono_us,
        }
    }

    pub(super) fn at(self, at_us: u64) -> Instant {
        self.now + Duration::from_micros(at_us.saturating_sub(self.now_us))
    }
}

/// A clock set to before 1970 counts as 1970.
fn micros(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000) + nanos / 1_000
}
