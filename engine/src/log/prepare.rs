//! Segment files made ready ahead of their use, so that a roll costs the writer one open.
//!
//! All blocks of a prepared segment are allocated: a full disk shows up here, as an error that
//! can be waited out, and never in the middle of a write or as SIGBUS in a map.

use std::io;

use rowship_proto::Lsn;
use rowship_proto::sim::{Mark, mark};

use super::LogError;
use super::scan::SegmentScan;
use super::segment::{LogFile, SegmentHeader, list_log_files};
use crate::edge::Disk;

/// Name under which a new segment is filled with zeroes.
const TEMPORARY_FILE: &str = "prepare.tmp";

/// Where a prepared segment came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// It was there already.
    Found,
    /// A spare took its name.
    Recycled,
    /// Made new.
    Created,
}

/// What a new segment is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Zeroes that are written: small writes then change nothing but their own blocks.
    Zeroes,
    /// Up to this many bytes blocks that are only reserved, behind them zeroes. Each write to
    /// reserved blocks also converts what it covers, which costs a commit of the file system's
    /// journal: for large writes that is less than writing all of it twice.
    ReservedTo(u64),
}

impl Fill {
    /// For a segment of a replica whose primary's log ends at `primary_end`. What lies below that
    /// is filled from a backlog, by large writes.
    #[must_use]
    pub fn of_replica(header: &SegmentHeader, primary_end: Lsn) -> Fill {
        match primary_end.0.saturating_sub(header.base.0).min(header.segment_bytes) {
            0 => Fill::Zeroes,
            backlog => Fill::ReservedTo(backlog),
        }
    }

    fn reserved_bytes(self) -> u64 {
        match self {
            Fill::Zeroes => 0,
            Fill::ReservedTo(bytes) => bytes,
        }
    }
}

/// Makes the file of this segment ready, durable: header page written, all blocks there, no live
/// frame in it. Blocks for as long as writing a segment takes; call it on a worker.
///
/// # Errors
/// [`LogError::DiskFull`]: nothing has changed, try again later. [`LogError::Exists`] when a file
/// of that name has live frames but is not the same segment. [`LogError::Io`].
pub fn prepare_next<D: Disk>(
    disk: &D,
    header: &SegmentHeader,
    fill: Fill,
) -> Result<Prepared, LogError> {
    prepare_ahead(disk, header, fill, &|| true)
}

/// The same, leaving the disk to others most of the time until there is a `hurry`.
///
/// # Errors
/// As [`prepare_next`].
pub fn prepare_ahead<D: Disk>(
    disk: &D,
    header: &SegmentHeader,
    fill: Fill,
    hurry: &dyn Fn() -> bool,
) -> Result<Prepared, LogError> {
    let name = header.file_name();
    let files = list_log_files(disk)?;
    let found = files.iter().find(|(file, _)| *file == LogFile::Segment(header.base));
    if let Some((_, bytes)) = found {
        if *bytes == header.segment_bytes && SegmentHeader::read(disk, header.base)? == Ok(*header)
        {
            return Ok(Prepared::Found);
        }
        let mut scan = SegmentScan::of_file(disk, header.base, *bytes);
        if scan.is_written(header.log_id.seed())? {
            return Err(LogError::Exists { file: disk.path(&name) });
        }
        // Prepared under other settings, and never written to.
        disk.remove(&name).map_err(LogError::io("remove", disk.path(&name)))?;
    }
    let mut recycled = None;
    for (spare, bytes) in files.iter().filter(|(file, _)| matches!(file, LogFile::Spare(_))) {
        if *bytes == header.segment_bytes && recycled.is_none() {
            recycled = Some(spare.name());
        } else if *bytes != header.segment_bytes {
            // Made under other settings: it will never fit again.
            let name = spare.name();
            disk.remove(&name).map_err(LogError::io("remove", disk.path(&name)))?;
        }
    }
    let from = match &recycled {
        Some(spare) => spare.as_str(),
        None => {
            create(disk, header.segment_bytes, fill, hurry)?;
            TEMPORARY_FILE
        }
    };
    let written = disk.write_durable_at(from, 0, &header.to_page());
    written.map_err(LogError::io("write the header page of", disk.path(from)))?;
    disk.rename(from, &name).map_err(LogError::io("rename into place", disk.path(&name)))?;
    if recycled.is_none() {
        return Ok(Prepared::Created);
    }
    mark(Mark::SegmentRecycled);
    Ok(Prepared::Recycled)
}

