//! The table of the simulation: the one in memory, with images of it on the node's own disk.
//!
//! It keeps what [`Table`] promises of the table on disk, by the simplest means: a flush writes
//! everything that readers see at the sealed position into a file named after that position, puts
//! it in place as a whole, and the file goes when a later position is in `node.state`. So replay
//! from the middle of the log, and crashes on either side of a flush's record, happen in
//! simulation as they do in production.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rowship_proto::Lsn;
use rowship_proto::row::{Existed, Operation, Row};
use xxhash_rust::xxh3::xxh3_64;

use crate::apply::memory::MemoryTable;
use crate::apply::publish::Mark;
use crate::apply::snapshots::Pin;
use crate::apply::table::{Resident, RowId, ScanLimits, ScanPage, Table, TableError, TableStatus};
use crate::edge::{Disk, replace_file};

/// See the module's description.
pub struct ImagedTable<D> {
    rows: MemoryTable,
    disk: D,
    memtable_bytes: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Bytes applied since the last seal.
    unsealed_bytes: u64,
    /// Sealed positions whose images are yet to be written, oldest first, each pinned.
    sealed: VecDeque<(Mark, Pin)>,
    sealed_bytes: u64,
}

/// Sealed positions that may wait; as many as the table on disk allows memtables.
const SEALED_MAX: usize = 4;
const FILE_START: &str = "table-";

impl<D: Disk> ImagedTable<D> {
    /// Opens the image at `durable`, the position in `node.state`; images of other positions go.
    ///
    /// # Errors
    /// [`TableError::Damaged`] when it is missing or not whole. [`TableError::Io`].
    pub fn open(disk: D, durable: Mark, memtable_bytes: u64) -> Result<ImagedTable<D>, TableError> {
        let rows = MemoryTable::opened_at(durable);
        let table = ImagedTable { rows, disk, memtable_bytes, state: Mutex::default() };
        if durable.lsn > Lsn::ZERO {
            table.load(durable)?;
        }
        table.remove_images(|lsn| lsn != durable.lsn)?;
        Ok(table)
    }

    fn load(&self, durable: Mark) -> Result<(), TableError> {
        let name = file_name(durable.lsn);
        let files = self.disk.list().map_err(|error| self.failed(error))?;
        let found = files.into_iter().find(|(file, _)| *file == name);
        let (_, bytes) = found.ok_or_else(|| self.damaged("its image is missing"))?;
        let mut image = vec![0; usize::try_from(bytes).expect("images are small")];
        self.disk.read_exact_at(&name, 0, &mut image).map_err(|error| self.failed(error))?;
        let (body, checksum) =
            image.split_last_chunk::<8>().ok_or_else(|| self.damaged("image cut short"))?;
        if xxh3_64(body).to_le_bytes() != *checksum {
            return Err(self.damaged("checksum of the image"));
        }
        let mut rest = body;
        while !rest.is_empty() {
            let row;
            (row, rest) = read_row(rest).ok_or_else(|| self.damaged("row of the image"))?;
            self.rows.apply(&[row])?;
        }
        Ok(())
    }

    /// Everything that a reader at the mark sees.
    fn image(&self, at: Lsn) -> Result<Vec<u8>, TableError> {
        let mut image = Vec::new();
        for (key, value) in self.rows.rows_at(at)? {
            write_row(&key, &value, &mut image);
        }
        let checksum = xxh3_64(&image).to_le_bytes();
        image.extend_from_slice(&checksum);
        Ok(image)
    }

    fn remove_images(&self, goes: impl Fn(Lsn) -> bool) -> Result<(), TableError> {
        for (name, _) in self.disk.list().map_err(|error| self.failed(error))? {
            let lsn = name.strip_prefix(FILE_START).and_then(|lsn| lsn.parse().ok());
            if lsn.is_some_and(|lsn| goes(Lsn(lsn))) {
                self.disk.remove(&name).map_err(|error| self.failed(error))?;
            }
        }
        Ok(())
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(self.disk.path(FILE_START))
    }

    fn failed(&self, error: io::Error) -> TableError {
        if error.kind() == io::ErrorKind::StorageFull {
            return TableError::NoSpace { path: self.path(), error: error.to_string() };
        }
        TableError::Io { path: self.path(), error }
    }

    fn damaged(&self, reason: &str) -> TableError {
        TableError::Damaged { path: self.path(), reason: reason.to_owned() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn file_name(lsn: Lsn) -> String {
    format!("{FILE_START}{:020}", lsn.0)
}

/// `| key_len: u32 | value_len: u32 | storage key | value |`, little-endian.
fn write_row(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    for len in [key.len(), value.len()] {
        out.extend_from_slice(&u32::try_from(len).expect("rows are small").to_le_bytes());
    }
    out.extend_from_slice(key);
    out.extend_from_slice(value);
}

fn read_row(bytes: &[u8]) -> Option<(Row<'_>, &[u8])> {
    let (key_len, rest) = bytes.split_first_chunk::<4>()?;
    let (value_len, rest) = rest.split_first_chunk::<4>()?;
    let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*key_len) as usize)?;
    let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value_len) as usize)?;
    let RowId { hash: key_hash, table, key } = RowId::from_storage_key(key)?;
    let (operation, existed) = (Operation::Put, Existed::Unknown);
    // Below everything that is replayed.
    Some((Row { lsn: Lsn::ZERO, key_hash, table, operation, existed, key, value }, rest))
}

