//! The Portico wire protocol: frames, operations, codes, limits, bodies.
//!
//! This is the only crate that knows bytes. It does no I/O and has no clock; what it reads it lends
//! from the caller's buffer, what it writes it appends to one. docs/PROTOCOL.md describes the same protocol for authors of clients in
//! other languages.
//!
//! Reading goes [`frame::next_frame`] (headers, nothing to verify but lengths), then a value of
//! [`message`] for operations that have a body. Writing goes through [`encode`].
//!
//! # Invariants
//! - No input makes this crate panic or read out of bounds; a bad frame is a [`FrameError`], a bad
//!   body a [`BodyError`].
//! - A length is judged as soon as its four bytes are there, before anything is kept.
//! - A flatbuffer is opened by [`verify::root`] alone, with limits from [`limits`], never with the
//!   crate's defaults, and never without verification.
//!
//! # Does not
//! Decide what an operation means, keep state between frames, or know TCP, TLS or WebSocket.

pub mod code;
pub mod encode;
pub mod error;
pub mod frame;
mod generated;
pub mod ids;
pub mod limits;
pub mod message;
pub mod op;
pub mod verify;

pub use code::{CloseCode, ErrorCode};
pub use error::{BodyError, FrameError};
pub use frame::{Flags, Frame, RouteHeader, SeqHeader, next_frame};
pub use generated::fb;
pub use op::Op;

/// The protocol version this crate speaks.
pub const VERSION: u16 = 1;
