//! A timer wheel for many owners, each of which has at most one timer.
//!
//! A heap would cost an entry per heartbeat and a search per change. Here a timer is three 4-byte
//! numbers in a circular list, and setting, moving and removing one take the same few steps however
//! many there are.
//!
//! Two levels of 256 lists: the first holds the next 256 ticks, one list each; the second what lies
//! up to 256 turns of the first ahead. Whatever is later waits in the farthest list of the second
//! level and is looked at again when that one comes up.
//!
//! # Invariants
//! - A timer fires at its tick or after it, never before.
//! - The bit of a list is set exactly when the list is not empty.

/// Length of a tick. Acknowledgements are due after 250 ms and heartbeats after many seconds, so
/// nothing here needs a finer one.
const TICK_US: u64 = 8_192;
/// Lists per level.
const LISTS: usize = 256;
/// Lists of both levels; owner `n` has node `HEADS + n`.
const HEADS: usize = 2 * LISTS;

#[derive(Clone, Copy, Debug)]
struct Node {
    next: u32,
    prev: u32,
    /// When it fires. Counts ticks since the wheel's start: enough for more than a year.
    tick: u32,
}

/// The wheel. Times are microseconds of any monotonic clock that starts near 0.
#[derive(Debug)]
pub(super) struct Wheel {
    /// First the heads of the lists, then one node per owner.
    nodes: Vec<Node>,
    /// Which lists hold something.
    occupied: [u64; HEADS / 64],
    /// Every timer up to this tick has fired.
    now: u32,
}

impl Wheel {
    /// What each owner costs.
    pub(super) const OWNER_BYTES: usize = size_of::<Node>();

    pub(super) fn with_capacity(owners: usize) -> Self {
        let mut nodes = Vec::with_capacity(HEADS + owners);
        nodes.extend((0..HEADS as u32).map(unlinked));
        Self {
            nodes,
            occupied: [0; HEADS / 64],
            now: 0,
        }
    }

    /// Makes room for one more owner: the number after the last.
    pub(super) fn add_owner(&mut self) {
        let node = self.nodes.len() as u32;
        self.nodes.push(unlinked(node));
    }

    /// Sets or moves the timer of `owner`.
    pub(super) fn set(&mut self, owner: u32, at_us: u64) {
        let node = HEADS as u32 + owner;
        self.unlink(node);
        let tick = at_us.div_ceil(TICK_US).min(u64::from(u32::MAX)) as u32;
        // What is already due fires with the next tick: the lists of the past are not visited.
        self.nodes[node as usize].tick = tick.max(self.now + 1);
        self.link(node);
    }

    /// When the timer of `owner` will fire, rounded up to a tick.
    pub(super) fn get(&self, owner: u32) -> Option<u64> {
        let node = HEADS as u32 + owner;
        let entry = self.nodes[node as usize];
        (entry.next != node).then(|| u64::from(entry.tick) * TICK_US)
    }

    pub(super) fn clear(&mut self, owner: u32) {
        self.unlink(HEADS as u32 + owner);
    }

    /// The time at which [`Self::advance`] has something to do: no timer fires before it.
    pub(super) fn next_us(&self) -> Option<u64> {
        let near = self.next_occupied(0, self.now).map(u64::from);
        let far = self
            .next_occupied(LISTS, self.now / LISTS as u32)
            .map(|turn| u64::from(turn) * LISTS as u64);
        let tick = match (near, far) {
            (Some(near), Some(far)) => near.min(far),
            (one, other) => one.or(other)?,
        };
        Some(tick * TICK_US)
    }

    /// Moves the wheel to `now_us` and appends the owners whose timers are due.
    pub(super) fn advance(&mut self, now_us: u64, due: &mut Vec<u32>) {
        let target = (now_us / TICK_US).min(u64::from(u32::MAX) - 1) as u32;
        while self.now < target {
            if self.occupied == [0; HEADS / 64] {
                self.now = target;
                break;
            }
            self.now += 1;
            if self.now.is_multiple_of(LISTS as u32) {
                self.cascade();
            }
            let head = self.now % LISTS as u32;
            while let Some(node) = self.first(head) {
                self.unlink(node);
                due.push(node - HEADS as u32);
            }
        }
    }

    /// Spreads the list of the second level that has come up over the first.
    fn cascade(&mut self) {
        let head = (LISTS + (self.now as usize / LISTS) % LISTS) as u32;
        // The farthest timers may land in the list that is being emptied, so it is cut off whole.
        let Some(first) = self.first(head) else {
            return;
        };
        let last = self.nodes[head as usize].prev;
        self.nodes[head as usize] = unlinked(head);
        self.mark_empty(head);
        let mut node = first;
        loop {
            let next = self.nodes[node as usize].next;
            self.link(node);
            if node == last {
                break;
            }
            node = next;
        }
    }

    /// The first tick (or turn) after `from` whose list holds something, within one round.
    fn next_occupied(&self, base: usize, from: u32) -> Option<u32> {
        const WORDS: usize = LISTS / 64;
        let start = (from as usize + 1) % LISTS;
        let below_start = (1_u64 << (start % 64)) - 1;
        // The word of `start` is looked at twice: from there on first, what lies below it last.
        (0..=WORDS).find_map(|step| {
            let word = (start / 64 + step) % WORDS;
            let bits = match (step, self.occupied[base / 64 + word]) {
                (0, bits) => bits & !below_start,
                (WORDS, bits) => bits & below_start,
                (_, bits) => bits,
            };
            if bits == 0 {
                return None;
            }
            let list = word * 64 + bits.trailing_zeros() as usize;
            let ahead = (list + LISTS - start) % LISTS;
            Some(from.saturating_add(1 + ahead as u32))
        })
    }

