//! The table of operations: number, direction, header.

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

macro_rules! ops {
    ($($name:ident = $number:literal, $dir:ident, $header:ident, $raw:ident;)+) => {
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
        }

        #[cfg(test)]
        const SCHEMA: &[(u8, crate::generated::fb::Op)] =
            &[$(($number, crate::generated::fb::Op::$raw),)+];
    };
}

ops! {
    Hello = 1, ToServer, Base, HELLO;
    Welcome = 2, ToClient, Base, WELCOME;
    Ping = 3, ToServer, Base, PING;
    Pong = 4, ToClient, Base, PONG;
    Ack = 5, ToServer, Seq, ACK;
    Done = 6, ToClient, Base, DONE;
    Error = 7, ToClient, Base, ERROR;
    Close = 8, Both, Base, CLOSE;
    Drain = 9, ToClient, Base, DRAIN;
    Reauth = 10, ToServer, Base, REAUTH;
    SyncGap = 11, ToClient, Seq, SYNC_GAP;
    Synced = 12, ToClient, Seq, SYNCED;
    ClientState = 13, ToServer, Base, CLIENT_STATE;
    RegStart = 16, ToServer, Base, REG_START;
    RegConfirm = 17, ToServer, Base, REG_CONFIRM;
    Tokens = 18, ToClient, Base, TOKENS;
    TokenRefresh = 19, ToServer, Base, TOKEN_REFRESH;
    Send = 32, ToServer, Route, SEND;
    Sent = 33, ToClient, Seq, SENT;
    Deliver = 34, ToClient, Route, DELIVER;
    Receipt = 35, Both, Route, RECEIPT;
    Signal = 36, Both, Route, SIGNAL;
    History = 37, ToServer, Base, HISTORY;
    HistoryEnd = 38, ToClient, Base, HISTORY_END;
    DevicesStale = 39, ToClient, Base, DEVICES_STALE;
    ReceiptsGet = 40, ToServer, Base, RECEIPTS_GET;
    SendMulti = 41, ToServer, Route, SEND_MULTI;
    Revoke = 42, Both, Route, REVOKE;
    ConversationsGet = 43, ToServer, Base, CONVERSATIONS_GET;
    Conversation = 44, ToClient, Base, CONVERSATION;
    PresenceSub = 65, ToServer, Base, PRESENCE_SUB;
    Presence = 66, ToClient, Base, PRESENCE;
    GroupCreate = 72, ToServer, Route, GROUP_CREATE;
    GroupEdit = 73, ToServer, Route, GROUP_EDIT;
    GroupGet = 74, ToServer, Base, GROUP_GET;
    Group = 75, ToClient, Base, GROUP;
    GroupEvent = 76, ToClient, Route, GROUP_EVENT;
    KeysUpload = 88, ToServer, Base, KEYS_UPLOAD;
    KeysFetch = 89, ToServer, Base, KEYS_FETCH;
    KeyBundles = 90, ToClient, Base, KEY_BUNDLES;
    KeysLow = 91, ToClient, Base, KEYS_LOW;
    DevicesGet = 92, ToServer, Base, DEVICES_GET;
    Devices = 93, ToClient, Base, DEVICES;
    DeviceLink = 94, Both, Base, DEVICE_LINK;
    DeviceRevoke = 95, ToServer, Base, DEVICE_REVOKE;
    DevicesChanged = 96, ToClient, Route, DEVICES_CHANGED;
    DeviceRename = 97, ToServer, Base, DEVICE_RENAME;
    IdentityLogGet = 98, ToServer, Base, IDENTITY_LOG_GET;
    IdentityLog = 99, ToClient, Base, IDENTITY_LOG;
    UploadOpen = 112, ToServer, Base, UPLOAD_OPEN;
    UploadTicket = 113, ToClient, Base, UPLOAD_TICKET;
    UploadDone = 114, ToServer, Base, UPLOAD_DONE;
    DownloadOpen = 115, ToServer, Base, DOWNLOAD_OPEN;
    DownloadTicket = 116, ToClient, Base, DOWNLOAD_TICKET;
    MediaReady = 117, ToClient, Base, MEDIA_READY;
    PushSet = 128, ToServer, Base, PUSH_SET;
    NotifyPrefs = 129, Both, Base, NOTIFY_PREFS;
    NotifyPrefsGet = 130, ToServer, Base, NOTIFY_PREFS_GET;
    ContactsEdit = 131, ToServer, Base, CONTACTS_EDIT;
    ContactsGet = 132, ToServer, Base, CONTACTS_GET;
    Contacts = 133, ToClient, Base, CONTACTS;
    PrivacySet = 134, ToServer, Base, PRIVACY_SET;
    PrivacyGet = 135, ToServer, Base, PRIVACY_GET;
    Privacy = 136, ToClient, Base, PRIVACY;
    ProfileSet = 137, ToServer, Base, PROFILE_SET;
    ProfilesGet = 138, ToServer, Base, PROFILES_GET;
    Profile = 139, ToClient, Base, PROFILE;
    UsersLookup = 140, ToServer, Base, USERS_LOOKUP;
    Users = 141, ToClient, Base, USERS;
    Call = 160, Both, Route, CALL;
    TurnGet = 161, ToServer, Base, TURN_GET;
    Turn = 162, ToClient, Base, TURN;
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
    fn numbers_and_operations_convert_both_ways() {
        for op in Op::ALL {
            assert_eq!(Op::from_u8(*op as u8), Some(*op));
        }
        for number in [0, 14, 31, 64, 200, 224, 255] {
            assert_eq!(Op::from_u8(number), None);
        }
    }
}
