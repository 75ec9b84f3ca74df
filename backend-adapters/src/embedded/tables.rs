//! Keyspaces on the disk, read without the engine and without changing them: which tables belong to
//! each, and whether the files are what was written.
//!
//! A keyspace is a directory. `current` names its list of tables, `vN`, with a checksum that the engine
//! writes and does not read; the list names each table with the checksum of its file. A keyspace
//! without `current`, or one that the engine's own list does not name, is deleted by the engine at
//! start: what was never finished looks like what was lost. So it is looked at here first.
//!
//! A table begins with blocks of rows, each with a head and checksums of its own: what is around a
//! bad one can be read.

use super::survey::Damage;
use lsm_tree::table::Scanner;
use lsm_tree::{CompressionType, InternalValue};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use twox_hash::XxHash3_128;

/// The engine's own list of names and settings.
pub(super) const NAMES_ID: u64 = 0;
pub(super) const KEYSPACES_DIR: &str = "keyspaces";
const CURRENT: &str = "current";
const TABLES_DIR: &str = "tables";
/// Of a list of tables. It takes 33 bytes for a table of 16 MiB.
const LIST_BYTES_MAX: u64 = 64 << 20;

const LIST_TRAILER: &[u8] = b"SFA!";
const LIST_TRAILER_BYTES: usize = 38;
const LIST_SECTIONS: &[u8] = b"TOC!";

const BLOCK_MAGIC: &[u8] = b"LSM\x03";
const BLOCK_HEAD_BYTES: usize = 33;
const BLOCK_OF_ROWS: u8 = 0;
const READ_BYTES: usize = 1 << 20;

/// A keyspace's directory.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) id: u64,
    pub(super) dir: PathBuf,
    /// The name of the list of tables; `None` if there is none.
    pub(super) list: Option<String>,
    pub(super) tables: Vec<Table>,
    pub(super) table_bytes: u64,
}

/// A table as its list has it.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) path: PathBuf,
    pub(super) checksum: u128,
    /// Added to the numbers of its rows.
    pub(super) number_base: u64,
}

/// Reads the directories of all keyspaces. What is wrong with them goes to `damage`.
pub(super) fn trees(store: &Path, damage: &mut Vec<Damage>) -> io::Result<Vec<Tree>> {
    let mut trees = Vec::new();
    let dir = store.join(KEYSPACES_DIR);
    for entry in fs::read_dir(&dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            continue;
        }
        let Some(id) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            let what = "is no directory of the store's; move it away";
            damage.push(Damage::of(entry.path(), what));
            continue;
        };
        trees.push(tree(id, entry.path(), damage)?);
    }
    trees.sort_by_key(|tree| tree.id);
    Ok(trees)
}

fn tree(id: u64, dir: PathBuf, damage: &mut Vec<Damage>) -> io::Result<Tree> {
    let mut tree = Tree {
        id,
        list: None,
        tables: Vec::new(),
        table_bytes: 0,
        dir,
    };
    let present = files_in(&tree.dir.join(TABLES_DIR))?;
    tree.table_bytes = present.values().sum();
    let current_path = tree.dir.join(CURRENT);
    let current = match read_small(&current_path) {
        Ok(current) => current,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Without tables: the creation of a keyspace that was cut short.
            if !present.is_empty() {
                damage.push(Damage::of(current_path, "is missing"));
            }
            return Ok(tree);
        }
        Err(error) => return Err(error),
    };
    let Some((version, checksum)) = parse_current(&current) else {
        damage.push(Damage::of(current_path, "is not as it must be"));
        return Ok(tree);
    };
    let list_name = format!("v{version}");
    let list_path = tree.dir.join(&list_name);
    let list = match read_small(&list_path) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            damage.push(Damage::of(list_path, "is missing, and `current` names it"));
            return Ok(tree);
        }
        Err(error) => return Err(error),
    };
    if XxHash3_128::oneshot(&list) != checksum {
        let what =
            "does not have the checksum that `current` has for it; one of the two is changed";
        damage.push(Damage::of(list_path, what));
        return Ok(tree);
    }
    let Some(tables) = parse_list(&list, &tree.dir.join(TABLES_DIR)) else {
        damage.push(Damage::of(list_path, "cannot be read"));
        return Ok(tree);
    };
    for table in &tables {
        if !table.path.is_file() {
            damage.push(Damage::of(&table.path, "is missing"));
        }
    }
    tree.list = Some(list_name);
    tree.tables = tables;
    Ok(tree)
}

