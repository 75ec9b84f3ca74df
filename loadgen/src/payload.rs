//! What a test message carries, so that whoever receives it can tell where it belongs.
//!
//! ```text
//! 0 magic:u32  4 flow:u32  8 run:u64  16 sender:u64  24 recipient:u64
//! 32 counter:u32  36 late:u32  40 intended_us:u64  48 checksum:u64  56 padding
//! ```
//! Little endian. `late` is how many microseconds after its intended time the message was handed to
//! the driver, in 31 bits; the highest bit marks an answer. The checksum covers every other byte. The padding is pseudo-random: zeros would
//! flatter whatever compresses or compares.

use crate::random::Random;
use portico_wire::ids::UserId;

/// The smallest body that has room for all of this.
pub(crate) const BODY_BYTES_MIN: usize = 56;

const MAGIC: u32 = u32::from_le_bytes(*b"PTLG");
const CHECKSUM_AT: usize = 48;

/// The fields of a test message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Payload {
    /// Which run of the tool sent it: leftovers of another one are nobody's fault.
    pub run: u64,
    pub flow: u32,
    pub sender: UserId,
    pub recipient: UserId,
    /// Counts the messages of a flow from 0.
    pub counter: u32,
    /// When the schedule wanted it to be sent.
    pub intended_us: u64,
    /// How much later it was handed to the driver; [`LATE_US_MAX`] if more.
    pub late_us: u32,
    /// It answers another message, and is not answered itself.
    pub is_answer: bool,
}

/// Half an hour and more.
pub(crate) const LATE_US_MAX: u32 = ANSWER_BIT - 1;
const ANSWER_BIT: u32 = 1 << 31;

/// Not one of our messages, or damaged on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Corrupt;

impl Payload {
    /// Writes a body of `bytes` bytes, at least [`BODY_BYTES_MIN`].
    pub(crate) fn encode(&self, bytes: usize, out: &mut Vec<u8>) {
        let late = self.late_us.min(LATE_US_MAX) | if self.is_answer { ANSWER_BIT } else { 0 };
        let mut head = [0; BODY_BYTES_MIN];
        head[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        head[4..8].copy_from_slice(&self.flow.to_le_bytes());
        head[8..16].copy_from_slice(&self.run.to_le_bytes());
        head[16..24].copy_from_slice(&self.sender.0.to_le_bytes());
        head[24..32].copy_from_slice(&self.recipient.0.to_le_bytes());
        head[32..36].copy_from_slice(&self.counter.to_le_bytes());
        head[36..40].copy_from_slice(&late.to_le_bytes());
        head[40..48].copy_from_slice(&self.intended_us.to_le_bytes());
        out.clear();
        out.resize(bytes.max(BODY_BYTES_MIN), 0);
        let (front, padding) = out.split_at_mut(BODY_BYTES_MIN);
        front.copy_from_slice(&head);
        let mut random =
            Random::new(self.run ^ u64::from(self.flow) << 32 ^ u64::from(self.counter));
        let mut words = padding.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
        let rest = words.into_remainder();
        let last = random.next().to_le_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
        let sum = checksum(out);
        out[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&sum.to_le_bytes());
    }

    pub(crate) fn decode(body: &[u8]) -> Result<Self, Corrupt> {
        let magic = u32_at(body, 0)?;
        let sum = u64_at(body, CHECKSUM_AT)?;
        if magic != MAGIC || sum != checksum(body) {
            return Err(Corrupt);
        }
        let late = u32_at(body, 36)?;
        Ok(Self {
            flow: u32_at(body, 4)?,
            run: u64_at(body, 8)?,
            sender: UserId(u64_at(body, 16)?),
            recipient: UserId(u64_at(body, 24)?),
            counter: u32_at(body, 32)?,
            intended_us: u64_at(body, 40)?,
            late_us: late & LATE_US_MAX,
            is_answer: late & ANSWER_BIT != 0,
        })
    }
}

/// Of all bytes but the checksum's own. Each step is a bijection of the sum so far, so a change
/// within one word always changes the result, and words that trade places change it too.
fn checksum(body: &[u8]) -> u64 {
    let step = |sum: u64, word: u64| {
        let sum = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        sum ^ sum >> 32
    };
    let mut sum = body.len() as u64;
    let mut chunks = body.chunks_exact(8);
    for (place, chunk) in chunks.by_ref().enumerate() {
        if place != CHECKSUM_AT / 8 {
            sum = step(sum, u64_at(chunk, 0).unwrap_or_default());
        }
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        let mut bytes = [0; 8];
        bytes[..rest.len()].copy_from_slice(rest);
        sum = step(sum, u64::from_le_bytes(bytes));
    }
    sum
}

fn u32_at(body: &[u8], at: usize) -> Result<u32, Corrupt> {
    let bytes = body.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map(|bytes| u32::from_le_bytes(*bytes)).ok_or(Corrupt)
}

fn u64_at(body: &[u8], at: usize) -> Result<u64, Corrupt> {
    let bytes = body.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map(|bytes| u64::from_le_bytes(*bytes)).ok_or(Corrupt)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOAD: Payload = Payload {
        run: 0x1122_3344_5566_7788,
        flow: 5,
        sender: UserId(10),
        recipient: UserId(11),
        counter: 3,
        intended_us: 123_456,
        late_us: 78,
        is_answer: true,
    };

    fn encoded(bytes: usize) -> Vec<u8> {
        let mut body = Vec::new();
        PAYLOAD.encode(bytes, &mut body);
        body
    }

    #[test]
    fn a_body_has_the_size_asked_for_and_comes_back() {
        for bytes in [BODY_BYTES_MIN, 57, 63, 64, 128, 1_000] {
            let body = encoded(bytes);
            assert_eq!(body.len(), bytes);
            assert_eq!(Payload::decode(&body), Ok(PAYLOAD));
        }
    }

    #[test]
    fn how_late_it_was_is_bounded_and_leaves_the_mark_alone() {
        for is_answer in [false, true] {
            let payload = Payload {
                late_us: u32::MAX,
                is_answer,
                ..PAYLOAD
            };
            let mut body = Vec::new();
            payload.encode(64, &mut body);
            let read = Payload::decode(&body).expect("intact");
            assert_eq!((read.late_us, read.is_answer), (LATE_US_MAX, is_answer));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_missing_byte_is_noticed() {
        let body = encoded(99);
        for bit in 0..body.len() * 8 {
            let mut damaged = body.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Payload::decode(&damaged), Err(Corrupt), "bit {bit}");
        }
        for bytes in 0..body.len() {
            assert_eq!(
                Payload::decode(&body[..bytes]),
                Err(Corrupt),
                "{bytes} bytes"
            );
        }
    }

    #[test]
    fn swapped_words_are_noticed() {
        let mut body = encoded(128);
        let (left, right) = body.split_at_mut(72);
        left[64..72].swap_with_slice(&mut right[..8]);
        assert_eq!(Payload::decode(&body), Err(Corrupt));
    }
}
