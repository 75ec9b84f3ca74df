//! What a protocol has to say for itself: how a connection logs in and subscribes, how a message is
//! written, what the bytes that come back mean. No sockets and no clock.
//!
//! # Invariants
//! - However the bytes are cut into pieces, the same things are heard.
//! - Nothing that a server sends makes a dialect panic, or keep more than [`PACKET_BYTES_MAX`].

use crate::fleet::{Full, MessageName, Promises};
use portico_wire::ids::UserId;
use std::{collections::VecDeque, fmt};

/// The longest packet that is taken from a server: far above what a plan sends.
pub(super) const PACKET_BYTES_MAX: usize = 1 << 20;
/// Messages of one connection that may be unanswered, where messages are answered.
pub(super) const UNANSWERED_MAX: usize = 2_048;

/// What messages are published to: a user's own topic, or that of a group, which bears the number
/// of the user who writes to it. User ids differ between runs and workers, and so do topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topic {
    User(u64),
    Group(u64),
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(id) => write!(f, "u.{id}"),
            Self::Group(id) => write!(f, "g.{id}"),
        }
    }
}

/// The server broke its protocol; nothing after this can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Fault(pub &'static str);

/// What one packet of a server meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard<'a> {
    /// Nothing that anybody waits for.
    Nothing,
    /// The login is complete, the subscription stands.
    Up,
    /// The body of a message.
    Message(&'a [u8]),
    /// The server took this message of ours.
    Accepted(MessageName),
    /// The server complains, in its own words, and as a rule hangs up.
    Complaint(&'a [u8]),
}

/// How far a connection's talk with the server is.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub user: UserId,
    /// What it subscribes to, and where everything goes that it sends; `None`: it does not.
    pub hears: Option<Topic>,
    pub speaks_to: Option<Topic>,
    /// Answers that the login has had so far.
    pub step: u8,
    /// Number of the packet before, where packets are numbered.
    pub last_id: u16,
    /// Messages that wait for their answers, in the order in which these come.
    pub unanswered: VecDeque<(u16, MessageName)>,
    /// The start of a packet whose end has not come yet.
    partial: Vec<u8>,
}

impl Link {
    pub(super) fn new(user: UserId, hears: Option<Topic>, speaks_to: Option<Topic>) -> Self {
        Self {
            user,
            hears,
            speaks_to,
            step: 0,
            last_id: 0,
            unanswered: VecDeque::new(),
            partial: Vec::new(),
        }
    }

