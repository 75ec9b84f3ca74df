//! The built program, over TCP: what an operator starts and what a client sees.
//!
//! Each test starts a `portico` of its own on free ports with a data directory of its own, talks
//! to it as a well-behaved or a hostile client, and looks at what it says to operators: ready
//! line, exit code, log, metrics. Nothing here reaches into the gateway; what can be shown without
//! a process is shown in the crates.
//!
//! # Rules of these tests
//! - A gateway that logs a WARN or an ERROR the test did not announce, or that panics, fails the
//!   test, whatever else happened ([`harness::Gateway`] looks when it is dropped).
//! - Waiting is waiting for something, with a generous deadline. Nothing sleeps for a while and
//!   hopes.
//! - Message bodies and users are made from fixed numbers. What has to vary (when a process is
//!   killed, bytes of noise) comes from a seed that is printed, and taken from `PORTICO_E2E_SEED`
//!   when it is set.

mod backlog;
mod devices;
mod durability;
mod first_steps;
mod groups;
mod harness;
mod history;
mod hostile;
mod limits;
mod ordinary;
mod people;
mod quiet;
mod receipts;
mod shards;
mod terminal;
mod tls;
mod tokens;
