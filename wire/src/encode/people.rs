//! Presence, contacts, blocks and settings.

use super::{Encoder, put_body, put_routed, reply_flags};
use crate::{
    frame::{Flags, RouteHeader},
    generated::fb,
    message::people::{Contacts, ContactsEdit, ContactsGet, PresenceItem, PresenceSub, Privacy},
    op::Op,
};
use flatbuffers::{FlatBufferBuilder, WIPOffset};

/// SIGNAL: `route` says in which conversation, what kind, and in `ttl_s` how long to show it.
pub fn put_signal(out: &mut Vec<u8>, corr: u32, route: &RouteHeader) {
    put_routed(out, Op::Signal as u8, Flags::EPHEMERAL, corr, 0, route, &[]);
}

impl Encoder {
    pub fn presence_sub(&mut self, out: &mut Vec<u8>, corr: u32, sub: &PresenceSub) {
        let body = self.body(|b| {
            let some = |b: &mut FlatBufferBuilder<'static>, users: &[crate::ids::UserId]| {
                let ids = users.iter().map(|user| user.0);
                (!users.is_empty()).then(|| b.create_vector_from_iter(ids))
            };
            let add = some(b, &sub.add);
            let remove = some(b, &sub.remove);
            fb::PresenceSub::create(b, &fb::PresenceSubArgs { add, remove })
        });
        put_body(out, Op::PresenceSub as u8, Flags::NONE, corr, 0, body);
    }

    /// The reply to PRESENCE_SUB, or with `corr` 0 what is told of changes.
    pub fn presence(&mut self, out: &mut Vec<u8>, corr: u32, items: &[PresenceItem]) {
        let body = self.body(|b| {
            let item = |item: &PresenceItem| {
                fb::PresenceItem::new(item.user.0, item.last_seen_s, item.state.to_u8(), 0, 0)
            };
            let items = Some(b.create_vector_from_iter(items.iter().map(item)));
            fb::Presence::create(b, &fb::PresenceArgs { items })
        });
        let flags = if corr == 0 {
            Flags::EPHEMERAL
        } else {
            Flags::REPLY
        };
        put_body(out, Op::Presence as u8, flags, corr, 0, body);
    }

    pub fn contacts_edit(&mut self, out: &mut Vec<u8>, corr: u32, edit: &ContactsEdit<'_>) {
        let body = self.body(|b| {
            let edits: Vec<_> = edit
                .edits
                .iter()
                .map(|edit| {
                    let some = !edit.sealed_name.is_empty();
                    let sealed_name = some.then(|| b.create_vector(edit.sealed_name));
                    fb::ContactEdit::create(
                        b,
                        &fb::ContactEditArgs {
                            user: edit.user.0,
                            change: fb::ContactChange(edit.change.0),
                            sealed_name,
                        },
                    )
                })
                .collect();
            let edits = Some(b.create_vector(&edits));
            fb::ContactsEdit::create(b, &fb::ContactsEditArgs { edits })
        });
        put_body(out, Op::ContactsEdit as u8, Flags::NONE, corr, 0, body);
    }

    pub fn contacts_get(&mut self, out: &mut Vec<u8>, corr: u32, get: &ContactsGet) {
        let body = self.body(|b| {
            fb::ContactsGet::create(
                b,
                &fb::ContactsGetArgs {
                    after: get.after.0,
                    limit: get.limit,
                    blocked: get.blocked,
                },
            )
        });
        put_body(out, Op::ContactsGet as u8, Flags::NONE, corr, 0, body);
    }

    pub fn contacts(&mut self, out: &mut Vec<u8>, corr: u32, page: &Contacts<'_>) {
        let body = self.body(|b| {
            let contacts: Vec<_> = page
                .contacts
                .iter()
                .map(|contact| {
                    let some = !contact.sealed_name.is_empty();
                    let sealed_name = some.then(|| b.create_vector(contact.sealed_name));
                    fb::Contact::create(
                        b,
                        &fb::ContactArgs {
                            user: contact.user.0,
                            sealed_name,
                            added_s: contact.added_s,
                            blocked: contact.blocked,
                        },
                    )
                })
                .collect();
            let contacts = Some(b.create_vector(&contacts));
            fb::Contacts::create(
                b,
                &fb::ContactsArgs {
                    contacts,
                    more: page.more,
                },
            )
        });
        put_body(out, Op::Contacts as u8, reply_flags(corr), corr, 0, body);
    }

    pub fn privacy_set(&mut self, out: &mut Vec<u8>, corr: u32, privacy: &Privacy) {
        let body = self.body(|b| privacy_table(b, privacy));
        put_body(out, Op::PrivacySet as u8, Flags::NONE, corr, 0, body);
    }

    pub fn privacy(&mut self, out: &mut Vec<u8>, corr: u32, privacy: &Privacy) {
        let body = self.body(|b| privacy_table(b, privacy));
        put_body(out, Op::Privacy as u8, reply_flags(corr), corr, 0, body);
    }
}

fn privacy_table<'b>(
    b: &mut FlatBufferBuilder<'b>,
    privacy: &Privacy,
) -> WIPOffset<fb::Privacy<'b>> {
    fb::Privacy::create(
        b,
        &fb::PrivacyArgs {
            last_seen: fb::Who(privacy.last_seen.0),
            online: fb::Who(privacy.online.0),
            hide_read: privacy.hide_read,
            profile: fb::Who(privacy.profile.0),
            group_add: fb::Who(privacy.group_add.0),
            findable: fb::Who(privacy.findable.0),
        },
    )
}
