//! What is due some time after something has happened: an answer that is thought about, a read mark.

use portico_wire::ids::UserId;
use std::{cmp::Reverse, collections::BinaryHeap};

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Task {
    /// The next message of a flow.
    Send { flow: u32, is_answer: bool },
    /// The recipient of a flow marks as read what it has of it.
    Read { flow: u32, author: UserId },
    /// A member comes back into its group.
    Rejoin { group: u32, user: u32 },
}

/// Tasks in the order of their times; those of one time in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Later {
    tasks: BinaryHeap<Reverse<(u64, u64, Task)>>,
    added: u64,
}

impl Later {
    pub(super) fn add(&mut self, due_us: u64, task: Task) {
        self.tasks.push(Reverse((due_us, self.added, task)));
        self.added += 1;
    }

    /// Takes the next task if it is due, with when it was.
    pub(super) fn pop_due(&mut self, now_us: u64) -> Option<(u64, Task)> {
        let Reverse((due_us, _, task)) = *self.tasks.peek()?;
        if due_us > now_us {
            return None;
        }
        self.tasks.pop();
        Some((due_us, task))
    }

    pub(super) fn next_us(&self) -> Option<u64> {
        self.tasks.peek().map(|Reverse((due_us, ..))| *due_us)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_come_in_the_order_of_their_times() {
        let mut later = Later::default();
        let send = |flow| Task::Send {
            flow,
            is_answer: false,
        };
        for (due_us, flow) in [(30, 1), (10, 5), (20, 3), (10, 4)] {
            later.add(due_us, send(flow));
        }
        assert_eq!(later.pop_due(9), None);
        assert_eq!(later.next_us(), Some(10));
        let taken: Vec<_> = std::iter::from_fn(|| later.pop_due(20)).collect();
        assert_eq!(taken, [(10, send(5)), (10, send(4)), (20, send(3))]);
        assert!(!later.is_empty());
    }
}