impl<D: Disk> Table for ImagedTable<D> {
    fn apply(&self, rows: &[Row<'_>]) -> Result<(), TableError> {
        let bytes: usize = rows.iter().map(|row| row.key.len() + row.value.len()).sum();
        self.lock().unsealed_bytes += bytes as u64;
        self.rows.apply(rows)
    }

    fn published(&self, mark: Mark) {
        self.rows.published(mark);
        if self.lock().unsealed_bytes >= self.memtable_bytes {
            // No room: `ready` says so, and the next publish tries again.
            let _ = self.seal();
        }
    }

    fn ready(&self) -> bool {
        let state = self.lock();
        state.sealed.len() < SEALED_MAX || state.unsealed_bytes < self.memtable_bytes
    }

    fn get(&self, row: RowId<'_>, at: Lsn) -> Result<Option<Bytes>, TableError> {
        self.rows.get(row, at)
    }

    fn get_resident(&self, row: RowId<'_>, at: Lsn) -> Resident {
        // Some rows are as good as on disk: reads of them go the way of cold ones.
        if row.hash.is_multiple_of(3) { Resident::Cold } else { self.rows.get_resident(row, at) }
    }

    fn scan(&self, at: Lsn, from_hash: u64, limits: ScanLimits) -> Result<ScanPage, TableError> {
        self.rows.scan(at, from_hash, limits)
    }

    fn pin(&self) -> Pin {
        self.rows.pin()
    }

    fn seal(&self) -> bool {
        let mut state = self.lock();
        if state.unsealed_bytes == 0 {
            return true;
        }
        if state.sealed.len() >= SEALED_MAX {
            return false;
        }
        let (mark, pin) = self.rows.promise();
        state.sealed.push_back((mark, pin));
        state.sealed_bytes += state.unsealed_bytes;
        state.unsealed_bytes = 0;
        true
    }

    fn flush(&self) -> Result<Option<Mark>, TableError> {
        let Some(mark) = self.lock().sealed.front().map(|(mark, _)| *mark) else {
            return Ok(None);
        };
        let image = self.image(mark.lsn)?;
        let written = replace_file(&self.disk, &file_name(mark.lsn), &image);
        written.map_err(|error| self.failed(error))?;
        self.lock().sealed.pop_front();
        Ok(Some(mark))
    }

    fn compact(&self) -> Result<bool, TableError> {
        self.rows.compact()
    }

    fn recorded(&self, durable: Lsn) -> Result<(), TableError> {
        self.rows.recorded(durable)?;
        self.remove_images(|lsn| lsn < durable)
    }

    fn status(&self) -> TableStatus {
        let sealed_memtables = self.lock().sealed.len();
        TableStatus { sealed_memtables, ..self.rows.status() }
    }
}

#[cfg(test)]
mod tests {
    use rowship_proto::row::TableId;

    use super::*;
    use crate::edge::sim::disk::MemoryDisk;

    const SEED: u64 = 7;

    fn open(disk: &MemoryDisk, mark: Mark) -> ImagedTable<MemoryDisk> {
        ImagedTable::open(disk.clone(), mark, 1).unwrap()
    }

    fn put(table: &ImagedTable<MemoryDisk>, lsn: u64, key: &[u8], value: &[u8]) {
        let key_hash = rowship_proto::row::key_hash(SEED, TableId(1), key);
        let (operation, existed) = (Operation::Put, Existed::Unknown);
        let lsn = Lsn(lsn);
        table
            .apply(&[Row { lsn, key_hash, table: TableId(1), operation, existed, key, value }])
            .unwrap();
    }

    fn get(table: &ImagedTable<MemoryDisk>, key: &[u8], at: u64) -> Option<Bytes> {
        let hash = rowship_proto::row::key_hash(SEED, TableId(1), key);
        table.get(RowId { hash, table: TableId(1), key }, Lsn(at)).unwrap()
    }

    #[test]
    fn a_restart_finds_the_recorded_image_whatever_was_flushed_after_it() {
        let disk = MemoryDisk::new();
        let table = open(&disk, Mark::ZERO);
        put(&table, 10, b"a", b"one");
        let first = Mark { lsn: Lsn(20), rows: 1 };
        table.published(first);
        put(&table, 20, b"a", b"two");
        assert_eq!(table.flush().unwrap(), Some(first));
        table.recorded(first.lsn).unwrap();
        let second = Mark { lsn: Lsn(30), rows: 1 };
        table.published(second);
        // Flushed, and the power goes before it is recorded.
        assert_eq!(table.flush().unwrap(), Some(second));
        assert_eq!(table.flush().unwrap(), None);
        let table = open(&disk, first);
        assert_eq!(get(&table, b"a", 20).as_deref(), Some(&b"one"[..]));
        put(&table, 20, b"a", b"two");
        table.published(second);
        assert_eq!(get(&table, b"a", 30).as_deref(), Some(&b"two"[..]));
        let missing = ImagedTable::open(disk, Mark { lsn: Lsn(99), rows: 0 }, 1);
        assert!(matches!(missing, Err(TableError::Damaged { .. })));
    }
}
