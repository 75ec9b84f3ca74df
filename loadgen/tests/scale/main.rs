//! The built program where it runs more than once: searches for capacity, and several workers.
//!
//! Apart from the other tests, because threads of a fake gateway end here by the hundred: the CPU
//! time that is read of a process whose gateways are measured there would shrink. Nothing here
//! depends on how fast the machine is: bounds of time are those of a machine that has other work.

mod capacity;
mod remote;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod support;
