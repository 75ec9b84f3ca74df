//! Faults on purpose, in what stands for the service's surroundings: a checker that does not find
//! them checks nothing.

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    /// A message is answered as stored before it is.
    AckBeforeStored,
    /// A delivery gets lost when a newer connection of its device takes over.
    DropAtTakeover,
    /// Letters between shards overtake each other.
    ReorderLetters,
    /// A reference lands in somebody else's inbox.
    WrongInbox,
    /// A first attempt is never found.
    ForgetAttempts,
    /// A device's position is written ahead of what it acknowledged.
    CursorAhead,
    /// A delivered mark is written ahead of what was delivered.
    ReceiptAhead,
    /// An ephemeral frame vanishes and is not counted.
    SilentDrop,
    /// A read of an inbox is never answered.
    NoAnswer,
}

impl Canary {
    pub const ALL: [Self; 9] = [
        Self::AckBeforeStored,
        Self::DropAtTakeover,
        Self::ReorderLetters,
        Self::WrongInbox,
        Self::ForgetAttempts,
        Self::CursorAhead,
        Self::ReceiptAhead,
        Self::SilentDrop,
        Self::NoAnswer,
    ];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AckBeforeStored => "ack-before-stored",
            Self::DropAtTakeover => "drop-at-takeover",
            Self::ReorderLetters => "reorder-letters",
            Self::WrongInbox => "wrong-inbox",
            Self::ForgetAttempts => "forget-attempts",
            Self::CursorAhead => "cursor-ahead",
            Self::ReceiptAhead => "receipt-ahead",
            Self::SilentDrop => "silent-drop",
            Self::NoAnswer => "no-answer",
        }
    }

    /// The promises of which it breaks one, whichever shows first. (A message that does not come is
    /// found by the last promise, before the first is looked at.)
    #[must_use]
    pub const fn breaks(self) -> &'static [u8] {
        match self {
            Self::AckBeforeStored => &[1, 2, 7],
            Self::DropAtTakeover => &[1, 5, 7],
            Self::ReorderLetters => &[2],
            Self::WrongInbox => &[1, 3, 7],
            Self::ForgetAttempts => &[4],
            Self::CursorAhead | Self::ReceiptAhead => &[5],
            Self::SilentDrop => &[6],
            Self::NoAnswer => &[7],
        }
    }
}
