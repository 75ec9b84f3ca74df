//! Benches of the parts that a message passes through: a file in `benches/` per part, criterion's
//! but for `memory`, which counts bytes. `cargo bench -p portico-benches` measures;
//! `cargo test -p portico-benches --benches` runs each once, without measuring. What each of them
//! shows and how two builds are compared: `docs/TESTING.md`.
