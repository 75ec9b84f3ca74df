//! Promise 1: what got SENT is in the recipient's inbox, and with every device of both users that
//! lives.

use super::{Checker, Letter};
use crate::{device::Device, store::Stage};
use rustc_hash::{FxHashMap, FxHashSet};

impl Checker {
    /// The first message that a living device does not have yet, and the device.
    pub(crate) fn missing(&self, devices: &[Device]) -> Option<(usize, usize)> {
        for (number, letter) in self.letters.iter().enumerate() {
            if letter.ephemeral || letter.sent.is_none() {
                continue;
            }
            let lacks = |at: &usize| {
                let device = &devices[*at];
                is_due(letter, *at, device) && !device.has(&letter.key)
            };
            if let Some(at) = (0..devices.len()).find(lacks) {
                return Some((number, at));
            }
        }
        None
    }

    /// At the end: what is missing is lost.
    pub(crate) fn check_inboxes(&mut self, devices: &[Device], stage: &Stage) {
        if let Some((number, at)) = self.missing(devices) {
            let name = devices[at].name();
            let what = format!("m{number} got SENT, and {name} never got it");
            return self.fail(1, what, &[format!("m{number}"), name]);
        }
        let mut inboxes = FxHashMap::default();
        for number in 0..self.letters.len() {
            let letter = &self.letters[number];
            if letter.ephemeral || letter.sent.is_none() {
                continue;
            }
            let inbox = inboxes.entry(letter.to).or_insert_with(|| {
                let items = stage.inbox(letter.to).into_iter();
                let key = |item: portico_backend::messages::Item| {
                    (item.entry.sender, item.entry.device, item.entry.msg_id)
                };
                items.map(key).collect::<FxHashSet<_>>()
            });
            if !inbox.contains(&letter.key) {
                let what = format!(
                    "m{number} got SENT, and is not in the inbox of user {}",
                    letter.to
                );
                return self.fail(1, what, &[format!("m{number}")]);
            }
        }
    }
}

fn is_due(letter: &Letter, at: usize, device: &Device) -> bool {
    let lives = device.launched && !device.buried;
    let named = device.user == letter.to || letter.copies.contains(&at);
    lives && named && at != letter.from
}
