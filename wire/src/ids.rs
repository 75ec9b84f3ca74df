//! Identifiers and positions. One newtype each, so that two neighbouring integers cannot be
//! swapped by accident.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub $inner);

        impl $name {
            /// The number itself.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A user. 0 and the greatest number name nobody: see [`UserId::is_valid`].
    UserId(u64)
}
id! {
    /// A device of a user. Numbers are never reused by the same user; 0 is not a device.
    DeviceId(u16)
}
id! {
    /// A group.
    GroupId(u64)
}
id! {
    /// A position in an inbox: microseconds since 1970, strictly increasing, with holes. Compared,
    /// never counted with.
    Seq(u64)
}
id! {
    /// A position in a conversation, made like [`Seq`]. Divided by 1,000 it is the time to show.
    ConvSeq(u64)
}

impl UserId {
    /// 0 names nobody, and the greatest number marks status lists in stored conversations.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 != 0 && self.0 != u64::MAX
    }
}

/// The idempotency key of a message: a UUIDv7 made by the sending device, dated by the server's
/// clock. Unique per (user, device) only.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MsgId(pub u128);

impl MsgId {
    /// Builds a version 7 id from a time and 74 random bits (the rest of `random` is ignored).
    #[must_use]
    pub const fn new_v7(unix_ms: u64, random: u128) -> Self {
        let time = (unix_ms as u128 & 0xffff_ffff_ffff) << 80;
        let version = 0x7_u128 << 76;
        let variant = 0b10_u128 << 62;
        let rand_a = (random >> 64) & 0xfff;
        let rand_b = random & 0x3fff_ffff_ffff_ffff;
        Self(time | version | rand_a << 64 | variant | rand_b)
    }

    /// The time inside, if this is a version 7 id.
    #[must_use]
    pub const fn unix_ms(self) -> Option<u64> {
        let version = (self.0 >> 76) & 0xf;
        let variant = (self.0 >> 62) & 0b11;
        if version == 7 && variant == 0b10 {
            Some((self.0 >> 80) as u64)
        } else {
            None
        }
    }

    /// The first 8 bytes of the UUID as a number.
    #[must_use]
    pub const fn hi(self) -> u64 {
        (self.0 >> 64) as u64
    }

    /// The last 8 bytes of the UUID as a number.
    #[must_use]
    pub const fn lo(self) -> u64 {
        self.0 as u64
    }

    #[must_use]
    pub const fn from_parts(hi: u64, lo: u64) -> Self {
        Self((hi as u128) << 64 | lo as u128)
    }

    /// The sixteen bytes of the UUID in their usual order.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

impl fmt::Debug for MsgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MsgId({:032x})", self.0)
    }
}

impl fmt::Display for MsgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0;
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            n >> 96,
            (n >> 80) & 0xffff,
            (n >> 64) & 0xffff,
            (n >> 48) & 0xffff,
            n & 0xffff_ffff_ffff
        )
    }
}

/// A conversation as the store names it, the same for every reader. (On the wire a direct
/// conversation is named by the *other* user, as the reader sees it.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConvId {
    /// Two users, the smaller first; the same user twice is the note to oneself.
    Direct(UserId, UserId),
    Group(GroupId),
    /// The status updates of one author.
    Status(UserId),
}

/// First half of the stored form of a group: no user has the id 0.
const GROUP_MARK: u64 = 0;
/// First half of the stored form of a status list: greater than any second half that could follow
/// it in a direct conversation, where the smaller id comes first.
const STATUS_MARK: u64 = u64::MAX;

impl ConvId {
    /// The conversation of two users, whichever comes first.
    #[must_use]
    pub fn direct(a: UserId, b: UserId) -> Self {
        Self::Direct(a.min(b), a.max(b))
    }

    /// The other user of a direct conversation, as `reader` sees it.
    #[must_use]
    pub fn peer_of(self, reader: UserId) -> Option<UserId> {
        match self {
            Self::Direct(low, high) if low == reader => Some(high),
            Self::Direct(low, high) if high == reader => Some(low),
            _ => None,
        }
    }

    /// Sixteen bytes, big-endian: (smaller user, greater user), (0, group) or (all ones, author).
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        let (first, second) = match self {
            Self::Direct(low, high) => (low.0, high.0),
            Self::Group(group) => (GROUP_MARK, group.0),
            Self::Status(author) => (STATUS_MARK, author.0),
        };
        (u128::from(first) << 64 | u128::from(second)).to_be_bytes()
    }

    /// The inverse of [`Self::to_bytes`].
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let n = u128::from_be_bytes(bytes);
        let (first, second) = ((n >> 64) as u64, n as u64);
        match first {
            GROUP_MARK => Self::Group(GroupId(second)),
            STATUS_MARK => Self::Status(UserId(second)),
            _ => Self::Direct(UserId(first), UserId(second)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_v7_id_gives_back_its_time() {
        let id = MsgId::new_v7(1_790_000_000_123, u128::MAX);
        assert_eq!(id.unix_ms(), Some(1_790_000_000_123));
        assert_eq!(MsgId::from_parts(id.hi(), id.lo()), id);
        assert_eq!(MsgId::from_bytes(id.to_bytes()), id);
    }

    #[test]
    fn other_versions_have_no_time() {
        let id = MsgId::new_v7(1, 0).0;
        assert_eq!(MsgId(id & !(0xf << 76)).unix_ms(), None);
        assert_eq!(MsgId(id & !(0b11 << 62)).unix_ms(), None);
        assert_eq!(MsgId(0).unix_ms(), None);
    }

    #[test]
    fn stored_conversations_are_distinct_and_reversible() {
        for conv in [
            ConvId::direct(UserId(9), UserId(4)),
            ConvId::direct(UserId(4), UserId(4)),
            ConvId::Group(GroupId(9)),
            ConvId::Status(UserId(9)),
        ] {
            assert_eq!(ConvId::from_bytes(conv.to_bytes()), conv);
        }
        let conv = ConvId::direct(UserId(9), UserId(4));
        assert_eq!(conv.peer_of(UserId(4)), Some(UserId(9)));
        assert_eq!(conv.peer_of(UserId(9)), Some(UserId(4)));
        assert_eq!(conv.peer_of(UserId(5)), None);
    }
}