    /// For a new connection.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.user, self.hears, self.speaks_to);
    }

    pub(super) fn expect_answer(&mut self, id: u16, name: MessageName) -> Result<(), Full> {
        if self.unanswered.len() >= UNANSWERED_MAX {
            return Err(Full);
        }
        self.unanswered.push_back((id, name));
        Ok(())
    }

    /// Takes what came from the socket and reports what it means. What has to be answered at once
    /// is appended to `out`. After a fault nothing more may be fed until [`Self::reset`].
    pub(super) fn feed<D: Dialect>(
        &mut self,
        dialect: &D,
        bytes: &[u8],
        out: &mut Vec<u8>,
        hear: &mut dyn FnMut(Heard<'_>),
    ) -> Result<(), Fault> {
        if self.partial.is_empty() {
            let used = self.packets(dialect, bytes, out, hear)?;
            if let Some(rest) = bytes.get(used..)
                && !rest.is_empty()
            {
                self.partial.extend_from_slice(rest);
            }
            return Ok(());
        }
        let mut partial = std::mem::take(&mut self.partial);
        partial.extend_from_slice(bytes);
        let used = self.packets(dialect, &partial, out, hear)?;
        if used < partial.len() {
            drop(partial.drain(..used));
            self.partial = partial;
        }
        Ok(())
    }

    fn packets<D: Dialect>(
        &mut self,
        dialect: &D,
        bytes: &[u8],
        out: &mut Vec<u8>,
        hear: &mut dyn FnMut(Heard<'_>),
    ) -> Result<usize, Fault> {
        let mut used = 0;
        while let Some(rest) = bytes.get(used..)
            && !rest.is_empty()
            && let Some((length, heard)) = dialect.hear(self, rest, out)?
        {
            used += length;
            hear(heard);
        }
        Ok(used)
    }
}

/// A protocol.
pub(super) trait Dialect {
    fn promises(&self) -> Promises;

    /// A connection cannot both receive and send, so that a user who does both has two.
    fn splits(&self) -> bool {
        false
    }

    /// The handshake of TCP is done: appends what the client says first.
    fn connected(&self, link: &mut Link, out: &mut Vec<u8>);

    /// Appends a message.
    fn publish(
        &self,
        link: &mut Link,
        to: Topic,
        name: MessageName,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Full>;

    /// Appends what keeps a quiet connection alive; nothing where nothing does.
    fn heartbeat(&self, _link: &Link, _out: &mut Vec<u8>) {}

    /// Appends the last word.
    fn goodbye(&self, _link: &Link, _out: &mut Vec<u8>) {}

    /// Takes the first packet of `bytes`, which are not empty: its length and its meaning. `None`
    /// means that more bytes are needed.
    fn hear<'a>(
        &self,
        link: &mut Link,
        bytes: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<(usize, Heard<'a>)>, Fault>;
}

/// A decimal number of at most ten digits.
pub(super) fn decimal(text: &[u8]) -> Option<usize> {
    if text.is_empty() || text.len() > 10 {
        return None;
    }
    text.iter().try_fold(0_usize, |sum, digit| {
        let digit = char::from(*digit).to_digit(10)?;
        sum.checked_mul(10)?.checked_add(digit as usize)
    })
}

/// The first line of `bytes` without its CR LF, and the length with it. One that does not end
/// within `bytes_max` is a fault.
pub(super) fn line(bytes: &[u8], bytes_max: usize) -> Result<Option<(&[u8], usize)>, Fault> {
    const TOO_LONG: Fault = Fault("a line of the server does not end");
    match bytes.iter().take(bytes_max).position(|byte| *byte == b'\n') {
        Some(at) => {
            let text = bytes.get(..at).unwrap_or_default();
            Ok(Some((text.strip_suffix(b"\r").unwrap_or(text), at + 1)))
        }
        None if bytes.len() >= bytes_max => Err(TOO_LONG),
        None => Ok(None),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::random::Random;

    pub(crate) const NAME: MessageName = MessageName {
        flow: 7,
        counter: 9,
    };

    pub(crate) fn both() -> Link {
        Link::new(UserId(5), Some(Topic::User(5)), Some(Topic::User(6)))
    }

    /// What was heard, as text that owns itself, and what was answered.
    pub(crate) fn heard<D: Dialect>(
        dialect: &D,
        link: &mut Link,
        pieces: &[&[u8]],
    ) -> (Vec<String>, Vec<u8>) {
        let (mut all, mut out) = (Vec::new(), Vec::new());
        for piece in pieces {
            let fed = link.feed(dialect, piece, &mut out, &mut |heard| {
                if heard != Heard::Nothing {
                    all.push(format!("{heard:?}"));
                }
            });
            if let Err(fault) = fed {
                all.push(format!("fault: {fault}"));
                break;
            }
        }
        (all, out)
    }

    /// Feeds `bytes` whole, byte by byte, cut in two at every place, and in pieces of random sizes:
    /// always the same is heard. It is returned.
    #[track_caller]
    pub(crate) fn every_chunking<D: Dialect>(
        dialect: &D,
        link: &Link,
        bytes: &[u8],
    ) -> (Vec<String>, Vec<u8>) {
        let expected = heard(dialect, &mut link.clone(), &[bytes]);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(heard(dialect, &mut link.clone(), &single), expected);
        for at in 0..bytes.len() {
            let (left, right) = bytes.split_at(at);
            let got = heard(dialect, &mut link.clone(), &[left, right]);
            assert_eq!(got, expected, "cut at {at}");
        }
        let mut random = Random::new(3);
        for _ in 0..200 {
            let mut rest = bytes;
            let mut pieces = Vec::new();
            while !rest.is_empty() {
                let at = random.below(17) as usize;
                let (piece, after) = rest.split_at(at.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            assert_eq!(heard(dialect, &mut link.clone(), &pieces), expected);
        }
        expected
    }

    /// Random bytes, and good ones with random changes: whatever is heard, nothing panics, and what
    /// is kept stays bounded.
    pub(crate) fn survives_garbage<D: Dialect>(dialect: &D, link: &Link, good: &[u8]) {
        let mut random = Random::new(11);
        for round in 0..5_000 {
            let mut bytes = if round % 2 == 0 {
                (0..random.below(64)).map(|_| random.next() as u8).collect()
            } else {
                good.to_vec()
            };
            for _ in 0..random.below(4) {
                let length = bytes.len() as u32;
                if length > 0 {
                    bytes[random.below(length) as usize] = random.next() as u8;
                }
            }
            let mut link = link.clone();
            let mut out = Vec::new();
            for piece in bytes.chunks(1 + random.below(40) as usize) {
                if link.feed(dialect, piece, &mut out, &mut |_| {}).is_err() {
                    break;
                }
            }
            assert!(link.partial.len() <= bytes.len());
        }
    }

    #[test]
    fn lines_and_numbers_are_bounded() {
        assert_eq!(line(b"ab\r\nc", 10), Ok(Some((&b"ab"[..], 4))));
        assert_eq!(line(b"ab", 10), Ok(None));
        assert!(line(b"0123456789", 10).is_err());
        assert_eq!(decimal(b"1048576"), Some(1_048_576));
        for bad in [&b""[..], b"-1", b"1x", b"99999999999"] {
            assert_eq!(decimal(bad), None);
        }
    }
}
