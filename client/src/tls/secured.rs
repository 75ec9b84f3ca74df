//! One TLS connection without I/O.
//!
//! rustls without buffers of its own: records are opened where the driver has read them, in a buffer
//! that all its connections share, and an idle connection keeps none.
//!
//! # Invariants
//! - What is kept between two reads is a record, or a message of the handshake, that is not whole:
//!   rustls refuses one above 64 KiB.
//! - Nothing of the session is sealed before the server has proved its name and agreed on the
//!   protocol.

use super::{PROTOCOL, Progress, TlsClient, TlsError};
use rustls::{
    CertificateError, Error, HandshakeKind,
    client::UnbufferedClientConnection,
    pki_types::ServerName,
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus},
};
use std::{fmt, mem};

/// What a record takes beside its content: header, kind of content, tag.
const RECORD_BYTES: usize = 22;
/// Content of one record, at most.
const CONTENT_BYTES: usize = 16_384;
/// For a word of TLS itself: an alert, an answer to an update of keys.
const WORD_BYTES: usize = 64;

pub(crate) struct Secured {
    connection: UnbufferedClientConnection,
    /// Came, and is not whole.
    partial: Vec<u8>,
    /// To be written before anything that is sealed later.
    unsent: Vec<u8>,
    progress: Progress,
}

impl fmt::Debug for Secured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secured")
            .field("progress", &self.progress)
            .field("partial", &self.partial.len())
            .field("unsent", &self.unsent.len())
            .finish_non_exhaustive()
    }
}

impl Secured {
    /// The first flight is in [`Self::unsent`].
    pub(crate) fn begin(
        client: &TlsClient,
        name: ServerName<'static>,
        resume: bool,
    ) -> Result<Self, TlsError> {
        let connection = UnbufferedClientConnection::new(client.config(resume), name);
        let mut secured = Self {
            connection: connection.map_err(meaning)?,
            partial: Vec::new(),
            unsent: Vec::new(),
            progress: Progress::Shaking,
        };
        secured.receive(&mut [], &mut Vec::new())?;
        Ok(secured)
    }

    /// Takes what came from the socket, and appends what the server has said to `plain`: also when
    /// an error or the end comes behind it. After an error [`Self::unsent`] has the alert for the
    /// server.
    pub(crate) fn receive(
        &mut self,
        bytes: &mut [u8],
        plain: &mut Vec<u8>,
    ) -> Result<Progress, TlsError> {
        if self.partial.is_empty() {
            let used = self.process(bytes, plain, None)?;
            self.partial
                .extend_from_slice(bytes.get(used..).unwrap_or_default());
        } else {
            let mut partial = mem::take(&mut self.partial);
            partial.extend_from_slice(bytes);
            let used = self.process(&mut partial, plain, None)?;
            if used < partial.len() {
                partial.drain(..used);
                self.partial = partial;
            }
        }
        Ok(self.progress)
    }

    /// Appends what is to be said to [`Self::unsent`].
    pub(crate) fn seal(&mut self, plain: &[u8]) -> Result<(), TlsError> {
        self.say(Some(plain))
    }

    /// Appends the word that nothing more comes.
    pub(crate) fn close(&mut self) {
        // Whoever has not shaken hands has nothing to close; what fails here fails at the end.
        if self.progress == Progress::Open {
            let _ = self.say(None);
        }
    }

    /// `None`: the end.
    fn say(&mut self, plain: Option<&[u8]>) -> Result<(), TlsError> {
        // What is there is not whole, or it would have been taken.
        let mut partial = mem::take(&mut self.partial);
        let used = self.process(&mut partial, &mut Vec::new(), Some(plain))?;
        partial.drain(..used);
        self.partial = partial;
        Ok(())
    }

    /// To be written; what was written is taken out by the driver.
    pub(crate) const fn unsent(&mut self) -> &mut Vec<u8> {
        &mut self.unsent
    }

    pub(crate) fn is_open(&self) -> bool {
        self.progress != Progress::Shaking
    }

