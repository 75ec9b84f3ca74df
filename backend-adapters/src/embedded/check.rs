//! The state of a store that nobody serves, told without changing it.
//!
//! First the files: every journal and every table is read and compared with its checksums. If they
//! are whole, then what they hold: the engine opens a likeness of the store in a temporary
//! directory, with copies of what it would change and symbolic links to the tables, which it only
//! reads; and every row is looked at.
//!
//! # Does not
//! Write into the directory, or take more memory than a start takes, but for the messages of one
//! conversation and month at a time.

mod likeness;
mod rows;

use super::failure::OpenError;
use super::journal::Tail;
use super::survey::{self, Damage, Survey};
use super::tables::{self, Tree};
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};

/// Of each rule that is broken.
pub(super) const EXAMPLES_MAX: usize = 5;

/// What became of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Sound,
    /// A crash has torn the last commit, which was never acknowledged. The next start cuts it off.
    Torn,
    /// Files are not as they were written, or rows contradict each other.
    Damaged,
}

/// See the [module](self). Sizes are in bytes, numbers are sequence numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub dir: PathBuf,
    pub verdict: Verdict,
    /// What to do, a sentence each.
    pub advice: Vec<String>,
    pub damage: Vec<Damage>,
    /// Rules that rows break. Empty as well if the files are damaged: then no rows were looked at.
    pub broken: Vec<Broken>,
    /// Whether the last gateway ended in order; `None` if there is no note of it.
    pub closed: Option<bool>,
    pub file_bytes: u64,
    pub journals: Vec<JournalFile>,
    pub keyspaces: Vec<Tables>,
    /// `None` if the files are damaged.
    pub content: Option<Content>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JournalFile {
    pub file: PathBuf,
    pub file_bytes: u64,
    pub whole_bytes: u64,
    pub commits: u64,
    pub rows: u64,
    /// Of a commit without an end.
    pub torn_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tables {
    pub name: String,
    pub dir: PathBuf,
    pub tables: usize,
    pub table_bytes: u64,
}

/// What the rows hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Content {
    pub format: u32,
    pub store_id: String,
    /// Above every number that was ever made durable.
    pub ceiling: u64,
    /// The greatest number in a row.
    pub greatest: u64,
    pub months: Vec<MonthRows>,
    pub cursors: u64,
    pub watermarks: u64,
    pub fan_outs: u64,
    pub records: u64,
    pub taken: u64,
    /// References to entries of months that were dropped, which readers pass over.
    pub references_expired: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MonthRows {
    pub month: String,
    pub entries: u64,
    pub references: u64,
    /// Of bodies.
    pub body_bytes: u64,
}

/// A rule, and rows that break it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    pub rule: &'static str,
    pub rows: u64,
    pub examples: Vec<String>,
}

/// Looks at the store in `dir`.
///
/// # Errors
/// If a gateway has it open, if there is none, or if it cannot be read.
pub fn check(dir: &Path) -> Result<Report, OpenError> {
    let io = |error| OpenError::io(dir, error);
    refuse_absent(dir)?;
    let _lock = lock_if_there(dir)?;
    let mut found = survey::survey(dir).map_err(io)?;
    damaged_tables(&mut found).map_err(io)?;
    let mut report = Report {
        dir: dir.to_owned(),
        verdict: Verdict::Sound,
        advice: Vec::new(),
        damage: Vec::new(),
        broken: Vec::new(),
        closed: found.floor.map(|floor| floor.closed),
        file_bytes: 0,
        journals: found.journals.iter().map(JournalFile::of).collect(),
        keyspaces: found
            .trees
            .iter()
            .map(|tree| Tables::of(tree, &found))
            .collect(),
        content: None,
    };
    report.file_bytes = report
        .journals
        .iter()
        .map(|journal| journal.file_bytes)
        .sum();
    report.file_bytes += report
        .keyspaces
        .iter()
        .map(|tree| tree.table_bytes)
        .sum::<u64>();
    if found.damage.is_empty() {
        let (content, broken) = rows::look(dir, &found)?;
        report.content = Some(content);
        report.broken = broken;
    }
    report.judge(&found);
    Ok(report)
}

