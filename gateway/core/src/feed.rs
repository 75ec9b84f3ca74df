//! From bytes to frames.

use crate::{Effects, Input, Now, Shard, conn::ConnId};
use portico_wire::next_frame;

/// Hands in the frames at the start of `bytes` and returns how many bytes they took. The driver
/// keeps the rest: part of a frame, or whole frames of a connection that wants no input for now
/// ([`Shard::wants_input`]). After a framing error, or once the connection is gone, everything
/// counts as taken.
pub fn feed(shard: &mut Shard, now: Now, conn: ConnId, bytes: &[u8], fx: &mut Effects) -> usize {
    let mut used = 0;
    while shard.wants_input(conn) {
        let rest = &bytes[used..];
        match next_frame(rest, shard.frame_bytes_max(conn)) {
            Ok(Some(frame)) => {
                used += frame.bytes().len();
                shard.handle(now, Input::Frame { conn, frame }, fx);
            }
            Ok(None) => return used,
            Err(error) => shard.handle(now, Input::BadFrame { conn, error }, fx),
        }
    }
    if shard.is_open(conn) {
        used
    } else {
        bytes.len()
    }
}
