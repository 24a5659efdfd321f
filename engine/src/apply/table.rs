//! What a table promises to lanes, readers and maintenance.
//!
//! Storage key of a row, in every implementation:
//!
//! ```text
//! | key_hash: u64 big-endian | table: u32 big-endian | key ... |
//! ```
//!
//! A scan in key order is therefore a scan in order of the hash: "everything from hash h on" is a
//! cursor that needs no memory on the server, survives every insert and delete, and fits the 64
//! bits that clients expect. Keys of one hash are always returned together.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use rowship_proto::Lsn;
use rowship_proto::row::{Row, TableId};

use super::publish::Mark;
use super::snapshots::{Collected, Pin};

/// Bytes in front of the key in a storage key.
pub const STORAGE_PREFIX_BYTES: usize = 12;

/// Longest key of a row that a table can store, in bytes: storage keys have 16-bit lengths. That
/// is 12 less than [`rowship_proto::row::KEY_BYTES_MAX`]: intake refuses longer ones.
pub const KEY_BYTES_MAX: usize = u16::MAX as usize - STORAGE_PREFIX_BYTES;

/// Names a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowId<'a> {
    /// [`rowship_proto::row::key_hash`] of table and key.
    pub hash: u64,
    /// The table.
    pub table: TableId,
    /// The key without the table's prefix.
    pub key: &'a [u8],
}

impl RowId<'_> {
    /// First bytes of the storage key; the row's key follows.
    #[must_use]
    pub fn storage_prefix(&self) -> [u8; STORAGE_PREFIX_BYTES] {
        let mut prefix = [0; STORAGE_PREFIX_BYTES];
        prefix[..8].copy_from_slice(&self.hash.to_be_bytes());
        prefix[8..].copy_from_slice(&self.table.0.to_be_bytes());
        prefix
    }

    /// Calls `work` with the whole storage key; short ones need no memory of their own.
    pub fn with_storage_key<R>(&self, work: impl FnOnce(&[u8]) -> R) -> R {
        const SHORT: usize = 64;
        let len = STORAGE_PREFIX_BYTES + self.key.len();
        if len > SHORT {
            return work(&self.storage_key());
        }
        let mut bytes = [0; SHORT];
        bytes[..STORAGE_PREFIX_BYTES].copy_from_slice(&self.storage_prefix());
        bytes[STORAGE_PREFIX_BYTES..len].copy_from_slice(self.key);
        work(&bytes[..len])
    }

    /// The whole storage key.
    #[must_use]
    pub fn storage_key(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(STORAGE_PREFIX_BYTES + self.key.len());
        bytes.extend_from_slice(&self.storage_prefix());
        bytes.extend_from_slice(self.key);
        bytes
    }

    /// Reads a storage key back; `None` when it is too short to be one.
    #[must_use]
    pub fn from_storage_key(bytes: &[u8]) -> Option<RowId<'_>> {
        let (hash, rest) = bytes.split_first_chunk::<8>()?;
        let (table, key) = rest.split_first_chunk::<4>()?;
        let table = TableId(u32::from_be_bytes(*table));
        Some(RowId { hash: u64::from_be_bytes(*hash), table, key })
    }
}

impl<'a> From<&Row<'a>> for RowId<'a> {
    fn from(row: &Row<'a>) -> RowId<'a> {
        RowId { hash: row.key_hash, table: row.table, key: row.key }
    }
}

/// The answer of [`Table::get_resident`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resident {
    /// Known without the disk: the row's image, or that there is no such row.
    Found(Option<Bytes>),
    /// Only [`Table::get`], on a thread that may wait, can tell.
    Cold,
}

/// Where a page of a scan ends. Both are reached by at most one group of equal hashes more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanLimits {
    /// Rows.
    pub rows_max: usize,
    /// Bytes of keys and values.
    pub bytes_max: usize,
}

