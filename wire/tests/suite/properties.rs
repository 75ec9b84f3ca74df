//! What must hold for all bytes and all values: any chunking gives the same frames, what is written
//! reads back, and nothing makes the reader panic.

use crate::{
    fuzz_targets,
    samples::{self, Sample},
};
use portico_wire::{
    CloseCode, ErrorCode, Flags, FrameError, Op, RouteHeader, SeqHeader,
    encode::{Encoder, put_body, put_plain, put_routed, put_seq},
    frame::{BASE_END, ConvKind, ROUTE_END, SEQ_END},
    ids::{ConvSeq, DeviceId, MsgId, Seq, UserId},
    limits::{
        CLIENT_NAME_BYTES_MAX, DETAIL_BYTES_MAX, FRAME_BYTES_BEFORE_WELCOME_MAX,
        FRAME_BYTES_DEFAULT_MAX, KEY_ID_BYTES_MAX, RESUME_TOKEN_BYTES_MAX, TOKEN_BYTES_MAX,
    },
    message::{ClientState, Close, Drain, Envelope, ErrorReply, Hello, ReceiptsGet, Welcome},
    next_frame,
    op::Header,
};
use proptest::{collection::vec, prelude::*, sample::select};

/// One frame of any shape that the rules allow, known operation or not.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let parts = (
        any::<u8>(),
        any::<u8>(),
        any::<u32>(),
        any::<u32>(),
        0..4_u8,
        vec(any::<u8>(), 0..200),
    );
    parts.prop_map(|(op, flags, corr, aux, growth, body)| {
        let header = Op::from_u8(op).map_or(Header::Base, Op::header);
        let flags = match header {
            Header::Route => flags | Flags::ROUTED.0,
            Header::Seq => flags & !Flags::ROUTED.0,
            Header::Base => flags,
        };
        let routed = flags & Flags::ROUTED.0 != 0;
        let words = if routed { 9 } else { header.words() };
        // Headers may be longer than this version knows (F2).
        let words = words + growth;
        let header_bytes = usize::from(words) * 8;
        let mut bytes = ((header_bytes + body.len() - 4) as u32)
            .to_le_bytes()
            .to_vec();
        bytes.extend_from_slice(&[op, flags, words, 0]);
        bytes.extend_from_slice(&corr.to_le_bytes());
        bytes.extend_from_slice(&aux.to_le_bytes());
        bytes.extend((BASE_END..header_bytes).map(|at| at as u8));
        bytes.extend_from_slice(&body);
        bytes
    })
}

