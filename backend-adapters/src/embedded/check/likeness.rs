//! A store that looks like another one and may be changed.

use crate::embedded::Options;
use crate::embedded::engine::Engine;
use crate::embedded::failure::OpenError;
use crate::embedded::revive::Alarm;
use crate::embedded::survey::{COMPLETE_MARK, COMPLETE_MARK_BYTES, LOCK_FILE, Survey};
use crate::embedded::tables::{KEYSPACES_DIR, NAMES_ID, Tree};
use fjall::Database;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// Deleted when dropped, after the engine.
pub(super) struct Likeness {
    pub(super) engine: Engine,
    _place: TempDir,
}

/// Journals are copied up to the end of their whole commits, and tables are linked.
pub(super) fn make(dir: &Path, found: &Survey) -> Result<Likeness, OpenError> {
    let io = |error| OpenError::io(dir, error);
    let place = tempfile::Builder::new().prefix("portico-check-").tempdir();
    let place = place.map_err(io)?;
    let to = place.path();
    fill(to, found).map_err(io)?;
    let opened = Database::builder(to)
        // Nothing is written out or compacted.
        .worker_threads_unchecked(0)
        .manual_journal_persist(true)
        .open();
    let db = opened.map_err(|error| OpenError::engine(dir, error))?;
    let (alarm, _) = Alarm::new();
    let engine = Engine::over(db, &Options::new(to), Arc::default(), alarm, None);
    Ok(Likeness {
        engine: engine.map_err(|error| error.about(dir))?,
        _place: place,
    })
}

fn fill(to: &Path, found: &Survey) -> io::Result<()> {
    fs::write(to.join(COMPLETE_MARK), COMPLETE_MARK_BYTES)?;
    File::create(to.join(LOCK_FILE))?;
    for journal in &found.journals {
        let mut whole = File::open(&journal.path)?.take(journal.whole_bytes);
        let mut copy = File::create(to.join(format!("{}.jnl", journal.id)))?;
        io::copy(&mut whole, &mut copy)?;
    }
    // What the engine would delete at its next start is left out.
    let named = |tree: &&Tree| tree.id == NAMES_ID || found.names.contains_key(&tree.id);
    for tree in found.trees.iter().filter(named) {
        let dir = to.join(KEYSPACES_DIR).join(tree.id.to_string());
        let tables = dir.join("tables");
        fs::create_dir_all(&tables)?;
        for name in tree.list.iter().map(String::as_str).chain(["current"]) {
            fs::copy(tree.dir.join(name), dir.join(name))?;
        }
        for table in &tree.tables {
            if let Some(name) = table.path.file_name() {
                symlink(std::path::absolute(&table.path)?, tables.join(name))?;
            }
        }
    }
    Ok(())
}
