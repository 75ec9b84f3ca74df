//! What the core promises, a file per promise, proved on whole gateways under virtual time: shards,
//! a model store and raw clients ([`portico_core::testing::World`]). The rules O1 to O16 of
//! docs/PROTOCOL.md are named where they are shown; O2 holds in every test, because every client
//! checks it for every frame.

mod admission;
mod bad_input;
mod conversations;
mod determinism;
mod direct;
mod drain;
mod groups;
mod heartbeat;
mod history;
mod lane;
mod login;
mod overload;
mod people;
mod presence;
mod random;
mod rates;
mod receipts;
mod reconnect;
mod replay;
mod restart;
mod retry;
mod signals;
mod slow_reader;
mod support;
mod takeover;
mod tokens;
mod withdraw;
