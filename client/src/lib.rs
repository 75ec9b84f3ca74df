//! Client for Portico gateways.
//!
//! [`Session`] is the protocol without I/O: login, resume, outbox with RETRY, cursor and
//! acknowledgements, heartbeats, back-off. Two drivers carry it over TCP: [`Client`] runs one
//! session on a thread, [`many`] a great number of them on one thread. [`RawConnection`] speaks
//! single frames, for tests that want to misbehave.
//!
//! # With a socket
//! ```no_run
//! use portico_client::{Client, OwnedEvent, Session, SessionConfig, SessionState};
//! use portico_wire::ids::{DeviceId, UserId};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let token = std::env::var("TOKEN")?;
//! let config = SessionConfig::new(UserId(1), DeviceId(1), token);
//! // The seed must differ each time; here the time is what differs.
//! let seed = std::time::UNIX_EPOCH.elapsed()?.as_nanos() as u64;
//! let session = Session::new(config, SessionState::default(), seed);
//! let client = Client::connect("127.0.0.1:7400", session)?;
//! client.send_text(UserId(2), "hello")?;
//! while let Some(event) = client.next_event(Duration::from_secs(60)) {
//!     match event {
//!         OwnedEvent::Message { from, envelope: Some(envelope), .. } => {
//!             println!("{from}: {}", String::from_utf8_lossy(&envelope.body));
//!         }
//!         other => println!("{other:?}"),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Without one
//! The session alone, with a server's answers made by hand:
//! ```
//! use portico_client::{
//!     Event, Now, Phase, SendOptions, Session, SessionConfig, SessionState, plain_envelope,
//! };
//! use portico_wire::{encode, ids::*, message::Welcome};
//!
//! let config = SessionConfig::new(UserId(1), DeviceId(1), "a token");
//! let mut session = Session::new(config, SessionState::default(), 42);
//! let now = Now { mono_us: 0, wall_us: 1_790_000_000_000_000 };
//!
//! // The driver has a connection; HELLO waits to be written.
//! session.connected(now);
//! assert_eq!(session.output().drain(..).as_slice()[4], portico_wire::Op::Hello as u8);
//!
//! let mut from_server = Vec::new();
//! let welcome = Welcome { user: UserId(1), device: DeviceId(1), ..Welcome::default() };
//! encode::Encoder::new().welcome(&mut from_server, 1, &welcome);
//! encode::put_synced(&mut from_server, Seq(0), 0);
//! session.received(now, &from_server, &mut |event| println!("{event:?}"));
//! assert_eq!(session.phase(), Phase::Live);
//!
//! // A message goes out, and SENT takes it out of the outbox.
//! let envelope = plain_envelope("hello");
//! let id = session.send(now, UserId(2), &envelope, SendOptions::default())?;
//! assert_eq!(session.unsent(), 1);
//! let frame = portico_wire::next_frame(session.output(), 65_536)?.unwrap();
//! let mut from_server = Vec::new();
//! encode::put_sent(&mut from_server, frame.corr(), ConvSeq(7), false);
//! session.received(now, &from_server, &mut |event| {
//!     assert!(matches!(event, Event::Sent { msg_id, .. } if msg_id == id));
//! });
//! assert_eq!(session.unsent(), 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//! `mint`: tokens from a local key. `tls`: TLS 1.3 beneath both drivers ([`TlsClient`]). `chat`: the
//! terminal chat, with both.

pub mod blocking;
#[cfg(feature = "chat")]
pub mod chat;
mod link;
pub mod many;
#[cfg(feature = "mint")]
pub mod mint;
mod owned;
pub mod raw;
pub mod session;
#[cfg(all(test, feature = "chat"))]
#[path = "../tests/support/mod.rs"]
mod support;
mod tls;

pub use blocking::Client;
pub use owned::{
    OwnedAnswer, OwnedContact, OwnedEnvelope, OwnedEvent, OwnedGroup, OwnedGroupChange,
};
pub use raw::{RawConnection, RawError, RawFrame, RawWelcome};
pub use session::{
    Answer, AskId, Conv, Event, Failure, Login, Now, Page, Phase, ProtocolFault, SendError,
    SendOptions, Session, SessionConfig, SessionState, Settings, StateError,
};
pub use tls::TlsError;
#[cfg(feature = "tls")]
pub use tls::{CERTIFICATE_FILE, Resume, TlsClient};

use portico_wire::{encode::Encoder, message::Envelope};

/// The Envelope of a text that is not encrypted.
#[must_use]
pub fn plain_envelope(text: &str) -> Vec<u8> {
    let envelope = Envelope {
        body: text.as_bytes(),
        ..Envelope::default()
    };
    Encoder::new().envelope(&envelope).to_vec()
}
