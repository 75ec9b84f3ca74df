//! HISTORY: a page of a conversation, as far as the reader may see it and its queue takes it.
//!
//! A direct conversation is one's own by its name. Of a group the group's home knows what a member
//! may see; it is asked first.
//!
//! Entries go out as they were delivered, without an inbox number, and HISTORY_END says where the page
//! ended. It may end early, because bytes are bounded or the client does not read: then `more` is
//! set, and nothing is lost.

use crate::{
    conn::{ConnId, Phase},
    error::Refusal,
    inbox::{conv_kind, is_over, shown_conv},
    lookup::Subject,
    mesh::ShardMessage,
    shard::{Shard, Turn},
    store::{Entry, StoreCmd, StoreError},
    stored::Purpose,
};
use portico_wire::{
    Frame, RouteHeader,
    encode::{put_routed, reply_flags},
    frame::{ConvKind, Flags},
    ids::{ConvId, ConvSeq, GroupId, UserId},
    limits::HISTORY_PAGE_MAX,
    message::history::{HistoryEnd, HistoryGet},
};

/// A page that is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    conv: ConvId,
    /// Both exclusive.
    after: ConvSeq,
    before: ConvSeq,
    forward: bool,
    limit: u16,
}

impl Page {
    /// Keeps it within what a member may see, both ends included.
    pub(crate) fn restrict(&mut self, (first, last): (ConvSeq, ConvSeq)) {
        self.after = self.after.max(ConvSeq(first.0.saturating_sub(1)));
        self.before = self.before.min(ConvSeq(last.0.saturating_add(1)));
    }

    /// Where the next page begins if this one ends after nothing.
    const fn start(&self) -> ConvSeq {
        if self.forward {
            self.after
        } else {
            self.before
        }
    }
}

impl Shard {
    pub(crate) fn on_history(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let Ok(get) = HistoryGet::decode(frame.body()) else {
            return self.on_malformed(id, frame, cx);
        };
        let floor = self.floor_seq(cx);
        let Some(conn) = self.conn(id).filter(|_| frame.is_request()) else {
            return;
        };
        let user = conn.user;
        let conv = match get.conv_kind {
            ConvKind::DIRECT if UserId(get.conv).is_valid() => {
                Ok(ConvId::direct(user, UserId(get.conv)))
            }
            ConvKind::GROUP => Ok(ConvId::Group(GroupId(get.conv))),
            ConvKind::STATUS => Err(Refusal::UnsupportedConversation),
            _ => Err(Refusal::NoSuchUser),
        };
        let checked = conv.and_then(|conv| {
            if get.limit == 0 || get.limit > HISTORY_PAGE_MAX {
                return Err(Refusal::BadPage);
            }
            self.check_lookup(id).map(|()| conv)
        });
        let conv = match checked {
            Ok(conv) => conv,
            Err(why) => return self.refuse(id, true, frame.corr(), frame.op(), why, cx),
        };
        let before = if get.before == ConvSeq(0) {
            ConvSeq(u64::MAX)
        } else {
            get.before
        };
        let page = Page {
            conv,
            // What the retention has ended is not shown, whether or not its month is gone already.
            after: get.after.max(ConvSeq(floor.0.saturating_sub(1))),
            before,
            forward: get.forward,
            limit: get.limit,
        };
        let token = self.open_lookup(id, frame, Subject::Page(page));
        match conv {
            ConvId::Group(group) => {
                let ask = ShardMessage::GroupAccess {
                    group,
                    user,
                    origin: self.config.shard,
                    token,
                };
                self.post(self.group_home(group), ask, cx);
            }
            ConvId::Direct(..) | ConvId::Status(_) => self.line_up(token, cx),
        }
    }

    /// Asks the store. There is room for one more page.
    pub(crate) fn read_history(&mut self, token: u64, cx: &mut Turn<'_>) {
        let bytes_max = self.config.limits.page_bytes_max;
        let lookup = self.lookups.open.get(token);
        let Some(Subject::Page(page)) = lookup.map(|lookup| &lookup.subject) else {
            return;
        };
        let cmd = StoreCmd::History {
            conv: page.conv,
            after: page.after,
            before: page.before,
            forward: page.forward,
            limit: u32::from(page.limit),
            bytes_max,
        };
        self.pages += 1;
        self.submit(Purpose::History { lookup: token }, cmd, cx);
    }

    pub(crate) fn on_history_page(
        &mut self,
        token: u64,
        result: Result<(Vec<Entry>, bool), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let (entries, more) = match result {
            Ok(page) => page,
            Err(error) => return self.fail_lookup(token, Refusal::Store(error), cx),
        };
        let Some(lookup) = self.end_lookup(token, cx) else {
            return;
        };
        let Subject::Page(page) = lookup.subject else {
            return;
        };
        let (id, corr) = (lookup.conn, lookup.corr);
        let mut end = HistoryEnd {
            more,
            next: page.start(),
        };
        let mut written = 0;
        for entry in &entries {
            let Some(conn) = self.conn(id).filter(|conn| conn.phase == Phase::Open) else {
                return;
            };
            if !self.has_room(conn) {
                end.more = true;
                break;
            }
            end.next = entry.conv_seq;
            if !is_over(entry, cx.now.wall_us) {
                self.write_entry(id, corr, entry, cx);
                written += 1;
            }
        }
        if end.next == ConvSeq(u64::MAX) {
            end.next = ConvSeq(0);
        }
        self.write(id, cx, |out, encoder| encoder.history_end(out, corr, &end));
        self.count_history(written);
    }

    /// As it was delivered, with an inbox number of 0: it is no part of the inbox.
    fn write_entry(&mut self, id: ConnId, corr: u32, entry: &Entry, cx: &mut Turn<'_>) {
        let reader = self.conns[id.index as usize].user;
        let route = RouteHeader {
            msg_id: entry.msg_id,
            conv: shown_conv(entry.conv, reader),
            conv_seq: entry.conv_seq,
            user: entry.sender,
            dev: entry.device,
            conv_kind: conv_kind(entry.conv),
            kind: entry.kind,
            ttl_s: entry.ttl_s,
            ..RouteHeader::default()
        };
        let flags = Flags(entry.flags) | reply_flags(corr) | Flags::MORE;
        let op = entry.op;
        self.write(id, cx, |out, _| {
            put_routed(out, op, flags, corr, 0, &route, &entry.body);
        });
    }
}
