//! Presence, contacts, blocks and settings.

use crate::{
    error::BodyError,
    generated::fb,
    ids::UserId,
    limits::{CONTACT_EDITS_MAX, CONTACT_NAME_BYTES_MAX, PRESENCE_SUBS_MAX},
    verify::{Scope, root},
};

/// Adds and removes users whose presence this connection is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PresenceSub {
    pub add: Vec<UserId>,
    pub remove: Vec<UserId>,
}

impl PresenceSub {
    /// Either list longer than [`PRESENCE_SUBS_MAX`] is [`BodyError::TooLong`].
    pub fn decode(body: &[u8]) -> Result<Self, BodyError> {
        let table = root::<fb::PresenceSub<'_>>(body, Scope::Server)?;
        Ok(Self {
            add: users(table.add())?,
            remove: users(table.remove())?,
        })
    }
}

fn users(list: Option<flatbuffers::Vector<'_, u64>>) -> Result<Vec<UserId>, BodyError> {
    match list {
        Some(list) if list.len() > PRESENCE_SUBS_MAX => Err(BodyError::TooLong),
        Some(list) => Ok(list.iter().map(UserId).collect()),
        None => Ok(Vec::new()),
    }
}

/// What a user is seen as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PresenceState {
    #[default]
    Offline,
    Online,
    Away,
}

impl PresenceState {
    /// Numbers from the future count as offline.
    #[must_use]
    pub const fn from_u8(number: u8) -> Self {
        match number {
            1 => Self::Online,
            2 => Self::Away,
            _ => Self::Offline,
        }
    }

    #[must_use]
    pub const fn to_u8(self) -> u8 {
        match self {
            Self::Offline => 0,
            Self::Online => 1,
            Self::Away => 2,
        }
    }
}

/// One user in a [`Presence`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PresenceItem {
    pub user: UserId,
    /// Unix seconds, rounded down to the minute; 0 = hidden, not known, or not offline.
    pub last_seen_s: u32,
    pub state: PresenceState,
}

/// How users are seen now: the reply to [`PresenceSub`], and what is told of changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Presence {
    pub items: Vec<PresenceItem>,
}

impl Presence {
    pub fn decode(body: &[u8]) -> Result<Self, BodyError> {
        let table = root::<fb::Presence<'_>>(body, Scope::Client)?;
        let items = table.items().map(|items| {
            let item = |item: &fb::PresenceItem| PresenceItem {
                user: UserId(item.user()),
                last_seen_s: item.last_seen_s(),
                state: PresenceState::from_u8(item.state()),
            };
            items.iter().map(item).collect()
        });
        Ok(Self {
            items: items.unwrap_or_default(),
        })
    }
}

/// What is to become of a contact. An open set: a number from the future is refused by whoever uses
/// it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContactChange(pub u8);

impl ContactChange {
    /// Adds the contact, or gives it another name.
    pub const SET: Self = Self(0);
    pub const REMOVE: Self = Self(1);
    pub const BLOCK: Self = Self(2);
    pub const UNBLOCK: Self = Self(3);
}

/// One change of one's contacts or blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContactEdit<'a> {
    pub user: UserId,
    pub change: ContactChange,
    /// SET only: encrypted for the owner's devices.
    pub sealed_name: &'a [u8],
}

/// Changes that are made together, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContactsEdit<'a> {
    pub edits: Vec<ContactEdit<'a>>,
}

impl<'a> ContactsEdit<'a> {
    /// More than [`CONTACT_EDITS_MAX`] edits, or a name over [`CONTACT_NAME_BYTES_MAX`], is
    /// [`BodyError::TooLong`]; no list is [`BodyError::Missing`].
    pub fn decode(body: &'a [u8]) -> Result<Self, BodyError> {
        let table = root::<fb::ContactsEdit<'_>>(body, Scope::ServerLarge)?;
        let edits = table.edits().ok_or(BodyError::Missing)?;
        if edits.len() > CONTACT_EDITS_MAX {
            return Err(BodyError::TooLong);
        }
        let edit = |edit: fb::ContactEdit<'a>| {
            let sealed_name = edit
                .sealed_name()
                .map(|name| name.bytes())
                .unwrap_or_default();
            if sealed_name.len() > CONTACT_NAME_BYTES_MAX {
                return Err(BodyError::TooLong);
            }
            Ok(ContactEdit {
                user: UserId(edit.user()),
                change: ContactChange(edit.change().0),
                sealed_name,
            })
        };
        Ok(Self {
            edits: edits.iter().map(edit).collect::<Result<_, _>>()?,
        })
    }
}

/// Asks for a page of one's contacts, or of those whom one blocks, by rising user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContactsGet {
    /// Exclusive; 0 = from the first.
    pub after: UserId,
    pub limit: u16,
    pub blocked: bool,
}

impl ContactsGet {
    pub fn decode(body: &[u8]) -> Result<Self, BodyError> {
        let table = root::<fb::ContactsGet<'_>>(body, Scope::Server)?;
        Ok(Self {
            after: UserId(table.after()),
            limit: table.limit(),
            blocked: table.blocked(),
        })
    }
}

/// One contact, or one whom the owner blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contact<'a> {
    pub user: UserId,
    /// Encrypted for the owner's devices; empty in a page of those who are blocked.
    pub sealed_name: &'a [u8],
    /// Unix seconds; 0 in a page of those who are blocked.
    pub added_s: u32,
    pub blocked: bool,
}

/// A page of contacts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contacts<'a> {
    pub contacts: Vec<Contact<'a>>,
    /// Further ones follow: ask again after the last.
    pub more: bool,
}

impl<'a> Contacts<'a> {
    pub fn decode(body: &'a [u8]) -> Result<Self, BodyError> {
        let table = root::<fb::Contacts<'_>>(body, Scope::Client)?;
        let contacts = table.contacts().map(|contacts| {
            let contact = |contact: fb::Contact<'a>| Contact {
                user: UserId(contact.user()),
                sealed_name: contact
                    .sealed_name()
                    .map(|name| name.bytes())
                    .unwrap_or_default(),
                added_s: contact.added_s(),
                blocked: contact.blocked(),
            };
            contacts.iter().map(contact).collect()
        });
        Ok(Self {
            contacts: contacts.unwrap_or_default(),
            more: table.more(),
        })
    }
}

/// Whom something is for. An open set: a number from the future is refused by the gateway, and means
/// nobody to a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Who(pub u8);

impl Who {
    pub const EVERYONE: Self = Self(0);
    pub const CONTACTS: Self = Self(1);
    pub const NOBODY: Self = Self(2);

    #[must_use]
    pub const fn is_known(self) -> bool {
        self.0 <= Self::NOBODY.0
    }
}

/// What others may see and do: the body of PRIVACY_SET and of PRIVACY. The default is everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Privacy {
    pub last_seen: Who,
    pub online: Who,
    /// Sends no READ to others, and gets none.
    pub hide_read: bool,
    pub profile: Who,
    pub group_add: Who,
    /// By phone number; never [`Who::CONTACTS`].
    pub findable: Who,
}

impl Privacy {
    pub fn decode(body: &[u8]) -> Result<Self, BodyError> {
        let table = root::<fb::Privacy<'_>>(body, Scope::Server)?;
        Ok(Self {
            last_seen: Who(table.last_seen().0),
            online: Who(table.online().0),
            hide_read: table.hide_read(),
            profile: Who(table.profile().0),
            group_add: Who(table.group_add().0),
            findable: Who(table.findable().0),
        })
    }
}
