//! The sending side: messages until they are SENT, read marks until they are DONE, and the
//! requests that the server has yet to answer.
//!
//! # Invariants
//! - A message that may have been accepted carries RETRY whenever it goes out again.
//! - Nothing is sent again on a timer of its own: only after a reconnect or a temporary error.
//! - [`Work`] exists while there is something in it; a heartbeat needs none.

mod ask;
mod work;

pub(crate) use ask::Ask;

use super::{
    config::{Now, SendOptions},
    conv::Conv,
    event::{AskId, Event, SendError},
};
use portico_wire::{
    ErrorCode, Flags, Op,
    code::ErrorReaction,
    encode::put_ping,
    ids::{ConvSeq, GroupId, MsgId},
};
use work::{Open, Pump, Read, Request, Work};

/// Conversations with a read mark under way. The oldest goes when there are more: a read mark is
/// a convenience, and the next one in the same conversation makes it good.
const READS_MAX: usize = 1_024;
/// Conversations whose receipts are still to be asked for.
const ASKS_MAX: usize = 10_000;
/// Requests with a value that wait to be sent. More are refused.
const ASKED_MAX: usize = 1_024;

/// A message that has no SENT yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) msg_id: MsgId,
    pub(crate) to: Conv,
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

/// What the server allows on this connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) requests_max: u32,
    pub(crate) frame_bytes_max: u32,
}

/// A reply that fits no open request, or not the kind of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WrongReply;

/// The requests of a session: two numbers while it is idle.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// The number given last on this connection. It outlives the work, so that a late answer meets
    /// no new request of its number.
    corr: u32,
    /// The number of the PING that waits for its PONG, 0 if none does.
    ping: u32,
    work: Option<Box<Work>>,
}

impl Requests {
    pub(crate) fn new(messages: Vec<Message>, reads: Vec<(Conv, ConvSeq)>) -> Self {
        let mut requests = Self::default();
        for mut message in messages {
            let work = requests.work();
            message.order = work.next_order();
            work.queue.push_back(message);
        }
        for (conv, up_to) in reads {
            requests.read(conv, up_to);
        }
        requests
    }

