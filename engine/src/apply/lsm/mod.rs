//! The table on disk: a log-structured merge tree without a log of its own.
//!
//! The crate `lsm-tree` gives the sorted files, their manifest, the merge and the compaction
//! strategy. Three things around it are ours, each for a reason found in its source (3.1.10):
//!
//! - **Memtables** (`layers`, `memtable`). The crate holds its version lock through the fsyncs of
//!   every new manifest, and its inserts and reads take that lock. Lanes and the ring thread must
//!   not wait for a disk, so memtables and the list of files live behind a lock of ours that is
//!   held for microseconds. Keys begin with a hash, which a skip list makes no use of: the
//!   memtables are ours as well, and the crate's own stays empty.
//! - **Collection of old versions** (`versions`). The crate drops a version as soon as it lies
//!   below its threshold and has any newer one, also when that newer one lies above the threshold:
//!   a reader *at* the threshold loses the row. We give it a threshold of 1 (drops nothing) and
//!   decide in our own flush stream and in a compaction filter. The filter is shown neither
//!   sequence numbers nor tombstones, therefore both are in the value: eight bytes in front.
//! - **Sequence numbers of file sets**. A reader picks the newest set whose number is below its
//!   own position. Ours come from a counter that is set to 0 before each change: so every reader
//!   gets the newest set, and older ones are freed at once.
//!
//! What the crate does about power loss, checked in its source, and at any request of flushes and
//! compactions by the test `power_loss`: a new file is written, synced and its directory synced;
//! then the manifest `v<n>` likewise; then `current` is replaced by rename, and synced with its
//! directory. Files that no manifest names are removed at open. So the tree opens at its last
//! installed set after a crash at any point. Its own directory's entry is synced by us.

mod files;
mod layers;
mod memtable;
mod scan;
mod versions;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use lsm_tree::config::PinningPolicy;
use lsm_tree::{AbstractTree, AnyTree, Cache, Config, SequenceNumberCounter, compaction::Leveled};
use rowship_proto::Lsn;
use rowship_proto::row::Row;

use super::publish::Mark;
use super::snapshots::{Pin, Snapshots};
use super::table::{Resident, RowId, ScanLimits, ScanPage, Table, TableError, TableStatus};
use files::{Files, Place};
use layers::{Layered, Layers};

pub use files::Rebuilt;

/// Sizes of the table on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LsmSettings {
    /// Bytes of rows and overhead at which a memtable is sealed.
    pub memtable_bytes: u64,
    /// Bytes of log after which a memtable is sealed although it is not full: rows that are written
    /// over and over fill none, and a restart replays what is not on disk.
    pub replay_bytes: u64,
    /// Sealed memtables that may wait for their flush. Memory is bounded by one more than this,
    /// times `memtable_bytes`, plus the windows in flight. Beyond it the feeder waits.
    pub sealed_memtables_max: usize,
    /// Blocks of files kept in memory, in bytes.
    pub cache_bytes: u64,
    /// Bytes at which compaction begins a new file. It also sets the size of the levels.
    pub table_bytes: u64,
    /// Files in the first level that start a compaction.
    pub first_level_tables: u8,
}

impl Default for LsmSettings {
    fn default() -> LsmSettings {
        LsmSettings {
            memtable_bytes: 64 << 20,
            replay_bytes: REPLAY_PART * (64 << 20),
            sealed_memtables_max: 4,
            cache_bytes: 64 << 20,
            table_bytes: 64 << 20,
            first_level_tables: 4,
        }
    }
}

impl LsmSettings {
    /// So small that seals, flushes and compactions happen all the time: for tests.
    #[must_use]
    pub fn tiny() -> LsmSettings {
        LsmSettings {
            memtable_bytes: 4 << 10,
            replay_bytes: REPLAY_PART * (4 << 10),
            sealed_memtables_max: 2,
            cache_bytes: 64 << 10,
            table_bytes: 4 << 10,
            first_level_tables: 2,
        }
    }
}