    pub(crate) fn has_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Lets rustls do all that it can with `incoming`; how much of that it has taken.
    fn process(
        &mut self,
        incoming: &mut [u8],
        plain: &mut Vec<u8>,
        mut word: Option<Option<&[u8]>>,
    ) -> Result<usize, TlsError> {
        let Self {
            connection,
            unsent,
            progress,
            ..
        } = self;
        let mut used = 0;
        loop {
            let rest = incoming.get_mut(used..).unwrap_or_default();
            let UnbufferedStatus { mut discard, state } = connection.process_tls_records(rest);
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(meaning)?;
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    append(unsent, 0, |room| match data.encode(room) {
                        Err(EncodeError::InsufficientSize(size)) => Err(Some(size.required_size)),
                        Err(EncodeError::AlreadyEncoded) => Err(None),
                        Ok(count) => Ok(count),
                    })?;
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::WriteTraffic(mut traffic)) => match word.take() {
                    Some(Some(said)) => {
                        let records = said.len() / CONTENT_BYTES + 1;
                        let room = said.len() + records * RECORD_BYTES + WORD_BYTES;
                        append(unsent, room, |room| size(traffic.encrypt(said, room)))?;
                    }
                    Some(None) => {
                        append(unsent, WORD_BYTES, |room| {
                            size(traffic.queue_close_notify(room))
                        })?;
                        return Ok(used + discard);
                    }
                    None => {
                        if *progress == Progress::Shaking {
                            if connection.alpn_protocol() != Some(PROTOCOL.as_bytes()) {
                                return Err(TlsError::OtherProtocol);
                            }
                            *progress = Progress::Open;
                        }
                        return Ok(used + discard);
                    }
                },
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    *progress = Progress::Ended;
                    // The server hears no more, but it may want to be told the end.
                    if word.is_none() {
                        return Ok(incoming.len());
                    }
                }
                // More is needed; or something that only servers meet.
                Ok(_) => return Ok(used + discard),
                Err(error) => {
                    let rest = incoming.get_mut(used + discard..).unwrap_or_default();
                    alert(connection, rest, unsent);
                    return Err(meaning(error));
                }
            }
            used += discard;
        }
    }
}

/// What rustls wants to tell the server about an error. It wants to see what it has not taken.
fn alert(connection: &mut UnbufferedClientConnection, rest: &mut [u8], unsent: &mut Vec<u8>) {
    if let Ok(ConnectionState::EncodeTlsData(mut data)) = connection.process_tls_records(rest).state
    {
        let mut room = [0; 2 * WORD_BYTES];
        if let Ok(count) = data.encode(&mut room) {
            unsent.extend_from_slice(room.get(..count).unwrap_or_default());
        }
    }
}

/// Appends what `write` puts into the room that it is given; it says how much it needs if that is
/// too little, and `None` if it cannot at all.
fn append(
    out: &mut Vec<u8>,
    room: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> Result<(), TlsError> {
    let end = out.len();
    let mut room = room;
    for _ in 0..2 {
        out.resize(end + room, 0);
        match write(out.get_mut(end..).unwrap_or_default()) {
            Ok(count) => {
                out.truncate(end + count);
                return Ok(());
            }
            Err(Some(required)) => room = required,
            Err(None) => break,
        }
    }
    out.truncate(end);
    Err(TlsError::Failed("nothing more can be encrypted".to_owned()))
}

fn size(written: Result<usize, EncryptError>) -> Result<usize, Option<usize>> {
    written.map_err(|error| match error {
        EncryptError::InsufficientSize(size) => Some(size.required_size),
        EncryptError::EncryptExhausted => None,
    })
}

/// What an error of rustls is to whoever has to do something about it.
fn meaning(error: Error) -> TlsError {
    match error {
        Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => TlsError::NotTls,
        Error::InvalidCertificate(certificate) => judged(certificate),
        Error::AlertReceived(alert) => match alert {
            rustls::AlertDescription::NoApplicationProtocol => TlsError::OtherProtocol,
            alert => TlsError::BrokenOff(format!("{alert:?}")),
        },
        Error::NoApplicationProtocol => TlsError::OtherProtocol,
        error => TlsError::Failed(error.to_string()),
    }
}

fn judged(error: CertificateError) -> TlsError {
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsError::UnknownIssuer,
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsError::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            TlsError::NotYetValid
        }
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => TlsError::WrongName {
            wanted: expected.to_str().into_owned(),
            presented: match presented.is_empty() {
                true => "no name at all".to_owned(),
                false => presented.join(", "),
            },
        },
        // It has no kind of its own there.
        CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            TlsError::Authority
        }
        other => TlsError::Refused(other.to_string()),
    }
}
