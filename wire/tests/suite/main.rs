//! Tests of the wire protocol from the outside, in one program so that it links once.
//!
//! - [`golden`]: the exact bytes of every operation, of bad frames and of a worked example.
//! - [`groups`]: bodies of the operations on groups and their bounds.
//! - [`people`]: the same for the values of presence, contacts and settings.
//! - [`properties`]: any chunking, round trips, and no panic on any bytes.
//! - [`fuzz_replay`]: the targets of the fuzz folder over their committed corpus.
//! - [`protocol_doc`]: docs/PROTOCOL.md says what the tables of this crate say.
//!
//! `PORTICO_BLESS=1 cargo test -p portico-wire --test suite` writes the golden files and the seeds
//! of the corpus anew. Do that only for a change of the bytes that is meant, and read the diff.

#[allow(
    unreachable_pub,
    reason = "the same file is a module of the fuzz crate"
)]
#[path = "../../../fuzz/src/wire.rs"]
mod fuzz_targets;

mod fuzz_replay;
mod golden;
mod groups;
mod people;
mod properties;
mod protocol_doc;
mod samples;
mod tables;

use std::path::PathBuf;

/// True if files are to be written instead of compared.
fn blessing() -> bool {
    std::env::var_os("PORTICO_BLESS").is_some_and(|value| value == "1")
}

/// A path below the root of the repository.
fn in_repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(path)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
