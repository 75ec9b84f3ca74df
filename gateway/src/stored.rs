//! `portico store`: what the embedded store holds while no gateway runs, and what can be saved of a
//! damaged one.
//!
//! Exit codes: 0 sound, or all saved; 1 torn by a crash, which the next start mends; 2 damaged, or not all
//! could be saved; 3 could not be looked at.

use crate::{
    Failure, answer,
    cli::{CheckArgs, SalvageArgs},
    config::CoreDumps,
    data_dir,
    limits::grouped,
    sealed,
};
use portico_gateway::{
    AUTH_KEY_FILE, RESUME_KEY_FILE,
    backend::embedded::{
        OpenError,
        check::{self, Report, Verdict},
        salvage::{self, Salvage},
    },
};
use std::{
    fmt::Write as _,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::Path,
};

/// Name of the embedded store's folder in the data directory.
pub(crate) const FOLDER: &str = "store";

const TORN: u8 = 1;
const DAMAGED: u8 = 2;
const NOT_DONE: u8 = 3;

/// Damaged files that are named; scripts get all.
const NAMED_MAX: usize = 20;

fn not_done(error: impl std::fmt::Display) -> Failure {
    Failure::Verdict(Some(error.to_string()), NOT_DONE)
}

/// Says which command comes next, where a damaged store is refused.
pub(crate) fn next_step(error: &OpenError, data: &Path) -> String {
    match error {
        OpenError::Damaged { .. } => {
            format!(
                "{error}; next: portico store check --data {}",
                data.display()
            )
        }
        _ => error.to_string(),
    }
}

