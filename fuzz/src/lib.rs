//! What the fuzz targets do with their input.
//!
//! [`wire`] is compiled twice: here, where libfuzzer drives it, and into the tests of
//! `portico-wire`, which replay the corpus on a stable compiler. So it uses what those tests can
//! use, and nothing more. [`session`] and [`shard`] are written the same way.
//!
//! A target must not only survive its input. Each states what must hold for every input, and
//! asserts it.

pub mod session;
pub mod shard;
pub mod wire;
