//! The capacity tester: drives a gateway with many clients on an open-loop schedule, verifies
//! every message and says whether the result can be trusted.
//!
//! `cli` and `plan` say what to do, `run` leads the `worker`s, one thread each, through it. A worker
//! drives its slice of users with the many-connections driver of the client crate, takes messages
//! from its `schedule`, marks them with a `payload` and has its `verifier` account for each.
//! `verdict` says what they have proved, `report` writes it down.
//!
//! # Does not
//! Share code with the gateway beyond the wire protocol: a fault of the server cannot be repeated,
//! and so hidden, by the tool that looks for it.

mod cli;
mod payload;
mod plan;
mod process;
mod random;
mod report;
mod run;
mod schedule;
mod verdict;
mod verifier;
mod worker;

use anyhow::Context;
use clap::Parser;
use cli::Args;
use report::Report;
use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Bad use, or no result.
const NO_RESULT: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    match measure(&args) {
        Ok(report) => ExitCode::from(report.verdict.exit_code()),
        Err(error) => {
            eprintln!("portico-loadgen: {error:#}");
            ExitCode::from(NO_RESULT)
        }
    }
}

fn measure(args: &Args) -> anyhow::Result<Report> {
    let plan = args.plan()?;
    // Before the run, which may be long, so that a wrong path does not cost its result; and so
    // that no result of an earlier run is left behind by one that has none.
    let mut json = args.json.as_deref().map(create).transpose()?;
    let report = match run::run(args, &plan) {
        Ok(measured) => Report::new(&measured),
        Err(error) => {
            args.json.as_deref().map_or(Ok(()), remove)?;
            return Err(error);
        }
    };
    let mut out = io::stdout().lock();
    out.write_all(report.table().as_bytes())
        .context("cannot print the result")?;
    if let Some(file) = &mut json {
        serde_json::to_writer_pretty(&mut *file, &report).context("cannot write the result")?;
        writeln!(file).context("cannot write the result")?;
    }
    Ok(report)
}

fn create(file: &Path) -> anyhow::Result<File> {
    File::create(file).with_context(|| format!("cannot write {}", file.display()))
}

/// Only what [`create`] may have made: not a device or a pipe.
fn remove(file: &Path) -> io::Result<()> {
    if fs::symlink_metadata(file)?.is_file() {
        fs::remove_file(file)?;
    }
    Ok(())
}
