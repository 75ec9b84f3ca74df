//! Records that no well-behaved client sends, made with the keys of one.

use super::*;
use crate::record::{CHANGE_CIPHER_SPEC, HEADER_BYTES};

const SUITES: [Suite; 3] = [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::Chacha20Poly1305];

/// Both ends of a session. The client is the same code with its directions exchanged: that it
/// understands others is shown with rustls and OpenSSL.
fn pair(suite: Suite) -> (Open, Open) {
    let secret = |byte| Secret::new(&[byte; 48]).expect("48 bytes");
    let server = Open::new(suite, (secret(1), 0), (secret(2), 0));
    let client = Open::new(suite, (secret(2), 0), (secret(1), 0));
    (server, client)
}

fn sealed(from: &mut Open, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    from.seal(kind, content, &mut out).expect("sealed");
    out
}

fn data(from: &mut Open, content: &[u8]) -> Vec<u8> {
    sealed(from, APPLICATION_DATA, content)
}

/// Plaintext, what is answered, and how it ended.
fn receive(to: &mut Open, mut bytes: Vec<u8>) -> (Vec<u8>, Vec<u8>, Option<End>) {
    let mut out = Vec::new();
    let taken = to.receive(&mut bytes, 0, &mut out);
    assert_eq!(taken.consumed, bytes.len());
    bytes.truncate(taken.plaintext);
    (bytes, out, taken.ended)
}

#[track_caller]
fn goes_on(server: &mut Open, client: &mut Open) {
    let bytes = data(client, b"up");
    assert_eq!(receive(server, bytes).0, b"up");
    let bytes = data(server, b"down");
    assert_eq!(receive(client, bytes).0, b"down");
}

/// The server gives up for this reason, says so, and the client hears it.
#[track_caller]
fn fails(server: &mut Open, client: &mut Open, bytes: Vec<u8>, failure: Failure) {
    let alert = failure.alert();
    let (_, out, ended) = receive(server, bytes);
    assert_eq!(ended, Some(End::Failed(failure)));
    let (_, _, ended) = receive(client, out);
    assert_eq!(ended, Some(End::PeerAlert(alert)));
}

#[test]
fn what_may_not_come_is_refused_with_its_alert() {
    let long = vec![1; RECORD_PLAINTEXT_MAX + 1];
    let update_and_more = [KEY_UPDATE, 0, 0, 1, 0, KEY_UPDATE];
    let cases: &[(u8, &[u8], Failure)] = &[
        (0, &[], Failure::OnlyPadding),
        (0, &[0; 100], Failure::OnlyPadding),
        (APPLICATION_DATA, &long, Failure::RecordTooLong),
        (CHANGE_CIPHER_SPEC, &[1], Failure::UnexpectedRecord),
        (24, &[1, 0, 0], Failure::UnexpectedRecord),
        (ALERT, &[], Failure::BadAlert),
        (ALERT, &[1], Failure::BadAlert),
        (ALERT, &[1, 0, 1, 0], Failure::BadAlert),
        (HANDSHAKE, &[], Failure::UnexpectedHandshake),
        (HANDSHAKE, &[1, 0, 0, 1], Failure::UnexpectedHandshake),
        (HANDSHAKE, &[4, 0, 0, 0], Failure::UnexpectedHandshake),
        (
            HANDSHAKE,
            &[KEY_UPDATE, 0, 0, 0],
            Failure::UnexpectedHandshake,
        ),
        (
            HANDSHAKE,
            &[KEY_UPDATE, 0, 1, 1],
            Failure::UnexpectedHandshake,
        ),
        (HANDSHAKE, &update_and_more, Failure::UnexpectedHandshake),
        (HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 2], Failure::BadKeyUpdate),
    ];
    for suite in SUITES {
        for (kind, content, failure) in cases {
            let (mut server, mut client) = pair(suite);
            goes_on(&mut server, &mut client);
            let bytes = sealed(&mut client, *kind, content);
            fails(&mut server, &mut client, bytes, failure.clone());
            assert_eq!(
                server.send(b"x", &mut Vec::with_capacity(99)),
                Err(SendError::Closed)
            );
        }
    }
}

#[test]
fn unprotected_records_are_refused_while_open() {
    for kind in [CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, b'G', 0x80] {
        let (mut server, mut client) = pair(Suite::Aes128Gcm);
        let bytes = vec![kind, 3, 3, 0, 1, 1];
        fails(&mut server, &mut client, bytes, Failure::UnexpectedRecord);
    }
    let (mut server, mut client) = pair(Suite::Aes128Gcm);
    let bytes = vec![APPLICATION_DATA, 3, 3, 0x41, 1];
    fails(&mut server, &mut client, bytes, Failure::RecordTooLong);
}

