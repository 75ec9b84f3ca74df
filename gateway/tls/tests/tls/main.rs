//! Sessions against clients that others have written: rustls in memory, OpenSSL over loopback.

mod certificates;
mod common;
mod handshake;
mod openssl;
mod refused;
