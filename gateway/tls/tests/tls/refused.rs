//! What is not a handshake of TLS 1.3 is refused with the right alert, without panic and in bounds.

use crate::common::{Pair, Server};
use portico_tls::{Alert, End, Failure, Form, HANDSHAKE_BYTES_MAX, SendError};
use std::sync::Arc;

/// A ClientHello as rustls sends it.
fn hello(server: &Server) -> Vec<u8> {
    let mut pair = Pair::new(&server.acceptor, &Arc::new(server.client(&[])));
    let mut bytes = Vec::new();
    pair.client.write_tls(&mut bytes).expect("memory");
    bytes
}

/// What an alert in the clear says.
#[track_caller]
fn alert(out: &[u8]) -> Alert {
    match out {
        [21, 3, 3 | 1, 0, 2, 2, number] => Alert(*number),
        other => panic!("not an alert: {other:?}"),
    }
}

#[test]
fn what_is_not_tls_is_refused_at_its_first_bytes() {
    let server = Server::new();
    let sslv2 = [0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10, 1, 0, 0x80];
    let cases: &[(&[u8], Alert)] = &[
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Alert::DECODE_ERROR),
        (&sslv2, Alert::DECODE_ERROR),
        (&[0; 64], Alert::DECODE_ERROR),
        (&[0xff; 64], Alert::DECODE_ERROR),
        // A frame of the plain protocol: a HELLO of 100 bytes.
        (&[96, 0, 0, 0, 1, 0, 2, 0, 0], Alert::DECODE_ERROR),
        // A record that may not come first, and a long one.
        (&[23, 3, 3, 0, 1, 0], Alert::UNEXPECTED_MESSAGE),
        (&[22, 3, 1, 0xff, 0xff], Alert::DECODE_ERROR),
    ];
    for (bytes, expected) in cases {
        for chunk in [1, usize::MAX] {
            let mut session = server.acceptor.accept();
            let (mut out, mut ended) = (Vec::new(), None);
            for part in bytes.chunks(chunk) {
                let mut part = part.to_vec();
                let received = session.receive(&mut part, &mut out);
                assert_eq!(received.plaintext, 0);
                ended = received.ended.or(ended);
            }
            assert!(
                matches!(ended, Some(End::Failed(_))),
                "{bytes:?}: {ended:?}"
            );
            assert_eq!(alert(&out), *expected, "{bytes:?}");
            assert_eq!(session.form(), Form::Ended);
            assert_eq!(session.send(b"x", &mut out), Err(SendError::Closed));
        }
    }
}

#[test]
fn a_client_of_another_protocol_is_told_so() {
    let server = Server::new();
    let mut config = server.client(&[]);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut pair = Pair::new(&server.acceptor, &Arc::new(config));
    pair.run();
    let heard = pair.client_error.expect("refused");
    let expected = rustls::AlertDescription::NoApplicationProtocol;
    assert_eq!(heard, rustls::Error::AlertReceived(expected));
    assert!(matches!(
        pair.ended,
        Some(End::Failed(Failure::Handshake(_)))
    ));
}

#[test]
fn a_handshake_without_end_is_cut() {
    let server = Server::new();
    let mut session = server.acceptor.accept();
    let mut out = Vec::new();
    // A ClientHello that says it is 60,000 bytes long.
    let mut record = vec![22, 3, 1, 0x40, 0, 1, 0, 0xea, 0x60];
    record.resize(5 + 0x4000, 0);
    let mut given = 0;
    let ended = loop {
        let received = session.receive(&mut record.clone(), &mut out);
        given += record.len();
        if let Some(ended) = received.ended {
            break ended;
        }
        assert!(given <= HANDSHAKE_BYTES_MAX);
        record[5..9].fill(0);
    };
    assert_eq!(ended, End::Failed(Failure::HandshakeTooLong));
    assert_eq!(alert(&out), Alert::DECODE_ERROR);
}

#[test]
fn a_client_that_gives_up_is_believed() {
    let server = Server::new();
    let mut session = server.acceptor.accept();
    let mut out = Vec::new();
    let _ = session.receive(&mut hello(&server), &mut out);
    let received = session.receive(&mut [21, 3, 3, 0, 2, 2, 48], &mut out);
    assert_eq!(received.ended, Some(End::PeerAlert(Alert(48))));
}

#[test]
fn closing_during_the_handshake_ends_it_silently() {
    let server = Server::new();
    let mut session = server.acceptor.accept();
    let mut out = Vec::new();
    assert_eq!(session.send(b"x", &mut out), Err(SendError::Handshaking));
    session.hibernate();
    assert_eq!(session.form(), Form::Handshaking);
    session.close(&mut out);
    assert_eq!((session.form(), out.len()), (Form::Ended, 0));
    let received = session.receive(&mut [1, 2, 3], &mut out);
    assert_eq!((received.consumed, received.ended), (3, None));
}

/// A small generator: the same numbers in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

#[test]
fn broken_hellos_and_garbage_neither_panic_nor_grow() {
    let server = Server::new();
    let hello = hello(&server);
    let mut random = Random(0x1234_5678_9abc_def1);
    for round in 0..3_000 {
        let mut bytes = hello.clone();
        match round % 3 {
            0 => {
                bytes = (0..random.below(400))
                    .map(|_| random.next() as u8)
                    .collect()
            }
            1 => {
                for _ in 0..=random.below(3) {
                    let place = random.below(bytes.len());
                    bytes[place] = random.next() as u8;
                }
            }
            _ => {
                bytes.truncate(random.below(hello.len()));
                bytes.extend((0..random.below(100)).map(|_| random.next() as u8));
            }
        }
        let mut session = server.acceptor.accept();
        let mut out = Vec::new();
        for part in bytes.chunks_mut(1 + random.below(300)) {
            let received = session.receive(part, &mut out);
            assert_eq!((received.plaintext, received.consumed), (0, part.len()));
            assert!(received.opened.is_none());
        }
        assert!(out.len() < 4_096, "{}", out.len());
    }
}

#[test]
fn what_a_client_sends_broken_in_the_middle_never_opens_a_session() {
    let server = Server::new();
    let config = Arc::new(server.client(&[]));
    let mut random = Random(0xfeed_f00d_dead_beef);
    for _ in 0..300 {
        let mut pair = Pair::new(&server.acceptor, &config);
        let mut bytes = Vec::new();
        pair.client.write_tls(&mut bytes).expect("memory");
        let out = pair.server_gets(&bytes);
        pair.client_gets(&out);
        bytes.clear();
        while pair.client.wants_write() {
            pair.client.write_tls(&mut bytes).expect("memory");
        }
        // The record of the client's Finished comes after the one byte of change_cipher_spec.
        let place = 6 + 5 + random.below(bytes.len() - 11);
        bytes[place] ^= 1 << random.below(8);
        let out = pair.server_gets(&bytes);
        assert!(pair.opened.is_none());
        assert!(matches!(
            pair.ended,
            Some(End::Failed(Failure::Handshake(_)))
        ));
        pair.client_gets(&out);
        let expected = rustls::AlertDescription::BadRecordMac;
        assert_eq!(
            pair.client_error,
            Some(rustls::Error::AlertReceived(expected))
        );
    }
}
