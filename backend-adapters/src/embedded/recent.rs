//! Rows that were written or read lately, so that merging with them needs no look into the tree.
//!
//! Two generations: what is used goes to the young one, and when that is full it becomes the old
//! one, and the old one is forgotten. So a row that is used again before as many others were is
//! still there, at the cost of a look-up or two, and nothing is kept in order.

use rustc_hash::FxHashMap;
use std::hash::Hash;
use std::mem;

#[derive(Debug)]
pub(super) struct Recent<K, V> {
    young: FxHashMap<K, V>,
    old: FxHashMap<K, V>,
    /// Rows of a generation. At least 1.
    rows_max: usize,
}

impl<K: Copy + Eq + Hash, V: Copy> Recent<K, V> {
    pub(super) fn new(rows_max: usize) -> Self {
        Self {
            young: FxHashMap::default(),
            old: FxHashMap::default(),
            rows_max: rows_max.max(1),
        }
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        self.young.get(key).or_else(|| self.old.get(key)).copied()
    }

    pub(super) fn put(&mut self, key: K, value: V) {
        if self.young.len() >= self.rows_max && !self.young.contains_key(&key) {
            mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_is_forgotten() {
        let mut recent = Recent::new(4);
        for key in 0..100 {
            recent.put(0, key);
            recent.put(key + 1, key);
            assert_eq!(
                recent.get(&0),
                Some(key),
                "the newest value, in every generation"
            );
            assert_eq!(recent.get(&(key + 1)), Some(key));
            assert!(recent.young.len() <= 4 && recent.old.len() <= 4);
        }
        assert_eq!(recent.get(&50), None);
        // As many others as a generation holds do not push a row out.
        recent.put(200, 7);
        for key in 300..304 {
            recent.put(key, 0);
        }
        assert_eq!(recent.get(&200), Some(7));
    }
}
