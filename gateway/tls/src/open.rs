//! A session after its handshake: records in and out, key updates, alerts.
//!
//! What must be kept is two secrets and two counters. The keys that follow from them are made at
//! the first record and dropped by [`Open::hibernate`].

use crate::{
    alert::Alert,
    end::{End, Failure, SendError},
    record::{
        ALERT, APPLICATION_DATA, Content, HANDSHAKE, RECORD_OVERHEAD, RECORD_PLAINTEXT_MAX,
        RECORDS_PER_KEY, RecordKey, SEQUENCE_END, frame,
    },
    secret::{Secret, Suite},
};
use ring::error::Unspecified;

/// Records in a row that carry no data: empty ones, key updates, warnings.
const FRUITLESS_MAX: u8 = 32;

const KEY_UPDATE: u8 = 24;
/// Type, three bytes of length, and whether the other side is asked to do the same.
const KEY_UPDATE_BYTES: usize = 5;

/// One direction.
#[derive(Debug)]
struct Half {
    secret: Secret,
    /// Of the next record. It starts over with each secret, so it counts the records under one key.
    sequence: u64,
}

#[derive(Debug)]
struct Keys {
    received: RecordKey,
    sent: RecordKey,
}

/// What a call of [`Open::receive`] came to.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) plaintext: usize,
    pub(crate) consumed: usize,
    pub(crate) ended: Option<End>,
}

#[derive(Debug)]
pub(crate) struct Open {
    suite: Suite,
    received: Half,
    sent: Half,
    /// None while hibernated.
    keys: Option<Box<Keys>>,
    /// The start of a handshake message that came in parts.
    part: [u8; KEY_UPDATE_BYTES],
    part_bytes: u8,
    fruitless: u8,
    /// The peer has asked for a key update, and waits for ours.
    update_due: bool,
    /// We have asked for one, because the peer has used its key for long.
    update_asked: bool,
    peer_closed: bool,
    closed: bool,
}

impl Open {
    pub(crate) const KEYS_BYTES: usize = size_of::<Keys>();

    /// With the number of records that rustls has received and sent under these secrets.
    pub(crate) fn new(suite: Suite, received: (Secret, u64), sent: (Secret, u64)) -> Self {
        Self {
            suite,
            received: Half {
                secret: received.0,
                sequence: received.1,
            },
            sent: Half {
                secret: sent.0,
                sequence: sent.1,
            },
            keys: None,
            part: [0; KEY_UPDATE_BYTES],
            part_bytes: 0,
            fruitless: 0,
            update_due: false,
            update_asked: false,
            peer_closed: false,
            closed: false,
        }
    }

    pub(crate) const fn is_hibernated(&self) -> bool {
        self.keys.is_none()
    }

    pub(crate) fn hibernate(&mut self) {
        self.keys = None;
    }

    fn wake(&mut self) -> Result<&Keys, Failure> {
        if self.keys.is_none() {
            let key = |half: &Half| {
                RecordKey::new(&half.secret, self.suite).map_err(|Unspecified| Failure::Internal)
            };
            let keys = Keys {
                received: key(&self.received)?,
                sent: key(&self.sent)?,
            };
            self.keys = Some(Box::new(keys));
        }
        self.keys.as_deref().ok_or(Failure::Internal)
    }

    /// Opens the records in `bytes` from `at` on. Their plaintext is gathered at the front of
    /// `bytes`; what must be answered is appended to `out`.
    pub(crate) fn receive(&mut self, bytes: &mut [u8], at: usize, out: &mut Vec<u8>) -> Taken {
        let mut taken = Taken {
            plaintext: 0,
            consumed: at,
            ended: None,
        };
        let mut outcome = Ok(());
        while !self.peer_closed && outcome.is_ok() {
            outcome = match frame(bytes.get(taken.consumed..).unwrap_or_default()) {
                Ok(None) => break,
                Ok(Some(length)) => self.receive_record(bytes, length, &mut taken),
                Err(failure) => Err(End::Failed(failure)),
            };
        }
        if outcome.is_ok() {
            outcome = self.answer(out).map_err(End::Failed);
        }
        if let Err(end) = outcome {
            if let End::Failed(failure) = &end {
                self.put_alert(failure.alert(), out);
            }
            taken.ended = Some(end);
        }
        if self.peer_closed || taken.ended.is_some() {
            // Nothing after an end counts (RFC 8446, section 6.1).
            taken.consumed = bytes.len();
        }
        taken
    }

    fn receive_record(
        &mut self,
        bytes: &mut [u8],
        length: usize,
        taken: &mut Taken,
    ) -> Result<(), End> {
        let (front, end) = (taken.plaintext, taken.consumed + length);
        let record = bytes.get_mut(front..end).unwrap_or_default();
        let content = self.open(record, taken.consumed - front)?;
        taken.consumed = end;
        let record = record.get(..content.bytes).unwrap_or_default();
        if content.kind == APPLICATION_DATA && !record.is_empty() {
            if self.part_bytes != 0 {
                return Err(End::Failed(Failure::UnexpectedHandshake));
            }
            self.fruitless = 0;
            taken.plaintext += record.len();
            return Ok(());
        }
        self.fruitless += 1;
        if self.fruitless > FRUITLESS_MAX {
            return Err(End::Failed(Failure::FruitlessRecords));
        }
        match content.kind {
            HANDSHAKE => self.receive_handshake(record).map_err(End::Failed),
            _ if self.part_bytes != 0 => Err(End::Failed(Failure::UnexpectedHandshake)),
            APPLICATION_DATA => Ok(()),
            ALERT => {
                let closed = receive_alert(record)?;
                if closed {
                    self.peer_closed = true;
                    taken.ended = Some(End::PeerClosed);
                }
                Ok(())
            }
            _ => Err(End::Failed(Failure::UnexpectedRecord)),
        }
    }

