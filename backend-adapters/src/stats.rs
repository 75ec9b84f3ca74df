//! Counters of a backend, for the metrics page.

/// Upper bounds of the commit histogram, in microseconds. The last bucket has none.
pub const COMMIT_BOUNDS_US: [u64; 15] = [
    100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 5_000_000, 30_000_000,
];

/// A snapshot. Everything but the last three counts up from the opening of the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Durable steps, each of which carried one or more commands.
    pub commits: u64,
    /// Writes that succeeded.
    pub writes: u64,
    /// What those writes were worth in messages ([`Family::weight`](crate::Family::weight)).
    pub messages: u64,
    /// Bytes of those writes ([`Family::bytes`](crate::Family::bytes)).
    pub bytes: u64,
    /// Time spent in commits: the sum, the longest, and how many took at most how long
    /// ([`COMMIT_BOUNDS_US`]; not cumulative).
    pub commit_us_sum: u64,
    pub commit_us_max: u64,
    pub commit_us_buckets: [u64; COMMIT_BOUNDS_US.len() + 1],
    /// Reads that succeeded, and the time spent in all reads.
    pub reads: u64,
    pub read_us_sum: u64,
    /// Commands answered with an error, expired ones included.
    pub failed: u64,
    /// Commands whose deadline passed before their turn.
    pub expired: u64,
    /// Batches given back.
    pub rejected: u64,
    /// Commands taken and not yet answered, and the bytes of the writes among them.
    pub writes_in_flight: u64,
    pub reads_in_flight: u64,
    pub bytes_in_flight: u64,
}

impl Stats {
    /// The counters of two lives of a backend, one after the other. The levels are those of the
    /// later one.
    #[must_use]
    pub fn followed_by(&self, later: &Self) -> Self {
        let mut commit_us_buckets = later.commit_us_buckets;
        for (sum, bucket) in commit_us_buckets.iter_mut().zip(self.commit_us_buckets) {
            *sum += bucket;
        }
        Self {
            commits: self.commits + later.commits,
            writes: self.writes + later.writes,
            messages: self.messages + later.messages,
            bytes: self.bytes + later.bytes,
            commit_us_sum: self.commit_us_sum + later.commit_us_sum,
            commit_us_max: self.commit_us_max.max(later.commit_us_max),
            commit_us_buckets,
            reads: self.reads + later.reads,
            read_us_sum: self.read_us_sum + later.read_us_sum,
            failed: self.failed + later.failed,
            expired: self.expired + later.expired,
            rejected: self.rejected + later.rejected,
            writes_in_flight: later.writes_in_flight,
            reads_in_flight: later.reads_in_flight,
            bytes_in_flight: later.bytes_in_flight,
        }
    }
}
