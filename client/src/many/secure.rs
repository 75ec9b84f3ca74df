//! TLS between sessions and sockets. Without it nothing here is reached, and nothing is kept for it.

use super::{
    Many,
    config::{ConnIndex, ManyEvent, OnEvent},
    slot::State,
};
use crate::tls::{Progress, Secured, TlsError, is_alert};
use std::mem;

/// What TLS keeps for a connection.
#[derive(Debug, Default)]
pub(super) struct Security {
    pub(super) secured: Option<Box<Secured>>,
    begun_us: u64,
    /// It was secured before, and so has left a ticket.
    is_known: bool,
}

impl Many {
    /// TCP is there: the first flight is queued.
    pub(super) fn secure(&mut self, index: u32) -> Result<(), TlsError> {
        let Some(client) = &self.config.tls else {
            return Ok(());
        };
        let now_us = self.config.clock.now().mono_us;
        let name = client.name_of(&self.config.target.to_string())?;
        let security = &mut self.security[index as usize];
        let resume = client.resumes(security.is_known, self.handshakes);
        let secured = Secured::begin(client, name, resume)?;
        self.handshakes += 1;
        security.secured = Some(Box::new(secured));
        security.begun_us = now_us;
        self.slots[index as usize].state = State::Securing;
        self.mark_dirty(index);
        Ok(())
    }

    /// Bytes of a socket, on their way to the session.
    pub(super) fn received(&mut self, index: u32, bytes: &mut [u8], on_event: &mut OnEvent<'_>) {
        if self.config.tls.is_some() {
            return self.received_sealed(index, bytes, on_event);
        }
        if self.slots[index as usize].state == State::Greeting && is_alert(bytes) {
            return self.connect_failed(index, &TlsError::TlsWanted.into(), on_event);
        }
        self.drive(index, on_event, |session, now, on_event| {
            session.received(now, bytes, on_event);
        });
    }

    fn received_sealed(&mut self, index: u32, bytes: &mut [u8], on_event: &mut OnEvent<'_>) {
        let Some(secured) = &mut self.security[index as usize].secured else {
            return;
        };
        let mut plain = mem::take(&mut self.plain);
        let progress = secured.receive(bytes, &mut plain);
        let was_shaking = self.slots[index as usize].state == State::Securing;
        if was_shaking && matches!(progress, Ok(Progress::Open | Progress::Ended)) {
            self.secured(index, on_event);
        }
        if !plain.is_empty() {
            self.drive(index, on_event, |session, now, on_event| {
                session.received(now, &plain, on_event);
            });
        }
        plain.clear();
        self.plain = plain;
        match progress {
            // An answer of TLS itself may have to go out.
            Ok(Progress::Open | Progress::Shaking) => self.mark_dirty(index),
            Ok(Progress::Ended) => self.transport_ended(index, on_event),
            Err(error) => {
                // The alert, for whoever looks for the fault on the other side.
                self.write(index);
                if self.slots[index as usize].state == State::Securing {
                    self.connect_failed(index, &error.into(), on_event);
                } else {
                    self.transport_ended(index, on_event);
                }
            }
        }
    }

    /// The handshake is done; the session says HELLO.
    fn secured(&mut self, index: u32, on_event: &mut OnEvent<'_>) {
        let now = self.now();
        let security = &mut self.security[index as usize];
        security.is_known = true;
        let resumed = security
            .secured
            .as_ref()
            .is_some_and(|secured| secured.has_resumed());
        let event = ManyEvent::Secured {
            handshake_us: now.mono_us.saturating_sub(security.begun_us),
            resumed,
        };
        self.slots[index as usize].state = State::Greeting;
        on_event(now, ConnIndex(index), event);
        self.drive(index, on_event, |session, now, _| session.connected(now));
    }

    /// What the session has to say, for the socket; false when nothing can be sealed any more.
    pub(super) fn seal(&mut self, index: u32, is_last: bool) -> bool {
        let security = self.security.get_mut(index as usize);
        let Some(secured) = security.and_then(|security| security.secured.as_mut()) else {
            return true;
        };
        let output = self.slots[index as usize].session.output();
        if output.is_empty() && !is_last || !secured.is_open() {
            return true;
        }
        if secured.unsent().capacity() == 0
            && let Some(buffer) = self.spare_buffers.pop()
        {
            *secured.unsent() = buffer;
        }
        let sealed = output.is_empty() || secured.seal(output).is_ok();
        output.clear();
        if is_last {
            secured.close();
        }
        self.take_buffer_back(index);
        sealed
    }

    /// Something waits for the socket.
    pub(super) fn has_unsent(&mut self, index: u32) -> bool {
        let security = self.security.get_mut(index as usize);
        security
            .and_then(|security| security.secured.as_mut())
            .is_some_and(|secured| !secured.unsent().is_empty())
    }

    pub(super) fn forget_security(&mut self, index: u32) {
        if let Some(security) = self.security.get_mut(index as usize) {
            security.secured = None;
        }
    }
}