/// Bytes of log per byte of a memtable: see [`LsmSettings::replay_bytes`].
pub const REPLAY_PART: u64 = 8;

/// Runs in the first level beyond which flushes wait for compaction. The crate's manifest counts
/// them in eight bits, unchecked, and every run is one more place to look for a row.
const FIRST_LEVEL_RUNS_MAX: usize = 64;

/// What the crate is told instead of a position below which to drop versions: nothing is below 1,
/// and 0 would also keep it from freeing old sets of files.
const DROP_NOTHING: u64 = 1;

/// The table on disk.
pub struct LsmTable {
    tree: AnyTree,
    layers: Layered,
    snapshots: Arc<Snapshots>,
    files: Files,
    settings: LsmSettings,
    set_numbers: SequenceNumberCounter,
    /// Where the active memtable began.
    sealed_at: AtomicU64,
    /// Highest durable position returned so far.
    durable: AtomicU64,
    /// One flush and one compaction at a time; the two may overlap.
    flushing: Mutex<()>,
    compacting: Mutex<()>,
    /// From reading the tree's set of files to having it in the layers.
    installing: Mutex<()>,
    paused: Mutex<Option<String>>,
    rebuilding: AtomicBool,
}

/// An opened table.
pub struct Opened {
    /// The table.
    pub table: LsmTable,
    /// Where the log must be replayed from: the given position, or the very start when the table
    /// was lost. It must be stored in `node.state`, and reported to [`Table::recorded`], before
    /// anything else is.
    pub durable: Mark,
    /// Why the table is (still) being rebuilt, for the log and the operator.
    pub rebuilt: Option<Rebuilt>,
}

impl LsmTable {
    /// Opens or creates the table in the directory `path`, whose parent must exist. `durable` is
    /// the position in `node.state`.
    ///
    /// A table that does not open, that was found damaged while it ran, or that is not there
    /// although `durable` says that it was, is replaced by an empty one; its files are kept as
    /// `<path>.broken-<n>`. That is remembered in `<path>.rebuild` until a new position has been
    /// recorded, so that a crash in between does not pass the empty table off as the old one.
    ///
    /// All that only where the log is `rebuildable`, which is to say that nothing of it has been
    /// retired. Elsewhere nothing is changed.
    ///
    /// # Errors
    /// [`TableError`] for what a restart may cure (no space, no permission), and when too many
    /// broken tables lie around. [`TableError::Damaged`] when there is no log to rebuild it from.
    pub fn open(
        path: &Path,
        settings: LsmSettings,
        durable: Mark,
        rebuildable: bool,
    ) -> Result<Opened, TableError> {
        let mut place = Place::new(path, rebuildable);
        place.prepare(durable)?;
        let set_numbers = SequenceNumberCounter::default();
        // What the crate does with the durable position is nothing, but its filter needs one.
        let open = |durable: Mark| {
            let snapshots = Snapshots::new(durable);
            let config = config(path, &settings, &set_numbers, &snapshots);
            files::open_tree(path, config).map(|tree| (tree, snapshots))
        };
        let from = place.durable(durable);
        let (tree, snapshots) = match open(from) {
            Err(TableError::Damaged { reason, .. }) => {
                place.set_aside(reason)?;
                open(Mark::ZERO)?
            }
            other => other?,
        };
        let durable = place.durable(durable);
        let layers = Layered::new(Layers::new(layers::runs_of(&tree), settings.memtable_bytes));
        let (files, rebuilt) = place.finish()?;
        let table = LsmTable {
            tree,
            layers,
            snapshots,
            files,
            settings,
            set_numbers,
            sealed_at: AtomicU64::new(durable.lsn.0),
            durable: AtomicU64::new(durable.lsn.0),
            flushing: Mutex::default(),
            compacting: Mutex::default(),
            installing: Mutex::default(),
            paused: Mutex::default(),
            rebuilding: AtomicBool::new(rebuilt.is_some()),
        };
        Ok(Opened { table, durable, rebuilt })
    }

