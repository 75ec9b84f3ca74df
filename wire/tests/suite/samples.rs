//! A frame of every operation, with the check that reads it back; the frames that must be refused;
//! and a whole login with one message, as docs/PROTOCOL.md shows it.

mod history;

use crate::tables::{self, OTHER, SEQ, USER};
use portico_wire::{
    CloseCode, ErrorCode, Flags, Frame, FrameError, Op, RouteHeader, SeqHeader,
    encode::{
        Encoder, put_ack, put_body, put_done, put_ping, put_plain, put_pong, put_routed, put_sent,
        put_seq, put_sync_gap, put_synced,
    },
    fb,
    frame::{ConvKind, msg_kind, receipt_kind},
    ids::{ConvSeq, DeviceId, MsgId, Seq, UserId},
    message::{ClientState, Close, Drain, Envelope, ErrorReply, Hello, ReceiptsGet, Welcome},
    verify::{Scope, root},
};

/// One frame and what reading it must give.
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) op: Op,
    pub(crate) bytes: Vec<u8>,
    /// Panics if the body does not read back as written; the headers are checked by the caller.
    pub(crate) check: fn(&Frame<'_>),
    pub(crate) flags: Flags,
    pub(crate) corr: u32,
    pub(crate) aux: u32,
}

/// A RouteHeader in which no byte is like its neighbour.
pub(crate) fn route() -> RouteHeader {
    RouteHeader {
        seq: Seq(SEQ),
        msg_id: MsgId::from_bytes(std::array::from_fn(|i| 0x80 + i as u8)),
        conv: OTHER,
        conv_seq: ConvSeq(SEQ + 5),
        user: UserId(USER),
        dev: DeviceId(0x0302),
        conv_kind: ConvKind::DIRECT,
        kind: msg_kind::UPDATE,
        ttl_s: 0x0d0c_0b0a,
    }
}

/// A SeqHeader likewise.
pub(crate) fn seq_header() -> SeqHeader {
    SeqHeader {
        seq: SEQ,
        arg: 0x0403_0201,
    }
}

/// A number no other operation's sample has.
fn corr_of(op: Op) -> u32 {
    0x0c0b_0a00 | u32::from(op as u8)
}

fn no_body(frame: &Frame<'_>) {
    assert_eq!(frame.body(), b"");
}

/// The sample of an operation whose body is a table of `tables`.
macro_rules! body {
    ($encoder:ident, $op:ident, $flags:expr, $module:ident, $Table:ident) => {{
        let body = $encoder.body(tables::$module::build).to_vec();
        with_body(Op::$op, $flags, &body, |frame| {
            let table = root::<fb::$Table<'_>>(frame.body(), Scope::Client);
            tables::$module::check(table.expect("the body verifies"));
        })
    }};
}

