//! The chores of this repository: `cargo xtask <chore>`.
//!
//! - `codegen` writes the Rust code of the wire schema; `codegen --check` proves that the committed
//!   code belongs to the committed schema, and that the schema only grew since the last release.
//! - `tidy` checks what no compiler checks: which crate may know which, where some names may be
//!   used, how long a file may be, whether documents follow the schema.
//! - `peers` measures Portico beside other messaging servers.
//! - `check` is all that must hold before a change is shared: format, lints, documentation,
//!   generated code, tidy. Automation runs the same and adds time.

mod check;
mod codegen;
mod digest;
mod peers;
mod tidy;

use clap::{Parser, Subcommand};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

#[derive(Debug, Parser)]
#[command(
    name = "xtask",
    about = "Code generation and checks of this repository"
)]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Writes the generated code of the wire schema (needs flatc on PATH or in $FLATC).
    Codegen {
        /// Writes nothing; fails unless the committed code belongs to the schema.
        #[arg(long)]
        check: bool,
        /// With --check: a missing flatc is a failure, not a reason to compare hashes only.
        #[arg(long, requires = "check")]
        require_flatc: bool,
    },
    /// Runs every check: format, lints, documentation, generated code, tidy.
    Check {
        /// A missing flatc is a failure.
        #[arg(long)]
        require_flatc: bool,
    },
    /// Measures Portico beside other messaging servers that are installed here, and writes a table.
    Peers {
        #[command(flatten)]
        options: peers::Options,
    },
    /// Checks layers, names, file lengths and documents.
    Tidy,
}

fn main() -> ExitCode {
    let root = repository_root();
    let done = match Cli::parse().chore {
        Chore::Codegen { check: false, .. } => codegen::write(&root),
        Chore::Codegen { require_flatc, .. } => codegen::check(&root, require_flatc),
        Chore::Check { require_flatc } => check::run(&root, require_flatc),
        Chore::Peers { options } => peers::run(&root, &options),
        Chore::Tidy => tidy::run(&root),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The folder above this crate.
fn repository_root() -> PathBuf {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_folder.parent().unwrap_or(crate_folder).to_path_buf()
}
