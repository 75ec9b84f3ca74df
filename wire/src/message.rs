//! Bodies as plain values. Decoding verifies the flatbuffer once and checks the lengths that the
//! protocol bounds; what comes out cannot fail any more. Numbers are as the peer wrote them: whoever
//! uses one as a time or a size clamps it. Bodies that this crate has no value for are read
//! through [`crate::verify::root`] and [`crate::fb`].

pub mod group;
pub mod history;
pub mod people;

use crate::{
    code::{CloseCode, ErrorCode},
    error::BodyError,
    frame::ConvKind,
    generated::fb,
    ids::{DeviceId, Seq, UserId},
    limits::{
        CLIENT_NAME_BYTES_MAX, ENDPOINTS_MAX, ENVELOPE_BYTES_MAX, FRAME_BYTES_DEFAULT_MAX,
        HEARTBEAT_DEFAULT_S, HEARTBEAT_MAX_S, HEARTBEAT_MIN_S, KEY_ID_BYTES_MAX, RECEIPTS_GET_MAX,
        RECEIVE_MAX_DEFAULT, RESUME_TOKEN_BYTES_MAX, TOKEN_BYTES_MAX,
    },
    verify::{Scope, root},
};
use std::fmt;

/// What a client is doing, in its own words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientState {
    /// Seen online.
    #[default]
    Foreground,
    /// Seen as away.
    Away,
    /// Seen as offline; only sequenced frames and replies are pushed.
    Background,
}

impl ClientState {
    /// Numbers from the future count as the most modest state.
    #[must_use]
    pub const fn from_u8(number: u8) -> Self {
        match number {
            0 => Self::Foreground,
            1 => Self::Away,
            _ => Self::Background,
        }
    }

    #[must_use]
    pub const fn to_u8(self) -> u8 {
        match self {
            Self::Foreground => 0,
            Self::Away => 1,
            Self::Background => 2,
        }
    }
}

/// The first frame of a session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hello<'a> {
    pub min_version: u16,
    pub max_version: u16,
    pub token: Option<&'a str>,
    /// 0 = the token's own.
    pub device: DeviceId,
    pub resume_token: Option<&'a [u8]>,
    /// Everything up to here is stored by the client; 0 = use the server's cursor.
    pub last_seq: Seq,
    pub receive_max: u32,
    pub features: u32,
    pub state: ClientState,
    pub client: &'a str,
}

/// Without the tokens: credentials never reach a log.
impl fmt::Debug for Hello<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hello")
            .field("min_version", &self.min_version)
            .field("max_version", &self.max_version)
            .field("has_token", &self.token.is_some())
            .field("device", &self.device)
            .field("has_resume_token", &self.resume_token.is_some())
            .field("last_seq", &self.last_seq)
            .field("receive_max", &self.receive_max)
            .field("features", &self.features)
            .field("state", &self.state)
            .field("client", &self.client)
            .finish()
    }
}

impl Default for Hello<'_> {
    fn default() -> Self {
        Self {
            min_version: 1,
            max_version: 1,
            token: None,
            device: DeviceId(0),
            resume_token: None,
            last_seq: Seq(0),
            receive_max: RECEIVE_MAX_DEFAULT,
            features: 0,
            state: ClientState::Foreground,
            client: "",
        }
    }
}

impl<'a> Hello<'a> {
    pub fn decode(body: &'a [u8]) -> Result<Self, BodyError> {
        let table = root::<fb::Hello<'_>>(body, Scope::Server)?;
        let token = table.token();
        let resume_token = table.resume_token().map(|bytes| bytes.bytes());
        if token.is_some_and(|token| token.len() > TOKEN_BYTES_MAX)
            || resume_token.is_some_and(|token| token.len() > RESUME_TOKEN_BYTES_MAX)
        {
            return Err(BodyError::TooLong);
        }
        Ok(Self {
            min_version: table.min_version(),
            max_version: table.max_version(),
            token,
            device: DeviceId(table.device()),
            resume_token,
            last_seq: Seq(table.last_seq()),
            receive_max: table.receive_max(),
            features: table.features().bits(),
            state: ClientState::from_u8(table.state().0),
            client: cut(table.client().unwrap_or_default(), CLIENT_NAME_BYTES_MAX),
        })
    }
}

