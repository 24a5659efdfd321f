//! The plain table: a sorted map of versions, in memory only. For tests and as oracle.
//!
//! Its durable position stays where it was opened: a restart replays from there.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use rowship_proto::Lsn;
use rowship_proto::row::{Operation, Row};

use super::publish::Mark;
use super::snapshots::{Collector, Pin, Snapshots};
use super::table::{
    PageBuilder, Resident, RowId, ScanLimits, ScanPage, Table, TableError, TableStatus,
};

/// A table in memory. Unbounded: it never says that it is not ready.
#[derive(Debug)]
pub struct MemoryTable {
    versions: RwLock<Versions>,
    snapshots: Arc<Snapshots>,
}

#[derive(Debug, Default)]
struct Versions {
    /// Storage key and version, newest first; `None` is a delete.
    map: BTreeMap<(Vec<u8>, Reverse<Lsn>), Option<Bytes>>,
    /// Versions inserted since the last collection.
    uncollected: usize,
    bytes: u64,
}

impl MemoryTable {
    /// An empty table, at the start of the log.
    #[must_use]
    pub fn new() -> MemoryTable {
        MemoryTable::opened_at(Mark::ZERO)
    }

    /// An empty table for the rows of this position, which the caller has.
    #[must_use]
    pub fn opened_at(mark: Mark) -> MemoryTable {
        MemoryTable { versions: RwLock::default(), snapshots: Snapshots::new(mark) }
    }

    /// The newest published position, pinned, which from now on may be where a restart begins.
    #[must_use]
    pub fn promise(&self) -> (Mark, Pin) {
        let pin = self.snapshots.pin();
        let mark = self.snapshots.promise();
        assert_eq!(mark.lsn, pin.at(), "nothing is published in between");
        (mark, pin)
    }

    /// How many versions are stored.
    #[must_use]
    pub fn versions(&self) -> usize {
        self.read().map.len()
    }

    /// Storage key and image of every row at a pinned position, in order.
    ///
    /// # Errors
    /// [`TableError::Collected`].
    pub fn rows_at(&self, at: Lsn) -> Result<Vec<(Vec<u8>, Bytes)>, TableError> {
        let mut rows = Vec::new();
        let mut previous: Option<&[u8]> = None;
        let versions = self.read();
        for ((key, _), value) in versions.map.iter().filter(|((_, lsn), _)| lsn.0 < at) {
            if previous != Some(key) {
                previous = Some(key);
                rows.extend(value.clone().map(|value| (key.clone(), value)));
            }
        }
        drop(versions);
        self.snapshots.check(at)?;
        Ok(rows)
    }

    fn find(&self, row: RowId<'_>, at: Lsn) -> Result<Option<Bytes>, TableError> {
        let found = match at.0.checked_sub(1) {
            None => None,
            Some(newest) => {
                let key = row.storage_key();
                let (from, to) = ((key.clone(), Reverse(Lsn(newest))), (key, Reverse(Lsn::ZERO)));
                self.read().map.range(from..=to).next().and_then(|(_, value)| value.clone())
            }
        };
        self.snapshots.check(at)?;
        Ok(found)
    }

    fn read(&self) -> RwLockReadGuard<'_, Versions> {
        self.versions.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryTable {
    fn default() -> Self {
        MemoryTable::new()
    }
}

impl Table for MemoryTable {
    fn apply(&self, rows: &[Row<'_>]) -> Result<(), TableError> {
        let mut versions = self.versions.write().unwrap_or_else(PoisonError::into_inner);
        for row in rows {
            let key = (RowId::from(row).storage_key(), Reverse(row.lsn));
            let bytes = (key.0.len() + row.value.len()) as u64;
            let value = match row.operation {
                Operation::Put => Some(Bytes::copy_from_slice(row.value)),
                Operation::Delete => None,
            };
            if versions.map.insert(key, value).is_none() {
                versions.uncollected += 1;
                versions.bytes += bytes;
            }
        }
        Ok(())
    }

    fn published(&self, mark: Mark) {
        self.snapshots.publish(mark);
    }

    fn ready(&self) -> bool {
        true
    }

    fn get(&self, row: RowId<'_>, at: Lsn) -> Result<Option<Bytes>, TableError> {
        self.find(row, at)
    }

    fn get_resident(&self, row: RowId<'_>, at: Lsn) -> Resident {
        self.find(row, at).map_or(Resident::Cold, Resident::Found)
    }

    fn scan(&self, at: Lsn, from_hash: u64, limits: ScanLimits) -> Result<ScanPage, TableError> {
        let mut builder = PageBuilder::new(limits);
        let versions = self.read();
        let from = (from_hash.to_be_bytes().to_vec(), Reverse(Lsn(u64::MAX)));
        let mut previous: Option<&[u8]> = None;
        for ((key, lsn), value) in versions.map.range(from..) {
            if lsn.0 >= at || previous == Some(key) {
                continue;
            }
            previous = Some(key);
            let row = RowId::from_storage_key(key).expect("this file made the key");
            if !builder.push(row, value.as_deref()) {
                break;
            }
        }
        drop(versions);
        self.snapshots.check(at)?;
        Ok(builder.finish())
    }

    fn pin(&self) -> Pin {
        self.snapshots.pin()
    }

    fn seal(&self) -> bool {
        true
    }

    fn flush(&self) -> Result<Option<Mark>, TableError> {
        Ok(None)
    }

    fn compact(&self) -> Result<bool, TableError> {
        let mut versions = self.versions.write().unwrap_or_else(PoisonError::into_inner);
        // Amortised: a collection walks everything, so it waits for enough to be new.
        if versions.uncollected <= versions.map.len() / 4 {
            return Ok(false);
        }
        let mut collector = Collector::new(self.snapshots.keep(), true);
        let mut bytes = 0;
        versions.map.retain(|(key, lsn), value| {
            let stays = collector.stays(key.clone(), lsn.0, value.is_none());
            if stays {
                bytes += (key.len() + value.as_ref().map_or(0, Bytes::len)) as u64;
            }
            stays
        });
        (versions.uncollected, versions.bytes) = (0, bytes);
        Ok(false)
    }

    fn recorded(&self, durable: Lsn) -> Result<(), TableError> {
        self.snapshots.recorded(durable);
        Ok(())
    }

    fn status(&self) -> TableStatus {
        let (memtable_bytes, pins) = (self.read().bytes, self.snapshots.pins());
        TableStatus { memtable_bytes, pins, ..TableStatus::default() }
    }
}
