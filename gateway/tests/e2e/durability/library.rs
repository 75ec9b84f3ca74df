//! A writer and a reader made with the client library, whose state is saved after each round and
//! read again for the next, as a program that is restarted does.

use super::{PATIENCE, Round};
use crate::harness::Gateway;
use portico_client::{Client, OwnedEvent, Session, SessionConfig, SessionState};
use portico_wire::ids::{ConvSeq, MsgId, Seq, UserId};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Messages in the outbox.
const UNSENT_MAX: usize = 8;
const POLL: Duration = Duration::from_millis(5);

#[derive(Debug)]
struct End {
    user: u64,
    /// As saved by the last round.
    state: Vec<u8>,
    sessions: u64,
}

#[derive(Debug)]
pub(super) struct Pair {
    writer: End,
    reader: End,
    wrote: Vec<MsgId>,
    sent: HashMap<MsgId, ConvSeq>,
    read: Vec<(MsgId, ConvSeq)>,
}

impl End {
    fn new(user: u64) -> Self {
        Self {
            user,
            state: SessionState::default().encode(),
            sessions: 0,
        }
    }

    fn connect(&mut self, gateway: &Gateway) -> Client {
        self.sessions += 1;
        let config = SessionConfig {
            auto_ack: false,
            dedupe_max: 4_096,
            ..gateway.session(self.user, 1)
        };
        let state = SessionState::decode(&self.state).expect("what was saved can be read");
        let session = Session::new(config, state, self.user << 32 | self.sessions);
        Client::connect(gateway.listen.to_string(), session).expect("a thread")
    }
}

impl Pair {
    pub(super) fn new(writer: u64, reader: u64) -> Self {
        Self {
            writer: End::new(writer),
            reader: End::new(reader),
            wrote: Vec::new(),
            sent: HashMap::new(),
            read: Vec::new(),
        }
    }

    pub(super) fn sent_count(&self) -> usize {
        self.sent.len()
    }

    /// Works until the gateway is killed.
    pub(super) fn run(&mut self, gateway: &Gateway, round: &Round) {
        let (writer, reader) = (self.writer.connect(gateway), self.reader.connect(gateway));
        while !round.is_over() {
            while writer.unsent() < UNSENT_MAX {
                self.write(&writer);
            }
            let sent = self.sent.len();
            self.events(&writer, &reader, POLL);
            for _ in sent..self.sent.len() {
                round.count_sent();
            }
        }
        self.save(&writer, &reader);
    }

    /// Waits until all is sent and read.
    pub(super) fn finish(&mut self, gateway: &Gateway) {
        let (writer, reader) = (self.writer.connect(gateway), self.reader.connect(gateway));
        let deadline = Instant::now() + PATIENCE;
        while self.sent.len() < self.wrote.len() || self.read.len() < self.wrote.len() {
            self.events(&writer, &reader, POLL);
            let counts = (self.wrote.len(), self.sent.len(), self.read.len());
            assert!(Instant::now() < deadline, "wrote, sent, read: {counts:?}");
        }
        self.save(&writer, &reader);
    }

    fn write(&mut self, writer: &Client) {
        let text = self.wrote.len().to_string();
        let id = writer.send_text(UserId(self.reader.user), &text);
        self.wrote.push(id.expect("the outbox has room"));
    }

    fn events(&mut self, writer: &Client, reader: &Client, patience: Duration) {
        while let Some(event) = writer.next_event(Duration::ZERO) {
            self.written(event);
        }
        let mut patience = patience;
        while let Some(event) = reader.next_event(patience) {
            if let Some(seq) = self.arrived(event) {
                reader.acknowledge(seq);
            }
            patience = Duration::ZERO;
        }
    }

    fn written(&mut self, event: OwnedEvent) {
        match event {
            OwnedEvent::Sent {
                msg_id, conv_seq, ..
            } => {
                let first = *self.sent.entry(msg_id).or_insert(conv_seq);
                assert_eq!(first, conv_seq);
            }
            OwnedEvent::Refused { .. } | OwnedEvent::ProtocolFault(_) => panic!("{event:?}"),
            _ => {}
        }
    }

    fn arrived(&mut self, event: OwnedEvent) -> Option<Seq> {
        match event {
            OwnedEvent::Message {
                seq,
                msg_id,
                conv_seq,
                envelope,
                ..
            } => {
                let body = envelope.expect("nothing was withdrawn").body;
                assert_eq!(body, self.read.len().to_string().into_bytes(), "in order");
                self.read.push((msg_id, conv_seq));
                Some(seq)
            }
            OwnedEvent::Undecodable { .. } | OwnedEvent::ProtocolFault(_) => panic!("{event:?}"),
            _ => None,
        }
    }

    /// Ends the sessions, takes what has come, and then keeps their state: a state that knows of a
    /// message which its owner has not seen would lose it.
    fn save(&mut self, writer: &Client, reader: &Client) {
        writer.close();
        reader.close();
        self.events(writer, reader, Duration::ZERO);
        self.writer.state = writer.state().encode();
        self.reader.state = reader.state().encode();
    }

    pub(super) fn agrees(&self) {
        let read: Vec<_> = self.read.iter().map(|(msg_id, _)| *msg_id).collect();
        assert_eq!(read, self.wrote);
        for (msg_id, conv_seq) in &self.read {
            assert_eq!(self.sent.get(msg_id), Some(conv_seq));
        }
        let places = self.read.iter().map(|(_, conv_seq)| conv_seq);
        assert!(places.is_sorted_by(|a, b| a < b));
    }
}
