//! A note beside the journals: up to where they were whole when the store was last opened or closed.
//!
//! A journal that is cut off or gone looks like one that never held more. The note tells the two
//! apart, for everything that was there at the last start or orderly end. It is never ahead of the disk: it
//! is written after the journal was synced. Journals only grow and are replaced by later ones, so
//! an old note is weak but never wrong.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use twox_hash::XxHash3_64;

const FILE: &str = "floor";
const FILE_NEW: &str = "floor.new";
const HEAD: &str = "portico store floor 1";

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Floor {
    pub(super) journal: u64,
    pub(super) whole_bytes: u64,
    /// Written at an orderly end.
    pub(super) closed: bool,
}

/// `None` if there is no note that makes sense: without it a start is as safe as the journals
/// themselves make it.
pub(super) fn read(dir: &Path) -> io::Result<Option<Floor>> {
    match fs::read(dir.join(FILE)) {
        Ok(bytes) => Ok(std::str::from_utf8(&bytes).ok().and_then(parse)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn write(dir: &Path, floor: &Floor) -> io::Result<()> {
    let new = dir.join(FILE_NEW);
    let mut file = File::create(&new)?;
    file.write_all(text(floor).as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

fn text(floor: &Floor) -> String {
    let body = format!(
        "{HEAD}\njournal {}\nwhole_bytes {}\nclosed {}\n",
        floor.journal, floor.whole_bytes, floor.closed
    );
    let checksum = XxHash3_64::oneshot(body.as_bytes());
    format!("{body}checksum {checksum:016x}\n")
}

fn parse(found: &str) -> Option<Floor> {
    let mut lines = found.lines();
    (lines.next()? == HEAD).then_some(())?;
    let floor = Floor {
        journal: lines.next()?.strip_prefix("journal ")?.parse().ok()?,
        whole_bytes: lines.next()?.strip_prefix("whole_bytes ")?.parse().ok()?,
        closed: lines.next()?.strip_prefix("closed ")?.parse().ok()?,
    };
    (text(&floor) == found).then_some(floor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_a_flipped_bit_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let floor = Floor {
            journal: 7,
            whole_bytes: 12_345,
            closed: true,
        };
        write(dir.path(), &floor).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(floor));
        let path = dir.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(&path, flipped).unwrap();
            assert_eq!(read(dir.path()).unwrap(), None, "byte {at}");
        }
    }
}
