//! Windows in any order of lanes: the body of the fuzz target `windows`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use rowship_proto::fuzzing::Input;
use rowship_proto::row::{Existed, TableId, key_hash};
use rowship_proto::{FRAME_HEADER_BYTES, Lsn};

use super::lane::Lane;
use super::memory::MemoryTable;
use super::plan::{LanePlan, Share, Window, plan};
use super::publish::{Applied, Mark};
use super::snapshots::Pin;
use super::table::{Resident, RowId, ScanLimits, Table};
use super::testing::{LogWriter, SEED, State};

/// A log of puts and deletes, cut into windows anywhere between frames, applied by a few lanes in
/// any order. Each lane's plan is the last row of each of its keys, and together they are all of
/// them. At every published position, and at every pin however old, the table shows just what a
/// plain map of that position holds, and the count of rows is that map's; nothing beyond. A window
/// with a bent header is refused by every lane. Returns how far `visible` has come.
pub fn windows(data: &[u8]) -> Lsn {
    let (schedule, events) = data.split_at(data.len() / 4);
    let mut schedule = Schedule { bytes: schedule, at: 0 };
    let log = write_log(Input::new(events));
    let lanes = 1 + schedule.below(4);
    let windows = cut(&log, lanes, &mut schedule);
    windows.iter().for_each(|window| check_plans(&log, window, lanes));
    let visible = apply(&log, windows, lanes, &mut schedule);
    assert_eq!(visible, if log.ends.len() > 1 { log.end() } else { Lsn::ZERO });
    refuse_bent_header(&log, &mut schedule);
    visible
}

const START: Lsn = Lsn(4096);
/// More of one input finds nothing new.
const EVENTS_MAX: usize = 100;
const KEYS: u8 = 12;
const PINS_MAX: usize = 3;

/// The same decisions over and over, and always the first when there are none.
struct Schedule<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Schedule<'_> {
    fn below(&mut self, count: usize) -> usize {
        let byte = self.bytes.get(self.at % self.bytes.len().max(1)).copied().unwrap_or_default();
        // Not only the byte, so that a short schedule is no short cycle.
        self.at += 1;
        (usize::from(byte) + self.at / self.bytes.len().max(1)) % count
    }
}

fn write_log(mut input: Input<'_>) -> LogWriter {
    let mut log = LogWriter::new(START);
    let mut open = false;
    for _ in 0..EVENTS_MAX {
        if input.is_done() {
            break;
        }
        let choice = input.byte();
        let (table, key) = (u32::from(choice >> 6), [b'k', choice % KEYS]);
        let existed = if log.exists(table, &key) { Existed::Yes } else { Existed::No };
        match input.below(8) {
            0 if open => log.frame(),
            1 if !open => log.mark(),
            2 | 3 => log.delete(table, &key, existed),
            _ => {
                let len = input.below(40);
                log.put(table, &key, input.bytes(len), existed);
            }
        }
        open = log.is_open();
    }
    if open {
        log.frame();
    }
    log
}

fn cut(log: &LogWriter, lanes: usize, schedule: &mut Schedule<'_>) -> Vec<Arc<Window>> {
    let (mut windows, mut start, mut at) = (Vec::new(), Lsn::ZERO, 1);
    while at < log.ends.len() {
        let last = (at + schedule.below(5)).min(log.ends.len() - 1);
        windows.push(Arc::new(log.window(start, log.ends[last], lanes)));
        (start, at) = (log.ends[last], last + 1);
    }
    windows
}

fn check_plans(log: &LogWriter, window: &Window, count: usize) {
    let mut found = BTreeMap::new();
    for index in 0..count {
        let share = Share { index, count };
        let plan = plan(window, share, SEED).expect("the log is well-formed");
        check_order(&plan, share);
        for row in plan.rows {
            found.insert((row.table.0, row.key.to_vec()), row.lsn);
        }
    }
    assert_eq!(found, log.last_rows(window.start, window.end), "not the last row of each key");
}

