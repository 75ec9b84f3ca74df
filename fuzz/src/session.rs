//! A client's session against a server that says anything, and an owner that does anything, in any
//! order and at any time.
//!
//! The input is a list of steps. The lowest three bits of a step's first byte say what happens, the
//! rest how; see [`step`].

use portico_client::{
    Event, Now, Phase, SendOptions, Session, SessionConfig, SessionState, plain_envelope,
};
use portico_wire::{
    Op,
    ids::{ConvSeq, DeviceId, Seq, UserId},
    limits::{FRAME_BYTES_BEFORE_WELCOME_MAX, FRAME_BYTES_CEILING},
    next_frame,
    op::Stage,
};

const OUTBOX_MAX: usize = 8;
/// The time of the worked example, from which the seeds are made.
const START: Now = Now {
    mono_us: 1_000_000,
    wall_us: 1_795_608_000_000_000,
};

/// Any bytes are read as a saved state, then as a story.
pub fn session(data: &[u8]) {
    if let Ok(state) = SessionState::decode(data) {
        let again = SessionState::decode(&state.encode());
        assert_eq!(again.map(|state| state.encode()), Ok(state.encode()));
    }
    let mut story = Story::new();
    let mut rest = data;
    while let Some((first, after)) = rest.split_first() {
        rest = story.step(*first, after);
        story.check();
    }
    let state = story.session.state();
    let restored = SessionState::decode(&state.encode());
    assert!(restored.is_ok(), "a session cannot read its own state");
}

struct Story {
    session: Session,
    now: Now,
    /// The next frame is the first of its connection.
    greeting: bool,
    cursor: Seq,
    /// Closed was told since the last connection.
    closed: u32,
    shown: Seq,
}

impl Story {
    fn new() -> Self {
        let mut config = SessionConfig::new(UserId(1), DeviceId(1), "header.claims.signature");
        config.outbox_max = OUTBOX_MAX;
        config.auto_ack = false;
        let mut story = Self {
            session: Session::new(config, SessionState::default(), 7),
            now: START,
            greeting: false,
            cursor: Seq(0),
            closed: 0,
            shown: Seq(0),
        };
        story.connect();
        story
    }

    /// Does what `first` says and returns what is left of the input.
    fn step<'a>(&mut self, first: u8, after: &'a [u8]) -> &'a [u8] {
        let how = first >> 3;
        match first & 7 {
            0 => self.pass(u64::from(how) * 250_000),
            1 => self.pass(u64::from(how) * 10_000_000),
            2 => {
                let options = SendOptions {
                    ephemeral: how & 1 == 1,
                    ..SendOptions::default()
                };
                let text = plain_envelope("hi");
                let _ = self.session.send(self.now, UserId(2), &text, options);
            }
            3 => self
                .session
                .read(self.now, UserId(2), ConvSeq(u64::from(how))),
            4 => self.session.receipts(self.now, &[UserId(2), UserId(3)]),
            5 => {
                // What was shown has been stored; or the owner claims more than there is.
                let up_to = if how == 31 { Seq(u64::MAX) } else { self.shown };
                self.session.acknowledge(self.now, up_to);
            }
            6 => {
                if how & 1 == 0 {
                    let (session, mut seen) = (&mut self.session, Seen::default());
                    session.disconnected(self.now, &mut |event| seen.note(&event));
                    self.tell(seen);
                }
                self.connect();
            }
            _ => return self.receive(usize::from(how), after),
        }
        after
    }

    /// Two bytes of length, then what the server says, in chunks of `chunk` bytes (0 = at once).
    fn receive<'a>(&mut self, chunk: usize, after: &'a [u8]) -> &'a [u8] {
        let Some((length, after)) = after.split_first_chunk::<2>() else {
            return &[];
        };
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (said, rest) = after.split_at(length);
        let chunk = if chunk == 0 { length.max(1) } else { chunk };
        for part in said.chunks(chunk) {
            let (session, mut seen) = (&mut self.session, Seen::default());
            session.received(self.now, part, &mut |event| seen.note(&event));
            self.tell(seen);
        }
        rest
    }

    fn pass(&mut self, micros: u64) {
        self.now.mono_us += micros;
        self.now.wall_us += micros;
        let due = self.session.next_timeout();
        let (session, mut seen) = (&mut self.session, Seen::default());
        session.on_timeout(self.now, &mut |event| seen.note(&event));
        self.tell(seen);
        // A timer that stays due would make its driver spin.
        if due.is_some_and(|due| due <= self.now.mono_us) {
            let next = self.session.next_timeout();
            assert!(
                next.is_none_or(|next| next > self.now.mono_us),
                "a timer is stuck"
            );
        }
    }

    fn connect(&mut self) {
        // What was not written yet is lost with the connection.
        self.session.output().clear();
        self.session.connected(self.now);
        self.greeting = true;
        self.closed = 0;
    }

    fn tell(&mut self, seen: Seen) {
        self.closed += seen.closed;
        assert!(self.closed <= 1, "a connection ended twice");
        self.shown = self.shown.max(seen.shown);
    }

    /// What must hold after every step.
    fn check(&mut self) {
        let phase = self.session.phase();
        assert!(self.session.unsent() <= OUTBOX_MAX);
        assert!(self.session.cursor() >= self.cursor, "the cursor went back");
        self.cursor = self.session.cursor();
        let connected = phase.is_connected();
        assert_eq!(connected, self.session.next_timeout().is_some());
        assert!(connected || self.closed == 1, "an end without Closed");
        // All that is said is whole frames that a client may send.
        let output = std::mem::take(self.session.output());
        let mut rest = output.as_slice();
        while !rest.is_empty() {
            let limit = match phase {
                Phase::Greeting => FRAME_BYTES_BEFORE_WELCOME_MAX,
                _ => FRAME_BYTES_CEILING,
            };
            let frame = next_frame(rest, limit).expect("a valid frame");
            let frame = frame.expect("a whole frame");
            let op = frame.known_op().expect("a known operation");
            let legal = |stage| op.may_come_from_client(stage);
            assert_eq!(
                op == Op::Hello,
                self.greeting,
                "HELLO comes first, and once"
            );
            let allowed = match phase {
                _ if self.greeting => legal(Stage::Greeting),
                Phase::Greeting => legal(Stage::Authenticating),
                _ => legal(Stage::Welcomed),
            };
            assert!(allowed, "{op:?} in {phase:?}");
            self.greeting = false;
            rest = &rest[frame.bytes().len()..];
        }
    }
}

/// What one call told its owner.
#[derive(Default)]
struct Seen {
    closed: u32,
    shown: Seq,
}

impl Seen {
    fn note(&mut self, event: &Event<'_>) {
        match event {
            Event::Closed { .. } => self.closed += 1,
            Event::Message { seq, .. } => self.shown = self.shown.max(*seq),
            _ => {}
        }
    }
}
