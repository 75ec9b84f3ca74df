//! The floor's language (`portico-loadgen floor`), which the floor itself does not speak: it reads
//! who a connection is, answers one byte, and copies.
//!
//! ```text
//! 0 magic:u32  4 role:u8  5 rsv:3xu8  8 topic:u64                     a greeting, 16 bytes
//! 0 len:u32  4 body                                                   a message, between clients
//! ```
//! Little endian. A connection hears one topic or speaks to one, so a user who does both has two,
//! and whatever is sent to another topic is refused.

use super::dialect::{Dialect, Fault, Heard, Link, PACKET_BYTES_MAX, Topic};
use crate::{
    fleet::{Full, MessageName, Promises},
    floor::{GREETED, Greeting, Role},
};

#[derive(Clone, Copy, Debug)]
pub(super) struct Relay;

impl Dialect for Relay {
    fn promises(&self) -> Promises {
        Promises {
            answers: false,
            receipts: false,
            places: false,
            stores: false,
        }
    }

    fn splits(&self) -> bool {
        true
    }

    fn connected(&self, link: &mut Link, out: &mut Vec<u8>) {
        let (role, topic) = match (link.hears, link.speaks_to) {
            (Some(topic), _) => (Role::Receiver, topic),
            (None, Some(topic)) => (Role::Sender, topic),
            (None, None) => (Role::Receiver, Topic::User(link.user.0)),
        };
        // A group and a user may bear the same number; nobody writes to both.
        let topic = match topic {
            Topic::User(id) | Topic::Group(id) => id,
        };
        out.extend_from_slice(&Greeting { role, topic }.encode());
    }

    fn publish(
        &self,
        link: &mut Link,
        to: Topic,
        _name: MessageName,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Full> {
        if link.speaks_to != Some(to) {
            return Err(Full);
        }
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(body);
        Ok(())
    }

    fn hear<'a>(
        &self,
        link: &mut Link,
        bytes: &'a [u8],
        _out: &mut Vec<u8>,
    ) -> Result<Option<(usize, Heard<'a>)>, Fault> {
        if link.step == 0 {
            link.step = 1;
            return match bytes.first() {
                Some(&GREETED) => Ok(Some((1, Heard::Up))),
                _ => Err(Fault("not the answer of a floor")),
            };
        }
        let Some(length) = bytes.first_chunk::<4>() else {
            return Ok(None);
        };
        let end = (u32::from_le_bytes(*length) as usize).saturating_add(4);
        if end > PACKET_BYTES_MAX {
            return Err(Fault("a message longer than any that was sent"));
        }
        Ok(bytes.get(4..end).map(|body| (end, Heard::Message(body))))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::dialect::tests::*, *};

    #[test]
    fn every_chunking_is_heard_alike() {
        let mut stream = vec![GREETED];
        for body in [&b"abc"[..], b"", b"defg"] {
            Relay
                .publish(&mut both(), Topic::User(6), NAME, body, &mut stream)
                .expect("room");
        }
        let (heard, _) = every_chunking(&Relay, &both(), &stream);
        let expected = [
            "Up",
            "Message([97, 98, 99])",
            "Message([])",
            "Message([100, 101, 102, 103])",
        ];
        assert_eq!(heard, expected);
        survives_garbage(&Relay, &both(), &stream);
    }

    #[test]
    fn nonsense_is_a_fault_and_another_recipient_is_refused() {
        for bytes in [&b"-"[..], b"+\xff\xff\xff\xff"] {
            let (heard, _) = heard(&Relay, &mut both(), &[bytes]);
            let last = heard.last().expect("something");
            assert!(last.starts_with("fault"), "{heard:?}");
        }
        let refused = Relay.publish(&mut both(), Topic::User(7), NAME, b"", &mut Vec::new());
        assert_eq!(refused, Err(Full));
    }
}
