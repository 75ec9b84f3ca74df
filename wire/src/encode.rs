//! Writers of frames. All append to a buffer that the caller owns and reuses; header-only frames
//! need no builder.

mod group;
mod history;
pub mod people;

use crate::{
    frame::{BASE_END, ConvKind, Flags, ROUTE_END, RouteHeader, SEQ_END, SeqHeader},
    generated::fb,
    ids::{ConvSeq, Seq},
    limits::{DETAIL_BYTES_MAX, ENDPOINT_BYTES_MAX, ENDPOINTS_MAX},
    message::{Close, Drain, Envelope, ErrorReply, Hello, Reauth, ReceiptsGet, Welcome},
    op::Op,
};
use flatbuffers::{FlatBufferBuilder, WIPOffset};
use std::fmt;

/// The flags of a frame that answers request `corr`: REPLY, unless there was none.
#[must_use]
pub const fn reply_flags(corr: u32) -> Flags {
    if corr == 0 { Flags::NONE } else { Flags::REPLY }
}

fn put_base(out: &mut Vec<u8>, op: u8, flags: Flags, hdr: usize, corr: u32, aux: u32, body: usize) {
    // Bodies are bounded by the limits far below 4 GiB.
    let len = (hdr + body - 4) as u32;
    let mut base = [0; BASE_END];
    base[0..4].copy_from_slice(&len.to_le_bytes());
    base[4] = op;
    base[5] = flags.0;
    base[6] = (hdr / 8) as u8;
    base[8..12].copy_from_slice(&corr.to_le_bytes());
    base[12..16].copy_from_slice(&aux.to_le_bytes());
    out.extend_from_slice(&base);
}

/// A frame with a base header only.
pub fn put_plain(out: &mut Vec<u8>, op: Op, flags: Flags, corr: u32, aux: u32) {
    put_base(out, op as u8, flags, BASE_END, corr, aux, 0);
}

/// A frame with a base header and a finished body, for any operation number.
pub fn put_body(out: &mut Vec<u8>, op: u8, flags: Flags, corr: u32, aux: u32, body: &[u8]) {
    put_base(out, op, flags, BASE_END, corr, aux, body.len());
    out.extend_from_slice(body);
}

