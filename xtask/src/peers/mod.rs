//! `cargo xtask peers`: Portico beside other messaging servers, each on one core of this machine,
//! driven by the same plans of the capacity tester from another core.
//!
//! Passes are interleaved (every system once, then every system again), each on freshly started
//! servers, and ratios are to the floor of the same pass: the speed of a machine drifts. What is
//! not installed is named and skipped. docs/PEERS.md says what each row means.

mod figures;
mod page;
mod rows;
mod servers;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use figures::{Cell, Comparison, Reading, SystemSeen};
use rows::ROWS;
use servers::{SYSTEMS, Server, System};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How often everything is measured, in interleaved passes
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// How long each row sends, in seconds
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// One run of two seconds with few connections: does it work
    #[arg(long, conflicts_with_all = ["runs", "seconds"])]
    quick: bool,
    /// Only this system, beside the floor; may be given again
    #[arg(long = "system", value_name = "NAME")]
    systems: Vec<String>,
    /// Only this row; may be given again
    #[arg(long = "row", value_name = "NAME")]
    rows: Vec<String>,
    /// Processor of the servers
    #[arg(long, value_name = "N", default_value_t = 0)]
    server_cpu: usize,
    /// Processor of the capacity tester
    #[arg(long, value_name = "N", default_value_t = 1)]
    load_cpu: usize,
    /// Where peers.md, peers.json and peers.html are written [default: target/peers]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Where portico and portico-loadgen are; default: they are built, in release
    #[arg(long, value_name = "DIR")]
    bin: Option<PathBuf>,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    ensure!(
        options.server_cpu != options.load_cpu,
        "--server-cpu and --load-cpu are both {}: on one core the tester's work slows the server",
        options.load_cpu
    );
    let rows = chosen(&options.rows, ROWS, |row| row.name, "--row")?;
    let wanted = chosen(&options.systems, SYSTEMS, |system| system.name, "--system")?;
    let bin = match &options.bin {
        // Servers run in folders of their own.
        Some(bin) => bin
            .canonicalize()
            .with_context(|| format!("--bin {}", bin.display()))?,
        None => build(root)?,
    };
    servers::raise_open_file_limit().context("cannot raise the open file limit")?;
    let (present, seen) = look(&wanted, &bin);
    for system in &seen {
        match &system.skipped {
            Some(why) => eprintln!("{:<10} skipped: {why}", system.name),
            None => eprintln!("{:<10} {}", system.name, system.version),
        }
    }

    let runs = if options.quick { 1 } else { options.runs };
    let seconds = if options.quick { 2 } else { options.seconds };
    let mut comparison = Comparison {
        unix_s: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs()),
        runs,
        seconds,
        server_cpu: options.server_cpu,
        load_cpu: options.load_cpu,
        machine: None,
        systems: seen,
        cells: Vec::new(),
        problems: Vec::new(),
    };
    for pass in 0..runs {
        for system in &present {
            eprintln!("pass {} of {runs}: {}", pass + 1, system.name);
            let measured = Measuring {
                system,
                bin: &bin,
                options,
                seconds,
            };
            if let Err(error) = measured.all(&rows, pass, &mut comparison) {
                comparison.problem(pass, system.name, format!("{error:#}"));
            }
        }
    }
    let out = options
        .out
        .clone()
        .unwrap_or_else(|| target_folder(root).join("peers"));
    write(&out, &comparison, &rows)?;
    print!("{}", page::markdown(&comparison, &rows));
    eprintln!("xtask: written to {}", out.display());
    // Gaps are named on the page; a system that is there and has no figure at all is a failure.
    for system in &present {
        let measured = comparison
            .cells
            .iter()
            .any(|cell| cell.system == system.name);
        ensure!(measured, "nothing could be measured of {}", system.name);
    }
    ensure!(!present.is_empty(), "nothing could be measured");
    Ok(())
}

/// The named ones of a table, or all of it.
fn chosen<T>(
    names: &[String],
    table: &'static [T],
    name_of: fn(&T) -> &'static str,
    flag: &str,
) -> Result<Vec<&'static T>> {
    for name in names {
        if !table.iter().any(|item| name_of(item) == name) {
            let known: Vec<_> = table.iter().map(name_of).collect();
            bail!("{flag} {name} is not one of {}", known.join(", "));
        }
    }
    let chosen = |item: &&T| names.is_empty() || names.iter().any(|name| name == name_of(item));
    Ok(table.iter().filter(chosen).collect())
}

fn target_folder(root: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

fn build(root: &Path) -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args([
            "build",
            "--release",
            "-p",
            "portico-gateway",
            "-p",
            "portico-loadgen",
        ])
        .current_dir(root)
        .status()?;
    ensure!(status.success(), "the release build ended with {status}");
    Ok(target_folder(root).join("release"))
}

