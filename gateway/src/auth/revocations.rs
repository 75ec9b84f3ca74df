//! Devices whose tokens are not good any more, however long they would live.
//!
//! Each device has a generation, 0 at first. A revocation raises it, in a record that is durable
//! before anything follows from it; so does one for all devices of a user, whose record stands under
//! device 0. From then on a token is refused
//! - that carries an earlier generation, or
//! - that was issued before the revocation, whatever it carries.
//!
//! The second rule holds for issuers that count generations by themselves; the first for tokens that
//! do not say when they were issued.
//!
//! # Invariants
//! - A record is never taken back: the next revocation counts on from it.
//! - In memory are those that a living token can meet, about 64 bytes each; what is older than the
//!   longest life of a token is on disk only.

use super::{Identity, KeyError, resume};
use crate::gateway::ask;
use bytes::Bytes;
use portico_backend::{
    Backend, Error, Kind,
    records::{Cmd, Expect, PAGE_ROWS_MAX, Records, Reply, Row, Table, Version},
};
use portico_core::Revocation;
use portico_wire::ids::{DeviceId, UserId};
use rustc_hash::FxHashMap;
use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

/// The records of devices. The key is the user and the device, 8 and 2 bytes, big-endian.
const DEVICES: Table = Table(1);
/// Version of a record's value: then the generation, 4 bytes, and when it was raised, 8 bytes of
/// Unix seconds, both big-endian.
const FORMAT: u8 = 1;
const VALUE_BYTES: usize = 1 + 4 + 8;
/// For one question to the store.
const PATIENCE: Duration = Duration::from_secs(10);
/// Attempts when another process changes the same record.
const ATTEMPTS: usize = 5;
/// Under this number stands what holds for all devices of a user.
const EVERY_DEVICE: u16 = 0;
/// After so many more are kept, those that have had their time are looked for.
const PRUNE_EVERY: usize = 1_024;

