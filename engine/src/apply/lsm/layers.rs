//! Memtables and the list of files, behind a lock that no disk access is ever made under.
//!
//! Who holds the lock how: inserts and lookups share it; a rotation, or the installation of a new
//! set of files, takes it alone and only swaps pointers. An insert holds it from choosing the
//! memtable to being in it, so nothing enters a memtable that is sealed.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use lsm_tree::table::filter::standard_bloom::Builder as FilterBuilder;
use lsm_tree::{AbstractTree, AnyTree, Slice, Table as DiskTable};
use rowship_proto::Lsn;
use rowship_proto::row::Row;

use super::super::publish::Mark;
use super::super::snapshots::Keep;
use super::super::table::TableStatus;
use super::memtable::Memtable;
use super::versions;

/// All places where a version can be, newest first.
pub struct Layers {
    active: Arc<Memtable>,
    /// Newest first, each with what is known to be complete when it and all older ones are on disk.
    sealed: VecDeque<(Arc<Memtable>, Mark)>,
    runs: Runs,
    /// At which a memtable is sealed.
    memtable_bytes: u64,
}

/// The files of one set, as runs of files that do not overlap; newest run first.
#[derive(Default)]
pub struct Runs {
    runs: Vec<Vec<DiskTable>>,
    first_level_runs: usize,
}

impl Layers {
    pub fn new(runs: Runs, memtable_bytes: u64) -> Layers {
        let (active, sealed) = (Arc::new(Memtable::new(memtable_bytes)), VecDeque::new());
        Layers { active, sealed, runs, memtable_bytes }
    }

    /// What `read` makes of the newest version in memory.
    fn in_memtables<R>(&self, key: &[u8], at: Lsn, read: impl Fn(&[u8]) -> R) -> Option<R> {
        // Rows of one key come from one lane in log order: a newer memtable has the newer version.
        let mut memtables = std::iter::once(&self.active).chain(self.sealed.iter().map(|(m, _)| m));
        memtables.find_map(|memtable| memtable.get(key, at, &read))
    }

    fn candidates<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = &'a DiskTable> {
        self.runs.runs.iter().filter_map(move |run| {
            let at = run.partition_point(|table| &**table.metadata.key_range.max() < key);
            run.get(at).filter(|table| &**table.metadata.key_range.min() <= key)
        })
    }
}

/// The answer of [`Layered::look`].
pub enum Look {
    /// The value with its version header.
    Version(Slice),
    /// Not in memory; these files may have it, newest first.
    Candidates(Vec<DiskTable>),
}

/// [`Layers`] behind their lock.
pub struct Layered(RwLock<Layers>);

impl Layered {
    pub fn new(layers: Layers) -> Layered {
        Layered(RwLock::new(layers))
    }