/// The reply to [`Hello`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Welcome<'a> {
    pub version: u16,
    pub user: UserId,
    pub device: DeviceId,
    pub resumed: bool,
    pub resume_token: &'a [u8],
    pub resume_ttl_s: u32,
    /// CLOSE TOKEN_EXPIRED after this without REAUTH; 0 = never.
    pub auth_ttl_s: u32,
    /// Newest visible entry; 0 = not read yet.
    pub head_seq: Seq,
    /// Entries from here on are kept by the retention.
    pub floor_seq: Seq,
    /// How many requests may be unanswered.
    pub receive_max: u32,
    /// Biggest frame the server accepts, length field included.
    pub max_frame: u32,
    pub heartbeat_s: u16,
    pub heartbeat_min_s: u16,
    pub heartbeat_max_s: u16,
    pub features: u32,
    pub server_us: u64,
    pub node: &'a str,
    /// If the connection ends without a word, the client waits a uniform time below this before its
    /// first attempt. PONG carries the newest value in `aux`.
    pub reconnect_spread_ms: u32,
}

/// Without the resume token: credentials never reach a log.
impl fmt::Debug for Welcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Welcome")
            .field("version", &self.version)
            .field("user", &self.user)
            .field("device", &self.device)
            .field("resumed", &self.resumed)
            .field("has_resume_token", &!self.resume_token.is_empty())
            .field("resume_ttl_s", &self.resume_ttl_s)
            .field("auth_ttl_s", &self.auth_ttl_s)
            .field("head_seq", &self.head_seq)
            .field("floor_seq", &self.floor_seq)
            .field("receive_max", &self.receive_max)
            .field("max_frame", &self.max_frame)
            .field("heartbeat_s", &self.heartbeat_s)
            .field("heartbeat_min_s", &self.heartbeat_min_s)
            .field("heartbeat_max_s", &self.heartbeat_max_s)
            .field("features", &self.features)
            .field("server_us", &self.server_us)
            .field("node", &self.node)
            .field("reconnect_spread_ms", &self.reconnect_spread_ms)
            .finish()
    }
}

impl Default for Welcome<'_> {
    fn default() -> Self {
        Self {
            version: 1,
            user: UserId(0),
            device: DeviceId(0),
            resumed: false,
            resume_token: &[],
            resume_ttl_s: 0,
            auth_ttl_s: 0,
            head_seq: Seq(0),
            floor_seq: Seq(0),
            receive_max: RECEIVE_MAX_DEFAULT,
            max_frame: FRAME_BYTES_DEFAULT_MAX as u32,
            heartbeat_s: HEARTBEAT_DEFAULT_S,
            heartbeat_min_s: HEARTBEAT_MIN_S,
            heartbeat_max_s: HEARTBEAT_MAX_S,
            features: 0,
            server_us: 0,
            node: "",
            reconnect_spread_ms: 0,
        }
    }
}

impl<'a> Welcome<'a> {
    pub fn decode(body: &'a [u8]) -> Result<Self, BodyError> {
        let table = root::<fb::Welcome<'_>>(body, Scope::Client)?;
        Ok(Self {
            version: table.version(),
            user: UserId(table.user()),
            device: DeviceId(table.device()),
            resumed: table.resumed(),
            resume_token: table
                .resume_token()
                .map(|bytes| bytes.bytes())
                .unwrap_or_default(),
            resume_ttl_s: table.resume_ttl_s(),
            auth_ttl_s: table.auth_ttl_s(),
            head_seq: Seq(table.head_seq()),
            floor_seq: Seq(table.floor_seq()),
            receive_max: table.receive_max(),
            max_frame: table.max_frame(),
            heartbeat_s: table.heartbeat_s(),
            heartbeat_min_s: table.heartbeat_min_s(),
            heartbeat_max_s: table.heartbeat_max_s(),
            features: table.features().bits(),
            server_us: table.server_us(),
            node: table.node().unwrap_or_default(),
            reconnect_spread_ms: table.reconnect_spread_ms(),
        })
    }
}

/// A request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorReply<'a> {
    pub code: ErrorCode,
    pub retry_after_ms: u32,
    /// For people, never parsed.
    pub detail: &'a str,
    /// The operation that failed.
    pub op: u8,
    /// CLOCK_AHEAD: the server's clock.
    pub server_us: u64,
}

impl<'a> ErrorReply<'a> {
    pub fn decode(body: &'a [u8]) -> Result<Self, BodyError> {
        let table = root::<fb::ErrorReply<'_>>(body, Scope::Client)?;
        Ok(Self {
            code: ErrorCode(table.code().0),
            retry_after_ms: table.retry_after_ms(),
            detail: table.detail().unwrap_or_default(),
            op: table.op().0,
            server_us: table.server_us(),
        })
    }
}

