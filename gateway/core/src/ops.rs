//! Work in flight, named by tokens that are never used twice.

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
}

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Tokens<T> {
    pub(crate) fn insert(&mut self, value: T) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                value: None,
            });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        debug_assert!(slot.value.is_none());
        slot.value = Some(value);
        u64::from(slot.generation) << 32 | u64::from(index)
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

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
