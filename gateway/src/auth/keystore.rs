//! The keys that tokens are checked with now, and where they come from: the node's own, files, and
//! one address that is asked again and again.
//!
//! Shards take the present set with each token; a thread of its own replaces it. What cannot be read
//! changes nothing: the last good set stays, and a line in the log and a counter say so.
//!
//! # Invariants
//! - A shard never waits for a file or an address.
//! - However many tokens name a key that is not here, the address is asked for it at most once in
//!   the time that is set.

use super::{
    JwtOptions, KeyError, VerifyingKey,
    fetch::{self, Url},
    jwk,
    jwt::Keyring,
    keys,
};
use portico_core::AuthError;
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How often files and flags are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a start waits for the first answer of the address.
const FIRST_PATIENCE: Duration = Duration::from_secs(3);

/// Where keys come from.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    /// The node's own key.
    own: Option<PathBuf>,
    files: Vec<PathBuf>,
    url: Option<Url>,
    /// The authorities trusted for it; `None`: those of the system.
    roots: Option<PathBuf>,
    refresh: Duration,
    cooldown: Duration,
}

impl Sources {
    pub(super) fn new(own: Option<PathBuf>, options: &JwtOptions) -> Result<Self, KeyError> {
        let url = match options.jwks_url.as_str() {
            "" => None,
            text => Some(Url::parse(text).ok_or_else(|| KeyError::BadUrl(text.to_owned()))?),
        };
        Ok(Self {
            own,
            files: options.keys.clone(),
            url,
            roots: options.jwks_ca.clone(),
            refresh: Duration::from_secs(options.jwks_refresh_s.into()),
            cooldown: Duration::from_secs(options.jwks_cooldown_s.into()),
        })
    }

    fn read_files(&self) -> Result<Vec<VerifyingKey>, KeyError> {
        let mut keys = Vec::new();
        if let Some(own) = &self.own {
            keys.push(keys::read_signing_key(own)?);
        }
        for path in &self.files {
            keys.extend(VerifyingKey::read(path)?);
        }
        Ok(keys)
    }

    /// What would differ if a file were another.
    fn fingerprint(&self) -> Vec<Option<(u64, u64, i64, i64)>> {
        let paths = self.own.iter().chain(&self.files);
        paths
            .map(|path| {
                let it = fs::metadata(path).ok()?;
                Some((it.ino(), it.size(), it.mtime(), it.mtime_nsec()))
            })
            .collect()
    }
}

/// What became of the keys, for the operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyStats {
    /// Keys that tokens are checked with.
    pub keys: u64,
    /// Times the files were read anew.
    pub reloads: u64,
    pub reloads_failed: u64,
    /// Times the address was asked.
    pub fetches: u64,
    pub fetches_failed: u64,
    /// Seconds since its last good answer; `None`: there is no address, or it never gave one.
    pub age_s: Option<u64>,
}

#[derive(Debug, Default)]
struct Tally {
    reloads: AtomicU64,
    reloads_failed: AtomicU64,
    fetches: AtomicU64,
    fetches_failed: AtomicU64,
    /// Milliseconds from the start to the last good answer, and one; 0: none.
    fetched_ms: AtomicU64,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct KeyStore {
    ring: RwLock<Arc<Keyring>>,
    sources: Sources,
    /// A token named a key that is not here.
    wanted: AtomicBool,
    tally: Tally,
    started: Instant,
}

impl KeyStore {
    /// With the keys that are there at start: a fault in them is for whoever starts the gateway.
    pub(super) fn new(keys: Vec<VerifyingKey>, sources: Sources) -> Result<Self, KeyError> {
        let ring = Keyring::new(keys, stranger(&sources, false))?;
        Ok(Self {
            ring: RwLock::new(Arc::new(ring)),
            sources,
            wanted: AtomicBool::new(false),
            tally: Tally::default(),
            started: Instant::now(),
        })
    }

    /// With what the files hold.
    pub(super) fn open(sources: Sources) -> Result<Self, KeyError> {
        Self::new(sources.read_files()?, sources)
    }

    pub(super) fn ring(&self) -> Arc<Keyring> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&ring)
    }

    /// A token named a key that is not here: the address may have it by now.
    pub(super) fn want(&self) {
        self.wanted.store(true, Relaxed);
    }

    pub(super) fn stats(&self) -> KeyStats {
        let at_ms = self.tally.fetched_ms.load(Relaxed);
        let age = || {
            self.started
                .elapsed()
                .saturating_sub(Duration::from_millis(at_ms))
        };
        KeyStats {
            keys: self.ring().keys().count() as u64,
            reloads: self.tally.reloads.load(Relaxed),
            reloads_failed: self.tally.reloads_failed.load(Relaxed),
            fetches: self.tally.fetches.load(Relaxed),
            fetches_failed: self.tally.fetches_failed.load(Relaxed),
            age_s: (at_ms != 0).then(|| age().as_secs()),
        }
    }

    fn put(&self, keys: Vec<VerifyingKey>, answered: bool) -> Result<(), KeyError> {
        let ring = Arc::new(Keyring::new(keys, stranger(&self.sources, answered))?);
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = ring;
        Ok(())
    }
}

/// What a token is told whose key is not here. With an address it may be a new one: a fresh token
/// then finds it; and before the first answer nobody can say.
const fn stranger(sources: &Sources, answered: bool) -> AuthError {
    match (&sources.url, answered) {
        (None, _) => AuthError::Invalid,
        (Some(_), false) => AuthError::Unavailable,
        (Some(_), true) => AuthError::UnknownKey,
    }
}

