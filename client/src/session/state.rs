//! What survives a restart of the client, and its form on disk.
//!
//! ```text
//! "PTCS" version:u8  cursor:u64
//! resume_len:u32 resume
//! count:u32 { msg_id:[u8;16] conv queued_us:u64 ttl_s:u32 flags:u8 kind:u8 body_len:u32 body }
//! count:u32 { msg_id:[u8;16] user:u64 device:u16 }
//! count:u32 { conv up_to:u64 }
//! checksum:u64
//! ```
//! A `conv` is kind:u8 number:u64, in version 1 the number of a user alone.
//! Little endian. The checksum (FNV-1a over all before it) finds torn and damaged files; it is no
//! protection against somebody who may write to the file.

use super::{conv::Conv, inbox::Key, requests::Message};
use portico_wire::{
    Flags,
    frame::ConvKind,
    ids::{ConvSeq, DeviceId, MsgId, Seq, UserId},
    limits::{ENVELOPE_BYTES_MAX, RESUME_TOKEN_BYTES_MAX},
};
use std::fmt;

const MAGIC: &[u8; 4] = b"PTCS";
const VERSION: u8 = 2;
/// Before there were groups.
const VERSION_USERS_ONLY: u8 = 1;
const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// All that a session has to remember: where it is in its inbox, what it has not sent, which
/// messages it knows. The default is a device that starts.
///
/// Hand it to [`crate::Session::new`]; messages in it are sent again with RETRY. Save it after
/// storing what events brought, before acknowledging: then nothing is lost, and little repeated.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SessionState {
    /// Everything up to here is stored; 0 = take the server's word.
    pub cursor: Seq,
    pub(crate) resume_token: Vec<u8>,
    pub(crate) outbox: Vec<Message>,
    pub(crate) recent: Vec<Key>,
    pub(crate) reads: Vec<(Conv, ConvSeq)>,
}

/// Without the resume token, which is as secret as an access token, and without the messages.
impl fmt::Debug for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionState")
            .field("cursor", &self.cursor)
            .field("outbox", &self.outbox.len())
            .field("recent", &self.recent.len())
            .field("reads", &self.reads.len())
            .finish_non_exhaustive()
    }
}

/// Why bytes are not a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error("this is not a saved session")]
    Foreign,
    #[error("saved by a newer version ({0})")]
    Version(u8),
    #[error("the saved session is damaged")]
    Damaged,
}

impl SessionState {
    /// A device that has stored everything up to `cursor` and knows nothing else.
    #[must_use]
    pub fn at(cursor: Seq) -> Self {
        Self {
            cursor,
            ..Self::default()
        }
    }

    /// Ids of the messages that are not sent yet, in their order.
    pub fn unsent(&self) -> impl Iterator<Item = MsgId> + '_ {
        self.outbox.iter().map(|message| message.msg_id)
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.recent.len() * 26);
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        out.extend_from_slice(&self.cursor.0.to_le_bytes());
        put_bytes(&mut out, &self.resume_token);
        put_count(&mut out, self.outbox.len());
        for message in &self.outbox {
            out.extend_from_slice(&message.msg_id.to_bytes());
            put_conv(&mut out, message.to);
            out.extend_from_slice(&message.queued_us.to_le_bytes());
            out.extend_from_slice(&message.ttl_s.to_le_bytes());
            out.push(message.flags.0);
            out.push(message.kind);
            put_bytes(&mut out, &message.body);
        }
        put_count(&mut out, self.recent.len());
        for key in &self.recent {
            out.extend_from_slice(&key.msg_id.to_bytes());
            out.extend_from_slice(&key.user.0.to_le_bytes());
            out.extend_from_slice(&key.device.0.to_le_bytes());
        }
        put_count(&mut out, self.reads.len());
        for (conv, up_to) in &self.reads {
            put_conv(&mut out, *conv);
            out.extend_from_slice(&up_to.0.to_le_bytes());
        }
        let sum = checksum(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let Some(rest) = bytes.strip_prefix(MAGIC) else {
            return Err(StateError::Foreign);
        };
        let users_only = match rest.first() {
            Some(&VERSION) => false,
            Some(&VERSION_USERS_ONLY) => true,
            Some(&newer) => return Err(StateError::Version(newer)),
            None => return Err(StateError::Damaged),
        };
        let (body, sum) = bytes.split_last_chunk::<8>().ok_or(StateError::Damaged)?;
        if checksum(body) != u64::from_le_bytes(*sum) {
            return Err(StateError::Damaged);
        }
        let fields = body.get(MAGIC.len() + 1..).unwrap_or_default();
        let reader = Reader { fields, users_only };
        reader.state().ok_or(StateError::Damaged)
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    // All lists are bounded far below 2^32 by the session's limits.
    out.extend_from_slice(&(count as u32).to_le_bytes());
}

fn put_conv(out: &mut Vec<u8>, conv: Conv) {
    out.push(conv.kind().0);
    out.extend_from_slice(&conv.number().to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(FNV_START, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(FNV_PRIME)
    })
}

/// Takes fields off the front. Lists grow as their elements are found, so a count alone reserves
/// nothing.
struct Reader<'a> {
    fields: &'a [u8],
    users_only: bool,
}

impl<'a> Reader<'a> {
    fn state(mut self) -> Option<SessionState> {
        let mut state = SessionState {
            cursor: Seq(self.u64()?),
            resume_token: self.bytes(RESUME_TOKEN_BYTES_MAX)?.to_vec(),
            ..SessionState::default()
        };
        for _ in 0..self.u32()? {
            let message = self.message()?;
            state.outbox.push(message);
        }
        for _ in 0..self.u32()? {
            state.recent.push(Key {
                msg_id: MsgId::from_bytes(self.take()?),
                user: UserId(self.u64()?),
                device: DeviceId(u16::from_le_bytes(self.take()?)),
            });
        }
        for _ in 0..self.u32()? {
            state.reads.push((self.conv()?, ConvSeq(self.u64()?)));
        }
        self.fields.is_empty().then_some(state)
    }

    fn message(&mut self) -> Option<Message> {
        Some(Message {
            msg_id: MsgId::from_bytes(self.take()?),
            to: self.conv()?,
            queued_us: self.u64()?,
            ttl_s: self.u32()?,
            flags: Flags(u8::from_le_bytes(self.take()?)),
            kind: u8::from_le_bytes(self.take()?),
            body: self.bytes(ENVELOPE_BYTES_MAX)?.into(),
            order: 0,
            failures: 0,
            retry: true,
        })
    }

    fn conv(&mut self) -> Option<Conv> {
        let kind = if self.users_only {
            ConvKind::DIRECT
        } else {
            ConvKind(u8::from_le_bytes(self.take()?))
        };
        Conv::of(kind, self.u64()?)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.fields.split_first_chunk()?;
        self.fields = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn bytes(&mut self, bytes_max: usize) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u32()?).ok()?;
        if len > bytes_max {
            return None;
        }
        let (bytes, rest) = self.fields.split_at_checked(len)?;
        self.fields = rest;
        Some(bytes)
    }
}
