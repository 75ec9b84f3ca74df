//! NATS core: INFO, CONNECT, SUB, PUB, MSG, PING and PONG. Nothing is answered but PING, so a
//! message counts as accepted when it is written.

use super::dialect::{Dialect, Fault, Heard, Link, PACKET_BYTES_MAX, Topic, decimal, line};
use crate::fleet::{Full, MessageName, Promises};
use std::io::Write;

/// INFO names a whole cluster; other lines are short.
const LINE_BYTES_MAX: usize = 65_536;

#[derive(Clone, Copy, Debug)]
pub(super) struct Nats;

impl Dialect for Nats {
    fn promises(&self) -> Promises {
        Promises {
            answers: false,
            receipts: false,
            places: false,
            stores: false,
        }
    }

    /// The server speaks first.
    fn connected(&self, _link: &mut Link, _out: &mut Vec<u8>) {}

    fn publish(
        &self,
        _link: &mut Link,
        to: Topic,
        _name: MessageName,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Full> {
        put(out, format_args!("PUB {to} {}\r\n", body.len()));
        out.extend_from_slice(body);
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    fn heartbeat(&self, _link: &Link, out: &mut Vec<u8>) {
        out.extend_from_slice(b"PING\r\n");
    }

    fn hear<'a>(
        &self,
        link: &mut Link,
        bytes: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<(usize, Heard<'a>)>, Fault> {
        let Some((text, length)) = line(bytes, LINE_BYTES_MAX)? else {
            return Ok(None);
        };
        if let Some(fields) = text.strip_prefix(b"MSG ") {
            return message(fields, bytes, length);
        }
        let heard = if text.starts_with(b"INFO ") {
            greet(link, out);
            Heard::Nothing
        } else if text == b"PING" {
            out.extend_from_slice(b"PONG\r\n");
            Heard::Nothing
        } else if text == b"PONG" {
            match link.step {
                0 => return Err(Fault("a PONG before INFO")),
                1 => {
                    link.step = 2;
                    Heard::Up
                }
                _ => Heard::Nothing,
            }
        } else if text == b"+OK" {
            Heard::Nothing
        } else if let Some(complaint) = text.strip_prefix(b"-ERR ") {
            Heard::Complaint(complaint)
        } else {
            return Err(Fault("a line that no NATS server sends"));
        };
        Ok(Some((length, heard)))
    }
}

/// All of the login in one write; the PONG says that the subscription stands. Later INFOs are news
/// about a cluster.
fn greet(link: &mut Link, out: &mut Vec<u8>) {
    if link.step > 0 {
        return;
    }
    link.step = 1;
    out.extend_from_slice(b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\n");
    if let Some(topic) = link.hears {
        put(out, format_args!("SUB {topic} 1\r\n"));
    }
    out.extend_from_slice(b"PING\r\n");
}

/// `MSG subject sid [reply-to] bytes`, and the body on a line of its own.
fn message<'a>(
    fields: &[u8],
    bytes: &'a [u8],
    length: usize,
) -> Result<Option<(usize, Heard<'a>)>, Fault> {
    let mut fields = fields.split(|byte| *byte == b' ');
    let body_bytes = match fields.clone().count() {
        3 | 4 => fields.next_back().and_then(decimal),
        _ => None,
    };
    let body_bytes = body_bytes.filter(|body_bytes| *body_bytes <= PACKET_BYTES_MAX);
    let body_bytes = body_bytes.ok_or(Fault("a MSG without a length, or with one beyond any"))?;
    let end = length + body_bytes;
    let Some(body) = bytes.get(length..end) else {
        return Ok(None);
    };
    match bytes.get(end..end + 2) {
        None => Ok(None),
        Some(b"\r\n") => Ok(Some((end + 2, Heard::Message(body)))),
        Some(_) => Err(Fault("a MSG that does not end where it said")),
    }
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // A vector takes everything.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::{super::dialect::tests::*, *};

    const STREAM: &[u8] = b"INFO {\"server_id\":\"x\"}\r\nPONG\r\nMSG u.5 1 5\r\na\r\nbc\r\n\
                            PING\r\nMSG u.5 1 reply.to 0\r\n\r\n+OK\r\n-ERR 'Slow Consumer'\r\n";

    #[test]
    fn every_chunking_is_heard_alike() {
        let (heard, out) = every_chunking(&Nats, &both(), STREAM);
        assert_eq!(heard[..2], ["Up", "Message([97, 13, 10, 98, 99])"]);
        assert_eq!(heard[2], "Message([])");
        assert!(heard[3].starts_with("Complaint"));
        let out = String::from_utf8(out).expect("text");
        assert_eq!(
            out,
            "CONNECT {\"verbose\":false,\"pedantic\":false}\r\nSUB u.5 1\r\nPING\r\nPONG\r\n"
        );
        survives_garbage(&Nats, &both(), STREAM);
    }

    #[test]
    fn a_message_is_written() {
        let mut out = Vec::new();
        Nats.publish(&mut both(), Topic::Group(3), NAME, b"abc", &mut out)
            .expect("room");
        assert_eq!(out, b"PUB g.3 3\r\nabc\r\n");
    }

    #[test]
    fn what_breaks_the_protocol_is_a_fault() {
        for bytes in [
            &b"HELLO\r\n"[..],
            b"PONG\r\n",
            b"MSG u.5 1\r\n",
            b"MSG u.5 1 9999999\r\n",
            b"MSG u.5 1 1\r\nab\r\n",
            &[b'x'; LINE_BYTES_MAX],
        ] {
            let (heard, _) = heard(&Nats, &mut both(), &[bytes]);
            assert!(heard[0].starts_with("fault"), "{heard:?}");
        }
    }
}
