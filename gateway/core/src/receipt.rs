//! Receipts on the wire: READ from clients, pushes to clients, and the question for watermarks.

use crate::{
    conn::{ConnId, Phase},
    effects::Effect,
    error::Refusal,
    groups::{For, GroupAnswer, GroupWish, summary},
    inbox::{conv_kind, shown_conv},
    mesh::ShardMessage,
    metrics::Counter,
    people::Waiter,
    shard::{Shard, Turn},
    store::{Marks, StoreCmd, StoreError},
    stored::Purpose,
};
use portico_wire::{
    Frame, Op, RouteHeader,
    encode::put_routed,
    frame::{ConvKind, Flags, receipt_kind},
    ids::{ConvId, ConvSeq, GroupId, UserId},
    message::{ClientState, ReceiptsGet},
};
use std::mem;

/// How far beyond the newest number seen a READ may point.
const READ_AHEAD_MAX_US: u64 = 60_000_000;

/// `reader` has reached `up_to` in `conv`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub conv: ConvId,
    pub reader: UserId,
    /// Of [`receipt_kind`].
    pub kind: u8,
    pub up_to: ConvSeq,
    /// Unix second at which the gateway saw it.
    pub at_s: u32,
}

/// A RECEIPTS_GET whose conversations are being read.
#[derive(Debug)]
pub(crate) struct Query {
    pub(crate) conn: ConnId,
    corr: u32,
    left: u16,
    /// What it counts against the connection's bound: as many as it asks of the store.
    pub(crate) weight: u16,
    failed: Option<Refusal>,
    /// What it asks for, until it is known what its user hides.
    convs: Vec<ConvId>,
    /// Nothing that others have read is told.
    hides: bool,
    /// The same of these conversations, because the other side hides it.
    hidden: Vec<ConvId>,
}

impl Shard {
    /// RECEIPT from a client: what its user has read.
    pub(crate) fn on_receipt_frame(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let Some(route) = frame.route() else {
            return;
        };
        let (request, corr) = (frame.is_request(), frame.corr());
        let requests_max = self.config.limits.requests_max;
        let Some(conn) = self.conn_mut(id) else {
            return;
        };
        let (reader, busy) = (conn.user, u32::from(conn.requests) >= requests_max);
        let conv = conv_named(route.conv_kind, route.conv, reader);
        let full = conv.is_some_and(|conv| !self.has_room_for_mark(conv, reader));
        let refusal = if conv.is_none() || route.kind != receipt_kind::READ {
            Some(Refusal::BadReceipt)
        } else if request && busy {
            Some(Refusal::TooManyRequests)
        } else if full {
            Some(Refusal::Overloaded)
        } else {
            None
        };
        if let Some(why) = refusal {
            return self.refuse(id, request, corr, frame.op(), why, cx);
        }
        if let Some(conn) = self.conn_mut(id) {
            conn.requests += u16::from(request);
        }
        // Nobody has read the future, as far as this shard can tell: numbers run ahead of a clock
        // that was set back, and another shard's may be ahead of this one's.
        let newest_us = self.seq.last().max(cx.now.wall_us);
        let up_to = route.conv_seq.min(ConvSeq(newest_us + READ_AHEAD_MAX_US));
        let waiting = request.then_some((id, corr));
        if let Some(conv) = conv {
            self.mark_read(conv, reader, up_to, waiting, cx);
        }
    }

    /// The mark of a READ request is written, or could not be.
    pub(crate) fn answer_read(
        &mut self,
        id: ConnId,
        corr: u32,
        result: Result<(), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        self.release_request(id, cx);
        match result {
            Ok(()) => self.done(id, corr, cx),
            Err(error) => {
                let op = Op::Receipt as u8;
                self.refuse(id, true, corr, op, Refusal::Store(error), cx);
            }
        }
    }

    /// Writes a receipt to the connections of `to` that care and have room. A lost one is made
    /// good by the next, or by RECEIPTS_GET.
    pub(crate) fn push_receipt(&mut self, to: UserId, receipt: &Receipt, cx: &mut Turn<'_>) {
        // Who hides what it has read is not told what others have.
        let others = receipt.kind == receipt_kind::READ && receipt.reader != to;
        if others && self.people.is_restricted(to) {
            return self.want(to, Waiter::ShowRead(*receipt), cx);
        }
        self.show_receipt(to, receipt, cx);
    }

    pub(crate) fn show_receipt(&mut self, to: UserId, receipt: &Receipt, cx: &mut Turn<'_>) {
        for index in self.chain_list(to).iter() {
            let conn = &self.conns[index as usize];
            if conn.state == ClientState::Background || conn.phase != Phase::Open {
                continue;
            }
            if !self.has_room(conn) {
                self.counters.bump(Counter::ReceiptsDropped);
                continue;
            }
            let id = self.id_of(index);
            self.write_receipt(id, Flags::NONE, 0, receipt, cx);
        }
    }

