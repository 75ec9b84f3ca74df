//! What a session has to send, and what waits for an answer; there only while there is some.
//!
//! A message is in one of three places. `queue` holds what goes out next, `open` what waits for its
//! reply, `resting` what the server refused for now together with later messages to the same peer,
//! which are kept back behind it. The end of a connection moves all of them into the queue, in the
//! order in which they were sent first.
//!
//! # Invariants
//! - The `order` ascends in `queue` and in `resting`. What wakes, or comes back from a connection that
//!   has ended, goes to its place: others of its peer may have gone another way meanwhile.

use super::{Message, Window, ask::Ask, next_corr};
use crate::session::{
    config::Now,
    conv::Conv,
    event::{Answer, AskId, Event, Failure},
};
use portico_wire::{
    ErrorCode, Flags, Op,
    code::ErrorReaction,
    encode::{Encoder, put_routed},
    frame::{ConvKind, ROUTE_END, RouteHeader, receipt_kind},
    ids::{ConvSeq, GroupId},
    limits::RECEIPTS_GET_MAX,
    message::ReceiptsGet,
};
use std::{collections::VecDeque, mem};

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

#[derive(Debug)]
pub(super) struct Open {
    pub(super) corr: u32,
    pub(super) request: Request,
}

#[derive(Debug)]
pub(super) enum Request {
    Send(Message),
    Read { conv: Conv, up_to: ConvSeq },
    Receipts,
    Ask(Ask),
}

#[derive(Debug)]
struct Resting {
    until_us: u64,
    message: Message,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    pub(super) conv: Conv,
    pub(super) up_to: ConvSeq,
    pub(super) open: bool,
    pub(super) failures: u8,
    /// 0: ready.
    pub(super) until_us: u64,
}

/// What is to be sent, and what waits for an answer.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) queue: VecDeque<Message>,
    pub(super) open: VecDeque<Open>,
    resting: Vec<Resting>,
    pub(super) reads: Vec<Read>,
    pub(super) asks: VecDeque<Conv>,
    pub(super) member_asks: VecDeque<GroupId>,
    pub(super) asked: VecDeque<Ask>,
    pub(super) unanswered: Vec<AskId>,
    /// The earliest end of a rest, 0 when nobody rests.
    rest_ends_us: u64,
    /// The server wants no messages before this time, 0 if it takes them.
    paused_until_us: u64,
    /// The last place in line that a message of this device was given, 0 if there is no line. What
    /// was not refused yet goes behind it: it would take the places of those that wait.
    line_until_us: u64,
    orders: u64,
    /// The first message of the queue has to be given up, and nobody has been told.
    overdue: bool,
}

/// What a pump works with besides the work itself.
pub(super) struct Pump<'a> {
    pub(super) now: Now,
    pub(super) window: Window,
    pub(super) corr: &'a mut u32,
    /// Places that the window keeps for a PING that is open.
    pub(super) pings: usize,
    pub(super) out: &'a mut Vec<u8>,
}

