//! Who may change something through the admin port: whoever can read the data directory.
//!
//! A request carries a time, a random number and a MAC over both and itself, made with the secret in
//! `resume-key`. So the secret never travels, and what was overheard is good for nothing else, and
//! not twice.

use super::{
    KeyError, keys,
    resume::{self, ResumeKey},
};
use std::{
    collections::VecDeque,
    fmt::Write as _,
    path::Path,
    sync::{Mutex, PoisonError},
};

const PURPOSE: &str = "portico admin 1";
/// How far the clocks of the two may be apart.
const SKEW_S: u64 = 60;
/// Requests within that time, both ways. Beyond it they are refused.
const SEEN_MAX: usize = 1_024;

/// Makes requests to the admin port, and judges them.
#[derive(Debug)]
pub struct AdminKey {
    key: ResumeKey,
    /// When each of the last requests was made, and its MAC.
    seen: Mutex<VecDeque<(u64, Vec<u8>)>>,
}

impl AdminKey {
    /// Reads the secret of a data directory.
    ///
    /// # Errors
    /// It is not there, can be read by others, or is no key.
    pub fn open(data: &Path) -> Result<Self, KeyError> {
        Ok(Self {
            key: keys::read_resume_key(data)?,
            seen: Mutex::default(),
        })
    }

    /// The value of the header `Authorization` for a request such as `POST /devices/revoke?user=7`.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn authorization(&self, request: &str, now_unix_s: u64) -> Result<String, KeyError> {
        let nonce = u64::from_be_bytes(resume::random()?);
        let mac = self.key.seal(PURPOSE, &text(now_unix_s, nonce, request));
        let mut value = format!("Portico t={now_unix_s},n={nonce:016x},mac=");
        for byte in mac {
            let _ = write!(value, "{byte:02x}");
        }
        Ok(value)
    }

    /// Was this request made by someone who has the secret, just now, and is it the first of its kind?
    #[must_use]
    pub fn allows(&self, request: &str, authorization: &str, now_unix_s: u64) -> bool {
        let Some((at_unix_s, nonce, mac)) = parts(authorization) else {
            return false;
        };
        let signed = text(at_unix_s, nonce, request);
        if at_unix_s.abs_diff(now_unix_s) > SKEW_S || !self.key.is_sealed(PURPOSE, &signed, &mac) {
            return false;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|(at, _)| at.saturating_add(SKEW_S) >= now_unix_s);
        if seen.len() >= SEEN_MAX || seen.iter().any(|(_, other)| *other == mac) {
            return false;
        }
        seen.push_back((at_unix_s, mac));
        true
    }
}

fn text(at_unix_s: u64, nonce: u64, request: &str) -> String {
    format!("{at_unix_s} {nonce:016x}\n{request}")
}

fn parts(authorization: &str) -> Option<(u64, u64, Vec<u8>)> {
    let rest = authorization.strip_prefix("Portico t=")?;
    let (at, rest) = rest.split_once(",n=")?;
    let (nonce, mac) = rest.split_once(",mac=")?;
    if mac.len() != 64 || !mac.is_ascii() {
        return None;
    }
    let mac = (0..32)
        .map(|at| u8::from_str_radix(mac.get(2 * at..2 * at + 2)?, 16).ok())
        .collect::<Option<_>>()?;
    Some((at.parse().ok()?, u64::from_str_radix(nonce, 16).ok()?, mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> AdminKey {
        AdminKey {
            key: ResumeKey::new(&[byte; 32]),
            seen: Mutex::default(),
        }
    }

    const REQUEST: &str = "POST /devices/revoke?user=7";

    #[test]
    fn a_request_is_allowed_once_by_who_has_the_secret() {
        let gate = key(1);
        let value = key(1).authorization(REQUEST, 1_000).unwrap();
        assert!(!gate.allows("POST /devices/revoke?user=8", &value, 1_000));
        assert!(!gate.allows(REQUEST, &value, 1_061));
        assert!(!gate.allows(REQUEST, &value, 939));
        assert!(gate.allows(REQUEST, &value, 1_060));
        assert!(!gate.allows(REQUEST, &value, 1_060), "not twice");
        let other = key(2).authorization(REQUEST, 1_000).unwrap();
        assert!(!gate.allows(REQUEST, &other, 1_000));
        let again = key(1).authorization(REQUEST, 1_000).unwrap();
        assert!(gate.allows(REQUEST, &again, 1_000));
    }

    #[test]
    fn what_is_no_authorization_is_refused() {
        let gate = key(1);
        let value = key(1).authorization(REQUEST, 1_000).unwrap();
        for length in 0..value.len() {
            assert!(!gate.allows(REQUEST, &value[..length], 1_000));
        }
        for bad in [
            "".to_owned(),
            "Bearer x".to_owned(),
            value.replace("t=1000", "t=1001"),
            value.replace("Portico", "portico"),
            format!("{value}0"),
            format!("Portico t=1,n=1,mac={}", "ü".repeat(32)),
        ] {
            assert!(!gate.allows(REQUEST, &bad, 1_000), "{bad}");
        }
    }

    #[test]
    fn so_many_at_once_are_refused() {
        let gate = key(1);
        let allowed = (0..SEEN_MAX + 5)
            .filter(|_| gate.allows(REQUEST, &gate.authorization(REQUEST, 9).unwrap(), 9))
            .count();
        assert_eq!(allowed, SEEN_MAX);
        assert!(gate.allows(REQUEST, &gate.authorization(REQUEST, 70).unwrap(), 70));
    }
}
