//! Golden bytes: what is written today must be what was written when the files were committed, and
//! must read back as it was meant. A struct that grows, a field that moves, a default that changes
//! or an operation without a sample fails here.

use crate::{
    blessing, hex, in_repository,
    samples::{self, Sample},
};
use portico_wire::{
    BodyError, Flags, FrameError, Op, fb,
    frame::{ROUTE_END, SEQ_END},
    limits::{FRAME_BYTES_CEILING, KEY_ID_BYTES_MAX, RECEIPTS_GET_MAX, TOKEN_BYTES_MAX},
    message::{Envelope, Hello, ReceiptsGet, history::Revoke},
    next_frame,
    op::Header,
    verify::{Scope, root},
};
use std::{collections::BTreeSet, fs, mem::size_of};

/// Compares `lines` with a committed file, or writes it. A line is a name, then fields.
pub(crate) fn hold(file: &str, head: &str, lines: &[String]) {
    let path = in_repository("wire/golden").join(file);
    let mut text = String::from(head);
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    if blessing() {
        fs::write(&path, text).expect("the golden file can be written");
        return;
    }
    let committed = fs::read_to_string(&path).expect("the golden file is committed");
    let name = |line: &str| line.split('\t').next().unwrap_or_default().to_owned();
    let is_entry = |line: &&str| !line.starts_with('#');
    let old: BTreeSet<_> = committed.lines().filter(is_entry).map(name).collect();
    let new: BTreeSet<_> = lines.iter().map(|line| name(line)).collect();
    let missing: Vec<_> = new.difference(&old).collect();
    let extra: Vec<_> = old.difference(&new).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "{file}: not in the file {missing:?}, only in the file {extra:?}"
    );
    for line in lines {
        assert!(
            committed.lines().any(|old| old == line),
            "{file}: {} has other bytes now:\n{line}",
            name(line)
        );
    }
    assert_eq!(committed, text, "{file}: order or heading differs");
}

#[test]
fn every_operation_has_its_bytes() {
    let lines: Vec<String> = samples::all()
        .iter()
        .map(|sample| format!("{}\t{}", sample.name, hex(&sample.bytes)))
        .collect();
    let head = "# name, tab, the whole frame in hexadecimal. Written by the tests of this crate.\n";
    hold("frames.txt", head, &lines);
}

#[test]
fn every_operation_of_the_schema_has_exactly_one_full_sample() {
    let samples = samples::all();
    let full = samples.iter().filter(|sample| !sample.name.contains('.'));
    let full: Vec<Op> = full.map(|sample| sample.op).collect();
    assert_eq!(full, Op::ALL);
}

#[test]
fn every_sample_reads_back_as_written() {
    for sample in samples::all() {
        read_back(&sample);
    }
}

fn read_back(sample: &Sample) {
    let name = &sample.name;
    let frame = next_frame(&sample.bytes, FRAME_BYTES_CEILING);
    let frame = frame.expect(name).expect(name);
    assert_eq!(frame.bytes(), sample.bytes, "{name}");
    assert_eq!(frame.op(), sample.op as u8, "{name}");
    assert_eq!(frame.known_op(), Some(sample.op), "{name}");
    assert_eq!(frame.flags(), sample.flags, "{name}");
    assert_eq!(frame.corr(), sample.corr, "{name}");
    assert_eq!(frame.aux(), sample.aux, "{name}");
    let is_reply = sample.flags.contains(Flags::REPLY);
    assert_eq!(frame.is_request(), sample.corr != 0 && !is_reply, "{name}");
    let body_bytes = match sample.op.header() {
        Header::Base => sample.bytes.len() - 16,
        Header::Seq => {
            assert_eq!(frame.seq_header(), samples::seq_header(), "{name}");
            sample.bytes.len() - SEQ_END
        }
        Header::Route => {
            assert_eq!(frame.route(), Some(samples::route()), "{name}");
            sample.bytes.len() - ROUTE_END
        }
    };
    assert_eq!(frame.body().len(), body_bytes, "{name}");
    let has_body = sample.op.body_table().is_some() && sample.name != "DELIVER.withdrawn";
    assert_eq!(!frame.body().is_empty(), has_body, "{name}");
    (sample.check)(&frame);
}

