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

/// A time of the monotonic clock as the adapters see it. `Instant` runs on the same clock.
pub(super) fn instant(now: Now, at_us: u64) -> Instant {
    Instant::now() + Duration::from_micros(at_us.saturating_sub(now.mono_us))
}

/// A clock set to before 1970 counts as 1970.
fn micros(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000) + nanos / 1_000
}
