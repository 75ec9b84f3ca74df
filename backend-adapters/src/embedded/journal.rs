//! Journals, read without the engine and without changing them.
//!
//! At start the engine replays its journals and stops at the first record that it cannot read: what
//! follows is cut off, on the assumption that a crash tore the last commit. A bit that flipped in
//! the middle looks the same to it, and would cost every later commit in silence. So each journal
//! is read here first, and the two are told apart.
//!
//! A commit is `Start` (count, number), that many `Item`s and `Clear`s, and `End` (checksum of the
//! raw bytes between, a fixed trailer). Whatever was answered has an `End` on the disk. From that:
//!
//! * **torn**: the last commit has no end. It was never answered, and may go.
//! * **damaged**: a commit is not whole, but its end is there, or a whole commit comes after it.
//!
//! # Invariants
//! * Nothing is allocated by a length that was read; memory is one window.
//! * What is called whole here is accepted by the engine.

use std::fs::{self, File};
use std::hash::Hasher;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use twox_hash::XxHash3_64;

/// Bytes read at once.
const WINDOW: usize = 256 << 10;
const START_BYTES: u64 = 13;
const ITEM_HEAD_BYTES: u64 = 21;
const CLEAR_BYTES: u64 = 9;
const END_BYTES: u64 = 13;
const TRAILER: &[u8] = b"FJL\x03";

const TAG_START: u8 = 1;
const TAG_ITEM: u8 = 2;
const TAG_END: u8 = 3;
const TAG_CLEAR: u8 = 4;

/// The engine numbers commits, and a few other steps, one by one. A greater step, or a greater first
/// number, is a flipped bit: numbers have no checksum.
const NUMBER_STEP_MAX: u64 = 1 << 32;
const NUMBER_MAX: u64 = 1 << 60;

/// A journal as it was found.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    pub(super) id: u64,
    pub(super) path: PathBuf,
    pub(super) file_bytes: u64,
    /// Whole commits end here.
    pub(super) whole_bytes: u64,
    pub(super) commits: u64,
    pub(super) rows: u64,
    /// The engine's number of the last whole commit.
    pub(super) last: Option<u64>,
    /// Where the last whole commit begins.
    pub(super) last_at: u64,
    pub(super) tail: Tail,
}

/// What comes after the whole commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// Nothing but zeros, which the engine puts there ahead of use.
    Clean,
    /// So many bytes of a commit without an end.
    Torn { bytes: u64 },
    Damaged {
        at: u64,
        what: &'static str,
        /// A whole commit after it.
        goes_on_at: Option<u64>,
    },
}

/// A whole commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Commit {
    pub(super) at: u64,
    pub(super) end: u64,
    pub(super) number: u64,
    pub(super) rows: u64,
}

/// A row in a journal.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) keyspace: u64,
    pub(super) key: Vec<u8>,
    /// `None`: deleted.
    pub(super) value: Option<Vec<u8>>,
}

/// Why no commit could be read at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The data ends in the record at this place.
    Cut {
        at: u64,
    },
    Bad {
        at: u64,
        what: &'static str,
    },
}

