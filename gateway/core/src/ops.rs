//! Work in flight, named by tokens that are never used twice.

use crate::pool::{GiveBack, target};
use std::mem;

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// A slab whose tokens carry a generation: a late answer finds nothing instead of somebody else.
#[derive(Debug)]
pub(crate) struct Tokens<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    /// Where the generations of new slots begin: beyond those of all slots given back.
    first_generation: u32,
}

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            first_generation: 0,
        }
    }
}

impl<T> Tokens<T> {
    pub(crate) fn insert(&mut self, value: T) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: self.first_generation,
                value: None,
            });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        debug_assert!(slot.value.is_none());
        slot.value = Some(value);
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    pub(crate) fn get(&self, token: u64) -> Option<&T> {
        let slot = self.slots.get(token as u32 as usize)?;
        if slot.generation != (token >> 32) as u32 {
            return None;
        }
        slot.value.as_ref()
    }

    pub(crate) fn get_mut(&mut self, token: u64) -> Option<&mut T> {
        let slot = self.slots.get_mut(token as u32 as usize)?;
        if slot.generation != (token >> 32) as u32 {
            return None;
        }
        slot.value.as_mut()
    }

    pub(crate) fn remove(&mut self, token: u64) -> Option<T> {
        let value = mem::take(self.value_of(token)?);
        let slot = &mut self.slots[token as u32 as usize];
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(token as u32);
        value
    }

    fn value_of(&mut self, token: u64) -> Option<&mut Option<T>> {
        let slot = self.slots.get_mut(token as u32 as usize)?;
        let same = slot.generation == (token >> 32) as u32 && slot.value.is_some();
        same.then_some(&mut slot.value)
    }

    #[cfg(feature = "testing")]
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.value.as_ref())
    }

    /// The token of some value like this. Looks at all: for the few of which there are few.
    pub(crate) fn find(&self, like: impl Fn(&T) -> bool) -> Option<u64> {
        let found = |slot: &Slot<T>| slot.value.as_ref().is_some_and(&like);
        let index = self.slots.iter().position(found)?;
        Some(u64::from(self.slots[index].generation) << 32 | index as u64)
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

impl<T> GiveBack for Tokens<T> {
    /// Slots at the end that are free go; what is in use keeps its place.
    fn give_back(&mut self) {
        let Some(kept) = target(self.len(), self.slots.capacity()) else {
            return;
        };
        while self.slots.len() > kept
            && let Some(Slot {
                generation,
                value: None,
            }) = self.slots.last()
        {
            self.first_generation = self.first_generation.max(*generation);
            self.slots.pop();
        }
        let end = self.slots.len() as u32;
        self.free.retain(|index| *index < end);
        // The lowest are used first, so that those at the end become free.
        self.free.sort_unstable_by(|a, b| b.cmp(a));
        self.free.give_back();
        self.slots.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_that_are_given_back_take_their_tokens_with_them() {
        let mut tokens = Tokens::default();
        let all: Vec<u64> = (0..10_000).map(|number| tokens.insert(number)).collect();
        let kept = all[700];
        for (number, token) in all.iter().enumerate() {
            if *token != kept {
                assert_eq!(tokens.remove(*token), Some(number));
            }
        }
        tokens.give_back();
        assert!(tokens.slots.capacity() < 2_000);
        assert_eq!((tokens.len(), tokens.get_mut(kept)), (1, Some(&mut 700)));
        let again: Vec<u64> = (0..10_000).map(|number| tokens.insert(number)).collect();
        assert_eq!(again[0] as u32, 0, "the lowest are used first");
        for token in &all {
            let is = tokens.get_mut(*token).is_some();
            assert_eq!(is, *token == kept);
            assert!(*token == kept || !again.contains(token));
        }
        assert_eq!(tokens.len(), 10_001);
    }

    #[test]
    fn a_token_dies_with_its_value() {
        let mut tokens = Tokens::default();
        let a = tokens.insert('a');
        assert_eq!(tokens.remove(a), Some('a'));
        let b = tokens.insert('b');
        assert_eq!(b as u32, a as u32, "the slot is used again");
        assert_eq!(tokens.remove(a), None);
        assert_eq!(tokens.get_mut(a), None);
        assert_eq!(tokens.get_mut(b), Some(&mut 'b'));
        assert_eq!(tokens.len(), 1);
        assert_eq!(tokens.remove(u64::MAX), None);
    }
}
