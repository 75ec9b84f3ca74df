//! Buffers for bytes that were received and cannot be handled yet: incomplete frames, and what
//! follows a frame that takes its time. Only a connection that has such bytes holds one.
//!
//! A shard has a budget for them. A connection that would exceed it, and holds more than its fair
//! part already, is ended: an incomplete frame cannot be refused politely, and waiting for it is
//! what an attacker would want.

/// Buffers kept for reuse; larger ones go back to the allocator.
const POOLED_MAX: usize = 64;
const POOLED_BYTES_MAX: usize = 16 << 10;
/// All of them.
pub(super) const KEPT_BYTES_MAX: usize = POOLED_MAX * POOLED_BYTES_MAX;
/// What a connection may hold even when the budget is used up: any frame before WELCOME, and one
/// receive buffer after it.
pub(super) const FAIR_BYTES: usize = 8 << 10;

#[derive(Debug)]
pub(super) struct Unread {
    pool: Vec<Vec<u8>>,
    /// Held by all connections.
    bytes: usize,
    bytes_max: usize,
}

impl Unread {
    pub(super) const fn new(bytes_max: usize) -> Self {
        Self {
            pool: Vec::new(),
            bytes: 0,
            bytes_max,
        }
    }

    /// Appends to what a connection holds. False if the budget forbids it; nothing is appended.
    #[must_use]
    pub(super) fn append(&mut self, held: &mut Vec<u8>, bytes: &[u8]) -> bool {
        let within = self.bytes + bytes.len() <= self.bytes_max;
        if !within && held.len() + bytes.len() > FAIR_BYTES {
            return false;
        }
        if held.capacity() == 0 {
            *held = self.pool.pop().unwrap_or_default();
        }
        held.extend_from_slice(bytes);
        self.bytes += bytes.len();
        true
    }

    /// Removes the first `used` bytes of what a connection holds.
    pub(super) fn consume(&mut self, held: &mut Vec<u8>, used: usize) {
        if used >= held.len() {
            return self.release(held);
        }
        held.drain(..used);
        self.bytes -= used;
        // The budget counts bytes, not room: one byte may not keep a large frame's buffer.
        if held.capacity() > POOLED_BYTES_MAX && held.len() < held.capacity() / 2 {
            held.shrink_to_fit();
        }
    }

    /// Removes the bytes from `from` to `to` of what a connection holds.
    pub(super) fn cut(&mut self, held: &mut Vec<u8>, from: usize, to: usize) {
        let to = to.min(held.len());
        if from == 0 || from >= to {
            return if from < to {
                self.consume(held, to)
            };
        }
        held.drain(from..to);
        self.bytes -= to - from;
    }

    /// Takes the whole buffer of a connection.
    pub(super) fn release(&mut self, held: &mut Vec<u8>) {
        self.bytes -= held.len();
        let mut buffer = std::mem::take(held);
        let fits = (1..=POOLED_BYTES_MAX).contains(&buffer.capacity());
        if fits && self.pool.len() < POOLED_MAX {
            buffer.clear();
            self.pool.push(buffer);
        }
    }

    /// The bytes leave with their connection.
    pub(super) fn hand_out(&mut self, held: &mut Vec<u8>) -> Vec<u8> {
        self.bytes -= held.len();
        std::mem::take(held)
    }

    /// Bytes come in with a connection. They were within another shard's budget, and are counted
    /// here even if that exceeds this one's.
    pub(super) const fn take_in(&mut self, held: &[u8]) {
        self.bytes += held.len();
    }

    /// Is there room in the budget for so many bytes that are kept elsewhere?
    pub(super) const fn allows(&self, elsewhere: usize) -> bool {
        self.bytes + elsewhere <= self.bytes_max
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_counts_what_is_held() {
        let mut unread = Unread::new(3 * FAIR_BYTES);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        assert!(unread.append(&mut a, &[1; 2 * FAIR_BYTES]));
        assert!(unread.append(&mut b, &[2; FAIR_BYTES]));
        assert_eq!(unread.bytes(), 3 * FAIR_BYTES);
        assert!(!unread.append(&mut a, &[1]), "the greedy one is refused");
        assert!(
            !unread.append(&mut b, &[2]),
            "and whoever has its fair part"
        );
        let mut c = Vec::new();
        assert!(unread.append(&mut c, &[3; FAIR_BYTES]), "a newcomer is not");
        unread.consume(&mut a, FAIR_BYTES);
        assert_eq!((a.len(), unread.bytes()), (FAIR_BYTES, 3 * FAIR_BYTES));
        unread.release(&mut a);
        unread.release(&mut c);
        assert_eq!(unread.hand_out(&mut b).len(), FAIR_BYTES);
        assert_eq!(unread.bytes(), 0);
        unread.take_in(&[0; 7]);
        assert_eq!(unread.bytes(), 7);
    }

    #[test]
    fn the_rest_of_a_large_frame_does_not_keep_its_room() {
        let mut unread = Unread::new(1 << 20);
        let mut held = Vec::new();
        assert!(unread.append(&mut held, &[0; (256 << 10) + 1]));
        unread.consume(&mut held, 256 << 10);
        assert_eq!((held.len(), unread.bytes()), (1, 1));
        assert!(held.capacity() <= POOLED_BYTES_MAX, "{}", held.capacity());
    }

    #[test]
    fn small_buffers_are_used_again() {
        let mut unread = Unread::new(1 << 20);
        let mut held = Vec::new();
        assert!(unread.append(&mut held, b"half a fra"));
        let address = held.as_ptr();
        unread.release(&mut held);
        assert_eq!(held.capacity(), 0, "a connection at rest owns nothing");
        assert!(unread.append(&mut held, b"me"));
        assert_eq!(held.as_ptr(), address);
        let mut large = Vec::new();
        assert!(unread.append(&mut large, &[0; POOLED_BYTES_MAX + 1]));
        unread.release(&mut large);
        assert!(unread.pool.is_empty(), "a large one is freed");
    }
}
