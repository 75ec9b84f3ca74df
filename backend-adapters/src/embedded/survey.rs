//! What a store's files say about themselves, before and without the engine.
//!
//! The engine mends what it can: it cuts journals at the first record that it cannot read, makes a new
//! journal where none is left, and deletes keyspaces that look unfinished. Each of these loses
//! acknowledged messages in silence if the cause is not a crash but a disk. So a start begins with
//! [`prepare`]: it looks, refuses what a crash cannot explain, and cuts a torn tail itself.
//!
//! # Invariants
//! * [`survey`] changes nothing.
//! * [`prepare`] changes nothing in a store that it refuses.

use super::failure::OpenError;
use super::floor::{self, Floor};
use super::journal::{self, Journal, Tail};
use super::tables::{self, Tree};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{
    self,
    ErrorKind::{QuotaExceeded, StorageFull},
};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The engine's own mark of a complete database, and what is in it.
pub(super) const COMPLETE_MARK: &str = "version";
pub(super) const COMPLETE_MARK_BYTES: &[u8] = b"FJL\x03";
/// The file that the engine locks.
pub(super) const LOCK_FILE: &str = "lock";

/// A file that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    pub file: PathBuf,
    /// Where in the file, as far as is known.
    pub at: Option<u64>,
    /// Goes on a sentence that begins with the file.
    pub what: String,
}

impl Damage {
    pub(super) fn of(file: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            at: None,
            what: what.into(),
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some(at) => write!(f, "{} at byte {at}: {}", self.file.display(), self.what),
            None => write!(f, "{} {}", self.file.display(), self.what),
        }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) journals: Vec<Journal>,
    pub(super) trees: Vec<Tree>,
    pub(super) names: BTreeMap<u64, String>,
    pub(super) floor: Option<Floor>,
    pub(super) damage: Vec<Damage>,
}

impl Survey {
    /// The number of the last whole commit in a journal.
    pub(super) fn last(&self) -> Option<u64> {
        self.journals.iter().rev().find_map(|journal| journal.last)
    }

    pub(super) fn active(&self) -> Option<&Journal> {
        self.journals.last()
    }

    /// Bytes of a commit that a crash has torn.
    pub(super) fn torn_bytes(&self) -> u64 {
        match self.active().map(|journal| journal.tail) {
            Some(Tail::Torn { bytes }) if self.damage.is_empty() => bytes,
            _ => 0,
        }
    }
}

/// Takes the lock of a store, as a gateway does, for as long as the file is held.
pub(super) fn lock(dir: &Path) -> Result<File, OpenError> {
    let io = |error| OpenError::io(dir, error);
    let path = dir.join(LOCK_FILE);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => File::create(&path),
        file => file,
    };
    let file = file.map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { dir: dir.into() }),
        Err(TryLockError::Error(error)) => Err(io(error)),
    }
}

/// Looks at all files but the tables, of which only those of the engine's own list are read.
pub(super) fn survey(dir: &Path) -> io::Result<Survey> {
    let mut damage = Vec::new();
    mark(dir, &mut damage)?;
    let journals = journals(dir, &mut damage)?;
    let mut in_trees = Vec::new();
    let trees = tables::trees(dir, &mut in_trees)?;
    let was_used = journals.iter().any(|journal| journal.commits > 0)
        || trees.iter().any(|tree| tree.table_bytes > 0);
    let names = names(dir, &trees, was_used, &mut in_trees)?;
    forget_deleted(&trees, &names, &mut in_trees);
    damage.append(&mut in_trees);
    let floor = floor::read(dir)?;
    if let Some(floor) = &floor {
        check_floor(dir, floor, &journals, &mut damage);
    }
    Ok(Survey {
        journals,
        trees,
        names,
        floor,
        damage,
    })
}

