//! Connections between clients and the gateway: two streams of bytes each, in order, late, in
//! pieces, and cut anywhere.
//!
//! # Invariants
//! - What arrives is a start of what was written, byte for byte.
//! - After the end of a stream nothing arrives.
//!
//! # Does not
//! Hold a client back that writes: only the gateway meets a full socket.

use crate::{plan::Plan, random::Random};
use portico_core::ConnId;
use std::collections::VecDeque;

/// A part of a stream on its way.
#[derive(Debug)]
pub(crate) enum Piece {
    Bytes(Vec<u8>),
    /// The other side has closed, or the network says that it is gone.
    End,
}

/// One direction.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pieces: VecDeque<(u64, Piece)>,
    /// When the last of them arrives.
    last_us: u64,
    /// Bytes written that the other side has not taken.
    pub(crate) held: usize,
    /// Nothing that is written from now on arrives.
    cut: bool,
    ended: bool,
}

impl Stream {
    /// Takes bytes at `now_us`. Returns when the pieces of them arrive.
    pub(crate) fn write(
        &mut self,
        now_us: u64,
        bytes: Vec<u8>,
        plan: &Plan,
        random: &mut Random,
        arrivals: &mut Vec<u64>,
    ) {
        self.held += bytes.len();
        if self.cut || self.ended || bytes.is_empty() {
            return;
        }
        let mut rest = bytes;
        while rest.len() > 1 && random.per_mille(plan.torn) {
            let at = 1 + random.index(rest.len() - 1);
            let tail = rest.split_off(at);
            arrivals.push(self.put(now_us, Piece::Bytes(rest), plan, random));
            rest = tail;
        }
        arrivals.push(self.put(now_us, Piece::Bytes(rest), plan, random));
    }

    fn put(&mut self, now_us: u64, piece: Piece, plan: &Plan, random: &mut Random) -> u64 {
        let at_us = now_us + plan.network_delay(random);
        self.put_at(at_us, piece)
    }

    fn put_at(&mut self, at_us: u64, piece: Piece) -> u64 {
        self.last_us = self.last_us.max(at_us);
        self.pieces.push_back((self.last_us, piece));
        self.last_us
    }

    /// Nothing arrives before this time.
    pub(crate) const fn not_before(&mut self, at_us: u64) {
        if at_us > self.last_us {
            self.last_us = at_us;
        }
    }

    /// The writer closes, or the reader is told that the network is down. Returns when that shows.
    pub(crate) fn end(&mut self, at_us: u64) -> Option<u64> {
        if self.ended {
            return None;
        }
        self.ended = true;
        Some(self.put_at(at_us, Piece::End))
    }

    /// The network loses everything but the next `bytes` bytes of what is on its way, and all that
    /// is written later. The reader is not told.
    pub(crate) fn cut(&mut self, bytes: usize) {
        self.cut = true;
        let mut left = bytes;
        let mut kept = VecDeque::new();
        for (at_us, piece) in self.pieces.drain(..) {
            match piece {
                Piece::Bytes(mut bytes) => {
                    bytes.truncate(left);
                    left -= bytes.len();
                    if !bytes.is_empty() {
                        kept.push_back((at_us, Piece::Bytes(bytes)));
                    }
                }
                // It is lost like everything else.
                Piece::End => self.ended = false,
            }
        }
        self.pieces = kept;
    }

    /// Bytes on their way.
    pub(crate) fn in_flight(&self) -> usize {
        let bytes = self.pieces.iter().map(|(_, piece)| match piece {
            Piece::Bytes(bytes) => bytes.len(),
            Piece::End => 0,
        });
        bytes.sum()
    }

    /// The next piece that has arrived.
    pub(crate) fn take(&mut self, now_us: u64) -> Option<Piece> {
        if self.pieces.front()?.0 > now_us {
            return None;
        }
        let (_, piece) = self.pieces.pop_front()?;
        if let Piece::Bytes(bytes) = &piece {
            self.held -= bytes.len();
        }
        Some(piece)
    }

    pub(crate) const fn is_cut(&self) -> bool {
        self.cut
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) device: usize,
    /// Of the gateway it was made to.
    pub(crate) life: u32,
    /// Where it is in the gateway, while it is.
    pub(crate) seat: Option<(u16, ConnId)>,
    /// To the gateway.
    pub(crate) up: Stream,
    /// To the client.
    pub(crate) down: Stream,
    /// The gateway waits until the client reads.
    pub(crate) is_full: bool,
    /// The gateway still has an older connection of the device.
    pub(crate) takes_over: bool,
}

impl Line {
    pub(crate) fn new(device: usize, life: u32) -> Self {
        Self {
            device,
            life,
            seat: None,
            up: Stream::default(),
            down: Stream::default(),
            is_full: false,
            takes_over: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the pieces and wherever the cut, what arrives is a start of what was written, then
    /// at most one end.
    #[test]
    fn what_arrives_is_a_start_of_what_was_written() {
        for seed in 0..500 {
            let mut random = Random::new(seed);
            let mut plan = Plan::draw(None, &mut random);
            plan.torn = 500;
            let (mut stream, mut written, mut arrivals) =
                (Stream::default(), Vec::new(), Vec::new());
            let mut cut = None;
            for now_us in 0..20 {
                let bytes: Vec<u8> = (0..random.below(30)).map(|at| at as u8).collect();
                written.extend_from_slice(&bytes);
                stream.write(now_us, bytes, &plan, &mut random, &mut arrivals);
                if now_us == 10 && random.one_in(2) {
                    let keep = random.index(stream.in_flight() + 1);
                    stream.cut(keep);
                    cut = Some(keep);
                }
            }
            stream.end(25);
            assert!(arrivals.is_sorted());
            let mut arrived = Vec::new();
            let mut ended = false;
            while let Some(piece) = stream.take(u64::MAX) {
                assert!(!ended, "nothing follows the end");
                match piece {
                    Piece::Bytes(bytes) => arrived.extend(bytes),
                    Piece::End => ended = true,
                }
            }
            assert!(ended && written.starts_with(&arrived));
            assert_eq!(
                arrived.len() == written.len(),
                cut.is_none() || arrived == written
            );
        }
    }
}
