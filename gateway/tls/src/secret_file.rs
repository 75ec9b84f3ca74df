//! Files that hold secrets.

use crate::SettingsError;
use std::{
    fs,
    io::Read,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};
use zeroize::Zeroizing;

/// What users who are neither the owner nor of the file's group may do with it.
const OTHERS: u32 = 0o007;

/// The content of a file, unless everybody on the machine may read or change it. (Its group may: that is
/// how tools that renew certificates hand keys to services.)
pub(crate) fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, SettingsError> {
    let failed = |source| SettingsError::Read {
        file: file.to_owned(),
        source,
    };
    let mut opened = fs::File::open(file).map_err(failed)?;
    let about = opened.metadata().map_err(failed)?;
    let mode = about.permissions().mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(SettingsError::Exposed {
            file: file.to_owned(),
            mode,
        });
    }
    // Room for all of it: a list that grows would leave copies behind.
    let mut secret = Zeroizing::new(Vec::with_capacity(about.size() as usize + 1));
    opened.read_to_end(&mut secret).map_err(failed)?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_everybody_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        fs::write(&file, "all of it").unwrap();
        let set = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        for mode in [0o604, 0o602, 0o644, 0o666, 0o601] {
            set(mode);
            let error = read(&file).unwrap_err().to_string();
            assert!(error.contains(&format!("(mode {mode:04o})")), "{error}");
            assert!(error.contains("chmod o= "), "{error}");
        }
        for mode in [0o600, 0o640, 0o400] {
            set(mode);
            assert_eq!(read(&file).unwrap().as_slice(), b"all of it");
        }
    }
}
