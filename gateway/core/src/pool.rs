//! What connections borrow while they are busy, and how a shard gives back what a burst left.
//!
//! Buffers come back to the pool and are lent again. The pool is bounded in bytes, and each second
//! half of what nobody asked for since the last look goes back to the allocator: after a minute of
//! quiet nothing is left, while steady traffic keeps what it uses.

use crate::{
    conn::Traffic,
    shard::{Shard, Turn, share},
};
use rustc_hash::FxHashMap;
use std::{collections::VecDeque, hash::Hash, mem};

/// Kept for reuse, of each kind, by all shards together; and by one shard at least.
const KEPT_BYTES_MAX: usize = 16 << 20;
const KEPT_BYTES_MIN: usize = 1 << 20;
/// What is larger goes back to the allocator at once.
const BUFFER_BYTES_MAX: usize = 16 << 10;
const WINDOW_FRAMES_MAX: usize = 256;
/// Queues of up to so many places are left alone.
const SLACK_MIN: usize = 256;

/// Something that holds memory.
trait Weight {
    fn weight(&self) -> usize;
}

impl Weight for Vec<u8> {
    fn weight(&self) -> usize {
        self.capacity()
    }
}

impl Weight for Box<Traffic> {
    fn weight(&self) -> usize {
        size_of::<Traffic>() + self.window.capacity() * size_of::<crate::conn::InFlight>()
    }
}

/// Things of one kind, the last used first.
#[derive(Debug)]
struct Stock<T> {
    items: Vec<T>,
    bytes: usize,
    bytes_max: usize,
    /// The fewest there were since the last look: so many were not needed.
    unused: usize,
}

impl<T: Weight> Stock<T> {
    const fn new(bytes_max: usize) -> Self {
        Self {
            items: Vec::new(),
            bytes: 0,
            bytes_max,
            unused: 0,
        }
    }

    fn take(&mut self) -> Option<T> {
        let item = self.items.pop()?;
        self.bytes -= item.weight();
        self.unused = self.unused.min(self.items.len());
        Some(item)
    }

    fn put(&mut self, item: T) {
        let bytes = self.bytes + item.weight();
        if bytes <= self.bytes_max {
            self.bytes = bytes;
            self.items.push(item);
        }
    }

    fn trim(&mut self) {
        for item in self.items.drain(..self.unused.div_ceil(2)) {
            self.bytes -= item.weight();
        }
        self.unused = self.items.len();
        self.items.give_back();
    }
}

#[derive(Debug)]
pub(crate) struct Pool {
    buffers: Stock<Vec<u8>>,
    traffic: Stock<Box<Traffic>>,
}

/// Of buffers and of windows together, in one shard of so many.
pub(crate) fn kept_bytes_max(shards: u16) -> usize {
    2 * stock_bytes_max(shards)
}

fn stock_bytes_max(shards: u16) -> usize {
    share(KEPT_BYTES_MAX, shards).max(KEPT_BYTES_MIN)
}

impl Pool {
    /// For one shard of so many.
    pub(crate) fn new(shards: u16) -> Self {
        let bytes_max = stock_bytes_max(shards);
        Self {
            buffers: Stock::new(bytes_max),
            traffic: Stock::new(bytes_max),
        }
    }

    pub(crate) fn take_buffer(&mut self) -> Vec<u8> {
        self.buffers.take().unwrap_or_default()
    }

    pub(crate) fn put_buffer(&mut self, mut buffer: Vec<u8>) {
        if (1..=BUFFER_BYTES_MAX).contains(&buffer.capacity()) {
            buffer.clear();
            self.buffers.put(buffer);
        }
    }

    pub(crate) fn take_traffic(&mut self) -> Box<Traffic> {
        self.traffic.take().unwrap_or_default()
    }

    pub(crate) fn put_traffic(&mut self, mut traffic: Box<Traffic>) {
        self.put_buffer(mem::take(&mut traffic.out));
        if traffic.window.capacity() <= WINDOW_FRAMES_MAX {
            let mut window = mem::take(&mut traffic.window);
            window.clear();
            *traffic = Traffic {
                window,
                ..Traffic::default()
            };
            self.traffic.put(traffic);
        }
    }

    fn trim(&mut self) {
        self.buffers.trim();
        self.traffic.trim();
    }

    #[cfg(feature = "testing")]
    pub(crate) const fn bytes(&self) -> usize {
        self.buffers.bytes + self.traffic.bytes
    }

    fn is_empty(&self) -> bool {
        self.buffers.items.is_empty() && self.traffic.items.is_empty()
    }
}

/// Queues and tables that grow with a burst.
pub(crate) trait GiveBack {
    /// Gives memory back when most of it is not in use.
    fn give_back(&mut self);
}

