//! Letting old segments go: which may, and how.
//!
//! Retention keeps everything until an operator asks. Even then these are kept: the segments that
//! hold anything at or above what the table has made durable, or what a known replica still
//! needs; the segment that holds the checkpoint, and the one before it (a checkpoint at the head
//! of a segment that is not opened yet needs the dictionary of the one before).
//!
//! A recycled file is overwritten under whoever still maps it. Replicas' needs count
//! from what they *acknowledged*, so bytes in flight to them are below no retired segment's end;
//! apply reads above the table's durable position. Other readers hold maps only for one call.

use rowship_proto::Lsn;
use rowship_proto::verify::first_frame;

use super::LogError;
use super::segment::{LogFile, SegmentFile, list_log_files, segment_file_name, spare_file_name};
use crate::edge::Disk;

/// Most spares that are kept; files beyond it are removed. Two are enough for a roll while the
/// one before is still being prepared; more would only hold disk space.
pub const SPARES_MAX: usize = 2;

/// Who still needs the log, and from where.
#[derive(Clone, Debug)]
pub struct RetireFloors {
    /// The checkpoint in `node.state`.
    pub checkpoint: Lsn,
    /// Rows below are in the table's own files, synced.
    pub table_durable: Lsn,
    /// Each known replica, connected or not: name, and the position it has acknowledged as
    /// durable.
    pub replicas: Vec<(String, Lsn)>,
}

/// Which segments go, and why not more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetirePlan {
    /// Bases of the segments that go, oldest first.
    pub retire: Vec<Lsn>,
    /// First frame that stays.
    pub oldest: Lsn,
    /// What keeps the next segment, if the request alone would let it go.
    pub kept_by: Option<String>,
}

/// Decides what `log retire --to` may do. `segments` are base and size, oldest first, at least
/// one. Segments that end at or below `to` go, as far as the floors let them.
///
/// # Panics
/// When there is no segment.
#[must_use]
pub fn plan(segments: &[SegmentFile], to: Lsn, floors: &RetireFloors) -> RetirePlan {
    assert!(!segments.is_empty());
    let mut floor = (floors.table_durable, "the table has made no more durable".to_owned());
    for (name, lsn) in &floors.replicas {
        if *lsn < floor.0 {
            floor = (*lsn, format!("replica {name} still needs it"));
        }
    }
    let holder = segments.partition_point(|(base, _)| first_frame(*base) <= floors.checkpoint);
    // One past the checkpoint's segment, less that one and the one before it.
    let below_checkpoint = holder.saturating_sub(2);
    let mut retire = Vec::new();
    let mut kept_by = None;
    for (index, (base, bytes)) in segments.iter().enumerate() {
        let end = base.plus(*bytes);
        if end > to {
            break;
        }
        if index >= below_checkpoint {
            kept_by = Some("recovery starts there".to_owned());
            break;
        }
        if end > floor.0 {
            kept_by = Some(floor.1);
            break;
        }
        retire.push(*base);
    }
    let oldest = first_frame(segments[retire.len()].0);
    RetirePlan { retire, oldest, kept_by }
}

/// Turns the segments of a plan into spares, or removes them, oldest first: a power loss on the
/// way leaves a log without holes. Forget them in [`super::SegmentMaps`] before.
///
/// # Errors
/// [`LogError::Io`].
pub fn retire<D: Disk>(disk: &D, plan: &RetirePlan, spares_max: usize) -> Result<(), LogError> {
    let files = list_log_files(disk)?;
    let mut spares: Vec<u64> = files
        .iter()
        .filter_map(|(file, _)| match file {
            LogFile::Spare(number) => Some(*number),
            LogFile::Segment(_) => None,
        })
        .collect();
    for base in &plan.retire {
        let name = segment_file_name(*base);
        if spares.len() < spares_max {
            let free = (0..).find(|number| !spares.contains(number)).expect("spares are few");
            let renamed = disk.rename(&name, &spare_file_name(free));
            renamed.map_err(LogError::io("retire", disk.path(&name)))?;
            spares.push(free);
        } else {
            disk.remove(&name).map_err(LogError::io("remove", disk.path(&name)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::testing::MemoryDisk;

    const SIZE: u64 = 65536;

    fn segments() -> Vec<SegmentFile> {
        (0..6).map(|index| (Lsn(index * SIZE), SIZE)).collect()
    }

    fn floors(table: u64, replica: u64) -> RetireFloors {
        RetireFloors {
            checkpoint: Lsn(5 * SIZE + 5000),
            table_durable: Lsn(table),
            replicas: vec![("south".to_owned(), Lsn(replica))],
        }
    }

    #[test]
    fn only_what_everyone_has_goes() {
        let far = 6 * SIZE;
        let all = |to, floors| plan(&segments(), Lsn(to), &floors);
        assert_eq!(all(2 * SIZE, floors(far, far)).retire, [Lsn(0), Lsn(SIZE)]);
        assert_eq!(all(2 * SIZE - 1, floors(far, far)).retire, [Lsn(0)]);
        let table = all(far, floors(2 * SIZE - 1, far));
        assert_eq!(table.retire, [Lsn(0)]);
        assert_eq!(table.oldest, Lsn(SIZE + 4096));
        assert!(table.kept_by.unwrap().contains("table"));
        let replica = all(far, floors(far, SIZE));
        assert_eq!(replica.retire, [Lsn(0)]);
        assert!(replica.kept_by.unwrap().contains("south"));
        let checkpoint = all(far, floors(far, far));
        assert_eq!(checkpoint.retire.len(), 4);
        assert!(checkpoint.kept_by.unwrap().contains("recovery"));
    }

    #[test]
    fn retired_files_become_a_bounded_number_of_spares() {
        let disk = MemoryDisk::new();
        for (base, _) in segments() {
            disk.put(&segment_file_name(base), b"x");
        }
        disk.put("spare-0.log", b"x");
        let plan = plan(&segments(), Lsn(3 * SIZE), &floors(6 * SIZE, 6 * SIZE));
        retire(&disk, &plan, SPARES_MAX).unwrap();
        let names: Vec<_> = disk.contents().into_keys().collect();
        assert_eq!(names.len(), 3 + 2);
        assert_eq!(names[3..], ["spare-0.log", "spare-1.log"]);
    }
}
