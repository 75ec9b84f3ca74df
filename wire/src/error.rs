//! What can be wrong with bytes.

use crate::code::CloseCode;

/// A fault in the framing itself: the stream cannot be followed any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length field is below the smallest frame.
    #[error("the length field is below 12")]
    TooShort,
    /// The length field is above the limit that holds at this point.
    #[error("the frame is longer than the limit")]
    TooLong,
    /// The header ends outside the frame, or before what the operation demands.
    #[error("the header length does not fit the frame or the operation")]
    BadHeader,
}

impl FrameError {
    /// How the connection ends.
    #[must_use]
    pub const fn close_code(self) -> CloseCode {
        match self {
            Self::TooLong => CloseCode::FRAME_TOO_LARGE,
            Self::TooShort | Self::BadHeader => CloseCode::PROTOCOL_ERROR,
        }
    }
}

/// A fault in a body. The stream can be followed; this frame cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Not a flatbuffer of the expected type, within our limits.
    #[error("the body is not a valid flatbuffer of this operation")]
    Malformed,
    /// A field is longer than its limit.
    #[error("a field is longer than its limit")]
    TooLong,
    /// A field that the operation cannot do without is absent.
    #[error("a required field is absent")]
    Missing,
}
