//! Properties of the session over generated stories.
//!
//! - Against a server that loses connections, answers and patience at any moment, every message is
//!   accepted exactly once and in order, every delivery is shown exactly once, and no entry is
//!   acknowledged before it was shown.
//! - Against bytes that no server would send, nothing panics, each connection ends once, and
//!   neither timers nor buffers grow.

mod support;

use portico_client::{
    Event, Now, Phase, SendOptions, Session, SessionConfig, SessionState, plain_envelope,
};
use portico_wire::{
    CloseCode, ErrorCode, Op,
    ids::{DeviceId, MsgId, Seq, UserId},
    message::{Hello, Welcome},
};
use proptest::{collection::vec, prelude::*};
use std::collections::HashMap;
use support::{Delivery, Peer, Seen, text};

const WALL_US: u64 = 1_790_000_000_000_000;
const CODES: [ErrorCode; 4] = [
    ErrorCode::RATE_LIMITED,
    ErrorCode::OVERLOADED,
    ErrorCode::UNAVAILABLE,
    ErrorCode::INTERNAL,
];

/// One step of a story.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The owner sends the next message.
    Send,
    /// Somebody writes to us.
    Incoming,
    /// The server writes an entry a second time, under a new sequence.
    Repeat,
    /// The server reads and answers, in chunks of this size.
    Answer(usize),
    /// The server reads and acts, its answers are lost with the connection.
    LoseAnswers,
    /// What the client wrote last is lost with the connection.
    LoseRequests,
    /// The server answers the next message with an error.
    Refuse(ErrorCode),
    /// It may be accepted, but the answer says that nobody knows.
    Doubt(ErrorCode),
    /// The client is killed and starts from its saved state.
    Restart,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Send),
        3 => Just(Step::Incoming),
        1 => Just(Step::Repeat),
        4 => (1..200_usize).prop_map(Step::Answer),
        1 => Just(Step::LoseAnswers),
        1 => Just(Step::LoseRequests),
        1 => (0..4_usize).prop_map(|at| Step::Refuse(CODES[at])),
        1 => (2..4_usize).prop_map(|at| Step::Doubt(CODES[at])),
        1 => Just(Step::Restart),
        2 => (1..3_000_000_u64).prop_map(Step::Pass),
    ]
}

/// Both ends and all that must hold between them.
struct World {
    session: Session,
    server: Peer,
    now: Now,
    seed: u64,
    auto_ack: bool,
    /// Texts in the order in which the owner sent them.
    sent: Vec<(MsgId, String)>,
    confirmed: HashMap<MsgId, u64>,
    accepted: Vec<(MsgId, String)>,
    places: HashMap<MsgId, u64>,
    inbox: Vec<Delivery>,
    shown: Vec<u128>,
    /// The greatest sequence that was shown or passed, this time or before.
    seen_up_to: u64,
    refusals: Vec<(ErrorCode, bool)>,
    connected: bool,
    refused: bool,
}

impl World {
    fn new(auto_ack: bool) -> Self {
        Self {
            session: session(SessionState::default(), 0, auto_ack),
            server: Peer::default(),
            now: Now {
                mono_us: 1,
                wall_us: WALL_US,
            },
            seed: 0,
            auto_ack,
            sent: Vec::new(),
            confirmed: HashMap::new(),
            accepted: Vec::new(),
            places: HashMap::new(),
            inbox: Vec::new(),
            shown: Vec::new(),
            seen_up_to: 0,
            refusals: Vec::new(),
            connected: false,
            refused: false,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send => {
                let text = self.sent.len().to_string();
                let body = plain_envelope(&text);
                let options = SendOptions::default();
                let sent = self.session.send(self.now, UserId(2), &body, options);
                self.sent.push((sent.unwrap(), text));
            }
            Step::Incoming => {
                let seq = self.next_seq();
                self.inbox.push(Delivery::new(seq));
                self.push_last();
            }
            Step::Repeat => {
                if let Some(first) = self.inbox.first().copied() {
                    let seq = self.next_seq();
                    self.inbox.push(Delivery { seq, ..first });
                    self.push_last();
                }
            }
            Step::Answer(size) => {
                self.connect();
                self.serve();
                let bytes = self.server.take();
                for chunk in bytes.chunks(size) {
                    self.receive(chunk);
                }
            }
            Step::LoseAnswers => {
                if self.connected {
                    self.serve();
                    self.disconnect();
                }
            }
            Step::LoseRequests => self.disconnect(),
            Step::Refuse(code) => self.refusals.push((code, false)),
            Step::Doubt(code) => self.refusals.push((code, true)),
            Step::Restart => {
                let state = self.session.state().encode();
                let state = SessionState::decode(&state).unwrap();
                self.seed += 1;
                self.session = session(state, self.seed, self.auto_ack);
                self.connected = false;
            }
            Step::Pass(us) => self.pass(us),
        }
    }

    fn next_seq(&self) -> u64 {
        self.inbox.last().map_or(100, |last| last.seq + 3)
    }

