//! What a completion belongs to, in the 64 bits that the kernel carries for us.
//!
//! `op:8 | generation:24 | index:32`. This file is the only place that packs and unpacks them.

/// The kind of a request. The numbers never leave this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Op {
    /// Nobody waits for the answer: a cancel, or a wake that could not be delivered.
    Ignore,
    Accept,
    Poll,
    Recv,
    Send,
    Close,
    HandOver,
    /// Posted into this ring by another shard.
    Wake,
    /// The eventfd that threads outside of the shards write.
    Bell,
    Tick,
    Deadline,
}

impl Op {
    const ALL: [Self; 11] = [
        Self::Ignore,
        Self::Accept,
        Self::Poll,
        Self::Recv,
        Self::Send,
        Self::Close,
        Self::HandOver,
        Self::Wake,
        Self::Bell,
        Self::Tick,
        Self::Deadline,
    ];

    const fn from_u8(op: u8) -> Option<Self> {
        if (op as usize) < Self::ALL.len() {
            Some(Self::ALL[op as usize])
        } else {
            None
        }
    }
}

const GENERATION_BITS: u32 = 24;
const GENERATION_MASK: u32 = (1 << GENERATION_BITS) - 1;

/// An entry of the driver's connection table, at one of its uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) index: u32,
    /// 24 bits, never 0 for a connection.
    pub(crate) generation: u32,
}

impl Key {
    /// For requests that belong to no connection.
    pub(crate) const NONE: Self = Self {
        index: 0,
        generation: 0,
    };

    pub(crate) const fn new(index: u32, generation: u32) -> Self {
        Self { index, generation }
    }

    /// For requests that are told apart by a number of 24 bits.
    pub(crate) const fn with_generation(self, generation: u32) -> Self {
        Self { generation, ..self }
    }

    /// The generation after this one: 24 bits, and 0 is left out.
    pub(crate) const fn next_generation(generation: u32) -> u32 {
        generation % GENERATION_MASK + 1
    }
}

/// Packs a request's identity into user_data.
pub(super) const fn pack(op: Op, key: Key) -> u64 {
    (op as u64) << 56 | ((key.generation & GENERATION_MASK) as u64) << 32 | key.index as u64
}

/// The inverse; `None` for what no request of ours carries.
pub(super) const fn unpack(user_data: u64) -> Option<(Op, Key)> {
    match Op::from_u8((user_data >> 56) as u8) {
        Some(op) => {
            let generation = (user_data >> 32) as u32 & GENERATION_MASK;
            Some((op, Key::new(user_data as u32, generation)))
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_survives_the_trip() {
        for (number, op) in Op::ALL.into_iter().enumerate() {
            assert_eq!(op as usize, number);
            let key = Key::new(u32::MAX - number as u32, GENERATION_MASK - number as u32);
            assert_eq!(unpack(pack(op, key)), Some((op, key)));
        }
        assert_eq!(unpack((Op::ALL.len() as u64) << 56), None);
        assert_eq!(unpack(u64::MAX), None);
    }

    #[test]
    fn generations_wrap_past_zero() {
        assert_eq!(Key::next_generation(0), 1);
        assert_eq!(Key::next_generation(GENERATION_MASK - 1), GENERATION_MASK);
        assert_eq!(Key::next_generation(GENERATION_MASK), 1);
    }
}