    /// Runs work that writes files, and cleans up behind it when it fails: a retry needs the space.
    fn write_files<R>(&self, work: impl FnOnce() -> lsm_tree::Result<R>) -> Result<R, TableError> {
        // Before every change of the set of files: see the head of this file.
        self.set_numbers.set(0);
        let result = self.files.writing(&self.tree, work);
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        *paused = result.as_ref().err().map(ToString::to_string);
        result
    }

    /// Brings the tree's present set of files into the layers, and drops the oldest sealed
    /// memtable when `flushed`.
    fn install(&self, flushed: bool) {
        // The tree's lock may be held through an fsync: so it is asked before the layers' lock is
        // taken, and this mutex keeps an older set from replacing a newer one.
        let _installing = self.installing.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = layers::runs_of(&self.tree);
        self.layers.install(runs, flushed);
    }

    /// Seals the active memtable when it holds at least `bytes_min`.
    fn rotate(&self, bytes_min: u64) -> bool {
        let max = self.settings.sealed_memtables_max;
        self.layers.rotate(bytes_min, max, || {
            let mark = self.snapshots.promise();
            self.sealed_at.fetch_max(mark.lsn.0, Ordering::Relaxed);
            mark
        })
    }

    /// With nothing in memory, all that is published is on disk.
    fn durable_when_idle(&self) -> Option<Mark> {
        let newer = |mark: Mark| mark.lsn.0 > self.durable.load(Ordering::Relaxed);
        if !newer(self.snapshots.published()) {
            return None;
        }
        let mark = self.layers.when_memtables_are_empty(|| self.snapshots.promise())?;
        self.durable.store(mark.lsn.0, Ordering::Relaxed);
        Some(mark)
    }

    fn find(&self, row: RowId<'_>, at: Lsn) -> lsm_tree::Result<Option<Bytes>> {
        let key = row.storage_key();
        let candidates = match self.layers.look(&key, at) {
            layers::Look::Version(value) => return versions::image(&value),
            layers::Look::Candidates(tables) => tables,
        };
        let filter_hash = layers::filter_hash(&key);
        for table in candidates {
            if let Some(entry) = table.get(&key, at.0, filter_hash)? {
                return versions::image(&entry.value);
            }
        }
        Ok(None)
    }
}

