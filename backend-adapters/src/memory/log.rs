//! A list in the order of its numbers, which nearly always come in that order.

use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct Log<K, V>(VecDeque<(K, V)>);

impl<K, V> Default for Log<K, V> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<K: Ord + Copy, V> Log<K, V> {
    /// Puts a value in its place; one of the same number is replaced.
    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.0.back().is_none_or(|(last, _)| *last < key) {
            return self.0.push_back((key, value));
        }
        match self.0.binary_search_by_key(&key, |(key, _)| *key) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (key, value)),
        }
    }

    pub(super) fn get(&self, key: K) -> Option<&V> {
        let at = self.0.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        Some(&self.0[at].1)
    }

    /// From `first` on, ascending.
    pub(super) fn from(&self, first: K) -> impl Iterator<Item = &(K, V)> {
        let at = self.0.partition_point(|(key, _)| *key < first);
        self.0.range(at..)
    }

    /// Below `end`, descending.
    pub(super) fn before(&self, end: K) -> impl Iterator<Item = &(K, V)> {
        let at = self.0.partition_point(|(key, _)| *key < end);
        self.0.range(..at).rev()
    }

    /// Forgets what is below `first`.
    pub(super) fn expire(&mut self, first: K) {
        let at = self.0.partition_point(|(key, _)| *key < first);
        self.0.drain(..at);
        if self.0.capacity() / 4 > self.0.len() {
            self.0.shrink_to_fit();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_come_late_or_twice_find_their_place() {
        let mut log = Log::default();
        for (key, value) in [(5, 'a'), (9, 'b'), (7, 'c'), (9, 'd'), (1, 'e')] {
            log.insert(key, value);
        }
        let from = |first| log.from(first).copied().collect::<Vec<_>>();
        assert_eq!(from(0), [(1, 'e'), (5, 'a'), (7, 'c'), (9, 'd')]);
        assert_eq!(from(6), [(7, 'c'), (9, 'd')]);
        let before: Vec<_> = log.before(7).copied().collect();
        assert_eq!(before, [(5, 'a'), (1, 'e')]);
        assert_eq!((log.get(7), log.get(8)), (Some(&'c'), None));
        log.expire(7);
        assert!(log.get(5).is_none() && log.get(7).is_some());
        log.expire(100);
        assert!(log.is_empty());
    }
}
