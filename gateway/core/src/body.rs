//! The bodies of messages while they are on their way: copied once out of the receive buffer, then
//! shared by reference.
//!
//! Small ones lie side by side in chunks, so that a message needs no memory of its own. A chunk is
//! used again, or freed, when the last body in it is gone.

use bytes::{Bytes, BytesMut};

const CHUNK_BYTES: usize = 16 << 10;
/// A larger body has memory of its own: it must not keep a chunk, nor be kept by its neighbours.
const SHARED_BYTES_MAX: usize = 1 << 10;

#[derive(Debug, Default)]
pub(crate) struct Bodies {
    chunk: BytesMut,
}

impl Bodies {
    pub(crate) fn keep(&mut self, body: &[u8]) -> Bytes {
        if body.len() > SHARED_BYTES_MAX {
            return Bytes::copy_from_slice(body);
        }
        if self.chunk.capacity() < body.len() {
            // Begins the same chunk again if nobody holds any of it.
            self.chunk.reserve(CHUNK_BYTES);
        }
        self.chunk.extend_from_slice(body);
        self.chunk.split().freeze()
    }

    /// The rest of the chunk goes; what follows takes another.
    pub(crate) fn trim(&mut self) {
        self.chunk = BytesMut::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_stay_what_they_were() {
        let mut bodies = Bodies::default();
        let make = |number: usize| vec![number as u8; number % 1_300];
        let mut kept = std::collections::VecDeque::new();
        for number in 0..10_000 {
            kept.push_back((number, bodies.keep(&make(number))));
            if kept.len() > 100
                && let Some((number, body)) = kept.pop_front()
            {
                assert_eq!(body, make(number));
            }
            if number % 1_000 == 0 {
                bodies.trim();
            }
        }
    }

    #[test]
    fn small_bodies_lie_side_by_side() {
        let mut bodies = Bodies::default();
        let (a, b) = (bodies.keep(&[1; 100]), bodies.keep(&[2; 100]));
        assert_eq!(a.as_ptr() as usize + 100, b.as_ptr() as usize);
    }
}
