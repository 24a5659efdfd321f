//! Recovery: makes the log that a crash left behind one that can be continued.
//!
//! [`super::survey`] reads and judges; here the torn tail is cut for good (zeroes over all that a
//! write in flight may have touched), files that cannot continue the log go, and what was read
//! above the checkpoint is written and synced again. The last is needed since bytes that were
//! read may never have been synced: they may only be in the page cache of a killed process.

use rowship_proto::control::AckPolicyChanged;
use rowship_proto::frame::FrameError;
use rowship_proto::hlc::Hlc;
use rowship_proto::row::TableId;
use rowship_proto::sim::{Bug, planted};
use rowship_proto::{Epoch, EpochHistory, Lsn};

use super::LogError;
use super::node_state::Checkpoint;
use super::scan::SegmentScan;
use super::segment::{SegmentFile, SegmentHeader, list_segments, segment_file_name};
use super::survey::{RecoverInput, survey};
use crate::edge::Disk;

/// A log that is whole and durable up to `end`.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Where the next frame starts.
    pub end: Lsn,
    /// Chain value of the last frame.
    pub chain: u64,
    /// Epoch of the last frame, [`Epoch::NONE`] in an empty log.
    pub epoch: Epoch,
    /// Where each epoch starts.
    pub history: EpochHistory,
    /// All tables, by number.
    pub tables: Vec<(TableId, Vec<u8>)>,
    /// Highest `committed` that any frame read says.
    pub committed: Lsn,
    /// Highest clock of any transaction read.
    pub clock: Hlc,
    /// The ack policy last set, with the range it covers.
    pub policy: Option<(AckPolicyChanged, String)>,
    /// Repeats that the last segment start announced and that are not there. When not zero, a
    /// primary writes all of them again: [`super::Layout::repeat_frames`].
    pub opening_left: u64,
    /// What was cut off.
    pub torn: Option<TornTail>,
    /// First frame that is there.
    pub oldest: Lsn,
    /// The segment in which `end` lies; none when the log ends at a roll whose next segment is
    /// yet to be made.
    pub active: Option<SegmentHeader>,
    /// Size that the segment end at which the log ends announces for the next segment.
    pub next_segment_bytes: Option<u64>,
    /// The newest segment with frames (or the one with none, in an empty log).
    pub last: SegmentHeader,
    /// Base and size of all segment files, prepared ones included, oldest first.
    pub segments: Vec<SegmentFile>,
    /// Frames that were read.
    pub frames_read: u64,
    /// Bytes of the log that were read.
    pub bytes_read: u64,
}

impl Recovered {
    /// The end, as a checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint { lsn: self.end, chain: self.chain, epoch: self.epoch }
    }
}

/// The last write, of which only a part reached the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// Where the log ends now.
    pub at: Lsn,
    /// Bytes behind it that were not zero, and are now.
    pub bytes_dropped: u64,
    /// What did not hold.
    pub what: FrameError,
}

/// Recovers the log in this directory.
///
/// # Errors
/// [`LogError::Damage`] for anything but a torn tail; nothing has been changed then.
/// [`LogError::NoSegments`] when there is no log. [`LogError::Io`].
pub fn recover<D: Disk>(disk: &D, input: &RecoverInput) -> Result<Recovered, LogError> {
    let survey = survey(disk, input)?;
    let left = planted(Bug::TornTailLeft);
    if let Some((from, to)) = survey.zero.filter(|_| !left) {
        zero(disk, survey.recovered.last.base, from, to)?;
    }
    for base in survey.remove.iter().rev() {
        let name = segment_file_name(*base);
        disk.remove(&name).map_err(LogError::io("remove", disk.path(&name)))?;
    }
    rewrite_tail(disk, survey.rewrite_from, survey.recovered.end)?;
    Ok(survey.recovered)
}

/// Writes zeroes over `[from, to)` of the segment with this base, durable.
pub(crate) fn zero<D: Disk>(disk: &D, base: Lsn, from: Lsn, to: Lsn) -> Result<(), LogError> {
    let name = segment_file_name(base);
    let zeroes = vec![0; usize::try_from(to.since(from)).expect("at most one write")];
    let written = disk.write_durable_at(&name, from.since(base), &zeroes);
    written.map_err(LogError::io("write zeroes to", disk.path(&name)))
}

/// Reads `[from, to)` and writes the same bytes again, durable. A power loss on the way does no
/// harm: every sector holds the same bytes before and after.
///
/// # Errors
/// [`LogError::Io`].
pub fn rewrite_tail<D: Disk>(disk: &D, from: Lsn, to: Lsn) -> Result<(), LogError> {
    for (base, bytes) in list_segments(disk)? {
        let mut at = from.max(base);
        let end = to.min(base.plus(bytes));
        let name = segment_file_name(base);
        let mut scan = SegmentScan::of_file(disk, base, bytes);
        while at < end {
            let piece = scan.bytes(at, end.since(at).min(REWRITE_STEP_BYTES))?;
            let written = disk.write_durable_at(&name, at.since(base), piece);
            let len = piece.len() as u64;
            written.map_err(LogError::io("write again", disk.path(&name)))?;
            at = at.plus(len);
        }
    }
    Ok(())
}

/// Bytes of one write when bytes are written again: enough to make the sync's cost small.
const REWRITE_STEP_BYTES: u64 = 1 << 20;
