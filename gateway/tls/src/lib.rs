//! TLS 1.3 of one server connection, as a state machine without I/O.
//!
//! The gateway's driver owns the sockets: bytes that the kernel has put into a receive buffer go
//! through [`Session::receive`], which decrypts them where they lie; what is to be sent goes
//! through [`Session::send`] into a buffer of the driver's pool. A session that rests owns its
//! secrets and two counters, nothing else. The wiring is `gateway/src/driver/tls.rs`.
//!
//! # Order of calls
//! An [`Acceptor`] makes a [`Session`] per connection. Until [`Received::opened`] says that the
//! handshake is over, the driver only calls `receive` and sends what that writes. Then it may call
//! `send`, [`Session::hibernate`] when the connection has been quiet for a while (the next record
//! wakes it), and [`Session::close`] before it closes the socket.
//!
//! # Who does what
//! rustls does the handshake: negotiation, certificates, transcript, key schedule, tickets. The two
//! application traffic secrets then leave it (`capture`), and it is dropped; records, key
//! updates and alerts after the handshake are handled here, over the ciphers of ring.
//! docs/decisions/0015-tls-record-layer.md says why.
//!
//! # Invariants
//! - Plaintext is handed out only after its record was authenticated.
//! - A number of a record is used once per key, and a key for fewer records than its cipher allows.
//! - Once open, a session allocates only when it wakes.
//! - After a fatal error the session holds no secret any more and ignores every byte.
//! - Everything a peer can make us keep has a bound: [`HANDSHAKE_BYTES_MAX`] until the handshake is
//!   over, nothing afterwards; incomplete records stay with the caller ([`RECORD_BYTES_MAX`]).
//! - No secret reaches a log line or a `Debug` output.
//!
//! # Does not
//! Own sockets, threads or timers, keep sessions in a cache, accept data before the handshake is
//! over (0-RTT), speak TLS 1.2. Deadlines are the driver's. The clock is read only to judge
//! certificates and tickets, through [`Settings`].

#![forbid(unsafe_code)]

mod acceptor;
mod alert;
mod capture;
mod clients;
mod end;
mod handshake;
mod identity;
mod open;
mod record;
mod secret;
mod secret_file;
#[cfg(feature = "self-signed")]
mod self_signed;
mod session;
mod tickets;
mod validity;

pub use acceptor::{ALPN, Acceptor, Settings};
pub use alert::Alert;
pub use clients::{Client, ClientMap, Clients, UriNames};
pub use end::{End, Failure, SendError, SettingsError};
pub use handshake::HANDSHAKE_BYTES_MAX;
pub use identity::Identity;
pub use record::{RECORD_BYTES_MAX, RECORD_OVERHEAD, RECORD_PLAINTEXT_MAX, sealed_len};
pub use rustls::pki_types::UnixTime;
pub use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
pub use secret::Suite;
#[cfg(feature = "self-signed")]
pub use self_signed::{SelfSigned, self_signed};
pub use session::{Form, Opened, Received, Session};
pub use tickets::{TICKET_PERIOD_S, TicketSecret};
pub use validity::Validity;
