//! The sending side: messages until they are SENT, read marks until they are DONE, and the
//! requests that the server has yet to answer.
//!
//! A message is in one of three places. `queue` holds what goes out next, `open` what waits for its
//! reply, `resting` what the server refused for now together with later messages to the same peer,
//! which are kept back behind it. The end of a connection moves all of them into the queue, in the
//! order in which they were sent first.
//!
//! # Invariants
//! - The `order` of everything in `resting` is below that of everything in `queue`; both ascend.
//! - A message that may have been accepted carries RETRY whenever it goes out again.
//! - Nothing is sent again on a timer of its own: only after a reconnect or a temporary error.

use super::{
    config::{Now, SendOptions},
    event::{Event, SendError},
};
use portico_wire::{
    ErrorCode, Flags, Op,
    code::ErrorReaction,
    encode::{Encoder, put_ping, put_routed},
    frame::{ConvKind, ROUTE_END, RouteHeader, receipt_kind},
    ids::{ConvSeq, MsgId, UserId},
    limits::RECEIPTS_GET_MAX,
    message::ReceiptsGet,
};
use std::collections::VecDeque;

/// How long a message is tried.
const TRY_US: u64 = 24 * 3_600 * 1_000_000;
/// Waits after temporary errors double from the first to the last.
const REST_FIRST_S: u64 = 1;
const REST_MAX_S: u64 = 60;
/// A server's wish for more time is honoured up to here.
const WISH_MAX_MS: u32 = 3_600_000;
/// Messages are turned into frames while less than this waits for the transport; replies to the
/// frames already made bring the next turn.
const OUTPUT_BYTES_MAX: usize = 128 * 1_024;
/// Conversations with a read mark under way. The oldest goes when there are more: a read mark is
/// a convenience, and the next one in the same conversation makes it good.
const READS_MAX: usize = 1_024;
/// Conversations whose receipts are still to be asked for.
const ASKS_MAX: usize = 10_000;

/// A message that has no SENT yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) msg_id: MsgId,
    pub(crate) to: UserId,
    pub(crate) body: Box<[u8]>,
    /// Wall time at which the owner sent it.
    pub(crate) queued_us: u64,
    /// Place among all messages of the session.
    pub(crate) order: u64,
    pub(crate) ttl_s: u32,
    /// EPHEMERAL and SILENT.
    pub(crate) flags: Flags,
    pub(crate) kind: u8,
    /// Temporary errors so far.
    pub(crate) failures: u8,
    /// An earlier attempt may have been accepted.
    pub(crate) retry: bool,
}

impl Message {
    pub(crate) const fn is_ephemeral(&self) -> bool {
        self.flags.contains(Flags::EPHEMERAL)
    }
}

#[derive(Debug)]
struct Open {
    corr: u32,
    request: Request,
}

#[derive(Debug)]
enum Request {
    Send(Message),
    Read { peer: UserId, up_to: ConvSeq },
    Receipts,
    Ping,
}

#[derive(Debug)]
struct Resting {
    until_us: u64,
    message: Message,
}

#[derive(Clone, Copy, Debug)]
struct Read {
    peer: UserId,
    up_to: ConvSeq,
    open: bool,
    failures: u8,
    /// 0: ready.
    until_us: u64,
}

/// What the server allows on this connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) requests_max: u32,
    pub(crate) frame_bytes_max: u32,
}

/// A reply that fits no open request, or not the kind of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WrongReply;

#[derive(Debug, Default)]
pub(crate) struct Requests {
    queue: VecDeque<Message>,
    open: VecDeque<Open>,
    resting: Vec<Resting>,
    reads: Vec<Read>,
    asks: VecDeque<UserId>,
    /// The earliest end of a rest, 0 when nobody rests.
    rest_ends_us: u64,
    /// The server wants no messages before this time, 0 if it takes them.
    paused_until_us: u64,
    orders: u64,
    corr: u32,
    /// The first message of the queue has to be given up, and nobody has been told.
    overdue: bool,
}

