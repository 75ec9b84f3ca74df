//! The only source of chance: everything that happens in a run follows from one number.

/// SplitMix64: small, and the same on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
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

    /// Below `end`; 0 if there is nothing below it.
    pub(crate) const fn below(&mut self, end: u64) -> u64 {
        // The bias of a remainder does not matter here.
        if end == 0 { 0 } else { self.next() % end }
    }

    /// From `least` to `most`, both included.
    pub(crate) const fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    pub(crate) const fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    pub(crate) const fn per_mille(&mut self, share: u64) -> bool {
        share > 0 && self.below(1_000) < share
    }

    pub(crate) const fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    pub(crate) const fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// Mostly short, now and then up to `most`: each power of two below it is as likely.
    pub(crate) const fn stretch(&mut self, most: u64) -> u64 {
        let bits = u64::BITS - most.leading_zeros();
        let cut = most >> self.below(bits as u64 + 1);
        self.below(cut + 1)
    }
}