/// One row of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanRow {
    /// The table.
    pub table: TableId,
    /// The key without the table's prefix.
    pub key: Bytes,
    /// The image.
    pub value: Bytes,
}

/// A stretch of a scan. It may be empty and still go on: deleted rows count as work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanPage {
    /// The rows, in order of hash, table and key.
    pub rows: Vec<ScanRow>,
    /// Where to go on; `None` at the end.
    pub next_hash: Option<u64>,
}

/// Fills a page: implementations offer it the newest version of key after key.
#[derive(Debug)]
pub(super) struct PageBuilder {
    page: ScanPage,
    limits: ScanLimits,
    bytes: usize,
    visits_left: usize,
    hash: Option<u64>,
}

impl PageBuilder {
    pub(super) fn new(limits: ScanLimits) -> PageBuilder {
        // Runs of deleted rows end a page too, so that one call stays short.
        let visits_left = limits.rows_max.saturating_mul(4).max(64);
        PageBuilder { page: ScanPage::default(), limits, bytes: 0, visits_left, hash: None }
    }

    /// Takes one key with its image, or `None` for a deleted one. False: the page is full, this
    /// key is not in it, stop.
    pub(super) fn push(&mut self, row: RowId<'_>, value: Option<&[u8]>) -> bool {
        if self.hash != Some(row.hash) {
            let full = self.page.rows.len() >= self.limits.rows_max
                || self.bytes >= self.limits.bytes_max
                || self.visits_left == 0;
            // A first group is taken even under limits of zero: a scan must get on.
            if full && self.hash.is_some() {
                self.page.next_hash = Some(row.hash);
                return false;
            }
            self.hash = Some(row.hash);
        }
        self.visits_left = self.visits_left.saturating_sub(1);
        if let Some(value) = value {
            self.bytes += row.key.len() + value.len();
            let (key, value) = (Bytes::copy_from_slice(row.key), Bytes::copy_from_slice(value));
            self.page.rows.push(ScanRow { table: row.table, key, value });
        }
        true
    }

    pub(super) fn finish(self) -> ScanPage {
        self.page
    }
}

/// For operators. Bytes are approximate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableStatus {
    /// Memtables that wait for a flush.
    pub sealed_memtables: usize,
    /// Bytes of all memtables.
    pub memtable_bytes: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Files on disk.
    pub disk_tables: usize,
    /// Sorted runs in the first level: each is one more place to look for a row.
    pub first_level_runs: usize,
    /// Positions that readers have pinned.
    pub pins: usize,
    /// Why flush or compaction stands still, if it does. It goes on by itself when a later turn
    /// succeeds.
    pub paused: Option<String>,
}

