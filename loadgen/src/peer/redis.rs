//! Redis publish and subscribe over RESP2. A connection that has subscribed may not publish, so a
//! user who does both has two: one that hears and one that speaks. Each PUBLISH is answered with the
//! number of its receivers, in order.

use super::dialect::{Dialect, Fault, Heard, Link, PACKET_BYTES_MAX, Topic, decimal, line};
use crate::fleet::{Full, MessageName, Promises};
use std::io::Write;

const LINE_BYTES_MAX: usize = 4_096;
/// The longest array that publish and subscribe know: kind, topic, body.
const ITEMS_MAX: usize = 3;

#[derive(Clone, Copy, Debug)]
pub(super) struct Redis;

impl Dialect for Redis {
    fn promises(&self) -> Promises {
        Promises {
            answers: true,
            receipts: false,
            places: false,
            stores: false,
        }
    }

    fn splits(&self) -> bool {
        true
    }

    fn connected(&self, link: &mut Link, out: &mut Vec<u8>) {
        match link.hears {
            Some(topic) => put_command(out, &[b"SUBSCRIBE", topic.to_string().as_bytes()]),
            None => put_command(out, &[b"PING"]),
        }
    }

    fn publish(
        &self,
        link: &mut Link,
        to: Topic,
        name: MessageName,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Full> {
        link.expect_answer(0, name)?;
        put_command(out, &[b"PUBLISH", to.to_string().as_bytes(), body]);
        Ok(())
    }

    fn heartbeat(&self, _link: &Link, out: &mut Vec<u8>) {
        put_command(out, &[b"PING"]);
    }

    fn hear<'a>(
        &self,
        link: &mut Link,
        bytes: &'a [u8],
        _out: &mut Vec<u8>,
    ) -> Result<Option<(usize, Heard<'a>)>, Fault> {
        let Some((value, mut length)) = value(bytes)? else {
            return Ok(None);
        };
        let heard = match value {
            Value::Error(text) => Heard::Complaint(text),
            Value::Simple(b"PONG") => up_once(link),
            Value::Number(_) => {
                let answered = link.unanswered.pop_front();
                let (_, name) = answered.ok_or(Fault("an answer to nothing that was sent"))?;
                Heard::Accepted(name)
            }
            Value::Array(count) => {
                let mut items = [Value::Bulk(b""); ITEMS_MAX];
                let items = items.get_mut(..count);
                let items =
                    items.ok_or(Fault("an array longer than publish and subscribe know"))?;
                for item in &mut *items {
                    let rest = bytes.get(length..).unwrap_or_default();
                    let Some((next, used)) = self::value(rest)? else {
                        return Ok(None);
                    };
                    *item = next;
                    length += used;
                }
                pushed(link, items)?
            }
            Value::Simple(_) | Value::Bulk(_) => {
                return Err(Fault("an answer that no command of ours has"));
            }
        };
        Ok(Some((length, heard)))
    }
}

fn up_once<'a>(link: &mut Link) -> Heard<'a> {
    match std::mem::replace(&mut link.step, 1) {
        0 => Heard::Up,
        _ => Heard::Nothing,
    }
}