#[test]
fn bad_frames_give_the_fault_they_are_listed_with() {
    let bad = samples::bad_frames();
    for bad in &bad {
        let result = next_frame(&bad.bytes, bad.max_bytes);
        assert_eq!(result.err(), Some(bad.error), "{}", bad.name);
    }
    let line = |bad: &samples::BadFrame| {
        let (name, error) = (bad.name, fault(bad.error));
        format!("{name}\t{error}\t{}\t{}", bad.max_bytes, hex(&bad.bytes))
    };
    let lines: Vec<String> = bad.iter().map(line).collect();
    let head = "# name, fault, limit of the whole frame, the bytes received so far.\n";
    hold("bad_frames.txt", head, &lines);
}

fn fault(error: FrameError) -> &'static str {
    match error {
        FrameError::TooShort => "TooShort",
        FrameError::TooLong => "TooLong",
        FrameError::BadHeader => "BadHeader",
    }
}

#[test]
fn the_worked_example_of_the_protocol_document() {
    let line = |(name, bytes): &(&str, Vec<u8>)| format!("{name}\t{}", hex(bytes));
    let lines: Vec<String> = samples::example().iter().map(line).collect();
    let head = "# whose connection, > to the server or < to the client, what; the whole frame.\n";
    hold("example.txt", head, &lines);
    for (name, bytes) in samples::example() {
        let frame = next_frame(&bytes, FRAME_BYTES_CEILING);
        let frame = frame.expect(name).expect(name);
        assert!(
            name.contains(frame.known_op().expect(name).name()),
            "{name}"
        );
    }
}

/// Structs cannot grow: their size is part of the protocol, and conformance checks of flatc do not
/// see a member added at the end.
#[test]
fn structs_have_the_size_the_protocol_gives_them() {
    assert_eq!(size_of::<fb::Id128>(), 16);
    assert_eq!(size_of::<fb::BaseHeader>(), 16);
    assert_eq!(size_of::<fb::SeqHeader>(), 16);
    assert_eq!(size_of::<fb::RouteHeader>(), 56);
    assert_eq!(size_of::<fb::DeviceSlot>(), 24);
    assert_eq!(size_of::<fb::DeviceRef>(), 16);
    assert_eq!(size_of::<fb::ConvRef>(), 16);
    assert_eq!(size_of::<fb::PresenceItem>(), 16);
    assert_eq!(size_of::<fb::Member>(), 16);
    assert_eq!(size_of::<fb::MessageRef>(), 32);
    let schema = fs::read_to_string(in_repository("wire/schema/gateway.fbs"));
    let schema = schema.expect("the schema is committed");
    let structs = schema.lines().filter(|line| line.starts_with("struct "));
    assert_eq!(
        structs.count(),
        10,
        "a struct of the schema has no size here"
    );
}

/// The hand-written headers of `frame` and the structs of the schema are the same bytes.
#[test]
fn headers_are_laid_out_as_the_schema_says() {
    let sample = samples::all()
        .into_iter()
        .find(|sample| sample.op == Op::Deliver);
    let bytes = sample.expect("DELIVER has a sample").bytes;
    let base: [u8; 16] = bytes[..16].try_into().expect("16 bytes");
    let base = fb::BaseHeader(base);
    assert_eq!(base.len() as usize + 4, bytes.len());
    assert_eq!(base.op(), Op::Deliver as u8);
    assert_eq!(base.flags(), (Flags::ROUTED | Flags::EPHEMERAL).0);
    assert_eq!((base.hdr(), base.rsv()), (9, 0));
    let route: [u8; 56] = bytes[16..72].try_into().expect("56 bytes");
    let (route, expected) = (fb::RouteHeader(route), samples::route());
    assert_eq!(route.seq(), expected.seq.0);
    assert_eq!(route.msg_id().hi(), expected.msg_id.hi());
    assert_eq!(route.msg_id().lo(), expected.msg_id.lo());
    assert_eq!(route.conv(), expected.conv);
    assert_eq!(route.conv_seq(), expected.conv_seq.0);
    assert_eq!(route.user(), expected.user.0);
    assert_eq!(route.dev(), expected.dev.0);
    assert_eq!(route.conv_kind(), expected.conv_kind.0);
    assert_eq!(route.kind(), expected.kind);
    assert_eq!(route.ttl_s(), expected.ttl_s);

    let bytes = &samples::all()
        .into_iter()
        .find(|sample| sample.op == Op::Ack)
        .expect("ACK has a sample")
        .bytes;
    let seq: [u8; 16] = bytes[16..].try_into().expect("16 bytes");
    let (seq, expected) = (fb::SeqHeader(seq), samples::seq_header());
    assert_eq!(
        (seq.seq(), seq.arg(), seq.rsv()),
        (expected.seq, expected.arg, 0)
    );
}

