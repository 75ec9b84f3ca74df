//! MQTT 3.1.1 at QoS 0 or 1 on both sides, with a clean session: CONNECT, SUBSCRIBE, PUBLISH,
//! PUBACK, PINGREQ, DISCONNECT, and the answers to them.

use super::dialect::{Dialect, Fault, Heard, Link, PACKET_BYTES_MAX, Topic};
use crate::fleet::{Full, MessageName, Promises};

const CONNACK: u8 = 2;
const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;
const SUBACK: u8 = 9;
const PINGRESP: u8 = 13;
/// A length has at most four bytes of seven bits each.
const LENGTH_BYTES_MAX: usize = 4;

#[derive(Clone, Copy, Debug)]
pub(super) struct Mqtt {
    /// At least once: each message is acknowledged, by the server and by its recipients.
    pub at_least_once: bool,
    /// How long the server may hear nothing; 0: for ever.
    pub keep_alive_s: u16,
}

impl Mqtt {
    const fn qos(self) -> u8 {
        self.at_least_once as u8
    }
}

impl Dialect for Mqtt {
    fn promises(&self) -> Promises {
        Promises {
            answers: self.at_least_once,
            receipts: false,
            places: false,
            stores: false,
        }
    }

    fn connected(&self, link: &mut Link, out: &mut Vec<u8>) {
        let id = format!("u{}", link.user.0);
        let rest = 12 + id.len();
        put_head(out, 0x10, rest);
        put_text(out, b"MQTT");
        // Level 4 is 3.1.1; flag 2 asks for a clean session.
        out.extend_from_slice(&[4, 2]);
        out.extend_from_slice(&self.keep_alive_s.to_be_bytes());
        put_text(out, id.as_bytes());
    }

    fn publish(
        &self,
        link: &mut Link,
        to: Topic,
        name: MessageName,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Full> {
        let topic = to.to_string();
        let id_bytes = 2 * usize::from(self.qos());
        // 0 is no packet's number.
        let id = link.last_id.checked_add(1).unwrap_or(1);
        if self.at_least_once {
            link.expect_answer(id, name)?;
            link.last_id = id;
        }
        let rest = 2 + topic.len() + id_bytes + body.len();
        put_head(out, PUBLISH << 4 | self.qos() << 1, rest);
        put_text(out, topic.as_bytes());
        if self.at_least_once {
            out.extend_from_slice(&id.to_be_bytes());
        }
        out.extend_from_slice(body);
        Ok(())
    }

    fn heartbeat(&self, _link: &Link, out: &mut Vec<u8>) {
        out.extend_from_slice(&[0xc0, 0]);
    }

    fn goodbye(&self, _link: &Link, out: &mut Vec<u8>) {
        out.extend_from_slice(&[0xe0, 0]);
    }

    fn hear<'a>(
        &self,
        link: &mut Link,
        bytes: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<(usize, Heard<'a>)>, Fault> {
        let Some((first, rest, length)) = packet(bytes)? else {
            return Ok(None);
        };
        let heard = match first >> 4 {
            CONNACK => self.connack(link, rest, out)?,
            SUBACK => suback(link, rest)?,
            PUBLISH => publish(first, rest, out)?,
            PUBACK => {
                let id = u16_at(rest, 0).ok_or(Fault("a PUBACK without a number"))?;
                match link.unanswered.pop_front() {
                    Some((expected, name)) if expected == id => Heard::Accepted(name),
                    _ => return Err(Fault("a PUBACK out of order, or for nothing that was sent")),
                }
            }
            PINGRESP => Heard::Nothing,
            _ => return Err(Fault("a packet that no MQTT server sends to this client")),
        };
        Ok(Some((length, heard)))
    }
}

impl Mqtt {
    fn connack<'a>(
        &self,
        link: &mut Link,
        rest: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Result<Heard<'a>, Fault> {
        match rest {
            [_, 0] if link.step == 0 => {}
            [_, code] if link.step == 0 => {
                return Ok(Heard::Complaint(match code {
                    1 => b"CONNACK 1: not this version of the protocol",
                    2 => b"CONNACK 2: not this client identifier",
                    3 => b"CONNACK 3: the server is unavailable",
                    4 => b"CONNACK 4: not this name and password",
                    5 => b"CONNACK 5: not authorised; does it allow anonymous clients?",
                    _ => b"CONNACK with a code that MQTT 3.1.1 does not know",
                }));
            }
            _ => {
                return Err(Fault(
                    "a CONNACK that nobody asked for, or of a wrong length",
                ));
            }
        }
        link.step = 1;
        let Some(topic) = link.hears else {
            link.step = 2;
            return Ok(Heard::Up);
        };
        let topic = topic.to_string();
        put_head(out, 0x82, 2 + 2 + topic.len() + 1);
        out.extend_from_slice(&1_u16.to_be_bytes());
        put_text(out, topic.as_bytes());
        out.push(self.qos());
        Ok(Heard::Nothing)
    }
}

fn suback<'a>(link: &mut Link, rest: &[u8]) -> Result<Heard<'a>, Fault> {
    match rest {
        [_, _, 0..=2] if link.step == 1 => {
            link.step = 2;
            Ok(Heard::Up)
        }
        [_, _, _] if link.step == 1 => Ok(Heard::Complaint(b"SUBACK: the subscription failed")),
        _ => Err(Fault(
            "a SUBACK that nobody asked for, or of a wrong length",
        )),
    }
}

