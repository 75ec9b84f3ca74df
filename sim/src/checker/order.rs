//! Promise 2: a message has one place in its conversation, the same for everybody, and nobody else
//! has that place; numbers ascend; what a device says to somebody stands in the order of saying.

use super::{Checker, Letter};
use crate::device::Device;
use portico_wire::ids::{ConvId, ConvSeq, Seq, UserId};
use rustc_hash::FxHashMap;

impl Checker {
    /// Somebody has learned where a message stands.
    pub(super) fn placed(&mut self, number: usize, conv: ConvId, at: ConvSeq) {
        let taken = *self.places.entry((conv, at)).or_insert(number);
        if taken != number {
            let what = format!("m{taken} and m{number} both stand at {at}");
            self.fail(2, what, &[format!("m{taken}"), format!("m{number}")]);
        }
    }

    /// A shard gives an inbox a number.
    pub(super) fn numbered(&mut self, lane: u16, user: UserId, seq: Seq) {
        if !self.numbers.insert((user, seq)) {
            let what = format!("the inbox of user {user} has the number {seq} twice");
            self.fail::<&str>(2, what, &[]);
        }
        let last = self.lanes.entry(lane).or_default();
        if seq <= *last {
            let what = format!("shard {lane} asks for number {seq} after {last}");
            self.fail::<&str>(2, what, &[]);
        }
        *self.lanes.entry(lane).or_default() = seq;
    }

    /// At the end: messages that were accepted at the first attempt stand in the order of saying,
    /// and came in this order. (A later attempt takes a later place, if the first came to nothing. The
    /// sender's other devices get a copy once the message is stored: where a store answers out of
    /// order, `reorder`, so do they.)
    pub(crate) fn check_order(&mut self, devices: &[Device], reorder: bool) {
        let mut latest = FxHashMap::<(usize, UserId), (ConvSeq, usize)>::default();
        let mut broken = None;
        for (number, letter) in self.letters.iter().enumerate() {
            let Some(at) = letter.sent.filter(|_| is_plain(letter)) else {
                continue;
            };
            let last = latest.insert((letter.from, letter.to), (at, number));
            if let Some((before, earlier)) = last
                && before > at
            {
                broken.get_or_insert((earlier, number, devices[letter.from].name()));
            }
        }
        if let Some((earlier, number, name)) = broken {
            let what = format!("{name} said m{earlier} before m{number}; they stand the other way");
            let about = [format!("m{earlier}"), format!("m{number}")];
            return self.fail(2, what, &about);
        }
        for device in devices {
            self.check_arrival(device, reorder);
        }
    }

    fn check_arrival(&mut self, device: &Device, reorder: bool) {
        let mut latest = FxHashMap::<(usize, UserId), (ConvSeq, usize)>::default();
        for shown in &device.disk.known {
            let Some(number) = self.by_key.get(&shown.key).copied() else {
                continue;
            };
            let letter = &self.letters[number];
            let is_copy = letter.to != device.user;
            if letter.sent.is_none() || !is_plain(letter) || (is_copy && reorder) {
                continue;
            }
            let last = latest.insert((letter.from, letter.to), (shown.conv_seq, number));
            if let Some((before, earlier)) = last
                && before > shown.conv_seq
            {
                let name = device.name();
                let what = format!("{name} got m{earlier} before m{number}, which stands first");
                let about = [name, format!("m{earlier}"), format!("m{number}")];
                return self.fail(2, what, &about);
            }
        }
    }
}

const fn is_plain(letter: &Letter) -> bool {
    letter.attempts == 1 && !letter.ephemeral
}