#[test]
fn every_flipped_bit_is_found() {
    for suite in SUITES {
        let (_, mut client) = pair(suite);
        let record = data(&mut client, b"some plaintext");
        for bit in HEADER_BYTES * 8..record.len() * 8 {
            let (mut server, mut client) = pair(suite);
            let mut flipped = record.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fails(&mut server, &mut client, flipped, Failure::BadRecord);
        }
        // Of the header: what is not refused at once or waits for more is not authentic.
        for bit in 0..HEADER_BYTES * 8 {
            let (mut server, _) = pair(suite);
            let mut flipped = record.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            flipped.resize(RECORD_PLAINTEXT_MAX * 2, 0);
            let taken = server.receive(&mut flipped, 0, &mut Vec::new());
            assert_eq!(taken.plaintext, 0, "bit {bit}");
            assert!(matches!(taken.ended, Some(End::Failed(_))), "bit {bit}");
        }
    }
}

#[test]
fn a_repeated_and_a_missing_record_are_found() {
    let (mut server, mut client) = pair(Suite::Aes256Gcm);
    let first = data(&mut client, b"first");
    assert_eq!(receive(&mut server, first.clone()).0, b"first");
    fails(&mut server, &mut client, first, Failure::BadRecord);

    let (mut server, mut client) = pair(Suite::Aes256Gcm);
    let _lost = data(&mut client, b"first");
    let second = data(&mut client, b"second");
    fails(&mut server, &mut client, second, Failure::BadRecord);
}

#[test]
fn padding_is_taken_off() {
    for padding in [0, 1, 2, 255, 256, 9_000] {
        let (mut server, mut client) = pair(Suite::Chacha20Poly1305);
        let mut inner = b"text".to_vec();
        inner.push(APPLICATION_DATA);
        inner.resize(inner.len() + padding, 0);
        // The "type" of this record is one more byte of padding.
        let bytes = sealed(&mut client, 0, &inner);
        assert_eq!(receive(&mut server, bytes).0, b"text");
        goes_on(&mut server, &mut client);
    }
}

#[test]
fn any_cut_gives_the_same_plaintext_whether_hibernated_or_not() {
    for suite in SUITES {
        let texts: [&[u8]; 5] = [b"a", &[7; 300], b"", b"some more", &[9; 40]];
        let mut expected = texts.concat();
        expected.extend_from_slice(b"after");
        let stream = |client: &mut Open| {
            let mut stream: Vec<u8> = texts.iter().flat_map(|text| data(client, text)).collect();
            stream.extend(sealed(client, HANDSHAKE, &[KEY_UPDATE, 0]));
            stream.extend(sealed(client, HANDSHAKE, &[0, 1, 1]));
            step_sent(client);
            stream.extend(data(client, b"after"));
            stream
        };
        let length = stream(&mut pair(suite).1).len();
        for size in 1..=length {
            for hibernate in [false, true] {
                let (mut server, mut client) = pair(suite);
                let (mut plain, mut held, mut out) = (Vec::new(), Vec::new(), Vec::new());
                for part in stream(&mut client).chunks(size) {
                    held.extend_from_slice(part);
                    let taken = server.receive(&mut held, 0, &mut out);
                    assert_eq!(taken.ended, None);
                    plain.extend_from_slice(&held[..taken.plaintext]);
                    held.drain(..taken.consumed);
                    if hibernate {
                        server.hibernate();
                        assert!(server.is_hibernated());
                    }
                }
                assert!(plain == expected, "{suite:?}, cut into {size}");
                // The key update was asked for, so it was answered.
                assert_eq!(receive(&mut client, out), (Vec::new(), Vec::new(), None));
                assert_eq!(client.received.sequence, 0);
                goes_on(&mut server, &mut client);
            }
        }
    }
}

/// What a client does after it has sent a key update by hand.
fn step_sent(client: &mut Open) {
    let key = step(&mut client.sent, client.suite).expect("a key");
    client.wake().expect("keys");
    client.keys.as_mut().expect("awake").sent = key;
}

#[test]
fn several_requests_for_a_key_update_are_answered_once() {
    let (mut server, mut client) = pair(Suite::Aes128Gcm);
    let mut bytes = Vec::new();
    for _ in 0..5 {
        client.update_key(true, &mut bytes).expect("sealed");
    }
    bytes.extend(data(&mut client, b"text"));
    let (plain, out, ended) = receive(&mut server, bytes);
    assert_eq!((plain.as_slice(), ended), (&b"text"[..], None));
    assert_eq!(out.len(), KEY_UPDATE_BYTES + RECORD_OVERHEAD);
    assert_eq!(receive(&mut client, out), (Vec::new(), Vec::new(), None));
    goes_on(&mut server, &mut client);
}

