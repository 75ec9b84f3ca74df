//! Promise 5: a device's position in the store never passes what the device has acknowledged; a
//! receipt, and a mark in the store, claims no more than some device of its user has said.

use super::{Checker, device_name};
use crate::{
    device::{Device, Shown},
    store::Stage,
};
use portico_backend::messages::Mark;
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, Seq, UserId};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// What devices have said of themselves.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// The greatest position that a device ever claimed.
    positions: FxHashMap<(UserId, DeviceId), Seq>,
    /// Shown, and not acknowledged: place in the inbox, author, place in the conversation.
    open: FxHashMap<usize, VecDeque<(Seq, UserId, ConvSeq)>>,
    /// By reader and author: the greatest place that was acknowledged.
    delivered: FxHashMap<(UserId, UserId), ConvSeq>,
    /// By reader and author: the greatest place that was read.
    read: FxHashMap<(UserId, UserId), ConvSeq>,
}

impl Marks {
    pub(super) fn shown(&mut self, at: usize, shown: &Shown, reader: UserId) {
        if shown.key.0 != reader {
            let open = self.open.entry(at).or_default();
            open.push_back((shown.seq, shown.key.0, shown.conv_seq));
        }
    }

    pub(super) fn acknowledged(&mut self, at: usize, device: &Device, up_to: Seq) {
        let position = self.positions.entry((device.user, device.device));
        let position = position.or_default();
        *position = up_to.max(*position);
        let Some(open) = self.open.get_mut(&at) else {
            return;
        };
        // After a reconnect the numbers begin again, below those that stand here.
        open.retain(|&(seq, author, at)| {
            if seq <= up_to {
                let delivered = self.delivered.entry((device.user, author)).or_default();
                *delivered = at.max(*delivered);
            }
            seq > up_to
        });
    }

    pub(super) fn read(&mut self, reader: UserId, author: UserId, up_to: ConvSeq) {
        let read = self.read.entry((reader, author)).or_default();
        *read = up_to.max(*read);
    }

    fn delivered_to(&self, reader: UserId, author: UserId) -> ConvSeq {
        let delivered = self.delivered.get(&(reader, author));
        delivered.copied().unwrap_or_default()
    }

    fn read_by(&self, reader: UserId, author: UserId) -> ConvSeq {
        self.read
            .get(&(reader, author))
            .copied()
            .unwrap_or_default()
    }
}

impl Checker {
    pub(super) fn cursor_written(&mut self, user: UserId, device: DeviceId, seq: Seq) {
        let known = self.marks.positions.get(&(user, device));
        let known = known.copied().unwrap_or_default();
        if seq > known {
            let name = device_name(user, device);
            let what = format!("{name} has acknowledged {known}, and {seq} is written");
            self.fail(5, what, &[name]);
        }
    }

    pub(super) fn marks_written(&mut self, mark: &Mark) {
        let Some(author) = mark.conv.peer_of(mark.user) else {
            return;
        };
        self.claimed(mark.user, author, false, mark.delivered);
        self.claimed(mark.user, author, true, mark.read);
    }

    /// A client is told of a mark.
    pub(crate) fn receipt(
        &mut self,
        device: &Device,
        peer: UserId,
        read: bool,
        own: bool,
        up_to: ConvSeq,
    ) {
        if own {
            self.claimed(device.user, peer, read, up_to);
        } else {
            self.claimed(peer, device.user, read, up_to);
        }
    }

    fn claimed(&mut self, reader: UserId, author: UserId, read: bool, up_to: ConvSeq) {
        let (known, verb) = if read {
            (self.marks.read_by(reader, author), "read")
        } else {
            (self.marks.delivered_to(reader, author), "received")
        };
        if up_to > known {
            let what = format!(
                "user {reader} has {verb} up to {known} of user {author}'s messages; {up_to} is claimed"
            );
            let conv = ConvId::direct(reader, author);
            let number = self.places.get(&(conv, up_to));
            let about: Vec<String> = number
                .map(|number| format!("m{number}"))
                .into_iter()
                .collect();
            self.fail(5, what, &about);
        }
    }

    /// At the end: what was acknowledged and read is in the store.
    pub(crate) fn check_marks(&mut self, devices: &[Device], stage: &Stage) {
        for device in devices.iter().filter(|device| !device.buried) {
            let mut due = FxHashMap::<UserId, (ConvSeq, ConvSeq)>::default();
            for shown in &device.disk.known {
                if shown.key.0 != device.user {
                    let (delivered, _) = due.entry(shown.key.0).or_default();
                    *delivered = shown.conv_seq.max(*delivered);
                }
            }
            for (author, up_to) in &device.disk.reads {
                let (_, read) = due.entry(*author).or_default();
                *read = (*up_to).max(*read);
            }
            let mut due: Vec<_> = due.into_iter().collect();
            due.sort_unstable();
            for (author, (delivered, read)) in due {
                let marks = stage.marks(ConvId::direct(device.user, author));
                let mark = marks.iter().find(|mark| mark.user == device.user);
                let found = mark.map_or_else(Default::default, |mark| (mark.delivered, mark.read));
                if found.0 < delivered || found.1 < read {
                    let name = device.name();
                    let what = format!(
                        "{name} has received up to {delivered} and read up to {read} of user \
                         {author}'s messages; the store has {} and {}",
                        found.0, found.1
                    );
                    return self.fail(5, what, &[name]);
                }
            }
        }
    }
}