fn with_body(op: Op, flags: Flags, body: &[u8], check: fn(&Frame<'_>)) -> Sample {
    let (mut bytes, corr, aux) = (Vec::new(), corr_of(op), 0);
    let routed = flags.contains(Flags::ROUTED);
    if routed {
        put_routed(&mut bytes, op as u8, flags, corr, aux, &route(), body);
    } else {
        put_body(&mut bytes, op as u8, flags, corr, aux, body);
    }
    Sample {
        name: op.name().to_owned(),
        op,
        bytes,
        check,
        flags,
        corr,
        aux,
    }
}

fn plain(op: Op, flags: Flags, aux: u32) -> Sample {
    let (mut bytes, corr) = (Vec::new(), corr_of(op));
    put_plain(&mut bytes, op, flags, corr, aux);
    Sample {
        name: op.name().to_owned(),
        op,
        bytes,
        check: no_body,
        flags,
        corr,
        aux,
    }
}

fn seq(op: Op, flags: Flags) -> Sample {
    let (mut bytes, corr) = (Vec::new(), corr_of(op));
    put_seq(&mut bytes, op, flags, corr, seq_header());
    Sample {
        name: op.name().to_owned(),
        op,
        bytes,
        check: no_body,
        flags,
        corr,
        aux: 0,
    }
}

/// Every operation once, tables with all fields set; then the session operations with none set.
pub(crate) fn all() -> Vec<Sample> {
    const ASK: Flags = Flags::NONE;
    const REPLY: Flags = Flags::REPLY;
    const ROUTED: Flags = Flags::ROUTED;
    let part = Flags::REPLY | Flags::MORE;
    let e = &mut Encoder::new();
    let receipt_aux = 0x6a55_4433;
    let mut receipt = with_body(Op::Receipt, ROUTED, b"", no_body);
    receipt.bytes.clear();
    receipt.aux = receipt_aux;
    put_routed(
        &mut receipt.bytes,
        Op::Receipt as u8,
        ROUTED,
        receipt.corr,
        receipt_aux,
        &route(),
        b"",
    );
    let mut samples = vec![
        body!(e, Hello, ASK, hello, Hello),
        body!(e, Welcome, REPLY, welcome, Welcome),
        plain(Op::Ping, ASK, 0x0000_012c),
        plain(Op::Pong, REPLY, 0x0000_ea60),
        seq(Op::Ack, ASK),
        plain(Op::Done, REPLY, 0x0403_0201),
        body!(e, Error, REPLY, error_reply, ErrorReply),
        body!(e, Close, ASK, close, Close),
        body!(e, Drain, ASK, drain, Drain),
        body!(e, Reauth, ASK, reauth, Reauth),
        seq(Op::SyncGap, ASK),
        seq(Op::Synced, ASK),
        plain(Op::ClientState, ASK, 2),
        body!(e, RegStart, ASK, reg_start, RegStart),
        body!(e, RegConfirm, ASK, reg_confirm, RegConfirm),
        body!(e, Tokens, REPLY, tokens, Tokens),
        body!(e, TokenRefresh, ASK, token_refresh, TokenRefresh),
        body!(
            e,
            Send,
            ROUTED | Flags::SILENT | Flags::RETRY,
            envelope,
            Envelope
        ),
        seq(Op::Sent, REPLY),
        body!(e, Deliver, ROUTED | Flags::EPHEMERAL, envelope, Envelope),
        receipt,
        with_body(Op::Signal, ROUTED | Flags::EPHEMERAL, b"", no_body),
        body!(e, History, ASK, history_get, HistoryGet),
        body!(e, HistoryEnd, REPLY, history_end, HistoryEnd),
        body!(e, DevicesStale, REPLY, devices_stale, DevicesStale),
        body!(e, ReceiptsGet, ASK, receipts_get, ReceiptsGet),
        body!(e, SendMulti, ROUTED, message, Message),
        body!(e, Revoke, ROUTED, revoke, Revoke),
        body!(
            e,
            ConversationsGet,
            ASK,
            conversations_get,
            ConversationsGet
        ),
        body!(e, Conversation, part, conversation, Conversation),
        body!(e, PresenceSub, ASK, presence_sub, PresenceSub),
        body!(e, Presence, REPLY, presence, Presence),
        body!(e, GroupCreate, ROUTED, group_create, GroupCreate),
        body!(e, GroupEdit, ROUTED, group_edit, GroupEdit),
        body!(e, GroupGet, ASK, group_get, GroupGet),
        body!(e, Group, REPLY, group, Group),
        body!(e, GroupEvent, ROUTED, group_event, GroupEvent),
        body!(e, KeysUpload, ASK, keys_upload, KeysUpload),
        body!(e, KeysFetch, ASK, keys_fetch, KeysFetch),
        body!(e, KeyBundles, part, key_bundles, KeyBundles),
        body!(e, KeysLow, ASK, keys_low, KeysLow),
        body!(e, DevicesGet, ASK, devices_get, DevicesGet),
        body!(e, Devices, part, devices, Devices),
        body!(e, DeviceLink, ASK, device_link, DeviceLink),
        body!(e, DeviceRevoke, ASK, device_revoke, DeviceRevoke),
        body!(e, DevicesChanged, ROUTED, devices_changed, DevicesChanged),
        body!(e, DeviceRename, ASK, device_rename, DeviceRename),
        body!(e, IdentityLogGet, ASK, identity_log_get, IdentityLogGet),
        body!(e, IdentityLog, REPLY, identity_log, IdentityLog),
        body!(e, UploadOpen, ASK, upload_open, UploadOpen),
        body!(e, UploadTicket, REPLY, upload_ticket, UploadTicket),
        body!(e, UploadDone, ASK, upload_done, UploadDone),
        body!(e, DownloadOpen, ASK, download_open, DownloadOpen),
        body!(e, DownloadTicket, REPLY, download_ticket, DownloadTicket),
        body!(e, MediaReady, ASK, media_ready, MediaReady),
        body!(e, PushSet, ASK, push_set, PushSet),
        body!(e, NotifyPrefs, ASK, notify_prefs, NotifyPrefs),
        plain(Op::NotifyPrefsGet, ASK, 0),
        body!(e, ContactsEdit, ASK, contacts_edit, ContactsEdit),
        body!(e, ContactsGet, ASK, contacts_get, ContactsGet),
        body!(e, Contacts, REPLY, contacts, Contacts),
        body!(e, PrivacySet, ASK, privacy, Privacy),
        plain(Op::PrivacyGet, ASK, 0),
        body!(e, Privacy, REPLY, privacy, Privacy),
        body!(e, ProfileSet, ASK, profile, Profile),
        body!(e, ProfilesGet, ASK, profiles_get, ProfilesGet),
        body!(e, Profile, part, profile, Profile),
        body!(e, UsersLookup, ASK, users_lookup, UsersLookup),
        body!(e, Users, REPLY, users, Users),
        body!(e, Call, ROUTED, call, Call),
        body!(e, TurnGet, ASK, turn_get, TurnGet),
        body!(e, Turn, REPLY, turn, Turn),
    ];
    samples.extend(minimal());
    samples.extend(history::samples());
    samples
}

/// The session operations with every optional field absent, read as the values of the crate.
fn minimal() -> Vec<Sample> {
    let e = &mut Encoder::new();
    let mut sample = |op: Op, write: &dyn Fn(&mut Encoder, &mut Vec<u8>), check| {
        let mut bytes = Vec::new();
        write(e, &mut bytes);
        Sample {
            name: format!("{}.minimal", op.name()),
            op,
            bytes,
            check,
            flags: Flags::NONE,
            corr: 0,
            aux: 0,
        }
    };
    vec![
        sample(
            Op::Hello,
            &|e, out| e.hello(out, 0, &Hello::default()),
            |frame| assert_eq!(Hello::decode(frame.body()), Ok(Hello::default())),
        ),
        sample(
            Op::Welcome,
            &|e, out| e.welcome(out, 0, &Welcome::default()),
            |frame| assert_eq!(Welcome::decode(frame.body()), Ok(Welcome::default())),
        ),
        sample(
            Op::Error,
            &|e, out| e.error(out, 0, &minimal_error()),
            |frame| assert_eq!(ErrorReply::decode(frame.body()), Ok(minimal_error())),
        ),
        sample(
            Op::Close,
            &|e, out| e.close(out, &Close::new(CloseCode::NORMAL, "")),
            |frame| {
                let close = Close::new(CloseCode::NORMAL, "");
                assert_eq!(Close::decode(frame.body()), Ok(close));
            },
        ),
        sample(
            Op::Drain,
            &|e, out| e.drain(out, &minimal_drain()),
            |frame| assert_eq!(Drain::decode(frame.body()), Ok(minimal_drain())),
        ),
        sample(
            Op::ReceiptsGet,
            &|e, out| e.receipts_get(out, 0, &minimal_receipts_get()),
            |frame| {
                let decoded = ReceiptsGet::decode(frame.body());
                assert_eq!(decoded, Ok(minimal_receipts_get()));
            },
        ),
    ]
}

fn minimal_error() -> ErrorReply<'static> {
    ErrorReply {
        code: ErrorCode::NONE,
        retry_after_ms: 0,
        detail: "",
        op: 0,
        server_us: 0,
    }
}

