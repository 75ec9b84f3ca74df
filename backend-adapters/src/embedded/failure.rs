//! What the engine's failures mean to the gateway and to the operator.

use crate::Error;
use std::io;
use std::path::{Path, PathBuf};

/// Why a store could not be opened. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "the store in {} is in use by another process; stop that one first, or give this gateway \
         a directory of its own", dir.display()
    )]
    InUse { dir: PathBuf },
    #[error(
        "the directory {} is not empty and holds no complete Portico store; choose another \
         directory, or empty this one if nothing in it is needed", dir.display()
    )]
    Foreign { dir: PathBuf },
    #[error(
        "the store in {} has format {found}, and this gateway knows formats up to {known}; run \
         the gateway that wrote it, or a later one", dir.display()
    )]
    Newer {
        dir: PathBuf,
        found: u32,
        known: u32,
    },
    #[error(
        "the store in {} is damaged ({detail}); copy the directory away before anything else; \
         `portico store check` says what is wrong, and `portico store salvage` saves what can be \
         read", dir.display()
    )]
    Damaged { dir: PathBuf, detail: String },
    #[error(
        "the store in {} cannot be opened ({source}); check that the directory exists, belongs to \
         this user, can be written to and has free space", dir.display()
    )]
    Io { dir: PathBuf, source: io::Error },
}

impl OpenError {
    /// The same about another directory.
    pub(super) fn about(mut self, other: &Path) -> Self {
        match &mut self {
            Self::InUse { dir }
            | Self::Foreign { dir }
            | Self::Newer { dir, .. }
            | Self::Damaged { dir, .. }
            | Self::Io { dir, .. } => other.clone_into(dir),
        }
        self
    }

    pub(super) fn io(dir: &Path, source: io::Error) -> Self {
        Self::Io {
            dir: dir.to_owned(),
            source,
        }
    }

    pub(super) fn damaged(dir: &Path, detail: impl Into<String>) -> Self {
        Self::Damaged {
            dir: dir.to_owned(),
            detail: detail.into(),
        }
    }

    pub(super) fn engine(dir: &Path, error: fjall::Error) -> Self {
        match error {
            fjall::Error::Locked => Self::InUse {
                dir: dir.to_owned(),
            },
            fjall::Error::Io(source) | fjall::Error::Storage(lsm_tree::Error::Io(source)) => {
                Self::io(dir, source)
            }
            other => Self::damaged(dir, other.to_string()),
        }
    }
}

/// Why a command could not be staged or read.
#[derive(Debug)]
pub(super) enum Failure {
    /// The fault of the command: it fails by itself.
    Refused(Error),
    /// The engine failed.
    Engine(fjall::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<fjall::Error> for Failure {
    fn from(error: fjall::Error) -> Self {
        Self::Engine(error)
    }
}

/// A commit failed. Whether it is on the disk nobody knows, and nothing may follow it.
pub(super) fn write_failure(dir: &Path, error: &fjall::Error) -> Error {
    let dir = dir.display();
    let advice = match error {
        fjall::Error::Io(source) | fjall::Error::Storage(lsm_tree::Error::Io(source)) => {
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "the disk is full: free space, and the store is opened anew by itself"
                }
                io::ErrorKind::ReadOnlyFilesystem => {
                    "the file system is read-only: look at the kernel log for disk errors, \
                     repair it and restart the gateway; one that was only remounted is taken up \
                     by itself"
                }
                _ => "look at the kernel log for disk errors, then restart the gateway",
            }
        }
        fjall::Error::Poisoned => {
            "an earlier write or flush failed: look at the log above this line, check the disk \
             and its free space, then restart the gateway"
        }
        _ => "restart the gateway; if it fails again, keep a copy of the directory",
    };
    Error::fatal(format!(
        "the store in {dir} cannot write any more ({error}); {advice}"
    ))
}

/// A read failed. Nothing has changed, so an error of the system may pass by itself.
pub(super) fn read_failure(dir: &Path, error: &fjall::Error) -> Error {
    let dir = dir.display();
    match error {
        fjall::Error::Io(source) | fjall::Error::Storage(lsm_tree::Error::Io(source)) => {
            Error::unavailable(format!("reading the store in {dir} failed: {source}"))
        }
        other => Error::fatal(format!(
            "the store in {dir} is damaged ({other}); stop the gateway, copy the directory away, \
             and see `portico store check`"
        )),
    }
}
