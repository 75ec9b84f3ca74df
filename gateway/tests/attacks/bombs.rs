//! Bodies that are small to send and would be large to read: flatbuffers whose offsets go round in
//! circles or name lists of billions, and compressed bodies.

use crate::{
    harness::{PATIENCE, Peer, new_msg_id},
    siege::{Ground, setup},
};
use portico_wire::{
    CloseCode, ErrorCode, Flags, Op, RouteHeader,
    encode::{put_body, put_routed},
    frame::ConvKind,
    limits::{FRAME_BYTES_BEFORE_WELCOME_MAX, FRAME_BYTES_DEFAULT_MAX},
    message::{Hello, Welcome},
};

const BASE_HEADER: usize = 16;

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A table with one field at `field` (its id), whose offset is `offset`, followed by `rest`.
fn table(field: u16, offset: u32, rest: &[u32]) -> Vec<u8> {
    let fields = field + 1;
    // The vtable: its bytes, the table's bytes, a place for each field.
    let mut vtable: Vec<u16> = vec![4 + 2 * fields, 8];
    vtable.extend((0..fields).map(|at| if at == field { 4 } else { 0 }));
    if vtable.len() % 2 == 1 {
        vtable.push(0);
    }
    let vtable_bytes = 2 * vtable.len() as u32;
    let mut body = words(&[4 + vtable_bytes]);
    body.extend(vtable.iter().flat_map(|half| half.to_le_bytes()));
    // The table says how far before it its vtable lies.
    body.extend(words(&[vtable_bytes, offset]));
    body.extend(words(rest));
    body
}

/// Up to `size` bytes each.
fn bombs(size: usize) -> Vec<(&'static str, Vec<u8>)> {
    let full = |word: u32| words(&vec![word; size / 4]);
    vec![
        ("a root that is itself", words(&[0, 0, 0, 0])),
        ("a root far outside", words(&[u32::MAX, 0, 0, 0])),
        ("a table that is its own vtable", words(&[4, 0, 0, 0])),
        ("a vtable far before", words(&[4, i32::MAX as u32, 0, 0])),
        ("a vtable far behind", words(&[4, i32::MIN as u32, 0, 0])),
        (
            "a vtable longer than the body",
            words(&[8, 0x0008_ffff, 4, 0x0004_0004]),
        ),
        ("a list of four billion", table(0, 4, &[u32::MAX, 0, 0])),
        (
            "a list that overflows with its size",
            table(0, 4, &[1 << 28, 0, 0]),
        ),
        ("a list that is its own table", table(0, 0, &[0, 0])),
        ("a list outside", table(0, u32::MAX - 3, &[0])),
        ("bytes of four billion", table(4, 4, &[u32::MAX, 0])),
        ("a text of four billion", table(2, 4, &[u32::MAX, 0])),
        ("offsets that all point at the next", full(4)),
        ("offsets that all point back", full(u32::MAX - 3)),
        ("zeros", full(0)),
        ("ones", full(1)),
    ]
}

/// With the table and the list of a good request, but more entries than a request may have.
fn too_many_conversations() -> Vec<u8> {
    let count = (FRAME_BYTES_DEFAULT_MAX - 128) / 16;
    let mut body = table(0, 4, &[count as u32]);
    // A list of structs of 16 bytes begins at a multiple of 8, its count before it.
    body.resize(body.len() + 16 * count, 1);
    body
}

#[test]
fn flatbuffers_bombs_before_login_are_refused() {
    let ground = Ground::new(&setup());
    let gateway = &ground.gateway;
    let bombs = bombs(FRAME_BYTES_BEFORE_WELCOME_MAX - BASE_HEADER);
    ground.besiege(|siege| {
        for (name, body) in bombs.iter().cycle() {
            if !siege.goes_on() {
                break;
            }
            let mut frame = Vec::new();
            put_body(&mut frame, Op::Hello as u8, Flags::NONE, 1, 0, body);
            let mut conn = gateway.connect();
            conn.write_bytes(&frame).expect("it reads");
            let code = conn.expect_close(PATIENCE).expect(name);
            // What can be read has no version in it, or no token.
            let expected = [
                CloseCode::PROTOCOL_ERROR,
                CloseCode::VERSION_UNSUPPORTED,
                CloseCode::AUTH_FAILED,
            ];
            assert!(expected.contains(&code), "{name}: {code:?}");
        }
    });
    gateway.still_serves();
}

