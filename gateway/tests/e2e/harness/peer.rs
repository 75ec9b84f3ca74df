//! One logged-in device, frame by frame.

use super::{PATIENCE, Random};
use portico_client::{RawConnection, RawError, RawFrame, RawWelcome};
use portico_wire::{
    CloseCode, ErrorCode, Flags, Op, RouteHeader,
    encode::{put_ack, put_ping, put_routed},
    frame::{ConvKind, receipt_kind},
    ids::{ConvSeq, DeviceId, MsgId, Seq, UserId},
    message::{Envelope, ErrorReply, Hello, ReceiptsGet},
};
use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// A DELIVER frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) seq: Seq,
    pub(crate) conv_seq: ConvSeq,
    pub(crate) peer: UserId,
    pub(crate) from: UserId,
    pub(crate) device: DeviceId,
    pub(crate) msg_id: MsgId,
    pub(crate) ephemeral: bool,
    pub(crate) text: String,
}

impl Message {
    pub(crate) fn decode(frame: &RawFrame) -> Option<Self> {
        if frame.known_op() != Some(Op::Deliver) {
            return None;
        }
        let route = frame.route.expect("DELIVER is routed");
        let envelope = Envelope::decode(&frame.body).expect("an Envelope");
        Some(Self {
            seq: route.seq,
            conv_seq: route.conv_seq,
            peer: UserId(route.conv),
            from: route.user,
            device: route.dev,
            msg_id: route.msg_id,
            ephemeral: frame.flags.contains(Flags::EPHEMERAL),
            text: String::from_utf8(envelope.body.to_vec()).expect("a text"),
        })
    }
}

/// A RECEIPT frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub(crate) peer: UserId,
    pub(crate) reader: UserId,
    pub(crate) read: bool,
    pub(crate) up_to: ConvSeq,
    pub(crate) at_s: u32,
}

/// An ERROR frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) code: ErrorCode,
    pub(crate) op: u8,
    pub(crate) server_us: u64,
}

/// See the [module](self). Frames that nobody asked for yet are kept in their order.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) conn: RawConnection,
    pub(crate) welcome: RawWelcome,
    waiting: VecDeque<RawFrame>,
    corr: u32,
}

impl Peer {
    /// Logs in and waits for SYNCED. What is replayed before it waits to be asked for.
    pub(crate) fn login(conn: RawConnection, token: &str) -> Self {
        let hello = Hello {
            token: Some(token),
            ..Hello::default()
        };
        Self::login_with(conn, &hello)
    }

    pub(crate) fn login_with(mut conn: RawConnection, hello: &Hello<'_>) -> Self {
        let welcome = conn.hello_with(hello).expect("WELCOME");
        let mut peer = Self {
            conn,
            welcome,
            waiting: VecDeque::new(),
            corr: 1,
        };
        peer.synced();
        peer
    }

    /// A number for the next request.
    pub(crate) const fn next_corr(&mut self) -> u32 {
        self.corr += 1;
        self.corr
    }

