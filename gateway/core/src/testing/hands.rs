//! What tests do with clients, in a few words each.

use super::{Client, Got, Outgoing, World};
use crate::Input;
use portico_wire::{
    CloseCode, Op, RouteHeader,
    encode::{put_ack, put_routed},
    frame::{ConvKind, Flags, receipt_kind},
    ids::{ConvSeq, MsgId, Seq, UserId},
    message::{Hello, ReceiptsGet},
};
use std::mem;

impl World {
    /// A new client, connected to a shard from nowhere in particular.
    pub fn connect(&mut self, shard: usize) -> usize {
        let at = self.clients.len();
        self.clients.push(Client::new());
        let conn = self.seat(shard, Some(at));
        if let Some(source) = self.source {
            let now = self.now;
            if !self.nodes[shard].shard.admit_source(now, conn, source) {
                self.leave(at);
                return at;
            }
        }
        self.input(shard, Input::Opened { conn });
        at
    }

    /// Connects and logs in, with what `edit` makes of an ordinary HELLO. Does not run.
    pub fn open(
        &mut self,
        shard: usize,
        user: u64,
        device: u16,
        edit: impl FnOnce(&mut Hello<'_>),
    ) -> usize {
        let client = self.connect(shard);
        let token = format!("{user}:{device}");
        let mut hello = Hello {
            token: Some(&token),
            ..Hello::default()
        };
        edit(&mut hello);
        self.clients[client].receive_max = hello.receive_max;
        self.hello(client, &hello);
        client
    }

    /// Connects, logs in and runs until SYNCED. The client acknowledges what it gets.
    pub fn login(&mut self, user: u64, device: u16) -> usize {
        let shard = self.clients.len() % self.nodes.len();
        let client = self.open(shard, user, device, |_| {});
        self.clients[client].acking = true;
        self.run();
        client
    }

    /// Appends bytes to what a client has sent.
    pub fn write(&mut self, client: usize, bytes: &[u8]) {
        if self.is_connected(client) {
            self.clients[client].pipe.extend_from_slice(bytes);
        }
    }

    pub fn hello(&mut self, client: usize, hello: &Hello<'_>) {
        let corr = self.corr(client);
        let mut bytes = Vec::new();
        self.encoder.hello(&mut bytes, corr, hello);
        self.write(client, &bytes);
    }

    /// The next free number for a request.
    pub fn corr(&mut self, client: usize) -> u32 {
        self.clients[client].corr += 1;
        self.clients[client].corr
    }

    /// A fresh id, dated now.
    pub fn msg_id(&mut self) -> MsgId {
        self.ids += 1;
        MsgId::new_v7(self.now.wall_us / 1_000, self.ids)
    }

    /// An ordinary message, for [`Self::post`].
    pub fn message(&mut self, client: usize, to: u64, body: &str) -> Outgoing {
        Outgoing {
            to: UserId(to),
            conv_kind: ConvKind::DIRECT,
            kind: 0,
            flags: Flags::NONE,
            corr: self.corr(client),
            msg_id: self.msg_id(),
            ttl_s: 0,
            body: body.as_bytes().to_vec(),
        }
    }

    /// Sends a message as it stands.
    pub fn post(&mut self, client: usize, message: &Outgoing) {
        let route = RouteHeader {
            msg_id: message.msg_id,
            conv: message.to.0,
            conv_kind: message.conv_kind,
            kind: message.kind,
            ttl_s: message.ttl_s,
            ..RouteHeader::default()
        };
        let (flags, corr) = (message.flags, message.corr);
        let mut bytes = Vec::new();
        put_routed(
            &mut bytes,
            Op::Send as u8,
            flags,
            corr,
            0,
            &route,
            &message.body,
        );
        self.write(client, &bytes);
    }

    /// Sends an ordinary message. Does not run.
    pub fn say(&mut self, client: usize, to: u64, body: &str) -> Outgoing {
        let message = self.message(client, to, body);
        self.post(client, &message);
        message
    }

    pub fn ack(&mut self, client: usize, up_to: Seq, receive_max: u32) {
        let mut bytes = Vec::new();
        put_ack(&mut bytes, up_to, receive_max);
        self.write(client, &bytes);
    }

    /// READ; `corr` 0 asks for no answer.
    pub fn mark_read(&mut self, client: usize, peer: u64, up_to: ConvSeq, corr: u32) {
        let route = RouteHeader {
            conv: peer,
            conv_seq: up_to,
            conv_kind: ConvKind::DIRECT,
            kind: receipt_kind::READ,
            ..RouteHeader::default()
        };
        let mut bytes = Vec::new();
        put_routed(
            &mut bytes,
            Op::Receipt as u8,
            Flags::NONE,
            corr,
            0,
            &route,
            &[],
        );
        self.write(client, &bytes);
    }

    /// Asks for the watermarks of some direct conversations.
    pub fn ask_receipts(&mut self, client: usize, corr: u32, peers: &[u64]) {
        let direct = |peer: &u64| (ConvKind::DIRECT, *peer);
        let get = ReceiptsGet {
            convs: peers.iter().map(direct).collect(),
            members: false,
        };
        let mut bytes = Vec::new();
        self.encoder.receipts_get(&mut bytes, corr, &get);
        self.write(client, &bytes);
    }

    /// The client takes nothing from its connection any more, or again.
    pub fn set_reading(&mut self, client: usize, reading: bool) {
        self.clients[client].reading = reading;
    }

    /// The client acknowledges every sequenced frame at once, or stops doing so.
    pub fn set_acking(&mut self, client: usize, acking: bool) {
        self.clients[client].acking = acking;
    }

    /// The gateway reads so many bytes of this client at a time.
    pub fn set_chunk(&mut self, client: usize, bytes: usize) {
        self.clients[client].chunk = bytes.max(1);
    }

    /// The network between a client and the gateway breaks.
    pub fn cut(&mut self, client: usize) {
        let Some((node, conn)) = self.clients[client].seat else {
            return;
        };
        if self.socket(node, conn).moving {
            // Seen after the move.
            self.clients[client].seat = None;
            self.clients[client].pipe.clear();
            self.socket_mut(node, conn).client = None;
            return;
        }
        self.leave(client);
        self.input(node, Input::Ended { conn });
    }

    #[must_use]
    pub fn is_connected(&self, client: usize) -> bool {
        self.clients[client].seat.is_some()
    }

    /// The shard where a client's connection is.
    #[must_use]
    pub fn place_of(&self, client: usize) -> Option<usize> {
        self.clients[client].seat.map(|(node, _)| node)
    }

    /// What a client got and nobody has taken yet.
    #[must_use]
    pub fn got(&self, client: usize) -> &[Got] {
        &self.clients[client].got
    }

    /// Takes it. A CLOSE stays: it is the last word.
    pub fn take(&mut self, client: usize) -> Vec<Got> {
        let got = mem::take(&mut self.clients[client].got);
        let close = got.last().filter(|last| last.op() == Op::Close);
        self.clients[client].got.extend(close.cloned());
        got
    }

    /// Runs, and takes what a client got.
    pub fn run_and_take(&mut self, client: usize) -> Vec<Got> {
        self.run();
        self.take(client)
    }

    /// The code with which the gateway ended a connection.
    #[must_use]
    pub fn close_code(&self, client: usize) -> Option<CloseCode> {
        let last = self.clients[client].got.last()?;
        last.close().map(|close| close.code)
    }

    /// The greatest inbox number that a client has seen.
    #[must_use]
    pub fn last_seq(&self, client: usize) -> Seq {
        self.clients[client].last_seq()
    }
}
