//! The chat's place in its inbox and its outbox, in one small file.
//!
//! The file is replaced whole by a rename, so a kill leaves the old one or the new one. It is not
//! synced: after a power failure it can be old or damaged, and then the server's cursor counts.

use super::ChatError;
use crate::session::{SessionState, StateError};
use portico_wire::ids::{DeviceId, UserId};
use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    temporary: PathBuf,
}

impl Store {
    pub(super) fn open(data: &Path, user: UserId, device: DeviceId) -> Result<Self, ChatError> {
        let folder = data.join("chat");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|error| ChatError::Place(error, folder.clone()))?;
        let name = format!("user-{user}-device-{device}");
        Ok(Self {
            path: folder.join(format!("{name}.state")),
            temporary: folder.join(format!("{name}.state.new")),
        })
    }

    /// The saved state, or the default. `true`: there was one, but damaged; it is put aside.
    pub(super) fn load(&self) -> Result<(SessionState, bool), ChatError> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((SessionState::default(), false));
            }
            Err(error) => return Err(self.place(error)),
        };
        match SessionState::decode(&bytes) {
            Ok(state) => Ok((state, false)),
            Err(StateError::Version(version)) => {
                let error = StateError::Version(version);
                Err(ChatError::State(error, self.path.clone()))
            }
            Err(StateError::Damaged | StateError::Foreign) => {
                let aside = self.path.with_extension("damaged");
                fs::rename(&self.path, aside).map_err(|error| self.place(error))?;
                Ok((SessionState::default(), true))
            }
        }
    }

    pub(super) fn save(&self, state: &SessionState) -> Result<(), ChatError> {
        self.replace(&state.encode())
            .map_err(|error| self.place(error))
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        // It holds texts and a token: nobody else may read it.
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&self.temporary)?;
        file.write_all(bytes)?;
        fs::rename(&self.temporary, &self.path)
    }

    fn place(&self, error: io::Error) -> ChatError {
        ChatError::Place(error, self.path.clone())
    }
}
