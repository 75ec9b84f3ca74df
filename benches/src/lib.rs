//! Criterion benches of the parts that a message passes through. `cargo bench -p portico-benches`
//! runs them; `cargo test` compiles them and runs each once.