    /// Takes a message into the outbox.
    pub(crate) fn send(
        &mut self,
        now: Now,
        to: Conv,
        msg_id: MsgId,
        body: &[u8],
        options: SendOptions,
    ) -> Result<(), SendError> {
        if options.msg_id.is_some() && self.messages().any(|message| message.msg_id == msg_id) {
            return Err(SendError::InOutbox);
        }
        let flags = options.flags();
        let work = self.work();
        let order = work.next_order();
        work.queue.push_back(Message {
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
    pub(crate) fn read(&mut self, conv: Conv, up_to: ConvSeq) {
        let reads = &mut self.work().reads;
        if let Some(read) = reads.iter_mut().find(|read| read.conv == conv) {
            read.up_to = read.up_to.max(up_to);
            return;
        }
        if reads.len() >= READS_MAX {
            reads.remove(0);
        }
        reads.push(Read {
            conv,
            up_to,
            open: false,
            failures: 0,
            until_us: 0,
        });
    }

    /// Asks for the watermarks of conversations. Not repeated when a connection ends.
    pub(crate) fn ask_receipts(&mut self, convs: impl IntoIterator<Item = Conv>) {
        let asks = &mut self.work().asks;
        let room = ASKS_MAX.saturating_sub(asks.len());
        asks.extend(convs.into_iter().take(room));
    }

    /// Asks for the marks of each member.
    pub(crate) fn ask_member_receipts(&mut self, group: GroupId) {
        let asks = &mut self.work().member_asks;
        if asks.len() < ASKS_MAX {
            asks.push_back(group);
        }
    }

    /// Takes a request in, unless too many wait already.
    pub(crate) fn ask(&mut self, ask: Ask) -> Result<(), SendError> {
        let asked = &mut self.work().asked;
        if asked.len() >= ASKED_MAX {
            return Err(SendError::Full);
        }
        asked.push_back(ask);
        Ok(())
    }

    /// What this answer is about, if it is a request with a value; it stays open.
    pub(crate) fn asked(&self, corr: u32) -> Option<(AskId, Op)> {
        let open = &self.work.as_ref()?.open;
        let open = open.iter().find(|open| open.corr == corr)?;
        match &open.request {
            Request::Ask(ask) => Some((ask.id, ask.op)),
            Request::Send(_) | Request::Read { .. } | Request::Receipts => None,
        }
    }

    /// The last part of the answer has come.
    pub(crate) fn answered(&mut self, corr: u32) {
        if self.asked(corr).is_some()
            && let Some(work) = &mut self.work
        {
            work.close(corr);
        }
        self.shrink();
    }

    /// Requests that ended with their connection.
    pub(crate) fn take_unanswered(&mut self) -> Vec<AskId> {
        let unanswered = self
            .work
            .as_mut()
            .map(|work| work.take_unanswered())
            .unwrap_or_default();
        self.shrink();
        unanswered
    }

    /// The number of a request that the session itself keeps.
    pub(crate) const fn corr(&mut self) -> u32 {
        next_corr(&mut self.corr)
    }

    /// Asks for a sign of life. Of two open PINGs only the later matters.
    pub(crate) fn ping(&mut self, out: &mut Vec<u8>, next_s: u32) {
        self.ping = next_corr(&mut self.corr);
        put_ping(out, self.ping, next_s);
    }

    /// Sends what the window and the waiting times allow. Without a callback a message that has
    /// to be given up stays where it is, and [`Self::next_timeout`] asks for a turn with one.
    pub(crate) fn pump(
        &mut self,
        now: Now,
        window: Window,
        out: &mut Vec<u8>,
        on_event: Option<&mut dyn FnMut(Event<'_>)>,
    ) {
        let Some(work) = &mut self.work else {
            return;
        };
        let pump = Pump {
            now,
            window,
            corr: &mut self.corr,
            pings: usize::from(self.ping != 0),
            out,
        };
        work.pump(pump, on_event);
        self.shrink();
    }

    /// SENT has arrived.
    pub(crate) fn sent(
        &mut self,
        corr: u32,
        conv_seq: ConvSeq,
        duplicate: bool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), WrongReply> {
        match self.close(corr)? {
            None => {}
            Some(Request::Send(message)) if !message.is_ephemeral() => {
                on_event(Event::Sent {
                    msg_id: message.msg_id,
                    conv_seq,
                    duplicate,
                });
            }
            Some(other) => return self.mismatch(corr, other),
        }
        self.shrink();
        Ok(())
    }

    /// DONE has arrived.
    pub(crate) fn done(
        &mut self,
        corr: u32,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), WrongReply> {
        match self.close(corr)? {
            None | Some(Request::Receipts) => {}
            Some(Request::Read { conv, up_to }) => {
                let reads = &mut self.work().reads;
                reads.retain(|read| read.conv != conv || read.up_to > up_to);
                // The owner has read on meanwhile: the new mark goes out next.
                if let Some(read) = reads.iter_mut().find(|read| read.conv == conv) {
                    read.open = false;
                    read.failures = 0;
                }
            }
            Some(Request::Send(message)) if message.is_ephemeral() => {
                on_event(Event::Sent {
                    msg_id: message.msg_id,
                    conv_seq: ConvSeq(0),
                    duplicate: false,
                });
            }
            Some(other) => return self.mismatch(corr, other),
        }
        self.shrink();
        Ok(())
    }

    /// PONG has arrived.
    pub(crate) fn pong(&mut self, corr: u32) -> Result<(), WrongReply> {
        if corr == self.ping {
            self.ping = 0;
            return Ok(());
        }
        match self.close(corr)? {
            None => Ok(()),
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
        let request = match self.close(corr) {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(WrongReply) => {
                // A refused PING: a sign of life as well.
                self.ping = 0;
                return;
            }
        };
        let work = self.work();
        match request {
            // Answered elsewhere.
            Request::Ask(_) | Request::Receipts => {}
            Request::Read { conv, .. } => match code.reaction() {
                ErrorReaction::Mend => work.reads.retain(|read| read.conv != conv),
                ErrorReaction::SignIn | ErrorReaction::RetryPlain | ErrorReaction::RetryMarked => {
                    work.rest_read(conv, now, retry_after_ms);
                }
            },
            Request::Send(message) => {
                work.message_refused(now, message, code, retry_after_ms, on_event);
            }
        }
        self.shrink();
    }

    /// The connection is over: everything unanswered will be sent again on the next one.
    pub(crate) fn disconnected(&mut self) {
        self.corr = 0;
        self.ping = 0;
        if let Some(work) = &mut self.work {
            work.disconnected();
        }
        self.shrink();
    }

    /// When [`Self::pump`] has something to do without a reply.
    pub(crate) fn next_timeout(&self) -> Option<u64> {
        self.work.as_ref()?.next_timeout()
    }

    /// Whether so many messages are without SENT. They are counted only when it may be so.
    pub(crate) fn holds_at_least(&self, messages: usize) -> bool {
        self.len_bound() >= messages && self.unsent() >= messages
    }

    /// At least as many as there are messages without SENT.
    pub(crate) fn len_bound(&self) -> usize {
        self.work.as_ref().map_or(0, |work| work.len_bound())
    }

    /// Messages without SENT.
    pub(crate) fn unsent(&self) -> usize {
        self.messages().count()
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

    pub(crate) fn saved_reads(&self) -> Vec<(Conv, ConvSeq)> {
        let reads = self.work.iter().flat_map(|work| &work.reads);
        reads.map(|read| (read.conv, read.up_to)).collect()
    }

    fn messages(&self) -> impl Iterator<Item = &Message> {
        self.work.iter().flat_map(|work| work.messages())
    }

    fn work(&mut self) -> &mut Work {
        self.work.get_or_insert_default()
    }

    /// Takes the request out that an answer is for. A PING is none of those here.
    fn close(&mut self, corr: u32) -> Result<Option<Request>, WrongReply> {
        if corr != 0 && corr == self.ping {
            return Err(WrongReply);
        }
        Ok(self.work.as_mut().and_then(|work| work.close(corr)))
    }

    /// The server keeps the connection's promise with nonsense: the request stays open, and the
    /// end of the connection, which follows, moves it back into the queue.
    fn mismatch(&mut self, corr: u32, request: Request) -> Result<(), WrongReply> {
        self.work().open.push_front(Open { corr, request });
        Err(WrongReply)
    }

    fn shrink(&mut self) {
        if self.work.as_ref().is_some_and(|work| work.is_empty()) {
            self.work = None;
        }
    }
}

/// The next number of a request; 0 is none.
const fn next_corr(corr: &mut u32) -> u32 {
    *corr = corr.wrapping_add(1);
    if *corr == 0 {
        *corr = 1;
    }
    *corr
}
