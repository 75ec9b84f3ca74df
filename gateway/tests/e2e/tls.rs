//! TLS as clients and operators see it. What a record or a handshake may look like is tested in
//! `portico-tls`, cut at every place; here it is the program that is looked at: that the same
//! messages go through, who is turned away and how, what happens to the files, and what a storm of
//! handshakes does to others.
//!
//! Clients are rustls with its buffered API, and `openssl s_client` where it is installed.

mod balancer;
mod client;
mod clients;
mod cost;
mod files;
mod openssl;
mod refused;
mod service;
mod storm;
