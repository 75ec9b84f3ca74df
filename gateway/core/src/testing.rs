//! Test harness under virtual time.
