//! A list in the order of its numbers, which nearly always come in that order.

/// Items of a chunk: so few that a short list stays small, so many that a long one is mostly items.
const CHUNK_MIN: usize = 4;
const CHUNK_MAX: usize = 64;

/// Chunks that never move, each of which is full before the next begins: a list that grew in one
/// piece would copy all it has again and again.
#[derive(Debug)]
pub(super) struct Log<K, V> {
    chunks: Vec<Vec<(K, V)>>,
}

impl<K, V> Default for Log<K, V> {
    fn default() -> Self {
        Self { chunks: Vec::new() }
    }
}

impl<K: Ord + Copy, V> Log<K, V> {
    /// Puts a value in its place; one of the same number is replaced.
    pub(super) fn insert(&mut self, key: K, value: V) {
        let last = self.chunks.last().and_then(|chunk| chunk.last());
        if last.is_none_or(|(last, _)| *last < key) {
            return self.append(key, value);
        }
        let at = self.chunk_of(key).unwrap_or(0);
        let chunk = &mut self.chunks[at];
        match chunk.binary_search_by_key(&key, |(key, _)| *key) {
            Ok(at) => chunk[at].1 = value,
            Err(at) => chunk.insert(at, (key, value)),
        }
    }

    fn append(&mut self, key: K, value: V) {
        match self.chunks.last_mut() {
            Some(chunk) if chunk.len() < chunk.capacity() => chunk.push((key, value)),
            last => {
                let items = last.map_or(CHUNK_MIN, |chunk| 2 * chunk.len());
                let mut chunk = Vec::with_capacity(items.clamp(CHUNK_MIN, CHUNK_MAX));
                chunk.push((key, value));
                self.chunks.push(chunk);
            }
        }
    }

    /// The chunk that holds this number or would: the last that begins with it or below.
    fn chunk_of(&self, key: K) -> Option<usize> {
        let begins = |chunk: &Vec<(K, V)>| chunk.first().is_some_and(|(first, _)| *first <= key);
        self.chunks.partition_point(begins).checked_sub(1)
    }

    pub(super) fn get(&self, key: K) -> Option<&V> {
        let chunk = &self.chunks[self.chunk_of(key)?];
        let at = chunk.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        Some(&chunk[at].1)
    }

    pub(super) fn get_mut(&mut self, key: K) -> Option<&mut V> {
        let chunk = self.chunk_of(key)?;
        let chunk = &mut self.chunks[chunk];
        let at = chunk.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        Some(&mut chunk[at].1)
    }

    /// From `first` on, ascending.
    pub(super) fn from(&self, first: K) -> impl Iterator<Item = &(K, V)> {
        let chunk = self.chunk_of(first).unwrap_or(0);
        let items = self.chunks[chunk..].iter().flatten();
        items.skip_while(move |(key, _)| *key < first)
    }

    /// Below `end`, descending.
    pub(super) fn before(&self, end: K) -> impl Iterator<Item = &(K, V)> {
        let chunks = self.chunk_of(end).map_or(0, |chunk| chunk + 1);
        let items = self.chunks[..chunks].iter().rev();
        let items = items.flat_map(|chunk| chunk.iter().rev());
        items.skip_while(move |(key, _)| *key >= end)
    }

    /// Forgets what is below `first`.
    pub(super) fn expire(&mut self, first: K) {
        for chunk in &mut self.chunks {
            let at = chunk.partition_point(|(key, _)| *key < first);
            chunk.drain(..at);
            if !chunk.is_empty() {
                break;
            }
        }
        self.chunks.retain(|chunk| !chunk.is_empty());
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

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

    #[test]
    fn it_is_an_ordered_map() {
        let (mut log, mut map) = (Log::default(), BTreeMap::new());
        let mut number = 1_u64;
        for step in 0..5_000_u64 {
            number = number
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            // Mostly ascending, sometimes far back.
            let key = match number >> 61 {
                0 => (number >> 33) % (step + 1) * 10,
                _ => step * 10,
            };
            log.insert(key, step);
            map.insert(key, step);
            let probe = (number >> 40) % (step * 10 + 1);
            assert_eq!(log.get(probe), map.get(&probe));
            assert!(
                log.from(probe)
                    .take(5)
                    .map(|(k, v)| (k, v))
                    .eq(map.range(probe..).take(5))
            );
            let older = map.range(..probe).rev().take(5);
            assert!(log.before(probe).take(5).map(|(k, v)| (k, v)).eq(older));
            if step % 1_000 == 999 {
                log.expire(probe);
                map = map.split_off(&probe);
                assert!(log.from(0).map(|(k, v)| (k, v)).eq(map.iter()));
            }
        }
    }
}