/// What to shrink to, if it is worth it.
pub(crate) const fn target(len: usize, capacity: usize) -> Option<usize> {
    let needed = if len > SLACK_MIN { len } else { SLACK_MIN };
    if capacity / 4 > needed {
        Some(2 * needed)
    } else {
        None
    }
}

impl<T> GiveBack for Vec<T> {
    fn give_back(&mut self) {
        if let Some(capacity) = target(self.len(), self.capacity()) {
            self.shrink_to(capacity);
        }
    }
}

impl<T> GiveBack for VecDeque<T> {
    fn give_back(&mut self) {
        if let Some(capacity) = target(self.len(), self.capacity()) {
            self.shrink_to(capacity);
        }
    }
}

impl<K: Eq + Hash, V> GiveBack for FxHashMap<K, V> {
    fn give_back(&mut self) {
        if let Some(capacity) = target(self.len(), self.capacity()) {
            self.shrink_to(capacity);
        }
    }
}

impl Shard {
    /// Once a second: what the last burst needed and nobody needs now.
    pub(crate) fn trim(&mut self, cx: &Turn<'_>) {
        if cx.now.mono_s() == self.trimmed_s {
            return;
        }
        self.trimmed_s = cx.now.mono_s();
        self.pool.trim();
        self.bodies.trim();
        self.passing.trim();
        self.absent.trim();
        self.lane.give_back();
        self.due.give_back();
        self.logins.give_back();
        self.limiter.give_back();
        self.reauths.give_back();
        self.attempts.give_back();
        self.gates.give_back();
        self.people.give_back();
        self.presence.give_back();
        self.signals.give_back();
        self.send_deadlines.give_back();
        self.page_retries.give_back();
        self.page_line.give_back();
        self.local.give_back();
        self.in_store.give_back();
        self.outgoing.give_back();
        self.queries.give_back();
        self.groups.give_back();
        self.fan_ins.give_back();
        self.asked.give_back();
        self.listings.give_back();
        if self.frame.capacity() > BUFFER_BYTES_MAX {
            self.frame = Vec::new();
        }
        self.lookups.give_back();
    }

    /// When to look again: while there is something to give back.
    pub(crate) fn next_trim_us(&self) -> Option<u64> {
        (!self.pool.is_empty()).then(|| (u64::from(self.trimmed_s) + 1) * 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_uses_goes_by_halves_and_what_is_used_stays() {
        let mut pool = Pool::new(1);
        for _ in 0..64 {
            pool.put_buffer(Vec::with_capacity(1_024));
        }
        pool.trim();
        assert_eq!(
            pool.buffers.items.len(),
            64,
            "they came since the last look"
        );
        for expected in [34, 19, 11, 7] {
            // Four at a time are in use.
            let lent: Vec<_> = (0..4).map(|_| pool.take_buffer()).collect();
            assert!(lent.iter().all(|buffer| buffer.capacity() == 1_024));
            lent.into_iter().for_each(|buffer| pool.put_buffer(buffer));
            pool.trim();
            assert_eq!(pool.buffers.items.len(), expected);
            assert_eq!(pool.buffers.bytes, expected * 1_024);
        }
        for _ in 0..20 {
            pool.trim();
        }
        assert!(pool.is_empty() && pool.buffers.bytes == 0);
    }

    #[test]
    fn the_pool_is_bounded_in_bytes_and_takes_nothing_large() {
        let mut pool = Pool::new(200);
        for _ in 0..1_000 {
            pool.put_buffer(Vec::with_capacity(BUFFER_BYTES_MAX));
            let window = VecDeque::with_capacity(WINDOW_FRAMES_MAX / 2);
            pool.put_traffic(Box::new(Traffic {
                window,
                ..Traffic::default()
            }));
        }
        assert!(pool.buffers.bytes <= KEPT_BYTES_MIN);
        assert!(pool.traffic.bytes <= KEPT_BYTES_MIN);
        let before = pool.buffers.items.len();
        assert_eq!(before, KEPT_BYTES_MIN / BUFFER_BYTES_MAX);
        pool.take_buffer();
        pool.put_buffer(Vec::with_capacity(BUFFER_BYTES_MAX + 1));
        pool.put_buffer(Vec::new());
        assert_eq!(pool.buffers.items.len(), before - 1);
    }

    #[test]
    fn a_queue_shrinks_when_three_quarters_of_it_are_empty() {
        let mut queue: VecDeque<u64> = (0..10_000).collect();
        queue.give_back();
        assert!(queue.capacity() >= 10_000);
        queue.drain(..9_900);
        queue.give_back();
        assert!(queue.capacity() < 1_024);
        let mut small = VecDeque::<u64>::with_capacity(SLACK_MIN * 2);
        small.give_back();
        assert!(small.capacity() >= SLACK_MIN * 2);
    }
}