/// The flag bits and kinds that the crate names by hand are those of the schema.
#[test]
fn names_given_by_hand_agree_with_the_schema() {
    use portico_wire::frame::{ConvKind, msg_kind, receipt_kind, signal_kind};
    for (ours, schema) in [
        (Flags::ROUTED, fb::FrameFlags::ROUTED),
        (Flags::REPLY, fb::FrameFlags::REPLY),
        (Flags::EPHEMERAL, fb::FrameFlags::EPHEMERAL),
        (Flags::COMPRESSED, fb::FrameFlags::COMPRESSED),
        (Flags::MORE, fb::FrameFlags::MORE),
        (Flags::SILENT, fb::FrameFlags::SILENT),
        (Flags::RETRY, fb::FrameFlags::RETRY),
    ] {
        assert_eq!(ours.0, schema.bits());
    }
    assert_eq!(fb::FrameFlags::all().bits().count_ones(), 7);
    let kinds = [
        ConvKind::NONE,
        ConvKind::DIRECT,
        ConvKind::GROUP,
        ConvKind::STATUS,
    ];
    assert_eq!(
        kinds.map(|kind| fb::ConvKind(kind.0)),
        fb::ConvKind::ENUM_VALUES
    );
    let kinds = [
        msg_kind::CONTENT,
        msg_kind::UPDATE,
        msg_kind::KEY_DISTRIBUTION,
        msg_kind::DEVICE_SYNC,
    ];
    assert_eq!(kinds.map(fb::MsgKind), fb::MsgKind::ENUM_VALUES);
    let kinds = [0, receipt_kind::DELIVERED, receipt_kind::READ];
    assert_eq!(kinds.map(fb::ReceiptKind), fb::ReceiptKind::ENUM_VALUES);
    let kinds = [
        signal_kind::STOPPED,
        signal_kind::TYPING,
        signal_kind::RECORDING,
    ];
    assert_eq!(kinds.map(fb::SignalKind), fb::SignalKind::ENUM_VALUES);
}

