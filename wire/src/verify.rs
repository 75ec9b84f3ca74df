//! The only door to a flatbuffer: every body is verified with limits of ours.

use crate::{
    error::BodyError,
    limits::{
        FRAME_BYTES_CEILING, VERIFY_DEPTH_MAX, VERIFY_TABLES_CLIENT_MAX, VERIFY_TABLES_LARGE_MAX,
        VERIFY_TABLES_MAX,
    },
};
use flatbuffers::{Follow, Verifiable, VerifierOptions};

/// How much a body may hold, by who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// From a client: small.
    Server,
    /// KEYS_UPLOAD, NOTIFY_PREFS and CONTACTS_EDIT from a client.
    ServerLarge,
    /// From the server, read by a client.
    Client,
}

impl Scope {
    fn options(self) -> VerifierOptions {
        VerifierOptions {
            max_depth: VERIFY_DEPTH_MAX,
            max_tables: match self {
                Self::Server => VERIFY_TABLES_MAX,
                Self::ServerLarge => VERIFY_TABLES_LARGE_MAX,
                Self::Client => VERIFY_TABLES_CLIENT_MAX,
            },
            max_apparent_size: FRAME_BYTES_CEILING,
            ignore_missing_null_terminator: true,
        }
    }
}

/// Opens `body` as a table of type `T` after verifying all of it.
pub fn root<'a, T>(body: &'a [u8], scope: Scope) -> Result<T::Inner, BodyError>
where
    T: Follow<'a> + Verifiable + 'a,
{
    flatbuffers::root_with_opts::<T>(&scope.options(), body).map_err(|_| BodyError::Malformed)
}
