//! Maxima of the protocol. What an operator may change is a default here and is marked so.

/// Bytes of the smallest frame: the base header alone.
pub const FRAME_BYTES_MIN: usize = 16;
/// Largest frame a client may send before WELCOME, length field included. Small enough that the
/// length field of a first frame cannot be taken for `GET ` or for a TLS record.
pub const FRAME_BYTES_BEFORE_WELCOME_MAX: usize = 4_096;
/// Largest frame a client may send after WELCOME (configurable up to the ceiling below).
pub const FRAME_BYTES_DEFAULT_MAX: usize = 262_144;
/// Ceiling for the configured largest frame.
pub const FRAME_BYTES_CEILING: usize = 1_048_576;
/// Largest frame to a client. Clients announce no maximum, so this one never grows.
pub const FRAME_BYTES_TO_CLIENT_MAX: usize = 65_536;

/// Largest Envelope (the body of SEND and DELIVER).
pub const ENVELOPE_BYTES_MAX: usize = 64_000;
/// Longest key_id in an Envelope.
pub const KEY_ID_BYTES_MAX: usize = 32;
/// Longest access token in HELLO.
pub const TOKEN_BYTES_MAX: usize = 2_048;
/// Longest resume token.
pub const RESUME_TOKEN_BYTES_MAX: usize = 128;
/// Longest client description in HELLO; the rest is cut off.
pub const CLIENT_NAME_BYTES_MAX: usize = 64;
/// Longest detail text of ERROR and CLOSE.
pub const DETAIL_BYTES_MAX: usize = 200;
/// Longest endpoint of CLOSE and DRAIN: a DNS name, a colon and a port.
pub const ENDPOINT_BYTES_MAX: usize = 260;
/// Most endpoints in DRAIN.
pub const ENDPOINTS_MAX: usize = 16;

/// Sequenced frames a client lets stand unacknowledged: default and ceiling. Also the number of
/// requests the server lets stand unanswered.
pub const RECEIVE_MAX_DEFAULT: u32 = 256;
pub const RECEIVE_MAX_CEILING: u32 = 4_096;

/// Members of a group, at most and unless the group asks for more. Also the members named by one
/// GROUP_CREATE or GROUP_EDIT.
pub const GROUP_MEMBERS_MAX: usize = 1_024;
pub const GROUP_MEMBERS_DEFAULT_MAX: u16 = 256;
/// Longest title of a group.
pub const GROUP_TITLE_BYTES_MAX: usize = 400;
/// Longest sealed_info of a group.
pub const GROUP_INFO_BYTES_MAX: usize = 4_096;
/// Longest invite code.
pub const GROUP_INVITE_BYTES_MAX: usize = 64;

/// Conversations in one RECEIPTS_GET.
pub const RECEIPTS_GET_MAX: usize = 100;

/// Entries in one page of a HISTORY, and conversations in one of a CONVERSATIONS_GET. A request for
/// none or for more is refused.
pub const HISTORY_PAGE_MAX: u16 = 100;
pub const CONVERSATIONS_PAGE_MAX: u16 = 100;
/// How many a request brings that does not say.
pub const HISTORY_PAGE_DEFAULT: u16 = 50;
/// Unread messages of a conversation are counted up to here.
pub const UNREAD_MAX: u32 = 1_000;
/// Users whose presence a connection may be told, and of one PRESENCE_SUB those to add and those to
/// remove.
pub const PRESENCE_SUBS_MAX: usize = 500;
/// A SIGNAL is shown for this long unless it says less; what it says is cut to the ceiling.
pub const SIGNAL_TTL_DEFAULT_S: u32 = 6;
pub const SIGNAL_TTL_CEILING_S: u32 = 30;
/// SIGNALs of a connection in one conversation: one in so many milliseconds (STOPPED is free).
pub const SIGNAL_INTERVAL_MS: u32 = 2_000;
/// Edits in one CONTACTS_EDIT.
pub const CONTACT_EDITS_MAX: usize = 100;
/// Longest sealed name of a contact.
pub const CONTACT_NAME_BYTES_MAX: usize = 256;
/// Contacts in one page: default and ceiling.
pub const CONTACTS_PAGE_MAX: u16 = 500;
/// Contacts that a user may have, and users that a user may block.
pub const CONTACTS_MAX: usize = 10_000;
pub const BLOCKS_MAX: usize = 1_000;
/// Bodies that fail verification, per connection and minute, before it is closed.
pub const MALFORMED_PER_MINUTE_MAX: u32 = 10;

/// Heartbeat interval: assumed until the first PING, and the range a PING may promise.
pub const HEARTBEAT_DEFAULT_S: u16 = 60;
pub const HEARTBEAT_MIN_S: u16 = 30;
pub const HEARTBEAT_MAX_S: u16 = 300;

/// A msg_id may be dated this much ahead of the gateway's clock.
pub const MSG_ID_AHEAD_MAX_MS: u64 = 60_000;
/// The clock error allowed behind: a search for a first attempt starts this much before the id's
/// own time.
pub const MSG_ID_BEHIND_MAX_MS: u64 = 60_000;
/// A RETRY with an older id is refused: the first attempt can no longer be found for certain.
pub const MSG_ID_AGE_MAX_MS: u64 = 7 * 24 * 3_600 * 1_000;

/// Verifier limits. The defaults of the flatbuffers crate (a million tables, depth 64, 2 GiB) are
/// never used.
pub const VERIFY_DEPTH_MAX: usize = 6;
pub const VERIFY_TABLES_MAX: usize = 64;
/// For KEYS_UPLOAD, NOTIFY_PREFS and CONTACTS_EDIT, the bodies from clients with long lists of tables.
pub const VERIFY_TABLES_LARGE_MAX: usize = 512;
/// For bodies from the server, read by clients.
pub const VERIFY_TABLES_CLIENT_MAX: usize = 4_096;

const _: () = assert!(
    FRAME_BYTES_BEFORE_WELCOME_MAX < 66_326,
    "must not look like TLS"
);
const _: () = assert!(FRAME_BYTES_DEFAULT_MAX <= FRAME_BYTES_CEILING);
const _: () = assert!(
    ENVELOPE_BYTES_MAX + crate::frame::ROUTE_END <= FRAME_BYTES_TO_CLIENT_MAX,
    "an Envelope must fit into one frame to a client"
);
const _: () = assert!(
    TOKEN_BYTES_MAX + RESUME_TOKEN_BYTES_MAX + 512 <= FRAME_BYTES_BEFORE_WELCOME_MAX,
    "the largest HELLO must fit into the first frame"
);
const _: () = assert!(
    GROUP_MEMBERS_MAX * 16
        + GROUP_TITLE_BYTES_MAX
        + GROUP_INFO_BYTES_MAX
        + GROUP_INVITE_BYTES_MAX
        + 256
        <= FRAME_BYTES_TO_CLIENT_MAX,
    "the largest GROUP and GROUP_EVENT must fit into one frame to a client"
);
const _: () = assert!(
    PRESENCE_SUBS_MAX * 16 + 64 <= FRAME_BYTES_TO_CLIENT_MAX,
    "the state of all subscriptions must fit into one frame"
);
const _: () = assert!(CONTACT_EDITS_MAX < VERIFY_TABLES_LARGE_MAX);
const _: () = assert!((CONTACTS_PAGE_MAX as usize) < VERIFY_TABLES_CLIENT_MAX);
const _: () = assert!(RECEIVE_MAX_DEFAULT <= RECEIVE_MAX_CEILING);