/// Reads a stream the way a connection does: chunks arrive, whole frames leave the buffer.
fn read_in_chunks(stream: &[u8], cuts: &[usize], max: usize) -> (Vec<Vec<u8>>, Option<FrameError>) {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
    cuts.push(stream.len());
    cuts.sort_unstable();
    let (mut frames, mut buffer, mut arrived) = (Vec::new(), Vec::new(), 0);
    for cut in cuts {
        buffer.extend_from_slice(&stream[arrived..cut]);
        arrived = cut;
        loop {
            match next_frame(&buffer, max) {
                Ok(Some(frame)) => {
                    let bytes = frame.bytes().to_vec();
                    buffer.drain(..bytes.len());
                    frames.push(bytes);
                }
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

fn text(max: usize) -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..=max / 4).prop_map(|chars| chars.into_iter().collect())
}

fn any_route() -> impl Strategy<Value = RouteHeader> {
    let numbers = (
        any::<u64>(),
        any::<u128>(),
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
    );
    let small = (any::<u16>(), any::<u8>(), any::<u8>(), any::<u32>());
    (numbers, small).prop_map(|((seq, msg_id, conv, conv_seq, user), small)| RouteHeader {
        seq: Seq(seq),
        msg_id: MsgId(msg_id),
        conv,
        conv_seq: ConvSeq(conv_seq),
        user: UserId(user),
        dev: DeviceId(small.0),
        conv_kind: ConvKind(small.1),
        kind: small.2,
        ttl_s: small.3,
    })
}

fn ops(header: Header) -> impl Strategy<Value = Op> {
    let ops: Vec<Op> = Op::ALL
        .iter()
        .copied()
        .filter(|op| op.header() == header)
        .collect();
    select(ops)
}

/// The frame that `out` holds, alone.
macro_rules! only_frame {
    ($out:expr) => {{
        let frame = next_frame(&$out, usize::MAX)
            .expect("valid")
            .expect("whole");
        prop_assert_eq!(frame.bytes().len(), $out.len());
        frame
    }};
}

proptest! {
    #[test]
    fn any_chunking_gives_the_same_frames(
        frames in vec(any_frame(), 0..8),
        cuts in vec(any::<usize>(), 0..24),
    ) {
        let stream = frames.concat();
        let read = read_in_chunks(&stream, &cuts, FRAME_BYTES_DEFAULT_MAX);
        prop_assert_eq!(read, (frames, None));
    }

    #[test]
    fn any_chunking_gives_the_same_verdict_on_damaged_streams(
        frames in vec(any_frame(), 1..6),
        cuts in vec(any::<usize>(), 0..24),
        damage in vec((any::<usize>(), any::<u8>()), 0..4),
    ) {
        let mut stream = frames.concat();
        for (at, byte) in damage {
            let at = at % stream.len();
            stream[at] = byte;
        }
        for max in [FRAME_BYTES_BEFORE_WELCOME_MAX, 100] {
            let whole = read_in_chunks(&stream, &[], max);
            prop_assert_eq!(read_in_chunks(&stream, &cuts, max), whole);
        }
    }

    #[test]
    fn the_limit_is_exact_and_judged_from_four_bytes(frame in any_frame()) {
        prop_assert!(matches!(next_frame(&frame, frame.len()), Ok(Some(_))));
        prop_assert_eq!(next_frame(&frame[..4], frame.len()), Ok(None));
        let one_less = next_frame(&frame[..4], frame.len() - 1);
        prop_assert_eq!(one_less, Err(FrameError::TooLong));
    }

    #[test]
    fn routed_frames_read_back(
        op in ops(Header::Route),
        route in any_route(),
        corr: u32,
        aux: u32,
        flags: u8,
        body in vec(any::<u8>(), 0..300),
    ) {
        let mut out = Vec::new();
        put_routed(&mut out, op as u8, Flags(flags), corr, aux, &route, &body);
        let frame = only_frame!(out);
        prop_assert_eq!(frame.known_op(), Some(op));
        prop_assert_eq!(frame.flags(), Flags(flags) | Flags::ROUTED);
        prop_assert_eq!((frame.corr(), frame.aux()), (corr, aux));
        prop_assert_eq!(frame.route(), Some(route));
        prop_assert_eq!(frame.body(), &body[..]);
        prop_assert_eq!(out.len(), ROUTE_END + body.len());
    }

    #[test]
    fn sequence_frames_read_back(op in ops(Header::Seq), seq: u64, arg: u32, corr: u32) {
        let mut out = Vec::new();
        let header = SeqHeader { seq, arg };
        put_seq(&mut out, op, Flags::NONE, corr, header);
        let frame = only_frame!(out);
        prop_assert_eq!(frame.known_op(), Some(op));
        prop_assert_eq!((frame.corr(), frame.seq_header()), (corr, header));
        prop_assert_eq!(frame.route(), None);
        prop_assert_eq!(out.len(), SEQ_END);
    }

    #[test]
    fn base_frames_read_back(
        op in ops(Header::Base),
        corr: u32,
        aux: u32,
        body in vec(any::<u8>(), 0..300),
    ) {
        let (mut out, mut without) = (Vec::new(), Vec::new());
        put_body(&mut out, op as u8, Flags::MORE, corr, aux, &body);
        let frame = only_frame!(out);
        prop_assert_eq!(frame.known_op(), Some(op));
        prop_assert_eq!((frame.corr(), frame.aux()), (corr, aux));
        prop_assert_eq!((frame.flags(), frame.body()), (Flags::MORE, body.as_slice()));
        put_plain(&mut without, op, Flags::NONE, corr, aux);
        prop_assert_eq!(only_frame!(without).body(), b"");
    }

    #[test]
    fn hello_reads_back(
        versions: (u16, u16),
        token in proptest::option::of(text(TOKEN_BYTES_MAX)),
        resume in proptest::option::of(vec(any::<u8>(), 0..=RESUME_TOKEN_BYTES_MAX)),
        numbers: (u16, u64, u32, u32),
        state in 0..3_u8,
        client in text(CLIENT_NAME_BYTES_MAX),
        corr: u32,
    ) {
        let hello = Hello {
            min_version: versions.0,
            max_version: versions.1,
            token: token.as_deref(),
            device: DeviceId(numbers.0),
            resume_token: resume.as_deref(),
            last_seq: Seq(numbers.1),
            receive_max: numbers.2,
            features: numbers.3,
            state: ClientState::from_u8(state),
            client: &client,
        };
        let mut out = Vec::new();
        Encoder::new().hello(&mut out, corr, &hello);
        prop_assert!(out.len() <= FRAME_BYTES_BEFORE_WELCOME_MAX);
        prop_assert_eq!(Hello::decode(only_frame!(out).body()), Ok(hello));
        // Credentials are in the frame and the value, and in the text of neither.
        let shown = format!("{hello:?} {:?}", only_frame!(out));
        prop_assert!(token.is_none_or(|token| token.len() < 8 || !shown.contains(&token)));
    }

    #[test]
    fn welcome_reads_back(
        wide: (u64, u64, u64, u64),
        medium: (u32, u32, u32, u32, u32, u32),
        narrow: (u16, u16, u16, u16, u16),
        resumed: bool,
        resume_token in vec(any::<u8>(), 0..=RESUME_TOKEN_BYTES_MAX),
        node in text(64),
        corr: u32,
    ) {
        let welcome = Welcome {
            version: narrow.0,
            user: UserId(wide.0),
            device: DeviceId(narrow.1),
            resumed,
            resume_token: &resume_token,
            resume_ttl_s: medium.0,
            auth_ttl_s: medium.1,
            head_seq: Seq(wide.1),
            floor_seq: Seq(wide.2),
            receive_max: medium.2,
            max_frame: medium.3,
            heartbeat_s: narrow.2,
            heartbeat_min_s: narrow.3,
            heartbeat_max_s: narrow.4,
            features: medium.4,
            server_us: wide.3,
            node: &node,
            reconnect_spread_ms: medium.5,
        };
        let mut out = Vec::new();
        Encoder::new().welcome(&mut out, corr, &welcome);
        let frame = only_frame!(out);
        prop_assert_eq!(Welcome::decode(frame.body()), Ok(welcome));
        // HELLO is answered even if it was not numbered.
        prop_assert_eq!(frame.flags().contains(Flags::REPLY), corr != 0);
    }

    #[test]
    fn error_close_and_drain_read_back(
        codes: (u16, u16),
        numbers: (u32, u32, u64, u8),
        detail in text(DETAIL_BYTES_MAX),
        endpoints in vec("[a-z.]{1,40}:[0-9]{1,5}", 0..4),
    ) {
        let (mut encoder, mut out) = (Encoder::new(), Vec::new());
        let error = ErrorReply {
            code: ErrorCode(codes.0),
            retry_after_ms: numbers.0,
            detail: &detail,
            op: numbers.3,
            server_us: numbers.2,
        };
        encoder.error(&mut out, 9, &error);
        prop_assert_eq!(ErrorReply::decode(only_frame!(out).body()), Ok(error));
        out.clear();
        let close = Close {
            code: CloseCode(codes.1),
            retry_after_ms: numbers.1,
            detail: &detail,
            endpoint: endpoints.first().map_or("", String::as_str),
        };
        encoder.close(&mut out, &close);
        prop_assert_eq!(Close::decode(only_frame!(out).body()), Ok(close));
        out.clear();
        let drain = Drain {
            spread_ms: numbers.0,
            deadline_ms: numbers.1,
            endpoints: endpoints.iter().map(String::as_str).collect(),
        };
        encoder.drain(&mut out, &drain);
        prop_assert_eq!(Drain::decode(only_frame!(out).body()), Ok(drain));
    }

    #[test]
    fn envelopes_and_receipt_lists_read_back(
        kinds: (u8, u8),
        body in vec(any::<u8>(), 0..2_000),
        key_id in vec(any::<u8>(), 0..=KEY_ID_BYTES_MAX),
        convs in vec((any::<u8>(), any::<u64>()), 0..=100),
        members: bool,
    ) {
        let (mut encoder, mut out) = (Encoder::new(), Vec::new());
        let (cipher, packing) = kinds;
        let envelope = Envelope { cipher, body: &body, packing, key_id: &key_id };
        prop_assert_eq!(Envelope::decode(encoder.envelope(&envelope)), Ok(envelope));
        let convs = convs.into_iter().map(|(kind, conv)| (ConvKind(kind), conv)).collect();
        let get = ReceiptsGet { convs, members };
        encoder.receipts_get(&mut out, 3, &get);
        prop_assert_eq!(ReceiptsGet::decode(only_frame!(out).body()), Ok(get));
    }

    /// A receive buffer gives bodies any alignment.
    #[test]
    fn bodies_read_at_any_address(shift in 0..16_usize, which in any::<prop::sample::Index>()) {
        let samples = samples::all();
        let Sample { bytes, check, .. } = which.get(&samples);
        let mut shifted = vec![0_u64; 3 + bytes.len() / 8]
            .into_iter()
            .flat_map(u64::to_ne_bytes)
            .collect::<Vec<u8>>();
        shifted[shift..shift + bytes.len()].copy_from_slice(bytes);
        let frame = next_frame(&shifted[shift..], usize::MAX).expect("valid").expect("whole");
        check(&frame);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in vec(any::<u8>(), 0..600)) {
        fuzz_targets::frame(&bytes);
        fuzz_targets::bodies(&bytes);
    }

    #[test]
    fn no_damaged_body_makes_the_reader_panic(
        which in any::<prop::sample::Index>(),
        damage in vec((any::<usize>(), any::<u8>()), 1..12),
    ) {
        let samples = samples::all();
        let sample = which.get(&samples);
        let mut bytes = sample.bytes.clone();
        for (at, byte) in damage {
            // The first seven bytes are left: damage there only ends the frame.
            let at = 7 + at % (bytes.len() - 7);
            bytes[at] = byte;
        }
        fuzz_targets::frame(&bytes);
    }
}

/// Every byte of every sample set to several values, and every truncation. The property tests
/// above wander; this one leaves nothing out.
#[test]
fn every_byte_of_every_sample_may_be_wrong() {
    let (mut read, mut refused) = (0, 0);
    for sample in samples::all() {
        let mut count = |bytes: &[u8]| {
            fuzz_targets::frame(bytes);
            match next_frame(bytes, FRAME_BYTES_DEFAULT_MAX) {
                Ok(Some(_)) => read += 1,
                Ok(None) | Err(_) => refused += 1,
            }
        };
        let mut bytes = sample.bytes.clone();
        for at in 0..bytes.len() {
            let right = bytes[at];
            for wrong in [
                0,
                1,
                0x7f,
                0x80,
                0xff,
                right ^ 1,
                right.wrapping_add(4),
                !right,
            ] {
                bytes[at] = wrong;
                count(&bytes);
            }
            bytes[at] = right;
            count(&bytes[..at]);
        }
    }
    // Both outcomes are met, or the sweep tests nothing.
    assert!(
        read > 10_000 && refused > 10_000,
        "read {read}, refused {refused}"
    );
}
