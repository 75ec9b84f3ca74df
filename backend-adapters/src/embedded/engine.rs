//! The database: its keyspaces, its months, and how it is opened.
//!
//! # Invariants
//! * Only the commit thread of the messages creates and drops months. Readers work on a snapshot
//!   of the list; a month dropped meanwhile stays readable until they let go of it.
//! * `meta` is complete before any other keyspace exists, so a store whose creation was cut short
//!   is recognised.

use super::Options;
use super::failure::OpenError;
use super::layout::{self, ConvHash};
use super::month::Month;
use super::revive::{Alarm, Trouble};
use super::survey::{self, COMPLETE_MARK, LOCK_FILE, Prepared};
use super::tables::KEYSPACES_DIR;
use fjall::compaction::Leveled;
use fjall::config::{FilterPolicy, FilterPolicyEntry};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use portico_wire::ids::Seq;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

const ENTRY_MEMTABLE_BYTES: u64 = 16 << 20;
const OTHER_MEMTABLE_BYTES: u64 = 8 << 20;
const TABLE_BYTES: u64 = 16 << 20;
const LEVEL_0_TABLES: u8 = 8;
/// Of the journal, which is read again at each start: 512 MiB, the engine's own bound, took six seconds.
/// Several times what the busiest memtables hold before they are written.
const JOURNAL_BYTES: u64 = 96 << 20;
/// Months that a store may hold. Each costs memory and open files; a broken clock costs no more.
pub(super) const MONTHS_MAX: usize = 120;

/// Partitions by month.
#[derive(Clone, Default)]
pub(super) struct Months {
    pub(super) entries: BTreeMap<Month, Keyspace>,
    pub(super) inboxes: BTreeMap<Month, Keyspace>,
}

pub(super) struct Engine {
    pub(super) dir: PathBuf,
    pub(super) db: Database,
    pub(super) hash: ConvHash,
    pub(super) store_id: u128,
    pub(super) value_bytes_max: usize,
    pub(super) cursor: Keyspace,
    pub(super) mark: Keyspace,
    pub(super) fan_out: Keyspace,
    pub(super) record: Keyspace,
    pub(super) taken: Keyspace,
    pub(super) meta: Keyspace,
    months: RwLock<Arc<Months>>,
    /// A copy of `meta/clock` as it is on the disk.
    ceiling: AtomicU64,
    damage: Arc<AtomicU64>,
    /// A write has failed: nobody knows what the disk holds.
    failed: AtomicBool,
    alarm: Alarm,
    /// How the store was found; `None` if it was made.
    prepared: Option<Prepared>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.failed.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = survey::note_end(&self.dir, self.prepared) {
            tracing::debug!(%error, "the end of the store could not be noted");
        }
    }
}

impl Engine {
    pub(super) fn open(
        options: &Options,
        damage: Arc<AtomicU64>,
        alarm: Alarm,
    ) -> Result<Self, OpenError> {
        let dir = options.dir.as_path();
        prepare_dir(dir).map_err(|error| OpenError::io(dir, error))?;
        let prepared = if is_begun(dir) {
            Some(survey::prepare(dir)?)
        } else {
            refuse_foreign(dir)?;
            None
        };
        let db = Database::builder(dir)
            .cache_size(options.cache_bytes)
            .worker_threads(options.workers.max(2))
            .max_cached_files(Some(options.open_files_max.max(10)))
            .manual_journal_persist(true)
            .max_journaling_size(JOURNAL_BYTES)
            .open()
            .map_err(|error| OpenError::engine(dir, error))?;
        if let Some(prepared) = &prepared {
            verify_replay(dir, prepared)?;
            // Rows of a month that was dropped are not replayed, and their numbers would be given
            // out again: numbers rise, so that a changed one shows.
            db.supervisor.seqno.fetch_max(prepared.last + 1);
        }
        Self::over(db, options, damage, alarm, prepared)
    }

