//! Choices that vary from run to run and can be repeated.

use std::{
    env,
    time::{SystemTime, UNIX_EPOCH},
};

const SEED_VARIABLE: &str = "PORTICO_E2E_SEED";

/// SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// From `PORTICO_E2E_SEED`, or else from the clock; either way it is printed, which the test
    /// runner shows when the test fails.
    pub(crate) fn announced(test: &str) -> Self {
        let seed = match env::var(SEED_VARIABLE) {
            Ok(text) => text.parse().expect("PORTICO_E2E_SEED is a number"),
            Err(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(1, |now| now.as_nanos() as u64),
        };
        println!("{test}: repeat with {SEED_VARIABLE}={seed}");
        Self(seed)
    }

    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Below `end`, which is not 0.
    pub(crate) const fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}
