//! A server's side of the protocol for tests: [`Peer`] reads and writes frames without any I/O,
//! [`server::Server`] is a small gateway in memory behind a real socket, with faults on demand.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

#[cfg(feature = "tls")]
pub mod front;
pub mod server;

use portico_wire::{
    CloseCode, ErrorCode, Flags, Op, RouteHeader, SeqHeader,
    encode::{
        Encoder, put_done, put_plain, put_pong, put_pong_spread, put_routed, put_sent, put_seq,
        put_synced,
    },
    frame::{ConvKind, next_frame},
    ids::{ConvSeq, DeviceId, MsgId, Seq, UserId},
    message::{Close, Drain, Envelope, ErrorReply, Welcome},
};

/// A frame that a client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub op: Op,
    pub flags: Flags,
    pub corr: u32,
    pub aux: u32,
    pub seq: SeqHeader,
    pub route: RouteHeader,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn is_retry(&self) -> bool {
        self.flags.contains(Flags::RETRY)
    }
}

/// One message as a server delivers it.
#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    pub seq: u64,
    pub conv_seq: u64,
    pub peer: u64,
    pub from: u64,
    pub device: u16,
    pub msg_id: u128,
}

impl Delivery {
    /// Entry `seq` from user 2.
    pub const fn new(seq: u64) -> Self {
        Self {
            seq,
            conv_seq: seq,
            peer: 2,
            from: 2,
            device: 1,
            msg_id: seq as u128 + 1_000,
        }
    }
}

/// Frames in, frames out.
#[derive(Debug, Default)]
pub struct Peer {
    pub input: Vec<u8>,
    pub out: Vec<u8>,
    pub encoder: Encoder,
}

impl Peer {
    /// Parses what a client wrote; a client's frames are never broken.
    pub fn read(&mut self, bytes: &[u8]) -> Vec<Seen> {
        self.input.extend_from_slice(bytes);
        let mut seen = Vec::new();
        let mut used = 0;
        while let Some(frame) = next_frame(&self.input[used..], 262_144).unwrap() {
            used += frame.bytes().len();
            let route = frame.route();
            seen.push(Seen {
                op: frame.known_op().unwrap(),
                flags: frame.flags(),
                corr: frame.corr(),
                aux: frame.aux(),
                seq: frame.seq_header(),
                route: route.unwrap_or_default(),
                body: frame.body().to_vec(),
            });
        }
        self.input.drain(..used);
        seen
    }

    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    pub fn welcome(&mut self, corr: u32, welcome: &Welcome<'_>) -> &mut Self {
        self.encoder.welcome(&mut self.out, corr, welcome);
        self
    }

    pub fn synced(&mut self, up_to: u64, replayed: u32) -> &mut Self {
        put_synced(&mut self.out, Seq(up_to), replayed);
        self
    }

    pub fn gap(&mut self, floor: u64) -> &mut Self {
        let header = SeqHeader { seq: floor, arg: 0 };
        put_seq(&mut self.out, Op::SyncGap, Flags::NONE, 0, header);
        self
    }

    pub fn deliver(&mut self, delivery: Delivery, text: &str) -> &mut Self {
        let body = envelope(text);
        self.deliver_raw(delivery, Flags::NONE, &body)
    }

    pub fn deliver_raw(&mut self, delivery: Delivery, flags: Flags, body: &[u8]) -> &mut Self {
        self.routed(Op::Deliver as u8, delivery, flags, body)
    }

    pub fn routed(&mut self, op: u8, delivery: Delivery, flags: Flags, body: &[u8]) -> &mut Self {
        let route = RouteHeader {
            seq: Seq(delivery.seq),
            msg_id: MsgId(delivery.msg_id),
            conv: delivery.peer,
            conv_seq: ConvSeq(delivery.conv_seq),
            user: UserId(delivery.from),
            dev: DeviceId(delivery.device),
            conv_kind: ConvKind::DIRECT,
            kind: 0,
            ttl_s: 0,
        };
        put_routed(&mut self.out, op, flags, 0, 0, &route, body);
        self
    }

    pub fn receipt(&mut self, peer: u64, user: u64, kind: u8, up_to: u64, at_s: u32) -> &mut Self {
        let route = RouteHeader {
            conv: peer,
            conv_kind: ConvKind::DIRECT,
            conv_seq: ConvSeq(up_to),
            user: UserId(user),
            kind,
            ..RouteHeader::default()
        };
        let op = Op::Receipt as u8;
        put_routed(&mut self.out, op, Flags::NONE, 0, at_s, &route, &[]);
        self
    }

    pub fn sent(&mut self, corr: u32, conv_seq: u64, duplicate: bool) -> &mut Self {
        put_sent(&mut self.out, corr, ConvSeq(conv_seq), duplicate);
        self
    }

    pub fn done(&mut self, corr: u32) -> &mut Self {
        put_done(&mut self.out, corr, 0);
        self
    }

    pub fn done_with(&mut self, corr: u32, count: u32) -> &mut Self {
        put_done(&mut self.out, corr, count);
        self
    }

    pub fn pong(&mut self, corr: u32) -> &mut Self {
        put_pong(&mut self.out, corr);
        self
    }

    pub fn pong_spread(&mut self, corr: u32, spread_ms: u32) -> &mut Self {
        put_pong_spread(&mut self.out, corr, spread_ms);
        self
    }

    pub fn plain(&mut self, op: Op, corr: u32) -> &mut Self {
        put_plain(&mut self.out, op, Flags::REPLY, corr, 0);
        self
    }

    pub fn error(&mut self, corr: u32, code: ErrorCode, retry_after_ms: u32) -> &mut Self {
        let error = ErrorReply {
            code,
            retry_after_ms,
            detail: "",
            op: 0,
            server_us: 0,
        };
        self.encoder.error(&mut self.out, corr, &error);
        self
    }

    pub fn close(&mut self, code: CloseCode, retry_after_ms: u32) -> &mut Self {
        let close = Close {
            retry_after_ms,
            ..Close::new(code, "as the test wants it")
        };
        self.encoder.close(&mut self.out, &close);
        self
    }

    pub fn drain(&mut self, spread_ms: u32, deadline_ms: u32, endpoints: &[&str]) -> &mut Self {
        let drain = Drain {
            spread_ms,
            deadline_ms,
            endpoints: endpoints.to_vec(),
        };
        self.encoder.drain(&mut self.out, &drain);
        self
    }
}

pub fn envelope(text: &str) -> Vec<u8> {
    let envelope = Envelope {
        body: text.as_bytes(),
        ..Envelope::default()
    };
    Encoder::new().envelope(&envelope).to_vec()
}

pub fn text(body: &[u8]) -> String {
    String::from_utf8(Envelope::decode(body).unwrap().body.to_vec()).unwrap()
}