pub(crate) fn check(args: CheckArgs) -> Result<(), Failure> {
    sealed::seal(CoreDumps::Never).map_err(not_done)?;
    let data = data_dir(args.data);
    let mut report = check::check(&data.join(FOLDER)).map_err(not_done)?;
    for advice in &mut report.advice {
        *advice = advice.replace("DIR", &data.display().to_string());
    }
    if args.json {
        let json = serde_json::to_string_pretty(&report).map_err(not_done)?;
        answer(&format!("{json}\n"))?;
    } else {
        answer(&text(&report))?;
    }
    match report.verdict {
        Verdict::Sound => Ok(()),
        Verdict::Torn => Err(Failure::Verdict(None, TORN)),
        Verdict::Damaged => Err(Failure::Verdict(None, DAMAGED)),
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    let verdict = match report.verdict {
        Verdict::Sound => "is sound",
        Verdict::Torn => "was torn by a crash; nothing acknowledged is missing",
        Verdict::Damaged => "is damaged",
    };
    let _ = writeln!(text, "The store in {} {verdict}.", report.dir.display());
    for advice in &report.advice {
        let _ = writeln!(text, "  {advice}");
    }
    damage(
        &mut text,
        "Files that are not as they were written",
        &report.damage,
    );
    for broken in &report.broken {
        let _ = writeln!(
            text,
            "\nBroken by {} rows: {}",
            grouped(broken.rows),
            broken.rule
        );
        for example in &broken.examples {
            let _ = writeln!(text, "  {example}");
        }
    }
    let _ = writeln!(text);
    if let Some(content) = &report.content {
        let _ = writeln!(
            text,
            "format      {}, store {}",
            content.format, content.store_id
        );
    }
    let closed = match report.closed {
        Some(true) => "in order",
        Some(false) => "not in order: it was killed, or the machine stopped",
        None => "unknown",
    };
    let _ = writeln!(text, "last closed {closed}");
    let _ = writeln!(text, "files       {} bytes", grouped(report.file_bytes));
    for journal in &report.journals {
        let torn = match journal.torn_bytes {
            0 => String::new(),
            bytes => format!(", then {} bytes without an end", grouped(bytes)),
        };
        let _ = writeln!(
            text,
            "journal     {}: {} rows in {} commits, whole up to byte {}{torn}",
            journal.file.display(),
            grouped(journal.rows),
            grouped(journal.commits),
            grouped(journal.whole_bytes),
        );
    }
    for keyspace in &report.keyspaces {
        let _ = writeln!(
            text,
            "tables      {} of {}, {} bytes, in {}",
            keyspace.tables,
            keyspace.name,
            grouped(keyspace.table_bytes),
            keyspace.dir.display(),
        );
    }
    let Some(content) = &report.content else {
        let _ = writeln!(text, "rows        not looked at, as files are damaged");
        return text;
    };
    for month in &content.months {
        let _ = writeln!(
            text,
            "month       {}: {} entries with {} bytes of bodies, {} inbox references",
            month.month,
            grouped(month.entries),
            grouped(month.body_bytes),
            grouped(month.references),
        );
    }
    let _ = writeln!(
        text,
        "rows        {} cursors, {} watermarks, {} fan-out markers, {} records, {} taken",
        grouped(content.cursors),
        grouped(content.watermarks),
        grouped(content.fan_outs),
        grouped(content.records),
        grouped(content.taken),
    );
    if content.references_expired > 0 {
        let count = grouped(content.references_expired);
        let _ = writeln!(
            text,
            "expired     {count} references to entries of dropped months"
        );
    }
    let _ = writeln!(
        text,
        "numbers     the greatest is {}, the ceiling {}",
        content.greatest, content.ceiling
    );
    text
}

fn damage(text: &mut String, head: &str, damage: &[portico_gateway::backend::embedded::Damage]) {
    if damage.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{head}:");
    for damage in damage.iter().take(NAMED_MAX) {
        let _ = writeln!(text, "  {damage}");
    }
    if damage.len() > NAMED_MAX {
        let _ = writeln!(
            text,
            "  and {} more (--json has all)",
            damage.len() - NAMED_MAX
        );
    }
}

pub(crate) fn salvage(args: SalvageArgs) -> Result<(), Failure> {
    sealed::seal(CoreDumps::Never).map_err(not_done)?;
    let data = data_dir(args.data);
    let to = Path::new(&args.out);
    make_empty(to).map_err(|error| not_done(format!("{}: {error}", to.display())))?;
    let saved = salvage::salvage(&data.join(FOLDER), &to.join(FOLDER)).map_err(not_done)?;
    // Those that sign and resume; what is missing is made by the next start.
    for key in [AUTH_KEY_FILE, RESUME_KEY_FILE] {
        match fs::copy(data.join(key), to.join(key)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            copied => {
                copied.map_err(|error| not_done(format!("{key}: {error}")))?;
            }
        }
    }
    if args.json {
        let json = serde_json::to_string_pretty(&saved).map_err(not_done)?;
        answer(&format!("{json}\n"))?;
    } else {
        answer(&told(&saved, to))?;
    }
    if saved.lost.is_empty() && saved.rows_unknown == 0 {
        return Ok(());
    }
    Err(Failure::Verdict(None, DAMAGED))
}

/// A directory for the owner alone, as the gateway makes it.
fn make_empty(to: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(to)?;
    if fs::read_dir(to)?.next().is_some() {
        let text = "is not empty; name a directory that does not exist yet";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    Ok(())
}

fn told(saved: &Salvage, to: &Path) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "Saved {} entries, {} inbox references, {} cursors, {} watermarks, {} fan-out markers, \
         {} records and {} taken.",
        grouped(saved.entries),
        grouped(saved.references),
        grouped(saved.cursors),
        grouped(saved.watermarks),
        grouped(saved.fan_outs),
        grouped(saved.records),
        grouped(saved.taken),
    );
    if saved.lost.is_empty() {
        let _ = writeln!(text, "All files could be read.");
    } else {
        let head = format!("Not read, {} bytes in all", grouped(saved.lost_bytes));
        damage(&mut text, &head, &saved.lost);
    }
    if saved.rows_unknown > 0 {
        let count = grouped(saved.rows_unknown);
        let _ = writeln!(text, "\n{count} rows were read and make no sense:");
        for example in &saved.unknown_examples {
            let _ = writeln!(text, "  {example}");
        }
    }
    let to = to.display();
    let _ = writeln!(
        text,
        "\nSee what the new store holds: portico store check --data {to}\n\
         Serve from it: portico serve --data {to}"
    );
    text
}