    fn first(&self, head: u32) -> Option<u32> {
        let next = self.nodes[head as usize].next;
        (next != head).then_some(next)
    }

    /// Puts a node, unlinked or about to be overwritten, at the end of the list of its tick.
    fn link(&mut self, node: u32) {
        let tick = self.nodes[node as usize].tick;
        let lists = LISTS as u32;
        let head = if tick - self.now < lists {
            tick % lists
        } else {
            let turn = (tick / lists).min(self.now / lists + lists - 1);
            lists + turn % lists
        };
        let last = self.nodes[head as usize].prev;
        self.nodes[last as usize].next = node;
        self.nodes[node as usize].prev = last;
        self.nodes[node as usize].next = head;
        self.nodes[head as usize].prev = node;
        self.occupied[head as usize / 64] |= 1 << (head % 64);
    }

    fn unlink(&mut self, node: u32) {
        let Node { next, prev, .. } = self.nodes[node as usize];
        self.nodes[prev as usize].next = next;
        self.nodes[next as usize].prev = prev;
        self.nodes[node as usize].next = node;
        self.nodes[node as usize].prev = node;
        if next == prev && (next as usize) < HEADS {
            self.mark_empty(next);
        }
    }

    fn mark_empty(&mut self, head: u32) {
        self.occupied[head as usize / 64] &= !(1 << (head % 64));
    }
}

/// A node in no list, or the head of an empty one.
const fn unlinked(node: u32) -> Node {
    Node {
        next: node,
        prev: node,
        tick: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fired(wheel: &mut Wheel, now_us: u64) -> Vec<u32> {
        let mut due = Vec::new();
        wheel.advance(now_us, &mut due);
        due
    }

    #[test]
    fn a_moved_timer_fires_once_at_its_new_time() {
        let mut wheel = Wheel::with_capacity(1);
        wheel.add_owner();
        wheel.set(0, 10 * TICK_US);
        wheel.set(0, 5_000 * TICK_US);
        assert_eq!(fired(&mut wheel, 4_999 * TICK_US), []);
        assert_eq!(fired(&mut wheel, 5_000 * TICK_US), [0]);
        assert_eq!(fired(&mut wheel, 90_000 * TICK_US), []);
        assert_eq!(wheel.get(0), None);
    }

    #[test]
    fn an_overdue_timer_fires_with_the_next_tick() {
        let mut wheel = Wheel::with_capacity(1);
        wheel.add_owner();
        assert_eq!(fired(&mut wheel, 700 * TICK_US), []);
        wheel.set(0, 3);
        assert_eq!(wheel.next_us(), Some(701 * TICK_US));
        assert_eq!(fired(&mut wheel, 701 * TICK_US), [0]);
    }

    #[test]
    fn a_cleared_timer_does_not_fire() {
        let mut wheel = Wheel::with_capacity(2);
        wheel.add_owner();
        wheel.add_owner();
        wheel.set(0, 4 * TICK_US);
        wheel.set(1, 4 * TICK_US);
        wheel.clear(0);
        assert_eq!(fired(&mut wheel, 4 * TICK_US), [1]);
        assert_eq!(wheel.next_us(), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(u32, u64),
        Clear(u32),
        Advance(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Beyond both levels, within them, and at the edges of a tick.
        let ahead = prop_oneof![0..3 * TICK_US, 0..600 * TICK_US, 0..200_000 * TICK_US];
        prop_oneof![
            (0..8_u32, ahead.clone()).prop_map(|(owner, us)| Step::Set(owner, us)),
            (0..8_u32).prop_map(Step::Clear),
            ahead.prop_map(Step::Advance),
        ]
    }

    proptest! {
        /// Against a list of deadlines: the same owners fire in the same step, and the wheel never
        /// sleeps past one.
        #[test]
        fn it_agrees_with_a_plain_list(steps in prop::collection::vec(step(), 1..80)) {
            let mut wheel = Wheel::with_capacity(8);
            (0..8).for_each(|_| wheel.add_owner());
            let mut model: [Option<u64>; 8] = [None; 8];
            let mut now_us = 0;
            for step in steps {
                match step {
                    Step::Set(owner, ahead_us) => {
                        let at = now_us + ahead_us;
                        wheel.set(owner, at);
                        let tick = at.div_ceil(TICK_US).max(now_us / TICK_US + 1);
                        model[owner as usize] = Some(tick * TICK_US);
                    }
                    Step::Clear(owner) => {
                        wheel.clear(owner);
                        model[owner as usize] = None;
                    }
                    Step::Advance(by_us) => {
                        now_us += by_us;
                        let mut got = fired(&mut wheel, now_us);
                        got.sort_unstable();
                        let mut expected = Vec::new();
                        for (owner, at) in model.iter_mut().enumerate() {
                            if at.is_some_and(|at| at <= now_us) {
                                *at = None;
                                expected.push(owner as u32);
                            }
                        }
                        prop_assert_eq!(got, expected);
                    }
                }
                let earliest = model.iter().flatten().min().copied();
                match (wheel.next_us(), earliest) {
                    (Some(next), Some(at)) => prop_assert!(next <= at),
                    (next, at) => prop_assert_eq!(next, at),
                }
                for (owner, at) in model.iter().enumerate() {
                    prop_assert_eq!(wheel.get(owner as u32), *at);
                }
            }
        }
    }
}