    fn write_receipt(
        &mut self,
        id: ConnId,
        flags: Flags,
        corr: u32,
        receipt: &Receipt,
        cx: &mut Turn<'_>,
    ) {
        let Some(conn) = self.conn(id) else {
            return;
        };
        let route = RouteHeader {
            conv: shown_conv(receipt.conv, conn.user),
            conv_kind: conv_kind(receipt.conv),
            kind: receipt.kind,
            conv_seq: receipt.up_to,
            user: receipt.reader,
            ..RouteHeader::default()
        };
        let (op, at_s) = (Op::Receipt as u8, receipt.at_s);
        self.write(id, cx, |out, _| {
            put_routed(out, op, flags, corr, at_s, &route, &[]);
        });
        self.counters.bump(Counter::ReceiptsOut);
    }

    /// RECEIPTS_GET: the watermarks of some conversations, then DONE.
    pub(crate) fn on_receipts_get(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let Ok(get) = ReceiptsGet::decode(frame.body()) else {
            return self.on_malformed(id, frame, cx);
        };
        let (request, corr) = (frame.is_request(), frame.corr());
        let full = self.is_store_full();
        let requests_max = self.config.limits.requests_max;
        let Some(conn) = self.conn_mut(id).filter(|_| request) else {
            return;
        };
        let user = conn.user;
        let named = |&(kind, conv): &(ConvKind, u64)| conv_named(kind, conv, user);
        let unserved = |conv: &(ConvKind, u64)| named(conv).is_none();
        let one_group = matches!(get.convs.as_slice(), [(ConvKind::GROUP, _)]);
        let refusal = if u32::from(conn.requests) >= requests_max {
            Some(Refusal::TooManyRequests)
        } else if get.members && !one_group {
            Some(Refusal::MembersOfOne)
        } else if get.convs.iter().any(unserved) {
            Some(Refusal::UnsupportedConversation)
        } else if full {
            Some(Refusal::Overloaded)
        } else {
            None
        };
        if let Some(why) = refusal {
            return self.refuse(id, request, corr, frame.op(), why, cx);
        }
        if get.convs.is_empty() {
            return self.done(id, corr, cx);
        }
        // At most RECEIPTS_GET_MAX.
        let weight = get.convs.len() as u16;
        conn.requests += weight;
        let query = self.queries.insert(Query {
            conn: id,
            corr,
            left: weight,
            weight,
            failed: None,
            convs: (get.convs.iter().filter_map(named))
                .filter(|conv| !matches!(conv, ConvId::Group(_)))
                .collect(),
            hides: false,
            hidden: Vec::new(),
        });
        let members = get.members;
        for conv in get.convs.iter().filter_map(named) {
            if let ConvId::Group(group) = conv {
                let wish = GroupWish::Receipts { members };
                self.ask_home(For::Query(query, group), user, group, wish, cx);
            }
        }
        if !one_group {
            self.want(user, Waiter::Receipts { query }, cx);
        }
    }

    /// It is known whether the asker hides what it has read. The other side may, too.
    pub(crate) fn on_asker_ready(
        &mut self,
        user: UserId,
        query: u64,
        result: Result<(), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let hides = self.hides_read(user);
        let Some(open) = self.queries.get_mut(query) else {
            return;
        };
        open.hides = hides;
        for conv in mem::take(&mut open.convs) {
            let peer = conv.peer_of(user).filter(|peer| *peer != user);
            match (result, peer) {
                (Err(error), _) => self.on_marks(query, conv, Err(error), cx),
                (Ok(()), Some(peer)) if !hides => {
                    let message = ShardMessage::AskHidesRead {
                        from: self.config.shard,
                        query,
                        conv,
                        user: peer,
                    };
                    self.post(self.home(peer), message, cx);
                }
                _ => self.submit(Purpose::Marks { query, conv }, StoreCmd::Marks { conv }, cx),
            }
        }
    }

    /// The other side's home says whether it hides what it has read.
    pub(crate) fn on_hides_read(
        &mut self,
        query: u64,
        conv: ConvId,
        hides: Result<bool, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let Some(open) = self.queries.get_mut(query) else {
            return;
        };
        match hides {
            Ok(hides) => {
                if hides {
                    open.hidden.push(conv);
                }
                self.submit(Purpose::Marks { query, conv }, StoreCmd::Marks { conv }, cx);
            }
            Err(error) => self.on_marks(query, conv, Err(error), cx),
        }
    }