    /// Takes the first frame for which `wanted` has a value; the others stay.
    pub(crate) fn take<T>(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&RawFrame) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + PATIENCE;
        for at in 0..self.waiting.len() {
            if let Some(value) = wanted(&self.waiting[at]) {
                self.waiting.remove(at);
                return value;
            }
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let frame = match self.conn.expect_frame(left) {
                Ok(frame) => frame,
                Err(error) => panic!("no {what}: {error}; waiting: {:?}", self.waiting),
            };
            if let Some(value) = wanted(&frame) {
                return value;
            }
            self.waiting.push_back(frame);
        }
    }

    fn take_op(&mut self, op: Op) -> RawFrame {
        self.take(op.name(), |frame| {
            (frame.known_op() == Some(op)).then(|| frame.clone())
        })
    }

    /// Where the replay ended, and how many entries it had.
    pub(crate) fn synced(&mut self) -> (Seq, u32) {
        let frame = self.take_op(Op::Synced);
        (Seq(frame.seq.seq), frame.seq.arg)
    }

    /// The reply to a request, whatever it is. Parts that announce more are skipped.
    pub(crate) fn reply(&mut self, corr: u32) -> RawFrame {
        self.take("reply", |frame| {
            let reply = frame.flags.contains(Flags::REPLY) && frame.corr == corr;
            (reply && !frame.flags.contains(Flags::MORE)).then(|| frame.clone())
        })
    }

    // ---- sending

    /// SEND as a request, without waiting for the answer.
    pub(crate) fn post(&mut self, to: u64, text: &str) -> (u32, MsgId) {
        let (corr, msg_id) = (self.next_corr(), new_msg_id());
        self.post_as(corr, to, msg_id, Flags::NONE, text);
        (corr, msg_id)
    }

    pub(crate) fn post_as(&mut self, corr: u32, to: u64, msg_id: MsgId, flags: Flags, text: &str) {
        self.conn
            .send_text(corr, UserId(to), msg_id, flags, text)
            .expect("the gateway reads");
    }

    /// SEND with any body.
    pub(crate) fn post_body(&mut self, to: u64, body: &[u8]) -> u32 {
        let corr = self.next_corr();
        let route = RouteHeader {
            msg_id: new_msg_id(),
            conv: to,
            conv_kind: ConvKind::DIRECT,
            ..RouteHeader::default()
        };
        let mut out = Vec::new();
        put_routed(&mut out, Op::Send as u8, Flags::NONE, corr, 0, &route, body);
        self.write(&out);
        corr
    }

    /// SEND and SENT.
    pub(crate) fn send(&mut self, to: u64, text: &str) -> ConvSeq {
        let (corr, _) = self.post(to, text);
        let (conv_seq, duplicate) = self.sent(corr);
        assert!(!duplicate);
        conv_seq
    }

    /// The SENT that answers a request: place, and whether the message was known.
    pub(crate) fn sent(&mut self, corr: u32) -> (ConvSeq, bool) {
        let reply = self.reply(corr);
        if reply.known_op() == Some(Op::Error) {
            panic!("not sent: {:?}", refused(&reply));
        }
        assert_eq!(reply.known_op(), Some(Op::Sent));
        (ConvSeq(reply.seq.seq), reply.seq.arg == 1)
    }

    /// The ERROR that answers a request.
    pub(crate) fn refused(&mut self, corr: u32) -> Refused {
        let reply = self.reply(corr);
        assert_eq!(reply.known_op(), Some(Op::Error), "{reply:?}");
        refused(&reply)
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.conn.write_bytes(bytes).expect("the gateway reads");
    }

    // ---- receiving

    /// The next DELIVER, not acknowledged.
    pub(crate) fn message(&mut self) -> Message {
        self.take("DELIVER", Message::decode)
    }

    /// The next DELIVER, acknowledged.
    pub(crate) fn receive(&mut self) -> Message {
        let message = self.message();
        self.ack(message.seq);
        message
    }

    pub(crate) fn ack(&mut self, up_to: Seq) {
        let mut out = Vec::new();
        put_ack(&mut out, up_to, self.welcome.receive_max);
        self.write(&out);
    }

    /// PING and PONG: everything the gateway wrote before has arrived.
    pub(crate) fn ping(&mut self) {
        let corr = self.next_corr();
        let mut out = Vec::new();
        put_ping(&mut out, corr, 60);
        self.write(&out);
        assert_eq!(self.reply(corr).known_op(), Some(Op::Pong));
    }

    /// No frame of this kind has arrived up to now.
    pub(crate) fn has_no(&mut self, op: Op) {
        self.ping();
        let found = self.waiting.iter().find(|frame| frame.op == op as u8);
        assert_eq!(found, None);
    }

    /// The connection is closed with this code.
    pub(crate) fn closed(&mut self) -> CloseCode {
        let code = self.take("CLOSE", RawFrame::close_code);
        self.conn.expect_end(PATIENCE).expect("an end after CLOSE");
        code
    }

    // ---- receipts

    /// RECEIPT READ as a request, and DONE.
    pub(crate) fn read(&mut self, peer: u64, up_to: ConvSeq) {
        let corr = self.next_corr();
        let route = RouteHeader {
            conv: peer,
            conv_seq: up_to,
            conv_kind: ConvKind::DIRECT,
            kind: receipt_kind::READ,
            ..RouteHeader::default()
        };
        let mut out = Vec::new();
        put_routed(
            &mut out,
            Op::Receipt as u8,
            Flags::NONE,
            corr,
            0,
            &route,
            &[],
        );
        self.write(&out);
        assert_eq!(self.reply(corr).known_op(), Some(Op::Done));
    }

    /// Waits until a receipt that was pushed reaches `up_to`.
    pub(crate) fn receipt(&mut self, read: bool, up_to: ConvSeq) -> Receipt {
        self.take("RECEIPT", |frame| {
            let pushed = !frame.flags.contains(Flags::REPLY);
            receipt(frame).filter(|r| pushed && r.read == read && r.up_to >= up_to)
        })
    }

    /// RECEIPTS_GET of one conversation, with all its answers.
    pub(crate) fn receipts(&mut self, peer: u64) -> Vec<Receipt> {
        let corr = self.next_corr();
        let get = ReceiptsGet {
            convs: vec![(ConvKind::DIRECT, peer)],
            members: false,
        };
        let mut out = Vec::new();
        self.conn.encoder().receipts_get(&mut out, corr, &get);
        self.write(&out);
        let mut receipts = Vec::new();
        self.take("DONE", |frame| {
            if !frame.flags.contains(Flags::REPLY) || frame.corr != corr {
                return None;
            }
            receipts.extend(receipt(frame));
            (frame.known_op() == Some(Op::Done)).then_some(())
        });
        self.waiting.retain(|frame| frame.corr != corr);
        receipts
    }
}

fn receipt(frame: &RawFrame) -> Option<Receipt> {
    if frame.known_op() != Some(Op::Receipt) {
        return None;
    }
    let route = frame.route.expect("RECEIPT is routed");
    Some(Receipt {
        peer: UserId(route.conv),
        reader: route.user,
        read: route.kind == receipt_kind::READ,
        up_to: route.conv_seq,
        at_s: frame.aux,
    })
}

fn refused(frame: &RawFrame) -> Refused {
    let reply = ErrorReply::decode(&frame.body).expect("an ErrorReply");
    Refused {
        code: reply.code,
        op: reply.op,
        server_us: reply.server_us,
    }
}

/// The code of a CLOSE, for connections that never logged in.
pub(crate) fn close_code(result: Result<CloseCode, RawError>) -> CloseCode {
    result.unwrap_or_else(|error| panic!("no CLOSE: {error}"))
}

/// An id for a message that was never sent.
pub(crate) fn new_msg_id() -> MsgId {
    msg_id_at(wall_us() / 1_000)
}

/// The same, dated otherwise.
pub(crate) fn msg_id_at(unix_ms: u64) -> MsgId {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut random = Random::new(wall_us() ^ NEXT.fetch_add(1 << 40, Ordering::Relaxed));
    let wide = u128::from(random.next()) << 64 | u128::from(random.next());
    MsgId::new_v7(unix_ms, wide)
}

pub(crate) fn wall_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("the clock is past 1970").as_micros() as u64
}
