//! Somebody who looks on while messages are sent, and may end that early.

/// What a run has done so far, all workers together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sight {
    /// Since the first message was due.
    pub passed_us: u64,
    pub sent: u64,
    pub accepted: u64,
    pub delivered: u64,
}

/// Called about a hundred times a second while messages are sent. True: send no more, and wait for
/// what is on its way.
pub(crate) type Watch<'a> = dyn FnMut(&Sight) -> bool + 'a;
