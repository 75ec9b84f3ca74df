//! The capacity tester: drives a gateway with many clients on an open-loop schedule, verifies
//! every message and says whether the result can be trusted.
//!
//! `cli` and `plan` say what to do, `run` leads the `worker`s, one thread each, through it. A worker
//! drives its slice of users with the many-connections driver of the client crate, takes messages
//! from its `schedule`, marks them with a `payload` and has its `verifier` account for each.
//! An `interrupt` ends it early. An `observer` looks once a second at how far they are, at the server and at the machine.
//! `verdict` says what they have proved, `report` writes it down. The plan of the same name in
//! `hold` keeps many more connections beside those, which say nothing.
//!
//! `peer` speaks the protocols of other systems, so that plans can be run against those. `aside` has
//! the servers that this program is measured against: `floor` copies bytes, `sink` takes everything.
//!
//! # Does not
//! Share code with the gateway beyond the wire protocol: a fault of the server cannot be repeated,
//! and so hidden, by the tool that looks for it. TLS is rustls' here, in the client crate; the
//! gateway's records are its own.

mod aside;
mod capacity;
mod cli;
mod control;
mod environment;
mod figures;
mod fleet;
mod floor;
mod hold;
mod interrupt;
mod observer;
mod outputs;
mod payload;
mod peer;
mod plan;
mod process;
mod progress;
mod random;
mod remote;
mod report;
mod run;
mod schedule;
mod series;
mod sink;
mod target;
mod tls;
mod tokens;
mod verdict;
mod verifier;
mod watch;
mod worker;

use anyhow::{Context, bail};
use cli::{Args, Command, CommandLine};
use outputs::{Files, Outcome, Outputs};
use plan::{Plan, Protocol};
use progress::say;
use remote::Crew;
use report::Report;
use std::{
    io::{self, Write},
    process::ExitCode,
};
use verdict::Verdict;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Bad use, or no result.
const NO_RESULT: u8 = 2;

fn main() -> ExitCode {
    match follow(&cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(&format!("portico-loadgen: {error:#}"));
            ExitCode::from(NO_RESULT)
        }
    }
}

/// Does what the command line says; the exit code.
fn follow(line: &CommandLine) -> anyhow::Result<u8> {
    match &line.command {
        None => measure(&line.run).map(Verdict::exit_code),
        Some(Command::Capacity(search)) => search.run().map(Verdict::exit_code),
        Some(Command::Compare(files)) => files.run(),
        Some(Command::Plan { print }) => show_plans(print.as_deref()).map(|()| 0),
        Some(Command::Aside(aside)) => aside.run().map(|()| 0),
        Some(Command::Worker(worker)) => match worker.run()? {},
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
    deliver(&args.outputs, || carry_out(args, &plan))
}

/// Carries something out, prints its result, and writes it to the files that are wanted.
fn deliver(
    outputs: &Outputs,
    carry_out: impl FnOnce() -> anyhow::Result<Outcome>,
) -> anyhow::Result<Verdict> {
    let files = Files::create(outputs)?;
    interrupt::catch()?;
    match carry_out() {
        Ok(outcome) => {
            files.write(&outcome)?;
            Ok(outcome.verdict)
        }
        Err(error) => {
            files.remove()?;
            Err(error)
        }
    }
}

fn carry_out(args: &Args, plan: &Plan) -> anyhow::Result<Outcome> {
    if plan.hold.is_some() && !args.remote.workers.is_empty() {
        bail!("--workers is for plans of messages; `hold` is carried out by this process alone");
    }
    // The engine that holds a million speaks Portico alone; elsewhere workers hold what they can.
    let hold = plan.hold.filter(|_| plan.protocol == Protocol::Portico);
    match hold {
        None => {
            let measured = Crew::gather(&args.remote)?.run(args, plan, &mut |_| false)?;
            let report = Report::new(&measured);
            Outcome::new(&report, &report, report.table(), measured.observed)
        }
        Some(hold) => {
            let (report, observed) = hold::run(args, plan, hold)?;
            Outcome::new(&report, &report.messages, report.table(), observed)
        }
    }
}
