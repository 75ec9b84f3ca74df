//! All checks in one go. Every step runs even if one before it failed, so that one run shows all
//! that is to be mended.

use crate::{codegen, tidy};
use anyhow::{Result, bail, ensure};
use std::{env, path::Path, process::Command};

pub(crate) fn run(root: &Path, require_flatc: bool) -> Result<()> {
    let steps: [(&str, &dyn Fn() -> Result<()>); 5] = [
        ("codegen --check", &|| codegen::check(root, require_flatc)),
        ("tidy", &|| tidy::run(root)),
        ("fmt", &|| cargo(root, &["fmt", "--all", "--check"], None)),
        ("clippy", &|| {
            let args = [
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ];
            cargo(root, &args, None)
        }),
        ("doc", &|| {
            let args = ["doc", "--workspace", "--no-deps", "--quiet"];
            cargo(root, &args, Some(("RUSTDOCFLAGS", "-D warnings")))
        }),
    ];
    let mut failed = Vec::new();
    for (name, step) in steps {
        eprintln!("xtask: {name}");
        if let Err(error) = step() {
            eprintln!("xtask: {name}: {error:#}");
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("failed: {}", failed.join(", "));
}

/// Runs the cargo that runs us.
fn cargo(root: &Path, args: &[&str], variable: Option<(&str, &str)>) -> Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(args)
        .envs(variable)
        .current_dir(root)
        .status()?;
    ensure!(
        status.success(),
        "cargo {} ended with {status}",
        args.join(" ")
    );
    Ok(())
}
