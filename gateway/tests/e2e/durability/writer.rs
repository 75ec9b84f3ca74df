//! A device that sends without pause and knows what was acknowledged.

use super::{PATIENCE, Reader, Round};
use crate::harness::{Gateway, new_msg_id};
use portico_client::{RawConnection, RawError, RawFrame};
use portico_wire::{
    Flags, Op,
    ids::{ConvSeq, MsgId, UserId},
};
use std::{
    collections::{HashMap, VecDeque},
    io::ErrorKind,
};

/// Requests without an answer at any time.
const OPEN_MAX: usize = 16;
/// Acknowledged messages that are sent once more after each restart.
const REPEATED: usize = 3;

/// One message. Its number is its place in [`Writer::letters`].
#[derive(Clone, Debug)]
struct Letter {
    msg_id: MsgId,
    /// Some connection has carried it: from then on it is marked RETRY.
    tried: bool,
    sent: Option<ConvSeq>,
}

#[derive(Debug)]
pub(super) struct Writer {
    user: u64,
    to: u64,
    letters: Vec<Letter>,
}

/// The text of a message: who, which, and a length that varies.
pub(super) fn text(user: u64, number: usize) -> String {
    let filler = "·".repeat(number * 37 % 400);
    format!("{user} {number} {filler}")
}

impl Writer {
    pub(super) const fn new(user: u64, to: u64) -> Self {
        Self {
            user,
            to,
            letters: Vec::new(),
        }
    }

    pub(super) const fn to(&self) -> u64 {
        self.to
    }

    pub(super) fn sent_count(&self) -> usize {
        self.letters.iter().filter(|l| l.sent.is_some()).count()
    }

    /// Works until the gateway is killed, or until nothing is open and nothing new may be made.
    pub(super) fn run(&mut self, gateway: &Gateway, round: &Round, new_max: u64) {
        if let Err(error) = self.work(gateway, round, new_max) {
            assert!(round.is_over(), "writer {}: {error}", self.user);
        }
    }

    fn work(&mut self, gateway: &Gateway, round: &Round, new_max: u64) -> Result<(), RawError> {
        let mut conn = RawConnection::connect(gateway.listen)?;
        conn.hello(&gateway.token(self.user, 1))?;
        // Unfinished ones first, in their order; before them some that are known to be accepted.
        let mut repeated = VecDeque::new();
        let mut open = VecDeque::new();
        for (number, letter) in self.letters.iter().enumerate() {
            match letter.sent {
                Some(_) => repeated.push_back(number),
                None => open.push_back(number),
            }
        }
        let surplus = repeated.len().saturating_sub(REPEATED);
        let mut queue: VecDeque<_> = repeated.into_iter().skip(surplus).chain(open).collect();
        let mut under_way = HashMap::new();
        let (mut corr, mut made) = (1, 0);
        loop {
            while under_way.len() < OPEN_MAX {
                let number = match queue.pop_front() {
                    Some(number) => number,
                    None if made < new_max && !round.is_closing() => {
                        made += 1;
                        self.letters.push(Letter {
                            msg_id: new_msg_id(),
                            tried: false,
                            sent: None,
                        });
                        self.letters.len() - 1
                    }
                    None => break,
                };
                corr += 1;
                self.post(&mut conn, corr, number)?;
                under_way.insert(corr, number);
            }
            if under_way.is_empty() {
                return Ok(());
            }
            match conn.read_frame(PATIENCE) {
                Ok(Some(frame)) => self.answer(&frame, &mut under_way, round),
                Ok(None) => return Err(RawError::Ended),
                Err(RawError::Io(error)) if error.kind() == ErrorKind::TimedOut => {
                    panic!("writer {}: no answer", self.user);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn post(&mut self, conn: &mut RawConnection, corr: u32, number: usize) -> Result<(), RawError> {
        let letter = &mut self.letters[number];
        let flags = if letter.tried {
            Flags::RETRY
        } else {
            Flags::NONE
        };
        letter.tried = true;
        let text = text(self.user, number);
        conn.send_text(corr, UserId(self.to), letter.msg_id, flags, &text)?;
        Ok(())
    }

    fn answer(&mut self, frame: &RawFrame, under_way: &mut HashMap<u32, usize>, round: &Round) {
        if !frame.flags.contains(Flags::REPLY) {
            return;
        }
        let number = under_way
            .remove(&frame.corr)
            .expect("one reply per request");
        assert_eq!(frame.known_op(), Some(Op::Sent), "{frame:?}");
        let (conv_seq, duplicate) = (ConvSeq(frame.seq.seq), frame.seq.arg == 1);
        let letter = &mut self.letters[number];
        match letter.sent {
            None => {
                letter.sent = Some(conv_seq);
                round.count_sent();
            }
            Some(first) => {
                assert_eq!(conv_seq, first, "a repetition gets the first answer");
                assert!(duplicate, "and is told so");
            }
        }
    }

    /// Everything acknowledged has arrived, once, in order, as it was sent.
    pub(super) fn agrees_with(&self, reader: &Reader) {
        let arrived = reader.from(self.user);
        let unsent = self.letters.iter().position(|letter| letter.sent.is_none());
        assert_eq!(unsent, None, "writer {}: not acknowledged", self.user);
        let wrote: Vec<_> = (0..self.letters.len()).collect();
        let read: Vec<_> = arrived.iter().map(|arrival| arrival.number).collect();
        assert_eq!(read, wrote, "writer {}: lost, or out of order", self.user);
        for (letter, arrival) in self.letters.iter().zip(arrived) {
            assert_eq!(letter.msg_id, arrival.msg_id);
            assert_eq!(letter.sent, Some(arrival.conv_seq), "one place for all");
        }
        let places: Vec<_> = self.letters.iter().map(|letter| letter.sent).collect();
        assert!(
            places.is_sorted_by(|a, b| a < b),
            "places follow the order of sending"
        );
    }
}