/// A store that never was is told apart from one that cannot be read.
pub(super) fn refuse_absent(dir: &Path) -> Result<(), OpenError> {
    let begun =
        dir.join(survey::COMPLETE_MARK).exists() || dir.join(tables::KEYSPACES_DIR).exists();
    if begun {
        return Ok(());
    }
    let detail = "no store is there";
    let error = io::Error::new(io::ErrorKind::NotFound, detail);
    Err(OpenError::io(dir, error))
}

/// A lock file that is missing is not made: nobody can hold it.
pub(super) fn lock_if_there(dir: &Path) -> Result<Option<std::fs::File>, OpenError> {
    if dir.join(survey::LOCK_FILE).exists() {
        return survey::lock(dir).map(Some);
    }
    Ok(None)
}

/// Reads every table that the survey has not read.
fn damaged_tables(found: &mut Survey) -> io::Result<()> {
    let mut damage = Vec::new();
    let trees = found
        .trees
        .iter()
        .filter(|tree| tree.id != tables::NAMES_ID);
    for table in trees.flat_map(|tree| &tree.tables) {
        if !table.path.is_file() || tables::is_whole(table)? {
            continue;
        }
        let bad = tables::blocks(&table.path)?.bad;
        let what = match bad.len() {
            0 => "does not have its checksum; its rows can be read".to_owned(),
            1 => "a block fails its checksum".to_owned(),
            more => format!("a block fails its checksum, and {} more", more - 1),
        };
        damage.push(Damage {
            file: table.path.clone(),
            at: bad.first().copied(),
            what,
        });
    }
    found.damage.append(&mut damage);
    Ok(())
}

impl JournalFile {
    fn of(journal: &super::journal::Journal) -> Self {
        Self {
            file: journal.path.clone(),
            file_bytes: journal.file_bytes,
            whole_bytes: journal.whole_bytes,
            commits: journal.commits,
            rows: journal.rows,
            torn_bytes: match journal.tail {
                Tail::Torn { bytes } => bytes,
                Tail::Clean | Tail::Damaged { .. } => 0,
            },
        }
    }
}

impl Tables {
    fn of(tree: &Tree, found: &Survey) -> Self {
        let name = match tree.id {
            tables::NAMES_ID => "names of the keyspaces".to_owned(),
            id => {
                let name = found.names.get(&id).cloned();
                name.unwrap_or_else(|| "nothing any more; the next start deletes it".to_owned())
            }
        };
        Self {
            name,
            dir: tree.dir.clone(),
            tables: tree.tables.len(),
            table_bytes: tree.table_bytes,
        }
    }
}

impl Report {
    fn judge(&mut self, found: &Survey) {
        self.damage.clone_from(&found.damage);
        let torn = found.torn_bytes();
        if !self.damage.is_empty() {
            self.verdict = Verdict::Damaged;
            self.advice = vec![
                "Copy the directory away before anything else: the disk may be failing.".to_owned(),
                "Restore a backup if it is recent enough; or save what can be read with \
                 `portico store salvage --data DIR --out NEW`, and serve from NEW."
                    .to_owned(),
            ];
        } else if !self.broken.is_empty() {
            self.verdict = Verdict::Damaged;
            self.advice = vec![
                "The files are as they were written, and the gateway can serve from them. Rows \
                 that break a rule are passed over or told twice, as the rule says. Report this, \
                 with the directory: a gateway should not write such rows."
                    .to_owned(),
            ];
        } else if torn > 0 {
            self.verdict = Verdict::Torn;
            self.advice = vec![format!(
                "Start the gateway: it cuts off the last {torn} bytes of the journal, a commit \
                 that a crash has torn and that was never acknowledged."
            )];
        }
    }
}
