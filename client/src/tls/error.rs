//! Why there is no TLS connection, in sentences that say what is likely wrong.

use std::io;

/// See the [module](self). None of them heals itself but [`TlsError::CutOff`] and
/// [`TlsError::TimedOut`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}: {reason}")]
    Unreadable { path: String, reason: String },
    #[error("{path} holds no certificate (it is to be PEM, BEGIN CERTIFICATE)")]
    NoCertificate { path: String },
    #[error("a certificate in {path} cannot be used: {reason}")]
    BadCertificate { path: String, reason: String },
    #[error("`{0}` is neither a DNS name nor an address that a certificate could be for")]
    BadName(String),
    #[error("the server does not speak TLS there")]
    NotTls,
    #[error("the server speaks TLS there, and this client does not")]
    TlsWanted,
    #[error("the server's certificate comes from nobody who is trusted")]
    UnknownIssuer,
    #[error("the server's certificate has expired")]
    Expired,
    #[error("the server's certificate is not valid yet")]
    NotYetValid,
    #[error("the server's certificate is not for {wanted}, but for {presented}")]
    WrongName { wanted: String, presented: String },
    #[error("the server shows the certificate of an authority instead of one of its own")]
    Authority,
    #[error("the server's certificate is refused: {0}")]
    Refused(String),
    #[error("the server did not agree on the protocol {}", crate::tls::PROTOCOL)]
    OtherProtocol,
    #[error("the server broke the handshake off: {0}")]
    BrokenOff(String),
    #[error("the connection ended within the handshake")]
    CutOff,
    #[error("the handshake was not done in time")]
    TimedOut,
    #[error("TLS failed: {0}")]
    Failed(String),
}

impl TlsError {
    /// What to try, in the flags of `portico chat` and `portico-loadgen`; empty where nothing is
    /// better than what the error says.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } | Self::NoCertificate { .. } | Self::BadCertificate { .. } => {
                "--tls-ca names the file with the authority's or the server's own certificate; \
                 a server started with --tls-self-signed leaves it as tls-cert.pem in its data \
                 directory (--data)"
            }
            Self::NotTls => "leave --tls out, or name the port of the server's --tls-listen",
            Self::TlsWanted => "add --tls, or name the port of the server's --listen",
            Self::UnknownIssuer => {
                "--tls-ca names the file with the authority's certificate, or with the server's \
                 own if it is self-signed; has the server made a new one since?"
            }
            Self::Expired => "the server needs a new one; or is the clock of this machine ahead?",
            Self::NotYetValid => "is the clock of this machine behind?",
            Self::WrongName { .. } | Self::BadName(_) => {
                "--server-name says whose certificate is expected"
            }
            Self::Authority => {
                "it needs a certificate without CA:TRUE (openssl: -addext \
                 basicConstraints=critical,CA:FALSE)"
            }
            Self::OtherProtocol => "is it a gateway?",
            Self::CutOff | Self::TimedOut => "is that the port of the server's --tls-listen?",
            Self::Refused(_) | Self::BrokenOff(_) | Self::Failed(_) => "",
        }
    }

    /// What is wrong, and what to try.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self.advice() {
            "" => self.to_string(),
            advice => format!("{self}; {advice}"),
        }
    }

    /// The error of this kind that an I/O error carries.
    #[must_use]
    pub fn within(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        let kind = match error {
            TlsError::TimedOut => io::ErrorKind::TimedOut,
            TlsError::CutOff => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}
