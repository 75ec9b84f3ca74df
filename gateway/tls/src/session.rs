//! One connection: handshaking, open, hibernated, ended.

use crate::{
    acceptor::Current,
    clients::Client,
    end::{End, SendError},
    handshake::{Handshake, Step},
    open::Open,
    secret::Suite,
};
use std::sync::Arc;

/// The server's end of one TLS connection. A pointer and a word; [`Form`] says what it points to.
///
/// A plain value: it may move to another thread between two calls.
#[derive(Debug)]
pub struct Session {
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Handshaking(Box<Handshake>),
    Open(Box<Open>),
    Ended,
}

/// What a session keeps at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// rustls' connection, once the first record is complete, and at most
    /// [`HANDSHAKE_BYTES_MAX`](crate::HANDSHAKE_BYTES_MAX) of input. Each record that arrives may
    /// cost a signature and a key exchange: the caller bounds how many it lets in per turn.
    Handshaking,
    /// Secrets, counters and prepared keys.
    Open,
    /// Secrets and counters.
    Hibernated,
    /// Nothing.
    Ended,
}

/// What the handshake has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    pub suite: Suite,
    /// The client has asked for [`ALPN`](crate::ALPN). A client that asks for other protocols only
    /// is refused; one that asks for none is not.
    pub alpn: bool,
    /// By a ticket, without certificates and signatures.
    pub resumed: bool,
    /// Who the client's certificate says it is; None if it showed none. Of a resumed session it is
    /// the certificate of the one that earned the ticket.
    pub client: Option<Client>,
}

/// What a call of [`Session::receive`] came to.
#[derive(Debug, Default)]
#[must_use = "plaintext, and whether the session goes on"]
pub struct Received {
    /// So many bytes at the front of what was given are plaintext now.
    pub plaintext: usize,
    /// So many were dealt with. The rest is an incomplete record (of at most
    /// [`RECORD_BYTES_MAX`](crate::RECORD_BYTES_MAX)), unchanged: the caller keeps it and gives it
    /// again with what follows.
    pub consumed: usize,
    /// Once per session.
    pub opened: Option<Box<Opened>>,
    /// Once per session. The plaintext before it counts.
    pub ended: Option<End>,
}

impl Session {
    /// What an open session takes, itself included, with keys prepared.
    pub const OPEN_BYTES: usize = Self::HIBERNATED_BYTES + Open::KEYS_BYTES;
    /// And without.
    pub const HIBERNATED_BYTES: usize = size_of::<Self>() + size_of::<Open>();

    pub(crate) fn new(current: Arc<Current>) -> Self {
        Self {
            inner: Inner::Handshaking(Box::new(Handshake::new(current))),
        }
    }

    #[must_use]
    pub fn form(&self) -> Form {
        match &self.inner {
            Inner::Handshaking(_) => Form::Handshaking,
            Inner::Open(open) if open.is_hibernated() => Form::Hibernated,
            Inner::Open(_) => Form::Open,
            Inner::Ended => Form::Ended,
        }
    }

    /// Takes received bytes, any number of them. Records are opened where they lie, and their
    /// plaintext is moved together at the front of `bytes`.
    ///
    /// What has to be sent is appended to `out`: the handshake (1 to 4 KB in two parts, more with long
    /// chains), key updates (27 bytes), an alert (24 bytes). It must be sent before anything that
    /// [`Self::send`] writes later, and also when the session has ended.
    pub fn receive(&mut self, bytes: &mut [u8], out: &mut Vec<u8>) -> Received {
        let mut received = Received::default();
        if let Inner::Handshaking(handshake) = &mut self.inner {
            match handshake.receive(bytes, out) {
                Step::More => received.consumed = bytes.len(),
                Step::Done(taken, open, opened) => {
                    received.consumed = taken;
                    received.opened = Some(opened);
                    self.inner = Inner::Open(open);
                }
                Step::Ended(end) => {
                    received.ended = Some(end);
                    self.inner = Inner::Ended;
                }
            }
        }
        match &mut self.inner {
            Inner::Handshaking(_) => {}
            Inner::Open(open) => {
                let taken = open.receive(bytes, received.consumed, out);
                received.plaintext = taken.plaintext;
                received.consumed = taken.consumed;
                received.ended = taken.ended;
                if !matches!(received.ended, None | Some(End::PeerClosed)) {
                    self.inner = Inner::Ended;
                }
            }
            Inner::Ended => received.consumed = bytes.len(),
        }
        received
    }

    /// Seals plaintext into records of up to 16 KiB, appended to `out`, and says how much of it
    /// fitted. `out` is never grown: [`sealed_len`](crate::sealed_len) says what room all of it needs,
    /// and with less than [`RECORD_OVERHEAD`](crate::RECORD_OVERHEAD) + 1 nothing is taken (27 bytes
    /// more once in 16 million records, when the key changes).
    ///
    /// # Errors
    /// The handshake is not over; the session has ended, or was closed; a cipher refused, which ends
    /// the session.
    pub fn send(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<usize, SendError> {
        match &mut self.inner {
            Inner::Handshaking(_) => Err(SendError::Handshaking),
            Inner::Ended => Err(SendError::Closed),
            Inner::Open(open) => {
                let sent = open.send(plaintext, out);
                if matches!(sent, Err(SendError::Failed(_))) {
                    self.inner = Inner::Ended;
                }
                sent
            }
        }
    }

    /// Says to the peer that nothing more comes (24 bytes, appended to `out`), once. What it sends
    /// can still be received. A handshake that is not over ends without a word.
    pub fn close(&mut self, out: &mut Vec<u8>) {
        match &mut self.inner {
            Inner::Handshaking(_) => self.inner = Inner::Ended,
            Inner::Open(open) => open.close(out),
            Inner::Ended => {}
        }
    }

    /// Drops the prepared keys of an open session. The next record, in either direction, makes them
    /// again, for some microseconds.
    pub fn hibernate(&mut self) {
        if let Inner::Open(open) = &mut self.inner {
            open.hibernate();
        }
    }
}

const _: () = {
    const fn movable<T: Send + Sync + 'static>() {}
    movable::<Session>();
};
