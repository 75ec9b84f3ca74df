//! A session, the other end of its connection, and the time.

use crate::support::{Peer, Seen};
use portico_client::{
    Event, Now, OwnedEvent, Phase, SendOptions, Session, SessionConfig, SessionState,
    plain_envelope,
};
use portico_wire::{
    CloseCode, Flags, Op,
    ids::{DeviceId, MsgId, UserId},
    message::{Hello, Welcome},
};

pub(crate) const SECOND_US: u64 = 1_000_000;
/// The client's clock is this far behind the server's.
pub(crate) const SKEW_US: u64 = 5_000_000;
pub(crate) const WALL_US: u64 = 1_790_000_000_000_000;
pub(crate) const ME: u64 = 1;
pub(crate) const PEER: UserId = UserId(2);

/// A session, the other end of its connection, and the time.
pub(crate) struct Story {
    pub(crate) session: Session,
    pub(crate) server: Peer,
    pub(crate) now: Now,
    pub(crate) events: Vec<OwnedEvent>,
}

impl Story {
    pub(crate) fn new() -> Self {
        Self::with(|_| {}, SessionState::default(), 1)
    }

    pub(crate) fn with(
        change: impl FnOnce(&mut SessionConfig),
        state: SessionState,
        seed: u64,
    ) -> Self {
        let mut config = SessionConfig::new(UserId(ME), DeviceId(1), "token");
        change(&mut config);
        Self {
            session: Session::new(config, state, seed),
            server: Peer::default(),
            now: Now {
                mono_us: 7,
                wall_us: WALL_US,
            },
            events: Vec::new(),
        }
    }

    /// Logged in and up to date.
    pub(crate) fn live() -> Self {
        let mut story = Self::new();
        story.log_in();
        story
    }

    pub(crate) fn connect(&mut self) -> Hello<'static> {
        self.server = Peer::default();
        self.session.connected(self.now);
        let frames = self.written();
        assert_eq!(frames.len(), 1);
        assert_eq!((frames[0].op, frames[0].flags), (Op::Hello, Flags::NONE));
        Hello::decode(Vec::leak(frames[0].body.clone())).unwrap()
    }

    pub(crate) fn welcome(&mut self, change: impl FnOnce(&mut Welcome<'_>)) {
        let mut welcome = Welcome {
            user: UserId(ME),
            device: DeviceId(1),
            resume_token: b"resume me",
            server_us: self.now.wall_us + SKEW_US,
            ..Welcome::default()
        };
        change(&mut welcome);
        self.server.welcome(1, &welcome);
        self.receive();
    }

    pub(crate) fn log_in(&mut self) {
        self.connect();
        self.welcome(|_| {});
        self.server.synced(0, 0);
        self.receive();
        assert_eq!(self.session.phase(), Phase::Live);
        self.events.clear();
    }

    /// Hands over what the server has written.
    pub(crate) fn receive(&mut self) {
        let bytes = self.server.take();
        self.receive_bytes(&bytes);
    }

    pub(crate) fn receive_bytes(&mut self, bytes: &[u8]) {
        let events = &mut self.events;
        let mut on_event = |event: Event<'_>| events.push(event.into());
        self.session.received(self.now, bytes, &mut on_event);
    }

    pub(crate) fn disconnect(&mut self) {
        let events = &mut self.events;
        let mut on_event = |event: Event<'_>| events.push(event.into());
        self.session.disconnected(self.now, &mut on_event);
    }

    /// What the client has written.
    pub(crate) fn written(&mut self) -> Vec<Seen> {
        let output = std::mem::take(self.session.output());
        self.server.read(&output)
    }

    pub(crate) fn sends(&mut self) -> Vec<Seen> {
        let frames = self.written();
        assert!(frames.iter().all(|seen| seen.op == Op::Send), "{frames:?}");
        frames
    }

    pub(crate) fn acks(&mut self) -> Vec<u64> {
        let frames = self.written();
        let acks = frames.iter().filter(|seen| seen.op == Op::Ack);
        acks.map(|seen| seen.seq.seq).collect()
    }

    pub(crate) fn send(&mut self, text: &str) -> MsgId {
        let body = plain_envelope(text);
        self.session
            .send(self.now, PEER, &body, SendOptions::default())
            .unwrap()
    }

    /// Lets time pass, with every timer at its moment.
    pub(crate) fn pass(&mut self, us: u64) {
        let end_us = self.now.mono_us + us;
        for _ in 0..100_000 {
            match self.session.next_timeout() {
                Some(at_us) if at_us <= end_us => {
                    self.set_time(at_us.max(self.now.mono_us));
                    let events = &mut self.events;
                    let mut on_event = |event: Event<'_>| events.push(event.into());
                    self.session.on_timeout(self.now, &mut on_event);
                }
                _ => {
                    self.set_time(end_us);
                    return;
                }
            }
        }
        panic!("a timer that never gets quiet");
    }

    pub(crate) fn set_time(&mut self, mono_us: u64) {
        self.now.wall_us += mono_us - self.now.mono_us;
        self.now.mono_us = mono_us;
    }

    pub(crate) fn take_events(&mut self) -> Vec<OwnedEvent> {
        std::mem::take(&mut self.events)
    }

    /// The sequences of the messages that were shown.
    pub(crate) fn shown(&mut self) -> Vec<u64> {
        let events = self.take_events().into_iter();
        let seqs = events.filter_map(|event| match event {
            OwnedEvent::Message { seq, .. } => Some(seq.0),
            _ => None,
        });
        seqs.collect()
    }

    pub(crate) fn closed(&mut self) -> (CloseCode, bool, Option<u32>) {
        let mut closed = Vec::new();
        for event in self.take_events() {
            if let OwnedEvent::Closed {
                code,
                by_peer,
                reconnect_after_ms,
                ..
            } = event
            {
                closed.push((code, by_peer, reconnect_after_ms));
            }
        }
        assert_eq!(closed.len(), 1, "one Closed per connection");
        closed[0]
    }
}

pub(crate) fn ids(frames: &[Seen]) -> Vec<MsgId> {
    frames.iter().map(|seen| seen.route.msg_id).collect()
}
