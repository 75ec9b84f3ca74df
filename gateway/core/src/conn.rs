//! One connection: a slot in the shard's table, and what it borrows from the pool while it is busy.

use crate::rates::ConnRates;
use portico_wire::{
    ids::{ConvSeq, DeviceId, GroupId, Seq, UserId},
    limits::MALFORMED_PER_MINUTE_MAX,
    message::ClientState,
};
use std::collections::VecDeque;

/// Names a connection of one shard: the driver's index, and a generation that changes at each use
/// of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    pub index: u32,
    pub generation: u32,
}

/// End of a user's chain of connections.
pub(crate) const NO_CONN: u32 = u32::MAX;

/// How far a connection has come. Deadlines and legal operations follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The slot is not in use.
    Free,
    /// HELLO has not come.
    Greeting,
    /// The authenticator is asked.
    Authenticating,
    /// The driver hands it to another shard.
    Moving,
    /// WELCOME is out; the store is asked for the device's cursor.
    Loading,
    /// Everything is open.
    Open,
}

/// How an open connection gets its inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// It has everything: new entries are pushed.
    Live,
    /// Entries wait in the store until the client has taken what it has.
    Behind,
    /// As many pages are being read as may be; its own has a place in line.
    Waiting,
    /// A page is being read.
    Reading,
    /// A page could not be read; the next attempt has its time.
    Paused,
}

/// A sequenced frame that the client has not acknowledged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    pub(crate) seq: Seq,
    pub(crate) conv_seq: ConvSeq,
    /// Where a delivered receipt is due; `None` for one's own message.
    pub(crate) receipt_to: Option<Due>,
}

/// To whom it is told that something was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// The other user of a direct conversation.
    To(UserId),
    /// The members of a group.
    In(GroupId),
}

const _: () = assert!(
    size_of::<InFlight>() <= 32,
    "a window holds hundreds of these"
);

/// What a connection has only while something is on its way to it or not acknowledged. It comes from
/// the pool, and goes back as soon as it is at rest.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Bytes for the next send.
    pub(crate) out: Vec<u8>,
    /// Sent and not acknowledged.
    pub(crate) window: VecDeque<InFlight>,
    /// Bytes the driver has taken and the kernel has not.
    pub(crate) sending: u32,
    /// Second in which the kernel last took bytes, or the queue stopped being empty.
    pub(crate) progress_s: u32,
    /// Bytes at the start of `out` that end a frame which the client has begun to get; and the same
    /// of what the driver has.
    pub(crate) begun: u32,
    pub(crate) begun_sending: u32,
    /// It takes nothing: what it had queued was asked back, and nothing is pushed.
    pub(crate) stalled: bool,
}

impl Traffic {
    pub(crate) fn pending_bytes(&self) -> usize {
        self.out.len() + self.sending as usize
    }

    pub(crate) fn is_at_rest(&self) -> bool {
        self.pending_bytes() == 0 && self.window.is_empty()
    }
}

/// Malformed bodies in the present minute, in the lower half, and the end of that minute's number.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Malformed(u8);

const _: () = assert!(MALFORMED_PER_MINUTE_MAX < 16, "counted in four bits");

impl Malformed {
    /// Counts one. True if that was one too many.
    pub(crate) fn note(&mut self, minute: u32) -> bool {
        let minute = (minute as u8) << 4;
        if self.0 & 0xf0 != minute {
            self.0 = minute;
        }
        self.0 += 1;
        u32::from(self.0 & 0x0f) >= MALFORMED_PER_MINUTE_MAX
    }
}

/// How far the replay after a login has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Replay {
    /// The client says that it has more than the store knows of. That is written once what lies between
    /// has been looked at: before, its senders might never learn that it was delivered.
    Claims,
    #[default]
    Runs,
    /// SYNCED is out.
    Done,
}

