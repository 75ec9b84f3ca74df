//! What the sink understands of Portico's protocol: logins, messages, acknowledgements and marks.

use super::{Answer, Ended, HEARTBEAT_S, Place, SEQ_STEP, Sink, Stall, now_us};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use portico_wire::{
    CloseCode, Flags, Frame, Op, RouteHeader, encode,
    frame::{ConvKind, receipt_kind},
    ids::{ConvSeq, Seq, UserId},
    message::{Close, Hello, ReceiptsGet, Welcome},
};
use std::time::Instant;

impl Sink {
    pub(super) fn frame(&mut self, index: usize, frame: Frame<'_>) -> Result<(), Ended> {
        match frame.known_op() {
            Some(Op::Send) => self.send(index, frame),
            Some(Op::Ack) => {
                self.acknowledged(index, Seq(frame.seq_header().seq));
                Ok(())
            }
            Some(Op::Hello) => self.hello(index, frame),
            Some(Op::Ping) => {
                let mut out = Vec::new();
                encode::put_pong(&mut out, frame.corr());
                self.answer(index, &out);
                Ok(())
            }
            Some(Op::ReceiptsGet) => self.receipts(index, frame),
            Some(Op::Close) => Err(Ended),
            _ => Ok(()),
        }
    }

    fn place(&self, index: usize) -> Option<Place> {
        let nth = self.connections.get(index)?.as_ref()?.nth;
        Some(Place { index, nth })
    }

    fn answer(&mut self, index: usize, frame: &[u8]) {
        if let Some(place) = self.place(index) {
            self.queue(place, frame);
        }
    }

    fn hello(&mut self, index: usize, frame: Frame<'_>) -> Result<(), Ended> {
        let hello = Hello::decode(frame.body()).map_err(|_| Ended)?;
        let mut out = Vec::new();
        let user = hello.token.and_then(user_of);
        let (Some(user), Some(connection)) = (user, &mut self.connections[index]) else {
            let close = Close::new(CloseCode::AUTH_FAILED, "the token names no user");
            self.encoder.close(&mut out, &close);
            self.answer(index, &out);
            // The last word goes out as the connection closes.
            return Err(Ended);
        };
        connection.user = user;
        connection.device = hello.device;
        let welcome = Welcome {
            user,
            device: hello.device,
            server_us: now_us(),
            heartbeat_s: HEARTBEAT_S,
            ..Welcome::default()
        };
        self.encoder.welcome(&mut out, frame.corr(), &welcome);
        encode::put_synced(&mut out, hello.last_seq, 0);
        self.users.insert(user, index);
        self.answer(index, &out);
        Ok(())
    }

    fn send(&mut self, index: usize, frame: Frame<'_>) -> Result<(), Ended> {
        if matches!(self.stall_at, Stall::Armed) {
            self.stall_at = Stall::At(Instant::now() + self.behaviour.stall_after);
        }
        if self.behaviour.answer == Answer::None {
            return Ok(());
        }
        let asked = frame.route().ok_or(Ended)?;
        let (Some(sender), Some(connection)) = (self.place(index), &self.connections[index]) else {
            return Ok(());
        };
        let (author, device) = (connection.user, connection.device);
        self.last_seq += SEQ_STEP;
        let (seq, conv_seq) = (Seq(self.last_seq), ConvSeq(self.last_seq));
        if frame.is_request() {
            let mut sent = Vec::new();
            encode::put_sent(&mut sent, frame.corr(), conv_seq, false);
            self.queue_late(sender, sent);
        }
        let recipient = self.users.get(&UserId(asked.conv)).copied();
        let Some(recipient) = recipient.and_then(|index| self.place(index)) else {
            return Ok(());
        };
        let route = RouteHeader {
            seq,
            conv: author.0,
            conv_seq,
            user: author,
            dev: device,
            ..asked
        };
        let mut deliver = Vec::new();
        let op = Op::Deliver as u8;
        encode::put_routed(&mut deliver, op, Flags::NONE, 0, 0, &route, frame.body());
        if let Some(connection) = &mut self.connections[recipient.index] {
            connection.unacknowledged.push_back((seq, author, conv_seq));
        }
        self.queue_late(recipient, deliver);
        Ok(())
    }

    /// Each author hears how far this user has got.
    fn acknowledged(&mut self, index: usize, up_to: Seq) {
        let Some(connection) = &mut self.connections[index] else {
            return;
        };
        let reader = connection.user;
        // Few authors at a time write to one user.
        let mut news: Vec<(UserId, ConvSeq)> = Vec::new();
        while let Some((seq, author, place)) = connection.unacknowledged.front().copied()
            && seq <= up_to
        {
            connection.unacknowledged.pop_front();
            match news.iter_mut().find(|(known, _)| *known == author) {
                Some((_, last)) => *last = place,
                None => news.push((author, place)),
            }
        }
        for (author, place) in news {
            self.marks.insert((author, reader), place);
            if let Some(index) = self.users.get(&author).copied() {
                let mut out = Vec::new();
                put_receipt(&mut out, Flags::NONE, 0, reader, place);
                self.answer(index, &out);
            }
        }
    }

    fn receipts(&mut self, index: usize, frame: Frame<'_>) -> Result<(), Ended> {
        let get = ReceiptsGet::decode(frame.body()).map_err(|_| Ended)?;
        let Some(connection) = &self.connections[index] else {
            return Ok(());
        };
        let mut out = Vec::new();
        for (_, peer) in get.convs {
            if let Some(place) = self.marks.get(&(connection.user, UserId(peer))) {
                let flags = Flags::REPLY | Flags::MORE;
                put_receipt(&mut out, flags, frame.corr(), UserId(peer), *place);
            }
        }
        encode::put_done(&mut out, frame.corr(), 0);
        self.answer(index, &out);
        Ok(())
    }
}

fn put_receipt(out: &mut Vec<u8>, flags: Flags, corr: u32, peer: UserId, up_to: ConvSeq) {
    let route = RouteHeader {
        conv: peer.0,
        conv_kind: ConvKind::DIRECT,
        conv_seq: up_to,
        user: peer,
        kind: receipt_kind::DELIVERED,
        ..RouteHeader::default()
    };
    let now_s = (now_us() / 1_000_000) as u32;
    encode::put_routed(out, Op::Receipt as u8, flags, corr, now_s, &route, &[]);
}

/// Whom a token is for, believed.
fn user_of(token: &str) -> Option<UserId> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    claims["sub"].as_str()?.parse().ok().map(UserId)
}
