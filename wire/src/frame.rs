//! Frames: a base header, perhaps a second fixed header, perhaps a body.
//!
//! ```text
//! 0 len:u32  4 op:u8  5 flags:u8  6 hdr:u8  7 rsv:u8  8 corr:u32  12 aux:u32      base, 16 bytes
//! 16 seq:u64  24 arg:u32  28 rsv:u32                                              SeqHeader
//! 16 seq:u64  24 msg_id:2xu64  40 conv:u64  48 conv_seq:u64  56 user:u64
//! 64 dev:u16  66 conv_kind:u8  67 kind:u8  68 ttl_s:u32                           RouteHeader
//! ```
//! Everything is little endian. The rules F1 to F8 of docs/PROTOCOL.md are checked here and
//! nowhere else.

use crate::{
    error::FrameError,
    ids::{ConvSeq, DeviceId, MsgId, Seq, UserId},
    limits::FRAME_BYTES_MIN,
    op::{Header, Op},
};
use std::{fmt, ops::BitOr};

/// End of the base header, of a SeqHeader and of a RouteHeader, in bytes from the frame's start.
pub const BASE_END: usize = 16;
pub const SEQ_END: usize = 32;
pub const ROUTE_END: usize = 72;

/// Bits of the base header's `flags`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    pub const NONE: Self = Self(0);
    /// A RouteHeader follows.
    pub const ROUTED: Self = Self(1);
    /// `corr` is that of the request this frame answers.
    pub const REPLY: Self = Self(2);
    /// Never stored, never sequenced, dropped first under pressure.
    pub const EPHEMERAL: Self = Self(8);
    /// The body is one raw zstd frame.
    pub const COMPRESSED: Self = Self(16);
    /// More frames follow for the same `corr`.
    pub const MORE: Self = Self(32);
    /// Store and deliver, but make no push notification.
    pub const SILENT: Self = Self(64);
    /// This msg_id may have been accepted before.
    pub const RETRY: Self = Self(128);

    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The second header of ACK, SENT, SYNCED and SYNC_GAP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeqHeader {
    /// ACK: up_to. SENT: conv_seq. SYNCED: up_to. SYNC_GAP: floor_seq.
    pub seq: u64,
    /// ACK: receive_max from now on. SENT: 1 = duplicate. SYNCED: entries replayed. SYNC_GAP: 0.
    pub arg: u32,
}

/// Which kind of conversation a RouteHeader names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConvKind(pub u8);

impl ConvKind {
    pub const NONE: Self = Self(0);
    pub const DIRECT: Self = Self(1);
    pub const GROUP: Self = Self(2);
    pub const STATUS: Self = Self(3);
}

/// `RouteHeader::kind` of a RECEIPT.
pub mod receipt_kind {
    pub const DELIVERED: u8 = 1;
    pub const READ: u8 = 2;
}

/// `RouteHeader::kind` of a SIGNAL.
pub mod signal_kind {
    pub const STOPPED: u8 = 0;
    pub const TYPING: u8 = 1;
    pub const RECORDING: u8 = 2;
}

/// `RouteHeader::kind` of SEND and DELIVER.
pub mod msg_kind {
    pub const CONTENT: u8 = 0;
    pub const UPDATE: u8 = 1;
    pub const KEY_DISTRIBUTION: u8 = 2;
    pub const DEVICE_SYNC: u8 = 3;
}

/// The second header of routed operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteHeader {
    /// To the client: inbox sequence, 0 = not sequenced. From it: the epoch relied on, 0 = any.
    pub seq: Seq,
    pub msg_id: MsgId,
    /// The other user as the reader sees it, the group, or the author of a status.
    pub conv: u64,
    /// To the client: place in the conversation. RECEIPT: up_to.
    pub conv_seq: ConvSeq,
    /// To the client: the author, written by the server.
    pub user: UserId,
    /// To the client: the author's device.
    pub dev: DeviceId,
    pub conv_kind: ConvKind,
    pub kind: u8,
    /// Not delivered when older; 0 = the usual retention.
    pub ttl_s: u32,
}

/// One whole frame in somebody else's buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    bytes: &'a [u8],
}