impl Work {
    pub(super) fn pump(
        &mut self,
        mut pump: Pump<'_>,
        mut on_event: Option<&mut dyn FnMut(Event<'_>)>,
    ) {
        self.overdue = false;
        if let Some(on_event) = on_event.as_mut() {
            for ask in self.take_unanswered() {
                on_event(Event::Answer {
                    ask,
                    answer: Answer::Failed(Failure::of(ErrorCode::UNAVAILABLE)),
                });
            }
        }
        self.wake(pump.now);
        self.pump_reads(&mut pump);
        self.pump_asks(&mut pump);
        self.pump_asked(&mut pump);
        while self.has_room(&pump)
            && pump.out.len() < OUTPUT_BYTES_MAX
            && let Some(message) = self.next_message()
        {
            let Some(code) = doom(pump.now, pump.window, &message) else {
                self.pump_message(message, &mut pump);
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

    pub(super) fn disconnected(&mut self) {
        let mut messages = Vec::with_capacity(self.resting.len() + self.open.len());
        messages.extend(self.resting.drain(..).map(|resting| resting.message));
        let mut again = Vec::new();
        for open in mem::take(&mut self.open) {
            match open.request {
                Request::Send(mut message) => {
                    message.retry = true;
                    messages.push(message);
                }
                Request::Ask(ask) => self.ask_unanswered(ask, &mut again),
                Request::Read { .. } | Request::Receipts => {}
            }
        }
        for ask in again.into_iter().rev() {
            self.asked.push_front(ask);
        }
        messages.sort_by_key(|message| message.order);
        for message in messages.into_iter().rev() {
            self.enqueue(message);
        }
        for read in &mut self.reads {
            read.open = false;
            read.until_us = 0;
        }
        self.resting = Vec::new();
        self.rest_ends_us = 0;
    }

    pub(super) fn next_timeout(&self) -> Option<u64> {
        if self.overdue || !self.unanswered.is_empty() {
            return Some(0);
        }
        let held = if self.queue.is_empty() {
            0
        } else {
            self.paused_until_us.max(self.line_until_us)
        };
        let reads = self.reads.iter().map(|read| read.until_us);
        reads
            .chain([self.rest_ends_us, held])
            .filter(|at_us| *at_us != 0)
            .min()
    }

    pub(super) fn messages(&self) -> impl Iterator<Item = &Message> {
        let open = self.open.iter().filter_map(|open| match &open.request {
            Request::Send(message) => Some(message),
            Request::Read { .. } | Request::Receipts | Request::Ask(_) => None,
        });
        let resting = self.resting.iter().map(|resting| &resting.message);
        open.chain(resting).chain(&self.queue)
    }

    /// At least as many as there are messages.
    pub(super) fn len_bound(&self) -> usize {
        self.open.len() + self.resting.len() + self.queue.len()
    }

    /// Nothing waits, and nothing has to be remembered.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
            && self.open.is_empty()
            && self.resting.is_empty()
            && self.reads.is_empty()
            && self.asks.is_empty()
            && self.member_asks.is_empty()
            && self.asked.is_empty()
            && self.unanswered.is_empty()
            && self.paused_until_us == 0
            && self.line_until_us == 0
    }

    /// The first message of the queue, if the server lets it go now. One that was refused has waited
    /// for its own place.
    fn next_message(&mut self) -> Option<Message> {
        let first = self.queue.front()?;
        let in_line = self.line_until_us != 0 && first.failures == 0;
        if self.paused_until_us != 0 || in_line {
            return None;
        }
        self.queue.pop_front()
    }

    pub(super) fn has_room(&self, pump: &Pump<'_>) -> bool {
        // One place is kept for the PING that may become due at any moment.
        let requests_max = (pump.window.requests_max as usize).saturating_sub(1).max(1);
        self.open.len() + pump.pings < requests_max
    }

    /// Ends the pause, the line and the rests whose time has come.
    fn wake(&mut self, now: Now) {
        for until_us in [&mut self.paused_until_us, &mut self.line_until_us] {
            if *until_us <= now.mono_us {
                *until_us = 0;
            }
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
            self.enqueue(message);
        }
        let ends = self.resting.iter().map(|resting| resting.until_us);
        self.rest_ends_us = ends.min().unwrap_or(0);
    }

    /// Puts a message where it belongs, as a rule at the front.
    fn enqueue(&mut self, message: Message) {
        let at = self
            .queue
            .partition_point(|queued| queued.order < message.order);
        self.queue.insert(at, message);
    }

    fn pump_reads(&mut self, pump: &mut Pump<'_>) {
        for index in 0..self.reads.len() {
            if !self.has_room(pump) {
                return;
            }
            let Some(read) = self.reads.get_mut(index) else {
                return;
            };
            if read.open || read.until_us != 0 {
                continue;
            }
            read.open = true;
            let Read { conv, up_to, .. } = *read;
            let corr = self.open(pump, Request::Read { conv, up_to });
            let route = RouteHeader {
                conv: conv.number(),
                conv_kind: conv.kind(),
                conv_seq: up_to,
                kind: receipt_kind::READ,
                ..RouteHeader::default()
            };
            put_routed(
                pump.out,
                Op::Receipt as u8,
                Flags::NONE,
                corr,
                0,
                &route,
                &[],
            );
        }
    }

    fn pump_asks(&mut self, pump: &mut Pump<'_>) {
        while !self.asks.is_empty() && self.has_room(pump) {
            let count = self.asks.len().min(RECEIPTS_GET_MAX);
            let convs = self
                .asks
                .drain(..count)
                .map(|conv| (conv.kind(), conv.number()))
                .collect();
            let get = ReceiptsGet {
                convs,
                members: false,
            };
            let corr = self.open(pump, Request::Receipts);
            Encoder::new().receipts_get(pump.out, corr, &get);
        }
        while self.has_room(pump)
            && let Some(group) = self.member_asks.pop_front()
        {
            let get = ReceiptsGet {
                convs: vec![(ConvKind::GROUP, group.0)],
                members: true,
            };
            let corr = self.open(pump, Request::Receipts);
            Encoder::new().receipts_get(pump.out, corr, &get);
        }
        if self.asks.is_empty() {
            self.asks = VecDeque::new();
        }
    }

    /// Sends the first message of the queue, or puts it where it has to wait.
    fn pump_message(&mut self, message: Message, pump: &mut Pump<'_>) {
        let ahead = self
            .resting
            .iter()
            .take_while(|resting| resting.message.order < message.order)
            .filter(|resting| resting.message.to == message.to)
            .map(|resting| resting.until_us)
            .max();
        if let Some(until_us) = ahead {
            self.rest(until_us, message);
            return;
        }
        let route = RouteHeader {
            msg_id: message.msg_id,
            conv: message.to.number(),
            conv_kind: message.to.kind(),
            kind: message.kind,
            ttl_s: message.ttl_s,
            ..RouteHeader::default()
        };
        let mut flags = message.flags;
        if message.retry {
            flags = flags | Flags::RETRY;
        }
        let corr = next_corr(pump.corr);
        put_routed(
            pump.out,
            Op::Send as u8,
            flags,
            corr,
            0,
            &route,
            &message.body,
        );
        let request = Request::Send(message);
        self.open.push_back(Open { corr, request });
    }

    pub(super) fn message_refused(
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
        let wish_us = u64::from(retry_after_ms) * 1_000;
        let mut wait_us = rest_us(message.failures, retry_after_ms);
        match reaction {
            // The limit is the device's, and the wish this message's own place in line: of many that
            // were refused together each goes when its turn has come.
            ErrorReaction::RetryPlain if code == ErrorCode::RATE_LIMITED && wish_us > 0 => {
                wait_us = wish_us;
                let until_us = now.mono_us.saturating_add(wish_us);
                self.line_until_us = self.line_until_us.max(until_us);
            }
            // The overload is the server's: other messages meet it too.
            ErrorReaction::RetryPlain => {
                let pause_us = if wish_us > 0 { wish_us } else { wait_us };
                let until_us = now.mono_us.saturating_add(pause_us);
                self.paused_until_us = self.paused_until_us.max(until_us);
            }
            ErrorReaction::Mend | ErrorReaction::SignIn | ErrorReaction::RetryMarked => {
                message.retry = true;
            }
        }
        self.rest(now.mono_us.saturating_add(wait_us), message);
    }

    pub(super) fn rest_read(&mut self, conv: Conv, now: Now, retry_after_ms: u32) {
        if let Some(read) = self.reads.iter_mut().find(|read| read.conv == conv) {
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

    fn open(&mut self, pump: &mut Pump<'_>, request: Request) -> u32 {
        let corr = next_corr(pump.corr);
        self.open.push_back(Open { corr, request });
        corr
    }

    pub(super) fn close(&mut self, corr: u32) -> Option<Request> {
        let at = self.open.iter().position(|open| open.corr == corr)?;
        let open = self.open.remove(at)?;
        if self.open.is_empty() {
            self.open = VecDeque::new();
        }
        Some(open.request)
    }

    pub(super) const fn next_order(&mut self) -> u64 {
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

/// 1, 2, 4 ... 60 seconds after the first, second, third failure, or more if the server wishes.
fn rest_us(failures: u8, wish_ms: u32) -> u64 {
    let doublings = u32::from(failures.saturating_sub(1)).min(6);
    let own_s = (REST_FIRST_S << doublings).min(REST_MAX_S);
    (own_s * 1_000_000).max(u64::from(wish_ms) * 1_000)
}
