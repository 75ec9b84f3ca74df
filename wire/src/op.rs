//! The table of operations: number, direction, header, body, and when a client may send it.

/// Who may send an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
    Both,
}

/// Which fixed header follows the base header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    Base,
    Seq,
    Route,
}

impl Header {
    /// The least value of the `hdr` field, in 8-byte words.
    #[must_use]
    pub const fn words(self) -> u8 {
        match self {
            Self::Base => 2,
            Self::Seq => 4,
            Self::Route => 9,
        }
    }
}

/// How far a session is, as far as the legality of operations goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before HELLO.
    Greeting,
    /// After HELLO, before WELCOME.
    Authenticating,
    /// After WELCOME: replaying, live or draining.
    Welcomed,
}

impl Op {
    /// A client may send this operation at this stage; otherwise the session ends with
    /// PROTOCOL_ERROR.
    #[must_use]
    pub const fn may_come_from_client(self, stage: Stage) -> bool {
        if matches!(self.direction(), Direction::ToClient) {
            return false;
        }
        let before_hello_only = matches!(self, Self::Hello | Self::RegStart | Self::RegConfirm);
        let any_time = matches!(self, Self::Ping | Self::Close);
        match stage {
            Stage::Greeting => {
                before_hello_only
                    || any_time
                    || matches!(self, Self::TokenRefresh | Self::DeviceLink)
            }
            Stage::Authenticating => any_time,
            Stage::Welcomed => !before_hello_only,
        }
    }
}

macro_rules! body_table {
    (-) => {
        None
    };
    ($body:ident) => {
        Some(stringify!($body))
    };
}

macro_rules! ops {
    ($($name:ident = $number:literal, $dir:ident, $header:ident, $raw:ident, $body:tt;)+) => {
        /// An operation this version knows.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Op {
            $($name = $number,)+
        }

        impl Op {
            /// Every operation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            #[must_use]
            pub const fn from_u8(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)+
                    _ => None,
                }
            }

            #[must_use]
            pub const fn direction(self) -> Direction {
                match self {
                    $(Self::$name => Direction::$dir,)+
                }
            }

            #[must_use]
            pub const fn header(self) -> Header {
                match self {
                    $(Self::$name => Header::$header,)+
                }
            }

            /// The name in the schema.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($raw),)+
                }
            }

            /// The schema's table that its body is; `None` for operations without a body.
            #[must_use]
            pub const fn body_table(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => body_table!($body),)+
                }
            }
        }

        #[cfg(test)]
        const SCHEMA: &[(u8, crate::generated::fb::Op)] =
            &[$(($number, crate::generated::fb::Op::$raw),)+];
    };
}