    /// A database that is open already. Missing keyspaces are created.
    pub(super) fn over(
        db: Database,
        options: &Options,
        damage: Arc<AtomicU64>,
        alarm: Alarm,
        prepared: Option<Prepared>,
    ) -> Result<Self, OpenError> {
        let dir = options.dir.as_path();
        let engine = |error| OpenError::engine(dir, error);
        let fresh = db.keyspace_count() == 0
            || (db.keyspace_count() == 1 && db.keyspace_exists(layout::META));
        if !fresh && !db.keyspace_exists(layout::META) {
            return Err(OpenError::Foreign { dir: dir.into() });
        }
        let open = |name: &str| db.keyspace(name, other_options).map_err(engine);
        let meta = open(layout::META)?;
        if fresh && meta.get(layout::META_FORMAT).map_err(engine)?.is_none() {
            init_meta(&db, &meta, dir)?;
        }
        let format = u32::from_be_bytes(meta_row(&meta, layout::META_FORMAT, dir)?);
        if format > layout::FORMAT {
            return Err(OpenError::Newer {
                dir: dir.into(),
                found: format,
                known: layout::FORMAT,
            });
        }
        let hash_key = meta_row::<16>(&meta, layout::META_HASH_KEY, dir)?;
        let store_id = meta_row::<16>(&meta, layout::META_STORE_ID, dir)?;
        // A damaged ceiling is no ceiling of 0: that would break its promise in silence.
        let ceiling = u64::from_be_bytes(meta_row(&meta, layout::META_CLOCK, dir)?);
        Ok(Self {
            dir: dir.to_owned(),
            hash: ConvHash::new(&hash_key),
            store_id: u128::from_be_bytes(store_id),
            value_bytes_max: options.value_bytes_max,
            cursor: open(layout::CURSOR)?,
            mark: open(layout::MARK)?,
            fan_out: open(layout::FAN_OUT)?,
            record: open(layout::RECORD)?,
            taken: open(layout::TAKEN)?,
            meta,
            months: RwLock::new(Arc::new(find_months(&db).map_err(engine)?)),
            ceiling: AtomicU64::new(ceiling),
            db,
            damage,
            failed: AtomicBool::new(false),
            alarm,
            prepared,
        })
    }

    /// After a commit that failed.
    pub(super) fn note_failure(&self, error: &fjall::Error) {
        self.failed.store(true, Ordering::Release);
        self.alarm.raise(Trouble::of(error, &self.dir));
    }

    /// The durable ceiling.
    pub(super) fn ceiling(&self) -> Seq {
        Seq(self.ceiling.load(Ordering::Acquire))
    }

    /// After a commit that carried a new ceiling.
    pub(super) fn note_ceiling(&self, ceiling: Seq) {
        self.ceiling.store(ceiling.0, Ordering::Release);
    }

    pub(super) fn months(&self) -> Arc<Months> {
        let months = self.months.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&months)
    }

    /// The partitions of a month, created if need be. `None` if the store holds too many.
    pub(super) fn create_month(
        &self,
        months: &mut Arc<Months>,
        month: Month,
    ) -> Result<bool, fjall::Error> {
        let known = months.entries.len().max(months.inboxes.len());
        if known >= MONTHS_MAX {
            return Ok(false);
        }
        let entries = format!("{}{month}", layout::ENTRY_PREFIX);
        let inbox = format!("{}{month}", layout::INBOX_PREFIX);
        let entries = self.db.keyspace(&entries, entry_options)?;
        let inbox = self.db.keyspace(&inbox, inbox_options)?;
        let list = Arc::make_mut(months);
        list.entries.insert(month, entries);
        list.inboxes.insert(month, inbox);
        self.publish(months);
        tracing::info!(%month, "the store begins a month");
        Ok(true)
    }

    /// Drops the partitions of every month that ends at or before `before`. Inboxes go first: a
    /// reference without an entry is passed over, an entry without a reference is history.
    pub(super) fn drop_months(
        &self,
        months: &mut Arc<Months>,
        before: Seq,
    ) -> Result<(), fjall::Error> {
        let ended = |month: &Month| month.next().start() <= before.0;
        let list = Arc::make_mut(months);
        let inboxes: Vec<_> = list.inboxes.extract_if(.., |m, _| ended(m)).collect();
        let entries: Vec<_> = list.entries.extract_if(.., |m, _| ended(m)).collect();
        if inboxes.is_empty() && entries.is_empty() {
            return Ok(());
        }
        self.publish(months);
        for (month, keyspace) in inboxes.into_iter().chain(entries) {
            tracing::info!(%month, partition = &**keyspace.name(), "the store drops a partition");
            self.db.delete_keyspace(keyspace)?;
        }
        Ok(())
    }

    fn publish(&self, months: &Arc<Months>) {
        let mut shared = self.months.write().unwrap_or_else(PoisonError::into_inner);
        *shared = Arc::clone(months);
    }

    /// A row that cannot be decoded. It is passed over where rows come in numbers, because one
    /// bad row must not lock an inbox; the count is for the operator.
    pub(super) fn count_damage(&self, kind: &'static str) {
        if self.damage.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::error!(kind, dir = %self.dir.display(), "the store holds a damaged row");
        }
    }
}

/// Partitions are named by their month; other names are not ours to judge.
fn find_months(db: &Database) -> Result<Months, fjall::Error> {
    let mut months = Months::default();
    for name in db.list_keyspace_names() {
        let month = |prefix| name.strip_prefix(prefix).and_then(Month::parse);
        if let Some(month) = month(layout::ENTRY_PREFIX) {
            let keyspace = db.keyspace(&name, entry_options)?;
            months.entries.insert(month, keyspace);
        } else if let Some(month) = month(layout::INBOX_PREFIX) {
            let keyspace = db.keyspace(&name, inbox_options)?;
            months.inboxes.insert(month, keyspace);
        }
    }
    Ok(months)
}