    fn push_last(&mut self) {
        if self.connected && self.session.phase() == Phase::Live {
            let delivery = *self.inbox.last().unwrap();
            self.server.deliver(delivery, "in");
        }
    }

    fn connect(&mut self) {
        if self.connected {
            return;
        }
        self.server = Peer::default();
        self.session.connected(self.now);
        self.connected = true;
    }

    fn disconnect(&mut self) {
        self.connected = false;
        self.events(|session, now, on_event| session.disconnected(now, on_event));
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.events(|session, now, on_event| session.received(now, bytes, on_event));
    }

    fn pass(&mut self, us: u64) {
        let end_us = self.now.mono_us + us;
        let mut turns = 0;
        while let Some(at_us) = self.session.next_timeout().filter(|at_us| *at_us <= end_us) {
            let at_us = at_us.max(self.now.mono_us);
            self.now.wall_us += at_us - self.now.mono_us;
            self.now.mono_us = at_us;
            self.events(|session, now, on_event| session.on_timeout(now, on_event));
            turns += 1;
            assert!(turns < 10_000, "a timer that never gets quiet");
        }
        self.now.wall_us += end_us - self.now.mono_us;
        self.now.mono_us = end_us;
    }

    /// Calls into the session and checks what it tells.
    fn events(&mut self, call: impl FnOnce(&mut Session, Now, &mut dyn FnMut(Event<'_>))) {
        let (now, auto_ack) = (self.now, self.auto_ack);
        let Self {
            session,
            confirmed,
            shown,
            seen_up_to,
            places,
            connected,
            ..
        } = self;
        let mut stored = None;
        call(session, now, &mut |event| match event {
            Event::Message { seq, msg_id, .. } => {
                assert!(auto_ack || !shown.contains(&msg_id.0) || seq.0 > 0);
                shown.push(msg_id.0);
                *seen_up_to = seq.0.max(*seen_up_to);
                stored = Some(seq);
            }
            Event::Duplicate { seq, .. } => {
                *seen_up_to = seq.0.max(*seen_up_to);
            }
            Event::Synced { up_to, .. } => *seen_up_to = up_to.0.max(*seen_up_to),
            Event::Sent {
                msg_id, conv_seq, ..
            } => {
                assert_eq!(places.get(&msg_id), Some(&conv_seq.0), "SENT of another");
                assert_eq!(confirmed.insert(msg_id, conv_seq.0), None, "SENT twice");
            }
            Event::Refused { will_retry, .. } => assert!(will_retry),
            Event::Closed {
                reconnect_after_ms, ..
            } => {
                assert!(reconnect_after_ms.is_some());
                *connected = false;
            }
            Event::ProtocolFault(fault) => panic!("{fault}"),
            _ => {}
        });
        // The owner stores what it was shown, at once.
        if !auto_ack && let Some(seq) = stored {
            session.acknowledge(now, seq);
        }
    }

    /// The server reads and acts.
    fn serve(&mut self) {
        let output = std::mem::take(self.session.output());
        for seen in self.server.read(&output) {
            match seen.op {
                Op::Hello => self.serve_hello(&seen),
                Op::Send => self.serve_send(&seen),
                Op::Ack => assert!(seen.seq.seq <= self.seen_up_to, "acknowledged unseen"),
                Op::Ping => {
                    self.server.pong(seen.corr);
                }
                Op::Close => {}
                op => panic!("{op:?}"),
            }
        }
    }

    fn serve_hello(&mut self, seen: &Seen) {
        let hello = Hello::decode(&seen.body).unwrap();
        assert!(hello.last_seq.0 <= self.seen_up_to, "passed unseen");
        let welcome = Welcome {
            user: UserId(1),
            device: DeviceId(1),
            receive_max: 4,
            server_us: self.now.wall_us,
            ..Welcome::default()
        };
        self.server.welcome(seen.corr, &welcome);
        let missed = self.inbox.iter();
        let missed: Vec<Delivery> = missed
            .filter(|entry| entry.seq > hello.last_seq.0)
            .copied()
            .collect();
        for entry in &missed {
            self.server.deliver(*entry, "in");
        }
        let head = self.inbox.last().map_or(0, |last| last.seq);
        self.server.synced(head, missed.len() as u32);
    }

    fn serve_send(&mut self, seen: &Seen) {
        let msg_id = seen.route.msg_id;
        let refusal = self.refusals.pop();
        self.refused |= refusal.is_some();
        if let Some((code, false)) = refusal {
            // An error says "not accepted" only if it never was.
            let known = self.places.contains_key(&msg_id);
            let certain = matches!(code, ErrorCode::RATE_LIMITED | ErrorCode::OVERLOADED);
            if !(known && certain) {
                self.server.error(seen.corr, code, 0);
                return;
            }
        }
        let place = match self.places.get(&msg_id) {
            Some(place) => {
                assert!(
                    seen.is_retry(),
                    "accepted before, and sent again without RETRY"
                );
                *place
            }
            None => {
                let place = self.accepted.len() as u64 + 1;
                self.accepted.push((msg_id, text(&seen.body)));
                self.places.insert(msg_id, place);
                place
            }
        };
        match refusal {
            Some((code, true)) => self.server.error(seen.corr, code, 0),
            _ => self.server.sent(seen.corr, place, false),
        };
    }

    /// Faults are over: everything must come to its end.
    fn settle(&mut self) {
        self.refusals.clear();
        for _ in 0..400 {
            self.step(Step::Answer(64));
            self.pass(1_000_000);
        }
        self.step(Step::Answer(64));
        assert_eq!(self.session.unsent(), 0);
        assert_eq!(self.confirmed.len(), self.sent.len());
        if self.refused {
            self.accepted.sort();
            self.sent.sort();
        }
        assert_eq!(self.accepted, self.sent);
        let mut expected: Vec<u128> = self.inbox.iter().map(|entry| entry.msg_id).collect();
        expected.sort_unstable();
        expected.dedup();
        let mut shown = self.shown.clone();
        shown.sort_unstable();
        assert_eq!(shown, expected, "shown exactly once");
        let head = self.inbox.last().map_or(0, |last| last.seq);
        assert_eq!(self.session.cursor(), Seq(head));
    }
}

fn session(state: SessionState, seed: u64, auto_ack: bool) -> Session {
    let config = SessionConfig {
        auto_ack,
        ..SessionConfig::new(UserId(1), DeviceId(1), "token")
    };
    Session::new(config, state, seed)
}

/// Valid frames of every kind that a client understands.
fn valid_stream() -> Vec<u8> {
    let mut peer = Peer::default();
    let welcome = Welcome {
        user: UserId(1),
        device: DeviceId(1),
        resume_token: b"resume",
        ..Welcome::default()
    };
    peer.welcome(1, &welcome)
        .gap(1)
        .deliver(Delivery::new(10), "a")
        .synced(12, 1)
        .sent(1, 5, false)
        .receipt(2, 2, 1, 9, 1)
        .error(2, ErrorCode::INTERNAL, 1)
        .pong(3)
        .done(4)
        .drain(10, 10, &["a:1"])
        .deliver(Delivery::new(20), "b")
        .close(CloseCode::NORMAL, 0);
    peer.take()
}

/// Feeds bytes to a session with something of everything open; checks what must hold whatever
/// they are.
fn endure(chunks: &[&[u8]]) {
    let now = Now {
        mono_us: 5,
        wall_us: WALL_US,
    };
    let mut session = session(SessionState::default(), 3, true);
    session.connected(now);
    let body = plain_envelope("hi");
    for _ in 0..3 {
        let sent = session.send(now, UserId(2), &body, SendOptions::default());
        sent.unwrap();
    }
    let mut closed = 0;
    let mut on_event = |event: Event<'_>| {
        closed += u32::from(matches!(event, Event::Closed { .. }));
    };
    for chunk in chunks {
        session.received(now, chunk, &mut on_event);
        assert!(session.output().len() < 64 * 1_024);
    }
    let mut later = now;
    for _ in 0..10 {
        if let Some(at_us) = session.next_timeout() {
            later.mono_us = later.mono_us.max(at_us);
        }
        session.on_timeout(later, &mut on_event);
    }
    session.disconnected(later, &mut on_event);
    assert_eq!(closed, 1);
    assert_eq!(session.next_timeout(), None);
    // Whatever happened, the state can be saved and restored.
    let state = session.state();
    let restored = SessionState::decode(&state.encode()).unwrap();
    assert_eq!(restored.encode(), state.encode());
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn nothing_is_lost_doubled_or_reordered(steps in vec(step(), 1..80), auto_ack: bool) {
        let mut world = World::new(auto_ack);
        for step in steps {
            world.step(step);
        }
        world.settle();
    }

    #[test]
    fn any_bytes_are_endured(bytes in vec(any::<u8>(), 0..600), size in 1..80_usize) {
        let chunks: Vec<&[u8]> = bytes.chunks(size).collect();
        endure(&chunks);
    }

    #[test]
    fn damaged_frames_are_endured(
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        size in 1..400_usize,
    ) {
        let mut bytes = valid_stream();
        for (at, value) in changes {
            *at.get_mut(&mut bytes) = value;
        }
        let chunks: Vec<&[u8]> = bytes.chunks(size).collect();
        endure(&chunks);
    }

    #[test]
    fn any_state_bytes_are_endured(bytes in vec(any::<u8>(), 0..200)) {
        let mut named = b"PTCS\x01".to_vec();
        named.extend(bytes);
        prop_assert!(SessionState::decode(&named).is_err());
    }
}

#[test]
fn each_byte_of_a_valid_stream_can_be_any() {
    let bytes = valid_stream();
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut changed = bytes.clone();
            changed[at] = value;
            endure(&[&changed]);
        }
        endure(&[&bytes[..at]]);
    }
}
