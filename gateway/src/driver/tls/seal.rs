//! What goes out over TLS: what a session says by itself, then the core's bytes, a record at a time.

use super::seconds;
use crate::driver::{Driver, counters::Tally, socket::State};
use portico_core::ConnId;
use portico_tls::{RECORD_PLAINTEXT_MAX, SendError, sealed_len};
use std::mem;

/// One record: what a reader that stops can keep from being taken back.
const SEAL_BYTES_MAX: usize = RECORD_PLAINTEXT_MAX;
/// A key update may stand before the record.
const KEY_UPDATE_BYTES: usize = 27;

impl Driver {
    /// The next buffer of a TLS connection: what its session says by itself, then one record of what
    /// the core has for it.
    pub(in crate::driver) fn seal_output(&mut self, index: u32, conn: ConnId) -> Vec<u8> {
        let Some(link) = self.tls.get_mut(index) else {
            return Vec::new();
        };
        if link.is_usable() && link.unsealed().is_empty() {
            link.rest = self.core.take_output(conn);
            link.rest_from = 0;
        }
        self.seal(index)
    }

    /// The same for one that leaves: its last bytes, then close_notify.
    pub(in crate::driver) fn seal_farewell(&mut self, index: u32) -> Vec<u8> {
        let last = self.sockets.farewells.remove(&index).unwrap_or_default();
        let Some(link) = self.tls.get_mut(index) else {
            return last;
        };
        if !link.is_usable() {
            link.rest = Vec::new();
            link.rest_from = 0;
            self.core.recycle(last);
            return mem::take(&mut link.out);
        }
        if link.unsealed().is_empty() {
            link.rest = last;
            link.rest_from = 0;
        } else {
            link.rest.extend_from_slice(&last);
            self.core.recycle(last);
        }
        let mut buffer = self.seal(index);
        if let Some(link) = self.tls.get_mut(index)
            && link.is_usable()
            && link.unsealed().is_empty()
        {
            link.session.close(&mut buffer);
            link.closed = true;
            self.tallies.bump(Tally::TlsAlertOutClose);
        }
        buffer
    }

    fn seal(&mut self, index: u32) -> Vec<u8> {
        let key = self.sockets.key(index);
        let Some(link) = self.tls.links.get_mut(index as usize) else {
            return Vec::new();
        };
        let Some(link) = link.as_deref_mut() else {
            return Vec::new();
        };
        let mut buffer = mem::take(&mut link.out);
        (link.sealed, link.told) = (0, 0);
        let unsealed = link.rest.get(link.rest_from as usize..).unwrap_or_default();
        if unsealed.is_empty() {
            return buffer;
        }
        if buffer.capacity() == 0 {
            buffer = self.tls.spare.pop().unwrap_or_default();
        }
        let part = &unsealed[..unsealed.len().min(SEAL_BYTES_MAX)];
        buffer.reserve(sealed_len(part.len()) + KEY_UPDATE_BYTES);
        match link.session.send(part, &mut buffer) {
            Ok(taken) => {
                link.sealed = taken as u32;
                link.rest_from += taken as u32;
                if link.unsealed().is_empty() {
                    link.rest_from = 0;
                    self.core.recycle(mem::take(&mut link.rest));
                }
                self.tls.note_used(key, seconds(self.now));
            }
            Err(SendError::Closed | SendError::Handshaking) => link.mute(),
            Err(SendError::Failed(failure)) => {
                tracing::warn!(%failure, "a TLS session cannot go on");
                link.mute();
                self.tallies.bump(Tally::TlsEndedOther);
                self.end_in_core(index);
                return Vec::new();
            }
        }
        buffer
    }

    /// What the kernel has taken of a sealed buffer, in bytes of the core's.
    pub(in crate::driver) fn note_sealed_sent(
        &mut self,
        index: u32,
        sent: usize,
        of: usize,
    ) -> Option<usize> {
        self.tls.get_mut(index).map(|link| link.note_sent(sent, of))
    }

    /// The core wants back what a stalled reader has not taken: all that is not sealed. The record in
    /// flight goes to its end.
    pub(in crate::driver) fn recall_unsealed(&mut self, index: u32) {
        let conn = self.sockets.conn(index);
        let socket = self.sockets.get(index);
        let Some(link) = self.tls.get_mut(index) else {
            return;
        };
        if socket.state != State::Open || !socket.sending {
            return;
        }
        let (buffer, from) = if link.unsealed().is_empty() {
            (self.core.take_output(conn), 0)
        } else {
            (mem::take(&mut link.rest), mem::take(&mut link.rest_from))
        };
        if !buffer.is_empty() {
            // The core takes the rest as written with this; one byte is left to tell that it moves on.
            link.told = link.sealed.saturating_sub(1);
            self.core.take_back(conn, buffer, from as usize);
        }
    }
}
