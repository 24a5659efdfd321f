//! The outcome of apply, shared by lanes, the ring thread and maintenance.

use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError};

use rowship_proto::Lsn;
use rowship_sync::Watermark;
use rowship_sync::sync::{Mutex, MutexGuard};

use super::ApplyError;

/// A position and how many rows exist at exactly that position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// End of the log meant.
    pub lsn: Lsn,
    /// Rows in all tables, as counted from the `existed` marks of the log.
    pub rows: u64,
}

impl Mark {
    /// The empty table.
    pub const ZERO: Mark = Mark { lsn: Lsn::ZERO, rows: 0 };
}

/// Called after every publish and on failure, on a lane's thread: wakes whoever waits for
/// `visible`. It must not block.
pub type Notify = Arc<dyn Fn() + Send + Sync>;

/// How far apply is.
///
/// `visible`: the table holds all rows below it, and readers may see them. Only writer: the lane
/// that completes a window (one at a time, see [`rowship_sync::Countdown`]). It stops only at
/// ends of windows. `visible <= committed`, because the feeder makes windows of nothing else.
pub struct Applied {
    visible: Watermark,
    mark: Mutex<Mark>,
    failure: OnceLock<ApplyError>,
    notify: Notify,
}

impl Applied {
    /// Starts at the table's durable position.
    #[must_use]
    pub fn new(start: Mark, notify: Notify) -> Applied {
        let visible = Watermark::new(start.lsn.0);
        Applied { visible, mark: Mutex::new(start), failure: OnceLock::new(), notify }
    }

    /// Where readers may read.
    #[must_use]
    pub fn visible(&self) -> Lsn {
        Lsn(self.visible.get())
    }

    /// `visible` and the number of rows there, of one moment.
    #[must_use]
    pub fn mark(&self) -> Mark {
        *self.lock()
    }

    /// What stopped apply, if something did. The first failure is kept; `visible` cannot pass the
    /// window that failed, because not all lanes arrive there.
    #[must_use]
    pub fn failure(&self) -> Option<&ApplyError> {
        self.failure.get()
    }

    /// Keeps `error` if it is the first, and wakes the ring thread.
    pub fn fail(&self, error: ApplyError) {
        // A second failure changes nothing: the first one says where to look.
        let _ = self.failure.set(error);
        (self.notify)();
    }

    /// The window that ends at `end` is done, with `rows_delta` more rows: called by its last lane.
    /// The table is told by `published` before anybody sees `visible` there: who sees it pins at
    /// least that. (The other way round a primary dropped pending images that a pin of that moment
    /// did not reach yet, and read-modify-write went on from the image before.) A pin a little
    /// above `visible` shows a whole window.
    pub(super) fn complete(&self, end: Lsn, rows_delta: i64, published: impl FnOnce(Mark)) -> Mark {
        // Saturating: a writer that miscounts must not be able to stop a replica.
        let mark = Mark { lsn: end, rows: self.mark().rows.saturating_add_signed(rows_delta) };
        published(mark);
        self.publish(mark);
        (self.notify)();
        mark
    }

    fn publish(&self, mark: Mark) {
        let mut present = self.lock();
        *present = mark;
        self.visible.advance(mark.lsn.0);
    }

    fn lock(&self) -> MutexGuard<'_, Mark> {
        // A mark is whole at every instruction, so a panic elsewhere cannot have bent it.
        self.mark.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applied")
            .field("mark", &self.mark())
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}
