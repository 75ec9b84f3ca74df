//! How a connection gets its inbox: pushed while it keeps up, pulled from the store while it does
//! not, acknowledged by one number.

use crate::{
    conn::{ConnId, Due, InFlight, Phase, Replay, Source, Traffic},
    lane::Whose,
    metrics::Counter,
    shard::{Shard, Turn},
    store::{Entry, Item, StoreCmd},
    stored::Purpose,
};
use portico_wire::{
    SeqHeader,
    encode::{put_routed, put_synced},
    frame::{BASE_END, ConvKind, Flags, RouteHeader},
    ids::{ConvId, Seq, UserId},
};
use std::mem;

/// How long after a failed page the next attempt is made.
const PAGE_RETRY_US: u64 = 500_000;

impl Shard {
    /// Shows what has become visible to the connections of its users, in order.
    pub(crate) fn show_visible(&mut self, cx: &mut Turn<'_>) {
        while let Some(pending) = self.lane.pop_settled() {
            let durable = pending.is_durable();
            let doubtful = pending.is_doubtful();
            match &pending.whose {
                Whose::One(user, entry) => {
                    let what = match entry {
                        Some(entry) => What::Entry(entry),
                        None => What::InStore,
                    };
                    let what = if durable {
                        what
                    } else {
                        What::Nothing { doubtful }
                    };
                    self.show_to(*user, pending.seq, what, cx);
                }
                Whose::Members(spread) => {
                    // Only the number differs from one reader to the next: the frame is made once.
                    let mut frame = mem::take(&mut self.frame);
                    frame.clear();
                    put_shared(&mut frame, &spread.entry);
                    let members = spread.roll.of(self.config.shard);
                    for (user, seq) in members.iter().zip(pending.seq.0..) {
                        let what = if durable {
                            What::Frame(&spread.entry, &frame)
                        } else {
                            What::Nothing { doubtful }
                        };
                        self.show_to(*user, Seq(seq), what, cx);
                    }
                    self.frame = frame;
                }
            }
        }
    }

    fn show_to(&mut self, user: UserId, seq: Seq, what: What<'_>, cx: &mut Turn<'_>) {
        self.absent.forget(user);
        for index in self.chain_list(user).iter() {
            match what {
                What::Nothing { doubtful } => self.pass_over(index, seq, doubtful, cx),
                _ => self.show(index, seq, what, cx),
            }
        }
    }

    /// One that failed. If it may be in the store all the same, its readers look there before they go
    /// on: their cursors must not pass what exists, nor count it as delivered.
    fn pass_over(&mut self, index: u32, seq: Seq, doubtful: bool, cx: &mut Turn<'_>) {
        let id = self.id_of(index);
        let conn = &mut self.conns[index as usize];
        conn.head = seq;
        if doubtful && conn.phase == Phase::Open && conn.source == Source::Live {
            conn.source = Source::Behind;
            self.pull(id, cx);
        }
    }

    fn show(&mut self, index: u32, seq: Seq, what: What<'_>, cx: &mut Turn<'_>) {
        let id = self.id_of(index);
        let roomy = self.has_room(&self.conns[index as usize]);
        let conn = &mut self.conns[index as usize];
        conn.head = seq;
        if conn.phase != Phase::Open || conn.source != Source::Live {
            // It reads from the store, and will find this there.
            return;
        }
        let room = conn.credit() > 0 && roomy;
        match what {
            What::Entry(entry) | What::Frame(entry, _) if is_own(entry, conn.user, conn.device) => {
                conn.sent = seq;
            }
            // It took longer to become durable than it may live.
            What::Entry(entry) | What::Frame(entry, _) if is_over(entry, cx.now.wall_us) => {
                conn.sent = seq;
            }
            What::Entry(entry) if room => {
                self.push(id, seq, entry, cx);
                self.counters.bump(Counter::Delivered);
            }
            What::Frame(entry, frame) if room => {
                self.push_frame(id, seq, entry, frame, cx);
                self.counters.bump(Counter::Delivered);
            }
            What::Entry(_) | What::Frame(..) | What::InStore | What::Nothing { .. } => {
                conn.source = Source::Behind;
                if !matches!(what, What::InStore) {
                    self.counters.bump(Counter::FellBehind);
                }
                self.pull(id, cx);
            }
        }
    }

