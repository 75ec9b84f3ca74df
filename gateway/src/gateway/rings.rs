//! How large the rings of a gateway's shards are, where that is left to the gateway.

use crate::driver::RingSizes;

/// Shards per CPU from which on rings are small.
const SHARDS_PER_CPU_LARGE_MAX: usize = 2;

/// Of many shards on a CPU one runs at a time, and what the others lock, and have in the caches, is
/// paid for all the same. Receive buffers are used in turn, so that all of them become resident.
/// Few shards get the sizes of [`RingSizes::default`].
const SMALL_SUBMISSIONS: u32 = 256;
const SMALL_COMPLETIONS: u32 = 4_096;
const SMALL_BUFFERS: u16 = 256;

impl RingSizes {
    /// What [`RingSizes::resolve`] replaces: a size that follows from the numbers of shards and CPUs.
    pub const AUTO: u32 = 0;

    /// Everything left to the gateway.
    #[must_use]
    pub fn auto() -> Self {
        Self {
            submissions: Self::AUTO,
            completions: Self::AUTO,
            buffers: Self::AUTO as u16,
            ..Self::default()
        }
    }

    /// The sizes with which `shards` start on `cpus`. Sizes that were set stay as they are, and the
    /// two queues, of which the completions may not be the shorter, are fitted to each other.
    #[must_use]
    pub fn resolve(&self, shards: usize, cpus: usize) -> Self {
        let large = shards <= cpus.max(1).saturating_mul(SHARDS_PER_CPU_LARGE_MAX);
        let auto = if large {
            Self::default()
        } else {
            Self {
                submissions: SMALL_SUBMISSIONS,
                completions: SMALL_COMPLETIONS,
                buffers: SMALL_BUFFERS,
                ..Self::default()
            }
        };
        let (submissions, completions) = match (self.submissions, self.completions) {
            (Self::AUTO, Self::AUTO) => (auto.submissions, auto.completions),
            (Self::AUTO, completions) => (auto.submissions.min(completions), completions),
            (submissions, Self::AUTO) => (submissions, auto.completions.max(submissions)),
            set => set,
        };
        let buffers = if u32::from(self.buffers) == Self::AUTO {
            auto.buffers
        } else {
            self.buffers
        };
        Self {
            submissions,
            completions,
            buffers,
            buffer_bytes: self.buffer_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(sizes: &RingSizes) -> (u32, u32, u16) {
        (sizes.submissions, sizes.completions, sizes.buffers)
    }

    #[test]
    fn rings_are_small_above_two_shards_per_cpu() {
        for (shards, cpus, expected) in [
            (1, 1, (1_024, 16_384, 1_024)),
            (2, 1, (1_024, 16_384, 1_024)),
            (3, 1, (256, 4_096, 256)),
            (4, 2, (1_024, 16_384, 1_024)),
            (5, 2, (256, 4_096, 256)),
            (52, 2, (256, 4_096, 256)),
            (52, 32, (1_024, 16_384, 1_024)),
            // Nobody knows the CPUs: one is there.
            (2, 0, (1_024, 16_384, 1_024)),
            (3, 0, (256, 4_096, 256)),
        ] {
            let sizes = RingSizes::auto().resolve(shards, cpus);
            assert_eq!(numbers(&sizes), expected, "{shards} shards on {cpus} CPUs");
            assert_eq!(sizes.resolve(shards, cpus), sizes, "there is nothing left");
        }
    }

    #[test]
    fn what_was_set_stays() {
        let set = RingSizes {
            submissions: 64,
            completions: 256,
            buffers: 8,
            buffer_bytes: 512,
        };
        assert_eq!(set.resolve(1, 1), set);
        assert_eq!(set.resolve(100, 1), set);
        let buffers = RingSizes {
            buffers: 64,
            buffer_bytes: 4_096,
            ..RingSizes::auto()
        };
        let resolved = buffers.resolve(100, 1);
        assert_eq!(numbers(&resolved), (256, 4_096, 64));
        assert_eq!(resolved.buffer_bytes, 4_096);
    }

    #[test]
    fn a_queue_left_open_fits_the_one_that_was_set() {
        let resolve = |submissions, completions| {
            let sizes = RingSizes {
                submissions,
                completions,
                ..RingSizes::auto()
            };
            let RingSizes {
                submissions,
                completions,
                ..
            } = sizes.resolve(100, 1);
            (submissions, completions)
        };
        assert_eq!(resolve(64, 0), (64, 4_096));
        assert_eq!(resolve(32_768, 0), (32_768, 32_768));
        assert_eq!(resolve(0, 65_536), (256, 65_536));
        assert_eq!(resolve(0, 128), (128, 128));
    }
}