/// A frame with a SeqHeader.
pub fn put_seq(out: &mut Vec<u8>, op: Op, flags: Flags, corr: u32, header: SeqHeader) {
    put_base(out, op as u8, flags, SEQ_END, corr, 0, 0);
    out.extend_from_slice(&header.seq.to_le_bytes());
    out.extend_from_slice(&header.arg.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
}

/// A routed frame; ROUTED is added to `flags`.
pub fn put_routed(
    out: &mut Vec<u8>,
    op: u8,
    flags: Flags,
    corr: u32,
    aux: u32,
    route: &RouteHeader,
    body: &[u8],
) {
    let flags = flags | Flags::ROUTED;
    put_base(out, op, flags, ROUTE_END, corr, aux, body.len());
    let mut header = [0; ROUTE_END - BASE_END];
    header[0..8].copy_from_slice(&route.seq.0.to_le_bytes());
    header[8..16].copy_from_slice(&route.msg_id.hi().to_le_bytes());
    header[16..24].copy_from_slice(&route.msg_id.lo().to_le_bytes());
    header[24..32].copy_from_slice(&route.conv.to_le_bytes());
    header[32..40].copy_from_slice(&route.conv_seq.0.to_le_bytes());
    header[40..48].copy_from_slice(&route.user.0.to_le_bytes());
    header[48..50].copy_from_slice(&route.dev.0.to_le_bytes());
    header[50] = route.conv_kind.0;
    header[51] = route.kind;
    header[52..56].copy_from_slice(&route.ttl_s.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(body);
}

/// PING: `next_s` is the promised interval to the next one.
pub fn put_ping(out: &mut Vec<u8>, corr: u32, next_s: u32) {
    put_plain(out, Op::Ping, Flags::NONE, corr, next_s);
}

/// PONG without news of the spread: 0 is its value on a gateway with few sessions.
pub fn put_pong(out: &mut Vec<u8>, corr: u32) {
    put_pong_spread(out, corr, 0);
}

/// PONG: `reconnect_spread_ms` replaces the value of WELCOME.
pub fn put_pong_spread(out: &mut Vec<u8>, corr: u32, reconnect_spread_ms: u32) {
    put_plain(out, Op::Pong, reply_flags(corr), corr, reconnect_spread_ms);
}

/// DONE: success without a value, or with a count.
pub fn put_done(out: &mut Vec<u8>, corr: u32, count: u32) {
    put_plain(out, Op::Done, reply_flags(corr), corr, count);
}

/// ACK: everything up to `up_to` is stored; `receive_max` frames may be unacknowledged from now on.
pub fn put_ack(out: &mut Vec<u8>, up_to: Seq, receive_max: u32) {
    let header = SeqHeader {
        seq: up_to.0,
        arg: receive_max,
    };
    put_seq(out, Op::Ack, Flags::NONE, 0, header);
}

/// SENT: the message is durable at `conv_seq`.
pub fn put_sent(out: &mut Vec<u8>, corr: u32, conv_seq: ConvSeq, duplicate: bool) {
    let header = SeqHeader {
        seq: conv_seq.0,
        arg: u32::from(duplicate),
    };
    put_seq(out, Op::Sent, reply_flags(corr), corr, header);
}

/// SYNCED: the device has everything up to `up_to`; `replayed` entries were sent.
pub fn put_synced(out: &mut Vec<u8>, up_to: Seq, replayed: u32) {
    let header = SeqHeader {
        seq: up_to.0,
        arg: replayed,
    };
    put_seq(out, Op::Synced, Flags::NONE, 0, header);
}

/// SYNC_GAP: what was older than `floor` has been dropped.
pub fn put_sync_gap(out: &mut Vec<u8>, floor: Seq) {
    let header = SeqHeader {
        seq: floor.0,
        arg: 0,
    };
    put_seq(out, Op::SyncGap, Flags::NONE, 0, header);
}

/// Writes frames that have a flatbuffer body. One per shard or thread: the builder is reused.
pub struct Encoder {
    builder: FlatBufferBuilder<'static>,
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    #[must_use]
    pub fn new() -> Self {
        Self {
            builder: FlatBufferBuilder::with_capacity(1024),
        }
    }

    /// Builds any body; the slice lives until the next call.
    pub fn body<T>(
        &mut self,
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) -> &[u8] {
        self.builder.reset();
        let root = build(&mut self.builder);
        self.builder.finish_minimal(root);
        self.builder.finished_data()
    }

    pub fn hello(&mut self, out: &mut Vec<u8>, corr: u32, hello: &Hello<'_>) {
        let body = self.body(|b| {
            let token = hello.token.map(|token| b.create_string(token));
            let resume_token = hello.resume_token.map(|token| b.create_vector(token));
            let client = b.create_string(hello.client);
            fb::Hello::create(
                b,
                &fb::HelloArgs {
                    min_version: hello.min_version,
                    max_version: hello.max_version,
                    token,
                    device: hello.device.0,
                    resume_token,
                    last_seq: hello.last_seq.0,
                    receive_max: hello.receive_max,
                    features: fb::Feature::from_bits_retain(hello.features),
                    state: fb::ClientState(hello.state.to_u8()),
                    client: Some(client),
                },
            )
        });
        put_body(out, Op::Hello as u8, Flags::NONE, corr, 0, body);
    }

    pub fn welcome(&mut self, out: &mut Vec<u8>, corr: u32, welcome: &Welcome<'_>) {
        let body = self.body(|b| {
            let some = !welcome.resume_token.is_empty();
            let resume_token = some.then(|| b.create_vector(welcome.resume_token));
            let node = b.create_string(welcome.node);
            fb::Welcome::create(
                b,
                &fb::WelcomeArgs {
                    version: welcome.version,
                    user: welcome.user.0,
                    device: welcome.device.0,
                    resumed: welcome.resumed,
                    resume_token,
                    resume_ttl_s: welcome.resume_ttl_s,
                    auth_ttl_s: welcome.auth_ttl_s,
                    head_seq: welcome.head_seq.0,
                    floor_seq: welcome.floor_seq.0,
                    receive_max: welcome.receive_max,
                    max_frame: welcome.max_frame,
                    heartbeat_s: welcome.heartbeat_s,
                    heartbeat_min_s: welcome.heartbeat_min_s,
                    heartbeat_max_s: welcome.heartbeat_max_s,
                    features: fb::Feature::from_bits_retain(welcome.features),
                    server_us: welcome.server_us,
                    node: Some(node),
                    reconnect_spread_ms: welcome.reconnect_spread_ms,
                },
            )
        });
        put_body(out, Op::Welcome as u8, reply_flags(corr), corr, 0, body);
    }

    pub fn error(&mut self, out: &mut Vec<u8>, corr: u32, error: &ErrorReply<'_>) {
        let body = self.body(|b| {
            let detail = text(b, error.detail);
            fb::ErrorReply::create(
                b,
                &fb::ErrorReplyArgs {
                    code: fb::ErrorCode(error.code.0),
                    retry_after_ms: error.retry_after_ms,
                    detail,
                    op: fb::Op(error.op),
                    server_us: error.server_us,
                },
            )
        });
        put_body(out, Op::Error as u8, reply_flags(corr), corr, 0, body);
    }

    pub fn close(&mut self, out: &mut Vec<u8>, close: &Close<'_>) {
        let body = self.body(|b| {
            let detail = text(b, close.detail);
            let endpoint = is_endpoint(close.endpoint).then(|| b.create_string(close.endpoint));
            fb::Close::create(
                b,
                &fb::CloseArgs {
                    code: fb::CloseCode(close.code.0),
                    retry_after_ms: close.retry_after_ms,
                    detail,
                    endpoint,
                },
            )
        });
        put_body(out, Op::Close as u8, Flags::NONE, 0, 0, body);
    }

    pub fn drain(&mut self, out: &mut Vec<u8>, drain: &Drain<'_>) {
        let body = self.body(|b| {
            let endpoints: Vec<_> = drain
                .endpoints
                .iter()
                .filter(|endpoint| is_endpoint(endpoint))
                .take(ENDPOINTS_MAX)
                .map(|endpoint| b.create_string(endpoint))
                .collect();
            let some = !endpoints.is_empty();
            let endpoints = some.then(|| b.create_vector(&endpoints));
            fb::Drain::create(
                b,
                &fb::DrainArgs {
                    spread_ms: drain.spread_ms,
                    deadline_ms: drain.deadline_ms,
                    endpoints,
                },
            )
        });
        put_body(out, Op::Drain as u8, Flags::NONE, 0, 0, body);
    }

    /// The bytes of an Envelope: the body of a SEND.
    pub fn envelope(&mut self, envelope: &Envelope<'_>) -> &[u8] {
        self.body(|b| {
            let body = b.create_vector(envelope.body);
            let some = !envelope.key_id.is_empty();
            let key_id = some.then(|| b.create_vector(envelope.key_id));
            fb::Envelope::create(
                b,
                &fb::EnvelopeArgs {
                    cipher: fb::CipherType(envelope.cipher),
                    body: Some(body),
                    packing: fb::Packing(envelope.packing),
                    key_id,
                },
            )
        })
    }

    pub fn reauth(&mut self, out: &mut Vec<u8>, corr: u32, reauth: &Reauth<'_>) {
        let body = self.body(|b| {
            let token = b.create_string(reauth.token);
            fb::Reauth::create(b, &fb::ReauthArgs { token: Some(token) })
        });
        put_body(out, Op::Reauth as u8, Flags::NONE, corr, 0, body);
    }

    pub fn receipts_get(&mut self, out: &mut Vec<u8>, corr: u32, get: &ReceiptsGet) {
        let body = self.body(|b| {
            let convs: Vec<_> = get
                .convs
                .iter()
                .map(|&(ConvKind(kind), conv)| fb::ConvRef::new(conv, kind, 0, 0, 0))
                .collect();
            let convs = b.create_vector(&convs);
            fb::ReceiptsGet::create(
                b,
                &fb::ReceiptsGetArgs {
                    convs: Some(convs),
                    members: get.members,
                },
            )
        });
        put_body(out, Op::ReceiptsGet as u8, Flags::NONE, corr, 0, body);
    }
}

/// A shortened address would send clients elsewhere, so one that is too long is left out instead.
fn is_endpoint(text: &str) -> bool {
    (1..=ENDPOINT_BYTES_MAX).contains(&text.len())
}

/// Details: absent when empty, cut at the limit.
fn text<'b>(builder: &mut FlatBufferBuilder<'b>, text: &str) -> Option<WIPOffset<&'b str>> {
    if text.is_empty() {
        return None;
    }
    let mut end = text.len().min(DETAIL_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Some(builder.create_string(&text[..end]))
}