    /// Writes one sequenced entry and puts it into the window.
    fn push(&mut self, id: ConnId, seq: Seq, entry: &Entry, cx: &mut Turn<'_>) {
        let reader = self.conns[id.index as usize].user;
        let route = RouteHeader {
            seq,
            msg_id: entry.msg_id,
            conv: shown_conv(entry.conv, reader),
            conv_seq: entry.conv_seq,
            user: entry.sender,
            dev: entry.device,
            conv_kind: conv_kind(entry.conv),
            kind: entry.kind,
            ttl_s: entry.ttl_s,
        };
        let (op, flags) = (entry.op, Flags(entry.flags));
        self.write(id, cx, |out, _| {
            put_routed(out, op, flags, 0, 0, &route, &entry.body);
        });
        self.note_pushed(id, seq, entry);
    }

    /// The same with a frame that all readers share.
    fn push_frame(&mut self, id: ConnId, seq: Seq, entry: &Entry, frame: &[u8], cx: &mut Turn<'_>) {
        self.write(id, cx, |out, _| {
            let at = out.len() + BASE_END;
            out.extend_from_slice(frame);
            if let Some(place) = out.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
                *place = seq.0.to_le_bytes();
            }
        });
        self.note_pushed(id, seq, entry);
    }

    /// Puts what was written into the window.
    fn note_pushed(&mut self, id: ConnId, seq: Seq, entry: &Entry) {
        let Some(conn) = self.conns.get_mut(id.index as usize) else {
            return;
        };
        if conn.generation != id.generation || conn.phase != Phase::Open {
            return;
        }
        conn.sent = seq;
        let receipt_to = receipt_due(entry, conn.user);
        let traffic = conn.traffic.get_or_insert_with(|| self.pool.take_traffic());
        traffic.window.push_back(InFlight {
            seq,
            conv_seq: entry.conv_seq,
            receipt_to,
        });
    }

    /// Asks the store for the next page, if the client has room for it.
    pub(crate) fn pull(&mut self, id: ConnId, cx: &mut Turn<'_>) {
        let limits = &self.config.limits;
        let (entries_max, bytes_max) = (limits.page_entries_max, limits.page_bytes_max);
        let visible = self.lane.visible();
        let floor = self.floor_seq(cx);
        let Some(conn) = self.conn(id) else {
            return;
        };
        let credit = conn.credit();
        let full = credit == 0 || !self.has_room(conn);
        if conn.phase != Phase::Open || conn.source != Source::Behind || full {
            return;
        }
        let busy = self.pages >= self.pages_max;
        let conn = &mut self.conns[id.index as usize];
        if busy {
            conn.source = Source::Waiting;
            return self.page_line.push_back(id);
        }
        conn.source = Source::Reading;
        let sent = conn.sent;
        let cmd = StoreCmd::Replay {
            user: conn.user,
            after: sent.max(floor),
            limit: entries_max.min(u32::try_from(credit).unwrap_or(u32::MAX)),
            bytes_max,
        };
        self.pages += 1;
        let purpose = Purpose::Page {
            conn: id,
            visible,
            sent,
        };
        self.submit(purpose, cmd, cx);
    }

    /// A page has been answered: the next of those that wait for theirs.
    pub(crate) fn pull_next(&mut self, cx: &mut Turn<'_>) {
        while self.pages < self.pages_max {
            let Some(id) = self.page_line.pop_front() else {
                return;
            };
            if let Some(conn) = self.conn_mut(id)
                && conn.source == Source::Waiting
            {
                conn.source = Source::Behind;
                self.pull(id, cx);
            }
        }
    }

    pub(crate) fn on_page(
        &mut self,
        id: ConnId,
        (visible, sent): (Seq, Seq),
        items: Vec<Item>,
        more: bool,
        cx: &mut Turn<'_>,
    ) {
        if more && items.is_empty() {
            // It does not get on: asking again at once would go round for ever.
            return self.on_no_page(id, cx);
        }
        let unsettled = self.lane.unsettled().unwrap_or(Seq(u64::MAX));
        let Some(conn) = self.conn_mut(id) else {
            return;
        };
        if conn.source != Source::Reading {
            return;
        }
        conn.source = Source::Behind;
        if conn.sent < sent {
            // What lies before this page was taken back meanwhile.
            return self.pull(id, cx);
        }
        let mut complete = !more;
        for Item { seq, entry } in &items {
            let Some(conn) = self.conn(id) else {
                return;
            };
            let room = conn.credit() > 0 && self.has_room(conn);
            let conn = &mut self.conns[id.index as usize];
            if *seq <= conn.sent {
                continue;
            }
            if *seq >= unsettled {
                // The store shows it before it has answered for it, and perhaps before it is
                // durable. It comes again when its turn in the lane has come.
                complete = true;
                break;
            }
            let (user, device) = (conn.user, conn.device);
            if is_own(entry, user, device) {
                conn.sent = *seq;
            } else if *seq <= conn.acked {
                conn.sent = *seq;
                self.note_delivered(user, entry, cx);
            } else if is_over(entry, cx.now.wall_us) {
                conn.sent = *seq;
            } else if !room {
                complete = false;
                break;
            } else {
                conn.replayed += u32::from(conn.notes.replay != Replay::Done);
                self.push(id, *seq, entry, cx);
                self.counters.bump(Counter::Replayed);
            }
        }
        self.write_claim(id, complete, cx);
        if complete {
            self.catch_up(id, visible, cx);
        }
        self.pull(id, cx);
    }

    /// What a client said of itself at login is written when the replay has passed it.
    fn write_claim(&mut self, id: ConnId, complete: bool, cx: &mut Turn<'_>) {
        if let Some(conn) = self.conn_mut(id)
            && conn.notes.replay == Replay::Claims
            && (complete || conn.sent >= conn.acked)
        {
            conn.notes.replay = Replay::Runs;
            let (user, device, has) = (conn.user, conn.device, conn.acked);
            self.save_cursor(user, device, has, cx);
        }
    }

    /// A page ended at the end of the inbox as it stood at `visible`.
    pub(crate) fn catch_up(&mut self, id: ConnId, visible: Seq, cx: &mut Turn<'_>) {
        let renewal = self.renewal_seq(cx);
        let newest = self.lane.newest();
        let Some(conn) = self.conn_mut(id) else {
            return;
        };
        // What the client knows of, or what was passed over on its behalf: where nothing was, SYNCED
        // tells it the position it has, and there is nothing to acknowledge. Never a number that is
        // not in the store: it may be given again after a restart.
        let mut up_to = conn.sent.max(conn.acked);
        let reached = conn.sent.max(visible);
        if conn.head > reached {
            // Something came while the page was read.
            return;
        }
        conn.sent = reached;
        conn.source = Source::Live;
        if conn.notes.replay != Replay::Done {
            conn.notes.replay = Replay::Done;
            if up_to != Seq(0) && up_to < renewal {
                up_to = up_to.max(newest);
            }
            let replayed = conn.replayed;
            self.write(id, cx, |out, _| put_synced(out, up_to, replayed));
        }
    }

    pub(crate) fn on_no_page(&mut self, id: ConnId, cx: &mut Turn<'_>) {
        if let Some(conn) = self.conn_mut(id)
            && conn.source == Source::Reading
        {
            conn.source = Source::Paused;
            let at = cx.now.mono_us + PAGE_RETRY_US;
            self.page_retries.push_back((at, id));
        }
    }

    pub(crate) fn retry_pages(&mut self, cx: &mut Turn<'_>) {
        while let Some(&(at, id)) = self.page_retries.front() {
            if at > cx.now.mono_us {
                return;
            }
            self.page_retries.pop_front();
            if let Some(conn) = self.conn_mut(id)
                && conn.source == Source::Paused
            {
                conn.source = Source::Behind;
            }
            self.pull(id, cx);
        }
    }

    /// ACK: the client has stored everything up to here.
    pub(crate) fn on_ack(&mut self, id: ConnId, ack: SeqHeader, cx: &mut Turn<'_>) {
        let receive_max = ack.arg.min(self.config.limits.receive_max);
        let Some(conn) = self.conn_mut(id) else {
            return;
        };
        conn.receive_max = u16::try_from(receive_max).unwrap_or(u16::MAX);
        let beyond = Seq(ack.seq) > conn.sent;
        let up_to = Seq(ack.seq).min(conn.sent);
        conn.acked = conn.acked.max(up_to);
        let (user, device) = (conn.user, conn.device);
        let mut traffic = conn.traffic.take();
        if beyond {
            self.counters.bump(Counter::AckBeyondSent);
        }
        if let Some(Traffic { window, .. }) = traffic.as_deref_mut() {
            while let Some(front) = window.front().filter(|front| front.seq <= up_to) {
                self.counters.bump(Counter::Acknowledged);
                let (due, conv_seq) = (front.receipt_to, front.conv_seq);
                window.pop_front();
                let next = window.front().filter(|next| next.seq <= up_to);
                // A later message of the same conversation says it as well.
                let said =
                    next.is_some_and(|next| next.receipt_to == due && next.conv_seq >= conv_seq);
                match due {
                    Some(Due::To(sender)) if !said => {
                        let conv = ConvId::direct(user, sender);
                        self.mark_delivered(conv, user, conv_seq, cx);
                    }
                    Some(Due::In(group)) if !said => {
                        self.mark_delivered(ConvId::Group(group), user, conv_seq, cx);
                    }
                    _ => {}
                }
            }
        }
        self.conns[id.index as usize].traffic = traffic;
        if up_to > Seq(0) {
            self.save_cursor(user, device, up_to, cx);
        }
        self.rest(id);
        self.pull(id, cx);
    }

    /// An entry that the client had stored before, by its own word in HELLO.
    fn note_delivered(&mut self, user: UserId, entry: &Entry, cx: &mut Turn<'_>) {
        if receipt_due(entry, user).is_some() {
            self.mark_delivered(entry.conv, user, entry.conv_seq, cx);
        }
    }
}