// Options are stored when a keyspace is created: a change takes effect with the next month.

fn base_options() -> KeyspaceCreateOptions {
    let levels = Leveled::default()
        .with_table_target_size(TABLE_BYTES)
        .with_l0_threshold(LEVEL_0_TABLES);
    KeyspaceCreateOptions::default().compaction_strategy(Arc::new(levels))
}

fn other_options() -> KeyspaceCreateOptions {
    base_options().max_memtable_size(OTHER_MEMTABLE_BYTES)
}

/// Entries are looked up by keys that exist, so the last level needs no filter.
fn entry_options() -> KeyspaceCreateOptions {
    base_options()
        .max_memtable_size(ENTRY_MEMTABLE_BYTES)
        .expect_point_read_hits(true)
}

/// Inboxes are only scanned: a filter would never be asked.
fn inbox_options() -> KeyspaceCreateOptions {
    base_options()
        .max_memtable_size(OTHER_MEMTABLE_BYTES)
        .filter_policy(FilterPolicy::all(FilterPolicyEntry::None))
}

/// Creates the directory for the eyes of the owner only, and makes sure that it outlives a power
/// cut: a new name is on the disk only when the directory above it is.
fn prepare_dir(dir: &Path) -> io::Result<()> {
    let dir = std::path::absolute(dir)?;
    let missing: Vec<&Path> = dir.ancestors().take_while(|a| !a.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    for parent in missing.iter().filter_map(|created| created.parent()) {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Whether a database was made here once. The mark comes before the first keyspace, so keyspaces
/// without it mean that the mark is lost.
fn is_begun(dir: &Path) -> bool {
    dir.join(COMPLETE_MARK).exists() || dir.join(KEYSPACES_DIR).join("0").exists()
}

/// The engine has cut nothing off that was found whole.
fn verify_replay(dir: &Path, prepared: &Prepared) -> Result<(), OpenError> {
    let path = dir.join(format!("{}.jnl", prepared.journal));
    match fs::metadata(&path) {
        Ok(about) if about.len() < prepared.whole_bytes => Err(OpenError::damaged(
            dir,
            format!(
                "{} was cut by the engine from {} to {} bytes",
                path.display(),
                prepared.whole_bytes,
                about.len()
            ),
        )),
        // Already replaced by a later one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        about => about.map(drop).map_err(|error| OpenError::io(dir, error)),
    }
}

/// Without the mark of a complete database the directory must be empty, or another process is
/// creating a store there at this moment.
fn refuse_foreign(dir: &Path) -> Result<(), OpenError> {
    let io = |error| OpenError::io(dir, error);
    if let Ok(lock) = File::open(dir.join(LOCK_FILE))
        && matches!(lock.try_lock(), Err(TryLockError::WouldBlock))
    {
        return Err(OpenError::InUse { dir: dir.into() });
    }
    for file in fs::read_dir(dir).map_err(io)? {
        let name = file.map_err(io)?.file_name();
        if name != LOCK_FILE && name != "lost+found" {
            return Err(OpenError::Foreign { dir: dir.into() });
        }
    }
    Ok(())
}

fn init_meta(db: &Database, meta: &Keyspace, dir: &Path) -> Result<(), OpenError> {
    let random = || -> io::Result<[u8; 16]> {
        let mut bytes = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(bytes)
    };
    let random = || random().map_err(|error| OpenError::io(dir, error));
    let mut batch = db.batch().durability(Some(PersistMode::SyncAll));
    batch.insert(meta, layout::META_STORE_ID, random()?);
    batch.insert(meta, layout::META_HASH_KEY, random()?);
    batch.insert(meta, layout::META_CLOCK, 0_u64.to_be_bytes());
    batch.insert(meta, layout::META_FORMAT, layout::FORMAT.to_be_bytes());
    batch
        .commit()
        .map_err(|error| OpenError::engine(dir, error))
}

fn meta_row<const N: usize>(meta: &Keyspace, name: &str, dir: &Path) -> Result<[u8; N], OpenError> {
    let row = meta
        .get(name)
        .map_err(|error| OpenError::engine(dir, error))?;
    let row = row.ok_or_else(|| OpenError::damaged(dir, format!("meta/{name} is missing")))?;
    let row = row.as_ref().try_into();
    row.map_err(|_| OpenError::damaged(dir, format!("meta/{name} has a wrong length")))
}

/// Seconds since 1970; for the memory of `TakeOne` only.
pub(super) fn unix_s() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
    })
}