fn mark(dir: &Path, damage: &mut Vec<Damage>) -> io::Result<()> {
    let path = dir.join(COMPLETE_MARK);
    match std::fs::read(&path) {
        Ok(bytes) if bytes == COMPLETE_MARK_BYTES => {}
        Ok(_) => damage.push(Damage::of(path, "is not what the engine writes into it")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            damage.push(Damage::of(path, "is missing"));
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

fn journals(dir: &Path, damage: &mut Vec<Damage>) -> io::Result<Vec<Journal>> {
    let files = journal::list(dir)?;
    let newest = files.last().map(|(id, _)| *id);
    let mut journals: Vec<Journal> = Vec::new();
    for (id, path) in files {
        if let Some(before) = journals.last().filter(|before| before.id + 1 != id) {
            let missing = dir.join(format!("{}.jnl", before.id + 1));
            damage.push(Damage::of(missing, "is missing: a later journal is there"));
        }
        let before = journals.iter().rev().find_map(|journal| journal.last);
        let journal = journal::scan(id, &path, before)?;
        match journal.tail {
            Tail::Clean => {}
            Tail::Torn { .. } if newest == Some(id) => {}
            Tail::Torn { .. } => damage.push(Damage {
                file: path,
                at: Some(journal.whole_bytes),
                what: "a commit has no end, and a later journal is there".to_owned(),
            }),
            Tail::Damaged {
                at,
                what,
                goes_on_at,
            } => damage.push(Damage {
                file: path,
                at: Some(at),
                what: match goes_on_at {
                    Some(next) => format!("{what}; whole commits go on at byte {next}"),
                    None => format!("{what}, and its end is there, so it was written whole"),
                },
            }),
        }
        journals.push(journal);
    }
    if journals.is_empty() {
        damage.push(Damage::of(
            dir.join("0.jnl"),
            "or a later journal is missing: there is always one",
        ));
    }
    Ok(journals)
}

/// The names that the engine has for its keyspaces. Each must have its directory.
fn names(
    dir: &Path,
    trees: &[Tree],
    was_used: bool,
    damage: &mut Vec<Damage>,
) -> io::Result<BTreeMap<u64, String>> {
    let Some(list) = trees.iter().find(|tree| tree.id == tables::NAMES_ID) else {
        // Of a store whose creation was cut short nothing is missing.
        if was_used {
            let path = dir.join(tables::KEYSPACES_DIR).join("0");
            damage.push(Damage::of(path, "is missing, with the names of all others"));
        }
        return Ok(BTreeMap::new());
    };
    for table in &list.tables {
        // A missing one is told already.
        if table.path.is_file() && !tables::is_whole(table)? {
            damage.push(Damage::of(&table.path, "does not have its checksum"));
        }
    }
    let names = tables::names(list)?;
    for (id, name) in &names {
        let tree = trees.iter().find(|tree| tree.id == *id);
        let path = dir.join(tables::KEYSPACES_DIR).join(id.to_string());
        match tree {
            None => damage.push(Damage::of(path, format!("is missing, which holds {name}"))),
            Some(tree) if tree.list.is_none() && tree.table_bytes == 0 => {
                let what = format!("is empty, and should hold {name}");
                damage.push(Damage::of(path, what));
            }
            Some(_) => {}
        }
    }
    Ok(names)
}

/// A keyspace without a name was deleted, and the engine may have been killed while it removed the files.
fn forget_deleted(trees: &[Tree], names: &BTreeMap<u64, String>, damage: &mut Vec<Damage>) {
    let list = trees.iter().find(|tree| tree.id == tables::NAMES_ID);
    let names_are_whole = list.is_some_and(|list| {
        list.list.is_some()
            && !damage
                .iter()
                .any(|damage| damage.file.starts_with(&list.dir))
    });
    if !names_are_whole {
        return;
    }
    let deleted = |tree: &&Tree| tree.id != tables::NAMES_ID && !names.contains_key(&tree.id);
    for tree in trees.iter().filter(deleted) {
        damage.retain(|damage| !damage.file.starts_with(&tree.dir));
    }
}

/// What was whole once must be whole still. A journal that is gone is replaced by later ones.
fn check_floor(dir: &Path, floor: &Floor, journals: &[Journal], damage: &mut Vec<Damage>) {
    let path = dir.join(format!("{}.jnl", floor.journal));
    let newest = journals.last().map_or(0, |journal| journal.id);
    match journals.iter().find(|journal| journal.id == floor.journal) {
        Some(journal) if journal.whole_bytes < floor.whole_bytes => damage.push(Damage {
            file: path,
            at: Some(journal.whole_bytes),
            what: format!(
                "whole commits end here, and once ended at byte {}",
                floor.whole_bytes
            ),
        }),
        Some(_) => {}
        None if newest > floor.journal => {}
        None => damage.push(Damage::of(path, "is missing, and no later one is there")),
    }
}

/// What a start found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prepared {
    /// The number of the last commit in the journals, 0 if there is none.
    pub(super) last: u64,
    pub(super) journal: u64,
    pub(super) whole_bytes: u64,
}

/// Makes a complete store ready for the engine. See the [module](self).
///
/// # Errors
/// Names the file, if one is damaged.
pub(super) fn prepare(dir: &Path) -> Result<Prepared, OpenError> {
    let io = |error| OpenError::io(dir, error);
    // Let go of before the engine takes it. Who comes between finds what is made here, or is found
    // by the engine.
    let _lock = lock(dir)?;
    let found = survey(dir).map_err(io)?;
    if let Some(first) = found.damage.first() {
        let more = match found.damage.len() - 1 {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        return Err(OpenError::damaged(dir, format!("{first}{more}")));
    }
    let Some(active) = found.active() else {
        return Err(OpenError::damaged(dir, "no journal is there"));
    };
    settle(active).map_err(io)?;
    let prepared = Prepared {
        last: found.last().unwrap_or(0),
        journal: active.id,
        whole_bytes: active.whole_bytes,
    };
    let floor = Floor {
        journal: prepared.journal,
        whole_bytes: prepared.whole_bytes,
        closed: false,
    };
    match floor::write(dir, &floor) {
        // What can be read is served from a full disk, too.
        Err(error) if matches!(error.kind(), StorageFull | QuotaExceeded) => {
            tracing::info!(%error, "no room to note where the journal ends");
        }
        written => written.map_err(io)?,
    }
    Ok(prepared)
}

/// Cuts off a torn commit, and puts what is left on the disk.
///
/// The last commit is written once more: if its sync has failed, the kernel may show bytes that it
/// does not have on the disk, and would not try again.
fn settle(active: &Journal) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&active.path)?;
    if let Tail::Torn { bytes } = active.tail {
        tracing::info!(
            journal = %active.path.display(),
            bytes,
            "a commit without an end is cut off; it was never acknowledged"
        );
        file.set_len(active.whole_bytes)?;
    }
    let mut buffer = vec![0; 64 << 10];
    let mut at = active.last_at;
    while at < active.whole_bytes {
        let len = (active.whole_bytes - at).min(buffer.len() as u64);
        let part = buffer.get_mut(..usize::try_from(len).unwrap_or(0));
        let part = part.unwrap_or_default();
        file.read_exact_at(part, at)?;
        file.write_all_at(part, at)?;
        at += len;
    }
    file.sync_all()
}

/// Notes where the journals of a store end that has been closed. The engine may still be at work on
/// tables, and begin a journal: that is no harm to what is noted.
pub(super) fn note_end(dir: &Path, opened: Option<Prepared>) -> io::Result<()> {
    let Some((id, path)) = journal::list(dir)?.pop() else {
        return Ok(());
    };
    let after = opened.map(|opened| opened.last).filter(|last| *last > 0);
    // Numbers in a journal that was begun before the start are not above the last of that time.
    let after = after.filter(|_| opened.is_some_and(|opened| opened.journal < id));
    let journal = journal::scan(id, &path, after)?;
    if !matches!(journal.tail, Tail::Clean) {
        return Ok(());
    }
    let floor = Floor {
        journal: id,
        whole_bytes: journal.whole_bytes,
        closed: true,
    };
    floor::write(dir, &floor)
}
