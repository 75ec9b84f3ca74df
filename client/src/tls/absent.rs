//! What stands for TLS without the feature `tls`: values that nobody can have, so that the drivers
//! are written once.

use super::{Progress, TlsError};
use std::convert::Infallible;

#[derive(Clone, Debug)]
pub(crate) enum TlsClient {}

#[derive(Debug)]
pub(crate) enum Secured {}

impl TlsClient {
    pub(crate) const fn name_of(&self, _address: &str) -> Result<Infallible, TlsError> {
        match *self {}
    }

    pub(crate) const fn resumes(&self, _returning: bool, _handshakes: u64) -> bool {
        match *self {}
    }
}

impl Secured {
    pub(crate) const fn begin(
        client: &TlsClient,
        _name: Infallible,
        _resume: bool,
    ) -> Result<Self, TlsError> {
        match *client {}
    }

    pub(crate) const fn receive(
        &mut self,
        _bytes: &mut [u8],
        _plain: &mut Vec<u8>,
    ) -> Result<Progress, TlsError> {
        match *self {}
    }

    pub(crate) const fn seal(&mut self, _plain: &[u8]) -> Result<(), TlsError> {
        match *self {}
    }

    pub(crate) const fn close(&mut self) {
        match *self {}
    }

    pub(crate) const fn unsent(&mut self) -> &mut Vec<u8> {
        match *self {}
    }

    pub(crate) const fn is_open(&self) -> bool {
        match *self {}
    }

    pub(crate) const fn has_resumed(&self) -> bool {
        match *self {}
    }
}
