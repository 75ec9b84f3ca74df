//! What the kernel says about a running process.

use std::{fs, time::Duration};

/// A process, by its number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process(pub(crate) u32);

impl Process {
    /// CPU time of all its threads since they started, in user space and in the kernel.
    pub(crate) fn cpu(self) -> Duration {
        let nanoseconds = self
            .tasks()
            .filter_map(|task| fs::read_to_string(format!("{task}/schedstat")).ok())
            .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
            .sum();
        Duration::from_nanos(nanoseconds)
    }

    /// Names of its threads.
    pub(crate) fn threads(self) -> Vec<String> {
        self.tasks()
            .filter_map(|task| fs::read_to_string(format!("{task}/comm")).ok())
            .map(|name| name.trim().to_owned())
            .collect()
    }

    /// Open descriptors.
    pub(crate) fn descriptors(self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0))
            .expect("the process lives and is ours")
            .count()
    }

    /// Bytes of it that are in memory.
    pub(crate) fn resident_bytes(self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/statm", self.0)).expect("it lives");
        let pages: u64 = text
            .split(' ')
            .nth(1)
            .and_then(|pages| pages.parse().ok())
            .expect("statm has numbers");
        pages * rustix::param::page_size() as u64
    }

    fn tasks(self) -> impl Iterator<Item = String> {
        let folder = format!("/proc/{}/task", self.0);
        let tasks = fs::read_dir(&folder).expect("the process lives");
        tasks
            .flatten()
            .map(move |task| format!("{folder}/{}", task.file_name().to_string_lossy()))
    }
}