/// Why a device could not be revoked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RevokeError {
    #[error("the store did not take it: {0}; nothing is certain, do it again")]
    Store(Error),
    #[error("user {0} cannot exist: allowed is 1 to {max}", max = u64::MAX - 1)]
    NoSuchUser(u64),
    #[error("device 0 cannot exist: leave it out to revoke all devices of the user")]
    NoSuchDevice,
    #[error("the generation of this device has reached its end")]
    Exhausted,
    #[error(transparent)]
    Random(KeyError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Raised {
    generation: u32,
    at_unix_s: u64,
}

/// See the head of this file.
pub struct Revocations {
    records: Option<Arc<dyn Backend<Records>>>,
    rows: RwLock<FxHashMap<(u64, u16), Raised>>,
    /// Changes with `rows`, under its lock. 0: there never was one.
    epoch: AtomicU32,
    /// One at a time.
    turn: Mutex<()>,
    kept_s: u64,
}

impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocations")
            .field("epoch", &self.epoch.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

impl Default for Revocations {
    /// None, and none can be added.
    fn default() -> Self {
        Self {
            records: None,
            rows: RwLock::default(),
            epoch: AtomicU32::new(0),
            turn: Mutex::default(),
            kept_s: 0,
        }
    }
}

impl Revocations {
    /// Reads those of a store. `kept_s` is the longest life of a token, see
    /// [`super::JwtOptions::revocations_kept_s`].
    ///
    /// # Errors
    /// The store does not answer.
    pub fn open(
        records: Arc<dyn Backend<Records>>,
        kept_s: u64,
        now_unix_s: u64,
    ) -> Result<Self, Error> {
        let mut rows = FxHashMap::default();
        for row in scan(&records, &[])? {
            let Some((user, device, raised)) = decode(&row) else {
                return Err(Error::new(Kind::Fatal, "a device's record cannot be read"));
            };
            if raised.at_unix_s.saturating_add(kept_s) >= now_unix_s {
                rows.insert((user, device), raised);
            }
        }
        Ok(Self {
            records: Some(records),
            epoch: AtomicU32::new(u32::from(!rows.is_empty())),
            rows: RwLock::new(rows),
            turn: Mutex::default(),
            kept_s,
        })
    }

    /// Raises the generation of a device, or of all devices of a user, durably. Returns the new one,
    /// and what the shards have to be told.
    ///
    /// # Errors
    /// [`RevokeError`]; after one of the store's it may have happened.
    pub fn revoke(
        &self,
        user: UserId,
        device: Option<DeviceId>,
        now_unix_s: u64,
    ) -> Result<(u32, Revocation), RevokeError> {
        if !user.is_valid() {
            return Err(RevokeError::NoSuchUser(user.0));
        }
        if device == Some(DeviceId(EVERY_DEVICE)) {
            return Err(RevokeError::NoSuchDevice);
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let place = device.map_or(EVERY_DEVICE, |device| device.0);
        let mut outcome = Err(Error::new(Kind::Unavailable, "there is no store for it"));
        let mut raised = Raised {
            generation: 0,
            at_unix_s: now_unix_s,
        };
        if let Some(records) = &self.records {
            let version = u64::from_be_bytes(resume::random().map_err(RevokeError::Random)?);
            for _ in 0..ATTEMPTS {
                let (highest, expect) =
                    standing(records, user, place).map_err(RevokeError::Store)?;
                raised.generation = highest.checked_add(1).ok_or(RevokeError::Exhausted)?;
                let put = Cmd::Put {
                    table: DEVICES,
                    key: key(user.0, place),
                    value: encode(raised),
                    expect,
                    version: Version(version),
                };
                outcome = ask(records, put, PATIENCE);
                match &outcome {
                    Err(error) if error.kind == Kind::Conflict => {}
                    _ => break,
                }
            }
        }
        let uncertain = |error: &Error| matches!(error.kind, Kind::Unknown | Kind::Fatal);
        if outcome.is_ok() || outcome.as_ref().is_err_and(uncertain) {
            // What may be durable counts: it would after a restart.
            let epoch = self.keep((user.0, place), raised);
            outcome.map_err(RevokeError::Store)?;
            let revocation = Revocation {
                user,
                device,
                epoch,
            };
            return Ok((raised.generation, revocation));
        }
        Err(RevokeError::Store(outcome.err().unwrap_or_else(|| {
            Error::new(Kind::Unavailable, "there is no store for it")
        })))
    }

    fn keep(&self, place: (u64, u16), raised: Raised) -> u32 {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        rows.insert(place, raised);
        if rows.len().is_multiple_of(PRUNE_EVERY) {
            rows.retain(|_, it| it.at_unix_s.saturating_add(self.kept_s) >= raised.at_unix_s);
        }
        self.epoch.fetch_add(1, Ordering::Release) + 1
    }

    /// Is this token revoked? If it is not: as of which epoch. `issued_unix_s` less the issuer's
    /// tolerance; `None`: it does not say.
    pub(super) fn judge(&self, who: Identity, issued_unix_s: Option<u64>) -> Option<u32> {
        // The usual case costs a load.
        if self.epoch.load(Ordering::Acquire) == 0 {
            return Some(0);
        }
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        let epoch = self.epoch.load(Ordering::Acquire);
        let good = [EVERY_DEVICE, who.device.0].iter().all(|device| {
            rows.get(&(who.user.0, *device)).is_none_or(|raised| {
                who.generation >= raised.generation
                    && issued_unix_s.is_none_or(|at| at >= raised.at_unix_s)
            })
        });
        good.then_some(epoch)
    }
}

/// The highest generation that holds for the place, and the state of its own record.
fn standing(
    records: &Arc<dyn Backend<Records>>,
    user: UserId,
    place: u16,
) -> Result<(u32, Expect), Error> {
    let mut highest = 0;
    let mut expect = Expect::Absent;
    for row in scan(records, &user.0.to_be_bytes())? {
        let Some((_, device, raised)) = decode(&row) else {
            return Err(Error::new(Kind::Fatal, "a device's record cannot be read"));
        };
        if device == place {
            expect = Expect::Version(row.version);
        }
        // All devices together begin above each of them.
        if device == place || device == EVERY_DEVICE || place == EVERY_DEVICE {
            highest = highest.max(raised.generation);
        }
    }
    Ok((highest, expect))
}

fn scan(records: &Arc<dyn Backend<Records>>, prefix: &[u8]) -> Result<Vec<Row>, Error> {
    let mut all: Vec<Row> = Vec::new();
    loop {
        let after = all.last().map_or_else(Bytes::new, |row| row.key.clone());
        let scan = Cmd::Scan {
            table: DEVICES,
            prefix: Bytes::copy_from_slice(prefix),
            after,
            limit: PAGE_ROWS_MAX,
        };
        match ask(records, scan, PATIENCE)? {
            Reply::Rows(rows) if rows.is_empty() => return Ok(all),
            Reply::Rows(rows) => all.extend(rows),
            _ => return Err(Error::new(Kind::Invalid, "the adapter gave another answer")),
        }
    }
}

fn key(user: u64, device: u16) -> Bytes {
    let mut key = Vec::with_capacity(10);
    key.extend_from_slice(&user.to_be_bytes());
    key.extend_from_slice(&device.to_be_bytes());
    key.into()
}

fn encode(raised: Raised) -> Bytes {
    let mut value = Vec::with_capacity(VALUE_BYTES);
    value.push(FORMAT);
    value.extend_from_slice(&raised.generation.to_be_bytes());
    value.extend_from_slice(&raised.at_unix_s.to_be_bytes());
    value.into()
}

fn decode(row: &Row) -> Option<(u64, u16, Raised)> {
    let (user, device) = row.key.split_first_chunk()?;
    let (format, rest) = row.value.split_first()?;
    let (generation, at) = rest.split_first_chunk()?;
    let raised = Raised {
        generation: u32::from_be_bytes(*generation),
        at_unix_s: u64::from_be_bytes(at.try_into().ok()?),
    };
    let device = u16::from_be_bytes(device.try_into().ok()?);
    (*format == FORMAT).then_some((u64::from_be_bytes(*user), device, raised))
}

#[cfg(test)]
mod tests {
    use super::*;
    use portico_backend::{Limits, memory};

    fn who(user: u64, device: u16, generation: u32) -> Identity {
        Identity {
            user: UserId(user),
            device: DeviceId(device),
            generation,
        }
    }

    fn open(store: &memory::Store, now: u64) -> Revocations {
        Revocations::open(store.records(Limits::default()), 1_000, now).unwrap()
    }

    #[test]
    fn what_was_issued_before_is_refused_and_what_came_after_must_be_of_the_new_generation() {
        let store = memory::Store::new();
        let revocations = open(&store, 100);
        assert_eq!(revocations.judge(who(7, 3, 0), Some(50)), Some(0));
        let device = Some(DeviceId(3));
        let (generation, revocation) = revocations.revoke(UserId(7), device, 100).unwrap();
        assert_eq!(generation, 1);
        assert_eq!((revocation.user, revocation.device), (UserId(7), device));
        let epoch = Some(revocation.epoch);
        for (identity, issued, expected) in [
            (who(7, 3, 0), None, None),
            (who(7, 3, 0), Some(99), None),
            (who(7, 3, 0), Some(200), None),
            (who(7, 3, 1), Some(100), epoch),
            (who(7, 3, 1), None, epoch),
            // An issuer that counts on its own is ahead of us: the time decides.
            (who(7, 3, 9), Some(99), None),
            (who(7, 4, 0), Some(99), epoch),
            (who(8, 3, 0), Some(99), epoch),
        ] {
            let found = revocations.judge(identity, issued);
            assert_eq!(found, expected, "{identity:?} {issued:?}");
        }
    }

    #[test]
    fn all_devices_of_a_user_begin_above_each_of_them() {
        let store = memory::Store::new();
        let revocations = open(&store, 100);
        for expected in 1..=3 {
            let done = revocations.revoke(UserId(7), Some(DeviceId(3)), 100);
            assert_eq!(done.unwrap().0, expected);
        }
        assert_eq!(revocations.revoke(UserId(7), None, 100).unwrap().0, 4);
        assert_eq!(revocations.judge(who(7, 9, 3), Some(100)), None);
        assert!(revocations.judge(who(7, 9, 4), Some(100)).is_some());
        let next = revocations.revoke(UserId(7), Some(DeviceId(9)), 100);
        assert_eq!(next.unwrap().0, 5);
    }

    #[test]
    fn a_restart_forgets_nothing_that_a_token_can_meet() {
        let store = memory::Store::new();
        let first = open(&store, 100);
        first.revoke(UserId(7), Some(DeviceId(3)), 100).unwrap();
        let again = open(&store, 1_100);
        assert_eq!(again.judge(who(7, 3, 0), Some(99)), None);
        // No token lives so long. The number is still counted on from.
        let later = open(&store, 1_101);
        assert_eq!(later.judge(who(7, 3, 0), Some(99)), Some(0));
        let next = later.revoke(UserId(7), Some(DeviceId(3)), 1_101);
        assert_eq!(next.unwrap().0, 2);
    }

    #[test]
    fn who_cannot_exist_cannot_be_revoked() {
        let revocations = open(&memory::Store::new(), 0);
        for user in [0, u64::MAX] {
            let done = revocations.revoke(UserId(user), None, 1);
            assert!(matches!(done, Err(RevokeError::NoSuchUser(_))));
        }
        let done = revocations.revoke(UserId(1), Some(DeviceId(0)), 1);
        assert!(matches!(done, Err(RevokeError::NoSuchDevice)));
        // Without a store nothing is promised.
        let done = Revocations::default().revoke(UserId(1), None, 1);
        assert!(matches!(done, Err(RevokeError::Store(_))));
    }
}