    fn open(&mut self, record: &mut [u8], from: usize) -> Result<Content, Failure> {
        let sequence = self.received.sequence;
        if sequence == SEQUENCE_END {
            return Err(Failure::SequenceUsedUp);
        }
        let content = self.wake()?.received.open(sequence, record, from)?;
        self.received.sequence += 1;
        Ok(content)
    }

    /// The only message that a client may send after its handshake is a key update.
    fn receive_handshake(&mut self, content: &[u8]) -> Result<(), Failure> {
        let held = usize::from(self.part_bytes);
        let place = self.part.get_mut(held..held + content.len());
        // Nothing follows a key update in its record: the next one has another key.
        let place = place.filter(|place| !place.is_empty());
        place
            .ok_or(Failure::UnexpectedHandshake)?
            .copy_from_slice(content);
        self.part_bytes += content.len() as u8;
        let known = self.part.get(..usize::from(self.part_bytes));
        let head = [KEY_UPDATE, 0, 0, 1];
        if known.is_none_or(|known| known.iter().zip(head).any(|(byte, is)| *byte != is)) {
            return Err(Failure::UnexpectedHandshake);
        }
        if usize::from(self.part_bytes) < KEY_UPDATE_BYTES {
            return Ok(());
        }
        self.part_bytes = 0;
        let [.., asked] = self.part;
        match asked {
            0 => {}
            1 => self.update_due = true,
            _ => return Err(Failure::BadKeyUpdate),
        }
        self.update_asked = false;
        let suite = self.suite;
        let key = step(&mut self.received, suite)?;
        if let Some(keys) = &mut self.keys {
            keys.received = key;
        }
        Ok(())
    }

    /// Writes what the received records ask for, once for all of them.
    fn answer(&mut self, out: &mut Vec<u8>) -> Result<(), Failure> {
        if self.closed {
            return Ok(());
        }
        let worn = self.received.sequence >= RECORDS_PER_KEY && !self.update_asked;
        if self.update_due || worn {
            self.update_asked |= worn;
            self.update_key(worn, out)?;
        }
        Ok(())
    }

    /// Tells the peer that our key changes, and changes it.
    fn update_key(&mut self, ask_peer: bool, out: &mut Vec<u8>) -> Result<(), Failure> {
        let message = [KEY_UPDATE, 0, 0, 1, u8::from(ask_peer)];
        self.seal(HANDSHAKE, &message, out)?;
        self.update_due = false;
        let suite = self.suite;
        let key = step(&mut self.sent, suite)?;
        if let Some(keys) = &mut self.keys {
            keys.sent = key;
        }
        Ok(())
    }

    fn seal(&mut self, kind: u8, content: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        let sequence = self.sent.sequence;
        if sequence == SEQUENCE_END {
            return Err(Failure::SequenceUsedUp);
        }
        self.wake()?.sent.seal(sequence, kind, content, out)?;
        self.sent.sequence += 1;
        Ok(())
    }

    /// Seals as much as fits into the room that `out` has.
    pub(crate) fn send(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<usize, SendError> {
        if self.closed {
            return Err(SendError::Closed);
        }
        let mut taken = 0;
        while let Some(rest) = plaintext.get(taken..).filter(|rest| !rest.is_empty()) {
            let mut room = out.capacity() - out.len();
            let worn = self.sent.sequence >= RECORDS_PER_KEY;
            if worn {
                room = room.saturating_sub(KEY_UPDATE_BYTES + RECORD_OVERHEAD);
            }
            let fits = room.saturating_sub(RECORD_OVERHEAD);
            let length = rest.len().min(RECORD_PLAINTEXT_MAX).min(fits);
            let Some(record) = rest.get(..length).filter(|record| !record.is_empty()) else {
                break;
            };
            if worn {
                self.update_key(false, out).map_err(SendError::Failed)?;
            }
            self.seal(APPLICATION_DATA, record, out)
                .map_err(SendError::Failed)?;
            taken += length;
        }
        Ok(taken)
    }

    /// Says that we send nothing more. The second time nothing happens.
    pub(crate) fn close(&mut self, out: &mut Vec<u8>) {
        self.put_alert(Alert::CLOSE_NOTIFY, out);
    }

    /// After an alert nothing is sent. If it cannot be sealed either, there is nothing to be said.
    pub(crate) fn put_alert(&mut self, alert: Alert, out: &mut Vec<u8>) {
        if !self.closed {
            let _ = self.seal(ALERT, &alert.bytes(), out);
            self.closed = true;
        }
    }
}

/// Moves a direction to its next secret.
fn step(half: &mut Half, suite: Suite) -> Result<RecordKey, Failure> {
    let next = half.secret.next(suite);
    half.secret = next.map_err(|Unspecified| Failure::Internal)?;
    half.sequence = 0;
    RecordKey::new(&half.secret, suite).map_err(|Unspecified| Failure::Internal)
}

/// True if the peer sends nothing more. The level of an alert says nothing in TLS 1.3.
fn receive_alert(content: &[u8]) -> Result<bool, End> {
    let &[_level, number] = content else {
        return Err(End::Failed(Failure::BadAlert));
    };
    match Alert(number) {
        Alert::CLOSE_NOTIFY => Ok(true),
        Alert::USER_CANCELED => Ok(false),
        alert => Err(End::PeerAlert(alert)),
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

#[cfg(test)]
#[path = "open/tests.rs"]
mod tests;
