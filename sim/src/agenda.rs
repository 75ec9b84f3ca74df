//! What happens next: a queue in the order of virtual time, and of entry within one moment.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

#[derive(Debug)]
struct Item<E> {
    at_us: u64,
    serial: u64,
    event: E,
}

impl<E> PartialEq for Item<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Item<E> {}

impl<E> PartialOrd for Item<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Item<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at_us, self.serial).cmp(&(other.at_us, other.serial))
    }
}

/// Times are microseconds of the virtual clock that never steps.
#[derive(Debug)]
pub(crate) struct Agenda<E> {
    items: BinaryHeap<Reverse<Item<E>>>,
    serial: u64,
}

impl<E> Agenda<E> {
    pub(crate) fn new() -> Self {
        Self {
            items: BinaryHeap::with_capacity(256),
            serial: 0,
        }
    }

    pub(crate) fn add(&mut self, at_us: u64, event: E) {
        self.serial += 1;
        self.items.push(Reverse(Item {
            at_us,
            serial: self.serial,
            event,
        }));
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, E)> {
        let Reverse(item) = self.items.pop()?;
        Some((item.at_us, item.event))
    }
}
