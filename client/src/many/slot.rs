//! One connection of many: where it stands, and when something has to be done about it.

use super::wheel::Wheel;
use crate::session::{Event, Session};
use std::{fmt, net::TcpStream};

/// Distance of the moments at which heartbeats go out.
const BEAT_US: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Until `until_us`, then in the queue.
    Waiting,
    /// In the queue of connections to be opened.
    Queued,
    /// It was its turn, but its session has no token; the owner was asked.
    Tokenless,
    /// The handshake of TCP runs, until `until_us` at most.
    Connecting,
    /// The handshake of TLS runs, until `until_us` at most.
    Securing,
    /// HELLO is out, WELCOME is awaited, until `until_us` at most.
    Greeting,
    Up,
    /// The server drains: leave at `until_us`.
    Leaving,
    /// The session's last word.
    Stopped,
}

pub(super) struct Slot {
    pub(super) session: Session,
    pub(super) until_us: u64,
    pub(super) socket: Option<TcpStream>,
    pub(super) state: State,
    /// In the list of those that have something to write.
    pub(super) dirty: bool,
    /// The socket's buffer is full: the next edge says when it is not.
    pub(super) blocked: bool,
    /// Its owner wants it not to read.
    pub(super) paused: bool,
}

/// What an idle connection costs here, besides its resume token: a million of them is a third of a
/// gigabyte.
const _: () = assert!(
    size_of::<Slot>() + Wheel::OWNER_BYTES <= 232,
    "an idle connection has a budget"
);

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("state", &self.state)
            .field("until_us", &self.until_us)
            .field("blocked", &self.blocked)
            .finish_non_exhaustive()
    }
}

impl Slot {
    pub(super) const fn new(session: Session) -> Self {
        Self {
            session,
            until_us: 0,
            socket: None,
            state: State::Queued,
            dirty: false,
            blocked: false,
            paused: false,
        }
    }

    pub(super) const fn is_connecting(&self) -> bool {
        matches!(
            self.state,
            State::Connecting | State::Securing | State::Greeting
        )
    }

    /// When something has to be done without an event of the socket.
    pub(super) fn deadline_us(&self, beat: Beat) -> Option<u64> {
        let session = || {
            let (from_us, to_us) = self.session.next_timeout_window()?;
            Some(beat.choose(from_us, to_us))
        };
        match self.state {
            State::Waiting | State::Connecting | State::Securing => Some(self.until_us),
            State::Greeting | State::Leaving => {
                Some(self.until_us.min(session().unwrap_or(u64::MAX)))
            }
            State::Up => session(),
            State::Queued | State::Tokenless | State::Stopped => None,
        }
    }
}

/// The moments at which this driver does what is due about then, so that it sleeps in between and
/// wakes for many connections at once. Drivers of one process have different ones: together they
/// load the machine and the server evenly.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beat {
    phase_us: u64,
}

impl Beat {
    /// The `nth` driver of a process.
    pub(super) const fn new(nth: u64) -> Self {
        // Multiples of the golden ratio, without their whole part, lie evenly however many.
        const GOLDEN_US: u64 = BEAT_US * 618_034 / 1_000_000;
        Self {
            phase_us: nth.wrapping_mul(GOLDEN_US) % BEAT_US,
        }
    }

    /// The last moment of this driver's between two times, or the later time if it has none there.
    const fn choose(self, from_us: u64, to_us: u64) -> u64 {
        if to_us < self.phase_us {
            return to_us;
        }
        let beat_us = to_us - (to_us - self.phase_us) % BEAT_US;
        if beat_us >= from_us { beat_us } else { to_us }
    }
}

/// What a call of the session meant for its connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    pub(super) welcomed: bool,
    pub(super) leave_after_ms: Option<u32>,
    pub(super) closed: Option<Reconnect>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Reconnect {
    AfterMs(u32),
    Never,
}

impl Outcome {
    pub(super) fn note(&mut self, event: &Event<'_>) {
        match event {
            Event::Welcome { .. } => self.welcomed = true,
            Event::Draining { leave_after_ms } => self.leave_after_ms = Some(*leave_after_ms),
            Event::Closed {
                reconnect_after_ms, ..
            } => {
                self.closed = Some(match reconnect_after_ms {
                    Some(ms) => Reconnect::AfterMs(*ms),
                    None => Reconnect::Never,
                });
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_of_a_driver_meet_and_those_of_several_do_not() {
        for nth in [0, 1, 7, u64::MAX] {
            let beat = Beat::new(nth);
            let moments: Vec<u64> = (0..1_000)
                .map(|conn| {
                    let to_us = 30_000_000 + conn * 997;
                    let at_us = beat.choose(to_us - BEAT_US, to_us);
                    assert!((to_us - BEAT_US..=to_us).contains(&at_us));
                    at_us
                })
                .collect();
            let mut distinct = moments.clone();
            distinct.dedup();
            assert!(distinct.len() <= 2, "{distinct:?}");
        }
        let mut phases: Vec<u64> = (0..50).map(|nth| Beat::new(nth).phase_us).collect();
        phases.sort_unstable();
        let gaps = phases.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(gaps.min() > Some(BEAT_US / 200));
    }

    #[test]
    fn what_cannot_wait_does_not() {
        let beat = Beat::new(1);
        assert_eq!(beat.choose(5_250_001, 5_250_001), 5_250_001);
        assert_eq!(beat.choose(0, 3), 3);
    }
}