impl Table for LsmTable {
    fn apply(&self, rows: &[Row<'_>]) -> Result<(), TableError> {
        // Under the lock only a few rows are inserted at a time: whoever swaps layers waits for
        // them, and whoever comes after waits for the swap.
        const ROWS_UNDER_LOCK: usize = 16;
        // Versions that nobody can need any more are replaced where they lie.
        let keep = self.snapshots.keep();
        rows.chunks(ROWS_UNDER_LOCK).for_each(|some| self.layers.insert(some, &keep));
        Ok(())
    }

    fn published(&self, mark: Mark) {
        self.snapshots.publish(mark);
        if self.layers.active_bytes() >= self.settings.memtable_bytes {
            self.rotate(self.settings.memtable_bytes);
        } else if mark.lsn.since(Lsn(self.sealed_at.load(Ordering::Relaxed)))
            >= self.settings.replay_bytes
        {
            self.rotate(1);
        }
    }

    fn ready(&self) -> bool {
        self.layers.sealed() < self.settings.sealed_memtables_max
            || self.layers.active_bytes() < self.settings.memtable_bytes
    }

    fn get(&self, row: RowId<'_>, at: Lsn) -> Result<Option<Bytes>, TableError> {
        let found = self.find(row, at).map_err(|error| self.files.fault(error));
        // A read that found files or versions gone is the caller's fault, not the disk's.
        self.snapshots.check(at)?;
        found
    }

    fn get_resident(&self, row: RowId<'_>, at: Lsn) -> Resident {
        let image = |value: &[u8]| versions::image(value).ok();
        let found = row.with_storage_key(|key| self.layers.look_resident(key, at, image));
        match (found, self.snapshots.check(at)) {
            (Some(image), Ok(())) => Resident::Found(image.flatten()),
            _ => Resident::Cold,
        }
    }

    fn exists_resident(&self, row: RowId<'_>, at: Lsn) -> Option<bool> {
        let exists = |value: &[u8]| versions::parse(value).ok().map(|(_, image)| image.is_some());
        let found = row.with_storage_key(|key| self.layers.look_resident(key, at, exists))?;
        self.snapshots.check(at).ok().map(|()| found.unwrap_or(false))
    }

    fn scan(&self, at: Lsn, from_hash: u64, limits: ScanLimits) -> Result<ScanPage, TableError> {
        // Memtables first: what is flushed in between is then seen twice, never not at all.
        let memtables = self.layers.memtables();
        let page = scan::page(&self.tree, &memtables, at, from_hash, limits);
        self.snapshots.check(at)?;
        page.map_err(|error| self.files.fault(error))
    }

    fn pin(&self) -> Pin {
        self.snapshots.pin()
    }

    fn seal(&self) -> bool {
        self.rotate(1)
    }

    fn flush(&self) -> Result<Option<Mark>, TableError> {
        let _flushing = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((memtable, mark)) = self.layers.oldest_sealed() else {
            return Ok(self.durable_when_idle());
        };
        if self.layers.first_level_runs() >= FIRST_LEVEL_RUNS_MAX {
            return Ok(None);
        }
        self.write_files(|| {
            let stream = versions::staying(&memtable, self.snapshots.keep());
            if let Some((tables, _)) = self.tree.flush_to_tables(stream)? {
                self.tree.register_tables(&tables, None, None, &[], DROP_NOTHING)?;
            }
            Ok(())
        })?;
        self.install(true);
        self.durable.fetch_max(mark.lsn.0, Ordering::Relaxed);
        Ok(Some(mark))
    }

    fn compact(&self) -> Result<bool, TableError> {
        let _compacting = self.compacting.lock().unwrap_or_else(PoisonError::into_inner);
        let strategy = Leveled::default()
            .with_l0_threshold(self.settings.first_level_tables)
            .with_table_target_size(self.settings.table_bytes);
        let before = layers::table_ids(&self.tree);
        self.write_files(|| self.tree.compact(Arc::new(strategy), DROP_NOTHING))?;
        self.install(false);
        Ok(layers::table_ids(&self.tree) != before)
    }

    fn recorded(&self, durable: Lsn) -> Result<(), TableError> {
        self.snapshots.recorded(durable);
        if self.rebuilding.load(Ordering::Relaxed) {
            self.files.forget_rebuild()?;
            self.rebuilding.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    fn status(&self) -> TableStatus {
        let paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        TableStatus { pins: self.snapshots.pins(), paused, ..self.layers.status() }
    }
}

fn config(
    path: &Path,
    settings: &LsmSettings,
    set_numbers: &SequenceNumberCounter,
    snapshots: &Arc<Snapshots>,
) -> Config {
    let collector = versions::CollectorFactory::new(snapshots.clone());
    Config::new(path, set_numbers.clone(), SequenceNumberCounter::default())
        .use_cache(Arc::new(Cache::with_capacity_bytes(settings.cache_bytes)))
        // Whole filters in memory (10 bits per key): the ring thread asks them.
        .filter_block_pinning_policy(PinningPolicy::all(true))
        .filter_block_partitioning_policy(PinningPolicy::all(false))
        .with_compaction_filter_factory(Some(Arc::new(collector)))
}

impl std::fmt::Debug for LsmTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LsmTable").field("files", &self.files).finish_non_exhaustive()
    }
}
