//! `Applied`: what readers learn from it is of one moment, and the table knows it already.

use std::sync::Arc as StdArc;

use loom::thread;
use rowship_proto::Lsn;
use rowship_sync::Countdown;
use rowship_sync::sync::Arc;

use super::publish::{Applied, Mark};
use super::snapshots::Snapshots;
use crate::row::Row;

const LANES: usize = 2;
/// LSNs of a window, and rows that it adds.
const WINDOW: u64 = 8;
const ROWS: u64 = 3;

struct Model {
    /// One for each window and lane; only what is under test orders them.
    rows: Vec<[Row; LANES]>,
    windows: Vec<Countdown>,
    applied: Applied,
    snapshots: StdArc<Snapshots>,
}

impl Model {
    fn new(windows: usize) -> Arc<Model> {
        Arc::new(Model {
            rows: (0..windows).map(|_| std::array::from_fn(|_| Row::new())).collect(),
            windows: (0..windows).map(|_| Countdown::new(LANES)).collect(),
            applied: Applied::new(Mark::ZERO, StdArc::new(|| ())),
            snapshots: Snapshots::new(Mark::ZERO),
        })
    }

    /// What `Lane::turn` does with window after window.
    fn lane(&self, lane: usize) {
        for (at, window) in self.windows.iter().enumerate() {
            self.rows[at][lane].write();
            if let Some(rows) = window.arrive(lane as i64 + 1) {
                let end = Lsn((at as u64 + 1) * WINDOW);
                let told = |mark| self.snapshots.publish(mark);
                self.applied.complete(end, rows, told);
            }
        }
    }

    /// Starts the lanes; `read` runs beside them, on this thread.
    fn run(windows: usize, read: impl FnOnce(&Model)) {
        let model = Model::new(windows);
        let lanes: Vec<_> = (0..LANES)
            .map(|lane| {
                let model = model.clone();
                thread::spawn(move || model.lane(lane))
            })
            .collect();
        read(&model);
        for lane in lanes {
            lane.join().unwrap();
        }
        let end = windows as u64;
        let last = Mark { lsn: Lsn(end * WINDOW), rows: end * ROWS };
        assert_eq!((model.applied.mark(), model.snapshots.published()), (last, last));
        assert_eq!(model.applied.visible(), last.lsn);
    }
}

/// Property: the count of rows that DBSIZE answers is that of the position beside it, and that
/// position is not behind what the same reader has seen as visible.
#[test]
fn count_and_position_are_of_one_moment() {
    loom::model(|| {
        Model::run(2, |model| {
            let visible = model.applied.visible();
            let mark = model.applied.mark();
            assert_eq!(mark.rows * WINDOW, mark.lsn.0 * ROWS, "another position's count");
            assert!(mark.lsn >= visible, "the count is older than what is visible");
        });
    });
}

/// Property: whoever sees `visible` pins at least that, and finds the rows of every lane below
/// what it has pinned.
#[test]
fn who_sees_visible_pins_at_least_that() {
    loom::model(|| {
        Model::run(1, |model| {
            let visible = model.applied.visible();
            let pin = model.snapshots.pin();
            assert!(pin.at() >= visible, "pinned {} with {visible} visible", pin.at());
            for window in &model.rows[..(pin.at().0 / WINDOW) as usize] {
                assert!(window.iter().all(Row::is_there), "a row below a pin is missing");
            }
        });
    });
}