ops! {
    Hello = 1, ToServer, Base, HELLO, Hello;
    Welcome = 2, ToClient, Base, WELCOME, Welcome;
    Ping = 3, ToServer, Base, PING, -;
    Pong = 4, ToClient, Base, PONG, -;
    Ack = 5, ToServer, Seq, ACK, -;
    Done = 6, ToClient, Base, DONE, -;
    Error = 7, ToClient, Base, ERROR, ErrorReply;
    Close = 8, Both, Base, CLOSE, Close;
    Drain = 9, ToClient, Base, DRAIN, Drain;
    Reauth = 10, ToServer, Base, REAUTH, Reauth;
    SyncGap = 11, ToClient, Seq, SYNC_GAP, -;
    Synced = 12, ToClient, Seq, SYNCED, -;
    ClientState = 13, ToServer, Base, CLIENT_STATE, -;
    RegStart = 16, ToServer, Base, REG_START, RegStart;
    RegConfirm = 17, ToServer, Base, REG_CONFIRM, RegConfirm;
    Tokens = 18, ToClient, Base, TOKENS, Tokens;
    TokenRefresh = 19, ToServer, Base, TOKEN_REFRESH, TokenRefresh;
    Send = 32, ToServer, Route, SEND, Envelope;
    Sent = 33, ToClient, Seq, SENT, -;
    Deliver = 34, ToClient, Route, DELIVER, Envelope;
    Receipt = 35, Both, Route, RECEIPT, -;
    Signal = 36, Both, Route, SIGNAL, -;
    History = 37, ToServer, Base, HISTORY, HistoryGet;
    HistoryEnd = 38, ToClient, Base, HISTORY_END, HistoryEnd;
    DevicesStale = 39, ToClient, Base, DEVICES_STALE, DevicesStale;
    ReceiptsGet = 40, ToServer, Base, RECEIPTS_GET, ReceiptsGet;
    SendMulti = 41, ToServer, Route, SEND_MULTI, Message;
    Revoke = 42, Both, Route, REVOKE, Revoke;
    ConversationsGet = 43, ToServer, Base, CONVERSATIONS_GET, ConversationsGet;
    Conversation = 44, ToClient, Base, CONVERSATION, Conversation;
    PresenceSub = 65, ToServer, Base, PRESENCE_SUB, PresenceSub;
    Presence = 66, ToClient, Base, PRESENCE, Presence;
    GroupCreate = 72, ToServer, Route, GROUP_CREATE, GroupCreate;
    GroupEdit = 73, ToServer, Route, GROUP_EDIT, GroupEdit;
    GroupGet = 74, ToServer, Base, GROUP_GET, GroupGet;
    Group = 75, ToClient, Base, GROUP, Group;
    GroupEvent = 76, ToClient, Route, GROUP_EVENT, GroupEvent;
    KeysUpload = 88, ToServer, Base, KEYS_UPLOAD, KeysUpload;
    KeysFetch = 89, ToServer, Base, KEYS_FETCH, KeysFetch;
    KeyBundles = 90, ToClient, Base, KEY_BUNDLES, KeyBundles;
    KeysLow = 91, ToClient, Base, KEYS_LOW, KeysLow;
    DevicesGet = 92, ToServer, Base, DEVICES_GET, DevicesGet;
    Devices = 93, ToClient, Base, DEVICES, Devices;
    DeviceLink = 94, Both, Base, DEVICE_LINK, DeviceLink;
    DeviceRevoke = 95, ToServer, Base, DEVICE_REVOKE, DeviceRevoke;
    DevicesChanged = 96, ToClient, Route, DEVICES_CHANGED, DevicesChanged;
    DeviceRename = 97, ToServer, Base, DEVICE_RENAME, DeviceRename;
    IdentityLogGet = 98, ToServer, Base, IDENTITY_LOG_GET, IdentityLogGet;
    IdentityLog = 99, ToClient, Base, IDENTITY_LOG, IdentityLog;
    UploadOpen = 112, ToServer, Base, UPLOAD_OPEN, UploadOpen;
    UploadTicket = 113, ToClient, Base, UPLOAD_TICKET, UploadTicket;
    UploadDone = 114, ToServer, Base, UPLOAD_DONE, UploadDone;
    DownloadOpen = 115, ToServer, Base, DOWNLOAD_OPEN, DownloadOpen;
    DownloadTicket = 116, ToClient, Base, DOWNLOAD_TICKET, DownloadTicket;
    MediaReady = 117, ToClient, Base, MEDIA_READY, MediaReady;
    PushSet = 128, ToServer, Base, PUSH_SET, PushSet;
    NotifyPrefs = 129, Both, Base, NOTIFY_PREFS, NotifyPrefs;
    NotifyPrefsGet = 130, ToServer, Base, NOTIFY_PREFS_GET, -;
    ContactsEdit = 131, ToServer, Base, CONTACTS_EDIT, ContactsEdit;
    ContactsGet = 132, ToServer, Base, CONTACTS_GET, ContactsGet;
    Contacts = 133, ToClient, Base, CONTACTS, Contacts;
    PrivacySet = 134, ToServer, Base, PRIVACY_SET, Privacy;
    PrivacyGet = 135, ToServer, Base, PRIVACY_GET, -;
    Privacy = 136, ToClient, Base, PRIVACY, Privacy;
    ProfileSet = 137, ToServer, Base, PROFILE_SET, Profile;
    ProfilesGet = 138, ToServer, Base, PROFILES_GET, ProfilesGet;
    Profile = 139, ToClient, Base, PROFILE, Profile;
    UsersLookup = 140, ToServer, Base, USERS_LOOKUP, UsersLookup;
    Users = 141, ToClient, Base, USERS, Users;
    Call = 160, Both, Route, CALL, Call;
    TurnGet = 161, ToServer, Base, TURN_GET, TurnGet;
    Turn = 162, ToClient, Base, TURN, Turn;
}

/// First number of the range that belongs to the program that embeds the gateway.
pub const PRIVATE_FIRST: u8 = 224;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_agrees_with_the_schema() {
        for (number, raw) in SCHEMA {
            assert_eq!(*number, raw.0);
        }
        // INVALID = 0 is the only value of the schema without a row.
        assert_eq!(
            Op::ALL.len() + 1,
            crate::generated::fb::Op::ENUM_VALUES.len()
        );
    }

    #[test]
    fn only_the_greeting_takes_credentials_and_only_clients_make_them() {
        use Stage::{Authenticating, Greeting, Welcomed};
        let stages = [Greeting, Authenticating, Welcomed];
        let legal = |op: Op| stages.map(|stage| op.may_come_from_client(stage));
        assert_eq!(legal(Op::Hello), [true, false, false]);
        assert_eq!(legal(Op::RegStart), [true, false, false]);
        assert_eq!(legal(Op::TokenRefresh), [true, false, true]);
        assert_eq!(legal(Op::DeviceLink), [true, false, true]);
        assert_eq!(legal(Op::Ping), [true; 3]);
        assert_eq!(legal(Op::Close), [true; 3]);
        assert_eq!(legal(Op::Send), [false, false, true]);
        assert_eq!(legal(Op::Ack), [false, false, true]);
        for op in Op::ALL {
            let from_server_only = op.direction() == Direction::ToClient;
            assert_eq!(legal(*op) == [false; 3], from_server_only, "{op:?}");
        }
    }

    #[test]
    fn numbers_and_operations_convert_both_ways() {
        for op in Op::ALL {
            assert_eq!(Op::from_u8(*op as u8), Some(*op));
        }
        for number in [0, 14, 31, 64, 200, 224, 255] {
            assert_eq!(Op::from_u8(number), None);
        }
    }
}
