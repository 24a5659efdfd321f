//! Tests of the room as a whole: random logs, random windows, random interleavings, against a
//! plain map.

pub(super) use super::testing as log;
mod lsm;
mod prefix;

use std::collections::VecDeque;
use std::sync::Arc;

use rowship_proto::Lsn;
use rowship_proto::row::{TableId, key_hash};

use super::lane::Lane;
use super::plan::Window;
use super::publish::{Applied, Mark};
use super::table::{Resident, RowId, ScanLimits, Table};
use log::{LogWriter, Random, SEED, State};

/// Lanes with their queues, driven by hand.
struct Harness {
    table: Arc<dyn Table>,
    applied: Arc<Applied>,
    lanes: Vec<QueuedLane>,
}

type QueuedLane = (Lane<dyn Table>, VecDeque<Arc<Window>>);

impl Harness {
    fn new(table: Arc<dyn Table>, start: Mark, lanes: usize) -> Harness {
        let applied = Arc::new(Applied::new(start, Arc::new(|| ())));
        let lane = |index| Lane::new(index, lanes, SEED, table.clone(), applied.clone());
        let lanes = (0..lanes).map(|index| (lane(index), VecDeque::new())).collect();
        Harness { table, applied, lanes }
    }

    fn feed(&mut self, windows: Vec<Window>) {
        for window in windows {
            let window = Arc::new(window);
            self.lanes.iter_mut().for_each(|(_, queue)| queue.push_back(window.clone()));
        }
    }

    /// One turn of a random lane that has work; `None` when no lane has. `Some(mark)` inside when
    /// it published.
    fn turn(&mut self, random: &mut Random) -> Option<Option<Mark>> {
        let busy: Vec<usize> =
            (0..self.lanes.len()).filter(|lane| !self.lanes[*lane].1.is_empty()).collect();
        if busy.is_empty() {
            return None;
        }
        let (lane, queue) = &mut self.lanes[busy[random.below(busy.len() as u64) as usize]];
        let window = queue.pop_front().expect("it is busy");
        Some(lane.turn(&window).expect("the log is well-formed"))
    }
}

/// Everything at `at`, page by page.
fn scan_all(table: &dyn Table, at: Lsn, limits: ScanLimits) -> State {
    let (mut state, mut from) = (State::new(), Some(0));
    while let Some(hash) = from {
        let page = table.scan(at, hash, limits).expect("the position is readable");
        assert!(page.next_hash.is_none_or(|next| next > hash), "a scan must get on");
        for row in page.rows {
            let key = (row.table.0, row.key.to_vec());
            assert!(state.insert(key, row.value.to_vec()).is_none(), "a row came twice");
        }
        from = page.next_hash;
    }
    state
}

/// Scans and point reads at `at` give exactly what the log holds there.
fn check_position(table: &dyn Table, log: &LogWriter, at: Lsn) {
    let expected = log.state(at);
    let limits = ScanLimits { rows_max: 7, bytes_max: 500 };
    assert_eq!(scan_all(table, at, limits), expected, "scan at {at}");
    for (number, key) in log.keys() {
        let hash = key_hash(SEED, TableId(number), &key);
        let row = RowId { hash, table: TableId(number), key: &key };
        let value = expected.get(&(number, key.clone())).cloned().map(bytes::Bytes::from);
        assert_eq!(table.get(row, at).expect("readable"), value, "get of {row:?} at {at}");
        match table.get_resident(row, at) {
            Resident::Found(found) => assert_eq!(found, value, "resident {row:?} at {at}"),
            Resident::Cold => {}
        }
    }
}
