//! A descriptor table for one thread, so that a process may have more open files than its limit.
//!
//! The limit of open files bounds the numbers of one table, and threads share a table only because
//! they are started that way. A thread that leaves it counts from 0 again: fifty threads with
//! 20,000 files each hold a million.
//!
//! # Why it is sound
//! A descriptor is a number, and Rust takes for granted that the number in an `OwnedFd` means the
//! same file for as long as that value lives, on whichever thread. So no descriptor may go from one
//! table to another:
//! - [`own_table`] is called first thing on a thread that has been given none: what a holder gets
//!   from its starter (`Holding`, `Control`, `HolderGauges`) has no field that owns or borrows one.
//! - What the thread opens afterwards (its epoll instance, its sockets) it keeps in values on its
//!   own stack and closes before it ends; what it returns has numbers and text only.
//! - Standard input, output and error stay open under their numbers in every table.
//! - The copies of what other threads had open are closed here, and only here: in this table no
//!   value stands for them. In the others nothing changes.

#![allow(unsafe_code)]

use rustix::{
    fs::{Dir, Mode, OFlags},
    thread::{UnshareFlags, unshare_unsafe},
};
use std::{io, os::fd::AsRawFd};

/// Standard input, output and error are below this.
const STANDARD_END: i32 = 3;

/// Gives the calling thread a descriptor table of its own, with the standard streams and nothing
/// else in it. To be called before the thread opens anything, or is given anything open.
pub(super) fn own_table() -> io::Result<()> {
    // SAFETY: descriptors must not be used across tables; the module's head says why none is.
    unsafe { unshare_unsafe(UnshareFlags::FILES)? };
    for copy in open_descriptors()? {
        // SAFETY: the number is open in this thread's table, which it shares with nobody, and no
        // value stands for it: it is the copy of a file that another thread had open.
        unsafe { rustix::io::close(copy) };
    }
    Ok(())
}

/// Of the calling thread, but for the standard streams and for the folder that is read here.
fn open_descriptors() -> io::Result<Vec<i32>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open("/proc/thread-self/fd", flags, Mode::empty())?;
    let mut folder = Dir::new(folder)?;
    let own = folder.fd()?.as_raw_fd();
    let mut open = Vec::new();
    while let Some(entry) = folder.read() {
        let entry = entry?;
        // "." and ".." are no numbers.
        let number = entry.file_name().to_str().ok();
        let number = number.and_then(|name| name.parse::<i32>().ok());
        open.extend(number.filter(|number| *number >= STANDARD_END && *number != own));
    }
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, io::Read, thread};

    #[test]
    fn a_thread_of_its_own_starts_empty_and_leaves_others_alone() {
        let mut ours = File::open("/proc/self/comm").expect("Linux");
        let number = ours.as_raw_fd();
        assert!(number >= STANDARD_END);
        let (left, reused) = thread::spawn(|| {
            own_table().expect("always allowed");
            let left = open_descriptors().expect("Linux");
            let theirs = File::open("/proc/self/stat").expect("Linux");
            (left, theirs.as_raw_fd())
        })
        .join()
        .expect("no panic");
        assert_eq!(left, Vec::<i32>::new());
        assert!(reused <= STANDARD_END, "it counts from the start again");
        // Had the tables been one, our file would be closed, or another.
        let mut name = String::new();
        ours.read_to_string(&mut name).expect("still open");
        assert!(!name.trim().is_empty());
    }
}