impl Requests {
    pub(crate) fn new(messages: Vec<Message>, reads: Vec<(UserId, ConvSeq)>) -> Self {
        let mut requests = Self::default();
        for mut message in messages {
            message.order = requests.next_order();
            requests.queue.push_back(message);
        }
        for (peer, up_to) in reads {
            requests.read(peer, up_to);
        }
        requests
    }

    /// Takes a message into the outbox.
    pub(crate) fn send(
        &mut self,
        now: Now,
        to: UserId,
        msg_id: MsgId,
        body: &[u8],
        options: SendOptions,
    ) -> Result<(), SendError> {
        if options.msg_id.is_some() && self.messages().any(|message| message.msg_id == msg_id) {
            return Err(SendError::InOutbox);
        }
        let mut flags = Flags::NONE;
        if options.ephemeral {
            flags = flags | Flags::EPHEMERAL;
        }
        if options.silent {
            flags = flags | Flags::SILENT;
        }
        let order = self.next_order();
        self.queue.push_back(Message {
            msg_id,
            to,
            body: body.into(),
            queued_us: now.wall_us,
            order,
            ttl_s: options.ttl_s,
            flags,
            kind: options.kind,
            failures: 0,
            retry: options.retry && !options.ephemeral,
        });
        Ok(())
    }

    /// Marks a conversation as read; only the greatest mark of each is kept.
    pub(crate) fn read(&mut self, peer: UserId, up_to: ConvSeq) {
        if let Some(read) = self.reads.iter_mut().find(|read| read.peer == peer) {
            read.up_to = read.up_to.max(up_to);
            return;
        }
        if self.reads.len() >= READS_MAX {
            self.reads.remove(0);
        }
        self.reads.push(Read {
            peer,
            up_to,
            open: false,
            failures: 0,
            until_us: 0,
        });
    }

    /// Asks for the watermarks of conversations. Not repeated when a connection ends.
    pub(crate) fn ask_receipts(&mut self, peers: &[UserId]) {
        let room = ASKS_MAX.saturating_sub(self.asks.len());
        self.asks.extend(peers.iter().copied().take(room));
    }

    /// Asks for a sign of life.
    pub(crate) fn ping(&mut self, out: &mut Vec<u8>, next_s: u32) {
        // Of two open PINGs only the later matters, so that they cannot add up.
        self.open
            .retain(|open| !matches!(open.request, Request::Ping));
        let corr = self.open(Request::Ping);
        put_ping(out, corr, next_s);
    }