/// Which systems are there, and in which version. The floor always comes along: ratios are to it.
fn look(wanted: &[&'static System], bin: &Path) -> (Vec<&'static System>, Vec<SystemSeen>) {
    let mut present = Vec::new();
    let mut seen = Vec::new();
    let is_wanted =
        |system: &System| system.is_floor() || wanted.iter().any(|other| other.name == system.name);
    for system in SYSTEMS.iter().filter(|system| is_wanted(system)) {
        let version = system.version(bin);
        let skipped = match &version {
            Some(_) => system.unspoken.map(str::to_owned),
            None => Some(format!("{} is not installed", system.program)),
        };
        if skipped.is_none() {
            present.push(system);
        }
        seen.push(SystemSeen {
            name: system.name,
            version: version.unwrap_or_default(),
            skipped,
        });
    }
    (present, seen)
}

/// One system in one pass.
struct Measuring<'a> {
    system: &'static System,
    bin: &'a Path,
    options: &'a Options,
    seconds: u32,
}

impl Measuring<'_> {
    fn all(&self, rows: &[&rows::Row], pass: u32, into: &mut Comparison) -> Result<()> {
        let server = Server::start(self.system, self.bin, self.options.server_cpu)?;
        for row in rows {
            let Some(flags) = row.flags(self.system, self.seconds, self.options.quick) else {
                continue;
            };
            let result = match self.load(&server, &flags) {
                Ok(result) => result,
                Err(error) => {
                    into.problem(pass, self.system.name, format!("{}: {error:#}", row.name));
                    continue;
                }
            };
            into.machine
                .get_or_insert_with(|| result["machine"].clone());
            if result["verdict"] != "pass" {
                let what = format!("{}: {} {}", row.name, result["verdict"], result["reasons"]);
                into.problem(pass, self.system.name, what);
                if row.needs_pass {
                    continue;
                }
            }
            for figure in row.figures {
                match figures::number(&result, figure.key) {
                    Some(value) => into.cells.push(Cell {
                        figure: figure.name,
                        system: self.system.name,
                        reading: Reading { pass, value },
                    }),
                    None => {
                        let what = format!("{}: the result has no {}", row.name, figure.key);
                        into.problem(pass, self.system.name, what);
                    }
                }
            }
        }
        Ok(())
    }

    /// One run of the tester and its result.
    fn load(&self, server: &Server, flags: &[String]) -> Result<serde_json::Value> {
        let json = server.folder().join("result.json");
        let output = Command::new(self.bin.join("portico-loadgen"))
            .args(flags)
            .args(["--target", &server.address().to_string()])
            .args(["--server-pid", &server.pid().to_string()])
            .args(["--cpus", &self.options.load_cpu.to_string()])
            .arg("--data")
            .arg(server.folder())
            .arg("--json")
            .arg(&json)
            .stdin(Stdio::null())
            .output()
            .context("portico-loadgen does not start")?;
        let said = String::from_utf8_lossy(&output.stderr);
        let text = fs::read(&json);
        let text = text.with_context(|| format!("no result: {}", said.trim()))?;
        fs::remove_file(&json)?;
        serde_json::from_slice(&text).context("the result is not JSON")
    }
}

fn write(out: &Path, comparison: &Comparison, rows: &[&rows::Row]) -> Result<()> {
    let made = fs::create_dir_all(out);
    made.with_context(|| format!("cannot make the folder {}", out.display()))?;
    for (name, text) in [
        ("peers.md", page::markdown(comparison, rows)),
        ("peers.html", page::html(comparison, rows)),
        ("peers.json", page::json(comparison, rows)?),
    ] {
        let file = out.join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_anything_is_built() {
        let all = chosen(&[], ROWS, |row| row.name, "--row").expect("all");
        assert_eq!(all.len(), ROWS.len());
        let one = chosen(&["direct".to_owned()], ROWS, |row| row.name, "--row").expect("known");
        assert_eq!(one.len(), 1);
        let error = chosen(&["direkt".to_owned()], ROWS, |row| row.name, "--row");
        let message = error.err().map(|error| error.to_string()).expect("unknown");
        assert!(
            message.starts_with("--row direkt is not one of idle, direct"),
            "{message}"
        );
    }

    #[test]
    fn what_is_not_installed_is_named() {
        let nowhere = Path::new("/nonexistent");
        let portico = SYSTEMS
            .iter()
            .find(|system| system.name == "portico")
            .expect("listed");
        let (present, seen) = look(&[portico], nowhere);
        assert!(present.is_empty());
        let names: Vec<_> = seen.iter().map(|system| system.name).collect();
        assert_eq!(names, ["floor", "portico"]);
        let why = seen[1].skipped.as_deref();
        assert_eq!(why, Some("portico is not installed"));
    }
}
