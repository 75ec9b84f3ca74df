//! TLS 1.3 beneath a session, with rustls.
//!
//! [`TlsClient`] says whom to trust and keeps the ticket with which the next connection resumes;
//! `Secured` is one connection without I/O, which both drivers put between session and socket.
//! Nothing here is shared with the gateway, whose record layer is its own: so each end finds the
//! faults of the other.
//!
//! # Does not
//! Look anything up in the system's or a browser's list of authorities: trusted is what a file
//! names. Send early data, which could be repeated. Speak TLS 1.2.

#[cfg(not(feature = "tls"))]
mod absent;
#[cfg(feature = "tls")]
mod config;
mod error;
#[cfg(feature = "tls")]
mod secured;
#[cfg(feature = "tls")]
mod tickets;

#[cfg(not(feature = "tls"))]
pub(crate) use absent::{Secured, TlsClient};
#[cfg(feature = "tls")]
pub use config::{Resume, TlsClient};
pub use error::TlsError;
#[cfg(feature = "tls")]
pub(crate) use secured::Secured;

/// Where a gateway with a self-signed certificate leaves it, in its data directory.
#[cfg(feature = "tls")]
pub const CERTIFICATE_FILE: &str = "tls-cert.pem";
/// What client and server agree to speak within TLS.
pub(crate) const PROTOCOL: &str = "portico/1";

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "nobody gets so far"))]
pub(crate) enum Progress {
    Shaking,
    /// The handshake is done, now or earlier.
    Open,
    /// The server has said that nothing more comes.
    Ended,
}

/// An alert record at a place where a frame should begin: the server speaks TLS, the client did
/// not. A frame that begins so would be longer than any may be.
pub(crate) fn is_alert(bytes: &[u8]) -> bool {
    matches!(bytes, [0x15, 0x03, _, 0x00, 0x02, ..])
}