/// Facts that do not exclude each other.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Notes {
    /// `Effect::Output` is out and not yet followed by `take_output`.
    pub(crate) output_told: bool,
    pub(crate) replay: Replay,
    /// The user has other devices: they get copies of what this one sends.
    pub(crate) siblings: bool,
    /// As many of its messages are open as may be, and it does not ask for answers that would tell
    /// it, or does not heed them: nothing is read until half of them are settled.
    pub(crate) paused: bool,
    /// The rates of clients hold for it: its source is known, and not exempt.
    pub(crate) limited: bool,
}

#[derive(Debug)]
pub(crate) struct Conn {
    /// Absent while nothing goes on.
    pub(crate) traffic: Option<Box<Traffic>>,
    pub(crate) user: UserId,
    /// Everything up to here went to the client or is nothing for it.
    pub(crate) sent: Seq,
    /// The newest entry of the inbox that became visible, or may exist, since this connection opened.
    pub(crate) head: Seq,
    /// The device has everything up to here, by its own word. (While its place is looked up: what it
    /// claimed in HELLO.)
    pub(crate) acked: Seq,
    pub(crate) generation: u32,
    /// Next connection of the same user.
    pub(crate) next_of_user: u32,
    /// Second of the last frame.
    pub(crate) active_s: u32,
    /// Entries replayed before SYNCED.
    pub(crate) replayed: u32,
    pub(crate) device: DeviceId,
    pub(crate) receive_max: u16,
    /// Requests without an answer; a RECEIPTS_GET counts once per conversation.
    pub(crate) requests: u16,
    /// Second at which the token runs out; 0 = never.
    pub(crate) expires_s: u32,
    /// The client promised a frame within this time.
    pub(crate) heartbeat_s: u16,
    pub(crate) malformed: Malformed,
    pub(crate) phase: Phase,
    pub(crate) source: Source,
    pub(crate) state: ClientState,
    pub(crate) notes: Notes,
    pub(crate) rates: ConnRates,
}

const _: () = assert!(
    size_of::<Conn>() <= 104,
    "the slot of an idle connection is part of the memory budget"
);

impl Conn {
    pub(crate) fn free() -> Self {
        Self {
            traffic: None,
            user: UserId(0),
            sent: Seq(0),
            head: Seq(0),
            acked: Seq(0),
            generation: 0,
            next_of_user: NO_CONN,
            active_s: 0,
            replayed: 0,
            device: DeviceId(0),
            receive_max: 0,
            requests: 0,
            expires_s: 0,
            heartbeat_s: 0,
            malformed: Malformed(0),
            phase: Phase::Free,
            source: Source::Behind,
            state: ClientState::Foreground,
            notes: Notes {
                output_told: false,
                replay: Replay::Runs,
                siblings: false,
                paused: false,
                limited: false,
            },
            rates: ConnRates::default(),
        }
    }

    /// Bytes on their way to the client.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.traffic
            .as_ref()
            .map_or(0, |traffic| traffic.pending_bytes())
    }

    /// Its socket has taken nothing for a while.
    pub(crate) fn is_stalled(&self) -> bool {
        self.traffic.as_ref().is_some_and(|traffic| traffic.stalled)
    }

    /// Second in which the kernel last took bytes, or the queue stopped being empty.
    pub(crate) fn progress_s(&self) -> u32 {
        self.traffic
            .as_ref()
            .map_or(self.active_s, |traffic| traffic.progress_s)
    }

    /// Sequenced frames that the client has not acknowledged.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.traffic
            .as_ref()
            .map_or(0, |traffic| traffic.window.len())
    }

    /// Sequenced frames that may still be sent.
    pub(crate) fn credit(&self) -> usize {
        usize::from(self.receive_max).saturating_sub(self.unacknowledged())
    }

    pub(crate) const fn is_logged_in(&self) -> bool {
        matches!(self.phase, Phase::Loading | Phase::Open)
    }

    /// The device has all that its inbox holds for it, as far as anybody knows.
    pub(crate) fn has_everything(&self) -> bool {
        self.phase == Phase::Open
            && self.source == Source::Live
            && self.head <= self.sent
            && self.unacknowledged() == 0
    }
}
