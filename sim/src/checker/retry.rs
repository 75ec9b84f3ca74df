//! Promise 4: a message is accepted once, however often it is said; every SENT names the same place,
//! and what is named is in the store.

use super::Checker;
use crate::device::{Device, Key};
use portico_wire::ids::{ConvId, ConvSeq, MsgId};

impl Checker {
    /// The store has a message.
    pub(super) fn stored(&mut self, key: Key, conv: ConvId, at: ConvSeq) {
        let Some(number) = self.by_key.get(&key).copied() else {
            let what = format!("{key:?} is stored, and nobody said it");
            return self.fail::<&str>(3, what, &[]);
        };
        self.placed(number, conv, at);
        let letter = &mut self.letters[number];
        match letter.stored {
            Some(first) if first != at => {
                let what = format!("m{number} is accepted twice: at {first} and at {at}");
                self.fail(4, what, &[format!("m{number}")]);
            }
            _ => letter.stored = Some(at),
        }
    }

    /// A client gets SENT.
    pub(crate) fn sent(&mut self, device: &Device, msg_id: MsgId, at: ConvSeq) {
        let name = device.name();
        let Some(number) = self.number_of(device, msg_id) else {
            let what = format!("{name} gets SENT for {msg_id:?}, which it never said");
            return self.fail(4, what, &[name]);
        };
        let letter = &mut self.letters[number];
        let about = [format!("m{number}"), name];
        if letter.ephemeral {
            self.whispers_confirmed.push(number);
            return;
        }
        let (first, stored) = (*letter.sent.get_or_insert(at), letter.stored);
        if first != at {
            let what = format!("m{number} was at {first}, and a repetition hears {at}");
            return self.fail(4, what, &about);
        }
        if stored != Some(at) {
            let what = format!("m{number} got SENT at {at}; the store has {stored:?}");
            self.fail(1, what, &about);
        }
    }
}
