//! Writers of pages, of the list of conversations, and of withdrawals.

use super::{Encoder, put_body, reply_flags};
use crate::{
    frame::Flags,
    generated::fb,
    message::history::{Conversation, ConversationsGet, HistoryEnd, HistoryGet, Revoke},
    op::Op,
};

impl Encoder {
    pub fn history_get(&mut self, out: &mut Vec<u8>, corr: u32, get: &HistoryGet) {
        let body = self.body(|b| {
            fb::HistoryGet::create(
                b,
                &fb::HistoryGetArgs {
                    conv_kind: fb::ConvKind(get.conv_kind.0),
                    conv: get.conv,
                    before: get.before.0,
                    after: get.after.0,
                    limit: get.limit,
                    forward: get.forward,
                },
            )
        });
        put_body(out, Op::History as u8, Flags::NONE, corr, 0, body);
    }

    pub fn history_end(&mut self, out: &mut Vec<u8>, corr: u32, end: &HistoryEnd) {
        let body = self.body(|b| {
            fb::HistoryEnd::create(
                b,
                &fb::HistoryEndArgs {
                    more: end.more,
                    next: end.next.0,
                },
            )
        });
        put_body(out, Op::HistoryEnd as u8, reply_flags(corr), corr, 0, body);
    }

    pub fn conversations_get(&mut self, out: &mut Vec<u8>, corr: u32, get: &ConversationsGet) {
        let body = self.body(|b| {
            fb::ConversationsGet::create(
                b,
                &fb::ConversationsGetArgs {
                    before: get.before.0,
                    limit: get.limit,
                },
            )
        });
        put_body(out, Op::ConversationsGet as u8, Flags::NONE, corr, 0, body);
    }

    /// One of several answers: it says MORE, and a DONE follows the last.
    pub fn conversation(&mut self, out: &mut Vec<u8>, corr: u32, conversation: &Conversation) {
        let body = self.body(|b| {
            fb::Conversation::create(
                b,
                &fb::ConversationArgs {
                    conv_kind: fb::ConvKind(conversation.conv_kind.0),
                    conv: conversation.conv,
                    head_seq: conversation.head_seq.0,
                    read_seq: conversation.read_seq.0,
                    unread: conversation.unread,
                },
            )
        });
        let flags = reply_flags(corr) | Flags::MORE;
        put_body(out, Op::Conversation as u8, flags, corr, 0, body);
    }

    /// The body of a REVOKE.
    pub fn revoke(&mut self, target: &Revoke) -> &[u8] {
        self.body(|b| {
            let id = fb::Id128::new(target.msg_id.hi(), target.msg_id.lo());
            fb::Revoke::create(
                b,
                &fb::RevokeArgs {
                    target_seq: target.seq.0,
                    target_id: Some(&id),
                    target_user: target.user.0,
                    target_device: target.device.0,
                },
            )
        })
    }
}