fn pushed<'a>(link: &mut Link, items: &[Value<'a>]) -> Result<Heard<'a>, Fault> {
    match items {
        [Value::Bulk(b"message"), Value::Bulk(_), Value::Bulk(body)] => Ok(Heard::Message(body)),
        [Value::Bulk(b"subscribe"), Value::Bulk(_), Value::Number(_)] => Ok(up_once(link)),
        [Value::Bulk(b"pong"), Value::Bulk(_)] => Ok(Heard::Nothing),
        _ => Err(Fault("a push that no subscription of ours has")),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value<'a> {
    Simple(&'a [u8]),
    Error(&'a [u8]),
    Number(usize),
    Bulk(&'a [u8]),
    /// So many values follow.
    Array(usize),
}

/// The first value of `bytes` and its length; of an array only the head.
fn value(bytes: &[u8]) -> Result<Option<(Value<'_>, usize)>, Fault> {
    let Some((text, length)) = line(bytes, LINE_BYTES_MAX)? else {
        return Ok(None);
    };
    let Some((kind, text)) = text.split_first() else {
        return Err(Fault("an empty line"));
    };
    let number = || decimal(text).ok_or(Fault("a number that is none, or below 0"));
    let value = match kind {
        b'+' => Value::Simple(text),
        b'-' => Value::Error(text),
        b':' => Value::Number(number()?),
        b'*' => Value::Array(number()?),
        b'$' => {
            let end = length + number()?;
            if end > PACKET_BYTES_MAX {
                return Err(Fault("a value longer than any that was sent"));
            }
            return match (bytes.get(length..end), bytes.get(end..end + 2)) {
                (Some(body), Some(b"\r\n")) => Ok(Some((Value::Bulk(body), end + 2))),
                (Some(_), Some(_)) => Err(Fault("a value that does not end where it said")),
                _ => Ok(None),
            };
        }
        _ => return Err(Fault("a type that RESP2 does not know")),
    };
    Ok(Some((value, length)))
}

fn put_command(out: &mut Vec<u8>, words: &[&[u8]]) {
    // A vector takes everything.
    let _ = write!(out, "*{}\r\n", words.len());
    for word in words {
        let _ = write!(out, "${}\r\n", word.len());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::{super::dialect::tests::*, *};
    use portico_wire::ids::UserId;

    fn ear() -> Link {
        Link::new(UserId(5), Some(Topic::User(5)), None)
    }

    fn voice() -> Link {
        Link::new(UserId(5), None, Some(Topic::User(6)))
    }

    #[test]
    fn every_chunking_of_pushes_is_heard_alike() {
        let stream = b"*3\r\n$9\r\nsubscribe\r\n$3\r\nu.5\r\n:1\r\n\
                       *3\r\n$7\r\nmessage\r\n$3\r\nu.5\r\n$4\r\na\r\nb\r\n\
                       *2\r\n$4\r\npong\r\n$0\r\n\r\n-ERR max number of clients reached\r\n";
        let (heard, out) = every_chunking(&Redis, &ear(), stream);
        assert_eq!(heard[..2], ["Up", "Message([97, 13, 10, 98])"]);
        assert!(heard[2].starts_with("Complaint"));
        assert!(out.is_empty());
        survives_garbage(&Redis, &ear(), stream);
    }

    #[test]
    fn every_chunking_of_answers_is_heard_alike() {
        let (mut link, mut out) = (voice(), Vec::new());
        Redis.connected(&mut link, &mut out);
        Redis
            .publish(&mut link, Topic::User(6), NAME, b"abc", &mut out)
            .expect("room");
        assert_eq!(
            out,
            b"*1\r\n$4\r\nPING\r\n*3\r\n$7\r\nPUBLISH\r\n$3\r\nu.6\r\n$3\r\nabc\r\n"
        );
        let stream = b"+PONG\r\n:1\r\n+PONG\r\n";
        let (heard, _) = every_chunking(&Redis, &link, stream);
        assert_eq!(heard, ["Up".to_owned(), format!("Accepted({NAME:?})")]);
        survives_garbage(&Redis, &link, stream);
    }

    #[test]
    fn what_breaks_the_protocol_is_a_fault() {
        for bytes in [
            &b":1\r\n"[..],
            b"+OK\r\n",
            b"$1\r\na\r\n",
            b"*9\r\n",
            b"*1\r\n$1\r\na\r\n",
            b":x\r\n",
            b"*3\r\n$9999999\r\n",
            b"*3\r\n$1\r\nabc",
            b"\r\n",
            b"!\r\n",
        ] {
            let (heard, _) = heard(&Redis, &mut ear(), &[bytes]);
            assert!(heard[0].starts_with("fault"), "{bytes:?}: {heard:?}");
        }
    }
}
