//! A reader at a published or pinned position sees exactly that prefix of the log.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::lsm::{LsmSettings, LsmTable};
use super::super::memory::MemoryTable;
use super::super::snapshots::Pin;
use super::*;

const START: Lsn = Lsn(4096);

fn open_lsm(path: &Path, durable: Mark) -> Arc<dyn Table> {
    let opened = LsmTable::open(path, LsmSettings::tiny(), durable, true).expect("opens");
    assert_eq!((opened.durable, opened.rebuilt), (durable, None));
    Arc::new(opened.table)
}

/// One random maintenance turn; `recorded` is `node.state`.
fn maintain(table: &dyn Table, random: &mut Random, recorded: &mut Mark, returned: &mut Mark) {
    match random.below(5) {
        0 => drop(table.seal()),
        1 => drop(table.compact().expect("compacts")),
        2 => {
            table.recorded(returned.lsn).expect("records");
            *recorded = *returned;
        }
        _ => {
            if let Some(mark) = table.flush().expect("flushes") {
                *returned = mark;
            }
        }
    }
}

/// Applies the log from where the table stands, checking every published position and some pins.
/// Stops early after `turns`. Returns what `node.state` says then.
fn run(
    table: &Arc<dyn Table>,
    log: &LogWriter,
    random: &mut Random,
    from: Mark,
    turns: usize,
) -> Mark {
    let lanes = 1 + random.below(4) as usize;
    let mut harness = Harness::new(table.clone(), from, lanes);
    harness.feed(log.windows(random, from.lsn, lanes));
    let (mut recorded, mut returned) = (from, from);
    let mut pins: Vec<Pin> = Vec::new();
    for _ in 0..turns {
        let Some(published) = harness.turn(random) else { break };
        if let Some(mark) = published {
            assert_eq!(mark.rows as usize, log.state(mark.lsn).len(), "row count at {}", mark.lsn);
            assert_eq!(harness.applied.visible(), mark.lsn);
            check_position(&*harness.table, log, mark.lsn);
        }
        if random.below(3) == 0 {
            maintain(&**table, random, &mut recorded, &mut returned);
            check_position(&**table, log, harness.applied.visible());
        }
        match random.below(12) {
            0 => pins.push(table.pin()),
            1 if !pins.is_empty() => {
                drop(pins.swap_remove(random.below(pins.len() as u64) as usize));
            }
            2 => pins.iter().for_each(|pin| check_position(&**table, log, pin.at())),
            _ => {}
        }
    }
    pins.iter().for_each(|pin| check_position(&**table, log, pin.at()));
    recorded
}

fn random_log(random: &mut Random, frames: usize) -> LogWriter {
    let mut log = LogWriter::new(START);
    log.random_frames(random, frames, 50);
    log
}

#[test]
fn memory_table_shows_exact_prefixes() {
    for seed in 0..20 {
        let mut random = Random::new(seed);
        let log = random_log(&mut random, 60);
        let table: Arc<dyn Table> = Arc::new(MemoryTable::new());
        run(&table, &log, &mut random, Mark::ZERO, usize::MAX);
    }
}

#[test]
fn disk_table_shows_exact_prefixes() {
    for seed in 100..116 {
        let directory = tempfile::tempdir().unwrap();
        let mut random = Random::new(seed);
        let log = random_log(&mut random, 80);
        let table = open_lsm(&directory.path().join("table"), Mark::ZERO);
        run(&table, &log, &mut random, Mark::ZERO, usize::MAX);
    }
}

#[test]
fn a_restart_replays_from_the_recorded_position() {
    for seed in 200..216 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table");
        let mut random = Random::new(seed);
        let log = random_log(&mut random, 80);
        let mut from = Mark::ZERO;
        for _ in 0..4 {
            let table = open_lsm(&path, from);
            // Before anything is replayed, the table shows the position it was opened at.
            check_position(&*table, &log, from.lsn);
            let turns = random.below(60) as usize;
            from = run(&table, &log, &mut random, from, turns);
        }
        let table = open_lsm(&path, from);
        check_position(&*table, &log, from.lsn);
        run(&table, &log, &mut random, from, usize::MAX);
        check_position(&*table, &log, log.end());
    }
}

