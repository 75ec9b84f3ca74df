//! Who has written: a bit per sender, so that a shard need not look into the queue of each.
//!
//! With dozens of shards nobody looks into every queue at every turn. A sender that has put letters
//! into a queue raises its bit at the receiver's desk, afterwards; the receiver takes all bits down
//! and then empties the queues they name. A letter therefore always has a raised bit, or a reader
//! on its way.

use portico_core::ShardId;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which shards have put letters into a shard's queues: a bit for each of them.
#[derive(Debug)]
pub(super) struct Mailbox(Box<[AtomicU64]>);

impl Mailbox {
    pub(super) fn new(shards: usize) -> Self {
        Self((0..words(shards)).map(|_| AtomicU64::new(0)).collect())
    }

    /// After the letters are in the queue.
    pub(super) fn raise(&self, from: ShardId) {
        let (word, bit) = place(from);
        // Release: whoever takes the bit down finds the letters. Always a write, never a look
        // first: a bit that is seen raised may be taken down before the letters are seen.
        self.0[word].fetch_or(bit, Ordering::Release);
    }

    /// Takes the bits down and adds them to `mail`.
    pub(super) fn take(&self, mail: &mut Mail) {
        for (word, mail) in self.0.iter().zip(&mut mail.0) {
            // Relaxed: the swap below is the one that counts.
            if word.load(Ordering::Relaxed) != 0 {
                *mail |= word.swap(0, Ordering::Acquire);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        // Relaxed: ordered by the fence of the parked flag.
        self.0.iter().all(|word| word.load(Ordering::Relaxed) == 0)
    }
}

const fn words(shards: usize) -> usize {
    shards.div_ceil(64)
}

const fn place(shard: ShardId) -> (usize, u64) {
    (shard.0 as usize / 64, 1 << (shard.0 % 64))
}

/// What a shard knows of its mail: whose letters it has not read to the end.
#[derive(Debug)]
pub(super) struct Mail(Box<[u64]>);

impl Mail {
    pub(super) fn new(shards: usize) -> Self {
        Self(vec![0; words(shards)].into())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub(super) fn senders(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The first sender at `from` or after it.
    pub(super) fn next(&self, from: usize) -> Option<ShardId> {
        let mut rest = u64::MAX << (from % 64);
        for (index, word) in self.0.iter().enumerate().skip(from / 64) {
            let found = word & rest;
            if found != 0 {
                return Some(ShardId((index * 64) as u16 + found.trailing_zeros() as u16));
            }
            rest = u64::MAX;
        }
        None
    }

    /// Its letters are read to the end.
    pub(super) fn done(&mut self, sender: ShardId) {
        let (word, bit) = place(sender);
        self.0[word] &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_go_from_the_mailbox_to_the_mail_and_no_farther() {
        let (mailbox, mut mail) = (Mailbox::new(130), Mail::new(130));
        assert!(mailbox.is_empty() && mail.is_empty());
        for sender in [0, 63, 64, 129] {
            mailbox.raise(ShardId(sender));
        }
        mailbox.take(&mut mail);
        assert!(mailbox.is_empty());
        assert_eq!(mail.senders(), 4);
        let mut seen = Vec::new();
        let mut from = 0;
        while let Some(sender) = mail.next(from) {
            seen.push(sender.0);
            from = usize::from(sender.0) + 1;
        }
        assert_eq!(seen, [0, 63, 64, 129]);
        mail.done(ShardId(64));
        assert_eq!(mail.next(64), Some(ShardId(129)));
        mailbox.raise(ShardId(64));
        mailbox.take(&mut mail);
        assert_eq!(mail.senders(), 4, "what was there stays");
        assert_eq!(mail.next(130), None);
        assert_eq!(mail.next(192), None);
    }
}