/// The journals of a store, the oldest first.
pub(super) fn list(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for file in fs::read_dir(dir)? {
        let path = file?.path();
        let id = path.file_name().and_then(|name| name.to_str());
        let id = id.and_then(|name| name.strip_suffix(".jnl"));
        if let Some(id) = id.and_then(|id| id.parse().ok()) {
            found.push((id, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Reads a journal to its end. `after` is the last number of the journal before.
pub(super) fn scan(id: u64, path: &Path, after: Option<u64>) -> io::Result<Journal> {
    let mut reader = JournalReader::open(path)?;
    let mut journal = Journal {
        id,
        path: path.to_owned(),
        file_bytes: reader.file_bytes,
        whole_bytes: 0,
        commits: 0,
        rows: 0,
        last: None,
        last_at: 0,
        tail: Tail::Clean,
    };
    let mut before = after;
    while journal.whole_bytes < reader.data_bytes {
        let fault = match reader.commit(journal.whole_bytes)? {
            Ok(commit) if follows(before, commit.number) => {
                before = Some(commit.number);
                journal.last = before;
                journal.last_at = commit.at;
                journal.whole_bytes = commit.end;
                journal.commits += 1;
                journal.rows += commit.rows;
                continue;
            }
            Ok(commit) => Fault::Bad {
                at: commit.at + 5,
                what: "the number of a commit does not follow that of the one before",
            },
            Err(fault) => fault,
        };
        journal.tail = reader.judge(&journal, before, fault)?;
        break;
    }
    Ok(journal)
}

/// Whether a commit of this number may come after `before`.
pub(super) fn follows(before: Option<u64>, number: u64) -> bool {
    match before {
        Some(before) => number > before && number - before < NUMBER_STEP_MAX,
        None => number < NUMBER_MAX,
    }
}

/// Reads parts of a journal in any order.
pub(super) struct JournalReader {
    file: File,
    file_bytes: u64,
    /// Only zeros come after this.
    data_bytes: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl JournalReader {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let file_bytes = file.metadata()?.len();
        let mut reader = Self {
            file,
            file_bytes,
            data_bytes: file_bytes,
            window: Vec::new(),
            window_at: 0,
        };
        reader.data_bytes = reader.find_data_end()?;
        Ok(reader)
    }

    pub(super) const fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// From the back, a window at a time.
    fn find_data_end(&mut self) -> io::Result<u64> {
        let len = usize::try_from(self.file_bytes)
            .unwrap_or(WINDOW)
            .min(WINDOW);
        let zeros = vec![0; len];
        let mut end = self.file_bytes;
        while end > 0 {
            let begin = end.saturating_sub(WINDOW as u64);
            let len = usize::try_from(end - begin).unwrap_or(WINDOW);
            let bytes = self.bytes(begin, len)?;
            if zeros.get(..len) != Some(bytes) {
                let last = bytes.iter().rposition(|byte| *byte != 0);
                return Ok(begin + last.map_or(0, |last| last as u64 + 1));
            }
            end = begin;
        }
        Ok(0)
    }

    /// `len` bytes, at most a window, which must lie within the file.
    fn bytes(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let held = self.window_at..self.window_at + self.window.len() as u64;
        if at < held.start || at + len as u64 > held.end {
            let most = self.file_bytes.saturating_sub(at).min(WINDOW as u64);
            let most = usize::try_from(most).unwrap_or(WINDOW).max(len);
            self.window.resize(most, 0);
            self.window_at = at;
            if let Err(error) = self.file.read_exact_at(&mut self.window, at) {
                self.window.clear();
                return Err(error);
            }
        }
        let from = usize::try_from(at - self.window_at).unwrap_or(usize::MAX);
        let bytes = self.window.get(from..from.saturating_add(len));
        bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    }

    fn byte(&mut self, at: u64) -> io::Result<u8> {
        Ok(self.bytes(at, 1)?.first().copied().unwrap_or(0))
    }

    fn array<const N: usize>(&mut self, at: u64) -> io::Result<[u8; N]> {
        let bytes = self.bytes(at, N)?.try_into();
        bytes.map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))
    }

    fn hash(&mut self, mut at: u64, end: u64) -> io::Result<u64> {
        if let Ok(len @ ..=WINDOW) = usize::try_from(end - at) {
            return Ok(XxHash3_64::oneshot(self.bytes(at, len)?));
        }
        let mut hasher = XxHash3_64::new();
        while at < end {
            let len = (end - at).min(WINDOW as u64);
            hasher.write(self.bytes(at, usize::try_from(len).unwrap_or(WINDOW))?);
            at += len;
        }
        Ok(hasher.finish())
    }

    /// The commit that begins at a place, if a whole one does.
    pub(super) fn commit(&mut self, at: u64) -> io::Result<Result<Commit, Fault>> {
        if self.data_bytes < at + START_BYTES {
            return Ok(Err(Fault::Cut { at }));
        }
        let start: [u8; 13] = self.array(at)?;
        let [tag, c0, c1, c2, c3, number @ ..] = start;
        if tag != TAG_START {
            let what = "a commit does not begin as one";
            return Ok(Err(Fault::Bad { at, what }));
        }
        let number = u64::from_le_bytes(number);
        let rows = u64::from(u32::from_le_bytes([c0, c1, c2, c3]));
        let mut place = at + START_BYTES;
        for _ in 0..rows {
            match self.skip_row(place)? {
                Ok(next) => place = next,
                Err(fault) => return Ok(Err(fault)),
            }
        }
        if self.data_bytes < place + END_BYTES {
            return Ok(Err(if self.data_bytes <= place {
                Fault::Cut { at: place }
            } else {
                self.short_end(place)?
            }));
        }
        let [tag, rest @ ..] = self.array::<9>(place)?;
        let checksum = u64::from_le_bytes(rest);
        let bad = |what| Ok(Err(Fault::Bad { at: place, what }));
        if tag != TAG_END {
            return bad("a commit has another number of rows than it says");
        }
        if self.bytes(place + 9, TRAILER.len())? != TRAILER {
            return bad("the end of a commit is not as it must be");
        }
        if self.hash(at + START_BYTES, place)? != checksum {
            return Ok(Err(Fault::Bad {
                at,
                what: "a commit fails its checksum",
            }));
        }
        Ok(Ok(Commit {
            at,
            end: place + END_BYTES,
            number,
            rows,
        }))
    }

    /// Fewer bytes than an end has: cut, unless they are no beginning of one.
    fn short_end(&mut self, place: u64) -> io::Result<Fault> {
        Ok(match self.byte(place)? {
            TAG_END => Fault::Cut { at: place },
            _ => Fault::Bad {
                at: place,
                what: "a commit has another number of rows than it says",
            },
        })
    }

    /// Where the row at a place ends.
    fn skip_row(&mut self, at: u64) -> io::Result<Result<u64, Fault>> {
        let cut = Ok(Err(Fault::Cut { at }));
        let bad = |what| Ok(Err(Fault::Bad { at, what }));
        if self.data_bytes <= at {
            return cut;
        }
        match self.byte(at)? {
            TAG_ITEM => {}
            TAG_CLEAR if self.data_bytes < at + CLEAR_BYTES => return cut,
            TAG_CLEAR => return Ok(Ok(at + CLEAR_BYTES)),
            _ => return bad("a row does not begin as one"),
        }
        if self.data_bytes <= at + ITEM_HEAD_BYTES {
            return cut;
        }
        let head = Head::parse(self.array(at)?);
        if head.kind > 2 || head.compression != 0 || head.value_bytes != head.stored_bytes {
            return bad("the head of a row is not as it must be");
        }
        let end = at + ITEM_HEAD_BYTES + u64::from(head.key_bytes) + u64::from(head.value_bytes);
        if self.data_bytes <= end {
            return cut;
        }
        Ok(Ok(end))
    }

    /// The rows of a whole commit.
    pub(super) fn rows(&mut self, commit: &Commit) -> io::Result<Vec<Row>> {
        let mut rows = Vec::new();
        let mut at = commit.at + START_BYTES;
        while at + END_BYTES < commit.end {
            if self.byte(at)? == TAG_CLEAR {
                // Nothing of ours clears a keyspace.
                at += CLEAR_BYTES;
                continue;
            }
            let head = Head::parse(self.array(at)?);
            at += ITEM_HEAD_BYTES;
            let key = self.copy(at, u64::from(head.key_bytes))?;
            at += u64::from(head.key_bytes);
            let value = self.copy(at, u64::from(head.value_bytes))?;
            at += u64::from(head.value_bytes);
            rows.push(Row {
                keyspace: head.keyspace,
                key,
                value: (head.kind == 0).then_some(value),
            });
        }
        Ok(rows)
    }

    fn copy(&self, at: u64, len: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Torn or damaged? See the [module](self).
    fn judge(&mut self, journal: &Journal, before: Option<u64>, fault: Fault) -> io::Result<Tail> {
        let begin = journal.whole_bytes;
        let (at, what) = match fault {
            Fault::Cut { at } => (at, "a row is longer than the commit that it is in"),
            Fault::Bad { at, what } => (at, what),
        };
        let goes_on_at = self
            .find_commit(at.max(begin + 1), before)?
            .map(|commit| commit.at);
        // A commit in which only the end is not right has an end nevertheless.
        let bad_end = matches!(fault, Fault::Bad { .. }) && self.data_bytes == at + END_BYTES;
        if goes_on_at.is_some() || bad_end || self.ends_with_an_end(begin)? {
            return Ok(Tail::Damaged {
                at,
                what,
                goes_on_at,
            });
        }
        let bytes = self.data_bytes - begin;
        Ok(Tail::Torn { bytes })
    }

    fn ends_with_an_end(&mut self, begin: u64) -> io::Result<bool> {
        let Some(at) = self.data_bytes.checked_sub(END_BYTES) else {
            return Ok(false);
        };
        if at < begin + START_BYTES || self.byte(at)? != TAG_END {
            return Ok(false);
        }
        Ok(self.bytes(at + 9, TRAILER.len())? == TRAILER)
    }

    /// The first whole commit that begins at `from` or later and may follow `before`.
    pub(super) fn find_commit(
        &mut self,
        from: u64,
        before: Option<u64>,
    ) -> io::Result<Option<Commit>> {
        let mut at = from;
        while at + START_BYTES + END_BYTES <= self.data_bytes {
            let len = (self.data_bytes - at).min(WINDOW as u64 / 2);
            let len = usize::try_from(len).unwrap_or(1);
            let bytes = self.bytes(at, len)?;
            let Some(ahead) = bytes.iter().position(|byte| *byte == TAG_START) else {
                at += len as u64;
                continue;
            };
            at += ahead as u64;
            if self.data_bytes < at + START_BYTES + END_BYTES {
                break;
            }
            // Cheapest first: most of these bytes begin nothing.
            let number = u64::from_le_bytes(self.array(at + 5)?);
            if follows(before, number)
                && let Ok(commit) = self.commit(at)?
                && commit.rows > 0
            {
                return Ok(Some(commit));
            }
            at += 1;
        }
        Ok(None)
    }
}

/// What stands before the key and the value of a row.
struct Head {
    kind: u8,
    compression: u8,
    keyspace: u64,
    key_bytes: u16,
    value_bytes: u32,
    stored_bytes: u32,
}

impl Head {
    fn parse(bytes: [u8; 21]) -> Self {
        let [
            _,
            kind,
            compression,
            k0,
            k1,
            k2,
            k3,
            k4,
            k5,
            k6,
            k7,
            l0,
            l1,
            v0,
            v1,
            v2,
            v3,
            s0,
            s1,
            s2,
            s3,
        ] = bytes;
        Self {
            kind,
            compression,
            keyspace: u64::from_le_bytes([k0, k1, k2, k3, k4, k5, k6, k7]),
            key_bytes: u16::from_le_bytes([l0, l1]),
            value_bytes: u32::from_le_bytes([v0, v1, v2, v3]),
            stored_bytes: u32::from_le_bytes([s0, s1, s2, s3]),
        }
    }
}