#[test]
fn a_key_update_that_asks_for_none_is_not_answered() {
    let (mut server, mut client) = pair(Suite::Aes256Gcm);
    let mut bytes = Vec::new();
    client.update_key(false, &mut bytes).expect("sealed");
    assert_eq!(receive(&mut server, bytes), (Vec::new(), Vec::new(), None));
    goes_on(&mut server, &mut client);
}

#[test]
fn nothing_comes_between_the_parts_of_a_message() {
    for (kind, content) in [
        (APPLICATION_DATA, &b"x"[..]),
        (APPLICATION_DATA, b""),
        (ALERT, &[1, 0]),
    ] {
        let (mut server, mut client) = pair(Suite::Aes128Gcm);
        let bytes = sealed(&mut client, HANDSHAKE, &[KEY_UPDATE]);
        assert_eq!(receive(&mut server, bytes).2, None);
        let bytes = sealed(&mut client, kind, content);
        fails(
            &mut server,
            &mut client,
            bytes,
            Failure::UnexpectedHandshake,
        );
    }
}

#[test]
fn our_key_changes_before_it_is_worn() {
    for suite in SUITES {
        let (mut server, mut client) = pair(suite);
        server.sent.sequence = RECORDS_PER_KEY - 1;
        client.received.sequence = RECORDS_PER_KEY - 1;
        let mut out = Vec::with_capacity(1 << 10);
        assert_eq!(server.send(b"last", &mut out), Ok(4));
        assert_eq!(server.sent.sequence, RECORDS_PER_KEY);
        // Without room for the update as well, nothing is taken.
        let mut tight = Vec::with_capacity(RECORD_OVERHEAD + 4);
        assert_eq!(server.send(b"next", &mut tight), Ok(0));
        assert_eq!(server.send(b"next", &mut out), Ok(4));
        assert_eq!(server.sent.sequence, 1);
        assert_eq!(receive(&mut client, out).0, b"lastnext");
        assert_eq!(client.received.sequence, 1);
        goes_on(&mut server, &mut client);
    }
}

#[test]
fn a_peer_whose_key_is_worn_is_asked_once_to_change_it() {
    let (mut server, mut client) = pair(Suite::Aes128Gcm);
    server.received.sequence = RECORDS_PER_KEY - 1;
    client.sent.sequence = RECORDS_PER_KEY - 1;
    let bytes = data(&mut client, b"one");
    let (plain, asked, _) = receive(&mut server, bytes);
    assert_eq!(plain, b"one");
    assert_eq!(asked.len(), KEY_UPDATE_BYTES + RECORD_OVERHEAD);
    let bytes = data(&mut client, b"two");
    assert_eq!(
        receive(&mut server, bytes),
        (b"two".to_vec(), Vec::new(), None)
    );
    let (_, answer, _) = receive(&mut client, asked);
    assert_eq!(client.sent.sequence, 0);
    assert_eq!(receive(&mut server, answer), (Vec::new(), Vec::new(), None));
    assert_eq!(server.received.sequence, 0);
    goes_on(&mut server, &mut client);
}

#[test]
fn the_last_number_is_never_used() {
    let (mut server, mut client) = pair(Suite::Chacha20Poly1305);
    server.received.sequence = SEQUENCE_END;
    let bytes = data(&mut client, b"x");
    fails(&mut server, &mut client, bytes, Failure::SequenceUsedUp);

    let (mut server, _) = pair(Suite::Chacha20Poly1305);
    server.sent.sequence = SEQUENCE_END;
    let mut out = Vec::with_capacity(99);
    let sent = server.send(b"x", &mut out);
    assert_eq!(sent, Err(SendError::Failed(Failure::SequenceUsedUp)));
    assert!(out.is_empty());
}

#[test]
fn records_that_carry_nothing_are_bounded() {
    let empty: &[(u8, &[u8])] = &[
        (APPLICATION_DATA, &[]),
        (ALERT, &[1, 90]),
        (HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0]),
    ];
    for (kind, content) in empty {
        let (mut server, mut client) = pair(Suite::Aes128Gcm);
        let fruitless = |server: &mut Open, client: &mut Open| {
            let bytes = sealed(client, *kind, content);
            if *kind == HANDSHAKE {
                step_sent(client);
            }
            receive(server, bytes).2
        };
        for _ in 0..3 {
            for _ in 0..FRUITLESS_MAX {
                assert_eq!(fruitless(&mut server, &mut client), None);
            }
            goes_on(&mut server, &mut client);
        }
        for _ in 0..FRUITLESS_MAX {
            assert_eq!(fruitless(&mut server, &mut client), None);
        }
        let ended = fruitless(&mut server, &mut client);
        assert_eq!(ended, Some(End::Failed(Failure::FruitlessRecords)));
    }
}