/// Keeps the keys fresh, on a thread of its own. Ends when dropped.
#[derive(Debug)]
pub struct KeyKeeper {
    reload: Arc<AtomicBool>,
    end: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl KeyKeeper {
    /// Returns when the address has been asked once, or takes its time.
    pub(super) fn start(store: Arc<KeyStore>) -> io::Result<Self> {
        let reload = Arc::new(AtomicBool::new(false));
        let (end, ended) = mpsc::channel();
        let (first, asked) = mpsc::channel();
        let mut keeper = Work::new(store, reload.clone());
        let thread = thread::Builder::new()
            .name("portico-keys".to_owned())
            .spawn(move || {
                keeper.look(Instant::now());
                // Nobody waits any more, or never did.
                let _ = first.send(());
                while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(LOOK_EVERY) {
                    keeper.look(Instant::now());
                }
            })?;
        let _ = asked.recv_timeout(FIRST_PATIENCE);
        Ok(Self {
            reload,
            end: Some(end),
            thread: Some(thread),
        })
    }

    /// Set to true, it has everything read anew within a second: for a signal handler.
    #[must_use]
    pub fn reload_flag(&self) -> Arc<AtomicBool> {
        self.reload.clone()
    }
}

impl Drop for KeyKeeper {
    fn drop(&mut self) {
        drop(self.end.take());
        // It may be in the middle of a fetch, which ends by itself: nothing waits for that.
        if let Some(thread) = self.thread.take()
            && thread.is_finished()
        {
            let _ = thread.join();
        }
    }
}

/// What the thread knows.
struct Work {
    store: Arc<KeyStore>,
    reload: Arc<AtomicBool>,
    seen: Vec<Option<(u64, u64, i64, i64)>>,
    from_files: Vec<VerifyingKey>,
    from_url: Vec<VerifyingKey>,
    answered: bool,
    asked_at: Option<Instant>,
    ask_at: Option<Instant>,
    /// The last attempt failed: the next failure is no news.
    files_bad: bool,
    url_bad: bool,
}

impl Work {
    fn new(store: Arc<KeyStore>, reload: Arc<AtomicBool>) -> Self {
        let from_files = store.ring().keys().cloned().collect();
        let ask_at = store.sources.url.is_some().then(Instant::now);
        Self {
            seen: store.sources.fingerprint(),
            store,
            reload,
            from_files,
            from_url: Vec::new(),
            answered: false,
            asked_at: None,
            ask_at,
            files_bad: false,
            url_bad: false,
        }
    }

    fn look(&mut self, now: Instant) {
        let told = self.reload.swap(false, Relaxed);
        let present = self.store.sources.fingerprint();
        if told || present != self.seen {
            self.seen = present;
            self.read_files();
        }
        if self.store.sources.url.is_none() {
            return;
        }
        let rested = self
            .asked_at
            .is_none_or(|at| now.saturating_duration_since(at) >= self.store.sources.cooldown);
        // Taken only when it is heeded, so that it is not forgotten meanwhile.
        let wanted = rested && self.store.wanted.swap(false, Relaxed);
        if told || wanted || self.ask_at.is_some_and(|at| at <= now) {
            self.ask(now);
        }
    }

    fn read_files(&mut self) {
        self.store.tally.reloads.fetch_add(1, Relaxed);
        let read = self.store.sources.read_files().and_then(|keys| {
            let all = keys.iter().chain(&self.from_url).cloned().collect();
            self.store.put(all, self.answered)?;
            Ok(keys)
        });
        match read {
            Ok(keys) => {
                tracing::info!(keys = keys.len(), "key files were read anew");
                self.from_files = keys;
                self.files_bad = false;
            }
            Err(error) => {
                self.store.tally.reloads_failed.fetch_add(1, Relaxed);
                if !self.files_bad {
                    tracing::warn!(%error, "key files cannot be used; the keys before stay");
                }
                self.files_bad = true;
            }
        }
    }

    fn ask(&mut self, now: Instant) {
        let sources = &self.store.sources;
        let Some(url) = &sources.url else {
            return;
        };
        self.asked_at = Some(now);
        self.store.tally.fetches.fetch_add(1, Relaxed);
        let fetched = fetch::fetch(url, sources.roots.as_deref(), jwk::SET_BYTES_MAX)
            .map_err(|error| error.to_string())
            .and_then(|bytes| jwk::read(&bytes).map_err(|error| error.to_string()))
            .and_then(|keys| {
                let all = self.from_files.iter().chain(&keys).cloned().collect();
                self.store
                    .put(all, true)
                    .map_err(|error| error.to_string())?;
                Ok(keys)
            });
        let again = match fetched {
            Ok(keys) => {
                let at_ms = self.store.started.elapsed().as_millis();
                let at_ms = u64::try_from(at_ms).unwrap_or(u64::MAX).max(1);
                self.store.tally.fetched_ms.store(at_ms, Relaxed);
                if self.url_bad || keys != self.from_url {
                    tracing::info!(%url, keys = keys.len(), "the issuer's keys were fetched");
                }
                self.from_url = keys;
                self.answered = true;
                self.url_bad = false;
                sources.refresh
            }
            Err(error) => {
                self.store.tally.fetches_failed.fetch_add(1, Relaxed);
                if !self.url_bad {
                    tracing::warn!(%url, %error, "the issuer's keys cannot be used; those before stay");
                }
                self.url_bad = true;
                sources.cooldown.min(sources.refresh)
            }
        };
        self.ask_at = Some(now + again);
    }
}
