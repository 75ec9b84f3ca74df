//! How the application traffic secrets leave rustls.
//!
//! rustls reports the secrets of a connection to a `KeyLog`. This one takes two of them, the
//! application traffic secrets, keeps them for the call that made them, and refuses all others.
//! Nothing is written anywhere.
//!
//! rustls' own way to keep a session going without its record layer, `KernelConnection`, holds the
//! key schedule and 0.7 KB per connection, and cannot be moved between processes. With the two secrets a
//! key update is one expansion, and a resting session is 152 bytes.
//!
//! A call into rustls runs to its end on one thread, so that what it reports meanwhile belongs to
//! the connection it was called for: a cell of the thread is enough, taken right after the call.

use crate::secret::Secret;
use rustls::KeyLog;
use std::cell::Cell;

const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

/// The secrets that have been reported so far.
#[derive(Debug, Default)]
pub(crate) struct Captured {
    pub(crate) client: Option<Secret>,
    pub(crate) server: Option<Secret>,
}

impl Captured {
    const NONE: Self = Self {
        client: None,
        server: None,
    };

    /// Adds what a call has reported.
    pub(crate) fn add(&mut self, later: Self) {
        self.client = later.client.or(self.client.take());
        self.server = later.server.or(self.server.take());
    }
}

thread_local! {
    static CAPTURED: Cell<Captured> = const { Cell::new(Captured::NONE) };
}

/// What was reported on this thread since the last call of this.
pub(crate) fn take() -> Captured {
    CAPTURED.take()
}

#[derive(Debug)]
pub(crate) struct Capture;

impl KeyLog for Capture {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        let mut captured = CAPTURED.take();
        match label {
            CLIENT => captured.client = Secret::new(secret),
            SERVER => captured.server = Secret::new(secret),
            _ => {}
        }
        CAPTURED.set(captured);
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, CLIENT | SERVER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_application_traffic_secrets_are_taken_and_once() {
        for label in [
            "EXPORTER_SECRET",
            "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
            "SERVER_HANDSHAKE_TRAFFIC_SECRET",
            "CLIENT_EARLY_TRAFFIC_SECRET",
        ] {
            assert!(!Capture.will_log(label), "{label}");
            Capture.log(label, &[], &[1; 32]);
        }
        let captured = take();
        assert!(captured.client.is_none() && captured.server.is_none());
        Capture.log(CLIENT, &[], &[1; 32]);
        let mut first = take();
        Capture.log(SERVER, &[], &[1; 32]);
        first.add(take());
        assert!(first.client.is_some() && first.server.is_some());
        assert!(take().server.is_none());
    }
}