#[test]
fn old_versions_go_when_nobody_can_read_them() {
    let mut log = LogWriter::new(START);
    for round in 0..400u32 {
        log.put(1, b"hot", &round.to_le_bytes(), rowship_proto::row::Existed::Unknown);
        log.frame();
    }
    let mut random = Random::new(1);
    let memory = Arc::new(MemoryTable::new());
    let table: Arc<dyn Table> = memory.clone();
    let mut harness = Harness::new(table.clone(), Mark::ZERO, 1);
    harness.feed(log.windows(&mut random, Lsn::ZERO, 1));
    while harness.turn(&mut random).is_some() {
        table.recorded(harness.applied.visible()).unwrap();
        table.compact().unwrap();
        assert!(memory.versions() <= 4, "{} versions", memory.versions());
    }
    let collected = table.scan(START, 0, ScanLimits { rows_max: 1, bytes_max: 1 });
    assert!(collected.is_err(), "an unpinned old position is refused, not answered wrongly");
}

/// Lanes, maintenance and a reader on threads of their own.
fn stress(table: Arc<dyn Table>, log: &LogWriter, lanes: usize) {
    let mut harness = Harness::new(table.clone(), Mark::ZERO, lanes);
    harness.feed(log.windows(&mut Random::new(7), Lsn::ZERO, lanes));
    let done = AtomicBool::new(false);
    let (applied, done, table) = (&harness.applied, &done, &*table);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut random = Random::new(3);
            let (mut recorded, mut returned) = (Mark::ZERO, Mark::ZERO);
            while !done.load(Ordering::Relaxed) {
                maintain(table, &mut random, &mut recorded, &mut returned);
            }
        });
        let reader = scope.spawn(move || {
            let mut last = Lsn::ZERO;
            while last < log.end() {
                // A pin reaches at least what was visible before it: a primary has dropped pending
                // images up to there.
                let visible = applied.visible();
                let pin = table.pin();
                assert!(pin.at() >= last.max(visible), "{} of {visible}", pin.at());
                check_position(table, log, pin.at());
                last = pin.at();
                assert!(applied.failure().is_none());
            }
        });
        for (lane, queue) in &mut harness.lanes {
            scope.spawn(move || {
                for window in queue.drain(..) {
                    lane.turn(&window).expect("the log is well-formed");
                }
            });
        }
        let read = reader.join();
        done.store(true, Ordering::Relaxed);
        read.expect("the reader saw exact prefixes");
    });
}

#[test]
fn threads_see_exact_prefixes() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random::new(42);
    let log = random_log(&mut random, 400);
    stress(open_lsm(&directory.path().join("table"), Mark::ZERO), &log, 3);
    let memory: Arc<dyn Table> = Arc::new(MemoryTable::new());
    stress(memory, &log, 2);
}

#[test]
fn a_bad_window_stops_apply_and_nothing_of_it_is_seen() {
    let mut log = LogWriter::new(START);
    log.put(1, b"a", b"one", rowship_proto::row::Existed::No);
    log.frame();
    let good_end = log.end();
    log.put(1, b"b", b"two", rowship_proto::row::Existed::No);
    log.frame();
    let at = log.bytes.len() - 40;
    let table: Arc<dyn Table> = Arc::new(MemoryTable::new());
    let mut harness = Harness::new(table.clone(), Mark::ZERO, 1);
    let good = Arc::new(log.window(Lsn::ZERO, good_end, 1));
    log.bytes[at - 80] ^= 1;
    let bad = Arc::new(log.window(good_end, log.end(), 1));
    let lane = &mut harness.lanes[0].0;
    lane.turn(&good).unwrap();
    lane.turn(&bad).unwrap_err();
    let failure = harness.applied.failure().expect("it is kept").to_string();
    assert!(failure.contains(&good_end.to_string()), "{failure}");
    assert_eq!(harness.applied.visible(), good_end);
}
