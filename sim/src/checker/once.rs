//! Promise 3: nothing is shown that was not said, as it was said, to somebody else, or twice.
//! (Twice is also looked after by the device itself, which knows what it has stored.)

use super::Checker;
use crate::device::{Device, Key, Shown};
use portico_backend::messages::InboxRef;
use portico_wire::ids::UserId;

impl Checker {
    /// An app shows a message.
    pub(crate) fn shown(
        &mut self,
        at: usize,
        device: &Device,
        shown: &Shown,
        body: u64,
        ephemeral: bool,
    ) {
        let name = device.name();
        let Some(number) = self.by_key.get(&shown.key).copied() else {
            let what = format!("{name} shows {:?}, which nobody said", shown.key);
            return self.fail(3, what, &[name]);
        };
        let letter = &self.letters[number];
        let about = [format!("m{number}"), name.clone()];
        let own = letter.key.0 == device.user;
        if letter.to != device.user && !own {
            let what = format!("{name} shows m{number}, which is for user {}", letter.to);
            return self.fail(3, what, &about);
        }
        if letter.from == at {
            let what = format!("{name} is shown m{number}, which it said itself");
            return self.fail(3, what, &about);
        }
        let peer = if own { letter.to } else { letter.key.0 };
        if (letter.body, letter.ephemeral, peer) != (body, ephemeral, shown.peer) {
            let what = format!("{name} shows m{number} otherwise than it was said");
            return self.fail(3, what, &about);
        }
        if ephemeral {
            if !self.whispers.insert((at, number)) {
                let what = format!("{name} shows m{number} twice, which was said once");
                self.fail(3, what, &about);
            }
            return;
        }
        let (conv, sent, stored) = (letter.conv(), letter.sent, letter.stored);
        self.placed(number, conv, shown.conv_seq);
        if stored != Some(shown.conv_seq) || sent.is_some_and(|sent| sent != shown.conv_seq) {
            let what = format!(
                "{name} shows m{number} at {}; the store has {stored:?}, its sender {sent:?}",
                shown.conv_seq
            );
            return self.fail(2, what, &about);
        }
        self.marks.shown(at, shown, device.user);
    }

    /// A reference is written to somebody's inbox.
    pub(super) fn addressed(&mut self, key: &Key, user: UserId) {
        let Some(number) = self.by_key.get(key).copied() else {
            return;
        };
        let letter = &self.letters[number];
        if letter.to != user && letter.key.0 != user {
            let what = format!("m{number} is written to the inbox of user {user}");
            self.fail(3, what, &[format!("m{number}")]);
        }
    }

    pub(super) fn referred(&mut self, to: &InboxRef) {
        match self.places.get(&(to.conv, to.conv_seq)).copied() {
            Some(number) => {
                let key = self.letters[number].key;
                self.addressed(&key, to.user);
            }
            None => {
                let what = format!("a reference to {:?} at {}: no entry", to.conv, to.conv_seq);
                self.fail::<&str>(1, what, &[]);
            }
        }
    }
}
