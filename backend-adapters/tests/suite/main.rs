//! The adapters of this crate against the conformance suite: bare, under faults, over restarts.
//! And the suite against adapters that are broken on purpose, which it must catch.

mod broken;
mod embedded;
mod faults;
mod group_commit;
mod memory;
mod support;
