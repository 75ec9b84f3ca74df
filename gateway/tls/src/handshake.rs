//! The handshake: rustls, given one record after the other.
//!
//! rustls is handed no byte behind the record it is at. When it says that the handshake is over,
//! what follows has not been touched, and is this crate's to open.

use crate::{
    acceptor::Current,
    alert::Alert,
    capture::{self, Capture, Captured},
    end::{End, Failure},
    open::Open,
    record::{
        ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, HEADER_BYTES, RECORD_BYTES_MAX,
        RECORD_OVERHEAD, put_plain_alert,
    },
    secret::{Secret, Suite},
    session::Opened,
};
use rustls::{
    ConnectionTrafficSecrets, HandshakeKind,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError},
};
use std::{fmt, sync::Arc};

/// What a client may send until its handshake is over, certificates included.
pub const HANDSHAKE_BYTES_MAX: usize = 32 << 10;

/// Level and description.
const ALERT_BYTES: usize = 2;
/// More than the records of any flight.
const FLIGHT_RECORDS_MAX: usize = 64;

pub(crate) struct Handshake {
    current: Arc<Current>,
    /// None until the first record is complete: who only connects costs little.
    rustls: Option<Box<UnbufferedServerConnection>>,
    /// What rustls has not done with, and the record that is incomplete.
    pending: Vec<u8>,
    /// Where that record starts.
    record: usize,
    received: usize,
    captured: Captured,
    /// We have sent something. Alerts then have to be encrypted, which only rustls could.
    answered: bool,
}

/// What a call of [`Handshake::receive`] came to.
#[derive(Debug)]
pub(crate) enum Step {
    /// All bytes were taken; there must be more.
    More,
    /// The handshake is over. So many bytes were taken.
    Done(usize, Box<Open>, Box<Opened>),
    Ended(End),
}

/// How rustls stands after a record.
enum Stand {
    Blocked,
    Over,
}

impl Handshake {
    pub(crate) fn new(current: Arc<Current>) -> Self {
        Self {
            current,
            rustls: None,
            pending: Vec::new(),
            record: 0,
            received: 0,
            captured: Captured::default(),
            answered: false,
        }
    }

    pub(crate) fn receive(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Step {
        let before = out.len();
        match self.receive_records(bytes, out) {
            Ok(step) => step,
            Err(End::Failed(failure)) => {
                self.answered |= out.len() > before;
                if !self.answered {
                    put_plain_alert(failure.alert(), out);
                }
                Step::Ended(End::Failed(failure))
            }
            Err(end) => Step::Ended(end),
        }
    }

    fn receive_records(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Step, End> {
        let mut taken = 0;
        loop {
            let header = missing(self.pending.get(self.record..).unwrap_or_default());
            if let Missing::Bytes(wanted) = header {
                let rest = bytes.get(taken..).unwrap_or_default();
                let part = rest.get(..wanted).unwrap_or(rest);
                if part.is_empty() {
                    return Ok(Step::More);
                }
                self.received += part.len();
                if self.received > HANDSHAKE_BYTES_MAX {
                    return Err(End::Failed(Failure::HandshakeTooLong));
                }
                self.pending.extend_from_slice(part);
                taken += part.len();
                continue;
            }
            match self.drive(out)? {
                // rustls would wait for the rest of a record that has no end.
                Stand::Blocked if header == Missing::NoRecord => {
                    return Err(End::Failed(Failure::UnexpectedRecord));
                }
                Stand::Blocked => self.record = self.pending.len(),
                Stand::Over => {
                    let (open, opened) = self.finish(out)?;
                    return Ok(Step::Done(taken, open, opened));
                }
            }
        }
    }

    /// Hands the pending records to rustls, and takes what it sends.
    fn drive(&mut self, out: &mut Vec<u8>) -> Result<Stand, End> {
        let mut rustls = match self.rustls.take() {
            Some(rustls) => rustls,
            None => Box::new(
                UnbufferedServerConnection::new(self.current.config.clone())
                    .map_err(|error| Failure::Handshake(Box::new(error)))?,
            ),
        };
        let before = out.len();
        let result = loop {
            let status = rustls.process_tls_records(&mut self.pending);
            let discard = status.discard;
            let stand = match status.state {
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, out).map(|()| None),
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    Ok(None)
                }
                Ok(ConnectionState::BlockedHandshake) => Ok(Some(Stand::Blocked)),
                Ok(ConnectionState::WriteTraffic(_)) => Ok(Some(Stand::Over)),
                // There is no early data, and nothing behind the handshake was handed over.
                Ok(_) => Err(End::Failed(Failure::Internal)),
                Err(error) => Err(end(error)),
            };
            self.captured.add(capture::take());
            self.pending.drain(..discard.min(self.pending.len()));
            match stand {
                Ok(None) => {}
                Ok(Some(stand)) => break Ok(stand),
                Err(end) => break Err(end),
            }
        };
        if result.is_err() {
            take_alert(&mut rustls, &mut self.pending, out)?;
        }
        self.answered |= out.len() > before;
        self.rustls = Some(rustls);
        result
    }