/// Names and lengths of the files in a directory; none if it is missing.
fn files_in(dir: &Path) -> io::Result<BTreeMap<PathBuf, u64>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries?,
    };
    let mut files = BTreeMap::new();
    for entry in entries {
        let path = entry?.path();
        // Through symbolic links: a store may be looked at through them.
        let about = fs::metadata(&path)?;
        if about.is_file() {
            files.insert(path, about.len());
        }
    }
    Ok(files)
}

/// All files that lie among the tables of a keyspace, listed or not.
pub(super) fn table_files(tree: &Tree) -> io::Result<Vec<PathBuf>> {
    Ok(files_in(&tree.dir.join(TABLES_DIR))?.into_keys().collect())
}

fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(LIST_BYTES_MAX)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Number of the list and its checksum; the last byte says that it is an XXH3.
fn parse_current(bytes: &[u8]) -> Option<(u64, u128)> {
    let (version, rest) = bytes.split_first_chunk::<8>()?;
    let (checksum, rest) = rest.split_first_chunk::<16>()?;
    let checksum = u128::from_le_bytes(*checksum);
    (rest == [0]).then_some((u64::from_le_bytes(*version), checksum))
}

/// Takes little-endian numbers from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(field)
    }
}

/// The tables of a list, which is an archive of sections.
fn parse_list(list: &[u8], tables_dir: &Path) -> Option<Vec<Table>> {
    let trailer = list.get(list.len().checked_sub(LIST_TRAILER_BYTES)?..)?;
    let mut fields = Fields(trailer);
    if fields.bytes(LIST_TRAILER.len())? != LIST_TRAILER {
        return None;
    }
    fields.bytes(1 + 1 + 16)?;
    let sections_at = usize::try_from(fields.u64()?).ok()?;
    let mut fields = Fields(list.get(sections_at..)?);
    if fields.bytes(LIST_SECTIONS.len())? != LIST_SECTIONS {
        return None;
    }
    for _ in 0..fields.u32()? {
        let (at, len) = (fields.u64()?, fields.u64()?);
        let name_bytes = usize::from(fields.u16()?);
        if fields.bytes(name_bytes)? == b"tables" {
            let at = usize::try_from(at).ok()?;
            let end = at.checked_add(usize::try_from(len).ok()?)?;
            return parse_tables(list.get(at..end)?, tables_dir);
        }
    }
    None
}

fn parse_tables(section: &[u8], tables_dir: &Path) -> Option<Vec<Table>> {
    let mut fields = Fields(section);
    let mut tables = Vec::new();
    for _ in 0..fields.u8()? {
        for _ in 0..fields.u8()? {
            for _ in 0..fields.u32()? {
                let id = fields.u64()?;
                fields.u8()?;
                let checksum = u128::from_le_bytes(fields.array()?);
                tables.push(Table {
                    path: tables_dir.join(id.to_string()),
                    checksum,
                    number_base: fields.u64()?,
                });
            }
        }
    }
    Some(tables)
}

/// Names of keyspaces by their number, from the engine's own list. Tables that do not have their
/// checksum are passed over.
pub(super) fn names(tree: &Tree) -> io::Result<BTreeMap<u64, String>> {
    let mut rows: BTreeMap<u64, (u64, Option<String>)> = BTreeMap::new();
    for table in &tree.tables {
        if !is_whole(table)? {
            continue;
        }
        each_row(&table.path, table.number_base, |row| {
            let Some((b'n', id)) = row.key.user_key.split_first() else {
                return Ok(());
            };
            let (Ok(id), number) = (<[u8; 8]>::try_from(id), row.key.seqno) else {
                return Ok(());
            };
            let id = u64::from_be_bytes(id);
            let name = (!row.is_tombstone()).then(|| String::from_utf8_lossy(&row.value).into());
            if rows.get(&id).is_none_or(|(known, _)| *known < number) {
                rows.insert(id, (number, name));
            }
            Ok(())
        })?;
    }
    let named = rows
        .into_iter()
        .filter_map(|(id, (_, name))| Some((id, name?)));
    Ok(named.collect())
}

/// Whether a table's file has the checksum that its list has for it.
pub(super) fn is_whole(table: &Table) -> io::Result<bool> {
    let mut file = match File::open(&table.path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    let mut hasher = XxHash3_128::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish_128() == table.checksum),
            len => hasher.write(buffer.get(..len).unwrap_or_default()),
        }
    }
}

/// Blocks of rows in a table.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks {
    /// Begin and end of each good one.
    pub(super) good: Vec<(u64, u64)>,
    /// Where something else stands that should be one.
    pub(super) bad: Vec<u64>,
}

