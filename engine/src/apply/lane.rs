//! One apply lane.

use std::sync::Arc;

use rowship_proto::Lsn;
use rowship_proto::sim::{Bug, planted};

use super::ApplyError;
use super::plan::{Share, Window, plan};
use super::publish::{Applied, Mark};
use super::table::Table;

/// Applies its share of every window, in order. One thread (in simulation: task) per lane.
#[derive(Debug)]
pub struct Lane<T: ?Sized> {
    share: Share,
    seed: u64,
    next: Lsn,
    table: Arc<T>,
    applied: Arc<Applied>,
}

impl<T: Table + ?Sized> Lane<T> {
    /// Lane `index` of `lanes`, which starts where `applied` stands now. `seed` is the log's.
    ///
    /// # Panics
    /// When there is no such lane.
    #[must_use]
    pub fn new(
        index: usize,
        lanes: usize,
        seed: u64,
        table: Arc<T>,
        applied: Arc<Applied>,
    ) -> Lane<T> {
        assert!(index < lanes, "lane {index} of {lanes}");
        let next = applied.visible();
        Lane { share: Share { index, count: lanes }, seed, next, table, applied }
    }

    /// Applies this lane's rows of `window`. The lane that finishes it last publishes it, and gets
    /// the new mark. Never waits: see the room's doc for back-pressure.
    ///
    /// # Errors
    /// What is also kept in [`Applied::failure`]. The lane must not be used any more then: a
    /// window with a missing share never completes, so nothing half-applied becomes visible.
    ///
    /// # Panics
    /// When a window is given out of order (a lane need not see all of them), or was made for
    /// another number of lanes.
    pub fn turn(&mut self, window: &Arc<Window>) -> Result<Option<Mark>, ApplyFailed> {
        assert!(window.start >= self.next, "windows come in order");
        let rows_delta = self.insert(window).map_err(|error| {
            self.applied.fail(error);
            ApplyFailed
        })?;
        self.next = window.end;
        let mut arrived = window.countdown.arrive(rows_delta);
        if planted(Bug::PublishEarly) {
            arrived = (self.share.index == 0).then_some(rows_delta);
        }
        let Some(rows_delta) = arrived else { return Ok(None) };
        let told = |mark| self.table.published(mark);
        let mark = self.applied.complete(window.end, rows_delta, told);
        Ok(Some(mark))
    }

    fn insert(&self, window: &Window) -> Result<i64, ApplyError> {
        let plan = plan(window, self.share, self.seed)?;
        let applied = self.table.apply(&plan.rows);
        applied.map_err(|error| ApplyError::Table { lsn: window.start, error })?;
        Ok(plan.rows_delta)
    }
}

/// This lane has stopped; why is in [`Applied::failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lane has stopped: apply failed")]
pub struct ApplyFailed;
