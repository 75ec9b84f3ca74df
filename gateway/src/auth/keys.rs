//! Key files: where they lie, who may read them, how they are made.
//!
//! # Invariants
//! - A secret exists on disk only complete and with mode 0600: it is written under another name,
//!   synced, and then given its name, unless another process was faster; then that one's counts.
//! - A secret that other users may read is not used: it must be taken as known.

use super::resume::{self, ResumeKey};
use base64::{Engine, engine::general_purpose::STANDARD};
use portico_client::mint::SigningKey;
use ring::digest;
use rustix::fs::RenameFlags;
use std::{
    fmt,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The Ed25519 private key that the node's own tokens are signed with (PEM, PKCS#8).
pub const AUTH_KEY_FILE: &str = portico_client::mint::KEY_FILE;
/// The secret of the resume tokens: 32 random bytes.
pub const RESUME_KEY_FILE: &str = "resume-key";

/// Larger files are no keys.
const KEY_FILE_BYTES_MAX: u64 = 16 << 10;
const ED25519_BYTES: usize = 32;
/// DER of an Ed25519 public key (SubjectPublicKeyInfo, RFC 8410) up to its 32 bytes.
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// Why keys cannot be used. Each is a sentence for the person who starts the gateway.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "{} can be read by other users (mode {mode:04o}): whoever has it can log in as anyone. \
         Remove it to have a new key made, or, if nobody else has read it, run chmod 600 on it",
        path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{} is not {expected}", path.display())]
    NotAKey {
        path: PathBuf,
        expected: &'static str,
    },
    #[error(
        "{count} verification keys: allowed is 1 to {}, the node's own included",
        VerifyingKey::COUNT_MAX
    )]
    Count { count: usize },
    #[error("the system gives no random numbers")]
    NoRandomness,
}

/// An Ed25519 public key and the id under which tokens name it.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    raw: [u8; ED25519_BYTES],
    kid: String,
}

impl VerifyingKey {
    /// A token without a key id is tried against each key, so their number bounds what a forged
    /// one costs.
    pub const COUNT_MAX: usize = 8;

    /// From the 32 bytes of the key.
    #[must_use]
    pub fn new(raw: [u8; ED25519_BYTES]) -> Self {
        let hash = digest::digest(&digest::SHA256, &raw);
        let kid = hash
            .as_ref()
            .iter()
            .take(8)
            .fold(String::with_capacity(16), |kid, byte| {
                kid + &format!("{byte:02x}")
            });
        Self { raw, kid }
    }

    /// Reads a public key file: PEM with a SubjectPublicKeyInfo, as `openssl pkey -pubout` writes.
    ///
    /// # Errors
    /// The file cannot be read or holds something else.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let bytes = read_small(path)?;
        pem_block(&bytes, "PUBLIC KEY")
            .as_deref()
            .and_then(|der| der.strip_prefix(&SPKI_PREFIX))
            .and_then(|raw| raw.try_into().ok())
            .map(Self::new)
            .ok_or_else(|| KeyError::NotAKey {
                path: path.to_owned(),
                expected: "an Ed25519 public key in PEM (BEGIN PUBLIC KEY)",
            })
    }

    /// First 16 hex digits of the SHA-256 of the key: the `kid` of tokens signed with it.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    pub(super) const fn raw(&self) -> &[u8; ED25519_BYTES] {
        &self.raw
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({})", self.kid)
    }
}

/// Makes the data directory, for this user only, unless it exists.
pub(super) fn create_data_dir(path: &Path) -> Result<(), KeyError> {
    let wrap = |source| KeyError::Io {
        action: "create the data directory",
        path: path.to_owned(),
        source,
    };
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(wrap)
}

/// The public half of the node's signing key, which is made if it is missing.
pub(super) fn open_signing_key(data: &Path) -> Result<VerifyingKey, KeyError> {
    let path = data.join(AUTH_KEY_FILE);
    let bytes = read_or_create_secret(&path, || {
        let pem = SigningKey::generate_pem().map_err(|_| KeyError::NoRandomness)?;
        Ok(pem.into_bytes())
    })?;
    std::str::from_utf8(&bytes)
        .ok()
        .and_then(|pem| SigningKey::from_pem(pem).ok())
        .and_then(|key| key.public_key().try_into().ok())
        .map(VerifyingKey::new)
        .ok_or(KeyError::NotAKey {
            path,
            expected: "an Ed25519 private key in PEM (BEGIN PRIVATE KEY)",
        })
}

/// The secret of the resume tokens, which is made if it is missing.
pub(super) fn open_resume_key(data: &Path) -> Result<ResumeKey, KeyError> {
    let path = data.join(RESUME_KEY_FILE);
    let bytes = read_or_create_secret(&path, || {
        resume::random::<{ ResumeKey::BYTES }>().map(Vec::from)
    })?;
    match bytes.as_slice().try_into() {
        Ok(secret) => Ok(ResumeKey::new(secret)),
        Err(_) => Err(KeyError::NotAKey {
            path,
            expected: "a resume key (32 bytes); remove it to have a new one made",
        }),
    }
}

/// Fails if other users may read the file, or if it is no file.
fn read_secret(path: &Path) -> Result<Vec<u8>, KeyError> {
    let file = File::open(path).map_err(|source| io_error("read", path, source))?;
    let metadata = file
        .metadata()
        .map_err(|source| io_error("read", path, source))?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    read_bounded(file, path)
}

fn read_or_create_secret(
    path: &Path,
    make: impl FnOnce() -> Result<Vec<u8>, KeyError>,
) -> Result<Vec<u8>, KeyError> {
    match read_secret(path) {
        Err(KeyError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
            create_secret(path, &make()?)?;
            // Reads what is there now: another process may have been faster.
            read_secret(path)
        }
        read => read,
    }
}

fn create_secret(path: &Path, bytes: &[u8]) -> Result<(), KeyError> {
    let suffix: [u8; 4] = resume::random()?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{:08x}.new", u32::from_be_bytes(suffix)));
    let temporary = PathBuf::from(temporary);
    let written = write_new(&temporary, bytes).and_then(|()| {
        let here = rustix::fs::CWD;
        match rustix::fs::renameat_with(here, &temporary, here, path, RenameFlags::NOREPLACE) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => sync_parent(path),
            Err(errno) => Err(errno.into()),
        }
    });
    // Already gone in the usual case.
    let _ = std::fs::remove_file(&temporary);
    written.map_err(|source| io_error("create", path, source))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the new name survive a power cut.
fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

fn read_small(path: &Path) -> Result<Vec<u8>, KeyError> {
    let file = File::open(path).map_err(|source| io_error("read", path, source))?;
    read_bounded(file, path)
}

fn read_bounded(file: File, path: &Path) -> Result<Vec<u8>, KeyError> {
    let mut bytes = Vec::new();
    file.take(KEY_FILE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(|source| io_error("read", path, source))?;
    Ok(bytes)
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> KeyError {
    KeyError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// The bytes of the only block of a PEM text, if it has this label.
fn pem_block(bytes: &[u8], label: &str) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    let body = text
        .strip_prefix(&format!("-----BEGIN {label}-----"))?
        .strip_suffix(&format!("-----END {label}-----"))?;
    let body: String = body.split_ascii_whitespace().collect();
    STANDARD.decode(body).ok()
}
