//! What the process gives up before it holds a secret: that the kernel writes its memory to a file,
//! that other processes of its user look into it, that it gains rights, that others read its files.
//!
//! # Does not
//! Keep secrets from root, or from the swap: SECURITY.md says what to do about those.

use crate::config::CoreDumps;
use rustix::{
    fs::Mode,
    process::{
        DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit, umask,
    },
    thread::set_no_new_privs,
};
use std::io;

#[derive(Debug, thiserror::Error)]
#[error("cannot keep the memory of this process to itself: {0}")]
pub(crate) struct Unsealed(io::Error);

/// To be called before the first secret is read and before other threads start.
///
/// # Errors
/// The kernel did not do as it was asked; then no secret should be read.
pub(crate) fn seal(core_dumps: CoreDumps) -> Result<(), Unsealed> {
    give_up(core_dumps).map_err(Unsealed)
}

fn give_up(core_dumps: CoreDumps) -> io::Result<()> {
    // What this process makes is for its user alone, also in a directory that others may enter.
    umask(Mode::RWXG | Mode::RWXO);
    set_no_new_privs(true)?;
    if core_dumps == CoreDumps::Allowed {
        return Ok(());
    }
    let Rlimit { maximum, .. } = getrlimit(Resource::Core);
    let nothing = Rlimit {
        current: Some(0),
        maximum,
    };
    setrlimit(Resource::Core, nothing)?;
    // The limit alone does not do: the kernel pipes dumps to a program whatever it is.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