    /// The store has answered for one conversation of a query.
    pub(crate) fn on_marks(
        &mut self,
        query: u64,
        conv: ConvId,
        result: Result<Vec<(UserId, Marks)>, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let Some(open) = self.queries.get_mut(query) else {
            return;
        };
        let hidden = open.hides || open.hidden.contains(&conv);
        let (id, corr) = (open.conn, open.corr);
        match result {
            Ok(marks) => {
                for (reader, marks) in marks {
                    let own = self.conn(id).is_some_and(|conn| conn.user == reader);
                    let marks = if hidden && !own {
                        Marks {
                            read: ConvSeq(0),
                            ..marks
                        }
                    } else {
                        marks
                    };
                    self.answer_marks(id, corr, conv, reader, marks, cx);
                }
            }
            Err(error) => open.failed = Some(Refusal::Store(error)),
        }
        self.count_answer(query, cx);
    }

    /// A group's home has answered for its group.
    pub(crate) fn on_group_marks_told(
        &mut self,
        query: u64,
        group: GroupId,
        answer: Result<GroupAnswer, Refusal>,
        cx: &mut Turn<'_>,
    ) {
        let Some(open) = self.queries.get_mut(query) else {
            return;
        };
        let (id, corr) = (open.conn, open.corr);
        match answer {
            Ok(GroupAnswer::Marks(rows, others)) => {
                for (reader, marks) in rows {
                    let of = if reader == UserId(0) { others } else { 0 };
                    self.answer_group_marks(id, corr, group, (reader, of), marks, cx);
                }
            }
            Ok(GroupAnswer::Group(_)) => {}
            Err(why) => open.failed = Some(why),
        }
        self.count_answer(query, cx);
    }

    fn answer_group_marks(
        &mut self,
        id: ConnId,
        corr: u32,
        group: GroupId,
        (reader, of): (UserId, u16),
        marks: Marks,
        cx: &mut Turn<'_>,
    ) {
        for (kind, up_to, at_s) in both_kinds(marks) {
            if up_to > ConvSeq(0) {
                let mut route = summary(group, kind, up_to, (of, of));
                route.user = reader;
                let flags = Flags::REPLY | Flags::MORE;
                self.write(id, cx, |out, _| {
                    put_routed(out, Op::Receipt as u8, flags, corr, at_s, &route, &[]);
                });
                self.counters.bump(Counter::ReceiptsOut);
            }
        }
    }

    /// One conversation of a query is answered for.
    fn count_answer(&mut self, query: u64, cx: &mut Turn<'_>) {
        let Some(open) = self.queries.get_mut(query) else {
            return;
        };
        open.left -= 1;
        let (id, corr) = (open.conn, open.corr);
        if open.left > 0 {
            return;
        }
        let Some(Query { weight, failed, .. }) = self.queries.remove(query) else {
            return;
        };
        self.release_requests(id, weight, cx);
        match failed {
            None => self.done(id, corr, cx),
            Some(why) => self.refuse(id, true, corr, Op::ReceiptsGet as u8, why, cx),
        }
    }

    fn answer_marks(
        &mut self,
        id: ConnId,
        corr: u32,
        conv: ConvId,
        reader: UserId,
        marks: Marks,
        cx: &mut Turn<'_>,
    ) {
        for (kind, up_to, at_s) in both_kinds(marks) {
            if up_to > ConvSeq(0) {
                let receipt = Receipt {
                    conv,
                    reader,
                    kind,
                    up_to,
                    at_s,
                };
                self.write_receipt(id, Flags::REPLY | Flags::MORE, corr, &receipt, cx);
            }
        }
    }

    /// A request of this connection got its answer.
    pub(crate) fn release_request(&mut self, id: ConnId, cx: &mut Turn<'_>) {
        self.release_requests(id, 1, cx);
    }

    fn release_requests(&mut self, id: ConnId, count: u16, cx: &mut Turn<'_>) {
        let half = self.config.limits.requests_max / 2;
        if let Some(conn) = self.conn_mut(id) {
            conn.requests = conn.requests.saturating_sub(count);
            if conn.notes.paused && u32::from(conn.requests) <= half {
                conn.notes.paused = false;
                cx.fx.list.push(Effect::Resume(id));
            }
        }
    }
}

/// The conversation that a client names, if watermarks are kept for such.
fn conv_named(kind: ConvKind, conv: u64, user: UserId) -> Option<ConvId> {
    match kind {
        ConvKind::DIRECT if UserId(conv).is_valid() => Some(ConvId::direct(user, UserId(conv))),
        ConvKind::GROUP if conv != 0 => Some(ConvId::Group(GroupId(conv))),
        _ => None,
    }
}

const fn both_kinds(marks: Marks) -> [(u8, ConvSeq, u32); 2] {
    [
        (
            receipt_kind::DELIVERED,
            marks.delivered,
            marks.delivered_at_s,
        ),
        (receipt_kind::READ, marks.read, marks.read_at_s),
    ]
}