/// The tables that only clients read, and that no operation has as its body.
#[test]
fn plaintext_reads_back_as_written() {
    use crate::tables::content;
    let mut encoder = portico_wire::encode::Encoder::new();
    let body = encoder.body(content::build).to_vec();
    content::check(root::<fb::Content<'_>>(&body, Scope::Client).expect("it verifies"));
    let line = format!("Content\t{}", hex(&body));
    hold("plaintext.txt", "# name, tab, the flatbuffer.\n", &[line]);
}

#[test]
fn bodies_over_a_limit_or_without_what_they_need_are_refused() {
    let mut encoder = portico_wire::encode::Encoder::new();
    let long = "t".repeat(TOKEN_BYTES_MAX + 1);
    let mut out = Vec::new();
    let hello = |token| Hello {
        token: Some(token),
        ..Hello::default()
    };
    encoder.hello(&mut out, 1, &hello(&long[1..]));
    assert!(Hello::decode(&out[16..]).is_ok());
    out.clear();
    encoder.hello(&mut out, 1, &hello(&long));
    assert_eq!(Hello::decode(&out[16..]), Err(BodyError::TooLong));

    let envelope = |key_id| Envelope {
        key_id,
        ..Envelope::default()
    };
    let key_id = [7; KEY_ID_BYTES_MAX + 1];
    let fits = encoder.envelope(&envelope(&key_id[1..])).to_vec();
    assert!(Envelope::decode(&fits).is_ok());
    let over = encoder.envelope(&envelope(&key_id)).to_vec();
    assert_eq!(Envelope::decode(&over), Err(BodyError::TooLong));

    let get = |count| ReceiptsGet {
        convs: vec![(portico_wire::frame::ConvKind::DIRECT, 7); count],
        members: false,
    };
    out.clear();
    encoder.receipts_get(&mut out, 1, &get(RECEIPTS_GET_MAX));
    assert!(ReceiptsGet::decode(&out[16..]).is_ok());
    out.clear();
    encoder.receipts_get(&mut out, 1, &get(RECEIPTS_GET_MAX + 1));
    assert_eq!(ReceiptsGet::decode(&out[16..]), Err(BodyError::TooLong));
    // The empty table: no list at all.
    let empty = encoder.body(|b| fb::ReceiptsGet::create(b, &fb::ReceiptsGetArgs::default()));
    assert_eq!(ReceiptsGet::decode(empty), Err(BodyError::Missing));

    let empty = encoder.body(|b| fb::Revoke::create(b, &fb::RevokeArgs::default()));
    assert_eq!(Revoke::decode(empty), Err(BodyError::Missing));

    let no_root = b"\x08\0\0\0\0\0\0\0";
    let no_vtable = b"\x04\0\0\0\xff\xff\xff\x7f";
    for body in [&b""[..], b"\0", b"\xff\xff\xff\xff", no_root, no_vtable] {
        assert_eq!(Hello::decode(body), Err(BodyError::Malformed), "{body:?}");
    }
    // Four zeros are a root without fields that is its own, empty, vtable: legal, if odd.
    assert_eq!(Hello::decode(&[0; 4]), Ok(Hello::default()));
    // `required` is kept by the verifier: a REAUTH without its token.
    let empty = encoder.body(|b| fb::Close::create(b, &fb::CloseArgs::default()));
    assert!(root::<fb::Reauth<'_>>(empty, Scope::Server).is_err());
}

/// How many tables a body may have depends on who reads it.
#[test]
fn a_body_of_too_many_tables_is_refused() {
    use portico_wire::limits::{
        VERIFY_TABLES_CLIENT_MAX, VERIFY_TABLES_LARGE_MAX, VERIFY_TABLES_MAX,
    };
    let mut encoder = portico_wire::encode::Encoder::new();
    // The root is a table as well.
    let mut accepted = |mutes: usize, scope| {
        let body = encoder.body(|b| {
            let mutes: Vec<_> = (0..mutes)
                .map(|_| fb::Mute::create(b, &fb::MuteArgs::default()))
                .collect();
            let mutes = Some(b.create_vector(&mutes));
            let args = fb::NotifyPrefsArgs {
                mutes,
                ..Default::default()
            };
            fb::NotifyPrefs::create(b, &args)
        });
        root::<fb::NotifyPrefs<'_>>(body, scope).is_ok()
    };
    for (scope, max) in [
        (Scope::Server, VERIFY_TABLES_MAX),
        (Scope::ServerLarge, VERIFY_TABLES_LARGE_MAX),
        (Scope::Client, VERIFY_TABLES_CLIENT_MAX),
    ] {
        assert!(accepted(max - 1, scope), "{scope:?}");
        assert!(!accepted(max, scope), "{scope:?}");
    }
}

/// A shortened address would send clients elsewhere: one that is too long is left out.
#[test]
fn addresses_are_left_out_rather_than_cut_and_texts_are_cut_between_characters() {
    use portico_wire::{
        CloseCode,
        limits::{DETAIL_BYTES_MAX, ENDPOINT_BYTES_MAX},
        message::{Close, Drain},
    };
    let mut encoder = portico_wire::encode::Encoder::new();
    let long = "x".repeat(ENDPOINT_BYTES_MAX + 1);
    let mut out = Vec::new();
    let close = Close {
        endpoint: &long,
        ..Close::new(CloseCode::MOVED, "")
    };
    encoder.close(&mut out, &close);
    assert_eq!(
        Close::decode(&out[16..]).map(|close| close.endpoint),
        Ok("")
    );
    out.clear();
    let close = Close {
        endpoint: &long[1..],
        ..close
    };
    encoder.close(&mut out, &close);
    assert_eq!(Close::decode(&out[16..]), Ok(close));
    out.clear();
    let endpoints = vec![long.as_str(), "a.example:7400"];
    encoder.drain(
        &mut out,
        &Drain {
            spread_ms: 1,
            deadline_ms: 2,
            endpoints,
        },
    );
    let drain = Drain::decode(&out[16..]).map(|drain| drain.endpoints);
    assert_eq!(drain, Ok(vec!["a.example:7400"]));
    out.clear();
    // Two bytes a character: 99 of them and an odd byte before make the limit fall inside one.
    let detail = format!("x{}", "é".repeat(DETAIL_BYTES_MAX));
    encoder.close(&mut out, &Close::new(CloseCode::NORMAL, &detail));
    let cut = Close::decode(&out[16..]).expect("valid").detail.to_owned();
    assert_eq!(cut.len(), DETAIL_BYTES_MAX - 1);
    assert!(detail.starts_with(&cut));
}