/// Either side ends the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close<'a> {
    pub code: CloseCode,
    pub retry_after_ms: u32,
    pub detail: &'a str,
    /// MOVED: "host:port" to use now.
    pub endpoint: &'a str,
}

impl<'a> Close<'a> {
    /// A CLOSE without a hint.
    #[must_use]
    pub const fn new(code: CloseCode, detail: &'a str) -> Self {
        Self {
            code,
            retry_after_ms: 0,
            detail,
            endpoint: "",
        }
    }

    pub fn decode(body: &'a [u8]) -> Result<Self, BodyError> {
        let table = root::<fb::Close<'_>>(body, Scope::Client)?;
        Ok(Self {
            code: CloseCode(table.code().0),
            retry_after_ms: table.retry_after_ms(),
            detail: table.detail().unwrap_or_default(),
            endpoint: table.endpoint().unwrap_or_default(),
        })
    }
}

/// Go elsewhere within the window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain<'a> {
    /// Leave after a uniform delay in `[0, spread_ms)`.
    pub spread_ms: u32,
    /// The server closes then.
    pub deadline_ms: u32,
    /// Empty = resolve the usual name again.
    pub endpoints: Vec<&'a str>,
}

impl<'a> Drain<'a> {
    pub fn decode(body: &'a [u8]) -> Result<Self, BodyError> {
        let table = root::<fb::Drain<'_>>(body, Scope::Client)?;
        let endpoints = match table.endpoints() {
            Some(list) => list.iter().take(ENDPOINTS_MAX).collect(),
            None => Vec::new(),
        };
        Ok(Self {
            spread_ms: table.spread_ms(),
            deadline_ms: table.deadline_ms(),
            endpoints,
        })
    }
}

/// What one receiving device gets. Opaque to the server; clients read it with this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// 0 plain, 1 prekey, 2 ratchet, 3 sender key, 4 MLS.
    pub cipher: u8,
    pub body: &'a [u8],
    /// Of the plaintext, before it was sealed: 0 none, 1 deflate, 2 zstd.
    pub packing: u8,
    pub key_id: &'a [u8],
}

impl<'a> Envelope<'a> {
    pub fn decode(body: &'a [u8]) -> Result<Self, BodyError> {
        if body.len() > ENVELOPE_BYTES_MAX {
            return Err(BodyError::TooLong);
        }
        let table = root::<fb::Envelope<'_>>(body, Scope::Client)?;
        let key_id = table
            .key_id()
            .map(|bytes| bytes.bytes())
            .unwrap_or_default();
        if key_id.len() > KEY_ID_BYTES_MAX {
            return Err(BodyError::TooLong);
        }
        Ok(Self {
            cipher: table.cipher().0,
            body: table.body().map(|bytes| bytes.bytes()).unwrap_or_default(),
            packing: table.packing().0,
            key_id,
        })
    }
}

/// A new access token for the connection it comes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Reauth<'a> {
    pub token: &'a str,
}

/// Without the token: credentials never reach a log.
impl fmt::Debug for Reauth<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reauth").finish_non_exhaustive()
    }
}

impl<'a> Reauth<'a> {
    pub fn decode(body: &'a [u8]) -> Result<Self, BodyError> {
        let token = root::<fb::Reauth<'_>>(body, Scope::Server)?.token();
        if token.len() > TOKEN_BYTES_MAX {
            return Err(BodyError::TooLong);
        }
        Ok(Self { token })
    }
}

/// Asks for the watermarks of conversations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptsGet {
    pub convs: Vec<(ConvKind, u64)>,
    pub members: bool,
}

impl ReceiptsGet {
    pub fn decode(body: &[u8]) -> Result<Self, BodyError> {
        let table = root::<fb::ReceiptsGet<'_>>(body, Scope::Server)?;
        let convs = table.convs().ok_or(BodyError::Missing)?;
        if convs.len() > RECEIPTS_GET_MAX {
            return Err(BodyError::TooLong);
        }
        Ok(Self {
            convs: convs
                .iter()
                .map(|conv| (ConvKind(conv.conv_kind()), conv.conv()))
                .collect(),
            members: table.members(),
        })
    }
}

/// The first `max` bytes of a text, or a few less where a character would be cut.
fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
