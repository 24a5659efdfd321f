//! From committed frames to rows that readers may see.
//!
//! ```text
//! feeder --Arc<Window>--> lane 0 .. lane n-1 --rows at their LSN--> table
//!                             |                                       ^   \
//!                     last lane of a window                       readers  maintenance turns
//!                             v                                   at a      (flush, compact)
//!                         Applied.visible --------notify--------> position
//! ```
//!
//! - [`plan`]: pure; a [`plan::Window`] of whole frames -> the rows of one lane, last image per
//!   key, and the lane's share of the row count.
//! - [`lane`]: one struct, one turn: plan, insert, arrive. The last lane to arrive publishes.
//! - [`publish`]: [`publish::Applied`], the shared outcome: `visible`, position with row count,
//!   the first failure, a callback that wakes the ring thread.
//! - [`table`]: the trait that lanes, readers and maintenance use; storage keys; errors.
//! - [`snapshots`]: which versions of a row some reader may still need; pins.
//! - [`memory`]: the plain table (tests, oracle). [`lsm`]: the table on disk, in three files.
//!
//! Invariants of this room:
//! - A row enters the table under its own LSN and a reader at position p sees exactly the rows
//!   below p. So lanes need no order among themselves, and no reader ever waits for a lane.
//! - Rows of one key stay in one lane, in log order.
//! - The table's durable position is a position whose rows were all in the flushed memtables; what
//!   lanes had run ahead is in there too, and does no harm: replay inserts the same key, LSN and
//!   value again.
//! - No threads and no clock in here: every `turn`, `flush` and `compact` is somebody's call, so
//!   that simulation can run the same code as tasks. Only [`lsm`] touches files.
//!
//! Back-pressure: whoever feeds the lanes asks [`table::Table::ready`] before each window and
//! waits for a maintenance turn when it says no. A lane itself never waits, so what can pile up
//! beyond the table's limits is what is in flight: windows times their size.

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod lane;
pub mod lsm;
pub mod memory;
pub mod plan;
pub mod publish;
pub mod snapshots;
pub mod table;

#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), expect(dead_code, reason = "the fuzz target uses a part of it"))]
mod testing;
#[cfg(test)]
mod tests;

use rowship_proto::Lsn;
use rowship_proto::frame::FrameError;

/// Why apply stops. The node keeps serving what is visible, raises an alarm, and applies no more:
/// going on past a row would break the promise of exact positions.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Committed bytes that are not frames of this log: damage between verification and here, or
    /// a writer's fault. A peer can supply the frame.
    #[error("cannot apply the frame at LSN {lsn}: {error} (check it with `log verify`)")]
    Frame {
        /// Start of the frame.
        lsn: Lsn,
        /// What is wrong with it.
        error: FrameError,
    },
    /// A row that its writer should have refused.
    #[error("cannot apply the row at LSN {lsn}: {reason}")]
    Row {
        /// The row.
        lsn: Lsn,
        /// What is wrong with it.
        reason: RowFault,
    },
    /// The table failed.
    #[error("the table failed at LSN {lsn}: {error}")]
    Table {
        /// Start of the window that was being applied.
        lsn: Lsn,
        /// The table's own words.
        #[source]
        error: table::TableError,
    },
}

/// What is wrong with a row of a well-formed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowFault {
    /// Longer than the table can store.
    #[error("its key of {len} bytes is over the limit of {}", table::KEY_BYTES_MAX)]
    KeyTooLong {
        /// Bytes of the key.
        len: usize,
    },
    /// The hash in the row is not that of its table and key: readers would never find it.
    #[error("its key hash is {found:016x}, expected {expected:016x}")]
    KeyHash {
        /// Hash in the row.
        found: u64,
        /// Hash of its table and key under the log's seed.
        expected: u64,
    },
}