#[test]
fn after_the_peer_has_closed_we_may_still_send() {
    let (mut server, mut client) = pair(Suite::Aes128Gcm);
    let mut bytes = data(&mut client, b"last words");
    client.close(&mut bytes);
    bytes.extend_from_slice(b"ignored");
    let (plain, out, ended) = receive(&mut server, bytes);
    assert_eq!(
        (plain.as_slice(), ended),
        (&b"last words"[..], Some(End::PeerClosed))
    );
    assert!(out.is_empty());
    assert_eq!(receive(&mut server, vec![0; 100]).2, None, "said once");
    let mut out = data(&mut server, b"answer");
    server.close(&mut out);
    let length = out.len();
    server.close(&mut out);
    assert_eq!(out.len(), length, "said once");
    let (plain, _, ended) = receive(&mut client, out);
    assert_eq!(
        (plain.as_slice(), ended),
        (&b"answer"[..], Some(End::PeerClosed))
    );
}

#[test]
fn after_we_have_closed_we_still_receive_but_send_nothing() {
    let (mut server, mut client) = pair(Suite::Aes128Gcm);
    server.hibernate();
    let mut out = Vec::with_capacity(1 << 10);
    server.close(&mut out);
    assert_eq!(receive(&mut client, out.clone()).2, Some(End::PeerClosed));
    assert_eq!(server.send(b"x", &mut out), Err(SendError::Closed));
    let mut bytes = Vec::new();
    client.update_key(true, &mut bytes).expect("sealed");
    bytes.extend(data(&mut client, b"text"));
    assert_eq!(
        receive(&mut server, bytes),
        (b"text".to_vec(), Vec::new(), None)
    );
    // Not even an alert.
    let (_, out, ended) = receive(&mut server, vec![0; 9]);
    assert_eq!(ended, Some(End::Failed(Failure::UnexpectedRecord)));
    assert!(out.is_empty());
}

#[test]
fn what_does_not_fit_is_left_to_the_caller() {
    let text: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
    for room in [23, 24, 100, 4_096, 20_000, 40_000] {
        let (mut server, mut client) = pair(Suite::Aes256Gcm);
        let (mut rest, mut plain) = (&text[..], Vec::new());
        let mut out = Vec::with_capacity(room);
        while !rest.is_empty() {
            let taken = server.send(rest, &mut out).expect("open");
            assert!(taken > 0 && out.capacity() == room, "{room}");
            rest = &rest[taken..];
            plain.extend(receive(&mut client, out.clone()).0);
            out.clear();
        }
        assert!(plain == text, "{room}");
        let mut none = Vec::with_capacity(RECORD_OVERHEAD);
        assert_eq!(server.send(b"x", &mut none), Ok(0));
    }
    let (mut server, _) = pair(Suite::Aes256Gcm);
    let mut out = Vec::with_capacity(crate::sealed_len(text.len()));
    assert_eq!(server.send(&text, &mut out), Ok(text.len()));
    assert_eq!(out.len(), crate::sealed_len(text.len()));
}

/// Inner content of any kind and bytes, and records broken at any place: no panic, and what is
/// answered stays small.
#[test]
fn arbitrary_content_ends_in_order() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..20_000 {
        let (mut server, mut client) = pair(SUITES[round % 3]);
        let mut stream = Vec::new();
        for _ in 0..random() % 8 {
            let kind = [0, 20, 21, 22, 23, 24, 255][(random() % 7) as usize];
            let small = [0, 1, 2, 4, 24, 90, 255];
            let content: Vec<u8> = (0..random() % 8)
                .map(|_| small[(random() % 7) as usize])
                .collect();
            stream.extend(sealed(&mut client, kind, &content));
        }
        if random() % 2 == 0 && !stream.is_empty() {
            let place = (random() % stream.len() as u64) as usize;
            stream[place] ^= random() as u8;
            stream.truncate(place + 1 + (random() % 64) as usize);
        }
        let (mut held, mut out) = (Vec::new(), Vec::new());
        for part in stream.chunks(1 + (random() % 60) as usize) {
            held.extend_from_slice(part);
            let taken = server.receive(&mut held, 0, &mut out);
            assert!(taken.plaintext <= taken.consumed && taken.consumed <= held.len());
            held.drain(..taken.consumed);
            if !matches!(taken.ended, None | Some(End::PeerClosed)) {
                break;
            }
        }
        assert!(
            out.len() <= 8 * (KEY_UPDATE_BYTES + RECORD_OVERHEAD),
            "{}",
            out.len()
        );
    }
}