#[test]
fn flatbuffers_bombs_after_login_are_refused_and_cost_little() {
    let ground = Ground::new(&setup());
    let gateway = &ground.gateway;
    let process = gateway.process();
    gateway.still_serves();
    let memory = process.resident_bytes();
    let mut bombs = bombs(FRAME_BYTES_DEFAULT_MAX - BASE_HEADER);
    bombs.push(("more than there may be", too_many_conversations()));
    let mut user = 1_000;
    ground.besiege(|siege| {
        let mut peer: Option<Peer> = None;
        for (name, body) in bombs.iter().cycle() {
            if !siege.goes_on() {
                break;
            }
            let bomber = peer.get_or_insert_with(|| {
                user += 1;
                gateway.login(user, 1)
            });
            let (corr, mut frame) = (bomber.next_corr(), Vec::new());
            put_body(
                &mut frame,
                Op::ReceiptsGet as u8,
                Flags::NONE,
                corr,
                0,
                body,
            );
            bomber.write(&frame);
            let answer = bomber.take("an answer", |frame| Some(frame.clone()));
            match answer.known_op() {
                // An offset to itself is a list of none.
                Some(Op::Error | Op::Done) => {}
                // The tenth of a minute.
                Some(Op::Close) => peer = None,
                other => panic!("{name}: {other:?}"),
            }
        }
    });
    let grown = process.resident_bytes().saturating_sub(memory);
    assert!(grown < 32 << 20, "{grown} bytes more");
    gateway.still_serves();
}

/// A zstd frame of 21 bytes that says it holds 4 GiB of zeros: one block of a repeated byte after
/// another would follow.
const ZSTD_BOMB: [u8; 21] = [
    0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x02, 0x00, 0x10,
    0x00, 0x03, 0x00, 0x10, 0x00,
];

/// This version has no compression: it offers none, unpacks nothing and passes on no such flag.
#[test]
fn compressed_bombs_stay_packed() {
    let ground = Ground::new(&setup());
    let gateway = &ground.gateway;
    let process = gateway.process();
    gateway.still_serves();
    let memory = process.resident_bytes();
    let token = gateway.token(1, 1);
    let hello = Hello {
        token: Some(&token),
        features: u32::MAX,
        ..Hello::default()
    };
    let mut conn = gateway.connect();
    let mut out = Vec::new();
    conn.encoder().hello(&mut out, 1, &hello);
    conn.write_bytes(&out).expect("it reads");
    let welcome = conn.expect_op(Op::Welcome, PATIENCE).expect("WELCOME");
    let welcome = Welcome::decode(&welcome.body).expect("a Welcome");
    assert_eq!(welcome.features, 0, "nothing is offered");
    ground.besiege(|siege| {
        let mut bomber = Peer::login_with(gateway.connect(), &hello);
        let mut reader = gateway.login(2, 1);
        while siege.goes_on() {
            let (corr, mut out) = (bomber.next_corr(), Vec::new());
            let route = RouteHeader {
                msg_id: new_msg_id(),
                conv: 2,
                conv_kind: ConvKind::DIRECT,
                ..RouteHeader::default()
            };
            let op = Op::Send as u8;
            put_routed(&mut out, op, Flags::COMPRESSED, corr, 0, &route, &ZSTD_BOMB);
            bomber.write(&out);
            bomber.sent(corr);
            let (flags, body, seq) = reader.take("DELIVER", |frame| {
                let route = frame
                    .route
                    .filter(|_| frame.known_op() == Some(Op::Deliver))?;
                Some((frame.flags, frame.body.clone(), route.seq))
            });
            assert!(!flags.contains(Flags::COMPRESSED), "{flags:?}");
            assert_eq!(body, ZSTD_BOMB);
            reader.ack(seq);
        }
        // Where the gateway does read bodies, it is no body.
        let (corr, mut out) = (bomber.next_corr(), Vec::new());
        let op = Op::ReceiptsGet as u8;
        put_body(&mut out, op, Flags::COMPRESSED, corr, 0, &ZSTD_BOMB);
        bomber.write(&out);
        let code = bomber.refused(corr).code;
        assert_eq!(code, ErrorCode::MALFORMED);
    });
    let grown = process.resident_bytes().saturating_sub(memory);
    assert!(grown < 64 << 20, "{grown} bytes more");
    gateway.still_serves();
}