/// Where it is to be told that this reader got the entry.
fn receipt_due(entry: &Entry, reader: UserId) -> Option<Due> {
    if entry.sender == reader {
        return None;
    }
    match entry.conv {
        ConvId::Direct(..) => entry.conv.peer_of(reader).map(Due::To),
        ConvId::Group(group) => Some(Due::In(group)),
        ConvId::Status(_) => None,
    }
}

/// What becomes visible in an inbox.
#[derive(Clone, Copy)]
enum What<'a> {
    /// It failed, or its fate is not known.
    Nothing {
        doubtful: bool,
    },
    /// To be read from there.
    InStore,
    Entry(&'a Entry),
    /// With the frame that all readers get, but for its number.
    Frame(&'a Entry, &'a [u8]),
}

/// The frame of an entry that names no reader: a group's.
fn put_shared(out: &mut Vec<u8>, entry: &Entry) {
    let route = RouteHeader {
        seq: Seq(0),
        msg_id: entry.msg_id,
        conv: shown_conv(entry.conv, UserId(0)),
        conv_seq: entry.conv_seq,
        user: entry.sender,
        dev: entry.device,
        conv_kind: conv_kind(entry.conv),
        kind: entry.kind,
        ttl_s: entry.ttl_s,
    };
    put_routed(out, entry.op, Flags(entry.flags), 0, 0, &route, &entry.body);
}

/// The device that sent an entry does not get it back (rule O3).
fn is_own(entry: &Entry, user: UserId, device: portico_wire::ids::DeviceId) -> bool {
    entry.sender == user && entry.device == device
}

/// Its lifetime has passed (rule O3).
pub(crate) fn is_over(entry: &Entry, wall_us: u64) -> bool {
    let ttl_us = u64::from(entry.ttl_s) * 1_000_000;
    ttl_us != 0 && entry.conv_seq.0.saturating_add(ttl_us) < wall_us
}

/// The conversation as this reader names it.
pub(crate) fn shown_conv(conv: ConvId, reader: UserId) -> u64 {
    match conv {
        ConvId::Direct(low, high) => conv.peer_of(reader).unwrap_or(low.max(high)).0,
        ConvId::Group(group) => group.0,
        ConvId::Status(author) => author.0,
    }
}

pub(crate) const fn conv_kind(conv: ConvId) -> ConvKind {
    match conv {
        ConvId::Direct(..) => ConvKind::DIRECT,
        ConvId::Group(_) => ConvKind::GROUP,
        ConvId::Status(_) => ConvKind::STATUS,
    }
}
