//! Output of flatc, committed as it is: neither formatted nor linted. `cargo xtask codegen`
//! writes it, `cargo xtask codegen --check` proves that it belongs to the schema.
//!
//! # Safety
//! The generated accessors rely on the verifier. Nothing outside this crate's [`crate::message`]
//! reads a table that was not opened by [`crate::verify`], which always runs it with our limits.

#[rustfmt::skip]
#[allow(
    unsafe_code,
    unsafe_op_in_unsafe_fn,
    unreachable_pub,
    missing_debug_implementations,
    unused_imports,
    dead_code,
    mismatched_lifetime_syntaxes,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::use_self
)]
mod gateway_generated;

pub use gateway_generated::portico::v_1 as fb;
