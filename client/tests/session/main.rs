//! The session in virtual time against a scripted server: each test is a story of frames, with
//! exact times and no socket.

#[path = "../support/mod.rs"]
mod support;

mod asking;
mod ends;
mod login;
mod receipts;
mod receiving;
mod renewal;
mod restart;
mod sending;
mod story;
