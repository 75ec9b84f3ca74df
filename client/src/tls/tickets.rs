//! Tickets of earlier connections, with which later ones resume.

use rustls::{
    NamedGroup,
    client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue},
    pki_types::ServerName,
};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The newest tickets of one server, each of which is shown once: nobody on the way can tell by it
/// that two connections are of one client. Another server's replace them.
#[derive(Debug)]
pub(super) struct Tickets {
    max: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    server: Option<ServerName<'static>>,
    tickets: VecDeque<Tls13ClientSessionValue>,
    group: Option<NamedGroup>,
}

impl Tickets {
    /// The oldest of more than `max` goes.
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            kept: Mutex::default(),
        }
    }

    /// What is kept is whole at any time.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a handshake has of the tickets.
#[derive(Debug)]
pub(super) struct Store {
    tickets: Arc<Tickets>,
    offers: bool,
}

impl Store {
    /// For handshakes that offer one, and keep the one that comes.
    pub(super) fn offering(tickets: &Arc<Tickets>) -> Self {
        Self {
            tickets: Arc::clone(tickets),
            offers: true,
        }
    }

    /// For handshakes that only keep it.
    pub(super) fn keeping(tickets: &Arc<Tickets>) -> Self {
        Self {
            tickets: Arc::clone(tickets),
            offers: false,
        }
    }
}

impl ClientSessionStore for Store {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.tickets.lock().group = Some(group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.tickets.lock().group
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let max = self.tickets.max;
        let mut kept = self.tickets.lock();
        if kept.server.as_ref() != Some(&server) {
            kept.tickets.clear();
            kept.server = Some(server);
        }
        kept.tickets.push_back(ticket);
        if kept.tickets.len() > max {
            kept.tickets.pop_front();
        }
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut kept = self.tickets.lock();
        let fits = self.offers && kept.server.as_ref() == Some(server);
        fits.then(|| kept.tickets.pop_back()).flatten()
    }
}
