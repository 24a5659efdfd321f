//! Versions as the tree stores them, and which of them a flush or compaction keeps.
//!
//! ```text
//! | lsn: u64 little-endian, bit 0 set for a delete | image ... |
//! ```
//!
//! The LSN repeats the entry's sequence number, which the crate's compaction filter is not shown
//! (LSNs are multiples of eight, so bit 0 is free). Deletes are entries like others: the crate
//! hides its own tombstones from the filter, and drops them by a rule that is not ours.

use std::sync::Arc;

use bytes::Bytes;
use lsm_tree::Slice;
use lsm_tree::compaction::filter::Context;
use lsm_tree::compaction::{CompactionFilter, Factory, ItemAccessor, Verdict};
use rowship_proto::Lsn;
use rowship_proto::row::{Operation, Row};

use super::super::snapshots::{Collector, Keep, Snapshots};
use super::super::table::RowId;
use super::memtable::Memtable;

const HEADER_BYTES: usize = 8;
const DELETE_BIT: u64 = 1;

/// Puts a row into a memtable.
pub fn insert(row: &Row<'_>, memtable: &Memtable, keep: &Keep) {
    let prefix = RowId::from(row).storage_prefix();
    memtable.insert((&prefix, row.key), row.lsn, (&header(row), row.value), keep);
}

/// Asks for the memory that inserting these rows will look at, all at once.
pub fn bring_in(rows: &[Row<'_>], memtable: &Memtable) {
    memtable.bring_in(rows.iter().map(|row| RowId::from(row).storage_prefix()));
}

fn header(row: &Row<'_>) -> [u8; HEADER_BYTES] {
    debug_assert!(row.lsn.0.is_multiple_of(8));
    let delete = if row.operation == Operation::Delete { DELETE_BIT } else { 0 };
    (row.lsn.0 | delete).to_le_bytes()
}

/// Version and image of a stored value; the image is `None` for a delete.
///
/// # Errors
/// When the bytes are shorter than their header: not written by this file.
pub fn parse(value: &[u8]) -> lsm_tree::Result<(Lsn, Option<&[u8]>)> {
    let short = lsm_tree::Error::InvalidHeader("version of a row");
    let (header, image) = value.split_first_chunk::<HEADER_BYTES>().ok_or(short)?;
    let header = u64::from_le_bytes(*header);
    let image = (header & DELETE_BIT == 0).then_some(image);
    Ok((Lsn(header & !DELETE_BIT), image))
}

/// A copy of the image: it must not hold on to a whole block of the cache.
pub fn image(value: &[u8]) -> lsm_tree::Result<Option<Bytes>> {
    parse(value).map(|(_, image)| image.map(Bytes::copy_from_slice))
}

/// What of a memtable goes to disk.
pub fn staying(
    memtable: &Memtable,
    keep: Keep,
) -> impl Iterator<Item = lsm_tree::Result<lsm_tree::InternalValue>> + '_ {
    // Never the bottom: deletes must go on hiding what is in older files.
    let mut collector = Collector::new(keep, false);
    memtable.versions().filter_map(move |entry| {
        let stays = judge(&mut collector, &entry.key.user_key, &entry.value);
        stays.map(|stays| stays.then_some(entry)).transpose()
    })
}

fn judge(collector: &mut Collector<Slice>, key: &Slice, value: &[u8]) -> lsm_tree::Result<bool> {
    let (lsn, image) = parse(value)?;
    Ok(collector.stays(key.clone(), lsn, image.is_none()))
}

/// Makes the filter of each compaction.
pub struct CollectorFactory {
    snapshots: Arc<Snapshots>,
}

impl CollectorFactory {
    pub fn new(snapshots: Arc<Snapshots>) -> CollectorFactory {
        CollectorFactory { snapshots }
    }
}

impl Factory for CollectorFactory {
    fn name(&self) -> &str {
        "versions nobody can read"
    }

    fn make_filter(&self, context: &Context) -> Box<dyn CompactionFilter> {
        // Into the last level, all older versions of a key that exist are in the input.
        Box::new(CompactionCollector(Collector::new(self.snapshots.keep(), context.is_last_level)))
    }
}

struct CompactionCollector(Collector<Slice>);

impl CompactionFilter for CompactionCollector {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> lsm_tree::Result<Verdict> {
        let stays = judge(&mut self.0, item.key(), &item.value()?)?;
        Ok(if stays { Verdict::Keep } else { Verdict::Destroy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::publish::Mark;
    use rowship_proto::row::{Existed, TableId};

    #[test]
    fn entries_read_back_with_version_and_image() {
        let mut row = Row {
            lsn: Lsn(4216),
            key_hash: 7,
            table: TableId(2),
            operation: Operation::Put,
            existed: Existed::No,
            key: b"key",
            value: b"image",
        };
        let stored = |row: &Row<'_>| {
            let memtable = Memtable::new(1);
            insert(row, &memtable, &Snapshots::new(Mark::ZERO).keep());
            memtable.versions().next().unwrap()
        };
        let found = stored(&row);
        assert_eq!(found.key.seqno, 4216);
        assert_eq!(RowId::from_storage_key(&found.key.user_key), Some(RowId::from(&row)));
        assert_eq!(parse(&found.value).unwrap(), (Lsn(4216), Some(b"image".as_slice())));
        row.value = b"";
        assert_eq!(image(&stored(&row).value).unwrap(), Some(Bytes::new()));
        row.operation = Operation::Delete;
        assert_eq!(parse(&stored(&row).value).unwrap(), (Lsn(4216), None));
        assert!(parse(&found.value[..7]).is_err());
    }
}