/// Why a table cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The caller's fault: the position was not pinned, and its versions are gone.
    #[error(transparent)]
    Collected(#[from] Collected),
    /// The disk is full. Nothing is lost: the memtable stays, call again when there is space.
    #[error("no space for the table at {path}: {error} (free some; it goes on by itself)")]
    NoSpace {
        /// Directory of the table.
        path: PathBuf,
        /// The system's words.
        error: String,
    },
    /// The disk failed.
    #[error("table at {path}: {error} (look at the disk, then restart)")]
    Io {
        /// Directory of the table.
        path: PathBuf,
        /// The system's words.
        #[source]
        error: io::Error,
    },
    /// The table's files are not what was written. A restart sets it aside and rebuilds it.
    #[error("table at {path} is damaged: {reason} (restart: it is set aside and rebuilt)")]
    Damaged {
        /// Directory of the table.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
}

/// A multi-version table whose versions are LSNs.
///
/// Who calls what, on which thread: lanes `apply` and `published`; the ring thread `ready`,
/// `get_resident`, `pin`, `status`; the reader thread `get` and `scan`; one maintenance thread
/// `seal`, `flush`, `compact` and `recorded`. All may run at the same time.
///
/// A reader at position p sees, of each key, the newest version with an LSN below p. Positions
/// that are read must be published (lanes may be ahead of `visible`, and windows keep only last
/// images), and not collected: a position is safe while a [`Pin`] on it is held, or while it is
/// the newest published one. Reading elsewhere is answered with [`TableError::Collected`], never
/// with a wrong row.
pub trait Table: Send + Sync + 'static {
    /// Inserts every row as the version of its key at its LSN. Doing so again changes nothing.
    /// Keys are at most [`KEY_BYTES_MAX`] bytes long. Does not wait for the disk.
    ///
    /// # Errors
    /// [`TableError`]; some rows may have been inserted.
    fn apply(&self, rows: &[Row<'_>]) -> Result<(), TableError>;

    /// All rows below `mark.lsn` are in and readable. Called in order, by the lane that completed
    /// a window, before anybody sees `visible` there. Does not wait for the disk.
    fn published(&self, mark: Mark);

    /// Whether there is room for another window. False: memtables are full and not flushed yet;
    /// ask again after the next [`Table::flush`].
    fn ready(&self) -> bool;

    /// The row's image at `at`. May wait for the disk.
    ///
    /// # Errors
    /// [`TableError`].
    fn get(&self, row: RowId<'_>, at: Lsn) -> Result<Option<Bytes>, TableError>;

    /// The row's image at `at` if that can be told from memory. Never waits for the disk.
    fn get_resident(&self, row: RowId<'_>, at: Lsn) -> Resident;

    /// Whether there is such a row at `at`, if that can be told from memory. Never waits for the
    /// disk.
    fn exists_resident(&self, row: RowId<'_>, at: Lsn) -> Option<bool> {
        match self.get_resident(row, at) {
            Resident::Found(image) => Some(image.is_some()),
            Resident::Cold => None,
        }
    }

    /// Rows at `at` with hashes from `from_hash` on, whole groups of equal hash. May wait for the
    /// disk.
    ///
    /// # Errors
    /// [`TableError`].
    fn scan(&self, at: Lsn, from_hash: u64, limits: ScanLimits) -> Result<ScanPage, TableError>;

    /// Pins the newest published position: it stays readable until the pin is dropped.
    fn pin(&self) -> Pin;

    /// Closes the memtable in use, if it has any rows, so that the next flush writes it. For a
    /// clean stop, and when nothing was flushed for long. Returns false when there is no room.
    fn seal(&self) -> bool;

    /// Writes the oldest sealed memtable to disk and syncs it. Returns the new durable position,
    /// which the caller stores in `node.state` and then reports to [`Table::recorded`]; `None`
    /// when there was nothing to do.
    ///
    /// # Errors
    /// [`TableError::NoSpace`] can be tried again; what was to be flushed is still in memory.
    fn flush(&self) -> Result<Option<Mark>, TableError>;

    /// One step of compaction. Returns whether there may be more to do.
    ///
    /// # Errors
    /// As [`Table::flush`].
    fn compact(&self) -> Result<bool, TableError>;

    /// `durable` is in `node.state`, synced: a restart reads from there on.
    ///
    /// # Errors
    /// [`TableError::Io`].
    fn recorded(&self, durable: Lsn) -> Result<(), TableError>;

    /// For operators.
    fn status(&self) -> TableStatus;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_keys_sort_by_hash_and_read_back() {
        let row = |hash, table, key| RowId { hash, table: TableId(table), key };
        let rows = [
            row(1, 9, b"z".as_slice()),
            row(2, 1, b""),
            row(2, 1, b"a"),
            row(2, 256, b""),
            row(u64::MAX, 0, b"a"),
        ];
        let keys: Vec<_> = rows.iter().map(RowId::storage_key).collect();
        assert!(keys.is_sorted());
        for (row, key) in rows.iter().zip(&keys) {
            assert_eq!(RowId::from_storage_key(key), Some(*row));
        }
        assert_eq!(RowId::from_storage_key(&keys[1][..11]), None);
    }
}