    /// Takes over from rustls.
    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(Box<Open>, Box<Opened>), End> {
        let rustls = *self.rustls.take().ok_or(Failure::Internal)?;
        let suite = rustls
            .negotiated_cipher_suite()
            .and_then(|suite| Suite::of(suite.suite()))
            .ok_or(Failure::Internal)?;
        let certificates = rustls.peer_certificates().map(<[_]>::to_vec);
        let mut opened = Box::new(Opened {
            suite,
            alpn: rustls.alpn_protocol().is_some(),
            resumed: rustls.handshake_kind() == Some(HandshakeKind::Resumed),
            client: None,
        });
        let (extracted, _key_schedule) = rustls
            .dangerous_into_kernel_connection()
            .map_err(|error| Failure::Handshake(Box::new(error)))?;
        let captured = std::mem::take(&mut self.captured);
        let received = captured.client.ok_or(Failure::Internal)?;
        let sent = captured.server.ok_or(Failure::Internal)?;
        // Two ways to the same keys: by our expansion of the secrets, and by rustls'.
        same_keys(&received, suite, &extracted.rx.1)?;
        same_keys(&sent, suite, &extracted.tx.1)?;
        let received = (received, extracted.rx.0);
        let mut open = Box::new(Open::new(suite, received, (sent, extracted.tx.0)));
        if let (Some(certificates), Some(map)) = (certificates, &self.current.clients) {
            opened.client = map.client(&certificates);
            if opened.client.is_none() {
                open.put_alert(Alert::ACCESS_DENIED, out);
                self.answered = true;
                return Err(End::Failed(Failure::UnknownClient));
            }
        }
        Ok((open, opened))
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake")
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

/// What rustls lacks to judge the record at the front of what is pending.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Bytes(usize),
    Nothing,
    /// This is no header of a record.
    NoRecord,
}

fn missing(record: &[u8]) -> Missing {
    let Some(&[kind, major, _, high, low]) = record.first_chunk::<HEADER_BYTES>() else {
        return Missing::Bytes(HEADER_BYTES - record.len());
    };
    let known = matches!(
        kind,
        CHANGE_CIPHER_SPEC | ALERT | HANDSHAKE | APPLICATION_DATA
    );
    let total = HEADER_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if !known || major != 3 || total > RECORD_BYTES_MAX {
        return Missing::NoRecord;
    }
    match total.saturating_sub(record.len()) {
        0 => Missing::Nothing,
        bytes => Missing::Bytes(bytes),
    }
}

fn encode(
    mut data: EncodeTlsData<'_, rustls::server::ServerConnectionData>,
    out: &mut Vec<u8>,
) -> Result<(), End> {
    let before = out.len();
    // Asked without room, it says how much it needs.
    if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) =
        data.encode(&mut [])
    {
        out.resize(before + required_size, 0);
        let room = out.get_mut(before..).unwrap_or_default();
        data.encode(room).map_err(|_| Failure::Internal)?;
    }
    Ok(())
}

/// Takes what rustls has queued until it failed, of which the alert is the last. It hands that out
/// before it looks at input; it is not called again behind the alert, since it would look.
fn take_alert(
    rustls: &mut UnbufferedServerConnection,
    pending: &mut [u8],
    out: &mut Vec<u8>,
) -> Result<(), End> {
    for _ in 0..FLIGHT_RECORDS_MAX {
        let before = out.len();
        let status = rustls.process_tls_records(pending);
        let Ok(ConnectionState::EncodeTlsData(data)) = status.state else {
            break;
        };
        encode(data, out)?;
        let record = out.get(before..).unwrap_or_default();
        // Nothing else that a server sends encrypted is as short.
        let is_alert = match record.first() {
            Some(&APPLICATION_DATA) => record.len() == ALERT_BYTES + RECORD_OVERHEAD,
            kind => kind == Some(&ALERT),
        };
        if is_alert {
            break;
        }
    }
    Ok(())
}

fn end(error: rustls::Error) -> End {
    match error {
        rustls::Error::AlertReceived(alert) => End::PeerAlert(Alert(alert.into())),
        error => End::Failed(Failure::Handshake(Box::new(error))),
    }
}

fn same_keys(
    secret: &Secret,
    suite: Suite,
    extracted: &ConnectionTrafficSecrets,
) -> Result<(), Failure> {
    let (their_suite, key, iv) = match extracted {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Suite::Aes128Gcm, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Suite::Aes256Gcm, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
            (Suite::Chacha20Poly1305, key, iv)
        }
        _ => return Err(Failure::Internal),
    };
    let ours = secret.expand(suite).map_err(|_| Failure::Internal)?;
    let same = suite == their_suite && ours.is(suite, key.as_ref(), iv.as_ref());
    same.then_some(()).ok_or(Failure::Internal)
}

/// Where rustls is to report secrets.
pub(crate) fn key_log() -> Arc<dyn rustls::KeyLog> {
    Arc::new(Capture)
}
