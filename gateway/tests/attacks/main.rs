//! Attacks on the built program, each beside bystanders whose messages must not notice.
//!
//! An attack goes on for a second at least. Meanwhile four users pass a message round
//! a ring, so that both shards and the way between them are used, and 99 of 100 hops must take less
//! than 50 ms ([`siege`]). What bad bytes are answered with is shown in `e2e::hostile`; here it is
//! shown that those who do nothing wrong do not pay for it, and that nothing stays behind.
//!
//! # Rules of these tests
//! - One attack at a time, and none beside other end-to-end tests: the bystanders would measure those.
//! - Bystanders use the memory store: an fsync of somebody else is not what an attack costs.
//! - A machine that is busy with something else makes any clock lie. So an attack is tried up to
//!   [`siege::ATTEMPTS`] times, and one in which the bystanders are well is enough: an attack that
//!   harms them does so each time.

#[path = "../e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "other tests use more of it")]
mod harness;

mod bombs;
mod floods;
mod forgery;
mod frames;
mod garbage;
mod handover;
mod secrets;
mod siege;
mod slowloris;
mod tls;