fn publish<'a>(first: u8, rest: &'a [u8], out: &mut Vec<u8>) -> Result<Heard<'a>, Fault> {
    const SHORT: Fault = Fault("a PUBLISH that is shorter than its own fields");
    let topic_bytes = usize::from(u16_at(rest, 0).ok_or(SHORT)?);
    let mut body_at = 2 + topic_bytes;
    match first >> 1 & 3 {
        0 => {}
        1 => {
            let id = u16_at(rest, body_at).ok_or(SHORT)?;
            body_at += 2;
            out.extend_from_slice(&[0x40, 2]);
            out.extend_from_slice(&id.to_be_bytes());
        }
        _ => return Err(Fault("a PUBLISH above the quality of service asked for")),
    }
    rest.get(body_at..).map(Heard::Message).ok_or(SHORT)
}

/// The first byte of a packet, what follows its length, and the length of the whole.
type Packet<'a> = (u8, &'a [u8], usize);

/// The first packet of `bytes`.
fn packet(bytes: &[u8]) -> Result<Option<Packet<'_>>, Fault> {
    let mut length = 0;
    for at in 0..LENGTH_BYTES_MAX {
        let Some(byte) = bytes.get(1 + at) else {
            return Ok(None);
        };
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            if length > PACKET_BYTES_MAX {
                return Err(Fault("a packet longer than any that was sent"));
            }
            let end = 2 + at + length;
            let whole = bytes.first().zip(bytes.get(2 + at..end));
            return Ok(whole.map(|(first, rest)| (*first, rest, end)));
        }
    }
    Err(Fault("a length of more than four bytes"))
}

fn put_head(out: &mut Vec<u8>, first: u8, mut length: usize) {
    out.push(first);
    while length > 0x7f {
        out.push(length as u8 & 0x7f | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

/// Topics and names are far below 65,536 bytes.
fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::{super::dialect::tests::*, *};

    const QOS1: Mqtt = Mqtt {
        at_least_once: true,
        keep_alive_s: 60,
    };
    const QOS0: Mqtt = Mqtt {
        at_least_once: false,
        keep_alive_s: 0,
    };

    #[test]
    fn a_login_subscribes_once_it_is_let_in() {
        let (mut link, mut out) = (both(), Vec::new());
        QOS1.connected(&mut link, &mut out);
        assert_eq!(out, b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02u5");
        let (heard, out) = heard(&QOS1, &mut link, &[b"\x20\x02\x00\x00"]);
        assert!(heard.is_empty());
        assert_eq!(out, b"\x82\x08\x00\x01\x00\x03u.5\x01");
    }

    #[test]
    fn every_chunking_is_heard_alike() {
        let mut link = both();
        let mut sent = Vec::new();
        QOS1.publish(&mut link, Topic::User(6), NAME, b"abc", &mut sent)
            .expect("room");
        assert_eq!(sent, b"\x32\x0a\x00\x03u.6\x00\x01abc");
        let mut bytes = b"\x20\x02\x00\x00\x90\x03\x00\x01\x01".to_vec();
        bytes.extend_from_slice(b"\x32\x0a\x00\x03u.5\x12\x34abc\x40\x02\x00\x01\xd0\x00");
        // One whose length takes two bytes.
        bytes.extend_from_slice(b"\x30\x85\x02\x00\x03u.5");
        bytes.extend_from_slice(&[b'x'; 256]);
        let (heard, out) = every_chunking(&QOS1, &link, &bytes);
        assert_eq!(heard.len(), 4, "{heard:?}");
        assert_eq!(heard[..2], ["Up", "Message([97, 98, 99])"]);
        assert_eq!(heard[2], format!("Accepted({NAME:?})"));
        assert!(out.ends_with(b"\x40\x02\x12\x34"));
        survives_garbage(&QOS1, &link, &bytes);
    }

    #[test]
    fn at_most_once_asks_for_no_answer() {
        let (mut link, mut out) = (both(), Vec::new());
        QOS0.publish(&mut link, Topic::Group(8), NAME, b"abc", &mut out)
            .expect("room");
        assert_eq!(out, b"\x30\x08\x00\x03g.8abc");
        assert!(link.unanswered.is_empty());
    }

    #[test]
    fn what_breaks_the_protocol_is_a_fault() {
        for bytes in [
            &b"\x40\x02\x00\x07"[..],
            b"\x90\x03\x00\x01\x00",
            b"\x34\x05\x00\x01a\x00\x01",
            b"\x30\x01\x00",
            b"\x30\xff\xff\xff\xff\x01",
            b"\x30\xff\xff\xff\x7f",
            b"\xf0\x00",
            b"\x20\x00",
        ] {
            let (heard, _) = heard(&QOS1, &mut both(), &[bytes]);
            assert!(heard[0].starts_with("fault"), "{bytes:?}: {heard:?}");
        }
        let (heard, _) = heard(&QOS1, &mut both(), &[b"\x20\x02\x00\x05"]);
        assert!(heard[0].starts_with("Complaint"));
    }

    #[test]
    fn packets_are_numbered_from_one_and_come_round_again() {
        let mut link = both();
        link.last_id = u16::MAX;
        QOS1.publish(&mut link, Topic::User(6), NAME, b"", &mut Vec::new())
            .expect("room");
        assert_eq!(link.last_id, 1);
        for _ in 1..super::super::dialect::UNANSWERED_MAX {
            QOS1.publish(&mut link, Topic::User(6), NAME, b"", &mut Vec::new())
                .expect("room");
        }
        let more = QOS1.publish(&mut link, Topic::User(6), NAME, b"", &mut Vec::new());
        assert_eq!(more, Err(Full));
    }
}
