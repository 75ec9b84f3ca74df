//! The client's end of a connection: bytes out, frames in, and the rules that every client may rely
//! on checked for each frame.

use crate::conn::ConnId;
use portico_wire::{
    ErrorCode, Frame, Op, RouteHeader, SeqHeader,
    frame::{ConvKind, Flags},
    ids::{MsgId, Seq, UserId},
    limits::FRAME_BYTES_TO_CLIENT_MAX,
    message::{Close, Drain, ErrorReply, Welcome},
    next_frame,
};
use std::fmt;

/// A frame that a client got.
#[derive(Clone, PartialEq, Eq)]
pub struct Got(Vec<u8>);

impl Got {
    /// The frame itself.
    #[must_use]
    pub fn frame(&self) -> Frame<'_> {
        match next_frame(&self.0, usize::MAX) {
            Ok(Some(frame)) => frame,
            _ => unreachable!("made from a frame"),
        }
    }

    /// # Panics
    /// If the server sent an operation that this version does not know.
    #[must_use]
    pub fn op(&self) -> Op {
        self.frame()
            .known_op()
            .expect("the server knows its operations")
    }

    #[must_use]
    pub fn corr(&self) -> u32 {
        self.frame().corr()
    }

    #[must_use]
    pub fn seq_header(&self) -> SeqHeader {
        self.frame().seq_header()
    }

    /// # Panics
    /// If the frame is not routed.
    #[must_use]
    pub fn route(&self) -> RouteHeader {
        self.frame().route().expect("a routed frame")
    }

    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.frame().body()
    }

    /// The code of an ERROR.
    #[must_use]
    pub fn error(&self) -> Option<ErrorCode> {
        self.error_reply().map(|error| error.code)
    }

    #[must_use]
    pub fn error_reply(&self) -> Option<ErrorReply<'_>> {
        let is = self.op() == Op::Error;
        is.then(|| ErrorReply::decode(self.body()).expect("a valid body"))
    }

    #[must_use]
    pub fn close(&self) -> Option<Close<'_>> {
        let is = self.op() == Op::Close;
        is.then(|| Close::decode(self.body()).expect("a valid body"))
    }

    #[must_use]
    pub fn welcome(&self) -> Option<Welcome<'_>> {
        let is = self.op() == Op::Welcome;
        is.then(|| Welcome::decode(self.body()).expect("a valid body"))
    }

    #[must_use]
    pub fn drain(&self) -> Option<Drain<'_>> {
        let is = self.op() == Op::Drain;
        is.then(|| Drain::decode(self.body()).expect("a valid body"))
    }

    /// Has it a place in the inbox?
    #[must_use]
    pub fn is_sequenced(&self) -> bool {
        self.frame()
            .route()
            .is_some_and(|route| route.seq != Seq(0))
    }
}

impl fmt::Debug for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} #{}", self.op(), self.corr())?;
        if let Some(route) = self.frame().route() {
            write!(f, " {route:?}")?;
        }
        if let Some(error) = self.error_reply() {
            write!(f, " {error:?}")?;
        }
        if let Some(close) = self.close() {
            write!(f, " {close:?}")?;
        }
        Ok(())
    }
}

/// A SEND in the making.
#[derive(Clone)]
pub struct Outgoing {
    pub to: UserId,
    pub conv_kind: ConvKind,
    pub kind: u8,
    pub flags: Flags,
    pub corr: u32,
    pub msg_id: MsgId,
    pub ttl_s: u32,
    pub body: Vec<u8>,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy(&self.body[..self.body.len().min(20)]);
        write!(
            f,
            "SEND #{} to {} {text:?} {:?}",
            self.corr, self.to, self.msg_id
        )
    }
}

/// One connection as its client sees it.
#[derive(Debug)]
pub struct Client {
    /// The shard and the name of the connection there, while there is one.
    pub(super) seat: Option<(usize, ConnId)>,
    /// Sent by the client, not yet read by the gateway.
    pub(super) pipe: Vec<u8>,
    /// Bytes the gateway gets at a time.
    pub(super) chunk: usize,
    /// Off: the client takes nothing, and the gateway's sends do not complete.
    pub(super) reading: bool,
    /// On: every sequenced frame is acknowledged at once.
    pub(super) acking: bool,
    pub(super) got: Vec<Got>,
    rest: Vec<u8>,
    last_seq: Seq,
    synced: bool,
    pub(super) corr: u32,
    /// `receive_max` of the ACKs that are made.
    pub(super) receive_max: u32,
}

impl Client {
    pub(super) fn new() -> Self {
        Self {
            seat: None,
            pipe: Vec::new(),
            chunk: usize::MAX,
            reading: true,
            acking: false,
            got: Vec::new(),
            rest: Vec::new(),
            last_seq: Seq(0),
            synced: false,
            corr: 0,
            receive_max: 256,
        }
    }

    /// Bytes arrive. Returns the numbers of the sequenced frames among them.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Vec<Seq> {
        self.rest.extend_from_slice(bytes);
        let mut fresh = Vec::new();
        loop {
            let frame = match next_frame(&self.rest, FRAME_BYTES_TO_CLIENT_MAX) {
                Ok(Some(frame)) => frame.bytes().to_vec(),
                Ok(None) => return fresh,
                Err(error) => panic!("the server sent a bad frame: {error}"),
            };
            self.rest.drain(..frame.len());
            let got = Got(frame);
            self.check(&got);
            if got.is_sequenced() {
                fresh.push(got.route().seq);
            }
            self.got.push(got);
        }
    }

    /// What holds for every client at every time.
    fn check(&mut self, got: &Got) {
        let closed = self.got.last().is_some_and(|last| last.op() == Op::Close);
        assert!(!closed, "nothing follows CLOSE");
        if got.is_sequenced() {
            let seq = got.route().seq;
            assert!(seq > self.last_seq, "O2: sequenced frames ascend");
            self.last_seq = seq;
        }
        if got.op() == Op::Synced {
            assert!(!self.synced, "SYNCED comes once");
            self.synced = true;
            let up_to = Seq(got.seq_header().seq);
            assert!(up_to >= self.last_seq, "SYNCED covers the replay");
            self.last_seq = up_to;
        }
    }

    /// The greatest number the client knows of.
    pub(super) const fn last_seq(&self) -> Seq {
        self.last_seq
    }
}