    /// Inserts `rows` into the active memtable; of its versions, those may go that `keep` does not
    /// need.
    pub fn insert(&self, rows: &[Row<'_>], keep: &Keep) {
        let layers = self.read();
        versions::bring_in(rows, &layers.active);
        rows.iter().for_each(|row| versions::insert(row, &layers.active, keep));
    }

    pub fn look(&self, key: &[u8], at: Lsn) -> Look {
        let layers = self.read();
        match layers.in_memtables(key, at, |value| Slice::from(value)) {
            Some(value) => Look::Version(value),
            None => Look::Candidates(layers.candidates(key).cloned().collect()),
        }
    }

    /// What `read` makes of the newest version; `None`: only the disk can tell.
    #[expect(clippy::option_option, reason = "known or not, and then there or not")]
    pub fn look_resident<R>(
        &self,
        key: &[u8],
        at: Lsn,
        read: impl Fn(&[u8]) -> Option<R>,
    ) -> Option<Option<R>> {
        let layers = self.read();
        if let Some(found) = layers.in_memtables(key, at, read) {
            return found.map(Some);
        }
        let filter_hash = filter_hash(key);
        // No clones of files leave this lock: whoever drops the last one removes it from the disk.
        let excluded = |table: &DiskTable| {
            let filter = table.pinned_filter_block.as_ref();
            filter
                .is_some_and(|filter| filter.maybe_contains_hash(filter_hash).is_ok_and(|may| !may))
        };
        layers.candidates(key).all(excluded).then_some(None)
    }

    /// All memtables, newest first.
    pub fn memtables(&self) -> Vec<Arc<Memtable>> {
        let layers = self.read();
        let sealed = layers.sealed.iter().map(|(memtable, _)| memtable.clone());
        std::iter::once(layers.active.clone()).chain(sealed).collect()
    }

    pub fn oldest_sealed(&self) -> Option<(Arc<Memtable>, Mark)> {
        self.read().sealed.back().cloned()
    }

    /// Seals the active memtable if it holds `bytes_min`, under the mark that `promise` gives.
    /// False when there is no room for it.
    pub fn rotate(
        &self,
        bytes_min: u64,
        sealed_max: usize,
        promise: impl FnOnce() -> Mark,
    ) -> bool {
        // Made before the lock is taken, and only when there is a place for it: it is an array of
        // some size.
        let layers = self.read();
        if layers.active.bytes() < bytes_min {
            return true;
        }
        if layers.sealed.len() >= sealed_max {
            return false;
        }
        let fresh = Arc::new(Memtable::new(layers.memtable_bytes));
        drop(layers);
        let mut layers = self.write();
        if layers.active.bytes() < bytes_min {
            return true;
        }
        if layers.sealed.len() >= sealed_max {
            return false;
        }
        // Rows below the mark were inserted before it was published, and published before now: so
        // they are in this memtable or an older one.
        let mark = promise();
        let full = std::mem::replace(&mut layers.active, fresh);
        layers.sealed.push_front((full, mark));
        true
    }

    /// Replaces the set of files; with `flushed`, the oldest sealed memtable is in it.
    pub fn install(&self, runs: Runs, flushed: bool) {
        let mut layers = self.write();
        let old_runs = std::mem::replace(&mut layers.runs, runs);
        let old_memtable = if flushed { layers.sealed.pop_back() } else { None };
        drop(layers);
        // Freed outside the lock: removes files, and millions of nodes.
        drop((old_runs, old_memtable));
    }

    /// Calls `promise` if no memtable holds anything.
    pub fn when_memtables_are_empty(&self, promise: impl FnOnce() -> Mark) -> Option<Mark> {
        // Alone, so that nothing is inserted in between.
        let layers = self.write();
        (layers.active.is_empty() && layers.sealed.is_empty()).then(promise)
    }

    pub fn active_bytes(&self) -> u64 {
        self.read().active.bytes()
    }

    pub fn sealed(&self) -> usize {
        self.read().sealed.len()
    }

    pub fn first_level_runs(&self) -> usize {
        self.read().runs.first_level_runs
    }

    pub fn status(&self) -> TableStatus {
        let layers = self.read();
        let sealed_bytes = layers.sealed.iter().map(|(memtable, _)| memtable.bytes()).sum::<u64>();
        let tables = || layers.runs.runs.iter().flatten();
        TableStatus {
            sealed_memtables: layers.sealed.len(),
            memtable_bytes: layers.active.bytes() + sealed_bytes,
            disk_bytes: tables().map(|table| table.metadata.file_size).sum(),
            disk_tables: tables().count(),
            first_level_runs: layers.runs.first_level_runs,
            ..TableStatus::default()
        }
    }

    // Every change under the lock is a swap of whole values, so a panic leaves nothing half-done.
    fn read(&self) -> RwLockReadGuard<'_, Layers> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Layers> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The hash that the crate's filters are made of.
pub fn filter_hash(key: &[u8]) -> u64 {
    FilterBuilder::get_hash(key)
}

/// The tree's present files. May wait while another thread installs files.
pub fn runs_of(tree: &AnyTree) -> Runs {
    let version = tree.current_version();
    let runs = version.iter_levels().flat_map(|level| level.iter());
    let runs = runs.map(|run| run.iter().cloned().collect()).collect();
    Runs { runs, first_level_runs: version.l0().run_count() }
}

/// Which files in which runs: changes with every change of the set.
pub fn table_ids(tree: &AnyTree) -> Vec<Vec<u64>> {
    let version = tree.current_version();
    version
        .iter_levels()
        .map(|level| level.iter().flat_map(|run| run.iter()).map(DiskTable::id).collect())
        .collect()
}