    /// Sends what the window and the waiting times allow. Without a callback a message that has
    /// to be given up stays where it is, and [`Self::next_timeout`] asks for a turn with one.
    pub(crate) fn pump(
        &mut self,
        now: Now,
        window: Window,
        out: &mut Vec<u8>,
        mut on_event: Option<&mut dyn FnMut(Event<'_>)>,
    ) {
        self.overdue = false;
        self.wake(now);
        self.pump_reads(window, out);
        self.pump_asks(window, out);
        while self.paused_until_us == 0
            && self.has_room(window)
            && out.len() < OUTPUT_BYTES_MAX
            && let Some(message) = self.queue.pop_front()
        {
            let Some(code) = doom(now, window, &message) else {
                self.pump_message(message, out);
                continue;
            };
            let Some(on_event) = on_event.as_mut() else {
                self.queue.push_front(message);
                self.overdue = true;
                return;
            };
            on_event(Event::Refused {
                msg_id: message.msg_id,
                code,
                retry_after_ms: 0,
                will_retry: false,
            });
        }
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
    }

    /// SENT has arrived.
    pub(crate) fn sent(
        &mut self,
        corr: u32,
        conv_seq: ConvSeq,
        duplicate: bool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), WrongReply> {
        match self.close(corr) {
            None => Ok(()),
            Some(Request::Send(message)) if !message.is_ephemeral() => {
                on_event(Event::Sent {
                    msg_id: message.msg_id,
                    conv_seq,
                    duplicate,
                });
                Ok(())
            }
            Some(other) => self.mismatch(corr, other),
        }
    }

    /// DONE has arrived.
    pub(crate) fn done(
        &mut self,
        corr: u32,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), WrongReply> {
        match self.close(corr) {
            None | Some(Request::Receipts) => Ok(()),
            Some(Request::Read { peer, up_to }) => {
                self.reads
                    .retain(|read| read.peer != peer || read.up_to > up_to);
                // The owner has read on meanwhile: the new mark goes out next.
                if let Some(read) = self.reads.iter_mut().find(|read| read.peer == peer) {
                    read.open = false;
                    read.failures = 0;
                }
                Ok(())
            }
            Some(Request::Send(message)) if message.is_ephemeral() => {
                on_event(Event::Sent {
                    msg_id: message.msg_id,
                    conv_seq: ConvSeq(0),
                    duplicate: false,
                });
                Ok(())
            }
            Some(other) => self.mismatch(corr, other),
        }
    }

    /// PONG has arrived.
    pub(crate) fn pong(&mut self, corr: u32) -> Result<(), WrongReply> {
        match self.close(corr) {
            None | Some(Request::Ping) => Ok(()),
            Some(other) => self.mismatch(corr, other),
        }
    }

    /// ERROR, or another refusal, has arrived.
    pub(crate) fn refused(
        &mut self,
        now: Now,
        corr: u32,
        code: ErrorCode,
        retry_after_ms: u32,
        on_event: &mut dyn FnMut(Event<'_>),
    ) {
        match self.close(corr) {
            None | Some(Request::Receipts | Request::Ping) => {}
            Some(Request::Read { peer, .. }) => match code.reaction() {
                ErrorReaction::Mend => self.reads.retain(|read| read.peer != peer),
                ErrorReaction::SignIn | ErrorReaction::RetryPlain | ErrorReaction::RetryMarked => {
                    self.rest_read(peer, now, retry_after_ms);
                }
            },
            Some(Request::Send(message)) => {
                self.message_refused(now, message, code, retry_after_ms, on_event);
            }
        }
    }

    /// The connection is over: everything unanswered will be sent again on the next one.
    pub(crate) fn disconnected(&mut self) {
        let mut messages = Vec::with_capacity(self.resting.len() + self.open.len());
        messages.extend(self.resting.drain(..).map(|resting| resting.message));
        for open in self.open.drain(..) {
            match open.request {
                Request::Send(mut message) => {
                    message.retry = true;
                    messages.push(message);
                }
                Request::Read { .. } | Request::Receipts | Request::Ping => {}
            }
        }
        messages.sort_by_key(|message| message.order);
        for message in messages.into_iter().rev() {
            self.queue.push_front(message);
        }
        for read in &mut self.reads {
            read.open = false;
            read.until_us = 0;
        }
        self.open = VecDeque::new();
        self.resting = Vec::new();
        self.rest_ends_us = 0;
        self.corr = 0;
    }

    /// When [`Self::pump`] has something to do without a reply.
    pub(crate) fn next_timeout(&self) -> Option<u64> {
        if self.overdue {
            return Some(0);
        }
        let paused = if self.queue.is_empty() {
            0
        } else {
            self.paused_until_us
        };
        let reads = self.reads.iter().map(|read| read.until_us);
        reads
            .chain([self.rest_ends_us, paused])
            .filter(|at_us| *at_us != 0)
            .min()
    }

    /// Messages without SENT.
    pub(crate) fn unsent(&self) -> usize {
        let open = self.open.iter();
        let open = open.filter(|open| matches!(open.request, Request::Send(_)));
        open.count() + self.resting.len() + self.queue.len()
    }

    /// Messages without SENT, in the order in which they were sent, as a later session has to see
    /// them: it cannot know what has become of them since.
    pub(crate) fn saved(&self) -> Vec<Message> {
        let mut messages: Vec<Message> = self
            .messages()
            .filter(|message| !message.is_ephemeral())
            .cloned()
            .collect();
        messages.sort_by_key(|message| message.order);
        for message in &mut messages {
            message.order = 0;
            message.failures = 0;
            message.retry = true;
        }
        messages
    }

    pub(crate) fn saved_reads(&self) -> Vec<(UserId, ConvSeq)> {
        self.reads
            .iter()
            .map(|read| (read.peer, read.up_to))
            .collect()
    }

    fn messages(&self) -> impl Iterator<Item = &Message> {
        let open = self.open.iter().filter_map(|open| match &open.request {
            Request::Send(message) => Some(message),
            Request::Read { .. } | Request::Receipts | Request::Ping => None,
        });
        let resting = self.resting.iter().map(|resting| &resting.message);
        open.chain(resting).chain(&self.queue)
    }

    fn has_room(&self, window: Window) -> bool {
        // One place is kept for the PING that may become due at any moment.
        let requests_max = (window.requests_max as usize).saturating_sub(1).max(1);
        self.open.len() < requests_max
    }

    /// Ends the pause and the rests whose time has come.
    fn wake(&mut self, now: Now) {
        if self.paused_until_us <= now.mono_us {
            self.paused_until_us = 0;
        }
        for read in &mut self.reads {
            if read.until_us <= now.mono_us {
                read.until_us = 0;
            }
        }
        if self.rest_ends_us == 0 || self.rest_ends_us > now.mono_us {
            return;
        }
        let mut still = Vec::new();
        let mut awake = Vec::new();
        for resting in self.resting.drain(..) {
            if resting.until_us <= now.mono_us {
                awake.push(resting.message);
            } else {
                still.push(resting);
            }
        }
        self.resting = still;
        for message in awake.into_iter().rev() {
            self.queue.push_front(message);
        }
        let ends = self.resting.iter().map(|resting| resting.until_us);
        self.rest_ends_us = ends.min().unwrap_or(0);
    }

    fn pump_reads(&mut self, window: Window, out: &mut Vec<u8>) {
        for index in 0..self.reads.len() {
            if !self.has_room(window) {
                return;
            }
            let Some(read) = self.reads.get_mut(index) else {
                return;
            };
            if read.open || read.until_us != 0 {
                continue;
            }
            read.open = true;
            let Read { peer, up_to, .. } = *read;
            let corr = self.open(Request::Read { peer, up_to });
            let route = RouteHeader {
                conv: peer.0,
                conv_kind: ConvKind::DIRECT,
                conv_seq: up_to,
                kind: receipt_kind::READ,
                ..RouteHeader::default()
            };
            put_routed(out, Op::Receipt as u8, Flags::NONE, corr, 0, &route, &[]);
        }
    }

    fn pump_asks(&mut self, window: Window, out: &mut Vec<u8>) {
        while !self.asks.is_empty() && self.has_room(window) {
            let count = self.asks.len().min(RECEIPTS_GET_MAX);
            let convs = self
                .asks
                .drain(..count)
                .map(|peer| (ConvKind::DIRECT, peer.0))
                .collect();
            let get = ReceiptsGet {
                convs,
                members: false,
            };
            let corr = self.open(Request::Receipts);
            Encoder::new().receipts_get(out, corr, &get);
        }
        if self.asks.is_empty() {
            self.asks = VecDeque::new();
        }
    }

    /// Sends the first message of the queue, or puts it where it has to wait.
    fn pump_message(&mut self, message: Message, out: &mut Vec<u8>) {
        let ahead = self
            .resting
            .iter()
            .filter(|resting| resting.message.to == message.to)
            .map(|resting| resting.until_us)
            .max();
        if let Some(until_us) = ahead {
            self.rest(until_us, message);
            return;
        }
        let route = RouteHeader {
            msg_id: message.msg_id,
            conv: message.to.0,
            conv_kind: ConvKind::DIRECT,
            kind: message.kind,
            ttl_s: message.ttl_s,
            ..RouteHeader::default()
        };
        let mut flags = message.flags;
        if message.retry {
            flags = flags | Flags::RETRY;
        }
        let corr = self.next_corr();
        put_routed(out, Op::Send as u8, flags, corr, 0, &route, &message.body);
        let request = Request::Send(message);
        self.open.push_back(Open { corr, request });
    }

    fn message_refused(
        &mut self,
        now: Now,
        mut message: Message,
        code: ErrorCode,
        retry_after_ms: u32,
        on_event: &mut dyn FnMut(Event<'_>),
    ) {
        let retry_after_ms = retry_after_ms.min(WISH_MAX_MS);
        let reaction = code.reaction();
        let will_retry = reaction != ErrorReaction::Mend && !message.is_ephemeral();
        on_event(Event::Refused {
            msg_id: message.msg_id,
            code,
            retry_after_ms,
            will_retry,
        });
        if !will_retry {
            return;
        }
        message.failures = message.failures.saturating_add(1);
        let wait_us = rest_us(message.failures, retry_after_ms);
        match reaction {
            // The limit is the device's, the overload the server's: other messages meet it too.
            ErrorReaction::RetryPlain => {
                let pause_us = match retry_after_ms {
                    0 => wait_us,
                    wish_ms => u64::from(wish_ms) * 1_000,
                };
                let until_us = now.mono_us.saturating_add(pause_us);
                self.paused_until_us = self.paused_until_us.max(until_us);
            }
            ErrorReaction::Mend | ErrorReaction::SignIn | ErrorReaction::RetryMarked => {
                message.retry = true;
            }
        }
        self.rest(now.mono_us.saturating_add(wait_us), message);
    }

    /// The server keeps the connection's promise with nonsense: the request stays open, and the
    /// end of the connection, which follows, moves it back into the queue.
    fn mismatch(&mut self, corr: u32, request: Request) -> Result<(), WrongReply> {
        self.open.push_front(Open { corr, request });
        Err(WrongReply)
    }

    fn rest_read(&mut self, peer: UserId, now: Now, retry_after_ms: u32) {
        if let Some(read) = self.reads.iter_mut().find(|read| read.peer == peer) {
            read.open = false;
            read.failures = read.failures.saturating_add(1);
            let wait_us = rest_us(read.failures, retry_after_ms.min(WISH_MAX_MS));
            read.until_us = now.mono_us.saturating_add(wait_us);
        }
    }

    fn rest(&mut self, until_us: u64, message: Message) {
        let at = self
            .resting
            .partition_point(|resting| resting.message.order < message.order);
        self.resting.insert(at, Resting { until_us, message });
        self.rest_ends_us = match self.rest_ends_us {
            0 => until_us,
            ends_us => ends_us.min(until_us),
        };
    }

    fn open(&mut self, request: Request) -> u32 {
        let corr = self.next_corr();
        self.open.push_back(Open { corr, request });
        corr
    }

    fn close(&mut self, corr: u32) -> Option<Request> {
        let at = self.open.iter().position(|open| open.corr == corr)?;
        let open = self.open.remove(at)?;
        if self.open.is_empty() {
            self.open = VecDeque::new();
        }
        Some(open.request)
    }

    const fn next_corr(&mut self) -> u32 {
        self.corr = self.corr.wrapping_add(1);
        if self.corr == 0 {
            self.corr = 1;
        }
        self.corr
    }

    const fn next_order(&mut self) -> u64 {
        self.orders += 1;
        self.orders
    }
}

/// Why a message cannot go out any more, if so.
fn doom(now: Now, window: Window, message: &Message) -> Option<ErrorCode> {
    if message.is_ephemeral() && message.retry {
        // Its connection ended before the answer, and it has no second attempt.
        Some(ErrorCode::UNAVAILABLE)
    } else if now.wall_us.saturating_sub(message.queued_us) >= TRY_US {
        Some(ErrorCode::TIMEOUT)
    } else if ROUTE_END + message.body.len() > window.frame_bytes_max as usize {
        Some(ErrorCode::TOO_LARGE)
    } else {
        None
    }
}

/// 1, 2, 4 ... 60 seconds after the first, second, third failure, or what the server wishes.
fn rest_us(failures: u8, wish_ms: u32) -> u64 {
    let doublings = u32::from(failures.saturating_sub(1)).min(6);
    let own_s = (REST_FIRST_S << doublings).min(REST_MAX_S);
    (own_s * 1_000_000).max(u64::from(wish_ms) * 1_000)
}