/// Headers only: bodies hold tokens and other people's words.
impl fmt::Debug for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("op", &self.op())
            .field("flags", &self.flags().0)
            .field("corr", &self.corr())
            .field("bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

/// Takes the first frame of `bytes`, which holds the start of a stream or what earlier frames left.
/// `None` means that more bytes are needed. `max_bytes` bounds the whole frame, length included;
/// it is judged as soon as the length is there, before anything is kept for the rest.
pub fn next_frame(bytes: &[u8], max_bytes: usize) -> Result<Option<Frame<'_>>, FrameError> {
    let Some(len) = bytes.first_chunk::<4>() else {
        return Ok(None);
    };
    // Saturating, because on a 32-bit client the greatest length does not fit with its own field.
    let total = (u32::from_le_bytes(*len) as usize).saturating_add(4);
    if total < FRAME_BYTES_MIN {
        return Err(FrameError::TooShort);
    }
    if total > max_bytes {
        return Err(FrameError::TooLong);
    }
    let Some(bytes) = bytes.get(..total) else {
        return Ok(None);
    };
    let frame = Frame { bytes };
    let needed = match frame.known_op() {
        Some(op) => op.header().words(),
        None => Header::Base.words(),
    };
    let routed = frame.flags().contains(Flags::ROUTED);
    let needed = if routed {
        Header::Route.words()
    } else {
        needed
    };
    // An operation that needs a RouteHeader must say that it has one, and one that needs a SeqHeader
    // must not: both would begin at the same byte.
    let wrong_kind = match frame.known_op().map(Op::header) {
        Some(Header::Route) => !routed,
        Some(Header::Seq) => routed,
        Some(Header::Base) | None => false,
    };
    if wrong_kind || frame.hdr() < needed || frame.header_bytes() > total {
        return Err(FrameError::BadHeader);
    }
    Ok(Some(frame))
}

impl<'a> Frame<'a> {
    /// All bytes of the frame.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The operation as a number.
    #[must_use]
    pub const fn op(&self) -> u8 {
        self.bytes[4]
    }

    /// The operation, if this version knows it.
    #[must_use]
    pub const fn known_op(&self) -> Option<Op> {
        Op::from_u8(self.op())
    }

    #[must_use]
    pub const fn flags(&self) -> Flags {
        Flags(self.bytes[5])
    }

    const fn hdr(&self) -> u8 {
        self.bytes[6]
    }

    const fn header_bytes(&self) -> usize {
        self.hdr() as usize * 8
    }

    #[must_use]
    pub fn corr(&self) -> u32 {
        self.u32_at(8)
    }

    #[must_use]
    pub fn aux(&self) -> u32 {
        self.u32_at(12)
    }

    /// Asks for a reply.
    #[must_use]
    pub fn is_request(&self) -> bool {
        self.corr() != 0 && !self.flags().contains(Flags::REPLY)
    }

    /// The second header of an operation with [`crate::op::Header::Seq`]; zeros if the frame is
    /// too short to have one.
    #[must_use]
    pub fn seq_header(&self) -> SeqHeader {
        SeqHeader {
            seq: self.u64_at(16),
            arg: self.u32_at(24),
        }
    }

    /// The second header of a routed frame.
    #[must_use]
    pub fn route(&self) -> Option<RouteHeader> {
        if !self.flags().contains(Flags::ROUTED) || self.bytes.len() < ROUTE_END {
            return None;
        }
        let dev = u16::from_le_bytes([self.bytes[64], self.bytes[65]]);
        Some(RouteHeader {
            seq: Seq(self.u64_at(16)),
            msg_id: MsgId::from_parts(self.u64_at(24), self.u64_at(32)),
            conv: self.u64_at(40),
            conv_seq: ConvSeq(self.u64_at(48)),
            user: UserId(self.u64_at(56)),
            dev: DeviceId(dev),
            conv_kind: ConvKind(self.bytes[66]),
            kind: self.bytes[67],
            ttl_s: self.u32_at(68),
        })
    }

    /// What follows the headers; empty if nothing does.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.bytes.get(self.header_bytes()..).unwrap_or_default()
    }

    fn u32_at(&self, at: usize) -> u32 {
        match self.bytes.get(at..).and_then(<[u8]>::first_chunk) {
            Some(bytes) => u32::from_le_bytes(*bytes),
            None => 0,
        }
    }

    fn u64_at(&self, at: usize) -> u64 {
        match self.bytes.get(at..).and_then(<[u8]>::first_chunk) {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None => 0,
        }
    }
}
