//! Small file systems of their own, for disks that misbehave. Only root can have them.

use super::eventually;
use std::{
    env,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::NamedTempFile;

/// Unmounted when dropped.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    place: PathBuf,
    /// What holds it, if that is a file.
    image: Option<NamedTempFile>,
}

impl SmallDisk {
    /// A tmpfs, for lack of space. `None`, with the reason printed, where it cannot be had:
    /// continuous integration runs as root and must not skip this.
    pub(crate) fn in_memory(place: &Path, megabytes: u32) -> Option<Self> {
        let size = format!("size={megabytes}m,mode=700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "portico-e2e"]);
        Self::mounted(place, mount.arg(place), None)
    }

    /// An ext4 in a file, which can be made to fail and to stall.
    pub(crate) fn in_a_file(place: &Path, megabytes: u32) -> Option<Self> {
        let image = NamedTempFile::new().expect("a temporary file");
        let bytes = u64::from(megabytes) << 20;
        image.as_file().set_len(bytes).expect("it is sparse");
        let mut make = Command::new("mkfs.ext4");
        had(make.args(["-q", "-F"]).arg(image.path()).output())?;
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(image.path()).arg(place);
        Self::mounted(place, &mut mount, Some(image))
    }

    fn mounted(place: &Path, mount: &mut Command, image: Option<NamedTempFile>) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can mount a small file system");
            return None;
        }
        had(mount.output())?;
        Some(Self {
            place: place.to_owned(),
            image,
        })
    }

    pub(crate) fn remount(&self, option: &str) {
        let options = format!("remount,{option}");
        let output = Command::new("mount")
            .args(["-o", &options])
            .arg(&self.place)
            .output();
        assert!(is_success(&output), "{output:?}");
    }

    /// What an ext4 does when its disk fails: every write is refused from now on.
    pub(crate) fn fail(&self) {
        self.remount("abort");
    }

    /// Mounts it anew, after a check as at the start of a machine.
    pub(crate) fn repair(&self) {
        eventually("nobody uses it", || {
            let output = Command::new("umount").arg(&self.place).output();
            is_success(&output).then_some(())
        });
        let image = self.image.as_ref().expect("it is in a file").path();
        // Its exit code says that there was something to mend.
        let _ = Command::new("fsck.ext4").args(["-p"]).arg(image).output();
        let output = Command::new("mount")
            .args(["-o", "loop"])
            .arg(image)
            .arg(&self.place)
            .output();
        assert!(is_success(&output), "{output:?}");
    }

    /// Every write waits until the guard is dropped.
    pub(crate) fn freeze(&self) -> Thaw {
        let output = Command::new("fsfreeze").arg("-f").arg(&self.place).output();
        assert!(is_success(&output), "{output:?}");
        Thaw(self.place.clone())
    }

    /// Leaves so many bytes free.
    pub(crate) fn fill_up_to(&self, bytes_free: u64) -> PathBuf {
        let ballast = self.place.join("ballast");
        let mut file = File::create(&ballast).expect("there is room");
        let block = vec![0; 65_536];
        while free_bytes(&self.place) > bytes_free {
            file.write_all(&block).expect("there is room");
        }
        ballast
    }

    fn unmount(&self) {
        // Lazily: a test that fails may leave files open.
        let _ = Command::new("umount").arg("-l").arg(&self.place).status();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// Lets a file system go on.
#[derive(Debug)]
pub(crate) struct Thaw(PathBuf);

impl Drop for Thaw {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.0).status();
    }
}

fn is_success(output: &std::io::Result<Output>) -> bool {
    output.as_ref().is_ok_and(|output| output.status.success())
}

fn had(output: std::io::Result<Output>) -> Option<()> {
    if is_success(&output) {
        return Some(());
    }
    let in_ci = env::var_os("CI").is_some_and(|ci| ci == "true");
    assert!(!in_ci, "no small file system: {output:?}");
    println!("skipped: no small file system can be had: {output:?}");
    None
}

fn free_bytes(place: &Path) -> u64 {
    let stat = rustix::fs::statvfs(place).expect("it is mounted");
    stat.f_bavail * stat.f_frsize
}
