//! What tests do with presence, contacts and settings.

use super::World;
use crate::{RESTRICTIONS, ShardId, restricted_user, user_home};
use portico_wire::{
    Op, RouteHeader,
    encode::{people::put_signal, put_plain},
    frame::{ConvKind, Flags},
    ids::UserId,
    message::{
        ClientState,
        people::{ContactChange, ContactEdit, ContactsEdit, ContactsGet, PresenceSub, Privacy},
    },
};

impl World {
    /// Whom a shard has to be told of at its start.
    pub(super) fn restricted(&self, shard: ShardId) -> Vec<UserId> {
        let users = self
            .store
            .keys(RESTRICTIONS)
            .filter_map(|key| restricted_user(key));
        users
            .filter(|user| user_home(*user, self.config.shards) == shard)
            .collect()
    }

    /// PRESENCE_SUB. Returns its number.
    pub fn watch(&mut self, client: usize, add: &[u64], remove: &[u64]) -> u32 {
        let users = |ids: &[u64]| ids.iter().copied().map(UserId).collect();
        let sub = PresenceSub {
            add: users(add),
            remove: users(remove),
        };
        let corr = self.corr(client);
        let mut bytes = Vec::new();
        self.encoder.presence_sub(&mut bytes, corr, &sub);
        self.write(client, &bytes);
        corr
    }

    pub fn set_privacy(&mut self, client: usize, privacy: &Privacy) -> u32 {
        let corr = self.corr(client);
        let mut bytes = Vec::new();
        self.encoder.privacy_set(&mut bytes, corr, privacy);
        self.write(client, &bytes);
        corr
    }

    pub fn get_privacy(&mut self, client: usize) -> u32 {
        let corr = self.corr(client);
        let mut bytes = Vec::new();
        put_plain(&mut bytes, Op::PrivacyGet, Flags::NONE, corr, 0);
        self.write(client, &bytes);
        corr
    }

    /// CONTACTS_EDIT.
    pub fn edit_contacts(&mut self, client: usize, edits: &[(u64, ContactChange, &[u8])]) -> u32 {
        let edits = edits.iter().map(|(user, change, sealed_name)| ContactEdit {
            user: UserId(*user),
            change: *change,
            sealed_name,
        });
        let edit = ContactsEdit {
            edits: edits.collect(),
        };
        let corr = self.corr(client);
        let mut bytes = Vec::new();
        self.encoder.contacts_edit(&mut bytes, corr, &edit);
        self.write(client, &bytes);
        corr
    }

    pub fn block(&mut self, client: usize, user: u64) -> u32 {
        self.edit_contacts(client, &[(user, ContactChange::BLOCK, b"")])
    }

    pub fn unblock(&mut self, client: usize, user: u64) -> u32 {
        self.edit_contacts(client, &[(user, ContactChange::UNBLOCK, b"")])
    }

    /// CONTACTS_GET.
    pub fn get_contacts(&mut self, client: usize, after: u64, limit: u16, blocked: bool) -> u32 {
        let get = ContactsGet {
            after: UserId(after),
            limit,
            blocked,
        };
        let corr = self.corr(client);
        let mut bytes = Vec::new();
        self.encoder.contacts_get(&mut bytes, corr, &get);
        self.write(client, &bytes);
        corr
    }

    /// CLIENT_STATE.
    pub fn set_state(&mut self, client: usize, state: ClientState) {
        let mut bytes = Vec::new();
        let state = u32::from(state.to_u8());
        put_plain(&mut bytes, Op::ClientState, Flags::NONE, 0, state);
        self.write(client, &bytes);
    }

    /// SIGNAL in a direct conversation, as a request.
    pub fn signal(&mut self, client: usize, peer: u64, kind: u8, ttl_s: u32) -> u32 {
        self.signal_in(client, (ConvKind::DIRECT, peer), kind, ttl_s)
    }

    /// The same in a conversation of any kind.
    pub fn signal_in(
        &mut self,
        client: usize,
        (conv_kind, conv): (ConvKind, u64),
        kind: u8,
        ttl_s: u32,
    ) -> u32 {
        let corr = self.corr(client);
        let route = RouteHeader {
            conv,
            conv_kind,
            kind,
            ttl_s,
            ..RouteHeader::default()
        };
        let mut bytes = Vec::new();
        put_signal(&mut bytes, corr, &route);
        self.write(client, &bytes);
        corr
    }
}
