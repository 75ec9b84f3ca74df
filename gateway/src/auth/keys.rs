//! Key files: where they lie, who may read them, how they are made.
//!
//! # Invariants
//! - A secret exists on disk only complete and with mode 0600: it is written under another name,
//!   synced, and then given its name, unless another process was faster; then that one's counts.
//! - A secret that other users may read is not used: it must be taken as known.

use super::{
    jwk,
    resume::{self, ResumeKey},
};
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
const KEY_FILE_BYTES_MAX: u64 = jwk::SET_BYTES_MAX as u64 + 1;
const ED25519_BYTES: usize = 32;
/// An uncompressed point of P-256.
pub(super) const ES256_BYTES: usize = 65;
/// DER of an Ed25519 public key (SubjectPublicKeyInfo, RFC 8410) up to its 32 bytes.
const ED25519_SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// The same of a P-256 key (RFC 5480) up to its point.
const P256_SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
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
    #[error("{} holds no keys that can be used: {why}", path.display())]
    NotASet { path: PathBuf, why: String },
    #[error("two verification keys are called {kid:?}: give each its own name")]
    SameName { kid: String },
    #[error(
        "auth.jwks_url = {0:?} is not an https:// address (http:// is for this machine only), or holds \
         credentials"
    )]
    BadUrl(String),
    #[error(
        "{count} verification keys without a name of their own: allowed is 1 to {}, the node's own included",
        VerifyingKey::COUNT_MAX
    )]
    Count { count: usize },
    #[error("the system gives no random numbers")]
    NoRandomness,
}

/// What a key checks. A key knows it; what a token says of itself selects no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// Ed25519.
    EdDsa,
    /// ECDSA over P-256 with SHA-256.
    Es256,
}

/// A public key and the id under which tokens name it.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    kind: KeyKind,
    raw: Vec<u8>,
    kid: String,
    named: bool,
}

impl VerifyingKey {
    /// A token without a key id is tried against each key that has no name of its own, so their
    /// number bounds what a forged one costs.
    pub const COUNT_MAX: usize = 8;

    /// From the 32 bytes of an Ed25519 key.
    #[must_use]
    pub fn new(raw: [u8; ED25519_BYTES]) -> Self {
        Self::with(KeyKind::EdDsa, raw.to_vec())
    }

    /// From a point of P-256: 4, then the coordinates of 32 bytes each. A point that is not on the
    /// curve checks no signature.
    #[must_use]
    pub fn es256(point: [u8; ES256_BYTES]) -> Self {
        Self::with(KeyKind::Es256, point.to_vec())
    }

    fn with(kind: KeyKind, raw: Vec<u8>) -> Self {
        let hash = digest::digest(&digest::SHA256, &raw);
        let kid = hash
            .as_ref()
            .iter()
            .take(8)
            .fold(String::with_capacity(16), |kid, byte| {
                kid + &format!("{byte:02x}")
            });
        Self {
            kind,
            raw,
            kid,
            named: false,
        }
    }

    /// The same key under the name that its owner gave it. Only tokens that name it are tried
    /// against it.
    #[must_use]
    pub fn named(self, kid: String) -> Self {
        Self {
            kid,
            named: true,
            ..self
        }
    }

    /// Reads a public key file: PEM with a SubjectPublicKeyInfo of Ed25519 or P-256, as
    /// `openssl pkey -pubout` writes, or a JSON Web Key, or a set of them.
    ///
    /// # Errors
    /// The file cannot be read or holds something else.
    pub fn read(path: &Path) -> Result<Vec<Self>, KeyError> {
        let bytes = read_small(path)?;
        if bytes.trim_ascii_start().starts_with(b"{") {
            return jwk::read(&bytes).map_err(|error| KeyError::NotASet {
                path: path.to_owned(),
                why: error.to_string(),
            });
        }
        pem_block(&bytes, "PUBLIC KEY")
            .as_deref()
            .and_then(Self::from_spki)
            .map(|key| vec![key])
            .ok_or_else(|| KeyError::NotAKey {
                path: path.to_owned(),
                expected: "an Ed25519 public key or one of P-256 in PEM (BEGIN PUBLIC KEY), nor a \
                           JSON Web Key Set",
            })
    }

    fn from_spki(der: &[u8]) -> Option<Self> {
        if let Some(raw) = der.strip_prefix(&ED25519_SPKI_PREFIX) {
            return raw.try_into().ok().map(Self::new);
        }
        let point: [u8; ES256_BYTES] = der.strip_prefix(&P256_SPKI_PREFIX)?.try_into().ok()?;
        (point[0] == 4).then(|| Self::es256(point))
    }

    #[must_use]
    pub const fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The `kid` of tokens signed with it: its own name, or the first 16 hex digits of the SHA-256
    /// of the key.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// It has a name of its own.
    #[must_use]
    pub const fn is_named(&self) -> bool {
        self.named
    }

    pub(super) fn raw(&self) -> &[u8] {
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
    public_half(path, &bytes)
}

/// The same of a key that must be there.
pub(super) fn read_signing_key(path: &Path) -> Result<VerifyingKey, KeyError> {
    public_half(path.to_owned(), &read_secret(path)?)
}

fn public_half(path: PathBuf, bytes: &[u8]) -> Result<VerifyingKey, KeyError> {
    std::str::from_utf8(bytes)
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
    resume_key(path, &bytes)
}

/// The same, which must be there.
pub(super) fn read_resume_key(data: &Path) -> Result<ResumeKey, KeyError> {
    let path = data.join(RESUME_KEY_FILE);
    let bytes = read_secret(&path)?;
    resume_key(path, &bytes)
}

fn resume_key(path: PathBuf, bytes: &[u8]) -> Result<ResumeKey, KeyError> {
    match bytes.try_into() {
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
