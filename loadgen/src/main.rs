//! The capacity tester: drives a gateway with many clients on an open-loop schedule, verifies
//! every message and says whether the result can be trusted.
//!
//! `cli` and `plan` say what to do, `run` leads the `worker`s, one thread each, through it. A worker
//! drives its slice of users with the many-connections driver of the client crate, takes messages
//! from its `schedule`, marks them with a `payload` and has its `verifier` account for each.
//! `verdict` says what they have proved, `report` writes it down. The plan of the same name in
//! `hold` keeps many more connections beside those, which say nothing.
//!
//! `peer` speaks the protocols of other systems, so that plans can be run against those. `aside` has
//! the servers that this program is measured against: `floor` copies bytes, `sink` takes everything.
//!
//! # Does not
//! Share code with the gateway beyond the wire protocol: a fault of the server cannot be repeated,
//! and so hidden, by the tool that looks for it.

mod aside;
mod cli;
mod control;
mod figures;
mod fleet;
mod floor;
mod hold;
mod payload;
mod peer;
mod plan;
mod process;
mod random;
mod report;
mod run;
mod schedule;
mod sink;
mod target;
mod verdict;
mod verifier;
mod worker;

use anyhow::Context;
use clap::Parser;
use cli::{Args, Command};
use plan::Plan;
use report::Report;
use serde_json::to_string_pretty as to_json;
use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
    process::ExitCode,
};
use verdict::Verdict;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Bad use, or no result.
const NO_RESULT: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.command {
        Some(Command::Plan { print }) => show_plans(print.as_deref()).map(|()| ExitCode::SUCCESS),
        Some(Command::Aside(aside)) => aside.run().map(|()| ExitCode::SUCCESS),
        None => measure(&args).map(|verdict| ExitCode::from(verdict.exit_code())),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("portico-loadgen: {error:#}");
            ExitCode::from(NO_RESULT)
        }
    }
}

fn show_plans(name: Option<&str>) -> anyhow::Result<()> {
    let text = match name {
        Some(name) => plan::print(&cli::find_plan(name)?)?,
        None => Plan::list(),
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).context("cannot print plans")
}

fn measure(args: &Args) -> anyhow::Result<Verdict> {
    let plan = args.plan()?;
    // Before the run, which may be long, so that a wrong path does not cost its result; and so
    // that no result of an earlier run is left behind by one that has none.
    let mut json = args.json.as_deref().map(create).transpose()?;
    let result = match carry_out(args, &plan) {
        Ok(result) => result,
        Err(error) => {
            args.json.as_deref().map_or(Ok(()), remove)?;
            return Err(error);
        }
    };
    let mut out = io::stdout().lock();
    out.write_all(result.table.as_bytes())
        .context("cannot print the result")?;
    if let Some(file) = &mut json {
        writeln!(file, "{}", result.json).context("cannot write the result")?;
    }
    Ok(result.verdict)
}

/// A result in the forms in which it leaves.
struct Outcome {
    verdict: Verdict,
    table: String,
    json: String,
}

fn carry_out(args: &Args, plan: &Plan) -> anyhow::Result<Outcome> {
    let (verdict, table, json) = match plan.hold {
        None => {
            let report = Report::new(&run::run(args, plan)?);
            (report.verdict, report.table(), to_json(&report))
        }
        Some(hold) => {
            let report = hold::run(args, plan, hold)?;
            let verdict = report.messages.verdict;
            (verdict, report.table(), to_json(&report))
        }
    };
    Ok(Outcome {
        verdict,
        table,
        json: json.context("the result cannot be written as JSON")?,
    })
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