fn create<D: Disk>(
    disk: &D,
    bytes: u64,
    fill: Fill,
    hurry: &dyn Fn() -> bool,
) -> Result<(), LogError> {
    let file = disk.path(TEMPORARY_FILE);
    if fill != Fill::Zeroes {
        mark(Mark::SegmentReserved);
    }
    let created = disk.create_ahead(TEMPORARY_FILE, bytes, fill.reserved_bytes(), hurry);
    created.map_err(|source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            LogError::DiskFull { file, bytes, source }
        }
        _ => LogError::Io { doing: "create", file, source },
    })
}

#[cfg(test)]
mod tests {
    use rowship_proto::{LogId, Lsn};

    use super::*;
    use crate::log::testing::MemoryDisk;

    fn header(segment_bytes: u64) -> SegmentHeader {
        SegmentHeader::new(LogId([1, 2]), Lsn(65536), segment_bytes, 4096)
    }

    #[test]
    fn only_what_the_primary_has_filled_is_reserved() {
        let (header, end) = (header(65536), Lsn(131_072));
        assert_eq!(header.end(), end);
        for known in [Lsn::ZERO, header.base] {
            assert_eq!(Fill::of_replica(&header, known), Fill::Zeroes);
        }
        for (known, reserved) in [(end.0 - 8, 65528), (end.0, 65536), (1 << 40, 65536)] {
            assert_eq!(Fill::of_replica(&header, Lsn(known)), Fill::ReservedTo(reserved));
        }
    }

    #[test]
    fn a_spare_is_taken_as_it_is_and_a_wrong_one_is_thrown_away() {
        let disk = MemoryDisk::new();
        disk.put("spare-1.log", &[7; 8192]);
        disk.put("spare-2.log", &[8; 65536]);
        assert_eq!(prepare_next(&disk, &header(65536), Fill::Zeroes).unwrap(), Prepared::Recycled);
        let files = disk.contents();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["segment-00000000000000065536.log"]);
        let bytes = files.values().next().unwrap();
        assert_eq!(SegmentHeader::parse(&bytes[..4096]), Ok(header(65536)));
        assert!(bytes[4096..].iter().all(|byte| *byte == 8));
        assert_eq!(prepare_next(&disk, &header(65536), Fill::Zeroes).unwrap(), Prepared::Found);
    }

    #[test]
    fn an_unwritten_file_of_other_size_is_replaced() {
        let disk = MemoryDisk::new();
        assert_eq!(prepare_next(&disk, &header(65536), Fill::Zeroes).unwrap(), Prepared::Created);
        assert_eq!(prepare_next(&disk, &header(131_072), Fill::Zeroes).unwrap(), Prepared::Created);
        assert_eq!(disk.list().unwrap()[0].1, 131_072);
    }

    #[test]
    fn a_segment_with_frames_is_never_replaced() {
        let mut log = crate::log::testing::TestLog::create(MemoryDisk::new()).unwrap();
        log.rows(&[10]).unwrap();
        let other = SegmentHeader::new(log.layout.header.log_id, Lsn::ZERO, 131_072, 4096);
        let refused = prepare_next(&log.disk, &other, Fill::Zeroes);
        assert!(matches!(refused, Err(LogError::Exists { .. })));
        assert_eq!(
            prepare_next(&log.disk, &log.layout.header, Fill::Zeroes).unwrap(),
            Prepared::Found
        );
    }

    #[test]
    fn a_full_disk_is_an_error_that_can_be_tried_again() {
        let disk = MemoryDisk::new();
        disk.set_capacity_bytes(65535);
        let full = prepare_next(&disk, &header(65536), Fill::Zeroes).unwrap_err();
        assert!(matches!(full, LogError::DiskFull { bytes: 65536, .. }), "{full}");
        disk.set_capacity_bytes(1 << 20);
        assert_eq!(prepare_next(&disk, &header(65536), Fill::Zeroes).unwrap(), Prepared::Created);
    }

    #[test]
    fn power_loss_at_any_call_leaves_a_whole_segment_or_none() {
        for with_spare in [false, true] {
            for call in 0..3 {
                let disk = MemoryDisk::new();
                if with_spare {
                    disk.put("spare-0.log", &[7; 65536]);
                }
                disk.lose_power_at(call, |sector| sector % 2 == 0);
                let done = prepare_next(&disk, &header(65536), Fill::Zeroes).is_ok();
                assert_eq!(done, !disk.restore_power());
                let name = header(65536).file_name();
                if let Some(bytes) = disk.contents().get(&name) {
                    assert_eq!(SegmentHeader::parse(&bytes[..4096]), Ok(header(65536)));
                }
                prepare_next(&disk, &header(65536), Fill::Zeroes).unwrap();
                let page = SegmentHeader::read(&disk, Lsn(65536)).unwrap();
                assert_eq!(page, Ok(header(65536)));
            }
        }
    }
}
