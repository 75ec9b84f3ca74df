//! A hashed timer wheel of one-second slots, one deadline per connection.
//!
//! Activity does not touch the wheel: when a deadline comes, its owner looks whether it still
//! holds and sets it again if not. Twelve bytes per connection, every operation O(1).

const SLOTS: u32 = 512;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
    /// 0: not in the wheel.
    deadline_s: u32,
}

/// Of each connection.
pub(crate) const LINK_BYTES: usize = size_of::<Link>();

const UNLINKED: Link = Link {
    previous: NONE,
    next: NONE,
    deadline_s: 0,
};

#[derive(Debug)]
pub(crate) struct Wheel {
    heads: Vec<u32>,
    links: Vec<Link>,
    /// Everything up to here has been looked at.
    now_s: u32,
    armed: usize,
}

impl Wheel {
    pub(crate) fn new(connections_hint: usize) -> Self {
        Self {
            heads: vec![NONE; SLOTS as usize],
            links: Vec::with_capacity(connections_hint),
            now_s: 0,
            armed: 0,
        }
    }

    /// Sets the deadline of `index`, replacing any earlier one. A deadline further ahead than the
    /// wheel is wide comes early; one in the past comes at the next second.
    pub(crate) fn set(&mut self, index: u32, deadline_s: u32) {
        if self.links.len() <= index as usize {
            self.links.resize(index as usize + 1, UNLINKED);
        }
        self.cancel(index);
        let deadline_s = deadline_s.clamp(self.now_s + 1, self.now_s + SLOTS - 1);
        let slot = (deadline_s % SLOTS) as usize;
        let next = self.heads[slot];
        self.links[index as usize] = Link {
            previous: NONE,
            next,
            deadline_s,
        };
        if next != NONE {
            self.links[next as usize].previous = index;
        }
        self.heads[slot] = index;
        self.armed += 1;
    }

    pub(crate) fn cancel(&mut self, index: u32) {
        let Some(link) = self.links.get_mut(index as usize) else {
            return;
        };
        if link.deadline_s == 0 {
            return;
        }
        let Link {
            previous,
            next,
            deadline_s,
        } = std::mem::replace(link, UNLINKED);
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        if previous == NONE {
            self.heads[(deadline_s % SLOTS) as usize] = next;
        } else {
            self.links[previous as usize].next = next;
        }
        self.armed -= 1;
    }

    pub(crate) fn is_set(&self, index: u32) -> bool {
        self.links
            .get(index as usize)
            .is_some_and(|link| link.deadline_s != 0)
    }

    /// Takes everything due up to `now_s` out of the wheel.
    pub(crate) fn advance(&mut self, now_s: u32, due: &mut Vec<u32>) {
        if now_s <= self.now_s {
            return;
        }
        if self.armed == 0 {
            self.now_s = now_s;
            return;
        }
        let first = self.now_s.max(now_s.saturating_sub(SLOTS)) + 1;
        for second in first..=now_s {
            let mut index = self.heads[(second % SLOTS) as usize];
            self.heads[(second % SLOTS) as usize] = NONE;
            while index != NONE {
                due.push(index);
                let link = &mut self.links[index as usize];
                index = link.next;
                *link = UNLINKED;
                self.armed -= 1;
            }
        }
        self.now_s = now_s;
    }

    /// The second of the earliest deadline.
    pub(crate) fn next_s(&self) -> Option<u32> {
        if self.armed == 0 {
            return None;
        }
        (self.now_s + 1..self.now_s + SLOTS)
            .find(|second| self.heads[(second % SLOTS) as usize] != NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Step {
        Set(u32, u32),
        Cancel(u32),
        Advance(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..40_u32, 0..700_u32).prop_map(|(index, ahead)| Step::Set(index, ahead)),
            (0..40_u32).prop_map(Step::Cancel),
            (0..700_u32).prop_map(Step::Advance),
        ]
    }

    proptest! {
        /// Against a sorted map: the same deadlines come due, in the same second, once.
        #[test]
        fn behaves_like_a_sorted_map(steps in proptest::collection::vec(step(), 1..80)) {
            let (mut wheel, mut model) = (Wheel::new(0), BTreeMap::new());
            let mut now = 0;
            for step in steps {
                match step {
                    Step::Set(index, ahead) => {
                        wheel.set(index, now + ahead);
                        model.insert(index, (now + ahead).clamp(now + 1, now + SLOTS - 1));
                    }
                    Step::Cancel(index) => {
                        wheel.cancel(index);
                        model.remove(&index);
                    }
                    Step::Advance(seconds) => {
                        now += seconds;
                        let mut due = Vec::new();
                        wheel.advance(now, &mut due);
                        due.sort_unstable();
                        let expected: Vec<u32> = model
                            .iter()
                            .filter(|(_, at)| **at <= now)
                            .map(|(index, _)| *index)
                            .collect();
                        model.retain(|_, at| *at > now);
                        prop_assert_eq!(due, expected);
                    }
                }
                prop_assert_eq!(wheel.next_s(), model.values().min().copied());
            }
        }
    }
}