/// Walks through a table from its begin to the first block of another kind. After a bad block it goes
/// on at the next good one.
pub(super) fn blocks(path: &Path) -> io::Result<Blocks> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut found = Blocks::default();
    let (mut at, mut lost) = (0, false);
    while at + BLOCK_HEAD_BYTES as u64 <= bytes {
        match block(&file, at, bytes)? {
            Some((BLOCK_OF_ROWS, end)) => {
                found.good.push((at, end));
                (at, lost) = (end, false);
            }
            Some(_) => return Ok(found),
            None => {
                if !lost {
                    found.bad.push(at);
                    lost = true;
                }
                match next_magic(&file, at + 1, bytes)? {
                    Some(next) => at = next,
                    None => return Ok(found),
                }
            }
        }
    }
    Ok(found)
}

/// How many bytes from a bad block to the next good one, or to the end.
pub(super) fn bad_bytes(path: &Path, at: u64) -> io::Result<u64> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut place = at;
    while let Some(next) = next_magic(&file, place + 1, bytes)? {
        if block(&file, next, bytes)?.is_some() {
            return Ok(next - at);
        }
        place = next;
    }
    Ok(bytes - at)
}

/// Kind and end of the block at a place, if its checksums are right.
fn block(file: &File, at: u64, bytes: u64) -> io::Result<Option<(u8, u64)>> {
    if at + BLOCK_HEAD_BYTES as u64 > bytes {
        return Ok(None);
    }
    let mut head = [0; BLOCK_HEAD_BYTES];
    file.read_exact_at(&mut head, at)?;
    let (head, own_checksum) = head.split_at(BLOCK_HEAD_BYTES - 4);
    // The lower half of a half, as the engine writes it.
    if XxHash3_128::oneshot(head).to_le_bytes().get(..4) != Some(own_checksum) {
        return Ok(None);
    }
    let parsed = (|| {
        let mut fields = Fields(head);
        let magic = fields.bytes(BLOCK_MAGIC.len())?;
        let kind = fields.u8()?;
        let checksum = u128::from_le_bytes(fields.array()?);
        (magic == BLOCK_MAGIC).then_some((kind, checksum, fields.u32()?))
    })();
    let Some((kind, checksum, len)) = parsed else {
        return Ok(None);
    };
    let end = at + BLOCK_HEAD_BYTES as u64 + u64::from(len);
    if end > bytes {
        return Ok(None);
    }
    let mut data = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut data, at + BLOCK_HEAD_BYTES as u64)?;
    Ok((XxHash3_128::oneshot(&data) == checksum).then_some((kind, end)))
}

fn next_magic(file: &File, mut at: u64, bytes: u64) -> io::Result<Option<u64>> {
    let mut buffer = vec![0; READ_BYTES];
    while at + BLOCK_MAGIC.len() as u64 <= bytes {
        let len = usize::try_from((bytes - at).min(READ_BYTES as u64)).unwrap_or(READ_BYTES);
        let window = buffer.get_mut(..len).unwrap_or_default();
        file.read_exact_at(window, at)?;
        let mut windows = window.windows(BLOCK_MAGIC.len());
        if let Some(ahead) = windows.position(|bytes| bytes == BLOCK_MAGIC) {
            return Ok(Some(at + ahead as u64));
        }
        // The last bytes may begin one.
        at += (len - (BLOCK_MAGIC.len() - 1)) as u64;
    }
    Ok(None)
}

/// Calls `visit` for every row in the good blocks of a table, in the order in which they lie there.
/// Returns where bad blocks begin.
pub(super) fn each_row(
    path: &Path,
    number_base: u64,
    mut visit: impl FnMut(InternalValue) -> io::Result<()>,
) -> io::Result<Vec<u64>> {
    let Blocks { good, bad } = blocks(path)?;
    if good.is_empty() {
        return Ok(bad);
    }
    // The engine reads blocks one after the other: those after a bad one need a file of their own.
    let mut copied = None;
    if !bad.is_empty() {
        let mut copy = tempfile::NamedTempFile::new()?;
        let source = File::open(path)?;
        for (at, end) in &good {
            let mut block = vec![0; usize::try_from(end - at).unwrap_or(0)];
            source.read_exact_at(&mut block, *at)?;
            copy.write_all(&block)?;
        }
        copy.flush()?;
        copied = Some(copy);
    }
    let readable = copied.as_ref().map_or(path, |copy| copy.path());
    let none = CompressionType::None;
    let scanner = Scanner::new(readable, good.len(), none, number_base);
    for row in scanner.map_err(io::Error::other)? {
        visit(row.map_err(io::Error::other)?)?;
    }
    Ok(bad)
}
