//! The log on disk: segments of frames, and all that makes them last.
//!
//! ```text
//! segment-<base>.log   header page | segment start | repeats | frames ... | segment end | unused
//! spare-<n>.log        blocks of a retired segment, waiting to be a segment again
//! node.state           two checksummed slots: who this node is and where its log stands
//! ```
//!
//! Read in this order: [`segment`] (names and the header page), [`layout`] (when a segment ends and
//! how the next begins), [`prepare`] and [`retire`] (where segment files come from and go to),
//! [`reader`] (frames out of read-only maps), [`survey`], [`mod@recover`] and
//! [`mod@cut`] (what a restart finds, and how a tail is cut), [`node_state`], [`tools`] (verify,
//! dump, promote).
//!
//! Invariants:
//! - LSN and file offset differ by the segment's base; header pages take part in the numbering.
//! - At most [`write_bytes_max`] bytes are ever written and not yet synced, and they are the last
//!   ones of the log. A write that crosses into the next segment starts only when all of the
//!   segment before is durable.
//! - A file under a segment's name has a durable header page and all its blocks.
//! - A byte range of the log is cut by zeroes or by removing its file, never by recycling it:
//!   so a frame with the right LSN, checksum and seed in its right place is always live.
//!   Recycled segments move to higher LSNs, where their old frames stand in the wrong place.

pub mod cut;
pub mod layout;
pub mod node_state;
pub mod pool;
pub mod prepare;
pub mod reader;
pub mod recover;
pub mod retire;
pub mod scan;
pub mod seen;
pub mod segment;
pub mod survey;
pub mod tools;

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
#[cfg(any(test, feature = "sim"))]
pub mod testing;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod damage_tests;

use std::io;

use rowship_proto::Lsn;

pub use self::cut::cut;
pub use self::layout::Layout;
pub use self::node_state::{Checkpoint, NodeState, Role, StateError};
pub use self::reader::SegmentMaps;
pub use self::recover::{Recovered, recover};
pub use self::segment::SegmentHeader;
pub use self::survey::RecoverInput;

/// The most bytes of a log with bodies up to `frame_body_bytes_max` that may be written and not
/// yet synced: room for one frame of full size, or for many small ones in one write.
///
/// Recovery and verification rest on it: an invalid frame with a live one this far beyond it
/// cannot be a torn write. Writers (the appender, a replica's writer, the opening of a segment)
/// split what is longer into several writes, each durable before the next.
#[must_use]
pub const fn write_bytes_max(frame_body_bytes_max: u64) -> u64 {
    2 * (frame_body_bytes_max + rowship_proto::FRAME_HEADER_BYTES as u64).next_multiple_of(8)
}

/// What can go wrong with the log on disk. [`LogError::Io`] from a write or a sync is final: the
/// node stops, and never tries the same sync again.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Bytes that were durable are not what was written: the disk (or whoever wrote to it) failed.
    #[error(
        "damage in {segment} at offset {offset} (LSN {lsn}): {what}. {remedy}",
        remedy = REMEDY_DAMAGE
    )]
    Damage {
        /// Path of the segment file.
        segment: String,
        /// Offset in that file, in bytes.
        offset: u64,
        /// The same place as an LSN.
        lsn: Lsn,
        /// What does not hold there.
        what: String,
    },
    /// Whole bytes that this build cannot read.
    #[error("{segment} needs a newer rowship from LSN {lsn} on: {what}. Nothing was changed")]
    Newer {
        /// Path of the segment file.
        segment: String,
        /// Where.
        lsn: Lsn,
        /// What is not understood.
        what: String,
    },
    /// A call to the operating system failed.
    #[error("cannot {doing} {file}: {source}")]
    Io {
        /// What was tried, as a verb.
        doing: &'static str,
        /// Path.
        file: String,
        /// Why it failed.
        source: io::Error,
    },
    /// No space for another segment. Nothing has been changed; it can be tried again.
    #[error(
        "no space for a segment of {bytes} bytes at {file}: {source}. Free space there, or retire \
         old segments (rowship log retire)"
    )]
    DiskFull {
        /// Path of the file to be.
        file: String,
        /// Its size.
        bytes: u64,
        /// The system's own words.
        source: io::Error,
    },
    /// The place asked for is older than the oldest segment.
    #[error("LSN {lsn} has been retired: this log starts at {oldest}")]
    Retired {
        /// What was asked for.
        lsn: Lsn,
        /// First frame that is still there.
        oldest: Lsn,
    },
    /// The place asked for is in no segment that is open for reading.
    #[error("LSN {lsn} is in no open segment")]
    NotHeld {
        /// What was asked for.
        lsn: Lsn,
    },
    /// A directory without a single segment.
    #[error("no segment file in {directory}: it holds no log (a data directory has segment-*.log)")]
    NoSegments {
        /// Path.
        directory: String,
    },
    /// A segment file that should not be there yet holds live frames.
    #[error("{file} holds live frames and is not overwritten: recover the log first")]
    Exists {
        /// Path.
        file: String,
    },
    /// Asked to cut bytes that this node has applied.
    #[error(
        "refused to cut the log to LSN {to}: this node has applied it up to {applied}. The log \
         that asks for this cut has lost committed bytes, or is another log"
    )]
    CutBelowApplied {
        /// Where the cut was to be.
        to: Lsn,
        /// Applied position.
        applied: Lsn,
    },
    /// What opens a segment (table names above all) would fill more than half of it.
    #[error(
        "opening a segment takes {bytes} bytes, more than half of {segment_bytes}: use larger \
         segments"
    )]
    OpeningTooLarge {
        /// Bytes of the opening frames.
        bytes: u64,
        /// Size of the segment.
        segment_bytes: u64,
    },
    /// Offline promotion of a directory that is not a replica's.
    #[error("this directory is already a primary's; nothing to promote")]
    NotReplica,
    /// `node.state` is missing where it must be.
    #[error("no node.state in {directory}: it is not a data directory of rowship")]
    NoState {
        /// Path.
        directory: String,
    },
    /// `node.state` cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
}

impl LogError {
    /// Wraps a failed call on `file`.
    pub(crate) fn io(doing: &'static str, file: String) -> impl FnOnce(io::Error) -> LogError {
        move |source| LogError::Io { doing, file, source }
    }
}

const REMEDY_DAMAGE: &str = "The log was not changed. If a peer holds these bytes, copy its \
     segment of the same name over this one (the bytes of all copies are equal), or start this \
     node again from an empty directory; rowship log verify lists every damaged place";
