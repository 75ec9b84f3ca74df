//! A secret that coordinator and workers share.
//!
//! Neither side ever says it: each proves that it knows it by a MAC over a random number of the
//! other's (HMAC-SHA256 over the roles and both numbers). So a listener on the network cannot learn
//! it, nor use a proof again, nor turn one around. What follows is neither encrypted nor protected
//! against somebody who can change packets on their way.

use anyhow::{Context, bail};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use std::{fmt, fs::File, io::Read, os::unix::fs::PermissionsExt, path::Path};

pub(super) const NONCE_BYTES: usize = 32;
/// Shorter ones can be guessed from a proof.
const SECRET_BYTES_MIN: usize = 16;
const SECRET_BYTES_MAX: u64 = 4_096;

/// Who proves something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Coordinator,
    Worker,
}

#[derive(Clone)]
pub(super) struct Secret(hmac::Key);

impl Secret {
    /// The same on both sides, and known to everybody: for loopback.
    pub(super) fn none() -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &[]))
    }

    /// From a file that only its owner can read; white space at its end does not count.
    pub(super) fn load(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        let mut file = File::open(path).with_context(|| format!("cannot read {name}"))?;
        let metadata = file.metadata();
        let mode = metadata
            .with_context(|| format!("cannot read {name}"))?
            .permissions()
            .mode()
            & 0o7777;
        if mode & 0o077 != 0 {
            bail!("{name} can be read by others (mode {mode:o}); a secret must have mode 600");
        }
        let mut bytes = Vec::new();
        file.by_ref()
            .take(SECRET_BYTES_MAX)
            .read_to_end(&mut bytes)
            .with_context(|| format!("cannot read {name}"))?;
        let secret = bytes.trim_ascii_end();
        if secret.len() < SECRET_BYTES_MIN {
            bail!("the secret in {name} is shorter than {SECRET_BYTES_MIN} bytes");
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, secret)))
    }

    /// That `role` knows the secret.
    pub(super) fn proof(&self, role: Role, worker: &[u8], coordinator: &[u8]) -> Vec<u8> {
        let tag = hmac::sign(&self.0, &proven(role, worker, coordinator));
        tag.as_ref().to_vec()
    }

    /// In a time that does not depend on what is wrong.
    pub(super) fn proves(
        &self,
        proof: &[u8],
        role: Role,
        worker: &[u8],
        coordinator: &[u8],
    ) -> bool {
        hmac::verify(&self.0, &proven(role, worker, coordinator), proof).is_ok()
    }
}

fn proven(role: Role, worker: &[u8], coordinator: &[u8]) -> Vec<u8> {
    let role: &[u8] = match role {
        Role::Coordinator => b"portico-loadgen coordinator",
        Role::Worker => b"portico-loadgen worker",
    };
    // Each part behind its length, so that no byte can change sides.
    [role, worker, coordinator]
        .into_iter()
        .flat_map(|part| [&(part.len() as u64).to_le_bytes(), part].concat())
        .collect()
}

pub(super) fn nonce() -> anyhow::Result<Vec<u8>> {
    let mut nonce = vec![0; NONCE_BYTES];
    let filled = SystemRandom::new().fill(&mut nonce);
    filled
        .ok()
        .context("the system has no randomness")
        .map(|()| nonce)
}

/// Without the secret.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_proof_holds_for_its_secret_role_and_numbers_only() {
        let secret = Secret(hmac::Key::new(hmac::HMAC_SHA256, b"0123456789abcdef"));
        let (ours, theirs) = (nonce().expect("random"), nonce().expect("random"));
        let proof = secret.proof(Role::Coordinator, &ours, &theirs);
        assert!(secret.proves(&proof, Role::Coordinator, &ours, &theirs));
        assert!(!secret.proves(&proof, Role::Worker, &ours, &theirs));
        assert!(!secret.proves(&proof, Role::Coordinator, &theirs, &ours));
        assert!(!secret.proves(&proof[1..], Role::Coordinator, &ours, &theirs));
        assert!(!Secret::none().proves(&proof, Role::Coordinator, &ours, &theirs));
    }

    #[test]
    fn a_secret_that_is_short_or_open_to_others_is_refused() {
        let directory = tempfile::TempDir::new().expect("a directory");
        let path = directory.path().join("secret");
        let load = |text: &str, mode| {
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("own file");
            Secret::load(&path)
        };
        let one = load("0123456789abcdef\n", 0o600).expect("a secret");
        let other = load("0123456789abcdef", 0o400).expect("the same");
        assert_eq!(
            one.proof(Role::Worker, b"1", b"2"),
            other.proof(Role::Worker, b"1", b"2")
        );
        let short = load("0123456789\n\n\n\n\n\n\n", 0o600).expect_err("short");
        assert!(short.to_string().contains("shorter than 16 bytes"));
        let open = load("0123456789abcdef", 0o644).expect_err("open");
        assert!(open.to_string().contains("mode 644"));
    }
}