fn check_order(plan: &LanePlan<'_>, share: Share) {
    let place = |at: usize| (plan.rows[at].key_hash, plan.rows[at].table, plan.rows[at].key);
    assert!((1..plan.rows.len()).all(|at| place(at - 1) < place(at)), "out of order, or twice");
    assert!(plan.rows.iter().all(|row| share.owns(row.key_hash)), "another lane's row");
}

fn apply(
    log: &LogWriter,
    windows: Vec<Arc<Window>>,
    count: usize,
    schedule: &mut Schedule<'_>,
) -> Lsn {
    let table = Arc::new(MemoryTable::new());
    let applied = Arc::new(Applied::new(Mark::ZERO, Arc::new(|| ())));
    let lane = |index| Lane::new(index, count, SEED, table.clone(), applied.clone());
    let mut lanes: Vec<(Lane<MemoryTable>, VecDeque<Arc<Window>>)> =
        (0..count).map(|index| (lane(index), windows.iter().cloned().collect())).collect();
    let mut pins: Vec<Pin> = Vec::new();
    loop {
        let busy: Vec<usize> = (0..count).filter(|lane| !lanes[*lane].1.is_empty()).collect();
        if busy.is_empty() {
            break;
        }
        let (lane, queue) = &mut lanes[busy[schedule.below(busy.len())]];
        let window = queue.pop_front().expect("it is busy");
        if let Some(mark) = lane.turn(&window).expect("the log is well-formed") {
            assert_eq!((mark, mark.lsn), (applied.mark(), window.end));
            assert_eq!(mark.rows as usize, log.state(mark.lsn).len(), "rows at {}", mark.lsn);
        }
        // Also when lanes have run ahead of it.
        check_position(&table, log, applied.visible());
        match schedule.below(8) {
            0 if pins.len() < PINS_MAX => pins.push(table.pin()),
            1 if !pins.is_empty() => drop(pins.swap_remove(schedule.below(pins.len()))),
            2 => table.recorded(applied.visible()).expect("memory takes it"),
            3 => drop(table.compact().expect("memory takes it")),
            _ => {}
        }
        pins.iter().for_each(|pin| check_position(&table, log, pin.at()));
    }
    applied.visible()
}

fn check_position(table: &MemoryTable, log: &LogWriter, at: Lsn) {
    let state = log.state(at);
    for (id, key) in log.keys() {
        let table_id = TableId(id);
        let row = RowId { hash: key_hash(SEED, table_id, &key), table: table_id, key: &key };
        let expected = state.get(&(id, key.clone())).map(|value| Bytes::copy_from_slice(value));
        assert_eq!(table.get_resident(row, at), Resident::Found(expected), "at {at}");
    }
    let (mut scanned, mut from) = (State::new(), Some(0));
    while let Some(hash) = from {
        let limits = ScanLimits { rows_max: 3, bytes_max: 100 };
        let page = table.scan(at, hash, limits).expect("pinned, or the newest");
        for row in page.rows {
            let known = scanned.insert((row.table.0, row.key.to_vec()), row.value.to_vec());
            assert!(known.is_none(), "a row is scanned twice");
        }
        assert!(page.next_hash.is_none_or(|next| next > hash), "a scan stands still");
        from = page.next_hash;
    }
    assert_eq!(scanned, state, "a scan at {at}");
}

fn refuse_bent_header(log: &LogWriter, schedule: &mut Schedule<'_>) {
    if log.bytes.is_empty() {
        return;
    }
    let frame = log.ends[schedule.below(log.ends.len() - 1)];
    let mut bytes = log.bytes.clone();
    let place = frame.since(START) as usize + schedule.below(FRAME_HEADER_BYTES);
    bytes[place] ^= 1 << schedule.below(8);
    let window = Window::new(START, log.end(), vec![Bytes::from(bytes)], 2);
    for index in 0..2 {
        let planned = plan(&window, Share { index, count: 2 }, SEED);
        assert!(planned.is_err(), "a bent header was taken");
    }
}