fn minimal_drain() -> Drain<'static> {
    Drain {
        spread_ms: 15_000,
        deadline_ms: 30_000,
        endpoints: Vec::new(),
    }
}

fn minimal_receipts_get() -> ReceiptsGet {
    ReceiptsGet {
        convs: Vec::new(),
        members: false,
    }
}

/// Bytes that are not a frame, with the limit they are judged by and the fault.
pub(crate) struct BadFrame {
    pub(crate) name: &'static str,
    pub(crate) max_bytes: usize,
    pub(crate) error: FrameError,
    pub(crate) bytes: Vec<u8>,
}

/// A base header as raw bytes, so that it can be wrong.
fn raw(len: u32, op: Op, flags: Flags, hdr: u8, rest: usize) -> Vec<u8> {
    let mut bytes = len.to_le_bytes().to_vec();
    bytes.extend_from_slice(&[op as u8, flags.0, hdr, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.resize(16 + rest, 0);
    bytes
}

pub(crate) fn bad_frames() -> Vec<BadFrame> {
    let bad = |name, max_bytes, error, bytes| BadFrame {
        name,
        max_bytes,
        error,
        bytes,
    };
    let (short, long, header) = (
        FrameError::TooShort,
        FrameError::TooLong,
        FrameError::BadHeader,
    );
    let routed = Flags::ROUTED;
    vec![
        bad("length_zero", 4_096, short, vec![0; 4]),
        bad("length_eleven", 4_096, short, vec![11, 0, 0, 0]),
        bad(
            "length_one_over",
            4_096,
            long,
            4_093_u32.to_le_bytes().to_vec(),
        ),
        bad("length_greatest", 4_096, long, vec![0xff; 4]),
        bad(
            "http_request",
            4_096,
            long,
            b"GET /v1/ws HTTP/1.1\r\n".to_vec(),
        ),
        bad(
            "tls_client_hello",
            4_096,
            long,
            vec![
                0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03,
            ],
        ),
        bad(
            "header_zero",
            4_096,
            header,
            raw(12, Op::Ping, Flags::NONE, 0, 0),
        ),
        bad(
            "header_below_base",
            4_096,
            header,
            raw(12, Op::Ping, Flags::NONE, 1, 0),
        ),
        bad(
            "header_past_the_end",
            4_096,
            header,
            raw(12, Op::Ping, Flags::NONE, 3, 0),
        ),
        bad(
            "header_far_past_the_end",
            4_096,
            header,
            raw(12, Op::Ping, Flags::NONE, 255, 0),
        ),
        bad(
            "ack_without_its_header",
            4_096,
            header,
            raw(12, Op::Ack, Flags::NONE, 2, 0),
        ),
        bad(
            "ack_header_too_short",
            4_096,
            header,
            raw(28, Op::Ack, Flags::NONE, 3, 16),
        ),
        bad(
            "ack_with_a_route",
            4_096,
            header,
            raw(68, Op::Ack, routed, 9, 56),
        ),
        bad(
            "send_without_its_flag",
            4_096,
            header,
            raw(68, Op::Send, Flags::NONE, 9, 56),
        ),
        bad(
            "send_header_too_short",
            4_096,
            header,
            raw(68, Op::Send, routed, 8, 56),
        ),
        bad(
            "send_frame_too_short",
            4_096,
            header,
            raw(60, Op::Send, routed, 9, 48),
        ),
        bad(
            "routed_ping_too_short",
            4_096,
            header,
            raw(12, Op::Ping, routed, 2, 0),
        ),
    ]
}

/// The time of the worked example: 2026-11-25 12:00:00 UTC.
const EXAMPLE_US: u64 = 1_795_608_000_000_000;
/// The words Alice sends, as an Envelope of cipher PLAIN.
pub(crate) const EXAMPLE_TEXT: &str = "hi bob";

/// A whole login and one message from Alice (user 1) to Bob (user 2), in order. The name says whose
/// connection, which way, and what.
pub(crate) fn example() -> Vec<(&'static str, Vec<u8>)> {
    let mut encoder = Encoder::new();
    let mut frames = Vec::new();
    let mut frame = |name, write: &dyn Fn(&mut Encoder, &mut Vec<u8>)| {
        let mut bytes = Vec::new();
        write(&mut encoder, &mut bytes);
        frames.push((name, bytes));
    };
    let (alice, bob) = (UserId(1), UserId(2));
    let login_us = EXAMPLE_US;
    let accepted_us = EXAMPLE_US + 2_000_000;
    let msg_id = MsgId::new_v7(accepted_us / 1_000, 0x0123_4567_89ab_cdef_0123);
    let envelope = Envelope {
        cipher: 0,
        body: EXAMPLE_TEXT.as_bytes(),
        packing: 0,
        key_id: &[],
    };
    let envelope = Encoder::new().envelope(&envelope).to_vec();
    let sent = RouteHeader {
        msg_id,
        conv: bob.0,
        conv_kind: ConvKind::DIRECT,
        kind: msg_kind::CONTENT,
        ..RouteHeader::default()
    };
    let delivered = RouteHeader {
        seq: Seq(accepted_us + 1),
        conv: alice.0,
        conv_seq: ConvSeq(accepted_us),
        user: alice,
        dev: DeviceId(1),
        ..sent
    };
    let receipt = |conv: UserId, kind, user| RouteHeader {
        conv: conv.0,
        conv_seq: ConvSeq(accepted_us),
        user,
        conv_kind: ConvKind::DIRECT,
        kind,
        ..RouteHeader::default()
    };
    let put_receipt = |out: &mut Vec<u8>, corr, aux, route: &RouteHeader| {
        put_routed(out, Op::Receipt as u8, Flags::NONE, corr, aux, route, b"");
    };

    frame("alice > HELLO", &|e, out| {
        let hello = Hello {
            token: Some("header.claims.signature"),
            client: "example/1.0",
            ..Hello::default()
        };
        e.hello(out, 1, &hello);
    });
    frame("alice < WELCOME", &|e, out| {
        let welcome = Welcome {
            user: alice,
            device: DeviceId(1),
            floor_seq: Seq(EXAMPLE_US - 365 * 86_400 * 1_000_000),
            server_us: login_us,
            node: "n1",
            ..Welcome::default()
        };
        e.welcome(out, 1, &welcome);
    });
    frame("alice < SYNCED", &|_, out| put_synced(out, Seq(0), 0));
    frame("alice > PING", &|_, out| put_ping(out, 2, 60));
    frame("alice < PONG", &|_, out| put_pong(out, 2));
    frame("alice > SEND", &|_, out| {
        put_routed(out, Op::Send as u8, Flags::NONE, 3, 0, &sent, &envelope);
    });
    frame("alice < SENT", &|_, out| {
        put_sent(out, 3, ConvSeq(accepted_us), false)
    });
    frame("bob < DELIVER", &|_, out| {
        put_routed(
            out,
            Op::Deliver as u8,
            Flags::NONE,
            0,
            0,
            &delivered,
            &envelope,
        );
    });
    frame("bob > ACK", &|_, out| put_ack(out, delivered.seq, 256));
    let at_s = (accepted_us / 1_000_000 + 1) as u32;
    frame("alice < RECEIPT delivered", &|_, out| {
        put_receipt(out, 0, at_s, &receipt(bob, receipt_kind::DELIVERED, bob));
    });
    frame("bob > RECEIPT read", &|_, out| {
        put_receipt(out, 5, 0, &receipt(alice, receipt_kind::READ, UserId(0)));
    });
    frame("bob < DONE", &|_, out| put_done(out, 5, 0));
    frame("alice < RECEIPT read", &|_, out| {
        put_receipt(out, 0, at_s + 4, &receipt(bob, receipt_kind::READ, bob));
    });
    frame("alice > SEND again", &|_, out| {
        put_routed(out, Op::Send as u8, Flags::RETRY, 4, 0, &sent, &envelope);
    });
    frame("alice < SENT duplicate", &|_, out| {
        put_sent(out, 4, ConvSeq(accepted_us), true)
    });
    frame("alice > CLIENT_STATE", &|_, out| {
        let state = u32::from(ClientState::Background.to_u8());
        put_plain(out, Op::ClientState, Flags::NONE, 0, state);
    });
    frame("bob < SYNC_GAP", &|_, out| {
        put_sync_gap(out, Seq(EXAMPLE_US))
    });
    frame("alice < ERROR", &|e, out| {
        let error = ErrorReply {
            code: ErrorCode::UNSUPPORTED,
            detail: "not served",
            op: Op::History as u8,
            ..minimal_error()
        };
        e.error(out, 6, &error);
    });
    frame("alice > CLOSE", &|e, out| {
        e.close(out, &Close::new(CloseCode::NORMAL, ""))
    });
    frames
}
