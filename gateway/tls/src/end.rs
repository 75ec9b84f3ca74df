//! Why a session ends, why nothing can be sent, and what is wrong with settings.

use crate::alert::Alert;
use std::path::PathBuf;

/// How a session ended, as seen from here.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// The peer has said that it sends nothing more (close_notify). It may still read: what is left
    /// can be sent before [`Session::close`](crate::Session::close).
    PeerClosed,
    /// The peer gave up, for this reason. Nothing can be sent.
    PeerAlert(Alert),
    /// We gave up. Nothing can be sent but the alert that was written already.
    Failed(Failure),
}

impl End {
    /// A name for counters, from a closed list.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::PeerClosed => "peer_closed",
            Self::PeerAlert(_) => "peer_alert",
            Self::Failed(failure) => failure.label(),
        }
    }
}

/// What the peer did that no session survives, or what went wrong here.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    #[error("the handshake failed: {0}")]
    Handshake(Box<rustls::Error>),
    #[error("the handshake took more than {} bytes", crate::HANDSHAKE_BYTES_MAX)]
    HandshakeTooLong,
    #[error("the client's certificate is valid, but names no user")]
    UnknownClient,
    #[error("a record could not be authenticated")]
    BadRecord,
    #[error("a record is longer than TLS allows")]
    RecordTooLong,
    #[error("a record of a type that may not come after the handshake")]
    UnexpectedRecord,
    #[error("a record of padding only")]
    OnlyPadding,
    #[error("too many records in a row that carry nothing")]
    FruitlessRecords,
    #[error(
        "a handshake message other than a key update, or a key update that does not end its record"
    )]
    UnexpectedHandshake,
    #[error("a key update that neither asks for one nor does not")]
    BadKeyUpdate,
    #[error("an alert that is not of two bytes")]
    BadAlert,
    #[error("the numbers of records are used up")]
    SequenceUsedUp,
    #[error("the key schedules of rustls and of this crate differ, or a cipher refused its key")]
    Internal,
}

impl Failure {
    /// What the peer is told.
    #[must_use]
    pub const fn alert(&self) -> Alert {
        match self {
            // Where rustls has an alert of its own, that one is sent instead.
            Self::Handshake(_) | Self::BadAlert | Self::HandshakeTooLong => Alert::DECODE_ERROR,
            Self::UnknownClient => Alert::ACCESS_DENIED,
            Self::BadRecord => Alert::BAD_RECORD_MAC,
            Self::RecordTooLong => Alert::RECORD_OVERFLOW,
            Self::UnexpectedRecord
            | Self::OnlyPadding
            | Self::FruitlessRecords
            | Self::UnexpectedHandshake => Alert::UNEXPECTED_MESSAGE,
            Self::BadKeyUpdate => Alert::ILLEGAL_PARAMETER,
            Self::SequenceUsedUp | Self::Internal => Alert::INTERNAL_ERROR,
        }
    }

    /// A name for counters, from a closed list.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Handshake(error) => match &**error {
                rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol => {
                    "incompatible"
                }
                rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
                    "client_certificate"
                }
                _ => "handshake",
            },
            Self::HandshakeTooLong => "handshake_too_long",
            Self::UnknownClient => "unknown_client",
            Self::BadRecord => "bad_record",
            Self::RecordTooLong => "record_too_long",
            Self::UnexpectedRecord => "unexpected_record",
            Self::OnlyPadding => "only_padding",
            Self::FruitlessRecords => "fruitless_records",
            Self::UnexpectedHandshake => "unexpected_handshake",
            Self::BadKeyUpdate => "bad_key_update",
            Self::BadAlert => "bad_alert",
            Self::SequenceUsedUp => "sequence_used_up",
            Self::Internal => "internal",
        }
    }
}

/// Why nothing was sent.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SendError {
    #[error("the handshake is not over")]
    Handshaking,
    #[error("the session has ended or was closed here")]
    Closed,
    #[error("the session cannot go on: {0}")]
    Failed(Failure),
}

/// What is wrong with a certificate, a key or another setting.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{file}: cannot be read: {source}", file = .file.display())]
    Read {
        file: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "{file}: everybody on this machine can use it (mode {mode:04o}), and whoever has it can pass for this server: \
         chmod o= {file}",
        file = .file.display()
    )]
    Exposed { file: PathBuf, mode: u32 },
    #[error("{file}: is not PEM: {reason}", file = .file.display())]
    NotPem { file: PathBuf, reason: String },
    #[error(
        "{file}: holds no certificate; it must hold the server's, then those between it and the authority, \
         each as a block BEGIN CERTIFICATE",
        file = .file.display()
    )]
    NoCertificate { file: PathBuf },
    #[error(
        "{file}: holds no private key; it must hold one block BEGIN PRIVATE KEY, BEGIN EC PRIVATE KEY or \
         BEGIN RSA PRIVATE KEY, not encrypted",
        file = .file.display()
    )]
    NoKey { file: PathBuf },
    #[error(
        "{file}: the private key is of a kind that is not supported ({reason}); use ECDSA P-256 or P-384, Ed25519, \
         or RSA of 2,048 bits or more",
        file = .file.display()
    )]
    UnsupportedKey { file: PathBuf, reason: String },
    #[error(
        "{key}: is not the key of the first certificate in {certificate}",
        key = .key.display(), certificate = .certificate.display()
    )]
    KeyMismatch { key: PathBuf, certificate: PathBuf },
    #[error("{file}: certificate {number} cannot be parsed: {reason}", file = .file.display())]
    BadCertificate {
        file: PathBuf,
        /// From 1.
        number: usize,
        reason: String,
    },
    #[error("{file}: holds {bytes} bytes; a ticket secret has {min} to {max}", file = .file.display(),
        min = crate::TicketSecret::BYTES_MIN, max = crate::TicketSecret::BYTES_MAX)]
    TicketSecretLength { file: PathBuf, bytes: usize },
    #[error("the system gives no random numbers")]
    NoRandom,
    #[error("a certificate cannot be made for these names: {reason}")]
    SelfSigned { reason: String },
    #[error("rustls refuses these settings: {0}")]
    Refused(String),
}
