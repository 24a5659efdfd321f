//! `Countdown`: windows complete once, in order, and whoever reads the published position sees
//! the rows of every lane below it.

use loom::thread;
use rowship_sync::sync::Arc;
use rowship_sync::sync::atomic::{AtomicU64, Ordering};
use rowship_sync::{Countdown, Watermark};

use crate::row::Row;

const LANES: usize = 2;
const WINDOWS: usize = 2;

struct Model {
    /// `rows[window][lane]`: only the countdown and the watermark order them.
    rows: [[Row; LANES]; WINDOWS],
    windows: [Countdown; WINDOWS],
    visible: Watermark,
    sum: AtomicU64,
}

impl Model {
    fn new() -> Model {
        Model {
            rows: std::array::from_fn(|_| std::array::from_fn(|_| Row::new())),
            windows: std::array::from_fn(|_| Countdown::new(LANES)),
            visible: Watermark::new(0),
            sum: AtomicU64::new(0),
        }
    }

    /// What a lane does with window after window. `advance` asserts that publishes are in order;
    /// the sum is written relaxed by each publisher, so it is right only if publishers follow one
    /// another.
    fn lane(&self, lane: usize) {
        for (at, window) in self.windows.iter().enumerate() {
            self.rows[at][lane].write();
            if let Some(sum) = window.arrive(lane as i64 + 1) {
                let before = self.sum.load(Ordering::Relaxed);
                self.sum.store(before + sum as u64, Ordering::Relaxed);
                self.visible.advance(at as u64 + 1);
            }
        }
    }
}

/// Property: with visible at n, all lanes' rows of the first n windows are seen, by a reader that
/// takes part in nothing else; in the end every window was published exactly once.
#[test]
fn published_windows_are_whole_and_in_order() {
    loom::model(|| {
        let model = Arc::new(Model::new());
        let lanes: Vec<_> = (0..LANES)
            .map(|lane| {
                let model = model.clone();
                thread::spawn(move || model.lane(lane))
            })
            .collect();
        let visible = model.visible.get() as usize;
        for window in &model.rows[..visible] {
            for row in window {
                assert!(row.is_there(), "a row below visible is missing");
            }
        }
        for lane in lanes {
            lane.join().unwrap();
        }
        assert_eq!(model.visible.get(), WINDOWS as u64);
        let each = (LANES * (LANES + 1) / 2) as u64;
        assert_eq!(model.sum.load(Ordering::Relaxed), each * WINDOWS as u64);
    });
}
